//! Memory that processes share, and the kernel's locks that tell whether they live. The one file of the core with
//! `unsafe` in it.
//!
//! A [`Mapping`] is a region of a file, or of anonymous memory, that is carved into [`Table`]s of atomics. Nothing else
//! is ever read from or written to it through a reference, so other processes may change it at any time: each access
//! is an atomic one, and any bit pattern is a valid value. [`LockFile`] holds locks on single bytes of a file
//! (`F_OFD_SETLK`): the kernel releases them when the process dies, however it dies, and they mean the same in every
//! PID namespace. A child of `fork` would keep its parent's locks alive, so it gives them up before it runs anything.
//!
//! It refuses to grow or shrink a mapped file: the file has its full size, with blocks on disk, before it is mapped. Who
//! truncates it while it is mapped takes the signal that the kernel sends for it.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

#[cfg(not(loom))]
use memmap2::MmapRaw;

use crate::audit::ring::{RingHeader, Tag, Word};
use crate::budget::layout::{Durable, Epoch, EventEntry, Header, NodeEntry, Owner, Period, Slot, Tally};
use crate::gate::control::layout::{
    ApprovalSlot, ApprovalsHeader, ControlHeader, GateSlot, LabelSlot, Mark, RevocationSlot, RevocationsHeader,
    SessionSlot, SessionsHeader,
};

/// Types that a mapping can be carved into.
///
/// # Safety
/// Every field is an integer atomic (or an array of such), so any bit pattern is a value, the type needs no drop, and
/// concurrent writes by other processes are atomic accesses to the same words.
#[expect(unsafe_code, reason = "only this file may say which types are nothing but atomics")]
pub unsafe trait Atoms: Sync {}

macro_rules! atoms {
    ($($type:ty),*) => {
        $(
            #[expect(unsafe_code, reason = "see the trait")]
            // SAFETY: `budget/layout.rs`, `audit/ring.rs` and `gate/control/layout.rs` build this type of `AtomicU32`,
            // `AtomicU64` and `AtomicI64` only, `repr(C)` or transparent.
            unsafe impl Atoms for $type {}
        )*
    };
}
atoms!(Durable, Epoch, EventEntry, Header, NodeEntry, Owner, Period, RingHeader, Slot, Tag, Tally, Word);
atoms!(ApprovalSlot, ApprovalsHeader, ControlHeader, GateSlot, LabelSlot, Mark, RevocationSlot, RevocationsHeader);
atoms!(SessionSlot, SessionsHeader);

/// A region of memory, shared or not, that lives as long as a table of it.
#[cfg(not(loom))]
#[derive(Debug)]
pub struct Mapping {
    map: MmapRaw,
}

#[cfg(not(loom))]
impl Mapping {
    /// Memory of this process and of nobody else, all zeros. It takes up room only where it is used.
    pub fn anonymous(len_bytes: usize) -> io::Result<Arc<Self>> {
        let map = memmap2::MmapOptions::new().len(len_bytes).map_anon()?;
        Ok(Arc::new(Self { map: map.into() }))
    }

    /// The first `len_bytes` of a file, shared with every process that maps it.
    pub fn shared(file: &File, len_bytes: usize) -> io::Result<Arc<Self>> {
        if file.metadata()?.len() < len_bytes as u64 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than what it should hold"));
        }
        let map = memmap2::MmapOptions::new().len(len_bytes).map_raw(file)?;
        Ok(Arc::new(Self { map }))
    }

    /// Carves out `len` items at `offset_bytes`; `None` if they do not lie inside, or not where the type may lie.
    #[expect(unsafe_code, reason = "a mapping is bytes until somebody says what lies in them")]
    pub fn table<T: Atoms>(self: &Arc<Self>, offset_bytes: usize, len: usize) -> Option<Table<T>> {
        let end = len.checked_mul(size_of::<T>())?.checked_add(offset_bytes)?;
        if end > self.map.len() || !offset_bytes.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: `offset_bytes <= end <= len` of the mapping, so the pointer stays inside of it (or one past its end).
        let first = unsafe { self.map.as_mut_ptr().add(offset_bytes) };
        // The mapping begins at a page, so the offset decides; a type that wants more than a page gets nothing.
        first.cast::<T>().is_aligned().then(|| Table {
            first: first.cast::<T>().cast_const(),
            len,
            _mapping: Arc::clone(self),
        })
    }

    /// Writes changed pages of a shared mapping to the disk.
    pub fn flush(&self) -> io::Result<()> {
        self.map.flush()
    }
}

/// Items in a mapping, or under the model checker in ordinary memory.
#[cfg(not(loom))]
#[derive(Debug)]
pub struct Table<T> {
    first: *const T,
    len: usize,
    /// Keeps the memory mapped
    _mapping: Arc<Mapping>,
}

#[cfg(not(loom))]
#[expect(unsafe_code, reason = "a pointer says nothing about threads")]
// SAFETY: a table gives out `&T` only, and `Atoms` makes `T: Sync`; the mapping it keeps is freed by whoever drops last.
unsafe impl<T: Atoms> Send for Table<T> {}
#[cfg(not(loom))]
#[expect(unsafe_code, reason = "a pointer says nothing about threads")]
// SAFETY: as above.
unsafe impl<T: Atoms> Sync for Table<T> {}

