//! What stands in an entry, against plain encoders: JSON as `serde_json` writes it, times by counting days, snapshots of
//! arguments out of their bytes.

mod audit;

use audit::entries::{Arbitrary, check_arguments, check_entries, check_refill, check_time};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn arguments_survive_their_bytes_and_read_as_json(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        check_arguments(&mut Arbitrary(&bytes));
    }

    #[test]
    fn any_bytes_are_refilled_or_refused(structure in prop::collection::vec(any::<u8>(), 0..300),
                                         text in prop::collection::vec(any::<u8>(), 0..80)) {
        check_refill(&structure, &text);
    }

    /// Nearly right: a snapshot's own bytes with some of them changed.
    #[test]
    fn changed_bytes_are_refilled_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200),
                                             changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let arguments = Arbitrary(&bytes).arguments().0;
        let mut structure = Vec::new();
        arguments.write_structure(&mut structure);
        for (place, value) in changes {
            if !structure.is_empty() {
                let place = place.index(structure.len());
                structure[place] = value;
            }
        }
        check_refill(&structure, arguments.text().as_bytes());
    }

    #[test]
    fn times_are_those_of_a_calendar(time_ms in prop_oneof![any::<i64>(), -100_000_000_000_000..300_000_000_000_000_i64]) {
        check_time(time_ms);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn entries_are_json_in_a_fixed_order(bytes in prop::collection::vec(any::<u8>(), 0..3_000)) {
        check_entries("entries", &bytes);
    }
}

#[test]
fn a_text_without_a_bound_is_refused() {
    // A thousand strings that are each all of the text.
    let mut structure = Vec::new();
    let words = |words: [u32; 6]| words.map(u32::to_le_bytes).concat();
    structure.extend(words([0, 0, 1_001, 6, 0, 0]));
    for n in 0..1_000 {
        structure.extend(words([0, 0, n + 2, 5, 0, 50_000]));
    }
    let mut arguments = tollkeeper_core::arguments::Arguments::new();
    assert!(!arguments.refill(&structure, &vec![b'x'; 50_000]));
}

#[test]
fn the_first_and_last_days() {
    for time_ms in
        [0, -1, 1, 951_782_400_000, 951_868_799_999, 4_107_542_400_000, i64::MAX, i64::MIN, -62_167_219_200_000]
    {
        check_time(time_ms);
    }
}
