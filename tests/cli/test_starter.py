"""``tollkeeper init``, and that everything it writes works; ``check``, ``decide`` and ``doctor`` on it."""

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tollkeeper

Cli = Callable[..., Any]
Snapshot = Callable[[Any], None]
needs_gate = pytest.mark.skipif(not hasattr(tollkeeper, "Gate"), reason="this build has no gate")


@pytest.fixture
def starter(cli: Cli, tmp_path: Path) -> Path:
    assert cli("init").code == 0
    return tmp_path


def test_init(cli: Cli, snapshot: Snapshot, tmp_path: Path) -> None:
    done = cli("init", "here")
    snapshot(done)
    files = [path for path in (tmp_path / "here").rglob("*") if path.is_file()]
    assert len(files) == 8
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o644}


def test_init_overwrites_nothing(cli: Cli, snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "tollkeeper.toml").write_text("mine")
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "cases.md").symlink_to("nowhere")
    snapshot(cli("init"))
    assert (tmp_path / "tollkeeper.toml").read_text() == "mine"
    assert not (tmp_path / "entities.json").exists()


@pytest.mark.usefixtures("starter")
def test_the_starter_validates(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("policy", "validate"))


@pytest.mark.usefixtures("starter")
def test_the_starter_passes_its_cases(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("policy", "test", "--require-coverage"))


@needs_gate
@pytest.mark.usefixtures("starter")
def test_the_starter_decides(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("decide", "actions.jsonl"))


@needs_gate
@pytest.mark.usefixtures("starter")
def test_decide_json(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("decide", "--json", "actions.jsonl"))


@needs_gate
@pytest.mark.parametrize(
    "line",
    ['{"principal": "Agent::researcher", "tool": "search"}', '{"principal": 3}', '{"tool": "search", "args": {}}', ""],
)
def test_decide_bad_line(cli: Cli, starter: Path, line: str) -> None:
    (starter / "a.jsonl").write_text(line)
    done = cli("decide", "a.jsonl")
    assert done.code == 2
    assert done.err.startswith("error: a.jsonl")
    assert "Traceback" not in done.err


@needs_gate
@pytest.mark.usefixtures("starter")
def test_check_allow(cli: Cli, snapshot: Snapshot) -> None:
    words = ("--principal", 'Agent::"researcher"', "--arguments", '{"path": "/workspace/notes.txt"}')
    snapshot(cli("check", "read_file", *words))


@needs_gate
@pytest.mark.usefixtures("starter")
def test_check_deny(cli: Cli, snapshot: Snapshot) -> None:
    words = ("--principal", 'Agent::"researcher"', "--arguments", '{"path": "/workspace/.env"}', "--json")
    snapshot(cli("check", "read_file", *words))


@needs_gate
@pytest.mark.usefixtures("starter")
@pytest.mark.usefixtures("starter")
def test_each_check_has_a_session_of_its_own(cli: Cli) -> None:
    for words in ((), (), ("--session", "mine")):
        cli("check", "--principal", 'Agent::"researcher"', *words, "search", "--arguments", '{"query": "x"}')
    found = [
        json.loads(line)["entry"] for line in cli("audit", "show", "--kind", "decision", "--json").out.splitlines()
    ]
    first, second, third = (entry["session"] for entry in found)
    assert re.fullmatch(r"cli-[0-9a-f]{8}", first)
    assert re.fullmatch(r"cli-[0-9a-f]{8}", second)
    assert (first != second, third) == (True, "mine")


def test_check_bad_arguments(cli: Cli) -> None:
    for arguments in ("[]", "{", '{"a": }', "@none.json"):
        done = cli("check", "search", "--principal", 'Agent::"researcher"', "--arguments", arguments)
        assert done.code == 2, arguments
        assert done.err.startswith("error: ")
        assert "Traceback" not in done.err


@needs_gate
@pytest.mark.usefixtures("starter")
def test_check_an_unknown_tool(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("check", "launch_rocket", "--principal", 'Agent::"researcher"'))


