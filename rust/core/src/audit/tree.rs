//! The Merkle tree of RFC 6962 as the writer keeps it: the roots of the perfect subtrees on the right edge.
//!
//! `leaf = SHA-256(0x00 || entry)`, `node = SHA-256(0x01 || left || right)`, an empty tree is SHA-256 of nothing. What
//! verifies logs has code of its own.

use sha2::{Digest as _, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// The hash of an entry.
pub fn leaf(entry: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(entry).finalize().into()
}

/// The hash of two subtrees.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// The hash of a payload that stays outside the tree: what an entry may say of it.
pub fn commitment(salt: &[u8; 32], payload: &[u8]) -> Hash {
    Sha256::new().chain_update([2]).chain_update(salt).chain_update(payload).finalize().into()
}

/// A SHA-256 of plain bytes.
pub fn digest(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// The right edge of a tree: enough to append and to say the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// Roots of the perfect subtrees, largest first: one for each bit of the size
    roots: Vec<Hash>,
}

impl Frontier {
    /// How many leaves the tree has.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf by its hash.
    pub fn push(&mut self, leaf: Hash) {
        self.push_subtree(leaf, 0);
    }

    /// Appends the root of a perfect subtree of 2^`level` leaves. The size has to be a multiple of that.
    pub fn push_subtree(&mut self, root: Hash, level: u32) {
        let mut hash = root;
        // Each trailing one bit of the size is a subtree as large as this one has become.
        for _ in 0..(self.size >> level).trailing_ones() {
            if let Some(left) = self.roots.pop() {
                hash = node(&left, &hash);
            }
        }
        self.roots.push(hash);
        self.size = self.size.saturating_add(1_u64.checked_shl(level).unwrap_or(0));
    }

    /// The root hash.
    pub fn root(&self) -> Hash {
        let mut roots = self.roots.iter().rev();
        let Some(first) = roots.next() else { return digest(&[]) };
        roots.fold(*first, |right, left| node(left, &right))
    }
}

/// The root of a full tile, or of any number of hashes that is a power of two.
pub fn perfect_root(hashes: &[Hash]) -> Hash {
    let mut frontier = Frontier::default();
    for hash in hashes {
        frontier.push(*hash);
    }
    frontier.root()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, word by word.
    fn slow(entries: &[Vec<u8>]) -> Hash {
        match entries {
            [] => digest(&[]),
            [one] => leaf(one),
            _ => {
                let mut split = 1;
                while split * 2 < entries.len() {
                    split *= 2;
                }
                node(&slow(&entries[..split]), &slow(&entries[split..]))
            }
        }
    }

    #[test]
    fn the_edge_says_what_the_definition_says() {
        let entries: Vec<Vec<u8>> = (0..300_u32).map(|n| n.to_le_bytes().to_vec()).collect();
        let mut frontier = Frontier::default();
        for size in 0..=entries.len() {
            assert_eq!(frontier.size(), size as u64);
            assert_eq!(frontier.root(), slow(&entries[..size]), "{size}");
            if let Some(entry) = entries.get(size) {
                frontier.push(leaf(entry));
            }
        }
        let mut tiles = Frontier::default();
        let leaves: Vec<Hash> = entries.iter().map(|entry| leaf(entry)).collect();
        tiles.push_subtree(perfect_root(&leaves[..256]), 8);
        for hash in &leaves[256..] {
            tiles.push(*hash);
        }
        assert_eq!(tiles, frontier);
    }
}
