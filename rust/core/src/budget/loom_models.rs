//! Models of the races of the budget room, for the model checker: `make loom`.
//!
//! Each runs a few threads on tables in ordinary memory, in every order of their steps that the checker finds within its
//! bound of preemptions and every value that a load may see by the rules of the language, and then adds up. The
//! constants are small (see `cfg(loom)` in the room): rings of one period, few spins. What is refused for lack of
//! patience is refused more often here than anywhere else; a model accepts it wherever nothing was taken.

use loom::sync::Arc;
use loom::thread;

use super::hold::{Charge, Hand, HoldId, Refused, Wish, settled, unreported};
use super::layout::{NO_NODE, Period, Phase, State, Word};
use super::memory::{Memory, Sizes};
use super::period::{Liveness, Step};
use super::tree::Limits;
use super::unit::{Amounts, Unit};
use super::window::Window;
use crate::sync::Ordering::{Acquire, Relaxed};

const DEAD: u32 = 1;
const ONE: u32 = 2;
const TWO: u32 = 3;
/// As in `store.rs`: the number that a recovery acts under.
const RECOVERER: u32 = super::layout::OWNER_MAX;
const LIMIT: i64 = 10;
const TOKENS: usize = 0;

struct Kernel;

impl Liveness for Kernel {
    fn is_dead(&self, owner: u32) -> bool {
        owner == DEAD
    }
}

fn is_gone(owner: u32) -> bool {
    owner == DEAD || owner == RECOVERER
}

/// A ledger of budgets in a line, each with the same limit on tokens in one window.
struct World {
    memory: Memory,
    steps: Vec<Step>,
}

fn world(window: Window, levels: u32) -> World {
    let sizes = Sizes { nodes: levels, periods: levels * window.ring_len(), slots: 3, owners: 1 };
    let memory = Memory::in_memory(sizes);
    let mut limits = Limits::NONE;
    limits.limited[window.index()] = 1;
    limits.limit[window.index()][TOKENS] = LIMIT;
    let mut parent = NO_NODE;
    for level in 0..levels {
        parent = memory.add_node(["a", "a/b"][level as usize], parent, &limits).unwrap();
    }
    let steps = memory.steps(parent);
    World { memory, steps }
}

impl World {
    fn hand(&self, me: u32) -> Hand<'_> {
        Hand { memory: &self.memory, me, alive: &Kernel }
    }

    fn reserve(&self, me: u32, tokens: i64, id: u32) -> Result<HoldId, Refused> {
        let amounts = Amounts::of(Unit::Tokens, tokens);
        let wish = Wish {
            node: 0,
            steps: &self.steps,
            amounts: &amounts,
            ids: [id; 5],
            now_ms: 0,
            deadline_ms: 0,
            flags: 0,
            tag: [0; 2],
        };
        self.hand(me).reserve(&wish, me)
    }

    fn settle(&self, me: u32, hold: HoldId, tokens: i64) -> bool {
        let (hand, reported) = (self.hand(me), [Some(tokens), None, None, None, None]);
        hand.end(hold, |slot| settled(slot, &hand.charged(hold.slot, slot), &reported))
    }

    fn release(&self, me: u32, hold: HoldId) -> bool {
        self.hand(me)
            .end(hold, |slot| unreported(0, &super::hold::read(&slot.amounts), &super::hold::read(&slot.charged)))
    }

    fn top_up(&self, me: u32, hold: HoldId, tokens: i64) -> Option<Result<(), Refused>> {
        self.hand(me).top_up(hold, &Amounts::of(Unit::Tokens, tokens))
    }

    fn recover(&self) {
        self.hand(RECOVERER).recover(&is_gone);
    }

    fn period(&self, step: usize) -> &Period {
        &self.memory.periods[self.steps[step].ring as usize]
    }

    fn free(&self, step: usize) -> i64 {
        self.period(step).free[TOKENS].load(Acquire)
    }

    fn used(&self, step: usize) -> i64 {
        self.period(step).used[TOKENS].load(Acquire)
    }

    /// At every level: what is free, spent and held adds up to the limit.
    fn adds_up(&self, used: i64, held: i64) {
        for step in 0..self.steps.len() {
            assert_eq!((self.used(step), self.free(step)), (used, LIMIT - used - held), "level {step}");
        }
    }

    fn is_live(&self, hold: HoldId) -> bool {
        let state = State(self.memory.slots[hold.slot as usize].state.load(Acquire));
        state.generation() == hold.generation && state.phase() == Phase::Live
    }
}

