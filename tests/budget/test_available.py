"""``await ledger.available(...)``: in order, without polling, and gone without a trace when it is over."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tollkeeper import aio
from tollkeeper.budget import Ledger
from tollkeeper.testing import FakeClock

TEXT = """\
[budget."a"]
limits = [{ unit = "tokens", window = "total", limit = 100 }, { unit = "requests", window = "1m", limit = 1 }]
[budget."a/*"]
limits = [{ unit = "in_flight", window = "total", limit = 1 }]
"""
START_MS = 1_700_000_000_000
# What a thread and a loop on a busy machine may take.
PATIENCE_SECONDS = 10.0


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.from_toml(TEXT) as made:
        yield made


def waiting_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tollkeeper-available"]


async def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def waiting(ledger: Ledger) -> int:
    line = ledger._lines.get(os.getpid())
    return 0 if line is None else len(line._waiting)


def test_what_fits_is_answered_at_once_without_a_thread(ledger: Ledger) -> None:
    assert asyncio.run(ledger.available("a", {"tokens": 100}))
    assert not waiting_threads()
    assert ledger.usage("a")["tokens", "total"].held == 0


@pytest.mark.parametrize(("path", "cost"), [("a", {"tokens": 101}), ("none", {"tokens": 1})])
def test_what_never_fits_is_answered_at_once(ledger: Ledger, path: str, cost: dict[str, int]) -> None:
    assert not asyncio.run(ledger.available(path, cost))
    assert not waiting_threads()


@pytest.mark.parametrize("cost", [{"token": 1}, {"tokens": -1}, {"tokens": 1.5}])
def test_what_is_no_cost_is_an_error(ledger: Ledger, cost: dict[str, int]) -> None:
    with pytest.raises((TypeError, ValueError)):
        asyncio.run(ledger.available("a", cost))
    assert waiting(ledger) == 0


def test_time_runs_out(ledger: Ledger) -> None:
    hold = ledger.reserve("a", tokens=100)
    for timeout in (0, 0.02):
        assert not asyncio.run(ledger.available("a", {"tokens": 1}, timeout=timeout))
    assert waiting(ledger) == 0
    assert hold.release()


def test_first_come_first_served(ledger: Ledger) -> None:
    order: list[int] = []

    async def one(number: int, tokens: int) -> None:
        assert await ledger.available("a", {"tokens": tokens}, timeout=PATIENCE_SECONDS)
        hold = ledger.reserve("a", tokens=tokens)
        assert hold.granted, "nobody was told the same"
        order.append(number)
        await asyncio.sleep(0.01)
        assert hold.settle(tokens=0)

    async def main() -> None:
        hold = ledger.reserve("a", tokens=100)
        tasks = []
        # The small ones would fit before the large one, and must not pass it.
        for number, tokens in enumerate([60, 30, 100, 1, 99, 100]):
            tasks.append(asyncio.create_task(one(number, tokens)))
            await until(lambda number=number: waiting(ledger) == number + 1)
        assert len(waiting_threads()) == 1
        assert hold.release()
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4, 5]
        await until(lambda: not waiting_threads())

    asyncio.run(main())


def test_who_comes_while_others_wait_does_not_pass_them(ledger: Ledger) -> None:
    async def main() -> None:
        hold = ledger.reserve("a", tokens=50)
        first = asyncio.create_task(ledger.available("a", {"tokens": 100}))
        await until(lambda: waiting(ledger) == 1)
        second = asyncio.create_task(ledger.available("a", {"tokens": 10}))
        await until(lambda: waiting(ledger) == 2)
        assert not await ledger.available("a", {"tokens": 10}, timeout=0.05)
        assert hold.release()
        assert await asyncio.wait_for(first, PATIENCE_SECONDS)
        assert await asyncio.wait_for(second, PATIENCE_SECONDS)

    asyncio.run(main())


def test_who_wants_something_else_is_not_held_up(ledger: Ledger) -> None:
    async def main() -> None:
        hold = ledger.reserve("a", tokens=100)
        blocked = asyncio.create_task(ledger.available("a", {"tokens": 1}))
        await until(lambda: waiting(ledger) == 1)
        assert await ledger.available("a/x", {"in_flight": 1})
        slot = ledger.reserve("a/x", in_flight=1)
        other = asyncio.create_task(ledger.available("a/x", {"in_flight": 1}))
        await until(lambda: waiting(ledger) == 2)
        assert await ledger.available("a/y", {"in_flight": 1})
        assert slot.release()
        assert await asyncio.wait_for(other, PATIENCE_SECONDS)
        assert not blocked.done()
        assert hold.release()
        assert await asyncio.wait_for(blocked, PATIENCE_SECONDS)

    asyncio.run(main())


def test_a_cancelled_one_leaves_and_whom_it_held_up_goes(ledger: Ledger) -> None:
    async def main() -> None:
        hold = ledger.reserve("a", tokens=50)
        large = asyncio.create_task(ledger.available("a", {"tokens": 100}))
        await until(lambda: waiting(ledger) == 1)
        small = asyncio.create_task(ledger.available("a", {"tokens": 50}))
        await until(lambda: waiting(ledger) == 2)
        large.cancel()
        assert await asyncio.wait_for(small, PATIENCE_SECONDS)
        with pytest.raises(asyncio.CancelledError):
            await large
        assert hold.release()

    asyncio.run(main())
    assert waiting(ledger) == 0


def test_a_higher_limit_wakes(ledger: Ledger) -> None:
    async def main() -> None:
        assert ledger.reserve("a", tokens=100).settle(tokens=100)
        task = asyncio.create_task(ledger.available("a", {"tokens": 1}))
        await until(lambda: waiting(ledger) == 1)
        ledger.set_limit("a", "tokens", "total", 101)
        assert await asyncio.wait_for(task, PATIENCE_SECONDS)

    asyncio.run(main())


def test_the_end_of_a_window_wakes() -> None:
    clock = FakeClock(START_MS - START_MS % 60_000 + 59_950)
    ledger = Ledger.from_toml(TEXT, clock=clock)
    assert ledger.reserve("a", requests=1).granted

    async def main() -> None:
        task = asyncio.create_task(ledger.available("a", {"requests": 1}))
        await until(lambda: waiting(ledger) == 1)
        await asyncio.sleep(0.1)
        assert not task.done(), "the ledger's time stands still"
        clock.advance(50)
        assert await asyncio.wait_for(task, PATIENCE_SECONDS)

    asyncio.run(main())


def test_closing_answers_false(ledger: Ledger) -> None:
    async def main() -> None:
        hold = ledger.reserve("a", tokens=100)
        task = asyncio.create_task(ledger.available("a", {"tokens": 1}))
        await until(lambda: waiting(ledger) == 1)
        ledger.close()
        assert not await asyncio.wait_for(task, PATIENCE_SECONDS)
        assert not await ledger.available("a", {"tokens": 1})
        await until(lambda: not waiting_threads())
        assert hold.granted

    asyncio.run(main())


def test_several_loops_share_one_line(ledger: Ledger) -> None:
    spent: list[int] = []

    async def one() -> None:
        assert await ledger.available("a", {"tokens": 60}, timeout=PATIENCE_SECONDS)
        hold = ledger.reserve("a", tokens=60)
        if hold.granted:
            spent.append(1)
            await asyncio.sleep(0.001)
            assert hold.release()

    async def many() -> None:
        await asyncio.gather(*(one() for _ in range(20)))

    threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(spent) >= 20
    assert waiting(ledger) == 0
    assert ledger.usage("a")["tokens", "total"].held == 0


def test_the_ledger_is_hardly_asked_while_nothing_changes(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    ask = aio.Line.ask

    def counted(self: aio.Line, waiter: aio.Waiter) -> bool | None:
        nonlocal asked
        asked += 1
        return ask(self, waiter)

    async def main() -> None:
        hold = ledger.reserve("a", tokens=100)
        tasks = [asyncio.create_task(ledger.available("a", {"tokens": 1})) for _ in range(100)]
        await until(lambda: waiting(ledger) == 100)
        await asyncio.sleep(3 * aio.NAP_MS_MAX / 1000)
        monkeypatch.setattr(aio.Line, "ask", counted)
        start = time.monotonic()
        await asyncio.sleep(5 * aio.NAP_MS_MAX / 1000)
        # Of a hundred only the first is tried; one more if a full minute came in between.
        assert asked <= (time.monotonic() - start) * 1000 / aio.NAP_MS_MAX + 2
        assert hold.release()
        assert all(await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_SECONDS))

    asyncio.run(main())


def test_an_interpreter_that_ends_is_not_held_up() -> None:
    """The loop was stopped and left as it was, with somebody waiting."""
    code = f"""
import asyncio, time
from tollkeeper.budget import Ledger
ledger = Ledger.from_toml({TEXT!r})
hold = ledger.reserve("a", tokens=100)
loop = asyncio.new_event_loop()
task = loop.create_task(ledger.available("a", {{"tokens": 1}}))
loop.call_later(0.05, loop.stop)
loop.run_forever()
print("over", flush=True)
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)  # noqa: S603 - the code is above
    assert done.stdout == "over\n"
    assert time.monotonic() - start < PATIENCE_SECONDS


def test_the_package_loads_no_asyncio() -> None:
    code = "import sys, tollkeeper.budget; print({'asyncio', 'threading', 'msgspec'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - the code is above
    assert "asyncio" not in done.stdout
    assert "msgspec" not in done.stdout
