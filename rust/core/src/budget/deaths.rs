//! Every death of every operation: a process is killed before its first, second, ... last write to the ledger's memory,
//! another one recovers, and the one that recovers is killed at each of its own writes too.
//!
//! After each of them, and before anything is healed, no cell has more to spend than it should, and what is missing is
//! within the doubt that is written down. After healing nothing is missing, what was acknowledged is still spent, what
//! was not is spent at every level or at none (but a request in doubt, which is spent where it is), no window is pinned
//! by nobody, and the ledger can be used in full.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::semicolon_if_nothing_returned,
    clippy::similar_names,
    clippy::unnecessary_wraps,
    clippy::double_ended_iterator_last,
    reason = "tests"
)]

use std::collections::HashMap;

use super::hold::{Charge, Hand, HoldId, Refused, Wish, read, settled, unreported};
use super::layout::{
    EPOCHS_LEN, FLAG_DISPATCHED, FLAG_FORCED, FLAG_METER, NO_NODE, Period, Phase, State, TALLY_NONE, Word,
};
use super::ledger::ids_at;
use super::memory::{Memory, Sizes};
use super::period::{Liveness, Step, units_of};
use super::store::RECOVERER;
use super::tree::{BudgetSpec, LedgerSpec, LimitSpec, Plan, parent_of};
use super::unit::{Amounts, UNITS, Unit};
use super::window::Window;
use crate::map::Mapping;
use crate::mortal::live_for;
use crate::sync::Ordering::{Acquire, Relaxed};

/// Who is killed, who lives all the time, and who comes after a recovery that was killed.
const DYING: u32 = 1;
const LIVING: u32 = 2;

const NOW_MS: i64 = 1_709_000_000_000;
const MINUTE_MS: i64 = 60_000;
/// So many minutes later the period of a minute is used again.
const LAP_MS: i64 = 16 * MINUTE_MS;
const LATER_MS: i64 = NOW_MS + 40 * 24 * 3_600_000;

/// As the kernel would say: the dying one is dead. Whether one that recovers lives cannot be asked.
struct Kernel;

impl Liveness for Kernel {
    fn is_dead(&self, owner: u32) -> bool {
        owner == DYING
    }
}

/// As whoever holds the ledger's lock knows: a recovery before this one is over.
fn is_gone(owner: u32) -> bool {
    owner == DYING || owner == RECOVERER
}

struct World {
    memory: Memory,
    steps: Vec<Step>,
    /// A hold of a process that lives
    living: HoldId,
}

const LIVING_HAS: [i64; UNITS] = [30, 40, 1, 1, 1];

fn spec() -> LedgerSpec {
    use Unit::{InFlight, KvBlocks, NanoUsd, Requests, Tokens};
    use Window::{Day, Hour, Minute, Month, Total};
    let limits = |limits: &[(Unit, Window, i64)]| -> Vec<LimitSpec> {
        limits
            .iter()
            .map(|(unit, window, limit)| LimitSpec { unit: *unit, window: *window, limit: *limit, overdraft: 0 })
            .collect()
    };
    let budget = |path: &str, of: &[(Unit, Window, i64)]| BudgetSpec {
        path: path.to_owned(),
        limits: limits(of),
        children_max: None,
    };
    LedgerSpec {
        budgets: vec![
            budget(
                "a",
                &[
                    (Tokens, Total, 200),
                    (InFlight, Total, 20),
                    (Requests, Minute, 50),
                    (Tokens, Day, 250),
                    (NanoUsd, Month, 700),
                ],
            ),
            budget("a/b", &[(Requests, Total, 60), (Tokens, Minute, 300)]),
            budget("a/b/c", &[(Tokens, Total, 400), (KvBlocks, Total, 8), (NanoUsd, Hour, 900)]),
        ],
        holds: 4,
        ..LedgerSpec::default()
    }
}

