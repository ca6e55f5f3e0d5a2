//! What a whole check costs, stage by stage: policies alone, with a budget of four levels, with the audit log, with both.
//!
//! `cargo bench -p tollkeeper-core --bench gate` times the four gates in turns: 100 policies, a tool with three small
//! arguments, a cost in three units. Records are brought to the disk between two batches, so that the writer's work is in
//! no figure; the log lies in `/dev/shm`. Every decision is asserted, and so is that the log and the ledger have them all.
//!
//! `-- count STAGE` runs 1,000 checks of a stage (`policies`, `budget`, `log`, `all`) in one function, `count_here`, to be
//! counted by `valgrind --tool=callgrind --toggle-collect='*count_here*'`. The ledger's clock stands still there, and the
//! bench has to be built with `--features rustix/use-libc`: valgrind does not map the page that rustix reads the clock of
//! the log's threads from.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "a bench prints, and stops where something is wrong"
)]

use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tollkeeper_core::arguments::Arguments;
use tollkeeper_core::audit::log::{Durability, Log, LogOptions};
use tollkeeper_core::budget::clock::{Clock, FakeClock, SystemClock};
use tollkeeper_core::budget::ledger::Ledger;
use tollkeeper_core::budget::tree::{BudgetSpec, LedgerSpec, LimitSpec};
use tollkeeper_core::budget::unit::{Amounts, Unit};
use tollkeeper_core::budget::window::Window;
use tollkeeper_core::gate::Gate;
use tollkeeper_core::gate::check::Scratch;
use tollkeeper_core::gate::evidence::{Audit, Links, OnFull};
use tollkeeper_core::gate::scope::{Narrow, Scope, ScopeSpec};
use tollkeeper_core::gate::state::GateSources;
use tollkeeper_core::gate::tools::ToolSpec;
use tollkeeper_core::policy::entities::EntityData;
use tollkeeper_core::policy::parse::Source;
use tollkeeper_core::uid::EntityUid;

const POLICIES: usize = 100;
/// Checks between two clock readings.
const BATCH: usize = 256;
const ROUNDS: usize = 301;
const PLENTY: i64 = 1 << 50;
/// As seldom as it may be: the log is written when it is asked to be.
const SELDOM_MS: u64 = 60_000;
const START_MS: i64 = 1_795_280_000_000;
const LEAF: &str = "acme/research/team/a";

/// What is timed: a name, whether there is a ledger, whether there is a log.
const STAGES: [(&str, bool, bool); 4] =
    [("policies", false, false), ("budget", true, false), ("log", false, true), ("all", true, true)];

/// Policy `i` is for team `i % 10` and tool `i / 10`; each tenth forbids. A request matches one permit and one forbid's
/// scope.
fn policies() -> String {
    let one = |number: usize| {
        let (team, tool) = (number % 10, number / 10);
        let (effect, condition) = match team {
            9 => ("forbid", "context.input.to like \"*@evil.example\""),
            _ => ("permit", "context.input.to like \"*@example.com\" && context.input.copies < 10"),
        };
        format!(
            "@id(\"p{number}\") {effect} (principal in Team::\"t{team}\", action == Action::\"tool{tool}\", resource) \
             when {{ context.input has to && context.input has copies && {condition} }};\n"
        )
    };
    (0..POLICIES).map(one).collect()
}

const ENTITIES: &str = r#"[
    {"uid": {"type": "Agent", "id": "writer"}, "attrs": {}, "parents": [{"type": "Team", "id": "t3"}, {"type": "Team", "id": "t9"}]},
    {"uid": {"type": "Team", "id": "t3"}, "attrs": {}, "parents": []},
    {"uid": {"type": "Team", "id": "t9"}, "attrs": {}, "parents": []}
]"#;

fn tool(number: usize) -> ToolSpec {
    ToolSpec {
        name: format!("tool{number}"),
        resource: Arc::new(EntityUid::new("Server", "mail")),
        schema: None,
        paths: Vec::new(),
        cost: None,
        reads: Vec::new(),
    }
}

