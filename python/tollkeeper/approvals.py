"""Approvals as the agent's side sees them: asking for one, and waiting for the answer.

What is asked for is written down for the approver in ``approvals/ID.json`` below the state directory; the answer lies
in the table that all gates of the host share, and only there. Nothing here grants anything: `GateAdmin` does.
"""

import asyncio
import contextlib
import copy
import json
import os
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

from tollkeeper._native import Control, Decision
from tollkeeper.aio import Sleeper, Wakeups
from tollkeeper.errors import StateError

__all__ = ["FOLDER", "Answers", "Approval", "ask", "document_path", "write_private"]

FOLDER: Final = "approvals"
ASKED_FOR: Final = ("approval.required", "approval.expired", "approval.rejected")
# How long a waiting thread sleeps at most before it looks whether it is still wanted: nothing else would tell it, and
# closing a gate waits for it.
NAP_MS: Final = 250
# The clock that a check reads is behind this module's by up to a tick of the kernel. What is void here is void there.
CLOCK_LAG_MS: Final = 20
SECONDS_MAX: Final = 30 * 24 * 3600.0
# Of one gate: people read every one, and the table has room for eight times as many.
PENDING_MAX: Final = 128


def document_path(state_dir: Path, approval: str) -> Path:
    """Where it is written what an approval is for."""
    return state_dir / FOLDER / f"{approval}.json"


