"""``check_many``: each row is decided, recorded, paid and counted as ``check`` does it, or the call leaves nothing."""

import gc
import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollkeeper import Decision, Gate, decision_codes
from tollkeeper._native import AuditReader, Decisions

np = pytest.importorskip("numpy")

POLICIES = """
@id("all") permit(principal, action, resource);
@id("large") forbid(principal, action, resource) when { context.input has n && context.input.n > 100 };
@id("eve") forbid(principal, action, resource) when { context.input has to && context.input.to like "*eve*" };
@id("flag") forbid(principal, action, resource) when { context.input has flag && context.input.flag };
@id("price") forbid(principal, action, resource)
when { context.input has x && context.input.x.greaterThan(decimal("1.5")) };
"""
CONFIG = """
[policy]
files = ["p.cedar"]
[tools.send]
resource = 'Mcp::"mail"'
[tools.paid]
resource = 'Mcp::"bank"'
cost = { requests = 1 }
"""
RECORDED = """
[audit]
origin = "example.com/gate"
[budget]
file = "budgets.toml"
"""
BUDGETS = '[budget."acme"]\nlimits = [{ unit = "requests", window = "1d", limit = 5 }]\n'
CODES = [code for code, _ in decision_codes()]


def written(folder: Path, more: str = "") -> Path:
    (folder / "p.cedar").write_text(POLICIES)
    (folder / "budgets.toml").write_text(BUDGETS)
    (folder / "tollkeeper.toml").write_text(CONFIG + more)
    return folder / "tollkeeper.toml"


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with Gate.open(written(tmp_path_factory.mktemp("many"))) as gate:
        yield gate


def run(gate: Gate, **more: Any) -> Any:
    return gate.run(principal='Agent::"a"', session="s", **more)


def rows(decisions: Decisions) -> list[Decision]:
    return [decisions[row] for row in range(len(decisions))]


def codes(gate: Gate, columns: dict[str, Any], tool: str = "send") -> list[str]:
    with run(gate):
        found = gate.check_many(tool, columns)
    assert found.allowed.dtype == bool
    assert found.codes.dtype == np.uint8
    assert len(found) == len(found.allowed) == len(found.codes)
    names = [CODES[code] for code in found.codes]
    assert [decision.code for decision in rows(found)] == names
    assert [decision.allowed for decision in rows(found)] == list(found.allowed)
    return names


longs = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(width=64)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.just("to eve")
column = st.integers(0, 6).flatmap(
    lambda rows: st.tuples(
        st.lists(longs, min_size=rows, max_size=rows),
        st.lists(floats, min_size=rows, max_size=rows),
        st.lists(words, min_size=rows, max_size=rows),
        st.lists(st.booleans(), min_size=rows, max_size=rows),
    )
)


@given(lists=column, arrays=st.booleans(), single=st.one_of(st.none(), longs, words, st.booleans()))
@settings(max_examples=60)
def test_rows_are_decided_as_checks_are(
    gate: Gate,
    lists: tuple[list[int], list[float], list[str], list[bool]],
    *,
    arrays: bool,
    single: Any,
) -> None:
    ns, xs, tos, flags = lists
    columns: dict[str, Any] = {"n": ns, "x": xs, "to": tos, "flag": flags}
    rows: list[dict[str, Any]] = [
        {"n": n, "x": x, "to": to, "flag": flag} for n, x, to, flag in zip(ns, xs, tos, flags, strict=True)
    ]
    if arrays:
        columns = {"n": np.array(ns, "i8"), "x": np.array(xs, "f8"), "to": tuple(tos), "flag": np.array(flags, bool)}
    if single is not None:
        columns["more"] = single
        rows = [{**row, "more": single} for row in rows]
    with run(gate):
        expected = [gate.check("send", row).code for row in rows]
    assert codes(gate, columns) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([1, 200], "u1"), ["allow", "policy.forbidden"]),
        (np.array([1, 200], "u4"), ["allow", "policy.forbidden"]),
        (np.array([1, 200], "u8"), ["allow", "policy.forbidden"]),
        (np.array([1, 200], "i2"), ["allow", "policy.forbidden"]),
        (np.array([1, 200], ">i8"), ["allow", "policy.forbidden"]),
        (np.array([1, 5, 200, 5])[::2], ["allow", "policy.forbidden"]),
        (np.array([1, 200], object), ["allow", "policy.forbidden"]),
        ([1, 200], ["allow", "policy.forbidden"]),
        ((1, 200), ["allow", "policy.forbidden"]),
        (1, ["allow"]),
        ([], []),
        (np.array([], "i8"), []),
    ],
    ids=str,
)
def test_columns_of_numbers(gate: Gate, values: Any, expected: list[str]) -> None:
    assert codes(gate, {"n": values}) == expected


