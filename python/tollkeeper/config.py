"""Reads ``tollkeeper.toml``: which policies, entities and tools a gate is made of.

Every key is known or refused: a typo is an error with file, line and key, never a silent default. Paths are relative to
the file they stand in. Nothing here decides anything or opens a gate. One environment variable is read, by `find` only:
it may say where the file is. None can change what the file says.
"""

import binascii
import glob
import os
import re
import unicodedata
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar, cast

import msgspec

from tollkeeper.budgets import AMOUNT_MAX, UNITS
from tollkeeper.document import Place, decode, examined, known_here, read_text
from tollkeeper.errors import ConfigError

__all__ = [
    "CONFIG_BYTES_MAX",
    "ENVIRONMENT_NAME",
    "FILE_NAME",
    "AdminSection",
    "AuditSection",
    "BudgetSection",
    "Config",
    "GateSection",
    "PolicySection",
    "Reading",
    "StateSection",
    "Tool",
    "default",
    "default_origin",
    "examine",
    "find",
    "key_fault",
    "load",
    "read_text",
]

Section = TypeVar("Section", bound=msgspec.Struct)

FILE_NAME: Final = "tollkeeper.toml"
ENVIRONMENT_NAME: Final = "TOLLKEEPER_CONFIG"

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
    watch: bool = False
    """Whether the gate reloads by itself when a file changes; needs the extra ``watch``."""


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
    reads: list[str] = []
    """Labels that what the tool returns brings into the session, such as ``untrusted``."""


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


class StateSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[state]`` section, as written."""

    dir: str = "state"
    """What the processes of this host share: revocations, labels of sessions, approvals, counters."""


class AdminSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[admin]`` section, as written."""

    keys: list[str]
    """Public keys, as ``tollkeeper audit keygen`` prints them. Who administers needs the private half of one."""


# A label travels with every decision of its session.
LABEL_BYTES_MAX: Final = 256
LABELS_MAX: Final = 64
ADMIN_KEYS_MAX: Final = 64
KEY_NAME_BYTES_MAX: Final = 255
# The one kind of key there is, and the length of such a key behind its kind.
ED25519: Final = b"\x01"
ED25519_BYTES: Final = 32


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
    state_dir: Path | None = None
    """Absent where the state is in the memory of the process."""
    admin_keys: list[str] = []
    """Empty where administration needs no key."""


ORIGIN_HINT: Final = 'a name such as "example.com/gate"'
KEY_HINT: Final = "the line that tollkeeper audit keygen --out admin.key --origin admin prints"
SECTIONS: Final = ("gate", "policy", "tools", "budget", "audit", "state", "admin")


def default() -> Config:
    """What a gate is made of where there is no file: it has no policies and no tools, so it denies everything.

    Example:
        >>> from tollkeeper import config
        >>> config.default() == config.load("")
        True
    """
    return Config(
        file=Path(FILE_NAME),
        gate=GateSection(),
        policy_files=[],
        schema_file=None,
        entities_file=None,
        test_files=[],
        tools={},
    )


def find(start: Path | None = None) -> Path | None:
    """The file to load where nobody names one.

    Args:
        start: The folder to look in; without it the current one. Folders above it are not searched, since whoever can
            write to one of them could then change what a gate allows.

    Returns:
        What the environment variable ``TOLLKEEPER_CONFIG`` names, also if it is not there: loading it then says so, and
        no other file is taken instead. Otherwise ``tollkeeper.toml`` of the folder, or ``None``.
    """
    named = os.environ.get(ENVIRONMENT_NAME)
    if named:
        return Path(named)
    file = Path(FILE_NAME) if start is None else start / FILE_NAME
    # Something that is no file, or a link to nowhere, has to be an error and not an absence.
    return file if os.path.lexists(file) else None


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
    reading = examine(source, folder)
    if reading.settings is None or reading.faults:
        raise reading.faults[0]
    return reading.settings


class Reading(NamedTuple):
    """What `examine` found."""

    settings: Config | None
    """``None`` if the text is not TOML. With faults it lacks what they are about: nothing may be opened with it."""
    faults: list[ConfigError]
    written: dict[str, Any]
    """The document as the parser has it."""
    place: Place | None
    """Finds the line of a key."""


def examine(source: str | os.PathLike[str], folder: str | os.PathLike[str] = ".") -> Reading:
    r"""Reads a configuration and goes on after what is wrong, for those who tell a person all of it at once.

    Args:
        source: As for `load`.
        folder: As for `load`.

    Raises:
        OSError: The file cannot be read.

    Example:
        >>> from tollkeeper import config
        >>> for fault in config.examine("[gate]\nmoed = 'shadow'\n[audti]").faults:
        ...     print(fault)
        tollkeeper.toml:3: audti: unknown section
        tollkeeper.toml:2: gate.moed: unknown key
    """
    file = Path(folder) / FILE_NAME if isinstance(source, str) else Path(source)
    shown = FILE_NAME if isinstance(source, str) else str(file)
    try:
        text = source if isinstance(source, str) else read_text(file, CONFIG_BYTES_MAX)
        document = decode(text, shown)
    except ConfigError as error:
        return Reading(None, [error], {}, None)
    reader = _Reader(document, Place(text, shown), file)
    return Reading(reader.settings(), reader.faults, document, reader.place)


