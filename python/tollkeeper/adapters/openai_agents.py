"""OpenAI Agents SDK: a gate around the tools of agents, and around their models.

    guard = openai_agents.Guard(gate, resource='Mcp::"crm"')
    agent = guard.agent(Agent(name="researcher", tools=[...], mcp_servers=[...], handoffs=[...]))
    with gate.run(principal='Agent::"researcher"'):
        await Runner.run(agent, "...", run_config=guard.run_config())

What is guarded is the function that a tool is invoked by, for it is the last thing before the tool: guardrails, hooks
and approvals have run, and what it is given is what runs. A denied call's output is a text that the model reads, a
denied model call raises `Denied` out of the run. `install` gates every tool of the process, whoever invokes it.

It refuses arguments that can be read in two ways, and to run a call whose decision it could not ask for. Tools that
the model's provider runs cannot be decided call by call: they are taken away unless a policy lets the run call them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import json
import logging
import math
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, cast

from tollkeeper.adapters._base import Crossing, ModelPassage, Passage, Refusal, described, failure
from tollkeeper.adapters._hosts import TABLE
from tollkeeper.errors import ConfigError

HOST: Final = TABLE["openai_agents"]
HOST.check()

import agents  # noqa: E402 - behind what says that it is missing or too old
from agents import (  # noqa: E402 - behind what says that it is missing or too old
    ApplyPatchTool,
    ComputerTool,
    FunctionTool,
    Handoff,
    LocalShellTool,
    Model,
    ModelProvider,
    MultiProvider,
    RunConfig,
    ShellTool,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrail,
    ToolInputGuardrailData,
    ToolInputGuardrailTripwireTriggered,
)
from agents.agent import AgentBase  # noqa: E402 - behind what says that it is missing or too old
from agents.editor import ApplyPatchResult  # noqa: E402 - behind what says that it is missing or too old
from agents.tracing import get_current_trace  # noqa: E402 - behind what says that it is missing or too old

if TYPE_CHECKING:
    from agents.items import ModelResponse

__all__ = ["HOST", "Guard", "Stopped"]

log = logging.getLogger("tollkeeper.adapters")


# Newer than the oldest supported version.
CustomTool: Final[type[Any] | None] = getattr(agents, "CustomTool", None)
# Where each kind of tool that runs in this process keeps what runs it.
SLOTS: Final[dict[type[Any], str]] = {
    FunctionTool: "on_invoke_tool",
    LocalShellTool: "executor",
    ShellTool: "executor",
    ApplyPatchTool: "editor",
    ComputerTool: "computer",
    **({} if CustomTool is None else {CustomTool: "on_invoke_tool"}),
}
# Where models are kept. The SDK's loop takes a model from here and from nowhere else.
MODELS: Final[tuple[tuple[type[Any], str], ...]] = (
    (agents.Agent, "model"),
    (RunConfig, "model"),
    (RunConfig, "model_provider"),
)
EDITS: Final = ("create_file", "update_file", "delete_file")
ACTIONS: Final = ("click", "double_click", "scroll", "type", "move", "keypress", "drag")
LAST_EVENTS: Final = ("response.completed", "response.incomplete", "response.failed")
TEXT_INPUT: Final = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
# What a copy is made with: of what runs a tool, it would be one without the gate.
NOT_PASSED_ON: Final = ("_inner", "__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__")
# Set on the `usage` of a run, which its tools and the agents they run share: nothing of that run goes on.
STOPPED: Final = "_tollkeeper_stopped"
# The agent whose turn it is; the model is not told.
_TURN: ContextVar[str | None] = ContextVar("tollkeeper_openai_agents_turn", default=None)
# What the call that has been let on here was made with: a tool that wraps another one passes it on, nobody else has it.
_CALLED: ContextVar[object] = ContextVar("tollkeeper_openai_agents_called", default=None)
_INSTALLING = threading.Lock()


class Stopped(ToolInputGuardrailTripwireTriggered):
    """The SDK's own hard stop, as a tool's guardrail raises it, with what was refused."""

    def __init__(self, refusal: Refusal) -> None:
        output = ToolGuardrailFunctionOutput.raise_exception({"code": refusal.code, "reason": refusal.text})
        super().__init__(ToolInputGuardrail(_stop, name="tollkeeper"), output)
        self.refusal = refusal

    def __str__(self) -> str:
        return self.refusal.text


def _stop(data: ToolInputGuardrailData) -> ToolGuardrailFunctionOutput:
    """What the exception names as its guardrail: one that lets nothing through, should somebody use it."""
    del data
    return ToolGuardrailFunctionOutput.raise_exception()


class Guard:
    """A gate for agents of this SDK. One guard serves any number of agents.

    Args:
        gate: The gate.
        options: As in `Crossing`: `resource`, `halt`, `models`, `max_output_tokens`, `timeout`, `approval_timeout`.

    Raises:
        ConfigError: The SDK is older than the oldest supported version.
    """

    _installed: Guard | None = None

    def __init__(self, gate: Any, **options: Any) -> None:  # noqa: ANN401 - Crossing has the types
        self.version = HOST.check()
        self.crossing = Crossing(gate, HOST.name, **options)
        self._classes: dict[type[Any], type[Any]] = {}
        self._default: ModelProvider | None = None
        self._removed: set[str] = set()
        self._replaced: list[tuple[type[Any], str, Any]] = []

    # --- agents ---------------------------------------------------------------------------------------------------

    def agent(self, agent: Any) -> Any:  # noqa: ANN401 - an agent of any class, the same comes back
        """A clone of the agent with its tools, its model and the agents it can hand over to behind the gate.

        Tools that appear later are gated when a turn begins: those of MCP servers, and those that are appended. An
        agent that is offered as a tool (`Agent.as_tool`) is gated in place, since that tool runs this very agent.

        Args:
            agent: The agent; one that is guarded already comes back as it is.

        Raises:
            ConfigError: A tool of it keeps what runs it somewhere else than the versions this was tested with.
        """
        return self._clone(agent, {})

    def run_config(self, config: RunConfig | None = None) -> RunConfig:
        """A copy whose models are behind the gate: for agents that name their model instead of holding it.

        Args:
            config: As for `Runner.run`; without it the SDK's defaults, and its default provider.
        """
        if config is None:
            self._default = self._default or MultiProvider()
            config = RunConfig(model_provider=self._default)
        if not self.crossing.models:
            return dataclasses.replace(config)
        model: Any = config.model
        if isinstance(model, Model):
            model = self.model(model)
        return dataclasses.replace(config, model=model, model_provider=self.provider(config.model_provider))

    def model(self, model: Model) -> Model:
        """The model behind the gate. One that is already comes back as it is."""
        if not isinstance(model, _GuardedModel):
            return _GuardedModel(self, model, None)
        return model.kept()

    def provider(self, provider: ModelProvider) -> ModelProvider:
        """The provider with all its models behind the gate."""
        return provider.kept() if isinstance(provider, _GuardedProvider) else _GuardedProvider(self, provider)

    def _clone(self, agent: Any, done: dict[int, tuple[Any, Any]]) -> Any:  # noqa: ANN401 - as above
        if getattr(_kind(agent), "_tollkeeper", None) is self:
            return agent
        if id(agent) not in done:
            cloned = agent.clone()
            # Before its tools and handoffs: they may lead back here. The original is kept, for its id is the key.
            done[id(agent)] = (agent, cloned)
            self._guard(cloned, done)
        return done[id(agent)][1]

    def _guard(self, agent: Any, done: dict[int, tuple[Any, Any]]) -> None:  # noqa: ANN401 - as above
        """Gates an agent in place."""
        kind = _kind(agent)
        agent.tools = [self._copied(tool, done) for tool in agent.tools]
        agent.handoffs = [self._handoff(handoff, done) for handoff in agent.handoffs]
        if self.crossing.models and _is(getattr(agent, "model", None), Model):
            agent.model = self.model(agent.model)
        if kind not in self._classes:
            self._classes[kind] = _guarded_class(self, kind)
        agent.__class__ = self._classes[kind]

    def _handoff(self, handoff: Any, done: dict[int, tuple[Any, Any]]) -> Any:  # noqa: ANN401 - an agent or a handoff
        if not _is(handoff, Handoff):
            return self._clone(handoff, done)
        copied: Any = copy.copy(handoff)
        reference = getattr(handoff, "_agent_ref", None)
        target = None if reference is None else reference()
        guarded = None if target is None else self._clone(target, done)
        if guarded is not None:
            copied._agent_ref = weakref.ref(guarded)  # noqa: SLF001 - by it the SDK finds agents of a saved run
        inner = handoff.on_invoke_handoff

        @functools.wraps(inner)
        async def invoke(context: Any, text: str = "") -> Any:  # noqa: ANN401 - as the SDK's
            found = await inner(context, text)
            return guarded if target is not None and found is target else self._clone(found, {})

        copied.on_invoke_handoff = invoke
        return copied

    # --- tools ----------------------------------------------------------------------------------------------------

    def _copied(self, tool: Any, done: dict[int, tuple[Any, Any]]) -> Any:  # noqa: ANN401 - any tool of the SDK
        copied = copy.copy(tool)
        if not self._gate(copied):
            return tool
        inner = getattr(copied, "_agent_instance", None)
        if _is(inner, AgentBase) and getattr(_kind(inner), "_tollkeeper", None) is None:
            # The tool runs that agent, and no other can be put in its place.
            done[id(inner)] = (inner, inner)
            self._guard(inner, done)
        return copied

    def _gate(self, tool: Any) -> bool:  # noqa: ANN401 - as above
        """Gates a tool in place; false for one that does not run in this process."""
        slot = _slot(tool)
        stored: Any = None if slot is None else _fields(tool).get(slot)
        if slot is None or stored is None:
            return False
        if _kind(stored) not in GATED:
            gated = _gated(self, tool, stored)
            if gated is None:
                return False
            setattr(tool, slot, gated)
        elif stored._tool is not tool:  # noqa: SLF001 - ours
            # A copy, perhaps with another name or schema: what is decided on is what is called.
            setattr(tool, slot, _kind(stored)(stored._guard, tool, stored._inner))  # noqa: SLF001 - ours
        if getattr(tool, slot, None) is not _fields(tool).get(slot) or _kind(_fields(tool)[slot]) not in GATED:
            message = f"openai-agents {self.version}: `{tool.name}` cannot be gated: its class defines `{slot}` itself"
            raise ConfigError(message, "host.unsupported", "make the tool with a plain `FunctionTool`")
        return True

    def served(self, tools: Iterable[Any]) -> list[Any]:
        """Those that may be offered to a model: gated ones, and those of its provider that a policy lets be called."""
        return [tool for tool in tools if self._gate(tool) or self._hosted(tool)]

    def _hosted(self, tool: Any) -> bool:  # noqa: ANN401 - as above
        # Never registered here: only a tool that the operator has named can be one that may be called. Searching among
        # definitions that are offered anyway calls nothing.
        name = str(getattr(tool, "name", "") or type(tool).__name__)
        if name == "tool_search" or self.crossing.gate.may_call(name):
            return True
        if name not in self._removed:
            self._removed.add(name)
            log.warning(
                "`%s` runs where no call of it can be decided, so it is not offered to the model; "
                "name it in tollkeeper.toml and permit it to allow every call",
                name,
            )
        return False

    async def decide(self, call: _Call) -> Passage | Refusal:
        """Decides a call. Raises only the hard stop, where denials halt or the run was stopped before."""
        usage = getattr(call.context, "usage", None)
        _raise_if_stopped(usage)
        try:
            self.crossing.see(call.name, call.tool, lambda: call.schema)
            passage = await self.crossing.aenter(call.name, call.arguments, _ids(call))
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not let the call through
            passage = failure(f"tool call `{call.name}`", error)
        if isinstance(passage, Refusal) and self.crossing.halt:
            raise self.stop(passage, usage)
        return passage

    @staticmethod
    def stop(refusal: Refusal, usage: object) -> Stopped:
        """The hard stop; where the SDK makes an output of it, the run's next step raises it again."""
        if usage is not None:
            with contextlib.suppress(AttributeError, TypeError, ValueError):
                setattr(usage, STOPPED, refusal)
        stopped = Stopped(refusal)
        stopped.__cause__ = refusal.denied()
        return stopped

    # --- the process ----------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Gates what runs a tool on every tool of this process, and the models of its agents and runs.

        Those that exist, and those to come.

        Raises:
            ConfigError: The SDK's tools have another shape than the versions this was tested with.
            RuntimeError: Another guard is installed.
        """
        with _INSTALLING:
            if Guard._installed is self:
                return
            if Guard._installed is not None:
                message = "another guard is installed; uninstall it first"
                raise RuntimeError(message)
            slots = [*SLOTS.items(), *(MODELS if self.crossing.models else ())]
            for kind, name in slots:
                self._check_shape(kind, name)
            for kind, name in slots:
                self._replaced.append((kind, name, vars(kind).get(name, _MISSING)))
                setattr(kind, name, _Slot(self, name, vars(kind).get(name, _MISSING)))
            Guard._installed = self

    def uninstall(self) -> None:
        """Puts the SDK's tools back as they were."""
        with _INSTALLING:
            if Guard._installed is self:
                for kind, name, original in self._replaced:
                    if original is _MISSING:
                        delattr(kind, name)
                    else:
                        setattr(kind, name, original)
                self._replaced.clear()
                Guard._installed = None

    def _check_shape(self, kind: type[Any], name: str) -> None:
        fields = {field.name for field in dataclasses.fields(kind)}
        wrong = [each for each in _subclasses(kind) if each is not kind and vars(each).get(name) is not None]
        if name in fields and not wrong and kind.__dictoffset__:
            return
        culprit = wrong[0].__name__ if wrong else kind.__name__
        message = f"openai-agents {self.version}: {culprit} keeps `{name}` where it cannot be gated"
        raise ConfigError(message, "host.unsupported", f"use a version up to {HOST.newest}, without such a class")