fn empty_memory() -> (Memory, Plan) {
    let plan = Plan::read(&spec()).unwrap();
    let sizes = Sizes { nodes: 5, periods: 96, slots: 4, owners: 4 };
    let memory = Memory::carve(&Mapping::anonymous(sizes.bytes()).unwrap(), sizes).unwrap();
    memory.format([0; 2], NOW_MS, 0);
    for (path, limits) in &plan.exact {
        let parent = parent_of(path).and_then(|parent| memory.find(parent)).unwrap_or(NO_NODE);
        memory.add_node(path, parent, limits).unwrap();
    }
    (memory, plan)
}

fn world() -> World {
    let (memory, _) = empty_memory();
    let steps = memory.steps(memory.find("a/b/c").unwrap());
    let mut world = World { memory, steps, living: HoldId { slot: 0, generation: 0 } };
    world.living = world.reserve(LIVING, LIVING_HAS, NOW_MS, 0).unwrap();
    world
}

impl World {
    fn hand(&self, me: u32) -> Hand<'_> {
        Hand { memory: &self.memory, me, alive: &Kernel }
    }

    fn reserve(&self, me: u32, amounts: [i64; UNITS], now_ms: i64, flags: u32) -> Result<HoldId, Refused> {
        let (ids, amounts) = (ids_at(now_ms, &self.steps), Amounts(amounts));
        let node = self.steps.first().map_or(0, |step| step.node);
        let wish =
            Wish { node, steps: &self.steps, amounts: &amounts, ids, now_ms, deadline_ms: 0, flags, tag: [0; 2] };
        self.hand(me).reserve(&wish, 0)
    }

    fn reserve_meter(&self, amounts: [i64; UNITS], left: i64) -> HoldId {
        let hold = self.reserve(DYING, amounts, NOW_MS, FLAG_METER | FLAG_DISPATCHED).unwrap();
        self.memory.tallies[hold.slot as usize].left.store(left, Relaxed);
        hold
    }

    fn settle(&self, me: u32, hold: HoldId, tokens: i64) -> bool {
        let reported = [Some(tokens), None, None, None, None];
        self.hand(me).end(hold, |slot| settled(slot, &self.hand(me).charged(hold.slot, slot), &reported))
    }

    /// Recovers as nobody else's process may die in it.
    fn recover(&self) {
        self.hand(RECOVERER).recover(&is_gone);
    }

    fn heal(&self) {
        self.hand(RECOVERER).heal();
    }

    /// Every period in use with its place.
    fn periods(&self) -> impl Iterator<Item = (u32, &Period)> {
        let in_use = self.memory.header().periods.load(Acquire) as usize;
        (0..).zip(self.memory.periods.iter().take(in_use))
    }

    /// What live holds hold of each period and unit: read from the slots here and not by the room.
    fn held(&self) -> HashMap<u32, [i64; UNITS]> {
        let mut held: HashMap<u32, [i64; UNITS]> = HashMap::new();
        for slot in self.memory.slots.iter() {
            let state = State(slot.state.load(Acquire));
            if state.phase() == Phase::Free || state.actor() == DYING {
                continue;
            }
            assert_eq!((state.phase(), state.actor()), (Phase::Live, LIVING));
            for (place, units) in slot.entries() {
                let sums = held.entry(place).or_default();
                for unit in units_of(units).filter(|unit| *unit != REQUESTS) {
                    sums[unit] += slot.amounts[unit].load(Relaxed);
                }
            }
        }
        held
    }

    /// How often live holds pin each window.
    fn pins(&self) -> HashMap<(usize, u32), u64> {
        let mut pins = HashMap::new();
        for slot in self.memory.slots.iter().filter(|slot| State(slot.state.load(Acquire)).phase() != Phase::Free) {
            for (kind, pinned) in slot.pinned.iter().enumerate().filter(|(_, pinned)| pinned.load(Relaxed) != 0) {
                *pins.entry((kind, pinned.load(Relaxed))).or_default() += 1;
            }
        }
        pins
    }

    fn used(&self) -> Used {
        self.periods().map(|(place, period)| ((place, id_of(period)), used_of(period))).collect()
    }

    /// What every cell of the windows at `at_ms` has spent since, cells in windows that are not open included.
    fn spent(&self, before: &Used, at_ms: i64) -> Vec<(usize, i64)> {
        let mut spent = Vec::new();
        for step in &self.steps {
            let id = step.window.id_at(at_ms) + 1;
            let ring = step.ring..step.ring + step.window.ring_len();
            let open = ring.clone().find(|place| self.memory.period(*place).is_some_and(|period| id_of(period) == id));
            for unit in units_of(step.units) {
                let of = |place: u32| {
                    let then = before.get(&(place, id)).map_or(0, |used| used[unit]);
                    used_of(&self.memory.periods[place as usize])[unit] - then
                };
                spent.push((unit, open.map_or(0, of)));
            }
        }
        spent
    }

    /// limit + overdraft - used - held - free, for each period and unit that has a limit.
    fn missing(&self) -> Vec<(String, i64, i64)> {
        let held = self.held();
        let mut missing = Vec::new();
        for (place, period) in self.periods().filter(|(_, period)| id_of(period) != 0) {
            let held = held.get(&place).copied().unwrap_or_default();
            for unit in (0..UNITS).filter(|unit| *unit != REQUESTS) {
                let most = period.limit[unit].load(Relaxed) + period.overdraft[unit].load(Relaxed);
                let rest = most - period.used[unit].load(Relaxed) - held[unit] - period.free[unit].load(Relaxed);
                let doubt = period.doubt_free[unit].load(Relaxed) + period.doubt_used[unit].load(Relaxed);
                missing.push((format!("period {place}, {}", Unit::ALL[unit].name()), rest, doubt));
            }
        }
        missing
    }
}

