//! `Gate` and `Action`: one call into the gate.
//!
//! Takes the snapshot, asks, and hands the decision back. What a denial means is the gate's business; what this file
//! adds is what only a binding can know: a handle that was inherited through a fork or closed, and a panic.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyDictMethods, PyMapping, PyString};
use tollkeeper_core::arguments::{Argument, Arguments, ArgumentsError};
use tollkeeper_core::audit::log::Durability;
use tollkeeper_core::budget::unit::{Amounts, Unit};
use tollkeeper_core::gate::Gate;
use tollkeeper_core::gate::approve::Approver;
use tollkeeper_core::gate::asserted::Asserted;
use tollkeeper_core::gate::check::Scratch;
use tollkeeper_core::gate::code::Code;
use tollkeeper_core::gate::control::Control;
use tollkeeper_core::gate::decision::Decision;
use tollkeeper_core::gate::evidence::{Audit, Links, OnFull};
use tollkeeper_core::gate::model_call::{ModelCall, ModelRequest};
use tollkeeper_core::gate::scope::Scope;
use tollkeeper_core::gate::state::{GateMode, GateSources, OnError, UnguardedForbid};
use tollkeeper_core::gate::tools::{Prepared, ToolSpec};
use tollkeeper_core::limits::{ARGUMENT_BYTES_MAX, ARGUMENT_BYTES_WAIT_MAX};
use tollkeeper_core::policy::parse::Source;

use crate::audit::PyAuditLog;
use crate::budget::PyLedger;
use crate::control::PyControl;
use crate::convert::with_arguments_mut;
use crate::decision::PyDecision;
use crate::errors::Error;
use crate::fork::Born;
use crate::guard::guard;
use crate::many::{Columns, PyDecisions};
use crate::policy::detached;
use crate::scope::PyScope;

thread_local! {
    /// The gate's buffers of this thread; empty while they are in use.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Named text: the name, if it is a file, and the content.
type Named = (Option<String>, String);

/// A tool as the configuration has it: name, resource uid, JSON Schema text, names of path arguments, cost by unit,
/// labels that its output brings.
type ToolArg = (String, String, Option<String>, Vec<String>, Option<Vec<(String, i64)>>, Vec<String>);

/// What a gate is loaded from, owned so that loading can run detached.
struct Sources {
    policies: Vec<Named>,
    schema: Option<Named>,
    entities: Option<Named>,
    tools: Vec<ToolSpec>,
    mode: GateMode,
    on_error: OnError,
    unguarded_forbid: UnguardedForbid,
    ledger: Option<Arc<tollkeeper_core::budget::ledger::Ledger>>,
    audit: Option<Arc<Audit>>,
    control: Option<Arc<Control>>,
    approvers: Vec<Approver>,
    notice: Option<String>,
    folder: Option<String>,
}

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct SourcesArg {
    policies: Vec<Named>,
    schema: Option<Named>,
    entities: Option<Named>,
    tools: Vec<ToolArg>,
    mode: String,
    on_error: String,
    unguarded_forbid: String,
    on_full: String,
    durability: String,
    approvers: Vec<String>,
    notice: Option<String>,
    #[pyo3(default)]
    folder: Option<String>,
}

impl SourcesArg {
    fn read(
        self,
        ledger: Option<&Bound<'_, PyLedger>>,
        log: Option<&Py<PyAuditLog>>,
        control: Option<&Bound<'_, PyControl>>,
    ) -> PyResult<Sources> {
        fn one_of<T>(key: &str, value: &str, choices: [(&str, T); 2]) -> PyResult<T> {
            let names = choices.each_ref().map(|(name, _)| *name).join("` or `");
            let found = choices.into_iter().find(|(name, _)| *name == value).map(|(_, choice)| choice);
            found.ok_or_else(|| PyValueError::new_err(format!("{key} is `{value}`, not `{names}`")))
        }
        let on_full = one_of("on_full", &self.on_full, [("deny", OnFull::Deny), ("allow", OnFull::Allow)])?;
        let durability = Durability::parse(&self.durability)
            .ok_or_else(|| PyValueError::new_err(format!("there is no durability `{}`", self.durability)))?;
        let audit = log.map(|log| Arc::new(Audit { log: Arc::clone(&log.get().log), on_full, durability }));
        Ok(Sources {
            policies: self.policies,
            schema: self.schema,
            entities: self.entities,
            tools: self.tools.into_iter().map(tool_spec).collect::<PyResult<_>>()?,
            mode: one_of("mode", &self.mode, [("enforce", GateMode::Enforce), ("shadow", GateMode::Shadow)])?,
            on_error: one_of("on_error", &self.on_error, [("deny", OnError::Deny), ("cedar", OnError::Cedar)])?,
            unguarded_forbid: one_of(
                "unguarded_forbid",
                &self.unguarded_forbid,
                [("refuse", UnguardedForbid::Refuse), ("warn", UnguardedForbid::Warn)],
            )?,
            ledger: ledger.map(|ledger| Arc::clone(&ledger.get().shared.ledger)),
            audit,
            control: control.map(|control| Arc::clone(control.get().inner())),
            approvers: self.approvers.iter().map(|key| approver(key)).collect::<PyResult<_>>()?,
            notice: self.notice,
            folder: self.folder,
        })
    }
}

fn tool_spec((name, resource, schema, paths, cost, reads): ToolArg) -> PyResult<ToolSpec> {
    let resource = tollkeeper_core::uid::EntityUid::parse(&resource).map_err(Error::from)?;
    let cost = cost.map(|cost| read_cost(&name, cost)).transpose()?;
    Ok(ToolSpec { name, resource: Arc::new(resource), schema, paths, cost, reads })
}

fn read_cost(tool: &str, cost: Vec<(String, i64)>) -> PyResult<Amounts> {
    let mut amounts = Amounts::NONE;
    for (name, amount) in cost {
        let Some(unit) = Unit::parse(&name) else {
            let units = Unit::ALL.map(Unit::name).join(", ");
            return Err(PyValueError::new_err(format!("tool `{tool}`: cost.{name}: unknown unit; known: {units}")));
        };
        amounts = amounts.and(unit, amount);
    }
    Ok(amounts)
}

impl Sources {
    fn borrowed(&self) -> GateSources<'_> {
        fn source((name, text): &Named) -> Source<'_> {
            Source { name: name.as_deref(), text }
        }
        GateSources {
            policies: self.policies.iter().map(source).collect(),
            schema: self.schema.as_ref().map(source),
            entities: self.entities.as_ref().map(source),
            tools: self.tools.clone(),
            mode: self.mode,
            on_error: self.on_error,
            unguarded_forbid: self.unguarded_forbid,
            ledger: self.ledger.clone(),
            audit: self.audit.clone(),
            control: self.control.clone(),
            approvers: self.approvers.clone(),
            notice: self.notice.clone(),
            folder: self.folder.as_deref(),
        }
    }
}

