"""``tollkeeper audit tail``: the newest entries, and with ``-f`` those that are added, until it is interrupted.

It reads and does not verify. Entries are shown once they are on the disk; what is only in the ring is not.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final

from tollkeeper.cli import inputs, logs
from tollkeeper.cli.audit_show import LIMIT_MAX, print_json
from tollkeeper.cli.terminal import InputError, out, shown, table
from tollkeeper.errors import AuditError

POLL_SECONDS: Final = 0.2
COUNT_DEFAULT: Final = 10
# Widths of the columns while it follows: what comes later is not known. The last has none.
WIDTHS: Final = (6, 24, 8, 20, 24, 16)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    logs.add_folder(parser)
    logs.add_filters(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is added; ctrl-c ends it")
    parser.add_argument(
        "-n",
        "--limit",
        metavar="N",
        type=inputs.whole_number(LIMIT_MAX),
        default=COUNT_DEFAULT,
        help="entries to begin with; default: %(default)s",
    )
    parser.add_argument("--json", action="store_true", help="one JSON line for each entry, as `audit show` prints it")


def run(arguments: argparse.Namespace) -> int:
    """Prints the newest entries, and follows."""
    found = logs.opened(arguments.folder)
    fits = logs.filters(arguments)
    follower = Follower(found)
    newest = list(islice((entry for entry in found.backwards() if fits(entry)), arguments.limit))[::-1]
    if arguments.json:
        print_json(newest)
    elif not arguments.follow:
        for line in table(logs.HEADS, map(logs.row, newest)):
            out(line)
    else:
        _print_lines([logs.HEADS, *map(logs.row, newest)])
    if not arguments.follow or found.faults:
        return found.exit_code()
    # Interrupting is how it ends.
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            sys.stdout.flush()
            time.sleep(POLL_SECONDS)
            added = [entry for entry in follower.added() if fits(entry)]
            if arguments.json:
                print_json(added)
            else:
                _print_lines(map(logs.row, added))
    return found.exit_code()


class Follower:
    """What is added to the logs of a folder from now on: entries, epochs and slots."""

    def __init__(self, found: logs.Logs) -> None:
        self._found = found
        self._shape = _shape(found.folder)
        self._seen = {(log.slot, log.epoch): found.reader(log).size for log in found.all}

    def added(self) -> list[logs.Entry]:
        """Entries since the last time, by time. None while a rotation is under way: then the next time."""
        shape = _shape(self._found.folder)
        if shape != self._shape:
            try:
                self._found = logs.Logs(self._found.folder)
            except (InputError, AuditError):
                return []
            self._shape = shape
        entries, sizes = list[logs.Entry](), dict(self._seen)
        try:
            for log in self._found.all:
                reader, seen = self._found.reader(log), sizes.get((log.slot, log.epoch), 0)
                if log.current:
                    reader.refresh()
                entries += [logs.Entry(log, index, raw) for index, raw in reader.entries(seen)]
                sizes[log.slot, log.epoch] = max(seen, reader.size)
        except AuditError:
            if _shape(self._found.folder) == shape:
                raise
        if _shape(self._found.folder) != shape:
            return []
        self._seen = sizes
        return sorted(entries, key=lambda entry: entry.time)


def _shape(folder: Path) -> list[list[str]]:
    """Changes when a slot or an epoch is added."""
    slots = [folder, *(path for path in sorted(folder.iterdir()) if path.name.isdecimal())]
    return [sorted(path.name for path in slots), *(_names(path / "epochs") for path in slots)]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _print_lines(rows: Iterable[tuple[str, ...]]) -> None:
    """As a table whose widths are known beforehand."""
    for *cells, last in rows:
        padded = [shown(cell).ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)]
        out("  ".join([*padded, shown(last)]).rstrip())
