"""The OpenAI Agents SDK beyond the contract: what an attacker or a careless author of agents does."""

import asyncio
import copy
import dataclasses
import gc
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import ConfigError, Denied, Gate
from tollkeeper._native import AuditReader

if "openai_agents" not in os.environ.get("TOLLKEEPER_HOSTS", ""):
    pytest.importorskip("agents", reason="no openai_agents: run `make test-hosts`")
sys.path.insert(0, str(Path(__file__).resolve().parent / "contract"))

import agents
from agents import (
    Agent,
    ApplyPatchTool,
    Computer,
    ComputerTool,
    FunctionTool,
    LocalShellTool,
    ModelProvider,
    ModelSettings,
    RunConfig,
    Runner,
    ShellTool,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrail,
    Usage,
    WebSearchTool,
    function_tool,
    handoff,
)
from agents.exceptions import UserError
from agents.mcp import MCPServer
from agents.tool_context import ToolContext
from driver import Call, Turn
from drivers.openai_agents import Scripted
from openai.types.responses import ResponseComputerToolCall
from openai.types.responses.response_computer_tool_call import ActionClick
from openai.types.responses.response_output_item import LocalShellCall, LocalShellCallAction

from tollkeeper.adapters.openai_agents import Guard, Stopped, strict_json

RESOURCE = 'Mcp::"crm"'
POLICIES = """
@id("tools") permit(principal, action in Action::"call_tool", resource);
@id("models") permit(principal, action == Action::"call_model", resource);
@id("secrets") @reason("Secrets are not for agents.") forbid(principal, action == Action::"look", resource)
when { context.input has q && context.input.q like "*secret*" };
@id("never") @reason("Nobody wipes anything.")
forbid(principal, action in [Action::"wipe", Action::"local_shell", Action::"shell", Action::"apply_patch"], resource);
"""
CONFIG = """
[policy]
files = ["p.cedar"]
[audit]
origin = "example.com/hosts"
[budget]
file = "budgets.toml"
[tools.wipe]
resource = 'Mcp::"crm"'
[tools.local_shell]
resource = 'Mcp::"shell"'
[tools.shell]
resource = 'Mcp::"shell"'
[tools.apply_patch]
resource = 'Mcp::"files"'
"""
BUDGETS = '[budget."acme"]\nlimits = [{ unit = "tokens", window = "1d", limit = 100000 }]\n'
DONE = Turn(text="all done now")
QUIET = RunConfig(tracing_disabled=True)


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    """The files of a gate."""
    (tmp_path / "p.cedar").write_text(POLICIES)
    (tmp_path / "budgets.toml").write_text(BUDGETS)
    (tmp_path / "tollkeeper.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture(name="gate")
def gate_fixture(folder: Path) -> Iterator[Gate]:
    """An open gate."""
    with Gate.open(folder / "tollkeeper.toml") as gate:
        yield gate


@pytest.fixture(name="guard")
def guard_fixture(gate: Gate) -> Guard:
    """A guard, not installed."""
    return Guard(gate, resource=RESOURCE)


@pytest.fixture(name="ran")
def ran_fixture() -> list[Any]:
    """What ran."""
    return []


@pytest.fixture(name="look")
def look_fixture(ran: list[Any]) -> FunctionTool:
    """A tool that may run, but for secrets."""

    @function_tool
    def look(q: str) -> str:
        """Looks something up."""
        ran.append(q)
        return f"found {q}"

    return look


@pytest.fixture(name="wipe")
def wipe_fixture(ran: list[Any]) -> FunctionTool:
    """A tool that may never run."""

    @function_tool
    def wipe(path: str) -> str:
        """Wipes a path."""
        ran.append(path)
        return "wiped"

    return wipe


def call(name: str, arguments: dict[str, Any], number: int = 1) -> Turn:
    """A turn with one call; `raw` is a text that goes out as it is."""
    return Turn((Call(name, arguments, f"call-{number}"),))


def go(guard: Guard, agent: Any, *, config: RunConfig = QUIET, **options: Any) -> Any:
    """One run in a scope of the gate."""
    with guard.crossing.gate.run(principal='Agent::"researcher"', session="s-1", budget="acme"):
        return asyncio.run(Runner.run(agent, "go", run_config=guard.run_config(config), **options))


def direct(guard: Guard, tool: FunctionTool, text: str) -> str:
    """`on_invoke_tool` of a tool, in a scope of the gate."""
    context: Any = ToolContext(context=None, tool_name="anything", tool_call_id="direct", tool_arguments="{}")
    with guard.crossing.gate.run(principal='Agent::"researcher"', budget="acme"):
        return str(asyncio.run(_awaited(tool.on_invoke_tool(context, text))))


async def _awaited(running: Any) -> Any:
    return await running


def entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The entries of a closed gate's log."""
    reader = AuditReader(folder / "audit" / "0")
    return [entry for _, raw in reader.entries() if (entry := json.loads(raw))["kind"] == kind]


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"q": "a", "q": "the secret"}',
        '{"q": NaN}',
        '{"q": 1e999}',
        '["q"]',
        '"q"',
        "null",
        "{",
        " ",
        f'{{"q": {"9" * 5000}}}',
    ],
)
def test_arguments_that_can_be_read_in_two_ways_do_not_run(
    guard: Guard, look: FunctionTool, ran: list[Any], text: str
) -> None:
    model = Scripted([call("look", {"raw": text}), DONE], inputs := [])
    go(guard, guard.agent(Agent(name="a", tools=[look], model=model)))
    assert ran == []
    assert "Denied (input.unrepresentable)" in inputs[1]


