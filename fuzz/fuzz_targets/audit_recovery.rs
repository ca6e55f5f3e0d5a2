//! A damaged folder of a log: it opens, or an error says why not; what was signed is never signed again otherwise.
#![no_main]

#[path = "../../rust/core/tests/audit/mod.rs"]
mod audit;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    audit::recovery::check_recovery("fuzz-recovery", rest, first % 2 == 0);
});
