//! The verifier of audit logs on damaged ones: never a panic, never a changed log that is taken without a word.
//!
//! The first byte says what the rest is: changes to the files of a log that a plain model wrote, or one text or segment by
//! itself.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tollkeeper_core::audit::verify::check::{Options, verify};
use tollkeeper_core::audit::verify::envelope;
use tollkeeper_core::audit::verify::json::members;
use tollkeeper_core::audit::verify::log::Reader;
use tollkeeper_core::audit::verify::note::{Checkpoint, VerifierKey};
use tollkeeper_core::audit::verify::proof::{Proof, check_proof, prove};
use tollkeeper_core::audit::verify::report::Verdict;

#[path = "../../rust/core/tests/audit_model/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod audit_model;

use audit_model::{Model, files};

struct Whole {
    folder: PathBuf,
    model: Model,
    files: Vec<(PathBuf, Vec<u8>)>,
    keys: Vec<VerifierKey>,
}

fn whole() -> &'static Whole {
    static WHOLE: OnceLock<Whole> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("audit-fuzz-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        let mut model = Model::new("example.com/fuzz");
        model.fill(270);
        model.signed = vec![270];
        model.write(&folder);
        let read = |path: PathBuf| (path.clone(), std::fs::read(path).expect("the model has written it"));
        let files = files(&folder).into_iter().map(read).collect();
        let keys = vec![VerifierKey::parse(&model.vkey()).expect("a good key")];
        Whole { folder, model, files, keys }
    })
}

/// Changes of four bytes each: which file, where (two), and what to put there.
fn mutated(bytes: &[u8]) {
    let whole = whole();
    let mut touched: Vec<usize> = Vec::new();
    let mut damaged: Vec<Vec<u8>> = whole.files.iter().map(|(_, bytes)| bytes.clone()).collect();
    for change in bytes.chunks_exact(4).take(8) {
        let which = usize::from(change[0]) % damaged.len();
        let file = &mut damaged[which];
        let place = usize::from(u16::from_le_bytes([change[1], change[2]])) * file.len() / 65_536;
        if change[3] == 0 && change[0] >= 128 {
            file.truncate(place);
        } else if place < file.len() {
            file[place] = change[3];
        }
        touched.push(which);
    }
    let mut changed = false;
    for which in &touched {
        changed |= damaged[*which] != whole.files[*which].1;
        std::fs::write(&whole.files[*which].0, &damaged[*which]).expect("the folder can be written");
    }
    let options = Options { keys: vec![whole.model.vkey()], ..Options::default() };
    let good = verify(&whole.folder, &options, &mut |_, _| true)
        .is_ok_and(|report| report.verdict() == Verdict::Ok && report.logs().all(|log| log.warnings.is_empty()));
    let _ = prove(&whole.folder, u64::from(bytes.first().copied().unwrap_or(0)), None);
    for which in touched {
        std::fs::write(&whole.files[which].0, &whole.files[which].1).expect("the folder can be written");
    }
    assert_eq!(good, !changed);
}

/// The bytes as the only segment of a log.
fn segment(bytes: &[u8]) {
    let folder = whole().folder.with_extension("segment");
    let _ = std::fs::create_dir_all(folder.join("wal"));
    std::fs::write(folder.join(format!("wal/{:020}.seg", 0)), bytes).expect("the folder can be written");
    let options = Options { trust_directory: true, ..Options::default() };
    let report = verify(&folder, &options, &mut |_, _| true).expect("a log, whatever is in it");
    assert_ne!(report.verdict(), Verdict::Ok);
    read_all(&folder);
}

fn read_all(folder: &Path) {
    let Ok(mut reader) = Reader::open(folder) else { return };
    let mut entry = Vec::new();
    for index in 0..reader.size().min(300) {
        let _ = reader.entry(index, &mut entry);
        let _ = reader.payload(index);
    }
}

fn json(bytes: &[u8]) {
    let ours = members(bytes, |_| ()).is_ok();
    let theirs = serde_json::from_slice::<serde_json::Value>(bytes);
    if ours {
        // A number may be too large for one; that is no fault of the text.
        assert!(theirs.is_ok() || theirs.is_err_and(|error| error.to_string().contains("out of range")));
    }
    let _ = envelope::read(bytes);
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, rest)) = bytes.split_first() else { return };
    let text = std::str::from_utf8(rest).unwrap_or_default();
    match choice % 6 {
        0 => mutated(rest),
        1 => segment(rest),
        2 => json(rest),
        3 => {
            let signed = Checkpoint::signed(text, &whole().keys);
            // Only the model has the key, and it has signed one size.
            assert!(signed.is_err() || signed.is_ok_and(|checkpoint| checkpoint.size == 270));
        }
        4 => {
            let _ = Proof::parse(text);
            assert!(check_proof(text, &whole().keys, b"never an entry").is_err());
        }
        _ => {
            let _ = VerifierKey::parse(text);
        }
    }
});
