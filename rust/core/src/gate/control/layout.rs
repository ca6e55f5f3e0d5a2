//! What lies in `control.bin`: plain atomics, the same in a file, in memory of one process, and under the model
//! checker. Any bit pattern is a valid value of each type, so a damaged file can be wrong but not unsound.
//!
//! Texts are stored as bytes in words, their lengths beside them. Nothing that is read here is believed before its
//! checksum, or the words around it, say that it is whole.

use std::sync::atomic::Ordering::Relaxed;

use crate::limits::{
    CONTROL_APPROVALS_MAX, CONTROL_CODES_MAX, CONTROL_GATES_MAX, CONTROL_REVOCATIONS_MAX, CONTROL_SESSIONS_MAX,
    SESSION_LABELS_MAX,
};
use crate::sync::{AtomicI64, AtomicU32, AtomicU64};

/// First word of a control file, `TOLLCTRL` in the byte order of the host.
pub(super) const MAGIC: u64 = u64::from_ne_bytes(*b"TOLLCTRL");
/// Raised whenever a type in this file changes its meaning or its size.
pub(super) const LAYOUT: u32 = 1;

/// Words of a revoked name, of a reason and of who revoked: the model checker has no time for long ones.
pub(super) const NAME_WORDS: usize = if cfg!(loom) { 1 } else { 64 };
/// See [`NAME_WORDS`].
pub(super) const REASON_WORDS: usize = if cfg!(loom) { 1 } else { 32 };
/// See [`NAME_WORDS`].
pub(super) const BY_WORDS: usize = if cfg!(loom) { 1 } else { 16 };
/// Words of a label.
const LABEL_WORDS: usize = 32;
/// Buckets of a histogram: one below 64 ns, four for each power of two up to 16 ms, one above.
pub(super) const BUCKETS: usize = 74;

/// What kind of file this is.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub(crate) struct ControlHeader {
    pub(super) magic: AtomicU64,
    pub(super) layout: AtomicU32,
    pub(super) spare: AtomicU32,
    /// Bytes of the whole file
    pub(super) bytes: AtomicU64,
    /// Mixed into the keys of sessions, so that nobody can choose ids that meet in one place
    pub(super) salt: [AtomicU64; 2],
    /// Over everything above
    pub(super) check: AtomicU64,
}

/// What is true of all revocations.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub(crate) struct RevocationsHeader {
    /// Generation and whether anything is in force, see `revocations.rs`
    pub(super) word: AtomicU64,
    /// What the table of a generation holds: that of generation `g` is number `g & 1`
    pub(super) sums: [Sum; 2],
}

/// How many revocations are in force in one generation.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Sum {
    /// Generation in the upper bits, whether damage was found, how many are in force
    pub(super) content: AtomicU64,
    pub(super) check: AtomicU64,
}

/// The generations in which a revocation is in force. Apart from its texts, so that looking through all of them touches
/// 64 KiB.
#[repr(C, align(16))]
#[derive(Debug, Default)]
pub(crate) struct Mark {
    /// The first generation of it, sealed; 0: none
    pub(super) from: AtomicU64,
    /// The first generation without it, sealed; 0: it is in force
    pub(super) until: AtomicU64,
}

/// What was revoked, by whom and why.
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct RevocationSlot {
    /// Kind in the lowest byte, then 16 bits each: bytes of the name, of the reason and of who did it
    pub(super) shape: AtomicU64,
    pub(super) at_ms: AtomicI64,
    /// Over everything else here, the number of the slot and the generation
    pub(super) check: AtomicU64,
    pub(super) name: [AtomicU64; NAME_WORDS],
    pub(super) reason: [AtomicU64; REASON_WORDS],
    pub(super) by: [AtomicU64; BY_WORDS],
}

