//! Opening a log: its folder, its lock, what the owner before has left, and where to go on.
//!
//! Whoever holds the lock of the ring's first byte owns the log. If the owner before died, the tail of the write-ahead
//! file is cut behind its last whole frame, every record that was published is taken out of the ring, and a `recovery`
//! entry says what was cut, drained and lost. All of that is one frame, or several that each account for what they take,
//! so that an opening that is killed half way leaves nothing half done: the next one finds the rest.
//!
//! A log that ends below a size that was signed, that has another root there, or that is damaged before its end is never
//! signed again and nothing of it is cut: its files are set aside as a finished epoch and a new one begins.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::disk::{Disk, read_bounded};
use super::entry::{Encoder, Kind, Private, Record, push_name, push_number, push_text};
use super::error::AuditError;
use super::log::{Key, LogOptions};
use super::note::{Ed25519Signer, Signer, check_origin, read_checkpoint, verifier_key};
use super::ring::{LINE_BYTES, LINE_WORDS, Reader, Ring, RingHeader, Tag, Taken, Word};
use super::tiles::Cutter;
use super::tree::{Frontier, Hash};
use super::wal::{Found, Frame, Scan, Wal, extends, segments};
use crate::arguments::push_json_str;
use crate::limits::{
    AUDIT_SLOTS_MAX, BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, RING_BYTES_MAX, RING_BYTES_MIN, SEGMENT_BYTES_MIN,
};
use crate::map::{self, LockFile, Mapping};
use crate::sync::Ordering::{Acquire, Relaxed};

const RING_MAGIC: u64 = u64::from_le_bytes(*b"TKRING01");
const RING_HEADER_BYTES: usize = 4_096;
/// What moves into the folder of a finished epoch.
const EPOCH_FILES: [&str; 5] = ["checkpoint", "checkpoints.log", "verifier.pub", "tile", "wal"];
/// What is not for a repository, nor for anybody else.
const IGNORED: &str = "signer.key\nwal/\nring\nbundle/\nerase/\n";
/// Bytes of a checkpoint: an origin twice, a size, a root and a signature are below 1,000.
const CHECKPOINT_BYTES_MAX: usize = 4_096;
/// Bytes of the end of the file of all checkpoints that are read: the last one is among them.
const KEPT_BYTES: u64 = 2 * CHECKPOINT_BYTES_MAX as u64;
/// Lost sequence numbers that one recovery entry names, in runs; more are in another.
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
        let text = read_bounded(&folder.join("checkpoint"), CHECKPOINT_BYTES_MAX).ok();
        let signed = text.and_then(|text| Self::parse(&String::from_utf8(text).ok()?));
        // Without it the last of those that were kept: what was signed is not forgotten because a file is gone.
        signed.or_else(|| Self::kept(&folder.join("checkpoints.log")))
    }

    fn parse(text: &str) -> Option<Self> {
        let (origin, size, root) = read_checkpoint(text)?;
        Some(Self { origin: origin.to_owned(), size, root, text: text.to_owned() })
    }

    /// The last checkpoint of a file of them.
    fn kept(path: &Path) -> Option<Self> {
        let (tail, _) = last_blocks(&File::open(path).ok()?).ok()?;
        let text = String::from_utf8(tail).ok()?;
        let whole = text.strip_suffix(BLOCK_END)?;
        let last =
            whole.rfind(BLOCK_END).map_or(whole, |at| whole.get(at.saturating_add(BLOCK_END.len())..).unwrap_or(""));
        Self::parse(&format!("{last}\n"))
    }
}

const BELOW_SIGNED: &str = "the log ends below a size that was signed; a new epoch begins";
/// What ends a checkpoint in the file that keeps all of them.
const BLOCK_END: &str = "\n---\n";

