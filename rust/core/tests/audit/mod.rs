//! What the tests of the log share: folders, records, and a plain checker that reads a log from its files alone.
//!
//! The checker knows the format and not the code: it takes every entry out of the bundles, makes the tree anew by the
//! definition of RFC 6962, compares root, signature and every tile, and counts each producer's sequence numbers.

#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::missing_panics_doc,
    clippy::cast_possible_truncation,
    reason = "each test uses a part of these"
)]

pub(crate) mod entries;
pub(crate) mod recovery;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Verifier as _, VerifyingKey};
use sha2::{Digest as _, Sha256};
use tollkeeper_core::audit::entry::{Kind, Private, Record};
use tollkeeper_core::audit::log::{Log, LogOptions, Refused};
use tollkeeper_core::audit::verify::check::{Options, verify};
use tollkeeper_core::audit::verify::report::{LogReport, Verdict};

pub(crate) type Hash = [u8; 32];
pub(crate) const ORIGIN: &str = "example.com/gate";

/// An empty folder of this test's own. In memory where that is to be had: most tests are not about how fast a disk is.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        Self::within(&base, name)
    }

    pub(crate) fn on_disk(name: &str) -> Self {
        Self::within(&std::env::temp_dir(), name)
    }

    fn within(base: &Path, name: &str) -> Self {
        let folder = base.join(format!("tollkeeper-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

impl std::ops::Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

/// Small and quick.
pub(crate) fn options(instance: u64) -> LogOptions {
    let mut options = LogOptions::new(ORIGIN, instance);
    options.ring_bytes = 512 << 10;
    options.segment_bytes = 16 << 20;
    options.interval_ms = 1;
    options.checkpoint_interval_ms = 5;
    options
}

/// The members of a note that says this.
pub(crate) fn note(text: &str) -> Vec<u8> {
    format!(",\"text\":\"{text}\"").into_bytes()
}

pub(crate) fn record(members: &[u8]) -> Record<'_> {
    Record { kind: Kind::Note, time_ms: 1_763_744_718_123, head: members, tail: &[], private: Private::None }
}

pub(crate) fn append(log: &Log, text: &str) -> u64 {
    log.append(&record(&note(text)), 10_000).unwrap()
}

/// Publishes a note if there is room.
pub(crate) fn try_append(log: &Log, text: &str) -> Result<u64, Refused> {
    let members = note(text);
    let bytes = Log::bytes_for(members.len());
    let claim = log.claim(bytes)?;
    let seq = claim.seq();
    assert!(claim.publish(&record(&members)));
    Ok(seq)
}

fn leaf(entry: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(entry).finalize().into()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// By the definition: split at the largest power of two below the number.
pub(crate) fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest([]).into(),
        [one] => *one,
        _ => {
            let split = leaves.len().next_power_of_two() / 2;
            let (left, right) = leaves.split_at(split);
            node(&root(left), &root(right))
        }
    }
}

/// Where a tile or bundle lies.
fn tile(folder: &str, mut index: usize, width: usize) -> String {
    let mut path = format!("{:03}", index % 1_000);
    while index >= 1_000 {
        index /= 1_000;
        path = format!("x{:03}/{path}", index % 1_000);
    }
    if width < 256 { format!("{folder}/{path}.p/{width}") } else { format!("{folder}/{path}") }
}

/// A checkpoint that was read and whose signature holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) origin: String,
    pub(crate) size: usize,
    pub(crate) root: Hash,
}

pub(crate) fn checkpoint(text: &str, key: &str) -> Checkpoint {
    let (body, signatures) = text.split_once("\n\n").expect("an empty line");
    let lines: Vec<&str> = body.split('\n').collect();
    assert_eq!(lines.len(), 3, "{text}");
    let (name, rest) = key.trim_end().split_once('+').expect("a key");
    let (id, public) = rest.split_once('+').expect("a key");
    let public = BASE64.decode(public).expect("base64");
    assert_eq!((name, public[0]), (lines[0], 1));
    let key = VerifyingKey::from_bytes(public[1..].try_into().expect("32 bytes")).expect("a key");
    let line = signatures.strip_prefix("\u{2014} ").expect("a signature").trim_end_matches('\n');
    let (signer, signature) = line.split_once(' ').expect("a signature");
    let signature = BASE64.decode(signature).expect("base64");
    let shown = format!("{:08x}", u32::from_be_bytes(*signature.first_chunk().expect("a key id")));
    assert_eq!((signer, shown.as_str()), (name, id));
    let signature = Signature::from_slice(&signature[4..]).expect("64 bytes");
    key.verify(format!("{body}\n").as_bytes(), &signature).expect("the signature holds");
    let root = BASE64.decode(lines[2]).expect("base64").try_into().expect("32 bytes");
    Checkpoint { origin: lines[0].to_owned(), size: lines[1].parse().expect("a number"), root }
}

/// Everything that a folder says in one epoch.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) entries: Vec<serde_json::Value>,
    pub(crate) raw: Vec<Vec<u8>>,
}

