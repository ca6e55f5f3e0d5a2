//! Opening a log: its folder, its lock, what the owner before has left, and where to go on.
//!
//! Whoever holds the lock of the ring's first byte owns the log. If the owner before died, the tail of the write-ahead
//! file is cut behind its last whole frame, every record that was published is taken out of the ring, and a `recovery`
//! entry says what was cut, drained and lost. All of that is one frame, so that an opening that is killed half way
//! leaves nothing half done: the next one finds the same.
//!
//! A tail that ends below a size that was signed is never signed again: the old files are set aside as a finished epoch
//! and a new one begins.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::disk::Disk;
use super::entry::{Encoder, Kind, Private, Record, push_name, push_number, push_text};
use super::error::AuditError;
use super::log::{Key, LogOptions};
use super::note::{Ed25519Signer, Signer, check_origin, read_checkpoint, verifier_key};
use super::ring::{LINE_BYTES, LINE_WORDS, Reader, Ring, RingHeader, Tag, Taken, Word};
use super::tiles::Cutter;
use super::tree::{Frontier, Hash};
use super::wal::{Found, Frame, Scan, Wal, extends, segments};
use crate::limits::{AUDIT_SLOTS_MAX, RING_BYTES_MAX, RING_BYTES_MIN, SEGMENT_BYTES_MIN};
use crate::map::{self, LockFile, Mapping};
use crate::sync::Ordering::{Acquire, Relaxed};

const RING_MAGIC: u64 = u64::from_le_bytes(*b"TKRING01");
const RING_HEADER_BYTES: usize = 4_096;
/// What moves into the folder of a finished epoch.
const EPOCH_FILES: [&str; 5] = ["checkpoint", "checkpoints.log", "verifier.pub", "tile", "wal"];
/// What is not for a repository, nor for anybody else.
const IGNORED: &str = "signer.key\nwal/\nring\nbundle/\nerase/\n";
/// Lost sequence numbers that one recovery names, in runs; more are one run.
const LOST_RUNS_MAX: usize = 1_000;

/// A log that was opened: everything its threads need.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) folder: PathBuf,
    pub(super) origin: String,
    pub(super) epoch: u64,
    pub(super) ring: Ring,
    pub(super) lock: LockFile,
    /// The ring's file, whose name has to go on meaning it
    pub(super) ring_file: File,
    pub(super) wal: Wal,
    pub(super) frame: Frame,
    pub(super) encoder: Encoder,
    pub(super) cutter: Cutter,
    pub(super) signer: Arc<dyn Signer>,
}

/// The last checkpoint of a folder.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    pub(super) origin: String,
    pub(super) size: u64,
    pub(super) root: Hash,
    pub(super) text: String,
}

impl Signed {
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(folder.join("checkpoint")).ok()?;
        let (origin, size, root) = read_checkpoint(&text)?;
        Some(Self { origin: origin.to_owned(), size, root, text: text.clone() })
    }
}

/// Opens a log, or makes it where there is none.
pub(super) fn open(folder: &Path, options: &LogOptions) -> Result<Opened, AuditError> {
    check_origin(&options.origin)?;
    check_sizes(options)?;
    let disk = &options.disk;
    disk.create_folder(folder, 0o700).map_err(AuditError::io("cannot make", folder))?;
    let (ring_file, lock) = take_lock(folder)?;
    write_ignored(disk, folder)?;
    finish_archive(disk, folder)?;
    let signer = signer(folder, options)?;
    let mut opening = Opening { folder, options, signer, epoch: epochs(folder)?.saturating_add(1), notes: Vec::new() };
    let (mut wal, mut frontier, mut last) = opening.recover_wal()?;
    let checkpoint = Signed::read(folder);
    if let Some(signed) = checkpoint.filter(|signed| signed.size > frontier.size()) {
        push_text(&mut opening.notes, "reason", "the log ends below a size that was signed; a new epoch begins");
        push_number(&mut opening.notes, "signed_size", i64::try_from(signed.size).unwrap_or(i64::MAX));
        archive(disk, folder, opening.epoch)?;
        opening.epoch = opening.epoch.saturating_add(1);
        (wal, frontier, last) = opening.recover_wal()?;
    }
    opening.check_name()?;
    let ring = map_ring(folder, &ring_file)?;
    let mut frame = Frame::new(frontier);
    let mut encoder = Encoder::new(options.instance);
    opening.first_frame(ring.as_ref(), last, &mut encoder, &mut frame)?;
    let time_ms = now_ms();
    let (producer, last_seq) = frame_owner(ring.as_ref(), last);
    wal.append(&mut frame, producer, last_seq, time_ms)?;
    frame.restart();
    let ring = fresh_ring(ring, folder, &ring_file, options)?;
    let cutter = opening.cutter();
    let Opening { signer, epoch, .. } = opening;
    let origin = options.origin_of(epoch);
    let folder = folder.to_owned();
    Ok(Opened { folder, origin, epoch, ring, lock, ring_file, wal, frame, encoder, cutter, signer })
}