/// Runs both at once, in every order.
fn race<A: 'static, B: 'static>(
    make: impl Fn() -> World + Sync + Send + 'static,
    before: impl Fn(&World) -> Option<HoldId> + Sync + Send + 'static,
    one: impl Fn(&World, Option<HoldId>) -> A + Sync + Send + Copy + 'static,
    two: impl Fn(&World, Option<HoldId>) -> B + Sync + Send + Copy + 'static,
    after: impl Fn(&World, Option<HoldId>, A, B) + Sync + Send + 'static,
) {
    loom::model(move || {
        let world = Arc::new(make());
        let hold = before(&world);
        let other = Arc::clone(&world);
        let thread = thread::spawn(move || two(&other, hold));
        let first = one(&world, hold);
        let second = thread.join().unwrap();
        after(&world, hold, first, second);
    });
}

fn granted(got: &Result<HoldId, Refused>) -> i64 {
    i64::from(got.is_ok())
}

fn nothing(_: &World) -> Option<HoldId> {
    None
}

fn held_by_one(world: &World) -> Option<HoldId> {
    Some(world.reserve(ONE, 6, 0).unwrap())
}

fn held_by_the_dead(world: &World) -> Option<HoldId> {
    Some(world.reserve(DEAD, 6, 0).unwrap())
}

#[test]
fn reserve_against_reserve_on_one_cell() {
    race(
        || world(Window::Total, 1),
        nothing,
        |world, _| world.reserve(ONE, 6, 0),
        |world, _| world.reserve(TWO, 6, 0),
        |world, _, one, two| {
            assert_eq!(granted(&one) + granted(&two), 1);
            world.adds_up(0, 6);
        },
    );
}

#[test]
fn reserve_against_reserve_on_two_levels() {
    race(
        || world(Window::Total, 2),
        nothing,
        |world, _| world.reserve(ONE, 6, 0),
        |world, _| world.reserve(TWO, 4, 0),
        |world, _, one, two| {
            assert_eq!(granted(&one) + granted(&two), 2);
            world.adds_up(0, 10);
        },
    );
}

#[test]
fn reserve_against_settle() {
    race(
        || world(Window::Total, 1),
        held_by_one,
        |world, hold| world.settle(ONE, hold.unwrap(), 2),
        |world, _| world.reserve(TWO, 8, 0),
        |world, _, settled, two| {
            assert!(settled);
            world.adds_up(2, 8 * granted(&two));
        },
    );
}

#[test]
fn settle_against_release_exactly_one_wins() {
    race(
        || world(Window::Total, 1),
        held_by_one,
        |world, hold| world.settle(ONE, hold.unwrap(), 4),
        |world, hold| world.release(TWO, hold.unwrap()),
        |world, _, settled, released| {
            assert!(settled != released);
            world.adds_up(if settled { 4 } else { 0 }, 0);
        },
    );
}

#[test]
fn settle_against_charge() {
    race(
        || world(Window::Total, 1),
        held_by_one,
        |world, hold| world.release(ONE, hold.unwrap()),
        |world, hold| world.hand(TWO).charge(hold.unwrap(), &Amounts::of(Unit::Tokens, 3), 0, || 0),
        |world, hold, released, charged| {
            // A release that lost patience has not ended it, and can be done again.
            let live = world.is_live(hold.unwrap());
            assert!(released != live);
            if live {
                assert!(charged == Charge::GoOn && world.release(ONE, hold.unwrap()));
            }
            world.adds_up(if charged == Charge::GoOn { 3 } else { 0 }, 0);
        },
    );
}

