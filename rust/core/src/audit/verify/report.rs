//! What a verification found: plain data, and one verdict over it.

use std::path::PathBuf;

use super::complete::Completeness;

/// Kinds of findings that break a log's integrity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// A file, or the bytes of an entry, are not there
    Missing,
    /// A file does not have its format
    Format,
    /// Two copies of an entry differ, or an entry and its hash
    Entry,
    /// A tile does not hold the hashes of what lies below it
    Tile,
    /// The tree does not have the root that something names
    Root,
    /// A checkpoint is not signed by the key
    Signature,
    /// The key or the origin is not the log's
    Key,
    /// A write-ahead segment is damaged
    Wal,
    /// A payload is not the one that its entry commits to
    Payload,
    /// The log ends before something that it has shown
    Rollback,
    /// The log has another past than it has shown
    Fork,
    /// An epoch does not go on from the one before
    Chain,
    /// A log that another one names does not fit
    Sibling,
    /// A file that the log's size does not explain
    Extra,
}

impl FaultKind {
    /// Stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Format => "format",
            Self::Entry => "entry",
            Self::Tile => "tile",
            Self::Root => "root",
            Self::Signature => "signature",
            Self::Key => "key",
            Self::Wal => "wal",
            Self::Payload => "payload",
            Self::Rollback => "rollback",
            Self::Fork => "fork",
            Self::Chain => "chain",
            Self::Sibling => "sibling",
            Self::Extra => "extra",
        }
    }
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What does not hold
    pub kind: FaultKind,
    /// The file, below the log's folder
    pub file: String,
    /// The entry
    pub index: Option<u64>,
    /// Byte of the file
    pub offset: Option<u64>,
    /// In words
    pub message: String,
}

/// Where the key came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySource {
    /// The caller gave it
    Given,
    /// From the log itself: only as trustworthy as the folder
    Directory,
    /// There is none
    Absent,
}

impl KeySource {
    /// Stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Directory => "directory",
            Self::Absent => "absent",
        }
    }
}

/// Payloads that lie outside the tree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Payloads {
    /// They are what their entries commit to
    pub verified: u64,
    /// Committed to, and not there
    pub missing: u64,
    /// Committed to, and erased
    pub erased: u64,
    /// Erased, and no `erasure` entry says so
    pub erased_unrecorded: u64,
    /// Committed to, and cut out of the frame that has their entries
    pub cut: u64,
    /// Not what their entries commit to, or damaged
    pub wrong: u64,
}

/// What was found in one tree.
#[derive(Debug, Clone)]
pub struct LogReport {
    /// Its folder
    pub path: PathBuf,
    /// Number of the process slot, in an audit folder
    pub slot: Option<u64>,
    /// Counted from 1
    pub epoch: u64,
    /// The epoch that is written to
    pub current: bool,
    /// As the checkpoint names it; empty without one
    pub origin: String,
    /// Where the key came from
    pub key_source: KeySource,
    /// The size that the checkpoint signs, or a later epoch or a kept checkpoint names; 0 without any
    pub signed_size: u64,
    /// The root at that size is the signed one, and the signature is the key's
    pub anchored: bool,
    /// A later epoch that holds names this one's root
    pub chained: bool,
    /// Entries that were read
    pub size: u64,
    /// Entries from 0 up to here hold by themselves: copies, hashes and tiles agree
    pub sound_size: u64,
    /// Entries from 0 up to here hold, and a signed root covers them
    pub verified_size: u64,
    /// Checkpoints of the log's history that were checked
    pub history_count: u64,
    /// Entries that the write-ahead segments hold; `None` without them
    pub wal_size: Option<u64>,
    /// Payloads
    pub payloads: Payloads,
    /// The first entries whose payloads are erased without an entry that says so; bounded
    pub unrecorded: Vec<u64>,
    /// Findings, in the order of the log; bounded
    pub faults: Vec<Fault>,
    /// All findings, listed or not
    pub fault_count: u64,
    /// What is unusual and breaks nothing
    pub warnings: Vec<String>,
}

