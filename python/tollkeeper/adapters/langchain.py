"""LangChain and LangGraph: a gate around tool calls and model calls, as agent middleware and below it.

    guard = langchain.Guard(gate, resource='Mcp::"crm"')
    agent = create_agent(model, tools=[...], middleware=[..., *guard.middleware()])
    with gate.run(principal='Agent::"researcher"'):
        agent.invoke({"messages": [("user", "...")]})

A denied call is a tool message that the model reads, a denied model call raises `Denied` out of the run. `install`
gates `BaseTool` and `BaseChatModel` too: graphs without this middleware, direct calls, arguments that were changed.

It refuses to run a call whose decision it could not ask for. It does not see tools that the model's provider runs, nor
the function inside a tool (`tool.func`), which is the application's own code.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Final, get_args, get_origin

from tollkeeper.adapters._base import (
    PLAIN,
    Crossing,
    ModelPassage,
    Passage,
    Refusal,
    described,
    failure,
    plain,
    snapshot,
)
from tollkeeper.adapters._hosts import TABLE
from tollkeeper.errors import ConfigError, Denied

HOST: Final = TABLE["langchain"]
HOST.check()

from langchain.agents.middleware import AgentMiddleware  # noqa: E402 - behind what says that it is missing or too old
from langchain_core.callbacks import BaseCallbackHandler  # noqa: E402 - behind what says that it is missing or too old
from langchain_core.language_models import BaseChatModel  # noqa: E402 - behind what says that it is missing or too old
from langchain_core.messages import ToolMessage, convert_to_messages  # noqa: E402 - behind what says that it is missing or too old
from langchain_core.prompt_values import PromptValue  # noqa: E402 - behind what says that it is missing or too old
from langchain_core.runnables.config import ensure_config, merge_configs, var_child_runnable_config  # noqa: E402 - behind what says that it is missing or too old
from langchain_core.tools import BaseTool, InjectedToolCallId, Tool  # noqa: E402 - behind what says that it is missing or too old
from langgraph.errors import GraphBubbleUp  # noqa: E402 - behind what says that it is missing or too old
from langgraph.prebuilt import InjectedState, InjectedStore, ToolNode, ToolRuntime  # noqa: E402 - behind what says that it is missing or too old
from pydantic import BaseModel, ValidationError, create_model  # noqa: E402 - behind what says that it is missing or too old

__all__ = ["HOST", "Guard", "Halted"]


# What the runtime itself puts among a tool's arguments, whatever the model gave: policies do not see it.
SUPPLIED: Final = (InjectedState, InjectedStore, InjectedToolCallId)
# The names that providers have for the most tokens of a completion, and for a model.
MAX_TOKENS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_tokens_to_sample", "num_predict")
MODEL: Final = ("model", "model_name", "model_id")
# Parts of a content block that hold pictures and sound: their length says nothing of their tokens.
MEDIA: Final = ("base64", "data", "file", "image_url", "input_audio", "source", "url")
TEXT_ARGUMENT: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"__arg1": {"type": "string"}},
    "required": ["__arg1"],
}
GATED: Final = (
    (BaseTool, "run"),
    (BaseTool, "arun"),
    (BaseTool, "_parse_input"),
    (BaseChatModel, "generate"),
    (BaseChatModel, "agenerate"),
    (BaseChatModel, "stream"),
    (BaseChatModel, "astream"),
)
# A second way to stream, from release 1.1 on.
EVENTS: Final = ((BaseChatModel, "stream_events"), (BaseChatModel, "astream_events"))

# The model call that a hook has decided in this context, until it is made: name and most tokens.
_PAID: ContextVar[list[tuple[str, int | None]] | None] = ContextVar("tollkeeper_langchain_paid", default=None)
_INSTALLING = threading.Lock()
# The tool that has been let run here, and a copy of its arguments that callbacks are not shown.
_LET: ContextVar[list[tuple[BaseTool, Any]] | None] = ContextVar("tollkeeper_langchain_let", default=None)
# Whether a model call that is going on here has a decision of its own, below the one that a hook has asked for.
_OWN: ContextVar[bool] = ContextVar("tollkeeper_langchain_own", default=False)
# Schemas whose checkers are kept: applications make some anew for each request.
SCHEMAS_MAX: Final = 1024


class Halted(Denied, GraphBubbleUp):
    """A denied tool call that ends the run, for guards with `halt`.

    The runtime passes this kind of exception on where it makes other ones a message for the model or tries again.
    """


class Guard:
    """A gate for agents and graphs of this framework. One guard serves any number of them.

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
        self._original: dict[tuple[type, str], Any] = {}

    def middleware(self, agent: str | None = None) -> list[Any]:
        """What `create_agent(middleware=...)` takes.

        Put it last, which is innermost: it then decides every attempt that other middleware makes, on the arguments
        that other middleware has left.

        Args:
            agent: The agent's name for the audit log; otherwise the one that `create_agent` was given, which
                releases before 1.1 tell nobody.
        """
        found: list[Any] = [_Tools(self, agent)]
        if self.crossing.models:
            found.append(_Models(self.crossing, agent))
        return found

    def tool_node(self, tools: Iterable[Any], **options: Any) -> ToolNode:  # noqa: ANN401 - as ToolNode's
        """A `ToolNode` of bare LangGraph whose calls are gated.

        Args:
            tools: Tools or functions.
            options: What else `ToolNode` takes.
        """
        hooks = {"wrap_tool_call": self.wrap_tool_call, "awrap_tool_call": self.awrap_tool_call}
        return ToolNode(list(tools), **{**options, **hooks})

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any], agent: str | None = None) -> Any:  # noqa: ANN401 - the framework's request and results
        """Lets a tool call on, or answers it with the refusal: for `ToolNode(wrap_tool_call=...)`."""
        try:
            name, view, ids, changed = self._seen(request, agent)
            entered = self.crossing.enter(name, view, ids)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not let the call through
            entered = failure("a tool call", error)
        if isinstance(entered, Refusal):
            return self._refused(entered, request.tool_call["name"], request.tool_call["id"])
        with _running(entered):
            return _ended(entered, handler(changed))

    async def awrap_tool_call(
        self,
        request: Any,  # noqa: ANN401 - as above
        handler: Callable[[Any], Awaitable[Any]],
        agent: str | None = None,
    ) -> Any:  # noqa: ANN401 - as above
        """As `wrap_tool_call`, for `ToolNode(awrap_tool_call=...)`."""
        try:
            name, view, ids, changed = self._seen(request, agent)
            entered = await self.crossing.aenter(name, view, ids)
        except Exception as error:  # noqa: BLE001 - as above
            entered = failure("a tool call", error)
        if isinstance(entered, Refusal):
            return self._refused(entered, request.tool_call["name"], request.tool_call["id"])
        with _running(entered):
            return _ended(entered, await handler(changed))

    def _seen(self, request: Any, agent: str | None) -> tuple[str, Any, dict[str, str], Any]:  # noqa: ANN401 - the framework's request
        """The tool that would run, what a policy sees of its arguments, the ids, and the request with a copy."""
        call, tool = request.tool_call, request.tool
        if tool is None:
            # A name that the model made up; the gate knows it only if the file does.
            name, given = call["name"], snapshot(call["args"])
            view = given
        else:
            self.crossing.see(tool.name, tool, functools.partial(_schema, tool))
            # The runtime supplies its own again, so that a model cannot.
            given = {key: value for key, value in call["args"].items() if key not in _supplied(tool)}
            name, (given, view) = tool.name, _arguments(tool, given)
        ids = _ids(getattr(request.runtime, "config", None), call["id"], agent)
        return name, view, ids, request.override(tool_call={**call, "args": given})

    def _refused(self, refusal: Refusal, name: str, call: str | None) -> ToolMessage:
        if self.crossing.halt:
            raise Halted(refusal.decision, refusal.code, refusal.text)
        return ToolMessage(refusal.text, tool_call_id=call or "", name=name, status="error")

    # --- below all hooks ------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Gates `run` and `arun` of `BaseTool`; `generate` and `stream` of `BaseChatModel`, and theirs for event loops.

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
            for owner, name in GATED:
                if not callable(vars(owner).get(name)):
                    message = f"langchain {self.version}: {owner.__name__} has no method `{name}` to gate"
                    raise ConfigError(message, "host.unsupported", f"use a version up to {HOST.newest}")
            made = {"run": self._run, "arun": self._arun, "_parse_input": self._parse_input}
            if self.crossing.models:
                below = _Below(self.crossing)
                made |= {name: getattr(below, name) for name in ("generate", "agenerate", "stream", "astream")}
                made |= {name: below.events for _, name in EVENTS}
            for owner, name in (*GATED, *EVENTS):
                if name in made and name in vars(owner):
                    self._original[owner, name] = vars(owner)[name]
                    setattr(owner, name, made[name](vars(owner)[name]))
            Guard._installed = self

    def uninstall(self) -> None:
        """Puts both classes back as they were."""
        with _INSTALLING:
            if Guard._installed is self:
                for (owner, name), method in self._original.items():
                    setattr(owner, name, method)
                self._original.clear()
                Guard._installed = None

    def _run(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def run(tool: BaseTool, tool_input: Any, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - as the framework's
            call = named.get("tool_call_id")
            try:
                self.crossing.see(tool.name, tool, functools.partial(_schema, tool))
                given, view = _arguments(tool, tool_input)
                covered = self.crossing.admitted(tool.name, view)
                entered = None if covered else self.crossing.enter(tool.name, view, _ids(named.get("config"), call))
            except Exception as error:  # noqa: BLE001 - as above
                entered = failure(f"tool call `{tool.name}`", error)
            if isinstance(entered, Refusal):
                return self._refused_below(entered, tool, call)
            with _running(None if entered is None else entered.taken()), _let(tool, given):
                return _ended(entered, original(tool, given, *args, **named))

        return run

    def _arun(self, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(original)
        async def arun(tool: BaseTool, tool_input: Any, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - as above
            call = named.get("tool_call_id")
            try:
                self.crossing.see(tool.name, tool, functools.partial(_schema, tool))
                given, view = _arguments(tool, tool_input)
                entered = None
                if not self.crossing.admitted(tool.name, view):
                    entered = await self.crossing.aenter(tool.name, view, _ids(named.get("config"), call))
            except Exception as error:  # noqa: BLE001 - as above
                entered = failure(f"tool call `{tool.name}`", error)
            if isinstance(entered, Refusal):
                return self._refused_below(entered, tool, call)
            with _running(None if entered is None else entered.taken()), _let(tool, given):
                return _ended(entered, await original(tool, given, *args, **named))

        return arun

    @staticmethod
    def _parse_input(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def parse_input(tool: BaseTool, tool_input: Any, *args: Any, **named: Any) -> Any:  # noqa: ANN401 - as above
            let = _LET.get()
            if let and let[-1][0] is tool:
                # What callbacks have made of the arguments since then is not what runs.
                tool_input = let.pop()[1]
            return original(tool, tool_input, *args, **named)

        return parse_input

    def _refused_below(self, refusal: Refusal, tool: BaseTool, call: str | None) -> ToolMessage:
        if call is None and not self.crossing.halt:
            # Code called the tool and takes what it returns for its result.
            raise refusal.denied()
        return self._refused(refusal, tool.name, call)


@contextlib.contextmanager
def _let(tool: BaseTool, given: Any) -> Iterator[None]:  # noqa: ANN401 - text or a mapping
    token = _LET.set([(tool, _copied(tool, given))])
    try:
        yield
    finally:
        _LET.reset(token)


@contextlib.contextmanager
def _running(passage: Passage | None) -> Iterator[None]:
    """Around the call; a graph that is interrupted, or left for its parent, has not failed."""
    if passage is None:
        yield
        return
    with passage:
        try:
            yield
        except GraphBubbleUp as left:
            passage.over(left, cancelled=True)
            raise


def _ended(passage: Passage | None, result: Any) -> Any:  # noqa: ANN401 - what the tool returned
    # The runtime has made a message of what the tool raised.
    if passage is not None and isinstance(result, ToolMessage) and result.status == "error":
        passage.over(failed=True)
    return result


def _ids(config: Mapping[str, Any] | None, call: str | None = None, agent: str | None = None) -> dict[str, str]:
    """What the runtime says of a call. An agent inside another without a name of its own has the outer one's."""
    config = config or {}
    settings, about = config.get("configurable") or {}, config.get("metadata") or {}
    found = {
        "agent": agent or about.get("lc_agent_name"),
        "session": settings.get("thread_id") or about.get("thread_id"),
        "run": config.get("run_id") or settings.get("run_id") or about.get("run_id"),
        "call": call,
    }
    return {name: str(value) for name, value in found.items() if value}


class _Tools(AgentMiddleware):
    """One decision for each tool call, on a copy of the arguments that then runs."""

    def __init__(self, guard: Guard, agent: str | None) -> None:
        super().__init__()
        self._guard, self._agent = guard, agent

    @property
    def name(self) -> str:
        """Agents take each name once."""
        return "TollkeeperTools"

    def wrap_tool_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - as the framework's
        """As `Guard.wrap_tool_call`."""
        return self._guard.wrap_tool_call(request, handler, self._agent)

    async def awrap_tool_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:  # noqa: ANN401 - as above
        """As `Guard.awrap_tool_call`."""
        return await self._guard.awrap_tool_call(request, handler, self._agent)


# --- arguments ----------------------------------------------------------------------------------------------------


def _schema(tool: BaseTool) -> Mapping[str, Any]:
    """The schema that the model is shown: without what the runtime supplies."""
    if isinstance(tool, Tool) and tool.args_schema is None:
        return TEXT_ARGUMENT
    shown: Any = tool.tool_call_schema
    if isinstance(shown, Mapping):
        return shown
    # Of the older generation of models, which tools may still have.
    return dict(shown.model_json_schema() if hasattr(shown, "model_json_schema") else shown.schema())


def _supplied(tool: BaseTool) -> frozenset[str]:
    """The arguments that come from the runtime, whatever the model gives."""
    schema = tool.args_schema
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return _checker(schema)[1]
    # A schema that is plain JSON names none of them; the function's signature does, from release 1.1 on.
    return frozenset(getattr(tool, "_injected_args_keys", ()))


@functools.lru_cache(maxsize=SCHEMAS_MAX)
def _checker(schema: type[BaseModel]) -> tuple[type[BaseModel], frozenset[str]]:
    """The schema with its own checks, but for fields that the runtime supplies; and their names."""
    fields = schema.model_fields.items()
    names = frozenset(name for name, field in fields if _is_supplied(field.annotation, field.metadata))
    anything: dict[str, Any] = dict.fromkeys(names, (Any, None))
    return (create_model(schema.__name__, __base__=schema, **anything) if names else schema), names


def _is_supplied(annotation: Any, marks: Iterable[Any]) -> bool:  # noqa: ANN401 - a type, or what stands for one
    if (get_origin(annotation) or annotation) is ToolRuntime:
        return True
    if any(isinstance(mark, SUPPLIED) or any(mark is kind for kind in SUPPLIED) for mark in marks):
        return True
    # Within an optional one, say.
    return any(_is_supplied(part, getattr(part, "__metadata__", ())) for part in get_args(annotation))


def _arguments(tool: BaseTool, given: Any) -> tuple[Any, Any]:  # noqa: ANN401 - text or a mapping
    """A copy that nobody else has, to run; and what the tool gets of it, as policies see it.

    The runtime checks and converts what runs once more in the same way. Defaults are among what a policy sees.
    """
    schema = tool.args_schema
    if isinstance(given, str):
        return given, {_first(tool): given}
    supplied = _supplied(tool)
    run = _copied(tool, given)
    shown = {key: value for key, value in run.items() if key not in supplied}
    if not (isinstance(schema, type) and issubclass(schema, BaseModel)):
        return run, shown
    checker, _ = _checker(schema)
    checked = _validated(tool, checker, shown)
    if checked is None:
        return run, shown
    view: dict[str, Any] = {}
    for name, field in checker.model_fields.items():
        if name in supplied:
            continue
        value = plain(getattr(checked, name))
        alias = field.validation_alias if isinstance(field.validation_alias, str) else name
        if name in checked.model_fields_set:
            # What has no plain form, such as a secret, is seen as the model gave it. The schema that the model is shown
            # has the names of fields, whatever else they may be given by.
            view[name] = value if _is_data(value) else shown.get(alias, shown.get(name, value))
        elif value is not None and name not in {"args", "kwargs"} and _is_data(value):
            view[name] = value
            if field.default_factory is not None:
                # Made anew each time: what runs is the one that was decided on.
                run[alias] = snapshot(value)
    for key, value in (checked.model_extra or {}).items():
        view[key] = plain(value)
    return run, view


def _validated(tool: BaseTool, checker: type[BaseModel], shown: Any) -> BaseModel | None:  # noqa: ANN401 - a mapping
    """What the schema makes of arguments; `None` for those that the runtime refuses itself."""
    try:
        return checker.model_validate(snapshot(shown))
    except Exception as error:
        if not _supplied(tool) or _misses(error):
            return None
        # With what the runtime supplies it may pass there, and become something that nobody has decided on.
        message = f"tool `{tool.name}`: its schema's own checks fail without what the runtime supplies"
        raise ConfigError(message, "host.unsupported", "make those checks in the tool's function") from error


def _misses(error: Exception) -> bool:
    """Whether arguments fail because one is missing or of another type, not because a check of the author's says so."""
    own = {"value_error", "assertion_error"}
    return isinstance(error, ValidationError) and any(one["loc"] and one["type"] not in own for one in error.errors())


def _copied(tool: BaseTool, given: Any) -> Any:  # noqa: ANN401 - text or a mapping
    """A copy that nobody else has, but for what the runtime supplies, such as the state of the graph."""
    if isinstance(given, str):
        return given
    supplied = _supplied(tool)
    return {key: value if key in supplied else snapshot(value) for key, value in given.items()}


def _first(tool: BaseTool) -> str:
    """The name of the argument that a bare text is."""
    return "__arg1" if isinstance(tool, Tool) and tool.args_schema is None else next(iter(tool.args), "__arg1")


def _is_data(value: Any) -> bool:  # noqa: ANN401 - anything
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and _is_data(item) for key, item in value.items())
    return all(map(_is_data, value)) if kind is list else kind in PLAIN


# --- models -------------------------------------------------------------------------------------------------------


class _Models(AgentMiddleware):
    """One decision and one hold for each model call, settled with the usage that the model reports."""

    def __init__(self, crossing: Crossing, agent: str | None) -> None:
        super().__init__()
        self._crossing, self._agent = crossing, agent

    @property
    def name(self) -> str:
        """Agents take each name once."""
        return "TollkeeperModels"

    def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:  # noqa: ANN401 - as the framework's
        """Lets the call on, or raises `Denied` out of the run."""
        try:
            name, most = _model(request.model, request.model_settings)
            passage = self._crossing.model(
                name, _request_texts(request), most, _ids(ensure_config(), None, self._agent)
            )
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not let the call through
            passage = failure("a model call", error)
        if isinstance(passage, Refusal):
            raise passage.denied()
        with _metered(self._crossing, passage, (name, most)) as meter:
            result = handler(request)
            meter.settle(getattr(result, "model_response", result))
        return result

    async def awrap_model_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:  # noqa: ANN401 - as above
        """As `wrap_model_call`."""
        try:
            name, most = _model(request.model, request.model_settings)
            ids = _ids(ensure_config(), None, self._agent)
            passage = await self._crossing.amodel(name, _request_texts(request), most, ids)
        except Exception as error:  # noqa: BLE001 - as above
            passage = failure("a model call", error)
        if isinstance(passage, Refusal):
            raise passage.denied()
        with _metered(self._crossing, passage, (name, most)) as meter:
            result = await handler(request)
            meter.settle(getattr(result, "model_response", result))
        return result


class _Meter(BaseCallbackHandler):
    """Hears what a model says as it says it, and what it reports; stops it where nobody pays for it any more."""

    raise_error = True
    run_inline = True
    # For beginnings the framework would write the whole conversation into one text.
    ignore_chat_model = True

    def __init__(self, crossing: Crossing, passage: ModelPassage) -> None:
        super().__init__()
        self._crossing, self._passage = crossing, passage
        self._reported: list[Any] = []
        self._pieces = 0

    def on_llm_new_token(self, token: Any, *, chunk: Any = None, **_: Any) -> None:  # noqa: ANN401 - as the framework's
        """Counts a piece of the answer."""
        if _OWN.get():
            return
        self._pieces += 1
        message = getattr(chunk, "message", None)
        self._count(str(token) if message is None else _said(message))

    def on_stream_event(self, event: Any, **_: Any) -> None:  # noqa: ANN401 - as the framework's
        """The same, of a model that says it in events; some say it in both ways."""
        if _OWN.get() or self._pieces or event.get("event") != "content-block-delta":
            return
        block = event.get("delta") or {}
        self._count(str(block.get("text") or block.get("reasoning") or block.get("args") or block.get("fields") or ""))

    def _count(self, text: str) -> None:
        refusal = self._passage.streamed(text)
        if refusal is not None:
            raise refusal.denied()

    def on_llm_end(self, response: Any, **_: Any) -> None:  # noqa: ANN401 - as the framework's
        """Notes an answer: there are several where middleware further in tries again."""
        if not _OWN.get():
            self._reported += [messages[0] for messages in _answers(response)]

    def settle(self, response: Any = None) -> None:  # noqa: ANN401 - of the framework
        """Ends the call with what was reported to the meter, or else with what the response says."""
        messages = self._reported or list(getattr(response, "result", None) or ())
        _settle(self._crossing, self._passage, messages)

    def left(self, error: BaseException) -> None:
        """Ends a call that raised; the model may have answered before that."""
        if self._reported:
            self.settle()
        self._passage.over(error)


class _Ending(_Meter):
    """A meter that nobody stands around: it ends the call with the answer."""

    def on_llm_end(self, response: Any, **named: Any) -> None:  # noqa: ANN401 - as the framework's
        """Settles with the answer."""
        super().on_llm_end(response, **named)
        self.settle()

    def on_llm_error(self, error: BaseException, **_: Any) -> None:  # noqa: ANN401 - as the framework's
        """Ends a call that failed."""
        self.left(error)


@contextlib.contextmanager
def _metered(crossing: Crossing, passage: ModelPassage, paid: tuple[str, int | None]) -> Iterator[_Meter]:
    meter = _Meter(crossing, passage)
    config = merge_configs(ensure_config(), {"callbacks": [meter]})
    configured, told = var_child_runnable_config.set(config), _PAID.set([paid])
    try:
        yield meter
    except BaseException as error:
        meter.left(error)
        raise
    finally:
        # An abandoned run is closed in another context, where these are not ours to put back.
        with contextlib.suppress(ValueError):
            _PAID.reset(told)
            var_child_runnable_config.reset(configured)


def _settle(crossing: Crossing, passage: ModelPassage, messages: Iterable[Any]) -> None:
    prompt = completion = None
    cached = 0
    for message in messages:
        crossing.asked(passage, [call.get("id") for call in getattr(message, "tool_calls", None) or ()])
        usage: Mapping[str, Any] = getattr(message, "usage_metadata", None) or {}
        if usage:
            prompt = (prompt or 0) + (usage.get("input_tokens") or 0)
            completion = (completion or 0) + (usage.get("output_tokens") or 0)
            cached += (usage.get("input_token_details") or {}).get("cache_read") or 0
    passage.settle(prompt=prompt, completion=completion, cached=cached)


def _answers(response: Any) -> Iterator[list[Any]]:  # noqa: ANN401 - an LLMResult
    """For each prompt the messages that answer it, which all report the usage of the whole."""
    for generations in getattr(response, "generations", None) or ():
        messages = [generation.message for generation in generations if hasattr(generation, "message")]
        if messages:
            yield messages


def _model(model: Any, settings: Mapping[str, Any] | None) -> tuple[str, int | None]:  # noqa: ANN401 - a chat model
    """Its name, and the most tokens of its answer where that is stated."""
    # A model that is chosen when it is called has only these.
    chosen = getattr(model, "_default_config", None) or {}
    stated: Mapping[str, Any] = {**(chosen if isinstance(chosen, Mapping) else {}), **(settings or {})}
    name = next((found for key in MODEL if (found := stated.get(key) or getattr(model, key, None))), "unknown")
    most = next((found for key in MAX_TOKENS if (found := stated.get(key) or getattr(model, key, None))), None)
    answers = stated.get("n") or getattr(model, "n", None) or 1
    if not isinstance(most, int):
        return str(name), None
    return str(name), most * answers if isinstance(answers, int) and answers > 1 else most


def _said(message: Any) -> str:  # noqa: ANN401 - a message
    """What a piece of an answer adds: its text, and the arguments of the calls it asks for."""
    return "".join((*_texts((message,)), *(str(c.get("args") or "") for c in _chunks(message))))


def _chunks(message: Any) -> Iterable[Mapping[str, Any]]:  # noqa: ANN401 - a message
    return getattr(message, "tool_call_chunks", None) or ()


def _texts(messages: Iterable[Any]) -> Iterator[str]:
    """What the model is going to read of messages. Pictures and sound are not among it."""
    for message in messages:
        content = getattr(message, "content", message)
        if isinstance(content, str):
            yield content
        else:
            for block in content or ():
                if isinstance(block, Mapping):
                    yield str(block.get("text") or {key: part for key, part in block.items() if key not in MEDIA})
                else:
                    yield str(block)
        if not _chunks(message):
            for call in getattr(message, "tool_calls", None) or ():
                yield str(call.get("args"))


def _shown(tool: BaseTool) -> str:
    return f"{tool.name} {tool.description} {_schema(tool)}"


def _request_texts(request: Any) -> Iterator[str]:  # noqa: ANN401 - the framework's
    """Everything that the model is going to read: instructions, messages, and the tools with their schemas."""
    # Text before release 1.1.
    yield from _texts([message] if (message := getattr(request, "system_message", None)) else ())
    if not hasattr(request, "system_message"):
        yield str(getattr(request, "system_prompt", None) or "")
    yield from _texts(request.messages)
    for tool in request.tools:
        if isinstance(tool, BaseTool):
            yield described(tool, functools.partial(_shown, tool))
        else:
            yield str(tool)
    if request.response_format is not None:
        yield str(getattr(getattr(request.response_format, "schema", None), "__doc__", None) or "")


class _Below:
    """The same for models that are called outside an agent, or without its hooks."""

    def __init__(self, crossing: Crossing) -> None:
        self._crossing = crossing

    def _asks(
        self,
        model: Any,  # noqa: ANN401 - a chat model
        prompts: list[Any],
        named: Mapping[str, Any],
    ) -> tuple[str, list[str], int, dict[str, str]] | None:
        """What to ask the gate; `None` if a hook has asked for this very call."""
        name, most = _model(model, named)
        paid = _PAID.get()
        if paid and paid[-1] == (name, most) and paid.pop():
            return None
        texts = [text for messages in prompts for text in _texts(messages)]
        texts += [str(tool) for tool in named.get("tools") or ()]
        whole = (self._crossing.max_output_tokens if most is None else most) * max(len(prompts), 1)
        return name, texts, whole, _ids(ensure_config(named.get("config")))

    def _enter(self, model: Any, prompts: list[Any], named: Mapping[str, Any]) -> ModelPassage | None:  # noqa: ANN401 - as above
        try:
            asks = self._asks(model, prompts, named)
            passage = None if asks is None else self._crossing.model(*asks)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not let the call through
            passage = failure("a model call", error)
        if isinstance(passage, Refusal):
            raise passage.denied()
        return passage

    async def _aenter(self, model: Any, prompts: list[Any], named: Mapping[str, Any]) -> ModelPassage | None:  # noqa: ANN401 - as above
        try:
            asks = self._asks(model, prompts, named)
            passage = None if asks is None else await self._crossing.amodel(*asks)
        except Exception as error:  # noqa: BLE001 - as above
            passage = failure("a model call", error)
        if isinstance(passage, Refusal):
            raise passage.denied()
        return passage

    def generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`BaseChatModel.generate`, which `invoke` and `batch` share."""

        @functools.wraps(original)
        def generate(model: BaseChatModel, messages: list[Any], *args: Any, **named: Any) -> Any:  # noqa: ANN401 - as the framework's
            passage = self._enter(model, messages, named)
            with _paying(passage):
                result = original(model, messages, *args, **named)
                self._end(passage, result)
            return result

        return generate

    def agenerate(self, original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """`BaseChatModel.agenerate`."""

        @functools.wraps(original)
        async def agenerate(model: BaseChatModel, messages: list[Any], *args: Any, **named: Any) -> Any:  # noqa: ANN401 - as above
            passage = await self._aenter(model, messages, named)
            with _paying(passage):
                result = await original(model, messages, *args, **named)
                self._end(passage, result)
            return result

        return agenerate

    def stream(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`BaseChatModel.stream`; one that is left is settled with what has appeared."""

        @functools.wraps(original)
        def stream(model: BaseChatModel, input: Any, *args: Any, **named: Any) -> Iterator[Any]:  # noqa: A002, ANN401 - as the framework's
            passage = self._enter(model, [_messages(input)], named)
            paid, whole = _model(model, named), None
            with _flowing(passage), contextlib.closing(original(model, input, *args, **named)) as pieces:
                while True:
                    with _turning(paid, passage):
                        piece = next(pieces, None)
                    if piece is None:
                        break
                    whole = _counted(passage, whole, piece)
                    yield piece
                self._flowed(passage, whole)

        return stream

    def astream(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`BaseChatModel.astream`."""

        @functools.wraps(original)
        async def astream(model: BaseChatModel, input: Any, *args: Any, **named: Any) -> AsyncIterator[Any]:  # noqa: A002, ANN401 - as above
            passage = await self._aenter(model, [_messages(input)], named)
            paid, whole = _model(model, named), None
            with _flowing(passage):
                async with contextlib.aclosing(original(model, input, *args, **named)) as pieces:
                    while True:
                        with _turning(paid, passage):
                            piece = await anext(pieces, None)
                        if piece is None:
                            break
                        whole = _counted(passage, whole, piece)
                        yield piece
                self._flowed(passage, whole)

        return astream

    def events(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """`stream_events` and `astream_events`, whose third version calls nothing of the above."""

        @functools.wraps(original)
        def events(model: BaseChatModel, input: Any, config: Any = None, **named: Any) -> Any:  # noqa: A002, ANN401 - as above
            if named.get("version") != "v3":
                return original(model, input, config, **named)
            if original.__name__ == "astream_events":
                return self._aevents(original, model, input, config, named)
            passage = self._enter(model, [_messages(input)], named)
            return original(model, input, self._ending(config, passage), **named)

        return events

    async def _aevents(
        self,
        original: Callable[..., Any],
        model: BaseChatModel,
        given: Any,  # noqa: ANN401 - as above
        config: Any,  # noqa: ANN401 - as above
        named: Mapping[str, Any],
    ) -> Any:  # noqa: ANN401 - as above
        passage = await self._aenter(model, [_messages(given)], named)
        return await original(model, given, self._ending(config, passage), **named)

    def _ending(self, config: Any, passage: ModelPassage | None) -> Any:  # noqa: ANN401 - of the framework
        if passage is None:
            return config
        return merge_configs(ensure_config(config), {"callbacks": [_Ending(self._crossing, passage)]})

    def _flowed(self, passage: ModelPassage | None, whole: Any) -> None:  # noqa: ANN401 - a message of all pieces
        if passage is not None:
            _settle(self._crossing, passage, [whole] if whole is not None else [])

    def _end(self, passage: ModelPassage | None, result: Any) -> None:  # noqa: ANN401 - an LLMResult
        if passage is not None:
            _settle(self._crossing, passage, [messages[0] for messages in _answers(result)])


@contextlib.contextmanager
def _paying(passage: ModelPassage | None) -> Iterator[None]:
    """Around a call that answers at once; what hooks hear of it is none of theirs if it has its own decision."""
    token = _OWN.set(passage is not None)
    try:
        yield
    except BaseException as error:
        if passage is not None:
            passage.over(error)
        raise
    finally:
        _OWN.reset(token)


@contextlib.contextmanager
def _turning(paid: tuple[str, int | None], passage: ModelPassage | None) -> Iterator[None]:
    """Around one piece of a stream: what is set here must not be seen by its reader.

    A model that cannot stream generates instead, and that has been decided.
    """
    told, token = _PAID.set([paid]), _OWN.set(passage is not None)
    try:
        yield
    finally:
        _PAID.reset(told)
        _OWN.reset(token)


@contextlib.contextmanager
def _flowing(passage: ModelPassage | None) -> Iterator[None]:
    """Around a stream, which its reader may leave."""
    try:
        yield
    except BaseException as error:
        if passage is not None:
            passage.over(error)
        raise


def _counted(passage: ModelPassage | None, whole: Any, piece: Any) -> Any:  # noqa: ANN401 - message chunks
    if passage is not None:
        refusal = passage.streamed(_said(piece))
        if refusal is not None:
            raise refusal.denied()
    return piece if whole is None else whole + piece


def _messages(given: Any) -> list[Any]:  # noqa: ANN401 - text, messages or a prompt
    if isinstance(given, PromptValue):
        return list(given.to_messages())
    return list(convert_to_messages([given] if isinstance(given, str) else given))
