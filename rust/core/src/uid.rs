//! Entity identifiers: a type and an id, hashed once.
//!
//! An [`EntityUid`] carries its own 64-bit hash so that index and store probes never touch the text until a
//! candidate is found; equality always compares the text, so a hash collision costs time and never a decision.
//! The hash is seeded per process: text in requests comes from outside.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::LazyLock;

/// One seed for all uid hashes of the process, so that hashes of different sets and stores agree.
static SEED: LazyLock<foldhash::quality::RandomState> = LazyLock::new(foldhash::quality::RandomState::default);

/// Hashes one piece of text with the process seed.
#[inline]
pub fn hash_text(text: &str) -> u64 {
    let mut hasher = SEED.build_hasher();
    hasher.write(text.as_bytes());
    hasher.finish()
}

#[inline]
fn hash_pair(ty_hash: u64, id: &str) -> u64 {
    let mut hasher = SEED.build_hasher();
    hasher.write_u64(ty_hash);
    hasher.write(id.as_bytes());
    hasher.finish()
}

/// A type name and an id, `User::"alice"`.
pub struct EntityUid {
    hash: u64,
    ty_hash: u64,
    ty_len: usize,
    text: Box<str>,
}

impl EntityUid {
    /// Builds a uid from a type name and an unescaped id. The type name is not checked here: see [`EntityUid::parse`].
    pub fn new(ty: &str, id: &str) -> Self {
        let ty_hash = hash_text(ty);
        let mut text = String::with_capacity(ty.len().saturating_add(id.len()));
        text.push_str(ty);
        text.push_str(id);
        Self { hash: hash_pair(ty_hash, id), ty_hash, ty_len: ty.len(), text: text.into_boxed_str() }
    }

    /// The type name, `Ns::User`.
    #[inline]
    pub fn ty(&self) -> &str {
        self.text.get(..self.ty_len).unwrap_or_default()
    }

    /// The id, unescaped.
    #[inline]
    pub fn id(&self) -> &str {
        self.text.get(self.ty_len..).unwrap_or_default()
    }

    /// Hash over type and id.
    #[inline]
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// Hash of the type name alone, equal to [`hash_text`] of it.
    #[inline]
    pub const fn ty_hash(&self) -> u64 {
        self.ty_hash
    }
}

impl PartialEq for EntityUid {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other) || (self.hash == other.hash && self.ty_len == other.ty_len && self.text == other.text)
    }
}

impl Eq for EntityUid {}

impl Hash for EntityUid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialOrd for EntityUid {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for EntityUid {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.ty().cmp(other.ty()).then_with(|| self.id().cmp(other.id()))
    }
}

impl fmt::Display for EntityUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::\"{}\"", self.ty(), self.id().escape_debug())
    }
}

impl fmt::Debug for EntityUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
