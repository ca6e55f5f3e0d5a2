//! From a record of the ring to an entry of the log: the envelope, the commitment of what stays outside, the bytes.
//!
//! An entry is a JSON object with a fixed order of members: `v`, `kind`, `producer`, `seq`, `time`, then what the record
//! says. It is hashed as it is stored. A record brings its members ready; what this file adds is what the producer has
//! no time for.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::error::AuditError;
use super::note::random;
use super::ring::Pieces;
use super::tree::{Hash, commitment, leaf};
use super::wal::Frame;
use crate::arguments::{Arguments, push_json_str};
use crate::limits::{ENTRY_BYTES_MAX, RECORD_BYTES_MAX};

/// What an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names say it; `docs/audit_entries.md` has a table")]
pub enum Kind {
    Decision = 1,
    Outcome,
    Note,
    Run,
    PolicyLoad,
    Mode,
    EntityUpdate,
    LimitChanged,
    LimitsLoaded,
    Recovered,
    Healed,
    Restarted,
    ClockAccepted,
    Revoke,
    Approve,
    Start,
    Stop,
    Gap,
    DeniedUnlogged,
    Recovery,
    Epoch,
    KeyRotation,
    Erasure,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 23] = [
        Self::Decision,
        Self::Outcome,
        Self::Note,
        Self::Run,
        Self::PolicyLoad,
        Self::Mode,
        Self::EntityUpdate,
        Self::LimitChanged,
        Self::LimitsLoaded,
        Self::Recovered,
        Self::Healed,
        Self::Restarted,
        Self::ClockAccepted,
        Self::Revoke,
        Self::Approve,
        Self::Start,
        Self::Stop,
        Self::Gap,
        Self::DeniedUnlogged,
        Self::Recovery,
        Self::Epoch,
        Self::KeyRotation,
        Self::Erasure,
    ];

    /// Its name in an entry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decision => "decision",
            Self::Outcome => "outcome",
            Self::Note => "note",
            Self::Run => "run",
            Self::PolicyLoad => "policy_load",
            Self::Mode => "mode",
            Self::EntityUpdate => "entity_update",
            Self::LimitChanged => "limit_changed",
            Self::LimitsLoaded => "limits_loaded",
            Self::Recovered => "recovered",
            Self::Healed => "healed",
            Self::Restarted => "restarted",
            Self::ClockAccepted => "clock_accepted",
            Self::Revoke => "revoke",
            Self::Approve => "approve",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Gap => "gap",
            Self::DeniedUnlogged => "denied_unlogged",
            Self::Recovery => "recovery",
            Self::Epoch => "epoch",
            Self::KeyRotation => "key_rotation",
            Self::Erasure => "erasure",
        }
    }

    fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// What a record brings beside its members and stays outside the tree.
#[derive(Debug, Clone, Copy, Default)]
pub enum Private<'a> {
    /// Nothing
    #[default]
    None,
    /// Arguments of a call: structure and text (see [`Arguments::write_structure`]), and JSON members that go with them,
    /// each with a comma before it
    Arguments {
        /// The structure
        structure: &'a [u8],
        /// The text
        text: &'a str,
        /// More members of the payload
        more: &'a [u8],
    },
    /// Bytes as they are
    Bytes(&'a [u8]),
    /// Bytes whose salt is known already, because the commitment was needed before
    Salted {
        /// The salt
        salt: &'a [u8; 32],
        /// The bytes
        bytes: &'a [u8],
    },
}

/// A record: what a producer publishes. The members are JSON as it stands in the entry, each with a comma before it:
/// `,"code":"allow"`.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// What it is about
    pub kind: Kind,
    /// Milliseconds since 1970, UTC
    pub time_ms: i64,
    /// Members before the commitment of what is private
    pub head: &'a [u8],
    /// Members after it
    pub tail: &'a [u8],
    /// What stays outside the tree
    pub private: Private<'a>,
}

// How the ring's number says what the private pieces are.
const KIND_MASK: u8 = 0x1f;
const PLAIN: u8 = 0x20;
const SALTED: u8 = 0x40;
const ARGUMENTS: u8 = 0x80;

