"""What the contract suite does not ask of the LangChain adapter: its own ways to go around a hook, and its own results.

The scripted model is the suite's.
"""

import asyncio
import gc
import inspect
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

pytest.importorskip("langchain", reason="no langchain: run `make test-hosts`")
sys.path.insert(0, str(Path(__file__).resolve().parent / "contract"))

from driver import Call, Turn
from drivers.langchain import Scripted, Tamper
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelFallbackMiddleware, ToolRetryMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import InjectedToolArg, InjectedToolCallId, StructuredTool, Tool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode, ToolRuntime
from langgraph.types import Command, interrupt
from pydantic import BaseModel, Field, SecretStr, field_serializer, field_validator, model_validator

from tollkeeper import Denied, Gate
from tollkeeper._native import AuditReader
from tollkeeper.adapters.langchain import Guard, Halted

DONE = Turn(text="all done now")
POLICIES = """
@id("tools") permit(principal, action in Action::"call_tool", resource);
@id("models") permit(principal, action == Action::"call_model", resource);
@id("secrets") @reason("Secrets are not for agents.") forbid(principal, action == Action::"look", resource)
when { context.input has q && context.input.q like "*secret*" };
@id("never") @reason("Nobody wipes anything.") forbid(principal, action == Action::"wipe", resource);
@id("deep") @reason("Not that deep.") forbid(principal, action in Action::"call_tool", resource)
when { context.input has path && context.input.path like "/etc/*" };
@id("deeper") @reason("Not that deep.") forbid(principal, action in Action::"call_tool", resource)
when { context.input has at && context.input.at has path && context.input.at.path like "/etc/*" };
@id("other") @reason("Not that deep.") forbid(principal, action in Action::"call_tool", resource)
when { context.input has at && context.input.at has other && context.input.at.other like "/etc/*" };
"""
CONFIG = """
[policy]
files = ["p.cedar"]
[audit]
origin = "example.com/langchain"
[budget]
file = "budgets.toml"
[tools.scarce]
resource = 'Mcp::"vault"'
cost = { in_flight = 0, requests = 1000 }
"""
BUDGETS = """
[budget."acme"]
limits = [
    { unit = "tokens", window = "1d", limit = 100000 },
    { unit = "requests", window = "1d", limit = 1000000 },
]
"""


def entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The entries of a closed gate's log."""
    reader = AuditReader(folder / "audit" / "0")
    return [entry for _, raw in reader.entries() if (entry := json.loads(raw))["kind"] == kind]


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    """The files of a gate."""
    (tmp_path / "p.cedar").write_text(POLICIES)
    (tmp_path / "budgets.toml").write_text(BUDGETS)
    (tmp_path / "tollkeeper.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture(name="gate")
def gate_fixture(folder: Path) -> Iterator[Gate]:
    """An open gate, and a run in it."""
    with Gate.open(folder / "tollkeeper.toml") as gate, gate.run(principal='Agent::"researcher"', budget="acme"):
        yield gate


def guard(gate: Gate, **options: Any) -> Guard:
    """A guard for tools alone, unless told otherwise."""
    return Guard(gate, resource='Mcp::"crm"', **{"models": False, **options})


def ask(name: str, call: str = "call-1", **arguments: Any) -> Turn:
    """A turn that calls a tool."""
    return Turn((Call(name, arguments, call),))


def run(middleware: list[Any], tools: list[Any], turns: list[Turn], **options: Any) -> tuple[list[str], dict[str, Any]]:
    """A run of an agent: what its model read, and the state at its end."""
    inputs: list[str] = []
    agent = create_agent(Scripted.of(turns, inputs), tools=tools, middleware=middleware, **options)
    return inputs, agent.invoke({"messages": [("user", "go")]})


def tools_of(folder: Path) -> list[dict[str, Any]]:
    """The decisions about tools in a closed gate's log."""
    return [entry for entry in entries(folder, "decision") if entry.get("tool")]


def outcomes(folder: Path) -> list[str]:
    """How the calls of a closed gate ended."""
    return [entry["status"] for entry in entries(folder, "outcome")]


# --- arguments ----------------------------------------------------------------------------------------------------


class Options(BaseModel):
    """An argument that is an object."""

    depth: int = 1


class Look(BaseModel):
    """Arguments that are checked and converted."""

    path: str = Field(alias="filePath")
    count: int = 10
    note: str | None = None
    options: Options = Options()
    token: SecretStr = SecretStr("none")
    marks: list[int] = Field(default_factory=list)

    @field_validator("path")
    @classmethod
    def absolute(cls, value: str) -> str:
        """What the tool gets is another path than the model gave."""
        return value if value.startswith("/") else f"/etc/{value}"


def test_policies_see_what_the_tool_gets(gate: Gate) -> None:
    seen: list[dict[str, Any]] = []
    check = gate.check_blocking

    def spy(name: str, given: Any, **rest: Any) -> Any:
        seen.append(given)
        return check(name, given, **rest)

    gate.check_blocking = spy  # type: ignore[method-assign]
    got: list[Any] = []
    made = StructuredTool.from_function(
        lambda **given: str(got.append(given)), name="peek", description="Peeks.", args_schema=Look
    )
    given = {"filePath": "/a", "count": "3", "options": {"depth": "4"}, "token": "t", "other": 1}
    run(guard(gate).middleware(), [made], [ask("peek", **given), DONE])
    assert seen == [{"path": "/a", "count": 3, "options": {"depth": 4}, "token": "t", "marks": []}]
    assert got[0]["options"] == Options(depth=4)
    assert got[0]["token"].get_secret_value() == "t"


def test_what_a_validator_makes_of_an_argument_is_decided_on(gate: Gate) -> None:
    class Read(BaseModel):
        path: str

        @field_validator("path")
        @classmethod
        def absolute(cls, value: str) -> str:
            return f"/etc/{value}"

    ran: list[str] = []
    made = StructuredTool.from_function(
        lambda path: str(ran.append(path)), name="read", description="Reads.", args_schema=Read
    )
    inputs, _ = run(guard(gate).middleware(), [made], [ask("read", path="shadow"), DONE])
    assert ran == []
    assert "Denied (policy.forbidden): Not that deep." in inputs[1]


def test_a_model_that_masks_or_leaves_out_a_field_hides_nothing(gate: Gate) -> None:
    class Masked(BaseModel):
        path: str
        other: str = Field(default="", exclude=True)

        @field_serializer("path")
        def _hidden(self, _: str) -> str:
            return "***"

    class Inside(BaseModel):
        at: Masked

    ran: list[str] = []

    @tool(args_schema=Inside)
    def read(at: Masked) -> str:
        """Reads a file."""
        ran.append(at.path)
        return "read"

    turns = [ask("read", at={"path": "/srv/x", "other": "/srv/y"}), ask("read", at={"path": "/etc/x"})]
    turns += [ask("read", at={"path": "/srv/z", "other": "/etc/y"}), DONE]
    inputs, _ = run(guard(gate).middleware(), [read], turns)
    assert ran == ["/srv/x"]
    assert inputs[3].count("Denied (policy.forbidden): Not that deep.") == 2


def test_arguments_that_do_not_fit_are_refused_by_the_runtime_or_the_gate(gate: Gate) -> None:
    ran: list[int] = []

    @tool
    def count(n: int) -> str:
        """Counts."""
        ran.append(n)
        return "counted"

    inputs, _ = run(guard(gate).middleware(), [count], [ask("count", n="many"), ask("count", "call-2", n="2"), DONE])
    assert ran == [2]
    assert "counted" not in inputs[1]
    assert "counted" in inputs[2]


@pytest.mark.parametrize("installed", [False, True])
def test_what_the_runtime_supplies_is_no_argument(gate: Gate, folder: Path, installed: bool) -> None:  # noqa: FBT001 - a parameter
    got: list[Any] = []

    @tool
    def note(
        q: str,
        state: Annotated[dict[str, Any], InjectedState],
        its_id: Annotated[str, InjectedToolCallId],
        runtime: ToolRuntime,
    ) -> str:
        """Notes."""
        got.append((q, len(state["messages"]), its_id, runtime.tool_call_id))
        return "noted"

    made = guard(gate)
    if installed:
        made.install()
    try:
        # A model that sets them itself gets nowhere.
        forged = {"q": "x", "state": {"messages": []}, "its_id": "forged", "runtime": "forged"}
        run(made.middleware(), [note], [ask("note", **forged), DONE])
    finally:
        made.uninstall()
    assert got == [("x", 2, "call-1", "call-1")]
    gate.close()
    (decision,) = tools_of(folder)
    assert decision["code"] == "allow"


@pytest.mark.parametrize("installed", [False, True], ids=["hooks", "installed"])
@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_a_check_that_looks_at_what_the_runtime_supplies_hides_nothing(
    gate: Gate,
    installed: bool,  # noqa: FBT001 - a parameter
    error: type[Exception],
) -> None:
    class Given(BaseModel):
        q: str
        state: Annotated[dict[str, Any], InjectedState]

        @field_validator("q")
        @classmethod
        def _lower(cls, value: str) -> str:
            return value.lower()

        @model_validator(mode="after")
        def _known(self) -> Any:
            if not self.state:
                raise error
            return self

    ran: list[str] = []

    @tool(args_schema=Given)
    def look(q: str, state: dict[str, Any]) -> str:
        """Looks something up."""
        del state
        ran.append(q)
        return "found"

    guarded = guard(gate)
    if installed:
        guarded.install()
    try:
        inputs, _ = run(guarded.middleware(), [look], [ask("look", q="A SECRET"), ask("look", q=7), DONE])
    finally:
        guarded.uninstall()
    assert ran == []
    assert "Denied (host.unsupported)" in inputs[1]
    assert "Denied (input.unrepresentable)" in inputs[2]


def test_an_injected_argument_of_the_authors_own_is_seen(gate: Gate) -> None:
    ran: list[str] = []

    @tool
    def read(path: Annotated[str, InjectedToolArg] = "/srv") -> str:
        """Reads what it was set up to read."""
        ran.append(path)
        return path

    inputs, _ = run(guard(gate).middleware(), [read], [ask("read", path="/etc/shadow"), ask("read", "call-2"), DONE])
    assert ran == ["/srv"]
    assert "Not that deep." in inputs[1]


def test_a_tool_described_in_json(gate: Gate) -> None:
    got: list[Any] = []
    schema = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}
    made = StructuredTool(
        name="look", description="Looks.", args_schema=schema, func=lambda **given: str(got.append(given))
    )
    inputs, _ = run(guard(gate).middleware(), [made], [ask("look", q=1), ask("look", "call-2", q="x"), DONE])
    assert got == [{"q": "x"}]
    assert "Denied (input." in inputs[1]


