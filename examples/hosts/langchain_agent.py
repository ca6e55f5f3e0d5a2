"""A gate in LangChain: one call goes through, one is refused, and the log has both.

The model answers from a script, so that it runs anywhere: python examples/hosts/langchain_agent.py
Needs `langchain` beside `tollkeeper` (the extra `langchain`).
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from tollkeeper import Gate
from tollkeeper.adapters import langchain

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


class Scripted(BaseChatModel):
    """A model that wants to mail two people and then says what it was told."""

    model_name: str = "scripted"

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **_: Any) -> "Scripted":  # type: ignore[override]
        """The script knows its tools."""
        del tools
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        results = [message for message in messages if isinstance(message, ToolMessage)]
        for result in results[-1:]:
            print(f"the model reads: {result.content}")
        people, turn = ["ann@example.com", "eve@elsewhere.net"], len(results)
        usage = {"input_tokens": 120, "output_tokens": 30, "total_tokens": 150}
        message = AIMessage("One mail was sent, one was not allowed.", usage_metadata=usage)
        if turn < len(people):
            call = {"id": f"call-{turn}", "name": "send_mail", "args": {"to": people[turn], "text": "hello"}}
            message = AIMessage("", tool_calls=[call], usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


def work(folder: Path) -> None:
    """Runs the agent, with a gate that this folder configures."""
    with Gate.open(folder / "tollkeeper.toml") as gate:
        guard = langchain.Guard(gate, resource='Mcp::"crm"', max_output_tokens=500)
        guard.install()
        agent = create_agent(Scripted(), [send_mail], middleware=guard.middleware("researcher"))
        with gate.run(principal='Agent::"researcher"', session="s-42", budget="acme/research"):
            asked = {"messages": [("user", "Mail Ann and Eve.")]}
            done = agent.invoke(asked, {"configurable": {"thread_id": "thread-7"}})
            print("the agent says:", done["messages"][-1].content)
        used = gate.ledger.usage("acme/research")["tokens", "1d"].used
        print(f"tokens used: {used}")


def main() -> None:
    """Runs the agent in a folder of its own, and prints what the audit log has."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name, text in (("policies.cedar", POLICIES), ("budgets.toml", BUDGETS), ("tollkeeper.toml", CONFIG)):
            (folder / name).write_text(text)
        work(folder)
        command = [sys.executable, "-m", "tollkeeper", "audit", "show", "--kind", "decision", str(folder / "audit")]
        shown = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own command
        print(shown.stdout.rstrip())


if __name__ == "__main__":
    main()
