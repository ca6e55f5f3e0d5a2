//! One pass over one tree: every entry from its bundle and its segment, its hash against the tiles, the tiles upwards, and
//! the root wherever something names one.
//!
//! Where copies differ both ways are followed until a signed root tells which one is right. After the first place that
//! cannot be read the pass goes on as far as hashes allow, so that the report can say what still holds.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::complete::Tracker;
use super::envelope::{self, Envelope};
use super::error::VerifyError;
use super::history::{History, Past};
use super::merkle::{Hash, Range, commitment, leaf_hash};
use super::note::{base64, hash_from_base64};
use super::report::{Fault, FaultKind, LogReport};
use super::tiles::{self, Bundle, Kind, LEVELS, TILE_WIDTH, width_at};
use super::wal::{Cursor, Payload, Step, WalEvent, WalFault, segments};
use crate::limits::{AUDIT_FAULTS_MAX, AUDIT_PROGRESS_ENTRIES, AUDIT_SIBLINGS_MAX};

/// Erased payloads that are remembered until an `erasure` entry names them.
const ERASED_MAX: usize = 1_000_000;

/// Who names a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Namer {
    /// The current checkpoint
    Signed,
    /// A checkpoint of the history
    History,
    /// An older checkpoint that somebody kept
    Since,
    /// The first entry of the next epoch
    Next,
    /// A frame of a segment
    Frame(PathBuf, u64),
}

/// A root that the tree must have at a size.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) root: Hash,
    pub(super) namer: Namer,
}

/// What a `start` entry says of another log.
#[derive(Debug, Clone)]
pub(super) struct Sibling {
    pub(super) origin: String,
    pub(super) size: u64,
    pub(super) root: Hash,
    /// The entry that says so
    pub(super) index: u64,
}

/// How far all passes are.
pub(super) struct Progress<'a> {
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) call: &'a mut dyn FnMut(u64, u64) -> bool,
}

impl Progress<'_> {
    fn tick(&mut self) -> Result<(), VerifyError> {
        self.done = self.done.saturating_add(1);
        if self.done.is_multiple_of(AUDIT_PROGRESS_ENTRIES) && !(self.call)(self.done, self.total.max(self.done)) {
            return Err(VerifyError::Cancelled);
        }
        Ok(())
    }
}

/// The tiles of one level that are not full yet.
#[derive(Debug, Default)]
struct Level {
    hashes: Vec<Hash>,
    range: Range,
    number: u64,
}

/// Both copies' files at a place where they differ, until a signed root tells which is right.
#[derive(Debug)]
struct Undecided {
    fault: Option<usize>,
    taken: String,
    other: String,
}

pub(super) struct Pass<'a, 'b> {
    root: PathBuf,
    pub(super) report: LogReport,
    tracker: &'a mut Tracker,
    progress: &'a mut Progress<'b>,
    /// Entries are ours, so that they must have the envelope
    own: bool,
    levels: Vec<Level>,
    size: u64,
    other: Option<Range>,
    undecided: Vec<Undecided>,
    first_bad: Option<u64>,
    targets: BTreeMap<u64, Vec<Target>>,
    next_target: u64,
    history: Option<History>,
    history_size: Option<u64>,
    history_off: bool,
    /// The root of the last matching frame end, so that the next frame's is not computed again
    known_root: Option<(u64, Hash)>,
    matched_size: u64,
    pub(super) matched: Vec<Namer>,
    erased: HashSet<u64>,
    pub(super) siblings: Vec<Sibling>,
    required: u64,
    /// Whose roots are vouched for: the checkpoint's, and those of others that were kept
    vouched: (bool, bool),
}

/// What a pass is told.
pub(super) struct Start<'a, 'b> {
    pub(super) report: LogReport,
    pub(super) tracker: &'a mut Tracker,
    pub(super) progress: &'a mut Progress<'b>,
    pub(super) own: bool,
    pub(super) history: Option<History>,
    /// Size of the checkpoint: tiles and bundles must reach that far
    pub(super) required: u64,
    /// The key has signed the checkpoint
    pub(super) signed: bool,
    /// There is a key, so that other checkpoints were not let through without its signature
    pub(super) keyed: bool,
}

/// The copies of one entry.
#[derive(Clone, Copy)]
struct Copies<'a> {
    bundle: Option<&'a [u8]>,
    wal: Option<&'a [u8]>,
    hash: Option<Hash>,
}

