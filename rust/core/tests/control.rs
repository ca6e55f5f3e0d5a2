//! The state that all gates of a host share, against plain models of it, from many threads and processes, and damaged.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "tests"
)]

mod control_damage;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use tollkeeper_core::gate::control::{
    ApprovalId, ApprovalState, Control, ControlError, SessionRef, Standing, Target, TargetKind,
};

const NOW_MS: i64 = 1_763_000_000_000;
const DAY_MS: i64 = 24 * 3_600_000;

/// A folder that goes away with the test. Under the build folder: the system's may lie in memory.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("control-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("control.bin")
    }

    /// Opened wherever it lies.
    fn open(&self) -> Arc<Control> {
        Control::open(&self.file(), true).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn principal(name: &str) -> Target {
    Target::new(TargetKind::Principal, name)
}

fn hit(control: &Control, principals: &[&str], session: &str, tool: Option<&str>) -> Option<Target> {
    control.revocations().hit(principals.iter().copied(), session, tool).map(|revoked| revoked.target.clone())
}

// --- revocations ------------------------------------------------------------------------------------------------

#[test]
fn a_revocation_is_seen_by_all_and_after_a_reopening() {
    let folder = Folder::new("seen");
    let (one, two) = (folder.open(), folder.open());
    assert_eq!((one.word(), two.revocations().generation()), (0, 0));
    let agent = principal("Agent::\"x\"");
    let change = one.revoke(&agent, "leaked key", "ada", NOW_MS).unwrap();
    assert_eq!((change.generation, change.changed, two.word()), (1, true, 3));
    let table = two.revocations();
    let found = table.hit(["User::\"a\"", "Agent::\"x\""].into_iter(), "s", None).unwrap();
    assert_eq!((&*found.reason, &*found.by, found.at_ms, found.generation), ("leaked key", "ada", NOW_MS, 1));
    assert!(!one.revoke(&agent, "again", "bob", NOW_MS).unwrap().changed);
    assert_eq!(two.word(), 3, "what changes nothing has no generation");
    for (kind, name) in [(TargetKind::Tool, "send"), (TargetKind::Session, "s-1")] {
        two.revoke(&Target::new(kind, name), "", "", NOW_MS).unwrap();
    }
    assert_eq!(hit(&one, &["Agent::\"y\""], "s-1", Some("send")).unwrap().kind, TargetKind::Session);
    assert_eq!(hit(&one, &["Agent::\"y\""], "s-2", Some("send")).unwrap().kind, TargetKind::Tool);
    assert_eq!(hit(&one, &["Agent::\"y\""], "s-2", None), None);
    assert!(one.revocations().has_tools() && one.revocations().has_sessions() && one.revocations().has_principals());
    drop((one, two));
    let three = folder.open();
    assert_eq!((three.word(), three.revocations().list().len()), (7, 3));
    assert!(three.restore(&agent).unwrap().changed);
    assert!(!three.restore(&agent).unwrap().changed);
    assert_eq!(hit(&three, &["Agent::\"x\""], "s-2", None), None);
    three.revoke(&Target::everything(), "stop", "ada", NOW_MS).unwrap();
    assert_eq!(hit(&three, &[], "s-1", None).unwrap().kind, TargetKind::Everything);
    three.restore(&Target::everything()).unwrap();
    assert_eq!(hit(&three, &[], "s-1", None).unwrap().kind, TargetKind::Session);
}

#[test]
fn texts_and_their_limits() {
    let control = Control::anonymous().unwrap();
    let name = "ä".repeat(256);
    control.revoke(&principal(&name), &"r".repeat(256), &"b".repeat(128), i64::MIN).unwrap();
    let table = control.revocations();
    let found = &table.list()[0];
    assert_eq!((&*found.target.name, found.reason.len(), found.by.len()), (name.as_str(), 256, 128));
    assert_eq!((found.at_ms, table.is_damaged()), (i64::MIN, false));
    for (target, reason, by) in [
        (principal(""), "", ""),
        (principal(&"x".repeat(513)), "", ""),
        (principal("x"), "r".repeat(257).as_str(), ""),
        (principal("x"), "", "b".repeat(129).as_str()),
        (Target { kind: TargetKind::Everything, name: "x".into() }, "", ""),
    ] {
        let error = control.revoke(&target, reason, by, NOW_MS).unwrap_err();
        assert_eq!(error.code(), "control.text", "{error}");
    }
    assert_eq!(control.word(), 3);
}

fn target_of(number: u8) -> Target {
    match number % 10 {
        9 => Target::everything(),
        n => {
            Target::new([TargetKind::Principal, TargetKind::Tool, TargetKind::Session][n as usize % 3], &n.to_string())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any sequence of changes through either of two handles: the table is that of a map, and both see it.
    #[test]
    fn revocations_are_a_map(steps in proptest::collection::vec((0..10_u8, any::<bool>(), any::<bool>()), 0..60)) {
        let folder = Folder::new("map");
        let handles = [folder.open(), folder.open()];
        let mut model: BTreeMap<Target, String> = BTreeMap::new();
        let mut generation = 0;
        for (step, (number, revoke, second)) in steps.into_iter().enumerate() {
            let (target, handle) = (target_of(number), &handles[usize::from(second)]);
            let change = if revoke {
                let changed = !model.contains_key(&target);
                let reason = format!("reason {step}");
                let change = handle.revoke(&target, &reason, "by", step as i64).unwrap();
                model.entry(target).or_insert(reason);
                prop_assert_eq!(change.changed, changed);
                change
            } else {
                let change = handle.restore(&target).unwrap();
                prop_assert_eq!(change.changed, model.remove(&target).is_some());
                change
            };
            generation += u64::from(change.changed);
            for handle in &handles {
                prop_assert_eq!(handle.word(), generation << 1 | u64::from(!model.is_empty()));
                let table = handle.revocations();
                prop_assert_eq!((table.word(), change.generation), (handle.word(), generation));
                let listed: BTreeMap<Target, String> =
                    table.list().iter().map(|revoked| (revoked.target.clone(), revoked.reason.to_string())).collect();
                prop_assert_eq!(&listed, &model);
                prop_assert_eq!(table.list().len(), model.len());
                for number in 0..10 {
                    let target = target_of(number);
                    let (principals, session, tool) = match target.kind {
                        TargetKind::Principal => (vec![&*target.name], "-", None),
                        TargetKind::Session => (vec!["-"], &*target.name, Some("-")),
                        TargetKind::Tool => (vec!["-"], "-", Some(&*target.name)),
                        TargetKind::Everything => (vec![], "-", None),
                    };
                    let expected = if model.contains_key(&Target::everything()) {
                        Some(Target::everything())
                    } else {
                        model.contains_key(&target).then(|| target.clone())
                    };
                    let found = table.hit(principals.into_iter(), session, tool).map(|found| found.target.clone());
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }

    /// Labels of sessions through two handles: those of a map of sets.
    #[test]
    fn sessions_are_a_map_of_sets(steps in proptest::collection::vec((0..12_u8, 0..64_u32, any::<bool>()), 0..80)) {
        let folder = Folder::new("sets");
        let handles = [folder.open(), folder.open()];
        let refs: Vec<Vec<SessionRef>> =
            handles.iter().map(|handle| (0..12).map(|n| handle.session(&format!("s{n}"))).collect()).collect();
        let mut model: BTreeMap<u8, BTreeSet<u32>> = BTreeMap::new();
        for (session, bit, second) in steps {
            let handle = &handles[usize::from(second)];
            handle.add(&refs[usize::from(second)][session as usize], 1 << bit, NOW_MS);
            model.entry(session).or_default().insert(bit);
            for (handle, refs) in handles.iter().zip(&refs) {
                for (number, session) in (0..).zip(refs) {
                    let expected = model.get(&number).into_iter().flatten().fold(0_u64, |mask, bit| mask | 1 << bit);
                    prop_assert_eq!(handle.seen(session, NOW_MS), expected);
                    prop_assert_eq!(handle.seen(&handle.session(&format!("s{number}")), NOW_MS), expected);
                }
            }
        }
        prop_assert_eq!(handles[0].overflow(), 0);
        prop_assert_eq!(handles[0].sessions(), model.len());
    }
}

/// Threads on handles of their own hammer the table while one revokes: after `revoke` has returned nobody misses it.
#[test]
fn no_reader_misses_what_was_revoked() {
    let folder = Folder::new("hammer");
    let writer = folder.open();
    let acknowledged = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let (acknowledged, over) = (&acknowledged, &over);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let control = folder.open();
                scope.spawn(move || {
                    let mut reads = 0_u64;
                    while !over.load(Ordering::Relaxed) {
                        let before = acknowledged.load(Ordering::Acquire);
                        let word = control.word();
                        let table = control.revocations();
                        assert!(table.word() >= word && !table.is_damaged(), "{:?}", table.list());
                        // Twenty later it is restored: not before this many were acknowledged.
                        let after = acknowledged.load(Ordering::Acquire);
                        for n in before.saturating_sub(3).max((after + 1).saturating_sub(21))..before {
                            let name = format!("Agent::\"{n}\"");
                            assert!(table.hit([name.as_str()].into_iter(), "s", None).is_some(), "{name}");
                        }
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        // Twenty at a time, so that slots are used again while they are read.
        for n in 0..300_u64 {
            writer.revoke(&principal(&format!("Agent::\"{n}\"")), "", "", NOW_MS).unwrap();
            acknowledged.store(n + 1, Ordering::Release);
            if let Some(old) = n.checked_sub(20) {
                writer.restore(&principal(&format!("Agent::\"{old}\""))).unwrap();
            }
        }
        over.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
}

// --- sessions ---------------------------------------------------------------------------------------------------

#[test]
fn labels_have_numbers_for_good() {
    let folder = Folder::new("labels");
    let (one, two) = (folder.open(), folder.open());
    assert_eq!(one.labels_mask(&[]).unwrap(), 0);
    assert_eq!(one.labels_mask(&["pii", "untrusted", "pii"]).unwrap(), 3);
    assert_eq!(two.labels_mask(&["secret", "untrusted"]).unwrap(), 6);
    assert_eq!(one.label_name(2).as_deref(), Some("secret"));
    assert_eq!(
        one.label_names(1 << 40 | 5).iter().map(|name| &**name).collect::<Vec<_>>(),
        ["pii", "secret", "label-40"]
    );
    for name in ["", "x".repeat(257).as_str()] {
        assert_eq!(one.labels_mask(&[name]).unwrap_err().code(), "control.text");
    }
    drop((one, two));
    let control = folder.open();
    let names: Vec<String> = (0..61).map(|n| format!("l{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(control.labels_mask(&names).unwrap(), u64::MAX << 3);
    let error = control.labels_mask(&["one more"]).unwrap_err();
    assert_eq!(error.to_string(), "there is no room for another label: 64 is the limit of one control file");
    assert_eq!(control.labels_mask(&["l60"]).unwrap(), 1 << 63);
    assert_eq!(control.labels().len(), 64);
}

#[test]
fn a_session_is_found_that_another_process_has_made_later() {
    let folder = Folder::new("later");
    let (one, two) = (folder.open(), folder.open());
    let (ours, theirs) = (one.session("s"), two.session("s"));
    assert_eq!(one.seen(&ours, NOW_MS), 0);
    two.add(&two.session("other"), 8, NOW_MS);
    assert_eq!(one.seen(&ours, NOW_MS), 0);
    two.add(&theirs, 1, NOW_MS);
    assert_eq!(one.seen(&ours, NOW_MS), 1);
    one.add(&ours, 2, NOW_MS);
    one.add(&ours, 0, NOW_MS);
    assert_eq!((one.seen(&ours, NOW_MS), two.seen(&theirs, NOW_MS)), (3, 3));
    drop((one, two));
    let again = folder.open();
    assert_eq!(again.seen(&again.session("s"), NOW_MS), 3, "labels survive all processes");
}

/// The table is filled: what finds no room counts for all without labels of their own, and after 30 days without use
/// there is room again.
#[test]
fn a_full_table_denies_too_much_and_never_too_little() {
    let control = Control::anonymous().unwrap();
    let mut many = 0;
    while control.overflow() == 0 {
        let session = control.session(&format!("s{many}"));
        control.add(&session, 1 << (many % 60), NOW_MS);
        assert_ne!(control.seen(&session, NOW_MS) & 1 << (many % 60), 0);
        many += 1;
    }
    assert!(many > 65_536 * 3 / 4, "{many}");
    let (last, overflow) = (many - 1, control.overflow());
    assert_eq!(control.seen(&control.session("new"), NOW_MS), overflow);
    for n in 0..last {
        assert_eq!(control.seen(&control.session(&format!("s{n}")), NOW_MS + 29 * DAY_MS), 1 << (n % 60), "{n}");
    }
    // All were used a day before, so nothing has room yet.
    let session = control.session(&format!("s{last}"));
    control.add(&session, 1 << 62, NOW_MS + 30 * DAY_MS);
    assert_eq!(control.overflow(), overflow | 1 << 62);
    // A month later one is forgotten for it; the overflow comes along.
    let later_ms = NOW_MS + 60 * DAY_MS;
    let (held, sessions) = (control.session("s0"), control.sessions());
    assert_eq!(control.seen(&held, later_ms), 1, "used again just in time");
    control.add(&session, 1 << 61, later_ms);
    assert_eq!(control.overflow(), overflow | 1 << 62, "it had room");
    assert_eq!(control.seen(&session, later_ms), overflow | 1 << 62 | 1 << 61);
    assert_eq!(control.sessions(), sessions);
    assert_eq!(control.seen(&held, later_ms), 1);
}

/// A handle that knows the slot of a session notices that it is another's now.
#[test]
fn a_slot_that_is_used_again_is_not_mistaken() {
    let control = Control::anonymous().unwrap();
    let old: Vec<SessionRef> = (0..70_000).map(|n| control.session(&format!("old{n}"))).collect();
    for session in &old {
        control.add(session, 1, NOW_MS);
    }
    let later_ms = NOW_MS + 31 * DAY_MS;
    let before = control.overflow();
    for n in 0..10_000 {
        control.add(&control.session(&format!("new{n}")), 2, later_ms);
    }
    let forgotten = old.iter().filter(|session| control.seen(session, later_ms) == before).count();
    let kept = old.iter().filter(|session| control.seen(session, later_ms) & 1 == 1).count();
    assert!(forgotten > 0 || before != 0);
    assert!(kept >= 50_000, "{kept}");
    assert!(old.iter().all(|session| control.seen(session, later_ms) & 2 == 0), "none has another's label");
    for n in 0..10_000 {
        assert_eq!(control.seen(&control.session(&format!("new{n}")), later_ms) & 2, 2, "{n}");
    }
}

#[test]
fn threads_add_to_the_same_sessions() {
    let folder = Folder::new("threads");
    std::thread::scope(|scope| {
        for thread in 0..8_u32 {
            let control = folder.open();
            scope.spawn(move || {
                for n in 0..2_000 {
                    let session = control.session(&format!("s{n}"));
                    control.add(&session, 1 << thread, NOW_MS);
                    assert_ne!(control.seen(&session, NOW_MS) & 1 << thread, 0);
                }
            });
        }
    });
    let control = folder.open();
    assert_eq!(control.sessions(), 2_000);
    for n in 0..2_000 {
        assert_eq!(control.seen(&control.session(&format!("s{n}")), NOW_MS), 0xff);
    }
}

// --- approvals --------------------------------------------------------------------------------------------------

const DIGEST: [u8; 32] = [7; 32];

#[test]
fn a_question_an_answer_and_one_use() {
    let folder = Folder::new("approvals");
    let (asker, human) = (folder.open(), folder.open());
    let id = ApprovalId(0xfeed);
    assert_eq!(asker.standing(&DIGEST, NOW_MS), Standing::None);
    asker.ask(id, &DIGEST, NOW_MS + 100, NOW_MS).unwrap();
    assert_eq!(human.standing(&DIGEST, NOW_MS + 99), Standing::Pending(id));
    assert_eq!(asker.ask(id, &DIGEST, NOW_MS, NOW_MS).unwrap_err().to_string(), "approval 000000000000feed is pending");
    let answered = human.answer(id, true, NOW_MS + 500, Some([3; 64]), NOW_MS + 50).unwrap();
    assert_eq!((answered.id, answered.digest, answered.granted), (id, DIGEST, true));
    assert_eq!(
        human.answer(id, false, 0, None, NOW_MS).unwrap_err().to_string(),
        "approval 000000000000feed is granted"
    );
    let Standing::Granted(grant) = asker.standing(&DIGEST, NOW_MS + 499) else { panic!() };
    assert_eq!((grant.id, grant.expires_ms, grant.signature), (id, NOW_MS + 500, Some([3; 64])));
    assert_eq!(asker.standing(&DIGEST, NOW_MS + 500), Standing::Expired(id));
    assert!(!asker.consume(&grant, NOW_MS + 500));
    assert!(asker.consume(&grant, NOW_MS + 499));
    assert!(!human.consume(&grant, NOW_MS + 499));
    assert_eq!(human.standing(&DIGEST, NOW_MS), Standing::Used(id));
    let second = ApprovalId(2);
    asker.ask(second, &DIGEST, NOW_MS + 100, NOW_MS).unwrap();
    assert_eq!(asker.standing(&DIGEST, NOW_MS), Standing::Pending(second), "the newest counts");
    human.answer(second, false, 0, None, NOW_MS).unwrap();
    assert_eq!(asker.standing(&DIGEST, NOW_MS), Standing::Rejected(second));
    assert_eq!(
        human.answer(ApprovalId(3), true, 0, None, 0).unwrap_err().to_string(),
        "approval 0000000000000003 is unknown"
    );
    let rows = human.approvals(NOW_MS);
    assert_eq!(
        rows.iter().map(|row| (row.id, row.state)).collect::<Vec<_>>(),
        [(id, ApprovalState::Used), (second, ApprovalState::Rejected)]
    );
    assert_eq!((rows[0].answered_ms, rows[1].grant_expires_ms), (Some(NOW_MS + 50), None));
    assert_eq!("000000000000feed".parse(), Ok(id));
    for bad in ["feed", "+00000000000feed", "000000000000feeg"] {
        assert!(bad.parse::<ApprovalId>().is_err());
    }
}

#[test]
fn finished_questions_make_room_and_waiting_ones_do_not() {
    let control = Control::anonymous().unwrap();
    let digest = |n: u64| [n.to_le_bytes(), n.to_le_bytes(), [0; 8], [0; 8]].concat().try_into().unwrap();
    for n in 1..=1_024 {
        control.ask(ApprovalId(n), &digest(n), NOW_MS + 1_000 + i64::from(n != 5), NOW_MS).unwrap();
    }
    let full = control.ask(ApprovalId(2_000), &DIGEST, NOW_MS, NOW_MS).unwrap_err();
    assert_eq!(full.to_string(), "there is no room for another approval: 1024 is the limit of one control file");
    control.answer(ApprovalId(9), false, 0, None, NOW_MS).unwrap();
    control.answer(ApprovalId(10), true, NOW_MS + 10, None, NOW_MS).unwrap();
    control.ask(ApprovalId(2_000), &DIGEST, NOW_MS + 5_000, NOW_MS).unwrap();
    assert_eq!(control.standing(&digest(9), NOW_MS), Standing::None, "it made room");
    let Standing::Granted(grant) = control.standing(&digest(10), NOW_MS) else { panic!() };
    // The fifth question has expired, and the grant.
    control.ask(ApprovalId(2_001), &[1; 32], NOW_MS + 5_000, NOW_MS + 1_000).unwrap();
    control.ask(ApprovalId(2_002), &[2; 32], NOW_MS + 5_000, NOW_MS + 1_000).unwrap();
    assert!(control.ask(ApprovalId(2_003), &[2; 32], NOW_MS + 5_000, NOW_MS + 1_000).is_err());
    assert!(!control.consume(&grant, NOW_MS), "its slot is another's");
    assert_eq!(control.approvals(NOW_MS).len(), 1_024);
}

#[test]
fn exactly_one_of_eight_uses_a_grant() {
    let folder = Folder::new("consume");
    let handles: Vec<_> = (0..8).map(|_| folder.open()).collect();
    for n in 1..200 {
        handles[0].ask(ApprovalId(n), &DIGEST, NOW_MS + 100, NOW_MS).unwrap();
        handles[1].answer(ApprovalId(n), true, NOW_MS + 100, None, NOW_MS).unwrap();
        let barrier = std::sync::Barrier::new(8);
        let used: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = handles
                .iter()
                .map(|control| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        let Standing::Granted(grant) = control.standing(&DIGEST, NOW_MS) else { return false };
                        control.consume(&grant, NOW_MS)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum()
        });
        assert_eq!(used, 1);
    }
}

#[test]
fn who_waits_for_an_answer_is_woken() {
    let folder = Folder::new("wait");
    let (asker, human) = (folder.open(), folder.open());
    asker.ask(ApprovalId(1), &DIGEST, NOW_MS + 100, NOW_MS).unwrap();
    let seen = asker.approvals_word().load(Ordering::Acquire);
    let begun = std::time::Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while asker.standing(&DIGEST, NOW_MS) == Standing::Pending(ApprovalId(1)) {
                asker.wait_approvals(seen, 20_000);
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        human.answer(ApprovalId(1), true, NOW_MS + 100, None, NOW_MS).unwrap();
    });
    assert!(begun.elapsed() < Duration::from_secs(10));
}

// --- counters ---------------------------------------------------------------------------------------------------

#[test]
fn gates_are_counted_apart_and_add_up_when_they_are_gone() {
    let folder = Folder::new("counters");
    let (control, other) = (folder.open(), folder.open());
    let (one, two) = (control.join(NOW_MS).unwrap(), other.join(NOW_MS + 1).unwrap());
    let three = control.join(NOW_MS + 2).unwrap();
    one.count(0);
    one.count_many(3, 5);
    one.count(99);
    two.count(0);
    for ns in [100, 200, 300, 1_000_000] {
        one.observe_ns(ns);
    }
    one.set_bundle(&[9; 32], true);
    one.observed(4);
    assert!(one.is_own() && one.is_shared());
    let rows = other.gates();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row.alive && row.pid == std::process::id()));
    assert_eq!((rows[0].codes[0], rows[0].codes[3], rows[0].timed, rows[0].max_ns), (1, 5, 4, 1_000_000));
    assert_eq!((rows[0].bundle, rows[0].shadow, rows[0].generation), ([9; 32], true, 4));
    assert!((200..256).contains(&rows[0].p50_ns) && rows[0].p999_ns == 1_000_000, "{:?}", rows[0]);
    assert_eq!(one.read(), rows[0]);
    drop((one, three));
    assert_eq!(control.gates().len(), 1);
    let gone = control.retired();
    assert_eq!((gone.codes[0], gone.codes[3], gone.timed, gone.max_ns, gone.alive), (1, 5, 4, 1_000_000, false));
    let again = control.join(NOW_MS).unwrap();
    assert_eq!((again.read().codes[3], again.read().timed), (0, 0));
}

#[test]
fn where_no_place_is_left_a_gate_counts_for_itself() {
    let control = Control::anonymous().unwrap();
    let all: Vec<_> = (0..512).map(|_| control.join(NOW_MS).unwrap()).collect();
    assert!(all.iter().all(tollkeeper_core::gate::control::Counters::is_shared));
    let alone = control.join(NOW_MS).unwrap();
    alone.count(2);
    assert!(!alone.is_shared());
    assert_eq!((alone.read().codes[2], control.gates().len()), (1, 512));
    drop(all);
    assert!(control.gates().is_empty() && control.join(NOW_MS).unwrap().is_shared());
}

// --- files ------------------------------------------------------------------------------------------------------

#[test]
fn a_file_is_private_whole_and_absolute() {
    let folder = Folder::new("private");
    let path = folder.0.join("deep/state/control.bin");
    let control = Control::open(&path, true).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no draft is left");
    assert_eq!(control.path().unwrap(), path);
    assert!(control.is_at_its_path() && control.is_own());
    std::fs::rename(&path, folder.0.join("gone")).unwrap();
    assert!(!control.is_at_its_path());
    let error = control.revoke(&principal("x"), "", "", NOW_MS).unwrap_err();
    assert_eq!((error.code(), control.word()), ("control.state_replaced", 0));
}

fn refused(folder: &Folder) -> ControlError {
    let before = std::fs::read(folder.file()).unwrap();
    let error = Control::open(&folder.file(), true).unwrap_err();
    assert!(error.help().is_some());
    assert_eq!(std::fs::read(folder.file()).unwrap(), before, "it is left alone");
    error
}

#[test]
fn what_is_not_ours_is_refused_and_left_alone() {
    let folder = Folder::new("refused");
    folder.open();
    let whole = std::fs::read(folder.file()).unwrap();
    let write = |bytes: &[u8]| std::fs::write(folder.file(), bytes).unwrap();
    for len in [0, 1, 47, 128, 4_096, whole.len() / 2, whole.len() - 1] {
        write(&whole[..len]);
        assert_eq!(refused(&folder).code(), "control.state_corrupt", "{len}");
    }
    write(&[whole.as_slice(), &[0]].concat());
    assert!(refused(&folder).to_string().ends_with("bytes, not the 6844416 that its header states"));
    write(&vec![0; whole.len()]);
    assert!(refused(&folder).to_string().ends_with("the file is not a control file"));
    // Four bytes say nothing.
    for place in (0..12).chain(16..48) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x40;
        if damaged != whole {
            write(&damaged);
            let code = refused(&folder).code();
            let expected = match place {
                8..12 => "control.state_version",
                _ => "control.state_corrupt",
            };
            assert_eq!(code, expected, "{place}");
        }
    }
}

#[test]
fn folders_and_files_that_others_may_write_to_are_refused() {
    let folder = Folder::new("modes");
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    set(&folder.0, 0o777);
    assert_eq!(Control::open(&folder.file(), true).unwrap_err().code(), "control.state_permissions");
    assert!(!folder.file().exists());
    set(&folder.0, 0o700);
    folder.open();
    set(&folder.file(), 0o666);
    assert_eq!(refused(&folder).code(), "control.state_permissions");
    std::fs::remove_file(folder.file()).unwrap();
    std::os::unix::fs::symlink(folder.0.join("elsewhere"), folder.file()).unwrap();
    assert_eq!(Control::open(&folder.file(), true).unwrap_err().code(), "control.io");
    std::fs::remove_file(folder.file()).unwrap();
    std::fs::create_dir(folder.file()).unwrap();
    assert_eq!(Control::open(&folder.file(), true).unwrap_err().code(), "control.io");
}

#[test]
fn memory_is_refused_unless_it_is_meant() {
    let path = PathBuf::from(format!("/dev/shm/tollkeeper-control-{}", std::process::id()));
    if !Path::new("/dev/shm").is_dir() {
        return;
    }
    let error = Control::open(&path, false).unwrap_err();
    assert_eq!((error.code(), path.exists()), ("control.state_volatile", false));
    Control::open(&path, true).unwrap();
    assert_eq!(Control::open(&path, false).unwrap_err().code(), "control.state_volatile");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn eight_threads_that_make_the_file_have_the_same() {
    for round in 0..10 {
        let folder = Folder::new(&format!("race{round}"));
        let handles: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| folder.open())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        handles[0].revoke(&Target::everything(), "", "", NOW_MS).unwrap();
        assert!(handles.iter().all(|control| control.word() == 3 && control.is_at_its_path()));
    }
}

/// A byte of the table of revocations differs: nothing that was revoked is let through, and it can be repaired.
#[test]
fn damage_revokes_everything_until_it_is_cleared() {
    let folder = Folder::new("damage");
    let control = folder.open();
    for n in 0..4 {
        control.revoke(&principal(&format!("a{n}")), "why", "ada", NOW_MS).unwrap();
    }
    control.restore(&principal("a3")).unwrap();
    drop(control);
    let whole = std::fs::read(folder.file()).unwrap();
    // The header of the table, the marks, and the texts of the first slots.
    let texts = whole.len() - 4_096 * 960;
    let places =
        (1_024..1_064).step_by(3).chain((4_096..4_096 + 64).step_by(3)).chain((texts..texts + 3 * 960).step_by(31));
    let (mut noticed, mut unnoticed) = (0, 0);
    for place in places {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x10;
        std::fs::write(folder.file(), &damaged).unwrap();
        let control = folder.open();
        for n in 0..3 {
            assert!(
                control.word() & 1 == 1 && hit(&control, &[&format!("a{n}")], "s", None).is_some(),
                "{place}: a{n}"
            );
        }
        if !control.revocations().is_damaged() {
            // A byte that says nothing: beyond the end of a text, or the end of a slot.
            assert!(hit(&control, &["x"], "s", None).is_none());
            unnoticed += 1;
            continue;
        }
        noticed += 1;
        let table = control.revocations();
        assert!(table.list()[0].reason.contains("tollkeeper restore --everything"), "{:?}", table.list()[0]);
        assert_eq!(hit(&control, &["x"], "s", None), Some(Target::everything()));
        // Other changes go on and leave the damage as it is.
        control.revoke(&principal("b"), "", "", NOW_MS).unwrap();
        control.restore(&principal("b")).unwrap();
        assert!(control.revocations().is_damaged());
        let before = control.word();
        assert!(control.restore(&Target::everything()).unwrap().changed);
        assert!(control.word() > before);
        assert!(!control.revocations().is_damaged(), "{place}");
        assert!(hit(&control, &["x"], "s", None).is_none(), "{place}");
        control.revoke(&principal("x"), "", "", NOW_MS).unwrap();
        assert!(hit(&control, &["x"], "s", None).is_some());
        assert!(!folder.open().revocations().is_damaged());
    }
    assert!(noticed > 15 && unnoticed > 30, "{noticed} {unnoticed}");
}

#[test]
fn a_page_of_marks_that_was_lost_is_noticed() {
    let folder = Folder::new("lost");
    folder.open().revoke(&principal("a"), "", "", NOW_MS).unwrap();
    let mut bytes = std::fs::read(folder.file()).unwrap();
    bytes[4_096..8_192].fill(0);
    std::fs::write(folder.file(), &bytes).unwrap();
    let control = folder.open();
    assert_eq!(hit(&control, &["a"], "s", None), Some(Target::everything()));
    // The same where the word is lost as well.
    bytes[1_024..1_032].fill(0);
    std::fs::write(folder.file(), &bytes).unwrap();
    drop(control);
    let control = folder.open();
    // Nothing but the sum is left to say that something was there; it belongs to a generation that did not begin.
    assert_eq!(control.word(), 0);
}

/// A word that is one generation too old, as if the last write had not reached the disk: the revocation is finished.
#[test]
fn a_revocation_that_was_not_published_is_finished() {
    let folder = Folder::new("unpublished");
    let control = folder.open();
    control.revoke(&principal("a"), "", "", NOW_MS).unwrap();
    control.revoke(&principal("b"), "", "", NOW_MS).unwrap();
    drop(control);
    let mut bytes = std::fs::read(folder.file()).unwrap();
    for word in [3_u64, 1, 2, 7, 99, 0] {
        bytes[1_024..1_032].copy_from_slice(&word.to_ne_bytes());
        std::fs::write(folder.file(), &bytes).unwrap();
        let control = folder.open();
        for name in ["a", "b"] {
            assert!(control.word() & 1 == 1 && hit(&control, &[name], "s", None).is_some(), "{word}: {name}");
        }
        assert_eq!(control.revocations().is_damaged(), word != 3, "{word}");
    }
}

/// Numbers that look random and are the same in each run.
fn below(state: &mut u64, bound: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % bound
}

#[test]
fn damaged_files_are_refused_or_work() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..80 {
        let len = 4 * (1 + below(&mut state, 6)) + u64::from(round % 20 == 0);
        let bytes: Vec<u8> = (0..len).map(|_| below(&mut state, 256) as u8).collect();
        control_damage::damage(&bytes);
    }
}

// --- processes that are killed ----------------------------------------------------------------------------------

/// What a child does, in its own process: this test binary, told by its environment. It says what has returned.
#[test]
fn child() {
    let Ok(path) = std::env::var("TOLLKEEPER_CONTROL") else { return };
    let number: u64 = std::env::var("TOLLKEEPER_CONTROL_CHILD").unwrap().parse().unwrap();
    let control = Control::open(Path::new(&path), true).unwrap();
    let counters = control.join(NOW_MS).unwrap();
    // Not `println`: the harness would keep it.
    let mut says = std::fs::OpenOptions::new().append(true).open("/dev/stderr").unwrap();
    for n in 0.. {
        let name = format!("{number}.{n}");
        control.revoke(&principal(&name), "why", "ada", NOW_MS).unwrap();
        says.write_all(format!("revoke {name}\n").as_bytes()).unwrap();
        control.add(&control.session(&name), 1 << (n % 8), NOW_MS);
        control.add(&control.session("all"), 1 << (number % 64), NOW_MS);
        says.write_all(format!("add {name}\n").as_bytes()).unwrap();
        if let Standing::Granted(grant) = control.standing(&DIGEST, NOW_MS)
            && control.consume(&grant, NOW_MS)
        {
            says.write_all(format!("used {}\n", grant.id).as_bytes()).unwrap();
        }
        control.restore(&principal(&name)).unwrap();
        says.write_all(format!("restore {name}\n").as_bytes()).unwrap();
        counters.count(1);
    }
}

fn start(path: &Path, number: u64) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .env("TOLLKEEPER_CONTROL", path)
        .env("TOLLKEEPER_CONTROL_CHILD", number.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Two at a time are killed at some moment, and the rest goes on in the same file.
#[test]
fn what_returned_before_a_kill_holds_after_it() {
    let folder = Folder::new("kills");
    let control = folder.open();
    let mut state = 0x1234_5678_9abc_def1_u64;
    let kills: u64 = std::env::var("TOLLKEEPER_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(30);
    let mut used = Vec::new();
    for round in 0..kills {
        let id = ApprovalId(round + 1);
        control.ask(id, &DIGEST, NOW_MS + 100, NOW_MS).unwrap();
        control.answer(id, true, NOW_MS + 100, None, NOW_MS).unwrap();
        let mut children = [start(&folder.file(), round * 2), start(&folder.file(), round * 2 + 1)];
        std::thread::sleep(Duration::from_millis(20 + below(&mut state, 60)));
        for child in &mut children {
            child.kill().unwrap();
        }
        for child in &mut children {
            let mut text = String::new();
            child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            child.wait().unwrap();
            assert!(!text.contains("panicked"), "{text}");
            check_what_was_said(&control, &text, &mut used);
        }
        assert!(!control.revocations().is_damaged());
        assert!(control.gates().iter().all(|row| !row.alive));
    }
    used.sort_unstable();
    assert!(used.windows(2).all(|pair| pair[0] != pair[1]), "a grant was used twice");
    assert!(!used.is_empty());
    // Whatever a killed child had in force can be taken back, by a process that opens the file now, too.
    let other = folder.open();
    let left: Vec<Target> = other.revocations().list().iter().map(|revoked| revoked.target.clone()).collect();
    for target in left {
        assert!(other.restore(&target).unwrap().changed);
    }
    assert_eq!(control.word() & 1, 0);
    assert!(control.gates().len() <= 4, "places of the dead are used again");
}

fn check_what_was_said(control: &Control, text: &str, used: &mut Vec<String>) {
    let lines: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    for (verb, name) in &lines {
        match *verb {
            "add" => {
                let bit: u32 = name.split_once('.').unwrap().1.parse().unwrap();
                assert_ne!(control.seen(&control.session(name), NOW_MS) & 1 << (bit % 8), 0, "{name}");
                let number: u64 = name.split_once('.').unwrap().0.parse().unwrap();
                assert_ne!(control.seen(&control.session("all"), NOW_MS) & 1 << (number % 64), 0);
            }
            "used" => used.push((*name).to_owned()),
            "restore" => assert!(control.revocations().get(&principal(name)).is_none(), "{name}"),
            _ => {}
        }
    }
    // The last revocation may be in doubt only if its restoration had begun: then labels were said in between.
    if let [.., ("revoke", name)] = lines.as_slice() {
        assert!(control.revocations().get(&principal(name)).is_some(), "{name}");
    }
}

#[test]
fn a_damaged_dictionary_is_refused() {
    let folder = Folder::new("dictionary");
    folder.open().labels_mask(&["untrusted"]).unwrap();
    let mut bytes = std::fs::read(folder.file()).unwrap();
    let place = bytes.windows(9).position(|window| window == b"untrusted").unwrap();
    bytes[place] = b'x';
    std::fs::write(folder.file(), &bytes).unwrap();
    assert!(refused(&folder).to_string().contains("the name of label 0 is damaged"));
}
