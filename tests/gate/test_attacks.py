"""What attackers of the gate have found, so that it stays closed.

Runs that come back, grants for something else, reloads that half happen.
"""

import asyncio
import contextvars
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import BudgetError, Denied, Gate, Principal
from tollkeeper._native import Control

POLICIES = """
@id("all") permit(principal, action, resource);
@id("no-handing-on") forbid(principal, action == Action::"delegate", resource == Agent::"stranger");
@id("wire") @approval("desk") permit(principal, action == Action::"wire", resource);
@id("hand") @approval("desk") permit(principal, action == Action::"delegate", resource == Agent::"coder");
"""
CONFIG = """
[policy]
files = ["p.cedar"]
[audit]
[state]
dir = "state"
[budget]
file = "budgets.toml"
state = "ledger.bin"
[tools.search]
resource = 'Mcp::"web"'
[tools.wire]
resource = 'Mcp::"bank"'
"""
BUDGETS = """
[budget."acme"]
limits = [{{ unit = "requests", window = "1d", limit = {limit} }}]
"""
NOW = 1_900_000_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p.cedar").write_text(POLICIES)
    (tmp_path / "budgets.toml").write_text(BUDGETS.format(limit=1000))
    (tmp_path / "tollkeeper.toml").write_text(CONFIG)
    return tmp_path


def test_a_scope_ends_with_every_run_around_it(gate: Gate) -> None:
    with gate.run(principal='Agent::"x"', tools=["search"]) as outer:
        kept = outer.narrowed(tools=["search"])
        inherited = contextvars.copy_context()
        assert gate.check("search", scope=kept).allowed
    assert gate.check("search", scope=kept).code == "scope.missing"
    with pytest.raises(ValueError, match="over"):
        outer.narrowed()
    with pytest.raises(ValueError, match="over"):
        inherited.run(gate.run)
    with pytest.raises(ValueError, match="over"):
        inherited.run(lambda: gate.run(principal='Agent::"x"'))


def test_a_task_that_outlives_its_run_starts_none_inside_it(gate: Gate) -> None:
    async def late() -> str:
        await asyncio.sleep(0.01)
        with gate.run():
            return gate.check("search").code

    async def main() -> None:
        async with gate.run(principal='Agent::"x"', tools=["search"]):
            task = asyncio.create_task(late())
        with pytest.raises(ValueError, match="over"):
            await task

    asyncio.run(main())


def test_a_refused_delegation_leaves_no_scope_that_counts(gate: Gate) -> None:
    with gate.run(principal='Agent::"x"'):
        refused = gate.delegate('Agent::"stranger"')
        with pytest.raises(Denied), refused:
            pass
        assert gate.check("search", scope=refused.scope).code == "scope.missing"
        with pytest.raises(ValueError, match="not allowed to begin"):
            refused.scope.narrowed()


def test_runs_nest_to_a_bound(gate: Gate) -> None:
    with gate.run(principal='Agent::"x"') as outer:
        scope = outer
        for _ in range(256):
            scope = scope.narrowed()
        assert gate.check("search", scope=scope).allowed
        with pytest.raises(ValueError, match="nested"):
            scope.narrowed()


def test_a_run_of_another_gate_in_between_widens_nothing(gate: Gate, folder: Path) -> None:
    with (
        Gate.open(folder / "tollkeeper.toml") as other,
        gate.run(principal='Agent::"x"', session="s", tools=["wire"]),
        other.run(principal='Agent::"y"'),
    ):
        with pytest.raises(ValueError, match="principal"):
            gate.run(principal='Agent::"z"')
        with gate.run() as inner:
            assert (inner.session, gate.check("search").code) == ("s", "policy.forbidden")