/// The segments, and what came of them.
struct Wal {
    cursor: Cursor,
    folder: PathBuf,
    seen: usize,
    /// The cursor's frame was not looked at yet
    fresh: bool,
    done: bool,
}

impl Wal {
    fn entry(&self, index: u64) -> Option<&[u8]> {
        if self.cursor.holds(index) { self.cursor.frame.entry(index) } else { None }
    }

    fn payload(&self, index: u64) -> Option<Payload<'_>> {
        if self.cursor.holds(index) { self.cursor.frame.payload(index) } else { None }
    }

    fn payload_is_damaged(&self, index: u64) -> bool {
        self.cursor.frame.payload_faults.iter().any(|(at, _)| *at == Some(index))
    }

    /// Goes on until the frame in memory holds the entry or lies beyond it.
    fn seek(&mut self, index: u64, pass: &mut Pass<'_, '_>) -> Result<(), VerifyError> {
        while !self.done && index >= self.cursor.end {
            match self.cursor.advance()? {
                Step::Frame => self.fresh = true,
                Step::Event(event) => pass.wal_event(&event),
                Step::Done => self.done = !self.more()?,
            }
            if std::mem::take(&mut self.fresh) {
                pass.frame(&self.cursor);
            }
        }
        Ok(())
    }

    /// A writer at work may have begun a segment since.
    fn more(&mut self) -> Result<bool, VerifyError> {
        let Some((found, _)) = segments(&self.folder)? else { return Ok(false) };
        let newer: Vec<_> = found.into_iter().skip(self.seen).collect();
        self.seen = self.seen.saturating_add(newer.len());
        Ok(self.cursor.append(newer))
    }
}

impl<'a, 'b> Pass<'a, 'b> {
    pub(super) fn new(start: Start<'a, 'b>) -> Self {
        Self {
            root: start.report.path.clone(),
            report: start.report,
            tracker: start.tracker,
            progress: start.progress,
            own: start.own,
            levels: vec![Level::default()],
            size: 0,
            other: None,
            undecided: Vec::new(),
            first_bad: None,
            targets: BTreeMap::new(),
            next_target: u64::MAX,
            history: start.history,
            history_size: None,
            history_off: false,
            known_root: None,
            matched_size: 0,
            matched: Vec::new(),
            erased: HashSet::new(),
            siblings: Vec::new(),
            required: start.required,
            vouched: (start.signed, start.keyed),
        }
    }

    /// Has a root compared at a size.
    pub(super) fn expect(&mut self, size: u64, target: Target) {
        self.targets.entry(size).or_default().push(target);
        self.next_target = self.next_target.min(size);
    }

    pub(super) fn fault(
        &mut self,
        kind: FaultKind,
        file: impl Into<String>,
        index: Option<u64>,
        message: impl Into<String>,
    ) -> Option<usize> {
        self.report.fault_count = self.report.fault_count.saturating_add(1);
        if self.report.faults.len() >= AUDIT_FAULTS_MAX {
            return None;
        }
        let fault = Fault { kind, file: file.into(), index, offset: None, message: message.into() };
        self.report.faults.push(fault);
        self.report.faults.len().checked_sub(1)
    }

    fn bad_entry(&mut self, index: u64) {
        self.first_bad = Some(self.first_bad.map_or(index, |first| first.min(index)));
    }

    fn name_of(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }

    /// Reads everything.
    pub(super) fn run(&mut self) -> Result<(), VerifyError> {
        let (extents, strange) = walk(&self.root.join("tile"))?;
        self.report
            .warnings
            .extend(strange.into_iter().take(AUDIT_FAULTS_MAX).map(|name| format!("{name}: not a file of the log")));
        self.next_history();
        let mut wal = self.open_wal()?;
        self.compare_roots();
        let mut number = 0;
        while self.block(number, wal.as_mut())? {
            number = u64::saturating_add(number, 1);
        }
        self.close(wal.as_ref(), &extents)
    }

    fn open_wal(&mut self) -> Result<Option<Wal>, VerifyError> {
        let folder = self.root.join("wal");
        let Some((found, strange)) = segments(&folder)? else { return Ok(None) };
        let names = strange.into_iter().take(AUDIT_FAULTS_MAX);
        self.report.warnings.extend(names.map(|name| format!("wal/{name}: not a segment")));
        if found.is_empty() && self.required > 0 {
            self.fault(FaultKind::Missing, "wal", Some(0), "there is no segment");
        }
        let origin = self.report.origin.clone();
        let (seen, origin) = (found.len(), Some(origin.as_str()).filter(|origin| !origin.is_empty()));
        Ok(Some(Wal { cursor: Cursor::new(found, origin), folder, seen, fresh: false, done: false }))
    }

