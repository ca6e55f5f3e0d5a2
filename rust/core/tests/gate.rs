//! The gate as its users see it: every code raised, both argument attacks refused, shadow, reload, narrowing; and two
//! properties held over generated policies: it never allows what the reference denies, and a forbid that the guard
//! analysis accepts never errs for something missing.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests")]

mod generate;

use std::str::FromStr;
use std::sync::Arc;

use cedar_policy as reference;
use generate::{Seeded, Source as _, filled};
use serde_json::{Value as Json, json};
use tollkeeper_core::arguments::{Argument, ArgumentRef, Arguments, ArgumentsError, decimal_from_float};
use tollkeeper_core::budget::clock::FakeClock;
use tollkeeper_core::budget::ledger::Ledger;
use tollkeeper_core::budget::price::PriceTable;
use tollkeeper_core::budget::tree::{Admission, BudgetSpec, LedgerSpec, LimitSpec};
use tollkeeper_core::budget::unit::{Amounts, Unit};
use tollkeeper_core::budget::window::Window;
use tollkeeper_core::gate::Gate;
use tollkeeper_core::gate::check::Scratch;
use tollkeeper_core::gate::code::Code;
use tollkeeper_core::gate::control::{ApprovalId, Target, TargetKind};
use tollkeeper_core::gate::decision::Decision;
use tollkeeper_core::gate::evidence::Links;
use tollkeeper_core::gate::model_call::{ModelCall, ModelRequest, ModelUsage};
use tollkeeper_core::gate::scope::{Narrow, Scope, ScopeSpec};
use tollkeeper_core::gate::state::{GateMode, GateSources, OnError, UnguardedForbid};
use tollkeeper_core::gate::tools::ToolSpec;
use tollkeeper_core::policy::entities::{Entities, EntityData, context_from_json};
use tollkeeper_core::policy::eval::{Fault, Request};
use tollkeeper_core::policy::guards;
use tollkeeper_core::policy::parse::{Source, on_parser_thread};
use tollkeeper_core::policy::set::{self, LoadOptions, PolicySet};
use tollkeeper_core::uid::EntityUid;
use tollkeeper_core::value::Val;

const NOW: i64 = 1_767_225_600_000;

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

fn sources(text: &str) -> GateSources<'_> {
    GateSources {
        policies: vec![Source { name: Some("p.cedar"), text }],
        tools: vec![tool("send"), tool("read")],
        ..GateSources::default()
    }
}

fn gate(text: &str) -> Gate {
    Gate::open(&sources(text), 7).unwrap()
}

fn spec(id: &str) -> ScopeSpec {
    ScopeSpec {
        principal: EntityData::new(EntityUid::new("Agent", id)),
        session: "s-1".to_owned(),
        on_behalf_of: None,
        narrow: Narrow::default(),
    }
}

fn narrowed_to(narrow: Narrow) -> ScopeSpec {
    ScopeSpec { narrow, ..spec("a") }
}

fn narrow_of(tools: Option<&[String]>, labels: &[String], budget: Option<&str>) -> Narrow {
    Narrow {
        tools: tools.map(<[String]>::to_vec),
        labels: labels.to_vec(),
        budget: budget.map(str::to_owned),
        ..Narrow::default()
    }
}

fn scope(gate: &Gate) -> Scope {
    Scope::new(spec("a"), &gate.state(), NOW).unwrap()
}

fn check(gate: &Gate, scope: &Scope, tool: &str, json: &Json) -> Decision {
    gate.check(Some(scope), tool, &mut filled(json), NOW, &mut Scratch::new())
}

fn ask(text: &str, json: &Json) -> Decision {
    let gate = gate(text);
    check(&gate, &scope(&gate), "send", json)
}

const PERMIT: &str = "@id(\"all\") permit(principal, action, resource);";

fn too_large(gate: &Gate, run: &Scope) -> Decision {
    let refusal = Gate::refusal_of(&ArgumentsError::TooLarge { limit: 5 });
    gate.refuse_call(Some(run), "send", refusal, NOW, Links::default(), &mut Scratch::new())
}

/// Code and sentence of each of those, and of [`stopped`], [`answered`] and [`withheld`].
const EXPECTED: [(&str, &str); 14] = [
    ("allow", ""),
    ("policy.forbidden", "write to the team instead"),
    (
        "policy.no_permit",
        "no policy permits tool `send` with these arguments; use another tool or other arguments, or ask for a permit",
    ),
    ("policy.error", "tool `send` is denied because policy `p.cedar#2` could not be evaluated"),
    (
        "input.unrepresentable",
        "tool `send` is denied because policy `p.cedar#2` reads an argument that Cedar has no value for",
    ),
    (
        "input.unknown_tool",
        "tool `sned` is not registered; to register it, add to tollkeeper.toml:\n[tools.sned]\nresource = 'Mcp::\"SERVER\"'",
    ),
    (
        "scope.missing",
        "the check ran outside a run, or in one that is over; start one with gate.run(...), or pass scope=",
    ),
    (
        "approval.required",
        "tool `send` with these arguments needs an approval of `ops`, says policy `p.cedar#1`; ask for it and try again",
    ),
    ("input.too_large", "arguments take more than 5 bytes"),
    (
        "principal.revoked",
        "an operator has revoked principal `Agent::\"a\"` (generation 1): it wrote to strangers; stop, and tell the user",
    ),
    ("principal.expired", "the time of this run is over; start another run"),
    ("approval.rejected", "an approver has rejected tool `send` with these arguments; do something else"),
    (
        "approval.expired",
        "the approval of tool `send` with these arguments was not answered or not used in time; ask again",
    ),
    ("tool.changed", "its description is another one since Tuesday"),
];

/// One check for each code that policies and arguments make.
fn asked(open: &Gate, run: &Scope) -> Vec<Decision> {
    vec![
        check(open, run, "send", &json!({})),
        ask(
            &format!(
                "{PERMIT} @id(\"no\") @reason(\"write to the team instead\") forbid(principal, action, resource);"
            ),
            &json!({}),
        ),
        ask("", &json!({})),
        ask(
            &format!(
                "{PERMIT} forbid(principal, action, resource) when {{ context.input has n && context.input.n > 3 }};"
            ),
            &json!({"n": "x"}),
        ),
        ask(
            &format!(
                "{PERMIT} forbid(principal, action, resource) when {{ context.input has n && context.input.n > 3 }};"
            ),
            &json!({"n": 1e300}),
        ),
        check(open, run, "sned", &json!({})),
        open.check(None, "send", &mut filled(&json!({})), NOW, &mut Scratch::new()),
        ask("@approval(\"ops\") permit(principal, action, resource);", &json!({})),
        too_large(open, run),
    ]
}

/// A check of a principal that was revoked, and one of a run whose time is over.
fn stopped() -> [Decision; 2] {
    let gate = gate(PERMIT);
    let target = Target::new(TargetKind::Principal, "Agent::\"a\"");
    let short = narrowed_to(Narrow { expires_ms: Some(NOW), ..Narrow::default() });
    let expired = check(&gate, &Scope::new(short, &gate.state(), NOW).unwrap(), "send", &json!({}));
    gate.state().control().revoke(&target, "it wrote to strangers", "ops", NOW).unwrap();
    [check(&gate, &scope(&gate), "send", &json!({})), expired]
}

/// A check that an approver has rejected, and one that nobody answered.
fn answered() -> [Decision; 2] {
    let gate = gate("@approval(\"ops\") permit(principal, action, resource);");
    let (run, state) = (scope(&gate), gate.state());
    [Some(false), None].map(|answer| {
        let arguments = json!({"answered": answer.is_some()});
        let digest = check(&gate, &run, "send", &arguments).binding().unwrap().digest;
        let id = ApprovalId(1 + u64::from(answer.is_some()));
        let expires_ms = if answer.is_some() { NOW + 60_000 } else { NOW };
        state.control().ask(id, &digest, expires_ms, NOW - 1).unwrap();
        if let Some(granted) = answer {
            state.control().answer(id, granted, NOW + 60_000, None, NOW).unwrap();
        }
        check(&gate, &run, "send", &arguments)
    })
}

/// A check of a tool whose definition nobody has accepted.
fn withheld() -> Decision {
    let gate = gate(PERMIT);
    gate.withhold([("send", "its description is another one since Tuesday")]);
    check(&gate, &scope(&gate), "send", &json!({}))
}

