"""The kill switch: what is revoked is stopped in every process, wherever it stands in a chain, and while it streams."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tollkeeper
from tollkeeper import AuditError, BudgetError, EntityError, Gate, GateAdmin, StateError, _native
from tollkeeper.unfinished import Target, find

POLICIES = """
@id("search") permit(principal, action == Action::"search", resource);
@id("read") permit(principal, action == Action::"read", resource);
@id("model") permit(principal, action == Action::"call_model", resource);
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
[tools.read]
resource = 'Mcp::"files"'
"""
BUDGETS = """
[budget."acme"]
limits = [
  { unit = "tokens", window = "1d", limit = 10000 },
  { unit = "requests", window = "1d", limit = 10000 },
]
"""
A, B = 'Agent::"a"', 'Agent::"b"'
PROCESSES = 8


def entries(log: Path) -> list[dict[str, Any]]:
    """What one log holds."""
    return [json.loads(raw) for _, raw in _native.AuditReader(log).entries()]


def log_entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Entries of one kind, of all logs."""
    return [entry for log in slots(folder) for entry in entries(log) if entry["kind"] == kind]


def entries_from_notice(log: Path, generation: int) -> list[dict[str, Any]]:
    """What stands in a log from where its process says that it has seen this generation; it is the first of them."""
    raws = [raw for _, raw in _native.AuditReader(log).entries()]
    for at, raw in enumerate(raws):
        if (
            b'"kind":"revoke"' in raw
            and (entry := json.loads(raw)).get("observed")
            and entry["generation"] >= generation
        ):
            return [json.loads(raw) for raw in raws[at:]]
    return []


def slots(folder: Path) -> list[Path]:
    """The logs of a gate."""
    return [Path(log["path"]) for log in _native.audit_logs(folder / "audit")]


# --- eight processes --------------------------------------------------------------------------------------------------


