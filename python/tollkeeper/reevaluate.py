"""Decides recorded actions again: by the policies they were decided by, or by others.

A log's entry says who asked for what, and what it was decided by; its payload holds the arguments, and the bundle that
it names by digest holds policies, entities and tools; the entry of its run says to which tools that was narrowed, when
its time was over, and which forbids came with it. So the same decision can be made anew, for everybody in the chain, by
a gate without a ledger, with the labels that the session had then and at the recorded time. What the log does not hold
is left out and counted, never guessed: what budgets had left, who was revoked, the run that a delegation would have
begun, the state of the process, and payloads that are gone. Budgets are left out, and an approval that was given counts
as one that is needed. Nothing is recorded and nothing is held.
"""

import base64
import datetime as dt
import decimal
import hashlib
import ipaddress
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeGuard

import msgspec

from tollkeeper import Entity, EntityUid, _native
from tollkeeper.errors import TollkeeperError

__all__ = [
    "Bundle",
    "BundleError",
    "Decided",
    "Difference",
    "Recorded",
    "Replay",
    "Result",
    "RunLimits",
    "Skipped",
    "decide",
    "forbids",
    "is_list",
    "is_object",
    "texts",
]

# A thousand policy files and their entities.
BUNDLE_BYTES_MAX: Final = 256 << 20
# Kinds of differences; a kind is a tool and two codes, so more than these are no help to anybody.
DIFFERENCES_MAX: Final = 10_000
# Gates that are kept: a log has as many as policies and tools were changed.
GATES_MAX: Final = 256
# Pins of one bundle's tools that are kept: more than a gate has tools.
PINS_MAX: Final = 10_000
# An entry names no more policies than these.
NAMED_MAX: Final = 64
# Runs whose limits are known at once; of more the oldest are forgotten.
RUNS_MAX: Final = 100_000
# Reasons why actions were skipped; a few of them hold words of the log.
REASONS_MAX: Final = 1_000
REASON_CHARACTERS_MAX: Final = 500
# Moments of the timeline; past that they become coarser.
MOMENTS_MAX: Final = 4_096

# The action of having another principal act.
DELEGATE: Final = 'Action::"delegate"'
# Denials of a later step, which do not name the policies that had allowed.
_AFTERWARDS: Final = ("budget.", "approval.")
# Codes that follow from policies, arguments and tools alone.
_BY_POLICY: Final = ("allow", "policy.", "input.unrepresentable", "input.unknown_tool", "approval.", "budget.")


class BundleError(TollkeeperError, ValueError):
    """A bundle that a log names cannot be used."""


class Skipped(Exception):  # noqa: N818 - no error: an action that cannot be decided again
    """Why an action cannot be decided again."""