#[test]
fn top_up_against_settle() {
    race(
        || world(Window::Total, 1),
        held_by_one,
        |world, hold| world.settle(ONE, hold.unwrap(), 2),
        |world, hold| world.top_up(TWO, hold.unwrap(), 3),
        |world, hold, settled, topped| {
            let live = world.is_live(hold.unwrap());
            assert!(settled != live);
            if live {
                assert!(topped == Some(Ok(())) && world.settle(ONE, hold.unwrap(), 2));
            }
            world.adds_up(2, 0);
        },
    );
}

#[test]
fn top_up_against_reserve() {
    race(
        || world(Window::Total, 1),
        held_by_one,
        |world, hold| world.top_up(ONE, hold.unwrap(), 4),
        |world, _| world.reserve(TWO, 4, 0),
        |world, _, topped, two| {
            assert!((topped == Some(Ok(()))) != two.is_ok());
            world.adds_up(0, 10);
        },
    );
}

/// Windows of a budget with one period: the next window can only have it once nobody is in this one.
fn adds_up_in_a_window(world: &World, id: u32, held: i64) {
    let word = Word(world.period(0).word.load(Acquire));
    assert_eq!((word.id_plus_1(), word.opener()), (id + 1, 0));
    let epoch = world.memory.epoch(Window::Hour, id).unwrap();
    let pins = Word(epoch.word.load(Acquire));
    assert_eq!(pins.pins(), u64::from(held != 0), "{pins:?}");
    world.adds_up(0, held);
    assert_eq!(world.memory.nodes[0].opening.load(Acquire), 0);
}

#[test]
fn the_last_reserve_of_a_window_against_the_first_of_the_next() {
    race(
        || world(Window::Hour, 1),
        |world| {
            let hold = world.reserve(ONE, 1, 5).unwrap();
            assert!(world.settle(ONE, hold, 0));
            None
        },
        |world, _| world.reserve(ONE, 6, 5),
        |world, _| world.reserve(TWO, 7, 6),
        |world, _, last, first| {
            assert!(!(last.is_ok() && first.is_ok()), "they share a period");
            if last.is_ok() {
                adds_up_in_a_window(world, 5, 6);
            } else {
                let id = Word(world.period(0).word.load(Acquire)).id_plus_1() - 1;
                adds_up_in_a_window(world, id, 7 * granted(&first));
            }
        },
    );
}

#[test]
fn two_openers_of_one_window() {
    race(
        || world(Window::Hour, 1),
        nothing,
        |world, _| world.reserve(ONE, 6, 5),
        |world, _| world.reserve(TWO, 7, 5),
        |world, _, one, two| {
            assert!(granted(&one) + granted(&two) <= 1);
            adds_up_in_a_window(world, 5, 6 * granted(&one) + 7 * granted(&two));
        },
    );
}

#[test]
fn the_end_of_a_window_s_last_hold_against_the_first_reserve_of_the_next() {
    race(
        || world(Window::Hour, 1),
        |world| Some(world.reserve(ONE, 6, 5).unwrap()),
        |world, hold| world.settle(ONE, hold.unwrap(), 4),
        |world, _| world.reserve(TWO, 7, 6),
        |world, _, settled, first| {
            assert!(settled);
            if first.is_ok() {
                adds_up_in_a_window(world, 6, 7);
            } else {
                // Either the hold was still there, or the window's place was had and the reserve lost patience.
                let id = Word(world.period(0).word.load(Acquire)).id_plus_1() - 1;
                world.adds_up(if id == 5 { 4 } else { 0 }, 0);
            }
        },
    );
}

