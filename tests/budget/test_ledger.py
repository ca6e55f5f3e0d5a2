"""What a caller of the ledger sees: answers, bad input, closed and inherited handles, dropped holds, threads.

Whether the sums are right is checked against a model in `test_model.py`; here it is what the binding adds.
"""

import enum
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import BudgetError, Denial, HandleError, Hold, Ledger, _native
from tollkeeper.testing import FakeClock

UNITS = ("tokens", "nano_usd", "requests", "in_flight", "kv_blocks")
BUDGETS = """
[ledger]
volatile = true

[budget."acme"]
limits = [
    { unit = "tokens", window = "total", limit = 1000 },
    { unit = "requests", window = "1m", limit = 100 },
]

[budget."acme/team/*"]
children_max = 4
limits = [{ unit = "tokens", window = "1h", limit = 500 }, { unit = "in_flight", window = "total", limit = 10 }]

[price."model"]
prompt = 1_250_000_000
completion = "10"
"""
LEAF = "acme/team/a"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_700_000_000_000)


@pytest.fixture
def ledger(clock: FakeClock) -> Iterator[Ledger]:
    with Ledger.from_toml(BUDGETS, clock=clock) as ledger:
        yield ledger


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.from_toml(BUDGETS, state=tmp_path / "ledger.bin") as ledger:
        yield ledger


def held(ledger: Ledger, path: str = "acme") -> int:
    return ledger.usage(path)["tokens", "total"].held


def used(ledger: Ledger, path: str = "acme") -> int:
    return ledger.usage(path)["tokens", "total"].used