/// Opens the first log of a folder of logs that nobody has.
pub(super) fn open_slot(folder: &Path, options: &LogOptions) -> Result<(Opened, usize), AuditError> {
    options.disk.create_folder(folder, 0o700).map_err(AuditError::io("cannot make", folder))?;
    write_ignored(&options.disk, folder)?;
    for slot in 0..AUDIT_SLOTS_MAX {
        let mut options = options.clone();
        options.slot = Some(slot);
        options.siblings = Some(folder.to_owned());
        if let Key::Beside = options.key {
            options.key = Key::File(folder.join("signer.key"));
        }
        match open(&folder.join(slot.to_string()), &options) {
            Err(AuditError::InUse { .. }) => {}
            opened => return opened.map(|opened| (opened, slot)),
        }
    }
    let message = format!("{}: all {AUDIT_SLOTS_MAX} logs are in use by other processes", folder.display());
    Err(AuditError::unavailable(message))
}

fn check_sizes(options: &LogOptions) -> Result<(), AuditError> {
    if !(RING_BYTES_MIN..=RING_BYTES_MAX).contains(&options.ring_bytes) || !options.ring_bytes.is_power_of_two() {
        let message = format!(
            "ring_bytes is {}; it is a power of two from {RING_BYTES_MIN} to {RING_BYTES_MAX}",
            options.ring_bytes
        );
        return Err(AuditError::invalid(message));
    }
    if options.segment_bytes < SEGMENT_BYTES_MIN || !options.segment_bytes.is_multiple_of(4_096) {
        let message =
            format!("segment_bytes is {}; it is a multiple of 4096 from {SEGMENT_BYTES_MIN} on", options.segment_bytes);
        return Err(AuditError::invalid(message));
    }
    if options.interval_ms == 0 || options.interval_ms > 60_000 {
        let message = format!("interval_ms is {}; it is from 1 to 60000", options.interval_ms);
        return Err(AuditError::invalid(message));
    }
    Ok(())
}

/// Milliseconds since 1970, UTC.
pub(super) fn now_ms() -> i64 {
    use crate::budget::clock::Clock as _;
    crate::budget::clock::SystemClock.wall_ms()
}

fn take_lock(folder: &Path) -> Result<(File, LockFile), AuditError> {
    let path = folder.join("ring");
    let opened = map::open_private(&path).map_err(AuditError::io("cannot open", path.clone()))?;
    let lock = LockFile::open(&opened).map_err(AuditError::io("cannot lock", path.clone()))?;
    if lock.try_lock(0).map_err(AuditError::io("cannot lock", path.clone()))? {
        return Ok((opened, lock));
    }
    let pid = owner_pid(&opened).map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
    Err(AuditError::InUse { path: folder.to_owned(), owner: pid })
}

fn owner_pid(ring: &File) -> Option<u64> {
    let mapping = Mapping::shared(ring, RING_HEADER_BYTES).ok()?;
    let header = mapping.table::<RingHeader>(0, 1)?;
    header.first().map(|header| header.pid.load(Relaxed)).filter(|pid| *pid != 0)
}

fn write_ignored(disk: &Disk, folder: &Path) -> Result<(), AuditError> {
    let path = folder.join(".gitignore");
    if path.exists() {
        return Ok(());
    }
    disk.write_whole(&path, IGNORED.as_bytes(), 0o644).map_err(AuditError::io("cannot write", path))
}

fn signer(folder: &Path, options: &LogOptions) -> Result<Arc<dyn Signer>, AuditError> {
    let path = match &options.key {
        Key::Signer(signer) => return Ok(Arc::clone(signer)),
        Key::File(path) => path.clone(),
        Key::Beside => folder.join("signer.key"),
    };
    Ok(Arc::new(Ed25519Signer::load_or_generate(&path)?))
}