class _Reader:
    """Makes a configuration of a document, and collects what is wrong with it."""

    def __init__(self, document: dict[str, Any], place: Place, file: Path) -> None:
        self.faults: list[ConfigError] = []
        self.place = place
        self._document = document
        self._file = file
        self._folder = file.parent

    def settings(self) -> Config:
        for key in self._document:
            if key not in SECTIONS:
                self._wrong((key,), "unknown section", known_here(key, SECTIONS))
        gate = self._section("gate", GateSection) or GateSection()
        policy = self._section("policy", PolicySection) or PolicySection()
        budget = self._section("budget", BudgetSection) or BudgetSection()
        if budget.state is not None and budget.file is None and "file" not in self._document["budget"]:
            self._wrong(("budget", "state"), "a state without budgets", 'file = "budgets.toml"')
        audit = self._section("audit", AuditSection) if "audit" in self._document else None
        if audit is not None:
            self._check_audit(audit)
        state = self._section("state", StateSection) if "state" in self._document else None
        return Config(
            file=self._file,
            gate=gate,
            policy_files=self._files(policy.files, ("policy", "files")),
            schema_file=self._named(policy.schema, ("policy", "schema")),
            entities_file=self._named(policy.entities, ("policy", "entities")),
            test_files=self._files(policy.tests, ("policy", "tests")),
            tools=self._tools(),
            budget_file=self._named(budget.file, ("budget", "file")),
            budget_state=self._below(budget.state, ("budget", "state"), "a file", 'state = "state/ledger.bin"'),
            audit=audit,
            audit_dir=None if audit is None else self._below(audit.dir, ("audit", "dir"), "a folder", 'dir = "audit"'),
            audit_origin=None if audit is None else audit.origin or default_origin(),
            state_dir=None if state is None else self._below(state.dir, ("state", "dir"), "a folder", 'dir = "state"'),
            admin_keys=self._admin_keys(),
        )

    def _wrong(self, path: tuple[str, ...], what: str, hint: str | None) -> None:
        self.faults.append(self.place.error(path, what, hint))

    def _section(self, name: str, kind: type[Section]) -> Section | None:
        return examined(self._document.get(name, {}), kind, (name,), self.place, self.faults)

    def _check_audit(self, audit: AuditSection) -> None:
        origin, at = audit.origin, ("audit", "origin")
        if origin is not None and not 1 <= len(origin.encode()) <= ORIGIN_BYTES_MAX:
            self._wrong(at, f"must have 1 to {ORIGIN_BYTES_MAX} bytes", ORIGIN_HINT)
        elif origin is not None and _unfit_name(origin):
            self._wrong(at, "must not hold spaces, control characters or `+`", ORIGIN_HINT)
        ring_kib = audit.ring_kib
        if not RING_KIB_MIN <= ring_kib <= RING_KIB_MAX or ring_kib.bit_count() != 1:
            what = f"must be a power of two from {RING_KIB_MIN} to {RING_KIB_MAX}"
            self._wrong(("audit", "ring_kib"), what, "ring_kib = 16384")

    def _tools(self) -> dict[str, Tool]:
        raw = self._document.get("tools", {})
        if not isinstance(raw, dict):
            hint = "write [tools.search], resource = 'Mcp::\"web\"'"
            self._wrong(("tools",), "must be sections, one for each tool", hint)
            return {}
        tools: dict[str, Tool] = {}
        labels: set[str] = set()
        for name, section in cast("dict[str, Any]", raw).items():
            at = ("tools", name)
            tool = examined(section, Tool, at, self.place, self.faults)
            if tool is None:
                continue
            tools[name] = tool
            for unit in tool.cost or {}:
                if unit not in UNITS:
                    self._wrong((*at, "cost", unit), "unknown unit", known_here(unit, UNITS))
            for number, label in enumerate(tool.reads):
                self._label(label, labels, (*at, "reads", str(number)))
        return tools

    def _label(self, label: str, seen: set[str], at: tuple[str, ...]) -> None:
        """Whether a label can be one. `seen` are those of the file: sessions keep them in a table of that size."""
        if not 1 <= len(label.encode()) <= LABEL_BYTES_MAX:
            self._wrong(at, f"a label has 1 to {LABEL_BYTES_MAX} bytes", 'reads = ["untrusted"]')
        elif any(unicodedata.category(char) == "Cc" for char in label):
            self._wrong(at, "a label must not hold control characters", 'reads = ["untrusted"]')
        elif label not in seen:
            seen.add(label)
            if len(seen) == LABELS_MAX + 1:
                self._wrong(at, f"the tools bring in more than {LABELS_MAX} different labels", "use fewer")

    def _admin_keys(self) -> list[str]:
        admin = self._section("admin", AdminSection) if "admin" in self._document else None
        if admin is None:
            return []
        at = ("admin", "keys")
        if not admin.keys:
            # Whoever writes the section means it to protect something.
            self._wrong(at, "names no key, so anybody could administer", KEY_HINT)
        if len(admin.keys) > ADMIN_KEYS_MAX:
            self._wrong(at, f"{len(admin.keys)} keys, the most is {ADMIN_KEYS_MAX}", None)
        for number, key in enumerate(admin.keys):
            what = key_fault(key)
            if what is not None:
                self._wrong((*at, str(number)), what, KEY_HINT)
        return admin.keys

    def _below(self, name: str | None, at: tuple[str, ...], kind: str, hint: str) -> Path | None:
        """A path that need not exist yet."""
        if name is None:
            return None
        if not name or "\0" in name:
            self._wrong(at, f"must name {kind}", hint)
            return None
        return self._folder / name

    def _named(self, name: str | None, at: tuple[str, ...]) -> Path | None:
        """A file that must exist."""
        if name is None:
            return None
        file = self._folder / name
        if file.is_file():
            return file
        what = "is a folder, not a file" if file.is_dir() else "no such file"
        self._wrong(at, f"{what}: {name}", f"paths are relative to {self.place.shown}")
        return None

    def _files(self, patterns: list[str], path: tuple[str, ...]) -> list[Path]:
        """Expands patterns. One that finds nothing is wrong, because a policy that is not loaded protects nothing."""
        found: dict[Path, None] = {}
        for number, pattern in enumerate(patterns):
            at = (*path, str(number))
            if not glob.has_magic(pattern):
                file = self._named(pattern, at)
                if file is not None:
                    found[file] = None
                continue
            folder = self._folder
            names = sorted(glob.glob(pattern, root_dir=folder, recursive=True))  # noqa: PTH207 - patterns may start with ../
            files = [folder / name for name in names if (folder / name).is_file()]
            if not files:
                self._wrong(at, f"no file matches: {pattern}", f"patterns are relative to {self.place.shown}")
            if len(found) + len(files) > FILES_MAX:
                self._wrong(at, f"more than {FILES_MAX} files match: {pattern}", None)
                continue
            found.update(dict.fromkeys(files))
        return list(found)


