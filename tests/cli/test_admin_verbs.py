"""The verbs that administer: revoke, restore, approvals, reload, status."""

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Cli, environment
from tests.gate.conftest import written

from tollkeeper import Gate, GateAdmin, _native

POLICIES = """
@id("search") permit(principal, action == Action::"search", resource);
@id("model") permit(principal, action == Action::"call_model", resource);
@id("wire") @approval("finance") permit(principal, action == Action::"wire", resource);
"""
CONFIG = """
[policy]
files = ["p.cedar"]
[state]
[audit]
origin = "example.com/gate"
ring_kib = 512
[budget]
file = "budgets.toml"
state = "state/ledger.bin"
[tools.search]
resource = 'Mcp::"web"'
[tools.wire]
resource = 'Mcp::"bank"'
"""
BUDGETS = """
[budget."acme"]
limits = [{ unit = "tokens", window = "1d", limit = 10000 }]
"""
A = 'Agent::"a"'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A gate's files."""
    return written(tmp_path, CONFIG, POLICIES, BUDGETS)


@pytest.fixture
def gate(folder: Path) -> Iterator[Gate]:
    """An open gate."""
    with Gate.open(folder / "tollkeeper.toml") as gate:
        yield gate


def asked(gate: Gate, arguments: dict[str, Any]) -> str:
    """The id of a question."""
    with gate.run(principal=A, session="s"):
        return gate.approval(gate.check("wire", arguments)).id


# --- revoke and restore -----------------------------------------------------------------------------------------------


def test_revoke_prints_a_receipt(gate: Gate, cli: Cli) -> None:
    with (
        gate.run(principal=A, session="s", budget="acme"),
        gate.model_call(model="gpt-5", prompt_tokens=10, max_tokens=100) as call,
    ):
        done = cli("revoke", "--principal", A, "--reason", "it was taken over")
        assert not call.charge(1)
        call.settle(prompt=10, completion=0)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"revoked principal {A}"
    assert lines[1].startswith("generation    1: ")
    assert re.fullmatch(r"live holds    1: \S+; whoever charges one is told to stop", lines[3])
    assert lines[4].startswith("unfinished    1 call allowed before and not yet reported finished (all ")
    assert lines[5] == f"  {call.decision.id}"
    again = cli("revoke", "--principal", A)
    assert again.out.splitlines()[0] == f"revoked principal {A} (it was already)"
    restored = cli("restore", "--principal", A, "--json")
    plain = json.loads(restored.out)
    assert (restored.code, plain["generation"], plain["restored"], plain["changed"]) == (0, 2, True, True)
    nothing = cli("restore", "--principal", A)
    assert (nothing.code, nothing.out.startswith(f"nothing was revoked: principal {A} was not")) == (0, True)
    assert gate.stats()["pid"] == os.getpid()


def test_revoke_asks_whether_a_name_that_nobody_knows_is_meant(gate: Gate, cli: Cli) -> None:
    with gate.run(principal=A, session="s"):
        gate.check("search")
    for words in (("--principal", 'Agent::"bb"'), ("--session", "ss")):
        done = cli("revoke", *words)
        assert done.code == 0
        assert f"no decision of this {words[0][2:]} is in the log (all of" in done.out
        assert done.out.rstrip().endswith("; is it right?")
    with gate.run(principal='Agent::"bb"'):
        assert gate.check("search").code == "principal.revoked"
    for words in (("--principal", A), ("--session", "s")):
        assert "is it right?" not in cli("revoke", *words).out


def test_an_entity_that_has_done_nothing_yet_is_known(folder: Path, cli: Cli) -> None:
    (folder / "tollkeeper.toml").write_text(CONFIG.replace("[state]", 'entities = "e.json"\n[state]'))
    (folder / "e.json").write_text('[{"uid": {"type": "Agent", "id": "a"}, "attrs": {}, "parents": []}]')
    with Gate.open(folder / "tollkeeper.toml"):
        assert "is it right?" not in cli("revoke", "--principal", A).out
        done = cli("revoke", "--principal", 'Agent::"b"', "--json")
        assert re.fullmatch(
            r"no decision of this principal is in the log \(all of \d+ entr\w+\) "
            r"and no entity has this name; is it right\?",
            json.loads(done.out)["doubt"],
        )


