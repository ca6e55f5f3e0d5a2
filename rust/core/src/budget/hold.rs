//! The protocol of one hold: take leaf to root or nothing, then charge, top up, settle or release, once.
//!
//! Lock-free: each change is one atomic operation on one word, and a slot says before each of them what comes next (see
//! `layout.rs`), so that any process can finish or undo what a dead one began. The scheme is that of a hierarchical
//! charge with undo, as in the Linux kernel's `mm/page_counter.c`, with a log of steps in front of it.
//!
//! Nothing here knows a path, a limit's meaning or a clock: it is handed steps, amounts and window ids.

use super::layout::{
    END_PINS, END_STEPS, FLAG_DISPATCHED, FLAG_FORCED, FLAG_METER, FLAG_STREAMED, Phase, Slot, State, TAKE_PINS,
    TAKE_STEPS, TALLY_NONE, entry, entry_period, entry_units,
};
use super::memory::Memory;
use super::period::{Liveness, NoPeriod, Step, add, cell, take, units_of};
use super::unit::{Amounts, Reported, UNITS, Unit};
use super::window::Window;
use crate::limits::LEDGER_SPINS_MAX;
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::{Announce as _, AtomicI64, spin_loop, yield_now};

/// Names a hold: its slot, and which of the holds that were ever there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HoldId {
    /// Place in the table of holds
    pub slot: u32,
    /// Counts the holds of that place
    pub generation: u32,
}

/// What is reserved, and how it ends if nobody says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) node: u32,
    pub(super) steps: &'a [Step],
    pub(super) amounts: &'a Amounts,
    /// Window id for each kind of window
    pub(super) ids: [u32; super::window::WINDOWS],
    pub(super) now_ms: i64,
    /// 0: none
    pub(super) deadline_ms: i64,
    pub(super) flags: u32,
    pub(super) tag: [u64; 2],
}

/// Why a reserve took nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// A cell has too little: which of the steps, and which unit
    Cell(usize, usize),
    /// No period of this step
    Period(usize, NoPeriod),
    /// Every slot is in use
    Slots,
}

/// What a charge says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    /// It is covered: go on
    GoOn,
    /// It is noted, and more than was held: stop
    Stop,
    /// The hold has ended, or its deadline has passed: nothing is noted
    Ended,
}

/// Nothing was taken yet.
pub(super) const SETUP: u32 = 0xfff;
/// Everything a top-up asks for is taken; what is left is to say so.
pub(super) const APPLY: u32 = 0xffe;

/// One process's hand on the memory.
#[derive(Clone, Copy)]
pub(super) struct Hand<'a> {
    pub(super) memory: &'a Memory,
    /// The process's number
    pub(super) me: u32,
    pub(super) alive: &'a dyn Liveness,
}

#[inline]
fn set(counts: &[AtomicI64; UNITS], amounts: &[i64; UNITS]) {
    for (count, amount) in counts.iter().zip(amounts) {
        count.store(*amount, Relaxed);
    }
}

#[inline]
pub(super) fn read(counts: &[AtomicI64; UNITS]) -> [i64; UNITS] {
    counts.each_ref().map(|count| count.load(Relaxed))
}

/// The units of an amount that are more than nothing.
#[inline]
fn mask_of(amounts: &[i64; UNITS]) -> u32 {
    amounts.iter().rev().fold(0, |mask, amount| (mask << 1) | u32::from(*amount != 0))
}

#[inline]
fn take_step(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(0).wrapping_mul(TAKE_STEPS).wrapping_add(TAKE_PINS)
}

#[inline]
fn unit_step(unit: usize) -> u32 {
    u32::try_from(unit).unwrap_or(0)
}

impl Slot {
    #[inline]
    fn put(&self, state: State) {
        // Release: what was changed before this step is seen by whoever sees the step; that the next change is not seen
        // before the step is that change's own release.
        self.state.store(state.0, Release);
    }

    /// Its periods with the units they limit.
    #[inline]
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, u32)> {
        let len = (self.len.load(Relaxed) as usize).min(self.periods.len());
        self.periods.get(..len).unwrap_or_default().iter().map(|word| {
            let word = word.load(Relaxed);
            (entry_period(word), entry_units(word))
        })
    }

    pub(super) fn entry(&self, at: usize) -> Option<(u32, u32)> {
        let word = self.periods.get(at)?.load(Relaxed);
        Some((entry_period(word), entry_units(word)))
    }
}

