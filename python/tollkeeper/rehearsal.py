"""What enforcing would have done to calls that a gate let through in shadow mode, counted out of its audit log.

Calls count if the policies that were in force last have decided them, because what earlier ones said of a call is not
what would happen now. A verdict comes out: ready, or not and why. Nothing is decided again (``tollkeeper audit replay``
does that), nothing is verified, and what was not recorded is counted, never guessed.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tollkeeper import explanation
from tollkeeper.errors import TollkeeperError
from tollkeeper.observed import (
    ALLOWED,
    DENIED,
    NARROWED,
    NO_PERMIT,
    OTHERS,
    WOULD_DENY,
    Breakdown,
    Row,
    Seen,
    Stretches,
    asked,
    deciders,
    fate,
    name,
    time_ms,
)
from tollkeeper.reevaluate import Bundle, Recorded, Skipped, is_object

__all__ = ["Arguments", "Cause", "Rehearsal", "in_shadow", "reasons", "unknown"]

# Kinds of would-denials; a kind is a code, its policies and a tool.
CAUSES_MAX: Final = 10_000
TOOLS_MAX: Final = 10_000
ARGUMENTS_MAX: Final = 1_000
SKIPS_MAX: Final = 100


@dataclass(frozen=True)
class Cause:
    """A kind of would-denial: calls of one tool, refused for the same reason."""

    code: str
    policies: tuple[str, ...]
    tool: str

    def __str__(self) -> str:
        named = [policy for policy in self.policies if policy not in {NO_PERMIT, NARROWED}]
        by = f" by {', '.join(named)}" if named else ""
        return f"{self.tool}: {self.code}{by}"


@dataclass
class Arguments:
    """The arguments with which one tool was called. Names only, never values."""

    calls: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    """In how many calls each name stood; of some calls it is not known, see ``unread``."""
    unread: int = 0
    """Calls whose arguments were erased, or cannot be read."""


class Rehearsal:
    """Counts calls. ``take`` decisions in the order of their time.

    Args:
        bundle: Digest of the policies that were in force last.
        mode: The gate's mode then: ``shadow``, or ``enforce``, where only policies in shadow let anything through.
        earlier: Whether what earlier policies have decided counts as well.
        accepted: Policies and codes of which would-denials are as they should be.
    """

    def __init__(
        self, bundle: str | None, mode: str, *, earlier: bool = False, accepted: frozenset[str] = frozenset()
    ) -> None:
        self.bundle, self.mode, self._earlier, self._accepted = bundle, mode, earlier, accepted
        self.calls = Row()
        self.accepted = 0
        """Of the would-denials."""
        self.other_policies = Row()
        """Calls in the same mode that earlier policies have decided."""
        self.other_mode = Row()
        """Calls in the other mode."""
        self.paid = 0
        """Calls of runs that name a budget."""
        self.unlogged = 0
        """Calls for which the log had no room: nothing is known of them."""
        self.unreadable = 0
        self.first: str | None = None
        self.last: str | None = None
        self.by_code = Breakdown()
        self.by_policy = Breakdown()
        self.by_tool = Breakdown()
        self.by_principal = Breakdown()
        self.denied_codes = Breakdown()
        """Of calls that shadow mode denies too."""
        self.causes: dict[Cause, Row] = {}
        """Of would-denials that are not accepted."""
        self.newest_cause: tuple[str, Cause] | None = None
        """When a kind of would-denial was seen for the first time, last."""
        self.since_new_cause = 0
        """Calls since then."""
        self.over_time = Stretches()
        self.arguments: dict[str, Arguments] = {}
        self.skips = Counter[str]()
        """Why arguments could not be read."""

    @property
    def against(self) -> int:
        """Would-denials that are not accepted."""
        return self.calls.would_deny - self.accepted

    def take(self, members: Seen, recorded: Callable[[], Recorded]) -> None:
        """Counts a decision.

        Args:
            members: Its members.
            recorded: Gives the entry with what it commits to.
        """
        became = fate(members)
        if became is None:
            self.unreadable += 1
            return
        if members.mode != self.mode:
            _count(self.other_mode, became)
            return
        if members.bundle != self.bundle and not self._earlier:
            _count(self.other_policies, became)
            return
        _count(self.calls, became)
        self.paid += members.budget is not None
        self.first = self.first or name(members.time)
        self.last = name(members.time)
        tool, id_ = asked(members), name(members.id)
        self.by_tool.add(tool, became, id_ if became == WOULD_DENY else "")
        self.by_principal.add(name(members.principal, "(nobody)"), became, id_ if became == WOULD_DENY else "")
        self.since_new_cause += 1
        at_ms = time_ms(members.time)
        if at_ms is not None:
            self.over_time.add(at_ms, "calls")
        if became == WOULD_DENY:
            self._would_deny(members, tool, id_, at_ms)
        elif became == DENIED:
            self.denied_codes.add(name(members.code), became, id_)
        if members.tool is not None and members.arguments is not None and members.code != "input.unknown_tool":
            self._read(tool, recorded)

    def _would_deny(self, members: Seen, tool: str, id_: str, at_ms: int | None) -> None:
        code, policies = name(members.would_deny), deciders(members)
        self.by_code.add(code, WOULD_DENY, id_)
        for policy in policies:
            self.by_policy.add(policy, WOULD_DENY, id_)
        if at_ms is not None:
            self.over_time.add(at_ms, WOULD_DENY)
        if code in self._accepted or (policies and self._accepted.issuperset(policies)):
            self.accepted += 1
            return
        cause = Cause(code, tuple(policies), tool)
        if cause not in self.causes:
            if len(self.causes) >= CAUSES_MAX:
                cause = Cause(OTHERS, (), OTHERS)
            self.newest_cause, self.since_new_cause = (name(members.time), cause), 0
            if at_ms is not None:
                self.over_time.add(at_ms, "new")
        row = self.causes.setdefault(cause, Row())
        row.would_deny += 1
        row.examples.append(id_)

    def _read(self, tool: str, recorded: Callable[[], Recorded]) -> None:
        if tool not in self.arguments and len(self.arguments) >= TOOLS_MAX:
            tool = OTHERS
        arguments = self.arguments.setdefault(tool, Arguments())
        arguments.calls += 1
        try:
            given = recorded().input()
        except Skipped as why:
            arguments.unread += 1
            reason = str(why)
            self.skips[reason if reason in self.skips or len(self.skips) < SKIPS_MAX else OTHERS] += 1
            return
        for one in given:
            key = name(one)
            known = key in arguments.seen or len(arguments.seen) < ARGUMENTS_MAX
            arguments.seen[key if known else OTHERS] += 1

    def first_causes(self) -> list[tuple[Cause, Row]]:
        """The kinds of would-denials that are not accepted, the most frequent first."""
        return sorted(self.causes.items(), key=lambda pair: (-pair[1].would_deny, str(pair[0])))

    def never_called(self, bundle: Bundle) -> list[str]:
        """Tools that the bundle registers and nobody asked for."""
        return [tool[0] for tool in bundle.sources["tools"] if name(tool[0]) not in self.by_tool.rows]

    def never_seen(self, bundle: Bundle) -> dict[str, list[str]]:
        """Arguments that a tool's schema declares and no call had, of the tools that were called."""
        found = dict[str, list[str]]()
        for tool in bundle.sources["tools"]:
            declared, used = _declared(tool[2]), self.arguments.get(name(tool[0]))
            if used is not None and declared and (missing := [one for one in declared if name(one) not in used.seen]):
                found[tool[0]] = missing
        return found

    def undeclared(self, bundle: Bundle) -> dict[str, list[str]]:
        """Arguments that calls had and the tool's schema does not declare. A tool without a schema declares none."""
        schemas = {name(tool[0]): tool[2] for tool in bundle.sources["tools"]}
        found = dict[str, list[str]]()
        for tool, used in self.arguments.items():
            declared = {name(one) for one in _declared(schemas.get(tool)) or ()}
            if more := sorted(one for one in used.seen if one not in declared):
                found[tool] = more
        return found


