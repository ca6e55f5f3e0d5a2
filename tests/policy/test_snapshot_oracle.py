"""What a policy sees of a mapping of plain data, against the reference asked about the same data converted.

The conversion is restated here in Python: a float is the decimal of its shortest form with at most four fraction
digits, None is an absent attribute, a tuple is a list. What then has no Cedar value (NaN, five digits, an integer
beyond 64 bits, a list that holds one of these) is *unreadable*: it is there, so `has` says true, and a policy that
reads it errs.

The reference knows no such value, so it is modelled, exactly and not only in one direction:

- in the context an unreadable value becomes an IP address, so that it is present, and so that every operator the
  policies below apply to it (`like`, `<`, `.attribute`, `has` behind it, ...) errs by type;
- operators that never err by type (`==`, `contains` of it, a set or record made of it) would quietly say false. In the
  text given to the reference, such an operand is replaced by a constructor call that errs, if what stands in the
  mapping at its path is unreadable or is a record with something unreadable inside.

So both sides must agree in decision, reasons and erroring ids, and in particular nothing is allowed that the modelled
reference denies. The rest of the file holds what is refused, and the two attacks on policies over call arguments:
a value of another type, and the escapes of Cedar's JSON.
"""

import decimal
import enum
import json
import math
import types
from collections import ChainMap, OrderedDict, UserDict, UserString
from collections.abc import Callable, Iterator
from typing import Any

import cedarpy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from oracle import DEEP, Seen, ask_reference, reference, request, seen

from tollkeeper import ArgumentsError, Context, PolicySet

pytestmark = pytest.mark.timeout(3_600 if DEEP else 60)

ALICE, READ, FILE = 'User::"alice"', 'Action::"read"', 'File::"a"'
LONG_MIN, LONG_MAX = -(2**63), 2**63 - 1
ESCAPES = {"__entity", "__extn", "__expr"}

# --- the conversion, restated ----------------------------------------------------------------------------------------

UNREADABLE: dict[str, Any] = {"__extn": {"fn": "ip", "arg": "2001:db8::bad"}}
"""What stands for a value that Cedar has not; no policy below works with addresses."""
ERRS = 'ip("not an address")'
"""An expression that errs when it is evaluated."""


def decimal_of(number: float) -> dict[str, Any]:
    if not math.isfinite(number):
        return UNREADABLE
    shortest = decimal.Decimal(repr(number))
    units = shortest.scaleb(4, decimal.Context(prec=400))
    if units != units.to_integral_value() or not LONG_MIN <= units <= LONG_MAX:
        return UNREADABLE
    sign, digits = "-" * (units < 0), f"{abs(int(units)):05}"
    return {"__extn": {"fn": "decimal", "arg": f"{sign}{digits[:-4]}.{digits[-4:]}"}}


def converted(value: Any) -> Any:
    """The value in Cedar's JSON."""
    if type(value) is float:
        return decimal_of(value)
    if type(value) is int and not LONG_MIN <= value <= LONG_MAX:
        return UNREADABLE
    if type(value) is dict:
        return {key: converted(inner) for key, inner in value.items() if inner is not None}
    if type(value) in (list, tuple):
        return UNREADABLE if any(poisoned(inner) for inner in value) else [converted(inner) for inner in value]
    return value


def poisoned(value: Any) -> bool:
    """Whether something unreadable is in it, at any depth."""
    if type(value) is dict:
        return any(poisoned(inner) for inner in value.values())
    if type(value) in (list, tuple):
        return any(poisoned(inner) for inner in value)
    return converted(value) is UNREADABLE


def holds_null_in_a_list(value: Any) -> bool:
    if type(value) is dict:
        return any(holds_null_in_a_list(inner) for inner in value.values())
    return type(value) in (list, tuple) and any(inner is None or holds_null_in_a_list(inner) for inner in value)


# --- policies, each with the text that models it ---------------------------------------------------------------------

PATHS = ("a", "b", "c", "r", "r.a", "r.b", "r.r.a")