/// Four levels of three cells.
fn ledger(clock: Arc<dyn Clock>) -> Arc<Ledger> {
    let cells = [(Unit::Tokens, Window::Day), (Unit::NanoUsd, Window::Month), (Unit::Requests, Window::Total)];
    let limit = |(unit, window)| LimitSpec { unit, window, limit: PLENTY, overdraft: 0 };
    let parts: Vec<&str> = LEAF.split('/').collect();
    let budget = |levels: usize| BudgetSpec {
        path: parts[..levels].join("/"),
        limits: cells.map(limit).into(),
        children_max: None,
    };
    let spec = LedgerSpec { budgets: (1..=parts.len()).map(budget).collect(), holds: 2_048, ..LedgerSpec::default() };
    Arc::new(Ledger::anonymous(spec, clock).expect("a ledger"))
}

fn fill(arguments: &mut Arguments) {
    let mut filled = || {
        arguments.reset(1 << 16);
        arguments.open_object_distinct(None)?;
        arguments.push_str(Some("to"), "ada@example.com")?;
        arguments.push_str(Some("subject"), "Figures of the third quarter")?;
        arguments.push_long(Some("copies"), 3)
    };
    filled().expect("small arguments");
    arguments.close();
}

/// A gate with what a stage has, and the buffers of its one thread.
struct Stage {
    name: &'static str,
    gate: Gate,
    scope: Scope,
    log: Option<(Arc<Log>, PathBuf)>,
    ledger: Option<Arc<Ledger>>,
    arguments: Arguments,
    scratch: Scratch,
    checks: usize,
}

impl Stage {
    fn new(name: &'static str, with_ledger: bool, with_log: bool, clock: &Arc<dyn Clock>) -> Self {
        let ledger = with_ledger.then(|| ledger(Arc::clone(clock)));
        let log = with_log.then(|| {
            let folder = PathBuf::from("/dev/shm").join(format!("tollkeeper-gate-{name}-{}", std::process::id()));
            let mut options = LogOptions::new("example.com/bench", 0x0123_4567_89ab_cdef);
            (options.interval_ms, options.checkpoint_interval_ms) = (SELDOM_MS, SELDOM_MS);
            options.checkpoint_entries = u64::MAX;
            let log = Arc::new(Log::open(&folder, options).expect("a new log opens"));
            log.checkpoint(10_000).expect("a first checkpoint");
            (log, folder)
        });
        let audit = log.as_ref().map(|(log, _)| {
            let log = Arc::clone(log);
            Arc::new(Audit { log, on_full: OnFull::Deny, durability: Durability::Group })
        });
        let text = policies();
        let mut tools: Vec<ToolSpec> = (0..10).map(tool).collect();
        if with_ledger {
            tools[4].cost = Some(Amounts::of(Unit::Tokens, 100).and(Unit::NanoUsd, 250_000).and(Unit::Requests, 1));
        }
        let sources = GateSources {
            policies: vec![Source { name: Some("bench.cedar"), text: &text }],
            entities: Some(Source { name: Some("entities.json"), text: ENTITIES }),
            tools,
            ledger: ledger.clone(),
            audit,
            ..GateSources::default()
        };
        let gate = Gate::open(&sources, 0x9f86_d081_884c_7d65).expect("the policies load");
        let spec = ScopeSpec {
            principal: EntityData::new(EntityUid::new("Agent", "writer")),
            session: "s-18f2c".to_owned(),
            on_behalf_of: Some(EntityUid::new("User", "ada@example.com")),
            narrow: Narrow { budget: with_ledger.then(|| LEAF.to_owned()), ..Narrow::default() },
        };
        let scope = Scope::new(spec, &gate.state(), gate.now_ms()).expect("a scope").as_run(gate.next_run(), None);
        let (arguments, scratch) = (Arguments::new(), Scratch::new());
        Self { name, gate, scope, log, ledger, arguments, scratch, checks: 0 }
    }