fn approver(key: &str) -> PyResult<Approver> {
    Approver::parse(key).map_err(|what| PyValueError::new_err(format!("admin key `{key}`: {what}")))
}

/// The native half of `tollkeeper.Gate`.
#[pyclass(frozen, subclass, name = "Gate", module = "tollkeeper._native")]
pub(crate) struct PyGate {
    inner: Gate,
    born: Born,
    closed: AtomicBool,
    /// Set by a panic: this handle denies from then on, others go on.
    poisoned: AtomicBool,
    /// `ContextVar.get` of the current scope
    current: Py<PyAny>,
    log: Option<Py<PyAuditLog>>,
    /// Says what is traced where it is called, and the trace and span ids of that, or nothing
    trace: Option<(Py<PyAny>, Py<PyAny>)>,
}

#[pymethods]
impl PyGate {
    /// Args:
    ///     sources: Mapping with `policies`, `schema`, `entities`, `tools`, `mode`, `on_error`, `unguarded_forbid`,
    ///         `on_full`, `durability`, `approvers`, `notice`.
    ///     instance: A random number that tells this gate's decisions from those of others.
    ///     current: Callable that returns the current scope or `None`.
    ///     ledger: What pays for actions.
    ///     log: What records decisions.
    ///     trace: Two callables: one returns a mapping that is empty where nothing is traced; the other takes it and
    ///         returns the ids of the trace and the span, or `None`.
    ///     control: What the gates of a host share; without it nothing is shared.
    #[new]
    #[pyo3(signature = (sources: "dict[str, typing.Any]", instance, current: "collections.abc.Callable[[], Scope | None]", ledger: "Ledger | None" = None, log: "AuditLog | None" = None, trace: "tuple[collections.abc.Callable[[], typing.Any], collections.abc.Callable[[typing.Any], tuple[int, int] | None]] | None" = None, control: "Control | None" = None))]
    fn new(
        sources: &Bound<'_, PyAny>,
        instance: u64,
        current: Py<PyAny>,
        ledger: Option<&Bound<'_, PyLedger>>,
        log: Option<Py<PyAuditLog>>,
        trace: Option<(Py<PyAny>, Py<PyAny>)>,
        control: Option<&Bound<'_, PyControl>>,
    ) -> PyResult<Self> {
        let sources = sources.extract::<SourcesArg>()?.read(ledger, log.as_ref(), control)?;
        guard(|| {
            let inner = detached(|| Gate::open(&sources.borrowed(), instance))?;
            let (closed, poisoned) = (AtomicBool::new(false), AtomicBool::new(false));
            Ok::<_, PyErr>(Self { inner, born: Born::now(), closed, poisoned, current, log, trace })
        })
    }