def test_a_tool_that_takes_a_text(gate: Gate) -> None:
    got: list[str] = []
    made = Tool("look", lambda text: str(got.append(text)), "Looks.")
    run(guard(gate).middleware(), [made], [ask("look", __arg1="x"), DONE])
    installed = guard(gate)
    installed.install()
    try:
        made.run("y")
    finally:
        installed.uninstall()
    assert got == ["x", "y"]


def test_the_message_history_is_not_what_runs(gate: Gate) -> None:
    class Later(AgentMiddleware):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            # The arguments of the model's message, which the state still has.
            request.state["messages"][-1].tool_calls[0]["args"]["tags"].append("changed")
            return handler(request)

    got: list[Any] = []

    @tool
    def mark(tags: list[str]) -> str:
        """Marks."""
        got.append(tags)
        tags.append("by the tool")
        return "marked"

    _, state = run([*guard(gate).middleware(), Later()], [mark], [ask("mark", tags=["a"]), DONE])
    assert got == [["a", "by the tool"]]
    assert state["messages"][1].tool_calls[0]["args"] == {"tags": ["a", "changed"]}


# --- middleware ---------------------------------------------------------------------------------------------------


def test_the_guard_that_is_last_decides_what_other_middleware_has_left(gate: Gate) -> None:
    ran: list[str] = []

    @tool
    def look(q: str) -> str:
        """Looks."""
        ran.append(q)
        return "found"

    tamper = Tamper(lambda given: given.update(q="the secret"))
    inputs, _ = run([tamper, *guard(gate).middleware()], [look], [ask("look", q="weather"), DONE])
    assert ran == []
    assert "Denied (policy.forbidden)" in inputs[1]


