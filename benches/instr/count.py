"""Counts instructions per decision, per hold and per check across the Python boundary; compares with the kept figures.

Runs one case for two numbers of calls under callgrind; the difference is the calls themselves, and the empty loop's
share is taken off. Only the thread that makes the calls is counted: a log's writer has a share of its own, which
depends on when it wakes. Cases of the gate are counted three times and the spread is printed. Counts depend on the
interpreter's build, so `baseline.json` names it and is compared only with the same one; elsewhere the counts are
printed. Without valgrind nothing is counted, and that is no failure.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import auxv

HERE = Path(__file__).resolve().parent
BASELINE = HERE / "baseline.json"
FEW, MANY = 1_000, 3_000
RISE_MAX = 1.02
SPREAD_MAX = 0.005
GATE_REPEATS = 3
CASES = ("loop", "prepared", "strings", "hold", "charge", "meter")
# These read the clock inside, through a page that valgrind takes away.
GATE_CASES = ("check", "check_audit", "check_full", "action_full")


class NotCounted(Exception):  # noqa: N818 - it says what is so, and nothing is wrong
    """This machine cannot count the case."""


def instructions(case: str, calls: int) -> int:
    """Instructions of the first thread of one process.

    Raises:
        NotCounted: The clock's page cannot be hidden here.
    """
    # Threads that numpy would start spin while they wait: millions of instructions, another number on each run.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            "valgrind", "--tool=callgrind", "--separate-threads=yes", f"--callgrind-out-file={folder}/out",
            sys.executable, str(HERE / "one_case.py"), case, str(calls),
        ]  # fmt: skip
        if case in GATE_CASES:
            command = [sys.executable, str(HERE / "auxv.py"), *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
        if done.returncode == auxv.NOT_INSTALLED:
            raise NotCounted(done.stderr.strip().removeprefix("error: "))
        first = Path(folder, "out-01")
        found = re.search(r"^totals: (\d+)", first.read_text(), re.MULTILINE) if first.exists() else None
        if done.returncode != 0 or found is None:
            sys.exit(f"error: {case} failed under valgrind:\n{done.stderr[-2000:]}")
        return int(found[1])


def per_call(case: str) -> list[float]:
    """Instructions per call with the loop's share, as often as the case is counted."""
    repeats = GATE_REPEATS if case in GATE_CASES else 1
    return [(instructions(case, MANY) - instructions(case, FEW)) / (MANY - FEW) for _ in range(repeats)]


def count_all() -> tuple[dict[str, int], list[str]]:
    """Counts every case, as many at a time as there are cores; and what is worth saying about it."""
    counts: dict[str, int] = {}
    notes: list[str] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        running = {case: pool.submit(per_call, case) for case in (*CASES, *GATE_CASES)}
        loop = running.pop("loop").result()[0]
        for case, future in running.items():
            try:
                values = [value - loop for value in future.result()]
            except NotCounted as reason:
                notes.append(f"{case}: not counted: {reason}")
                continue
            counts[case] = round(statistics.median(values))
            if len(values) > 1:
                spread = (max(values) - min(values)) / counts[case]
                word = "" if spread <= SPREAD_MAX else f": more than the {SPREAD_MAX:.1%} that can be told apart"
                notes.append(f"{case}: counted {len(values)} times, spread {spread:.2%}{word}")
    return counts, notes


def explain(worse: dict[str, tuple[int, int]]) -> None:
    """Why the exit status is 1, and what to do."""
    for case, (before, count) in worse.items():
        print(
            f"error: {case} takes {count:,} instructions where {before:,} are kept: {count / before - 1:+.1%}, and "
            f"{RISE_MAX - 1:+.0%} are allowed",
            file=sys.stderr,
        )
    print(
        "hint: find what was added with callgrind_annotate, or say in the commit what it is for and keep the new "
        "figures: make instr ARGS=--keep",
        file=sys.stderr,
    )


def main() -> int:
    """Counts, prints, compares."""
    parser = argparse.ArgumentParser(description="instructions per decision, per hold and per check, from Python")
    parser.add_argument("--keep", action="store_true", help="write the counts to baseline.json")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("skipped: valgrind is not installed", file=sys.stderr)
        return 0
    counts, notes = count_all()
    build = f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}"
    kept = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    comparable = kept.get("build") == build
    worse: dict[str, tuple[int, int]] = {}
    for case, count in counts.items():
        before = kept.get("counts", {}).get(case) if comparable else None
        change = "" if before is None else f"  kept {before:,}, {count / before - 1:+.1%}"
        if before is not None and count > before * RISE_MAX:
            worse[case] = (before, count)
        print(f"{case:<12}{count:>8,} instructions per call{change}")
    for note in notes:
        print(note)
    if arguments.keep:
        BASELINE.write_text(json.dumps({"build": build, "counts": counts}, indent=1) + "\n")
        return 0
    if not comparable:
        print(f"not compared: the kept figures are from {kept.get('build', 'nowhere')}, this is {build}")
    if worse:
        explain(worse)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
