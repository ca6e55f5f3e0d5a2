"""``tollkeeper decide``: runs a file of actions through a gate and prints what would become of each.

Nothing is executed: what a budget holds for an action is given back before the next one, except requests, which are
spent when they are granted. Decisions are recorded where there is a log, and labels that a tool reads stay with its
session: lines that name none share one, which is new each time. The exit code says whether all actions could be read,
not how they were decided.
"""

import argparse
import secrets
import time
from collections import Counter
from itertools import islice
from typing import Any, Final

import msgspec

from tollkeeper.cli import gates, inputs
from tollkeeper.cli.terminal import EXIT_OK, InputError, counted, note, out, out_json, progress, shown, table
from tollkeeper.errors import EntityError

# The rows are kept to align the columns.
ACTIONS_MAX: Final = 1_000_000


class ActionLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the file."""

    principal: str
    tool: str
    session: str | None = None
    budget: str | None = None
    arguments: dict[str, Any] = {}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "file", metavar="ACTIONS.jsonl", help="JSON lines with principal, session, budget, tool, arguments; - is stdin"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line for each action")
    inputs.add_config(parser)
    parser.epilog = (
        "No tool is called. Each line counts as a check all the same: a granted request is spent, other holds are "
        "given back, the decision is recorded in the log, and labels that the tool reads stay with the session. Lines "
        "without a session share a new one."
    )


def run(arguments: argparse.Namespace) -> int:
    """Decides every action."""
    gate = gates.opened(arguments.config)
    lines = list(islice(inputs.read_lines(arguments.file, msgspec.json.Decoder(ActionLine)), ACTIONS_MAX + 1))
    if not lines:
        raise InputError(f"{arguments.file}: the file holds no action")
    if len(lines) > ACTIONS_MAX:
        raise InputError(f"{arguments.file}: more than {ACTIONS_MAX:,} actions")
    session = f"decide-{secrets.token_hex(4)}"
    rows: list[tuple[str, ...]] = []
    codes: Counter[str] = Counter()
    held_back: Counter[str] = Counter()
    nanoseconds: list[int] = []
    with progress(lines, len(lines), "actions") as drawn:
        for number, action in drawn:
            decision, took = _decide(gate, action, session, f"{arguments.file}:{number}")
            nanoseconds.append(took)
            codes[decision.code] += 1
            if decision.would_deny is not None:
                held_back[decision.would_deny] += 1
            if arguments.json:
                out_json({"line": number, "tool": action.tool, **gates.as_json(decision)})
            else:
                rows.append(_row(number, action, decision))
    if not arguments.json:
        for line in table(("line", "action", "decision", "policy", "reason"), rows):
            out(line)
        out()
    # With --json standard output holds decisions only.
    summary = note if arguments.json else out
    for line in _summary(codes, held_back, nanoseconds):
        summary(line)
    return EXIT_OK


def _row(number: int, action: ActionLine, decision: Any) -> tuple[str, ...]:  # noqa: ANN401 - a decision
    verdict = "allow" if decision.allowed else "deny"
    if decision.would_deny is not None:
        verdict += " (shadow)"
    policies = decision.would_deny_policies or decision.policies
    return str(number), action.tool, verdict, ", ".join(policies) or "-", " ".join(decision.reason.split())


def _decide(gate: Any, action: ActionLine, session: str, at: str) -> tuple[Any, int]:  # noqa: ANN401 - gate and decision
    try:
        run = gate.run(principal=action.principal, session=action.session or session, budget=action.budget)
    except (EntityError, ValueError) as error:
        raise InputError(f"{at}: {error.args[0]}", getattr(error, "help", None)) from None
    with run:
        started = time.perf_counter_ns()
        decision = gate.check(action.tool, action.arguments)
        took = time.perf_counter_ns() - started
        gates.release(decision)
        return decision, took


def _summary(codes: Counter[str], held_back: Counter[str], nanoseconds: list[int]) -> list[str]:
    total = codes.total()
    parts = [f"{codes[code]:,} {shown(code)}" for code in sorted(codes, key=lambda code: (code != "allow", code))]
    nanoseconds.sort()
    p50, p99 = (nanoseconds[min(total - 1, total * percent // 100)] / 1000 for percent in (50, 99))
    lines = [f"{counted(total, 'action')}: {', '.join(parts)}"]
    if held_back:
        parts = [f"{count:,} {shown(code)}" for code, count in sorted(held_back.items())]
        lines.append(f"shadow mode let through what would be denied: {', '.join(parts)}")
    return [*lines, f"check: p50 {p50:.1f} us, p99 {p99:.1f} us"]
