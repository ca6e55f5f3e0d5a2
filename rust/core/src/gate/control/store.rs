//! Where the memory of a control file comes from.
//!
//! Opening never loses anything silently: a file that is not ours, is cut short or has another layout is refused and
//! left as it is. A new file is made whole under another name, brought to the disk and then linked, so a name always
//! leads to a control file; a process that is killed while it makes one leaves a draft, which ends in `.new`.
//!
//! Locks are single bytes far beyond the end of the file: one for who changes anything, one for who takes a slot from a
//! session, and one for each gate, which is how the others know that it lives.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::ControlError;
use super::layout::{
    APPROVALS_HEADER_AT, ControlHeader, LAYOUT, MAGIC, PLACES, REVOCATIONS_HEADER_AT, SESSIONS_HEADER_AT, checksum,
};
use crate::map::{self, LockFile, Mapping, Table};
use crate::sync::Ordering::{Acquire, Relaxed, Release};

/// The lock of who changes anything.
pub(super) const LOCK_CHANGE: u64 = 1 << 40;
/// The lock of who takes a slot from a session.
pub(super) const LOCK_SESSIONS: u64 = LOCK_CHANGE + 1;
/// The lock of gate 0; each has its own.
const LOCK_GATES: u64 = LOCK_CHANGE + 16;

/// The lock of one gate.
pub(super) const fn gate_lock(gate: usize) -> u64 {
    LOCK_GATES.saturating_add(gate as u64)
}

/// The file behind it.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) path: PathBuf,
    pub(super) locks: LockFile,
    file: File,
    mapping: Arc<Mapping>,
}

impl Store {
    /// Brings everything to the disk.
    pub(super) fn flush(&self) -> std::io::Result<()> {
        self.mapping.flush()?;
        self.file.sync_data()
    }

    /// Whether its header is what it was. Nobody writes there once the file is made.
    pub(super) fn is_whole(&self) -> bool {
        let memory = Memory::carve(Arc::clone(&self.mapping));
        memory.is_some_and(|memory| {
            memory.header().magic.load(Relaxed) == MAGIC && memory.header().check.load(Relaxed) == memory.header_check()
        })
    }

    /// Whether the name still leads to this file. Where nobody can tell, it does.
    pub(super) fn is_at_its_path(&self) -> bool {
        let Ok(own) = self.file.metadata() else { return true };
        match std::fs::symlink_metadata(&self.path) {
            Ok(named) => (named.dev(), named.ino()) == (own.dev(), own.ino()),
            Err(error) => error.kind() != ErrorKind::NotFound,
        }
    }
}

pub(super) fn io_error(path: &Path, action: &'static str, source: std::io::Error) -> ControlError {
    ControlError::Io { file: path.display().to_string(), action, source }
}

fn corrupt(path: &Path, message: &str) -> ControlError {
    ControlError::Corrupt { file: path.display().to_string(), message: message.to_owned() }
}

/// All tables of a mapping.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) header: Table<ControlHeader>,
    pub(super) mapping: Arc<Mapping>,
}

impl Memory {
    fn carve(mapping: Arc<Mapping>) -> Option<Self> {
        Some(Self { header: mapping.table(0, 1)?, mapping })
    }

    #[expect(clippy::indexing_slicing, reason = "`carve` has made this table with one item")]
    fn header(&self) -> &ControlHeader {
        &self.header[0]
    }

    /// Mixed into the keys of sessions.
    pub(super) fn salt(&self) -> [u64; 2] {
        let [first, second] = &self.header().salt;
        [first.load(Relaxed), second.load(Relaxed)]
    }

    fn header_check(&self) -> u64 {
        let header = self.header();
        let [first, second] = self.salt();
        let words = [header.magic.load(Relaxed), header.layout.load(Relaxed).into(), header.bytes.load(Relaxed)];
        checksum(&[words.as_slice(), &[first, second]].concat(), &[])
    }

    fn format(&self, salt: [u64; 2]) {
        let header = self.header();
        for (word, salt) in header.salt.iter().zip(salt) {
            word.store(salt, Relaxed);
        }
        header.layout.store(LAYOUT, Relaxed);
        header.bytes.store(PLACES.bytes as u64, Relaxed);
        header.magic.store(MAGIC, Relaxed);
        header.check.store(self.header_check(), Release);
    }
}

/// The places of the headers that share the first page.
pub(super) const HEADERS: [usize; 3] = [REVOCATIONS_HEADER_AT, SESSIONS_HEADER_AT, APPROVALS_HEADER_AT];

/// Memory of this process, and of nobody else.
pub(super) fn anonymous() -> Result<Memory, ControlError> {
    let path = Path::new("memory");
    let mapping = Mapping::anonymous(PLACES.bytes).map_err(|error| io_error(path, "map", error))?;
    let memory = Memory::carve(mapping).ok_or_else(|| corrupt(path, "its tables do not fit"))?;
    memory.format(random(path)?);
    Ok(memory)
}

fn random(path: &Path) -> Result<[u64; 2], ControlError> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| io_error(path, "get random bytes", error.into()))?;
    let [first, second] = bytes.as_chunks::<8>().0 else { return Ok([0; 2]) };
    Ok([u64::from_ne_bytes(*first), u64::from_ne_bytes(*second)])
}

