//! The Merkle tree of RFC 6962 as the writer keeps it: the roots of the perfect subtrees on the right edge.
//!
//! `leaf = SHA-256(0x00 || entry)`, `node = SHA-256(0x01 || left || right)`, an empty tree is SHA-256 of nothing. What
//! verifies logs has code of its own.

use sha2::block_api::compress256;
use sha2::{Digest as _, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// The hash of an entry.
pub fn leaf(entry: &[u8]) -> Hash {
    prefixed(&[0], entry)
}

/// The hash of two subtrees.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    let mut blocks = NODE_BLOCKS;
    let (_, places) = blocks.split_at_mut(1);
    for (place, hash) in places.as_chunks_mut().0.iter_mut().zip([left, right]) {
        *place = *hash;
    }
    let mut state = INITIAL;
    compress256(&mut state, blocks.as_chunks().0);
    hash_of(state)
}

/// The hash of a payload that stays outside the tree: what an entry may say of it.
pub fn commitment(salt: &[u8; 32], payload: &[u8]) -> Hash {
    let mut head = [2; 33];
    if let Some(place) = head.last_chunk_mut() {
        *place = *salt;
    }
    prefixed(&head, payload)
}

/// What SHA-256 begins with.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// A node's two blocks without its hashes: the 1 in front, what SHA-256 puts behind 65 bytes.
const NODE_BLOCKS: [u8; 128] = {
    let mut blocks = [0; 128];
    blocks[0] = 1;
    blocks[65] = 0x80;
    let bits = (65_u16 * 8).to_be_bytes();
    (blocks[126], blocks[127]) = (bits[0], bits[1]);
    blocks
};

/// SHA-256 of a few bytes and some more. A hasher that takes pieces copies them into a buffer first, which for what an
/// entry has costs a tenth of the hashing.
fn prefixed<const N: usize>(head: &[u8; N], rest: &[u8]) -> Hash {
    let mut state = INITIAL;
    let mut first = [0; 64];
    let from_rest = 64_usize.saturating_sub(N).min(rest.len());
    let (now, later) = rest.split_at_checked(from_rest).unwrap_or((rest, &[]));
    if let Some((start, more)) = first.split_first_chunk_mut::<N>() {
        *start = *head;
        if let Some(more) = more.get_mut(..now.len()) {
            more.copy_from_slice(now);
        }
    }
    let len = rest.len().saturating_add(N);
    // What is not a whole block: all of it, or what the blocks leave.
    let (blocks, tail) = later.as_chunks::<64>();
    let mut tail = tail;
    if len < 64 {
        tail = first.get(..len).unwrap_or_default();
    } else {
        compress256(&mut state, &[first]);
        compress256(&mut state, blocks);
    }
    let mut last = [0; 128];
    let bits = (len as u64).wrapping_mul(8).to_be_bytes();
    let last_blocks = if tail.len() < 56 { 1 } else { 2 };
    if let Some((place, [end, ..])) = last.split_at_mut_checked(tail.len()) {
        place.copy_from_slice(tail);
        *end = 0x80;
    }
    let last = last.as_chunks_mut::<64>().0;
    let used = last.get_mut(..last_blocks).unwrap_or_default();
    if let Some(place) = used.last_mut().and_then(|block| block.last_chunk_mut()) {
        *place = bits;
    }
    compress256(&mut state, used);
    hash_of(state)
}

fn hash_of(state: [u32; 8]) -> Hash {
    let mut hash = [0; 32];
    for (to, word) in hash.as_chunks_mut().0.iter_mut().zip(state) {
        *to = word.to_be_bytes();
    }
    hash
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
    #[expect(clippy::arithmetic_side_effects, reason = "small numbers")]
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
    fn hashes_are_those_of_a_hasher() {
        let bytes: Vec<u8> = (0..400_u32).map(|n| n.to_le_bytes()[0].wrapping_mul(7)).collect();
        let (salt, other): (Hash, Hash) = (digest(b"a"), digest(b"b"));
        for len in 0..bytes.len() {
            let entry = &bytes[..len];
            assert_eq!(leaf(entry), digest(&[&[0], entry].concat()), "{len}");
            assert_eq!(commitment(&salt, entry), digest(&[&[2], &salt[..], entry].concat()), "{len}");
        }
        assert_eq!(node(&salt, &other), digest(&[&[1], &salt[..], &other].concat()));
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
