"""Fills fuzz/corpus/ with seeds: the hostile inputs of tests/hostile and, if a folder is given, the Cedar data.

    python3 fuzz/seeds.py [FOLDER WITH *.jsonl.gz]

Repetitions are cut short: the fuzzer learns more from `((((` than from a megabyte of it. Nothing is committed.
"""

import gzip
import hashlib
import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = ROOT / "tests" / "hostile"
TARGETS = {"policy": "policy_text", "schema": "policy_text", "entities": "entities_json"}
REPEATS_MAX = 20
SEED_BYTES_MAX = 16_384


def hostile_bytes(case: dict[str, str | int]) -> bytes:
    """Returns the document of a manifest line with at most REPEATS_MAX repetitions."""
    if "file" in case:
        return (HOSTILE / str(case["file"])).read_bytes()
    count = min(int(case.get("count", 0)), REPEATS_MAX)
    one = str(case.get("repeat", ""))
    repeated = "".join(one.replace("{i}", str(i)).replace("{j}", str(i + 1)) for i in range(count))
    end = str(case.get("repeat_end", "")) * count
    parts = (case.get("prefix", ""), repeated, case.get("middle", ""), end, case.get("suffix", ""))
    return "".join(map(str, parts)).encode()


def write(target: str, seed: bytes) -> None:
    """Writes a seed under its hash, as the fuzzer itself does."""
    if len(seed) <= SEED_BYTES_MAX:
        folder = ROOT / "fuzz" / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)


def long_choices() -> None:
    """Bytes enough for several policies, entities and requests: left alone, the fuzzer stays with short inputs."""
    for number in range(64):
        write("compiled_vs_reference", random.Random(number).randbytes(400 + 40 * number))  # noqa: S311 - not a secret


def main() -> None:
    """Writes the seeds of all targets."""
    long_choices()
    for line in (HOSTILE / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if case["kind"] in TARGETS:
            write(TARGETS[case["kind"]], hostile_bytes(case))
    for folder in sys.argv[1:]:
        for path in sorted(Path(folder).glob("*.jsonl.gz")):
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                for test in map(json.loads, lines):
                    write("policy_text", test["policies"].encode())
                    write("policy_text", test["schema"].encode())
                    write("entities_json", json.dumps(test["entities"]).encode())


if __name__ == "__main__":
    main()
