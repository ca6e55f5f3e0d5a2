"""``await log.durable(...)``: one counter for each event loop, gone without a trace when nobody waits.

Where it has to be known when a record becomes durable, a log that is told so by the test stands in for a real one.
"""

import asyncio
import gc
import importlib.util
import os
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from tollkeeper import AuditError, AuditLog, HandleError, aio

PATIENCE_SECONDS = 30.0
Loops = Callable[[], asyncio.AbstractEventLoop]


def new_uvloop() -> asyncio.AbstractEventLoop:
    return importlib.import_module("uvloop").new_event_loop()  # type: ignore[no-any-return]


@pytest.fixture(
    params=[
        asyncio.new_event_loop,
        pytest.param(
            new_uvloop,
            marks=pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed"),
        ),
    ],
    ids=["asyncio", "uvloop"],
)
def loops(request: pytest.FixtureRequest) -> Loops:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    # Small, for the room that a log takes in advance.
    sizes = {"ring_bytes": 512 << 10, "segment_bytes": 16 << 20}
    with AuditLog.open(tmp_path / "log", origin="example.com/gate", checkpoint_interval_ms=60_000, **sizes) as log:
        yield log
    shutil.rmtree(tmp_path)


def run(loops: Loops, main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await main

    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(bounded())


def descriptors() -> int:
    """How many counters this process has open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names are all there is
        try:
            count += os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventfd]"  # noqa: PTH115 - it leads nowhere
        except FileNotFoundError:
            # The one that lists them.
            continue
    return count


async def until_open(count: int) -> None:
    """Waits until so many are open: the writer may be about to tell one that nobody waits with any more."""
    end = time.monotonic() + PATIENCE_SECONDS
    while descriptors() != count:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


class Counter:
    """Stands in for a native `AuditWatch`."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self.descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class Told:
    """A log whose records are durable when the test says so."""

    def __init__(self) -> None:
        self.reached = 0
        self.error: Exception | None = None
        self.counters: WeakSet[Counter] = WeakSet()
        self.asked: list[str] = []

    def _is_durable(self, seq: int, durability: str) -> bool:  # noqa: ARG002 - the name of the real one
        if seq > self.reached and self.error is not None:
            raise self.error
        return seq <= self.reached

    def _request(self, durability: str) -> None:
        self.asked.append(durability)

    def _watch(self) -> Any:
        counter = Counter()
        self.counters.add(counter)
        return counter

    def reach(self, seq: int) -> None:
        self.reached = seq
        for counter in self.counters:
            os.eventfd_write(counter.fileno(), 1)


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


# --- a real log ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["group", "sync", "checkpointed"])
def test_a_record_becomes_durable(loops: Loops, log: AuditLog, durability: str) -> None:
    async def main() -> None:
        seq = log.append({"text": "first"})
        await log.durable(seq, durability)
        if durability != "group":
            log.wait(seq, durability, timeout=0)
        # What is durable already needs no counter.
        await log.durable(seq, durability)

    run(loops, main())


@pytest.mark.parametrize("durability", ["sync", "checkpointed"])
def test_a_thousand_wait_at_once(loops: Loops, log: AuditLog, durability: str) -> None:
    before = descriptors()
    most = 0

    async def one(number: int) -> None:
        nonlocal most
        await log.durable(log.append({"number": number}), durability)
        most = max(most, descriptors() if number % 100 == 0 else 0)

    async def main() -> None:
        own = descriptors()
        await asyncio.gather(*(one(number) for number in range(1_000)))
        assert most <= own + 2, "one counter for all of them, of which the log has another descriptor"
        await until_open(own)

    run(loops, main())
    assert descriptors() == before
    assert log._line is not None
    assert not log._line._watches


def test_one_after_the_other(loops: Loops, log: AuditLog) -> None:
    async def main() -> None:
        own = descriptors()
        for _ in range(50):
            await log.durable(log.append({}))
        await until_open(own)

    run(loops, main())


def test_loops_in_several_threads(loops: Loops, log: AuditLog) -> None:
    done: list[int] = []

    async def main() -> None:
        for _ in range(20):
            await asyncio.gather(*(log.durable(log.append({})) for _ in range(10)))
        done.append(1)

    threads = [threading.Thread(target=lambda: run(loops, main())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 4
    assert log._line is not None
    assert not log._line._watches


def test_a_record_that_is_not_there(loops: Loops, log: AuditLog) -> None:
    async def main() -> None:
        with pytest.raises(AuditError, match="there is no record 1; the last one is 0"):
            await log.durable(1)
        with pytest.raises(AuditError, match="there is no durability `on_disk`"):
            await log.durable(log.append({}), "on_disk")

    run(loops, main())


def test_closing_answers_those_who_wait(loops: Loops, log: AuditLog) -> None:
    async def main() -> None:
        waiting = [
            asyncio.create_task(log.durable(log.append({}), durability))
            for durability in ("sync", "checkpointed")
            for _ in range(20)
        ]
        await asyncio.sleep(0)
        await asyncio.to_thread(log.close)
        # The last write and the last checkpoint cover everything.
        await asyncio.gather(*waiting)
        with pytest.raises(HandleError) as caught:
            await log.durable(1)
        assert caught.value.code == "gate.closed"

    run(loops, main())


def test_a_child_of_a_fork_waits_for_nothing(log: AuditLog) -> None:
    async def main() -> None:
        seq = log.append({})
        waiting = asyncio.create_task(log.durable(seq, "checkpointed"))
        await asyncio.sleep(0)
        assert log._line is not None
        (watch,) = log._line._watches.values()
        child = os.fork()
        if child == 0:
            # It shares the loop's selector with its parent, and must take nothing from it.
            watch._look()
            watch.end()
            try:
                log.durable(seq).send(None)
            except HandleError as error:
                os._exit(0 if error.code == "gate.forked" else 1)
            os._exit(1)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await waiting

    run(asyncio.new_event_loop, main())


# --- one that is told ---------------------------------------------------------------------------------------------


def test_those_whose_turn_it_is_are_answered(loops: Loops) -> None:
    log, line = Told(), aio.Durable()
    order: list[int] = []

    async def one(seq: int) -> None:
        await line.wait(log, seq, "sync")
        order.append(seq)

    async def main() -> None:
        tasks = [asyncio.create_task(one(seq)) for seq in (3, 1, 2, 5, 4, 1)]
        await settle()
        assert len(log.counters) == 1
        log.reach(2)
        await settle()
        assert order == [1, 1, 2]
        asked = len(log.asked)
        log.reach(2)
        await settle()
        assert len(log.asked) == asked + 1, "what is not there yet is asked for again"
        log.reach(9)
        await asyncio.gather(*tasks)
        assert order == [1, 1, 2, 3, 4, 5]
        assert not line._watches

    before = descriptors()
    run(loops, main())
    assert descriptors() == before


def test_who_is_cancelled_leaves_no_trace(loops: Loops) -> None:
    log, line = Told(), aio.Durable()

    async def main() -> None:
        own = descriptors()
        stays = asyncio.create_task(line.wait(log, 1, "sync"))
        await settle()
        (watch,) = line._watches.values()
        for _ in range(10):
            tasks = [asyncio.create_task(line.wait(log, 2, "sync")) for _ in range(100)]
            await settle()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert len(watch._heaps["sync"]) <= aio.CANCELLED_MAX + 3
        assert watch.waiting == 1
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(line.wait(log, 2, "sync"), 0.01)
        log.reach(1)
        await stays
        assert not line._watches
        assert descriptors() == own
        only = asyncio.create_task(line.wait(log, 2, "sync"))
        await settle()
        only.cancel()
        await settle()
        assert not line._watches
        assert descriptors() == own

    run(loops, main())


def test_a_log_that_gives_up_says_so_to_everybody(loops: Loops) -> None:
    log, line = Told(), aio.Durable()

    async def main() -> None:
        tasks = [asyncio.create_task(line.wait(log, seq, "sync")) for seq in (1, 2, 3)]
        await settle()
        log.error = AuditError("the ring is gone", "audit.unavailable")
        log.reach(1)
        first, *others = await asyncio.gather(*tasks, return_exceptions=True)
        assert first is None
        assert [(type(other), str(other)) for other in others] == [(AuditError, "the ring is gone")] * 2
        assert others[0] is not others[1]
        assert not line._watches

    run(loops, main())


def test_a_loop_that_was_closed_is_forgotten(loops: Loops) -> None:
    log, line = Told(), aio.Durable()
    before = descriptors()
    closed = loops()
    # It is told that a task was destroyed while it was pending.
    closed.set_exception_handler(lambda *_: None)
    closed.create_task(line.wait(log, 1, "sync"))
    closed.run_until_complete(settle())
    closed.close()
    assert len(line._watches) == len(log.counters) == 1

    async def main() -> None:
        waiting = asyncio.create_task(line.wait(log, 1, "sync"))
        await settle()
        assert list(line._watches) == [asyncio.get_running_loop()]
        gc.collect()
        assert len(log.counters) == 1
        log.reach(1)
        await waiting

    run(loops, main())
    del closed
    gc.collect()
    assert descriptors() == before
