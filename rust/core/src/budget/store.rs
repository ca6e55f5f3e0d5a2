//! Where a ledger's memory comes from: a file that processes share, or memory of one process.
//!
//! Opening never loses anything silently: a file that is not a ledger, is cut short, has another layout or does not add
//! up is refused and left as it is. A new file is made whole under another name and then linked, so a name always leads
//! to a ledger; a process that is killed while it makes one leaves a draft, which ends in `.new`.
//!
//! Locks are single bytes far beyond the end of the file: one for whoever changes the ledger as a whole, one for
//! whoever writes durable images, and one for each attached process, which is how the others know that it lives.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::clock::Clock;
use super::durable::{Image, areas_bytes};
use super::error::BudgetError;
use super::layout::{Header, OWNER_MAX};
use super::memory::{Memory, Sizes, stated_sizes};
use crate::map::{self, LockFile, Mapping};
use crate::sync::Ordering::Acquire;

/// The lock of whoever changes the ledger as a whole.
pub(super) const LOCK_LEDGER: u64 = 1 << 40;
/// The lock of whoever writes durable images.
pub(super) const LOCK_IMAGE: u64 = LOCK_LEDGER + 1;
/// The lock of process 0; each has its own.
const LOCK_OWNERS: u64 = LOCK_LEDGER + 16;
/// Milliseconds to wait for the ledger's lock.
pub(super) const LOCK_TRIES: u32 = 5_000;
/// The number a recovery acts under: nobody's own, and dead to the next recovery.
pub(super) const RECOVERER: u32 = OWNER_MAX;

/// The lock of one process.
pub(super) const fn owner_lock(owner: u32) -> u64 {
    LOCK_OWNERS.saturating_add(owner as u64)
}

/// The file behind a ledger.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) mapping: Arc<Mapping>,
    pub(super) tables_bytes: u64,
    pub(super) sizes: Sizes,
    /// Spend is kept across restarts of the host
    pub(super) durable: bool,
}

impl Store {
    /// Whether the name still leads to this file. Where nobody can tell, it does.
    pub(super) fn is_at_its_path(&self) -> bool {
        let Ok(own) = self.file.metadata() else { return true };
        match std::fs::metadata(&self.path) {
            Ok(named) => (named.dev(), named.ino()) == (own.dev(), own.ino()),
            Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        }
    }
}

/// What opening a file found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A ledger of this boot
    Running,
    /// A ledger of before the host restarted
    Restarted,
}

pub(super) fn io_error(path: &Path, action: &'static str, source: std::io::Error) -> BudgetError {
    BudgetError::Io { file: path.display().to_string(), action, source }
}

/// Runs `work` while this thread alone, of all processes, holds the ledger's lock.
pub(super) fn locked<T>(locks: &LockFile, path: &Path, byte: u64, work: impl FnOnce() -> T) -> Result<T, BudgetError> {
    locked_within(LOCK_TRIES, locks, path, byte, work)
}

/// The same, waiting at most so many milliseconds for the lock.
pub(super) fn locked_within<T>(
    tries: u32,
    locks: &LockFile,
    path: &Path,
    byte: u64,
    work: impl FnOnce() -> T,
) -> Result<T, BudgetError> {
    locks.exclusively(byte, tries, work).map_err(|error| {
        if error.kind() == std::io::ErrorKind::WouldBlock {
            BudgetError::Busy { file: path.display().to_string(), waited_ms: u64::from(tries) }
        } else {
            io_error(path, "lock", error)
        }
    })
}

/// Makes the folder of a state file private if it makes it, and refuses one that anybody may write to.
pub(super) fn check_folder(path: &Path) -> Result<(), BudgetError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.exists() {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| io_error(folder, "create the folder", error))?;
    }
    let mode =
        std::fs::metadata(folder).map_err(|error| io_error(folder, "look at the folder", error))?.mode() & 0o7777;
    // With the sticky bit others can add files but not replace this one.
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        return Err(BudgetError::Permissions { folder: folder.display().to_string(), mode });
    }
    Ok(())
}

/// Makes the file of a new ledger, if there is none: whole, on disk, and only then under its name, so that whoever finds
/// the name finds a ledger.
pub(super) fn create(
    path: &Path,
    sizes: Sizes,
    volatile: bool,
    clock: &dyn Clock,
    prepare: impl FnOnce(&Memory) -> Result<(), BudgetError>,
) -> Result<(), BudgetError> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.{}.new", std::process::id(), clock.boot_ms()));
    let draft = PathBuf::from(draft);
    let file = map::open_private(&draft).map_err(|error| io_error(&draft, "create", error))?;
    let made = refuse_volatile(path, &file, volatile).and_then(|()| write_new(&draft, &file, sizes, clock, prepare));
    // The link fails if somebody else was first: then theirs is the ledger.
    let linked = made.and_then(|()| match std::fs::hard_link(&draft, path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|error| io_error(path, "create", error)),
    });
    let removed = std::fs::remove_file(&draft).map_err(|error| io_error(&draft, "remove", error));
    linked.and(removed)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| io_error(folder, "sync the folder", error))
}

