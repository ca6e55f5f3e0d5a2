//! Reads the write-ahead segments of a log: frames of entries and their payloads. Never writes, never repairs.
//!
//! One frame is in memory at a time. What cannot be read is told apart: a torn tail (nothing whole follows), damage (a
//! whole frame follows), and frames that are not where they belong. Judging is left to the caller.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::VerifyError;
use super::merkle::Hash;
use super::note::decimal;
use super::tiles::{is_absent, split_entries};
use crate::limits::{AUDIT_FRAME_BYTES_MAX, AUDIT_RESYNC_TRIES_MAX};

const SEGMENT_MAGIC: &[u8; 8] = b"TKWAL001";
const SEGMENT_HEADER_BYTES: u64 = 64;
const FRAME_MAGIC: &[u8; 4] = b"TKF1";
const FRAME_END: &[u8; 4] = b"TKFE";
const FRAME_HEADER_BYTES: usize = 96;
const TRAILER_BYTES: usize = 40;
const ITEM_HEADER_BYTES: usize = 48;

fn slice(bytes: &[u8], at: usize, length: usize) -> &[u8] {
    bytes.get(at..at.saturating_add(length)).unwrap_or_default()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    slice(bytes, at, 4).try_into().map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    slice(bytes, at, 8).try_into().map_or(0, u64::from_le_bytes)
}

fn hash_at(bytes: &[u8], at: usize) -> Hash {
    slice(bytes, at, 32).try_into().unwrap_or_default()
}

/// A segment file, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// First entry, as the name says
    pub first_index: u64,
    /// The file
    pub path: PathBuf,
}

/// Segments, and names of files that are none.
pub type Listing = (Vec<Segment>, Vec<String>);

/// The segments of a folder in order, and names that are none; `None` if there is no such folder.
pub fn segments(folder: &Path) -> Result<Option<Listing>, VerifyError> {
    let items = match std::fs::read_dir(folder) {
        Ok(items) => items,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(VerifyError::io(folder, error)),
    };
    let (mut found, mut strange) = (Vec::new(), Vec::new());
    for item in items {
        let item = item.map_err(|error| VerifyError::io(folder, error))?;
        let name = item.file_name().to_string_lossy().into_owned();
        let digits = name.strip_suffix(".seg").filter(|digits| digits.len() == 20);
        let trimmed = digits.map(|digits| digits.trim_start_matches('0'));
        match trimmed.and_then(|digits| if digits.is_empty() { Some(0) } else { decimal(digits) }) {
            Some(first_index) => found.push(Segment { first_index, path: item.path() }),
            None => strange.push(name),
        }
    }
    found.sort_by_key(|segment| segment.first_index);
    Ok(Some((found, strange)))
}

/// What a frame says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FrameHeader {
    /// First entry
    pub first_index: u64,
    /// Entries
    pub count: u32,
    /// Bytes of the entries with their lengths
    pub entries_bytes: u32,
    /// Bytes of the payload items
    pub payload_bytes: u32,
    /// Whose ring it came from
    pub producer: u64,
    /// The last sequence number of that ring that the log contains
    pub last_seq: u64,
    /// When it was made
    pub time_ms: i64,
    /// Root of the tree before it
    pub previous_root: Hash,
}