/// Maps the file of this name, and makes it if there is none.
pub(super) fn open(path: &Path, volatile: bool) -> Result<(Store, Memory), ControlError> {
    // Absolute: the process may go to another folder.
    let path = std::path::absolute(path).map_err(|error| io_error(path, "find", error))?;
    check_folder(&path)?;
    let file = match open_existing(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            create(&path, volatile)?;
            open_existing(&path)
        }
        other => other,
    };
    let file = file.map_err(|error| io_error(&path, "open", error))?;
    let memory = check(&path, &file, volatile)?;
    let locks = LockFile::open(&file).map_err(|error| io_error(&path, "open for locking", error))?;
    Ok((Store { path, locks, file, mapping: Arc::clone(&memory.mapping) }, memory))
}

/// Never makes the file: an empty one under the name would be one that is not ours.
fn open_existing(path: &Path) -> std::io::Result<File> {
    let flags = libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::Error::other("it is not a file")) }
}

fn check(path: &Path, file: &File, volatile: bool) -> Result<Memory, ControlError> {
    refuse_volatile(path, file, volatile)?;
    let metadata = file.metadata().map_err(|error| io_error(path, "look at the file", error))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o002 != 0 {
        return Err(ControlError::Permissions { path: path.display().to_string(), mode });
    }
    if metadata.len() < size_of::<ControlHeader>() as u64 {
        return Err(corrupt(path, "the file is shorter than the header of a control file"));
    }
    let map = |len| Mapping::shared(file, len).map_err(|error| io_error(path, "map", error));
    let carve = |mapping| Memory::carve(mapping).ok_or_else(|| corrupt(path, "its tables do not fit"));
    let memory = carve(map(size_of::<ControlHeader>())?)?;
    let header = memory.header();
    if header.magic.load(Acquire) != MAGIC {
        return Err(corrupt(path, "the file is not a control file"));
    }
    let found = header.layout.load(Relaxed);
    if found != LAYOUT {
        return Err(ControlError::Version { file: path.display().to_string(), found, expected: LAYOUT });
    }
    if header.check.load(Relaxed) != memory.header_check() || header.bytes.load(Relaxed) != PLACES.bytes as u64 {
        return Err(corrupt(path, "its header is damaged"));
    }
    if metadata.len() != PLACES.bytes as u64 {
        let (len, full) = (metadata.len(), PLACES.bytes);
        return Err(corrupt(path, &format!("the file has {len} bytes, not the {full} that its header states")));
    }
    carve(map(PLACES.bytes)?)
}

fn refuse_volatile(path: &Path, file: &File, volatile: bool) -> Result<(), ControlError> {
    let in_memory = map::is_in_memory(file).map_err(|error| io_error(path, "look at the file system", error))?;
    if in_memory && !volatile { Err(ControlError::Volatile { file: path.display().to_string() }) } else { Ok(()) }
}

/// Makes the folder private if it makes it, and refuses one that anybody may write to: the rule of the ledger.
fn check_folder(path: &Path) -> Result<(), ControlError> {
    let folder = path.parent().unwrap_or(path);
    if !folder.exists() {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| io_error(folder, "create the folder", error))?;
    }
    let metadata = std::fs::metadata(folder).map_err(|error| io_error(folder, "look at the folder", error))?;
    let mode = metadata.mode() & 0o7777;
    // With the sticky bit others can add files but not replace this one.
    if mode & 0o002 != 0 && mode & 0o1000 == 0 {
        return Err(ControlError::Permissions { path: folder.display().to_string(), mode });
    }
    Ok(())
}

/// Makes a new file: whole, on disk, and only then under its name.
fn create(path: &Path, volatile: bool) -> Result<(), ControlError> {
    let [salt, tag] = random(path)?;
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.{tag:016x}.new", std::process::id()));
    let draft = PathBuf::from(draft);
    let file = map::open_private(&draft).map_err(|error| io_error(&draft, "create", error))?;
    let made = refuse_volatile(path, &file, volatile).and_then(|()| write_new(&draft, &file, salt));
    // The link fails if somebody else was first: then theirs is the file.
    let linked = made.and_then(|()| match std::fs::hard_link(&draft, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|error| io_error(path, "create", error)),
    });
    let removed = std::fs::remove_file(&draft).map_err(|error| io_error(&draft, "remove", error));
    linked.and(removed)?;
    let folder = path.parent().unwrap_or(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| io_error(folder, "sync the folder", error))
}

fn write_new(path: &Path, file: &File, salt: u64) -> Result<(), ControlError> {
    map::allocate(file, PLACES.bytes as u64).map_err(|error| io_error(path, "allocate", error))?;
    let mapping = Mapping::shared(file, PLACES.bytes).map_err(|error| io_error(path, "map", error))?;
    let memory = Memory::carve(mapping).ok_or_else(|| corrupt(path, "its tables do not fit"))?;
    let [other, _] = random(path)?;
    memory.format([salt, other]);
    memory.mapping.flush().and_then(|()| file.sync_all()).map_err(|error| io_error(path, "write", error))
}