def in_child(work: Callable[[], object]) -> str:
    """What `work` returns in a forked child, or the code of what it raises."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # No assertion in here: a failing child would run the rest of the tests twice.
        try:
            answer = repr(work())
        except Exception as error:  # noqa: BLE001 - the parent looks at it
            answer = getattr(error, "code", repr(error))
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


# --- answers ------------------------------------------------------------------------------------------------------


def test_a_hold(ledger: Ledger) -> None:
    hold = ledger.reserve(LEAF, tokens=100, requests=1)
    assert isinstance(hold, Hold)
    assert (hold.granted, hold.code, hold.reason, hold.path, hold.live) == (True, "allow", "", LEAF, True)
    assert hold.amounts == dict.fromkeys(UNITS, 0) | {"tokens": 100, "requests": 1}
    assert hold.charge(tokens=60)
    assert hold.charged == dict.fromkeys(UNITS, 0) | {"tokens": 60}
    assert hold.charge(tokens=40)
    assert not hold.charge(tokens=1)
    assert hold.settle(tokens=83)
    assert not hold.live
    assert hold.amounts == hold.charged == dict.fromkeys(UNITS, 0)
    assert not hold.settle(tokens=1)
    assert not hold.release()
    assert not hold.charge(tokens=1)
    usage = ledger.usage(LEAF)["tokens", "1h"]
    assert (usage.limit, usage.overdraft, usage.used, usage.held, usage.available) == (500, 0, 83, 0, 417)
    assert (usage.stranded, usage.window_end_ms) == (0, 1_700_002_800_000)
    assert usage == ledger.usage(LEAF)["tokens", "1h"]
    assert "used=83" in repr(usage)
    assert used(ledger) == 83


def test_a_denial_names_the_cell(ledger: Ledger) -> None:
    first = ledger.reserve(LEAF, tokens=300)
    denial = ledger.reserve(LEAF, tokens=300)
    assert isinstance(denial, Denial)
    assert (denial.granted, denial.code, denial.path) == (False, "budget.contended", LEAF)
    assert (denial.unit, denial.window, denial.requested, denial.available) == ("tokens", "1h", 300, 200)
    assert (denial.limit, denial.used, denial.held) == (500, 0, 300)
    assert denial.retry_after is not None
    assert denial.retry_after > 0
    assert LEAF in denial.reason
    assert denial.code in repr(denial)
    assert first.granted
    assert first.settle(tokens=300)
    denial = ledger.reserve(LEAF, tokens=300)
    assert (denial.code, denial.retry_after) == ("budget.exhausted", 2800.0)
    assert ledger.reserve(LEAF, tokens=501).code == "budget.too_large"


def test_an_unknown_budget_is_a_denial_that_names_the_known_ones(ledger: Ledger) -> None:
    denial = ledger.reserve("acne", tokens=1)
    assert (denial.granted, denial.code, denial.path, denial.unit) == (False, "budget.unavailable", "acne", None)
    assert "acme" in denial.reason
    assert [each.code for each in ledger.explain("acne", tokens=1)] == ["budget.unavailable"]
    with pytest.raises(BudgetError, match="acme") as caught:
        ledger.usage("acne")
    assert caught.value.code == "budget.unknown"
    for number in range(4):
        assert ledger.reserve(f"acme/team/{number}", tokens=1).granted
    assert ledger.reserve("acme/team/one_too_many", tokens=1).code == "budget.unavailable"


def test_answers_have_no_truth_value(ledger: Ledger) -> None:
    hold, denial = ledger.reserve(LEAF), ledger.reserve(LEAF, tokens=501)
    for answer in (hold, denial):
        with pytest.raises(TypeError, match="granted"):
            bool(answer)


def test_top_up_answers_the_hold_itself_or_a_denial(ledger: Ledger) -> None:
    hold = ledger.reserve(LEAF, tokens=100)
    assert hold.top_up(tokens=50) is hold
    assert hold.amounts["tokens"] == 150
    assert hold.top_up(tokens=400).code == "budget.contended"
    assert hold.amounts["tokens"] == 150
    assert hold.release()
    assert hold.top_up(tokens=1).code == "budget.expired"


def test_a_text_of_any_class_and_any_object_names_a_budget(ledger: Ledger) -> None:
    class Path(enum.StrEnum):
        LEAF = "acme/team/a"

    for number in range(200):
        # Each time another object.
        path = f"acme/team/{'a' * (number >= 0)}"
        hold = ledger.reserve(path if number % 2 else Path.LEAF, tokens=1)
        assert hold.path == LEAF
        assert hold.settle(tokens=1)
    assert used(ledger) == 200
    with pytest.raises(TypeError):
        ledger.reserve(b"acme")  # type: ignore[arg-type]


def test_ledgers_do_not_share_what_threads_remember() -> None:
    ledgers = [Ledger.from_toml(BUDGETS) for _ in range(3)]
    for number, ledger in enumerate(ledgers * 2):
        assert ledger.reserve(LEAF, tokens=100 + number % 3).settle(tokens=100 + number % 3)
    assert [used(ledger) for ledger in ledgers] == [200, 202, 204]


# --- bad input ----------------------------------------------------------------------------------------------------


def calls(ledger: Ledger) -> list[Callable[..., object]]:
    hold = ledger.reserve(LEAF, tokens=10)
    reserve = lambda **amounts: ledger.reserve(LEAF, **amounts)  # noqa: E731 - one of a list
    explain = lambda **amounts: ledger.explain(LEAF, **amounts)  # noqa: E731 - one of a list
    return [reserve, explain, hold.charge, hold.dispatch, hold.top_up, hold.settle]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("amount", [True, 1.0, "1", float("nan"), b"1", [1]])
def test_an_amount_is_an_int(ledger: Ledger, unit: str, amount: Any) -> None:
    for call in calls(ledger):
        with pytest.raises(TypeError, match=f"{unit} must be an int, not {type(amount).__name__}"):
            call(**{unit: amount})
    assert used(ledger) == 0


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("amount", [-1, 2**53 + 1, -(2**63), 2**63, 10**40])
def test_an_amount_is_in_its_range(ledger: Ledger, unit: str, amount: int) -> None:
    shown = str(amount) if -(2**63) <= amount < 2**63 else "beyond 64 bits"
    for call in calls(ledger):
        with pytest.raises(ValueError, match=f"{unit} is {shown}, not between 0 and {2**53}") as caught:
            call(**{unit: amount})
        assert isinstance(caught.value, BudgetError)
        assert caught.value.code == "budget.amount"
    assert used(ledger) == 0


def test_none_is_no_amount_except_of_a_settle(ledger: Ledger) -> None:
    *others, settle = calls(ledger)
    for call in others:
        with pytest.raises(TypeError, match="tokens must be an int, not NoneType"):
            call(tokens=None)
    assert settle(tokens=None)


@pytest.mark.parametrize("ttl_ms", [0, -1, 2**53 + 1])
def test_a_deadline_lies_ahead(ledger: Ledger, ttl_ms: int) -> None:
    with pytest.raises(BudgetError, match="ttl_ms"):
        ledger.reserve(LEAF, ttl_ms=ttl_ms)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bugdets": []}, "bugdets"),
        ({"budgets": [("a", [("tokenz", "total", 1, 0)], None)]}, "tokenz"),
        ({"budgets": [("a", [("tokens", "1w", 1, 0)], None)]}, "1w"),
        ({"budgets": [("a", [("tokens", "total", True, 0)], None)]}, "limit must be an int"),
        ({"budgets": [("a", [("tokens", "total", 1, 0.5)], None)]}, "overdraft must be an int"),
        ({"budgets": [("a", [("tokens", "total", 2**70, 0)], None)]}, "beyond 64 bits"),
        ({"budgets": [("a", [("tokens", "total", -1, 0)], None)]}, "-1"),
        ({"budgets": [("a", [("in_flight", "1h", 1, 0)], None)]}, "total"),
        ({"admission": "careful"}, "careful"),
        ({"prices": [("m", [("prompt", 1), ("prompt", 2)])]}, "two prices"),
    ],
)
def test_a_spec_says_what_is_wrong_with_it(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BudgetError, match=says) as caught:
        _native.Ledger({"budgets": []} | change)
    assert caught.value.code == "budget.spec"


def test_a_spec_needs_budgets() -> None:
    with pytest.raises(BudgetError, match="budgets"):
        _native.Ledger({})


def test_set_limit(ledger: Ledger) -> None:
    assert ledger.set_limit("acme", "tokens", "total", 50) == 1000
    assert ledger.reserve("acme", tokens=51).code == "budget.too_large"
    (event,) = [event for event in ledger.events() if event["kind"] == "limit_changed"]
    assert (event["path"], event["unit"], event["window"]) == ("acme", "tokens", "total")
    assert (event["before"], event["after"], event["pid"]) == (1000, 50, os.getpid())
    unknown = [("acme", "coins", "total"), ("acme", "tokens", "1y"), ("acme", "nano_usd", "1h"), ("b", "tokens", "1h")]
    for path, unit, window in unknown:
        with pytest.raises(BudgetError) as caught:
            ledger.set_limit(path, unit, window, 1)
        assert caught.value.code == "budget.unknown"
    with pytest.raises(BudgetError, match="-1"):
        ledger.set_limit("acme", "tokens", "total", -1)
    with pytest.raises(TypeError, match="limit must be an int, not bool"):
        ledger.set_limit("acme", "tokens", "total", limit=True)


def test_prices(ledger: Ledger) -> None:
    assert ledger.models == ["model"]
    assert len(ledger.price_digest) == 64
    assert ledger.price("model", {"prompt": 3, "completion": 1}) == 3 * 1_250 + 10_000
    for usage, says in (({"cached": 1}, "cached"), ({"completion": 2**53}, "largest")):
        with pytest.raises(BudgetError, match=says) as caught:
            ledger.price("model", usage)
        assert caught.value.code == "budget.unpriced"
    with pytest.raises(BudgetError, match="another"):
        ledger.price("another", {})
    with pytest.raises(TypeError, match="a count must be an int"):
        ledger.price("model", {"prompt": 1.5})  # type: ignore[dict-item]
    with pytest.raises(BudgetError, match="-1"):
        ledger.price("model", {"prompt": -1})


def test_what_a_ledger_says_of_itself(ledger: Ledger, shared: Ledger, clock: FakeClock) -> None:
    assert (ledger.state, ledger.admission, ledger.increment_tokens) == (None, "safe", 256)
    assert ledger.paths == ["acme", "acme/team"]
    assert shared.state is not None
    assert shared.state.endswith("ledger.bin")
    assert shared.state in repr(shared)
    clock.step(3_600_000)
    assert ledger.reserve(LEAF, tokens=1).granted
    assert ledger.clock_skew_ms == 3_599_000
    ledger.accept_clock()
    assert ledger.clock_skew_ms <= 0


# --- holds that nobody ends ----------------------------------------------------------------------------------------


def test_a_dropped_hold_goes_back(ledger: Ledger) -> None:
    hold = ledger.reserve(LEAF, tokens=100, requests=1)
    assert held(ledger) == 100
    del hold
    assert (held(ledger), used(ledger)) == (0, 0)
    assert ledger.usage("acme")["requests", "1m"].used == 1


@pytest.mark.parametrize(
    ("use", "costs"),
    [
        (lambda hold: hold.charge(tokens=30), 30),
        (lambda hold: hold.dispatch(), 100),
        (lambda hold: hold.dispatch(tokens=20), 100),
        (lambda hold: hold.dispatch(tokens=20) and hold.charge(tokens=5), 25),
        (lambda hold: hold.release(), 0),
        (lambda hold: hold.settle(tokens=7), 7),
    ],
)
def test_what_a_dropped_hold_costs(ledger: Ledger, use: Callable[[Hold], object], costs: int) -> None:
    hold = ledger.reserve(LEAF, tokens=100)
    assert isinstance(hold, Hold)
    use(hold)
    del hold
    assert (held(ledger), used(ledger)) == (0, costs)
    assert ledger.holds() == []


def test_work_that_begins_at_once(ledger: Ledger) -> None:
    with ledger.reserve(LEAF, tokens=100, dispatched=True):
        (listed,) = ledger.holds()
        assert listed["dispatched"]
    assert used(ledger) == 100


def test_a_hold_in_a_cycle_is_collected(ledger: Ledger) -> None:
    class Call:
        def __init__(self) -> None:
            self.me, self.hold = self, ledger.reserve(LEAF, tokens=100)

    Call()
    gc.collect()
    assert held(ledger) == 0


def test_a_context_manager_ends_what_was_not_reported(ledger: Ledger) -> None:
    with ledger.reserve(LEAF, tokens=100) as hold:
        assert hold.charge(tokens=40)
    assert not hold.live
    with ledger.reserve(LEAF, tokens=100) as hold:
        assert hold.settle(tokens=10)
    assert used(ledger) == 50


def test_a_hold_keeps_its_ledger() -> None:
    hold = Ledger.from_toml(BUDGETS).reserve(LEAF, tokens=100)
    gc.collect()
    assert hold.charge(tokens=1)
    assert hold.settle(tokens=1)


def test_holds_are_listed(ledger: Ledger) -> None:
    hold = ledger.reserve(LEAF, tokens=100, ttl_ms=5_000)
    assert hold.charge(tokens=1)
    (listed,) = ledger.holds()
    assert listed == {
        "id": hold.id,
        "path": LEAF,
        "amounts": hold.amounts,
        "charged": hold.charged,
        "granted_ms": 1_700_000_000_000,
        "deadline_ms": 1_700_000_005_000,
        "decision": None,
        "owner_pid": os.getpid(),
        "alive": True,
        "dispatched": False,
        "meter": False,
    }
    assert hold.id in repr(hold)


def test_a_deadline_passes(ledger: Ledger, clock: FakeClock) -> None:
    hold = ledger.reserve(LEAF, tokens=100, ttl_ms=1_000)
    assert hold.charge(tokens=10)
    clock.advance(2_000)
    assert not hold.charge(tokens=10)
    assert hold.top_up(tokens=1).code == "budget.expired"
    assert ledger.recover()["expired"] == 1
    assert not hold.settle(tokens=10)
    assert used(ledger) == 10


# --- closed and inherited -----------------------------------------------------------------------------------------


def everything(ledger: Ledger, hold: Hold) -> dict[str, Callable[[], object]]:
    return {
        "reserve": lambda: ledger.reserve(LEAF, tokens=1),
        "reserve_elsewhere": lambda: ledger.reserve("acme/team/fresh", tokens=1),
        "usage": lambda: ledger.usage(LEAF),
        "explain": lambda: ledger.explain(LEAF, tokens=1),
        "holds": ledger.holds,
        "paths": lambda: ledger.paths,
        "recover": ledger.recover,
        "set_limit": lambda: ledger.set_limit("acme", "tokens", "total", 1),
        "events": ledger.events,
        "sync": ledger.sync,
        "change_count": ledger.change_count,
        "wait_for_change": lambda: ledger.wait_for_change(0, 10_000),
        "settle": lambda: hold.settle(tokens=1),
        "release": hold.release,
        "top_up": lambda: hold.top_up(tokens=1),
        "amounts": lambda: hold.amounts,
        "live": lambda: hold.live,
    }


def test_a_closed_ledger_refuses(ledger: Ledger) -> None:
    hold = ledger.reserve(LEAF, tokens=10)
    assert isinstance(hold, Hold)
    assert not ledger.closed
    ledger.close()
    ledger.close()
    assert ledger.closed
    for name, call in everything(ledger, hold).items():
        with pytest.raises(HandleError) as caught:
            call()
        assert (name, caught.value.code) == (name, "gate.closed")
    assert not hold.charge(tokens=1)
    assert not hold.dispatch()
    with hold:
        pass
    assert "closed" in repr(ledger)


def test_closing_ends_what_is_held(tmp_path: Path) -> None:
    state = tmp_path / "ledger.bin"
    with Ledger.from_toml(BUDGETS, state=state) as watcher:
        with Ledger.from_toml(BUDGETS, state=state) as ledger:
            hold = ledger.reserve(LEAF, tokens=100)
            assert hold.charge(tokens=30)
            assert held(watcher) == 100
        assert (held(watcher), used(watcher)) == (0, 30)
        # The name of a hold that has ended ends nothing of anybody else's.
        other = watcher.reserve(LEAF, tokens=100)
        del hold
        assert other.live


def test_an_inherited_ledger_in_memory_refuses(ledger: Ledger) -> None:
    hold = ledger.reserve(LEAF, tokens=100)
    assert isinstance(hold, Hold)
    for name, call in everything(ledger, hold).items():
        assert (name, in_child(call)) == (name, "gate.forked")
    assert in_child(lambda: hold.charge(tokens=1)) == "False"
    assert in_child(ledger.close) == "None"
    assert in_child(lambda: Ledger.from_toml(BUDGETS).reserve(LEAF, tokens=1).granted) == "True"
    assert (hold.live, held(ledger)) == (True, 100)


def test_an_inherited_shared_ledger_goes_on_without_doubling(shared: Ledger) -> None:
    hold = shared.reserve(LEAF, tokens=100)

    def work() -> object:
        own = shared.reserve(LEAF, tokens=300)
        return own.granted, shared.reserve(LEAF, tokens=200).code, own.settle(tokens=250)

    assert in_child(work) == "(True, 'budget.contended', True)"
    assert (hold.live, used(shared), held(shared)) == (True, 250, 100)


def test_a_child_does_not_end_the_holds_of_its_parent(shared: Ledger) -> None:
    holds = [shared.reserve(LEAF, tokens=100)]

    def drop() -> object:
        shared.reserve(LEAF, tokens=1).release()
        with holds[0]:
            pass
        holds.clear()
        gc.collect()
        return held(shared)

    assert in_child(drop) == "100"
    assert held(shared) == 100
    assert in_child(shared.close) == "None"
    assert held(shared) == 100


def test_a_child_may_end_a_hold_that_it_was_given(shared: Ledger) -> None:
    hold = shared.reserve(LEAF, tokens=100)
    assert in_child(lambda: hold.settle(tokens=60)) == "True"
    assert not hold.settle(tokens=100)
    assert used(shared) == 60


# --- threads ------------------------------------------------------------------------------------------------------


def together(count: int, work: Callable[[int], object]) -> None:
    """Runs it in so many threads at once."""
    barrier, failed = threading.Barrier(count), []

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - shown below
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_200_concurrent_callers_spend_exactly_the_limit(ledger: Ledger) -> None:
    granted: list[Hold] = []

    def work(_: int) -> None:
        for _ in range(3):
            answer = ledger.reserve("acme", tokens=10)
            if isinstance(answer, Hold):
                granted.append(answer)
            else:
                assert answer.code == "budget.contended"

    together(200, work)
    assert len(granted) == 100
    assert held(ledger) == 1000
    together(100, lambda number: granted[number].settle(tokens=10))
    assert (used(ledger), held(ledger)) == (1000, 0)
    assert ledger.reserve("acme", tokens=1).code == "budget.exhausted"


def test_threads_that_end_the_same_hold_end_it_once(ledger: Ledger) -> None:

    def end_by_eight(hold: Hold) -> None:
        ended: list[bool] = []
        ends = (lambda: hold.settle(tokens=1), hold.release)
        together(8, lambda number: ended.append(ends[number % 2]()))
        assert sorted(ended) == [False] * 7 + [True]

    for _ in range(20):
        end_by_eight(ledger.reserve("acme", tokens=10))
    assert held(ledger) == 0
    assert used(ledger) <= 20


def test_a_waiter_is_woken_by_what_comes_back(ledger: Ledger) -> None:
    hold = ledger.reserve("acme", tokens=1000)
    waiting, woken = threading.Event(), []

    def wait() -> None:
        seen = ledger.change_count()
        waiting.set()
        while ledger.explain("acme", tokens=1):
            # An end just before the wait is not announced, so nobody waits for ever.
            seen = ledger.wait_for_change(seen, 50)
        woken.append(seen)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(10)
    assert hold.release()
    thread.join(10)
    assert woken


def test_a_wait_lets_other_threads_run(ledger: Ledger) -> None:
    ran: list[int] = []
    thread = threading.Thread(target=lambda: ran.append(1))
    seen = ledger.change_count()
    thread.start()
    assert ledger.wait_for_change(seen, 100) == seen
    thread.join()
    assert ran