    /// Takes the next 256 entries; false once there are no more.
    fn block(&mut self, number: u64, mut wal: Option<&mut Wal>) -> Result<bool, VerifyError> {
        let first = number.saturating_mul(TILE_WIDTH);
        let required = self.required.saturating_sub(first).min(TILE_WIDTH);
        let bundle = self.load_bundle(number, required)?;
        let tile = self.load_tile(0, number, required)?;
        let mut taken = 0;
        while taken < TILE_WIDTH {
            let index = first.saturating_add(taken);
            if let Some(wal) = wal.as_deref_mut() {
                wal.seek(index, self)?;
            }
            let place = usize::try_from(taken).unwrap_or(usize::MAX);
            let copies = Copies {
                bundle: bundle.as_ref().and_then(|bundle| bundle.entry(place)),
                wal: wal.as_deref().and_then(|wal| wal.entry(index)),
                hash: tile.as_ref().and_then(|hashes| hashes.get(place)).copied(),
            };
            if !self.take(index, copies, wal.as_deref()) {
                break;
            }
            taken = taken.saturating_add(1);
            self.compare_roots();
            self.progress.tick()?;
        }
        let width = tile.as_ref().map_or(0, |hashes| hashes.len() as u64);
        if width > taken {
            let last = first.saturating_add(taken);
            let file = tiles::path(Kind::Tile(0), number, width);
            self.fault(FaultKind::Extra, file, Some(last), "the tile has hashes of entries that are not there");
        }
        if taken == TILE_WIDTH {
            self.full_tiles()?;
        }
        Ok(taken == TILE_WIDTH)
    }

    /// Takes one entry; false if there is none.
    fn take(&mut self, index: u64, copies: Copies<'_>, wal: Option<&Wal>) -> bool {
        let Some(entry) = copies.bundle.or(copies.wal) else {
            let Some(hash) = copies.hash.filter(|_| index < self.required) else { return false };
            let file = tiles::path(Kind::Bundle, index / TILE_WIDTH, TILE_WIDTH);
            self.bad_entry(index);
            self.fault(FaultKind::Missing, file, Some(index), "the entry is not there, only its hash");
            self.push(hash, hash);
            return true;
        };
        let leaf = leaf_hash(entry);
        let same = copies.bundle.is_none() || copies.wal.is_none_or(|wal| wal == entry);
        if same && copies.hash.is_none_or(|hash| hash == leaf) {
            self.push(leaf, leaf);
            self.judge(index, entry, wal);
            return true;
        }
        let (taken, other, entry) = self.differing(index, entry, leaf, same, copies);
        self.push(taken, other);
        self.judge(index, entry, wal);
        true
    }

