"""A gate in the OpenAI Agents SDK: one call goes through, one is refused, and the log has both.

The model answers from a script, so that it runs anywhere: python examples/hosts/openai_agents_agent.py
Needs `openai-agents` beside `tollkeeper` (the extra `openai-agents`).
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage, function_tool
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from tollkeeper import Gate
from tollkeeper.adapters import openai_agents

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


@function_tool
def send_mail(to: str, text: str) -> str:
    """Sends a mail."""
    return f"sent {len(text)} characters to {to}"


class Scripted(Model):
    """A model that wants to mail two people and then says what it was told."""

    model = "scripted"

    async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> ModelResponse:  # type: ignore[override]  # noqa: A002 - the SDK's names
        """The next answer."""
        del system_instructions
        items = [] if isinstance(input, str) else input
        results = [item["output"] for item in items if item.get("type") == "function_call_output"]
        for result in results[-1:]:
            print(f"the model reads: {result}")
        usage = Usage(requests=1, input_tokens=120, output_tokens=30, total_tokens=150)
        return ModelResponse(output=[self._item(len(results))], usage=usage, response_id=None)

    @staticmethod
    def _item(turn: int) -> Any:
        people = ["ann@example.com", "eve@elsewhere.net"]
        if turn < len(people):
            arguments = json.dumps({"to": people[turn], "text": "hello"})
            return ResponseFunctionToolCall(
                arguments=arguments, call_id=f"call-{turn}", name="send_mail", type="function_call"
            )
        said = ResponseOutputText(
            annotations=[], logprobs=[], text="One mail was sent, one was not allowed.", type="output_text"
        )
        return ResponseOutputMessage(id="m", content=[said], role="assistant", status="completed", type="message")

    def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        """Not in this example."""
        raise NotImplementedError


async def work(folder: Path) -> None:
    """Runs the agent, with a gate that this folder configures."""
    async with Gate.open(folder / "tollkeeper.toml") as gate:
        guard = openai_agents.Guard(gate, resource='Mcp::"crm"', max_output_tokens=500)
        guard.install()
        agent = guard.agent(Agent(name="researcher", tools=[send_mail], model=Scripted()))
        with gate.run(principal='Agent::"researcher"', session="s-42", budget="acme/research"):
            config = guard.run_config(RunConfig(tracing_disabled=True))
            done = await Runner.run(agent, "Mail Ann and Eve.", run_config=config)
        print("the agent says:", done.final_output)
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