const REQUESTS: usize = Unit::Requests.index();

/// What is spent of each unit; of requests that is what is not free.
fn used_of(period: &Period) -> [i64; UNITS] {
    let mut used = read(&period.used);
    let of = |counts: &super::layout::Counts| counts[REQUESTS].load(Relaxed);
    used[REQUESTS] = of(&period.limit) + of(&period.overdraft) - of(&period.free);
    used
}

fn id_of(period: &Period) -> u32 {
    Word(period.word.load(Acquire)).id_plus_1()
}

/// Spent by place and window.
type Used = HashMap<(u32, u32), [i64; UNITS]>;
type Ends = &'static [[i64; UNITS]];

/// One operation, what it needs, and what its hold may come to for good once its process is dead.
struct Case {
    name: &'static str,
    prepare: fn(&World) -> Option<HoldId>,
    act: fn(&World, Option<HoldId>),
    /// What may be spent over what was spent before `prepare`
    ends: Ends,
    /// The most that may be stranded of each unit
    most: i64,
    /// The windows it is in
    at_ms: i64,
    /// Requests it may have taken somewhere though it was denied
    doubtful_requests: i64,
}

const WHOLE: [i64; UNITS] = [100, 200, 1, 0, 0];
const NOTHING: [i64; UNITS] = [0; UNITS];
const ASKED: [i64; UNITS] = [100, 200, 1, 1, 2];

fn nothing_before(_: &World) -> Option<HoldId> {
    None
}

/// Every cell has been spent from, and no minute is pinned.
fn used_before(world: &World) -> Option<HoldId> {
    assert!(world.settle(LIVING, world.living, 20));
    None
}

fn held_before(world: &World) -> Option<HoldId> {
    Some(world.reserve(DYING, ASKED, NOW_MS, 0).unwrap())
}

fn asks(world: &World, amounts: [i64; UNITS]) {
    assert!(matches!(world.reserve(DYING, amounts, NOW_MS, 0), Err(Refused::Cell(..))));
}

fn tops_up(world: &World, hold: Option<HoldId>, more: [i64; UNITS], granted: bool) {
    assert_eq!(world.hand(DYING).top_up(hold.unwrap(), &Amounts(more)).unwrap().is_ok(), granted);
}

fn case(
    name: &'static str,
    ends: Ends,
    prepare: fn(&World) -> Option<HoldId>,
    act: fn(&World, Option<HoldId>),
) -> Case {
    let most = ends.iter().flatten().copied().max().unwrap_or(0);
    Case { name, prepare, act, ends, most: most.max(1_000), at_ms: NOW_MS, doubtful_requests: 1 }
}

