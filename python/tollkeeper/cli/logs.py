"""What the verbs about audit logs share: which logs are meant, their entries by time, and how entries are shown.

Logs are read as they are: nothing here verifies them, and nothing writes. A folder of logs, one for each process slot,
is shown as one; so are the epochs of a log.
"""

import argparse
import datetime as dt
import difflib
import heapq
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final, TypeGuard, cast

import msgspec

from tollkeeper import _native, config, document, reevaluate
from tollkeeper.cli.terminal import EXIT_BAD_INPUT, EXIT_OK, InputError, error, one_line
from tollkeeper.errors import AuditError
from tollkeeper.reevaluate import is_object, texts

DEFAULT_FOLDER: Final = "audit"
# Entries that are read at once on the way back.
BACKWARDS: Final = 256
PLACE: Final = re.compile(r"(?:([0-9]{1,6})(?:/([0-9]{1,6}))?:)?([0-9]{1,19})", re.ASCII)
_AGO: Final = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_AGO_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
# As in `terminal`, by the escapes of JSON.
_HIDDEN: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
# Of a text that is one cell of a table.
CELL_CHARACTERS_MAX: Final = 120


@dataclass(frozen=True)
class Log:
    """One tree: an epoch of the log of a process slot."""

    path: Path
    slot: int
    """0 where the log stands alone."""
    epoch: int
    origin: str | None
    """As the checkpoint names it."""
    signed_size: int
    """Entries under the checkpoint."""
    wal_size: int
    current: bool
    """Its slot's newest epoch."""

    @property
    def label(self) -> str:
        """Names the log in front of an index: the slot, and the epoch but for the first."""
        return str(self.slot) if self.epoch == 1 else f"{self.slot}/{self.epoch}"

    @property
    def size(self) -> int:
        """Entries."""
        return max(self.signed_size, self.wal_size)

    @property
    def folder(self) -> Path:
        """The folder of the slot's log, of which an old epoch lies further down."""
        return self.path if self.current else self.path.parent.parent


class Head(msgspec.Struct):
    """What entries are chosen by. Their members are anything: whoever wrote the log may have meant harm."""

    kind: Any = None
    time: Any = None
    id: Any = None
    of: Any = None
    parent: Any = None
    run: Any = None
    principal: Any = None
    action: Any = None
    tool: Any = None
    decision: Any = None
    code: Any = None


_HEAD: Final = msgspec.json.Decoder(Head)
_MEMBERS: Final = msgspec.json.Decoder(dict[str, Any])


@dataclass
class Entry:
    """One entry and where it stands."""

    log: Log
    index: int
    raw: bytes

    @property
    def place(self) -> str:
        """``slot:index``, with the epoch behind the slot but for the first."""
        return f"{self.log.label}:{self.index}"

    @cached_property
    def head(self) -> Head:
        """The members that entries are chosen by; empty if the entry is no JSON object."""
        try:
            return _HEAD.decode(self.raw)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return Head()

    @cached_property
    def members(self) -> dict[str, Any]:
        """All members; empty if the entry is no JSON object."""
        try:
            return _MEMBERS.decode(self.raw)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return {}

    @property
    def time(self) -> str:
        """When, as written."""
        return text_of(self.head.time)

    def is_json(self) -> bool:
        """Whether it can stand as it is in a line of JSON."""
        if b"\n" in self.raw or b"\r" in self.raw:
            return False
        try:
            self.raw.decode()
        except UnicodeDecodeError:
            return False
        return bool(self.members)


