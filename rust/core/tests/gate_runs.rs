//! Runs inside the gate: chains of principals, the forbids that come with a run, how both meet shadow mode, approvals
//! and revocation. Two properties are held over generated policies: a chain is decided as the principals in it are one
//! by one, and forbids of a run never allow what is denied without them.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod generate;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use generate::{Seeded, Source as _, filled, plain};
use serde_json::{Value as Json, json};
use tollkeeper_core::budget::clock::SystemClock;
use tollkeeper_core::budget::ledger::Ledger;
use tollkeeper_core::budget::tree::{BudgetSpec, LedgerSpec, LimitSpec};
use tollkeeper_core::budget::unit::{Amounts, Unit};
use tollkeeper_core::budget::window::Window;
use tollkeeper_core::gate::Gate;
use tollkeeper_core::gate::check::Scratch;
use tollkeeper_core::gate::code::Code;
use tollkeeper_core::gate::control::{ApprovalId, Target, TargetKind};
use tollkeeper_core::gate::decision::Decision;
use tollkeeper_core::gate::evidence::Links;
use tollkeeper_core::gate::scope::{Narrow, Scope, ScopeSpec};
use tollkeeper_core::gate::state::{GateMode, GateSources, OnError, UnguardedForbid};
use tollkeeper_core::gate::tools::{Prepared, ToolSpec};
use tollkeeper_core::policy::entities::EntityData;
use tollkeeper_core::policy::parse::Source;
use tollkeeper_core::uid::EntityUid;
use tollkeeper_core::value::Val;

const NOW: i64 = 1_767_225_600_000;
const ALL: &str = "permit(principal, action, resource);";

fn tool(name: &str) -> ToolSpec {
    ToolSpec {
        name: name.to_owned(),
        resource: Arc::new(EntityUid::new("Mcp", "m0")),
        schema: None,
        paths: Vec::new(),
        cost: None,
        reads: Vec::new(),
    }
}

fn gate_with<'a>(text: &'a str, change: impl FnOnce(&mut GateSources<'a>)) -> Gate {
    let mut sources = GateSources {
        policies: vec![Source { name: Some("p.cedar"), text }],
        tools: vec![tool("send"), tool("read")],
        unguarded_forbid: UnguardedForbid::Warn,
        ..GateSources::default()
    };
    change(&mut sources);
    Gate::open(&sources, 7).unwrap()
}

fn gate(text: &str) -> Gate {
    gate_with(text, |_| ())
}

fn agent(id: &str) -> EntityData {
    EntityData::new(EntityUid::new("Agent", id))
}

fn run(gate: &Gate, id: &str, narrow: Narrow) -> Scope {
    let spec = ScopeSpec { principal: agent(id), session: "s-1".to_owned(), on_behalf_of: None, narrow };
    Scope::new(spec, &gate.state(), NOW).unwrap()
}

fn forbid(texts: &[&str]) -> Narrow {
    Narrow { forbid: texts.iter().map(|text| (*text).to_owned()).collect(), ..Narrow::default() }
}

/// The scope in which the last of the ids acts for those before.
fn chain(gate: &Gate, ids: &[&str]) -> Scope {
    let mut scope = run(gate, ids[0], Narrow::default());
    for id in &ids[1..] {
        scope = scope.delegated(agent(id), &Narrow::default(), &gate.state(), NOW).unwrap();
    }
    scope
}

fn check_at(gate: &Gate, scope: &Scope, tool: &str, json: &Json, now_ms: i64) -> Decision {
    gate.check(Some(scope), tool, &mut filled(json), now_ms, &mut Scratch::new())
}

fn check(gate: &Gate, scope: &Scope, json: &Json) -> Decision {
    check_at(gate, scope, "send", json, NOW)
}

fn delegate(gate: &Gate, outer: &Scope, inner: &Scope) -> Decision {
    gate.check_delegate(outer, inner, NOW, Links::default(), &mut Scratch::new())
}

// --- chains
// -----------------------------------------------------------------------------------------------------------

