"""What OpenTelemetry is told about a gate: its counters, spans of guarded calls and model calls, and no arguments."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import Denied, Gate
from tollkeeper._native import AuditReader

SECRET = "to-whom-it-concerns"  # noqa: S105 - an argument that no exporter may see
POLICIES = """
@id("read") permit(principal, action == Action::"search", resource);
@id("models") permit(principal, action == Action::"call_model", resource);
@id("wire") @approval("finance") permit(principal, action == Action::"wire", resource);
@id("mail") permit(principal, action == Action::"mail", resource);
@id("secrets") forbid(principal, action == Action::"mail", resource) when { context.input has to };
"""
CONFIG = """
[policy]
files = ["p.cedar"]
[state]
dir = "state"
[audit]
origin = "example.com/gate"
interval_ms = 60000
ring_kib = 512
[budget]
file = "budgets.toml"
[tools]
search = { resource = 'Mcp::"web"' }
mail = { resource = 'Mcp::"mail"' }
wire = { resource = 'Mcp::"bank"' }
"""
BUDGETS = """
[budget."acme"]
limits = [{ unit = "tokens", window = "1d", limit = 1000 }, { unit = "requests", window = "1d", limit = 10 }]
[budget."other"]
limits = [{ unit = "tokens", window = "total", limit = 5 }]
"""


class Told:
    """The SDK's in-memory ends."""

    def __init__(self) -> None:
        pytest.importorskip("opentelemetry.sdk", reason="the SDK is in requirements/test.txt")
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415 - only where it is installed
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader  # noqa: PLC0415 - as above
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - as above
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415 - as above
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: PLC0415 - as above

        self._reader, self._spans = InMemoryMetricReader(), InMemorySpanExporter()
        self.meters, self.tracers = MeterProvider([self._reader]), TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))

    def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """By name of the metric and values of the attributes, in the order of their names."""
        data = self._reader.get_metrics_data()
        found: dict[str, dict[tuple[str, ...], float]] = {}
        if data is None:
            return found
        for metric in data.resource_metrics[0].scope_metrics[0].metrics:
            for point in metric.data.data_points:
                key = tuple(str(value) for _, value in sorted(point.attributes.items()))
                found.setdefault(metric.name, {})[key] = point.value
        return found

    def spans(self) -> list[Any]:
        """Those that have ended since the last call."""
        spans = list(self._spans.get_finished_spans())
        self._spans.clear()
        return spans

    def everything(self) -> str:
        return json.dumps([span.to_json() for span in self._spans.get_finished_spans()]) + str(self.metrics())

    def close(self) -> None:
        self.meters.shutdown()
        self.tracers.shutdown()


@pytest.fixture
def told() -> Iterator[Told]:
    told = Told()
    yield told
    told.close()


def instrumented(gate: Gate, told: Told, name: str | None = None) -> Any:
    from tollkeeper.otel import instrument  # noqa: PLC0415 - needs an extra

    return instrument(gate, meter_provider=told.meters, tracer_provider=told.tracers, name=name)


def in_run(gate: Gate) -> Any:
    return gate.run(principal='Agent::"a"', session="s", budget="acme")


def test_metrics_are_the_gates_own_counters(gate: Gate, told: Told) -> None:
    with instrumented(gate, told), in_run(gate):
        for _ in range(3):
            gate.check("search", {"query": SECRET})
        held = gate.check("search")
        asked = gate.check("wire")
        gate.approval(asked)
        gate._table.revoke("tool", "launch", "because", "me", 1)
        found = told.metrics()
        assert found["tollkeeper.decisions"] == {("allow",): 4, ("approval.required",): 1}
        # Those that were dropped have ended; one is kept.
        assert found["tollkeeper.holds"] == {(): 1}
        assert held.allowed
        assert found["tollkeeper.budget.count"] == {(): 2}
        assert found["tollkeeper.budget.limit"] == {
            ("acme", "tokens", "1d"): 1000,
            ("acme", "requests", "1d"): 10,
            ("other", "tokens", "total"): 5,
        }
        assert gate.ledger is not None
        used = gate.ledger.usage("acme")["requests", "1d"].used
        assert found["tollkeeper.budget.used"]["acme", "requests", "1d"] == used > 0
        assert found["tollkeeper.revocations"] == {
            ("principal",): 0, ("tool",): 1, ("session",): 0, ("everything",): 0
        }  # fmt: skip
        assert found["tollkeeper.approvals.pending"] == {(): 1}
        assert found["tollkeeper.check.timed"] == {(): gate.stats()["timed"]}
        assert SECRET not in told.everything()


