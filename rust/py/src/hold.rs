//! `Hold` and `Denial`, the two answers to a reserve, and the amounts that come as arguments.
//!
//! Amounts are whole numbers: a `bool` and a `float` are type errors, because `True` tokens and half a request are
//! mistakes of the caller. What a hold costs when nobody reports is the core's business; what this file adds is that a
//! hold which is dropped is ended by the process that made it, and by no other.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyString, PyTuple};
use tollkeeper_core::budget::admin::HoldState;
use tollkeeper_core::budget::denial::Denial;
use tollkeeper_core::budget::unit::{Amounts, Reported, UNITS, Unit};
use tollkeeper_core::budget::window::Window;
use tollkeeper_core::budget::{Charge, HoldId};
use tollkeeper_core::gate::decision::DecisionId;
use tollkeeper_core::gate::standing::Standing;
use tollkeeper_core::limits::AMOUNT_MAX;

use crate::budget::Shared;
use crate::errors::Error;
use crate::fork::Born;
use crate::guard::guard;

/// An argument that must be an exact `int`. What it is not is said where its name is known.
#[derive(Clone, Copy)]
pub(crate) enum Whole<'a, 'py> {
    /// An `int` of 64 bits.
    Value(i64),
    /// Anything else.
    Other(Borrowed<'a, 'py, PyAny>),
}

impl Whole<'_, '_> {
    pub(crate) const ZERO: Self = Self::Value(0);
}

impl<'a, 'py> FromPyObject<'a, 'py> for Whole<'a, 'py> {
    type Error = PyErr;

    #[inline]
    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let number = value.cast_exact::<PyInt>().ok().and_then(|number| number.extract().ok());
        Ok(number.map_or(Self::Other(value), Self::Value))
    }
}

/// A whole number from `least` to the largest amount.
#[inline]
pub(crate) fn whole(of: &'static str, value: Whole<'_, '_>, least: i64) -> PyResult<i64> {
    match value {
        Whole::Value(number) if (least..=AMOUNT_MAX).contains(&number) => Ok(number),
        other => Err(refused(of, other, least)),
    }
}

/// A whole number without bounds of its own: the core has them.
pub(crate) fn any_whole(of: &'static str, value: Whole<'_, '_>) -> PyResult<i64> {
    match value {
        Whole::Value(number) => Ok(number),
        other @ Whole::Other(_) => Err(refused(of, other, 0)),
    }
}

#[cold]
fn refused(of: &'static str, value: Whole<'_, '_>, least: i64) -> PyErr {
    match value {
        Whole::Value(number) => Error::Amount(of, number.to_string(), least).into(),
        Whole::Other(value) if value.is_exact_instance_of::<PyInt>() => {
            Error::Amount(of, "beyond 64 bits".to_owned(), least).into()
        }
        Whole::Other(value) => {
            let name = value.get_type().name().map_or_else(|_| "?".to_owned(), |name| name.to_string());
            PyTypeError::new_err(format!("{of} must be an int, not {name}"))
        }
    }
}

/// An amount of each unit, in their order.
#[inline]
pub(crate) fn amounts(values: [Whole<'_, '_>; UNITS]) -> PyResult<Amounts> {
    let mut amounts = [0; UNITS];
    for ((unit, amount), value) in Unit::ALL.into_iter().zip(&mut amounts).zip(values) {
        *amount = whole(unit.name(), value, 0)?;
    }
    Ok(Amounts(amounts))
}

/// Amounts by the name of their unit; every unit is there.
pub(crate) fn by_unit<'py>(py: Python<'py>, amounts: &[i64; UNITS]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (unit, amount) in Unit::ALL.into_iter().zip(amounts) {
        dict.set_item(unit.name(), amount)?;
    }
    Ok(dict)
}

/// A hold's name as text.
pub(crate) fn id_text(id: HoldId) -> String {
    format!("{}.{}", id.slot, id.generation)
}

/// The decision that a gate has made a hold for, as it is written everywhere.
pub(crate) fn decision_text(tag: [u64; 2]) -> Option<String> {
    let [gate, number] = tag;
    (tag != [0; 2]).then(|| DecisionId { gate, number }.to_string())
}

