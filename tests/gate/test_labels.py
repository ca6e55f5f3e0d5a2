"""Labels of sessions: they grow when an action has read something, are seen by every run and process, and never go."""

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import Denied, EntityError, Gate, PolicyError
from tollkeeper._native import AuditReader

POLICIES = """
@id("all") permit(principal, action, resource);
@id("no-mail-after-reading")
forbid(principal, action == Action::"send", resource) when { context.session.labels.contains("untrusted") };
@id("no-search-for-eve") forbid(principal == Agent::"eve", action == Action::"search", resource);
"""
CONFIG = """
[policy]
files = ["p.cedar"]
[audit]
origin = "example.com/gate"
[state]
dir = "state"
[tools.search]
resource = 'Mcp::"web"'
reads = ["untrusted"]
[tools.inbox]
resource = 'Mcp::"mail"'
reads = ["untrusted", "pii"]
[tools.send]
resource = 'Mcp::"mail"'
"""


def run(gate: Gate, session: str = "s", principal: str = 'Agent::"a"', **more: Any) -> Any:
    return gate.run(principal=principal, session=session, **more)


def may_send(gate: Gate, session: str = "s") -> bool:
    with run(gate, session):
        return gate.check("send").allowed


def entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(entry) for _, entry in AuditReader(folder / "audit" / "0").entries()]
    return [entry for entry in found if entry["kind"] == kind]


def test_an_outcome_brings_what_its_tool_reads(folder: Path) -> None:
    with Gate.open(folder / "tollkeeper.toml") as gate:
        with run(gate) as scope:
            decision = gate.check("inbox")
            assert (scope.labels, may_send(gate)) == ([], True)
            assert gate.outcome(decision)
            assert scope.labels == ["pii", "untrusted"]
            denied = gate.check("send")
            assert denied.policies == ["no-mail-after-reading"]
            again = gate.check("search")
            assert gate.outcome(again)
        assert not may_send(gate)
        assert may_send(gate, "another")
    (first, second) = entries(folder, "outcome")
    assert (sorted(first["labels_added"]), "labels_added" in second) == (["pii", "untrusted"], False)
    seen = {entry["id"]: sorted(entry.get("labels", [])) for entry in entries(folder, "decision")}
    assert (seen[decision.id], seen[denied.id]) == ([], ["pii", "untrusted"])


def test_a_decision_that_is_dropped_may_have_read_all_the_same(gate: Gate) -> None:
    with run(gate) as scope:
        decision = gate.check("search")
        assert scope.labels == []
        del decision
        assert scope.labels == ["untrusted"]


def test_guards_bring_labels_however_they_end(gate: Gate) -> None:
    @gate.guard
    def search(*, fail: bool) -> str:
        if fail:
            raise RuntimeError
        return "text"

    @gate.guard(tool="inbox")
    async def inbox() -> str:
        await asyncio.sleep(0)
        return "text"

    with run(gate, "ok"):
        search(fail=False)
    with run(gate, "raised"), pytest.raises(RuntimeError):
        search(fail=True)
    with run(gate, "async"):
        asyncio.run(inbox())
    assert not any(may_send(gate, session) for session in ("ok", "raised", "async"))


def test_what_is_denied_or_never_began_has_read_nothing(gate: Gate) -> None:
    with run(gate, principal='Agent::"eve"'):
        denied = gate.check("search")
        assert not denied.allowed
        del denied
    with run(gate):
        released = gate.check("search")
        released._release()
        del released
    assert may_send(gate)


def test_every_way_to_check_reads(gate: Gate) -> None:
    pytest.importorskip("numpy")
    with run(gate, "prepared"):
        gate.action("search").check()
    with run(gate, "many"):
        decisions = gate.check_many("search", {"n": [1, 2]})
        assert may_send(gate, "many")
        del decisions
    with run(gate, "awaited"):
        asyncio.run(gate.acheck("search"))
    with run(gate, "blocking"):
        gate.check_blocking("search")
    assert not any(may_send(gate, session) for session in ("prepared", "many", "awaited", "blocking"))


