"""Waiting for room in a ledger and for records of an audit log to be durable, from any number of event loops.

A ledger tells that something was given back by a counter in shared memory, on which a thread can sleep; asyncio cannot.
So one thread for each ledger sleeps there while somebody waits, and ends when nobody does. Whether a request fits is
asked of the ledger; this file only decides whom to ask for next. It reserves nothing.

Who came first goes first, among those that compete: a request is not tried while an earlier one is refused by a limit
that it would use as well. Requests that are refused elsewhere do not hold it up. Requests of the same path and units
stand in one line, of which only the head is tried.

An audit log tells that more of it is durable by a counter that is a file descriptor: each event loop in which somebody
waits has one, and closes it when nobody does. There a thread is not needed.
"""

import asyncio
import copy
import heapq
import itertools
import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tollkeeper.errors import HandleError

if TYPE_CHECKING:
    from tollkeeper._native import AuditLog, AuditWatch
    from tollkeeper.budget import Denial, Ledger

__all__ = ["Durable", "Line"]

# How long the thread sleeps at most: not to look for room, which wakes it, but to notice that the interpreter ends.
NAP_MS_MAX: Final = 1000
# How long the next in line waits for the one before it to reserve: its event loop may be stuck.
HANDOVER_SECONDS: Final = 0.1
# No wake-up is worth less: a clock that stands still, as in tests, would make the thread spin.
PAUSE_SECONDS_MIN: Final = 0.005
# Every window ends on a full minute.
MINUTE_SECONDS: Final = 60.0
# Refusals that no wait ends.
HOPELESS: Final = ("budget.too_large", "budget.unavailable", "budget.unpriced")


class Waiter:
    """One coroutine that waits."""

    __slots__ = ("cells", "cost", "due", "future", "loop", "path", "units")

    def __init__(self, path: str, cost: Mapping[str, int], loop: asyncio.AbstractEventLoop) -> None:
        self.path = path
        self.cost = dict(cost)
        self.units = frozenset(unit for unit, amount in cost.items() if amount)
        self.loop = loop
        self.future: asyncio.Future[bool] = loop.create_future()
        self.cells: frozenset[tuple[str, str]] = frozenset()
        """Path and unit of what refused it last."""
        self.due = 0.0
        """When time alone may have changed the answer, on the monotonic clock."""

    @property
    def line(self) -> tuple[str, frozenset[str]]:
        """Those of one line want the same things, if not as much of them."""
        return self.path, self.units

    def competes(self, cells: Iterable[tuple[str, str]]) -> bool:
        """Whether it would use one of these."""
        return any(
            unit in self.units and (self.path == path or self.path.startswith(f"{path}/")) for path, unit in cells
        )


