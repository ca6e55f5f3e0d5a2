"""Attacks of AgentDojo from end to end: the command, the proof in its log, and that neither can be fooled.

The command needs AgentDojo in an environment of its own. Where that is not there and cannot be fetched, what needs
it is skipped, with what the command says.
"""

import copy
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tollkeeper._native import AuditReader

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "agentdojo"


@pytest.fixture(name="attack", scope="module")
def attack_fixture() -> Iterator[ModuleType]:
    """The command as a module; the example is a program and not a package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        yield importlib.import_module("attack")
        for file in EXAMPLE.glob("*.py"):
            sys.modules.pop(file.stem, None)


@pytest.fixture(name="command", scope="module")
def command_fixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the command prints, and the folder in which it kept everything."""
    folder = tmp_path_factory.mktemp("attack")
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, str(EXAMPLE / "attack.py"), "--keep", str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, [line for line in done.stderr.splitlines() if line.startswith("error")]) == (0, [])
    return done.stdout, folder


def played(folder: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The pairs with their results."""
    plan, results = (json.loads((folder / f"{name}.json").read_text()) for name in ("plan", "played"))
    return list(zip(plan, results, strict=True))


def test_the_attack_succeeds_without_policies_and_fails_with_them(command: tuple[str, Path]) -> None:
    pairs = played(command[1])
    assert {pair["suite"] for pair, _ in pairs} == {"banking", "slack", "travel", "workspace"}
    for _, results in pairs:
        verdicts = {name: (result["attack_succeeded"], result["task_done"]) for name, result in results.items()}
        assert verdicts == {
            "without": (True, True),
            "permitted": (True, True),
            "static": (False, True),
            "labels": (False, True),
            "narrowing": (False, True),
        }
        # The same model with the same script: it asks for the same everywhere, and is told no in three of five runs.
        assert len({tuple(result["asked"]) for result in results.values()}) == 1


def test_the_log_proves_what_was_denied_and_what_has_run(command: tuple[str, Path]) -> None:
    text, folder = command
    log = [json.loads(raw) for _, raw in AuditReader(folder / "audit").entries()]
    assert f"tollkeeper audit verify: ok, {len(log)} entries (exit status 0)" in text
    decisions = [entry for entry in log if entry["kind"] == "decision"]
    ended = {entry["of"]: entry["status"] for entry in log if entry["kind"] == "outcome"}
    models = {entry["id"]: entry for entry in decisions if "model" in entry}
    for pair, results in played(folder):
        for name, held in pair["gates"].items():
            session = held["run"]["session"]
            calls = [entry for entry in decisions if entry["session"] == session and "tool" in entry]
            assert [entry["tool"] for entry in calls] == results[name]["asked"]
            allowed = [entry for entry in calls if entry["decision"] == "allow"]
            assert [(entry["tool"], ended[entry["id"]]) for entry in allowed] == [
                (tool, "ok") for tool in results[name]["ran"]
            ]
            for entry in calls:
                parent = models[entry["parent"]]
                assert (parent["session"], parent["decision"]) == (session, "allow")
                if entry["decision"] == "deny":
                    # By then the session had read what the attack was planted in.
                    assert entry["id"] not in ended
                    assert name == "static" or "untrusted" in entry["labels"]


def test_each_layer_stops_something(attack: ModuleType, command: tuple[str, Path]) -> None:
    folder = command[1]
    found = attack.proofs(folder / "audit")
    layers = {
        attack.layer(pair["suite"], entry)
        for pair, _ in played(folder)
        for entry in found[pair["gates"]["narrowing"]["run"]["session"]].denied
    }
    assert layers == {"static", "labels", "narrowing"}


def test_where_everything_is_permitted_instead_the_command_says_so(
    attack: ModuleType, command: tuple[str, Path], tmp_path: Path
) -> None:
    """The gate of the last column gets policies that permit everything, and its run is held to nothing."""
    plan = copy.deepcopy([pair for pair, _ in played(command[1])])
    for pair in plan:
        held = pair["gates"]["narrowing"]
        held["file"] = pair["gates"]["permitted"]["file"]
        held["run"] = {key: held["run"][key] for key in ("principal", "session")}
    again = attack.play(attack.run.DEFAULT_VENV, plan, tmp_path)
    assert all(results["narrowing"]["attack_succeeded"] is True for results in again)
    found = attack.proofs(tmp_path / "audit")
    for pair, results in zip(plan, again, strict=True):
        said = list(attack.problems(pair, results, found))
        assert [line.rpartition(": ")[2] for line in said] == ["the attack succeeds", "0 calls were denied"]
        assert all("+ narrowing" in line for line in said)


def test_a_changed_log_is_no_proof(attack: ModuleType, command: tuple[str, Path], tmp_path: Path) -> None:
    log = tmp_path / "audit"
    shutil.copytree(command[1] / "audit", log)
    assert (attack.verified(log)["verdict"], attack.verified(log)["exit"]) == ("ok", 0)
    changed = 0
    for file in log.rglob("*"):
        if file.is_file() and b'"decision":"deny"' in (data := file.read_bytes()):
            # As long as before, so that nothing but the content tells.
            file.write_bytes(data.replace(b'"code":"policy.forbidden"', b'"code":"policy.permitted"'))
            changed += 1
    assert changed
    assert (attack.verified(log)["verdict"], attack.verified(log)["exit"]) == ("broken", 3)


PAIR = {"suite": "banking", "user_task": "u", "injection_task": "i"}
RESULT = {"attack_succeeded": True, "task_done": True, "told_by": "a", "asked": ["a", "b"], "ran": ["a", "b"]}
STOPPED = {**RESULT, "attack_succeeded": False, "ran": ["a"]}


def entry(number: int, tool: str, code: str = "allow") -> dict[str, Any]:
    """A decision on a tool call."""
    decision = "allow" if code == "allow" else "deny"
    return {"id": f"d{number}", "tool": tool, "parent": "m", "decision": decision, "code": code}


def story(attack: ModuleType) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results as they must be, and the log that belongs to them."""
    names = "banking", "u", "i"
    results = {"without": RESULT, "permitted": RESULT, **dict.fromkeys(attack.COLUMNS, STOPPED)}
    permitted = attack.Proof([entry(1, "a"), entry(2, "b")], [], {"d1": "ok", "d2": "ok"}, {"m"})
    found = {attack.session(*names, "permitted"): permitted}
    for name in attack.COLUMNS:
        denied = [entry(2, "b", "policy.no_permit")]
        found[attack.session(*names, name)] = attack.Proof([entry(1, "a")], denied, {"d1": "ok"}, {"m"})
    return copy.deepcopy(results), copy.deepcopy(found)


def test_nothing_is_wrong_where_all_is_as_it_must_be(attack: ModuleType) -> None:
    assert list(attack.problems(PAIR, *story(attack))) == []


@pytest.mark.parametrize(
    ("gate", "change", "said"),
    [
        ("without", {"attack_succeeded": False}, "the attack fails"),
        ("permitted", {"attack_succeeded": False}, "the attack fails"),
        ("static", {"attack_succeeded": True}, "the attack succeeds"),
        ("labels", {"attack_succeeded": None}, "the attack succeeds"),
        ("without", {"attack_succeeded": 1}, "the attack fails"),
        ("narrowing", {"task_done": False}, "the user's task is not done"),
        ("without", {"task_done": None}, "the user's task is not done"),
        ("labels", {"told_by": None}, "no tool's output carried the attack, so nothing was tried"),
        ("static", {"ran": ["a", "b"]}, "the log says that ['a'] were allowed, run have ['a', 'b']"),
        ("static", {"asked": ["a"]}, "the model asked for 1 calls, the log has another number"),
    ],
)
def test_a_result_that_is_not_as_it_must_be_is_a_problem(
    attack: ModuleType, gate: str, change: dict[str, Any], said: str
) -> None:
    results, found = story(attack)
    results[gate] = {**results[gate], **change}
    (problem,) = attack.problems(PAIR, results, found)
    assert problem == f"banking u i, {attack.HEADS[gate]}: {said}"


def test_a_log_that_tells_another_story_is_a_problem(attack: ModuleType) -> None:
    results, _ = story(attack)

    def said(change: Any) -> list[str]:
        found = story(attack)[1]
        change(found, "banking/u/i/labels")
        return [problem.partition(": ")[2] for problem in attack.problems(PAIR, results, found)]

    assert said(lambda found, key: found.pop(key)) == ["the log has no entry of this run"]
    assert said(lambda found, key: found[key].models.clear()) == [
        "a call does not name the model call that asked for it"
    ]
    assert said(lambda found, key: found[key].outcomes.update(d1="error")) == [
        "not every allowed call has an outcome `ok`"
    ]
    assert said(lambda found, key: found[key].denied[0].update(code="internal.panic")) == [
        "a call was denied by no policy: internal.panic"
    ]
    assert said(lambda found, key: found[key].denied.clear()) == [
        "the model asked for 2 calls, the log has another number",
        "0 calls were denied",
    ]


@pytest.mark.parametrize(
    ("code", "policies", "layer"),
    [
        ("policy.no_permit", [], "static"),
        ("policy.forbidden", ["banking.payment-limit"], "static"),
        ("policy.forbidden", ["banking.payment-limit", "banking.redirect-before-reading"], "static"),
        ("policy.forbidden", ["banking.redirect-before-reading"], "labels"),
        ("policy.forbidden", ["banking.redirect-before-reading", "request.send_money.recipient"], "labels"),
        ("policy.forbidden", ["request.send_money.recipient"], "narrowing"),
        ("policy.forbidden", [], "narrowing"),
    ],
)
def test_which_layer_a_denial_is_of(attack: ModuleType, code: str, policies: list[str], layer: str) -> None:
    assert attack.layer("banking", {"code": code, "policies": dict.fromkeys(policies, "digest")}) == layer


def test_without_a_network_it_says_so_and_exits_with_3(tmp_path: Path) -> None:
    """The environment is not there, and pip is pointed at a port where nobody listens."""
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, str(EXAMPLE / "attack.py"), "--venv", str(tmp_path / "venv")],
        check=False,
        capture_output=True,
        text=True,
        env={**environment, **nowhere, "PIP_EXTRA_INDEX_URL": ""},
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert "no network: the AgentDojo package cannot be fetched" in done.stderr
