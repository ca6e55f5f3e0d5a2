//! The one mapping from the core's errors to Python's exceptions.
//!
//! The exception classes are Python (`tollkeeper/errors.py`): they inherit from builtin ones and can be pickled, which
//! a class made here could not do under the stable ABI. Each is raised with a message, a code and a help line.

use pyo3::types::PyTuple;
use pyo3::{Py, PyErr};
use tollkeeper_core::audit::error::AuditError;
use tollkeeper_core::audit::verify::error::VerifyError;
use tollkeeper_core::budget::error::BudgetError;
use tollkeeper_core::budget::price::Unpriced;
use tollkeeper_core::gate::control::ControlError;
use tollkeeper_core::limits::AMOUNT_MAX;
use tollkeeper_core::policy::error::{PolicyError, PolicyErrors};
use tollkeeper_core::uid::UidError;

use crate::convert::ConvertError;

mod python {
    //! The classes of `tollkeeper/errors.py`.
    pyo3::import_exception!(tollkeeper.errors, ArgumentsError);
    pyo3::import_exception!(tollkeeper.errors, AuditError);
    pyo3::import_exception!(tollkeeper.errors, BudgetError);
    pyo3::import_exception!(tollkeeper.errors, ContextError);
    pyo3::import_exception!(tollkeeper.errors, Denied);
    pyo3::import_exception!(tollkeeper.errors, EntityError);
    pyo3::import_exception!(tollkeeper.errors, HandleError);
    pyo3::import_exception!(tollkeeper.errors, InternalError);
    pyo3::import_exception!(tollkeeper.errors, PolicyError);
    pyo3::import_exception!(tollkeeper.errors, StateError);
}

/// Everything the binding may have to raise.
#[derive(Debug)]
pub(crate) enum Error {
    /// The arguments are not plain data, or too much of it.
    Arguments(ConvertError),
    /// A text that a person wrote cannot be used: policies, a schema, entities or a context, told apart by the code.
    Text(Box<PolicyErrors>),
    /// A text is not an entity uid.
    Uid(UidError),
    /// A ledger cannot be used, or not like that.
    Budget(BudgetError),
    /// An audit log cannot be read, or a proof does not hold.
    Verify(VerifyError),
    /// An audit log cannot be opened, or cannot do what was asked of it.
    Audit(AuditError),
    /// What the gates of a host share cannot be used, or not like that.
    State(ControlError),
    /// A model or a component has no price.
    Unpriced(Unpriced),
    /// A whole number that is out of its range: of what, the number as text, and the least it may be.
    Amount(&'static str, String, i64),
    /// A meter is in use in another thread.
    MeterBusy,
    /// A handle was used in a child of the process that made it.
    Forked,
    /// The core panicked.
    Panic,
}

impl From<ConvertError> for Error {
    fn from(error: ConvertError) -> Self {
        Self::Arguments(error)
    }
}

impl From<PolicyErrors> for Error {
    fn from(errors: PolicyErrors) -> Self {
        Self::Text(Box::new(errors))
    }
}

impl From<PolicyError> for Error {
    fn from(error: PolicyError) -> Self {
        PolicyErrors::from(error).into()
    }
}

impl From<UidError> for Error {
    fn from(error: UidError) -> Self {
        Self::Uid(error)
    }
}

impl From<BudgetError> for Error {
    fn from(error: BudgetError) -> Self {
        Self::Budget(error)
    }
}

impl From<VerifyError> for Error {
    fn from(error: VerifyError) -> Self {
        Self::Verify(error)
    }
}

impl From<AuditError> for Error {
    fn from(error: AuditError) -> Self {
        Self::Audit(error)
    }
}

impl From<ControlError> for Error {
    fn from(error: ControlError) -> Self {
        Self::State(error)
    }
}

impl From<Unpriced> for Error {
    fn from(error: Unpriced) -> Self {
        Self::Unpriced(error)
    }
}

impl From<Error> for PyErr {
    #[cold]
    fn from(error: Error) -> Self {
        match error {
            Error::Arguments(e) => python::ArgumentsError::new_err((e.to_string(), e.code(), e.help())),
            Error::Text(errors) => text_error(&errors),
            Error::Uid(e) => python::EntityError::new_err((e.to_string(), e.code(), e.help())),
            Error::Budget(e) => budget_error(&e),
            Error::Verify(e) => python::AuditError::new_err((e.to_string(), e.code(), e.help())),
            Error::Audit(e) => audit_error(&e),
            Error::State(e) => python::StateError::new_err((e.to_string(), e.code(), e.help())),
            Error::Unpriced(e) => python::BudgetError::new_err((
                e.to_string(),
                "budget.unpriced",
                "add the price to the table; nothing is guessed",
            )),
            Error::Amount(of, number, least) => python::BudgetError::new_err((
                format!("{of} is {number}, not between {least} and {AMOUNT_MAX}"),
                "budget.amount",
                "amounts are whole numbers in the unit's own size, nano-USD for money",
            )),
            Error::MeterBusy => python::HandleError::new_err((
                "this meter is in use in another thread",
                "budget.meter_busy",
                "a meter is for one thread at a time: give each engine its own",
            )),
            Error::Forked => python::HandleError::new_err((
                "this handle was made before a fork, in the parent process",
                "gate.forked",
                "open a new one in the child process",
            )),
            Error::Panic => python::InternalError::new_err((
                "internal error; the decision is deny",
                "internal.panic",
                "report this as a defect, with the panic message that was written to standard error",
            )),
        }
    }
}

#[cold]
fn budget_error(error: &BudgetError) -> PyErr {
    let arguments = (error.to_string(), error.code(), error.help());
    match error {
        BudgetError::Forked | BudgetError::Closed => python::HandleError::new_err(arguments),
        _ => python::BudgetError::new_err(arguments),
    }
}

/// One finding as the Python side takes it.
type Detail = (&'static str, String, Option<String>, u32, u32, String, Option<String>);

#[cold]
fn audit_error(error: &AuditError) -> PyErr {
    match error {
        AuditError::Forked => Error::Forked.into(),
        AuditError::Closed => python::HandleError::new_err((error.to_string(), error.code())),
        _ => python::AuditError::new_err((error.to_string(), error.code())),
    }
}

#[cold]
fn text_error(errors: &PolicyErrors) -> PyErr {
    let first = errors.first();
    let details: Vec<Detail> = errors
        .iter()
        .map(|e| (e.code, e.message.clone(), e.file.clone(), e.line, e.column, e.offending.clone(), e.help.clone()))
        .collect();
    let arguments = (errors.to_string(), first.code, first.help.clone(), details);
    match first.code.split('.').next() {
        Some("budget") => python::BudgetError::new_err((first.message.clone(), first.code, first.help.clone())),
        // What is wrong with the forbids of a run is wrong with a policy.
        Some("entities" | "scope") if first.code != "scope.forbid" => python::EntityError::new_err(arguments),
        Some("context") => python::ContextError::new_err(arguments),
        Some("internal") => python::InternalError::new_err((errors.to_string(), first.code, first.help.clone())),
        _ => python::PolicyError::new_err(arguments),
    }
}

/// `Denied` for a decision.
#[cold]
pub(crate) fn denied(arguments: Py<PyTuple>) -> PyErr {
    python::Denied::new_err(arguments)
}
