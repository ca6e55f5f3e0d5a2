//! What an auditor wants to know of a ledger: limits that were changed, holds that were recovered. The last ones are
//! kept in the ledger itself, so that no process can change a limit without a trace.

use super::layout::EventEntry;
use super::memory::Memory;
use super::unit::Unit;
use super::window::Window;
use crate::sync::Ordering::{Acquire, Relaxed, Release};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A limit was changed while the ledger ran
    LimitChanged,
    /// Limits were read anew from a file that had changed
    LimitsLoaded,
    /// Holds of dead processes were ended
    Recovered,
    /// Stranded units were settled
    Healed,
    /// The ledger was rebuilt after the host had restarted
    Restarted,
    /// The wall clock was accepted after it had jumped
    ClockAccepted,
}

impl EventKind {
    const ALL: [Self; 6] =
        [Self::LimitChanged, Self::LimitsLoaded, Self::Recovered, Self::Healed, Self::Restarted, Self::ClockAccepted];

    /// Stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LimitChanged => "limit_changed",
            Self::LimitsLoaded => "limits_loaded",
            Self::Recovered => "recovered",
            Self::Healed => "healed",
            Self::Restarted => "restarted",
            Self::ClockAccepted => "clock_accepted",
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Counted from 1 over the ledger's life
    pub number: u64,
    /// The ledger's time
    pub at_ms: i64,
    /// What happened
    pub kind: EventKind,
    /// Process id of who did it, in its own namespace
    pub pid: u32,
    /// The budget, unit and window of a limit
    pub cell: Option<(String, Unit, Window)>,
    /// What it was; of a recovery, how many holds
    pub before: i64,
    /// What it is; of a heal, how many units went back
    pub after: i64,
}

impl Memory {
    /// Notes an event. The caller holds the ledger's lock.
    pub(super) fn note(&self, kind: EventKind, cell: Option<(u32, Unit, Window)>, before: i64, after: i64) {
        let header = self.header();
        let number = header.events.load(Relaxed).wrapping_add(1);
        let len = self.events.len() as u64;
        let Some(entry) = number.checked_rem(len).and_then(|at| self.events.get(usize::try_from(at).ok()?)) else {
            return;
        };
        entry.number.store(0, Relaxed);
        entry.at_ms.store(header.last_ms.load(Relaxed), Relaxed);
        entry.kind.store(kind as u32, Relaxed);
        entry.pid.store(std::process::id(), Relaxed);
        let (node, unit, window) =
            cell.map_or((u32::MAX, 0, 0), |(node, unit, window)| (node, unit as u32, window as u32));
        entry.node.store(node, Relaxed);
        entry.cell.store(unit | (window << 16), Relaxed);
        entry.before.store(before, Relaxed);
        entry.after.store(after, Relaxed);
        // Release: whoever sees the number sees the rest.
        entry.number.store(number, Release);
        header.events.store(number, Release);
    }

    /// The events that are still kept, oldest first.
    pub(super) fn events(&self) -> Vec<Event> {
        let mut events: Vec<Event> = self.events.iter().filter_map(|entry| self.event(entry)).collect();
        events.sort_unstable_by_key(|event| event.number);
        events
    }

    fn event(&self, entry: &EventEntry) -> Option<Event> {
        let number = entry.number.load(Acquire);
        if number == 0 {
            return None;
        }
        let kind = EventKind::ALL.into_iter().find(|kind| *kind as u32 == entry.kind.load(Relaxed))?;
        let word = entry.cell.load(Relaxed);
        let unit = Unit::ALL.into_iter().find(|unit| *unit as u32 == word & 0xffff)?;
        let window = Window::ALL.into_iter().find(|window| *window as u32 == word >> 16)?;
        let path = self.nodes.get(entry.node.load(Relaxed) as usize).and_then(super::layout::NodeEntry::path);
        Some(Event {
            number,
            at_ms: entry.at_ms.load(Relaxed),
            kind,
            pid: entry.pid.load(Relaxed),
            cell: path.map(|path| (path, unit, window)),
            before: entry.before.load(Relaxed),
            after: entry.after.load(Relaxed),
        })
    }
}