@pytest.mark.parametrize("text", ['{"q": "\\ud800"}', '{"q": ' * 100_000])
def test_arguments_that_the_sdk_itself_fails_at_do_not_run(guard: Guard, look: FunctionTool, text: str) -> None:
    # In newer versions such a call ends the run before it comes to a tool.
    guarded = guard.agent(Agent(name="a", tools=[look])).tools[0]
    assert "Denied (input.unrepresentable)" in direct(guard, guarded, text)


def test_what_is_read_strictly_is_what_json_reads() -> None:
    for value in ({}, {"a": [1, 1.5, None, True, {"b": "\u00e9\n"}]}, {"a": {"a": 1}}):
        assert strict_json(json.dumps(value)) == value
    assert strict_json("") == {}


def test_a_call_without_arguments_runs(guard: Guard, ran: list[Any]) -> None:
    @function_tool
    def now() -> str:
        ran.append("now")
        return "noon"

    model = Scripted([call("now", {"raw": ""}), DONE], inputs := [])
    go(guard, guard.agent(Agent(name="a", tools=[now], model=model)))
    assert ran == ["now"]
    assert "noon" in inputs[1]


def test_other_json_than_the_guardrail_saw_is_decided(guard: Guard, look: FunctionTool, ran: list[Any]) -> None:
    guarded = guard.agent(Agent(name="a", tools=[look])).tools[0]
    assert direct(guard, guarded, '{"q": "weather"}') == "found weather"
    assert "Denied (policy.forbidden)" in direct(guard, guarded, '{"q": "the secret"}')
    assert ran == ["weather"]


def test_what_runs_is_made_of_what_was_decided(guard: Guard, ran: list[Any]) -> None:
    async def invoke(_: Any, text: str) -> str:
        ran.append(text)
        return "ok"

    tool = FunctionTool("look", "", {"type": "object", "properties": {}}, invoke, strict_json_schema=False)
    direct(guard, guard.agent(Agent(name="a", tools=[tool])).tools[0], '  {"q":\t"\\u0077eather" }')
    assert ran == ['{"q": "weather"}']


# --- which tools ------------------------------------------------------------------------------------------------------


def test_the_original_agent_and_its_tools_are_untouched(guard: Guard, look: FunctionTool) -> None:
    inner = look.on_invoke_tool
    agent = Agent(name="a", tools=[look], model=Scripted([], []))
    model = agent.model
    guarded = guard.agent(agent)
    assert guarded is not agent
    assert agent.tools == [look]
    assert look.on_invoke_tool is inner
    assert agent.model is model
    assert type(agent) is Agent
    assert guard.agent(guarded) is guarded


class Server(MCPServer):
    """A server whose list grows."""

    def __init__(self, ran: list[Any]) -> None:
        super().__init__()
        self._ran, self.listed = ran, ["look"]

    name = "crm"

    async def connect(self) -> None:
        """Nothing to connect to."""

    async def cleanup(self) -> None:
        """Nothing to close."""

    async def list_tools(self, *_: Any, **__: Any) -> Any:
        """What it offers at the moment."""
        from mcp.types import Tool  # noqa: PLC0415 - comes with the SDK

        schema: Any = {"type": "object", "properties": {"q": {"type": "string"}, "path": {"type": "string"}}}
        known = "inputSchema" if "inputSchema" in Tool.model_fields else "input_schema"
        return [Tool(**{"name": name, "description": "", known: schema}) for name in self.listed]

    async def call_tool(self, tool_name: str, arguments: Any, *_: Any, **__: Any) -> Any:
        """Answers, and lists one more tool from now on."""
        from mcp.types import CallToolResult, TextContent  # noqa: PLC0415 - as above

        self._ran.append((tool_name, arguments))
        self.listed = ["look", "wipe"]
        return CallToolResult(content=[TextContent(type="text", text="from the server")])

    async def list_prompts(self) -> Any:
        """None."""
        raise NotImplementedError

    async def get_prompt(self, name: str, arguments: Any = None) -> Any:
        """None."""
        raise NotImplementedError


