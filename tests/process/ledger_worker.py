"""A process that hammers a shared ledger until somebody kills it. Run by ``test_ledger_processes.py``.

It writes down what it is about to hold before it asks, and what it has spent after the ledger has said so: whoever
reads the journal of a dead worker knows what was acknowledged, and at most one hold that was in flight. The journal is
a mapped file, so that it survives the kill without a system call for each hold.
"""

import mmap
import os
import random
import struct
import sys
from pathlib import Path

from tollkeeper import Hold, Ledger

RECORD = struct.Struct("=qqq")
"""Held in flight, spent for certain, holds so far."""
WORD = struct.Struct("=q")
PATHS = ["org/tight/a", "org/tight/b", "org/wide/a", "org/wide/b", "org/wide/c"]
DENIALS = {"budget.exhausted", "budget.contended", "budget.too_large"}


def main(budgets: str, state: str, journal: str, seed: int, ready: int) -> None:
    """Hammers for ever; writes a byte to the descriptor ``ready`` once the ledger is open."""
    choose = random.Random(seed)  # noqa: S311 - a workload, not a secret
    file = Path(journal)
    file.write_bytes(bytes(RECORD.size))
    with file.open("r+b") as stream:
        record = mmap.mmap(stream.fileno(), RECORD.size)
    ledger = Ledger.open(budgets, state=state)
    os.write(ready, b"r")
    spent = holds = 0
    parent = os.getppid()
    # Until it is killed; but whoever kills the tests does not know of it, so it ends with them too.
    while os.getppid() == parent:
        amount = choose.randrange(1, 200)
        record[:8] = WORD.pack(amount)
        got = ledger.reserve(choose.choice(PATHS), tokens=amount, requests=1, in_flight=1)
        if isinstance(got, Hold):
            spent += work(got, amount, choose)
            holds += 1
            # One after the other: a kill in between counts the hold as in flight and as spent.
            record[8:16] = WORD.pack(spent)
            record[16:24] = WORD.pack(holds)
        else:
            assert got.code in DENIALS, got.reason
        record[:8] = WORD.pack(0)


def work(hold: Hold, amount: int, choose: random.Random) -> int:
    """Charges, tops up, and ends the hold in one of the ways; returns what it has spent for certain."""
    spent = 0
    for _ in range(choose.randrange(3)):
        more = choose.randrange(0, amount // 4 + 1)
        hold.charge(tokens=more)
        spent += more
    if choose.random() < 0.2:
        hold.top_up(tokens=choose.randrange(1, 50))
    if choose.random() < 0.5:
        spent = max(spent, choose.randrange(0, amount + 1))
        assert hold.settle(tokens=spent)
    else:
        assert hold.release()
    return spent


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.stdout.fileno())