def test_columns_of_other_types(gate: Gate) -> None:
    assert codes(gate, {"to": np.array(["bob", "eve"])}) == ["allow", "policy.forbidden"]
    assert codes(gate, {"to": np.array(["bob", "eve"], object)}) == ["allow", "policy.forbidden"]
    assert codes(gate, {"x": np.array([1.5, 2.5], "f4")}) == ["allow", "policy.forbidden"]
    assert codes(gate, {"x": [1.0, math.nan, math.inf]}) == ["allow", *["input.unrepresentable"] * 2]
    assert codes(gate, {"flag": np.array([False, True])}) == ["allow", "policy.forbidden"]
    assert codes(gate, {}) == ["allow"]
    assert codes(gate, {"n": 1}, tool="nothing") == ["input.unknown_tool"]
    assert codes(gate, {"to": ["x" * 70_000, "bob"]}) == ["input.too_large", "allow"]


@pytest.mark.parametrize(
    ("columns", "error"),
    [
        ({"n": [1, 2], "to": ["a"]}, ValueError),
        ({"n": [1] * 65_537}, ValueError),
        ({"n": np.zeros(65_537, "i8")}, ValueError),
        ({"n": np.zeros((2, 2), "i8")}, ValueError),
        ({"n": np.array(1)}, ValueError),
        ({"n": [1, "a"]}, TypeError),
        ({"n": [1, True]}, TypeError),
        ({"n": [1, None]}, TypeError),
        ({"n": [1, 2**63]}, TypeError),
        ({"n": 2**63}, OverflowError),
        ({"n": np.array([2**63], "u8")}, TypeError),
        ({"n": np.array([1j])}, TypeError),
        ({"n": np.array(["2026-01-01"], "M8[D]")}, TypeError),
        ({"n": np.array([b"x"])}, TypeError),
        ({"n": np.array([1.1], np.longdouble)}, TypeError),
        ({"to": ["a", "\ud800"]}, TypeError),
        ({"to": "\ud800"}, UnicodeEncodeError),
        ({"n": {1, 2}}, TypeError),
        ({"n": (number for number in [1])}, TypeError),
        ({1: [1]}, TypeError),
        ([("n", [1])], TypeError),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_column_is_an_error_and_decides_nothing(gate: Gate, columns: Any, error: type[Exception]) -> None:
    before = gate.stats()["codes"]
    with run(gate), pytest.raises(error):
        gate.check_many("send", columns)
    assert gate.stats()["codes"] == before


def test_as_many_rows_as_one_call_takes(gate: Gate) -> None:
    with run(gate):
        found = gate.check_many("send", {"n": np.arange(65_536) % 200})
    assert len(found) == 65_536
    assert int(found.allowed.sum()) == int((np.arange(65_536) % 200 <= 100).sum())
    assert found[-1].code == found[65_535].code
    for row in (65_536, -65_537):
        with pytest.raises(IndexError):
            found[row]


def test_without_a_run_or_a_gate_every_row_says_so(tmp_path: Path) -> None:
    with Gate.open(written(tmp_path)) as gate:
        assert [decision.code for decision in rows(gate.check_many("send", {"n": [1, 2]}))] == ["scope.missing"] * 2
        with run(gate) as scope:
            pass
        assert gate.check_many("send", {"n": [1]}, scope=scope)[0].code == "scope.missing"
    assert gate.check_many("send", {"n": [1]})[0].code == "gate.closed"


def test_every_row_is_recorded_and_paid_until_there_is_no_more(tmp_path: Path) -> None:
    with Gate.open(written(tmp_path, RECORDED)) as gate, run(gate, budget="acme"):
        assert gate.ledger is not None
        decisions = gate.check_many("paid", {"n": [1, 2, 200, 3, 4, 5, 6, 7]}, parent="0" * 16 + "-1")
        expected = ["allow"] * 2 + ["policy.forbidden"] + ["allow"] * 3 + ["budget.exhausted"] * 2
        assert [decision.code for decision in rows(decisions)] == expected
        assert gate.ledger.usage("acme")["requests", "1d"].used == 5
        held = {hold["decision"] for hold in gate.ledger.holds()}
        assert held == {decision.id for decision in rows(decisions) if decision.allowed}
        ids = [decision.id for decision in rows(decisions)]
        one = decisions[0].hold
        assert one is not None
        assert one.decision == ids[0]
        del one, decisions
        gc.collect()
        cell = gate.ledger.usage("acme")["requests", "1d"]
        assert (cell.held, cell.used) == (0, 5)
    found = [json.loads(entry) for _, entry in AuditReader(tmp_path / "audit" / "0").entries()]
    made = [entry for entry in found if entry["kind"] == "decision"]
    assert [(entry["id"], entry["code"]) for entry in made] == list(zip(ids, expected, strict=True))
    assert {entry["parent"] for entry in made} == {"0" * 16 + "-1"}


def test_the_lock_of_the_interpreter_is_free_meanwhile(gate: Gate) -> None:
    columns = {"n": np.arange(65_536) % 200, "to": ["somebody"] * 65_536}
    turns, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            turns[0] += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=count)
    with run(gate):
        thread.start()
        before = turns[0]
        gate.check_many("send", columns)
        counted = turns[0] - before
        done.set()
        thread.join()
    assert counted > 2, "the other thread never ran"
