"""What all adapters share: how the calls of one agent runtime cross a gate.

A host module turns its runtime's events into `Crossing.enter` and `Crossing.model` and a `Refusal` back into the
runtime's own refusal; everything that must be the same whatever the runtime is here: the copy that is decided on and
that runs, what a refusal reads like, who ends what was held, which errors of ours deny.

It refuses to let anything through that the gate did not allow: an exception of ours, of whatever kind, is a refusal.
It decides nothing itself and imports no runtime.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import json
import logging
import math
import os
import pathlib
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from tollkeeper import _native
from tollkeeper._native import EntityUid
from tollkeeper.errors import Denied, TollkeeperError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tollkeeper.gate import Decision, Gate, ModelCall

__all__ = ["Adapter", "Crossing", "ModelPassage", "Passage", "Refusal", "failure", "refusal_text"]

log = logging.getLogger("tollkeeper.adapters")

# Ids of calls whose model call is remembered, so that a tool call names it as what led to it.
ASKED_MAX: Final = 4096
# Far more than any model says, and far less than what overflows.
OUTPUT_TOKENS_MAX: Final = 1 << 40
# Bytes of text that make a token, at least: English takes four, code and most other scripts three.
BYTES_PER_TOKEN: Final = 3
# Characters that make a token on average, for text that has appeared and is settled by the host's own count later.
CHARACTERS_PER_TOKEN: Final = 4
# Names and separators of a message that a model reads and that its text does not show.
TOKENS_PER_PART: Final = 4
# The owner in a registration that only brings a schema to a tool of the file, whose own owner stays.
UNOWNED: Final = 'Mcp::"unowned"'
CANCELLATIONS: Final = ("CancelledError", "KeyboardInterrupt", "GeneratorExit")
PLAIN: Final = (str, int, float, bool, type(None))

# What the hook has let through, for the choke point below it. A task or thread that runs a call has it in its own copy.
_ADMITTED: ContextVar[Passage | None] = ContextVar("tollkeeper_admitted", default=None)


@runtime_checkable
class Adapter(Protocol):
    """What each host module's `Guard` offers beside the hooks of its runtime.

    A guard is made for one gate: `Guard(gate, resource=..., halt=..., ...)` takes what `Crossing` takes.
    """

    crossing: Crossing

    def install(self) -> None:
        """Gates every tool of the runtime in this process at the point that all ways to call it share.

        Covers what no hook sees: direct calls, agents without the guard's hooks, arguments that a hook further in
        changes after the decision.

        Raises:
            ConfigError: The version is not supported, or the runtime's code is not what it was tested with.
            RuntimeError: Another guard is installed.
        """

    def uninstall(self) -> None:
        """Puts the runtime back as it was. Nothing if it is not installed."""


class Refusal:
    """A call that must not run: what the host's own refusal says."""

    __slots__ = ("code", "decision", "text")

    def __init__(self, code: str, text: str, decision: Decision | None) -> None:
        self.code, self.text, self.decision = code, text, decision

    def denied(self) -> Denied:
        """The same as an exception, for hosts and callers that have no other refusal."""
        return Denied(self.decision, self.code, self.text)


def refusal_text(decision: Decision) -> str:
    """What a model reads of a denial: the stable code, the reason, and when another try makes sense."""
    text = f"Denied ({decision.code}): {decision.reason}"
    after = decision.retry_after
    return text if after is None else f"{text} Try again in {max(after, 0.001):.3g} s."


def _refused(decision: Decision) -> Refusal:
    return Refusal(decision.code, refusal_text(decision), decision)


def failure(what: str, error: BaseException) -> Refusal:
    """An error of ours: nothing runs, and the log says why. The text holds no value of the arguments.

    Args:
        what: What was asked for, such as ``tool call `search` ``.
        error: What was raised.
    """
    log.error("the gate failed at %s; the call was refused", what, exc_info=error)
    name = type(error).__name__
    reason = f"the gate failed ({name}) and nothing was done; this is no fault of the arguments, tell the operator"
    code = error.code if isinstance(error, TollkeeperError) else "internal.panic"
    return Refusal(code, f"Denied ({code}): {reason}", None)