impl Default for RevocationSlot {
    fn default() -> Self {
        Self {
            shape: AtomicU64::default(),
            at_ms: AtomicI64::default(),
            check: AtomicU64::default(),
            name: std::array::from_fn(|_| AtomicU64::default()),
            reason: std::array::from_fn(|_| AtomicU64::default()),
            by: std::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

/// What is true of all sessions.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub(crate) struct SessionsHeader {
    /// Raised before a slot gets its first label: who has found none looks again
    pub(super) made: AtomicU64,
    /// Labels that found no slot: every session without one has them
    pub(super) overflow: AtomicU64,
    /// Labels in the dictionary; grows only
    pub(super) labels: AtomicU32,
    pub(super) spare: AtomicU32,
}

/// The labels of one session.
#[repr(C, align(32))]
#[derive(Debug, Default)]
pub(crate) struct SessionSlot {
    /// See `sessions.rs`: minute of the last use, whose turn it is, and a mark while it changes hands
    pub(super) used: AtomicU64,
    /// 0: never used
    pub(super) key: AtomicU64,
    pub(super) labels: AtomicU64,
    pub(super) spare: AtomicU64,
}

/// The name of a label.
#[repr(C, align(16))]
#[derive(Debug, Default)]
pub(crate) struct LabelSlot {
    pub(super) bytes: AtomicU64,
    /// Over the name and its number
    pub(super) check: AtomicU64,
    pub(super) name: [AtomicU64; LABEL_WORDS],
}

/// What is true of all approvals.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub(crate) struct ApprovalsHeader {
    /// Raised by everything that happens to an approval; who waits, waits on it
    pub(super) changes: AtomicU32,
    /// No slot at or above this number was ever used; grows only
    pub(super) used: AtomicU32,
    /// Numbers the questions
    pub(super) asked: AtomicU64,
}

/// One question and its answer.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(crate) struct ApprovalSlot {
    /// Turn and phase, see `approvals.rs`
    pub(super) state: AtomicU64,
    pub(super) id: AtomicU64,
    /// Which question this is, counted from 1
    pub(super) number: AtomicU64,
    /// The kernel's run in which it was asked
    pub(super) boot: [AtomicU64; 2],
    pub(super) digest: [AtomicU64; 4],
    pub(super) asked_ms: AtomicI64,
    /// When the question is void
    pub(super) expires_ms: AtomicI64,
    pub(super) answered_ms: AtomicI64,
    /// When the grant is void
    pub(super) grant_expires_ms: AtomicI64,
    pub(super) has_signature: AtomicU64,
    pub(super) signature: [AtomicU64; 8],
}

/// What one gate counts.
#[repr(C, align(128))]
#[derive(Debug)]
pub(crate) struct GateSlot {
    /// 0: nobody's. Process id in the namespace of the process itself: for people, never compared
    pub(super) pid: AtomicU32,
    /// 1: shadow mode
    pub(super) shadow: AtomicU32,
    pub(super) started_ms: AtomicI64,
    pub(super) bundle: [AtomicU64; 4],
    /// Generation of the revocations that it has seen
    pub(super) generation: AtomicU64,
    pub(super) max_ns: AtomicU64,
    pub(super) codes: [AtomicU64; CONTROL_CODES_MAX],
    pub(super) buckets: [AtomicU64; BUCKETS],
}