def whole(path: str, context: dict[str, Any]) -> str:
    """An operand that is read with all that is in it: errs in the model if anything of it is unreadable."""
    value: Any = context
    for name in path.split("."):
        value = value.get(name) if type(value) is dict else None
    return ERRS if poisoned(value) else f"context.{path}"


LITERALS = (
    *('"x"', '"a\U0001f600"', "0", "1", "-1", "9223372036854775807", "true", "false"),
    *('decimal("1.5")', 'decimal("0.0")', 'User::"alice"', '["x", 1]', "[]", "{}", "{a: 1}", '{a: "x"}'),
)
# {0} is read by type, {1} and, one step further, {6} as a whole; {2} and {3} are literals; {4} and {5} are the record
# and the name the path ends in.
CONDITIONS = (
    *('{0} like "*x*"', '{0} like "*"', "{1} == {2}", "{1} != {2}", "{2} == {1}"),
    *("{0} < 1", "{0} >= 0", "0 <= {0}", "{0} + 1 > 0", "-{0} < 0", "{0} * 2 == 2"),
    *("{0}", "!{0}", "{0} || true", "true && {0}", "if {0} then true else false"),
    *('{0} in User::"alice"', "{0} is User", "principal in {0}", "{1} == {1} || true"),
    *('{0}.contains("x")', "{0}.contains({2})", "{0}.isEmpty()", '{0}.containsAny(["x", 1])', "[{1}].contains({2})"),
    *("[{2}, {3}].contains({1})", "[{2}].containsAll([{1}])", "{{k: {1}}} == {{k: {2}}}", "[{1}].isEmpty()"),
    *('{0}.lessThan(decimal("1.0"))', '{0}.greaterThanOrEqual(decimal("0.0"))', "decimal({0}) == {2}"),
    *("{4} has {5}", "!({4} has {5})", "{4} has {5} && {1} == {2}", '{4} has {5} && {0} like "x*"'),
    *("context has r.a", "context has r.r.a && {1} == {2}", "principal.hasTag({0})", "{6} == {2}"),
)


class Draft:
    """A policy as the subject gets it and, given a mapping, as the reference gets it."""

    def __init__(self, effect: str, clauses: list[tuple[str, str, str, str, str]]) -> None:
        self.effect, self.clauses = effect, clauses

    def text(self, context: dict[str, Any] | None = None) -> str:
        parts = [f"{self.effect}(principal, action, resource)"]
        for word, form, path, *literals in self.clauses:
            record, _, name = f"context.{path}".rpartition(".")
            operand, inner = (
                f"context.{end}" if context is None else whole(end, context) for end in (path, f"{path}.k")
            )
            parts.append(f"{word} {{ {form.format(f'context.{path}', operand, *literals, record, name, inner)} }}")
        return " ".join(parts) + ";"

    __repr__ = text


literal = st.sampled_from(LITERALS)
clause = st.tuples(
    st.sampled_from(["when", "when", "unless"]), st.sampled_from(CONDITIONS), st.sampled_from(PATHS), literal, literal
)
draft = st.builds(Draft, st.sampled_from(["permit", "permit", "forbid"]), st.lists(clause, min_size=1, max_size=3))

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(["x", "a\U0001f600", ""])
numbers = st.sampled_from(
    [0, 1, -1, 1.5, 0.0, -0.0, 1e14, 1e15, 0.12345, 1e-5, 2**63, -(2**63) - 1, LONG_MAX, LONG_MIN]
)
decimals = st.integers(-(10**16), 10**16).map(lambda units: units / 10_000)
scalar = st.booleans() | st.integers() | st.floats() | decimals | numbers | text | st.just("x")
name = st.sampled_from(["a", "b", "c", "r", "k"]) | text.filter(lambda key: key not in ESCAPES)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=4)
    return lists | lists.map(tuple) | records(inner)


