//! The gate: the only room that sees the others. One call asks it whether an action may go ahead.
//!
//! [`state`] is everything a check reads, loaded together; [`tools`] says what can be called, [`schema`] what its
//! arguments are, `descriptions` whose word counts; [`scope`] says who acts; [`check`] is the pipeline and [`decision`]
//! its answer, with a [`code`].
//!
//! [`payer`] is who pays and the hold that a decision carries, [`model_call`] what a model call holds and is charged,
//! `budget_context` what policies see of budgets.
//!
//! [`evidence`] is what the audit log is told of all that.
//!
//! A gate knows nothing of transports, runtimes or files: it is handed texts, values, an open ledger and an open log.

pub mod approve;
pub mod asserted;
mod budget_context;
pub mod check;
pub mod code;
pub mod control;
pub mod decision;
mod descriptions;
pub mod evidence;
mod follow;
mod may_call;
pub mod model_call;
pub mod names;
pub mod narrowing;
pub mod payer;
pub mod schema;
pub mod scope;
mod session;
pub mod standing;
pub mod state;
pub mod tools;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use self::control::{ControlError, Counters};
use self::decision::DecisionId;
use self::evidence::Begun;
use self::follow::{Follower, Observed};
use self::scope::Scope;
use self::state::{GateMode, GateSources, GateState};
use self::tools::ToolSpec;
use crate::audit::entry::{Kind, Private, Record};
use crate::audit::error::AuditError;
use crate::budget::clock::{Clock as _, SystemClock};
use crate::limits::WITHHELD_REASON_BYTES_MAX;
use crate::policy::error::{PolicyError, PolicyErrors};

/// How often a gate looks whether the shared file still has its name.
const LOOK_EACH_MS: u64 = 1_000;

/// A gate: a state that can be swapped, and a count of decisions.
#[derive(Debug)]
pub struct Gate {
    instance: u64,
    state: Arc<ArcSwap<GateState>>,
    decisions: AtomicU64,
    runs: AtomicU64,
    /// What the host's operators see of this gate
    counters: Counters,
    observed: Arc<Observed>,
    /// When it was last seen that the shared file still has its name
    looked_ms: AtomicI64,
    /// Held while a new state is built, so that a reload and a registration do not undo each other. No check takes it.
    changing: Mutex<()>,
    /// Records what happens to the ledger
    _follower: Option<Follower>,
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn unkept(error: AuditError) -> PolicyErrors {
    PolicyError::new(error.code(), error.to_string()).into()
}

/// Keeps what decides from now on, and records that it does. What cannot be recorded does not decide.
fn announce(sources: &GateSources<'_>, state: &GateState) -> Result<(), PolicyErrors> {
    let Some(audit) = state.audit() else { return Ok(()) };
    let now_ms = state.ledger().map_or_else(|| SystemClock.wall_ms(), |ledger| ledger.clock().wall_ms());
    evidence::announce(audit, sources, state, now_ms).map_err(unkept)
}

impl Gate {
    /// Loads a gate. `instance` tells its decisions from those of other gates: a random number, passed in.
    pub fn open(sources: &GateSources<'_>, instance: u64) -> Result<Self, PolicyErrors> {
        let state = Arc::new(GateState::load(sources)?);
        announce(sources, &state)?;
        let now_ms = SystemClock.wall_ms();
        let refuse = |error: ControlError| PolicyErrors::from(PolicyError::new(error.code(), error.to_string()));
        let counters = state.control().join(now_ms).map_err(refuse)?;
        counters.set_bundle(state.bundle(), state.mode() == GateMode::Shadow);
        let observed = Arc::new(Observed::default());
        let state = Arc::new(ArcSwap::from(state));
        let follower = state.load().audit().map(|audit| Follower::start(&audit.log, &state, &observed));
        let (decisions, runs) = (AtomicU64::new(0), AtomicU64::new(0));
        let (changing, looked_ms) = (Mutex::new(()), AtomicI64::new(now_ms));
        Ok(Self { instance, state, decisions, runs, counters, observed, looked_ms, changing, _follower: follower })
    }

    /// Notes that the table of revocations has changed, and says so in the log: once for each of its states, and before
    /// anything is decided under it.
    #[inline]
    fn observe(&self, state: &GateState, word: u64, now_ms: i64) {
        if !self.observed.is(word) {
            self.note_change(state, now_ms);
        }
    }

    /// Looks once a second whether the file of revocations still has its name. Also after the clock was set back.
    #[inline]
    fn look(&self, state: &GateState, now_ms: i64) {
        if now_ms.abs_diff(self.looked_ms.load(Ordering::Relaxed)) >= LOOK_EACH_MS {
            self.check_name(state, now_ms);
        }
    }

    #[cold]
    fn check_name(&self, state: &GateState, now_ms: i64) {
        self.looked_ms.store(now_ms, Ordering::Relaxed);
        state.control().check_name(now_ms);
    }

