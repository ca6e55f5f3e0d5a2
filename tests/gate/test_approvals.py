"""Approvals: a grant is for exactly one action, counts once, and is used only where everything else allows."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tollkeeper
from tollkeeper import Decision, Gate, GateAdmin, StateError, _native
from tollkeeper.approvals import PENDING_MAX

POLICIES = """
@id("wire") @approval("finance") permit(principal, action == Action::"wire", resource);
@id("search") permit(principal, action == Action::"search", resource);
@id("delegate") permit(principal, action == Action::"delegate", resource);
"""
CONFIG = """
[policy]
files = ["p.cedar"]
[state]
[audit]
origin = "example.com/gate"
ring_kib = 1024
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
limits = [{ unit = "requests", window = "1d", limit = 100 }]
"""
A, B = 'Agent::"a"', 'Agent::"b"'
MONEY = {"amount": 5, "to": "bob"}


def wire(gate: Gate, arguments: dict[str, Any] | None = None, principal: str = A) -> Decision:
    """One check of what needs an approval."""
    with gate.run(principal=principal, session="s", budget="acme"):
        return gate.check("wire", MONEY if arguments is None else arguments)


def asked(gate: Gate) -> str:
    """The id of a question about it."""
    return gate.approval(wire(gate)).id


def spent(gate: Gate) -> int:
    """Requests that are used and held."""
    assert gate.ledger is not None
    usage = gate.ledger.usage("acme")["requests", "1d"]
    return usage.used + usage.held


def log_entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Entries of one kind, of all logs."""
    logs = [Path(log["path"]) for log in _native.audit_logs(folder / "audit")]
    found = [json.loads(raw) for log in logs for _, raw in _native.AuditReader(log).entries()]
    return [entry for entry in found if entry["kind"] == kind]


# --- one grant --------------------------------------------------------------------------------------------------------


def test_a_grant_is_used_once(folder: Path, gate: Gate, admin: GateAdmin) -> None:
    first = wire(gate)
    assert (first.code, first.approvals) == ("approval.required", ["finance"])
    assert first.hold is None
    approval = gate.approval(first)
    assert (approval.state, spent(gate)) == ("pending", 0), "nothing is held while it is pending"
    question = admin.approve(approval.id, expires_s=60)
    assert (question.state, approval.state) == ("granted", "granted")
    allowed = wire(gate)
    assert (allowed.code, allowed.approval) == ("allow", approval.id)
    assert wire(gate).code == "approval.required", "used twice"
    assert admin.approval(approval.id).state == "used"
    assert spent(gate) == 1
    assert gate.log is not None
    gate.log.flush()
    (entry,) = log_entries(folder, "approve")
    assert (entry["approval"], entry["granted"]) == (approval.id, True)
    assert entry["expires"].endswith("Z")
    used = [one for one in log_entries(folder, "decision") if one.get("approval")]
    assert [(one["id"], one["approval"]) for one in used] == [(allowed.id, approval.id)]


@pytest.mark.parametrize("name", ["principal", "chain", "arguments", "more", "type", "tool"])
def test_what_a_grant_binds_to(folder: Path, gate: Gate, admin: GateAdmin, name: str) -> None:
    approval = asked(gate)
    admin.approve(approval)
    if name == "principal":
        other = wire(gate, principal=B)
    elif name == "chain":
        with gate.run(principal=B, session="s", budget="acme"), gate.delegate(A, budget="acme"):
            other = gate.check("wire", MONEY)
    elif name == "tool":
        text = CONFIG.replace("""'Mcp::"bank"'""", """'Mcp::"bank"'\nreads = ["secret"]""")
        (folder / "tollkeeper.toml").write_text(text)
        gate.reload()
        other = wire(gate)
    else:
        changed = {"arguments": {**MONEY, "amount": 6}, "more": {**MONEY, "memo": ""}, "type": {**MONEY, "amount": "5"}}
        other = wire(gate, changed[name])
    assert other.code == "approval.required"
    assert admin.approval(approval).state == "granted", "it is still there for what was approved"
    if name == "tool":
        (folder / "tollkeeper.toml").write_text(CONFIG)
        gate.reload()
    # The order of the arguments is no part of them.
    assert wire(gate, dict(reversed(MONEY.items()))).allowed


def test_a_grant_expires(gate: Gate, admin: GateAdmin) -> None:
    approval = asked(gate)
    admin.approve(approval, expires_s=0.2)
    time.sleep(0.3)
    assert wire(gate).code == "approval.expired"
    assert admin.approval(approval).state == "expired"
    again = gate.approval(wire(gate))
    admin.approve(again.id)
    assert wire(gate).allowed


def test_a_question_expires(gate: Gate, admin: GateAdmin) -> None:
    approval = gate.approval(wire(gate), timeout=0.1)
    time.sleep(0.2)
    assert approval.wait(1) is False
    with pytest.raises(StateError, match="expired"):
        admin.approve(approval.id)
    assert wire(gate).code == "approval.expired"


