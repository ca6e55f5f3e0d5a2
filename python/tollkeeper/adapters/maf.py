"""Microsoft Agent Framework: a gate around its function calls and model calls, as middleware.

    guard = maf.Guard(gate, resource='Mcp::"crm"')
    agent = Agent(client, tools=[...], middleware=guard.middleware())
    with gate.run(principal='Agent::"researcher"'):
        await agent.run("...")

A denied call is a function result that the model reads, a denied model call raises `Denied` out of the run. `install`
gates `FunctionTool` itself too: agents without this middleware, direct calls, arguments that other middleware changes.

It refuses to run a call whose decision it could not ask for, and clients that pass no chat middleware. It does not
see tools that the model's provider runs; do not give an agent hosted tools that it may not use.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final

from tollkeeper.adapters._base import Crossing, ModelPassage, Passage, Refusal, described, failure, snapshot
from tollkeeper.adapters._hosts import TABLE
from tollkeeper.errors import ConfigError

HOST: Final = TABLE["maf"]
HOST.check()

import agent_framework  # noqa: E402 - behind what says that it is missing or too old
from agent_framework import (  # noqa: E402 - behind what says that it is missing or too old
    AgentContext,
    AgentMiddleware,
    BaseChatClient,
    ChatContext,
    ChatMiddleware,
    ChatMiddlewareLayer,
    FunctionInvocationContext,
    FunctionMiddleware,
    FunctionTool,
    MiddlewareFailure,
)
from pydantic import BaseModel, ValidationError  # noqa: E402 - behind what says that it is missing or too old

__all__ = ["HOST", "Guard"]


Next = Callable[[], Awaitable[None]]
# The tool whose `invoke` runs in this context, until it calls its function: that call has been decided.
_INVOKED: ContextVar[list[FunctionTool] | None] = ContextVar("tollkeeper_maf_invoked", default=None)
_INSTALLING = threading.Lock()


class Guard:
    """A gate for agents of this framework. One guard serves any number of agents.

    Args:
        gate: The gate.
        options: As in `Crossing`: `resource`, `halt`, `models`, `max_output_tokens`, `timeout`, `approval_timeout`.

    Raises:
        ConfigError: The framework is older than the oldest supported version.
    """

    _installed: Guard | None = None

    def __init__(self, gate: Any, **options: Any) -> None:  # noqa: ANN401 - Crossing has the types
        self.version = HOST.check()
        self.crossing = Crossing(gate, HOST.name, **options)
        self._originals: list[tuple[type, str, Any]] = []

    def middleware(self) -> list[AgentMiddleware | FunctionMiddleware | ChatMiddleware]:
        """What `Agent(middleware=...)` takes: a new set for each agent, since it learns that agent's name.

        Put it first; only what repairs arguments may stand before it.
        """
        named = _Named(models=self.crossing.models)
        found: list[AgentMiddleware | FunctionMiddleware | ChatMiddleware] = [named, _Functions(self.crossing, named)]
        if self.crossing.models:
            found.append(_Models(self.crossing, named))
        return found

    def install(self) -> None:
        """Gates `FunctionTool.invoke`, direct calls of a `FunctionTool`, and chat clients, in the whole process.

        Raises:
            ConfigError: The framework has another shape than the versions this was tested with.
            RuntimeError: Another guard is installed.
        """
        with _INSTALLING:
            if Guard._installed is self:
                return
            if Guard._installed is not None:
                message = "another guard is installed; uninstall it first"
                raise RuntimeError(message)
            for kind, names in CHOKE_POINTS.items():
                for name in names:
                    if not callable(vars(kind).get(name)):
                        message = f"agent-framework-core {self.version}: {kind.__name__} has no `{name}` to gate"
                        raise ConfigError(message, "host.unsupported", f"use a version up to {HOST.newest}")
            self._originals = [(kind, name, vars(kind)[name]) for kind, names in CHOKE_POINTS.items() for name in names]
            wrappers = {
                (FunctionTool, "invoke"): self._invoke,
                (FunctionTool, "__call__"): self._call,
                (ChatMiddlewareLayer, "get_response"): self._get_response,
                (BaseChatClient, "get_response"): self._get_bare_response,
            }
            for kind, name, original in self._originals:
                setattr(kind, name, wrappers[kind, name](original))
            Guard._installed = self

    def uninstall(self) -> None:
        """Puts the framework back as it was."""
        with _INSTALLING:
            if Guard._installed is self:
                for kind, name, original in self._originals:
                    setattr(kind, name, original)
                Guard._installed = None

    def _invoke(self, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        crossing = self.crossing

        @functools.wraps(original)
        async def invoke(tool: FunctionTool, **named: Any) -> Any:  # noqa: ANN401 - as the framework's
            context = named.get("context")
            given = named.get("arguments")
            if given is None and context is not None:
                given = context.arguments
            kept = dict(named)
            if given is None:
                given = {name: kept.pop(name) for name in named if name not in OPTIONS}
            call = named.get("tool_call_id")
            try:
                # Read once, and what was read is what runs: whoever else has it may change it meanwhile.
                kept["arguments"] = snapshot(dict(given) if isinstance(given, Mapping) else given)
                admitted = crossing.admitted(tool.name, kept["arguments"])
                view = kept["arguments"] if admitted else _checked(tool, kept["arguments"])
            except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not let the call through
                passage: Passage | Refusal = failure(f"tool call `{tool.name}`", error)
            else:
                if admitted:
                    return await _inside(tool, original(tool, **kept))
                passage = await _entered(crossing, tool, view, _ids(context, call, None))
            if isinstance(passage, Refusal):
                if crossing.halt:
                    raise MiddlewareFailure(passage.text) from passage.denied()
                if call is None:
                    raise passage.denied()
                return [agent_framework.Content.from_text(passage.text)]
            with passage.taken():
                return await _inside(tool, original(tool, **kept))

        return invoke

    def _call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        crossing = self.crossing

        @functools.wraps(original)
        def call(tool: FunctionTool, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - as the framework's
            invoked = _INVOKED.get()
            if invoked and invoked.pop() is tool:
                return original(tool, *args, **named)
            if args:
                message = f"call `{tool.name}` with arguments by name: a policy needs their names"
                raise TypeError(message)
            try:
                crossing.see(tool.name, tool, tool.parameters)
                passage = crossing.enter(tool.name, named, {})
            except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not let the call through
                passage = failure(f"tool call `{tool.name}`", error)
            if isinstance(passage, Refusal):
                raise passage.denied()
            try:
                result = original(tool, **passage.arguments)
            except BaseException as error:
                passage.over(error)
                raise
            if inspect.isawaitable(result):
                return _awaited(passage, result)
            passage.over()
            return result

        return call

    def _get_response(self, original: Callable[..., Any]) -> Callable[..., Any]:
        models = _Models(self.crossing, _Named(models=True))

        @functools.wraps(original)
        def get_response(client: Any, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - as the framework's
            options = dict(named.get("client_kwargs") or {})
            given = list(options.get("middleware") or ())
            if self.crossing.models and not any(isinstance(one, _Models) for one in [*client.chat_middleware, *given]):
                options["middleware"] = [models, *given]
            return original(client, *args, **{**named, "client_kwargs": options})

        return get_response

    def _get_bare_response(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def get_response(client: Any, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - as the framework's
            if self.crossing.models:
                _refuse_bare(client)
            return original(client, *args, **named)

        return get_response


def _refuse_bare(client: object) -> None:
    """Refuses a client that passes no middleware: nobody would be asked before its model calls."""
    if isinstance(client, ChatMiddlewareLayer):
        return
    message = f"model calls of {type(client).__name__} pass no chat middleware, so none of them can be decided"
    hint = "derive it from ChatMiddlewareLayer too, or make the guard with models=False"
    raise ConfigError(message, "host.unsupported", hint)


OPTIONS: Final = ("arguments", "context", "tool_call_id", "skip_parsing")
# What all ways to a tool and to a model share.
CHOKE_POINTS: Final[dict[type, tuple[str, ...]]] = {
    FunctionTool: ("invoke", "__call__"),
    ChatMiddlewareLayer: ("get_response",),
    BaseChatClient: ("get_response",),
}


def _checked(tool: FunctionTool, given: Any) -> Any:  # noqa: ANN401 - mapping or model
    """What the tool gets of arguments that the framework has not checked and converted yet; it does that once more.

    A schema that is plain JSON converts nothing. Arguments that do not pass are refused by the framework itself.
    """
    model = getattr(tool, "input_model", None)
    if model is None or getattr(tool, "_schema_supplied", False):
        return given
    try:
        fields = given.model_dump(exclude_unset=True) if isinstance(given, BaseModel) else given
        return model.model_validate(snapshot(fields)).model_dump(exclude_unset=True)
    except ValidationError:
        return given


async def _inside(tool: FunctionTool, running: Awaitable[Any]) -> Any:  # noqa: ANN401 - what the tool returns
    token = _INVOKED.set([tool])
    try:
        return await running
    finally:
        _INVOKED.reset(token)


async def _awaited(passage: Passage, running: Awaitable[Any]) -> Any:  # noqa: ANN401 - what the tool returns
    with passage.taken():
        return await running


async def _entered(crossing: Crossing, tool: FunctionTool, arguments: Any, ids: Mapping[str, str]) -> Passage | Refusal:  # noqa: ANN401 - mapping or model
    try:
        crossing.see(tool.name, tool, tool.parameters)
        return await crossing.aenter(tool.name, arguments, ids)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not let the call through
        return failure(f"tool call `{tool.name}`", error)


def _ids(context: Any, call: str | None, agent: str | None) -> dict[str, str]:  # noqa: ANN401 - of a function or a model call
    session = getattr(getattr(context, "session", None), "session_id", None)
    found = {"agent": agent, "session": session, "call": call}
    return {name: value for name, value in found.items() if value}


class _Named(AgentMiddleware):
    """Learns the name of the agent, which function and chat middleware are not told."""

    def __init__(self, *, models: bool) -> None:
        self._models = models
        self._names: set[str] = set()

    @property
    def name(self) -> str | None:
        """The agent's name; `None` before it ran, or if several agents share the middleware."""
        return next(iter(self._names)) if len(self._names) == 1 else None

    async def process(self, context: AgentContext, call_next: Next) -> None:
        """Notes the name, and ends the run of an agent whose model calls would pass nobody."""
        client = getattr(context.agent, "client", None)
        if self._models and client is not None:
            _refuse_bare(client)
        self._names.add(str(getattr(context.agent, "name", None) or ""))
        await call_next()


