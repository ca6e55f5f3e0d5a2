//! The handle of a control file: every operation of the room, with its lock and its disk.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use arc_swap::{ArcSwap, Guard};

use super::approvals::{
    Answer, Answered, ApprovalId, ApprovalRow, Approvals, Grant, Refused as ApprovalRefused, Standing,
};
use super::counters::{self, Counters, CountersRow};
use super::error::ControlError;
use super::labels::{Dictionary, Refused as LabelRefused};
use super::layout::{GateSlot, PLACES};
use super::revocations::{Board, Change, Failure, Revocations, Target, Wish};
use super::sessions::{SessionRef, Sessions};
use super::store::{self, HEADERS, LOCK_CHANGE, LOCK_SESSIONS, Memory, Store, gate_lock, io_error};
use crate::limits::{
    CONTROL_APPROVALS_MAX, CONTROL_GATES_MAX, CONTROL_LOCK_TRIES, CONTROL_REVOCATIONS_MAX, CONTROL_SESSIONS_MAX,
    SESSION_LABELS_MAX, SESSION_TEXT_BYTES_MAX,
};
use crate::map::{self, Mapping, Table};
use crate::sync::AtomicU32;
use crate::sync::Ordering::Relaxed;

/// Why everything is revoked in a file that nobody can find any more.
const LOST: &str =
    "the file of revocations was moved, replaced or overwritten, so nobody can reach this gate; open it anew";
/// Tries to get the lock of who takes slots from sessions: it is held for less than a microsecond.
const SESSIONS_LOCK_TRIES: u32 = 100;

/// What the gates of one host share, or those of one process.
///
/// # Concurrency
/// Every method may be called from any thread of any process that has the file open. In the child of a fork an
/// inherited handle reads, but must not be used: [`Self::is_own`].
#[derive(Debug)]
pub struct Control {
    store: Option<Store>,
    generation: u64,
    salt: [u64; 2],
    board: Board,
    /// The newest table of revocations that somebody here has read
    revocations: ArcSwap<Revocations>,
    sessions: Sessions,
    dictionary: Dictionary,
    labels: ArcSwap<Vec<Box<str>>>,
    approvals: Approvals,
    /// Grants that this process has used: as many as people have given it
    used: Mutex<HashSet<ApprovalId>>,
    gates: Table<GateSlot>,
    retired: Table<GateSlot>,
    mapping: Arc<Mapping>,
    /// One thread of this process changes something
    changing: Mutex<()>,
    /// One thread of this process takes a slot from a session
    taking: Mutex<()>,
    /// Gates of this process: the kernel's locks do not keep threads of one process apart
    joined: Mutex<Vec<bool>>,
    /// The name leads elsewhere, and everything is revoked for it
    lost: AtomicBool,
    /// The newest state of the revocations that was looked at: they only go on
    newest_word: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    /// Memory of this process: nothing is shared, nothing survives.
    pub fn anonymous() -> Result<Arc<Self>, ControlError> {
        Self::assemble(None, &store::anonymous()?)
    }

