"""Runs the public conformance suite against our fixture server, directly and through `tollkeeper mcp`, and compares.

A program, for `make test-conformance`. The gate allows everything, records it and makes a budget pay, so a check that
passes on one side only is the proxy's doing. Both revisions are run. Exit code 0: the same checks pass, as many as are
kept below; 1: something differs, and is named; 2: a part is missing or did not start.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
SERVER = Path(__file__).with_name("conformance_server.py")
SUITE = Path("node_modules/@modelcontextprotocol/conformance/dist/index.js")
NODE = Path("node_modules/.bin/node")
PRINCIPAL = 'Agent::"conformance"'
# What follows the scenario's name in the name of its folder: when it was run.
FOLDER = re.compile(r"-\d{4}-\d\d-\d\dT[\d-]+Z$")
START_SECONDS = 60.0
SUITE_SECONDS = 120.0
# Checks that pass directly, and scenarios that are scored for the revision and all have to. What does not pass is in
# scenarios of an extension that the fixture server does not have.
REVISIONS = {"2025-11-25": 84, "2026-07-28": 170}

FILES = {
    "allow.cedar": f"permit(principal == {PRINCIPAL}, action, resource);\n",
    "budgets.toml": """
[budget."suite"]
limits = [
    { unit = "tokens", window = "1d", limit = 1_000_000_000 },
    { unit = "requests", window = "1d", limit = 1_000_000 },
    { unit = "nano_usd", window = "total", limit = 1_000_000_000_000 },
    { unit = "in_flight", window = "total", limit = 1_000 },
]
[price."sampling"]
prompt = "1"
completion = "1"
""",
    "tollkeeper.toml": """
[policy]
files = ["allow.cedar"]
[budget]
file = "budgets.toml"
state = "ledger.bin"
[audit]
dir = "audit"
""",
}


class Check(NamedTuple):
    """A check as the suite names it; scenarios run some of them several times."""

    scenario: str
    id: str
    description: str


class Result(NamedTuple):
    """What a run of the suite has found."""

    passed: Counter[Check]
    failed: Counter[Check]
    status: int
    """Of the suite: 0 if all scenarios that are scored have passed."""
    seconds: float


class Missing(Exception):  # noqa: N818 - says what it is
    """A part that is not there, or did not start."""


@contextmanager
def started(command: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended with SIGTERM; one that does not end by that is a failure."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=env)  # noqa: S603
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Missing(f"{command[0]} did not end on SIGTERM; see {log}") from None


def line_of(process: subprocess.Popen[bytes], file: Path, prefix: str) -> str:
    """The first line of a file that begins so, once it is there and whole."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        text = file.read_text() if file.exists() else ""
        found = [line for line in text.splitlines(keepends=True) if line.startswith(prefix) and line.endswith("\n")]
        if found:
            return found[0]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise Missing(f"did not start: {' '.join(map(str, process.args))}\n{file.read_text() if file.exists() else ''}")


@contextmanager
def server(python: Path, folder: Path) -> Iterator[str]:
    """The fixture server; its URL."""
    ready = folder / "ready"
    # What the SDK deprecates is what the older revision has.
    command = [str(python), "-W", "ignore", str(SERVER), "--ready", str(ready)]
    with started(command, folder / "server.log") as process:
        yield f"http://127.0.0.1:{line_of(process, ready, '').strip()}/mcp"


@contextmanager
def proxied(upstream: str, folder: Path) -> Iterator[str]:
    """`tollkeeper mcp` in front of it; its URL."""
    for name, text in FILES.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "tollkeeper", "mcp", "--upstream", upstream, "--listen", "127.0.0.1:0"]
    command += ["--config", str(folder / "tollkeeper.toml"), "--principal", PRINCIPAL, "--budget", "suite"]
    log = folder / "proxy.log"
    with started(command, log, os.environ | {"PYTHONPATH": str(ROOT / "python")}) as process:
        prefix = "tollkeeper: listening on "
        yield line_of(process, log, prefix).removeprefix(prefix).split(",")[0]
    verified = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "tollkeeper", "audit", "verify", str(folder / "audit")],
        env=os.environ | {"PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        check=False,
    )
    if verified.returncode:
        raise Missing(f"the audit log of the run does not verify:\n{verified.stdout}{verified.stderr}")


