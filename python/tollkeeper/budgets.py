"""Reads ``budgets.toml``: which budgets there are, what they allow, and what models cost.

Every key is known or refused: a typo is an error with file, line and key, never a silent default. Amounts are whole
numbers: a float or a truth value is refused, since money counted in floats is wrong sooner or later. Nothing here opens
a ledger or decides whether a request fits; the result is plain data for the native ledger.
"""

import os
import re
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, cast

import msgspec

from tollkeeper.document import Place, decode, known_here, read_text, section

__all__ = ["FILE_NAME", "LIMIT_MAX", "UNITS", "WINDOWS", "Spec", "path_fault", "spec"]

FILE_NAME: Final = "budgets.toml"

UNITS: Final = ("tokens", "nano_usd", "requests", "in_flight", "kv_blocks")
WINDOWS: Final = ("total", "1m", "1h", "1d", "month")
# Levels and not sums: they return in full when a hold ends, so that no window could end for them.
LEVELS: Final = ("in_flight", "kv_blocks")

# A hundred thousand budgets of 40 bytes fit.
FILE_BYTES_MAX: Final = 4 << 20
# The largest limit. Limit, overdraft and what is used beyond them add up within 64 bits.
LIMIT_MAX: Final = 1 << 60
AMOUNT_MAX: Final = 1 << 53
# The highest price: a thousand US dollars a token.
PRICE_MAX: Final = 10**18
MODELS_MAX: Final = 1_024
# The bounds of the core, which knows no file to name.
HOLDS_MAX: Final = 131_072
NODES_MAX: Final = 65_536
SEGMENTS_MAX: Final = 8
PATH_BYTES_MAX: Final = 255
NAME_BYTES_MAX: Final = 255
# A year; a hold that lives longer is a leak.
HOLD_TTL_SECONDS_MAX: Final = 366 * 86_400

_SEGMENT: Final = re.compile(r"[A-Za-z0-9._:@-]{1,64}")
_DOLLARS: Final = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,9}))?")
_NANO_DIGITS: Final = 9
_NAME: Final = re.compile(r"[^\x00-\x20\x7f-\xa0\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]+")

SECTIONS: Final = ("ledger", "budget", "price")


class Spec(TypedDict):
    """What the native ledger is made from."""

    budgets: list[tuple[str, list[tuple[str, str, int, int]], int | None]]
    """Path; limits as unit, window, limit, overdraft; the most children, of a template."""
    prices: list[tuple[str, list[tuple[str, int]]]]
    """Model; components with nano-USD per million tokens."""
    holds: int
    nodes: int | None
    volatile: bool
    admission: str
    increment_tokens: int
    hold_ttl_ms: int | None


class LedgerSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[ledger]`` section."""

    holds: int = 16_384
    """Live holds at once."""
    nodes: int | None = None
    """Budgets at once, children made on demand included; without it as many as the file can need, up to a bound."""
    volatile: bool = False
    """Whether losing the state with the machine's memory is accepted; it must be where the state is on tmpfs."""
    admission: Literal["safe", "incremental"] = "safe"
    """``safe`` holds the worst case at once, ``incremental`` a part that is topped up."""
    increment_tokens: int = 256
    """The part, where admission is incremental."""
    hold_ttl_s: int | None = None
    """Seconds after which a hold that nobody ended is ended."""


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of ``limits``."""

    unit: Literal["tokens", "nano_usd", "requests", "in_flight", "kv_blocks"]
    """What is counted; 1,000,000,000 nano_usd are a US dollar."""
    window: Literal["total", "1m", "1h", "1d", "month"]
    """Over which time, in UTC; ``in_flight`` and ``kv_blocks`` have ``total`` only."""
    limit: int
    """The most that may be used in one window, at most 2**60."""
    overdraft: int = 0
    """How far beyond the limit requests are still admitted."""


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[budget."PATH"]`` section."""

    limits: list[dict[str, Any]]
    """What may be used, one entry for each unit and window; see `Limit`."""
    children_max: int | None = None
    """The most children that a template makes under one parent."""


