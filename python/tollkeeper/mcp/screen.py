"""Decides the messages between an MCP client and an MCP server, one at a time.

What calls a tool, reads a resource, gets a prompt or asks for a model's answer is decided by the gate, whoever asks,
and goes on as it was decided: written anew from the value that the gate saw. What cannot do any of that goes on byte
for byte. Every other method is refused. A refusal never depends on the transport, and neither does anything else
here: this module reads and writes no stream, and no file but the lock file of `pins`. Whatever fails in it refuses the
message.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from tollkeeper import _native
from tollkeeper._native import EntityUid
from tollkeeper.errors import AuditError, ConfigError, Denied, StateError, TollkeeperError
from tollkeeper.mcp import strict
from tollkeeper.mcp.strict import INVALID, Malformed

if TYPE_CHECKING:
    from tollkeeper.gate import Decision, Gate, ModelCall, Scope
    from tollkeeper.mcp.pins import Pins

__all__ = ["Drop", "Forward", "Limits", "Reply", "Screen", "Verdict", "Wait"]

# JSON-RPC's and MCP's numbers. Ours lies outside what either keeps for itself.
METHOD_UNKNOWN: Final = -32601
PARAMS_WRONG: Final = -32602
HEADERS_DIFFER: Final = -32020
REFUSED: Final = -1

OK: Final = 200
BAD_REQUEST: Final = 400

READ_RESOURCE: Final = "read_resource"
GET_PROMPT: Final = "get_prompt"
BUILT_IN: Final = frozenset({READ_RESOURCE, GET_PROMPT})
SAMPLING: Final = "sampling/createMessage"
CLIENT_BYTES_MAX: Final = 4 << 20
SERVER_BYTES_MAX: Final = 16 << 20
META: Final = "io.modelcontextprotocol/"
# A record of this class, or of none, is waited for by nobody.
GROUP: Final = (None, "group")
DECIDED: Final = frozenset({"tools/call", "resources/read", "prompts/get", SAMPLING})
# A task was made by a call that was allowed; these speak of one by its id.
OF_A_TASK: Final = frozenset({"tasks/get", "tasks/result", "tasks/cancel", "tasks/update"})

# Which the revision of 2026-07-28 has not any more.
NOT_MODERN: Final = frozenset({"tasks/result", "tasks/list"})

CLIENT_REQUESTS: Final = frozenset({
    "initialize", "server/discover", "ping", "tools/list", "resources/list", "resources/templates/list",
    "resources/subscribe", "resources/unsubscribe", "subscriptions/listen", "prompts/list", "completion/complete",
    "logging/setLevel", "tasks/list", *OF_A_TASK,
})  # fmt: skip
CLIENT_NOTIFICATIONS: Final = frozenset({
    "notifications/initialized", "notifications/cancelled", "notifications/progress",
    "notifications/roots/list_changed", "notifications/tasks/status",
})  # fmt: skip
SERVER_REQUESTS: Final = frozenset({"ping", "roots/list", "elicitation/create", "tasks/list", *OF_A_TASK})
SERVER_NOTIFICATIONS: Final = frozenset({
    "notifications/cancelled", "notifications/progress", "notifications/message",
    "notifications/tools/list_changed", "notifications/resources/list_changed", "notifications/resources/updated",
    "notifications/prompts/list_changed", "notifications/elicitation/complete", "notifications/tasks/status",
    "notifications/tasks", "notifications/subscriptions/acknowledged",
})  # fmt: skip
# What an answer may ask of the client before the call goes on, besides a model's answer.
INPUTS: Final = frozenset({"roots/list", "elicitation/create"})

# A token has at least this many bytes of UTF-8 in any text that people write; what is held is an estimate of the prompt
# and, on top, all that may be generated.
BYTES_PER_TOKEN: Final = 3
TOKENS_MAX: Final = 1 << 40
# How long a question for an approval stands.
APPROVAL_SECONDS: Final = 3600.0
# A server whose lists are stale at once would be asked before every call.
LIST_SECONDS_MIN: Final = 30.0
# How soon calls see that the lock file has changed.
LOCK_SECONDS: Final = 0.1
CHAINS_MAX: Final = 64
# Of one list: in how many answers the proxy itself takes it, and how many tools it may have at most.
PAGES_MAX: Final = 1000
CHAIN_TOOLS_MAX: Final = 20_000
SAID_MAX: Final = 256
SHOWN_CHARS: Final = 80
KEPT_CHARS: Final = 256
_ID: Final = re.compile(rb'"id"\s*:\s*(-?[0-9]{1,18}(?=[\s,}])|"(?:[^"\\]|\\.){0,256}")')
# How far a message that cannot be read is searched for its id.
GUESSED_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of what is read and remembered."""

    client_bytes: int = CLIENT_BYTES_MAX
    """Of one message of the client: as large as the gate takes arguments."""
    server_bytes: int = SERVER_BYTES_MAX
    """Of one message of the server: results hold pictures."""
    depth: int = strict.DEPTH_MAX
    """How deep values nest in a message."""
    pending: int = 10_000
    """Requests without an answer, for each direction."""
    id_bytes: int = 256
    """Of an id that is text, or of the digits of one that is a number."""
    tasks: int = 10_000
    """Tasks that are remembered, for each direction; the oldest are forgotten first."""
    one_line: bool = False
    """Whether a message is a line, so that it must hold nothing that some reader takes for the end of one."""
    wait_seconds: float = 1.0
    """How long a decision may wait for room in the log."""
    record_seconds: float = 10.0
    """How long an allowed action may wait for its record to be on the disk."""


@dataclass(frozen=True, slots=True)
class Forward:
    """The message goes on to the other side."""

    raw: bytes
    """The very bytes that came; what was decided, as it was decided; or what takes the message's place."""
    record: Decision | None = None
    """A decision whose record has to be on the disk before the message goes on, where `Screen` does not wait for it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The message goes no further; this goes back to whoever sent it."""

    raw: bytes
    status: int = OK
    """Of HTTP, where the transport is that."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Nothing goes anywhere."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be said before the server has listed its tools.

    Send what `Screen.asks` returns to the server and hand the answer to `from_server`, until it returns None; if no
    answer comes, call `Screen.asked_in_vain`. Then hand the same message to `from_client` again.
    """


