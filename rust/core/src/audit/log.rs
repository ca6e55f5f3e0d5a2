//! `Log`: one log, opened by one process. What producers, waiters and the two threads share.
//!
//! Producers claim and publish records in the ring ([`super::ring`]); the writer thread ([`super::writer`]) brings them
//! to the disk in batches; the cutter thread makes tiles of them and signs checkpoints. Whoever waits for a record waits
//! for its sequence number, because records become durable in the order of their claims.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::disk::Disk;
use super::entry::Record;
use super::error::AuditError;
use super::note::{Signer, verifier_key};
use super::open::{self, Opened};
use super::ring::{Claim, Full, PIECES, Pieces, Ring};
use super::tree::Hash;
use super::writer::{Cutting, Writer};
use crate::limits::{OUTCOMES_WAITING_MAX, RING_BYTES_DEFAULT, SEGMENT_BYTES_DEFAULT};
use crate::map;

/// Where the signing key comes from.
#[derive(Debug, Clone)]
pub enum Key {
    /// `signer.key` in the log's folder, made at the first opening
    Beside,
    /// A file, made at the first opening
    File(PathBuf),
    /// Somebody else who signs
    Signer(Arc<dyn Signer>),
}

/// How a log is opened.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// What the log calls itself, such as `example.com/gate`
    pub origin: String,
    /// Which of a directory's logs it is; set by [`Log::open_slot`]
    pub slot: Option<usize>,
    /// The directory with the others; set by [`Log::open_slot`]
    pub siblings: Option<PathBuf>,
    /// Tells the records of this opening from those of others: a random number, not 0
    pub instance: u64,
    /// Version of the program, for the start entry
    pub engine: String,
    /// Size of the ring, a power of two
    pub ring_bytes: usize,
    /// Size of a write-ahead segment
    pub segment_bytes: u64,
    /// How long a record may be in the ring before it is on the disk: what a power cut can lose
    pub interval_ms: u64,
    /// How long an entry may be on the disk before a checkpoint covers it
    pub checkpoint_interval_ms: u64,
    /// Entries after which a checkpoint is made earlier
    pub checkpoint_entries: u64,
    /// How long [`Log::close`] waits for a disk that refuses
    pub close_timeout_ms: u64,
    /// Who signs
    pub key: Key,
    /// Whether something outside takes each checkpoint
    pub exported: bool,
    /// The disk
    pub disk: Disk,
}

impl LogOptions {
    /// The defaults: 5 ms to the disk, a checkpoint each second.
    pub fn new(origin: &str, instance: u64) -> Self {
        Self {
            origin: origin.to_owned(),
            slot: None,
            siblings: None,
            instance: instance.max(1),
            engine: env!("CARGO_PKG_VERSION").to_owned(),
            ring_bytes: RING_BYTES_DEFAULT,
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            interval_ms: 5,
            checkpoint_interval_ms: 1_000,
            checkpoint_entries: 1 << 20,
            close_timeout_ms: 10_000,
            key: Key::Beside,
            exported: false,
            disk: Disk::default(),
        }
    }

    /// The origin of an epoch.
    pub(super) fn origin_of(&self, epoch: u64) -> String {
        match self.slot {
            Some(slot) => format!("{}/{slot}/{epoch}", self.origin),
            None if epoch <= 1 => self.origin.clone(),
            None => format!("{}/{epoch}", self.origin),
        }
    }
}

/// How certain a record is to be found again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// In the ring: the death of the process loses nothing, a power cut what was published in the last interval
    #[default]
    Group,
    /// On the disk
    Sync,
    /// Covered by a signed checkpoint
    Checkpointed,
}

impl Durability {
    /// All classes.
    pub const ALL: [Self; 3] = [Self::Group, Self::Sync, Self::Checkpointed];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Group => "group",
            Self::Sync => "sync",
            Self::Checkpointed => "checkpointed",
        }
    }

    /// The class of a name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }
}

