"""``tollkeeper budget recover``: ends the holds of processes that have died, as the ledger would by itself.

What a dead process held counts as spent; nothing is credited that may have been used.
"""

import argparse

from tollkeeper.cli import ledgers
from tollkeeper.cli.terminal import EXIT_OK, counted, out, out_json, warning


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    ledgers.add_ledger(parser)


def run(arguments: argparse.Namespace) -> int:
    """Recovers, and says what was found."""
    with ledgers.opened(arguments) as ledger:
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
