//! Entity identifiers: a type and an id, hashed once.
//!
//! An [`EntityUid`] carries its own 64-bit hash so that index and store probes never touch the text until a
//! candidate is found; equality always compares the text, so a hash collision costs time and never a decision.
//! The hash is seeded per process: text in requests comes from outside.
//!
//! [`EntityUid::parse`] accepts what the reference's own `FromStr` accepts and nothing else: the printed form, with no
//! white space, no comments and exactly the escapes that printing writes, so that a uid has one spelling.

use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::LazyLock;

use thiserror::Error;

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

/// Characters of a malformed type name that an error shows.
const SHOWN_CHARS_MAX: usize = 40;

/// Words of the language that cannot be part of a type name, and the prefix the language keeps for itself.
const RESERVED: [&str; 10] = ["true", "false", "if", "then", "else", "in", "is", "like", "has", "__cedar"];

/// Why a text is not an entity uid. The id is not in the message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UidError {
    /// Not a type, two colons and an id in double quotes.
    #[error("an entity uid must read Type::\"id\"")]
    Shape,
    /// Not a type name.
    #[error("`{shown}` is not an entity type name")]
    Type {
        /// The first characters of what stands where the type should be.
        shown: String,
    },
    /// The id is escaped in a way that printing would not write.
    #[error("the id of an entity uid of type `{ty}` is not escaped in Cedar's normal form")]
    Escape {
        /// The type name.
        ty: String,
    },
}

impl UidError {
    /// The stable name of this error.
    pub const fn code(&self) -> &'static str {
        "uid.syntax"
    }

    /// What to do about it.
    pub const fn help(&self) -> &'static str {
        match self {
            Self::Shape => "write User::\"alice\" or Ns::User::\"alice\"; the quotes are part of the text",
            Self::Type { .. } => "a type name is identifiers joined by `::`, without spaces and reserved words",
            Self::Escape { .. } => "build the uid from its type and its id, then no escapes are needed",
        }
    }

    fn ty(shown: &str) -> Self {
        Self::Type { shown: shown.escape_debug().take(SHOWN_CHARS_MAX).collect() }
    }
}

fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first == b'_' || first.is_ascii_alphabetic())
        && bytes.all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
        && !RESERVED.contains(&text)
}

/// Whether `text` is an entity type name: identifiers joined by `::`.
pub fn is_type_name(text: &str) -> bool {
    text.split("::").all(is_identifier)
}

/// Undoes the escapes that [`str::escape_debug`] writes; `None` for any other.
fn unescape(text: &str) -> Option<String> {
    let mut id = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            id.push(c);
            continue;
        }
        id.push(match rest.next()? {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '0' => '\0',
            c @ ('\\' | '\'' | '"') => c,
            'u' => {
                let (hex, after) = rest.as_str().strip_prefix('{')?.split_once('}')?;
                rest = after.chars();
                char::from_u32(u32::from_str_radix(hex, 16).ok()?)?
            }
            _ => return None,
        });
    }
    Some(id)
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

    /// Builds a uid from a type name, which is checked, and an unescaped id, which may be any text.
    pub fn from_parts(ty: &str, id: &str) -> Result<Self, UidError> {
        if !is_type_name(ty) {
            return Err(UidError::ty(ty));
        }
        Ok(Self::new(ty, id))
    }

    /// Reads the printed form, `Ns::User::"alice"`.
    ///
    /// # Errors
    /// Whatever the reference refuses: see the head of this file.
    ///
    /// # Cost
    /// One allocation where the id has no escapes, two where it has.
    pub fn parse(text: &str) -> Result<Self, UidError> {
        // No quote can stand in a type name, so the first one opens the id; the last one closes it.
        let (ty, escaped) = text.strip_suffix('"').and_then(|head| head.split_once("::\"")).ok_or(UidError::Shape)?;
        if escaped.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\'' | b'\\')) {
            return Self::from_parts(ty, escaped);
        }
        if !is_type_name(ty) {
            return Err(UidError::ty(ty));
        }
        match unescape(escaped) {
            Some(id) if id.escape_debug().eq(escaped.chars()) => Ok(Self::new(ty, &id)),
            _ => Err(UidError::Escape { ty: ty.to_owned() }),
        }
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

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use proptest::prelude::*;

    use super::*;

    /// Same answer as the reference, same type, same id, and printing gives the text back.
    fn agree(text: &str) -> Result<(), TestCaseError> {
        match (EntityUid::parse(text), cedar_policy::EntityUid::from_str(text)) {
            (Ok(ours), Ok(theirs)) => {
                prop_assert_eq!(ours.ty(), theirs.type_name().to_string());
                prop_assert_eq!(ours.id(), AsRef::<str>::as_ref(theirs.id()));
                prop_assert_eq!(ours.to_string(), text);
            }
            (ours, theirs) => prop_assert!(ours.is_err() && theirs.is_err(), "{text}: {ours:?} or {theirs:?}"),
        }
        Ok(())
    }

    #[test]
    fn the_reference_agrees_on_the_corners() {
        for text in [
            r#"User::"alice""#,
            r#"Ns::Sub::User::"alice""#,
            r#"User::"""#,
            r#"U::"a::\"b""#,
            r#"U::"a::"b""#,
            r#"U::"a\""#,
            r#"U::"a\\""#,
            r#"U::"a\'b""#,
            r#"U::"a'b""#,
            r#"U::"\u{41}""#,
            r#"U::"\u{1}""#,
            r#"U::"\u{01}""#,
            r#"U::"\u{d800}""#,
            r#"U::"\x41""#,
            r#"U::"\0\t\r\n""#,
            r#"U::"é""#,
            r#"U::"\u{200b}""#,
            "U::\"\u{200b}\"",
            "U::\"\u{301}\"",
            "U::\"a\u{301}\"",
            "U::\"\n\"",
            "U::\"\\\n  a\"",
            r#" U::"a""#,
            r#"U :: "a""#,
            r#"U::"a" "#,
            r#"U::"a"//"#,
            r#"::"a""#,
            r#"U::::"a""#,
            r#"U:"a""#,
            r#""a""#,
            "",
            "\"",
            "U::",
            "U",
            r#"U::"a"#,
            r#"if::"a""#,
            r#"A::if::"a""#,
            r#"permit::"a""#,
            r#"principal::X::"a""#,
            r#"__cedar::"a""#,
            r#"A::__cedar::"a""#,
            r#"__cedar::A::"a""#,
            r#"_::"a""#,
            r#"9U::"a""#,
            r#"Ü::"a""#,
            r#"U::"*""#,
            r#"U::"\*""#,
            r"U::{x: 1}",
        ] {
            agree(text).unwrap();
        }
    }

    proptest! {
        #[test]
        fn printing_round_trips(ty in "[A-Za-z_][A-Za-z0-9_]{0,5}(::[A-Za-z_][A-Za-z0-9_]{0,5}){0,3}", id in any::<String>()) {
            if let Ok(uid) = EntityUid::from_parts(&ty, &id) {
                prop_assert_eq!(EntityUid::parse(&uid.to_string()), Ok(uid));
            }
            agree(&EntityUid::new(&ty, &id).to_string())?;
        }

        #[test]
        fn the_reference_agrees(text in r#"(User|if|A::B|A ::B|__cedar|is)(::|:| ::)"?([a'"\\ ]|\\[nrt0'"ux*]|\\u\{[0-9a-f_]{0,6}\}|\PC|\n){0,4}"? ?"#) {
            agree(&text)?;
        }
    }
}
