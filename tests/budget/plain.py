"""The ledger as a plain model: dicts, one thread, no cleverness. What the real one is compared with.

It follows the words of the design and shares no code with the core: time is passed in by a clock that it asks, a hold
lists its cells, and nothing is ever undone because nothing is done before everything fits. It knows no processes, no
files and no kills.
"""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

UNITS = ("tokens", "nano_usd", "requests", "in_flight", "kv_blocks")
LEVELS = ("in_flight", "kv_blocks")
CLOCK_SLACK_MS = 1_000
LENGTHS_MS = {"1m": 60_000, "1h": 3_600_000, "1d": 86_400_000}
CHILDREN_DEFAULT = 1_024


def window_id(window: str, now_ms: int) -> int:
    """Which window a time lies in."""
    if window == "total":
        return 0
    if window == "month":
        date = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
        return date.year * 12 + date.month - 1
    return now_ms // LENGTHS_MS[window]


def window_end_ms(window: str, number: int) -> int | None:
    """When it ends."""
    if window == "total":
        return None
    if window == "month":
        year, month = divmod(number + 1, 12)
        return int(dt.datetime(year, month + 1, 1, tzinfo=dt.UTC).timestamp()) * 1000
    return (number + 1) * LENGTHS_MS[window]


def limit_of(limits: list[tuple[int, int]], window: str, at_ms: int) -> int:
    """A window that has ended keeps the limit that it ended with."""
    end_ms = window_end_ms(window, window_id(window, at_ms))
    return [limit for since_ms, limit in limits if end_ms is None or since_ms < end_ms][-1]


@dataclass
class Cell:
    """What one window of one budget has seen of one unit."""

    used: int = 0
    held: int = 0


@dataclass
class Budget:
    """One node of the tree."""

    limits: dict[tuple[str, str], tuple[list[tuple[int, int]], int]]
    """By unit and window: each limit with the time since when it holds, oldest first; and the overdraft."""
    cells: dict[tuple[str, str, int], Cell] = field(default_factory=dict)
    """By unit, window and number of the window."""


@dataclass
class Denied:
    """Nothing was changed."""

    code: str
    retry_after_ms: int | None = None


@dataclass
class Held:
    """A live hold, or one that has ended."""

    path: str
    granted_ms: int
    amounts: dict[str, int]
    charged: dict[str, int] = field(default_factory=dict)
    live: bool = True
    dispatched: bool = False
    streamed: bool = False


