"""Counts what an audit log has seen: decisions by time, code, policy, agent and tool, what budgets set aside, events.

One pass over entries as they are stored, in memory that does not grow with the log: names are cut, tables and
stretches of time have a bound, and what does not fit is counted under a name of its own. Whoever wrote the log may have
meant harm, so a member of any form is taken or counted as unusable. Nothing is verified or decided here.
"""

import datetime as dt
import hashlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from tollkeeper.reevaluate import is_object, texts

__all__ = [
    "OTHERS",
    "Breakdown",
    "Event",
    "Observed",
    "Row",
    "Seen",
    "Span",
    "Spending",
    "Stretches",
    "amount",
    "asked",
    "deciders",
    "fate",
    "name",
    "time_ms",
]

# A name as tables show it. The digest behind a cut one keeps two long names apart.
NAME_CHARACTERS_MAX: Final = 120
NAME_KEPT_CHARACTERS: Final = 80
# Names of one table; the rest is one row.
NAMES_MAX: Final = 10_000
# Budgets of which the spending is kept by time.
BUDGETS_MAX: Final = 1_000
EXAMPLES_MAX: Final = 3
EVENTS_MAX: Final = 200
EVENT_KINDS_MAX: Final = 40
# Decisions that wait for their outcome: more than calls that are under way at once.
PENDING_MAX: Final = 200_000
# Cells of a timeline; past that it becomes coarser.
CELLS_MAX: Final = 4_096
# No number of an entry is larger.
AMOUNT_MAX: Final = (1 << 63) - 1
SECOND_MS: Final = 1_000
DAY_MS: Final = 86_400_000
# Each divides the next, so that coarser counts are exact.
_LADDER_MS: Final = tuple(
    1_000 * seconds for seconds in (1, 5, 15, 60, 300, 900, 3_600, 21_600, 86_400, 604_800, 2_419_200)
) + tuple(DAY_MS * days for days in (364, 3_640, 36_400, 364_000, 3_640_000))
# Lengths that people read well, in seconds.
_SHOWN_SECONDS: Final = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400),
    *(172_800, 604_800, 1_209_600, 2_419_200),
)
LENGTHS_MS: Final = tuple(SECOND_MS * seconds for seconds in _SHOWN_SECONDS)
_YEAR_FIRST: Final = 1970
_YEAR_LAST: Final = 9_900

OTHERS: Final = "(all others)"
NO_PERMIT: Final = "(no policy permits it)"
NARROWED: Final = "(the run's own narrowing)"
NOBODY: Final = "(nobody)"

ALLOWED: Final = "allowed"
DENIED: Final = "denied"
WOULD_DENY: Final = "would_deny"
FATES: Final = (ALLOWED, DENIED, WOULD_DENY)
# Entries that count calls which have none.
UNLOGGED: Final = ("denied_unlogged", "gap")


class Seen(msgspec.Struct):
    """The members of an entry that are counted. Each may be anything."""

    kind: Any = None
    time: Any = None
    id: Any = None
    of: Any = None
    principal: Any = None
    action: Any = None
    tool: Any = None
    model: Any = None
    arguments: Any = None
    decision: Any = None
    code: Any = None
    would_deny: Any = None
    policies: Any = None
    would_deny_policies: Any = None
    errors: Any = None
    budget: Any = None
    mode: Any = None
    bundle: Any = None
    status: Any = None
    usage: Any = None
    oversize: Any = None
    count: Any = None

    @classmethod
    def of_members(cls, members: dict[str, Any]) -> "Seen":
        """Out of an entry that was decoded already."""
        return cls(**{key: members[key] for key in cls.__struct_fields__ if key in members})


_SEEN: Final = msgspec.json.Decoder(Seen)
_MEMBERS: Final = msgspec.json.Decoder(dict[str, Any])


# --- names, amounts, times --------------------------------------------------------------------------------------------


def name(value: object, otherwise: str = "") -> str:
    """A value of an entry as a name: what is no text as JSON, what is long cut.

    Args:
        value: The member.
        otherwise: The name of an absent one.

    Example:
        >>> from tollkeeper.observed import name
        >>> name("search"), name(None, "(nobody)"), len(name("a" * 10_000)) < 120
        ('search', '(nobody)', True)
    """
    if value is None or value == "":
        return otherwise
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode(errors="replace")
    if len(text) <= NAME_CHARACTERS_MAX:
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
    return f"{text[:NAME_KEPT_CHARACTERS]}... ({len(text):,} characters, {digest})"


