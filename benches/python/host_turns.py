"""Turns of agents in their own frameworks, for `hosts.py`: bare, with the framework's hooks doing nothing, guarded.

A turn is one run of an agent: a model that answers from a script asks for one tool, or for nine at once, reads what
they return, and says that it is done. Nothing here measures; each host only makes its variants, and the tool counts.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

Turn = Callable[[int], Awaitable[Any]]
ARGUMENTS = {"to": "ann@example.com", "text": "hello"}
RESOURCE = 'Mcp::"crm"'
PROMPT_TOKENS, COMPLETION_TOKENS = 120, 30


class Tool:
    """A tool that does nothing, and how often it ran."""

    def __init__(self) -> None:
        self.ran = 0

    @property
    def function(self) -> Callable[[str, str], Awaitable[str]]:
        """As an author would write it; no host takes a thread for one that is a coroutine."""

        async def send_mail(to: str, text: str) -> str:
            """Sends a mail."""
            self.ran += 1
            return f"sent {len(text)} characters to {to}"

        return send_mail


@dataclass(frozen=True)
class Variants:
    """One host: its ways to take a turn, and which of them the gate decides."""

    host: str
    version: str
    tool: Tool
    turns: dict[str, Turn]
    tools_decided: frozenset[str] = frozenset({"guarded", "tools only", "installed"})
    models_decided: frozenset[str] = frozenset({"guarded", "installed"})
    around: Callable[[str], None] = lambda _: None
    """Told the variant whose turns are next, outside of what is timed."""


def maf(gate: Any) -> Variants:
    """Microsoft Agent Framework."""
    import agent_framework as af  # noqa: PLC0415 - a host may be missing

    from tollkeeper.adapters import maf as adapter  # noqa: PLC0415

    tool = Tool()

    class Scripted(af.FunctionInvocationLayer, af.ChatMiddlewareLayer, af.BaseChatClient):  # type: ignore[misc]
        model = "scripted"
        calls = 1

        def _inner_get_response(self, *, messages: Any, **_: Any) -> Any:
            return self._answer(any(one.type == "function_result" for message in messages for one in message.contents))

        async def _answer(self, done: bool) -> Any:  # noqa: FBT001 - a closure would be slower
            contents = [af.Content.from_text("done")] if done else []
            if not done:
                contents = [
                    af.Content.from_function_call(f"call-{n}", "send_mail", arguments=dict(ARGUMENTS))
                    for n in range(self.calls)
                ]
            usage = {"input_token_count": PROMPT_TOKENS, "output_token_count": COMPLETION_TOKENS}
            return af.ChatResponse(messages=[af.Message("assistant", contents)], usage_details=usage)

    class NoTool(af.FunctionMiddleware):  # type: ignore[misc]
        async def process(self, context: Any, call_next: Any) -> None:
            del context
            await call_next()

    class NoModel(af.ChatMiddleware):  # type: ignore[misc]
        async def process(self, context: Any, call_next: Any) -> None:
            del context
            await call_next()

    guard = adapter.Guard(gate, resource=RESOURCE, max_output_tokens=100)
    tools = adapter.Guard(gate, resource=RESOURCE, models=False)
    middleware: dict[str, list[Any]] = {
        "bare": [],
        "no-op hooks": [NoTool(), NoModel()],
        "tools only": tools.middleware(),
        "guarded": guard.middleware(),
        "installed": guard.middleware(),
    }
    hooks = agent_hooks_middleware()
    if hooks is not None:
        middleware["agent-hooks"] = [hooks]

    def turn(name: str) -> Turn:
        client = Scripted()
        agent = af.Agent(client, name="researcher", tools=[tool.function], middleware=middleware[name])

        async def run(calls: int) -> Any:
            client.calls = calls
            return await agent.run("Mail Ann.")

        return run

    def around(name: str) -> None:
        guard.install() if name == "installed" else guard.uninstall()

    return Variants("MAF", guard.version, tool, {name: turn(name) for name in middleware}, around=around)


def agent_hooks_middleware() -> Any:
    """That framework's own bridge to agent-hooks with one interceptor that allows; `None` where it is not installed."""
    try:
        from agent_framework import create_agent_hooks_middleware  # noqa: PLC0415
        from agent_hooks import Verdict  # noqa: PLC0415 - a peer may be missing
    except ImportError:
        return None

    class Allows:
        def intercept(self, _: Any) -> Any:
            return Verdict.allow()

    return create_agent_hooks_middleware([Allows()])


def langchain_model() -> Any:
    """A chat model of LangChain that answers from a script."""
    from langchain_core.language_models import BaseChatModel  # noqa: PLC0415 - a host may be missing
    from langchain_core.messages import AIMessage, ToolMessage  # noqa: PLC0415
    from langchain_core.outputs import ChatGeneration, ChatResult  # noqa: PLC0415

    class Scripted(BaseChatModel):  # type: ignore[misc]
        calls: int = 1

        @property
        def _llm_type(self) -> str:
            return "scripted"

        def bind_tools(self, tools: Any, **_: Any) -> Any:
            del tools
            return self

        def _generate(self, messages: list[Any], *_: Any, **__: Any) -> Any:
            usage = {"input_tokens": PROMPT_TOKENS, "output_tokens": COMPLETION_TOKENS, "total_tokens": 150}
            message = AIMessage("done", usage_metadata=usage)
            if not isinstance(messages[-1], ToolMessage):
                calls = [{"id": f"call-{n}", "name": "send_mail", "args": dict(ARGUMENTS)} for n in range(self.calls)]
                message = AIMessage("", tool_calls=calls, usage_metadata=usage)
            return ChatResult(generations=[ChatGeneration(message=message)])

        async def _agenerate(self, messages: list[Any], *_: Any, **__: Any) -> Any:
            # Without it the framework would take a thread for each answer.
            return self._generate(messages)

    return Scripted()


