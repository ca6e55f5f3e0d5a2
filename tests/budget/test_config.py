"""``budgets.toml``: what is read, and the message for everything that is not."""

import contextlib
import doctest
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper import budgets
from tollkeeper.errors import ConfigError

FULL = """\
[ledger]
holds = 100
nodes = 50
volatile = true
admission = "incremental"
increment_tokens = 128
hold_ttl_s = 3600

[budget."acme"]
limits = [{ unit = "nano_usd", window = "month", limit = 500_000_000_000, overdraft = 7 }]
[budget."acme/research/*"]
children_max = 100
limits = [
  { unit = "tokens", window = "1d", limit = 150000 },
  { unit = "in_flight", window = "total", limit = 0 },
]
[budget."acme/*/*"]
limits = []

[price."gpt-5"]
prompt = 1_250_000_000
cached = "0.125"
completion = "10"
"""


def test_everything_is_read() -> None:
    assert budgets.spec(FULL) == {
        "budgets": [
            ("acme", [("nano_usd", "month", 500_000_000_000, 7)], None),
            ("acme/research/*", [("tokens", "1d", 150_000, 0), ("in_flight", "total", 0, 0)], 100),
            ("acme/*/*", [], None),
        ],
        "prices": [("gpt-5", [("prompt", 1_250_000_000), ("cached", 125_000_000), ("completion", 10_000_000_000)])],
        "holds": 100,
        "nodes": 50,
        "volatile": True,
        "admission": "incremental",
        "increment_tokens": 128,
        "hold_ttl_ms": 3_600_000,
    }


