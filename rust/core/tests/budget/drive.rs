//! Asks the ledger and the model the same, chosen by bytes, and compares everything that can be seen after every step.

use std::collections::BTreeMap;
use std::sync::Arc;

use tollkeeper_core::budget::admin::Usage;
use tollkeeper_core::budget::clock::{Clock as _, FakeClock};
use tollkeeper_core::budget::denial::DenialKind;
use tollkeeper_core::budget::ledger::{Ledger, Options};
use tollkeeper_core::budget::tree::{BudgetSpec, LedgerSpec, LimitSpec};
use tollkeeper_core::budget::unit::{Amounts, UNITS, Unit};
use tollkeeper_core::budget::window::Window;
use tollkeeper_core::budget::{Charge, HoldId};

use super::model::{Hold, Kind, Model};

/// Numbers out of bytes; zeros once they are used up.
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    fn below(&mut self, bound: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % bound
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == many - 1
    }

    fn amount(&mut self) -> i64 {
        let amounts = [0, 1, 2, 3, 7, 20, 50, 99, 100, 101, 250];
        amounts[self.below(amounts.len())]
    }
}

const ROOTS: [&str; 2] = ["a", "b"];
const LISTED: [&str; 4] = ["a/x", "a/x/y", "b/z", "a/x/y/w"];
const TEMPLATES: [&str; 3] = ["a/*", "a/x/*", "b/*/*"];
const ASKED: [&str; 12] =
    ["a", "b", "a/x", "a/x/y", "a/x/y/w", "b/z", "a/m", "a/n", "a/x/m", "b/m", "b/m/n", "no/such"];
const START_MS: [i64; 4] = [1_709_251_199_000, 0, 1_735_689_540_000, 951_782_400_000];
const STEPS_MS: [i64; 12] = [
    1,
    999,
    1_000,
    59_000,
    60_000,
    61_000,
    3_600_000,
    86_400_000,
    27 * 86_400_000,
    31 * 86_400_000,
    400 * 86_400_000,
    15 * 60_000,
];

fn limits(choices: &mut Choices<'_>) -> Vec<LimitSpec> {
    let mut limits: Vec<LimitSpec> = Vec::new();
    for _ in 0..choices.below(6) {
        let unit = Unit::ALL[choices.below(UNITS)];
        let window = if unit.is_level() { Window::Total } else { Window::ALL[choices.below(5)] };
        let (limit, overdraft) = (choices.amount(), if choices.one_in(4) { choices.amount() } else { 0 });
        if !limits.iter().any(|known| (known.unit, known.window) == (unit, window)) {
            limits.push(LimitSpec { unit, window, limit, overdraft });
        }
    }
    limits
}

fn spec(choices: &mut Choices<'_>) -> LedgerSpec {
    let mut budgets = Vec::new();
    for path in ROOTS.iter().chain(LISTED.iter().filter(|_| choices.below(3) != 0).collect::<Vec<_>>()) {
        budgets.push(BudgetSpec { path: (*path).to_owned(), limits: limits(choices), children_max: None });
    }
    for path in TEMPLATES.iter().filter(|_| choices.below(3) != 0).collect::<Vec<_>>() {
        let children_max = Some(u32::try_from(choices.below(3)).unwrap());
        budgets.push(BudgetSpec { path: (*path).to_owned(), limits: limits(choices), children_max });
    }
    let holds = [24, 3, 1][choices.below(3)];
    let hold_ttl_ms = choices.one_in(4).then_some(90_000);
    LedgerSpec { budgets, holds, nodes: Some(16), hold_ttl_ms, ..LedgerSpec::default() }
}

/// The limits and most children that a path would be made with.
fn template<'a>(spec: &'a LedgerSpec, path: &str) -> Option<&'a BudgetSpec> {
    let fits = |budget: &&BudgetSpec| {
        let (pattern, path): (Vec<_>, Vec<_>) = (budget.path.split('/').collect(), path.split('/').collect());
        budget.path.ends_with("/*")
            && pattern.len() == path.len()
            && pattern.iter().zip(&path).all(|(wanted, segment)| *wanted == "*" || wanted == segment)
    };
    spec.budgets.iter().filter(fits).min_by_key(|budget| budget.path.matches('*').count())
}

