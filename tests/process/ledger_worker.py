"""A process that hammers a shared ledger until somebody kills it. Run by ``test_ledger_processes.py``.

It writes down what it is about to hold before it asks, and what it has spent after the ledger has said so: whoever
reads the journal of a dead worker knows what was acknowledged, and at most one hold that was in flight.
"""

import os
import random
import struct
import sys

from tollkeeper import Hold, Ledger

RECORD = struct.Struct("<cq")
PATHS = ["org/tight/a", "org/tight/b", "org/wide/a", "org/wide/b", "org/wide/c"]


def main() -> None:
    """Arguments: budgets file, state file, journal file, seed."""
    budgets, state, journal, seed = sys.argv[1:]
    choose = random.Random(int(seed))  # noqa: S311 - a workload, not a secret
    ledger = Ledger.open(budgets, state=state)
    out = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        amount = choose.randrange(1, 200)
        os.write(out, RECORD.pack(b"i", amount))
        got = ledger.reserve(choose.choice(PATHS), tokens=amount, requests=1, in_flight=1)
        if not isinstance(got, Hold):
            assert got.code in {"budget.exhausted", "budget.contended", "budget.too_large"}, got.reason
            os.write(out, RECORD.pack(b"d", 0))
            continue
        spent = work(got, amount, choose)
        os.write(out, RECORD.pack(b"s", spent))


def work(hold: Hold, amount: int, choose: random.Random) -> int:
    """Charges, tops up, and ends the hold in one of the ways; returns what it has spent for certain."""
    spent = 0
    for _ in range(choose.randrange(3)):
        more = choose.randrange(0, amount // 4 + 1)
        hold.charge(tokens=more)
        spent += more
    if choose.random() < 0.2:  # noqa: PLR2004 - a share of the workload
        hold.top_up(tokens=choose.randrange(1, 50))
    if choose.random() < 0.5:  # noqa: PLR2004 - the same
        spent = max(spent, choose.randrange(0, amount + 1))
        assert hold.settle(tokens=spent)
    else:
        assert hold.release()
    return spent


if __name__ == "__main__":
    main()
