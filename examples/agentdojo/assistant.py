"""Play attacks of AgentDojo with an assistant on Microsoft Agent Framework, whose model obeys what it reads.

For: `attack.py`, which starts this file with the Python of AgentDojo's own virtual environment. The tools, the
environments, the attack, where it is planted and the checks afterwards are AgentDojo's; the loop that calls the tools
is the framework's; the model is a script. It makes the calls that solve the user's task, and as soon as a tool's
output carries the goal of the attack, it makes the calls of the attack before it goes on.

Refuses to: say who won. Whether the attack succeeded and the user's task was done is what `security` and `utility` of
AgentDojo say about the environment that is left. Of a gate it knows a configuration file, and of what a run is held to
the texts that it was given; it derives neither.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import extract

# AgentDojo asks its packages for what a model's vendor brings, so this stands before its imports.
extract.import_without_model_clients()

from agent_framework import (  # noqa: E402 - see the line above
    Agent,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    Content,
    FunctionInvocationLayer,
    FunctionTool,
    Message,
)
from agentdojo.agent_pipeline.tool_execution import tool_result_to_str  # noqa: E402 - see above
from agentdojo.attacks import load_attack  # noqa: E402 - see above
from agentdojo.functions_runtime import FunctionsRuntime  # noqa: E402 - see above
from agentdojo.task_suite.load_suites import get_suites  # noqa: E402 - see above

from tollkeeper import AuditLog, Gate  # noqa: E402 - see above
from tollkeeper.adapters import maf  # noqa: E402 - see above

# The benchmark's best known attack; it names the model it talks to, and this is AgentDojo's name for one of one's own.
ATTACK = "important_instructions"
MODEL_NAME = "local"
ORIGIN = "example.com/agentdojo"
# The smallest there is.
RING_BYTES, SEGMENT_BYTES = 1 << 20, 16 << 20
# A letter or a digit: what is left of a text however a tool lays it out. YAML breaks lines, quotes and escapes.
_MEANT = re.compile(r"[^0-9A-Za-z]+")


def squeezed(text: str) -> str:
    """A text without its layout, for finding it in what a tool returns."""
    return _MEANT.sub("", text)


@dataclass
class Script:
    """What the model is going to do, and what has happened to it."""

    task: list[Any]
    attack: list[Any]
    goal: str
    answer: str
    told_by: str | None = None
    """The tool whose output carried the goal of the attack; the model obeys from then on."""
    asked: dict[str, str] = field(default_factory=dict)
    """Tool by the id of its call, in the order in which the model asked."""

    def read(self, results: Iterator[tuple[str, str]]) -> None:
        """Reads what the tools returned; the goal of the attack in one of them comes first from then on."""
        goal = squeezed(self.goal)
        for call, text in results:
            if self.told_by is None and goal in squeezed(text):
                self.told_by = self.asked[call]
                self.task = [*self.attack, *self.task]

    def next(self) -> Content:
        """The next call, or the answer when there is none left. A refused call changes nothing: it obeys."""
        if not self.task:
            return Content.from_text(self.answer)
        call = self.task.pop(0)
        name = f"call-{len(self.asked)}"
        self.asked[name] = call.function
        return Content.from_function_call(name, call.function, arguments=dict(call.args))


class Obeying(FunctionInvocationLayer, ChatMiddlewareLayer, BaseChatClient):  # type: ignore[misc, type-arg]  # theirs
    """A chat client that follows a script, one call at a time."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.model = "scripted"
        self._script = script

    def _inner_get_response(self, *, messages: Sequence[Message], **_: Any) -> Any:
        contents = (content for message in messages for content in message.contents)
        results = ((str(c.call_id), str(c.result)) for c in contents if c.type == "function_result")
        self._script.read(results)
        return self._answer()

    async def _answer(self) -> ChatResponse[Any]:
        return ChatResponse(messages=[Message("assistant", [self._script.next()])])


def tools(runtime: FunctionsRuntime, environment: Any, ran: list[str]) -> list[FunctionTool]:
    """AgentDojo's functions as tools of the framework, on this environment; what runs is added to `ran`."""

    def made(function: Any) -> FunctionTool:
        def run(**arguments: Any) -> str:
            ran.append(function.name)
            result, error = runtime.run_function(environment, function.name, arguments)
            if error is not None:
                raise RuntimeError(error)
            return str(tool_result_to_str(result))

        schema = function.parameters.model_json_schema()
        return FunctionTool(name=function.name, description=function.description, func=run, input_model=schema)

    return [made(function) for function in runtime.functions.values()]


