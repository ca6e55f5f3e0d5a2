"""The sections of the page, from counts to HTML. Each chart has its numbers in a table; each table has a bound."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tollkeeper.observed import (
    ALLOWED,
    DENIED,
    UNLOGGED,
    WOULD_DENY,
    Breakdown,
    Event,
    Observed,
    Row,
    Span,
    Spending,
    Stretches,
    name,
)
from tollkeeper.reevaluate import is_list, is_object
from tollkeeper.report import charts
from tollkeeper.report.charts import Series
from tollkeeper.report.markup import Cell, Stamp, cell, details, paragraph, section, table, text
from tollkeeper.report.style import STYLE

__all__ = ["Bin", "Integrity", "Page", "page"]

ROWS_MAX: Final = 50
EVENT_ROWS_MAX: Final = 100
BARS_MAX: Final = 48
BUDGETS_DRAWN_MAX: Final = 6
LANES_MAX: Final = 16
# The names of the lanes take a good part of a narrow page.
LANE_LABELS_MAX: Final = 4
BINS_MAX: Final = 48
FINDINGS_MAX: Final = 60
MEMBERS_MAX: Final = 8
# Nothing from elsewhere, and no script: the browser itself refuses what would have slipped through.
CONTENT_SECURITY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_ENVELOPE: Final = frozenset({"v", "kind", "producer", "seq", "time"})

Bin = tuple[int, int, int]
"""From and to, in nanoseconds, and how many checks took that long."""


@dataclass(frozen=True)
class Integrity:
    """What verifying the log has found, in words."""

    verdict: str
    """``ok``, ``unanchored``, ``incomplete`` or ``broken``."""
    findings: Sequence[tuple[str, Sequence[str]]]
    """By what was looked at: lines."""
    logs: Sequence[tuple[str, int, int, bool]]
    """Each log: its name, its entries, those under a signed checkpoint, and whether the key was given."""


@dataclass(frozen=True)
class Page:
    """What the page is made of besides the counts."""

    title: str
    source: str
    """Which log, and which part of it."""
    made: str
    """When, and by what."""
    integrity: Integrity | None = None
    """`None` if it was not verified."""
    latency: Sequence[Bin] | None = None
    """How long checks took; `None` if nobody kept that."""
    faults: Sequence[str] = ()
    """What could not be read."""


def page(observed: Observed, about: Page) -> str:
    """The whole page.

    Args:
        observed: The counts.
        about: Everything else.
    """
    return "\n".join([*_head(about), *_main(observed, about), *_foot(observed, about)]) + "\n"


def _head(about: Page) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">'
    yield f"<title>{text(about.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>"
    yield f"<header><h1>{text(about.title)}</h1>{paragraph(about.source, 'soft')}"
    for fault in about.faults[:FINDINGS_MAX]:
        yield f'<p class="bad">{text(f"Could not be read to its end: {fault}")}</p>'


def _main(observed: Observed, about: Page) -> Iterator[str]:
    span = observed.span(BARS_MAX)
    parts = [
        ("time", "Decisions over time", _over_time(observed, span)),
        ("why", "Denials by code and policy", _denials(observed)),
        ("who", "Agents and tools", _callers(observed)),
        ("budgets", "Budgets", _budgets(observed, span)),
        *([("latency", "Latency of checks", _latency(about.latency))] if about.latency else []),
        ("integrity", "Integrity of the log", _integrity(about.integrity)),
        ("events", "What happened to the gate", _events(observed, span)),
    ]
    links = "".join(f'<li><a href="#{id_}">{text(title)}</a></li>' for id_, title, _ in parts)
    yield f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n<main>'
    yield from _cards(observed, about.integrity)
    for id_, title, lines in parts:
        yield from section(id_, title, lines)
    yield "</main>"


def _foot(observed: Observed, about: Page) -> Iterator[str]:
    yield "<footer>"
    yield paragraph(
        "A call is a decision of the gate: allowed, denied, or let through in shadow mode though it would be denied. "
        "Times are in UTC. What is longer than a table is counted below it."
    )
    if observed.unreadable:
        yield paragraph(f"{observed.unreadable:,} entries could not be read and are in no table.")
    if observed.timeless:
        yield paragraph(f"{observed.timeless:,} entries have no usable time: they are in the tables and in no chart.")
    yield f"{paragraph(about.made)}</footer>\n</body>\n</html>"


# --- the numbers on top -----------------------------------------------------------------------------------------------

_VERDICTS: Final = {
    "ok": ("verified", "good"),
    "unanchored": ("unanchored", "warn"),
    "incomplete": ("incomplete", "warn"),
    "broken": ("BROKEN", "bad"),
}


def _cards(observed: Observed, integrity: Integrity | None) -> Iterator[str]:
    calls = observed.calls
    cards: list[tuple[str, Cell, str]] = [
        ("calls", calls.calls, ""),
        ("allowed", calls.allowed, ""),
        ("denied", calls.denied, ""),
        ("would be denied", calls.would_deny, ""),
        ("agents", len(observed.by_principal.rows), ""),
    ]
    verdict, kind = ("not verified", "warn") if integrity is None else _VERDICTS.get(integrity.verdict, ("?", "bad"))
    cards.append(("log", verdict, kind))
    yield '<dl class="cards">'
    for label, value, kind in cards:
        yield f"<div><dt>{text(label)}</dt><dd{f' class={kind}' if kind else ''}>{cell(value)}</dd></div>"
    yield "</dl>"


# --- decisions --------------------------------------------------------------------------------------------------------

_FATES: Final = (("allowed", ALLOWED), ("denied", DENIED), ("would be denied (shadow)", WOULD_DENY))


def _over_time(observed: Observed, span: Span | None) -> Iterator[str]:
    if span is None or not observed.calls.calls:
        yield paragraph("No calls.")
    else:
        cells, labels = observed.over_time.over(span), charts.moments(span)
        series = [Series(key, label, [one[key] for one in cells]) for label, key in _FATES]
        yield from charts.bars(
            f"Calls by outcome; each bar is {charts.length(span.length_ms)}",
            labels,
            series,
            marks=charts.marks(span),
        )
        rows = [
            (label, one[ALLOWED], one[DENIED], one[WOULD_DENY], one.total())
            for label, one in zip(labels, cells, strict=True)
            if one.total()
        ]
        heads = ("from (UTC)", "allowed", "denied", "would be denied", "all")
        yield from details(
            "Exact numbers", table("t-time", f"Calls from {observed.first} to {observed.last}", heads, rows)
        )
    if observed.unlogged.total():
        denied, passed = (observed.unlogged[kind] for kind in UNLOGGED)
        counts = f"{denied:,} calls were denied and {passed:,} let through"
        yield paragraph(
            f"Besides, {counts} without an entry, because the log had no room; they are in no table.", "warn"
        )
    rows = [
        (key, row.allowed, row.denied, row.would_deny, row.calls)
        for key, row in observed.by_mode.most(_calls)[:ROWS_MAX]
    ]
    heads = ("mode", "allowed", "denied", "would be denied", "all")
    yield from table("t-mode", "Calls by the gate's mode when they were made", heads, rows)


def _calls(row: Row) -> int:
    return row.calls


def _against(row: Row) -> int:
    return row.against


def _denials(observed: Observed) -> Iterator[str]:
    yield from _broken_down("code", "Denied calls by code", observed.by_code, _against)
    yield from _broken_down(
        "policy",
        "Denied calls by policy; a call that several policies deny counts for each of them",
        observed.by_policy,
        _against,
    )


def _callers(observed: Observed) -> Iterator[str]:
    yield from _broken_down("agent", "Calls by agent, those with most denials first", observed.by_principal, _against)
    yield from _broken_down("tool", "Calls by tool, those called most first", observed.by_tool, _calls, whole=True)


def _broken_down(
    what: str, caption: str, breakdown: Breakdown, by: Callable[[Row], int], *, whole: bool = False
) -> Iterator[str]:
    """A table with a bar in each row. Rows of agents and tools have allowed calls too."""
    whole = whole or what == "agent"
    rows = sorted(breakdown.rows.items(), key=lambda pair: (-by(pair[1]), -pair[1].calls, pair[0]))
    most = max((row.calls if whole else row.against for _, row in rows), default=1)
    heads = [what, *(["calls", "allowed"] if whole else []), "denied", "would be denied", "share", "newest id"]
    cells = list[list[Cell]]()
    for key, row in rows[:ROWS_MAX]:
        parts = [(DENIED, row.denied), (WOULD_DENY, row.would_deny)]
        counts: list[Cell] = [row.denied, row.would_deny]
        if whole:
            parts, counts = [(ALLOWED, row.allowed), *parts], [row.calls, row.allowed, *counts]
        cells.append([key, *counts, charts.share(parts, most), row.examples[-1] if row.examples else ""])
    what = {"policy": "policies"}.get(what, f"{what}s")
    yield from table(f"t-{heads[0]}", caption, heads, cells, left_out=max(0, len(rows) - ROWS_MAX), what=what)


# --- budgets ----------------------------------------------------------------------------------------------------------


def _budgets(observed: Observed, span: Span | None) -> Iterator[str]:
    budgets = observed.budgets
    if not budgets.rows:
        yield paragraph("No call names a budget.")
        return
    yield paragraph(
        "Reserved is what the gate set aside when it allowed a call, the most that it could cost. Reported is what the "
        "outcomes of model calls say was used: tokens of prompts (cached ones included) and of answers. An amount "
        "counts at the budget that the run named, not again at those above it. Neither is the ledger's balance: "
        "see `tollkeeper budget show`.",
        "soft",
    )
    if span is not None:
        empty = Stretches()
        for caption, stretches, money in (
            ("Model tokens reported by outcomes, by budget", budgets.reported, False),
            ("Tokens reserved at decisions (worst case), by budget", budgets.reserved.get("tokens", empty), False),
            ("USD reserved at decisions (worst case), by budget", budgets.reserved.get("nano_usd", empty), True),
        ):
            yield from _spent(caption, stretches, span, money=money)
    rows = sorted(budgets.rows.items(), key=lambda pair: (-pair[1].reserved["nano_usd"], -_tokens(pair[1]), pair[0]))
    heads = (
        *("budget", "paid calls", "refused", "requests reserved", "tokens reserved"),
        *("tokens reported", "of them cached", "USD reserved"),
    )
    cells = [_budget(path, one) for path, one in rows[:ROWS_MAX]]
    caption = "What budgets paid for. Refused are calls that a budget denied, or would have in shadow mode"
    yield from table("t-budget", caption, heads, cells, left_out=max(0, len(rows) - ROWS_MAX), what="budgets")
    if budgets.unattributed:
        more = "outcomes report usage for calls that no budget paid for, or that are not in this part of the log"
        yield paragraph(f"{budgets.unattributed:,} {more}.", "soft")


def _tokens(one: Spending) -> int:
    return max(one.reserved["tokens"], one.tokens_reported)


def _budget(path: str, one: Spending) -> tuple[Cell, ...]:
    counts = (one.reserved["requests"], one.reserved["tokens"], one.tokens_reported, one.reported["cached"])
    return (path, one.calls, one.refused, *counts, charts.dollars(one.reserved["nano_usd"]))


def _spent(caption: str, stretches: Stretches, span: Span, *, money: bool) -> Iterator[str]:
    totals = stretches.keys
    if not totals.total():
        return
    first = sorted(totals, key=lambda path: (-totals[path], path))[:BUDGETS_DRAWN_MAX]
    cells, labels = stretches.over(span), charts.moments(span)
    series = [Series(f"c{place}", path, [one[path] for one in cells]) for place, path in enumerate(first)]
    others = len(totals) - len(first)
    if others:
        rest = [one.total() - sum(one[path] for path in first) for one in cells]
        series.append(Series("c6", f"{others:,} other budgets", rest))
    unit = f"each bar is {charts.length(span.length_ms)}"
    yield from charts.bars(f"{caption}; {unit}", labels, series, marks=charts.marks(span), money=money)
    write: Callable[[int], Cell] = charts.dollars if money else int
    rows = [
        (label, *(write(one.values[place]) for one in series), write(cells[place].total()))
        for place, label in enumerate(labels)
        if cells[place].total()
    ]
    id_ = f"t-{caption.partition(',')[0].replace(' ', '-').replace('(', '').replace(')', '').lower()}"
    heads = ("from (UTC)", *(one.label for one in series), "all")
    yield from details("Exact numbers", table(id_, caption, heads, rows))


# --- latency ----------------------------------------------------------------------------------------------------------


def _latency(latency: Sequence[Bin] | None) -> Iterator[str]:
    counted = [place for place, one in enumerate(latency or ()) if one[2] > 0]
    if not counted or latency is None:
        yield paragraph("No checks were timed.")
        return
    bins = latency[counted[0] : counted[-1] + 1]
    total = sum(count for *_, count in bins)
    yield paragraph(
        f"{total:,} checks that were timed, one of sixteen. "
        + "; ".join(_percentile(bins, total, part) for part in (50, 99, 99.9))
        + "."
    )
    grouped = _grouped(bins)
    labels = [charts.nanoseconds(high) for _, high, _ in grouped]
    counts = [count for *_, count in grouped]
    yield from charts.bars("Checks by how long they took, up to", labels, [Series("allowed", "checks", counts)])
    rows = [(charts.nanoseconds(low), charts.nanoseconds(high), count) for low, high, count in grouped]
    yield from details("Exact numbers", table("t-latency", "Checks by duration", ("from", "below", "checks"), rows))


def _percentile(bins: Sequence[Bin], total: int, part: float) -> str:
    seen = 0
    for _, high, count in bins:
        seen += count
        if seen * 100 >= total * part:
            return f"{part} % took less than {charts.nanoseconds(high)}"
    return f"{part} %: not known"


def _grouped(bins: Sequence[Bin]) -> list[Bin]:
    """Neighbours taken together, until there are few enough to be drawn."""
    every = -(-len(bins) // BINS_MAX) or 1
    groups = [bins[first : first + every] for first in range(0, len(bins), every)]
    return [(group[0][0], group[-1][1], sum(count for *_, count in group)) for group in groups]


# --- integrity --------------------------------------------------------------------------------------------------------

_MEANINGS: Final = {
    "ok": "Entries, tree and checkpoints agree, nothing is missing, and all of it is under a signature.",
    "unanchored": "Nothing is broken, but some entries are under no signed checkpoint: whoever can write there can "
    "have made them.",
    "incomplete": "What is there holds together, but entries are missing.",
    "broken": "The log was changed, or is damaged. What it says cannot be relied on.",
}


def _integrity(integrity: Integrity | None) -> Iterator[str]:
    if integrity is None:
        yield paragraph("The log was not verified for this page.", "warn")
        return
    verdict, kind = _VERDICTS.get(integrity.verdict, ("unknown", "bad"))
    yield f'<p><strong class="{kind}">{text(verdict)}</strong> {text(_MEANINGS.get(integrity.verdict, ""))}</p>'
    yield '<dl class="findings">'
    for what, lines in integrity.findings:
        shown = "<br>".join(text(line.strip()) for line in lines[:FINDINGS_MAX])
        more = f"<br>and {len(lines) - FINDINGS_MAX:,} more" if len(lines) > FINDINGS_MAX else ""
        yield f"<dt>{text(what)}</dt><dd>{shown}{more}</dd>"
    yield "</dl>"
    rows = [
        (label, size, _range(signed), size - min(size, signed), "given" if given else "found beside the log")
        for label, size, signed, given in integrity.logs[:ROWS_MAX]
    ]
    heads = ("log", "entries", "under a signed checkpoint", "not yet signed", "key")
    left_out = max(0, len(integrity.logs) - ROWS_MAX)
    yield from table("t-log", "Logs and how far they are anchored", heads, rows, left_out=left_out, what="logs")


def _range(signed: int) -> str:
    return f"entries 0 to {signed - 1:,}" if signed else "none"


# --- events -----------------------------------------------------------------------------------------------------------


def _events(observed: Observed, span: Span | None) -> Iterator[str]:
    kinds = observed.event_kinds
    if not kinds:
        yield paragraph("Nothing but calls.")
        return
    if span is not None and observed.event_times.keys:
        fine = _finer(observed.event_times, span)
        cells, labels = observed.event_times.over(fine), charts.moments(fine)
        most = sorted(kinds, key=lambda kind: (_rank(kind), -kinds[kind], kind))[:LANES_MAX]
        lanes = [(kind, [one[kind] for one in cells]) for kind in most]
        yield from charts.lanes(
            "Loads, switches, revocations, approvals and what befell the log, by kind",
            labels,
            lanes,
            charts.marks(fine, LANE_LABELS_MAX),
        )
    yield from table("t-kind", "Entries by kind", ("kind", "entries"), list(kinds.most_common()))
    newest = sorted(observed.events, key=lambda event: event.time, reverse=True)
    rows = [(Stamp(event.time), event.kind, _said(event)) for event in newest[:EVENT_ROWS_MAX]]
    left_out = kinds.total() - len(rows)
    yield from table(
        "t-event", "The newest of them", ("time (UTC)", "kind", "what"), rows, left_out=left_out, what="entries"
    )


def _finer(stretches: Stretches, span: Span) -> Span:
    """The same time in smaller steps, as far as the counts have them."""
    for times in (4, 3, 2):
        length_ms = span.length_ms // times
        if span.length_ms % times == 0 and length_ms % stretches.length_ms == 0:
            return Span(span.start_ms, length_ms, span.count * times)
    return span


# What changes the rules comes first, what belongs to every start last.
_RANKS: Final = Counter({"revoke": -9, "approve": -8, "policy_load": -7, "mode": -6, "limit_changed": -5, "start": 1,
                         "stop": 2, "note": 3, "erasure": 3})  # fmt: skip


def _rank(kind: str) -> int:
    return _RANKS[kind]


def _said(event: Event) -> str:
    """An event in words, where its kind has some; else its members."""
    members = event.members
    if event.kind == "revoke":
        return _revoked(members)
    if event.kind == "approve":
        word = "granted" if members.get("granted") is True else "rejected"
        word = f"not {word}, although recorded:" if members.get("failed") is True else word
        return f"{word} {name(members.get('approval'))} by {name(members.get('by'), 'somebody')}"
    said = [f"{key}={_short(value)}" for key, value in members.items() if key not in _ENVELOPE]
    return ", ".join(said[:MEMBERS_MAX])


def _revoked(members: dict[str, Any]) -> str:
    target = members.get("target")
    what = f"{name(target.get('kind'))} {name(target.get('name'))}".strip() if is_object(target) else name(target)
    word = "restored" if members.get("restored") is True else "revoked"
    word = f"not {word}, although recorded:" if members.get("failed") is True else word
    by = "noticed by a process" if members.get("observed") is True else f"by {name(members.get('by'), 'somebody')}"
    reason = f": {name(members.get('reason'))}" if members.get("reason") else ""
    return f"{word} {what}, {by}{reason}"


def _short(value: object) -> str:
    if is_list(value) and len(value) > MEMBERS_MAX:
        return f"{len(value)} of them"
    return name(value)
