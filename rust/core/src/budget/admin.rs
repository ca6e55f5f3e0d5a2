//! What operators do with a ledger: look at it, explain a denial, change a limit, recover, make durable, close.
//!
//! None of this stands in a request's way; it may take the ledger's lock, look at every hold, or go to the disk.

use std::path::Path;

use super::denial::{Denial, DenialKind};
use super::durable::Image;
use super::error::BudgetError;
use super::event::{Event, EventKind};
use super::hold::{Hand, HoldId, Refused, read, unreported};
use super::layout::{FLAG_DISPATCHED, FLAG_METER, NodeEntry, Period, Phase, Slot, State, Word};
use super::ledger::{Ledger, Node, ids_at};
use super::period::{Liveness, NoPeriod, add, cell, units_of};
use super::recover::{Healed, stranded};
use super::store::{self, LOCK_IMAGE, io_error, owner_lock};
use super::tree::{Limits, Plan};
use super::unit::{Amounts, UNITS, Unit};
use super::window::Window;
use crate::limits::LIMIT_MAX;
use crate::map;
use crate::sync::AtomicI64;
use crate::sync::Ordering::{Acquire, Relaxed, Release, SeqCst};

/// When a denial that only other holds caused is worth another try.
const CONTENDED_RETRY_MS: i64 = 50;

/// A cell as a report shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// What is counted
    pub unit: Unit,
    /// Over which time
    pub window: Window,
    /// The most that may be used
    pub limit: i64,
    /// How much more is let through
    pub overdraft: i64,
    /// Spent for good
    pub used: i64,
    /// Held by live holds
    pub held: i64,
    /// What a reserve may take; negative is debt
    pub available: i64,
    /// Lost to a process that died in the middle of a step, until a recovery settles it
    pub stranded: i64,
    /// When the window ends, in milliseconds since 1970
    pub window_end_ms: Option<i64>,
}

/// A hold as a report shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldState {
    /// Its name
    pub id: HoldId,
    /// Its budget
    pub path: String,
    /// What is held
    pub amounts: [i64; UNITS],
    /// What was charged so far
    pub charged: [i64; UNITS],
    /// When it was granted
    pub granted_ms: i64,
    /// When it is over
    pub deadline_ms: Option<i64>,
    /// What its maker calls it: a gate gives the numbers of its decision; zeros for nothing
    pub tag: [u64; 2],
    /// The process that has it, in its own namespace
    pub pid: u32,
    /// Whether that process lives
    pub alive: bool,
    /// Whether the work has begun
    pub dispatched: bool,
    /// Whether a meter has it
    pub meter: bool,
}

/// What a recovery did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Recovery {
    /// Processes that were gone
    pub processes: usize,
    /// Holds of theirs that were ended
    pub holds: usize,
    /// Holds past their deadline that were ended
    pub expired: usize,
    /// What became of units that were stranded
    pub healed: Healed,
}

/// The counts of a cell at one moment, as far as one can tell while others move.
#[derive(Debug, Clone, Copy)]
struct Counted {
    limit: i64,
    overdraft: i64,
    used: i64,
    available: i64,
    held: i64,
    stranded: i64,
}

impl Ledger {
    /// What a budget's own cells have, in the windows of now.
    pub fn usage(&self, node: &Node) -> Vec<Usage> {
        let now_ms = self.now_ms();
        let own = node.steps().iter().filter(|step| step.node == node.index());
        let mut usage = Vec::new();
        for step in own {
            let id = step.window.id_at(now_ms);
            for unit in units_of(step.units) {
                let (Some(unit), Some(counted)) =
                    (Unit::ALL.get(unit).copied(), self.counted(step.node, step.window, id, unit))
                else {
                    continue;
                };
                let Counted { limit, overdraft, used, available, held, stranded } = counted;
                let window_end_ms = step.window.end_ms(id);
                let window = step.window;
                usage.push(Usage { unit, window, limit, overdraft, used, held, available, stranded, window_end_ms });
            }
        }
        usage
    }

