"""Which allowed actions the logs of a gate do not say the end of, and whose they are: read backwards, and bounded.

A receipt for a revocation needs this: what the revoked was allowed before and may still be doing. Logs may be large and
are written meanwhile, so they are read from their ends, those of processes that live first, until enough is known or
enough was read; how far that was is part of the answer. Nothing is verified here.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from tollkeeper import _native
from tollkeeper.errors import AuditError

__all__ = ["Found", "Target", "find", "ring_state"]

# A second of a busy gate is some 100,000 entries; a person waits for the answer.
ENTRIES_MAX: Final = 300_000
SECONDS_MAX: Final = 3.0
# How long it waits for what is in the rings: a writer that is so far behind has trouble.
WRITTEN_SECONDS_MAX: Final = 1.0
WAIT_SECONDS: Final = 0.005
# Entries that are read at once on the way back.
BACKWARDS: Final = 512
# Ids that are listed; all are counted.
LISTED_MAX: Final = 100


@dataclass(frozen=True)
class Target:
    """What is revoked: a kind, and a name but for everything."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return self.kind if self.kind == "everything" else f"{self.kind} {self.name}"


@dataclass
class Found:
    """What the logs say."""

    open: int = 0
    """Actions that were allowed and that no outcome is recorded of, in logs that a process has."""
    abandoned: int = 0
    """The same of processes that have ended."""
    ids: list[str] = field(default_factory=list)
    """Decisions of ``open``, the newest first, at most 100."""
    decisions: set[str] = field(default_factory=set)
    """Every allowed decision of the target that was seen, finished ones too: holds name them."""
    read: int = 0
    since: str | None = None
    """The oldest moment up to which every log of a living process was read."""
    whole: bool = True
    """Whether everything was read."""
    faults: list[str] = field(default_factory=list)


class _Entry(msgspec.Struct):
    """What is looked at. Members are anything: whoever wrote the log may have meant harm."""

    kind: Any = None
    time: Any = None
    id: Any = None
    of: Any = None
    decision: Any = None
    principal: Any = None
    chain: Any = None
    session: Any = None
    tool: Any = None


_ENTRY: Final = msgspec.json.Decoder(_Entry)


def find(folder: Path, target: Target, is_live: Callable[[Path], bool]) -> Found:
    """Looks for allowed actions of a target.

    Args:
        folder: The logs of a gate.
        target: Whose.
        is_live: Whether a process has the log of a folder.

    Raises:
        AuditError: There are no logs.
    """
    found, end = Found(), time.monotonic() + SECONDS_MAX
    slots: dict[Any, list[dict[str, Any]]] = {}
    for log in _native.audit_logs(folder):
        slots.setdefault(log["slot"], []).append(log)
    epochs = [(max(logs, key=lambda log: log["epoch"]), logs) for logs in slots.values()]
    live = [(newest, logs) for newest, logs in epochs if is_live(Path(newest["path"]))]
    rest = [pair for pair in epochs if pair not in live]
    if not wait_written([Path(newest["path"]) for newest, _ in live], WRITTEN_SECONDS_MAX):
        found.whole = False
        found.faults.append("some records are not on the disk yet")
    seen: set[str] = set()
    for _, logs in live:
        _take(found, target, _Back(logs, end, found), seen)
    for _, logs in rest:
        _take(found, target, _Back(logs, end, found, ended=True), seen)
    return found


class _Back:
    """The entries of one slot, the newest first, with whether the process that wrote them lives."""

    def __init__(self, logs: list[dict[str, Any]], end: float, found: Found, *, ended: bool = False) -> None:
        self._logs = sorted(logs, key=lambda log: log["epoch"], reverse=True)
        self._end, self._found, self.ended = end, found, ended

    def __iter__(self) -> Iterator[_Entry]:
        for log in self._logs:
            try:
                yield from self._epoch(Path(log["path"]))
            except AuditError as error:
                self._found.whole = False
                self._found.faults.append(str(error))

    def _epoch(self, path: Path) -> Iterator[_Entry]:
        reader, found = _native.AuditReader(path), self._found
        stop = reader.size
        while stop > 0:
            if found.read >= ENTRIES_MAX or time.monotonic() > self._end:
                found.whole = False
                return
            start = max(0, stop - BACKWARDS)
            page = [raw for _, raw in reader.entries(start, stop)]
            found.read += len(page)
            for raw in reversed(page):
                try:
                    yield _ENTRY.decode(raw)
                except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                    continue
            stop = start


