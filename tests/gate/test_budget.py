"""Budgets at the gate: what an action costs is reserved before it, and ends once, however the action ends."""

import asyncio
import contextlib
import gc
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import BudgetError, ConfigError, Decision, Denied, Gate, Hold, Ledger, ModelCall
from tollkeeper.testing import FakeClock

NOW = 1_767_225_600_000
BUDGETS = """
[budget."acme"]
limits = [{ unit = "tokens", window = "1d", limit = 10000 }, { unit = "in_flight", window = "total", limit = 20 }]
[budget."acme/a"]
limits = [{ unit = "requests", window = "1h", limit = 4 }, { unit = "tokens", window = "1d", limit = 3000 }]
[budget."one"]
limits = [{ unit = "in_flight", window = "total", limit = 1 }]
[budget."money"]
limits = [{ unit = "nano_usd", window = "month", limit = 1000000 }]
[price."m"]
prompt = 1_000_000_000
cached = 100_000_000
completion = 2_000_000_000
"""
TOOLS = """
[tools.free]
resource = 'Mcp::"m"'
[tools.think]
resource = 'Mcp::"m"'
cost = { tokens = 300, in_flight = 1 }
"""
PERMIT = "permit (principal, action, resource);\n"


def opened(folder: Path, policies: str = PERMIT, gate: str = "", budgets: str = BUDGETS) -> Gate:
    """A gate with a ledger on a clock that stands still."""
    (folder / "budgets.toml").write_text(budgets)
    (folder / "p.cedar").write_text(policies)
    (folder / "t.toml").write_text(f"{gate}[policy]\nfiles = ['p.cedar']\n[budget]\nfile = 'budgets.toml'\n{TOOLS}")
    return Gate.open(folder / "t.toml", ledger=Ledger.from_toml(budgets, clock=FakeClock(NOW)))


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """A gate that permits everything."""
    return opened(tmp_path)


def counts(gate: Gate, path: str, unit: str) -> tuple[int, int]:
    """Used and held of a budget's own limit."""
    assert gate.ledger is not None
    (cell,) = (usage for (of, _), usage in gate.ledger.usage(path).items() if of == unit)
    return cell.used, cell.held


def everything(gate: Gate) -> dict[str, Any]:
    """All counts of the ledger."""
    assert gate.ledger is not None
    ledger = gate.ledger
    return {path: {key: (one.used, one.held) for key, one in ledger.usage(path).items()} for path in ledger.paths}


def test_a_decision_carries_the_hold(gate: Gate) -> None:
    with gate.run(principal='Agent::"x"', budget="acme/a") as scope:
        assert scope.budget == "acme/a"
        decision = gate.check("think")
        hold = decision.hold
        assert isinstance(hold, Hold)
        assert hold is decision.hold
        assert (hold.path, hold.amounts["tokens"], decision.denial, decision.retry_after) == ("acme/a", 300, None, None)
        assert counts(gate, "acme", "tokens") == (0, 300)
        assert hold.settle(tokens=120)
        assert counts(gate, "acme", "tokens") == (120, 0)
        assert gate.check("free").hold is not None, "one request where nobody says"
    with gate.run(principal='Agent::"x"'):
        assert gate.check("free").hold is None


def test_a_dropped_decision_ends_its_hold_in_full(gate: Gate) -> None:
    with gate.run(principal='Agent::"x"', budget="acme"):
        gate.check("think")
        gc.collect()
        assert counts(gate, "acme", "tokens") == (300, 0)
        hold = gate.check("think").hold
        gc.collect()
        assert hold is not None
        assert hold.live, "whoever kept the hold has it"
        assert counts(gate, "acme", "in_flight") == (0, 1)
        del hold
        gc.collect()
        assert counts(gate, "acme", "tokens") == (600, 0)