    /// Decides whether the current scope's principal may call a tool with these arguments. Never raises on a denial.
    ///
    /// Args:
    ///     tool: Name of a registered tool.
    ///     arguments: Plain data with str keys; `None` is no arguments.
    ///     scope: A scope other than the current one.
    ///     parent: Id of the decision that this call follows from, such as that of the model call which asked for it.
    ///     asserted: Ids of the call as its host has them, for the audit log: `runtime`, `agent`, `session`, `run`,
    ///         `call`. Nobody checks them; of each 256 bytes are kept.
    ///
    /// Raises:
    ///     ValueError: `asserted` holds something else.
    #[pyo3(signature = (tool: "str", arguments: "collections.abc.Mapping[str, typing.Any] | None" = None, *, scope: "Scope | None" = None, parent: "str | None" = None, asserted: "collections.abc.Mapping[str, str] | None" = None))]
    fn check(
        slf: &Bound<'_, Self>,
        tool: &Bound<'_, PyString>,
        arguments: Option<&Bound<'_, PyAny>>,
        scope: Option<Bound<'_, PyScope>>,
        parent: Option<&str>,
        asserted: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyDecision> {
        Self::check_within(slf, (tool, arguments), scope, (parent, asserted), ARGUMENT_BYTES_MAX)
    }

    /// The same for callers that may wait: the arguments may have 4 MiB instead of 64 KiB.
    #[pyo3(name = "_check_large", signature = (tool: "str", arguments: "collections.abc.Mapping[str, typing.Any] | None" = None, *, scope: "Scope | None" = None, parent: "str | None" = None, asserted: "collections.abc.Mapping[str, str] | None" = None))]
    fn check_large(
        slf: &Bound<'_, Self>,
        tool: &Bound<'_, PyString>,
        arguments: Option<&Bound<'_, PyAny>>,
        scope: Option<Bound<'_, PyScope>>,
        parent: Option<&str>,
        asserted: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyDecision> {
        Self::check_within(slf, (tool, arguments), scope, (parent, asserted), ARGUMENT_BYTES_WAIT_MAX)
    }

    /// The record that has to be on the disk before there is room for more; `None` where there is, or no log.
    fn _room_after(&self) -> Option<u64> {
        let health = self.log.as_ref().filter(|_| self.unusable().is_none())?.get().log.health();
        let (used, size) = health.ring_bytes;
        (used >= (size / 4).saturating_mul(3)).then(|| health.next_seq.saturating_sub(1))
    }

    /// Decides as `check` does, or as a model call does, but at another time: for replays of what was recorded.
    ///
    /// Args:
    ///     scope: Who acts.
    ///     now_ms: The time, in milliseconds since 1970.
    ///     tool: Name of a tool; `None` with `model`.
    ///     arguments: The tool's arguments, of any size that can be recorded.
    ///     model: Name, tokens of the prompt, most tokens of a completion, completions.
    #[pyo3(name = "_decide_at", signature = (scope: "Scope", now_ms, tool = None, arguments: "collections.abc.Mapping[str, typing.Any] | None" = None, model: "tuple[str, int, int, int] | None" = None))]
    fn decide_at(
        slf: &Bound<'_, Self>,
        scope: Bound<'_, PyScope>,
        now_ms: i64,
        tool: Option<&str>,
        arguments: Option<&Bound<'_, PyAny>>,
        model: Option<(String, i64, i64, i64)>,
    ) -> PyResult<PyDecision> {
        let gate = &slf.get().inner;
        let scope = Self::scope_of(slf, Some(scope))?;
        let scope = scope.as_ref().map(|scope| scope.get().inner());
        guard(|| {
            let mut scratch = Scratch::default();
            let inner = if let Some(code) = slf.get().unusable() {
                slf.get().turned_away(code)
            } else if let Some((model, prompt_tokens, max_tokens, n)) = model {
                let request = ModelRequest { model: &model, prompt_tokens, max_tokens, n };
                gate.check_model(scope, &request, now_ms, &mut scratch).0
            } else {
                let tool = tool.unwrap_or_default();
                let check = |arguments: &mut Arguments| gate.check(scope, tool, arguments, now_ms, &mut scratch);
                let checked = with_arguments_mut(arguments, ARGUMENT_BYTES_WAIT_MAX, check);
                checked.unwrap_or_else(|error| gate.refuse(Code::InputUnrepresentable, Some(error.to_string())))
            };
            Ok::<_, PyErr>(PyDecision::new(inner, slf.clone().unbind()))
        })
    }

    /// Loads everything anew and swaps it in; if anything is wrong, the old state stays.
    ///
    /// Raises:
    ///     PolicyError: What is wrong, with file, line and column.
    #[pyo3(name = "_reload", signature = (sources: "dict[str, typing.Any]", ledger: "Ledger | None" = None))]
    fn reload(&self, sources: &Bound<'_, PyAny>, ledger: Option<&Bound<'_, PyLedger>>) -> PyResult<()> {
        let sources = sources.extract::<SourcesArg>()?.read(ledger, self.log.as_ref(), None)?;
        guard(|| {
            self.born.check()?;
            detached(|| self.inner.reload(&sources.borrowed()).map(drop))
        })
    }

    /// Says in the log that a configuration was to be loaded and could not be, so that the one before goes on.
    ///
    /// Raises:
    ///     AuditError: The log cannot take it.
    #[pyo3(name = "_load_failed")]
    fn load_failed(&self, py: Python<'_>, reason: &str) -> PyResult<()> {
        guard(|| {
            self.born.check()?;
            py.detach(|| self.inner.record_failed_load(reason)).map_err(Error::from)
        })
    }

    /// See `Gate.register_many`.
    #[pyo3(name = "_register", signature = (tools: "list[tuple[str, str, str | None, list[str], list[tuple[str, int]] | None, list[str]]]"))]
    fn register(&self, tools: Vec<ToolArg>) -> PyResult<()> {
        let specs = tools.into_iter().map(tool_spec).collect::<PyResult<Vec<ToolSpec>>>()?;
        guard(|| {
            self.born.check()?;
            detached(|| self.inner.register(&specs))
        })
    }

    /// Refuses calls of these tools from now on with `tool.changed`, registered or not: their definitions are not those
    /// that somebody has accepted. Whatever was withheld before is not any more; a reload changes nothing of it.
    ///
    /// Args:
    ///     tools: Reasons by name, for whoever reads the denial; of each 4 KiB are kept. Empty: nothing is withheld.
    ///
    /// Raises:
    ///     HandleError: In the child of a fork.
    #[pyo3(signature = (tools: "collections.abc.Mapping[str, str]"))]
    fn withhold(&self, tools: &Bound<'_, PyAny>) -> PyResult<()> {
        let tools = text_pairs("withhold", tools)?;
        guard(|| {
            self.born.check()?;
            self.inner.withhold(tools.iter().map(|(name, reason)| (&**name, &**reason)));
            Ok::<_, PyErr>(())
        })
    }

    /// Whether a check of this tool could come out as allowed, for some arguments: what a list of tools may leave out.
    /// It decides nothing and records nothing; true promises nothing.
    ///
    /// Args:
    ///     tool: Name of a tool.
    ///     scope: A scope other than the current one.
    ///
    /// Returns:
    ///     False where it is certain that nobody in the scope can call it whatever the arguments are: it is not
    ///     registered or is withheld, the run is narrowed to other tools, no permit speaks of it, a forbid without a
    ///     condition does; or there is no run.
    #[pyo3(signature = (tool, *, scope: "Scope | None" = None))]
    fn may_call(slf: &Bound<'_, Self>, tool: &str, scope: Option<Bound<'_, PyScope>>) -> PyResult<bool> {
        let scope = Self::scope_of(slf, scope)?;
        let scope = scope.as_ref().map(|scope| scope.get().inner());
        guard(|| Ok::<_, PyErr>(slf.get().is_usable() && slf.get().inner.may_call(scope, tool)))
    }

    /// Closes the gate: every later check is denied with `gate.closed`.
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether the gate was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// `"enforce"` or `"shadow"`.
    #[getter]
    fn mode(&self) -> &'static str {
        match self.inner.state().mode() {
            GateMode::Enforce => "enforce",
            GateMode::Shadow => "shadow",
        }
    }

    /// Decides on a delegation: whether `outer`'s principals may have the principal of `inner` act for them. Allowed,
    /// the inner scope counts from now on.
    #[pyo3(signature = (outer, inner, parent: "str | None" = None, asserted: "collections.abc.Mapping[str, str] | None" = None))]
    fn _delegate(
        slf: &Bound<'_, Self>,
        outer: Bound<'_, PyScope>,
        inner: &Bound<'_, PyScope>,
        parent: Option<&str>,
        asserted: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyDecision> {
        let this = slf.get();
        let asserted = read_asserted(asserted)?;
        let links = Links { parent, trace: this.trace(slf.py()), asserted: asserted.as_ref() };
        let outer = Self::scope_of(slf, Some(outer))?;
        let decide = || {
            let Some(outer) = this.unusable().map_or(outer.as_ref().ok_or(Code::ScopeMissing), Err).ok() else {
                return this.turned_away(this.unusable().unwrap_or(Code::ScopeMissing));
            };
            let mut scratch = SCRATCH.take().unwrap_or_default();
            let (outer, now_ms) = (outer.get().inner(), this.inner.now_ms());
            let decision = this.inner.check_delegate(outer, inner.get().inner(), now_ms, links, &mut scratch);
            SCRATCH.set(Some(scratch));
            decision
        };
        let decision = this.unharmed(decide)?;
        if decision.allowed() {
            inner.get().begin(Some(decision.id()));
        }
        Ok(PyDecision::new(decision, slf.clone().unbind()))
    }

    /// A tool by name, prepared: its checks skip the lookup.
    ///
    /// Args:
    ///     tool: Name of a tool, registered by the time of a check.
    fn action(slf: Bound<'_, Self>, tool: &str) -> PyAction {
        PyAction { gate: slf.unbind(), prepared: Prepared::new(tool) }
    }

    /// Decides many calls of one tool in the current scope, each as `check` does and in the order of the rows. The
    /// interpreter's lock is released meanwhile.
    ///
    /// Args:
    ///     tool: Name of a registered tool.
    ///     columns: Arguments by name: one-dimensional numpy arrays or lists of integers, floats, booleans or text,
    ///         all of the same length, or single values for every row.
    ///     scope: A scope other than the current one.
    ///     parent: Id of the decision that the calls follow from.
    ///     asserted: As in `check`, for all rows.
    ///
    /// Raises:
    ///     TypeError: A column holds something else.
    ///     ValueError: Columns differ in length, or there are more than 65,536 rows; or as in `check`.
    #[pyo3(signature = (tool, columns: "collections.abc.Mapping[str, typing.Any]", *, scope: "Scope | None" = None, parent: "str | None" = None, asserted: "collections.abc.Mapping[str, str] | None" = None))]
    fn check_many(
        slf: &Bound<'_, Self>,
        tool: &str,
        columns: &Bound<'_, PyMapping>,
        scope: Option<Bound<'_, PyScope>>,
        parent: Option<&str>,
        asserted: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyDecisions> {
        let columns = Columns::read(columns)?;
        let asserted = read_asserted(asserted)?;
        // Before anything is decided: whoever cannot be told the answers asks for none.
        slf.py().import("numpy")?;
        let this = slf.get();
        let scope = Self::scope_of(slf, scope)?;
        let links = Links { parent, trace: this.trace(slf.py()), asserted: asserted.as_ref() };
        let asked = Asked { scope: scope.as_ref().map(|scope| scope.get().inner()), links, bytes_max: 0 };
        let prepared = Prepared::new(tool);
        let decided = slf.py().detach(|| {
            let mut arguments = Arguments::new();
            let mut decisions = Vec::with_capacity(columns.rows());
            for row in 0..columns.rows() {
                let refused = |error: &ArgumentsError| this.refused(tool, Gate::refusal_of(error), asked);
                let decide = || match columns.fill(row, &mut arguments) {
                    Ok(()) if this.is_usable() => this.ask(Called::Prepared(&prepared), &mut arguments, asked),
                    Ok(()) => this.turned_away(this.unusable().unwrap_or(Code::GateClosed)),
                    Err(error) => refused(&error),
                };
                decisions.push(this.unharmed(decide)?);
            }
            Ok::<_, PyErr>(decisions)
        })?;
        PyDecisions::new(slf, decided)
    }

    /// What this gate has counted: decisions by code, and how long checks take in the core, in nanoseconds; one check
    /// of sixteen is timed.
    #[pyo3(signature = () -> "dict[str, typing.Any]")]
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        crate::control::row(py, &self.inner.counters().read())
    }

    /// What the gates of the host share.
    #[getter]
    fn _control(&self) -> PyControl {
        PyControl::of(Arc::clone(self.inner.state().control()))
    }

    /// Names of the registered tools, sorted.
    #[getter]
    fn tools(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.inner.state().registry().tools().iter().map(|tool| tool.name().to_owned()).collect();
        names.sort();
        names
    }

    /// Warnings of the last load.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.inner.state().warnings().to_vec()
    }
}

impl PyGate {
    fn check_within(
        slf: &Bound<'_, Self>,
        (tool, arguments): (&Bound<'_, PyString>, Option<&Bound<'_, PyAny>>),
        scope: Option<Bound<'_, PyScope>>,
        (parent, asserted): Said<'_, '_>,
        bytes_max: usize,
    ) -> PyResult<PyDecision> {
        let this = slf.get();
        let asserted = read_asserted(asserted)?;
        let scope = Self::scope_of(slf, scope)?;
        let links = Links { parent, trace: this.trace(slf.py()), asserted: asserted.as_ref() };
        let asked = Asked { scope: scope.as_ref().map(|scope| scope.get().inner()), links, bytes_max };
        let decide = || {
            if let Ok(tool) = tool.to_str() {
                return this.decide(Called::Text(tool), arguments, asked);
            }
            // A lone surrogate: no registered tool has such a name.
            let reason = "the tool's name is not text that can be encoded, so no tool has it".to_owned();
            this.refused("", (Code::InputUnknownTool, reason), asked)
        };
        let inner = this.unharmed(decide)?;
        Ok(PyDecision::new(inner, slf.clone().unbind()))
    }

