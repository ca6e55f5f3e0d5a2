//! The ledger's time: the wall clock, as far as the boot clock bears it out.
//!
//! It never goes backwards, and a wall clock that was set forward is followed only as far as time has really passed
//! (and a second more, for time servers that slew): nobody opens tomorrow's budget by setting the date. A clock that
//! was wrong and is now right is accepted on request, or by the first process that opens the ledger.

use super::clock::Clock;
use super::layout::{CLOSED, EPOCHS_LEN, Epoch, Word};
use super::memory::Memory;
use super::window::Window;
use crate::limits::CLOCK_SLACK_MS;
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed};
use crate::sync::{Announce as _, spin_loop};

// Relaxed throughout: a time orders nothing, and every word is read by itself. A reader that sees an old anchor clamps
// to an older time, which is the safe side.

impl Memory {
    /// The latest that the wall clock is believed, by the boot clock.
    pub(super) fn believed_until(&self, clock: &dyn Clock) -> i64 {
        let header = self.header();
        let passed = clock.boot_ms().saturating_sub(header.anchor_boot_ms.load(Relaxed)).max(0);
        header.anchor_wall_ms.load(Relaxed).saturating_add(passed).saturating_add(CLOCK_SLACK_MS)
    }

    /// Moves the ledger's time to `wall_ms` unless it is later already, and returns it.
    #[inline]
    pub(super) fn advance(&self, wall_ms: i64) -> i64 {
        let last = &self.header().last_ms;
        let before = last.load(Relaxed);
        if wall_ms <= before {
            return before;
        }
        last.fetch_max(wall_ms, Relaxed).max(wall_ms)
    }

    /// Believes the wall clock from here on. The ledger's time still does not go backwards.
    pub(super) fn accept_clock(&self, clock: &dyn Clock) {
        let header = self.header();
        header.anchor_boot_ms.store(clock.boot_ms(), Relaxed);
        header.anchor_wall_ms.store(clock.wall_ms(), Relaxed);
    }

    /// Sets the ledger's time back to a clock that was wrong and is right now, and forgets windows that lie after it: they
    /// were opened by the wrong clock. One in which a hold lives is kept, and ends when its time has come.
    pub(super) fn forget_later_windows(&self, wall_ms: i64) {
        if wall_ms >= self.header().last_ms.load(Relaxed) {
            return;
        }
        self.header().last_ms.store(wall_ms, Relaxed);
        let kinds = || Window::ALL.into_iter().filter(|window| *window != Window::Total);
        let lies_later = |window: Window, word: Word| word.id_plus_1() > window.id_at(wall_ms).wrapping_add(1);
        // Closed first: a reserve that still has the wrong time is not let in while its windows are taken away.
        let mut closed: Vec<&Epoch> = Vec::new();
        for (window, id) in kinds().flat_map(|window| (0..EPOCHS_LEN).map(move |id| (window, id))) {
            let Some(epoch) = self.epoch(window, id) else { continue };
            let leaves = |word: Word| lies_later(window, word) && word.pins() == 0;
            let over = |word: Word| Word::new(word.id_plus_1().wrapping_sub(1), CLOSED, 0);
            if change(epoch, |word| leaves(word).then(|| over(word))) {
                closed.push(epoch);
            }
        }
        for node in self.nodes.iter().take(self.nodes_len() as usize) {
            for window in kinds() {
                for period in self.ring(node, window) {
                    let word = Word(period.word.load(Acquire));
                    let id = word.id_plus_1().wrapping_sub(1);
                    let epoch = self.epoch(window, id);
                    let holds = |epoch: &Epoch| Word(epoch.word.load(Acquire)).id_plus_1() == word.id_plus_1();
                    let is_closed = |epoch: &Epoch| closed.iter().any(|other| std::ptr::eq(*other, epoch));
                    let kept = epoch.is_some_and(|epoch| holds(epoch) && !is_closed(epoch));
                    if lies_later(window, word) && !kept && word.opener() == 0 {
                        let _ = period.word.compare_exchange(word.0, 0, AcqRel, Relaxed);
                    }
                }
            }
        }
        for epoch in closed {
            // A pin of somebody with the wrong time stays until they let go of it.
            change(epoch, |word| Some(Word(word.pins())));
        }
    }

    /// How far the wall clock is ahead of the ledger's time (positive) or behind it.
    pub(super) fn clock_skew_ms(&self, clock: &dyn Clock) -> i64 {
        let wall_ms = clock.wall_ms();
        let ledger_ms = self.header().last_ms.load(Relaxed).max(wall_ms.min(self.believed_until(clock)));
        wall_ms.saturating_sub(ledger_ms)
    }
}

/// Gives an epoch the word that `wanted` says, whoever pins or lets go at this moment; `false` if it wants none.
fn change(epoch: &Epoch, wanted: impl Fn(Word) -> Option<Word>) -> bool {
    loop {
        epoch.word.announce();
        let word = Word(epoch.word.load(Acquire));
        let Some(new) = wanted(word) else { return false };
        if epoch.word.compare_exchange(word.0, new.0, AcqRel, Relaxed).is_ok() {
            return true;
        }
        spin_loop();
    }
}