impl Default for GateSlot {
    fn default() -> Self {
        Self {
            pid: AtomicU32::default(),
            shadow: AtomicU32::default(),
            started_ms: AtomicI64::default(),
            bundle: std::array::from_fn(|_| AtomicU64::default()),
            generation: AtomicU64::default(),
            max_ns: AtomicU64::default(),
            codes: std::array::from_fn(|_| AtomicU64::default()),
            buckets: std::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

/// Where each table begins. The headers share the first page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub(super) marks: usize,
    pub(super) labels: usize,
    pub(super) retired: usize,
    pub(super) gates: usize,
    pub(super) approvals: usize,
    pub(super) sessions: usize,
    pub(super) revocations: usize,
    pub(super) bytes: usize,
}

pub(super) const REVOCATIONS_HEADER_AT: usize = 1_024;
pub(super) const SESSIONS_HEADER_AT: usize = 2_048;
pub(super) const APPROVALS_HEADER_AT: usize = 3_072;
const PAGE: usize = 4_096;

/// The one layout there is. Every table begins at a page.
pub(super) const PLACES: Places = {
    const fn pages(bytes: usize) -> usize {
        bytes.next_multiple_of(PAGE)
    }
    let marks = PAGE;
    let labels = marks + pages(CONTROL_REVOCATIONS_MAX * size_of::<Mark>());
    let retired = labels + pages(SESSION_LABELS_MAX * size_of::<LabelSlot>());
    let gates = retired + pages(size_of::<GateSlot>());
    let approvals = gates + pages(CONTROL_GATES_MAX * size_of::<GateSlot>());
    let sessions = approvals + pages(CONTROL_APPROVALS_MAX * size_of::<ApprovalSlot>());
    let revocations = sessions + pages(CONTROL_SESSIONS_MAX * size_of::<SessionSlot>());
    let bytes = revocations + pages(CONTROL_REVOCATIONS_MAX * size_of::<RevocationSlot>());
    Places { marks, labels, retired, gates, approvals, sessions, revocations, bytes }
};

/// Writes a text that fits.
pub(super) fn put_text(words: &[AtomicU64], text: &str) {
    for (word, bytes) in words.iter().zip(text.as_bytes().chunks(8)) {
        let mut whole = [0; 8];
        for (to, from) in whole.iter_mut().zip(bytes) {
            *to = *from;
        }
        word.store(u64::from_le_bytes(whole), Relaxed);
    }
}

/// Reads back `len` bytes; `None` if there are not as many, or they are no text.
pub(super) fn get_text(words: &[AtomicU64], len: usize) -> Option<Box<str>> {
    let words = words.get(..len.div_ceil(8))?;
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect();
    bytes.truncate(len);
    String::from_utf8(bytes).ok().map(String::into_boxed_str)
}

/// Writes bytes that come in eights.
pub(super) fn put_bytes(words: &[AtomicU64], bytes: &[u8]) {
    for (word, chunk) in words.iter().zip(bytes.as_chunks::<8>().0) {
        word.store(u64::from_le_bytes(*chunk), Relaxed);
    }
}

/// Reads them back.
pub(super) fn get_bytes<const N: usize>(words: &[AtomicU64]) -> [u8; N] {
    let mut bytes = [0; N];
    for (chunk, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *chunk = word.load(Relaxed).to_le_bytes();
    }
    bytes
}

/// A checksum over words and texts, for damage and not for attackers: who can write to the file can write anything.
pub(super) fn checksum(words: &[u64], texts: &[&str]) -> u64 {
    // Not zero where everything is zero.
    let begin = crc32c::crc32c(b"tollkeeper control");
    let sum = words.iter().fold(begin, |sum, word| crc32c::crc32c_append(sum, &word.to_le_bytes()));
    u64::from(texts.iter().fold(sum, |sum, text| crc32c::crc32c_append(sum, text.as_bytes())))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_part_of_the_layout() {
        assert_eq!(size_of::<Mark>(), 16);
        assert_eq!(size_of::<RevocationSlot>(), 960);
        assert_eq!(size_of::<SessionSlot>(), 32);
        assert_eq!(size_of::<LabelSlot>(), 272);
        assert_eq!(size_of::<ApprovalSlot>(), 192);
        assert_eq!(size_of::<GateSlot>(), 1_024);
        assert!(size_of::<RevocationsHeader>() <= SESSIONS_HEADER_AT - REVOCATIONS_HEADER_AT);
        assert_eq!(PLACES.bytes, 6_844_416);
    }

    #[test]
    fn texts_and_bytes_come_back() {
        let words: [AtomicU64; 4] = Default::default();
        for text in ["", "x", "12345678", "Agent::\"ä\"", "0123456789abcdef0123456789abcdef"] {
            put_text(&words, text);
            assert_eq!(get_text(&words, text.len()).as_deref(), Some(text));
        }
        assert_eq!(get_text(&words, 33), None);
        words[0].store(0xff, Relaxed);
        assert_eq!(get_text(&words, 1), None);
        put_bytes(&words, &[7; 32]);
        assert_eq!(get_bytes::<32>(&words), [7; 32]);
        assert_ne!(checksum(&[0, 0], &[]), checksum(&[0], &[]));
        assert_ne!(checksum(&[], &[]), 0);
    }
}
