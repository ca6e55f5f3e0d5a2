//! Proofs from tiles: that an entry is in a log (<https://c2sp.org/tlog-proof>), that a log has grown from an older one.
//!
//! A proof reads as many tiles as the tree is high, whatever the log's size. None is handed out that does not hold.

use std::collections::HashMap;
use std::path::Path;

use super::error::VerifyError;
use super::log::Reader;
use super::merkle::{Hash, Range, check_consistency, check_inclusion, empty_root, leaf_hash, node_hash, root_of};
use super::note::{Checkpoint, VerifierKey, base64, decimal, hash_from_base64, may_sign};
use super::tiles::{Kind, TILE_WIDTH, read_tile, widths};
use crate::limits::AUDIT_NOTE_BYTES_MAX;

const HEAD: &str = "c2sp.org/tlog-proof@v1\n";

/// Tiles of one log, read when a node of them is asked for.
#[derive(Debug)]
pub struct Tiles<'a> {
    root: &'a Path,
    read: HashMap<(u8, u64), Vec<Hash>>,
    /// Tile files that were read
    pub reads: u64,
}

impl<'a> Tiles<'a> {
    /// The tiles below a log's folder.
    pub fn new(root: &'a Path) -> Self {
        Self { root, read: HashMap::new(), reads: 0 }
    }

    fn tile(&mut self, level: u8, number: u64) -> Result<&[Hash], VerifyError> {
        if !self.read.contains_key(&(level, number)) {
            let width = widths(self.root, Kind::Tile(level), number).last().copied();
            let read = width.map(|width| read_tile(self.root, level, number, width)).transpose()?.flatten();
            self.reads = self.reads.saturating_add(1);
            self.read.insert((level, number), read.unwrap_or_default());
        }
        Ok(self.read.get(&(level, number)).map_or(&[], Vec::as_slice))
    }

    /// The hash over the complete subtree of 2^height leaves at a place of that height.
    fn node(&mut self, height: u32, place: u64) -> Result<Hash, VerifyError> {
        let level = u8::try_from(height / 8).unwrap_or(u8::MAX);
        let count = 1_u64.checked_shl(height % 8).unwrap_or(0);
        let first = place.saturating_mul(count);
        let tile = self.tile(level, first / TILE_WIDTH)?;
        let start = usize::try_from(first % TILE_WIDTH).unwrap_or(usize::MAX);
        let hashes = tile.get(start..start.saturating_add(usize::try_from(count).unwrap_or(0)));
        let missing = || VerifyError::NotFound {
            what: format!("the tiles of level {level} do not reach to hash {}", first.saturating_add(count)),
        };
        hashes.map(root_of).ok_or_else(missing)
    }

    /// The root over leaves `from..to`, where `from` begins a subtree of that width.
    fn range(&mut self, from: u64, to: u64) -> Result<Hash, VerifyError> {
        let mut hashes = Vec::new();
        let mut at = from;
        while at < to {
            // The largest complete subtree that begins here and does not go too far.
            let height = to.saturating_sub(at).ilog2().min(if at == 0 { 63 } else { at.trailing_zeros() });
            hashes.push(self.node(height, at.checked_shr(height).unwrap_or(0))?);
            at = at.saturating_add(1_u64.checked_shl(height).unwrap_or(0));
        }
        let mut upwards = hashes.into_iter().rev();
        let Some(last) = upwards.next() else { return Ok(empty_root()) };
        Ok(upwards.fold(last, |hash, left| node_hash(&left, &hash)))
    }

    /// The root of the tree of a size.
    pub fn root(&mut self, size: u64) -> Result<Hash, VerifyError> {
        self.range(0, size)
    }

    /// The proof that entry `index` is in the tree of `size`.
    pub fn inclusion(&mut self, index: u64, size: u64) -> Result<Vec<Hash>, VerifyError> {
        let (mut from, mut to) = (0, size);
        let mut proof = Vec::new();
        while to.saturating_sub(from) > 1 {
            let middle = split(from, to);
            if index < middle {
                proof.push(self.range(middle, to)?);
                to = middle;
            } else {
                proof.push(self.range(from, middle)?);
                from = middle;
            }
        }
        proof.reverse();
        Ok(proof)
    }

    /// The proof that the tree of `older` entries is the beginning of the one of `newer`.
    pub fn consistency(&mut self, older: u64, newer: u64) -> Result<Vec<Hash>, VerifyError> {
        let (mut from, mut to, mut whole) = (0, newer, true);
        let mut proof = Vec::new();
        while older < to {
            let middle = split(from, to);
            if older <= middle {
                proof.push(self.range(middle, to)?);
                to = middle;
            } else {
                proof.push(self.range(from, middle)?);
                from = middle;
                whole = false;
            }
        }
        if !whole {
            proof.push(self.range(from, to)?);
        }
        proof.reverse();
        Ok(proof)
    }
}

/// Where a tree over `from..to` is split: at the largest power of two below its width.
fn split(from: u64, to: u64) -> u64 {
    let below = to.saturating_sub(from).saturating_sub(1).max(1);
    from.saturating_add(1_u64.checked_shl(below.ilog2()).unwrap_or(0))
}

/// The root of a log's first entries: from tiles, and from entries where tiles do not reach yet.
pub fn root_at(reader: &mut Reader, size: u64) -> Result<Hash, VerifyError> {
    let path = reader.path().to_owned();
    let mut tiles = Tiles::new(&path);
    match tiles.root(size) {
        Err(VerifyError::NotFound { .. }) => {}
        other => return other,
    }
    let full = size.saturating_sub(size % TILE_WIDTH);
    let mut entry = Vec::new();
    let mut covered = full;
    // Tiles are cut some batches behind: what they lack is read as entries.
    while covered > 0 && tiles.root(covered).is_err() {
        covered = covered.saturating_sub(TILE_WIDTH);
    }
    let mut range = Range::default();
    if covered > 0 {
        range = tiles.compact(covered)?;
    }
    for index in covered..size {
        reader.entry(index, &mut entry)?;
        range.push(leaf_hash(&entry));
    }
    Ok(range.root())
}

