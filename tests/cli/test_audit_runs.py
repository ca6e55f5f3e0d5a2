"""What a gate records of runs: of chains, of what came with a run, of labels, revocations and approvals.

Both verifiers take it, the schema says it, ``audit replay`` decides it again and ``why`` explains it.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tollkeeper import Decision, Denied, Gate, Principal, verify_log
from tollkeeper._native import AuditReader, audit_verify

sys.path.insert(0, str(Path(__file__).resolve().parent))

import log_files

Cli = Callable[..., Any]

POLICIES = """
@id("known") permit(principal, action, resource) when { principal has level && principal.level > 1 };
@id("lead") permit(principal == Agent::"lead", action, resource);
@id("read") forbid(principal, action == Action::"send", resource) when { context.session.labels.contains("untrusted") };
@id("wire") @approval("finance") permit(principal == Agent::"lead", action == Action::"wire", resource);
"""
CONFIG = """
[policy]
files = ["p.cedar"]
[audit]
origin = "example.com/gate"
[budget]
file = "budgets.toml"
[state]
dir = "state"
[tools.search]
resource = 'Mcp::"web"'
reads = ["untrusted"]
[tools.send]
resource = 'Mcp::"mail"'
[tools.wire]
resource = 'Mcp::"bank"'
cost = { requests = 1 }
"""
BUDGETS = '[budget."acme"]\nlimits = [{ unit = "requests", window = "1d", limit = 1000 }]\n'
NO_EVE = """
// Decided before anything was read.
@id("no-eve") forbid(principal, action, resource) when { context.input has to && context.input.to == "eve" };
"""


def opened(folder: Path) -> Gate:
    (folder / "p.cedar").write_text(POLICIES)
    (folder / "budgets.toml").write_text(BUDGETS)
    (folder / "tollkeeper.toml").write_text(CONFIG)
    return Gate.open(folder / "tollkeeper.toml")


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    with opened(tmp_path) as gate:
        yield gate


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A log, and the ids of the decisions in it by name."""
    folder = tmp_path_factory.mktemp("told")
    with opened(folder) as gate:
        return folder / "audit", {name: decision.id for name, decision in story(gate).items()}


def granted(gate: Gate, decision: Decision, number: int) -> None:
    """Somebody approves exactly this."""
    binding, now_ms = decision._binding, time.time_ns() // 1_000_000
    assert binding is not None
    gate._table.ask(f"{number:016x}", binding[1], now_ms + 60_000, now_ms)
    gate._table.answer(f"{number:016x}", True, now_ms + 60_000, None, now_ms)  # noqa: FBT003 - the native signature


def story(gate: Gate) -> dict[str, Decision]:
    """Something of everything, by name."""
    made: dict[str, Decision] = {}
    now_ms = time.time_ns() // 1_000_000
    with gate.run(principal='Agent::"lead"', session="s", budget="acme", request="Pay Bob", forbid=NO_EVE):
        made["plain"] = gate.check("send", {"to": "bob"})
        made["by the run"] = gate.check("send", {"to": "eve"})
        made["asked"] = gate.check("wire", {"amount": 5})
        granted(gate, made["asked"], 1)
        made["granted"] = gate.check("wire", {"amount": 5})
        with gate.run(tools=["search"]):
            made["narrowed"] = gate.check("send", {"to": "bob"})
        with gate.delegate(Principal('Agent::"helper"', {"level": 2}), tools=["send", "search"]):
            made["chain"] = gate.check("send", {"to": "bob"})
            made["chain by the run"] = gate.check("send", {"to": "eve"})
            with pytest.raises(Denied) as denied:
                gate.delegate(Principal('Agent::"low"', {"level": 0}), expires_at=1).__enter__()
            made["delegation"] = cast("Decision", denied.value.decision)
        before = gate.check("search", {"q": 1})
        gate.outcome(before)
        made["labelled"] = gate.check("send", {"to": "bob"})
        with gate.run(expires_at=time.time() - 60):
            made["expired"] = gate.check("send", {"to": "bob"})
    boss = gate.run(principal=Principal('Agent::"boss"', {"level": 3}), session="w")
    with boss, gate.delegate(Principal('Agent::"helper"', {"level": 2}), scope=boss.scope):
        made["all described"] = gate.check("send", {"to": "bob"})
    with gate.run(principal=Principal('Agent::"low"', {"level": 0}), session="t") as outer:
        refused = gate.delegate(Principal('Agent::"helper"', {"level": 2}), scope=outer)
        with pytest.raises(Denied):
            refused.__enter__()
    with gate.run(principal='Agent::"helper"', session="u"):
        made["unknown"] = gate.check("send", {})
    gate._table.revoke("principal", 'Agent::"lead"', "lost laptop", "root", now_ms)
    with gate.run(principal='Agent::"lead"', session="v"):
        made["revoked"] = gate.check("send", {"to": "bob"})
    gate._table.restore("principal", 'Agent::"lead"')
    return made


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(entry) for _, entry in AuditReader(folder / "audit" / "0").entries()]


CODES = {
    "plain": "allow",
    "by the run": "policy.forbidden",
    "asked": "approval.required",
    "granted": "allow",
    "narrowed": "policy.forbidden",
    "chain": "allow",
    "chain by the run": "policy.forbidden",
    "delegation": "principal.expired",
    "all described": "allow",
    "labelled": "policy.forbidden",
    "expired": "principal.expired",
    "unknown": "policy.no_permit",
    "revoked": "principal.revoked",
}