    /// The counts of a cell; those of an untouched one if its window was not opened yet.
    fn counted(&self, node: u32, window: Window, id: u32, unit: usize) -> Option<Counted> {
        let entry = self.memory.nodes.get(node as usize)?;
        let mut ring = self.memory.ring(entry, window);
        let open = ring.find(|period| Word(period.word.load(Acquire)).id_plus_1() == id.wrapping_add(1));
        let Some(period) = open else {
            let of = |table: &[super::layout::Counts; 5]| {
                table.get(window.index()).and_then(|row| row.get(unit)).map_or(0, |count| count.load(Relaxed))
            };
            let (limit, overdraft) = (of(&entry.limit), of(&entry.overdraft));
            let available = limit.saturating_add(overdraft);
            return Some(Counted { limit, overdraft, used: 0, available, held: 0, stranded: 0 });
        };
        Some(self.count(period, unit))
    }

    fn count(&self, period: &Period, unit: usize) -> Counted {
        let of = |counts: &super::layout::Counts| cell(counts, unit).map_or(0, AtomicI64::load_relaxed);
        let mut tries = 0_u32;
        // Two counts cannot be read at once: look until one stays the same around the other.
        let (used, available) = loop {
            let used = of(&period.used);
            let available = of(&period.free);
            if of(&period.used) == used || tries >= 100 {
                break (used, available);
            }
            tries = tries.wrapping_add(1);
        };
        let (limit, overdraft) = (of(&period.limit), of(&period.overdraft));
        if unit == Unit::Requests.index() {
            let used = limit.saturating_add(overdraft).saturating_sub(available);
            return Counted { limit, overdraft, used, available, held: 0, stranded: 0 };
        }
        let rest = limit.saturating_add(overdraft).saturating_sub(used).saturating_sub(available);
        let doubt = of(&period.doubt_free).saturating_add(of(&period.doubt_used));
        let stranded = if doubt == 0 { 0 } else { self.stranded(period, unit).unwrap_or(doubt.min(rest)) };
        // A hold that ends between the two reads would show as less than nothing.
        let held = rest.saturating_sub(stranded).max(0);
        Counted { limit, overdraft, used, available, held, stranded }
    }

    fn stranded(&self, period: &Period, unit: usize) -> Option<i64> {
        let place = self.memory.periods.iter().position(|other| std::ptr::eq(other, period))?;
        let place = u32::try_from(place).ok()?;
        let (_, held) = self.memory.scan(Some(&[place]))?;
        stranded(period, held.get(&place)).get(unit).copied().map(|units| units.max(0))
    }

    /// Every cell that would refuse `amounts` now, leaf to root; none if they fit.
    pub fn explain(&self, node: &Node, amounts: &Amounts) -> Vec<Denial> {
        if let (true, Ok(hand)) = (self.any_deadlines(), self.hand()) {
            self.end_expired(&hand);
        }
        self.refusals(node, amounts, self.now_ms())
    }

    fn refusals(&self, node: &Node, amounts: &Amounts, now_ms: i64) -> Vec<Denial> {
        let ids = ids_at(now_ms, node.steps());
        let mut refusals = Vec::new();
        for step in node.steps() {
            let id = ids.get(step.window.index()).copied().unwrap_or(0);
            for unit in units_of(step.units) {
                let requested = amounts.0.get(unit).copied().unwrap_or(0);
                if requested == 0 {
                    continue;
                }
                let Some(counted) = self.counted(step.node, step.window, id, unit) else { continue };
                if requested > counted.available {
                    refusals.push(self.refusal(step.node, step.window, id, unit, requested, &counted));
                }
            }
        }
        refusals
    }