/// The last whole checkpoints of a file of them, and where they end: behind that lies what a death has cut short.
pub(super) fn last_blocks(file: &File) -> std::io::Result<(Vec<u8>, u64)> {
    use std::os::unix::fs::FileExt as _;
    let len = file.metadata()?.len();
    let from = len.saturating_sub(KEPT_BYTES);
    let mut tail = vec![0; usize::try_from(len.saturating_sub(from)).unwrap_or(0)];
    file.read_exact_at(&mut tail, from)?;
    let end = tail.windows(BLOCK_END.len()).rposition(|window| window == BLOCK_END.as_bytes());
    let Some(end) = end.map(|at| at.saturating_add(BLOCK_END.len())) else {
        // Nothing whole: all of it is cut short, or it is no such file and is left alone.
        return Ok((Vec::new(), if from == 0 { 0 } else { len }));
    };
    tail.truncate(end);
    Ok((tail, from.saturating_add(end as u64)))
}

/// Opens a log, or makes it where there is none.
pub(super) fn open(folder: &Path, options: &LogOptions) -> Result<Opened, AuditError> {
    check_origin(&options.origin)?;
    check_sizes(options)?;
    let disk = &options.disk;
    disk.create_folder_durably(folder, 0o700).map_err(AuditError::io("cannot make", folder))?;
    let (ring_file, lock) = take_lock(folder)?;
    write_ignored(disk, folder)?;
    finish_archive(disk, folder)?;
    let signer = signer(folder, options)?;
    let epoch = epochs(folder)?.saturating_add(1);
    let mut opening =
        Opening { folder, options, signer, epoch, cut: Vec::new(), reasons: Vec::new(), signed_size: None };
    opening.check_name()?;
    let mut found = opening.recover_wal()?;
    if let Some(why) = found.astray.take() {
        opening.begin_epoch(why)?;
        found = Recovered { last: found.last, ..opening.recover_wal()? };
    }
    let Recovered { mut wal, frontier, last, .. } = found;
    let last = last.or_else(|| last_of_epoch(&folder.join("epochs").join(opening.epoch.saturating_sub(1).to_string())));
    let ring = map_ring(folder, &ring_file)?;
    make_room(ring.as_ref(), frontier.size(), folder, &ring_file, options)?;
    let mut frame = Frame::new(frontier);
    let mut encoder = Encoder::new(options.instance);
    let mut out = Out { wal: &mut wal, encoder: &mut encoder, frame: &mut frame };
    opening.first_frame(ring.as_ref(), last, &mut out)?;
    let (producer, last_seq) = frame_owner(ring.as_ref(), last);
    wal.append(&mut frame, producer, last_seq, now_ms())?;
    frame.restart();
    let ring = fresh_ring(ring.as_ref(), folder, &ring_file, options)?;
    let cutter = opening.cutter();
    let Opening { signer, epoch, .. } = opening;
    let origin = options.origin_of(epoch);
    let folder = folder.to_owned();
    Ok(Opened { folder, origin, epoch, ring, lock, ring_file, wal, frame, encoder, cutter, signer })
}

