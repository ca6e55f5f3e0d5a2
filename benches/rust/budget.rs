//! What the ledger costs in Rust: a hold over four levels, by cells, by threads, a decode step, a recovery.
//!
//! Every figure is the median of rounds that are interleaved with a rival's in the same run: a plain ledger of maps
//! behind a mutex, which is what a careful program would write by hand. Each round asserts that nothing was lost.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::type_complexity,
    reason = "a bench prints, and stops where something is wrong"
)]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tollkeeper_core::budget::clock::{Clock, SystemClock};
use tollkeeper_core::budget::ledger::{Ledger, Node, Options};
use tollkeeper_core::budget::meter::{Meter, Row};
use tollkeeper_core::budget::tree::{BudgetSpec, LedgerSpec, LimitSpec};
use tollkeeper_core::budget::unit::{Amounts, Unit};
use tollkeeper_core::budget::window::Window;

const ROUNDS: usize = 31;
const CALLS: u32 = 20_000;
const PLENTY: i64 = 1 << 50;

fn limits(cells: &[(Unit, Window)]) -> Vec<LimitSpec> {
    cells.iter().map(|(unit, window)| LimitSpec { unit: *unit, window: *window, limit: PLENTY, overdraft: 0 }).collect()
}

/// A chain of levels, each with the same cells.
fn chain(levels: usize, cells: &[(Unit, Window)], holds: u32) -> LedgerSpec {
    let path = |level: usize| (0..=level).map(|at| format!("l{at}")).collect::<Vec<_>>().join("/");
    let budget = |level| BudgetSpec { path: path(level), limits: limits(cells), children_max: None };
    LedgerSpec { budgets: (0..levels).map(budget).collect(), holds, ..LedgerSpec::default() }
}

fn leaf(ledger: &Ledger, levels: usize) -> Arc<Node> {
    let path = (0..levels).map(|at| format!("l{at}")).collect::<Vec<_>>().join("/");
    ledger.node(&path).expect("the chain has it")
}

fn amounts() -> Amounts {
    Amounts::of(Unit::Tokens, 100).and(Unit::NanoUsd, 1_000).and(Unit::Requests, 1)
}

/// The median of what each round took, per call.
fn median(mut rounds: Vec<Duration>, calls: u32) -> f64 {
    rounds.sort();
    rounds[rounds.len() / 2].as_nanos() as f64 / f64::from(calls)
}

fn pair(ledger: &Ledger, node: &Node, clock: &dyn Clock) -> Duration {
    let amounts = amounts();
    let start = Instant::now();
    for _ in 0..CALLS {
        let hold = ledger.reserve(node, black_box(&amounts), clock.wall_ms(), Options::default()).expect("plenty");
        assert!(ledger.release(black_box(hold)));
    }
    start.elapsed()
}

/// The rival: free units by (level, unit, window), in a map behind a mutex.
struct Plain(Mutex<HashMap<(usize, usize, usize), i64>>);

impl Plain {
    fn pair(&self, levels: usize, cells: &[(Unit, Window)]) -> Duration {
        let amounts = amounts();
        let start = Instant::now();
        for _ in 0..CALLS {
            for sign in [-1, 1] {
                let mut free = self.0.lock().expect("nobody panics");
                for level in 0..levels {
                    for (unit, window) in cells {
                        let key = (level, unit.index(), window.index());
                        *free.entry(key).or_insert(PLENTY) += sign * black_box(amounts.get(*unit));
                    }
                }
            }
        }
        start.elapsed()
    }
}

fn reserve_and_release() {
    let three = [(Unit::Tokens, Window::Day), (Unit::NanoUsd, Window::Month), (Unit::Requests, Window::Minute)];
    let grouped = [(Unit::Tokens, Window::Day), (Unit::NanoUsd, Window::Day), (Unit::Requests, Window::Day)];
    let totals = [(Unit::Tokens, Window::Total), (Unit::NanoUsd, Window::Total), (Unit::Requests, Window::Total)];
    let wide: Vec<(Unit, Window)> = Window::ALL
        .into_iter()
        .flat_map(|window| [Unit::Tokens, Unit::NanoUsd].map(|unit| (unit, window)))
        .chain([(Unit::Requests, Window::Day), (Unit::InFlight, Window::Total)])
        .collect();
    println!("reserve + release, ns per pair (plain: a map behind a mutex)");
    let cases: [(&str, usize, &[(Unit, Window)]); 7] = [
        ("1 level, 1 cell", 1, &three[..1]),
        ("4 levels, 4 cells", 4, &three[..1]),
        ("4 levels, 8 cells", 4, &three[..2]),
        ("4 levels, 12 cells, 3 windows", 4, &three),
        ("4 levels, 12 cells, 1 window", 4, &grouped),
        ("4 levels, 12 cells, totals", 4, &totals),
        ("4 levels, 48 cells", 4, &wide),
    ];
    let clock = SystemClock;
    for (name, levels, cells) in cases {
        let ledger = Ledger::anonymous(chain(levels, cells, 1024), Arc::new(SystemClock)).expect("a good spec");
        let node = leaf(&ledger, levels);
        assert_eq!(node.cells(), levels * cells.len());
        let plain = Plain(Mutex::new(HashMap::new()));
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(pair(&ledger, &node, &clock));
            theirs.push(plain.pair(levels, cells));
        }
        assert!(ledger.holds().is_empty());
        for usage in ledger.usage(&node).iter().filter(|usage| usage.unit == Unit::Tokens) {
            assert_eq!((usage.held, usage.available), (0, PLENTY), "what was reserved came back");
        }
        let (ours, theirs) = (median(ours, CALLS), median(theirs, CALLS));
        println!("  {name:<32} {ours:>8.0}   plain {theirs:>8.0}   {:.2}x", theirs / ours);
    }
}

