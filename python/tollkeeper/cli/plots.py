"""Bars of characters, and a plot as SVG, of what a replay did in each window. It computes nothing but lengths."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

BAR_WIDTH: Final = 24

WIDTH: Final = 960
LEFT: Final = 92
RIGHT: Final = 20
PANEL_HEIGHT: Final = 190
PANEL_TOPS: Final = (64, 316)
HEIGHT: Final = 570
TICKS: Final = 5
LABELS_MAX: Final = 12
# Left of the legend.
NOTE_CHARACTERS_MAX: Final = 110
COLOURS: Final = {"used": "#3465a4", "admitted": "#4e9a06", "denied": "#cc0000", "limit": "#555753"}


class Row(NamedTuple):
    """One window."""

    label: str
    admitted: int
    denied: int
    used: int
    limit: int | None


def bar(used: int, held: int, size: int, width: int = BAR_WIDTH) -> str:
    """Used as ``#``, held as ``=``, the rest as ``.``; what is not zero can be seen, and no more than everything."""
    if size <= 0:
        return ("#" if used > 0 else "=" if held > 0 else ".") * width
    first = min(width, -(-max(0, used) * width // size))
    second = min(width - first, -(-max(0, held) * width // size))
    return "#" * first + "=" * second + "." * (width - first - second)


def timeline(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """Cells of a table with a bar of what was used in each window; ``|`` is the limit."""
    size = max([1, *(row.used for row in rows), *(row.limit or 0 for row in rows)])
    cells = [(f"{row.admitted:,}", f"{row.denied:,}", f"{row.used:,}", _limit(row.limit)) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(4)] if cells else []
    for row, numbers in zip(rows, cells, strict=True):
        drawn = bar(row.used, 0, size)
        if row.limit is not None:
            at = min(BAR_WIDTH - 1, row.limit * BAR_WIDTH // size)
            drawn = drawn[:at] + "|" + drawn[at + 1 :]
        yield (row.label, *(text.rjust(width) for text, width in zip(numbers, widths, strict=True)), drawn)


def _limit(limit: int | None) -> str:
    return "-" if limit is None else f"{limit:,}"


def svg(rows: Sequence[Row], title: str, note: str) -> str:
    """Two panels over the same windows: tokens used against the limit, and requests admitted and denied."""
    parts = _head(title, note)
    used = [(row.used, 0) for row in rows]
    limits = [row.limit for row in rows if row.limit is not None]
    parts += _panel(PANEL_TOPS[0], "tokens used", rows, used, ("used", "used"), max(limits, default=None))
    counts = [(row.admitted, row.denied) for row in rows]
    parts += _panel(PANEL_TOPS[1], "requests", rows, counts, ("admitted", "denied"), None)
    return _whole(parts)


def compared(before: Sequence[Row], after: Sequence[Row], names: tuple[str, str], title: str, note: str) -> str:
    """Two panels over the same windows: what was admitted and denied, once and again."""
    parts = _head(title, note)
    for top, name, rows in zip(PANEL_TOPS, names, (before, after), strict=True):
        parts += _panel(top, name, rows, [(row.admitted, row.denied) for row in rows], ("admitted", "denied"), None)
    return _whole(parts)


def _head(title: str, note: str) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        '<g font-family="sans-serif" font-size="12" fill="#2e3436">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 24, title, size=16),
        _text(LEFT, 42, note[:NOTE_CHARACTERS_MAX], size=11),
    ]


def _whole(parts: list[str]) -> str:
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "start of the window (UTC)", anchor="middle"))
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _panel(  # noqa: PLR0913, PLR0917 - a place, what to draw there, and its name
    top: int,
    what: str,
    rows: Sequence[Row],
    stacks: Sequence[tuple[int, int]],
    names: tuple[str, str],
    limit: int | None,
) -> Iterator[str]:
    bottom = top + PANEL_HEIGHT
    step = _step(max([1, limit or 0, *(sum(stack) for stack in stacks)]))
    size = step * TICKS
    middle = (top + bottom) / 2
    yield f'<text x="18" y="{middle}" transform="rotate(-90 18 {middle})" text-anchor="middle">{what}</text>'
    for tick in range(TICKS + 1):
        y = bottom - PANEL_HEIGHT * tick / TICKS
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#d3d7cf"/>'
        yield _text(LEFT - 8, y + 4, f"{step * tick:,}", anchor="end")
    slot = (WIDTH - RIGHT - LEFT) / max(1, len(rows))
    every = -(-len(rows) // LABELS_MAX) or 1
    for number, (row, stack) in enumerate(zip(rows, stacks, strict=True)):
        x, y = LEFT + slot * number, float(bottom)
        for name, value in zip(names, stack, strict=True):
            height = PANEL_HEIGHT * value / size
            y -= height
            if value:
                yield _box(x + slot * 0.1, y, slot * 0.8, height, COLOURS[name], f"{row.label}: {value:,} {name}")
        if number % every == 0:
            yield f'<path d="M{x + slot / 2:.1f} {bottom}v4" stroke="#2e3436"/>'
            yield _text(x + slot / 2, bottom + 18, row.label, anchor="middle")
    yield f'<path d="M{LEFT} {top}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="#2e3436"/>'
    if limit is not None:
        y = bottom - PANEL_HEIGHT * limit / size
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{COLOURS["limit"]}" stroke-dasharray="6 3"/>'
    legend = [*dict.fromkeys(names), *(["limit"] if limit is not None else [])]
    for number, name in enumerate(legend):
        x = WIDTH - RIGHT - 84.0 * (len(legend) - number)
        yield _box(x, top - 16, 10, 10, COLOURS[name], name)
        yield _text(x + 15, top - 7, name)


def _step(largest: int) -> int:
    """A round number of which ``TICKS`` reach the largest value."""
    power = 1
    while True:
        for digit in (1, 2, 3, 4, 5, 8):
            if digit * power * TICKS >= largest:
                return digit * power
        power *= 10


def _box(x: float, y: float, width: float, height: float, colour: str, title: str) -> str:  # noqa: PLR0913, PLR0917 - a place, a size and what it is
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}">'
        f"<title>{escape(title)}</title></rect>"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