# --- bundles ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bundle:
    """What decisions were made by: policies, schema, entities, tools and modes."""

    digest: str
    sources: dict[str, Any]
    """As the native gate takes them."""

    @property
    def entities_digest(self) -> str:
        """As decisions name it: of the text, or of an empty list."""
        named = self.sources["entities"]
        return digest_of(b"[]" if named is None else named[1].encode())

    def with_policies(self, policies: list[tuple[str, str]], schema: tuple[str, str] | None = None) -> "Bundle":
        """The same with other policies."""
        changed = {**self.sources, "policies": policies, "schema": schema or self.sources["schema"]}
        return Bundle(self.digest, changed)

    def with_tool(self, document: bytes) -> "Bundle":
        """The same with a tool as a runtime had described it, in place of the bundle's own, as it is kept beside it.

        Raises:
            BundleError: The document is no tool.
        """
        try:
            source = msgspec.json.decode(document, type=_Tool).source()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise BundleError(f"not a tool: {fault}", "bundle.format") from None
        others = [tool for tool in self.sources["tools"] if tool[0] != source[0]]
        return Bundle(self.digest, {**self.sources, "tools": [*others, source]})

    @property
    def policy_files(self) -> list[str]:
        """Names of the files that the policies stood in."""
        policies: list[tuple[str | None, str]] = self.sources["policies"]
        return [name for name, _ in policies if name]

    def gate(self) -> _native.Gate:
        """A gate that decides by it, with no ledger and no log.

        Raises:
            PolicyError: A policy cannot be used.
            EntityError: The entities cannot be used.
        """
        # Nobody pays here, so nothing may cost: what costs is denied where nobody pays.
        reads: list[str] = []
        free = [(*tool[:4], None, reads) for tool in self.sources["tools"]]
        return _native.Gate({**self.sources, "tools": free}, int.from_bytes(os.urandom(8)), lambda: None)

    def usable_gate(self) -> _native.Gate:
        """The same gate, of a bundle that somebody else has written.

        Raises:
            BundleError: No gate can be made of it.
        """
        try:
            return self.gate()
        except (TollkeeperError, ValueError, TypeError, OverflowError, RecursionError) as fault:
            raise BundleError(
                f"the bundle {self.digest}: no gate can be made of it: {fault}", "bundle.format"
            ) from None

    def pin(self, name: object) -> str | None:
        """The digest of a tool's definition, as entries name it; `None` without such a tool."""
        tool = self.tool(name)
        return None if tool is None else _native._tool_pin(tool)  # noqa: SLF001 - the native half

    def tool(self, name: object) -> "Tool | None":
        """A tool: name, resource, schema, paths, cost, what it reads."""
        return next((tool for tool in self.sources["tools"] if tool[0] == name), None)

    @classmethod
    def read(cls, folders: Iterable[Path], digest: str) -> "Bundle":
        """Finds a bundle by its digest.

        Args:
            folders: Where it may lie, in a folder ``bundle``.
            digest: As entries write it.

        Raises:
            BundleError: It is not there, or it is not what was recorded.
        """
        return cls.parse(digest, kept(folders, digest), f"the bundle {digest}")

    @classmethod
    def parse(cls, digest: str, data: bytes, name: str) -> "Bundle":
        """Reads a bundle's document.

        Raises:
            BundleError: It is none.
        """
        try:
            document = msgspec.json.decode(data, type=_Document)
            tools = [tool.source() for tool in document.tools]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            raise BundleError(f"{name}: not a bundle: {fault}", "bundle.format") from None
        sources = {name: getattr(document, name) for name in _Document.__struct_fields__}
        # A gate without a log and without approvers has no use for these, and asks for them.
        recording: dict[str, Any] = {"on_full": "deny", "durability": "group", "approvers": [], "notice": None}
        return cls(digest, {**sources, **recording, "tools": tools})


def kept(folders: Iterable[Path], digest: str) -> bytes:
    """A document that is kept beside logs, by its digest.

    Raises:
        BundleError: It is not there, or it is not what was recorded.
    """
    name = digest.translate(str.maketrans("+/", "-_")).rstrip("=")
    if not re.fullmatch(r"[A-Za-z0-9_-]{43}", name):
        raise BundleError("the entry does not name what it was decided by", "bundle.missing")
    unreadable: str | None = None
    for folder in folders:
        file = folder / "bundle" / f"{name}.json"
        try:
            if not file.is_file() and file.exists():
                # Reading a pipe would wait for somebody to write.
                unreadable = f"{file}: not a file"
                continue
            with file.open("rb") as stream:
                data = stream.read(BUNDLE_BYTES_MAX + 1)
        except FileNotFoundError:
            continue
        except OSError as fault:
            unreadable = f"{file}: cannot be read: {fault.strerror or fault}"
            continue
        if digest_of(data) != digest:
            raise BundleError(f"{file}: changed since it was recorded", "bundle.changed")
        return data
    raise BundleError(unreadable or f"the bundle {digest} is not kept here", "bundle.missing")


Tool = tuple[str, str, str | None, list[str], list[tuple[str, int]] | None, list[str]]


