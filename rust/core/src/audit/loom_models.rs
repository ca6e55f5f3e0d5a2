//! Models of the races of the ring, for the model checker: `make loom`.
//!
//! A ring of four lines in ordinary memory, two producers and a consumer, in every order of their steps that the checker
//! finds within its bound of preemptions and every value that a load may see by the rules of the language. Whatever
//! happens, every record that was published is taken once, whole and in the order of its producer.

use loom::sync::Arc;
use loom::thread;

use super::ring::{Full, Pieces, Reader, Ring};

const LINES: usize = 4;

fn ring_at(line: u32, seq: u64) -> Arc<Ring> {
    Arc::new(Ring::for_test(LINES, line, seq))
}

/// Publishes a record of one or two lines that names its producer and its number.
fn put(ring: &Ring, producer: u8, number: u8, lines: usize) -> Result<u64, Full> {
    let bytes = [[producer, number, 1, 2, 3, 4, 5, 6], [number, producer, 6, 5, 4, 3, 2, 1]].concat();
    let mut claim = ring.claim(lines * 64)?;
    let seq = claim.seq();
    let piece = &bytes[..if lines > 1 { 16 } else { 8 }];
    assert!(claim.publish(&Pieces { kind: producer, time_ms: number.into(), pieces: [piece, &[], &[], &[], &[]] }));
    Ok(seq)
}

/// Takes what is there and checks that it is whole: producer and number, or nothing for what was given up.
fn take(ring: &Ring, reader: &mut Reader) -> Option<Option<(u8, u8)>> {
    let record = ring.take_one(reader)?;
    if record.abandoned {
        return Some(None);
    }
    let pieces = record.as_pieces();
    let [bytes, ..] = pieces.pieces;
    let (producer, number) = (bytes[0], bytes[1]);
    assert_eq!((pieces.kind, pieces.time_ms), (producer, number.into()));
    assert_eq!(&bytes[2..8], [1, 2, 3, 4, 5, 6]);
    assert!(bytes.len() == 8 || bytes[8..] == [number, producer, 6, 5, 4, 3, 2, 1]);
    Some(Some((producer, number)))
}

/// Everything that is left, with nothing unpublished in between.
fn rest(ring: &Ring, reader: &mut Reader, taken: &mut Vec<Option<(u8, u8)>>) {
    while let Some(record) = take(ring, reader) {
        taken.push(record);
    }
    assert_eq!(reader.seq, ring.next_seq(), "nothing is left behind");
}

fn numbers_of(taken: &[Option<(u8, u8)>], producer: u8) -> Vec<u8> {
    taken.iter().flatten().filter(|(by, _)| *by == producer).map(|(_, number)| *number).collect()
}

#[test]
fn two_producers_beside_the_consumer() {
    loom::model(|| {
        let ring = ring_at(0, 1);
        let producers: Vec<_> = (1..=2)
            .map(|producer| {
                let ring = Arc::clone(&ring);
                thread::spawn(move || put(&ring, producer, 1, 1).unwrap())
            })
            .collect();
        let (mut reader, mut taken) = (ring.reader(), Vec::new());
        taken.extend(take(&ring, &mut reader));
        let seqs: Vec<u64> = producers.into_iter().map(|producer| producer.join().unwrap()).collect();
        assert!(seqs == [1, 2] || seqs == [2, 1], "{seqs:?}");
        rest(&ring, &mut reader, &mut taken);
        assert_eq!((numbers_of(&taken, 1), numbers_of(&taken, 2)), (vec![1], vec![1]));
    });
}

#[test]
fn a_producer_keeps_its_order_beside_another() {
    loom::model(|| {
        let ring = ring_at(0, 1);
        let other = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || put(&ring, 2, 1, 1).unwrap())
        };
        put(&ring, 1, 1, 1).unwrap();
        put(&ring, 1, 2, 1).unwrap();
        other.join().unwrap();
        let (mut reader, mut taken) = (ring.reader(), Vec::new());
        rest(&ring, &mut reader, &mut taken);
        assert_eq!((numbers_of(&taken, 1), numbers_of(&taken, 2)), (vec![1, 2], vec![1]));
    });
}

