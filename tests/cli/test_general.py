"""What all commands have in common: usage, signals, terminals, and the way out of every failure."""

import importlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import cli as package
from tollkeeper.cli import terminal

Cli = Callable[..., Any]
Snapshot = Callable[[Any], None]

PERMIT = "permit (principal, action, resource);"
REQUEST = '{"principal": "U::\\"a\\"", "action": "A::\\"a\\"", "resource": "R::\\"r\\""}\n'


def test_version(cli: Cli) -> None:
    done = cli("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("tollkeeper ")


@pytest.mark.parametrize(
    "words",
    [(), ("policy",), ("config",), ("nonsense",), ("policy", "nonsense"), ("budget",), ("check",), ("--nonsense",)],
)
def test_wrong_usage_is_bad_input(cli: Cli, words: tuple[str, ...]) -> None:
    done = cli(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert "\nhint: tollkeeper" in done.err
    assert "Traceback" not in done.err


def test_arguments_that_are_no_text_are_refused(tmp_path: Path, environment: dict[str, str]) -> None:
    for words in (
        (b"revoke", b"--tool", b"x", b"--reason", b"\xff"),
        (b"restore", b"--principal", b"\xff\x1b[31m"),
        (b"why", b"\xff"),
        (b"check", b"--principal", b"\xff", b"x"),
        (b"report", b"-o", b"\xff.html"),
        (b"\xff",),
    ):
        done = subprocess.run(  # noqa: S603 - the words are above
            [sys.executable, "-m", "tollkeeper", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=False,
        )
        position = next(at for at, word in enumerate(words, 1) if b"\xff" in word)
        assert (done.returncode, done.stdout) == (2, b"")
        assert done.stderr.startswith(f"error: argument {position} is not UTF-8 text: '\\udcff".encode())
        assert b"\x1b" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_every_verb_has_help(cli: Cli) -> None:
    verbs = [(verb,) for verb in package.VERBS] + [
        (group, verb) for group, below in package.GROUPS.items() for verb in below
    ]
    for words in verbs:
        done = cli(*words, "--help")
        assert (done.code, done.err) == (0, ""), words
        assert done.out.startswith(f"usage: tollkeeper {' '.join(words)}")


def test_every_verb_has_a_module() -> None:
    verbs = [*package.VERBS.values(), *(verb for group in package.GROUPS.values() for verb in group.values())]
    names = [module for module, _ in verbs if module]
    for name in names:
        module = importlib.import_module(f"tollkeeper.cli.{name}")
        assert callable(module.configure)
        assert callable(module.run)


def test_help_imports_no_verb(environment: dict[str, str]) -> None:
    code = "import sys, tollkeeper.cli as c; c.main(['--help']); print([m for m in sys.modules if 'msgspec' in m])"
    done = subprocess.run(  # noqa: S603 - the code is above
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert done.stdout.endswith("[]\n")


def start(environment: dict[str, str], folder: Path, *words: str, **streams: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "tollkeeper", *words], cwd=folder, env=environment, **streams)  # noqa: S603 - the words are those of the tests


def test_a_reader_that_has_enough_ends_it_quietly(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "p.cedar").write_text(PERMIT)
    (tmp_path / "r.jsonl").write_text(REQUEST * 20_000)
    words = ("policy", "authorize", "--policies", "p.cedar", "--requests", "r.jsonl")
    process = start(environment, tmp_path, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (128 + signal.SIGPIPE, b"")
    process.stderr.close()


def test_an_interrupt_ends_it_quietly(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "p.cedar").write_text(PERMIT)
    words = ("policy", "authorize", "--policies", "p.cedar", "--requests", "-")
    process = start(
        environment, tmp_path, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    # More answers than a pipe's writer buffers: once the first is here, it has long been at work.
    process.stdin.write(REQUEST.encode() * 1000)
    process.stdin.flush()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGINT, b"")


def test_a_terminal_gets_a_bar_and_a_file_does_not(tmp_path: Path, environment: dict[str, str], cli: Cli) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": "t", "policies": "", "entities": [], "requests": []}\n')
    words = ("policy", "conformance", "t.jsonl")
    controller, terminal_end = pty.openpty()
    process = start(environment, tmp_path, *words, stdout=subprocess.DEVNULL, stderr=terminal_end)
    assert process.wait() == 0
    os.close(terminal_end)
    drawn = os.read(controller, 10_000).decode()
    os.close(controller)
    assert "0 tests" in drawn
    assert drawn.endswith("\r\x1b[K"), "the bar is gone in the end"
    assert cli(*words).err == ""


def test_output_that_a_terminal_would_obey_is_escaped() -> None:
    assert terminal.shown("a\x1b[31mb\u202ec\nd\te\x9b") == "a\\u{1b}[31mb\\u{202e}c\\nd\\te\\u{9b}"
    assert terminal.shown_lines("a\nb\r") == "a\nb\\r"


def test_a_bar() -> None:
    assert terminal._bar(5, 10, "actions") == "[###############...............] 5 of 10 actions"
    assert terminal._bar(1234, None, "tests") == "1,234 tests"


def test_a_defect_is_neither_a_denial_nor_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(package, "_run", broken)
    assert package.main([]) == terminal.EXIT_DEFECT
    assert "ZeroDivisionError" in capsys.readouterr().err
