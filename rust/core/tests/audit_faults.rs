//! A disk that fails: every operation of a run, one after the other, once or until it is healed, as an error or half
//! way through a write.
//!
//! Whatever fails, what was said to be durable is in the log once, the log goes on when the disk is healed, and what is
//! on the disk verifies. Opening it again changes nothing but that it says so.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod audit;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use audit::{Folder, append, options, read, texts, try_append};
use tollkeeper_core::audit::disk::{Disk, Fault, Operation};
use tollkeeper_core::audit::log::{Durability, Log, LogOptions, Refused};

/// Runs at once.
const WORKERS: u64 = 8;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Fails operation number `at`, and all after it until it is healed if it `stays`.
struct Plan {
    at: AtomicU64,
    stays: bool,
    fault: Fault,
    seen: AtomicU64,
    /// What each operation was
    kinds: Mutex<Vec<Operation>>,
    healed: AtomicBool,
    hit: AtomicBool,
}

impl Plan {
    fn new(at: u64, stays: bool, fault: Fault) -> Arc<Self> {
        let (at, seen) = (AtomicU64::new(at), AtomicU64::new(0));
        let (kinds, healed, hit) = (Mutex::default(), AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { at, stays, fault, seen, kinds, healed, hit })
    }

    fn disk(self: &Arc<Self>) -> Disk {
        let plan = Arc::clone(self);
        Disk::faulty(Arc::new(move |operation, _: &Path| plan.ask(operation)))
    }

    fn ask(&self, operation: Operation) -> Option<Fault> {
        let number = self.seen.fetch_add(1, SeqCst);
        self.kinds.lock().unwrap().push(operation);
        let at = self.at.load(SeqCst);
        let due = number == at || (self.stays && number > at && !self.healed.load(SeqCst));
        // Half a write is a write's fault only.
        let fits = !matches!(self.fault, Fault::Torn(_)) || operation == Operation::Write;
        if due && !fits && !self.stays {
            // The next write is meant then.
            self.at.store(number + 1, SeqCst);
        }
        (due && fits).then(|| {
            self.hit.store(true, SeqCst);
            self.fault
        })
    }
}

fn faulty(instance: u64, plan: &Arc<Plan>) -> LogOptions {
    let mut options = options(instance);
    options.disk = plan.disk();
    options.close_timeout_ms = 100;
    options
}

/// Opens, writes, waits, makes checkpoints, rotates, closes; with an `n`th opening's instance. Collects what was said to
/// be durable. While the disk refuses, what fails is left; then it is healed and everything has to go on.
fn run(folder: &Path, plan: &Arc<Plan>, durable: &mut Vec<String>, at: &str) {
    let mut opened = None;
    for attempt in 0..20 {
        match Log::open(folder, faulty(100 + attempt, plan)) {
            Ok(log) => {
                opened = Some(log);
                break;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                plan.healed.store(plan.hit.load(SeqCst), SeqCst);
            }
        }
    }
    let log = opened.unwrap_or_else(|| panic!("{at}: it never opens"));
    let mut waits = Vec::new();
    for part in 0..3 {
        for n in 0..4 {
            let text = format!("{part}-{n}");
            waits.push((append(&log, &text), text));
        }
        let (last, _) = waits[waits.len() - 1];
        if log.wait(last, Durability::Sync, 30).is_ok() {
            durable.extend(waits.drain(..).map(|(_, text)| text));
        } else {
            plan.healed.store(true, SeqCst);
        }
        let _ = log.checkpoint(30);
        if part == 1 && log.rotate(60).is_err() {
            plan.healed.store(true, SeqCst);
        }
    }
    plan.healed.store(true, SeqCst);
    let last = append(&log, "last");
    durable.push("last".to_owned());
    log.wait(last, Durability::Checkpointed, 5_000).unwrap_or_else(|error| panic!("{at}: {error}"));
    durable.extend(waits.into_iter().map(|(_, text)| text));
    let _ = log.close();
}

