"""Sets of many policies against the reference: decision, reasons and erroring ids.

The conformance data has one policy per set, so it says nothing about policies beside each other: which of them the
index looks at, and what their results add up to. Here random subsets of its policy texts, and made-up policies that
share their names, are asked of both sides. TOLLKEEPER_ORACLE_SETS sets the number of sets of each kind, and
HYPOTHESIS_PROFILE=deep runs a hundred times the usual share.
"""

import json
import os
import random
from typing import Any

import cedarpy
import pytest
from oracle import DEEP, corpus, distinct, reference, seen

from tollkeeper import Context, Entities, EntityUid, PolicySet

SETS = int(os.getenv("TOLLKEEPER_ORACLE_SETS") or (4_000 if DEEP else 40))
POLICIES_MAX = 500
REQUESTS_PER_SET = 12

pytestmark = pytest.mark.timeout(30 + SETS)

Request = tuple[tuple[str, str], tuple[str, str], tuple[str, str], dict[str, Any]]


def compare(policies: str, entities: list[Any], requests: list[Request]) -> int:
    """Asks both sides; returns how many of the answers had a reason or an error."""
    subject, subject_store = PolicySet.from_cedar(policies), Entities.from_json(json.dumps(entities))
    store = cedarpy.Entities.from_json_str(json.dumps(entities))
    asked = [
        {
            "principal": {"type": principal[0], "id": principal[1]},
            "action": {"type": action[0], "id": action[1]},
            "resource": {"type": resource[0], "id": resource[1]},
            "context": context,
        }
        for principal, action, resource, context in requests
    ]
    telling = 0
    expected = reference(cedarpy.PolicySet.from_str(policies), store, asked)
    for (*uids, context), wanted in zip(requests, expected, strict=True):
        parts = (EntityUid(*uid) for uid in uids)
        prepared = Context.from_cedar_json(json.dumps(context))
        answer = subject.decide(*parts, prepared, subject_store)
        assert seen(answer) == wanted, (policies.splitlines()[:5], uids, context)
        quick = subject.decide(*(EntityUid(*uid) for uid in uids), prepared, subject_store, decision_only=True)
        assert quick.decision == wanted.decision
        telling += bool(wanted.reasons or wanted.errors)
    return telling


def pair(uid: dict[str, str]) -> tuple[str, str]:
    return uid["type"], uid["id"]


def corpus_requests(test: dict[str, Any]) -> list[Request]:
    return [(pair(r["principal"]), pair(r["action"]), pair(r["resource"]), r["context"]) for r in test["requests"]]


def test_subsets_of_the_corpus() -> None:
    """A third of the sets are without forbids: with many of them some forbid always holds, and nothing is allowed."""
    tests = list(corpus("corpus.jsonl.gz"))
    texts = distinct(test["policies"] for test in tests)
    # Annotations stand in front of the effect; no policy of the corpus has the word in its text otherwise.
    permits = [text for text in texts if "forbid" not in text]
    assert (len(texts), 500 < len(permits) < len(texts)) == (1_974, True)
    dice = random.Random(20_261_121)  # noqa: S311 - repeatable on purpose
    telling = 0
    for number in range(SETS):
        pool = permits if number % 3 == 0 else texts
        chosen = dice.sample(pool, min(POLICIES_MAX, int(2 ** dice.uniform(0, 9.2))))
        test = dice.choice(tests)
        chosen.append(test["policies"])
        dice.shuffle(chosen)
        if number % 3 == 0:
            chosen = [text for text in chosen if "forbid" not in text] or permits[:1]
        own = corpus_requests(test)
        foreign = [dice.choice(corpus_requests(dice.choice(tests))) for _ in range(REQUESTS_PER_SET - len(own[:6]))]
        telling += compare("\n".join(chosen), test["entities"], own[:6] + foreign)
    assert telling > SETS, "most answers say nothing"


