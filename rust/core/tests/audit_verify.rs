//! The verifier of audit logs: vectors of others, a log that Tessera made, and logs of a plain model, whole and mutated.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests")]
#![expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::Value;
use tollkeeper_core::audit::entry::{Kind as AuditKind, Private, Record};
use tollkeeper_core::audit::log::{Log, LogOptions};
use tollkeeper_core::audit::verify::check::{Options, verify};
use tollkeeper_core::audit::verify::error::VerifyError;
use tollkeeper_core::audit::verify::json::members;
use tollkeeper_core::audit::verify::log::{LogDir, Reader};
use tollkeeper_core::audit::verify::merkle::{check_consistency, check_inclusion, leaf_hash};
use tollkeeper_core::audit::verify::note::{Checkpoint, Note, VerifierKey, hash_from_base64};
use tollkeeper_core::audit::verify::proof::{Tiles, check_proof, prove, prove_consistency, root_at};
use tollkeeper_core::audit::verify::report::{FaultKind, KeySource, Report, Verdict};
use tollkeeper_core::audit::verify::tiles::{self, Kind};

#[expect(unreachable_pub, reason = "the fuzz target includes it too")]
mod audit_model;

use audit_model::{Folder, Model, files, key, leaf, tree, vkey};

const ORIGIN: &str = "example.com/gate";

fn vectors() -> Option<PathBuf> {
    let path = std::env::var_os("TOLLKEEPER_TLOG_VECTORS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/tlog"), PathBuf::from);
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("skipped: no transparency log vectors; set TOLLKEEPER_TLOG_VECTORS to their folder");
    None
}

fn bytes(value: &Value) -> Vec<u8> {
    value.as_str().map(|text| STANDARD.decode(text).unwrap()).unwrap_or_default()
}

fn proof_of(value: &Value) -> Vec<Vec<u8>> {
    value["proof"].as_array().map(|hashes| hashes.iter().map(bytes).collect()).unwrap_or_default()
}

fn run_vectors(kind: &str, check: impl Fn(&Value) -> Result<(), VerifyError>) {
    let Some(folder) = vectors() else { return };
    let mut seen = 0;
    for path in files(&folder.join("merkle/testdata").join(kind)) {
        let value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let wanted = value["wantErr"].as_bool().unwrap_or(false);
        let answer = check(&value);
        assert_eq!(answer.is_err(), wanted, "{}: {answer:?}", path.display());
        seen += 1;
    }
    assert_eq!(seen, 98);
}

#[test]
fn inclusion_vectors() {
    run_vectors("inclusion", |value| {
        let (index, size) = (value["leafIdx"].as_u64().unwrap(), value["treeSize"].as_u64().unwrap());
        check_inclusion(index, size, &bytes(&value["leafHash"]), &proof_of(value), &bytes(&value["root"]))
    });
}

#[test]
fn consistency_vectors() {
    run_vectors("consistency", |value| {
        let (first, second) = (value["size1"].as_u64().unwrap(), value["size2"].as_u64().unwrap());
        check_consistency(first, second, &bytes(&value["root1"]), &bytes(&value["root2"]), &proof_of(value))
    });
}

#[test]
fn a_log_that_tessera_made() {
    let Some(folder) = vectors() else { return };
    let folder = folder.join("tessera-log");
    let text = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx";
    let vkey = VerifierKey::parse(text).unwrap();
    let roots: Vec<[u8; 32]> = (0..=15_u64)
        .map(|size| {
            let note = fs::read_to_string(folder.join(format!("checkpoint.{size}"))).unwrap();
            let checkpoint = Checkpoint::signed(&note, std::slice::from_ref(&vkey)).unwrap();
            assert_eq!((checkpoint.size, checkpoint.origin.as_str()), (size, "example.com/log/testdata"));
            checkpoint.root
        })
        .collect();
    let bundle = tiles::read_bundle(&folder, 0, 15).unwrap().unwrap();
    let entries: Vec<&[u8]> = (0..15).map(|at| bundle.entry(at).unwrap()).collect();
    assert_eq!(entries[..3], [&b"one"[..], b"two", b"three"]);
    let leaves: Vec<[u8; 32]> = entries.iter().map(|entry| leaf_hash(entry)).collect();
    for size in 1..=15_u64 {
        let own = tiles::read_bundle(&folder, 0, size).unwrap().unwrap();
        assert!(bundle.bytes().starts_with(own.bytes()));
        assert_eq!(tiles::read_tile(&folder, 0, 0, size).unwrap().unwrap(), leaves[..size as usize]);
        assert_eq!(tree(&leaves[..size as usize]), roots[size as usize]);
        let mut made = Tiles::new(&folder);
        assert_eq!(made.root(size).unwrap(), roots[size as usize]);
        for index in 0..size {
            let proof = made.inclusion(index, size).unwrap();
            check_inclusion(index, size, &leaves[index as usize], &proof, &roots[size as usize]).unwrap();
            assert!(check_inclusion(index, size, &leaves[index as usize], &proof, &roots[size as usize - 1]).is_err());
        }
        for older in 1..=size {
            let proof = prove_consistency(&folder, older, size).unwrap();
            check_consistency(older, size, &roots[older as usize], &roots[size as usize], &proof).unwrap();
        }
    }
    let options = Options { keys: vec![text.to_owned()], foreign: true, ..Options::default() };
    let report = verify(&folder, &options, &mut |_, _| true).unwrap();
    assert_eq!(report.verdict(), Verdict::Ok, "{report:?}");
    let log = report.logs().next().unwrap();
    assert_eq!((log.size, log.verified_size, log.wal_size), (15, 15, None));
    for index in 0..15 {
        let proof = prove(&folder, index, Some(b"why")).unwrap();
        let checked = check_proof(&proof, std::slice::from_ref(&vkey), entries[index as usize]).unwrap();
        assert_eq!((checked.index, checked.checkpoint.size, checked.extra.unwrap()), (index, 15, b"why".to_vec()));
        assert!(check_proof(&proof, std::slice::from_ref(&vkey), b"another").is_err());
    }
}

