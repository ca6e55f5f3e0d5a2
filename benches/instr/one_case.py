"""One call, repeated as often as the second argument says: what `count.py` runs under callgrind."""

import sys
from collections.abc import Callable

import numpy as np

from tollkeeper import Context, Entities, Entity, EntityUid, Ledger, Meter, PolicySet
from tollkeeper.testing import FakeClock

POLICIES = """
permit (principal in Team::"ops", action == Action::"read", resource)
when { context.input.path like "/srv/*" && context.input.amount < 100 };
forbid (principal, action == Action::"drop", resource);
"""
CONTEXT = {"input": {"path": "/srv/a", "amount": 3}}

# Four levels of three cells; no limit is reached.
LEAF = "acme/research/team/a"
BUDGETS = "[ledger]\nholds = 2048\n" + "".join(
    f'[budget."{"/".join(LEAF.split("/")[:levels])}"]\nlimits = ['
    f'{{ unit = "tokens", window = "1d", limit = {1 << 60} }}, '
    f'{{ unit = "nano_usd", window = "month", limit = {1 << 60} }}, '
    f'{{ unit = "requests", window = "total", limit = {1 << 60} }}]\n'
    for levels in range(1, 5)
)
ROWS = 1_000


def ledger_cases() -> dict[str, Callable[[], object]]:
    """A whole hold, one charge of a hold, and one meter step of a thousand rows."""
    # The system's clock is read from a page that valgrind does not map, where the native module then looks in vain: the
    # process would end with SIGSEGV. So the reading of the clock is not in the counts.
    ledger = Ledger.from_toml(BUDGETS, clock=FakeClock(1_800_000_000_000))
    reserve, meter = ledger.reserve, Meter(ledger)
    kept = reserve(LEAF, tokens=1 << 40)
    most = np.full(ROWS, 1 << 24, np.uint32)
    new = np.ones(ROWS, np.uint32)
    slots, status = meter.reserve_many(np.full(ROWS, meter.node(LEAF), np.uint32), new, most)
    stop = np.zeros(ROWS, np.uint8)
    assert kept.charge(tokens=1)  # noqa: S101 - a bench asserts its result
    assert not status.any()  # noqa: S101
    assert meter.charge(slots, new, None, stop) == 0  # noqa: S101
    return {
        "hold": lambda: reserve(LEAF, tokens=100, nano_usd=250_000, requests=1).release(),
        "charge": lambda: kept.charge(tokens=1),
        "meter": lambda: meter.charge(slots, new, None, stop),
    }


def cases() -> dict[str, Callable[[], object]]:
    """What can be counted."""
    policies = PolicySet.from_cedar(POLICIES)
    store = Entities([Entity('Agent::"a"', parents=['Team::"ops"'])])
    who, what, where = EntityUid("Agent", "a"), EntityUid("Action", "read"), EntityUid("Mcp", "files")
    context = Context(CONTEXT)
    decide = policies.decide
    assert decide(who, what, where, context, store).allowed  # noqa: S101 - a bench asserts its result
    return {
        "loop": lambda: None,
        "prepared": lambda: decide(who, what, where, context, store),
        "strings": lambda: decide('Agent::"a"', 'Action::"read"', 'Mcp::"files"', CONTEXT, store),
    }


if __name__ == "__main__":
    known = ledger_cases() if sys.argv[1] in ("hold", "charge", "meter") else cases()
    call = known[sys.argv[1]]
    for _ in range(int(sys.argv[2])):
        call()