_MISSING: Final = object()


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _subclasses(each)


def _is(thing: Any, kind: type[Any]) -> bool:  # noqa: ANN401 - anything
    """As `isinstance`, for classes that say nothing of what they hold."""
    return isinstance(thing, kind)


def _kind(thing: object) -> type[Any]:
    return type(thing)


def _fields(tool: object) -> dict[str, Any]:
    return vars(tool)


def _slot(tool: object) -> str | None:
    return next((name for kind, name in SLOTS.items() if isinstance(tool, kind)), None)


def _guarded_class(guard: Guard, kind: type[Any]) -> type[Any]:
    """The agent's class, whose tools are gated when a turn asks for them: clones of the agent have it too."""

    async def get_all_tools(self: Any, run_context: Any) -> list[Any]:  # noqa: ANN401 - as the SDK's
        _raise_if_stopped(getattr(run_context, "usage", None))
        tools = await kind.get_all_tools(self, run_context)
        _TURN.set(str(self.name))
        return guard.served(tools)

    members = {"get_all_tools": get_all_tools, "_tollkeeper": guard, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), members)


def _raise_if_stopped(usage: object) -> None:
    refusal = getattr(usage, STOPPED, None)
    if isinstance(refusal, Refusal):
        raise Guard.stop(refusal, usage)