    fn refusal(&self, node: u32, window: Window, id: u32, unit: usize, requested: i64, counted: &Counted) -> Denial {
        let most = counted.limit.saturating_add(counted.overdraft);
        let ends_ms = window.end_ms(id).map(|end| end.saturating_sub(self.now_ms()).max(0));
        let (kind, retry_after_ms) = if requested > most {
            (DenialKind::TooLarge, None)
        } else if counted.used.saturating_add(counted.stranded).saturating_add(requested) > most {
            (DenialKind::Exhausted, ends_ms)
        } else {
            (DenialKind::Contended, Some(ends_ms.map_or(CONTENDED_RETRY_MS, |ms| ms.min(CONTENDED_RETRY_MS))))
        };
        let path = self.memory.nodes.get(node as usize).and_then(NodeEntry::path).unwrap_or_default();
        Denial {
            kind,
            path,
            unit: Unit::ALL.get(unit).copied(),
            window: Some(window),
            requested,
            available: counted.available,
            limit: counted.limit,
            used: counted.used,
            held: counted.held,
            retry_after_ms,
            message: None,
        }
    }

    /// Why a reserve took nothing: of all the cells that refuse, the one that will refuse longest.
    #[cold]
    pub(super) fn diagnose(&self, node: &Node, amounts: &Amounts, now_ms: i64, refused: Refused) -> Denial {
        let contended = |message: String| Denial {
            retry_after_ms: Some(CONTENDED_RETRY_MS),
            ..Denial::of(DenialKind::Contended, node.path(), message)
        };
        match refused {
            Refused::Slots => {
                let most = self.memory.slots.len();
                return contended(format!("all {most} holds of the ledger are in use; settle or release some"));
            }
            Refused::Period(at, NoPeriod::Pinned) => {
                let window = node.steps().get(at).map_or("window", |step| step.window.name());
                let message = "are pinned by holds of windows that have ended; settle or release them";
                return contended(format!("budget `{}`: all periods per {window} {message}", node.path()));
            }
            Refused::Period(_, NoPeriod::Damaged) => {
                let message = "the ledger is damaged; see tollkeeper budget show".to_owned();
                return Denial::of(DenialKind::Unavailable, node.path(), message);
            }
            Refused::Period(..) => {
                return contended(format!("budget `{}`: another process is opening this window", node.path()));
            }
            Refused::Cell(..) => {}
        }
        let rank = |denial: &Denial| match denial.kind {
            DenialKind::TooLarge => (2, i64::MAX),
            DenialKind::Exhausted => (1, denial.retry_after_ms.unwrap_or(i64::MAX)),
            _ => (0, denial.retry_after_ms.unwrap_or(0)),
        };
        let refusals = self.refusals(node, amounts, now_ms);
        // The first of equals is the nearest to the leaf.
        let worst = refusals.into_iter().rev().max_by_key(rank);
        worst.unwrap_or_else(|| self.contended_at(node, amounts, refused))
    }

    /// The cell that refused, though by now it would not.
    fn contended_at(&self, node: &Node, amounts: &Amounts, refused: Refused) -> Denial {
        let Refused::Cell(at, unit) = refused else {
            return Denial::of(DenialKind::Contended, node.path(), String::new());
        };
        let step = node.steps().get(at);
        let id = step.map_or(0, |step| step.window.id_at(self.now_ms()));
        let counted = step.and_then(|step| self.counted(step.node, step.window, id, unit));
        let (Some(step), Some(counted)) = (step, counted) else {
            return Denial::of(DenialKind::Contended, node.path(), "the budget was held for an instant".to_owned());
        };
        let requested = amounts.0.get(unit).copied().unwrap_or(0);
        let denial = self.refusal(step.node, step.window, id, unit, requested, &counted);
        Denial { kind: DenialKind::Contended, retry_after_ms: Some(1), ..denial }
    }

    /// A hold that lives.
    pub fn hold(&self, id: HoldId) -> Option<HoldState> {
        let slot = self.memory.slot(id.slot)?;
        let state = State(slot.state.load(Acquire));
        (state.generation() == id.generation).then(|| self.hold_state(id.slot, slot, state)).flatten()
    }