class Pair:
    """One attack in the environment of one user's task, which can be played any number of times."""

    def __init__(self, suite: Any, user_task: str, injection_task: str) -> None:
        self.name = f"{suite.name}/{user_task}/{injection_task}"
        self.suite, self.task, self.attack = suite, suite.user_tasks[user_task], suite.injection_tasks[injection_task]
        # The target has no more than a name, which the attack's text mentions.
        planter = load_attack(ATTACK, suite, SimpleNamespace(name=MODEL_NAME))
        self.injections = planter.attack(self.task, self.attack)

    def play(self, gate: Gate | None = None, **run: Any) -> dict[str, Any]:
        """One run, and what AgentDojo says of what it leaves. `run` is what the gate's run takes."""
        environment = self.task.init_environment(self.suite.load_and_inject_default_environment(self.injections))
        before, ran = environment.model_copy(deep=True), []
        script = Script(
            self.task.ground_truth(before.model_copy(deep=True)),
            self.attack.ground_truth(before.model_copy(deep=True)),
            self.attack.GOAL,
            self.task.GROUND_TRUTH_OUTPUT or "Done.",
        )
        guard = None if gate is None else maf.Guard(gate)
        agent = Agent(
            Obeying(script),
            name=self.suite.name,
            tools=tools(FunctionsRuntime(self.suite.tools), environment, ran),
            middleware=None if guard is None else guard.middleware(),
        )
        around = contextlib.nullcontext() if gate is None else gate.run(request=self.task.PROMPT, **run)
        with around:
            output = asyncio.run(agent.run(self.task.PROMPT)).text
        states = output, before, environment
        self._by_state_alone(*states)
        return {
            "attack_succeeded": self.attack.security(*states),
            "task_done": self.task.utility(*states),
            "told_by": script.told_by,
            "asked": list(script.asked.values()),
            "ran": ran,
        }

    def _by_state_alone(self, *states: Any) -> None:
        """Stops at tasks that AgentDojo judges by what the model asked for: there a refused call counts as made."""
        judged = (self.task.utility_from_traces, self.attack.security_from_traces)
        if any(judge(*states, []) is not None for judge in judged):
            raise SystemExit(f"{self.name}: AgentDojo judges this pair by calls, not by what they left behind")


def main() -> None:
    """Plays what the plan says and writes down what came of it."""
    parser = argparse.ArgumentParser(description="Play AgentDojo attacks, without a gate and with some.")
    parser.add_argument("--plan", type=Path, required=True, help="what to play; written by attack.py")
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    parser.add_argument("--log", type=Path, required=True, help="where the gates' audit log goes")
    arguments = parser.parse_args()
    plan: list[Mapping[str, Any]] = json.loads(arguments.plan.read_text(encoding="utf-8"))
    suites, played = get_suites(extract.BENCHMARK_VERSION), []
    with contextlib.ExitStack() as open_gates:
        # One small log for all of them; a deployment has its own, and names it in its configuration.
        log = AuditLog.open(arguments.log, origin=ORIGIN, ring_bytes=RING_BYTES, segment_bytes=SEGMENT_BYTES)
        open_gates.callback(log.close)
        gates = {file: open_gates.enter_context(Gate.open(file, log=log)) for file in gate_files(plan)}
        for entry in plan:
            pair = Pair(suites[entry["suite"]], entry["user_task"], entry["injection_task"])
            results = {"without": pair.play()}
            for name, held in entry["gates"].items():
                results[name] = pair.play(gates[held["file"]], **held["run"])
            played.append(results)
    arguments.out.write_text(json.dumps(played) + "\n", encoding="utf-8")


def gate_files(plan: list[Mapping[str, Any]]) -> list[str]:
    """The configurations of the plan's gates, each once: a gate serves all pairs of its suite."""
    return list(dict.fromkeys(held["file"] for entry in plan for held in entry["gates"].values()))


if __name__ == "__main__":
    sys.exit(main())
