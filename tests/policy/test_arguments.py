"""The snapshot of call arguments: what comes back is what went in, and what is not plain data is refused."""

import datetime as dt
import decimal
import enum
import gc
import sys
import threading
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper import ArgumentsError, TollkeeperError, _native

LONG_MIN, LONG_MAX = -(2**63), 2**63 - 1


def echo(arguments: object) -> Any:
    return _native._echo_arguments(arguments)


def expected(value: object) -> object:
    """The conversion, restated: tuples become lists, integers beyond 64 bits become an ellipsis."""
    if type(value) is int:
        return value if LONG_MIN <= value <= LONG_MAX else ...
    if type(value) is dict:
        return {key: expected(element) for key, element in value.items()}
    if type(value) in (list, tuple):
        return [expected(element) for element in value]  # type: ignore[attr-defined]
    return value


def same(left: object, right: object) -> bool:
    """Equal in value, type and order; two NaN are equal."""
    if type(left) is not type(right):
        return False
    if type(left) is dict:
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if type(left) is list:
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or (left != left and right != right)  # noqa: PLR0124 - that is how NaN shows


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = st.booleans() | st.integers() | st.integers(2**63 - 2, 2**63 + 1) | st.floats() | text
# None is an absent attribute, so it stands in dicts only.
plain = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(text, inner | st.none(), max_size=5)
    ),
    max_leaves=20,
)


@given(st.dictionaries(text, plain | st.none(), max_size=6))
def test_echo_equals_the_restated_conversion(arguments: dict[str, object]) -> None:
    assert same(echo(arguments), expected(arguments))


class Text(str):
    """A text that answers differently each time it is asked."""

    __slots__ = ()

    def __str__(self) -> str:
        raise AssertionError

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        raise AssertionError


class Int(int):
    """An integer with code of its own."""

    def __index__(self) -> int:
        raise AssertionError


class Float(float):
    """A float with code of its own."""

    def __float__(self) -> float:
        raise AssertionError


class Dict(dict):  # type: ignore[type-arg]
    """A dict with code of its own."""

    def __iter__(self) -> Any:
        raise AssertionError

    def items(self) -> Any:
        raise AssertionError


class List(list):  # type: ignore[type-arg]
    """A list with code of its own."""

    def __iter__(self) -> Any:
        raise AssertionError


class Tuple(tuple):  # type: ignore[type-arg]
    """A tuple with code of its own."""

    __slots__ = ()

    def __iter__(self) -> Any:
        raise AssertionError


