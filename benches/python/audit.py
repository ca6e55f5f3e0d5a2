"""What a record costs from Python, beside what others promise and cost. `make bench-audit`.

All candidates take turns in each round, on the same disk, with the same record. Printed are the medians of the rounds:
entries per second of the clock, and microseconds of processor per entry, all threads together, which a busy machine
disturbs less. Ratios are of the clock, against AGT in memory, round by round. At the end each candidate says how many
records it holds; the exit status is 1 if one is wrong.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import audit_peers

OUT = Path(__file__).resolve().parent.parent / "out"
BASE = "AGT AuditLog, in memory"
TARGET_RATIO = 100


def measure(peers: audit_peers.Peers, rounds: int) -> None:
    """One run of each to warm up, then the rounds."""
    for turn in range(rounds + 1):
        for peer in peers.found:
            took = peer.run(peer.count)
            if turn > 0:
                peer.rounds.append(took)


def rates(peer: audit_peers.Peer) -> list[float]:
    """Entries per second, round by round."""
    return [peer.count / took.wall_s for took in peer.rounds]


def show(peers: audit_peers.Peers) -> list[dict[str, object]]:
    """The table, and its rows."""
    base = next((rates(peer) for peer in peers.found if peer.name == BASE), None)
    rows: list[dict[str, object]] = []
    print(f"{'':<37}{'entries/s':>11}{'us of CPU':>11}{'x AGT':>8}  {'durable':<26}verifiable")
    for peer in peers.found:
        rate = statistics.median(rates(peer))
        processor_us = statistics.median(took.processor_s for took in peer.rounds) / peer.count * 1e6
        ratio = statistics.median(a / b for a, b in zip(rates(peer), base, strict=True)) if base else None
        shown = "" if ratio is None else f"{ratio:.2f}"
        print(f"{peer.name:<37}{rate:>11,.0f}{processor_us:>11.1f}{shown:>8}  {peer.durable:<26}{peer.verifiable}")
        rows.append(
            {"name": peer.name, "entries_per_s": rate, "processor_us": processor_us, "ratio_to_agt": ratio,
             "durable": peer.durable, "verifiable": peer.verifiable}
        )  # fmt: skip
    for name, reason in peers.skipped.items():
        print(f"{name}: left out: {reason}")
    return rows


def main() -> int:
    """Measures, prints, checks."""
    parser = argparse.ArgumentParser(description="records per second from Python, beside peers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=OUT, help="where the logs are, on the disk to be measured")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        peers = audit_peers.everyone(Path(folder))
        with peers.stack:
            measure(peers, arguments.rounds)
            rows = show(peers)
            wrong = [peer.check(peer.count * (arguments.rounds + 1)) for peer in peers.found]
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "audit.json").write_text(json.dumps(rows, indent=1) + "\n")
    for sentence in filter(None, wrong):
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if any(wrong) else 0


if __name__ == "__main__":
    sys.exit(main())
