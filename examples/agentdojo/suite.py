"""Make gates of a suite and hold sessions with them: what an assistant does for one request, call after call.

For: `report.py`, and `attack.py`, which takes their configurations over. Each suite has three gates, one for each
column: its static policies; the same with labels, which tools bring into the session and `*_labels.cedar` reads; and
the same with the run held to what `narrowing.py` derives from the request.

Refuses to: execute a tool. A call that is allowed counts as made, and its outcome is recorded, because that is
what brings its labels into the session. Everything is decided by `Gate.check`; nothing here overrules it.
"""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import facts
import narrowing
import schema

from tollkeeper import Gate

HERE = Path(__file__).resolve().parent
COLUMNS = ("static", "labels", "narrowing")
NO_PERMIT = "no permit"
NOT_IN_RUN = "not a tool of the run"


@dataclass(frozen=True)
class Call:
    """One tool call as the assistant would make it."""

    tool: str
    args: Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A user's task or an attack, with the calls that it needs.

    Of a user's task also what the user has asked for, and which of its calls return text that an attacker can plant.
    """

    name: str
    calls: list[Call]
    request: str = ""
    planted: tuple[int, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether a call is allowed, and the `@id`s of the policies that decided; if none did, what was missing."""

    allowed: bool
    policies: list[str]


@dataclass(frozen=True)
class Suite:
    """What is needed to decide the calls of one suite."""

    name: str
    principal: str
    tools: list[str]
    rules: Mapping[str, Any]
    gates: Mapping[str, Gate]
    user_tasks: list[Task]
    attacks: list[Task]
    reworded: list[Task]


def load(document: Mapping[str, Any], folder: Path) -> Iterator[Suite]:
    """The suites of `extract.py`'s document; their gates are configured by files that are written to `folder`."""
    setup = read_toml("suites.toml")
    written_down, reworded, rules = (read_toml(f"{name}.toml") for name in ("injection_calls", "reworded", "narrowing"))
    if set(setup) != set(document["suites"]):
        raise ValueError(f"suites.toml describes {sorted(setup)}, the document holds {sorted(document['suites'])}")
    for name, entry in setup.items():
        source = document["suites"][name]
        reads = _reads(name, entry["reads"], source)
        (folder / name).mkdir()
        _write_rules(folder / name, name, entry, source)
        resource_of = _owners(name, entry["systems"], source["tools"])
        signatures = source["tools"]
        described = dict.fromkeys(COLUMNS, _tools(signatures, resource_of, reads))
        described["static"] = _tools(signatures, resource_of, {})
        yield Suite(
            name=name,
            principal=entry["principal"],
            tools=sorted(source["tools"]),
            rules=rules[name],
            gates={column: _open(folder / name, name, column, described[column]) for column in COLUMNS},
            user_tasks=[
                _task(task, calls, source["requests"][task], source["planted"][task])
                for task, calls in source["user_tasks"].items()
            ],
            attacks=_attacks(name, source["injection_tasks"], written_down.get(name, {})),
            reworded=[_task(task, entry["calls"]) for task, entry in reworded.get(name, {}).items()],
        )


def _owners(suite: str, systems: Mapping[str, list[str]], tools: Mapping[str, Any]) -> dict[str, str]:
    """Which system owns each tool; every tool must have exactly one."""
    listed = [tool for owned in systems.values() for tool in owned]
    wrong = sorted(set(listed) ^ set(tools)) + sorted(tool for tool, n in Counter(listed).items() if n > 1)
    if wrong:
        raise ValueError(f"suites.toml, {suite}: each tool needs exactly one system; check {', '.join(wrong)}")
    return {tool: system for system, owned in systems.items() for tool in owned}


def _reads(suite: str, listed: Mapping[str, list[str]], source: Mapping[str, Any]) -> dict[str, list[str]]:
    """The labels that each tool brings; every tool that returned planted text must bring `untrusted`."""
    unknown = {tool for tools in listed.values() for tool in tools} - set(source["tools"])
    if unknown:
        raise ValueError(f"suites.toml, {suite}.reads: there is no tool {', '.join(sorted(unknown))}")
    returned = {
        calls[place]["tool"] for task, calls in source["user_tasks"].items() for place in source["planted"][task]
    }
    missing = returned - set(listed["untrusted"])
    if missing:
        raise ValueError(f"suites.toml, {suite}.reads: planted text comes through {', '.join(sorted(missing))}")
    return {tool: [label for label, tools in listed.items() if tool in tools] for tool in source["tools"]}