def test_denials_say_which_budget_and_when(gate: Gate) -> None:
    with gate.run(principal='Agent::"x"', budget="acme/a"):
        for _ in range(4):
            assert gate.check("free").allowed
        before = everything(gate)
        denied = gate.check("free")
    assert (denied.code, denied.retry_after, denied.hold) == ("budget.exhausted", 3600.0, None)
    assert denied.denial is not None
    assert (denied.denial.path, denied.denial.unit, denied.denial.window) == ("acme/a", "requests", "1h")
    assert denied.reason == denied.denial.reason
    with pytest.raises(Denied) as caught:
        denied.require()
    assert caught.value.code == "budget.exhausted"
    assert everything(gate) == before


def test_every_budget_code_is_raised_and_leaves_nothing(gate: Gate) -> None:
    asked: list[tuple[str | None, dict[str, Any], str]] = [
        ("acme/a", {"model": "m", "prompt_tokens": 2000, "max_tokens": 2000}, "budget.too_large"),
        ("one", {"model": "m", "prompt_tokens": 1, "max_tokens": 1}, "budget.contended"),
        ("money", {"model": "unknown", "prompt_tokens": 1, "max_tokens": 1}, "budget.unpriced"),
        (None, {"model": "m", "prompt_tokens": 1, "max_tokens": 1}, "budget.unavailable"),
    ]
    with gate.run(principal='Agent::"x"', budget="one"):
        kept = gate.check("think")
    before = everything(gate)
    for budget, call, code in asked:
        with gate.run(principal='Agent::"x"', budget=budget):
            with pytest.raises(Denied) as caught, gate.model_call(**call):
                pytest.fail("it was let through")
            assert caught.value.code == code
    with gate.run(principal='Agent::"x"'):
        refused = gate.check("think")
        assert refused.code == "budget.unavailable"
        assert "`acme/a`" in refused.reason
    assert everything(gate) == before
    assert kept.allowed