fn reserves() -> Vec<Case> {
    vec![
        case("reserve, granted", &[NOTHING, WHOLE], nothing_before, |world, _| {
            world.reserve(DYING, ASKED, NOW_MS, 0).unwrap();
        }),
        Case {
            at_ms: LATER_MS,
            ..case("reserve, granted in windows nobody has opened", &[NOTHING, WHOLE], nothing_before, |world, _| {
                world.reserve(DYING, ASKED, LATER_MS, 0).unwrap();
            })
        },
        Case {
            at_ms: NOW_MS + LAP_MS,
            ..case("reserve, granted where a window is used again", &[NOTHING, WHOLE], used_before, |world, _| {
                world.reserve(DYING, ASKED, NOW_MS + LAP_MS, 0).unwrap();
            })
        },
        case("reserve, forced beyond every limit", &[NOTHING, [1_000, 2_000, 1, 0, 0]], nothing_before, |world, _| {
            world.reserve(DYING, [1_000, 2_000, 1, 9, 9], NOW_MS, FLAG_FORCED).unwrap();
        }),
        case("reserve, denied at the leaf", &[NOTHING], nothing_before, |world, _| asks(world, [390, 1, 1, 1, 1])),
        case("reserve, denied at the leaf's second unit", &[NOTHING], nothing_before, |world, _| {
            asks(world, [1, 1, 1, 1, 8])
        }),
        case("reserve, denied at the leaf's second window", &[NOTHING], nothing_before, |world, _| {
            asks(world, [1, 880, 1, 1, 1])
        }),
        case("reserve, denied in the middle", &[NOTHING], nothing_before, |world, _| asks(world, [290, 1, 1, 1, 1])),
        Case {
            doubtful_requests: 60,
            ..case("reserve, denied in the middle, by requests", &[NOTHING], nothing_before, |world, _| {
                asks(world, [1, 1, 60, 1, 1])
            })
        },
        case("reserve, denied at the root", &[NOTHING], nothing_before, |world, _| asks(world, [190, 1, 1, 1, 1])),
        case("reserve, denied at the root, by a level", &[NOTHING], nothing_before, |world, _| {
            asks(world, [1, 1, 1, 20, 1])
        }),
        case("reserve, denied at the root's last cell", &[NOTHING], nothing_before, |world, _| {
            asks(world, [1, 690, 1, 1, 1])
        }),
        case(
            "reserve, every slot taken",
            &[NOTHING],
            |world| (0..3).map(|_| world.reserve(LIVING, NOTHING, NOW_MS, 0).unwrap()).last(),
            |world, _| {
                assert_eq!(world.reserve(DYING, ASKED, NOW_MS, 0), Err(Refused::Slots));
            },
        ),
    ]
}

fn changes() -> Vec<Case> {
    vec![
        case("charge", &[WHOLE], held_before, |world, hold| {
            let charged = world.hand(DYING).charge(hold.unwrap(), &Amounts([40, 0, 0, 0, 0]), 0, || NOW_MS);
            assert_eq!(charged, Charge::GoOn);
        }),
        case("charge, more than held", &[WHOLE, [140, 200, 1, 0, 0]], held_before, |world, hold| {
            let charged =
                world.hand(DYING).charge(hold.unwrap(), &Amounts([140, 0, 0, 0, 0]), FLAG_DISPATCHED, || NOW_MS);
            assert_eq!(charged, Charge::Stop);
        }),
        case("top-up, granted", &[WHOLE, [120, 230, 1, 0, 0]], held_before, |world, hold| {
            tops_up(world, hold, [20, 30, 0, 1, 1], true);
        }),
        case("top-up of levels only, granted", &[WHOLE], held_before, |world, hold| {
            tops_up(world, hold, [0, 0, 0, 3, 2], true)
        }),
        case("top-up, denied at the leaf", &[WHOLE], held_before, |world, hold| {
            tops_up(world, hold, [20, 0, 0, 0, 9], false)
        }),
        case("top-up, denied in the middle", &[WHOLE], held_before, |world, hold| {
            tops_up(world, hold, [260, 1, 0, 1, 1], false)
        }),
        case("top-up, denied at the root", &[WHOLE], held_before, |world, hold| {
            tops_up(world, hold, [80, 1, 0, 1, 1], false)
        }),
        case("top-up, denied at the root's last cell", &[WHOLE], held_before, |world, hold| {
            tops_up(world, hold, [1, 500, 0, 1, 1], false)
        }),
        case(
            "top-up, forced",
            &[[100, 200, 1, 0, 0], [900, 1_000, 1, 0, 0]],
            |world| Some(world.reserve(DYING, ASKED, NOW_MS, FLAG_FORCED).unwrap()),
            |world, hold| tops_up(world, hold, [800, 800, 0, 30, 9], true),
        ),
        case(
            "top-up of a meter's hold",
            &[[40, 200, 1, 0, 0], [60, 200, 1, 0, 0]],
            |world| Some(world.reserve_meter(ASKED, 60)),
            |world, hold| {
                tops_up(world, hold, [20, 0, 0, 0, 0], true);
                let left = &world.memory.tallies[hold.unwrap().slot as usize].left;
                left.store(left.load(Relaxed) + 20, Relaxed);
            },
        ),
    ]
}