/// A log of 700 entries, all of them signed, with three checkpoints.
fn signed() -> Model {
    let mut model = Model::new(ORIGIN);
    model.fill(700);
    model.signed = vec![300, 600, 700];
    model
}

fn check(folder: &Path, model: &Model) -> Report {
    let options = Options { keys: vec![model.vkey()], ..Options::default() };
    verify(folder, &options, &mut |_, _| true).unwrap()
}

fn kinds(report: &Report) -> BTreeSet<&'static str> {
    let logs = report.logs().flat_map(|log| log.faults.iter());
    logs.chain(report.faults.iter()).map(|fault| fault.kind.name()).collect()
}

/// Something is said: a verdict other than good, or a warning.
fn noticed(report: &Report) -> bool {
    report.verdict() != Verdict::Ok || report.logs().any(|log| !log.warnings.is_empty())
}

#[test]
fn a_whole_log_holds_and_is_read() {
    let folder = Folder::new("whole");
    let model = signed();
    model.write(&folder.0);
    let report = check(&folder.0, &model);
    assert_eq!(report.verdict(), Verdict::Ok, "{report:#?}");
    let log = report.logs().next().unwrap();
    assert_eq!((log.size, log.verified_size, log.sound_size, log.wal_size), (700, 700, 700, Some(700)));
    assert_eq!((log.history_count, log.warnings.len()), (3, 0), "{:?}", log.warnings);
    assert_eq!(log.payloads.verified, 350);
    assert_eq!(log.payloads.missing + log.payloads.erased + log.payloads.wrong, 0);
    let whole = &report.slots[0].completeness;
    assert_eq!((whole.entries, whole.decisions, whole.outcomes, whole.allowed_without_outcome), (700, 350, 349, 1));
    assert!(whole.holds());
    let mut reader = Reader::open(&folder.0).unwrap();
    assert_eq!((reader.size(), reader.signed_size(), reader.wal_size()), (700, 700, 700));
    let mut entry = Vec::new();
    for index in (0..700).rev() {
        reader.entry(index, &mut entry).unwrap();
        assert_eq!(entry, model.entries[index as usize].bytes);
        let payload = reader.payload(index).unwrap();
        let expected = model.entries[index as usize].payload.clone();
        assert_eq!(payload, expected.map(|(salt, bytes)| (salt.to_vec(), bytes)));
    }
    assert!(reader.entry(700, &mut entry).is_err());
}

#[test]
fn without_a_given_key_the_log_vouches_for_itself_only() {
    let folder = Folder::new("nokey");
    signed().write(&folder.0);
    let report = verify(&folder.0, &Options::default(), &mut |_, _| true).unwrap();
    assert_eq!(report.verdict(), Verdict::Unanchored);
    assert_eq!(report.logs().next().unwrap().key_source, KeySource::Directory);
    let options = Options { trust_directory: true, ..Options::default() };
    assert_eq!(verify(&folder.0, &options, &mut |_, _| true).unwrap().verdict(), Verdict::Ok);
    let options = Options { keys: vec![vkey(ORIGIN, &key(8))], ..Options::default() };
    let report = verify(&folder.0, &options, &mut |_, _| true).unwrap();
    assert!(kinds(&report).contains("signature"), "{report:#?}");
    assert!(verify(&folder.0, &options, &mut |_, _| true).is_ok());
    fs::remove_file(folder.0.join("verifier.pub")).unwrap();
    let report = verify(&folder.0, &Options::default(), &mut |_, _| true).unwrap();
    assert_eq!(report.verdict(), Verdict::Broken);
}

#[test]
fn a_tail_beyond_the_checkpoint_is_named() {
    let folder = Folder::new("tail");
    let mut model = signed();
    model.fill(760);
    model.write(&folder.0);
    let report = check(&folder.0, &model);
    assert_eq!(report.verdict(), Verdict::Unanchored, "{report:#?}");
    let log = report.logs().next().unwrap();
    assert_eq!((log.size, log.verified_size, log.tail()), (760, 700, 60));
    assert!(log.summary().contains("60 entries from 700 on are not anchored"), "{}", log.summary());
    // The tail rewritten and hashed again: nothing signed covers it, and the report says where that begins.
    model.entries.truncate(700);
    model.decision(9_999, false, "another past");
    fs::remove_dir_all(folder.0.join("wal")).unwrap();
    model.write(&folder.0);
    let report = check(&folder.0, &model);
    assert_eq!((report.integrity(), report.anchored(), report.logs().next().unwrap().tail()), (true, false, 1));
    assert!(matches!(prove(&folder.0, 700, None), Err(VerifyError::Unanchored { index: 700, size: 700 })));
    assert!(matches!(prove(&folder.0, 701, None), Err(VerifyError::NotFound { .. })));
    assert_eq!(root_at(&mut Reader::open(&folder.0).unwrap(), 701).unwrap(), model.root(701));
}

/// Flips a bit, verifies, and puts the file back.
fn flipped(folder: &Path, file: &Path, model: &Model, bit: usize) -> Report {
    let whole = fs::read(file).unwrap();
    let mut bytes = whole.clone();
    bytes[bit / 8] ^= 1 << (bit % 8);
    fs::write(file, bytes).unwrap();
    let report = check(folder, model);
    fs::write(file, whole).unwrap();
    report
}

#[test]
fn every_flipped_bit_is_noticed_with_its_place() {
    let folder = Folder::new("flip");
    let mut model = signed();
    // Two segments, so that both a middle one and the last are there.
    model.segment_frames = 10;
    model.write(&folder.0);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for file in files(&folder.0) {
        let name = file.strip_prefix(&folder.0).unwrap().display().to_string();
        let bits = fs::metadata(&file).unwrap().len() as usize * 8;
        for _ in 0..40.min(bits) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let bit = (random >> 20) as usize % bits;
            let report = flipped(&folder.0, &file, &model, bit);
            assert!(noticed(&report), "{name}: bit {bit} of {bits} is not noticed");
            let log = report.logs().next().unwrap();
            if name.starts_with("tile/") {
                assert_eq!(report.verdict(), Verdict::Broken, "{name} bit {bit}");
                let base = name.split(".p/").next().unwrap();
                let place = log.faults.iter().any(|fault| fault.file.contains(base) && fault.index.is_some());
                assert!(place, "{name} bit {bit}: {:?}", log.faults);
            } else if name.starts_with("wal/") {
                let place = log.faults.iter().any(|fault| fault.file.starts_with("wal"));
                assert!(place || log.warnings.iter().any(|text| text.starts_with(&name)), "{name} bit {bit}: {log:?}");
            } else {
                let place = log.faults.iter().any(|fault| fault.file == name || fault.file == "verifier.pub");
                assert!(place || log.warnings.iter().any(|text| text.starts_with(&name)), "{name} bit {bit}: {log:?}");
            }
        }
    }
}

