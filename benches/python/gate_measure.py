"""Times single checks and sums them up; every figure is in microseconds.

A sample is one check between two readings of the clock. The cost of the readings, measured the same way in the same
round, is taken off; the call itself is part of what a caller pays and stays in. The decision before is dropped inside
the sample, because that ends what was held for it. Nothing is printed here.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gate_shape

# A call takes this long at least, so that a ratio never divides by a figure that the clock cannot see.
FLOOR_US = 0.001
Sample = Callable[[], list[float]]


def clock_ns(count: int) -> int:
    """What two readings one after another say, in the median."""
    now, taken = time.perf_counter_ns, [0] * count
    for number in range(count):
        start = now()
        taken[number] = now() - start
    return sorted(taken)[count // 2]


def checks(subject: gate_shape.Subject, count: int, calls: Sequence[tuple[Any, ...]] | None = None) -> list[float]:
    """So many checks in turn; every one has to be allowed.

    Args:
        subject: What is asked; its count of checks goes up. The caller has entered its run.
        count: How often.
        calls: Arguments of `check` in turn, instead of the subject's requests.
    """
    check = subject.gate.check
    calls = calls or [(one.tool, one.arguments) for one in subject.calls]
    now, taken, size, cost = time.perf_counter_ns, [0] * count, len(calls), clock_ns(500)
    for number in range(count):
        tool, arguments = calls[number % size]
        start = now()
        decision = check(tool, arguments)
        taken[number] = now() - start
        if not decision.allowed:
            raise AssertionError(f"check {number} of {count}: {decision.code}: {decision.reason}")
    subject.checks += count
    return [(value - cost) / 1e3 for value in taken]


def prepared(subject: gate_shape.Subject, count: int) -> list[float]:
    """The same with prepared actions."""
    calls = list(zip(subject.prepared, (one.arguments for one in subject.calls), strict=True))
    now, taken, size, cost = time.perf_counter_ns, [0] * count, len(calls), clock_ns(500)
    for number in range(count):
        check, arguments = calls[number % size]
        start = now()
        decision = check(arguments)
        taken[number] = now() - start
        if not decision.allowed:
            raise AssertionError(f"check {number} of {count}: {decision.code}: {decision.reason}")
    subject.checks += count
    return [(value - cost) / 1e3 for value in taken]


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of sorted values, the one below which this share of them lies."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Figure:
    """What the rounds of one candidate gave; the first is a warm-up and is left out."""

    name: str
    rounds: list[list[float]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Pooled over the rounds."""
        ordered = sorted(value for values in self.rounds for value in values)
        named = (("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999), ("max_us", 1.0))
        return {
            "name": self.name,
            "calls": len(ordered),
            **{name: round(max(quantile(ordered, share), FLOOR_US), 4) for name, share in named},
        }

    def p50s(self) -> list[float]:
        """One median for each round."""
        return [max(statistics.median(values), FLOOR_US) for values in self.rounds]

    def times(self, other: "Figure") -> float:
        """How many times as long as the other one: the median of the ratios of the same rounds."""
        return statistics.median(a / b for a, b in zip(self.p50s(), other.p50s(), strict=True))


def turns(candidates: dict[str, Sample], rounds: int) -> dict[str, Figure]:
    """All candidates in each round, one after another."""
    figures = {name: Figure(name) for name in candidates}
    for number in range(rounds + 1):
        for name, sample in candidates.items():
            values = sample()
            if number:
                figures[name].rounds.append(values)
    return figures