def test_durations_are_seconds_of_a_sample(gate: Gate, told: Told) -> None:
    with instrumented(gate, told), in_run(gate):
        for _ in range(3000):
            gate.check("nothing")
        found = told.metrics()
        [timed] = found["tollkeeper.check.timed"].values()
        assert timed > 0
        durations = found["tollkeeper.check.duration"]
        assert set(durations) == {("0.5",), ("0.99",), ("0.999",)}
        assert 0 < durations["0.5",] <= durations["0.99",] <= durations["0.999",] < 1


def test_the_log_is_measured(gate: Gate, told: Told) -> None:
    assert gate.log is not None
    with instrumented(gate, told), in_run(gate):
        gate.log.flush()
        assert told.metrics()["tollkeeper.audit.oldest_unsynced"] == {(): 0}
        gate.check("search")
        first = told.metrics()
        assert first["tollkeeper.audit.size"] == {(): gate.log.size}
        assert first["tollkeeper.audit.pending"][()] > 0
        assert first["tollkeeper.audit.ring.depth"][()] > 0
        assert first["tollkeeper.audit.oldest_unsynced"] == {(): 0}
        begun = time.monotonic()
        time.sleep(0.05)
        gate.check("search")
        [age] = told.metrics()["tollkeeper.audit.oldest_unsynced"].values()
        assert age >= 0.05
        assert age <= time.monotonic() - begun + 1
        gate.log.flush()
        last = told.metrics()
        assert last["tollkeeper.audit.oldest_unsynced"] == last["tollkeeper.audit.pending"] == {(): 0}


def test_a_guarded_call_is_a_span(gate: Gate, told: Told, tmp_path: Path) -> None:
    @gate.guard
    def search(query: str) -> str:
        return query.upper()

    @gate.guard(tool="search")
    async def find(query: str) -> str:
        await asyncio.sleep(0)
        return query.upper()

    with instrumented(gate, told), in_run(gate):
        assert search(SECRET) == SECRET.upper()
        assert asyncio.run(find(SECRET)) == SECRET.upper()
        assert SECRET not in told.everything()
        spans = told.spans()
    assert gate.log is not None
    gate.log.flush()
    reader = AuditReader(tmp_path / "audit" / "0")
    entries = [json.loads(line) for _, line in reader.entries()]
    decisions = [entry for entry in entries if entry["kind"] == "decision"]
    assert len(spans) == len(decisions) == 2
    for span, entry in zip(spans, decisions, strict=True):
        assert (span.name, span.kind.name) == ("execute_tool search", "INTERNAL")
        assert dict(span.attributes) == {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "search",
            "gen_ai.tool.type": "function",
            "tollkeeper.decision.id": entry["id"],
            "tollkeeper.decision.code": "allow",
            "tollkeeper.decision.policies": ("read",),
        }
        assert span.status.is_unset
        assert not span.events
        # The log knows the span, and the span the entry.
        assert entry["trace"]["span_id"] == f"{span.context.span_id:016x}"


@pytest.mark.parametrize(("tool", "code"), [("mail", "policy.forbidden"), ("wire", "approval.required")])
def test_a_denial_is_an_event_and_an_error(gate: Gate, told: Told, tool: str, code: str) -> None:
    @gate.guard(tool=tool)
    def send(to: str) -> None:
        pytest.fail(to)

    with instrumented(gate, told), in_run(gate):
        with pytest.raises(Denied):
            send(SECRET)
        assert SECRET not in told.everything()
        [span] = told.spans()
    assert span.attributes["error.type"] == span.attributes["tollkeeper.decision.code"] == code
    assert (span.status.status_code.name, span.status.description) == ("ERROR", code)
    [event] = span.events
    assert event.name == "tollkeeper.denied"
    assert event.attributes["tollkeeper.decision.id"] == span.attributes["tollkeeper.decision.id"]


