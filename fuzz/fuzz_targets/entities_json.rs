//! Arbitrary bytes as an entities document: never a panic, and what our loader accepts the reference accepts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollkeeper_core::policy::entities::Entities;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Entities::from_json(text, None) {
        Ok(_) => {
            let reference = cedar_policy::Entities::from_json_str(text, None);
            assert!(reference.is_ok(), "accepted what the reference refuses: {:?}", reference.err());
        }
        Err(errors) => drop(errors.to_string()),
    }
});