impl LogReport {
    /// Entries beyond the signed size, which nothing outside holds the writer to.
    pub const fn tail(&self) -> u64 {
        self.size.saturating_sub(self.signed_size)
    }

    /// What still holds, in one line.
    pub fn summary(&self) -> String {
        let mut parts = vec![match self.verified_size {
            0 => "no entry is verified up to a signed root".to_owned(),
            size => format!("entries 0..{} verified", size.saturating_sub(1)),
        }];
        if let Some(first) = self.faults.first() {
            let index = first.index.map(|index| format!(" at entry {index}")).unwrap_or_default();
            parts.push(format!("{}{index}: {}", first.file, first.message));
        }
        if self.sound_size > self.verified_size {
            let last = self.sound_size.saturating_sub(1);
            parts.push(format!("entries {}..{last} agree with each other", self.verified_size));
        }
        if self.tail() > 0 {
            parts.push(format!("{} entries from {} on are not anchored", self.tail(), self.signed_size));
        }
        parts.join("; ")
    }
}

/// What was found about one process slot.
#[derive(Debug, Clone)]
pub struct SlotReport {
    /// Number of the slot, in an audit folder
    pub slot: Option<u64>,
    /// Its epochs, the current one last
    pub epochs: Vec<LogReport>,
    /// Over all its epochs
    pub completeness: Completeness,
}

/// What the older checkpoint says that somebody kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Since {
    /// Its origin
    pub origin: String,
    /// Its size
    pub size: u64,
    /// The log has grown from it
    pub consistent: bool,
}

/// The one word over a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Everything holds, and a given key has signed all of it
    Ok,
    /// Integrity holds, but entries lie beyond the checkpoint, or the key is only the log's own
    Unanchored,
    /// Integrity holds, but entries are missing, or payloads that nothing explains
    Incomplete,
    /// Something does not hold
    Broken,
}

impl Verdict {
    /// Stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unanchored => "unanchored",
            Self::Incomplete => "incomplete",
            Self::Broken => "broken",
        }
    }
}

/// What a verification found.
#[derive(Debug, Clone)]
pub struct Report {
    /// The folder
    pub path: PathBuf,
    /// By process slot
    pub slots: Vec<SlotReport>,
    /// The older checkpoint that was given
    pub since: Option<Since>,
    /// Findings that belong to no single tree
    pub faults: Vec<Fault>,
    /// The caller takes the key beside the log for good
    pub trust_directory: bool,
}

impl Report {
    /// All trees.
    pub fn logs(&self) -> impl Iterator<Item = &LogReport> {
        self.slots.iter().flat_map(|slot| slot.epochs.iter())
    }

    /// Whether integrity holds: every entry hashes to the tiles, the tiles to the root, and the key has signed the root.
    pub fn integrity(&self) -> bool {
        self.faults.is_empty() && self.logs().all(|log| log.fault_count == 0)
    }

    /// Whether no entry is known to be missing, and no payload is gone that nothing explains.
    pub fn complete(&self) -> bool {
        let payloads = self.logs().all(|log| log.payloads.cut == 0 && log.payloads.erased_unrecorded == 0);
        payloads && self.slots.iter().all(|slot| slot.completeness.holds())
    }

    /// Whether a trusted key has signed all there is.
    pub fn anchored(&self) -> bool {
        self.logs().all(|log| {
            let trusted = match log.key_source {
                KeySource::Given => true,
                KeySource::Directory => self.trust_directory || log.chained,
                KeySource::Absent => log.chained,
            };
            (log.anchored || log.chained) && trusted && log.tail() == 0
        })
    }

    /// The one word over it.
    pub fn verdict(&self) -> Verdict {
        if !self.integrity() {
            return Verdict::Broken;
        }
        if !self.complete() {
            return Verdict::Incomplete;
        }
        if self.anchored() { Verdict::Ok } else { Verdict::Unanchored }
    }
}
