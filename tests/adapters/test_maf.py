"""What only Microsoft Agent Framework has: two ways to call a tool, models as arguments, middleware of one run.

The contract suite has what all hosts have.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

pytest.importorskip("agent_framework", reason="no agent-framework-core: run `make test-hosts`")
sys.path.insert(0, str(Path(__file__).resolve().parent / "contract"))

from agent_framework import (
    Agent,
    BaseChatClient,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationContext,
    FunctionTool,
    Message,
)
from driver import Call, Turn
from drivers.maf import Scripted
from pydantic import AfterValidator, BaseModel

from tollkeeper import ConfigError, Denied, Gate
from tollkeeper._native import AuditReader
from tollkeeper.adapters import maf

DONE = Turn(text="done")


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    (tmp_path / "p.cedar").write_text(
        """
@id("tools") permit(principal, action in Action::"call_tool", resource);
@id("models") permit(principal, action == Action::"call_model", resource);
@id("no") @reason("Not that.") forbid(principal, action in Action::"call_tool", resource)
when { context.input has q && context.input.q == "bad" };
"""
    )
    (tmp_path / "tollkeeper.toml").write_text('[policy]\nfiles = ["p.cedar"]\n[audit]\norigin = "example.com/maf"\n')
    return tmp_path


@pytest.fixture(name="gate")
def gate_fixture(folder: Path) -> Iterator[Gate]:
    with Gate.open(folder / "tollkeeper.toml") as gate, gate.run(principal='Agent::"a"'):
        yield gate


@pytest.fixture(name="guard")
def guard_fixture(gate: Gate) -> Iterator[maf.Guard]:
    guard = maf.Guard(gate, resource='Mcp::"crm"')
    yield guard
    guard.uninstall()


def outcomes(folder: Path) -> list[tuple[str, str | None]]:
    reader = AuditReader(folder / "audit" / "0")
    found = [json.loads(raw) for _, raw in reader.entries()]
    return [(entry["status"], entry.get("error")) for entry in found if entry["kind"] == "outcome"]


def made(function: Any, **more: Any) -> FunctionTool:
    return FunctionTool(name=function.__name__, description="", func=function, **more)


def test_only_one_guard_is_installed_and_the_framework_is_put_back(gate: Gate, guard: maf.Guard) -> None:
    before = (FunctionTool.invoke, FunctionTool.__call__)
    guard.install()
    guard.install()
    assert (FunctionTool.invoke, FunctionTool.__call__) != before
    other = maf.Guard(gate)
    with pytest.raises(RuntimeError, match="another guard"):
        other.install()
    other.uninstall()
    assert FunctionTool.invoke is not before[0]
    guard.uninstall()
    assert (FunctionTool.invoke, FunctionTool.__call__) == before


@pytest.mark.parametrize("installed", [False, True])
def test_a_client_that_passes_no_middleware_is_refused(gate: Gate, guard: maf.Guard, installed: bool) -> None:  # noqa: FBT001 - a parameter
    asked: list[int] = []

    class Bare(BaseChatClient):  # type: ignore[type-arg]
        """A client of one's own."""

        def _inner_get_response(self, **_: Any) -> Any:
            async def answer() -> ChatResponse[Any]:
                asked.append(1)
                return ChatResponse(messages=[Message("assistant", [Content.from_text("hello")])])

            return answer()

    if installed:
        guard.install()
    agent = Agent(Bare(), name="a", middleware=None if installed else guard.middleware())
    with pytest.raises(ConfigError, match="Bare pass no chat middleware") as refused:
        asyncio.run(agent.run("go"))
    assert refused.value.code == "host.unsupported"
    guard.uninstall()
    assert asked == []
    without = maf.Guard(gate, models=False)
    assert asyncio.run(Agent(Bare(), name="a", middleware=without.middleware()).run("go")).text == "hello"