# --- calls of tools ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call of a tool, as it is going to be decided."""

    name: str
    tool: Any
    arguments: Any
    context: Any = None
    schema: Mapping[str, Any] | None = None
    id: str | None = None


def _ids(call: _Call) -> dict[str, str]:
    """What the SDK says of a call. A direct call has no context to say anything, or one that its caller made up."""
    config = getattr(call.context, "run_config", None)
    found = {
        "agent": getattr(getattr(call.context, "agent", None), "name", None) or _TURN.get(),
        "call": call.id or getattr(call.context, "tool_call_id", None),
        "session": getattr(config, "group_id", None),
        "run": getattr(config, "trace_id", None),
    }
    return {name: value for name, value in found.items() if isinstance(value, str) and value}


def _gated(guard: Guard, tool: Any, stored: Any) -> Any:  # noqa: ANN401 - as kept by each kind of tool
    """What runs the tool, behind the gate; `None` if it cannot be."""
    if isinstance(tool, (agents.Agent, RunConfig)):
        if isinstance(stored, Model):
            return guard.model(stored)
        return guard.provider(stored) if isinstance(stored, ModelProvider) else None
    if isinstance(tool, (LocalShellTool, ShellTool)):
        return _Executor(guard, tool, stored)
    if isinstance(tool, ApplyPatchTool):
        return _Editor(guard, tool, stored)
    if isinstance(tool, ComputerTool):
        # A factory makes its computer when a run begins, out of reach.
        return _Computer(guard, tool, stored) if isinstance(stored, (agents.Computer, agents.AsyncComputer)) else None
    return _Invoker(guard, tool, stored)