    /// Decides for a tool that was prepared.
    fn check_prepared(
        slf: &Bound<'_, Self>,
        prepared: &Prepared,
        arguments: Option<&Bound<'_, PyAny>>,
        scope: Option<Bound<'_, PyScope>>,
        (parent, asserted): Said<'_, '_>,
    ) -> PyResult<PyDecision> {
        let this = slf.get();
        let asserted = read_asserted(asserted)?;
        let scope = Self::scope_of(slf, scope)?;
        let links = Links { parent, trace: this.trace(slf.py()), asserted: asserted.as_ref() };
        let bytes_max = ARGUMENT_BYTES_MAX;
        let asked = Asked { scope: scope.as_ref().map(|scope| scope.get().inner()), links, bytes_max };
        let inner = this.unharmed(|| this.decide(Called::Prepared(prepared), arguments, asked))?;
        Ok(PyDecision::new(inner, slf.clone().unbind()))
    }

    /// Runs a check; a panic in it denies, and poisons this handle.
    #[inline]
    fn unharmed(&self, decide: impl FnOnce() -> Decision) -> PyResult<Decision> {
        if let Ok(decision) = catch_unwind(AssertUnwindSafe(decide)) {
            return Ok(decision);
        }
        // Relaxed: the flag guards no other data, and every later check of this thread sees it.
        self.poisoned.store(true, Ordering::Relaxed);
        guard(|| Ok::<_, PyErr>(self.turned_away(Code::InternalPanic)))
    }

