"""``tollkeeper audit erase``: erases what an entry commits to, and its salt. The entry stays, and every proof of it.

A log that nobody has is opened for it. A live process is left a request, which it takes up within a second.
"""

import argparse
import os
import time
from typing import Final

from tollkeeper.cli import audit_owner, logs
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, InputError, note, out, shown
from tollkeeper.errors import AuditError

WAIT_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.1


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    logs.add_place(parser)
    parser.add_argument("--yes", action="store_true", help="do it; without this only say what would be erased")
    parser.epilog = "Exit code 0 if it is erased, or without --yes could be; 1 if the live process has not done it yet."


def run(arguments: argparse.Namespace) -> int:
    """Erases a payload."""
    found = logs.opened(arguments.folder)
    log, index = logs.placed(found, arguments.place, arguments.slot)
    entry = found.entry(log, index)
    payload = found.reader(log).payload(index)
    out(f"entry {entry.place}, {shown(entry.time)}: {shown(' '.join(filter(None, logs.row(entry)[2:])))}")
    if payload is None:
        raise InputError(f"entry {entry.place} has no payload: it never had one, or it is erased already")
    if not log.current:
        raise InputError(
            f"entry {entry.place} is in a finished epoch, which no process writes to any more",
            f"if all payloads of that epoch may go, remove {log.path / 'wal'}; the entries stay in tile/",
        )
    what = f"the payload of {len(payload):,} bytes and its salt"
    if not arguments.yes:
        out(f"would erase {what}; the entry and its proofs stay")
        note("nothing is erased without --yes; there is no way back")
        return EXIT_OK
    try:
        with audit_owner.opened(log) as writer:
            writer.erase(index)
    except AuditError as failure:
        if failure.code != "audit.in_use":
            raise
        return _ask(found, log, index, what)
    out(f"erased {what}; the entry and its proofs stay")
    return EXIT_OK


def _ask(found: logs.Logs, log: logs.Log, index: int, what: str) -> int:
    """Leaves a request and waits for the entry that says it was done."""
    reader, request = found.reader(log), log.folder / "erase" / str(index)
    seen = reader.size
    request.parent.mkdir(mode=0o700, exist_ok=True)
    os.close(os.open(request, os.O_CREAT | os.O_WRONLY, 0o600))
    note(f"the log is in use by {audit_owner.owner(log.folder) or 'another process'}; asked it to erase")
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        reader.refresh()
        for at, raw in reader.entries(seen):
            members = logs.Entry(log, at, raw).members
            if members.get("kind") == "erasure" and members.get("index") == index:
                out(f"erased {what}, says entry {log.label}:{at}; the entry and its proofs stay")
                return EXIT_OK
        seen = max(seen, reader.size)
    waits = "waits in" if request.exists() else "is gone from"
    note(f"not erased after {WAIT_SECONDS:.0f} s; the request {waits} {shown(os.fspath(request.parent))}")
    return EXIT_NO