def test_tools_of_servers_are_gated_also_those_that_appear_later(guard: Guard, ran: list[Any]) -> None:
    turns = [call("look", {"q": "a"}), call("wipe", {"path": "/"}, 2), call("look", {"q": "the secret"}, 3), DONE]
    agent = Agent(name="a", mcp_servers=[Server(ran)], model=Scripted(turns, inputs := []))
    go(guard, guard.agent(agent))
    assert ran == [("look", {"q": "a"})]
    assert "from the server" in inputs[1]
    assert "Nobody wipes anything." in inputs[2]
    assert "Secrets are not for agents." in inputs[3]


@pytest.mark.parametrize("models", [True, False])
def test_a_tool_that_is_appended_is_gated(
    gate: Gate,
    look: FunctionTool,
    wipe: FunctionTool,
    ran: list[Any],
    models: bool,  # noqa: FBT001 - of the test's table
) -> None:
    guard = Guard(gate, resource=RESOURCE, models=models)
    agent = guard.agent(Agent(name="a", tools=[look], model=Scripted([call("wipe", {"path": "/"}), DONE], [])))
    agent.tools += [wipe, WebSearchTool()]
    go(guard, agent)
    assert ran == []


def test_clones_of_a_guarded_agent_are_guarded(guard: Guard, wipe: FunctionTool, ran: list[Any]) -> None:
    agent = guard.agent(Agent(name="a", model=Scripted([call("wipe", {"path": "/"}), DONE], [])))
    go(guard, agent.clone(name="b", tools=[wipe]))
    assert ran == []


@pytest.mark.parametrize("how", [copy.copy, dataclasses.replace])
def test_copies_of_a_guarded_tool_are_gated(
    guard: Guard, wipe: FunctionTool, ran: list[Any], how: Callable[[Any], Any]
) -> None:
    guarded = guard.agent(Agent(name="a", tools=[wipe])).tools[0]
    assert "Denied (policy.forbidden)" in direct(guard, how(guarded), '{"path": "/"}')
    assert ran == []


def test_a_copy_with_another_name_is_decided_by_that(guard: Guard, look: FunctionTool, ran: list[Any]) -> None:
    guarded = guard.agent(Agent(name="a", tools=[look])).tools[0]
    renamed = dataclasses.replace(guarded, name="wipe")
    model = Scripted([call("wipe", {"q": "weather"}), DONE], inputs := [])
    go(guard, guard.agent(Agent(name="a", tools=[renamed], model=model)))
    assert ran == []
    assert "Nobody wipes anything." in inputs[1]


def test_a_disabled_tool_stays_disabled(guard: Guard, look: FunctionTool, ran: list[Any]) -> None:
    off = dataclasses.replace(look, is_enabled=lambda *_: False)
    model = Scripted([DONE], [])
    go(guard, guard.agent(Agent(name="a", tools=[off], model=model)))
    assert model.tools == [[]]
    assert ran == []


def test_a_tool_whose_class_defines_what_invokes_it_is_refused(guard: Guard) -> None:
    class Own(FunctionTool):
        @property
        def on_invoke_tool(self) -> Any:  # type: ignore[override]
            async def invoke(*_: Any) -> str:
                return "ran"

            return invoke

        @on_invoke_tool.setter
        def on_invoke_tool(self, value: Any) -> None:
            self.__dict__["on_invoke_tool"] = value

    async def nothing(*_: Any) -> str:
        return ""

    tool = Own("look", "", {"type": "object", "properties": {}}, nothing, strict_json_schema=False)
    with pytest.raises(ConfigError, match="cannot be gated"):
        guard.agent(Agent(name="a", tools=[tool]))
    with pytest.raises(ConfigError, match="Own keeps `on_invoke_tool`"):
        guard.install()
    del tool, Own
    gc.collect()


