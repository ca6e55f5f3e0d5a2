//! Who pays for a run, and the hold that a decision carries.
//!
//! A run may name a budget; every action it is allowed is reserved there first. What is reserved ends exactly once: by
//! a report, or by the unreported rule when whoever holds it lets go. In shadow mode the cells are those of a second
//! ledger of the same budgets in this process, and nothing stops.
//!
//! Nothing here knows policies. What a budget says to them is made in `budget_context`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::{ArcSwapOption, Guard};

use super::decision::DecisionId;
use super::standing::Standing;
use super::state::{GateMode, GateState};
use crate::budget::denial::{Denial, DenialKind};
use crate::budget::ledger::{Ledger, Node, Options};
use crate::budget::unit::Amounts;
use crate::budget::{Charge, HoldId};
use crate::map;
use crate::policy::error::{PolicyError, PolicyErrors};

/// Budgets named in a sentence; the rest are counted.
const NAMED_MAX: usize = 8;

/// The budget that a run names.
#[derive(Debug)]
pub(super) struct Payer {
    purse: Arc<Purse>,
    /// Found once per state; a reload makes the next check of each run look again
    found: ArcSwapOption<Found>,
}

/// What a hold has to know of the run that made it.
#[derive(Debug)]
struct Purse {
    path: Box<str>,
    /// Whether the run may go on
    standing: Arc<Standing>,
}

/// What pays in one state: whoever holds something of it keeps this one thing alive, and not each of its parts.
#[derive(Debug)]
struct Found {
    generation: u64,
    ledger: Arc<Ledger>,
    node: Arc<Node>,
    purse: Arc<Purse>,
}

impl Payer {
    /// Finds the budget, and makes it if a template says so.
    pub(super) fn new(path: &str, standing: &Arc<Standing>, state: &GateState) -> Result<Self, PolicyErrors> {
        let purse = Purse { path: path.into(), standing: Arc::clone(standing) };
        let payer = Self { purse: Arc::new(purse), found: ArcSwapOption::empty() };
        match payer.look(state) {
            Ok(_) => Ok(payer),
            Err(denial) => {
                let known = state.cells().map_or_else(String::new, |ledger| known_paths(ledger));
                let help = if known.is_empty() { None } else { Some(format!("budgets of this gate: {known}")) };
                let error = PolicyError::new("budget.unavailable", denial.reason());
                Err(match help {
                    Some(help) => error.help(help),
                    None => error,
                }
                .into())
            }
        }
    }

