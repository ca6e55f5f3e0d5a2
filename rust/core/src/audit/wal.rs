//! The write-ahead file: segments of a fixed size that are made in full before they are used, and in them frames.
//!
//! A frame is one batch: the root before it, entries as an entry bundle has them, payloads that stay outside the tree,
//! the root after it and a CRC32C. It is written with one call and brought to the disk with one more. A scan stops at
//! the first frame that is not whole; what a later segment begins with wins over what an earlier one ends with, so that
//! a write of which nobody knows whether it arrived is never built upon.
//!
//! All numbers are little-endian but the lengths of entries, which are as in a bundle.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::error::AuditError;
use super::tree::{Frontier, Hash, digest, leaf};
use crate::limits::FRAME_BYTES_MAX;

pub(super) const SEGMENT_MAGIC: &[u8; 8] = b"TKWAL001";
pub(super) const SEGMENT_HEADER_BYTES: u64 = 64;
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"TKF1");
const END_MAGIC: u32 = u32::from_le_bytes(*b"TKFE");
pub(super) const FRAME_HEADER_BYTES: usize = 96;
const TRAILER_BYTES: usize = 40;
/// Bytes of a payload's header: index, length, flags, CRC32C, salt.
const ITEM_BYTES: usize = 48;
const ERASED: u32 = 1;
/// Bytes behind a damaged frame that are read as if a frame began there: what lies there may be anything.
const FOLLOWERS_BYTES_MAX: u64 = 256 << 20;
/// Bytes that a survey reads at once.
const SURVEY_BYTES: usize = 1 << 20;

/// A batch in the making: the bytes of a frame, and the tree with its entries in it.
#[derive(Debug)]
pub(super) struct Frame {
    bytes: Vec<u8>,
    payloads: Vec<u8>,
    first: Frontier,
    frontier: Frontier,
    count: u32,
}

impl Frame {
    pub(super) fn new(first: Frontier) -> Self {
        Self { bytes: vec![0; FRAME_HEADER_BYTES], payloads: Vec::new(), frontier: first.clone(), first, count: 0 }
    }

    /// Begins anew on top of what was written, with the same buffers.
    pub(super) fn restart(&mut self) {
        self.first = self.frontier.clone();
        self.bytes.truncate(FRAME_HEADER_BYTES);
        self.payloads.clear();
        self.count = 0;
        // One large record is no reason to keep its room for ever.
        self.bytes.shrink_to(crate::limits::BATCH_BYTES_MAX.saturating_mul(2));
        self.payloads.shrink_to(crate::limits::BATCH_BYTES_MAX.saturating_mul(2));
    }

    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of entries and payloads.
    pub(super) fn len_bytes(&self) -> usize {
        self.bytes.len().saturating_add(self.payloads.len()).saturating_sub(FRAME_HEADER_BYTES)
    }

    pub(super) const fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// Where entries are written to.
    pub(super) const fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Leaves room for an entry's length and returns where it begins.
    pub(super) fn begin_entry(&mut self) -> usize {
        self.bytes.extend_from_slice(&[0, 0]);
        self.bytes.len()
    }

    pub(super) fn entry_len(&self, start: usize) -> usize {
        self.bytes.len().saturating_sub(start)
    }

    pub(super) fn reopen_entry(&mut self, start: usize) {
        self.bytes.truncate(start);
    }

    /// Writes the entry's length in front of it.
    pub(super) fn end_entry(&mut self, start: usize) -> &[u8] {
        let len = u16::try_from(self.entry_len(start)).unwrap_or(u16::MAX);
        if let Some(place) = start.checked_sub(2).and_then(|at| self.bytes.get_mut(at..start)) {
            place.copy_from_slice(&len.to_be_bytes());
        }
        self.bytes.get(start..).unwrap_or_default()
    }

    pub(super) fn push_leaf(&mut self, hash: Hash) {
        self.frontier.push(hash);
        self.count = self.count.saturating_add(1);
    }

    /// Adds what stays outside the tree of the entry that was added last.
    pub(super) fn push_payload(&mut self, salt: &[u8; 32], payload: &[u8]) {
        let index = self.count.saturating_sub(1);
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let crc = crc32c::crc32c_append(crc32c::crc32c(salt), payload);
        for word in [index, len, 0, crc] {
            self.payloads.extend_from_slice(&word.to_le_bytes());
        }
        self.payloads.extend_from_slice(salt);
        self.payloads.extend_from_slice(payload);
    }