/// The ring is full when the producer begins; lines that it gets were read before, whatever it does then. The checker
/// never lets a load see a store that comes later, so a mark beside the ring says that they were.
#[test]
fn lines_are_used_again_beside_the_consumer() {
    use crate::sync::AtomicU64;
    use crate::sync::Ordering::Relaxed;
    for (line, seq) in [(0, 1), (u32::MAX - 2, (1 << 32) - 2)] {
        loom::model(move || {
            let (ring, read) = (ring_at(line, seq), Arc::new(AtomicU64::new(0)));
            put(&ring, 1, 1, 2).unwrap();
            put(&ring, 1, 2, 2).unwrap();
            let producer = {
                let (ring, read) = (Arc::clone(&ring), Arc::clone(&read));
                thread::spawn(move || {
                    let put = put(&ring, 2, 1, 2);
                    assert!(put.is_err() || read.load(Relaxed) == 1);
                    put
                })
            };
            let (mut reader, mut taken) = (ring.reader(), Vec::new());
            taken.extend(take(&ring, &mut reader));
            read.store(1, Relaxed);
            ring.release(&reader);
            let put = producer.join().unwrap();
            assert!(put == Ok(seq + 2) || put == Err(Full::Now), "{put:?}");
            rest(&ring, &mut reader, &mut taken);
            let second = if put.is_ok() { vec![1] } else { vec![] };
            assert_eq!((numbers_of(&taken, 1), numbers_of(&taken, 2)), (vec![1, 2], second));
        });
    }
}

#[test]
fn two_claims_for_the_last_room() {
    loom::model(|| {
        let ring = ring_at(2, 1);
        put(&ring, 1, 1, 2).unwrap();
        let producer = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || put(&ring, 2, 1, 2))
        };
        let one = put(&ring, 1, 2, 2);
        let two = producer.join().unwrap();
        assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
        let (mut reader, mut taken) = (ring.reader(), Vec::new());
        rest(&ring, &mut reader, &mut taken);
        assert_eq!(taken.len(), 2);
    });
}

#[test]
fn a_claim_is_given_up_beside_the_consumer() {
    loom::model(|| {
        let ring = ring_at(3, 9);
        let producer = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                drop(ring.claim(128).unwrap());
                put(&ring, 2, 1, 1).unwrap()
            })
        };
        let (mut reader, mut taken) = (ring.reader(), Vec::new());
        taken.extend(take(&ring, &mut reader));
        taken.extend(take(&ring, &mut reader));
        assert_eq!(producer.join().unwrap(), 10);
        rest(&ring, &mut reader, &mut taken);
        assert_eq!(taken, [None, Some((2, 1))]);
    });
}

/// What the log's closing stands on: the claim that is not seen at the end of a closing sees that the log is closed.
///
/// The checker takes an access that is sequentially consistent for one that acquires and releases; it knows such fences
/// only, so they stand here for the accesses themselves.
#[test]
fn a_claim_beside_a_closing() {
    use crate::sync::AtomicU64;
    use crate::sync::{Ordering::SeqCst, fence};
    loom::model(|| {
        let (ring, closed) = (ring_at(0, 1), Arc::new(AtomicU64::new(0)));
        let producer = {
            let (ring, closed) = (Arc::clone(&ring), Arc::clone(&closed));
            thread::spawn(move || {
                let _claim = ring.claim(64).unwrap();
                fence(SeqCst);
                closed.load(SeqCst) == 1
            })
        };
        closed.store(1, SeqCst);
        fence(SeqCst);
        let unseen = ring.next_seq() == 1;
        let refused = producer.join().unwrap();
        assert!(refused || !unseen);
    });
}

#[test]
fn what_found_no_room_is_counted_beside_its_report() {
    loom::model(|| {
        let ring = ring_at(0, 1);
        ring.count_unlogged(false, 5);
        let producer = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || ring.count_unlogged(false, 6))
        };
        let (first, ..) = ring.unlogged(false).unwrap();
        ring.forget_unlogged(false, first);
        producer.join().unwrap();
        let second = ring.unlogged(false).map_or(0, |(count, ..)| count);
        assert_eq!(first + second, 2);
    });
}