Verdict = Forward | Reply | Drop | Wait
Id = int | str
# An exchange, which tells its ids from those of others, and an id in it.
Key = tuple[Hashable, Id]
HeaderCheck = Callable[[Mapping[str, str], dict[str, Any]], "str | None"]

DROP: Final = Drop()
WAIT: Final = Wait()


@dataclass(slots=True)
class _Pending:
    """A request that went on and has no answer yet."""

    method: str
    modern: bool
    """It names the revision it speaks, so it is of one that does so in every request."""
    begun: float = 0.0
    decision: Decision | None = None
    model_call: ModelCall | None = None
    cursor: str | None = None
    task: str | None = None


class _Open:
    """Requests without an answer, by exchange and id. `1` and `"1"` are two ids."""

    def __init__(self) -> None:
        self._exchanges: dict[Hashable, dict[Id, _Pending]] = {}
        self.count = 0

    def get(self, key: Key) -> _Pending | None:
        return self._exchanges.get(key[0], {}).get(key[1])

    def add(self, key: Key, pending: _Pending) -> None:
        self._exchanges.setdefault(key[0], {})[key[1]] = pending
        self.count += 1

    def pop(self, key: Key) -> _Pending | None:
        exchange = self._exchanges.get(key[0])
        pending = None if exchange is None else exchange.pop(key[1], None)
        if pending is not None:
            self.count -= 1
            # That of a session or of a pipe is used again and again.
            if not exchange and key[0] is not None:
                del self._exchanges[key[0]]
        return pending

    def pop_anywhere(self, id_: Id) -> _Pending | None:
        found = next((exchange for exchange, ids in self._exchanges.items() if id_ in ids), _NOWHERE)
        return None if found is _NOWHERE else self.pop((found, id_))

    def pop_exchange(self, exchange: Hashable) -> list[tuple[Id, _Pending]]:
        over = list(self._exchanges.pop(exchange, {}).items())
        self.count -= len(over)
        return over

    def pop_all(self) -> list[tuple[Id, _Pending]]:
        return [entry for exchange in list(self._exchanges) for entry in self.pop_exchange(exchange)]


_NOWHERE: Final = object()


@dataclass(slots=True)
class _Side:
    """Who sends: what it may send, and what it has sent."""

    name: str
    requests: frozenset[str]
    notifications: frozenset[str]
    bytes_max: int
    fold: bool
    """Whether keys that are equal but for case are refused everywhere, and not just around the data."""
    pending: _Open = field(default_factory=_Open)
    tasks: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    """Ids of tasks that allowed requests of this side have made, each with digests of the inputs that were decided."""


class _Refusal(Exception):  # noqa: N818 - it is the answer, not an error
    """A request is not let through; carries what the sender is told."""

    def __init__(self, code: int, message: str, status: int = OK, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.status, self.data = code, message, status, data


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"tollkeeper: {text}\n")
    sys.stderr.flush()