def _take(found: Found, target: Target, entries: _Back, seen: set[str]) -> None:
    oldest: str | None = None
    for entry in entries:
        if not entries.ended and isinstance(entry.time, str):
            oldest = entry.time
        if entry.kind == "outcome" and isinstance(entry.of, str):
            seen.add(entry.of)
        elif entry.kind == "start":
            # What comes before it was another process's, which is no more.
            entries.ended = True
        elif entry.kind == "decision" and entry.decision == "allow" and _is_of(entry, target):
            found.decisions.add(entry.id)
            if entry.id in seen:
                continue
            if entries.ended:
                found.abandoned += 1
            else:
                found.open += 1
                found.ids.extend(itertools.islice([entry.id], max(0, LISTED_MAX - len(found.ids))))
    if oldest is not None:
        found.since = oldest if found.since is None else max(found.since, oldest)


def _is_of(entry: _Entry, target: Target) -> bool:
    if not isinstance(entry.id, str):
        return False
    if target.kind == "principal":
        chain = cast("list[object]", entry.chain) if isinstance(entry.chain, list) else []
        return entry.principal == target.name or target.name in chain
    if target.kind == "session":
        return bool(entry.session == target.name)
    if target.kind == "tool":
        return bool(entry.tool == target.name)
    return True


# --- the ring of a log that another process has -----------------------------------------------------------------------

RING_MAGIC: Final = b"TKRING01"
LINE_BYTES: Final = 64
LINE_WORDS: Final = 8
# Of the ring's file: what it begins with, lines, where the next record goes, and the oldest that is not on the disk.
LINES_AT: Final = 8
TAIL_AT: Final = 128
HEAD_AT: Final = 256
HEADER_BYTES: Final = 4_096


class RingState(msgspec.Struct, frozen=True):
    """How far the writer of a log is behind those who decide."""

    records: int
    """That are not on the disk."""
    used_bytes: int
    bytes: int
    next: int
    """Number of the next record, modulo 2**32."""
    written: int
    """Number of the oldest that is not on the disk, or of the next."""
    oldest_ms: int | None
    """When the oldest of them was made; `None` if there is none."""


def ring_state(folder: Path) -> RingState | None:
    """Looks at a log's ring, which whoever has the log goes on using; `None` if there is none that can be read."""
    try:
        with (folder / "ring").open("rb") as ring:
            head = ring.read(HEADER_BYTES)
            if len(head) < HEADER_BYTES or not head.startswith(RING_MAGIC):
                return None
            lines = int.from_bytes(head[LINES_AT : LINES_AT + 8], "little")
            tail_line, tail_seq = _place(head, TAIL_AT)
            head_line, head_seq = _place(head, HEAD_AT)
            used, records = (tail_line - head_line) % 2**32, (tail_seq - head_seq) % 2**32
            oldest = None
            if records and 0 < lines <= 2**32 and used <= lines:
                ring.seek(HEADER_BYTES + lines * 8 + (head_line % lines) * LINE_BYTES + 8)
                oldest = int.from_bytes(ring.read(8), "little", signed=True)
    except OSError:
        return None
    if not 0 < lines <= 2**32 or used > lines:
        # Caught between two of its changes, or no ring.
        return None
    return RingState(records, used * LINE_BYTES, lines * LINE_BYTES, tail_seq, head_seq, oldest)


def wait_written(folders: list[Path], timeout_s: float) -> bool:
    """Waits until what the rings of logs hold now is on the disk. Whether it is."""
    rings = [(folder, ring_state(folder)) for folder in folders]
    waiting = [(folder, ring.next) for folder, ring in rings if ring is not None and ring.records]
    end = time.monotonic() + timeout_s
    while waiting:
        rings = [(folder, ring_state(folder)) for folder, _ in waiting]
        # Behind the number as long as the distance to it, modulo 2**32, is one of a ring's records.
        waiting = [
            (folder, number)
            for (folder, number), (_, ring) in zip(waiting, rings, strict=True)
            if ring is None or 0 < (number - ring.written) % 2**32 < 2**31
        ]
        if not waiting or time.monotonic() > end:
            break
        time.sleep(WAIT_SECONDS)
    return not waiting


def _place(head: bytes, at: int) -> tuple[int, int]:
    return int.from_bytes(head[at : at + 4], "little"), int.from_bytes(head[at + 4 : at + 8], "little")
