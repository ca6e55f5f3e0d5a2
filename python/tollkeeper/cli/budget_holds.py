"""``tollkeeper budget holds``: the holds that are alive, with what they hold and who owns them.

Opening a ledger ends the holds of processes that have died; it ends none of a process that lives.
"""

import argparse
from typing import Any

from tollkeeper.cli import ledgers
from tollkeeper.cli.terminal import EXIT_OK, counted, out, out_json, table


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON line for each hold")
    ledgers.add_ledger(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the holds."""
    with ledgers.opened(arguments) as ledger:
        holds = ledger.holds()
    if arguments.json:
        for hold in holds:
            out_json(hold)
        return EXIT_OK
    if holds:
        heads = ("hold", "decision", "budget", "process", "granted", "held", "charged", "state")
        for line in table(heads, (_row(hold) for hold in holds)):
            out(line)
        out()
    out(counted(len(holds), "live hold"))
    return EXIT_OK


def _row(hold: dict[str, Any]) -> list[str]:
    states = [name for name in ("dispatched", "meter") if hold.get(name)]
    if not hold.get("alive", True):
        states.append("its process has died")
    if (deadline := hold.get("deadline_ms")) is not None:
        states.append(f"until {ledgers.moment(deadline)}")
    return [
        str(hold["id"]),
        str(hold.get("decision") or "-"),
        str(hold["path"]),
        str(hold.get("owner_pid", "")),
        ledgers.moment(hold.get("granted_ms")),
        _amounts(hold["amounts"]),
        _amounts(hold["charged"]),
        ", ".join(states) or "-",
    ]


def _amounts(amounts: dict[str, int]) -> str:
    return ", ".join(f"{unit} {ledgers.amount(unit, value)}" for unit, value in amounts.items() if value) or "-"