fn check(folder: &Path, durable: &[String], at: &str) {
    // Recovery of whatever is there, twice: the second changes nothing but that it says so.
    Log::open(folder, options(7_001)).unwrap_or_else(|error| panic!("{at}: {error}")).close().unwrap();
    let once = read(folder);
    Log::open(folder, options(7_002)).unwrap().close().unwrap();
    let twice = read(folder);
    assert_eq!(once[..], twice[..once.len()], "{at}");
    let kinds: Vec<&str> = twice[once.len()..].iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["start", "stop"], "{at}");
    let found = texts(&twice);
    for text in durable {
        assert_eq!(found.iter().filter(|found| *found == text).count(), 1, "{at}: {text} in {found:?}");
    }
}

/// Every operation of the run fails once, or that one and all that follow.
fn every_operation(name: &str, stays: bool, faults: &[Fault], stride: u64) {
    let never = Plan::new(u64::MAX, false, Fault::Error(EIO));
    let folder = Folder::new(&format!("{name}-count"));
    run(&folder, &never, &mut Vec::new(), "no fault");
    let operations = never.seen.load(SeqCst);
    assert!(operations > 60, "{operations}");
    let kinds = never.kinds.lock().unwrap().clone();
    let kinds = &kinds;
    // Most of the time somebody waits for a disk to be tried again.
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            scope.spawn(move || {
                let folder = Folder::new(&format!("{name}-{worker}"));
                for number in (worker..operations).step_by(WORKERS as usize) {
                    if matches!(faults, [Fault::Torn(_), ..]) && kinds[number as usize] != Operation::Write {
                        continue;
                    }
                    for (_, fault) in
                        (0..).zip(faults).filter(|(place, _)| (number / WORKERS + place).is_multiple_of(stride))
                    {
                        let _ = std::fs::remove_dir_all(&*folder);
                        let plan = Plan::new(number, stays, *fault);
                        let at = format!("{fault:?} at operation {number} of {operations}, stays: {stays}");
                        let mut durable = Vec::new();
                        run(&folder, &plan, &mut durable, &at);
                        check(&folder, &durable, &at);
                    }
                }
            });
        }
    });
}

/// Each fault at each operation only where somebody asks for it; else each operation has one of them.
fn stride(faults: usize) -> u64 {
    if std::env::var_os("TOLLKEEPER_LONG").is_some() { 1 } else { faults as u64 }
}

#[test]
fn any_operation_fails_once() {
    every_operation("fault-once", false, &[Fault::Error(EIO), Fault::Error(ENOSPC)], stride(2));
}

#[test]
fn any_operation_and_all_that_follow_fail() {
    every_operation("fault-stays", true, &[Fault::Error(EIO), Fault::Error(ENOSPC)], stride(2));
}

#[test]
fn any_write_is_torn() {
    let faults = [0, 1, 7, 64, 95, 100, 200, 4_096].map(Fault::Torn);
    every_operation("fault-torn", false, &faults, stride(8));
}

#[test]
fn any_write_and_all_that_follow_are_torn() {
    let faults = [3, 60, 96, 97, 150, 300, 1_000, 10_000].map(Fault::Torn);
    every_operation("fault-torn-stays", true, &faults, stride(8));
}

