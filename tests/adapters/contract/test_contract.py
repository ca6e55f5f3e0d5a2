"""The contract: fifteen cases, the same for every host, each through the host's own loop with a scripted model.

Every case goes into the book of guarantees, that `tollkeeper hosts` prints.
"""

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from book import Book, stated
from driver import Call, Plan, Ran, Sub, Turn

from conftest import entries
from tollkeeper import Decision, Denied, Gate
from tollkeeper.adapters._base import Adapter
from tollkeeper.adapters._hosts import CASES

RESOURCE = 'Mcp::"crm"'


class Tools:
    """Real functions that count how often they ran, and with what."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, Any]] = []
        self._lock = threading.Lock()

    def _note(self, name: str, value: Any) -> None:
        with self._lock:
            self.ran.append((name, value))

    @property
    def all(self) -> list[Callable[..., Any]]:
        """Every tool, as an author would write them."""

        def look(q: str) -> str:
            """Looks something up."""
            self._note("look", q)
            return f"found {q}"

        def wipe(path: str) -> str:
            """Wipes a path."""
            self._note("wipe", path)
            return "wiped"

        def scarce(n: int) -> str:
            """Costs a lot."""
            self._note("scarce", n)
            time.sleep(0.01)
            return f"spent {n}"

        async def slow(q: str) -> str:
            """Takes its time."""
            import asyncio  # noqa: PLC0415 - only here

            self._note("slow", q)
            await asyncio.sleep(30)
            return q

        return [look, wipe, scarce, slow]

    def of(self, name: str) -> Callable[..., Any]:
        """One of them."""
        return next(tool for tool in self.all if tool.__name__ == name)

    def names(self) -> list[str]:
        """What ran, in order."""
        return [name for name, _ in self.ran]


def look(q: str, call: str = "call-1") -> Turn:
    """A turn that looks something up."""
    return Turn((Call("look", {"q": q}, call),))


DONE = Turn(text="all done now")


@contextlib.contextmanager
def guarded(driver: Any, gate: Gate, *, installed: bool = False, **options: Any) -> Iterator[Any]:
    """A guard, installed or not; never left installed."""
    guard = driver.guard(gate, resource=options.pop("resource", RESOURCE), **options)
    assert isinstance(guard, Adapter)
    if installed:
        guard.install()
    try:
        yield guard
    finally:
        guard.uninstall()


def go(driver: Any, gate: Gate, plan: Plan, *, installed: bool = False, budget: str = "acme", **options: Any) -> Ran:
    """One run in a scope of the gate."""
    with (
        guarded(driver, gate, installed=installed, **options) as guard,
        gate.run(principal='Agent::"researcher"', session="s-1", budget=budget),
    ):
        ran: Ran = driver.run(guard, plan)
    return ran


def test_allow(driver: Any, gate: Gate, folder: Path, book: Book, installed: bool) -> None:  # noqa: FBT001 - a fixture
    tools = Tools()
    ran = go(driver, gate, Plan(tools.all, [look("weather"), DONE]), installed=installed)
    assert ran.error is None
    assert tools.ran == [("look", "weather")]
    assert "found weather" in ran.inputs[1]
    assert "all done now" in str(ran.output)
    gate.close()
    (decision,) = [entry for entry in entries(folder, "decision") if entry.get("tool")]
    assert (decision["tool"], decision["code"], decision["resource"]) == ("look", "allow", RESOURCE)
    (outcome,) = [entry for entry in entries(folder, "outcome") if entry["of"] == decision["id"]]
    assert outcome["status"] == "ok"
    book.note(driver, "allow", installed=installed, held=True)


def test_deny(driver: Any, gate: Gate, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    tools = Tools()
    turns = [look("the secret"), look("weather", "call-2"), DONE]
    ran = go(driver, gate, Plan(tools.all, turns), installed=installed)
    assert ran.error is None
    assert tools.ran == [("look", "weather")]
    assert "Denied (policy.forbidden): Secrets are not for agents." in ran.inputs[1]
    assert "found weather" in ran.inputs[2]
    book.note(driver, "deny", installed=installed, held=True)


def test_halt(driver: Any, gate: Gate, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    tools = Tools()
    turns = [Turn((Call("wipe", {"path": "/"}, "call-1"),)), look("weather", "call-2"), DONE]
    ran = go(driver, gate, Plan(tools.all, turns), installed=installed, halt=True)
    assert ran.stopped, ran
    assert "policy.forbidden" in str(ran.error)
    assert tools.ran == []
    assert len(ran.inputs) == 1
    book.note(driver, "halt", installed=installed, held=True)


class Broken(Gate):
    """A gate that fails whatever it is asked."""

    def check(self, *_: Any, **__: Any) -> Decision:
        message = "a defect"
        raise RuntimeError(message)

    check_blocking = acheck = _check_large = check  # type: ignore[assignment]


@pytest.mark.timeout(60)
def test_crash(driver: Any, folder: Path, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    tools = Tools()
    with Broken.open(folder / "tollkeeper.toml") as gate:
        ran = go(driver, gate, Plan(tools.all, [look("weather"), DONE]), installed=installed)
    assert ran.error is None
    assert tools.ran == []
    assert "Denied (internal.panic)" in ran.inputs[1]
    assert "a defect" not in ran.inputs[1]
    book.note(driver, "crash", installed=installed, held=True)


def test_parallel(driver: Any, gate: Gate, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    tools = Tools()
    calls = tuple(Call("look", {"q": f"secret {n}" if n % 2 else f"plain {n}"}, f"call-{n}") for n in range(6))
    ran = go(driver, gate, Plan(tools.all, [Turn(calls), DONE]), installed=installed)
    assert ran.error is None
    assert sorted(tools.ran) == [("look", f"plain {n}") for n in (0, 2, 4)]
    assert ran.inputs[1].count("Denied (policy.forbidden)") == 3
    book.note(driver, "parallel", installed=installed, held=True)


def test_budget_race(driver: Any, gate: Gate, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    tools = Tools()
    calls = tuple(Call("scarce", {"n": n}, f"call-{n}") for n in range(8))
    plan = Plan(tools.all, [Turn(calls), DONE])
    ran = go(driver, gate, plan, installed=installed, budget="acme/small", models=False)
    assert ran.error is None
    assert tools.names() == ["scarce"] * 3
    assert ran.inputs[1].count("Denied (budget.") == 5
    ledger = gate.ledger
    assert ledger is not None
    assert ledger.usage("acme/small")["requests", "1d"].used == 3000
    assert ledger.holds() == []
    book.note(driver, "budget race", installed=installed, held=True)


def test_stream(driver: Any, gate: Gate, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    if "stream" not in driver.entries:
        pytest.skip(f"{driver.host} does not stream")
    tools = Tools()
    plan = Plan(tools.all, [look("the secret"), look("weather", "call-2"), DONE], entry="stream")
    ran = go(driver, gate, plan, installed=installed)
    assert ran.error is None
    assert tools.ran == [("look", "weather")]
    assert "Denied (policy.forbidden): Secrets are not for agents." in ran.inputs[1]
    assert_used(gate, 3 * 110)
    book.note(driver, "stream", installed=installed, held=True)


def test_abandoned_stream(driver: Any, gate: Gate, folder: Path, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    if "stream" not in driver.entries:
        pytest.skip(f"{driver.host} does not stream")
    tools = Tools()
    plan = Plan(tools.all, [Turn(text="one two three four"), DONE], entry="stream", abandon=True)
    ran = go(driver, gate, plan, installed=installed)
    assert ran.error is None
    # Hosts tell nobody that a stream was left: it is settled when its objects are gone.
    gc.collect()
    ledger = gate.ledger
    assert ledger is not None
    assert ledger.holds() == []
    used = ledger.usage("acme")["tokens", "1d"].used
    gate.close()
    (asked,) = [entry for entry in entries(folder, "decision") if entry.get("model")]
    worst = asked["model"]["prompt_tokens"] + asked["model"]["max_tokens"]
    # The prompt, and what was seen of the answer: more than nothing, less than the worst case.
    assert asked["model"]["prompt_tokens"] < used < worst
    assert [entry["of"] for entry in entries(folder, "outcome")] == [asked["id"]]
    book.note(driver, "abandoned stream", installed=installed, held=True)


def assert_used(gate: Gate, tokens: int) -> None:
    """What the ledger counts, with nothing held any more."""
    ledger = gate.ledger
    assert ledger is not None
    cell = ledger.usage("acme")["tokens", "1d"]
    assert (cell.used, cell.held) == (tokens, 0)


@pytest.mark.parametrize("careful", [True, False], ids=["with hooks", "without hooks"])
def test_sub_agent(driver: Any, gate: Gate, book: Book, installed: bool, careful: bool) -> None:  # noqa: FBT001 - as above
    tools, inner = Tools(), Tools()
    asks = [Turn((Call("wipe", {"path": "/"}, "in-1"), Call("look", {"q": "weather"}, "in-2"))), DONE]
    sub = Sub("helper", inner.all, asks, guarded=careful)
    turns = [Turn((Call("helper", {"task": "help"}, "call-1"),)), DONE]
    ran = go(driver, gate, Plan(tools.all, turns, sub=sub), installed=installed)
    assert ran.error is None
    case = "sub-agent" if careful else "sub-agent without hooks"
    book.note(driver, case, installed=installed, held="wipe" not in inner.names())
    assert "look" in inner.names()


def test_a_sub_agent_cannot_do_more_than_its_run(driver: Any, gate: Gate) -> None:
    tools, inner = Tools(), Tools()
    sub = Sub("helper", inner.all, [look("weather", "in-1"), DONE])
    turns = [Turn((Call("helper", {"task": "help"}, "call-1"),)), DONE]
    with (
        guarded(driver, gate) as guard,
        gate.run(principal='Agent::"researcher"', budget="acme", tools=["helper"]),
    ):
        driver.run(guard, Plan(tools.all, turns, sub=sub))
    assert inner.ran == []


@pytest.mark.parametrize("careful", [True, False], ids=["with hooks", "without hooks"])
def test_handoff(driver: Any, gate: Gate, book: Book, installed: bool, careful: bool) -> None:  # noqa: FBT001 - as above
    tools, inner = Tools(), Tools()
    asks = [Turn((Call("wipe", {"path": "/"}, "in-1"), Call("look", {"q": "weather"}, "in-2"))), DONE]
    other = Sub("closer", inner.all, asks, guarded=careful)
    ran = go(driver, gate, Plan(tools.all, [Turn(text="over to you"), DONE], handoff=other), installed=installed)
    assert ran.error is None
    case = "handoff" if careful else "handoff without hooks"
    book.note(driver, case, installed=installed, held="wipe" not in inner.names())
    assert "look" in inner.names()


def test_models_without_hooks(driver: Any, gate: Gate, folder: Path, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    sub = Sub("helper", [], [DONE], guarded=False)
    turns = [Turn((Call("helper", {"task": "help"}, "call-1"),)), DONE]
    ran = go(driver, gate, Plan(Tools().all, turns, sub=sub), installed=installed)
    assert ran.error is None
    gate.close()
    asked = [entry for entry in entries(folder, "decision") if entry.get("model")]
    assert len(asked) in (2, 3)
    book.note(driver, "models without hooks", installed=installed, held=len(asked) == 3)


def test_direct(driver: Any, gate: Gate, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    tools = Tools()
    with (
        guarded(driver, gate, installed=installed) as guard,
        gate.run(principal='Agent::"researcher"', budget="acme"),
    ):
        assert driver.direct(guard, tools.of("look"), {"q": "weather"}) == "found weather"
        with contextlib.suppress(Denied):
            said = driver.direct(guard, tools.of("wipe"), {"path": "/"})
            assert not installed or "Denied (policy.forbidden)" in said
    book.note(driver, "direct", installed=installed, held=tools.names() == ["look"])


def test_unknown_tool(driver: Any, gate: Gate, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    tools = Tools()
    turns = [Turn((Call("launch_rocket", {"to": "moon"}, "call-1"),)), look("weather", "call-2"), DONE]
    ran = go(driver, gate, Plan(tools.all, turns), installed=installed)
    # Hosts answer such a call themselves, or end the run; nothing runs because of us.
    assert set(tools.names()) <= {"look"}
    assert not isinstance(ran.error, (AttributeError, TypeError, KeyError))
    book.note(driver, "unknown tool", installed=installed, held=True)


def test_a_tool_that_nobody_owns_is_refused(driver: Any, gate: Gate) -> None:
    tools = Tools()
    ran = go(driver, gate, Plan(tools.all, [look("weather"), DONE]), resource=None)
    assert tools.ran == []
    assert "Denied (input.unknown_tool)" in ran.inputs[1]
    assert "[tools.look]" in ran.inputs[1]


def test_sync_and_async(driver: Any, gate: Gate, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    seen = []
    for entry in driver.entries:
        tools = Tools()
        turns = [look("the secret"), look("weather", "call-2"), DONE]
        ran = go(driver, gate, Plan(tools.all, turns, entry=entry), installed=installed)
        seen.append((tools.ran, "Denied (policy.forbidden): Secrets are not for agents." in ran.inputs[1]))
    assert seen == [([("look", "weather")], True)] * len(driver.entries)
    book.note(driver, "sync and async", installed=installed, held=True)


def test_ids(driver: Any, gate: Gate, folder: Path, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    tools = Tools()
    plan = Plan(tools.all, [look("weather", "call-77"), DONE], agent="researcher", session="thread-7")
    go(driver, gate, plan, installed=installed)
    gate.close()
    decisions = entries(folder, "decision")
    (tool,) = [entry for entry in decisions if entry.get("tool")]
    assert (tool["session"], tool["run"]) == ("s-1", "r1")
    assert tool["asserted"]["runtime"] == driver.host
    assert tool["asserted"]["call"] == "call-77"
    assert tool["asserted"]["agent"] == "researcher"
    if driver.session_known:
        assert tool["asserted"]["session"] == "thread-7"
    model = next(entry for entry in decisions if entry.get("model"))
    assert tool["parent"] == model["id"]
    assert model["asserted"]["agent"] == "researcher"
    book.note(driver, "ids", installed=installed, held=True)


def test_usage(driver: Any, gate: Gate, folder: Path, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    for entry in driver.entries:
        turns = [look("weather"), Turn(text="all done now", usage=(321, 45))]
        go(driver, gate, Plan(Tools().all, turns, entry=entry), installed=installed)
    assert_used(gate, len(driver.entries) * (110 + 366))
    gate.close()
    models = {entry["id"]: entry["model"] for entry in entries(folder, "decision") if entry.get("model")}
    assert {(model["name"], model["max_tokens"]) for model in models.values()} == {("scripted", 50)}
    usages = [entry["usage"] for entry in entries(folder, "outcome") if entry["of"] in models]
    assert [(usage["prompt"], usage["completion"]) for usage in usages] == [(100, 10), (321, 45)] * len(driver.entries)
    book.note(driver, "usage", installed=installed, held=True)


def test_a_model_call_that_nobody_can_pay_for_ends_the_run(driver: Any, gate: Gate) -> None:
    for entry in driver.entries:
        plan = Plan(Tools().all, [look("weather"), DONE], entry=entry, max_tokens=1_000_000)
        ran = go(driver, gate, plan)
        assert ran.inputs == []
        assert isinstance(ran.error, Denied), ran.error
        assert ran.error.code == "budget.too_large"
    assert_used(gate, 0)


def test_mutation(driver: Any, gate: Gate, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    tools = Tools()
    plan = Plan(tools.all, [look("weather"), DONE], tamper=lambda arguments: arguments.update(q="the secret"))
    ran = go(driver, gate, plan, installed=installed)
    assert ran.error is None
    book.note(driver, "mutation", installed=installed, held=("look", "the secret") not in tools.ran)


@pytest.mark.timeout(60)
def test_cancellation(driver: Any, gate: Gate, folder: Path, book: Book, installed: bool) -> None:  # noqa: FBT001 - as above
    tools = Tools()
    plan = Plan(tools.all, [Turn((Call("slow", {"q": "x"}, "call-1"),)), DONE], cancel_after=0.5)
    ran = go(driver, gate, plan, installed=installed)
    assert isinstance(ran.error, (TimeoutError, BaseException))
    assert tools.names() == ["slow"]
    ledger = gate.ledger
    assert ledger is not None
    assert ledger.holds() == []
    gate.close()
    (decision,) = [entry for entry in entries(folder, "decision") if entry.get("tool")]
    (outcome,) = [entry for entry in entries(folder, "outcome") if entry["of"] == decision["id"]]
    assert outcome["status"] == "cancelled"
    book.note(driver, "cancellation", installed=installed, held=True)


def test_the_package_says_what_was_found(driver: Any, book: Book) -> None:
    if "TOLLKEEPER_KEEP_GUARANTEES" in os.environ:
        pytest.skip("written at the end")
    found = book.found.get(driver.host, {})
    assert list(found) == list(CASES)
    said = stated(driver.host)
    assert {case: said.get(case) for case in found} == found, "run `make guarantees` and read the difference"