/// How many epochs are finished.
fn epochs(folder: &Path) -> Result<u64, AuditError> {
    let path = folder.join("epochs");
    let listed = match std::fs::read_dir(&path) {
        Ok(listed) => listed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(AuditError::io("cannot list", path)(error)),
    };
    let numbers = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
    Ok(numbers.max().unwrap_or(0))
}

/// Sets the files of an epoch aside. Interrupted, it is finished by [`finish_archive`].
pub(super) fn archive(disk: &Disk, folder: &Path, epoch: u64) -> Result<(), AuditError> {
    let beside = folder.join("epochs").join(format!("{epoch}.new"));
    disk.create_folder(&beside, 0o700).map_err(AuditError::io("cannot make", beside.clone()))?;
    move_aside(disk, folder, &beside, epoch)
}

fn move_aside(disk: &Disk, folder: &Path, beside: &Path, epoch: u64) -> Result<(), AuditError> {
    for name in EPOCH_FILES {
        let (from, to) = (folder.join(name), beside.join(name));
        if from.exists() && !to.exists() {
            disk.put_in_place(&from, &to).map_err(AuditError::io("cannot move", from))?;
        }
    }
    let epochs = folder.join("epochs");
    let sync = |path: &Path| disk.sync_folder(path).map_err(AuditError::io("cannot bring to the disk", path));
    sync(beside)?;
    sync(folder)?;
    let path = epochs.join(epoch.to_string());
    disk.put_in_place(beside, &path).map_err(AuditError::io("cannot move", beside))?;
    sync(&epochs)
}

fn finish_archive(disk: &Disk, folder: &Path) -> Result<(), AuditError> {
    let epoch = epochs(folder)?.saturating_add(1);
    let beside = folder.join("epochs").join(format!("{epoch}.new"));
    if beside.is_dir() { move_aside(disk, folder, &beside, epoch) } else { Ok(()) }
}

/// The last frame's owner and sequence number.
type Last = Option<(u64, u64)>;

struct Opening<'o> {
    folder: &'o Path,
    options: &'o LogOptions,
    signer: Arc<dyn Signer>,
    epoch: u64,
    /// Members of the recovery entry
    notes: Vec<u8>,
}

