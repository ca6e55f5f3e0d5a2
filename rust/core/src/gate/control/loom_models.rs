//! Models of the races of the state that gates share, for the model checker: `make loom`.
//!
//! Tables of one or two slots in ordinary memory and two or three threads, in every order of their steps that the
//! checker finds within its bound of preemptions and every value that a load may see by the rules of the language.
//! The locks are the checker's. Texts are short (see `cfg(loom)` in `layout.rs`).

use loom::sync::{Arc, Mutex};
use loom::thread;

use super::approvals::{Answer, ApprovalId, Approvals, Standing};
use super::revocations::{Board, Target, TargetKind, Wish};
use super::sessions::{SessionRef, Sessions};
use crate::map::Table;

const MINUTE_MS: i64 = 60_000;
const LATER_MS: i64 = 40 * 24 * 60 * MINUTE_MS;

// --- revocations ------------------------------------------------------------------------------------------------

fn board() -> Arc<Board> {
    let (header, marks, slots) = (Table::in_memory(1), Table::in_memory(2), Table::in_memory(2));
    Arc::new(Board { header, marks, slots })
}

fn tool(name: &str) -> Target {
    Target::new(TargetKind::Tool, name)
}

fn revoke(board: &Board, name: &str) {
    let target = tool(name);
    board.change(&Wish::Revoke { target: &target, reason: "r", by: "b", at_ms: 1 }, &|| Ok(())).unwrap();
}

fn restore(board: &Board, name: &str) {
    board.change(&Wish::Restore { target: &tool(name) }, &|| Ok(())).unwrap();
}

/// What is in force, by its names; whole in any case.
fn read(board: &Board) -> (u64, Vec<String>) {
    let table = board.read();
    assert!(!table.is_damaged(), "{:?}", table.list());
    let names = table.list().iter().map(|revoked| {
        assert_eq!((&*revoked.reason, &*revoked.by, revoked.at_ms), ("r", "b", 1));
        revoked.target.name.to_string()
    });
    (table.generation(), names.collect())
}

/// A slot is emptied and used again beside a reader: it sees a table of one generation, whole.
#[test]
fn a_slot_of_the_table_is_used_again_beside_a_reader() {
    loom::model(|| {
        let board = board();
        revoke(&board, "one");
        let writer = {
            let board = Arc::clone(&board);
            thread::spawn(move || {
                restore(&board, "one");
                revoke(&board, "two");
            })
        };
        let (generation, names) = read(&board);
        match generation {
            1 => assert_eq!(names, ["one"]),
            2 => assert_eq!(names, [""; 0]),
            _ => assert_eq!((generation, names), (3, vec!["two".to_owned()])),
        }
        writer.join().unwrap();
        assert_eq!(read(&board), (3, vec!["two".to_owned()]));
    });
}

/// Who sees the word sees its table, and who was told of a revocation sees it.
#[test]
fn a_revocation_is_seen_with_its_word() {
    loom::model(|| {
        let board = board();
        let writer = {
            let board = Arc::clone(&board);
            thread::spawn(move || revoke(&board, "one"))
        };
        let word = board.word();
        let (generation, names) = read(&board);
        assert!(generation >= word >> 1);
        assert_eq!(names.len() as u64, generation);
        writer.join().unwrap();
        assert_eq!((board.word(), read(&board).1), (3, vec!["one".to_owned()]));
    });
}

// --- sessions ---------------------------------------------------------------------------------------------------

fn sessions(slots: usize) -> Arc<Sessions> {
    Arc::new(Sessions { header: Table::in_memory(1), slots: Table::in_memory(slots) })
}

fn never(_work: &mut dyn FnMut()) -> bool {
    false
}

fn under(lock: &Mutex<()>) -> impl Fn(&mut dyn FnMut()) -> bool {
    |work| {
        lock.try_lock().is_ok_and(|_guard| {
            work();
            true
        })
    }
}

