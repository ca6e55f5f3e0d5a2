//! The ring against a plain queue: any sizes, any order of claims, publications and releases, over the wrap-around of
//! its lines and of the 32 bits of its counters.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

use std::collections::VecDeque;

use proptest::prelude::*;

use super::ring::{Claim, Full, LINE_BYTES, Pieces, Reader, Ring};
use crate::sync::Ordering::Relaxed;

/// What the queue knows of a claim.
#[derive(Debug, Clone, PartialEq)]
enum Said {
    Claimed,
    Published(u8, i64, [Vec<u8>; 5]),
    GivenUp,
}

#[derive(Debug, Clone)]
enum Step {
    /// Claims room for pieces of these lengths
    Claim([u16; 5]),
    /// Publishes one of the open claims
    Publish(usize),
    /// Gives one up, by dropping it or by filling it with too much
    GiveUp(usize, bool),
    /// Takes so many
    Take(u8),
    /// Lets go of what was taken
    Release,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lens = prop_oneof![
        4 => prop::array::uniform5(0..40_u16),
        2 => prop::array::uniform5(prop_oneof![Just(0_u16), 0..9_u16, Just(64), 0..300_u16]),
        1 => prop::array::uniform5(0..2_000_u16),
    ];
    let step = prop_oneof![
        5 => lens.prop_map(Step::Claim),
        5 => any::<usize>().prop_map(Step::Publish),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(which, drop)| Step::GiveUp(which, drop)),
        4 => (0..6_u8).prop_map(Step::Take),
        3 => Just(Step::Release),
    ];
    prop::collection::vec(step, 1..200)
}

fn pieces_of(lens: [u16; 5], seq: u64) -> [Vec<u8>; 5] {
    let mut byte = seq as u8;
    lens.map(|len| {
        (0..len)
            .map(|_| {
                byte = byte.wrapping_mul(31).wrapping_add(7);
                byte
            })
            .collect()
    })
}

fn as_slices(pieces: &[Vec<u8>; 5]) -> [&[u8]; 5] {
    [&pieces[0], &pieces[1], &pieces[2], &pieces[3], &pieces[4]]
}

