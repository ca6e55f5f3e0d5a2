//! The file operations of the log, so that a test can make each of them fail or stop half way.
//!
//! A log writes files in two ways only: at an offset of a segment that has its full size, and as a whole by a temporary
//! name. Nothing here decides what to do about an error.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::map;

/// An operation that may fail, to be asked before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A file is made
    Create,
    /// A file gets its full size
    Allocate,
    /// Bytes are written
    Write,
    /// What was written is brought to the disk
    Sync,
    /// A file gets its final name
    Rename,
    /// A folder's names are brought to the disk
    SyncFolder,
    /// A file or folder is removed
    Remove,
}

/// What a test does to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this error of the operating system
    Error(i32),
    /// Of a write: so many bytes arrive, and then it fails
    Torn(usize),
}

/// Decides which operations fail; it is asked before each.
pub type Faults = Arc<dyn Fn(Operation, &Path) -> Option<Fault> + Send + Sync>;

/// The disk, or one that fails on demand.
#[derive(Clone, Default)]
pub struct Disk {
    faults: Option<Faults>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("faulty", &self.faults.is_some()).finish()
    }
}

impl Disk {
    /// A disk whose operations fail as `faults` says.
    pub fn faulty(faults: Faults) -> Self {
        Self { faults: Some(faults) }
    }

    fn ask(&self, operation: Operation, path: &Path) -> io::Result<Option<usize>> {
        match self.faults.as_ref().and_then(|faults| faults(operation, path)) {
            None => Ok(None),
            Some(Fault::Error(code)) => Err(io::Error::from_raw_os_error(code)),
            Some(Fault::Torn(bytes)) => Ok(Some(bytes)),
        }
    }

    /// Makes a file of `len_bytes` with blocks behind every byte, for this user only; it must not be there.
    pub(super) fn create_sized(&self, path: &Path, len_bytes: u64) -> io::Result<File> {
        self.ask(Operation::Create, path)?;
        let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let sized = self.ask(Operation::Allocate, path).and_then(|_| map::allocate(&file, len_bytes));
        if let Err(error) = sized {
            drop(file);
            // What has no room is not left behind: it would look like a segment.
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok(file)
    }

    /// Writes all of `bytes` at an offset.
    pub(super) fn write_at(&self, file: &File, path: &Path, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(torn) = self.ask(Operation::Write, path)? {
            file.write_all_at(bytes.get(..torn).unwrap_or(bytes), offset)?;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        file.write_all_at(bytes, offset)
    }

    /// Gives a file at least `len_bytes`, with blocks behind every byte. What is in it stays.
    pub(super) fn grow(&self, file: &File, path: &Path, len_bytes: u64) -> io::Result<()> {
        self.ask(Operation::Allocate, path)?;
        map::allocate(file, len_bytes)
    }

    /// Makes a file end here.
    pub(super) fn truncate(&self, file: &File, path: &Path, len_bytes: u64) -> io::Result<()> {
        self.ask(Operation::Write, path)?;
        file.set_len(len_bytes)
    }

    /// Opens a file to write to its end; it is made if it is missing.
    pub(super) fn open_or_create(&self, path: &Path, mode: u32) -> io::Result<File> {
        self.ask(Operation::Create, path)?;
        std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(mode).open(path)
    }

    /// Brings what was written to the disk.
    pub(super) fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.ask(Operation::Sync, path)?;
        file.sync_data()
    }

    /// Brings a file that is not open to the disk.
    pub(super) fn sync_path(&self, path: &Path) -> io::Result<()> {
        self.ask(Operation::Sync, path)?;
        File::open(path)?.sync_data()
    }

    /// Brings everything of the file system that a folder is on to the disk.
    pub(super) fn sync_all(&self, folder: &Path) -> io::Result<()> {
        self.ask(Operation::Sync, folder)?;
        rustix::fs::syncfs(File::open(folder)?).map_err(Into::into)
    }

    /// Makes a file end here, with blocks up to its full size behind that: whatever was there reads as zeros.
    pub(super) fn cut(&self, file: &File, path: &Path, at: u64, len_bytes: u64) -> io::Result<()> {
        self.ask(Operation::Write, path)?;
        file.set_len(at)?;
        self.ask(Operation::Allocate, path)?;
        map::allocate(file, len_bytes)?;
        self.sync(file, path)
    }

    /// Brings the names of a folder to the disk.
    pub(super) fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.ask(Operation::SyncFolder, path)?;
        File::open(path)?.sync_all()
    }

    /// Makes a folder, and those above it that are missing.
    pub(super) fn create_folder(&self, path: &Path, mode: u32) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        if path.is_dir() {
            return Ok(());
        }
        self.ask(Operation::Create, path)?;
        std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
    }

    /// The same, and brings the names of those that were made to the disk: what is in them is found after a power cut.
    pub(super) fn create_folder_durably(&self, path: &Path, mode: u32) -> io::Result<()> {
        let missing: Vec<&Path> = path.ancestors().take_while(|folder| !folder.is_dir()).collect();
        self.create_folder(path, mode)?;
        for folder in missing.iter().filter_map(|folder| folder.parent()) {
            self.sync_folder(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?;
        }
        Ok(())
    }

    /// Writes a whole file under a temporary name beside it. It is brought to the disk and [`Disk::put_in_place`] later.
    pub(super) fn write_beside(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
        let beside = temporary(path);
        self.ask(Operation::Create, &beside)?;
        // What an attempt before this one has left is not added to, and a name that leads elsewhere is not followed.
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        self.write_at(&file, &beside, bytes, 0)?;
        Ok(beside)
    }

    /// Gives a file its final name.
    pub(super) fn put_in_place(&self, beside: &Path, path: &Path) -> io::Result<()> {
        self.ask(Operation::Rename, path)?;
        std::fs::rename(beside, path)
    }

    /// Writes a whole file so that it is there as a whole or not at all, whatever happens.
    pub(super) fn write_whole(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        let beside = self.write_beside(path, bytes, mode)?;
        self.sync_path(&beside)?;
        self.put_in_place(&beside, path)?;
        self.sync_folder(path.parent().unwrap_or(Path::new(".")))
    }

    /// The same for a file that several processes may write at once, each under a temporary name of its own. The last one
    /// stays.
    pub(super) fn write_shared(&self, path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
        let mut tag = [0_u8; 8];
        rustix::rand::getrandom(&mut tag, rustix::rand::GetRandomFlags::empty())?;
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{:016x}", u64::from_le_bytes(tag)));
        let own = path.with_file_name(name);
        let written = self.write_beside(&own, bytes, mode).and_then(|beside| {
            let placed = self.sync_path(&beside).and_then(|()| self.put_in_place(&beside, path));
            if placed.is_err() {
                let _ = std::fs::remove_file(&beside);
            }
            placed
        });
        written.and_then(|()| self.sync_folder(path.parent().unwrap_or(Path::new("."))))
    }

    /// Removes a file; one that is not there is removed.
    pub(super) fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.ask(Operation::Remove, path)?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Removes a folder and what is in it; one that is not there is removed.
    pub(super) fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.ask(Operation::Remove, path)?;
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

/// Reads a file that is not longer than it can be.
pub(super) fn read_bounded(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    File::open(path)?.take(u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// The temporary name of a file.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    path.with_file_name(name)
}