class _Tool(msgspec.Struct):
    name: str
    resource: str
    schema: dict[str, Any] | None = None
    paths: list[str] = []
    cost: dict[str, int] | None = None
    reads: list[str] = []

    def source(self) -> Tool:
        """As the native gate takes it."""
        schema = None if self.schema is None else json.dumps(self.schema)
        cost = None if self.cost is None else list(self.cost.items())
        return self.name, self.resource, schema, self.paths, cost, self.reads


class _Document(msgspec.Struct):
    policies: list[tuple[str | None, str]]
    schema: tuple[str | None, str] | None = None
    entities: tuple[str | None, str] | None = None
    tools: list[_Tool] = []
    mode: str = "enforce"
    on_error: str = "deny"
    unguarded_forbid: str = "refuse"


class _Forbids(msgspec.Struct):
    forbid: list[str]


def forbids(folders: Iterable[Path], digest: str) -> list[str]:
    """The texts of the forbids that came with a run, by their digest.

    Raises:
        BundleError: They are not there, or they are not what was recorded.
    """
    try:
        return msgspec.json.decode(kept(folders, digest), type=_Forbids).forbid
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise BundleError(f"{digest}: not the forbids of a run: {fault}", "bundle.format") from None


def digest_of(data: bytes) -> str:
    """A digest as entries write it."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


# --- what was recorded ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """A decision as the log has it."""

    place: str
    """Where it stands, for people."""
    members: dict[str, Any]
    payload: bytes | None
    salt: bytes | None

    @property
    def action(self) -> str:
        """The tool's name, or ``call_model NAME``."""
        model = self.members.get("model")
        if is_object(model) and self.members.get("tool") is None:
            return f"call_model {model.get('name')}"
        return str(self.members.get("tool"))

    @property
    def time_ms(self) -> int | None:
        """When it was made."""
        time = self.members.get("time")
        try:
            return round(dt.datetime.fromisoformat(time).timestamp() * 1_000) if isinstance(time, str) else None
        except (ValueError, OverflowError):
            return None

    def unspilled(self) -> "Recorded":
        """With the members that were too many for an entry, if they are there."""
        spill = self.members.get("oversize")
        if not is_object(spill) or self.payload is None:
            return self
        try:
            _check_commitment(self, spill)
            document = _object(self.payload)
        except Skipped:
            return self
        payload = document.pop("payload", None)
        members = {key: value for key, value in self.members.items() if key != "oversize"}
        payload = payload.encode() if isinstance(payload, str) else None
        # The inner commitment has a salt that nobody keeps; the outer one covers all of it.
        return Recorded(self.place, {**members, **document}, payload, None)

    def input(self) -> dict[str, Any]:
        """The arguments.

        Raises:
            Skipped: They are not there, or they are not what the entry commits to.
        """
        committed = self.members.get("arguments")
        if committed is None:
            raise Skipped("no arguments were recorded")
        if self.payload is None:
            raise Skipped("the payload is not there, or was erased")
        if is_object(committed):
            _check_commitment(self, committed)
        found = _object(self.payload).get("input")
        if not is_object(found):
            raise Skipped("the payload holds no arguments")
        return found

    def principal(self) -> EntityUid | Entity:
        """Who acted: a uid, or what the run has said of it."""
        described = _object(self.payload).get("principal") if self.payload is not None else None
        return entity(described) if is_object(described) else EntityUid.parse(str(self.members.get("principal")))

    def chain(self) -> list[EntityUid | Entity]:
        """Everybody who had to be allowed, outermost first; the last one acted."""
        outer = texts(self.members.get("chain"))[:-1]
        said = _object(self.payload).get("chain") if outer and self.payload is not None else None
        # `entity` first: it says of what is none that it is none.
        described = [(entity(one), one["uid"]) for one in said if is_object(one)] if is_list(said) else []
        by_uid = {str(_uid(uid)): one for one, uid in described}
        return [*(by_uid.get(uid) or EntityUid.parse(uid) for uid in outer), self.principal()]