/// Two processes make the slot of one session, a third has looked before.
#[test]
fn two_make_the_slot_of_one_session() {
    loom::model(|| {
        let sessions = sessions(2);
        let known = SessionRef::of_key(2);
        assert_eq!(sessions.seen(&known, 0), 0);
        let threads: Vec<_> = [1, 2]
            .into_iter()
            .map(|label| {
                let sessions = Arc::clone(&sessions);
                thread::spawn(move || {
                    let session = SessionRef::of_key(2);
                    sessions.add(&session, label, MINUTE_MS, &never);
                    assert_eq!(sessions.seen(&session, MINUTE_MS) & label, label);
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!((sessions.seen(&known, MINUTE_MS), sessions.in_use(), sessions.overflow()), (3, 1, 0));
    });
}

/// A session comes back in the moment in which another takes its slot.
#[test]
fn a_slot_is_taken_beside_its_session() {
    loom::model(|| {
        let (sessions, lock) = (sessions(1), Arc::new(Mutex::new(())));
        let old = SessionRef::of_key(2);
        sessions.add(&old, 1, 0, &never);
        let taker = {
            let (sessions, lock) = (Arc::clone(&sessions), Arc::clone(&lock));
            thread::spawn(move || {
                let new = SessionRef::of_key(3);
                sessions.add(&new, 4, LATER_MS, &under(&lock));
                assert_eq!(sessions.seen(&new, LATER_MS) & 4, 4);
            })
        };
        let seen = sessions.seen(&old, LATER_MS);
        assert!(seen == 1 || seen & !4 == 0 && seen == sessions.overflow() & seen, "{seen}");
        sessions.add(&old, 2, LATER_MS, &under(&lock));
        assert_eq!(sessions.seen(&old, LATER_MS) & 2, 2);
        taker.join().unwrap();
        assert_eq!(sessions.seen(&old, LATER_MS) & 2, 2);
        assert_eq!(sessions.seen(&SessionRef::of_key(2), LATER_MS) & 2, 2);
        assert_eq!(sessions.seen(&SessionRef::of_key(3), LATER_MS) & 4, 4);
    });
}

/// A label goes to the overflow while its session gets a slot.
#[test]
fn the_first_label_brings_the_overflow_along() {
    loom::model(|| {
        let (sessions, lock) = (sessions(1), Arc::new(Mutex::new(())));
        sessions.add(&SessionRef::of_key(2), 1, 0, &never);
        let taker = {
            let (sessions, lock) = (Arc::clone(&sessions), Arc::clone(&lock));
            thread::spawn(move || sessions.add(&SessionRef::of_key(3), 4, LATER_MS, &under(&lock)))
        };
        let session = SessionRef::of_key(3);
        sessions.add(&session, 2, LATER_MS, &never);
        assert_eq!(sessions.seen(&session, LATER_MS) & 2, 2);
        taker.join().unwrap();
        assert_eq!(sessions.seen(&session, LATER_MS) & 6, 6);
    });
}

// --- approvals --------------------------------------------------------------------------------------------------

const DIGEST: [u8; 32] = [7; 32];

fn granted() -> Arc<Approvals> {
    let approvals = Approvals { header: Table::in_memory(1), slots: Table::in_memory(1), boot: [1, 2] };
    approvals.ask(ApprovalId(1), &DIGEST, 10, 0).unwrap();
    let answer = Answer { id: ApprovalId(1), granted: true, expires_ms: 10, signature: None };
    approvals.answer(&answer, 1).unwrap();
    Arc::new(approvals)
}

/// Two use one grant: one of them does.
#[test]
fn one_of_two_uses_a_grant() {
    loom::model(|| {
        let approvals = granted();
        let use_it = |approvals: &Approvals| match approvals.standing(&DIGEST, 2) {
            Standing::Granted(grant) => approvals.consume(&grant, 2),
            Standing::Used(_) => false,
            other => unreachable!("{other:?}"),
        };
        let other = {
            let approvals = Arc::clone(&approvals);
            thread::spawn(move || use_it(&approvals))
        };
        let one = use_it(&approvals);
        assert!(one != other.join().unwrap());
        assert_eq!(approvals.standing(&DIGEST, 2), Standing::Used(ApprovalId(1)));
    });
}

/// The slot of a grant that has just expired is used again while somebody, whose clock is behind, uses the grant.
#[test]
fn a_grant_is_used_while_its_slot_is_used_again() {
    loom::model(|| {
        let approvals = granted();
        let Standing::Granted(grant) = approvals.standing(&DIGEST, 2) else { unreachable!() };
        let asker = {
            let approvals = Arc::clone(&approvals);
            thread::spawn(move || approvals.ask(ApprovalId(2), &[8; 32], 30, 20).unwrap())
        };
        // Not looked at meanwhile: a look loads thirteen words that may each be old or new, which the checker would all
        // try. The table of revocations is read by the same rule above.
        let _ = approvals.consume(&grant, 9);
        asker.join().unwrap();
        assert!(!approvals.consume(&grant, 9));
        assert_eq!(approvals.standing(&[8; 32], 21), Standing::Pending(ApprovalId(2)));
        assert_eq!(approvals.standing(&DIGEST, 21), Standing::None);
    });
}
