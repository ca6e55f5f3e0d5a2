//! The ledger against a model of it, and against itself from many threads.
//!
//! `TOLLKEEPER_MODEL_STEPS=1000000 cargo test --release --test budget_model` runs longer than a test should.

#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::similar_names,
    clippy::unused_self,
    clippy::needless_range_loop,
    clippy::needless_for_each,
    reason = "tests"
)]

mod budget;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use budget::drive;
use proptest::prelude::*;
use tollkeeper_core::budget::clock::{Clock as _, FakeClock};
use tollkeeper_core::budget::ledger::{Ledger, Options};
use tollkeeper_core::budget::tree::{BudgetSpec, LedgerSpec, LimitSpec};
use tollkeeper_core::budget::unit::{Amounts, Unit};
use tollkeeper_core::budget::window::Window;

/// About as many steps come of one case.
const STEPS_PER_CASE: u64 = 80;
const STEPS: u64 = 8_000;

static STEPS_DONE: AtomicU64 = AtomicU64::new(0);

fn steps() -> u64 {
    std::env::var("TOLLKEEPER_MODEL_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(STEPS)
}

#[test]
fn the_ledger_does_what_the_model_does() {
    let cases = u32::try_from(steps() / STEPS_PER_CASE).unwrap();
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(bytes in proptest::collection::vec(any::<u8>(), 100..900))| {
        STEPS_DONE.fetch_add(drive::run(&bytes), Ordering::Relaxed);
    });
    println!("{} steps", STEPS_DONE.load(Ordering::Relaxed));
    assert!(STEPS_DONE.load(Ordering::Relaxed) > steps() / 2, "a case has about {STEPS_PER_CASE} steps");
}

fn shared_tree() -> LedgerSpec {
    let limit = |unit, window, limit| LimitSpec { unit, window, limit, overdraft: 10 };
    let budget = |path: &str, limits| BudgetSpec {
        path: path.to_owned(),
        limits,
        children_max: Some(8).filter(|_| path.ends_with('*')),
    };
    LedgerSpec {
        budgets: vec![
            budget(
                "a",
                vec![
                    limit(Unit::Tokens, Window::Minute, 2_000),
                    limit(Unit::Tokens, Window::Total, 1 << 40),
                    limit(Unit::InFlight, Window::Total, 12),
                ],
            ),
            budget("a/*", vec![limit(Unit::Tokens, Window::Minute, 900), limit(Unit::Requests, Window::Minute, 300)]),
        ],
        holds: 32,
        ..LedgerSpec::default()
    }
}

/// Reserves, charges, tops up and ends holds until told to stop. Charges stay below what is held, so nothing is owed.
/// Returns the tokens that it settled.
fn hammer(ledger: &Ledger, clock: &FakeClock, mut seed: u64, stop: &AtomicBool) -> i64 {
    let mut settled = 0;
    let node = ledger.node(["a/x", "a/y", "a"][usize::try_from(seed % 3).unwrap()]).unwrap();
    while !stop.load(Ordering::Relaxed) {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pick = |bound: u64| i64::try_from((seed >> 33) % bound).unwrap();
        let asked = 1 + pick(200);
        let amounts = Amounts::of(Unit::Tokens, asked).and(Unit::Requests, 1).and(Unit::InFlight, 1);
        let Ok(id) = ledger.reserve(&node, &amounts, clock.wall_ms(), Options::default()) else { continue };
        let more = ledger.top_up(id, &Amounts::of(Unit::Tokens, 50)).is_ok();
        ledger.charge(id, &Amounts::of(Unit::Tokens, asked / 2));
        let actual = if more { asked + 50 } else { asked } / 2;
        let ended = match seed % 4 {
            0 => (ledger.release(id), asked / 2),
            _ => (ledger.settle(id, &[Some(actual), None, None, None, None]).unwrap(), actual),
        };
        assert!(ended.0 && !ledger.release(id), "it ends once");
        settled += ended.1;
    }
    settled
}

#[test]
fn eight_threads_never_overspend_while_somebody_looks() {
    let clock = Arc::new(FakeClock::new(1_709_000_000_000));
    let ledger = Arc::new(Ledger::anonymous(shared_tree(), clock.clone()).unwrap());
    let stop = AtomicBool::new(false);
    let mut looks = 0_u64;
    let settled: i64 = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..=8)
            .map(|seed| {
                let (ledger, clock, stop) = (&ledger, &clock, &stop);
                scope.spawn(move || hammer(ledger, clock, seed, stop))
            })
            .collect();
        let nodes = ["a", "a/x", "a/y"].map(|path| ledger.node(path).unwrap());
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            looks += 1;
            for usage in nodes.iter().flat_map(|node| ledger.usage(node)) {
                assert!(usage.used + usage.held <= usage.limit + usage.overdraft, "{usage:?}");
                assert!(usage.available >= 0 && usage.stranded == 0, "{usage:?}");
            }
            if looks.is_multiple_of(16) {
                clock.advance(7_000);
            }
        }
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    let root = ledger.node("a").unwrap();
    let cells = ledger.usage(&root);
    let cell = |unit, window| cells.iter().find(|usage| (usage.unit, usage.window) == (unit, window)).unwrap();
    let total = cell(Unit::Tokens, Window::Total);
    assert_eq!((total.used, total.held, total.available), (settled, 0, total.limit + 10 - settled), "{looks} looks");
    assert_eq!(cell(Unit::InFlight, Window::Total).available, 22);
    assert!(ledger.holds().is_empty() && looks > 0 && settled > 0);
}