def test_a_refused_reload_changes_nothing(gate: Gate, folder: Path) -> None:
    (folder / "p.cedar").write_text('permit(principal, action == Action::"wire", resource);')
    (folder / "budgets.toml").write_text(BUDGETS.format(limit=7))
    (folder / "ledger.bin").chmod(0o000)
    (folder / "ledger.bin").rename(folder / "elsewhere")
    (folder / "ledger.bin").mkdir()
    with pytest.raises((BudgetError, OSError)):
        gate.reload()
    with gate.run(principal='Agent::"x"'):
        assert gate.check("search").allowed, "the policies before go on"


def grant(gate: Gate, ask: Callable[[], Any]) -> None:
    approval = gate.approval(ask())
    assert gate._state_dir is not None
    Control.open(gate._state_dir / "control.bin").answer(
        approval.id, granted=True, expires_ms=NOW, signature=None, now_ms=NOW - 1_000_000_000_000
    )


def test_a_grant_is_by_the_kind_that_was_asked(gate: Gate, folder: Path) -> None:
    with gate.run(principal='Agent::"x"'):
        grant(gate, lambda: gate.check("wire", {"amount": 1}))
        (folder / "p.cedar").write_text(POLICIES.replace('"desk"', '"ceo"'))
        gate.reload()
        assert gate.check("wire", {"amount": 1}).code == "approval.required"


def test_a_grant_is_for_the_principal_as_it_was_described(gate: Gate) -> None:
    with gate.run(principal=Principal('Agent::"v"', {"level": 1})):
        grant(gate, lambda: gate.check("wire", {"amount": 1}))
    with gate.run(principal=Principal('Agent::"v"', {"level": 2})):
        assert gate.check("wire", {"amount": 1}).code == "approval.required"
    with gate.run(principal=Principal('Agent::"v"', {"level": 1}), on_behalf_of='User::"boss"'):
        assert gate.check("wire", {"amount": 1}).code == "approval.required"
    with gate.run(principal=Principal('Agent::"v"', {"level": 1})):
        assert gate.check("wire", {"amount": 1}).allowed


def test_an_approved_delegation_is_as_narrow_as_it_was_asked(gate: Gate) -> None:
    forbid = 'forbid(principal, action == Action::"search", resource);'

    def asked(**narrow: Any) -> Any:
        delegation = gate.delegate('Agent::"coder"', **narrow)
        with pytest.raises(Denied), delegation:
            pass
        return delegation.decision

    with gate.run(principal='Agent::"x"'):
        grant(gate, lambda: asked(forbid=forbid))
        assert asked().code == "approval.required"
        with gate.delegate('Agent::"coder"', forbid=forbid):
            assert gate.check("search").code == "policy.forbidden"


def test_of_two_who_ask_either_may_be_answered(gate: Gate) -> None:
    assert gate._state_dir is not None
    control = Control.open(gate._state_dir / "control.bin")
    with gate.run(principal='Agent::"x"'):
        decision = gate.check("wire", {})
        binding = decision._binding
        assert binding is not None
        for number in (1, 2):
            control.ask(f"{number:016x}", binding[1], NOW, 1_795_000_000_000 + number)
        control.answer(f"{1:016x}", granted=True, expires_ms=NOW, signature=None, now_ms=1_795_000_000_010)
        assert gate.check("wire", {}).approval == f"{1:016x}"


def test_what_was_denied_has_no_outcome(gate: Gate) -> None:
    with gate.run(principal='Agent::"x"', tools=["search"]):
        assert gate.outcome(gate.check("wire")) is False


def test_a_function_that_returns_a_coroutine_is_not_guarded_as_if_it_had_run(gate: Gate) -> None:
    ran: list[str] = []

    async def work() -> None:
        ran.append("it ran")

    @gate.guard(tool="search")
    def search() -> Any:
        return work()

    with gate.run(principal='Agent::"x"'), pytest.raises(TypeError, match="async def"):
        search()
    assert not ran


def test_who_could_not_be_revoked_may_not_act(gate: Gate) -> None:
    with pytest.raises(Exception, match="512"):
        gate.run(principal=f'Agent::"{"x" * 600}"')