/// How a log is doing.
#[derive(Debug, Clone)]
pub struct Health {
    /// Its origin in this epoch
    pub origin: String,
    /// Epochs that have begun
    pub epoch: u64,
    /// Entries on the disk
    pub durable_size: u64,
    /// Entries that a checkpoint covers
    pub checkpoint_size: u64,
    /// The last record on the disk
    pub durable_seq: u64,
    /// Sequence number of the next record
    pub next_seq: u64,
    /// Bytes of the ring in use, and of the ring
    pub ring_bytes: (usize, usize),
    /// The slowest write to the disk so far, in microseconds
    pub sync_max_us: u64,
    /// Why records do not get to the disk now, or tiles are not cut
    pub failure: Option<String>,
    /// Whether something outside takes each checkpoint
    pub exported: bool,
}

/// A record that waits for room, with everything it says.
#[derive(Debug)]
pub(super) struct Waiting {
    kind: u8,
    time_ms: i64,
    pieces: [Vec<u8>; PIECES],
}

impl Waiting {
    fn new(record: &Record<'_>) -> Self {
        let Pieces { kind, time_ms, pieces } = record.pieces();
        Self { kind, time_ms, pieces: pieces.map(<[u8]>::to_vec) }
    }

    /// As the ring takes it, and the bytes to claim.
    pub(super) fn pieces(&self) -> (Pieces<'_>, usize) {
        let bytes = self.pieces.iter().fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        let pieces = self.pieces.each_ref().map(Vec::as_slice);
        (Pieces { kind: self.kind, time_ms: self.time_ms, pieces }, Ring::bytes_for(bytes))
    }
}

/// A request that another program has left: the entry by its epoch, index and commitment, so that it cannot mean another
/// one by the time that it is read.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) name: String,
    pub(super) epoch: u64,
    pub(super) index: u64,
    pub(super) commitment: [u8; 32],
}

/// Something that the writer is asked to do between two batches.
#[derive(Debug)]
pub(super) enum Request {
    Erase(u64),
    /// Left in the folder by another program
    EraseNamed(Asked),
    Rotate,
}

/// What waiters and threads tell each other.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of one thread or one wish")]
pub(super) struct State {
    pub(super) stopping: bool,
    pub(super) writer_over: bool,
    pub(super) cutter_over: bool,
    /// Somebody waits for a write, or for a checkpoint
    pub(super) hurry_write: bool,
    pub(super) hurry_checkpoint: bool,
    pub(super) durable_size: u64,
    /// The root of the tree of that size, as the writer has it
    pub(super) durable_root: Hash,
    pub(super) durable_seq: u64,
    pub(super) checkpoint_size: u64,
    pub(super) checkpoint_seq: u64,
    pub(super) write_failure: Option<String>,
    pub(super) cut_failure: Option<String>,
    pub(super) origin: String,
    pub(super) epoch: u64,
    pub(super) sync_max_us: u64,
    /// First index of the segment that was begun last
    pub(super) segment_from: u64,
    pub(super) requests: VecDeque<(u64, Request)>,
    pub(super) answers: VecDeque<(u64, Result<(), String>)>,
    /// When closing first met a disk that refuses
    pub(super) closing_since: Option<Instant>,
    asked: u64,
}

/// Something that is done once a second; false when it is not to be done again.
pub type Follow = Box<dyn FnMut() -> bool + Send>;

impl State {
    /// Whether nothing becomes that certain any more: the last checkpoint is signed after the last write.
    fn is_over(&self, class: Durability) -> bool {
        if class == Durability::Checkpointed { self.cutter_over } else { self.writer_over }
    }
}

