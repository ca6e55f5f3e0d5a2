"""``tollkeeper why``: why an action was denied, from the log alone, and what would change it.

What was asked, by whom and at whose request; which policies decided, for whom of a chain, which condition failed; which
budget refused and when it refills; who revoked, who approved, when the run's time was over. Policies are those that the
decision names, kept beside the log. Values of requests are shown: this is for operators, never for a model. It decides
and changes nothing.
"""

import argparse
import datetime as dt
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tollkeeper import _native, explanation, reevaluate
from tollkeeper.cli import ledgers, logs
from tollkeeper.cli.terminal import EXIT_OK, InputError, coloured, note, out, out_json, progress, shown, shown_lines
from tollkeeper.errors import TollkeeperError
from tollkeeper.reevaluate import is_object, texts

LAST: Final = "last"
# Calls that led to one another.
PARENTS_MAX: Final = 8
TEXT_CHARACTERS_MAX: Final = 2_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("decision", metavar="ID", help="a decision's id, or `last` for the last denial")
    logs.add_folder(parser)
    parser.add_argument("--any", action="store_true", help="with `last`: the last decision, allowed or not")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


@dataclass
class Story:
    """Everything the log has about one decision."""

    entry: logs.Entry
    recorded: reevaluate.Recorded
    request: str | None = None
    """What the user asked for, if it is there."""
    parents: list[logs.Entry] = field(default_factory=list)
    """What led to it, the nearest first."""
    outcome: logs.Entry | None = None
    run: dict[str, Any] | None = None
    """The members of its run's entry."""
    revocation: logs.Entry | None = None
    """What stopped it."""
    answer: logs.Entry | None = None
    """Who approved it."""
    bundle: reevaluate.Bundle | None = None
    policies: list[explanation.Policy] = field(default_factory=list)
    explained: str | None = None
    remarks: list[str] = field(default_factory=list)
    """What cannot be said, and why."""

    @property
    def members(self) -> dict[str, Any]:
        """The decision's members."""
        return self.recorded.members

    @property
    def is_complete(self) -> bool:
        """Whether nothing that stands before it is looked for any more."""
        parent = (self.parents[-1].head if self.parents else self.entry.head).parent
        return not (
            (isinstance(parent, str) and len(self.parents) < PARENTS_MAX)
            or (self.entry.head.run is not None and self.run is None)
            or (self.members.get("code") == "principal.revoked" and self.revocation is None)
            or (self.members.get("approval") is not None and self.answer is None)
        )

    @property
    def code(self) -> str:
        """Its code, or the one it would have had without shadow mode."""
        return logs.text_of(self.members.get("would_deny") or self.members.get("code"))


def run(arguments: argparse.Namespace) -> int:
    """Explains a decision."""
    found = logs.opened(arguments.folder)
    story = _story(found, arguments.decision, any_=arguments.any)
    _explain(found, story)
    changes = list(_changes(found, story))
    if arguments.json:
        out_json(_document(story, changes))
    else:
        _print(story, changes)
    return found.exit_code(EXIT_OK)


# --- finding ----------------------------------------------------------------------------------------------------------


def _story(found: logs.Logs, wanted: str, *, any_: bool) -> Story:
    """Looks from the end: what led to a decision stands before it, what came of it after."""
    story: Story | None = None
    outcomes: dict[str, logs.Entry] = {}
    with progress(found.backwards(), found.size, "entries") as entries:
        for entry in entries:
            if story is None:
                if entry.head.kind == "outcome" and wanted in {LAST, entry.head.of}:
                    outcomes[logs.text_of(entry.head.of)] = entry
                elif _is_wanted(entry, wanted, any_=any_):
                    outcome = outcomes.get(logs.text_of(entry.head.id))
                    story = Story(entry, found.recorded(entry), outcome=outcome)
            elif not _take(found, story, entry):
                break
    if story is None:
        for fault in found.faults:
            note(shown(fault))
        if wanted != LAST:
            raise InputError(
                f"{found.folder}: no decision has the id {wanted}", "tollkeeper audit show --kind decision"
            )
        raise InputError(f"{found.folder}: no decision yet" if any_ else f"{found.folder}: nothing was denied yet")
    return story