impl Opening<'_> {
    fn origin(&self) -> String {
        self.options.origin_of(self.epoch)
    }

    /// The folder's log has to be the one that is meant, and signed by the same key.
    fn check_name(&self) -> Result<(), AuditError> {
        let path = self.folder.join("verifier.pub");
        let key = format!("{}\n", verifier_key(&self.origin(), &*self.signer));
        match std::fs::read_to_string(&path) {
            Ok(known) if known == key => Ok(()),
            Ok(known) => {
                let known = known.split('+').next().unwrap_or_default().to_owned();
                let message = if known == self.origin() {
                    "the log was signed by another key than the one that is there; put that back, or open another folder"
                        .to_owned()
                } else {
                    format!("the log's origin is `{known}`, not `{}`; open another folder", self.origin())
                };
                Err(AuditError::format(path, message))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let disk = &self.options.disk;
                disk.write_whole(&path, key.as_bytes(), 0o644).map_err(AuditError::io("cannot write", path))
            }
            Err(error) => Err(AuditError::io("cannot read", path)(error)),
        }
    }

    /// The tree at the last checkpoint, if its tiles are there.
    fn cutter(&self) -> Cutter {
        let (disk, folder) = (self.options.disk.clone(), self.folder.to_owned());
        let signed = Signed::read(self.folder).filter(|signed| signed.origin == self.origin());
        let loaded = signed.and_then(|signed| Cutter::load(disk.clone(), folder.clone(), signed.size, &signed.root));
        // Without it everything is cut anew: the write-ahead file has it all.
        loaded.unwrap_or_else(|| Cutter::new(disk, folder))
    }

    /// Finds the end of what was written, and cuts what is not whole.
    fn recover_wal(&mut self) -> Result<(Wal, Frontier, Last), AuditError> {
        let (disk, folder) = (&self.options.disk, self.folder.join("wal"));
        disk.create_folder(&folder, 0o700).map_err(AuditError::io("cannot make", folder.clone()))?;
        let mut wal = Wal::new(disk.clone(), folder.clone(), self.options.segment_bytes, &self.origin());
        let all = segments(&folder)?;
        let mut frontier = self.cutter().frontier();
        if all.first().is_none_or(|first| first.first_index > frontier.size()) && frontier.size() > 0 {
            let message = format!("no segment holds entry {}; restore it, or open another folder", frontier.size());
            return Err(AuditError::format(folder, message));
        }
        // Strictly below: the last frame says which sequence numbers are written.
        let from = all.iter().rposition(|segment| segment.first_index < frontier.size()).unwrap_or(0);
        let mut last = None;
        for (place, segment) in all.iter().enumerate().skip(from) {
            let is_last = all.len() == place.saturating_add(1);
            let Some(mut scan) = Scan::open(segment, is_last)? else {
                if is_last {
                    // Killed between making the file and writing its header.
                    continue;
                }
                return Err(AuditError::format(&segment.path, "the segment's header is damaged"));
            };
            let end = all.get(place.saturating_add(1)).map(|next| next.first_index);
            let torn = scan_segment(&mut scan, end, &mut frontier, &mut last)?;
            if end.is_some_and(|end| end != frontier.size()) {
                let message = format!("the entries from {} to the next segment are damaged", frontier.size());
                return Err(AuditError::format(&segment.path, message));
            }
            if is_last {
                let (file, path, offset) = scan.into_file();
                if torn {
                    self.cut(&file, &path, offset, frontier.size())?;
                }
                wal.go_on(file, path, segment.first_index, offset)
                    .map_err(AuditError::io("cannot use", &segment.path))?;
            }
        }
        Ok((wal, frontier, last))
    }

    fn cut(&mut self, file: &File, path: &Path, offset: u64, size: u64) -> Result<(), AuditError> {
        let len_bytes = file.metadata().map_err(AuditError::io("cannot read", path))?.len();
        self.options.disk.cut(file, path, offset, len_bytes).map_err(AuditError::io("cannot cut", path))?;
        push_number(&mut self.notes, "cut_from_size", i64::try_from(size).unwrap_or(i64::MAX));
        push_number(&mut self.notes, "cut_offset", i64::try_from(offset).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Everything that is to be said before anything new: the old epoch, what the dead have left, the start.
    fn first_frame(
        &mut self,
        ring: Option<&Ring>,
        last: Last,
        encoder: &mut Encoder,
        frame: &mut Frame,
    ) -> Result<(), AuditError> {
        let now = now_ms();
        let own = |kind, members: &[u8], encoder: &mut Encoder, frame: &mut Frame| {
            let record = Record { kind, time_ms: now, head: members, tail: &[], private: Private::None };
            encoder.add(&record, None, frame)
        };
        if frame.frontier().size() == 0 && self.epoch > 1 {
            let old = self.folder.join("epochs").join(self.epoch.saturating_sub(1).to_string());
            own(Kind::Epoch, &epoch_members(&old), encoder, frame)?;
        }
        let dead = ring.map_or(0, |ring| ring.header().producer.load(Acquire));
        if let Some(ring) = ring.filter(|_| dead != 0) {
            encoder.set_producer(dead);
            let drained = drain(ring, dead, last, encoder, frame)?;
            encoder.set_producer(self.options.instance);
            drained.write(dead, &mut self.notes);
        } else if ring.is_none() && frame.frontier().size() > 0 {
            push_text(&mut self.notes, "reason", "the ring is gone; what was in it is lost");
        }
        if !self.notes.is_empty() {
            own(Kind::Recovery, &self.notes, encoder, frame)?;
        }
        own(Kind::Start, &self.start_members(), encoder, frame)
    }

    fn start_members(&self) -> Vec<u8> {
        let mut members = Vec::new();
        push_text(&mut members, "origin", &self.origin());
        push_number(&mut members, "epoch", i64::try_from(self.epoch).unwrap_or(i64::MAX));
        push_number(&mut members, "pid", std::process::id().into());
        push_text(&mut members, "host", &host());
        push_text(&mut members, "engine", &self.options.engine);
        push_name(&mut members, "siblings");
        members.push(b'[');
        for (place, sibling) in self.siblings().iter().enumerate() {
            if place > 0 {
                members.push(b',');
            }
            members.extend_from_slice(b"{\"slot\":");
            members.extend_from_slice(sibling.0.to_string().as_bytes());
            push_text(&mut members, "origin", &sibling.1.origin);
            push_number(&mut members, "size", i64::try_from(sibling.1.size).unwrap_or(i64::MAX));
            push_text(&mut members, "root", &BASE64.encode(sibling.1.root));
            members.push(b'}');
        }
        members.push(b']');
        push_name(&mut members, "exported");
        members.extend_from_slice(if self.options.exported { b"true" } else { b"false" });
        members
    }

    /// What the other logs of the directory have signed, so that one that is missing later shows.
    fn siblings(&self) -> Vec<(usize, Signed)> {
        let Some(folder) = &self.options.siblings else { return Vec::new() };
        let others = (0..AUDIT_SLOTS_MAX).filter(|slot| Some(*slot) != self.options.slot);
        others.filter_map(|slot| Some((slot, Signed::read(&folder.join(slot.to_string()))?))).collect()
    }
}

fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or_else(|_| String::new(), |name| name.trim().to_owned())
}

