"""Reads ``tollkeeper.toml``: which policies, entities and tools a gate is made of.

Every key is known or refused: a typo is an error with file, line and key, never a silent default. Paths are relative to
the file they stand in. Nothing here decides anything, opens a gate, or reads an environment variable.
"""

import glob
import os
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast

import msgspec

from tollkeeper.budgets import AMOUNT_MAX, UNITS
from tollkeeper.document import Place, decode, known_here, read_text, section

__all__ = [
    "CONFIG_BYTES_MAX",
    "FILE_NAME",
    "AuditSection",
    "BudgetSection",
    "Config",
    "GateSection",
    "PolicySection",
    "Tool",
    "default_origin",
    "load",
    "read_text",
]

FILE_NAME: Final = "tollkeeper.toml"

# A thousand tools with a schema of 2 KiB each fit twice.
CONFIG_BYTES_MAX: Final = 4 << 20
# A pattern that matches more files than this is a mistake, such as `/**`.
FILES_MAX: Final = 10_000


class GateSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[gate]`` section."""

    mode: Literal["enforce", "shadow"] = "enforce"
    """``shadow`` lets through what policies would deny and says so in the decision."""
    on_error: Literal["deny", "cedar"] = "deny"
    """What a forbid does that cannot be evaluated: deny, or be skipped as in the language."""
    unguarded_forbid: Literal["refuse", "warn"] = "refuse"
    """Whether a forbid that reads an attribute which may be absent can be loaded."""


class PolicySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[policy]`` section, as written."""

    files: list[str] = []
    """Files or patterns, ``*`` within a folder and ``**`` across folders."""
    schema: str | None = None
    """A Cedar schema; with it policies are validated strictly."""
    entities: str | None = None
    """Entities in Cedar's JSON."""
    tests: list[str] = []
    """Case files or patterns, for ``tollkeeper policy test``."""


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[tools.NAME]`` section."""

    resource: str
    """Uid of the server or system that owns the tool, such as ``Mcp::"gmail"``."""
    schema: dict[str, Any] | None = None
    """JSON Schema of the arguments."""
    paths: list[str] = []
    """Arguments that are file paths and must not leave their directory."""
    cost: dict[str, Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX)]] | None = None
    """What a call costs, by unit; without it a run that has a budget pays for one request."""


class BudgetSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[budget]`` section, as written."""

    file: str | None = None
    """The budgets, a ``budgets.toml``."""
    state: str | None = None
    """Where what is used and held is kept; without it in the memory of the process."""


# What the core takes as an origin, and the sizes of its ring in KiB.
ORIGIN_BYTES_MAX: Final = 255
RING_KIB_MIN: Final = 512
RING_KIB_MAX: Final = 512 << 10


class AuditSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[audit]`` section, as written."""

    dir: str = "audit"
    """Where the logs are kept, one for each process; it stays on this host."""
    origin: str | None = None
    """What the logs call themselves, such as ``example.com/gate``; without it the name of the host."""
    durability: Literal["group", "sync", "checkpointed"] = "group"
    """How certain a record is before a guarded tool runs; policies can ask for more."""
    interval_ms: Annotated[int, msgspec.Meta(ge=1, le=60_000)] = 5
    """How long a record may be in the ring before it is on the disk: what a power cut can lose."""
    checkpoint_interval_ms: Annotated[int, msgspec.Meta(ge=1, le=3_600_000)] = 1000
    """How long an entry may be on the disk before a signed checkpoint covers it."""
    ring_kib: int = 16 << 10
    """Size of the ring in KiB, a power of two: what may wait for the disk."""
    on_full: Literal["deny", "allow"] = "deny"
    """What a check does that finds no room for its record. ``allow`` lets it through, and the log says later how many
    went unrecorded."""
    exported: bool = False
    """Whether something outside takes each checkpoint; it is only written down."""


class Config(msgspec.Struct, frozen=True):
    """A configuration, with its paths resolved."""

    file: Path
    """Where it stands."""
    gate: GateSection
    policy_files: list[Path]
    """In the order of the patterns, each pattern's files sorted."""
    schema_file: Path | None
    entities_file: Path | None
    test_files: list[Path]
    tools: dict[str, Tool]
    budget_file: Path | None = None
    budget_state: Path | None = None
    audit: AuditSection | None = None
    """Absent where nothing is recorded."""
    audit_dir: Path | None = None
    audit_origin: str | None = None
    """As written, or the default."""


ORIGIN_HINT: Final = 'a name such as "example.com/gate"'
SECTIONS: Final = ("gate", "policy", "tools", "budget", "audit")


def load(source: str | os.PathLike[str], folder: str | os.PathLike[str] = ".") -> Config:
    r"""Reads a configuration.

    Args:
        source: The file as ``pathlib.Path``, or the text as ``str``.
        folder: What paths are relative to, where text is given.

    Raises:
        ConfigError: With file, line and key.
        OSError: The file cannot be read.

    Example:
        >>> from tollkeeper import config
        >>> config.load("[gate]\nmode = 'shadow'").gate.mode
        'shadow'
        >>> config.load("[gate]\nmoed = 'shadow'")
        Traceback (most recent call last):
        tollkeeper.errors.ConfigError: tollkeeper.toml:2: gate.moed: unknown key
    """
    if isinstance(source, str):
        return _decode(source, Path(folder) / FILE_NAME, shown=FILE_NAME)
    file = Path(source)
    return _decode(read_text(file, CONFIG_BYTES_MAX), file, shown=str(file))


