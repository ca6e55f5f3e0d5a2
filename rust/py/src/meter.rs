//! `Meter`: numpy columns in, numpy columns out, the interpreter's lock released in between.
//!
//! Columns come by the buffer protocol and are copied into buffers that the meter keeps, so that nobody can change them
//! under it and no object is made for a row. Their type, shape and length are checked and never converted: a column of
//! another type is a mistake that would cost a conversion at each step. A meter is of one thread at a time; a second
//! one is refused, not queued, because an engine's step must not wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use pyo3::buffer::{Element, PyBuffer, PyUntypedBuffer};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString};
use tollkeeper_core::budget::denial::DenialKind;
use tollkeeper_core::budget::error::BudgetError;
use tollkeeper_core::budget::meter::{Meter, Row};
use tollkeeper_core::budget::unit::UNITS;
use tollkeeper_core::budget::window::Window;

use crate::budget::{PyLedger, Shared};
use crate::errors::Error;
use crate::fork::Born;
use crate::guard::guard;

/// Granted, then the kinds of denial.
type Codes = (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str, &'static str);

/// Copies of the columns of one call.
#[derive(Default)]
struct Columns {
    first: Vec<u32>,
    second: Vec<u32>,
    third: Vec<u32>,
    blocks: Vec<u32>,
    prices: Vec<u16>,
    bytes: Vec<u8>,
}

/// A meter and its buffers, in use together.
struct State {
    meter: Meter,
    columns: Columns,
}

/// Who names a column, and what it must hold.
trait Dtype: Element + Default {
    const NAME: &'static str;
}

impl Dtype for u8 {
    const NAME: &'static str = "uint8";
}
impl Dtype for u16 {
    const NAME: &'static str = "uint16";
}
impl Dtype for u32 {
    const NAME: &'static str = "uint32";
}

/// A column as it came: one dimension, contiguous, of the one type.
fn buffer<T: Dtype>(name: &str, array: &Bound<'_, PyAny>) -> PyResult<PyBuffer<T>> {
    let wanted = T::NAME;
    let type_name = || array.get_type().name().map_or_else(|_| "?".to_owned(), |name| name.to_string());
    let untyped = PyUntypedBuffer::get(array).map_err(|_| {
        PyTypeError::new_err(format!("{name} must be a one-dimensional array of {wanted}, not {}", type_name()))
    })?;
    if untyped.dimensions() != 1 {
        return Err(PyValueError::new_err(format!("{name} must have 1 dimension, not {}", untyped.dimensions())));
    }
    if !untyped.is_c_contiguous() {
        return Err(PyValueError::new_err(format!("{name} must be contiguous; pass numpy.ascontiguousarray({name})")));
    }
    let format = untyped.format().to_string_lossy().into_owned();
    // The library takes numbers of the other byte order for this machine's.
    let swapped: &[char] = if cfg!(target_endian = "little") { &['>', '!'] } else { &['<'] };
    let typed = if format.starts_with(swapped) { None } else { untyped.into_typed().ok() };
    typed.ok_or_else(|| {
        let found = array.getattr("dtype").map_or(format, |dtype| dtype.to_string());
        PyTypeError::new_err(format!("{name} must hold {wanted}, not {found}"))
    })
}

/// Copies a column; `rows` is the length it must have.
#[inline]
fn fill<T: Dtype>(
    into: &mut Vec<T>,
    name: &str,
    array: &Bound<'_, PyAny>,
    rows: Option<(usize, &str)>,
) -> PyResult<()> {
    let buffer = buffer::<T>(name, array)?;
    let len = buffer.item_count();
    check_len(name, len, rows)?;
    into.resize(len, T::default());
    buffer.copy_to_slice(array.py(), into)
}

fn check_len(name: &str, len: usize, rows: Option<(usize, &str)>) -> PyResult<()> {
    match rows {
        Some((rows, of)) if rows != len => {
            Err(PyValueError::new_err(format!("{name} has {len} rows, {of} has {rows}")))
        }
        _ => Ok(()),
    }
}

/// Work shorter than this is done without giving the interpreter's lock away: to get it back from a busy thread takes
/// up to 5 ms, and a row takes nanoseconds.
const ROWS_ATTACHED: usize = 256;

/// Runs `work` with the interpreter's lock released, if there is enough of it.
#[inline]
fn detached<T: Send>(py: Python<'_>, rows: usize, work: impl FnOnce() -> T + Send) -> T {
    if rows < ROWS_ATTACHED { work() } else { py.detach(work) }
}

fn array<'py>(py: Python<'py>, bytes: &[u8], dtype: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("numpy")?.call_method1("frombuffer", (PyBytes::new(py, bytes), dtype))
}