/// Opens the first log of a folder of logs that nobody has.
pub(super) fn open_slot(folder: &Path, options: &LogOptions) -> Result<(Opened, usize), AuditError> {
    options.disk.create_folder_durably(folder, 0o700).map_err(AuditError::io("cannot make", folder))?;
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

/// Read and not mapped: its owner may be making the file anew.
fn owner_pid(ring: &File) -> Option<u64> {
    use std::os::unix::fs::FileExt as _;
    let mut pid = [0; 8];
    ring.read_exact_at(&mut pid, std::mem::offset_of!(RingHeader, pid) as u64).ok()?;
    Some(u64::from_le_bytes(pid)).filter(|pid| *pid != 0)
}

fn write_ignored(disk: &Disk, folder: &Path) -> Result<(), AuditError> {
    let path = folder.join(".gitignore");
    if path.exists() {
        return Ok(());
    }
    disk.write_shared(&path, IGNORED.as_bytes(), 0o644).map_err(AuditError::io("cannot write", path))
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

/// Sets the files of an epoch aside. Interrupted, it is done by doing it again, or by [`finish_archive`].
pub(super) fn archive(disk: &Disk, folder: &Path, epoch: u64) -> Result<(), AuditError> {
    let epochs = folder.join("epochs");
    if epochs.join(epoch.to_string()).is_dir() {
        // All of it is there, and only its name may not be on the disk.
        return disk.sync_folder(&epochs).map_err(AuditError::io("cannot bring to the disk", epochs));
    }
    let beside = epochs.join(format!("{epoch}.new"));
    disk.create_folder_durably(&beside, 0o700).map_err(AuditError::io("cannot make", beside.clone()))?;
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

/// The same of a finished epoch: sequence numbers go on across epochs.
fn last_of_epoch(folder: &Path) -> Last {
    for segment in segments(&folder.join("wal")).ok()?.iter().rev() {
        let (Ok(Some(mut scan)), mut last) = (Scan::open(segment, false), None) else { continue };
        while let Ok(Found::Frame(frame)) = scan.next() {
            last = Some((frame.header.producer, frame.header.last_seq));
        }
        if last.is_some() {
            return last;
        }
    }
    None
}

/// What was found in the write-ahead file.
struct Recovered {
    wal: Wal,
    frontier: Frontier,
    /// Up to which entry there are frames
    end: u64,
    last: Last,
    /// Why it must not be built upon, and is left as it is
    astray: Option<&'static str>,
}

/// Where the first frames go.
struct Out<'o> {
    wal: &'o mut Wal,
    encoder: &'o mut Encoder,
    frame: &'o mut Frame,
}

impl Out<'_> {
    /// Adds an entry of the opener's own.
    fn say(&mut self, kind: Kind, members: &[u8]) -> Result<(), AuditError> {
        let record = Record { kind, time_ms: now_ms(), head: members, tail: &[], private: Private::None };
        self.encoder.add(&record, None, self.frame)
    }
}

struct Opening<'o> {
    folder: &'o Path,
    options: &'o LogOptions,
    signer: Arc<dyn Signer>,
    epoch: u64,
    /// Members of the recovery entry about what was cut
    cut: Vec<u8>,
    reasons: Vec<&'static str>,
    signed_size: Option<u64>,
}

