"""
The native half of the package. Import from `tollkeeper`, not from here.
"""

import collections.abc
import os
import typing
from typing import Any, SupportsIndex, final

from typing_extensions import disjoint_base

__all__ = [
    "Answer",
    "BatchAnswer",
    "Context",
    "Decision",
    "Entities",
    "Entity",
    "EntityUid",
    "EvaluationError",
    "Gate",
    "PolicySet",
    "Scope",
    "_echo_arguments",
    "_echo_uid",
    "_fork_generation",
    "_measure_arguments",
    "_panic_on_purpose",
    "build_info",
    "decision_codes",
]

@final
class Answer:
    """
    The answer to one request: decision, reasons, errors.

    An answer has no truth value: `if answer:` raises, so nobody tests the object by accident.
    """
    def __bool__(self, /) -> bool: ...
    def __repr__(self, /) -> str: ...
    @property
    def allowed(self, /) -> bool:
        """
        Whether the decision is allow.
        """
    @property
    def annotations(self, /) -> dict[str, dict[str, str]]:
        """
        The annotations of the reasons, by policy id.
        """
    @property
    def decision(self, /) -> str:
        """
        `"allow"` or `"deny"`.
        """
    @property
    def errors(self, /) -> list[EvaluationError]:
        """
        The policies that erred, each with `.policy` and `.message`.
        """
    @property
    def reasons(self, /) -> list[str]:
        """
        Ids of the satisfied policies of the deciding effect; empty when nothing permits.
        """

@final
class BatchAnswer:
    """
    What a batch answers, as numpy arrays with one row per request.
    """
    @property
    def decisions(self, /) -> Any:
        """
        uint8: 1 allow, 0 deny.
        """
    @property
    def error_counts(self, /) -> Any | None:
        """
        uint32, only with `detail="counts"`: policies that erred; else None.
        """
    @property
    def errors(self, /) -> tuple[Any, Any] | None:
        """
        The same for the policies that erred.
        """
    @property
    def reason_counts(self, /) -> Any | None:
        """
        uint32, only with `detail="counts"`: satisfied policies of the deciding effect; else None.
        """
    @property
    def reasons(self, /) -> tuple[Any, Any] | None:
        """
        Only with `detail="policies"`: (offsets, policies), both uint32; row i has `policies[offsets[i]:offsets[i+1]]`,
        positions in `PolicySet.ids`; else None.
        """

@final
class Context:
    """
    The context of a request, prepared once and used many times.

    `Context(mapping)` takes plain data; `Context.from_cedar_json(text)` reads Cedar's own JSON with its escapes for
    entities and extension values, and is for trusted text only.

    Example:
        >>> from tollkeeper import Context
        >>> context = Context({"path": "/srv/a"})
    """
    def __new__(cls, mapping: dict[str, typing.Any], /) -> Context: ...
    def __repr__(self, /) -> str: ...
    @staticmethod
    def from_cedar_json(
        text: str, schema: str | os.PathLike[str] | None = None, *, action: EntityUid | str | None = None
    ) -> Context:
        """
        Reads Cedar's JSON form of a context: `__entity` and `__extn` are decoded.

        Never pass a model's arguments through this: they could name any entity they like.

        Args:
            text: A JSON object.
            schema: With it, `action` must be given, and declared types decide how values are read.
            action: The action whose context this is.

        Raises:
            ContextError: The text is not a context.
        """

