//! `Ledger`, `Usage` and `FakeClock`: one call into the budget room.
//!
//! A reserve costs one look at a thread's own table of paths, one read of the clock, one call into the core and one
//! object. Whatever may wait or go to the disk releases the interpreter's lock. What this file adds to the core is what
//! only a binding can know: a handle that was closed, or inherited through a fork.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyList, PyMapping, PyString, PyTuple};
use tollkeeper_core::budget::HoldId;
use tollkeeper_core::budget::admin::{HoldState, Recovery, Usage};
use tollkeeper_core::budget::clock::{Clock, FakeClock, SystemClock};
use tollkeeper_core::budget::denial::{Denial, DenialKind};
use tollkeeper_core::budget::error::BudgetError;
use tollkeeper_core::budget::ledger::{Ledger, Node, Options};
use tollkeeper_core::budget::price::PriceTable;
use tollkeeper_core::budget::tree::{Admission, BudgetSpec, LedgerSpec, LimitSpec};
use tollkeeper_core::budget::unit::{Amounts, Unit};
use tollkeeper_core::budget::window::Window;

use crate::errors::Error;
use crate::fork::Born;
use crate::guard::guard;
use crate::hold::{PyDenial, PyHold, Whole, amounts, any_whole, by_unit, decision_text, id_text, whole};

/// A ledger as its holds and meters share it.
pub(crate) struct Shared {
    /// The ledger itself
    pub(crate) ledger: Arc<Ledger>,
    clock: Arc<dyn Clock>,
    /// Tells the paths of this ledger from those of another in a thread's table; never used again
    instance: u64,
    born: Born,
    closed: AtomicBool,
}

impl Shared {
    fn new(ledger: Ledger, clock: Arc<dyn Clock>) -> Self {
        static INSTANCES: AtomicU64 = AtomicU64::new(0);
        let ledger = Arc::new(ledger);
        Ledger::start_background(&ledger);
        // Relaxed: nothing is read by this number but what its own thread has put there.
        let instance = INSTANCES.fetch_add(1, Ordering::Relaxed);
        Self { ledger, clock, instance, born: Born::now(), closed: AtomicBool::new(false) }
    }

    /// A ledger that a gate has, for the holds of its decisions.
    pub(crate) fn of(ledger: &Arc<Ledger>) -> Self {
        let (ledger, clock) = (Arc::clone(ledger), Arc::clone(ledger.clock()));
        // Such a handle reserves nothing, so it needs no number.
        Self { ledger, clock, instance: u64::MAX, born: Born::now(), closed: AtomicBool::new(false) }
    }

    /// Refuses a handle that was closed, or that was inherited and has nothing in common with the parent's.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(BudgetError::Closed.into());
        }
        if self.ledger.state_path().is_none() && !self.born.is_here() {
            return Err(BudgetError::Forked.into());
        }
        Ok(())
    }

    /// The budget of a path. Making one takes the ledger's lock, so the interpreter's is released then.
    fn node(&self, path: &Bound<'_, PyString>) -> PyResult<Result<Arc<Node>, Box<Denial>>> {
        let text = path.to_str()?;
        if let Some(node) = self.ledger.known(text) {
            return Ok(Ok(node));
        }
        path.py().detach(|| match self.ledger.node(text) {
            Err(denial) => self.check().map(|()| Err(denial)).map_err(PyErr::from),
            found => Ok(found),
        })
    }

    /// The budget of a path that somebody asks about: it must be there.
    pub(crate) fn known_node(&self, path: &Bound<'_, PyString>) -> PyResult<Arc<Node>> {
        self.check()?;
        self.node(path)?.map_err(|denial| Error::from(BudgetError::Unknown { message: denial.reason() }).into())
    }

    #[inline]
    fn reserve(&self, node: &Node, amounts: &Amounts, options: Options) -> Result<Result<HoldId, Box<Denial>>, Error> {
        match self.ledger.reserve(node, amounts, self.clock.wall_ms(), options) {
            Err(denial) if denial.kind == DenialKind::Unavailable => self.check().map(|()| Err(denial)),
            answer => Ok(answer),
        }
    }
}

/// Paths that are remembered per thread: those of the agents that it serves.
const REMEMBERED: usize = 64;