impl Tiles<'_> {
    /// The subtrees that make up the tree of a size.
    fn compact(&mut self, size: u64) -> Result<Range, VerifyError> {
        let mut hashes = Vec::new();
        let mut at = 0_u64;
        for height in (0..u64::BITS).rev().filter(|height| size.checked_shr(*height).unwrap_or(0) & 1 == 1) {
            hashes.push(self.node(height, at.checked_shr(height).unwrap_or(0))?);
            at = at.saturating_add(1_u64.checked_shl(height).unwrap_or(0));
        }
        Ok(Range::from_hashes(hashes, size))
    }
}

/// Writes the proof file for an entry.
pub fn prove(path: &Path, index: u64, extra: Option<&[u8]>) -> Result<String, VerifyError> {
    let mut reader = Reader::open(path)?;
    let Some(checkpoint) = reader.checkpoint().cloned() else {
        return Err(VerifyError::Unanchored { index, size: 0 });
    };
    if index >= checkpoint.size {
        if index >= reader.size() {
            return Err(VerifyError::NotFound { what: format!("{}: there is no entry {index}", path.display()) });
        }
        return Err(VerifyError::Unanchored { index, size: checkpoint.size });
    }
    let proof = Tiles::new(path).inclusion(index, checkpoint.size)?;
    let mut entry = Vec::new();
    reader.entry(index, &mut entry)?;
    check_inclusion(index, checkpoint.size, &leaf_hash(&entry), &proof, &checkpoint.root)?;
    let mut text = HEAD.to_owned();
    if let Some(extra) = extra {
        text.extend(["extra ", &base64(extra), "\n"]);
    }
    text.extend(["index ", &index.to_string(), "\n"]);
    for hash in &proof {
        text.push_str(&base64(hash));
        text.push('\n');
    }
    text.push('\n');
    text.push_str(reader.checkpoint_text().unwrap_or_default());
    Ok(text)
}

/// Proves that a log's tree of one size is the beginning of its tree of another.
pub fn prove_consistency(path: &Path, older: u64, newer: u64) -> Result<Vec<Hash>, VerifyError> {
    let mut tiles = Tiles::new(path);
    if older == 0 || older > newer {
        return Err(VerifyError::Proof { message: format!("there is no proof from size {older} to {newer}") });
    }
    let proof = if older == newer { Vec::new() } else { tiles.consistency(older, newer)? };
    let (first, second) = (tiles.root(older)?, tiles.root(newer)?);
    check_consistency(older, newer, &first, &second, &proof)?;
    Ok(proof)
}

/// A proof file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Whatever the maker added; nothing vouches for it
    pub extra: Option<Vec<u8>>,
    /// The entry
    pub index: u64,
    /// From the leaf's sibling upwards
    pub hashes: Vec<Hash>,
    /// The signed note
    pub note: String,
    /// What it says
    pub checkpoint: Checkpoint,
}

impl Proof {
    /// Reads a proof file; checks neither hashes nor signatures.
    pub fn parse(text: &str) -> Result<Self, VerifyError> {
        let fault = |line: usize, message: &str| Err(VerifyError::format(format!("line {line}"), message));
        if text.len() > AUDIT_NOTE_BYTES_MAX.saturating_mul(2) {
            return fault(1, "the proof is larger than two megabytes");
        }
        let Some(body) = text.strip_prefix(HEAD) else { return fault(1, "not `c2sp.org/tlog-proof@v1`") };
        let Some((head, note)) = body.split_once("\n\n") else { return fault(1, "there is no empty line") };
        let mut lines = head.split('\n').zip(2_usize..).peekable();
        let mut extra = None;
        if let Some((line, number)) = lines.next_if(|(line, _)| line.starts_with("extra ")) {
            let bytes = line.strip_prefix("extra ").and_then(decode);
            let Some(bytes) = bytes else { return fault(number, "the extra data is not base64") };
            extra = Some(bytes);
        }
        let index = lines.next().and_then(|(line, _)| line.strip_prefix("index ")).and_then(decimal);
        let Some(index) = index else { return fault(2, "there is no `index` with a decimal number") };
        let mut hashes = Vec::new();
        for (line, number) in lines {
            let Some(hash) = hash_from_base64(line) else { return fault(number, "not 32 bytes in base64") };
            if hashes.len() >= 64 {
                return fault(number, "more than 64 hashes");
            }
            hashes.push(hash);
        }
        let checkpoint = Checkpoint::unsigned(note)?;
        Ok(Self { extra, index, hashes, note: note.to_owned(), checkpoint })
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// Checks a proof file offline: the key has signed a tree in which the entry has that index.
pub fn check_proof(text: &str, keys: &[VerifierKey], entry: &[u8]) -> Result<Proof, VerifyError> {
    let proof = Proof::parse(text)?;
    let origin = &proof.checkpoint.origin;
    let may: Vec<VerifierKey> = keys.iter().filter(|key| may_sign(key, origin)).cloned().collect();
    if may.is_empty() {
        return Err(VerifyError::Key { message: format!("the key is not for the origin `{origin}`") });
    }
    Checkpoint::signed(&proof.note, &may)?;
    let checkpoint = &proof.checkpoint;
    check_inclusion(proof.index, checkpoint.size, &leaf_hash(entry), &proof.hashes, &checkpoint.root)?;
    Ok(proof)
}
