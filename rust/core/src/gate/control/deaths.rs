//! Every death of every operation: a process is killed before its first, second, ... last write to the shared memory,
//! and the others go on. What was acknowledged holds, what was not happens whole or not at all, nothing is damaged.

use std::collections::BTreeSet;

use super::approvals::{Answer, ApprovalId, ApprovalState, Approvals, Standing};
use super::labels::Dictionary;
use super::revocations::{Board, Target, TargetKind, Wish};
use super::sessions::{SessionRef, Sessions};
use crate::map::{Mapping, Table};
use crate::mortal::live_for;

const MINUTE_MS: i64 = 60_000;
const LATER_MS: i64 = 40 * 24 * 60 * MINUTE_MS;

fn table<T: crate::map::Atoms>(len: usize) -> Table<T> {
    Mapping::anonymous(len.saturating_mul(size_of::<T>())).unwrap().table(0, len).unwrap()
}

/// Runs `work` on a fresh world for every number of writes until it survives; `check` is told whether it did.
fn every_death<W>(world: impl Fn() -> W, work: impl Fn(&W), check: impl Fn(&W, bool)) -> u64 {
    for writes in 0.. {
        let world = world();
        let survived = live_for(writes, || work(&world)).is_some();
        check(&world, survived);
        if survived {
            return writes;
        }
    }
    0
}

fn tool(name: &str) -> Target {
    Target::new(TargetKind::Tool, name)
}

fn change(board: &Board, wish: &Wish<'_>) {
    board.change(wish, &|| Ok(())).unwrap();
}

fn revoke(board: &Board, name: &str) {
    change(board, &Wish::Revoke { target: &tool(name), reason: "why", by: "ada", at_ms: 1 });
}

fn restore(board: &Board, name: &str) {
    change(board, &Wish::Restore { target: &tool(name) });
}

fn names(board: &Board) -> Vec<String> {
    let table = board.read();
    assert!(!table.is_damaged(), "{:?}", table.list());
    assert_eq!(table.word() & 1 == 1, !table.list().is_empty());
    table.list().iter().map(|revoked| revoked.target.name.to_string()).collect()
}

/// Two slots, of which one was used before and one is in force.
fn board() -> Board {
    let board = Board { header: table(1), marks: table(3), slots: table(3) };
    revoke(&board, "old");
    revoke(&board, "kept");
    restore(&board, "old");
    board
}

#[test]
fn revocations_survive_every_death() {
    let deaths = every_death(
        board,
        |board| revoke(board, "new"),
        |board, survived| {
            let word = board.word();
            let expected: &[&str] = if word >> 1 == 4 { &["kept", "new"] } else { &["kept"] };
            assert!(word >> 1 == 4 || !survived);
            assert_eq!(names(board), expected);
            // The next one finishes what is whole, or drops it.
            revoke(board, "next");
            let names_now = names(board);
            assert!(names_now == ["kept", "next"] && expected.len() == 1 || names_now == ["kept", "new", "next"]);
            restore(board, "kept");
            revoke(board, "new");
            assert_eq!(BTreeSet::from_iter(names(board)), BTreeSet::from(["new".to_owned(), "next".to_owned()]));
            restore(board, "new");
            assert_eq!(names(board), ["next"]);
        },
    );
    assert!(deaths > 8, "{deaths}");
    every_death(
        board,
        |board| restore(board, "kept"),
        |board, survived| {
            let gone = board.word() >> 1 == 4;
            assert!(gone || !survived);
            assert_eq!(names(board).is_empty(), gone);
            revoke(board, "next");
            assert_eq!(names(board).len(), if gone { 1 } else { 2 });
            restore(board, "kept");
            assert_eq!(names(board), ["next"]);
        },
    );
}

#[test]
fn a_disk_that_fails_revokes_all_the_same_and_restores_nothing() {
    let board = board();
    let fails = || Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
    let wish = Wish::Revoke { target: &tool("new"), reason: "", by: "", at_ms: 1 };
    assert!(matches!(board.change(&wish, &fails), Err(super::revocations::Failure::After(_))));
    assert_eq!(names(&board), ["kept", "new"]);
    let wish = Wish::Restore { target: &tool("kept") };
    assert!(matches!(board.change(&wish, &fails), Err(super::revocations::Failure::Before(_))));
    assert_eq!(names(&board), ["kept", "new"]);
    restore(&board, "new");
    assert_eq!(names(&board), ["kept"]);
}

#[test]
fn a_full_table_says_so_and_takes_one_again_after_a_restoration() {
    let board = board();
    revoke(&board, "second");
    revoke(&board, "third");
    let wish = Wish::Revoke { target: &tool("new"), reason: "", by: "", at_ms: 1 };
    assert!(matches!(board.change(&wish, &|| Ok(())), Err(super::revocations::Failure::Full)));
    assert_eq!(names(&board), ["kept", "second", "third"]);
    restore(&board, "second");
    change(&board, &wish);
    assert_eq!(names(&board), ["kept", "third", "new"]);
}

fn sessions(slots: usize) -> Sessions {
    Sessions { header: table(1), slots: table(slots) }
}

fn always(work: &mut dyn FnMut()) -> bool {
    work();
    true
}