def test_labels_are_seen_by_other_runs_threads_and_delegates(gate: Gate) -> None:
    with run(gate) as early:
        with run(gate) as inner, gate.delegate('Agent::"b"') as delegate:
            thread = threading.Thread(target=gate.check, args=("search",), kwargs={"scope": delegate})
            thread.start()
            thread.join()
            assert inner.labels == early.labels == delegate.labels == ["untrusted"]
        assert gate.check("send", scope=early).policies == ["no-mail-after-reading"]


CHILD = """
import sys
from tollkeeper import Gate
with Gate.open(sys.argv[1]) as gate, gate.run(principal='Agent::"a"', session=sys.argv[2]) as scope:
    print(scope.labels, gate.check("send").code)
    gate.check("inbox")
"""


def test_labels_are_the_hosts_and_survive_everybody(folder: Path) -> None:
    def child(session: str) -> str:
        words = [sys.executable, "-c", CHILD, str(folder / "tollkeeper.toml"), session]
        done = subprocess.run(words, capture_output=True, text=True, check=True)  # noqa: S603 - this interpreter
        return done.stdout.strip()

    with Gate.open(folder / "tollkeeper.toml") as gate, run(gate) as scope:
        assert child("s") == "[] allow"
        # While this process runs, in the scope that it has.
        assert scope.labels == ["pii", "untrusted"]
        assert not gate.check("send").allowed
    with Gate.open(folder / "tollkeeper.toml") as gate:
        assert not may_send(gate)
        assert may_send(gate, "t")
    assert child("s") == "['pii', 'untrusted'] policy.forbidden"
    assert child("t") == "[] allow"


def test_a_run_may_say_what_its_session_has_seen(gate: Gate) -> None:
    with run(gate, labels=["secret"]) as scope:
        assert scope.labels == ["secret"]
        with gate.run(labels=["pii"]) as inner:
            assert inner.labels == ["pii", "secret"]
        assert scope.labels == ["pii", "secret"]
    with run(gate) as scope:
        assert scope.labels == ["pii", "secret"]
    # Also where the delegation that says it is denied: what was seen was seen.
    with run(gate, "d", labels=[]), pytest.raises(Denied), gate.run(expires_at=1) as over:
        gate.delegate('Agent::"b"', scope=over, labels=["secret"]).__enter__()
    with run(gate, "d") as scope:
        assert scope.labels == ["secret"]


def test_there_are_sixty_four_labels(folder: Path, gate: Gate) -> None:
    with pytest.raises(EntityError, match="65 labels, the limit is 64"):
        run(gate, labels=[f"l{number}" for number in range(65)])
    with pytest.raises(EntityError, match="257 bytes, the limit is 256"):
        run(gate, labels=["x" * 257])
    # Two are the configuration's; a set that does not fit is refused whole.
    with run(gate, labels=[f"l{number}" for number in range(62)]) as scope:
        assert len(scope.labels) == 62
    with pytest.raises(EntityError, match="label"):
        run(gate, "t", labels=["untrusted", "one-more"])
    with run(gate, "t", labels=["l1"]) as scope:
        assert scope.labels == ["l1"]
    with pytest.raises(PolicyError, match="label"):
        gate._register([("late", 'Mcp::"web"', None, [], None, ["one-more"])])
    (folder / "tollkeeper.toml").write_text(CONFIG.replace('"pii"', '"one-more"'))
    with pytest.raises(PolicyError, match=r"inbox.*label"):
        gate.reload()
    assert gate.check("late").code == "scope.missing"


def test_reads_change_with_a_reload_and_with_registrations(folder: Path, gate: Gate) -> None:
    held = []
    with run(gate, "before"):
        held.append(gate.check("send"))
    (folder / "tollkeeper.toml").write_text(CONFIG + 'reads = ["sent"]\n')
    gate.reload()
    with run(gate, "after") as scope:
        gate.check("send")
        assert scope.labels == ["sent"]
    held.clear()
    with run(gate, "before") as scope:
        assert scope.labels == []
    gate._register([("late", 'Mcp::"web"', None, [], None, ["fresh"])])
    with run(gate, "late") as scope:
        gate.check("late")
        assert scope.labels == ["fresh"]
        gate.reload()
        gate.check("late")
        assert scope.labels == ["fresh"]
