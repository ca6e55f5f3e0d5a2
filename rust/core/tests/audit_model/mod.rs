//! A plain, slow writer of audit logs, from the formats alone: lists in memory, written out whole. Never a product's.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};

pub type Hash = [u8; 32];

pub fn sha(parts: &[&[u8]]) -> Hash {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part);
    }
    digest.finalize().into()
}

pub fn leaf(entry: &[u8]) -> Hash {
    sha(&[&[0], entry])
}

/// The recursive definition of RFC 6962.
pub fn tree(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => sha(&[]),
        [one] => *one,
        _ => {
            let middle = leaves.len().next_power_of_two() / 2;
            sha(&[&[1], &tree(&leaves[..middle]), &tree(&leaves[middle..])])
        }
    }
}

/// A folder that goes when the test ends.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("tollkeeper-{name}-{}-{count}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn key(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn key_id(name: &str, key: &SigningKey) -> [u8; 4] {
    sha(&[name.as_bytes(), &[0x0a, 1], key.verifying_key().as_bytes()])[..4].try_into().unwrap()
}

pub fn vkey(name: &str, key: &SigningKey) -> String {
    let id = format!("{:08x}", u32::from_be_bytes(key_id(name, key)));
    let public = [&[1][..], key.verifying_key().as_bytes()].concat();
    format!("{name}+{id}+{}", STANDARD.encode(public))
}

pub fn checkpoint(origin: &str, size: usize, root: &Hash, key: &SigningKey) -> String {
    let text = format!("{origin}\n{size}\n{}\n", STANDARD.encode(root));
    let signature = [&key_id(origin, key)[..], &key.sign(text.as_bytes()).to_bytes()].concat();
    format!("{text}\n\u{2014} {origin} {}\n", STANDARD.encode(signature))
}

#[derive(Clone)]
pub struct Entry {
    pub bytes: Vec<u8>,
    pub payload: Option<(Hash, Vec<u8>)>,
    pub erased: bool,
}

impl Entry {
    pub fn plain(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), payload: None, erased: false }
    }
}

/// One tree in memory.
#[derive(Clone)]
pub struct Model {
    pub origin: String,
    pub key: u8,
    pub entries: Vec<Entry>,
    /// Entries of each frame
    pub batch: usize,
    /// Frames of each segment
    pub segment_frames: usize,
    /// Sizes of the checkpoints that were published; the last is the current one
    pub signed: Vec<usize>,
    pub producer: u64,
    next: [u64; 2],
}

impl Model {
    pub fn new(origin: &str) -> Self {
        Self {
            origin: origin.to_owned(),
            key: 7,
            entries: Vec::new(),
            batch: 37,
            segment_frames: 4,
            signed: Vec::new(),
            producer: 0xabcd_ef01_2345_6789,
            next: [1, 1],
        }
    }

    pub fn key(&self) -> SigningKey {
        key(self.key)
    }

    pub fn vkey(&self) -> String {
        vkey(&self.origin, &self.key())
    }

    pub fn leaves(&self) -> Vec<Hash> {
        self.entries.iter().map(|entry| leaf(&entry.bytes)).collect()
    }

    pub fn root(&self, size: usize) -> Hash {
        tree(&self.leaves()[..size])
    }

    pub fn checkpoint(&self, size: usize) -> String {
        checkpoint(&self.origin, size, &self.root(size), &self.key())
    }

