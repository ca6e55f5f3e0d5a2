"""Approvals as the agent's side sees them: asking for one, and waiting for the answer.

What is asked for is written down for the approver in ``approvals/ID.json`` below the state directory; the answer lies
in the table that all gates of the host share, and only there. Nothing here grants anything: that is `GateAdmin`'s.
"""

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

from tollkeeper._native import Control, Decision
from tollkeeper.errors import StateError

__all__ = ["FOLDER", "Approval", "ask", "document_path", "write_private"]

FOLDER: Final = "approvals"
ASKED_FOR: Final = ("approval.required", "approval.expired", "approval.rejected")
# How long a waiting thread sleeps at most before it looks whether it is still wanted.
NAP_MS: Final = 500
SECONDS_MAX: Final = 30 * 24 * 3600.0


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


def ask(control: Control, state_dir: Path | None, decision: Decision, timeout: float) -> "Approval":
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
        control.ask(approval, digest, expires_ms, now_ms)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return Approval(control, approval, expires_ms)


class Approval:
    """A question that was asked: await it in a coroutine, or `wait` in a thread.

    Awaiting gives True once it is granted and False once it is rejected or void. The grant is used by repeating the
    check, and by nothing else.
    """

    def __init__(self, control: Control, approval: str, expires_ms: int) -> None:
        self.id = approval
        """16 hex digits, as ``tollkeeper approvals`` lists it."""
        self.expires_at = expires_ms / 1000
        """When the question is void, in seconds since 1970."""
        self._control = control

    @property
    def state(self) -> str:
        """``pending``, ``granted``, ``rejected``, ``expired`` or ``used``."""
        now_ms = time.time_ns() // 1_000_000
        rows: list[dict[str, Any]] = self._control.approvals(now_ms)
        states = [row["state"] for row in rows if row["id"] == self.id]
        # A place that was given to another question: this one is long over.
        return str(states[0]) if states else "expired"

    def _answer(self) -> bool | None:
        state = self.state
        return None if state == "pending" else state in {"granted", "used"}

    def wait(self, timeout: float | None = None) -> bool:
        """Waits in a thread.

        Args:
            timeout: Seconds; `None` for as long as the question stands.

        Returns:
            Whether it was granted.

        Raises:
            TimeoutError: Nobody has answered in time; the question stands.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            seen = self._control.approvals_count()
            answer = self._answer()
            if answer is not None:
                return answer
            left = NAP_MS if end is None else min(NAP_MS, int((end - time.monotonic()) * 1000))
            if left <= 0:
                message = f"nobody has answered approval {self.id} in {timeout} s"
                raise TimeoutError(message)
            self._control.wait_approvals(seen, left)

    def __await__(self) -> Generator[Any, None, bool]:
        return _answered(self).__await__()

    def __repr__(self) -> str:
        return f"<Approval {self.id} {self.state}>"


class _Waiting:
    """Those of one event loop who wait for answers to questions of one table.

    One thread waits for the table and wakes the loop through one eventfd; it ends when nobody waits any more.
    """

    def __init__(self, control: Control, loop: asyncio.AbstractEventLoop) -> None:
        self._control, self._loop = control, loop
        self._waiting: dict[asyncio.Future[bool], Approval] = {}
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._over = threading.Event()
        loop.add_reader(self._descriptor, self._look)
        # Before anybody looks: what happens after this count wakes the thread.
        self._seen = control.approvals_count()
        # Not a daemon: those are killed in the middle of native code when the interpreter ends.
        self._thread = threading.Thread(target=self._run, name="tollkeeper-approvals")
        self._thread.start()

    def join(self, approval: Approval) -> asyncio.Future[bool]:
        future: asyncio.Future[bool] = self._loop.create_future()
        self._waiting[future] = approval
        self._look()
        return future

    def leave(self, future: asyncio.Future[bool]) -> bool:
        """Somebody has their answer, or wants none any more. Whether nobody is left."""
        self._waiting.pop(future, None)
        if self._waiting:
            return False
        self.end()
        return True

    def end(self) -> None:
        """Lets go of the thread and the descriptor; the thread may sleep on for a moment."""
        self._over.set()
        if not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)

    def _look(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)
        for future, approval in list(self._waiting.items()):
            if future.done():
                continue
            try:
                answer = approval._answer()  # noqa: SLF001 - of this module
            except Exception as error:  # noqa: BLE001 - whoever waits gets it
                future.set_exception(error)
                continue
            if answer is not None:
                future.set_result(answer)

    def _run(self) -> None:
        try:
            # The main thread is over once the interpreter is ending.
            while not self._over.is_set() and threading.main_thread().is_alive():
                self._control.wait_approvals(self._seen, NAP_MS)
                self._seen = self._control.approvals_count()
                # Also when nothing happened: a question may have become void by time alone.
                os.eventfd_write(self._descriptor, 1)
        finally:
            os.close(self._descriptor)


_waiting: dict[tuple[int, asyncio.AbstractEventLoop], _Waiting] = {}
_lock = threading.Lock()


async def _answered(approval: Approval) -> bool:
    answer = approval._answer()  # noqa: SLF001 - of this module
    if answer is not None:
        return answer
    loop = asyncio.get_running_loop()
    control = approval._control  # noqa: SLF001 - of this module
    key = (id(control), loop)
    with _lock:
        for gone in [key for key in _waiting if key[1].is_closed()]:
            _waiting.pop(gone).end()
        waiting = _waiting.get(key)
        if waiting is None:
            waiting = _waiting[key] = _Waiting(control, loop)
        future = waiting.join(approval)
    try:
        return await future
    finally:
        with _lock:
            if waiting.leave(future) and _waiting.get(key) is waiting:
                del _waiting[key]