class Liar:
    """Claims to be a dict."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return dict

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


class Colour(str, enum.Enum):  # noqa: UP042 - the older form is a subclass too
    """An enumeration of texts."""

    RED = "red"


HOSTILE: list[Callable[[], object]] = [
    lambda: Text("x"),
    lambda: Int(3),
    lambda: Float(0.5),
    lambda: Dict(a=1),
    lambda: List([1]),
    lambda: Tuple((1,)),
    lambda: Colour.RED,
    lambda: OrderedDict(a=1),
    lambda: defaultdict(int),
    lambda: UserDict(a=1),
    Liar,
    object,
    lambda: b"x",
    lambda: bytearray(b"x"),
    lambda: memoryview(b"x"),
    lambda: 1j,
    lambda: {1},
    frozenset,
    lambda: decimal.Decimal(1),
    lambda: dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    lambda: range(3),
    lambda: (element for element in [1]),
    lambda: ...,
    lambda: int,
    lambda: "\ud800",
    lambda: {1: 2},
    lambda: {b"k": 1},
    lambda: {Text("k"): 1},
    lambda: {"\udfff": 1},
    lambda: {None: 1},
]


@pytest.mark.parametrize("make", HOSTILE)
def test_anything_else_is_unrepresentable(make: Callable[[], object]) -> None:
    for arguments in (make(), {"to": make()}, {"to": [1, make()]}, {"to": ({"k": make()},)}):
        with pytest.raises(ArgumentsError) as caught:
            echo(arguments)
        assert caught.value.code == "input.unrepresentable"
        assert caught.value.help


@given(
    st.recursive(
        scalars | st.none() | st.binary(max_size=3) | st.sampled_from(HOSTILE).flatmap(st.builds) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers() | st.binary(), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_no_value_does_worse_than_a_refusal(value: object) -> None:
    try:
        echo(value)
    except TollkeeperError as error:
        assert type(error) is ArgumentsError  # noqa: PT017 - an error is one of the two good ends
        assert error.code in {"input.unrepresentable", "input.too_large"}  # noqa: PT017


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"to": ["a", "b", "c", b"secret"]}, "arguments.to[3]: "),
        ({"to": {"cc": b"secret"}}, "arguments.to.cc: "),
        ({"two words": [{"x": 1j}]}, 'arguments["two words"][0].x: '),
        ({'q"\n': {1, 2}}, r'arguments["q\"\n"]: '),
        ({"k" * 100: object()}, 'arguments["' + "k" * 40 + '"]: '),
        (b"secret", "arguments: "),
        ({"to": {7: "secret"}}, "arguments.to: "),
        ({"to": "secret\ud800"}, "arguments.to: "),
        ([1, None], "arguments[1]: "),
        (None, "arguments: "),
    ],
)
def test_a_refusal_names_the_place_and_not_the_value(arguments: object, path: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        echo(arguments)
    assert str(caught.value).startswith(path)
    assert "secret" not in str(caught.value)


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def test_depth_has_a_bound() -> None:
    assert echo(nested(32)) == nested(32)
    for too_deep in (nested(33), nested(100_000)):
        with pytest.raises(ArgumentsError, match="deeper than 32") as caught:
            echo(too_deep)
        assert caught.value.code == "input.too_large"


def test_a_cycle_ends_at_the_bound_of_depth() -> None:
    ring: list[object] = []
    ring.append({"again": ring})
    with pytest.raises(ArgumentsError, match="deeper than 32"):
        echo(ring)


def test_size_has_a_bound() -> None:
    assert echo({"k": "x" * 60_000}) == {"k": "x" * 60_000}
    for too_large in ({"k": "x" * 70_000}, {"k" * 70_000: 1}, [1] * 10_000, {str(i): i for i in range(10_000)}):
        with pytest.raises(ArgumentsError, match="65536 bytes") as caught:
            echo(too_large)
        assert caught.value.code == "input.too_large"
    assert echo({"k": 1}) == {"k": 1}, "a refusal leaves nothing behind"


def test_integers_keep_every_bit() -> None:
    values = [LONG_MIN - 1, LONG_MIN, -1, 0, 1, LONG_MAX, LONG_MAX + 1, 10**5000]
    assert echo(values) == [..., LONG_MIN, -1, 0, 1, LONG_MAX, ..., ...]
    assert [type(value) for value in echo([True, 1, 1.0])] == [bool, int, float]


def test_escapes_of_cedar_json_are_ordinary_keys() -> None:
    arguments = {"__entity": {"type": "User", "id": "root"}, "__extn": {"fn": "ip", "arg": "::1"}}
    assert echo(arguments) == arguments


class Address(msgspec.Struct, rename="camel"):
    """A struct whose encoded names are not its attributes."""

    mail_box: str
    tags: list[str] = []
    note: str | msgspec.UnsetType | None = msgspec.UNSET


class Tagged(msgspec.Struct, tag="tagged", tag_field="kind", frozen=True):
    """A struct with a tag."""

    value: int


class Derived(Address):
    """A struct that inherits fields."""

    priority: int = 3


@pytest.mark.parametrize(
    "value",
    [Address("a@example.com"), Address("a", ["x"], None), Tagged(1), Derived("a", priority=2), Address("b", note="n")],
)
def test_a_struct_is_what_msgspec_encodes(value: object) -> None:
    assert same(echo({"x": [value]}), {"x": [msgspec.to_builtins(value)]})


def test_a_struct_cannot_answer_with_code_of_its_own() -> None:
    class Sly(msgspec.Struct):
        name: str

        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

    assert echo(Sly("plain")) == {"name": "plain"}
    Sly.name = property(lambda _: "changed")  # type: ignore[assignment, method-assign]
    with pytest.raises(ArgumentsError, match="name: the field is not set or not a plain field"):
        echo(Sly("plain"))


def test_a_field_that_was_never_set_is_refused() -> None:
    value = Address("a")
    del value.mail_box
    with pytest.raises(ArgumentsError, match="mailBox: the field is not set"):
        echo(value)


def test_a_metaclass_of_its_own_is_not_plain() -> None:
    try:

        class Meta(type(msgspec.Struct)):  # type: ignore[misc]
            pass

    except TypeError:
        pytest.skip("this msgspec does not let its metaclass be subclassed")

    class Odd(msgspec.Struct, metaclass=Meta):
        name: str

    with pytest.raises(ArgumentsError, match="type `Odd` is not plain"):
        echo(Odd("x"))


def test_finalizers_cannot_disturb_the_walk() -> None:
    """The collector runs on nearly every allocation, and what it collects changes the containers being read."""

    class Finalizer:
        def __init__(self, target: dict[str, object]) -> None:
            self.me = self
            self.target = target

        def __del__(self) -> None:
            self.target[str(len(self.target))] = 1

    threshold = gc.get_threshold()
    try:
        for _ in range(50):
            target: dict[str, object] = {f"s{i}": Address(str(i)) for i in range(20)} | {"big": 2**80}
            gc.set_threshold(1_000_000)
            Finalizer(target)
            gc.set_threshold(1)
            try:
                echo(target)
            except ArgumentsError as error:
                assert "changed while it was read" in str(error)  # noqa: PT017 - both ends are fine
            gc.set_threshold(*threshold)
    finally:
        gc.set_threshold(*threshold)


def test_the_snapshot_keeps_no_reference() -> None:
    value = str(object())
    arguments = {"k": [value]}
    before = sys.getrefcount(value)
    for _ in range(100):
        echo(arguments)
    assert sys.getrefcount(value) == before


def test_each_thread_has_a_buffer_of_its_own() -> None:
    failures: list[object] = []

    def work(number: int) -> None:
        arguments = {"n": number, "text": str(number) * 50}
        failures.extend(1 for _ in range(2_000) if echo(arguments) != arguments)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
