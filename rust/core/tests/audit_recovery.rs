//! What the next opening makes of what it finds: whatever state a death, a power cut, an operator or a damaged disk has
//! left behind.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests")]

mod audit;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use audit::{Folder, append, note, of_kind, options, read, record, texts, try_append};
use proptest::prelude::*;
use tollkeeper_core::audit::disk::{Disk, Fault, Operation};
use tollkeeper_core::audit::entry::{Kind, Private, Record};
use tollkeeper_core::audit::log::{Durability, Log, LogOptions, Refused};

/// A log of which so many notes are durable and covered, whose process has died: some more are in its ring only.
///
/// Dies as a process does: nothing of what `close` does is done. A copy of the folder is what the disk has.
fn died(name: &str, durable: usize, in_ring: usize) -> Folder {
    let alive = Folder::new(&format!("{name}-alive"));
    let stuck = Arc::new(AtomicBool::new(false));
    let mut options = options(1);
    let is_stuck = Arc::clone(&stuck);
    options.disk = Disk::faulty(Arc::new(move |operation, _: &Path| {
        (operation == Operation::Write && is_stuck.load(SeqCst)).then_some(Fault::Error(5))
    }));
    options.close_timeout_ms = 1;
    let log = Log::open(&alive, options).unwrap();
    for n in 0..durable {
        append(&log, &format!("d{n}"));
        if n % 50 == 49 {
            log.flush(5_000).unwrap();
        }
    }
    log.checkpoint(5_000).unwrap();
    stuck.store(true, SeqCst);
    for n in 0..in_ring {
        try_append(&log, &format!("r{n}")).unwrap();
    }
    let dead = Folder::new(name);
    copy(&alive, &dead);
    drop(log);
    dead
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let into = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &into);
        } else {
            std::fs::copy(&path, &into).unwrap();
        }
    }
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(folder.join("wal")).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

/// Where the frames of a segment begin.
fn frames(path: &Path) -> Vec<usize> {
    let bytes = std::fs::read(path).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (mut at, mut found) = (64, Vec::new());
    while at + 136 <= bytes.len() && &bytes[at..at + 4] == b"TKF1" {
        found.push(at);
        at = (at + 96 + word(at + 20) + word(at + 24) + 40).next_multiple_of(8);
    }
    found.push(at);
    found
}

fn writable(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn flip(path: &Path, at: usize) {
    let file = writable(path);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at as u64).unwrap();
}

fn reopen(folder: &Path, instance: u64) -> Vec<serde_json::Value> {
    Log::open(folder, options(instance)).unwrap().close().unwrap();
    read(folder)
}

fn expect(entries: &[serde_json::Value], durable: usize, in_ring: usize) {
    let all: Vec<String> = (0..durable).map(|n| format!("d{n}")).chain((0..in_ring).map(|n| format!("r{n}"))).collect();
    assert_eq!(texts(entries), all);
}

