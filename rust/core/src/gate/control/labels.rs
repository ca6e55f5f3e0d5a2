//! The names of labels: a dictionary of at most 64 for each control file, which only grows.
//!
//! Sessions carry bits; this says what they mean, in every process and for good. Adding takes the lock; a name is on
//! the disk before its number is given out. A dictionary that is damaged makes the file unusable, because nobody could
//! tell what the bits of its sessions mean.

use super::layout::{LabelSlot, SessionsHeader, checksum, get_text, put_text};
use crate::limits::{SESSION_LABELS_MAX, SESSION_TEXT_BYTES_MAX};
use crate::map::Table;
use crate::sync::Ordering::{Acquire, Relaxed, Release};

/// All names in shared memory.
#[derive(Debug)]
pub(super) struct Dictionary {
    pub(super) header: Table<SessionsHeader>,
    pub(super) slots: Table<LabelSlot>,
}

/// Why a label got no number.
#[derive(Debug)]
pub(super) enum Refused {
    Full,
    Flush(std::io::Error),
}

impl Dictionary {
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "every constructor makes this table with one item")]
    fn header(&self) -> &SessionsHeader {
        &self.header[0]
    }

    /// How many there are. Acquire pairs with the store that adds one: its name is there.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.header().labels.load(Acquire) as usize
    }

    /// The names, or the number of one that is damaged.
    pub(super) fn read(&self) -> Result<Vec<Box<str>>, usize> {
        let len = self.len();
        if len > self.slots.len() {
            return Err(self.slots.len());
        }
        let slots = self.slots.iter().take(len).enumerate();
        slots.map(|(number, slot)| name_of(number, slot).ok_or(number)).collect()
    }

    /// Adds names that are not there; the caller holds the lock, and `known` is what is there.
    pub(super) fn add(
        &self,
        known: &[Box<str>],
        names: &[&str],
        flush: &dyn Fn() -> std::io::Result<()>,
    ) -> Result<(), Refused> {
        let mut new: Vec<&str> = Vec::new();
        for name in names {
            if !known.iter().any(|other| **other == **name) && !new.contains(name) {
                new.push(name);
            }
        }
        let end = known.len().saturating_add(new.len());
        if end > self.slots.len().min(SESSION_LABELS_MAX) {
            return Err(Refused::Full);
        }
        for (number, (slot, name)) in (known.len()..).zip(self.slots.iter().skip(known.len()).zip(&new)) {
            slot.bytes.store(name.len() as u64, Relaxed);
            slot.check.store(checksum(&[number as u64], &[name]), Relaxed);
            put_text(&slot.name, name);
        }
        flush().map_err(Refused::Flush)?;
        self.header().labels.store(u32::try_from(end).unwrap_or(u32::MAX), Release);
        flush().map_err(Refused::Flush)
    }
}

fn name_of(number: usize, slot: &LabelSlot) -> Option<Box<str>> {
    let len = usize::try_from(slot.bytes.load(Relaxed)).ok().filter(|len| *len <= SESSION_TEXT_BYTES_MAX)?;
    let name = get_text(&slot.name, len)?;
    (slot.check.load(Relaxed) == checksum(&[number as u64], &[&name])).then_some(name)
}