def _check_commitment(recorded: Recorded, committed: dict[str, Any]) -> None:
    if recorded.salt is None or recorded.payload is None:
        return
    if digest_of(b"\x02" + recorded.salt + recorded.payload) != committed.get("commitment"):
        raise Skipped("the payload is not what the entry commits to")


def _object(text: bytes) -> dict[str, Any]:
    try:
        # Not msgspec: a number beyond 64 bits is one here, and the snapshot says what becomes of it.
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise Skipped("the payload cannot be read") from None
    if not is_object(document):
        raise Skipped("the payload cannot be read")
    return document


def is_object(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a value of an entry is an object."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether a value of an entry is a list."""
    return isinstance(value, list)


def texts(value: object) -> list[str]:
    """The keys of an object or the items of a list, as texts; none of anything else."""
    return [str(item) for item in value] if is_object(value) or is_list(value) else []


# --- entities in Cedar's JSON -----------------------------------------------------------------------------------------


def entity(document: dict[str, Any]) -> Entity:
    """An entity out of its JSON form.

    Raises:
        Skipped: It is none.
    """
    try:
        attrs = {name: _value(value) for name, value in document.get("attrs", {}).items()}
        tags = {name: _value(value) for name, value in document.get("tags", {}).items()}
        return Entity(_uid(document["uid"]), attrs, [_uid(parent) for parent in document.get("parents", [])], tags)
    except (TollkeeperError, ValueError, KeyError, TypeError, AttributeError, decimal.InvalidOperation):
        raise Skipped("the principal as the run described it cannot be read") from None


def _uid(value: Any) -> EntityUid:  # noqa: ANN401 - plain data of any shape
    if isinstance(value, str):
        return EntityUid.parse(value)
    value = value.get("__entity", value)
    return EntityUid(value["type"], value["id"])


def _value(value: Any) -> Any:  # noqa: ANN401 - plain data of any shape
    if is_list(value):
        return [_value(item) for item in value]
    if not is_object(value):
        return value
    if "__entity" in value:
        return _uid(value)
    if "__extn" in value:
        return _extension(value["__extn"]["fn"], value["__extn"]["arg"])
    return {name: _value(item) for name, item in value.items()}


def _extension(function: str, text: str) -> Any:  # noqa: ANN401 - plain data of any shape
    if function == "decimal":
        return decimal.Decimal(text)
    if function == "ip":
        return ipaddress.ip_interface(text) if "/" in text else ipaddress.ip_address(text)
    if function == "datetime":
        moment = dt.datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    found = re.fullmatch(r"(-?)(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", text, re.ASCII)
    if function != "duration" or found is None:
        raise ValueError(function)
    days, hours, minutes, seconds, ms = (int(part or 0) for part in found.groups()[1:])
    length = dt.timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=ms)
    return -length if found[1] else length


# --- deciding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decided:
    """What came of an action, as far as policies decide it."""

    code: str
    would_deny: str | None
    policies: frozenset[str] | None
    """Those that decided; `None` where nobody compares them."""

    @property
    def allowed(self) -> bool:
        """Whether it could go ahead."""
        return self.code == "allow"

    def __str__(self) -> str:
        return f"{self.code}, would be {self.would_deny}" if self.would_deny else self.code


def _by_policies(code: object, *, approvals: bool) -> str:
    """A code without what budgets and, unless they count, approvals have to say."""
    text = str(code)
    if text.startswith("approval."):
        return "approval.required" if approvals else "allow"
    return "allow" if text.startswith("budget.") else text


def _by_shadow(code: object, *, approvals: bool) -> str | None:
    found = None if code is None else _by_policies(code, approvals=approvals)
    return None if found == "allow" else found