impl Opening<'_> {
    fn origin(&self) -> String {
        self.options.origin_of(self.epoch)
    }

    /// The folder's log has to be the one that is meant, and signed by the same key.
    fn check_name(&self) -> Result<(), AuditError> {
        let path = self.folder.join("verifier.pub");
        let key = format!("{}\n", verifier_key(&self.origin(), &*self.signer));
        let signed = Signed::read(self.folder).filter(|signed| signed.origin != self.origin());
        if let Some(signed) = signed {
            let message =
                format!("the log's origin is `{}`, not `{}`; open another folder", signed.origin, self.origin());
            return Err(AuditError::format(self.folder.join("checkpoint"), message));
        }
        match read_bounded(&path, CHECKPOINT_BYTES_MAX).map(|known| String::from_utf8_lossy(&known).into_owned()) {
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

    /// Sets the epoch aside, as it was found, and begins the next.
    fn begin_epoch(&mut self, why: &'static str) -> Result<(), AuditError> {
        self.signed_size = Signed::read(self.folder).map(|signed| signed.size);
        self.reasons.push(why);
        archive(&self.options.disk, self.folder, self.epoch)?;
        self.epoch = self.epoch.saturating_add(1);
        self.check_name()
    }

    /// Finds the end of what was written, and cuts what is not whole.
    fn recover_wal(&mut self) -> Result<Recovered, AuditError> {
        let (disk, folder) = (&self.options.disk, self.folder.join("wal"));
        disk.create_folder_durably(&folder, 0o700).map_err(AuditError::io("cannot make", folder.clone()))?;
        let wal = Wal::new(disk.clone(), folder.clone(), self.options.segment_bytes, &self.origin());
        let mut found = Recovered { wal, frontier: self.cutter().frontier(), end: 0, last: None, astray: None };
        let all = segments(&folder)?;
        let size = found.frontier.size();
        if all.first().map_or(size > 0, |first| first.first_index > size) {
            let message = format!("no segment holds entry {size}; restore it, or open another folder");
            return Err(AuditError::format(folder, message));
        }
        let signed = Signed::read(self.folder);
        let mut mark =
            signed.as_ref().map(|signed| Mark { size: signed.size, root: signed.root, met: signed.size == size });
        // Strictly below: the last frame says which sequence numbers are written.
        let from = all.iter().rposition(|segment| segment.first_index < size).unwrap_or(0);
        for (place, segment) in all.iter().enumerate().skip(from) {
            let next = all.get(place.saturating_add(1)).map(|next| next.first_index);
            let Some(mut scan) = Scan::open(segment, next.is_none())? else {
                if next.is_none() && segment.first_index == found.frontier.size() {
                    // Killed between making the file and writing its header.
                    continue;
                }
                return Err(AuditError::format(&segment.path, "the segment's header is damaged"));
            };
            let ended = scan_segment(&mut scan, next, &mut found, mark.as_mut())?;
            if next.is_some_and(|next| next != found.frontier.size() || next != found.end) {
                let message = format!(
                    "the entries from {} to the next segment are damaged or missing; restore them, or open another folder",
                    found.frontier.size()
                );
                return Err(AuditError::format(&segment.path, message));
            }
            if next.is_none() {
                // With its tiles the tree may be whole where the write-ahead file is not.
                let missing = mark.as_ref().is_some_and(|mark| mark.size > found.end);
                found.astray = self.end_of_log(&scan, &ended, missing, found.frontier.size())?;
                if found.astray.is_none() {
                    let io = AuditError::io("cannot use", &segment.path);
                    found.wal.go_on(scan, segment.first_index, ended.last_frame).map_err(io)?;
                }
            }
        }
        if let Some(mark) = mark.filter(|_| found.astray.is_none()) {
            found.astray = if mark.size > found.end {
                Some(BELOW_SIGNED)
            } else if mark.met {
                None
            } else {
                Some("the log does not have the root that was signed; a new epoch begins")
            };
        }
        Ok(found)
    }

    /// Cuts what is not whole behind the last frame, if that is all there is to it; else says what else it is. What a
    /// checkpoint has covered, or what whole frames follow, is evidence and is not cut.
    fn end_of_log(
        &mut self,
        scan: &Scan,
        ended: &Ended,
        missing: bool,
        size: u64,
    ) -> Result<Option<&'static str>, AuditError> {
        match ended.how {
            How::Blank => return Ok(None),
            How::Astray => return Ok(Some("a frame does not continue the one before; a new epoch begins")),
            How::Torn if missing => return Ok(Some(BELOW_SIGNED)),
            How::Torn => {}
        }
        let (bytes, follows) = scan.survey(size)?;
        if follows {
            return Ok(Some("a frame is damaged, and whole ones follow; a new epoch begins"));
        }
        scan.cut(&self.options.disk)?;
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        push_number(&mut self.cut, "cut_bytes", number(bytes));
        push_number(&mut self.cut, "cut_from_size", number(size));
        Ok(None)
    }

    /// Everything that is to be said before anything new: the old epoch, what the dead have left, the start.
    fn first_frame(&mut self, ring: Option<&Ring>, last: Last, out: &mut Out<'_>) -> Result<(), AuditError> {
        if out.frame.frontier().size() == 0 && self.epoch > 1 {
            let old = self.folder.join("epochs").join(self.epoch.saturating_sub(1).to_string());
            out.say(Kind::Epoch, &epoch_members(&old))?;
        }
        let dead = ring.map_or(0, |ring| ring.header().producer.load(Acquire));
        let mut drained = None;
        if let Some(ring) = ring.filter(|_| dead != 0) {
            drained = Some(drain(ring, dead, last, self.options.instance, out)?);
        } else if ring.is_none() && out.frame.frontier().size() > 0 {
            self.reasons.push("the ring is gone; what was in it is lost");
        }
        if drained.is_some() || !self.cut.is_empty() || !self.reasons.is_empty() {
            let members = self.recovery_members(dead, drained);
            out.say(Kind::Recovery, &members)?;
        }
        out.say(Kind::Start, &self.start_members())
    }

    fn recovery_members(&mut self, dead: u64, drained: Option<Drained>) -> Vec<u8> {
        let mut members = Vec::new();
        if drained.is_some() {
            push_text(&mut members, "of", &format!("{dead:016x}"));
        }
        members.append(&mut self.cut);
        if let Some(drained) = drained {
            drained.write(&mut members);
            if drained.rebooted {
                self.reasons.push("the host has restarted; what was only in the ring is lost");
            }
        }
        if let Some(size) = self.signed_size {
            push_number(&mut members, "signed_size", i64::try_from(size).unwrap_or(i64::MAX));
        }
        if !self.reasons.is_empty() {
            push_text(&mut members, "reason", &self.reasons.join("; "));
        }
        members
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
            members.extend_from_slice(b"{\"origin\":");
            push_json_str(&mut members, &sibling.origin);
            push_number(&mut members, "size", i64::try_from(sibling.size).unwrap_or(i64::MAX));
            push_text(&mut members, "root", &BASE64.encode(sibling.root));
            members.push(b'}');
        }
        members.push(b']');
        push_name(&mut members, "exported");
        members.extend_from_slice(if self.options.exported { b"true" } else { b"false" });
        members
    }

    /// What the other logs of the directory have signed, so that one that is missing later shows.
    fn siblings(&self) -> Vec<Signed> {
        let Some(folder) = &self.options.siblings else { return Vec::new() };
        let others = (0..AUDIT_SLOTS_MAX).filter(|slot| Some(*slot) != self.options.slot);
        others.filter_map(|slot| Signed::read(&folder.join(slot.to_string()))).collect()
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

/// What was signed, and whether the tree was seen to be that.
struct Mark {
    size: u64,
    root: Hash,
    met: bool,
}

/// How a segment ends.
struct Ended {
    how: How,
    /// Where the last frame that counts begins
    last_frame: Option<u64>,
}

enum How {
    /// With nothing
    Blank,
    /// With something that is no whole frame
    Torn,
    /// With a whole frame that does not continue the tree
    Astray,
}

/// Follows the frames of a segment, up to where the next one begins.
fn scan_segment(
    scan: &mut Scan,
    end: Option<u64>,
    found: &mut Recovered,
    mut mark: Option<&mut Mark>,
) -> Result<Ended, AuditError> {
    let mut last_frame = None;
    let how = loop {
        let offset = scan.offset();
        let frame = match scan.next()? {
            Found::End => break How::Blank,
            Found::Torn => break How::Torn,
            Found::Frame(frame) => frame,
        };
        let header = frame.header;
        if end.is_some_and(|end| header.first_index >= end) {
            scan.seek(offset);
            break How::Torn;
        }
        // What the tiles hold is passed over.
        let known = header.first_index.saturating_add(header.count.into()) <= found.frontier.size();
        if !known && !extends(&frame, &mut found.frontier) {
            scan.seek(offset);
            break How::Astray;
        }
        if let Some(mark) = mark.as_mut().filter(|mark| !known && mark.size == found.frontier.size()) {
            mark.met = mark.root == found.frontier.root();
        }
        last_frame = Some(offset);
        found.end = found.end.max(header.first_index.saturating_add(header.count.into()));
        found.last = Some((header.producer, header.last_seq));
    };
    Ok(Ended { how, last_frame })
}

/// What was found in the ring of a dead owner.
#[derive(Default)]
struct Drained {
    records: u64,
    lost: Vec<(u64, u64)>,
    rebooted: bool,
}

impl Drained {
    fn lose(&mut self, from: u64, to: u64) {
        if from <= to {
            self.lost.push((from, to));
        }
    }

    fn write(&self, members: &mut Vec<u8>) {
        push_number(members, "drained", i64::try_from(self.records).unwrap_or(i64::MAX));
        push_name(members, "lost");
        members.push(b'[');
        for (place, (from, to)) in self.lost.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            members.extend_from_slice(format!("{comma}[{from},{to}]").as_bytes());
        }
        members.push(b']');
    }
}