impl FrameHeader {
    fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        if slice(bytes, 0, 4) != FRAME_MAGIC {
            return Err("no frame begins here");
        }
        if u32_at(bytes, 4) != 0 || u32_at(bytes, 28) != 0 || u64_at(bytes, 56) != 0 {
            return Err("reserved fields of a frame are not zero");
        }
        let header = Self {
            first_index: u64_at(bytes, 8),
            count: u32_at(bytes, 16),
            entries_bytes: u32_at(bytes, 20),
            payload_bytes: u32_at(bytes, 24),
            producer: u64_at(bytes, 32),
            last_seq: u64_at(bytes, 40),
            time_ms: u64_at(bytes, 48).cast_signed(),
            previous_root: hash_at(bytes, 64),
        };
        let enough = u64::from(header.entries_bytes) >= u64::from(header.count).saturating_mul(2);
        if header.count == 0 || !enough || header.end().is_none() {
            return Err("the counts of a frame cannot be right");
        }
        if header.bytes() > AUDIT_FRAME_BYTES_MAX {
            return Err("a frame is larger than 64 MiB");
        }
        Ok(header)
    }

    /// The index after its last entry.
    pub fn end(&self) -> Option<u64> {
        self.first_index.checked_add(u64::from(self.count))
    }

    /// Bytes in the file, without padding.
    fn bytes(&self) -> u64 {
        let fixed = (FRAME_HEADER_BYTES as u64).saturating_add(TRAILER_BYTES as u64);
        fixed.saturating_add(u64::from(self.entries_bytes)).saturating_add(u64::from(self.payload_bytes))
    }
}

/// The payload of one entry, as the file has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload<'a> {
    /// Made with the payload, erased with it
    pub salt: &'a [u8],
    /// The payload
    pub bytes: &'a [u8],
    /// It is gone: salt and bytes are zero
    pub erased: bool,
}

#[derive(Debug, Clone, Copy)]
struct Item {
    index: u32,
    erased: bool,
    at: usize,
    length: usize,
}

/// One frame in memory.
#[derive(Debug, Default)]
pub struct Frame {
    /// What it says of itself
    pub header: FrameHeader,
    /// Root of the tree after it
    pub new_root: Hash,
    /// Its place in the file
    pub offset: u64,
    /// What is wrong with its payload items, which the frame's checksum leaves out so that they can be erased
    pub payload_faults: Vec<(Option<u64>, String)>,
    body: Vec<u8>,
    spans: Vec<(usize, usize)>,
    items: Vec<Item>,
}

impl Frame {
    /// An entry by its index in the log.
    pub fn entry(&self, index: u64) -> Option<&[u8]> {
        let at = usize::try_from(index.checked_sub(self.header.first_index)?).ok()?;
        let (start, end) = self.spans.get(at)?;
        self.body.get(*start..*end)
    }

    /// The payload of an entry, by the entry's index in the log.
    pub fn payload(&self, index: u64) -> Option<Payload<'_>> {
        let place = u32::try_from(index.checked_sub(self.header.first_index)?).ok()?;
        let found = self.items.binary_search_by_key(&place, |item| item.index).ok()?;
        let item = self.items.get(found)?;
        let start = item.at.saturating_add(ITEM_HEADER_BYTES);
        Some(Payload {
            salt: slice(&self.body, item.at.saturating_add(16), 32),
            bytes: slice(&self.body, start, item.length),
            erased: item.erased,
        })
    }

    fn parse_items(&mut self) {
        let mut at = self.header.entries_bytes as usize;
        let end = at.saturating_add(self.header.payload_bytes as usize);
        while at < end {
            let head = slice(&self.body, at, ITEM_HEADER_BYTES);
            let (index, length, flags) = (u32_at(head, 0), u32_at(head, 4) as usize, u32_at(head, 8));
            let next = at.saturating_add(ITEM_HEADER_BYTES).saturating_add(length);
            let ordered = self.items.last().is_none_or(|last| last.index < index) && index < self.header.count;
            if head.len() < ITEM_HEADER_BYTES || next > end || !ordered || flags > 1 {
                let message = format!("the payload items of the frame are damaged {at} bytes into it");
                self.payload_faults.push((None, message));
                return;
            }
            let item = Item { index, erased: flags == 1, at, length };
            if let Some(message) = self.item_fault(&item) {
                let entry = self.header.first_index.saturating_add(u64::from(index));
                self.payload_faults.push((Some(entry), message.to_owned()));
            }
            self.items.push(item);
            at = next;
        }
    }

    fn item_fault(&self, item: &Item) -> Option<&'static str> {
        let stored = u32_at(&self.body, item.at.saturating_add(12));
        let covered = slice(&self.body, item.at.saturating_add(16), item.length.saturating_add(32));
        if item.erased {
            let zero = stored == 0 && covered.iter().all(|byte| *byte == 0);
            return (!zero).then_some("an erased payload is not all zero");
        }
        (crc32c::crc32c(covered) != stored).then_some("the payload does not have its checksum")
    }
}

