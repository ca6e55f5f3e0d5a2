//! Finds the logs of a folder and reads their entries and payloads, one at a time, with bounded memory.
//!
//! A folder with a `wal` folder or a `checkpoint` is a log; one with numbered folders that are logs is the audit folder of
//! a gate. Reading does not verify: it checks lengths and checksums, and leaves hashes to [`super::check`].

use std::path::{Path, PathBuf};

use super::error::VerifyError;
use super::merkle::Hash;
use super::note::{Checkpoint, decimal};
use super::tiles::{Bundle, Kind, TILE_WIDTH, is_absent, read_bounded, read_bundle, widths};
use super::wal::{Found, Frame, FrameHeader, Segment, SegmentReader, segments};
use crate::limits::AUDIT_NOTE_BYTES_MAX;

/// One tree: a log's current epoch, or a finished one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Epoch {
    /// Its folder
    pub path: PathBuf,
    /// Counted from 1
    pub number: u64,
}

/// The log of one process slot: its epochs in order, the current one last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotLog {
    /// The log's folder
    pub path: PathBuf,
    /// Number of the slot, in an audit folder
    pub slot: Option<u64>,
    /// Epochs whose folders are there, the current one last
    pub epochs: Vec<Epoch>,
}

/// What a folder holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogDir {
    /// The folder
    pub path: PathBuf,
    /// The logs in it
    pub logs: Vec<SlotLog>,
}

fn is_log(path: &Path) -> bool {
    path.join("wal").is_dir() || path.join("checkpoint").is_file()
}

