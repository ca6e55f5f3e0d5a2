//! Periods: the cells of one window of one budget, found, opened and counted; and epochs, which say when one may be
//! used again.
//!
//! A budget has a ring of periods for each kind of window. A period is opened for a window once, by whoever needs it
//! first, and is used for another window only when its own has ended and no hold was granted in it that still lives:
//! a hold pins the epoch of its window before it looks for a period, and whoever wants a period of an ended window
//! closes that window's epoch first, which a pin prevents. Opening is serialised for
//! each budget by a word that names the process; if that process is dead, the next one takes over and does it again,
//! which it may because nobody can use a period that is being opened.

use super::layout::{CLOSED, EPOCHS_LEN, Epoch, NO_RING, NodeEntry, Period, Phase, Slot, State, Word};
use super::memory::Memory;
use super::unit::{UNITS, Unit};
use super::window::Window;
use crate::limits::LEDGER_SPINS_MAX;
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::{Announce as _, AtomicI64, spin_loop, yield_now};

/// Tells whether a process is gone. Asking takes a system call.
pub(super) trait Liveness {
    /// Whether the process with this number has ended. Never true for one that may still act.
    fn is_dead(&self, owner: u32) -> bool;
}

/// One level and window that a reserve has to pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    /// The budget
    pub(super) node: u32,
    /// Its first period of this window
    pub(super) ring: u32,
    /// The kind of window
    pub(super) window: Window,
    /// Bit per unit that has a limit
    pub(super) units: u32,
}

/// Why no period can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPeriod {
    /// A later window is open already: the caller's time is old
    Stale,
    /// Every period is pinned by holds of windows that have ended
    Pinned,
    /// Another process is in the middle of opening one and does not go on
    Busy,
    /// The memory names what it does not have
    Damaged,
}

/// Times a period is looked at again because somebody pinned it for an instant.
#[cfg(not(loom))]
const OPEN_TRIES_MAX: u32 = 1_000;
#[cfg(loom)]
const OPEN_TRIES_MAX: u32 = 2;

/// Adds without ever wrapping: a sum beyond the range stays at its end. Returns what was there.
#[inline]
pub(super) fn add(cell: &AtomicI64, amount: i64) -> i64 {
    cell.announce();
    let mut before = cell.load(Relaxed);
    loop {
        // Release: the step that was stored before is seen by whoever sees this; Acquire is not needed for a count.
        match cell.compare_exchange_weak(before, before.saturating_add(amount), AcqRel, Relaxed) {
            Ok(_) => return before,
            Err(now) => before = now,
        }
    }
}

/// Takes `amount` if that leaves at least zero.
#[inline]
pub(super) fn take(free: &AtomicI64, amount: i64) -> bool {
    free.announce();
    let mut before = free.load(Relaxed);
    loop {
        let after = before.saturating_sub(amount);
        if after < 0 {
            return false;
        }
        match free.compare_exchange_weak(before, after, AcqRel, Relaxed) {
            Ok(_) => return true,
            Err(now) => before = now,
        }
    }
}

/// The cell of one unit in an array of them.
#[inline]
pub(super) fn cell(counts: &[AtomicI64; UNITS], unit: usize) -> Option<&AtomicI64> {
    counts.get(unit)
}

/// Units of a mask, lowest first.
#[inline]
pub(super) fn units_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let unit = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        Some(unit)
    })
}

impl Memory {
    /// The epoch of a window.
    #[inline]
    pub(super) fn epoch(&self, window: Window, id: u32) -> Option<&Epoch> {
        let kind = u32::try_from(window.index()).unwrap_or(0);
        self.epochs.get(kind.wrapping_mul(EPOCHS_LEN).wrapping_add(id % EPOCHS_LEN) as usize)
    }

    /// Keeps every period of a window from being used for another one.
    #[inline]
    pub(super) fn pin(&self, window: Window, id: u32) -> Result<(), NoPeriod> {
        let epoch = self.epoch(window, id).ok_or(NoPeriod::Damaged)?;
        let mut tries = 0_u32;
        loop {
            epoch.word.announce();
            if Word(epoch.word.load(Relaxed)).is_open_for(id) {
                // AcqRel: the step that says so is seen before the pin; what the opening wrote is seen after it.
                if Word(epoch.word.fetch_add(Word::PIN, AcqRel)).is_open_for(id) {
                    return Ok(());
                }
                // Closed in between.
                epoch.word.fetch_sub(Word::PIN, Release);
            }
            self.begin(epoch, id, tries)?;
            tries = tries.saturating_add(1);
        }
    }