class _Gated:
    """What runs a tool, behind the gate. Attributes are those of what it stands for."""

    def __init__(self, guard: Guard, tool: Any, inner: Any, *, loose: bool = False) -> None:  # noqa: ANN401 - of any kind
        self._guard, self._tool, self._inner = guard, tool, inner
        # Made by `install` for a tool that keeps its own: never stored in one, so that it ends with `uninstall`.
        self._loose = loose

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as it says
        if name in NOT_PASSED_ON:
            raise AttributeError(name)
        return getattr(self._inner, name)


class _Invoker(_Gated):
    """Invokes a function tool, or one that takes a text."""

    def _stands_for(self) -> type[Any]:
        # The SDK looks at the class of what it has made itself before it asks whether a call needs an approval, and
        # for less than that it would ask less.
        return _kind(self._inner) if hasattr(self._inner, "prepare_arguments") else _Invoker

    # Whoever asks the object for its class gets that one; whoever asks `type` does not.
    __class__ = cast("Any", property(_stands_for))

    @property
    def __signature__(self) -> inspect.Signature:
        """The one of what it stands for: by it the SDK chooses the context that it passes."""
        return inspect.signature(self._inner)

    def __agents_bind_function_tool__(self, tool: Any) -> _Invoker:  # noqa: ANN401 - a function tool
        """A copy of the tool asks for this: it is gated too, under its own name."""
        bind = getattr(self._inner, "__agents_bind_function_tool__", None)
        inner = bind(tool) if callable(bind) else self._inner
        if inner is self._inner and tool is self._tool:
            return self
        return _Invoker(self._guard, tool, inner, loose=self._loose)

    async def __call__(self, context: Any, text: str) -> Any:  # noqa: ANN401 - as the SDK's
        read = self._read(text)
        if isinstance(read, Refusal):
            if self._guard.crossing.halt:
                raise self._guard.stop(read, getattr(context, "usage", None))
            return read.text
        passed_on = context is not None and _CALLED.get() is context
        if passed_on and self._guard.crossing.admitted(read.name, read.arguments):
            return await self._inner(context, self._text(read.arguments))
        passage = await self._guard.decide(dataclasses.replace(read, context=context))
        if isinstance(passage, Refusal):
            return passage.text
        if getattr(context, "_function_tool_arguments", None) is not None:
            # Arguments that were made out of the text before it was decided on: they are made anew.
            context._function_tool_arguments = None  # noqa: SLF001 - the SDK has no other way to say it
        with passage, _called(context):
            output = await self._inner(context, self._text(passage.arguments))
            if getattr(context, "_function_tool_default_failure_handled", False):
                passage.over(failed=True)
        # An agent below that was stopped: what ran it has made a text of that.
        _raise_if_stopped(getattr(context, "usage", None))
        return output

    def _read(self, text: str) -> _Call | Refusal:
        name = str(getattr(self._tool, "qualified_name", None) or self._tool.name)
        if not isinstance(self._tool, FunctionTool):
            return _Call(name, self._tool, {"input": text}, schema=TEXT_INPUT)
        try:
            arguments = strict_json(text)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not let the call through
            reason = f"the arguments cannot be read as one JSON object: {_reason(error)}"
            log.warning("tool call `%s`: %s", name, reason)
            return Refusal("input.unrepresentable", f"Denied (input.unrepresentable): {reason}", None)
        return _Call(name, self._tool, arguments, schema=self._tool.params_json_schema)

    def _text(self, arguments: Any) -> str:  # noqa: ANN401 - plain data
        return json.dumps(arguments) if isinstance(self._tool, FunctionTool) else str(arguments["input"])