def test_why_tells_no_request_where_there_was_none(gate: Gate, cli: Cli) -> None:
    cli("revoke", "--principal", A)
    for request in (None, "read the mail"):
        with gate.run(principal=A, session="s", request=request):
            assert gate.check("search").code == "principal.revoked"
        assert gate.log is not None
        gate.log.flush()
        done = cli("why", "last")
        assert ("request" in done.out) == (request is not None)
        assert "take the revocation back: tollkeeper restore --principal 'Agent::\"a\"'" in done.out


def test_revoke_asks_whether_a_tool_that_nobody_knows_is_meant(gate: Gate, cli: Cli) -> None:
    assert "is the name right?" in cli("revoke", "--tool", "sarch").out
    assert "is the name right?" not in cli("revoke", "--tool", "search").out
    assert gate.stats()["pid"] == os.getpid()


def test_a_receipt_says_what_it_does_not_know(folder: Path, cli: Cli) -> None:
    (folder / "tollkeeper.toml").write_text(
        CONFIG.replace('[audit]\norigin = "example.com/gate"\nring_kib = 512\n', "")
    )
    done = cli("revoke", "--everything")
    assert done.code == 0
    assert "unfinished    unknown: this gate keeps no log" in done.out
    plain = json.loads(cli("revoke", "--everything", "--json").out)
    assert (plain["calls"], plain["calls_unknown"]) == (None, "this gate keeps no log")


def test_a_revocation_without_a_record_is_told_and_is_no_success(folder: Path, gate: Gate, cli: Cli) -> None:
    (folder / "audit").rename(folder / "elsewhere")
    (folder / "audit").write_text("in the way")
    done = cli("revoke", "--everything")
    with gate.run(principal=A):
        assert gate.check("search").code == "principal.revoked"
    (folder / "audit").unlink()
    (folder / "elsewhere").rename(folder / "audit")
    assert done.code == 1
    assert "it is revoked, and the audit log does not say so" in done.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("revoke",), "one of the arguments --principal --tool --session --everything is required"),
        (("revoke", "--tool", "a", "--everything"), "not allowed with"),
        (("revoke", "--principal", "researcher"), "error: --principal researcher: "),
        (("revoke", "--tool", ""), "has 0 bytes"),
        (("restore", "--tool", "x" * 1000), "has 1000 bytes"),
        (("revoke", "--everything", "--config", "nowhere.toml"), "no such file"),
        (("revoke", "--everything", "--key", "nowhere.key"), "nowhere.key"),
        (("approvals", "show"), "say which"),
        (("approvals", "show", "0" * 16), "there is no approval"),
        (("approvals", "approve", "x"), "there is no approval"),
        (("approvals", "list", "x"), "takes no id"),
        (("approvals", "approve", "x", "--expires", "soon"), "is no time"),
        (("reload", "--wait", "-"), "is no time"),
        (("status", "nowhere.toml"), "no such file"),
    ],
)
def test_what_cannot_be_done_is_said(gate: Gate, cli: Cli, words: tuple[str, ...], expected: str) -> None:
    done = cli(*words)
    assert done.code == 2
    assert expected in done.err
    assert "Traceback" not in done.err
    assert not gate.closed


def test_a_key_that_is_missing_is_named_by_its_public_half(folder: Path, cli: Cli) -> None:
    known = _native.audit_keygen(folder / "admin.key", "admin")
    (folder / "tollkeeper.toml").write_text(CONFIG + f'[admin]\nkeys = ["{known}"]\n')
    done = cli("revoke", "--everything")
    assert done.code == 2
    assert "+".join(known.split("+")[:2]) in done.err
    private = (folder / "admin.key").read_text().splitlines()[1]
    assert private not in done.err
    assert cli("revoke", "--everything", "--key", "admin.key").code == 0
    assert cli("status").code == 0