#[test]
fn the_signed_root_tells_which_copy_is_wrong() {
    let folder = Folder::new("which");
    let model = signed();
    model.write(&folder.0);
    let tile = folder.0.join("tile/0/000");
    let report = flipped(&folder.0, &tile, &model, 8 * (32 * 100 + 3));
    let log = report.logs().next().unwrap();
    assert_eq!(log.faults[0].file, "tile/0/000", "{:#?}", log.faults);
    assert_eq!((log.faults[0].index, log.sound_size, log.verified_size), (Some(100), 100, 100));
    // Without segments, an entry changed in its bundle is told from its hash by the root alone.
    fs::rename(folder.0.join("wal"), folder.0.join("away")).unwrap();
    let bundle = folder.0.join("tile/entries/000");
    let report = flipped(&folder.0, &bundle, &model, 8 * 30_003);
    let log = report.logs().next().unwrap();
    assert_eq!(log.faults[0].file, "tile/entries/000", "{:#?}", log.faults);
    assert!(log.faults[0].message.contains("the signed root holds with tile/0/000"), "{:?}", log.faults);
}

#[test]
fn missing_and_truncated_files_are_named() {
    let folder = Folder::new("missing");
    let model = signed();
    model.write(&folder.0);
    for file in files(&folder.0) {
        let name = file.strip_prefix(&folder.0).unwrap().display().to_string();
        let bytes = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let report = check(&folder.0, &model);
        if ["000.p/", "001.p/44", "002.p/88"].iter().any(|part| name.starts_with("tile/0/") && name.contains(part))
            || ["000.p/", "001.p/44", "002.p/88"]
                .iter()
                .any(|part| name.starts_with("tile/entries/") && name.contains(part))
            || name == "tile/1/000.p/1"
        {
            // A partial file that a wider one covers may go.
            assert_eq!(report.verdict(), Verdict::Ok, "{name}: {report:#?}");
        } else {
            assert!(noticed(&report), "{name} may be missing");
            let log = report.logs().next().unwrap();
            let named =
                log.faults.iter().any(|fault| name.starts_with(fault.file.as_str()) || fault.file.starts_with("wal"));
            assert!(named, "{name}: {:?}", log.faults);
        }
        for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&file, &bytes[..length]).unwrap();
            let report = check(&folder.0, &model);
            assert!(noticed(&report), "{name} may be cut to {length} bytes");
        }
        fs::write(&file, &bytes).unwrap();
    }
    assert_eq!(check(&folder.0, &model).verdict(), Verdict::Ok);
}

#[test]
fn segments_cut_dropped_swapped_or_doubled_at_every_batch() {
    let folder = Folder::new("batches");
    let mut model = signed();
    model.segment_frames = 100;
    model.write(&folder.0);
    let file = folder.0.join(format!("wal/{:020}.seg", 0));
    let frames: Vec<Vec<u8>> = model.frames().into_iter().map(|(_, bytes)| bytes).collect();
    let attempt = |frames: &[Vec<u8>], what: &str| {
        fs::write(&file, model.segment(0, frames)).unwrap();
        let report = check(&folder.0, &model);
        assert_eq!(report.verdict(), Verdict::Broken, "{what}");
        let log = report.logs().next().unwrap();
        assert_eq!((log.sound_size, log.verified_size), (700, 700), "{what}: the bundles hold on");
        log.faults[0].clone()
    };
    for at in 0..frames.len() {
        let fault = attempt(&frames[..at], "cut");
        assert_eq!(fault.index, Some(at as u64 * 37));
        let mut dropped = frames.clone();
        dropped.remove(at);
        let fault = attempt(&dropped, "dropped");
        assert_eq!(fault.index, Some(at as u64 * 37), "{fault:?}");
        let mut doubled = frames.clone();
        doubled.insert(at, frames[at].clone());
        let fault = attempt(&doubled, "doubled");
        assert_eq!(fault.index, Some((at as u64 + 1) * 37).min(Some(700)), "{fault:?}");
        if at > 0 {
            let mut swapped = frames.clone();
            swapped.swap(at - 1, at);
            let fault = attempt(&swapped, "swapped");
            assert_eq!(fault.index, Some((at as u64 - 1) * 37), "{fault:?}");
        }
    }
}

#[test]
fn entries_dropped_swapped_or_doubled_and_hashed_again() {
    let folder = Folder::new("entries");
    let model = signed();
    for (number, change) in ["drop", "swap", "double", "edit"].iter().enumerate() {
        let mut other = model.clone();
        let at = 410 + number;
        match *change {
            "drop" => {
                other.entries.remove(at);
                other.signed = vec![300, 600, 699];
            }
            "swap" => other.entries.swap(at, at + 1),
            "double" => other.entries.insert(at, model.entries[at].clone()),
            _ => other.entries[at] = model.entries[at + 20].clone(),
        }
        // Everything is written anew by whoever has the folder, but not the key.
        let _ = fs::remove_dir_all(&folder.0);
        other.write(&folder.0);
        let notes: Vec<String> = model.signed.iter().map(|size| model.checkpoint(*size)).collect();
        fs::write(folder.0.join("checkpoints.log"), notes.join("---\n")).unwrap();
        fs::write(folder.0.join("checkpoint"), &notes[2]).unwrap();
        let report = check(&folder.0, &model);
        assert_eq!(report.verdict(), Verdict::Broken, "{change}");
        let log = report.logs().next().unwrap();
        assert_eq!(log.verified_size, 300, "{change}: the first checkpoint's entries hold");
        assert!(kinds(&report).contains("root") || kinds(&report).contains("rollback"), "{change}: {:?}", log.faults);
        assert!(log.faults.iter().any(|fault| fault.index == Some(300)), "{change}: {:?}", log.faults);
        if *change != "edit" {
            assert!(!report.complete(), "{change}");
        }
    }
}