impl<'a> Record<'a> {
    /// As the ring takes it.
    #[inline]
    pub(super) const fn pieces(&self) -> Pieces<'a> {
        let empty: &[u8] = &[];
        let (flag, private): (u8, [&[u8]; 3]) = match self.private {
            Private::None => (0, [empty; 3]),
            Private::Arguments { structure, text, more } => (ARGUMENTS, [more, structure, text.as_bytes()]),
            Private::Bytes(bytes) => (PLAIN, [empty, empty, bytes]),
            Private::Salted { salt, bytes } => (SALTED, [salt, empty, bytes]),
        };
        let [c, d, e] = private;
        Pieces { kind: self.kind as u8 | flag, time_ms: self.time_ms, pieces: [self.head, self.tail, c, d, e] }
    }

    /// The record that pieces out of a ring say; `None` if they say none.
    fn of(pieces: &Pieces<'a>) -> Option<Self> {
        let [head, tail, c, d, e] = pieces.pieces;
        let private = match pieces.kind & !KIND_MASK {
            0 => Private::None,
            PLAIN => Private::Bytes(e),
            SALTED => Private::Salted { salt: c.try_into().ok()?, bytes: e },
            ARGUMENTS => Private::Arguments { structure: d, text: std::str::from_utf8(e).ok()?, more: c },
            _ => return None,
        };
        Some(Self { kind: Kind::of(pieces.kind & KIND_MASK)?, time_ms: pieces.time_ms, head, tail, private })
    }
}

/// A fresh salt, and the commitment of a text under it: for what has to be committed to before it is recorded.
pub fn commit(text: &str) -> Result<([u8; 32], Hash), AuditError> {
    let mut salt = [0; 32];
    random(&mut salt)?;
    Ok((salt, commitment(&salt, text.as_bytes())))
}

/// Appends a time: `2026-11-21T17:05:18.123Z`.
pub fn push_time(out: &mut Vec<u8>, time_ms: i64) {
    let (days, ms) = (time_ms.div_euclid(86_400_000), time_ms.rem_euclid(86_400_000));
    let (year, month, day) = civil(days);
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    let (second, ms) = (ms / 1_000 % 60, ms % 1_000);
    // Writing to memory does not fail.
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z");
}

/// Year, month and day of a day since 1970, after Howard Hinnant's `civil_from_days`.
#[expect(clippy::arithmetic_side_effects, reason = "every i64 of milliseconds is within 300 million years")]
const fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + if month <= 2 { 1 } else { 0 }, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// Appends a hash as text.
pub fn push_hash(out: &mut Vec<u8>, hash: &Hash) {
    let mut text = [0; 44];
    // 32 bytes have 44 characters.
    let _ = BASE64.encode_slice(hash, &mut text);
    out.extend_from_slice(&text);
}