/// What the threads and the handle share.
pub(super) struct Shared {
    pub(super) ring: Ring,
    pub(super) folder: PathBuf,
    pub(super) options: LogOptions,
    pub(super) signer: Arc<dyn Signer>,
    state: Mutex<State>,
    /// Wakes the two threads
    pub(super) work: Condvar,
    /// Wakes whoever waits for them
    pub(super) done: Condvar,
    /// Copy of the state's, for those who only look
    pub(super) durable_seq: AtomicU64,
    pub(super) checkpoint_seq: AtomicU64,
    /// No record is taken any more
    closed: AtomicBool,
    /// Why no record is taken until the log is opened anew
    broken: Mutex<Option<String>>,
    is_broken: AtomicBool,
    /// Records that found no room and must not be dropped
    pub(super) outcomes: Mutex<VecDeque<Waiting>>,
    pub(super) cutting: Mutex<Cutting>,
    pub(super) followed: Mutex<Vec<Follow>>,
    watchers: Mutex<Vec<Weak<OwnedFd>>>,
    pub(super) forks: u64,
    /// Who owns the folder; let go of when the log is closed
    lock: Mutex<Option<map::LockFile>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Refuses every record from now on.
    pub(super) fn give_up(&self, why: &str) {
        let mut broken = lock(&self.broken);
        if broken.is_none() {
            *broken = Some(why.to_owned());
        }
        drop(broken);
        // Release: whoever sees it finds the reason.
        self.is_broken.store(true, Ordering::Release);
        self.done.notify_all();
        self.tell_watchers();
    }

    pub(super) fn broken(&self) -> Option<String> {
        if self.is_broken.load(Ordering::Acquire) { lock(&self.broken).clone() } else { None }
    }

    /// Wakes event loops.
    pub(super) fn tell_watchers(&self) {
        let mut watchers = lock(&self.watchers);
        watchers.retain(|watcher| {
            let Some(watcher) = watcher.upgrade() else { return false };
            // A counter that is full is one that nobody has read: they will.
            let _ = rustix::io::write(&watcher, &1_u64.to_ne_bytes());
            true
        });
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// A log that this process has open.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    slot: Option<usize>,
    directory: PathBuf,
}

impl Log {
    /// Opens the log of a folder, or makes one. What the owner before has left is recovered.
    ///
    /// # Errors
    /// [`AuditError::InUse`] where another process has it; [`AuditError::Format`] with the place where it is damaged.
    pub fn open(folder: &Path, options: LogOptions) -> Result<Self, AuditError> {
        let opened = open::open(folder, &options)?;
        Self::start(opened, options, None, folder.to_owned())
    }

    /// Opens the first log below a directory that no process has: one for each process of a host.
    pub fn open_slot(directory: &Path, options: LogOptions) -> Result<Self, AuditError> {
        let (opened, slot) = open::open_slot(directory, &options)?;
        let mut options = options;
        options.slot = Some(slot);
        Self::start(opened, options, Some(slot), directory.to_owned())
    }

    fn start(opened: Opened, options: LogOptions, slot: Option<usize>, directory: PathBuf) -> Result<Self, AuditError> {
        let Opened { folder, origin, epoch, ring, lock, ring_file, wal, frame, encoder, cutter, signer } = opened;
        let durable_size = frame.frontier().size();
        let durable_root = frame.frontier().root();
        let state = State { durable_size, durable_root, origin, epoch, hurry_checkpoint: true, ..State::default() };
        let cutting = Cutting::new(cutter, &folder);
        let shared = Arc::new(Shared {
            ring,
            folder,
            options,
            signer,
            state: Mutex::new(state),
            work: Condvar::new(),
            done: Condvar::new(),
            durable_seq: AtomicU64::new(0),
            checkpoint_seq: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            broken: Mutex::new(None),
            is_broken: AtomicBool::new(false),
            outcomes: Mutex::new(VecDeque::new()),
            cutting: Mutex::new(cutting),
            followed: Mutex::new(Vec::new()),
            watchers: Mutex::new(Vec::new()),
            forks: map::fork_generation(),
            lock: Mutex::new(Some(lock)),
        });
        let writer = Writer::new(Arc::clone(&shared), wal, frame, encoder, ring_file);
        let for_cutter = Arc::clone(&shared);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(work)
                .map_err(AuditError::io("cannot start a thread for", directory.clone()))
        };
        let writer = spawn("tollkeeper-log", Box::new(move || writer.run()))?;
        let cutter = match spawn("tollkeeper-tile", Box::new(move || super::writer::run_cutter(&for_cutter))) {
            Ok(cutter) => cutter,
            Err(error) => {
                let mut state = shared.state();
                (state.stopping, state.cutter_over) = (true, true);
                drop(state);
                shared.work.notify_all();
                let _ = writer.join();
                return Err(error);
            }
        };
        Ok(Self { shared, threads: Mutex::new(vec![writer, cutter]), slot, directory })
    }