def write_private(path: Path, text: str) -> None:
    """Writes a file as a whole, for this user only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def ask(answers: "Answers", state_dir: Path | None, decision: Decision, timeout: float) -> "Approval":
    """See `Gate.approval`."""
    binding = decision._binding  # noqa: SLF001 - the native half
    if binding is None or decision.code not in ASKED_FOR:
        message = f"a decision with {decision.code} asks for no approval that anybody could give"
        raise ValueError(message)
    if state_dir is None:
        message = "approvals need a place that the approver can reach, and this gate has no state directory"
        raise StateError(message, "state.missing", 'add to tollkeeper.toml: [state] dir = "state"')
    if not 0 < timeout <= SECONDS_MAX:
        message = f"timeout is {timeout}, not between 0 and {SECONDS_MAX:.0f} seconds"
        raise ValueError(message)
    with answers.asking:
        return _pending(answers, state_dir, binding[1]) or _asked(answers, state_dir, decision, binding, timeout)


def _pending(answers: "Answers", state_dir: Path, digest: bytes) -> "Approval | None":
    """The same question, if it is open: whoever answers is asked once, however often an agent tries."""
    for row in answers.rows():
        same = row["state"] == "pending" and row["digest"] == digest
        # Without its document nobody can grant it.
        if same and document_path(state_dir, row["id"]).is_file():
            return Approval(answers, row["id"], row["expires_ms"])
    return None


def _asked(
    answers: "Answers", state_dir: Path, decision: Decision, binding: tuple[bytes, bytes], timeout: float
) -> "Approval":
    answers.asked &= {row["id"] for row in answers.rows() if row["state"] == "pending"}
    if len(answers.asked) >= PENDING_MAX:
        message = (
            f"this gate has {PENDING_MAX} questions open, the most one may have: none is asked until one is answered"
        )
        raise StateError(message, "control.full", "tollkeeper approvals list")
    document, digest = binding
    now_ms = time.time_ns() // 1_000_000
    expires_ms = now_ms + max(1, int(timeout * 1000))
    approval = os.urandom(8).hex()
    described = {
        "id": approval,
        "decision": decision.id,
        "kinds": decision.approvals,
        "policies": decision.policies,
        "reason": decision.reason,
        "asked_ms": now_ms,
        "expires_ms": expires_ms,
        "binding": document.decode(),
    }
    path = document_path(state_dir, approval)
    # First the document: whoever sees the question can read what it is about.
    write_private(path, json.dumps(described, ensure_ascii=False, indent=1) + "\n")
    try:
        answers.control.ask(approval, digest, expires_ms, now_ms)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    answers.asked.add(approval)
    return Approval(answers, approval, expires_ms)


class Approval:
    """A question that was asked: await it in a coroutine, or `wait` in a thread.

    Awaiting gives True once it is granted and False once it is rejected or void, or the gate is closed. Whoever stops
    waiting leaves nothing behind but the question, which stands until it is void. The grant is used by repeating the
    check, and by nothing else.
    """

    def __init__(self, answers: "Answers", approval: str, expires_ms: int) -> None:
        self.id = approval
        """16 hex digits, as ``tollkeeper approvals`` lists it."""
        self.expires_at = expires_ms / 1000
        """When the question is void, in seconds since 1970."""
        self._answers = answers

    @property
    def state(self) -> str:
        """``pending``, ``granted``, ``rejected``, ``expired`` or ``used``."""
        # Not among them is a place that was given to another question: this one is long over.
        return self._answers.states().get(self.id, "expired")

    def answer(self, states: dict[str, str]) -> bool | None:
        """What a table of states, by id, says about this question; `None` while it is open."""
        state = states.get(self.id, "expired")
        return None if state == "pending" else state in {"granted", "used"}

    def wait(self, timeout: float | None = None) -> bool:
        """Waits in a thread.

        Args:
            timeout: Seconds; `None` for as long as the question stands.

        Returns:
            Whether it was granted; False also once the gate is closed.

        Raises:
            TimeoutError: Nobody has answered in time; the question stands.
        """
        end = None if timeout is None else time.monotonic() + timeout
        control = self._answers.control
        while True:
            seen = control.approvals_count()
            answer = self.answer(self._answers.states())
            if answer is not None or self._answers.closed:
                return bool(answer)
            left = NAP_MS if end is None else min(NAP_MS, int((end - time.monotonic()) * 1000))
            if left <= 0:
                message = f"nobody has answered approval {self.id} in {timeout} s"
                raise TimeoutError(message)
            control.wait_approvals(seen, left)

    def __await__(self) -> Generator[Any, None, bool]:
        return self._answers.wait(self).__await__()

    def __repr__(self) -> str:
        return f"<Approval {self.id} {self.state}>"


class Answers(Sleeper):
    """Those who wait for answers to questions of one table, in any number of event loops.

    Args:
        control: The table.
    """

    name = "tollkeeper-approvals"

    def __init__(self, control: Control) -> None:
        super().__init__()
        self.control = control
        self.asking = threading.Lock()
        """Held from looking for a question to having asked it."""
        self.asked: set[str] = set()
        """Ids of the questions of this gate that may be open."""
        self._waiting: dict[asyncio.Future[bool], tuple[Approval, Wakeups]] = {}

    @property
    def closed(self) -> bool:
        """Whether the gate was closed: nobody waits any more."""
        return self._closed

    def rows(self) -> list[dict[str, Any]]:
        """Every question that is kept, the oldest first."""
        return self.control.approvals(time.time_ns() // 1_000_000 - CLOCK_LAG_MS)

    def states(self) -> dict[str, str]:
        """What has become of every question that is kept, by its id."""
        return {row["id"]: row["state"] for row in self.rows()}

    async def wait(self, approval: "Approval") -> bool:
        """See `Approval`."""
        answer = approval.answer(self.states())
        if answer is not None or self._closed:
            return bool(answer)
        with Wakeups.here() as wakeups:
            future: asyncio.Future[bool] = wakeups.loop.create_future()
            try:
                with self._lock:
                    self._waiting[future] = approval, wakeups
                    self._start()
                # What happened before it was among those who wait is seen here, what happens after it by the thread.
                answer = approval.answer(self.states())
                if answer is not None or self._closed:
                    return bool(answer)
                return await future
            finally:
                with self._lock:
                    self._waiting.pop(future, None)

    def close(self) -> None:
        """Answers everybody with False, and has the thread end; `join` waits for that."""
        with self._lock:
            self._closed = True
            waiting = list(self._waiting.items())
        for future, (_, wakeups) in waiting:
            _resolve(future, wakeups, answer=False)

    def _run(self) -> None:
        try:
            while True:
                seen = self.control.approvals_count()
                with self._lock:
                    gone = [future for future, (_, wakeups) in self._waiting.items() if wakeups.loop.is_closed()]
                    for future in gone:
                        del self._waiting[future]
                    # The main thread is over once the interpreter is ending.
                    if not self._waiting or self._closed or not threading.main_thread().is_alive():
                        self._running = False
                        return
                    waiting = list(self._waiting.items())
                self.control.wait_approvals(seen, self._pass(waiting))
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it; a thread has nobody to raise it to
            with self._lock:
                self._running = False
                waiting = list(self._waiting.items())
            for future, (_, wakeups) in waiting:
                _resolve(future, wakeups, answer=False, error=error)

    def _pass(self, waiting: "list[tuple[asyncio.Future[bool], tuple[Approval, Wakeups]]]") -> int:
        """Answers everybody whose question has an answer; returns for how many milliseconds the thread may sleep."""
        states, nap = self.states(), float(NAP_MS)
        for future, (approval, wakeups) in waiting:
            answer = approval.answer(states)
            if answer is None:
                # Time alone makes a question void.
                nap = min(nap, (approval.expires_at - time.time()) * 1000 + CLOCK_LAG_MS + 1)
            elif _resolve(future, wakeups, answer=answer):
                with self._lock:
                    self._waiting.pop(future, None)
        return max(1, int(nap))

    def after_fork(self) -> None:
        """See `Sleeper.after_fork`."""
        super().after_fork()
        self._waiting = {}
        self.asking = threading.Lock()
        self.asked = set()


def _resolve(
    future: asyncio.Future[bool], wakeups: Wakeups, *, answer: bool, error: BaseException | None = None
) -> bool:
    """Answers in the loop of the future; False if nobody waits there any more."""

    def resolve() -> None:
        if future.done():
            return
        if error is not None:
            # To each their own: an exception collects the places through which it was raised.
            future.set_exception(copy.copy(error))
        else:
            future.set_result(answer)

    return wakeups.call(resolve)
