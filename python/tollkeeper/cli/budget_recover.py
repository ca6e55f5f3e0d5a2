"""``tollkeeper budget recover``: ends the holds of processes that have died, as the ledger would by itself.

What a dead process held counts as spent; nothing is credited that may have been used. On request it accepts a wall
clock that was set, which the ledger would not follow by itself; that needs a key where the configuration lists some.
"""

import argparse

from tollkeeper.cli import ledgers
from tollkeeper.cli.terminal import EXIT_OK, counted, out, out_json, warning


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--accept-clock", action="store_true", help="believe the wall clock as it is now, after it was set right"
    )
    ledgers.add_operator(parser)
    ledgers.add_ledger(parser)


def run(arguments: argparse.Namespace) -> int:
    """Recovers, and says what was found."""
    admin = ledgers.operator(arguments) if arguments.accept_clock else None
    with ledgers.opened(arguments) as ledger:
        if admin is not None:
            admin.accept_clock()
        elif arguments.accept_clock:
            ledger.accept_clock()
        found = ledger.recover()
    if arguments.json:
        out_json(found)
        return EXIT_OK
    ended = f"{counted(found['holds'], 'hold')} ended, and {counted(found['expired'], 'hold')} past the deadline"
    out(f"{counted(found['processes'], 'dead process', 'dead processes')}: {ended}")
    out(f"{found['found']:,} stranded: {found['freed']:,} given back, {found['spent']:,} counted as spent")
    if found["not_quiet"]:
        warning(f"{counted(found['not_quiet'], 'limit')} could not be settled while holds come and go; try again")
    return EXIT_OK