#[test]
fn rollback_and_fork_are_seen_by_whoever_kept_a_checkpoint() {
    let folder = Folder::new("since");
    let model = signed();
    let mut older = model.clone();
    older.entries.truncate(600);
    older.signed.truncate(2);
    older.write(&folder.0);
    let with = |since: &str| {
        let options = Options { keys: vec![model.vkey()], since: Some(since.to_owned()), ..Options::default() };
        verify(&folder.0, &options, &mut |_, _| true)
    };
    assert_eq!(check(&folder.0, &older).verdict(), Verdict::Ok, "nobody who kept nothing can know");
    let report = with(&model.checkpoint(700)).unwrap();
    assert_eq!(report.verdict(), Verdict::Broken);
    assert!(kinds(&report).contains("rollback"), "{report:#?}");
    let report = with(&model.checkpoint(451)).unwrap();
    assert_eq!((report.verdict(), report.since.unwrap().consistent), (Verdict::Ok, true));
    // The same key signs another past: a fork.
    let mut fork = older.clone();
    fork.entries[200] = model.entries[202].clone();
    let _ = fs::remove_dir_all(&folder.0);
    fork.write(&folder.0);
    let report = with(&model.checkpoint(451)).unwrap();
    assert!(kinds(&report).contains("fork"), "{report:#?}");
    assert!(!report.since.unwrap().consistent);
    let mut stranger = model.clone();
    stranger.origin = "example.com/other".to_owned();
    assert!(kinds(&with(&stranger.checkpoint(451)).unwrap()).contains("rollback"));
    stranger.origin = ORIGIN.to_owned();
    stranger.key = 9;
    assert!(matches!(with(&stranger.checkpoint(451)), Err(VerifyError::Signature { .. })));
    assert!(matches!(with("no note"), Err(VerifyError::Format { .. })));
}

#[test]
fn a_checkpoint_put_back_to_an_older_one() {
    let folder = Folder::new("putback");
    let model = signed();
    model.write(&folder.0);
    fs::write(folder.0.join("checkpoint"), model.checkpoint(600)).unwrap();
    let report = check(&folder.0, &model);
    assert_eq!(report.verdict(), Verdict::Unanchored, "one step behind is what a crash leaves, and the tail is named");
    assert_eq!(report.logs().next().unwrap().tail(), 100);
    assert!(noticed(&report));
    fs::write(folder.0.join("checkpoint"), model.checkpoint(300)).unwrap();
    assert!(kinds(&check(&folder.0, &model)).contains("rollback"));
}