def test_everything_is_recorded_as_the_schema_says(gate: Gate, tmp_path: Path, root: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    made = story(gate)
    assert {name: decision.code for name, decision in made.items()} == CODES
    gate.close()
    schema = json.loads((root / "python" / "tollkeeper" / "entry_schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    found = entries(tmp_path)
    for entry in found:
        assert not [error.message for error in validator.iter_errors(entry)], entry
        order = [*schema["properties"], *schema["$defs"][entry["kind"]].get("properties", {})]
        assert list(entry) == sorted(entry, key=order.index), entry["kind"]
    by_id = {entry["id"]: entry for entry in found if entry["kind"] == "decision"}
    assert by_id[made["granted"].id]["approval"] == f"{1:016x}"
    assert "denied_for" not in by_id[made["granted"].id]
    assert by_id[made["chain"].id]["chain"] == ['Agent::"lead"', 'Agent::"helper"']
    assert by_id[made["labelled"].id]["labels"] == ["untrusted"]
    assert by_id[made["revoked"].id]["generation"] == 1
    assert next(entry for entry in found if entry["kind"] == "outcome")["labels_added"] == ["untrusted"]
    observed = [entry for entry in found if entry["kind"] == "revoke"]
    assert [entry["in_force"] for entry in observed][:1] == [1]
    report = audit_verify(tmp_path / "audit" / "0")
    assert "failed" not in str(report).lower() or report["ok"]
    assert verify_log.main([str(tmp_path / "audit" / "0")]) in {0, 3}


def test_what_was_narrowed_is_decided_again(gate: Gate, tmp_path: Path, cli: Cli) -> None:
    story(gate)
    gate.close()
    done = cli("audit", "replay", "--json")
    document = json.loads(done.out)
    assert document["differences"] == []
    assert document["skipped"] == {
        "a delegation, which takes the run that would have begun": 4,
        "somebody was revoked, and revocations are not decided again": 1,
    }
    assert (done.code, document["same"]) == (0, 12)
    # By other policies only what those say is different: the approval that was given is needed again.
    (tmp_path / "new.cedar").write_text(POLICIES.replace('@id("read") forbid', '@id("read") permit'))
    document = json.loads(cli("audit", "replay", "--policies", "new.cedar", "--json").out)
    changed = {(one["before"]["code"], one["after"]["code"]) for one in document["differences"]}
    assert changed == {("policy.forbidden", "allow")}
    assert document["different"] == 1


def test_without_what_came_with_a_run_it_is_skipped(gate: Gate, tmp_path: Path, cli: Cli) -> None:
    story(gate)
    gate.close()
    for file in (tmp_path / "audit" / "bundle").iterdir():
        if "forbid" in json.loads(file.read_text()):
            file.unlink()
    document = json.loads(cli("audit", "replay", "--json").out)
    assert document["differences"] == []
    assert any(reason.startswith("the run came with forbids: ") for reason in document["skipped"])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "by the run",
            [
                "run, which came with the run:3, forbid no-eve:",
                'context.input.to == "eve"',
                "edit run, which came with the run:3, forbid no-eve",
            ],
        ),
        ("chain by the run", ['chain     Agent::"lead" -> Agent::"helper"', "forbid no-eve"]),
        ("granted", ["approval  0000000000000001 was used"]),
        ("asked", ["gate.approval(decision)", "or add a permit without @approval"]),
        ("expired", ["expired   the time of the run was over at 20", "gate.run(expires_at=...)"]),
        ("revoked", ["revoked   by generation 1; who did it is not in these logs", "take the revocation back"]),
        ("labelled", ["which has seen untrusted", "forbid read"]),
        ("delegation", ['asked     Action::"delegate" on Agent::"low" with', '"tools": ["search", "send"]']),
        ("narrowed", ["name `send` in gate.run(tools=[...])"]),
    ],
)
def test_why(told: tuple[Path, dict[str, str]], cli: Cli, name: str, parts: list[str]) -> None:
    folder, ids = told
    done = cli("why", ids[name], str(folder))
    assert (done.code, done.err) == (0, "")
    for part in parts:
        assert part in done.out, done.out


def test_why_names_who_revoked_and_who_approved(tmp_path: Path, cli: Cli) -> None:
    log = log_files.LogFiles(tmp_path / "audit" / "0")
    log.add("approve", {"approval": f"{7:016x}", "granted": True, "by": "ann"})
    target = {"kind": "principal", "name": 'Agent::"lead"'}
    other = {"kind": "principal", "name": 'Agent::"other"'}
    log.add("revoke", {"target": target, "restored": False, "generation": 4, "reason": "lost", "by": "root"})
    log.add("revoke", {"target": other, "restored": False, "generation": 5, "reason": "no", "by": "eve"})
    log.add("revoke", {"generation": 5, "observed": True, "in_force": 2})
    chain = ['Agent::"lead"', 'Agent::"helper"']
    who = {"principal": chain[1], "chain": chain, "session": "s"}
    told = {"decision": "deny", "code": "principal.revoked", "denied_for": chain[0], "generation": 5}
    log.add("decision", {"id": f"{log.producer}-1", **who, "tool": "send", **told})
    told = {"decision": "allow", "code": "allow", "approval": f"{7:016x}"}
    log.add("decision", {"id": f"{log.producer}-2", **who, "tool": "send", **told})
    log.flush()
    done = cli("why", f"{log.producer}-1")
    assert (done.code, done.err) == (0, "")
    assert 'due to    Agent::"lead", which the run acts for' in done.out
    assert 'revoked   principal Agent::"lead" by root at ' in done.out
    assert "generation 4: lost" in done.out
    assert "tollkeeper restore --principal 'Agent::\"lead\"'" in done.out
    done = cli("why", f"{log.producer}-2")
    assert "approval  0000000000000007 was used, answered by ann at " in done.out