/// Both of them, and what they were asked so far.
pub struct Both {
    spec: LedgerSpec,
    pub ledger: Ledger,
    clock: Arc<FakeClock>,
    model: Model,
    /// Every hold ever granted, in order
    ids: Vec<HoldId>,
    next: usize,
    log: Vec<String>,
    pub steps: u64,
    /// Holds seldom end, so that windows stay pinned long after they have ended
    hoards: bool,
}

impl Both {
    pub fn new(choices: &mut Choices<'_>) -> Self {
        let spec = spec(choices);
        let start_ms = START_MS[choices.below(START_MS.len())];
        let clock = Arc::new(FakeClock::new(start_ms));
        let ledger = Ledger::anonymous(spec.clone(), clock.clone()).unwrap();
        let holds_max = usize::try_from(spec.holds).unwrap();
        let model =
            Model { holds_max, last_ms: start_ms, anchor: (start_ms, 0), believed_ms: i64::MIN, ..Model::default() };
        let log = vec![format!("{spec:?} at {start_ms}")];
        let hoards = choices.one_in(3);
        let (ids, next, steps) = (Vec::new(), 0, 0);
        let mut both = Self { spec: spec.clone(), ledger, clock, model, ids, next, log, steps, hoards };
        for budget in spec.budgets.iter().filter(|budget| !budget.path.ends_with('*')) {
            both.add(&budget.path, &budget.limits);
        }
        for budget in spec.budgets.iter().filter(|budget| budget.path.ends_with('*')) {
            both.add(budget.path.trim_end_matches("/*"), &[]);
        }
        both.compare();
        both
    }

    fn add(&mut self, path: &str, limits: &[LimitSpec]) {
        if let Some((above, _)) = path.rsplit_once('/')
            && !self.model.budgets.contains(above)
        {
            self.add(above, &[]);
        }
        self.model.budgets.insert(path.to_owned());
        for limit in limits {
            let cell = (path.to_owned(), limit.unit.index(), limit.window.index());
            self.model.limits.insert(cell, (limit.limit, limit.overdraft));
        }
    }

    /// Whether there is such a budget, made if it may be.
    fn known(&mut self, path: &str) -> bool {
        if self.model.budgets.contains(path) {
            return true;
        }
        let Some(wanted) = template(&self.spec, path).cloned() else { return false };
        let Some((above, _)) = path.rsplit_once('/') else { return false };
        if !self.known(above) {
            return false;
        }
        let is_child = |other: &&String| other.rsplit_once('/').is_some_and(|(parent, _)| parent == above);
        let listed = |other: &&String| {
            self.spec.budgets.iter().any(|budget| {
                let prefix = budget.path.trim_end_matches("/*");
                prefix == **other || prefix.starts_with(&format!("{other}/"))
            })
        };
        // Only those that were made on demand count.
        let children = self.model.budgets.iter().filter(is_child).filter(|other| !listed(other)).count();
        // In the ledger of this test there is room for 16.
        if children >= wanted.children_max.unwrap() as usize || self.model.budgets.len() >= 16 {
            return false;
        }
        self.model.budgets.insert(path.to_owned());
        self.add(path, &wanted.limits);
        true
    }

    fn now_ms(&mut self) -> i64 {
        self.model.time(self.clock.wall_ms(), self.clock.boot_ms())
    }

    fn amounts(&self, choices: &mut Choices<'_>) -> [i64; UNITS] {
        let mut amounts = [0; UNITS];
        for _ in 0..=choices.below(3) {
            amounts[choices.below(UNITS)] = choices.amount();
        }
        amounts
    }

    /// A hold that was granted once, more often a late one; `None` before the first.
    fn pick(&self, choices: &mut Choices<'_>) -> Option<usize> {
        let last = self.ids.len().checked_sub(1)?;
        Some(last.saturating_sub(choices.below(12)))
    }