/// What lies at a place of a segment.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole frame
    Frame,
    /// Four zero bytes, or the end of the file
    End,
    /// Something else, and what is wrong with it
    Bad(String),
}

/// One segment file.
#[derive(Debug)]
pub struct SegmentReader {
    file: File,
    path: PathBuf,
    /// Bytes of the file
    pub length: u64,
    /// Where the next frame is expected
    pub at: u64,
    /// What is wrong with the segment's own header
    pub header_fault: Option<String>,
    /// The header is as it was before anything was written
    pub blank: bool,
    /// Bytes that the header promises
    pub promised: u64,
}

impl SegmentReader {
    /// Opens a segment and reads its header.
    pub fn open(segment: &Segment) -> Result<Self, VerifyError> {
        let fail = |error| VerifyError::io(&segment.path, error);
        let file = File::open(&segment.path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() {
            return Err(VerifyError::format(segment.path.display().to_string(), "not a file"));
        }
        let mut reader = Self {
            file,
            path: segment.path.clone(),
            length: metadata.len(),
            at: SEGMENT_HEADER_BYTES,
            header_fault: None,
            blank: false,
            promised: 0,
        };
        let mut head = [0; 64];
        let read = reader.read(0, &mut head)?;
        reader.header_fault = header_fault(&head, read, segment.first_index);
        reader.blank = head.iter().all(|byte| *byte == 0);
        reader.promised = if reader.header_fault.is_none() { u64_at(&head, 24) } else { 0 };
        Ok(reader)
    }

    /// Looks again how long the file is.
    pub fn measure(&mut self) -> Result<(), VerifyError> {
        self.length = self.file.metadata().map_err(|error| VerifyError::io(&self.path, error))?.len();
        Ok(())
    }

    /// The digest of the origin that the header names, 24 bytes.
    pub fn origin_digest(&self) -> Result<Vec<u8>, VerifyError> {
        let mut digest = vec![0; 24];
        self.read(32, &mut digest)?;
        Ok(digest)
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<usize, VerifyError> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, at.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(bytes) => done = done.saturating_add(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(VerifyError::io(&self.path, error)),
            }
        }
        Ok(done)
    }

    /// Reads only the header of the frame at the place; `None` if none begins there.
    pub fn peek(&mut self) -> Result<Option<FrameHeader>, VerifyError> {
        let mut head = [0; FRAME_HEADER_BYTES];
        let read = self.read(self.at, &mut head)?;
        let header = FrameHeader::parse(&head).ok().filter(|_| read == FRAME_HEADER_BYTES);
        Ok(header.filter(|header| self.at.saturating_add(header.bytes()) <= self.length))
    }

    /// Goes beyond a frame whose header was read.
    pub fn skip(&mut self, header: &FrameHeader) {
        self.at = padded(self.at.saturating_add(header.bytes()));
    }

    /// Reads what lies at the place, and goes beyond it if it is a frame.
    pub fn next(&mut self, frame: &mut Frame) -> Result<Found, VerifyError> {
        let found = self.read_frame(self.at, frame)?;
        if found == Found::Frame {
            self.skip(&frame.header);
        }
        Ok(found)
    }