#[test]
fn every_code_is_raised() {
    let open = gate(PERMIT);
    let run = scope(&open);
    let mut raised = asked(&open, &run);
    raised.extend(stopped());
    raised.extend(answered());
    raised.push(withheld());
    for (decision, (slug, reason)) in raised.iter().zip(EXPECTED) {
        assert_eq!((decision.code().slug(), decision.reason().as_str()), (slug, reason));
        assert_eq!(decision.allowed(), slug == "allow");
    }
    assert_eq!(raised[0].policies(), ["all"]);
    assert_eq!(raised[1].policies(), ["no"]);
    assert_eq!(raised[3].policies(), ["p.cedar#2"]);
    assert_eq!(raised[7].approvals(), ["ops"]);
    assert_eq!(raised[3].errors().len(), 1);
    // Those of budgets and of the log have tests of their own.
    let codes = Code::ALL.into_iter().filter(|code| !code.is_budget() && *code != Code::AuditUnavailable);
    raised.extend([Code::GateForked, Code::GateClosed, Code::InternalPanic].map(|code| open.refuse(code, None)));
    for code in codes {
        assert!(raised.iter().any(|decision| decision.code() == code), "{code} is not raised");
        assert!(code.meaning().ends_with('.'));
    }
    assert!(!open.refuse(Code::Allow, None).allowed(), "a refusal never allows");
}

#[test]
fn decisions_are_numbered_and_named() {
    let gate = gate(
        "@id(\"p\") @obligation(\"log\") permit(principal, action in Action::\"call_tool\", resource == Mcp::\"m0\");",
    );
    let run = scope(&gate);
    let first = check(&gate, &run, "send", &json!({}));
    let second = check(&gate, &run, "read", &json!({}));
    assert_eq!((first.id().to_string(), second.id().number), ("0000000000000007-1".to_owned(), 2));
    assert!(first.allowed() && second.allowed());
    assert_eq!(first.obligations(), ["log"]);
}

/// Reference 7, first attack: a list where text was meant makes a `like` err.
#[test]
fn type_confusion_does_not_open_a_forbid() {
    let forbid =
        "forbid(principal, action, resource) when { context.input has path && context.input.path like \"*/.ssh/*\" };";
    let text = format!("{PERMIT} {forbid}");
    assert_eq!(ask(&text, &json!({"path": "/a/.ssh/id"})).code(), Code::PolicyForbidden);
    assert_eq!(ask(&text, &json!({"path": ["/a/.ssh/id"]})).code(), Code::PolicyError);
    assert!(ask(&text, &json!({"path": "/a"})).allowed());
    // Without the guard the policy does not even load, because leaving the path out would open it.
    let unguarded =
        format!("{PERMIT}\nforbid(principal, action, resource)\nwhen {{ context.input.path like \"*/.ssh/*\" }};");
    let errors = Gate::open(&sources(&unguarded), 0).unwrap_err();
    let shown = errors.first().to_string();
    assert!(shown.starts_with("p.cedar:3:8: forbid `p.cedar#2` reads `context.input.path`"), "{shown}");
    assert!(shown.contains("`context.input has path && ...`"), "{shown}");
    let warned =
        Gate::open(&GateSources { unguarded_forbid: UnguardedForbid::Warn, ..sources(&unguarded) }, 0).unwrap();
    assert!(warned.state().warnings()[0].contains("p.cedar:3:8"));
    assert_eq!(check(&warned, &scope(&warned), "send", &json!({})).code(), Code::PolicyError);
    // With a schema the list is refused for what it is.
    let mut with_schema = sources(&text);
    with_schema.tools[0].schema = Some(json!({"properties": {"path": {"type": "string"}}}).to_string());
    let gate = Gate::open(&with_schema, 0).unwrap();
    let denied = check(&gate, &scope(&gate), "send", &json!({"path": ["/a/.ssh/id"]}));
    assert_eq!(denied.code(), Code::InputUnrepresentable);
    assert_eq!(denied.reason(), "argument `path` has a type that the tool's schema does not allow");
}

/// Reference 7, second attack: escapes in arguments are ordinary records.
#[test]
fn escapes_in_arguments_are_plain_data() {
    let text = "permit(principal, action, resource) when { context.input.owner == principal };
        permit(principal, action, resource) when { context.input.ip.isLoopback() };";
    let attack = json!({
        "owner": {"__entity": {"type": "Agent", "id": "a"}},
        "ip": {"__extn": {"fn": "ip", "arg": "127.0.0.1"}},
    });
    assert_eq!(ask(text, &attack).code(), Code::PolicyNoPermit);
}

#[test]
fn on_error_cedar_skips_erring_forbids() {
    let text =
        format!("{PERMIT} forbid(principal, action, resource) when {{ context.input has n && context.input.n > 3 }};");
    let gate = Gate::open(&GateSources { on_error: OnError::Cedar, ..sources(&text) }, 0).unwrap();
    assert!(check(&gate, &scope(&gate), "send", &json!({"n": "x"})).allowed());
    assert!(!check(&gate, &scope(&gate), "send", &json!({"n": 4})).allowed());
}

#[test]
fn schemas_decide_what_numbers_are() {
    let text = "permit(principal, action, resource) when { context.input.rate.lessThan(decimal(\"2.0\")) && context.input.n == 5 };";
    let mut with_schema = sources(text);
    with_schema.tools[0].schema =
        Some(json!({"properties": {"rate": {"type": "number"}, "n": {"type": "integer"}}}).to_string());
    let gate = Gate::open(&with_schema, 0).unwrap();
    let run = scope(&gate);
    assert!(check(&gate, &run, "send", &json!({"rate": 1, "n": 5.0})).allowed());
    assert!(!check(&gate, &run, "send", &json!({"rate": 2, "n": 5})).allowed());
    // The other tool has no schema: there an integer stays one, and the comparison errs.
    assert_eq!(check(&gate, &run, "read", &json!({"rate": 1, "n": 5})).code(), Code::PolicyNoPermit);
}

#[test]
fn path_arguments_are_refused_before_policy() {
    let mut with_paths = sources(PERMIT);
    with_paths.tools[0].paths = vec!["file".to_owned()];
    let gate = Gate::open(&with_paths, 0).unwrap();
    let run = scope(&gate);
    assert!(check(&gate, &run, "send", &json!({"file": "/srv/x", "note": "../x"})).allowed());
    for file in [json!("/srv/../etc"), json!("~/x"), json!("a\0b"), json!(["ok", "e\u{301}"]), json!({"p": [".."]})] {
        let denied = check(&gate, &run, "send", &json!({ "file": file }));
        assert_eq!(denied.code(), Code::InputUnrepresentable, "{file}");
        assert!(denied.reason().starts_with("path argument `file"), "{}", denied.reason());
        assert!(!denied.reason().contains("etc"));
    }
}

#[test]
fn arguments_must_be_an_object() {
    let gate = gate(PERMIT);
    let run = scope(&gate);
    assert_eq!(check(&gate, &run, "send", &json!(["x"])).code(), Code::InputUnrepresentable);
    let empty = gate.check(Some(&run), "send", &mut Arguments::new(), NOW, &mut Scratch::new());
    assert_eq!(empty.code(), Code::InputUnrepresentable);
}

#[test]
fn shadow_flips_policy_and_approval_only() {
    let shadow = |text: &str, json: &Json| {
        let gate = Gate::open(&GateSources { mode: GateMode::Shadow, ..sources(text) }, 0).unwrap();
        check(&gate, &scope(&gate), "send", json)
    };
    let forbid = "@id(\"f\") forbid(principal, action, resource) when { context.input has n && context.input.n > 3 };";
    let text = format!("{PERMIT} {forbid}");
    let flipped = shadow(&text, &json!({"n": 4}));
    assert!(flipped.allowed());
    assert_eq!((flipped.code(), flipped.would_deny()), (Code::Allow, Some(Code::PolicyForbidden)));
    assert_eq!(flipped.would_deny_policies(), ["f"]);
    assert_eq!(flipped.reason(), "allowed in shadow mode; otherwise: tool `send` is forbidden by policy `f`");
    assert_eq!(shadow("", &json!({})).would_deny(), Some(Code::PolicyNoPermit));
    assert_eq!(shadow(&text, &json!({"n": "x"})).would_deny(), Some(Code::PolicyError));
    assert_eq!(shadow(&text, &json!({"n": 1})).would_deny(), None);
    let approval = shadow("@approval(\"ops\") permit(principal, action, resource);", &json!({}));
    assert_eq!(approval.would_deny(), Some(Code::ApprovalRequired));
    // Input, scope and tools are never flipped, also not behind a denial that is.
    assert_eq!(shadow(&text, &json!({"n": 1e300})).code(), Code::InputUnrepresentable);
    let both = format!("{text} forbid(principal, action, resource);");
    assert_eq!(shadow(&both, &json!({"n": 1e300})).code(), Code::InputUnrepresentable);
    assert_eq!(shadow(&text, &json!([1])).code(), Code::InputUnrepresentable);
    let gate = Gate::open(&GateSources { mode: GateMode::Shadow, ..sources(&text) }, 0).unwrap();
    let run = scope(&gate);
    assert_eq!(check(&gate, &run, "other", &json!({})).code(), Code::InputUnknownTool);
    let mut arguments = filled(&json!({}));
    assert_eq!(gate.check(None, "send", &mut arguments, NOW, &mut Scratch::new()).code(), Code::ScopeMissing);
    let narrow = run.narrowed(&narrow_of(Some(&["read".to_owned()]), &[], None), &gate.state(), NOW).unwrap();
    let narrowed = check(&gate, &narrow, "send", &json!({}));
    assert_eq!((narrowed.code(), narrowed.would_deny()), (Code::Allow, Some(Code::PolicyForbidden)));
    assert_eq!(check(&gate, &narrow, "send", &json!({"n": 1e300})).code(), Code::InputUnrepresentable);
}

