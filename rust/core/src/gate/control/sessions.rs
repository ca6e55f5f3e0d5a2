//! Labels of sessions: they only grow, and every process of the host sees them.
//!
//! A session gets a slot with its first label, in an open-addressed table whose slots never become empty again. A
//! slot's key is half of a salted SHA-256 of the session's id: two sessions that shared one would share labels, which
//! denies too much and never too little.
//!
//! The `used` word says whose turn a slot is: the minute of its last use, a turn that is raised whenever it goes to
//! another session, and a mark while it does. A reader looks at labels and then at the turn, so it never takes another
//! session's for its own. Who adds looks at the turn afterwards and adds again elsewhere if it has changed.
//!
//! A slot changes hands only after 30 days without use, only if its session has no empty place left, and only under a
//! lock, because the labels and the key cannot be exchanged in one step. A killed holder leaves the mark; the next one
//! takes that slot. Who gets neither slot nor lock adds to the `overflow`, which counts for every session without
//! labels of its own, and the first label of a slot brings the overflow along.
//!
//! The labels survive every process. They are not forced to the disk: a power cut takes what the kernel had not written
//! yet, some 30 seconds, and with it the processes whose sessions these were.

use std::sync::atomic::AtomicU64 as PlainU64;

use sha2::{Digest as _, Sha256};

use super::layout::{SessionSlot, SessionsHeader};
use crate::limits::{CONTROL_SESSION_IDLE_MINUTES, CONTROL_SESSION_PROBES_MAX, CONTROL_SESSIONS_MAX};
use crate::map::Table;
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::fence;

/// A session as one handle of a control file knows it: its key, and where its labels were last found.
#[derive(Debug)]
pub struct SessionRef {
    key: u64,
    /// Turn in the upper half, number of the slot plus one in the lower; 0: not known. A hint that every use checks
    place: PlainU64,
    /// Slots made, plus one, when there was none for it; 0: nobody has looked
    none_at: PlainU64,
}

impl SessionRef {
    /// The session with this id.
    pub(super) fn new(salt: [u64; 2], id: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(salt[0].to_le_bytes());
        hash.update(salt[1].to_le_bytes());
        hash.update(id.as_bytes());
        let hash = hash.finalize();
        let [first, ..] = hash.0.as_chunks::<8>().0 else { return Self::of_key(1) };
        Self::of_key(u64::from_le_bytes(*first))
    }

    /// The session with this key; 0 is that of empty slots.
    pub(super) fn of_key(key: u64) -> Self {
        Self { key: key.max(1), place: PlainU64::new(0), none_at: PlainU64::new(0) }
    }

    fn place(&self) -> Option<Place> {
        let place = self.place.load(Relaxed);
        let slot = (place & 0xffff_ffff).checked_sub(1)?;
        Some(Place { slot: usize::try_from(slot).ok()?, turn: u32::try_from(place >> 32).ok()? })
    }

    fn set_place(&self, place: Place) {
        let slot = (place.slot as u64).saturating_add(1);
        self.place.store((u64::from(place.turn) << 32) | slot, Relaxed);
    }
}

/// A slot in somebody's turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    slot: usize,
    turn: u32,
}

/// What a `used` word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Used(u64);

impl Used {
    const CHANGING: u64 = 1 << 63;

    fn new(minute: u32, turn: u32) -> Self {
        Self(((u64::from(turn) << 32) & !Self::CHANGING) | u64::from(minute))
    }

    const fn is_changing(self) -> bool {
        self.0 & Self::CHANGING != 0
    }

    #[expect(clippy::cast_possible_truncation, reason = "cut out on purpose")]
    const fn minute(self) -> u32 {
        self.0 as u32
    }

    const fn turn(self) -> u32 {
        ((self.0 & !Self::CHANGING) >> 32) as u32
    }

    /// Belongs to this turn, and to nobody else yet.
    const fn is(self, turn: u32) -> bool {
        !self.is_changing() && self.turn() == turn
    }

    fn is_idle(self, minute: u32) -> bool {
        minute.saturating_sub(self.minute()) > CONTROL_SESSION_IDLE_MINUTES
    }
}

