//! The one mapping from the core's errors to Python's exceptions.
//!
//! The exception classes are Python (`tollkeeper/errors.py`): they inherit from builtin ones and can be pickled, which
//! a class made here could not do under the stable ABI. Each is raised with a message, a code and a help line.

use pyo3::PyErr;
use tollkeeper_core::uid::UidError;

use crate::convert::ConvertError;

mod python {
    //! The classes of `tollkeeper/errors.py`.
    pyo3::import_exception!(tollkeeper.errors, ArgumentsError);
    pyo3::import_exception!(tollkeeper.errors, EntityError);
    pyo3::import_exception!(tollkeeper.errors, HandleError);
    pyo3::import_exception!(tollkeeper.errors, InternalError);
}

/// Everything the binding may have to raise.
#[derive(Debug)]
pub(crate) enum Error {
    /// The arguments are not plain data, or too much of it.
    Arguments(ConvertError),
    /// A text is not an entity uid.
    Uid(UidError),
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

impl From<UidError> for Error {
    fn from(error: UidError) -> Self {
        Self::Uid(error)
    }
}

impl From<Error> for PyErr {
    #[cold]
    fn from(error: Error) -> Self {
        match error {
            Error::Arguments(e) => python::ArgumentsError::new_err((e.to_string(), e.code(), e.help())),
            Error::Uid(e) => python::EntityError::new_err((e.to_string(), e.code(), e.help())),
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