class Swap(AgentMiddleware):
    """Middleware that puts another tool in the place of the one that was asked for."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self._other = other

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        """Swaps it."""
        return handler(request.override(tool=self._other))


@pytest.mark.parametrize(("first", "installed"), [(False, False), (True, True)])
def test_a_tool_that_was_swapped_is_decided_as_what_it_is(gate: Gate, first: bool, installed: bool) -> None:  # noqa: FBT001 - parameters
    ran: list[str] = []

    @tool
    def look(path: str) -> str:
        """Looks."""
        return path

    @tool
    def wipe(path: str) -> str:
        """Wipes."""
        ran.append(path)
        return "wiped"

    made, swap = guard(gate), Swap(wipe)
    middleware = [*made.middleware(), swap] if first else [swap, *made.middleware()]
    if installed:
        made.install()
    try:
        inputs, _ = run(middleware, [look], [ask("look", path="/"), DONE])
    finally:
        made.uninstall()
    assert ran == []
    assert "Nobody wipes anything." in inputs[1]


@pytest.mark.parametrize(("last", "installed", "decisions"), [(True, False, 3), (False, True, 3), (False, False, 1)])
def test_each_attempt_is_a_call(gate: Gate, folder: Path, last: bool, installed: bool, decisions: int) -> None:  # noqa: FBT001 - parameters
    tries: list[int] = []

    @tool
    def flaky(n: int) -> str:
        """Fails twice."""
        tries.append(n)
        if len(tries) < 3:
            message = "not yet"
            raise OSError(message)
        return "done"

    made, retry = guard(gate), ToolRetryMiddleware(max_retries=3, initial_delay=0, jitter=False)
    if installed:
        made.install()
    try:
        middleware = [retry, *made.middleware()] if last else [*made.middleware(), retry]
        inputs, _ = run(middleware, [flaky], [ask("flaky", n=1), DONE])
    finally:
        made.uninstall()
    assert len(tries) == 3
    assert "done" in inputs[1]
    gate.close()
    assert len(tools_of(folder)) == decisions
    # The decision of a guard that is outermost ends with the last attempt.
    assert outcomes(folder)[-1] == "ok"
    assert outcomes(folder).count("error") == (2 if last else decisions // 2)


@pytest.mark.parametrize("installed", [False, True])
def test_a_retry_gives_no_second_chance(gate: Gate, installed: bool) -> None:  # noqa: FBT001 - a parameter
    @tool
    def wipe(path: str) -> str:
        """Wipes."""
        return path

    made = guard(gate)
    retry = ToolRetryMiddleware(max_retries=2, initial_delay=0, jitter=False)
    if installed:
        made.install()
    try:
        inputs, _ = run([retry, *made.middleware()], [wipe], [ask("wipe", path="/"), DONE])
    finally:
        made.uninstall()
    assert inputs[1].count("Denied (policy.forbidden)") == 1


@pytest.mark.parametrize("entry", ["sync", "stream", "async", "async stream"])
def test_a_halt_reaches_the_caller_with_a_checkpointer_too(gate: Gate, entry: str) -> None:
    @tool
    def wipe(path: str) -> str:
        """Wipes."""
        return path

    agent = create_agent(
        Scripted.of([ask("wipe", path="/"), DONE], []),
        tools=[wipe],
        middleware=guard(gate, halt=True).middleware(),
        checkpointer=InMemorySaver(),
    )
    asked: Any = ({"messages": [("user", "go")]}, {"configurable": {"thread_id": "t-1"}})

    async def read() -> None:
        async for _ in agent.astream(*asked):
            pass

    ways: dict[str, Callable[[], Any]] = {
        "sync": lambda: agent.invoke(*asked),
        "stream": lambda: list(agent.stream(*asked)),
        "async": lambda: asyncio.run(agent.ainvoke(*asked)),
        "async stream": lambda: asyncio.run(read()),
    }
    with pytest.raises(Halted, match="Nobody wipes anything"):
        ways[entry]()


def test_a_halt_gets_through_retries(gate: Gate) -> None:
    if "GraphBubbleUp" not in inspect.getsource(inspect.getmodule(ToolRetryMiddleware)):  # type: ignore[arg-type]
        pytest.skip("in this release retries take every exception for a failure of the tool")

    @tool
    def wipe(path: str) -> str:
        """Wipes."""
        return path

    retry = ToolRetryMiddleware(max_retries=2, initial_delay=0, jitter=False)
    with pytest.raises(Halted, match="Nobody wipes anything"):
        run([retry, *guard(gate, halt=True).middleware()], [wipe], [ask("wipe", path="/"), DONE])


def test_a_model_that_nobody_can_pay_for_is_replaced_by_one_that_is_decided(gate: Gate, folder: Path) -> None:
    dear, cheap = Scripted.of([], [], max_tokens=1_000_000, model_name="dear"), say("one")
    middleware = [ModelFallbackMiddleware(cheap), *guard(gate, models=True).middleware()]
    state = create_agent(dear, middleware=middleware).invoke({"messages": [("user", "go")]})
    assert state["messages"][-1].content == "one"
    assert used(gate) == (110, 0)
    gate.close()
    decided = [(entry["model"]["name"], entry["code"]) for entry in entries(folder, "decision")]
    assert decided == [("dear", "budget.too_large"), ("scripted", "allow")]


# --- what a tool may do -------------------------------------------------------------------------------------------


def test_a_tool_that_answers_with_a_command(gate: Gate, folder: Path) -> None:
    @tool
    def jump(call: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Jumps."""
        return Command(update={"messages": [ToolMessage("jumped", tool_call_id=call)]})

    inputs, _ = run(guard(gate).middleware(), [jump], [ask("jump"), DONE])
    assert "jumped" in inputs[1]
    gate.close()
    assert outcomes(folder) == ["ok"]


