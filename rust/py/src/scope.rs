//! `Scope`: who acts, in which session, narrowed to what.
//!
//! The core narrows and decides. What this file adds is that a scope belongs to one gate and ends with its run, and
//! that a scope of another principal is none until the decision that makes it one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use tollkeeper_core::audit::entry::commit;
use tollkeeper_core::gate::decision::DecisionId;
use tollkeeper_core::gate::evidence::Begun;
use tollkeeper_core::gate::scope::{Narrow, RecordedScope, Scope, ScopeSpec};
use tollkeeper_core::limits::RUNS_NESTED_MAX;
use tollkeeper_core::policy::entities::EntityData;
use tollkeeper_core::value::Val;

use crate::entities::PyEntity;
use crate::errors::Error;
use crate::gate::PyGate;
use crate::guard::guard;
use crate::uid::uid_arg;

/// The native half of a scope: who acts, in which session, narrowed to what.
#[pyclass(frozen, subclass, name = "Scope", module = "tollkeeper._native")]
pub(crate) struct PyScope {
    inner: Scope,
    gate: Py<PyGate>,
    /// The run is over, or may not begin yet: whoever kept the scope, or a context that still carries it, has none.
    ended: Arc<AtomicBool>,
    /// The same of the scopes around it, none of which it outlives
    around: Vec<Arc<AtomicBool>>,
    /// What the run's entry says beside the scope, until it is recorded
    pending: Mutex<Option<Pending>>,
}

/// What is known of a run before it begins.
struct Pending {
    outer: u64,
    request: Option<([u8; 32], String)>,
}

impl PyScope {
    pub(crate) const fn inner(&self) -> &Scope {
        &self.inner
    }

    /// Whether the scope counts for this gate now.
    pub(crate) fn counts_for(&self, gate: &Bound<'_, PyGate>) -> bool {
        self.gate.is(gate) && !self.is_over()
    }

    /// Whether it or one around it has ended, or has not begun.
    fn is_over(&self) -> bool {
        // Relaxed: a flag that guards no other data.
        self.ended.load(Ordering::Relaxed) || self.around.iter().any(|outer| outer.load(Ordering::Relaxed))
    }

    /// Makes a run of a scope that has not begun.
    fn make(scope: Scope, gate: Py<PyGate>, outer: Option<&Self>, request: Option<String>) -> PyResult<Self> {
        let mut around = outer.map_or_else(Vec::new, |outer| outer.around.clone());
        around.extend(outer.map(|outer| Arc::clone(&outer.ended)));
        let outer = outer.map_or(0, |outer| outer.inner.run());
        let room = gate.get().room();
        let request = request.filter(|_| gate.get().has_log());
        let committed = request.as_deref().map(commit).transpose().map_err(Error::from)?;
        let inner = scope.as_run(room.next_run(), committed.map(|(_, hash)| hash));
        let kept = committed.zip(request).map(|((salt, _), text)| (salt, text));
        let pending = Mutex::new(Some(Pending { outer, request: kept }));
        Ok(Self { inner, gate, ended: Arc::new(AtomicBool::new(true)), around, pending })
    }