def _is_wanted(entry: logs.Entry, wanted: str, *, any_: bool) -> bool:
    if wanted != LAST:
        # Before anything is decoded, because there may be millions.
        return wanted.encode() in entry.raw and entry.head.kind == "decision" and entry.head.id == wanted
    return entry.head.kind == "decision" and (any_ or entry.head.decision == "deny")


def _take(found: logs.Logs, story: Story, entry: logs.Entry) -> bool:
    """Takes what led to the decision; false once everything is there."""
    parent = (story.parents[-1].head if story.parents else story.entry.head).parent
    run_id, producer = story.entry.head.run, story.members.get("producer")
    if isinstance(parent, str) and len(story.parents) < PARENTS_MAX and parent.encode() in entry.raw:
        if entry.head.kind == "decision" and entry.head.id == parent:
            story.parents.append(entry)
    elif run_id is not None and story.run is None and entry.head.kind == "run":
        recorded = found.recorded(entry)
        if entry.head.run == run_id and recorded.members.get("producer") == producer:
            payload, story.run = recorded.payload, recorded.members
            story.request = "" if payload is None else payload.decode(errors="replace")
    elif entry.head.kind == "revoke" and story.revocation is None and _stops(entry.members, story.members):
        story.revocation = entry
    elif entry.head.kind == "approve" and story.answer is None and entry.members.get("failed") is not True:
        id_ = story.members.get("approval")
        story.answer = entry if id_ is not None and entry.members.get("approval") == id_ else None
    return not story.is_complete


def _stops(revocation: dict[str, Any], members: dict[str, Any]) -> bool:
    """Whether the entry of a revocation is of one that stops this action."""
    target = revocation.get("target")
    if not is_object(target) or revocation.get("restored") is True:
        return False
    kind, name = target.get("kind"), target.get("name")
    chain = texts(members.get("chain")) or [logs.text_of(members.get("principal"))]
    stopped: dict[object, list[object]] = {
        "principal": [members["denied_for"]] if members.get("denied_for") else [*chain],
        "tool": [members.get("tool")],
        "session": [members.get("session")],
        "everything": [name],
    }
    return name in stopped.get(kind, [])


def _explain(found: logs.Logs, story: Story) -> None:
    """Adds what the policies say."""
    members = story.members
    if "oversize" in members:
        story.remarks.append("the entry was too long for the log, and what it holds was erased or cannot be read")
    if members.get("bundle") is None:
        return
    asked = members.get("action") is not None and members.get("resource") is not None
    try:
        story.bundle = reevaluate.Bundle.read(found.bundle_folders, logs.text_of(members["bundle"]))
        narrowings = [_forbids(found, story, digest) for digest in texts(members.get("narrowing"))]
        with explanation.Policies(story.bundle, [one for one in narrowings if one is not None]) as policies:
            ids = [*texts(members.get("policies")), *texts(members.get("errors"))]
            ids += texts(members.get("would_deny_policies"))
            decided = members.get("policies")
            digests = decided if is_object(decided) else {}
            named = (policies.policy(id_, digests.get(id_)) for id_ in dict.fromkeys(ids))
            story.policies = [policy for policy in named if policy is not None]
            by_run = any(policies.is_of_run(policy) for policy in story.policies)
            # The gate's own policies have nothing to say of what the run forbids itself.
            story.explained = policies.explain(story.recorded) if asked and not by_run else None
    except (TollkeeperError, reevaluate.Skipped, ValueError, TypeError, ArithmeticError, RecursionError) as why:
        # A bundle and arguments may be anything.
        story.remarks.append(f"which condition failed cannot be shown: {why}")
    if story.bundle is not None and story.bundle.entities_digest != members.get("entities"):
        story.remarks.append("entities had been updated since the policies were loaded: conditions on them may differ")


