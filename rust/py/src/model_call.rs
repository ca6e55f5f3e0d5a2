//! `ModelCall`: one call of a model, from the decision to what it has used.
//!
//! The core decides and counts. What this file adds is the context manager: nothing is asked before it is entered, a
//! denial raises there, and whatever leaves it ends the hold.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyInt, PyTuple};
use tollkeeper_core::gate::asserted::Asserted;
use tollkeeper_core::gate::evidence::{Ending, Status};
use tollkeeper_core::gate::model_call::{ModelCall, ModelRequest, ModelUsage};

use crate::decision::PyDecision;
use crate::errors::Error;
use crate::gate::{PyGate, read_asserted};
use crate::guard::guard;
use crate::hold::{PyHold, Whole, whole};

/// A call that was asked for, and what came of it.
struct Begun {
    decision: Py<PyDecision>,
    /// `None` where the gate cannot be used any more
    call: Option<ModelCall>,
}

/// The native half of a model call.
#[pyclass(frozen, subclass, name = "ModelCall", module = "tollkeeper._native")]
pub(crate) struct PyModelCall {
    gate: Py<PyGate>,
    model: String,
    prompt_tokens: i64,
    max_tokens: i64,
    n: i64,
    parent: Option<String>,
    asserted: Option<Arc<Asserted>>,
    begun: PyOnceLock<Begun>,
}

impl PyModelCall {
    fn begun(&self, py: Python<'_>) -> PyResult<&Begun> {
        self.begun.get(py).ok_or_else(|| PyRuntimeError::new_err("the call has not begun; use it with `with`"))
    }

    fn call(&self, py: Python<'_>) -> Option<&ModelCall> {
        self.begun.get(py).and_then(|begun| begun.call.as_ref())
    }
}

#[pymethods]
impl PyModelCall {
    /// Args:
    ///     gate: The gate that decides.
    ///     model: Its name in the price table.
    ///     prompt_tokens: Tokens of the prompt.
    ///     max_tokens: The most tokens of one completion.
    ///     n: How many completions.
    ///     parent: Id of the decision that the call follows from.
    ///     asserted: As in `Gate.check`.
    #[new]
    #[pyo3(signature = (gate, model, prompt_tokens: "int", max_tokens: "int", n: "int" = Whole::Value(1), parent: "str | None" = None, asserted: "collections.abc.Mapping[str, str] | None" = None))]
    fn new(
        gate: Py<PyGate>,
        model: String,
        prompt_tokens: Whole<'_, '_>,
        max_tokens: Whole<'_, '_>,
        n: Whole<'_, '_>,
        parent: Option<String>,
        asserted: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let prompt_tokens = whole("prompt_tokens", prompt_tokens, 0)?;
        let (max_tokens, n) = (whole("max_tokens", max_tokens, 0)?, whole("n", n, 1)?);
        let asserted = read_asserted(asserted)?;
        Ok(Self { gate, model, prompt_tokens, max_tokens, n, parent, asserted, begun: PyOnceLock::new() })
    }

    /// The decision on this call.
    #[getter]
    fn decision(&self, py: Python<'_>) -> PyResult<Py<PyDecision>> {
        Ok(self.begun(py)?.decision.clone_ref(py))
    }

    /// What is held for it: a `Hold`, or `None` where nobody pays.
    #[getter]
    fn hold<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyHold>>> {
        self.begun(py)?.decision.get().hold(py)
    }

    /// Charges tokens that have appeared. Never raises.
    ///
    /// Returns:
    ///     True: go on. False: stop; they are noted, but not covered, or the call is over.
    #[pyo3(signature = (n_tokens: "int", /))]
    fn charge(&self, n_tokens: &Bound<'_, PyAny>) -> bool {
        let Some(call) = self.call(n_tokens.py()) else { return false };
        // What is no count of tokens is refused as a negative one is.
        let tokens = n_tokens.cast_exact::<PyInt>().ok().and_then(|tokens| tokens.extract().ok()).unwrap_or(-1);
        catch_unwind(AssertUnwindSafe(|| call.charge(tokens))).unwrap_or(false)
    }

