"""Explains recorded decisions by the policies they were made by: the text that decided, and the condition that failed.

It asks the policy room with the request that the gate had made of the action. The gate's own rules (errors, shadow
policies, approvals) are not part of an explanation, and nothing is decided here.
"""

import json
import os
import re
import tempfile
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from tollkeeper import Context, Entities, Entity, EntityUid, PolicySet
from tollkeeper.reevaluate import Bundle, Recorded, Skipped, digest_of, is_list, is_object, texts

__all__ = ["Policies", "Policy", "nearest_permit"]

_PERMIT: Final = re.compile(r"^nearest permit: (.+), ([^,\n]+:\d+:\d+); it lacks", re.MULTILINE)
_TEXT: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_EFFECT: Final = re.compile(r"(?<!@)\b(permit|forbid)\s*\(")
# What the gate calls the first text of forbids that come with a run; the second is RUN2.
RUN: Final = "run"
LONG_MAX: Final = (1 << 63) - 1
DECIMAL_DIGITS: Final = 4


class Policy(NamedTuple):
    """A policy as it was written."""

    id: str
    place: str
    """File and line."""
    effect: str
    text: str


def nearest_permit(explained: str) -> tuple[str, str] | None:
    """Id and place of the permit that came nearest, out of an explanation."""
    found = _PERMIT.search(explained)
    return None if found is None else (found[1], found[2])


class Policies:
    """The policies of a bundle, loaded to be explained: a context manager.

    Policies are named by the files they stood in, so those are written to a folder of their own while it lasts.

    Args:
        bundle: Where they are.
        narrowings: The texts of the forbids that came with a run and those around it.
    """

    def __init__(self, bundle: Bundle, narrowings: Sequence[Sequence[str]] = ()) -> None:
        self._bundle, self._narrowings = bundle, narrowings

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="tollkeeper-why-")
        self._names: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        sources = list[str | os.PathLike[str]]()
        for number, (name, text) in enumerate(self._bundle.sources["policies"]):
            if name is None:
                sources.append(text)
                continue
            # Not by its own name, which may be none: whoever wrote the log chose it.
            file = Path(self._folder.name) / str(number) / "policies.cedar"
            file.parent.mkdir()
            file.write_text(text, encoding="utf-8", newline="")
            self._names[str(file)] = name
            self._texts[str(file)] = text
            sources.append(file)
        try:
            schema = self._bundle.sources["schema"]
            self._set = PolicySet.from_cedar(sources, None if schema is None else schema[1], ids="annotation")
            self._of_runs = [self._narrowing(number, found) for number, found in enumerate(self._narrowings)]
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def _narrowing(self, number: int, found: Sequence[str]) -> PolicySet:
        """The forbids of one run, named as the gate names them."""
        files = list[str | os.PathLike[str]]()
        for place, text in enumerate(found):
            file = Path(self._folder.name) / f"narrowing-{number}" / (RUN if place == 0 else f"{RUN}{place + 1}")
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="")
            self._names[str(file)] = f"{file.name}, which came with the run"
            self._texts[str(file)] = text
            files.append(file)
        return PolicySet.from_cedar(files, ids="annotation")

    def policy(self, id_: str, digest: object = None) -> Policy | None:
        """A policy's text; `None` if neither the bundle nor the run has one of this id.

        Args:
            id_: The policy's.
            digest: Of its text, as the entry has it: the gate's policies and those of a run may share an id.
        """
        found = [policy for one in (self._set, *self._of_runs) if (policy := self._in(one, id_)) is not None]
        meant = [policy for policy in found if digest_of(policy.text.encode()) == digest]
        return next(iter(meant or found), None)

    def is_of_run(self, policy: Policy) -> bool:
        """Whether a policy came with the run."""
        return any(self._in(one, policy.id) == policy for one in self._of_runs)

    def _in(self, one: PolicySet, id_: str) -> Policy | None:
        try:
            file, line, column = one.place(id_)
        except KeyError:
            return None
        name = self._names.get(file or "")
        text = "" if name is None else statement(self._texts[file or ""], line, column)
        effect = _EFFECT.search(_TEXT.sub('""', text))
        return Policy(id_, f"{name or 'a text'}:{line}", "permit" if effect is None else effect[1], text)

    def has(self, id_: str) -> bool:
        """Whether the bundle has a policy of this id."""
        try:
            self._set.annotations(id_)
        except KeyError:
            return False
        return True

    def annotations(self, id_: str) -> dict[str, str]:
        """A policy's annotations; none if the bundle has no policy of this id."""
        try:
            return self._set.annotations(id_)
        except KeyError:
            return {}

    def explain(self, recorded: Recorded) -> str:
        """Says in words how the request is decided, with the names of the recorded files.

        It is decided for who acts, or for the principal of the chain that it was denied for.

        Raises:
            Skipped: The log does not hold what is needed for it.
            TollkeeperError: The request cannot be made.
        """
        members = recorded.members
        action, resource = (EntityUid.parse(str(members.get(name))) for name in ("action", "resource"))
        entities = self._entities(recorded.chain(), action, is_tool=members.get("tool") is not None)
        uid = EntityUid.parse(str(members.get("denied_for") or members.get("principal")))
        text = self._set.explain_request(uid, action, resource, self._context(recorded), entities)
        for file, name in self._names.items():
            text = text.replace(file, name)
        return text

    def _entities(self, chain: Sequence[EntityUid | Entity], action: EntityUid, *, is_tool: bool) -> Entities:
        text, schema = self._bundle.sources["entities"], self._bundle.sources["schema"]
        entities = Entities() if text is None else Entities.from_json(text[1], None if schema is None else schema[1])
        if is_tool:
            # As the gate does: every tool is in this group.
            group = EntityUid("Action", "call_tool")
            entities = entities.update([Entity(action, None, [*entities.ancestors(action), group])])
        described = [one for one in chain if isinstance(one, Entity)]
        return entities.with_additional(described) if described else entities

    def _context(self, recorded: Recorded) -> Context:
        members = recorded.members
        model = members.get("model")
        schema: Any = None
        if is_object(model) and members.get("tool") is None:
            given = {"n": 1, **model}
            given["model"] = given.pop("name", None)
        else:
            tool = self._bundle.tool(members.get("tool"))
            given, schema = recorded.input(), None if tool is None or tool[2] is None else json.loads(tool[2])
        context = {
            "input": _cedar(given, schema),
            "now": {"__extn": {"fn": "datetime", "arg": str(members.get("time"))}},
            "session": {"id": str(members.get("session", "")), "labels": texts(members.get("labels"))},
        }
        if members.get("on_behalf_of") is not None:
            uid = EntityUid.parse(str(members["on_behalf_of"]))
            context["on_behalf_of"] = {"__entity": {"type": uid.type, "id": uid.id}}
        if is_object(members.get("budget_seen")):
            context["budget"] = members["budget_seen"]
        return Context.from_cedar_json(json.dumps(context))


