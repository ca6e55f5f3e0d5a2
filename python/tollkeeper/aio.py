"""Waiting from any number of event loops: for room in a ledger, for records of an audit log, for answers to questions.

An event loop sleeps on descriptors. What it waits for here says so by counters in shared memory, on which only threads
can sleep, or from the thread that writes a log. So each loop in which somebody waits has one counter that is a
descriptor, its `Wakeups`, and everything that may end a wait counts it up: a log's writer itself, and for a ledger or a
table of approvals one thread that sleeps natively while somebody waits. Nobody polls, and nothing of this is left when
nobody waits: no descriptor, no reader in the loop, no thread. Importing this file starts nothing.

Whether a request fits is asked of the ledger; this file only decides whom to ask for next. It reserves nothing. Who
came first goes first, among those that compete: a request is not tried while an earlier one is refused by a limit that
it would use as well. Requests that are refused elsewhere do not hold it up. Requests of the same path and units stand
in one line, of which only the head is tried.

In a child of a fork nobody waits: what is inherited is let go of, and nothing is taken from the parent.
"""

import asyncio
import copy
import heapq
import itertools
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar
from weakref import WeakSet

from tollkeeper.errors import HandleError

if TYPE_CHECKING:
    from tollkeeper._native import AuditLog, AuditWatch
    from tollkeeper.budget import Denial, Ledger

T = TypeVar("T")

__all__ = ["Durable", "Line", "Sleeper", "Wakeups", "in_thread"]

# How long the thread sleeps at most: not to look for room, which wakes it, but to notice that the interpreter ends.
NAP_MS_MAX: Final = 1000
# How long the next in line waits for the one before it to reserve: its event loop may be stuck.
HANDOVER_SECONDS: Final = 0.1
# No wake-up is worth less: a clock that stands still, as in tests, would make the thread spin.
PAUSE_SECONDS_MIN: Final = 0.005
# Every window ends on a full minute.
MINUTE_SECONDS: Final = 60.0
# How long closing waits for a thread that was told to end: it never sleeps longer than a nap.
JOIN_SECONDS: Final = 10.0
# Refusals that no wait ends.
HOPELESS: Final = ("budget.too_large", "budget.unavailable", "budget.unpriced")


class Wakeups:
    """What wakes one event loop: one counter, for everything that anybody waits for there.

    Whoever waits takes part with `here`; the counter is there as long as somebody does. Any thread may `call`.
    """

    _loops: ClassVar["dict[asyncio.AbstractEventLoop, Wakeups]"] = {}
    # Entered again where a collection of garbage ends a coroutine that waited.
    _loops_lock = threading.RLock()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.looks: dict[object, Callable[[], None]] = {}
        """Called at every wake-up, in the loop: for those who only count up and cannot say for whom."""
        self._calls: deque[Callable[[], None]] = deque()
        self._uses = 0
        self._lock = threading.RLock()
        self._descriptor: int | None = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.add_reader(self._descriptor, self._look)

    @classmethod
    @contextmanager
    def here(cls) -> "Generator[Wakeups]":
        """Those of the running loop, for as long as the block lasts."""
        loop = asyncio.get_running_loop()
        with cls._loops_lock:
            # Nobody is left there to be told, and the counter would stay open.
            for closed in [loop for loop in cls._loops if loop.is_closed()]:
                cls._loops.pop(closed).end()
            wakeups = cls._loops.get(loop)
            if wakeups is None:
                wakeups = cls._loops[loop] = cls(loop)
            wakeups._uses += 1
        try:
            yield wakeups
        finally:
            wakeups._leave()

    def share(self, descriptor: int) -> None:
        """Makes the descriptor one more name of the counter: what counts it up wakes this loop."""
        with self._lock:
            if self._descriptor is not None:
                os.dup2(self._descriptor, descriptor, inheritable=False)

    def call(self, function: Callable[[], None]) -> bool:
        """Has the loop call it. From any thread; False if nobody waits there any more, or the loop is closed."""
        # Locked, for a descriptor that is closed in between may be another file's by then.
        with self._lock:
            if self._descriptor is None or self.loop.is_closed():
                return False
            self._calls.append(function)
            self._count_up()
            return True

    def _count_up(self) -> None:
        if self._descriptor is not None:
            # A counter that is full is one that nobody has read: they will.
            with suppress(BlockingIOError):
                os.eventfd_write(self._descriptor, 1)

    def _look(self) -> None:
        """The counter has something to tell. First it is reset: what comes after that counts up again."""
        if self._descriptor is None:
            return
        with suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)
        self._call_all()
        for look in list(self.looks.values()):
            look()

    def _call_all(self) -> None:
        for _ in range(len(self._calls)):
            self._calls.popleft()()

    def _leave(self) -> None:
        with self._loops_lock:
            self._uses -= 1
            if self._uses:
                return
            if self._loops.get(self.loop) is self:
                del self._loops[self.loop]
        self.end()

    def end(self) -> None:
        """Lets go of the counter."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if not self.loop.is_closed():
            self.loop.remove_reader(descriptor)
            # Whoever asked for these calls may wait until they were made.
            self._call_all()
        os.close(descriptor)

    @classmethod
    def after_fork(cls) -> None:
        """In the child. The loops' selectors are the parent's too: removing a reader would take it from the parent."""
        loops, cls._loops = cls._loops, {}
        cls._loops_lock = threading.RLock()
        for wakeups in loops.values():
            wakeups.drop()

    def drop(self) -> None:
        """Closes this process's descriptor of the counter, and nothing else; its lock may never be free again."""
        self._lock = threading.RLock()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


