"""What all adapters share: copies, plain data, refusals, and that no error of ours lets anything through.

Needs no agent runtime.
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import dataclasses
import datetime as dt
import decimal
import enum
import gc
import importlib
import importlib.util
import json
import os
import pathlib
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper import ConfigError, Decision, Denied, Gate, TollkeeperError
from tollkeeper.adapters import _base, _hosts
from tollkeeper.adapters._base import Crossing, ModelPassage, Passage, Refusal, plain, same, snapshot

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
PLAIN = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


class Colour(enum.Enum):
    """For a value that is no plain data."""

    RED = "red"


@dataclasses.dataclass
class Point:
    """The same."""

    x: int
    at: list[dt.date]


class Text(str):
    """A str whose methods lie."""

    __slots__ = ()

    def __str__(self) -> str:
        return "another text"


def containers(value: Any) -> Iterator[int]:
    """The ids of all that could change."""
    if isinstance(value, dict):
        yield id(value)
        for item in value.values():
            yield from containers(item)
    elif isinstance(value, list):
        yield id(value)
        for item in value:
            yield from containers(item)


@given(PLAIN)
def test_a_snapshot_is_equal_and_shares_nothing(value: Any) -> None:
    copied = snapshot(value)
    assert repr(copied) == repr(value)
    assert not set(containers(copied)) & set(containers(value))


def typed(value: Any) -> Any:
    """A plain model of `same`: what differs in type differs in text."""
    if isinstance(value, dict):
        return {"o": {key: typed(item) for key, item in value.items()}}
    if isinstance(value, list):
        return {"l": [typed(item) for item in value]}
    return {type(value).__name__: value + 0.0 if isinstance(value, float) else value}


@given(PLAIN, PLAIN)
def test_same_is_equality_with_types(left: Any, right: Any) -> None:
    text = json.dumps(typed(left), sort_keys=True)
    if "NaN" not in text:
        assert same(left, snapshot(left))
    assert same(left, right) == (typed(left) == typed(right))


@pytest.mark.parametrize(("left", "right"), [(1, True), (1, 1.0), ("1", 1), ([1], [1.0]), ({"a": 0}, {"a": False})])
def test_numbers_of_other_types_are_not_the_same(left: Any, right: Any) -> None:
    assert not same(left, right)


def test_what_is_not_plain_becomes_what_policies_can_read() -> None:
    given_arguments = {
        "colour": Colour.RED,
        "point": Point(1, [dt.date(2026, 1, 2)]),
        "path": pathlib.PurePosixPath("/a/b"),
        "id": uuid.UUID(int=5),
        "price": decimal.Decimal("1.50"),
        "set": {"b", "a"},
        "tuple": (1, [2]),
        "text": Text("the text"),
    }
    found = plain(given_arguments)
    assert found == {
        "colour": "red",
        "point": {"x": 1, "at": ["2026-01-02"]},
        "path": "/a/b",
        "id": str(uuid.UUID(int=5)),
        "price": "1.50",
        "set": ["a", "b"],
        "tuple": [1, [2]],
        "text": "the text",
    }
    assert type(found["text"]) is str


def test_a_container_that_holds_itself_is_refused_and_not_run() -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    with pytest.raises(RecursionError):
        plain(snapshot(loop))


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    (tmp_path / "p.cedar").write_text(
        """
@id("tools") permit(principal, action in Action::"call_tool", resource == Mcp::"crm");
@id("models") permit(principal, action == Action::"call_model", resource);
@id("no") @reason("Not that.") forbid(principal, action == Action::"look", resource)
when { context.input has q && context.input.q == "bad" };
"""
    )
    (tmp_path / "budgets.toml").write_text('[budget."a"]\nlimits = [{ unit = "tokens", window = "1d", limit = 2000 }]')
    (tmp_path / "tollkeeper.toml").write_text(
        """