def key_fault(key: str) -> str | None:
    """What is wrong with a public key in the form of C2SP verifier keys; ``None`` if nothing is.

    What the text holds is not repeated: it may be a private key, in the wrong place.

    Example:
        >>> from tollkeeper import config
        >>> config.key_fault("admin+00000000+AQ==")
        'its key has 0 bytes, an Ed25519 key has 32'
        >>> config.key_fault("admin")
        'not a public key: NAME+ID+BASE64'
    """
    if "PRIVATE KEY" in key:
        return "a private key; whoever reads this file has seen it: make another one"
    # The base64 may hold `+` too.
    name, *rest = key.split("+", 2)
    if len(rest) != 2:  # noqa: PLR2004 - the id and the key
        return "not a public key: NAME+ID+BASE64"
    if not 1 <= len(name.encode()) <= KEY_NAME_BYTES_MAX or _unfit_name(name):
        return f"its name, before the first `+`, must have 1 to {KEY_NAME_BYTES_MAX} bytes without spaces"
    return _content_fault(name, *rest)


def _content_fault(name: str, number: str, encoded: str) -> str | None:
    import hashlib  # noqa: PLC0415 - few configurations have keys

    try:
        content = binascii.a2b_base64(encoded, strict_mode=True)
    except (binascii.Error, ValueError):
        return "its key is not base64"
    if content[:1] != ED25519:
        return "not an Ed25519 key: the first byte of its key is not 1"
    if len(content) != 1 + ED25519_BYTES:
        return f"its key has {len(content) - 1} bytes, an Ed25519 key has {ED25519_BYTES}"
    expected = hashlib.sha256(name.encode() + b"\n" + content).hexdigest()[:8]
    return None if number == expected else f"its id is not {expected}, which name and key come to"


def _unfit_name(name: str) -> bool:
    return any(char == "+" or char.isspace() or unicodedata.category(char) == "Cc" for char in name)


def default_origin(host: str | None = None) -> str:
    """What logs call themselves where nobody says: the name of the host, with dashes for what a name cannot hold.

    Example:
        >>> from tollkeeper import config
        >>> config.default_origin("Build Box+1")
        'build-box-1'
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", (os.uname().nodename if host is None else host).lower()).strip("-._")
    return name[:ORIGIN_BYTES_MAX] or "localhost"