def test_tools_of_the_provider_are_offered_only_if_they_are_named(folder: Path, caplog: Any) -> None:
    for named in (False, True):
        text = CONFIG + "[tools.web_search]\nresource = 'Mcp::\"web\"'\n" if named else CONFIG
        (folder / "tollkeeper.toml").write_text(text)
        with Gate.open(folder / "tollkeeper.toml") as gate:
            guard = Guard(gate, resource=RESOURCE)
            model = Scripted([DONE, DONE], [])
            agent = Agent(name="a", tools=[WebSearchTool()], model=model)
            go(guard, guard.agent(agent))
            # An agent that nobody guarded, with a model that somebody did.
            go(guard, Agent(name="b", tools=[WebSearchTool()], model=guard.model(model)))
        assert model.tools == [["web_search"] if named else []] * 2
    assert "not offered to the model" in caplog.text


# --- how the SDK runs them ------------------------------------------------------------------------------------------


def test_an_error_function_of_a_tool_does_not_see_denials(guard: Guard, ran: list[Any]) -> None:
    @function_tool(failure_error_function=lambda _, error: f"all is well: {error}")
    def wipe(path: str) -> str:
        ran.append(path)
        return "wiped"

    go(
        guard,
        guard.agent(Agent(name="a", tools=[wipe], model=Scripted([call("wipe", {"path": "/"}), DONE], inputs := []))),
    )
    assert ran == []
    assert "Denied (policy.forbidden): Nobody wipes anything." in inputs[1]
    assert "all is well" not in inputs[1]


@pytest.mark.parametrize("last", ["run_llm_again", "stop_on_first_tool"])
def test_an_error_function_of_a_tool_does_not_swallow_the_stop(
    gate: Gate, wipe: FunctionTool, ran: list[Any], last: Any
) -> None:
    guard = Guard(gate, resource=RESOURCE, halt=True)
    inner = Agent(name="inner", tools=[wipe], model=Scripted([call("wipe", {"path": "/"}), DONE], []))
    asks = Scripted([call("inner", {"input": "x"}), DONE], inputs := [])
    outer = Agent(name="outer", model=asks, tool_use_behavior=last)
    outer.tools = [inner.as_tool("inner", "Asks inner.")]
    with pytest.raises(Stopped, match="Nobody wipes anything") as stopped:
        go(guard, guard.agent(outer))
    assert isinstance(stopped.value, agents.ToolInputGuardrailTripwireTriggered)
    assert stopped.value.output.behavior == {"type": "raise_exception"}
    assert isinstance(stopped.value.__cause__, Denied)
    assert ran == []
    assert len(inputs) == 1


def test_a_tool_that_fails_is_recorded_as_failed(gate: Gate, guard: Guard, folder: Path) -> None:
    @function_tool
    def look(q: str) -> str:
        raise ValueError(q)

    @function_tool(failure_error_function=None)
    def find(q: str) -> str:
        raise ValueError(q)

    model = Scripted([call("look", {"q": "x"}), call("find", {"q": "x"}, 2), DONE], [])
    with pytest.raises((ValueError, UserError)):
        go(guard, guard.agent(Agent(name="a", tools=[look, find], model=model)))
    gate.close()
    tools = {entry["id"]: entry["tool"] for entry in entries(folder, "decision") if entry.get("tool")}
    found = {tools[entry["of"]]: entry["status"] for entry in entries(folder, "outcome") if entry["of"] in tools}
    # The oldest supported version says nothing of a failure that it makes a text of.
    told = hasattr(agents.tool, "_DEFAULT_FAILURE_HANDLED_ATTR")
    assert found == {"look": "error" if told else "ok", "find": "error"}


def test_the_refusal_is_the_answer_where_the_first_tool_is_the_last(
    guard: Guard, wipe: FunctionTool, ran: list[Any]
) -> None:
    model = Scripted([call("wipe", {"path": "/"}), DONE], inputs := [])
    agent = Agent(name="a", tools=[wipe], model=model, tool_use_behavior="stop_on_first_tool")
    assert go(guard, guard.agent(agent)).final_output == "Denied (policy.forbidden): Nobody wipes anything."
    assert ran == []
    assert len(inputs) == 1


def test_a_yes_of_a_user_does_not_outweigh_the_policy(guard: Guard, ran: list[Any]) -> None:
    @function_tool(needs_approval=True)
    def look(q: str) -> str:
        ran.append(q)
        return f"found {q}"

    model = Scripted(
        [Turn((Call("look", {"q": "the secret"}, "c-1"), Call("look", {"q": "a"}, "c-2"))), DONE], inputs := []
    )
    agent = guard.agent(Agent(name="a", tools=[look], model=model))

    async def asked() -> None:
        config = guard.run_config(QUIET)
        result = await Runner.run(agent, "go", run_config=config)
        assert len(result.interruptions) == 2
        assert ran == []
        state = result.to_state()
        for item in result.interruptions:
            state.approve(item)
        assert (await Runner.run(agent, state, run_config=config)).final_output == "all done now"

    with guard.crossing.gate.run(principal='Agent::"researcher"', budget="acme"):
        asyncio.run(asked())
    assert ran == ["a"]
    assert "Secrets are not for agents." in inputs[1]