    /// Lets go of a window.
    #[inline]
    pub(super) fn unpin(&self, window: Window, id: u32) {
        if let Some(epoch) = self.epoch(window, id) {
            // Release: whoever closes the epoch after this sees what the hold did to the periods.
            epoch.word.fetch_sub(Word::PIN, Release);
        }
    }

    /// Makes a place the epoch of window `id`, in place of one long past.
    #[cold]
    #[expect(clippy::unused_self, reason = "a method beside those that need the memory")]
    fn begin(&self, epoch: &Epoch, id: u32, tries: u32) -> Result<(), NoPeriod> {
        epoch.word.announce();
        let word = Word(epoch.word.load(Acquire));
        if word.is_open_for(id) {
            return Ok(());
        }
        if word.id_plus_1() >= id.wrapping_add(1) {
            return Err(NoPeriod::Stale);
        }
        if word.pins() != 0 {
            // A pin of somebody with an old time is gone in an instant; that of a hold stays.
            return if tries < OPEN_TRIES_MAX { Ok(()) } else { Err(NoPeriod::Pinned) };
        }
        // If it fails somebody else did the same, or pinned for an instant: look again.
        let _ = epoch.word.compare_exchange(word.0, Word::new(id, 0, 0).0, AcqRel, Relaxed);
        Ok(())
    }

    /// Makes sure that no hold will be granted in window `id` any more, which has to have ended. Says whether holds that
    /// were still live; `None` if it could not be done.
    fn close(&self, window: Window, id: u32) -> Option<bool> {
        let epoch = self.epoch(window, id)?;
        for _ in 0..OPEN_TRIES_MAX {
            epoch.word.announce();
            let word = Word(epoch.word.load(Acquire));
            let wanted = id.wrapping_add(1);
            if word.id_plus_1() > wanted {
                return Some(false);
            }
            if word.id_plus_1() == wanted && word.opener() == CLOSED {
                return Some(word.pins() != 0);
            }
            // One long past makes place only once nobody is in it.
            let closed = Word::new(id, CLOSED, word.pins());
            let may_close = word.id_plus_1() == wanted || word.pins() == 0;
            // AcqRel: what the last hold of the window did to its periods is seen by whoever uses them next, and the
            // slots of all that have pinned it are seen as they were before they did.
            if may_close && epoch.word.compare_exchange(word.0, closed.0, AcqRel, Relaxed).is_ok() {
                return Some(word.pins() != 0);
            }
            spin_loop();
        }
        None
    }

    /// Whether a period can be used for another window: its own is closed, and no hold of it that still lives, here or
    /// in the middle of being granted, has anything in this period. Looks at every slot, but only where a hold has
    /// outlived its window.
    fn is_over(&self, window: Window, id: u32, place: u32) -> bool {
        match self.close(window, id) {
            None => false,
            Some(false) => true,
            Some(true) => !self.slots.iter().any(|slot| {
                let phase = State(slot.state.load(Acquire)).phase();
                let pinned = slot.pinned.get(window.index()).map_or(0, |pinned| pinned.load(Acquire));
                let uses = |slot: &Slot| slot.entries().any(|(other, _)| other == place);
                // The list of one that is being taken is not complete yet.
                phase != Phase::Free && pinned == id.wrapping_add(1) && (phase == Phase::Taking || uses(slot))
            }),
        }
    }

    /// The period of a step that counts window `id`, which the caller has pinned; opened if nobody has yet.
    #[inline]
    pub(super) fn locate(
        &self,
        step: &Step,
        id: u32,
        me: u32,
        alive: &dyn Liveness,
    ) -> Result<(u32, &Period), NoPeriod> {
        let place = step.ring.wrapping_add(id & step.window.ring_len().wrapping_sub(1));
        let period = self.period(place).ok_or(NoPeriod::Damaged)?;
        period.word.announce();
        // Acquire: pairs with the release that ends the opening, so the counts are seen as they were set.
        if Word(period.word.load(Acquire)).is_open_for(id) {
            return Ok((place, period));
        }
        let opened = self.open(step, id, me, alive)?;
        self.period(opened).map(|period| (opened, period)).ok_or(NoPeriod::Damaged)
    }

    #[cold]
    fn open(&self, step: &Step, id: u32, me: u32, alive: &dyn Liveness) -> Result<u32, NoPeriod> {
        let node = self.nodes.get(step.node as usize).ok_or(NoPeriod::Damaged)?;
        self.lock_node(node, me, alive)?;
        let opened = self.open_locked(node, step, id, me);
        self.unlock_node(node, me);
        opened
    }