@dataclass(frozen=True)
class RunLimits:
    """What the entry of a run says of how far it may go."""

    tools: list[str] | None = None
    """The only tools it may call."""
    expires_ms: int | None = None
    """When its time is over."""

    @classmethod
    def read(cls, members: dict[str, Any]) -> "RunLimits":
        """Reads them off the members of the entry."""
        tools, expires_ms = members.get("tools"), members.get("expires_ms")
        return cls(texts(tools) if is_list(tools) else None, expires_ms if isinstance(expires_ms, int) else None)


UNLIMITED: Final = RunLimits()


def recorded_outcome(recorded: Recorded, *, approvals: bool = False, limits: RunLimits = UNLIMITED) -> Decided:
    """What the log says came of it, without budgets.

    Args:
        recorded: The decision.
        approvals: Whether it counts that an approval was needed.
        limits: Of its run, as far as they are known.

    Raises:
        Skipped: It followed from something that is not in the log.
    """
    members = recorded.members
    code, would = str(members.get("code")), members.get("would_deny")
    if members.get("action") == DELEGATE:
        raise Skipped("a delegation, which takes the run that would have begun")
    if code == "principal.revoked":
        raise Skipped("somebody was revoked, and revocations are not decided again")
    if code == "principal.expired" and limits.expires_ms is None:
        raise Skipped("the time of the run was over, and the run's entry is not here")
    if not code.startswith((*_BY_POLICY, "principal.expired")):
        raise Skipped(f"{code} follows from the state of the process")
    policies = members.get("policies")
    if code == "policy.forbidden" and not policies and limits.tools is None:
        raise Skipped("the run was narrowed to other tools, and the run's entry is not here")
    if members.get("approval") is not None and code.startswith(("allow", "budget.")):
        # Allowed only because somebody had approved it: whoever decides again needs that too.
        code = "approval.required"
    by = None if code.startswith(_AFTERWARDS) else frozenset(texts(policies))
    return Decided(_by_policies(code, approvals=approvals), _by_shadow(would, approvals=approvals), by)


def decide(
    gate: _native.Gate,
    recorded: Recorded,
    *,
    approvals: bool = False,
    limits: RunLimits = UNLIMITED,
    narrowings: Iterable[list[str]] = (),
) -> Decided:
    """Decides a recorded action again, without budgets.

    Args:
        gate: What decides.
        recorded: The decision.
        approvals: Whether it counts that an approval is needed.
        limits: Of its run, as far as they are known.
        narrowings: The texts of the forbids that came with its run and those around it.

    Raises:
        Skipped: The log does not hold what is needed for it.
    """
    decision = _asked(gate, recorded, limits, list(narrowings))
    code, would = _by_policies(decision.code, approvals=approvals), _by_shadow(decision.would_deny, approvals=approvals)
    return Decided(code, would, None if decision.code.startswith(_AFTERWARDS) else frozenset(decision.policies))


def _asked(gate: _native.Gate, recorded: Recorded, limits: RunLimits, narrowings: list[list[str]]) -> _native.Decision:
    members, now_ms = recorded.members, recorded.time_ms
    if now_ms is None:
        raise Skipped("the entry has no time")
    if members.get("budget_seen") is not None:
        raise Skipped("policies read what the budget had left")
    try:
        scope = _native.Scope._recorded(  # noqa: SLF001 - made for this
            gate,
            [*recorded.chain()],
            str(members.get("session", "")),
            texts(members.get("labels")),
            on_behalf_of=members.get("on_behalf_of"),
            tools=limits.tools,
            forbids=narrowings,
            expires_ms=limits.expires_ms,
        )
        model = members.get("model")
        if is_object(model) and members.get("tool") is None:
            prompt, most, times = (int(model.get(name, 1)) for name in ("prompt_tokens", "max_tokens", "n"))
            asked = (str(model.get("name")), prompt, most, times)
            return gate._decide_at(scope, now_ms, model=asked)  # noqa: SLF001 - made for this
        tool, given = str(members.get("tool")), recorded.input()
        return gate._decide_at(scope, now_ms, tool=tool, arguments=given)  # noqa: SLF001 - made for this
    except (TollkeeperError, ValueError, TypeError, OverflowError, RecursionError) as fault:
        raise Skipped(f"the action cannot be asked for again: {fault}") from None


