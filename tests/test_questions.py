"""The seven questions of the README, each answered by its command in the folder that ``tollkeeper init`` writes.

A test has the name of its question's number, runs the command that the table names, and looks at what it says; then at
the part that a command cannot show. Where the table says "not yet", the test shows that it is so.
"""

import contextlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import Denied, Gate, GateAdmin, StateError, _native
from tollkeeper.cli import main

ROOT = Path(__file__).resolve().parent.parent
RESEARCHER = 'Agent::"researcher"'
MESSAGE = {"to": ["eve@example.net"], "body": "the price"}
ROW = re.compile(r"^\| (.*?\?) \| (.*) \| `(tollkeeper .*)` \|$", re.MULTILINE)
TABLE = ROW.findall((ROOT / "README.md").read_text().split("<!-- questions -->")[1].split("\n## ")[0])
Ask = Callable[[int], tuple[int, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The example, with some decisions in its log."""
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    with (
        Gate.open("tollkeeper.toml") as gate,
        gate.run(
            principal=RESEARCHER,
            session="s-1",
            budget="acme/research",
            on_behalf_of='User::"eve"',
            request="what is new?",
        ),
    ):
        with gate.model_call(model="gpt-5", prompt_tokens=10, max_tokens=20) as call:
            call.settle(completion=5)
        gate.outcome(gate.check("search", {"query": "news"}, parent=call.decision.id), "ok")
        gate.check("delete_file", {"path": "/workspace/a"}, parent=call.decision.id)
    capsys.readouterr()
    return tmp_path


@pytest.fixture
def ask(folder: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs the command of a question; returns exit code and output."""
    assert folder.is_dir()

    def run(number: int) -> tuple[int, str]:
        code = main(shlex.split(TABLE[number - 1][2])[1:])
        return code, capsys.readouterr().out

    return run


def entries(output: str) -> list[dict[str, Any]]:
    return [json.loads(line)["entry"] for line in output.splitlines()]


def test_the_table_has_the_seven_questions() -> None:
    assert len(TABLE) == 7
    assert [name for name in globals() if re.match(r"test_\d", name)] == [
        f"test_{number}_{name}"
        for number, name in enumerate(
            ["intercepted", "deterministic", "tied", "rotation", "everywhere", "readable", "denials"], 1
        )
    ]


def test_1_intercepted(ask: Ask) -> None:
    """What nobody registered is denied, and so is what runs outside of any run; what does not ask is not."""
    code, out = ask(1)
    assert code == 1
    assert "input.unknown_tool" in out
    called: list[str] = []
    with Gate.open("tollkeeper.toml") as gate:

        @gate.guard
        def delete_file(path: str) -> None:
            called.append(path)

        with pytest.raises(Denied):
            delete_file("/workspace/a")
        with gate.run(principal=RESEARCHER, budget="acme/research"), pytest.raises(Denied):
            delete_file("/workspace/a")
        assert called == []
        # No: whoever reaches the function itself has gone around the gate.
        delete_file.__wrapped__("/workspace/a")  # type: ignore[attr-defined]
        assert called == ["/workspace/a"]
    assert "hostile code in the process: **no**" in TABLE[0][1]


def test_2_deterministic(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    """Decided again, everything comes out the same, and in another order too."""
    code, out = ask(2)
    assert code == 0
    assert "0 different" in out
    assert "0 the same" not in out
    actions = Path("actions.jsonl").read_text().splitlines()
    told = []
    for order in (actions[:9], actions[8::-1]):
        Path("some.jsonl").write_text("\n".join(order))
        assert main(["decide", "--json", "some.jsonl"]) in {0, 1}
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        told.append({line["line"]: line["code"] for line in lines if "line" in line})
    last = max(told[1])
    assert told[0] == {last + 1 - line: code for line, code in told[1].items()}


def test_3_tied(ask: Ask) -> None:
    code, out = ask(3)
    assert code == 0
    model, search, delete = entries(out)
    assert model["model"]["name"] == "gpt-5"
    for call in (search, delete):
        assert call["parent"] == model["id"]
        assert call["request"] == model["request"]
        assert call["arguments"]["commitment"]
        assert (call["principal"], call["on_behalf_of"], call["session"]) == (RESEARCHER, 'User::"eve"', "s-1")
    assert (search["tool"], search["resource"], search["decision"]) == ("search", 'Mcp::"web"', "allow")
    assert list(delete["policies"]) == ["never-delete"]
    # What the user asked is kept beside the log, behind that commitment.
    reader = _native.AuditReader("audit/0")
    assert any(reader.payload(index) == b"what is new?" for index in range(reader.size))


def test_4_rotation(ask: Ask) -> None:
    """An approver's key is exchanged while the gate is open: a grant with the old one no longer counts."""
    Path("policies/pay.cedar").write_text(
        '@id("anybody") @approval("boss") permit (principal, action == Action::"send_email", resource);'
    )
    config = Path("tollkeeper.toml").read_text()
    admins = []
    with contextlib.ExitStack() as stack:
        for name in ("old", "new"):
            key = _native.audit_keygen(f"{name}.key", name)
            Path("tollkeeper.toml").write_text(f"{config}\n[admin]\nkeys = ['{key}']\n")
            admins.append(GateAdmin.open("tollkeeper.toml", key=f"{name}.key"))
            if name == "old":
                gate = stack.enter_context(Gate.open("tollkeeper.toml"))
                stack.enter_context(gate.run(principal=RESEARCHER, budget="acme/research"))
                first = gate.approval(gate.check("send_email", MESSAGE))
                admins[0].approve(first.id)
        gate.reload()
        assert ask(4)[0] == 0
        assert gate.check("send_email", MESSAGE).code == "approval.required"
        second = gate.approval(gate.check("send_email", MESSAGE))
        admins[1].approve(second.id)
        assert gate.check("send_email", MESSAGE).approval == second.id
        with pytest.raises(StateError):
            GateAdmin.open("tollkeeper.toml", key="old.key")
    # Not yet: the log's own key.
    assert "**not yet**" in TABLE[3][1]
    Path("audit/signer.key").unlink()
    assert main(["audit", "rotate"]) == 2


def test_5_everywhere(ask: Ask, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy elsewhere, in an environment that tries to meddle, has the same digest and decides the same."""
    here = Path.cwd()
    shutil.copytree(here, here / "elsewhere", ignore=shutil.ignore_patterns("audit", "state"))
    told, bundles = [], []
    for place in (here, here / "elsewhere"):
        monkeypatch.chdir(place)
        assert main(["decide", "--json", "actions.jsonl"]) in {0, 1}
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        told.append([(line.get("line"), line.get("code"), line.get("policies")) for line in lines])
        code, out = ask(5)
        assert code == 0
        bundles.append({entry["bundle"] for entry in entries(out)})
        for name in ("MODE", "GATE_MODE", "ON_ERROR", "ON_FULL", "FAIL_OPEN"):
            monkeypatch.setenv(f"TOLLKEEPER_{name}", "allow")
    assert told[0] == told[1]
    assert bundles[0] == bundles[1]
    assert "**not yet**" in TABLE[4][1]


def test_6_readable(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    """Every policy as a sentence with its place, and all of them as a table."""
    code, out = ask(6)
    assert code == 0
    for policy in re.findall(r'@id\("(.*?)"\)', "".join(file.read_text() for file in Path("policies").glob("*.cedar"))):
        assert re.search(rf"^policies/\w+\.cedar:\d+:\d+: {policy} (forbids|permits) ", out, re.MULTILINE)
    assert main(["policy", "matrix"]) == 0
    assert "delete_file" in capsys.readouterr().out


def test_7_denials(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    """The cases of the example hold, and each forbid that is taken away breaks one."""
    assert ask(7)[0] == 0
    limits = Path("policies/limits.cedar").read_text()
    for policy in ("never-delete", "no-secrets"):
        weak = re.sub(rf'(@id\("{policy}"\)[^;]*?resource\))[^;]*;', r"\1 when { 1 > 2 };", limits)
        assert weak != limits
        Path("policies/limits.cedar").write_text(weak)
        assert main(["policy", "test"]) == 1
        assert "failed" in capsys.readouterr().out
