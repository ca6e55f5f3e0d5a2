//! Explanations: snapshots of what people read, and explanations held to the decisions they explain.
//!
//! `TOLLKEEPER_SNAPSHOTS=write cargo test --test explain` rewrites the snapshots; read them before committing.
//! `TOLLKEEPER_ORACLE_DECISIONS=200000` explains more requests.

#![expect(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "tests")]

mod generate;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use generate::{Seeded, Source as _};
use tollkeeper_core::policy::cases::Coverage;
use tollkeeper_core::policy::entities::{Entities, context_from_json};
use tollkeeper_core::policy::eval::Request;
use tollkeeper_core::policy::explain::matrix::Claim;
use tollkeeper_core::policy::explain::{self, Axes, Column, Explanation, Outcome, Row};
use tollkeeper_core::policy::parse::Source;
use tollkeeper_core::policy::set::{Decision, LoadOptions, Mode, PolicySet, Scratch};
use tollkeeper_core::policy::tree::Effect;
use tollkeeper_core::uid::EntityUid;

const AGENTS: &str = include_str!("snapshots/agents.cedar");

fn load(text: &str) -> PolicySet {
    PolicySet::load(&[Source { name: Some("agents.cedar"), text }], None, LoadOptions::default()).unwrap()
}

fn entities() -> Entities {
    let document = serde_json::json!([
        {"uid": {"type": "Agent", "id": "mia"}, "attrs": {"contacts": ["pat@partner.org"], "token_limit": 1000},
         "parents": [{"type": "Team", "id": "finance"}]},
        {"uid": {"type": "Agent", "id": "ray"}, "attrs": {"token_limit": 1000},
         "parents": [{"type": "Team", "id": "contractors"}, {"type": "Team", "id": "ops"}], "tags": {"freeze": "on"}},
        {"uid": {"type": "Team", "id": "finance"}, "attrs": {}, "parents": []},
        {"uid": {"type": "Team", "id": "ops"}, "attrs": {}, "parents": []},
        {"uid": {"type": "Team", "id": "contractors"}, "attrs": {}, "parents": []},
        {"uid": {"type": "Action", "id": "read_file"}, "attrs": {}, "parents": [{"type": "Action", "id": "call_tool"}]},
        {"uid": {"type": "Action", "id": "send_email"}, "attrs": {}, "parents": [{"type": "Action", "id": "call_tool"}]},
        {"uid": {"type": "Action", "id": "transfer"}, "attrs": {}, "parents": [{"type": "Action", "id": "call_tool"}]},
        {"uid": {"type": "Action", "id": "call_tool"}, "attrs": {}, "parents": []},
        {"uid": {"type": "Action", "id": "call_model"}, "attrs": {}, "parents": []},
        {"uid": {"type": "Action", "id": "get_time"}, "attrs": {}, "parents": []},
    ]);
    Entities::from_json(&document.to_string(), None).unwrap()
}

fn ask(
    set: &PolicySet,
    entities: &Entities,
    who: (&str, &str),
    action: &str,
    on: (&str, &str),
    context: &str,
) -> Explanation {
    let context = context_from_json(context).unwrap();
    let (principal, action) = (EntityUid::new(who.0, who.1), EntityUid::new("Action", action));
    let resource = EntityUid::new(on.0, on.1);
    let request = Request { principal: &principal, action: &action, resource: &resource, context: context.as_value() };
    explain::request(set, &request, entities)
}

