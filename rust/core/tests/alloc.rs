//! A warm decision allocates nothing: counted, not believed.
//!
//! Its own binary, because the counting allocator counts the whole process.

#![expect(
    clippy::unwrap_used,
    clippy::format_collect,
    unsafe_code,
    reason = "tests; a counting allocator has to be an allocator"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use tollkeeper_core::arguments::Arguments;
use tollkeeper_core::budget::clock::SystemClock;
use tollkeeper_core::budget::ledger::Ledger;
use tollkeeper_core::budget::tree::{BudgetSpec, LedgerSpec, LimitSpec};
use tollkeeper_core::budget::unit::Unit;
use tollkeeper_core::budget::window::Window;
use tollkeeper_core::gate::Gate;
use tollkeeper_core::gate::check;
use tollkeeper_core::gate::scope::{Narrow, Scope, ScopeSpec};
use tollkeeper_core::gate::state::GateSources;
use tollkeeper_core::gate::tools::ToolSpec;
use tollkeeper_core::policy::entities::{Entities, EntityData, context_from_json};
use tollkeeper_core::policy::eval::Request;
use tollkeeper_core::policy::parse::Source;
use tollkeeper_core::policy::set::{Decision, LoadOptions, Mode, PolicySet, Scratch};
use tollkeeper_core::uid::EntityUid;
use tollkeeper_core::value::Value;