    fn all(clock: &Arc<dyn Clock>) -> [Self; 4] {
        let stage = |(name, with_ledger, with_log)| Self::new(name, with_ledger, with_log, clock);
        STAGES.map(stage)
    }

    #[inline]
    fn check(&mut self, now_ms: i64) {
        fill(&mut self.arguments);
        let (scope, links) = (Some(&self.scope), Links::default());
        let decision = self.gate.check_linked(scope, "tool4", &mut self.arguments, now_ms, links, &mut self.scratch);
        assert!(decision.allowed());
        assert_eq!(decision.hold().is_some(), self.ledger.is_some());
        assert_eq!(decision.recorded().is_some(), self.log.is_some());
        drop(black_box(decision));
    }

    fn flush(&self) {
        if let Some((log, _)) = &self.log {
            log.flush(10_000).expect("everything is on the disk");
        }
    }

    /// Nanoseconds per check of one batch.
    fn round(&mut self, read_clock: bool) -> f64 {
        let start = Instant::now();
        for _ in 0..BATCH {
            let now_ms = if read_clock { self.gate.now_ms() } else { START_MS };
            self.check(now_ms);
        }
        let ns = start.elapsed().as_nanos() as f64 / BATCH as f64;
        self.checks += BATCH;
        self.flush();
        ns
    }

    #[inline(never)]
    fn count_here(&mut self) {
        for _ in 0..1_000 {
            self.check(START_MS);
        }
        self.checks += 1_000;
    }

    /// Asserts that nothing was lost.
    fn finish(self) {
        if let Some(ledger) = &self.ledger {
            assert_eq!(ledger.holds().len(), 0, "every hold has ended");
        }
        let Some((log, folder)) = self.log else { return };
        // Besides the decisions: the start, what decides, and what the ledger tells of itself.
        let entries = log.flush(10_000).expect("everything is on the disk");
        assert!(entries >= self.checks as u64 + 2, "every check is an entry");
        drop((self.gate, log));
        std::fs::remove_dir_all(folder).expect("an own folder");
    }
}

fn count(name: &str) {
    let clock: Arc<dyn Clock> = Arc::new(FakeClock::new(START_MS));
    let (name, with_ledger, with_log) =
        STAGES.into_iter().find(|(stage, ..)| *stage == name).expect("the name of a stage");
    let mut stage = Stage::new(name, with_ledger, with_log, &clock);
    for _ in 0..4 {
        stage.check(START_MS);
    }
    stage.checks += 4;
    stage.count_here();
    stage.finish();
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [count_word, name] = &asked[..]
        && count_word == "count"
    {
        return count(name);
    }
    let mut stages = Stage::all(&(Arc::new(SystemClock) as Arc<dyn Clock>));
    let mut rounds = [const { Vec::new() }; 4];
    let (mut fills, mut arguments) = (Vec::new(), Arguments::new());
    for round in 0..ROUNDS {
        for (stage, rounds) in stages.iter_mut().zip(&mut rounds) {
            rounds.push(stage.round(true));
        }
        let start = Instant::now();
        for _ in 0..BATCH {
            fill(black_box(&mut arguments));
        }
        fills.push(start.elapsed().as_nanos() as f64 / BATCH as f64);
        if round == 20 {
            // Until here things were warming up.
            rounds.iter_mut().for_each(Vec::clear);
        }
    }
    let medians = rounds.map(median);
    println!("a check at {POLICIES} policies, median of {ROUNDS} batches of {BATCH}, ns");
    println!("  {:<10}{:>7.0}", "arguments", median(fills));
    for (stage, median) in stages.iter().zip(medians) {
        println!("  {:<10}{median:>7.0}  {:+.0} against policies alone", stage.name, median - medians[0]);
    }
    stages.into_iter().for_each(Stage::finish);
}