    /// What a hold has reserved, and what is left of each unit where there is least of it among the cells that it
    /// reserved from. `None` if it has ended.
    ///
    /// # Cost
    /// A load for each cell; nothing is allocated.
    pub fn held(&self, id: HoldId) -> Option<([i64; UNITS], [Option<i64>; UNITS])> {
        let slot = self.memory.slot(id.slot)?;
        // A bit for each unit that was met, beside the least of it: cheaper to keep than an option of each.
        let (mut left, mut met) = ([i64::MAX; UNITS], 0);
        for (place, units) in slot.entries() {
            let Some(period) = self.memory.period(place) else { continue };
            met |= units;
            for unit in units_of(units) {
                if let (Some(free), Some(left)) = (cell(&period.free, unit), left.get_mut(unit)) {
                    *left = free.load(Relaxed).min(*left);
                }
            }
        }
        let mut bit = 1_u32;
        let left = left.map(|least| {
            let is_met = met & bit != 0;
            bit <<= 1;
            is_met.then_some(least)
        });
        let amounts = read(&slot.amounts);
        (State(slot.state.load(Acquire)).generation() == id.generation).then_some((amounts, left))
    }

    /// Every hold that lives, of every process.
    pub fn holds(&self) -> Vec<HoldState> {
        let slots = (0_u32..).zip(self.memory.slots.iter());
        slots.filter_map(|(index, slot)| self.hold_state(index, slot, State(slot.state.load(Acquire)))).collect()
    }

    fn hold_state(&self, index: u32, slot: &Slot, state: State) -> Option<HoldState> {
        if matches!(state.phase(), Phase::Free | Phase::Taking | Phase::Ending | Phase::Claimed | Phase::Unknown) {
            return None;
        }
        let flags = slot.flags.load(Relaxed);
        let deadline_ms = slot.deadline_ms.load(Relaxed);
        let owner = (state.actor() as usize).checked_sub(1).and_then(|at| self.memory.owners.get(at));
        let path = self.memory.nodes.get(slot.node.load(Relaxed) as usize).and_then(NodeEntry::path)?;
        let mut charged = read(&slot.charged);
        let tally = self.memory.tallies.get(index as usize).map(|tally| tally.left.load(Relaxed));
        let amounts = read(&slot.amounts);
        if let (Some(left), Some(tokens)) =
            (tally.filter(|left| *left != super::layout::TALLY_NONE), charged.first_mut())
        {
            *tokens = amounts.first().map_or(0, |held| held.saturating_sub(left));
        }
        let anonymous = self.store.is_none();
        Some(HoldState {
            id: HoldId { slot: index, generation: state.generation() },
            path,
            amounts,
            charged,
            granted_ms: slot.granted_ms.load(Relaxed),
            deadline_ms: (deadline_ms != 0).then_some(deadline_ms),
            tag: slot.tag.each_ref().map(|word| word.load(Relaxed)),
            pid: if anonymous { std::process::id() } else { owner.map_or(0, |owner| owner.pid.load(Relaxed)) },
            alive: self.attached().is_ok_and(|attached| !attached.is_dead(state.actor())),
            dispatched: flags & FLAG_DISPATCHED != 0,
            meter: flags & FLAG_METER != 0,
        })
    }

    /// Ends the holds of dead processes and those past their deadline, and settles what they left in doubt.
    pub fn recover(&self) -> Result<Recovery, BudgetError> {
        let attached = self.attached()?;
        let expired = self.end_expired(&self.hand()?);
        let recovered = self.exclusively(&attached, || {
            let (processes, holds) = match &attached.locks {
                Some(locks) => {
                    let dead = self.memory.recover_dead(locks, Some(attached.me));
                    let (processes, holds, _) = dead.map_err(|error| self.io_error("ask for locks", error))?;
                    (processes, holds)
                }
                None => (0, 0),
            };
            let healed = self.memory.heal_and_note();
            Ok::<_, BudgetError>(Recovery { processes, holds, expired, healed })
        })??;
        self.changed();
        Ok(recovered)
    }