    /// Opens the file, and makes it if there is none. `volatile`: it may lie in memory.
    ///
    /// A table of revocations that does not add up is in force as "everything" from here on, in every process, and so
    /// is a revocation whose writer was killed, or the power cut, before it was in force.
    pub fn open(path: &Path, volatile: bool) -> Result<Arc<Self>, ControlError> {
        let (store, memory) = store::open(path, volatile)?;
        let control = Self::assemble(Some(store), &memory)?;
        let table = control.board.read();
        if (table.is_damaged() && table.word() & 1 == 0) || control.board.has_unpublished(table.generation()) {
            match control.change(&Wish::Settle) {
                // In force is enough: the disk has what it had.
                Ok(_) | Err(ControlError::NotDurable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(control)
    }

    fn assemble(store: Option<Store>, memory: &Memory) -> Result<Arc<Self>, ControlError> {
        let shown = || store.as_ref().map_or_else(|| "memory".to_owned(), |store| store.path.display().to_string());
        let salt = memory.salt();
        let boot = map::boot_id().map_err(|error| io_error(Path::new("boot_id"), "read the boot id", error))?;
        let parts = Parts::carve(&memory.mapping, boot)
            .ok_or_else(|| ControlError::Corrupt { file: shown(), message: "its tables do not fit".to_owned() })?;
        let labels = parts.dictionary.read().map_err(|label| ControlError::Corrupt {
            file: shown(),
            message: format!("the name of label {label} is damaged, so nobody knows what it stands for"),
        })?;
        let Parts { board, sessions, dictionary, approvals, gates, retired } = parts;
        let revocations = ArcSwap::from_pointee(Revocations::default());
        Ok(Arc::new(Self {
            store,
            generation: map::fork_generation(),
            salt,
            board,
            revocations,
            sessions,
            dictionary,
            labels: ArcSwap::from_pointee(labels),
            approvals,
            gates,
            retired,
            mapping: Arc::clone(&memory.mapping),
            changing: Mutex::new(()),
            used: Mutex::new(HashSet::new()),
            taking: Mutex::new(()),
            joined: Mutex::new(vec![false; CONTROL_GATES_MAX]),
            lost: AtomicBool::new(false),
            newest_word: AtomicU64::new(0),
        }))
    }

    /// The file; `None` for memory.
    pub fn path(&self) -> Option<&Path> {
        self.store.as_ref().map(|store| store.path.as_path())
    }

    /// Whether this is the process that opened it, and not a child of its fork.
    #[inline]
    pub fn is_own(&self) -> bool {
        self.generation == map::fork_generation()
    }

    /// Whether the name still leads to the file that is open here. If not, others may see another one.
    ///
    /// # Cost
    /// Two system calls.
    pub fn is_at_its_path(&self) -> bool {
        self.store.as_ref().is_none_or(Store::is_at_its_path)
    }

    /// Revokes everything, in the file that is open here, if its name no longer leads to it, or somebody has written
    /// over it: whoever revokes would write to another file, or has seen the last revocation wiped away. There is no
    /// way back but opening it anew. Gates look once a second.
    ///
    /// A file that was cut short cannot be looked at: the kernel ends every process that has it mapped (`SIGBUS`).
    ///
    /// # Cost
    /// Two system calls; once the name is lost, none.
    pub fn check_name(&self, now_ms: i64) {
        let Some(store) = self.store.as_ref().filter(|_| self.is_own() && !self.lost.load(Relaxed)) else { return };
        let word = self.word();
        let seen = self.newest_word.fetch_max(word, Relaxed);
        if store.is_at_its_path() && word >= seen && store.is_whole() {
            return;
        }
        let (target, by) = (Target::everything(), "tollkeeper");
        let wish = Wish::Revoke { target: &target, reason: LOST, by, at_ms: now_ms };
        // Nothing to flush: the file has no name, or is not where the next one looks. Who cannot get the lock tries
        // again.
        let changed = store.locks.exclusively(LOCK_CHANGE, CONTROL_LOCK_TRIES, || self.board.change(&wish, &|| Ok(())));
        if matches!(changed, Ok(Ok(_))) {
            self.lost.store(true, Relaxed);
        }
    }

    fn shown(&self) -> String {
        self.store.as_ref().map_or_else(|| "memory".to_owned(), |store| store.path.display().to_string())
    }

    /// Runs `work` while this thread alone, of all processes, changes anything.
    fn exclusively<T>(&self, work: impl FnOnce() -> T) -> Result<T, ControlError> {
        if !self.is_own() {
            return Err(ControlError::Forked);
        }
        let Some(store) = &self.store else {
            let guard = lock(&self.changing);
            let result = work();
            drop(guard);
            return Ok(result);
        };
        // Who changes a file that nobody else can find would believe that everybody sees it.
        if !store.is_at_its_path() {
            return Err(ControlError::Replaced { file: self.shown() });
        }
        store.locks.exclusively(LOCK_CHANGE, CONTROL_LOCK_TRIES, work).map_err(|error| {
            if error.kind() == std::io::ErrorKind::WouldBlock {
                ControlError::Busy { file: self.shown(), waited_ms: CONTROL_LOCK_TRIES.into() }
            } else {
                io_error(&store.path, "lock", error)
            }
        })
    }

    fn flush(&self) -> std::io::Result<()> {
        self.store.as_ref().map_or(Ok(()), Store::flush)
    }
}

/// All tables of a control file.
struct Parts {
    board: Board,
    sessions: Sessions,
    dictionary: Dictionary,
    approvals: Approvals,
    gates: Table<GateSlot>,
    retired: Table<GateSlot>,
}

impl Parts {
    fn carve(mapping: &Arc<Mapping>, boot: [u64; 2]) -> Option<Self> {
        let [revocations, sessions, approvals] = HEADERS;
        Some(Self {
            board: Board {
                header: mapping.table(revocations, 1)?,
                marks: mapping.table(PLACES.marks, CONTROL_REVOCATIONS_MAX)?,
                slots: mapping.table(PLACES.revocations, CONTROL_REVOCATIONS_MAX)?,
            },
            sessions: Sessions {
                header: mapping.table(sessions, 1)?,
                slots: mapping.table(PLACES.sessions, CONTROL_SESSIONS_MAX)?,
            },
            dictionary: Dictionary {
                header: mapping.table(sessions, 1)?,
                slots: mapping.table(PLACES.labels, SESSION_LABELS_MAX)?,
            },
            approvals: Approvals {
                header: mapping.table(approvals, 1)?,
                slots: mapping.table(PLACES.approvals, CONTROL_APPROVALS_MAX)?,
                boot,
            },
            gates: mapping.table(PLACES.gates, CONTROL_GATES_MAX)?,
            retired: mapping.table(PLACES.retired, 1)?,
        })
    }
}

/// Revocations.
impl Control {
    /// One load: 0 if nothing was ever revoked; the lowest bit is set while anything is in force; the rest is the
    /// generation, which only grows. An acquire load: who sees a generation sees its table.
    #[inline]
    pub fn word(&self) -> u64 {
        self.board.word()
    }

    /// The table of the current generation. Every revocation that had returned before this call is in it.
    ///
    /// # Cost
    /// A load and a comparison; whoever finds it changed reads it anew: 64 KiB, and the texts of what is in force. No
    /// lock, no I/O.
    #[inline]
    pub fn revocations(&self) -> Guard<Arc<Revocations>> {
        let table = self.revocations.load();
        if table.word() == self.word() { table } else { self.read_revocations() }
    }

    #[cold]
    fn read_revocations(&self) -> Guard<Arc<Revocations>> {
        let table = Arc::new(self.board.read());
        // Somebody else may put an older one after it: who finds that reads anew.
        self.revocations.store(Arc::clone(&table));
        Guard::from_inner(table)
    }

    /// Revokes. When it has returned, every later [`Self::word`] in any process sees it, also after a power cut.
    ///
    /// # Errors
    /// [`ControlError::NotDurable`] if it is in force and the disk does not know it; with any other error nothing has
    /// changed.
    pub fn revoke(&self, target: &Target, reason: &str, by: &str, now_ms: i64) -> Result<Change, ControlError> {
        self.change(&Wish::Revoke { target, reason, by, at_ms: now_ms })
    }

    /// Takes a revocation back. Everything also clears a damaged table: what could be read stays revoked.
    pub fn restore(&self, target: &Target) -> Result<Change, ControlError> {
        self.change(&Wish::Restore { target })
    }

    fn change(&self, wish: &Wish<'_>) -> Result<Change, ControlError> {
        wish.check()?;
        let changed = self.exclusively(|| self.board.change(wish, &|| self.flush()))?;
        changed.map_err(|failure| match failure {
            Failure::Full => ControlError::Full { what: "revocation", limit: CONTROL_REVOCATIONS_MAX },
            Failure::Before(source) => ControlError::Io { file: self.shown(), action: "write", source },
            Failure::After(source) => ControlError::NotDurable { file: self.shown(), source },
        })
    }
}

/// Sessions and their labels.
impl Control {
    /// The bits of these labels. A label that is new gets a bit for good, which waits for the lock and the disk.
    pub fn labels_mask(&self, names: &[&str]) -> Result<u64, ControlError> {
        if let Some(mask) = mask_of(&self.labels(), names) {
            return Ok(mask);
        }
        for name in names {
            if name.is_empty() || name.len() > SESSION_TEXT_BYTES_MAX {
                let (bytes, limit) = (name.len(), SESSION_TEXT_BYTES_MAX);
                return Err(ControlError::Text { what: "the label", bytes, least: 1, limit });
            }
        }
        let damaged = |label: usize| ControlError::Corrupt {
            file: self.shown(),
            message: format!("the name of label {label} is damaged, so nobody knows what it stands for"),
        };
        self.exclusively(|| {
            let known = self.dictionary.read().map_err(damaged)?;
            self.dictionary.add(&known, names, &|| self.flush()).map_err(|refused| match refused {
                LabelRefused::Full => ControlError::Full { what: "label", limit: SESSION_LABELS_MAX },
                LabelRefused::Flush(source) => ControlError::Io { file: self.shown(), action: "write", source },
            })?;
            let all = self.dictionary.read().map_err(damaged)?;
            mask_of(&all, names).ok_or(ControlError::Full { what: "label", limit: SESSION_LABELS_MAX })
        })?
    }

    /// The names of all labels, by their bit.
    pub fn labels(&self) -> Arc<Vec<Box<str>>> {
        let known = self.labels.load_full();
        if known.len() == self.dictionary.len() {
            return known;
        }
        match self.dictionary.read() {
            Ok(names) => {
                let names = Arc::new(names);
                self.labels.store(Arc::clone(&names));
                names
            }
            // Damaged while it is open: what was read before is as good as it gets.
            Err(_) => known,
        }
    }

    /// The name of a label's bit.
    pub fn label_name(&self, bit: u32) -> Option<Box<str>> {
        self.labels().get(bit as usize).cloned()
    }

    /// The names of the labels in a mask. A bit without a name, which only a damaged file has, is shown as its number.
    pub fn label_names(&self, mask: u64) -> Vec<Box<str>> {
        let names = self.labels();
        let bits = (0..u64::BITS).filter(|bit| mask & (1 << bit) != 0);
        bits.map(|bit| names.get(bit as usize).cloned().unwrap_or_else(|| format!("label-{bit}").into())).collect()
    }

    /// The session with this id, for as long as this file is open.
    pub fn session(&self, id: &str) -> SessionRef {
        SessionRef::new(self.salt, id)
    }

    /// The labels of a session. Keeps them for another 30 days.
    ///
    /// # Cost
    /// Two or three loads; a search of at most 64 places if sessions were added and this one was not known.
    #[inline]
    pub fn seen(&self, session: &SessionRef, now_ms: i64) -> u64 {
        self.sessions.seen(session, now_ms)
    }

    /// Adds labels. When it returns, every later [`Self::seen`] of the session in any process has them.
    pub fn add(&self, session: &SessionRef, mask: u64, now_ms: i64) {
        self.sessions.add(session, mask, now_ms, &|work| self.taking_a_slot(work));
    }

    /// Labels for which there was no room: every session without labels of its own has them.
    pub fn overflow(&self) -> u64 {
        self.sessions.overflow()
    }

    /// Sessions that have a slot, of [`CONTROL_SESSIONS_MAX`]. Looks at all of them.
    pub fn sessions(&self) -> usize {
        self.sessions.in_use()
    }

    fn taking_a_slot(&self, work: &mut dyn FnMut()) -> bool {
        for _ in 0..SESSIONS_LOCK_TRIES {
            let guard = match self.taking.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    crate::sync::yield_now();
                    continue;
                }
            };
            let Some(store) = &self.store else {
                work();
                return true;
            };
            // An error, in a child of a fork for one, is as good as a lock that somebody else has.
            if matches!(store.locks.try_lock(LOCK_SESSIONS), Ok(true)) {
                work();
                let _ = store.locks.unlock(LOCK_SESSIONS);
                return true;
            }
            drop(guard);
            crate::sync::yield_now();
        }
        false
    }
}

fn mask_of(known: &[Box<str>], names: &[&str]) -> Option<u64> {
    names.iter().try_fold(0, |mask, name| {
        let bit = known.iter().position(|other| **other == **name)?;
        Some(mask | 1_u64.checked_shl(u32::try_from(bit).ok()?)?)
    })
}

/// Approvals.
impl Control {
    /// Asks whether an action, named by its digest, may go ahead. `id` is random; the question is void at `expires_ms`.
    pub fn ask(&self, id: ApprovalId, digest: &[u8; 32], expires_ms: i64, now_ms: i64) -> Result<(), ControlError> {
        self.exclusively(|| self.approvals.ask(id, digest, expires_ms, now_ms))?.map_err(|error| refusal(id, &error))
    }