/// Reads one epoch and checks all of it.
pub(crate) fn read_epoch(folder: &Path) -> Read {
    let text = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let (note, key) = (text("checkpoint"), text("verifier.pub"));
    let checkpoint = checkpoint(&note, &key);
    let bytes_of = |path: String| {
        let path = folder.join(path);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let mut raw = Vec::new();
    while raw.len() < checkpoint.size {
        let width = (checkpoint.size - raw.len()).min(256);
        let bundle = bytes_of(tile("tile/entries", raw.len() / 256, width));
        let mut rest = &bundle[..];
        for _ in 0..width {
            let (len, after) = rest.split_first_chunk::<2>().expect("a length");
            let (entry, after) = after.split_at(usize::from(u16::from_be_bytes(*len)));
            raw.push(entry.to_vec());
            rest = after;
        }
        assert!(rest.is_empty(), "a bundle ends with its last entry");
    }
    let leaves: Vec<Hash> = raw.iter().map(|entry| leaf(entry)).collect();
    assert_eq!(root(&leaves), checkpoint.root, "the root is that of the entries");
    let (mut level, mut hashes) = (0, leaves);
    while !hashes.is_empty() {
        let mut above = Vec::new();
        for (index, part) in hashes.chunks(256).enumerate() {
            let stored = bytes_of(tile(&format!("tile/{level}"), index, part.len()));
            assert_eq!(stored, part.as_flattened(), "tile {level}/{index}");
            if part.len() == 256 {
                above.push(root(part));
            }
        }
        (level, hashes) = (level + 1, above);
    }
    let kept = text("checkpoints.log");
    let blocks: Vec<&str> = kept.split_terminator("---\n").collect();
    assert_eq!(blocks.last(), Some(&&*note), "the last that was kept is the current one");
    let mut size = 0;
    for block in &blocks {
        let (line, _) = block.split_once("\n\n").expect("a note");
        let next: usize = line.split('\n').nth(1).expect("a size").parse().expect("a number");
        assert!(next > size, "checkpoints grow: {size}, {next}");
        size = next;
    }
    let entries = raw.iter().map(|entry| serde_json::from_slice(entry).expect("an entry is JSON")).collect();
    Read { checkpoint, entries, raw }
}

/// Reads all epochs of a closed log, checks them and what ties them together, and counts: every producer's numbers are
/// there once, in order, or named as lost.
pub(crate) fn read(folder: &Path) -> Vec<serde_json::Value> {
    let mut epochs = Vec::new();
    while folder.join(format!("epochs/{}", epochs.len() + 1)).is_dir() {
        epochs.push(folder.join(format!("epochs/{}", epochs.len() + 1)));
    }
    epochs.push(folder.to_owned());
    let mut all = Vec::new();
    let mut before: Option<Checkpoint> = None;
    for epoch in epochs {
        let read = read_epoch(&epoch);
        if let Some(before) = before {
            let first = &read.entries[0];
            assert_eq!(first["kind"], "epoch", "{first}");
            assert_eq!(
                (first["origin"].as_str(), first["size"].as_u64()),
                (Some(&*before.origin), Some(before.size as u64))
            );
            assert_eq!(first["root"], BASE64.encode(before.root));
        }
        before = Some(read.checkpoint);
        all.extend(read.entries);
    }
    count(&all);
    verifies(folder);
    all
}

/// What the verifier says, which was written apart from the writer.
pub(crate) fn verifies(folder: &Path) {
    let options = Options { trust_directory: true, ..Options::default() };
    let report = verify(folder, &options, &mut |_, _| true).unwrap_or_else(|error| panic!("{error}"));
    let said: Vec<String> = report.logs().map(LogReport::summary).collect();
    assert!(report.integrity(), "{said:?} {:?}", report.faults);
    // A gap that an entry tells of is one.
    let told: u64 =
        report.slots.iter().map(|slot| slot.completeness.gap_count + slot.completeness.denied_unlogged_count).sum();
    let expected = if told > 0 { Verdict::Incomplete } else { Verdict::Ok };
    assert_eq!(
        report.verdict(),
        expected,
        "{said:?} {:?}",
        report.slots.iter().map(|slot| &slot.completeness).collect::<Vec<_>>()
    );
}

/// Every sequence number once, in order, or lost.
pub(crate) fn count(entries: &[serde_json::Value]) {
    let mut last: BTreeMap<&str, u64> = BTreeMap::new();
    let mut missing: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for entry in entries {
        let producer = entry["producer"].as_str().expect("a producer");
        let seq = entry["seq"].as_u64().expect("a number");
        let last = last.entry(producer).or_default();
        assert!(seq > *last, "{producer} has {seq} after {last}: {entry}");
        missing.entry(producer).or_default().extend(*last + 1..seq);
        *last = seq;
    }
    for entry in entries.iter().filter(|entry| entry["kind"] == "recovery") {
        let Some(of) = entry["of"].as_str() else { continue };
        for run in entry["lost"].as_array().expect("a list") {
            let [from, to] = [&run[0], &run[1]].map(|number| number.as_u64().expect("a number"));
            let there: Vec<u64> = entries
                .iter()
                .filter(|entry| entry["producer"] == of)
                .filter_map(|entry| entry["seq"].as_u64())
                .filter(|seq| (from..=to).contains(seq))
                .collect();
            assert!(there.is_empty(), "{there:?} of {of} are said to be lost and are there");
            if let Some(missing) = missing.get_mut(of) {
                missing.retain(|seq| !(from..=to).contains(seq));
            }
        }
    }
    missing.retain(|_, missing| !missing.is_empty());
    assert!(missing.is_empty(), "numbers that nothing accounts for: {missing:?}");
}

/// The texts of all notes, in order.
pub(crate) fn texts(entries: &[serde_json::Value]) -> Vec<String> {
    entries
        .iter()
        .filter(|entry| entry["kind"] == "note")
        .filter_map(|entry| Some(entry["text"].as_str()?.to_owned()))
        .collect()
}

/// How many entries are of a kind.
pub(crate) fn of_kind<'e>(entries: &'e [serde_json::Value], kind: &str) -> Vec<&'e serde_json::Value> {
    entries.iter().filter(|entry| entry["kind"] == kind).collect()
}
