//! Tools that runtimes describe: whose word counts, what another description replaces, what is withheld, and whether a
//! run could call a tool at all. One property is held over generated policies: what is said to be out of reach is never
//! allowed.

#![expect(clippy::unwrap_used, reason = "tests")]

mod generate;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use generate::{Seeded, Source as _, filled, plain};
use serde_json::{Value as Json, json};
use tollkeeper_core::arguments::ArgumentsError;
use tollkeeper_core::audit::log::{Durability, Log, LogOptions};
use tollkeeper_core::budget::unit::{Amounts, Unit};
use tollkeeper_core::gate::Gate;
use tollkeeper_core::gate::check::Scratch;
use tollkeeper_core::gate::code::Code;
use tollkeeper_core::gate::control::{Target, TargetKind};
use tollkeeper_core::gate::decision::Decision;
use tollkeeper_core::gate::evidence::{Audit, Links, OnFull};
use tollkeeper_core::gate::scope::{Narrow, Scope, ScopeSpec};
use tollkeeper_core::gate::state::{GateMode, GateSources, OnError, UnguardedForbid};
use tollkeeper_core::gate::tools::{Prepared, ToolSpec};
use tollkeeper_core::policy::entities::EntityData;
use tollkeeper_core::policy::parse::Source;
use tollkeeper_core::uid::EntityUid;

const NOW: i64 = 1_767_225_600_000;
const ALL: &str = "permit(principal, action, resource);";
const NUMBER: &str = r#"{"properties": {"n": {"type": "integer"}}}"#;
const TEXT: &str = r#"{"properties": {"n": {"type": "string"}}}"#;

fn tool(name: &str) -> ToolSpec {
    on(name, "m0")
}

fn on(name: &str, server: &str) -> ToolSpec {
    ToolSpec {
        name: name.to_owned(),
        resource: Arc::new(EntityUid::new("Mcp", server)),
        schema: None,
        paths: Vec::new(),
        cost: None,
        reads: Vec::new(),
    }
}

fn with_schema(name: &str, schema: &str) -> ToolSpec {
    ToolSpec { schema: Some(schema.to_owned()), ..tool(name) }
}

fn sources(text: &str, tools: Vec<ToolSpec>) -> GateSources<'_> {
    let policies = vec![Source { name: Some("p.cedar"), text }];
    GateSources { policies, tools, unguarded_forbid: UnguardedForbid::Warn, ..GateSources::default() }
}

fn gate(text: &str, tools: Vec<ToolSpec>) -> Gate {
    Gate::open(&sources(text, tools), 7).unwrap()
}

fn user(id: &str) -> EntityData {
    EntityData::new(EntityUid::new("User", id))
}

fn run(gate: &Gate, id: &str, narrow: Narrow) -> Scope {
    let spec = ScopeSpec { principal: user(id), session: "s".to_owned(), on_behalf_of: None, narrow };
    Scope::new(spec, &gate.state(), NOW).unwrap()
}

fn check(gate: &Gate, scope: &Scope, tool: &str, json: &Json) -> Decision {
    gate.check(Some(scope), tool, &mut filled(json), NOW, &mut Scratch::new())
}

// --- whose word counts
// ------------------------------------------------------------------------------------------------

