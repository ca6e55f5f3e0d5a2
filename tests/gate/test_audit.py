"""The gate's third step from Python: what is recorded, what is waited for, what is denied when nothing can be."""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import AuditError, ConfigError, Decision, Denied, Gate, PolicyError
from tollkeeper._native import AuditReader, audit_verify

POLICIES = """
@id("read") permit(principal, action == Action::"search", resource);
@id("careful") @durability("sync") permit(principal, action == Action::"wipe", resource);
@id("signed") @durability("checkpointed") permit(principal, action == Action::"launch", resource);
@id("models") permit(principal, action == Action::"call_model", resource);
@id("large") forbid(principal, action == Action::"search", resource)
when { context.input has n && context.input.n > 100 };
"""
CONFIG = """
[policy]
files = ["p.cedar"]
[audit]
origin = "example.com/gate"
[budget]
file = "budgets.toml"
[tools.search]
resource = 'Mcp::"web"'
[tools.wipe]
resource = 'Mcp::"disk"'
[tools.launch]
resource = 'Mcp::"rocket"'
"""
BUDGETS = """
[budget."acme"]
limits = [{ unit = "tokens", window = "1d", limit = 1000 }, { unit = "requests", window = "1d", limit = 100000 }]
"""


def entries(folder: Path, kind: str | None = None, slot: int = 0) -> list[dict[str, Any]]:
    reader = AuditReader(folder / "audit" / str(slot))
    found = [json.loads(entry) for _, entry in reader.entries()]
    return [entry for entry in found if kind in (None, entry["kind"])]


def run(gate: Gate, **more: Any) -> Any:
    return gate.run(principal='Agent::"a"', session="s", budget="acme", **more)


def test_what_was_asked_and_decided_is_recorded(folder: Path) -> None:
    with Gate.open(folder / "tollkeeper.toml") as gate, run(gate, request="find me the weather"):
        first = gate.check("search", {"q": "secret words"})
        second = gate.check("search", {"n": 101}, parent=first.id)
        third = gate.check("nothing", {"q": 1})
        fourth = gate.check("search", {"q": object()})
    decisions = entries(folder, "decision")
    assert [entry["id"] for entry in decisions] == [first.id, second.id, third.id, fourth.id]
    assert [entry["code"] for entry in decisions] == [
        "allow",
        "policy.forbidden",
        "input.unknown_tool",
        "input.unrepresentable",
    ]
    assert decisions[1]["parent"] == first.id
    assert list(decisions[1]["policies"]) == ["large"]
    assert {entry["run"] for entry in decisions} == {"r1"}
    (begun,) = entries(folder, "run")
    assert {entry["request"] for entry in decisions} == {begun["request"]["commitment"]}
    reader = AuditReader(folder / "audit" / "0")
    place = next(index for index, entry in reader.entries() if json.loads(entry)["kind"] == "run")
    assert reader.payload(place) == b"find me the weather"
    assert all("secret words" not in json.dumps(entry) for entry in entries(folder))
    assert audit_verify(folder / "audit")["verdict"] in ("ok", "unanchored")


def test_guards_record_how_they_ended(folder: Path) -> None:
    async def main(gate: Gate) -> None:
        @gate.guard(tool="search")
        async def slow(q: str) -> str:
            await asyncio.sleep(10)
            return q

        task = asyncio.create_task(slow("x"))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with Gate.open(folder / "tollkeeper.toml") as gate, run(gate):

        @gate.guard
        def search(q: str) -> str:
            if q == "bad":
                raise KeyError(q)
            return q

        assert search("good") == "good"
        with pytest.raises(KeyError):
            search("bad")
        with pytest.raises(Denied):
            gate.guard(lambda n: n, tool="search")(n=101)
        asyncio.run(main(gate))
        decision = gate.check("search")
        assert gate.outcome(decision, usage={"rows": 3}, duration_ms=2)
        assert not gate.outcome(decision, "error"), "once"
    outcomes = entries(folder, "outcome")
    assert [(entry["status"], entry.get("error")) for entry in outcomes] == [
        ("ok", None),
        ("error", "KeyError"),
        ("cancelled", "CancelledError"),
        ("ok", None),
    ]
    assert outcomes[-1]["usage"] == {"rows": 3}
    assert outcomes[-1]["of"] == decision.id