#[test]
fn shadow_policies_are_left_out_of_the_verdict() {
    let text = format!(
        "{PERMIT} @id(\"new\") @mode(\"shadow\") forbid(principal, action, resource) when {{ context.input has n && context.input.n > 3 }};"
    );
    let allowed = ask(&text, &json!({"n": 4}));
    assert!(allowed.allowed());
    assert_eq!((allowed.would_deny(), allowed.would_deny_policies()), (Some(Code::PolicyForbidden), vec!["new"]));
    assert_eq!(allowed.policies(), ["all"]);
    assert_eq!(ask(&text, &json!({"n": "x"})).would_deny(), Some(Code::PolicyError));
    assert_eq!(ask(&text, &json!({})).would_deny(), None);
    // A permit in shadow permits nothing.
    assert_eq!(ask("@mode(\"shadow\") permit(principal, action, resource);", &json!({})).code(), Code::PolicyNoPermit);
    // An active forbid denies whatever stands in shadow.
    let both = format!("{text} forbid(principal, action, resource);");
    assert_eq!(ask(&both, &json!({"n": 4})).policies(), ["p.cedar#3"]);
}

#[test]
fn any_permit_with_approval_asks_for_it() {
    let text = format!(
        "{PERMIT} @id(\"big\") @approval(\"finance\") permit(principal, action, resource) when {{ context.input.n > 3 }};"
    );
    assert!(ask(&text, &json!({"n": 1})).allowed());
    let asked = ask(&text, &json!({"n": 4}));
    assert_eq!(
        (asked.code(), asked.approvals(), asked.policies()),
        (Code::ApprovalRequired, vec!["finance"], vec!["big"])
    );
}

#[test]
fn annotations_that_cannot_be_kept_are_refused() {
    for text in [
        "@mode(\"shadwo\") permit(principal, action, resource);",
        "@approval(\"ops\") forbid(principal, action, resource);",
        "@durability(\"sync\") permit(principal, action, resource);",
    ] {
        let error = Gate::open(&sources(text), 0).unwrap_err();
        assert_eq!((error.first().code, error.first().line), ("policy.annotation", 1), "{text}");
    }
    let twice = "@id(\"a\") permit(principal, action, resource);\n@id(\"a\") permit(principal, action, resource);";
    assert_eq!(Gate::open(&sources(twice), 0).unwrap_err().first().code, "policy.duplicate_id");
}

#[test]
fn reload_swaps_or_keeps_the_old_state() {
    let gate = gate(PERMIT);
    let run = scope(&gate);
    gate.register(&[tool("late")]).unwrap();
    assert!(check(&gate, &run, "late", &json!({})).allowed());
    let kept = check(&gate, &run, "send", &json!({}));
    let before = gate.state().generation();
    let bad = "permit(principal, action, resource) when { ";
    assert!(gate.reload(&sources(bad)).is_err());
    assert!(gate.reload(&GateSources { tools: vec![tool("a"), tool("A")], ..sources(PERMIT) }).is_err());
    assert_eq!(gate.state().generation(), before);
    assert!(check(&gate, &run, "late", &json!({})).allowed());
    gate.reload(&sources("@id(\"only\") permit(principal, action == Action::\"late\", resource);")).unwrap();
    assert_eq!(check(&gate, &run, "send", &json!({})).code(), Code::PolicyNoPermit);
    assert!(check(&gate, &run, "late", &json!({})).allowed(), "a tool registered at run time stays");
    assert_eq!(kept.policies(), ["all"], "a decision speaks of the policies that made it");
    assert!(gate.register(&[tool("x"), tool("call_model")]).is_err());
    assert_eq!(check(&gate, &run, "x", &json!({})).code(), Code::InputUnknownTool, "all or none");
}

#[test]
fn scopes_only_narrow() {
    let text = format!(
        "{PERMIT} @id(\"seen\") forbid(principal, action == Action::\"send\", resource) when {{ context.session.labels.contains(\"untrusted\") }};"
    );
    let gate = gate(&text);
    let run = Scope::new(
        narrowed_to(Narrow { tools: Some(vec!["send".to_owned()]), ..Narrow::default() }),
        &gate.state(),
        NOW,
    )
    .unwrap();
    assert!(check(&gate, &run, "send", &json!({})).allowed());
    let denied = check(&gate, &run, "read", &json!({}));
    assert_eq!(denied.code(), Code::PolicyForbidden);
    assert_eq!(denied.reason(), "tool `read` is not among the tools this run was started with; use one of those");
    let wider =
        run.narrowed(&narrow_of(Some(&["read".to_owned(), "send".to_owned()]), &[], None), &gate.state(), NOW).unwrap();
    assert_eq!(check(&gate, &wider, "read", &json!({})).code(), Code::PolicyForbidden);
    let labelled = run.narrowed(&narrow_of(None, &["untrusted".to_owned()], None), &gate.state(), NOW).unwrap();
    assert_eq!(check(&gate, &labelled, "send", &json!({})).policies(), ["seen"]);
    let inner = labelled.narrowed(&narrow_of(Some(&[]), &["pii".to_owned()], None), &gate.state(), NOW).unwrap();
    assert_eq!(inner.labels(), Val::set(vec![Val::Str("pii".into()), Val::Str("untrusted".into())]));
    assert!(!inner.allows("send"));
}