@contextlib.contextmanager
def _called(context: object) -> Iterator[None]:
    token = _CALLED.set(context)
    try:
        yield
    finally:
        # In another context the variable is not ours to reset.
        with contextlib.suppress(ValueError):
            _CALLED.reset(token)


class _Executor(_Gated):
    """Runs the commands of a shell tool."""

    async def __call__(self, request: Any) -> Any:  # noqa: ANN401 - a request of the SDK
        own = copy.deepcopy(request.data)
        call = _Call(self._tool.name, self._tool, own.action, request.ctx_wrapper, id=own.call_id)
        passage = await self._guard.decide(call)
        if isinstance(passage, Refusal):
            return passage.text
        own.action = passage.arguments
        with passage:
            output = self._inner(dataclasses.replace(request, data=own))
            return await output if inspect.isawaitable(output) else output


class _Editor(_Gated):
    """Changes files for an apply_patch tool."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as it says
        found = getattr(self._inner, name)
        return functools.partial(self._edit, name, found) if name in EDITS else found

    async def _edit(self, kind: str, edit: Callable[[Any], Any], operation: Any) -> Any:  # noqa: ANN401 - of the SDK
        own = copy.copy(operation)
        # By what is called, not by what the operation says of itself. Of newer versions: where a file is moved to.
        arguments = {"type": kind, "path": own.path, "diff": own.diff, "move_to": getattr(own, "move_to", None)}
        arguments = {name: value for name, value in arguments.items() if value is not None}
        passage = await self._guard.decide(_Call(self._tool.name, self._tool, arguments, own.ctx_wrapper))
        if isinstance(passage, Refusal):
            return ApplyPatchResult(status="failed", output=passage.text)
        with passage:
            result = edit(own)
            return await result if inspect.isawaitable(result) else result


class _Computer(_Gated):
    """Does what a computer tool asks for; looking at the screen and waiting are not decided."""

    def _stands_for(self) -> type[Any]:
        # The SDK asks whether it is a computer.
        return _kind(self._inner)

    # Whoever asks the object for its class gets that one; whoever asks `type` does not.
    __class__ = cast("Any", property(_stands_for))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as it says
        found = getattr(self._inner, name)
        return self._acting(name, found) if name in ACTIONS else found

    def _acting(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        shape = inspect.signature(act)

        @functools.wraps(act)
        async def acting(*args: Any, **named: Any) -> Any:  # noqa: ANN401 - as the computer's
            bound = shape.bind(*args, **named)
            arguments = {"action": name, **bound.arguments}
            passage = await self._guard.decide(_Call(self._tool.name, self._tool, arguments))
            if isinstance(passage, Refusal):
                # An action has no output but the next picture: there is no refusal that a model could read.
                raise self._guard.stop(passage, None)
            with passage:
                bound.arguments = {key: value for key, value in passage.arguments.items() if key != "action"}
                result = act(*bound.args, **bound.kwargs)
                return await result if inspect.isawaitable(result) else result

        return acting


class _Slot:
    """Stands in a tool's class for what runs its tools: whoever asks a tool for it gets it behind the gate."""

    def __init__(self, guard: Guard, name: str, default: object) -> None:
        self._guard, self._name, self._default = guard, name, default

    def __get__(self, tool: Any, owner: type[Any] | None = None) -> Any:  # noqa: ANN401 - as kept by each kind of tool
        if tool is None or self._name not in _fields(tool):
            if self._default is _MISSING:
                raise AttributeError(self._name)
            return self._default
        stored: Any = _fields(tool)[self._name]
        if stored is None or _kind(stored) in GATED:
            return stored
        # The same each time: the SDK compares what it finds with what it found before.
        place = f"_tollkeeper_{self._name}"
        kept: Any = _fields(tool).get(place)
        if (
            kept is not None
            and kept[0] is stored
            and kept[1] is self._guard
            and getattr(kept[2], "_tool", tool) is tool
        ):
            return kept[2]
        gated = _gated(self._guard, tool, stored)
        if gated is None:
            return stored
        gated._loose = True  # noqa: SLF001 - ours
        _fields(tool)[place] = (stored, self._guard, gated)
        return gated

    def __set__(self, tool: Any, value: Any) -> None:  # noqa: ANN401 - as above
        loose = _kind(value) in GATED and value._loose  # noqa: SLF001 - ours
        _fields(tool)[self._name] = value._inner if loose else value  # noqa: SLF001 - ours

    def __delete__(self, tool: Any) -> None:  # noqa: ANN401 - as above
        del _fields(tool)[self._name]