class Sleeper(ABC):
    """Has one thread that sleeps in native code while somebody waits, and ends when nobody does.

    Subclasses write `_run`, which sleeps at most `NAP_MS_MAX` at a time and says under the lock that it is over.
    """

    name = "tollkeeper"

    def __init__(self) -> None:
        # Entered again where a collection of garbage ends a coroutine that waited.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._running = False
        self._closed = False
        _with_locks.add(self)

    def _start(self) -> None:
        """Under the lock. Not a daemon: those are killed in the middle of native code when the interpreter ends."""
        if self._running:
            return
        thread = threading.Thread(target=self._after, args=(self._thread,), name=self.name)
        thread.start()
        self._thread, self._running = thread, True

    def _after(self, before: threading.Thread | None) -> None:
        """One at a time: who joins the last one has joined them all."""
        if before is not None:
            before.join()
        self._run()

    @abstractmethod
    def _run(self) -> None:
        """Sleeps, and tells whoever waits, until nobody does."""

    def join(self) -> None:
        """Waits until the thread is gone; it was told to end."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_SECONDS)

    def after_fork(self) -> None:
        """In the child, which has no thread, and where a lock may be held by one that is not there."""
        self._lock, self._thread, self._running = threading.RLock(), None, False


_with_locks: "WeakSet[Sleeper | Durable]" = WeakSet()
"""What has a lock that a thread of the parent may hold at the moment of a fork."""


def _after_fork_in_child() -> None:
    Wakeups.after_fork()
    for each in list(_with_locks):
        each.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


async def in_thread(function: Callable[[], T]) -> T:
    """Calls it in a thread of its own, and is over when that thread is gone, also if cancelled meanwhile.

    Not in the loop's executor: that may be full, or shut down already.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    with Wakeups.here() as wakeups:
        done = wakeups.loop.create_future()

        def run() -> None:
            try:
                results.append(function())
            except BaseException as raised:  # noqa: BLE001 - raised in the loop
                errors.append(raised)
            wakeups.call(lambda: done.set_result(None))

        thread = threading.Thread(target=run, name="tollkeeper-once")
        try:
            thread.start()
        except RuntimeError:
            # There are too many threads, or the interpreter ends.
            return function()
        cancelled: asyncio.CancelledError | None = None
        while not done.done():
            try:
                # It does not cancel what it waits for.
                await asyncio.wait([done])
            except asyncio.CancelledError as raised:
                cancelled = raised
    thread.join()
    for error in [cancelled, *errors]:
        if error is not None:
            raise error
    return results[0]


class Waiter:
    """One coroutine that waits for room."""

    __slots__ = ("cells", "cost", "due", "future", "path", "units", "wakeups")

    def __init__(self, path: str, cost: Mapping[str, int], wakeups: Wakeups) -> None:
        self.path = path
        self.cost = dict(cost)
        self.units = frozenset(unit for unit, amount in cost.items() if amount)
        self.wakeups = wakeups
        self.future: asyncio.Future[bool] = wakeups.loop.create_future()
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


