"""What the gate bench measures with: a configuration of any number of policies, and a gate opened from it.

The policies are those of `shapes.agent_shaped`; the requests are one agent's calls that they allow, and cedarpy is
asked first whether it says so too, by the same policies. The budget has four levels. `Subject.wrong` says at the end
what of the log or the ledger is not as the calls made it. Nothing here measures anything.
"""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cedarpy
import shapes

from tollkeeper import Decision, Gate, config

LEVELS = ("acme", "acme/research", "acme/research/team", "acme/research/team/a")
LIMIT = 1 << 60
TOKENS = 100
PRINCIPAL = 'Agent::"agent0"'
REQUESTS_MAX = 8
# As `shapes.Case.texts` parts them.
POLICIES_PER_FILE = 2_000
SCHEMA = (
    '{ type = "object", required = ["path", "amount"], properties = { path = { type = "string" }, '
    'amount = { type = "integer" }, kind = { type = "string" }, body = { type = "string" } } }'
)
# One limit at each level is what Redis is asked for too; three are what the budget bench has.
ONE_CELL = (("tokens", "1d"),)
THREE_CELLS = (*ONE_CELL, ("nano_usd", "month"), ("requests", "total"))

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """A call that the policies allow."""

    tool: str
    arguments: Arguments
    policy: int
    """The only policy that is satisfied."""


def policies(count: int) -> shapes.Case:
    """The shape, with a guard in front of what a forbid reads: without one the gate refuses to load it."""
    case = shapes.agent_shaped(count)
    guard = "when { context.input has path && context.input has amount && "
    lines = (
        line.replace("when { ", guard) if line.startswith("forbid") else line for line in case.policies.splitlines()
    )
    return shapes.Case(case.name, "\n".join(lines), case.entities, case.requests)


def requests(count: int) -> list[Request]:
    """Calls of one agent, each allowed by one policy; a forbid is for another team or another amount."""
    side = max(1, math.isqrt(count))
    permits = [number for number in range(0, count, side) if number % 10 != 9]
    return [
        Request(f"tool{number // side}", {"path": f"/data/{number % 7}/notes.txt", "amount": 3, "kind": "k0"}, number)
        for number in permits[:REQUESTS_MAX]
    ]


def plain_requests(count: int) -> list[dict[str, Any]]:
    """The same as plain data, for peers in other processes."""
    return [
        {"principal": PRINCIPAL, "action": f'Action::"{one.tool}"', "resource": 'Mcp::"server"', "tool": one.tool,
         "arguments": one.arguments, "policy": one.policy}
        for one in requests(count)
    ]  # fmt: skip


def write(folder: Path, count: int, cells: tuple[tuple[str, str], ...] = ONE_CELL, audit: str = "") -> Path:
    """Writes everything that a gate of so many policies is made of; the configuration's file."""
    folder.mkdir(parents=True, exist_ok=True)
    case = policies(count)
    for number, text in enumerate(case.texts()):
        (folder / f"part{number:04}.cedar").write_text(text)
    (folder / "entities.json").write_text(case.entities)
    limits = ", ".join(f'{{ unit = "{unit}", window = "{window}", limit = {LIMIT} }}' for unit, window in cells)
    (folder / "budgets.toml").write_text("".join(f'[budget."{path}"]\nlimits = [{limits}]\n' for path in LEVELS))
    cost = ", ".join(f"{unit} = {TOKENS if unit != 'requests' else 1}" for unit, _ in cells)
    side = max(1, math.isqrt(count))
    tools = "".join(
        f"[tools.tool{number}]\nresource = 'Mcp::\"server\"'\ncost = {{ {cost} }}\nschema = {SCHEMA}\n"
        for number in range(max(1, (count - 1) // side + 1))
    )
    file = folder / config.FILE_NAME
    file.write_text(
        '[policy]\nfiles = ["*.cedar"]\nentities = "entities.json"\n[budget]\nfile = "budgets.toml"\n'
        f'state = "ledger.bin"\n[audit]\norigin = "example.com/bench"\n{audit}[state]\ndir = "state"\n{tools}'
    )
    return file


def agreed(count: int, folder: Path) -> None:
    """Asks the reference about every request.

    Raises:
        AssertionError: It does not allow one, or because of another policy.
    """
    case = policies(count)
    known, entities = cedarpy.PolicySet.from_str(case.policies), cedarpy.Entities.from_json_str(case.entities)
    for one in plain_requests(count):
        asked = {key: one[key] for key in ("principal", "action", "resource")}
        answer = cedarpy.is_authorized({**asked, "context": {"input": one["arguments"]}}, known, entities)
        if not answer.allowed or list(answer.diagnostics.reasons) != [f"policy{one['policy']}"]:
            raise AssertionError(f"{folder}: the reference says otherwise: {answer.diagnostics.reasons} for {one}")


@dataclass
class Subject:
    """An open gate, what is asked of it, and how often that was done."""

    gate: Gate
    calls: list[Request]
    scope: Any
    checks: int = 0
    entries_before: int = 0
    prepared: list[Callable[..., Decision]] = field(default_factory=list)
    """A prepared action's check for each request."""

    def wrong(self, root_checks: int | None = None) -> str | None:
        """What the log or the ledger says otherwise; waits for the log.

        Args:
            root_checks: How often the ledger was charged by everybody, where it is shared.
        """
        log, ledger = self.gate.log, self.gate.ledger
        assert log is not None and ledger is not None  # noqa: S101, PT018 - the configuration has both
        made = log.flush() - self.entries_before
        if made != self.checks:
            return f"the log has {made:,} entries more where {self.checks:,} checks were made"
        wanted = (self.checks if root_checks is None else root_checks) * TOKENS
        for path in LEVELS:
            usage = ledger.usage(path)["tokens", "1d"]
            if usage.used + usage.held != wanted:
                return f"{path}: {usage.used + usage.held:,} tokens counted where {wanted:,} were spent"
        return None


def opened(file: Path, count: int, *, fresh: bool = True) -> Subject:
    """Opens the gate and asks every request once, comparing the policy that allows it.

    Args:
        file: The configuration.
        count: Its number of policies.
        fresh: Whether a ledger that is left over is removed first; False where another process uses it too.

    Raises:
        AssertionError: The gate decides otherwise.
    """
    if fresh:
        shutil.rmtree(file.parent / "audit", ignore_errors=True)
        (file.parent / "ledger.bin").unlink(missing_ok=True)
    gate = Gate.open(file)
    run = gate.run(principal=PRINCIPAL, session="s-18f2c", budget=LEVELS[-1])
    subject = Subject(gate, requests(count), run)
    with run as scope:
        for one in subject.calls:
            decision = gate.check(one.tool, one.arguments, scope=scope)
            by = (f"part{one.policy // POLICIES_PER_FILE:04}.cedar#{one.policy % POLICIES_PER_FILE + 1}",)
            if not decision.allowed or tuple(decision.policies) != by:
                raise AssertionError(f"{decision.code} by {decision.policies} for {one}")
    del decision
    assert gate.log is not None  # noqa: S101 - the configuration has one
    # Opening and the run are entries of their own.
    subject.scope = gate.run(principal=PRINCIPAL, session="s-18f2c", budget=LEVELS[-1])
    subject.checks = len(subject.calls)
    subject.entries_before = gate.log.flush() - len(subject.calls)
    subject.prepared = [gate.action(one.tool).check for one in subject.calls]
    return subject