    fn read_frame(&self, at: u64, frame: &mut Frame) -> Result<Found, VerifyError> {
        let mut head = [0; FRAME_HEADER_BYTES];
        let read = self.read(at, &mut head)?;
        if slice(&head, 0, 4.min(read)).iter().all(|byte| *byte == 0) {
            return Ok(Found::End);
        }
        if read < FRAME_HEADER_BYTES {
            return Ok(Found::Bad("the file ends within the header of a frame".to_owned()));
        }
        let header = match FrameHeader::parse(&head) {
            Ok(header) => header,
            Err(message) => return Ok(Found::Bad(message.to_owned())),
        };
        if at.saturating_add(header.bytes()) > self.length {
            return Ok(Found::Bad("the file ends within a frame".to_owned()));
        }
        let rest = usize::try_from(header.bytes()).unwrap_or(0).saturating_sub(FRAME_HEADER_BYTES);
        frame.body.resize(rest, 0);
        if self.read(at.saturating_add(FRAME_HEADER_BYTES as u64), &mut frame.body)? < rest {
            return Ok(Found::Bad("the file ends within a frame".to_owned()));
        }
        let entries = header.entries_bytes as usize;
        let trailer = entries.saturating_add(header.payload_bytes as usize);
        let checksum = crc32c::crc32c(&head);
        let checksum = crc32c::crc32c_append(checksum, slice(&frame.body, 0, entries));
        let checksum = crc32c::crc32c_append(checksum, slice(&frame.body, trailer, 32));
        if checksum != u32_at(&frame.body, trailer.saturating_add(32)) {
            return Ok(Found::Bad("a frame does not have its checksum".to_owned()));
        }
        if slice(&frame.body, trailer.saturating_add(36), 4) != FRAME_END {
            return Ok(Found::Bad("a frame does not end with its mark".to_owned()));
        }
        frame.header = header;
        frame.offset = at;
        frame.new_root = hash_at(&frame.body, trailer);
        frame.items.clear();
        frame.payload_faults.clear();
        match split_entries(slice(&frame.body, 0, entries), u64::from(header.count)) {
            Ok(spans) => frame.spans = spans,
            Err(message) => return Ok(Found::Bad(message)),
        }
        frame.parse_items();
        let mut padding = [0; 8];
        let end = at.saturating_add(header.bytes());
        let gap = usize::try_from(padded(end).saturating_sub(end)).unwrap_or(0);
        let read = self.read(end, padding.get_mut(..gap).unwrap_or_default())?;
        if slice(&padding, 0, read).iter().any(|byte| *byte != 0) {
            frame.payload_faults.push((None, "the padding after the frame is not zero".to_owned()));
        }
        Ok(Found::Frame)
    }

    /// Looks beyond a bad place for a whole frame at or after `index`; goes there if there is one.
    pub fn resync(&mut self, index: u64) -> Result<bool, VerifyError> {
        let mut frame = Frame::default();
        let mut buffer = vec![0; 1 << 16];
        let mut tries = 0;
        let mut at = padded(self.at.saturating_add(1));
        while at < self.length && tries < AUDIT_RESYNC_TRIES_MAX {
            let read = self.read(at, &mut buffer)?;
            if read < FRAME_HEADER_BYTES {
                break;
            }
            for (number, word) in buffer.get(..read).unwrap_or_default().chunks_exact(8).enumerate() {
                if slice(word, 0, 4) != FRAME_MAGIC {
                    continue;
                }
                tries = tries.saturating_add(1);
                let place = at.saturating_add((number as u64).saturating_mul(8));
                let whole = self.read_frame(place, &mut frame)? == Found::Frame;
                if whole && frame.header.first_index >= index {
                    self.at = place;
                    return Ok(true);
                }
            }
            at = at.saturating_add(read as u64 & !7);
        }
        Ok(false)
    }

    /// How many bytes from the place on are not a run of zeros up to the end of the file.
    pub fn leftover(&self) -> Result<u64, VerifyError> {
        let mut buffer = vec![0; 1 << 16];
        let (mut at, mut last) = (self.at, self.at);
        loop {
            let read = self.read(at, &mut buffer)?;
            if read == 0 {
                return Ok(last.saturating_sub(self.at));
            }
            let bytes = buffer.get(..read).unwrap_or_default();
            if let Some(place) = bytes.iter().rposition(|byte| *byte != 0) {
                last = at.saturating_add(place as u64).saturating_add(1);
            }
            at = at.saturating_add(read as u64);
        }
    }
}