    /// The denial of a handle that decides nothing. It is counted, and has no entry.
    #[cold]
    fn turned_away(&self, code: Code) -> Decision {
        self.inner.counters().count(code as usize);
        self.inner.refuse(code, None)
    }

    /// A check that panics with the buffers of the thread in hand, for tests.
    #[expect(clippy::panic, reason = "that is what it is for")]
    pub(crate) fn check_that_panics(slf: &Bound<'_, Self>) -> PyResult<PyDecision> {
        let this = slf.get();
        let decision = this.unharmed(|| {
            let _scratch = SCRATCH.take().unwrap_or_default();
            panic!("on purpose")
        })?;
        Ok(PyDecision::new(decision, slf.clone().unbind()))
    }

    /// The core's.
    pub(crate) const fn room(&self) -> &Gate {
        &self.inner
    }

    pub(crate) const fn log(&self) -> Option<&Py<PyAuditLog>> {
        self.log.as_ref()
    }

    pub(crate) const fn has_log(&self) -> bool {
        self.log.is_some()
    }

    /// Whether the handle decides anything.
    pub(crate) fn is_usable(&self) -> bool {
        self.unusable().is_none()
    }

    /// Where it is called, if anybody traces that. What cannot be said is left out: a check does not fail for it.
    #[inline]
    fn trace(&self, py: Python<'_>) -> Option<(u128, u64)> {
        let (current, ids) = self.trace.as_ref()?;
        // SeqCst here and in `end_tracing`: either this sees that the interpreter ends, or the end sees this.
        TRACING.fetch_add(1, Ordering::SeqCst);
        let said = if ENDING.load(Ordering::SeqCst) { None } else { traced(py, current, ids) };
        TRACING.fetch_sub(1, Ordering::SeqCst);
        said
    }