/// The ledger, a path object kept alive so that its address stays its own, and the budget.
type Remembered = Option<(u64, Py<PyString>, Arc<Node>)>;

thread_local! {
    /// Direct-mapped by address: a program names its budgets by the same few objects over and over, and comparing an
    /// address replaces hashing a path and counting a reference that all threads share.
    static NODES: RefCell<[Remembered; REMEMBERED]> = const { RefCell::new([const { None }; REMEMBERED]) };
}

/// Reserves at a path.
#[inline]
fn reserve_at(
    shared: &Shared,
    path: &Bound<'_, PyString>,
    amounts: &Amounts,
    options: Options,
) -> PyResult<Result<HoldId, Box<Denial>>> {
    // Objects are at least 16 bytes apart.
    let place = (path.as_ptr().addr() >> 4) % REMEMBERED;
    let known = NODES.with_borrow(|nodes| match nodes.get(place) {
        Some(Some((instance, known, node))) if *instance == shared.instance && known.is(path) => {
            Some(shared.reserve(node, amounts, options))
        }
        _ => None,
    });
    if let Some(answer) = known {
        return Ok(answer?);
    }
    let node = match shared.node(path)? {
        Ok(node) => node,
        Err(denial) => return Ok(Err(denial)),
    };
    let answer = shared.reserve(&node, amounts, options)?;
    // A subclass of `str` may have code that runs when it goes, so it is not kept.
    if path.is_exact_instance_of::<PyString>() {
        let entry = Some((shared.instance, path.clone().unbind(), node));
        let before =
            NODES.with_borrow_mut(|nodes| nodes.get_mut(place).and_then(|slot| std::mem::replace(slot, entry)));
        drop(before);
    }
    Ok(answer)
}

/// A clock that stands still until it is moved, for tests and replays.
///
/// Args:
///     wall_ms: What the wall clock shows, in milliseconds since 1970.
///
/// Example:
///     >>> from tollkeeper.testing import FakeClock
///     >>> clock = FakeClock(1_000)
///     >>> clock.advance(500)
///     >>> clock.wall_ms
///     1500
#[pyclass(frozen, name = "FakeClock", module = "tollkeeper.testing")]
pub(crate) struct PyFakeClock {
    inner: Arc<FakeClock>,
}

#[pymethods]
impl PyFakeClock {
    #[new]
    #[pyo3(signature = (wall_ms: "int" = Whole::ZERO))]
    fn new(wall_ms: Whole<'_, '_>) -> PyResult<Self> {
        let wall_ms = any_whole("wall_ms", wall_ms)?;
        guard(|| Ok::<_, PyErr>(Self { inner: Arc::new(FakeClock::new(wall_ms)) }))
    }

    /// Lets time pass: the wall clock and the clock since boot move.
    #[pyo3(signature = (ms: "int", /))]
    fn advance(&self, ms: Whole<'_, '_>) -> PyResult<()> {
        self.inner.advance(whole("ms", ms, 0)?);
        Ok(())
    }

    /// Sets the wall clock forwards or backwards while no time passes.
    #[pyo3(signature = (ms: "int", /))]
    fn step(&self, ms: Whole<'_, '_>) -> PyResult<()> {
        self.inner.step(any_whole("ms", ms)?);
        Ok(())
    }

    /// What the wall clock shows, in milliseconds since 1970.
    #[getter]
    fn wall_ms(&self) -> i64 {
        self.inner.wall_ms()
    }

    /// What the clock since boot shows, in milliseconds.
    #[getter]
    fn boot_ms(&self) -> i64 {
        self.inner.boot_ms()
    }

    fn __repr__(&self) -> String {
        format!("<FakeClock {} ms>", self.wall_ms())
    }
}

/// What one window of one budget has of one unit.
#[pyclass(frozen, get_all, eq, name = "Usage", module = "tollkeeper")]
#[derive(PartialEq, Eq)]
pub(crate) struct PyUsage {
    /// The most that may be used.
    limit: i64,
    /// How much more is let through.
    overdraft: i64,
    /// Spent for good.
    used: i64,
    /// Held by live holds.
    held: i64,
    /// limit + overdraft - used - held - stranded; negative is debt.
    available: i64,
    /// Lost to a process that died in the middle of a step, until a recovery settles it.
    stranded: i64,
    /// When the window ends, in milliseconds since 1970; `None` for `total`.
    window_end_ms: Option<i64>,
}