def start(folder: Path, name: str, principal: str) -> subprocess.Popen[str]:
    """A process that checks as fast as it can once it is told to."""
    package = str(Path(tollkeeper.__file__).parent.parent)
    words = [sys.executable, str(Path(__file__).parent / "hammer.py")]
    process = subprocess.Popen(  # noqa: S603 - of this test
        [*words, str(folder / "tollkeeper.toml"), principal, str(folder / name)],
        env={**os.environ, "PYTHONPATH": package},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_no_allow_is_ordered_after_a_revocation(folder: Path, admin: GateAdmin) -> None:
    names = [f"worker{number}" for number in range(PROCESSES)]
    workers = [start(folder, name, A) for name in names]
    bystander = start(folder, "bystander", B)
    for process in (*workers, bystander):
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    time.sleep(0.3)
    receipt = admin.revoke(principal=A, reason="it was taken over")
    revoked_ns = time.monotonic_ns()
    for worker in workers:
        assert worker.communicate(timeout=60) == ("", None)
        assert worker.returncode == 0
    # Somebody else's checks went on all the while; now they end too.
    assert bystander.poll() is None
    admin.revoke(everything=True)
    bystander.communicate(timeout=60)
    assert bystander.returncode == 0

    for name in names:
        last_allowed, first_denied, checks, codes = (folder / name).read_text().split()
        assert codes == "principal.revoked"
        assert int(checks) > 10
        assert int(last_allowed) < int(first_denied)
        assert int(last_allowed) < revoked_ns, "a check that began after `revoke` had returned was allowed"
    seen = 0
    for log in slots(folder):
        behind = entries_from_notice(log, receipt.generation)
        if any(one.get("principal") == B for one in behind):
            continue
        codes = {one["code"] for one in behind if one["kind"] == "decision" and one.get("principal") == A}
        assert codes <= {"principal.revoked"}
        # On a disk that is slower than eight processes the ring is full, and what was denied is only counted.
        seen += bool(codes) or any(one["kind"] == "denied_unlogged" for one in behind)
    assert seen == PROCESSES


# --- what is revoked --------------------------------------------------------------------------------------------------


def check(gate: Gate, tool: str = "search", principal: str = A, session: str = "s") -> str:
    """The code of one check."""
    with gate.run(principal=principal, session=session, budget="acme"):
        return gate.check(tool).code


def test_each_kind_of_target(gate: Gate, admin: GateAdmin) -> None:
    admin.revoke(tool="search")
    assert (check(gate), check(gate, "read")) == ("principal.revoked", "allow")
    assert admin.restore(tool="search").changed
    admin.revoke(session="s")
    assert (check(gate), check(gate, session="t")) == ("principal.revoked", "allow")
    admin.restore(session="s")
    admin.revoke(principal=tollkeeper.EntityUid("Agent", "a"))
    assert (check(gate), check(gate, principal=B)) == ("principal.revoked", "allow")
    admin.restore(principal=A)
    admin.revoke(everything=True)
    assert (check(gate), check(gate, principal=B)) == ("principal.revoked", "principal.revoked")
    last = admin.restore(everything=True)
    assert check(gate) == "allow"
    assert (last.generation, admin.revocations()) == (8, [])


def test_whoever_stands_in_a_chain_is_enough(gate: Gate, admin: GateAdmin) -> None:
    with gate.run(principal=A, session="s"), gate.delegate(B):
        assert gate.check("search").allowed
        admin.revoke(principal=A)
        assert gate.check("search").code == "principal.revoked"
        admin.restore(principal=A)
        assert gate.check("search").allowed
        admin.revoke(principal=B)
        assert gate.check("search").code == "principal.revoked"
    with gate.run(principal=A, session="s"):
        assert gate.check("search").allowed
        assert gate.delegate(B) is not None
        with pytest.raises(tollkeeper.Denied) as caught, gate.delegate(B):
            pass
    assert caught.value.code == "principal.revoked"


@pytest.mark.parametrize("target", [{"principal": A}, {"session": "s"}, {"everything": True}])
def test_a_live_stream_is_told_to_stop(gate: Gate, admin: GateAdmin, target: dict[str, Any]) -> None:
    with (
        gate.run(principal=A, session="s", budget="acme"),
        gate.model_call(model="gpt-5", prompt_tokens=10, max_tokens=100) as call,
    ):
        assert call.charge(1)
        receipt = admin.revoke(**target)
        assert not call.charge(1)
        assert not call.charge(1)
        call.settle(prompt=10, completion=3)
    assert receipt.holds is not None
    assert receipt.holds.live == 1


def test_a_live_hold_is_told_to_stop_also_by_its_tool(folder: Path, admin: GateAdmin) -> None:
    text = CONFIG.replace("[tools.read]", "cost = { tokens = 50 }\n[tools.read]\ncost = { tokens = 50 }")
    (folder / "tollkeeper.toml").write_text(text)
    with Gate.open(folder / "tollkeeper.toml") as gate, gate.run(principal=A, session="s", budget="acme"):
        search, read = gate.check("search"), gate.check("read")
        assert search.hold is not None
        assert read.hold is not None
        receipt = admin.revoke(tool="search")
        assert (search.hold.charge(tokens=1), read.hold.charge(tokens=1)) == (False, True)
        assert receipt.holds is not None
        assert receipt.holds.ids == (search.hold.id,)
        admin.restore(tool="search")
        assert search.hold.charge(tokens=1)
        admin.revoke(principal=A)
        assert (search.hold.charge(tokens=1), read.hold.charge(tokens=1)) == (False, False)


def test_it_survives_a_restart(folder: Path, admin: GateAdmin) -> None:
    admin.revoke(principal=A, reason="it was taken over")
    with Gate.open(folder / "tollkeeper.toml") as gate, gate.run(principal=A):
        decision = gate.check("search")
    assert decision.code == "principal.revoked"
    assert "it was taken over" in decision.reason
    (revoked,) = GateAdmin.open(folder / "tollkeeper.toml").revocations()
    assert (revoked["kind"], revoked["name"], revoked["reason"]) == ("principal", A, "it was taken over")


def test_the_revoker_and_whoever_notices_say_so_in_their_logs(folder: Path, gate: Gate, admin: GateAdmin) -> None:
    assert gate.log is not None
    admin.revoke(principal=A, reason="why")
    check(gate)
    admin.restore(principal=A, reason="over")
    check(gate)
    gate.log.flush()
    own = [entry for entry in entries(Path(gate.log.folder)) if entry["kind"] == "revoke"]
    assert [(entry["observed"], entry["generation"], entry["in_force"]) for entry in own] == [
        (True, 1, 1),
        (True, 2, 0),
    ]
    others = [log for log in slots(folder) if log != Path(gate.log.folder)]
    said = [entry for log in others for entry in entries(log) if entry["kind"] == "revoke"]
    target = {"kind": "principal", "name": A}
    assert [(one["target"], one["restored"], one["generation"], one["reason"]) for one in said] == [
        (target, False, 1, "why"),
        (target, True, 2, "over"),
    ]
    assert {one["by"] for one in said} == {f"{GateAdmin.open(folder / 'tollkeeper.toml')._name}"}


# --- the receipt ------------------------------------------------------------------------------------------------------


def test_a_receipt_counts_what_is_not_finished(gate: Gate, admin: GateAdmin) -> None:
    with gate.run(principal=A, session="s"), gate.delegate(B):
        inner = gate.check("search")
    with gate.run(principal=A, session="s"):
        finished, unfinished = gate.check("search"), gate.check("read")
        gate.outcome(finished)
    with gate.run(principal=B, session="t"):
        others = gate.check("search")
    receipt = admin.revoke(principal=A)
    assert receipt.calls is not None
    # The delegation itself was allowed too.
    assert (receipt.calls.live, receipt.calls.abandoned, receipt.calls.whole) == (3, 0, True)
    assert receipt.calls.ids[:2] == (unfinished.id, inner.id)
    assert others.id not in receipt.calls.ids
    again = admin.revoke(principal=A)
    assert (again.changed, again.generation) == (False, receipt.generation)


def test_what_a_process_that_has_ended_left_is_counted_apart(folder: Path, admin: GateAdmin) -> None:
    with Gate.open(folder / "tollkeeper.toml") as gate:
        check(gate)
    receipt = admin.revoke(everything=True)
    assert receipt.calls is not None
    assert (receipt.calls.live, receipt.calls.abandoned) == (0, 1)


def test_a_large_log_is_read_from_its_end_and_it_says_how_far(
    folder: Path, gate: Gate, admin: GateAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tollkeeper.unfinished.ENTRIES_MAX", 1_000)
    with gate.run(principal=A, session="s"):
        for _ in range(2_000):
            assert gate.check_blocking("search", timeout=10).allowed
    receipt = admin.revoke(principal=A)
    assert receipt.calls is not None
    assert not receipt.calls.whole
    assert 1_000 <= receipt.calls.read <= 1_600
    assert 1_000 <= receipt.calls.live <= 1_600
    assert receipt.calls.since is not None
    found = find(folder / "audit", Target("session", "nobody"), lambda _: True)
    assert (found.open, found.abandoned) == (0, 0)


def test_without_a_log_it_says_that_it_does_not_know(folder: Path) -> None:
    (folder / "tollkeeper.toml").write_text(
        CONFIG.replace('[audit]\norigin = "example.com/gate"\nring_kib = 1024\n', "")
    )
    admin = GateAdmin.open(folder / "tollkeeper.toml")
    receipt = admin.revoke(principal=A)
    assert (receipt.calls, receipt.calls_unknown) == (None, "this gate keeps no log")
    assert receipt.unrecorded is None


def test_a_log_that_cannot_be_written_keeps_nobody_from_revoking(folder: Path, admin: GateAdmin) -> None:
    with Gate.open(folder / "tollkeeper.toml") as gate:
        (folder / "audit").rename(folder / "elsewhere")
        (folder / "audit").write_text("in the way")
        receipt = admin.revoke(principal=A)
        assert receipt.unrecorded is not None
        assert check(gate) == "principal.revoked"
        with pytest.raises((AuditError, OSError)):
            admin.restore(principal=A)
        assert check(gate) == "principal.revoked", "what cannot be recorded is not restored"
        (folder / "audit").unlink()
        (folder / "elsewhere").rename(folder / "audit")


@pytest.mark.parametrize("reason", ["\udcff", "y" * 257, "y" * 20_000_000])
def test_a_reason_that_cannot_be_recorded_restores_nothing(folder: Path, admin: GateAdmin, reason: str) -> None:
    with Gate.open(folder / "tollkeeper.toml") as gate:
        admin.revoke(principal=A)
        with pytest.raises(StateError, match="the reason") as caught:
            admin.restore(principal=A, reason=reason)
        assert caught.value.code == "control.text"
        assert check(gate) == "principal.revoked"
        with pytest.raises(StateError, match="lone surrogate"):
            admin.restore(tool="\udcff")
    assert not [entry for entry in log_entries(folder, "revoke") if entry.get("restored")]


def test_what_was_recorded_and_could_not_be_done_is_said(folder: Path, admin: GateAdmin) -> None:
    admin.revoke(principal=A)
    with Gate.open(folder / "tollkeeper.toml"):
        # Held by somebody who does not let go.
        table = admin._act()

        class Stuck:
            generation = table.generation
            revocations = staticmethod(table.revocations)

            def restore(self, kind: str, name: str) -> None:
                said = [entry for entry in log_entries(folder, "revoke") if entry.get("restored")]
                assert [entry["target"] for entry in said] == [{"kind": kind, "name": name}], "recorded before"
                message = "in use"
                raise StateError(message, "control.busy")

        admin._table = Stuck()  # type: ignore[assignment]
        with pytest.raises(StateError, match="in use"):
            admin.restore(principal=A, reason="over")
        admin._table = table
    said = [entry for entry in log_entries(folder, "revoke") if entry.get("restored")]
    assert [entry.get("failed") for entry in said] == [None, True]
    assert "in use" in said[1]["reason"]
    assert [row["name"] for row in admin.revocations()] == [A]


def test_a_limit_is_changed_only_on_the_record(folder: Path, admin: GateAdmin) -> None:
    with Gate.open(folder / "tollkeeper.toml") as gate:
        assert gate.ledger is not None
        assert admin.set_limit("acme", "tokens", "1d", 1 << 60) == 10_000
        assert admin.set_limit("acme", "tokens", "1d", 20_000) == 1 << 60
        admin.accept_clock()
        for words, code in ((("acme", "tokens", "1h", 1), "unknown"), (("acme", "tokens", "1d", -1), "spec")):
            with pytest.raises(BudgetError) as caught:
                admin.set_limit(*words)
            assert caught.value.code == f"budget.{code}"
        (folder / "audit").rename(folder / "elsewhere")
        (folder / "audit").write_text("in the way")
        with pytest.raises((AuditError, OSError)):
            admin.set_limit("acme", "tokens", "1d", 30_000)
        with pytest.raises((AuditError, OSError)):
            admin.accept_clock()
        assert gate.ledger.usage("acme")["tokens", "1d"].limit == 20_000
        (folder / "audit").unlink()
        (folder / "elsewhere").rename(folder / "audit")
    said = [entry for entry in log_entries(folder, "limit_changed") if "by" in entry]
    assert [(entry["before"], entry["after"]) for entry in said] == [(10_000, 1 << 60), (1 << 60, 20_000)]
    assert len([entry for entry in log_entries(folder, "clock_accepted") if "by" in entry]) == 1


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda admin: admin.revoke(), ValueError, "exactly one"),
        (lambda admin: admin.revoke(tool="a", session="b"), ValueError, "exactly one"),
        (lambda admin: admin.revoke(principal="researcher"), EntityError, "uid"),
        (lambda admin: admin.revoke(tool="x" * 600), StateError, "bytes"),
        (lambda admin: admin.revoke(tool="x", reason="y" * 600), StateError, "bytes"),
        (lambda admin: admin.revoke(tool=""), StateError, "bytes"),
    ],
)
def test_what_names_nothing_is_refused(
    admin: GateAdmin, call: Callable[[GateAdmin], object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        call(admin)
    assert admin.revocations() == []


def test_without_a_state_directory_it_says_where_the_state_is(folder: Path) -> None:
    (folder / "tollkeeper.toml").write_text(CONFIG.replace("[state]\n", ""))
    admin = GateAdmin.open(folder / "tollkeeper.toml")
    with pytest.raises(StateError, match="own memory") as caught:
        admin.revoke(everything=True)
    assert caught.value.code == "state.missing"
    assert admin.revocations() == []


def test_acts_need_a_listed_key_and_looking_does_not(folder: Path) -> None:
    known = _native.audit_keygen(folder / "admin.key", "admin")
    _native.audit_keygen(folder / "other.key", "admin")
    (folder / "tollkeeper.toml").write_text(CONFIG + f'[admin]\nkeys = ["{known}"]\n')
    config = folder / "tollkeeper.toml"
    without = GateAdmin.open(config)
    for act in (
        lambda: without.revoke(everything=True),
        lambda: without.restore(everything=True),
        lambda: without.approve("0" * 16),
        lambda: without.reject("0" * 16),
        lambda: without.set_limit("acme", "tokens", "1d", 1),
        without.reload,
    ):
        with pytest.raises(StateError) as caught:
            act()
        assert caught.value.code == "admin.key"
        assert known.split("+")[1] in str(caught.value)
    with pytest.raises(StateError) as caught:
        GateAdmin.open(config, folder / "other.key")
    assert caught.value.code == "admin.key"
    (folder / "admin.key").chmod(0o644)
    with pytest.raises(AuditError, match="can be read by others"):
        GateAdmin.open(config, folder / "admin.key")
    (folder / "admin.key").chmod(0o600)
    admin = GateAdmin.open(config, folder / "admin.key")
    assert not (folder / "state").exists(), "a refusal makes nothing"
    receipt = admin.revoke(everything=True)
    assert receipt.by == "+".join(known.split("+")[:2])
    assert without.status()["state"]["generation"] == 1
    assert "AdminKey" in repr(admin._key)


def test_a_limit_changes_while_the_ledger_is_in_use(gate: Gate, admin: GateAdmin) -> None:
    assert gate.ledger is not None
    assert admin.set_limit("acme", "tokens", "1d", 5) == 10_000
    assert gate.ledger.usage("acme")["tokens", "1d"].limit == 5