    /// The whole frame, ready to be written.
    fn seal(&mut self, producer: u64, last_seq: u64, time_ms: i64) -> &[u8] {
        let entries = self.bytes.len().saturating_sub(FRAME_HEADER_BYTES);
        let header = FrameHeader {
            first_index: self.first.size(),
            count: self.count,
            entries_bytes: u32::try_from(entries).unwrap_or(u32::MAX),
            payload_bytes: u32::try_from(self.payloads.len()).unwrap_or(u32::MAX),
            producer,
            last_seq,
            time_ms,
            previous_root: self.first.root(),
        };
        if let Some(place) = self.bytes.get_mut(..FRAME_HEADER_BYTES) {
            place.copy_from_slice(&header.encode());
        }
        let root = self.frontier.root();
        let crc = crc32c::crc32c_append(crc32c::crc32c(&self.bytes), &root);
        self.bytes.extend_from_slice(&self.payloads);
        self.bytes.extend_from_slice(&root);
        self.bytes.extend_from_slice(&crc.to_le_bytes());
        self.bytes.extend_from_slice(&END_MAGIC.to_le_bytes());
        &self.bytes
    }

    /// Back to what it was before [`Frame::seal`], to be sealed again.
    fn unseal(&mut self, entries_end: usize) {
        self.bytes.truncate(entries_end);
    }
}

/// What a frame says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) first_index: u64,
    pub(super) count: u32,
    pub(super) entries_bytes: u32,
    pub(super) payload_bytes: u32,
    /// Whose sequence numbers they are
    pub(super) producer: u64,
    /// The last of them that is in the log with this frame
    pub(super) last_seq: u64,
    pub(super) time_ms: i64,
    pub(super) previous_root: Hash,
}

impl FrameHeader {
    fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(FRAME_HEADER_BYTES);
        bytes.extend_from_slice(&FRAME_MAGIC.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.first_index.to_le_bytes());
        for word in [self.count, self.entries_bytes, self.payload_bytes, 0] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for word in [self.producer, self.last_seq, self.time_ms.cast_unsigned(), 0] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.previous_root);
        bytes.try_into().unwrap_or([0; FRAME_HEADER_BYTES])
    }

    fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Option<Self> {
        let (words, previous_root) = bytes.split_first_chunk::<64>()?;
        let [magic, _, a, b, count, entries_bytes, payload_bytes, _, rest @ ..] = words.as_chunks::<4>().0 else {
            return None;
        };
        let word = |low: &[u8; 4], high: &[u8; 4]| {
            u64::from(u32::from_le_bytes(*low)) | (u64::from(u32::from_le_bytes(*high)) << 32)
        };
        let [p0, p1, s0, s1, t0, t1, ..] = rest else { return None };
        let header = Self {
            first_index: word(a, b),
            count: u32::from_le_bytes(*count),
            entries_bytes: u32::from_le_bytes(*entries_bytes),
            payload_bytes: u32::from_le_bytes(*payload_bytes),
            producer: word(p0, p1),
            last_seq: word(s0, s1),
            time_ms: word(t0, t1).cast_signed(),
            previous_root: previous_root.try_into().ok()?,
        };
        (u32::from_le_bytes(*magic) == FRAME_MAGIC && header.len_bytes() <= FRAME_BYTES_MAX as u64).then_some(header)
    }

    /// Bytes of the whole frame, without what fills up to the next.
    pub(super) fn len_bytes(&self) -> u64 {
        u64::from(self.entries_bytes)
            .saturating_add(self.payload_bytes.into())
            .saturating_add((FRAME_HEADER_BYTES + TRAILER_BYTES) as u64)
    }
}

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Wal {
    disk: Disk,
    folder: PathBuf,
    segment_bytes: u64,
    origin: Hash,
    /// `None` until the first frame, and after an error
    open: Option<Open>,
    /// The segment before it, which the cutter may still read
    last: Option<File>,
}

#[derive(Debug)]
struct Open {
    file: File,
    path: PathBuf,
    first_index: u64,
    /// Where the next frame goes
    offset: u64,
    len_bytes: u64,
}

/// The name of a segment.
pub(super) fn segment_name(first_index: u64) -> String {
    format!("{first_index:020}.seg")
}