@final
class Decision:
    """
    The answer to one check.

    A decision has no truth value: `if decision:` raises, so nobody tests the object by accident.
    """
    def __bool__(self, /) -> bool: ...
    def __repr__(self, /) -> str: ...
    @property
    def allowed(self, /) -> bool:
        """
        Whether the action may go ahead.
        """
    @property
    def approvals(self, /) -> list[str]:
        """
        `@approval` of the permits that need one.
        """
    @property
    def code(self, /) -> str:
        """
        Stable name of the outcome, such as `allow` or `policy.no_permit`.
        """
    @property
    def errors(self, /) -> list[tuple[str, str]]:
        """
        Policies that could not be evaluated, as pairs of id and message.
        """
    @property
    def id(self, /) -> str:
        """
        Name of this decision: the gate and a count.
        """
    @property
    def obligations(self, /) -> list[str]:
        """
        `@obligation` of the permits that allowed.
        """
    @property
    def policies(self, /) -> list[str]:
        """
        Ids of the policies that decided.
        """
    @property
    def reason(self, /) -> str:
        """
        A sentence that a model can act on; empty when allowed. Holds no value of the arguments.
        """
    def require(self, /) -> Decision:
        """
        Raises `Denied` unless the action may go ahead; returns the decision otherwise.
        """
    @property
    def would_deny(self, /) -> str | None:
        """
        The code this would have had without shadow mode, or with the policies that are in it.
        """
    @property
    def would_deny_policies(self, /) -> list[str]:
        """
        Ids of the policies behind `would_deny`.
        """

@final
class Entities:
    """
    An immutable store of entities with closed ancestors. Safe to share between threads.

    Example:
        >>> from tollkeeper import Entities, Entity
        >>> store = Entities([Entity('User::"alice"', {"level": 3}, parents=['Team::"ops"'])])
        >>> len(store)
        1
    """
    def __contains__(self, uid: Any, /) -> bool: ...
    def __len__(self, /) -> int: ...
    def __new__(cls, entities: collections.abc.Iterable[Entity] | None = None, /) -> Entities: ...
    def __repr__(self, /) -> str: ...
    def ancestors(self, /, uid: EntityUid | str) -> list[str]:
        """
        The closed ancestors of an entity, sorted; empty if it is not in the store.
        """
    @staticmethod
    def from_json(text: str | os.PathLike[str], schema: str | os.PathLike[str] | None = None) -> Entities:
        """
        Reads Cedar's JSON form of entities.

        Args:
            text: A JSON array as `str`, or a file as `pathlib.Path`.
            schema: A Cedar schema; declared types decide how values are read, and the actions it declares are added.

        Raises:
            EntityError: The text is not an entities document, a parent cycle, or two different entities with one uid.
        """
    @property
    def memory_bytes(self, /) -> int:
        """
        Approximate memory in bytes.
        """
    def to_json(self, /) -> str:
        """
        The store in Cedar's JSON form.
        """
    def update(
        self,
        /,
        entities: collections.abc.Iterable[Entity] | None = None,
        *,
        remove: collections.abc.Iterable[EntityUid | str] | None = None,
    ) -> Entities:
        """
        A store with some entities added or replaced and others removed; the original is unchanged and shared.

        Raises:
            EntityError: The change would make a parent cycle.
        """
    def with_additional(self, /, entities: collections.abc.Iterable[Entity]) -> Entities:
        """
        A store with a request's own entities in front; nothing of the original is copied.

        Raises:
            EntityError: An entity is already there and differs.
        """

@final
class Entity:
    """
    One entity: uid, attributes, parents, tags.

    Attribute and tag values: bool, int, str, float (as decimal), list, tuple, set, dict, `EntityUid`, and from the
    standard library `decimal.Decimal`, `ipaddress` addresses and interfaces, aware `datetime.datetime`,
    `datetime.timedelta`. Times are cut to whole milliseconds, towards the past.

    Raises:
        EntityError: The uid cannot be read.
        ValueError: A value has no Cedar form.
    """
    def __new__(
        cls,
        /,
        uid: EntityUid | str,
        attrs: dict[str, typing.Any] | None = None,
        parents: collections.abc.Iterable[EntityUid | str] | None = None,
        tags: dict[str, typing.Any] | None = None,
    ) -> Entity: ...
    def __repr__(self, /) -> str: ...

