"""One call, repeated as often as the second argument says: what `count.py` runs under callgrind."""

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from tollkeeper import Context, Entities, Entity, EntityUid, Gate, Ledger, Meter, PolicySet
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


TOOL = """[tools.send]
resource = 'Mcp::"mail"'
schema = { type = "object", required = ["path", "amount"], properties = { path = { type = "string" }, \
amount = { type = "integer" } } }
"""
# A writer that is told to wait a minute writes nothing while calls are counted: what they record fits in the ring.
AUDIT = (
    '[audit]\norigin = "example.com/instr"\ninterval_ms = 60000\ncheckpoint_interval_ms = 3600000\nring_kib = 16384\n'
)
ARGUMENTS = {"path": "/data/0/notes.txt", "amount": 3}


def gate_policies(count: int) -> str:
    """As many policies, a tenth of which are for this principal and one for this call."""
    side = max(1, int(count**0.5))
    return "".join(
        f'permit (principal in Team::"team{number % side}", action == Action::"{"send" if number < side else number}",'
        f' resource) when {{ context.input.path like "/data/{number % 7}/*"'
        f" && context.input.amount < {10 + number} }};\n"
        for number in range(count)
    )


def gate_cases(name: str, stack: ExitStack) -> dict[str, Callable[[], object]]:
    """A check with a tool's schema; with a record of it; with 100 policies, a reserve at four levels and the record."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    full = name in ("check_full", "action_full")
    (folder / "p.cedar").write_text(gate_policies(100 if full else 1))
    (folder / "entities.json").write_text(
        '[{"uid": {"type": "Agent", "id": "a"}, "attrs": {}, "parents": [{"type": "Team", "id": "team0"}]}]'
    )
    text = f'[policy]\nfiles = ["p.cedar"]\nentities = "entities.json"\n{TOOL}' + (
        "cost = { tokens = 100 }\n" if full else ""
    )
    (folder / "tollkeeper.toml").write_text(text + (AUDIT if name != "check" else ""))
    # See `ledger_cases` for the clock.
    ledger = Ledger.from_toml(BUDGETS, clock=FakeClock(1_800_000_000_000)) if full else None
    gate = stack.enter_context(Gate.open(folder / "tollkeeper.toml", ledger=ledger))
    stack.enter_context(gate.run(principal='Agent::"a"', session="s", budget=LEAF if full else None))
    check, arguments = gate.check, ARGUMENTS
    decision = check("send", arguments)
    assert decision.allowed, decision.reason  # noqa: S101 - a bench asserts its result
    known: dict[str, Callable[[], object]] = {name: lambda: check("send", arguments)}
    if name == "action_full":
        prepared = gate.action("send").check
        assert prepared(arguments).allowed  # noqa: S101
        known[name] = lambda: prepared(arguments)
    return known


def main() -> None:
    """Makes the calls, and nothing of the end: what a writer would still do is not what is counted."""
    name, count = sys.argv[1], int(sys.argv[2])
    with ExitStack() as stack:
        if name in ("hold", "charge", "meter"):
            known = ledger_cases()
        elif name in ("check", "check_audit", "check_full", "action_full"):
            known = gate_cases(name, stack)
        else:
            known = cases()
        call = known[name]
        for _ in range(count):
            call()


if __name__ == "__main__":
    main()
