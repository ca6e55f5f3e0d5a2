//! Every death in the ring: a thread is killed before its first, second, ... last write to the ring's memory.
//!
//! Whoever opens the log then finds everything that was published, once and whole, and can name what was claimed and
//! never published. A claim, a publication, a record that is given up, a release, a reset for the next owner: each is
//! cut short at each of its writes.

#![expect(clippy::arithmetic_side_effects, reason = "tests")]

use super::ring::{Pieces, Ring};
use crate::mortal::live_for;
use crate::sync::Ordering::Acquire;

const DEAD: u64 = 7;

fn pieces(text: &[u8]) -> Pieces<'_> {
    Pieces { kind: 3, time_ms: 5, pieces: [text, &[], b"tail", &[], text] }
}

fn put(ring: &Ring, text: &[u8]) -> u64 {
    let mut claim = ring.claim(Ring::bytes_for(2 * text.len() + 4)).unwrap();
    let seq = claim.seq();
    assert!(claim.publish(&pieces(text)));
    seq
}

/// Numbers and texts of what is published, numbers of what is given up, and of what is lost.
type Found = (Vec<(u64, Vec<u8>)>, Vec<u64>, Vec<u64>);

/// What the next owner finds.
fn found(ring: &Ring) -> Found {
    let (mut texts, mut given_up, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    let mut reader = ring.reader();
    let mut expected = reader.seq;
    while ring.skip_to_published(&mut reader) {
        let record = ring.take_one(&mut reader).unwrap();
        lost.extend(expected..record.seq);
        expected = record.seq + 1;
        if record.abandoned {
            given_up.push(record.seq);
        } else {
            let found = record.as_pieces();
            assert_eq!((found.kind, found.time_ms, found.pieces[2]), (3, 5, &b"tail"[..]));
            assert_eq!(found.pieces[0], found.pieces[4]);
            texts.push((record.seq, found.pieces[0].to_vec()));
        }
    }
    lost.extend(expected..ring.next_seq());
    (texts, given_up, lost)
}

/// Places from which a record of three lines crosses the end of the ring, or its counters theirs.
const STARTS: [(u32, u64); 4] = [(0, 1), (6, 40), (u32::MAX - 1, (1 << 32) - 1), (u32::MAX - 6, (3 << 32) - 3)];

#[test]
fn a_producer_dies_anywhere() {
    for (line, seq) in STARTS {
        for kill in 0.. {
            let ring = Ring::for_test(16, line, seq);
            let text = [b'x'; 60];
            assert_eq!(put(&ring, b"before"), seq);
            let done = live_for(kill, || put(&ring, &text)).is_some();
            // Another thread of the same process, which dies with it a moment later.
            let after = put(&ring, b"after");
            let (texts, given_up, lost) = found(&ring);
            let at = format!("killed before write {kill} at {line}");
            let claimed = after > seq + 1;
            let published = texts.iter().any(|(_, found)| *found == text);
            assert!(given_up.is_empty(), "{at}");
            assert_eq!(
                (texts.first(), texts.last()),
                (Some(&(seq, b"before".to_vec())), Some(&(after, b"after".to_vec())))
            );
            assert_eq!(texts.len(), 2 + usize::from(published), "{at}");
            assert_eq!(lost, if claimed && !published { vec![seq + 1] } else { vec![] }, "{at}");
            assert!(claimed == (kill > 0) && published == done, "{at}");
            if done {
                break;
            }
        }
    }
}

#[test]
fn who_gives_up_dies_anywhere() {
    for (line, seq) in STARTS {
        for kill in 0.. {
            let ring = Ring::for_test(16, line, seq);
            let done = live_for(kill, || drop(ring.claim(200).unwrap()));
            let after = put(&ring, b"after");
            let (texts, given_up, lost) = found(&ring);
            assert_eq!(texts, [(after, b"after".to_vec())]);
            let numbers = [given_up.clone(), lost].concat();
            assert_eq!(numbers, if kill > 0 { vec![seq] } else { vec![] }, "killed before write {kill} at {line}");
            if done.is_some() {
                assert_eq!(given_up, [seq]);
                break;
            }
        }
    }
}

/// The consumer may die with the base moved and the head not: the records are there, with their own numbers.
#[test]
fn the_consumer_dies_anywhere() {
    for (line, seq) in STARTS {
        for kill in 0.. {
            let ring = Ring::for_test(16, line, seq);
            let seqs: Vec<u64> = [&b"a"[..], b"bb", b"ccc"].into_iter().map(|text| put(&ring, text)).collect();
            let done = live_for(kill, || {
                let mut reader = ring.reader();
                ring.take_one(&mut reader).unwrap();
                ring.take_one(&mut reader).unwrap();
                ring.release(&reader);
            });
            let (texts, _, lost) = found(&ring);
            let numbers: Vec<u64> = texts.iter().map(|(seq, _)| *seq).collect();
            assert!(numbers == seqs || numbers == seqs[2..], "killed before write {kill}: {numbers:?}");
            assert!(lost.is_empty() && ring.next_seq() == seq + 3);
            if done.is_some() {
                assert_eq!(numbers, seqs[2..]);
                break;
            }
        }
    }
}

/// A ring that is made ready for the next owner has no owner until it is empty.
#[test]
fn the_next_owner_dies_anywhere() {
    for kill in 0.. {
        let ring = Ring::for_test(16, 9, 1 << 33);
        put(&ring, b"old");
        ring.count_unlogged(true, 5);
        let done = live_for(kill, || ring.reset(8, 2, [1, 2])).is_some();
        let owner = ring.header().producer.load(Acquire);
        let at = format!("killed before write {kill}");
        match owner {
            DEAD => assert_eq!(found(&ring).0, [(1 << 33, b"old".to_vec())], "{at}"),
            0 => {}
            8 => assert!(found(&ring).0.is_empty() && ring.next_seq() == 1 && ring.used_bytes() == 0, "{at}"),
            other => panic!("{at}: {other}"),
        }
        assert_eq!(ring.unlogged(true), Some((1, 5, 5)), "{at}: nobody has written that");
        if done {
            assert_eq!((owner, put(&ring, b"new")), (8, 1));
            break;
        }
    }
}

#[test]
fn who_counts_dies_anywhere() {
    for kill in 0.. {
        let ring = Ring::for_test(16, 0, 1);
        ring.count_unlogged(false, 4);
        let done = live_for(kill, || {
            ring.count_unlogged(false, 6);
            let (count, ..) = ring.unlogged(false).unwrap();
            ring.forget_unlogged(false, count);
        });
        ring.count_unlogged(false, 9);
        let (count, from, to) = ring.unlogged(false).unwrap();
        assert!((1..=3).contains(&count) && from <= to && to == 9, "{count} {from} {to}");
        if done.is_some() {
            assert_eq!((count, from, to), (1, 9, 9));
            break;
        }
    }
}
