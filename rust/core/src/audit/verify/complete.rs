//! Completeness: whether every sequence number of every producer is there, and which decisions were allowed and never
//! ended. Memory is bounded: ranges and pages beyond a bound are counted, not kept.

use std::collections::HashMap;

use serde_json::Value;

use super::envelope::{DecisionId, Envelope, Producer};
use crate::limits::{AUDIT_OPEN_PAGES_MAX, AUDIT_PRODUCERS_MAX, AUDIT_RANGES_MAX};

/// Sequence numbers that are not in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Whose
    pub producer: Producer,
    /// The first
    pub from: u64,
    /// The last
    pub to: u64,
    /// The entry before which they should be
    pub before_index: u64,
}

/// What is known of the completeness of one process slot's log, over all its epochs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Completeness {
    /// Entries that were read
    pub entries: u64,
    /// Entries of each kind
    pub kinds: Vec<(String, u64)>,
    /// Producers
    pub producers: u64,
    /// Missing numbers that nothing explains
    pub missing: Vec<Missing>,
    /// How many numbers those are, and those beyond what is listed
    pub missing_count: u64,
    /// Numbers that `recovery` entries name: claimed by a process that was killed, and never published
    pub lost_count: u64,
    /// Entries whose number is not above the one before, and the first such entry
    pub disordered_count: u64,
    /// The first of them
    pub disordered_first: Option<u64>,
    /// Decisions
    pub decisions: u64,
    /// Decisions that allowed
    pub allowed: u64,
    /// Decisions that allowed, and no outcome says what came of it
    pub allowed_without_outcome: u64,
    /// Outcomes
    pub outcomes: u64,
    /// Outcomes of decisions that are not in these logs as allowed and open
    pub outcomes_without_decision: u64,
    /// Decisions that were let through without an entry, as `gap` entries say
    pub gap_count: u64,
    /// Denials without an entry, as `denied_unlogged` entries say
    pub denied_unlogged_count: u64,
    /// Entries that completeness could not follow, for a bound
    pub untracked: u64,
}

impl Completeness {
    /// Whether nothing is known to be missing.
    pub const fn holds(&self) -> bool {
        self.missing_count == 0 && self.disordered_count == 0 && self.gap_count == 0
    }
}

#[derive(Debug)]
struct Sequence {
    next: u64,
    lost: Vec<(u64, u64)>,
}

/// Follows the entries of a log.
#[derive(Debug, Default)]
pub struct Tracker {
    found: Completeness,
    sequences: HashMap<Producer, Sequence>,
    /// The producer of the entry before, and its next number: most entries follow one of the same
    current: Option<(Producer, u64)>,
    missing: Vec<Missing>,
    unlisted: u64,
    open: HashMap<(u64, u64), Box<[u64; 64]>>,
    open_count: u64,
    /// The log's beginning is not here, so first numbers may be any
    pub headless: bool,
}

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

impl Tracker {
    /// Takes the next entry.
    pub fn take(&mut self, index: u64, envelope: &Envelope<'_>, entry: &[u8]) {
        self.found.entries = self.found.entries.saturating_add(1);
        self.count_kind(envelope.kind);
        self.sequence(index, envelope.producer, envelope.seq);
        match envelope.kind {
            "decision" => {
                self.found.decisions = self.found.decisions.saturating_add(1);
                if let (true, Some(id)) = (envelope.allow, envelope.id) {
                    self.found.allowed = self.found.allowed.saturating_add(1);
                    self.opened(id);
                }
            }
            "outcome" => {
                self.found.outcomes = self.found.outcomes.saturating_add(1);
                if let Some(of) = envelope.of {
                    self.ended(of);
                }
            }
            "recovery" | "gap" | "denied_unlogged" => {
                if let Ok(value) = serde_json::from_slice::<Value>(entry) {
                    self.control(envelope.kind, &value);
                }
            }
            _ => {}
        }
    }

    fn count_kind(&mut self, kind: &str) {
        if let Some((_, count)) = self.found.kinds.iter_mut().find(|(name, _)| name == kind) {
            *count = count.saturating_add(1);
        } else if self.found.kinds.len() < 64 {
            self.found.kinds.push((kind.to_owned(), 1));
        } else {
            self.untracked();
        }
    }

    fn untracked(&mut self) {
        self.found.untracked = self.found.untracked.saturating_add(1);
    }