def test_a_stream_that_breaks_is_over_while_its_error_is_kept(gate: Gate, guard: maf.Guard, folder: Path) -> None:
    class Breaking(Scripted):
        """Loses its connection after the first words."""

        async def _stream(self, turn: Turn) -> AsyncIterator[ChatResponseUpdate]:
            del turn
            yield ChatResponseUpdate(role="assistant", contents=[Content.from_text("one two")])
            raise ConnectionError

    agent = Agent(Breaking([DONE], []), name="a", middleware=guard.middleware())

    async def main() -> None:
        async for _ in agent.run("go", stream=True):
            pass

    with pytest.raises(ConnectionError) as kept:
        asyncio.run(main())
    gate.close()
    assert outcomes(folder) == [("error", "ConnectionError")]
    assert kept.value.__traceback__ is not None


def test_a_tool_that_is_called_like_a_function_is_gated(guard: maf.Guard) -> None:
    ran: list[str] = []

    def look(q: str) -> str:
        ran.append(q)
        return f"found {q}"

    async def find(q: str) -> str:
        ran.append(q)
        return f"found {q}"

    guard.install()
    assert made(look)(q="good") == "found good"
    with pytest.raises(Denied, match=r"Denied \(policy\.forbidden\): Not that\."):
        made(look)(q="bad")
    with pytest.raises(TypeError, match="by name"):
        made(look)("good")

    async def main() -> str:
        return str(await made(find)(q="good"))

    assert asyncio.run(main()) == "found good"
    assert ran == ["good", "good"]


def test_a_call_inside_a_call_is_decided_also_if_it_looks_the_same(gate: Gate, guard: maf.Guard) -> None:
    ran: list[str] = []

    async def look(q: str) -> str:
        ran.append(q)
        with gate.run(tools=[]):
            return str((await tool.invoke(arguments={"q": q}))[0].text)

    tool = made(look)
    guard.install()
    with pytest.raises(Denied):
        asyncio.run(tool.invoke(arguments={"q": "good"}))
    assert ran == ["good"]


def test_what_a_validator_makes_of_an_argument_is_decided_on(guard: maf.Guard) -> None:
    ran: list[str] = []

    def look(q: Annotated[str, AfterValidator(str.lower)]) -> str:
        ran.append(q)
        return ""

    guard.install()
    asyncio.run(made(look).invoke(arguments={"q": "GOOD"}))
    with pytest.raises(Denied):
        asyncio.run(made(look).invoke(arguments={"q": "BAD"}))
    assert ran == ["good"]


@pytest.mark.parametrize("reads", range(1, 6))
def test_arguments_that_are_something_else_each_time_run_as_they_were_decided(guard: maf.Guard, reads: int) -> None:
    ran: list[str] = []

    def look(q: str) -> str:
        ran.append(q)
        return ""

    class Turning(dict[str, Any]):
        """Good for some readings, and bad from then on."""

        left = reads

        def keys(self) -> Any:
            self.left -= 1
            self["q"] = "good" if self.left > 0 else "bad"
            return super().keys()

        def __iter__(self) -> Iterator[str]:
            return iter(self.keys())

    guard.install()
    with contextlib.suppress(Denied):
        asyncio.run(made(look).invoke(arguments=Turning(q="good")))
    assert "bad" not in ran


def test_what_a_tool_calls_inside_is_decided_by_itself(guard: maf.Guard) -> None:
    ran: list[str] = []

    def look(q: str) -> str:
        ran.append(q)
        # Once more, with what the model was not allowed.
        return "" if q == "bad" else str(tool(q="bad"))

    tool = made(look)
    guard.install()
    with pytest.raises(Denied):
        asyncio.run(tool.invoke(arguments={"q": "good"}))
    assert ran == ["good"]


class Query(BaseModel):
    """Arguments as a model."""

    q: str
    deep: list[str] = []