/// The meter of an inference engine: one call for all sequences of a decode step.
///
/// Each sequence has a hold, named by its slot. `reserve_many` takes prompt + max_new tokens, one request, one call in
/// flight and the KV blocks; `charge` counts the tokens of one step without touching a budget and says which sequences
/// must stop; `settle_many` ends them with what was charged.
///
/// Columns are one-dimensional contiguous arrays of exactly the type that is named: uint32, price uint16, out_stop
/// uint8. A meter is of one engine: one thread at a time, and only slots that it has given out and not yet ended.
/// What it still holds when it is dropped ends with the tokens that were charged.
///
/// Args:
///     ledger: The ledger.
///
/// Example:
///     >>> import numpy as np
///     >>> from tollkeeper import Ledger, Meter
///     >>> ledger = Ledger.from_toml('[budget."a"]\nlimits = [{ unit = "tokens", window = "total", limit = 100 }]')
///     >>> meter = Meter(ledger)
///     >>> node = meter.node("a")
///     >>> u32 = lambda *values: np.array(values, np.uint32)
///     >>> slots, status = meter.reserve_many(u32(node, node), u32(10, 60), u32(5, 60))
///     >>> [Meter.STATUS[code] for code in status]
///     ['allow', 'budget.too_large']
///     >>> stop = np.zeros(1, np.uint8)
///     >>> meter.charge(slots[:1], u32(7), None, stop), int(stop[0])
///     (1, 3)
///     >>> meter.settle_many(slots[:1]), ledger.usage("a")["tokens", "total"].used
///     (1, 15)
#[pyclass(frozen, name = "Meter", module = "tollkeeper")]
pub(crate) struct PyMeter {
    shared: Arc<Shared>,
    born: Born,
    state: Mutex<State>,
}

impl PyMeter {
    /// The meter, for this thread alone.
    #[inline]
    fn lock(&self) -> Result<MutexGuard<'_, State>, Error> {
        // A closed handle first: its slots may be another process's by now.
        self.shared.check()?;
        self.born.check()?;
        self.state.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::MeterBusy,
            // A panic has left it half done.
            TryLockError::Poisoned(_) => Error::Panic,
        })
    }
}

impl Drop for PyMeter {
    fn drop(&mut self) {
        if self.born.is_here()
            && let Ok(state) = self.state.get_mut()
        {
            let _ = catch_unwind(AssertUnwindSafe(|| state.meter.end_all()));
        }
    }
}

#[pymethods]
impl PyMeter {
    /// The codes of a status, by its number.
    #[classattr]
    #[pyo3(name = "STATUS")]
    fn status() -> Codes {
        let [exhausted, contended, too_large, expired, unpriced, unavailable] = DenialKind::ALL.map(DenialKind::slug);
        ("allow", exhausted, contended, too_large, expired, unpriced, unavailable)
    }

    #[new]
    #[pyo3(signature = (ledger: "Ledger", /))]
    fn new(ledger: &Bound<'_, PyLedger>) -> PyResult<Self> {
        guard(|| {
            let shared = Arc::clone(&ledger.get().shared);
            shared.check()?;
            let meter = Meter::new(Arc::clone(&shared.ledger));
            let state = Mutex::new(State { meter, columns: Columns::default() });
            Ok::<_, Error>(Self { shared, born: Born::now(), state })
        })
    }

