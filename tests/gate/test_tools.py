"""Tools that runtimes describe, those that are withheld, what a run could call; and what a host says of its calls."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import Decision, Denied, Gate, PolicyError
from tollkeeper._native import AuditReader
from tollkeeper.cli import logs
from tollkeeper.errors import EntityError
from tollkeeper.reevaluate import Replay

POLICIES = """
@id("web") permit(principal, action, resource == Mcp::"web");
@id("models") permit(principal, action == Action::"call_model", resource);
@id("hand over") permit(principal, action == Action::"delegate", resource);
@id("large") forbid(principal, action, resource) when { context.input has m && context.input.m > 100 };
@id("never") forbid(principal, action == Action::"wipe", resource);
"""
CONFIG = """
[policy]
files = ["p.cedar"]
[audit]
origin = "example.com/gate"
[tools.own]
resource = 'Mcp::"web"'
reads = ["untrusted"]
[tools.wipe]
resource = 'Mcp::"web"'
"""
NUMBER = {"properties": {"n": {"type": "integer"}}}
TEXT = {"properties": {"n": {"type": "string"}}}
SAID = {"runtime": "maf", "agent": "a", "session": "t-1", "run": "r-1", "call": "c-1"}


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    (tmp_path / "p.cedar").write_text(POLICIES)
    (tmp_path / "tollkeeper.toml").write_text(CONFIG)
    with Gate.open(tmp_path / "tollkeeper.toml") as gate:
        yield gate


def code(gate: Gate, tool: str, **arguments: Any) -> str:
    with gate.run(principal='Agent::"a"', session="s"):
        return gate.check(tool, arguments).code


def decisions(folder: Path) -> list[dict[str, Any]]:
    reader = AuditReader(folder / "audit" / "0")
    found = [json.loads(entry) for _, entry in reader.entries()]
    return [entry for entry in found if entry["kind"] == "decision"]


# --- registering ------------------------------------------------------------------------------------------------------


def test_a_runtime_describes_its_tools_and_describes_them_anew(gate: Gate) -> None:
    gate.register("search", 'Mcp::"web"', schema=NUMBER, paths=["n"], cost={"requests": 1}, reads=["untrusted"])
    prepared = gate.action("search")
    with gate.run(principal='Agent::"a"'):
        # It costs something, and nobody pays in this run.
        assert [prepared.check({"n": n}).code for n in (1, "x")] == ["budget.unavailable", "input.unrepresentable"]
        gate.register("search", 'Mcp::"web"', schema=TEXT)
        assert [prepared.check({"n": n}).code for n in (1, "x")] == ["input.unrepresentable", "allow"]
        gate.register_many([{"name": "search", "resource": 'Mcp::"mail"'}, {"name": "new", "resource": 'Mcp::"web"'}])
        assert prepared.check({"n": 1}).code == "policy.no_permit"
        gate.reload()
        assert prepared.check({"n": 1}).code == "policy.no_permit"
    assert gate.tools == ["new", "own", "search", "wipe"]


def test_a_tool_of_the_file_takes_over_a_schema_it_has_not(gate: Gate, tmp_path: Path) -> None:
    gate.register("own", 'Mcp::"mail"', schema=NUMBER, cost={"requests": 1})
    assert (code(gate, "own", n=1), code(gate, "own", n="x")) == ("allow", "input.unrepresentable")
    gate.register("own", 'Mcp::"mail"')
    assert code(gate, "own", n="x") == "input.unrepresentable"
    (tmp_path / "tollkeeper.toml").write_text(CONFIG.replace("reads =", "schema = { type = 'object' }\nreads ="))
    gate.reload()
    assert code(gate, "own", n="x") == "allow"


@pytest.mark.parametrize(
    ("tools", "error", "says"),
    [
        ([{"name": "Own", "resource": 'Mcp::"web"'}], PolicyError, "the same name but for case"),
        ([{"name": "delegate", "resource": 'Mcp::"web"'}], PolicyError, "is reserved"),
        ([{"name": "x", "resource": 'Mcp::"web"', "schema": {"type": 7}}], PolicyError, "tool `x`"),
        ([{"name": "x", "resource": "web"}], EntityError, "entity uid"),
        ([{"name": "x", "resource": 'Mcp::"web"', "cost": {"euros": 1}}], ValueError, "unknown unit"),
        ([{"name": "x", "resource": 'Mcp::"web"', "paths": "path"}], TypeError, "not a str"),
        ([{"name": "x", "resource": 'Mcp::"web"', "scheme": {}}], TypeError, "scheme"),
        ([{"name": "x", "resource": 'Mcp::"web"'}, {"name": "x", "resource": 'Mcp::"m"'}], PolicyError, "twice"),
    ],
)
def test_what_cannot_be_registered_registers_nothing(
    gate: Gate, tools: list[Mapping[str, Any]], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        gate.register_many([{"name": "first", "resource": 'Mcp::"web"'}, *tools])
    assert gate.tools == ["own", "wipe"]


def test_a_decision_is_replayed_by_the_definition_that_made_it(gate: Gate, tmp_path: Path) -> None:
    made = []
    for server, schema in (("web", NUMBER), ("web", TEXT), ("mail", None)):
        gate.register_many([{"name": name, "resource": f'Mcp::"{server}"', "schema": schema} for name in ("own", "x")])
        made += [code(gate, name, n=n) for name in ("own", "x") for n in (5, "5")]
    assert made == [
        *("allow", "input.unrepresentable") * 2,
        *("input.unrepresentable", "allow") * 2,
        # The file's own keeps the schema that it has by now.
        *("input.unrepresentable", "allow", "policy.no_permit", "policy.no_permit"),
    ]  # fmt: skip
    gate.close()

    def replayed() -> Replay:
        found = logs.Logs(tmp_path / "audit")
        replay = Replay(found.bundle_folders)
        for entry in found.entries():
            if entry.head.kind == "decision":
                replay.take(found.recorded(entry))
        return replay

    result = replayed().result
    assert (result.same, result.different, result.skipped) == (len(made), 0, {})
    # A definition that is not there is not made up from the bundle.
    for file in (tmp_path / "audit" / "bundle").iterdir():
        if json.loads(file.read_text()).get("name") == "own":
            file.unlink()
    result = replayed().result
    assert (result.same, result.different, result.skipped.total()) == (6, 0, 6)


# --- withholding ------------------------------------------------------------------------------------------------------


def test_what_is_withheld_is_refused_with_its_reason(gate: Gate, tmp_path: Path) -> None:
    gate.withhold({"own": "its description has changed", "nothing": "nobody has looked at it"})
    prepared = gate.action("own")
    with gate.run(principal='Agent::"a"'):
        denied = prepared.check({})
        assert (denied.code, denied.reason) == ("tool.changed", "its description has changed")
        assert gate.check("nothing").code == "tool.changed"
        assert gate.check("own", {"x": object()}).code == "tool.changed"
        gate.reload()
        gate.register("nothing", 'Mcp::"web"')
        assert [prepared.check().code, gate.check("nothing").code] == ["tool.changed"] * 2
        gate.withhold({"nothing": "nobody has looked at it"})
        assert [prepared.check().code, gate.check("nothing").code] == ["allow", "tool.changed"]
        gate.withhold({})
        assert gate.check("nothing").code == "allow"
    assert gate.stats()["codes"] == {"tool.changed": 6, "allow": 2}
    gate.close()
    entries = decisions(tmp_path)
    assert [entry["code"] for entry in entries] == ["tool.changed"] * 5 + ["allow", "tool.changed", "allow"]
    assert [entry["tool"] for entry in entries[:2]] == ["own", "nothing"]
    for wrong in ({"own": 1}, {1: "x"}, ["own"], None):
        with pytest.raises(TypeError):
            gate.withhold(wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- what could be called ---------------------------------------------------------------------------------------------


def test_what_nobody_in_the_scope_could_call(gate: Gate, tmp_path: Path) -> None:
    gate.register_many([{"name": "mail", "resource": 'Mcp::"mail"'}, {"name": "search", "resource": 'Mcp::"web"'}])
    names = ["mail", "nothing", "own", "search", "wipe"]
    assert not any(gate.may_call(name) for name in names), "nobody acts"
    with gate.run(principal='Agent::"a"') as outer:
        assert [name for name in names if gate.may_call(name)] == ["own", "search"]
        with gate.run(tools=["own", "mail"]):
            assert [name for name in names if gate.may_call(name)] == ["own"]
            assert gate.may_call("search", scope=outer)
        with gate.run(forbid='forbid(principal, action == Action::"own", resource);'):
            assert [name for name in names if gate.may_call(name)] == ["search"]
        gate.withhold({"own": ""})
        assert not gate.may_call("own")
        gate.close()
        assert not gate.may_call("search")
    assert decisions(tmp_path) == [], "nothing is decided"
    assert not gate.stats()["codes"]


# --- what a host says -------------------------------------------------------------------------------------------------


def asked(gate: Gate) -> Iterator[Decision]:
    """One decision of each way to ask for one, each with the same ids."""
    with gate.run(principal='Agent::"a"', session="s"):
        yield gate.check("own", {"n": 1}, asserted=SAID)
        yield gate.check("none", asserted=SAID)
        yield gate.check("own", {"n": object()}, asserted=SAID)
        yield gate.action("own").check({"n": 1}, asserted=SAID)
        yield gate.check_blocking("own", {"n": 1}, asserted=SAID)
        yield asyncio.run(gate.acheck("own", {"n": 1}, asserted=SAID))
        yield from gate.check_many("own", {"m": [1, 200]}, asserted=SAID)  # type: ignore[misc, attr-defined]
        with gate.model_call(model="m", prompt_tokens=1, max_tokens=1, asserted=SAID) as call:
            yield call.decision
        with gate.delegate('Agent::"b"', asserted=SAID) as inner:
            assert inner.principal == 'Agent::"b"'
            delegation = gate.delegate('Agent::"c"', forbid="forbid(principal, action, resource);", asserted=SAID)
            with pytest.raises(Denied) as denied, delegation:
                pass
            decided = denied.value.decision
            assert isinstance(decided, Decision)
            yield decided


def test_ids_of_the_host_reach_the_decision_and_its_entry(gate: Gate, tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    made = list(asked(gate))
    assert [decision.asserted for decision in made] == [SAID] * len(made)
    with gate.run(principal='Agent::"a"', session="s"):
        assert gate.check("own").asserted == {}
        assert gate.check("own", asserted={}).asserted == {}
        some = gate.check("own", asserted={"call": 'c"1\n', "runtime": "é" * 200 + "x", "run": "a\ud800b"})
    assert some.asserted == {"runtime": "é" * 128, "run": some.asserted["run"], "call": 'c"1\n'}
    assert some.asserted["run"].startswith("a\ufffd")
    gate.close()
    entries = {entry["id"]: entry for entry in decisions(tmp_path)}
    assert all(list(entries[decision.id]["asserted"].items()) == list(SAID.items()) for decision in made)
    assert list(entries[some.id]["asserted"]) == ["runtime", "run", "call"]
    assert entries[some.id]["asserted"] == some.asserted
    assert sum("asserted" not in entry for entry in entries.values()) == 2


WAYS: list[Callable[[Gate, Any], object]] = [
    lambda gate, said: gate.check("own", asserted=said),
    lambda gate, said: gate.action("own").check(asserted=said),
    lambda gate, said: gate.check_blocking("own", asserted=said),
    lambda gate, said: gate.check_many("own", {"n": 1}, asserted=said),
    lambda gate, said: gate.model_call(model="m", prompt_tokens=1, max_tokens=1, asserted=said),
    lambda gate, said: gate.delegate('Agent::"b"', asserted=said).__enter__(),
]


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_other_ids_than_these_are_errors(gate: Gate, way: int, tmp_path: Path) -> None:
    with gate.run(principal='Agent::"a"'):
        with pytest.raises(ValueError, match="there is no `user`; there is `runtime`"):
            WAYS[way](gate, {"user": "u"})
        for wrong in ({"call": 1}, {1: "call"}, "call", [("call", "c")]):
            with pytest.raises(TypeError, match="asserted"):
                WAYS[way](gate, wrong)
    gate.close()
    assert decisions(tmp_path) == [], "nothing was decided"
