"""Derive from the text of a user's request what the run it starts may do: tools, and forbids on their arguments.

For: the third column of the report, `gate.run(tools=..., forbid=...)`. The derivation is a plain one: words of
`narrowing.toml` that stand in the request. In practice a model would read the request instead; what matters is
that it reads the request alone, before anything that somebody else wrote.

Refuses to: see anything but the request and the table. It is given no environment, no recorded call and no
attack, so nothing of them can leak into its answer. A tool that the table does not describe is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

_KINDS = {
    "account": re.compile(r"\b([A-Z]{2}[0-9]{2}[A-Z0-9]{11,30})\b"),
    "address": re.compile(r"([\w.+-]+@[\w-]+(?:\.[\w-]+)+)"),
    # An apostrophe inside a word ("I'll") neither opens nor closes a quotation.
    "quoted": re.compile(r"(?<!\w)['\"]([^'\"\x00-\x1f]+)['\"](?!\w)"),
    "word": re.compile(r"([\w-]+)"),
}
# Of an argument that is a set every element has to stand in the request.
_PLURALS = {"address": "addresses"}
_SENTENCE_END = re.compile(r"[.!?]\s+|\n")
_MONTHS = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
]
_MONTH = "|".join(_MONTHS)
_ISO_DAY = re.compile(r"\b[0-9]{4}-([0-9]{2})-([0-9]{2})\b")
_MONTH_FIRST = re.compile(rf"\b({_MONTH}) ([0-9]{{1,2}})(?:st|nd|rd|th)?\b", re.IGNORECASE)
_DAY_FIRST = re.compile(rf"\b([0-9]{{1,2}})(?:st|nd|rd|th)? (?:of )?({_MONTH})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Narrowing:
    """What a run is held to: the only tools it may call, and forbid policies as Cedar text."""

    tools: list[str]
    forbid: str


def derive(rules: Mapping[str, Any], tools: Iterable[str], request: str) -> Narrowing:
    """What the run that `request` starts may do.

    `rules` is the suite's table of `narrowing.toml`, `tools` the names of all tools there are.

    Raises ValueError for a tool that the table does not describe, or describes twice.
    """
    chosen, forbids = [], []
    for tool in sorted(tools):
        reads = any(fnmatchcase(tool, pattern) for pattern in rules["always"])
        if reads == (tool in rules):
            raise ValueError(f"narrowing.toml: {tool} needs either a place in `always` or a section, and not both")
        if reads:
            chosen.append(tool)
        elif _asks_for(rules[tool]["words"], request):
            chosen.append(tool)
            forbids += _forbids(tool, rules[tool], request)
    return Narrowing(chosen, "\n".join(forbids))


def _asks_for(words: list[str], request: str) -> bool:
    """Whether one sentence of the request matches all patterns, as whole words."""
    patterns = [re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE) for pattern in words]
    return any(all(p.search(sentence) for p in patterns) for sentence in _SENTENCE_END.split(request))


def _forbids(tool: str, rule: Mapping[str, Any], request: str) -> list[str]:
    """The forbid policies on the arguments of a tool that stays."""
    parts = []
    for argument, kind in rule.get("named", {}).items():
        parts.append(_policy(tool, argument, unless=_among(argument, kind, request)))
    for argument, kind in rule.get("if_named", {}).items():
        if among := _among(argument, kind, request):
            parts.append(_policy(tool, argument, unless=among))
    for argument, facts in rule.get("if_known", {}).items():
        words = _found("word", request)
        # A forbid that may err is refused, so each of them first asks whether the principal has such facts.
        known = " || ".join(f"principal has {fact} && principal.{fact}.containsAny([{words}])" for fact in facts)
        parts.append(_policy(tool, argument, when=f" && ({known})", unless=_among(argument, "word", request)))
    if "days" in rule and (days := days_of(request)):
        likes = " || ".join(f'context.input.{rule["days"]} like "*-{day}*"' for day in days)
        parts.append(_policy(tool, rule["days"], unless=likes))
    return parts


def _policy(tool: str, argument: str, *, unless: str, when: str = "") -> str:
    exception = f" unless {{ {unless} }}" if unless else ""
    return (
        f'@id("request.{tool}.{argument}")\n'
        f'@reason("The request of this run names no such {argument.replace("_", " ")}.")\n'
        f'forbid (principal, action == Action::"{tool}", resource)\n'
        f"when {{ context.input has {argument}{when} }}{exception};"
    )


def _among(argument: str, kind: str, request: str) -> str:
    """The condition that the argument is one of the request's, or all of it are; empty if the request has none."""
    singular = {plural: kind for kind, plural in _PLURALS.items()}.get(kind, kind)
    values = _found(singular, request)
    if not values:
        return ""
    question = "contains" if kind == singular else "containsAll"
    return f"[{values}].{question}(context.input.{argument})"


def _found(kind: str, request: str) -> str:
    """What the request holds of that kind, as Cedar strings."""
    return ", ".join(json.dumps(value, ensure_ascii=False) for value in sorted(set(_KINDS[kind].findall(request))))


def days_of(request: str) -> list[str]:
    """The days that a request names, as `MM-DD`: the year is often left out, so it is not looked at."""
    days = {f"{month}-{day}" for month, day in _ISO_DAY.findall(request)}
    named = _MONTH_FIRST.findall(request) + [(month, day) for day, month in _DAY_FIRST.findall(request)]
    return sorted(days | {f"{_MONTHS.index(month.lower()) + 1:02}-{int(day):02}" for month, day in named})