/// Minutes since 1970.
fn minute_of(now_ms: i64) -> u32 {
    u32::try_from(now_ms / 60_000).unwrap_or(0)
}

/// Runs its argument under the lock of who makes room, if that is free. Whether it ran.
pub(super) type Exclusively<'a> = &'a dyn Fn(&mut dyn FnMut()) -> bool;

const _: () = assert!(CONTROL_SESSIONS_MAX.is_power_of_two(), "an odd step leads to every place");

/// The labels of all sessions in shared memory.
#[derive(Debug)]
pub(super) struct Sessions {
    pub(super) header: Table<SessionsHeader>,
    pub(super) slots: Table<SessionSlot>,
}

impl Sessions {
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "every constructor makes this table with one item")]
    pub(super) fn header(&self) -> &SessionsHeader {
        &self.header[0]
    }

    /// Labels that found no slot.
    #[inline]
    pub(super) fn overflow(&self) -> u64 {
        self.header().overflow.load(Acquire)
    }

    /// The labels of a session.
    #[inline]
    pub(super) fn seen(&self, session: &SessionRef, now_ms: i64) -> u64 {
        // Acquire: who sees that a slot was made sees its key.
        let made = self.header().made.load(Acquire);
        if session.none_at.load(Relaxed) == made.wrapping_add(1) {
            return self.overflow();
        }
        if let Some(place) = session.place()
            && let Some(labels) = self.labels_at(place, minute_of(now_ms))
        {
            return labels;
        }
        self.look(session, made, minute_of(now_ms))
    }

    /// The labels in a slot, if it still is the session's. Before its first label a slot counts as none.
    #[inline]
    fn labels_at(&self, place: Place, minute: u32) -> Option<u64> {
        let slot = self.slots.get(place.slot)?;
        // Acquire pairs with the exchange and the store of who takes the slot: if these labels are of another turn, the
        // next load says so.
        let labels = slot.labels.load(Acquire);
        if !touch(slot, place.turn, minute) {
            return None;
        }
        Some(if labels == 0 { self.overflow() } else { labels })
    }

    #[cold]
    fn look(&self, session: &SessionRef, made: u64, minute: u32) -> u64 {
        while let Some(place) = self.find(session.key) {
            session.set_place(place);
            session.none_at.store(0, Relaxed);
            // `None` only if the slot has just changed hands: then it is not found any more.
            if let Some(labels) = self.labels_at(place, minute) {
                return labels;
            }
        }
        session.place.store(0, Relaxed);
        session.none_at.store(made.wrapping_add(1), Relaxed);
        self.overflow()
    }

    /// The places that a key may have, in their order: an odd step, which is another part of the key, leads to all of
    /// a power of two. Places in a row would fill up in clusters, long before the table is full.
    fn probes(&self, key: u64) -> impl Iterator<Item = (usize, &SessionSlot)> {
        let (mask, step) = ((self.slots.len() as u64).saturating_sub(1), (key >> 32) | 1);
        let places = (0..CONTROL_SESSION_PROBES_MAX.min(self.slots.len()) as u64)
            .filter_map(move |probe| usize::try_from(key.wrapping_add(probe.wrapping_mul(step)) & mask).ok());
        places.filter_map(|place| Some((place, self.slots.get(place)?)))
    }

    fn find(&self, key: u64) -> Option<Place> {
        for (index, slot) in self.probes(key) {
            let used = Used(slot.used.load(Acquire));
            match slot.key.load(Acquire) {
                0 => return None,
                found if found == key && !used.is_changing() => return Some(Place { slot: index, turn: used.turn() }),
                _ => {}
            }
        }
        None
    }

    /// Adds labels. When it returns, every later [`Self::seen`] of the session in any process has them.
    pub(super) fn add(&self, session: &SessionRef, mask: u64, now_ms: i64, exclusively: Exclusively<'_>) {
        if mask == 0 {
            return;
        }
        let minute = minute_of(now_ms);
        loop {
            let known = session.place().or_else(|| self.find(session.key));
            if let Some(place) = known.or_else(|| self.claim(session.key)) {
                if self.add_at(place, mask, minute) {
                    session.set_place(place);
                    session.none_at.store(0, Relaxed);
                    return;
                }
                session.place.store(0, Relaxed);
                continue;
            }
            if let Some(place) = self.take_over(session.key, minute, exclusively) {
                session.set_place(place);
                continue;
            }
            self.header().overflow.fetch_or(mask, AcqRel);
            // Either whoever makes a slot for the session now sees the overflow, or its key is seen here.
            fence(crate::sync::Ordering::SeqCst);
            if self.find(session.key).is_none() {
                return;
            }
        }
    }

    /// `false` if the slot is no longer of this turn: then the labels have to go elsewhere.
    fn add_at(&self, place: Place, mask: u64, minute: u32) -> bool {
        let Some(slot) = self.slots.get(place.slot) else { return false };
        // Before the labels: nobody takes a slot that was just used, and who has just taken it is noticed here.
        if !touch(slot, place.turn, minute) {
            return false;
        }
        let mut labels = mask;
        if slot.labels.load(Acquire) == 0 {
            // The first label. Raised before it is there, so that who dies in between has announced too much.
            self.header().made.fetch_add(1, AcqRel);
            fence(crate::sync::Ordering::SeqCst);
            labels |= self.overflow();
        }
        slot.labels.fetch_or(labels, AcqRel);
        Used(slot.used.load(Acquire)).is(place.turn)
    }

    /// An empty slot for a key, or its own. Slots fill in the order of their places and never become empty, so two who
    /// claim for one key meet in the same slot.
    fn claim(&self, key: u64) -> Option<Place> {
        for (index, slot) in self.probes(key) {
            let used = Used(slot.used.load(Acquire));
            let found = match slot.key.load(Acquire) {
                0 => slot.key.compare_exchange(0, key, AcqRel, Acquire).map_or_else(|other| other, |_| key),
                found => found,
            };
            if found == key && !used.is_changing() {
                return Some(Place { slot: index, turn: used.turn() });
            }
        }
        None
    }

    /// Gives the key a slot of a session that was not used for long.
    #[cold]
    fn take_over(&self, key: u64, minute: u32, exclusively: Exclusively<'_>) -> Option<Place> {
        let mut place = None;
        let _ran = exclusively(&mut || {
            // Somebody may have made one meanwhile.
            place = self.find(key).or_else(|| self.take_idle(key, minute));
        });
        place
    }

    /// The caller holds the lock, so a mark that is there is that of a dead process.
    fn take_idle(&self, key: u64, minute: u32) -> Option<Place> {
        for (index, slot) in self.probes(key) {
            let used = Used(slot.used.load(Acquire));
            if !used.is_changing() && !used.is_idle(minute) {
                continue;
            }
            let turn = Used::new(0, used.turn().wrapping_add(1)).turn();
            let next = Used::new(minute, turn);
            // Fails if its session was used just now.
            if slot.used.compare_exchange(used.0, next.0 | Used::CHANGING, AcqRel, Relaxed).is_err() {
                continue;
            }
            // Release: who sees one of these sees the mark, too.
            slot.labels.store(0, Release);
            slot.key.store(key, Release);
            slot.used.store(next.0, Release);
            return Some(Place { slot: index, turn });
        }
        None
    }

    /// Slots that belong to somebody.
    pub(super) fn in_use(&self) -> usize {
        self.slots.iter().filter(|slot| slot.key.load(Relaxed) != 0).count()
    }
}

/// Notes that a slot is used, at most once a minute. `false` if it is not of this turn any more.
#[inline]
fn touch(slot: &SessionSlot, turn: u32, minute: u32) -> bool {
    loop {
        let used = Used(slot.used.load(Acquire));
        if !used.is(turn) {
            return false;
        }
        if used.minute() >= minute {
            return true;
        }
        // Who takes the slot exchanges the same word: one of the two fails.
        if slot.used.compare_exchange(used.0, Used::new(minute, turn).0, AcqRel, Relaxed).is_ok() {
            return true;
        }
    }
}
