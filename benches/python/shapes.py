"""Policy sets and requests to measure with: agent-shaped, for any number of policies.

Policy i is for team ``i mod sqrt(N)`` and tool ``i div sqrt(N)``; every tenth is a forbid. A request is matched by a
few policies whatever N is. Nothing here measures anything.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any

REQUESTS = 64


@dataclass
class Case:
    """A policy set, its entities and requests: (principal, action, resource, context)."""

    name: str
    policies: str
    entities: str
    requests: list[tuple[str, str, str, dict[str, Any]]] = field(default_factory=list)

    def texts(self) -> list[str]:
        """The policies in texts of at most half a megabyte: a file has a limit of one."""
        lines = self.policies.splitlines(keepends=True)
        return ["".join(lines[start : start + 2_000]) for start in range(0, len(lines), 2_000)]


def _entities(teams: int) -> str:
    rows: list[dict[str, Any]] = []
    for number in range(min(max(teams, 10), 25)):
        team = f"team{number % teams}"
        rows.append(
            {
                "uid": {"type": "Agent", "id": f"agent{number}"},
                "attrs": {"level": number % 5},
                "parents": [{"type": "Team", "id": team}],
            }
        )
    rows.extend(
        {"uid": {"type": "Team", "id": f"team{number}"}, "attrs": {}, "parents": []} for number in range(min(teams, 25))
    )
    return json.dumps(rows)


def _requests(teams: int, tools: int, kinds: int = 1) -> list[tuple[str, str, str, dict[str, Any]]]:
    agents = min(max(teams, 10), 25)
    return [
        (
            f'Agent::"agent{number % agents}"',
            f'Action::"tool{number % tools}"',
            'Mcp::"server"',
            {"input": {"path": f"/data/{number % 7}/file", "amount": number % 120, "kind": f"k{number % kinds}"}},
        )
        for number in range(REQUESTS)
    ]


def agent_shaped(count: int) -> Case:
    """Scope on team and tool, a path pattern and a threshold in the condition."""
    side = max(1, math.isqrt(count))
    lines = [
        f'{"forbid" if i % 10 == 9 else "permit"} (principal in Team::"team{i % side}", action == Action::"tool{i // side}", resource) '  # noqa: E501 - one policy
        f'when {{ context.input.path like "/data/{i % 7}/*" && context.input.amount < {10 + i % 100} }};'
        for i in range(count)
    ]
    return Case("agent-shaped", "\n".join(lines), _entities(side), _requests(side, max(1, (count - 1) // side + 1)))


def in_conditions(count: int) -> Case:
    """The same tests, all in the condition; the scope says nothing."""
    side = max(1, math.isqrt(count))
    lines = [
        f"{'forbid' if i % 10 == 9 else 'permit'} (principal, action, resource) "
        f'when {{ context.input.kind == "k{i // side}" && principal in Team::"team{i % side}" && context.input.amount < {10 + i % 100} }};'  # noqa: E501 - one policy
        for i in range(count)
    ]
    return Case("all in when", "\n".join(lines), _entities(side), _requests(side, 1, max(1, (count - 1) // side + 1)))


def index_proof(count: int) -> Case:
    """Every policy applies to every request."""
    scope = "permit (principal, action, resource)"
    lines = [f"{scope} when {{ context.input.amount < {1000 + i} }};" for i in range(count)]
    return Case("every policy applies", "\n".join(lines), _entities(1), _requests(1, 1))


def all_err(count: int) -> Case:
    """Every policy errs on every request."""
    lines = [f"permit (principal, action, resource) when {{ context.input.missing == {i} }};" for i in range(count)]
    return Case("every policy errs", "\n".join(lines), _entities(1), _requests(1, 1))