    /// Ends the call with what the provider says was used.
    ///
    /// Args:
    ///     prompt: Tokens of the prompt, cached ones included; without it those the call was asked with.
    ///     cached: Tokens of the prompt that came from a cache; they cost the price of `cached`.
    ///     completion: Tokens that were generated; without it those that were charged.
    ///     components: Tokens of further components of the price table, which cost on top of these and count no
    ///         tokens. One that has no price costs all the money that is held.
    ///
    /// Returns:
    ///     Whether this call ended it; False if it had ended before, or nothing was held.
    ///
    /// Raises:
    ///     BudgetError: More was cached than the prompt has. The call goes on.
    #[pyo3(signature = (*, prompt: "int | None" = None, cached: "int" = Whole::ZERO, completion: "int | None" = None, **components: "int"))]
    fn settle(
        &self,
        py: Python<'_>,
        prompt: Option<Whole<'_, '_>>,
        cached: Whole<'_, '_>,
        completion: Option<Whole<'_, '_>>,
        components: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<bool> {
        let prompt = prompt.map(|prompt| whole("prompt", prompt, 0)).transpose()?;
        let completion = completion.map(|completion| whole("completion", completion, 0)).transpose()?;
        let cached = whole("cached", cached, 0)?;
        let mut others: Vec<(String, i64)> = Vec::new();
        for (name, count) in components.into_iter().flatten() {
            others.push((name.extract()?, whole("a component", count.as_borrowed().extract()?, 0)?));
        }
        let others: Vec<(&str, i64)> = others.iter().map(|(name, count)| (&**name, *count)).collect();
        let begun = self.begun(py)?;
        let Some(call) = &begun.call else { return Ok(false) };
        guard(|| {
            let mut usage = vec![("prompt", prompt.unwrap_or(self.prompt_tokens)), ("cached", cached)];
            usage.extend(completion.map(|completion| ("completion", completion)));
            usage.extend(&others);
            let settled = call.settle(&ModelUsage { prompt, cached, completion, others })?;
            let ending = Ending { status: Status::Ok, error: None, usage: &usage, duration_ms: None, trace: None };
            begun.decision.get().record_ending(&ending)?;
            Ok::<_, Error>(settled)
        })
    }

    fn __enter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, Self>> {
        let (py, this) = (slf.py(), slf.get());
        if this.begun.get(py).is_some() {
            return Err(PyRuntimeError::new_err("this call has begun; make another with gate.model_call(...)"));
        }
        let request = ModelRequest {
            model: &this.model,
            prompt_tokens: this.prompt_tokens,
            max_tokens: this.max_tokens,
            n: this.n,
        };
        let (decision, call) =
            PyGate::decide_model(this.gate.bind(py), &request, this.parent.as_deref(), this.asserted.as_ref())?;
        let decision = Bound::new(py, decision)?;
        if this.begun.set(py, Begun { decision: decision.clone().unbind(), call }).is_err() {
            return Err(PyValueError::new_err("this call was begun twice at once"));
        }
        PyDecision::require(decision)?;
        Ok(slf.clone())
    }

    #[pyo3(signature = (*exc: "object") -> "None")]
    fn __exit__(&self, py: Python<'_>, exc: &Bound<'_, PyTuple>) -> PyResult<()> {
        guard(|| {
            let Some(begun) = self.begun.get(py) else { return Ok(()) };
            let Some(call) = &begun.call else { return Ok(()) };
            let usage = [("charged", call.charged_tokens())];
            call.end();
            let error = exc.get_item(0).ok().and_then(|kind| kind.getattr("__name__").ok()?.extract::<String>().ok());
            let status = match error.as_deref() {
                None => Status::Unknown,
                Some("CancelledError" | "KeyboardInterrupt" | "GeneratorExit") => Status::Cancelled,
                Some(_) => Status::Error,
            };
            let error = error.as_deref();
            begun.decision.get().record_ending(&Ending {
                status,
                error,
                usage: &usage,
                duration_ms: None,
                trace: None,
            })?;
            Ok::<_, PyErr>(())
        })
    }

    fn __repr__(&self) -> String {
        format!("<ModelCall {:?} {} + {} x {} tokens>", self.model, self.prompt_tokens, self.n, self.max_tokens)
    }
}