def test_a_public_key_is_not_taken_for_a_private_one(gate: Gate, folder: Path, cli: Cli) -> None:
    (folder / "admin.pub").write_text(cli("audit", "keygen", "--out", "admin.key", "--origin", "admin").out)
    (folder / "admin.pub").chmod(0o644)
    done = cli("revoke", "--everything", "--key", "admin.pub")
    assert done.code == 2
    assert "admin.pub: this is the public half of a key" in done.err
    with gate.run(principal=A):
        assert gate.check("search").code == "allow"
    assert cli("revoke", "--everything", "--key", "admin.key").code == 0


# --- approvals --------------------------------------------------------------------------------------------------------


def test_approvals_are_listed_shown_and_granted(gate: Gate, cli: Cli) -> None:
    assert cli("approvals").out == "0 questions pending\n"
    approval = asked(gate, {"amount": 5})
    listed = cli("approvals").out.splitlines()
    assert listed[0].split() == ["approval", "state", "kind", "who", "what", "asked", "expires"]
    assert listed[1].split()[:5] == [approval, "pending", "finance", A, 'Action::"wire"']
    shown = cli("approvals", "show", approval)
    assert shown.code == 0
    for line in (
        f"who           {A}",
        'arguments     {"amount": 5}',
        'resource      Mcp::"bank"',
        "kind          finance",
    ):
        assert line in shown.out
    refused = cli("approvals", "approve", approval)
    assert (refused.code, GateAdmin.open(gate._path).approval(approval).state) == (2, "pending")
    assert "there is no terminal" in refused.err
    done = cli("approvals", "approve", approval, "--yes", "--expires", "5m")
    assert done.code == 0
    assert done.out.startswith(f"approved {approval}: once, until ")
    with gate.run(principal=A, session="s"):
        assert gate.check("wire", {"amount": 5}).allowed
    assert cli("approvals").out == "0 questions pending, 1 others (--all)\n"
    (plain,) = [json.loads(line) for line in cli("approvals", "list", "--all", "--json").out.splitlines()]
    assert (plain["state"], plain["binding"]["arguments"]) == ("used", {"amount": 5})
    assert cli("approvals", "approve", approval, "--yes").code == 2


def test_options_may_stand_before_the_id(gate: Gate, cli: Cli) -> None:
    for words in (("--yes", "{}"), ("--expires", "2h", "{}", "--yes"), ("{}", "--yes")):
        id_ = asked(gate, {"amount": len(words), "to": words[0]})
        done = cli("approvals", "approve", *(word.format(id_) for word in words))
        assert (done.code, f"approved {id_}" in done.out) == (0, True), done.err
    done = cli("approvals", "approve", "--yes", "0" * 16, "1" * 16)
    assert (done.code, "1" * 16 in done.err) == (2, True)
    assert "say which" in cli("approvals", "approve", "--yes").err


def test_a_question_is_rejected(gate: Gate, cli: Cli) -> None:
    approval = asked(gate, {"amount": 5})
    done = cli("approvals", "reject", approval, "--yes", "--reason", "not today")
    assert (done.code, done.out) == (0, f"rejected {approval}\n")
    with gate.run(principal=A, session="s"):
        assert gate.check("wire", {"amount": 5}).code == "approval.rejected"