def _count(row: Row, became: str) -> None:
    row.allowed += became == ALLOWED
    row.denied += became == DENIED
    row.would_deny += became == WOULD_DENY


def _declared(schema: str | None) -> list[str] | None:
    """The names under ``properties``; `None` without a schema."""
    if schema is None:
        return None
    document = json.loads(schema)
    properties = document.get("properties") if is_object(document) else None
    return list(properties) if is_object(properties) else []


def reasons(bundle: Bundle, policies: list[str]) -> dict[str, str]:
    """The ``@reason`` of those policies that have one; of none, if the policies cannot be read."""
    return {id_: found["reason"] for id_, found in _annotations(bundle, policies).items() if "reason" in found}


def in_shadow(bundle: Bundle, policies: list[str]) -> set[str]:
    """Those policies that are in shadow themselves, and stay so when the gate enforces."""
    return {id_ for id_, found in _annotations(bundle, policies).items() if found.get("mode") == "shadow"}


def unknown(bundle: Bundle, policies: list[str]) -> list[str]:
    """Those ids that no policy of the bundle has; none, if the policies cannot be read."""
    try:
        with explanation.Policies(bundle) as loaded:
            return [id_ for id_ in policies if not loaded.has(id_)]
    except (TollkeeperError, ValueError, TypeError, OSError, RecursionError):
        return []


def _annotations(bundle: Bundle, policies: list[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    try:
        with explanation.Policies(bundle) as loaded:
            for id_ in policies:
                if annotations := loaded.annotations(id_):
                    found[id_] = annotations
    except (TollkeeperError, ValueError, TypeError, OSError, RecursionError):
        # Whoever wrote the log may have meant harm: without its policies the counts stand all the same.
        return {}
    return found