fn endings() -> Vec<Case> {
    vec![
        case("settle, less", &[WHOLE, [60, 200, 1, 0, 0]], held_before, |world, hold| {
            assert!(world.settle(DYING, hold.unwrap(), 60))
        }),
        case("settle, nothing", &[WHOLE, [0, 200, 1, 0, 0]], held_before, |world, hold| {
            assert!(world.settle(DYING, hold.unwrap(), 0))
        }),
        case("settle, as much", &[WHOLE], held_before, |world, hold| assert!(world.settle(DYING, hold.unwrap(), 100))),
        case("settle, more", &[WHOLE, [750, 200, 1, 0, 0]], held_before, |world, hold| {
            assert!(world.settle(DYING, hold.unwrap(), 750))
        }),
        case(
            "settle, by a process that did not reserve",
            &[[0, 0, 1, 0, 0], WHOLE, [60, 200, 1, 0, 0]],
            |world| Some(world.reserve(LIVING, ASKED, NOW_MS, 0).unwrap()),
            |world, hold| assert!(world.settle(DYING, hold.unwrap(), 60)),
        ),
        case("release", &[WHOLE, [0, 0, 1, 0, 0]], held_before, |world, hold| {
            let hand = world.hand(DYING);
            assert!(hand.end(hold.unwrap(), |slot| unreported(0, &read(&slot.amounts), &read(&slot.charged))));
        }),
        case(
            "release, after a charge",
            &[WHOLE, [33, 0, 1, 0, 0]],
            |world| {
                let hold = held_before(world);
                world.hand(DYING).charge(hold.unwrap(), &Amounts([33, 0, 0, 0, 0]), 0, || NOW_MS);
                hold
            },
            |world, hold| {
                let hand = world.hand(DYING);
                assert!(hand.end(hold.unwrap(), |slot| unreported(0, &read(&slot.amounts), &read(&slot.charged))));
            },
        ),
        case(
            "settle of a meter's hold",
            &[[40, 200, 1, 0, 0], [35, 200, 1, 0, 0]],
            |world| Some(world.reserve_meter(ASKED, 60)),
            |world, hold| assert!(world.settle(DYING, hold.unwrap(), 35)),
        ),
        case(
            "end of a meter's hold that used all",
            &[WHOLE],
            |world| Some(world.reserve_meter(ASKED, 0)),
            |world, hold| assert!(world.settle(DYING, hold.unwrap(), 100)),
        ),
    ]
}

/// The world at the death before write `kill`, what was spent in it before, and whether the operation was through.
fn killed(case: &Case, kill: u64) -> (World, Used, bool) {
    let world = world();
    let mut before = world.used();
    let hold = (case.prepare)(&world);
    if hold.is_none() {
        before = world.used();
    }
    let done = live_for(kill, || (case.act)(&world, hold)).is_some();
    (world, before, done)
}

/// Nothing can be spent twice, and what is missing was written down.
fn assert_safe(world: &World, most: i64, at: &str) {
    for (cell, missing, doubt) in world.missing() {
        assert!(missing >= 0, "{at}: {cell}: {} too many can be spent", -missing);
        assert!(missing <= doubt, "{at}: {cell}: {missing} are missing, in doubt are {doubt}");
        assert!(missing <= most, "{at}: {cell}: {missing} are missing of a hold of {most}");
    }
}

