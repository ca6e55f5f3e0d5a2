"""What one tool call costs outside of any framework, for `hosts.py`: the part that adapters share, and two peers.

The peers do less: neither has a budget, agent-hooks decides nothing by itself and Tenuo one warrant's patterns; neither
keeps a log that outsiders can verify. Each is asked first whether it refuses what it should.
"""

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from host_turns import ARGUMENTS, RESOURCE

Call = Callable[[], Any]
AsyncCall = Callable[[], Coroutine[Any, Any, Any]]
BAD = {"to": "eve@elsewhere.net", "text": "hello"}


def crossing(gate: Any) -> tuple[Call, AsyncCall]:
    """A copy, a decision, a hold, a record, and the outcome at the end, as every adapter has them for each call."""
    from tollkeeper.adapters._base import Crossing  # noqa: PLC0415 - beside the peers

    def let(passage: Any) -> Any:
        if hasattr(passage, "text"):
            raise AssertionError(passage.text)
        return passage

    shared = Crossing(gate, "bench", resource=RESOURCE)
    shared.see("send_mail", None, lambda: None)
    ids = {"agent": "researcher", "session": "thread-7", "call": "call-0"}

    def call() -> None:
        passage = shared.enter("send_mail", ARGUMENTS, ids)
        let(passage).over()

    async def acall() -> None:
        passage = await shared.aenter("send_mail", ARGUMENTS, ids)
        let(passage).over()

    return call, acall


async def agent_hooks() -> AsyncCall:
    """The reference emitter: one emission before a tool call, to one interceptor that allows.

    Raises:
        ImportError: It is not installed.
    """
    import agent_hooks as peer  # noqa: PLC0415 - may be missing

    class Allows:
        def intercept(self, context: Any) -> Any:
            bad = context.get("tool_call", {}).get("args") == BAD
            return peer.Verdict.deny(reason="no") if bad else peer.Verdict.allow()

    builder = peer.AgentContextBuilder(agent_id="researcher", framework="bench", session_id="thread-7")
    emitter = peer.InterceptionEmitter().register(Allows())
    await emitter.emit(builder.agent_startup(tools_registered=["send_mail"]))

    async def emit(arguments: dict[str, str]) -> Any:
        return await emitter.emit(builder.pre_tool_call(call_id="call-0", name="send_mail", args=dict(arguments)))

    try:
        await emit(BAD)
    except peer.InterceptionBlocked:
        pass
    else:
        message = "agent-hooks lets through what its interceptor denies"
        raise AssertionError(message)

    async def call() -> None:
        outcome = await emit(ARGUMENTS)
        if outcome.record.verdict.decision != peer.Decision.ALLOW:
            raise AssertionError(outcome)

    return call


def tenuo() -> Call:
    """A function under its decorator, with a warrant for two patterns.

    Raises:
        ImportError: It is not installed.
    """
    import tenuo as peer  # noqa: PLC0415 - may be missing
    from tenuo.audit import audit_logger  # noqa: PLC0415 - as above

    # It would print a line for each call.
    audit_logger.configure(enabled=False)
    logging.getLogger("tenuo").setLevel(logging.CRITICAL)
    key = peer.SigningKey.generate()
    patterns = {"to": peer.Pattern("*@example.com"), "text": peer.Pattern("*")}
    warrant = peer.Warrant.mint_builder().capability("send_mail", **patterns)
    warrant = warrant.holder(key.public_key).ttl(24 * 3600).mint(key)

    @peer.guard(warrant, tool="send_mail", keypair=key, trusted_roots=[key.public_key])  # type: ignore[misc]
    def send_mail(to: str, text: str) -> str:
        return to + text

    try:
        send_mail(**BAD)
    except peer.AuthorizationDenied:
        pass
    else:
        message = "Tenuo lets through what its warrant does not"
        raise AssertionError(message)

    def call() -> None:
        if send_mail(**ARGUMENTS) != "ann@example.comhello":
            raise AssertionError

    return call
