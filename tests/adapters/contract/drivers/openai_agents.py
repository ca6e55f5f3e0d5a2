"""The OpenAI Agents SDK for the contract suite."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, ClassVar

from agents import (
    Agent,
    Model,
    ModelResponse,
    ModelSettings,
    RunConfig,
    RunHooks,
    Runner,
    Usage,
    function_tool,
)
from agents.tool_context import ToolContext
from driver import Call, Plan, Ran, Sub, Turn
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseUsage,
)
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from tollkeeper import Gate
from tollkeeper.adapters import openai_agents


def _text(arguments: dict[str, Any]) -> str:
    """As a model writes arguments: what a script gives as `raw` as it is, whatever it is."""
    return str(arguments["raw"]) if "raw" in arguments else json.dumps(arguments)


class Scripted(Model):
    """A model that answers from a script, reports usage, and keeps what it was given."""

    def __init__(self, turns: Sequence[Turn], inputs: list[str], name: str = "scripted") -> None:
        self.model = name
        self.tools: list[list[str]] = []
        self._turns, self._inputs = list(turns), inputs

    def _next(self, input: Any, tools: list[Any]) -> Turn:  # noqa: A002 - the SDK's name
        self.tools.append([tool.name for tool in tools])
        items = [input] if isinstance(input, str) else input
        self._inputs.append("\n".join(str(item) for item in items))
        return self._turns.pop(0) if self._turns else Turn(text="nothing more")

    @staticmethod
    def output(turn: Turn) -> list[Any]:
        """A turn as items of the SDK."""
        found: list[Any] = [
            ResponseFunctionToolCall(
                arguments=_text(call.arguments),
                call_id=call.id,
                name=call.name,
                type="function_call",
            )
            for call in turn.calls
        ]
        if turn.text:
            text = ResponseOutputText(annotations=[], text=turn.text, type="output_text", logprobs=[])
            found.append(
                ResponseOutputMessage(id="m", content=[text], role="assistant", status="completed", type="message")
            )
        return found

    async def get_response(  # type: ignore[override]
        self,
        system_instructions: Any,
        input: Any,  # noqa: A002 - as above
        model_settings: Any,
        tools: list[Any],
        *_: Any,
        **__: Any,
    ) -> ModelResponse:
        """A whole answer."""
        del system_instructions, model_settings
        turn = self._next(input, tools)
        usage = Usage(requests=1, input_tokens=turn.usage[0], output_tokens=turn.usage[1], total_tokens=sum(turn.usage))
        return ModelResponse(output=self.output(turn), usage=usage, response_id=None)

    async def stream_response(  # type: ignore[override]
        self,
        system_instructions: Any,
        input: Any,  # noqa: A002 - as above
        model_settings: Any,
        tools: list[Any],
        *_: Any,
        **__: Any,
    ) -> AsyncIterator[Any]:
        """The same in pieces."""
        del system_instructions, model_settings
        turn = self._next(input, tools)
        for number, word in enumerate(turn.text.split()):
            await asyncio.sleep(0)
            yield ResponseTextDeltaEvent(
                content_index=0,
                delta=f" {word}" if number else word,
                item_id="m",
                logprobs=[],
                output_index=0,
                sequence_number=number,
                type="response.output_text.delta",
            )
            await asyncio.sleep(0.01)
        usage = ResponseUsage.model_construct(
            input_tokens=turn.usage[0],
            output_tokens=turn.usage[1],
            total_tokens=sum(turn.usage),
            input_tokens_details=InputTokensDetails.model_construct(cached_tokens=0, cache_write_tokens=0),
            output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        )
        response = Response.model_construct(
            id="r", created_at=0.0, model=self.model, object="response", output=self.output(turn), usage=usage, tools=[]
        )
        yield ResponseCompletedEvent.model_construct(response=response, sequence_number=99, type="response.completed")


def _asking(sub: Sub, call: Call) -> Call:
    """The only argument of an agent used as a tool is `input` here."""
    return Call(call.name, {"input": call.arguments["task"]}, call.id) if call.name == sub.name else call


class Tamper(RunHooks[Any]):
    """A hook that changes the arguments of a call where the SDK takes them from."""

    def __init__(self, change: Callable[[dict[str, Any]], None]) -> None:
        self._change = change

    async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:
        """Changes them, and goes on."""
        del agent, tool
        call = context.tool_call
        arguments = json.loads(call.arguments)
        self._change(arguments)
        call.arguments = context.tool_arguments = json.dumps(arguments)


class Driver:
    """See `driver.Driver`."""

    host = "openai_agents"
    entries = ("async", "sync", "stream")
    gaps: ClassVar[dict[str, str]] = {
        "direct": "whoever has a FunctionTool can call its on_invoke_tool",
    }
    uncovered: ClassVar[dict[str, str]] = {}
    session_known = True

    def guard(self, gate: Gate, **options: Any) -> openai_agents.Guard:
        """The guard."""
        return openai_agents.Guard(gate, **options)

    def run(self, guard: openai_agents.Guard, plan: Plan) -> Ran:
        """One run, in an event loop of its own."""
        ran = Ran()
        try:
            if plan.entry == "sync":
                ran.output = self._sync(guard, plan, ran)
            else:
                ran.output = asyncio.run(self._run(guard, plan, ran))
        except BaseException as error:  # noqa: BLE001 - the suite looks at whatever reaches the caller
            ran.error, ran.stopped = error, isinstance(error, openai_agents.Stopped)
        return ran

    def direct(self, guard: openai_agents.Guard, tool: Callable[..., Any], arguments: dict[str, Any]) -> str:
        """`FunctionTool.on_invoke_tool`."""
        del guard
        made = function_tool(tool)
        text = json.dumps(arguments)
        context: Any = ToolContext(context=None, tool_name=made.name, tool_call_id="direct", tool_arguments=text)
        return str(asyncio.run(made.on_invoke_tool(context, text)))

    def agent(self, guard: openai_agents.Guard, plan: Plan, inputs: list[str]) -> Agent[Any]:
        """The agent of a plan, behind the guard."""
        tools: list[Any] = [function_tool(tool) for tool in plan.tools]
        turns, handoffs = list(plan.turns), []
        if plan.sub is not None:
            tools.append(self._other(guard, plan.sub).as_tool(plan.sub.name, "Asks another agent."))
            turns = [Turn(tuple(_asking(plan.sub, call) for call in turn.calls), turn.text) for turn in turns]
        if plan.handoff is not None:
            handoffs.append(self._other(guard, plan.handoff))
            turns = [Turn((Call(f"transfer_to_{plan.handoff.name}", {}, "handoff-1"),))]
        made = Agent(
            name=plan.agent,
            tools=tools,
            handoffs=handoffs,
            model=Scripted(turns, inputs, plan.model),
            model_settings=ModelSettings(max_tokens=plan.max_tokens),
        )
        guarded: Agent[Any] = guard.agent(made)
        return guarded

    def _other(self, guard: openai_agents.Guard, sub: Sub) -> Any:
        made = Agent(name=sub.name, tools=[function_tool(tool) for tool in sub.tools], model=Scripted(sub.turns, []))
        return guard.agent(made) if sub.guarded else made

    @staticmethod
    def _options(guard: openai_agents.Guard, plan: Plan) -> dict[str, Any]:
        config = guard.run_config(RunConfig(tracing_disabled=True, group_id=plan.session))
        return {"run_config": config, "hooks": None if plan.tamper is None else Tamper(plan.tamper)}

    def _sync(self, guard: openai_agents.Guard, plan: Plan, ran: Ran) -> str:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            done = Runner.run_sync(self.agent(guard, plan, ran.inputs), "go", **self._options(guard, plan))
            return str(done.final_output)
        finally:
            loop.close()
            asyncio.set_event_loop(None)

    async def _run(self, guard: openai_agents.Guard, plan: Plan, ran: Ran) -> str | None:
        agent, options = self.agent(guard, plan, ran.inputs), self._options(guard, plan)
        if plan.entry == "stream":
            stream = Runner.run_streamed(agent, "go", **options)
            async for event in stream.stream_events():
                if plan.abandon and event.type == "raw_response_event":
                    return None
            return str(stream.final_output)
        running = Runner.run(agent, "go", **options)
        if plan.cancel_after is not None:
            return str((await asyncio.wait_for(running, plan.cancel_after)).final_output)
        return str((await running).final_output)