/// Takes what the dead owner has published and nobody has written.
///
/// What is more than one batch becomes several frames, each with a recovery entry of its own: each accounts for all
/// sequence numbers up to the one that its header has, so that whoever is killed in between has left nothing half done.
fn drain(ring: &Ring, dead: u64, last: Last, instance: u64, out: &mut Out<'_>) -> Result<Drained, AuditError> {
    let mut drained = Drained::default();
    let mut reader = ring.reader();
    let known = last.filter(|(producer, _)| *producer == dead).map(|(_, seq)| seq);
    let written = known.unwrap_or(0);
    let next = ring.next_seq();
    // Pages of the ring that had not reached the disk are older than the rest: nothing in it can be told apart, not even
    // whose it is. Only if it is whose the last frame is, the numbers mean something.
    if !same_boot(ring) {
        drained.rebooted = true;
        if known.is_some() {
            drained.lose(written.saturating_add(1), next.saturating_sub(1));
        }
        return Ok(drained);
    }
    let mut taken = Taken::default();
    // Not where the reader is, if there is a frame of this owner: what was let go is in the log, or the log has lost it.
    let mut expected = known.map_or(reader.seq, |written| written.saturating_add(1));
    out.encoder.set_producer(dead);
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
            out.encoder.add_recovered(taken.seq, &taken.as_pieces(), out.frame)?;
            drained.records = drained.records.saturating_add(1);
        }
        let full = out.frame.len_bytes() >= BATCH_BYTES_MAX || out.frame.count() as usize >= BATCH_ENTRIES_MAX;
        if full || drained.lost.len() >= LOST_RUNS_MAX {
            out.encoder.set_producer(instance);
            let mut members = Vec::new();
            push_text(&mut members, "of", &format!("{dead:016x}"));
            std::mem::take(&mut drained).write(&mut members);
            out.say(Kind::Recovery, &members)?;
            out.wal.append(out.frame, dead, taken.seq, now_ms())?;
            out.frame.restart();
            out.encoder.set_producer(dead);
        }
    }
    out.encoder.set_producer(instance);
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