/// Opening fails, with a code and a path in the message, and leaves the folder as it was.
fn refuses(folder: &Path, options: LogOptions, part: &str) {
    let error = Log::open(folder, options).unwrap_err();
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn what_was_in_the_ring_is_found_once() {
    let folder = died("ring", 10, 5);
    let entries = reopen(&folder, 2);
    expect(&entries, 10, 5);
    let recovery = of_kind(&entries, "recovery");
    assert_eq!((recovery[0]["of"].as_str(), recovery[0]["drained"].as_u64()), (Some("0000000000000001"), Some(5)));
    assert_eq!(recovery[0]["lost"], serde_json::json!([]));
    assert_eq!(reopen(&folder, 3)[..entries.len()], entries[..]);
}

#[test]
fn another_boot_means_that_the_ring_is_not_believed() {
    let folder = died("boot", 10, 5);
    // The boot id of the ring's header.
    flip(&folder.join("ring"), 4 * 8);
    let entries = reopen(&folder, 2);
    expect(&entries, 10, 0);
    let recovery = of_kind(&entries, "recovery")[0];
    assert_eq!(recovery["lost"], serde_json::json!([[11, 15]]));
    assert!(recovery["reason"].as_str().unwrap().contains("restarted"));
}

/// The page of the ring that had reached the disk was that of an owner before: its numbers mean nothing.
#[test]
fn an_older_ring_after_a_power_cut_loses_nothing_of_others() {
    let folder = died("older", 10, 5);
    let ring = writable(&folder.join("ring"));
    ring.write_all_at(&99_u64.to_le_bytes(), 2 * 8).unwrap();
    flip(&folder.join("ring"), 4 * 8);
    let entries = reopen(&folder, 2);
    assert_eq!(of_kind(&entries, "recovery")[0]["lost"], serde_json::json!([]));
    expect(&entries, 10, 0);
}

#[test]
fn a_ring_that_is_gone_or_garbage_is_said_to_be() {
    for damage in [
        (|ring| std::fs::remove_file(ring).unwrap()) as fn(&Path),
        |ring| writable(ring).set_len(100).unwrap(),
        |ring| writable(ring).set_len(8_192).unwrap(),
        |ring| writable(ring).write_all_at(&[0xff; 16], 0).unwrap(),
        |ring| writable(ring).write_all_at(&7_u64.to_le_bytes(), 8).unwrap(),
    ] {
        let folder = died("no-ring", 10, 5);
        damage(&folder.join("ring"));
        let entries = reopen(&folder, 2);
        expect(&entries, 10, 0);
        let reason = of_kind(&entries, "recovery")[0]["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains("the ring is gone"), "{reason}");
        assert_eq!(of_kind(&reopen(&folder, 3), "recovery").len(), 1, "said once");
    }
}

#[test]
fn a_ring_of_another_size_is_drained_first() {
    for bytes in [512 << 10, 1 << 20, 2 << 20] {
        let folder = died("size", 3, 4);
        let mut changed = options(2);
        changed.ring_bytes = bytes;
        changed.interval_ms = 3;
        changed.segment_bytes = 32 << 20;
        let log = Log::open(&folder, changed).unwrap();
        assert_eq!(log.health().ring_bytes.1, bytes);
        append(&log, "new");
        log.close().unwrap();
        let mut expected: Vec<String> = (0..3).map(|n| format!("d{n}")).collect();
        expected.extend((0..4).map(|n| format!("r{n}")));
        expected.push("new".to_owned());
        assert_eq!(texts(&reopen(&folder, 3)), expected);
    }
}

/// The first frame of an opening is on the disk and the ring still says what it said: nothing is taken twice.
#[test]
fn an_opening_that_was_cut_short_takes_nothing_twice() {
    let folder = died("short", 10, 5);
    let ring = std::fs::read(folder.join("ring")).unwrap();
    let log = Log::open(&folder, options(2)).unwrap();
    let killed = Folder::new("short-killed");
    copy(&folder.join("wal"), &killed.join("wal"));
    std::fs::copy(folder.join("signer.key"), killed.join("signer.key")).unwrap();
    std::fs::write(killed.join("ring"), &ring).unwrap();
    log.close().unwrap();
    let entries = reopen(&killed, 3);
    expect(&entries, 10, 5);
    let recovery = of_kind(&entries, "recovery");
    assert_eq!((recovery[0]["drained"].as_u64(), recovery[1]["drained"].as_u64()), (Some(5), Some(0)));
    assert_eq!(recovery[1]["lost"], serde_json::json!([]));
}

/// The ring is so full that what is in it does not fit one frame.
#[test]
fn a_full_ring_becomes_several_frames() {
    let alive = Folder::new("large-alive");
    let stuck = Arc::new(AtomicBool::new(false));
    let mut large = options(1);
    large.ring_bytes = 16 << 20;
    let is_stuck = Arc::clone(&stuck);
    large.disk = Disk::faulty(Arc::new(move |operation, _: &Path| {
        (operation == Operation::Write && is_stuck.load(SeqCst)).then_some(Fault::Error(5))
    }));
    large.close_timeout_ms = 1;
    let log = Log::open(&alive, large).unwrap();
    append(&log, "durable");
    log.flush(5_000).unwrap();
    stuck.store(true, SeqCst);
    // Each byte becomes six in the payload.
    let text = "\u{1}".repeat(1 << 20);
    let mut structure = Vec::new();
    for word in [0_u32, 0, 1, 5, 0, 1 << 20] {
        structure.extend_from_slice(&word.to_le_bytes());
    }
    let mut put = 0;
    let members = note("big");
    loop {
        let private = Private::Arguments { structure: &structure, text: &text, more: &[] };
        let big = Record { kind: Kind::Approve, private, ..record(&members) };
        let Ok(claim) = log.claim(tollkeeper_core::audit::log::LogClaim::bytes_for(&big)) else { break };
        assert!(claim.publish(&big));
        put += 1;
    }
    assert!(put >= 14, "{put}");
    let folder = Folder::new("large");
    copy(&alive, &folder);
    drop(log);
    let mut small = options(2);
    small.ring_bytes = 512 << 10;
    // Killed after any of the frames.
    for kill in [3, 10] {
        let killed = Folder::new("large-killed");
        copy(&folder, &killed);
        let seen = std::sync::atomic::AtomicU64::new(0);
        let mut dying = small.clone();
        dying.disk = Disk::faulty(Arc::new(move |operation, path: &Path| {
            let frame = operation == Operation::Write && path.extension().is_some_and(|name| name == "seg");
            (frame && seen.fetch_add(1, SeqCst) == kill).then_some(Fault::Torn(200))
        }));
        assert!(Log::open(&killed, dying).is_err());
        let mut again = small.clone();
        again.instance = 3;
        Log::open(&killed, again).unwrap().close().unwrap();
        let entries = read(&killed);
        assert_eq!(of_kind(&entries, "approve").len(), put);
        let drained: u64 = of_kind(&entries, "recovery").iter().filter_map(|entry| entry["drained"].as_u64()).sum();
        assert_eq!(drained, put as u64);
    }
}

/// The largest records that a ring takes make frames that can be read again.
#[test]
fn the_largest_record_can_be_read_again() {
    let folder = Folder::new("largest");
    let mut large = options(1);
    large.ring_bytes = 32 << 20;
    let log = Log::open(&folder, large.clone()).unwrap();
    let members = format!(",\"text\":\"{}\"", "\\u0001".repeat((7 << 20) / 6)).into_bytes();
    log.append(&record(&members), 5_000).unwrap();
    let structure: Vec<u8> = [0_u32, 0, 1, 5, 0, 7 << 20].iter().flat_map(|word| word.to_le_bytes()).collect();
    let text = "\u{1}".repeat(7 << 20);
    let head = note(&"h".repeat(70_000));
    let private = Private::Arguments { structure: &structure, text: &text, more: &[] };
    let seq = log.append(&Record { kind: Kind::Approve, private, ..record(&head) }, 5_000).unwrap();
    assert!(log.append(&record(&vec![b' '; 9 << 20]), 10).unwrap_err().to_string().contains("KiB"));
    log.wait(seq, Durability::Checkpointed, 20_000).unwrap();
    log.close().unwrap();
    large.instance = 2;
    Log::open(&folder, large).unwrap().close().unwrap();
    let entries = read(&folder);
    assert!(
        entries.iter().any(|entry| entry["kind"] == "approve" && entry["oversize"]["bytes"].as_u64() > Some(40 << 20))
    );
    assert!(of_kind(&entries, "recovery").is_empty());
}

#[test]
fn a_torn_end_is_cut_and_said() {
    let folder = died("torn", 10, 5);
    let path = segments(&folder).pop().unwrap();
    let end = *frames(&path).last().unwrap();
    let garbage = b"TKF1\0\0\0\0garbage of a frame that did not arrive";
    writable(&path).write_all_at(garbage, end as u64).unwrap();
    let entries = reopen(&folder, 2);
    expect(&entries, 10, 5);
    let recovery = of_kind(&entries, "recovery")[0];
    assert_eq!(
        (recovery["cut_bytes"].as_u64(), recovery["cut_from_size"].as_u64()),
        (Some(garbage.len() as u64), Some(11))
    );
}

/// Whatever is damaged below what was signed: nothing is signed twice, and nothing that is there is destroyed.
#[test]
fn damage_below_a_signed_size_begins_an_epoch() {
    for place in 0..3 {
        let folder = died("below", 300, 5);
        let path = segments(&folder).pop().unwrap();
        let all = frames(&path);
        assert!(all.len() > 2, "some frames");
        // The last frame, or the one before: in its entries, or gone.
        match place {
            0 => flip(&path, all[all.len() - 2] + 100),
            1 => flip(&path, all[0] + 100),
            _ => {
                let bytes = std::fs::read(&path).unwrap();
                writable(&path).write_all_at(&vec![0; bytes.len() - all[1]], all[1] as u64).unwrap();
            }
        }
        // What a checkpoint covers is in the tiles too; without them the write-ahead file is all there is.
        std::fs::remove_dir_all(folder.join("tile")).unwrap();
        let kept = std::fs::read(&path).unwrap();
        let log = Log::open(&folder, options(2)).unwrap();
        assert_eq!(log.health().epoch, 2);
        log.close().unwrap();
        let old = segments(&folder.join("epochs/1")).pop().unwrap();
        assert_eq!(std::fs::read(old).unwrap(), kept, "it is kept as it was found");
        let new = audit::read_epoch(&folder);
        let kinds: Vec<&str> = new.entries.iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["epoch", "note", "note", "note", "note", "note", "recovery", "start", "stop"]);
        assert!(new.entries[6]["reason"].as_str().unwrap().contains("a new epoch begins"));
        assert!(new.entries[6]["signed_size"].as_u64() >= Some(301));
    }
}

/// A write-ahead file that was made anew and is a log of its own does not continue what was signed.
#[test]
fn another_history_is_not_signed() {
    let folder = died("history", 20, 0);
    let other = died("history-other", 60, 0);
    std::fs::copy(folder.join("signer.key"), folder.join("key")).unwrap();
    std::fs::remove_dir_all(folder.join("tile")).unwrap();
    std::fs::remove_dir_all(folder.join("wal")).unwrap();
    copy(&other.join("wal"), &folder.join("wal"));
    let log = Log::open(&folder, options(2)).unwrap();
    assert_eq!(log.health().epoch, 2, "the root is not the one that was signed");
    log.close().unwrap();
}

#[test]
fn damage_with_whole_frames_behind_it_is_not_cut() {
    let folder = died("middle", 300, 0);
    let path = segments(&folder).pop().unwrap();
    let all = frames(&path);
    assert!(all.len() > 5, "some frames");
    flip(&path, all[all.len() / 2] + 100);
    // Nothing was ever signed.
    for name in ["checkpoint", "checkpoints.log"] {
        std::fs::remove_file(folder.join(name)).unwrap();
    }
    let kept = std::fs::read(&path).unwrap();
    let log = Log::open(&folder, options(2)).unwrap();
    assert_eq!(log.health().epoch, 2);
    log.close().unwrap();
    assert_eq!(std::fs::read(segments(&folder.join("epochs/1")).pop().unwrap()).unwrap(), kept);
}

#[test]
fn tiles_and_checkpoints_that_are_missing_are_made_again() {
    for missing in
        [&["tile"][..], &["checkpoint"], &["checkpoint", "checkpoints.log"], &["tile", "checkpoint"], &["verifier.pub"]]
    {
        let folder = died("missing", 600, 3);
        for name in missing {
            let path = folder.join(name);
            if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
        }
        expect(&reopen(&folder, 2), 600, 3);
        assert!(!folder.join("epochs").exists(), "{missing:?}");
    }
}

#[test]
fn a_checkpoint_that_is_gone_is_still_known() {
    let folder = died("kept", 50, 0);
    std::fs::remove_file(folder.join("checkpoint")).unwrap();
    std::fs::remove_dir_all(folder.join("tile")).unwrap();
    let path = segments(&folder).pop().unwrap();
    let first = frames(&path)[1];
    writable(&path).write_all_at(&vec![0; 1 << 20], first as u64).unwrap();
    let log = Log::open(&folder, options(2)).unwrap();
    assert_eq!(log.health().epoch, 2);
    log.close().unwrap();
}

/// A log of several segments.
fn segmented(name: &str) -> Folder {
    let folder = Folder::new(name);
    let log = Log::open(&folder, options(1)).unwrap();
    let text = "x".repeat(60_000);
    for _ in 0..700 {
        append(&log, &text);
    }
    log.close().unwrap();
    assert!(segments(&folder).len() > 2);
    folder
}

#[test]
fn a_segment_that_is_missing_is_an_error_and_destroys_nothing() {
    let folder = segmented("segments");
    let all = segments(&folder);
    // With its tiles a log goes on without its old segments.
    std::fs::rename(&all[0], folder.join("aside")).unwrap();
    Log::open(&folder, options(2)).unwrap().close().unwrap();
    std::fs::rename(folder.join("tile"), folder.join("tiles-aside")).unwrap();
    let kept: Vec<u64> = segments(&folder).iter().map(|path| std::fs::metadata(path).unwrap().len()).collect();
    let last = std::fs::read(segments(&folder).pop().unwrap()).unwrap();
    refuses(&folder, options(3), "no segment holds entry 0");
    std::fs::rename(folder.join("aside"), &all[0]).unwrap();
    std::fs::rename(&all[1], folder.join("aside")).unwrap();
    refuses(&folder, options(3), "damaged or missing");
    std::fs::rename(folder.join("aside"), &all[1]).unwrap();
    assert_eq!(
        kept[..],
        segments(&folder).iter().map(|path| std::fs::metadata(path).unwrap().len()).collect::<Vec<_>>()[1..]
    );
    assert_eq!(std::fs::read(segments(&folder).pop().unwrap()).unwrap(), last);
    Log::open(&folder, options(4)).unwrap().close().unwrap();
    read(&folder);
}

#[test]
fn the_last_segment_may_be_empty_but_not_damaged() {
    let folder = died("empty", 10, 2);
    let size = audit::read_epoch(&folder).checkpoint.size;
    for content in [&b""[..], &[0; 10], &[0; 4_096], b"TKWAL001 cut"] {
        std::fs::write(folder.join(format!("wal/{size:020}.seg")), content).unwrap();
        let killed = Folder::new("empty-copy");
        copy(&folder, &killed);
        expect(&reopen(&killed, 2), 10, 2);
    }
    // A header that is damaged, with frames behind it, is no file that was just made.
    let other = died("header", 10, 2);
    let path = segments(&other).pop().unwrap();
    flip(&path, 20);
    let kept = std::fs::read(&path).unwrap();
    refuses(&other, options(2), "header is damaged");
    assert_eq!(std::fs::read(&path).unwrap(), kept);
}

#[test]
fn another_origin_changes_nothing() {
    let folder = died("origin", 10, 2);
    let mut other = options(2);
    other.origin = "example.com/other".to_owned();
    refuses(&folder, other.clone(), "not `example.com/other`");
    std::fs::remove_file(folder.join("verifier.pub")).unwrap();
    refuses(&folder, other, "not `example.com/other`");
    expect(&reopen(&folder, 3), 10, 2);
}

#[test]
fn one_opens_and_others_are_told() {
    let folder = Folder::new("two");
    let wins: Vec<bool> = std::thread::scope(|scope| {
        let open = |n: u64| {
            let folder = &folder;
            scope.spawn(move || {
                let log = Log::open(folder, options(n));
                std::thread::sleep(std::time::Duration::from_millis(300));
                match log {
                    Ok(log) => log.close().is_ok(),
                    Err(error) => {
                        assert_eq!(error.code(), "audit.in_use");
                        false
                    }
                }
            })
        };
        let threads: Vec<_> = (1..=8).map(open).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(wins.iter().filter(|won| **won).count(), 1);
    read(&folder);
}

/// Who had a claim when the log was closed could still write it: the folder is not given away before.
#[test]
fn a_claim_outlives_a_close_and_harms_nobody() {
    let folder = Folder::new("outlives");
    let log = Log::open(&folder, options(1)).unwrap();
    append(&log, "before");
    let members = note("late");
    let claim = log.claim(Log::bytes_for(members.len())).unwrap();
    log.close().unwrap();
    assert_eq!(Log::open(&folder, options(2)).unwrap_err().code(), "audit.in_use");
    assert!(claim.publish(&record(&members)));
    drop(log);
    let entries = reopen(&folder, 3);
    assert_eq!(texts(&entries), ["before", "late"]);
    // One that is dropped is given up, and says so.
    let log = Log::open(&folder, options(4)).unwrap();
    let claim = log.claim(100).unwrap();
    drop(claim);
    log.close().unwrap();
    let entries = reopen(&folder, 5);
    assert_eq!(of_kind(&entries, "gap").len(), 1);
}

#[test]
fn a_close_beside_producers_loses_nothing() {
    for round in 0..20 {
        let folder = Folder::new("close");
        let log = Log::open(&folder, options(1)).unwrap();
        let counts: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|thread| {
                    let log = &log;
                    scope.spawn(move || {
                        let mut done = 0;
                        loop {
                            match try_append(log, &format!("{thread}-{done}")) {
                                Ok(_) => done += 1,
                                Err(Refused::Full) => std::thread::yield_now(),
                                Err(refused) => {
                                    assert_eq!(refused, Refused::Closed);
                                    break done;
                                }
                            }
                        }
                    })
                })
                .collect();
            std::thread::sleep(std::time::Duration::from_millis(round % 5));
            let closers: Vec<_> = (0..2).map(|_| scope.spawn(|| log.close())).collect();
            for closer in closers {
                closer.join().unwrap().unwrap();
            }
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        drop(log);
        let found = texts(&reopen(&folder, 2));
        for (thread, done) in counts.into_iter().enumerate() {
            let own: Vec<&String> = found.iter().filter(|text| text.starts_with(&format!("{thread}-"))).collect();
            let expected: Vec<String> = (0..done).map(|n| format!("{thread}-{n}")).collect();
            assert_eq!(own, expected.iter().collect::<Vec<_>>());
        }
    }
}

#[test]
fn sixteen_threads_beside_each_other() {
    let folder = Folder::new("threads");
    let mut wide = options(1);
    wide.ring_bytes = 1 << 20;
    let log = Log::open(&folder, wide).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let log = &log;
            scope.spawn(move || {
                for n in 0..10_000 {
                    append(log, &format!("{thread}-{n}"));
                }
            });
        }
    });
    log.close().unwrap();
    let found = texts(&read(&folder));
    assert_eq!(found.len(), 160_000);
    for thread in 0..16 {
        let start = format!("{thread}-");
        let own = found.iter().filter_map(|text| text.strip_prefix(&start));
        assert!(own.map(|n| n.parse::<usize>().unwrap()).eq(0..10_000), "thread {thread} kept its order");
    }
}