/// Runs the steps on both and compares them after each.
fn agree(lines_log2: u32, line: u32, first_seq: u64, steps: &[Step]) {
    let lines = 1_usize << lines_log2;
    let ring = Ring::for_test(lines, line, first_seq);
    let mut model: VecDeque<(usize, Said)> = VecDeque::new();
    // The first of the model that is still there, and the first that is not taken.
    let (mut oldest, mut next) = (first_seq, first_seq);
    let mut open: Vec<(Claim<'_>, u64, [u16; 5])> = Vec::new();
    let mut reader = ring.reader();
    for step in steps {
        match step {
            Step::Claim(lens) => {
                let bytes = Ring::bytes_for(lens.iter().map(|len| usize::from(*len)).sum());
                let wanted = bytes.div_ceil(LINE_BYTES);
                let used: usize = model.iter().map(|(lines, _)| lines).sum();
                match ring.claim(bytes) {
                    Ok(claim) => {
                        assert!(used + wanted <= lines && bytes <= lines * 32);
                        assert_eq!(claim.seq(), oldest + model.len() as u64);
                        open.push((claim, oldest + model.len() as u64, *lens));
                        model.push_back((wanted, Said::Claimed));
                    }
                    Err(Full::Now) => assert!(used + wanted > lines),
                    Err(Full::Never) => assert!(bytes > lines * 32),
                }
            }
            Step::Publish(which) if !open.is_empty() => {
                let (mut claim, seq, lens) = open.swap_remove(which % open.len());
                let pieces = pieces_of(lens, seq);
                let (kind, time_ms) = (seq as u8, (seq as i64).wrapping_mul(-3));
                assert!(claim.publish(&Pieces { kind, time_ms, pieces: as_slices(&pieces) }));
                model[(seq - oldest) as usize].1 = Said::Published(kind, time_ms, pieces);
            }
            Step::GiveUp(which, drops) if !open.is_empty() => {
                let (mut claim, seq, _) = open.swap_remove(which % open.len());
                if !drops {
                    let long = vec![9; lines * LINE_BYTES];
                    let pieces: [&[u8]; 5] = [&[], &long, &[], &[], &[]];
                    assert!(!claim.publish(&Pieces { kind: 1, time_ms: 0, pieces }));
                }
                drop(claim);
                model[(seq - oldest) as usize].1 = Said::GivenUp;
            }
            Step::Take(many) => {
                for _ in 0..*many {
                    let expected = model.get((next - oldest) as usize).map(|(_, said)| said);
                    if !takes(&ring, &mut reader, expected, next) {
                        break;
                    }
                    next += 1;
                }
            }
            Step::Release => {
                ring.release(&reader);
                model.drain(..(next - oldest) as usize);
                oldest = next;
            }
            Step::Publish(_) | Step::GiveUp(..) => {}
        }
        assert_eq!(ring.next_seq(), oldest + model.len() as u64);
        assert_eq!(ring.used_bytes(), model.iter().map(|(lines, _)| lines * LINE_BYTES).sum::<usize>());
        assert_eq!(ring.all_published(), !model.iter().any(|(_, said)| *said == Said::Claimed));
    }
    recovers(&ring, oldest, &model);
    for (mut claim, ..) in open {
        claim.forget();
    }
}

/// Whether the reader takes a record, which is then the one that the model has next.
fn takes(ring: &Ring, reader: &mut Reader, expected: Option<&Said>, next: u64) -> bool {
    let Some(record) = ring.take_one(reader) else {
        assert!(matches!(expected, None | Some(Said::Claimed)), "{expected:?} at {next}");
        return false;
    };
    assert_eq!(record.seq, next);
    let found = record.as_pieces();
    match expected {
        Some(Said::GivenUp) => assert!(record.abandoned),
        Some(Said::Published(kind, time_ms, pieces)) => {
            assert!(!record.abandoned);
            assert_eq!((found.kind, found.time_ms, found.pieces), (*kind, *time_ms, as_slices(pieces)));
        }
        other => panic!("{other:?} was taken at {next}"),
    }
    true
}

/// Whoever finds the ring of a dead owner finds what is published, and knows the numbers of the rest.
fn recovers(ring: &Ring, oldest: u64, model: &VecDeque<(usize, Said)>) {
    let mut found = vec![Said::Claimed; model.len()];
    let mut reader = ring.reader();
    assert_eq!(reader.seq, oldest);
    while ring.skip_to_published(&mut reader) {
        let record = ring.take_one(&mut reader).expect("it was said to be published");
        let pieces = record.as_pieces();
        found[(record.seq - oldest) as usize] = if record.abandoned {
            Said::GivenUp
        } else {
            Said::Published(pieces.kind, pieces.time_ms, pieces.pieces.map(<[u8]>::to_vec))
        };
    }
    assert_eq!(reader.seq, ring.next_seq());
    let said: Vec<Said> = model.iter().map(|(_, said)| said.clone()).collect();
    assert_eq!(found, said);
}

fn starts() -> impl Strategy<Value = (u32, u64)> {
    let near = |most: u64| (0..40_u64).prop_map(move |off| most.wrapping_sub(20).wrapping_add(off));
    let line = prop_oneof![Just(0_u64), near(1 << 32), near(1 << 31), any::<u64>()].prop_map(|line| line as u32);
    let seq = prop_oneof![Just(1_u64), near(1 << 32), near(1 << 31), near(5 << 32), near(1 << 63)];
    (line, seq)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn the_ring_is_a_queue((line, seq) in starts(), lines_log2 in 2..8_u32, steps in steps()) {
        agree(lines_log2, line, seq, &steps);
    }

    /// A ring out of a file may say anything: it is read without a panic, in bounded time, and nothing twice.
    #[test]
    fn any_memory_is_read(words in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..60),
                          (line, seq) in starts(), published in 0..12_u64) {
        let ring = Ring::for_test(16, line, seq);
        for n in 0..published {
            let text = n.to_le_bytes();
            let Ok(mut claim) = ring.claim(100) else { break };
            let published = claim.publish(&Pieces { kind: 3, time_ms: 1, pieces: [&text, &[], &text, &[], &[]] });
            prop_assert!(published);
        }
        ring.scribble(words.iter().map(|(place, value)| (place.index(16 * 9 + 4), *value)));
        let (mut reader, mut last, mut taken) = (ring.reader(), None, 0);
        while ring.skip_to_published(&mut reader) {
            let Some(record) = ring.take_one(&mut reader) else { break };
            prop_assert!(last.is_none_or(|last| record.seq > last));
            prop_assert!(record.as_pieces().pieces.iter().map(|piece| piece.len()).sum::<usize>() <= 16 * 64);
            (last, taken) = (Some(record.seq), taken + 1);
            prop_assert!(taken <= 16);
        }
        let _ = (ring.next_seq(), ring.used_bytes(), ring.all_published());
    }
}

#[test]
fn a_ring_without_room_says_whether_there_ever_will_be() {
    let ring = Ring::for_test(8, 0, 1);
    assert_eq!(ring.record_bytes_max(), 256);
    assert_eq!(ring.claim(257).err(), Some(Full::Never));
    let claims: Vec<_> = (0..2).map(|_| ring.claim(256).unwrap()).collect();
    assert_eq!(ring.claim(1).err(), Some(Full::Now));
    drop(claims);
    assert_eq!(ring.claim(1).err(), Some(Full::Now), "given up is not let go");
    assert_eq!(ring.header().producer.load(Relaxed), 7);
}
