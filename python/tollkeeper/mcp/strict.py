"""Reads the JSON of a message so that no other reader can understand it differently, and writes it again.

What one reader takes and another drops is how a check is dodged: of two equal keys one parser keeps the first, another
the last, a third compares them without case. So whatever is ambiguous is refused, with the byte where it stands, before
anybody decides anything. Sizes and nesting are bounded by linear scans before the parser runs. This module knows JSON
and nothing of MCP, and repairs nothing.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgspec

__all__ = ["DEPTH_MAX", "INVALID", "PARSE", "Malformed", "folded", "read", "refuse_folded", "write"]

# JSON-RPC's numbers for what is no JSON, and for JSON that is no request.
PARSE: Final = -32700
INVALID: Final = -32600

# Arguments may nest 32 deep where they are decided; a message wraps them, and results and schemas go deeper.
DEPTH_MAX: Final = 64
# Beyond this a refusal names no place: finding it reads the text a second time, in Python.
LOCATED_BYTES_MAX: Final = 256 << 10
# Keys come again and again; each is folded once.
FOLDS_MAX: Final = 4096
FOLDED_KEY_CHARS_MAX: Final = 64

_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKETS: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
# The first half of what may be a pair of surrogates, or half of one.
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}:,]|[^\s\[\]{}:,"]+', re.DOTALL)
_LONE: Final = re.compile("[\ud800-\udfff]")

# Keys of objects that were looked at and are well: messages have the same ones again and again.
_CLEAN_MAX: Final = 1024
_CLEAN_KEYS_MAX: Final = 16

_folds: dict[str, str] = {}
_clean: set[tuple[str, ...]] = set()


class Malformed(ValueError):  # noqa: N818 - as JSON-RPC calls it
    """A text that is not read.

    Args:
        message: What is wrong; repeats nothing of the text.
        code: `PARSE` or `INVALID`.
        at: Byte where it stands, counted from 0; `None` where that is not known.
    """

    def __init__(self, message: str, code: int = PARSE, at: int | None = None) -> None:
        super().__init__(message if at is None else f"{message}, at byte {at}")
        self.what = message
        self.code = code
        self.at = at


def folded(key: str) -> str:
    """The form in which two keys are equal but for case; the same by which the gate compares names of tools.

    Example:
        >>> from tollkeeper.mcp.strict import folded
        >>> folded("METHOD"), folded("STRASSE") == folded("straße")
        ('method', True)
    """
    known = _folds.get(key)
    if known is None:
        if key.isascii():
            known = key.lower()
        else:
            # Letter by letter: what stands around one changes nothing.
            known = unicodedata.normalize("NFC", "".join(up.lower() for char in key for up in char.upper()))
        if len(key) <= FOLDED_KEY_CHARS_MAX and len(_folds) < FOLDS_MAX:
            _folds[key] = known
    return known


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Malformed("two equal keys in one object", INVALID)
    return made


def _folded_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Malformed("two equal keys in one object", INVALID)
    if len(made) > 1:
        refuse_folded(made)
    return made


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise Malformed("a number too large for a double", PARSE)
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Malformed("an integer of too many digits", PARSE) from None


def _constant(text: str) -> NoReturn:
    raise Malformed(f"{text} is not JSON", PARSE)


def _decoder(hook: Any) -> json.JSONDecoder:  # noqa: ANN401 - a function of pairs
    return json.JSONDecoder(
        object_pairs_hook=hook, parse_float=_float, parse_int=_integer, parse_constant=_constant, strict=True
    )


_EXACT: Final = _decoder(_object)
_FOLDING: Final = _decoder(_folded_object)
# The half of `decode` that reads a value; the type stubs have it for neither.
_Scan = Callable[[str, int], tuple[Any, int]]
_SCAN_EXACT: Final[_Scan] = getattr(_EXACT, "scan_once")  # noqa: B009 - see above
_SCAN_FOLDING: Final[_Scan] = getattr(_FOLDING, "scan_once")  # noqa: B009 - see above
_encode: Final = msgspec.json.Encoder().encode
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False)


def refuse_folded(value: dict[str, Any]) -> None:
    """Refuses an object with keys that are equal but for case.

    Raises:
        Malformed: It has such keys.
    """
    keys = tuple(value)
    if keys in _clean:
        return
    if len({folded(key) for key in keys}) != len(keys):
        raise Malformed("two keys in one object that differ by case alone", INVALID)
    if (
        len(_clean) < _CLEAN_MAX
        and len(keys) <= _CLEAN_KEYS_MAX
        and max(map(len, keys), default=0) <= FOLDED_KEY_CHARS_MAX
    ):
        _clean.add(keys)


def read(raw: bytes, *, bytes_max: int, depth_max: int = DEPTH_MAX, fold: bool = True) -> Any:  # noqa: ANN401 - JSON
    r"""Reads one JSON text.

    Integers keep every digit. A float is the nearest double, which is then what is decided and what is written.

    Args:
        raw: UTF-8, without a byte order mark.
        bytes_max: The most bytes.
        depth_max: The deepest nesting.
        fold: Whether keys that are equal but for case are refused in every object.

    Raises:
        Malformed: It is not JSON, or not unambiguous, or too much of it.

    Example:
        >>> from tollkeeper.mcp import strict
        >>> strict.read(b'{"a": [1, 2.50]}', bytes_max=100)
        {'a': [1, 2.5]}
        >>> strict.read(b'{"a": 1, "A": 2}', bytes_max=100)
        Traceback (most recent call last):
        tollkeeper.mcp.strict.Malformed: two keys in one object that differ by case alone, at byte 9
    """
    if len(raw) > bytes_max:
        raise Malformed(f"{len(raw)} bytes, the limit is {bytes_max}", INVALID)
    if raw.count(b"[") + raw.count(b"{") > depth_max:
        _refuse_deep(raw, depth_max)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8", PARSE, error.start) from None
    decoder, scan = (_FOLDING, _SCAN_FOLDING) if fold else (_EXACT, _SCAN_EXACT)
    try:
        # As `decode` does, without its looking for white space, of which a message has none.
        value, end = scan(text, 0) if text[:1] == "{" else (None, -1)
        if end != len(text):
            value = decoder.decode(text)
    except Malformed as error:
        raise Malformed(error.what, error.code, _place(raw, fold=fold)) from None
    except json.JSONDecodeError as error:
        what = error.msg[:1].lower() + error.msg[1:]
        raise Malformed(f"not JSON: {what}", PARSE, len(text[: error.pos].encode(errors="replace"))) from None
    except StopIteration as error:
        # What the scanner raises where a value is missing.
        raise Malformed("not JSON: expecting value", PARSE, len(text[: error.value].encode())) from None
    except RecursionError:
        raise Malformed("nested too deeply", INVALID) from None
    if _SURROGATE.search(raw) is not None:
        _refuse_lone(value, raw)
    return value


def write(value: Any) -> bytes:  # noqa: ANN401 - JSON
    """The text of a value that `read` has returned, as short as it gets, on one line.

    Example:
        >>> from tollkeeper.mcp import strict
        >>> strict.write({"a": [1, None, 2.50]})
        b'{"a":[1,null,2.5]}'
    """
    try:
        return _encode(value)
    except (OverflowError, ValueError):
        # An integer of more than 64 bits.
        return _ENCODER.encode(value).encode()


def _refuse_deep(raw: bytes, depth_max: int) -> None:
    """Takes the innermost brackets away, level by level: each pass is one, and linear."""
    left = _STRING.sub(b"", raw).translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(depth_max):
        shorter = left.replace(b"[]", b"")
        # What is not balanced is left to the parser, which says where.
        if len(shorter) == len(left):
            break
        left = shorter
    # Unbalanced and still deep: the parser must not see it either.
    if left.count(b"[") > depth_max or b"[]" in left:
        raise Malformed(f"nested deeper than {depth_max}", INVALID)


def _refuse_lone(value: Any, raw: bytes) -> None:  # noqa: ANN401 - JSON
    try:
        _ENCODER.encode(value).encode()
    except UnicodeEncodeError:
        raise Malformed("half of a surrogate pair", PARSE, _place(raw, fold=False)) from None


def _place(raw: bytes, *, fold: bool) -> int | None:
    """Where the first thing stands that is refused: the second of two keys, or a value."""
    if len(raw) > LOCATED_BYTES_MAX:
        return None
    # One set of keys for each open object, None for each open list.
    open_: list[set[str] | None] = []
    for token in _TOKEN.finditer(raw):
        word = token[0]
        if word == b"{":
            open_.append(set())
        elif word == b"[":
            open_.append(None)
        elif word in {b"}", b"]"}:
            if open_:
                open_.pop()
        elif word[:1] == b'"':
            keys = open_[-1] if open_ else None
            if _text_refused(word, keys if _is_key(raw, token.end()) else None, fold=fold):
                return token.start()
        elif word not in {b",", b":"} and _word_refused(word):
            return token.start()
    return None


def _is_key(raw: bytes, end: int) -> bool:
    return raw[end : end + 64].lstrip(b" \t\r\n")[:1] == b":"


def _text_refused(word: bytes, keys: set[str] | None, *, fold: bool) -> bool:
    try:
        text = json.loads(word)
    except ValueError:
        return True
    if _LONE.search(text) is not None:
        return True
    if keys is None:
        return False
    key = folded(text) if fold else text
    seen = key in keys
    keys.add(key)
    return seen


def _word_refused(word: bytes) -> bool:
    try:
        _EXACT.decode(word.decode())
    except ValueError:
        return True
    return False