#[test]
fn what_is_known_changes_nothing_and_another_description_replaces_it() {
    let gate = gate(r#"permit(principal, action, resource == Mcp::"m0");"#, Vec::new());
    let scope = run(&gate, "a", Narrow::default());
    let prepared = Prepared::new("late");
    let ask = |n: Json| {
        let mut arguments = filled(&json!({"n": n}));
        let mut scratch = Scratch::new();
        gate.check_prepared(Some(&scope), &prepared, &mut arguments, NOW, Links::default(), &mut scratch).code()
    };
    assert_eq!(ask(json!(1)), Code::InputUnknownTool);
    gate.register(&[with_schema("late", NUMBER), tool("other")]).unwrap();
    let generation = gate.state().generation();
    assert_eq!((ask(json!(1)), ask(json!("x"))), (Code::Allow, Code::InputUnrepresentable));
    // Nobody has to look a tool up anew for what is known; white space is none of the definition.
    gate.register(&[with_schema("late", &NUMBER.replace(' ', "\n")), with_schema("late", NUMBER)]).unwrap();
    assert_eq!(gate.state().generation(), generation);
    gate.register(&[with_schema("late", TEXT)]).unwrap();
    assert_eq!((ask(json!(1)), ask(json!("x"))), (Code::InputUnrepresentable, Code::Allow));
    gate.register(&[on("late", "m1")]).unwrap();
    assert_eq!(ask(json!(1)), Code::PolicyNoPermit);
    gate.reload(&sources(ALL, Vec::new())).unwrap();
    assert_eq!((ask(json!(1)), gate.state().registry().tools().len()), (Code::Allow, 2), "a reload keeps the last");
}

#[test]
fn a_file_says_everything_of_its_tools_but_for_a_schema_it_has_not() {
    let own =
        || vec![ToolSpec { cost: Some(Amounts::of(Unit::Requests, 2)), ..tool("send") }, with_schema("read", TEXT)];
    let gate = gate(r#"permit(principal, action, resource == Mcp::"m0");"#, own());
    let scope = run(&gate, "a", Narrow::default());
    let pins = || ["send", "read"].map(|name| *gate.state().registry().get(name).unwrap().pin());
    let [send, read] = pins();
    let code = |tool, n: Json| check(&gate, &scope, tool, &json!({"n": n})).code();
    gate.register(&[on("send", "m1"), on("read", "m1")]).unwrap();
    assert_eq!(pins(), [send, read], "without a schema there is nothing to take over");
    assert_eq!(code("read", json!("x")), Code::Allow);
    // What nothing can be read off does not matter where the file has a schema.
    gate.register(&[ToolSpec { schema: Some(NUMBER.to_owned()), ..on("send", "m1") }, with_schema("read", "{")])
        .unwrap();
    assert_ne!(pins()[0], send);
    assert_eq!(pins()[1], read);
    assert_eq!(gate.state().registry().get("send").unwrap().resource().to_string(), "Mcp::\"m0\"");
    // It costs what the file says, so without a budget it is not free.
    assert_eq!(
        (code("send", json!(1)), code("send", json!("x"))),
        (Code::BudgetUnavailable, Code::InputUnrepresentable)
    );
    // A runtime that says no more of it takes nothing back, a reload neither, and a file that has a schema counts.
    gate.register(&[tool("other"), on("send", "m2")]).unwrap();
    assert_eq!(code("send", json!("x")), Code::InputUnrepresentable);
    gate.reload(&sources(ALL, own())).unwrap();
    assert_eq!(code("send", json!("x")), Code::InputUnrepresentable);
    gate.reload(&sources(ALL, vec![with_schema("send", TEXT)])).unwrap();
    assert_eq!((code("send", json!("x")), code("send", json!(1))), (Code::Allow, Code::InputUnrepresentable));
    // What a file does not name any more is what the runtime says.
    gate.reload(&sources(ALL, Vec::new())).unwrap();
    assert_eq!(gate.state().registry().get("send").unwrap().resource().to_string(), "Mcp::\"m1\"");
    // A file may name what a runtime has described before.
    gate.reload(&sources(ALL, vec![tool("other")])).unwrap();
}

#[test]
fn a_description_that_cannot_be_used_registers_nothing() {
    let with_path = ToolSpec { paths: vec!["file".to_owned()], ..tool("send") };
    let gate = gate(ALL, vec![with_path, tool("read")]);
    gate.register(&[tool("late")]).unwrap();
    let generation = gate.state().generation();
    let refused = |specs: &[ToolSpec]| {
        let errors = gate.register(&[&[tool("first")], specs].concat()).unwrap_err();
        assert_eq!((gate.state().generation(), gate.state().registry().tools().len()), (generation, 3));
        (errors.first().code, errors.first().message.clone())
    };
    for (specs, says) in [
        (vec![tool("SEND")], "the same name but for case"),
        (vec![tool("Late")], "the same name but for case"),
        (vec![tool("Call_Tool")], "is reserved"),
        (vec![tool("twice"), on("twice", "m1")], "described twice, in two ways"),
        (vec![with_schema("read", TEXT), with_schema("read", NUMBER)], "described twice, in two ways"),
    ] {
        let (code, message) = refused(&specs);
        assert!(code == "tool.name" && message.contains(says), "{code} {message}");
    }
    assert_eq!(refused(&[with_schema("read", "{")]).0, "tool.schema", "the file has none, so this one would count");
    assert_eq!(refused(&[with_schema("new", "{")]).0, "tool.schema");
    assert_eq!(refused(&[with_schema("send", NUMBER)]).0, "tool.paths");
}

fn base64_of(pin: &[u8; 32]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(pin)
}

#[test]
fn every_definition_that_decided_is_kept() {
    let folder: PathBuf = std::env::temp_dir().join(format!("tollkeeper-gate-tools-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    let options = LogOptions { ring_bytes: 512 << 10, ..LogOptions::new("example.com/gate", 7) };
    let log = Arc::new(Log::open(&folder, options).unwrap());
    let audit = Arc::new(Audit { log: Arc::clone(&log), on_full: OnFull::Deny, durability: Durability::Group });
    let loaded =
        |server: &str| GateSources { audit: Some(Arc::clone(&audit)), ..sources(ALL, vec![on("own", server)]) };
    let gate = Gate::open(&loaded("m0"), 7).unwrap();
    let mut pins = Vec::new();
    let mut note = |names: &[&'static str]| {
        let state = gate.state();
        pins.extend(names.iter().map(|name| (*name, base64_of(state.registry().get(name).unwrap().pin()))));
    };
    gate.register(&[tool("late"), with_schema("own", NUMBER)]).unwrap();
    note(&["late", "own"]);
    gate.register(&[with_schema("late", TEXT), with_schema("own", TEXT)]).unwrap();
    note(&["late", "own"]);
    gate.reload(&loaded("m1")).unwrap();
    note(&["own"]);
    log.close().unwrap();
    for (name, pin) in &pins {
        let kept = std::fs::read(folder.join("bundle").join(format!("{pin}.json"))).unwrap();
        assert_eq!(serde_json::from_slice::<Json>(&kept).unwrap()["name"], *name);
    }
    pins.dedup();
    assert_eq!(pins.len(), 5, "each is another one");
    let _ = std::fs::remove_dir_all(&folder);
}

// --- what is withheld
// -------------------------------------------------------------------------------------------------

#[test]
fn what_is_withheld_is_refused_whatever_happens_to_the_rest() {
    let gate = gate(ALL, vec![tool("send"), tool("read")]);
    let scope = run(&gate, "a", Narrow::default());
    let code = |tool| check(&gate, &scope, tool, &json!({})).code();
    gate.withhold([("send", "it was changed"), ("nothing", "")]);
    let denied = check(&gate, &scope, "send", &json!({}));
    assert_eq!((denied.code(), denied.reason().as_str()), (Code::ToolChanged, "it was changed"));
    assert_eq!((code("nothing"), code("read")), (Code::ToolChanged, Code::Allow));
    assert_eq!(check(&gate, &scope, "nothing", &json!({})).reason(), Code::ToolChanged.meaning());
    // Before anything is known of the arguments.
    let refusal = Gate::refusal_of(&ArgumentsError::TooLarge { limit: 5 });
    let large = gate.refuse_call(Some(&scope), "send", refusal, NOW, Links::default(), &mut Scratch::new());
    assert_eq!(large.code(), Code::ToolChanged);
    gate.register(&[on("send", "m1"), tool("late")]).unwrap();
    gate.reload(&GateSources { mode: GateMode::Shadow, ..sources(ALL, vec![tool("send")]) }).unwrap();
    assert_eq!((code("send"), code("nothing")), (Code::ToolChanged, Code::ToolChanged), "in shadow mode too");
    assert_eq!(gate.counters().read().codes[Code::ToolChanged as usize], 6);
    // Who was stopped is told that.
    let target = Target::new(TargetKind::Principal, "User::\"a\"");
    gate.state().control().revoke(&target, "", "ops", NOW).unwrap();
    assert_eq!(code("send"), Code::PrincipalRevoked);
    gate.state().control().restore(&target).unwrap();
    gate.withhold([("late", &*"é".repeat(5_000))]);
    assert_eq!((code("send"), code("nothing")), (Code::Allow, Code::InputUnknownTool));
    assert_eq!(check(&gate, &scope, "late", &json!({})).reason(), "é".repeat(2_048));
    let generation = gate.state().generation();
    gate.withhold([("late", &*"é".repeat(5_000))]);
    assert_eq!(gate.state().generation(), generation, "the same again");
    gate.withhold([]);
    assert_eq!(code("late"), Code::Allow);
}

// --- what could be called
// ---------------------------------------------------------------------------------------------

#[test]
fn heads_and_bare_forbids_put_tools_out_of_reach() {
    let text = r#"
        permit(principal == User::"a", action == Action::"one", resource);
        permit(principal, action, resource == Mcp::"m1");
        permit(principal, action == Action::"maybe", resource) when { context.input.n > 1 };
        permit(principal, action in Action::"call_tool", resource == Mcp::"m2");
        @mode("shadow") permit(principal, action == Action::"shadow", resource);
        @approval("ops") permit(principal, action == Action::"approved", resource);
        permit(principal, action == Action::"never", resource);
        forbid(principal, action == Action::"never", resource);
        permit(principal, action == Action::"sometimes", resource);
        forbid(principal, action == Action::"sometimes", resource) when { true };
        @mode("shadow") forbid(principal, action == Action::"one", resource);
    "#;
    let names = ["one", "maybe", "shadow", "approved", "never", "sometimes"];
    let mut tools: Vec<ToolSpec> = names.iter().map(|name| tool(name)).collect();
    tools.extend([on("open", "m1"), on("grouped", "m2")]);
    let gate = gate(text, tools.clone());
    let reach = |gate: &Gate, scope: &Scope| -> Vec<String> {
        let state = gate.state();
        let names = state.registry().tools().iter().map(|tool| tool.name().to_owned());
        names.filter(|name| gate.may_call(Some(scope), name)).collect()
    };
    let one = run(&gate, "a", Narrow::default());
    assert_eq!(reach(&gate, &one), ["one", "maybe", "approved", "sometimes", "open", "grouped"]);
    let other = run(&gate, "b", Narrow::default());
    assert_eq!(reach(&gate, &other), ["maybe", "approved", "sometimes", "open", "grouped"]);
    // Everybody of a chain has to be allowed.
    let chain = other.delegated(user("a"), &Narrow::default(), &gate.state(), NOW).unwrap();
    assert_eq!(reach(&gate, &chain), reach(&gate, &other));
    let narrow = Narrow { tools: Some(vec!["one".to_owned(), "maybe".to_owned()]), ..Narrow::default() };
    assert_eq!(reach(&gate, &run(&gate, "a", narrow)), ["one", "maybe"]);
    let forbid = r#"forbid(principal, action, resource == Mcp::"m0"); forbid(principal, action, resource == Mcp::"m1") when { context has x };"#;
    let narrow = Narrow { forbid: vec![forbid.to_owned()], ..Narrow::default() };
    assert_eq!(reach(&gate, &run(&gate, "a", narrow)), ["open", "grouped"]);
    gate.withhold([("open", "changed")]);
    assert!(!gate.may_call(Some(&one), "open") && gate.may_call(Some(&one), "grouped"));
    assert!(!gate.may_call(Some(&one), "nothing") && !gate.may_call(None, "grouped"));
    // In shadow mode policies deny nothing.
    gate.reload(&GateSources { mode: GateMode::Shadow, ..sources(text, tools.clone()) }).unwrap();
    assert_eq!(reach(&gate, &other).len(), tools.len() - 1);
}

/// A gate over generated policies, with and without shadow mode and marks, and a scope of one or two.
fn generated(seed: &mut Seeded) -> (String, Gate, Scope) {
    let mut text = generate::policies(seed, 4);
    for _ in 0..seed.below(3) {
        let policy = generate::policy(seed);
        // Without its conditions, and now and then the other effect or in shadow.
        let head =
            policy.split(") when").next().unwrap().split(") unless").next().unwrap().trim_end().trim_end_matches(';');
        let head = if head.ends_with(')') { head.to_owned() } else { format!("{head})") };
        let head = if seed.below(2) == 0 { head.replacen("permit", "forbid", 1) } else { head };
        let mark = if seed.below(4) == 0 { "@mode(\"shadow\") " } else { "" };
        let _ = writeln!(text, "{mark}{head};");
    }
    let entities = generate::entities(seed).to_string();
    let sources = GateSources {
        entities: Some(Source { name: None, text: &entities }),
        mode: if seed.below(6) == 0 { GateMode::Shadow } else { GateMode::Enforce },
        on_error: if seed.below(2) == 0 { OnError::Cedar } else { OnError::Deny },
        ..sources(&text, (0..5).map(|number| on(&format!("tool{number}"), &format!("m{}", number % 3))).collect())
    };
    let gate = Gate::open(&sources, 7).unwrap();
    let mut narrow = Narrow::default();
    if seed.below(3) == 0 {
        narrow.tools = Some((0..seed.below(4)).map(|_| format!("tool{}", seed.below(5))).collect());
    }
    if seed.below(3) == 0 {
        narrow.forbid = vec![format!("forbid(principal, action == Action::\"tool{}\", resource);", seed.below(5))];
    }
    let mut scope = run(&gate, &format!("u{}", seed.below(6)), narrow);
    if seed.below(3) == 0 {
        let to = user(&format!("u{}", seed.below(6)));
        scope = scope.delegated(to, &Narrow::default(), &gate.state(), NOW).unwrap_or(scope);
    }
    (text, gate, scope)
}

#[test]
fn what_is_out_of_reach_is_never_allowed() {
    let mut seed = Seeded(41);
    let (mut out_of_reach, mut allowed, mut reachable) = (0, 0, 0);
    for _ in 0..300 {
        let (text, gate, scope) = generated(&mut seed);
        for number in 0..5 {
            let tool = format!("tool{number}");
            let may = gate.may_call(Some(&scope), &tool);
            out_of_reach += u32::from(!may);
            reachable += u32::from(may);
            for _ in 0..12 {
                let input = generate::request(&mut seed).context.get("input").map_or(json!({}), plain);
                let decision = check(&gate, &scope, &tool, &input);
                assert!(may || !decision.allowed(), "{tool} {input}\n{text}");
                allowed += u32::from(decision.allowed());
            }
        }
    }
    assert!(out_of_reach > 200 && reachable > 200 && allowed > 1_000, "{out_of_reach} {reachable} {allowed}");
}
