//! The ledger's time: the wall clock, as far as the boot clock bears it out.
//!
//! It never goes backwards, and a wall clock that was set forward is followed only as far as time has really passed
//! (and a second more, for time servers that slew): nobody opens tomorrow's budget by setting the date. A clock that
//! was wrong and is now right is accepted on request, or by the first process that opens the ledger.

use super::clock::Clock;
use super::memory::Memory;
use crate::limits::CLOCK_SLACK_MS;
use crate::sync::Ordering::Relaxed;

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

    /// How far the wall clock is ahead of the ledger's time (positive) or behind it.
    pub(super) fn clock_skew_ms(&self, clock: &dyn Clock) -> i64 {
        let wall_ms = clock.wall_ms();
        let ledger_ms = self.header().last_ms.load(Relaxed).max(wall_ms.min(self.believed_until(clock)));
        wall_ms.saturating_sub(ledger_ms)
    }
}