/// Appends a member: a comma, its name, and a number.
pub fn push_number(out: &mut Vec<u8>, name: &str, value: i64) {
    push_name(out, name);
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends a member: a comma, its name, and a text.
pub fn push_text(out: &mut Vec<u8>, name: &str, text: &str) {
    push_name(out, name);
    push_json_str(out, text);
}

/// Appends a comma and a member's name, which needs no escapes.
#[inline]
pub fn push_name(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// Appends a number as sixteen hex digits.
#[inline]
pub fn push_hex(out: &mut Vec<u8>, value: u64) {
    let pairs = value.to_be_bytes().map(crate::arguments::hex_pair);
    out.extend_from_slice(pairs.as_flattened());
}

/// Whether bytes are JSON members, each with a comma before it.
fn are_members(bytes: &[u8]) -> bool {
    let mut object = b"{\"v\":1".to_vec();
    object.extend_from_slice(bytes);
    object.push(b'}');
    // As a value: what is only passed over is not looked at as closely, and may be no text.
    bytes.is_empty() || serde_json::from_slice::<serde_json::Value>(&object).is_ok()
}

/// Salts, fetched from the kernel in bulk and used once.
#[derive(Debug, Default)]
struct Salts {
    bytes: Vec<u8>,
}

impl Salts {
    const BULK: usize = 256;

    /// Sees to it that there are two: no record needs more.
    fn prepare(&mut self) -> Result<(), AuditError> {
        if self.bytes.len() < 64 {
            let mut fresh = vec![0; Self::BULK * 32];
            random(&mut fresh)?;
            self.bytes = fresh;
        }
        Ok(())
    }

    /// Takes one that was prepared. The kernel's random numbers cost as much as hashing them, so none is wasted.
    fn take(&mut self) -> Result<[u8; 32], AuditError> {
        let salt = self.bytes.last_chunk::<32>().copied();
        self.bytes.truncate(self.bytes.len().saturating_sub(32));
        salt.ok_or_else(|| AuditError::unavailable("no random numbers"))
    }
}

/// Makes entries of records and collects them for one write.
#[derive(Debug)]
pub(super) struct Encoder {
    /// Sixteen hex digits
    producer: [u8; 16],
    /// Sequence number of the last entry that the writer itself has made
    writer_seq: u64,
    salts: Salts,
    arguments: Arguments,
    payload: Vec<u8>,
    /// The last time that was written out, and how
    time: (i64, Vec<u8>),
}

impl Encoder {
    pub(super) fn new(producer: u64) -> Self {
        let mut encoder = Self {
            producer: [0; 16],
            writer_seq: 0,
            salts: Salts::default(),
            arguments: Arguments::new(),
            payload: Vec::new(),
            time: (i64::MIN, Vec::new()),
        };
        encoder.set_producer(producer);
        encoder
    }

    /// Speaks for another producer from now on. The writer's own entries go on counting: they are made under one name.
    pub(super) fn set_producer(&mut self, producer: u64) {
        let text = format!("{producer:016x}");
        self.producer = text.as_bytes().try_into().unwrap_or([b'0'; 16]);
    }

    /// Adds the entry of pieces out of the ring. What is no record becomes an entry that says so.
    pub(super) fn add_pieces(&mut self, seq: u64, pieces: &Pieces<'_>, frame: &mut Frame) -> Result<(), AuditError> {
        match Record::of(pieces) {
            Some(record) => self.add(&record, Some(seq), frame),
            None => self.add_unreadable(seq, pieces.time_ms, "the record in the ring cannot be read", frame),
        }
    }

    /// The same for pieces out of the ring of a dead process, which are read as carefully as a file: what would not be
    /// a JSON object, or not fit a frame, becomes an entry that says so.
    pub(super) fn add_recovered(&mut self, seq: u64, pieces: &Pieces<'_>, frame: &mut Frame) -> Result<(), AuditError> {
        let len = pieces.pieces.iter().fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        let [head, tail, more, ..] = pieces.pieces;
        let more: &[u8] = if pieces.kind & !KIND_MASK == ARGUMENTS { more } else { &[] };
        let reads = len <= RECORD_BYTES_MAX && are_members(head) && are_members(tail) && are_members(more);
        if reads {
            return self.add_pieces(seq, pieces, frame);
        }
        self.add_unreadable(seq, pieces.time_ms, "the record in the ring cannot be read", frame)
    }

    /// Adds an entry for a sequence number of which nothing else is known.
    pub(super) fn add_unreadable(
        &mut self,
        seq: u64,
        time_ms: i64,
        why: &str,
        frame: &mut Frame,
    ) -> Result<(), AuditError> {
        let mut head = Vec::new();
        push_number(&mut head, "count", 1);
        push_text(&mut head, "reason", why);
        let record = Record { kind: Kind::Gap, time_ms, head: &head, tail: &[], private: Private::None };
        self.add(&record, Some(seq), frame)
    }

    /// Adds the entry of a record: of a producer with its sequence number, or of the writer itself.
    pub(super) fn add(&mut self, record: &Record<'_>, seq: Option<u64>, frame: &mut Frame) -> Result<(), AuditError> {
        // Before anything is written: nothing is taken back after that.
        self.salts.prepare()?;
        let salt = self.read_private(&record.private)?;
        let start = frame.begin_entry();
        self.envelope(record, seq, frame.bytes());
        frame.bytes().extend_from_slice(record.head);
        if let Some(salt) = salt {
            push_private(frame.bytes(), "arguments", record.kind, &salt, &self.payload);
        }
        frame.bytes().extend_from_slice(record.tail);
        frame.bytes().push(b'}');
        let mut payload = salt.map(|salt| (salt, &*self.payload));
        let spilled;
        if frame.entry_len(start) > ENTRY_BYTES_MAX {
            // All of it goes outside, the payload it had inside.
            spilled = self.spill(record, salt.is_some());
            let salt = self.salts.take()?;
            frame.reopen_entry(start);
            self.envelope_again(record, seq, frame.bytes());
            push_private(frame.bytes(), "oversize", record.kind, &salt, &spilled);
            frame.bytes().push(b'}');
            payload = Some((salt, &spilled));
        }
        let hash = leaf(frame.end_entry(start));
        frame.push_leaf(hash);
        if let Some((salt, payload)) = payload {
            frame.push_payload(&salt, payload);
        }
        Ok(())
    }

    /// The members of an entry that is too long for one, as an object, with its own payload as text or null.
    fn spill(&self, record: &Record<'_>, with_payload: bool) -> Vec<u8> {
        let mut all = b"{\"payload\":".to_vec();
        match std::str::from_utf8(&self.payload) {
            Ok(text) if with_payload => push_json_str(&mut all, text),
            _ => all.extend_from_slice(b"null"),
        }
        all.extend_from_slice(record.head);
        all.extend_from_slice(record.tail);
        all.push(b'}');
        all
    }

    /// Fills the payload buffer and returns the salt; `None` if nothing is private.
    fn read_private(&mut self, private: &Private<'_>) -> Result<Option<[u8; 32]>, AuditError> {
        self.payload.clear();
        match private {
            Private::None => return Ok(None),
            Private::Bytes(bytes) => self.payload.extend_from_slice(bytes),
            Private::Salted { salt, bytes } => {
                self.payload.extend_from_slice(bytes);
                return Ok(Some(**salt));
            }
            Private::Arguments { structure, text, more } => {
                self.payload.extend_from_slice(b"{\"input\":");
                if self.arguments.refill(structure, text.as_bytes()) {
                    self.arguments.write_json(&mut self.payload);
                } else {
                    self.payload.extend_from_slice(b"null");
                }
                self.payload.extend_from_slice(more);
                self.payload.push(b'}');
            }
        }
        self.salts.take().map(Some)
    }

    fn envelope(&mut self, record: &Record<'_>, seq: Option<u64>, out: &mut Vec<u8>) {
        if seq.is_none() {
            self.writer_seq = self.writer_seq.saturating_add(1);
        }
        self.envelope_again(record, seq, out);
    }

    fn envelope_again(&mut self, record: &Record<'_>, seq: Option<u64>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"v\":1,\"kind\":\"");
        out.extend_from_slice(record.kind.name().as_bytes());
        out.extend_from_slice(b"\",\"producer\":\"");
        out.extend_from_slice(&self.producer);
        out.extend_from_slice(if seq.is_none() { b".w\",\"seq\":" } else { b"\",\"seq\":" });
        out.extend_from_slice(itoa::Buffer::new().format(seq.unwrap_or(self.writer_seq)).as_bytes());
        out.extend_from_slice(b",\"time\":\"");
        if self.time.0 != record.time_ms {
            self.time.1.clear();
            push_time(&mut self.time.1, record.time_ms);
            self.time.0 = record.time_ms;
        }
        out.extend_from_slice(&self.time.1);
        out.push(b'"');
    }
}

/// A member that says how long a payload is and commits to it.
fn push_private(out: &mut Vec<u8>, name: &str, kind: Kind, salt: &[u8; 32], payload: &[u8]) {
    let name = match kind {
        Kind::Run if name == "arguments" => "request",
        Kind::Note if name == "arguments" => "private",
        _ => name,
    };
    push_name(out, name);
    out.extend_from_slice(b"{\"bytes\":");
    out.extend_from_slice(itoa::Buffer::new().format(payload.len()).as_bytes());
    out.extend_from_slice(b",\"commitment\":\"");
    push_hash(out, &commitment(salt, payload));
    out.extend_from_slice(b"\"}");
}
