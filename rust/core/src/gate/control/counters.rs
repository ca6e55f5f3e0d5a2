//! What every gate of the host counts: decisions by code, how long they took, what it has loaded and seen.
//!
//! A process has a slot and the lock of its number, which the kernel takes from it when it dies: so whoever looks knows
//! who lives. The counts of a slot that is left, or that a dead process had, are added to those of all that are gone.
//! Counting is one relaxed addition. Counts are for people: a process killed while it moves them loses some.

use std::sync::Arc;

use super::Control;
use super::layout::{BUCKETS, GateSlot, get_bytes, put_bytes};
use crate::limits::CONTROL_CODES_MAX;
use crate::map::{self, Table};
use crate::sync::AtomicU64;
use crate::sync::Ordering::Relaxed;

/// The first bucket holds everything below 2 to this power, in nanoseconds.
const FIRST_BITS: u32 = 6;
/// The last bucket holds everything from 2 to this power on.
const LAST_BITS: u32 = 24;
/// Each power of two has four buckets.
const SUB_BITS: u32 = 2;

/// The bucket of a duration.
fn bucket_of(ns: u64) -> usize {
    let bits = ns.checked_ilog2().unwrap_or(0);
    if bits < FIRST_BITS {
        return 0;
    }
    if bits >= LAST_BITS {
        return BUCKETS.saturating_sub(1);
    }
    let sub = (ns >> bits.saturating_sub(SUB_BITS)) & ((1 << SUB_BITS) - 1);
    let octave = bits.saturating_sub(FIRST_BITS) as usize;
    octave.saturating_mul(1 << SUB_BITS).saturating_add(1).saturating_add(usize::try_from(sub).unwrap_or(0))
}

/// The first duration that is not in a bucket any more; `None` for the last one.
fn end_of(bucket: usize) -> Option<u64> {
    let Some(place) = bucket.checked_sub(1) else { return Some(1 << FIRST_BITS) };
    let (octave, sub) = (place >> SUB_BITS, (place & ((1 << SUB_BITS) - 1)) as u64);
    let bits = u32::try_from(octave).ok()?.checked_add(FIRST_BITS).filter(|bits| *bits < LAST_BITS)?;
    let quarter = 1_u64 << bits.saturating_sub(SUB_BITS);
    Some((1_u64 << bits).saturating_add(quarter.saturating_mul(sub.saturating_add(1))))
}

/// What one gate has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountersRow {
    /// Process id in the namespace of the process itself; 0: all that are gone
    pub pid: u32,
    /// It lives
    pub alive: bool,
    /// When it started, in milliseconds since 1970
    pub started_ms: i64,
    /// Digest of what it has loaded
    pub bundle: [u8; 32],
    /// It only says what it would deny
    pub shadow: bool,
    /// The generation of the revocations that it has seen
    pub generation: u64,
    /// Decisions by the number of their code
    pub codes: [u64; CONTROL_CODES_MAX],
    /// Decisions whose time was taken
    pub timed: u64,
    /// Half of them took no longer, to a quarter of a power of two
    pub p50_ns: u64,
    /// 99 of 100 took no longer
    pub p99_ns: u64,
    /// 999 of 1,000 took no longer
    pub p999_ns: u64,
    /// The longest
    pub max_ns: u64,
    /// From, below, and how many took that long; empty ones at either end are left out
    pub histogram: Vec<(u64, u64, u64)>,
}

/// The buckets with where they begin and end, from the first to the last that is not empty.
fn histogram(buckets: &[u64], max_ns: u64) -> Vec<(u64, u64, u64)> {
    let mut from = 0;
    let mut all = Vec::with_capacity(buckets.len());
    for (bucket, count) in buckets.iter().enumerate() {
        let end = end_of(bucket).unwrap_or_else(|| max_ns.max(from).saturating_add(1));
        all.push((from, end, *count));
        from = end;
    }
    let used = |bin: &(u64, u64, u64)| bin.2 > 0;
    let first = all.iter().position(used).unwrap_or(all.len());
    let last = all.iter().rposition(used).map_or(0, |last| last.saturating_add(1));
    all.get(first..last).unwrap_or_default().to_vec()
}

pub(super) fn row(slot: &GateSlot, alive: bool) -> CountersRow {
    let mut codes = [0; CONTROL_CODES_MAX];
    for (to, from) in codes.iter_mut().zip(&slot.codes) {
        *to = from.load(Relaxed);
    }
    let buckets: Vec<u64> = slot.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect();
    let timed = buckets.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
    let max_ns = slot.max_ns.load(Relaxed);
    let quantile = |per_mille: u64| quantile(&buckets, timed, per_mille, max_ns);
    CountersRow {
        pid: slot.pid.load(Relaxed),
        alive,
        started_ms: slot.started_ms.load(Relaxed),
        bundle: get_bytes(&slot.bundle),
        shadow: slot.shadow.load(Relaxed) == 1,
        generation: slot.generation.load(Relaxed),
        codes,
        timed,
        p50_ns: quantile(500),
        p99_ns: quantile(990),
        p999_ns: quantile(999),
        max_ns,
        histogram: histogram(&buckets, max_ns),
    }
}

fn quantile(buckets: &[u64], timed: u64, per_mille: u64, max_ns: u64) -> u64 {
    let wanted = u128::from(timed).saturating_mul(per_mille.into()).div_ceil(1_000);
    if wanted == 0 {
        return 0;
    }
    let mut sum = 0_u128;
    for (bucket, count) in buckets.iter().enumerate() {
        sum = sum.saturating_add(u128::from(*count));
        if sum >= wanted {
            return end_of(bucket).map_or(max_ns, |end| end.saturating_sub(1).min(max_ns));
        }
    }
    max_ns
}

