"""LangChain and LangGraph for the contract suite."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, ClassVar

from driver import Plan, Ran, Sub, Turn
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool as make_tool
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import PrivateAttr

from tollkeeper import Gate
from tollkeeper.adapters import langchain


class Scripted(BaseChatModel):
    """A chat model that answers from a script and keeps what it was given."""

    model_name: str = "scripted"
    max_tokens: int = 50
    turns: list[Turn]
    _inputs: list[str] = PrivateAttr(default_factory=list)

    @classmethod
    def of(cls, turns: Sequence[Turn], inputs: list[str], **fields: Any) -> "Scripted":
        """One that notes what it reads in `inputs`."""
        made = cls(turns=list(turns), **fields)
        made._inputs = inputs
        return made

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **_: Any) -> "Scripted":  # type: ignore[override]
        """The script knows its tools."""
        del tools
        return self

    def _turn(self, messages: list[BaseMessage]) -> Turn:
        self._inputs.append("\n".join(str(message.content) for message in messages))
        return self.turns.pop(0) if self.turns else Turn(text="nothing more")

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        turn = self._turn(messages)
        message = AIMessage(turn.text, tool_calls=_calls(turn), usage_metadata=_usage(turn))
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return self._generate(messages)

    def _stream(self, messages: list[BaseMessage], *_: Any, **named: Any) -> Iterator[ChatGenerationChunk]:
        manager = named.get("run_manager")
        for piece in _pieces(self._turn(messages)):
            if manager is not None:
                manager.on_llm_new_token(str(piece.content), chunk=ChatGenerationChunk(message=piece))
            yield ChatGenerationChunk(message=piece)

    async def _astream(self, messages: list[BaseMessage], *_: Any, **named: Any) -> AsyncIterator[ChatGenerationChunk]:
        manager = named.get("run_manager")
        for piece in _pieces(self._turn(messages)):
            if manager is not None:
                await manager.on_llm_new_token(str(piece.content), chunk=ChatGenerationChunk(message=piece))
            yield ChatGenerationChunk(message=piece)
            await asyncio.sleep(0)


def _calls(turn: Turn) -> list[Any]:
    return [{"name": call.name, "args": dict(call.arguments), "id": call.id} for call in turn.calls]


def _usage(turn: Turn) -> Any:
    prompt, completion = turn.usage
    return {"input_tokens": prompt, "output_tokens": completion, "total_tokens": prompt + completion}


def _pieces(turn: Turn) -> Iterator[AIMessageChunk]:
    if turn.calls:
        yield AIMessageChunk("", tool_calls=_calls(turn))
    for number, word in enumerate(turn.text.split()):
        yield AIMessageChunk(f" {word}" if number else word)
    yield AIMessageChunk("", usage_metadata=_usage(turn))


class Tamper(AgentMiddleware):
    """Middleware further in that changes arguments."""

    def __init__(self, change: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._change = change

    def _changed(self, request: Any) -> Any:
        arguments = dict(request.tool_call["args"])
        self._change(arguments)
        return request.override(tool_call={**request.tool_call, "args": arguments})

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Changes them, and goes on."""
        return handler(self._changed(request))

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Changes them, and goes on."""
        return await handler(self._changed(request))


class Driver:
    """See `driver.Driver`."""

    host = "langchain"
    entries = ("async", "sync", "stream")
    gaps: ClassVar[dict[str, str]] = {
        "direct": "BaseTool.invoke passes no middleware",
        "mutation": "middleware further in may change arguments; with the guard last there is none",
        "sub-agent without hooks": "an agent inside a tool has middleware of its own",
        "models without hooks": "an agent has middleware of its own",
        "handoff without hooks": "each agent of a graph has middleware of its own",
    }
    uncovered: ClassVar[dict[str, str]] = {}
    session_known = True

    def guard(self, gate: Gate, **options: Any) -> langchain.Guard:
        """The guard."""
        return langchain.Guard(gate, **options)

    def run(self, guard: langchain.Guard, plan: Plan) -> Ran:
        """One run, as the plan enters it."""
        ran = Ran()
        try:
            ran.output = self._run(guard, plan, ran)
        except BaseException as error:  # noqa: BLE001 - the suite looks at whatever reaches the caller
            ran.error, ran.stopped = error, isinstance(error, langchain.Halted)
        return ran

    def direct(self, guard: langchain.Guard, tool: Callable[..., Any], arguments: dict[str, Any]) -> str:
        """`BaseTool.invoke`."""
        del guard
        return str(make_tool(tool).invoke(arguments))

    def _agent(self, guard: langchain.Guard, plan: Plan, inputs: list[str]) -> Any:
        tools: list[Any] = [*plan.tools]
        if plan.sub is not None:
            tools.append(self._as_tool(guard, plan.sub))
        # Releases before 1.1 tell a hook no name.
        middleware = guard.middleware(None if _tells_names() else plan.agent)
        if plan.tamper is not None:
            middleware.append(Tamper(plan.tamper))
        model = Scripted.of(plan.turns, inputs, model_name=plan.model, max_tokens=plan.max_tokens)
        return create_agent(model, tools=tools, middleware=middleware, name=plan.agent)

    @staticmethod
    def _other(guard: langchain.Guard, sub: Sub) -> Any:
        middleware = guard.middleware() if sub.guarded else []
        return create_agent(Scripted.of(sub.turns, []), tools=[*sub.tools], middleware=middleware, name=sub.name)

    def _as_tool(self, guard: langchain.Guard, sub: Sub) -> Any:
        agent = self._other(guard, sub)

        @make_tool(sub.name)
        async def ask(task: str) -> str:
            """Asks another agent."""
            done = await agent.ainvoke({"messages": [("user", task)]})
            return str(done["messages"][-1].content)

        return ask

    def _run(self, guard: langchain.Guard, plan: Plan, ran: Ran) -> str | None:
        agent: Any = self._agent(guard, plan, ran.inputs)
        if plan.handoff is not None:
            graph = StateGraph(MessagesState)
            graph.add_node("first", agent)
            graph.add_node("second", self._other(guard, plan.handoff))
            graph.add_edge(START, "first").add_edge("first", "second").add_edge("second", END)
            agent = graph.compile()
        asks: dict[str, Any] = {"messages": [("user", "go")]}
        config: Any = {"configurable": {"thread_id": plan.session}}
        if plan.entry == "sync":
            return str(agent.invoke(asks, config)["messages"][-1].content)
        if plan.entry == "stream":
            return asyncio.run(self._stream(agent, asks, config, abandon=plan.abandon))
        running = agent.ainvoke(asks, config)
        return str(asyncio.run(_within(running, plan.cancel_after))["messages"][-1].content)

    @staticmethod
    async def _stream(agent: Any, asks: Any, config: Any, *, abandon: bool) -> str | None:
        said = ""
        async with contextlib.aclosing(agent.astream(asks, config, stream_mode="messages")) as stream:
            async for piece, _ in stream:
                if abandon:
                    return None
                said = str(piece.content) if piece.type == "tool" else said + str(piece.content)
        return said


async def _within(running: Any, seconds: float | None) -> Any:
    return await asyncio.wait_for(running, seconds)


def _tells_names() -> bool:
    from importlib import metadata  # noqa: PLC0415 - only here

    return tuple(map(int, metadata.version("langchain").split(".")[:2])) >= (1, 1)