    /// Answers. A grant is void at `expires_ms`, and at the next start of the host; it is in the file before this
    /// returns, and used once.
    pub fn answer(
        &self,
        id: ApprovalId,
        granted: bool,
        expires_ms: i64,
        signature: Option<[u8; 64]>,
        now_ms: i64,
    ) -> Result<Answered, ControlError> {
        let answer = Answer { id, granted, expires_ms, signature };
        let answered = self.exclusively(|| {
            let answered = self.approvals.answer(&answer, now_ms).map_err(|error| refusal(id, &error))?;
            self.flush().map_err(|source| ControlError::NotDurable { file: self.shown(), source })?;
            Ok(answered)
        });
        answered?
    }

    /// How it stands with an action: by the newest question about it. No lock, no allocation.
    pub fn standing(&self, digest: &[u8; 32], now_ms: i64) -> Standing {
        self.approvals.standing(digest, now_ms)
    }

    /// Uses a grant. Exactly one caller of all processes gets `true`.
    ///
    /// This process also remembers what it has used itself: older bytes of the file, put back, revive no grant here.
    pub fn consume(&self, grant: &Grant, now_ms: i64) -> bool {
        self.approvals.consume(grant, now_ms) && lock(&self.used).insert(grant.id)
    }

    /// All questions that are remembered, the oldest first.
    pub fn approvals(&self, now_ms: i64) -> Vec<ApprovalRow> {
        self.approvals.rows(now_ms)
    }