def test_model_calls_record_what_they_used(folder: Path) -> None:
    with Gate.open(folder / "tollkeeper.toml") as gate, run(gate):
        with gate.model_call(model="m", prompt_tokens=10, max_tokens=5) as call:
            call.settle(prompt=10, completion=3)
        with pytest.raises(ZeroDivisionError), gate.model_call(model="m", prompt_tokens=10, max_tokens=5):
            raise ZeroDivisionError
        asked = call.decision.id
        gate.check("search", parent=asked)
    outcomes = entries(folder, "outcome")
    assert [(entry["status"], entry["usage"]) for entry in outcomes] == [
        ("ok", {"prompt": 10, "cached": 0, "completion": 3}),
        ("error", {"charged": 10}),
    ]
    decisions = entries(folder, "decision")
    assert decisions[0]["model"] == {"name": "m", "prompt_tokens": 10, "max_tokens": 5, "n": 1}
    assert decisions[2]["parent"] == asked


def durable_size(gate: Gate) -> int:
    assert gate.log is not None
    return gate.log.durable_size


def test_a_policy_makes_a_guard_wait_for_the_disk(folder: Path, gate: Gate) -> None:
    seen: list[bool] = []

    def on_disk(decision: str) -> bool:
        assert gate.log is not None
        return any(json.loads(entry).get("id") == decision for _, entry in AuditReader(gate.log.folder).entries())

    with run(gate):

        @gate.guard
        def wipe() -> None:
            (last,) = [entry for entry in entries(folder, "decision") if entry["tool"] == "wipe"]
            seen.append(on_disk(last["id"]))

        wipe()
        assert gate.check("wipe").durability == "sync"
        assert gate.check("search").durability == "group"

        @gate.guard
        async def launch() -> int:
            assert gate.log is not None
            return int(gate.log.health()["checkpoint_size"])

        before = durable_size(gate)
        assert asyncio.run(launch()) > before - 1
        decision = gate.check("search")
        decision.wait_durable()
        asyncio.run(_await(decision))
    assert seen == [True]


async def _await(decision: Decision) -> None:
    await decision.durable("checkpointed")


def test_checks_that_may_wait(gate: Gate) -> None:
    async def main() -> Decision:
        return await gate.acheck("launch", {"text": "x" * 1_000_000})

    with run(gate):
        assert gate.check("launch", {"text": "x" * 1_000_000}).code == "input.too_large"
        assert asyncio.run(main()).allowed
        assert gate.check_blocking("wipe", {"text": "x" * 1_000_000}).allowed


def test_a_deleted_log_denies(folder: Path, gate: Gate) -> None:
    with run(gate):
        assert gate.check("search").allowed
        for segment in (folder / "audit" / "0" / "wal").iterdir():
            segment.unlink()
        end = time.monotonic() + 10
        while gate.check("search").allowed and time.monotonic() < end:
            time.sleep(0.05)
        denied = gate.check("search")
        assert denied.code == "audit.unavailable"
        assert "is gone" in denied.reason
        assert "opened anew" in denied.reason
        usage = gate.ledger.usage("acme")["requests", "1d"] if gate.ledger else None
        assert usage is not None
        used = usage.used
        assert gate.check("search").hold is None
        assert gate.ledger is not None
        assert gate.ledger.usage("acme")["requests", "1d"].used == used, "a denial costs nothing"
    with pytest.raises(AuditError, match="is gone"):
        gate.close()


