"""Writes two made-up traces with the shape that is published of the Azure traces of 2023, from a seed.

For: machines that do not have the traces. Counts, span, medians, 99th percentiles and largest values are those of the
real ones; the numbers between are log-normal and the arrivals of each minute vary by a factor, so that there are busy
minutes and quiet ones.

Refuses to: pass for the real thing. Every sum of a replay over these files is made up, too.
"""

from __future__ import annotations

import datetime as dt
import math
import random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

SEED = 2023
START = dt.datetime(2023, 11, 16, 18, 15, 46, tzinfo=dt.UTC)
# Of the standard normal distribution.
PERCENTILE_99 = 2.326
BUSY_SIGMA = 0.45


class Spread(NamedTuple):
    """How a number of tokens is distributed."""

    median: int
    p99: int
    largest: int

    def draw(self, random_: random.Random) -> int:
        """One number."""
        sigma = math.log(self.p99 / self.median) / PERCENTILE_99
        return min(self.largest, max(1, round(random_.lognormvariate(math.log(self.median), sigma))))


class Shape(NamedTuple):
    """What is published of one trace."""

    requests: int
    span_seconds: int
    context: Spread
    generated: Spread


SHAPES = {
    "code": Shape(8_819, 3_436, Spread(1_469, 7_436, 7_437), Spread(13, 252, 1_899)),
    "conv": Shape(19_366, 3_502, Spread(1_020, 4_142, 14_050), Spread(129, 601, 1_000)),
}


def write(folder: Path) -> list[Path]:
    """Writes both files and returns them."""
    random_ = random.Random(SEED)  # noqa: S311 - repeatable on purpose
    files = []
    for name, shape in SHAPES.items():
        minutes = range(shape.span_seconds // 60 + 1)
        busy = [random_.lognormvariate(0, BUSY_SIGMA) for _ in minutes]
        times = [60 * minute + 60 * random_.random() for minute in random_.choices(minutes, busy, k=shape.requests)]
        rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
        for seconds in sorted(min(time, shape.span_seconds) for time in times):
            at = (START + dt.timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S.%f")
            rows.append(f"{at}0,{shape.context.draw(random_)},{shape.generated.draw(random_)}")
        file = folder / f"{name}.csv"
        # As the real ones: CRLF, and none at the end.
        file.write_bytes("\r\n".join(rows).encode())
        files.append(file)
    return files
