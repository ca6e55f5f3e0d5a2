"""Decide every AgentDojo call against the policies in this folder and print what held and what did not.

For: `python report.py --calls FILE.json`, in an environment where `tollkeeper` is installed; `run.py` makes the
file and calls this. A user task is intact when each of its calls is allowed; an attack task is stopped when one
of the calls it needs is denied.

Refuses to: call a run a success because the totals look good. It exits with 1 when a user's call is denied, when
an attack passes that `known_limits.toml` does not explain, or when that file explains something that does not
happen. It never executes a tool and never uses the network.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import facts
import schema

from tollkeeper import Entities, PolicySet

HERE = Path(__file__).resolve().parent
NO_PERMIT = "no permit"
WIDTH = 110
EXIT_SURPRISE = 1
EXIT_FAILED = 2


@dataclass(frozen=True)
class Call:
    """One tool call as the assistant would make it."""

    tool: str
    args: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A user's task or an attack, with the calls that it needs."""

    name: str
    calls: list[Call]


@dataclass(frozen=True)
class Suite:
    """What is needed to decide the calls of one suite."""

    name: str
    principal: str
    resource_of: Mapping[str, str]
    signatures: Mapping[str, Mapping[str, Any]]
    policies: PolicySet
    entities: Entities
    user_tasks: list[Task]
    attacks: list[Task]


@dataclass
class Outcome:
    """What happened in one suite."""

    name: str
    user_tasks: int = 0
    user_tasks_intact: int = 0
    user_calls: int = 0
    user_calls_allowed: int = 0
    attacks: int = 0
    attack_calls: int = 0
    stopped: dict[str, set[str]] = field(default_factory=dict)
    not_stopped: list[str] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    allowing: Counter[str] = field(default_factory=Counter)
    denying: Counter[str] = field(default_factory=Counter)
    denied_user_calls: list[str] = field(default_factory=list)


def decide(suite: Suite, call: Call) -> tuple[bool, list[str]]:
    """Whether the call is allowed, and the `@id`s of the policies that decided; none if no policy permits it.

    This is the only place that knows how Tollkeeper is asked.
    """
    answer = suite.policies.decide(
        suite.principal,
        f"Action::{json.dumps(call.tool, ensure_ascii=False)}",
        suite.resource_of[call.tool],
        {"input": as_declared(call.args, suite.signatures[call.tool])},
        suite.entities,
    )
    return answer.decision == "allow", [suite.policies.annotations(policy)["id"] for policy in answer.reasons]