def test_each_process_has_a_log_of_its_own(folder: Path) -> None:
    first = Gate.open(folder / "tollkeeper.toml")
    second = Gate.open(folder / "tollkeeper.toml")
    assert first.log is not None
    assert second.log is not None
    assert [first.log.folder.name, second.log.folder.name] == ["0", "1"]
    assert first.log.origin == "example.com/gate/0/1"
    first.close()
    third = Gate.open(folder / "tollkeeper.toml")
    assert third.log is not None
    assert third.log.folder.name == "0"
    second.close()
    third.close()
    assert entries(folder, "start")[1]["siblings"][0]["origin"] == "example.com/gate/1/1"


def test_a_fork_leaves_the_log_to_its_parent(folder: Path, gate: Gate) -> None:
    with run(gate):
        assert gate.check("search").allowed
        child = os.fork()
        if child == 0:
            # No assertion in here: a failing child would run the rest of the tests twice.
            code = 1
            try:
                code = 0 if gate.check("search").code == "gate.forked" else 2
                gate.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert gate.check("search").allowed
        assert gate.log is not None
        gate.log.flush()
    assert [entry["code"] for entry in entries(folder, "decision")] == ["allow", "allow"]


def test_what_cannot_change_is_refused(folder: Path, gate: Gate) -> None:
    (folder / "tollkeeper.toml").write_text(CONFIG.replace("example.com/gate", "example.com/other"))
    with pytest.raises(ConfigError, match="has changed"):
        gate.reload()
    (folder / "tollkeeper.toml").write_text(CONFIG)
    (folder / "p.cedar").write_text(POLICIES + 'permit(principal, action, resource == Mcp::"x");')
    gate.reload()
    assert gate.log is not None
    gate.log.flush()
    first, refused, second = entries(folder, "policy_load")
    assert (refused["failed"], refused["bundle"]) == (True, first["bundle"])
    assert "[audit] has changed" in refused["reason"]
    assert first["bundle"] != second["bundle"]
    assert len(list((folder / "audit" / "bundle").iterdir())) == 2


def test_durability_needs_a_log(folder: Path) -> None:
    (folder / "tollkeeper.toml").write_text(CONFIG.replace('[audit]\norigin = "example.com/gate"\n', ""))
    with pytest.raises(PolicyError, match="keeps no audit log") as caught:
        Gate.open(folder / "tollkeeper.toml")
    assert "[audit]" in str(caught.value.help)


def test_a_decision_without_a_log_is_not_durable(folder: Path) -> None:
    (folder / "p.cedar").write_text("permit(principal, action, resource);")
    (folder / "tollkeeper.toml").write_text(CONFIG.replace('[audit]\norigin = "example.com/gate"\n', ""))
    with Gate.open(folder / "tollkeeper.toml") as gate, run(gate):
        decision = gate.check("search")
        assert decision.durability is None
        with pytest.raises(AuditError, match="keeps no audit log"):
            decision.wait_durable()
        assert not gate.outcome(decision)


def test_many_threads_leave_no_gap(folder: Path) -> None:
    with Gate.open(folder / "tollkeeper.toml") as gate:
        scope = run(gate).scope

        def work() -> None:
            for _ in range(500):
                gate.check("search", {"q": "x"}, scope=scope)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    decisions = entries(folder, "decision")
    assert len({entry["id"] for entry in decisions}) == 4000
    report = audit_verify(folder / "audit", trust_directory=True)
    assert report["verdict"] == "ok", report


