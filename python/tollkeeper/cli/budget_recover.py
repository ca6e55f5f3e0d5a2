"""``tollkeeper budget recover``: ends the holds of processes that have died, as the ledger would by itself.

What a dead process held counts as spent; nothing is credited that may have been used.
"""

import argparse

from tollkeeper.cli import ledgers
from tollkeeper.cli.terminal import EXIT_OK, out, out_json


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
    for name, value in found.items():
        out(f"{name.replace('_', ' ')}: {value:,}" if isinstance(value, int) else f"{name.replace('_', ' ')}: {value}")
    return EXIT_OK