def test_an_approval_is_asked_for_as_without_the_guard(guard: Guard, ran: list[Any]) -> None:
    async def never(*_: Any) -> bool:
        return False

    @function_tool(needs_approval=never, strict_mode=False)
    def look(q: str, depth: int = 3) -> str:
        ran.append((q, depth))
        return f"found {q}"

    seen = []
    for guarded in (False, True):
        # With a default that the call leaves out, newer versions do not believe the function.
        turns = [call("look", {"raw": '{"q":"a","depth":1}'}), call("look", {"raw": '{"q":"b"}'}, 2), DONE]
        agent = Agent(name="a", tools=[look], model=Scripted(turns, []))
        result = go(guard, guard.agent(agent)) if guarded else asyncio.run(Runner.run(agent, "go", run_config=QUIET))
        seen.append((len(result.interruptions), list(ran)))
        ran.clear()
    assert seen[0] == seen[1]
    assert ("a", 1) in seen[0][1]


def test_guardrails_of_a_tool_keep_their_word(guard: Guard, look: FunctionTool, ran: list[Any], folder: Path) -> None:
    def reject(_: Any) -> ToolGuardrailFunctionOutput:
        return ToolGuardrailFunctionOutput.reject_content("not today")

    def broken(_: Any) -> ToolGuardrailFunctionOutput:
        message = "a defect of the guardrail"
        raise RuntimeError(message)

    for check in (reject, broken):
        own = dataclasses.replace(look, tool_input_guardrails=[ToolInputGuardrail(check, name="own")])
        agent = Agent(name="a", tools=[own], model=Scripted([call("look", {"q": "a"}), DONE], inputs := []))
        if check is reject:
            go(guard, guard.agent(agent))
            assert "not today" in inputs[1]
        else:
            with pytest.raises((RuntimeError, UserError)):
                go(guard, guard.agent(agent))
    assert ran == []
    guard.crossing.gate.close()
    assert [entry for entry in entries(folder, "decision") if entry.get("tool")] == []


# --- other agents -----------------------------------------------------------------------------------------------------


def test_handoffs_are_guarded_in_circles_and_when_made_on_the_way(
    guard: Guard, look: FunctionTool, wipe: FunctionTool, ran: list[Any]
) -> None:
    bad = [call("wipe", {"path": "/"}, number) for number in (3, 4, 5)]
    first = Agent(name="first", tools=[wipe], model=Scripted([call("to_second", {}), bad[0], DONE], inputs := []))
    second = Agent(
        name="second", tools=[wipe, look], model=Scripted([bad[1], call("transfer_to_first", {}, 9)], deeper := [])
    )
    first.handoffs = [handoff(second, tool_name_override="to_second", input_filter=lambda data: data)]
    second.handoffs = [first]
    guarded = guard.agent(first)
    assert go(guard, guarded).final_output == "all done now"
    assert ran == []
    assert "Nobody wipes anything." in deeper[1]
    assert "Nobody wipes anything." in inputs[2]

    made = handoff(second, tool_name_override="to_second")
    fresh = Agent(name="second", tools=[wipe], model=Scripted([bad[2], DONE], last := []))

    async def invoke(*_: Any) -> Any:
        return fresh

    made.on_invoke_handoff = invoke
    third = Agent(name="third", handoffs=[made], model=Scripted([call("to_second", {})], []))
    assert go(guard, guard.agent(third)).last_agent.name == "second"
    assert ran == []
    assert "Nobody wipes anything." in last[1]


def test_an_agent_used_as_a_tool_pays_for_its_model(guard: Guard, look: FunctionTool, ran: list[Any]) -> None:
    inner = Agent(name="inner", tools=[look], model=Scripted([call("look", {"q": "a"}), DONE], []))
    outer = Agent(name="outer", model=Scripted([call("inner", {"input": "x"}), DONE], []))
    outer.tools = [inner.as_tool("inner", "Asks inner.")]
    go(guard, guard.agent(outer))
    assert ran == ["a"]
    ledger = guard.crossing.gate.ledger
    assert ledger is not None
    assert ledger.usage("acme")["tokens", "1d"].used == 4 * 110


