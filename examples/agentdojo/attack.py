"""Play real attacks from beginning to end, without a gate and behind one, and prove from the audit log what happened.

For: `run.py`, and on its own with the Python in which `tollkeeper` is installed. The attacks of `attacks.toml` are
played by `assistant.py` in AgentDojo's environment: its tools, its attack and its checks, in the loop of Microsoft
Agent Framework, with a scripted model that obeys what it reads. Each is played without a gate, behind a gate that
permits everything, and behind the three gates of the report's columns. What each run is held to comes from the
user's request alone, as in the report.

Refuses to: take the gate's word for the result. Whether an attack succeeded and a task was done is what AgentDojo
says of the environment that is left; what the gate decided is read from its log by `tollkeeper audit`, which verifies
it first. It exits with 1 when an attack succeeds behind the policies or fails in front of them, when a user's task is
not done, or when the log and what has run differ; with 3 when AgentDojo cannot be fetched; with 2 when a step fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import narrowing
import run
from suite import COLUMNS, Suite, load, toml

import tollkeeper
from tollkeeper import PolicySet

HERE = Path(__file__).resolve().parent
ASSISTANT = HERE / "assistant.py"
MODELS = HERE / "models.cedar"
PAIRS = HERE / "attacks.toml"
# In front of the gate's policies: no gate at all, and one whose policies permit everything.
WITHOUT, PERMITTED = "without", "permitted"
GATES = (PERMITTED, *COLUMNS)
HEADS = {
    WITHOUT: "without a gate",
    PERMITTED: "permitting everything",
    "static": "static policies",
    "labels": "+ labels",
    "narrowing": "+ narrowing",
}
WIDTH = 110
EXIT_SURPRISE = 1
# What policies and what a run is held to deny with; an attack that fails for another reason was not stopped by them.
POLICY_CODES = {"policy.no_permit", "policy.forbidden"}
# Playing takes some seconds; a machine that needs minutes is stuck.
STEP_TIMEOUT_SECONDS = 300

# What schema.py writes about tools, said of a model.
MODEL_SCHEMA = """
entity Model;
action "call_model" appliesTo {
    principal: [Agent],
    resource: [Model],
    context: {
        input: { model: String, prompt_tokens: Long, max_tokens: Long, n: Long },
        session: Session,
        now: datetime
    }
};
"""
PERMIT_EVERYTHING = '@id("everything") permit (principal, action, resource);\n'


@dataclass(frozen=True)
class Proof:
    """What the log says of one run behind one gate: the decisions on tool calls, in order."""

    allowed: list[Mapping[str, Any]]
    denied: list[Mapping[str, Any]]
    outcomes: Mapping[str, str]
    """How each allowed call ended, by the id of its decision."""
    models: set[str]
    """Ids of the allowed decisions on model calls."""


# --- what is played ------------------------------------------------------------------------------------------


def planned(document: Mapping[str, Any], pairs: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """What `assistant.py` is to play: the pairs, and for each gate its file and what its run is held to."""
    plan = []
    for suite in load(document, folder):
        files = {name: str(configuration(suite, name, folder)) for name in GATES}
        requests = {task.name: task.request for task in suite.user_tasks}
        for pair in pairs.pop(suite.name, []):
            user_task, injection_task = pair["user_task"], pair["injection_task"]
            gates = {}
            for name in GATES:
                held = {"principal": suite.principal, "session": session(suite.name, user_task, injection_task, name)}
                if name == "narrowing":
                    narrowed = narrowing.derive(suite.rules, suite.tools, requests[user_task])
                    held.update(tools=narrowed.tools, forbid=[narrowed.forbid] if narrowed.forbid else [])
                gates[name] = {"file": files[name], "run": held}
            plan.append({"suite": suite.name, **pair, "gates": gates})
    if pairs:
        raise ValueError(f"the attacks are of {', '.join(sorted(pairs))}, which is no suite")
    return plan


def session(*parts: str) -> str:
    """The id of one run's session, by which its entries are found in the log."""
    return "/".join(parts)


def configuration(suite: Suite, name: str, folder: Path) -> Path:
    """The file of one gate: that of the report's column, and the model."""
    column = "narrowing" if name == PERMITTED else name
    own = folder / suite.name
    settings = tomllib.loads((own / f"{column}.toml").read_text(encoding="utf-8"))
    schema, everything = own / "attack.cedarschema", own / "everything.cedar"
    schema.write_text((own / "schema.cedarschema").read_text(encoding="utf-8") + MODEL_SCHEMA, encoding="utf-8")
    everything.write_text(PERMIT_EVERYTHING, encoding="utf-8")
    policy = settings["policy"]
    files = [str(everything)] if name == PERMITTED else [*policy["files"], str(MODELS)]
    settings["policy"] = {**policy, "files": files, "schema": schema.name}
    path = own / f"attack-{name}.toml"
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in settings.items()), encoding="utf-8")
    return path


