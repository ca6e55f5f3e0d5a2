"""The ledger against the plain model: the same calls in the same order, the same answers, and what must always hold."""

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from plain import CLOCK_SLACK_MS, UNITS, Denied, Held, Plain, window_id

from tollkeeper import budgets
from tollkeeper.budget import Ledger
from tollkeeper.testing import FakeClock

TEXT = """\
[budget."acme"]
limits = [
  { unit = "tokens", window = "total", limit = 2000 },
  { unit = "tokens", window = "1m", limit = 300, overdraft = 10 },
  { unit = "requests", window = "1h", limit = 40 },
  { unit = "nano_usd", window = "month", limit = 900, overdraft = 50 },
]
[budget."acme/research"]
limits = [
  { unit = "tokens", window = "1d", limit = 1000 },
  { unit = "in_flight", window = "total", limit = 5 },
]
[budget."acme/research/*"]
children_max = 2
limits = [
  { unit = "tokens", window = "1h", limit = 250, overdraft = 20 },
  { unit = "requests", window = "1m", limit = 12 },
  { unit = "kv_blocks", window = "total", limit = 30 },
]
[budget."acme/ops"]
limits = []
"""
SPEC = budgets.spec(TEXT)
START_MS = 1_700_000_000_000
PATHS = ["acme", "acme/research", "acme/research/a", "acme/research/b", "acme/research/c", "acme/ops", "acme/none"]
LIMITS = [
    (path, unit, window)
    for path, limits, _ in SPEC["budgets"]
    for unit, window, _, _ in limits
    if not path.endswith("/*")
]
# Periods of the ledger that live holds may pin at once: four hours, sixteen minutes.
HOURS_PINNED_MAX = 3
MINUTES_PINNED_MAX = 14

SMALL = st.integers(0, 120)
AMOUNTS = st.fixed_dictionaries(
    {},
    optional={
        "tokens": st.one_of(SMALL, st.integers(200, 400)),
        "nano_usd": st.integers(0, 300),
        "requests": st.integers(0, 3),
        "in_flight": st.integers(0, 2),
        "kv_blocks": st.integers(0, 12),
    },
)
SPENT = st.fixed_dictionaries({}, optional={"tokens": SMALL, "nano_usd": st.integers(0, 300)})
MORE = st.fixed_dictionaries({}, optional={"tokens": SMALL, "nano_usd": SMALL, "kv_blocks": st.integers(0, 5)})
TIMES_MS = st.sampled_from([1, 999, 30_000, 59_999, 60_000, 3_600_000, 86_400_000, 31 * 86_400_000])
STEPS_MS = st.sampled_from([-86_400_000, -60_000, -1, 1, CLOCK_SLACK_MS - 1, CLOCK_SLACK_MS, 60_000, 86_400_000])
WHICH = st.integers(0, 1_000_000)


