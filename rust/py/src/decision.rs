//! `Decision`: the answer to one check, and what becomes of the action it allowed.
//!
//! The core decides and makes the sentences. What this file adds is that a hold is made when somebody asks for it, and
//! that a decision cannot be tested by accident.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyString, PyTuple};
use tollkeeper_core::audit::error::AuditError;
use tollkeeper_core::gate::code::Code;
use tollkeeper_core::gate::decision::Decision;
use tollkeeper_core::gate::evidence::{Ending, Recorded, Status};

use crate::audit::PyAuditLog;
use crate::budget::Shared;
use crate::errors::{Error, denied};
use crate::fork::Born;
use crate::gate::PyGate;
use crate::guard::guard;
use crate::hold::{PyDenial, PyHold};

/// The answer to one check.
///
/// A decision has no truth value: `if decision:` raises, so nobody tests the object by accident.
#[pyclass(frozen, name = "Decision", module = "tollkeeper")]
pub(crate) struct PyDecision {
    inner: Decision,
    gate: Py<PyGate>,
    /// Made when somebody asks; from then on it ends what was reserved
    hold: PyOnceLock<Py<PyHold>>,
}

impl PyDecision {
    pub(crate) fn new(inner: Decision, gate: Py<PyGate>) -> Self {
        Self { inner, gate, hold: PyOnceLock::new() }
    }

    /// The log and the record in it.
    fn record<'py>(&self, py: Python<'py>) -> Result<(Bound<'py, PyAuditLog>, Recorded), Error> {
        let none = || AuditError::Invalid {
            message: "the decision has no record: its gate keeps no audit log, or lets actions pass unrecorded"
                .to_owned(),
        };
        let log = self.gate.get().log().ok_or_else(none)?;
        Ok((log.bind(py).clone(), self.inner.recorded().ok_or_else(none)?))
    }

    /// Records what became of the action. Never waits, and what cannot be recorded is what the log itself tells of.
    pub(crate) fn record_ending(&self, ending: &Ending<'_>) -> Result<bool, Error> {
        let gate = self.gate.get();
        if !gate.is_usable() {
            return Ok(false);
        }
        self.inner.record_outcome(ending, gate.room().now_ms()).map_err(Error::from)
    }
}

/// How an action ended, by name.
fn read_status(name: &str) -> PyResult<Status> {
    Status::ALL.into_iter().find(|status| status.name() == name).ok_or_else(|| {
        let known = Status::ALL.map(Status::name).join("`, `");
        PyValueError::new_err(format!("there is no status `{name}`; there is `{known}`"))
    })
}

#[pymethods]
impl PyDecision {
    /// Whether the action may go ahead.
    #[getter]
    fn allowed(&self) -> bool {
        self.inner.allowed()
    }

