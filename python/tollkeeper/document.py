"""What the readers of TOML files share: decoding into structs, and errors that name file, line and key.

A key is known or refused; nothing is guessed. No file of its own is read here and no default is set.
"""

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import msgspec

from tollkeeper.errors import ConfigError

__all__ = ["TEXT_BYTES_MAX", "Place", "decode", "dotted", "examined", "known_here", "read_text", "section"]

# As large as the largest input that the core takes, an entities document.
TEXT_BYTES_MAX: Final = 256 << 20

_PART = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEY: Final = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")
_LIST_OPENS: Final = re.compile(r".*\[\s*(?:#.*)?$")
Section = TypeVar("Section", bound=msgspec.Struct)


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


def decode(text: str, shown: str) -> dict[str, Any]:
    """Reads TOML.

    Args:
        text: The document.
        shown: What errors call it.

    Raises:
        ConfigError: It is not TOML; with line and column where the parser knows them.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{shown}: values nest too deeply", "config.syntax") from None
    except ValueError as error:
        # Also of the number parser, which knows no place.
        raise _syntax_error(str(error), shown) from None


def _syntax_error(message: str, shown: str) -> ConfigError:
    """The parser puts the place at the end; people and editors look for it at the start."""
    found = re.fullmatch(r"(.*?) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    if found is None:
        return ConfigError(f"{shown}: {message}", "config.syntax")
    where = f"{found[2]}:{found[3]}: " if found[2] else " at the end: "
    what = found[1][:1].lower() + found[1][1:]
    return ConfigError(f"{shown}:{where}{what}", "config.syntax")


def section(raw: object, kind: type[Section], path: tuple[str, ...], place: "Place") -> Section:
    """Decodes one section.

    Args:
        raw: What the parser made of it.
        kind: The struct it becomes.
        path: Its keys, from the top.
        place: Finds the line.

    Raises:
        ConfigError: A key is unknown or missing, or a value is of the wrong type.
    """
    faults: list[ConfigError] = []
    made = examined(raw, kind, path, place, faults)
    if made is None or faults:
        raise faults[0]
    return made


def examined(
    raw: object, kind: type[Section], path: tuple[str, ...], place: "Place", faults: list[ConfigError]
) -> Section | None:
    """Decodes one section and goes on after what is wrong.

    Args:
        raw: What the parser made of it.
        kind: The struct it becomes.
        path: Its keys, from the top.
        place: Finds the line.
        faults: What is wrong is added here.

    Returns:
        The section without what is wrong in it; ``None`` if something that it needs is missing or wrong.
    """
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    if isinstance(raw, dict):
        named = cast("dict[str, Any]", raw)
        faults.extend(
            place.error((*path, key), "unknown key", known_here(key, list(fields)))
            for key in named
            if key not in fields
        )
        raw = {key: value for key, value in named.items() if key in fields}
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        first = _wrong(error, kind, path, (), place)
    if not isinstance(raw, dict):
        faults.append(first)
        return None
    # The decoder stops at the first one, so each value is decoded alone.
    right: dict[str, Any] = {}
    for key, value in cast("dict[str, Any]", raw).items():
        try:
            msgspec.convert(value, fields[key].type)
            right[key] = value
        except msgspec.ValidationError as error:
            faults.append(_wrong(error, kind, path, (key,), place))
    missing = [name for name, field in fields.items() if field.required and name not in raw]
    faults.extend(place.error(path, f"object missing required field `{name}`", None) for name in missing)
    return (
        msgspec.convert(right, kind) if all(name in right for name, field in fields.items() if field.required) else None
    )


def _wrong(
    error: msgspec.ValidationError,
    kind: type[msgspec.Struct],
    path: tuple[str, ...],
    inner: tuple[str, ...],
    place: "Place",
) -> ConfigError:
    what, _, at = str(error).partition(" - at `$")
    inner += tuple(part for part in re.split(r"[.\[]", at.rstrip("`").replace("]", "")) if part)
    return place.error((*path, *inner), what[:1].lower() + what[1:], _choices(kind, inner))


def known_here(key: str, known: list[str] | tuple[str, ...]) -> str:
    """The hint for a name that is not known."""
    close = difflib.get_close_matches(key, known, 1)
    asked = f"did you mean `{close[0]}`? " if close else ""
    return f"{asked}known here: {', '.join(known)}"


def _choices(kind: type[msgspec.Struct], path: tuple[str, ...]) -> str | None:
    """The values that a key takes, where they are few."""
    for field in msgspec.structs.fields(kind):
        if path == (field.name,) and getattr(field.type, "__origin__", None) is Literal:
            return "one of: " + ", ".join(f'"{choice}"' for choice in field.type.__args__)
    return None


class Place:
    """Finds the line of a key, as far as that goes without a second TOML parser.

    A key is found on a line of its own, and an item of a list where it opens a line with a brace.

    Args:
        text: The document.
        shown: What errors call it.
    """

    def __init__(self, text: str, shown: str) -> None:
        self.shown = shown
        self._lines: dict[tuple[str, ...], int] = {}
        table: tuple[str, ...] = ()
        items: tuple[str, ...] | None = None
        count = 0
        for number, line in enumerate(text.splitlines(), 1):
            if header := re.match(r"\s*\[\[?([^\[\]]+)\]\]?\s*(?:#.*)?$", line):
                table, items = _dotted(header[1]), None
                self._lines.setdefault(table, number)
            elif key := _KEY.match(line):
                path = (*table, *_dotted(key[1]))
                self._lines.setdefault(path, number)
                items, count = (path if _LIST_OPENS.match(line) else None), 0
            elif items is not None and line.lstrip().startswith("{"):
                self._lines.setdefault((*items, str(count)), number)
                count += 1

    def line(self, path: tuple[str, ...]) -> int | None:
        """The line of a key; where the key has none, of the nearest one above it."""
        return next((self._lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self._lines), None)

    def error(self, path: tuple[str, ...], what: str, hint: str | None) -> ConfigError:
        """An error at a key; where the key has no line, at the nearest one above it."""
        line = self.line(path)
        where = self.shown if line is None else f"{self.shown}:{line}"
        return ConfigError(f"{where}: {dotted(path)}: {what}", "config.invalid", hint)


def dotted(path: tuple[str, ...]) -> str:
    """A key as it is written, with quotes where it needs them."""
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"' for part in path)


def _dotted(text: str) -> tuple[str, ...]:
    parts = re.findall(r""""([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+)""", text)
    return tuple(next((part for part in found if part), "") for found in parts)