def test_a_refusal_of_a_tool_that_ends_the_run_ends_it(gate: Gate) -> None:
    @tool(return_direct=True)
    def wipe(path: str) -> str:
        """Wipes."""
        return path

    inputs, state = run(guard(gate).middleware(), [wipe], [ask("wipe", path="/"), DONE])
    assert len(inputs) == 1
    assert state["messages"][-1].content == "Denied (policy.forbidden): Nobody wipes anything."
    assert state["messages"][-1].status == "error"


def test_an_interrupted_call_has_not_failed_and_is_decided_again(gate: Gate, folder: Path) -> None:
    @tool
    def confirm(q: str) -> str:
        """Asks a person."""
        return f"{q}: {interrupt('sure?')}"

    agent = create_agent(
        Scripted.of([ask("confirm", q="x"), DONE], []),
        tools=[confirm],
        middleware=guard(gate).middleware(),
        checkpointer=InMemorySaver(),
    )
    config: Any = {"configurable": {"thread_id": "t-1"}}
    assert agent.invoke({"messages": [("user", "go")]}, config)["__interrupt__"][0].value == "sure?"
    state = agent.invoke(Command(resume="yes"), config)
    assert state["messages"][2].content == "x: yes"
    gate.close()
    assert [entry["asserted"]["session"] for entry in tools_of(folder)] == ["t-1", "t-1"]
    assert outcomes(folder) == ["cancelled", "ok"]


class Stop(BaseException):
    """What no handler of the runtime takes."""


@pytest.mark.parametrize("error", [OSError, Stop])
def test_a_tool_that_raises_ends_what_it_held(gate: Gate, folder: Path, error: type[BaseException]) -> None:
    @tool
    def scarce(n: int) -> str:
        """Costs a lot."""
        raise error(n)

    with pytest.raises(error):
        run(guard(gate).middleware(), [scarce], [ask("scarce", n=1), DONE])
    assert gate.ledger is not None
    assert gate.ledger.holds() == []
    gate.close()
    assert outcomes(folder) == ["error"]


def test_calls_that_run_in_threads_have_a_decision_each(gate: Gate, folder: Path) -> None:
    together = threading.Barrier(4, timeout=20)

    @tool
    def meet(n: int) -> str:
        """Waits for the others."""
        together.wait()
        return str(n)

    made = guard(gate)
    made.install()
    try:
        calls = tuple(Call("meet", {"n": n}, f"call-{n}") for n in range(4))
        run(made.middleware(), [meet], [Turn(calls), DONE])
    finally:
        made.uninstall()
    gate.close()
    assert sorted(entry["asserted"]["call"] for entry in tools_of(folder)) == [f"call-{n}" for n in range(4)]


# --- graphs without agents ----------------------------------------------------------------------------------------


def graph(node: ToolNode, turns: list[Turn], inputs: list[str]) -> Any:
    """A model and a tool node, as bare LangGraph has them."""
    model = Scripted.of(turns, inputs)

    def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    def more(state: MessagesState) -> str:
        last = state["messages"][-1]
        return "tools" if isinstance(last, AIMessage) and last.tool_calls else END

    made = StateGraph(MessagesState).add_node("think", think).add_node("tools", node)
    made.add_edge(START, "think").add_conditional_edges("think", more, ["tools", END]).add_edge("tools", "think")
    return made.compile()


