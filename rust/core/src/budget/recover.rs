//! What is left of processes that died: their holds ended, what they were in the middle of finished or undone, and what
//! nobody can know counted as doubt, never as credit.
//!
//! A step in doubt was either done or not. Recovery takes the reading that leaves less to spend and notes by how much
//! that may be too little: in `doubt_free` if it would belong to `free`, in `doubt_used` if it would belong to `used`.
//! [`Hand::heal`] settles the doubt by arithmetic once nothing moves: limit + overdraft = used + held + free + stranded.
//!
//! Callers hold the ledger's lock: one recovery at a time. A recovery that is killed leaves slots in the same shape as
//! any other process, so the next one goes on from there.

use std::collections::HashMap;

use super::hold::{APPLY, Hand, SETUP, place_of, read, unreported};
use super::layout::{
    END_PINS, END_STEPS, EPOCHS_LEN, Epoch, FLAG_DISPATCHED, FLAG_METER, Period, Phase, Slot, State, TAKE_PINS, Word,
};
use super::memory::Memory;
use super::period::{add, cell};
use super::unit::{UNITS, Unit};
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::{Announce as _, fence};

/// What the counts would be if nothing were in doubt.
#[derive(Debug, Default, Clone)]
pub(super) struct Held {
    /// Units that live holds keep from being free
    pub(super) amounts: [i64; UNITS],
}

/// What of a slot stays the same only while its hold takes nothing, gives nothing back, and no other hold comes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    generation: u32,
    top_ups: u32,
    /// Live, and in one of the periods that are looked at
    live: bool,
}

/// What a heal did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Healed {
    /// Units found stranded
    pub found: i64,
    /// Of these, given back
    pub freed: i64,
    /// Of these, counted as spent
    pub spent: i64,
    /// Cells that could not be settled, because holds came and went all the time
    pub not_quiet: usize,
}

/// Times a snapshot is tried before a ledger counts as busy.
#[cfg(not(loom))]
const SNAPSHOT_TRIES_MAX: usize = 20;
#[cfg(loom)]
const SNAPSHOT_TRIES_MAX: usize = 1;
const REQUESTS: usize = Unit::Requests.index();
/// Requests are never held, and an entry has a bit that is no unit.
const UNITS_HELD: u32 = ((1 << UNITS) - 1) & !(1 << REQUESTS);