    /// Says which copies differ; returns the hash to go on with, the other one, and the entry that has the first.
    fn differing<'e>(
        &mut self,
        index: u64,
        entry: &'e [u8],
        leaf: Hash,
        same: bool,
        copies: Copies<'e>,
    ) -> (Hash, Hash, &'e [u8]) {
        let number = index / TILE_WIDTH;
        let bundle = tiles::path(Kind::Bundle, number, TILE_WIDTH);
        let tile = tiles::path(Kind::Tile(0), number, TILE_WIDTH);
        let (segment, in_wal) = ("wal".to_owned(), copies.wal.map(|wal| (wal, leaf_hash(wal))));
        let first = if self.other.is_none() { self.range() } else { Range::default() };
        self.bad_entry(index);
        if self.other.is_none() {
            self.other = Some(first);
        }
        if same {
            let source = if copies.bundle.is_some() { bundle } else { segment };
            let files = format!("{source} or {tile}");
            let fault =
                self.fault(FaultKind::Entry, files, Some(index), "the entry does not have the hash in the tile");
            self.undecided.push(Undecided { fault, taken: source, other: tile });
            return (leaf, copies.hash.unwrap_or(leaf), entry);
        }
        let (wal, wal_leaf) = in_wal.unwrap_or((entry, leaf));
        match copies.hash {
            Some(hash) if hash == leaf => {
                let message = "the entry in the segment is not the one in the bundle, which has the hash in the tile";
                self.fault(FaultKind::Entry, segment, Some(index), message);
                (leaf, leaf, entry)
            }
            Some(hash) if hash == wal_leaf => {
                let message = "the entry in the bundle is not the one in the segment, which has the hash in the tile";
                self.fault(FaultKind::Entry, bundle, Some(index), message);
                (wal_leaf, wal_leaf, wal)
            }
            _ => {
                let files = format!("{bundle} or {segment}");
                let fault = self.fault(FaultKind::Entry, files, Some(index), "the copies of the entry differ");
                self.undecided.push(Undecided { fault, taken: bundle, other: segment });
                (leaf, wal_leaf, entry)
            }
        }
    }

    fn push(&mut self, taken: Hash, other: Hash) {
        if let Some(range) = &mut self.other {
            range.push(other);
        }
        if let Some(level) = self.levels.first_mut() {
            level.hashes.push(taken);
            level.range.push(taken);
        }
        self.size = self.size.saturating_add(1);
    }

    /// The subtrees that make up the tree so far.
    fn range(&self) -> Range {
        let hashes = self.levels.iter().rev().flat_map(|level| level.range.hashes().iter().copied()).collect();
        Range::from_hashes(hashes, self.size)
    }

    /// Closes tiles that have become full, from the lowest level upwards.
    fn full_tiles(&mut self) -> Result<(), VerifyError> {
        for level in 0..LEVELS {
            let Some(current) = self.levels.get_mut(usize::from(level)) else { break };
            if (current.hashes.len() as u64) < TILE_WIDTH {
                break;
            }
            let parent = current.range.root();
            let (hashes, number) = (std::mem::take(&mut current.hashes), current.number);
            current.range = Range::default();
            current.number = number.saturating_add(1);
            if level > 0 {
                self.check_upper(level, number, &hashes)?;
            }
            let above = usize::from(level).saturating_add(1);
            if self.levels.len() == above {
                self.levels.push(Level::default());
            }
            if let Some(next) = self.levels.get_mut(above) {
                next.hashes.push(parent);
                next.range.push(parent);
            }
        }
        Ok(())
    }

    /// Compares a tile above the lowest level with what was computed.
    fn check_upper(&mut self, level: u8, number: u64, hashes: &[Hash]) -> Result<(), VerifyError> {
        let before = number.saturating_mul(TILE_WIDTH);
        let required = width_at(level, self.required).saturating_sub(before).min(TILE_WIDTH);
        let Some(stored) = self.load_tile(level, number, required)? else { return Ok(()) };
        let span = |place: usize| before.saturating_add(place as u64).checked_shl(u32::from(level).saturating_mul(8));
        let file = tiles::path(Kind::Tile(level), number, stored.len() as u64);
        if let Some(place) = stored.iter().zip(hashes).position(|(stored, computed)| stored != computed) {
            let (from, to) = (span(place), span(place.saturating_add(1)));
            let below =
                self.first_bad.is_some_and(|bad| from.is_none_or(|from| bad >= from) && to.is_none_or(|to| bad < to));
            if !below {
                self.fault(
                    FaultKind::Tile,
                    file,
                    from,
                    format!("hash {place} of the tile is not that of the tile below"),
                );
            }
        } else if stored.len() > hashes.len() {
            self.fault(FaultKind::Extra, file, span(hashes.len()), "the tile has hashes of tiles that are not there");
        }
        Ok(())
    }

    /// The widest tile file of a place; narrower ones must be its beginning.
    fn load_tile(&mut self, level: u8, number: u64, required: u64) -> Result<Option<Vec<Hash>>, VerifyError> {
        let kind = Kind::Tile(level);
        let mut widest: Option<Vec<Hash>> = None;
        for width in tiles::widths(&self.root, kind, number).into_iter().rev() {
            let file = tiles::path(kind, number, width);
            match (tiles::read_tile(&self.root, level, number, width), &widest) {
                (Ok(None), _) => {}
                (Ok(Some(hashes)), None) => widest = Some(hashes),
                (Ok(Some(hashes)), Some(wide)) if wide.starts_with(&hashes) => {}
                (Ok(Some(_)), Some(_)) => {
                    let index = first_of(kind, number);
                    self.fault(FaultKind::Tile, file, index, "the tile is not the beginning of the wider one");
                }
                (Err(error), _) => self.unreadable(kind, number, file, error)?,
            }
        }
        self.require(kind, number, required, widest.as_ref().map_or(0, |hashes| hashes.len() as u64));
        Ok(widest)
    }

    fn load_bundle(&mut self, number: u64, required: u64) -> Result<Option<Bundle>, VerifyError> {
        let mut widest: Option<Bundle> = None;
        for width in tiles::widths(&self.root, Kind::Bundle, number).into_iter().rev() {
            let file = tiles::path(Kind::Bundle, number, width);
            match (tiles::read_bundle(&self.root, number, width), &widest) {
                (Ok(None), _) => {}
                (Ok(Some(bundle)), None) => widest = Some(bundle),
                (Ok(Some(bundle)), Some(wide)) if wide.bytes().starts_with(bundle.bytes()) => {}
                (Ok(Some(_)), Some(_)) => {
                    let index = first_of(Kind::Bundle, number);
                    self.fault(FaultKind::Entry, file, index, "the bundle is not the beginning of the wider one");
                }
                (Err(error), _) => self.unreadable(Kind::Bundle, number, file, error)?,
            }
        }
        self.require(Kind::Bundle, number, required, widest.as_ref().map_or(0, |bundle| bundle.count() as u64));
        Ok(widest)
    }

    /// A file without its format is a finding; a refusal of the operating system ends the verification.
    fn unreadable(&mut self, kind: Kind, number: u64, file: String, error: VerifyError) -> Result<(), VerifyError> {
        let VerifyError::Format { message, .. } = error else { return Err(error) };
        self.fault(FaultKind::Format, file, first_of(kind, number), message);
        Ok(())
    }

    fn require(&mut self, kind: Kind, number: u64, required: u64, found: u64) {
        if found < required {
            let index = first_of(kind, number);
            let message = format!("{found} of {required} are there, though the checkpoint covers them");
            self.fault(FaultKind::Missing, tiles::path(kind, number, required), index, message);
        }
    }

    /// Reads the entry itself, and its payload.
    fn judge(&mut self, index: u64, entry: &[u8], wal: Option<&Wal>) {
        if !self.own {
            return;
        }
        let envelope = match envelope::read(entry) {
            Ok(envelope) => envelope,
            Err(message) => {
                self.bad_entry(index);
                let file = tiles::path(Kind::Bundle, index / TILE_WIDTH, TILE_WIDTH);
                self.fault(FaultKind::Format, file, Some(index), message);
                return;
            }
        };
        self.tracker.take(index, &envelope, entry);
        self.payload(index, &envelope, wal);
        if matches!(envelope.kind, "start" | "erasure")
            && let Ok(value) = serde_json::from_slice::<Value>(entry)
        {
            if envelope.kind == "erasure" {
                // Only of an entry before it, whose payload was seen to be erased.
                if let Some(erased) = value.get("index").and_then(Value::as_u64) {
                    self.erased.remove(&erased);
                }
            } else {
                self.started(index, &value);
            }
        }
    }

    fn started(&mut self, index: u64, value: &Value) {
        let Some(siblings) = value.get("siblings").and_then(Value::as_array) else { return };
        for sibling in siblings {
            let origin = sibling.get("origin").and_then(Value::as_str);
            let size = sibling.get("size").and_then(Value::as_u64);
            let root = sibling.get("root").and_then(Value::as_str).and_then(hash_from_base64);
            let (Some(origin), Some(size), Some(root)) = (origin, size, root) else {
                self.fault(FaultKind::Sibling, "start", Some(index), "a sibling is not origin, size and root");
                continue;
            };
            if self.siblings.len() < AUDIT_SIBLINGS_MAX {
                self.siblings.push(Sibling { origin: origin.to_owned(), size, root, index });
            }
        }
    }

    fn payload(&mut self, index: u64, envelope: &Envelope<'_>, wal: Option<&Wal>) {
        let payload = wal.and_then(|wal| wal.payload(index));
        let message = match (envelope.commitment, payload) {
            (None, None) => return,
            (Some(_), None) => {
                self.report.payloads.missing = self.report.payloads.missing.saturating_add(1);
                // Its frame is there: somebody took the payload out.
                if envelope.stored && wal.is_some_and(|wal| wal.cursor.holds(index)) {
                    self.report.payloads.cut = self.report.payloads.cut.saturating_add(1);
                }
                return;
            }
            (_, Some(payload)) if payload.erased => {
                self.report.payloads.erased = self.report.payloads.erased.saturating_add(1);
                if self.erased.len() < ERASED_MAX {
                    self.erased.insert(index);
                }
                // The mark is written first: an erasure is under way, or has ended there.
                if let Some(wal) = wal.filter(|wal| wal.payload_is_damaged(index))
                    && self.report.warnings.len() < AUDIT_FAULTS_MAX
                {
                    let file = self.name_of(wal.cursor.segment().unwrap_or(Path::new("wal")));
                    let warning = format!("{file}: the erased payload of entry {index} is not all zero yet");
                    self.report.warnings.push(warning);
                }
                return;
            }
            (None, Some(_)) => "there is a payload that the entry does not commit to",
            (Some(committed), Some(payload)) => {
                let holds = base64(&commitment(payload.salt, payload.bytes)) == committed;
                if holds && !wal.is_some_and(|wal| wal.payload_is_damaged(index)) {
                    self.report.payloads.verified = self.report.payloads.verified.saturating_add(1);
                    return;
                }
                if holds {
                    "the payload does not have its checksum"
                } else {
                    "the payload is not what the entry commits to"
                }
            }
        };
        self.report.payloads.wrong = self.report.payloads.wrong.saturating_add(1);
        self.fault(FaultKind::Payload, "wal", Some(index), message);
    }

    /// A new frame: its roots must be the tree's.
    fn frame(&mut self, cursor: &Cursor) {
        let segment = cursor.segment().unwrap_or(Path::new("wal")).to_owned();
        let frame = &cursor.frame;
        for (index, message) in &frame.payload_faults {
            if index.is_none() {
                let file = self.name_of(&segment);
                self.fault(FaultKind::Payload, file, Some(frame.header.first_index), message.clone());
            }
        }
        let known = self.known_root == Some((cursor.start, frame.header.previous_root));
        let namer = Namer::Frame(segment, frame.offset);
        if !known {
            self.expect(cursor.start, Target { root: frame.header.previous_root, namer: namer.clone() });
        }
        if frame.header.end() == Some(cursor.end) {
            self.known_root = Some((cursor.end, frame.new_root));
            self.expect(cursor.end, Target { root: frame.new_root, namer });
        }
        self.compare_roots();
    }

    fn wal_event(&mut self, event: &WalEvent) {
        let file = self.name_of(&event.segment);
        let kind = match event.what {
            WalFault::Torn | WalFault::Short => {
                let WalEvent { index, offset, message, .. } = event;
                let what = if event.what == WalFault::Torn { "ends within a batch" } else { "is short" };
                let warning = format!("{file}: {what} at entry {index}, byte {offset}: {message}");
                if self.report.warnings.len() < AUDIT_FAULTS_MAX {
                    self.report.warnings.push(warning);
                }
                return;
            }
            WalFault::Header | WalFault::Segment | WalFault::Damage | WalFault::Order => FaultKind::Wal,
            WalFault::Hole => FaultKind::Missing,
        };
        let place = self.fault(kind, file, Some(event.index), event.message.clone());
        if let Some(fault) = place.and_then(|place| self.report.faults.get_mut(place)) {
            fault.offset = Some(event.offset);
        }
    }

    /// Reads the next checkpoint of the history, so that its root is compared when the tree is that large.
    fn next_history(&mut self) {
        let file = "checkpoints.log";
        let Some(history) = &mut self.history else { return };
        match history.next() {
            Past::Checkpoint(checkpoint, number) => {
                self.report.history_count = number;
                if !self.report.origin.is_empty() && checkpoint.origin != self.report.origin {
                    self.fault(FaultKind::Key, file, None, format!("checkpoint {number} has another origin"));
                } else if self.history_size.is_some_and(|before| checkpoint.size < before) {
                    let message = format!("checkpoint {number} is smaller than the one before");
                    self.fault(FaultKind::Rollback, file, Some(checkpoint.size), message);
                } else {
                    self.history_size = Some(checkpoint.size);
                    self.expect(checkpoint.size, Target { root: checkpoint.root, namer: Namer::History });
                    return;
                }
            }
            Past::Fault(message) => {
                self.fault(FaultKind::Format, file, None, message);
            }
            Past::Torn => self.report.warnings.push(format!("{file}: the last checkpoint is not whole")),
            Past::End => {}
        }
        self.history = None;
    }

    /// Compares the root with everything that names one at this size.
    fn compare_roots(&mut self) {
        while self.next_target <= self.size {
            let Some((size, targets)) = self.targets.pop_first() else { break };
            let root = if size == self.size { Some(self.range().root()) } else { None };
            for target in targets {
                self.compare(size, root, &target);
            }
            self.next_target = self.targets.keys().next().copied().unwrap_or(u64::MAX);
        }
    }

    fn compare(&mut self, size: u64, root: Option<Hash>, target: &Target) {
        let taken = root == Some(target.root);
        let other =
            !taken && self.other.as_ref().is_some_and(|range| range.size() == size && range.root() == target.root);
        if (taken || other) && !matches!(target.namer, Namer::Frame(..)) {
            self.matched.push(target.namer.clone());
            self.matched.dedup();
            let vouched = match target.namer {
                Namer::Signed => self.vouched.0,
                Namer::History | Namer::Since => self.vouched.1,
                Namer::Next | Namer::Frame(..) => true,
            };
            if vouched {
                self.matched_size = self.matched_size.max(size);
                self.decide(taken);
            }
        }
        if target.namer == Namer::History {
            self.next_history();
        }
        if taken || other {
            return;
        }
        match &target.namer {
            Namer::Signed => {
                let message = format!("the entries below {size} do not have the signed root");
                self.fault(FaultKind::Root, "checkpoint", None, message);
            }
            Namer::History if self.history_off => {}
            Namer::History => {
                self.history_off = true;
                let message = format!("the entries below {size} do not have the root that was signed for that size");
                self.fault(FaultKind::Fork, "checkpoints.log", Some(self.matched_size), message);
            }
            Namer::Since => {
                let message = format!("the entries below {size} do not have the root of the checkpoint that was kept");
                self.fault(FaultKind::Fork, "since", Some(self.matched_size), message);
            }
            Namer::Next => {
                let message = format!("the entries below {size} do not have the root that the next epoch names");
                self.fault(FaultKind::Chain, "checkpoint", None, message);
            }
            // Roots of frames follow from entries: after a bad one they say nothing new.
            Namer::Frame(..) if self.first_bad.is_some() => {}
            Namer::Frame(segment, offset) => {
                let message = format!("a frame names another root for size {size}");
                let file = self.name_of(segment);
                let place = self.fault(FaultKind::Wal, file, Some(size), message);
                if let Some(fault) = place.and_then(|place| self.report.faults.get_mut(place)) {
                    fault.offset = Some(*offset);
                }
            }
        }
    }

    /// A signed root holds with one of two copies: the other one is the wrong one.
    fn decide(&mut self, taken_is_right: bool) {
        for undecided in std::mem::take(&mut self.undecided) {
            let (right, wrong) =
                if taken_is_right { (undecided.taken, undecided.other) } else { (undecided.other, undecided.taken) };
            let Some(fault) = undecided.fault.and_then(|place| self.report.faults.get_mut(place)) else { continue };
            fault.message = format!("{}; the signed root holds with {right}", fault.message);
            fault.file = wrong;
        }
        if taken_is_right {
            self.other = None;
        } else if let Some(other) = self.other.take() {
            // Go on from the right one; the lower levels keep what was computed, and say nothing new below it.
            self.replace(&other);
        }
    }

    /// Takes up another tree: its subtrees are spread over the levels again.
    fn replace(&mut self, tree: &Range) {
        let mut hashes = tree.hashes().iter().rev().copied();
        for (level, current) in self.levels.iter_mut().enumerate() {
            let width = width_at(u8::try_from(level).unwrap_or(LEVELS), self.size) % TILE_WIDTH;
            let mut own: Vec<Hash> = hashes.by_ref().take(width.count_ones() as usize).collect();
            own.reverse();
            current.range = Range::from_hashes(own, width);
        }
    }

    /// What only the end of the log shows.
    fn close(&mut self, wal: Option<&Wal>, extents: &[(Kind, u64, u64)]) -> Result<(), VerifyError> {
        for level in 1..LEVELS {
            let Some(current) = self.levels.get_mut(usize::from(level)) else { break };
            let (hashes, number) = (std::mem::take(&mut current.hashes), current.number);
            self.check_upper(level, number, &hashes)?;
        }
        let end = self.size;
        for (kind, number, width) in extents {
            let level = if let Kind::Tile(level) = kind { *level } else { 0 };
            let reach = number.saturating_mul(TILE_WIDTH).saturating_add(*width);
            // The last block that was read has said so already.
            let read = *kind == Kind::Tile(0) && *number <= end / TILE_WIDTH
                || level > 0 && *number <= width_at(level, end) / TILE_WIDTH;
            if reach > width_at(level, end) && !read {
                let message = format!("the log ends with {end} entries before what the file is about");
                self.fault(FaultKind::Extra, tiles::path(*kind, *number, *width), Some(end), message);
            }
        }
        if let Some(wal) = wal {
            self.report.wal_size = Some(wal.cursor.expected);
            if wal.cursor.expected < end {
                let message = format!("the segments end with {} of {end} entries", wal.cursor.expected);
                self.fault(FaultKind::Missing, "wal", Some(wal.cursor.expected), message);
            }
        }
        while let Some((size, targets)) = self.targets.pop_first() {
            for target in targets {
                self.beyond(size, &target.namer);
            }
        }
        self.close_payloads();
        self.report.size = end;
        self.report.sound_size = self.first_bad.unwrap_or(end).min(end);
        self.report.verified_size = self.matched_size.min(self.report.sound_size);
        Ok(())
    }

    /// Payloads that are gone, and nothing says why.
    fn close_payloads(&mut self) {
        let mut unrecorded: Vec<u64> = self.erased.iter().copied().collect();
        unrecorded.sort_unstable();
        self.report.payloads.erased_unrecorded = unrecorded.len() as u64;
        let cut = self.report.payloads.cut;
        if cut > 0 {
            let warning = format!("wal: {cut} payloads are missing from the write-ahead file that has their entries");
            self.report.warnings.push(warning);
        }
        if let Some(first) = unrecorded.first() {
            let warning = format!(
                "wal: {} payloads are erased, and no entry says so; the first is that of entry {first}",
                unrecorded.len()
            );
            self.report.warnings.push(warning);
        }
        unrecorded.truncate(AUDIT_FAULTS_MAX);
        self.report.unrecorded = unrecorded;
    }

    /// Something names a root for a size that the log does not reach.
    fn beyond(&mut self, size: u64, namer: &Namer) {
        let end = self.size;
        let (file, what) = match namer {
            Namer::Signed => ("checkpoint", "the checkpoint covers"),
            Namer::History => ("checkpoints.log", "a published checkpoint covers"),
            Namer::Since => ("since", "the checkpoint that was kept covers"),
            Namer::Next => ("checkpoint", "the next epoch says that there were"),
            Namer::Frame(..) => return,
        };
        self.fault(FaultKind::Rollback, file, Some(end), format!("{what} {size} entries, {end} are there"));
    }
}

