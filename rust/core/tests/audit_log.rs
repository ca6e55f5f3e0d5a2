//! The log as its users see it: what is appended is there, in order, provable, also after a death.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use tollkeeper_core::audit::entry::{Kind, Private, Record};
use tollkeeper_core::audit::log::{Durability, Log, LogOptions};

fn note(text: &str) -> Vec<u8> {
    format!(",\"text\":\"{text}\"").into_bytes()
}

fn append(log: &Log, text: &str) -> u64 {
    let members = note(text);
    let record =
        Record { kind: Kind::Note, time_ms: 1_763_744_718_123, head: &members, tail: &[], private: Private::None };
    log.append(&record, 1_000).unwrap()
}

fn lines(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("checkpoint")).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn what_is_appended_is_there_and_signed() {
    let folder = tempdir("append");
    let log = Log::open(&folder, LogOptions::new("example.com/gate", 7)).unwrap();
    let mut last = 0;
    for n in 0..1_000 {
        last = append(&log, &n.to_string());
    }
    assert_eq!(last, 1_000);
    log.wait(last, Durability::Sync, 5_000).unwrap();
    assert_eq!(log.flush(5_000).unwrap(), 1_001);
    assert_eq!(log.checkpoint(5_000).unwrap(), 1_001);
    assert_eq!(lines(&folder)[..2], ["example.com/gate".to_owned(), "1001".to_owned()]);
    log.close().unwrap();
    assert_eq!(lines(&folder)[1], "1002");
    assert!(folder.join("tile/entries/002").exists());
    assert!(folder.join("tile/entries/003.p/234").exists());
    let again = Log::open(&folder, LogOptions::new("example.com/gate", 8)).unwrap();
    assert_eq!(append(&again, "more"), 1);
    again.close().unwrap();
    assert_eq!(lines(&folder)[1], "1005");
}

fn tempdir(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("tollkeeper-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    folder
}
