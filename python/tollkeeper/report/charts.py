"""Charts of the page, as SVG that is as wide as the page and whose letters keep their size.

Across, places are per cent; upwards, pixels. So one drawing serves a telephone and a wall. It draws numbers as they
are given: scales begin at zero, and what is not zero can be seen.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tollkeeper.observed import DAY_MS, LENGTHS_MS, Span
from tollkeeper.report.markup import Amount, Markup, text

HEIGHT_PX: Final = 180
LABEL_PX: Final = 24
LANE_PX: Final = 26
TICKS: Final = 4
LABELS_MAX: Final = 8
# Labels for which there is room everywhere.
FEW: Final = 2
# Of a slot, what a bar leaves free.
GAP: Final = 0.14
# Where a label would leave a narrow page on the right, and any page.
RIGHT_PERCENT: Final = 86
END_PERCENT: Final = 95
CHARACTER_PX: Final = 7.2
MINUTE_MS: Final = 60_000
SECOND_NS: Final = 1_000_000_000


@dataclass(frozen=True)
class Series:
    """One colour of a chart."""

    kind: str
    """The class that colours it."""
    label: str
    values: Sequence[int]


def compact(value: int) -> str:
    """A number as an axis has it: 1.5k, 20M."""
    for size, letter in ((10**18, "E"), (10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return str(value)


def dollars(nano_usd: int) -> Amount:
    """An amount of money, exact: two places after the point, or as many as it needs."""
    whole, part = divmod(nano_usd, 10**9)
    return Amount(f"${whole:,}.{f'{part:09}'.rstrip('0').ljust(2, '0')}")


def bars(
    description: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    marks: Sequence[int] | None = None,
    money: bool = False,
) -> Iterator[str]:
    """A figure of stacked bars.

    Args:
        description: What it shows, for everybody.
        labels: Of the bars.
        series: The stacks, the lowest first, a value for each bar.
        marks: Which of the labels are written, below their bars.
        money: Whether values are billionths of a dollar.
    """
    write = dollars if money else compact
    totals = [sum(values) for values in zip(*(one.values for one in series), strict=True)]
    step = _step(max([1, *totals]))
    ticks = [step * tick for tick in range(TICKS + 1)]
    width = 12 + CHARACTER_PX * max(len(write(tick)) for tick in ticks)
    yield f"<figure><figcaption>{text(description)}</figcaption>"
    yield from _legend(series)
    yield '<div class="plot">'
    yield f'<svg width="{width:.0f}" height="{HEIGHT_PX + LABEL_PX + 8}" aria-hidden="true">'
    for tick, value in enumerate(ticks):
        yield f'<text x="{width - 8:.0f}" y="{_tick(tick) + 4:.1f}" text-anchor="end">{text(write(value))}</text>'
    yield "</svg>"
    said = f"{description}. {len(labels)} bars; the numbers are in the table below."
    yield f'<svg width="100%" height="{HEIGHT_PX + LABEL_PX + 8}" role="img" aria-label="{text(said)}">'
    for tick in range(TICKS + 1):
        y = f"{_tick(tick):.1f}"
        yield f'<line class="{"grid" if tick else "base"}" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
    for number, label in enumerate(labels):
        yield from _stack(number, len(labels), label, series, step * TICKS, money=money)
    yield from _labels(labels, _every(len(labels)) if marks is None else marks, HEIGHT_PX + LABEL_PX + 4)
    yield "</svg></div></figure>"


def _tick(tick: int) -> float:
    return 8 + HEIGHT_PX - HEIGHT_PX * tick / TICKS


def _stack(  # noqa: PLR0913 - a place, what to draw there, and its scale
    number: int, count: int, label: str, series: Sequence[Series], most: int, *, money: bool
) -> Iterator[str]:
    slot = 100 / count
    # One or two bars need not fill the page.
    wide = min(slot * (1 - GAP), 8.0)
    x, y = slot * number + (slot - wide) / 2, _tick(0)
    for one in series:
        value = one.values[number]
        if not value:
            continue
        height = max(1.0, HEIGHT_PX * value / most)
        y -= height
        amount = dollars(value) if money else f"{value:,}"
        title = text(f"{label}: {amount} {one.label}")
        yield (
            f'<rect class="{one.kind}" x="{x:.2f}%" width="{wide:.2f}%" y="{y:.1f}" height="{height:.1f}">'
            f"<title>{title}</title></rect>"
        )


def _every(count: int) -> Sequence[int]:
    return range(0, count, -(-count // LABELS_MAX) or 1)


def _labels(labels: Sequence[str], marks: Sequence[int], y: int) -> Iterator[str]:
    for place, number in enumerate(marks):
        at = 100 * (number + 0.5) / len(labels)
        anchor = "end" if at > END_PERCENT else "middle"
        kinds = "minor " * (place % 2 and len(marks) > FEW) + "edge" * (at > RIGHT_PERCENT)
        yield f'<text class="{kinds}" x="{at:.2f}%" y="{y}" text-anchor="{anchor}">{text(labels[number])}</text>'


def _legend(series: Sequence[Series]) -> Iterator[str]:
    yield '<ul class="legend">'
    for one in series:
        swatch = f'<svg aria-hidden="true"><rect class="{one.kind}" width="11" height="11" rx="2"/></svg>'
        yield f"<li>{swatch}{text(one.label)}</li>"
    yield "</ul>"


def lanes(
    description: str, labels: Sequence[str], rows: Sequence[tuple[str, Sequence[int]]], marks: Sequence[int]
) -> Iterator[str]:
    """A figure of events: a lane for each kind, a mark where one or more happened.

    Args:
        description: What it shows.
        labels: Of the stretches of time.
        rows: The kinds, with how many events each stretch has.
        marks: Which of the labels are written.
    """
    width = 14 + CHARACTER_PX * max(len(name) for name, _ in rows)
    height = LANE_PX * len(rows)
    yield f'<figure><figcaption>{text(description)}</figcaption><div class="plot">'
    yield f'<svg width="{width:.0f}" height="{height + LABEL_PX}" aria-hidden="true">'
    for lane, (name, _) in enumerate(rows):
        yield f'<text x="0" y="{LANE_PX * lane + LANE_PX / 2 + 4:.0f}">{text(name)}</text>'
    yield "</svg>"
    said = f"{description}. {len(rows)} kinds; the events are in the table below."
    yield f'<svg width="100%" height="{height + LABEL_PX}" role="img" aria-label="{text(said)}">'
    for lane, (name, counts) in enumerate(rows):
        y = LANE_PX * lane + LANE_PX / 2
        yield f'<line class="grid" x1="0" x2="100%" y1="{y:.0f}" y2="{y:.0f}"/>'
        for number, count in enumerate(counts):
            if count:
                title = text(f"{labels[number]}: {count:,} {name}")
                at, radius = 100 * (number + 0.5) / len(counts), 4 if count == 1 else 6
                place = f'cx="{at:.2f}%" cy="{y:.0f}" r="{radius}"'
                yield f'<circle class="{_lane_kind(name)}" {place}><title>{title}</title></circle>'
    yield from _labels(labels, marks, height + LABEL_PX - 8)
    yield "</svg></div></figure>"


def _lane_kind(name: str) -> str:
    bad = {"revoke", "gap", "denied_unlogged", "recovery", "healed", "recovered", "epoch"}
    return "denied" if name in bad else "would_deny" if name == "approve" else "allowed"


def share(parts: Sequence[tuple[str, int]], most: int) -> Markup:
    """A bar in a cell of a table: coloured parts, against the largest row.

    Args:
        parts: Classes and counts.
        most: What fills the cell.
    """
    x, drawn = 0.0, list[str]()
    for kind, value in parts:
        if value:
            wide = max(0.6, 100 * value / max(1, most))
            drawn.append(f'<rect class="{kind}" x="{x:.2f}%" width="{wide:.2f}%" height="14"/>')
            x += wide
    return Markup(f'<svg aria-hidden="true">{"".join(drawn)}</svg>')


def _step(largest: int) -> int:
    """A round number of which ``TICKS`` reach the largest value."""
    power = 1
    while True:
        for digit in (1, 2, 3, 5):
            if digit * power * TICKS >= largest:
                return digit * power
        power *= 10


def moments(span: Span) -> list[str]:
    """When each bar of a span begins, as short as it can be said."""
    starts = [dt.datetime.fromtimestamp(start / 1_000, dt.UTC) for start in span.starts]
    one_day = starts[0].date() == starts[-1].date()
    if span.length_ms >= DAY_MS:
        form = "%-d %b" if starts[0].year == starts[-1].year else "%Y-%m-%d"
    else:
        clock = "%H:%M" if span.length_ms >= MINUTE_MS else "%H:%M:%S"
        form = clock if one_day else f"%-d %b {clock}"
    return [start.strftime(form) for start in starts]


def marks(span: Span, most: int = LABELS_MAX) -> list[int]:
    """Bars that begin at a round time, as many as there is room for labels."""
    for stride in LENGTHS_MS:
        found = [place for place, start in enumerate(span.starts) if start % stride == 0]
        if stride % span.length_ms == 0 and 0 < len(found) <= most:
            return found
    return list(_every(span.count))[:most]


def length(length_ms: int) -> str:
    """How long a bar is, in words."""
    for unit, size in (("day", DAY_MS), ("hour", 60 * MINUTE_MS), ("minute", MINUTE_MS)):
        if length_ms % size == 0:
            count = length_ms // size
            return f"one {unit}" if count == 1 else f"{count:,} {unit}s"
    count = length_ms // 1_000
    return "one second" if count == 1 else f"{count:,} seconds"


def nanoseconds(value: int) -> str:
    """A duration, in the unit that fits."""
    for unit, size in (("s", SECOND_NS), ("ms", 1_000_000), ("us", 1_000)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} ns"