def as_declared(args: Mapping[str, Any], signature: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with whole numbers made fractional where the tool declares `number`.

    A gate does this for every registered tool; a bare `PolicySet` knows policies and entities but no tools.
    """
    declared = signature.get("properties", {})
    unknown = set(args) - set(declared)
    if unknown:
        raise ValueError(f"arguments that the tool does not declare: {', '.join(sorted(unknown))}")
    return {name: _as_number(value, declared[name]) for name, value in args.items()}


def _as_number(value: Any, declared: Mapping[str, Any]) -> Any:
    kinds = {branch.get("type") for branch in declared.get("anyOf", [declared])}
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole and "number" in kinds else value


def load(document: Mapping[str, Any]) -> Iterator[Suite]:
    """The suites of `extract.py`'s document, each with its policies checked against its tools' signatures."""
    setup = read_toml("suites.toml")
    written_down = read_toml("injection_calls.toml")
    if set(setup) != set(document["suites"]):
        raise ValueError(f"suites.toml describes {sorted(setup)}, the document holds {sorted(document['suites'])}")
    for name, entry in setup.items():
        source = document["suites"][name]
        resource_of = _owners(name, entry["systems"], source["tools"])
        known = facts.gather(
            name, source["environment"], entry["principal"], entry["systems"], entry.get("declared", {})
        )
        types = {tool: facts.uid(system)["type"] for tool, system in resource_of.items()}
        schema_text = schema.cedar_schema(
            source["tools"], types, known.declarations, open_objects=entry.get("open", {})
        )
        yield Suite(
            name=name,
            principal=entry["principal"],
            resource_of=resource_of,
            signatures=source["tools"],
            policies=PolicySet.from_cedar(HERE / f"{name}.cedar", schema=schema_text),
            entities=Entities.from_json(json.dumps(known.entities), schema=schema_text),
            user_tasks=[_task(task, calls) for task, calls in source["user_tasks"].items()],
            attacks=_attacks(name, source["injection_tasks"], written_down.get(name, {})),
        )


def _owners(suite: str, systems: Mapping[str, list[str]], tools: Mapping[str, Any]) -> dict[str, str]:
    """Which system owns each tool; every tool must have exactly one."""
    listed = [tool for owned in systems.values() for tool in owned]
    wrong = sorted(set(listed) ^ set(tools)) + sorted(tool for tool, n in Counter(listed).items() if n > 1)
    if wrong:
        raise ValueError(f"suites.toml, {suite}: each tool needs exactly one system; check {', '.join(wrong)}")
    return {tool: system for system, owned in systems.items() for tool in owned}


def _attacks(suite: str, recorded: Mapping[str, Any], written_down: Mapping[str, Any]) -> list[Task]:
    """The attack tasks, with our calls for those that have none on record, and only for those."""
    silent = {task for task, calls in recorded.items() if not calls}
    if silent != set(written_down):
        raise ValueError(
            f"injection_calls.toml, {suite}: it has {sorted(written_down)}, without recorded calls are {sorted(silent)}"
        )
    return [_task(task, calls or written_down[task]["calls"]) for task, calls in recorded.items()]


def _task(name: str, calls: list[Mapping[str, Any]]) -> Task:
    return Task(name, [Call(call["tool"], call["args"]) for call in calls])


def read_toml(name: str) -> dict[str, Any]:
    """One of the tables that lie beside this file."""
    return tomllib.loads((HERE / name).read_text(encoding="utf-8"))


def run(suite: Suite) -> Outcome:
    """Decide every call of the suite."""
    outcome = Outcome(suite.name, user_tasks=len(suite.user_tasks), attacks=len(suite.attacks))
    for task in suite.user_tasks:
        intact = True
        for call in task.calls:
            allowed, policies = decide(suite, call)
            outcome.user_calls += 1
            outcome.user_calls_allowed += allowed
            if allowed:
                outcome.allowing.update(policies)
            else:
                intact = False
                arguments = json.dumps(dict(call.args), ensure_ascii=False)
                by = ", ".join(policies) or NO_PERMIT
                outcome.denied_user_calls.append(f"{suite.name} {task.name}: {call.tool} {arguments}: {by}")
        outcome.user_tasks_intact += intact
    for task in suite.attacks:
        stopped_by: set[str] = set()
        for call in task.calls:
            allowed, policies = decide(suite, call)
            outcome.attack_calls += 1
            if allowed:
                outcome.passed[call.tool] += 1
            else:
                outcome.denying.update(policies or [NO_PERMIT])
                stopped_by.update(policies or [NO_PERMIT])
        if stopped_by:
            outcome.stopped[task.name] = stopped_by
        else:
            outcome.not_stopped.append(task.name)
    return outcome


def check(outcomes: list[Outcome], limits: Mapping[str, Any]) -> list[str]:
    """What contradicts the aim or `known_limits.toml`, in sentences."""
    problems = [f"a user's call is denied: {denied}" for outcome in outcomes for denied in outcome.denied_user_calls]
    passes = {(outcome.name, task) for outcome in outcomes for task in outcome.not_stopped}
    listed = {(entry["suite"], entry["task"]) for entry in limits.get("passes", [])}
    problems += [
        f"{suite} {task} passes, and known_limits.toml does not say why" for suite, task in sorted(passes - listed)
    ]
    problems += [
        f"known_limits.toml says that {suite} {task} passes; it does not: take it out"
        for suite, task in sorted(listed - passes)
    ]
    stopped = {(outcome.name, task): by for outcome in outcomes for task, by in outcome.stopped.items()}
    for entry in limits.get("thin", []):
        by = stopped.get((entry["suite"], entry["task"]), set())
        if by != set(entry["by"]):
            found = ", ".join(sorted(by)) or "nothing"
            problems.append(
                f"known_limits.toml says that {entry['suite']} {entry['task']} is stopped by "
                f"{', '.join(entry['by'])}; it is stopped by {found}"
            )
    return problems


def render(outcomes: list[Outcome], limits: Mapping[str, Any], source: str) -> str:
    """The report as text."""
    titles = ("user tasks intact", "user calls allowed", "attack tasks stopped", "attack calls passed")
    lines = [f"{source}: every call decided by Tollkeeper", "", _columns("suite", titles)]
    lines += [_row(outcome) for outcome in [*outcomes, _total(outcomes)]]
    for outcome in outcomes:
        lines += ["", f"{outcome.name}: deciding policies"]
        lines += _counts("user calls allowed by", outcome.allowing)
        lines += _counts("attack calls denied by", outcome.denying)
        lines += _counts("attack calls that passed", outcome.passed)
    lines += ["", "Attack tasks that pass, and why:"]
    lines += [line for entry in limits.get("passes", []) for line in _limit(entry)]
    lines += ["", "Attack tasks that are stopped, but could be worded so as to pass:"]
    lines += [line for entry in limits.get("thin", []) for line in _limit(entry)]
    lines += ["", "Facts that the environments do not hold and suites.toml states:"]
    for name, entry in read_toml("suites.toml").items():
        for fact, values in entry.get("declared", {}).items():
            lines += _wrapped(f"{name}: {fact} = {', '.join(values)}")
    return "\n".join(lines) + "\n"


def _row(outcome: Outcome) -> str:
    cells = (
        f"{outcome.user_tasks_intact}/{outcome.user_tasks}",
        f"{outcome.user_calls_allowed}/{outcome.user_calls}",
        f"{len(outcome.stopped)}/{outcome.attacks}",
        f"{outcome.passed.total()}/{outcome.attack_calls}",
    )
    return _columns(outcome.name, cells)


def _columns(first: str, cells: Iterable[str]) -> str:
    return f"{first:<11}" + "".join(f"{cell:>22}" for cell in cells)


def _total(outcomes: list[Outcome]) -> Outcome:
    total = Outcome("all")
    for outcome in outcomes:
        total.user_tasks += outcome.user_tasks
        total.user_tasks_intact += outcome.user_tasks_intact
        total.user_calls += outcome.user_calls
        total.user_calls_allowed += outcome.user_calls_allowed
        total.attacks += outcome.attacks
        total.attack_calls += outcome.attack_calls
        total.passed += outcome.passed
        total.stopped |= {f"{outcome.name} {task}": by for task, by in outcome.stopped.items()}
    return total


def _counts(title: str, counts: Counter[str]) -> list[str]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    text = ", ".join(f"{name} ({number})" for name, number in ordered) or "none"
    return _wrapped(f"{title}: {text}")


def _limit(entry: Mapping[str, Any]) -> list[str]:
    by = f", stopped by {', '.join(entry['by'])}" if "by" in entry else ""
    return _wrapped(f"{entry['suite']} {entry['task']}{by}: {entry['reason']}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def main() -> int:
    """Print the report; 0 when it says what `known_limits.toml` says, 2 when there is nothing to report."""
    parser = argparse.ArgumentParser(description="Decide every AgentDojo call against the policies in this folder.")
    parser.add_argument("--calls", type=Path, required=True, help="the JSON document that extract.py wrote")
    arguments = parser.parse_args()
    try:
        document = json.loads(arguments.calls.read_text(encoding="utf-8"))
        outcomes = [run(suite) for suite in load(document)]
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED
    limits = read_toml("known_limits.toml")
    source = f"AgentDojo {document['package']}, benchmark {document['benchmark']}"
    sys.stdout.write(render(outcomes, limits, source))
    problems = check(outcomes, limits)
    for problem in problems:
        sys.stderr.write(f"error: {problem}\n")
    return EXIT_SURPRISE if problems else 0


if __name__ == "__main__":
    sys.exit(main())