    /// Claims room for a record of at most `bytes`; see [`Log::bytes_for`]. Neither waits nor enters the kernel.
    #[inline]
    pub fn claim(&self, bytes: usize) -> Result<LogClaim<'_>, Refused> {
        if self.shared.is_broken.load(Ordering::Relaxed) {
            return Err(Refused::Broken);
        }
        if self.shared.closed.load(Ordering::Relaxed) || self.shared.forks != map::fork_generation() {
            return Err(Refused::Closed);
        }
        match self.shared.ring.claim(bytes) {
            // Looked at again: either this sees that the log was closed, or the writer, which looks at the tail after
            // that, sees this claim and waits for it. Both are sequentially consistent.
            Ok(_) if self.shared.closed.load(Ordering::SeqCst) => Err(Refused::Closed),
            Ok(claim) => Ok(LogClaim { claim, forks: self.shared.forks }),
            Err(Full::Now) => Err(Refused::Full),
            Err(Full::Never) => Err(Refused::TooLarge),
        }
    }

    /// The same, waiting for room: off the path of a check.
    pub fn claim_within(&self, bytes: usize, timeout_ms: u64) -> Result<LogClaim<'_>, Refused> {
        let end = Instant::now().checked_add(Duration::from_millis(timeout_ms));
        loop {
            match self.claim(bytes) {
                Err(Refused::Full) if end.is_some_and(|end| Instant::now() < end) => {
                    self.hurry();
                    std::thread::sleep(Duration::from_millis(1));
                }
                claimed => return claimed,
            }
        }
    }

    /// In the child of a fork nothing here may be touched: the ring is the parent's, and a lock may be held for ever by
    /// a thread that the child does not have.
    fn own(&self) -> Result<(), AuditError> {
        if self.shared.forks == map::fork_generation() { Ok(()) } else { Err(AuditError::Forked) }
    }

    fn hurry(&self) {
        self.shared.state().hurry_write = true;
        self.shared.work.notify_all();
    }

    /// Bytes to claim for members and private bytes of so many bytes in all.
    #[inline]
    pub const fn bytes_for(bytes: usize) -> usize {
        Ring::bytes_for(bytes)
    }

    /// Counts an action that could not be recorded: a denial, or one that was let through all the same. The next batch
    /// has an entry that says how many there were.
    pub fn count_unlogged(&self, let_through: bool, now_ms: i64) {
        if self.own().is_ok() {
            self.shared.ring.count_unlogged(let_through, now_ms);
        }
    }

    /// Appends a record, waiting for room for at most `timeout_ms`. Returns its sequence number.
    pub fn append(&self, record: &Record<'_>, timeout_ms: u64) -> Result<u64, AuditError> {
        let claim =
            self.claim_within(LogClaim::bytes_for(record), timeout_ms).map_err(|refused| self.error(refused))?;
        let seq = claim.seq();
        if claim.publish(record) { Ok(seq) } else { Err(AuditError::unavailable("the record does not fit its claim")) }
    }

    /// Appends a record that must not be dropped and cannot wait: if there is no room it stands in line until there is.
    /// Returns its sequence number if it has one already.
    pub fn append_later(&self, record: &Record<'_>) -> Result<Option<u64>, AuditError> {
        match self.claim(LogClaim::bytes_for(record)) {
            Ok(claim) => {
                let seq = claim.seq();
                Ok(claim.publish(record).then_some(seq))
            }
            Err(Refused::Full) => {
                let mut outcomes = lock(&self.shared.outcomes);
                // Under this lock: the writer looks for the last time after the log was closed.
                if self.shared.closed.load(Ordering::SeqCst) {
                    return Err(AuditError::Closed);
                }
                if outcomes.len() >= OUTCOMES_WAITING_MAX {
                    let message = format!("{OUTCOMES_WAITING_MAX} outcomes wait for room in the log already");
                    return Err(AuditError::unavailable(message));
                }
                outcomes.push_back(Waiting::new(record));
                Ok(None)
            }
            Err(refused) => Err(self.error(refused)),
        }
    }

    /// The error of a refusal, with what is behind it.
    pub fn error(&self, refused: Refused) -> AuditError {
        match refused {
            Refused::Closed if self.shared.forks != map::fork_generation() => AuditError::Forked,
            Refused::Closed => AuditError::Closed,
            _ => AuditError::unavailable(self.reason(refused)),
        }
    }

    /// Why nothing can be recorded, in a sentence.
    pub fn reason(&self, refused: Refused) -> String {
        let ring = self.shared.ring.bytes() >> 10;
        match refused {
            Refused::Broken => self.shared.broken().unwrap_or_else(|| "the log is broken".to_owned()),
            Refused::TooLarge => {
                let most = self.shared.ring.record_bytes_max() >> 10;
                format!(
                    "the record is larger than the {most} KiB that the log's ring of {ring} KiB takes; a ring of 16 MiB takes \
                     the most"
                )
            }
            Refused::Closed => "the log was closed".to_owned(),
            Refused::Full => match &self.shared.state().write_failure {
                Some(failure) => format!("the log's ring of {ring} KiB is full, because {failure}"),
                None => {
                    format!("the log's ring of {ring} KiB is full: more is recorded than the disk takes; try again")
                }
            },
        }
    }

    /// The last sequence number that is on the disk.
    #[inline]
    pub fn durable_seq(&self) -> u64 {
        self.shared.durable_seq.load(Ordering::Acquire)
    }

    /// The last sequence number that a checkpoint covers.
    #[inline]
    pub fn checkpoint_seq(&self) -> u64 {
        self.shared.checkpoint_seq.load(Ordering::Acquire)
    }

    /// Whether a record is as certain as that. Never waits.
    ///
    /// # Errors
    /// The log has given up, so it never will be.
    pub fn is_durable(&self, seq: u64, class: Durability) -> Result<bool, AuditError> {
        let reached = || match class {
            Durability::Group => true,
            Durability::Sync => self.durable_seq() >= seq,
            Durability::Checkpointed => self.checkpoint_seq() >= seq,
        };
        if reached() {
            return Ok(true);
        }
        if self.shared.forks != map::fork_generation() {
            return Err(AuditError::Forked);
        }
        if let Some(why) = self.shared.broken() {
            return Err(AuditError::unavailable(why));
        }
        let over = self.shared.state().is_over(class);
        // The last write, or the last checkpoint, may have come in between.
        match reached() {
            false if over => Err(AuditError::Closed),
            reached => Ok(reached),
        }
    }

    /// Asks for a record to become that certain soon, without waiting.
    pub fn request(&self, class: Durability) {
        if self.own().is_err() {
            return;
        }
        let mut state = self.shared.state();
        state.hurry_write |= class >= Durability::Sync;
        state.hurry_checkpoint |= class >= Durability::Checkpointed;
        drop(state);
        self.shared.work.notify_all();
    }

    /// Waits until a record is as certain as that. Many wait for one write.
    pub fn wait(&self, seq: u64, class: Durability, timeout_ms: u64) -> Result<(), AuditError> {
        let end = Instant::now().checked_add(Duration::from_millis(timeout_ms));
        while !self.is_durable(seq, class)? {
            self.request(class);
            let state = self.shared.state();
            let reached = match class {
                Durability::Group => true,
                Durability::Sync => state.durable_seq >= seq,
                Durability::Checkpointed => state.checkpoint_seq >= seq,
            };
            if reached || state.is_over(class) {
                continue;
            }
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                let failure = state.write_failure.as_ref().or(state.cut_failure.as_ref());
                let why = failure.map_or_else(|| "the disk is slow".to_owned(), Clone::clone);
                return Err(AuditError::unavailable(format!(
                    "the record is not on the disk after {timeout_ms} ms: {why}"
                )));
            }
            drop(self.shared.done.wait_timeout(state, left.min(Duration::from_millis(100))));
        }
        Ok(())
    }

    /// Waits until everything that was published before is on the disk. Returns how many entries are.
    pub fn flush(&self, timeout_ms: u64) -> Result<u64, AuditError> {
        self.flush_epoch(timeout_ms).map(|(_, size)| size)
    }

    /// The same, with the epoch whose entries they are.
    fn flush_epoch(&self, timeout_ms: u64) -> Result<(u64, u64), AuditError> {
        self.own()?;
        let end = Instant::now().checked_add(Duration::from_millis(timeout_ms));
        loop {
            let waiting = !lock(&self.shared.outcomes).is_empty();
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            self.wait(self.shared.ring.next_seq().saturating_sub(1), Durability::Sync, left_ms)?;
            if !waiting {
                let state = self.shared.state();
                return Ok((state.epoch, state.durable_size));
            }
            if left.is_zero() {
                let message = format!("outcomes still wait for room in the log after {timeout_ms} ms");
                return Err(AuditError::unavailable(message));
            }
        }
    }

    /// Waits until a checkpoint covers everything that was published before. Returns its size.
    pub fn checkpoint(&self, timeout_ms: u64) -> Result<u64, AuditError> {
        let end = Instant::now().checked_add(Duration::from_millis(timeout_ms));
        let (epoch, size) = self.flush_epoch(timeout_ms)?;
        let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
        let left_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        if self.shared.state().epoch != epoch || self.wait_signed(size, left_ms)? {
            return Ok(self.shared.state().checkpoint_size);
        }
        let why = self.shared.state().cut_failure.clone().unwrap_or_else(|| "the disk is slow".to_owned());
        Err(AuditError::unavailable(format!("no checkpoint after {timeout_ms} ms: {why}")))
    }

    /// Waits until a checkpoint covers so many entries of this epoch; false if none does when the time is over.
    pub fn wait_signed(&self, size: u64, timeout_ms: u64) -> Result<bool, AuditError> {
        let end = Instant::now().checked_add(Duration::from_millis(timeout_ms));
        let mut state = self.shared.state();
        let epoch = state.epoch;
        // An epoch that is over was signed as a whole.
        while state.epoch == epoch && state.checkpoint_size < size {
            if let Some(why) = self.shared.broken() {
                return Err(AuditError::unavailable(why));
            }
            if state.cutter_over {
                return Err(AuditError::Closed);
            }
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(false);
            }
            state.hurry_checkpoint = true;
            self.shared.work.notify_all();
            let wait = left.min(Duration::from_millis(100));
            state = self.shared.done.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(true)
    }

    /// Erases the payload and the salt of an entry and records that. The entry stays, and every proof of it.
    pub fn erase(&self, index: u64, timeout_ms: u64) -> Result<(), AuditError> {
        self.ask(Request::Erase(index), timeout_ms)
    }

    /// Ends this epoch and begins the next, whose first entry names the old origin, size and root.
    pub fn rotate(&self, timeout_ms: u64) -> Result<(), AuditError> {
        self.ask(Request::Rotate, timeout_ms)
    }

    fn ask(&self, request: Request, timeout_ms: u64) -> Result<(), AuditError> {
        if self.shared.forks != map::fork_generation() {
            return Err(AuditError::Forked);
        }
        let end = Instant::now().checked_add(Duration::from_millis(timeout_ms));
        let mut state = self.shared.state();
        if state.stopping {
            return Err(AuditError::Closed);
        }
        state.asked = state.asked.saturating_add(1);
        let number = state.asked;
        state.requests.push_back((number, request));
        self.shared.work.notify_all();
        loop {
            if let Some(at) = state.answers.iter().position(|(answered, _)| *answered == number) {
                let answer = state.answers.remove(at).map_or(Ok(()), |(_, answer)| answer);
                return answer.map_err(AuditError::invalid);
            }
            let left = end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() || state.writer_over {
                state.requests.retain(|(asked, _)| *asked != number);
                let why = state.write_failure.clone().unwrap_or_else(|| "the log is busy".to_owned());
                return Err(AuditError::unavailable(format!("not done after {timeout_ms} ms: {why}")));
            }
            let wait = left.min(Duration::from_millis(100));
            state = self.shared.done.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A descriptor that becomes readable whenever more is durable. Read eight bytes to rest it.
    pub fn watch(&self) -> Result<Arc<OwnedFd>, AuditError> {
        use rustix::event::{EventfdFlags, eventfd};
        self.own()?;
        let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let made = made.map_err(|error| AuditError::io("cannot watch", self.directory.clone())(error.into()))?;
        let watcher = Arc::new(made);
        lock(&self.shared.watchers).push(Arc::downgrade(&watcher));
        Ok(watcher)
    }

    /// How it is doing.
    pub fn health(&self) -> Health {
        let ring = &self.shared.ring;
        let Some(state) = self.state_or_none() else { return self.health_of_parent() };
        let failure = state.write_failure.clone().or_else(|| state.cut_failure.clone());
        Health {
            origin: state.origin.clone(),
            epoch: state.epoch,
            durable_size: state.durable_size,
            durable_seq: state.durable_seq,
            checkpoint_size: state.checkpoint_size,
            next_seq: ring.next_seq(),
            ring_bytes: (ring.used_bytes(), ring.bytes()),
            sync_max_us: state.sync_max_us,
            failure: self.shared.broken().or(failure),
            exported: self.shared.options.exported,
        }
    }

    fn state_or_none(&self) -> Option<MutexGuard<'_, State>> {
        self.own().is_ok().then(|| self.shared.state())
    }

    /// What the child of a fork may say.
    fn health_of_parent(&self) -> Health {
        let ring = &self.shared.ring;
        Health {
            origin: self.shared.options.origin.clone(),
            epoch: 0,
            durable_size: 0,
            durable_seq: 0,
            checkpoint_size: 0,
            next_seq: 0,
            ring_bytes: (ring.used_bytes(), ring.bytes()),
            sync_max_us: 0,
            failure: Some(AuditError::Forked.to_string()),
            exported: self.shared.options.exported,
        }
    }

    /// The instance whose sequence numbers these are.
    pub fn instance(&self) -> u64 {
        self.shared.options.instance
    }

    /// The verifier key of this epoch.
    pub fn verifier_key(&self) -> String {
        verifier_key(&self.shared.state().origin, &*self.shared.signer)
    }

    /// The log's folder.
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// The directory of all logs of the host's processes, or the log's own folder if it stands alone.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Which of the directory's logs it is.
    pub const fn slot(&self) -> Option<usize> {
        self.slot
    }

    /// Keeps a document beside the logs of the directory, under its digest, for whoever has to read an entry that names
    /// it. One that is there is kept as it is.
    pub fn keep(&self, document: &[u8]) -> Result<super::tree::Hash, AuditError> {
        use base64::Engine as _;
        let hash = super::tree::digest(document);
        let folder = self.directory.join("bundle");
        let path = folder.join(format!("{}.json", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(hash)));
        if std::fs::read(&path).is_ok_and(|known| known == document) {
            return Ok(hash);
        }
        let disk = &self.shared.options.disk;
        disk.create_folder(&folder, 0o700).map_err(AuditError::io("cannot make", folder))?;
        disk.write_shared(&path, document, 0o600).map_err(AuditError::io("cannot write", path))?;
        Ok(hash)
    }

    /// Has something done once a second by the log's own thread, until it says false.
    pub fn follow(&self, work: Follow) {
        lock(&self.shared.followed).push(work);
    }

    /// A number that the log keeps for its owner, also after its death.
    pub fn cursor(&self) -> u64 {
        self.shared.ring.header().cursor.load(crate::sync::Ordering::Relaxed)
    }

    /// Sets that number.
    pub fn set_cursor(&self, value: u64) {
        if self.own().is_ok() {
            self.shared.ring.header().cursor.store(value, crate::sync::Ordering::Relaxed);
        }
    }

    /// Whether it takes no records any more.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Relaxed) || self.shared.forks != map::fork_generation()
    }

    /// Takes no more records, brings everything to the disk, signs the last checkpoint and lets go of the folder.
    ///
    /// # Errors
    /// The disk refuses, or the log has given up: what is in the ring is recovered by the next opening.
    pub fn close(&self) -> Result<(), AuditError> {
        if self.shared.forks != map::fork_generation() {
            return Ok(());
        }
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.state().stopping = true;
        self.shared.work.notify_all();
        // Held while they end: whoever closes at the same time waits too, and does not let go of the folder before.
        let mut threads = lock(&self.threads);
        let own = std::thread::current().id();
        for thread in threads.drain(..) {
            if thread.thread().id() != own {
                let _ = thread.join();
            }
        }
        // Who still has a claim would write it into the ring of the next owner. Then the folder is let go of when the
        // last one is gone, with the log.
        if self.shared.ring.all_published() {
            drop(lock(&self.shared.lock).take());
        }
        drop(threads);
        let broken = self.shared.broken();
        let state = self.shared.state();
        match broken.as_ref().or(state.write_failure.as_ref()).or(state.cut_failure.as_ref()) {
            Some(why) => Err(AuditError::unavailable(format!("closed with records that are not on the disk: {why}"))),
            None => Ok(()),
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if self.shared.forks == map::fork_generation() {
            let _ = self.close();
        } else {
            // The threads are the parent's; joining or detaching them from here would touch what is not there.
            let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
            threads.drain(..).for_each(std::mem::forget);
        }
    }
}

