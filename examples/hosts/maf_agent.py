"""A gate in Microsoft Agent Framework: one call goes through, one is refused, and the log has both.

The model answers from a script, so that it runs anywhere: python examples/hosts/maf_agent.py
Needs `agent-framework-core` beside `tollkeeper` (the extra `maf`).
"""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_framework import (
    Agent,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    Content,
    FunctionInvocationLayer,
    Message,
)

from tollkeeper import Gate
from tollkeeper.adapters import maf

POLICIES = """
@id("tools") permit(principal == Agent::"researcher", action in Action::"call_tool", resource == Mcp::"crm");
@id("models") permit(principal, action == Action::"call_model", resource);
@id("known-people") @reason("Mail goes to example.com only.")
forbid(principal, action == Action::"send_mail", resource)
unless { context.input has to && context.input.to like "*@example.com" };
"""
BUDGETS = '[budget."acme/research"]\nlimits = [{ unit = "tokens", window = "1d", limit = 10000 }]\n'
CONFIG = """
[policy]
files = ["policies.cedar"]
[budget]
file = "budgets.toml"
[audit]
origin = "example.com/hosts"
"""


def send_mail(to: str, text: str) -> str:
    """Sends a mail."""
    return f"sent {len(text)} characters to {to}"


class Scripted(FunctionInvocationLayer, ChatMiddlewareLayer, BaseChatClient):  # type: ignore[misc]
    """A model that wants to mail two people and then says what it was told."""

    model = "scripted"

    def _inner_get_response(self, *, messages: Sequence[Message], **_: Any) -> Any:
        results = [
            content.result for message in messages for content in message.contents if content.type == "function_result"
        ]
        for result in results[-1:]:
            print(f"the model reads: {result}")
        return self._answer(len(results))

    async def _answer(self, turn: int) -> ChatResponse[Any]:
        people = ["ann@example.com", "eve@elsewhere.net"]
        content = Content.from_text("One mail was sent, one was not allowed.")
        if turn < len(people):
            content = Content.from_function_call(
                f"call-{turn}", "send_mail", arguments={"to": people[turn], "text": "hello"}
            )
        usage = {"input_token_count": 120, "output_token_count": 30}
        return ChatResponse(messages=[Message("assistant", [content])], usage_details=usage)


async def work(folder: Path) -> None:
    """Runs the agent, with a gate that this folder configures."""
    async with Gate.open(folder / "tollkeeper.toml") as gate:
        guard = maf.Guard(gate, resource='Mcp::"crm"', max_output_tokens=500)
        guard.install()
        agent = Agent(Scripted(), name="researcher", tools=[send_mail], middleware=guard.middleware())
        with gate.run(principal='Agent::"researcher"', session="s-42", budget="acme/research"):
            print("the agent says:", await agent.run("Mail Ann and Eve."))
        used = gate.ledger.usage("acme/research")["tokens", "1d"].used
        print(f"tokens used: {used}")


def main() -> None:
    """Runs the agent in a folder of its own, and prints what the audit log has."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name, text in (("policies.cedar", POLICIES), ("budgets.toml", BUDGETS), ("tollkeeper.toml", CONFIG)):
            (folder / name).write_text(text)
        asyncio.run(work(folder))
        command = [sys.executable, "-m", "tollkeeper", "audit", "show", "--kind", "decision", str(folder / "audit")]
        shown = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own command
        print(shown.stdout.rstrip())


if __name__ == "__main__":
    main()
