"""Microsoft Agent Framework for the contract suite."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, ClassVar

import agent_framework
from agent_framework import (
    Agent,
    AgentSession,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationContext,
    FunctionInvocationLayer,
    FunctionMiddleware,
    FunctionTool,
    Message,
)
from driver import Plan, Ran, Sub, Turn

from tollkeeper import Gate
from tollkeeper.adapters import maf


class Scripted(FunctionInvocationLayer, ChatMiddlewareLayer, BaseChatClient):  # type: ignore[misc, type-arg]
    """A chat client that answers from a script and keeps what it was given."""

    def __init__(self, turns: Sequence[Turn], inputs: list[str]) -> None:
        super().__init__()
        self.model = "scripted"
        self._turns, self._inputs = list(turns), inputs

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **_: Any
    ) -> Any:
        del options
        contents = [content for message in messages for content in message.contents]
        self._inputs.append("\n".join(str(content.text or content.result or "") for content in contents))
        turn = self._turns.pop(0) if self._turns else Turn(text="nothing more")
        return self._build_response_stream(self._stream(turn)) if stream else self._whole(turn)

    async def _whole(self, turn: Turn) -> ChatResponse[Any]:
        return ChatResponse(
            messages=[Message("assistant", self._contents(turn))],
            usage_details={"input_token_count": turn.usage[0], "output_token_count": turn.usage[1]},
        )

    async def _stream(self, turn: Turn) -> AsyncIterator[ChatResponseUpdate]:
        for call in self._contents(Turn(turn.calls)):
            yield ChatResponseUpdate(role="assistant", contents=[call])
        for number, word in enumerate(turn.text.split()):
            text = Content.from_text(f" {word}" if number else word)
            yield ChatResponseUpdate(role="assistant", contents=[text])
        usage = {"input_token_count": turn.usage[0], "output_token_count": turn.usage[1]}
        yield ChatResponseUpdate(role="assistant", contents=[Content.from_usage(usage)])  # type: ignore[arg-type]

    @staticmethod
    def _contents(turn: Turn) -> list[Content]:
        calls = [Content.from_function_call(call.id, call.name, arguments=dict(call.arguments)) for call in turn.calls]
        return [*calls, Content.from_text(turn.text)] if turn.text else calls


class Tamper(FunctionMiddleware):
    """Middleware further in that changes arguments."""

    def __init__(self, change: Callable[[dict[str, Any]], None]) -> None:
        self._change = change

    async def process(self, context: FunctionInvocationContext, call_next: Callable[[], Any]) -> None:
        """Changes them, and goes on."""
        # In place, which is the shortest way to write it.
        self._change(context.arguments)  # type: ignore[arg-type]
        await call_next()


class Driver:
    """See `driver.Driver`."""

    host = "maf"
    entries = ("async", "stream")
    gaps: ClassVar[dict[str, str]] = {
        "direct": "FunctionTool.invoke and FunctionTool.__call__ pass no middleware",
        "mutation": "middleware further in may change arguments",
        "sub-agent without hooks": "an agent used as a tool has middleware of its own",
        "models without hooks": "an agent has middleware of its own",
        "handoff without hooks": "each agent of a workflow has middleware of its own",
    }
    uncovered: ClassVar[dict[str, str]] = {}
    session_known = True

    def guard(self, gate: Gate, **options: Any) -> maf.Guard:
        """The guard."""
        return maf.Guard(gate, **options)

    def run(self, guard: maf.Guard, plan: Plan) -> Ran:
        """One run in an event loop of its own."""
        ran = Ran()
        try:
            ran.output = asyncio.run(self._run(guard, plan, ran))
        except BaseException as error:  # noqa: BLE001 - the suite looks at whatever reaches the caller
            ran.error, ran.stopped = error, isinstance(error, agent_framework.MiddlewareFailure)
        return ran

    def direct(self, guard: maf.Guard, tool: Callable[..., Any], arguments: dict[str, Any]) -> str:
        """`FunctionTool.invoke`."""
        del guard
        made = FunctionTool(name=tool.__name__, description="", func=tool)
        return str(asyncio.run(made.invoke(arguments=arguments))[0].text)

    def _agent(self, guard: maf.Guard, plan: Plan, inputs: list[str]) -> Agent:
        tools: list[Any] = [*plan.tools]
        if plan.sub is not None:
            tools.append(self._other(guard, plan.sub).as_tool(name=plan.sub.name))
        middleware: list[Any] = guard.middleware()
        if plan.tamper is not None:
            middleware.append(Tamper(plan.tamper))
        return Agent(
            Scripted(plan.turns, inputs),
            name=plan.agent,
            tools=tools,
            middleware=middleware,
            default_options={"max_tokens": plan.max_tokens, "model": plan.model},
        )

    @staticmethod
    def _other(guard: maf.Guard, sub: Sub) -> Agent:
        middleware = guard.middleware() if sub.guarded else None
        return Agent(Scripted(sub.turns, []), name=sub.name, tools=[*sub.tools], middleware=middleware)

    async def _run(self, guard: maf.Guard, plan: Plan, ran: Ran) -> str | None:
        agent = self._agent(guard, plan, ran.inputs)
        if plan.handoff is not None:
            other = self._other(guard, plan.handoff)
            builder = agent_framework.WorkflowBuilder(start_executor=agent)
            workflow = builder.add_edge(agent, other).build()
            done = await workflow.run("go")
            return str(done.get_outputs()[-1].text)
        session = AgentSession(session_id=plan.session)
        if plan.entry == "stream":
            stream = agent.run("go", session=session, stream=True)
            async for _ in stream:
                if plan.abandon:
                    return None
            return (await stream.get_final_response()).text
        running = agent.run("go", session=session)
        if plan.cancel_after is not None:
            return (await asyncio.wait_for(running, plan.cancel_after)).text
        return (await running).text
