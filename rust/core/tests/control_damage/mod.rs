//! What is done with a damaged control file, for a test that runs always and for the fuzzer.

use std::path::PathBuf;
use std::sync::OnceLock;

use tollkeeper_core::gate::control::{ApprovalId, Control, Standing, Target, TargetKind};

const NOW_MS: i64 = 1_763_000_000_000;

fn file() -> PathBuf {
    std::env::temp_dir().join(format!("control-damage-{}/control.bin", std::process::id()))
}

fn revoked() -> [Target; 2] {
    [Target::new(TargetKind::Principal, "Agent::\"x\""), Target::new(TargetKind::Tool, "send")]
}

/// A file in which everything was used, as its bytes.
fn whole() -> &'static [u8] {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let _ = std::fs::remove_file(file());
        {
            let control = Control::open(&file(), true).expect("a new file");
            for target in revoked() {
                control.revoke(&target, "why", "ada", NOW_MS).expect("there is room");
            }
            let mask = control.labels_mask(&["untrusted", "pii"]).expect("there is room");
            control.add(&control.session("s"), mask, NOW_MS);
            control.ask(ApprovalId(1), &[7; 32], NOW_MS + 1_000, NOW_MS).expect("there is room");
            control.answer(ApprovalId(1), true, NOW_MS + 1_000, None, NOW_MS).expect("it waits");
            control.ask(ApprovalId(2), &[8; 32], NOW_MS + 1_000, NOW_MS).expect("there is room");
            control.join(NOW_MS).expect("there is room").count(1);
        }
        std::fs::read(file()).expect("it was made")
    })
}

/// Where something lies: the fuzzer would look for a needle in seven megabytes.
fn place(at: u32, len: usize) -> usize {
    let at = at as usize;
    let (region, offset) = (at >> 16 & 0xf, at & 0xffff);
    match region {
        // The headers.
        0..4 => region * 1_024 + offset % 256,
        // The first marks.
        4..6 => 4_096 + offset % 64,
        // The texts of the first revocations, and those of the last.
        6..8 => len - 4_096 * 960 + offset % 2_048,
        8 => len - 1 - offset,
        // Marks, labels, counters, approvals.
        9 => 4_096 + offset,
        10 => 69_632 + offset,
        11 => 618_496 + offset % 1_024,
        12 => 618_496 + offset,
        _ => at % len,
    }
}

/// Damages a file as the bytes say, opens it and uses it.
pub(crate) fn damage(bytes: &[u8]) {
    let mut damaged = whole().to_vec();
    let len = damaged.len();
    for change in bytes.chunks_exact(4) {
        damaged[place(u32::from_le_bytes([change[0], change[1], change[2], 0]), len)] = change[3];
    }
    if let [.., cut] = bytes
        && bytes.len() % 4 == 1
    {
        damaged.truncate(len * usize::from(*cut) / 256);
    }
    std::fs::write(file(), &damaged).expect("the folder can be written");
    let Ok(control) = Control::open(&file(), true) else { return };
    let table = control.revocations();
    let everything = table.hit(["-"].into_iter(), "-", None).is_some();
    // The marks or the sums could be those of a table in which something was taken back; with random bytes they are not.
    assert!(!table.is_damaged() || everything && control.word() & 1 == 1);
    for target in revoked() {
        assert!(everything || table.get(&target).is_some(), "{target:?} is let through");
    }
    use_all(&control);
    control.restore(&Target::everything()).expect("it can be repaired");
    assert!(!control.revocations().is_damaged());
    let target = Target::new(TargetKind::Session, "after");
    if control.revoke(&target, "", "", NOW_MS).is_ok() {
        assert!(control.revocations().hit(["-"].into_iter(), "after", None).is_some());
    }
}

fn use_all(control: &std::sync::Arc<Control>) {
    let mask = control.labels_mask(&["untrusted", "new"]).unwrap_or(1);
    for id in ["s", "other"] {
        let session = control.session(id);
        control.add(&session, mask, NOW_MS);
        assert_eq!(control.seen(&session, NOW_MS) & mask, mask);
    }
    let _ = (control.label_names(u64::MAX), control.sessions(), control.overflow(), control.approvals(NOW_MS));
    for digest in [[7; 32], [8; 32], [0; 32]] {
        if let Standing::Granted(grant) = control.standing(&digest, NOW_MS) {
            assert!(control.consume(&grant, NOW_MS) && !control.consume(&grant, NOW_MS));
        }
    }
    for id in [2, 3] {
        let _ = control.ask(ApprovalId(3), &[9; 32], NOW_MS + 1_000, NOW_MS);
        let _ = control.answer(ApprovalId(id), id == 2, NOW_MS + 1_000, Some([1; 64]), NOW_MS);
    }
    let counters = control.join(NOW_MS).expect("there is a place or memory");
    counters.count(1);
    counters.observe_ns(1_000);
    let _ = (control.gates(), control.retired(), counters.read());
}