class Line:
    """Those who wait for room in one ledger.

    Args:
        ledger: The ledger.
    """

    def __init__(self, ledger: "Ledger") -> None:
        self._ledger = ledger
        self._lock = threading.Lock()
        self._waiting: list[Waiter] = []
        self._thread: threading.Thread | None = None
        self._news = False
        """Somebody came or went: those in line are tried again."""

    def ask(self, waiter: Waiter) -> bool | None:
        """Asks the ledger; ``None`` is not yet."""
        if self._ledger.closed:
            return False
        denials = self._ledger.explain(waiter.path, **waiter.cost)
        if not denials:
            return True
        if any(denial.code in HOPELESS for denial in denials):
            return False
        waiter.cells = frozenset((denial.path, denial.unit or "") for denial in denials)
        waiter.due = time.monotonic() + _pause(denials)
        return None

    def join(self, waiter: Waiter) -> bool | None:
        """Asks once, unless somebody is before; ``None`` if the answer comes with the waiter's future."""
        while True:
            seen = self._ledger.change_count()
            answer = self.ask(waiter)
            with self._lock:
                self._forget_closed_loops()
                others = [other for other in self._waiting if other is not waiter]
                blocked = any(other.line == waiter.line or waiter.competes(other.cells) for other in others)
                if answer is False or (answer and not blocked):
                    return answer
                if waiter not in self._waiting:
                    self._waiting.append(waiter)
                    self._news = True
                    self._start()
                    self._wake()
            # What changed before the waiter stood in line is seen here, what changes after it by the thread.
            if blocked or self._ledger.change_count() == seen:
                return None

    def _forget_closed_loops(self) -> None:
        """Under the lock. Nobody is left there to be answered, and whoever came later would wait for them."""
        self._waiting = [waiter for waiter in self._waiting if not waiter.loop.is_closed()]

    def leave(self, waiter: Waiter) -> None:
        """The waiter has its answer, or wants none any more; whom it held up is tried."""
        with self._lock:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                self._news = True

    async def available(self, path: str, cost: Mapping[str, int], timeout: float | None) -> bool:  # noqa: ASYNC109 - see Ledger.available
        """See `Ledger.available`."""
        waiter = Waiter(path, cost, asyncio.get_running_loop())
        try:
            answer = self.join(waiter)
            if answer is not None:
                return answer
            async with asyncio.timeout(timeout):
                return await waiter.future
        except TimeoutError:
            return False
        except HandleError:
            if self._ledger.closed:
                return False
            raise
        finally:
            self.leave(waiter)

    def close(self) -> None:
        """Answers everybody with False."""
        self._answer_all(None)

    def _answer_all(self, error: Exception | None) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            self._answer(waiter, answer=False, error=error)

    def _start(self) -> None:
        """Under the lock. Not a daemon: those are killed in the middle of native code when the interpreter ends."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tollkeeper-available")
            self._thread.start()

    def _run(self) -> None:
        # Watched, every change is counted, also between two sleeps: none is missed.
        self._ledger._watch()  # noqa: SLF001 - this is the ledger's own thread
        try:
            while True:
                seen = self._ledger.change_count()
                with self._lock:
                    if self._over():
                        self._thread = None
                        break
                    self._news = False
                    self._forget_closed_loops()
                    waiting = list(self._waiting)
                due = self._pass(waiting)
                if not self._news:
                    self._ledger.wait_for_change(seen, _slice_ms(due))
        except Exception as error:  # noqa: BLE001 - whoever waits gets it; a thread has nobody to raise it to
            with self._lock:
                self._thread = None
            self._answer_all(None if self._ledger.closed else error)
        else:
            if self._ledger.closed:
                self._answer_all(None)
        finally:
            self._ledger._unwatch()  # noqa: SLF001 - as above

    def _wake(self) -> None:
        """Has the thread look again: somebody came, or has their answer."""
        if not self._ledger.closed:
            self._ledger._wake()  # noqa: SLF001 - as above

    def _over(self) -> bool:
        """Whether the thread has nothing left to do. The main thread is over once the interpreter is ending."""
        return not self._waiting or self._ledger.closed or not threading.main_thread().is_alive()

    def _pass(self, waiting: list[Waiter]) -> float:
        """Tries everybody whose turn it is; returns when time alone may change an answer."""
        due = time.monotonic() + MINUTE_SECONDS
        refused: set[tuple[str, str]] = set()
        lines: set[tuple[str, frozenset[str]]] = set()
        for waiter in waiting:
            if waiter.line in lines or waiter.competes(refused):
                lines.add(waiter.line)
                continue
            answer = self.ask(waiter)
            if answer is None:
                lines.add(waiter.line)
                refused |= waiter.cells
                due = min(due, waiter.due)
                continue
            self.leave(waiter)
            handed = self._answer(waiter, answer=answer)
            if handed and answer:
                handed.wait(HANDOVER_SECONDS)
        return due

    @staticmethod
    def _answer(waiter: Waiter, *, answer: bool = False, error: Exception | None = None) -> threading.Event | None:
        """Answers in the waiter's loop. The event is set once the waiter has run on, and reserved."""
        handed = threading.Event()

        def resolve() -> None:
            if waiter.future.done():
                pass
            elif error is not None:
                waiter.future.set_exception(error)
            else:
                waiter.future.set_result(answer)
            # The waiter's next step is in the loop's queue now; this comes after it.
            waiter.loop.call_soon(handed.set)

        try:
            waiter.loop.call_soon_threadsafe(resolve)
        except RuntimeError:
            # The loop is closed, and nobody is there to be answered.
            return None
        return handed


def _pause(denials: "list[Denial]") -> float:
    """Seconds until time alone may change the answer: every window ends on a full minute, and a refusal may tell which.

    The next minute is taken even where the refusal names a later one: a clock can be set.
    """
    pause = MINUTE_SECONDS - time.time() % MINUTE_SECONDS
    told = [denial.retry_after for denial in denials if denial.code == "budget.exhausted" and denial.retry_after]
    return max(PAUSE_SECONDS_MIN, min([pause, *told]))


