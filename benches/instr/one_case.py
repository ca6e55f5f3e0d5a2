"""One decision, repeated as often as the second argument says: what `count.py` runs under callgrind."""

import sys
from collections.abc import Callable

from tollkeeper import Context, Entities, Entity, EntityUid, PolicySet

POLICIES = """
permit (principal in Team::"ops", action == Action::"read", resource)
when { context.input.path like "/srv/*" && context.input.amount < 100 };
forbid (principal, action == Action::"drop", resource);
"""
CONTEXT = {"input": {"path": "/srv/a", "amount": 3}}


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
    call = cases()[sys.argv[1]]
    for _ in range(int(sys.argv[2])):
        call()