def in_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Forks a child that runs `work` with the writing end of a pipe; its process and the reading end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # No assertion in here: a failing child would run the rest of the tests twice.
        code = 1
        try:
            os.close(reading)
            work(writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return child, reading


def check_for_ever(folder: Path, writing: int) -> None:
    gate = Gate.open(folder / "tollkeeper.toml")
    with run(gate):
        while True:
            os.write(writing, f"{gate.check('search', {'q': 'x'}).id}\n".encode())


@pytest.mark.timeout(3600)
def test_every_decision_that_was_answered_survives_a_kill(folder: Path) -> None:
    """The process is killed right after a check has returned its id, over and over, on the same directory."""
    kills = int(os.environ.get("TOLLKEEPER_AUDIT_KILLS", "200"))
    told: list[str] = []
    for number in range(kills):
        child, reading = in_child(lambda writing: check_for_ever(folder, writing))
        with os.fdopen(reading, "rb") as ids:
            told += [ids.readline().decode().strip() for _ in range(1 + 37 * number % 60)]
            os.kill(child, signal.SIGKILL)
            told += [line.decode().strip() for line in ids if line.endswith(b"\n")]
        os.waitpid(child, 0)
    Gate.open(folder / "tollkeeper.toml").close()
    recorded = [entry["id"] for entry in entries(folder, "decision")]
    assert len(recorded) == len(set(recorded))
    missing = set(told) - set(recorded)
    assert not missing
    report = audit_verify(folder / "audit", trust_directory=True)
    assert report["verdict"] == "ok", report
    # A ring that held more than a batch is drained in several, each of which says so.
    assert len({entry["of"] for entry in entries(folder, "recovery")}) == kills


def test_eight_processes_leave_no_gap(folder: Path) -> None:
    def work(writing: int) -> None:
        with Gate.open(folder / "tollkeeper.toml") as gate, run(gate):
            os.write(writing, " ".join(gate.check("search", {"q": "x"}).id for _ in range(1000)).encode())

    children = [in_child(work) for _ in range(8)]
    told: list[str] = []
    for child, reading in children:
        with os.fdopen(reading, "rb") as ids:
            told += ids.read().decode().split()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    slots = [int(slot.name) for slot in (folder / "audit").iterdir() if slot.name.isdigit()]
    recorded = [entry["id"] for slot in slots for entry in entries(folder, "decision", slot)]
    assert len(told) == 8000
    assert sorted(recorded) == sorted(told)
    report = audit_verify(folder / "audit", trust_directory=True)
    assert report["verdict"] == "ok", report


def test_entries_say_where_they_were_traced(folder: Path) -> None:
    from opentelemetry import context, trace  # noqa: PLC0415 - only here

    span = trace.NonRecordingSpan(
        trace.SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, is_remote=True)
    )
    with Gate.open(folder / "tollkeeper.toml") as gate, run(gate):
        token = context.attach(trace.set_span_in_context(span))
        try:
            gate.check("search")
        finally:
            context.detach(token)
        gate.check("search")
    first, second = entries(folder, "decision")
    assert first["trace"] == {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"}
    assert "trace" not in second


def test_entries_follow_the_schema(folder: Path, root: Path) -> None:
    import jsonschema  # noqa: PLC0415 - only here

    with (
        Gate.open(folder / "tollkeeper.toml") as gate,
        run(gate, request="r", labels=["pii"], tools=["search", "wipe"]),
    ):
        gate.outcome(gate.check("search", {"n": 1}), "error", error=KeyError("x"), usage={"a": 1}, duration_ms=1)
        gate.check("search", {"n": 101})
        gate.check("launch")
        gate.check("nothing")
        with gate.model_call(model="m", prompt_tokens=1, max_tokens=1) as call:
            call.settle(completion=1)
        assert not gate.check("search", {"x": object()}).allowed
        with gate.run(tools=["search"]):
            gate.check("search")
        with pytest.raises(Denied):
            gate.model_call(model="m", prompt_tokens=2000, max_tokens=1).__enter__()
    schema = json.loads((root / "python" / "tollkeeper" / "entry_schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    found = entries(folder)
    for entry in found:
        assert not [error.message for error in validator.iter_errors(entry)], entry
        order = [*schema["properties"], *schema["$defs"].get(entry["kind"], {}).get("properties", {})]
        known = [name for name in entry if name in order]
        assert known == sorted(known, key=order.index), entry["kind"]
        assert set(entry) <= set(order), entry["kind"]
    assert {entry["kind"] for entry in found} >= {"start", "policy_load", "run", "decision", "outcome", "stop"}