class _Functions(FunctionMiddleware):
    """One decision for each function call, on a copy of the arguments that then runs."""

    def __init__(self, crossing: Crossing, named: _Named) -> None:
        self._crossing, self._named = crossing, named

    async def process(self, context: FunctionInvocationContext, call_next: Next) -> None:
        """Lets the call on, or makes its result the refusal."""
        ids = _ids(context, str(context.metadata.get("call_id") or ""), self._named.name)
        passage = await _entered(self._crossing, context.function, context.arguments, ids)
        if isinstance(passage, Refusal):
            if self._crossing.halt:
                raise MiddlewareFailure(passage.text) from passage.denied()
            context.result = passage.text
            return
        context.arguments = passage.arguments
        with passage:
            await call_next()


class _Models(ChatMiddleware):
    """One decision and one hold for each model call, settled with the usage that the response reports."""

    def __init__(self, crossing: Crossing, named: _Named) -> None:
        self._crossing, self._named = crossing, named

    async def process(self, context: ChatContext, call_next: Next) -> None:
        """Lets the call on, or raises `Denied` out of the run."""
        passage = await self._entered(context)
        if isinstance(passage, Refusal):
            raise passage.denied()
        if context.stream:
            self._follow(context, passage)
        try:
            await call_next()
        except BaseException as error:
            passage.over(error)
            raise
        if not context.stream:
            self._settle(passage, context.result)

    async def _entered(self, context: ChatContext) -> ModelPassage | Refusal:
        try:
            options: Mapping[str, Any] = context.options or {}
            client = context.client
            model = options.get("model") or options.get("model_id") or getattr(client, "model", None)
            model = model or getattr(client, "model_id", None) or "unknown"
            most = options.get("max_tokens")
            ids = _ids(context, None, self._named.name)
            return await self._crossing.amodel(str(model), _texts(context, options), most, ids)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not let the call through
            return failure("a model call", error)

    def _follow(self, context: ChatContext, passage: ModelPassage) -> None:
        """Settles a stream at its end; one that is left is settled when it is collected."""

        def update(item: Any) -> Any:  # noqa: ANN401 - an update of the framework
            refusal = passage.streamed(str(getattr(item, "text", "") or ""))
            if refusal is not None:
                raise refusal.denied()
            return item

        def result(response: Any) -> Any:  # noqa: ANN401 - a response of the framework
            self._settle(passage, response)
            return response

        def cleanup() -> None:
            # Before the result at a good end too; only a stream that broke has none to come.
            error = getattr(context.result, "_stream_error", None)
            if error is not None:
                passage.over(error)

        context.stream_cleanup_hooks.append(cleanup)
        context.stream_transform_hooks.append(update)
        context.stream_result_hooks.append(result)

    def _settle(self, passage: ModelPassage, response: Any) -> None:  # noqa: ANN401 - a response of the framework
        self._crossing.asked(passage, _calls(response))
        usage: Mapping[str, Any] = getattr(response, "usage_details", None) or {}
        passage.settle(
            prompt=usage.get("input_token_count"),
            completion=usage.get("output_token_count"),
            cached=usage.get("cache_read_input_token_count"),
        )


def _calls(response: Any) -> Iterator[str | None]:  # noqa: ANN401 - a response of the framework
    for message in getattr(response, "messages", None) or ():
        for content in message.contents:
            if getattr(content, "type", None) == "function_call":
                yield content.call_id


def _shown(tool: FunctionTool) -> str:
    return f"{tool.name} {tool.description} {tool.parameters()}"


def _texts(context: ChatContext, options: Mapping[str, Any]) -> Iterator[str]:
    """What the model is going to read: instructions, messages, and the tools with their schemas."""
    yield str(options.get("instructions") or "")
    for message in context.messages:
        for content in message.contents:
            for name in ("text", "arguments", "result"):
                part = getattr(content, name, None)
                if part is not None:
                    yield part if isinstance(part, str) else str(part)
    for tool in options.get("tools") or ():
        if isinstance(tool, FunctionTool):
            yield described(tool, functools.partial(_shown, tool))
        else:
            yield str(tool)
