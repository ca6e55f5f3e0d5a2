//! The gate: the only room that sees the others. One call asks it whether an action may go ahead.
//!
//! [`state`] is everything a check reads, loaded together; [`tools`] says what can be called, [`schema`] what its
//! arguments are; [`scope`] says who acts; [`check`] is the pipeline and [`decision`] its answer, with a [`code`].
//!
//! [`payer`] is who pays and the hold that a decision carries, [`model_call`] what a model call holds and is charged,
//! `budget_context` what policies see of budgets.
//!
//! [`evidence`] is what the audit log is told of all that.
//!
//! A gate knows nothing of transports, runtimes or files: it is handed texts, values, an open ledger and an open log.

mod budget_context;
pub mod check;
pub mod code;
pub mod control;
pub mod decision;
pub mod evidence;
mod follow;
pub mod model_call;
pub mod names;
pub mod payer;
pub mod schema;
pub mod scope;
pub mod state;
pub mod tools;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use self::decision::DecisionId;
use self::follow::Follower;
use self::scope::Scope;
use self::state::{GateSources, GateState};
use self::tools::ToolSpec;
use crate::audit::entry::{Kind, Private, Record};
use crate::audit::error::AuditError;
use crate::budget::clock::{Clock as _, SystemClock};
use crate::policy::error::{PolicyError, PolicyErrors};

/// A gate: a state that can be swapped, and a count of decisions.
#[derive(Debug)]
pub struct Gate {
    instance: u64,
    state: Arc<ArcSwap<GateState>>,
    decisions: AtomicU64,
    runs: AtomicU64,
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
        let state = Arc::new(ArcSwap::from(state));
        let follower = state.load().audit().map(|audit| Follower::start(&audit.log, &state));
        let (decisions, runs) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { instance, state, decisions, runs, changing: Mutex::new(()), _follower: follower })
    }

    /// Loads everything anew and swaps it in; tools registered at run time stay. If anything is wrong nothing changes.
    ///
    /// # Concurrency
    /// Checks go on with the old state until the new one is in place.
    pub fn reload(&self, sources: &GateSources<'_>) -> Result<Arc<GateState>, PolicyErrors> {
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let state = Arc::new(GateState::load_after(sources, Some(&self.state.load()))?);
        announce(sources, &state)?;
        self.state.store(Arc::clone(&state));
        drop(changing);
        Ok(state)
    }

    /// Registers tools that a runtime describes. All or none.
    pub fn register(&self, tools: &[ToolSpec]) -> Result<(), PolicyErrors> {
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state.load().with_tools(tools)?;
        if let Some(audit) = state.audit() {
            evidence::keep_tools(audit, tools).map_err(unkept)?;
        }
        self.state.store(Arc::new(state));
        drop(changing);
        Ok(())
    }

    /// The state that checks use now.
    pub fn state(&self) -> Arc<GateState> {
        self.state.load_full()
    }

    /// Milliseconds since 1970, UTC, by the ledger's clock if there is a ledger: the one reading of the clock per check.
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

    /// Records that a run has begun, with what the user asked for kept outside the log: salt and text of the commitment
    /// that the scope has. Nothing without a log.
    pub fn record_run(&self, scope: &Scope, outer: u64, request: Option<(&[u8; 32], &str)>) {
        let state = self.state.load();
        let Some(audit) = state.audit() else { return };
        let members = scope.fragments().run_members(outer, scope.tools(), scope.budget());
        let private = request.map_or(Private::None, |(salt, text)| Private::Salted { salt, bytes: text.as_bytes() });
        let now_ms = self.now_ms();
        let record = Record { kind: Kind::Run, time_ms: now_ms, head: &members, tail: &[], private };
        if audit.log.append_later(&record).is_err() {
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
