"""Fixtures of the command line's tests: run it in a temporary folder, compare what it prints with a file.

A snapshot holds exit code, standard output and standard error. What differs between runs and machines is replaced by a
word in brackets, and nothing else is. ``TOLLKEEPER_UPDATE_SNAPSHOTS=1`` writes the files anew: read the difference.
"""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import tollkeeper

SNAPSHOTS = Path(__file__).parent / "snapshots"
FILTERS = [
    (re.compile(r"\b\d+\.\d (us|s)\b"), r"[TIME] \1"),
    (re.compile(r"\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\b"), "[TIME]"),
]


@dataclass
class Done:
    """A command that has ended."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str


Cli = Callable[..., Done]


@pytest.fixture(name="environment")
def environment_fixture() -> dict[str, str]:
    """What a command runs in."""
    return environment()


def environment() -> dict[str, str]:
    """The caller's, without what changes the output."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TOLLKEEPER_", "PYTHON"))}
    package = str(Path(tollkeeper.__file__).parent.parent)
    return {**kept, "PYTHONPATH": package, "PYTHONUTF8": "1", "COLUMNS": "100", "NO_COLOR": "1"}


def run_command(folder: Path, *words: str, stdin: str = "") -> Done:
    """Runs ``tollkeeper WORDS`` in a folder."""
    done = subprocess.run(  # noqa: S603 - the words are those of the tests
        [sys.executable, "-m", "tollkeeper", *words],
        cwd=folder,
        env=environment(),
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        umask=0o022,
    )
    return Done(words, done.returncode, done.stdout, done.stderr)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Runs ``tollkeeper WORDS`` in a temporary folder."""
    return functools.partial(run_command, tmp_path)


@pytest.fixture
def snapshot(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Done], None]:
    """Compares with the file named after the test."""

    def compare(done: Done) -> None:
        words = " ".join(word if re.fullmatch(r"[\w./-]+", word) else repr(word) for word in done.words)
        text = f"$ tollkeeper {words}\nexit: {done.code}\n--- stdout\n{done.out}--- stderr\n{done.err}"
        text = text.replace(str(tmp_path), "[DIR]")
        for pattern, word in FILTERS:
            text = pattern.sub(word, text)
        name = re.sub(r"[^\w]+", "_", request.node.name.removeprefix("test_")).strip("_")
        file = SNAPSHOTS / f"{name}.txt"
        if os.environ.get("TOLLKEEPER_UPDATE_SNAPSHOTS"):
            file.write_text(text, encoding="utf-8")
        assert file.exists(), f"no snapshot {file.name}; write it with TOLLKEEPER_UPDATE_SNAPSHOTS=1"
        assert text == file.read_text(encoding="utf-8")

    return compare