def spec(source: str | os.PathLike[str]) -> Spec:
    r"""Reads budgets.

    Args:
        source: The file as ``pathlib.Path``, or the text as ``str``.

    Raises:
        ConfigError: With file, line and key.
        OSError: The file cannot be read.

    Example:
        >>> from tollkeeper import budgets
        >>> text = '[budget."acme/*"]\nlimits = [{ unit = "tokens", window = "1d", limit = 150_000 }]'
        >>> budgets.spec(text)["budgets"]
        [('acme/*', [('tokens', '1d', 150000, 0)], None)]
        >>> budgets.spec(text.replace("1d", "1day"))
        Traceback (most recent call last):
        tollkeeper.errors.ConfigError: budgets.toml:2: budget."acme/*".limits.0.window: invalid enum value '1day'
    """
    if isinstance(source, str):
        return _spec(source, shown=FILE_NAME)
    file = Path(source)
    return _spec(read_text(file, FILE_BYTES_MAX), shown=str(file))


def _spec(text: str, shown: str) -> Spec:
    document = decode(text, shown)
    place = Place(text, shown)
    for key in document:
        if key not in SECTIONS:
            raise place.error((key,), "unknown section", known_here(key, SECTIONS))
    ledger = _ledger(document.get("ledger", {}), place)
    budgets = _tables(document.get("budget", {}), "budget", 'write [budget."acme/research"]', place)
    prices = _tables(document.get("price", {}), "price", 'write [price."gpt-5"], prompt = "1.25"', place)
    if len(prices) > MODELS_MAX:
        raise place.error(("price",), f"{len(prices)} models have prices, the most is {MODELS_MAX}", None)
    return Spec(
        budgets=[_budget(path, raw, place) for path, raw in budgets.items()],
        prices=[_price(model, raw, place) for model, raw in prices.items()],
        holds=ledger.holds,
        nodes=ledger.nodes,
        volatile=ledger.volatile,
        admission=ledger.admission,
        increment_tokens=ledger.increment_tokens,
        hold_ttl_ms=None if ledger.hold_ttl_s is None else ledger.hold_ttl_s * 1000,
    )


def _tables(raw: object, name: str, hint: str, place: Place) -> dict[str, object]:
    """The sections of one kind, by name."""
    if not isinstance(raw, dict):
        raise place.error((name,), "must be sections", hint)
    return cast("dict[str, object]", raw)


def _ledger(raw: object, place: Place) -> LedgerSection:
    ledger = section(raw, LedgerSection, ("ledger",), place)
    bounds = {
        "holds": HOLDS_MAX,
        "nodes": NODES_MAX,
        "increment_tokens": AMOUNT_MAX,
        "hold_ttl_s": HOLD_TTL_SECONDS_MAX,
    }
    for name, most in bounds.items():
        _in_range(getattr(ledger, name), 1, most, ("ledger", name), place)
    return ledger


def _budget(path: str, raw: object, place: Place) -> tuple[str, list[tuple[str, str, int, int]], int | None]:
    at = ("budget", path)
    fault = path_fault(path)
    if fault is not None:
        raise place.error(at, *fault)
    _refuse_nested(raw, path, place)
    budget = section(raw, Budget, at, place)
    if budget.children_max is not None and not path.endswith("/*"):
        raise place.error(
            (*at, "children_max"), "only a template makes children", f'write it under [budget."{path}/*"]'
        )
    _in_range(budget.children_max, 1, NODES_MAX, (*at, "children_max"), place)
    limits: dict[tuple[str, str], Limit] = {}
    for number, entry in enumerate(budget.limits):
        there = (*at, "limits", str(number))
        limit = _limit(entry, there, place)
        if (limit.unit, limit.window) in limits:
            raise place.error(there, f"a second limit for `{limit.unit}` in window `{limit.window}`", "leave one")
        limits[limit.unit, limit.window] = limit
    return path, [(one.unit, one.window, one.limit, one.overdraft) for one in limits.values()], budget.children_max