class Maker:
    """Policies, entities and requests over a few shared names, so that many policies apply to one request."""

    TEXTS = ("a", "b", "/srv/x", "/srv/y/z", "", "ops", "é*", "\U0001f600")
    PATTERNS = ("/srv/*", "*/z", "*", "a", "*o*", "/srv/y*z", "é\\\\*")
    NAMES = ("path", "kind", "amount", "to", "tags", "nested.a", "price", "owner", "flag")
    OTHER_PATHS = ("context.kind", "principal.level", "principal.manager", "resource.owner", "resource.labels")

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self.pick, self.below = self.dice.choice, self.dice.randrange

    def text(self) -> str:
        return f'"{self.pick(self.TEXTS)}"'

    def number(self) -> str:
        return self.pick([str(self.below(12)), "-1", "9223372036854775807", "(-9223372036854775808)"])

    def entity(self) -> str:
        return self.pick(
            [f'User::"u{self.below(6)}"', f'Team::"t{self.below(5)}"', f'Mcp::"m{self.below(3)}"', 'Ghost::"g"']
        )

    def literal(self) -> str:
        extension = self.pick(
            [
                f'decimal("{self.below(4)}.{self.below(20)}")',
                'ip("10.0.0.0/8")',
                'datetime("2026-01-02")',
                'duration("90m")',
                'ip("not an address")',
            ]
        )
        return self.pick([self.text(), self.text(), self.number(), self.entity(), "true", extension, '[1, "a"]'])

    def path(self) -> str:
        return f"context.input.{self.pick(self.NAMES)}" if self.below(3) else self.pick(self.OTHER_PATHS)

    def leaf(self) -> str:
        path, name = self.path(), self.pick(self.NAMES)
        order = self.pick(["<", "<=", ">", ">="])
        return self.pick(
            [
                f"{path} == {self.literal()}",
                f"{path} != {self.literal()}",
                f"{path} {order} {self.number()}",
                f"{self.number()} {order} {path}",
                f'{path} like "{self.pick(self.PATTERNS)}"',
                f"context has input.{name} && context.input.{name} == {self.literal()}",
                f'context has input && context.input has path && context.input.path like "{self.pick(self.PATTERNS)}"',
                f"[{self.text()}, {self.text()}, {self.number()}].contains({path})",
                f"{self.pick(['principal', 'resource', 'action', 'context.input.owner'])} in {self.entity()}",
                f"principal in [{self.entity()}, {self.entity()}]",
                f"{self.pick(['principal', 'context.input.owner'])} is {self.pick(['User', 'Team'])}",
                f"context.input.tags.{self.pick(['contains', 'containsAny'])}({self.pick([self.text(), '[1, 2]'])})",
                f'{path}.lessThan(decimal("{self.below(4)}.5"))',
                self.pick(["context.input.flag", "!context.input.flag", "principal == resource", "true && 1"]),
                f'principal.hasTag("t") && principal.getTag("t") == {self.text()}',
                f"{path} {self.pick('+-*')} {self.number()} <= {self.number()}",
                f"{{a: {path}, b: {self.literal()}}}.{self.pick('abc')} == {self.literal()}",
            ]
        )

    def condition(self, depth: int) -> str:
        if not depth or self.below(3):
            return self.leaf()
        one, two = self.condition(depth - 1), self.condition(depth - 1)
        return self.pick([f"({one} || {two})", f"!({one})", f"(if {one} then {two} else {self.leaf()})", one])

    def scope(self, variable: str, kind: str, letter: str) -> str:
        team = f'Team::"t{self.below(5)}"'
        same = f'{variable} == {kind}::"{letter}{self.below(6)}"'
        group = f"{variable} in {team}"
        return self.pick([variable, variable, same, group, f"{variable} is {kind}", f"{variable} is {kind} in {team}"])

    def policy(self) -> str:
        tool, group = f'Action::"tool{self.below(5)}"', f'Action::"group{self.below(2)}"'
        actions = [f"action == {tool}", f"action in {group}", f"action in [{tool}, {group}]", "action in []", "action"]
        effect = self.pick(["permit"] * 7 + ["forbid"])
        head = (
            f"{effect}({self.scope('principal', 'User', 'u')}, "
            f"{self.pick(actions)}, {self.scope('resource', 'Mcp', 'm')})"
        )
        for _ in range(self.below(3)):
            body = " && ".join(self.condition(2) for _ in range(1 + self.below(3)))
            head += f" {self.pick(['when', 'when', 'unless'])} {{ {body} }}"
        return head + ";"

    def family(self, size: int) -> str:
        """Policies that differ in one constant, so that the index's tables carry the decision."""
        lead = self.pick(["context.input.amount == {}", 'context.input.path == "{}"', "context.input.amount < {}"])
        scope = f"({self.scope('principal', 'User', 'u')}, action, resource)"
        return "\n".join(
            f"permit{scope} when {{ {lead.format(self.below(12))} && {self.leaf()} }};" for _ in range(size)
        )

    def store(self) -> list[Any]:
        def uid(kind: str, name: str) -> dict[str, str]:
            return {"type": kind, "id": name}

        everything: list[dict[str, Any]] = [
            {
                "uid": uid("User", f"u{user}"),
                "attrs": {"level": self.below(8), "manager": {"__entity": uid("User", f"u{self.below(6)}")}},
                "parents": [uid("Team", f"t{self.below(5)}") for _ in range(self.below(3))],
                "tags": {"t": self.pick(self.TEXTS)} if self.below(2) else {},
            }
            for user in range(5)
        ]
        for team in range(5):
            parents = [uid("Team", f"t{self.below(team)}")] if team and self.below(2) else []
            everything.append({"uid": uid("Team", f"t{team}"), "attrs": {}, "parents": parents})
        for server in range(2):
            labels = [self.pick(self.TEXTS), self.below(3)]
            attrs = {"owner": {"__entity": uid("User", f"u{self.below(6)}")}, "labels": labels}
            parents = [uid("Team", f"t{self.below(5)}")]
            everything.append({"uid": uid("Mcp", f"m{server}"), "attrs": attrs, "parents": parents})
        for tool in range(4):
            parents = [uid("Action", f"group{self.below(2)}")]
            everything.append({"uid": uid("Action", f"tool{tool}"), "attrs": {}, "parents": parents})
        return everything

    def value(self, name: str) -> Any:
        by_name: dict[str, Any] = {
            "amount": self.below(12),
            "tags": [self.pick(self.TEXTS), self.below(3)],
            "nested": {"a": self.pick(self.TEXTS)},
            "price": {"__extn": {"fn": "decimal", "arg": f"{self.below(4)}.5"}},
            "owner": {"__entity": {"type": "User", "id": f"u{self.below(6)}"}},
            "flag": bool(self.below(2)),
        }
        if not self.below(7):  # now and then the wrong type
            return by_name[self.pick(list(by_name))]
        return by_name.get(name, self.pick([*self.TEXTS, str(self.below(12))]))

    def request(self) -> Request:
        names = ["path", "kind", "amount", "to", "tags", "nested", "price", "owner", "flag"]
        fields = {name: self.value(name) for name in names if self.below(6)}
        context = {"input": fields, "kind": self.value("kind")} if self.below(10) else {}
        principal = ("User", f"u{self.below(6)}") if self.below(8) else ("Team", f"t{self.below(5)}")
        return principal, ("Action", f"tool{self.below(5)}"), ("Mcp", f"m{self.below(3)}"), context


def test_made_up_sets() -> None:
    maker = Maker(7)
    telling = 0
    for number in range(SETS):
        size = 3_000 if number % 20 == 19 else 1 + maker.below(POLICIES_MAX if number % 4 == 0 else 40)
        parts = [maker.policy() for _ in range(size)]
        if number % 2:
            parts += [maker.family(100), maker.family(40)]
            maker.dice.shuffle(parts)
        requests = [maker.request() for _ in range(REQUESTS_PER_SET)]
        telling += compare("\n".join(parts), maker.store(), requests)
    assert telling > SETS * REQUESTS_PER_SET // 3, "most answers say nothing"