impl Wal {
    pub(super) fn new(disk: Disk, folder: PathBuf, segment_bytes: u64, origin: &str) -> Self {
        Self { disk, folder, segment_bytes, origin: digest(origin.as_bytes()), open: None, last: None }
    }

    /// Goes on in a segment behind its last whole frame, which begins at `last_frame`.
    ///
    /// That frame is written once more. Whoever wrote it may have died before it was brought to the disk, or have been
    /// told that it could not be; then it is in memory only, nothing would write it again, and what is built upon it
    /// would be lost with it.
    pub(super) fn go_on(&mut self, scan: Scan, first_index: u64, last_frame: Option<u64>) -> io::Result<()> {
        let (file, path, offset) = scan.into_file();
        let len_bytes = file.metadata()?.len();
        if let Some(from) = last_frame {
            let mut bytes = vec![0; usize::try_from(offset.saturating_sub(from)).unwrap_or(0)];
            let room = usize::try_from(len_bytes.saturating_sub(from)).unwrap_or(usize::MAX);
            bytes.truncate(room);
            file.read_exact_at(&mut bytes, from)?;
            self.disk.write_at(&file, &path, &bytes, from)?;
            self.disk.sync(&file, &path)?;
        }
        self.open = Some(Open { file, path, first_index, offset, len_bytes });
        Ok(())
    }

    /// Writes a frame and brings it to the disk: with it everything before it is there too.
    ///
    /// After an error the segment is left as it is and the next attempt begins another one: whether the bytes have
    /// arrived is not known, and an fdatasync that failed once says nothing the second time.
    pub(super) fn append(
        &mut self,
        frame: &mut Frame,
        producer: u64,
        last_seq: u64,
        time_ms: i64,
    ) -> Result<(), AuditError> {
        let entries_end = frame.bytes.len();
        let first_index = frame.first.size();
        let bytes = frame.seal(producer, last_seq, time_ms);
        let written = self.write(bytes, first_index);
        frame.unseal(entries_end);
        if written.is_err() {
            self.open = None;
        }
        written
    }

    fn write(&mut self, bytes: &[u8], first_index: u64) -> Result<(), AuditError> {
        let len = bytes.len() as u64;
        let fits = |open: &Open| open.offset.saturating_add(len) <= open.len_bytes;
        if !self.open.as_ref().is_some_and(fits) {
            let next = self.begin(first_index, len)?;
            let full = self.open.replace(next);
            self.let_go(full);
        }
        let Some(open) = &mut self.open else { return Err(AuditError::unavailable("no segment")) };
        let io = |what| AuditError::io(what, open.path.clone());
        self.disk.write_at(&open.file, &open.path, bytes, open.offset).map_err(io("cannot write"))?;
        self.disk.sync(&open.file, &open.path).map_err(io("cannot bring to the disk"))?;
        open.offset = open.offset.saturating_add(len).next_multiple_of(8);
        Ok(())
    }

    /// Gives the memory of the segment before the last back to the kernel: all of it is on the disk, and nobody reads it
    /// soon. Otherwise a log takes new memory for all it writes, pushes out what the host needs, and pays for it: on a
    /// virtual machine the copy into pages that it has never had costs as much as all hashing.
    fn let_go(&mut self, full: Option<Open>) {
        let Some(full) = full else { return };
        if let Some(older) = self.last.replace(full.file) {
            // It is advice: a kernel that does not take it keeps the pages until it needs them.
            let _ = rustix::fs::fadvise(&older, 0, None, rustix::fs::Advice::DontNeed);
        }
    }

    fn begin(&self, first_index: u64, frame_bytes: u64) -> Result<Open, AuditError> {
        let path = self.folder.join(segment_name(first_index));
        let len_bytes =
            self.segment_bytes.max(frame_bytes.saturating_add(SEGMENT_HEADER_BYTES).next_multiple_of(4_096));
        // One of this name holds nothing that counts: its first frame did not arrive, or was not acknowledged.
        self.disk.remove_file(&path).map_err(AuditError::io("cannot remove", path.clone()))?;
        let file =
            self.disk.create_sized(&path, len_bytes).map_err(AuditError::io("cannot make room for", path.clone()))?;
        let begun = || -> io::Result<()> {
            self.disk.write_at(&file, &path, &segment_header(first_index, len_bytes, &self.origin), 0)?;
            self.disk.sync(&file, &path)?;
            self.disk.sync_folder(&self.folder)
        };
        begun().map_err(AuditError::io("cannot begin", path.clone()))?;
        Ok(Open { file, path, first_index, offset: SEGMENT_HEADER_BYTES, len_bytes })
    }