def test_models_as_arguments_are_decided_by_their_fields(guard: maf.Guard) -> None:
    ran: list[Any] = []

    def look(q: str, deep: list[str]) -> str:
        ran.append((q, deep))
        return "found"

    guard.install()
    tool = made(look, input_model=Query)
    asyncio.run(tool.invoke(arguments=Query(q="good", deep=["a"])))
    with pytest.raises(Denied):
        asyncio.run(tool.invoke(arguments=Query(q="bad")))
    assert ran == [("good", ["a"])]


def test_a_tool_that_takes_the_context_still_gets_it(guard: maf.Guard) -> None:
    seen: list[Any] = []

    def look(q: str, ctx: FunctionInvocationContext) -> str:
        seen.append((q, ctx.kwargs.get("tenant"), dict(ctx.arguments)))
        return "found"

    agent = Agent(
        Scripted([Turn((Call("look", {"q": "good"}, "c"),)), DONE], []), tools=[look], middleware=guard.middleware()
    )
    guard.install()
    asyncio.run(agent.run("go", function_invocation_kwargs={"tenant": "t1"}))
    assert seen == [("good", "t1", {"q": "good"})]


def test_a_tool_that_fails_is_an_error_in_the_log_and_not_a_denial(folder: Path, gate: Gate, guard: maf.Guard) -> None:
    def look(q: str) -> str:
        raise ValueError(q)

    inputs: list[str] = []
    agent = Agent(
        Scripted([Turn((Call("look", {"q": "good"}, "c"),)), DONE], inputs), tools=[look], middleware=guard.middleware()
    )
    asyncio.run(agent.run("go"))
    assert "Denied" not in inputs[1]
    gate.close()
    assert ("error", "ValueError") in outcomes(folder)


def test_middleware_of_one_run_works_too(guard: maf.Guard) -> None:
    ran: list[str] = []

    def look(q: str) -> str:
        ran.append(q)
        return "found"

    inputs: list[str] = []
    agent = Agent(Scripted([Turn((Call("look", {"q": "bad"}, "c"),)), DONE], inputs), tools=[look])
    asyncio.run(agent.run("go", middleware=guard.middleware()))
    assert ran == []
    assert "Denied (policy.forbidden): Not that." in inputs[1]


def test_without_a_run_nothing_is_allowed(folder: Path) -> None:
    ran: list[str] = []

    def look(q: str) -> str:
        ran.append(q)
        return "found"

    with Gate.open(folder / "tollkeeper.toml") as gate:
        guard = maf.Guard(gate, resource='Mcp::"crm"', models=False)
        inputs: list[str] = []
        script = Scripted([Turn((Call("look", {"q": "good"}, "c"),)), DONE], inputs)
        agent = Agent(script, tools=[look], middleware=guard.middleware())
        asyncio.run(agent.run("go"))
    assert ran == []
    assert "Denied (scope.missing)" in inputs[1]


def test_arguments_that_the_message_history_shares_are_not_touched(guard: maf.Guard) -> None:
    def look(q: str, tags: list[str]) -> str:
        tags.append("changed by the tool")
        return q

    arguments: dict[str, Any] = {"q": "good", "tags": ["a"]}
    agent = Agent(
        Scripted([Turn((Call("look", arguments, "c"),)), DONE], []), tools=[look], middleware=guard.middleware()
    )
    asyncio.run(agent.run("go"))
    assert arguments == {"q": "good", "tags": ["a"]}


def test_two_agents_with_one_set_of_middleware_have_no_name_rather_than_a_wrong_one(
    folder: Path, gate: Gate, guard: maf.Guard
) -> None:
    def look(q: str) -> str:
        return q

    shared = guard.middleware()
    for name in ("one", "two"):
        script = Scripted([Turn((Call("look", {"q": "good"}, "c"),)), DONE], [])
        asyncio.run(Agent(script, name=name, tools=[look], middleware=shared).run("go"))
    gate.close()
    reader = AuditReader(folder / "audit" / "0")
    found = [json.loads(raw) for _, raw in reader.entries()]
    agents = [entry["asserted"].get("agent") for entry in found if entry["kind"] == "decision" and entry.get("tool")]
    assert agents == ["one", None]
