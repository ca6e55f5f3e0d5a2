"""The strict reader: nothing is read that another reader could read differently, and nothing is changed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.mcp import strict

BYTES_MAX = 1 << 20


def read(raw: bytes, **options: Any) -> Any:
    return strict.read(raw, bytes_max=BYTES_MAX, **options)


@pytest.mark.parametrize(
    ("raw", "code", "at", "what"),
    [
        (b'{"a":1,"a":2}', strict.INVALID, 7, "two equal keys"),
        (b'{"x":[{"a":1,"\\u0061":2}]}', strict.INVALID, 13, "two equal keys"),
        (b'{"method":1,"Method":2}', strict.INVALID, 12, "case"),
        ('{"k":1,"\u212a":2}'.encode(), strict.INVALID, 7, "case"),
        ('{"stra\u00dfe":1,"STRASSE":2}'.encode(), strict.INVALID, 13, "case"),
        (b'{"a":["\\ud800"]}', strict.PARSE, 6, "surrogate"),
        (b'{"\\udc00x":1}', strict.PARSE, 1, "surrogate"),
        (b'{"a":NaN}', strict.PARSE, 5, "NaN"),
        (b'{"a":-Infinity}', strict.PARSE, 5, "Infinity"),
        (b'{"a":1e999}', strict.PARSE, 5, "double"),
        (b'{"a":%s}' % (b"9" * 5000), strict.PARSE, 5, "digits"),
        (b"\xef\xbb\xbf{}", strict.PARSE, 0, "JSON"),
        (b"{} {}", strict.PARSE, 3, "JSON"),
        (b"{}\x00", strict.PARSE, 2, "JSON"),
        (b'{"a":"\x00"}', strict.PARSE, 6, "JSON"),
        (b'{"a":"\n"}', strict.PARSE, 6, "JSON"),
        (b'{"a":"\xff"}', strict.PARSE, 6, "UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', strict.PARSE, 6, "UTF-8"),
        (b'{"a":1,}', strict.PARSE, 7, "JSON"),
        (b"{'a':1}", strict.PARSE, 1, "JSON"),
        (b'{"a":01}', strict.PARSE, 6, "JSON"),
        (b'{"a":', strict.PARSE, 5, "JSON"),
        (b"", strict.PARSE, 0, "JSON"),
        (b"[" * 65 + b"]" * 65, strict.INVALID, None, "nested"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, strict.INVALID, None, "nested"),
        (b"[" * 500_000, strict.INVALID, None, "nested"),
        (b'{"[":' * 100_000, strict.INVALID, None, "nested"),
        (b" " * (BYTES_MAX + 1), strict.INVALID, None, "limit"),
    ],
)
def test_what_is_ambiguous_is_refused_with_its_place(raw: bytes, code: int, at: int | None, what: str) -> None:
    with pytest.raises(strict.Malformed, match=what) as refused:
        read(raw)
    assert (refused.value.code, refused.value.at) == (code, at)


def test_what_is_plain_is_read() -> None:
    assert read(b'{"a":[1,2.5,true,null,"\\ud83d\\ude00"],"b":{"a":1}}') == {
        "a": [1, 2.5, True, None, "\U0001f600"],
        "b": {"a": 1},
    }
    assert read(b" [1] \r\n") == [1]
    assert read(b"[" * 64 + b"]" * 64) is not None
    assert read(b'["' + b"[" * 1000 + b'"]') == ["[" * 1000]


def test_integers_keep_every_digit() -> None:
    digits = b"1234567890" * 10
    assert strict.write(read(b'{"n":%s,"m":-%s}' % (digits, digits))) == b'{"n":%s,"m":-%s}' % (digits, digits)


def test_data_may_have_keys_that_differ_by_case_where_that_is_said() -> None:
    assert read(b'{"v":1,"V":2}', fold=False) == {"v": 1, "V": 2}
    with pytest.raises(strict.Malformed):
        strict.refuse_folded({"v": 1, "V": 2})


keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=20
)


@given(values, st.booleans())
def test_what_is_written_is_read_as_it_was(value: Any, ascii_only: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    try:
        found = read(raw, fold=False)
    except strict.Malformed as error:
        pytest.fail(f"{raw!r}: {error}")
    again = strict.write(found)
    assert b"\n" not in again
    assert b"\r" not in again
    assert same(read(again, fold=False), value)
    assert same(json.loads(again), value)


def same(left: Any, right: Any) -> bool:
    """Equal in value and type, zeros by their sign."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


@given(st.binary(max_size=60) | st.text(st.sampled_from('{}[]",:0123456789.eE+-truefalsn\\uD8c \r\n'), max_size=60))
def test_hostile_bytes_are_read_as_json_reads_them_or_refused(raw: bytes | str) -> None:
    data = raw if isinstance(raw, bytes) else raw.encode()
    try:
        value = read(data)
    except strict.Malformed as refused:
        error = refused
    else:
        assert same(value, json.loads(data))
        return
    assert error.code in {strict.PARSE, strict.INVALID}
    assert error.at is None or 0 <= error.at <= len(data)


@given(st.lists(keys, min_size=2, max_size=5))
def test_keys_are_refused_if_and_only_if_two_fold_alike(names: list[str]) -> None:
    raw = ("{" + ",".join(f"{json.dumps(name)}:1" for name in names) + "}").encode()
    alike = len({strict.folded(name) for name in names}) != len(names)
    if alike:
        with pytest.raises(strict.Malformed):
            read(raw)
    else:
        assert list(read(raw)) == names
