//! The two threads of a log: one writes, one cuts tiles and signs.
//!
//! The writer takes what is published, makes entries of it, writes them as one frame, brings that to the disk with one
//! call, and only then lets go of the ring's lines. If the disk refuses it keeps the batch and tries again; meanwhile the
//! ring fills and checks are denied. The cutter reads what is durable, and after its tiles are on the disk it signs a
//! checkpoint: at most one in an interval, unless somebody waits for it.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::entry::{Encoder, Kind, Private, Record, push_name, push_number, push_text, push_time};
use super::error::AuditError;
use super::log::{Asked, Request, Shared, lock};
use super::note::{checkpoint, verifier_key};
use super::open::{archive, epoch_members, last_blocks, now_ms, reader_of};
use super::ring::{Reader, Taken};
use super::tiles::Cutter;
use super::tree::{Frontier, Hash};
use super::wal::{Found, Frame, Scan, Wal, erase, segments};
use crate::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX};
use crate::map;

/// How long the writer waits before it tries a disk again that has refused.
const RETRY: Duration = Duration::from_millis(50);
/// How often it looks whether its files are still there, and for requests in the folder.
const LOOK: Duration = Duration::from_secs(1);
/// Requests to erase that are taken from the folder at a time.
const ERASE_REQUESTS_MAX: usize = 1_000;
/// How often the ring is looked at for claims that are still open when its file is gone: once a millisecond.
const SAVE_TRIES: usize = 200;

