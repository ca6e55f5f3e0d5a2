"""``tollkeeper audit show``: the entries of a log, or of all logs of a gate by time, in a table or as stored.

It reads and does not verify.
"""

import argparse
from collections import deque
from collections.abc import Iterable

from tollkeeper.cli import inputs, logs
from tollkeeper.cli.terminal import counted, note, out, progress, table

LIMIT_DEFAULT = 100
LIMIT_MAX = 1_000_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    logs.add_folder(parser)
    logs.add_filters(parser)
    parser.add_argument(
        "--limit",
        metavar="N",
        type=inputs.whole_number(LIMIT_MAX, least=1),
        help=f"the newest N that fit; default: {LIMIT_DEFAULT} in a table, all as JSON",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON line for each entry: log, index, and the entry as it is stored"
    )
    parser.epilog = "An entry is named slot:index, in later epochs slot/epoch:index; a log that stands alone is slot 0."


def run(arguments: argparse.Namespace) -> int:
    """Prints entries."""
    found = logs.opened(arguments.folder)
    fits = logs.filters(arguments)
    limit = arguments.limit or (None if arguments.json else LIMIT_DEFAULT)
    left_out = 0
    with progress(found.entries(), found.size, "entries") as entries:
        fitting = (entry for entry in entries if fits(entry))
        if limit is None:
            print_json(fitting)
            return found.exit_code()
        chosen: deque[logs.Entry] = deque(maxlen=limit)
        for entry in fitting:
            left_out += len(chosen) == limit
            chosen.append(entry)
    if arguments.json:
        print_json(chosen)
    elif chosen:
        for line in table(logs.HEADS, map(logs.row, chosen)):
            out(line)
    else:
        note("no entry fits" if found.size else "the log is empty")
    if left_out and arguments.limit is None:
        note(f"{counted(left_out, 'older entry fits', 'older entries fit')} too: --limit N")
    return found.exit_code()


def print_json(entries: Iterable[logs.Entry]) -> None:
    """Prints entries as they are stored."""
    for entry in entries:
        logs.out_line(logs.json_line(entry))