/// A hold of the same window at the budget above keeps the window, but not the place of the budget below.
#[test]
fn a_window_that_is_kept_elsewhere_against_the_next_one_here() {
    race(
        || world(Window::Hour, 2),
        |world| {
            let above = World { memory: Memory::in_memory(world.memory.sizes()), steps: world.steps[1..].to_vec() };
            let amounts = Amounts::of(Unit::Tokens, 1);
            let (node, steps) = (0, &*above.steps);
            let wish =
                Wish { node, steps, amounts: &amounts, ids: [5; 5], now_ms: 0, deadline_ms: 0, flags: 0, tag: [0; 2] };
            Some(world.hand(DEAD + 3).reserve(&wish, 0).unwrap())
        },
        |world, _| world.reserve(ONE, 6, 5),
        |world, _| world.reserve(TWO, 7, 6),
        |world, _, last, first| {
            assert!(first.is_err(), "the budget above has no place");
            let word = Word(world.period(0).word.load(Acquire));
            assert!(word.id_plus_1() == 6 || last.is_err(), "{word:?}");
            let held = 6 * granted(&last);
            assert!((world.free(0), world.free(1)) == (LIMIT - held, LIMIT - held - 1) || word.id_plus_1() == 0);
        },
    );
}

/// A clock that was wrong is set right: windows that it opened are forgotten, but not from under a hold.
#[test]
fn a_window_is_forgotten_against_a_reserve_in_it() {
    race(
        || world(Window::Hour, 1),
        |world| {
            let hold = world.reserve(ONE, 3, 9).unwrap();
            assert!(world.settle(ONE, hold, 2));
            world.memory.header().last_ms.store(9 * 3_600_000, Relaxed);
            None
        },
        |world, _| world.memory.forget_later_windows(5 * 3_600_000),
        |world, _| world.reserve(TWO, 6, 9),
        |world, _, (), two| {
            let word = Word(world.period(0).word.load(Acquire));
            let pins = Word(world.memory.epoch(Window::Hour, 9).unwrap().word.load(Acquire)).pins();
            assert_eq!(pins, u64::try_from(granted(&two)).unwrap());
            if let Ok(hold) = two {
                assert_eq!(word.id_plus_1(), 10, "the hold has its window");
                assert_eq!(world.used(0) + world.free(0), LIMIT - 6);
                assert!(world.settle(TWO, hold, 1));
                assert_eq!(world.used(0) + world.free(0), LIMIT);
            }
        },
    );
}

/// As a process leaves it that died while it opened window 5: counts of the window before, and its own number twice.
fn opener_died(world: &World) -> Option<HoldId> {
    world.memory.nodes[0].opening.store(DEAD, Relaxed);
    world.period(0).word.store(Word::new(5, DEAD, 0).0, Relaxed);
    world.period(0).used[TOKENS].store(9, Relaxed);
    None
}

#[test]
fn an_opener_died_and_two_take_over() {
    race(
        || world(Window::Hour, 1),
        opener_died,
        |world, _| world.reserve(ONE, 6, 5),
        |world, _| world.reserve(TWO, 7, 5),
        |world, _, one, two| {
            assert!(granted(&one) + granted(&two) <= 1);
            adds_up_in_a_window(world, 5, 6 * granted(&one) + 7 * granted(&two));
        },
    );
}

#[test]
fn an_opener_died_and_a_recovery_meets_who_takes_over() {
    race(
        || world(Window::Hour, 1),
        opener_died,
        |world, _| world.reserve(ONE, 6, 5),
        |world, _| world.recover(),
        |world, _, one, ()| adds_up_in_a_window(world, 5, 6 * granted(&one)),
    );
}

#[test]
fn recover_against_a_reserve_of_a_living_process() {
    race(
        || world(Window::Total, 1),
        held_by_the_dead,
        |world, _| world.recover(),
        |world, _| world.reserve(TWO, 4, 0),
        |world, _, (), two| {
            assert!(two.is_ok());
            world.adds_up(6, 4);
        },
    );
}

