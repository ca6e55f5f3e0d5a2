//! Processes that are killed: while they append, while they open what another has left, while they rotate and erase.
//!
//! A child says over a pipe what `append` has returned; its parent kills it at some moment, another one goes on in the
//! same folder. Everything that was said is in the log once, every number is there or named as lost, and all of it
//! verifies. `TOLLKEEPER_KILLS=10000` kills more often than a test should.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod audit;

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use audit::{Folder, append, note, of_kind, options, read, record, texts};
use tollkeeper_core::audit::entry::{Private, Record};
use tollkeeper_core::audit::log::{Log, LogOptions};

fn kills() -> u64 {
    std::env::var("TOLLKEEPER_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(200)
}

/// Numbers that look random and are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn child_options(instance: u64) -> LogOptions {
    let mut options = options(instance);
    // Some recoveries find a ring of another size.
    options.ring_bytes = if instance.is_multiple_of(7) { 1 << 20 } else { 512 << 10 };
    options
}

/// What a child does, in its own process: this test binary, told by its environment.
#[test]
fn child() {
    let Ok(folder) = std::env::var("TOLLKEEPER_CHILD_FOLDER") else { return };
    let number: u64 = std::env::var("TOLLKEEPER_CHILD_NUMBER").unwrap().parse().unwrap();
    let log = Log::open(Path::new(&folder), child_options(number)).unwrap();
    // Not `println`: the harness would keep it.
    let mut says = std::fs::OpenOptions::new().append(true).open("/dev/stderr").unwrap();
    says.write_all(b"open\n").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let log = &log;
            let mut says = says.try_clone().unwrap();
            scope.spawn(move || {
                let mut numbers = Numbers(number * 2 + thread + 1);
                for n in 0.. {
                    let text = format!("{number}.{thread}.{n}");
                    let members = note(&text);
                    let private = "p".repeat(numbers.below(300) as usize);
                    let private = if n % 3 == 0 { Private::Bytes(private.as_bytes()) } else { Private::None };
                    log.append(&Record { private, ..record(&members) }, 10_000).unwrap();
                    // One write of a short line arrives as a whole or not at all.
                    says.write_all(format!("{text}\n").as_bytes()).unwrap();
                    if numbers.below(400) == 0 {
                        // Some wait for room that others have, and some end the epoch.
                        let _ =
                            if numbers.below(3) == 0 { log.rotate(5_000).map(|()| 0) } else { log.checkpoint(5_000) };
                    }
                }
            });
        }
    });
}

fn start(folder: &Path, number: u64) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .env("TOLLKEEPER_CHILD_FOLDER", folder)
        .env("TOLLKEEPER_CHILD_NUMBER", number.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Runs a child until it is killed, some time after its start or after it was open. Returns what it has said.
fn live(folder: &Path, number: u64, after_open: Option<Duration>, otherwise: Duration) -> Vec<String> {
    let mut child = start(folder, number);
    let mut pipe = child.stderr.take().unwrap();
    let begun = Instant::now();
    let mut said = Vec::new();
    if let Some(after_open) = after_open {
        let mut bytes = [0; 4_096];
        let len = pipe.read(&mut bytes).unwrap();
        said.extend_from_slice(&bytes[..len]);
        assert!(said.starts_with(b"open"), "{}", String::from_utf8_lossy(&said));
        // The pipe is read meanwhile, so that nobody waits for that.
        let reader = std::thread::spawn(move || {
            let mut rest = Vec::new();
            pipe.read_to_end(&mut rest).unwrap();
            rest
        });
        std::thread::sleep(after_open);
        child.kill().unwrap();
        said.extend(reader.join().unwrap());
    } else {
        std::thread::sleep(otherwise.saturating_sub(begun.elapsed()));
        child.kill().unwrap();
        pipe.read_to_end(&mut said).unwrap();
    }
    child.wait().unwrap();
    let text = String::from_utf8(said).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter(|line| line.contains('.')).map(str::to_owned).collect()
}

/// Kills so many children, each after a time of its own, a hundred in one folder, and checks the log every now and then.
fn kill_many(name: &str, many: u64, open_only: bool) {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ many);
    for first in (1..=many).step_by(100) {
        let folder = Folder::new(&format!("{name}-{first}"));
        let mut said = Vec::new();
        for number in first..(first + 100).min(many + 1) {
            // From before it opens to a while after; how long an opening takes depends on what it finds.
            let micros = Duration::from_micros(numbers.below(if open_only { 12_000 } else { 25_000 }));
            let after_open = (!open_only && number % 4 != 0).then_some(micros);
            said.extend(live(&folder, number, after_open, micros));
            if number % 50 == 0 {
                check(&folder, &said, 1_000_000 + number);
            }
        }
        check(&folder, &said, 2_000_000);
    }
}

fn check(folder: &Path, said: &[String], instance: u64) {
    Log::open(folder, options(instance)).unwrap().close().unwrap();
    let entries = read(folder);
    let mut found: HashMap<String, usize> = HashMap::new();
    for text in texts(&entries) {
        *found.entry(text).or_default() += 1;
    }
    assert!(found.values().all(|count| *count == 1), "nothing is there twice");
    let missing: Vec<&String> = said.iter().filter(|text| !found.contains_key(*text)).collect();
    assert!(
        missing.is_empty(),
        "{} of {} are missing: {:?}",
        missing.len(),
        said.len(),
        &missing[..missing.len().min(5)]
    );
    assert!(of_kind(&entries, "gap").is_empty());
}

#[test]
fn what_was_said_before_a_kill_is_in_the_log() {
    kill_many("kills", kills(), false);
}

/// Killed while it opens what others have left.
#[test]
fn openings_are_killed() {
    kill_many("kills-open", kills() / 4, true);
}

#[test]
fn eight_processes_have_a_log_each() {
    let folder = Folder::new("slots");
    if let Ok(number) = std::env::var("TOLLKEEPER_SLOT") {
        let number: u64 = number.parse().unwrap();
        let log = Log::open_slot(Path::new(&std::env::var("TOLLKEEPER_SLOTS").unwrap()), options(number)).unwrap();
        for n in 0..2_000 {
            append(&log, &format!("{number}-{n}"));
        }
        std::thread::sleep(Duration::from_millis(300));
        log.close().unwrap();
        return;
    }
    let children: Vec<_> = (1..=8)
        .map(|number: u64| {
            Command::new(std::env::current_exe().unwrap())
                .args(["eight_processes_have_a_log_each", "--exact"])
                .env("TOLLKEEPER_SLOTS", &*folder)
                .env("TOLLKEEPER_SLOT", number.to_string())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let mut all = Vec::new();
    for slot in std::fs::read_dir(&*folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let found = texts(&read(&slot));
        let mut last: HashMap<String, usize> = HashMap::new();
        for text in &found {
            let (number, n) = text.split_once('-').unwrap();
            let n: usize = n.parse().unwrap();
            assert_eq!(last.insert(number.to_owned(), n).map_or(0, |last| last + 1), n);
        }
        all.extend(found);
    }
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 16_000);
}
