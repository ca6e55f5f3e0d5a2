//! What stands in entries, against plain encoders: arguments, times, members and their order, snapshots out of bytes.
#![no_main]

#[path = "../../rust/core/tests/audit/mod.rs"]
mod audit;

use audit::entries::{Arbitrary, check_arguments, check_entries, check_refill, check_time};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    match first % 8 {
        0..4 => check_arguments(&mut Arbitrary(rest)),
        4 | 5 => {
            let (structure, text) = rest.split_at(rest.len() / 24 * 24 * 3 / 4 / 24 * 24);
            check_refill(structure, text);
        }
        6 => check_time(rest.first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes))),
        _ => check_entries("fuzz-entry", rest),
    }
});