/// The thread that writes.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    wal: Wal,
    frame: Frame,
    encoder: Encoder,
    reader: Reader,
    taken: Taken,
    ring_file: File,
    looked: Instant,
    /// Of what found no room, how many the frame says: denials, and what was let through
    said: [u64; 2],
    /// When that was said last
    said_at: Option<Instant>,
    /// The epoch that is being set aside: nothing is written until that is done
    rotating: Option<u64>,
    /// Up to where the ring's pages were made writable ahead of its producers
    warmed: Option<u32>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, wal: Wal, frame: Frame, encoder: Encoder, ring_file: File) -> Self {
        let reader = reader_of(&shared.ring);
        let (taken, looked) = (Taken::default(), Instant::now());
        Self {
            shared,
            wal,
            frame,
            encoder,
            reader,
            taken,
            ring_file,
            looked,
            said: [0; 2],
            said_at: None,
            rotating: None,
            warmed: None,
        }
    }

    pub(super) fn run(mut self) {
        while self.step() {}
        let mut state = self.shared.state();
        state.writer_over = true;
        drop(state);
        self.shared.work.notify_all();
        self.shared.done.notify_all();
        self.shared.tell_watchers();
    }

    /// One batch; false when it was the last one.
    fn step(&mut self) -> bool {
        let stopping = self.shared.state().stopping;
        if let Some(epoch) = self.rotating
            && let Err(error) = self.finish_rotation(epoch)
        {
            self.failed(&error);
            if stopping && self.gave_up_closing() {
                return false;
            }
            self.pause(RETRY);
            return true;
        }
        // Also where there is always more to do.
        self.look();
        let more = self.collect();
        self.warmed = self.shared.ring.warm(self.warmed);
        if self.frame.count() > 0 && !self.write() {
            if stopping && self.gave_up_closing() {
                return false;
            }
            self.pause(RETRY);
            return true;
        }
        if more {
            return true;
        }
        if self.answer_requests() {
            return true;
        }
        if stopping {
            return self.finish();
        }
        let interval = Duration::from_millis(self.shared.options.interval_ms);
        self.pause(interval);
        true
    }

    /// Sleeps until the time is over or somebody is in a hurry.
    fn pause(&self, time: Duration) {
        let mut state = self.shared.state();
        if !state.hurry_write && !state.stopping && state.requests.is_empty() {
            state = self.shared.work.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0;
        } else if state.write_failure.is_some() {
            // In a hurry or not, a disk that refuses is not asked without a pause.
            drop(state);
            std::thread::sleep(time);
            return;
        }
        state.hurry_write = false;
    }

    /// Fills the frame from the ring; true if there is more than one frame takes.
    fn collect(&mut self) -> bool {
        self.say_unlogged();
        while (self.frame.count() as usize) < BATCH_ENTRIES_MAX && self.frame.len_bytes() < BATCH_BYTES_MAX {
            if !self.shared.ring.take(&mut self.reader, &mut self.taken) {
                return false;
            }
            let added = if self.taken.abandoned {
                let why = "claimed and given up";
                self.encoder.add_unreadable(self.taken.seq, now_ms(), why, &mut self.frame)
            } else {
                self.encoder.add_pieces(self.taken.seq, &self.taken.as_pieces(), &mut self.frame)
            };
            if let Err(error) = added {
                // No random numbers: the record was taken and cannot be written, so nothing may follow it.
                self.shared.give_up(&error.to_string());
                return false;
            }
        }
        true
    }

    /// Says what found no room, now that there is some.
    fn say_unlogged(&mut self) {
        let waits = self.said_at.is_some_and(|said| said.elapsed() < LOOK);
        if waits && !self.shared.state().stopping {
            return;
        }
        for (place, kind) in [Kind::DeniedUnlogged, Kind::Gap].into_iter().enumerate() {
            // What the frame says already is taken off when it is on the disk.
            if self.said.get(place) != Some(&0) {
                continue;
            }
            let Some((count, from, to)) = self.shared.ring.unlogged(place == 1) else { continue };
            // Counted while the last report was taken off: its times are gone, and it was just now.
            let (from, to) = if from == 0 || to == 0 { (now_ms(), now_ms()) } else { (from, to) };
            if let Some(said) = self.said.get_mut(place) {
                *said = count;
            }
            self.said_at = Some(Instant::now());
            let mut members = Vec::new();
            push_number(&mut members, "count", i64::try_from(count).unwrap_or(i64::MAX));
            for (name, time) in [("from", from), ("to", to)] {
                push_name(&mut members, name);
                members.push(b'"');
                push_time(&mut members, time);
                members.push(b'"');
            }
            push_name(&mut members, "producers");
            members.extend_from_slice(format!("[\"{:016x}\"]", self.shared.options.instance).as_bytes());
            self.say(kind, &members);
        }
    }

    /// Adds an entry of the writer's own.
    fn say(&mut self, kind: Kind, members: &[u8]) {
        let record = Record { kind, time_ms: now_ms(), head: members, tail: &[], private: Private::None };
        if let Err(error) = self.encoder.add(&record, None, &mut self.frame) {
            self.shared.give_up(&error.to_string());
        }
    }

    /// Brings the frame to the disk and tells everybody.
    fn write(&mut self) -> bool {
        self.shared.broken().is_none() && self.append()
    }

    fn append(&mut self) -> bool {
        let begun = Instant::now();
        let last_seq = self.reader.seq.saturating_sub(1);
        let instance = self.shared.options.instance;
        if let Err(error) = self.wal.append(&mut self.frame, instance, last_seq, now_ms()) {
            self.failed(&error);
            return false;
        }
        self.frame.restart();
        for (place, said) in std::mem::take(&mut self.said).into_iter().enumerate().filter(|(_, said)| *said != 0) {
            self.shared.ring.forget_unlogged(place == 1, said);
        }
        self.shared.ring.release(&self.reader);
        self.shared.durable_seq.store(last_seq, Ordering::Release);
        let mut state = self.shared.state();
        state.durable_seq = last_seq;
        state.durable_size = self.frame.frontier().size();
        state.segment_from = self.wal.segment_from();
        state.durable_root = self.frame.frontier().root();
        state.write_failure = None;
        state.sync_max_us = state.sync_max_us.max(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
        drop(state);
        self.shared.done.notify_all();
        self.shared.tell_watchers();
        self.publish_outcomes();
        true
    }

    fn failed(&self, error: &AuditError) {
        self.shared.state().write_failure = Some(error.to_string());
        self.shared.done.notify_all();
    }

    /// What stood in line for room in the ring, now that there is some. True if nothing is left.
    fn publish_outcomes(&self) -> bool {
        let mut outcomes = lock(&self.shared.outcomes);
        while let Some(first) = outcomes.front() {
            let (pieces, bytes) = first.pieces();
            let Ok(mut claim) = self.shared.ring.claim(bytes) else { return false };
            claim.publish(&pieces);
            outcomes.pop_front();
        }
        true
    }

    /// Notices files that are no longer there, and requests that others have left.
    fn look(&mut self) {
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let ring = self.shared.folder.join("ring");
        let own = self.ring_file.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
        let named = std::fs::symlink_metadata(&ring).ok().map(|meta| (meta.dev(), meta.ino()));
        let why = match named {
            None => Some(format!("{} is gone", ring.display())),
            _ if own != named => Some(format!("{} was replaced by another file", ring.display())),
            _ => self.wal.replaced(),
        };
        if let Some(why) = why.filter(|_| self.shared.broken().is_none()) {
            self.shared.give_up(&format!("{why} while the log was open; nothing is recorded until it is opened anew"));
            if named != own {
                self.save_ring();
            }
        }
        self.take_erase_requests();
    }

    /// The ring's file is gone, and what is in it will be with the process. Nobody adds to it any more; what was published
    /// is brought to the disk while it is there.
    fn save_ring(&mut self) {
        for _ in 0..SAVE_TRIES {
            while self.collect() || self.frame.count() > 0 {
                if !self.append() {
                    std::thread::sleep(RETRY);
                    break;
                }
            }
            if self.shared.ring.next_seq() == self.reader.seq {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Requests of other programs: files named `EPOCH.INDEX.COMMITMENT`. More are read when these are answered.
    fn take_erase_requests(&self) {
        if self.shared.state().requests.iter().any(|(number, _)| *number == 0) {
            return;
        }
        let Ok(listed) = std::fs::read_dir(self.shared.folder.join("erase")) else { return };
        let asked = listed.flatten().filter_map(|entry| read_asked(entry.file_name().to_str()?));
        let asked: Vec<Asked> = asked.take(ERASE_REQUESTS_MAX).collect();
        let mut state = self.shared.state();
        state.requests.extend(asked.into_iter().map(|asked| (0, Request::EraseNamed(asked))));
    }

    /// Does what was asked for; true if it did anything.
    fn answer_requests(&mut self) -> bool {
        let Some((number, request)) = self.shared.state().requests.pop_front() else { return false };
        let answer = match request {
            Request::Erase(index) => self.erase(index, None),
            Request::EraseNamed(ref asked) => self.erase_named(asked),
            Request::Rotate => self.rotate(),
        };
        // A request that cannot be met is not tried for ever; one that the disk refused is.
        if let Request::EraseNamed(asked) = request
            && !matches!(answer, Err(AuditError::Io { .. } | AuditError::Unavailable { .. }))
        {
            let _ = std::fs::remove_file(self.shared.folder.join("erase").join(asked.name));
        }
        if number != 0 {
            let answer = answer.map_err(|error| error.to_string());
            self.shared.state().answers.push_back((number, answer));
            self.shared.done.notify_all();
        }
        true
    }

    fn erase_named(&mut self, asked: &Asked) -> Result<(), AuditError> {
        let epoch = self.shared.state().epoch;
        if asked.epoch != epoch {
            return Err(AuditError::invalid(format!("epoch {} is over; this is {epoch}", asked.epoch)));
        }
        self.erase(asked.index, Some(asked.commitment))
    }

    /// Erases, and says so, also of what is erased already: the attempt that did it may not have come to saying it.
    fn erase(&mut self, index: u64, expected: Option<[u8; 32]>) -> Result<(), AuditError> {
        let size = self.frame.frontier().size();
        if index >= size {
            return Err(AuditError::invalid(format!("there is no entry {index}; the log has {size}")));
        }
        let folder = self.shared.folder.join("wal");
        let committed = erase_payload(&self.shared.options.disk, &folder, index, expected)?;
        let mut members = Vec::new();
        push_number(&mut members, "index", i64::try_from(index).unwrap_or(i64::MAX));
        push_text(&mut members, "commitment", &committed);
        self.say(Kind::Erasure, &members);
        self.write_now()
    }

    /// Writes what is in the frame, or says why not.
    fn write_now(&mut self) -> Result<(), AuditError> {
        if self.write() {
            return Ok(());
        }
        let why = self.shared.broken().or_else(|| self.shared.state().write_failure.clone());
        Err(AuditError::unavailable(why.unwrap_or_default()))
    }

    /// Ends the epoch: everything is cut and signed, its files are set aside, and a new tree begins.
    fn rotate(&mut self) -> Result<(), AuditError> {
        let shared = Arc::clone(&self.shared);
        lock(&shared.cutting).cut(&shared)?;
        let epoch = shared.state().epoch;
        // From here on there is no way back: files are where the next opening finishes what was begun.
        self.rotating = Some(epoch);
        if let Err(error) = self.finish_rotation(epoch) {
            self.failed(&error);
            return Err(AuditError::unavailable(format!("the epoch is not over yet, and it is tried again: {error}")));
        }
        self.write_now()
    }

    /// Everything after the last checkpoint of an epoch. Interrupted, it is done by doing it again.
    fn finish_rotation(&mut self, epoch: u64) -> Result<(), AuditError> {
        let shared = Arc::clone(&self.shared);
        let mut cutting = lock(&shared.cutting);
        let disk = shared.options.disk.clone();
        archive(&disk, &shared.folder, epoch)?;
        let next = epoch.saturating_add(1);
        let origin = shared.options.origin_of(next);
        let wal = shared.folder.join("wal");
        disk.create_folder_durably(&wal, 0o700).map_err(AuditError::io("cannot make", wal.clone()))?;
        let key = format!("{}\n", verifier_key(&origin, &*shared.signer));
        let path = shared.folder.join("verifier.pub");
        disk.write_whole(&path, key.as_bytes(), 0o644).map_err(AuditError::io("cannot write", path.clone()))?;
        self.rotating = None;
        self.wal = Wal::new(disk.clone(), wal, shared.options.segment_bytes, &origin);
        self.frame = Frame::new(Frontier::default());
        *cutting = Cutting::new(Cutter::new(disk, shared.folder.clone()), &shared.folder);
        let mut state = shared.state();
        (state.origin, state.epoch) = (origin, next);
        (state.durable_size, state.checkpoint_size) = (0, 0);
        state.durable_root = Frontier::default().root();
        state.hurry_checkpoint = true;
        drop(state);
        drop(cutting);
        self.say(Kind::Epoch, &epoch_members(&shared.folder.join("epochs").join(epoch.to_string())));
        shared.work.notify_all();
        Ok(())
    }

    /// The last entry and the end; true if there is still something to do before.
    fn finish(&mut self) -> bool {
        // Whoever had a claim when the log was closed has a moment to publish it.
        for _ in 0..100 {
            if self.shared.ring.next_seq() == self.reader.seq {
                break;
            }
            if self.collect() || self.frame.count() > 0 {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if !lock(&self.shared.outcomes).is_empty() {
            if !self.publish_outcomes() && self.gave_up_closing() {
                self.failed(&AuditError::unavailable("the log's ring is full of records that are never published"));
                return false;
            }
            return true;
        }
        // What was counted while the last batch was on its way.
        self.say_unlogged();
        let mut members = Vec::new();
        push_name(&mut members, "clean");
        members.extend_from_slice(b"true");
        self.say(Kind::Stop, &members);
        if self.write() && self.shared.ring.next_seq() == self.reader.seq {
            self.shared.ring.disown();
        }
        false
    }

    /// Whether a disk that refuses has had its time.
    fn gave_up_closing(&mut self) -> bool {
        let deadline = Duration::from_millis(self.shared.options.close_timeout_ms);
        let mut state = self.shared.state();
        let since = *state.closing_since.get_or_insert_with(Instant::now);
        since.elapsed() >= deadline || self.shared.broken().is_some()
    }
}

/// What the name of a request says; nothing if it is not exactly one.
fn read_asked(name: &str) -> Option<Asked> {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let (epoch, rest) = name.split_once('.')?;
    let (index, commitment) = rest.split_once('.')?;
    let commitment: [u8; 32] = URL_SAFE_NO_PAD.decode(commitment).ok()?.try_into().ok()?;
    let asked = Asked { name: name.to_owned(), epoch: epoch.parse().ok()?, index: index.parse().ok()?, commitment };
    let same = format!("{}.{}.{}", asked.epoch, asked.index, URL_SAFE_NO_PAD.encode(commitment)) == name;
    same.then_some(asked)
}

/// The commitment that an entry has to its payload: the last one in it, since the log's own member comes after those of
/// whoever appended it.
fn commitment_in(entry: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(entry).ok()?;
    let (_, rest) = text.rsplit_once("\"commitment\":\"")?;
    rest.split_once('"').map(|(commitment, _)| commitment.to_owned())
}

/// Finds the payload of an entry and erases it, or what an erasure before has left of it. Returns the entry's commitment.
pub(super) fn erase_payload(
    disk: &super::disk::Disk,
    folder: &Path,
    index: u64,
    expected: Option<[u8; 32]>,
) -> Result<String, AuditError> {
    let all = segments(folder)?;
    let found = all.iter().rev().find(|segment| segment.first_index <= index);
    let none = || AuditError::invalid(format!("entry {index} has no payload here"));
    let segment = found.ok_or_else(none)?;
    let mut scan = Scan::open(segment, false)?.ok_or_else(none)?;
    while let Some(header) = scan.peek()? {
        if header.first_index.saturating_add(header.count.into()) <= index {
            scan.skip(&header);
            continue;
        }
        let Found::Frame(frame) = scan.next()? else { break };
        let payload = frame.payloads().find(|p| header.first_index.saturating_add(p.index.into()) == index);
        let payload = payload.ok_or_else(none)?;
        let place = usize::try_from(payload.index).unwrap_or(usize::MAX);
        let committed = frame.entries().nth(place).and_then(commitment_in).ok_or_else(none)?;
        if expected.is_some_and(|expected| BASE64.encode(expected) != committed) {
            return Err(AuditError::invalid(format!("entry {index} commits to another payload than was meant")));
        }
        if !(payload.erased && payload.is_blank()) {
            erase(disk, &segment.path, payload.offset, payload.bytes.len())
                .map_err(AuditError::io("cannot erase in", segment.path.clone()))?;
        }
        return Ok(committed);
    }
    Err(none())
}

/// Reads durable frames in order, and makes tiles of them.
#[derive(Debug)]
pub(super) struct Cutting {
    cutter: Cutter,
    folder: PathBuf,
    place: Option<Place>,
}

/// Where the cutter reads.
#[derive(Debug)]
struct Place {
    /// First index of the next segment: what stands here from there on was not acknowledged
    end: Option<u64>,
    /// First index of the newest segment when this one was opened
    segment_from: u64,
    scan: Scan,
}

impl Place {
    fn is_over(&self, next: u64) -> bool {
        self.end.is_some_and(|end| next >= end)
    }
}

impl Cutting {
    pub(super) fn new(cutter: Cutter, folder: &Path) -> Self {
        Self { cutter, folder: folder.to_owned(), place: None }
    }

    /// Cuts everything that is durable and signs a checkpoint for it, if there is anything new.
    pub(super) fn cut(&mut self, shared: &Shared) -> Result<(), AuditError> {
        let state = shared.state();
        let (size, seq, origin) = (state.durable_size, state.durable_seq, state.origin.clone());
        let (signed, segment_from, root) = (state.checkpoint_size, state.segment_from, state.durable_root);
        drop(state);
        let mut done = self.read_to(size, segment_from);
        if done.is_ok() && signed < size {
            done = self.cutter.commit_with_partials().and_then(|()| self.sign(shared, &origin, size, &root));
        }
        if let Err(error) = done {
            // What is on the disk is what counts: begin where the last checkpoint ends.
            self.start_over(shared, &origin);
            return Err(error);
        }
        shared.checkpoint_seq.store(seq, Ordering::Release);
        let mut state = shared.state();
        (state.checkpoint_size, state.checkpoint_seq) = (size, seq);
        state.cut_failure = None;
        Ok(())
    }

    fn start_over(&mut self, shared: &Shared, origin: &str) {
        let signed = super::open::Signed::read(&self.folder).filter(|signed| signed.origin == origin);
        let disk = || shared.options.disk.clone();
        let loaded = signed.and_then(|s| Cutter::load(disk(), self.folder.clone(), s.size, &s.root));
        self.cutter = loaded.unwrap_or_else(|| Cutter::new(disk(), self.folder.clone()));
        self.place = None;
    }

    /// Feeds the cutter all entries up to a size.
    fn read_to(&mut self, size: u64, segment_from: u64) -> Result<(), AuditError> {
        while self.cutter.size() < size {
            let next = self.cutter.size();
            if self.place.as_ref().is_none_or(|place| place.segment_from != segment_from || place.is_over(next)) {
                self.place = Some(self.find(next, segment_from)?);
            }
            let gone = || AuditError::format(self.folder.join("wal"), format!("entry {next} is not there any more"));
            let scan = &mut self.place.as_mut().ok_or_else(gone)?.scan;
            let header = scan.peek()?.ok_or_else(gone)?;
            if header.first_index.saturating_add(header.count.into()) <= next {
                scan.skip(&header);
                continue;
            }
            let Found::Frame(frame) = scan.next()? else { return Err(gone()) };
            let before = next.checked_sub(header.first_index).and_then(|before| usize::try_from(before).ok());
            for entry in frame.entries().skip(before.ok_or_else(gone)?) {
                self.cutter.push(entry)?;
            }
            if self.cutter.wants_commit() {
                self.cutter.commit()?;
            }
        }
        Ok(())
    }

    /// The segment that an entry counts in: the last one that begins at or before it.
    fn find(&self, index: u64, segment_from: u64) -> Result<Place, AuditError> {
        let folder = self.folder.join("wal");
        let all = segments(&folder)?;
        let at = all.iter().rposition(|segment| segment.first_index <= index);
        let found = at.and_then(|at| Some((all.get(at)?, all.get(at.saturating_add(1)))));
        let gone = || AuditError::format(&folder, format!("entry {index} is not there any more"));
        let (segment, next) = found.ok_or_else(gone)?;
        let scan = Scan::open(segment, false)?.ok_or_else(gone)?;
        Ok(Place { end: next.map(|next| next.first_index), segment_from, scan })
    }

    /// Signs the tree as it is on the disk, and makes that the checkpoint.
    ///
    /// What the writer has written and what was read of it again have to be the same.
    fn sign(&self, shared: &Shared, origin: &str, size: u64, root: &Hash) -> Result<(), AuditError> {
        if self.cutter.size() != size || self.cutter.frontier().root() != *root {
            return Err(AuditError::unavailable("the tiles are not those of the tree to be signed"));
        }
        let text = checkpoint(origin, size, root, &*shared.signer)?;
        let disk = &shared.options.disk;
        let kept = self.folder.join("checkpoints.log");
        append_checkpoint(disk, &kept, &text).map_err(AuditError::io("cannot write", kept))?;
        let path = self.folder.join("checkpoint");
        disk.write_whole(&path, text.as_bytes(), 0o644).map_err(AuditError::io("cannot write", path))
    }
}

/// Keeps every checkpoint, one after the other, each once. What a death has left half written is overwritten.
fn append_checkpoint(disk: &super::disk::Disk, path: &Path, text: &str) -> std::io::Result<()> {
    let file = disk.open_or_create(path, 0o644)?;
    let (blocks, end) = last_blocks(&file)?;
    let block = format!("{text}---\n");
    if !blocks.ends_with(block.as_bytes()) {
        if file.metadata()?.len() > end {
            disk.truncate(&file, path, end)?;
        }
        disk.write_at(&file, path, block.as_bytes(), end)?;
    }
    disk.sync(&file, path)
}

/// The thread that cuts.
pub(super) fn run_cutter(shared: &Arc<Shared>) {
    let interval = Duration::from_millis(shared.options.checkpoint_interval_ms.max(1));
    let mut last: Option<Instant> = None;
    let mut followed = Instant::now();
    loop {
        if followed.elapsed() >= LOOK {
            followed = Instant::now();
            let mut work = std::mem::take(&mut *lock(&shared.followed));
            work.retain_mut(|work| work());
            lock(&shared.followed).append(&mut work);
        }
        let mut state = shared.state();
        let over = state.writer_over;
        let fresh = state.durable_size.saturating_sub(state.checkpoint_size);
        let due = last.is_none_or(|last| last.elapsed() >= interval) || fresh >= shared.options.checkpoint_entries;
        if !over && !(fresh > 0 && (due || state.hurry_checkpoint)) {
            state.hurry_checkpoint &= fresh > 0;
            let wait = last.map_or(interval, |last| interval.saturating_sub(last.elapsed()));
            let wait = if fresh > 0 { wait } else { interval }.clamp(Duration::from_millis(1), LOOK);
            drop(shared.work.wait_timeout(state, wait));
            continue;
        }
        state.hurry_checkpoint = false;
        drop(state);
        last = Some(Instant::now());
        let cut = if shared.broken().is_some() { Ok(()) } else { lock(&shared.cutting).cut(shared) };
        let failed = cut.is_err();
        if let Err(error) = cut {
            shared.state().cut_failure = Some(error.to_string());
        }
        shared.done.notify_all();
        shared.tell_watchers();
        if over {
            break;
        }
        if failed {
            std::thread::sleep(RETRY);
        }
    }
    shared.state().cutter_over = true;
    shared.done.notify_all();
    shared.tell_watchers();
    // A child of a fork has no such thread; the parent's goes on.
    debug_assert_eq!(shared.forks, map::fork_generation());
}