    /// Changes with every question, answer and use.
    pub fn approvals_word(&self) -> &AtomicU32 {
        self.approvals.changes()
    }

    /// Waits until [`Self::approvals_word`] is no longer `seen`, or the time is over.
    pub fn wait_approvals(&self, seen: u32, timeout_ms: u64) {
        map::wait_on(self.approvals_word(), seen, timeout_ms);
    }
}

fn refusal(id: ApprovalId, refused: &ApprovalRefused) -> ControlError {
    match refused {
        ApprovalRefused::Full => ControlError::Full { what: "approval", limit: CONTROL_APPROVALS_MAX },
        ApprovalRefused::Is(state) => ControlError::Approval { id: id.to_string(), state },
    }
}

/// Counters.
impl Control {
    /// A place to count for one gate, left when it is dropped. Where all are taken it counts for itself only.
    pub fn join(self: &Arc<Self>, now_ms: i64) -> Result<Counters, ControlError> {
        if !self.is_own() {
            return Err(ControlError::Forked);
        }
        let mut joined = lock(&self.joined);
        for (index, taken) in joined.iter_mut().enumerate() {
            if *taken || !self.take_gate(index)? {
                continue;
            }
            let Some(slot) = self.gates.get(index) else { continue };
            if let Some(retired) = self.retired.first() {
                counters::retire(slot, retired);
            }
            let table = self.mapping.table(PLACES.gates, CONTROL_GATES_MAX);
            let Some(table) = table else { break };
            *taken = true;
            drop(joined);
            return Ok(Counters::new(table, index, Some(Arc::clone(self)), now_ms));
        }
        drop(joined);
        let alone = Mapping::anonymous(size_of::<GateSlot>()).ok().and_then(|memory| memory.table(0, 1));
        let full = ControlError::Full { what: "gate", limit: CONTROL_GATES_MAX };
        Ok(Counters::new(alone.ok_or(full)?, 0, None, now_ms))
    }