    /// Does one thing to both and compares what they say, then everything that can be seen.
    pub fn step(&mut self, choices: &mut Choices<'_>) {
        self.steps += 1;
        match choices.below(16) {
            8..=10 | 15 if self.hoards && choices.below(8) != 0 => self.move_clock(choices),
            0..=4 => self.reserve(choices),
            5 | 6 => self.charge(choices),
            7 => self.top_up(choices),
            8 | 9 => self.settle(choices),
            10 => self.release(choices),
            11 => self.set_limit(choices),
            12 | 13 => self.move_clock(choices),
            14 => self.refuse(choices),
            _ => self.recover(choices),
        }
        self.compare();
    }

    fn reserve(&mut self, choices: &mut Choices<'_>) {
        let path = ASKED[choices.below(ASKED.len())];
        let amounts = self.amounts(choices);
        let (dispatched, forced) = (choices.one_in(2), choices.one_in(8));
        let ttl_ms = choices.one_in(5).then(|| STEPS_MS[choices.below(6)]);
        self.log.push(format!("reserve {path} {amounts:?} dispatched {dispatched} forced {forced} ttl {ttl_ms:?}"));
        let known = self.known(path);
        let node = match self.ledger.node(path) {
            Ok(node) => {
                assert!(known, "{path} should not be there: {:#?}", self.log);
                node
            }
            Err(denial) => {
                assert!(!known && denial.kind == DenialKind::Unavailable, "{denial:?}: {:#?}", self.log);
                return;
            }
        };
        let now_ms = self.now_ms();
        let deadline_ms = ttl_ms.or(self.spec.hold_ttl_ms).map(|ttl| (now_ms + ttl).max(1));
        let windows = Model::windows_at(now_ms);
        if self.model.deadlines {
            self.model.recover(now_ms);
        }
        let explained = self.ledger.explain(&node, &Amounts(amounts));
        let refusals = self.model.refusals(path, &windows, &amounts);
        let told = |denial: &tollkeeper_core::budget::denial::Denial| {
            ((denial.path.clone(), denial.unit.unwrap().index(), denial.window.unwrap().index()), denial.kind)
        };
        assert_eq!(explained.iter().map(told).collect::<Vec<_>>(), refusals, "explained: {:#?}", self.log);
        let hold = Hold {
            path: path.to_owned(),
            held: amounts,
            charged: [0; UNITS],
            windows,
            deadline_ms,
            dispatched,
            streamed: false,
            forced,
        };
        let options = Options { dispatched, forced, ttl_ms, meter: false, tag: [0; 2] };
        let got = self.ledger.reserve(&node, &Amounts(amounts), self.clock.wall_ms(), options);
        let expected = self.model.reserve(self.next, &hold, now_ms);
        assert_eq!(got.as_ref().map(drop).map_err(|denial| denial.kind), expected, "{:#?}", self.log);
        if let Ok(id) = got {
            self.ids.push(id);
            self.next += 1;
        }
    }

    fn charge(&mut self, choices: &mut Choices<'_>) {
        let Some(number) = self.pick(choices) else { return };
        let (amounts, dispatch) = (self.amounts(choices), choices.one_in(3));
        self.log.push(format!("charge {number} {amounts:?} dispatch {dispatch}"));
        let now_ms = self.now_ms();
        let id = self.ids[number];
        let amounts = Amounts(amounts);
        let got = if dispatch { self.ledger.dispatch(id, &amounts) } else { self.ledger.charge(id, &amounts) };
        let expected = match self.model.charge(number, &amounts.0, dispatch, now_ms) {
            None => Charge::Ended,
            Some(true) => Charge::GoOn,
            Some(false) => Charge::Stop,
        };
        assert_eq!(got, expected, "{:#?}", self.log);
    }