class Passage:
    """An allowed tool call, until it is over.

    `arguments` is a copy nobody else has, made before the decision: it is what has to run. Used as a context manager
    around the call, it lets exactly that through the choke point, ends what is held and records the outcome.
    """

    __slots__ = ("_begun", "_decided", "_gate", "_left", "_over", "_scope", "_token", "arguments", "decision", "name")

    def __init__(self, name: str, arguments: Any, decided: Any, decision: Decision, gate: Gate) -> None:  # noqa: ANN401 - what the host hands over
        self.name, self.arguments, self.decision = name, arguments, decision
        # Apart from what runs: the host gives that to others, who may change it.
        self._decided, self._gate, self._scope = decided, gate, _scope()
        self._begun, self._over = time.monotonic(), False
        # Taken by the one call that it is for: of threads that take at the same time, one gets it.
        self._left = [True]
        self._token: Any = None

    def covers(self, gate: Gate, name: str, arguments: Any) -> bool:  # noqa: ANN401 - as above
        """Whether this call is the one that was let through, by this gate and in this scope; true once."""
        if not self._left or self._over or name != self.name or gate is not self._gate or _scope() is not self._scope:
            return False
        if not same(plain(arguments), self._decided):
            return False
        try:
            return self._left.pop()
        except IndexError:
            return False

    def taken(self) -> Self:
        """The same, for a choke point that runs the call itself: what the call calls in turn is not covered."""
        self._left.clear()
        return self

    def over(self, error: BaseException | None = None, *, failed: bool = False, cancelled: bool = False) -> None:
        """Ends what was reserved and records the outcome; later calls do nothing.

        Args:
            error: What was raised.
            failed: The host says that the tool failed, and swallowed what was raised.
            cancelled: What was raised is no error but the host's way to leave the call.
        """
        if self._over:
            return
        self._over = True
        status, kind = ("error", None) if failed else ("ok", None)
        if error is not None:
            kind = type(error).__name__
            status = "cancelled" if cancelled or kind in CANCELLATIONS else "error"
        duration_ms = max(int((time.monotonic() - self._begun) * 1000), 0)
        # The tool has run: its caller is told what it returned, and the next check that the log is broken.
        with contextlib.suppress(TollkeeperError):
            self.decision._finish(status, kind, duration_ms)  # noqa: SLF001 - the native half of the gate

    def __enter__(self) -> Self:
        self._token = _ADMITTED.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # In another context the variable is not ours to reset: the passage is used or over there.
        with contextlib.suppress(ValueError):
            _ADMITTED.reset(self._token)
        self.over(error)


