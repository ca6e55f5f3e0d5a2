//! Sequences of operations on a ledger, made of bytes: every answer and every cell as in the plain model of the tests.
#![no_main]

#[path = "../../rust/core/tests/budget/mod.rs"]
mod budget;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    budget::drive::run(bytes);
});