def _slice_ms(due: float) -> int:
    return max(1, min(NAP_MS_MAX, int((due - time.monotonic()) * 1000) + 1))


# Those who were cancelled stay in the heap until there are this many more of them than of those who wait.
CANCELLED_MAX: Final = 64


class Watch:
    """Those of one event loop who wait for records of one log. Used in the thread of that loop only.

    Args:
        log: The log.
        loop: The loop.
    """

    def __init__(self, log: "AuditLog", loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waiting = 0
        """How many wait; the watch ends with the last."""
        self._log = log
        self._heaps: dict[str, list[tuple[int, int, asyncio.Future[None]]]] = {}
        """By durability: those who wait, by sequence number and then in the order in which they came."""
        self._numbers = itertools.count()
        self._watch: AuditWatch | None = log._watch()  # noqa: SLF001 - this is the log's own waiting
        loop.add_reader(self._watch.fileno(), self._look)

    def join(self, seq: int, durability: str) -> asyncio.Future[None]:
        """The future of somebody who waits; `leave` has to follow."""
        future: asyncio.Future[None] = self.loop.create_future()
        self.waiting += 1
        heapq.heappush(self._heaps.setdefault(durability, []), (seq, next(self._numbers), future))
        # What became durable before there was a counter is seen here, what does later by the counter.
        self._tell(durability)
        return future

    def leave(self, durability: str) -> None:
        """Somebody has their answer, or wants none any more."""
        self.waiting -= 1
        heap = self._heaps[durability]
        if not self.waiting:
            self.end()
        elif len(heap) > 2 * self.waiting + CANCELLED_MAX:
            heap[:] = [entry for entry in heap if not entry[2].done()]
            heapq.heapify(heap)

    def _look(self) -> None:
        """The counter has something to tell."""
        if self._watch is not None:
            # Refused in a child of a fork, which must not take what was meant for its parent.
            with suppress(BlockingIOError, HandleError):
                os.eventfd_read(self._watch.fileno())
        for durability in self._heaps:
            self._tell(durability)

    def _tell(self, durability: str) -> None:
        """Answers everybody whose record is durable, and all of them if no more will be."""
        heap = self._heaps[durability]
        try:
            while heap:
                seq, _, future = heap[0]
                if not future.done():
                    if not self._log._is_durable(seq, durability):  # noqa: SLF001 - as above
                        # Again, for what was asked for while a write was going on came too late for it.
                        self._log._request(durability)  # noqa: SLF001 - as above
                        return
                    future.set_result(None)
                heapq.heappop(heap)
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            while heap:
                future = heapq.heappop(heap)[2]
                if not future.done():
                    # To each their own: an exception collects the places through which it was raised.
                    future.set_exception(copy.copy(error))

    def end(self) -> None:
        """Lets go of the counter."""
        watch, self._watch = self._watch, None
        if watch is None:
            return
        # A child of a fork has its parent's selector too: removing the counter there would take it from the parent.
        with suppress(HandleError):
            descriptor = watch.fileno()
            if not self.loop.is_closed():
                self.loop.remove_reader(descriptor)


class Durable:
    """Those who wait for records of one log, in any number of event loops."""

    def __init__(self) -> None:
        # Entered again by a coroutine that goes with a loop that is forgotten.
        self._lock = threading.RLock()
        self._watches: dict[asyncio.AbstractEventLoop, Watch] = {}

    async def wait(self, log: "AuditLog", seq: int, durability: str) -> None:
        """Waits until a record is as certain as that; see `AuditLog.durable`."""
        if log._is_durable(seq, durability):  # noqa: SLF001 - this is the log's own waiting
            return
        loop = asyncio.get_running_loop()
        with self._lock:
            self._forget_closed_loops()
            watch = self._watches.get(loop)
            if watch is None:
                watch = self._watches[loop] = Watch(log, loop)
        future = watch.join(seq, durability)
        try:
            await future
        finally:
            watch.leave(durability)
            with self._lock:
                if not watch.waiting and self._watches.get(loop) is watch:
                    del self._watches[loop]

    def _forget_closed_loops(self) -> None:
        """Under the lock. Nobody is left there to be told, and its counter would stay open."""
        for loop in [loop for loop in self._watches if loop.is_closed()]:
            self._watches.pop(loop).end()