def langchain(gate: Any) -> Variants:
    """LangChain's agent, which is a LangGraph."""
    from langchain.agents import create_agent  # noqa: PLC0415 - a host may be missing
    from langchain.agents.middleware import AgentMiddleware  # noqa: PLC0415

    from tollkeeper.adapters import langchain as adapter  # noqa: PLC0415

    tool = Tool()

    class NoOp(AgentMiddleware):  # type: ignore[misc]
        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return await handler(request)

        async def awrap_model_call(self, request: Any, handler: Any) -> Any:
            return await handler(request)

    guard = adapter.Guard(gate, resource=RESOURCE, max_output_tokens=100)
    tools = adapter.Guard(gate, resource=RESOURCE, models=False)
    middleware: dict[str, list[Any]] = {
        "bare": [],
        "no-op hooks": [NoOp()],
        "tools only": tools.middleware("researcher"),
        "guarded": guard.middleware("researcher"),
        "installed": guard.middleware("researcher"),
    }

    def turn(name: str) -> Turn:
        model = langchain_model()
        agent = create_agent(model, [tool.function], middleware=middleware[name])

        async def run(calls: int) -> Any:
            model.calls = calls
            asked: Any = {"messages": [("user", "Mail Ann.")]}
            return await agent.ainvoke(asked, {"configurable": {"thread_id": "thread-7"}})

        return run

    def around(name: str) -> None:
        guard.install() if name == "installed" else guard.uninstall()

    return Variants("LangChain", guard.version, tool, {name: turn(name) for name in middleware}, around=around)


def openai_agents(gate: Any) -> Variants:
    """The OpenAI Agents SDK."""
    import agents  # noqa: PLC0415 - a host may be missing
    from openai.types.responses import (  # noqa: PLC0415
        ResponseFunctionToolCall,
        ResponseOutputMessage,
        ResponseOutputText,
    )

    from tollkeeper.adapters import openai_agents as adapter  # noqa: PLC0415

    agents.set_tracing_disabled(disabled=True)
    tool = Tool()
    arguments = '{"to": "ann@example.com", "text": "hello"}'

    class Scripted(agents.Model):  # type: ignore[misc]
        calls = 1

        async def get_response(self, *given: Any, **named: Any) -> Any:
            messages = named["input"] if "input" in named else given[1]
            text = ResponseOutputText(text="done", type="output_text", annotations=[])
            output: list[Any] = [
                ResponseOutputMessage(id="m", type="message", role="assistant", status="completed", content=[text])
            ]
            if not any(one.get("type") == "function_call_output" for one in messages if isinstance(one, dict)):
                output = [
                    ResponseFunctionToolCall(
                        type="function_call", call_id=f"call-{n}", name="send_mail", arguments=arguments
                    )
                    for n in range(self.calls)
                ]
            total = PROMPT_TOKENS + COMPLETION_TOKENS
            usage = agents.Usage(1, PROMPT_TOKENS, output_tokens=COMPLETION_TOKENS, total_tokens=total)
            return agents.ModelResponse(output=output, usage=usage, response_id=None)

        def stream_response(self, *_: Any, **__: Any) -> Any:
            message = "the bench does not stream"
            raise RuntimeError(message)

    def allows(_: Any) -> Any:
        return agents.ToolGuardrailFunctionOutput.allow()

    guard = adapter.Guard(gate, resource=RESOURCE, max_output_tokens=100)
    tools = adapter.Guard(gate, resource=RESOURCE, models=False)
    no_op = agents.ToolInputGuardrail(allows, name="no-op")

    def turn(name: str) -> Turn:
        model = Scripted()
        made = agents.function_tool(tool.function)
        if name == "no-op hooks":
            made.tool_input_guardrails = [no_op]
        agent = agents.Agent(name="researcher", model=model, tools=[made])
        hooks = agents.RunHooks() if name == "no-op hooks" else None
        config = agents.RunConfig(tracing_disabled=True)
        if name in ("guarded", "tools only", "installed"):
            used = tools if name == "tools only" else guard
            agent, config = used.agent(agent), used.run_config(config)

        async def run(calls: int) -> Any:
            model.calls = calls
            return await agents.Runner.run(agent, "Mail Ann.", hooks=hooks, run_config=config)

        return run

    def around(name: str) -> None:
        guard.install() if name == "installed" else guard.uninstall()

    names = ("bare", "no-op hooks", "tools only", "guarded", "installed")
    return Variants("OpenAI Agents", guard.version, tool, {name: turn(name) for name in names}, around=around)


HOSTS = {"maf": maf, "langchain": langchain, "openai_agents": openai_agents}