def _forbids(found: logs.Logs, story: Story, digest: str) -> list[str] | None:
    """The texts of forbids that came with the run; `None` if they are not kept."""
    try:
        return reevaluate.forbids(found.bundle_folders, digest)
    except reevaluate.BundleError as why:
        story.remarks.append(f"forbids came with the run that cannot be shown: {why}")
        return None


# --- what would change it ---------------------------------------------------------------------------------------------


def _changes(found: logs.Logs, story: Story) -> Iterator[str]:
    """What to do, most likely first."""
    code, members = story.code, story.members
    tool = logs.text_of(members.get("tool"))
    if code == "policy.forbidden" and not members.get("policies") and "oversize" not in members:
        yield f"the run was narrowed to other tools: name `{tool}` in gate.run(tools=[...]) where it begins"
    elif code.startswith("policy."):
        yield from _policy_changes(found, story)
    elif code.startswith("budget."):
        yield from _budget_changes(story)
    elif code.startswith("approval."):
        yield from _approval_changes(code)
    elif code == "principal.revoked":
        yield from _revocation_changes(story)
    elif code == "audit.unavailable":
        yield command("audit", "status", str(found.folder))
    elif code in _ADVICE:
        yield _ADVICE[code].format(tool=json.dumps(tool))
    elif code != "allow":
        yield from (meaning for known, meaning in _native.decision_codes() if known == code)


def command(*words: str) -> str:
    """A command of this program, to be pasted into a shell: whoever wrote the log chose some of its words."""
    return shlex.join(["tollkeeper", *words])


def _policy_changes(found: logs.Logs, story: Story) -> Iterator[str]:
    nearest = explanation.nearest_permit(story.explained or "")
    if story.code == "policy.no_permit":
        if nearest is not None:
            yield f"edit {nearest[1]}, permit {nearest[0]}, or add a permit"
        else:
            yield "add a permit for this principal, action and resource"
    else:
        for policy in story.policies:
            yield f"edit {policy.place}, {policy.effect} {policy.id}"
    files = [] if story.bundle is None else story.bundle.policy_files
    if files:
        yield f"then see what else that changes: {command('audit', 'replay', str(found.folder), '--policies', *files)}"


_ADVICE: Final = {
    "input.unknown_tool": "register it in tollkeeper.toml: [tools.{tool}] resource = 'Mcp::\"NAME\"'",
    "input.unrepresentable": "call it with others, or change schema or paths of [tools.{tool}] in tollkeeper.toml",
    "principal.expired": "start another run, or give it more time where it begins: gate.run(expires_at=...)",
    "scope.missing": "check inside a run: with gate.run(principal=...):",
    "tool.changed": "look at what {tool} says of itself now, and accept it where it is pinned: tollkeeper mcp accept",
}


def _approval_changes(code: str) -> Iterator[str]:
    if code == "approval.rejected":
        yield "an approver said no to exactly this: ask for other arguments, or talk to them"
    elif code == "approval.expired":
        yield "nobody answered, or nobody used the answer, in time: ask again with gate.approval(decision, timeout=...)"
    else:
        yield "have these exact arguments approved: gate.approval(decision), or gate.acheck(..., approval_timeout=...)"
    yield "or add a permit without @approval"


def _revocation_changes(story: Story) -> Iterator[str]:
    target = None if story.revocation is None else story.revocation.members.get("target")
    if not is_object(target):
        yield "whoever may restore it can take the revocation back: `tollkeeper status` says what is in force"
        return
    kind, name = logs.text_of(target.get("kind")), logs.text_of(target.get("name"))
    given = ["--everything"] if kind == "everything" else [f"--{kind}", name]
    yield f"if it may go on, take the revocation back: {command('restore', *given)}"


def _budget_changes(story: Story) -> Iterator[str]:
    refused, members = _refused(story), story.members
    if story.code == "budget.unpriced":
        yield f"add a price to the budgets' file: {logs.asked(members).removeprefix('call_model ')}"
    elif story.code == "budget.unavailable" or refused is None:
        yield "name a budget that pays where the run begins: gate.run(budget=...)"
    else:
        unit, window = logs.text_of(refused.get("unit")), logs.text_of(refused.get("window"))
        path = logs.text_of(refused.get("path"))
        yield command("budget", "set-limit", path, unit, window, str(_enough(story, refused)))