    /// The scope that counts. A scope speaks of one gate's principal and one run: anywhere else it is none.
    pub(crate) fn scope_of<'py>(
        slf: &Bound<'py, Self>,
        scope: Option<Bound<'py, PyScope>>,
    ) -> PyResult<Option<Bound<'py, PyScope>>> {
        let scope = match scope {
            Some(scope) => Some(scope),
            None => slf.get().current.bind(slf.py()).call0()?.cast_into::<PyScope>().ok(),
        };
        Ok(scope.filter(|scope| scope.get().counts_for(slf)))
    }

    /// Why the handle decides nothing any more.
    #[inline]
    fn unusable(&self) -> Option<Code> {
        if self.born.check().is_err() {
            return Some(Code::GateForked);
        }
        if self.closed.load(Ordering::Relaxed) {
            return Some(Code::GateClosed);
        }
        self.poisoned.load(Ordering::Relaxed).then_some(Code::InternalPanic)
    }

    /// Decides on a model call in the current scope.
    pub(crate) fn decide_model(
        slf: &Bound<'_, Self>,
        request: &ModelRequest<'_>,
        parent: Option<&str>,
        asserted: Option<&Arc<Asserted>>,
    ) -> PyResult<(PyDecision, Option<ModelCall>)> {
        let this = slf.get();
        let scope = Self::scope_of(slf, None)?;
        let links = Links { parent, trace: this.trace(slf.py()), asserted };
        let decide = || {
            if let Some(code) = this.unusable() {
                return (this.turned_away(code), None);
            }
            let mut scratch = SCRATCH.take().unwrap_or_default();
            let scope = scope.as_ref().map(|scope| scope.get().inner());
            let now_ms = this.inner.now_ms();
            let (decision, call) = this.inner.check_model_linked(scope, request, now_ms, links, &mut scratch);
            SCRATCH.set(Some(scratch));
            (decision, Some(call))
        };
        let (decision, call) = if let Ok(decided) = catch_unwind(AssertUnwindSafe(decide)) {
            decided
        } else {
            this.poisoned.store(true, Ordering::Relaxed);
            guard(|| Ok::<_, PyErr>((this.turned_away(Code::InternalPanic), None)))?
        };
        Ok((PyDecision::new(decision, slf.clone().unbind()), call))
    }

    #[inline]
    fn decide(&self, tool: Called<'_>, arguments: Option<&Bound<'_, PyAny>>, asked: Asked<'_>) -> Decision {
        if let Some(code) = self.unusable() {
            return self.turned_away(code);
        }
        let answer = with_arguments_mut(arguments, asked.bytes_max, |arguments| self.ask(tool, arguments, asked));
        answer.unwrap_or_else(|error| {
            let code = if error.code() == Code::InputTooLarge.slug() {
                Code::InputTooLarge
            } else {
                Code::InputUnrepresentable
            };
            self.refused(tool.name(), (code, error.to_string()), asked)
        })
    }

    #[inline]
    fn ask(&self, tool: Called<'_>, arguments: &mut Arguments, asked: Asked<'_>) -> Decision {
        let object = arguments.root().is_some_and(|root| matches!(root.value(), Argument::Object));
        if !object {
            let reason = "arguments: a mapping with str keys is needed".to_owned();
            return self.refused(tool.name(), (Code::InputUnrepresentable, reason), asked);
        }
        let mut scratch = SCRATCH.take().unwrap_or_default();
        let now_ms = self.inner.now_ms();
        let Asked { scope, links, .. } = asked;
        let decision = match tool {
            Called::Text(tool) => self.inner.check_linked(scope, tool, arguments, now_ms, links, &mut scratch),
            Called::Prepared(tool) => self.inner.check_prepared(scope, tool, arguments, now_ms, links, &mut scratch),
        };
        SCRATCH.set(Some(scratch));
        decision
    }

    /// A denial for what came before the pipeline, recorded like any other.
    #[cold]
    fn refused(&self, tool: &str, refusal: (Code, String), asked: Asked<'_>) -> Decision {
        if let Some(code) = self.unusable() {
            return self.turned_away(code);
        }
        let mut scratch = SCRATCH.take().unwrap_or_default();
        let now_ms = self.inner.now_ms();
        let decision = self.inner.refuse_call(asked.scope, tool, refusal, now_ms, asked.links, &mut scratch);
        SCRATCH.set(Some(scratch));
        decision
    }
}