const fn padded(at: u64) -> u64 {
    at.saturating_add(7) & !7
}

fn header_fault(head: &[u8; 64], read: usize, first_index: u64) -> Option<String> {
    let say = |message: &str| Some(message.to_owned());
    if read < head.len() {
        return say("the file ends within the segment's header");
    }
    if slice(head, 0, 8) != SEGMENT_MAGIC {
        return say("the segment does not begin with its mark");
    }
    if crc32c::crc32c(slice(head, 0, 60)) != u32_at(head, 60) {
        return say("the segment's header does not have its checksum");
    }
    let fixed = u32_at(head, 8) == 64 && u32_at(head, 12) == 0 && u32_at(head, 56) == 0;
    if !fixed {
        return say("the segment's header has fields of another version");
    }
    if u64_at(head, 16) != first_index {
        return Some(format!("the segment begins with entry {}, its name says {first_index}", u64_at(head, 16)));
    }
    None
}

/// The 24 bytes of the origin's digest that a segment's header has.
pub fn origin_digest(origin: &str) -> Vec<u8> {
    let hash: Hash = Sha256::digest(origin.as_bytes()).into();
    slice(&hash, 0, 24).to_vec()
}

/// Something that the walk over the segments met besides frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalEvent {
    /// The segment
    pub segment: PathBuf,
    /// Place in it
    pub offset: u64,
    /// The entry that was expected there
    pub index: u64,
    /// What it is
    pub what: WalFault,
    /// In words
    pub message: String,
}

/// Kinds of things that the walk meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalFault {
    /// The segment's header
    Header,
    /// The segment is of another log
    Segment,
    /// The segment is shorter than its header says
    Short,
    /// Nothing whole follows, as after a crash; the rest is not read
    Torn,
    /// Cannot be read, and whole frames follow
    Damage,
    /// Entries are left out before the frame or segment
    Hole,
    /// A frame lies where an earlier or later one belongs
    Order,
}

/// One step of the walk.
#[derive(Debug)]
pub enum Step {
    /// The cursor's frame is a new one
    Frame,
    /// Something else
    Event(WalEvent),
    /// There is nothing more
    Done,
}

/// Walks over the frames of all segments in order.
#[derive(Debug, Default)]
pub struct Cursor {
    segments: Vec<Segment>,
    position: usize,
    reader: Option<SegmentReader>,
    origin: Option<Vec<u8>>,
    /// The frame of the last step
    pub frame: Frame,
    /// The first entry of the frame that counts
    pub start: u64,
    /// The index after the last entry of the frame that counts
    pub end: u64,
    /// The entry that the next frame should begin with
    pub expected: u64,
}

impl Cursor {
    /// Begins with the first segment; `origin` is compared with what the headers say.
    pub fn new(segments: Vec<Segment>, origin: Option<&str>) -> Self {
        Self { segments, origin: origin.map(origin_digest), ..Self::default() }
    }

    /// Takes segments that were begun since, and says whether there are any.
    pub fn append(&mut self, newer: Vec<Segment>) -> bool {
        let any = !newer.is_empty();
        self.segments.extend(newer);
        any
    }

    /// The segment that the frame lies in.
    pub fn segment(&self) -> Option<&Path> {
        self.segments.get(self.position).map(|segment| segment.path.as_path())
    }

    /// Entries from here on do not count in the segment: the next segment has them.
    fn limit(&self) -> u64 {
        self.segments.get(self.position.saturating_add(1)).map_or(u64::MAX, |segment| segment.first_index)
    }

    fn event(&self, what: WalFault, offset: u64, message: impl Into<String>) -> Step {
        let segment = self.segment().map(Path::to_owned).unwrap_or_default();
        Step::Event(WalEvent { segment, offset, index: self.expected, what, message: message.into() })
    }

