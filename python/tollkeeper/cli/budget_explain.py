"""``tollkeeper budget explain``: whether a cost fits, who would refuse it, and when that ends. It reserves nothing.

Exit code 0 is yes, 1 is no.
"""

import argparse

from tollkeeper.budget import Denial, Ledger
from tollkeeper.cli import ledgers
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, coloured, out, out_json, shown


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("path", metavar="PATH", help="the budget that pays")
    parser.add_argument("cost", metavar="COST", help="such as tokens=100,requests=1")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    ledgers.add_ledger(parser)


def run(arguments: argparse.Namespace) -> int:
    """Asks the ledger."""
    path, cost = ledgers.budget_path(arguments.path), ledgers.cost_argument(arguments.cost)
    with ledgers.opened(arguments) as ledger:
        denials = ledger.explain(path, **cost)
        ends = [_end_ms(ledger, denial) for denial in denials]
    if arguments.json:
        refusals = [{**_plain(denial), "window_end_ms": end} for denial, end in zip(denials, ends, strict=True)]
        out_json({"path": path, "cost": cost, "granted": not denials, "refusals": refusals})
        return EXIT_NO if denials else EXIT_OK
    asked = ", ".join(f"{unit} {ledgers.amount(unit, amount)}" for unit, amount in cost.items())
    word = coloured("deny", "red") if denials else coloured("allow", "green")
    out(f"{word} {shown(path)}: {asked}")
    for denial, end in zip(denials, ends, strict=True):
        out(f"  {shown(denial.path)}: {denial.code}")
        for line in _lines(denial, end):
            out(f"    {line}")
    return EXIT_NO if denials else EXIT_OK


def _end_ms(ledger: Ledger, denial: Denial) -> int | None:
    if denial.unit is None or denial.window is None or denial.path not in ledger.paths:
        return None
    usage = ledger.usage(denial.path).get((denial.unit, denial.window))
    return None if usage is None else usage.window_end_ms


def _lines(denial: Denial, end_ms: int | None) -> list[str]:
    if denial.unit is None:
        return [shown(denial.reason)]
    amounts = {"asked": denial.requested, "available": denial.available, "limit": denial.limit}
    amounts |= {"used": denial.used, "held": denial.held}
    written = ", ".join(f"{name} {ledgers.amount(denial.unit, value)}" for name, value in amounts.items())
    if denial.code == "budget.too_large":
        then = "never fits: ask for less, or raise the limit"
    elif denial.code == "budget.contended":
        then = "fits if live holds end low"
    elif end_ms is None:
        then = "never refills: only a higher limit helps"
    else:
        then = f"refills {ledgers.moment(end_ms)}"
    return [f"{denial.unit} {denial.window}: {written}", then]


def _plain(denial: Denial) -> dict[str, object]:
    return {
        "path": denial.path,
        "code": denial.code,
        "unit": denial.unit,
        "window": denial.window,
        "requested": denial.requested,
        "available": denial.available,
        "limit": denial.limit,
        "used": denial.used,
        "held": denial.held,
        "reason": denial.reason,
    }