#[test]
fn a_log_that_is_dropped_is_closed() {
    let folder = Folder::new("drop");
    let log = Log::open(&folder, options(1)).unwrap();
    append(&log, "last words");
    drop(log);
    let entries = read(&folder);
    assert_eq!(texts(&entries), ["last words"]);
    assert_eq!(entries.last().unwrap()["kind"], "stop");
}

#[test]
fn a_record_that_waited_in_line_keeps_what_is_private() {
    let folder = Folder::new("later");
    let stuck = Arc::new(AtomicBool::new(false));
    let mut slow = options(1);
    let is_stuck = Arc::clone(&stuck);
    slow.disk = Disk::faulty(Arc::new(move |operation, _: &Path| {
        (operation == Operation::Write && is_stuck.load(SeqCst)).then_some(Fault::Error(5))
    }));
    let log = Log::open(&folder, slow).unwrap();
    stuck.store(true, SeqCst);
    while try_append(&log, &"x".repeat(4_000)).is_ok() {}
    while try_append(&log, "").is_ok() {}
    let members = note("later");
    let later = Record { private: Private::Bytes(b"secret"), ..record(&members) };
    assert_eq!(log.append_later(&later).unwrap(), None);
    stuck.store(false, SeqCst);
    log.flush(5_000).unwrap();
    log.close().unwrap();
    let entries = read(&folder);
    let found = entries.iter().find(|entry| entry["text"] == "later").unwrap();
    assert_eq!(found["private"]["bytes"], 6);
}

