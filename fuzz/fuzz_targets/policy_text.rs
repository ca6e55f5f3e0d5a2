//! Arbitrary bytes as a policy file.
//!
//! 1. Nothing panics or overflows: decode, front door, parser, drop, and the rendering of every error.
//! 2. The front door refuses for syntax only what the reference refuses too.
//! 3. What the reference accepts survives printing: text -> tree -> text -> the same tree. Equality ignores positions
//!    and is that of the reference.
#![no_main]

use cedar_policy_core::parser;
use libfuzzer_sys::fuzz_target;
use tollkeeper_core::policy::front;
use tollkeeper_core::policy::parse::{Source, decode, on_parser_thread, parse_policies, parse_schema};

fuzz_target!(|bytes: &[u8]| {
    let name = Some("fuzz.cedar");
    let text = match decode(bytes, name) {
        Ok(text) => text,
        Err(error) => return drop(error.to_string()),
    };
    let source = Source { name, text };
    if let Err(errors) = parse_schema(&source) {
        drop(errors.to_string());
    }
    let scanned = front::check(&source);
    on_parser_thread(|| match &scanned {
        Ok(_) => match parse_policies(&source) {
            Ok(set) => {
                drop(set);
                survives_printing(text);
            }
            Err(errors) => drop(errors.to_string()),
        },
        // Deep text is what the reference cannot be asked about.
        Err(error) if error.code == "policy.syntax" && text.len() < 4_096 => {
            assert!(parser::parse_policyset(text).is_err(), "the reference accepts what the scan refuses: {error}");
        }
        Err(error) => drop(error.to_string()),
    })
    .expect("no panic inside");
});

fn survives_printing(text: &str) {
    let set = parser::parse_policyset(text).expect("parsed before");
    for template in set.all_templates() {
        let printed = template.to_string();
        let again = parser::parse_policy_or_template(Some(template.id().clone()), &printed);
        let again = again.unwrap_or_else(|errors| panic!("printed policy does not parse: {errors}\n{printed}"));
        assert!(*template == again, "printing changed the policy: {printed}");
    }
}