#[cfg(not(loom))]
impl<T: Atoms> Deref for Table<T> {
    type Target = [T];

    #[inline]
    #[expect(unsafe_code, reason = "a mapping is bytes until somebody says what lies in them")]
    fn deref(&self) -> &[T] {
        // SAFETY: `Mapping::table` has checked that `len` aligned items lie inside the mapping, which `_mapping` keeps;
        // `Atoms` promises that any bytes are values and that all access is atomic.
        unsafe { std::slice::from_raw_parts(self.first, self.len) }
    }
}

/// Items in ordinary memory, for the model checker.
#[cfg(loom)]
#[derive(Debug)]
pub struct Table<T> {
    items: Box<[T]>,
}

#[cfg(loom)]
impl<T: Default> Table<T> {
    /// Fresh items.
    pub fn in_memory(len: usize) -> Self {
        Self { items: (0..len).map(|_| T::default()).collect() }
    }
}

#[cfg(loom)]
impl<T> Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

/// Lock files that are open at once in one process.
const LOCK_FILES_MAX: usize = 256;
const NO_FILE: i32 = -1;

/// The descriptors of every open lock file, where the child of a fork finds them. This table owns them.
static LOCK_FILES: [AtomicI32; LOCK_FILES_MAX] = [const { AtomicI32::new(NO_FILE) }; LOCK_FILES_MAX];
/// Raised by one in each child of a fork. Relaxed: the child has one thread, which sees its own store, and threads it
/// starts later are ordered after it.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// Set while a descriptor is open that does not stand in the table yet, and while the process forks.
static OPENING: AtomicBool = AtomicBool::new(false);

/// Keeps other threads from forking: their child would have a descriptor that nobody closes.
struct NoForks;

impl NoForks {
    fn begin() -> Self {
        // Acquire and release as of a lock. It is held for an `open` or for a fork, so spinning is short.
        while OPENING.swap(true, Ordering::Acquire) {
            std::thread::yield_now();
        }
        Self
    }
}

impl Drop for NoForks {
    fn drop(&mut self) {
        OPENING.store(false, Ordering::Release);
    }
}

extern "C" fn before_fork() {
    std::mem::forget(NoForks::begin());
}

extern "C" fn after_fork_in_parent() {
    drop(NoForks);
}

/// A child shares its parent's open file descriptions and with them its locks: the parent would live on in its child.
extern "C" fn after_fork_in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    for place in &LOCK_FILES {
        let descriptor = place.swap(NO_FILE, Ordering::Relaxed);
        if descriptor != NO_FILE {
            close(descriptor);
        }
    }
    drop(NoForks);
}

#[expect(unsafe_code, reason = "the descriptor has no owner but the table it was taken from")]
fn close(descriptor: i32) {
    // SAFETY: the swap that took the descriptor out of the table made the caller its only owner. `close` is
    // async-signal-safe, which a fork handler needs.
    unsafe { libc::close(descriptor) };
}

/// Whether forks are noticed in this process from now on. `false` only where there is no memory for the hook.
#[expect(unsafe_code, reason = "there is no safe way to see a fork")]
pub fn watch_forks() -> bool {
    static HOOKED: OnceLock<bool> = OnceLock::new();
    *HOOKED.get_or_init(|| {
        // SAFETY: the handler runs between fork and exec in a child of a program with threads, so it must be
        // async-signal-safe: it touches lock-free atomics and calls `close`; the other two touch one such atomic. They live as long as the process, because
        // nobody unloads this code: an interpreter never unloads an extension module.
        let status =
            unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_in_parent), Some(after_fork_in_child)) };
        status == 0
    })
}

/// How many forks lie between the process that started and this one. Only counts after [`watch_forks`].
#[inline]
pub fn fork_generation() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

/// A file whose single bytes are locks, held by this process until it lets go or dies.
///
/// Apart from the mapping's own descriptor: a mapping keeps its file open, and a lock with it, in a forked child too.
#[derive(Debug)]
pub struct LockFile {
    place: usize,
    generation: u64,
    /// Threads of one process do not exclude each other by these locks.
    threads: Mutex<()>,
}

