//! A damaged control file: refused with a clear error, or one on which every operation works.
//!
//! Each four bytes are a place and a byte that is written there, over a file with revocations, labels, approvals and
//! counts; the last byte may cut it. Nothing may panic or hang, and what can be read of revocations may not be less than
//! what was revoked unless the damage has made a table that adds up.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../rust/core/tests/control_damage/mod.rs"]
mod control_damage;

fuzz_target!(|bytes: &[u8]| control_damage::damage(bytes));
