//! `Gate`, `Scope` and `Decision`: one call into the gate.
//!
//! Takes the snapshot, asks, and hands the decision back. What a denial means is the gate's business; what this file
//! adds is what only a binding can know: a handle that was inherited through a fork or closed, and a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyString, PyTuple};
use tollkeeper_core::arguments::{Argument, Arguments};
use tollkeeper_core::audit::entry::commit;
use tollkeeper_core::audit::error::AuditError;
use tollkeeper_core::audit::log::Durability;
use tollkeeper_core::budget::unit::{Amounts, Unit};
use tollkeeper_core::gate::Gate;
use tollkeeper_core::gate::check::Scratch;
use tollkeeper_core::gate::code::Code;
use tollkeeper_core::gate::decision::Decision;
use tollkeeper_core::gate::evidence::{Audit, Ending, Links, OnFull, Recorded, Status};
use tollkeeper_core::gate::model_call::{ModelCall, ModelRequest};
use tollkeeper_core::gate::scope::{Scope, ScopeSpec};
use tollkeeper_core::gate::state::{GateMode, GateSources, OnError, UnguardedForbid};
use tollkeeper_core::gate::tools::ToolSpec;
use tollkeeper_core::limits::{ARGUMENT_BYTES_MAX, ARGUMENT_BYTES_WAIT_MAX};
use tollkeeper_core::policy::entities::EntityData;
use tollkeeper_core::policy::parse::Source;

use std::cell::Cell;
use std::sync::Arc;

use crate::audit::PyAuditLog;
use crate::budget::{PyLedger, Shared};
use crate::convert::with_arguments_mut;
use crate::entities::PyEntity;
use crate::errors::{Error, denied};
use crate::fork::Born;
use crate::guard::guard;
use crate::hold::{PyDenial, PyHold};
use crate::policy::detached;
use crate::uid::uid_arg;

thread_local! {
    /// The gate's buffers of this thread; empty while they are in use.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Named text: the name, if it is a file, and the content.
type Named = (Option<String>, String);

/// A tool as the configuration has it: name, resource uid, JSON Schema text, names of path arguments, cost by unit.
type ToolArg = (String, String, Option<String>, Vec<String>, Option<Vec<(String, i64)>>);

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
}

impl SourcesArg {
    fn read(self, ledger: Option<&Bound<'_, PyLedger>>, log: Option<&Py<PyAuditLog>>) -> PyResult<Sources> {
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
        })
    }
}

fn tool_spec((name, resource, schema, paths, cost): ToolArg) -> PyResult<ToolSpec> {
    let resource = tollkeeper_core::uid::EntityUid::parse(&resource).map_err(Error::from)?;
    let cost = cost.map(|cost| read_cost(&name, cost)).transpose()?;
    Ok(ToolSpec { name, resource: Arc::new(resource), schema, paths, cost })
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
        }
    }
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
    /// Says the trace and span ids of where it is called, or nothing
    trace: Option<Py<PyAny>>,
}

