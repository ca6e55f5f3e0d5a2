"""Read the AgentDojo task suites and print them as one JSON document.

For: `run.py`, which starts this file with the Python of AgentDojo's own virtual environment. The document
holds, per suite, the JSON Schema of every tool, what each user asks for, the tool calls that solve it and which
of them return planted text, the tool calls that each attack needs, and the environment as its owner left it
before any attack was planted.

Refuses to: decide anything, use the network, call a model, or go on when the suites are not the ones that
the policies were written for (`EXPECTED` below); a benchmark that changed must be noticed, not averaged in.

Idea from: AgentDojo, a dynamic environment to evaluate attacks and defences for LLM agents (2024).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

BENCHMARK_VERSION = "v1.2.2"

# What the authors' release holds, counted over its four suites. An attack task without recorded calls is
# one whose `ground_truth` is empty; `injection_calls.toml` writes those calls down.
EXPECTED = {
    "user_tasks": 97,
    "user_calls": 339,
    "injection_tasks": 35,
    "injection_tasks_with_calls": 26,
    "injection_calls": 47,
}


def import_without_model_clients() -> None:
    """Let AgentDojo be imported where no model vendor's client library is installed.

    The package `agentdojo.agent_pipeline` imports every vendor's client, and its tool executor one constant of a
    client's module. So the package is entered here with its real path and an empty body, and the module of that
    constant is replaced by one that holds nothing else. Everything else is AgentDojo's own.
    """
    spec = importlib.util.find_spec("agentdojo")
    if spec is None or not spec.submodule_search_locations:
        message = "the agentdojo package is not installed in this environment; start run.py, which installs it"
        raise SystemExit(message)
    package = types.ModuleType("agentdojo.agent_pipeline")
    package.__path__ = [str(Path(spec.submodule_search_locations[0]) / "agent_pipeline")]
    sys.modules[package.__name__] = package
    client = types.ModuleType("agentdojo.agent_pipeline.llms.google_llm")
    client.EMPTY_FUNCTION_NAME = "<empty-function-name>"  # type: ignore[attr-defined]  # the module is ours
    sys.modules[client.__name__] = client


def plain_calls(calls: Any) -> list[dict[str, Any]]:
    """AgentDojo's call objects as plain data."""
    return [{"tool": call.function, "args": dict(call.args)} for call in calls]


# Stands where an attack would stand. Nothing in the environments looks like it.
MARK = "text-that-an-attacker-planted"


def planted(suite: Any, task: Any) -> list[int]:
    """The places, among a task's calls, of those whose result shows text that an attacker can plant.

    Known only by calling: the tools are the package's own and work on a simulated environment in memory.
    """
    from agentdojo.functions_runtime import FunctionsRuntime  # noqa: PLC0415 - runs the package, see main

    marks = dict.fromkeys(suite.get_injection_vector_defaults(), MARK)
    environment = task.init_environment(suite.load_and_inject_default_environment(marks))
    runtime, found = FunctionsRuntime(suite.tools), []
    for place, call in enumerate(task.ground_truth(environment.model_copy(deep=True))):
        result, error = runtime.run_function(environment, call.function, dict(call.args))
        if error is not None:
            raise SystemExit(f"{suite.name} {task.ID}: the recorded call of {call.function} fails: {error}")
        if MARK in repr(result):
            found.append(place)
    return found


def read_suite(suite: Any) -> dict[str, Any]:
    """One suite: its tools, the calls of its tasks, and the environment that its owner left."""
    owned = suite.load_and_inject_default_environment({})
    user_tasks, requests, marked = {}, {}, {}
    for task_id, task in suite.user_tasks.items():
        # A task may arrange the environment for itself first, so each one gets a copy of its own.
        environment = task.init_environment(owned.model_copy(deep=True))
        user_tasks[task_id] = plain_calls(task.ground_truth(environment))
        requests[task_id] = task.PROMPT
        marked[task_id] = planted(suite, task)
    injection_tasks = {}
    for task_id, task in suite.injection_tasks.items():
        injection_tasks[task_id] = plain_calls(task.ground_truth(owned.model_copy(deep=True)))
    return {
        "tools": {tool.name: tool.parameters.model_json_schema() for tool in suite.tools},
        "user_tasks": user_tasks,
        "requests": requests,
        "planted": marked,
        "injection_tasks": injection_tasks,
        "environment": owned.model_dump(mode="json"),
    }


def count(suites: dict[str, Any]) -> dict[str, int]:
    """The figures that `EXPECTED` pins."""
    user = [calls for suite in suites.values() for calls in suite["user_tasks"].values()]
    injection = [calls for suite in suites.values() for calls in suite["injection_tasks"].values()]
    return {
        "user_tasks": len(user),
        "user_calls": sum(len(calls) for calls in user),
        "injection_tasks": len(injection),
        "injection_tasks_with_calls": sum(1 for calls in injection if calls),
        "injection_calls": sum(len(calls) for calls in injection),
    }


def main() -> None:
    """Write the document to `--out`, or to standard output."""
    parser = argparse.ArgumentParser(description="Print the AgentDojo task suites as one JSON document.")
    parser.add_argument("--out", type=Path, help="write to this file instead of standard output")
    arguments = parser.parse_args()

    import_without_model_clients()
    # This import runs the package, so it has to come after the line above and not at the top of the file.
    from agentdojo.task_suite.load_suites import get_suites  # noqa: PLC0415 - see the line above

    suites = {name: read_suite(suite) for name, suite in sorted(get_suites(BENCHMARK_VERSION).items())}
    found = count(suites)
    if found != EXPECTED:
        raise SystemExit(f"the suites of benchmark {BENCHMARK_VERSION} hold {found}, expected {EXPECTED}")
    document = {
        "package": importlib.metadata.version("agentdojo"),
        "benchmark": BENCHMARK_VERSION,
        "suites": suites,
    }
    text = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    if arguments.out is None:
        sys.stdout.write(text)
    else:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