impl Hand<'_> {
    /// Ends every hold of processes that are gone. Returns how many.
    pub(super) fn recover(&self, is_dead: &dyn Fn(u32) -> bool) -> usize {
        let mut recovered = 0_usize;
        for (index, slot) in (0_u32..).zip(self.memory.slots.iter()) {
            if let Some(state) = self.seize_dead(slot, is_dead) {
                self.recover_slot(index, slot, state);
                recovered = recovered.saturating_add(1);
            }
        }
        for node in self.memory.nodes.iter().take(self.memory.nodes_len() as usize) {
            let opener = node.opening.load(Acquire);
            // Whoever needs the window may take over at the same time: one of them does.
            if opener != 0 && is_dead(opener) && node.opening.compare_exchange(opener, self.me, AcqRel, Relaxed).is_ok()
            {
                self.memory.finish_opening(node);
                self.memory.unlock_node(node, self.me);
            }
        }
        recovered
    }

    /// The state of a slot that a dead process has, now nobody else's; `None` if it is free or somebody living has it.
    fn seize_dead(&self, slot: &Slot, is_dead: &dyn Fn(u32) -> bool) -> Option<State> {
        loop {
            slot.state.announce();
            let state = State(slot.state.load(Acquire));
            if state.phase() == Phase::Free || !is_dead(state.actor()) {
                return None;
            }
            // A process that lives may charge or end a dead one's hold, if it knows its name. In any other phase the
            // slot is the dead one's alone.
            if state.phase() != Phase::Live {
                return Some(state);
            }
            let claimed = state.with(self.me, 0, Phase::Claimed);
            if slot.state.compare_exchange(state.0, claimed.0, AcqRel, Relaxed).is_ok() {
                return Some(claimed);
            }
        }
    }

    fn recover_slot(&self, index: u32, slot: &Slot, state: State) {
        let step = state.step();
        match state.phase() {
            Phase::Taking => {
                // In setup nothing was taken, and the list of periods is still another hold's.
                if step < SETUP {
                    self.doubt_take(slot, step, &read(&slot.amounts));
                    self.doubt_pin(slot, step);
                    self.give_back(slot, state, step, &read(&slot.amounts));
                }
                slot.state.store(state.with(0, 0, Phase::Free).0, Release);
            }
            Phase::ToppingUp => {
                if step == APPLY {
                    slot.amounts
                        .iter()
                        .zip(read(&slot.actual))
                        .for_each(|(amount, total)| amount.store(total, Relaxed));
                } else {
                    let mut more = read(&slot.actual);
                    more.iter_mut().zip(read(&slot.amounts)).for_each(|(m, held)| *m = m.saturating_sub(held));
                    // In setup `actual` may be another hold's, and nothing was taken.
                    let taken = if step < APPLY { step } else { 0 };
                    if taken > 0 {
                        self.doubt_take(slot, step, &more);
                    }
                    self.give_back_units(slot, state, taken, &more);
                }
                // Ending writes to `actual`, so a recovery that is killed in it must not be taken for a top-up again.
                let claimed = state.with(self.me, 0, Phase::Claimed);
                slot.state.store(claimed.0, Release);
                self.end_dead(index, slot, claimed);
            }
            Phase::Ending => {
                let from = self.doubt_end(slot, step);
                self.end_from(index, slot, state, from);
            }
            Phase::Live | Phase::Charging | Phase::Claimed => self.end_dead(index, slot, state),
            Phase::Free | Phase::Unknown => {}
        }
    }

    /// A hold whose process is gone counts in full; a meter's at what was charged.
    fn end_dead(&self, index: u32, slot: &Slot, state: State) {
        let flags = slot.flags.load(Relaxed);
        let held = read(&slot.amounts);
        let charged = self.charged(index, slot);
        let actual = if flags & FLAG_METER != 0 {
            unreported(flags | FLAG_DISPATCHED, &held, &charged)
        } else {
            let mut actual = unreported(FLAG_DISPATCHED, &held, &[0; UNITS]);
            // More than was held is owed all the same.
            actual.iter_mut().zip(charged).for_each(|(actual, charged)| *actual = charged.max(*actual));
            Unit::ALL
                .iter()
                .zip(actual.iter_mut())
                .filter(|(unit, _)| unit.is_level())
                .for_each(|(_, level)| *level = 0);
            actual
        };
        self.end_claimed(index, slot, state.with(self.me, 0, Phase::Claimed), &actual);
    }

    /// The step of a taking that may or may not have happened.
    fn doubt_take(&self, slot: &Slot, step: u32, amounts: &[i64; UNITS]) {
        if step < TAKE_PINS {
            return;
        }
        let (at, unit) = place_of(step);
        // A request in doubt is a request spent: nothing else keeps count of them.
        if let Some((place, units)) = slot.entry(at)
            && unit != REQUESTS
            && units & (1 << unit) != 0
        {
            let amount = amounts.get(unit).copied().unwrap_or(0);
            doubt(self.memory.period(place), unit, amount, Doubt::Free);
        }
    }

    /// A pin that may or may not be there is left, until pins are counted again.
    #[expect(clippy::unused_self, reason = "a method beside the other doubts")]
    fn doubt_pin(&self, slot: &Slot, step: u32) {
        if let Some(pinned) = slot.pinned.get(step as usize).filter(|_| step < TAKE_PINS) {
            pinned.store(0, Relaxed);
        }
    }

    /// The step of an ending that may or may not have happened; returns the one to go on with.
    fn doubt_end(&self, slot: &Slot, step: u32) -> u32 {
        let next = step.saturating_add(1);
        if step >= END_PINS {
            return next;
        }
        let (at, part) = ((step / END_STEPS) as usize, step % END_STEPS);
        let unit = (part / 2) as usize;
        let Some((place, units)) = slot.entry(at) else { return next };
        if unit >= UNITS || units & (1 << unit) == 0 || (unit == REQUESTS && part.is_multiple_of(2)) {
            return next;
        }
        let of = |counts| read(counts).get(unit).copied().unwrap_or(0);
        let (held, actual) = (of(&slot.amounts), of(&slot.actual));
        let period = self.memory.period(place);
        if part.is_multiple_of(2) {
            doubt(period, unit, actual, Doubt::Used);
        } else if held >= actual {
            doubt(period, unit, held.saturating_sub(actual), Doubt::Free);
        } else if let Some(free) = period.and_then(|period| cell(&period.free, unit)) {
            // A debt is owed for certain: it is counted again, and if it had been counted the heal gives it back.
            let debt = actual.saturating_sub(held);
            if unit != REQUESTS {
                doubt(period, unit, debt, Doubt::Free);
            }
            add(free, debt.saturating_neg());
        }
        next
    }

    /// Settles what is in doubt. Returns what it found; `None` for a cell means that the ledger did not hold still.
    pub(super) fn heal(&self) -> Healed {
        let mut healed = Healed::default();
        let doubtful: Vec<u32> = self.memory.doubtful().collect();
        if doubtful.is_empty() {
            self.memory.recount_pins();
            return healed;
        }
        let Some(snapshot) = self.memory.snapshot(&doubtful) else {
            healed.not_quiet = doubtful.len();
            return healed;
        };
        for (place, stranded) in snapshot {
            let Some(period) = self.memory.period(place) else { continue };
            for (unit, stranded) in stranded.into_iter().enumerate() {
                heal_cell(period, unit, stranded, &mut healed);
            }
        }
        self.memory.recount_pins();
        healed
    }
}