fn first_of(kind: Kind, number: u64) -> Option<u64> {
    let level = if let Kind::Tile(level) = kind { level } else { 0 };
    number.checked_mul(TILE_WIDTH)?.checked_shl(u32::from(level).saturating_mul(8))
}

/// The files of a kind that reach farthest, and names that are none.
type Extents = (Vec<(Kind, u64, u64)>, Vec<String>);

/// Looks how far the files below `tile` reach.
fn walk(folder: &Path) -> Result<Extents, VerifyError> {
    let (mut extents, mut strange): Extents = Default::default();
    let mut open = vec![(folder.to_owned(), "tile".to_owned())];
    while let Some((path, name)) = open.pop() {
        let items = match std::fs::read_dir(&path) {
            Ok(items) => items,
            Err(error) if tiles::is_absent(&error) => continue,
            Err(error) => return Err(VerifyError::io(&path, error)),
        };
        for item in items {
            let item = item.map_err(|error| VerifyError::io(&path, error))?;
            let below = format!("{name}/{}", item.file_name().to_string_lossy());
            if item.file_type().is_ok_and(|kind| kind.is_dir()) {
                // Deeper than any path can be: not followed.
                if below.matches('/').count() < 12 {
                    open.push((item.path(), below));
                }
                continue;
            }
            let Some((kind, number, width)) = tiles::parse_path(&below) else {
                if strange.len() < AUDIT_FAULTS_MAX {
                    strange.push(below);
                }
                continue;
            };
            match extents.iter_mut().find(|(known, _, _)| *known == kind) {
                Some((_, farthest, widest)) if (number, width) > (*farthest, *widest) => {
                    (*farthest, *widest) = (number, width);
                }
                Some(_) => {}
                None => extents.push((kind, number, width)),
            }
        }
    }
    Ok((extents, strange))
}
