"""Reads what commands are given: policies, entities, requests, JSON lines.

Every fault is reported with the file and, where there is one, line and column. Lines are read one at a time, so a file
may be larger than memory. Keys that nobody reads are refused. Nothing is decided here.
"""

import argparse
import gzip
import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, TypeVar

import msgspec

from tollkeeper import Context, Entities, EntityUid, PolicySet, config
from tollkeeper.cli.terminal import InputError, place
from tollkeeper.errors import ContextError, EntityError

# Larger than any entry of the published corpus (0.3 MB), and as large as four contexts may be.
LINE_BYTES_MAX: Final = 16 << 20
STDIN: Final = "-"
# More digits than any limit has.
NUMBER_DIGITS_MAX: Final = 40

Decoded = TypeVar("Decoded")


class Uid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A uid as an object."""

    type: str
    id: str


class Sources(msgspec.Struct, frozen=True):
    """Where policies and what they read come from."""

    policies: list[Path]
    schema: Path | None
    entities: Path | None


def add_sources(parser: argparse.ArgumentParser, *, entities: bool = True) -> None:
    """Declares the arguments that name policies, schema and entities."""
    parser.add_argument(
        "--policies",
        metavar="FILE",
        type=Path,
        nargs="+",
        action="extend",
        help="Cedar files, or folders of them; without it the files of the configuration",
    )
    parser.add_argument("--schema", metavar="FILE", type=Path, help="Cedar schema, in Cedar's syntax or JSON")
    if entities:
        parser.add_argument("--entities", metavar="FILE", type=Path, help="entities in Cedar's JSON")
    add_config(parser)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Declares the argument that names the configuration."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        default=config.find() or Path(config.FILE_NAME),
        help=f"default: what the variable {config.ENVIRONMENT_NAME} names, else {config.FILE_NAME}",
    )


def sources(arguments: argparse.Namespace) -> Sources:
    """The files that are named, or else those of the configuration."""
    entities = getattr(arguments, "entities", None)
    if arguments.policies is not None:
        return Sources(cedar_files(arguments.policies), arguments.schema, entities)
    settings = load_config(arguments.config)
    if not settings.policy_files:
        raise InputError(f"{settings.file}: policy.files names no policies", 'files = ["policies/*.cedar"]')
    return Sources(
        settings.policy_files,
        arguments.schema or settings.schema_file,
        entities or settings.entities_file,
    )


def load_config(path: Path, hint: str = "name policies with --policies") -> config.Config:
    """The configuration, with a hint where there is none."""
    try:
        return config.load(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", f"{hint}, or write one: tollkeeper init") from None


def cedar_files(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, and of folders the Cedar files in them."""
    return [file for path in paths for file in _cedar_files(path)]


def _cedar_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.cedar"))
    if not files:
        raise InputError(f"{path}: the folder holds no .cedar file")
    return files


def load_policies(files: Sequence[Path], schema: Path | None, ids: str) -> PolicySet:
    """Parses and compiles; with a schema, validates."""
    return PolicySet.from_cedar(list(files), schema, ids=ids)


def load_entities(file: Path | None, schema: Path | None) -> Entities:
    """Reads an entities file; its name is in the error."""
    if file is None:
        return Entities()
    with located(str(file)):
        return Entities.from_json(file, schema)


@contextmanager
def located(file: str, line: int = 0, what: str = "") -> Generator[None]:
    """Adds file and line to errors that know neither."""
    try:
        yield
    except (EntityError, ContextError) as error:
        details = error.errors
        if details and details[0].file is not None:
            raise
        detail = details[0] if details else None
        message = detail.message if detail else str(error)
        where = place(file, line or (detail.line if detail else 0), 0 if line else (detail.column if detail else 0))
        raise InputError(f"{where}{what}{message}", error.help) from None


def read_uid(value: str | Uid) -> EntityUid:
    """A uid in either form.

    Raises:
        EntityError: It is not one.
    """
    return EntityUid.parse(value) if isinstance(value, str) else EntityUid(value.type, value.id)