#[pymethods]
impl PyUsage {
    fn __repr__(&self) -> String {
        let Self { limit, overdraft, used, held, available, stranded, window_end_ms } = self;
        let end = window_end_ms.map_or_else(|| "None".to_owned(), |end| end.to_string());
        format!(
            "Usage(limit={limit}, overdraft={overdraft}, used={used}, held={held}, available={available}, \
             stranded={stranded}, window_end_ms={end})"
        )
    }
}

/// One limit: unit, window, limit, overdraft.
type LimitArg<'py> = (String, String, Bound<'py, PyAny>, Bound<'py, PyAny>);
/// One budget: path, limits, children.
type BudgetArg<'py> = (String, Vec<LimitArg<'py>>, Option<u32>);

/// The keys of a spec; another one is a mistake.
const KEYS: [&str; 9] =
    ["budgets", "prices", "holds", "nodes", "volatile", "keep_limits", "admission", "increment_tokens", "hold_ttl_ms"];

fn spec_error(message: String) -> PyErr {
    Error::from(BudgetError::Spec { message }).into()
}

fn read_limit((unit, window, limit, overdraft): LimitArg<'_>, path: &str) -> PyResult<LimitSpec> {
    // The core has the bounds of a limit; here it only has to be an integer that fits.
    let number = |name: &str, value: Bound<'_, PyAny>| -> PyResult<i64> {
        let number = value
            .cast_exact::<PyInt>()
            .map_err(|_| spec_error(format!("{path}: {name} must be an int, not {value}")))?;
        number.extract().map_err(|_| spec_error(format!("{path}: {name} is beyond 64 bits")))
    };
    Ok(LimitSpec {
        unit: Unit::parse(&unit).ok_or_else(|| spec_error(format!("{path}: there is no unit `{unit}`")))?,
        window: Window::parse(&window).ok_or_else(|| spec_error(format!("{path}: there is no window `{window}`")))?,
        limit: number("limit", limit)?,
        overdraft: number("overdraft", overdraft)?,
    })
}

fn read_budget((path, limits, children_max): BudgetArg<'_>) -> PyResult<BudgetSpec> {
    let limits = limits.into_iter().map(|limit| read_limit(limit, &path)).collect::<PyResult<_>>()?;
    Ok(BudgetSpec { path, limits, children_max })
}

fn read_spec(spec: &Bound<'_, PyDict>) -> PyResult<LedgerSpec> {
    for key in spec.keys() {
        let key: String = key.extract()?;
        if !KEYS.contains(&key.as_str()) {
            return Err(spec_error(format!("there is no key `{key}`; there is {}", KEYS.join(", "))));
        }
    }
    let budgets = spec.get_item("budgets")?.ok_or_else(|| spec_error("there is no key `budgets`".to_owned()))?;
    let mut read = LedgerSpec {
        budgets: budgets.extract::<Vec<BudgetArg<'_>>>()?.into_iter().map(read_budget).collect::<PyResult<_>>()?,
        ..LedgerSpec::default()
    };
    if let Some(prices) = spec.get_item("prices")? {
        read.prices = PriceTable::new(prices.extract()?).map_err(Error::from)?;
    }
    if let Some(holds) = spec.get_item("holds")? {
        read.holds = holds.extract()?;
    }
    if let Some(nodes) = spec.get_item("nodes")? {
        read.nodes = nodes.extract()?;
    }
    if let Some(keep_limits) = spec.get_item("keep_limits")? {
        read.keep_limits = keep_limits.extract()?;
    }
    if let Some(volatile) = spec.get_item("volatile")? {
        read.volatile = volatile.extract()?;
    }
    if let Some(admission) = spec.get_item("admission")? {
        read.admission = match admission.cast::<PyString>()?.to_str()? {
            "safe" => Admission::Safe,
            "incremental" => Admission::Incremental,
            other => return Err(spec_error(format!("admission is `{other}`, not `safe` or `incremental`"))),
        };
    }
    if let Some(increment_tokens) = spec.get_item("increment_tokens")? {
        read.increment_tokens = increment_tokens.extract()?;
    }
    if let Some(hold_ttl_ms) = spec.get_item("hold_ttl_ms")? {
        read.hold_ttl_ms = hold_ttl_ms.extract()?;
    }
    Ok(read)
}