    pub fn envelope(&mut self, kind: &str, writer: bool) -> String {
        let next = &mut self.next[usize::from(writer)];
        let seq = *next;
        *next += 1;
        let end = if writer { ".w" } else { "" };
        let time = format!("2026-11-21T17:{:02}:{:02}.{:03}Z", seq / 60_000 % 60, seq / 1_000 % 60, seq % 1_000);
        format!(r#"{{"v":1,"kind":"{kind}","producer":"{:016x}{end}","seq":{seq},"time":"{time}""#, self.producer)
    }

    /// Leaves out sequence numbers of the ring.
    pub fn skip(&mut self, count: u64) {
        self.next[0] += count;
    }

    pub fn control(&mut self, kind: &str, members: &str) {
        let head = self.envelope(kind, true);
        self.entries.push(Entry::plain(format!("{head},{members}}}")));
    }

    pub fn decision(&mut self, number: u64, allow: bool, text: &str) {
        let head = self.envelope("decision", false);
        let payload = format!(r#"{{"input":{{"query":"{text}"}}}}"#).into_bytes();
        let salt = sha(&[b"salt", &number.to_le_bytes()]);
        let commitment = STANDARD.encode(sha(&[&[2], &salt, &payload]));
        let (id, bytes) = (format!("{:016x}-{number}", self.producer), payload.len());
        let verdict = if allow { "allow" } else { "deny" };
        let entry = format!(
            r#"{head},"id":"{id}","principal":"Agent::\"researcher\"","session":"s-{number}","run":"r3","action":"Action::\"search\"","resource":"Tool::\"web\"","tool":"web.search","arguments":{{"bytes":{bytes},"commitment":"{commitment}"}},"decision":"{verdict}","code":"policy.permit","policies":{{"allow-search":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}},"mode":"enforce","bundle":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","engine":"0.1.0"}}"#
        );
        self.entries.push(Entry { bytes: entry.into_bytes(), payload: Some((salt, payload)), erased: false });
    }

    pub fn outcome(&mut self, number: u64) {
        let head = self.envelope("outcome", false);
        let of = format!("{:016x}-{number}", self.producer);
        let entry = format!(r#"{head},"of":"{of}","status":"ok","usage":{{"tokens":17}},"duration_ms":12}}"#);
        self.entries.push(Entry::plain(entry));
    }

    /// A start, and then decisions with outcomes until there are as many entries as said.
    pub fn fill(&mut self, size: usize) {
        if self.entries.is_empty() {
            self.control("start", r#""origin":"x","epoch":1,"pid":7,"host":"h","engine":"0.1.0""#);
        }
        let mut number = self.entries.len() as u64;
        while self.entries.len() < size {
            self.decision(number, true, "what is a toll? \u{e9}");
            if self.entries.len() < size {
                self.outcome(number);
            }
            number += 1;
        }
    }

    /// The roots at the beginning of each frame and at the end, from hashes of complete subtrees.
    fn frame_roots(&self) -> Vec<Hash> {
        let mut stack: Vec<(u32, Hash)> = Vec::new();
        let mut roots = vec![sha(&[])];
        for (place, entry) in self.entries.iter().enumerate() {
            stack.push((0, leaf(&entry.bytes)));
            while let [.., (low, left), (height, right)] = &stack[..]
                && low == height
            {
                let joined = (height + 1, sha(&[&[1], left, right]));
                stack.truncate(stack.len() - 2);
                stack.push(joined);
            }
            if (place + 1) % self.batch == 0 || place + 1 == self.entries.len() {
                let (last, rest) = stack.split_last().unwrap();
                roots.push(rest.iter().rev().fold(last.1, |right, (_, left)| sha(&[&[1], left, &right])));
            }
        }
        roots
    }

    fn frame(&self, first: usize, count: usize, previous: &Hash, root: &Hash) -> Vec<u8> {
        let of = &self.entries[first..first + count];
        let mut entries = Vec::new();
        let mut payloads = Vec::new();
        for (place, entry) in of.iter().enumerate() {
            entries.extend_from_slice(&(entry.bytes.len() as u16).to_be_bytes());
            entries.extend_from_slice(&entry.bytes);
            let Some((salt, bytes)) = &entry.payload else { continue };
            let covered = if entry.erased { vec![0; 32 + bytes.len()] } else { [&salt[..], bytes].concat() };
            let checksum = if entry.erased { 0 } else { crc32c::crc32c(&covered) };
            for word in [place as u32, bytes.len() as u32, u32::from(entry.erased), checksum] {
                payloads.extend_from_slice(&word.to_le_bytes());
            }
            payloads.extend_from_slice(&covered);
        }
        let mut frame = b"TKF1".to_vec();
        frame.extend_from_slice(&0_u32.to_le_bytes());
        frame.extend_from_slice(&(first as u64).to_le_bytes());
        for word in [count as u32, entries.len() as u32, payloads.len() as u32, 0] {
            frame.extend_from_slice(&word.to_le_bytes());
        }
        for word in [self.producer, (first + count) as u64, 1_700_000_000_000, 0] {
            frame.extend_from_slice(&word.to_le_bytes());
        }
        frame.extend_from_slice(previous);
        frame.extend_from_slice(&entries);
        let checksum = crc32c::crc32c(&[&frame[..], root].concat());
        frame.extend_from_slice(&payloads);
        frame.extend_from_slice(root);
        frame.extend_from_slice(&checksum.to_le_bytes());
        frame.extend_from_slice(b"TKFE");
        frame.resize(frame.len().next_multiple_of(8), 0);
        frame
    }

    /// First entry and bytes of each frame.
    pub fn frames(&self) -> Vec<(usize, Vec<u8>)> {
        let roots = self.frame_roots();
        let firsts = (0..self.entries.len()).step_by(self.batch);
        firsts
            .zip(roots.windows(2))
            .map(|(first, roots)| {
                let count = self.batch.min(self.entries.len() - first);
                (first, self.frame(first, count, &roots[0], &roots[1]))
            })
            .collect()
    }

    pub fn segment(&self, first: usize, frames: &[Vec<u8>]) -> Vec<u8> {
        let used = 64 + frames.iter().map(Vec::len).sum::<usize>();
        let length = (used + 64).next_multiple_of(4_096);
        let mut segment = b"TKWAL001".to_vec();
        segment.extend_from_slice(&64_u32.to_le_bytes());
        segment.extend_from_slice(&0_u32.to_le_bytes());
        segment.extend_from_slice(&(first as u64).to_le_bytes());
        segment.extend_from_slice(&(length as u64).to_le_bytes());
        segment.extend_from_slice(&sha(&[self.origin.as_bytes()])[..24]);
        segment.extend_from_slice(&0_u32.to_le_bytes());
        segment.extend_from_slice(&crc32c::crc32c(&segment).to_le_bytes());
        for frame in frames {
            segment.extend_from_slice(frame);
        }
        segment.resize(length, 0);
        segment
    }

    pub fn write_wal(&self, folder: &Path) {
        fs::create_dir_all(folder.join("wal")).unwrap();
        for chunk in self.frames().chunks(self.segment_frames) {
            let frames: Vec<Vec<u8>> = chunk.iter().map(|(_, bytes)| bytes.clone()).collect();
            let path = folder.join(format!("wal/{:020}.seg", chunk[0].0));
            fs::write(path, self.segment(chunk[0].0, &frames)).unwrap();
        }
    }

    /// Tiles and bundles of one size.
    pub fn write_tiles(&self, folder: &Path, size: usize) {
        let mut hashes = self.leaves()[..size].to_vec();
        for (number, chunk) in self.entries[..size].chunks(256).enumerate() {
            let bytes: Vec<u8> = chunk
                .iter()
                .flat_map(|entry| [&(entry.bytes.len() as u16).to_be_bytes()[..], &entry.bytes].concat())
                .collect();
            put(folder, &tile_path("entries", number, chunk.len()), &bytes);
        }
        for level in 0.. {
            if hashes.is_empty() {
                break;
            }
            for (number, chunk) in hashes.chunks(256).enumerate() {
                put(folder, &tile_path(&level.to_string(), number, chunk.len()), &chunk.concat());
            }
            hashes = hashes.chunks_exact(256).map(tree).collect();
        }
    }

    /// Everything of one tree.
    pub fn write(&self, folder: &Path) {
        self.write_wal(folder);
        fs::write(folder.join("verifier.pub"), self.vkey() + "\n").unwrap();
        for size in &self.signed {
            self.write_tiles(folder, *size);
        }
        let notes: Vec<String> = self.signed.iter().map(|size| self.checkpoint(*size)).collect();
        fs::write(folder.join("checkpoints.log"), notes.join("---\n")).unwrap();
        if let Some(last) = notes.last() {
            fs::write(folder.join("checkpoint"), last).unwrap();
        }
    }
}

pub fn tile_path(level: &str, number: usize, width: usize) -> String {
    let group = format!("{:03}", number % 1_000);
    let above = number / 1_000;
    let name = if above > 0 { format!("x{above:03}/{group}") } else { group };
    if width == 256 { format!("tile/{level}/{name}") } else { format!("tile/{level}/{name}.p/{width}") }
}

fn put(folder: &Path, path: &str, bytes: &[u8]) {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Every file below a folder, sorted.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(path) = open.pop() {
        for item in fs::read_dir(path).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}
