"""What the type checkers see of the budget room. Checked by mypy and basedpyright, never run."""

from typing import assert_type

from tollkeeper import BudgetError, Denial, Hold, Ledger, Meter, Usage
from tollkeeper.testing import FakeClock

clock = FakeClock(0)
assert_type(clock.wall_ms, int)
with Ledger.from_toml("", clock=clock) as ledger:
    assert_type(ledger, Ledger)
    got = ledger.reserve("acme", tokens=100, requests=1, ttl_ms=None)
    assert_type(got, Hold | Denial)
    assert_type(got.granted, bool)
    assert_type(got.code, str)
    if isinstance(got, Denial):
        assert_type(got.unit, str | None)
        assert_type(got.available, int)
        assert_type(got.retry_after, float | None)
    else:
        assert_type(got.charge(tokens=1), bool)
        assert_type(got.top_up(tokens=1), Hold | Denial)
        assert_type(got.settle(tokens=None), bool)
        assert_type(got.release(), bool)
        assert_type(got.amounts, dict[str, int])
        with got as hold:
            assert_type(hold, Hold)
    usage = ledger.usage("acme")["tokens", "total"]
    assert_type(usage, Usage)
    assert_type(usage.available, int)
    assert_type(usage.window_end_ms, int | None)
    assert_type(ledger.explain("acme", tokens=1), list[Denial])
    assert_type(ledger.price("model", {"prompt": 1}), int)
    assert_type(ledger.set_limit("acme", "tokens", "total", 1), int)
    assert_type(ledger.state, str | None)
    meter = Meter(ledger)
    assert_type(meter.node("acme"), int)
    assert_type(meter.settle_many([]), int)
    assert_type(Meter.STATUS[0], str)


async def wait(on: Ledger) -> None:
    """The one coroutine."""
    assert_type(await on.available("acme", {"tokens": 1}, timeout=1.0), bool)


def handle(error: BudgetError) -> str:
    """A budget error is a value error with a code."""
    value: ValueError = error
    assert_type(error.code, str)
    return str(value)


ledger.reserve("acme", tokens=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
ledger.reserve("acme", 100)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
