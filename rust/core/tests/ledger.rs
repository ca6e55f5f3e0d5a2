//! The ledger as a caller sees it: what a reserve, a charge and an ending do to the cells.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use tollkeeper_core::budget::Charge;
use tollkeeper_core::budget::admin::Usage;
use tollkeeper_core::budget::clock::FakeClock;
use tollkeeper_core::budget::denial::DenialKind;
use tollkeeper_core::budget::ledger::{Ledger, Options};
use tollkeeper_core::budget::tree::{BudgetSpec, LedgerSpec, LimitSpec};
use tollkeeper_core::budget::unit::{Amounts, Unit};
use tollkeeper_core::budget::window::Window;

fn limit(unit: Unit, window: Window, limit: i64) -> LimitSpec {
    LimitSpec { unit, window, limit, overdraft: 0 }
}

fn spec() -> LedgerSpec {
    let budget =
        |path: &str, limits: Vec<LimitSpec>, children_max| BudgetSpec { path: path.to_owned(), limits, children_max };
    LedgerSpec {
        budgets: vec![
            budget(
                "acme",
                vec![limit(Unit::Tokens, Window::Day, 1_000), limit(Unit::Requests, Window::Total, 100)],
                None,
            ),
            budget(
                "acme/research/*",
                vec![limit(Unit::Tokens, Window::Minute, 500), limit(Unit::InFlight, Window::Total, 3)],
                Some(2),
            ),
        ],
        holds: 64,
        ..LedgerSpec::default()
    }
}

fn ledger() -> (Ledger, Arc<FakeClock>) {
    let clock = Arc::new(FakeClock::new(1_709_251_199_000));
    (Ledger::anonymous(spec(), clock.clone()).unwrap(), clock)
}

fn cell(ledger: &Ledger, path: &str, unit: Unit, window: Window) -> Usage {
    let node = ledger.node(path).unwrap();
    ledger.usage(&node).into_iter().find(|usage| usage.unit == unit && usage.window == window).unwrap()
}

fn tokens(amount: i64) -> Amounts {
    Amounts::of(Unit::Tokens, amount)
}

#[test]
fn a_hold_takes_every_level_and_gives_back_what_it_did_not_use() {
    let (ledger, _) = ledger();
    let node = ledger.node("acme/research/a").unwrap();
    let amounts = tokens(400).and(Unit::Requests, 1).and(Unit::InFlight, 1);
    let hold = ledger.reserve(&node, &amounts, ledger.now_ms(), Options::default()).unwrap();
    let leaf = cell(&ledger, "acme/research/a", Unit::Tokens, Window::Minute);
    assert_eq!((leaf.held, leaf.used, leaf.available), (400, 0, 100));
    let root = cell(&ledger, "acme", Unit::Tokens, Window::Day);
    assert_eq!((root.held, root.used, root.available), (400, 0, 600));
    assert_eq!(cell(&ledger, "acme", Unit::Requests, Window::Total).used, 1);
    assert_eq!(ledger.charge(hold, &tokens(83)), Charge::GoOn);
    let mut reported = [None; 5];
    reported[0] = Some(83);
    assert!(ledger.settle(hold, &reported).unwrap());
    assert!(!ledger.settle(hold, &reported).unwrap());
    assert!(!ledger.release(hold));
    assert_eq!(ledger.charge(hold, &tokens(1)), Charge::Ended);
    let root = cell(&ledger, "acme", Unit::Tokens, Window::Day);
    assert_eq!((root.held, root.used, root.available, root.stranded), (0, 83, 917, 0));
    let level = cell(&ledger, "acme/research/a", Unit::InFlight, Window::Total);
    assert_eq!((level.held, level.used, level.available), (0, 0, 3));
}

