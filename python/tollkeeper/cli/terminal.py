"""What commands print, and how their failures are reported.

Text that comes from files may hold control characters which a terminal would obey, so it is escaped before people see
it. Colour and the progress bar appear only on a terminal. This module reads no files.
"""

import json
import os
import re
import shutil
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TextIO, TypeVar

from tollkeeper.errors import InternalError, TollkeeperError

EXIT_OK: Final = 0
EXIT_NO: Final = 1
EXIT_BAD_INPUT: Final = 2
EXIT_DEFECT: Final = 70

# Control characters, and those that change the direction of text or cannot be seen.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
# As _HIDDEN, for texts of several lines.
_HIDDEN_BUT_LINES = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
COLOURS: Final = {"red": "31", "green": "32", "yellow": "33", "bold": "1"}
# A column that is narrower than this is harder to read than a line that is too long.
WRAPPED_COLUMNS_MIN: Final = 24
BAR_WIDTH: Final = 30
BAR_INTERVAL_SECONDS: Final = 0.1

Item = TypeVar("Item")


class InputError(Exception):
    """What a person gave cannot be used.

    Args:
        message: What is wrong and where, without a leading "error".
        hint: What to do about it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


def shown(text: str) -> str:
    """Text as one line that a terminal prints and does not obey."""
    return _HIDDEN.sub(_escaped, text)


def one_line(text: str) -> str:
    """A message of several lines as one, with a space for each break."""
    return " ".join(text.split("\n")) if "\n" in text else text


def shown_lines(text: str) -> str:
    """As ``shown``, but line breaks stay."""
    return _HIDDEN_BUT_LINES.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return {9: "\\t", 10: "\\n", 13: "\\r"}.get(code, f"\\u{{{code:x}}}")


def out(text: str = "") -> None:
    """Prints a line of the result."""
    sys.stdout.write(text + "\n")


def out_json(value: object) -> None:
    """Prints a line of JSON in ASCII, which no terminal and no encoding can spoil."""
    sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")


def note(text: str) -> None:
    """Prints a line that is not part of the result."""
    sys.stderr.write(text + "\n")


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Text in a colour, if the stream (standard output, unless it is given) is a terminal that shows colours."""
    plain = not (stream or sys.stdout).isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def error(message: str, hint: str | None = None) -> None:
    """Prints an error and what to do about it."""
    note(f"{coloured('error:', 'red', sys.stderr)} {shown_lines(message)}")
    if hint:
        note(f"{coloured('hint:', 'bold', sys.stderr)} {shown_lines(hint)}")


def warning(message: str) -> None:
    """Prints a warning."""
    note(f"{coloured('warning:', 'yellow', sys.stderr)} {shown_lines(message)}")


def report_failure(failure: Exception) -> int:
    """Prints why a command could not do its work and returns the exit code."""
    if isinstance(failure, InputError):
        error(str(failure), failure.hint)
    elif isinstance(failure, InternalError):
        error(f"a defect of tollkeeper: {failure}", failure.help)
        return EXIT_DEFECT
    elif isinstance(failure, TollkeeperError):
        details = tuple(getattr(failure, "errors", ()))
        for detail in details:
            where = place(detail.file, detail.line, detail.column)
            error(
                f"{where}{detail.message}" + (f"\n  {detail.offending.rstrip()}" if detail.offending else ""),
                detail.help,
            )
        if not details:
            error(str(failure), failure.help)
    elif isinstance(failure, OSError):
        name = failure.filename if isinstance(failure.filename, str | bytes) else None
        error(f"{os.fsdecode(name)}: {_reason(failure)}" if name is not None else _reason(failure))
    elif isinstance(failure, MemoryError):
        error("not enough memory")
    else:
        traceback.print_exception(failure)
        error("a defect of tollkeeper; the lines above say where")
        return EXIT_DEFECT
    return EXIT_BAD_INPUT


def place(file: str | None, line: int = 0, column: int = 0) -> str:
    """``file:line:column: ``, without what is not known."""
    parts = [file or "", str(line) if line else "", str(column) if line and column else ""]
    text = ":".join(part for part in parts if part)
    return f"{text}: " if text else ""


def _reason(failure: OSError) -> str:
    text = failure.strerror or str(failure)
    return text[:1].lower() + text[1:]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table, columns padded but for the last."""
    cells = [tuple(heads), *(tuple(shown(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        yield "  ".join([*padded, row[-1]]).rstrip()


def wrapped(text: str, indent: int) -> list[str]:
    """A text as the lines that fit beside what stands before it.

    Args:
        text: One line; it is not escaped here.
        indent: How many columns stand before each line. What is read by a program is not wrapped.
    """
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return [text]
    width = max(shutil.get_terminal_size().columns - indent, WRAPPED_COLUMNS_MIN)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """``1 policy``, ``2 policies``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


@contextmanager
def progress(items: Iterable[Item], total: int | None, what: str) -> Generator[Iterator[Item]]:
    """Hands the items on and draws a bar on standard error while they last, if that is a terminal.

    Args:
        items: What is worked on.
        total: How many there are, if known.
        what: A plural noun.
    """
    if not sys.stderr.isatty():
        yield iter(items)
        return
    try:
        yield _drawn(items, total, what)
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


@contextmanager
def counter(what: str) -> Generator[Callable[[int, int], None]]:
    """A function that draws a bar on standard error from what is done and what there is, if that is a terminal.

    Args:
        what: A plural noun.
    """
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return

    def draw(done: int, total: int) -> None:
        sys.stderr.write("\r\x1b[K" + _bar(done, total, what))
        sys.stderr.flush()

    try:
        yield draw
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _drawn(items: Iterable[Item], total: int | None, what: str) -> Iterator[Item]:
    last = 0.0
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= BAR_INTERVAL_SECONDS:
            last = now
            sys.stderr.write("\r\x1b[K" + _bar(done, total, what))
            sys.stderr.flush()
        yield item


def _bar(done: int, total: int | None, what: str) -> str:
    if not total:
        return f"{done:,} {what}"
    filled = min(BAR_WIDTH, BAR_WIDTH * done // total)
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}] {done:,} of {total:,} {what}"