    #[cold]
    fn note_change(&self, state: &GateState, now_ms: i64) {
        self.counters.observed(self.observed.note(state, now_ms));
    }

    /// What the host's operators see of this gate.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Loads everything anew and swaps it in; tools registered at run time stay. If anything is wrong nothing changes.
    ///
    /// # Concurrency
    /// Checks go on with the old state until the new one is in place.
    pub fn reload(&self, sources: &GateSources<'_>) -> Result<Arc<GateState>, PolicyErrors> {
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let state = Arc::new(GateState::load_after(sources, Some(&self.state.load()))?);
        if let Some(audit) = state.audit() {
            // A schema that a tool of the files has from a runtime is in no bundle.
            evidence::keep_tools(audit, state.beside_files(None)).map_err(unkept)?;
        }
        announce(sources, &state)?;
        self.counters.set_bundle(state.bundle(), state.mode() == GateMode::Shadow);
        self.state.store(Arc::clone(&state));
        drop(changing);
        Ok(state)
    }

    /// Says in the log that something was to be loaded and could not be. Nothing without a log.
    ///
    /// # Errors
    /// The log cannot take it.
    pub fn record_failed_load(&self, reason: &str) -> Result<(), AuditError> {
        let state = self.state.load();
        let Some(audit) = state.audit() else { return Ok(()) };
        evidence::record_failed_load(audit, &state, reason, self.now_ms())
    }

    /// Registers tools that a runtime describes: all, or none if one is wrong. What is known already changes nothing;
    /// another description of a tool replaces the one before, for prepared actions too. A tool of the configuration
    /// stays what the file says, and takes no more than a schema where the file has none.
    ///
    /// # Concurrency
    /// Checks go on with the old tools until all new ones are in place.
    pub fn register(&self, tools: &[ToolSpec]) -> Result<(), PolicyErrors> {
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.state.load();
        if let Some(state) = before.with_tools(tools)? {
            if let Some(audit) = state.audit() {
                evidence::keep_tools(audit, state.beside_files(Some(&before))).map_err(unkept)?;
            }
            self.state.store(Arc::new(state));
        }
        drop(changing);
        Ok(())
    }

    /// Refuses calls of these names from now on, registered or not, with [`code::Code::ToolChanged`] and the reason
    /// that is given, cut at [`WITHHELD_REASON_BYTES_MAX`]. Whatever was withheld before is not any more; a reload and
    /// a registration leave it as it is.
    ///
    /// # Concurrency
    /// As [`Gate::register`].
    pub fn withhold<'a>(&self, tools: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let cut = |reason| evidence::shortened(reason, WITHHELD_REASON_BYTES_MAX).into();
        let withheld = tools.into_iter().map(|(name, reason)| (name.into(), cut(reason))).collect();
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = self.state.load().with_withheld(withheld) {
            self.state.store(Arc::new(state));
        }
        drop(changing);
    }

    /// The state that checks use now.
    pub fn state(&self) -> Arc<GateState> {
        self.state.load_full()
    }

    /// Milliseconds since 1970, UTC, by the ledger's clock if there is a ledger: the one reading of the clock per
    /// check.
    #[inline]
    pub fn now_ms(&self) -> i64 {
        self.state.load().ledger().map_or_else(|| SystemClock.wall_ms(), |ledger| ledger.clock().wall_ms())
    }

    /// The gate's instance number.
    pub const fn instance(&self) -> u64 {
        self.instance
    }

    /// A number for a run, counted from 1.
    pub fn next_run(&self) -> u64 {
        self.runs.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// Records that a run has begun. What the user asked for and the forbids of the run are kept outside the log.
    /// Nothing without a log.
    pub fn record_run(&self, scope: &Scope, begun: &Begun<'_>) {
        let state = self.state.load();
        let Some(audit) = state.audit() else { return };
        let now_ms = self.now_ms();
        let members = scope.fragments().run_members(scope, begun, now_ms);
        let private =
            begun.request.map_or(Private::None, |(salt, text)| Private::Salted { salt, bytes: text.as_bytes() });
        let record = Record { kind: Kind::Run, time_ms: now_ms, head: &members, tail: &[], private };
        let kept = scope.narrowings().iter().try_for_each(|own| audit.log.keep(own.document()).map(drop));
        if kept.and_then(|()| audit.log.append_later(&record).map(drop)).is_err() {
            // Whatever the run tries to do is denied for the same reason.
            audit.log.count_unlogged(false, now_ms);
        }
    }

    fn next_id(&self) -> DecisionId {
        // A count: nothing else is ordered by it.
        let before = self.decisions.fetch_add(1, Ordering::Relaxed);
        DecisionId { gate: self.instance, number: before.wrapping_add(1) }
    }
}