thread_local! {
    /// Allocations of this thread; the test harness has threads of its own.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get().wrapping_add(1)));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get().wrapping_add(1)));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of `work` once it has run a few times.
fn warm(mut work: impl FnMut()) -> usize {
    for _ in 0..4 {
        work();
    }
    let before = COUNT.with(Cell::get);
    for _ in 0..16 {
        work();
    }
    COUNT.with(Cell::get).wrapping_sub(before)
}

/// Policies of which one or two match each request, some of them with conditions that need the arena.
fn policies(count: usize) -> String {
    (0..count)
        .map(|number| {
            let (team, tool) = (number % 7, number / 7);
            let effect = if number % 10 == 9 { "forbid" } else { "permit" };
            let condition = match number % 4 {
                0 => "context.input.path like \"/data/*\" && context.input.amount < 50",
                1 => "[context.input.path, \"/etc\"].contains(\"/data/x\") && context.input has amount",
                2 => "context.input == {path: \"/data/x\", amount: 7, tags: [\"a\", \"b\"]}",
                _ => "context.input.tags.containsAny([\"a\", \"z\"]) && principal.level > 2",
            };
            format!("{effect} (principal in Team::\"t{team}\", action == Action::\"tool{tool}\", resource) when {{ {condition} }};\n")
        })
        .collect()
}

fn fill(arguments: &mut Arguments) {
    arguments.reset(1 << 16);
    arguments.open_object(None).unwrap();
    arguments.open_object(Some("input")).unwrap();
    arguments.push_str(Some("path"), "/data/x").unwrap();
    arguments.push_long(Some("amount"), 7).unwrap();
    arguments.open_list(Some("tags")).unwrap();
    arguments.push_str(None, "b").unwrap();
    arguments.push_str(None, "a").unwrap();
    arguments.close();
    arguments.close();
    arguments.close();
}

fn asked<'r>([principal, action, resource]: &'r [Arc<EntityUid>; 3], context: Value<'r>) -> Request<'r> {
    Request { principal, action, resource, context }
}

#[test]
fn a_warm_decision_allocates_nothing() {
    let document = r#"[
        {"uid": {"type": "User", "id": "u"}, "attrs": {"level": 3}, "parents": [
            {"type": "Team", "id": "t0"}, {"type": "Team", "id": "t1"}, {"type": "Team", "id": "t2"}, {"type": "Team", "id": "t3"}]},
        {"uid": {"type": "Team", "id": "t1"}, "attrs": {}, "parents": [{"type": "Team", "id": "all"}]}
    ]"#;
    let entities = Entities::from_json(document, None).unwrap();
    let context = context_from_json(r#"{"input": {"path": "/data/x", "amount": 7, "tags": ["a", "b"]}}"#).unwrap();
    let principal = Arc::new(EntityUid::new("User", "u"));
    let resource = Arc::new(EntityUid::new("Server", "s"));
    for count in [1, 10, 100, 1_000] {
        let text = policies(count);
        let set = PolicySet::load(&[Source { name: None, text: &text }], None, LoadOptions::default()).unwrap();
        let mut scratch = Scratch::new();
        let mut arguments = Arguments::new();
        let mut reasons = 0;
        for tool in 0..count.div_ceil(7) {
            let action = Arc::new(EntityUid::new("Action", &format!("tool{tool}")));
            let uids = [Arc::clone(&principal), action, Arc::clone(&resource)];
            let prepared = set.prepare(&uids[0], &uids[1], &uids[2], &entities);
            for mode in [Mode::Full, Mode::DecisionOnly] {
                let whole = warm(|| {
                    let answer = set.decide(&asked(&uids, context.as_value()), &entities, &mut scratch, mode);
                    reasons += usize::from(answer.decision == Decision::Allow);
                    assert_eq!(answer.errors_len(), 0);
                });
                let ready = warm(|| drop(set.decide_prepared(&prepared, context.as_value(), &mut scratch, mode)));
                let snapshot = warm(|| {
                    fill(&mut arguments);
                    let context = Value::RecordArgs(arguments.root().unwrap());
                    drop(set.decide(&asked(&uids, context), &entities, &mut scratch, mode));
                });
                assert_eq!((whole, ready, snapshot), (0, 0, 0), "{count} policies, tool {tool}, {mode:?}");
            }
        }
        assert!(reasons > 0, "{count} policies: some requests have reasons");
    }
}

/// A gate over one tool, with or without budgets two levels deep.
fn gate(ledger: Option<Arc<Ledger>>) -> Gate {
    let text = "permit(principal, action, resource) when { context.input.amount < 50 };";
    let tool = ToolSpec {
        name: "send".to_owned(),
        resource: Arc::new(EntityUid::new("Mcp", "m")),
        schema: None,
        paths: Vec::new(),
        cost: None,
        reads: Vec::new(),
    };
    let policies = vec![Source { name: None, text }];
    Gate::open(&GateSources { policies, tools: vec![tool], ledger, ..GateSources::default() }, 1).unwrap()
}

fn checked(gate: &Gate, budget: Option<&str>) -> usize {
    let spec = ScopeSpec {
        principal: EntityData::new(EntityUid::new("Agent", "a")),
        session: "s".to_owned(),
        on_behalf_of: None,
        narrow: Narrow { budget: budget.map(str::to_owned), ..Narrow::default() },
    };
    let scope = Scope::new(spec, &gate.state(), 0).unwrap();
    let (mut arguments, mut scratch) = (Arguments::new(), check::Scratch::new());
    warm(|| {
        arguments.reset(1 << 16);
        arguments.open_object(None).unwrap();
        arguments.push_long(Some("amount"), 7).unwrap();
        arguments.close();
        let decision = gate.check(Some(&scope), "send", &mut arguments, gate.now_ms(), &mut scratch);
        assert!(decision.allowed());
        assert_eq!(decision.hold().is_some(), budget.is_some());
    })
}

#[test]
fn a_warm_check_allocates_nothing() {
    assert_eq!(checked(&gate(None), None), 0);
    let limits = vec![
        LimitSpec { unit: Unit::Requests, window: Window::Day, limit: 1_000_000, overdraft: 0 },
        LimitSpec { unit: Unit::Tokens, window: Window::Total, limit: 1_000_000, overdraft: 0 },
    ];
    let budget = |path: &str| BudgetSpec { path: path.to_owned(), limits: limits.clone(), children_max: None };
    let spec = LedgerSpec { budgets: vec![budget("a"), budget("a/b")], holds: 64, ..LedgerSpec::default() };
    let ledger = Arc::new(Ledger::anonymous(spec, Arc::new(SystemClock)).unwrap());
    let gate = gate(Some(ledger));
    assert_eq!((checked(&gate, None), checked(&gate, Some("a/b"))), (0, 0), "a reserve and its ending included");
}
