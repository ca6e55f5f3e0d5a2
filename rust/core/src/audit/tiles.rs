//! The public face of a log: tiles of hashes and bundles of entries, cut from the write-ahead file.
//!
//! C2SP tlog-tiles: a tile holds up to 256 hashes of one level, a bundle up to 256 entries. Full ones are final. Partial
//! ones exist for the sizes that checkpoints name, and go when the full one is there. Everything is written beside its
//! name and brought to the disk before it gets that name, and has its name on the disk before a checkpoint says so.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::disk::{Disk, read_bounded};
use super::error::AuditError;
use super::tree::{Frontier, Hash, leaf, perfect_root};
use crate::limits::ENTRY_BYTES_MAX;

/// Hashes of a tile, entries of a bundle.
pub(super) const WIDTH: usize = 256;
/// Bytes of a bundle: every entry as long as its length can say.
const BUNDLE_BYTES_MAX: usize = WIDTH * (ENTRY_BYTES_MAX + 2);
/// Files that are written before they are brought to the disk together.
const BATCH_FILES_MAX: usize = 2_048;
/// From so many files on one call for the whole file system is cheaper than one for each.
const SYNC_ALL_FROM: usize = 24;
/// Tiles and bundles are for everybody who may read the folder.
const MODE: u32 = 0o644;

/// The path of tile `index` of `level`, below the log's folder; `width` of a partial one.
pub(super) fn tile_path(level: usize, index: u64, width: usize) -> PathBuf {
    named(&format!("tile/{level}"), index, width)
}

/// The path of bundle `index`.
pub(super) fn bundle_path(index: u64, width: usize) -> PathBuf {
    named("tile/entries", index, width)
}

fn named(folder: &str, index: u64, width: usize) -> PathBuf {
    let mut path = folder.to_owned();
    let mut groups = Vec::new();
    let mut rest = index;
    loop {
        groups.push(rest % 1_000);
        rest /= 1_000;
        if rest == 0 {
            break;
        }
    }
    while let Some(group) = groups.pop() {
        // Writing to memory does not fail.
        let _ = write!(path, "/{}{group:03}", if groups.is_empty() { "" } else { "x" });
    }
    if width < WIDTH {
        let _ = write!(path, ".p/{width}");
    }
    path.into()
}

/// Cuts tiles from entries as they come.
#[derive(Debug)]
pub(super) struct Cutter {
    disk: Disk,
    folder: PathBuf,
    size: u64,
    /// The hashes of the partial tile of each level
    levels: Vec<Vec<Hash>>,
    /// The partial bundle
    bundle: Vec<u8>,
    /// Files that are written and have not got their names yet
    written: Vec<(PathBuf, PathBuf)>,
    /// Partial tiles that have been replaced by a full one
    replaced: Vec<PathBuf>,
}

impl Cutter {
    /// Begins with an empty tree.
    pub(super) const fn new(disk: Disk, folder: PathBuf) -> Self {
        Self {
            disk,
            folder,
            size: 0,
            levels: Vec::new(),
            bundle: Vec::new(),
            written: Vec::new(),
            replaced: Vec::new(),
        }
    }

    /// Goes on where the tiles of a size end; `None` if they are not there or do not have this root.
    pub(super) fn load(disk: Disk, folder: PathBuf, size: u64, root: &Hash) -> Option<Self> {
        let mut cutter = Self::new(disk, folder);
        cutter.size = size;
        let mut rest = size;
        while rest > 0 {
            let (level, width) = (cutter.levels.len(), usize::try_from(rest % 256).ok()?);
            let hashes = if width == 0 { Vec::new() } else { cutter.read_hashes(level, rest / 256, width)? };
            cutter.levels.push(hashes);
            rest /= 256;
        }
        if !size.is_multiple_of(256) {
            cutter.bundle = cutter.read_bundle(size / 256, usize::try_from(size % 256).ok()?)?;
        }
        (cutter.frontier().root() == *root).then_some(cutter)
    }

    /// The first hashes of a tile, out of the partial one or one that is wider.
    fn read_hashes(&self, level: usize, index: u64, width: usize) -> Option<Vec<Hash>> {
        let read = |width| read_bounded(&self.folder.join(tile_path(level, index, width)), WIDTH * 32).ok();
        let bytes = read(width).or_else(|| read(WIDTH))?;
        let hashes: Vec<Hash> = bytes.as_chunks::<32>().0.iter().take(width).copied().collect();
        (hashes.len() == width).then_some(hashes)
    }

    /// The first entries of a bundle, with their lengths.
    fn read_bundle(&self, index: u64, width: usize) -> Option<Vec<u8>> {
        let read = |width| read_bounded(&self.folder.join(bundle_path(index, width)), BUNDLE_BYTES_MAX).ok();
        let mut bytes = read(width).or_else(|| read(WIDTH))?;
        let leaves = self.levels.first()?;
        let mut end = 0_usize;
        for hash in leaves {
            let (len, rest) = bytes.get(end..)?.split_first_chunk::<2>()?;
            let entry = rest.get(..u16::from_be_bytes(*len).into())?;
            if leaf(entry) != *hash {
                return None;
            }
            end = end.checked_add(2)?.checked_add(entry.len())?;
        }
        bytes.truncate(end);
        (leaves.len() == width).then_some(bytes)
    }