/// Nothing is missing, and the dead process's hold came to the same at every level.
fn assert_whole(world: &World, before: &Used, case: &Case, within: fn(i64, i64) -> bool, at: &str) {
    for (cell, missing, doubt) in world.missing() {
        assert_eq!((missing, doubt), (0, 0), "{at}: {cell}: missing and in doubt");
    }
    for (place, period) in world.periods() {
        assert_eq!(Word(period.word.load(Acquire)).opener(), 0, "{at}: period {place} is being opened");
    }
    let pins = world.pins();
    for (place, epoch) in world.memory.epochs.iter().enumerate() {
        let word = Word(epoch.word.load(Acquire));
        let expected = pins.get(&(place / EPOCHS_LEN as usize, word.id_plus_1())).copied().unwrap_or(0);
        assert_eq!(word.pins(), expected, "{at}: epoch {place}: pins");
    }
    let spent = world.spent(before, case.at_ms);
    let requests = case.ends.iter().map(|end| end[REQUESTS]);
    let (least, most) = (requests.clone().min().unwrap_or(0), requests.max().unwrap_or(0));
    let fits = |end: &[i64; UNITS]| {
        spent.iter().all(|(unit, spent)| match *unit {
            // One in doubt stays spent where it was taken, though the hold was not granted.
            REQUESTS => (least..=most.max(case.doubtful_requests)).contains(spent),
            unit => within(end[unit], *spent),
        })
    };
    assert!(case.ends.iter().any(fits), "{at}: spent {spent:?}");
}

/// The survivors can use everything that is left, and the windows of the dead one are free to be used again.
fn assert_usable(world: &World, laps: i64, at: &str) {
    for slot in world.memory.slots.iter() {
        let state = State(slot.state.load(Acquire));
        if state.phase() != Phase::Free {
            let hold = world.memory.slots.iter().position(|other| std::ptr::eq(other, slot)).unwrap();
            world.settle(LIVING, HoldId { slot: u32::try_from(hold).unwrap(), generation: state.generation() }, 0);
        }
    }
    let later_ms = NOW_MS + 400 * 24 * 3_600_000;
    for lap in 0..laps {
        let hold = world.reserve(LIVING, [0, 1, 1, 20, 8], later_ms + lap * MINUTE_MS, 0);
        let hold = hold.unwrap_or_else(|refused| panic!("{at}: minute {lap}: {refused:?}"));
        assert!(world.settle(LIVING, hold, 0));
    }
    assert!(world.memory.tallies.iter().all(|tally| tally.left.load(Relaxed) == TALLY_NONE), "{at}: a tally is left");
}

fn try_every_death(case: &Case) {
    for kill in 0.. {
        let at = format!("{}, killed before write {kill}", case.name);
        let (world, before, done) = killed(case, kill);
        world.recover();
        assert_safe(&world, case.most, &at);
        world.heal();
        assert_whole(&world, &before, case, |end, spent| spent == end, &at);
        assert_usable(&world, 17, &at);
        if done {
            // The last one died after its work.
            break;
        }
        assert!(kill < 500, "{at}: it never ends");
    }
}

fn try_every_death_of_a_recovery(case: &Case) {
    for kill in 0.. {
        let mut done = false;
        for second in 0..500 {
            let at = format!("{}, killed before write {kill}, its recovery before write {second}", case.name);
            let (world, before, through) = killed(case, kill);
            done = through;
            let recovered = live_for(second, || world.recover()).is_some();
            // A second recovery is killed a little later.
            if !recovered && second % 3 == 0 {
                live_for(second / 3, || world.recover());
            }
            world.recover();
            assert_safe(&world, i64::MAX, &at);
            world.heal();
            // Two deaths at one step are noted as two doubts: what could be either is spent, never free.
            assert_whole(&world, &before, case, |end, spent| spent >= end, &at);
            assert_usable(&world, 1, &at);
            if recovered {
                break;
            }
        }
        if done {
            break;
        }
    }
}