/// What a reserve was granted: room at a budget and at every level above it, until it is settled or released.
///
/// Ending is idempotent: the first `settle` or `release` counts, later ones return False. A hold that is dropped, or
/// left as a context manager, ends as nobody reports it: a unit that was charged counts as charged; of dispatched work
/// what was never charged counts in full; else it goes back. Requests stay spent.
///
/// A hold has no truth value, because a `Denial` is an object too: test `.granted`.
#[pyclass(frozen, freelist = 256, name = "Hold", module = "tollkeeper")]
pub(crate) struct PyHold {
    shared: Arc<Shared>,
    path: Py<PyString>,
    id: HoldId,
    born: Born,
    /// Of a gate's decision: whether the run that it was made in may go on, and with which tool
    run: Option<(Arc<Standing>, Option<Box<str>>)>,
}

impl PyHold {
    #[inline]
    pub(crate) fn new(
        shared: Arc<Shared>,
        path: Py<PyString>,
        id: HoldId,
        born: Born,
        run: Option<(Arc<Standing>, Option<Box<str>>)>,
    ) -> Self {
        Self { shared, path, id, born, run }
    }

    /// Whether those who made it, or its tool, were revoked meanwhile.
    fn is_stopped(&self) -> bool {
        self.run.as_ref().is_some_and(|(standing, tool)| standing.stops(tool.as_deref()))
    }

    fn state(&self) -> PyResult<Option<HoldState>> {
        guard(|| {
            self.shared.check()?;
            Ok::<_, Error>(self.shared.ledger.hold(self.id))
        })
    }

    /// What ended nothing may be a handle that cannot end anything.
    #[inline]
    fn ended(&self, ended: bool) -> Result<bool, Error> {
        if !ended {
            self.shared.check()?;
        }
        Ok(ended)
    }

    fn end_unreported(&self) {
        // In a child of a fork the parent's hold is the parent's to end. A panic has nobody to go to.
        if self.born.is_here() {
            let _ = catch_unwind(AssertUnwindSafe(|| self.shared.ledger.end_unreported(self.id)));
        }
    }
}

impl Drop for PyHold {
    #[inline]
    fn drop(&mut self) {
        self.end_unreported();
    }
}

#[pymethods]
impl PyHold {
    /// True.
    #[getter]
    #[expect(clippy::unused_self, reason = "an attribute of the object")]
    fn granted(&self) -> bool {
        true
    }