# --- many of them -----------------------------------------------------------------------------------------------------


@dataclass
class Difference:
    """Actions of one tool that came out in the same other way."""

    action: str
    before: Decided
    after: Decided
    count: int
    example: str
    """Id of one of the decisions."""
    place: str


@dataclass
class Moment:
    """What happened in one stretch of the timeline."""

    allowed_before: int = 0
    denied_before: int = 0
    allowed_after: int = 0
    denied_after: int = 0

    def add(self, other: "Moment") -> None:
        """Takes in another stretch."""
        self.allowed_before += other.allowed_before
        self.denied_before += other.denied_before
        self.allowed_after += other.allowed_after
        self.denied_after += other.denied_after


@dataclass
class Result:
    """What came of a log."""

    same: int = 0
    different: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """By reason."""
    differences: dict[tuple[object, ...], Difference] = field(default_factory=dict)
    moments: dict[int, Moment] = field(default_factory=dict)
    """By their start in milliseconds."""
    moment_ms: int = 1_000

    def add(self, recorded: Recorded, before: Decided, after: Decided) -> None:
        """Counts one action."""
        moment = Moment(before.allowed, not before.allowed, after.allowed, not after.allowed)
        self.at(recorded.time_ms or 0).add(moment)
        if before == after:
            self.same += 1
            return
        self.different += 1
        key = (recorded.action, before, after)
        if key in self.differences:
            self.differences[key].count += 1
        elif len(self.differences) < DIFFERENCES_MAX:
            id_ = str(recorded.members.get("id", ""))
            self.differences[key] = Difference(recorded.action, before, after, 1, id_, recorded.place)

    def skip(self, reason: str) -> None:
        """Counts one that cannot be decided again."""
        known = reason in self.skipped or len(self.skipped) < REASONS_MAX
        self.skipped[reason if known else "other reasons"] += 1

    def at(self, time_ms: int) -> Moment:
        """The stretch of a time."""
        while len(self.moments) > MOMENTS_MAX:
            self.coarsen(self.moment_ms * 10)
        return self.moments.setdefault(time_ms - time_ms % self.moment_ms, Moment())

    def coarsen(self, moment_ms: int) -> None:
        """Makes the stretches longer."""
        finer, self.moments, self.moment_ms = self.moments, {}, moment_ms
        for start, moment in finer.items():
            self.moments.setdefault(start - start % moment_ms, Moment()).add(moment)


