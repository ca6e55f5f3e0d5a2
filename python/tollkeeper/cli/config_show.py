"""``tollkeeper config show``: every value that is in force, and where it comes from.

A value stands in the file, is the default, or is derived from something else. Without a file all are defaults. Nothing
is opened, and a file with a fault is not shown: of that, nothing would be in force.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import msgspec

from tollkeeper import config
from tollkeeper.cli import gates
from tollkeeper.cli.terminal import EXIT_OK, coloured, out, out_json, shown, wrapped
from tollkeeper.document import dotted

# What a value that is not there means.
ABSENT: Final = {
    "policy.files": "no policies: everything is denied",
    "policy.schema": "policies are not validated",
    "policy.entities": "no entities",
    "policy.tests": "no cases",
    "budget.file": "no budgets: nothing is counted",
    "budget.state": "in the memory of each process",
    "audit": "decisions are not recorded",
    "state": "in the memory of each process",
    "admin": "whoever can write these files administers",
    "tools": "no tools: every call is denied",
    "schema": "arguments are not checked",
    "cost": "1 request of a run that has a budget",
}
# A schema in the table; the whole of it is in the JSON.
SCHEMA_CHARS_MAX: Final = 160
HEADS: Final = ("KEY", "FROM", "VALUE")


class Row(NamedTuple):
    """One value."""

    key: str
    value: Any
    source: str
    """``file``, ``default`` or ``derived``."""
    line: int | None = None
    note: str | None = None
    """What it is derived from, or what its absence means."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    gates.add_file(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Prints all values."""
    named: Path | None = arguments.file
    file = named or config.find()
    reading = config.examine("") if file is None else config.examine(file)
    if reading.settings is None or reading.faults:
        raise reading.faults[0]
    rows = list(_rows(reading, reading.settings))
    if arguments.json:
        values = [{**row._asdict(), "file": str(file) if row.source == "file" else None} for row in rows]
        out_json({"file": None if file is None else str(file), "values": values})
        return EXIT_OK
    if file is None:
        out(f"no {config.FILE_NAME} here: these are the defaults, by which a gate denies everything")
        out()
    elif named is None and file != Path(config.FILE_NAME):
        out(shown(f"{file}, which the variable {config.ENVIRONMENT_NAME} names"))
        out()
    _print(rows, str(file))
    return EXIT_OK


def _rows(reading: config.Reading, settings: config.Config) -> Iterator[Row]:
    yield from _section(reading, ("gate",), settings.gate)
    effective: dict[str, Any] = {
        "files": [str(file) for file in settings.policy_files],
        "schema": _text(settings.schema_file),
        "entities": _text(settings.entities_file),
        "tests": [str(file) for file in settings.test_files],
    }
    yield from _section(reading, ("policy",), config.PolicySection(**effective))
    state, file = _text(settings.budget_state), _text(settings.budget_file)
    yield from _section(reading, ("budget",), config.BudgetSection(file=file, state=state))
    if settings.audit is None:
        yield Row("audit", None, "default", note=ABSENT["audit"])
    else:
        shown_as = msgspec.structs.replace(settings.audit, dir=str(settings.audit_dir), origin=settings.audit_origin)
        yield from _section(reading, ("audit",), shown_as)
    if settings.state_dir is None:
        yield Row("state", None, "default", note=ABSENT["state"])
    else:
        yield from _section(reading, ("state",), config.StateSection(dir=str(settings.state_dir)))
    if not settings.admin_keys:
        yield Row("admin", None, "default", note=ABSENT["admin"])
    else:
        yield from _section(reading, ("admin",), config.AdminSection(keys=settings.admin_keys))
    if not settings.tools:
        yield Row("tools", None, "default", note=ABSENT["tools"])
    for name, tool in settings.tools.items():
        yield from _section(reading, ("tools", name), tool)


def _section(reading: config.Reading, path: tuple[str, ...], made: msgspec.Struct) -> Iterator[Row]:
    """The values of one section, in the order in which they are declared."""
    written: Any = reading.written
    for part in path:
        written = written.get(part, {})
    for field in msgspec.structs.fields(made):
        value = getattr(made, field.name)
        key = dotted((*path, field.name))
        empty = value is None or value in ([], {})
        note = ABSENT.get(key if path[0] != "tools" else field.name) if empty else None
        if field.name in written:
            line = reading.place.line((*path, field.name)) if reading.place else None
            yield Row(key, value, "file", line, note)
        elif key == "audit.origin":
            yield Row(key, value, "derived", note="the name of this host")
        else:
            yield Row(key, value, "default", note=note)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _print(rows: list[Row], file: str) -> None:
    """The value stands last, since it is what may be long."""
    cells = [(shown(row.key), shown(_from(row, file)), [shown(line) for line in _value(row)]) for row in rows]
    keys = max(len(HEADS[0]), *(len(key) for key, _, _ in cells))
    froms = max(len(HEADS[1]), *(len(source) for _, source, _ in cells))
    indent = keys + froms + 4
    out(f"{HEADS[0].ljust(keys)}  {HEADS[1].ljust(froms)}  {HEADS[2]}")
    for key, source, values in cells:
        lines = [part for value in values for part in wrapped(value, indent)]
        # Padded before it is coloured: the codes have no width.
        out(f"{coloured(key.ljust(keys), 'bold')}  {source.ljust(froms)}  {lines[0]}")
        for line in lines[1:]:
            out(" " * indent + line)


def _from(row: Row, file: str) -> str:
    if row.source != "file":
        return row.source
    return file if row.line is None else f"{file}:{row.line}"


def _value(row: Row) -> list[str]:
    """The value as lines for people."""
    value = row.value
    if value is None or value in ([], {}):
        return [f"none ({row.note})" if row.note else "none"]
    if isinstance(value, bool):
        return ["true" if value else "false"]
    if isinstance(value, list):
        return [str(item) for item in cast("list[object]", value)]
    if isinstance(value, dict):
        text = json.dumps(value, ensure_ascii=False)
        return [text if len(text) <= SCHEMA_CHARS_MAX else text[: SCHEMA_CHARS_MAX - 1] + "…"]
    return [f"{value} ({row.note})" if row.note else str(value)]