    /// `"allow"`.
    #[getter]
    #[expect(clippy::unused_self, reason = "an attribute of the object")]
    fn code<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        pyo3::intern!(py, "allow")
    }

    /// `""`.
    #[getter]
    #[expect(clippy::unused_self, reason = "an attribute of the object")]
    fn reason<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        pyo3::intern!(py, "")
    }

    /// The budget it was reserved at.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        self.path.bind(py)
    }

    /// Its name, as `Ledger.holds` lists it; never used again.
    #[getter]
    fn id(&self) -> String {
        id_text(self.id)
    }

    /// What is held now, by unit; all 0 once the hold has ended.
    #[getter]
    fn amounts(&self) -> PyResult<BTreeMap<&'static str, i64>> {
        let now = self.state()?.map_or([0; UNITS], |state| state.amounts);
        Ok(Unit::ALL.map(Unit::name).into_iter().zip(now).collect())
    }

    /// What was charged so far, by unit; all 0 once the hold has ended.
    #[getter]
    fn charged(&self) -> PyResult<BTreeMap<&'static str, i64>> {
        let now = self.state()?.map_or([0; UNITS], |state| state.charged);
        Ok(Unit::ALL.map(Unit::name).into_iter().zip(now).collect())
    }

    /// Id of the decision that it belongs to; `None` if no gate made it.
    #[getter]
    fn decision(&self) -> PyResult<Option<String>> {
        Ok(self.state()?.and_then(|state| decision_text(state.tag)))
    }

    /// Whether it has not ended.
    #[getter]
    fn live(&self) -> PyResult<bool> {
        Ok(self.state()?.is_some())
    }

    /// Notes what the work has used so far. True: go on. False: stop, because it is more than was held, the hold has
    /// ended, or those who made it were revoked; never raises for the state of the hold or of the ledger.
    ///
    /// Args:
    ///     tokens: Tokens of language models.
    ///     nano_usd: Billionths of a US dollar.
    ///     requests: Requests.
    ///     in_flight: Calls in flight.
    ///     kv_blocks: Blocks of a KV cache.
    ///
    /// Raises:
    ///     TypeError: An amount is not an `int`.
    ///     BudgetError: An amount is negative or above 2**53.
    #[pyo3(signature = (*, tokens: "int" = Whole::ZERO, nano_usd: "int" = Whole::ZERO, requests: "int" = Whole::ZERO, in_flight: "int" = Whole::ZERO, kv_blocks: "int" = Whole::ZERO))]
    fn charge(
        &self,
        tokens: Whole<'_, '_>,
        nano_usd: Whole<'_, '_>,
        requests: Whole<'_, '_>,
        in_flight: Whole<'_, '_>,
        kv_blocks: Whole<'_, '_>,
    ) -> PyResult<bool> {
        guard(|| {
            let amounts = amounts([tokens, nano_usd, requests, in_flight, kv_blocks])?;
            let covered = self.shared.ledger.charge(self.id, &amounts) == Charge::GoOn;
            Ok::<_, PyErr>(covered && !self.is_stopped())
        })
    }

    /// Says that the work has begun, and charges what that costs for certain, such as the prompt. Answers as `charge`
    /// does.
    ///
    /// Args:
    ///     tokens: Tokens of language models.
    ///     nano_usd: Billionths of a US dollar.
    ///     requests: Requests.
    ///     in_flight: Calls in flight.
    ///     kv_blocks: Blocks of a KV cache.
    ///
    /// Raises:
    ///     TypeError: An amount is not an `int`.
    ///     BudgetError: An amount is negative or above 2**53.
    #[pyo3(signature = (*, tokens: "int" = Whole::ZERO, nano_usd: "int" = Whole::ZERO, requests: "int" = Whole::ZERO, in_flight: "int" = Whole::ZERO, kv_blocks: "int" = Whole::ZERO))]
    fn dispatch(
        &self,
        tokens: Whole<'_, '_>,
        nano_usd: Whole<'_, '_>,
        requests: Whole<'_, '_>,
        in_flight: Whole<'_, '_>,
        kv_blocks: Whole<'_, '_>,
    ) -> PyResult<bool> {
        guard(|| {
            let amounts = amounts([tokens, nano_usd, requests, in_flight, kv_blocks])?;
            Ok::<_, PyErr>(self.shared.ledger.dispatch(self.id, &amounts) == Charge::GoOn)
        })
    }

    /// Holds more, in the same windows, or changes nothing.
    ///
    /// Args:
    ///     tokens: Tokens of language models.
    ///     nano_usd: Billionths of a US dollar.
    ///     requests: Only 0: requests are spent when granted.
    ///     in_flight: Calls in flight.
    ///     kv_blocks: Blocks of a KV cache.
    ///
    /// Returns:
    ///     This hold, or a `Denial`. Requests are spent when granted and cannot be added.
    #[pyo3(signature = (*, tokens: "int" = Whole::ZERO, nano_usd: "int" = Whole::ZERO, requests: "int" = Whole::ZERO, in_flight: "int" = Whole::ZERO, kv_blocks: "int" = Whole::ZERO) -> "Hold | Denial")]
    fn top_up<'py>(
        slf: &Bound<'py, Self>,
        tokens: Whole<'_, 'py>,
        nano_usd: Whole<'_, 'py>,
        requests: Whole<'_, 'py>,
        in_flight: Whole<'_, 'py>,
        kv_blocks: Whole<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        guard(|| {
            let hold = slf.get();
            let amounts = amounts([tokens, nano_usd, requests, in_flight, kv_blocks])?;
            match hold.shared.ledger.top_up(hold.id, &amounts) {
                Ok(()) => Ok::<_, PyErr>(slf.clone().into_any()),
                Err(denial) => {
                    hold.shared.check()?;
                    Ok(Bound::new(slf.py(), PyDenial { inner: denial })?.into_any())
                }
            }
        })
    }

    /// Ends the hold with what was really used. More than was held becomes debt at every level.
    ///
    /// Of what is not mentioned, levels come back, requests stay spent, and the rest counts as charged, or in full if
    /// it never was.
    ///
    /// Args:
    ///     tokens: Tokens of language models.
    ///     nano_usd: Billionths of a US dollar.
    ///     requests: Requests.
    ///     in_flight: Calls in flight.
    ///     kv_blocks: Blocks of a KV cache.
    ///
    /// Returns:
    ///     Whether this call ended it; False if it had ended before, and then nothing changes.
    ///
    /// Raises:
    ///     HandleError: The ledger is closed, or was inherited through a fork and lives in memory.
    #[pyo3(signature = (*, tokens: "int | None" = None, nano_usd: "int | None" = None, requests: "int | None" = None, in_flight: "int | None" = None, kv_blocks: "int | None" = None))]
    fn settle(
        &self,
        tokens: Option<Whole<'_, '_>>,
        nano_usd: Option<Whole<'_, '_>>,
        requests: Option<Whole<'_, '_>>,
        in_flight: Option<Whole<'_, '_>>,
        kv_blocks: Option<Whole<'_, '_>>,
    ) -> PyResult<bool> {
        guard(|| {
            let mut reported: Reported = [None; UNITS];
            let values = [tokens, nano_usd, requests, in_flight, kv_blocks];
            for ((unit, place), value) in Unit::ALL.into_iter().zip(&mut reported).zip(values) {
                *place = value.map(|value| whole(unit.name(), value, 0)).transpose()?;
            }
            let ended = self.shared.ledger.settle(self.id, &reported).map_err(Error::from)?;
            Ok::<_, PyErr>(self.ended(ended)?)
        })
    }

    /// Ends a hold that was not used: what was not charged goes back. Requests stay spent.
    ///
    /// Returns:
    ///     Whether this call ended it.
    ///
    /// Raises:
    ///     HandleError: The ledger is closed, or was inherited through a fork and lives in memory.
    fn release(&self) -> PyResult<bool> {
        guard(|| self.ended(self.shared.ledger.release(self.id)))
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exc: "object") -> "None")]
    fn __exit__(&self, _exc: &Bound<'_, PyTuple>) {
        self.end_unreported();
    }

    #[expect(clippy::unused_self, reason = "a method of the object")]
    fn __bool__(&self) -> PyResult<bool> {
        Err(PyTypeError::new_err("a hold has no truth value, because a denial is an object too; use `.granted`"))
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        format!("<Hold {} {}>", id_text(self.id), self.path.bind(py).to_string_lossy())
    }
}