class Plain:
    """The model.

    Args:
        spec: As the native ledger takes it.
        clock: Has `wall_ms` and `boot_ms`.
    """

    def __init__(self, spec: dict[str, Any], clock: Any) -> None:
        self.clock = clock
        self.anchor = (clock.wall_ms, clock.boot_ms)
        self.last = clock.wall_ms
        self.limits = {path: limits for path, limits, _ in spec["budgets"] if not path.endswith("/*")}
        self.templates = {path: (limits, most) for path, limits, most in spec["budgets"] if path.endswith("/*")}
        self.budgets: dict[str, Budget] = {}
        self.made: dict[str, int] = {}
        for path, _, _ in spec["budgets"]:
            # A parent that nobody wrote down is a budget without limits.
            parts = path.removesuffix("/*").removesuffix("/*").split("/")
            for count in range(1, len(parts) + 1):
                each = "/".join(parts[:count])
                if each not in self.budgets:
                    self.add(each, self.limits.get(each, []))

    def add(self, path: str, limits: list[tuple[str, str, int, int]]) -> None:
        self.budgets[path] = Budget({(unit, window): ([(0, limit)], more) for unit, window, limit, more in limits})

    def now(self) -> int:
        """Never goes back, and follows a wall clock forwards only as far as time has passed."""
        wall, boot = self.anchor
        bound = wall + (self.clock.boot_ms - boot) + CLOCK_SLACK_MS
        self.last = max(self.last, min(self.clock.wall_ms, bound))
        return self.last

    def node(self, path: str) -> bool:
        """Whether there is such a budget, made now if a template says so."""
        if path in self.budgets:
            return True
        parent = path.rpartition("/")[0]
        if f"{parent}/*" not in self.templates:
            return False
        limits, most = self.templates[f"{parent}/*"]
        if self.made.get(parent, 0) >= (most or CHILDREN_DEFAULT):
            return False
        self.made[parent] = self.made.get(parent, 0) + 1
        self.add(path, limits)
        return True

    def line(self, path: str) -> list[Budget]:
        """The budgets that a request at `path` has to pass, leaf first."""
        parts = path.split("/")
        paths = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
        return [self.budgets[each] for each in paths if each in self.budgets]

    def cell(self, budget: Budget, unit: str, window: str, at_ms: int) -> Cell:
        return budget.cells.setdefault((unit, window, window_id(window, at_ms)), Cell())

    def touched(self, path: str, unit: str, at_ms: int) -> list[tuple[Cell, str, int]]:
        """The cells of one unit, each with its window and the most it may count."""
        return [
            (self.cell(budget, unit, window, at_ms), window, limit_of(limits, window, at_ms) + more)
            for budget in self.line(path)
            for (each, window), (limits, more) in budget.limits.items()
            if each == unit
        ]

    def refusal(self, path: str, amounts: dict[str, int], at_ms: int) -> Denied | None:
        """What speaks against it, the worst first."""
        too_large = exhausted = contended = False
        ends: list[int | None] = []
        for unit, amount in amounts.items():
            if not amount:
                continue
            for cell, window, most in self.touched(path, unit, at_ms):
                too_large |= most < amount
                contended |= cell.used + cell.held + amount > most
                if cell.used + amount > most:
                    exhausted = True
                    ends.append(window_end_ms(window, window_id(window, at_ms)))
        if too_large:
            return Denied("budget.too_large")
        if exhausted:
            known = [end for end in ends if end is not None]
            return Denied("budget.exhausted", max(known) - at_ms if len(known) == len(ends) else None)
        return Denied("budget.contended") if contended else None

    def take(self, path: str, amounts: dict[str, int], at_ms: int) -> None:
        for unit, amount in amounts.items():
            for cell, _, _ in self.touched(path, unit, at_ms):
                if unit == "requests":
                    cell.used += amount
                else:
                    cell.held += amount

    def reserve(self, path: str, **amounts: int) -> Held | Denied:
        if not self.node(path):
            return Denied("budget.unavailable")
        now = self.now()
        refused = self.refusal(path, amounts, now)
        if refused is not None:
            return refused
        self.take(path, amounts, now)
        return Held(path, now, dict(amounts))

    def charge(self, hold: Held, **amounts: int) -> bool:
        """Touches no cell; whether to go on, which every unit decides."""
        hold.streamed |= hold.live
        return self.note(hold, amounts)

    def dispatch(self, hold: Held, **amounts: int) -> bool:
        hold.dispatched |= hold.live
        return self.note(hold, amounts)

    def note(self, hold: Held, amounts: dict[str, int]) -> bool:
        if not hold.live:
            return False
        for unit, amount in amounts.items():
            hold.charged[unit] = hold.charged.get(unit, 0) + amount
        return all(amount <= hold.amounts.get(unit, 0) for unit, amount in hold.charged.items())

    def top_up(self, hold: Held, **amounts: int) -> bool | Denied:
        if not hold.live:
            return Denied("budget.expired")
        refused = self.refusal(hold.path, amounts, hold.granted_ms)
        if refused is not None:
            return refused
        self.take(hold.path, amounts, hold.granted_ms)
        for unit, amount in amounts.items():
            hold.amounts[unit] = hold.amounts.get(unit, 0) + amount
        return True

    def end(self, hold: Held, spent: dict[str, int]) -> bool:
        """Gives back what is held and counts what was spent, in the windows of the grant."""
        if not hold.live:
            return False
        hold.live = False
        for unit in UNITS:
            held = hold.amounts.get(unit, 0)
            for cell, _, _ in self.touched(hold.path, unit, hold.granted_ms):
                if unit in LEVELS:
                    cell.held -= held
                elif unit != "requests":
                    cell.held -= held
                    cell.used += spent.get(unit, 0)
        return True

    def settle(self, hold: Held, **actual: int) -> bool:
        """What nobody says is what was charged if the work streamed, or all that was held."""
        return self.end(hold, {**self.whole(hold), **actual})

    def release(self, hold: Held) -> bool:
        return self.end(hold, hold.charged)

    def leave(self, hold: Held) -> bool:
        """What a hold costs if nobody says."""
        return self.end(hold, self.whole(hold) if hold.dispatched else hold.charged)

    def whole(self, hold: Held) -> dict[str, int]:
        """Each unit as far as it was charged, if the work streamed; all of it where nothing tells how far it came."""
        charged, held = hold.charged, hold.amounts
        if hold.streamed:
            return {unit: charged.get(unit) or held.get(unit, 0) for unit in UNITS}
        return {unit: max(charged.get(unit, 0), held.get(unit, 0)) for unit in UNITS}

    def set_limit(self, path: str, unit: str, window: str, limit: int) -> int:
        limits, _ = self.budgets[path].limits[unit, window]
        old = limits[-1][1]
        limits.append((self.now(), limit))
        return old

    def usage(self, path: str) -> dict[tuple[str, str], tuple[int, int, int, int]]:
        """Limit, overdraft, used and held, of the windows that are open now."""
        now = self.now()
        found = {}
        for (unit, window), (limits, more) in self.budgets[path].limits.items():
            cell = self.cell(self.budgets[path], unit, window, now)
            found[unit, window] = (limit_of(limits, window, now), more, cell.used, cell.held)
        return found