/// A rotation that was killed half way is finished by the next opening, wherever it was.
#[test]
fn a_rotation_that_was_cut_short_is_finished() {
    for moved in 0..=6 {
        let folder = died("rotate", 40, 3);
        let aside = folder.join("epochs/1.new");
        std::fs::create_dir_all(&aside).unwrap();
        let names = ["checkpoint", "checkpoints.log", "verifier.pub", "tile", "wal"];
        for name in names.iter().take(moved) {
            std::fs::rename(folder.join(name), aside.join(name)).unwrap();
        }
        if moved == 6 {
            std::fs::rename(&aside, folder.join("epochs/1")).unwrap();
        }
        let entries = reopen(&folder, 2);
        expect(&entries, 40, 3);
        assert_eq!(of_kind(&entries, "epoch").len(), 1, "{moved} were moved");
        assert_eq!(of_kind(&entries, "recovery")[0]["lost"], serde_json::json!([]));
    }
}

/// The last write of an epoch is not let go in the ring when the log is set aside: it is not written again.
#[test]
fn an_epoch_s_last_records_are_not_taken_twice() {
    let folder = died("epochs", 10, 5);
    // As if the head had not been moved: all of the ring's records are in the log, and are still in the ring.
    let file = writable(&folder.join("ring"));
    let first = (1_u64 << 32).to_le_bytes();
    file.write_all_at(&1_u64.to_le_bytes(), 6 * 8).unwrap();
    file.write_all_at(&first, 256).unwrap();
    let aside = folder.join("epochs/1.new");
    std::fs::create_dir_all(&aside).unwrap();
    let entries = reopen(&folder, 2);
    expect(&entries, 10, 5);
    assert_eq!(of_kind(&entries, "epoch").len(), 1);
}