# --- models -----------------------------------------------------------------------------------------------------------


class Provider(ModelProvider):
    """Knows one model."""

    def __init__(self, model: Scripted) -> None:
        self.model = model

    def get_model(self, model_name: str | None) -> Any:
        """That model."""
        assert model_name == "by-name"
        return self.model


@pytest.mark.parametrize("where", ["agent", "config", "config by name"])
def test_models_are_paid_for_wherever_they_are_named(guard: Guard, where: str, folder: Path) -> None:
    model = Scripted([DONE], [], name="")
    agent = Agent(name="a", model="by-name" if where == "agent" else None, model_settings=ModelSettings(max_tokens=50))
    named: Any = {"agent": None, "config": model, "config by name": "by-name"}[where]
    config = RunConfig(tracing_disabled=True, model=named, model_provider=Provider(model))
    go(guard, guard.agent(agent), config=config)
    guard.crossing.gate.close()
    (asked,) = [entry for entry in entries(folder, "decision") if entry.get("model")]
    assert asked["model"]["name"] == ("unknown" if where == "config" else "by-name")
    assert asked["model"]["max_tokens"] == 50
    assert config.model is named
    assert isinstance(config.model_provider, Provider)


def test_a_larger_limit_by_another_name_counts(guard: Guard) -> None:
    settings = ModelSettings(max_tokens=10, extra_args={"max_output_tokens": 5_000_000})
    with pytest.raises(Denied, match=r"budget\.too_large"):
        go(guard, guard.agent(Agent(name="a", model=Scripted([DONE], []), model_settings=settings)))


def test_a_model_that_reports_nothing_pays_what_it_held(guard: Guard) -> None:
    class Silent(Scripted):
        async def get_response(self, *args: Any, **named: Any) -> Any:  # type: ignore[override]
            response = await super().get_response(*args, **named)
            response.usage = Usage()
            return response

    settings = ModelSettings(max_tokens=70)
    go(guard, guard.agent(Agent(name="a", model=Silent([DONE], []), model_settings=settings)))
    ledger = guard.crossing.gate.ledger
    assert ledger is not None
    used = ledger.usage("acme")["tokens", "1d"]
    assert used.used > 70
    assert used.held == 0