    /// Recovers if a process has died or a deadline has passed, and takes no lock otherwise.
    pub(super) fn recover_if_needed(&self) -> Result<(), BudgetError> {
        let attached = self.attached()?;
        if self.end_expired(&self.hand()?) > 0 {
            self.changed();
        }
        if attached.locks.as_ref().is_some_and(|locks| self.memory.any_dead(locks, attached.me)) {
            self.recover()?;
        }
        Ok(())
    }

    /// Ends the holds whose deadline has passed, as nobody reports them. Returns how many.
    pub(super) fn end_expired(&self, hand: &Hand<'_>) -> usize {
        let now_ms = self.now_ms();
        let mut ended = 0_usize;
        for (index, slot) in (0_u32..).zip(self.memory.slots.iter()) {
            let state = State(slot.state.load(Acquire));
            let deadline_ms = slot.deadline_ms.load(Relaxed);
            if state.phase() != Phase::Live || deadline_ms == 0 || deadline_ms >= now_ms {
                continue;
            }
            let id = HoldId { slot: index, generation: state.generation() };
            let over = hand
                .end(id, |slot| unreported(slot.flags.load(Relaxed), &read(&slot.amounts), &hand.charged(index, slot)));
            ended = ended.saturating_add(usize::from(over));
        }
        ended
    }

    pub(super) fn io_error(&self, action: &'static str, error: std::io::Error) -> BudgetError {
        let path = self.store.as_ref().map_or_else(|| Path::new("memory"), |store| &store.path);
        io_error(path, action, error)
    }

    /// Changes a limit while the ledger runs; returns what it was. Below what is used it blocks new holds and breaks
    /// nothing. The change is noted, and stays until the file of the budgets changes.
    pub fn set_limit(&self, path: &str, unit: Unit, window: Window, limit: i64) -> Result<i64, BudgetError> {
        if !(0..=LIMIT_MAX).contains(&limit) {
            return Err(BudgetError::Spec { message: format!("limit {limit} is not between 0 and {LIMIT_MAX}") });
        }
        let node = self.node(path).map_err(|denial| BudgetError::Unknown { message: denial.reason() })?;
        let limited = node.steps().iter().filter(|step| step.node == node.index() && step.window == window);
        if !limited.into_iter().any(|step| step.units & (1 << unit.index()) != 0) {
            let message = format!("budget `{path}` has no limit on {} per {}", unit.name(), window.name());
            return Err(BudgetError::Unknown { message });
        }
        let now_ms = self.now_ms();
        let attached = self.attached()?;
        let hand = self.hand()?;
        let before = self.exclusively(&attached, || {
            let before = hand.change_limit(node.index(), unit, window, limit, None, now_ms)?;
            self.memory.note(EventKind::LimitChanged, Some((node.index(), unit, window)), before, limit);
            Ok::<_, NoPeriod>(before)
        })?;
        let before =
            before.map_err(|why| BudgetError::Unknown { message: format!("the limit cannot be changed: {why:?}") })?;
        self.sync()?;
        self.changed();
        Ok(before)
    }

    /// What an auditor wants to know, oldest first; the last ones only.
    pub fn events(&self) -> Vec<Event> {
        self.memory.events()
    }

    /// Every budget, parents before children.
    pub fn paths(&self) -> Vec<String> {
        let nodes = self.memory.nodes.iter().take(self.memory.nodes_len() as usize);
        let mut paths: Vec<String> = nodes.filter_map(NodeEntry::path).collect();
        paths.sort_unstable();
        paths
    }