def test_an_error_is_told_by_its_type(gate: Gate, told: Told) -> None:
    @gate.guard
    def search(query: str) -> None:
        raise LookupError(query)

    @gate.guard(tool="search")
    async def find() -> None:
        await asyncio.sleep(60)

    async def cancelled() -> None:
        task = asyncio.create_task(find())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    with instrumented(gate, told), in_run(gate):
        with pytest.raises(LookupError):
            search(SECRET)
        asyncio.run(cancelled())
        assert SECRET not in told.everything()
        spans = told.spans()
    assert [span.attributes["error.type"] for span in spans] == ["LookupError", "CancelledError"]
    assert [span.status.status_code.name for span in spans] == ["ERROR", "ERROR"]
    assert [span.attributes["tollkeeper.decision.code"] for span in spans] == ["allow", "allow"]
    assert [list(span.events) for span in spans] == [[], []]


def test_a_model_call_is_a_span(gate: Gate, told: Told) -> None:
    async def called() -> None:
        async with gate.model_call(model="gpt-5", prompt_tokens=20, max_tokens=10, n=2) as call:
            call.charge(3)
            assert call.settle(prompt=12, cached=4, completion=7)

    with instrumented(gate, told), in_run(gate):
        asyncio.run(called())
        with gate.model_call(model="gpt-5", prompt_tokens=20, max_tokens=10):
            pass
        with (
            pytest.raises(KeyError),
            gate.model_call(model="gpt-5", prompt_tokens=20, max_tokens=10),
        ):
            raise KeyError(SECRET)
        with pytest.raises(Denied), gate.model_call(model="gpt-5", prompt_tokens=2000, max_tokens=10):
            pytest.fail("it costs too much")
        assert SECRET not in told.everything()
        spans = told.spans()
    assert [(span.name, span.kind.name) for span in spans] == [("chat gpt-5", "CLIENT")] * 4
    assert [span.attributes.get("error.type") for span in spans] == [None, None, "KeyError", "budget.too_large"]
    first = {name: value for name, value in spans[0].attributes.items() if name.startswith("gen_ai")}
    assert first == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-5",
        "gen_ai.request.max_tokens": 10,
        "gen_ai.request.choice.count": 2,
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 4,
    }
    assert [event.name for event in spans[3].events] == ["tollkeeper.denied"]


def test_what_is_inside_a_guarded_call_is_below_its_span(gate: Gate, told: Told) -> None:
    @gate.guard
    def search() -> None:
        with gate.model_call(model="gpt-5", prompt_tokens=1, max_tokens=1):
            pass

    with instrumented(gate, told), in_run(gate):
        search()
        inner, outer = told.spans()
    assert inner.parent.span_id == outer.context.span_id
    assert outer.parent is None


def test_closing_ends_it(gate: Gate, told: Told) -> None:
    @gate.guard
    def search() -> None:
        pass

    made = instrumented(gate, told, name="one")
    with in_run(gate):
        search()
        assert ("allow", "one") in told.metrics()["tollkeeper.decisions"]
        with pytest.raises(ValueError, match="already"):
            instrumented(gate, told)
        made.close()
        made.close()
        told.spans()
        search()
        assert told.spans() == []
        assert told.metrics() == {}
        with instrumented(gate, told, name="two"):
            search()
            assert ("allow", "two") in told.metrics()["tollkeeper.decisions"]
            gate.close()
            assert told.metrics() == {}, "a gate that is closed has nothing to say"


def test_the_api_alone_is_enough(gate: Gate) -> None:
    from tollkeeper.otel import instrument  # noqa: PLC0415 - needs an extra

    @gate.guard
    def search() -> int:
        return 1

    with instrument(gate), in_run(gate):
        assert search() == 1
        with gate.model_call(model="m", prompt_tokens=1, max_tokens=1) as call:
            assert call.settle(completion=1)
        with pytest.raises(Denied), gate.model_call(model="m", prompt_tokens=2000, max_tokens=1):
            pytest.fail("it costs too much")


def test_nothing_is_loaded_that_nobody_asked_for() -> None:
    code = "import sys, tollkeeper; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - the code is above
    assert done.stdout == "[]\n"