def _attacks(suite: str, recorded: Mapping[str, Any], written_down: Mapping[str, Any]) -> list[Task]:
    """The attack tasks, with our calls for those that have none on record, and only for those."""
    silent = {task for task, calls in recorded.items() if not calls}
    if silent != set(written_down):
        raise ValueError(
            f"injection_calls.toml, {suite}: it has {sorted(written_down)}, without recorded calls are {sorted(silent)}"
        )
    return [_task(task, calls or written_down[task]["calls"]) for task, calls in recorded.items()]


def _task(name: str, calls: list[Mapping[str, Any]], request: str = "", planted: list[int] | None = None) -> Task:
    return Task(name, [Call(call["tool"], call["args"]) for call in calls], request, tuple(planted or ()))


def read_toml(name: str) -> dict[str, Any]:
    """One of the tables that lie beside this file."""
    return tomllib.loads((HERE / name).read_text(encoding="utf-8"))


# --- gates ---------------------------------------------------------------------------------------------------


def _write_rules(folder: Path, name: str, entry: Mapping[str, Any], source: Mapping[str, Any]) -> None:
    """The schema and the entities, which the gates of a suite have in common."""
    declared, systems = entry.get("declared", {}), entry["systems"]
    known = facts.gather(name, source["environment"], entry["principal"], systems, declared)
    types = {tool: facts.uid(system)["type"] for system, owned in systems.items() for tool in owned}
    text = schema.cedar_schema(source["tools"], types, known.declarations, open_objects=entry.get("open", {}))
    (folder / "schema.cedarschema").write_text(text, encoding="utf-8")
    (folder / "entities.json").write_text(json.dumps(known.entities), encoding="utf-8")


def _tools(signatures: Mapping[str, Any], resource_of: Mapping[str, str], reads: Mapping[str, list[str]]) -> str:
    """The sections of a configuration that describe the tools."""
    lines = []
    for tool, signature in signatures.items():
        lines += [f"[tools.{tool}]", f"resource = {toml(resource_of[tool])}", f"schema = {toml(signature)}"]
        if reads.get(tool):
            lines.append(f"reads = {toml(reads[tool])}")
    return "\n".join(lines) + "\n"


def _open(folder: Path, name: str, column: str, tools: str) -> Gate:
    """The gate of one column. A deployment has the same `tollkeeper.toml`, written by hand."""
    files = [HERE / f"{name}.cedar"]
    labels = HERE / f"{name}_labels.cedar"
    if column != "static" and labels.is_file():
        files.append(labels)
    policy = f"[policy]\nfiles = {toml([str(file) for file in files])}\n"
    policy += 'schema = "schema.cedarschema"\nentities = "entities.json"\n'
    path = folder / f"{column}.toml"
    path.write_text(policy + tools, encoding="utf-8")
    return Gate.open(path)


class Session:
    """One session of an assistant, begun by one request; it decides calls in the order in which they are made."""

    def __init__(self, suite: Suite, column: str, request: str) -> None:
        self._gate, self._tools = suite.gates[column], None
        forbid: list[str] = []
        if column == "narrowing":
            narrowed = narrowing.derive(suite.rules, suite.tools, request)
            self._tools, forbid = narrowed.tools, [narrowed.forbid] if narrowed.forbid else []
        self._scope = self._gate.run(principal=suite.principal, tools=self._tools, forbid=forbid).scope

    def decide(self, call: Call) -> Verdict:
        """Decides a call; if it is allowed it counts as made, and what it reads is in the session from then on."""
        decision = self._gate.check(call.tool, call.args, scope=self._scope)
        if decision.allowed:
            self._gate.outcome(decision)
        silent = NO_PERMIT if self._tools is None or call.tool in self._tools else NOT_IN_RUN
        return Verdict(decision.allowed, decision.policies or [silent])


def toml(value: Any) -> str:
    """JSON as TOML, which has no null; a signature says null only of defaults, which nothing here reads."""
    if isinstance(value, Mapping):
        entries = (f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items() if inner is not None)
        return "{ " + ", ".join(entries) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)