def uid_argument(value: str, name: str) -> EntityUid:
    """A uid given on the command line."""
    try:
        return EntityUid.parse(value)
    except EntityError as error:
        raise InputError(f"--{name} {value}: {error.args[0]}", error.help) from None


def json_argument(value: str) -> str:
    """JSON text given on the command line, as ``@FILE`` or as ``-`` for standard input."""
    if value == STDIN:
        return sys.stdin.read()
    return config.read_text(Path(value[1:])) if value.startswith("@") else value


def context_argument(value: str | None, schema: Path | None, action: EntityUid) -> Context | None:
    """A context in Cedar's JSON given on the command line."""
    if value is None:
        return None
    text = json_argument(value)
    with located("--context" if not value.startswith("@") else value[1:]):
        return Context.from_cedar_json(text, schema, action=None if schema is None else action)


def whole_number(most: int, *, least: int = 0) -> Callable[[str], int]:
    """A reader of whole numbers for `argparse`; underscores may part the digits."""

    def number(text: str) -> int:
        if not re.fullmatch(r"[0-9]+(?:_[0-9]+)*", text, re.ASCII) or len(text) > NUMBER_DIGITS_MAX:
            raise argparse.ArgumentTypeError(f"`{text[:NUMBER_DIGITS_MAX]}` is not a whole number")
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not between {least} and {most}")
        return value

    return number


@contextmanager
def opened(name: str) -> Generator[IO[bytes] | gzip.GzipFile]:
    """A file to read bytes from: ``-`` is standard input, ``.gz`` is unpacked."""
    if name == STDIN:
        yield sys.stdin.buffer
    elif name.endswith(".gz"):
        with gzip.open(name, "rb") as stream:
            yield stream
    else:
        with open(name, "rb") as stream:  # noqa: PTH123 - the name is kept as given, for messages
            yield stream


def read_lines(name: str, decoder: "msgspec.json.Decoder[Decoded]") -> Iterator[tuple[int, Decoded]]:
    """The JSON lines of a file with their numbers; blank lines are left out.

    Raises:
        InputError: With line, and column or key.
    """
    label = "standard input" if name == STDIN else name
    try:
        with opened(name) as stream:
            number = 0
            while line := stream.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(line) > LINE_BYTES_MAX:
                    raise InputError(f"{label}:{number}: the line has more than {LINE_BYTES_MAX:,} bytes")
                if not line.isspace():
                    yield number, decode_line(line, decoder, label, number)
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{label}: not a whole gzip file: {error}") from None


def decode_line(line: bytes, decoder: "msgspec.json.Decoder[Decoded]", name: str, number: int) -> Decoded:
    """One JSON line."""
    try:
        line.decode()
        return decoder.decode(line)
    except UnicodeDecodeError as error:
        column = _column(line, error.start)
        raise InputError(f"{name}:{number}:{column}: byte 0x{line[error.start]:02x} is not UTF-8") from None
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at `$")
        key = at.rstrip("`").lstrip(".")
        raise InputError(f"{name}:{number}: {key + ': ' if key else ''}{what[:1].lower()}{what[1:]}") from None
    except msgspec.DecodeError as error:
        what, offset = json_fault(str(error), len(line.rstrip()))
        raise InputError(f"{name}:{number}:{_column(line, offset)}: {what}") from None
    except RecursionError:
        raise InputError(f"{name}:{number}: the JSON nests too deeply") from None


def json_fault(message: str, length: int) -> tuple[str, int]:
    """What a JSON error says, and at which byte."""
    found = re.fullmatch(r"JSON is malformed: (.*) \(byte (\d+)\)", message)
    if found:
        return f"bad JSON: {found[1]}", int(found[2])
    return "bad JSON: it ends too early" if "truncated" in message else f"bad JSON: {message}", length


def _column(line: bytes, offset: int) -> int:
    return len(line[:offset].decode(errors="replace")) + 1