def amount(value: object) -> int:
    """A number of an entry; 0 for what cannot be one."""
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= AMOUNT_MAX
    return value if usable and isinstance(value, int) else 0


def time_ms(value: object) -> int | None:
    """When, in milliseconds since 1970; `None` for what is no time that a calendar has."""
    if not isinstance(value, str):
        return None
    try:
        moment = dt.datetime.fromisoformat(value)
    except ValueError:
        return None
    if moment.tzinfo is None or not _YEAR_FIRST < moment.year < _YEAR_LAST:
        return None
    return int(moment.timestamp() * 1_000)


def asked(seen: Seen) -> str:
    """What was to be done: a tool, ``call_model NAME``, or an action."""
    if seen.tool is None and is_object(seen.model) and "name" in seen.model:
        return name(f"call_model {name(seen.model['name'])}")
    return name(seen.tool if seen.tool is not None else seen.action, "(nothing named)")


def fate(seen: Seen) -> str | None:
    """What became of the call: ``allowed``, ``denied``, or ``would_deny`` where shadow mode let it through."""
    if seen.decision == "deny":
        return DENIED
    if seen.decision != "allow":
        return None
    return ALLOWED if seen.would_deny is None else WOULD_DENY


def deciders(seen: Seen) -> list[str]:
    """The policies that a denial, or a would-denial, came from; empty if it came from none.

    Where nothing permits, and where a run was narrowed, there is no policy: the words for that stand there instead.
    """
    denied = seen.decision == "deny"
    code = seen.code if denied else seen.would_deny
    if code == "policy.no_permit":
        return [NO_PERMIT]
    found = [name(one) for one in texts(seen.policies if denied else seen.would_deny_policies)]
    if code == "policy.error":
        return list(dict.fromkeys(found or [name(one) for one in texts(seen.errors)]))
    if code == "policy.forbidden":
        return found or [NARROWED]
    # Of an approval, the permits that ask for it; budgets and arguments are no matter of policies.
    return found if code == "approval.required" else []


# --- bounded tables ---------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """Calls of one name."""

    allowed: int = 0
    denied: int = 0
    would_deny: int = 0
    examples: deque[str] = field(default_factory=lambda: deque(maxlen=EXAMPLES_MAX))
    """Ids of the newest that were denied, or would have been."""

    @property
    def calls(self) -> int:
        """All of them."""
        return self.allowed + self.denied + self.would_deny

    @property
    def against(self) -> int:
        """Those that were denied or would have been."""
        return self.denied + self.would_deny