/// Moves the counts of one that is gone, and makes its slot anew.
pub(super) fn retire(slot: &GateSlot, retired: &GateSlot) {
    let add = |to: &AtomicU64, from: &AtomicU64| {
        let count = from.swap(0, Relaxed);
        if count != 0 {
            to.fetch_add(count, Relaxed);
        }
    };
    for (to, from) in retired.codes.iter().zip(&slot.codes) {
        add(to, from);
    }
    for (to, from) in retired.buckets.iter().zip(&slot.buckets) {
        add(to, from);
    }
    retired.max_ns.fetch_max(slot.max_ns.swap(0, Relaxed), Relaxed);
    slot.pid.store(0, Relaxed);
    slot.shadow.store(0, Relaxed);
    slot.started_ms.store(0, Relaxed);
    slot.generation.store(0, Relaxed);
    put_bytes(&slot.bundle, &[0; 32]);
}

/// The slot of one gate, until this is dropped.
#[derive(Debug)]
pub struct Counters {
    table: Table<GateSlot>,
    index: usize,
    /// `None` if there was no slot: it counts for itself only
    home: Option<Arc<Control>>,
    generation: u64,
}

impl Counters {
    pub(super) fn new(table: Table<GateSlot>, index: usize, home: Option<Arc<Control>>, now_ms: i64) -> Self {
        let counters = Self { table, index, home, generation: map::fork_generation() };
        let slot = counters.slot();
        slot.started_ms.store(now_ms, Relaxed);
        slot.pid.store(std::process::id(), Relaxed);
        counters
    }

    #[inline]
    #[expect(clippy::indexing_slicing, reason = "who makes it has found the slot")]
    fn slot(&self) -> &GateSlot {
        &self.table[self.index]
    }

    /// Whether this is the process that joined: in a child of its fork nothing is counted.
    #[inline]
    pub fn is_own(&self) -> bool {
        self.generation == map::fork_generation()
    }

    /// Whether other processes see these counts: not if all places were taken.
    pub const fn is_shared(&self) -> bool {
        self.home.is_some()
    }

    /// Counts a decision by the number of its code.
    #[inline]
    pub fn count(&self, code: usize) {
        self.count_many(code, 1);
    }

    /// Counts so many decisions of one code.
    #[inline]
    pub fn count_many(&self, code: usize, many: u64) {
        if self.is_own()
            && let Some(count) = self.slot().codes.get(code)
        {
            count.fetch_add(many, Relaxed);
        }
    }

    /// Notes how long a decision took.
    #[inline]
    pub fn observe_ns(&self, ns: u64) {
        if !self.is_own() {
            return;
        }
        let slot = self.slot();
        if let Some(bucket) = slot.buckets.get(bucket_of(ns)) {
            bucket.fetch_add(1, Relaxed);
        }
        // Most are not the longest, and a load costs less than an exchange.
        if slot.max_ns.load(Relaxed) < ns {
            slot.max_ns.fetch_max(ns, Relaxed);
        }
    }

    /// Says what the gate has loaded.
    pub fn set_bundle(&self, digest: &[u8; 32], shadow: bool) {
        if self.is_own() {
            put_bytes(&self.slot().bundle, digest);
            self.slot().shadow.store(u32::from(shadow), Relaxed);
        }
    }

    /// Says which generation of the revocations the gate goes by.
    #[inline]
    pub fn observed(&self, generation: u64) {
        if self.is_own() && self.slot().generation.load(Relaxed) != generation {
            self.slot().generation.store(generation, Relaxed);
        }
    }

    /// What was counted so far.
    pub fn read(&self) -> CountersRow {
        row(self.slot(), true)
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        if let (true, Some(home)) = (self.is_own(), &self.home) {
            home.leave(self.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_has_one_bucket() {
        let mut last = 0;
        for bits in 0..40 {
            for part in 0..64 {
                let ns = (1_u64 << bits) + part * (1 << bits) / 64;
                let bucket = bucket_of(ns);
                assert!(bucket >= last && bucket < BUCKETS, "{ns}");
                last = bucket;
                let begin = bucket.checked_sub(1).map_or(Some(0), end_of).unwrap();
                assert!(begin <= ns && end_of(bucket).is_none_or(|end| ns < end), "{ns} in {bucket}");
            }
        }
        assert_eq!((bucket_of(0), bucket_of(63), bucket_of(64), last), (0, 0, 1, BUCKETS - 1));
        assert_eq!(end_of(BUCKETS - 2), Some(1 << 24));
        assert_eq!(end_of(BUCKETS - 1), None);
    }

    #[test]
    fn quantiles_are_no_less_than_the_truth() {
        let mut buckets = vec![0; BUCKETS];
        for ns in 1..=1_000_u64 {
            buckets[bucket_of(ns * 100)] += 1;
        }
        for (per_mille, truth) in [(500, 50_000), (990, 99_000), (999, 99_900)] {
            let shown = quantile(&buckets, 1_000, per_mille, 100_000);
            assert!((truth..=truth + truth / 4).contains(&shown), "{per_mille}: {shown}");
        }
        assert_eq!(quantile(&vec![0; BUCKETS], 0, 500, 0), 0);
    }
}