#[test]
fn a_reserve_dies_anywhere() {
    reserves().iter().for_each(try_every_death);
}

#[test]
fn a_charge_or_a_top_up_dies_anywhere() {
    changes().iter().for_each(try_every_death);
}

#[test]
fn an_ending_dies_anywhere() {
    endings().iter().for_each(try_every_death);
}

#[test]
fn the_recovery_of_a_reserve_dies_anywhere() {
    reserves().iter().for_each(try_every_death_of_a_recovery);
}

#[test]
fn the_recovery_of_a_charge_or_a_top_up_dies_anywhere() {
    changes().iter().for_each(try_every_death_of_a_recovery);
}

#[test]
fn the_recovery_of_an_ending_dies_anywhere() {
    endings().iter().for_each(try_every_death_of_a_recovery);
}

/// Changes the root's limit on tokens, dies before write `kill`; then another one recovers and changes it again.
fn change_limit(limit: i64, overdraft: i64, kill: u64) -> bool {
    let at = format!("limit to {limit}, overdraft to {overdraft}, killed before write {kill}");
    let world = world();
    let node = world.memory.find("a").unwrap();
    let change =
        |hand: Hand<'_>| hand.change_limit(node, Unit::Tokens, Window::Total, limit, Some(overdraft), NOW_MS).unwrap();
    let done = live_for(kill, || change(world.hand(DYING))).is_some();
    world.recover();
    assert_safe(&world, i64::MAX, &at);
    world.heal();
    let missing = world.missing();
    assert!(missing.iter().all(|(_, missing, doubt)| (*missing, *doubt) == (0, 0)), "{at}: {missing:?}");
    change(world.hand(LIVING));
    let period = world.memory.periods.get(world.memory.nodes[node as usize].rings[0].load(Relaxed) as usize).unwrap();
    let of = |counts: &super::layout::Counts| counts[Unit::Tokens.index()].load(Relaxed);
    let now = (of(&period.limit), of(&period.overdraft), of(&period.free));
    assert_eq!(now, (limit, overdraft, limit + overdraft - LIVING_HAS[0]), "{at}: limit, overdraft, free");
    assert_whole_now(&world, &at);
    done
}

fn assert_whole_now(world: &World, at: &str) {
    for (cell, missing, doubt) in world.missing() {
        assert_eq!((missing, doubt), (0, 0), "{at}: {cell}: missing and in doubt");
    }
}

#[test]
fn a_change_of_a_limit_dies_anywhere() {
    for (limit, overdraft) in [(150, 0), (260, 0), (10, 0), (200, 40), (150, 90), (260, 5), (100, 20), (150, 50)] {
        assert!((0..500).any(|kill| change_limit(limit, overdraft, kill)));
    }
    // From a limit with an overdraft back to none is tried by the second change of each.
}

#[test]
fn a_change_back_is_a_change_though_the_first_one_died() {
    for kill in 0.. {
        let world = world();
        let node = world.memory.find("a").unwrap();
        let change = |hand: Hand<'_>, limit| hand.change_limit(node, Unit::Tokens, Window::Total, limit, None, NOW_MS);
        let done = live_for(kill, || change(world.hand(DYING), 150)).is_some();
        world.recover();
        world.heal();
        change(world.hand(LIVING), 200).unwrap();
        let ring = world.memory.nodes[node as usize].rings[0].load(Relaxed);
        let now = world.memory.periods[ring as usize].limit[0].load(Relaxed);
        assert_eq!(now, 200, "killed before write {kill}");
        assert_whole_now(&world, "changed back");
        if done {
            break;
        }
    }
}

/// What a dead process and two recoveries left, healed by one that is killed at each of its writes.
#[test]
fn a_heal_dies_anywhere() {
    for case in reserves().iter().chain(&changes()).chain(&endings()) {
        for kill in 0.. {
            let (world, before, done) = killed(case, kill);
            world.recover();
            for second in 0..200 {
                let at = format!("{}, killed before write {kill}, a heal before write {second}", case.name);
                if live_for(second, || world.heal()).is_some() {
                    break;
                }
                assert_safe(&world, case.most, &at);
            }
            let at = format!("{}, killed before write {kill}, healed in pieces", case.name);
            assert_whole(&world, &before, case, |end, spent| spent == end, &at);
            assert_usable(&world, 17, &at);
            if done {
                break;
            }
        }
    }
}