    /// First index of the segment that is written to.
    pub(super) fn segment_from(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.first_index)
    }

    /// Why the segment is no longer the file of its name, if it is not: then what is written would be lost with it.
    pub(super) fn replaced(&self) -> Option<String> {
        use std::os::unix::fs::MetadataExt as _;
        let open = self.open.as_ref()?;
        let own = open.file.metadata().ok()?;
        let shown = open.path.display();
        match std::fs::symlink_metadata(&open.path) {
            Ok(named) if named.ino() == own.ino() && named.dev() == own.dev() => None,
            Ok(_) => Some(format!("{shown} was replaced by another file")),
            Err(error) => Some(format!("{shown} is gone ({error})")),
        }
    }
}

fn segment_header(first_index: u64, len_bytes: u64, origin: &Hash) -> [u8; 64] {
    let mut bytes = SEGMENT_MAGIC.to_vec();
    bytes.extend_from_slice(&64_u32.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&first_index.to_le_bytes());
    bytes.extend_from_slice(&len_bytes.to_le_bytes());
    bytes.extend_from_slice(origin.first_chunk::<24>().unwrap_or(&[0; 24]));
    bytes.extend_from_slice(&[0; 4]);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.try_into().unwrap_or([0; 64])
}

/// A segment on the disk.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) first_index: u64,
}

/// The segments of a folder, in order.
pub(super) fn segments(folder: &Path) -> Result<Vec<Segment>, AuditError> {
    let io = |error| AuditError::io("cannot list", folder)(error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".seg"));
        if let Some(first_index) = name.filter(|name| name.len() == 20).and_then(|name| name.parse().ok()) {
            found.push(Segment { path, first_index });
        }
    }
    found.sort_unstable_by_key(|segment| segment.first_index);
    Ok(found)
}

/// A frame that was read.
#[derive(Debug)]
pub(super) struct ReadFrame {
    pub(super) header: FrameHeader,
    /// Where it begins in its segment
    pub(super) offset: u64,
    bytes: Vec<u8>,
}

impl ReadFrame {
    /// The entries.
    pub(super) fn entries(&self) -> impl Iterator<Item = &[u8]> {
        let end = FRAME_HEADER_BYTES.saturating_add(self.header.entries_bytes as usize);
        let mut rest = self.bytes.get(FRAME_HEADER_BYTES..end).unwrap_or_default();
        std::iter::from_fn(move || {
            let (len, after) = rest.split_first_chunk::<2>()?;
            let (entry, after) = after.split_at_checked(u16::from_be_bytes(*len).into())?;
            rest = after;
            Some(entry)
        })
    }

    /// Payloads: index in the frame, place in the segment, whether it is erased, salt and bytes.
    pub(super) fn payloads(&self) -> impl Iterator<Item = ReadPayload<'_>> {
        let start = FRAME_HEADER_BYTES.saturating_add(self.header.entries_bytes as usize);
        let end = start.saturating_add(self.header.payload_bytes as usize);
        let mut at = start;
        std::iter::from_fn(move || {
            let item = self.bytes.get(at..end)?;
            let (head, rest) = item.split_at_checked(ITEM_BYTES)?;
            let [index, len, flags, crc, ..] = head.as_chunks::<4>().0 else { return None };
            let [index, len, flags, crc] = [index, len, flags, crc].map(|word| u32::from_le_bytes(*word));
            let (bytes, _) = rest.split_at_checked(len as usize)?;
            let salt: &[u8; 32] = head.get(16..)?.try_into().ok()?;
            let offset = self.offset.saturating_add(at as u64);
            at = at.saturating_add(ITEM_BYTES).saturating_add(len as usize);
            let erased = flags & ERASED == ERASED;
            let whole = erased || crc32c::crc32c_append(crc32c::crc32c(salt), bytes) == crc;
            Some(ReadPayload { index, offset, erased, whole, salt, bytes, crc, end: at })
        })
    }

    /// Whether the payload section is made of whole payloads and nothing else.
    fn payloads_are_whole(&self) -> bool {
        let start = FRAME_HEADER_BYTES.saturating_add(self.header.entries_bytes as usize);
        let mut end = start;
        self.payloads().all(|payload| {
            end = payload.end;
            payload.whole
        }) && end == start.saturating_add(self.header.payload_bytes as usize)
    }
}

