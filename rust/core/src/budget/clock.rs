//! Clocks, passed in: the system's, or one that a test or a replay moves.
//!
//! The ledger compares the wall clock with the clock that runs since boot, suspended time included: a wall clock that
//! was set is noticed by the difference.

use crate::sync::{AtomicI64, Ordering};

/// Two clocks, in milliseconds.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Since 1970, UTC. May be set at any time.
    fn wall_ms(&self) -> i64;
    /// Since some moment before now, the same for every process until the host restarts. Never goes backwards.
    fn boot_ms(&self) -> i64;
}

/// The clocks of the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall_ms(&self) -> i64 {
        // The kernel's last tick, at most 4 ms ago: a fifth of the price, and it never opens a window early.
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        now.tv_sec.saturating_mul(1_000).saturating_add(now.tv_nsec / 1_000_000)
    }

    fn boot_ms(&self) -> i64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        now.tv_sec.saturating_mul(1_000).saturating_add(now.tv_nsec / 1_000_000)
    }
}

/// Clocks that stand still until they are moved.
#[derive(Debug)]
pub struct FakeClock {
    wall_ms: AtomicI64,
    boot_ms: AtomicI64,
}

impl FakeClock {
    /// A wall clock that shows `wall_ms`, on a host that has just started.
    pub fn new(wall_ms: i64) -> Self {
        Self { wall_ms: AtomicI64::new(wall_ms), boot_ms: AtomicI64::new(0) }
    }

    /// Lets time pass: both clocks move. The boot clock does not go backwards.
    pub fn advance(&self, ms: i64) {
        self.step(ms);
        // Relaxed: a clock orders nothing.
        self.boot_ms.fetch_add(ms.max(0), Ordering::Relaxed);
    }

    /// Sets the wall clock forwards or backwards while no time passes.
    pub fn step(&self, ms: i64) {
        self.wall_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for FakeClock {
    fn wall_ms(&self) -> i64 {
        self.wall_ms.load(Ordering::Relaxed)
    }

    fn boot_ms(&self) -> i64 {
        self.boot_ms.load(Ordering::Relaxed)
    }
}