def _refused(story: Story) -> dict[str, Any] | None:
    budget = story.members.get("budget")
    refused = budget.get("refused") if is_object(budget) else None
    return refused if is_object(refused) else None


def _enough(story: Story, refused: dict[str, Any]) -> int:
    """The least limit under which it would have fitted; twice the limit where the log does not say what it costs."""
    limit, used, held = (int(value) if logs.is_number(value := refused.get(name)) else 0 for name in _COUNTED)
    asked = refused.get("requested", _cost(story, logs.text_of(refused.get("unit"))))
    return max(limit + 1, used + held + int(asked)) if logs.is_number(asked) else 2 * limit


_COUNTED: Final = ("limit", "used", "held")


def _cost(story: Story, unit: str) -> int | None:
    """What it was to cost at most, from the request or from the tool."""
    model = story.members.get("model")
    if is_object(model):
        numbers = [model.get(name) for name in ("prompt_tokens", "max_tokens", "n")]
        if unit == "tokens" and all(logs.is_number(number) for number in numbers):
            prompt, most, times = (int(number) for number in numbers if number is not None)
            return prompt + most * times
    tool = None if story.bundle is None else story.bundle.tool(story.members.get("tool"))
    cost = dict(tool[4] or []) if tool is not None else {}
    return cost.get(unit, 1 if unit in {"requests", "in_flight"} else None)


# --- what is printed --------------------------------------------------------------------------------------------------


def _print(story: Story, changes: list[str]) -> None:
    members = story.members
    denied = members.get("decision") == "deny"
    word = coloured(shown(logs.text_of(members.get("decision"))), "red" if denied else "green")
    code = logs.text_of(members.get("code"))
    would = f", would be {logs.text_of(members['would_deny'])}" if members.get("would_deny") else ""
    out(f"{word} {shown(code if code != members.get('decision') else '')}{shown(would)}".rstrip())
    for name, text in _facts(story):
        out(f"  {name:<10}{shown(text)}")
    for policy in story.policies:
        out()
        out(f"{shown(policy.place)}, {policy.effect} {shown(policy.id)}:")
        _indented(policy.text)
    if story.explained:
        out()
        out("what policies say:")
        _indented(story.explained)
    if (refused := _refused(story)) is not None:
        out()
        for line in _refusal(story, refused):
            out(shown(line))
    for remark in story.remarks:
        out(f"# {shown(remark)}")
    if changes:
        out()
        out("to change it:")
        for change in changes:
            out(f"  {shown(change)}")


def _indented(text: str, indent: str = "  ") -> None:
    for line in shown_lines(text).strip("\n").split("\n"):
        out(f"{indent}{line}".rstrip())


def _facts(story: Story) -> Iterator[tuple[str, str]]:
    members = story.members
    yield "decision", logs.text_of(members.get("id"))
    yield "entry", f"{story.entry.place}, {story.entry.time}"
    yield "asked", _asked(story)
    yield "by", logs.principal(members)
    if len(chain := texts(members.get("chain"))) > 1:
        yield "chain", " -> ".join(chain)
    if denied_for := members.get("denied_for"):
        yield "due to", f"{logs.text_of(denied_for)}, which the run acts for"
    where = [f"{name} {logs.text_of(members[name])}" for name in ("session", "run") if members.get(name) is not None]
    if labels := texts(members.get("labels")):
        where.append(f"which has seen {', '.join(labels)}")
    if where:
        yield "in", ", ".join(where)
    if said := logs.pairs(members.get("asserted")):
        yield "host says", said
    if story.request:
        yield "request", logs.cut(story.request, TEXT_CHARACTERS_MAX)
    elif committed := members.get("request"):
        yield "request", f"not kept, or erased; the log commits to it: {logs.text_of(committed)}"
    yield from _stopped(story)
    for parent in story.parents:
        head = parent.members
        yield "led to by", f"{logs.text_of(head.get('id'))}, {logs.text_of(head.get('decision'))} {logs.asked(head)}"
    if story.outcome is not None:
        cells = logs.row(story.outcome)
        yield "came to", f"{cells[-1]} ({cells[0]})"