    fn top_up(&mut self, choices: &mut Choices<'_>) {
        let Some(number) = self.pick(choices) else { return };
        let mut more = self.amounts(choices);
        if choices.below(8) != 0 {
            more[Unit::Requests.index()] = 0;
        }
        self.log.push(format!("top up {number} {more:?}"));
        let now_ms = self.now_ms();
        let got = self.ledger.top_up(self.ids[number], &Amounts(more)).map_err(|denial| denial.kind);
        assert_eq!(got, self.model.top_up(number, &more, now_ms), "{:#?}", self.log);
    }

    fn settle(&mut self, choices: &mut Choices<'_>) {
        let Some(number) = self.pick(choices) else { return };
        let mut reported = [None; UNITS];
        for _ in 0..choices.below(4) {
            reported[choices.below(UNITS)] = Some(choices.amount());
        }
        self.log.push(format!("settle {number} {reported:?}"));
        let actual = |hold: &Hold| {
            let mut actual = Model::unreported(hold, true);
            for unit in [Unit::Tokens.index(), Unit::NanoUsd.index()] {
                actual[unit] = reported[unit].unwrap_or(actual[unit]);
            }
            let requests = Unit::Requests.index();
            actual[requests] = actual[requests].max(reported[requests].unwrap_or(0));
            actual
        };
        let got = self.ledger.settle(self.ids[number], &reported).unwrap();
        assert_eq!(got, self.model.end(number, actual), "{:#?}", self.log);
    }

    fn release(&mut self, choices: &mut Choices<'_>) {
        let Some(number) = self.pick(choices) else { return };
        let unreported = choices.one_in(2);
        self.log.push(format!("release {number}, unreported {unreported}"));
        let id = self.ids[number];
        let got = if unreported { self.ledger.end_unreported(id) } else { self.ledger.release(id) };
        let expected = self.model.end(number, |hold| Model::unreported(hold, unreported && hold.dispatched));
        assert_eq!(got, expected, "{:#?}", self.log);
    }

    fn set_limit(&mut self, choices: &mut Choices<'_>) {
        let cells: Vec<Kind> = self.model.limits.keys().cloned().collect();
        let Some(cell) = cells.get(choices.below(cells.len().max(1))) else { return };
        let limit = choices.amount();
        self.log.push(format!("limit of {cell:?} to {limit}"));
        let now_ms = self.now_ms();
        let got = self.ledger.set_limit(&cell.0, Unit::ALL[cell.1], Window::ALL[cell.2], limit).unwrap();
        assert_eq!(Some(got), self.model.set_limit(cell, limit, now_ms), "{:#?}", self.log);
    }

    fn move_clock(&mut self, choices: &mut Choices<'_>) {
        let by_ms = STEPS_MS[choices.below(STEPS_MS.len())];
        match choices.below(8) {
            0 => self.clock.step(by_ms),
            1 => self.clock.step(-by_ms),
            2 => {
                self.ledger.accept_clock().unwrap();
                self.model.accept_clock(self.clock.wall_ms(), self.clock.boot_ms());
            }
            _ => self.clock.advance(by_ms),
        }
        self.log.push(format!("clocks at {} and {}", self.clock.wall_ms(), self.clock.boot_ms()));
    }

    /// What must be refused whatever the state is.
    fn refuse(&mut self, choices: &mut Choices<'_>) {
        let wrong = [-1, i64::MIN, i64::MAX, (1 << 53) + 1][choices.below(4)];
        let unit = choices.below(UNITS);
        let mut amounts = [0; UNITS];
        amounts[unit] = wrong;
        self.log.push(format!("refuse {amounts:?}"));
        let node = self.ledger.node("a").unwrap();
        assert!(self.ledger.reserve(&node, &Amounts(amounts), self.clock.wall_ms(), Options::default()).is_err());
        if let Some(number) = self.pick(choices) {
            let mut reported = [None; UNITS];
            reported[unit] = Some(wrong);
            let id = self.ids[number];
            assert!(self.ledger.settle(id, &reported).is_err());
            assert!(self.ledger.top_up(id, &Amounts(amounts)).is_err());
            assert_ne!(self.ledger.charge(id, &Amounts(amounts)), Charge::GoOn);
        }
        let unknown = HoldId { slot: 1 << 20, generation: 1 };
        assert!(!self.ledger.release(unknown) && self.ledger.hold(unknown).is_none());
    }

