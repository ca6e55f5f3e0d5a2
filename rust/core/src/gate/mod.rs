//! The gate: the only room that sees the others. One call asks it whether an action may go ahead.
//!
//! [`state`] is everything a check reads, loaded together; [`tools`] says what can be called, [`schema`] what its
//! arguments are; [`scope`] says who acts; [`check`] is the pipeline and [`decision`] its answer, with a [`code`].
//!
//! [`payer`] is who pays and the hold that a decision carries, [`model_call`] what a model call holds and is charged,
//! `budget_context` what policies see of budgets.
//!
//! A gate knows nothing of transports, runtimes or files: it is handed texts, values and an open ledger. What it does not
//! do yet is listed in [`check`]: audit has its place in the pipeline and nothing stands in for it.

mod budget_context;
pub mod check;
pub mod code;
pub mod decision;
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
use self::state::{GateSources, GateState};
use self::tools::ToolSpec;
use crate::budget::clock::{Clock as _, SystemClock};
use crate::policy::error::PolicyErrors;

/// A gate: a state that can be swapped, and a count of decisions.
#[derive(Debug)]
pub struct Gate {
    instance: u64,
    state: ArcSwap<GateState>,
    decisions: AtomicU64,
    /// Held while a new state is built, so that a reload and a registration do not undo each other. No check takes it.
    changing: Mutex<()>,
}

impl Gate {
    /// Loads a gate. `instance` tells its decisions from those of other gates: a random number, passed in.
    pub fn open(sources: &GateSources<'_>, instance: u64) -> Result<Self, PolicyErrors> {
        let state = ArcSwap::from_pointee(GateState::load(sources)?);
        Ok(Self { instance, state, decisions: AtomicU64::new(0), changing: Mutex::new(()) })
    }

    /// Loads everything anew and swaps it in; tools registered at run time stay. If anything is wrong nothing changes.
    ///
    /// # Concurrency
    /// Checks go on with the old state until the new one is in place.
    pub fn reload(&self, sources: &GateSources<'_>) -> Result<Arc<GateState>, PolicyErrors> {
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let state = Arc::new(GateState::load_after(sources, Some(&self.state.load()))?);
        self.state.store(Arc::clone(&state));
        drop(changing);
        Ok(state)
    }

    /// Registers tools that a runtime describes. All or none.
    pub fn register(&self, tools: &[ToolSpec]) -> Result<(), PolicyErrors> {
        let changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state.load().with_tools(tools)?;
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

    fn next_id(&self) -> DecisionId {
        // A count: nothing else is ordered by it.
        let before = self.decisions.fetch_add(1, Ordering::Relaxed);
        DecisionId { gate: self.instance, number: before.wrapping_add(1) }
    }
}