/// Why a reserve was not granted, with the level, unit and window that refused.
///
/// A denial has no truth value: test `.granted`.
#[pyclass(frozen, name = "Denial", module = "tollkeeper")]
pub(crate) struct PyDenial {
    pub(crate) inner: Box<Denial>,
}

#[pymethods]
impl PyDenial {
    /// False.
    #[getter]
    #[expect(clippy::unused_self, reason = "an attribute of the object")]
    fn granted(&self) -> bool {
        false
    }

    /// `"budget.exhausted"`, `"budget.contended"`, `"budget.too_large"`, `"budget.expired"`, `"budget.unpriced"` or
    /// `"budget.unavailable"`. Only a contended one is worth another try before the window ends.
    #[getter]
    fn code(&self) -> &'static str {
        self.inner.kind.slug()
    }

    /// The sentence for whoever asked.
    #[getter]
    fn reason(&self) -> String {
        self.inner.reason()
    }

    /// The budget that refused, or the one that was asked for.
    #[getter]
    fn path(&self) -> &str {
        &self.inner.path
    }

    /// The unit that refused; `None` where no cell did.
    #[getter]
    fn unit(&self) -> Option<&'static str> {
        self.inner.unit.map(Unit::name)
    }

    /// The window that refused; `None` where no cell did.
    #[getter]
    fn window(&self) -> Option<&'static str> {
        self.inner.window.map(Window::name)
    }

    /// How much was asked for.
    #[getter]
    fn requested(&self) -> i64 {
        self.inner.requested
    }

    /// limit + overdraft - used - held - stranded at that moment; negative is debt.
    #[getter]
    fn available(&self) -> i64 {
        self.inner.available
    }

    /// The limit of the cell that refused.
    #[getter]
    fn limit(&self) -> i64 {
        self.inner.limit
    }

    /// Spent in the window.
    #[getter]
    fn used(&self) -> i64 {
        self.inner.used
    }

    /// Held by live holds.
    #[getter]
    fn held(&self) -> i64 {
        self.inner.held
    }

    /// Seconds until it is worth another try; `None` for never.
    #[getter]
    #[expect(clippy::cast_precision_loss, reason = "milliseconds until the end of a month are far below 2**53")]
    fn retry_after(&self) -> Option<f64> {
        self.inner.retry_after_ms.map(|ms| ms as f64 / 1e3)
    }

    #[expect(clippy::unused_self, reason = "a method of the object")]
    fn __bool__(&self) -> PyResult<bool> {
        Err(PyTypeError::new_err("a denial has no truth value; use `.granted` or `.code`"))
    }

    fn __repr__(&self) -> String {
        format!("<Denial {}: {}>", self.code(), self.reason())
    }
}