/// Why nothing can be recorded now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The ring is full
    Full,
    /// The record never fits
    TooLarge,
    /// The log was closed, or is a parent's
    Closed,
    /// The log has given up
    Broken,
}

/// Room for one record of a log. Dropped unpublished it is given up.
#[derive(Debug)]
#[must_use = "a claim that is dropped is an abandoned record"]
pub struct LogClaim<'l> {
    claim: Claim<'l>,
    forks: u64,
}

impl LogClaim<'_> {
    /// Bytes to claim for a record.
    pub fn bytes_for(record: &Record<'_>) -> usize {
        let bytes = record.pieces().pieces.iter().fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        Ring::bytes_for(bytes)
    }

    /// The record's sequence number.
    #[inline]
    pub fn seq(&self) -> u64 {
        self.claim.seq()
    }

    /// Hands the record to the writer; false if it does not fit what was claimed, or in the child of a fork.
    #[inline]
    pub fn publish(mut self, record: &Record<'_>) -> bool {
        self.try_publish(record)
    }

    /// The same, after which a smaller record can be tried where this one did not fit.
    #[inline]
    pub(crate) fn try_publish(&mut self, record: &Record<'_>) -> bool {
        self.forks == map::fork_generation() && self.claim.publish(&record.pieces())
    }
}

impl Drop for LogClaim<'_> {
    #[inline]
    fn drop(&mut self) {
        // The parent has the same claim, and publishes it or gives it up.
        if self.forks != map::fork_generation() {
            self.claim.forget();
        }
    }
}