class Logs:
    """The logs of a folder, opened to be read.

    Args:
        folder: A log, or a folder of logs.

    Raises:
        InputError: There is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: list[str] = []
        """Logs that could not be read to their end, and why."""
        self._readers: dict[Path, _native.AuditReader] = {}
        self.all = _found(folder)

    def reader(self, log: Log) -> _native.AuditReader:
        """The reader of one log."""
        if log.path not in self._readers:
            self._readers[log.path] = _native.AuditReader(log.path)
        return self._readers[log.path]

    @property
    def size(self) -> int:
        """Entries of all logs."""
        return sum(log.size for log in self.all)

    def by_slot(self) -> list[list[Log]]:
        """The epochs of each slot, the newest last."""
        slots: dict[int, list[Log]] = {}
        for log in self.all:
            slots.setdefault(log.slot, []).append(log)
        return list(slots.values())

    def current(self) -> list[Log]:
        """The logs that are written to, or would be."""
        return [log for log in self.all if log.current]

    def entries(self) -> Iterator[Entry]:
        """All entries by time; those of one slot stay in their order."""
        return heapq.merge(*(self._forwards(epochs) for epochs in self.by_slot()), key=_time)

    def backwards(self) -> Iterator[Entry]:
        """All entries, the newest first."""
        return heapq.merge(*(self._backwards(epochs) for epochs in self.by_slot()), key=_time, reverse=True)

    def entry(self, log: Log, index: int) -> Entry:
        """One entry."""
        return Entry(log, index, self.reader(log).entry(index))

    def payload(self, entry: Entry) -> bytes | None:
        """What the entry commits to; `None` if there is nothing, or it was erased, or it cannot be read."""
        try:
            return self.reader(entry.log).payload(entry.index)
        except AuditError as failure:
            self._fault(entry.log, failure)
            return None

    def recorded(self, entry: Entry) -> reevaluate.Recorded:
        """An entry with what it commits to, to be decided again."""
        payload = self.payload(entry)
        salt = None if payload is None else self.reader(entry.log).salt(entry.index)
        return reevaluate.Recorded(entry.place, entry.members, payload, salt).unspilled()

    @property
    def bundle_folders(self) -> list[Path]:
        """Where policies may be kept that decisions name: beside a log, and beside all logs of a gate."""
        return list(dict.fromkeys(folder for log in self.all for folder in (log.folder, log.folder.parent)))

    def exit_code(self, otherwise: int = EXIT_OK) -> int:
        """Reports what could not be read, and returns the exit code."""
        for fault in self.faults:
            error(fault, f"tollkeeper audit verify {self.folder}")
        return EXIT_BAD_INPUT if self.faults else otherwise

    def _forwards(self, epochs: list[Log]) -> Iterator[Entry]:
        for log in epochs:
            try:
                for index, raw in self.reader(log).entries():
                    yield Entry(log, index, raw)
            except AuditError as failure:
                self._fault(log, failure)

    def _backwards(self, epochs: list[Log]) -> Iterator[Entry]:
        for log in reversed(epochs):
            try:
                reader = self.reader(log)
                end = reader.size
                while end > 0:
                    start = max(0, end - BACKWARDS)
                    for index, raw in reversed(list(reader.entries(start, end))):
                        yield Entry(log, index, raw)
                    end = start
            except AuditError as failure:
                self._fault(log, failure)

    def _fault(self, log: Log, failure: AuditError) -> None:
        message = f"log {log.label}: {failure}"
        if message not in self.faults:
            self.faults.append(message)


def _time(entry: Entry) -> str:
    return entry.time


def _found(folder: Path) -> list[Log]:
    try:
        found = _native.audit_logs(folder)
    except AuditError as failure:
        hint = (
            "name the folder of a log, or of the logs of a gate" if failure.code == "audit.not_found" else failure.help
        )
        raise InputError(str(failure), hint) from None
    newest = {one["slot"]: one["epoch"] for one in found}
    return [
        Log(
            path=Path(one["path"]),
            slot=one["slot"] or 0,
            epoch=one["epoch"],
            origin=one["origin"],
            signed_size=one["size"],
            wal_size=one["wal_size"],
            current=newest[one["slot"]] == one["epoch"],
        )
        for one in found
    ]


# --- arguments --------------------------------------------------------------------------------------------------------


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Declares the argument that names the logs."""
    parser.add_argument(
        "folder",
        metavar="DIR",
        nargs="?",
        type=Path,
        help=f"a log, or a folder of logs; default: [audit] dir of {config.FILE_NAME}, else ./{DEFAULT_FOLDER}",
    )