    fn sequence(&mut self, index: u64, producer: Producer, seq: u64) {
        match &mut self.current {
            Some((before, next)) if *before == producer && *next == seq => {
                *next = seq.saturating_add(1);
                return;
            }
            _ => self.settle(),
        }
        let room = self.sequences.len() < AUDIT_PRODUCERS_MAX;
        let expected = match self.sequences.get_mut(&producer) {
            Some(sequence) => {
                let expected = sequence.next;
                sequence.next = expected.max(seq.saturating_add(1));
                expected
            }
            None if room => {
                let sequence = Sequence { next: seq.saturating_add(1), lost: Vec::new() };
                self.sequences.insert(producer, sequence);
                if self.headless { seq } else { 1 }
            }
            None => return self.untracked(),
        };
        let next = self.sequences.get(&producer).map_or(0, |sequence| sequence.next);
        self.current = Some((producer, next));
        if seq < expected {
            self.found.disordered_count = self.found.disordered_count.saturating_add(1);
            self.found.disordered_first.get_or_insert(index);
        } else if seq > expected {
            let to = seq.saturating_sub(1);
            if self.missing.len() < AUDIT_RANGES_MAX {
                self.missing.push(Missing { producer, from: expected, to, before_index: index });
            } else {
                self.unlisted = self.unlisted.saturating_add(seq.saturating_sub(expected));
            }
        }
    }

    /// Writes the current producer's number back.
    fn settle(&mut self) {
        if let Some((producer, next)) = self.current.take()
            && let Some(sequence) = self.sequences.get_mut(&producer)
        {
            sequence.next = next;
        }
    }

    fn control(&mut self, kind: &str, value: &Value) {
        match kind {
            "gap" => self.found.gap_count = self.found.gap_count.saturating_add(number(value, "count")),
            "denied_unlogged" => {
                let count = self.found.denied_unlogged_count.saturating_add(number(value, "count"));
                self.found.denied_unlogged_count = count;
            }
            _ => self.recovery(value),
        }
    }

    fn recovery(&mut self, value: &Value) {
        let Some(of) = value.get("of").and_then(Value::as_str).and_then(Producer::parse) else { return };
        let Some(lost) = value.get("lost").and_then(Value::as_array) else { return };
        for range in lost {
            let (Some(from), Some(to)) = (range.get(0).and_then(Value::as_u64), range.get(1).and_then(Value::as_u64))
            else {
                continue;
            };
            let Some(length) = to.checked_sub(from) else { continue };
            self.found.lost_count = self.found.lost_count.saturating_add(length).saturating_add(1);
            // A producer that published nothing has no sequence, so its lost numbers leave no gap either.
            if let Some(sequence) = self.sequences.get_mut(&of) {
                if sequence.lost.len() < AUDIT_RANGES_MAX {
                    sequence.lost.push((from, to));
                } else {
                    self.found.untracked = self.found.untracked.saturating_add(1);
                }
            }
        }
    }

    fn opened(&mut self, id: DecisionId) {
        let page = (id.instance, id.number >> 12);
        if self.open.len() >= AUDIT_OPEN_PAGES_MAX && !self.open.contains_key(&page) {
            return self.untracked();
        }
        let words = self.open.entry(page).or_insert_with(|| Box::new([0; 64]));
        let bit = 1_u64 << (id.number & 63);
        if let Some(word) = words.get_mut((id.number >> 6 & 63) as usize)
            && *word & bit == 0
        {
            *word |= bit;
            self.open_count = self.open_count.saturating_add(1);
        }
    }

    fn ended(&mut self, id: DecisionId) {
        let page = (id.instance, id.number >> 12);
        let bit = 1_u64 << (id.number & 63);
        let word = self.open.get_mut(&page).and_then(|words| words.get_mut((id.number >> 6 & 63) as usize));
        match word {
            Some(word) if *word & bit != 0 => {
                *word &= !bit;
                self.open_count = self.open_count.saturating_sub(1);
                // A page is given back once there are many: the newest would only be made again.
                let many = self.open.len() > 1_024;
                if many && self.open.get(&page).is_some_and(|words| words.iter().all(|word| *word == 0)) {
                    self.open.remove(&page);
                }
            }
            _ => self.found.outcomes_without_decision = self.found.outcomes_without_decision.saturating_add(1),
        }
    }

    /// What was found, once all entries were taken.
    pub fn finish(mut self) -> Completeness {
        self.found.producers = self.sequences.len() as u64;
        self.found.allowed_without_outcome = self.open_count;
        self.found.missing_count = self.unlisted;
        for sequence in self.sequences.values_mut() {
            sequence.lost.sort_unstable();
        }
        for range in &self.missing {
            let lost = self.sequences.get(&range.producer).map_or(&[][..], |sequence| sequence.lost.as_slice());
            for (from, to) in without(range.from, range.to, lost) {
                let count = to.saturating_sub(from).saturating_add(1);
                self.found.missing_count = self.found.missing_count.saturating_add(count);
                if self.found.missing.len() < AUDIT_RANGES_MAX {
                    self.found.missing.push(Missing { from, to, ..range.clone() });
                }
            }
        }
        self.found
    }
}

/// The parts of a range that sorted others leave.
fn without(from: u64, to: u64, others: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut left = Vec::new();
    let mut at = from;
    for (start, end) in others {
        if *end < at || *start > to {
            continue;
        }
        if *start > at {
            left.push((at, start.saturating_sub(1)));
        }
        match end.checked_add(1) {
            Some(next) => at = at.max(next),
            None => return left,
        }
    }
    if at <= to {
        left.push((at, to));
    }
    left
}