#[test]
fn recover_against_a_late_settle() {
    race(
        || world(Window::Total, 1),
        held_by_the_dead,
        |world, _| world.recover(),
        |world, hold| world.settle(TWO, hold.unwrap(), 2),
        |world, _, (), settled| world.adds_up(if settled { 2 } else { 6 }, 0),
    );
}

#[test]
fn recover_against_a_late_charge() {
    race(
        || world(Window::Total, 1),
        held_by_the_dead,
        |world, _| world.recover(),
        |world, hold| world.hand(TWO).charge(hold.unwrap(), &Amounts::of(Unit::Tokens, 7), 0, || 0),
        |world, hold, (), charged| {
            if world.is_live(hold.unwrap()) {
                world.recover();
            }
            world.adds_up(if charged == Charge::Ended { 6 } else { 7 }, 0);
        },
    );
}

/// Six tokens may be missing at the leaf, and none are.
fn doubtful(world: &World) -> Option<HoldId> {
    world.period(0).doubt_free[TOKENS].store(6, Relaxed);
    None
}

#[test]
fn heal_against_a_reserve_that_is_denied() {
    race(
        || world(Window::Total, 2),
        |world| {
            world.period(1).free[TOKENS].store(5, Relaxed);
            world.period(1).used[TOKENS].store(5, Relaxed);
            doubtful(world)
        },
        |world, _| world.hand(RECOVERER).heal(),
        |world, _| world.reserve(TWO, 6, 0),
        |world, _, healed, two| {
            assert!(two.is_err() && healed.freed == 0);
            assert_eq!((world.free(0), world.free(1)), (10, 5));
        },
    );
}

#[test]
fn heal_against_a_reserve_that_is_settled_at_once() {
    race(
        || world(Window::Total, 1),
        doubtful,
        |world, _| world.hand(RECOVERER).heal(),
        |world, _| world.reserve(TWO, 6, 0).is_ok_and(|hold| world.settle(TWO, hold, 3)),
        |world, _, healed, settled| {
            assert!(settled && healed.freed == 0);
            world.adds_up(3, 0);
        },
    );
}

#[test]
fn heal_against_a_top_up_that_is_denied() {
    race(
        || world(Window::Total, 2),
        |world| {
            let hold = world.reserve(TWO, 1, 0).unwrap();
            world.period(1).free[TOKENS].store(4, Relaxed);
            world.period(1).used[TOKENS].store(5, Relaxed);
            doubtful(world);
            Some(hold)
        },
        |world, _| world.hand(RECOVERER).heal(),
        |world, hold| world.top_up(TWO, hold.unwrap(), 6),
        |world, _, healed, topped| {
            assert!(topped.is_some_and(|topped| topped.is_err()) && healed.freed == 0);
            assert_eq!((world.free(0), world.free(1)), (9, 4));
        },
    );
}

#[test]
fn heal_frees_what_a_dead_process_left_beside_a_reserve() {
    race(
        || world(Window::Total, 1),
        |world| {
            world.period(0).free[TOKENS].store(4, Relaxed);
            doubtful(world)
        },
        |world, _| world.hand(RECOVERER).heal(),
        |world, _| world.reserve(TWO, 3, 0),
        |world, _, healed, two| {
            assert!(two.is_ok());
            assert_eq!(healed.freed + i64::try_from(healed.not_quiet).unwrap() * 6, 6);
            world.adds_up(0, 3 + 6 - healed.freed);
        },
    );
}

#[test]
fn a_recount_of_pins_against_reserves() {
    race(
        || world(Window::Hour, 1),
        |world| {
            let hold = world.reserve(ONE, 1, 5).unwrap();
            assert!(world.settle(ONE, hold, 0));
            None
        },
        |world, _| world.hand(RECOVERER).heal(),
        |world, _| {
            // Pins and lets go, because it does not fit; pins again, and stays.
            assert!(world.reserve(TWO, 11, 5).is_err());
            world.reserve(TWO, 6, 5)
        },
        |world, _, _, two| adds_up_in_a_window(world, 5, 6 * granted(&two)),
    );
}