    fn take_gate(&self, index: usize) -> Result<bool, ControlError> {
        let Some(store) = &self.store else { return Ok(true) };
        store.locks.try_lock(gate_lock(index)).map_err(|error| io_error(&store.path, "lock", error))
    }

    pub(super) fn leave(&self, index: usize) {
        let mut joined = lock(&self.joined);
        if let (Some(slot), Some(retired), Some(taken)) =
            (self.gates.get(index), self.retired.first(), joined.get_mut(index))
        {
            counters::retire(slot, retired);
            *taken = false;
            if let Some(store) = &self.store {
                let _ = store.locks.unlock(gate_lock(index));
            }
        }
        drop(joined);
    }

    /// Every gate that counts, and those that died and whose place nobody has taken since.
    pub fn gates(&self) -> Vec<CountersRow> {
        let joined = lock(&self.joined);
        let slots = self.gates.iter().enumerate();
        let named = slots.filter(|(_, slot)| slot.pid.load(Relaxed) != 0);
        named
            .map(|(index, slot)| {
                let own = self.is_own() && joined.get(index).is_some_and(|taken| *taken);
                let alive = own
                    || self.store.as_ref().is_some_and(|store| {
                        // Where nobody can tell, it lives.
                        store.locks.is_locked_elsewhere(gate_lock(index)).unwrap_or(true)
                    });
                counters::row(slot, alive)
            })
            .collect()
    }

    /// The sum of all gates that are gone.
    pub fn retired(&self) -> CountersRow {
        let none = GateSlot::default();
        counters::row(self.retired.first().unwrap_or(&none), false)
    }
}