@pytest.mark.parametrize("handled", [True, False, "something went wrong"])
def test_a_tool_node_that_handles_errors(gate: Gate, folder: Path, handled: Any) -> None:
    @tool
    def look(q: str) -> str:
        """Looks."""
        if q == "bad":
            raise OSError(q)
        return f"found {q}"

    inputs: list[str] = []
    node = guard(gate).tool_node([look], handle_tool_errors=handled)
    turns = [ask("look", q="the secret"), ask("look", "call-2", q="x"), ask("look", "call-3", q="bad"), DONE]
    made = graph(node, turns, inputs)
    if handled:
        made.invoke({"messages": [("user", "go")]})
    else:
        with pytest.raises(OSError, match="bad"):
            made.invoke({"messages": [("user", "go")]})
    assert "Denied (policy.forbidden): Secrets are not for agents." in inputs[1]
    assert "found x" in inputs[2]
    gate.close()
    assert outcomes(folder) == ["ok", "error"]


def test_a_tool_node_in_an_event_loop(gate: Gate) -> None:
    @tool
    def look(q: str) -> str:
        """Looks."""
        return f"found {q}"

    inputs: list[str] = []
    made = graph(
        guard(gate).tool_node([look]), [ask("look", q="the secret"), ask("look", "call-2", q="x"), DONE], inputs
    )
    asyncio.run(made.ainvoke({"messages": [("user", "go")]}))
    assert "Denied (policy.forbidden)" in inputs[1]
    assert "found x" in inputs[2]


def test_a_halt_inside_a_tool_ends_the_outer_run(gate: Gate) -> None:
    @tool
    def wipe(path: str) -> str:
        """Wipes."""
        return path

    made = guard(gate, halt=True)
    inner = create_agent(Scripted.of([ask("wipe", path="/"), DONE], []), tools=[wipe], middleware=made.middleware())

    @tool
    def helper(task: str) -> str:
        """Helps."""
        return str(inner.invoke({"messages": [("user", task)]})["messages"][-1].content)

    inputs: list[str] = []
    node = made.tool_node([helper], handle_tool_errors=True)
    agent = graph(node, [ask("helper", task="x"), DONE], inputs)
    if "GraphBubbleUp" in inspect.getsource(ToolNode._run_one):
        with pytest.raises(Halted, match="Nobody wipes anything"):
            agent.invoke({"messages": [("user", "go")]})
        assert len(inputs) == 1
    else:
        # Older tool nodes that handle errors handle whatever a hook raises; the tool has not run either way.
        agent.invoke({"messages": [("user", "go")]})
        assert "Nobody wipes anything" in inputs[1]


# --- below all hooks ----------------------------------------------------------------------------------------------


def test_a_direct_call_raises_and_a_call_with_an_id_reads_the_refusal(gate: Gate) -> None:
    @tool
    def wipe(path: str) -> str:
        """Wipes."""
        return path

    made = guard(gate)
    made.install()
    try:
        with pytest.raises(Denied, match="Nobody wipes anything"):
            wipe.invoke({"path": "/"})
        with pytest.raises(Denied, match="Nobody wipes anything"):
            asyncio.run(wipe.ainvoke({"path": "/"}))
        said = wipe.invoke({"type": "tool_call", "name": "wipe", "args": {"path": "/"}, "id": "call-1"})
    finally:
        made.uninstall()
    assert isinstance(said, ToolMessage)
    assert (said.status, said.tool_call_id) == ("error", "call-1")
    assert wipe.invoke({"path": "/"}) == "/"


@pytest.mark.parametrize("entry", ["sync", "async"])
def test_a_call_inside_a_call_is_decided_also_if_it_looks_the_same(gate: Gate, entry: str) -> None:
    ran: list[str] = []

    @tool
    def look(q: str) -> str:
        """Looks something up."""
        ran.append(q)
        with gate.run(tools=[]):
            return str(look.invoke({"q": q}))

    guarded = guard(gate)
    guarded.install()
    try:
        with pytest.raises(Denied):
            look.invoke({"q": "a"}) if entry == "sync" else asyncio.run(look.ainvoke({"q": "a"}))
    finally:
        guarded.uninstall()
    assert ran == ["a"]


def test_one_guard_is_installed_at_a_time(gate: Gate) -> None:
    one, other = guard(gate), guard(gate)
    one.install()
    try:
        one.install()
        with pytest.raises(RuntimeError, match="another guard"):
            other.install()
        other.uninstall()
        assert Guard._installed is one
    finally:
        one.uninstall()


