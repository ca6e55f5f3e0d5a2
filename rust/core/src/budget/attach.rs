//! Processes: taking a number, ending what dead ones left, and letting go.
//!
//! A process lives as long as the kernel keeps its lock. Its number is used again only after everything under it has
//! been recovered, so a number in a slot always means one process.

use std::path::Path;

use super::clock::Clock;
use super::error::BudgetError;
use super::event::EventKind;
use super::hold::Hand;
use super::layout::{Owner, Phase, State};
use super::memory::Memory;
use super::period::Liveness;
use super::recover::{Healed, stranded};
use super::store::{Found, RECOVERER, io_error, owner_lock};
use crate::map::LockFile;
use crate::sync::Ordering::{Acquire, Relaxed, Release};

/// Nobody can be asked for more than is written down: used while the ledger's lock is held.
struct Dead<'a>(&'a [u32]);

impl Liveness for Dead<'_> {
    fn is_dead(&self, owner: u32) -> bool {
        owner == RECOVERER || self.0.contains(&owner)
    }
}

impl Memory {
    /// The numbers of processes that are gone, and how many live. The caller holds the ledger's lock.
    fn census(&self, locks: &LockFile, me: Option<u32>) -> std::io::Result<(Vec<u32>, usize)> {
        let (mut dead, mut living) = (Vec::new(), 0_usize);
        for (number, owner) in (1_u32..).zip(self.owners.iter()) {
            if owner.epoch.load(Relaxed) == 0 && Some(number) != me {
                // Nobody has it, so whatever stands under it is a dead one's.
                dead.push(number);
            } else if Some(number) == me || locks.is_locked_elsewhere(owner_lock(number))? {
                living = living.saturating_add(1);
            } else {
                dead.push(number);
            }
        }
        Ok((dead, living))
    }

    /// Whether any process has a number, whatever the table says of it.
    pub(super) fn any_living(&self, locks: &LockFile) -> std::io::Result<bool> {
        for number in (1_u32..).take(self.owners.len()) {
            if locks.is_locked_elsewhere(owner_lock(number))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a process that took a number is gone.
    pub(super) fn any_dead(&self, locks: &LockFile, me: u32) -> bool {
        (1_u32..).zip(self.owners.iter()).any(|(number, owner)| {
            let taken = number != me && owner.epoch.load(Relaxed) != 0;
            taken && locks.is_locked_elsewhere(owner_lock(number)).is_ok_and(|held| !held)
        })
    }

    /// Ends what dead processes left. The caller holds the ledger's lock. Returns how many processes and holds.
    pub(super) fn recover_dead(&self, locks: &LockFile, me: Option<u32>) -> std::io::Result<(usize, usize, usize)> {
        let (dead, living) = self.census(locks, me)?;
        let in_table = u32::try_from(self.owners.len()).unwrap_or(u32::MAX);
        let alive = Dead(&dead);
        let hand = Hand { memory: self, me: RECOVERER, alive: &alive };
        let holds = hand.recover(&|owner| alive.is_dead(owner) || owner > in_table || owner == 0);
        let gone = |number: &&u32| {
            let owner = (**number as usize).checked_sub(1).and_then(|at| self.owners.get(at));
            owner.is_some_and(|owner| owner.epoch.swap(0, Relaxed) != 0)
        };
        let processes = dead.iter().filter(gone).count();
        if processes > 0 || holds > 0 {
            let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            self.note(EventKind::Recovered, None, count(holds), count(processes));
        }
        Ok((processes, holds, living))
    }

    /// Takes a number for this process. The caller holds the ledger's lock.
    pub(super) fn attach(
        &self,
        path: &Path,
        locks: &LockFile,
        clock: &dyn Clock,
        found: Found,
    ) -> Result<u32, BudgetError> {
        let ask = |error| io_error(path, "ask for locks", error);
        let (_, _, living) = self.recover_dead(locks, None).map_err(ask)?;
        if living == 0 {
            // Whoever waited and was killed waits no more.
            self.header().waiters.store(0, Relaxed);
            self.check_cells().map_err(|message| BudgetError::Corrupt { file: path.display().to_string(), message })?;
            self.heal_and_note();
            self.accept_clock(clock);
        }
        if found == Found::Restarted {
            self.note(EventKind::Restarted, None, 0, 0);
        }
        for (number, owner) in (1_u32..).zip(self.owners.iter()) {
            if owner.epoch.load(Relaxed) == 0 && locks.try_lock(owner_lock(number)).map_err(ask)? {
                claim(owner, clock.wall_ms());
                return Ok(number);
            }
        }
        Err(BudgetError::Processes { file: path.display().to_string(), limit: self.owners.len() })
    }

    /// Settles doubts and notes what came of it. The caller holds the ledger's lock.
    pub(super) fn heal_and_note(&self) -> Healed {
        let hand = Hand { memory: self, me: RECOVERER, alive: &Dead(&[]) };
        let healed = hand.heal();
        if healed.found != 0 {
            self.note(EventKind::Healed, None, healed.found, healed.freed);
        }
        healed
    }

    /// Whether every cell adds up while nobody moves: limit + overdraft = used + free + stranded, and no more stranded
    /// than dead processes can have left. What a damaged file would get wrong.
    fn check_cells(&self) -> Result<(), String> {
        for (index, slot) in self.slots.iter().enumerate() {
            if State(slot.state.load(Acquire)).phase() != Phase::Free {
                return Err(format!("hold {index} is damaged: it is in no phase that a hold can be in"));
            }
        }
        let in_use = self.header().periods.load(Acquire) as usize;
        for (place, period) in self.periods.iter().take(in_use).enumerate() {
            if super::layout::Word(period.word.load(Acquire)).opener() != 0 {
                return Err(format!("period {place} is damaged: it is still being opened"));
            }
            for (unit, stranded) in stranded(period, None).into_iter().enumerate() {
                let of = |counts: &super::layout::Counts| counts.get(unit).map_or(0, |count| count.load(Relaxed));
                let most = of(&period.doubt_free).saturating_add(of(&period.doubt_used));
                let used = of(&period.used);
                // An amount at the end of its range was cut there and adds up to nothing.
                let cut = used == i64::MAX || of(&period.free) == i64::MIN;
                if used < 0 || (!cut && !(0..=most).contains(&stranded)) {
                    return Err(format!(
                        "period {place} does not add up: {stranded} units are missing, at most {most} can be"
                    ));
                }
            }
        }
        Ok(())
    }
}

fn claim(owner: &Owner, wall_ms: i64) {
    owner.pid.store(std::process::id(), Relaxed);
    owner.attached_ms.store(wall_ms, Relaxed);
    // Release: whoever sees the number taken sees whose it is.
    owner.epoch.store(1, Release);
}