#[test]
fn a_full_disk_refuses_and_goes_on() {
    let folder = Folder::new("full");
    let full = Arc::new(AtomicBool::new(false));
    let mut options = options(1);
    let is_full = Arc::clone(&full);
    options.disk = Disk::faulty(Arc::new(move |operation, _: &Path| {
        let takes_room = matches!(operation, Operation::Create | Operation::Allocate | Operation::Write);
        (takes_room && is_full.load(SeqCst)).then_some(Fault::Error(ENOSPC))
    }));
    let log = Log::open(&folder, options).unwrap();
    let text = "x".repeat(2_000);
    full.store(true, SeqCst);
    let mut written = 0;
    let refused = loop {
        match try_append(&log, &text) {
            Ok(_) => written += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused, Refused::Full);
    assert!((150..=300).contains(&written), "{written}");
    let end = Instant::now() + Duration::from_secs(5);
    while !log.reason(refused).contains("No space left on device") {
        assert!(Instant::now() < end, "{}", log.reason(refused));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(log.health().failure.is_some_and(|failure| failure.contains("No space left")));
    let error = log.append(&audit::record(&audit::note(&text)), 20).unwrap_err();
    assert_eq!(error.code(), "audit.unavailable");
    for n in 0..3 {
        log.count_unlogged(n == 0, 1_763_744_718_123 + n * 1_000);
    }
    full.store(false, SeqCst);
    append(&log, "after");
    log.checkpoint(5_000).unwrap();
    assert_eq!(log.health().failure, None);
    log.close().unwrap();
    let entries = read(&folder);
    assert_eq!(texts(&entries).len(), written + 1);
    let denied = audit::of_kind(&entries, "denied_unlogged");
    assert_eq!((denied.len(), denied[0]["count"].as_u64()), (1, Some(2)));
    assert_eq!(
        (denied[0]["from"].as_str(), denied[0]["to"].as_str()),
        (Some("2025-11-21T17:05:19.123Z"), Some("2025-11-21T17:05:20.123Z"))
    );
    assert_eq!(audit::of_kind(&entries, "gap")[0]["count"], 1);
}

/// Whatever happens to the files while the log is open, within about a second nothing is taken any more.
#[test]
fn files_that_go_are_noticed() {
    type Change = fn(&Path);
    let changes: [(&str, Change); 6] = [
        ("ring is gone", |folder| std::fs::remove_file(folder.join("ring")).unwrap()),
        ("ring was replaced", |folder| {
            std::fs::copy(folder.join("ring"), folder.join("other")).unwrap();
            std::fs::rename(folder.join("other"), folder.join("ring")).unwrap();
        }),
        (".seg is gone", |folder| std::fs::remove_dir_all(folder.join("wal")).unwrap()),
        (".seg was replaced", |folder| {
            let path = std::fs::read_dir(folder.join("wal")).unwrap().next().unwrap().unwrap().path();
            std::fs::copy(&path, folder.join("other")).unwrap();
            std::fs::rename(folder.join("other"), path).unwrap();
        }),
        ("ring is gone", |folder| std::fs::remove_dir_all(folder).unwrap()),
        ("ring is gone", |folder| {
            let aside = folder.with_extension("aside");
            let _ = std::fs::remove_dir_all(&aside);
            std::fs::rename(folder, &aside).unwrap();
            let _ = std::fs::remove_dir_all(&aside);
        }),
    ];
    for (number, (expected, change)) in changes.into_iter().enumerate() {
        let folder = Folder::new(&format!("gone-{number}"));
        let log = Log::open(&folder, options(1)).unwrap();
        let seq = append(&log, "before");
        log.wait(seq, Durability::Checkpointed, 5_000).unwrap();
        change(&folder);
        let begun = Instant::now();
        // Busy or idle.
        while log.health().failure.is_none_or(|failure| !failure.contains(expected)) {
            if number % 2 == 0 {
                let _ = try_append(&log, "meanwhile");
            }
            assert!(begun.elapsed() < Duration::from_secs(3), "{expected}: {:?}", log.health().failure);
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(try_append(&log, "after").unwrap_err(), Refused::Broken);
        assert!(log.reason(Refused::Broken).contains(expected));
        assert!(log.wait(u64::MAX, Durability::Sync, 100).is_err());
        let _ = log.checkpoint(10_000);
        assert!(begun.elapsed() < Duration::from_secs(6), "nobody waits for what will not come");
        assert!(log.close().unwrap_err().to_string().contains(expected));
    }
}