class Interferes(BaseCallbackHandler):
    """A handler that changes what it is told of."""

    def on_tool_start(self, *_: Any, inputs: Any = None, **__: Any) -> None:
        """Changes it, and what is inside it."""
        inputs["tags"].append("the secret")
        inputs["q"] = "the secret"


def test_a_callback_that_changes_its_inputs_changes_no_call(gate: Gate) -> None:
    got: list[Any] = []

    @tool
    def look(q: str, tags: list[str]) -> str:
        """Looks."""
        got.append((q, tags))
        return q

    made = guard(gate)
    made.install()
    try:
        look.invoke({"q": "weather", "tags": []}, {"callbacks": [Interferes()]})
        asyncio.run(look.ainvoke({"q": "weather", "tags": []}, {"callbacks": [Interferes()]}))
    finally:
        made.uninstall()
    assert got == [("weather", []), ("weather", [])]


# --- models -------------------------------------------------------------------------------------------------------


def used(gate: Gate) -> tuple[int, int]:
    """Tokens used and held."""
    assert gate.ledger is not None
    cell = gate.ledger.usage("acme")["tokens", "1d"]
    return cell.used, cell.held


@pytest.fixture(name="models")
def models_fixture(gate: Gate) -> Iterator[Gate]:
    """A gate whose models are gated below all hooks."""
    made = guard(gate, models=True)
    made.install()
    yield gate
    made.uninstall()


def say(*texts: str) -> Scripted:
    """A model that says these, each for 100 and 10 tokens."""
    return Scripted.of([Turn(text=text) for text in texts], [])


def test_models_that_are_called_directly_are_paid_for(models: Gate, folder: Path) -> None:
    say("one").invoke("hello")
    assert used(models) == (110, 0)
    asyncio.run(say("one").ainvoke("hello"))
    assert used(models) == (220, 0)
    assert "".join(str(piece.content) for piece in say("one two three").stream("hello")) == "one two three"
    assert used(models) == (330, 0)

    async def read() -> list[Any]:
        return [piece async for piece in say("one two three").astream("hello")]

    assert len(asyncio.run(read())) >= 4
    assert used(models) == (440, 0)
    say("one", "two").batch(["a", "b"])
    assert used(models) == (660, 0)
    with pytest.raises(Denied, match="budget"):
        Scripted.of([], [], max_tokens=1_000_000).invoke("hello")
    models.close()
    assert len(outcomes(folder)) == 6


class Whole(Scripted):
    """A model that cannot stream."""

    _stream = Scripted.__mro__[1]._stream  # type: ignore[misc, attr-defined]
    _astream = Scripted.__mro__[1]._astream  # type: ignore[misc, attr-defined]


def test_a_model_that_cannot_stream_is_paid_for_once(models: Gate) -> None:
    assert [piece.content for piece in Whole.of([Turn(text="one two")], []).stream("hello")] == ["one two"]
    assert used(models) == (110, 0)


def test_a_stream_of_a_model_that_is_left_pays_for_what_was_seen(models: Gate) -> None:
    stream = say("one two three").stream("hello")
    next(stream)
    assert used(models)[1] > 0
    del stream
    gc.collect()
    spent, held = used(models)
    assert held == 0
    assert 0 < spent < 60


def test_a_stream_of_an_agent_that_is_left(gate: Gate, folder: Path) -> None:
    agent = create_agent(say("one two three"), middleware=guard(gate, models=True).middleware())
    stream = agent.stream({"messages": [("user", "go")]}, stream_mode="messages")
    next(stream)
    stream.close()
    gc.collect()
    assert used(gate)[1] == 0
    assert used(gate)[0] > 0
    gate.close()
    assert len(outcomes(folder)) == 1


def test_an_agent_streams_and_is_paid_for_once(models: Gate, folder: Path) -> None:
    agent = create_agent(say("one two three"), middleware=guard(models, models=True).middleware())
    pieces = [str(piece.content) for piece, _ in agent.stream({"messages": [("user", "go")]}, stream_mode="messages")]
    assert "".join(pieces) == "one two three"
    assert used(models) == (110, 0)
    models.close()
    assert len(entries(folder, "decision")) == 1