    /// The path of a budget by its place.
    pub fn path_of(&self, index: u32) -> Option<String> {
        self.memory.nodes.get(index as usize).filter(|_| index < self.memory.nodes_len()).and_then(NodeEntry::path)
    }

    /// How far the wall clock is ahead of the ledger's time, or behind it if negative. More than a second means that
    /// the clock was set; see [`Ledger::accept_clock`].
    pub fn clock_skew_ms(&self) -> i64 {
        self.memory.clock_skew_ms(&*self.clock)
    }

    /// Believes the wall clock as it is now, after it was set right.
    pub fn accept_clock(&self) -> Result<(), BudgetError> {
        let attached = self.attached()?;
        self.exclusively(&attached, || {
            let skew_ms = self.clock_skew_ms();
            self.memory.accept_clock(&*self.clock);
            self.memory.forget_later_windows(self.clock.wall_ms());
            self.believed_ms.store(i64::MIN, Relaxed);
            self.memory.note(EventKind::ClockAccepted, None, skew_ms, 0);
        })
    }

    /// Where the state lies; `None` for a ledger in memory.
    pub fn state_path(&self) -> Option<&Path> {
        self.store.as_ref().map(|store| &*store.path)
    }

    /// How often anything has ended or changed while somebody waited.
    pub fn change_count(&self) -> u32 {
        self.memory.header().changes.load(Acquire)
    }

    /// Has changes counted until [`Ledger::unwatch`], also between two waits.
    pub fn watch(&self) {
        // AcqRel: what ends after this is counted.
        self.memory.header().waiters.fetch_add(1, crate::sync::Ordering::AcqRel);
    }

    /// The other half of [`Ledger::watch`].
    pub fn unwatch(&self) {
        self.memory.header().waiters.fetch_sub(1, crate::sync::Ordering::AcqRel);
    }

    /// Wakes whoever waits, though nothing has changed.
    pub fn wake(&self) {
        self.changed();
    }

    /// Waits until something has ended or changed since `seen` was read, in any process, or the time is over.
    pub fn wait_for_change(&self, seen: u32, timeout_ms: u64) -> u32 {
        let header = self.memory.header();
        // Counted while waiting, so that nobody who frees something has to wake for nothing.
        self.watch();
        if header.changes.load(Acquire) == seen {
            map::wait_on(&header.changes, seen, timeout_ms);
        }
        self.unwatch();
        header.changes.load(Acquire)
    }

    /// Makes everything that was spent until now survive a restart of the host.
    pub fn sync(&self) -> Result<(), BudgetError> {
        let attached = self.attached()?;
        self.write_image(&attached, true).map(drop)
    }