def folder_argument(given: Path | None) -> Path:
    """The folder that is named, by the argument or by the configuration."""
    if given is not None:
        return given
    named = audit_section().get("dir")
    if named is not None and not isinstance(named, str):
        raise InputError(f"{config.FILE_NAME}: audit.dir: must be a text", f'dir = "{DEFAULT_FOLDER}"')
    return Path(named or DEFAULT_FOLDER)


def audit_section() -> dict[str, Any]:
    """The ``[audit]`` section of the configuration in this folder; empty without one. The rest may be wrong."""
    try:
        text = config.read_text(Path(config.FILE_NAME), config.CONFIG_BYTES_MAX)
    except FileNotFoundError:
        return {}
    section = document.decode(text, config.FILE_NAME).get("audit", {})
    if not isinstance(section, dict):
        raise InputError(f"{config.FILE_NAME}: audit: must be a section", f'[audit] dir = "{DEFAULT_FOLDER}"')
    return cast("dict[str, Any]", section)


def opened(given: Path | None) -> Logs:
    """The logs that the argument or the configuration names."""
    return Logs(folder_argument(given))


def add_place(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that name one entry."""
    parser.add_argument("place", metavar="INDEX", help="the entry: its index, or slot:index as `audit show` prints it")
    add_folder(parser)
    parser.add_argument("--slot", metavar="N", type=int, help="the slot, if INDEX does not say it")


def placed(logs: Logs, text: str, slot: int | None = None) -> tuple[Log, int]:
    """The log and the index that are meant.

    Raises:
        InputError: There is no such entry, or more than one.
    """
    found = PLACE.fullmatch(text)
    if found is None:
        raise InputError(f"INDEX: `{text}` names no entry", "such as 17, or 0:17, or 0/2:17 in the second epoch")
    given, epoch, index = (None if part is None else int(part) for part in found.groups())
    if given is not None:
        if slot not in {None, given}:
            raise InputError(f"INDEX {text} is of slot {given}, --slot is {slot}")
        slot, epoch = given, epoch or 1
    index = cast("int", index)
    fitting = [log for log in logs.all if slot in {None, log.slot} and epoch in {None, log.epoch}]
    holding = [log for log in fitting if index < log.size]
    if not holding:
        sizes = ", ".join(f"log {log.label} has {log.size:,} entries" for log in (fitting or logs.all)[:10])
        raise InputError(f"{logs.folder}: there is no entry {text}", sizes)
    if len(holding) > 1:
        places = ", ".join(f"{log.label}:{index}" for log in holding[:10])
        raise InputError(f"INDEX {text}: several logs have such an entry", f"say which: {places}")
    return holding[0], index


def one_log(logs: Logs, slot: int | None) -> Log:
    """The log that is written to, of a slot or the only one."""
    fitting = [log for log in logs.current() if slot in {None, log.slot}]
    if not fitting:
        known = ", ".join(log.label.partition("/")[0] for log in logs.current()[:10])
        raise InputError(f"{logs.folder}: there is no slot {slot}", f"the slots are: {known}")
    if len(fitting) > 1:
        raise InputError(f"{logs.folder}: there are {len(fitting)} logs", "say which: --slot N")
    return fitting[0]


def moment_argument(text: str) -> str:
    """A time as entries write it, from a time or from how long ago it was; for `argparse`."""
    if ago := _AGO.fullmatch(text):
        moment = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=int(ago[1]) * _AGO_SECONDS[ago[2]])
    else:
        try:
            moment = dt.datetime.fromisoformat(text)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=dt.UTC)
            moment = moment.astimezone(dt.UTC)
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(
                f"`{text}` is no time, such as 2026-11-21T17:05:00Z (UTC unless it says otherwise), 2026-11-21, or 15m"
            ) from None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def code_argument(text: str) -> str:
    """A code, or the first part of some; for `argparse`."""
    codes = [code for code, _ in _native.decision_codes()]
    known = {*codes, *(code.partition(".")[0] for code in codes)}
    if text not in known:
        raise argparse.ArgumentTypeError(f"no decision has the code `{text}`{_meant(text, known)}")
    return text


def kind_argument(text: str) -> str:
    """A kind of entry; for `argparse`. A program may append kinds of its own: only what was misspelt is refused."""
    with (Path(__file__).parent.parent / "entry_schema.json").open("rb") as stream:
        known: list[str] = msgspec.json.decode(stream.read())["properties"]["kind"]["enum"]
    if text not in known and (meant := _meant(text, known)):
        raise argparse.ArgumentTypeError(f"no entry is of the kind `{text}`{meant}")
    return text


def _meant(text: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(text, known, n=1)
    return f"; is `{close[0]}` meant?" if close else ""


# --- filters ----------------------------------------------------------------------------------------------------------


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that choose entries."""
    parser.add_argument("--principal", metavar="UID", help="who acted, in full or the id alone")
    parser.add_argument("--tool", metavar="NAME", help="the tool, or the action's id")
    parser.add_argument("--decision", choices=("allow", "deny"))
    parser.add_argument(
        "--code", metavar="CODE", type=code_argument, help="such as policy.no_permit, or policy for all of them"
    )
    parser.add_argument(
        "--kind", metavar="KIND", type=kind_argument, help="such as decision, outcome, run, revoke, note"
    )
    parser.add_argument("--run", metavar="ID", dest="run_id", help="a run, such as r3")
    parser.add_argument("--id", metavar="ID", help="a decision, its outcome and what followed from it")
    parser.add_argument("--since", metavar="TIME", type=moment_argument, help="RFC 3339, a date, or 15m, 2h, 3d ago")
    parser.add_argument("--until", metavar="TIME", type=moment_argument, help="before then")


def filters(arguments: argparse.Namespace) -> Callable[[Entry], bool]:
    """Whether an entry is one of those that the arguments choose."""
    tests: list[Callable[[Entry], bool]] = []
    for name, test in _TESTS.items():
        wanted = getattr(arguments, name)
        if wanted is not None:
            tests.append(partial(test, wanted))
    return lambda entry: all(test(entry) for test in tests)


def _is_principal(wanted: str, entry: Entry) -> bool:
    return _is_uid(entry.head.principal, wanted)


def _is_tool(wanted: str, entry: Entry) -> bool:
    return entry.head.tool == wanted or _is_uid(entry.head.action, wanted)


def _is_uid(value: object, wanted: str) -> bool:
    return isinstance(value, str) and (value == wanted or value.endswith(f'::"{wanted}"'))


def _is_code(wanted: str, entry: Entry) -> bool:
    code = text_of(entry.head.code)
    return code == wanted or code.startswith(f"{wanted}.")


def _is_of(wanted: str, entry: Entry) -> bool:
    return wanted in {entry.head.id, entry.head.of, entry.head.parent}


_TESTS: Final[dict[str, Callable[[Any, Entry], bool]]] = {
    "since": lambda wanted, entry: entry.time >= wanted,
    "until": lambda wanted, entry: entry.time < wanted,
    "kind": lambda wanted, entry: entry.head.kind == wanted,
    "decision": lambda wanted, entry: entry.head.decision == wanted,
    "run_id": lambda wanted, entry: entry.head.run == wanted,
    "principal": _is_principal,
    "tool": _is_tool,
    "code": _is_code,
    "id": _is_of,
}


# --- how entries are shown --------------------------------------------------------------------------------------------

HEADS: Final = ("entry", "time", "kind", "decision", "who", "what", "result")
ENVELOPE: Final = ("v", "kind", "producer", "seq", "time")


def row(entry: Entry) -> tuple[str, ...]:
    """Cells of a table for one entry."""
    members = entry.members
    if not members:
        return entry.place, "", "?", "", "", "", f"{len(entry.raw):,} bytes that are no JSON object"
    kind = text_of(members.get("kind"))
    cells = _CELLS.get(kind, _other)(members)
    return tuple(cut(one_line(cell)) for cell in (entry.place, entry.time, kind, *cells))


Cells = tuple[str, str, str, str]


def _decision(members: dict[str, Any]) -> Cells:
    result = f"{text_of(members.get('decision'))} {text_of(members.get('code'))}"
    if members.get("decision") == members.get("code"):
        result = text_of(members.get("decision"))
    if would := members.get("would_deny"):
        result += f", would be {text_of(would)}"
    if by := texts(members.get("policies")):
        result += f" by {', '.join(by)}"
    if said := pairs(members.get("asserted")):
        result += f"; the host says {said}"
    return text_of(members.get("id")), principal(members), asked(members), result


def _outcome(members: dict[str, Any]) -> Cells:
    parts = [text_of(members.get("status")), text_of(members.get("error"))]
    parts += [pairs(members.get(name)) for name in ("usage", "cost")]
    if is_number(took := members.get("duration_ms")):
        parts.append(f"{took:,} ms")
    return text_of(members.get("of")), "", text_of(members.get("model")), ", ".join(filter(None, parts))


def _other(members: dict[str, Any]) -> Cells:
    said = (*ENVELOPE, "principal", "on_behalf_of")
    return "", principal(members), "", pairs({key: value for key, value in members.items() if key not in said})


_CELLS: Final[dict[str, Callable[[dict[str, Any]], Cells]]] = {"decision": _decision, "outcome": _outcome}


def principal(members: dict[str, Any]) -> str:
    """Who acted, and for whom."""
    who = text_of(members.get("principal"))
    return f"{who} for {text_of(members['on_behalf_of'])}" if members.get("on_behalf_of") else who


def asked(members: dict[str, Any]) -> str:
    """What was to be done: a tool, a model, or an action."""
    model = members.get("model")
    if is_object(model) and "name" in model:
        return f"call_model {text_of(model['name'])}"
    return text_of(members.get("tool") or members.get("action"))


def pairs(value: object) -> str:
    """The members of an object as ``key=value``."""
    if not is_object(value):
        return ""
    return ", ".join(f"{key}={_short(item)}" for key, item in value.items())


def _short(value: object) -> str:
    if is_object(value) and "commitment" in value:
        return f"{text_of(value.get('bytes'))} bytes apart"
    return text_of(value)


def text_of(value: object) -> str:
    """A value of an entry as text; what is no text as JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode()


def cut(text: str, most: int = CELL_CHARACTERS_MAX) -> str:
    """A text that fits a cell."""
    return text if len(text) <= most else text[: most - 3] + "..."


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of an entry is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def json_line(entry: Entry, more: Iterable[tuple[str, bytes]] = ()) -> bytes:
    """A line with the entry as it is stored; what is no JSON as base64.

    Args:
        entry: The entry.
        more: Members to add: names, and values in JSON.
    """
    members = [("log", msgspec.json.encode(entry.log.label)), ("index", str(entry.index).encode())]
    members.append(("entry", entry.raw) if entry.is_json() else ("bytes", msgspec.json.encode(entry.raw)))
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in (*members, *more)) + b"}\n"


def out_line(line: bytes) -> None:
    """Writes a line of JSON: to a file or a pipe as it is, to a terminal without what that would obey."""
    if sys.stdout.isatty():
        line = _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", line.decode(errors="replace")).encode()
    sys.stdout.buffer.write(line)
