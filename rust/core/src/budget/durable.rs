//! Spend that survives the power: images of what was consumed, written behind a running ledger.
//!
//! The cells themselves lie in a mapped file, which survives the death of every process but not that of the host: after
//! that, its pages are a mixture of moments. So a thread writes, in chunks ahead of what is really consumed, an image of
//! all windows that are open: alternately to one of two areas at the end of the file, with a checksum, so that one of
//! them is always whole. After a restart the ledger is rebuilt from the newer whole image, and the open chunk counts as
//! spent. What was consumed beyond it within the last interval is the loss window; [`super::ledger::Ledger::sync`]
//! closes it on demand.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::layout::{NO_NODE, Word};
use super::memory::{Memory, Sizes};
use super::unit::{UNITS, Unit};
use super::window::Window;
use crate::sync::Ordering::{Acquire, Relaxed, Release};

const PAGE_BYTES: u64 = 4_096;
const RECORD_BYTES: usize = 64;
const HEAD_BYTES: usize = 64;
/// First word of an image.
const IMAGE_MAGIC: u64 = u64::from_ne_bytes(*b"TOLLSPND");

/// Consumed at one window of one budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) node: u32,
    pub(super) window: Window,
    pub(super) id: u32,
    pub(super) consumed: [i64; UNITS],
}

/// A whole image: budgets that were known, the ledger's time, and what was consumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) number: u64,
    pub(super) nodes: u32,
    pub(super) last_ms: i64,
    pub(super) records: Vec<Record>,
}

/// Bytes of both areas.
pub(super) fn areas_bytes(sizes: Sizes) -> u64 {
    area_bytes(sizes).saturating_mul(2)
}

fn area_bytes(sizes: Sizes) -> u64 {
    let records = (sizes.periods as usize).saturating_mul(RECORD_BYTES).saturating_add(HEAD_BYTES);
    (records as u64).next_multiple_of(PAGE_BYTES)
}

/// FNV-1a over words: a checksum against torn writes, not against people.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325, |sum: u64, chunk| {
        let word = chunk.iter().rev().fold(0_u64, |word, byte| (word << 8) | u64::from(*byte));
        (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    })
}

impl Image {
    fn bytes(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.records.len().saturating_mul(RECORD_BYTES));
        for record in &self.records {
            body.extend_from_slice(&record.node.to_le_bytes());
            body.extend_from_slice(&(record.window as u32).to_le_bytes());
            body.extend_from_slice(&record.id.to_le_bytes());
            body.extend_from_slice(&[0; 4]);
            record.consumed.iter().for_each(|amount| body.extend_from_slice(&amount.to_le_bytes()));
            body.extend_from_slice(&[0; 8]);
        }
        let mut bytes = Vec::with_capacity(body.len().saturating_add(HEAD_BYTES));
        for word in [IMAGE_MAGIC, self.number, self.records.len() as u64, u64::from(self.nodes)] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.last_ms.to_le_bytes());
        bytes.extend_from_slice(&[0; 16]);
        let sum = checksum(&bytes) ^ checksum(&body).rotate_left(1);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Reads an area; `None` unless every byte of it is what was written.
    fn read(file: &File, at: u64, sizes: Sizes) -> Option<Self> {
        let mut head = [0; HEAD_BYTES];
        file.read_exact_at(&mut head, at).ok()?;
        let word = |index: usize| {
            let bytes = head.chunks_exact(8).nth(index)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let len = usize::try_from(word(2)?).ok().filter(|len| *len <= sizes.periods as usize)?;
        let mut body = vec![0; len.checked_mul(RECORD_BYTES)?];
        file.read_exact_at(&mut body, at.checked_add(HEAD_BYTES as u64)?).ok()?;
        let sum = checksum(head.get(..HEAD_BYTES.wrapping_sub(8))?) ^ checksum(&body).rotate_left(1);
        if word(0)? != IMAGE_MAGIC || word(7)? != sum {
            return None;
        }
        let records = body.chunks_exact(RECORD_BYTES).map(record).collect::<Option<Vec<Record>>>()?;
        let last_ms = i64::from_le_bytes(word(4)?.to_le_bytes());
        Some(Self { number: word(1)?, nodes: u32::try_from(word(3)?).ok()?, last_ms, records })
    }

    /// The newer whole image of a file.
    pub(super) fn newest(file: &File, tables_bytes: u64, sizes: Sizes) -> Option<Self> {
        let second = tables_bytes.checked_add(area_bytes(sizes))?;
        let images = [tables_bytes, second].into_iter().filter_map(|at| Self::read(file, at, sizes));
        images.max_by_key(|image| image.number)
    }

    /// Writes the image to the area that does not hold the last one, and waits for the disk.
    pub(super) fn write(&self, file: &File, tables_bytes: u64, sizes: Sizes) -> io::Result<()> {
        // The budgets that the image names are on disk before it is.
        file.sync_data()?;
        let at = tables_bytes.saturating_add((self.number % 2).saturating_mul(area_bytes(sizes)));
        file.write_all_at(&self.bytes(), at)?;
        file.sync_data()
    }
}