    fn recover(&mut self, choices: &mut Choices<'_>) {
        if choices.one_in(2) {
            return;
        }
        self.log.push("recover".to_owned());
        let now_ms = self.now_ms();
        let recovered = self.ledger.recover().unwrap();
        assert_eq!(recovered.expired, self.model.recover(now_ms), "{:#?}", self.log);
        assert_eq!((recovered.holds, recovered.healed.found), (0, 0), "{:#?}", self.log);
    }

    /// Time, budgets, holds, and every cell of every budget in the windows of now.
    pub fn compare(&mut self) {
        let now_ms = self.now_ms();
        assert_eq!(self.ledger.now_ms(), now_ms, "{:#?}", self.log);
        assert_eq!(self.ledger.paths(), self.model.budgets.iter().cloned().collect::<Vec<_>>(), "{:#?}", self.log);
        let mut sums: BTreeMap<Kind, i64> = BTreeMap::new();
        for path in self.model.budgets.clone() {
            let node = self.ledger.node(&path).unwrap();
            let usage = self.ledger.usage(&node);
            let own = self.model.limits.keys().filter(|cell| cell.0 == path).count();
            assert_eq!(usage.len(), own, "{path}: {:#?}", self.log);
            for cell in usage {
                self.compare_cell(&path, &cell, now_ms);
                sums.insert((path.clone(), cell.unit.index(), cell.window.index()), cell.used + cell.held);
            }
        }
        let windows = Model::windows_at(now_ms);
        for (cell, sum) in &sums {
            // A budget whose place for the window is another window's by now has forgotten it; nobody is granted there.
            let open = self.model.open.contains_key(&(cell.0.clone(), cell.2, windows[cell.2]));
            if self.model.went_back && !open {
                continue;
            }
            let children = sums.iter().filter(|(other, _)| {
                (other.1, other.2) == (cell.1, cell.2)
                    && other.0.rsplit_once('/').is_some_and(|(parent, _)| parent == cell.0)
            });
            let below: i64 = children.map(|(_, sum)| sum).sum();
            assert!(below <= *sum, "{cell:?}: children {below}, itself {sum}: {:#?}", self.log);
        }
        let live = self.ledger.holds();
        assert_eq!(live.len(), self.model.holds.len(), "{:#?}", self.log);
        for (number, hold) in &self.model.holds {
            let seen = live.iter().find(|seen| seen.id == self.ids[*number]).expect("the hold lives");
            assert_eq!(
                (seen.amounts, seen.charged, seen.deadline_ms, seen.dispatched, seen.path.as_str()),
                (hold.held, hold.charged, hold.deadline_ms, hold.dispatched, hold.path.as_str()),
                "{:#?}",
                self.log
            );
        }
    }

    fn compare_cell(&self, path: &str, cell: &Usage, now_ms: i64) {
        let kind = (path.to_owned(), cell.unit.index(), cell.window.index());
        let window = Model::windows_at(now_ms)[cell.window.index()];
        let (limit, overdraft) = self.model.limit(&kind, window);
        let expected = (
            limit,
            overdraft,
            self.model.used(&kind, window),
            self.model.held(&kind, window),
            self.model.available(&kind, window),
            0,
        );
        let got = (cell.limit, cell.overdraft, cell.used, cell.held, cell.available, cell.stranded);
        assert_eq!(got, expected, "{kind:?}: {:#?}", self.log);
        let sum = cell.used + cell.held + cell.available + cell.stranded;
        assert_eq!(cell.limit + cell.overdraft, sum, "{kind:?}: {:#?}", self.log);
    }
}

/// One run: a ledger, then steps until the bytes are used up. Returns how many steps.
pub fn run(bytes: &[u8]) -> u64 {
    let mut choices = Choices(bytes);
    let mut both = Both::new(&mut choices);
    while !choices.0.is_empty() {
        both.step(&mut choices);
    }
    both.steps
}