    /// Makes this process the one that opens periods of a budget and changes its limits.
    pub(super) fn lock_node(&self, node: &NodeEntry, me: u32, alive: &dyn Liveness) -> Result<(), NoPeriod> {
        let mut spins = 0_u32;
        loop {
            node.opening.announce();
            let opener = node.opening.load(Acquire);
            let free = opener == 0;
            // Another thread of this process is alive by being asked; a dead process cannot come back.
            if free || (opener != me && spins >= LEDGER_SPINS_MAX && alive.is_dead(opener)) {
                // AcqRel: what the last one did is seen, and what this one does is seen by the next.
                if node.opening.compare_exchange(opener, me, AcqRel, Relaxed).is_ok() {
                    if !free {
                        self.finish_opening(node);
                    }
                    return Ok(());
                }
            } else if spins > LEDGER_SPINS_MAX {
                return Err(NoPeriod::Busy);
            }
            spins = spins.saturating_add(1);
            if spins.is_multiple_of(64) {
                yield_now();
            } else {
                spin_loop();
            }
        }
    }

    #[expect(clippy::unused_self, reason = "the other half of the method that locks")]
    pub(super) fn unlock_node(&self, node: &NodeEntry, me: u32) {
        // Fails only if this process was taken for dead, which the kernel's lock rules out.
        let _ = node.opening.compare_exchange(me, 0, Release, Relaxed);
    }

    /// Does again what a process that died had begun: sets up each period that it was opening.
    pub(super) fn finish_opening(&self, node: &NodeEntry) {
        for window in Window::ALL {
            for period in self.ring(node, window) {
                let word = Word(period.word.load(Acquire));
                if word.opener() != 0 {
                    set_up(period, node, window);
                    period.word.fetch_sub(Word::opener_bits(word.opener()), Release);
                }
            }
        }
    }

    /// The periods of one window of a budget; none if it has no such window.
    pub(super) fn ring<'a>(&'a self, node: &NodeEntry, window: Window) -> impl Iterator<Item = &'a Period> + use<'a> {
        let first = node.rings.get(window.index()).map_or(NO_RING, |ring| ring.load(Relaxed));
        let len = if first == NO_RING { 0 } else { window.ring_len() };
        (0..len).filter_map(move |at| self.period(first.wrapping_add(at)))
    }

    fn open_locked(&self, node: &NodeEntry, step: &Step, id: u32, me: u32) -> Result<u32, NoPeriod> {
        let wanted = id.wrapping_add(1);
        let len = step.window.ring_len();
        let first = id & len.wrapping_sub(1);
        let mut ended = None;
        for at in (0..len).map(|at| first.wrapping_add(at) & len.wrapping_sub(1)) {
            let place = step.ring.wrapping_add(at);
            let period = self.period(place).ok_or(NoPeriod::Damaged)?;
            period.word.announce();
            let word = Word(period.word.load(Acquire));
            if word.id_plus_1() == wanted {
                return Ok(place);
            }
            if word.id_plus_1() > wanted {
                return Err(NoPeriod::Stale);
            }
            if ended.is_none()
                && word.id_plus_1().checked_sub(1).is_none_or(|old| self.is_over(step.window, old, place))
            {
                ended = Some(place);
            }
        }
        let place = ended.ok_or(NoPeriod::Pinned)?;
        let period = self.period(place).ok_or(NoPeriod::Damaged)?;
        // Only the process that the budget names writes this word, and nobody uses the counts of a closed epoch.
        period.word.store(Word::new(id, me, 0).0, Release);
        set_up(period, node, step.window);
        // Release: the counts are in place before anybody can see the period open.
        period.word.fetch_sub(Word::opener_bits(me), Release);
        Ok(place)
    }
}

/// Fresh counts with the budget's limits. Nobody else can use the period yet.
pub(super) fn set_up(period: &Period, node: &NodeEntry, window: Window) {
    let (Some(limits), Some(overdrafts)) = (node.limit.get(window.index()), node.overdraft.get(window.index())) else {
        return;
    };
    for unit in Unit::ALL.map(Unit::index) {
        let read = |counts: &[AtomicI64; UNITS]| cell(counts, unit).map_or(0, |count| count.load(Relaxed));
        let (limit, overdraft) = (read(limits), read(overdrafts));
        let write = |counts: &[AtomicI64; UNITS], value: i64| {
            if let Some(count) = cell(counts, unit) {
                count.store(value, Relaxed);
            }
        };
        write(&period.limit, limit);
        write(&period.overdraft, overdraft);
        write(&period.used, 0);
        write(&period.doubt_free, 0);
        write(&period.doubt_used, 0);
        write(&period.free, limit.saturating_add(overdraft));
    }
}