/// A payload that was read.
#[derive(Debug)]
pub(super) struct ReadPayload<'a> {
    pub(super) index: u32,
    /// Where its header begins in the segment
    pub(super) offset: u64,
    pub(super) erased: bool,
    whole: bool,
    pub(super) salt: &'a [u8; 32],
    pub(super) bytes: &'a [u8],
    crc: u32,
    end: usize,
}

impl ReadPayload<'_> {
    /// Whether nothing of it is left.
    pub(super) fn is_blank(&self) -> bool {
        self.crc == 0 && self.salt == &[0; 32] && self.bytes.iter().all(|byte| *byte == 0)
    }
}

/// Erases a payload in place: first the mark, so that an erasure that was interrupted is known as one.
/// An erasure that was interrupted is done by doing it again.
pub(super) fn erase(disk: &Disk, path: &Path, offset: u64, len: usize) -> io::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).open(path)?;
    disk.write_at(&file, path, &ERASED.to_le_bytes(), offset.saturating_add(8))?;
    disk.sync(&file, path)?;
    disk.write_at(&file, path, &vec![0; len.saturating_add(ITEM_BYTES - 12)], offset.saturating_add(12))?;
    disk.sync(&file, path)
}

/// Reads the frames of one segment, one at a time.
#[derive(Debug)]
pub(super) struct Scan {
    file: File,
    path: PathBuf,
    offset: u64,
    len_bytes: u64,
}

/// What a scan has found.
#[derive(Debug)]
pub(super) enum Found {
    /// A whole frame
    Frame(Box<ReadFrame>),
    /// The end of what was written
    End,
    /// Something that is no whole frame
    Torn,
}

impl Scan {
    /// Opens a segment. `None` if it is none: its header did not arrive.
    pub(super) fn open(segment: &Segment, writable: bool) -> Result<Option<Self>, AuditError> {
        let io = |error| AuditError::io("cannot read", segment.path.clone())(error);
        let file = std::fs::OpenOptions::new().read(true).write(writable).open(&segment.path).map_err(io)?;
        let len_bytes = file.metadata().map_err(io)?.len();
        let mut header = [0; 64];
        if len_bytes < SEGMENT_HEADER_BYTES {
            return Ok(None);
        }
        file.read_exact_at(&mut header, 0).map_err(io)?;
        let (body, crc) = header.split_at(60);
        let valid = body.starts_with(SEGMENT_MAGIC)
            && crc == crc32c::crc32c(body).to_le_bytes()
            && body.get(16..24) == Some(&segment.first_index.to_le_bytes()[..]);
        let scan = Self { file, path: segment.path.clone(), offset: SEGMENT_HEADER_BYTES, len_bytes };
        // A header is on the disk before the first frame is written, so that what is behind a bad one was not written.
        if !valid && !scan.rest_is_blank()? {
            return Err(AuditError::format(
                &segment.path,
                "the segment's header is damaged, and there are frames in it",
            ));
        }
        Ok(valid.then_some(scan))
    }

    /// Where the next frame would begin.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Looks from another place on, at which a frame is known to begin.
    pub(super) const fn seek(&mut self, offset: u64) {
        self.offset = offset;
    }

    /// The file, to go on writing to it.
    fn into_file(self) -> (File, PathBuf, u64) {
        (self.file, self.path, self.offset)
    }

    /// The header of the next frame, if there is one, without its content.
    pub(super) fn peek(&self) -> Result<Option<FrameHeader>, AuditError> {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        if self.offset.saturating_add(FRAME_HEADER_BYTES as u64) > self.len_bytes {
            return Ok(None);
        }
        self.read(&mut bytes, self.offset)?;
        Ok(FrameHeader::decode(&bytes))
    }

    /// Passes over the next frame.
    pub(super) fn skip(&mut self, header: &FrameHeader) {
        self.offset = self.offset.saturating_add(header.len_bytes()).next_multiple_of(8);
    }

