"""Text and tables of the page. Everything that is not written here as a literal passes ``text``."""

import html
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

TEXT_CHARACTERS_MAX: Final = 300
PARAGRAPH_CHARACTERS_MAX: Final = 2_000
# A cell of no more stays in one line: the id of a decision fits.
SHORT_CHARACTERS_MAX: Final = 40
# All that is not plain ASCII is looked at by its category.
_UNUSUAL: Final = re.compile("[^\x20-\x7e]")
# Controls, what changes the direction of text or cannot be seen, private use, halves of pairs, line ends.
_HIDDEN: Final = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})


def text(value: str, most: int = TEXT_CHARACTERS_MAX) -> str:
    r"""Text that a browser shows and does not obey.

    Args:
        value: Anything, of any length.
        most: Characters that are shown.

    Example:
        >>> from tollkeeper.report.markup import text
        >>> print(text("<b>" + chr(0x202E)))
        &lt;b&gt;\u{202e}
    """
    if len(value) > most:
        value = f"{value[: most - 3]}..."
    return html.escape(_UNUSUAL.sub(_visible, value))


def _visible(found: re.Match[str]) -> str:
    char = found[0]
    return f"\\u{{{ord(char):x}}}" if unicodedata.category(char) in _HIDDEN else char


class Markup(str):
    """What is markup already, and stands in a cell as it is."""

    __slots__ = ()


class Amount(str):
    """A number that is written as text, such as an amount of money; it stands to the right."""

    __slots__ = ()


class Stamp(str):
    """A time, which stays in one line."""

    __slots__ = ()


Cell = str | int | Markup | Amount | Stamp


def cell(value: Cell) -> str:
    """What stands in a cell: numbers with separators, texts escaped, markup as it is."""
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, Markup) else text(value)


def table(  # noqa: PLR0913 - the parts of a table
    id_: str,
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    left_out: int = 0,
    what: str = "rows",
) -> Iterator[str]:
    """Lines of a table; columns of numbers stand to the right.

    Args:
        id_: Of the element, to be linked to.
        caption: What it shows.
        heads: Of the columns.
        rows: The cells. The first of a row names it.
        left_out: How many rows are not shown.
        what: A plural noun for those.
    """
    # Not a caption element, which would be as wide as the table and be cut with it on a telephone.
    yield f'<p class="caption" id="{id_}-caption">{text(caption)}</p>'
    named = f'aria-labelledby="{id_}-caption"'
    yield f'<div class="wide" role="region" tabindex="0" {named}><table id="{id_}" {named}>'
    body, numbers = list(rows), set[int]()
    if body:
        numbers = {place for place, value in enumerate(body[0]) if isinstance(value, int | Amount)}
    yield "<thead><tr>"
    yield "".join(
        f'<th scope="col"{" class=number" if place in numbers else ""}>{text(head)}</th>'
        for place, head in enumerate(heads)
    )
    yield "</tr></thead><tbody>"
    for row in body:
        first, *more = row
        cells = "".join(f"<td{_kind(value)}>{cell(value)}</td>" for value in more)
        kept = " class=stamp" if isinstance(first, Stamp) else ""
        yield f'<tr><th scope="row"{kept}>{cell(first)}</th>{cells}</tr>'
    if not body:
        yield f'<tr><td colspan="{len(heads)}">none</td></tr>'
    yield "</tbody>"
    if left_out:
        yield f'<tfoot><tr><td colspan="{len(heads)}">and {left_out:,} more {text(what)}</td></tr></tfoot>'
    yield "</table></div>"


def _kind(value: Cell) -> str:
    if isinstance(value, int | Amount):
        return " class=number"
    if isinstance(value, Markup):
        return " class=draw"
    return " class=long" if len(value) > SHORT_CHARACTERS_MAX else ""


def details(summary: str, inside: Iterable[str]) -> Iterator[str]:
    """Lines that a reader opens, without a script."""
    yield f"<details><summary>{text(summary)}</summary>"
    yield from inside
    yield "</details>"


def section(id_: str, title: str, lines: Iterable[str]) -> Iterator[str]:
    """A section under its heading."""
    yield f'<section aria-labelledby="{id_}"><h2 id="{id_}">{text(title)}</h2>'
    yield from lines
    yield "</section>"


def paragraph(value: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{f' class={kind}' if kind else ''}>{text(value, PARAGRAPH_CHARACTERS_MAX)}</p>"
