//! Checkpoints: the signed sentence "the tree of this origin has so many leaves and this root".
//!
//! C2SP tlog-checkpoint inside a C2SP signed-note. The key that signs is behind [`Signer`]; the default is Ed25519 with
//! its private key in a PKCS#8 file that only its owner can read. No key is ever printed or part of an error.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, spki::der::pem::LineEnding};
use ed25519_dalek::{Signer as _, SigningKey};

use super::error::AuditError;
use super::tree::{Hash, digest};
use crate::limits::ORIGIN_BYTES_MAX;

/// Signature type of Ed25519 over the text of a note.
const ED25519: u8 = 0x01;
/// A PEM file of one Ed25519 key has about 120 bytes.
const KEY_FILE_BYTES_MAX: u64 = 4_096;

/// Signs the text of notes. Others than Ed25519 in a file (another process, a TPM, a vault) stand behind this.
pub trait Signer: Send + Sync + std::fmt::Debug {
    /// Signature type and public key, as a verifier key has them.
    fn public_key(&self) -> (u8, Vec<u8>);
    /// The signature of a note's text.
    fn sign(&self, text: &[u8]) -> Result<Vec<u8>, AuditError>;
}

/// Ed25519 with the private key in this process.
pub struct Ed25519Signer {
    key: SigningKey,
}

impl std::fmt::Debug for Ed25519Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ed25519Signer")
    }
}

impl Signer for Ed25519Signer {
    fn public_key(&self) -> (u8, Vec<u8>) {
        (ED25519, self.key.verifying_key().to_bytes().to_vec())
    }

    fn sign(&self, text: &[u8]) -> Result<Vec<u8>, AuditError> {
        Ok(self.key.sign(text).to_bytes().to_vec())
    }
}

impl Ed25519Signer {
    /// Makes a key and writes it to a file that must not be there. The file is there as a whole or not at all: a key that
    /// was cut short would keep its log closed for ever.
    pub fn generate(path: &Path) -> Result<Self, AuditError> {
        let io = |error| AuditError::io("cannot write the signing key", path)(error);
        if path.symlink_metadata().is_ok() {
            return Err(io(std::io::ErrorKind::AlreadyExists.into()));
        }
        let mut seed = [0_u8; 32];
        random(&mut seed)?;
        let key = SigningKey::from_bytes(&seed);
        seed.fill(0);
        let pem = key.to_pkcs8_pem(LineEnding::LF).map_err(|_| AuditError::invalid("the key cannot be encoded"))?;
        let mut tag = [0_u8; 8];
        random(&mut tag)?;
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{:016x}.new", u64::from_le_bytes(tag)));
        let beside = path.with_file_name(name);
        let written = write_key(&beside, path, pem.as_bytes());
        let _ = std::fs::remove_file(&beside);
        written.map_err(io)?;
        Ok(Self { key })
    }

    /// Reads a key. A file that others may read is refused.
    pub fn load(path: &Path) -> Result<Self, AuditError> {
        let io = AuditError::io("cannot read the signing key", path);
        let read = || -> std::io::Result<(u32, String)> {
            let file = File::open(path)?;
            let mode = file.metadata()?.permissions().mode();
            let mut text = String::new();
            file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text)?;
            Ok((mode, text))
        };
        let (mode, text) = read().map_err(io)?;
        if mode & 0o077 != 0 {
            let message = format!("the signing key can be read by others (mode {:o}); chmod 400", mode & 0o777);
            return Err(AuditError::format(path, message));
        }
        let key = SigningKey::from_pkcs8_pem(&text)
            .map_err(|_| AuditError::format(path, "not an Ed25519 private key in PKCS#8 PEM"))?;
        Ok(Self { key })
    }

    /// Reads the key, or makes it where there is none.
    pub fn load_or_generate(path: &Path) -> Result<Self, AuditError> {
        match Self::generate(path) {
            Err(AuditError::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => return made,
        }
        // Whoever has just made it may not have written it yet.
        let mut last = Self::load(path);
        for _ in 0..50 {
            match &last {
                Err(AuditError::Format { .. }) if std::fs::metadata(path).is_ok_and(|meta| meta.len() == 0) => {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                    last = Self::load(path);
                }
                _ => break,
            }
        }
        last
    }
}

/// Writes a key under a temporary name and gives it its own, if nobody else's has that.
fn write_key(beside: &Path, path: &Path, pem: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o400).open(beside)?;
    file.write_all(pem)?;
    file.sync_all()?;
    std::fs::hard_link(beside, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Random bytes of the kernel.
pub(super) fn random(bytes: &mut [u8]) -> Result<(), AuditError> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(len) => rest = rest.split_at_mut_checked(len).map(|(_, rest)| rest).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(AuditError::unavailable(format!("no random numbers: {error}"))),
        }
    }
    Ok(())
}

/// What a log calls itself: any text on one line without spaces and `+`, as key names are.
pub fn check_origin(origin: &str) -> Result<(), AuditError> {
    let refuse = |why: &str| {
        let shown: String = origin.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect();
        Err(AuditError::invalid(format!("origin `{shown}` {why}; it is a name such as example.com/gate")))
    };
    if origin.is_empty() || origin.len() > ORIGIN_BYTES_MAX {
        return refuse(&format!("has {} bytes, not 1 to {ORIGIN_BYTES_MAX}", origin.len()));
    }
    match origin.chars().find(|c| c.is_whitespace() || c.is_control() || *c == '+') {
        Some(found) => refuse(&format!("holds {}", found.escape_default())),
        None => Ok(()),
    }
}

/// The id of a key under a name.
fn key_id(name: &str, kind: u8, public: &[u8]) -> [u8; 4] {
    let mut bytes = Vec::with_capacity(name.len().saturating_add(public.len()).saturating_add(2));
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&[b'\n', kind]);
    bytes.extend_from_slice(public);
    let [a, b, c, d, ..] = digest(&bytes);
    [a, b, c, d]
}

/// The verifier key of a signer under a name, without a newline.
pub fn verifier_key(name: &str, signer: &dyn Signer) -> String {
    let (kind, public) = signer.public_key();
    let [a, b, c, d] = key_id(name, kind, &public);
    let mut key = vec![kind];
    key.extend_from_slice(&public);
    format!("{name}+{a:02x}{b:02x}{c:02x}{d:02x}+{}", BASE64.encode(key))
}

/// A signed checkpoint.
pub fn checkpoint(origin: &str, size: u64, root: &Hash, signer: &dyn Signer) -> Result<String, AuditError> {
    let text = format!("{origin}\n{size}\n{}\n", BASE64.encode(root));
    let (kind, public) = signer.public_key();
    let mut signature = key_id(origin, kind, &public).to_vec();
    signature.extend_from_slice(&signer.sign(text.as_bytes())?);
    Ok(format!("{text}\n\u{2014} {origin} {}\n", BASE64.encode(signature)))
}

/// Origin, size and root of a checkpoint text, for whoever wrote it. It verifies nothing.
pub(super) fn read_checkpoint(text: &str) -> Option<(&str, u64, Hash)> {
    let mut lines = text.lines();
    let (origin, size, root) = (lines.next()?, lines.next()?.parse().ok()?, lines.next()?);
    let root = BASE64.decode(root).ok()?;
    Some((origin, size, root.try_into().ok()?))
}