@pytest.mark.filterwarnings("ignore:.*is in beta")
def test_a_model_that_streams_events_is_paid_for(models: Gate, folder: Path) -> None:
    if not hasattr(BaseChatModel, "stream_events"):
        pytest.skip("this release has no third version of events")
    stream = say("one two three").stream_events("hello", version="v3")
    assert "".join(stream.text) == "one two three"
    assert used(models) == (110, 0)

    async def read() -> str:
        stream = await say("one two three").astream_events("hello", version="v3")
        return str(await stream.text)

    assert asyncio.run(read()) == "one two three"
    assert used(models) == (220, 0)

    async def second() -> list[Any]:
        return [event async for event in say("one two three").astream_events("hello", version="v2")]

    assert asyncio.run(second())
    assert used(models) == (330, 0)
    left = say("one two three").stream_events("hello", version="v3")
    next(iter(left))
    del left
    gc.collect()
    assert used(models)[1] == 0
    assert 330 < used(models)[0] < 390
    with pytest.raises(Denied, match="budget"):
        Scripted.of([], [], max_tokens=1_000_000).stream_events("hello", version="v3")
    models.close()
    assert len(outcomes(folder)) == 4


class Again(AgentMiddleware):
    """Middleware that calls the model twice."""

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        """Takes the second answer."""
        handler(request)
        return handler(request)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("installed", [True, False])
def test_a_model_that_is_asked_twice_is_paid_for_twice(gate: Gate, last: bool, installed: bool) -> None:  # noqa: FBT001 - parameters
    made = guard(gate, models=True)
    middleware = [Again(), *made.middleware()] if last else [*made.middleware(), Again()]
    if installed:
        made.install()
    try:
        agent = create_agent(say("one", "two"), middleware=middleware)
        assert agent.invoke({"messages": [("user", "go")]})["messages"][-1].content == "two"
    finally:
        made.uninstall()
    assert used(gate) == (220, 0)


def test_cached_tokens_and_the_largest_answer_come_from_the_model(gate: Gate, folder: Path) -> None:
    class Cached(Scripted):
        def _generate(self, *args: Any, **named: Any) -> Any:
            made = super()._generate(*args, **named)
            made.generations[0].message.usage_metadata["input_token_details"] = {"cache_read": 60}
            return made

    class Settings(AgentMiddleware):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(model_settings={"max_tokens": 77}))

    model = Cached.of([Turn(text="one")], [])
    agent = create_agent(model, middleware=[Settings(), *guard(gate, models=True).middleware()], name="writer")
    agent.invoke({"messages": [("user", "go")]})
    gate.close()
    (decision,) = entries(folder, "decision")
    (outcome,) = entries(folder, "outcome")
    assert decision["model"]["max_tokens"] == 77
    assert outcome["usage"]["cached"] == 60


def test_a_failed_model_call_is_charged_and_ends(gate: Gate, folder: Path) -> None:
    class Fails(Scripted):
        def _generate(self, *_: Any, **__: Any) -> Any:
            message = "down"
            raise OSError(message)

    agent = create_agent(Fails.of([], []), middleware=guard(gate, models=True).middleware())
    with pytest.raises(OSError, match="down"):
        agent.invoke({"messages": [("user", "go")]})
    assert used(gate)[1] == 0
    gate.close()
    assert len(outcomes(folder)) == 1


def test_an_answer_that_is_no_structure_is_still_settled(gate: Gate) -> None:
    from langchain.agents.structured_output import StructuredOutputError, ToolStrategy  # noqa: PLC0415 - only here

    class Answer(BaseModel):
        """The answer."""

        n: int

    strategy = ToolStrategy(Answer, handle_errors=False)
    model = Scripted.of([ask("Answer", n="many")], [])
    agent = create_agent(model, middleware=guard(gate, models=True).middleware(), response_format=strategy)
    with pytest.raises(StructuredOutputError):
        agent.invoke({"messages": [("user", "go")]})
    assert used(gate) == (110, 0)


def test_an_async_tool_that_is_denied_does_not_block_the_loop(gate: Gate) -> None:
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.001)

    async def go() -> None:
        ticking = asyncio.create_task(tick())
        turns = [ask("look", f"call-{n}", q="the secret") for n in range(5)]
        agent = create_agent(Scripted.of([*turns, DONE], []), tools=[look], middleware=guard(gate).middleware())
        await agent.ainvoke({"messages": [("user", "go")]})
        ticking.cancel()

    @tool
    async def look(q: str) -> str:
        """Looks."""
        return q

    asyncio.run(go())
    assert len(ticks) > 5