    /// Goes one step on.
    pub fn advance(&mut self) -> Result<Step, VerifyError> {
        loop {
            let limit = self.limit();
            let Some(segment) = self.segments.get(self.position) else { return Ok(Step::Done) };
            let Some(reader) = self.reader.as_mut() else {
                let opened = SegmentReader::open(segment)?;
                if let Some(step) = self.enter(opened)? {
                    return Ok(step);
                }
                continue;
            };
            match reader.next(&mut self.frame)? {
                Found::Frame => {
                    if let Some(step) = self.take(limit) {
                        return Ok(step);
                    }
                }
                Found::End => {
                    let (offset, left) = (reader.at, reader.leftover()?);
                    let resumes = left > 0 && reader.resync(self.expected)?;
                    if resumes {
                        return Ok(self.event(WalFault::Damage, offset, "zero bytes lie before whole frames"));
                    }
                    let step = self.event(WalFault::Torn, offset, format!("{left} bytes after the last whole frame"));
                    self.leave();
                    if left > 0 {
                        return Ok(step);
                    }
                }
                Found::Bad(message) => {
                    let (offset, left) = (reader.at, reader.leftover()?);
                    if reader.resync(self.expected)? {
                        return Ok(self.event(WalFault::Damage, offset, message));
                    }
                    let step = self.event(WalFault::Torn, offset, format!("{message}; {left} bytes are not read"));
                    self.leave();
                    return Ok(step);
                }
            }
        }
    }

    fn leave(&mut self) {
        self.reader = None;
        self.position = self.position.saturating_add(1);
    }

    /// Begins with a segment; says what is wrong with its header or its place.
    fn enter(&mut self, reader: SegmentReader) -> Result<Option<Step>, VerifyError> {
        let fault = reader.header_fault.clone();
        let foreign = match (&fault, &self.origin) {
            (None, Some(origin)) => reader.origin_digest()? != *origin,
            _ => false,
        };
        let first = self.segments.get(self.position).map_or(0, |segment| segment.first_index);
        let (length, promised, blank) = (reader.length, reader.promised, reader.blank);
        self.reader = Some(reader);
        // What a crash leaves of the newest segment: nothing was written yet, or not all.
        let newest = self.limit() == u64::MAX;
        if let Some(message) = fault {
            let what = if newest && blank { WalFault::Torn } else { WalFault::Header };
            return Ok(Some(self.event(what, 0, message)));
        }
        if foreign {
            return Ok(Some(self.event(WalFault::Segment, 32, "the segment is of a log with another origin")));
        }
        if first > self.expected {
            let step = self.event(WalFault::Hole, 0, format!("the segment begins with entry {first}"));
            self.expected = first;
            return Ok(Some(step));
        }
        if promised > length {
            let message = format!("the file has {length} bytes, its header says {promised}");
            return Ok(Some(self.event(WalFault::Short, length, message)));
        }
        Ok(None)
    }

    /// Judges the frame's place.
    fn take(&mut self, limit: u64) -> Option<Step> {
        let header = self.frame.header;
        let end = header.end().unwrap_or(u64::MAX).min(limit);
        if header.first_index >= limit {
            return None;
        }
        if header.first_index == self.expected {
            self.start = header.first_index;
            self.end = end;
            self.expected = end;
            return Some(Step::Frame);
        }
        let again = header.first_index < self.expected;
        let what = if again { WalFault::Order } else { WalFault::Hole };
        let message =
            format!("the frame begins with entry {}{}", header.first_index, if again { " again" } else { "" });
        let step = self.event(what, self.frame.offset, message);
        if again {
            return Some(step);
        }
        // The frame is given again, now as the expected one.
        self.expected = header.first_index;
        if let Some(reader) = self.reader.as_mut() {
            reader.at = self.frame.offset;
        }
        Some(step)
    }

    /// Whether the frame of the last step holds an entry that counts.
    pub fn holds(&self, index: u64) -> bool {
        (self.start..self.end).contains(&index)
    }
}