/// Members of the first entry of an epoch.
pub(super) fn epoch_members(old: &Path) -> Vec<u8> {
    let mut members = Vec::new();
    if let Some(signed) = Signed::read(old) {
        push_text(&mut members, "origin", &signed.origin);
        push_number(&mut members, "size", i64::try_from(signed.size).unwrap_or(i64::MAX));
        push_text(&mut members, "root", &BASE64.encode(signed.root));
        push_text(&mut members, "checkpoint", &signed.text);
    }
    members
}

/// Follows the frames of a segment; true if it ends with something that is no whole frame.
fn scan_segment(scan: &mut Scan, end: Option<u64>, tree: &mut Frontier, last: &mut Last) -> Result<bool, AuditError> {
    loop {
        let offset = scan.offset();
        match scan.next()? {
            Found::End => return Ok(false),
            Found::Torn => return Ok(true),
            Found::Frame(frame) => {
                let header = frame.header;
                if end.is_some_and(|end| header.first_index >= end) {
                    scan.seek(offset);
                    return Ok(true);
                }
                // What the tiles hold is passed over.
                let known = header.first_index.saturating_add(header.count.into()) <= tree.size();
                if !known && !extends(&frame, tree) {
                    scan.seek(offset);
                    return Ok(true);
                }
                *last = Some((header.producer, header.last_seq));
            }
        }
    }
}

/// What was found in the ring of a dead owner.
struct Drained {
    records: u64,
    lost: Vec<(u64, u64)>,
    rebooted: bool,
}

impl Drained {
    fn lose(&mut self, from: u64, to: u64) {
        if from > to {
            return;
        }
        if self.lost.len() >= LOST_RUNS_MAX
            && let Some(run) = self.lost.last_mut()
        {
            run.1 = to;
        } else {
            self.lost.push((from, to));
        }
    }

    fn write(&self, producer: u64, members: &mut Vec<u8>) {
        let mut first = Vec::new();
        push_text(&mut first, "of", &format!("{producer:016x}"));
        push_number(&mut first, "drained", i64::try_from(self.records).unwrap_or(i64::MAX));
        push_name(&mut first, "lost");
        first.push(b'[');
        for (place, (from, to)) in self.lost.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            first.extend_from_slice(format!("{comma}[{from},{to}]").as_bytes());
        }
        first.push(b']');
        if self.rebooted {
            push_text(&mut first, "reason", "the host has restarted; what was only in the ring is lost");
        }
        first.append(members);
        *members = first;
    }
}

/// Takes what the dead owner has published and nobody has written.
fn drain(ring: &Ring, dead: u64, last: Last, encoder: &mut Encoder, frame: &mut Frame) -> Result<Drained, AuditError> {
    let mut drained = Drained { records: 0, lost: Vec::new(), rebooted: false };
    let mut reader = ring.reader();
    let written = last.filter(|(producer, _)| *producer == dead).map_or(0, |(_, seq)| seq);
    let next = ring.next_seq();
    // Pages of the ring that had not reached the disk are older than the rest: nothing in it can be told apart.
    if !same_boot(ring) {
        drained.rebooted = true;
        drained.lose(written.saturating_add(1), next.saturating_sub(1));
        return Ok(drained);
    }
    let mut taken = Taken::default();
    let mut expected = reader.seq.max(written.saturating_add(1));
    while ring.skip_to_published(&mut reader) {
        if !ring.take(&mut reader, &mut taken) {
            break;
        }
        // Written before the owner died, and not let go any more.
        if taken.seq <= written {
            continue;
        }
        drained.lose(expected, taken.seq.saturating_sub(1));
        expected = taken.seq.saturating_add(1);
        if taken.abandoned {
            drained.lose(taken.seq, taken.seq);
        } else {
            encoder.add_pieces(taken.seq, &taken.as_pieces(), frame)?;
            drained.records = drained.records.saturating_add(1);
        }
    }
    drained.lose(expected, next.saturating_sub(1));
    Ok(drained)
}

