"""What checks in coroutines add to the lag of an event loop: the lateness of a ticker, with the checks and without.

A coroutine wakes every millisecond and notes how late it is. Beside it ten coroutines wake every millisecond and make
as many checks as are due, 100,000 a second together; without the checks they call an empty function as often. Timers of
both loops count in milliseconds, so most of the lateness is their rounding: the difference is the figure.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gate_measure
import gate_shape

TICK_S = 0.001
RATE = 100_000
WORKERS = 10
# What one coroutine does before it lets others run: at most 20 checks, 20 to 40 us.
BURST_MAX = 20


@dataclass
class Lag:
    """One run: how late each tick was, in microseconds, sorted, and the rate that was reached."""

    late_us: list[float]
    calls: int
    rate: float

    def p99(self) -> float:
        """The lateness that one tick in a hundred exceeds."""
        return gate_measure.quantile(self.late_us, 0.99)


async def ticker(end: float) -> list[float]:
    """How late each tick was; ticks that were slept through are late too."""
    late, due = [], time.monotonic() + TICK_S
    while due < end:
        await asyncio.sleep(max(due - time.monotonic(), 0))
        now = time.monotonic()
        while due <= now:
            late.append((now - due) * 1e6)
            due += TICK_S
    return late


async def worker(call: Callable[[int], None], end: float) -> int:
    """Makes its share of the calls as they become due; how many it made."""
    done, start = 0, time.monotonic()
    while (now := time.monotonic()) < end:
        owed = min(int((now - start) * RATE / WORKERS) - done, BURST_MAX)
        if owed > 0:
            call(owed)
            done += owed
        await asyncio.sleep(TICK_S)
    return done


def measured(factory: Callable[[], Any], call: Callable[[int], None], seconds: float) -> Lag:
    """One run on a loop of its own."""

    async def everything() -> tuple[list[float], int]:
        end = time.monotonic() + seconds
        late, *done = await asyncio.gather(ticker(end), *(worker(call, end) for _ in range(WORKERS)))
        return late, sum(done)

    with asyncio.Runner(loop_factory=factory) as runner:
        late, calls = runner.run(everything())
    return Lag(sorted(late), calls, calls / seconds)


def calls_of(subject: gate_shape.Subject) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """Makes so many checks; makes so many calls of nothing."""
    check = subject.gate.check
    asked = [(one.tool, one.arguments) for one in subject.calls]

    def checks(count: int) -> None:
        for number in range(count):
            tool, arguments = asked[number % len(asked)]
            decision = check(tool, arguments)
            if not decision.allowed:
                raise AssertionError(f"{decision.code}: {decision.reason}")
        subject.checks += count

    def nothing(_tool: str, _arguments: dict[str, Any]) -> None:
        pass

    def empty(count: int) -> None:
        for number in range(count):
            tool, arguments = asked[number % len(asked)]
            nothing(tool, arguments)

    return checks, empty