def test_a_file_is_read_as_its_text_is(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_text(FULL)
    assert budgets.spec(file) == budgets.spec(FULL)


def test_nothing_said_is_the_safe_default() -> None:
    read = budgets.spec("")
    assert (read["budgets"], read["prices"], read["volatile"], read["admission"]) == ([], [], False, "safe")
    assert (read["holds"], read["nodes"], read["increment_tokens"], read["hold_ttl_ms"]) == (16_384, None, 256, None)


def limit(text: str) -> str:
    return f'[budget."a"]\nlimits = [{{ {text} }}]'


TOKENS = 'unit = "tokens", window = "1d"'
SEGMENTS = "segments have 1 to 64 characters"
REFUSED = {
    "[ledger": ("at the end: expected ']'", None),
    "[ledgers]": ("1: ledgers: unknown section", "did you mean `ledger`?"),
    "[ledger]\nhold = 1": ("2: ledger.hold: unknown key", "did you mean `holds`?"),
    "[ledger]\nholds = 0": ("2: ledger.holds: 0 is not between 1 and 131072", None),
    "[ledger]\nnodes = -1": ("2: ledger.nodes: -1 is not between 1", None),
    "[ledger]\nholds = 1.0": ("2: ledger.holds: expected `int`, got `float`", None),
    "[ledger]\nvolatile = 1": ("2: ledger.volatile: expected `bool`, got `int`", None),
    "[ledger]\nadmission = 'fast'": ("2: ledger.admission: invalid enum value", 'one of: "safe", "incremental"'),
    "[ledger]\nhold_ttl_s = 0": ("2: ledger.hold_ttl_s: 0 is not between 1", None),
    "ledger = 3": ("1: ledger: expected `object`", None),
    "budget = 3": ("1: budget: must be sections", 'write [budget."acme/research"]'),
    '[budget."a"]': ("1: budget.a: object missing required field `limits`", None),
    "[budget.a.b]\nlimits = []": ("1: budget.a.b: unknown key", 'a path is one quoted key: [budget."a/b"]'),
    '[budget."a"]\nlimit = []': ("2: budget.a.limit: unknown key", "did you mean `limits`?"),
    '[budget."a"]\nlimits = [3]': ("2: budget.a.limits.0: expected `object`", None),
    '[budget."a"]\nlimits = [\n  { unit = "tokens", window = "1d", limit = 1 },\n  { units = "tokens" },\n]': (
        "4: budget.a.limits.1.units: unknown key",
        "did you mean `unit`?",
    ),
    limit('unit = "token", window = "1d", limit = 1'): ("2: budget.a.limits.0.unit: invalid enum", 'one of: "tokens"'),
    limit('unit = "tokens", window = "day", limit = 1'): (
        "2: budget.a.limits.0.window: invalid enum",
        'one of: "total"',
    ),
    limit(TOKENS): ("2: budget.a.limits.0: object missing required field `limit`", None),
    limit(f"{TOKENS}, limit = -1"): ("2: budget.a.limits.0.limit: -1 is not between 0 and 1152921504606846976", None),
    limit(f"{TOKENS}, limit = {(1 << 60) + 1}"): ("2: budget.a.limits.0.limit: 1152921504606846977 is not", None),
    limit(f"{TOKENS}, limit = {1 << 70}"): ("2: budget.a.limits.0.limit: 1180591620717411303424 is not", None),
    limit(f"{TOKENS}, limit = 1.0"): ("2: budget.a.limits.0.limit: expected `int`, got `float`", None),
    limit(f"{TOKENS}, limit = inf"): ("2: budget.a.limits.0.limit: expected `int`, got `float`", None),
    limit(f"{TOKENS}, limit = true"): ("2: budget.a.limits.0.limit: expected `int`, got `bool`", None),
    limit(f"{TOKENS}, limit = '1'"): ("2: budget.a.limits.0.limit: expected `int`, got `str`", None),
    limit(f"{TOKENS}, limit = 1, overdraft = -1"): ("2: budget.a.limits.0.overdraft: -1 is not between", None),
    limit(f"{TOKENS}, limit = 1 }}, {{ {TOKENS}, limit = 2"): (
        "2: budget.a.limits.1: a second limit for `tokens` in window `1d`",
        "leave one",
    ),
    limit('unit = "in_flight", window = "1d", limit = 1'): (
        "2: budget.a.limits.0.window: `in_flight` is a level",
        'write window = "total"',
    ),
    limit('unit = "kv_blocks", window = "month", limit = 1'): ("2: budget.a.limits.0.window: `kv_blocks` is a", None),
    '[budget."a"]\nlimits = []\nchildren_max = 3': (
        "3: budget.a.children_max: only a template makes children",
        'write it under [budget."a/*"]',
    ),
    '[budget."a/*"]\nlimits = []\nchildren_max = 0': ('3: budget."a/*".children_max: 0 is not between 1', None),
    '[budget."*"]\nlimits = []': ('1: budget."*": a template needs a parent', "write acme/*"),
    '[budget."*/*"]\nlimits = []': ('1: budget."*/*": a template needs a parent', "write acme/*"),
    '[budget."a/*/b"]\nlimits = []': ('1: budget."a/*/b": `*` stands for a whole segment at the end', None),
    '[budget."a*"]\nlimits = []': ('1: budget."a*": bad segment `a*`', SEGMENTS),
    '[budget."a/"]\nlimits = []': ('1: budget."a/": an empty segment', SEGMENTS),
    '[budget."/a"]\nlimits = []': ('1: budget."/a": an empty segment', SEGMENTS),
    '[budget."a//b"]\nlimits = []': ('1: budget."a//b": an empty segment', SEGMENTS),
    '[budget.""]\nlimits = []': ('1: budget."": an empty segment', SEGMENTS),
    '[budget."ä"]\nlimits = []': ('1: budget."ä": bad segment `ä`', SEGMENTS),
    '[budget."a b"]\nlimits = []': ('1: budget."a b": bad segment `a b`', SEGMENTS),
    f'[budget."{"a" * 65}"]\nlimits = []': (f"1: budget.{'a' * 65}: bad segment", SEGMENTS),
    f'[budget."{"/".join("abcdefghi")}"]\nlimits = []': (
        '1: budget."a/b/c/d/e/f/g/h/i": the path has 9 segments',
        None,
    ),
    f'[budget."{"/".join(["a" * 64] * 4)}"]\nlimits = []': (f'1: budget."{"a" * 64}/', "shorten its segments"),
    "price = 1": ("1: price: must be sections", None),
    "[price.m]": ("1: price.m: has no price", None),
    "[price]\nm = 1": ("2: price.m: must be a section with one price for each component", None),
    "[price.gpt.5]\nprompt = 1": ("1: price.gpt.5: expected a price, got a section", "a model is one quoted key"),
    "[price.m]\nprompt = 1.25": ("2: price.m.prompt: expected `int` or `str`, got `float`", "nano-USD per million"),
    "[price.m]\nprompt = true": ("2: price.m.prompt: expected `int` or `str`, got `bool`", None),
    "[price.m]\nprompt = -1": ("2: price.m.prompt: -1 is not between 0", None),
    "[price.m]\nprompt = '9999999999'": ("2: price.m.prompt: 9999999999000000000 is not between 0", None),
    "[price.m]\nprompt = '0.1234567891'": (
        '2: price.m.prompt: "0.1234567891" is not a price',
        "US dollars per million",
    ),
    "[price.m]\nprompt = '-1'": ('2: price.m.prompt: "-1" is not a price', None),
    "[price.m]\nprompt = '1e3'": ('2: price.m.prompt: "1e3" is not a price', None),
    "[price.m]\nprompt = '.5'": ('2: price.m.prompt: ".5" is not a price', None),
    "[price.m]\nprompt = '1.'": ('2: price.m.prompt: "1." is not a price', None),
    "[price.m]\nprompt = '$1'": ('2: price.m.prompt: "$1" is not a price', None),
    "[price.m]\nprompt = '\u0661'": ('2: price.m.prompt: "\u0661" is not a price', None),
    '[price.""]\nprompt = 1': ('1: price."": the name of a model is 1 to 255 bytes', None),
    '[price.m]\n"a b" = 1': ('2: price.m."a b": the name of a component is 1 to 255 bytes', None),
    "x = " + "[" * 10_000: (" values nest too deeply", None),
}


@pytest.mark.parametrize("text", REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_what_is_not_known_is_refused(text: str) -> None:
    message, hint = REFUSED[text]
    with pytest.raises(ConfigError) as caught:
        budgets.spec(text)
    assert str(caught.value).startswith(f"budgets.toml:{' ' if message.startswith('at ') else ''}{message}")
    assert caught.value.code.startswith("config.")
    if hint is not None:
        assert (caught.value.help or "").startswith(hint)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match=r"b\.toml:1:3: byte 0xff is not UTF-8"):
        budgets.spec(file)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    file = tmp_path / "b.toml"
    file.write_bytes(b"#" * (budgets.FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="has more than 4194304 bytes"):
        budgets.spec(file)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        budgets.spec(tmp_path / "none.toml")


def test_the_example_runs() -> None:
    assert doctest.testmod(budgets).failed == 0


@given(st.integers(0, budgets.PRICE_MAX))
def test_dollars_are_converted_exactly(nano: int) -> None:
    dollars = f"{nano // 10**9}.{nano % 10**9:09}"
    assert budgets.spec(f'[price.m]\nprompt = "{dollars}"')["prices"] == [("m", [("prompt", nano)])]
    short = dollars.rstrip("0").rstrip(".")
    assert budgets.spec(f'[price.m]\nprompt = "{short}"')["prices"] == [("m", [("prompt", nano)])]
    assert Decimal(short) * 10**9 == nano


PIECES = st.sampled_from(
    ["[", "]", "budget", "price", "ledger", ".", "limits", "=", "'a'", "\n", "3", '"', "unit", " ", "{", "}", ",", "*"]
)


@given(st.lists(PIECES).map("".join))
def test_no_text_breaks_the_reader(text: str) -> None:
    with contextlib.suppress(ConfigError):
        budgets.spec(text)
