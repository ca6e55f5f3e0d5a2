//! Signed notes, checkpoints and verifier keys, as <https://c2sp.org/signed-note> and <https://c2sp.org/tlog-checkpoint>
//! have them. Ed25519 (type 0x01) is the one known kind of key; every other signature is somebody else's and ignored.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

use super::error::VerifyError;
use super::merkle::Hash;
use crate::limits::{AUDIT_NOTE_BYTES_MAX, AUDIT_NOTE_SIGNATURES_MAX};

/// Bytes in standard base64.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A hash in standard base64: padded, and without stray bits.
pub fn hash_from_base64(text: &str) -> Option<Hash> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// A decimal number without sign or leading zeros.
pub fn decimal(text: &str) -> Option<u64> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    if plain { text.parse().ok() } else { None }
}

/// A key that signatures are checked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    public: VerifyingKey,
}

fn key_error<T>(message: impl Into<String>) -> Result<T, VerifyError> {
    Err(VerifyError::Key { message: message.into() })
}

fn key_id(name: &str, public: &VerifyingKey) -> [u8; 4] {
    let mut digest = Sha256::new();
    digest.update(name.as_bytes());
    digest.update([0x0a, 0x01]);
    digest.update(public.as_bytes());
    let hash: Hash = digest.finalize().into();
    let [first, second, third, fourth, ..] = hash;
    [first, second, third, fourth]
}

fn is_key_name(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+')
}

impl VerifierKey {
    /// Reads a key: `NAME+ID+BASE64`, one line.
    pub fn parse(text: &str) -> Result<Self, VerifyError> {
        let line = text.strip_suffix('\n').unwrap_or(text);
        // The base64 may hold `+` too, so the name and the id are split off from the left.
        let mut fields = line.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (fields.next(), fields.next(), fields.next()) else {
            return key_error("a verifier key is NAME+ID+BASE64");
        };
        if !is_key_name(name) {
            return key_error("the name of the verifier key is empty, or has spaces or control characters");
        }
        let Ok(bytes) = STANDARD.decode(key) else { return key_error("the verifier key is not base64") };
        let Some((kind, bytes)) = bytes.split_first() else { return key_error("the verifier key is empty") };
        if *kind != 0x01 {
            return key_error(format!("the verifier key has type {kind:#04x}; only Ed25519 (0x01) is known"));
        }
        let public = <&[u8; 32]>::try_from(bytes).ok().and_then(|bytes| VerifyingKey::from_bytes(bytes).ok());
        let Some(public) = public else { return key_error("the verifier key is no Ed25519 key") };
        let expected = format!("{:08x}", u32::from_be_bytes(key_id(name, &public)));
        if id != expected {
            return key_error(format!("the id of the verifier key is {id}, its content has {expected}"));
        }
        Ok(Self { name: name.to_owned(), public })
    }

    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same key under the name of another log of its owner: a gate signs all its logs with one key.
    #[must_use]
    pub fn named(&self, name: &str) -> Self {
        Self { name: name.to_owned(), public: self.public }
    }

    /// Whether both have the same public key.
    pub fn same_public(&self, other: &Self) -> bool {
        self.public == other.public
    }
}

/// A text with signature lines.
#[derive(Debug, Clone)]
pub struct Note<'a> {
    /// What is signed, with the line feed at its end
    pub text: &'a str,
    signatures: Vec<(&'a str, [u8; 4], Vec<u8>)>,
}

fn fault<T>(line: usize, message: impl Into<String>) -> Result<T, VerifyError> {
    Err(VerifyError::format(format!("line {line}"), message))
}

impl<'a> Note<'a> {
    /// Splits a note and reads its signature lines; checks no signature.
    pub fn parse(note: &'a str) -> Result<Self, VerifyError> {
        if note.len() > AUDIT_NOTE_BYTES_MAX {
            return fault(1, format!("a note of {} bytes exceeds the limit {AUDIT_NOTE_BYTES_MAX}", note.len()));
        }
        if let Some(at) = note.bytes().position(|byte| byte < 0x20 && byte != b'\n') {
            let line = note.bytes().take(at).filter(|byte| *byte == b'\n').count().saturating_add(1);
            return fault(line, "a control character");
        }
        let Some(split) = note.rfind("\n\n") else { return fault(1, "there is no empty line before signatures") };
        let (Some(text), Some(lines)) = (note.get(..=split), note.get(split.saturating_add(2)..)) else {
            return fault(1, "there is no empty line before signatures");
        };
        let mut number = text.lines().count().saturating_add(2);
        let Some(lines) = lines.strip_suffix('\n') else {
            return fault(number, "the signature lines do not end with a line feed");
        };
        let mut signatures = Vec::new();
        for line in lines.split('\n') {
            if signatures.len() >= AUDIT_NOTE_SIGNATURES_MAX {
                return fault(number, format!("more than {AUDIT_NOTE_SIGNATURES_MAX} signature lines"));
            }
            match signature_line(line) {
                Some(signature) => signatures.push(signature),
                None => return fault(number, "not a signature line: `\u{2014} NAME BASE64`"),
            }
            number = number.saturating_add(1);
        }
        Ok(Self { text, signatures })
    }