/// Room for the ring that is wanted, before anything is said: a disk without it is an error that changes nothing. A ring
/// that is gone is made after that was said, so that it is not taken for one that nobody has used yet.
fn make_room(
    old: Option<&Ring>,
    size: u64,
    folder: &Path,
    file: &File,
    options: &LogOptions,
) -> Result<(), AuditError> {
    let bytes = ring_file_bytes(options.ring_bytes / LINE_BYTES) as u64;
    if old.is_none() && size > 0 {
        return Ok(());
    }
    let path = folder.join("ring");
    options.disk.grow(file, &path, bytes).map_err(AuditError::io("cannot make room for", path.clone()))
}

/// An empty ring for this owner, of the size that is wanted.
fn fresh_ring(old: Option<&Ring>, folder: &Path, file: &File, options: &LogOptions) -> Result<Ring, AuditError> {
    let path = folder.join("ring");
    let disk = &options.disk;
    let lines = options.ring_bytes / LINE_BYTES;
    let bytes = ring_file_bytes(lines);
    if let Some(old) = old {
        old.disown();
    } else {
        let io = AuditError::io("cannot make room for", path.clone());
        disk.truncate(file, &path, 0).and_then(|()| disk.grow(file, &path, bytes as u64)).map_err(io)?;
    }
    let io = |error| AuditError::io("cannot map", path.clone())(error);
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