    /// Writes an image if one is due; whether it did.
    pub(super) fn write_image(&self, attached: &super::ledger::Attached, wait: bool) -> Result<bool, BudgetError> {
        let (Some(store), Some(locks)) = (&self.store, &attached.locks) else { return Ok(false) };
        if !store.durable {
            return Ok(false);
        }
        let tries = if wait { store::LOCK_TRIES } else { 0 };
        let written = locks.exclusively(LOCK_IMAGE, tries, || {
            let Some(image) = self.memory.image(false).or_else(|| wait.then(|| self.memory.image(true)).flatten())
            else {
                return Ok(false);
            };
            image.write(&store.file, store.tables_bytes, store.sizes)?;
            self.memory.set_durable(&image);
            Ok(true)
        });
        match written {
            Ok(written) => written.map_err(|error| self.io_error("make spend durable", error)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !wait => Ok(false),
            Err(error) => Err(self.io_error("lock", error)),
        }
    }

    /// Lets go of the ledger: this process's holds end as nobody reports them, its number becomes free. What is
    /// spent is written to the disk. Closing twice is the same as once; in a forked child it does nothing.
    pub fn close(&self) {
        if let Some(background) = self.background.swap(None) {
            background.stop();
        }
        // A child that never used the ledger has nothing of its own in it.
        if self.is_inherited() || self.closed.load(Relaxed) {
            self.closed.store(true, Relaxed);
            return;
        }
        // SeqCst, as in `begin_batch`: what begins after this sees it, what began before is waited for.
        self.closed.store(true, SeqCst);
        while self.batches.load(SeqCst) != 0 {
            std::thread::yield_now();
        }
        let attached = self.attached.load();
        let hand = Hand { memory: &self.memory, me: attached.me, alive: self };
        for hold in self.own_holds(attached.me) {
            hand.end(hold, |slot| {
                unreported(slot.flags.load(Relaxed), &read(&slot.amounts), &hand.charged(hold.slot, slot))
            });
        }
        self.changed();
        let (Some(store), Some(locks)) = (&self.store, &attached.locks) else { return };
        // Errors have nobody to go to: what is not written now is covered by the last image and its chunk.
        let _ = self.exclusively(&attached, || {
            if let Some(owner) = (attached.me as usize).checked_sub(1).and_then(|at| self.memory.owners.get(at)) {
                owner.epoch.store(0, Release);
            }
            if store.durable && self.memory.owners.iter().all(|owner| owner.epoch.load(Relaxed) == 0) {
                self.write_last(store);
            }
            locks.unlock(owner_lock(attached.me))
        });
    }

    /// The exact state, once nobody is left to change it.
    fn write_last(&self, store: &store::Store) {
        let image: Option<Image> = self.memory.image(true);
        if let Some(image) = image
            && image.write(&store.file, store.tables_bytes, store.sizes).is_ok()
        {
            self.memory.set_durable(&image);
            let _ = store.mapping.flush();
        }
    }

    fn own_holds(&self, me: u32) -> Vec<HoldId> {
        let slots = (0_u32..).zip(self.memory.slots.iter());
        let own = slots.filter_map(|(slot, entry)| {
            let state = State(entry.state.load(Acquire));
            let live = state.phase() == Phase::Live && state.actor() == me;
            live.then(|| HoldId { slot, generation: state.generation() })
        });
        own.collect()
    }
}

impl Hand<'_> {
    /// Gives every budget the limits of a file that has changed since it was last read. The caller holds the lock.
    pub(super) fn load_limits(&self, path: &Path, plan: &Plan) -> Result<(), BudgetError> {
        let memory = self.memory;
        if memory.header().spec.load(Relaxed) == plan.digest {
            return Ok(());
        }
        let shape = |message: String| BudgetError::Shape { file: path.display().to_string(), message };
        for (name, limits) in &plan.exact {
            if memory.find(name).is_none() {
                let parent = super::tree::parent_of(name).and_then(|parent| memory.find(parent));
                memory.add_node(name, parent.unwrap_or(super::layout::NO_NODE), limits).map_err(shape)?;
            }
        }
        for index in 0..memory.nodes_len() {
            let Some(name) = memory.nodes.get(index as usize).and_then(NodeEntry::path) else { continue };
            // A budget that the file no longer knows keeps its spend and loses its limits.
            let limits = plan.limits_of(&name).map_or(&Limits::NONE, |(limits, _)| limits);
            self.load_node(index, limits).map_err(shape)?;
        }
        memory.header().plans.fetch_add(1, Release);
        memory.note(EventKind::LimitsLoaded, None, 0, 0);
        memory.header().spec.store(plan.digest, Relaxed);
        Ok(())
    }