    /// Lets the run begin, and records that it has; once.
    pub(crate) fn begin(&self, decision: Option<DecisionId>) {
        let Some(pending) = self.pending.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let request = pending.request.as_ref().map(|(salt, text)| (salt, &**text));
        if self.gate.get().is_usable() {
            self.gate.get().room().record_run(&self.inner, &Begun { outer: pending.outer, decision, request });
        }
        self.ended.store(false, Ordering::Relaxed);
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
    ///     forbid: Texts of forbids that hold in this run.
    ///     budget: Path of the budget that pays.
    ///     expires_at: Seconds since 1970 after which the run is over.
    ///     outer: A scope that this one narrows; principal and session are then its own. With a principal as well, that
    ///         is to act for the outer one's, and the scope counts only once the gate has decided so.
    ///     request: What the user asked for: the audit log commits to it, and keeps it outside the entries.
    #[new]
    #[pyo3(signature = (gate, principal: "EntityUid | Entity | str | None" = None, session = None, *, labels: "list[str]" = Vec::new(), on_behalf_of: "EntityUid | str | None" = None, tools: "list[str] | None" = None, forbid: "list[str]" = Vec::new(), budget: "str | None" = None, expires_at: "float | None" = None, outer: "Scope | None" = None, request: "str | None" = None))]
    #[expect(clippy::too_many_arguments, reason = "as many as a run has")]
    fn new(
        gate: &Bound<'_, PyGate>,
        principal: Option<&Bound<'_, PyAny>>,
        session: Option<String>,
        labels: Vec<String>,
        on_behalf_of: Option<&Bound<'_, PyAny>>,
        tools: Option<Vec<String>>,
        forbid: Vec<String>,
        budget: Option<String>,
        expires_at: Option<f64>,
        outer: Option<Bound<'_, Self>>,
        request: Option<String>,
    ) -> PyResult<Self> {
        let py = gate.py();
        let expires_ms = expires_at.map(milliseconds).transpose()?;
        let narrow = Narrow { tools, forbid, labels, budget, expires_ms };
        let principal = principal.map(principal_arg).transpose()?;
        let on_behalf_of = on_behalf_of.map(|uid| uid_arg(uid).map(crate::uid::UidArg::into_owned)).transpose()?;
        if let Some(outer) = outer {
            if outer.get().is_over() {
                let message = "the run around it is over, or was not allowed to begin; start another one";
                return Err(PyValueError::new_err(message));
            }
            if outer.get().around.len() >= RUNS_NESTED_MAX {
                let message = format!("runs are nested {RUNS_NESTED_MAX} deep, which is the limit");
                return Err(PyValueError::new_err(message));
            }
            let gate = outer.get().gate.clone_ref(py);
            return guard(|| {
                let (around, room) = (&outer.get().inner, gate.get().room());
                let (state, now_ms) = (room.state(), room.now_ms());
                let delegated = principal.is_some();
                // Compiling forbids takes a thread and some time.
                let inner = py.detach(|| match principal {
                    Some(to) => around.delegated(to, &narrow, &state, now_ms),
                    None => around.narrowed(&narrow, &state, now_ms),
                });
                let scope = Self::make(inner.map_err(Error::from)?, gate.clone_ref(py), Some(outer.get()), request)?;
                if !delegated {
                    scope.begin(None);
                }
                Ok::<_, PyErr>(scope)
            });
        }
        let (Some(principal), Some(session)) = (principal, session) else {
            return Err(PyTypeError::new_err("a scope needs a principal and a session"));
        };
        guard(|| {
            let room = gate.get().room();
            let (state, now_ms) = (room.state(), room.now_ms());
            let spec = ScopeSpec { principal, session, on_behalf_of, narrow };
            let inner = py.detach(|| Scope::new(spec, &state, now_ms)).map_err(Error::from)?;
            let scope = Self::make(inner, gate.clone().unbind(), None, request)?;
            scope.begin(None);
            Ok::<_, PyErr>(scope)
        })
    }

    /// The scope of a decision that is made again, out of what a log says; nothing of it is recorded.
    ///
    /// Args:
    ///     gate: The gate that decides.
    ///     chain: Everybody who had to be allowed, outermost first: uids, or entities as the runs described them.
    ///     session: Id of the session.
    ///     labels: What it had seen.
    ///     on_behalf_of: For whom the last of the chain acted.
    ///     tools: The only tools the run might call.
    ///     forbids: For each run that came with forbids their texts.
    ///     expires_ms: When the run's time was over.
    #[staticmethod]
    #[pyo3(signature = (gate, chain: "list[EntityUid | Entity | str]", session, labels: "list[str]", *, on_behalf_of: "EntityUid | str | None" = None, tools: "list[str] | None" = None, forbids: "list[list[str]]" = Vec::new(), expires_ms = None))]
    #[expect(clippy::too_many_arguments, clippy::needless_pass_by_value, reason = "as many as a run has, as they come")]
    fn _recorded(
        gate: &Bound<'_, PyGate>,
        chain: Vec<Bound<'_, PyAny>>,
        session: String,
        labels: Vec<String>,
        on_behalf_of: Option<&Bound<'_, PyAny>>,
        tools: Option<Vec<String>>,
        forbids: Vec<Vec<String>>,
        expires_ms: Option<i64>,
    ) -> PyResult<Self> {
        let chain = chain.iter().map(principal_arg).collect::<PyResult<_>>()?;
        let on_behalf_of = on_behalf_of.map(|uid| uid_arg(uid).map(crate::uid::UidArg::into_owned)).transpose()?;
        let said = RecordedScope { chain, session, on_behalf_of, labels, tools, forbids, expires_ms };
        guard(|| {
            let state = gate.get().room().state();
            let inner = gate.py().detach(|| Scope::recorded(said, &state)).map_err(Error::from)?;
            let (ended, pending) = (Arc::new(AtomicBool::new(false)), Mutex::new(None));
            Ok::<_, PyErr>(Self { inner, gate: gate.clone().unbind(), ended, around: Vec::new(), pending })
        })
    }

    /// Ends the scope: checks with it are denied with `scope.missing` from now on.
    fn _end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Whether the run is over, or may not begin.
    #[getter]
    fn _over(&self) -> bool {
        self.is_over()
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

    /// Everybody who has to be allowed, outermost first; the last one acts.
    #[getter]
    fn chain(&self) -> Vec<String> {
        self.inner.chain().map(ToString::to_string).collect()
    }

    /// Id of the session.
    #[getter]
    fn session(&self) -> &str {
        self.inner.session()
    }

    /// What the session has seen by now, sorted.
    #[getter]
    fn labels(&self) -> Vec<String> {
        let Val::Set(labels) = self.inner.labels() else { return Vec::new() };
        let text = |label: &Val| if let Val::Str(text) = label { Some(text.to_string()) } else { None };
        let mut labels: Vec<String> = labels.iter().filter_map(text).collect();
        labels.sort_unstable();
        labels
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

fn principal_arg(principal: &Bound<'_, PyAny>) -> PyResult<EntityData> {
    match principal.cast::<PyEntity>() {
        Ok(entity) => Ok(entity.get().data.clone()),
        Err(_) => Ok(EntityData::new(uid_arg(principal)?.into_owned())),
    }
}

/// Seconds since 1970 as milliseconds.
#[expect(clippy::cast_possible_truncation, reason = "bounded by the comparison before it")]
fn milliseconds(seconds: f64) -> PyResult<i64> {
    // Beyond the year 9999 nobody means a time; a NaN is in no range.
    if (0.0..=253_402_300_800.0).contains(&seconds) {
        Ok((seconds * 1e3) as i64)
    } else {
        Err(PyValueError::new_err("expires_at is no time in seconds since 1970"))
    }
}