/// Where the missing units would belong.
#[derive(Clone, Copy)]
enum Doubt {
    Free,
    Used,
}

fn doubt(period: Option<&Period>, unit: usize, amount: i64, kind: Doubt) {
    let Some(period) = period else { return };
    let counts = match kind {
        Doubt::Free => &period.doubt_free,
        Doubt::Used => &period.doubt_used,
    };
    if let Some(count) = cell(counts, unit) {
        add(count, amount);
    }
}

/// What may have been spent is counted as spent first; only what cannot have been goes back.
fn heal_cell(period: &Period, unit: usize, stranded: i64, healed: &mut Healed) {
    let (Some(doubt_free), Some(doubt_used), Some(free), Some(used)) = (
        cell(&period.doubt_free, unit),
        cell(&period.doubt_used, unit),
        cell(&period.free, unit),
        cell(&period.used, unit),
    ) else {
        return;
    };
    let (may_be_free, may_be_used) = (doubt_free.load(Relaxed), doubt_used.load(Relaxed));
    if may_be_free == 0 && may_be_used == 0 {
        return;
    }
    let spent = stranded.clamp(0, may_be_used);
    let freed = stranded.saturating_sub(spent).clamp(0, may_be_free);
    add(used, spent);
    add(free, freed);
    // A recovery adds to these only with the same lock held.
    doubt_free.store(0, Relaxed);
    doubt_used.store(0, Relaxed);
    healed.found = healed.found.saturating_add(stranded.max(0));
    healed.freed = healed.freed.saturating_add(freed);
    healed.spent = healed.spent.saturating_add(spent);
}

impl Memory {
    /// Periods with anything in doubt.
    pub(super) fn doubtful(&self) -> impl Iterator<Item = u32> {
        let in_use = self.header().periods.load(Acquire) as usize;
        (0_u32..)
            .zip(self.periods.iter().take(in_use))
            .filter(|(_, period)| is_doubtful(period))
            .map(|(place, _)| place)
    }

    /// What is stranded in each of these periods, if nothing moved while it was counted.
    pub(super) fn snapshot(&self, places: &[u32]) -> Option<Vec<(u32, [i64; UNITS])>> {
        for attempt in 0..SNAPSHOT_TRIES_MAX {
            let Some((before, held)) = self.scan(Some(places)) else {
                std::thread::sleep(std::time::Duration::from_micros(50 << attempt.min(5)));
                continue;
            };
            let counted: Vec<(u32, [i64; UNITS])> = places
                .iter()
                .filter_map(|place| Some((*place, stranded(self.period(*place)?, held.get(place)))))
                .collect();
            // Acquire: whoever changed what was counted is seen in the slots. The same marks: nobody took or gave back
            // in between, not even a reserve or a top-up that was denied and left everything as it had been.
            fence(Acquire);
            if self.scan(Some(places)).is_some_and(|(after, _)| after == before) {
                return Some(counted);
            }
        }
        None
    }