class ModelPassage:
    """An allowed model call, until its usage is known."""

    __slots__ = ("_call", "_left", "_over", "decision")

    def __init__(self, call: ModelCall, max_tokens: int) -> None:
        self._call, self._left, self._over = call, max_tokens, False
        self.decision = call.decision

    def streamed(self, text: str) -> Refusal | None:
        """Counts text that has appeared in a stream; a refusal says that it has to stop.

        What the text comes to is an estimate, so it counts up to what is held and never stops a stream by itself; what
        does is a revocation, or a hold that grows as it is used and finds no more room.
        """
        tokens = min(max(len(text) // CHARACTERS_PER_TOKEN, 1), self._left)
        self._left -= tokens
        if self._over or self._call.charge(tokens):
            return None
        reason = "the stream was stopped: what pays for it has no more room, or who asked for it was revoked"
        return Refusal("budget.exhausted", f"Denied (budget.exhausted): {reason}", self.decision)

    def settle(self, *, prompt: int | None, completion: int | None, cached: int | None = None) -> None:
        """Ends the call with what the host reports; what it does not report counts as `ModelCall` says.

        Args:
            prompt: Tokens of the prompt, cached ones included.
            completion: Tokens that were generated.
            cached: Tokens of the prompt that came from a cache.
        """
        if self._over:
            return
        if prompt is None and completion is None:
            self.over()
            return
        self._over = True
        try:
            within = max(min(cached or 0, prompt or 0), 0)
            self._call.settle(prompt=prompt, cached=within, completion=completion)
        except (TollkeeperError, TypeError, ValueError) as error:
            # What the host reports cannot be counted: the hold ends in full, which is never too little.
            log.error("usage that cannot be settled: %s", error)  # noqa: TRY400 - the error says it all
            self._call.__exit__(None, None, None)

    def over(self, error: BaseException | None = None) -> None:
        """Ends the call without a report: what was charged counts, everything if nothing was."""
        if self._over:
            return
        self._over = True
        with contextlib.suppress(TollkeeperError):
            self._call.__exit__(None if error is None else type(error), error, None)

    def __del__(self) -> None:
        # A stream that its consumer has left: nobody is told of that but the collector.
        self.over()


class Crossing:
    """How the calls of one runtime cross one gate.

    Args:
        gate: The gate.
        runtime: The host module's name, for the audit log.
        resource: Who owns tools that ``tollkeeper.toml`` does not name, such as ``Mcp::"crm"``, or a function from the
            tool's name to that. Without it only tools of the file can be called.
        halt: A denied tool call stops the run, with the host's hard stop, instead of telling the model.
        models: Model calls are decided and paid for too.
        max_output_tokens: What a model call holds where the host states no limit of its own, in tokens.
        timeout: Seconds that a call may wait for room in the audit log and for its record.
        approval_timeout: Seconds to wait for an approval that a call needs; without it the call is refused, and the
            refusal says that it needs one.

    Raises:
        TypeError: An option is of another type.
        ValueError: An option cannot be used.
    """

    def __init__(  # noqa: PLR0913 - as many as a guard has
        self,
        gate: Gate,
        runtime: str,
        *,
        resource: str | Callable[[str], str] | None = None,
        halt: bool = False,
        models: bool = True,
        max_output_tokens: int = 4000,
        timeout: float = 1.0,
        approval_timeout: float | None = None,
    ) -> None:
        _refuse_options(gate, resource, halt=halt, models=models, most=max_output_tokens)
        _refuse_seconds("timeout", timeout, least=0.0)
        if approval_timeout is not None:
            _refuse_seconds("approval_timeout", approval_timeout, least=0.001)
        self.gate, self.runtime, self.halt, self.models = gate, runtime, halt, models
        self.max_output_tokens, self.timeout, self.approval_timeout = max_output_tokens, timeout, approval_timeout
        self._resource = resource
        self._seen: dict[str, tuple[object, str | None]] = {}
        self._asked: dict[str, str] = {}
        self._registering, self._opener = threading.Lock(), os.getpid()

    # --- tools ----------------------------------------------------------------------------------------------------

    def see(self, name: str, definition: object, schema: Callable[[], Mapping[str, Any] | None]) -> None:
        """Registers a tool as the runtime describes it; nothing where this definition was seen before.

        Args:
            name: As the model calls it.
            definition: The host's object, which is kept: another one may be another definition.
            schema: Makes the JSON Schema of its arguments.

        Raises:
            TollkeeperError: The gate cannot take it.
        """
        known = self._seen.get(name)
        if known is not None and known[0] is definition:
            return
        described = schema()
        text = None if described is None else json.dumps(described, sort_keys=True)
        # In a child of a fork nobody would ever let go of the lock, and the gate registers nothing.
        with self._registering if self._opener == os.getpid() else contextlib.nullcontext():
            known = self._seen.get(name)
            if known is None or known[1] != text:
                owner = self._resource(name) if callable(self._resource) else self._resource
                if owner is not None or name in self.gate.tools:
                    # What the file says of a tool stays; without a schema there, it gets this one.
                    self.gate.register(name, owner if owner is not None else UNOWNED, schema=described)
            self._seen[name] = (definition, text)

    def enter(self, name: str, arguments: Any, asserted: Mapping[str, str]) -> Passage | Refusal:  # noqa: ANN401 - as the host has them
        """Decides a tool call, and may wait. Never raises but for what is not an `Exception`.

        Args:
            name: The tool.
            arguments: What would run; it is copied first.
            asserted: Ids that the host gives: `agent`, `session`, `run`, `call`.
        """
        try:
            copied = snapshot(arguments)
            decided = plain(copied)
            decision = self._wait_check(name, decided, asserted)
            return Passage(name, copied, decided, decision, self.gate) if decision.allowed else self._refused(decision)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong here must not let the call through
            return failure(f"tool call `{name}`", error)

    async def aenter(self, name: str, arguments: Any, asserted: Mapping[str, str]) -> Passage | Refusal:  # noqa: ANN401 - as above
        """As `enter`, for event loops."""
        try:
            copied = snapshot(arguments)
            decided = plain(copied)
            decision = await self.gate.acheck(
                name,
                decided,
                parent=self._asked.get(asserted.get("call", "")),
                timeout=self.timeout,
                approval_timeout=self.approval_timeout,
                asserted={"runtime": self.runtime, **asserted},
            )
            return Passage(name, copied, decided, decision, self.gate) if decision.allowed else self._refused(decision)
        except Exception as error:  # noqa: BLE001 - as above
            return failure(f"tool call `{name}`", error)

    def _wait_check(self, name: str, arguments: Any, asserted: Mapping[str, str]) -> Decision:  # noqa: ANN401 - as above
        parent, ids = self._asked.get(asserted.get("call", "")), {"runtime": self.runtime, **asserted}
        decision = self.gate.check_blocking(name, arguments, parent=parent, timeout=self.timeout, asserted=ids)
        if self.approval_timeout is None or decision.code not in {"approval.required", "approval.expired"}:
            return decision
        with contextlib.suppress(TimeoutError):
            self.gate.approval(decision, timeout=self.approval_timeout).wait(self.approval_timeout)
        # Whatever was answered: the check says what came of it.
        return self.gate.check_blocking(name, arguments, parent=decision.id, timeout=self.timeout, asserted=ids)

    def _refused(self, decision: Decision) -> Refusal:
        refusal = _refused(decision)
        if refusal.code == "input.unknown_tool" and self._resource is None:
            refusal.text += "\nOr give the guard `resource=`, which then owns all tools that the file does not name."
        return refusal

    def admitted(self, name: str, arguments: Any) -> bool:  # noqa: ANN401 - as above
        """Whether a hook has let exactly this call through; true once. For the choke point."""
        passage = _ADMITTED.get()
        return passage is not None and passage.covers(self.gate, name, arguments)

    # --- models ---------------------------------------------------------------------------------------------------

    def model(
        self, model: str, texts: Iterable[str], max_tokens: int | None, asserted: Mapping[str, str]
    ) -> ModelPassage | Refusal:
        """Decides a model call and holds its worst case.

        Args:
            model: Its name in the price table.
            texts: Everything that the model is going to read.
            max_tokens: The most tokens of the completion, if the host states it.
            asserted: As in `enter`.
        """
        try:
            most = self.max_output_tokens if max_tokens is None else max_tokens
            call = self._model_call(model, texts, most, asserted)
            call.__enter__()
            return ModelPassage(call, most)
        except Denied as denied:
            return _denied(denied)
        except Exception as error:  # noqa: BLE001 - as above
            return failure(f"model call `{model}`", error)

    async def amodel(
        self, model: str, texts: Iterable[str], max_tokens: int | None, asserted: Mapping[str, str]
    ) -> ModelPassage | Refusal:
        """As `model`, for event loops."""
        try:
            most = self.max_output_tokens if max_tokens is None else max_tokens
            call = self._model_call(model, texts, most, asserted)
            await call.__aenter__()
            return ModelPassage(call, most)
        except Denied as denied:
            return _denied(denied)
        except Exception as error:  # noqa: BLE001 - as above
            return failure(f"model call `{model}`", error)

    def _model_call(self, model: str, texts: Iterable[str], max_tokens: int, asserted: Mapping[str, str]) -> ModelCall:
        return self.gate.model_call(
            model=model,
            prompt_tokens=estimated_tokens(texts),
            max_tokens=max_tokens,
            asserted={"runtime": self.runtime, **asserted},
        )

    def asked(self, passage: ModelPassage, calls: Iterable[str | None]) -> None:
        """Remembers that a model's answer asks for these tool calls, by their ids."""
        for call in calls:
            if call:
                self._asked[call] = passage.decision.id
        while len(self._asked) > ASKED_MAX:
            # Another thread may add or take one at this very moment: then once more.
            with contextlib.suppress(RuntimeError, StopIteration):
                self._asked.pop(next(iter(self._asked)), None)


def _scope() -> object:
    """The run that is in force here."""
    from tollkeeper.gate import _CURRENT  # noqa: PLC0415 - as below # pyright: ignore[reportPrivateUsage]

    return _CURRENT.get()


def _refuse_options(gate: object, resource: object, *, halt: object, models: object, most: object) -> None:
    """What a guard was given, before the first call of an agent fails for it."""
    if not isinstance(gate, _native.Gate):
        message = f"gate is a Gate, not a {type(gate).__name__}; open one with Gate.open(...)"
        raise TypeError(message)
    if isinstance(resource, str):
        try:
            EntityUid.parse(resource)
        except TollkeeperError as error:
            message = f"resource={resource!r}: {error}; write a uid such as 'Mcp::\"crm\"'"
            raise ValueError(message) from None
    elif resource is not None and not callable(resource):
        message = f"resource is a uid as text or a function, not a {type(resource).__name__}"
        raise TypeError(message)
    for name, flag in (("halt", halt), ("models", models)):
        if not isinstance(flag, bool):
            message = f"{name} is True or False, not {flag!r}"
            raise TypeError(message)
    if type(most) is not int:
        message = f"max_output_tokens is an int, not {most!r}"
        raise TypeError(message)
    if not 1 <= most <= OUTPUT_TOKENS_MAX:
        message = f"max_output_tokens={most}, not 1 to {OUTPUT_TOKENS_MAX}"
        raise ValueError(message)


def _refuse_seconds(name: str, seconds: object, least: float) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        message = f"{name} is a number of seconds, not {seconds!r}"
        raise TypeError(message)
    if not least <= seconds < math.inf:
        message = f"{name}={seconds}, not {least} or more seconds"
        raise ValueError(message)


def _denied(denied: Denied) -> Refusal:
    from tollkeeper.gate import Decision  # noqa: PLC0415 - importing an adapter's base needs no gate

    if isinstance(denied.decision, Decision):
        return _refused(denied.decision)
    return Refusal(denied.code, f"Denied ({denied.code}): {denied}", None)


def described(tool: object, describe: Callable[[], str]) -> str:
    """What a model reads of a tool, made once for each tool object: nothing but a count of tokens comes of it.

    Args:
        tool: The host's object; it is not kept alive.
        describe: Makes the text.
    """
    known = _DESCRIBED.get(id(tool))
    if known is not None and known[0]() is tool:
        return known[1]
    text = describe()
    key = id(tool)
    # An object that cannot be watched might be followed by another one in its place.
    with contextlib.suppress(TypeError):
        _DESCRIBED[key] = weakref.ref(tool, lambda _: _DESCRIBED.pop(key, None)), text
    return text


_DESCRIBED: dict[int, tuple[weakref.ref[object], str]] = {}


def estimated_tokens(texts: Iterable[str]) -> int:
    """A cautious count of the tokens of a prompt: a third of its bytes, and some for each part.

    No host knows the count before the call; the hold is settled with what the host reports afterwards.
    """
    total = parts = 0
    for text in texts:
        parts += 1
        total += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return total // BYTES_PER_TOKEN + parts * TOKENS_PER_PART


# --- arguments ----------------------------------------------------------------------------------------------------


def snapshot(value: Any) -> Any:  # noqa: ANN401 - arguments of any host
    """A copy that shares nothing with the original that could change.

    Plain containers are copied here, everything else by `copy.deepcopy`; a container that holds itself stays one.
    """
    return _snapshot(value, {})


def _snapshot(value: Any, done: dict[int, Any]) -> Any:  # noqa: ANN401 - as above
    kind = _kind(value)
    if kind in PLAIN:
        return value
    if id(value) in done:
        return done[id(value)]
    if kind is dict:
        fields: dict[Any, Any] = {}
        done[id(value)] = fields
        for key, item in value.items():
            fields[key] = item if type(item) in PLAIN else _snapshot(item, done)
        return fields
    if kind is list:
        items: list[Any] = []
        done[id(value)] = items
        items.extend(item if type(item) in PLAIN else _snapshot(item, done) for item in value)
        return items
    import copy  # noqa: PLC0415 - most calls have plain arguments

    return copy.deepcopy(value)


def plain(value: Any) -> Any:  # noqa: ANN401 - as above
    """The same as plain data, as policies see it; what has no such form is left, and the check refuses it.

    Models and dataclasses are objects of their fields, enumerations their values; dates, paths, ids and decimals are
    their text; sets are lists in the order of their text.
    """
    kind = _kind(value)
    if kind in PLAIN:
        return value
    if kind is dict:
        fields: dict[Any, Any] = value
        return {key: item if type(item) in PLAIN else plain(item) for key, item in fields.items()}
    if kind is list or kind is tuple:
        items: Iterable[Any] = value
        return [item if type(item) in PLAIN else plain(item) for item in items]
    return _unusual(value)


def _unusual(value: Any) -> Any:  # noqa: ANN401, PLR0911 - one answer for each kind of thing
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if hasattr(_kind(value), "__dataclass_fields__"):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(_kind(value), "model_dump"):
        return _of_model(value)
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, decimal.Decimal, pathlib.PurePath)):
        return str(value)
    if _is(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if _is(value, set, frozenset):
        return sorted((plain(item) for item in value), key=repr)
    if _is(value, list, tuple):
        return [plain(item) for item in value]
    if isinstance(value, str):
        # A str of its own class: its text, not what its methods make of it.
        return str.__str__(value)
    return value


def _of_model(value: Any) -> Any:  # noqa: ANN401 - as above
    """What code that has the model reads of it, under the names that its schema shows; not what it says of itself.

    A model's own dump may leave fields out, or mask them for logs.
    """
    kind: Any = _kind(value)
    if getattr(kind, "__pydantic_root_model__", False):
        return plain(value.root)
    names = {name: field.validation_alias or field.alias or name for name, field in kind.model_fields.items()}
    found = {
        alias if isinstance(alias, str) else name: plain(getattr(value, name))
        for name, alias in names.items()
        if hasattr(value, name)
    }
    more: dict[str, Any] = value.model_extra or {}
    return {**{key: plain(item) for key, item in more.items()}, **found}


def _kind(value: Any) -> type:  # noqa: ANN401 - as above
    """As `type`, of which the type checkers conclude nothing."""
    return type(value)  # pyright: ignore[reportUnknownVariableType] - the class of anything


def _is(value: Any, *kinds: type) -> bool:  # noqa: ANN401 - as above
    """As `isinstance`, after which the value is still whatever it was to the type checkers."""
    return isinstance(value, kinds)


def same(left: Any, right: Any) -> bool:  # noqa: ANN401 - as above
    """Whether two plain values are equal with their types: 1 is not True, and not 1.0."""
    kind = _kind(left)
    if kind is not _kind(right):
        return False
    if kind is dict:
        return left.keys() == right.keys() and all(same(item, right[key]) for key, item in left.items())
    if kind is list:
        return len(left) == len(right) and all(map(same, left, right))
    # A NaN is no other NaN: such a call is decided again.
    return bool(left == right)