@final
class EntityUid:
    """
    The name of a principal, an action or a resource: a type and an id.

    Prepared once and used many times, it saves reading the text on each call.

    Args:
        type: The type name, such as `User` or `Ns::User`.
        id: The id; any text, not escaped.

    Raises:
        EntityError: The type is not a type name.

    Example:
        >>> from tollkeeper import EntityUid
        >>> alice = EntityUid("User", "alice")
        >>> str(alice)
        'User::"alice"'
        >>> EntityUid.parse('User::"alice"') == alice
        True
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __getnewargs__(self, /) -> tuple[str, str]: ...
    def __hash__(self, /) -> int: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __new__(cls, /, type: str, id: str) -> EntityUid: ...
    def __repr__(self, /) -> str: ...
    def __str__(self, /) -> str: ...
    @property
    def id(self, /) -> str:
        """
        The id, not escaped.
        """
    @staticmethod
    def parse(text: str, /) -> EntityUid:
        """
        Reads the text form, `Type::"id"`, exactly as Cedar prints it.

        Raises:
            EntityError: The text is not a uid in its printed form.
        """
    @property
    def type(self, /) -> str:
        """
        The type name.
        """

@final
class EvaluationError:
    """
    A policy that could not be evaluated.
    """
    def __repr__(self, /) -> str: ...
    @property
    def message(self, /) -> str:
        """
        What went wrong and where; no value of the request is in it.
        """
    @property
    def policy(self, /) -> str:
        """
        Id of the policy.
        """

@disjoint_base
class Gate:
    """
    The native half of `tollkeeper.Gate`.
    """
    def __new__(
        cls,
        /,
        sources: dict[str, typing.Any],
        instance: SupportsIndex,
        current: collections.abc.Callable[[], Scope | None],
    ) -> typing.Self:
        """
        Args:
            sources: Mapping with `policies`, `schema`, `entities`, `tools`, `mode`, `on_error`, `unguarded_forbid`.
            instance: A random number that tells this gate's decisions from those of others.
            current: Callable that returns the current scope or `None`.
        """
    def _register(self, /, tools: list[tuple[str, str, str | None, list[str]]]) -> None:
        """
        Registers tools that a runtime describes: all of them or, if one is wrong, none.
        """
    def _reload(self, /, sources: dict[str, typing.Any]) -> None:
        """
        Loads everything anew and swaps it in; if anything is wrong, the old state stays.

        Raises:
            PolicyError: What is wrong, with file, line and column.
        """
    def check(
        self,
        /,
        tool: str,
        arguments: collections.abc.Mapping[str, typing.Any] | None = None,
        *,
        scope: Scope | None = None,
    ) -> Decision:
        """
        Decides whether the current scope's principal may call a tool with these arguments. Never raises on a denial.

        Args:
            tool: Name of a registered tool.
            arguments: Plain data with str keys; `None` is no arguments.
            scope: A scope other than the current one.
        """
    def close(self, /) -> None:
        """
        Closes the gate: every later check is denied with `gate.closed`.
        """
    @property
    def closed(self, /) -> bool:
        """
        Whether the gate was closed.
        """
    @property
    def mode(self, /) -> str:
        """
        `"enforce"` or `"shadow"`.
        """
    @property
    def tools(self, /) -> list[str]:
        """
        Names of the registered tools, sorted.
        """
    @property
    def warnings(self, /) -> list[str]:
        """
        Warnings of the last load.
        """

@final
class PolicySet:
    """
    A compiled set of Cedar policies. Immutable and safe to share between threads.

    Example:
        >>> from tollkeeper import PolicySet
        >>> policies = PolicySet.from_cedar('permit(principal, action == Action::"read", resource);')
        >>> policies.decide('User::"alice"', 'Action::"read"', 'File::"a"').decision
        'allow'
    """
    def __len__(self, /) -> int: ...
    def __repr__(self, /) -> str: ...
    def annotations(self, /, id: str) -> dict[str, str]:
        """
        The annotations of a policy.

        Raises:
            KeyError: No policy has this id.
        """
    def decide(
        self,
        /,
        principal: EntityUid | str,
        action: EntityUid | str,
        resource: EntityUid | str,
        context: Context | dict[str, typing.Any] | None = None,
        entities: Entities | None = None,
        *,
        decision_only: bool = False,
    ) -> Answer:
        """
        Answers one request.

        Args:
            principal: `EntityUid` or its text, `'User::"alice"'`.
            action: The same.
            resource: The same.
            context: A prepared `Context`, or a mapping of plain data that becomes the context record; `None` is empty.
            entities: The entity store; `None` is empty.
            decision_only: Stop at the first policy that settles the decision; `reasons` and `errors` are then not
                complete.

        Raises:
            EntityError: A uid cannot be read.
            ArgumentsError: The mapping is not plain data, or too large.
        """
    def decide_many(
        self,
        /,
        principals: collections.abc.Iterable[EntityUid | str] | EntityUid | str,
        actions: collections.abc.Iterable[EntityUid | str] | EntityUid | str,
        resources: collections.abc.Iterable[EntityUid | str] | EntityUid | str,
        contexts: collections.abc.Iterable[Context | dict[str, typing.Any]] | Context | dict[str, typing.Any],
        entities: Entities | None = None,
        *,
        principal_index: typing.Any = None,
        action_index: typing.Any = None,
        resource_index: typing.Any = None,
        context_index: typing.Any = None,
        detail: str = "decisions",
        threads: SupportsIndex = 1,
    ) -> BatchAnswer:
        """
        Answers many requests in one call, with the interpreter's lock released.

        Each column is a list of distinct values with an index array of one row per request; without an index array the
        values are the rows themselves, and a single value stands in every row.

        Args:
            principals: Uids, handles or text.
            actions: The same.
            resources: The same.
            contexts: Prepared contexts or mappings.
            entities: The entity store; `None` is empty.
            principal_index: Integers of shape (n,), uint32 for the least work; any integer dtype is accepted.
            action_index: The same.
            resource_index: The same.
            context_index: The same.
            detail: `"decisions"` stops at the policy that settles a request; `"counts"` adds how many reasons and
                errors there are; `"policies"` adds which.
            threads: Threads to decide on.

        Raises:
            ValueError: Columns of different lengths, an index outside its table.
            EntityError: A uid cannot be read.
            ArgumentsError: A mapping is not plain data.
        """
    def explain(self, /, id: str | None = None) -> str:
        """
        Says in words what a policy does, or every policy and template.

        Raises:
            KeyError: No policy has this id.
        """
    def explain_request(
        self,
        /,
        principal: EntityUid | str,
        action: EntityUid | str,
        resource: EntityUid | str,
        context: Context | dict[str, typing.Any] | None = None,
        entities: Entities | None = None,
    ) -> str:
        """
        Says in words how a request is decided: the verdict, every policy whose scope matches with the condition that
        was or was not met, and for a denial the nearest permit and what it lacked. Values of the request are shown.
        """
    @staticmethod
    def from_cedar(
        source: str | os.PathLike[str] | list[str | os.PathLike[str]],
        schema: str | os.PathLike[str] | None = None,
        *,
        ids: str = "positional",
    ) -> PolicySet:
        """
        Parses, validates where a schema is given, compiles and indexes.

        Args:
            source: Cedar policies as `str`, a file as `pathlib.Path`, or a list of them.
            schema: A Cedar schema, Cedar syntax or JSON, as `str` or `Path`; policies are validated strictly.
            ids: `"positional"` names policies `policy0`, `policy1`, ... as Cedar does; `"annotation"` by `@id`, else
                by file name and ordinal.

        Raises:
            PolicyError: With file, line, column and help for each finding.
            OSError: A file cannot be read.
        """
    @property
    def ids(self, /) -> list[str]:
        """
        The ids of the policies that can decide, in the order of their text.
        """
    def link(
        self,
        /,
        template: str,
        id: str,
        *,
        principal: EntityUid | str | None = None,
        resource: EntityUid | str | None = None,
    ) -> PolicySet:
        """
        Makes a new set with one more policy, linked from a template.

        Args:
            template: Id of the template.
            id: Id of the new policy.
            principal: Value of `?principal`, if the template has it.
            resource: Value of `?resource`, if the template has it.

        Raises:
            PolicyError: No such template, an id that is taken, or a slot without a value.
        """
    def matrix(self, /, entities: Entities | None = None) -> str:
        """
        Principals' types and groups by actions: each cell allow, never, or when, with the conditions below.
        """
    @property
    def memory_bytes(self, /) -> int:
        """
        Approximate memory of the compiled set in bytes.
        """
    def outcomes(
        self,
        /,
        principal: EntityUid | str,
        action: EntityUid | str,
        resource: EntityUid | str,
        context: Context | dict[str, typing.Any] | None = None,
        entities: Entities | None = None,
    ) -> dict[str, str]:
        """
        How each policy whose scope matches a request ends: `"satisfied"`, `"unsatisfied"` or `"error"`, by id.
        """
    def place(self, /, id: str) -> tuple[str | None, int, int]:
        """
        Where a policy stands: file (or `None`), line and column, from 1.

        Raises:
            KeyError: No policy has this id.
        """
    def program(self, /) -> str:
        """
        The compiled instructions of each policy and the buckets of the index.
        """
    @property
    def templates(self, /) -> list[str]:
        """
        The ids of the templates.
        """
    @property
    def warnings(self, /) -> list[str]:
        """
        Warnings of the validator.
        """

@disjoint_base
class Scope:
    """
    The native half of a scope: who acts, in which session, narrowed to what.
    """
    def __new__(
        cls,
        /,
        gate: Gate,
        principal: EntityUid | Entity | str | None = None,
        session: str | None = None,
        *,
        labels: list[str] = ...,
        on_behalf_of: EntityUid | str | None = None,
        tools: list[str] | None = None,
        outer: Scope | None = None,
    ) -> typing.Self:
        """
        Args:
            gate: The gate the run goes through.
            principal: Uid, or an `Entity` with attributes that the entity store does not have.
            session: Id of the session.
            labels: What the session has seen.
            on_behalf_of: For whom the principal acts.
            tools: The only tools this run may call.
            outer: A scope that this one narrows; principal and session are then its own.
        """
    def __repr__(self, /) -> str: ...
    def _end(self, /) -> None:
        """
        Ends the scope: checks with it are denied with `scope.missing` from now on.
        """
    @property
    def _gate(self, /) -> Gate:
        """
        The gate the run goes through.
        """
    def allows(self, /, tool: str) -> bool:
        """
        Whether the run may call this tool at all, before any policy is asked.
        """
    @property
    def on_behalf_of(self, /) -> str | None:
        """
        For whom the principal acts, if for anybody.
        """
    @property
    def principal(self, /) -> str:
        """
        Who acts.
        """
    @property
    def session(self, /) -> str:
        """
        Id of the session.
        """

def _echo_arguments(arguments: object, /) -> object:
    """
    Takes the snapshot of `arguments` and gives it back as Python data; an integer beyond 64 bits becomes `...`.
    """

def _echo_uid(uid: EntityUid | str, /) -> str:
    """
    Reads a uid argument, a handle or its text, and returns the text.
    """

def _fork_generation() -> int:
    """
    The fork generation of this process, with the hook in place.
    """

def _measure_arguments(arguments: object, /) -> int:
    """
    Takes the snapshot of `arguments` and returns the bytes charged for it.
    """

def _panic_on_purpose() -> None:
    """
    Panics, to show what becomes of it.
    """

def build_info() -> dict[str, str]:
    """
    Tells how this module was built: `version`, `profile` (`release` or `debug`) and `abi` (`abi3` or `native`).
    """

def decision_codes() -> list[tuple[str, str]]:
    """
    Every code a decision can have, with its meaning.
    """