fn threads() {
    println!("one hot root, pairs per second (million), by threads");
    let cells = [(Unit::Tokens, Window::Day), (Unit::NanoUsd, Window::Month), (Unit::Requests, Window::Minute)];
    let ledger = Ledger::anonymous(chain(4, &cells, 4096), Arc::new(SystemClock)).expect("a good spec");
    let node = leaf(&ledger, 4);
    let mut one = 0.0;
    for threads in [1_u32, 2, 4] {
        let mut rounds: Vec<Duration> = Vec::new();
        for _ in 0..7 {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| pair(&ledger, &node, &SystemClock));
                }
            });
            rounds.push(start.elapsed());
        }
        let ns = median(rounds, CALLS * threads);
        let rate = 1_000.0 / ns;
        one = if threads == 1 { rate } else { one };
        println!("  {threads} threads {rate:>8.2}   {:.2}x of one", rate / one);
    }
    assert!(ledger.holds().is_empty());
}

fn meter() {
    let tenants = 1_000_u32;
    let one =
        |path: String, children_max| BudgetSpec { path, limits: limits(&[(Unit::Tokens, Window::Day)]), children_max };
    let budgets = vec![one("engine".into(), None), one("engine/*".into(), Some(tenants))];
    let spec = LedgerSpec { budgets, holds: 16_384, ..LedgerSpec::default() };
    let ledger = Arc::new(Ledger::anonymous(spec, Arc::new(SystemClock)).expect("a good spec"));
    let mut meter = Meter::new(Arc::clone(&ledger));
    let nodes: Vec<u32> = (0..tenants).map(|at| meter.node(&format!("engine/t{at}")).expect("room")).collect();
    let sequences = 10_000_usize;
    let rows = |len: usize| {
        let nodes = &nodes;
        (0..len).map(move |at| Row { node: nodes[at % nodes.len()], prompt: 100, max_new: 1 << 20, ..Row::default() })
    };
    let (mut slots, mut status) = (vec![0; sequences], vec![0; sequences]);
    assert_eq!(meter.reserve_many(rows(sequences), &mut slots, &mut status), sequences);
    let (new, mut stop) = (vec![1_u32; sequences], vec![0_u8; sequences]);
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS * 10 {
        let start = Instant::now();
        let stops = meter.charge(black_box(&slots), black_box(&new), None, &mut stop);
        rounds.push(start.elapsed());
        assert_eq!(stops, 0);
    }
    let charged = (ROUNDS * 10) as i64 + 100;
    assert!(slots.iter().all(|slot| meter.charged(*slot) == Some(charged)));
    println!("meter: charge of {sequences} sequences {:>8.1} us", median(rounds, 1_000));
    assert_eq!(meter.settle_many(&slots, None), sequences);
    let (mut reserve, mut settle) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS * 10 {
        let start = Instant::now();
        let granted = meter.reserve_many(rows(1_024), &mut slots[..1_024], &mut status[..1_024]);
        reserve.push(start.elapsed());
        assert_eq!(granted, 1_024);
        let start = Instant::now();
        assert_eq!(meter.settle_many(&slots[..1_024], None), 1_024);
        settle.push(start.elapsed());
    }
    println!(
        "meter: reserve of 1,024 rows    {:>8.1} us, settle {:>8.1} us",
        median(reserve, 1_000),
        median(settle, 1_000)
    );
    let root = ledger.node("engine").expect("it is there");
    let expected = charged * sequences as i64 + 100 * 1_024 * (ROUNDS * 10) as i64;
    assert_eq!(ledger.usage(&root)[0].used, expected, "every token was counted");
}

fn main() {
    reserve_and_release();
    threads();
    meter();
}