/// What may be said of one principal. `n` is a number without a value in Cedar, so that reading it cannot be
/// represented.
const RULES: [&str; 8] = [
    "permit(principal == Agent::\"ID\", action, resource);",
    "@approval(\"boss\") permit(principal == Agent::\"ID\", action, resource);",
    "forbid(principal == Agent::\"ID\", action, resource);",
    "forbid(principal == Agent::\"ID\", action, resource) when { context.input.missing > 1 };",
    "forbid(principal == Agent::\"ID\", action, resource) when { context.input.n > 1 };",
    "@mode(\"shadow\") forbid(principal == Agent::\"ID\", action, resource);",
    "@mode(\"shadow\") permit(principal == Agent::\"ID\", action, resource);",
    "permit(principal == Agent::\"ID\", action, resource) when { context.input.missing > 1 };",
];
const IDS: [&str; 4] = ["a", "b", "c", "d"];

fn rules(seed: &mut Seeded) -> String {
    let mut text = String::new();
    for id in IDS {
        // Mostly allowed, so that whole chains are.
        if seed.below(5) != 0 {
            let _ = writeln!(text, "{}", RULES[0].replace("ID", id));
        }
        for rule in &RULES[1..] {
            if seed.below(6) == 0 {
                let _ = writeln!(text, "{}", rule.replace("ID", id));
            }
        }
    }
    text
}

/// How much a decision counts against others of its chain; policies in shadow count least.
fn weight(code: Code, would_deny: Option<Code>, mode: GateMode) -> u8 {
    match (code, would_deny) {
        (Code::Allow, None) => 0,
        (Code::Allow, Some(_)) if mode == GateMode::Enforce => 1,
        (Code::ApprovalRequired, _) | (Code::Allow, Some(Code::ApprovalRequired)) => 2,
        (Code::Allow, Some(_)) => 3,
        _ => 4,
    }
}