    /// The place of a budget, for `reserve_many` and `snapshot`; made from its template if this is the first time.
    ///
    /// Args:
    ///     path: The budget, such as `acme/research`.
    ///
    /// Raises:
    ///     BudgetError: There is no such budget.
    #[pyo3(signature = (path: "str"))]
    fn node(&self, path: &Bound<'_, PyString>) -> PyResult<u32> {
        guard(|| {
            // Made before the meter is taken, because making one may wait.
            self.shared.known_node(path)?;
            let found = self.lock().map_err(PyErr::from)?.meter.node(path.to_str()?);
            found.map_err(|denial| PyErr::from(Error::from(BudgetError::Unknown { message: denial.reason() })))
        })
    }

    /// Reserves each row or nothing of it, in their order. The prompt counts as charged from then on.
    ///
    /// Args:
    ///     nodes: uint32; budgets, as `node` gives them.
    ///     prompt: uint32; tokens of each prompt.
    ///     max_new: uint32; the most tokens that will be generated.
    ///     kv_blocks: uint32; blocks of the KV cache.
    ///     price: uint16; place of the model in `Ledger.models`. Its worst case is held in nano-USD, and `settle_many`
    ///         settles its real cost. A model without a price for prompt or completion is denied as unpriced.
    ///
    /// Returns:
    ///     Slots (uint32; 4294967295 where denied) and status (uint8; 0 granted, else a denial, see `Meter.STATUS`).
    #[pyo3(signature = (nodes: "typing.Any", prompt: "typing.Any", max_new: "typing.Any", kv_blocks: "typing.Any" = None, price: "typing.Any" = None) -> "tuple[typing.Any, typing.Any]")]
    fn reserve_many<'py>(
        &self,
        nodes: &Bound<'py, PyAny>,
        prompt: &Bound<'py, PyAny>,
        max_new: &Bound<'py, PyAny>,
        kv_blocks: Option<&Bound<'py, PyAny>>,
        price: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        guard(|| {
            let py = nodes.py();
            let mut state = self.lock()?;
            let State { meter, columns } = &mut *state;
            fill(&mut columns.first, "nodes", nodes, None)?;
            let rows = columns.first.len();
            let same = Some((rows, "nodes"));
            fill(&mut columns.second, "prompt", prompt, same)?;
            fill(&mut columns.third, "max_new", max_new, same)?;
            columns.blocks.clear();
            if let Some(kv_blocks) = kv_blocks {
                fill(&mut columns.blocks, "kv_blocks", kv_blocks, same)?;
            }
            columns.prices.clear();
            if let Some(price) = price {
                fill(&mut columns.prices, "price", price, same)?;
            }
            let Columns { first, second, third, blocks, prices, bytes: status } = columns;
            status.resize(rows, 0);
            let slots = detached(py, rows, || {
                let blocks = blocks.iter().copied().chain(std::iter::repeat(0));
                let prices = prices.iter().copied().map(Some).chain(std::iter::repeat(None));
                let columns = first.iter().zip(second).zip(third).zip(blocks).zip(prices);
                let rows_in = columns.map(|((((node, prompt), max_new), kv_blocks), price)| Row {
                    node: *node,
                    prompt: *prompt,
                    max_new: *max_new,
                    kv_blocks,
                    price,
                });
                let mut slots = vec![0_u32; rows];
                meter.reserve_many(rows_in, &mut slots, status);
                slots.into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<u8>>()
            });
            Ok::<_, PyErr>((array(py, &slots, "uint32")?, array(py, status, "uint8")?))
        })
    }

    /// Charges one step: new tokens to each slot, and compute tokens beside them, which no limit counts.
    ///
    /// Args:
    ///     slots: uint32; each at most once.
    ///     new_tokens: uint32.
    ///     compute: uint32, or `None`.
    ///     out_stop: uint8, writable. Filled with 0: go on; 255: no live hold; else stop, and so many of the new tokens
    ///         less one are not paid for (253 at most): trim them.
    ///
    /// Returns:
    ///     How many must stop.
    #[pyo3(signature = (slots: "typing.Any", new_tokens: "typing.Any", compute: "typing.Any", out_stop: "typing.Any"))]
    fn charge(
        &self,
        slots: &Bound<'_, PyAny>,
        new_tokens: &Bound<'_, PyAny>,
        compute: Option<&Bound<'_, PyAny>>,
        out_stop: &Bound<'_, PyAny>,
    ) -> PyResult<usize> {
        guard(|| {
            let py = slots.py();
            let mut state = self.lock()?;
            let State { meter, columns } = &mut *state;
            fill(&mut columns.first, "slots", slots, None)?;
            let rows = columns.first.len();
            let same = Some((rows, "slots"));
            fill(&mut columns.second, "new_tokens", new_tokens, same)?;
            if let Some(compute) = compute {
                fill(&mut columns.third, "compute", compute, same)?;
            }
            let out = buffer::<u8>("out_stop", out_stop)?;
            check_len("out_stop", out.item_count(), same)?;
            if out.readonly() {
                return Err(PyValueError::new_err("out_stop must be writable"));
            }
            let Columns { first, second, third, bytes: stop, .. } = columns;
            stop.resize(rows, 0);
            let compute = compute.map(|_| &**third);
            let stops = detached(py, rows, || meter.charge(first, second, compute, stop));
            out.copy_from_slice(py, stop)?;
            Ok::<_, PyErr>(stops)
        })
    }

    /// Holds more tokens for each slot, or not.
    ///
    /// Args:
    ///     slots: uint32.
    ///     tokens: uint32.
    ///
    /// Returns:
    ///     uint8; 0 granted, else a denial, see `Meter.STATUS`.
    #[pyo3(signature = (slots: "typing.Any", tokens: "typing.Any") -> "typing.Any")]
    fn top_up<'py>(&self, slots: &Bound<'py, PyAny>, tokens: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        guard(|| {
            let py = slots.py();
            let mut state = self.lock()?;
            let State { meter, columns } = &mut *state;
            fill(&mut columns.first, "slots", slots, None)?;
            let rows = columns.first.len();
            fill(&mut columns.second, "tokens", tokens, Some((rows, "slots")))?;
            let Columns { first, second, bytes: status, .. } = columns;
            status.resize(rows, 0);
            detached(py, rows, || meter.top_up(first, second, status));
            array(py, status, "uint8")
        })
    }

    /// Ends the holds with the tokens that were charged, less what of a prompt came out of a cache; those with a price
    /// with their real cost. Without a price for `cached`, cached tokens cost as any others of the prompt.
    ///
    /// Args:
    ///     slots: uint32.
    ///     cached: uint32; tokens of each prompt that came out of a cache.
    ///
    /// Returns:
    ///     How many this call ended.
    #[pyo3(signature = (slots: "typing.Any", cached: "typing.Any" = None))]
    fn settle_many(&self, slots: &Bound<'_, PyAny>, cached: Option<&Bound<'_, PyAny>>) -> PyResult<usize> {
        guard(|| {
            let mut state = self.lock()?;
            let State { meter, columns } = &mut *state;
            fill(&mut columns.first, "slots", slots, None)?;
            let rows = columns.first.len();
            if let Some(cached) = cached {
                fill(&mut columns.second, "cached", cached, Some((rows, "slots")))?;
            }
            let Columns { first, second, .. } = columns;
            let cached = cached.map(|_| &**second);
            Ok::<_, PyErr>(detached(slots.py(), rows, || meter.settle_many(first, cached)))
        })
    }

    /// Ends holds that were not used: their tokens go back, the prompt's too, and their requests stay spent. A sequence
    /// that has generated anything is settled instead.
    ///
    /// Args:
    ///     slots: uint32.
    ///
    /// Returns:
    ///     How many this call ended.
    #[pyo3(signature = (slots: "typing.Any"))]
    fn release_many(&self, slots: &Bound<'_, PyAny>) -> PyResult<usize> {
        guard(|| {
            let mut state = self.lock()?;
            let State { meter, columns } = &mut *state;
            fill(&mut columns.first, "slots", slots, None)?;
            let slots_in = &columns.first;
            Ok::<_, PyErr>(detached(slots.py(), slots_in.len(), || meter.release_many(slots_in)))
        })
    }

    /// What was counted of each slot so far.
    ///
    /// Args:
    ///     slots: uint32.
    ///
    /// Returns:
    ///     `charged`, prompt included, and `compute`: int64 arrays; -1 for no live hold.
    #[pyo3(signature = (slots: "typing.Any") -> "dict[str, typing.Any]")]
    fn counts<'py>(&self, slots: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
        guard(|| {
            let py = slots.py();
            let mut state = self.lock()?;
            let State { meter, columns } = &mut *state;
            fill(&mut columns.first, "slots", slots, None)?;
            let bytes = |count: &dyn Fn(u32) -> Option<i64>| -> Vec<u8> {
                columns.first.iter().flat_map(|slot| count(*slot).unwrap_or(-1).to_ne_bytes()).collect()
            };
            let dict = PyDict::new(py);
            dict.set_item("charged", array(py, &bytes(&|slot| meter.charged(slot)), "int64")?)?;
            dict.set_item("compute", array(py, &bytes(&|slot| meter.compute(slot)), "int64")?)?;
            Ok::<_, PyErr>(dict)
        })
    }

    /// What budgets have in the windows of now.
    ///
    /// Args:
    ///     nodes: uint32; as `node` gives them.
    ///     window: The kind of window.
    ///
    /// Returns:
    ///     `used`, `held` and `available`: int64 arrays of a row for each node and a column for each of tokens,
    ///     nano_usd, requests, in_flight, kv_blocks. Where there is no limit: 0, 0 and 2**63 - 1.
    #[pyo3(signature = (nodes: "typing.Any", *, window: "str" = "total") -> "dict[str, typing.Any]")]
    fn snapshot<'py>(&self, nodes: &Bound<'py, PyAny>, window: &str) -> PyResult<Bound<'py, PyDict>> {
        guard(|| {
            let py = nodes.py();
            let window =
                Window::parse(window).ok_or_else(|| PyValueError::new_err(format!("there is no window `{window}`")))?;
            let mut state = self.lock()?;
            let State { meter, columns } = &mut *state;
            fill(&mut columns.first, "nodes", nodes, None)?;
            if let Some(unknown) = columns.first.iter().find(|node| meter.node_at(**node).is_none()) {
                return Err(PyValueError::new_err(format!("node {unknown} did not come from this meter's `node`")));
            }
            let rows = columns.first.len();
            let [used, held, available] = detached(py, rows, || look(meter, &columns.first, window));
            let dict = PyDict::new(py);
            for (name, bytes) in [("used", used), ("held", held), ("available", available)] {
                dict.set_item(name, array(py, &bytes, "int64")?.call_method1("reshape", (rows, UNITS))?)?;
            }
            Ok::<_, PyErr>(dict)
        })
    }

    #[expect(clippy::unused_self, reason = "a method of the object")]
    fn __repr__(&self) -> &'static str {
        "<Meter>"
    }
}

/// Used, held and available of each node and unit, as bytes.
fn look(meter: &Meter, nodes: &[u32], window: Window) -> [Vec<u8>; 3] {
    let mut columns = [const { Vec::new() }; 3];
    for node in nodes {
        let mut row = [[0, 0, i64::MAX]; UNITS];
        let cells = meter.node_at(*node).map(|node| meter.ledger().usage(node)).unwrap_or_default();
        for cell in cells.into_iter().filter(|cell| cell.window == window) {
            if let Some(place) = row.get_mut(cell.unit.index()) {
                *place = [cell.used, cell.held, cell.available];
            }
        }
        for counts in row {
            for (column, count) in columns.iter_mut().zip(counts) {
                column.extend_from_slice(&count.to_ne_bytes());
            }
        }
    }
    columns
}
