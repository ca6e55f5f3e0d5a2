//! Arbitrary text as the forbids of a run, and arbitrary arguments.
//!
//! 1. Nothing panics: what cannot be used is an error that can be shown.
//! 2. They never widen: what is allowed with them is allowed without, in every mode, for one principal and for a chain.
//! 3. What they change they say: a decision that is another one names policies of the run, or could not read something.
//!
//! The first byte chooses the gate and whether the text is the next bytes up to a NUL or made by the tests' generator;
//! what is left makes the arguments.

#![no_main]
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    reason = "a fuzz target stops where something is wrong"
)]

#[path = "../../rust/core/tests/generate/mod.rs"]
mod generate;

use std::sync::{Arc, OnceLock};

use generate::{Bytes, Source as _};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value as Json, json};
use tollkeeper_core::arguments::Arguments;
use tollkeeper_core::gate::Gate;
use tollkeeper_core::gate::check::Scratch;
use tollkeeper_core::gate::decision::Decision;
use tollkeeper_core::gate::scope::{Narrow, Scope, ScopeSpec};
use tollkeeper_core::gate::state::{GateMode, GateSources, OnError, UnguardedForbid};
use tollkeeper_core::gate::tools::ToolSpec;
use tollkeeper_core::policy::entities::EntityData;
use tollkeeper_core::policy::parse::Source;
use tollkeeper_core::uid::EntityUid;

const NOW_MS: i64 = 1_767_225_600_000;
const POLICIES: &str = r#"
permit(principal, action, resource);
forbid(principal == User::"u1", action == Action::"tool1", resource);
@approval("boss") permit(principal == User::"u2", action, resource);
forbid(principal, action == Action::"tool2", resource) when { context.input.amount > 5 };
@mode("shadow") forbid(principal == User::"u3", action, resource);
"#;

fn gate(flags: u32) -> Gate {
    let tool = |number: u32| ToolSpec {
        name: format!("tool{number}"),
        resource: Arc::new(EntityUid::new("Mcp", "m0")),
        schema: None,
        paths: Vec::new(),
        cost: None,
        reads: Vec::new(),
    };
    let sources = GateSources {
        policies: vec![Source { name: Some("p.cedar"), text: POLICIES }],
        tools: (0..4).map(tool).collect(),
        mode: if flags & 1 == 0 { GateMode::Enforce } else { GateMode::Shadow },
        on_error: if flags & 2 == 0 { OnError::Cedar } else { OnError::Deny },
        unguarded_forbid: UnguardedForbid::Warn,
        ..GateSources::default()
    };
    Gate::open(&sources, 7).unwrap()
}

fn check(gate: &Gate, scope: &Scope, tool: &str, input: &Json, unreadable: bool) -> Decision {
    let mut arguments = Arguments::new();
    arguments.open_object(None).unwrap();
    for (key, value) in input.as_object().into_iter().flatten() {
        if unreadable && key == "amount" {
            arguments.push_unrepresentable(Some(key)).unwrap();
        } else {
            generate::push(&mut arguments, Some(key), &generate::plain(value));
        }
    }
    arguments.close();
    gate.check(Some(scope), tool, &mut arguments, NOW_MS, &mut Scratch::new())
}

fn outer(gate: &Gate, bytes: &mut Bytes<'_>) -> Scope {
    let mut user = || EntityData::new(EntityUid::new("User", &format!("u{}", bytes.below(6))));
    let (principal, to) = (user(), user());
    let narrow = Narrow::default();
    let spec = ScopeSpec { principal, session: "s".to_owned(), on_behalf_of: None, narrow: narrow.clone() };
    let alone = Scope::new(spec, &gate.state(), NOW_MS).unwrap();
    let chain = (bytes.below(2) == 0).then(|| alone.delegated(to, &narrow, &gate.state(), NOW_MS).ok());
    chain.flatten().unwrap_or(alone)
}

fuzz_target!(|data: &[u8]| {
    static GATES: OnceLock<[Gate; 4]> = OnceLock::new();
    let Some((flags, rest)) = data.split_first() else { return };
    let gate = &GATES.get_or_init(|| [gate(0), gate(1), gate(2), gate(3)])[usize::from(flags & 3)];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let (written, rest) = rest.split_at(end);
    let mut bytes = Bytes(rest);
    let text = match std::str::from_utf8(written) {
        _ if flags & 4 != 0 => generate::policies(&mut bytes, 3).replace("permit (", "forbid ("),
        Ok(text) => text.to_owned(),
        Err(_) => return,
    };
    let outer = outer(gate, &mut bytes);
    let narrow = Narrow { forbid: vec![text], ..Narrow::default() };
    let narrowed = match outer.narrowed(&narrow, &gate.state(), NOW_MS) {
        Ok(narrowed) => narrowed,
        Err(errors) => return drop(errors.to_string()),
    };
    for _ in 0..4 {
        let input = generate::request(&mut bytes).context.get("input").cloned().unwrap_or_else(|| json!({}));
        let (tool, unreadable) = (format!("tool{}", bytes.below(5)), bytes.below(4) == 0);
        let with = check(gate, &narrowed, &tool, &input, unreadable);
        let without = check(gate, &outer, &tool, &input, unreadable);
        assert!(without.allowed() || !with.allowed(), "wider: {:?} for {:?}", with.code(), without.code());
        let free = |one: &Decision| one.allowed() && one.would_deny().is_none();
        assert!(free(&without) || !free(&with), "wider in shadow");
        if (with.code(), with.would_deny()) != (without.code(), without.would_deny()) {
            let named = [with.policies(), with.would_deny_policies()].concat();
            assert!(!named.is_empty() && !with.reason().is_empty(), "{:?} without a word", with.code());
        }
    }
});