def test_a_model_that_fails_holds_nothing(guard: Guard) -> None:
    class Failing(Scripted):
        async def get_response(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
            message = "the provider is away"
            raise ConnectionError(message)

    with pytest.raises(ConnectionError):
        go(guard, guard.agent(Agent(name="a", model=Failing([], []))))
    ledger = guard.crossing.gate.ledger
    assert ledger is not None
    assert ledger.holds() == []


# --- tools that are no functions --------------------------------------------------------------------------------------


class Items(Scripted):
    """A model whose first answers are items of the SDK."""

    def __init__(self, items: list[Any], inputs: list[str]) -> None:
        super().__init__([Turn() for _ in items] + [DONE], inputs)
        self._items = list(items)

    async def get_response(self, *args: Any, **named: Any) -> Any:  # type: ignore[override]
        """The next one."""
        response = await super().get_response(*args, **named)
        if self._items:
            response.output = [self._items.pop(0)]
        return response


def local_shell(ran: list[Any]) -> tuple[Any, Any]:
    """A tool, and a call of it."""
    action = LocalShellCallAction(type="exec", command=["rm", "-rf", "/"], env={})
    item = LocalShellCall(id="i", action=action, call_id="call-1", status="completed", type="local_shell_call")
    return LocalShellTool(executor=lambda request: ran.append(request.data.action.command) or "gone"), item  # type: ignore[func-returns-value]


def shell(ran: list[Any]) -> tuple[Any, Any]:
    """As above."""
    action = {"commands": ["rm -rf /"], "timeout_ms": 1000}
    item = {"type": "shell_call", "call_id": "call-1", "action": action, "status": "completed"}
    return ShellTool(executor=lambda request: ran.append(request.data.action.commands) or "gone"), item  # type: ignore[func-returns-value]


class Editor:
    """Keeps what it was asked for."""

    def __init__(self, ran: list[Any]) -> None:
        self._ran = ran

    def create_file(self, operation: Any) -> None:
        """Kept."""
        self._ran.append(("create_file", operation.path, operation.diff))

    update_file = delete_file = create_file


def apply_patch(ran: list[Any]) -> tuple[Any, Any]:
    """As above."""
    operation = {"type": "create_file", "path": "a.txt", "diff": "+hello\n"}
    item = {"type": "apply_patch_call", "call_id": "call-1", "operation": operation, "status": "completed"}
    return ApplyPatchTool(editor=Editor(ran)), item


NATIVE: Any = {"local_shell": local_shell, "shell": shell, "apply_patch": apply_patch}


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("name", list(NATIVE))
@pytest.mark.parametrize("installed", [False, True])
def test_tools_that_run_here_are_decided(
    folder: Path,
    ran: list[Any],
    name: str,
    allowed: bool,  # noqa: FBT001 - of the test's table
    installed: bool,  # noqa: FBT001 - as above
) -> None:
    if allowed:
        (folder / "p.cedar").write_text(
            POLICIES.replace('Action::"wipe"', 'Action::"other"').replace(f'Action::"{name}"', 'Action::"wipe"')
        )
    tool, item = NATIVE[name](ran)
    with Gate.open(folder / "tollkeeper.toml") as gate:
        guard = Guard(gate, resource=RESOURCE)
        agent = Agent(name="a", tools=[tool], model=guard.model(Items([item], inputs := [])))
        if installed:
            guard.install()
        try:
            go(guard, agent if installed else guard.agent(agent))
        finally:
            guard.uninstall()
    assert len(ran) == int(allowed)
    assert ("Nobody wipes anything." in inputs[1]) is not allowed
    (decision,) = [entry for entry in entries(folder, "decision") if entry.get("tool")]
    assert decision["tool"] == name
    if name != "apply_patch":
        assert decision["asserted"]["call"] == "call-1"


@pytest.mark.parametrize("name", list(NATIVE))
def test_a_stop_that_the_sdk_makes_a_text_of_stops_the_run_before_its_next_turn(
    gate: Gate, ran: list[Any], name: str
) -> None:
    guard = Guard(gate, resource=RESOURCE, halt=True)
    tool, item = NATIVE[name](ran)
    agent = Agent(name="a", tools=[tool], model=Items([item], inputs := []))
    with pytest.raises(Stopped, match="Nobody wipes anything"):
        go(guard, guard.agent(agent))
    assert ran == []
    assert len(inputs) == 1


class Screen(Computer):
    """Keeps what it was asked for."""

    environment = "browser"
    dimensions = (100, 100)

    def __init__(self, ran: list[Any]) -> None:
        self._ran = ran

    def screenshot(self) -> str:
        """A picture."""
        return "aGVsbG8="

    def click(self, x: int, y: int, button: Any) -> None:
        """Kept."""
        self._ran.append((x, y, button))

    def _other(self, *_: Any, **__: Any) -> None:
        message = "not asked for"
        raise AssertionError(message)

    double_click = scroll = type = wait = move = keypress = drag = _other


def test_a_computer_acts_only_where_it_may(guard: Guard, ran: list[Any], folder: Path) -> None:
    def click(x: int) -> Any:
        action = ActionClick(type="click", x=x, y=1, button="left")
        return ResponseComputerToolCall(
            id="i", action=action, call_id=f"c{x}", pending_safety_checks=[], status="completed", type="computer_call"
        )

    (folder / "p.cedar").write_text(
        POLICIES
        + '@id("left") @reason("Not there.") forbid(principal, action == Action::"computer_use_preview", resource)'
        + " when { context.input has x && context.input.x > 50 };"
    )
    schema = {"type": "object", "properties": {"action": {"type": "string"}, "x": {"type": "integer"}}}
    guard.crossing.gate.register("computer_use_preview", RESOURCE, schema=schema)
    guard.crossing.gate.reload()
    agent = Agent(name="a", tools=[ComputerTool(computer=Screen(ran))], model=Items([click(7), click(70)], []))
    with pytest.raises(Stopped, match="Not there"):
        go(guard, guard.agent(agent))
    assert ran == [(7, 1, "left")]


@pytest.mark.skipif(not hasattr(agents, "CustomTool"), reason="this version has no custom tools")
def test_a_tool_that_takes_a_text_is_decided(guard: Guard, ran: list[Any]) -> None:
    from openai.types.responses import ResponseCustomToolCall  # noqa: PLC0415 - as the tool

    async def invoke(_: Any, text: str) -> str:
        ran.append(text)
        return "ok"

    items = [
        ResponseCustomToolCall(call_id=f"c{n}", input=text, name=name, type="custom_tool_call")
        for n, (name, text) in enumerate([("say", "hello"), ("wipe", "/")])
    ]
    made = [agents.CustomTool(name=name, description="", on_invoke_tool=invoke) for name in ("say", "wipe")]
    go(guard, guard.agent(Agent(name="a", tools=made, model=Items(items, inputs := []))))
    assert ran == ["hello"]
    assert "Denied" in inputs[2]


# --- the process ------------------------------------------------------------------------------------------------------


def test_install_gates_what_exists_and_uninstall_ends_it(
    guard: Guard, gate: Gate, wipe: FunctionTool, ran: list[Any]
) -> None:
    def spare(path: str) -> None:
        """Made while the gate is installed."""
        ran.append(path)

    inner = wipe.on_invoke_tool
    guard.install()
    try:
        guard.install()
        with pytest.raises(RuntimeError, match="another guard"):
            Guard(gate).install()
        assert wipe.on_invoke_tool is not inner
        assert wipe.on_invoke_tool is wipe.on_invoke_tool
        made = [
            wipe,
            copy.copy(wipe),
            dataclasses.replace(wipe),
            function_tool(spare, name_override="wipe"),
        ]
        for tool in made:
            assert "Denied (policy.forbidden)" in direct(guard, tool, '{"path": "/"}')
        guarded = guard.agent(Agent(name="a", tools=[wipe])).tools[0]
        assert "Denied (policy.forbidden)" in direct(guard, guarded, '{"path": "/"}')
    finally:
        guard.uninstall()
    assert ran == []
    assert wipe.on_invoke_tool is inner
    assert [direct(guard, tool, '{"path": "/"}') for tool in made[:3]] == ["wiped"] * 3
    assert len(ran) == 3
    assert "Denied" in direct(guard, guarded, '{"path": "/"}')


def test_a_call_pays_once_where_both_gates_see_it(guard: Guard, look: FunctionTool, folder: Path) -> None:
    guard.install()
    try:
        agent = guard.agent(Agent(name="a", tools=[look], model=Scripted([call("look", {"q": "a"}), DONE], [])))
        go(guard, agent)
        original = look.on_invoke_tool

        async def around(context: Any, text: str) -> Any:
            return await original(context, text)

        wrapped = dataclasses.replace(look, on_invoke_tool=around)
        direct(guard, wrapped, '{"q": "b"}')
    finally:
        guard.uninstall()
    guard.crossing.gate.close()
    assert len([entry for entry in entries(folder, "decision") if entry.get("tool")]) == 2


def test_a_call_inside_a_call_is_decided_also_if_it_looks_the_same(guard: Guard, folder: Path) -> None:
    ran: list[str] = []

    @function_tool
    async def look(q: str) -> str:
        """Looks something up."""
        ran.append(q)
        if len(ran) == 4:
            return "found"
        inner = ToolContext(context=None, tool_name="look", tool_call_id="call-1", tool_arguments="{}")
        return str(await look.on_invoke_tool(inner, json.dumps({"q": q})))

    guard.install()
    try:
        assert direct(guard, look, '{"q": "a"}') == "found"
    finally:
        guard.uninstall()
    guard.crossing.gate.close()
    assert len(ran) == len([entry for entry in entries(folder, "decision") if entry.get("tool")]) == 4


def test_the_module_says_what_it_was_tested_with() -> None:
    module = importlib.import_module("tollkeeper.adapters.openai_agents")
    assert module.HOST.check()


@pytest.mark.parametrize("where", ["agent", "config", "provider"])
def test_install_gates_models_of_agents_that_nobody_guarded(guard: Guard, where: str, folder: Path) -> None:
    model = Scripted([DONE], [])
    agent = Agent(name="a", model=model if where == "agent" else None if where == "config" else "by-name")
    config = RunConfig(tracing_disabled=True, model=model if where == "config" else None)
    if where == "provider":
        config.model_provider = Provider(model)
    guard.install()
    try:
        guarded = guard.agent(agent), guard.run_config(config)
        with guard.crossing.gate.run(principal='Agent::"researcher"', budget="acme"):
            asyncio.run(Runner.run(agent, "go", run_config=config))
            asyncio.run(Runner.run(agent.clone(name="b"), "go", run_config=dataclasses.replace(config)))
    finally:
        guard.uninstall()
    assert agent.model is (model if where == "agent" else None if where == "config" else "by-name")
    assert config.model is (model if where == "config" else None)
    assert "Guarded" not in type(config.model_provider).__name__
    # What was guarded on purpose stays so.
    with guard.crossing.gate.run(principal='Agent::"researcher"', budget="acme"):
        asyncio.run(Runner.run(guarded[0], "go", run_config=guarded[1]))
    guard.crossing.gate.close()
    assert len([entry for entry in entries(folder, "decision") if entry.get("model")]) == 3
