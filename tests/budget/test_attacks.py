"""What attacks on the ledger found, each as the shortest program that showed it."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tollkeeper import BudgetError, HandleError, Hold, Ledger, Meter
from tollkeeper.testing import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

MINUTE_MS = 60_000
NOW_MS = 1_795_276_420_000
TOTAL = ("tokens", "total")


def tokens(path: str, limit: int, window: str = "total") -> str:
    return f'[budget."{path}"]\nlimits = [{{ unit = "tokens", window = "{window}", limit = {limit} }}]\n'


def granted(got: object) -> Hold:
    assert isinstance(got, Hold), got
    return got


def u32(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array(values, np.uint32)


def test_long_calls_of_one_tenant_do_not_shut_the_windows_of_another() -> None:
    clock = FakeClock(NOW_MS)
    ledger = Ledger.from_toml(tokens("a", 1000, "1m") + tokens("b", 1000, "1m"), clock=clock)
    kept = []
    for _ in range(40):
        granted(ledger.reserve("b", tokens=1)).settle(tokens=1)
        got = ledger.reserve("a", tokens=1)
        kept.append(got)
        clock.advance(MINUTE_MS)
    # The one who keeps sixteen windows is the one who has no other left.
    assert [got.granted for got in kept] == [True] * 16 + [False] * 24
    assert {got.code for got in kept[16:]} == {"budget.contended"}


def test_more_requests_than_granted_are_owed() -> None:
    ledger = Ledger.from_toml('[budget."a"]\nlimits = [{ unit = "requests", window = "total", limit = 10 }]')
    hold = granted(ledger.reserve("a", requests=1))
    hold.charge(requests=4)
    assert hold.settle(requests=6)
    usage = ledger.usage("a")["requests", "total"]
    assert (usage.used, usage.available) == (6, 4)


def test_a_cached_discount_stops_at_the_prompt() -> None:
    ledger = Ledger.from_toml(tokens("a", 1000))
    meter = Meter(ledger)
    slots, _ = meter.reserve_many(u32(meter.node("a")), u32(10), u32(100))
    meter.charge(slots, u32(50), None, np.zeros(1, np.uint8))
    meter.settle_many(slots, u32(60))
    assert ledger.usage("a")[TOTAL].used == 50


def test_the_slot_of_an_expired_hold_is_not_charged_by_its_old_engine() -> None:
    clock = FakeClock(NOW_MS)
    head = "[ledger]\nholds = 1\nhold_ttl_s = 60\n"
    ledger = Ledger.from_toml(head + tokens("one", 100) + tokens("two", 1000), clock=clock)
    one, two = Meter(ledger), Meter(ledger)
    old, _ = one.reserve_many(u32(one.node("one")), u32(0), u32(100))
    clock.advance(61_000)
    new, _ = two.reserve_many(u32(two.node("two")), u32(0), u32(500))
    assert old == new
    stop = np.zeros(1, np.uint8)
    assert one.charge(old, u32(100), None, stop) == 1
    assert stop[0] == 255
    two.charge(new, u32(7), None, stop)
    two.settle_many(new)
    assert ledger.usage("two")[TOTAL].used == 7


def test_a_clock_that_was_wrong_can_be_set_right(tmp_path: Path) -> None:
    text = "[ledger]\nvolatile = true\n" + tokens("a", 100, "1m")
    far = FakeClock(4_102_444_800_000)
    with Ledger.from_toml(text, state=tmp_path / "l.bin", clock=far) as ledger:
        granted(ledger.reserve("a", tokens=100)).settle(tokens=100)
    with Ledger.from_toml(text, state=tmp_path / "l.bin", clock=FakeClock(NOW_MS)) as ledger:
        assert ledger.reserve("a", tokens=1).code == "budget.exhausted"
        ledger.accept_clock()
        assert ledger.clock_skew_ms == 0
        granted(ledger.reserve("a", tokens=1))


def test_a_state_file_that_was_removed_is_noticed(tmp_path: Path) -> None:
    state = tmp_path / "l.bin"
    with Ledger.from_toml("[ledger]\nvolatile = true\n" + tokens("a", 100), state=state) as ledger:
        state.unlink()
        for _ in range(100):
            got = ledger_reserve(ledger)
            if got == "budget.unavailable":
                break
            threading.Event().wait(0.05)
        assert got == "budget.unavailable"


def ledger_reserve(ledger: Ledger) -> str:
    try:
        got = ledger.reserve("a", tokens=1)
    except BudgetError as error:
        if error.code != "budget.state_replaced":
            raise
        return "budget.unavailable"
    if isinstance(got, Hold):
        got.release()
    return got.code


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_locks_the_file_that_it_has_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ledger = Ledger.from_toml("[ledger]\nvolatile = true\n" + tokens("a", 1000), state="l.bin")
    hold = granted(ledger.reserve("a", tokens=300))
    # Under the name lies a copy now, and the name is no longer where the process is.
    (tmp_path / "copy").write_bytes((tmp_path / "l.bin").read_bytes())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            granted(ledger.reserve("a", tokens=5)).settle(tokens=5)
            ledger.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert hold.live
    assert hold.settle(tokens=900)
    assert ledger.usage("a")[TOTAL].used == 905


def test_another_boot_id_does_not_wipe_a_ledger_in_use(tmp_path: Path) -> None:
    state, text = tmp_path / "l.bin", "[ledger]\nvolatile = true\n" + tokens("a", 1000)
    with Ledger.from_toml(text, state=state) as ledger:
        hold = granted(ledger.reserve("a", tokens=300))
        with state.open("r+b") as file:
            file.seek(40)
            file.write(bytes(16))
        with pytest.raises(BudgetError) as refused:
            Ledger.from_toml(text, state=state)
        assert refused.value.code == "budget.state_corrupt"
        assert hold.live


def test_closing_waits_for_batches(tmp_path: Path) -> None:
    state = tmp_path / "l.bin"
    text = "[ledger]\nvolatile = true\nholds = 8192\n" + tokens("a", 10**9) + tokens("a/b", 10**9)
    guard = Ledger.from_toml(text, state=state)
    for _ in range(20):
        ledger = Ledger.from_toml(text, state=state)
        meter = Meter(ledger)
        nodes = np.full(4096, meter.node("a/b"), np.uint32)
        ones = np.ones(4096, np.uint32)

        def engine(meter: Meter = meter, nodes: np.ndarray = nodes, ones: np.ndarray = ones) -> None:
            try:
                while True:
                    slots, _ = meter.reserve_many(nodes, ones, ones)
                    meter.settle_many(slots)
            except (BudgetError, HandleError):
                return

        thread = threading.Thread(target=engine)
        thread.start()
        threading.Event().wait(0.01)
        ledger.close()
        thread.join(5)
        assert not thread.is_alive()
        del meter, ledger
    guard.recover()
    assert not guard.holds()
    for path in ("a", "a/b"):
        usage = guard.usage(path)[TOTAL]
        assert usage.used + usage.available == 10**9
        assert usage.held == usage.stranded == 0
    guard.close()
    Ledger.from_toml(text, state=state).close()


def test_whoever_waits_in_a_closed_loop_holds_up_nobody() -> None:
    ledger = Ledger.from_toml(tokens("a", 100))
    hold = granted(ledger.reserve("a", tokens=60))
    loop = asyncio.new_event_loop()
    task = loop.create_task(ledger.available("a", {"tokens": 90}))
    loop.run_until_complete(asyncio.sleep(0.05))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    assert asyncio.run(ledger.available("a", {"tokens": 30}, timeout=5))
    assert hold.release()
    ledger.close()


def test_an_expired_hold_is_noticed_by_whoever_waits() -> None:
    clock = FakeClock(NOW_MS)
    ledger = Ledger.from_toml(tokens("a", 100), clock=clock)
    hold = granted(ledger.reserve("a", tokens=100, ttl_ms=1000))
    assert ledger.explain("a", tokens=1)
    clock.advance(2000)
    assert not ledger.explain("a", tokens=1)
    assert not hold.live


def test_debt_is_made_durable_without_another_reserve(tmp_path: Path) -> None:
    text, state = tokens("a", 100_000), tmp_path / "l.bin"
    try:
        ledger = Ledger.from_toml(text, state=state)
    except BudgetError as error:
        if error.code != "budget.state_volatile":
            raise
        pytest.skip("the temporary folder lies in memory")
    granted(ledger.reserve("a", tokens=1)).settle(tokens=500_000)
    for _ in range(100):
        threading.Event().wait(0.05)
        data = bytearray(state.read_bytes())
        data[40:56] = bytes(byte ^ 0xFF for byte in data[40:56])
        (tmp_path / "after.bin").write_bytes(data)
        with Ledger.from_toml(text, state=tmp_path / "after.bin") as after:
            used = after.usage("a")[TOTAL].used
        if used >= 500_000:
            break
        (tmp_path / "after.bin").unlink()
    assert used >= 500_000
    ledger.close()


def test_looking_at_a_ledger_changes_no_limit(tmp_path: Path) -> None:
    from tollkeeper.cli import main  # noqa: PLC0415 - only this test runs a command

    state, budgets, other = tmp_path / "l.bin", tmp_path / "budgets.toml", tmp_path / "other.toml"
    budgets.write_text("[ledger]\nvolatile = true\n" + tokens("a", 100))
    other.write_text("[ledger]\nvolatile = true\n" + tokens("a", 1_000_000))
    with Ledger.open(budgets, state=state) as ledger:
        assert main(["budget", "show", "--budgets", str(other), "--state", str(state)]) == 0
        assert ledger.reserve("a", tokens=5000).code == "budget.too_large"
