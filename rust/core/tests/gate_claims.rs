//! What a check claims in the log's ring before it knows its verdict is enough for the record, whatever the verdict is:
//! over generated policies, chains, forbids of runs, approvals, budgets and modes. In these tests a record that does not
//! fit is a panic; in a release it is a denial that is recorded.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests")]

mod generate;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use generate::{Seeded, Source as _, filled, plain};
use serde_json::json;
use tollkeeper_core::audit::log::{Durability, Log, LogOptions};
use tollkeeper_core::budget::clock::SystemClock;
use tollkeeper_core::budget::ledger::Ledger;
use tollkeeper_core::budget::tree::{BudgetSpec, LedgerSpec, LimitSpec};
use tollkeeper_core::budget::unit::{Amounts, Unit};
use tollkeeper_core::budget::window::Window;
use tollkeeper_core::gate::Gate;
use tollkeeper_core::gate::asserted::Asserted;
use tollkeeper_core::gate::check::Scratch;
use tollkeeper_core::gate::control::ApprovalId;
use tollkeeper_core::gate::decision::Decision;
use tollkeeper_core::gate::evidence::{Audit, Links, OnFull};
use tollkeeper_core::gate::model_call::ModelRequest;
use tollkeeper_core::gate::scope::{Narrow, Scope, ScopeSpec};
use tollkeeper_core::gate::state::{GateMode, GateSources, OnError, UnguardedForbid};
use tollkeeper_core::gate::tools::ToolSpec;
use tollkeeper_core::policy::entities::EntityData;
use tollkeeper_core::policy::parse::Source;
use tollkeeper_core::uid::EntityUid;

const LONG: &str = "a234567890123456789012345678901234567890123456789012345678901234";

fn ledger(limit: i64) -> Arc<Ledger> {
    let limits: Vec<LimitSpec> = [Unit::Tokens, Unit::Requests]
        .into_iter()
        .map(|unit| LimitSpec { unit, window: Window::Month, limit, overdraft: 0 })
        .collect();
    let deep = format!("{LONG}/{LONG}");
    let paths = [LONG.to_owned(), deep.clone(), format!("{deep}/x")];
    let budgets = paths.map(|path| BudgetSpec { path, limits: limits.clone(), children_max: None });
    let spec = LedgerSpec { budgets: budgets.to_vec(), holds: 1_024, ..LedgerSpec::default() };
    Arc::new(Ledger::anonymous(spec, Arc::new(SystemClock)).unwrap())
}

fn policies(seed: &mut Seeded) -> String {
    let mut text = String::new();
    for number in 0..2 + seed.below(5) {
        let policy = generate::policy(seed);
        let _ = write!(text, "@id(\"{}\\\"{number}\") ", "p".repeat(seed.below(40) as usize));
        if seed.below(3) == 0 {
            let _ = write!(text, "@obligation(\"{}\") ", "\\n".repeat(seed.below(300) as usize));
        }
        if seed.below(4) == 0 {
            text.push_str("@mode(\"shadow\") ");
        }
        if policy.starts_with("permit") && seed.below(4) == 0 {
            text.push_str("@approval(\"boss\") ");
        }
        if seed.below(4) == 0 {
            text.push_str("@durability(\"checkpointed\") ");
        }
        text.push_str(&policy);
    }
    if seed.below(2) == 0 {
        text.push_str("@obligation(\"tell\") permit(principal, action, resource);\n");
    }
    if seed.below(3) == 0 {
        text.push_str(
            "permit(principal, action, resource) when { context has budget && context.budget has tokens };\n",
        );
    }
    text
}

fn gate(seed: &mut Seeded, log: &Arc<Log>) -> Gate {
    let (text, entities) = (policies(seed), generate::entities(seed).to_string());
    let tool = |number: u32| ToolSpec {
        name: format!("tool{number}"),
        resource: Arc::new(EntityUid::new("Mcp", "m0")),
        schema: None,
        paths: Vec::new(),
        cost: (number > 1).then(|| Amounts::of(Unit::Tokens, 7).and(Unit::Requests, 1).and(Unit::InFlight, 1)),
        reads: vec!["la\"bel".to_owned()],
    };
    let audit = Audit { log: Arc::clone(log), on_full: OnFull::Deny, durability: Durability::Group };
    let sources = GateSources {
        policies: vec![Source { name: Some("p.cedar"), text: &text }],
        entities: Some(Source { name: None, text: &entities }),
        tools: (0..4).map(tool).collect(),
        mode: if seed.below(3) == 0 { GateMode::Shadow } else { GateMode::Enforce },
        on_error: if seed.below(2) == 0 { OnError::Cedar } else { OnError::Deny },
        unguarded_forbid: UnguardedForbid::Warn,
        ledger: (seed.below(4) > 0).then(|| ledger(if seed.below(2) == 0 { 20 } else { 1 << 50 })),
        audit: Some(Arc::new(audit)),
        ..GateSources::default()
    };
    Gate::open(&sources, 7).unwrap()
}