def _decode(text: str, file: Path, shown: str) -> Config:
    document = decode(text, shown)
    place = Place(text, shown)
    for key in document:
        if key not in SECTIONS:
            raise place.error((key,), "unknown section", known_here(key, SECTIONS))
    gate = section(document.get("gate", {}), GateSection, ("gate",), place)
    policy = section(document.get("policy", {}), PolicySection, ("policy",), place)
    budget = section(document.get("budget", {}), BudgetSection, ("budget",), place)
    if budget.state is not None and budget.file is None:
        raise place.error(("budget", "state"), "a state without budgets", 'file = "budgets.toml"')
    audit = _audit(document["audit"], place) if "audit" in document else None
    tools = document.get("tools", {})
    if not isinstance(tools, dict):
        raise place.error(
            ("tools",), "must be sections, one for each tool", "write [tools.search], resource = 'Mcp::\"web\"'"
        )
    folder = file.parent
    return Config(
        file=file,
        gate=gate,
        policy_files=_files(policy.files, folder, ("policy", "files"), place),
        schema_file=None if policy.schema is None else _file(policy.schema, folder, ("policy", "schema"), place),
        entities_file=None
        if policy.entities is None
        else _file(policy.entities, folder, ("policy", "entities"), place),
        test_files=_files(policy.tests, folder, ("policy", "tests"), place),
        tools={name: _tool(tool, ("tools", name), place) for name, tool in cast("dict[str, Any]", tools).items()},
        budget_file=None if budget.file is None else _file(budget.file, folder, ("budget", "file"), place),
        budget_state=None if budget.state is None else folder / budget.state,
        audit=audit,
        audit_dir=None if audit is None else folder / audit.dir,
        audit_origin=None if audit is None else audit.origin or default_origin(),
    )


def default_origin(host: str | None = None) -> str:
    """What logs call themselves where nobody says: the name of the host, with dashes for what a name cannot hold.

    Example:
        >>> from tollkeeper import config
        >>> config.default_origin("Build Box+1")
        'build-box-1'
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", (os.uname().nodename if host is None else host).lower()).strip("-._")
    return name[:ORIGIN_BYTES_MAX] or "localhost"


def _audit(raw: object, place: Place) -> AuditSection:
    audit = section(raw, AuditSection, ("audit",), place)
    origin = audit.origin
    if not audit.dir:
        raise place.error(("audit", "dir"), "must name a folder", 'dir = "audit"')
    if origin is not None:
        if not 1 <= len(origin.encode()) <= ORIGIN_BYTES_MAX:
            raise place.error(("audit", "origin"), f"must have 1 to {ORIGIN_BYTES_MAX} bytes", ORIGIN_HINT)
        if any(char == "+" or char.isspace() or unicodedata.category(char) == "Cc" for char in origin):
            raise place.error(("audit", "origin"), "must not hold spaces, control characters or `+`", ORIGIN_HINT)
    ring_kib = audit.ring_kib
    if not RING_KIB_MIN <= ring_kib <= RING_KIB_MAX or ring_kib.bit_count() != 1:
        what = f"must be a power of two from {RING_KIB_MIN} to {RING_KIB_MAX}"
        raise place.error(("audit", "ring_kib"), what, "ring_kib = 16384")
    return audit


def _tool(raw: object, at: tuple[str, ...], place: Place) -> Tool:
    tool = section(raw, Tool, at, place)
    for unit in tool.cost or {}:
        if unit not in UNITS:
            raise place.error((*at, "cost", unit), "unknown unit", known_here(unit, UNITS))
    return tool


def _file(name: str, folder: Path, path: tuple[str, ...], place: Place) -> Path:
    file = folder / name
    if not file.is_file():
        what = "is a folder, not a file" if file.is_dir() else "no such file"
        raise place.error(path, f"{what}: {name}", f"paths are relative to {place.shown}")
    return file


def _files(patterns: list[str], folder: Path, path: tuple[str, ...], place: Place) -> list[Path]:
    """Expands patterns. One that finds nothing is an error, because a policy that is not loaded protects nothing."""
    found: dict[Path, None] = {}
    for number, pattern in enumerate(patterns):
        at = (*path, str(number))
        if not glob.has_magic(pattern):
            found[_file(pattern, folder, at, place)] = None
            continue
        names = sorted(glob.glob(pattern, root_dir=folder, recursive=True))  # noqa: PTH207 - patterns may start with ../
        files = [folder / name for name in names if (folder / name).is_file()]
        if not files:
            raise place.error(at, f"no file matches: {pattern}", f"patterns are relative to {place.shown}")
        if len(found) + len(files) > FILES_MAX:
            raise place.error(at, f"more than {FILES_MAX} files match: {pattern}", None)
        found.update(dict.fromkeys(files))
    return list(found)