#[test]
fn completeness_names_what_is_missing_and_what_explains_it() {
    let folder = Folder::new("complete");
    let mut model = Model::new(ORIGIN);
    model.fill(40);
    model.skip(3);
    model.decision(1_000, true, "after a hole");
    model.skip(2);
    model.decision(1_001, false, "denied");
    let (old, next) = (model.producer, 46);
    model.producer = 77;
    let of = format!("{old:016x}");
    let mut again = Model::new(ORIGIN);
    again.producer = 77;
    again.control("recovery", &format!(r#""of":"{of}","cut_bytes":0,"lost":[[40,41],[{next},{}]]"#, next + 4));
    again.control("gap", r#""count":5,"from":"x","to":"y","producers":[]"#);
    again.control("denied_unlogged", r#""count":7"#);
    model.entries.append(&mut again.entries);
    model.signed = vec![model.entries.len()];
    model.write(&folder.0);
    let report = check(&folder.0, &model);
    assert_eq!(report.verdict(), Verdict::Incomplete, "{report:#?}");
    let whole = &report.slots[0].completeness;
    let missing: Vec<(u64, u64, u64)> = whole.missing.iter().map(|one| (one.from, one.to, one.before_index)).collect();
    assert_eq!(missing, [(42, 42, 40), (44, 45, 41)]);
    assert_eq!((whole.missing_count, whole.lost_count), (3, 7));
    assert_eq!((whole.gap_count, whole.denied_unlogged_count), (5, 7));
    assert_eq!((whole.allowed, whole.decisions), (whole.outcomes + whole.allowed_without_outcome, whole.allowed + 1));
}

#[test]
fn erased_payloads_keep_the_proofs() {
    let folder = Folder::new("erase");
    let mut model = signed();
    model.entries[1].erased = true;
    model.entries[3].erased = true;
    model.control("erasure", r#""index":1,"commitment":"x""#);
    model.signed.push(701);
    model.write(&folder.0);
    let report = check(&folder.0, &model);
    assert_eq!(report.verdict(), Verdict::Incomplete, "an erasure that no entry tells of: {report:#?}");
    let log = report.logs().next().unwrap();
    let payloads = log.payloads;
    assert_eq!((payloads.verified, payloads.erased, payloads.erased_unrecorded), (348, 2, 1));
    assert_eq!(log.unrecorded, [3]);
    assert!(log.warnings.iter().any(|text| text.contains("1 payloads are erased, and no entry says so")), "{log:?}");
    model.control("erasure", r#""index":3,"commitment":"x""#);
    // Entries about erasures that say nothing, or name what is there still, excuse nothing and break nothing.
    for members in [r#""reason":"x""#, r#""index":7"#, r#""index":-1"#, r#""index":"3""#, r#""index":900000"#] {
        model.control("erasure", members);
    }
    model.signed.push(707);
    model.write(&folder.0);
    let report = check(&folder.0, &model);
    assert_eq!(report.verdict(), Verdict::Ok, "{report:#?}");
    // One that names an entry which comes later excuses nothing.
    let mut early = model.clone();
    early.control("erasure", r#""index":708"#);
    early.decision(9_000, false, "later");
    early.entries[708].erased = true;
    early.signed.push(709);
    let other = Folder::new("early");
    early.write(&other.0);
    assert_eq!(check(&other.0, &early).verdict(), Verdict::Incomplete);
    assert_eq!(Reader::open(&folder.0).unwrap().payload(1).unwrap(), None);
    let proof = prove(&folder.0, 1, None).unwrap();
    check_proof(&proof, &[VerifierKey::parse(&model.vkey()).unwrap()], &model.entries[1].bytes).unwrap();
    model.entries[5].payload.as_mut().unwrap().1[3] ^= 1;
    model.write(&folder.0);
    let report = check(&folder.0, &model);
    let fault = &report.logs().next().unwrap().faults[0];
    assert_eq!((fault.kind, fault.index), (FaultKind::Payload, Some(5)), "{fault:?}");
}

/// Places of the payload items in a segment of one frame: header, and length of the payload.
fn items(segment: &[u8]) -> Vec<(usize, usize)> {
    let word = |at: usize| u32::from_le_bytes(segment[at..at + 4].try_into().unwrap()) as usize;
    let mut at = 64 + 96 + word(64 + 20);
    let end = at + word(64 + 24);
    let mut found = Vec::new();
    while at < end {
        found.push((at, word(at + 4)));
        at += 48 + word(at + 4);
    }
    found
}

#[test]
fn an_erasure_under_way_is_a_warning() {
    let folder = Folder::new("underway");
    let mut model = Model::new(ORIGIN);
    model.batch = 1_000;
    model.fill(30);
    model.control("erasure", r#""index":1"#);
    model.signed = vec![31];
    model.write(&folder.0);
    let file = folder.0.join(format!("wal/{:020}.seg", 0));
    let mut bytes = fs::read(&file).unwrap();
    let (at, length) = items(&bytes)[0];
    bytes[at + 8] = 1;
    for step in [0, 4, 20, 36 + length] {
        bytes[at + 12..at + 12 + step].fill(0);
        fs::write(&file, &bytes).unwrap();
        let report = check(&folder.0, &model);
        let log = report.logs().next().unwrap();
        assert_eq!((report.verdict(), log.payloads.erased), (Verdict::Ok, 1), "{report:#?}");
        let said = log.warnings.iter().any(|text| text.contains("entry 1 is not all zero yet"));
        assert_eq!(said, step < 36 + length, "{:?}", log.warnings);
        assert_eq!(Reader::open(&folder.0).unwrap().payload(1).unwrap(), None);
    }
}

#[test]
fn a_payload_that_was_cut_out_is_not_all_right() {
    let folder = Folder::new("cutout");
    let mut model = Model::new(ORIGIN);
    // A program's own members of such a name promise no payload.
    model.control("note", r#""arguments":{"bytes":1,"commitment":"x"}"#);
    model.fill(100);
    model.signed = vec![100];
    model.write(&folder.0);
    let report = check(&folder.0, &model);
    let payloads = report.logs().next().unwrap().payloads;
    assert_eq!((report.verdict(), payloads.missing, payloads.cut), (Verdict::Ok, 1, 0), "{report:#?}");
    model.entries[1].payload = None;
    model.entries[51].payload = None;
    model.write(&folder.0);
    let report = check(&folder.0, &model);
    let log = report.logs().next().unwrap();
    assert_eq!((report.verdict(), log.payloads.cut), (Verdict::Incomplete, 2), "{report:#?}");
    let said = "2 payloads are missing from the write-ahead file that has their entries";
    assert!(log.warnings.iter().any(|text| text.contains(said)), "{:?}", log.warnings);
    // A copy without segments has no payloads at all, and is none the worse.
    fs::remove_dir_all(folder.0.join("wal")).unwrap();
    let report = check(&folder.0, &model);
    let payloads = report.logs().next().unwrap().payloads;
    assert_eq!((report.verdict(), payloads.cut), (Verdict::Ok, 0), "{report:#?}");
    assert_eq!(payloads.missing, 51);
}

#[test]
fn entries_nest_as_deep_as_a_writer_lets_them() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
        let levels = if open.len() > 5 { 2 } else { 1 };
        let nested = |depth: usize| {
            let count = depth / levels;
            format!("{{\"k\":{}1{}}}", open.repeat(count), close.repeat(count))
        };
        for (depth, fits) in [(64, true), (66, true), (68, false), (1_000_000, false)] {
            assert_eq!(members(nested(depth).as_bytes(), |_| ()).is_ok(), fits, "{open} {depth}");
        }
        // What lies deep, or in an array, is nobody's member.
        let mut shallow = Vec::new();
        members(nested(64).as_bytes(), |member| shallow.push((member.depth, member.key.to_owned()))).unwrap();
        assert!(shallow.len() <= 2, "{shallow:?}");
    }
}

/// Verifies a log again and again while a real writer is at work.
fn beside_a_writer(name: &str, mut work: impl FnMut(&Log, u64) + Send) {
    let folder = Folder::new(name);
    let mut options = LogOptions::new(ORIGIN, 7);
    options.checkpoint_interval_ms = 5;
    let log = Log::open(&folder.0, options).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let members = format!(",\"n\":{number}").into_bytes();
                let private = Private::Bytes(b"a long and private story");
                let record =
                    Record { kind: AuditKind::Note, time_ms: 1_763_744_718_123, head: &members, tail: &[], private };
                log.append(&record, 5_000).unwrap();
                if number % 20 == 0 {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                work(&log, number);
            }
        });
        let end = std::time::Instant::now() + std::time::Duration::from_secs(3);
        let options = Options { trust_directory: true, ..Options::default() };
        let (mut wrong, mut unread) = (None, 0);
        while std::time::Instant::now() < end && wrong.is_none() {
            let report = verify(&folder.0, &options, &mut |_, _| true);
            // Between two epochs there is no log for a moment, which is said as an error and is no verdict.
            unread = if report.is_err() { unread + 1 } else { 0 };
            let good = report.as_ref().map_or(unread < 10, |report| report.integrity() && report.complete());
            wrong = (!good).then_some(report);
        }
        stop.store(true, Ordering::Relaxed);
        assert!(wrong.is_none(), "{wrong:#?}");
    });
    log.close().unwrap();
    let options = Options { trust_directory: true, ..Options::default() };
    let report = verify(&folder.0, &options, &mut |_, _| true).unwrap();
    assert_eq!(report.verdict(), Verdict::Ok, "{report:#?}");
}

#[test]
fn no_false_alarm_beside_a_writer_that_signs() {
    beside_a_writer("live", |_, _| {});
}

#[test]
fn no_false_alarm_beside_a_writer_that_rotates() {
    beside_a_writer("rotating", |log, number| {
        if number % 300 == 299 {
            log.rotate(10_000).unwrap();
        }
    });
}

#[test]
fn no_false_alarm_beside_a_writer_that_erases() {
    beside_a_writer("erasing", |log, number| {
        if number % 10 == 9 {
            let size = log.flush(10_000).unwrap();
            log.erase(size - 3, 10_000).unwrap();
        }
    });
}

#[test]
fn what_is_wrong_is_said_of_a_log_that_is_being_written_too() {
    let folder = Folder::new("ahead");
    let mut model = signed();
    model.write(&folder.0);
    // What does not hold is said of a log that is being written, too: it is there at every look.
    let tile = folder.0.join("tile/0/000");
    let mut bytes = fs::read(&tile).unwrap();
    bytes[3_203] ^= 1;
    fs::write(&tile, bytes).unwrap();
    model.fill(800);
    let (stop, notes) = (AtomicBool::new(false), folder.0.join("checkpoints.log"));
    let text = fs::read(&notes).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::write(&notes, &text).unwrap();
            }
        });
        for _ in 0..5 {
            let report = check(&folder.0, &model);
            let log = report.logs().next().unwrap();
            let said = log.faults.iter().any(|fault| fault.file == "tile/0/000" && fault.index == Some(100));
            assert!(said && report.verdict() == Verdict::Broken, "{report:#?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Two epochs; the second one's first entry names the first one's end.
fn epochs(folder: &Path) -> (Model, Model) {
    let mut first = Model::new(ORIGIN);
    first.fill(300);
    first.signed = vec![200, 300];
    let mut second = Model::new(&format!("{ORIGIN}/2"));
    second.producer = 5;
    let root = STANDARD.encode(first.root(300));
    let note = serde_json::to_string(&first.checkpoint(300)).unwrap();
    second.control("epoch", &format!(r#""origin":"{ORIGIN}","size":300,"root":"{root}","checkpoint":{note}"#));
    second.fill(50);
    second.signed = vec![50];
    first.write(&folder.join("epochs/1"));
    second.write(folder);
    (first, second)
}

#[test]
fn epochs_go_on_from_one_another() {
    let folder = Folder::new("epochs");
    let (first, second) = epochs(&folder.0);
    let report = check(&folder.0, &second);
    assert_eq!(report.verdict(), Verdict::Ok, "{report:#?}");
    let names: Vec<(u64, bool, bool)> = report.logs().map(|log| (log.epoch, log.chained, log.current)).collect();
    assert_eq!(names, [(1, true, false), (2, false, true)]);
    // The first epoch has another key, that nobody was given: the second epoch vouches for it.
    let mut rekeyed = first.clone();
    rekeyed.key = 30;
    rekeyed.write(&folder.0.join("epochs/1"));
    let report = check(&folder.0, &second);
    assert!(
        report.verdict() == Verdict::Broken && kinds(&report).contains("chain"),
        "the quoted note is the old key's"
    );
    // Another past for the first epoch.
    let mut other = first.clone();
    other.entries[10] = first.entries[12].clone();
    other.write(&folder.0.join("epochs/1"));
    assert!(kinds(&check(&folder.0, &second)).contains("chain"));
    fs::remove_dir_all(folder.0.join("epochs/1")).unwrap();
    fs::create_dir_all(folder.0.join("epochs/1")).unwrap();
    assert_eq!(check(&folder.0, &second).verdict(), Verdict::Broken);
}

#[test]
fn the_logs_of_a_gate_are_seen_as_one() {
    let folder = Folder::new("gate");
    let mut zero = Model::new("example.com/gate/0/1");
    zero.fill(300);
    zero.signed = vec![300];
    let mut one = Model::new("example.com/gate/1/1");
    one.producer = 11;
    let root = STANDARD.encode(zero.root(290));
    let named = format!(r#""siblings":[{{"origin":"{}","size":290,"root":"{root}"}}]"#, zero.origin);
    one.control("start", &named);
    one.fill(20);
    one.signed = vec![20];
    zero.write(&folder.0.join("0"));
    one.write(&folder.0.join("1"));
    assert_eq!(LogDir::discover(&folder.0).unwrap().logs.len(), 2);
    let report = check(&folder.0, &zero);
    assert_eq!(report.verdict(), Verdict::Ok, "{report:#?}");
    fs::rename(folder.0.join("0"), folder.0.join("away")).unwrap();
    let report = check(&folder.0, &zero);
    assert!(kinds(&report).contains("sibling"), "{report:#?}");
    fs::rename(folder.0.join("1"), folder.0.join("0")).unwrap();
    fs::rename(folder.0.join("away"), folder.0.join("1")).unwrap();
    assert!(kinds(&check(&folder.0, &zero)).contains("key"), "logs that changed places");
    fs::rename(folder.0.join("1"), folder.0.join("away")).unwrap();
    fs::rename(folder.0.join("0"), folder.0.join("1")).unwrap();
    zero.entries.truncate(280);
    zero.signed = vec![280];
    zero.write(&folder.0.join("0"));
    assert!(kinds(&check(&folder.0, &zero)).contains("rollback"));
}

#[test]
fn a_torn_tail_is_a_warning_and_frames_of_an_older_segment_give_way() {
    let folder = Folder::new("torn");
    let mut model = signed();
    model.fill(740);
    model.segment_frames = 100;
    model.write(&folder.0);
    let file = folder.0.join(format!("wal/{:020}.seg", 0));
    let frames: Vec<Vec<u8>> = model.frames().into_iter().map(|(_, bytes)| bytes).collect();
    let mut segment = model.segment(0, &frames[..19]);
    let used = 64 + frames[..19].iter().map(Vec::len).sum::<usize>();
    segment.splice(used..used, frames[19][..frames[19].len() / 2].iter().copied());
    fs::write(&file, &segment).unwrap();
    let report = check(&folder.0, &model);
    let log = report.logs().next().unwrap();
    assert_eq!((report.verdict(), log.size, log.tail()), (Verdict::Unanchored, 703, 3), "{report:#?}");
    assert!(log.warnings[0].contains("ends within a batch at entry 703"), "{:?}", log.warnings);
    // A newer segment begins below: what the older one has from there on does not count.
    fs::write(&file, model.segment(0, &frames)).unwrap();
    let mut other = model.clone();
    other.entries.truncate(720);
    other.decision(5_000, true, "another tail");
    other.batch = 720;
    let last = other.frames().remove(1).1;
    other.batch = 37;
    let middle = {
        let mut cut = other.clone();
        cut.entries.truncate(720);
        cut.frames().pop().unwrap().1
    };
    fs::write(folder.0.join(format!("wal/{:020}.seg", 703)), other.segment(703, &[middle, last])).unwrap();
    let report = check(&folder.0, &model);
    let log = report.logs().next().unwrap();
    assert_eq!((report.integrity(), log.size), (true, 721), "{report:#?}");
    // The numbers of the entries that gave way are missing, and no recovery names them.
    assert_eq!((report.verdict(), report.slots[0].completeness.missing_count), (Verdict::Incomplete, 20));
    let mut reader = Reader::open(&folder.0).unwrap();
    let mut entry = Vec::new();
    reader.entry(720, &mut entry).unwrap();
    assert_eq!((reader.size(), entry), (721, other.entries[720].bytes.clone()));
}

#[test]
fn a_reader_follows_a_log_that_grows() {
    let folder = Folder::new("grow");
    let mut model = Model::new(ORIGIN);
    let mut reader: Option<Reader> = None;
    // Whole batches, so that a segment is only ever appended to.
    for size in [37, 74, 296, 666] {
        model.fill(size);
        model.signed.push(size / 2 + 1);
        model.write(&folder.0);
        let reader = match &mut reader {
            Some(reader) => reader,
            none => none.insert(Reader::open(&folder.0).unwrap()),
        };
        reader.refresh().unwrap();
        assert_eq!((reader.size(), reader.signed_size()), (size as u64, size as u64 / 2 + 1));
        let mut entry = Vec::new();
        reader.entry(size as u64 - 1, &mut entry).unwrap();
        assert_eq!(entry, model.entries[size - 1].bytes);
    }
}

#[test]
fn proofs_read_a_few_tiles_whatever_the_size() {
    let folder = Folder::new("proofs");
    let mut model = Model::new(ORIGIN);
    model.entries = (0..70_000_u32).map(|n| audit_model::Entry::plain(n.to_le_bytes().to_vec())).collect();
    model.write_tiles(&folder.0, 70_000);
    let root = model.root(70_000);
    for index in [0, 1, 255, 256, 65_535, 65_536, 69_999] {
        let mut tiles = Tiles::new(&folder.0);
        let proof = tiles.inclusion(index, 70_000).unwrap();
        assert!(tiles.reads <= 6, "{}", tiles.reads);
        check_inclusion(index, 70_000, &leaf(&(index as u32).to_le_bytes()), &proof, &root).unwrap();
    }
    for older in [1, 2, 3, 255, 256, 257, 1_000, 65_536, 65_537, 69_999] {
        let proof = Tiles::new(&folder.0).consistency(older, 70_000).unwrap();
        check_consistency(older, 70_000, &model.root(older as usize), &root, &proof).unwrap();
    }
    for (size, path) in [(273, "tile/0/273.p/112"), (1, "tile/1/001.p/17")] {
        let (kind, number, width) = tiles::parse_path(path).unwrap();
        assert_eq!((number, tiles::path(kind, number, width)), (size, path.to_owned()));
    }
    assert_eq!(tiles::path(Kind::Bundle, 1_234_067, 256), "tile/entries/x001/x234/067");
    for wrong in ["tile/0/1", "tile/00/001", "tile/0/001.p/256", "tile/0/001.p/0", "tile/0/x001", "tile/0/001/002"] {
        assert_eq!(tiles::parse_path(wrong), None, "{wrong}");
    }
}

#[test]
fn notes_and_keys_are_read_strictly() {
    let model = signed();
    let note = model.checkpoint(3);
    let vkey = VerifierKey::parse(&model.vkey()).unwrap();
    Checkpoint::signed(&note, std::slice::from_ref(&vkey)).unwrap();
    let unknown = format!("{note}\u{2014} witness.example {}\n", STANDARD.encode([1; 80]));
    Checkpoint::signed(&unknown, std::slice::from_ref(&vkey)).unwrap();
    let many = format!("{note}{}", "\u{2014} w AAAAAAA=\n".repeat(100));
    assert!(Checkpoint::signed(&many, std::slice::from_ref(&vkey)).is_err());
    for (from, to) in
        [("\n3\n", "\n03\n"), ("\n3\n", "\n+3\n"), ("\n3\n", "\n3 \n"), ("example", "exAmple"), ("=\n", "\n")]
    {
        let wrong = note.replacen(from, to, 1);
        assert!(wrong != note && Checkpoint::signed(&wrong, std::slice::from_ref(&vkey)).is_err(), "{wrong}");
    }
    // A second signature line of the same key that is wrong: the note is refused.
    let line = note.lines().last().unwrap();
    let forged = line.replace(&line[line.len() - 12..line.len() - 4], "AAAAAAAA");
    assert!(Note::parse(&format!("{note}{forged}\n")).unwrap().check(std::slice::from_ref(&vkey)).is_err());
    let text = model.vkey();
    for wrong in ["", "a", "a+b", &text.replacen('+', "+0", 1), &text[..text.len() - 1], &format!("{text}\n\n")] {
        assert!(VerifierKey::parse(wrong).is_err(), "{wrong}");
    }
    assert!(hash_from_base64("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=").is_none(), "stray bits");
}

#[test]
fn a_caller_may_stop_a_verification() {
    let folder = Folder::new("stop");
    let mut model = Model::new(ORIGIN);
    model.entries = (0..66_000_u32).map(|n| audit_model::Entry::plain(n.to_le_bytes().to_vec())).collect();
    model.write_tiles(&folder.0, 66_000);
    fs::write(folder.0.join("checkpoint"), model.checkpoint(66_000)).unwrap();
    let options = Options { keys: vec![model.vkey()], foreign: true, ..Options::default() };
    let mut calls = Vec::new();
    let stopped = verify(&folder.0, &options, &mut |done, total| {
        calls.push((done, total));
        false
    });
    assert!(matches!(stopped, Err(VerifyError::Cancelled)));
    assert_eq!(calls, [(65_536, 66_000)]);
    assert_eq!(verify(&folder.0, &options, &mut |_, _| true).unwrap().verdict(), Verdict::Ok);
}

/// What this thread has used of a processor, whoever else is using it.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// `cargo test --release --test audit_verify -- --ignored --nocapture speed`
#[test]
#[ignore = "a measurement: half a gigabyte of log"]
fn speed() {
    let folder = Folder::new("speed");
    let mut model = Model::new(ORIGIN);
    model.batch = 600;
    model.segment_frames = 200;
    model.control("start", r#""origin":"x""#);
    let count = 400_000;
    for number in 1..count {
        model.decision(number, number % 8 != 0, "what is a toll?");
        model.entries.last_mut().unwrap().payload = None;
    }
    model.signed = vec![count as usize];
    model.write(&folder.0);
    let size: usize = model.entries.iter().map(|entry| entry.bytes.len()).sum();
    for round in 0..4 {
        if round == 3 {
            fs::remove_dir_all(folder.0.join("wal")).unwrap();
        }
        let begun = cpu_seconds();
        let report = check(&folder.0, &model);
        let seconds = cpu_seconds() - begun;
        assert_eq!((report.verdict(), report.logs().next().unwrap().verified_size), (Verdict::Ok, count));
        let rate = count as f64 / seconds / 1e6;
        eprintln!(
            "{} bytes an entry, segments: {}: {rate:.2} M entries a CPU second",
            size / count as usize,
            round < 3
        );
    }
}

/// JSON texts that are near to right ones.
fn near_json() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"a\"",
        "\"\\u00e9\"",
        "\"\\x\"",
        "1",
        "-0.5e+3",
        "01",
        "true",
        "nul",
        "null",
        " ",
        "\"é\"",
        "{\"a\":1}",
        "[1,2]",
        "\"0123456789\\\\\"",
        "\u{1}",
        "\"\t\"",
    ]);
    let object = prop::collection::vec(piece.clone(), 0..6).prop_map(|parts| format!("{{\"k\":{}}}", parts.concat()));
    prop_oneof![object, prop::collection::vec(piece, 0..8).prop_map(|parts| parts.concat())]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_scanner_accepts_what_a_json_reader_does(text in near_json()) {
        let ours = members(text.as_bytes(), |_| ()).is_ok();
        let theirs = text.starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        // White space outside strings is the one thing that is refused on top.
        prop_assert_eq!(ours, theirs && !(text.contains(' ') || text.contains('\t')), "{}", text);
    }
}

#[derive(Debug, Clone)]
enum Mutation {
    Flip(u32),
    Byte(u32, u8),
    Cut(u32),
    Insert(u32, Vec<u8>),
    Copy(usize),
    Remove,
}

fn mutation() -> impl Strategy<Value = (usize, Mutation)> {
    let change = prop_oneof![
        4 => any::<u32>().prop_map(Mutation::Flip),
        3 => (any::<u32>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Byte(at, byte)),
        2 => any::<u32>().prop_map(Mutation::Cut),
        2 => (any::<u32>(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(at, more)| Mutation::Insert(at, more)),
        1 => any::<usize>().prop_map(Mutation::Copy),
        1 => Just(Mutation::Remove),
    ];
    (any::<usize>(), change)
}

fn mutate(all: &[PathBuf], which: usize, change: &Mutation) {
    let file = &all[which % all.len()];
    let Ok(mut bytes) = fs::read(file) else { return };
    let place = |at: u32| if bytes.is_empty() { 0 } else { at as usize % bytes.len() };
    match change {
        Mutation::Flip(at) if !bytes.is_empty() => {
            let at = *at as usize % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
        }
        Mutation::Byte(at, byte) if !bytes.is_empty() => {
            let at = place(*at);
            bytes[at] = *byte;
        }
        Mutation::Flip(_) | Mutation::Byte(..) => {}
        Mutation::Cut(at) => bytes.truncate(place(*at)),
        Mutation::Insert(at, more) => {
            let at = place(*at);
            bytes.splice(at..at, more.iter().copied());
        }
        Mutation::Copy(from) => bytes = fs::read(&all[from % all.len()]).unwrap_or_default(),
        Mutation::Remove => return fs::remove_file(file).unwrap(),
    }
    fs::write(file, bytes).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_mutation_is_accepted(changes in prop::collection::vec(mutation(), 1..4)) {
        let folder = Folder::new("mutants");
        let mut model = Model::new(ORIGIN);
        model.fill(300);
        model.signed = vec![200, 300];
        model.write(&folder.0);
        let all = files(&folder.0);
        let before: Vec<Vec<u8>> = all.iter().map(|file| fs::read(file).unwrap()).collect();
        for (which, change) in &changes {
            mutate(&all, *which, change);
        }
        let changed: Vec<String> = all.iter().zip(&before)
            .filter(|(file, bytes)| fs::read(file).ok().as_ref() != Some(bytes))
            .map(|(file, _)| file.strip_prefix(&folder.0).unwrap().display().to_string())
            .collect();
        let options = Options { keys: vec![model.vkey()], ..Options::default() };
        let answer = verify(&folder.0, &options, &mut |_, _| true);
        let good = answer.as_ref().is_ok_and(|report| !noticed(report));
        // A narrower partial file may go once a wider one is there; nothing else may.
        let gone = |name: &String| name.contains("000.p/200") && !folder.0.join(name).exists();
        prop_assert_eq!(good, changed.iter().all(gone), "{:?}: {:?}", changed, answer);
    }
}