/// What is said of a call beside the call: the decision before it, and ids of the host.
type Said<'a, 'py> = (Option<&'a str>, Option<&'a Bound<'py, PyAny>>);

/// Ids of a call as its host has them; text that has no UTF-8 form is kept as far as it has one.
#[inline]
pub(crate) fn read_asserted(asserted: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Arc<Asserted>>> {
    asserted.map_or(Ok(None), read_mapping)
}

fn read_mapping(asserted: &Bound<'_, PyAny>) -> PyResult<Option<Arc<Asserted>>> {
    let texts = text_pairs("asserted", asserted)?;
    let made = Asserted::new(texts.iter().map(|(name, text)| (&**name, &**text))).map_err(PyValueError::new_err)?;
    Ok(made.map(Arc::new))
}

/// The items of a mapping of text to text.
fn text_pairs(what: &str, mapping: &Bound<'_, PyAny>) -> PyResult<Vec<(String, String)>> {
    let refuse = || PyTypeError::new_err(format!("{what} is no mapping of text to text"));
    let text_of = |value: &Bound<'_, PyAny>| {
        value.cast::<PyString>().map(|text| text.to_string_lossy().into_owned()).map_err(|_| refuse())
    };
    let mut texts = Vec::new();
    for item in mapping.cast::<PyMapping>().map_err(|_| refuse())?.items()? {
        let (name, text) = item.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
        texts.push((text_of(&name)?, text_of(&text)?));
    }
    Ok(texts)
}

/// Checks that ask the tracer right now.
static TRACING: AtomicUsize = AtomicUsize::new(0);
/// The interpreter is about to end: no tracer is asked any more.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Asks no tracer from now on, and waits for those that are being asked.
///
/// A tracer is the only Python that runs inside a check. Before version 3.14 an interpreter that ends unwinds the
/// daemon threads that come back to it, and through this code that would abort the process.
#[pyfunction(name = "_end_tracing")]
pub(crate) fn end_tracing(py: Python<'_>) {
    ENDING.store(true, Ordering::SeqCst);
    // A child of a fork may have inherited the count of a thread that it does not have: the wait has an end.
    for _ in 0..TRACER_MS_MAX {
        if TRACING.load(Ordering::SeqCst) == 0 {
            return;
        }
        py.detach(|| std::thread::sleep(Duration::from_millis(1)));
    }
}

/// How long the end of the interpreter waits for tracers, in milliseconds.
const TRACER_MS_MAX: u32 = 1_000;

fn traced(py: Python<'_>, current: &Py<PyAny>, ids: &Py<PyAny>) -> Option<(u128, u64)> {
    let found = current.call0(py).ok()?;
    // Nearly always: asking a tracer costs as much as a third of a check.
    if found.bind(py).cast::<PyDict>().is_ok_and(PyDictMethods::is_empty) {
        return None;
    }
    ids.call1(py, (found,)).ok()?.extract::<Option<(u128, u64)>>(py).ok().flatten()
}

/// A tool as a call names it.
#[derive(Clone, Copy)]
enum Called<'a> {
    Text(&'a str),
    Prepared(&'a Prepared),
}

impl Called<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Text(name) => name,
            Self::Prepared(prepared) => prepared.name(),
        }
    }
}