/// Folders below one whose names are numbers, in order.
fn numbered(path: &Path) -> Result<Vec<(u64, PathBuf)>, VerifyError> {
    let items = match std::fs::read_dir(path) {
        Ok(items) => items,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(VerifyError::io(path, error)),
    };
    let mut found = Vec::new();
    for item in items {
        let item = item.map_err(|error| VerifyError::io(path, error))?;
        let number = item.file_name().to_str().and_then(decimal);
        if let Some(number) = number.filter(|_| item.path().is_dir()) {
            found.push((number, item.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

impl SlotLog {
    fn open(path: &Path, slot: Option<u64>) -> Result<Self, VerifyError> {
        let finished = numbered(&path.join("epochs"))?;
        let current = finished.last().map_or(1, |(number, _)| number.saturating_add(1));
        let mut epochs: Vec<Epoch> = finished.into_iter().map(|(number, path)| Epoch { path, number }).collect();
        epochs.push(Epoch { path: path.to_owned(), number: current });
        Ok(Self { path: path.to_owned(), slot, epochs })
    }
}

impl LogDir {
    /// Looks which logs a folder holds.
    pub fn discover(path: &Path) -> Result<Self, VerifyError> {
        if is_log(path) {
            return Ok(Self { path: path.to_owned(), logs: vec![SlotLog::open(path, None)?] });
        }
        let mut logs = Vec::new();
        for (slot, folder) in numbered(path)? {
            if is_log(&folder) {
                logs.push(SlotLog::open(&folder, Some(slot))?);
            }
        }
        if logs.is_empty() {
            return Err(VerifyError::NotFound { what: format!("{}: there is no audit log", path.display()) });
        }
        Ok(Self { path: path.to_owned(), logs })
    }
}

/// The text of the current checkpoint, if there is one.
pub fn checkpoint_text(path: &Path) -> Result<Option<String>, VerifyError> {
    let file = path.join("checkpoint");
    let Some(bytes) = read_bounded(&file, AUDIT_NOTE_BYTES_MAX as u64)? else { return Ok(None) };
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|_| VerifyError::format(file.display().to_string(), "the checkpoint is not UTF-8"))
}

/// Frames of the segment that was used last: where each lies.
#[derive(Debug)]
struct Table {
    position: usize,
    reader: SegmentReader,
    frames: Vec<(FrameHeader, u64)>,
}

impl Table {
    fn open(position: usize, segment: &Segment) -> Result<Self, VerifyError> {
        let reader = SegmentReader::open(segment)?;
        let mut table = Self { position, reader, frames: Vec::new() };
        table.extend()?;
        Ok(table)
    }

    /// Takes up frames that were written since; headers are believed here, and checked when a frame is read.
    fn extend(&mut self) -> Result<(), VerifyError> {
        self.reader.measure()?;
        while let Some(header) = self.reader.peek()? {
            let expected = self.frames.last().and_then(|(last, _)| last.end());
            if expected.is_some_and(|expected| expected != header.first_index) {
                break;
            }
            self.frames.push((header, self.reader.at));
            self.reader.skip(&header);
        }
        Ok(())
    }

    fn end(&self) -> u64 {
        self.frames.last().and_then(|(header, _)| header.end()).unwrap_or(0)
    }
}

/// A payload's salt, and the payload.
pub type SaltedPayload = (Vec<u8>, Vec<u8>);

/// Reads one tree's entries by their index.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    checkpoint: Option<(String, Checkpoint)>,
    segments: Option<Vec<Segment>>,
    wal_size: u64,
    table: Option<Table>,
    frame: Frame,
    /// Which frame is in memory: segment and offset
    loaded: Option<(usize, u64)>,
    bundle: Option<(u64, Bundle)>,
}

impl Reader {
    /// Opens one log, or one epoch of it.
    pub fn open(path: &Path) -> Result<Self, VerifyError> {
        if !is_log(path) {
            return Err(VerifyError::NotFound { what: format!("{}: there is no audit log", path.display()) });
        }
        let mut reader = Self {
            path: path.to_owned(),
            checkpoint: None,
            segments: None,
            wal_size: 0,
            table: None,
            frame: Frame::default(),
            loaded: None,
            bundle: None,
        };
        reader.refresh()?;
        Ok(reader)
    }

    /// Looks again how far the log goes.
    pub fn refresh(&mut self) -> Result<(), VerifyError> {
        self.checkpoint = match checkpoint_text(&self.path)? {
            Some(text) => {
                let parsed = Checkpoint::unsigned(&text)?;
                Some((text, parsed))
            }
            None => None,
        };
        let listed = segments(&self.path.join("wal"))?.map(|(found, _)| found);
        if listed != self.segments {
            self.table = None;
            self.loaded = None;
            self.segments = listed;
        }
        // A bundle may have been partial when it was read.
        self.bundle = None;
        self.wal_size = 0;
        let mut position = self.segments.as_ref().map_or(0, Vec::len);
        // The newest segment may be empty still; then the one before says how far the log goes.
        while let Some(before) = position.checked_sub(1) {
            position = before;
            let table = self.table(position)?;
            table.extend()?;
            let end = table.end();
            if end > 0 {
                self.wal_size = end;
                break;
            }
        }
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checkpoint, not checked.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref().map(|(_, checkpoint)| checkpoint)
    }

    /// Its text.
    pub fn checkpoint_text(&self) -> Option<&str> {
        self.checkpoint.as_ref().map(|(text, _)| text.as_str())
    }

    /// Entries that the checkpoint covers.
    pub fn signed_size(&self) -> u64 {
        self.checkpoint().map_or(0, |checkpoint| checkpoint.size)
    }

    /// Entries that the write-ahead segments reach to; 0 without them.
    pub const fn wal_size(&self) -> u64 {
        self.wal_size
    }

    /// Entries.
    pub fn size(&self) -> u64 {
        self.wal_size.max(self.signed_size())
    }

    fn table(&mut self, position: usize) -> Result<&mut Table, VerifyError> {
        let cached = self.table.take().filter(|table| table.position == position);
        let table = if let Some(table) = cached {
            table
        } else {
            let segment = self.segments.as_ref().and_then(|all| all.get(position));
            let segment = segment.ok_or_else(|| self.no_entry(u64::MAX))?;
            Table::open(position, segment)?
        };
        Ok(self.table.insert(table))
    }

    fn no_entry(&self, index: u64) -> VerifyError {
        VerifyError::NotFound { what: format!("{}: there is no entry {index}", self.path.display()) }
    }

    /// Has the frame in memory that holds an entry; false if no segment does.
    fn load(&mut self, index: u64) -> Result<bool, VerifyError> {
        let Some(all) = &self.segments else { return Ok(false) };
        let after = all.partition_point(|segment| segment.first_index <= index);
        let Some(position) = after.checked_sub(1) else { return Ok(false) };
        let table = self.table(position)?;
        let place = table.frames.partition_point(|(header, _)| header.first_index <= index);
        let found = place.checked_sub(1).and_then(|place| table.frames.get(place)).copied();
        let Some((header, offset)) = found.filter(|(header, _)| header.end().is_some_and(|end| index < end)) else {
            return Ok(false);
        };
        if self.loaded == Some((position, offset)) {
            return Ok(true);
        }
        self.loaded = None;
        let mut frame = std::mem::take(&mut self.frame);
        let table = self.table(position)?;
        let next = std::mem::replace(&mut table.reader.at, offset);
        let read = table.reader.next(&mut frame);
        table.reader.at = next;
        self.frame = frame;
        match read? {
            Found::Frame if self.frame.header == header => {
                self.loaded = Some((position, offset));
                Ok(true)
            }
            Found::Bad(message) => {
                let file = self.segments.as_ref().and_then(|all| all.get(position));
                let file = file.map(|segment| segment.path.display().to_string()).unwrap_or_default();
                Err(VerifyError::format(format!("{file} at byte {offset}"), message))
            }
            _ => Err(self.no_entry(index)),
        }
    }

    /// Copies an entry; from its bundle if the checkpoint covers it, else from the segments.
    pub fn entry(&mut self, index: u64, into: &mut Vec<u8>) -> Result<(), VerifyError> {
        into.clear();
        if index < self.signed_size() && self.load_bundle(index / TILE_WIDTH)? {
            let place = usize::try_from(index % TILE_WIDTH).unwrap_or(usize::MAX);
            if let Some(entry) = self.bundle.as_ref().and_then(|(_, bundle)| bundle.entry(place)) {
                into.extend_from_slice(entry);
                return Ok(());
            }
        }
        if !self.load(index)? {
            return Err(self.no_entry(index));
        }
        let entry = self.frame.entry(index).ok_or_else(|| self.no_entry(index))?;
        into.extend_from_slice(entry);
        Ok(())
    }

    fn load_bundle(&mut self, n: u64) -> Result<bool, VerifyError> {
        if self.bundle.as_ref().is_some_and(|(number, _)| *number == n) {
            return Ok(true);
        }
        let Some(width) = widths(&self.path, Kind::Bundle, n).last().copied() else { return Ok(false) };
        self.bundle = read_bundle(&self.path, n, width)?.map(|bundle| (n, bundle));
        Ok(self.bundle.is_some())
    }

    /// The payload of an entry with its salt; `None` where there is none, or it was erased.
    pub fn payload(&mut self, index: u64) -> Result<Option<SaltedPayload>, VerifyError> {
        if index >= self.size() {
            return Err(self.no_entry(index));
        }
        if !self.load(index)? {
            return Ok(None);
        }
        // An erasure that is under way, or did not come to its end: what is left is nobody's.
        if self.frame.payload(index).is_some_and(|payload| payload.erased) {
            return Ok(None);
        }
        let fault = self.frame.payload_faults.iter().find(|(at, _)| *at == Some(index));
        if let Some((_, message)) = fault {
            let place = format!("{}: payload of entry {index}", self.path.display());
            return Err(VerifyError::format(place, message.clone()));
        }
        let payload = self.frame.payload(index);
        Ok(payload.map(|payload| (payload.salt.to_vec(), payload.bytes.to_vec())))
    }

    /// The root that the current checkpoint names.
    pub fn signed_root(&self) -> Option<Hash> {
        self.checkpoint().map(|checkpoint| checkpoint.root)
    }
}
