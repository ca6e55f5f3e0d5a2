//! Records what happens to the ledger: limits that change, holds that are recovered.
//!
//! The ledger keeps its last events itself, because any process may change a limit, also one that has no log. A gate
//! that has both looks once in a while and records what it has not seen yet. Several processes may record the same
//! event; its number tells.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;

use super::evidence::record_observed;
use super::state::GateState;
use crate::audit::entry::{Kind, Private, Record, push_number, push_text};
use crate::audit::log::Log;
use crate::budget::clock::{Clock as _, SystemClock};
use crate::budget::event::{Event, EventKind};
use crate::budget::ledger::Ledger;

/// What the log's thread runs once a second, as long as the gate lives.
#[derive(Debug)]
pub(super) struct Follower {
    _alive: Arc<()>,
}

impl Follower {
    pub(super) fn start(log: &Arc<Log>, state: &Arc<ArcSwap<GateState>>, observed: &Arc<Observed>) -> Self {
        let alive = Arc::new(());
        let (log_of, state_of, gate) = (Arc::downgrade(log), Arc::downgrade(state), Arc::downgrade(&alive));
        let observed = Arc::clone(observed);
        log.follow(Box::new(move || follow(&log_of, &state_of, &observed, &gate)));
        Self { _alive: alive }
    }
}

/// False when there is nothing to follow any more.
fn follow(log: &Weak<Log>, state: &Weak<ArcSwap<GateState>>, observed: &Observed, gate: &Weak<()>) -> bool {
    let (Some(log), Some(state), Some(_)) = (log.upgrade(), state.upgrade(), gate.upgrade()) else { return false };
    let state = state.load();
    let now_ms = state.ledger().map_or_else(|| SystemClock.wall_ms(), |ledger| ledger.clock().wall_ms());
    state.control().check_name(now_ms);
    if !observed.is(state.control().word()) {
        observed.note(&state, now_ms);
    }
    if let Some(ledger) = state.ledger() {
        record_events(&log, ledger);
    }
    true
}

/// The state of the table of revocations that the log tells of.
#[derive(Debug, Default)]
pub(super) struct Observed {
    word: AtomicU64,
    /// Held while the entry is made
    recording: Mutex<()>,
}

impl Observed {
    /// Whether the log tells of this state of the table.
    #[inline]
    pub(super) fn is(&self, word: u64) -> bool {
        // Acquire: whoever finds the number sees the entry that it stands for, and is recorded behind it.
        self.word.load(Ordering::Acquire) == word
    }

    /// Says in the log that the table has changed, once for each of its states. Returns the generation.
    pub(super) fn note(&self, state: &GateState, now_ms: i64) -> u64 {
        let recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let table = state.control().revocations();
        if !self.is(table.word()) {
            if let Some(audit) = state.audit() {
                record_observed(audit, table.generation(), table.list(), now_ms);
            }
            self.word.store(table.word(), Ordering::Release);
        }
        drop(recording);
        table.generation()
    }
}

fn record_events(log: &Log, ledger: &Ledger) {
    let events = ledger.events();
    let Some(last) = events.last().map(|event| event.number) else { return };
    let seen = log.cursor();
    // A ledger that has counted less than was seen is another one.
    let seen = if seen > last { 0 } else { seen };
    for event in events.iter().filter(|event| event.number > seen) {
        let members = members(event);
        let record =
            Record { kind: kind(event.kind), time_ms: event.at_ms, head: &members, tail: &[], private: Private::None };
        if log.append_later(&record).is_err() {
            return;
        }
        log.set_cursor(event.number);
    }
}

const fn kind(kind: EventKind) -> Kind {
    match kind {
        EventKind::LimitChanged => Kind::LimitChanged,
        EventKind::LimitsLoaded => Kind::LimitsLoaded,
        EventKind::Recovered => Kind::Recovered,
        EventKind::Healed => Kind::Healed,
        EventKind::Restarted => Kind::Restarted,
        EventKind::ClockAccepted => Kind::ClockAccepted,
    }
}

fn members(event: &Event) -> Vec<u8> {
    let mut members = Vec::new();
    push_number(&mut members, "number", i64::try_from(event.number).unwrap_or(i64::MAX));
    push_number(&mut members, "pid", event.pid.into());
    if let Some((path, unit, window)) = &event.cell {
        push_text(&mut members, "path", path);
        push_text(&mut members, "unit", unit.name());
        push_text(&mut members, "window", window.name());
    }
    push_number(&mut members, "before", event.before);
    push_number(&mut members, "after", event.after);
    members
}
