"""``tollkeeper audit erase``: erases what an entry commits to, and its salt. The entry stays, and every proof of it.

A log that nobody has is opened for it. A live process is left a request, which it takes up within a second: a file
``erase/EPOCH.INDEX.COMMITMENT``, so that no other entry is erased if an epoch begins in between.
"""

import argparse
import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tollkeeper import _native, owners, reevaluate
from tollkeeper.cli import audit_owner, logs
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, InputError, note, out, shown
from tollkeeper.errors import AuditError

WAIT_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.1
# Members that commit to a payload; the first of them for an entry that was too long.
COMMITTING: Final = ("oversize", "arguments", "private", "request")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    logs.add_place(parser)
    parser.add_argument("--yes", action="store_true", help="do it; without this only say what would be erased")
    parser.epilog = (
        "Exit code 0 if it is erased, or without --yes could be; 1 if the live process has not done it, or has begun "
        "another epoch."
    )


@dataclass(frozen=True)
class _Meant:
    """What is to be erased."""

    log: logs.Log
    index: int
    commitment: str
    """As the entry has it."""

    @property
    def request(self) -> Path:
        """The file that asks a live process for it."""
        text = self.commitment.translate(str.maketrans("+/", "-_")).rstrip("=")
        return self.log.folder / "erase" / f"{self.log.epoch}.{self.index}.{text}"

    @property
    def finished(self) -> Path:
        """Where its epoch lies once another has begun."""
        return self.log.folder / "epochs" / str(self.log.epoch)

    def said(self, reader: _native.AuditReader, start: int) -> int | None:
        """The index of the entry that says it was erased."""
        for at, raw in reader.entries(start):
            # Before anything is decoded, because there may be millions.
            if b'"erasure"' not in raw:
                continue
            members = logs.Entry(self.log, at, raw).members
            if members.get("kind") != "erasure" or members.get("index") != self.index:
                continue
            # One that could not be read any more is said to be erased without its commitment.
            if members.get("commitment", self.commitment) == self.commitment:
                return at
        return None


def run(arguments: argparse.Namespace) -> int:
    """Erases a payload."""
    found = logs.opened(arguments.folder)
    log, index = logs.placed(found, arguments.place, arguments.slot)
    entry, reader = found.entry(log, index), found.reader(log)
    payload = reader.payload(index)
    out(f"entry {entry.place}, {shown(entry.time)}: {shown(' '.join(filter(None, logs.row(entry)[2:])))}")
    commitment = _commitment(entry, reader, payload)
    if commitment is None:
        raise InputError(
            f"entry {entry.place} never had a payload"
            if payload is None
            else f"entry {entry.place} does not commit to its payload"
        )
    meant = _Meant(log, index, commitment)
    if payload is None and (at := meant.said(reader, index + 1)) is not None:
        out(f"its payload is erased already, says entry {log.label}:{at}")
        return EXIT_OK
    if not log.current:
        raise InputError(
            f"entry {entry.place} is in a finished epoch, which no process writes to any more",
            f"if all payloads of that epoch may go, remove {log.path / 'wal'}; the entries stay in tile/",
        )
    # An erasure that was interrupted has taken the bytes, and no entry says so yet.
    what = "what is left of the payload" if payload is None else f"the payload of {len(payload):,} bytes and its salt"
    if not arguments.yes:
        out(f"would erase {what}; the entry and its proofs stay")
        note("nothing is erased without --yes; there is no way back")
        return EXIT_OK
    return _erase(reader, meant, what, is_there=payload is not None)


def _erase(reader: _native.AuditReader, meant: _Meant, what: str, *, is_there: bool) -> int:
    try:
        writer = audit_owner.opened(meant.log)
    except AuditError as failure:
        if failure.code != "audit.in_use":
            raise
        return _ask(reader, meant, what)
    with writer:
        # Nobody else begins an epoch from here on.
        if meant.finished.is_dir():
            return _too_late(meant)
        try:
            writer.erase(meant.index)
        except AuditError as failure:
            if is_there or failure.code != "audit.invalid":
                raise
            out(f"its payload is gone already: {shown(str(failure))}")
        else:
            out(f"erased {what}; the entry and its proofs stay")
    return EXIT_OK


def _commitment(entry: logs.Entry, reader: _native.AuditReader, payload: bytes | None) -> str | None:
    """The commitment that the entry has to its payload; `None` if it has none."""
    found = list(_commitments(entry))
    salt = None if payload is None else reader.salt(entry.index)
    if payload is not None and salt is not None:
        # Whoever wrote the log may have written members that look the same.
        found = [one for one in found if one == reevaluate.digest_of(b"\x02" + salt + payload)]
    return found[0] if found else None


def _commitments(entry: logs.Entry) -> Iterator[str]:
    for name in COMMITTING:
        member = entry.members.get(name)
        text = member.get("commitment") if reevaluate.is_object(member) else None
        if isinstance(text, str) and re.fullmatch(r"[A-Za-z0-9+/]{43}=", text, re.ASCII):
            yield text


def _ask(reader: _native.AuditReader, meant: _Meant, what: str) -> int:
    """Leaves a request and waits for the entry that says it was done."""
    log, request, seen = meant.log, meant.request, reader.size
    request.parent.mkdir(mode=0o700, exist_ok=True)
    os.close(os.open(request, os.O_CREAT | os.O_WRONLY, 0o600))
    note(f"the log is in use by {owners.owner(log.folder) or 'another process'}; asked it to erase")
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        rotated = meant.finished.is_dir()
        # While an epoch ends, its files are on their way.
        with contextlib.suppress(AuditError):
            if rotated:
                reader = _native.AuditReader(meant.finished)
            else:
                reader.refresh()
            at = meant.said(reader, seen)
            if not rotated and meant.finished.is_dir():
                # What was read may be of the new epoch.
                continue
            if at is not None:
                out(f"erased {what}, says entry {log.label}:{at}; the entry and its proofs stay")
                return EXIT_OK
            if rotated:
                return _too_late(meant)
            seen = max(seen, reader.size)
    if meant.finished.is_dir():
        return _too_late(meant)
    waits = "waits in" if request.exists() else "is gone from"
    note(f"not erased after {WAIT_SECONDS:.0f} s; the request {waits} {shown(os.fspath(request.parent))}")
    return EXIT_NO


def _too_late(meant: _Meant) -> int:
    meant.request.unlink(missing_ok=True)
    note(
        f"nothing was erased: epoch {meant.log.epoch} of log {meant.log.slot} has ended in the meantime, and no "
        "process writes to a finished epoch"
    )
    note(f"if all payloads of that epoch may go, remove {shown(os.fspath(meant.finished / 'wal'))}")
    return EXIT_NO
