//! The files of a log as <https://c2sp.org/tlog-tiles> has them: where a tile or an entry bundle lies, and what is in it.
//!
//! A file that was partial may have been replaced by a wider one, so whoever needs some of a tile takes the widest.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::error::VerifyError;
use super::merkle::Hash;
use crate::limits::AUDIT_ENTRY_BYTES_MAX;

/// Hashes of a full tile, entries of a full bundle.
pub const TILE_WIDTH: u64 = 256;
/// Levels that a tree of 64-bit size can have.
pub const LEVELS: u8 = 8;
/// Bytes of a full bundle of the longest entries.
const BUNDLE_BYTES_MAX: u64 = 256 * (AUDIT_ENTRY_BYTES_MAX as u64 + 2);

/// Which kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Hashes of a level
    Tile(u8),
    /// Entries
    Bundle,
}

/// The path of number `n`; `width` below 256 for a partial one.
pub fn path(kind: Kind, n: u64, width: u64) -> String {
    let mut groups = Vec::new();
    let mut rest = n;
    loop {
        let group = rest % 1_000;
        groups.push(if groups.is_empty() { format!("{group:03}") } else { format!("x{group:03}") });
        rest /= 1_000;
        if rest == 0 {
            break;
        }
    }
    groups.reverse();
    let level = match kind {
        Kind::Tile(level) => level.to_string(),
        Kind::Bundle => "entries".to_owned(),
    };
    let end = if width < TILE_WIDTH { format!(".p/{width}") } else { String::new() };
    format!("tile/{level}/{}{end}", groups.join("/"))
}

/// Reads a path below `tile/`, as the walk over the folder meets it: kind, number, width.
pub fn parse_path(path: &str) -> Option<(Kind, u64, u64)> {
    let mut parts = path.split('/');
    let kind = match (parts.next()?, parts.next()?) {
        ("tile", "entries") => Kind::Bundle,
        ("tile", level) => Kind::Tile(super::note::decimal(level).and_then(|level| level.try_into().ok())?),
        _ => return None,
    };
    let (mut n, mut width) = (0_u64, TILE_WIDTH);
    let mut last = false;
    for part in parts {
        if last {
            width = super::note::decimal(part).filter(|width| (1..TILE_WIDTH).contains(width))?;
            continue;
        }
        let group = part.strip_prefix('x').unwrap_or_else(|| {
            last = true;
            part.strip_suffix(".p").unwrap_or(part)
        });
        if group.len() != 3 || !group.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        n = n.checked_mul(1_000)?.checked_add(group.parse().ok()?)?;
    }
    (self::path(kind, n, width) == path).then_some((kind, n, width))
}

/// Hashes at a level of the tree of `size`.
pub fn width_at(level: u8, size: u64) -> u64 {
    size.checked_shr(u32::from(level).saturating_mul(8)).unwrap_or(0)
}

/// Reads a file if it is there, and refuses one that is larger than it can be.
pub fn read_bounded(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, VerifyError> {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(VerifyError::io(path, error)),
    };
    let size = file.metadata().map_err(|error| VerifyError::io(path, error))?;
    if !size.is_file() || size.len() > bytes_max {
        let message = format!("{} bytes, and at most {bytes_max} can be right", size.len());
        return Err(VerifyError::format(path.display().to_string(), message));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size.len()).unwrap_or(0));
    file.by_ref().take(bytes_max).read_to_end(&mut bytes).map_err(|error| VerifyError::io(path, error))?;
    Ok(Some(bytes))
}

/// Whether an error says that there is nothing of this name.
pub fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// The widths of the files that there are for number `n`, ascending.
pub fn widths(root: &Path, kind: Kind, n: u64) -> Vec<u64> {
    let full = root.join(path(kind, n, TILE_WIDTH));
    let mut partial = full.clone().into_os_string();
    partial.push(".p");
    let mut found = Vec::new();
    if let Ok(folder) = std::fs::read_dir(PathBuf::from(partial)) {
        let names = folder.filter_map(|item| item.ok()?.file_name().into_string().ok());
        found.extend(names.filter_map(|name| super::note::decimal(&name)).filter(|w| (1..TILE_WIDTH).contains(w)));
    }
    found.sort_unstable();
    if full.exists() {
        found.push(TILE_WIDTH);
    }
    found
}

/// The hashes of a tile file, which must be exactly as many as its name says.
pub fn read_tile(root: &Path, level: u8, n: u64, width: u64) -> Result<Option<Vec<Hash>>, VerifyError> {
    let name = path(Kind::Tile(level), n, width);
    let Some(bytes) = read_bounded(&root.join(&name), TILE_WIDTH.saturating_mul(32))? else { return Ok(None) };
    let (hashes, rest) = bytes.as_chunks::<32>();
    if !rest.is_empty() || hashes.len() as u64 != width {
        return Err(VerifyError::format(name, format!("{} bytes, not 32 for each of {width}", bytes.len())));
    }
    Ok(Some(hashes.to_vec()))
}

/// The entries of a bundle file.
#[derive(Debug, Default, Clone)]
pub struct Bundle {
    bytes: Vec<u8>,
    spans: Vec<(usize, usize)>,
}

impl Bundle {
    /// Takes entries that each have their length in front, as many as said.
    pub fn parse(bytes: Vec<u8>, count: u64) -> Result<Self, String> {
        let spans = split_entries(&bytes, count)?;
        Ok(Self { bytes, spans })
    }

    /// An entry by its place.
    pub fn entry(&self, at: usize) -> Option<&[u8]> {
        let (start, end) = self.spans.get(at)?;
        self.bytes.get(*start..*end)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.spans.len()
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Where the entries lie in bytes with a 16-bit length before each.
pub fn split_entries(bytes: &[u8], count: u64) -> Result<Vec<(usize, usize)>, String> {
    let mut spans = Vec::with_capacity(usize::try_from(count).unwrap_or(0).min(bytes.len() / 2));
    let mut at = 0_usize;
    for number in 0..count {
        let short = || format!("entry {number} of {count} goes beyond the end, at byte {at}");
        let length = bytes.get(at..).and_then(|rest| rest.first_chunk::<2>()).ok_or_else(short)?;
        let start = at.saturating_add(2);
        let end = start.saturating_add(usize::from(u16::from_be_bytes(*length)));
        if end > bytes.len() {
            return Err(short());
        }
        spans.push((start, end));
        at = end;
    }
    if at == bytes.len() { Ok(spans) } else { Err(format!("bytes beyond the {count} entries, from byte {at}")) }
}

/// The entries of a bundle file, which must be as many as its name says.
pub fn read_bundle(root: &Path, n: u64, width: u64) -> Result<Option<Bundle>, VerifyError> {
    let name = path(Kind::Bundle, n, width);
    let Some(bytes) = read_bounded(&root.join(&name), BUNDLE_BYTES_MAX)? else { return Ok(None) };
    Bundle::parse(bytes, width).map(Some).map_err(|message| VerifyError::format(name, message))
}