@needs_gate
@pytest.mark.usefixtures("starter")
def test_check_without_a_configuration(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("check", "search", "--principal", 'Agent::"researcher"', "--config", "none.toml"))


@needs_gate
def test_validate_says_what_the_gate_refuses(cli: Cli, snapshot: Snapshot, starter: Path) -> None:
    file = starter / "tollkeeper.toml"
    file.write_text(file.read_text().replace("schema =", "# schema =", 1))
    snapshot(cli("policy", "validate"))


def doctor(cli: Cli) -> tuple[int, dict[str, dict[str, str]]]:
    done = cli("doctor", "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    return done.code, {line["subject"]: line for line in lines}


@pytest.mark.usefixtures("starter")
def test_doctor_finds_the_starter_healthy(cli: Cli) -> None:
    code, lines = doctor(cli)
    assert code == 0, lines
    assert {lines[subject]["state"] for subject in ("config", "policies", "entities", "tests")} == {"ok"}
    assert "fork" in lines


def test_doctor_says_which_entities_it_counts(cli: Cli, starter: Path) -> None:
    _, found = doctor(cli)
    own = len(json.loads((starter / "entities.json").read_text()))
    assert found["entities"]["text"].startswith(f"entities.json: {own} entities, and ")
    assert found["entities"]["text"].endswith(" actions of the schema")


def test_doctor_reports_the_ledger(cli: Cli, starter: Path) -> None:
    code, lines = doctor(cli)
    assert (code, lines["ledger"]["state"]) == (0, "warn")
    file = starter / "tollkeeper.toml"
    text = file.read_text()
    file.write_text(text.replace("# state =", "state ="))
    budgets = starter / "budgets.toml"
    # Wherever the tests run, also on tmpfs.
    budgets.write_text("[ledger]\nvolatile = true\n" + budgets.read_text())
    assert "made by the first program" in doctor(cli)[1]["ledger"]["text"]
    assert not (starter / "state").exists()
    asked = ("check", "search", "--principal", 'Agent::"researcher"', "--arguments", '{"query": "x"}')
    assert cli(*asked, "--budget", "acme/trial/bo").code == 0
    again = cli(*asked, "--budget", "acme/trial/bo")
    assert (again.code, "budget: acme/trial/bo, requests total" in again.out) == (1, True)
    assert cli(*asked, "--budget", "acme/nobody").code == 2
    code, lines = doctor(cli)
    assert code == 0
    assert "volatile" in lines["ledger"]["text"]
    assert (lines["holds"]["text"], lines["clock"]["state"]) == ("0 live holds", "ok")
    file.write_text(text.replace('file = "budgets.toml"', "").replace("[budget]", ""))
    code, lines = doctor(cli)
    assert (code, lines["ledger"]["state"]) == (1, "fail")


def test_doctor_without_a_configuration(cli: Cli) -> None:
    code, lines = doctor(cli)
    assert code == 0
    assert lines["config"] == {
        "state": "warn",
        "subject": "config",
        "text": "tollkeeper.toml: no such file",
        "fix": "tollkeeper init",
    }


def test_doctor_names_the_fix(cli: Cli, starter: Path) -> None:
    (starter / "tollkeeper.toml").chmod(0o666)
    policies = starter / "policies" / "limits.cedar"
    policies.write_text(policies.read_text().replace("input.path", "input.pth"))
    code, lines = doctor(cli)
    assert code == 1
    assert lines["permissions"]["fix"] == "chmod go-w tollkeeper.toml"
    assert lines["policies"]["state"] == "fail"
    assert lines["policies"]["text"].startswith("policies/limits.cedar:10:")


def test_doctor_prints_for_people(cli: Cli) -> None:
    done = cli("doctor")
    assert (done.code, done.err) == (0, "")
    assert "warn  config        tollkeeper.toml: no such file\n" in done.out
    assert "fix: tollkeeper init\n" in done.out


def test_a_typo_in_the_configuration(cli: Cli, snapshot: Snapshot, starter: Path) -> None:
    file = starter / "tollkeeper.toml"
    file.write_text(file.read_text().replace("on_error", "on_eror"))
    snapshot(cli("policy", "validate"))