fn hold_dict<'py>(py: Python<'py>, hold: &HoldState) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("id", id_text(hold.id))?;
    dict.set_item("path", &hold.path)?;
    dict.set_item("amounts", by_unit(py, &hold.amounts)?)?;
    dict.set_item("charged", by_unit(py, &hold.charged)?)?;
    dict.set_item("granted_ms", hold.granted_ms)?;
    dict.set_item("deadline_ms", hold.deadline_ms)?;
    dict.set_item("decision", decision_text(hold.tag))?;
    dict.set_item("owner_pid", hold.pid)?;
    dict.set_item("alive", hold.alive)?;
    dict.set_item("dispatched", hold.dispatched)?;
    dict.set_item("meter", hold.meter)?;
    Ok(dict)
}

/// The native half of `tollkeeper.Ledger`.
#[pyclass(frozen, subclass, name = "Ledger", module = "tollkeeper._native")]
pub(crate) struct PyLedger {
    /// What its holds and meters keep alive
    pub(crate) shared: Arc<Shared>,
}

impl PyLedger {
    /// The ledger, unless this handle cannot be used any more.
    fn usable(&self) -> Result<&Ledger, Error> {
        self.shared.check()?;
        Ok(&self.shared.ledger)
    }
}

#[pymethods]
impl PyLedger {
    /// Args:
    ///     spec: Mapping with `budgets` (path, limits, children_max), each limit (unit, window, limit, overdraft);
    ///         `prices` (model, (component, nano-USD per million tokens)); `holds`, `nodes`, `volatile`, `admission`,
    ///         `increment_tokens`, `hold_ttl_ms`.
    ///     state: The file that holds what is used and held; `None` for the memory of this process.
    ///     clock: `tollkeeper.testing.FakeClock`, for tests and replays.
    ///
    /// Raises:
    ///     BudgetError: The budgets or the state cannot be used.
    #[new]
    #[pyo3(signature = (spec: "collections.abc.Mapping[str, typing.Any]", state: "str | os.PathLike[str] | None" = None, clock: "FakeClock | None" = None))]
    fn new(
        py: Python<'_>,
        spec: &Bound<'_, PyMapping>,
        state: Option<PathBuf>,
        clock: Option<&Bound<'_, PyFakeClock>>,
    ) -> PyResult<Self> {
        let keys = PyDict::new(py);
        keys.update(spec)?;
        let spec = read_spec(&keys)?;
        let clock: Arc<dyn Clock> = match clock {
            Some(clock) => Arc::clone(&clock.get().inner) as Arc<dyn Clock>,
            None => Arc::new(SystemClock),
        };
        guard(|| {
            py.detach(|| {
                let ledger = match state {
                    Some(state) => Ledger::open(spec, &state, Arc::clone(&clock)),
                    None => Ledger::anonymous(spec, Arc::clone(&clock)),
                }?;
                Ok::<_, Error>(Self { shared: Arc::new(Shared::new(ledger, clock)) })
            })
        })
    }