fn record(bytes: &[u8]) -> Option<Record> {
    let small = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let window = small(4)?;
    let mut consumed = [0; UNITS];
    for (place, chunk) in consumed.iter_mut().zip(bytes.get(16..)?.chunks_exact(8)) {
        *place = i64::from_le_bytes(chunk.try_into().ok()?);
    }
    let window = Window::ALL.into_iter().find(|kind| *kind as u32 == window)?;
    Some(Record { node: small(0)?, window, id: small(8)?, consumed })
}

/// The share of a limit that is counted ahead.
const CHUNK_SHIFT: u32 = 6;

impl Memory {
    /// What should be on disk: exactly what is consumed, or a chunk ahead of it where the last image is nearly reached.
    /// `None` if the last image still covers everything.
    pub(super) fn image(&self, exact: bool) -> Option<Image> {
        let mut records = Vec::new();
        let mut behind = exact;
        let in_use = self.header().periods.load(Acquire) as usize;
        for (period, durable) in self.periods.iter().zip(self.durables.iter()).take(in_use) {
            let word = Word(period.word.load(Acquire));
            let window = Window::ALL.into_iter().find(|kind| *kind as u32 == period.window.load(Relaxed));
            let (Some(id), 0, Some(window)) = (word.id_plus_1().checked_sub(1), word.opener(), window) else {
                continue;
            };
            let fresh = durable.id.load(Relaxed) != u64::from(word.id_plus_1());
            let mut consumed = [0; UNITS];
            for unit in Unit::ALL.into_iter().filter(|unit| !unit.is_level()) {
                let of =
                    |counts: &super::layout::Counts| counts.get(unit.index()).map_or(0, |count| count.load(Relaxed));
                let limit = of(&period.limit).saturating_add(of(&period.overdraft));
                let now = limit.saturating_sub(of(&period.free));
                let known = if fresh { 0 } else { of(&durable.consumed) };
                let chunk = (limit >> CHUNK_SHIFT).max(1);
                let ahead = if exact {
                    now
                } else if now > known.saturating_sub(chunk / 2) && now > 0 {
                    behind |= now > known || chunk > 1;
                    now.saturating_add(chunk)
                } else {
                    known
                };
                if let Some(place) = consumed.get_mut(unit.index()) {
                    *place = ahead;
                }
            }
            if consumed.iter().any(|amount| *amount != 0) {
                records.push(Record { node: period.node.load(Relaxed), window, id, consumed });
            }
        }
        let number = self.header().image.load(Relaxed).saturating_add(1);
        let (nodes, last_ms) = (self.nodes_len(), self.header().last_ms.load(Relaxed));
        behind.then_some(Image { number, nodes, last_ms, records })
    }

    /// Notes what is on disk now.
    pub(super) fn set_durable(&self, image: &Image) {
        for record in &image.records {
            let Some(ring) = self.nodes.get(record.node as usize).and_then(|node| {
                let first = node.rings.get(record.window.index())?.load(Relaxed);
                Some((0..record.window.ring_len()).map(move |at| first.wrapping_add(at)))
            }) else {
                continue;
            };
            for place in ring {
                let (Some(period), Some(durable)) = (self.period(place), self.durables.get(place as usize)) else {
                    continue;
                };
                if Word(period.word.load(Acquire)).id_plus_1() == record.id.wrapping_add(1) {
                    durable
                        .consumed
                        .iter()
                        .zip(record.consumed)
                        .for_each(|(place, amount)| place.store(amount, Relaxed));
                    durable.id.store(u64::from(record.id).saturating_add(1), Release);
                }
            }
        }
        self.header().image.store(image.number, Relaxed);
    }