    fn load_node(&self, index: u32, limits: &Limits) -> Result<(), String> {
        let Some(node) = self.memory.nodes.get(index as usize) else { return Ok(()) };
        for window in Window::ALL {
            let w = window.index();
            let (Some(mask), Some(wanted)) = (node.limited.get(w), limits.limited.get(w)) else { continue };
            if *wanted != 0 {
                self.memory.give_ring(index, node, window)?;
            }
            for unit in units_of(*wanted) {
                let of = |table: &[[i64; UNITS]; 5]| table.get(w).and_then(|row| row.get(unit)).copied().unwrap_or(0);
                let Some(unit) = Unit::ALL.get(unit).copied() else { continue };
                let (limit, overdraft) = (of(&limits.limit), of(&limits.overdraft));
                let now_ms = self.memory.header().last_ms.load(Relaxed);
                let before = self
                    .change_limit(index, unit, window, limit, Some(overdraft), now_ms)
                    .map_err(|why| format!("the limits of budget {index} cannot be changed: {why:?}"))?;
                if before != limit {
                    self.memory.note(EventKind::LimitChanged, Some((index, unit, window)), before, limit);
                }
            }
            mask.store(*wanted, Release);
        }
        Ok(())
    }

    /// Changes a limit in the budget and in each of its windows that has not ended. The caller holds the lock.
    ///
    /// Each window's doubt is raised first and lowered last, so a process that dies in between leaves less to spend,
    /// and a heal that makes it add up again.
    pub(super) fn change_limit(
        &self,
        index: u32,
        unit: Unit,
        window: Window,
        limit: i64,
        overdraft: Option<i64>,
        now_ms: i64,
    ) -> Result<i64, NoPeriod> {
        let node = self.memory.nodes.get(index as usize).ok_or(NoPeriod::Damaged)?;
        let of = |table: &'_ [super::layout::Counts; 5]| {
            table.get(window.index()).and_then(|row| row.get(unit.index())).map_or(0, AtomicI64::load_relaxed)
        };
        let (before, before_overdraft) = (of(&node.limit), of(&node.overdraft));
        let overdraft = overdraft.unwrap_or(before_overdraft);
        // The same limit is written all the same: who died in a change may have left it in the windows only.
        self.memory.lock_node(node, self.me, self.alive)?;
        let current = window.id_at(now_ms).wrapping_add(1);
        for period in self.memory.ring(node, window) {
            let id = Word(period.word.load(Acquire)).id_plus_1();
            if id >= current {
                change_period(period, unit.index(), limit, overdraft);
            }
        }
        let set = |table: &[super::layout::Counts; 5], value: i64| {
            if let Some(place) = table.get(window.index()).and_then(|row| row.get(unit.index())) {
                place.store(value, Relaxed);
            }
        };
        set(&node.limit, limit);
        set(&node.overdraft, overdraft);
        self.memory.unlock_node(node, self.me);
        Ok(before)
    }
}

/// Limit and overdraft one after the other, what is lowered first: in between there is never more than before or after.
fn change_period(period: &Period, unit: usize, limit: i64, overdraft: i64) {
    let (Some(old_limit), Some(old_overdraft), Some(free), Some(doubt)) = (
        cell(&period.limit, unit),
        cell(&period.overdraft, unit),
        cell(&period.free, unit),
        cell(&period.doubt_free, unit),
    ) else {
        return;
    };
    let mut changes = [(old_limit, limit), (old_overdraft, overdraft)];
    if limit > old_limit.load(Relaxed) {
        changes.reverse();
    }
    for (place, value) in changes {
        change_share(place, value, free, doubt);
    }
}

/// Each write leaves a process that dies after it short of units, and the doubt says of how many.
fn change_share(place: &AtomicI64, value: i64, free: &AtomicI64, doubt: &AtomicI64) {
    let more = value.saturating_sub(place.load(Relaxed));
    if more == 0 {
        return;
    }
    let doubtful = more.saturating_abs();
    add(doubt, doubtful);
    if more < 0 {
        add(free, more);
    }
    place.store(value, Release);
    if more > 0 {
        add(free, more);
    }
    add(doubt, doubtful.saturating_neg());
}

/// Reads a count that orders nothing.
trait LoadRelaxed {
    fn load_relaxed(&self) -> i64;
}

impl LoadRelaxed for AtomicI64 {
    #[inline]
    fn load_relaxed(&self) -> i64 {
        self.load(Relaxed)
    }
}
