"""What other budget systems got wrong, each as a test with the defect's name. See the reference for the sources."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tollkeeper.budget import Ledger
from tollkeeper.errors import TollkeeperError
from tollkeeper.testing import FakeClock

START_MS = 1_700_000_040_000
TREE = """\
[budget."acme"]
limits = [
  { unit = "tokens", window = "total", limit = 1000 },
  { unit = "requests", window = "1m", limit = 1000 },
  { unit = "nano_usd", window = "1d", limit = 1000 },
]
[budget."acme/team"]
limits = [{ unit = "tokens", window = "1m", limit = 500 }, { unit = "in_flight", window = "total", limit = 50 }]
[budget."acme/team/*"]
limits = [{ unit = "tokens", window = "1m", limit = 200 }]
[price."m"]
prompt = 1_000_000
completion = "0.002"
"""
LEVELS = ("acme", "acme/team", "acme/team/a")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START_MS)


@pytest.fixture
def ledger(clock: FakeClock) -> Ledger:
    made = Ledger.from_toml(TREE, clock=clock)
    assert made.explain("acme/team/a", tokens=1) == []
    return made


def flat(limit: int, unit: str = "tokens") -> Ledger:
    return Ledger.from_toml(f'[budget."a"]\nlimits = [{{ unit = "{unit}", window = "total", limit = {limit} }}]')


def everything(ledger: Ledger) -> dict[Any, Any]:
    """All counts of all budgets."""
    return {
        (path, *key): (one.limit, one.used, one.held, one.available, one.stranded)
        for path in ledger.paths
        for key, one in ledger.usage(path).items()
    }


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Runs it in so many threads, all at once."""
    ready = threading.Barrier(count)
    results: list[Any] = [None] * count

    def one(number: int) -> None:
        ready.wait()
        results[number] = work(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_check_then_record_race_with_200_concurrent_callers_spends_exactly_the_limit() -> None:
    ledger = flat(1_000)

    def call(_: int) -> int:
        spent = 0
        for _ in range(10):
            got = ledger.reserve("a", tokens=7)
            if got.granted:
                assert got.settle(tokens=7)
                spent += 7
        return spent

    spent = sum(together(200, call))
    usage = ledger.usage("a")["tokens", "total"]
    assert (spent, usage.used, usage.held, usage.available) == (994, 994, 0, 6)


def test_a_parallel_batch_of_20_with_10_affordable_starts_10() -> None:
    ledger = flat(10, "requests")
    got = together(20, lambda _: ledger.reserve("a", requests=1))
    assert sum(one.granted for one in got) == 10
    assert {one.code for one in got if not one.granted} == {"budget.exhausted"}
    assert ledger.usage("a")["requests", "total"].used == 10


def test_an_asyncio_batch_of_20_with_10_affordable_starts_10() -> None:
    ledger = flat(100)
    started = 0

    async def tool() -> None:
        nonlocal started
        got = ledger.reserve("a", tokens=10)
        if got.granted:
            started += 1
            await asyncio.sleep(0)
            got.settle(tokens=10)

    async def main() -> None:
        await asyncio.gather(*(tool() for _ in range(20)))

    asyncio.run(main())
    assert (started, ledger.usage("a")["tokens", "total"].used) == (10, 100)


@pytest.mark.parametrize("amount", [-1, -(2**53), 2**53 + 1, 2**63, 2**64, 2**200, -(2**200)])
def test_negative_and_overflowing_amounts_are_refused(ledger: Ledger, amount: int) -> None:
    before = everything(ledger)
    with pytest.raises((ValueError, OverflowError)):
        ledger.reserve("acme", tokens=amount)
    with ledger.reserve("acme", tokens=10) as hold:
        for call in (hold.charge, hold.settle, hold.top_up, hold.dispatch):
            with pytest.raises((ValueError, OverflowError)):
                call(tokens=amount)
            assert hold.live
        hold.release()
    assert everything(ledger) == before


@pytest.mark.parametrize("amount", [1.0, True, "1", None, float("nan")])
def test_amounts_that_are_no_integers_are_refused(ledger: Ledger, amount: Any) -> None:
    before = everything(ledger)
    with pytest.raises(TypeError):
        ledger.reserve("acme", tokens=amount)
    hold = ledger.reserve("acme", tokens=1)
    with pytest.raises(TypeError):
        hold.charge(tokens=amount)
    hold.release()
    assert everything(ledger) == before


def test_a_unit_that_does_not_exist_is_refused(ledger: Ledger) -> None:
    with pytest.raises((TypeError, ValueError), match="token"):
        ledger.reserve("acme", token=1)


def test_sums_of_the_largest_amounts_do_not_wrap() -> None:
    ledger = flat(2**60)
    holds = [ledger.reserve("a", tokens=2**53) for _ in range(200)]
    assert sum(hold.granted for hold in holds) == 128
    for hold in holds[:128]:
        assert hold.settle(tokens=2**53)
    usage = ledger.usage("a")["tokens", "total"]
    assert (usage.used, usage.available) == (2**60, 0)


@pytest.mark.parametrize(
    "cost",
    [
        {"tokens": 201},
        {"tokens": 1, "in_flight": 51},
        {"tokens": 1, "nano_usd": 1_001},
        {"tokens": 1, "requests": 1_001},
        {"tokens": 1_001, "requests": 1, "in_flight": 1, "nano_usd": 1},
    ],
)
def test_denied_requests_cost_nothing(ledger: Ledger, cost: dict[str, int]) -> None:
    before = everything(ledger)
    for _ in range(100):
        assert not ledger.reserve("acme/team/a", **cost).granted
    assert everything(ledger) == before
    assert ledger.reserve("acme/team/a", tokens=200, requests=1, in_flight=50, nano_usd=1_000).granted


def test_denied_by_one_limit_is_not_consumed_by_another(ledger: Ledger) -> None:
    """The root is full; team and leaf have room and must not count the denial."""
    hold = ledger.reserve("acme", tokens=1_000)
    before = everything(ledger)
    denial = ledger.reserve("acme/team/a", tokens=1)
    assert (denial.granted, denial.code, denial.path) == (False, "budget.contended", "acme")
    assert (denial.unit, denial.window, denial.requested, denial.available) == ("tokens", "total", 1, 0)
    assert everything(ledger) == before
    assert hold.release()


def test_window_edge(ledger: Ledger, clock: FakeClock) -> None:
    """Reserved at 59.9 s, settled at 60.1 s: only the first window counts it."""
    clock.advance(59_900 - (START_MS % 60_000))
    hold = ledger.reserve("acme/team/a", tokens=200, requests=1)
    denial = ledger.reserve("acme/team/a", tokens=1)
    assert denial.code == "budget.contended"
    clock.advance(200)
    usage = ledger.usage("acme/team/a")["tokens", "1m"]
    assert (usage.used, usage.held, usage.available) == (0, 0, 200)
    second = ledger.reserve("acme/team/a", tokens=200)
    assert second.granted
    assert hold.settle(tokens=150)
    usage = ledger.usage("acme/team/a")["tokens", "1m"]
    assert (usage.used, usage.held) == (0, 200)
    assert ledger.usage("acme")["requests", "1m"].used == 0
    assert ledger.usage("acme")["tokens", "total"].used == 150
    assert second.release()


def test_a_clock_that_steps_back_gives_nothing_back(ledger: Ledger, clock: FakeClock) -> None:
    assert ledger.reserve("acme/team/a", tokens=200).settle(tokens=200)
    clock.step(-3_600_000)
    denial = ledger.reserve("acme/team/a", tokens=1)
    assert denial.code == "budget.exhausted"
    assert denial.retry_after == (60_000 - START_MS % 60_000) / 1_000


def test_a_clock_that_jumps_forward_opens_no_window_early(ledger: Ledger, clock: FakeClock) -> None:
    assert ledger.reserve("acme/team/a", tokens=200).settle(tokens=200)
    clock.step(3_600_000)
    assert ledger.reserve("acme/team/a", tokens=1).code == "budget.exhausted"


def test_leaked_hold_after_cancel(ledger: Ledger) -> None:
    before = everything(ledger)

    async def call() -> None:
        with ledger.reserve("acme/team/a", tokens=100, in_flight=1):
            await asyncio.sleep(3_600)

    async def main() -> None:
        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        assert ledger.usage("acme")["tokens", "total"].held == 100
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert everything(ledger) == before


def test_in_flight_slots_come_back_whatever_the_ending(ledger: Ledger) -> None:
    for end in (
        lambda hold: hold.settle(tokens=1),
        lambda hold: hold.release(),
        lambda hold: hold.__exit__(None, None, None),
    ):
        hold = ledger.reserve("acme/team/a", tokens=1, in_flight=50)
        assert hold.granted
        end(hold)
        assert ledger.usage("acme/team")["in_flight", "total"].available == 50


PROMPT, CHUNK, CHUNKS = 20, 9, 10


@pytest.mark.parametrize("broken_at", range(CHUNKS + 1))
def test_stream_broken_at_every_chunk_index(ledger: Ledger, broken_at: int) -> None:
    """Never to zero, never left open: the prompt, which dispatching charges, and what was streamed."""

    def stream() -> None:
        with ledger.reserve("acme/team/a", tokens=PROMPT + CHUNK * CHUNKS, in_flight=1, requests=1) as hold:
            assert hold.dispatch(tokens=PROMPT)
            for number in range(CHUNKS):
                if number == broken_at:
                    raise ConnectionError
                assert hold.charge(tokens=CHUNK)

    if broken_at < CHUNKS:
        with pytest.raises(ConnectionError):
            stream()
    else:
        stream()
    # Broken before the first chunk, nobody can say how far the model came: then it is the whole hold.
    streamed = PROMPT + CHUNK * (broken_at or CHUNKS)
    for path in LEVELS:
        for (unit, _), usage in ledger.usage(path).items():
            assert usage.held == 0
            assert usage.used == {"tokens": streamed, "requests": 1}.get(unit, 0)


def test_a_call_that_breaks_before_anything_was_charged_counts_in_full(ledger: Ledger) -> None:
    with ledger.reserve("acme/team/a", tokens=100, nano_usd=70, requests=1) as hold:
        assert hold.dispatch()
        assert hold.charge(nano_usd=7)
    usage = ledger.usage("acme")
    assert (usage["tokens", "total"].used, usage["nano_usd", "1d"].used) == (100, 7)


def test_a_call_that_was_never_dispatched_costs_its_request_only(ledger: Ledger) -> None:
    with ledger.reserve("acme/team/a", tokens=100, requests=1):
        pass
    usage = ledger.usage("acme")
    assert (usage["tokens", "total"].used, usage["requests", "1m"].used) == (0, 1)


def test_a_hold_that_is_lost_is_given_back(ledger: Ledger) -> None:
    """Nobody can end what nobody has: the hold ends with its last reference."""
    before = everything(ledger)
    hold = ledger.reserve("acme/team/a", tokens=100, in_flight=1)
    assert everything(ledger) != before
    del hold
    assert everything(ledger) == before


def test_an_overage_is_never_forgiven(ledger: Ledger) -> None:
    """Used beyond the hold is debt at every level, and blocks every later reserve."""
    hold = ledger.reserve("acme/team/a", tokens=100)
    assert not hold.charge(tokens=1_100)
    assert hold.settle(tokens=1_100)
    for path, window, left in (("acme", "total", -100), ("acme/team", "1m", -600), ("acme/team/a", "1m", -900)):
        assert ledger.usage(path)["tokens", window].available == left
    for path in LEVELS:
        assert ledger.reserve(path, tokens=1).code == "budget.exhausted"
    assert ledger.reserve("acme", tokens=1).retry_after is None


@pytest.mark.parametrize("_round", range(50))
def test_endings_race_and_exactly_one_wins(_round: int) -> None:
    ledger = flat(100)
    hold = ledger.reserve("a", tokens=50)

    def end(number: int) -> bool:
        return hold.release() if number % 3 == 1 else hold.settle(tokens=30)

    won = together(12, end)
    assert won.count(True) == 1
    usage = ledger.usage("a")["tokens", "total"]
    assert (usage.used, usage.held) == (0 if won.index(True) % 3 == 1 else 30, 0)
    assert not hold.live
    assert hold.top_up(tokens=1).code == "budget.expired"


def test_the_first_request_above_a_small_limit_is_too_large_and_not_worth_a_retry() -> None:
    denial = flat(100).reserve("a", tokens=1_024)
    assert (denial.code, denial.retry_after) == ("budget.too_large", None)


def test_only_contended_is_worth_a_retry(ledger: Ledger) -> None:
    hold = ledger.reserve("acme/team/a", tokens=200)
    assert ledger.reserve("acme/team/a", tokens=1).code == "budget.contended"
    assert hold.settle(tokens=200)
    assert ledger.reserve("acme/team/a", tokens=1).code == "budget.exhausted"


def test_no_false_denial_at_the_very_last_unit(ledger: Ledger) -> None:
    for number in range(200):
        assert ledger.reserve("acme/team/a", tokens=1).settle(tokens=1), number
    assert ledger.usage("acme/team/a")["tokens", "1m"].available == 0


def test_an_unknown_budget_is_a_denial_that_names_the_known_ones(ledger: Ledger) -> None:
    denial = ledger.reserve("amce/team", tokens=1)
    assert (denial.granted, denial.code) == (False, "budget.unavailable")
    assert "acme" in denial.reason


def test_an_unknown_price_is_never_free(ledger: Ledger) -> None:
    assert ledger.price("m", {"prompt": 1, "completion": 1}) == 3
    assert ledger.price("m", {"prompt": 0}) == 0
    for model, component in (("n", "prompt"), ("m", "cached")):
        with pytest.raises(TollkeeperError) as caught:
            ledger.price(model, {component: 1})
        assert caught.value.code == "budget.unpriced"


def test_a_lowered_limit_blocks_new_holds_and_breaks_nothing(ledger: Ledger) -> None:
    hold = ledger.reserve("acme/team/a", tokens=150)
    assert ledger.set_limit("acme", "tokens", "total", 100) == 1_000
    assert ledger.usage("acme")["tokens", "total"].available == -50
    assert not ledger.reserve("acme/team", tokens=1).granted
    assert hold.live
    assert hold.settle(tokens=90)
    assert ledger.reserve("acme/team", tokens=10).granted


def test_a_hold_or_a_denial_has_no_truth_value_to_mistake(ledger: Ledger) -> None:
    """A denial is no exception and no falsy value: `.granted` says it."""
    for got in (ledger.reserve("acme", tokens=1), ledger.reserve("acme", tokens=2_000)):
        with pytest.raises(TypeError):
            bool(got)