    /// The payer of a run inside this one's: the same budget or one below it.
    pub(super) fn narrowed(
        outer: Option<&Self>,
        path: Option<&str>,
        standing: &Arc<Standing>,
        state: &GateState,
    ) -> Result<Option<Self>, PolicyErrors> {
        let refuse = |message: String| Err(PolicyError::new("budget.unavailable", message).into());
        match (outer, path) {
            (None, None) => Ok(None),
            (Some(outer), None) => {
                let purse = Purse { path: outer.path().into(), standing: Arc::clone(standing) };
                Ok(Some(Self { purse: Arc::new(purse), found: ArcSwapOption::empty() }))
            }
            (None, Some(path)) => {
                let path = super::names::shown(path);
                refuse(format!(
                    "a run inside one without a budget cannot name `{path}`; name it where the outer run starts"
                ))
            }
            (Some(outer), Some(path)) => {
                let below =
                    path.strip_prefix(outer.path()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
                if below {
                    return Self::new(path, standing, state).map(Some);
                }
                let (path, outer) = (super::names::shown(path), outer.path());
                refuse(format!(
                    "a run inside one that `{outer}` pays for cannot name `{path}`: it is not `{outer}` or below it"
                ))
            }
        }
    }

    /// The budget's path.
    pub(super) fn path(&self) -> &str {
        &self.purse.path
    }

    #[inline]
    fn find(&self, state: &GateState) -> Result<Guard<Option<Arc<Found>>>, Box<Denial>> {
        let found = self.found.load();
        if found.as_ref().is_some_and(|found| found.generation == state.generation()) {
            return Ok(found);
        }
        self.look(state)
    }

    #[cold]
    fn look(&self, state: &GateState) -> Result<Guard<Option<Arc<Found>>>, Box<Denial>> {
        let ledger = state.cells().ok_or_else(|| {
            let mut message =
                "this gate has no ledger; add to tollkeeper.toml: [budget] file = \"budgets.toml\"".to_owned();
            if let Some(notice) = state.notice() {
                message.push_str("; ");
                message.push_str(notice);
            }
            Box::new(unavailable(self.path(), message))
        })?;
        let node = ledger.node(self.path())?;
        let (ledger, purse) = (Arc::clone(ledger), Arc::clone(&self.purse));
        self.found.store(Some(Arc::new(Found { generation: state.generation(), ledger, node, purse })));
        Ok(self.found.load())
    }

    /// Runs `work` with the ledger that pays and the budget in it.
    #[inline]
    pub(super) fn with<T>(
        &self,
        state: &GateState,
        work: impl FnOnce(&Arc<Ledger>, &Node) -> Result<T, Box<Denial>>,
    ) -> Result<T, Box<Denial>> {
        self.with_found(state, |found| work(&found.ledger, &found.node))
    }

    #[inline]
    fn with_found<T>(
        &self,
        state: &GateState,
        work: impl FnOnce(&Arc<Found>) -> Result<T, Box<Denial>>,
    ) -> Result<T, Box<Denial>> {
        match self.find(state)?.as_ref() {
            Some(found) => work(found),
            None => Err(Box::new(unavailable(self.path(), "this gate has no ledger".to_owned()))),
        }
    }
}

fn known_paths(ledger: &Ledger) -> String {
    let paths = ledger.paths();
    let rest = paths.len().saturating_sub(NAMED_MAX);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    let shown: Vec<String> = paths.iter().take(NAMED_MAX).map(|path| format!("`{path}`")).collect();
    format!("{}{more}", shown.join(", "))
}

fn unavailable(path: &str, message: String) -> Denial {
    Denial::of(DenialKind::Unavailable, path, message)
}

/// The denial of something that costs in a run that nobody pays for.
#[cold]
pub(super) fn no_payer(state: &GateState, what: &str) -> Denial {
    let message = match state.cells() {
        None => format!(
            "{what} has a cost, and this gate has no ledger to charge; add to tollkeeper.toml: [budget] file = \"budgets.toml\""
        ),
        Some(ledger) => format!(
            "{what} has a cost, and this run has no budget to pay for it; start the run with budget=, one of {}",
            known_paths(ledger)
        ),
    };
    unavailable("", message)
}

/// What the budget step came to.
#[derive(Debug)]
pub(super) enum Paid {
    /// Nothing to pay
    Free,
    /// Reserved
    Held(Reservation),
    /// Refused; in shadow mode reserved all the same
    Refused(Box<Denial>, Option<Reservation>),
}

/// Reserves at the run's budget: in shadow mode whether or not it fits.
#[inline]
pub(super) fn reserve(state: &GateState, payer: &Payer, amounts: &Amounts, decision: DecisionId, now_ms: i64) -> Paid {
    let shadow = state.mode() == GateMode::Shadow;
    let mut refused = None;
    let held = payer.with_found(state, |found| {
        if shadow {
            refused = worst(found.ledger.explain(&found.node, amounts));
        }
        let tag = [decision.gate, decision.number];
        let options = Options { dispatched: true, forced: shadow, tag, ..Options::default() };
        let id = found.ledger.reserve(&found.node, amounts, now_ms, options)?;
        let hold = Handle { found: Arc::clone(found), id, forks: map::fork_generation(), shadow };
        Ok(Reservation { hold, handed_over: AtomicBool::new(false) })
    });
    match (held, refused) {
        (Ok(held), None) => Paid::Held(held),
        (Ok(held), Some(denial)) => Paid::Refused(denial, Some(held)),
        (Err(denial), _) => Paid::Refused(denial, None),
    }
}

/// Of all that would refuse, what a reserve would name: the one that refuses longest, nearest to the leaf.
fn worst(denials: Vec<Denial>) -> Option<Box<Denial>> {
    let rank = |denial: &Denial| match denial.kind {
        DenialKind::TooLarge => (2, i64::MAX),
        DenialKind::Exhausted => (1, denial.retry_after_ms.unwrap_or(i64::MAX)),
        _ => (0, denial.retry_after_ms.unwrap_or(0)),
    };
    denials.into_iter().rev().max_by_key(rank).map(Box::new)
}

/// Names a hold and the ledger it is in. It ends nothing by itself.
#[derive(Debug, Clone)]
pub struct Handle {
    found: Arc<Found>,
    pub(super) id: HoldId,
    /// The fork generation it was made in
    forks: u64,
    pub(super) shadow: bool,
}

impl Handle {
    /// The ledger.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.found.ledger
    }

    /// The hold in it.
    pub const fn id(&self) -> HoldId {
        self.id
    }

    /// Path of the budget.
    pub fn path(&self) -> &str {
        &self.found.purse.path
    }

    /// Whether the run that made it may go on.
    pub fn standing(&self) -> &Arc<Standing> {
        &self.found.purse.standing
    }

    /// Whether it is of the ledger of shadow mode, which stops nothing.
    pub const fn is_shadow(&self) -> bool {
        self.shadow
    }

    /// Whether it was made in this process: a forked child has a copy, and the hold stays its parent's.
    pub fn is_own(&self) -> bool {
        self.forks == map::fork_generation()
    }

    /// Notes what was used; false says stop.
    pub(super) fn charge(&self, amounts: &Amounts) -> bool {
        if !self.is_own() {
            return false;
        }
        self.found.ledger.charge(self.id, amounts) == Charge::GoOn || self.shadow
    }

    /// Ends the hold as one of which nobody says what was used; false if it has ended.
    pub fn end_unreported(&self) -> bool {
        self.is_own() && self.found.ledger.end_unreported(self.id)
    }

    /// Ends the hold of an action that never began: what was not charged goes back, requests stay spent.
    pub fn release(&self) -> bool {
        self.is_own() && self.found.ledger.release(self.id)
    }
}

/// A hold that ends by the unreported rule when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    hold: Handle,
    /// Somebody else ends it
    handed_over: AtomicBool,
}

impl Reservation {
    /// Its name.
    pub const fn hold(&self) -> &Handle {
        &self.hold
    }

    /// Leaves the ending to whoever asked.
    pub(super) fn hand_over(&self) {
        // Relaxed: whoever drops the reservation has seen what came before.
        self.handed_over.store(true, Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.handed_over.load(Ordering::Relaxed) {
            self.hold.end_unreported();
        }
    }
}