@pytest.mark.parametrize(
    ("policies", "code"),
    [
        ("", "policy.no_permit"),
        (PERMIT + "forbid (principal, action, resource);", "policy.forbidden"),
        ('@approval("ops") permit (principal, action, resource);', "approval.required"),
        (
            PERMIT + "forbid (principal, action, resource) when { context.input has a && context.input.a > 1 };",
            "policy.error",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["", "[gate]\nmode = 'shadow'\n"])
def test_what_policies_deny_costs_nothing(tmp_path: Path, policies: str, code: str, mode: str) -> None:
    gate = opened(tmp_path, policies, mode)
    before = everything(gate)
    with gate.run(principal='Agent::"x"', budget="acme/a"):
        decision = gate.check("think", {"a": "text"})
        assert (decision.would_deny if mode else decision.code) == code
        assert decision.hold is None
        assert gate.check("nobody-knows").hold is None
    assert everything(gate) == before


def test_runs_inside_runs_only_go_down(gate: Gate) -> None:
    with gate.run(principal='Agent::"x"', budget="acme"):
        with gate.run() as same:
            assert same.budget == "acme"
        with gate.run(budget="acme/a"):
            assert gate.check("free").allowed
            for path in ("acme", "money", "acme/ab"):
                with pytest.raises(BudgetError, match=path):
                    gate.run(budget=path)
    with pytest.raises(BudgetError, match="acme/a"):
        gate.run(principal='Agent::"x"', budget="acmee")
    with gate.run(principal='Agent::"x"'), pytest.raises(BudgetError, match="outer run"):
        gate.run(budget="acme")


def test_a_budget_needs_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "p.cedar").write_text(PERMIT)
    (tmp_path / "t.toml").write_text(f"[policy]\nfiles = ['p.cedar']\n{TOOLS}")
    gate = Gate.open(tmp_path / "t.toml")
    assert gate.ledger is None
    with pytest.raises(BudgetError, match=r"budgets\.toml"):
        gate.run(principal='Agent::"x"', budget="acme")
    with gate.run(principal='Agent::"x"'):
        assert gate.check("think").code == "budget.unavailable"
        with gate.model_call(model="m", prompt_tokens=5, max_tokens=5) as call:
            assert call.hold is None
            assert call.charge(1_000)
            assert not call.settle()


@pytest.mark.parametrize(
    ("cost", "part"),
    [
        ("{ tokns = 1 }", "t.toml:5: tools.x.cost.tokns: unknown unit"),
        ("{ tokens = -1 }", "tools.x.cost"),
        ("{ tokens = 1.5 }", "tools.x.cost"),
        ("{ tokens = true }", "tools.x.cost"),
        ("{ tokens = 9007199254740993 }", "tools.x.cost"),
        ("7", "tools.x.cost"),
    ],
)
def test_bad_costs_are_errors_with_a_place(tmp_path: Path, cost: str, part: str) -> None:
    (tmp_path / "p.cedar").write_text(PERMIT)
    tool = f"[tools.x]\nresource = 'M::\"m\"'\ncost = {cost}\n"
    (tmp_path / "t.toml").write_text(f"[policy]\nfiles = ['p.cedar']\n{tool}")
    with pytest.raises(ConfigError) as caught:
        Gate.open(tmp_path / "t.toml")
    assert part in str(caught.value)


def test_a_guarded_function_ends_its_hold(gate: Gate) -> None:
    @gate.guard(tool="think")
    def think(fail: bool = False) -> int:  # noqa: FBT001, FBT002 - a tool's argument
        assert counts(gate, "acme", "in_flight") == (0, 1)
        if fail:
            raise KeyError
        return 1

    @gate.guard(tool="think")
    async def think_later() -> None:
        assert counts(gate, "acme", "in_flight") == (0, 1)
        await asyncio.sleep(60)

    async def cancelled() -> None:
        task = asyncio.create_task(think_later())
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with gate.run(principal='Agent::"x"', budget="acme"):
        think()
        assert (counts(gate, "acme", "tokens"), counts(gate, "acme", "in_flight")) == ((300, 0), (0, 0))
        with pytest.raises(KeyError):
            think(fail=True)
        asyncio.run(cancelled())
    assert (counts(gate, "acme", "tokens"), counts(gate, "acme", "in_flight")) == ((900, 0), (0, 0))


async def _aborted(call: ModelCall, chunks: int, how: Callable[[], None]) -> None:
    async with call:
        for _ in range(chunks):
            assert call.charge(10)
            await asyncio.sleep(0)
        how()


def _raise_key_error() -> None:
    raise KeyError


def _cancel() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize("chunks", range(6))
@pytest.mark.parametrize("how", [_raise_key_error, _cancel, lambda: None])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_stream_broken_at_any_chunk_costs_what_came(
    gate: Gate, chunks: int, how: Callable[[], None], mode: str
) -> None:
    for budget in ("acme/a", "money"):
        with gate.run(principal='Agent::"x"', budget=budget):
            call = gate.model_call(model="m", prompt_tokens=100, max_tokens=50)
            with contextlib.suppress(KeyError, asyncio.CancelledError):
                if mode == "async":
                    asyncio.run(_aborted(call, chunks, how))
                else:
                    with call:
                        assert all(call.charge(10) for _ in range(chunks))
                        how()
            assert not call.charge(1)
            assert not call.settle(completion=1)
    # What did not stream may have used everything.
    chunks = chunks or 5
    assert counts(gate, "acme", "tokens") == (100 + 10 * chunks, 0)
    assert counts(gate, "acme/a", "requests") == (1, 0)
    assert counts(gate, "acme", "in_flight") == (0, 0)
    assert counts(gate, "money", "nano_usd") == (100_000 + 20_000 * chunks, 0)


def test_a_cancelled_task_ends_its_call(gate: Gate) -> None:
    async def stream() -> None:
        async with gate.model_call(model="m", prompt_tokens=100, max_tokens=50) as call:
            call.charge(7)
            await asyncio.sleep(60)

    async def main() -> None:
        with gate.run(principal='Agent::"x"', budget="acme"):
            task = asyncio.create_task(stream())
            await asyncio.sleep(0)
            assert counts(gate, "acme", "tokens") == (0, 150)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert counts(gate, "acme", "tokens") == (107, 0)


def test_a_call_settles_what_the_provider_says(gate: Gate) -> None:
    with gate.run(principal='Agent::"x"', budget="money"):
        with gate.model_call(model="m", prompt_tokens=100, max_tokens=25, n=2) as call:
            assert isinstance(call.decision, Decision)
            assert call.hold is not None
            assert call.hold.amounts["nano_usd"] == 200_000
            assert call.charge(30)
            for bad in (-1, True, 1.5, "3", 2**70):
                assert call.charge(bad) is False  # type: ignore[arg-type]
            for wrong, kind in (
                ({"cached": 101}, BudgetError),
                ({"prompt": -1}, ValueError),
                ({"completion": 1.5}, TypeError),
            ):
                with pytest.raises(kind):
                    call.settle(**wrong)
            assert call.settle(prompt=100, cached=80, completion=31)
            assert not call.settle()
        assert counts(gate, "money", "nano_usd") == (20_000 + 8_000 + 62_000, 0)
        with gate.model_call(model="m", prompt_tokens=100, max_tokens=50) as call:
            assert call.settle(audio=3)
        assert counts(gate, "money", "nano_usd") == (90_000 + 200_000, 0)
        with pytest.raises(RuntimeError, match="begun"):
            call.__enter__()
        with pytest.raises(RuntimeError, match="not begun"):
            _ = gate.model_call(model="m", prompt_tokens=1, max_tokens=1).decision
    with pytest.raises(Denied, match="outside a run"), gate.model_call(model="m", prompt_tokens=1, max_tokens=1):
        pass
    for arguments in ({"prompt_tokens": -1}, {"max_tokens": 1.5}, {"n": 0}, {"prompt_tokens": True}):
        with pytest.raises((ValueError, TypeError)):
            gate.model_call(**{"model": "m", "prompt_tokens": 1, "max_tokens": 1, **arguments})  # type: ignore[arg-type]


def test_policies_decide_on_models(tmp_path: Path) -> None:
    policies = """
    permit (principal, action == Action::"call_model", resource == Model::"m")
    when { context.input.max_tokens * context.input.n <= 50 && context.input.prompt_tokens < 1000 };
    """
    gate = opened(tmp_path, policies)
    with gate.run(principal='Agent::"x"', budget="acme"):
        with gate.model_call(model="m", prompt_tokens=10, max_tokens=50) as call:
            assert call.settle()
        for asked in ({"model": "other"}, {"n": 2}, {"prompt_tokens": 1000}):
            with pytest.raises(Denied, match="no policy permits model"):
                gate.model_call(**{"model": "m", "prompt_tokens": 10, "max_tokens": 50, **asked}).__enter__()  # type: ignore[arg-type]
    for name in ("call_model", "delegate"):
        assert gate.check(name).code == "scope.missing"
        with gate.run(principal='Agent::"x"'):
            assert gate.check(name).code == "input.unknown_tool"


def test_incremental_calls_hold_as_they_go(tmp_path: Path) -> None:
    gate = opened(tmp_path, budgets='[ledger]\nadmission = "incremental"\nincrement_tokens = 64\n' + BUDGETS)
    with gate.run(principal='Agent::"x"', budget="acme/a"):
        with gate.model_call(model="m", prompt_tokens=2800, max_tokens=5000) as call:
            assert counts(gate, "acme/a", "tokens") == (0, 2864)
            assert all(call.charge(50) for _ in range(4))
            assert not call.charge(1)
        assert counts(gate, "acme/a", "tokens") == (3001, 0)


def test_of_twenty_at_once_ten_go_ahead(gate: Gate) -> None:
    with gate.run(principal='Agent::"x"', budget="acme/a") as scope, ThreadPoolExecutor(20) as pool:
        decisions = list(pool.map(lambda _: gate.check("think", scope=scope), range(20)))
    assert sum(decision.allowed for decision in decisions) == 10
    assert {decision.code for decision in decisions} == {"allow", "budget.contended"}
    del decisions
    gc.collect()
    assert counts(gate, "acme/a", "tokens") == (3000, 0)


def test_shadow_counts_elsewhere_and_never_stops(tmp_path: Path) -> None:
    gate = opened(tmp_path, gate="[gate]\nmode = 'shadow'\n")
    before = everything(gate)
    with gate.run(principal='Agent::"x"', budget="acme/a"):
        codes = [gate.check("free").would_deny for _ in range(6)]
        assert codes == [None] * 4 + ["budget.exhausted"] * 2
        with gate.model_call(model="m", prompt_tokens=2500, max_tokens=600) as call:
            assert call.decision.would_deny == "budget.too_large"
            assert call.hold is not None
            assert call.charge(10_000)
            assert call.hold.charge(tokens=10_000)
    assert everything(gate) == before


def test_policies_read_what_is_left(tmp_path: Path) -> None:
    policies = (
        PERMIT
        + """
    @id("low") forbid (principal, action, resource)
    when { context has budget && context.budget has tokens && context.budget.tokens has "1d"
           && context.budget.tokens["1d"].tightest.remaining < 500 };
    """
    )
    gate = opened(tmp_path, policies)
    with gate.run(principal='Agent::"x"', budget="acme/a"):
        hold = gate.ledger.reserve("acme", tokens=9_600)  # type: ignore[union-attr]
        assert gate.check("free").policies == ["low"]
        hold.release()  # type: ignore[union-attr]
        assert gate.check("free").allowed


def test_reload_takes_changed_limits_from_a_state_file_only(tmp_path: Path) -> None:
    (tmp_path / "p.cedar").write_text(PERMIT)
    (tmp_path / "budgets.toml").write_text(BUDGETS)
    config = "[policy]\nfiles = ['p.cedar']\n[budget]\nfile = 'budgets.toml'\n"
    lower = BUDGETS.replace("limit = 3000", "limit = 400")
    state = "[ledger]\nvolatile = true\n"
    (tmp_path / "t.toml").write_text(config + TOOLS)
    memory = Gate.open(tmp_path / "t.toml")
    with memory.run(principal='Agent::"x"', budget="acme/a"):
        memory.check("think")
        memory.reload()
        (tmp_path / "budgets.toml").write_text(lower)
        with pytest.raises(BudgetError, match="in memory only") as caught:
            memory.reload()
        assert "state" in (caught.value.help or "")
        gc.collect()
        assert counts(memory, "acme/a", "tokens") == (300, 0)
        assert memory.check("think").allowed
    (tmp_path / "budgets.toml").write_text(state + BUDGETS)
    (tmp_path / "t.toml").write_text(config + "state = 'state/ledger.bin'\n" + TOOLS)
    with Gate.open(tmp_path / "t.toml") as gate, gate.run(principal='Agent::"x"', budget="acme/a"):
        kept = gate.check("think").hold
        assert kept is not None
        (tmp_path / "budgets.toml").write_text(state + lower)
        gate.reload()
        denied = gate.check("think")
        assert denied.code == "budget.contended"
        assert denied.denial is not None
        assert (denied.denial.limit, denied.denial.held) == (400, 300)
        assert kept.settle(tokens=50)
        assert gate.check("think").allowed
        (tmp_path / "t.toml").write_text(config + "state = 'elsewhere.bin'\n" + TOOLS)
        with pytest.raises(BudgetError, match="begin anew"):
            gate.reload()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_does_not_end_its_parents_hold(tmp_path: Path) -> None:
    (tmp_path / "p.cedar").write_text(PERMIT)
    (tmp_path / "budgets.toml").write_text("[ledger]\nvolatile = true\n" + BUDGETS)
    config = "[policy]\nfiles = ['p.cedar']\n[budget]\nfile = 'budgets.toml'\nstate = 'state/ledger.bin'\n"
    (tmp_path / "t.toml").write_text(config + TOOLS)
    with Gate.open(tmp_path / "t.toml") as gate, gate.run(principal='Agent::"x"', budget="acme"):
        decisions = [gate.check("think"), gate.check("think")]
        call = gate.model_call(model="m", prompt_tokens=10, max_tokens=10).__enter__()
        assert decisions[0].hold is not None
        child = os.fork()
        if child == 0:
            ours = decisions[1].hold is None and not call.charge(1)
            call.__exit__(None, None, None)
            decisions.clear()
            gc.collect()
            os._exit(0 if ours else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert counts(gate, "acme", "tokens") == (0, 620)
        assert call.settle(completion=0)
        decisions.clear()
        gc.collect()
        assert counts(gate, "acme", "tokens") == (610, 0)