#[test]
fn an_erasure_that_was_cut_short_is_done_again() {
    let folder = Folder::new("erase");
    let stuck = Arc::new(AtomicBool::new(false));
    let mut slow = options(1);
    let is_stuck = Arc::clone(&stuck);
    slow.disk = Disk::faulty(Arc::new(move |operation, path: &Path| {
        // The mark is written, and what it marks is not.
        (operation == Operation::Sync
            && path.extension().is_some_and(|name| name == "seg")
            && is_stuck.swap(false, SeqCst))
        .then_some(Fault::Error(5))
    }));
    let log = Log::open(&folder, slow).unwrap();
    let members = note("private");
    let secret = Record { private: Private::Bytes(b"a secret that has to go"), ..record(&members) };
    let seq = log.append(&secret, 1_000).unwrap();
    log.wait(seq, Durability::Sync, 1_000).unwrap();
    let there = |folder: &Path| {
        let bytes = std::fs::read(segments(folder).pop().unwrap()).unwrap();
        bytes.windows(23).any(|window| window == b"a secret that has to go")
    };
    assert!(there(&folder));
    stuck.store(true, SeqCst);
    assert!(log.erase(1, 1_000).is_err());
    assert!(there(&folder));
    log.erase(1, 1_000).unwrap();
    assert!(!there(&folder));
    // Who died before it was said can have it said.
    log.erase(1, 1_000).unwrap();
    log.checkpoint(5_000).unwrap();
    let commitment = read(&folder)[1]["private"]["commitment"].as_str().unwrap().to_owned();
    let name = commitment.replace('+', "-").replace('/', "_").replace('=', "");
    let other = format!("{}{}", if name.starts_with('A') { 'B' } else { 'A' }, &name[1..]);
    // Another program asks by a file: for this entry of this epoch and nothing else.
    std::fs::create_dir_all(folder.join("erase")).unwrap();
    for request in [format!("1.1.{name}"), format!("2.1.{name}"), format!("1.2.{name}"), format!("1.1.{other}")] {
        std::fs::write(folder.join("erase").join(request), b"").unwrap();
    }
    std::fs::write(folder.join("erase/+1"), b"").unwrap();
    let begun = std::time::Instant::now();
    while std::fs::read_dir(folder.join("erase")).unwrap().flatten().any(|file| file.file_name() != "+1") {
        assert!(
            begun.elapsed().as_secs() < 10,
            "{:?}",
            std::fs::read_dir(folder.join("erase")).unwrap().collect::<Vec<_>>()
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    log.close().unwrap();
    let entries = reopen(&folder, 2);
    let erased = of_kind(&entries, "erasure");
    assert_eq!(erased.len(), 3);
    assert!(erased.iter().all(|entry| entry["commitment"] == commitment.as_str() && entry["index"] == 1));
}

/// A clock that goes back moves times and nothing else.
#[test]
fn a_clock_that_goes_back_changes_no_order() {
    let folder = Folder::new("clock");
    let log = Log::open(&folder, options(1)).unwrap();
    for (n, time_ms) in [1_763_744_718_123, 0, -62_135_596_800_000, 253_402_300_799_999, 5].into_iter().enumerate() {
        let members = note(&n.to_string());
        log.append(&Record { time_ms, ..record(&members) }, 1_000).unwrap();
    }
    log.close().unwrap();
    let entries = read(&folder);
    assert_eq!(texts(&entries), ["0", "1", "2", "3", "4"]);
    let times: Vec<&str> = of_kind(&entries, "note").iter().map(|entry| entry["time"].as_str().unwrap()).collect();
    assert_eq!(times[1..4], ["1970-01-01T00:00:00.000Z", "0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z"]);
}

/// What is published is what the ring had, also where that makes no entry.
#[test]
fn a_ring_that_was_written_over_makes_no_entry_that_is_no_json() {
    for garbage in [&b"}{"[..], b"\"te\xd8t\"", b"\"\\ud8", b"\0"] {
        let folder = died("scribble", 3, 4);
        let path = folder.join("ring");
        let bytes = std::fs::read(&path).unwrap();
        let text = b"\"text\":\"r2\"";
        let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
        writable(&path).write_all_at(garbage, at as u64).unwrap();
        let entries = reopen(&folder, 2);
        assert_eq!(texts(&entries), ["d0", "d1", "d2", "r0", "r1", "r3"]);
        assert_eq!(of_kind(&entries, "gap")[0]["seq"], 6);
    }
}

#[test]
fn checkpoints_that_were_cut_short_are_overwritten() {
    let folder = died("kept-torn", 5, 0);
    let path = folder.join("checkpoints.log");
    let whole = std::fs::read(&path).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let last = text.split_inclusive("---\n").last().unwrap();
    for cut in [1, 5, 40, last.len() - 1] {
        std::fs::write(&path, [&whole[..], &last.as_bytes()[..cut]].concat()).unwrap();
        let copied = Folder::new("kept-torn-copy");
        copy(&folder, &copied);
        reopen(&copied, 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn any_damage_opens_or_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        audit::recovery::check_recovery("damage", &bytes, false);
    }

    /// Of the private files only: what was signed is still there.
    #[test]
    fn damage_of_what_is_private_loses_nothing_signed(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        audit::recovery::check_recovery("damage-private", &bytes, true);
    }
}
