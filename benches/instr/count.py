"""Counts instructions per decision and per hold across the Python boundary and compares them with the kept figures.

Runs one case for two numbers of calls under callgrind; the difference is the calls themselves, and the empty loop's
share is taken off. Counts depend on the interpreter's build, so `baseline.json` names it and is compared only with the
same one; elsewhere the counts are printed.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BASELINE = HERE / "baseline.json"
FEW, MANY = 1_000, 3_000
RISE_MAX = 1.02


def instructions(case: str, calls: int) -> int:
    """Instructions of one process."""
    command = [
        "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, str(HERE / "one_case.py"),
        case, str(calls),
    ]  # fmt: skip
    # Threads that numpy would start spin while they wait: millions of instructions, another number on each run.
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or found is None:
        sys.exit(f"error: {case} failed under valgrind:\n{done.stderr[-2000:]}")
    return int(found[1])


def main() -> int:
    """Counts, prints, compares."""
    parser = argparse.ArgumentParser(description="instructions per decision and per hold, from Python")
    parser.add_argument("--keep", action="store_true", help="write the counts to baseline.json")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("skipped: valgrind is not installed", file=sys.stderr)
        return 0
    cases = ("loop", "prepared", "strings", "hold", "charge", "meter")
    per_call = {case: (instructions(case, MANY) - instructions(case, FEW)) / (MANY - FEW) for case in cases}
    counts = {case: round(count - per_call["loop"]) for case, count in per_call.items() if case != "loop"}
    build = f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}"
    kept = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    comparable = kept.get("build") == build
    worse = False
    for case, count in counts.items():
        before = kept.get("counts", {}).get(case) if comparable else None
        change = "" if before is None else f"  kept {before:,}, {count / before - 1:+.1%}"
        worse = worse or (before is not None and count > before * RISE_MAX)
        print(f"{case:<10}{count:>8,} instructions per call{change}")
    if arguments.keep:
        BASELINE.write_text(json.dumps({"build": build, "counts": counts}, indent=1) + "\n")
    elif not comparable:
        print(f"not compared: the kept figures are from {kept.get('build', 'nowhere')}, this is {build}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