#[test]
fn a_denial_changes_nothing_and_says_which_cell_and_when() {
    let (ledger, clock) = ledger();
    let node = ledger.node("acme/research/a").unwrap();
    let now = ledger.now_ms();
    let too_large = ledger.reserve(&node, &tokens(501), now, Options::default()).unwrap_err();
    assert_eq!((too_large.kind, too_large.path.as_str()), (DenialKind::TooLarge, "acme/research/a"));
    let hold = ledger.reserve(&node, &tokens(300), now, Options::default()).unwrap();
    let contended = ledger.reserve(&node, &tokens(300), now, Options::default()).unwrap_err();
    assert_eq!(contended.kind, DenialKind::Contended);
    let mut reported = [None; 5];
    reported[0] = Some(300);
    ledger.settle(hold, &reported).unwrap();
    let exhausted = ledger.reserve(&node, &tokens(300), now, Options::default()).unwrap_err();
    assert_eq!((exhausted.kind, exhausted.retry_after_ms), (DenialKind::Exhausted, Some(1_000)));
    assert_eq!(cell(&ledger, "acme", Unit::Tokens, Window::Day).held, 0);
    clock.advance(1_000);
    let hold = ledger.reserve(&node, &tokens(300), ledger.now_ms(), Options::default()).unwrap();
    assert_eq!(cell(&ledger, "acme", Unit::Tokens, Window::Day).used, 0, "another day");
    assert!(ledger.release(hold));
}

#[test]
fn children_are_made_on_demand_and_no_more_than_they_may() {
    let (ledger, _) = ledger();
    ledger.node("acme/research/a").unwrap();
    ledger.node("acme/research/b").unwrap();
    assert_eq!(ledger.node("acme/research/c").unwrap_err().kind, DenialKind::Unavailable);
    assert_eq!(ledger.node("other").unwrap_err().kind, DenialKind::Unavailable);
    assert_eq!(ledger.paths(), ["acme", "acme/research", "acme/research/a", "acme/research/b"]);
}

#[test]
fn overage_is_debt_at_every_level() {
    let (ledger, _) = ledger();
    let node = ledger.node("acme/research/a").unwrap();
    let hold = ledger.reserve(&node, &tokens(10), ledger.now_ms(), Options::default()).unwrap();
    let mut reported = [None; 5];
    reported[0] = Some(1_200);
    assert!(ledger.settle(hold, &reported).unwrap());
    let root = cell(&ledger, "acme", Unit::Tokens, Window::Day);
    assert_eq!((root.used, root.available), (1_200, -200));
    assert_eq!(
        ledger.reserve(&node, &tokens(1), ledger.now_ms(), Options::default()).unwrap_err().kind,
        DenialKind::Exhausted
    );
}

#[test]
fn a_shared_ledger_outlives_its_process_and_keeps_what_was_spent() {
    let folder = std::env::temp_dir().join(format!("ledger-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("ledger.bin");
    let clock = Arc::new(FakeClock::new(1_709_251_199_000));
    let spec = LedgerSpec { volatile: true, ..spec() };
    {
        let ledger = Ledger::open(spec.clone(), &file, clock.clone()).unwrap();
        let other = Ledger::open(spec.clone(), &file, clock.clone()).unwrap();
        let node = ledger.node("acme/research/a").unwrap();
        let hold = ledger.reserve(&node, &tokens(100), ledger.now_ms(), Options::default()).unwrap();
        assert_eq!(cell(&other, "acme", Unit::Tokens, Window::Day).held, 100);
        let mut reported = [None; 5];
        reported[0] = Some(60);
        assert!(other.settle(hold, &reported).unwrap());
        assert_eq!(other.set_limit("acme", Unit::Tokens, Window::Day, 50).unwrap(), 1_000);
        assert_eq!(cell(&ledger, "acme", Unit::Tokens, Window::Day).available, -10);
        assert_eq!(ledger.events().len(), 1);
    }
    let ledger = Ledger::open(spec, &file, clock).unwrap();
    let root = cell(&ledger, "acme", Unit::Tokens, Window::Day);
    assert_eq!((root.used, root.limit), (60, 50));
    assert!(ledger.holds().is_empty());
    drop(ledger);
    std::fs::remove_dir_all(folder).unwrap();
}
