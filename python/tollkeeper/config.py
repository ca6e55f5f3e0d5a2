"""Reads ``tollkeeper.toml``: which policies, entities and tools a gate is made of.

Every key is known or refused: a typo is an error with file, line and key, never a silent default. Paths are relative to
the file they stand in. Nothing here decides anything, opens a gate, or reads an environment variable.
"""

import difflib
import glob
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import msgspec

from tollkeeper.errors import ConfigError

__all__ = ["CONFIG_BYTES_MAX", "FILE_NAME", "Config", "GateSection", "PolicySection", "Tool", "load", "read_text"]

FILE_NAME: Final = "tollkeeper.toml"

# A thousand tools with a schema of 2 KiB each fit twice.
CONFIG_BYTES_MAX: Final = 4 << 20
# As large as the largest input that the core takes, an entities document.
TEXT_BYTES_MAX: Final = 256 << 20
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


_PART = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEY: Final = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")
SECTIONS: Final = ("gate", "policy", "tools")
Section = TypeVar("Section", GateSection, PolicySection, Tool)


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


def read_text(file: Path, bytes_max: int = TEXT_BYTES_MAX) -> str:
    """Reads a text file that a person wrote.

    Raises:
        ConfigError: It is not UTF-8, or larger than the limit.
        OSError: It cannot be read.
    """
    with file.open("rb") as stream:
        data = stream.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise ConfigError(f"{file}: the file has more than {bytes_max} bytes", "input.too_large")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        start = data.rfind(b"\n", 0, error.start) + 1
        column = len(data[start : error.start].decode(errors="replace")) + 1
        message = f"{file}:{line}:{column}: byte 0x{data[error.start]:02x} is not UTF-8"
        raise ConfigError(message, "config.encoding", "save the file as UTF-8") from None


def _decode(text: str, file: Path, shown: str) -> Config:
    try:
        document = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{shown}: values nest too deeply", "config.syntax") from None
    except ValueError as error:
        # Also of the number parser, which knows no place.
        raise _syntax_error(str(error), shown) from None
    place = _Place(text, shown)
    for key in document:
        if key not in SECTIONS:
            raise place.error((key,), "unknown section", _known(key, SECTIONS))
    gate = _section(document.get("gate", {}), GateSection, ("gate",), place)
    policy = _section(document.get("policy", {}), PolicySection, ("policy",), place)
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
        tools={
            name: _section(tool, Tool, ("tools", name), place) for name, tool in cast("dict[str, Any]", tools).items()
        },
    )


def _syntax_error(message: str, shown: str) -> ConfigError:
    """The parser puts the place at the end; people and editors look for it at the start."""
    found = re.fullmatch(r"(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    if found is None:
        return ConfigError(f"{shown}: {message}", "config.syntax")
    where = f"{found[2]}:{found[3]}: " if found[2] else " at the end: "
    what = found[1][:1].lower() + found[1][1:]
    return ConfigError(f"{shown}:{where}{what}", "config.syntax")


def _section(raw: object, kind: type[Section], path: tuple[str, ...], place: "_Place") -> Section:
    known = [field.name for field in msgspec.structs.fields(kind)]
    if isinstance(raw, dict):
        for key in cast("dict[str, Any]", raw):
            if key not in known:
                raise place.error((*path, key), "unknown key", _known(key, known))
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at `$")
        inner: tuple[str, ...] = tuple(part for part in re.split(r"[.\[]", at.rstrip("`").replace("]", "")) if part)
        raise place.error((*path, *inner), what[:1].lower() + what[1:], _choices(kind, inner)) from None


def _known(key: str, known: list[str] | tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key, known, 1)
    asked = f"did you mean `{close[0]}`? " if close else ""
    return f"{asked}known here: {', '.join(known)}"


def _choices(kind: type[msgspec.Struct], path: tuple[str, ...]) -> str | None:
    """The values that a key takes, where they are few."""
    for field in msgspec.structs.fields(kind):
        if path == (field.name,) and getattr(field.type, "__origin__", None) is Literal:
            return "one of: " + ", ".join(f'"{choice}"' for choice in field.type.__args__)
    return None


def _file(name: str, folder: Path, path: tuple[str, ...], place: "_Place") -> Path:
    file = folder / name
    if not file.is_file():
        what = "is a folder, not a file" if file.is_dir() else "no such file"
        raise place.error(path, f"{what}: {name}", f"paths are relative to {place.shown}")
    return file


def _files(patterns: list[str], folder: Path, path: tuple[str, ...], place: "_Place") -> list[Path]:
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


class _Place:
    """Finds the line of a key, as far as that goes without a second TOML parser: a key on a line of its own."""

    def __init__(self, text: str, shown: str) -> None:
        self.shown = shown
        self._lines: dict[tuple[str, ...], int] = {}
        table: tuple[str, ...] = ()
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*\[\[?([^\[\]]+)\]\]?\s*(?:#.*)?$", line):
                table = _dotted(header[1])
                self._lines.setdefault(table, number)
            elif key := _KEY.match(line):
                self._lines.setdefault((*table, *_dotted(key[1])), number)

    def error(self, path: tuple[str, ...], what: str, hint: str | None) -> ConfigError:
        line = next((self._lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self._lines), None)
        where = self.shown if line is None else f"{self.shown}:{line}"
        key = ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"' for part in path)
        return ConfigError(f"{where}: {key}: {what}", "config.invalid", hint)


def _dotted(text: str) -> tuple[str, ...]:
    parts = re.findall(r""""([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+)""", text)
    return tuple(next((part for part in found if part), "") for found in parts)