def _cedar(value: Any, schema: Any) -> Any:  # noqa: ANN401 - plain data of any shape
    """Arguments in Cedar's JSON as the gate reads them: null is absent, a number a decimal where a schema says so."""
    schema = schema if is_object(schema) else {}
    if is_object(value):
        if not value.keys().isdisjoint({"__entity", "__extn"}):
            raise Skipped("the arguments hold names that mean something else in Cedar's JSON")
        inner = schema.get("properties")
        inner = inner if is_object(inner) else {}
        return {key: _cedar(item, inner.get(key)) for key, item in value.items() if item is not None}
    if is_list(value):
        return [_cedar(item, schema.get("items")) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    kind = schema.get("type")
    if kind == "integer" or (isinstance(value, int) and kind != "number"):
        whole = int(value)
        if abs(whole) > LONG_MAX or whole != value:
            raise Skipped("the arguments hold a number that Cedar has no value for")
        return whole
    number = Decimal(repr(value))
    digits = format(number, "f")
    if number != round(number, DECIMAL_DIGITS):
        raise Skipped("the arguments hold a number that Cedar has no value for")
    return {"__extn": {"fn": "decimal", "arg": digits if "." in digits else f"{digits}.0"}}


def statement(text: str, line: int, column: int) -> str:
    """The statement that begins at a place of Cedar text, with its annotations, to its semicolon."""
    lines = text.splitlines(keepends=True)
    start = sum(len(one) for one in lines[: line - 1]) + column - 1
    inside_text = inside_comment = escaped = False
    for at in range(start, len(text)):
        one = text[at]
        if inside_comment:
            inside_comment = one != "\n"
        elif inside_text:
            inside_text, escaped = escaped or one != '"', one == "\\" and not escaped
        elif one == '"':
            inside_text = True
        elif text.startswith("//", at):
            inside_comment = True
        elif one == ";":
            return text[start : at + 1]
    return text[start:]