class Breakdown:
    """Calls by name. Beyond ``NAMES_MAX`` names the rest is counted as ``OTHERS``."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def add(self, key: str, became: str, id_: str = "") -> None:
        """Counts a call."""
        row = self.rows.get(key)
        if row is None:
            key = key if len(self.rows) < NAMES_MAX else OTHERS
            row = self.rows.setdefault(key, Row())
        if became == ALLOWED:
            row.allowed += 1
            return
        if became == DENIED:
            row.denied += 1
        else:
            row.would_deny += 1
        if id_:
            row.examples.append(id_)

    def most(self, by: Callable[[Row], int]) -> list[tuple[str, Row]]:
        """The rows for which there is something to count, the largest first."""
        found = [(key, row) for key, row in self.rows.items() if by(row)]
        return sorted(found, key=lambda pair: (-by(pair[1]), pair[0]))


@dataclass(frozen=True)
class Span:
    """A stretch of time, cut into bars of one length."""

    start_ms: int
    length_ms: int
    count: int

    @property
    def end_ms(self) -> int:
        """Behind the last bar."""
        return self.start_ms + self.length_ms * self.count

    @property
    def starts(self) -> range:
        """Where each bar begins."""
        return range(self.start_ms, self.end_ms, self.length_ms)


class Stretches:
    """Counts by time and name. Past ``CELLS_MAX`` stretches they become longer; nothing is lost but the detail."""

    def __init__(self) -> None:
        self._step = 0
        self._cells: dict[int, Counter[str]] = {}

    @property
    def length_ms(self) -> int:
        """How long a stretch is."""
        return _LADDER_MS[self._step]

    def add(self, at_ms: int, key: str, count: int = 1) -> None:
        """Counts something."""
        start = at_ms - at_ms % self.length_ms
        cell = self._cells.get(start)
        if cell is None:
            cell = self._cells.setdefault(start, Counter())
        cell[key] += count
        while len(self._cells) > CELLS_MAX and self._step + 1 < len(_LADDER_MS):
            self._coarsen()

    def _coarsen(self) -> None:
        self._step += 1
        finer, self._cells = self._cells, {}
        for start, cell in finer.items():
            self._cells.setdefault(start - start % self.length_ms, Counter()).update(cell)

    @property
    def keys(self) -> Counter[str]:
        """The names with what was counted in all."""
        found = Counter[str]()
        for cell in self._cells.values():
            found.update(cell)
        return found

    def span(self, most: int) -> Span | None:
        """The time over which anything was counted, in at most this many bars; `None` if nothing was."""
        if not self._cells:
            return None
        first, last = min(self._cells), max(self._cells)
        for length in (*LENGTHS_MS, *_LADDER_MS):
            start = first - first % length
            count = (last - start) // length + 1
            if length % self.length_ms == 0 and count <= most:
                return Span(start, length, count)
        length = -(-(last - first + 1) // (most * self.length_ms)) * self.length_ms
        return Span(first, length, (last - first) // length + 1)

    def over(self, span: Span) -> list[Counter[str]]:
        """The counts of each bar of a span, of which the length is a multiple of ``length_ms``."""
        bars = [Counter[str]() for _ in range(span.count)]
        for start, cell in self._cells.items():
            place = (start - span.start_ms) // span.length_ms
            if 0 <= place < span.count:
                bars[place].update(cell)
        return bars


# --- budgets ----------------------------------------------------------------------------------------------------------


@dataclass
class Spending:
    """What one budget paid for. Amounts count at the budget that paid, not again at those above it."""

    calls: int = 0
    """Allowed calls for which something was set aside."""
    refused: int = 0
    """Calls that this budget's run asked for and a budget refused, or would have."""
    reserved: Counter[str] = field(default_factory=Counter)
    """Set aside at the decision, the worst case, by unit."""
    reported: Counter[str] = field(default_factory=Counter)
    """What outcomes say was used, by name: ``prompt`` with its ``cached`` part, ``completion``, and others."""
    outcomes: int = 0
    """Outcomes that report tokens."""

    @property
    def tokens_reported(self) -> int:
        """Tokens of prompts and answers, as the provider counted them."""
        return self.reported["prompt"] + self.reported["completion"]


class _Budgets:
    """What budgets paid for, with the outcomes found again by the ids of their decisions."""

    def __init__(self) -> None:
        self.rows: dict[str, Spending] = {}
        self.reserved: dict[str, Stretches] = {}
        self.reported = Stretches()
        self.unattributed = 0
        self._pending = OrderedDict[str, str]()

    def decision(self, seen: Seen, became: str, at_ms: int | None) -> None:
        if not is_object(seen.budget):
            return
        path = name(seen.budget.get("path"), "(none named)")
        if path not in self.rows and len(self.rows) >= BUDGETS_MAX:
            path = OTHERS
        row = self.rows.setdefault(path, Spending())
        if is_object(seen.budget.get("refused")):
            row.refused += 1
        reserved = seen.budget.get("reserved")
        if became == DENIED or not is_object(reserved):
            return
        row.calls += 1
        for unit in _UNITS:
            if count := amount(reserved.get(unit)):
                row.reserved[unit] += count
                if at_ms is not None:
                    self.reserved.setdefault(unit, Stretches()).add(at_ms, path, count)
        if is_object(seen.model) and isinstance(seen.id, str):
            self._pending[seen.id] = path
            if len(self._pending) > PENDING_MAX:
                self._pending.popitem(last=False)

    def outcome(self, seen: Seen, at_ms: int | None) -> None:
        path = self._pending.pop(seen.of, None) if isinstance(seen.of, str) else None
        if not is_object(seen.usage):
            return
        if path is None:
            self.unattributed += 1
            return
        row = self.rows[path]
        row.outcomes += 1
        for key in _USAGE:
            row.reported[key] += amount(seen.usage.get(key))
        tokens = amount(seen.usage.get("prompt")) + amount(seen.usage.get("completion"))
        if tokens and at_ms is not None:
            self.reported.add(at_ms, path, tokens)


_UNITS: Final = ("tokens", "nano_usd", "requests", "in_flight", "kv_blocks")
_USAGE: Final = ("prompt", "cached", "completion", "charged")


# --- all of it --------------------------------------------------------------------------------------------------------


