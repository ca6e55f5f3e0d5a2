"""Every document of tests/hostile through Python: refused with its code, or read, and never the end of the process.

The cases run in one interpreter of their own, once from the main thread and once from a thread with a small stack, as
servers have them. A crash or a hang there is a failure here that names the case.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent / "hostile"
CASE_SECONDS_MAX = 20
ALL_SECONDS_MAX = 100
STACK_BYTES_SMALL = 256 << 10


pytestmark = pytest.mark.timeout(ALL_SECONDS_MAX + 20)

# Runs in the other interpreter: reads cases from standard input, writes a line before and after each.
RUNNER = """
import json, pathlib, sys, threading, time
from tollkeeper import Context, Entities, PolicySet, TollkeeperError

def read_schema(text):
    PolicySet.from_cedar("", text)

def read_schema_for_entities(text):
    Entities.from_json("[]", text)

def read_schema_for_context(text):
    try:
        Context.from_cedar_json("{}", text, action='Action::"a"')
    except TollkeeperError as error:
        if not error.code.startswith("context."):
            raise

WAYS = {
    "policy": [PolicySet.from_cedar],
    "schema": [read_schema, read_schema_for_entities, read_schema_for_context],
    "entities": [Entities.from_json],
    "context": [Context.from_cedar_json],
}

def text_of(case):
    if "file" in case:
        return pathlib.Path(case["file"])
    repeat, count = case.get("repeat", ""), case.get("count", 0)
    if "{i}" in repeat or "{j}" in repeat:
        repeated = "".join(repeat.replace("{i}", str(i)).replace("{j}", str(i + 1)) for i in range(count))
    else:
        repeated = repeat * count
    end = case.get("repeat_end", "") * count
    return case.get("prefix", "") + repeated + case.get("middle", "") + end + case.get("suffix", "")

def outcome(read, text):
    try:
        read(text)
    except TollkeeperError as error:
        return error.code, str(error)
    except Exception as error:
        return type(error).__name__, str(error)
    return "ok", ""

def run():
    for line in sys.stdin:
        case = json.loads(line)
        text = text_of(case)
        for number, read in enumerate(WAYS[case["kind"]]):
            print(json.dumps({"name": case["name"], "way": number}), flush=True)
            start = time.perf_counter()
            code, shown = outcome(read, text)
            took = time.perf_counter() - start
            print(json.dumps({"code": code, "shown": shown[:300], "length": len(shown), "seconds": took}), flush=True)

stack = int(sys.argv[1])
if stack:
    threading.stack_size(stack)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
else:
    run()
print("done", flush=True)
"""


def cases() -> list[dict[str, Any]]:
    lines = (FOLDER / "manifest.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for case in found:
        if "file" in case:
            case["file"] = str(FOLDER / case["file"])
    return found


def run(chosen: list[dict[str, Any]], stack_bytes: int) -> list[dict[str, Any]]:
    """The outcomes, a dict for each way to read each case; ends the test if the interpreter does not survive."""
    sent = "".join(json.dumps(case) + "\n" for case in chosen)
    command = [sys.executable, "-c", RUNNER, str(stack_bytes)]
    try:
        done = subprocess.run(  # noqa: S603
            command, input=sent, capture_output=True, text=True, timeout=ALL_SECONDS_MAX, check=False
        )
        output, status = done.stdout, f"exit status {done.returncode}: {done.stderr[-500:]}"
    except subprocess.TimeoutExpired as expired:
        output, status = (expired.stdout or b"").decode(), f"no end within {ALL_SECONDS_MAX} s"
    lines = output.splitlines()
    if not lines or lines[-1] != "done":
        pytest.fail(f"{status}, after {lines[-1:]}")
    lines.pop()
    return [json.loads(start) | json.loads(end) for start, end in zip(lines[::2], lines[1::2], strict=True)]


@pytest.mark.parametrize("stack_bytes", [0, STACK_BYTES_SMALL], ids=["main", "small-stack"])
def test_every_case_ends_as_its_manifest_says(stack_bytes: int) -> None:
    chosen = cases()
    assert len(chosen) > 150
    assert len({case["name"] for case in chosen}) == len(chosen)
    expected = {case["name"]: case["expect"] for case in chosen}
    found = run(chosen, stack_bytes)
    assert {one["name"] for one in found} == set(expected)
    wrong = [
        f"{one['name']} way {one['way']}: expected {expected[one['name']]}, found {one['code']}: {one['shown']}"
        for one in found
        if one["code"] != expected[one["name"]]
    ]
    wrong += [f"{one['name']}: took {one['seconds']:.1f} s" for one in found if one["seconds"] > CASE_SECONDS_MAX]
    # Twenty findings of message, excerpt and help.
    wrong += [f"{one['name']}: {one['length']} characters" for one in found if one["length"] > 20 * 4_000]
    assert not wrong, "\n" + "\n".join(wrong)