    /// How many entries it has cut.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// The tree so far.
    pub(super) fn frontier(&self) -> Frontier {
        let mut frontier = Frontier::default();
        for (level, hashes) in self.levels.iter().enumerate().rev() {
            for hash in hashes {
                frontier.push_subtree(*hash, u32::try_from(level).unwrap_or(0).saturating_mul(8));
            }
        }
        frontier
    }

    /// Adds an entry. Full tiles and bundles are written, without their names yet.
    pub(super) fn push(&mut self, entry: &[u8]) -> Result<(), AuditError> {
        self.bundle.extend_from_slice(&u16::try_from(entry.len()).unwrap_or(u16::MAX).to_be_bytes());
        self.bundle.extend_from_slice(entry);
        let mut hash = leaf(entry);
        let mut level = 0;
        let mut index = self.size / 256;
        self.size = self.size.saturating_add(1);
        loop {
            if self.levels.len() <= level {
                self.levels.push(Vec::new());
            }
            let Some(hashes) = self.levels.get_mut(level) else { return Ok(()) };
            hashes.push(hash);
            if hashes.len() < WIDTH {
                return Ok(());
            }
            let full = std::mem::take(hashes);
            hash = perfect_root(&full);
            if level == 0 {
                let bundle = std::mem::take(&mut self.bundle);
                self.write(bundle_path(index, WIDTH), &bundle)?;
                self.replaced
                    .push(self.folder.join(bundle_path(index, 0)).parent().map_or_else(PathBuf::new, Path::to_owned));
            }
            self.write(tile_path(level, index, WIDTH), full.as_flattened())?;
            self.replaced
                .push(self.folder.join(tile_path(level, index, 0)).parent().map_or_else(PathBuf::new, Path::to_owned));
            level = level.saturating_add(1);
            index /= 256;
        }
    }

    /// Whether so much is written that it should be brought to the disk.
    pub(super) const fn wants_commit(&self) -> bool {
        self.written.len() >= BATCH_FILES_MAX
    }

    /// Brings everything to the disk, with partial tiles for what fills none: then a checkpoint may name this size.
    pub(super) fn commit_with_partials(&mut self) -> Result<(), AuditError> {
        let mut rest = self.size;
        for level in 0..self.levels.len() {
            let hashes = self.levels.get(level).cloned().unwrap_or_default();
            let index = rest / 256;
            if !hashes.is_empty() {
                self.write(tile_path(level, index, hashes.len()), hashes.as_flattened())?;
            }
            if level == 0 && !hashes.is_empty() {
                let bundle = self.bundle.clone();
                self.write(bundle_path(index, hashes.len()), &bundle)?;
            }
            rest = index;
        }
        self.commit()?;
        for folder in std::mem::take(&mut self.replaced) {
            // Partial tiles may go. Where that fails they stay, and harm nothing.
            let _ = self.disk.remove_folder(&folder);
        }
        Ok(())
    }

    fn write(&mut self, path: PathBuf, bytes: &[u8]) -> Result<(), AuditError> {
        let path = self.folder.join(path);
        if let Some(folder) = path.parent() {
            self.disk.create_folder(folder, 0o755).map_err(AuditError::io("cannot make", folder))?;
        }
        let beside =
            self.disk.write_beside(&path, bytes, MODE).map_err(AuditError::io("cannot write", path.clone()))?;
        self.written.push((beside, path));
        Ok(())
    }

    /// Brings what was written to the disk and gives it its names.
    pub(super) fn commit(&mut self) -> Result<(), AuditError> {
        let (to_disk, name) = ("cannot bring to the disk", "cannot name");
        if self.written.len() >= SYNC_ALL_FROM {
            self.disk.sync_all(&self.folder).map_err(AuditError::io(to_disk, &self.folder))?;
        } else {
            for (beside, _) in &self.written {
                self.disk.sync_path(beside).map_err(AuditError::io(to_disk, beside))?;
            }
        }
        let mut folders = BTreeSet::new();
        for (beside, path) in &self.written {
            self.disk.put_in_place(beside, path).map_err(AuditError::io(name, path))?;
            let mut folder = path.parent();
            // A folder that is new has a name in the one above.
            while let Some(here) = folder.filter(|here| *here != self.folder) {
                folders.insert(here.to_owned());
                folder = here.parent();
            }
        }
        if !self.written.is_empty() {
            folders.insert(self.folder.clone());
        }
        for folder in &folders {
            self.disk.sync_folder(folder).map_err(AuditError::io(to_disk, folder))?;
        }
        self.written.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        assert_eq!(tile_path(0, 1_234_067, WIDTH), Path::new("tile/0/x001/x234/067"));
        assert_eq!(tile_path(1, 0, 17), Path::new("tile/1/000.p/17"));
        assert_eq!(bundle_path(273, 112), Path::new("tile/entries/273.p/112"));
        assert_eq!(bundle_path(1_000, WIDTH), Path::new("tile/entries/x001/000"));
    }
}
