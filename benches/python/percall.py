"""Times single calls and whole runs of calls, several candidates taking turns; every figure is in microseconds.

A sample of `per_call` is one call between two readings of the clock. The candidate "empty" is timed in the same turns,
and its median (two readings and one empty call, 0.05 to 0.1 us) is taken off the others round by round; p99 has the
same amount taken off, so a slow reading of the clock stays in it. `bulk` needs no correction for the clock: it times
runs of calls and takes the empty loop off. Nothing here knows what it measures.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

EMPTY = "empty"
# A call takes this long at least, so that a ratio never divides by a figure that the clock cannot see.
FLOOR_US = 0.001

Call = Callable[[], object]
# Takes a number of calls, gives the nanoseconds of each: for what cannot be called here (another process).
Remote = Callable[[int], Sequence[int]]


def empty() -> None:
    """What is taken off: the call of a Python function that does nothing."""


def nanoseconds(call: Call, count: int) -> list[int]:
    """One reading per call."""
    now = time.perf_counter_ns
    taken = [0] * count
    for number in range(count):
        start = now()
        call()
        taken[number] = now() - start
    return taken


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Candidate:
    """What is measured: a call, or something remote that times itself; and how often per round."""

    call: Call | None = None
    count: int = 1_000
    remote: Remote | None = None
    # Seen by a remote candidate's own clock and its own empty call, so nothing of ours is taken off.
    cost_us: float | None = None

    def sample(self) -> list[float]:
        """Microseconds of each call of one round."""
        if self.remote is not None:
            return [value / 1e3 for value in self.remote(self.count)]
        assert self.call is not None  # noqa: S101 - one of the two is given
        return [value / 1e3 for value in nanoseconds(self.call, self.count)]


@dataclass
class Figure:
    """The result for one candidate."""

    p50: float = 0.0
    p99: float = 0.0
    rounds: list[float] = field(default_factory=list)
    calls: int = 0

    def plain(self) -> dict[str, Any]:
        """For the JSON file."""
        return {"p50_us": round(self.p50, 4), "p99_us": round(self.p99, 4), "calls": self.calls}

    def times(self, other: "Figure") -> float:
        """How many times as long as the other one: the median of the ratios of neighbouring rounds."""
        pairs = zip(self.rounds, other.rounds, strict=True)
        return statistics.median(own / max(theirs, FLOOR_US) for own, theirs in pairs)


def per_call(candidates: Mapping[str, Candidate], rounds: int) -> dict[str, Figure]:
    """Single calls, all candidates in each round, in turn. The first round warms up and does not count."""
    everyone = {EMPTY: Candidate(empty), **candidates}
    pooled: dict[str, list[float]] = {name: [] for name in everyone}
    figures = {name: Figure() for name in everyone}
    for number in range(rounds + 1):
        sampled = {name: candidate.sample() for name, candidate in everyone.items()}
        cost = statistics.median(sampled[EMPTY])
        for name, values in sampled.items():
            figures[name].calls += len(values)
            if number == 0:
                continue
            remote = everyone[name].cost_us
            off = 0.0 if name == EMPTY else cost if remote is None else remote
            pooled[name].extend(value - off for value in values)
            figures[name].rounds.append(statistics.median(values) - off)
    for name, figure in figures.items():
        figure.p50 = max(quantile(pooled[name], 0.5), FLOOR_US)
        figure.p99 = max(quantile(pooled[name], 0.99), FLOOR_US)
    return figures


def bulk(candidates: Mapping[str, Call], rounds: int, count: int) -> dict[str, float]:
    """Microseconds per call over runs of calls, the empty loop taken off; medians over rounds."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        loop = one_run(empty, count)
        for name, call in candidates.items():
            taken[name].append(one_run(call, count) - loop)
    return {name: statistics.median(values) * 1e6 / count for name, values in taken.items()}


def one_run(call: Call, count: int) -> float:
    """Seconds of a run of calls."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start