#[track_caller]
fn snapshot(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(name);
    if std::env::var("TOLLKEEPER_SNAPSHOTS").is_ok_and(|mode| mode == "write") {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{name} differs; TOLLKEEPER_SNAPSHOTS=write rewrites it");
}

#[test]
fn policies_in_words() {
    let set = load(AGENTS);
    let texts: Vec<String> = (0..set.len()).map(|at| explain::policy(&set, u32::try_from(at).unwrap())).collect();
    assert_eq!(texts.join("\n"), explain::policies(&set));
    snapshot("policies.txt", &texts.join("\n"));
}

#[test]
fn every_operator_in_words() {
    let conditions = [
        "true",
        "!false",
        "context has input",
        "!(context.input has a.b)",
        "context.input[\"odd name\"] == \"x\"",
        "context.input.items has \"odd name\"",
        "principal.address.city != \"Rome\"",
        "10 < context.input.n",
        "10 >= context.input.n",
        "context.now < datetime(\"2026-01-02\")",
        "context.now.offset(duration(\"1h\")) <= context.deadline",
        "context.now.durationSince(context.started).toMinutes() > 5",
        "context.now.toDate() == datetime(\"2026-01-02\")",
        "-context.input.a * (context.input.b - 1) == 3",
        "principal in resource.team",
        "!(principal in [Team::\"a\", Team::\"b\"])",
        "resource is Mcp in Team::\"a\"",
        "context.input.tags.containsAll([\"a\", \"b\"])",
        "!context.input.tags.containsAny(principal.tags)",
        "context.input.tags.isEmpty()",
        "context.input.path like \"/srv/*/logs/*.txt\"",
        "context.input.path like \"a\\*b*\"",
        "!(context.input.path like \"*\")",
        "ip(context.input.ip).isIpv6()",
        "!context.ip.isInRange(ip(\"10.0.0.0/8\"))",
        "decimal(context.input.price).greaterThanOrEqual(decimal(\"1.25\"))",
        "principal.hasTag(\"team\") && principal.getTag(\"team\") == resource.getTag(\"team\")",
        "if context.input.dry then true else principal.level > 3",
        "!(context.a && (context.b || context.c))",
        "context.a || (context.b && context.c)",
        "{a: context.x, b: 1}.a == 2",
        "[context.x, 1].contains(2)",
        "(context.x == 1) == (context.y == 2)",
        "context.kind == \"a\" || context.kind == \"b\" || \"c\" == context.kind",
        "[1,2,3,4,5,6,7,8,9,10,11].contains(context.n)",
        "decimal(\"x\") == decimal(\"1.0\")",
        "context.note == \"\\u{202e}\\n\\\"quoted\\\"\"",
    ];
    let mut text = String::new();
    for condition in conditions {
        let set = load(&format!("permit (principal, action, resource) when {{ {condition} }};"));
        let words = explain::policy(&set, 0);
        let body: Vec<&str> = words.lines().skip(1).map(str::trim).collect();
        let _ = writeln!(text, "{condition}\n    {}", body.join("\n    "));
    }
    snapshot("operators.txt", &text);
}

#[test]
fn scopes_in_words() {
    let set = load(
        "permit (principal == User::\"a\", action == Action::\"run it\", resource in Folder::\"x\");
         forbid (principal in Team::\"t\", action in Action::\"all\", resource is Mcp in Host::\"h\");
         permit (principal is User, action in [], resource);
         permit (principal is Ns::User in Team::\"t\", action == Ns::Action::\"go\", resource == Mcp::\"m\");",
    );
    let texts: String = (0..4).map(|at| explain::policy(&set, at)).collect();
    snapshot("scopes.txt", &texts);
}

#[test]
fn templates_and_links_in_words() {
    let text = "permit (principal == ?principal, action == Action::\"x\", resource in ?resource) unless { context.a };";
    let set = std::sync::Arc::new(load(text));
    let linked =
        set.link("policy0", "link1", Some(EntityUid::new("User", "a")), Some(EntityUid::new("Folder", "f"))).unwrap();
    assert_eq!(
        explain::policies(&linked),
        "agents.cedar:1:1: link1 permits User::\"a\" to x on anything in Folder::\"f\"\n  unless context a is true\n  \
         linked from template policy0\n\nagents.cedar:1:1: policy0 permits ?principal to x on anything in ?resource\n  \
         unless context a is true\n"
    );
    let explanation = ask(&linked, &Entities::empty(), ("User", "a"), "x", ("Folder", "f"), r#"{"a": false}"#);
    assert_eq!(explanation.decision, Decision::Allow);
}

#[test]
fn requests_explained() {
    let (set, store) = (load(AGENTS), entities());
    let mut text = String::new();
    let mut add = |title: &str, explanation: &Explanation| {
        let _ = write!(text, "# {title}\n{explanation}\n");
    };
    let (mia, ray, fs, bank, mail) =
        (("Agent", "mia"), ("Agent", "ray"), ("Mcp", "fs"), ("Mcp", "bank"), ("Mcp", "gmail"));
    let office = r#""ip": {"__extn": {"fn": "ip", "arg": "10.1.2.3"}}"#;
    let ask = |who, action, on, context: &str| ask(&set, &store, who, action, on, context);
    add(
        "a transfer that is too large",
        &ask(mia, "transfer", bank, r#"{"input": {"amount": 250, "currency": "EUR"}}"#),
    );
    add(
        "a transfer that is allowed",
        &ask(mia, "transfer", bank, &format!(r#"{{"input": {{"amount": 50, "currency": "EUR"}}, {office}}}"#)),
    );
    add(
        "a key file",
        &ask(
            ray,
            "read_file",
            fs,
            r#"{"input": {"path": "/srv/tls/site.key"}, "now": {"__extn": {"fn": "datetime", "arg": "2026-11-01"}}}"#,
        ),
    );
    add("a mail to a stranger", &ask(mia, "send_email", mail, r#"{"input": {"to": "eve@evil.org"}}"#));
    add(
        "a mail after untrusted text",
        &ask(mia, "send_email", mail, r#"{"input": {"to": "a@example.com"}, "session": {"labels": ["untrusted"]}}"#),
    );
    add(
        "an unknown agent",
        &ask(("Agent", "ghost"), "transfer", bank, r#"{"input": {"amount": 5, "currency": "EUR"}}"#),
    );
    add("a wrong tool and a wrong team", &ask(("User", "bob"), "delete_file", fs, "{}"));
    add(
        "a model call over the limit",
        &ask(
            ray,
            "call_model",
            ("Model", "m1"),
            r#"{"input": {"model": "small", "prompt_tokens": 400, "max_tokens": 400}}"#,
        ),
    );
    add(
        "a forbid that cannot be evaluated",
        &ask(ray, "read_file", fs, &format!(r#"{{"input": {{"path": "/srv/a"}}, {office}}}"#)),
    );
    add(
        "the freeze",
        &ask(
            ray,
            "read_file",
            fs,
            r#"{"input": {"path": "/srv/a"}, "now": {"__extn": {"fn": "datetime", "arg": "2026-12-25"}}}"#,
        ),
    );
    snapshot("requests.txt", &text);
}

#[test]
fn program_listing() {
    let set = load(AGENTS);
    snapshot("program.txt", &explain::program(&set));
}

#[test]
fn matrix_of_agents() {
    let (set, store) = (load(AGENTS), entities());
    let found = Axes::found(&set, &store);
    snapshot("matrix.txt", &explain::matrix(&set, &store, found).to_string());
    let nobody = Entities::empty();
    let found = Axes::found(&set, &nobody);
    snapshot("matrix_without_entities.txt", &explain::matrix(&set, &nobody, found).to_string());
}

#[test]
fn coverage_names_what_no_case_reached() {
    let (set, store) = (load(AGENTS), entities());
    let mut coverage = Coverage::new(&set);
    for (who, action, on, context) in [
        (("Agent", "mia"), "transfer", ("Mcp", "bank"), r#"{"input": {"amount": 50, "currency": "EUR"}}"#),
        (
            ("Agent", "mia"),
            "send_email",
            ("Mcp", "gmail"),
            r#"{"input": {"to": "a@example.com"}, "session": {"labels": ["secret"]}}"#,
        ),
        (("Agent", "mia"), "get_time", ("Mcp", "clock"), r#"{"ip": {"__extn": {"fn": "ip", "arg": "127.0.0.1"}}}"#),
    ] {
        coverage.record(&ask(&set, &store, who, action, on, context));
    }
    assert_eq!(coverage.cases(), 3);
    assert_eq!(coverage.counts(1).satisfied, 1, "a permit that a forbid overruled is satisfied");
    assert_eq!(coverage.counts(1).decided, 0);
    assert_eq!(coverage.never_reached(), [0, 7, 8]);
    snapshot("coverage.txt", &format!("{coverage}\n"));
}

#[test]
fn deep_and_wide_conditions_stay_short() {
    let wide: Vec<String> = (0..2_000).map(|n| format!("context.a{n} like \"*{n}*\"")).collect();
    let deep = (0..20)
        .fold("context.x".to_owned(), |inner, n| format!("(if context.c{n} then true else ({inner} || context.d{n}))"));
    let chain: Vec<String> = (0..2_000).map(|n| format!("context.n{n}")).collect();
    let set = load(&format!(
        "permit (principal, action, resource) when {{ ({}) || false }};
         permit (principal, action, resource) when {{ {deep} }};
         permit (principal, action, resource) when {{ {} < 3 }};
         permit (principal, action, resource) when {{ context.t == \"{}\" }};
         permit (principal, action, resource) when {{ context{} == 1 }};",
        wide.join(" || "),
        chain.join(" + "),
        "x".repeat(100_000),
        ".attribute".repeat(3_000),
    ));
    for policy in 0..5 {
        let text = explain::policy(&set, policy);
        assert!(text.len() < 1_200, "{} bytes: {text}", text.len());
        assert!(text.contains("..."), "{text}");
    }
    let store = Entities::empty();
    let text = ask(&set, &store, ("User", "a"), "x", ("Mcp", "m"), &format!(r#"{{"t": "{}"}}"#, "y".repeat(10_000)))
        .to_string();
    assert!(text.len() < 6_000, "{} bytes", text.len());
}

#[test]
fn nothing_steers_the_terminal() {
    let set = load(
        "@id(\"a\u{1b}[2J\") @reason(\"b\u{202e}\") permit (principal == User::\"\u{1b}\", action, resource) when { context[\"\u{1b}\"] == \"\u{7}\" };",
    );
    let store = Entities::empty();
    let context = serde_json::json!({"\u{1b}": "\u{1b}[2J"}).to_string();
    let seen = [
        explain::policy(&set, 0),
        explain::program(&set),
        explain::matrix(&set, &store, Axes::found(&set, &store)).to_string(),
        ask(&set, &store, ("User\u{1b}", "\u{1b}"), "\u{1b}", ("Mcp", "\u{1b}"), &context).to_string(),
        Coverage::new(&set).to_string(),
    ];
    for text in seen {
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    }
}

fn uid((ty, id): &(String, String)) -> EntityUid {
    EntityUid::new(ty, id)
}

/// The explanation's satisfied and erring policies are those of the decision.
fn agrees(set: &PolicySet, request: &Request<'_>, store: &Entities, text: &str) {
    let answer = set.decide(request, store, &mut Scratch::new(), Mode::Full);
    let explanation = explain::request(set, request, store);
    assert_eq!(explanation.decision, answer.decision);
    let of = |wanted: fn(&Outcome) -> bool, effect: Option<Effect>| -> BTreeSet<u32> {
        let candidates = explanation.candidates.iter().filter(|c| wanted(&c.outcome));
        candidates.filter(|c| effect.is_none_or(|effect| effect == c.effect)).map(|c| c.policy).collect()
    };
    let satisfied = |effect| of(|outcome| *outcome == Outcome::Satisfied, Some(effect));
    let forbids = satisfied(Effect::Forbid);
    let permits = satisfied(Effect::Permit);
    let allow = forbids.is_empty() && !permits.is_empty();
    assert_eq!(allow, answer.decision == Decision::Allow, "{text}{explanation}");
    let expected: BTreeSet<u32> = answer.reasons.iter().copied().collect();
    assert_eq!(if allow { permits } else { forbids.clone() }, expected, "{text}{explanation}");
    let erred: BTreeSet<u32> = answer.errors(set).iter().map(|fault| fault.policy).collect();
    assert_eq!(of(|outcome| matches!(outcome, Outcome::Error(_)), None), erred, "{text}{explanation}");
    assert_eq!(explanation.forbid_erred(), answer.forbid_erred);
    let permit_exists = set.policies().iter().any(|body| body.effect == Effect::Permit);
    assert_eq!(explanation.nearest.is_some(), !allow && forbids.is_empty() && permit_exists);
    if let Some(nearest) = &explanation.nearest {
        assert!(!nearest.lacks.is_empty(), "{text}{explanation}");
    }
    // Without shadow policies the gate differs from the language only where a forbid erred.
    let gate = if answer.forbid_erred { Decision::Deny } else { answer.decision };
    assert_eq!(explanation.gate_decision(), gate);
}

/// A cell that says `allow` or `never` is right about every request that belongs to it.
fn matrix_holds(
    set: &PolicySet,
    request: &Request<'_>,
    store: &Entities,
    matrix: &explain::Matrix,
    text: &str,
) -> usize {
    let decision = set.decide(request, store, &mut Scratch::new(), Mode::Full).decision;
    let has_type = |ty: &str| matrix.axes.rows.contains(&Row::Type(ty.into()));
    let mut certain = 0;
    for (row, cells) in matrix.axes.rows.iter().zip(&matrix.cells) {
        let belongs = match row {
            Row::Type(ty) => **ty == *request.principal.ty(),
            Row::Principal(own) => **own == *request.principal,
            Row::Group(group) => {
                **group == *request.principal || store.get(request.principal).is_some_and(|e| e.has_ancestor(group))
            }
            Row::Other => !has_type(request.principal.ty()),
        };
        for (column, cell) in matrix.axes.columns.iter().zip(cells).filter(|_| belongs) {
            let belongs = match column {
                Column::Action(own) => **own == *request.action,
                Column::Other => {
                    !matrix.axes.columns.iter().any(|c| matches!(c, Column::Action(a) if **a == *request.action))
                }
            };
            let expected = match cell.claim {
                Claim::Allow => Decision::Allow,
                Claim::Never => Decision::Deny,
                Claim::When => continue,
            };
            if belongs {
                certain += 1;
                assert_eq!(decision, expected, "{row} {column} {request:?}\n{text}{matrix}");
            }
        }
    }
    certain
}

#[test]
fn explanations_agree_with_decisions() {
    let mut seed = Seeded(20_261_122);
    let mut certain = 0usize;
    let wanted: usize =
        std::env::var("TOLLKEEPER_ORACLE_DECISIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(3_600);
    for round in 0..wanted / 30 {
        // Small sets have cells that are certain; in large ones the index leaves candidates out.
        let size = match round % 12 {
            0 | 3 | 6 | 9 => 1 + seed.below(4),
            1 => 200 + seed.below(200),
            _ => 1 + seed.below(40),
        };
        let mut text = generate::policies(&mut seed, size);
        // The generator's conditions make most cells a `when`; scopes alone make the others.
        if round % 2 == 0 {
            text = text
                .lines()
                .map(|line| match line.find(") when").or_else(|| line.find(") unless")) {
                    Some(end) if seed.below(3) > 0 => format!("{});\n", line.get(..end).unwrap()),
                    _ => format!("{line}\n"),
                })
                .collect();
        }
        let set = load(&text);
        let store = Entities::from_json(&generate::entities(&mut seed).to_string(), None).unwrap();
        let matrix = explain::matrix(&set, &store, Axes::found(&set, &store));
        for _ in 0..30 {
            let asked = generate::request(&mut seed);
            let context = context_from_json(&asked.context.to_string()).unwrap();
            let (principal, action, resource) = (uid(&asked.principal), uid(&asked.action), uid(&asked.resource));
            let request =
                Request { principal: &principal, action: &action, resource: &resource, context: context.as_value() };
            agrees(&set, &request, &store, &text);
            certain += matrix_holds(&set, &request, &store, &matrix, &text);
        }
    }
    println!("{certain} certain cells were asked");
    assert!(certain > wanted / 6, "only {certain} certain cells were asked");
}