class Screen:
    """Decides messages, and remembers what is unanswered. Safe to share between threads.

    Args:
        gate: Decides; stays open.
        principal: Uid of whoever the client acts as.
        server: What the operator calls the server: the tools belong to ``Mcp::"SERVER"``.
        session: Id of the session; made up without one.
        budget: Path of the budget that pays.
        pins: What the server's tools were when they were accepted.
        limits: Bounds.
        sampling_model: The name under which a model's answer for the server is decided and paid. What model the client
            takes is not known, and what the server would like is only a wish.
        check_headers: For HTTP: says what of a request's headers and its body differs, or None. Asked before the gate.
        waits: Whether `from_client` and `from_server` may wait for the disk, where a policy or the configuration asks
            for that. If not, `Forward.record` says what has to be waited for.
        one_client: Whether all exchanges are those of one client, whose ids are then used once among all of them.
        say: Takes a line for the operator.

    Raises:
        The same as `Gate.run`, and as `Gate.register` for the two tools that every server has.
    """

    def __init__(  # noqa: PLR0913 - what the command line says, one for one
        self,
        gate: Gate,
        *,
        principal: str,
        server: str,
        session: str | None,
        budget: str | None,
        pins: Pins,
        limits: Limits = Limits(),
        sampling_model: str = "sampling",
        check_headers: HeaderCheck | None = None,
        waits: bool = True,
        one_client: bool = False,
        say: Callable[[str], None] = _to_stderr,
    ) -> None:
        self._gate, self._pins, self._limits = gate, pins, limits
        self._resource = str(EntityUid("Mcp", server))
        self._model, self._check_headers, self._waits, self._say = sampling_model, check_headers, waits, say
        self._one_client = one_client
        self._client = _Side("client", CLIENT_REQUESTS, CLIENT_NOTIFICATIONS, limits.client_bytes, fold=True)
        self._server = _Side("server", SERVER_REQUESTS, SERVER_NOTIFICATIONS, limits.server_bytes, fold=False)
        self._lock = threading.RLock()
        self._said: set[str] = set()
        self._run = gate.run(principal=principal, session=session, budget=budget)
        self._scope: Scope = self._run.scope
        self._listing = _Listing()
        self._waiting: set[Key] = set()
        self._cancelled: set[Key] = set()
        self._agent: str | None = None
        self._closed = False
        self.server_info: dict[str, Any] | None = None
        """What the server calls itself: for people to read, and for nothing else."""
        gate.register(READ_RESOURCE, self._resource)
        gate.register(GET_PROMPT, self._resource)
        gate.withhold({name: reason for name, reason in pins.withheld.items() if name not in BUILT_IN})

    def from_client(
        self, raw: bytes, *, headers: Mapping[str, str] | None = None, exchange: Hashable = None
    ) -> Verdict:
        """What becomes of a message of the client. Never raises.

        Args:
            raw: The message; on stdio without the line break.
            headers: Of the HTTP request that brought it.
            exchange: Tells this message and the answer to it from those of others who use the same ids.
        """
        return self._screened(self._client, raw, headers, exchange)

    def from_server(self, raw: bytes, *, exchange: Hashable = None) -> Verdict:
        """What becomes of a message of the server. Never raises.

        Args:
            raw: The message.
            exchange: What `from_client` was given with the request that this answers.
        """
        return self._screened(self._server, raw, None, exchange)

    def oversized(self, head: bytes, *, client: bool, exchange: Hashable = None) -> Verdict:
        """What becomes of a message that is longer than the limit. Never raises.

        Args:
            head: Its beginning.
            client: Whether the client sent it.
            exchange: As in `from_client`.
        """
        side = self._client if client else self._server
        return self._malformed(side, head, Malformed(f"more than {side.bytes_max} bytes", INVALID), exchange)

    def asks(self) -> bytes | None:
        """A request of the proxy's own for the server, while it waits for a list of tools; else None.

        Each request is returned once. The answer comes in by `from_server`, and is dropped there.
        """
        with self._lock:
            return self._listing.ask()

    def asked_in_vain(self) -> None:
        """The server does not say what tools it has: calls are decided by what is known, which may be nothing."""
        with self._lock:
            self._listing.give_up()
        self._say_once("the server did not list its tools: those that the configuration does not name are refused")

    def ended(self, exchange: Hashable) -> None:
        """That exchange is over: what is unanswered in it ends, as cancelled."""
        with self._lock:
            for waiting in (self._waiting, self._cancelled):
                # Whoever went away while the server was asked for its tools waits no more.
                waiting -= {key for key in waiting if key[0] == exchange}
            over = [*self._client.pending.pop_exchange(exchange), *self._server.pending.pop_exchange(exchange)]
        for _, pending in over:
            _finish(pending, "cancelled", "ExchangeEnded")

    def abandoned(self, reason: str) -> list[bytes]:
        """Answers for all requests of the client that will get none, which end here."""
        with self._lock:
            left = self._client.pending.pop_all()
        answers: list[bytes] = []
        for id_, pending in left:
            _finish(pending, "unknown", "ServerGone")
            answers.append(_error(id_, REFUSED, reason))
        return answers

    def unrecorded(self, exchange: Hashable, reason: str) -> list[bytes]:
        """The record that a `Forward` of this exchange named is not on the disk, so what it allows must not begin.

        Args:
            exchange: As in `from_client`.
            reason: Why, for whoever asked.

        Returns:
            What they are told, for each request of the exchange that was decided.
        """
        with self._lock:
            over = self._client.pending.pop_exchange(exchange)
        answers: list[bytes] = []
        for id_, pending in over:
            _finish(pending, "cancelled", "AuditError", began=False)
            answers.append(_refused(pending.method, id_, "audit.unavailable", reason, modern=pending.modern))
        return answers

    def close(self) -> None:
        """Everything that is open ends: what is held is settled, outcomes are recorded. Later messages are refused."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            left = [*self._client.pending.pop_all(), *self._server.pending.pop_all()]
        for _, pending in left:
            _finish(pending, "unknown", "ProxyClosed")
        # The scope is never in force by itself; leaving it ends it.
        with self._run:
            pass

    # --- one message ------------------------------------------------------------------------------------------------

    def _screened(self, side: _Side, raw: bytes, headers: Mapping[str, str] | None, exchange: Hashable) -> Verdict:
        id_: Id | None = None
        method: str | None = None
        modern = False
        try:
            message = self._read(side, raw)
            kind = _kind(message)
            if kind == "answer":
                return self._answered(side, message, raw, exchange)
            method = cast("str", message["method"])
            if kind == "notification":
                return self._notified(side, method, message, raw, exchange)
            modern = _speaks_modern(message)
            id_ = self._id(message)
            return self._requested(side, message, raw, headers, (exchange, id_))
        except Malformed as error:
            return self._malformed(side, raw, error, exchange)
        except _Refusal as refusal:
            return Reply(_error(id_, refusal.code, refusal.message, refusal.data), refusal.status)
        except Exception as error:  # noqa: BLE001 - whatever fails here refuses the message
            self._say(f"a message of the {side.name} could not be decided, so it is refused: {_named(error)}")
            return self._failed(side, raw, id_, method, modern=modern, exchange=exchange)

    def _read(self, side: _Side, raw: bytes) -> dict[str, Any]:
        if self._closed:
            raise Malformed("the proxy is closing", INVALID)
        if self._limits.one_line and (b"\r" in raw[:-1] or b"\n" in raw):
            # Some readers of lines take each of them for an end, and what stands between for a message of its own.
            raise Malformed("a line break inside a message", strict.PARSE)
        message = strict.read(raw, bytes_max=side.bytes_max, depth_max=self._limits.depth, fold=side.fold)
        if type(message) is list:
            raise Malformed("batches are not taken: send each message by itself", INVALID)
        if type(message) is not dict:
            raise Malformed("not a JSON-RPC message", INVALID)
        found = cast("dict[str, Any]", message)
        if not side.fold:
            # What a server returns is data, in which `a` and `A` may be two things; what is around it is not.
            strict.refuse_folded(found)
            for name in ("params", "result", "error"):
                if type(inner := found.get(name)) is dict:
                    strict.refuse_folded(cast("dict[str, Any]", inner))
        return found

    def _id(self, message: dict[str, Any]) -> Id:
        id_ = message["id"]
        if type(id_) is str and len(id_.encode()) <= self._limits.id_bytes:
            return id_
        # As many bits as so many digits have at most.
        if type(id_) is int and id_.bit_length() <= self._limits.id_bytes * 3:
            return id_
        raise Malformed(f"an id is text or an integer, of at most {self._limits.id_bytes} bytes", INVALID)

    def _malformed(self, side: _Side, raw: bytes, error: Malformed, exchange: Hashable) -> Verdict:
        """The sender is told, or whoever waits for what this would have been."""
        id_ = _guessed_id(raw)
        if side is self._client:
            taken = id_ is not None and self._client.pending.get((exchange, id_)) is not None
            return Reply(_error(None if taken else id_, error.code, f"refused: {error}"), BAD_REQUEST)
        self._say(f"a message of the server is refused: {error}")
        with self._lock:
            pending = None if id_ is None else self._client.pending.pop((exchange, id_))
        if pending is None or id_ is None:
            return DROP
        _finish(pending, "error", "Malformed")
        return Forward(_refused(pending.method, id_, "answer.malformed", _MALFORMED_ANSWER, modern=pending.modern))

    def _failed(  # noqa: PLR0913 - what is known of the message by then
        self, side: _Side, raw: bytes, id_: Id | None, method: str | None, *, modern: bool, exchange: Hashable
    ) -> Verdict:
        """A defect of ours: nothing goes on, and nobody waits for what will not come."""
        if id_ is not None and method is not None:
            with self._lock:
                pending = side.pending.pop((exchange, id_))
            if pending is not None:
                _finish(pending, "cancelled", "InternalError", began=False)
            return Reply(_refused(method, id_, "internal.panic", _DEFECT, modern=modern))
        if side is self._server and method is None:
            guess = _guessed_id(raw)
            with self._lock:
                pending = None if guess is None else self._client.pending.pop((exchange, guess))
                own = pending is None and self._listing.own(guess)
            if guess is not None and not own:
                # Taken from among those that wait before it failed, or just now.
                if pending is not None:
                    _finish(pending, "error", "InternalError")
                kind, new = ("", False) if pending is None else (pending.method, pending.modern)
                return Forward(_refused(kind, guess, "internal.panic", _DEFECT, modern=new))
        return DROP

    def _say_once(self, text: str) -> None:
        with self._lock:
            if text in self._said or len(self._said) >= SAID_MAX:
                return
            self._said.add(text)
        self._say(text)

    # --- requests ---------------------------------------------------------------------------------------------------

    def _requested(
        self, side: _Side, message: dict[str, Any], raw: bytes, headers: Mapping[str, str] | None, key: Key
    ) -> Verdict:
        method: str = message["method"]
        if headers is not None and self._check_headers is not None:
            difference = self._check_headers(headers, message)
            if difference is not None:
                raise _Refusal(HEADERS_DIFFER, difference, BAD_REQUEST)
        pending = _Pending(method, _speaks_modern(message))
        params = message.get("params")
        given = cast("dict[str, Any]", params) if type(params) is dict else {}
        if method in DECIDED:
            if params is None:
                raise _Refusal(PARAMS_WRONG, f"{method} needs params")
            if not side.fold:
                strict.read(raw, bytes_max=side.bytes_max, depth_max=self._limits.depth)
            return self._decided(side, message, given, key, pending)
        if method not in side.requests or (pending.modern and method in NOT_MODERN):
            self._say_once(f"refused: {_shown(method)}, which the {side.name} may not ask for")
            raise _Refusal(METHOD_UNKNOWN, "this method is not let through")
        if method in OF_A_TASK:
            pending.task = self._own_task(side, given)
        self._note(method, given, pending)
        self._remember(side, key, pending)
        return Forward(raw)

    def _note(self, method: str, params: dict[str, Any], pending: _Pending) -> None:
        """What of a request that passes is needed for its answer, or later."""
        if method == "tools/list" and type(cursor := params.get("cursor")) is str:
            pending.cursor = _short(cursor)
        elif method == "initialize":
            self._agent = _name_of(params.get("clientInfo"))

    def _remember(self, side: _Side, key: Key, pending: _Pending) -> None:
        pending.begun = time.monotonic()
        with self._lock:
            if side.pending.get(key) is not None:
                raise _Refusal(INVALID, "a request with this id has no answer yet; ids are used once")
            if side.pending.count >= self._limits.pending:
                raise _Refusal(REFUSED, f"{self._limits.pending} requests have no answer yet, the most there may be")
            side.pending.add(key, pending)

    @staticmethod
    def _own_task(side: _Side, params: dict[str, Any]) -> str:
        task = params.get("taskId")
        if type(task) is not str or _short(task) not in side.tasks:
            raise _Refusal(PARAMS_WRONG, "no call that was allowed here has made this task")
        return _short(task)

    def _decided(
        self, side: _Side, message: dict[str, Any], params: dict[str, Any], key: Key, pending: _Pending
    ) -> Verdict:
        method = pending.method
        if method == SAMPLING:
            ask = self._sampling(params)
            self._remember(side, key, pending)
            return self._model_called(side, message, ask, key, pending)
        tool, arguments = _action(method, params)
        if method == "tools/call" and strict.folded(tool) in BUILT_IN:
            # What policies say of these names they say of reading and of prompts; no server has such a tool.
            return Reply(_refused(method, key[1], "input.unknown_tool", _TAKEN_NAME, modern=pending.modern))
        if side is self._client and method == "tools/call" and (verdict := self._list_first(key, message)) is not None:
            return verdict
        if self._pins.refresh(LOCK_SECONDS):
            self._learned()
        self._remember(side, key, pending)
        try:
            decision = self._checked(tool, arguments, self._asserted(message, key[1]))
        except AuditError as error:
            self._forget(side, key)
            return Reply(_refused(method, key[1], "audit.unavailable", str(error), modern=pending.modern))
        if not decision.allowed:
            self._forget(side, key)
            return Reply(self._denied(decision, method, key[1], modern=pending.modern))
        pending.decision = decision
        return self._goes_on(side, message, key, pending, decision)

    def _goes_on(
        self, side: _Side, message: dict[str, Any], key: Key, pending: _Pending, decision: Decision
    ) -> Verdict:
        with self._lock:
            open_ = side.pending.get(key) is pending
        if not open_:
            # Cancelled, or everything was closed, while it was being decided.
            _finish(pending, "cancelled", "Cancelled", began=False)
            return DROP
        return Forward(strict.write(message), self._awaited(decision))

    def _checked(self, tool: str, arguments: dict[str, Any], asserted: dict[str, str]) -> Decision:
        decision = self._gate._check_large(  # noqa: SLF001 - what `check_blocking` is made of, without its waiting
            tool, arguments, scope=self._scope, asserted=asserted
        )
        if not self._waits:
            return decision
        if decision.code == "audit.unavailable":
            return self._gate.check_blocking(
                tool, arguments, scope=self._scope, timeout=self._limits.wait_seconds, asserted=asserted
            )
        if decision.allowed and decision.durability not in GROUP:
            try:
                decision.wait_durable(decision.durability or "sync", self._limits.record_seconds)
            except BaseException as error:
                _finish(_Pending("", modern=False, decision=decision), "cancelled", type(error).__name__, began=False)
                raise
        return decision

    def _awaited(self, decision: Decision) -> Decision | None:
        return None if self._waits or decision.durability in GROUP else decision

    def _forget(self, side: _Side, key: Key) -> None:
        with self._lock:
            side.pending.pop(key)

    def _asserted(self, message: dict[str, Any], id_: Id) -> dict[str, str]:
        """What the client says of itself and of this call; recorded as that."""
        asserted = {"runtime": "mcp", "call": str(id_)}
        agent = _name_of(_meta(message).get(META + "clientInfo")) or self._agent
        if agent:
            asserted["agent"] = agent
        return asserted

    def _denied(self, decision: Decision, method: str, id_: Id, *, modern: bool) -> bytes:
        reason = decision.reason
        if decision.code in {"approval.required", "approval.expired"}:
            reason = f"{reason}{self._asked_for_approval(decision)}"
        return _refused(method, id_, decision.code, reason, modern=modern, decision=decision.id)

    def _asked_for_approval(self, decision: Decision) -> str:
        try:
            approval = self._gate.approval(decision, timeout=APPROVAL_SECONDS)
        except (StateError, ValueError) as error:
            self._say_once(f"approvals cannot be asked for: {error}")
            return ""
        return f". Approval {approval.id} was asked for. Once it is granted, repeating this very call passes, once."

    def _sampling(self, params: dict[str, Any]) -> tuple[int, int]:
        """An estimate of the prompt's tokens, and the most that may be generated."""
        most = params.get("maxTokens")
        if type(most) is not int or not 0 < most <= TOKENS_MAX:
            raise _Refusal(PARAMS_WRONG, "maxTokens must be a positive integer")
        prompt = {name: params[name] for name in ("messages", "systemPrompt", "tools") if name in params}
        return -(-len(strict.write(prompt)) // BYTES_PER_TOKEN), most

    def _model_called(
        self, side: _Side, message: dict[str, Any], ask: tuple[int, int], key: Key, pending: _Pending
    ) -> Verdict:
        try:
            pending.model_call = self._model_call(ask, self._asserted(message, key[1]))
        except Denied as denied:
            self._forget(side, key)
            decision = cast("Decision | None", denied.decision)
            if decision is None:
                return Reply(_refused(pending.method, key[1], denied.code, denied.reason, modern=pending.modern))
            return Reply(self._denied(decision, pending.method, key[1], modern=pending.modern))
        except AuditError as error:
            self._forget(side, key)
            return Reply(_refused(pending.method, key[1], "audit.unavailable", str(error), modern=pending.modern))
        return self._goes_on(side, message, key, pending, pending.model_call.decision)

    def _model_call(self, ask: tuple[int, int], asserted: dict[str, str]) -> ModelCall:
        def entered() -> ModelCall:
            call = self._gate.model_call(model=self._model, prompt_tokens=ask[0], max_tokens=ask[1], asserted=asserted)
            # The native half decides and holds; ours waits for the record besides.
            if self._waits:
                return call.__enter__()
            _native.ModelCall.__enter__(call)
            return call

        return self._scope.bind(entered)()

    # --- notifications ----------------------------------------------------------------------------------------------

    def _notified(self, side: _Side, method: str, message: dict[str, Any], raw: bytes, exchange: Hashable) -> Verdict:
        if method not in side.notifications:
            self._say_once(f"dropped: {_shown(method)}, of which the {side.name} may not notify")
            return DROP
        params = message.get("params")
        given = cast("dict[str, Any]", params) if type(params) is dict else {}
        if method == "notifications/cancelled":
            self._cancel(side, given.get("requestId"), exchange)
        elif method == "notifications/tools/list_changed":
            with self._lock:
                self._listing.stale()
        elif method == "notifications/tasks" and side is self._server:
            # A task that waits for input says so here too, and what it asks for is decided as anywhere.
            refusal = self._inputs_refused(given, given.get("taskId"))
            if refusal is not None:
                self._say(f"dropped: a task's state that asks for what is refused: {refusal[1]}")
                return DROP
            if "inputRequests" in given:
                return Forward(strict.write(message))
        return Forward(raw)

    def _cancel(self, side: _Side, id_: object, exchange: Hashable) -> None:
        if type(id_) is not str and type(id_) is not int:
            return
        key = (exchange, id_)
        with self._lock:
            if side is self._client and key in self._waiting:
                self._cancelled.add(key)
            pending = side.pending.pop(key)
            if pending is None and side is self._client and self._one_client:
                # On HTTP the client says so in a request of its own.
                pending = side.pending.pop_anywhere(id_)
            if pending is None and side is self._server:
                # A server ends a subscription of the client in this way, and nothing else.
                listening = self._client.pending.get(key)
                if listening is not None and listening.method == "subscriptions/listen":
                    self._client.pending.pop(key)
        if pending is not None:
            _finish(pending, "cancelled", "Cancelled")

    # --- answers ----------------------------------------------------------------------------------------------------

    def _answered(self, side: _Side, message: dict[str, Any], raw: bytes, exchange: Hashable) -> Verdict:
        id_ = message.get("id")
        if id_ is None:
            # An error that belongs to no request: to one that could not be read. A result belongs to one.
            return Forward(raw) if "error" in message else DROP
        if type(id_) is not str and type(id_) is not int:
            raise Malformed("an id is text or an integer", INVALID)
        asker = self._server if side is self._client else self._client
        if side is self._server and type(id_) is str and self._own_answer(id_, message):
            return DROP
        with self._lock:
            pending = asker.pending.pop((exchange, id_))
            if pending is None and side is self._client:
                # On HTTP an answer of the client comes in a request of its own.
                pending = asker.pending.pop_anywhere(id_)
        if pending is None:
            self._say_once(f"dropped: an answer of the {side.name} to a request that nobody waits for")
            return DROP
        _finish(pending, *_status(message))
        result = message.get("result")
        if type(result) is not dict:
            return Forward(raw)
        return self._result(asker, message, cast("dict[str, Any]", result), raw, pending, id_)

    def _result(  # noqa: PLR0913, PLR0917 - an answer and what it answers
        self,
        asker: _Side,
        message: dict[str, Any],
        result: dict[str, Any],
        raw: bytes,
        pending: _Pending,
        id_: Id,
    ) -> Verdict:
        method = pending.method
        if method in DECIDED:
            self._new_task(asker, result)
        if "inputRequests" in result and asker is self._client:
            refusal = self._inputs_refused(result, pending.task)
            if refusal is not None:
                return Forward(_refused(method, id_, *refusal, modern=pending.modern))
            return Forward(strict.write(message))
        if method == "tools/list" and asker is self._client:
            return self._listed(message, result, raw, pending)
        if method == "tasks/list":
            tasks = result.get("tasks")
            return _filtered(
                message, result, raw, "tasks", tasks, lambda task: _short(str(task.get("taskId"))) in asker.tasks
            )
        if method == "initialize" and type(info := result.get("serverInfo")) is dict:
            self.server_info = cast("dict[str, Any]", info)
        return Forward(raw)

    def _new_task(self, asker: _Side, result: dict[str, Any]) -> None:
        task = result.get("task")
        found = cast("dict[str, Any]", task).get("taskId") if type(task) is dict else result.get("taskId")
        if type(found) is not str:
            return
        found = _short(found)
        with self._lock:
            while len(asker.tasks) >= self._limits.tasks:
                del asker.tasks[next(iter(asker.tasks))]
            asker.tasks[found] = set()

    def _inputs_refused(self, result: dict[str, Any], task: object) -> tuple[str, str] | None:
        """Decides what a result asks of the client; the first refusal refuses all of it, as code and reason."""
        inputs = result.get("inputRequests")
        if inputs is None:
            return None
        if type(inputs) is not dict:
            return "input.unrepresentable", "the server asks for input in a way that cannot be read."
        decided = self._client.tasks.get(_short(task)) if type(task) is str else None
        for name, request in cast("dict[str, Any]", inputs).items():
            asked = cast("dict[str, Any]", request) if type(request) is dict else {}
            try:
                # Whoever reads keys without case must find the same method.
                strict.refuse_folded(asked)
            except Malformed as error:
                return "input.unrepresentable", f"the server asks for input in a way that cannot be read: {error}"
            if asked.get("method") in INPUTS:
                continue
            # What was decided is this very request, and not the name under which another may come later.
            known = hashlib.sha256(strict.write([name, asked])).hexdigest()
            if decided is not None and known in decided:
                continue
            refusal = self._input_refused(asked)
            if refusal is not None:
                return refusal
            if decided is not None:
                decided.add(known)
        return None

    def _input_refused(self, asked: dict[str, Any]) -> tuple[str, str] | None:
        params = asked.get("params")
        if asked.get("method") != SAMPLING or type(params) is not dict:
            self._say_once("refused: a result that asks the client for what a server may not ask for")
            return "input.unknown_tool", "the server asks for input of a kind that is not let through."
        try:
            ask = self._sampling(cast("dict[str, Any]", params))
            # As strictly as where it comes by itself.
            strict.read(strict.write(params), bytes_max=self._limits.server_bytes)
            call = self._model_call(ask, {"runtime": "mcp"})
        except Denied as denied:
            return denied.code, f"the server asks for a model's answer: {denied.reason}"
        except AuditError as error:
            return "audit.unavailable", str(error)
        except (_Refusal, Malformed) as refusal:
            return "input.unrepresentable", f"the server asks for a model's answer: {refusal}"
        # What the client does with it comes back in no answer to this: all that may be used counts as used.
        call.__exit__(None, None, None)
        return None

    # --- tools ------------------------------------------------------------------------------------------------------

    def _list_first(self, key: Key, message: dict[str, Any]) -> Verdict | None:
        with self._lock:
            if not self._listing.needed():
                self._waiting.discard(key)
                if key in self._cancelled:
                    self._cancelled.discard(key)
                    return DROP
                return None
            if len(self._waiting) >= self._limits.pending:
                raise _Refusal(REFUSED, "too many calls wait for the server to list its tools")
            self._waiting.add(key)
            self._listing.want(_meta(message))
            return WAIT

    def _own_answer(self, id_: str, message: dict[str, Any]) -> bool:
        """Whether this answers a request of the proxy's own; then it is used up here."""
        with self._lock:
            if not self._listing.answers(id_):
                return False
            cursor, result = self._listing.cursor, message.get("result")
            given = cast("dict[str, Any]", result) if type(result) is dict else {}
            tools = given.get("tools")
        if type(tools) is not list:
            self.asked_in_vain()
            return True
        try:
            self._take(cast("list[object]", tools), given, cursor)
            self._listing.refuse_endless()
        except Exception as error:  # noqa: BLE001 - whoever asked is the proxy, and nobody else is to be answered
            self._say(f"the list of tools cannot be used: {_named(error)}")
            self.asked_in_vain()
        return True

    def _listed(self, message: dict[str, Any], result: dict[str, Any], raw: bytes, pending: _Pending) -> Verdict:
        tools = result.get("tools")
        if type(tools) is not list:
            return Forward(raw)
        self._take(cast("list[object]", tools), result, pending.cursor)
        return _filtered(message, result, raw, "tools", cast("object", tools), self._visible)

    def _take(self, tools: list[Any], result: dict[str, Any], cursor: str | None) -> None:
        """Compares one page of a list with what is pinned, and registers what may be called."""
        following = result.get("nextCursor")
        ttl_ms = result.get("ttlMs")
        with self._lock, self._pins.lock:
            found = [cast("dict[str, Any]", tool) for tool in tools if type(tool) is dict]
            whole = self._listing.page(found, cursor, following if type(following) is str else None, ttl_ms)
            self._pins.refresh()
            self._pins.seen(found, whole)
            self._learned()

    def _learned(self) -> None:
        """Tells the gate what may be called and what is withheld."""
        with self._lock, self._pins.lock:
            withheld = dict(self._pins.withheld)
            for name, definition in self._pins.current.items():
                if name in withheld or definition == self._listing.registered.get(name):
                    continue
                reason = self._registered(name, definition)
                if reason is None:
                    self._listing.registered[name] = definition
                else:
                    withheld[name] = reason
            self._listing.withheld = withheld
            # To the gate these two names are what the proxy itself asks; calls of such a tool do not get that far.
            self._gate.withhold({name: reason for name, reason in withheld.items() if name not in BUILT_IN})

    def _registered(self, name: str, definition: dict[str, Any]) -> str | None:
        """Registers a tool; why it cannot be used, if it cannot."""
        # Without a schema that it can use the gate would not know a list from a text, and a forbid could be dodged.
        try:
            self._gate.register(name, self._resource, schema=definition.get("inputSchema"))
        except (TollkeeperError, TypeError) as error:
            self._say_once(f"withheld: {_shown(name)}: {_line(str(error))}")
            return "the gate cannot use its name or its inputSchema; the operator has been told why."
        return None

    def _visible(self, tool: dict[str, Any]) -> bool:
        name = tool.get("name")
        return (
            type(name) is str
            and name not in self._listing.withheld
            and name in self._listing.registered
            and self._gate.may_call(name, scope=self._scope)
        )


class _Listing:
    """What is known of the server's tools, and what has to be asked. Used under the lock of its screen."""

    def __init__(self) -> None:
        self.registered: dict[str, dict[str, Any]] = {}
        """Definitions that the gate has."""
        self.withheld: dict[str, str] = {}
        self.cursor: str | None = None
        """Of the request that was asked last."""
        self._known = False
        self._stale_at: float | None = None
        self._wanted = False
        self._id: str | None = None
        """Of the request that has no answer yet."""
        self._last_id: str | None = None
        """Of the request that was asked last, also once it has its answer."""
        self._given_up_at: float | None = None
        self._meta: dict[str, Any] = {}
        self._pages = 0
        """Of the list that the proxy itself asks for."""
        self._chains: dict[str, list[dict[str, Any]]] = {}
        """Pages so far, by the cursor of the page that comes next."""

    def needed(self) -> bool:
        now = time.monotonic()
        if self._known and (self._stale_at is None or now < self._stale_at):
            return False
        return self._given_up_at is None or now >= self._given_up_at + LIST_SECONDS_MIN

    def stale(self) -> None:
        self._stale_at = time.monotonic()

    def want(self, meta: dict[str, Any]) -> None:
        """Somebody waits; what their request says of the revision it speaks is said in ours too."""
        if self._id is None and not self._wanted:
            self._wanted, self.cursor, self._pages = True, None, 0
            self._meta = {key: value for key, value in meta.items() if key.startswith(META)}

    def ask(self) -> bytes | None:
        if not self._wanted:
            return None
        self._wanted = False
        # Nobody can know it but the server that it is sent to.
        self._id = self._last_id = f"tollkeeper-{os.urandom(16).hex()}"
        params: dict[str, Any] = {} if self.cursor is None else {"cursor": self.cursor}
        if self._meta:
            params["_meta"] = self._meta
        return strict.write({"jsonrpc": "2.0", "id": self._id, "method": "tools/list", "params": params})

    def own(self, id_: Id | None) -> bool:
        """Whether this is the id of what was asked last: the client knows nothing of that request."""
        return id_ is not None and id_ == self._last_id

    def answers(self, id_: str) -> bool:
        if self._id is None or id_ != self._id:
            return False
        self._id = None
        self._pages += 1
        return True

    def refuse_endless(self) -> None:
        """Ends a list without an end, as of a server that does not look at the cursor."""
        if self._pages >= PAGES_MAX and self._wanted:
            raise ConfigError(f"the list of tools has more than {PAGES_MAX} pages", "mcp.tools")

    def give_up(self) -> None:
        self._given_up_at, self._id, self._wanted, self._pages = time.monotonic(), None, False, 0

    def page(
        self, tools: list[dict[str, Any]], cursor: str | None, following: str | None, ttl_ms: object
    ) -> list[dict[str, Any]] | None:
        """Takes one page; the whole list once all of it was seen."""
        before = [] if cursor is None else self._chains.pop(_short(cursor), None)
        so_far = None if before is None else [*before, *tools]
        own = self.cursor == cursor and self._id is None and not self._wanted
        if so_far is not None and len(so_far) > CHAIN_TOOLS_MAX:
            so_far = None
        if following is not None:
            if so_far is not None:
                while len(self._chains) >= CHAINS_MAX:
                    del self._chains[next(iter(self._chains))]
                self._chains[_short(following)] = so_far
            if own and not self._known:
                self.cursor, self._wanted = following, True
            return None
        if so_far is not None:
            self._known, self._given_up_at = True, None
            fresh = isinstance(ttl_ms, int) and not isinstance(ttl_ms, bool) and ttl_ms >= 0
            seconds = max(min(cast("int", ttl_ms), 1 << 40) / 1000, LIST_SECONDS_MIN) if fresh else None
            self._stale_at = None if seconds is None else time.monotonic() + seconds
        return so_far


_MALFORMED_ANSWER: Final = "the server's answer could not be read safely, so it was withheld."
_TAKEN_NAME: Final = "this name stands for resources/read or prompts/get, and is no tool that can be called."
_DEFECT: Final = "the gate failed while it looked at this message, so nothing was let through."


def _kind(message: dict[str, Any]) -> str:
    if message.get("jsonrpc") != "2.0":
        raise Malformed('not JSON-RPC: jsonrpc must be "2.0"', INVALID)
    answers = ("result" in message) + ("error" in message)
    if "method" in message:
        if answers:
            raise Malformed("a request and an answer in one", INVALID)
        if type(message["method"]) is not str:
            raise Malformed("the method is no text", INVALID)
        if "params" in message and type(message["params"]) is not dict:
            raise Malformed("params must be an object", INVALID)
        return "request" if "id" in message else "notification"
    if answers != 1:
        raise Malformed("neither a request nor an answer", INVALID)
    return "answer"


def _meta(message: dict[str, Any]) -> dict[str, Any]:
    params = message.get("params")
    meta = cast("dict[str, Any]", params).get("_meta") if type(params) is dict else None
    return cast("dict[str, Any]", meta) if type(meta) is dict else {}


def _speaks_modern(message: dict[str, Any]) -> bool:
    return META + "protocolVersion" in _meta(message)


def _name_of(info: object) -> str | None:
    name = cast("dict[str, Any]", info).get("name") if type(info) is dict else None
    return name if type(name) is str else None


def _action(method: str, params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The tool that a request comes to, and its arguments."""
    if method == "resources/read":
        if type(uri := params.get("uri")) is not str:
            raise _Refusal(PARAMS_WRONG, "uri must be text")
        return READ_RESOURCE, {"uri": uri}
    name, arguments = params.get("name"), params.get("arguments")
    if type(name) is not str:
        raise _Refusal(PARAMS_WRONG, "name must be text")
    if arguments is not None and type(arguments) is not dict:
        raise _Refusal(PARAMS_WRONG, "arguments must be an object")
    given = cast("dict[str, Any]", arguments or {})
    return (name, given) if method == "tools/call" else (GET_PROMPT, {"name": name, "arguments": given})


def _status(message: dict[str, Any]) -> tuple[str, str | None]:
    if "error" in message:
        return "error", "JsonRpcError"
    result = message.get("result")
    failed = type(result) is dict and cast("dict[str, Any]", result).get("isError") is True
    return ("error", "ToolError") if failed else ("ok", None)


def _finish(pending: _Pending, status: str, error: str | None, *, began: bool = True) -> None:
    """Ends what was reserved for a request, and records how it ended."""
    call, decision = pending.model_call, pending.decision
    if call is None and decision is None:
        return
    try:
        if call is not None:
            failure = None if status == "ok" else _Ended(error)
            call.__exit__(None if failure is None else type(failure), failure, None)
        elif decision is not None:
            if not began:
                decision._release()  # noqa: SLF001 - the native half of `Gate.guard`, which ends calls in this way too
            duration_ms = max(int((time.monotonic() - pending.begun) * 1000), 0)
            decision._finish(status, error, duration_ms)  # noqa: SLF001 - as above
    except TollkeeperError:
        # The next check says what is wrong with the log, by refusing.
        return


class _Ended(Exception):  # noqa: N818 - how a model call ended, for its record
    """The model's answer did not come."""


def _error(id_: Id | None, code: int, message: str, data: dict[str, Any] | None = None) -> bytes:
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return strict.write({"jsonrpc": "2.0", "id": id_, "error": error})


def _refused(  # noqa: PLR0913 - what a refusal says
    method: str, id_: Id, code: str, reason: str, *, modern: bool, decision: str | None = None
) -> bytes:
    """A refusal as whoever asked can read it: the model, where a tool was called."""
    text = f"Denied ({code}): {reason}"
    if method != "tools/call":
        return _error(id_, REFUSED, text, {"code": code, "decision": decision})
    meta = {"tollkeeper/code": code} if decision is None else {"tollkeeper/code": code, "tollkeeper/decision": decision}
    result: dict[str, Any] = {"content": [{"type": "text", "text": text}], "isError": True, "_meta": meta}
    if modern:
        result["resultType"] = "complete"
    return strict.write({"jsonrpc": "2.0", "id": id_, "result": result})


def _filtered(  # noqa: PLR0913, PLR0917 - an answer, and what of it stays
    message: dict[str, Any],
    result: dict[str, Any],
    raw: bytes,
    name: str,
    items: object,
    stays: Callable[[dict[str, Any]], bool],
) -> Forward:
    if type(items) is not list:
        return Forward(raw)
    listed = cast("list[object]", items)
    kept: list[object] = [item for item in listed if type(item) is dict and stays(cast("dict[str, Any]", item))]
    if len(kept) == len(listed):
        return Forward(raw)
    return Forward(strict.write({**message, "result": {**result, name: kept}}))


def _guessed_id(raw: bytes) -> Id | None:
    """The id of a message that is refused as a whole: to tell whoever waits, and for nothing else."""
    found = _ID.search(raw[:GUESSED_BYTES])
    if found is None:
        return None
    try:
        value = strict.read(found[1], bytes_max=GUESSED_BYTES)
    except Malformed:
        return None
    return cast("Id", value)


def _short(text: str) -> str:
    """Text of somebody else, to be compared later: thousands of long ones are not kept."""
    return text if len(text) <= KEPT_CHARS else hashlib.sha256(text.encode()).hexdigest()


def _shown(text: str) -> str:
    short = text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."
    return "".join(char if char.isprintable() else "?" for char in short)


def _line(text: str) -> str:
    return " ".join(text.split())


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {_shown(_line(str(error)))}"