class Machine(RuleBasedStateMachine):
    """Both ledgers, and their holds in pairs."""

    @initialize()
    def open(self) -> None:
        self.clock = FakeClock(START_MS)
        # The model asks a clock of its own, moved by the same calls.
        self.plain_clock = PlainClock(START_MS)
        self.real = Ledger(SPEC, None, self.clock)
        self.plain = Plain(dict(SPEC), self.plain_clock)
        self.holds: list[tuple[Any, Held]] = []

    def teardown(self) -> None:
        if hasattr(self, "real"):
            self.real.close()

    def same_denial(self, got: Any, wanted: Denied) -> None:
        assert not got.granted
        assert got.code == wanted.code
        assert got.reason
        if wanted.code == "budget.exhausted":
            after = None if got.retry_after is None else round(got.retry_after * 1000)
            assert after == wanted.retry_after_ms

    @rule(path=st.sampled_from(PATHS), amounts=AMOUNTS)
    def reserve(self, path: str, amounts: dict[str, int]) -> None:
        wanted = self.plain.reserve(path, **amounts)
        got = self.real.reserve(path, **amounts)
        if isinstance(wanted, Denied):
            self.same_denial(got, wanted)
        else:
            assert (got.granted, got.code, got.path, got.live) == (True, "allow", path, True)
            assert {unit: amount for unit, amount in got.amounts.items() if amount} == {
                unit: amount for unit, amount in amounts.items() if amount
            }
            self.holds.append((got, wanted))

    @rule(path=st.sampled_from(PATHS), amounts=AMOUNTS)
    def explain(self, path: str, amounts: dict[str, int]) -> None:
        known = self.plain.node(path)
        wanted = self.plain.refusal(path, amounts, self.plain.now()) if known else Denied("budget.unavailable")
        got = self.real.explain(path, **amounts)
        assert bool(got) == (wanted is not None)
        if wanted is not None:
            assert wanted.code in {denial.code for denial in got}

    @precondition(lambda self: self.holds)
    @rule(which=WHICH, amounts=SPENT)
    def charge(self, which: int, amounts: dict[str, int]) -> None:
        real, plain = self.holds[which % len(self.holds)]
        assert real.charge(**amounts) == self.plain.charge(plain, **amounts)

    @precondition(lambda self: self.holds)
    @rule(which=WHICH, amounts=SPENT)
    def dispatch(self, which: int, amounts: dict[str, int]) -> None:
        real, plain = self.holds[which % len(self.holds)]
        assert real.dispatch(**amounts) == self.plain.dispatch(plain, **amounts)

    @precondition(lambda self: self.holds)
    @rule(which=WHICH, amounts=MORE)
    def top_up(self, which: int, amounts: dict[str, int]) -> None:
        real, plain = self.holds[which % len(self.holds)]
        wanted = self.plain.top_up(plain, **amounts)
        got = real.top_up(**amounts)
        if isinstance(wanted, Denied):
            assert (got.granted, got.code) == (False, wanted.code)
        else:
            assert got is real

    @precondition(lambda self: self.holds)
    @rule(which=WHICH, actual=SPENT)
    def settle(self, which: int, actual: dict[str, int]) -> None:
        real, plain = self.holds[which % len(self.holds)]
        assert real.settle(**actual) == self.plain.settle(plain, **actual)

    @precondition(lambda self: self.holds)
    @rule(which=WHICH)
    def release(self, which: int) -> None:
        real, plain = self.holds[which % len(self.holds)]
        assert real.release() == self.plain.release(plain)

    @precondition(lambda self: self.holds)
    @rule(which=WHICH)
    def leave(self, which: int) -> None:
        real, plain = self.holds[which % len(self.holds)]
        with real:
            pass
        self.plain.leave(plain)

    @rule(which=st.sampled_from(LIMITS), limit=st.integers(0, 2_500))
    def set_limit(self, which: tuple[str, str, str], limit: int) -> None:
        assert self.real.set_limit(*which, limit) == self.plain.set_limit(*which, limit)

    @rule(ms=TIMES_MS)
    def advance(self, ms: int) -> None:
        live = [(real, plain) for real, plain in self.holds if plain.live]
        hours = {window_id("1h", plain.granted_ms) for _, plain in live}
        minutes = {window_id("1m", plain.granted_ms) for _, plain in live}
        if len(hours) >= HOURS_PINNED_MAX or len(minutes) >= MINUTES_PINNED_MAX:
            for real, plain in live:
                assert real.release() == self.plain.release(plain)
        self.clock.advance(ms)
        self.plain_clock.advance(ms)

    @rule(ms=STEPS_MS)
    def step(self, ms: int) -> None:
        self.clock.step(ms)
        self.plain_clock.step(ms)

    @invariant()
    def the_same_everywhere(self) -> None:
        if not hasattr(self, "real"):
            return
        assert sorted(self.real.paths) == sorted(self.plain.budgets)
        for path in self.plain.budgets:
            usage = self.real.usage(path)
            seen = {key: (one.limit, one.overdraft, one.used, one.held) for key, one in usage.items()}
            assert seen == self.plain.usage(path)
            for one in usage.values():
                assert one.used + one.held + one.available + one.stranded == one.limit + one.overdraft
                assert one.stranded == 0

    @invariant()
    def holds_are_what_they_were(self) -> None:
        for real, plain in getattr(self, "holds", []):
            assert real.live == plain.live
            if plain.live:
                for unit in UNITS:
                    assert real.amounts.get(unit, 0) == plain.amounts.get(unit, 0)
                    assert real.charged.get(unit, 0) == plain.charged.get(unit, 0)


class PlainClock:
    """Two numbers."""

    def __init__(self, wall_ms: int) -> None:
        self.wall_ms = wall_ms
        self.boot_ms = 0

    def advance(self, ms: int) -> None:
        self.wall_ms += ms
        self.boot_ms += ms

    def step(self, ms: int) -> None:
        self.wall_ms += ms


TestModel = pytest.mark.timeout(300)(Machine.TestCase)