    /// Reserves the amounts at a budget and at every level above it, in all windows, or changes nothing.
    ///
    /// Args:
    ///     path: The budget, such as `acme/research/a`; made from its template if this is the first time.
    ///     tokens: Tokens of language models.
    ///     nano_usd: Billionths of a US dollar.
    ///     requests: Requests; spent when granted.
    ///     in_flight: Calls in flight; come back when the hold ends.
    ///     kv_blocks: Blocks of a KV cache; come back when the hold ends.
    ///     ttl_ms: After this time the hold is over and `recover` may end it; `None` for the ledger's own.
    ///     dispatched: The work begins at once, as `Hold.dispatch` would say.
    ///
    /// Returns:
    ///     A `Hold` or a `Denial`; test `.granted`. An unknown path is a denial too, `budget.unavailable`.
    ///
    /// Raises:
    ///     TypeError: An amount is not an `int`; a `bool` is none.
    ///     BudgetError: An amount is negative or above 2**53.
    ///     HandleError: The ledger is closed, or was inherited through a fork and lives in memory.
    #[expect(clippy::too_many_arguments, reason = "one for each unit")]
    #[pyo3(signature = (path: "str", *, tokens: "int" = Whole::ZERO, nano_usd: "int" = Whole::ZERO, requests: "int" = Whole::ZERO, in_flight: "int" = Whole::ZERO, kv_blocks: "int" = Whole::ZERO, ttl_ms: "int | None" = None, dispatched: "bool" = false) -> "Hold | Denial")]
    fn reserve<'py>(
        &self,
        path: &Bound<'py, PyString>,
        tokens: Whole<'_, 'py>,
        nano_usd: Whole<'_, 'py>,
        requests: Whole<'_, 'py>,
        in_flight: Whole<'_, 'py>,
        kv_blocks: Whole<'_, 'py>,
        ttl_ms: Option<Whole<'_, 'py>>,
        dispatched: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        guard(|| {
            let amounts = amounts([tokens, nano_usd, requests, in_flight, kv_blocks])?;
            let ttl_ms = ttl_ms.map(|ttl_ms| whole("ttl_ms", ttl_ms, 1)).transpose()?;
            let options = Options { ttl_ms, dispatched, ..Options::default() };
            match reserve_at(&self.shared, path, &amounts, options)? {
                Ok(id) => {
                    let hold = PyHold::new(Arc::clone(&self.shared), path.clone().unbind(), id, Born::now(), None);
                    Ok::<_, PyErr>(Bound::new(path.py(), hold)?.into_any())
                }
                Err(inner) => Ok(Bound::new(path.py(), PyDenial { inner })?.into_any()),
            }
        })
    }

    /// What a budget's own limits have, in the windows of now, by (unit, window).
    ///
    /// Raises:
    ///     BudgetError: There is no such budget.
    #[pyo3(signature = (path: "str") -> "dict[tuple[str, str], Usage]")]
    fn usage<'py>(&self, path: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyDict>> {
        guard(|| {
            let node = self.shared.known_node(path)?;
            let dict = PyDict::new(path.py());
            for cell in self.shared.ledger.usage(&node) {
                let Usage { unit, window, limit, overdraft, used, held, available, stranded, window_end_ms } = cell;
                let usage = PyUsage { limit, overdraft, used, held, available, stranded, window_end_ms };
                dict.set_item((unit.name(), window.name()), usage)?;
            }
            Ok::<_, PyErr>(dict)
        })
    }

    /// Every limit that would refuse these amounts now, from the budget upwards; empty if they fit.
    #[pyo3(signature = (path: "str", *, tokens: "int" = Whole::ZERO, nano_usd: "int" = Whole::ZERO, requests: "int" = Whole::ZERO, in_flight: "int" = Whole::ZERO, kv_blocks: "int" = Whole::ZERO) -> "list[Denial]")]
    fn explain(
        &self,
        path: &Bound<'_, PyString>,
        tokens: Whole<'_, '_>,
        nano_usd: Whole<'_, '_>,
        requests: Whole<'_, '_>,
        in_flight: Whole<'_, '_>,
        kv_blocks: Whole<'_, '_>,
    ) -> PyResult<Vec<PyDenial>> {
        guard(|| {
            let amounts = amounts([tokens, nano_usd, requests, in_flight, kv_blocks])?;
            let ledger = self.usable()?;
            let denials = match self.shared.node(path)? {
                Ok(node) => ledger.explain(&node, &amounts),
                Err(denial) => vec![*denial],
            };
            Ok::<_, PyErr>(denials.into_iter().map(|denial| PyDenial { inner: Box::new(denial) }).collect())
        })
    }

    /// Every live hold of every process: `id`, `path`, `amounts`, `charged`, `granted_ms`, `deadline_ms`,
    /// `decision`, `owner_pid`, `alive`, `dispatched`, `meter`.
    #[pyo3(signature = () -> "list[dict[str, typing.Any]]")]
    fn holds<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        guard(|| {
            let ledger = self.usable()?;
            py.detach(|| ledger.holds()).iter().map(|hold| hold_dict(py, hold)).collect::<PyResult<_>>()
        })
    }

    /// Every budget, made ones included, sorted.
    #[getter]
    fn paths(&self) -> PyResult<Vec<String>> {
        guard(|| Ok::<_, Error>(self.usable()?.paths()))
    }

    /// Ends the holds of dead processes and those past their deadline, and settles what they left in doubt.
    ///
    /// Returns:
    ///     `processes` that were gone, their `holds`, holds that were `expired`; units that were `found` stranded, of
    ///     these `freed` and `spent`; cells that were `not_quiet` enough to settle.
    #[pyo3(signature = () -> "dict[str, int]")]
    fn recover<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        guard(|| {
            let ledger = self.usable()?;
            let Recovery { processes, holds, expired, healed } = py.detach(|| ledger.recover()).map_err(Error::from)?;
            let dict = PyDict::new(py);
            dict.set_item("processes", processes)?;
            dict.set_item("holds", holds)?;
            dict.set_item("expired", expired)?;
            dict.set_item("found", healed.found)?;
            dict.set_item("freed", healed.freed)?;
            dict.set_item("spent", healed.spent)?;
            dict.set_item("not_quiet", healed.not_quiet)?;
            Ok::<_, PyErr>(dict)
        })
    }

    /// Changes a limit while the ledger runs, for every process; noted in `events`.
    ///
    /// Returns:
    ///     The limit as it was.
    ///
    /// Raises:
    ///     BudgetError: There is no such limit, or it cannot be that.
    #[pyo3(signature = (path: "str", unit: "str", window: "str", limit: "int"))]
    fn set_limit(&self, py: Python<'_>, path: &str, unit: &str, window: &str, limit: Whole<'_, '_>) -> PyResult<i64> {
        guard(|| {
            let unknown = |message| Error::from(BudgetError::Unknown { message });
            let unit = Unit::parse(unit).ok_or_else(|| unknown(format!("there is no unit `{unit}`")))?;
            let window = Window::parse(window).ok_or_else(|| unknown(format!("there is no window `{window}`")))?;
            let limit = any_whole("limit", limit)?;
            let ledger = self.usable()?;
            Ok::<_, PyErr>(py.detach(|| ledger.set_limit(path, unit, window, limit)).map_err(Error::from)?)
        })
    }

    /// What an auditor wants to know, oldest first, the last ones only: `number`, `at_ms`, `kind`, `pid`, `path`,
    /// `unit`, `window`, `before`, `after`.
    #[pyo3(signature = () -> "list[dict[str, typing.Any]]")]
    fn events<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        guard(|| {
            let list = PyList::empty(py);
            for event in self.usable()?.events() {
                let dict = PyDict::new(py);
                let (path, unit, window) = match event.cell {
                    Some((path, unit, window)) => (Some(path), Some(unit.name()), Some(window.name())),
                    None => (None, None, None),
                };
                dict.set_item("number", event.number)?;
                dict.set_item("at_ms", event.at_ms)?;
                dict.set_item("kind", event.kind.name())?;
                dict.set_item("pid", event.pid)?;
                dict.set_item("path", path)?;
                dict.set_item("unit", unit)?;
                dict.set_item("window", window)?;
                dict.set_item("before", event.before)?;
                dict.set_item("after", event.after)?;
                list.append(dict)?;
            }
            Ok::<_, PyErr>(list)
        })
    }

    /// What the use of a model costs, in nano-USD, rounded up once.
    ///
    /// Args:
    ///     model: Name in the price table.
    ///     usage: Tokens by component, such as `{"prompt": 1200, "completion": 80}`.
    ///
    /// Raises:
    ///     BudgetError: The model, or a component of which anything was used, has no price (`budget.unpriced`).
    #[pyo3(signature = (model: "str", usage: "collections.abc.Mapping[str, int]"))]
    fn price(&self, model: &str, usage: &Bound<'_, PyAny>) -> PyResult<i64> {
        guard(|| {
            let mut counts: Vec<(String, u64)> = Vec::new();
            for item in usage.call_method0("items")?.try_iter()? {
                let (component, count): (String, Bound<'_, PyAny>) = item?.extract()?;
                let count = whole("a count", count.as_borrowed().extract()?, 0)?;
                counts.push((component, count.unsigned_abs()));
            }
            let counts: Vec<(&str, u64)> = counts.iter().map(|(component, count)| (&**component, *count)).collect();
            Ok::<_, PyErr>(self.shared.ledger.spec().prices.cost(model, &counts).map_err(Error::from)?)
        })
    }

    /// SHA-256 of the price table in hex: the same prices give the same digest.
    #[getter]
    fn price_digest(&self) -> String {
        self.shared.ledger.spec().prices.digest()
    }

    /// Models with prices, sorted; a meter names them by their place here.
    #[getter]
    fn models(&self) -> Vec<&str> {
        self.shared.ledger.spec().prices.models().collect()
    }

    /// How model calls are admitted: `"safe"` or `"incremental"`.
    #[getter]
    fn admission(&self) -> &'static str {
        match self.shared.ledger.admission() {
            Admission::Safe => "safe",
            Admission::Incremental => "incremental",
        }
    }

    /// Tokens that are held at a time in incremental admission.
    #[getter]
    fn increment_tokens(&self) -> i64 {
        self.shared.ledger.spec().increment_tokens
    }

    /// The file that holds the state; `None` for a ledger in memory.
    #[getter]
    fn state(&self) -> Option<String> {
        self.shared.ledger.state_path().map(|path| path.display().to_string())
    }

    /// How far the wall clock is ahead of the ledger's time, or behind it if negative. More than a second means that
    /// the clock was set: see `accept_clock`.
    #[getter]
    fn clock_skew_ms(&self) -> PyResult<i64> {
        guard(|| Ok::<_, Error>(self.usable()?.clock_skew_ms()))
    }

    /// Believes the wall clock as it is now, after it was set right. The ledger's time still never goes backwards.
    fn accept_clock(&self, py: Python<'_>) -> PyResult<()> {
        guard(|| {
            let ledger = self.usable()?;
            py.detach(|| ledger.accept_clock()).map_err(Error::from)
        })
    }

    /// A number that changes when something has ended or changed while somebody waited; see `wait_for_change`.
    fn change_count(&self) -> PyResult<u32> {
        guard(|| Ok::<_, Error>(self.usable()?.change_count()))
    }

    /// Waits until something has ended or changed since `seen` was read, in any process, or the time is over. May come
    /// back early.
    ///
    /// Returns:
    ///     `change_count()` as it is then.
    #[pyo3(signature = (seen, timeout_ms))]
    fn wait_for_change(&self, py: Python<'_>, seen: u32, timeout_ms: u64) -> PyResult<u32> {
        guard(|| {
            let ledger = self.usable()?;
            let count = py.detach(|| ledger.wait_for_change(seen, timeout_ms));
            py.check_signals()?;
            Ok::<_, PyErr>(count)
        })
    }

    /// Has changes counted from now on, also between two waits; each call needs an `_unwatch`.
    #[pyo3(name = "_watch")]
    fn watch(&self) -> PyResult<()> {
        guard(|| self.usable().map(Ledger::watch))
    }

    /// The other half of `_watch`; also of a ledger that was closed since, for the other processes' sake.
    #[pyo3(name = "_unwatch")]
    fn unwatch(&self) {
        self.shared.ledger.unwatch();
    }

    /// Wakes whoever waits, though nothing has changed.
    #[pyo3(name = "_wake")]
    fn wake(&self) -> PyResult<()> {
        guard(|| self.usable().map(Ledger::wake))
    }

    /// Makes everything that was spent until now survive a restart of the host.
    ///
    /// Raises:
    ///     BudgetError: The disk refused.
    fn sync(&self, py: Python<'_>) -> PyResult<()> {
        guard(|| {
            let ledger = self.usable()?;
            py.detach(|| ledger.sync()).map_err(Error::from)
        })
    }

    /// Lets go of the ledger: this process's live holds end as nobody reports them. Closing twice is the same as once.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        guard(|| {
            // Relaxed: a call at the same moment may come before or after.
            self.shared.closed.store(true, Ordering::Relaxed);
            py.detach(|| self.shared.ledger.close());
            Ok::<_, Error>(())
        })
    }

    /// Whether `close` was called.
    #[getter]
    fn closed(&self) -> bool {
        self.shared.closed.load(Ordering::Relaxed)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exc: "object") -> "None")]
    fn __exit__(slf: &Bound<'_, Self>, _exc: &Bound<'_, PyTuple>) -> PyResult<()> {
        // By name: a subclass may have more to close.
        slf.call_method0(pyo3::intern!(slf.py(), "close")).map(drop)
    }

    fn __repr__(&self) -> String {
        let place = self.state().unwrap_or_else(|| "memory".to_owned());
        format!("<Ledger in {place}{}>", if self.closed() { ", closed" } else { "" })
    }
}