fn user(seed: &mut Seeded) -> EntityData {
    EntityData::new(EntityUid::new("User", &format!("u{}", seed.below(6))))
}

fn scope(seed: &mut Seeded, gate: &Gate) -> Scope {
    let (state, now_ms) = (gate.state(), gate.now_ms());
    let mut narrow = Narrow::default();
    if state.ledger().is_some() && seed.below(4) > 0 {
        narrow.budget = Some([LONG.to_owned(), format!("{LONG}/{LONG}/x")][seed.below(2) as usize].clone());
    }
    if seed.below(3) == 0 {
        narrow.forbid =
            vec![format!("@id(\"{LONG}\") forbid(principal, action, resource == Mcp::\"m{}\");", seed.below(3))];
    }
    if seed.below(4) == 0 {
        narrow.tools = Some(vec!["tool1".to_owned()]);
    }
    let on_behalf_of = (seed.below(3) == 0).then(|| EntityUid::new("User", "o"));
    let spec = ScopeSpec { principal: user(seed), session: "s\"1".to_owned(), on_behalf_of, narrow };
    let outer = Scope::new(spec, &state, now_ms).unwrap();
    let inner = (seed.below(2) == 0).then(|| outer.delegated(user(seed), &Narrow::default(), &state, now_ms).ok());
    inner.flatten().unwrap_or(outer)
}

/// Any kind of question, and its answer where somebody has to approve.
fn ask(seed: &mut Seeded, gate: &Gate, scope: &Scope) -> Decision {
    let (now_ms, mut scratch) = (gate.now_ms(), Scratch::new());
    let asserted = Arc::new(Asserted::new([("run", LONG)]).unwrap().unwrap());
    let links = Links {
        parent: (seed.below(2) == 0).then_some(LONG),
        trace: (seed.below(2) == 0).then_some((u128::MAX, u64::MAX)),
        asserted: (seed.below(2) == 0).then_some(&asserted),
    };
    match seed.below(8) {
        0 => {
            let narrow = Narrow { tools: Some(vec!["tool1".to_owned(); 3]), ..Narrow::default() };
            if let Ok(inner) = scope.delegated(user(seed), &narrow, &gate.state(), now_ms) {
                return gate.check_delegate(scope, &inner, now_ms, links, &mut scratch);
            }
        }
        1 => {
            let request = ModelRequest { model: "m\"1", prompt_tokens: 3, max_tokens: 1 << 40, n: 2 };
            return gate.check_model_linked(Some(scope), &request, now_ms, links, &mut scratch).0;
        }
        _ => {}
    }
    let tool = format!("tool{}", seed.below(5));
    let input = generate::request(seed).context.get("input").map_or(json!({}), plain);
    let decision = gate.check_linked(Some(scope), &tool, &mut filled(&input), now_ms, links, &mut scratch);
    let Some(digest) = decision.binding().map(|binding| binding.digest) else { return decision };
    let (id, control) = (ApprovalId(decision.id().number), Arc::clone(gate.state().control()));
    if control.ask(id, &digest, now_ms + 60_000, now_ms).is_ok() {
        let _ = control.answer(id, seed.below(3) > 0, now_ms + 60_000, None, now_ms);
    }
    gate.check_linked(Some(scope), &tool, &mut filled(&input), now_ms, links, &mut scratch)
}

#[test]
fn every_record_fits_what_was_claimed_for_it() {
    let folder = std::env::temp_dir().join(format!("tollkeeper-gate-claims-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    let log = Arc::new(Log::open(&folder, LogOptions::new("example.com/gate", 7)).unwrap());
    let mut seed = Seeded(77);
    let mut codes: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..250 {
        let gate = gate(&mut seed, &log);
        let scopes = [scope(&mut seed, &gate), scope(&mut seed, &gate)];
        for _ in 0..20 {
            let which = seed.below(2) as usize;
            let decision = ask(&mut seed, &gate, &scopes[which]);
            let recorded = decision.recorded();
            assert!(recorded.is_some(), "{} {}", decision.code(), decision.reason());
            let shadow = if decision.would_deny().is_some() { " in shadow" } else { "" };
            *codes.entry(format!("{}{shadow}", decision.code())).or_default() += 1;
        }
        log.flush(10_000).unwrap();
    }
    log.close().unwrap();
    let _ = std::fs::remove_dir_all(&folder);
    assert!(codes.len() >= 10 && codes.values().filter(|count| **count > 20).count() >= 8, "{codes:?}");
}