def _stopped(story: Story) -> Iterator[tuple[str, str]]:
    """Who or what outside the policies has had a say."""
    members = story.members
    if story.revocation is not None:
        entry = story.revocation.members
        target: Any = entry.get("target")
        what = f"{logs.text_of(target.get('kind'))} {logs.text_of(target.get('name'))}".rstrip()
        who = f" by {logs.text_of(entry['by'])}" if entry.get("by") else ""
        when = f" at {story.revocation.time}, generation {logs.text_of(entry.get('generation'))}"
        why = f": {logs.text_of(entry['reason'])}" if entry.get("reason") else ""
        yield "revoked", f"{what}{who}{when}{why}"
    elif members.get("code") == "principal.revoked":
        yield "revoked", f"by generation {logs.text_of(members.get('generation'))}; who did it is not in these logs"
    expires_ms = None if story.run is None else story.run.get("expires_ms")
    if members.get("code") == "principal.expired" and isinstance(expires_ms, int):
        yield "expired", f"the time of the run was over at {_moment(expires_ms)}"
    if members.get("approval") is not None:
        by = ""
        if story.answer is not None:
            by = f", answered by {logs.text_of(story.answer.members.get('by'))} at {story.answer.time}"
        yield "approval", f"{logs.text_of(members['approval'])} was used{by}"


def _moment(at_ms: float) -> str:
    try:
        return dt.datetime.fromtimestamp(at_ms / 1_000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"


def _asked(story: Story) -> str:
    members = story.members
    resource = logs.text_of(members.get("resource"))
    text = logs.asked(members) + (f" on {resource}" if resource else "")
    model = members.get("model")
    if is_object(model):
        return f"{text}, {logs.pairs({key: value for key, value in model.items() if key != 'name'})}"
    try:
        given = json.dumps(story.recorded.input(), ensure_ascii=False)
    except reevaluate.Skipped as why:
        return f"{text}; with what is not known: {why}"
    return f"{text} with {logs.cut(given, TEXT_CHARACTERS_MAX)}"


def _refusal(story: Story, refused: dict[str, Any]) -> Iterator[str]:
    unit, window = logs.text_of(refused.get("unit")), logs.text_of(refused.get("window"))
    if not unit:
        yield f"no budget could answer for {logs.text_of(refused.get('path')) or 'a run that names none'}"
        return
    amounts = {name: refused.get(name) for name in (*_COUNTED, "requested")}
    known = {name: int(value) for name, value in amounts.items() if logs.is_number(value)}
    if "requested" not in known and (cost := _cost(story, unit)) is not None:
        known["asked"] = cost
    written = ", ".join(f"{name} {ledgers.amount(unit, value)}" for name, value in known.items())
    yield f"budget {logs.text_of(refused.get('path'))} refused {unit} {window}: {written}"
    wait_ms = refused.get("retry_after_ms")
    if not logs.is_number(wait_ms):
        yield "  it never refills: only a higher limit helps"
    elif (at_ms := story.recorded.time_ms) is not None:
        try:
            then = dt.datetime.fromtimestamp((at_ms + wait_ms) / 1_000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        except (ValueError, OverflowError, OSError):
            yield "  it refills, but the log names no time for it that a calendar has"
            return
        word = "worth another try from" if story.code == "budget.contended" else "refills at"
        yield f"  {word} {then}"


def _document(story: Story, changes: list[str]) -> dict[str, Any]:
    return {
        "log": story.entry.log.label,
        "index": story.entry.index,
        "decision": story.members,
        "asked": _asked(story),
        "request": story.request or None,
        "parents": [parent.members for parent in story.parents],
        "outcome": None if story.outcome is None else story.outcome.members,
        "policies": [policy._asdict() for policy in story.policies],
        "explained": story.explained,
        "remarks": story.remarks,
        "change": changes,
    }