def test_hostile_text_is_escaped(folder: Path, gate: Gate, cli: Cli) -> None:
    approval = asked(gate, {"to": "\x1b[2Jbob\u202e\nrejected", "\x9b31m": 1})
    for words in (("approvals", "show", approval), ("approvals",), ("approvals", "show", approval, "--json")):
        out = cli(*words).out
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)
    file = folder / "state" / "approvals" / f"{approval}.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "reason": "\x1b[31mfine", "kinds": ["\u202e", 7], "policies": "x"}))
    shown = cli("approvals", "show", approval)
    assert shown.code == 0
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", shown.out)


def test_a_document_that_was_changed_is_not_shown_as_what_is_asked(folder: Path, gate: Gate, cli: Cli) -> None:
    approval = asked(gate, {"amount": 5})
    file = folder / "state" / "approvals" / f"{approval}.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "binding": document["binding"].replace('"amount":5', '"amount":1')}))
    shown = cli("approvals", "show", approval)
    assert shown.code == 1
    assert "changed since the gate asked" in shown.err
    assert "amount" not in shown.out
    done = cli("approvals", "approve", approval, "--yes")
    assert done.code == 2
    assert "changed since the gate asked" in done.err
    assert "pending, changed" in cli("approvals").out


@pytest.mark.parametrize(("answer", "state"), [("y", "granted"), ("n", "pending"), ("", "pending")])
def test_a_terminal_is_asked(folder: Path, gate: Gate, answer: str, state: str) -> None:
    approval = asked(gate, {"amount": 5})
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "tollkeeper", "approvals", "approve", approval]
    process = subprocess.Popen(  # noqa: S603 - of this test
        words, cwd=folder, env=environment(), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    readable, _, _ = select.select([process.stderr], [], [], 20)
    assert readable
    os.write(ours, f"{answer}\n".encode())
    out, err = process.communicate(timeout=20)
    os.close(ours)
    os.close(theirs)
    assert 'arguments     {"amount": 5}' in out
    assert "[y/N]" in err
    assert process.returncode == (0 if state == "granted" else 1)
    assert GateAdmin.open(folder / "tollkeeper.toml").approval(approval).state == state


# --- reload -----------------------------------------------------------------------------------------------------------


def test_reload_says_who_has_the_new_files(folder: Path, cli: Cli) -> None:
    done = cli("reload")
    assert (done.code, done.out.splitlines()[1:]) == (0, ["no gate is running"])
    with Gate.open(folder / "tollkeeper.toml") as gate:
        assert cli("reload").code == 0
        (folder / "p.cedar").write_text(POLICIES + 'forbid(principal, action == Action::"search", resource);')
        done = cli("reload", "--wait", "0s")
        assert done.code == 1
        assert f"process {os.getpid()}: it does not watch its files" in done.out
        gate.reload()
        plain = json.loads(cli("reload", "--json").out)
        assert (plain["taken"], plain["missing"]) == ([os.getpid()], [])


def test_reload_tells_nobody_of_what_fails(folder: Path, cli: Cli) -> None:
    (folder / "p.cedar").write_text("permit(principal, action, resource")
    done = cli("reload")
    assert (done.code, done.out) == (2, "")
    assert "p.cedar:1" in done.err
    (folder / "p.cedar").write_text(POLICIES)
    (folder / "cases.md").write_text(
        "---\npolicies: p.cedar\n---\n\n| principal | action | resource | expect |\n|---|---|---|---|\n"
        '| Agent::"a" | Action::"search" | Mcp::"web" | deny (nothing permits) |\n'
    )
    (folder / "tollkeeper.toml").write_text(CONFIG.replace("[state]", 'tests = ["cases.md"]\n[state]'))
    done = cli("reload")
    assert done.code == 2
    assert "expected deny (nothing permits), actual allow by search" in done.err
    assert "cases.md:7" in done.err
    assert not (folder / "state" / "reload").exists()


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_before_anything_was_made(folder: Path, cli: Cli) -> None:
    done = cli("status")
    assert (done.code, done.err) == (0, "")
    assert "tier          library" in done.out
    assert "not against" in done.out
    assert "no gate has made its state yet" in done.out
    assert not (folder / "state").exists(), "looking makes nothing"
    assert not (folder / "audit").exists()
    plain = json.loads(cli("status", "--json").out)
    assert plain["state"]["missing"]


def test_status_while_gates_run(gate: Gate, cli: Cli) -> None:
    approval = asked(gate, {"amount": 5})
    admin = GateAdmin.open(gate._path)
    admin.revoke(session="t", reason="\x1b[31mred")
    with (
        gate.run(principal=A, session="s", budget="acme", labels=["untrusted"]),
        gate.model_call(model="gpt-5", prompt_tokens=10, max_tokens=100) as call,
    ):
        for _ in range(100):
            gate.check("search")
        assert gate.log is not None
        gate.log.flush()
        done, plain = cli("status"), json.loads(cli("status", "--json").out)
        call.settle(prompt=10, completion=3)
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out
    state = plain["state"]
    (own,) = state["gates"]
    assert (own["pid"], own["alive"], own["mode"], own["generation"]) == (os.getpid(), True, "enforce", 1)
    assert own["bundle"] == gate.stats()["bundle"].hex()
    assert (own["decisions"], own["codes"]["allow"]) == (102, 101)
    assert 0 < own["p50_ns"] <= own["p99_ns"] <= own["p999_ns"]
    assert state["denials"] == {"approval.required": 1}
    assert [(one["kind"], one["name"]) for one in state["revocations"]] == [("session", "t")]
    assert (state["approvals"], state["labels"], state["labels_overflow"]) == ({"pending": 1}, ["untrusted"], [])
    assert approval
    assert plain["budgets"]["holds"] == 1
    (limit,) = plain["budgets"]["limits"]
    assert (limit["path"], limit["held"], limit["limit"]) == ("acme", 110, 10_000)
    logs = {log["log"]: log for log in plain["logs"]["logs"]}
    assert logs[0]["owner"] == f"process {os.getpid()}"
    assert logs[0]["writer"] == "keeps up"
    assert logs[0]["ring_bytes"] == 512 << 10
    assert logs[1]["owner"] is None
    for text in (
        f"{os.getpid()}",
        "1 live hold",
        "session t",
        "keeps up",
        "approvals     1 pending",
        own["bundle"][:12],
    ):
        assert text in done.out


def test_status_of_a_folder_ends_with_what_it_does_not_stand_against(gate: Gate, folder: Path, cli: Cli) -> None:
    assert cli("revoke", "--tool", "wire", "--reason", "one\ntwo").code == 0
    with gate.run(principal=A):
        gate.check("search")
    done = cli("status", str(folder))
    lines = done.out.splitlines()
    assert (done.code, lines[0].split()[0]) == (0, "configuration")
    assert lines[-4].startswith("tier          library")
    assert "tool wire: one two (by " in done.out
    assert "\\n" not in cli("audit", "show").out
    assert "timed" in done.out


def test_status_names_a_process_that_died(folder: Path, cli: Cli) -> None:
    program = """
import os, sys
from tollkeeper import Gate
gate = Gate.open(sys.argv[1])
with gate.run(principal='Agent::"a"'):
    gate.check("search")
os.kill(os.getpid(), 9)
"""
    words = [sys.executable, "-c", program, str(folder / "tollkeeper.toml")]
    subprocess.run(words, env=environment(), check=False)  # noqa: S603 - of this test
    plain = json.loads(cli("status", "--json").out)
    (dead,) = plain["state"]["gates"]
    assert (dead["alive"], dead["decisions"]) == (False, 1)
    assert plain["logs"]["logs"][0]["owner"] is None
    assert "dead" in cli("status").out
    with Gate.open(folder / "tollkeeper.toml"):
        plain = json.loads(cli("status", "--json").out)
        assert [one["alive"] for one in plain["state"]["gates"]] == [True]
        assert plain["state"]["gone"]["decisions"] == 1


@pytest.mark.parametrize("broken", ["control.bin", "ledger.bin", "audit"])
def test_status_says_what_cannot_be_read_and_shows_the_rest(folder: Path, cli: Cli, broken: str) -> None:
    with Gate.open(folder / "tollkeeper.toml") as gate, gate.run(principal=A):
        gate.check("search")
    files = [folder / "state" / broken]
    if broken == "audit":
        files = [*(folder / "audit").rglob("checkpoint"), *(folder / "audit").rglob("ring")]
    for file in files:
        # Another file: this process has the old one mapped.
        file.unlink()
        file.write_bytes(os.urandom(5_000))
        file.chmod(0o600)
    done = cli("status")
    assert done.code == 0
    assert "Traceback" not in done.err
    assert "tier          library" in done.out
    if broken != "audit":
        assert "cannot be read" in done.out


def test_status_in_a_shadow_gate_without_anything(folder: Path, cli: Cli) -> None:
    (folder / "tollkeeper.toml").write_text('[gate]\nmode = "shadow"\n')
    done = cli("status")
    assert done.code == 0
    assert "no [state]" in done.out
    assert "nothing is recorded" in done.out
    started = time.monotonic()
    assert json.loads(cli("status", "--json").out)["logs"] is None
    assert time.monotonic() - started < 10