def test_rejected_is_a_code_of_its_own(folder: Path, gate: Gate, admin: GateAdmin) -> None:
    approval = gate.approval(wire(gate))
    admin.reject(approval.id, "not today")
    assert wire(gate).code == "approval.rejected"
    assert approval.wait(1) is False
    with pytest.raises(StateError, match="rejected"):
        admin.approve(approval.id)
    (entry,) = log_entries(folder, "approve")
    assert (entry["granted"], entry["reason"]) == (False, "not today")


def test_two_processes_race_for_one_grant(folder: Path, gate: Gate, admin: GateAdmin) -> None:
    program = """
import sys
from tollkeeper import Gate
with Gate.open(sys.argv[1]) as gate, gate.run(principal='Agent::"a"', session="s", budget="acme"):
    print("ready", flush=True)
    sys.stdin.readline()
    print(sum(gate.check("wire", {"amount": 5, "to": "bob"}).allowed for _ in range(50)), flush=True)
"""
    admin.approve(asked(gate))
    environment = {**os.environ, "PYTHONPATH": str(Path(tollkeeper.__file__).parent.parent)}
    racers = [
        subprocess.Popen(  # noqa: S603 - of this test
            [sys.executable, "-c", program, str(folder / "tollkeeper.toml")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    counts = [int(racer.communicate("go\n", timeout=60)[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sum(counts) == 1
    assert spent(gate) == 1, "whoever lost holds nothing"


def test_threads_race_for_one_grant(gate: Gate, admin: GateAdmin) -> None:
    admin.approve(asked(gate))
    allowed: list[bool] = []
    barrier = threading.Barrier(4)

    def race() -> None:
        barrier.wait()
        allowed.extend(wire(gate).allowed for _ in range(50))

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(allowed), sum(allowed)) == (200, 1)


# --- a denial on the way ----------------------------------------------------------------------------------------------


def test_policies_that_changed_meanwhile_leave_the_grant_unused(folder: Path, gate: Gate, admin: GateAdmin) -> None:
    approval = asked(gate)
    admin.approve(approval)
    (folder / "p.cedar").write_text(POLICIES + '@id("stop") forbid(principal, action == Action::"wire", resource);')
    gate.reload()
    assert wire(gate).code == "policy.forbidden"
    assert admin.approval(approval).state == "granted"
    assert spent(gate) == 0
    (folder / "p.cedar").write_text(POLICIES)
    gate.reload()
    assert wire(gate).allowed


def test_an_exhausted_budget_leaves_the_grant_unused(gate: Gate, admin: GateAdmin) -> None:
    approval = asked(gate)
    admin.approve(approval)
    with gate.run(principal=A, session="s", budget="acme"):
        assert gate.check("search").allowed
    before = admin.set_limit("acme", "requests", "1d", 1)
    assert wire(gate).code == "budget.exhausted"
    assert admin.approval(approval).state == "granted"
    admin.set_limit("acme", "requests", "1d", before)
    assert wire(gate).allowed


def test_a_revocation_leaves_the_grant_unused(gate: Gate, admin: GateAdmin) -> None:
    approval = asked(gate)
    admin.approve(approval)
    admin.revoke(tool="wire")
    assert wire(gate).code == "principal.revoked"
    assert admin.approval(approval).state == "granted"
    admin.restore(tool="wire")
    assert wire(gate).allowed


# --- who may grant ----------------------------------------------------------------------------------------------------


def test_a_grant_needs_the_signature_of_a_listed_key(folder: Path) -> None:
    known = _native.audit_keygen(folder / "admin.key", "admin")
    _native.audit_keygen(folder / "other.key", "admin")
    (folder / "tollkeeper.toml").write_text(CONFIG + f'[admin]\nkeys = ["{known}"]\n')
    with Gate.open(folder / "tollkeeper.toml") as gate:
        control = gate._control
        now_ms = time.time_ns() // 1_000_000
        expires_ms = now_ms + 60_000

        def granted(signature: bytes | None, expires_ms: int = expires_ms) -> str:
            approval = asked(gate)
            control.answer(approval, True, expires_ms, signature, now_ms)  # noqa: FBT003 - the native half
            return wire(gate).code

        approval = asked(gate)
        (row,) = control.approvals(now_ms)
        message = _native.Control.approval_message(approval, row["digest"], expires_ms)
        own, other = _native.AdminKey.load(folder / "admin.key"), _native.AdminKey.load(folder / "other.key")
        # Straight into the table, as whoever can write to it might: for longer, unsigned, by another key, for another
        # question.
        control.answer(approval, True, expires_ms + 1, own.sign(message), now_ms)  # noqa: FBT003 - as above
        assert wire(gate).code == "approval.required"
        assert granted(None) == "approval.required"
        assert granted(other.sign(message)) == "approval.required"
        assert granted(own.sign(message)) == "approval.required"
        admin = GateAdmin.open(folder / "tollkeeper.toml", folder / "admin.key")
        admin.approve(asked(gate))
        assert wire(gate).allowed


# --- what is shown is what is granted ---------------------------------------------------------------------------------


def test_a_document_that_was_changed_is_refused(folder: Path, gate: Gate, admin: GateAdmin) -> None:
    approval = asked(gate)
    file = folder / "state" / "approvals" / f"{approval}.json"
    document = json.loads(file.read_text())
    question = admin.approval(approval)
    assert question.binding is not None
    assert question.digest == hashlib.sha256(document["binding"].encode()).digest()
    assert (question.binding["chain"], question.binding["arguments"]) == ([A], MONEY)
    for text in (
        json.dumps({**document, "binding": document["binding"].replace('"amount":5', '"amount":1')}),
        json.dumps({**document, "binding": 7}),
        json.dumps([document]),
        "[" * 100_000,
        "",
    ):
        file.write_text(text)
        with pytest.raises(StateError, match="changed since the gate asked") as caught:
            admin.approve(approval)
        assert caught.value.code == "admin.document"
    file.unlink()
    with pytest.raises(StateError, match="cannot be read"):
        admin.approve(approval)
    file.symlink_to(folder / "elsewhere.json")
    with pytest.raises(StateError, match="cannot be read"):
        admin.approve(approval)
    assert wire(gate).code == "approval.required"
    admin.reject(approval)
    assert wire(gate).code == "approval.rejected"


def test_documents_of_questions_that_are_gone_are_removed(folder: Path, gate: Gate, admin: GateAdmin) -> None:
    approval = asked(gate)
    documents = folder / "state" / "approvals"
    old, young = documents / ("0" * 16 + ".json"), documents / ("1" * 16 + ".json")
    for file in (old, young):
        file.write_text("{}")
    os.utime(old, (1, 1))
    os.utime(documents / f"{approval}.json", (1, 1))
    wire(gate)
    assert old.exists(), "a check removes nothing"
    admin.approve(approval)
    assert sorted(documents.iterdir()) == sorted([young, documents / f"{approval}.json"])


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_a_check_that_waits_for_the_answer(gate: Gate, admin: GateAdmin) -> None:
    async def ask_and_wait() -> Decision:
        with gate.run(principal=A, session="s", budget="acme"):
            waiting = asyncio.ensure_future(gate.acheck("wire", MONEY, approval_timeout=30))
            while not (pending := [one for one in admin.approvals() if one.state == "pending"]):  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.01)
            await asyncio.to_thread(admin.approve, pending[0].id)
            return await waiting

    decision = asyncio.run(ask_and_wait())
    assert decision.allowed
    assert decision.approval is not None


def test_an_answer_wakes_a_thread(gate: Gate, admin: GateAdmin) -> None:
    approval = gate.approval(wire(gate))
    with pytest.raises(TimeoutError):
        approval.wait(0.05)
    timer = threading.Timer(0.1, admin.approve, (approval.id,))
    timer.start()
    assert approval.wait(30) is True
    timer.join()


def test_the_same_question_is_asked_once(folder: Path, gate: Gate, admin: GateAdmin) -> None:
    first = asked(gate)
    with ThreadPoolExecutor(8) as pool:
        assert {*pool.map(lambda _: asked(gate), range(32))} == {first}
    with Gate.open(folder / "tollkeeper.toml") as other:
        assert asked(other) == first, "whoever asks"
        assert other.approval(wire(other, {"amount": 6, "to": "bob"})).id != first
    assert len(admin.approvals()) == 2
    admin.reject(first)
    second = asked(gate)
    assert second != first
    (folder / "state" / "approvals" / f"{second}.json").unlink()
    assert asked(gate) != second, "nobody could grant it"


def test_one_gate_asks_so_many_questions_at_most(gate: Gate, admin: GateAdmin) -> None:
    for amount in range(PENDING_MAX):
        gate.approval(wire(gate, {"amount": amount, "to": "bob"}))
    further = wire(gate, {"amount": -1, "to": "bob"})
    with pytest.raises(StateError, match="128 questions open") as caught:
        gate.approval(further)
    assert caught.value.code == "control.full"
    first = admin.approvals()[0]
    assert gate.approval(wire(gate, {"amount": 0, "to": "bob"})).id == first.id, "joining asks nothing"
    admin.reject(first.id)
    gate.approval(further)


def test_questions_that_nobody_asked_are_refused(gate: Gate, admin: GateAdmin) -> None:
    with pytest.raises(StateError) as caught:
        admin.approve("0" * 16)
    assert caught.value.code == "admin.approval"
    with pytest.raises(ValueError, match="expires_s"):
        admin.approve(asked(gate), expires_s=0)
    with gate.run(principal=A, session="s", budget="acme"), pytest.raises(ValueError, match="asks for no approval"):
        gate.approval(gate.check("search"))