# --- arguments ------------------------------------------------------------------------------------------------------


def strict_json(text: str) -> dict[str, Any]:
    """Reads arguments, where there is one way to read them; an empty text is an empty object, as for the SDK.

    Raises:
        ValueError: It is no JSON object, a key is there twice, or a number has no value.
        RecursionError: It nests too deep.
    """
    if not text:
        return {}
    read: Any = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
    if not _is(read, dict):
        message = "it is no object"
        raise _UnclearError(message)
    # Half of a pair of surrogates is no text; the gate and the tool would see different replacements of it.
    json.dumps(read, ensure_ascii=False).encode()
    arguments: dict[str, Any] = read
    return arguments


class _UnclearError(ValueError):
    """Why a text is refused, in words that hold nothing of it."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        message = "a key is there twice"
        raise _UnclearError(message)
    return found


def _no_number(_: str) -> float:
    message = "a number has no value"
    raise _UnclearError(message)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _reason(error: Exception) -> str:
    if isinstance(error, (_UnclearError, json.JSONDecodeError)):
        return str(error)
    return type(error).__name__


# --- models ---------------------------------------------------------------------------------------------------------


class _GuardedProvider(ModelProvider):
    """Gives models behind the gate."""

    def __init__(self, guard: Guard, inner: ModelProvider) -> None:
        self._guard, self._inner, self._loose = guard, inner, False

    def kept(self) -> _GuardedProvider:
        """The same, to be kept after `uninstall` too."""
        return _GuardedProvider(self._guard, self._inner) if self._loose else self

    def get_model(self, model_name: str | None) -> Model:
        """The model of that name."""
        model = self._inner.get_model(model_name)
        return model if isinstance(model, _GuardedModel) else _GuardedModel(self._guard, model, model_name)

    async def aclose(self) -> None:
        """Closes the provider, where its version can be closed."""
        close = getattr(self._inner, "aclose", None)
        if close is not None:
            await close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the provider's
        if name in NOT_PASSED_ON:
            raise AttributeError(name)
        return getattr(self._inner, name)


class _GuardedModel(Model):
    """One decision and one hold for each call, settled with the usage that the response reports."""

    def __init__(self, guard: Guard, inner: Model, name: str | None) -> None:
        self._guard, self._inner, self._name, self._loose = guard, inner, name, False

    def kept(self) -> _GuardedModel:
        """The same, to be kept after `uninstall` too."""
        return _GuardedModel(self._guard, self._inner, self._name) if self._loose else self

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the model's
        if name in NOT_PASSED_ON:
            raise AttributeError(name)
        return getattr(self._inner, name)

    async def get_response(  # noqa: PLR0913, PLR0917 - as many as the SDK's
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002, ANN401 - the SDK's name, and its items
        model_settings: Any,  # noqa: ANN401 - as above
        tools: list[Any],
        output_schema: Any,  # noqa: ANN401 - as above
        handoffs: list[Any],
        tracing: Any,  # noqa: ANN401 - as above
        **named: Any,  # noqa: ANN401 - as above
    ) -> ModelResponse:
        """Lets the call on, or raises `Denied` out of the run."""
        tools = self._guard.served(tools)
        texts = _texts(system_instructions, input, tools, handoffs, output_schema)
        passage = await self._entered(model_settings, texts)
        try:
            response = await self._inner.get_response(
                system_instructions, input, model_settings, tools, output_schema, handoffs, tracing, **named
            )
        except BaseException as error:
            passage.over(error)
            raise
        usage = response.usage
        # Without requests it is what the SDK puts where a provider reports nothing.
        self._settle(passage, response.output, usage if usage.requests or usage.total_tokens else None)
        return response

    async def stream_response(  # noqa: PLR0913, PLR0917 - as above
        self,
        system_instructions: str | None,
        input: Any,  # noqa: A002, ANN401 - as above
        model_settings: Any,  # noqa: ANN401 - as above
        tools: list[Any],
        output_schema: Any,  # noqa: ANN401 - as above
        handoffs: list[Any],
        tracing: Any,  # noqa: ANN401 - as above
        **named: Any,  # noqa: ANN401 - as above
    ) -> AsyncGenerator[Any, None]:
        """As `get_response`; a stream that is left is settled with what has appeared."""
        tools = self._guard.served(tools)
        texts = _texts(system_instructions, input, tools, handoffs, output_schema)
        passage = await self._entered(model_settings, texts)
        events: AsyncIterator[Any] = self._inner.stream_response(
            system_instructions, input, model_settings, tools, output_schema, handoffs, tracing, **named
        )
        try:
            async for event in events:
                _appeared(passage, event)
                if getattr(event, "type", None) in LAST_EVENTS:
                    self._settle(passage, event.response.output, event.response.usage)
                yield event
        except BaseException as error:
            passage.over(error)
            raise
        finally:
            passage.over()
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()

    def get_retry_advice(self, request: Any) -> Any:  # noqa: ANN401 - as the SDK's
        """What the model says; of newer versions."""
        advise = getattr(self._inner, "get_retry_advice", None)
        return None if advise is None else advise(request)

    async def close(self) -> None:
        """Closes the model, where its version can be closed."""
        close = getattr(self._inner, "close", None)
        if close is not None:
            await close()

    async def _cleanup_on_run_end(self, owner: object) -> None:
        cleanup = getattr(self._inner, "_cleanup_on_run_end", None)
        if cleanup is not None:
            await cleanup(owner)

    async def _entered(self, settings: Any, texts: Iterator[str]) -> ModelPassage:  # noqa: ANN401 - as above
        name = getattr(self._inner, "model", None) or self._name or "unknown"
        try:
            trace = get_current_trace()
            found = {
                "agent": _TURN.get(),
                "session": getattr(trace, "group_id", None),
                "run": getattr(trace, "trace_id", None),
            }
            # The SDK's own word for a trace that is off.
            ids = {key: value for key, value in found.items() if isinstance(value, str) and value and value != "no-op"}
            passage = await self._guard.crossing.amodel(str(name), texts, _most(settings), ids)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not let the call through
            passage = failure(f"model call `{name}`", error)
        if isinstance(passage, Refusal):
            raise passage.denied()
        return passage

    def _settle(self, passage: ModelPassage, output: Iterable[Any] | None, usage: Any) -> None:  # noqa: ANN401 - of a response
        self._guard.crossing.asked(passage, (getattr(item, "call_id", None) for item in output or ()))
        details = getattr(usage, "input_tokens_details", None)
        passage.settle(
            prompt=getattr(usage, "input_tokens", None),
            completion=getattr(usage, "output_tokens", None),
            cached=getattr(details, "cached_tokens", None),
        )


def _appeared(passage: ModelPassage, event: Any) -> None:  # noqa: ANN401 - of a stream
    delta = getattr(event, "delta", None)
    refusal = passage.streamed(delta) if isinstance(delta, str) and delta else None
    if refusal is not None:
        raise refusal.denied()


def _most(settings: Any) -> int | None:  # noqa: ANN401 - ModelSettings
    """The most tokens of a completion, also where it is passed on by another name."""
    stated = [settings.max_tokens]
    extra: Any
    for extra in (getattr(settings, "extra_args", None), getattr(settings, "extra_body", None)):
        if _is(extra, Mapping):
            stated += [extra.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    return max((number for number in stated if isinstance(number, int)), default=None)


def _shown(tool: Any) -> str:  # noqa: ANN401 - a tool of any kind
    return f"{tool.name} {getattr(tool, 'description', '')} {getattr(tool, 'params_json_schema', '')}"


def _texts(
    instructions: str | None,
    items: Any,  # noqa: ANN401 - a text or items of the SDK
    tools: Iterable[Any],
    handoffs: Iterable[Any],
    output_schema: Any,  # noqa: ANN401 - as above
) -> Iterator[str]:
    """What the model is going to read: instructions, items, and the tools with their schemas."""
    yield instructions or ""
    if isinstance(items, str):
        yield items
    else:
        yield from (str(item) for item in items)
    for tool in tools:
        yield described(tool, functools.partial(_shown, tool))
    for handoff in handoffs:
        yield f"{handoff.tool_name} {handoff.tool_description} {handoff.input_json_schema}"
    if output_schema is not None and not output_schema.is_plain_text():
        yield str(output_schema.json_schema())


GATED: Final[tuple[type[Any], ...]] = (_Invoker, _Executor, _Editor, _Computer, _GuardedModel, _GuardedProvider)