class Line(Sleeper):
    """Those who wait for room in one ledger.

    Args:
        ledger: The ledger.
    """

    name = "tollkeeper-available"

    def __init__(self, ledger: "Ledger") -> None:
        super().__init__()
        self._ledger = ledger
        self._waiting: list[Waiter] = []
        self._news = False
        """Somebody came or went: those in line are tried again."""

    def ask(self, waiter: Waiter) -> bool | None:
        """Asks the ledger; ``None`` is not yet."""
        if self._closed or self._ledger.closed:
            return False
        denials = self._ledger.explain(waiter.path, **waiter.cost)
        if not denials:
            return True
        if any(denial.code in HOPELESS for denial in denials):
            return False
        waiter.cells = frozenset((denial.path, denial.unit or "") for denial in denials)
        waiter.due = time.monotonic() + _pause(denials)
        return None

    def join_line(self, waiter: Waiter) -> bool | None:
        """Asks once, unless somebody is before; ``None`` if the answer comes with the waiter's future."""
        while True:
            seen = self._ledger.change_count()
            answer = self.ask(waiter)
            with self._lock:
                self._forget_closed_loops()
                others = [other for other in self._waiting if other is not waiter]
                blocked = any(other.line == waiter.line or waiter.competes(other.cells) for other in others)
                if self._closed:
                    return False
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
        self._waiting = [waiter for waiter in self._waiting if not waiter.wakeups.loop.is_closed()]

    def leave(self, waiter: Waiter) -> None:
        """The waiter has its answer, or wants none any more; whom it held up is tried."""
        with self._lock:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                self._news = True
                if threading.current_thread() is not self._thread:
                    # Whom it held up need not wait for the end of a nap, and without anybody the thread ends.
                    self._wake()

    async def available(self, path: str, cost: Mapping[str, int], timeout: float | None) -> bool:  # noqa: ASYNC109 - see Ledger.available
        """See `Ledger.available`."""
        with Wakeups.here() as wakeups:
            waiter = Waiter(path, cost, wakeups)
            try:
                answer = self.join_line(waiter)
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
        """Answers everybody with False, now and from now on, and has the thread end; `join` waits for that."""
        with self._lock:
            self._closed = True
            self._wake()
        self._answer_all(None)

    def _answer_all(self, error: Exception | None) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            self._answer(waiter, answer=False, error=error)

    def _run(self) -> None:
        # Watched, every change is counted, also between two sleeps: none is missed.
        self._ledger._watch()  # noqa: SLF001 - this is the ledger's own thread
        try:
            while True:
                seen = self._ledger.change_count()
                with self._lock:
                    self._forget_closed_loops()
                    if self._over():
                        self._running = False
                        break
                    self._news = False
                    waiting = list(self._waiting)
                due = self._pass(waiting)
                if not self._news:
                    self._ledger.wait_for_change(seen, _slice_ms(due))
        except Exception as error:  # noqa: BLE001 - whoever waits gets it; a thread has nobody to raise it to
            with self._lock:
                self._running = False
            self._answer_all(None if self._ledger.closed else error)
        else:
            if self._ledger.closed:
                self._answer_all(None)
        finally:
            self._ledger._unwatch()  # noqa: SLF001 - as above

    def _wake(self) -> None:
        """Has the thread look again: somebody came, or has their answer."""
        # Closed since, or inherited through a fork: then there is no thread to wake.
        with suppress(HandleError):
            self._ledger._wake()  # noqa: SLF001 - as above

    def _over(self) -> bool:
        """Whether the thread has nothing left to do. The main thread is over once the interpreter is ending."""
        over = self._closed or self._ledger.closed or not threading.main_thread().is_alive()
        return over or not self._waiting

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
                # To each their own: an exception collects the places through which it was raised.
                waiter.future.set_exception(copy.copy(error))
            else:
                waiter.future.set_result(answer)
            # The waiter's next step is in the loop's queue now; this comes after it.
            waiter.wakeups.loop.call_soon(handed.set)

        # Otherwise nobody is there to be answered.
        return handed if waiter.wakeups.call(resolve) else None

    def after_fork(self) -> None:
        """See `Sleeper.after_fork`."""
        super().after_fork()
        self._waiting = []


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
        log: The log, whose writer counts up what wakes the loop.
        wakeups: What wakes the loop.
    """

    def __init__(self, log: "AuditLog", wakeups: Wakeups) -> None:
        self.waiting = 0
        """How many wait; the watch ends with the last."""
        self._log = log
        self._heaps: dict[str, list[tuple[int, int, asyncio.Future[None]]]] = {}
        """By durability: those who wait, by sequence number and then in the order in which they came."""
        self._numbers = itertools.count()
        self._wakeups = wakeups
        self._watch: AuditWatch | None = log._watch()  # noqa: SLF001 - this is the log's own waiting
        # What was counted before this is not missed: whoever joins looks once.
        wakeups.share(self._watch.fileno())
        wakeups.looks[self] = self._look

    def join(self, seq: int, durability: str) -> asyncio.Future[None]:
        """The future of somebody who waits; `leave` has to follow."""
        future: asyncio.Future[None] = self._wakeups.loop.create_future()
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
        """More may be durable."""
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
        """Nobody waits any more, or their loop is closed: the log counts up nothing here."""
        self._wakeups.looks.pop(self, None)
        self._watch = None


class Durable:
    """Those who wait for records of one log, in any number of event loops."""

    def __init__(self) -> None:
        # Entered again by a coroutine that goes with a loop that is forgotten.
        self._lock = threading.RLock()
        self._watches: dict[asyncio.AbstractEventLoop, Watch] = {}
        _with_locks.add(self)

    def after_fork(self) -> None:
        """See `Sleeper.after_fork`."""
        self._lock, self._watches = threading.RLock(), {}

    async def wait(self, log: "AuditLog", seq: int, durability: str) -> None:
        """Waits until a record is as certain as that; see `AuditLog.durable`."""
        if log._is_durable(seq, durability):  # noqa: SLF001 - this is the log's own waiting
            return
        with Wakeups.here() as wakeups:
            loop = wakeups.loop
            with self._lock:
                self._forget_closed_loops()
                watch = self._watches.get(loop)
                if watch is None:
                    watch = self._watches[loop] = Watch(log, wakeups)
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