def suite(npm: Path, url: str, revision: str, folder: Path) -> Result:
    """Runs the suite once."""
    command = [str(npm / NODE), str(npm / SUITE), "server", "--url", url, "--requirements", revision]
    command += ["--output-dir", str(folder / "checks")]
    begun = time.monotonic()
    with (folder / "suite.log").open("wb") as log:
        done = subprocess.run(  # noqa: S603
            command, stdout=log, stderr=log, timeout=SUITE_SECONDS, check=False
        )
    seconds = time.monotonic() - begun
    passed, failed = Counter[Check](), Counter[Check]()
    for file in (folder / "checks").glob("*/checks.json"):
        scenario = FOLDER.sub("", file.parent.name.removeprefix("server-"))
        for check in json.loads(file.read_text()):
            named = Check(scenario, check["id"], check["description"])
            if check["status"] == "SUCCESS":
                passed[named] += 1
            elif check["status"] == "FAILURE":
                failed[named] += 1
    return Result(passed, failed, done.returncode, seconds)


def both(npm: Path, python: Path, revision: str, folder: Path) -> tuple[Result, Result]:
    """The suite against a new server, and against another one behind the proxy."""
    results = list[Result]()
    for side in ("direct", "proxied"):
        place = folder / revision / side
        place.mkdir(parents=True)
        with ExitStack() as stack:
            url = stack.enter_context(server(python, place))
            if side == "proxied":
                url = stack.enter_context(proxied(url, place))
            results.append(suite(npm, url, revision, place))
    return results[0], results[1]


def compared(revision: str, direct: Result, through: Result) -> list[str]:
    """What is wrong, in lines."""
    wrong = list[str]()
    for name, result in (("directly", direct), ("through the proxy", through)):
        if result.status:
            wrong.append(f"{revision}: a scored scenario fails {name} (exit code {result.status})")
    if direct.passed.total() < REVISIONS[revision]:
        wrong.append(f"{revision}: {direct.passed.total()} checks pass directly, {REVISIONS[revision]} are kept")
    for text, more, fewer in (
        ("passes directly and not through the proxy", direct.passed, through.passed),
        ("passes through the proxy and not directly", through.passed, direct.passed),
    ):
        wrong += [f"{revision}: {text}: {check.scenario}: {check.id}: {check.description}" for check in more - fewer]
    return wrong


def there(*parts: Path) -> None:
    missing = [str(part) for part in parts if not part.exists()]
    if missing:
        raise Missing(f"not there: {', '.join(missing)}")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--npm", type=Path, required=True, help="where npm has put the suite and Node")
    parser.add_argument("--python", type=Path, required=True, help="of an environment with the MCP SDK")
    parser.add_argument("--keep", type=Path, help="a folder for logs and checks; default: one that is removed")
    given = parser.parse_args()
    try:
        there(given.npm / NODE, given.npm / SUITE, given.python)
        with tempfile.TemporaryDirectory() as made:
            folder = given.keep or Path(made)
            results = {revision: both(given.npm, given.python, revision, folder) for revision in REVISIONS}
    except (Missing, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"conformance: {error}\n")
        return 2
    say(f"{'revision':<12}{'':<10}{'pass':>6}{'fail':>6}{'scored':>8}{'seconds':>9}")
    for revision, sides in results.items():
        for name, result in zip(("direct", "proxied"), sides, strict=True):
            counts = f"{result.passed.total():>6}{result.failed.total():>6}"
            say(f"{revision:<12}{name:<10}{counts}{'no' if result.status else 'all':>8}{result.seconds:>9.1f}")
    wrong = [line for revision, sides in results.items() for line in compared(revision, *sides)]
    say("\n".join(wrong) if wrong else "the same checks pass directly and through the proxy")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