@dataclass
class Event:
    """Something that happened to the gate or its log, and was no call."""

    time: str
    at_ms: int | None
    kind: str
    members: dict[str, Any]


class Observed:
    """Everything that is counted. ``take`` entries in the order of their time."""

    def __init__(self) -> None:
        self.entries = 0
        self.unreadable = 0
        """Entries that are no JSON object, and decisions that neither allow nor deny."""
        self.timeless = 0
        """Entries without a time that a calendar has: in the tables, not in the charts."""
        self.first: str | None = None
        self.last: str | None = None
        self.calls = Row()
        self.by_mode = Breakdown()
        self.by_code = Breakdown()
        self.by_policy = Breakdown()
        self.by_principal = Breakdown()
        self.by_tool = Breakdown()
        self.over_time = Stretches()
        self.outcomes = Counter[str]()
        self.budgets = _Budgets()
        self.unlogged = Counter[str]()
        """Calls for which the log had no room, denied or let through, by the kind of entry that counts them."""
        self.event_kinds = Counter[str]()
        self.event_times = Stretches()
        self.events = deque[Event](maxlen=EVENTS_MAX)
        """The newest."""

    def take(self, raw: bytes, whole: Callable[[], dict[str, Any]] | None = None) -> None:
        """Counts an entry.

        Args:
            raw: As it is stored.
            whole: Gives the members of one that was too long for the log.
        """
        self.entries += 1
        try:
            seen = _SEEN.decode(raw)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            self.unreadable += 1
            return
        if seen.oversize is not None and whole is not None:
            seen = Seen.of_members(whole())
        at_ms = time_ms(seen.time)
        if at_ms is None:
            self.timeless += 1
        elif isinstance(seen.time, str):
            self.first = self.first or seen.time
            self.last = seen.time
        if seen.kind == "decision":
            self._decision(seen, at_ms)
        elif seen.kind == "outcome":
            self.outcomes[name(seen.status) if seen.status in _STATUSES else OTHERS] += 1
            self.budgets.outcome(seen, at_ms)
        elif seen.kind != "run":
            self._event(seen, at_ms, raw)

    def _decision(self, seen: Seen, at_ms: int | None) -> None:
        became = fate(seen)
        if became is None:
            self.unreadable += 1
            return
        setattr(self.calls, became, getattr(self.calls, became) + 1)
        id_ = name(seen.id)
        self.by_mode.add(name(seen.mode, "(not said)"), became)
        self.by_principal.add(name(seen.principal, NOBODY), became, id_)
        self.by_tool.add(asked(seen), became, id_)
        if became != ALLOWED:
            self.by_code.add(name(seen.code if became == DENIED else seen.would_deny), became, id_)
            for policy in deciders(seen):
                self.by_policy.add(policy, became, id_)
        if at_ms is not None:
            self.over_time.add(at_ms, became)
        self.budgets.decision(seen, became, at_ms)

    def _event(self, seen: Seen, at_ms: int | None, raw: bytes) -> None:
        kind = name(seen.kind, "(no kind)")
        if kind not in self.event_kinds and len(self.event_kinds) >= EVENT_KINDS_MAX:
            kind = OTHERS
        if kind in UNLOGGED:
            self.unlogged[kind] += amount(seen.count)
        self.event_kinds[kind] += 1
        if at_ms is not None:
            self.event_times.add(at_ms, kind)
        self.events.append(Event(name(seen.time), at_ms, kind, _members(raw)))

    def span(self, most: int) -> Span | None:
        """The time that calls and events cover, in at most this many bars, for charts that stand below each other."""
        both = Stretches()
        for stretches in (self.over_time, self.event_times):
            whole = stretches.span(CELLS_MAX)
            for at_ms in () if whole is None else (whole.start_ms, whole.end_ms - 1):
                both.add(at_ms, "")
        found = both.span(most)
        finest = max(one.length_ms for one in self._timelines())
        if found is None or found.length_ms % finest == 0:
            return found
        start = found.start_ms - found.start_ms % finest
        length = -(-(found.end_ms - start) // (most * finest)) * finest
        return Span(start, length, -(-(found.end_ms - start) // length))

    def _timelines(self) -> Iterator[Stretches]:
        yield from (self.over_time, self.event_times, self.budgets.reported, *self.budgets.reserved.values())


def _members(raw: bytes) -> dict[str, Any]:
    try:
        return _MEMBERS.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        # What is not counted is only looked over: here it is read.
        return {}


_STATUSES: Final = ("ok", "error", "cancelled", "unknown")
