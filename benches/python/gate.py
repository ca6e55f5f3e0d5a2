"""A full check from Python, beside what others need for less. `make bench-gate`.

One check decides by 100 policies, reserves at four levels, and is in the audit log's ring when it returns: a tool's
name and a small dict in, a decision out. All candidates take turns in each round, in one run; ratios are formed round
by round and their median is printed. Every answer is asserted, and at the end of each part the logs and the ledgers
have to say exactly what was asked: the exit status is 1 if one does not. Targets are printed as met or missed and do
not change the status.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import gate_parts

from tollkeeper import build_info

OUT = Path(__file__).resolve().parent.parent / "out"
PARTS = {
    "peers": gate_parts.peers,
    "policies": gate_parts.policies,
    "threads": gate_parts.threads,
    "processes": gate_parts.processes,
    "bytes": gate_parts.bytes_,
    "loop": gate_parts.loop,
}
ROUNDS = {"peers": 20, "policies": 10, "threads": 15, "processes": 15, "bytes": 7, "loop": 5}
FIGURES = ("p50_us", "p99_us", "p999_us", "max_us", "checks_per_s", "ns_per_byte", "ratio")
HEADS = ("p50 us", "p99 us", "p99.9 us", "max us", "checks/s", "ns/byte", "x")


def shown(value: Any) -> str:
    """A figure with as many digits as it is good for."""
    if value is None:
        return ""
    if isinstance(value, int) or abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def show(part: str, rows: list[gate_parts.Row]) -> None:
    """The table of one part, then its targets."""
    print(f"{part:<54}" + "".join(f"{head:>12}" for head in HEADS))
    for row in rows:
        if "skipped" in row:
            print(f"  {row['skipped']}: left out: {row['reason']}")
        elif "target" not in row:
            name = row["name"] + (f", {row['policies']:,} policies" if "policies" in row else "")
            print(f"  {name:<52.52}" + "".join(f"{shown(row.get(key)):>12}" for key in FIGURES))
    for row in rows:
        if "target" in row:
            sign, word = "at least" if row["least"] else "at most", {True: "met", False: "MISSED"}.get(row["met"])
            end = f"; {row['why']}" if "why" in row else ""
            said = f"{row['target']}: {shown(row['value'])} {row['unit']}, {sign} {row['bound']:g} wanted{end}"
            print(f"  {word or 'CANNOT BE TOLD'}: {said}")
    print()


def conditions() -> list[str]:
    """What of these figures the machine decides."""
    cores, load = len(os.sched_getaffinity(0)), gate_parts.LOAD_BEFORE
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    share = fields[7] / sum(fields)
    lines = [
        f"{cores} cores, load before the run {load:.2f}, {share:.2%} of the time since the boot stolen by the host"
    ]
    if load > gate_parts.LOAD_MAX:
        lines.append(
            "not idle: p99, p99.9 and max are the scheduler's, and a check that shares its core's caches takes up to "
            "twice as long where the peers do not: neither figures nor ratios are those of an idle machine"
        )
    if cores < 4:
        lines.append(
            "two gates need four cores (each has a thread that writes its log): the parts `threads` and `processes` "
            "show that nothing is lost or blocked, not how checks scale"
        )
    return lines


def plot(rows: list[gate_parts.Row], file: Path) -> None:
    """Microseconds per check over the number of policies, both axes logarithmic."""
    import matplotlib as mpl  # noqa: PLC0415 - only where a plot is wanted

    mpl.use("svg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(7, 4.2))
    shaped = [row for row in rows if row.get("part") == "policies" and "policies" in row]
    for name in dict.fromkeys(row["name"] for row in shaped):
        points = [(row["policies"], row["p50_us"]) for row in shaped if row["name"] == name]
        label = "Tollkeeper, full check" if name.startswith("check") else name
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="policies", ylabel="microseconds per check (median)")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(file)


def main() -> int:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(description="a full check from Python, beside peers")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, help="instead of each part's own number")
    parser.add_argument(
        "--folder", type=Path, default=OUT, help="where logs and ledgers are, on the disk to be measured"
    )
    arguments = parser.parse_args()
    if build_info()["profile"] != "release":
        sys.exit("error: this is a debug build; run `make build` first")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    OUT.mkdir(parents=True, exist_ok=True)
    everything: list[gate_parts.Row] = []
    for part in arguments.parts:
        gc.collect()
        with tempfile.TemporaryDirectory(dir=arguments.folder, ignore_cleanup_errors=True) as folder:
            try:
                rows = PARTS[part](Path(folder), arguments.rounds or ROUNDS[part])
            except (gate_parts.WrongError, AssertionError) as error:
                print(f"error: {part}: {error}", file=sys.stderr)
                return 1
            except RuntimeError as error:
                rows = [{"part": part, "skipped": part, "reason": str(error)}]
        show(part, rows)
        everything.extend({"part": part, **row} for row in rows)
    machine = conditions()
    for line in machine:
        print(line)
    (OUT / "gate.json").write_text(json.dumps({"machine": machine, "rows": everything}, indent=1) + "\n")
    if any(row.get("part") == "policies" and "policies" in row for row in everything):
        plot(everything, OUT / "gate.svg")
        print(f"plot: {(OUT / 'gate.svg').relative_to(OUT.parent.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