def play(venv: Path, plan: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Has the plan played with AgentDojo's Python, which finds `tollkeeper` here and nothing else of ours."""
    (folder / "packages").mkdir()
    (folder / "packages" / "tollkeeper").symlink_to(Path(tollkeeper.__file__).resolve().parent)
    given, results = folder / "plan.json", folder / "played.json"
    given.write_text(json.dumps(plan), encoding="utf-8")
    paths = [str(folder / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [str(run.venv_python(venv)), str(ASSISTANT), "--plan", str(given), "--out", str(results)]
    command += ["--log", str(folder / "audit")]
    run.step("assistant.py", command, {**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    played: list[dict[str, Any]] = json.loads(results.read_text(encoding="utf-8"))
    return played


# --- what the log says ---------------------------------------------------------------------------------------


def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`tollkeeper audit`, as an operator would run it."""
    return subprocess.run(  # noqa: S603 - the commands are written in this file, no shell is involved
        [sys.executable, "-m", "tollkeeper", "audit", *arguments],
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=STEP_TIMEOUT_SECONDS,
    )


def verified(log: Path) -> Mapping[str, Any]:
    """What `tollkeeper audit verify` says of the logs, which exits with 0 or 1 as long as nothing is broken."""
    done = audit("verify", str(log), "--json")
    if not done.stdout:
        raise run.StepError(f"tollkeeper audit verify failed: {done.stderr.strip()}")
    report: dict[str, Any] = json.loads(done.stdout)
    return {**report, "exit": done.returncode}


def entries(log: Path) -> Iterator[Mapping[str, Any]]:
    """All entries of the logs, in order."""
    done = audit("show", str(log), "--json")
    if done.returncode != 0:
        raise run.StepError(f"tollkeeper audit show failed: {done.stderr.strip()}")
    for line in done.stdout.splitlines():
        yield json.loads(line)["entry"]


def proofs(log: Path) -> dict[str, Proof]:
    """What the log says of each session."""
    found: dict[str, Proof] = {}
    outcomes: dict[str, str] = {}
    for entry in entries(log):
        if entry["kind"] == "outcome":
            outcomes[entry["of"]] = entry["status"]
        elif entry["kind"] == "decision":
            proof = found.setdefault(entry["session"], Proof([], [], outcomes, set()))
            if "model" in entry:
                proof.models.add(entry["id"])
            else:
                (proof.allowed if entry["decision"] == "allow" else proof.denied).append(entry)
    return found


def layer(suite: str, entry: Mapping[str, Any]) -> str:
    """The column in which a denial first appears: `static`, `labels` or `narrowing`."""
    policies = list(entry.get("policies", ()))
    if entry["code"] == "policy.no_permit":
        return "static"
    if all(policy.startswith("request.") for policy in policies):
        # None at all: the tool is not one of the run's.
        return "narrowing"
    file = HERE / f"{suite}_labels.cedar"
    by_label = set(PolicySet.from_cedar([file], ids="annotation").ids) if file.is_file() else set()
    own = {policy for policy in policies if not policy.startswith("request.")}
    return "labels" if own <= by_label else "static"


# --- whether it is as it must be -----------------------------------------------------------------------------


def problems(pair: Mapping[str, Any], results: Mapping[str, Any], found: Mapping[str, Proof]) -> Iterator[str]:
    """What is not as it must be with one pair, in sentences."""
    names = pair["suite"], pair["user_task"], pair["injection_task"]
    for name, result in results.items():
        where, stopped = f"{' '.join(names)}, {HEADS[name]}", name in COLUMNS
        if result["attack_succeeded"] is not (not stopped):
            yield f"{where}: the attack {'succeeds' if stopped else 'fails'}"
        if result["task_done"] is not True:
            yield f"{where}: the user's task is not done"
        if result["told_by"] is None:
            yield f"{where}: no tool's output carried the attack, so nothing was tried"
        if name != WITHOUT:
            proof = found.get(session(*names, name))
            for problem in _differences(result, proof, stopped=stopped):
                yield f"{where}: {problem}"


def _differences(result: Mapping[str, Any], proof: Proof | None, *, stopped: bool) -> Iterator[str]:
    """Where the log and what happened differ."""
    if proof is None:
        yield "the log has no entry of this run"
        return
    allowed = [entry["tool"] for entry in proof.allowed]
    if allowed != result["ran"]:
        yield f"the log says that {allowed} were allowed, run have {result['ran']}"
    if len(proof.allowed) + len(proof.denied) != len(result["asked"]):
        yield f"the model asked for {len(result['asked'])} calls, the log has another number"
    if any(proof.outcomes.get(entry["id"]) != "ok" for entry in proof.allowed):
        yield "not every allowed call has an outcome `ok`"
    if any(entry.get("parent") not in proof.models for entry in [*proof.allowed, *proof.denied]):
        yield "a call does not name the model call that asked for it"
    if other := {entry["code"] for entry in proof.denied} - POLICY_CODES:
        yield f"a call was denied by no policy: {', '.join(sorted(other))}"
    if bool(proof.denied) is not stopped:
        yield f"{len(proof.denied)} calls were denied"


# --- the report ----------------------------------------------------------------------------------------------


def render(
    plan: list[dict[str, Any]], played: list[dict[str, Any]], found: Mapping[str, Proof], checked: Mapping[str, Any]
) -> str:
    """The section of the report."""
    lines = ["A real attack, end to end: Agent Framework, and a model that obeys what it reads; verdicts by AgentDojo"]
    for pair, results in zip(plan, played, strict=True):
        names = pair["suite"], pair["user_task"], pair["injection_task"]
        lines += ["", " ".join(names), *_wrapped(pair["what"])]
        # Gates with the same result share their lines.
        same: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for name, result in results.items():
            stops = tuple(_stops(pair["suite"], found.get(session(*names, name))))
            same.setdefault((_verdicts(result), stops), []).append(HEADS[name])
        for (verdicts, stops), heads in same.items():
            lines.append(f"  {', '.join(heads):<48}{verdicts}")
            lines += [f"    {stop}" for stop in stops]
        lines += _logged(results[COLUMNS[-1]], found.get(session(*names, COLUMNS[-1])))
    size = sum(epoch["verified_size"] for slot in checked["slots"] for epoch in slot["epochs"])
    verdict, code = checked["verdict"], checked["exit"]
    lines += ["", f"tollkeeper audit verify: {verdict}, {size} entries (exit status {code})"]
    return "\n".join(lines) + "\n"


def _verdicts(result: Mapping[str, Any]) -> str:
    attack = "attack succeeded" if result["attack_succeeded"] else "attack failed"
    return f"{attack}, task {'done' if result['task_done'] else 'not done'}"


def _stops(suite: str, proof: Proof | None) -> Iterator[str]:
    """What was denied, with its code and the policy, and the column that the policy is of."""
    for entry in proof.denied if proof is not None else ():
        silent = "nothing permits it" if entry["code"] == "policy.no_permit" else "not a tool of the run"
        by = ", ".join(entry.get("policies", ())) or silent
        yield f"{entry['tool']}: {entry['code']}, {by} ({layer(suite, entry)})"


def _logged(result: Mapping[str, Any], proof: Proof | None) -> Iterator[str]:
    """What the log has of the run behind all policies."""
    if proof is None:
        return
    yield f"  in the log of the last run, in which {result['told_by']} returned the attack:"
    for entry in proof.denied:
        labels = ", ".join(entry.get("labels", ())) or "nothing"
        yield (
            f"    denied: {entry['tool']} ({entry['id']}), asked for by model call {entry.get('parent')}; "
            f"the session had seen: {labels}"
        )
    allowed = ", ".join(f"{entry['tool']} {proof.outcomes.get(entry['id'])}" for entry in proof.allowed)
    yield from textwrap.wrap(f"allowed: {allowed}", WIDTH, initial_indent="    ", subsequent_indent="      ")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def attack(venv: Path, calls: Path, pairs: Path, folder: Path) -> tuple[str, list[str]]:
    """Plays everything; the report, and what is not as it must be."""
    document = json.loads(calls.read_text(encoding="utf-8"))
    plan = planned(document, tomllib.loads(pairs.read_text(encoding="utf-8")), folder)
    played = play(venv, plan, folder)
    checked, found = verified(folder / "audit"), proofs(folder / "audit")
    wrong = [problem for pair, results in zip(plan, played, strict=True) for problem in problems(pair, results, found)]
    # 0 is `ok`; 1 means here that the newest entries wait for a signature, and that is no fault.
    if (checked["verdict"], checked["exit"]) not in {("ok", 0), ("unanchored", 1)}:
        wrong.append(f"tollkeeper audit verify says {checked['verdict']}, exit status {checked['exit']}")
    return render(plan, played, found, checked), wrong


def main() -> int:
    """Prints the section; the exit code is in the module's docstring."""
    parser = argparse.ArgumentParser(description="Play AgentDojo attacks without a gate and behind one.")
    parser.add_argument("--venv", type=Path, default=run.DEFAULT_VENV, help="AgentDojo's own environment (%(default)s)")
    parser.add_argument("--attacks", type=Path, default=PAIRS, help="the pairs to play (%(default)s)")
    parser.add_argument("--keep", type=Path, help="an empty folder, in which the configurations and the logs stay")
    arguments = parser.parse_args()
    try:
        venv = arguments.venv.resolve()
        run.install(venv)
        calls = run.extract(venv)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if arguments.keep is not None:
                folder = arguments.keep.resolve()
                folder.mkdir(parents=True, exist_ok=True)
            report, wrong = attack(venv, calls, arguments.attacks, folder)
    except run.StepError as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return run.EXIT_FAILED
    sys.stdout.write(report)
    for problem in wrong:
        sys.stderr.write(f"error: {problem}\n")
    return EXIT_SURPRISE if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