    /// Checks that a known key has signed, and that no signature of a known key is wrong.
    pub fn check(&self, keys: &[VerifierKey]) -> Result<(), VerifyError> {
        let mut signed = false;
        for (name, id, bytes) in &self.signatures {
            let known = keys.iter().find(|key| key.name == *name && key_id(&key.name, &key.public) == *id);
            let Some(key) = known else { continue };
            let signature = <&[u8; 64]>::try_from(bytes.as_slice()).map(Signature::from_bytes);
            let holds = signature.is_ok_and(|one| key.public.verify_strict(self.text.as_bytes(), &one).is_ok());
            if !holds {
                return Err(VerifyError::Signature { message: format!("the signature of `{name}` is wrong") });
            }
            signed = true;
        }
        if signed {
            return Ok(());
        }
        Err(VerifyError::Signature { message: "no known key has signed the note".to_owned() })
    }
}

fn signature_line(line: &str) -> Option<(&str, [u8; 4], Vec<u8>)> {
    let (name, encoded) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
    let bytes = STANDARD.decode(encoded).ok()?;
    let (id, signature) = bytes.split_first_chunk::<4>()?;
    (is_key_name(name) && !signature.is_empty()).then(|| (name, *id, signature.to_vec()))
}

/// What a checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log
    pub origin: String,
    /// Entries of the tree
    pub size: u64,
    /// Root of the tree
    pub root: Hash,
    /// Lines that the format leaves to others
    pub extensions: Vec<String>,
}

impl Checkpoint {
    /// Reads the signed part of a note.
    pub fn parse(text: &str) -> Result<Self, VerifyError> {
        let Some(body) = text.strip_suffix('\n') else { return fault(1, "the text does not end with a line feed") };
        let mut lines = body.split('\n');
        let (origin, size, root) = (lines.next(), lines.next(), lines.next());
        let Some(origin) = origin.filter(|origin| !origin.is_empty()) else { return fault(1, "the origin is empty") };
        let Some(size) = size.and_then(decimal) else {
            return fault(2, "the size is not a decimal number without leading zeros");
        };
        let Some(root) = root.and_then(hash_from_base64) else {
            return fault(3, "the root is not 32 bytes in base64");
        };
        let extensions: Vec<String> = lines.map(str::to_owned).collect();
        if let Some(at) = extensions.iter().position(String::is_empty) {
            return fault(at.saturating_add(4), "an extension line is empty");
        }
        Ok(Self { origin: origin.to_owned(), size, root, extensions })
    }

    /// Reads a whole note without looking at signatures.
    pub fn unsigned(note: &str) -> Result<Self, VerifyError> {
        Self::parse(Note::parse(note)?.text)
    }

    /// Reads a whole note that one of the keys, under the name of the note's origin, must have signed.
    pub fn signed(note: &str, keys: &[VerifierKey]) -> Result<Self, VerifyError> {
        let parsed = Note::parse(note)?;
        let checkpoint = Self::parse(parsed.text)?;
        let named: Vec<VerifierKey> = keys.iter().map(|key| key.named(&checkpoint.origin)).collect();
        parsed.check(&named)?;
        Ok(checkpoint)
    }
}

/// The origin without the numbers of slot and epoch at its end.
fn base(origin: &str) -> &str {
    let strip = |text: &'_ str| match text.rsplit_once('/') {
        Some((head, tail)) if !head.is_empty() && decimal(tail).is_some() => head.len(),
        _ => text.len(),
    };
    let once = origin.get(..strip(origin)).unwrap_or(origin);
    once.get(..strip(once)).unwrap_or(once)
}

/// Whether a key with this name may sign for the origin: the same one, or another slot or epoch of the same log.
pub fn may_sign(key: &VerifierKey, origin: &str) -> bool {
    key.name == origin || base(&key.name) == base(origin)
}