impl Hand<'_> {
    /// Takes the amounts at every step, or nothing. `hint` is where to look for a slot.
    #[inline]
    pub(super) fn reserve(&self, wish: &Wish<'_>, hint: u32) -> Result<HoldId, Refused> {
        let (index, slot, state) = self.claim(hint).ok_or(Refused::Slots)?;
        slot.node.store(wish.node, Relaxed);
        slot.flags.store(wish.flags, Relaxed);
        slot.granted_ms.store(wish.now_ms, Relaxed);
        slot.deadline_ms.store(wish.deadline_ms, Relaxed);
        for (word, tag) in slot.tag.iter().zip(wish.tag) {
            word.store(tag, Relaxed);
        }
        set(&slot.amounts, &wish.amounts.0);
        set(&slot.charged, &[0; UNITS]);
        slot.len.store(u32::try_from(wish.steps.len()).unwrap_or(0), Relaxed);
        if let Err((taken, refused)) = self.take_all(slot, state, wish) {
            self.give_back(slot, state, taken, &wish.amounts.0);
            slot.put(state.with(0, 0, Phase::Free));
            return Err(refused);
        }
        slot.put(state.with(self.me, 0, Phase::Live));
        Ok(HoldId { slot: index, generation: state.generation() })
    }

    /// A slot that was nobody's, now in setup.
    #[inline]
    fn claim(&self, hint: u32) -> Option<(u32, &Slot, State)> {
        let slots = &self.memory.slots;
        // No remainder: a division would cost as much as the rest of the search.
        let start = if (hint as usize) < slots.len() { hint as usize } else { 0 };
        let (before, after) = slots.split_at_checked(start)?;
        for (at, slot) in (start..).zip(after).chain((0..).zip(before)) {
            slot.state.announce();
            let old = State(slot.state.load(Relaxed));
            if old.phase() != Phase::Free {
                continue;
            }
            let new = State::new(old.generation().wrapping_add(1), self.me, SETUP, Phase::Taking);
            // Acquire: pairs with the release that freed the slot, so its fields are this process's now.
            if slot.state.compare_exchange(old.0, new.0, AcqRel, Relaxed).is_ok() {
                return Some((u32::try_from(at).ok()?, slot, new));
            }
        }
        None
    }

    /// The windows, then leaf to root; on refusal, the step that was not done.
    #[inline]
    fn take_all(&self, slot: &Slot, state: State, wish: &Wish<'_>) -> Result<(), (u32, Refused)> {
        self.pin_all(slot, state, wish)?;
        let asked = mask_of(&wish.amounts.0);
        let forced = wish.flags & FLAG_FORCED != 0;
        let mut next = TAKE_PINS;
        for (at, (step, listed)) in wish.steps.iter().zip(&slot.periods).enumerate() {
            let base = next;
            next = next.wrapping_add(TAKE_STEPS);
            let id = wish.ids.get(step.window.index()).copied().unwrap_or_default();
            let refused = |why| (base, Refused::Period(at, why));
            let (place, period) = self.memory.locate(step, id, self.me, self.alive).map_err(refused)?;
            listed.store(entry(place, step.units), Relaxed);
            for unit in units_of(step.units & asked) {
                let (Some(free), amount) = (cell(&period.free, unit), wish.amounts.0.get(unit).copied().unwrap_or(0))
                else {
                    continue;
                };
                let number = base.wrapping_add(unit_step(unit));
                slot.put(state.with(self.me, number, Phase::Taking));
                if forced {
                    add(free, amount.saturating_neg());
                } else if !take(free, amount) {
                    return Err((number, Refused::Cell(at, unit)));
                }
            }
        }
        Ok(())
    }

    /// Pins each kind of window once, for all levels.
    #[inline]
    fn pin_all(&self, slot: &Slot, state: State, wish: &Wish<'_>) -> Result<(), (u32, Refused)> {
        slot.pinned.iter().for_each(|pinned| pinned.store(0, Relaxed));
        let mut kinds = 0_u32;
        for (at, step) in wish.steps.iter().enumerate() {
            let kind = step.window.index();
            if step.window == Window::Total || kinds & (1 << kind) != 0 {
                continue;
            }
            kinds |= 1 << kind;
            let id = wish.ids.get(kind).copied().unwrap_or_default();
            slot.put(state.with(self.me, unit_step(kind), Phase::Taking));
            if let Some(pinned) = slot.pinned.get(kind) {
                // Release: after the step. Named without a step, a pin that was never made would be let go.
                pinned.store(id.wrapping_add(1), Release);
            }
            if let Err(why) = self.memory.pin(step.window, id) {
                // The kinds are pinned in the order of the steps, not of their numbers: those that are not are named 0.
                slot.pinned.get(kind).into_iter().for_each(|pinned| pinned.store(0, Relaxed));
                return Err((TAKE_PINS, Refused::Period(at, why)));
            }
        }
        Ok(())
    }

    /// Undoes the steps below `number`, last first.
    pub(super) fn give_back(&self, slot: &Slot, state: State, number: u32, amounts: &[i64; UNITS]) {
        self.give_back_units(slot, state, number, amounts);
        for (window, pinned) in Window::ALL.into_iter().zip(&slot.pinned) {
            let Some(id) = pinned.load(Relaxed).checked_sub(1) else { continue };
            slot.put(state.with(self.me, unit_step(window.index()), state.phase()));
            // Unnamed first: a pin too many costs a period until it is counted again, one too few a count.
            pinned.store(0, Release);
            self.memory.unpin(window, id);
        }
    }

    /// The slot of a hold and the state it is in while nobody changes it; `None` once it has ended.
    ///
    /// Another thread may be charging or topping up: that takes nanoseconds, unless its process was stopped.
    #[inline]
    fn live(&self, id: HoldId) -> Option<(&Slot, State)> {
        let slot = self.memory.slot(id.slot)?;
        let mut spins = 0_u32;
        loop {
            slot.state.announce();
            let state = State(slot.state.load(Acquire));
            if state.generation() != id.generation {
                return None;
            }
            match state.phase() {
                Phase::Live => return Some((slot, state)),
                Phase::Charging | Phase::ToppingUp if spins < LEDGER_SPINS_MAX => {
                    spins = spins.saturating_add(1);
                    if spins.is_multiple_of(64) {
                        yield_now();
                    } else {
                        spin_loop();
                    }
                }
                _ => return None,
            }
        }
    }

    /// Takes a live hold into another phase; `None` if it has ended.
    #[inline]
    pub(super) fn seize(&self, id: HoldId, step: u32, phase: Phase) -> Option<(&Slot, State)> {
        loop {
            let (slot, live) = self.live(id)?;
            let new = live.with(self.me, step, phase);
            // AcqRel: the winner sees what the last one wrote, and nobody else writes until the phase changes again.
            if slot.state.compare_exchange(live.0, new.0, AcqRel, Relaxed).is_ok() {
                // The state to go back to keeps the process whose hold it is.
                return Some((slot, live));
            }
        }
    }

    /// Notes what the work has used so far. No cell is touched.
    #[inline]
    pub(super) fn charge(&self, id: HoldId, amounts: &Amounts, flags: u32, now_ms: impl FnOnce() -> i64) -> Charge {
        let Some((slot, live)) = self.seize(id, 0, Phase::Charging) else { return Charge::Ended };
        let deadline = slot.deadline_ms.load(Relaxed);
        if deadline != 0 && now_ms() > deadline {
            slot.put(live);
            return Charge::Ended;
        }
        let flags = slot.flags.load(Relaxed) | flags;
        slot.flags.store(flags, Relaxed);
        let mut covered = true;
        for ((charged, held), amount) in slot.charged.iter().zip(&slot.amounts).zip(amounts.0) {
            let now = charged.load(Relaxed).saturating_add(amount);
            charged.store(now, Relaxed);
            covered &= now <= held.load(Relaxed);
        }
        slot.put(live);
        if covered || flags & FLAG_FORCED != 0 { Charge::GoOn } else { Charge::Stop }
    }

    /// Takes more at every step of the hold, or nothing.
    pub(super) fn top_up(&self, id: HoldId, more: &Amounts) -> Option<Result<(), Refused>> {
        let (slot, live) = self.seize(id, SETUP, Phase::ToppingUp)?;
        let state = live.with(self.me, SETUP, Phase::ToppingUp);
        // Only whoever has the slot writes to it. Release: whoever sees the number sees that the hold is being topped up.
        slot.top_ups.store(slot.top_ups.load(Relaxed).wrapping_add(1), Release);
        let held = read(&slot.amounts);
        let mut total = held;
        total.iter_mut().zip(more.0).for_each(|(total, more)| *total = total.saturating_add(more));
        set(&slot.actual, &total);
        let asked = mask_of(&more.0);
        let forced = slot.flags.load(Relaxed) & FLAG_FORCED != 0;
        for (at, (place, units)) in slot.entries().enumerate() {
            let Some(period) = self.memory.period(place) else { continue };
            for unit in units_of(units & asked) {
                let (Some(free), amount) = (cell(&period.free, unit), more.0.get(unit).copied().unwrap_or(0)) else {
                    continue;
                };
                let number = take_step(at).wrapping_add(unit_step(unit));
                slot.put(state.with(self.me, number, Phase::ToppingUp));
                if forced {
                    add(free, amount.saturating_neg());
                } else if !take(free, amount) {
                    self.give_back_units(slot, state, number, &more.0);
                    slot.put(live);
                    return Some(Err(Refused::Cell(at, unit)));
                }
            }
        }
        slot.put(state.with(self.me, APPLY, Phase::ToppingUp));
        set(&slot.amounts, &total);
        slot.put(live);
        Some(Ok(()))
    }

    /// Undoes the amounts taken in the steps below `number`, last first. The pins stay.
    pub(super) fn give_back_units(&self, slot: &Slot, state: State, number: u32, amounts: &[i64; UNITS]) {
        for number in (TAKE_PINS..number).rev() {
            let (at, unit) = place_of(number);
            let Some((place, units)) = slot.entry(at) else { continue };
            let amount = amounts.get(unit).copied().unwrap_or(0);
            if units & (1 << unit) == 0 || amount == 0 {
                continue;
            }
            slot.put(state.with(self.me, number, state.phase()));
            if let Some(free) = self.memory.period(place).and_then(|period| cell(&period.free, unit)) {
                add(free, amount);
            }
        }
    }

    /// Ends a hold with what `decide` says was used. `false` if it has ended before.
    #[inline]
    pub(super) fn end(&self, id: HoldId, decide: impl FnOnce(&Slot) -> [i64; UNITS]) -> bool {
        let Some((slot, live)) = self.seize(id, 0, Phase::Claimed) else { return false };
        self.end_claimed(id.slot, slot, live.with(self.me, 0, Phase::Claimed), &decide(slot));
        true
    }

    /// What was charged to a hold; the tokens of a meter's stand in its tally.
    #[inline]
    pub(super) fn charged(&self, index: u32, slot: &Slot) -> [i64; UNITS] {
        let mut charged = read(&slot.charged);
        if slot.flags.load(Relaxed) & FLAG_METER != 0
            && let Some(tally) = self.memory.tallies.get(index as usize)
            && let (Some(tokens), Some(held)) = (charged.first_mut(), slot.amounts.first())
        {
            let left = tally.left.load(Relaxed);
            if left != TALLY_NONE {
                *tokens = held.load(Relaxed).saturating_sub(left.max(0));
            }
        }
        charged
    }

    /// Ends a hold that this process has claimed.
    #[inline]
    pub(super) fn end_claimed(&self, index: u32, slot: &Slot, state: State, actual: &[i64; UNITS]) {
        set(&slot.actual, actual);
        slot.put(state.with(self.me, 0, Phase::Ending));
        self.end_from(index, slot, state.with(self.me, 0, Phase::Ending), 0);
    }

    /// Spends and gives back, from a step on, and frees the slot.
    #[inline]
    pub(super) fn end_from(&self, index: u32, slot: &Slot, state: State, from: u32) {
        // Not before `actual` counts: until then the tally is all that knows what the meter has charged.
        if slot.flags.load(Relaxed) & FLAG_METER != 0
            && let Some(tally) = self.memory.tallies.get(index as usize)
        {
            tally.left.store(TALLY_NONE, Relaxed);
        }
        let (held, actual) = (read(&slot.amounts), read(&slot.actual));
        let touched = mask_of(&held) | mask_of(&actual);
        // Counted up instead of multiplied out for each: this is the longest loop of a hold.
        let mut base = 0_u32;
        for (place, units) in slot.entries() {
            let first = base;
            base = base.wrapping_add(END_STEPS);
            if base <= from {
                continue;
            }
            let Some(period) = self.memory.period(place) else { continue };
            for unit in units_of(units & touched) {
                let (Some(held), Some(actual)) = (held.get(unit).copied(), actual.get(unit).copied()) else { continue };
                let number = first.wrapping_add(unit_step(unit).wrapping_mul(2));
                // Of requests `free` alone keeps count: those of the grant are spent, and more of them is taken now.
                if actual != 0
                    && unit != Unit::Requests.index()
                    && number >= from
                    && let Some(used) = cell(&period.used, unit)
                {
                    slot.put(state.with(self.me, number, Phase::Ending));
                    add(used, actual);
                }
                let number = number.wrapping_add(1);
                if held != actual
                    && number >= from
                    && let Some(free) = cell(&period.free, unit)
                {
                    slot.put(state.with(self.me, number, Phase::Ending));
                    add(free, held.saturating_sub(actual));
                }
            }
        }
        for (window, pinned) in Window::ALL.into_iter().zip(&slot.pinned) {
            let number = END_PINS.wrapping_add(unit_step(window.index()));
            if let Some(id) = pinned.load(Relaxed).checked_sub(1).filter(|_| number >= from) {
                slot.put(state.with(self.me, number, Phase::Ending));
                self.memory.unpin(window, id);
            }
        }
        slot.put(state.with(0, 0, Phase::Free));
    }
}