    /// Reads the next frame.
    pub(super) fn next(&mut self) -> Result<Found, AuditError> {
        let Some(header) = self.peek()? else {
            return Ok(if self.rest_is_blank()? { Found::End } else { Found::Torn });
        };
        let len = header.len_bytes();
        if self.offset.saturating_add(len) > self.len_bytes {
            return Ok(Found::Torn);
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.read(&mut bytes, self.offset)?;
        let frame = ReadFrame { header, offset: self.offset, bytes };
        if !is_whole(&frame) {
            return Ok(Found::Torn);
        }
        self.skip(&header);
        Ok(Found::Frame(Box::new(frame)))
    }

    /// Makes the segment end here.
    pub(super) fn cut(&self, disk: &Disk) -> Result<(), AuditError> {
        let cut = disk.cut(&self.file, &self.path, self.offset, self.len_bytes);
        cut.map_err(AuditError::io("cannot cut", self.path.clone()))
    }

    /// Looks at what lies where the next frame would begin and is none: how many bytes of it were written, and whether a
    /// whole frame of later entries is among them. Then it is no torn end but damage in the middle.
    pub(super) fn survey(&self, size: u64) -> Result<(u64, bool), AuditError> {
        let (mut end, mut follows, mut left) = (self.offset, false, FOLLOWERS_BYTES_MAX);
        let mut at = self.offset;
        let mut bytes = vec![0; SURVEY_BYTES];
        while at < self.len_bytes {
            let len = usize::try_from(self.len_bytes.saturating_sub(at)).unwrap_or(usize::MAX).min(SURVEY_BYTES);
            bytes.truncate(len);
            self.read(&mut bytes, at)?;
            if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                end = at.saturating_add(last as u64).saturating_add(1);
            }
            for (word, place) in bytes.as_chunks::<8>().0.iter().zip((at..).step_by(8)) {
                let begins = word.first_chunk::<4>() == Some(&FRAME_MAGIC.to_le_bytes());
                if begins && place > self.offset && !follows && left > 0 {
                    follows = self.is_frame_at(place, size, &mut left)?;
                }
            }
            at = at.saturating_add(len as u64);
        }
        Ok((end.saturating_sub(self.offset), follows))
    }

    fn is_frame_at(&self, offset: u64, size: u64, left: &mut u64) -> Result<bool, AuditError> {
        let file = self.file.try_clone().map_err(AuditError::io("cannot read", &self.path))?;
        let mut scan = Self { file, path: self.path.clone(), offset, len_bytes: self.len_bytes };
        let Some(header) = scan.peek()?.filter(|header| header.first_index > size) else { return Ok(false) };
        *left = left.saturating_sub(header.len_bytes());
        Ok(matches!(scan.next()?, Found::Frame(_)))
    }

    /// Whether nothing was written where the next frame would begin.
    fn rest_is_blank(&self) -> Result<bool, AuditError> {
        let room = self.len_bytes.saturating_sub(self.offset).min(FRAME_HEADER_BYTES as u64);
        let mut bytes = vec![0; usize::try_from(room).unwrap_or(0)];
        self.read(&mut bytes, self.offset)?;
        Ok(bytes.iter().all(|byte| *byte == 0))
    }

    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), AuditError> {
        self.file.read_exact_at(bytes, offset).map_err(AuditError::io("cannot read", self.path.clone()))
    }
}

/// Whether a frame is as it was written: its checksum, its end, the number of its entries, its payloads.
fn is_whole(frame: &ReadFrame) -> bool {
    let Some((rest, trailer)) = frame.bytes.split_last_chunk::<TRAILER_BYTES>() else { return false };
    let Some(hashed) = rest.get(..FRAME_HEADER_BYTES.saturating_add(frame.header.entries_bytes as usize)) else {
        return false;
    };
    let (root, end) = trailer.split_at(32);
    let crc = crc32c::crc32c_append(crc32c::crc32c(hashed), root).to_le_bytes();
    let ends = end.get(..4) == Some(&crc[..]) && end.get(4..) == Some(&END_MAGIC.to_le_bytes()[..]);
    ends && frame.entries().count() == frame.header.count as usize && frame.payloads_are_whole()
}

/// Whether a frame stands on this tree and leads to the root that it says; the tree is then the one after it.
pub(super) fn extends(frame: &ReadFrame, frontier: &mut Frontier) -> bool {
    if frame.header.first_index != frontier.size() || frame.header.previous_root != frontier.root() {
        return false;
    }
    let mut after = frontier.clone();
    for entry in frame.entries() {
        after.push(leaf(entry));
    }
    let Some(trailer) = frame.bytes.last_chunk::<TRAILER_BYTES>() else { return false };
    let same = trailer.get(..32) == Some(&after.root()[..]);
    if same {
        *frontier = after;
    }
    same
}
