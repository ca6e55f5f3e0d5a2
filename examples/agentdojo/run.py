"""Fetch AgentDojo into an environment of its own, extract its calls, decide them, print the report, play some attacks.

For: `make run`, with the Python in which `tollkeeper` is installed. The first run makes the virtual environment
and installs the pinned packages of `requirements.txt`; later runs find both, and the extracted calls, and use
no network.

Refuses to: put a single package of AgentDojo's into the product's own environment, and to call a failed fetch a
result: when the packages cannot be had, it says so in one line and exits with 3, so that a caller can decide
something else instead. Other exit codes are those of `report.py` and `attack.py`; 2 is a step that failed for another
reason.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
EXTRACT = HERE / "extract.py"
REPORT = HERE / "report.py"
ATTACK = HERE / "attack.py"
DEFAULT_VENV = HERE.parents[1] / ".venv-agentdojo"

EXIT_FAILED = 2
EXIT_NO_NETWORK = 3

# Making the environment, installing and extracting take 9 s together, near a fast mirror (measured on two cores).
# A machine that needs ten minutes for one of these is stuck, and a stuck `make run` should say so.
STEP_TIMEOUT_SECONDS = 600


class StepError(Exception):
    """A step that failed; carries what to print and the exit code."""

    def __init__(self, message: str, code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = code


def step(what: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Run one command quietly; its last line of complaint becomes the error."""
    try:
        done = subprocess.run(  # noqa: S603 - the commands are written in this file, no shell is involved
            command,
            check=False,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=STEP_TIMEOUT_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        message = f"{what} did not finish in {STEP_TIMEOUT_SECONDS} s"
        raise StepError(message) from error
    except OSError as error:
        message = f"{what} could not start: {error}"
        raise StepError(message) from error
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines()]
        # pip prints its errors first and may add a notice about itself; any other tool's last line says most.
        errors = [line for line in lines if line.startswith("ERROR:")] or [line for line in lines if line]
        last = errors[-1].removeprefix("ERROR: ") if errors else f"exit status {done.returncode}"
        message = f"{what} failed: {last}"
        raise StepError(message)


def digest(*files: Path) -> str:
    """What tells one version of these files, and of this Python, from another."""
    state = hashlib.sha256(sys.version.encode())
    for file in files:
        state.update(hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()


def is_current(stamp: Path, expected: str) -> bool:
    """Whether the stamp was left by a step that finished with the same inputs."""
    return stamp.is_file() and stamp.read_text(encoding="ascii").strip() == expected


def venv_python(venv: Path) -> Path:
    """The interpreter inside a virtual environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(venv: Path) -> None:
    """Make the environment and put the pinned packages into it, unless that has been done."""
    stamp, expected = venv / "requirements.sha256", digest(REQUIREMENTS)
    python = venv_python(venv)
    if is_current(stamp, expected) and python.exists():
        return
    if venv.is_dir() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file():
        # The next step empties the directory, so it must not be somebody's folder.
        message = f"{venv} exists and is not a virtual environment; name another directory with --venv"
        raise StepError(message)
    sys.stderr.write(f"fetching AgentDojo into {venv} (once)\n")
    stamp.unlink(missing_ok=True)
    # --clear, so that nothing of an older requirements.txt, or of an interrupted run, stays behind.
    step("making the virtual environment", [sys.executable, "-m", "venv", "--clear", str(venv)])
    # fmt: off
    command = [
        str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
        "--retries", "1", "--timeout", "20", "--only-binary", ":all:", "--no-deps", "-r", str(REQUIREMENTS),
    ]
    # fmt: on
    try:
        step("pip", command)
    except StepError as error:
        raise StepError(f"no network: the AgentDojo package cannot be fetched ({error})", EXIT_NO_NETWORK) from error
    stamp.write_text(expected + "\n", encoding="ascii")


def extract(venv: Path) -> Path:
    """The extracted calls, kept inside the environment until the packages or `extract.py` change."""
    calls, stamp, expected = venv / "calls.json", venv / "calls.sha256", digest(REQUIREMENTS, EXTRACT)
    if not (is_current(stamp, expected) and calls.is_file()):
        stamp.unlink(missing_ok=True)
        step("extract.py", [str(venv_python(venv)), str(EXTRACT), "--out", str(calls)])
        stamp.write_text(expected + "\n", encoding="ascii")
    return calls


def main() -> int:
    """Run the steps; the exit code is the report's, unless a step before it failed."""
    parser = argparse.ArgumentParser(description="Decide AgentDojo's tool calls with the policies in this folder.")
    parser.add_argument("--venv", type=Path, default=DEFAULT_VENV, help="AgentDojo's own environment (%(default)s)")
    parser.add_argument("--calls", type=Path, help="use this document of extract.py's and fetch nothing")
    arguments = parser.parse_args()
    try:
        calls = arguments.calls
        if calls is None:
            venv = arguments.venv.resolve()
            install(venv)
            calls = extract(venv)
    except StepError as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    report = [sys.executable, str(REPORT), "--calls", str(calls)]
    status = subprocess.run(report, check=False).returncode  # noqa: S603 - the command is written on the line above
    sys.stdout.write("\n")
    if arguments.calls is not None:
        sys.stdout.write("No attack is played from end to end: that needs AgentDojo, and --calls fetches nothing.\n")
        return status
    sys.stdout.flush()
    attack = [sys.executable, str(ATTACK), "--venv", str(venv)]
    return subprocess.run(attack, check=False).returncode or status  # noqa: S603 - as above


if __name__ == "__main__":
    sys.exit(main())