/// The period and the unit of a step of taking.
pub(super) fn place_of(number: u32) -> (usize, usize) {
    let number = number.wrapping_sub(TAKE_PINS);
    ((number / TAKE_STEPS) as usize, (number % TAKE_STEPS) as usize)
}

/// What a settle comes to: levels come back, requests stay spent, and what nobody mentions counts as far as it was
/// charged, or else in full.
pub(super) fn settled(slot: &Slot, charged: &[i64; UNITS], reported: &Reported) -> [i64; UNITS] {
    let whole = unreported(slot.flags.load(Relaxed) | FLAG_DISPATCHED, &read(&slot.amounts), charged);
    let mut actual = whole;
    for (unit, (actual, reported)) in Unit::ALL.into_iter().zip(actual.iter_mut().zip(reported)) {
        match reported {
            // Spent when granted; more of them is owed.
            Some(amount) if unit == Unit::Requests => *actual = (*actual).max(*amount),
            Some(amount) if !unit.is_level() => *actual = *amount,
            _ => {}
        }
    }
    actual
}

/// What a hold comes to if nobody says. Work that was dispatched and never streamed may have used everything, whatever
/// was charged for certain when it began; work that streamed has used what was charged, and in full a unit of which
/// nothing was; work that never began has used what was charged. A meter charges every token, so none charged is none
/// used.
pub(super) fn unreported(flags: u32, held: &[i64; UNITS], charged: &[i64; UNITS]) -> [i64; UNITS] {
    let mut actual = [0; UNITS];
    let (dispatched, streamed) = (flags & FLAG_DISPATCHED != 0, flags & FLAG_STREAMED != 0);
    for ((unit, actual), (held, charged)) in Unit::ALL.into_iter().zip(&mut actual).zip(held.iter().zip(charged)) {
        let counted_by_meter = unit == Unit::Tokens && flags & FLAG_METER != 0;
        *actual = match unit {
            Unit::InFlight | Unit::KvBlocks => 0,
            Unit::Requests => *held.max(charged),
            _ if !dispatched || counted_by_meter || (streamed && *charged != 0) => *charged,
            _ => *charged.max(held),
        };
    }
    actual
}