fn refuse_volatile(path: &Path, file: &File, volatile: bool) -> Result<(), BudgetError> {
    let in_memory = map::is_in_memory(file).map_err(|error| io_error(path, "look at the file system", error))?;
    if in_memory && !volatile { Err(BudgetError::Volatile { file: path.display().to_string() }) } else { Ok(()) }
}

fn write_new(
    path: &Path,
    file: &File,
    sizes: Sizes,
    clock: &dyn Clock,
    prepare: impl FnOnce(&Memory) -> Result<(), BudgetError>,
) -> Result<(), BudgetError> {
    let full = (sizes.bytes() as u64).saturating_add(areas_bytes(sizes));
    map::allocate(file, full).map_err(|error| io_error(path, "allocate", error))?;
    let mapping = Mapping::shared(file, sizes.bytes()).map_err(|error| io_error(path, "map", error))?;
    let memory = Memory::carve(&mapping, sizes).ok_or_else(|| does_not_fit(path))?;
    let boot = map::boot_id().map_err(|error| io_error(path, "read the boot id", error))?;
    memory.format(boot, clock.wall_ms(), clock.boot_ms());
    prepare(&memory)?;
    memory.set_ready();
    mapping.flush().map_err(|error| io_error(path, "write", error))?;
    file.sync_all().map_err(|error| io_error(path, "write", error))
}

fn does_not_fit(path: &Path) -> BudgetError {
    BudgetError::Corrupt { file: path.display().to_string(), message: "its tables do not fit".to_owned() }
}

/// Maps an existing ledger; the caller holds the ledger's lock.
pub(super) fn open(
    path: &Path,
    file: File,
    locks: &LockFile,
    volatile: bool,
    clock: &dyn Clock,
) -> Result<(Store, Memory, Found), BudgetError> {
    refuse_volatile(path, &file, volatile)?;
    let corrupt = |message: String| BudgetError::Corrupt { file: path.display().to_string(), message };
    let boot = map::boot_id().map_err(|error| io_error(path, "read the boot id", error))?;
    let len = file.metadata().map_err(|error| io_error(path, "look at the file", error))?.len();
    let sizes = sizes_of(path, &file, len)?;
    let tables_bytes = sizes.bytes() as u64;
    let full = tables_bytes.saturating_add(areas_bytes(sizes));
    if len != full {
        return Err(corrupt(format!("the file has {len} bytes, not the {full} that its header states")));
    }
    let mapping = Mapping::shared(&file, sizes.bytes()).map_err(|error| io_error(path, "map", error))?;
    let memory = Memory::carve(&mapping, sizes).ok_or_else(|| does_not_fit(path))?;
    let found = if memory.boot() == boot {
        memory.check_nodes(memory.header().nodes.load(Acquire)).map_err(corrupt)?;
        Found::Running
    } else if memory.any_living(locks).map_err(|error| io_error(path, "ask for locks", error))? {
        // Not a restart: somebody with another boot id, or a copy of the file under its name.
        return Err(corrupt("it was made under another boot id, and processes use it".to_owned()));
    } else {
        let image = Image::newest(&file, tables_bytes, sizes);
        memory.rebuild(image.as_ref()).map_err(|message| corrupt(format!("after a restart of the host, {message}")))?;
        memory.accept_clock(clock);
        memory.set_boot(boot);
        Found::Restarted
    };
    // Absolute: the process may go to another folder.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let store = Store { path, file, mapping, tables_bytes, sizes, durable: !volatile };
    Ok((store, memory, found))
}

/// The sizes of a whole ledger.
fn sizes_of(path: &Path, file: &File, len: u64) -> Result<Sizes, BudgetError> {
    let shown = path.display().to_string();
    let corrupt = |message: &str| BudgetError::Corrupt { file: shown.clone(), message: message.to_owned() };
    if usize::try_from(len).is_ok_and(|len| len < size_of::<Header>()) {
        return Err(corrupt("the file is shorter than the header of a ledger"));
    }
    let mapping = Mapping::shared(file, size_of::<Header>()).map_err(|error| io_error(path, "map", error))?;
    let headers = mapping.table::<Header>(0, 1).ok_or_else(|| corrupt("its header does not fit"))?;
    let Some(header) = headers.first() else { return Err(corrupt("its header does not fit")) };
    let sizes = stated_sizes(header, &shown)?;
    if header.ready.load(Acquire) == 1 { Ok(sizes) } else { Err(corrupt("its header is damaged")) }
}