#[test]
fn labels_survive_every_death() {
    // With an empty slot, with a slot to take, and with none: a label that was there before stays in each.
    for (slots, before) in [(4, 0), (1, 0), (1, LATER_MS)] {
        let known = SessionRef::of_key(6);
        every_death(
            || {
                let sessions = sessions(slots);
                sessions.add(&SessionRef::of_key(2), 1, before, &always);
                let _ = sessions.seen(&known, LATER_MS);
                sessions
            },
            |sessions| sessions.add(&SessionRef::of_key(6), 2, LATER_MS, &always),
            |sessions, survived| {
                let (new, old) = (SessionRef::of_key(6), SessionRef::of_key(2));
                assert!(!survived || sessions.seen(&new, LATER_MS) & 2 == 2);
                assert_eq!(sessions.seen(&known, LATER_MS), sessions.seen(&new, LATER_MS));
                if slots == 4 || before != 0 {
                    assert_eq!(sessions.seen(&old, LATER_MS) & 1, 1);
                }
                // Whoever adds next is seen by all, by those who have looked before, too.
                sessions.add(&new, 4, LATER_MS, &always);
                assert_eq!(sessions.seen(&known, LATER_MS) & 4, 4);
                assert!(!survived || sessions.seen(&known, LATER_MS) & 2 == 2);
                sessions.add(&old, 8, LATER_MS, &always);
                assert_eq!(sessions.seen(&SessionRef::of_key(2), LATER_MS) & 8, 8);
                assert_eq!(sessions.seen(&new, LATER_MS) & 4, 4);
            },
        );
    }
}

#[test]
fn labels_of_the_dictionary_survive_every_death() {
    let add = |dictionary: &Dictionary, names: &[&str]| {
        dictionary.add(&dictionary.read().unwrap(), names, &|| Ok(())).unwrap();
    };
    every_death(
        || {
            let dictionary = Dictionary { header: table(1), slots: table(64) };
            add(&dictionary, &["pii"]);
            dictionary
        },
        |dictionary| add(dictionary, &["untrusted", "secret"]),
        |dictionary, survived| {
            let known = dictionary.read().unwrap();
            assert!(known.len() == 3 || known.len() == 1 && !survived);
            add(dictionary, &["other"]);
            let known = dictionary.read().unwrap();
            assert_eq!((&*known[0], known.last().map(|name| &**name)), ("pii", Some("other")));
        },
    );
}

const DIGEST: [u8; 32] = [7; 32];

fn approvals() -> Approvals {
    let approvals = Approvals { header: table(1), slots: table(2), boot: [1, 2] };
    approvals.ask(ApprovalId(1), &DIGEST, 100, 0).unwrap();
    approvals.answer(&Answer { id: ApprovalId(1), granted: true, expires_ms: 100, signature: None }, 1).unwrap();
    approvals
}

#[test]
fn approvals_survive_every_death() {
    every_death(
        approvals,
        |approvals| {
            let Standing::Granted(grant) = approvals.standing(&DIGEST, 2) else { return };
            assert!(approvals.consume(&grant, 2));
        },
        |approvals, survived| match approvals.standing(&DIGEST, 2) {
            Standing::Granted(grant) => {
                assert!(!survived);
                assert!(approvals.consume(&grant, 2) && !approvals.consume(&grant, 2));
            }
            other => assert_eq!(other, Standing::Used(ApprovalId(1))),
        },
    );
    every_death(
        approvals,
        |approvals| {
            approvals.ask(ApprovalId(2), &[8; 32], 100, 2).unwrap();
            let answer = Answer { id: ApprovalId(2), granted: true, expires_ms: 50, signature: Some([9; 64]) };
            approvals.answer(&answer, 3).unwrap();
        },
        |approvals, survived| {
            match approvals.standing(&[8; 32], 4) {
                Standing::Granted(grant) => {
                    assert_eq!((grant.expires_ms, grant.answered_ms, grant.signature), (50, 3, Some([9; 64])));
                }
                Standing::None | Standing::Pending(ApprovalId(2)) => assert!(!survived),
                other => panic!("{other:?}"),
            }
            assert!(matches!(approvals.standing(&DIGEST, 4), Standing::Granted(_)));
            // There is room, because who was killed has left none that nobody can use.
            approvals.ask(ApprovalId(3), &[9; 32], 200, 100).unwrap();
            assert_eq!(approvals.standing(&[9; 32], 101), Standing::Pending(ApprovalId(3)));
        },
    );
}

/// A power cut keeps the file and ends the boot: no question and no grant of before holds.
#[test]
fn nothing_is_granted_after_a_restart_of_the_host() {
    let mut approvals = approvals();
    approvals.ask(ApprovalId(2), &[8; 32], 100, 2).unwrap();
    let Standing::Granted(grant) = approvals.standing(&DIGEST, 2) else { panic!() };
    approvals.boot = [3, 4];
    assert_eq!(approvals.standing(&DIGEST, 2), Standing::Expired(ApprovalId(1)));
    assert_eq!(approvals.standing(&[8; 32], 2), Standing::Expired(ApprovalId(2)));
    let late = Answer { id: ApprovalId(2), granted: true, expires_ms: 100, signature: None };
    assert!(approvals.answer(&late, 3).is_err());
    assert!(approvals.rows(2).iter().all(|row| row.state == ApprovalState::Expired));
    approvals.ask(ApprovalId(3), &DIGEST, 100, 2).unwrap();
    assert_eq!(approvals.standing(&DIGEST, 2), Standing::Pending(ApprovalId(3)));
    // A handle of the old boot cannot be: its process is gone. The slot was used again, so not even that helps.
    assert!(!approvals.consume(&grant, 2));
}