#[test]
fn a_chain_is_decided_as_its_principals_are_one_by_one() {
    let mut seed = Seeded(1);
    let (mut allowed, mut codes) = (0, std::collections::BTreeSet::new());
    for round in 0..400_u32 {
        let mode = if round % 3 == 0 { GateMode::Shadow } else { GateMode::Enforce };
        let mut text = rules(&mut seed);
        if mode == GateMode::Shadow {
            // There a decision does not say whether only policies in shadow would deny.
            text = text
                .lines()
                .filter(|line| !line.starts_with(r#"@mode("shadow") forbid"#))
                .collect::<Vec<_>>()
                .join("\n");
        }
        let on_error = if seed.below(4) == 0 { OnError::Cedar } else { OnError::Deny };
        let gate = gate_with(&text, |sources| (sources.mode, sources.on_error) = (mode, on_error));
        let ids = &IDS[..=seed.below(4) as usize];
        let input = if seed.below(2) == 0 { json!({"n": 1e300}) } else { json!({"n": 1}) };
        let together = check(&gate, &chain(&gate, ids), &input);
        // From who acts outwards: the first of those that count most is the answer.
        let mut expected = (0, Code::Allow, None, None);
        for (place, id) in ids.iter().rev().enumerate() {
            let alone = check(&gate, &run(&gate, id, Narrow::default()), &input);
            let counts = weight(alone.code(), alone.would_deny(), mode);
            if place == 0 || counts > expected.0 {
                let denied_for = (place > 0).then(|| format!("Agent::\"{id}\""));
                expected = (counts, alone.code(), alone.would_deny(), denied_for);
            }
        }
        let denied_for = together.denied_for().map(ToString::to_string);
        let found = (expected.0, together.code(), together.would_deny(), denied_for);
        assert_eq!(found, expected, "{mode:?} {on_error:?} {ids:?}\n{text}");
        allowed += u32::from(together.allowed() && ids.len() > 1);
        codes.insert(together.code().slug());
    }
    assert!(allowed > 40, "{allowed}");
    assert_eq!(codes.len(), 6, "{codes:?}");
}

#[test]
fn a_chain_has_at_most_four_and_nobody_twice() {
    let gate = gate(ALL);
    let full = chain(&gate, &IDS);
    assert_eq!(full.chain().len(), 4);
    let refused = |scope: &Scope, id: &str| {
        let error = scope.delegated(agent(id), &Narrow::default(), &gate.state(), NOW).unwrap_err();
        (error.first().code, error.first().message.clone())
    };
    assert_eq!(refused(&full, "e"), ("scope.invalid", "the chain has 4 principals already, the limit is 4".to_owned()));
    let (code, message) = refused(&chain(&gate, &["a", "b"]), "a");
    assert_eq!(code, "scope.invalid");
    assert!(message.contains("is in the chain already"), "{message}");
}

/// A ledger of `acme`, `acme/b` and `other`, with 100 tokens each.
fn three_budgets() -> Arc<Ledger> {
    let spec = |path: &str| {
        let limits = vec![LimitSpec { unit: Unit::Tokens, window: Window::Total, limit: 100, overdraft: 0 }];
        BudgetSpec { path: path.to_owned(), limits, children_max: None }
    };
    let budgets = vec![spec("acme"), spec("acme/b"), spec("other")];
    let ledger = LedgerSpec { budgets, holds: 16, ..LedgerSpec::default() };
    Arc::new(Ledger::anonymous(ledger, Arc::new(SystemClock)).unwrap())
}

#[test]
fn a_delegation_is_decided_and_narrows() {
    let text = r#"
        permit(principal, action == Action::"send", resource);
        permit(principal == Agent::"a", action == Action::"delegate", resource is Agent)
        when { context.input has tools && context.input.tools == ["send"] && context.input has budget
               && context.input.budget like "acme/*" && resource has level && resource.level > 2 };
    "#;
    let ledger = three_budgets();
    let gate = gate_with(text, |sources| {
        sources.ledger = Some(ledger);
        sources.tools[0].cost = Some(Amounts::of(Unit::Tokens, 1));
    });
    let budget = |path: &str| Some(path.to_owned());
    let outer = run(
        &gate,
        "a",
        Narrow {
            budget: budget("acme"),
            expires_ms: Some(NOW + 10),
            tools: Some(vec!["send".to_owned(), "read".to_owned()]),
            ..forbid(&[
                r#"forbid(principal, action, resource) when { context.input has to && context.input.to == "eve" };"#,
            ])
        },
    );
    let described = |level: i64| {
        let mut to = agent("b");
        to.attrs.push(("level".into(), Val::Long(level)));
        to
    };
    let narrow = |path: &str, tools: &[&str]| Narrow {
        budget: budget(path),
        tools: Some(tools.iter().map(|name| (*name).to_owned()).collect()),
        expires_ms: Some(NOW + 1_000),
        ..Narrow::default()
    };
    let state = gate.state();
    let inner = outer.delegated(described(3), &narrow("acme/b", &["send", "other"]), &state, NOW).unwrap();
    assert!(delegate(&gate, &outer, &inner).allowed());
    for (to, path, tools) in [
        (described(2), "acme/b", &["send"][..]),
        (described(3), "acme", &["send"]),
        (described(3), "acme/b", &["read"]),
    ] {
        let other = outer.delegated(to, &narrow(path, tools), &state, NOW).unwrap();
        assert_eq!(delegate(&gate, &outer, &other).code(), Code::PolicyNoPermit);
    }
    for path in ["other", "acm", "acmeother"] {
        assert!(outer.delegated(described(3), &narrow(path, &["send"]), &state, NOW).is_err(), "{path}");
    }
    // What the outer run may not do the inner one may not either.
    assert_eq!(inner.tools().unwrap().iter().map(|name| &**name).collect::<Vec<_>>(), ["send"]);
    assert_eq!(inner.budget(), Some("acme/b"));
    assert_eq!(inner.expires_ms(), NOW + 10);
    assert!(check(&gate, &inner, &json!({})).allowed());
    assert_eq!(check_at(&gate, &inner, "read", &json!({}), NOW).code(), Code::PolicyForbidden);
    assert_eq!(check(&gate, &inner, &json!({"to": "eve"})).code(), Code::PolicyForbidden);
    assert_eq!(check_at(&gate, &inner, "send", &json!({}), NOW + 10).code(), Code::PrincipalExpired);
    let (decision, _) = {
        let request =
            tollkeeper_core::gate::model_call::ModelRequest { model: "m", prompt_tokens: 1, max_tokens: 1, n: 1 };
        gate.check_model(Some(&inner), &request, NOW + 10, &mut Scratch::new())
    };
    assert_eq!(decision.code(), Code::PrincipalExpired);
}

#[test]
fn everybody_described_is_known_to_the_policies() {
    let text = r"permit(principal, action, resource) when { principal has level && principal.level > 1 };";
    let gate = gate(text);
    let described = |id: &str, level: i64| {
        let mut one = agent(id);
        one.attrs.push(("level".into(), Val::Long(level)));
        one
    };
    for (outer, inner, allowed) in [(2, 2, true), (1, 2, false), (2, 1, false)] {
        let spec = ScopeSpec {
            principal: described("a", outer),
            session: "s".to_owned(),
            on_behalf_of: None,
            narrow: Narrow::default(),
        };
        let outer = Scope::new(spec, &gate.state(), NOW).unwrap();
        let scope = outer.delegated(described("b", inner), &Narrow::default(), &gate.state(), NOW).unwrap();
        assert_eq!(check(&gate, &scope, &json!({})).allowed(), allowed);
        // Also where the entities have changed since.
        gate.register(&[tool(&format!("more{}{inner}", scope.chain().len() + usize::from(allowed)))]).ok();
        assert_eq!(check(&gate, &scope, &json!({})).allowed(), allowed);
    }
}

#[test]
fn what_permits_of_a_chain_ask_for_adds_up() {
    let text = r#"
        @obligation("tell-a") permit(principal == Agent::"a", action == Action::"send", resource);
        @obligation("tell-b") permit(principal == Agent::"b", action == Action::"send", resource);
        @approval("finance") permit(principal == Agent::"a", action == Action::"read", resource);
        @approval("legal") permit(principal == Agent::"b", action == Action::"read", resource);
    "#;
    let gate = gate(text);
    let scope = chain(&gate, &["a", "b"]);
    let mut told = check(&gate, &scope, &json!({})).obligations().into_iter().map(str::to_owned).collect::<Vec<_>>();
    told.sort();
    assert_eq!(told, ["tell-a", "tell-b"]);
    let asked = check_at(&gate, &scope, "read", &json!({}), NOW);
    let mut kinds = asked.approvals();
    kinds.sort_unstable();
    assert_eq!((asked.code(), kinds), (Code::ApprovalRequired, vec!["finance", "legal"]));
}

#[test]
fn an_approval_of_a_chain_is_for_the_chain_and_leaves_nobody_denied() {
    let text = r#"
        @approval("boss") permit(principal == Agent::"a", action, resource);
        permit(principal == Agent::"b", action, resource);
        permit(principal == Agent::"c", action, resource);
    "#;
    let gate = gate(text);
    let grant = |decision: &Decision, id: u64| {
        let (state, digest) = (gate.state(), decision.binding().unwrap().digest);
        state.control().ask(ApprovalId(id), &digest, NOW + 1_000, NOW).unwrap();
        state.control().answer(ApprovalId(id), true, NOW + 1_000, None, NOW).unwrap();
    };
    let scope = chain(&gate, &["a", "b"]);
    let asked = check(&gate, &scope, &json!({"n": 1}));
    assert_eq!(asked.code(), Code::ApprovalRequired);
    assert_eq!(asked.denied_for().unwrap().to_string(), "Agent::\"a\"");
    grant(&asked, 1);
    // Not for another chain, other arguments or another tool.
    assert_eq!(check(&gate, &chain(&gate, &["a", "c"]), &json!({"n": 1})).code(), Code::ApprovalRequired);
    assert_eq!(check(&gate, &chain(&gate, &["a"]), &json!({"n": 1})).code(), Code::ApprovalRequired);
    assert_eq!(check(&gate, &scope, &json!({"n": 2})).code(), Code::ApprovalRequired);
    assert_eq!(check_at(&gate, &scope, "read", &json!({"n": 1}), NOW).code(), Code::ApprovalRequired);
    // A forbid of the run comes before a grant, which stays.
    let narrowed = scope.narrowed(&forbid(&["forbid(principal, action, resource);"]), &gate.state(), NOW).unwrap();
    let denied = check(&gate, &narrowed, &json!({"n": 1}));
    assert_eq!((denied.code(), denied.policies()), (Code::PolicyForbidden, vec!["run#1"]));
    let allowed = check(&gate, &scope, &json!({"n": 1}));
    assert!(allowed.allowed());
    assert_eq!((allowed.grant(), allowed.denied_for()), (Some(ApprovalId(1)), None));
    assert_eq!(check(&gate, &scope, &json!({"n": 1})).code(), Code::ApprovalRequired);
}

#[test]
fn a_revoked_principal_stops_the_whole_chain() {
    let gate = gate(ALL);
    let (scope, alone) = (chain(&gate, &["a", "b", "c"]), chain(&gate, &["c"]));
    let target = |kind, name: &str| Target { kind, name: name.into() };
    let state = gate.state();
    for (id, other) in [("a", true), ("b", true), ("c", false)] {
        let uid = format!("Agent::\"{id}\"");
        state.control().revoke(&target(TargetKind::Principal, &uid), "lost", "root", NOW).unwrap();
        let decision = check(&gate, &scope, &json!({}));
        assert_eq!(decision.code(), Code::PrincipalRevoked);
        assert_eq!(decision.denied_for().map(ToString::to_string), other.then(|| uid.clone()));
        assert_eq!(decision.reason().matches(&uid).count(), 1, "{}", decision.reason());
        assert_eq!(check(&gate, &alone, &json!({})).allowed(), other);
        // A delegation to it is stopped as well.
        let outer = chain(&gate, &["d"]);
        let inner = outer.delegated(agent(id), &Narrow::default(), &state, NOW).unwrap();
        assert_eq!(delegate(&gate, &outer, &inner).code(), Code::PrincipalRevoked);
        state.control().restore(&target(TargetKind::Principal, &uid)).unwrap();
        assert!(check(&gate, &scope, &json!({})).allowed());
    }
}

// --- forbids of runs
// --------------------------------------------------------------------------------------------------

#[test]
fn forbids_of_a_run_never_widen() {
    let mut seed = Seeded(2);
    let (mut allowed, mut taken) = (0, 0);
    for round in 0..150_u32 {
        let text = format!("{}{ALL}", generate::policies(&mut seed, 4));
        let entities = generate::entities(&mut seed).to_string();
        let mode = if round % 4 == 0 { GateMode::Shadow } else { GateMode::Enforce };
        let on_error = if round % 3 == 0 { OnError::Cedar } else { OnError::Deny };
        let gate = gate_with(&text, |sources| {
            sources.entities = Some(Source { name: None, text: &entities });
            sources.tools = (0..4).map(|number| tool(&format!("tool{number}"))).collect();
            (sources.mode, sources.on_error) = (mode, on_error);
        });
        let user = |seed: &mut Seeded| EntityData::new(EntityUid::new("User", &format!("u{}", seed.below(6))));
        let spec = ScopeSpec {
            principal: user(&mut seed),
            session: "s".to_owned(),
            on_behalf_of: None,
            narrow: Narrow::default(),
        };
        let mut outer = Scope::new(spec, &gate.state(), NOW).unwrap();
        if let Ok(inner) = outer.delegated(user(&mut seed), &Narrow::default(), &gate.state(), NOW) {
            outer = inner;
        }
        let forbids: String =
            (0..3).map(|_| generate::policy(&mut seed).replacen("permit (", "forbid (", 1)).collect::<String>();
        // With `deny` most are refused as unguarded: then there is no run.
        let Ok(narrowed) = outer.narrowed(&forbid(&[&forbids]), &gate.state(), NOW) else { continue };
        for _ in 0..20 {
            let input = generate::request(&mut seed).context.get("input").map_or(json!({}), plain);
            let name = format!("tool{}", seed.below(4));
            let (with, without) =
                (check_at(&gate, &narrowed, &name, &input, NOW), check_at(&gate, &outer, &name, &input, NOW));
            assert!(without.allowed() || !with.allowed(), "{text}\n{forbids}\n{input}");
            if without.code() == Code::Allow && without.would_deny().is_none() {
                allowed += 1;
                let free = with.allowed() && with.would_deny().is_none();
                taken += u32::from(!free);
                // And nothing else changes than that a forbid of the run says so.
                assert_eq!(free, with.policies() == without.policies() && with.reason().is_empty());
            } else {
                assert_eq!(with.code().is_budget(), without.code().is_budget());
                assert!(!(without.would_deny().is_some() && with.allowed() && with.would_deny().is_none()));
            }
        }
    }
    assert!(allowed > 100 && taken > 20 && taken < allowed, "{taken} of {allowed}");
}

#[test]
fn an_argument_that_a_forbid_of_the_run_cannot_read_denies_in_shadow_mode_too() {
    let unreadable = r"forbid(principal, action, resource) when { context.input has n && context.input.n > 1 };";
    for text in ["forbid(principal, action, resource);", "permit(principal is User, action, resource);", ALL] {
        let gate = gate_with(text, |sources| sources.mode = GateMode::Shadow);
        for tools in [None, Some(vec!["read".to_owned()])] {
            let scope = run(&gate, "a", Narrow { tools, ..forbid(&[unreadable]) });
            let decision = check(&gate, &scope, &json!({"n": 1e300}));
            assert_eq!(decision.code(), Code::InputUnrepresentable, "{text}");
            assert_eq!((decision.policies(), decision.would_deny()), (vec!["run#1"], None));
            assert!(decision.reason().contains("came with this run"), "{}", decision.reason());
        }
    }
    // The same for an outer principal of a chain.
    let text = r#"permit(principal is User, action, resource);
        forbid(principal == Agent::"a", action, resource) when { context.input has n && context.input.n > 1 };"#;
    let gate = gate_with(text, |sources| sources.mode = GateMode::Shadow);
    let decision = check(&gate, &chain(&gate, &["a", "b"]), &json!({"n": 1e300}));
    assert_eq!(decision.code(), Code::InputUnrepresentable);
    assert_eq!(decision.denied_for().unwrap().to_string(), "Agent::\"a\"");
}

#[test]
fn a_forbid_of_the_run_is_for_every_principal_and_in_every_run_inside() {
    let gate = gate(ALL);
    let scope = run(
        &gate,
        "a",
        forbid(&[r#"@id("not-a") @reason("Not for a.") forbid(principal == Agent::"a", action, resource);"#]),
    );
    let inner = scope.narrowed(&Narrow::default(), &gate.state(), NOW).unwrap();
    let delegated = inner.delegated(agent("b"), &Narrow::default(), &gate.state(), NOW).unwrap();
    for (scope, denied_for) in [(&scope, None), (&inner, None), (&delegated, Some("Agent::\"a\""))] {
        let decision = check(&gate, scope, &json!({}));
        assert_eq!((decision.code(), decision.policies()), (Code::PolicyForbidden, vec!["not-a"]));
        assert_eq!(decision.denied_for().map(ToString::to_string).as_deref(), denied_for);
        assert!(decision.reason().starts_with("Not for a."));
    }
    // A forbid of a delegation itself.
    let scope = run(&gate, "a", forbid(&[r#"forbid(principal, action == Action::"delegate", resource);"#]));
    let inner = scope.delegated(agent("b"), &Narrow::default(), &gate.state(), NOW).unwrap();
    assert_eq!(delegate(&gate, &scope, &inner).code(), Code::PolicyForbidden);
}

#[test]
fn a_forbid_of_the_run_that_errs_denies_unless_cedar_is_asked_for() {
    let text = r"forbid(principal, action, resource) when { context.input has n && context.input.n > 1 };";
    for (on_error, code) in [(OnError::Deny, Code::PolicyError), (OnError::Cedar, Code::Allow)] {
        let gate = gate_with(ALL, |sources| sources.on_error = on_error);
        let decision = check(&gate, &run(&gate, "a", forbid(&[text])), &json!({"n": "x"}));
        assert_eq!(decision.code(), code);
        if code == Code::PolicyError {
            let errors = decision.errors();
            assert_eq!((errors.len(), errors[0].0), (1, "run#1"));
            assert!(!errors[0].1.is_empty());
        }
    }
}

#[test]
fn a_forbid_of_the_run_in_shadow_mode_would_deny() {
    let gate = gate_with(ALL, |sources| sources.mode = GateMode::Shadow);
    let decision = check(&gate, &run(&gate, "a", forbid(&["forbid(principal, action, resource);"])), &json!({}));
    assert!(decision.allowed());
    assert_eq!(decision.would_deny(), Some(Code::PolicyForbidden));
    assert_eq!(decision.would_deny_policies(), ["run#1"]);
}

#[test]
fn texts_of_a_run_have_names_and_anything_but_forbids_is_refused_with_its_place() {
    let gate = gate(ALL);
    let both = run(
        &gate,
        "a",
        forbid(&["forbid(principal is User, action, resource);", "forbid(principal, action, resource);"]),
    );
    assert_eq!(check(&gate, &both, &json!({})).policies(), ["run2#1"]);
    let error = |texts: &[&str]| {
        let spec =
            ScopeSpec { principal: agent("a"), session: "s".to_owned(), on_behalf_of: None, narrow: forbid(texts) };
        let error = Scope::new(spec, &gate.state(), NOW).unwrap_err();
        (error.first().code, error.to_string())
    };
    for (text, code, part) in [
        ("\n  permit(principal, action, resource);", "scope.forbid", "run:2:3"),
        ("@mode(\"shadow\") forbid(principal, action, resource);", "scope.forbid", "@mode"),
        ("@approval(\"x\") forbid(principal, action, resource);", "scope.forbid", "@approval"),
        ("forbid(principal == ?principal, action, resource);", "scope.forbid", "template"),
        ("", "scope.forbid", "hold no policy"),
        ("forbid(principal, action, resource", "policy.syntax", "run:1"),
        ("forbid(principal, action, resource) when { context.input.to == \"x\" };", "policy.unguarded_forbid", "run:1"),
        ("forbid(principal, action, resource) when { principal.level > 1 };", "policy.unguarded_forbid", "run:1"),
    ] {
        let (found, message) = error(&[text]);
        assert_eq!(found, code, "{message}");
        assert!(message.contains(part), "{message}");
    }
    let (code, _) = error(&[
        "@id(\"x\") forbid(principal is User, action, resource); @id(\"x\") forbid(principal, action, resource);",
    ]);
    assert_eq!(code, "policy.duplicate_id");
    let long = format!("// {}\nforbid(principal, action, resource);", "x".repeat(64 << 10));
    assert_eq!(error(&[&long]).0, "scope.forbid");
    let mut scope = run(&gate, "a", Narrow::default());
    let one = forbid(&["forbid(principal is User, action, resource);"]);
    for _ in 0..8 {
        scope = scope.narrowed(&one, &gate.state(), NOW).unwrap();
    }
    assert_eq!(scope.narrowed(&one, &gate.state(), NOW).unwrap_err().first().code, "scope.forbid");
}

/// A schema with as many tools as a large agent has.
fn schema(tools: usize) -> String {
    let mut text = "entity Agent = { level: Long, name?: String };\nentity Mcp;\n".to_owned();
    for number in 0..tools {
        let _ = writeln!(
            text,
            "action tool{number} appliesTo {{ principal: [Agent], resource: [Mcp], context: {{ \
             input: {{ to: String, amount: Long, note?: String, items: Set<{{ name: String, count: Long }}> }}, \
             session: {{ id: String, labels: Set<String> }}, now: datetime }} }};"
        );
    }
    text
}

#[test]
fn a_schema_says_what_a_forbid_of_the_run_need_not_ask_for() {
    let text = schema(2);
    let gate = gate_with(ALL, |sources| {
        sources.schema = Some(Source { name: Some("s.cedarschema"), text: &text });
        sources.tools = vec![tool("tool0"), tool("tool1")];
    });
    let spec = |texts: &[&str]| {
        let mut principal = agent("a");
        principal.attrs.push(("level".into(), Val::Long(1)));
        ScopeSpec { principal, session: "s".to_owned(), on_behalf_of: None, narrow: forbid(texts) }
    };
    let to = r#"forbid(principal, action, resource) when { context.input.to != "bob" || principal.level > 2 };"#;
    let scope = Scope::new(spec(&[to]), &gate.state(), NOW).unwrap();
    assert!(check_at(&gate, &scope, "tool0", &json!({"to": "bob"}), NOW).allowed());
    assert_eq!(check_at(&gate, &scope, "tool1", &json!({"to": "eve"}), NOW).code(), Code::PolicyForbidden);
    // What is not there all the same denies.
    assert_eq!(check_at(&gate, &scope, "tool1", &json!({}), NOW).code(), Code::PolicyError);
    for (text, part) in [
        ("forbid(principal, action, resource) when { context.input.note == \"x\" };", "run:1"),
        ("forbid(principal, action, resource) when { context.input.nothing == \"x\" };", "run:1"),
        ("forbid(principal, action, resource) when { context.input.to > 1 };", "run:1"),
    ] {
        let message = Scope::new(spec(&[text]), &gate.state(), NOW).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
#[ignore = "prints how long it takes"]
fn how_long_a_run_with_forbids_takes_to_begin() {
    let (text, plain) = (schema(50), gate(ALL));
    let with = gate_with(ALL, |sources| sources.schema = Some(Source { name: None, text: &text }));
    let own = r#"forbid(principal, action, resource) when { context.input has to && context.input.to != "bob" };"#;
    for (what, gate) in [("no schema", &plain), ("50 tools", &with)] {
        let begun = Instant::now();
        for _ in 0..20 {
            drop(run(gate, "a", forbid(&[own])));
        }
        println!("{what}: {:?} for each run", begun.elapsed() / 20);
    }
}

// --- what the caller prepares, and time
// -------------------------------------------------------------------------------

#[test]
fn a_prepared_action_answers_as_a_check_does_whatever_is_loaded() {
    let texts = [
        ALL.to_owned(),
        r#"permit(principal, action == Action::"send", resource);"#.to_owned(),
        "forbid(principal, action, resource);".to_owned(),
    ];
    let gate = gate(&texts[0]);
    let names = ["send", "read", "late", "later", "never"];
    let prepared: Vec<Prepared> = names.iter().map(|name| Prepared::new(name)).collect();
    let mut seed = Seeded(3);
    let scope = run(&gate, "a", Narrow::default());
    for round in 0..200_usize {
        match seed.below(6) {
            0 => {
                let sources = GateSources {
                    policies: vec![Source { name: Some("p.cedar"), text: &texts[seed.below(3) as usize] }],
                    // In another order, so that numbers mean other tools.
                    tools: if seed.below(2) == 0 {
                        vec![tool("read"), tool("send")]
                    } else {
                        vec![tool("send"), tool("read")]
                    },
                    ..GateSources::default()
                };
                gate.reload(&sources).unwrap();
            }
            1 if round > 20 => drop(gate.register(&[tool("late")])),
            2 if round > 60 => drop(gate.register(&[tool("later")])),
            3 if round > 90 => {
                let resource = Arc::new(EntityUid::new("Mcp", &format!("m{}", seed.below(3))));
                gate.register(&[ToolSpec { resource, ..tool("late") }]).unwrap();
            }
            4 => gate.withhold((seed.below(3) == 0).then_some((names[seed.below(5) as usize], "changed"))),
            _ => {}
        }
        let place = seed.below(5) as usize;
        let [mut one, mut other] = [filled(&json!({"n": 1})), filled(&json!({"n": 1}))];
        let mut scratch = Scratch::new();
        let expected = gate.check(Some(&scope), names[place], &mut one, NOW, &mut scratch);
        let found =
            gate.check_prepared(Some(&scope), &prepared[place], &mut other, NOW, Links::default(), &mut scratch);
        assert_eq!(
            (found.code(), found.reason(), found.policies()),
            (expected.code(), expected.reason(), expected.policies())
        );
    }
}

#[test]
fn time_only_gets_shorter_and_is_over_to_the_millisecond() {
    let gate = gate(ALL);
    let until = |ms| Narrow { expires_ms: Some(NOW + ms), ..Narrow::default() };
    let outer = run(&gate, "a", until(100));
    for (narrow, ends) in [(Narrow::default(), 100), (until(1_000), 100), (until(5), 5), (until(-5), -5)] {
        let inner = outer.narrowed(&narrow, &gate.state(), NOW).unwrap();
        assert_eq!(inner.expires_ms(), NOW + ends);
        let code = |ms| check_at(&gate, &inner, "send", &json!({}), NOW + ms).code();
        assert_eq!((code(ends - 1), code(ends)), (Code::Allow, Code::PrincipalExpired));
        // Also where the tool is none.
        assert_eq!(check_at(&gate, &inner, "none", &json!({}), NOW + ends).code(), Code::PrincipalExpired);
    }
}