/// Nobody recovers: whoever needs the window takes over from the one that died while it opened it.
#[test]
fn the_opener_of_a_window_dies_and_the_next_one_takes_over() {
    for at_ms in [LATER_MS, NOW_MS + LAP_MS] {
        for kill in 0.. {
            let world = world();
            used_before(&world);
            let done = live_for(kill, || world.reserve(DYING, ASKED, at_ms, 0)).is_some();
            let at = format!("opener killed before write {kill}");
            let hold = world.reserve(LIVING, [1, 1, 1, 1, 1], at_ms, 0);
            let hold = hold.unwrap_or_else(|refused| panic!("{at}: {refused:?}"));
            world.recover();
            assert_safe(&world, 1_000, &at);
            world.heal();
            assert_whole_now(&world, &at);
            assert!(world.settle(LIVING, hold, 1));
            assert_usable(&world, 17, &at);
            if done {
                break;
            }
        }
    }
}

#[test]
fn the_maker_of_a_budget_dies_anywhere() {
    for kill in 0.. {
        let (memory, plan) = empty_memory();
        let parent = memory.find("a/b").unwrap();
        let limits = &plan.exact.iter().find(|(path, _)| path == "a/b/c").unwrap().1;
        let done = live_for(kill, || memory.add_node("a/b/d", parent, limits).unwrap()).is_some();
        let at = format!("killed before write {kill}");
        memory.check_nodes(memory.nodes_len()).unwrap_or_else(|fault| panic!("{at}: {fault}"));
        let index = memory.find("a/b/d").unwrap_or_else(|| memory.add_node("a/b/d", parent, limits).unwrap());
        assert_eq!(memory.steps(index).len(), memory.steps(memory.find("a/b/c").unwrap()).len(), "{at}");
        assert!(memory.find("a/b/d") == Some(index) && memory.nodes_len() == 4, "{at}");
        let world = World { steps: memory.steps(index), memory, living: HoldId { slot: 0, generation: 0 } };
        let hold = world.reserve(LIVING, ASKED, NOW_MS, 0).unwrap_or_else(|refused| panic!("{at}: {refused:?}"));
        assert!(world.settle(LIVING, hold, 100), "{at}");
        assert_whole_now(&world, &at);
        if done {
            break;
        }
    }
}

#[test]
fn reading_changed_limits_dies_anywhere() {
    let mut changed = spec();
    changed.budgets[0].limits[0] = LimitSpec { limit: 120, overdraft: 60, ..changed.budgets[0].limits[0] };
    changed.budgets[1].limits.push(LimitSpec { unit: Unit::NanoUsd, window: Window::Day, limit: 77, overdraft: 7 });
    changed.budgets[2].limits.pop();
    let plan = Plan::read(&changed).unwrap();
    for kill in 0.. {
        let world = world();
        let load = |me: u32| world.hand(me).load_limits(std::path::Path::new("x"), &plan).unwrap();
        let done = live_for(kill, || load(DYING)).is_some();
        let at = format!("killed before write {kill}");
        world.recover();
        assert_safe(&world, i64::MAX, &at);
        world.heal();
        assert_whole_now(&world, &at);
        load(LIVING);
        assert_whole_now(&world, &at);
        let root = &world.memory.periods[world.memory.nodes[0].rings[0].load(Relaxed) as usize];
        assert_eq!((root.limit[0].load(Relaxed), root.overdraft[0].load(Relaxed)), (120, 60), "{at}");
        let fresh = World { steps: world.memory.steps(2), ..world };
        assert!(fresh.reserve(LIVING, [0, 78 + 7, 0, 0, 0], LATER_MS, 0).is_err(), "{at}");
        assert!(fresh.reserve(LIVING, [0, 77 + 7, 0, 0, 0], LATER_MS, 0).is_ok(), "{at}");
        if done {
            break;
        }
    }
}