/// What a check is asked with beside the call itself.
#[derive(Clone, Copy)]
struct Asked<'a> {
    scope: Option<&'a Scope>,
    links: Links<'a>,
    bytes_max: usize,
}

/// A tool that was prepared by `Gate.action`.
#[pyclass(frozen, name = "Action", module = "tollkeeper")]
pub(crate) struct PyAction {
    gate: Py<PyGate>,
    prepared: Prepared,
}

#[pymethods]
impl PyAction {
    /// The tool's name.
    #[getter]
    fn name(&self) -> &str {
        self.prepared.name()
    }

    /// As `Gate.check`, for this tool.
    ///
    /// Args:
    ///     arguments: Plain data with str keys; `None` is no arguments.
    ///     scope: A scope other than the current one.
    ///     parent: Id of the decision that this call follows from.
    ///     asserted: As in `Gate.check`.
    #[pyo3(signature = (arguments: "collections.abc.Mapping[str, typing.Any] | None" = None, *, scope: "Scope | None" = None, parent: "str | None" = None, asserted: "collections.abc.Mapping[str, str] | None" = None))]
    fn check(
        &self,
        py: Python<'_>,
        arguments: Option<&Bound<'_, PyAny>>,
        scope: Option<Bound<'_, PyScope>>,
        parent: Option<&str>,
        asserted: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyDecision> {
        PyGate::check_prepared(self.gate.bind(py), &self.prepared, arguments, scope, (parent, asserted))
    }

    fn __repr__(&self) -> String {
        format!("<Action {:?}>", self.prepared.name())
    }
}

/// The digest of a tool's definition, as entries name it.
#[pyfunction(name = "_tool_pin")]
#[pyo3(signature = (tool: "tuple[str, str, str | None, list[str], list[tuple[str, int]] | None, list[str]]") -> "str")]
pub(crate) fn tool_pin(tool: ToolArg) -> PyResult<String> {
    let spec = tool_spec(tool)?;
    guard(|| Ok::<_, PyErr>(spec.pin_text()))
}

/// Every code a decision can have, with its meaning.
#[pyfunction]
#[pyo3(signature = () -> "list[tuple[str, str]]")]
pub(crate) fn decision_codes() -> Vec<(&'static str, &'static str)> {
    Code::ALL.iter().map(|code| (code.slug(), code.meaning())).collect()
}