[policy]
files = ["p.cedar"]
[budget]
file = "budgets.toml"
[tools.known]
resource = 'Mcp::"crm"'
"""
    )
    return tmp_path


@pytest.fixture(name="gate")
def gate_fixture(folder: Path) -> Iterator[Gate]:
    with Gate.open(folder / "tollkeeper.toml") as gate, gate.run(principal='Agent::"a"', budget="a"):
        yield gate


SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}


def crossing(gate: Gate, **options: Any) -> Crossing:
    made = Crossing(gate, "test", resource=options.pop("resource", 'Mcp::"crm"'), **options)
    made.see("look", SCHEMA, lambda: SCHEMA)
    return made


@pytest.mark.parametrize("entry", ["sync", "async"])
def test_calls_are_allowed_and_refused_with_code_and_reason(gate: Gate, entry: str) -> None:
    made = crossing(gate)

    def enter(arguments: Any) -> Passage | Refusal:
        if entry == "sync":
            return made.enter("look", arguments, {"call": "c"})
        return asyncio.run(made.aenter("look", arguments, {"call": "c"}))

    arguments = {"q": "good"}
    passage = enter(arguments)
    assert isinstance(passage, Passage)
    assert passage.arguments == arguments
    assert passage.arguments is not arguments
    assert passage.decision.asserted == {"runtime": "test", "call": "c"}
    refused = enter({"q": "bad"})
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.text) == ("policy.forbidden", "Denied (policy.forbidden): Not that.")
    assert isinstance(refused.denied(), Denied)
    # The schema came from the runtime.
    wrong = enter({"q": 5})
    assert isinstance(wrong, Refusal)
    assert wrong.code == "input.unrepresentable"


def test_a_passage_covers_its_call_once_and_no_other(gate: Gate) -> None:
    made = crossing(gate)
    passage = made.enter("look", {"q": "good"}, {})
    assert isinstance(passage, Passage)
    assert not made.admitted("look", {"q": "good"})
    with passage:
        assert not made.admitted("look", {"q": "other"})
        assert not made.admitted("known", {"q": "good"})
        assert made.admitted("look", {"q": "good"})
        assert not made.admitted("look", {"q": "good"})
    assert not made.admitted("look", {"q": "good"})


def test_a_passage_covers_no_call_that_was_changed_in_place(gate: Gate) -> None:
    made = crossing(gate)
    passage = made.enter("look", {"q": "good"}, {})
    assert isinstance(passage, Passage)
    with passage:
        # What the host has been given to run is what it gives to others.
        passage.arguments["q"] = "bad"
        assert not made.admitted("look", passage.arguments)


def test_a_passage_covers_no_call_in_another_run_or_of_another_gate(gate: Gate, folder: Path) -> None:
    made = crossing(gate)
    passage = made.enter("look", {"q": "good"}, {})
    assert isinstance(passage, Passage)
    with passage:
        with gate.run(tools=[]):
            assert not made.admitted("look", {"q": "good"})
        with Gate.open(folder / "tollkeeper.toml") as other:
            assert not crossing(other).admitted("look", {"q": "good"})
        assert made.admitted("look", {"q": "good"})


def test_a_passage_that_was_taken_covers_nothing(gate: Gate) -> None:
    made = crossing(gate)
    passage = made.enter("look", {"q": "good"}, {})
    assert isinstance(passage, Passage)
    with passage.taken():
        assert not made.admitted("look", {"q": "good"})


def test_of_threads_that_come_with_one_passage_one_is_let_through(gate: Gate) -> None:
    made, interval = crossing(gate), sys.getswitchinterval()
    arguments = {"q": "good", "long": list(range(20_000))}
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(5):
            passage = made.enter("look", arguments, {})
            assert isinstance(passage, Passage)
            with passage, concurrent.futures.ThreadPoolExecutor(4) as pool:
                ask = [pool.submit(contextvars.copy_context().run, made.admitted, "look", arguments) for _ in range(4)]
                assert sorted(one.result() for one in ask) == [False, False, False, True]
    finally:
        sys.setswitchinterval(interval)


def test_outcomes_say_how_it_ended(gate: Gate) -> None:
    made = crossing(gate)
    with pytest.raises(asyncio.CancelledError):
        _raise(made, asyncio.CancelledError())
    with pytest.raises(ValueError, match="x"):
        _raise(made, ValueError("x"))


def _raise(made: Crossing, error: BaseException) -> None:
    passage = made.enter("look", {"q": "good"}, {})
    assert isinstance(passage, Passage)
    with passage:
        raise error


class Broken(Gate):
    """Fails whatever it is asked."""

    def _fail(self, *_: Any, **__: Any) -> Decision:
        message = "a defect with a secret"
        raise RuntimeError(message)

    check = check_blocking = acheck = model_call = _fail  # type: ignore[assignment]


def test_no_error_of_ours_lets_anything_through(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Broken.open(folder / "tollkeeper.toml") as gate:
        made = crossing(gate)
        found = [
            made.enter("look", {"q": "good"}, {}),
            asyncio.run(made.aenter("look", {"q": "good"}, {})),
            made.model("m", ["x"], 5, {}),
            asyncio.run(made.amodel("m", ["x"], 5, {})),
        ]
    for refusal in found:
        assert isinstance(refusal, Refusal)
        assert refusal.code == "internal.panic"
        assert "secret" not in refusal.text
    assert caplog.text.count("a defect with a secret") == 4


def test_a_closed_gate_refuses(folder: Path) -> None:
    with Gate.open(folder / "tollkeeper.toml") as gate:
        made = crossing(gate)
    refusal = made.enter("look", {"q": "good"}, {})
    assert isinstance(refusal, Refusal)
    assert refusal.code == "gate.closed"


def test_only_tools_with_an_owner_are_registered(gate: Gate) -> None:
    made = Crossing(gate, "test")
    made.see("stranger", SCHEMA, lambda: SCHEMA)
    made.see("known", SCHEMA, lambda: SCHEMA)
    assert "stranger" not in gate.tools
    # The file gave it no schema, so the runtime's holds.
    refusal = made.enter("known", {"q": 5}, {})
    assert isinstance(refusal, Refusal)
    assert refusal.code == "input.unrepresentable"
    owned = Crossing(gate, "test", resource=lambda name: f'Mcp::"{name}-server"')
    owned.see("other", SCHEMA, lambda: SCHEMA)
    refusal = owned.enter("other", {"q": "x"}, {})
    assert isinstance(refusal, Refusal)
    assert refusal.code == "policy.no_permit"


def test_a_model_call_is_held_and_settled(gate: Gate) -> None:
    made = crossing(gate)
    passage = made.model("m", ["x" * 300], 500, {})
    assert isinstance(passage, ModelPassage)
    ledger = gate.ledger
    assert ledger is not None
    assert ledger.usage("a")["tokens", "1d"].held == 604
    assert passage.streamed("word") is None
    passage.settle(prompt=80, completion=20, cached=50)
    passage.settle(prompt=1, completion=1)
    assert ledger.usage("a")["tokens", "1d"].used == 100
    refusal = made.model("m", ["x"], 5000, {})
    assert isinstance(refusal, Refusal)
    assert refusal.code == "budget.too_large"


@pytest.mark.parametrize("usage", [{"prompt": -1, "completion": 5}, {"prompt": "many", "completion": 5}])
def test_usage_that_cannot_be_counted_costs_the_whole_hold(gate: Gate, usage: dict[str, Any]) -> None:
    passage = crossing(gate).model("m", ["x" * 300], 500, {})
    assert isinstance(passage, ModelPassage)
    passage.settle(**usage)
    ledger = gate.ledger
    assert ledger is not None
    assert ledger.usage("a")["tokens", "1d"].used == 604
    assert ledger.holds() == []


def test_a_stream_stops_when_its_principal_is_revoked_and_never_by_an_estimate(gate: Gate) -> None:
    passage = crossing(gate).model("m", ["x"], 10, {})
    assert isinstance(passage, ModelPassage)
    for _ in range(50):
        assert passage.streamed("a text that is far longer than what is held") is None
    gate._control.revoke("principal", 'Agent::"a"', "test", "test", 0)
    refusal = passage.streamed("word")
    assert isinstance(refusal, Refusal)
    passage.over()


def test_what_asked_for_a_call_is_remembered_within_a_bound(gate: Gate) -> None:
    made = crossing(gate)
    passage = made.model("m", ["x"], 10, {})
    assert isinstance(passage, ModelPassage)
    made.asked(passage, [None, "", *(f"c{n}" for n in range(_base.ASKED_MAX + 10))])
    assert len(made._asked) == _base.ASKED_MAX
    assert f"c{_base.ASKED_MAX + 9}" in made._asked


def test_threads_whose_models_ask_for_many_calls_do_not_disturb_each_other(gate: Gate) -> None:
    made, interval = crossing(gate), sys.getswitchinterval()
    passage = made.model("m", ["x"], 10, {})
    assert isinstance(passage, ModelPassage)

    def ask(thread: int) -> None:
        for number in range(_base.ASKED_MAX * 4):
            made.asked(passage, [f"{thread}-{number}"])

    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, range(4))) == [None] * 4
    finally:
        sys.setswitchinterval(interval)
    assert len(made._asked) == _base.ASKED_MAX


def test_a_child_of_a_fork_waits_for_no_thread_of_its_parent(gate: Gate) -> None:
    made = crossing(gate)
    with made._registering:
        child = os.fork()
        if child == 0:
            refused = True
            with contextlib.suppress(TollkeeperError):
                made.see("another", object(), lambda: {"type": "object"})
                refused = isinstance(made.enter("another", {"q": "good"}, {}), Refusal)
            os._exit(0 if refused else 1)
        end = time.monotonic() + 20
        while (done := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
            time.sleep(0.01)
        if done == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert done == (child, 0)


@pytest.mark.parametrize(
    ("version", "numbers"), [("1.2.3", (1, 2, 3)), ("1.0.0rc1", (1, 0, 0)), ("2.0.dev5", (2, 0)), ("1.10", (1, 10))]
)
def test_versions_are_compared_by_numbers(version: str, numbers: tuple[int, ...]) -> None:
    assert _hosts._numbers(version) == numbers


def test_a_host_that_is_missing_or_too_old_is_said_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="no `surely-not-there`") as missing:
        _hosts.Host("x", "X", "surely-not-there", "1.0", "2.0").check()
    assert missing.value.code == "host.missing"
    with pytest.raises(ConfigError, match="older than 999") as old:
        _hosts.Host("x", "X", "msgspec", "999.0", "999.0").check()
    assert old.value.code == "host.unsupported"


def test_the_book_names_every_case_of_every_host() -> None:
    found = _hosts.guarantees()
    assert list(found) == list(_hosts.TABLE)
    for cases in found.values():
        assert list(cases) == list(_hosts.CASES)
        assert all(row["by"] == "hooks" or row["reason"] for row in cases.values())


def test_a_tool_is_described_once_for_as_long_as_it_lives() -> None:
    class Tool:
        """A tool."""

    made: list[str] = []

    def describe() -> str:
        made.append("x")
        return f"text {len(made)}"

    tool = Tool()
    key = id(tool)
    assert [_base.described(tool, describe) for _ in range(3)] == ["text 1"] * 3
    assert key in _base._DESCRIBED
    del tool
    gc.collect()
    assert key not in _base._DESCRIBED
    # What cannot be watched is described each time.
    assert [_base.described(5, describe) for _ in range(2)] == ["text 2", "text 3"]


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("resource", "crm", ValueError),
        ("resource", 5, TypeError),
        ("max_output_tokens", -5, ValueError),
        ("max_output_tokens", "many", TypeError),
        ("max_output_tokens", True, TypeError),
        ("timeout", -1, ValueError),
        ("timeout", float("nan"), ValueError),
        ("timeout", "1", TypeError),
        ("approval_timeout", 0, ValueError),
        ("halt", "yes", TypeError),
        ("models", None, TypeError),
    ],
)
def test_an_option_that_cannot_be_used_is_an_error_at_once(
    gate: Gate, option: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=option):
        Crossing(gate, "test", **{option: value})


def test_a_guard_needs_a_gate() -> None:
    with pytest.raises(TypeError, match=r"Gate\.open"):
        Crossing("tollkeeper.toml", "test")  # type: ignore[arg-type] - what a beginner tries


def test_a_guard_without_an_owner_says_how_to_give_one(gate: Gate) -> None:
    for refusal in (
        Crossing(gate, "test").enter("stranger", {}, {}),
        asyncio.run(Crossing(gate, "test").aenter("stranger", {}, {})),
    ):
        assert isinstance(refusal, Refusal)
        assert "[tools.stranger]" in refusal.text
        assert "`resource=`" in refusal.text


@pytest.mark.parametrize("name", list(_hosts.TABLE))
def test_an_adapter_without_its_runtime_says_what_to_install(name: str) -> None:
    if importlib.util.find_spec({"maf": "agent_framework", "openai_agents": "agents"}.get(name, name)) is not None:
        pytest.skip("it is here")
    with pytest.raises(ImportError, match="is not installed") as missing:
        importlib.import_module(f"tollkeeper.adapters.{name}")
    assert isinstance(missing.value, ConfigError)
    assert f"[{name.replace('_', '-')}]" in str(missing.value)