#[test]
fn principals_come_from_the_run_or_from_the_snapshot() {
    let text = "permit(principal in Team::\"t\", action, resource) when { principal.level > 3 };
        permit(principal, action, resource) when { context has on_behalf_of && context.on_behalf_of == User::\"u\" };";
    let known = json!([{"uid": {"type": "Agent", "id": "known"}, "attrs": {"level": 5}, "parents": [{"type": "Team", "id": "t"}]}]);
    let known = known.to_string();
    let entities = Some(Source { name: Some("e.json"), text: &known });
    let gate = Gate::open(&GateSources { entities, ..sources(text) }, 0).unwrap();
    let described = |id: &str| {
        let mut spec = spec(id);
        spec.principal.attrs = vec![("level".into(), Val::Long(4))];
        spec.principal.parents = vec![Arc::new(EntityUid::new("Team", "t"))];
        spec
    };
    let state = gate.state();
    assert!(check(&gate, &Scope::new(spec("known"), &state, NOW).unwrap(), "send", &json!({})).allowed());
    let new = Scope::new(described("new"), &state, NOW).unwrap();
    assert!(check(&gate, &new, "send", &json!({})).allowed());
    assert!(!check(&gate, &Scope::new(spec("stranger"), &state, NOW).unwrap(), "send", &json!({})).allowed());
    let for_user = ScopeSpec { on_behalf_of: Some(EntityUid::new("User", "u")), ..spec("stranger") };
    assert!(check(&gate, &Scope::new(for_user, &state, NOW).unwrap(), "send", &json!({})).allowed());
    assert_eq!(Scope::new(described("known"), &state, NOW).unwrap_err().first().code, "scope.invalid");
    // After a reload that brings the entity, the run's own description is in doubt and nothing is allowed.
    let brought = known.replace("known", "new");
    gate.reload(&GateSources { entities: Some(Source { name: None, text: &brought }), ..sources(text) }).unwrap();
    assert_eq!(check(&gate, &new, "send", &json!({})).code(), Code::ScopeMissing);
}

#[test]
fn declared_actions_keep_their_parents() {
    let document = json!([{"uid": {"type": "Action", "id": "send"}, "attrs": {}, "parents": [{"type": "Action", "id": "writes"}]}]).to_string();
    let text = "@id(\"w\") permit(principal, action in Action::\"writes\", resource);
        @id(\"c\") permit(principal, action in Action::\"call_tool\", resource);";
    let gate = Gate::open(&GateSources { entities: Some(Source::unnamed(&document)), ..sources(text) }, 0).unwrap();
    assert_eq!(check(&gate, &scope(&gate), "send", &json!({})).policies(), ["w", "c"]);
    assert_eq!(check(&gate, &scope(&gate), "read", &json!({})).policies(), ["c"]);
    let schema =
        "entity Agent, Mcp; action writes; action send in [writes] appliesTo { principal: Agent, resource: Mcp,
        context: { input: { n: Long }, session: { id: String, labels: Set<String> }, now: datetime } };";
    let text = "@id(\"w\") permit(principal, action in Action::\"writes\", resource);
        @id(\"f\") forbid(principal, action == Action::\"send\", resource) when { context.input.n > 3 };";
    let with_schema = GateSources { schema: Some(Source::unnamed(schema)), ..sources(text) };
    let gate = Gate::open(&with_schema, 0).unwrap();
    assert_eq!(check(&gate, &scope(&gate), "send", &json!({"n": 1})).policies(), ["w"]);
    // The validator guarantees `n`, for callers that keep to the schema; one that does not is denied.
    assert_eq!(check(&gate, &scope(&gate), "send", &json!({})).code(), Code::PolicyError);
}

fn guard_errors(condition: &str) -> Vec<String> {
    let text = format!("forbid(principal, action, resource) when {{ {condition} }};");
    let set = PolicySet::load(&[Source::unnamed(&text)], None, LoadOptions::default()).unwrap();
    let found = guards::unguarded(&set, &[&["context", "input"]]).unwrap();
    found.iter().map(|error| error.help.clone().unwrap()).collect()
}

#[test]
fn guards_are_followed_through_the_condition() {
    for fine in [
        "context.input has a && context.input.a == 1",
        "context.input has a.b && context.input.a.b == 1 && context.input.a == {b: 1}",
        "context has x.y && context.x.y == 1",
        "!(context.input has a) || context.input.a == 1",
        "!(!(context.input has a) || context.input.a == 1)",
        "if context.input has a then context.input.a == 1 else false",
        "(if context.input has a then context.input has b else false) && context.input.a == context.input.b",
        "((context.input has a && context.input has b) || (context.input has b && principal is User)) && context.input.b == 1",
        "principal has a && resource has a && principal.a == resource.a",
        "principal.hasTag(\"t\") && principal.getTag(\"t\") == 1",
        "context.input has k && principal.hasTag(context.input.k) && principal.getTag(context.input.k) == 1",
        "User::\"a\" has x && User::\"a\".x == 1",
        "{a: 1}.a == 1 && {a: context.input}.a == 2",
        "context.input has \"odd name\" && context.input[\"odd name\"] == 1",
        "context.input has a && [context.input.a].contains(1)",
    ] {
        assert_eq!(guard_errors(fine), Vec::<String>::new(), "{fine}");
    }
    for (risky, guards) in [
        ("context.input.a == 1", vec!["context.input has a"]),
        ("context.a == 1", vec!["context has a"]),
        ("context.input.a.b == 1", vec!["context.input has a", "context.input.a has b"]),
        ("context.input has a || context.input.a == 1", vec!["context.input has a"]),
        ("context.input has a && context.input.b == 1", vec!["context.input has b"]),
        ("context.input.a == 1 && context.input has a", vec!["context.input has a"]),
        ("(context.input has a || principal is User) && context.input.a == 1", vec!["context.input has a"]),
        ("if context.input has a then true else context.input.a == 1", vec!["context.input has a"]),
        ("!(context.input has a) && context.input.a == 1", vec!["context.input has a"]),
        ("principal.a == 1", vec!["principal has a"]),
        ("principal.hasTag(\"t\") && principal.getTag(\"u\") == 1", vec!["principal.hasTag(\"u\")"]),
        ("User::\"a\" has x && User::\"b\".x == 1", vec!["User::\"b\" has x"]),
        ("context.input[\"odd name\"] == 1", vec!["context.input has \"odd name\""]),
        ("{a: 1}.b == 1", vec!["{\"a\": 1} has b"]),
        ("[1].contains(context.input.a)", vec!["context.input has a"]),
    ] {
        let expected: Vec<String> =
            guards.iter().map(|guard| format!("put the guard before it: `{guard} && ...`")).collect();
        assert_eq!(guard_errors(risky), expected, "{risky}");
    }
    let unless = "forbid(principal, action, resource) unless { context.input has a && context.input.a == 1 };";
    let set = PolicySet::load(&[Source::unnamed(unless)], None, LoadOptions::default()).unwrap();
    assert!(guards::unguarded(&set, &[&["context", "input"]]).unwrap().is_empty());
}

/// Conditions made of few guards and the reads they could guard, so that the two meet in every arrangement.
fn guard_condition(seed: &mut Seeded, depth: u32) -> String {
    const ATOMS: [&str; 16] = [
        "context.input has a",
        "context.input has a",
        "context.input.a",
        "context.input.a",
        "context.input has b",
        "context.input.b",
        "context.input has n.m",
        "context.input has n",
        "context.input.n.m",
        "context.input.n has m",
        "principal has p",
        "principal.p",
        "principal.hasTag(\"t\")",
        "principal.getTag(\"t\")",
        "true",
        "false",
    ];
    if depth == 0 {
        return ATOMS[seed.below(16) as usize].to_owned();
    }
    let below = |seed: &mut Seeded| {
        let less = 1 + seed.below(2);
        guard_condition(seed, depth.saturating_sub(less))
    };
    match seed.below(8) {
        0..=2 => format!("({} && {} && {})", below(seed), below(seed), below(seed)),
        3 | 4 => format!("({} || {})", below(seed), below(seed)),
        5 | 6 => format!("!({})", below(seed)),
        _ => format!("(if {} then {} else {})", below(seed), below(seed), below(seed)),
    }
}

/// Every combination of present and absent, as context and principal.
fn presences() -> impl Iterator<Item = (Json, Json)> {
    (0..64_u32).flat_map(|bits| {
        let has = move |bit: u32| bits & (1 << bit) != 0;
        // The values decide which way a condition goes on, so both are tried.
        [false, true].map(|value| {
            let mut input = json!({});
            if has(0) {
                input["a"] = json!(value);
            }
            if has(1) {
                input["b"] = json!(!value);
            }
            if has(2) {
                input["n"] = if has(3) { json!({"m": value}) } else { json!({}) };
            }
            let attrs = if has(4) { json!({"p": value}) } else { json!({}) };
            let tags = if has(5) { json!({"t": true}) } else { json!({}) };
            let principal = json!({"uid": {"type": "User", "id": "u"}, "attrs": attrs, "tags": tags, "parents": []});
            (json!({"input": input}), principal)
        })
    })
}

/// Faults of one request that say something was not there: the policies they happened in.
fn misses(set: &PolicySet, entities: &Entities, context: &Json, uids: [&EntityUid; 3]) -> Vec<u32> {
    let context = context_from_json(&context.to_string()).unwrap();
    let request = Request { principal: uids[0], action: uids[1], resource: uids[2], context: context.as_value() };
    let outcome = set.evaluate(&request, entities, &mut set::Scratch::new());
    let missing = |fault: Fault| matches!(fault, Fault::MissingAttribute | Fault::MissingEntity | Fault::MissingTag);
    outcome.errors(set).iter().filter(|fault| missing(fault.fault)).map(|fault| fault.policy).collect()
}

/// Loads one policy a line; which of them the analysis refuses.
fn analysed(text: &str) -> (PolicySet, Vec<bool>) {
    let set = PolicySet::load(&[Source::unnamed(text)], None, LoadOptions::default()).unwrap();
    let mut refused = vec![false; set.len()];
    for error in guards::unguarded(&set, &[&["context", "input"]]).unwrap() {
        refused[error.line as usize - 1] = true;
    }
    (set, refused)
}

/// What the analysis accepts never errs for something that is not there; and what it refuses mostly does.
#[test]
fn accepted_guards_hold_in_every_combination() {
    let mut seed = Seeded(31);
    let lines = (0..3_000).map(|_| {
        let condition = guard_condition(&mut seed, 3);
        format!("forbid(principal, action, resource) when {{ {condition} }};\n")
    });
    let text: String = lines.collect();
    let (set, refused) = analysed(&text);
    let uids = [EntityUid::new("User", "u"), EntityUid::new("Action", "a"), EntityUid::new("Mcp", "m")];
    let mut missed = vec![false; set.len()];
    for (context, principal) in presences() {
        let entities = Entities::from_json(&json!([principal]).to_string(), None).unwrap();
        for policy in misses(&set, &entities, &context, [&uids[0], &uids[1], &uids[2]]) {
            let line = || text.lines().nth(policy as usize).unwrap();
            assert!(refused[policy as usize], "accepted, but errs: {} with {context} {principal}", line());
            missed[policy as usize] = true;
        }
    }
    let count = |of: &[bool]| of.iter().filter(|is| **is).count();
    let (refused, missed) = (count(&refused), count(&missed));
    assert!(refused < 2_800 && missed * 2 > refused, "{refused} refused, {missed} erred");
}

/// The same over conditions of the usual shape, with values of any type.
#[test]
fn accepted_forbids_never_miss_anything() {
    let mut seed = Seeded(4_711);
    let mut accepted = 0;
    for _ in 0..10 {
        let text: String = generate::policies(&mut seed, 300).lines().map(forbidding).collect();
        let (set, refused) = analysed(&text);
        accepted += refused.iter().filter(|is| !**is).count();
        let entities = Entities::from_json(&generate::entities(&mut seed).to_string(), None).unwrap();
        for _ in 0..40 {
            let mut request = generate::request(&mut seed);
            request.context.as_object_mut().unwrap().entry("input").or_insert(json!({}));
            let [principal, action, resource] =
                [&request.principal, &request.action, &request.resource].map(|(ty, id)| EntityUid::new(ty, id));
            for policy in misses(&set, &entities, &request.context, [&principal, &action, &resource]) {
                assert!(refused[policy as usize], "{}", text.lines().nth(policy as usize).unwrap());
            }
        }
    }
    assert!(accepted > 200, "{accepted} accepted");
}

fn forbidding(line: &str) -> String {
    format!("{}\n", line.replacen("permit", "forbid", 1))
}

/// The converted arguments in Cedar's JSON; `None` if one of them has no Cedar value.
fn cedar_json(value: ArgumentRef<'_>) -> Option<Json> {
    let decimal = |units: i64| {
        let sign = if units < 0 { "-" } else { "" };
        let units = units.unsigned_abs();
        json!({"__extn": {"fn": "decimal", "arg": format!("{sign}{}.{:04}", units / 10_000, units % 10_000)}})
    };
    Some(match value.value() {
        Argument::Null | Argument::Unrepresentable => return None,
        Argument::Bool(value) => json!(value),
        Argument::Long(value) => json!(value),
        Argument::Float(value) => decimal(decimal_from_float(value)?),
        Argument::Decimal(value) => decimal(value),
        Argument::Str(value) => json!(value),
        Argument::List => value.children().map(|(_, child)| cedar_json(child)).collect::<Option<Vec<Json>>>()?.into(),
        Argument::Object => {
            let fields = value.children().filter(|(_, child)| !matches!(child.value(), Argument::Null));
            let fields = fields.map(|(key, child)| Some((key.to_owned(), cedar_json(child)?)));
            Json::Object(fields.collect::<Option<_>>()?)
        }
    })
}

fn plain_arguments(seed: &mut Seeded) -> Json {
    let request = generate::request(seed);
    let mut input = request.context.get("input").cloned().unwrap_or_else(|| json!({}));
    for value in input.as_object_mut().unwrap().values_mut() {
        // Escapes would be records at the gate and values in the reference.
        if value.get("__entity").is_some() || value.get("__extn").is_some() {
            *value = [json!(1.5), json!(null), json!(2), json!(1.23456), json!("x")][seed.below(5) as usize].clone();
        }
    }
    input
}

const TOOL_SCHEMA: &str = r#"{"properties":{"price":{"type":"number"},"amount":{"type":["integer","string","null"]}}}"#;

fn generated_gate(seed: &mut Seeded, text: &str, on_error: OnError) -> Gate {
    let mut tools: Vec<ToolSpec> = (0..5).map(|at| tool(&format!("tool{at}"))).collect();
    tools[1].schema = Some(TOOL_SCHEMA.to_owned());
    tools[2].resource = Arc::new(EntityUid::new("Mcp", "m1"));
    let document = generate::entities(seed).to_string();
    let sources = GateSources {
        policies: vec![Source::unnamed(text)],
        entities: Some(Source::unnamed(&document)),
        tools,
        on_error,
        unguarded_forbid: UnguardedForbid::Warn,
        ..GateSources::default()
    };
    Gate::open(&sources, 0).unwrap()
}

struct Asked {
    principal: String,
    tool: u32,
    input: Json,
    allowed: bool,
    code: Code,
    forbid_erred: bool,
}

fn reference_allows(policies: &reference::PolicySet, entities: &reference::Entities, asked: &Asked) -> bool {
    let uid = |text: String| reference::EntityUid::from_str(&text).unwrap();
    let context = json!({
        "input": asked.input,
        "now": {"__extn": {"fn": "datetime", "arg": "2026-01-01T00:00:00Z"}},
        "session": {"id": "s-1", "labels": []},
    });
    let request = reference::Request::new(
        uid(format!("User::\"{}\"", asked.principal)),
        uid(format!("Action::\"tool{}\"", asked.tool)),
        uid(format!("Mcp::\"m{}\"", u32::from(asked.tool == 2))),
        reference::Context::from_json_value(context, None).unwrap(),
        None,
    );
    let response = reference::Authorizer::new().is_authorized(&request.unwrap(), policies, entities);
    response.decision() == reference::Decision::Allow
}

/// With Cedar's rule for errors the gate is the reference; with its own it only denies more, and only for errors.
#[test]
fn the_gate_never_allows_what_the_reference_denies() {
    let mut seed = Seeded(99);
    let (mut allowed, mut stricter) = (0, 0);
    for round in 0..60 {
        let size = 1 + seed.below(40);
        let text = generate::policies(&mut seed, size);
        let on_error = if round % 2 == 0 { OnError::Deny } else { OnError::Cedar };
        let gate = generated_gate(&mut seed, &text, on_error);
        let entities = gate.state().entities().to_json().unwrap();
        let asked: Vec<Asked> = (0..40).filter_map(|_| ask_generated(&mut seed, &gate)).collect();
        let answers = on_parser_thread(|| {
            let policies = reference::PolicySet::from_str(&text).unwrap();
            let entities = reference::Entities::from_json_value(entities, None).unwrap();
            asked.iter().map(|asked| reference_allows(&policies, &entities, asked)).collect::<Vec<bool>>()
        });
        for (asked, reference) in asked.iter().zip(answers.unwrap()) {
            assert!(reference || !asked.allowed, "{text} {} {} {}", asked.principal, asked.tool, asked.input);
            let expected = reference && !(on_error == OnError::Deny && asked.forbid_erred);
            assert_eq!(asked.allowed, expected, "{} {text} {}", asked.code, asked.input);
            allowed += usize::from(asked.allowed);
            stricter += usize::from(reference && !asked.allowed);
        }
    }
    assert!(allowed > 50 && stricter > 5, "{allowed} allowed, {stricter} stricter than the reference");
}

fn ask_generated(seed: &mut Seeded, gate: &Gate) -> Option<Asked> {
    let principal = format!("u{}", seed.below(6));
    let spec = ScopeSpec { principal: EntityData::new(EntityUid::new("User", &principal)), ..spec("") };
    let scope = Scope::new(spec, &gate.state(), NOW).unwrap();
    let tool = seed.below(5);
    let mut arguments = filled(&plain_arguments(seed));
    let decision = gate.check(Some(&scope), &format!("tool{tool}"), &mut arguments, NOW, &mut Scratch::new());
    // A shape that the schema refuses is not a question for the reference.
    if decision.code() == Code::InputUnrepresentable && decision.policies().is_empty() {
        return None;
    }
    let input = cedar_json(arguments.root().unwrap())?;
    let state = gate.state();
    let forbid_erred = decision.faults().iter().any(|fault| {
        let body = &state.set().policies()[fault.policy as usize];
        body.effect == tollkeeper_core::policy::tree::Effect::Forbid
    });
    Some(Asked { principal, tool, input, allowed: decision.allowed(), code: decision.code(), forbid_erred })
}

/// What a registry or a schema refuses says which tool and why.
#[test]
fn bad_tools_are_refused_at_load() {
    let refuse = |tools: Vec<ToolSpec>| {
        let errors = Gate::open(&GateSources { tools, ..sources(PERMIT) }, 0).unwrap_err();
        errors.first().to_string()
    };
    assert!(refuse(vec![tool("call_tool")]).contains("`call_tool` is reserved"));
    assert!(refuse(vec![tool("se\u{200b}nd")]).contains("U+200B"));
    assert!(refuse(vec![tool("send"), tool("SEND")]).contains("the same name but for case"));
    let mut broken = tool("send");
    broken.schema = Some("{".to_owned());
    assert!(refuse(vec![broken]).starts_with("tool `send`: schema is not JSON"));
}

// --- budgets ------------------------------------------------------------------------------------------------------

fn limit(unit: Unit, window: Window, limit: i64) -> LimitSpec {
    LimitSpec { unit, window, limit, overdraft: 0 }
}

fn budget(path: &str, limits: Vec<LimitSpec>) -> BudgetSpec {
    BudgetSpec { path: path.to_owned(), limits, children_max: None }
}

fn ledger_spec() -> LedgerSpec {
    let prices = |prompt, completion| {
        vec![("prompt".to_owned(), prompt), ("cached".to_owned(), prompt / 10), ("completion".to_owned(), completion)]
    };
    LedgerSpec {
        budgets: vec![
            budget("acme", vec![limit(Unit::Tokens, Window::Day, 10_000), limit(Unit::InFlight, Window::Total, 3)]),
            budget("acme/a", vec![limit(Unit::Requests, Window::Hour, 4), limit(Unit::Tokens, Window::Day, 1_000)]),
            budget("money", vec![limit(Unit::NanoUsd, Window::Month, 1_000_000)]),
            budget(
                "flow",
                vec![limit(Unit::Requests, Window::Total, 1_000_000), limit(Unit::InFlight, Window::Total, 1)],
            ),
        ],
        prices: PriceTable::new(vec![
            ("m".to_owned(), prices(1_000_000_000, 2_000_000_000)),
            ("odd".to_owned(), prices(1, 1_500_000)),
        ])
        .unwrap(),
        holds: 256,
        ..LedgerSpec::default()
    }
}

struct Paying {
    gate: Gate,
    ledger: Arc<Ledger>,
    clock: Arc<FakeClock>,
}

impl Paying {
    fn new(spec: LedgerSpec, change: impl FnOnce(&mut GateSources<'_>)) -> Self {
        Self::with(PERMIT, spec, change)
    }

    fn with(text: &str, spec: LedgerSpec, change: impl FnOnce(&mut GateSources<'_>)) -> Self {
        let clock = Arc::new(FakeClock::new(NOW));
        let ledger = Arc::new(Ledger::anonymous(spec, clock.clone()).unwrap());
        let mut sources = GateSources { ledger: Some(Arc::clone(&ledger)), ..sources(text) };
        sources
            .tools
            .push(ToolSpec { cost: Some(Amounts::of(Unit::Tokens, 300).and(Unit::InFlight, 1)), ..tool("think") });
        change(&mut sources);
        Self { gate: Gate::open(&sources, 7).unwrap(), ledger, clock }
    }

    fn run(&self, budget: Option<&str>) -> Scope {
        Scope::new(
            narrowed_to(Narrow { budget: budget.map(str::to_owned), ..Narrow::default() }),
            &self.gate.state(),
            NOW,
        )
        .unwrap()
    }

    fn check(&self, scope: &Scope, tool: &str) -> Decision {
        self.gate.check(Some(scope), tool, &mut filled(&json!({})), self.gate.now_ms(), &mut Scratch::new())
    }

    fn call(&self, scope: &Scope, request: ModelRequest<'_>) -> (Decision, ModelCall) {
        self.gate.check_model(Some(scope), &request, self.gate.now_ms(), &mut Scratch::new())
    }

    /// Used and held of every cell of every budget.
    fn counts(&self) -> Vec<(String, Unit, i64, i64)> {
        let ledger = &self.ledger;
        let of = |path: String| {
            let usage = ledger.usage(&ledger.node(&path).unwrap());
            usage.into_iter().map(move |cell| (path.clone(), cell.unit, cell.used, cell.held)).collect::<Vec<_>>()
        };
        ledger.paths().into_iter().flat_map(of).collect()
    }

    fn of(&self, path: &str, unit: Unit) -> (i64, i64) {
        let found = self.counts().into_iter().find(|(at, of, ..)| at == path && *of == unit).unwrap();
        (found.2, found.3)
    }
}

const fn request(model: &str, prompt_tokens: i64, max_tokens: i64) -> ModelRequest<'_> {
    ModelRequest { model, prompt_tokens, max_tokens, n: 1 }
}

#[test]
fn an_allowed_action_is_reserved_and_ends_in_full_when_nobody_says() {
    let paying = Paying::new(ledger_spec(), |_| ());
    let run = paying.run(Some("acme/a"));
    let decision = paying.check(&run, "think");
    assert!(decision.allowed());
    assert_eq!(decision.hold().map(|hold| hold.ledger().hold(hold.id()).unwrap().path), Some("acme/a".to_owned()));
    assert_eq!((paying.of("acme/a", Unit::Tokens), paying.of("acme", Unit::InFlight)), ((0, 300), (0, 1)));
    drop(decision);
    assert_eq!((paying.of("acme", Unit::Tokens), paying.of("acme", Unit::InFlight)), ((300, 0), (0, 0)));
    // Nobody said what `send` costs: one request.
    drop(paying.check(&run, "send"));
    assert_eq!(paying.of("acme/a", Unit::Requests), (1, 0));
    let settled = paying.check(&run, "think");
    let hold = settled.hold().unwrap();
    assert!(hold.ledger().settle(hold.id(), &[Some(10), None, None, None, None]).unwrap());
    drop(settled);
    assert_eq!(paying.of("acme", Unit::Tokens), (310, 0), "what was reported stays");
    let released = paying.check(&run, "think");
    assert!(released.hold().unwrap().release() && !released.hold().unwrap().release());
    assert_eq!(paying.of("acme", Unit::Tokens), (310, 0));
}

/// Every denial of the budget step, each with the sentence and nothing left behind.
#[test]
fn every_budget_code_is_raised_and_leaves_nothing_behind() {
    let expired = LedgerSpec { hold_ttl_ms: Some(-5), ..ledger_spec() };
    let paying = Paying::new(ledger_spec(), |_| ());
    let lapsing = Paying::new(expired, |_| ());
    let (a, money, flow, nobody) =
        (paying.run(Some("acme/a")), paying.run(Some("money")), paying.run(Some("flow")), paying.run(None));
    for _ in 0..4 {
        drop(paying.check(&a, "send"));
    }
    let kept = paying.check(&flow, "think");
    assert!(kept.allowed());
    let before = paying.counts();
    let denied = [
        (paying.check(&a, "send"), Code::BudgetExhausted, Some(3_600_000)),
        (paying.check(&flow, "think"), Code::BudgetContended, Some(50)),
        (paying.call(&paying.run(Some("acme")), request("m", 9_000, 2_000)).0, Code::BudgetTooLarge, None),
        (paying.call(&paying.run(Some("acme")), request("m", 1 << 52, 1 << 53)).0, Code::BudgetTooLarge, None),
        (paying.call(&money, request("nobody-knows", 1, 1)).0, Code::BudgetUnpriced, None),
        (paying.check(&nobody, "think"), Code::BudgetUnavailable, None),
        (paying.call(&nobody, request("m", 1, 1)).0, Code::BudgetUnavailable, None),
    ];
    for (decision, code, retry_after_ms) in &denied {
        assert_eq!((decision.code(), decision.retry_after_ms()), (*code, *retry_after_ms), "{}", decision.reason());
        assert!(!decision.allowed() && decision.hold().is_none() && decision.denial().is_some());
        assert_eq!(decision.policies(), [""; 0], "no policy decided");
        assert!(decision.reason().len() > 30);
    }
    assert_eq!(paying.counts(), before);
    let first = denied[0].0.denial().unwrap();
    assert_eq!((first.path.as_str(), first.unit, first.window), ("acme/a", Some(Unit::Requests), Some(Window::Hour)));
    assert!(denied[4].0.reason().contains("[price.\"nobody-knows\"]"), "{}", denied[4].0.reason());
    assert!(denied[5].0.reason().contains("`acme`, `acme/a`"), "{}", denied[5].0.reason());
    let late = lapsing.call(&lapsing.run(Some("acme")), request("m", 1, 1)).0;
    assert_eq!((late.code(), late.hold().is_none()), (Code::BudgetExpired, true));
    assert_eq!(lapsing.of("acme", Unit::Tokens), (0, 0));
    // A tool without a cost passes where nobody pays, and without a ledger a cost cannot be paid.
    assert!(paying.check(&nobody, "send").allowed());
    let tools = vec![ToolSpec { cost: Some(Amounts::of(Unit::Requests, 1)), ..tool("dear") }];
    let bare = Gate::open(&GateSources { tools, ..sources(PERMIT) }, 0).unwrap();
    let refused = check(&bare, &scope(&bare), "dear", &json!({}));
    assert_eq!(refused.code(), Code::BudgetUnavailable);
    assert!(refused.reason().contains("budgets.toml"), "{}", refused.reason());
    let (free, call) = bare.check_model(Some(&scope(&bare)), &request("m", 5, 5), NOW, &mut Scratch::new());
    assert!(free.allowed() && call.charge(100) && !call.end());
}

#[test]
fn a_denial_before_the_budget_step_reserves_nothing() {
    let text = format!(
        "{PERMIT} forbid(principal, action == Action::\"send\", resource);
         @approval(\"ops\") permit(principal, action == Action::\"read\", resource);
         forbid(principal, action == Action::\"call_model\", resource == Model::\"m\");"
    );
    let paying = Paying::with(&text, ledger_spec(), |_| ());
    let run = paying.run(Some("acme/a"));
    let before = paying.counts();
    let narrow = run.narrowed(&narrow_of(Some(&["send".to_owned()]), &[], None), &paying.gate.state(), NOW).unwrap();
    let denied = [
        (paying.check(&run, "send"), Code::PolicyForbidden),
        (paying.check(&run, "read"), Code::ApprovalRequired),
        (paying.check(&run, "nothing"), Code::InputUnknownTool),
        (paying.check(&narrow, "think"), Code::PolicyForbidden),
        (paying.call(&run, request("m", 1, 1)).0, Code::PolicyForbidden),
        (paying.call(&run, request("other", -1, 1)).0, Code::InputUnrepresentable),
        (paying.call(&run, ModelRequest { n: 0, ..request("other", 1, 1) }).0, Code::InputUnrepresentable),
        (paying.call(&run, request("", 1, 1)).0, Code::InputUnrepresentable),
        (paying.gate.check_model(None, &request("m", 1, 1), NOW, &mut Scratch::new()).0, Code::ScopeMissing),
    ];
    for (decision, code) in &denied {
        assert_eq!((decision.code(), decision.hold().is_none()), (*code, true));
    }
    assert_eq!(paying.counts(), before);
    assert!(denied[4].0.reason().starts_with("model `m` is forbidden by"), "{}", denied[4].0.reason());
    let none = Paying::with("", ledger_spec(), |_| ());
    let reason = none.call(&none.run(Some("acme")), request("m", 1, 1)).0.reason();
    assert!(reason.contains("no policy permits model `m`") && reason.contains("fewer tokens"), "{reason}");
}

#[test]
fn a_nested_run_names_its_budget_or_one_below() {
    let paying = Paying::new(ledger_spec(), |_| ());
    let state = paying.gate.state();
    let outer = paying.run(Some("acme"));
    let narrow = |scope: &Scope, path: &str| scope.narrowed(&narrow_of(None, &[], Some(path)), &state, NOW);
    assert_eq!(narrow(&outer, "acme/a").unwrap().budget(), Some("acme/a"));
    assert_eq!(narrow(&outer, "acme").unwrap().budget(), Some("acme"));
    assert_eq!(outer.narrowed(&narrow_of(None, &[], None), &state, NOW).unwrap().budget(), Some("acme"));
    let inner = narrow(&outer, "acme/a").unwrap();
    for (scope, path) in [(&inner, "acme"), (&outer, "money"), (&outer, "acmex"), (&outer, "acme/nobody"), (&outer, "")]
    {
        let error = narrow(scope, path).unwrap_err();
        assert_eq!(error.first().code, "budget.unavailable", "{path}");
    }
    assert!(narrow(&paying.run(None), "acme").is_err());
    let missing = Scope::new(narrowed_to(Narrow { budget: Some("acne".to_owned()), ..Narrow::default() }), &state, NOW)
        .unwrap_err();
    assert!(missing.to_string().contains("acme"), "{missing}");
    let bare = gate(PERMIT);
    let error =
        Scope::new(narrowed_to(Narrow { budget: Some("acme".to_owned()), ..Narrow::default() }), &bare.state(), NOW)
            .unwrap_err();
    assert!(error.to_string().contains("budgets.toml"), "{error}");
}

#[test]
fn a_reload_keeps_the_run_and_its_ledger() {
    let paying = Paying::new(ledger_spec(), |_| ());
    let run = paying.run(Some("acme/a"));
    drop(paying.check(&run, "send"));
    let with_ledger = GateSources { ledger: Some(Arc::clone(&paying.ledger)), ..sources(PERMIT) };
    paying.gate.reload(&with_ledger).unwrap();
    drop(paying.check(&run, "send"));
    assert_eq!(paying.of("acme/a", Unit::Requests), (2, 0));
    paying.gate.reload(&sources(PERMIT)).unwrap();
    assert_eq!(paying.check(&run, "send").code(), Code::BudgetUnavailable, "the run still wants to pay");
    paying.gate.reload(&with_ledger).unwrap();
    assert!(paying.check(&run, "send").allowed());
}

#[test]
fn shadow_counts_in_cells_of_its_own() {
    let paying = Paying::new(ledger_spec(), |sources| sources.mode = GateMode::Shadow);
    let before = paying.counts();
    let run = paying.run(Some("acme/a"));
    let codes: Vec<_> = (0..6).map(|_| paying.check(&run, "send")).map(|d| (d.code(), d.would_deny())).collect();
    assert_eq!(codes[..4], [(Code::Allow, None); 4]);
    assert_eq!(codes[4..], [(Code::Allow, Some(Code::BudgetExhausted)); 2]);
    let (decision, call) = paying.call(&run, request("m", 900, 200));
    assert_eq!((decision.allowed(), decision.would_deny()), (true, Some(Code::BudgetTooLarge)));
    assert!(
        decision.reason().starts_with("allowed in shadow mode; otherwise: budget `acme/a`"),
        "{}",
        decision.reason()
    );
    assert!(call.charge(5_000) && decision.hold().unwrap().is_shadow(), "it never stops");
    assert!(call.end());
    let (unpriced, _) = paying.call(&paying.run(Some("money")), request("nobody-knows", 9, 9));
    assert_eq!((unpriced.would_deny(), unpriced.hold().is_some()), (Some(Code::BudgetUnpriced), true));
    let unpaid = paying.check(&paying.run(None), "think");
    assert_eq!(
        (unpaid.allowed(), unpaid.would_deny(), unpaid.hold().is_none()),
        (true, Some(Code::BudgetUnavailable), true)
    );
    assert_eq!(paying.counts(), before, "the real cells are as they were");
    let state = paying.gate.state();
    let shadow = state.cells().unwrap();
    let usage = shadow.usage(&shadow.node("acme/a").unwrap());
    let used = |unit| usage.iter().find(|cell| cell.unit == unit).unwrap().used;
    assert_eq!((used(Unit::Requests), used(Unit::Tokens)), (7, 5_900));
    // Reloading goes on with the same cells.
    let again = GateSources { ledger: Some(Arc::clone(&paying.ledger)), mode: GateMode::Shadow, ..sources(PERMIT) };
    assert!(Arc::ptr_eq(paying.gate.reload(&again).unwrap().cells().unwrap(), shadow));
    // What policies would deny would not have happened, and costs nothing.
    let denying = Paying::with("", ledger_spec(), |sources| sources.mode = GateMode::Shadow);
    let flipped = denying.check(&denying.run(Some("acme/a")), "send");
    assert_eq!((flipped.would_deny(), flipped.hold().is_none()), (Some(Code::PolicyNoPermit), true));
}

#[test]
fn policies_see_budgets() {
    let guard = "context has budget && context.budget has tokens && context.budget.tokens has \"1d\"";
    let text = format!(
        "{PERMIT}
        @id(\"low\") forbid(principal, action, resource) when {{ {guard} && context.budget.tokens[\"1d\"].tightest.remaining < 500 }};
        @id(\"own\") forbid(principal, action, resource) when {{ {guard} && context.budget.tokens[\"1d\"] has used
            && context.budget.tokens[\"1d\"] has limit && context.budget.tokens[\"1d\"].used > 100 && context.budget.tokens[\"1d\"].limit == 1000
            && context.budget.tokens[\"1d\"].tightest.path == \"acme/a\" }};
        @id(\"parent\") forbid(principal, action == Action::\"read\", resource) when {{ context has budget
            && context.budget has in_flight && context.budget.in_flight has total
            && !(context.budget.in_flight.total has limit) && context.budget.in_flight.total.tightest.path == \"acme\"
            && context.budget.in_flight.total.tightest.limit == 3 }};"
    );
    let paying = Paying::with(&text, ledger_spec(), |_| ());
    let run = paying.run(Some("acme/a"));
    assert_eq!(paying.check(&run, "read").policies(), ["parent"]);
    assert!(paying.check(&paying.run(Some("money")), "read").allowed());
    assert!(paying.check(&paying.run(None), "read").allowed(), "absent where the run has no budget");
    drop(paying.check(&run, "think"));
    assert_eq!(paying.check(&run, "think").policies(), ["own"]);
    let other = paying.run(Some("acme"));
    let (_held, call) = paying.call(&other, request("m", 9_300, 300));
    assert_eq!(paying.check(&other, "send").policies(), ["low"]);
    assert!(call.settle(&ModelUsage { prompt: Some(10), completion: Some(0), ..ModelUsage::default() }).unwrap());
    assert!(paying.check(&other, "send").allowed());
    // A forbid that reads it unguarded is refused, with the guard to add.
    let unguarded = "permit(principal, action, resource); forbid(principal, action, resource) when { context.budget.tokens[\"1d\"].used > 1 };";
    let help = Gate::open(&sources(unguarded), 0).unwrap_err().first().help.clone().unwrap();
    assert!(help.contains("context has budget"), "{help}");
    // A policy that does not name it may still compare the whole context.
    let whole = Paying::with("permit(principal, action, resource) unless { context == {} };", ledger_spec(), |_| ());
    assert!(whole.check(&whole.run(Some("acme")), "send").allowed());
}

#[test]
fn a_schema_can_declare_the_budget() {
    let schema = r#"
        entity Agent; entity Mcp; entity Model;
        type Session = { id: String, labels: Set<String> };
        type Level = { path: String, limit: Long, used: Long, remaining: Long };
        type Cell = { limit?: Long, used?: Long, remaining?: Long, tightest: Level };
        type Windows = { "total"?: Cell, "1m"?: Cell, "1h"?: Cell, "1d"?: Cell, "month"?: Cell };
        type Budget = { tokens?: Windows, nano_usd?: Windows, requests?: Windows, in_flight?: Windows, kv_blocks?: Windows };
        action send appliesTo { principal: [Agent], resource: [Mcp],
            context: { input: {}, session: Session, now: datetime, budget?: Budget } };
        action call_model appliesTo { principal: [Agent], resource: [Model],
            context: { input: { model: String, prompt_tokens: Long, max_tokens: Long, n: Long }, session: Session, now: datetime, budget?: Budget } };
    "#;
    let text = "permit(principal, action == Action::\"send\", resource)
        when { context has budget && context.budget has tokens && context.budget.tokens has \"1d\"
            && context.budget.tokens[\"1d\"].tightest.remaining >= 1000 };
        permit(principal, action == Action::\"call_model\", resource == Model::\"m\")
        when { context.input.max_tokens * context.input.n <= 200 };";
    let paying = Paying::with(text, ledger_spec(), |sources| sources.schema = Some(Source::unnamed(schema)));
    let run = paying.run(Some("acme/a"));
    assert!(paying.check(&run, "send").allowed());
    assert!(paying.call(&run, request("m", 5, 200)).0.allowed());
    assert_eq!(paying.call(&run, ModelRequest { n: 2, ..request("m", 5, 200) }).0.code(), Code::PolicyNoPermit);
    assert_eq!(paying.check(&run, "send").code(), Code::PolicyNoPermit);
}

#[test]
fn a_model_call_holds_the_worst_case_and_settles_to_its_usage() {
    let paying = Paying::new(ledger_spec(), |_| ());
    let run = paying.run(Some("money"));
    let (decision, call) = paying.call(&run, ModelRequest { n: 2, ..request("m", 100, 50) });
    // 100 x 1,000 nano-USD and 2 x 50 x 2,000.
    assert_eq!(paying.of("money", Unit::NanoUsd), (0, 300_000));
    assert!(call.charge(30) && call.charge(0) && call.charged_tokens() == 130);
    let usage = ModelUsage { prompt: Some(100), cached: 80, completion: Some(40), others: Vec::new() };
    assert!(call.settle(&usage).unwrap() && !call.settle(&usage).unwrap());
    // 20 x 1,000 + 80 x 100 + 40 x 2,000.
    assert_eq!(paying.of("money", Unit::NanoUsd), (108_000, 0));
    assert!(!call.charge(1) && !call.end());
    drop(decision);
    assert_eq!(paying.of("money", Unit::NanoUsd), (108_000, 0));
    // A component without a price costs the whole hold; what cannot be is refused, and the call goes on.
    let (_held, call) = paying.call(&run, request("m", 100, 50));
    let odd = ModelUsage { cached: 101, ..ModelUsage::default() };
    assert!(call.settle(&odd).is_err() && call.settle(&ModelUsage { completion: Some(-1), ..odd }).is_err());
    assert!(call.settle(&ModelUsage { others: vec![("audio", 1)], ..ModelUsage::default() }).unwrap());
    assert_eq!(paying.of("money", Unit::NanoUsd), (308_000, 0));
    // What is charged piece by piece is rounded once.
    let (_held, call) = paying.call(&run, request("odd", 0, 10));
    for _ in 0..10 {
        assert!(call.charge(1));
    }
    assert!(call.end());
    assert_eq!(paying.of("money", Unit::NanoUsd), (308_015, 0));
}

#[test]
fn a_stream_broken_anywhere_costs_what_it_streamed() {
    for pieces in 0..=5 {
        let paying = Paying::new(ledger_spec(), |_| ());
        let (acme, money) = (paying.run(Some("acme/a")), paying.run(Some("money")));
        for run in [&acme, &money] {
            let (_decision, call) = paying.call(run, request("m", 100, 50));
            assert!((0..pieces).all(|_| call.charge(10)));
            assert!(call.end());
        }
        // What did not stream may have used everything.
        let pieces = if pieces == 0 { 5 } else { pieces };
        assert_eq!(paying.of("acme", Unit::Tokens), (100 + 10 * pieces, 0));
        assert_eq!(paying.of("acme", Unit::InFlight), (0, 0));
        assert_eq!(paying.of("acme/a", Unit::Requests), (1, 0));
        assert_eq!(paying.of("money", Unit::NanoUsd), (100_000 + 20_000 * pieces, 0));
    }
    // More than was held stops, and is debt.
    let paying = Paying::new(ledger_spec(), |_| ());
    let (_decision, call) = paying.call(&paying.run(Some("acme/a")), request("m", 900, 100));
    assert!(call.charge(100) && !call.charge(1) && !call.charge(0));
    assert!(call.end());
    assert_eq!(paying.of("acme/a", Unit::Tokens), (1_001, 0));
    // Nothing charged is not nothing used.
    let (_decision, call) = paying.call(&paying.run(Some("acme")), request("m", 0, 70));
    assert!(call.end());
    assert_eq!(paying.of("acme", Unit::Tokens), (1_001 + 70, 0));
}

#[test]
fn incremental_admission_tops_up_until_the_budget_ends() {
    let spec = LedgerSpec { admission: Admission::Incremental, increment_tokens: 64, ..ledger_spec() };
    let paying = Paying::new(spec, |_| ());
    let run = paying.run(Some("acme/a"));
    let (_decision, call) = paying.call(&run, request("m", 800, 10_000));
    assert_eq!(paying.of("acme/a", Unit::Tokens), (0, 864));
    assert!(call.charge(60) && call.charge(10));
    assert_eq!(paying.of("acme/a", Unit::Tokens), (0, 928));
    assert!(call.charge(120), "less than a step is left, and it is enough");
    assert_eq!(paying.of("acme/a", Unit::Tokens), (0, 992));
    assert!(call.charge(10) && !call.charge(1), "the budget is at its end");
    assert!(call.end());
    assert_eq!(paying.of("acme/a", Unit::Tokens), (1_001, 0));
    // No more than was asked for.
    let (_decision, call) = paying.call(&paying.run(Some("acme")), request("m", 10, 100));
    assert!(call.charge(100) && !call.charge(1));
    assert_eq!(paying.of("acme", Unit::Tokens), (1_001, 110));
    // Money is topped up with the tokens.
    let (_decision, call) = paying.call(&paying.run(Some("money")), request("m", 100, 400));
    assert_eq!(paying.of("money", Unit::NanoUsd), (0, 100_000 + 128_000));
    assert!(call.charge(400));
    assert_eq!(paying.of("money", Unit::NanoUsd), (0, 100_000 + 800_000));
    assert!(call.settle(&ModelUsage::default()).unwrap());
    assert_eq!(paying.of("money", Unit::NanoUsd), (900_000, 0));
}

#[test]
fn of_twenty_at_once_ten_that_are_affordable_go_ahead() {
    let spec =
        LedgerSpec { budgets: vec![budget("ten", vec![limit(Unit::Tokens, Window::Day, 3_000)])], ..ledger_spec() };
    let paying = Paying::new(spec, |_| ());
    let run = paying.run(Some("ten"));
    let allowed: Vec<Decision> = std::thread::scope(|threads| {
        let tasks: Vec<_> = (0..20).map(|_| threads.spawn(|| paying.check(&run, "think"))).collect();
        tasks.into_iter().map(|task| task.join().unwrap()).filter(Decision::allowed).collect()
    });
    assert_eq!(allowed.len(), 10);
    drop(allowed);
    assert_eq!(paying.of("ten", Unit::Tokens), (3_000, 0));
    paying.clock.advance(86_400_000);
    assert!(paying.check(&run, "think").allowed(), "a new day");
}