def _refuse_nested(raw: object, path: str, place: Place) -> None:
    """[budget.acme.research] nests in TOML, where a path is one key."""
    for key, value in cast("dict[str, object]", raw).items() if isinstance(raw, dict) else ():
        if isinstance(value, dict) and key not in Budget.__struct_fields__:
            hint = f'a path is one quoted key: [budget."{path}/{key}"]'
            raise place.error(("budget", path, key), "unknown key", hint)


def _limit(raw: object, at: tuple[str, ...], place: Place) -> Limit:
    limit = section(raw, Limit, at, place)
    if limit.unit in LEVELS and limit.window != "total":
        what = f"`{limit.unit}` is a level, not a sum: it has no window `{limit.window}`"
        raise place.error((*at, "window"), what, 'write window = "total"')
    _in_range(limit.limit, 0, LIMIT_MAX, (*at, "limit"), place)
    _in_range(limit.overdraft, 0, LIMIT_MAX, (*at, "overdraft"), place)
    return limit


def path_fault(path: str) -> tuple[str, str] | None:
    """What is wrong with the path of a budget or a template, and what to do; ``None`` if nothing is."""
    segments = path.split("/")
    named = list(segments)
    while named and named[-1] == "*":
        named.pop()
    if "*" in named:
        return "`*` stands for a whole segment at the end only", "write acme/research/*, or acme/*/*"
    if not named:
        return "a template needs a parent", "write acme/*"
    if len(path.encode(errors="replace")) > PATH_BYTES_MAX:
        return f"the path has more than {PATH_BYTES_MAX} bytes", "shorten its segments"
    if len(segments) > SEGMENTS_MAX:
        return f"the path has {len(segments)} segments, the most is {SEGMENTS_MAX}", "make the tree flatter"
    for segment in named:
        if not _SEGMENT.fullmatch(segment):
            what = f"bad segment `{segment}`" if segment else "an empty segment"
            return what, "segments have 1 to 64 characters of A-Z a-z 0-9 . _ : @ - and are separated by `/`"
    return None


def _price(model: str, raw: object, place: Place) -> tuple[str, list[tuple[str, int]]]:
    at = ("price", model)
    _check_name(model, "model", at, place)
    if not isinstance(raw, dict):
        raise place.error(at, "must be a section with one price for each component", 'prompt = "1.25"')
    components = cast("dict[str, object]", raw)
    if not components:
        raise place.error(at, "has no price, so every use of the model would be refused", 'prompt = "1.25"')
    for component in components:
        _check_name(component, "component", (*at, component), place)
    return model, [(name, _nano_usd(value, (*at, name), place)) for name, value in components.items()]


def _check_name(name: str, kind: str, at: tuple[str, ...], place: Place) -> None:
    if not _NAME.fullmatch(name) or len(name.encode(errors="replace")) > NAME_BYTES_MAX:
        what = f"the name of a {kind} is 1 to {NAME_BYTES_MAX} bytes of characters that can be seen"
        raise place.error(at, what, "the name that the model's provider uses")


def _nano_usd(value: object, at: tuple[str, ...], place: Place) -> int:
    """A price in nano-USD per million tokens. Text is converted digit by digit, so that nothing is rounded."""
    if isinstance(value, str):
        found = _DOLLARS.fullmatch(value)
        if found is None:
            what = f'"{value}" is not a price'
            hint = 'US dollars per million tokens, at most nine digits after the point, such as "1.25"'
            raise place.error(at, what, hint)
        value = int(found[1] + (found[2] or "").ljust(_NANO_DIGITS, "0"))
    if isinstance(value, dict):
        raise place.error(
            at, "expected a price, got a section", f'a model is one quoted key: [price."{".".join(at[1:])}"]'
        )
    if not isinstance(value, int) or isinstance(value, bool):
        what = f"expected `int` or `str`, got `{type(value).__name__}`"
        raise place.error(at, what, 'nano-USD per million tokens, or US dollars as text: "1.25"')
    _in_range(value, 0, PRICE_MAX, at, place)
    return value


def _in_range(value: int | None, least: int, most: int, at: tuple[str, ...], place: Place) -> None:
    if value is not None and not least <= value <= most:
        raise place.error(at, f"{value} is not between {least} and {most}", None)