fn same_boot(ring: &Ring) -> bool {
    let [a, b] = &ring.header().boot;
    map::boot_id().is_ok_and(|boot| boot == [a.load(Relaxed), b.load(Relaxed)])
}

/// Whose frame the first one is: the dead owner's, whose every sequence number is accounted for by it.
fn frame_owner(ring: Option<&Ring>, last: Last) -> (u64, u64) {
    let dead = ring.map(|ring| (ring.header().producer.load(Relaxed), ring.next_seq().saturating_sub(1)));
    dead.filter(|(producer, _)| *producer != 0).or(last).unwrap_or((0, 0))
}

/// Maps the ring that is there; `None` if there is none or it is none.
fn map_ring(folder: &Path, file: &File) -> Result<Option<Ring>, AuditError> {
    let io = |error| AuditError::io("cannot map", folder.join("ring"))(error);
    let len = file.metadata().map_err(io)?.len();
    if len < RING_HEADER_BYTES as u64 {
        return Ok(None);
    }
    let head = Mapping::shared(file, RING_HEADER_BYTES).map_err(io)?;
    let lines = head.table::<RingHeader>(0, 1).and_then(|header| {
        let header = header.first()?;
        (header.magic.load(Relaxed) == RING_MAGIC).then(|| header.lines.load(Relaxed))
    });
    let Some(lines) = lines.and_then(|lines| usize::try_from(lines).ok()) else { return Ok(None) };
    let bytes = ring_file_bytes(lines);
    if lines > RING_BYTES_MAX / LINE_BYTES || len < bytes as u64 {
        return Ok(None);
    }
    Ok(carve(&Mapping::shared(file, bytes).map_err(io)?, lines))
}

const fn ring_file_bytes(lines: usize) -> usize {
    RING_HEADER_BYTES.saturating_add(lines.saturating_mul(8 + LINE_BYTES))
}

/// The ring in a mapping: the header, the tags, the lines.
pub(super) fn carve(mapping: &Arc<Mapping>, lines: usize) -> Option<Ring> {
    let tags = RING_HEADER_BYTES;
    let words = tags.checked_add(lines.checked_mul(8)?)?;
    Ring::new(
        mapping.table::<RingHeader>(0, 1)?,
        mapping.table::<Tag>(tags, lines)?,
        mapping.table::<Word>(words, lines.checked_mul(LINE_WORDS as usize)?)?,
    )
}

/// An empty ring for this owner, of the size that is wanted.
fn fresh_ring(old: Option<Ring>, folder: &Path, file: &File, options: &LogOptions) -> Result<Ring, AuditError> {
    let path = folder.join("ring");
    let io = |error| AuditError::io("cannot make room for", path.clone())(error);
    let lines = options.ring_bytes / LINE_BYTES;
    let bytes = ring_file_bytes(lines);
    let same = old.as_ref().is_some_and(|ring| ring.bytes() == options.ring_bytes);
    drop(old);
    if !same {
        file.set_len(0).map_err(io)?;
        map::allocate(file, bytes as u64).map_err(io)?;
    }
    let ring = carve(&Mapping::shared(file, bytes).map_err(io)?, lines)
        .ok_or_else(|| AuditError::format(&path, "the ring cannot be laid out"))?;
    let header = ring.header();
    header.magic.store(RING_MAGIC, Relaxed);
    header.lines.store(lines as u64, Relaxed);
    let boot = map::boot_id().map_err(AuditError::io("cannot read the boot id for", path.clone()))?;
    ring.reset(options.instance, std::process::id(), boot);
    Ok(ring)
}

/// The reader of a ring that was just made, for its writer.
pub(super) fn reader_of(ring: &Ring) -> Reader {
    ring.reader()
}
