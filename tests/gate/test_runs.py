"""Runs from Python: delegation, what a run brings with it, its end, prepared actions, and the one id of all of it."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from tollkeeper import BudgetError, Decision, Denied, EntityError, Gate, PolicyError, Principal
from tollkeeper._native import AuditReader

POLICIES = """
@id("all") permit(principal, action, resource);
@id("no-deploy") forbid(principal == Agent::"intern", action == Action::"deploy", resource);
@id("no-handing-on") forbid(principal == Agent::"intern", action == Action::"delegate", resource);
@id("wire") @approval("finance") permit(principal, action == Action::"wire", resource);
"""
CONFIG = """
[policy]
files = ["p.cedar"]
[audit]
origin = "example.com/gate"
[budget]
file = "budgets.toml"
state = "ledger.bin"
[state]
dir = "state"
[tools.search]
resource = 'Mcp::"web"'
cost = { requests = 1 }
[tools.deploy]
resource = 'Mcp::"ci"'
[tools.wire]
resource = 'Mcp::"bank"'
"""
BUDGETS = """
[budget."acme"]
limits = [{ unit = "requests", window = "1d", limit = 10 }]
[budget."acme/team"]
limits = [{ unit = "requests", window = "1d", limit = 5 }]
"""
NO_EVE = 'forbid(principal, action, resource) when { context.input has to && context.input.to == "eve" };'


def entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(entry) for _, entry in AuditReader(folder / "audit" / "0").entries()]
    return [entry for entry in found if entry["kind"] == kind]


def lead(gate: Gate, **more: Any) -> Any:
    return gate.run(principal='Agent::"lead"', session="s", budget="acme", **more)


def test_a_delegation_is_decided_when_it_is_entered(folder: Path) -> None:
    with Gate.open(folder / "tollkeeper.toml") as gate:
        with lead(gate, tools=["search", "deploy"], forbid=NO_EVE) as outer:
            asked = gate.check("search")
            handing = gate.delegate(
                Principal('Agent::"intern"', {"level": 1}),
                budget="acme/team",
                tools=["search", "wire"],
                parent=asked.id,
            )
            # A scope of somebody else is none before it was decided.
            assert gate.check("search", scope=handing.scope).code == "scope.missing"
            with handing as inner:
                assert handing.decision is not None
                assert handing.decision.allowed
                assert inner.chain == ['Agent::"lead"', 'Agent::"intern"']
                assert (inner.principal, inner.session, inner.budget) == ('Agent::"intern"', "s", "acme/team")
                assert gate.check("search").allowed
                assert gate.check("search", {"to": "eve"}).policies == ["run#1"]
                assert gate.check("deploy").code == "policy.forbidden"
                assert gate.check("wire").code == "policy.forbidden"
                with pytest.raises(Denied) as denied, gate.delegate('Agent::"third"'):
                    pytest.fail("an intern hands nothing on")
                assert cast("Decision", denied.value.decision).policies == ["no-handing-on"]
            assert gate.check("search", scope=inner).code == "scope.missing"
            assert gate.check("deploy", scope=outer).allowed
        decided = handing.decision
        assert decided is not None
    runs, delegations = entries(folder, "run"), entries(folder, "decision")
    assert [run.get("chain") for run in runs] == [None, ['Agent::"lead"', 'Agent::"intern"']]
    assert (runs[1]["inside"], runs[1]["parent"], runs[1]["tools"]) == ("r1", decided.id, ["search"])
    assert runs[0]["narrowing"] == runs[1]["narrowing"]
    made = next(entry for entry in delegations if entry["id"] == decided.id)
    assert (made["action"], made["resource"]) == ('Action::"delegate"', 'Agent::"intern"')
    assert (made["principal"], made["parent"]) == ('Agent::"lead"', asked.id)
    inside = [entry for entry in delegations if entry.get("chain")]
    assert all(entry["principal"] == 'Agent::"intern"' for entry in inside)


def test_a_chain_is_denied_for_whoever_is(folder: Path, gate: Gate) -> None:
    with gate.run(principal='Agent::"intern"', session="s"):
        assert gate.check("deploy").principal_denied is None
    with gate.run(principal='Agent::"chief"', session="s") as outer, gate.delegate('Agent::"lead"', scope=outer):
        assert gate.check("deploy").allowed
    without = "\n".join(line for line in POLICIES.splitlines() if "no-handing-on" not in line)
    (folder / "p.cedar").write_text(without)
    gate.reload()
    with gate.run(principal='Agent::"intern"', session="s"), gate.delegate('Agent::"lead"'):
        decision = gate.check("deploy")
        assert (decision.code, decision.policies) == ("policy.forbidden", ["no-deploy"])
        assert decision.principal_denied == 'Agent::"intern"'
        assert "which this run acts for" in decision.reason


def test_what_cannot_be_handed_on(gate: Gate) -> None:
    with pytest.raises(ValueError, match="needs a run"):
        gate.delegate('Agent::"b"')
    with (
        lead(gate),
        gate.delegate('Agent::"b"'),
        gate.delegate('Agent::"c"'),
        gate.delegate('Agent::"d"'),
        pytest.raises(EntityError, match="4 principals already"),
    ):
        gate.delegate('Agent::"e"')
    with lead(gate):
        with pytest.raises(EntityError, match="in the chain already"):
            gate.delegate('Agent::"lead"')
        with pytest.raises(BudgetError, match="not `acme` or below it"):
            gate.delegate('Agent::"b"', budget="other")
        with pytest.raises(ValueError, match="cannot change its principal"), gate.run(principal='Agent::"b"'):
            pytest.fail("that takes a delegation")


def test_forbids_of_a_run_are_kept_and_only_narrow(folder: Path) -> None:
    with Gate.open(folder / "tollkeeper.toml") as gate:
        with lead(gate, forbid=[NO_EVE]), gate.run(forbid='@id("mine") forbid(principal, action, resource);') as inner:
            denied = gate.check("search", {"to": "bob"})
            assert (denied.code, denied.policies) == ("policy.forbidden", ["mine"])
            assert inner.chain == ['Agent::"lead"']
        with lead(gate):
            assert gate.check("search", {"to": "eve"}).allowed
        for text, part in [
            ("permit(principal, action, resource);", "run:1:1"),
            ("", "no policy"),
            ('forbid(principal, action, resource) when { context.input.to == "x" };', "has"),
        ]:
            with pytest.raises(PolicyError, match=part):
                gate.run(principal='Agent::"lead"', forbid=text)
    (made,) = (entry for entry in entries(folder, "decision") if entry["id"] == denied.id)
    assert len(made["narrowing"]) == 2
    files = [name.translate(str.maketrans("+/", "-_")).rstrip("=") for name in made["narrowing"]]
    kept = [json.loads((folder / "audit" / "bundle" / f"{name}.json").read_text()) for name in files]
    assert kept == [{"forbid": [NO_EVE]}, {"forbid": ['@id("mine") forbid(principal, action, resource);']}]
    assert list(made["policies"]) == ["mine"]


def test_a_run_whose_time_is_over_denies(gate: Gate) -> None:
    with lead(gate, expires_at=time.time() - 1):
        assert gate.check("search").code == "principal.expired"
        assert gate.action("search").check().code == "principal.expired"
        assert set(gate.check_many("search", {"n": [1, 2]}).codes) == {gate_code("principal.expired")}
        with pytest.raises(Denied, match="time of this run"), gate.delegate('Agent::"b"', expires_at=time.time() + 60):
            pytest.fail("it is over")
        with gate.run(expires_at=time.time() + 60):
            assert gate.check("search").code == "principal.expired"
    with lead(gate, expires_at=time.time() + 0.15):
        assert gate.check("search").allowed
        time.sleep(0.2)
        assert gate.check("search").code == "principal.expired"
    for bad in (float("nan"), float("inf"), -1.0, 1e12):
        with pytest.raises(ValueError, match="no time"):
            lead(gate, expires_at=bad)


def gate_code(name: str) -> int:
    from tollkeeper import decision_codes  # noqa: PLC0415 - only here

    return [code for code, _ in decision_codes()].index(name)


def test_a_prepared_action_is_the_tool_of_its_name(gate: Gate) -> None:
    action, none = gate.action("search"), gate.action("nothing")
    assert (action.name, none.name) == ("search", "nothing")
    assert action.check().code == "scope.missing"
    with lead(gate) as scope:
        assert action.check({"q": 1}).allowed
        assert action.check({"q": object()}).code == gate.check("search", {"q": object()}).code
        assert none.check({}).code == "input.unknown_tool"
        assert none.check({}).reason == gate.check("nothing", {}).reason
        parent = action.check({"q": 1})
        assert action.check({"q": 2}, scope=scope, parent=parent.id).allowed
        gate._register([("nothing", 'Mcp::"web"', None, [], None, [])])
        assert none.check({}).allowed
        gate.reload()
        assert none.check({}).allowed
    gate.close()
    assert action.check({}).code == "gate.closed"


def test_one_id_names_the_decision_its_entry_and_its_hold(folder: Path) -> None:
    with Gate.open(folder / "tollkeeper.toml") as gate, lead(gate):
        decision = gate.check("search")
        assert decision.hold is not None
        assert decision.hold.decision == decision.id
        assert gate.ledger is not None
        assert [hold["decision"] for hold in gate.ledger.holds()] == [decision.id]
        # Another process reads it out of the same file.
        for more in ([], ["--json"]):
            words = [sys.executable, "-m", "tollkeeper", "budget", "holds", *more]
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - ours
            assert (done.returncode, done.stderr) == (0, "")
            assert decision.id in done.stdout
        assert gate.log is not None
        gate.log.flush()
        assert entries(folder, "decision")[-1]["id"] == decision.id
        assert gate.outcome(decision)
    assert entries(folder, "outcome")[-1]["of"] == decision.id
