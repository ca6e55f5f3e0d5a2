"""The other processes of the budget bench: one that spends as fast as it can, one that holds and waits to be killed.

`spend CONFIG STATE` reads lines `PATH START SECONDS` (start on the monotonic clock, which all processes of a host
share), reserves and settles one token at a time, and answers how often and in what processor time. `hold CONFIG STATE
KIND PATH COUNT` reserves COUNT times and waits. Nothing here measures anything; being killed is part of the bench.
"""

import signal
import sys
import time
from pathlib import Path

import numpy as np

from tollkeeper import Ledger, Meter

CALLS_PER_LOOK = 32


def spend(ledger: Ledger) -> None:
    """Answers each line with the number of settled holds and the processor seconds they took."""
    reserve, now = ledger.reserve, time.monotonic
    print("ready", flush=True)
    for line in sys.stdin:
        path, start, seconds = line.split()
        end = float(start) + float(seconds)
        count = 0
        while now() < float(start):
            pass
        before = time.process_time()
        while now() < end:
            for _ in range(CALLS_PER_LOOK):
                reserve(path, tokens=1, nano_usd=1, requests=1).settle(tokens=1, nano_usd=1)
            count += CALLS_PER_LOOK
        print(count, time.process_time() - before, flush=True)


def hold(ledger: Ledger, kind: str, path: str, count: int) -> None:
    """Keeps every hold alive until the end, which is SIGKILL."""
    kept: object
    if kind == "meter":
        meter = Meter(ledger)
        ones = np.ones(count, np.uint32)
        kept, status = meter.reserve_many(np.full(count, meter.node(path), np.uint32), ones, ones)
        granted = int(np.count_nonzero(status == 0))
    else:
        kept = [ledger.reserve(path, tokens=1, nano_usd=1, requests=1) for _ in range(count)]
        granted = sum(one.granted for one in kept)
    print(granted, flush=True)
    signal.pause()


def main() -> None:
    """Opens the ledger and does the one or the other."""
    what, config, state, *rest = sys.argv[1:]
    ledger = Ledger.open(Path(config), state=Path(state))
    if what == "spend":
        spend(ledger)
    else:
        hold(ledger, rest[0], rest[1], int(rest[2]))


if __name__ == "__main__":
    main()