class Replay:
    """Decides recorded actions again.

    Args:
        folders: Where bundles may lie.
        other: Makes the bundle to decide by out of the recorded one; `None` for the recorded one itself.
    """

    def __init__(self, folders: list[Path], other: Any = None) -> None:  # noqa: ANN401 - a function from bundle to bundle
        self.result = Result()
        self._folders, self._other = folders, other
        self._gates: dict[tuple[str, str | None], tuple[Bundle, _native.Gate] | str] = {}
        self._pins: dict[str, dict[str, str | None]] = {}
        self._runs: dict[tuple[str, str], RunLimits] = {}
        self._forbids: dict[str, list[str] | str] = {}

    def begin(self, members: dict[str, Any]) -> None:
        """Takes in the entry of a run, which comes before those of its decisions."""
        limits = RunLimits.read(members)
        key = _run_of(members)
        # The same name again is another run.
        self._runs.pop(key, None)
        if limits == UNLIMITED:
            return
        if len(self._runs) >= RUNS_MAX:
            del self._runs[next(iter(self._runs))]
        self._runs[key] = limits

    def take(self, recorded: Recorded) -> None:
        """Decides one again."""
        try:
            before, after = self._decided(recorded)
        except Skipped as why:
            self.result.skip(str(why))
            return
        self.result.add(recorded, before, after)

    def _decided(self, recorded: Recorded) -> tuple[Decided, Decided]:
        if "oversize" in recorded.members:
            raise Skipped("the entry was too long for the log, and what it holds is not there")
        approvals = self._other is not None
        limits = self._runs.get(_run_of(recorded.members), UNLIMITED)
        before = recorded_outcome(recorded, approvals=approvals, limits=limits)
        bundle, gate = self._gate(str(recorded.members.get("bundle")))
        if bundle.entities_digest != recorded.members.get("entities"):
            raise Skipped("entities have been updated since the bundle was made")
        pin = recorded.members.get("pin")
        if isinstance(pin, str) and self._pin(bundle, recorded.members.get("tool")) != pin:
            _, gate = self._gate(bundle.digest, pin)
        narrowings = [self._narrowing(digest) for digest in texts(recorded.members.get("narrowing"))]
        after = decide(gate, recorded, approvals=approvals, limits=limits, narrowings=narrowings)
        if before.policies is None or after.policies is None or self._other is not None:
            # Other policies have other names.
            return replace(before, policies=None), replace(after, policies=None)
        if len(before.policies) >= NAMED_MAX and before.policies <= after.policies:
            return before, replace(after, policies=before.policies)
        return before, after

    def _pin(self, bundle: Bundle, tool: object) -> str | None:
        """The pin of a tool of a bundle."""
        if not isinstance(tool, str):
            return None
        pins = self._pins.setdefault(bundle.digest, {})
        if tool not in pins:
            if len(pins) >= PINS_MAX:
                pins.clear()
            pins[tool] = bundle.pin(tool)
        return pins[tool]

    def _narrowing(self, digest: str) -> list[str]:
        """The forbids that came with a run."""
        if digest not in self._forbids:
            if len(self._forbids) >= GATES_MAX:
                self._forbids.clear()
            try:
                self._forbids[digest] = forbids(self._folders, digest)
            except BundleError as why:
                self._forbids[digest] = _cut(f"the run came with forbids: {why}")
        found = self._forbids[digest]
        if isinstance(found, str):
            raise Skipped(found)
        return found

    def _gate(self, digest: str, pin: str | None = None) -> tuple[Bundle, _native.Gate]:
        """The gate of a bundle, or of one and a tool as a runtime had described it."""
        key = (digest, pin)
        if key not in self._gates:
            if len(self._gates) >= GATES_MAX:
                self._gates.clear()
                self._pins.clear()
            try:
                bundle = Bundle.read(self._folders, digest)
                used = bundle if self._other is None else self._other(bundle)
                if pin is not None:
                    used = used.with_tool(kept(self._folders, pin))
                self._gates[key] = (bundle, self._made(bundle, used, pinned=pin is not None))
            except BundleError as why:
                self._gates[key] = _cut(str(why))
        found = self._gates[key]
        if isinstance(found, str):
            raise Skipped(found)
        return found

    def _made(self, bundle: Bundle, used: Bundle, *, pinned: bool) -> _native.Gate:
        if self._other is None or pinned:
            # Without the pinned tool there is a gate already.
            return used.usable_gate()
        try:
            return used.gate()
        except TollkeeperError:
            # Policies that cannot be used are the fault of whoever gave them, unless it is the recorded rest.
            bundle.usable_gate()
            raise
        except (ValueError, TypeError, OverflowError, RecursionError):
            return used.usable_gate()


def _run_of(members: dict[str, Any]) -> tuple[str, str]:
    """What tells a run from others: a name is its process's own."""
    return str(members.get("producer")), str(members.get("run"))


def _cut(text: str) -> str:
    return text if len(text) <= REASON_CHARACTERS_MAX else text[: REASON_CHARACTERS_MAX - 3] + "..."
