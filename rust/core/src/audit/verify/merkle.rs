//! The tree of RFC 6962: its hashes, and checking proofs of inclusion and consistency.
//!
//! Proofs are checked exactly as <https://github.com/transparency-dev/merkle> does it, whose vectors the tests run. No
//! tree is kept here: [`Range`] holds one hash for each set bit of the size.

use sha2::{Digest, Sha256};

use super::error::VerifyError;

/// A SHA-256 digest.
pub type Hash = [u8; 32];

/// The hash of an entry.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    let mut digest = Sha256::new();
    digest.update([0]);
    digest.update(entry);
    digest.finalize().into()
}

/// The hash over two subtrees.
pub fn node_hash(left: &[u8], right: &[u8]) -> Hash {
    let mut digest = Sha256::new();
    digest.update([1]);
    digest.update(left);
    digest.update(right);
    digest.finalize().into()
}

/// The root of the tree without entries.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// The commitment to a payload that lies outside the tree.
pub fn commitment(salt: &[u8], payload: &[u8]) -> Hash {
    let mut digest = Sha256::new();
    digest.update([2]);
    digest.update(salt);
    digest.update(payload);
    digest.finalize().into()
}

fn refuse<T>(message: impl Into<String>) -> Result<T, VerifyError> {
    Err(VerifyError::Proof { message: message.into() })
}

fn all_hashes(proof: &[impl AsRef<[u8]>]) -> Result<(), VerifyError> {
    match proof.iter().position(|hash| hash.as_ref().len() != 32) {
        Some(at) => refuse(format!("hash {at} of the proof does not have 32 bytes")),
        None => Ok(()),
    }
}

fn same(computed: &[u8], given: &[u8], what: &str) -> Result<(), VerifyError> {
    if computed == given { Ok(()) } else { refuse(format!("the proof does not lead to {what}")) }
}

/// How many hashes of an inclusion proof lie below the place where the path leaves the right border, and how many on it.
fn parts(index: u64, size: u64) -> (u32, u32) {
    let inner = u64::BITS.saturating_sub((index ^ size.saturating_sub(1)).leading_zeros());
    let border = index.checked_shr(inner).unwrap_or(0).count_ones();
    (inner, border)
}

/// Hashes upwards below the border; `right_only` leaves out the siblings to the right, as the older tree had none.
fn chain_inner(seed: &[u8], proof: &[impl AsRef<[u8]>], index: u64, right_only: bool) -> Vec<u8> {
    let mut hash = seed.to_vec();
    let mut bits = index;
    for sibling in proof {
        if bits & 1 == 1 {
            hash = node_hash(sibling.as_ref(), &hash).to_vec();
        } else if !right_only {
            hash = node_hash(&hash, sibling.as_ref()).to_vec();
        }
        bits >>= 1;
    }
    hash
}

fn chain_border(seed: Vec<u8>, proof: &[impl AsRef<[u8]>]) -> Vec<u8> {
    proof.iter().fold(seed, |hash, sibling| node_hash(sibling.as_ref(), &hash).to_vec())
}

/// Checks that the entry with `leaf` is number `index` of the tree with `size` entries and `root`.
pub fn check_inclusion(
    index: u64,
    size: u64,
    leaf: &[u8],
    proof: &[impl AsRef<[u8]>],
    root: &[u8],
) -> Result<(), VerifyError> {
    if index >= size {
        return refuse(format!("index {index} is beyond the size {size}"));
    }
    if leaf.len() != 32 {
        return refuse(format!("the leaf hash has {} bytes, not 32", leaf.len()));
    }
    all_hashes(proof)?;
    let (inner, border) = parts(index, size);
    let needed = inner.saturating_add(border) as usize;
    let (Some((low, high)), true) = (proof.split_at_checked(inner as usize), proof.len() == needed) else {
        return refuse(format!("the proof has {} hashes, not {needed}", proof.len()));
    };
    same(&chain_border(chain_inner(leaf, low, index, false), high), root, "the root")
}

/// Checks that the tree with `size1` and `root1` is a beginning of the one with `size2` and `root2`.
pub fn check_consistency(
    size1: u64,
    size2: u64,
    root1: &[u8],
    root2: &[u8],
    proof: &[impl AsRef<[u8]>],
) -> Result<(), VerifyError> {
    if size2 < size1 {
        return refuse(format!("the later size {size2} is below {size1}"));
    }
    if size1 == size2 {
        if !proof.is_empty() {
            return refuse("the sizes are equal and the proof is not empty");
        }
        return if size1 == 0 { refuse("nothing follows from an empty tree") } else { same(root1, root2, "the root") };
    }
    if size1 == 0 {
        return refuse("nothing follows from an empty tree");
    }
    all_hashes(proof)?;
    let shift = size1.trailing_zeros();
    let (inner, border) = parts(size1.saturating_sub(1), size2);
    let inner = inner.saturating_sub(shift) as usize;
    // The proof begins with the subtree that ends the older tree, unless that subtree is the whole of it.
    let (seed, rest) = match proof.split_first() {
        _ if size1.is_power_of_two() => (root1, proof),
        Some((first, rest)) => (first.as_ref(), rest),
        None => return refuse("the proof is empty"),
    };
    let needed = inner.saturating_add(border as usize);
    let (Some((low, high)), true) = (rest.split_at_checked(inner), rest.len() == needed) else {
        return refuse(format!("the proof has {} hashes beside the first, not {needed}", rest.len()));
    };
    if proof.is_empty() {
        return refuse("the proof is empty");
    }
    let mask = size1.saturating_sub(1).checked_shr(shift).unwrap_or(0);
    let older = chain_border(chain_inner(seed, low, mask, true), high);
    same(&older, root1, "the older root")?;
    let newer = chain_border(chain_inner(seed, low, mask, false), high);
    same(&newer, root2, "the newer root")
}

/// The hashes of the complete subtrees that make up a tree, from the left: all that its root needs.
#[derive(Debug, Clone, Default)]
pub struct Range {
    hashes: Vec<Hash>,
    size: u64,
}

impl Range {
    /// Entries so far.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The hashes, from the left.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// A range over the hashes of complete subtrees, from the left, that make up a tree of `size`.
    pub const fn from_hashes(hashes: Vec<Hash>, size: u64) -> Self {
        Self { hashes, size }
    }

    /// Takes the next leaf hash.
    pub fn push(&mut self, leaf: Hash) {
        let (mut hash, mut bits) = (leaf, self.size);
        while bits & 1 == 1 {
            let Some(left) = self.hashes.pop() else { break };
            hash = node_hash(&left, &hash);
            bits >>= 1;
        }
        self.hashes.push(hash);
        self.size = self.size.saturating_add(1);
    }

    /// The root of the tree so far.
    pub fn root(&self) -> Hash {
        let mut hashes = self.hashes.iter().rev();
        let Some(last) = hashes.next() else { return empty_root() };
        hashes.fold(*last, |hash, left| node_hash(left, &hash))
    }
}

/// The root over hashes that fill a complete subtree, or the tree of that many.
pub fn root_of(hashes: &[Hash]) -> Hash {
    let mut range = Range::default();
    for hash in hashes {
        range.push(*hash);
    }
    range.root()
}