    /// Stable name of the outcome, such as `allow` or `policy.no_permit`.
    #[getter]
    fn code<'py>(&self, py: Python<'py>) -> Bound<'py, PyString> {
        PyString::intern(py, self.inner.code().slug())
    }

    /// A sentence that a model can act on; empty when allowed. Holds no value of the arguments.
    #[getter]
    fn reason(&self) -> String {
        self.inner.reason()
    }

    /// Ids of the policies that decided.
    #[getter]
    fn policies(&self) -> Vec<&str> {
        self.inner.policies()
    }

    /// Policies that could not be evaluated, as pairs of id and message.
    #[getter]
    fn errors(&self) -> Vec<(&str, String)> {
        self.inner.errors()
    }

    /// `@obligation` of the permits that allowed.
    #[getter]
    fn obligations(&self) -> Vec<&str> {
        self.inner.obligations()
    }

    /// `@approval` of the permits that need one.
    #[getter]
    fn approvals(&self) -> Vec<&str> {
        self.inner.approvals()
    }

    /// The code this would have had without shadow mode, or with the policies that are in it.
    #[getter]
    fn would_deny(&self) -> Option<&'static str> {
        self.inner.would_deny().map(Code::slug)
    }

    /// Ids of the policies behind `would_deny`.
    #[getter]
    fn would_deny_policies(&self) -> Vec<&str> {
        self.inner.would_deny_policies()
    }

    /// Uid of the principal that the action was denied for, if it is not the one that acts: one it acts for.
    #[getter]
    fn principal_denied(&self) -> Option<String> {
        self.inner.denied_for().map(ToString::to_string)
    }

    /// What the host said of the call: `runtime`, `agent`, `session`, `run`, `call`, those that were given.
    #[getter]
    fn asserted(&self) -> BTreeMap<&str, &str> {
        self.inner.asserted().collect()
    }

    /// Id of the approval that was used; `None` if none was needed.
    #[getter]
    fn approval(&self) -> Option<String> {
        self.inner.grant().map(|id| id.to_string())
    }

    /// What exactly an approval would be for: a document and its SHA-256.
    #[getter]
    fn _binding<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let binding = self.inner.binding()?;
        Some((PyBytes::new(py, &binding.document), PyBytes::new(py, &binding.digest)))
    }

    /// What was reserved for the action: a `Hold`, or `None` if nothing was. Settle it with what was used. If nobody
    /// does, it ends in full when the decision and the hold are gone. A forked child has none: it is its parent's.
    #[getter]
    pub(crate) fn hold<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyHold>>> {
        let Some(handle) = self.inner.hold().filter(|handle| handle.is_own()) else { return Ok(None) };
        guard(|| {
            let hold = self.hold.get_or_try_init(py, || {
                let shared = Arc::new(Shared::of(handle.ledger()));
                let path = PyString::new(py, handle.path()).unbind();
                let tool = self.inner.tool().map(|tool| tool.name().into());
                let run = Some((Arc::clone(handle.standing()), tool));
                let hold = Py::new(py, PyHold::new(shared, path, handle.id(), Born::now(), run))?;
                self.inner.hand_over();
                Ok::<_, PyErr>(hold)
            })?;
            Ok::<_, PyErr>(Some(hold.bind(py).clone()))
        })
    }

    /// Why a budget refused: a `Denial` with the level, unit and window; `None` if none did.
    #[getter]
    fn denial(&self) -> Option<PyDenial> {
        self.inner.denial().map(|denial| PyDenial { inner: Box::new(denial.clone()) })
    }

    /// Seconds until the same action is worth another try; `None` if it is not, or nobody knows.
    #[getter]
    #[expect(clippy::cast_precision_loss, reason = "milliseconds until the end of a month are far below 2**53")]
    fn retry_after(&self) -> Option<f64> {
        self.inner.retry_after_ms().map(|ms| ms as f64 / 1e3)
    }

    /// Ends what was reserved, the action being over: what nobody settled counts in full. Records the outcome.
    #[pyo3(signature = (status = "unknown", error = None, duration_ms = None))]
    fn _finish(&self, status: &str, error: Option<&str>, duration_ms: Option<i64>) -> PyResult<()> {
        guard(|| {
            if let Some(hold) = self.inner.hold() {
                hold.end_unreported();
            }
            let ending = Ending { status: read_status(status)?, error, usage: &[], duration_ms, trace: None };
            self.record_ending(&ending)?;
            Ok::<_, PyErr>(())
        })
    }

    /// Ends what was reserved for an action that never began.
    fn _release(&self) -> PyResult<()> {
        guard(|| {
            self.inner.never_began();
            if let Some(hold) = self.inner.hold() {
                hold.release();
            }
            Ok::<_, PyErr>(())
        })
    }

    /// See `Gate.outcome`.
    #[pyo3(signature = (status, error, usage, duration_ms))]
    fn _outcome(
        &self,
        status: &str,
        error: Option<&str>,
        usage: Vec<(String, i64)>,
        duration_ms: Option<i64>,
    ) -> PyResult<bool> {
        guard(move || {
            let usage: Vec<(&str, i64)> = usage.iter().map(|(name, count)| (&**name, *count)).collect();
            let ending = Ending { status: read_status(status)?, error, usage: &usage, duration_ms, trace: None };
            Ok::<_, PyErr>(self.record_ending(&ending)?)
        })
    }

    /// How certain its record has to be before the action begins: `"group"`, `"sync"` or `"checkpointed"`; `None` if it
    /// has no record.
    #[getter]
    fn durability(&self) -> Option<&'static str> {
        self.inner.recorded().map(|recorded| recorded.durability.name())
    }

    /// A coroutine that ends when the record is on the disk.
    ///
    /// Args:
    ///     durability: `"sync"`, or `"checkpointed"` for a record that a signed checkpoint covers.
    ///
    /// Raises:
    ///     AuditError: It never will be: the log has given up. Or the decision has no record.
    #[pyo3(signature = (durability = "sync") -> "collections.abc.Coroutine[typing.Any, typing.Any, None]")]
    fn durable<'py>(&self, py: Python<'py>, durability: &str) -> PyResult<Bound<'py, PyAny>> {
        let (log, recorded) = self.record(py)?;
        log.as_any().call_method1("durable", (recorded.seq, durability))
    }

    /// The same for threads.
    ///
    /// Args:
    ///     durability: As in `durable`.
    ///     timeout: Seconds.
    #[pyo3(signature = (durability = "sync", timeout = 10.0))]
    fn wait_durable(&self, py: Python<'_>, durability: &str, timeout: f64) -> PyResult<()> {
        let (log, recorded) = self.record(py)?;
        log.as_any().call_method1("wait", (recorded.seq, durability, timeout)).map(drop)
    }

    /// Name of this decision: the gate and a count.
    #[getter]
    fn id(&self) -> String {
        self.inner.id().to_string()
    }

    /// Raises `Denied` unless the action may go ahead; returns the decision otherwise.
    pub(crate) fn require(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        if slf.get().inner.allowed() {
            return Ok(slf);
        }
        let arguments = PyTuple::new(slf.py(), [slf.as_any()])?;
        Err(denied(arguments.unbind()))
    }

    #[expect(clippy::unused_self, reason = "a method of the object")]
    fn __bool__(&self) -> PyResult<bool> {
        Err(PyTypeError::new_err("a decision has no truth value; use `decision.allowed` or `decision.require()`"))
    }

    fn __repr__(&self) -> String {
        format!("<Decision {} {:?}>", self.inner.code().slug(), self.inner.policies())
    }
}