impl LockFile {
    /// Opens the same file once more, for locking: by its descriptor, because its name may lead elsewhere by now.
    pub fn open(file: &File) -> io::Result<Self> {
        if !watch_forks() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let _no_forks = NoForks::begin();
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path)?;
        let descriptor = file.into_raw_fd();
        for (place, entry) in LOCK_FILES.iter().enumerate() {
            if entry.compare_exchange(NO_FILE, descriptor, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Ok(Self { place, generation: fork_generation(), threads: Mutex::new(()) });
            }
        }
        close(descriptor);
        Err(io::Error::other(format!("{LOCK_FILES_MAX} ledgers and logs are open in this process already")))
    }

    fn descriptor(&self) -> io::Result<i32> {
        // In a child the place is empty, or another file of the child's has it.
        if self.generation != fork_generation() {
            return Err(io::Error::other("the lock belongs to the parent process"));
        }
        match LOCK_FILES.get(self.place).map_or(NO_FILE, |entry| entry.load(Ordering::Relaxed)) {
            NO_FILE => Err(io::Error::other("the lock file is closed")),
            descriptor => Ok(descriptor),
        }
    }

    /// Takes the lock of one byte if nobody else has it. Taking it twice is the same as once.
    pub fn try_lock(&self, byte: u64) -> io::Result<bool> {
        match self.command(libc::F_OFD_SETLK, libc::F_WRLCK, byte) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lets go of it.
    pub fn unlock(&self, byte: u64) -> io::Result<()> {
        self.command(libc::F_OFD_SETLK, libc::F_UNLCK, byte).map(drop)
    }

    /// Whether another process holds the lock of one byte.
    pub fn is_locked_elsewhere(&self, byte: u64) -> io::Result<bool> {
        let answer = self.command(libc::F_OFD_GETLK, libc::F_WRLCK, byte)?;
        Ok(i32::from(answer) != libc::F_UNLCK)
    }

    /// Runs `work` while this thread alone, of all processes, holds the lock of `byte`; waits for it by trying anew.
    ///
    /// # Errors
    /// `WouldBlock` once `tries` waits of a millisecond were in vain.
    pub fn exclusively<T>(&self, byte: u64, tries: u32, work: impl FnOnce() -> T) -> io::Result<T> {
        let guard = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = tries;
        while !self.try_lock(byte)? {
            left = left.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let result = work();
        let unlocked = self.unlock(byte);
        drop(guard);
        unlocked.map(|()| result)
    }

    #[expect(unsafe_code, reason = "locks that belong to an open file have no safe wrapper")]
    fn command(&self, command: i32, kind: i32, byte: u64) -> io::Result<i16> {
        let mut lock = libc::flock {
            l_type: i16::try_from(kind).unwrap_or(0),
            l_whence: i16::try_from(libc::SEEK_SET).unwrap_or(0),
            l_start: i64::try_from(byte).unwrap_or(i64::MAX),
            l_len: 1,
            l_pid: 0,
        };
        let descriptor = self.descriptor()?;
        // SAFETY: the descriptor is open as long as it stands in the table, which `self` owns the place of; `lock` is
        // what these three commands read and write, and lives for the call.
        let status = unsafe { libc::fcntl(descriptor, command, &raw mut lock) };
        if status == -1 { Err(io::Error::last_os_error()) } else { Ok(lock.l_type) }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        if self.generation == fork_generation()
            && let Some(entry) = LOCK_FILES.get(self.place)
        {
            let descriptor = entry.swap(NO_FILE, Ordering::Relaxed);
            if descriptor != NO_FILE {
                close(descriptor);
            }
        }
    }
}

/// Gives a file its full size with blocks behind every byte of it, so that a full disk is an error now and not a signal
/// later.
pub fn allocate(file: &File, len_bytes: u64) -> io::Result<()> {
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len_bytes).map_err(Into::into)
}

/// Whether a file lies on a file system that forgets everything at a restart.
#[expect(clippy::useless_conversion, reason = "the type of the field differs between architectures")]
pub fn is_in_memory(file: &File) -> io::Result<bool> {
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    let kind = rustix::fs::fstatfs(file)?.f_type;
    Ok(matches!(i64::try_from(kind), Ok(TMPFS | RAMFS)))
}

/// Waits until `word` is no longer `seen`, somebody wakes it, or the time is over.
#[cfg(not(loom))]
pub fn wait_on(word: &std::sync::atomic::AtomicU32, seen: u32, timeout_ms: u64) {
    use rustix::thread::futex;
    let timeout = futex::Timespec {
        tv_sec: i64::try_from(timeout_ms / 1_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from((timeout_ms % 1_000).saturating_mul(1_000_000)).unwrap_or(0),
    };
    // Not private: the waiters are in other processes. Every outcome (woken, changed already, timed out, interrupted)
    // means the same to the caller: look again.
    let _ = futex::wait(word, futex::Flags::empty(), seen, Some(&timeout));
}

/// Wakes everybody who waits on `word`, in every process.
#[cfg(not(loom))]
pub fn wake_all(word: &std::sync::atomic::AtomicU32) {
    // The only error is an address that is none.
    let _ = rustix::thread::futex::wake(word, rustix::thread::futex::Flags::empty(), u32::MAX >> 1);
}

/// What identifies the running kernel until it restarts: 128 bits, the same in every container.
pub fn boot_id() -> io::Result<[u64; 2]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let (upper, lower) = digits.split_at_checked(16).ok_or(io::ErrorKind::InvalidData)?;
    let parse = |half: &str| u64::from_str_radix(half, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
    Ok([parse(upper)?, parse(lower)?])
}

/// Opens a file for the ledger: made if it is missing, for this user only.
pub fn open_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
        .open(path)?;
    // A device or a pipe has no pages to share.
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other(format!("not a file (descriptor {})", file.as_raw_fd())))
    }
}