#[pymethods]
impl PyGate {
    /// Args:
    ///     sources: Mapping with `policies`, `schema`, `entities`, `tools`, `mode`, `on_error`, `unguarded_forbid`,
    ///         `on_full`, `durability`.
    ///     instance: A random number that tells this gate's decisions from those of others.
    ///     current: Callable that returns the current scope or `None`.
    ///     ledger: What pays for actions.
    ///     log: What records decisions.
    ///     trace: Callable that returns the ids of the current trace and span, or `None`.
    #[new]
    #[pyo3(signature = (sources: "dict[str, typing.Any]", instance, current: "collections.abc.Callable[[], Scope | None]", ledger: "Ledger | None" = None, log: "AuditLog | None" = None, trace: "collections.abc.Callable[[], tuple[int, int] | None] | None" = None))]
    fn new(
        sources: &Bound<'_, PyAny>,
        instance: u64,
        current: Py<PyAny>,
        ledger: Option<&Bound<'_, PyLedger>>,
        log: Option<Py<PyAuditLog>>,
        trace: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let sources = sources.extract::<SourcesArg>()?.read(ledger, log.as_ref())?;
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
    #[pyo3(signature = (tool: "str", arguments: "collections.abc.Mapping[str, typing.Any] | None" = None, *, scope: "Scope | None" = None, parent: "str | None" = None))]
    fn check(
        slf: &Bound<'_, Self>,
        tool: &Bound<'_, PyString>,
        arguments: Option<&Bound<'_, PyAny>>,
        scope: Option<Bound<'_, PyScope>>,
        parent: Option<&str>,
    ) -> PyResult<PyDecision> {
        Self::check_within(slf, (tool, arguments), scope, parent, ARGUMENT_BYTES_MAX)
    }

    /// The same for callers that may wait: the arguments may have 4 MiB instead of 64 KiB.
    #[pyo3(name = "_check_large", signature = (tool: "str", arguments: "collections.abc.Mapping[str, typing.Any] | None" = None, *, scope: "Scope | None" = None, parent: "str | None" = None))]
    fn check_large(
        slf: &Bound<'_, Self>,
        tool: &Bound<'_, PyString>,
        arguments: Option<&Bound<'_, PyAny>>,
        scope: Option<Bound<'_, PyScope>>,
        parent: Option<&str>,
    ) -> PyResult<PyDecision> {
        Self::check_within(slf, (tool, arguments), scope, parent, ARGUMENT_BYTES_WAIT_MAX)
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
        let scope = scope.as_ref().map(|scope| &scope.get().inner);
        guard(|| {
            let mut scratch = Scratch::default();
            let inner = if let Some((model, prompt_tokens, max_tokens, n)) = model {
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
        let sources = sources.extract::<SourcesArg>()?.read(ledger, self.log.as_ref())?;
        guard(|| {
            self.born.check()?;
            detached(|| self.inner.reload(&sources.borrowed()).map(drop))
        })
    }

    /// Registers tools that a runtime describes: all of them or, if one is wrong, none.
    #[pyo3(name = "_register", signature = (tools: "list[tuple[str, str, str | None, list[str], list[tuple[str, int]] | None]]"))]
    fn register(&self, tools: Vec<ToolArg>) -> PyResult<()> {
        let specs = tools.into_iter().map(tool_spec).collect::<PyResult<Vec<ToolSpec>>>()?;
        guard(|| {
            self.born.check()?;
            detached(|| self.inner.register(&specs))
        })
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
        parent: Option<&str>,
        bytes_max: usize,
    ) -> PyResult<PyDecision> {
        let this = slf.get();
        let scope = Self::scope_of(slf, scope)?;
        let links = Links { parent, trace: this.trace(slf.py()) };
        let asked = Asked { scope: scope.as_ref().map(|scope| &scope.get().inner), links, bytes_max };
        let decide = || {
            if let Ok(tool) = tool.to_str() {
                return this.decide(tool, arguments, asked);
            }
            // A lone surrogate: no registered tool has such a name.
            let reason = "the tool's name is not text that can be encoded, so no tool has it".to_owned();
            this.refused("", (Code::InputUnknownTool, reason), asked)
        };
        let inner = if let Ok(decision) = catch_unwind(AssertUnwindSafe(decide)) {
            decision
        } else {
            // Relaxed: the flag guards no other data, and every later check of this thread sees it.
            this.poisoned.store(true, Ordering::Relaxed);
            guard(|| Ok::<_, PyErr>(this.inner.refuse(Code::InternalPanic, None)))?
        };
        Ok(PyDecision::new(inner, slf.clone().unbind()))
    }

    /// Where it is called, if anybody traces that. What cannot be said is left out: a check does not fail for it.
    #[inline]
    fn trace(&self, py: Python<'_>) -> Option<(u128, u64)> {
        let said = self.trace.as_ref()?.call0(py).ok()?;
        said.extract::<Option<(u128, u64)>>(py).ok().flatten()
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
        Ok(scope.filter(|scope| scope.get().gate.is(slf) && !scope.get().ended.load(Ordering::Relaxed)))
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
    ) -> PyResult<(PyDecision, Option<ModelCall>)> {
        let this = slf.get();
        let scope = Self::scope_of(slf, None)?;
        let links = Links { parent, trace: this.trace(slf.py()) };
        let decide = || {
            if let Some(code) = this.unusable() {
                return (this.inner.refuse(code, None), None);
            }
            let mut scratch = SCRATCH.take().unwrap_or_default();
            let scope = scope.as_ref().map(|scope| &scope.get().inner);
            let now_ms = this.inner.now_ms();
            let (decision, call) = this.inner.check_model_linked(scope, request, now_ms, links, &mut scratch);
            SCRATCH.set(Some(scratch));
            (decision, Some(call))
        };
        let (decision, call) = if let Ok(decided) = catch_unwind(AssertUnwindSafe(decide)) {
            decided
        } else {
            this.poisoned.store(true, Ordering::Relaxed);
            guard(|| Ok::<_, PyErr>((this.inner.refuse(Code::InternalPanic, None), None)))?
        };
        Ok((PyDecision::new(decision, slf.clone().unbind()), call))
    }

    #[inline]
    fn decide(&self, tool: &str, arguments: Option<&Bound<'_, PyAny>>, asked: Asked<'_>) -> Decision {
        if let Some(code) = self.unusable() {
            return self.inner.refuse(code, None);
        }
        let answer = with_arguments_mut(arguments, asked.bytes_max, |arguments| self.ask(tool, arguments, asked));
        answer.unwrap_or_else(|error| {
            let code = if error.code() == Code::InputTooLarge.slug() {
                Code::InputTooLarge
            } else {
                Code::InputUnrepresentable
            };
            self.refused(tool, (code, error.to_string()), asked)
        })
    }

    #[inline]
    fn ask(&self, tool: &str, arguments: &mut Arguments, asked: Asked<'_>) -> Decision {
        let object = arguments.root().is_some_and(|root| matches!(root.value(), Argument::Object));
        if !object {
            let reason = "arguments: a mapping with str keys is needed".to_owned();
            return self.refused(tool, (Code::InputUnrepresentable, reason), asked);
        }
        let mut scratch = SCRATCH.take().unwrap_or_default();
        let now_ms = self.inner.now_ms();
        let decision = self.inner.check_linked(asked.scope, tool, arguments, now_ms, asked.links, &mut scratch);
        SCRATCH.set(Some(scratch));
        decision
    }

    /// A denial for what came before the pipeline, recorded like any other.
    #[cold]
    fn refused(&self, tool: &str, refusal: (Code, String), asked: Asked<'_>) -> Decision {
        if let Some(code) = self.unusable() {
            return self.inner.refuse(code, None);
        }
        let mut scratch = SCRATCH.take().unwrap_or_default();
        let now_ms = self.inner.now_ms();
        let decision = self.inner.refuse_call(asked.scope, tool, refusal, now_ms, asked.links, &mut scratch);
        SCRATCH.set(Some(scratch));
        decision
    }
}

/// What a check is asked with beside the call itself.
#[derive(Clone, Copy)]
struct Asked<'a> {
    scope: Option<&'a Scope>,
    links: Links<'a>,
    bytes_max: usize,
}

/// The native half of a scope: who acts, in which session, narrowed to what.
#[pyclass(frozen, subclass, name = "Scope", module = "tollkeeper._native")]
pub(crate) struct PyScope {
    inner: Scope,
    gate: Py<PyGate>,
    /// The run is over: whoever kept the scope, or a context that still carries it, has none.
    ended: AtomicBool,
}

impl PyScope {
    /// Makes a run of a scope, and records that it has begun.
    fn begin(scope: Scope, gate: Py<PyGate>, outer: u64, request: Option<&str>) -> PyResult<Self> {
        let room = &gate.get().inner;
        let committed = request.filter(|_| gate.get().log.is_some()).map(commit).transpose().map_err(Error::from)?;
        let inner = scope.as_run(room.next_run(), committed.map(|(_, hash)| hash));
        let kept = committed.as_ref().zip(request).map(|((salt, _), text)| (salt, text));
        if gate.get().unusable().is_none() {
            room.record_run(&inner, outer, kept);
        }
        Ok(Self { inner, gate, ended: AtomicBool::new(false) })
    }
}

#[pymethods]
impl PyScope {
    /// Args:
    ///     gate: The gate the run goes through.
    ///     principal: Uid, or an `Entity` with attributes that the entity store does not have.
    ///     session: Id of the session.
    ///     labels: What the session has seen.
    ///     on_behalf_of: For whom the principal acts.
    ///     tools: The only tools this run may call.
    ///     budget: Path of the budget that pays.
    ///     outer: A scope that this one narrows; principal and session are then its own.
    ///     request: What the user asked for: the audit log commits to it, and keeps it outside the entries.
    #[new]
    #[pyo3(signature = (gate, principal: "EntityUid | Entity | str | None" = None, session = None, *, labels: "list[str]" = Vec::new(), on_behalf_of: "EntityUid | str | None" = None, tools: "list[str] | None" = None, budget: "str | None" = None, outer: "Scope | None" = None, request: "str | None" = None))]
    #[expect(clippy::too_many_arguments, reason = "as many as a run has")]
    fn new(
        gate: &Bound<'_, PyGate>,
        principal: Option<&Bound<'_, PyAny>>,
        session: Option<String>,
        labels: Vec<String>,
        on_behalf_of: Option<&Bound<'_, PyAny>>,
        tools: Option<Vec<String>>,
        budget: Option<String>,
        outer: Option<Bound<'_, Self>>,
        request: Option<&str>,
    ) -> PyResult<Self> {
        if let Some(outer) = outer {
            let gate = outer.get().gate.clone_ref(gate.py());
            return guard(|| {
                let (around, room) = (&outer.get().inner, &gate.get().inner);
                let inner = around.narrowed(tools.as_deref(), &labels, budget.as_deref(), &room.state());
                Self::begin(inner.map_err(Error::from)?, gate.clone_ref(outer.py()), around.run(), request)
            });
        }
        let (Some(principal), Some(session)) = (principal, session) else {
            return Err(PyTypeError::new_err("a scope needs a principal and a session"));
        };
        let principal = match principal.cast::<PyEntity>() {
            Ok(entity) => entity.get().data.clone(),
            Err(_) => EntityData::new(uid_arg(principal)?.into_owned()),
        };
        let on_behalf_of = on_behalf_of.map(|uid| uid_arg(uid).map(crate::uid::UidArg::into_owned)).transpose()?;
        guard(|| {
            let spec = ScopeSpec { principal, session, labels, on_behalf_of, tools, budget };
            let inner = Scope::new(spec, &gate.get().inner.state()).map_err(Error::from)?;
            Self::begin(inner, gate.clone().unbind(), 0, request)
        })
    }

    /// Ends the scope: checks with it are denied with `scope.missing` from now on.
    fn _end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// The gate the run goes through.
    #[getter]
    fn _gate(&self, py: Python<'_>) -> Py<PyGate> {
        self.gate.clone_ref(py)
    }

    /// Who acts.
    #[getter]
    fn principal(&self) -> String {
        self.inner.principal().to_string()
    }

    /// Id of the session.
    #[getter]
    fn session(&self) -> &str {
        self.inner.session()
    }

    /// For whom the principal acts, if for anybody.
    #[getter]
    fn on_behalf_of(&self) -> Option<String> {
        self.inner.on_behalf_of().map(ToString::to_string)
    }

    /// Path of the budget that pays, if anybody does.
    #[getter]
    fn budget(&self) -> Option<&str> {
        self.inner.budget()
    }

    /// Whether the run may call this tool at all, before any policy is asked.
    fn allows(&self, tool: &str) -> bool {
        self.inner.allows(tool)
    }

    fn __repr__(&self) -> String {
        format!("<Scope {} {:?}>", self.inner.principal(), self.inner.session())
    }
}

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
    fn new(inner: Decision, gate: Py<PyGate>) -> Self {
        Self { inner, gate, hold: PyOnceLock::new() }
    }

    /// The log and the record in it.
    fn record<'py>(&self, py: Python<'py>) -> Result<(Bound<'py, PyAuditLog>, Recorded), Error> {
        let none = || AuditError::Invalid {
            message: "the decision has no record: its gate keeps no audit log, or lets actions pass unrecorded"
                .to_owned(),
        };
        let log = self.gate.get().log.as_ref().ok_or_else(none)?;
        Ok((log.bind(py).clone(), self.inner.recorded().ok_or_else(none)?))
    }

    /// Records what became of the action. Never waits, and what cannot be recorded is what the log itself tells of.
    pub(crate) fn record_ending(&self, ending: &Ending<'_>) -> Result<bool, Error> {
        let gate = self.gate.get();
        if gate.unusable().is_some() {
            return Ok(false);
        }
        self.inner.record_outcome(ending, gate.inner.now_ms()).map_err(Error::from)
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

    /// What was reserved for the action: a `Hold`, or `None` if nothing was. Settle it with what was used. If nobody does,
    /// it ends in full when the decision and the hold are gone. A forked child has none: it is its parent's.
    #[getter]
    pub(crate) fn hold<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyHold>>> {
        let Some(handle) = self.inner.hold().filter(|handle| handle.is_own()) else { return Ok(None) };
        guard(|| {
            let hold = self.hold.get_or_try_init(py, || {
                let shared = Arc::new(Shared::of(handle.ledger()));
                let path = PyString::new(py, handle.path()).unbind();
                let hold = Py::new(py, PyHold::new(shared, path, handle.id(), Born::now()))?;
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

/// Every code a decision can have, with its meaning.
#[pyfunction]
#[pyo3(signature = () -> "list[tuple[str, str]]")]
pub(crate) fn decision_codes() -> Vec<(&'static str, &'static str)> {
    Code::ALL.iter().map(|code| (code.slug(), code.meaning())).collect()
}