    /// Rebuilds the ledger after the host has restarted: every hold is over, every cell is as the image says or worse.
    ///
    /// # Errors
    /// What in the image or among the budgets does not fit.
    pub(super) fn rebuild(&self, image: Option<&Image>) -> Result<(), String> {
        let known = image.map_or(0, |image| image.nodes);
        self.check_nodes(known)?;
        let header = self.header();
        header.nodes.store(known, Relaxed);
        header.waiters.store(0, Relaxed);
        self.owners.iter().for_each(|owner| owner.epoch.store(0, Relaxed));
        self.epochs.iter().for_each(|epoch| epoch.word.store(0, Relaxed));
        for (slot, tally) in self.slots.iter().zip(self.tallies.iter()) {
            let generation = super::layout::State(slot.state.load(Relaxed)).generation().wrapping_add(1);
            slot.state.store(super::layout::State::new(generation, 0, 0, super::layout::Phase::Free).0, Relaxed);
            tally.left.store(super::layout::TALLY_NONE, Relaxed);
        }
        let mut periods = 0_u32;
        for (index, node) in (0_u32..).zip(self.nodes.iter().take(known as usize)) {
            node.opening.store(0, Relaxed);
            for window in Window::ALL {
                let first = node.rings.get(window.index()).map_or(super::layout::NO_RING, |ring| ring.load(Relaxed));
                if first == super::layout::NO_RING {
                    continue;
                }
                periods = periods.max(first.saturating_add(window.ring_len()));
                for period in self.ring(node, window) {
                    period.node.store(index, Relaxed);
                    period.window.store(window as u32, Relaxed);
                    let open = if window == Window::Total { Word::new(0, 1, 0).0 } else { 0 };
                    period.word.store(open, Relaxed);
                }
            }
            self.finish_opening(node);
        }
        header.periods.store(periods, Relaxed);
        self.durables.iter().for_each(|durable| durable.id.store(0, Relaxed));
        let Some(image) = image else { return Ok(()) };
        for record in &image.records {
            self.restore(record)?;
        }
        header.last_ms.store(image.last_ms, Relaxed);
        self.set_durable(image);
        Ok(())
    }

    fn restore(&self, record: &Record) -> Result<(), String> {
        let wrong = || format!("the image names budget {} in a window it does not have", record.node);
        let node = self.nodes.get(record.node as usize).ok_or_else(wrong)?;
        let len = record.window.ring_len();
        let place = node.rings.get(record.window.index()).map_or(super::layout::NO_RING, |ring| ring.load(Relaxed));
        let first = record.id & len.wrapping_sub(1);
        let mut free = (0..len).map(|at| place.wrapping_add(first.wrapping_add(at) & len.wrapping_sub(1)));
        let total = record.window == Window::Total;
        let period = free
            .find_map(|place| self.period(place).filter(|period| total || period.word.load(Relaxed) == 0))
            .filter(|_| place != super::layout::NO_RING)
            .ok_or_else(wrong)?;
        if !total {
            period.word.store(Word::new(record.id, 1, 0).0, Relaxed);
            self.finish_opening(node);
        }
        for (unit, consumed) in record.consumed.into_iter().enumerate() {
            if let (Some(free), Some(used)) = (period.free.get(unit), period.used.get(unit)) {
                // Of requests `free` alone keeps count.
                used.store(if unit == Unit::Requests.index() { 0 } else { consumed }, Relaxed);
                super::period::add(free, consumed.saturating_neg());
            }
        }
        Ok(())
    }

    /// Whether the first `len` budgets are what a ledger would have written.
    pub(super) fn check_nodes(&self, len: u32) -> Result<(), String> {
        let in_use = self.header().periods.load(Relaxed) as usize;
        let mut seen = std::collections::HashSet::new();
        let mut rings = std::collections::HashSet::new();
        if len > self.sizes().nodes || in_use > self.periods.len() {
            return Err("it names more budgets or periods than it has room for".to_owned());
        }
        for (index, node) in (0_u32..).zip(self.nodes.iter().take(len as usize)) {
            let wrong = |what: &str| Err(format!("budget {index} is damaged: {what}"));
            let Some(path) = node.path() else { return wrong("its path is no text") };
            if let Some(fault) = super::tree::path_fault(&path) {
                return wrong(&fault);
            }
            let parent = node.parent.load(Relaxed);
            let expected = super::tree::parent_of(&path);
            let actual = if parent == NO_NODE {
                None
            } else {
                self.nodes.get(parent as usize).and_then(super::layout::NodeEntry::path)
            };
            if actual.as_deref() != expected || (parent != NO_NODE && parent >= index) {
                return wrong("its parent is another one");
            }
            for window in Window::ALL {
                let first = node.rings.get(window.index()).map_or(super::layout::NO_RING, |ring| ring.load(Relaxed));
                let limited = node.limited.get(window.index()).map_or(0, |mask| mask.load(Relaxed));
                let none = first == super::layout::NO_RING;
                let end = first.saturating_add(window.ring_len()) as usize;
                if limited >> UNITS != 0 || (none && limited != 0) || (!none && end > self.periods.len()) {
                    return wrong("its limits have no place");
                }
                if !none && !(first..first.saturating_add(window.ring_len())).all(|place| rings.insert(place)) {
                    return wrong("its periods are another one's too");
                }
            }
            if !seen.insert(path) {
                return wrong("its path is there twice");
            }
        }
        Ok(())
    }
}