def records(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(name, inner | st.none(), max_size=5)


plain = st.recursive(scalar, containers, max_leaves=8)
likely = st.fixed_dictionaries({}, optional={"a": scalar, "b": plain | st.none(), "c": st.lists(scalar, max_size=3)})
mapping = st.builds(
    lambda rest, front, record: {**rest, **front, **({"r": record} if record is not None else {})},
    *(records(plain), likely, st.none() | likely | st.builds(lambda r, inner: {**r, "r": inner}, likely, likely)),
)


def ask(policies: str | PolicySet, context: Any) -> Seen:
    """The subject's answer to a mapping, the same whether it is prepared before or not."""
    loaded = policies if isinstance(policies, PolicySet) else PolicySet.from_cedar(policies)
    answer = loaded.decide(ALICE, READ, FILE, context)
    prepared = seen(loaded.decide(ALICE, READ, FILE, Context(context)))
    quick = loaded.decide(ALICE, READ, FILE, context, decision_only=True)
    assert seen(answer) == prepared
    assert answer.decision == quick.decision
    return prepared


@given(mapping, st.lists(draft, min_size=1, max_size=12))
@example({"a": 2**63}, [Draft("permit", [("when", "context has a", "a", "0", "0")])])
@example({"a": math.nan}, [Draft("permit", [("unless", "{1} == {2}", "a", "0", "0")])])
@example({"r": {"b": 0.12345}}, [Draft("permit", [("when", "{1} != {2}", "r", "{}", "0")])])
@example({"c": [1, 1e300]}, [Draft("permit", [("when", "{4} has {5}", "c", "0", "0")])])
@example({"b": {"k": 2**63}}, [Draft("permit", [("unless", "{6} == {2}", "b", "0", "0")])])
@example({"b": ({"k": None},)}, [Draft("permit", [("when", "{1} == {2}", "b", "[{}]", "0")])])
def test_a_mapping_is_its_conversion(context: dict[str, Any], drafts: list[Draft]) -> None:
    expected = ask_reference(
        "\n".join(one.text(context) for one in drafts), [], request(ALICE, READ, FILE, converted(context))
    )
    assert ask("\n".join(one.text() for one in drafts), context) == expected


# Each condition over each path, with changing literals: so many that the index decides which of them are run.
ALL_DRAFTS = [
    Draft(effect, [("when", form, path, *literals)])
    for number, form in enumerate(CONDITIONS)
    for effect in ["forbid" if number % 3 == 0 else "permit"]
    for turn, path in enumerate(PATHS)
    for literals in [(LITERALS[(number + turn) % len(LITERALS)], '"x"')]
]


@pytest.fixture(scope="module")
def all_policies() -> PolicySet:
    return PolicySet.from_cedar("\n".join(one.text() for one in ALL_DRAFTS))


@given(mapping)
def test_a_mapping_is_its_conversion_to_a_large_set(all_policies: PolicySet, context: dict[str, Any]) -> None:
    modelled = cedarpy.PolicySet.from_str("\n".join(one.text(context) for one in ALL_DRAFTS))
    store = cedarpy.Entities.from_json_str("[]")
    expected = reference(modelled, store, [request(ALICE, READ, FILE, converted(context))])[0]
    assert ask(all_policies, context) == expected


def test_the_model_is_not_idle() -> None:
    """An unreadable value that is never read changes nothing, is there, and errs when it is read."""
    policies = """
        permit(principal, action, resource);
        permit(principal, action, resource) when { context has bad };
        permit(principal, action, resource) when { context.bad == 1 };
        permit(principal, action, resource) when { context.bad != 1 };
        permit(principal, action, resource) when { context.good == 1 || context.bad == 1 };
        permit(principal, action, resource) when { context has gone };
    """
    for bad in (math.nan, math.inf, 1e300, 0.00001, 2**63, -(2**200), [1, math.nan], ({"k": [2**64]},)):
        answer = ask(policies, {"good": 1, "bad": bad, "gone": None})
        assert answer == Seen("allow", frozenset({"policy0", "policy1", "policy4"}), frozenset({"policy2", "policy3"}))


@given(plain | st.lists(st.none() | plain, max_size=3) | st.none())
def test_null_in_a_list_has_no_meaning(value: Any) -> None:
    if holds_null_in_a_list(value):
        with pytest.raises(ArgumentsError) as caught:
            ask("permit(principal, action, resource);", {"a": value})
        assert caught.value.code == "input.unrepresentable"
    else:
        assert ask("permit(principal, action, resource);", {"a": value}).decision == "allow"


# --- what is refused -------------------------------------------------------------------------------------------------


class Evil(Exception):  # noqa: N818 - not an error of anything
    """Raised by code that must not run."""


def _evil(*_: object, **__: object) -> Any:
    raise Evil


def hostile(base: type, *arguments: object) -> object:
    """An instance of a subclass that answers every question with code of its own."""
    asked = ("__eq__", "__iter__", "__len__", "__getitem__", "__contains__", "__str__", "__repr__", "__bool__")
    asked += ("__index__", "__int__", "__float__", "keys", "items", "values", "__class_getitem__", "__fspath__")
    body = dict.fromkeys(asked, _evil)
    return type(f"Evil{base.__name__}", (base,), body | {"__hash__": base.__hash__})(*arguments)


class Plain:
    """An object with a dict of attributes."""

    def __init__(self) -> None:
        self.path = "/srv/x"


class Shape(enum.IntEnum):
    """An enumeration of integers."""

    ROUND = 1


class Chameleon(dict):  # type: ignore[type-arg]
    """Shows another value each time."""

    def __getitem__(self, key: str) -> Iterator[int]:
        raise Evil

    __class__ = dict  # type: ignore[assignment]


def cycle() -> dict[str, Any]:
    ring: dict[str, Any] = {}
    ring["again"] = [ring]
    return ring


def bomb(make: Callable[[object], object], depth: int = 50_000) -> object:
    value: object = 1
    for _ in range(depth):
        value = make(value)
    return value


REFUSED: list[Callable[[], object]] = [
    lambda: hostile(str, "x"),
    lambda: hostile(dict, {"a": 1}),
    lambda: hostile(int, 3),
    lambda: hostile(float, 0.5),
    lambda: hostile(list, [1]),
    lambda: hostile(tuple, (1,)),
    lambda: {hostile(str, "k"): 1},
    lambda: Chameleon(a=1),
    lambda: Shape.ROUND,
    lambda: OrderedDict(a=1),
    lambda: UserDict(a=1),
    lambda: UserString("x"),
    lambda: ChainMap({"a": 1}),
    lambda: types.MappingProxyType({"a": 1}),
    lambda: types.SimpleNamespace(a=1),
    {"a": 1}.items,
    Plain,
    lambda: Plain,
    lambda: b"x",
    lambda: bytearray(b"x"),
    lambda: {"a"},
    lambda: 1 + 2j,
    lambda: decimal.Decimal("1.5"),
    lambda: NotImplemented,
    lambda: iter([1]),
    cycle,
    lambda: [cycle()],
    lambda: bomb(lambda value: [value]),
    lambda: bomb(lambda value: (value,)),
    lambda: bomb(lambda value: {"k": value}),
    lambda: "\ud800",
    lambda: "ok\udfff",
    lambda: {"\ud800": 1},
    lambda: {1: 1},
    lambda: {None: 1},
    lambda: {("a",): 1},
    lambda: {b"a": 1},
    lambda: {True: 1},
    lambda: "x" * 100_000,
    lambda: ["x"] * 100_000,
    lambda: [None],
]
ANYTHING = PolicySet.from_cedar("permit(principal, action, resource);")


@pytest.mark.parametrize("make", REFUSED)
def test_what_is_not_plain_data_is_refused(make: Callable[[], object]) -> None:
    """In any place, though no policy reads it: what a policy cannot see must not reach a tool."""
    for context in ({"a": make()}, {"b": 1, "a": [make()]}, {"a": {"b": (1, make())}}):
        with pytest.raises(ArgumentsError) as caught:
            ANYTHING.decide(ALICE, READ, FILE, context)
        assert caught.value.code in {"input.unrepresentable", "input.too_large"}
        assert caught.value.help
    assert ANYTHING.decide(ALICE, READ, FILE, {"a": 1}).allowed, "a refusal leaves nothing behind"


@pytest.mark.parametrize("make", [*REFUSED, lambda: 1, lambda: "x", list, lambda: (("a", 1),), lambda: 1.5])
def test_the_context_itself_is_a_mapping(make: Callable[[], object]) -> None:
    context = make()
    for call in (lambda: ANYTHING.decide(ALICE, READ, FILE, context), lambda: Context(context)):  # type: ignore[arg-type]
        try:
            call()
        except (ArgumentsError, TypeError):
            continue
        except Evil:
            pytest.fail("code of the value ran")
        # Only a larger size is fine for a context that is prepared while the caller waits.
        assert type(context) is dict, context


# --- the two attacks -------------------------------------------------------------------------------------------------

SECRETS = """
permit(principal, action, resource);
forbid(principal, action, resource) when { context.path like "*/.ssh/*" };
"""
GUARDED = """
permit(principal, action, resource) when { context has path && !(context.path like "*/.ssh/*") };
"""
KEY = "/users/alice/.ssh/id_ed25519"


def test_a_value_of_another_type_opens_a_forbid_only_in_the_open() -> None:
    """The first attack. The language skips a forbid that errs, and so does the policy set, but it says so.

    Whoever asks the set sees the error and can deny; a permit that reads the value is not opened at all.
    """
    assert ask(SECRETS, {"path": KEY}).decision == "deny"
    for disguise in ([KEY], {"path": KEY}, 1, True, 2**63, math.nan, [KEY, math.nan], None):
        context = {"path": disguise}
        answer = ask(SECRETS, context)
        assert answer == Seen("allow", frozenset({"policy0"}), frozenset({"policy1"})), disguise
        if not poisoned(disguise):
            assert answer == ask_reference(SECRETS, [], request(ALICE, READ, FILE, converted(context)))
        assert ask(GUARDED, context).decision == "deny", disguise
    assert ask(SECRETS, {}).errors == {"policy1"}


OWNERS = """
permit(principal, action, resource) when { context.owner == principal };
permit(principal, action, resource) when { context.owner in Team::"admins" };
permit(principal, action, resource) when { context.price == decimal("1.5") };
permit(principal, action, resource) when { context.price.lessThan(decimal("2.0")) };
permit(principal, action, resource) when { context.from.isInRange(ip("10.0.0.0/8")) };
"""
FORGED: list[dict[str, Any]] = [
    {"owner": {"__entity": {"type": "User", "id": "alice"}}},
    {"owner": {"__entity": {"type": "Team", "id": "admins"}}},
    {"price": {"__extn": {"fn": "decimal", "arg": "1.5"}}},
    {"price": {"__extn": {"fn": "decimal", "args": ["1.5"]}}},
    {"from": {"__extn": {"fn": "ip", "arg": "10.1.2.3"}}},
]


@pytest.mark.parametrize("context", FORGED)
def test_the_escapes_of_cedar_json_open_nothing(context: dict[str, Any]) -> None:
    """The second attack: it succeeds where arguments are read as Cedar's JSON, and as plain data it is a record."""
    assert ask_reference(OWNERS, [], request(ALICE, READ, FILE, context)).decision == "allow"
    trusted = PolicySet.from_cedar(OWNERS).decide(ALICE, READ, FILE, Context.from_cedar_json(json.dumps(context)))
    assert trusted.allowed
    for forged in (context, {key: (value, value) for key, value in context.items()}):
        assert ask(OWNERS, forged).decision == "deny"
        assert ask(OWNERS, forged).reasons == frozenset()


def test_the_escapes_are_ordinary_keys() -> None:
    context = {"__entity": {"type": "User", "id": "alice"}, "x": {"__extn": {"fn": "ip", "arg": "::1"}}, "__expr": "1"}
    policies = """
        permit(principal, action, resource) when { context["__entity"].id == "alice" };
        permit(principal, action, resource) when { context.x has "__extn" };
        permit(principal, action, resource) when { context.x == {"__extn": {fn: "ip", arg: "::1"}} };
        permit(principal, action, resource) when { context has "__expr" };
        permit(principal, action, resource) when { context.x == ip("::1") };
    """
    assert ask(policies, context).reasons == {f"policy{number}" for number in range(4)}