    /// A mark of every slot, and what live holds hold of each of `places` (of each period, if `None`). `None` while a hold
    /// there is being granted or ended.
    pub(super) fn scan(&self, places: Option<&[u32]>) -> Option<(Vec<Mark>, HashMap<u32, Held>)> {
        let mut marks = Vec::with_capacity(self.slots.len());
        let mut held: HashMap<u32, Held> = HashMap::new();
        for slot in self.slots.iter() {
            // Before the phase: a top-up that raised it is seen in the phase, or is over.
            let top_ups = slot.top_ups.load(Acquire);
            let state = State(slot.state.load(Acquire));
            let phase = state.phase();
            // The list of a hold that is being taken may still be another hold's.
            if phase == Phase::Taking {
                return None;
            }
            let touches = places.is_none_or(|places| slot.entries().any(|(place, _)| places.contains(&place)));
            let live = touches && phase != Phase::Free;
            if live && !matches!(phase, Phase::Live | Phase::Charging) {
                return None;
            }
            let top_ups = if live { top_ups } else { 0 };
            marks.push(Mark { generation: state.generation(), top_ups, live });
            if live {
                add_held(slot, &mut held);
            }
        }
        Some((marks, held))
    }

    /// Lets go of pins that no hold has. Only while nothing moves: a pin too many costs a period, one too few a count.
    fn recount_pins(&self) {
        let Some((before, _)) = self.scan(None) else { return };
        let mut pins: HashMap<(usize, u32), u64> = HashMap::new();
        for slot in self.slots.iter() {
            if State(slot.state.load(Acquire)).phase() == Phase::Free {
                continue;
            }
            for (kind, pinned) in slot.pinned.iter().enumerate() {
                if let Some(id) = pinned.load(Relaxed).checked_sub(1) {
                    let count = pins.entry((kind, id)).or_default();
                    *count = count.saturating_add(1);
                }
            }
        }
        let mut loose: Vec<(&Epoch, u64, u64)> = Vec::new();
        for (at, epoch) in self.epochs.iter().enumerate() {
            epoch.word.announce();
            let word = Word(epoch.word.load(Acquire));
            let Some(id) = word.id_plus_1().checked_sub(1) else { continue };
            let kind = at.checked_div(EPOCHS_LEN as usize).unwrap_or(0);
            let counted = pins.get(&(kind, id)).copied().unwrap_or(0);
            if word.pins() > counted {
                loose.push((epoch, word.0, word.pins().saturating_sub(counted)));
            }
        }
        fence(Acquire);
        if loose.is_empty() || self.scan(None).is_none_or(|(after, _)| after != before) {
            return;
        }
        for (epoch, word, pins) in loose {
            // Fails if anybody pinned or let go since: then the next recovery looks again.
            let _ = epoch.word.compare_exchange(word, word.saturating_sub(pins), Release, Relaxed);
        }
    }
}

/// What a live hold holds of each of its periods.
fn add_held(slot: &Slot, held: &mut HashMap<u32, Held>) {
    let amounts = read(&slot.amounts);
    for (place, units) in slot.entries() {
        let held = held.entry(place).or_default();
        for unit in super::period::units_of(units & UNITS_HELD) {
            if let (Some(sum), Some(amount)) = (held.amounts.get_mut(unit), amounts.get(unit)) {
                *sum = sum.saturating_add(*amount);
            }
        }
    }
}

fn is_doubtful(period: &Period) -> bool {
    let any = |counts: &super::layout::Counts| counts.iter().any(|count| count.load(Relaxed) != 0);
    any(&period.doubt_free) || any(&period.doubt_used)
}

/// limit + overdraft - used - free - held, for each unit; of requests nothing is ever stranded.
pub(super) fn stranded(period: &Period, held: Option<&Held>) -> [i64; UNITS] {
    let sum = |unit: usize| {
        if unit == REQUESTS {
            return 0;
        }
        let of = |counts: &super::layout::Counts| cell(counts, unit).map_or(0, |count| count.load(Relaxed));
        let held = held.and_then(|held| held.amounts.get(unit)).copied().unwrap_or(0);
        of(&period.limit)
            .saturating_add(of(&period.overdraft))
            .saturating_sub(of(&period.used))
            .saturating_sub(of(&period.free))
            .saturating_sub(held)
    };
    std::array::from_fn(sum)
}
