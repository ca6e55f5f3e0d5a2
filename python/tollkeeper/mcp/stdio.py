"""Runs an MCP server as a child process and screens what goes in and out of it, line by line.

One thread carries what the client writes, another what the server writes; each blocks on its pipe, so that a message
waits for nobody's turn. The child has a process group of its own, no shell, and of the environment what is allowed by
name. However it ends, what is held is settled. No HTTP library is needed here, and nothing is decided.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tollkeeper.errors import ConfigError
from tollkeeper.mcp.screen import Drop, Forward, Limits, Reply, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
    from types import FrameType

    from tollkeeper.mcp.screen import Screen, Verdict

__all__ = ["ALLOWED_NAMES", "Proxy", "Timing", "environment", "lines", "start"]

# What a program needs to run at all; credentials are none of it.
ALLOWED_NAMES: Final = frozenset({"HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "USER"})
ALLOWED_PREFIX: Final = "LC_"

READ_BYTES: Final = 64 << 10
# Of a line that is too long, what is kept: its id may stand in it.
HEAD_BYTES: Final = 4096
# Written by nobody but the proxy itself: refusals of what the server asks for, and calls that had to wait.
OUTBOX_MAX: Final = 10_000
# Of calls that wait for the server to list its tools, before no more are read.
HELD_BYTES_MAX: Final = 64 << 20
NAP_SECONDS: Final = 0.005
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
GONE: Final = "the MCP server has ended; this request was not answered, and may or may not have been carried out"


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the end may take, in seconds."""

    server_ends: float = 5.0
    """After its input was closed."""
    server_obeys: float = 2.0
    """After it was told to end; then it is killed."""
    list_answers: float = 10.0
    """How long a first call waits for the server to list its tools."""


def environment(names: Iterable[str], source: Mapping[str, str]) -> dict[str, str]:
    """What a server sees of an environment: what every program needs, and what is named.

    Args:
        names: Further variables.
        source: The environment.

    Raises:
        ConfigError: A variable that is named is not there.
    """
    wanted = set(names)
    for name in sorted(wanted):
        if name not in source:
            raise ConfigError(f"--env {name}: there is no such variable", "mcp.env", f"export {name}=...")
    return {
        name: value
        for name, value in source.items()
        if name in wanted
        # A function of a shell is code and not a value.
        or ((name in ALLOWED_NAMES or name.startswith(ALLOWED_PREFIX)) and not value.startswith("()"))
    }


def start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts a server.

    Args:
        command: Program and arguments; no shell sees them.
        environment: All that it gets of one.

    Raises:
        OSError: It cannot be started.
    """
    return subprocess.Popen(  # noqa: S603 - the operator's command, and the point of this program
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(environment),
        bufsize=0,
        process_group=0,
    )


def lines(read: Callable[[], bytes], bytes_max: int) -> Generator[tuple[bytes, bool]]:
    r"""Cuts a stream into lines, of which none is ever held whole that is too long.

    Args:
        read: Returns the next bytes, and none at the end.
        bytes_max: The most bytes of a line.

    Yields:
        A line without its ``\n``, and False; or the beginning of one that is too long, and True.
    """
    parts: list[bytes] = []
    held, too_long = 0, False
    while chunk := read():
        if not parts and not too_long and chunk.find(b"\n") == len(chunk) - 1 <= bytes_max:
            # One line, whole: nearly always.
            yield chunk[:-1], False
            continue
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = b"".join((*parts, end))
            yield (line[:HEAD_BYTES], True) if too_long or len(line) > bytes_max else (line, False)
            parts, held, too_long = [], 0, False
        if not rest:
            continue
        if too_long or held + len(rest) > bytes_max:
            parts, held, too_long = [b"".join((*parts, rest))[:HEAD_BYTES]], 0, True
            continue
        parts.append(rest)
        held += len(rest)
    if parts:
        yield b"".join(parts), too_long


class Proxy:
    """A client on two pipes, a server on two others, and a screen between them.

    Args:
        screen: Decides; closed when `run` returns.
        server: The server's process, from `start`.
        client_in: Descriptor that the client's messages are read from.
        client_out: Descriptor that messages for the client are written to.
        limits: Bounds; those of the screen.
        timing: How long the end may take.
        say: Takes a line for the operator.
    """

    def __init__(  # noqa: PLR0913 - two ends, and what is between
        self,
        screen: Screen,
        server: subprocess.Popen[bytes],
        *,
        client_in: int,
        client_out: int,
        limits: Limits,
        timing: Timing = Timing(),
        say: Callable[[str], None],
    ) -> None:
        if server.stdin is None or server.stdout is None:
            message = "the server has no pipes"
            raise ValueError(message)
        self._screen, self._server, self._limits, self._timing, self._say = screen, server, limits, timing, say
        self._client_in, self._client_out = client_in, client_out
        self._server_in, self._server_out = server.stdin.fileno(), server.stdout.fileno()
        self._to_client, self._to_server = threading.Lock(), threading.Lock()
        # Held from asking the screen about a message of the client to having put it where it belongs.
        self._order = threading.Lock()
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._timer: threading.Timer | None = None
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        self._ending = threading.Event()
        self._server_gone = threading.Event()
        self._deaf = threading.Event()
        self._writing: int | None = None
        self._signal = 0
        self._wake_out, self._wake_in = -1, -1
        self._nothing = -1

    def run(self) -> int:
        """Carries messages until one side ends. To be called in the main thread, for signals end it too.

        Returns:
            0 if the client has ended it, 1 if the server has, 128 and the number of the signal if that did.
        """
        self._nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._wake_out, True)
        before = {number: signal.signal(number, self._signalled) for number in SIGNALS}
        woken = signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._watch, name="tollkeeper-mcp-watch", daemon=True)
        answers = threading.Thread(target=self._carry_answers, name="tollkeeper-mcp-answers", daemon=True)
        reaper = threading.Thread(target=self._reap, args=(answers,), name="tollkeeper-mcp-reap", daemon=True)
        for thread in (watcher, answers, reaper):
            thread.start()
        try:
            self._carry_requests()
            first_gone = self._server_gone.is_set()
            self._end_server(answers)
            self._answer_for_server()
        finally:
            self._ending.set()
            self._wake()
            # It may be about to send its signal, which nobody may take for one that ends the process.
            watcher.join()
            if self._timer is not None:
                self._timer.cancel()
            # Before the handlers go: a second Ctrl-C must not keep what is held from being settled.
            self._screen.close()
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._signal:
            return 128 + self._signal
        if first_gone:
            self._say(f"the server has ended: {_status(self._server.returncode)}")
        return 1 if first_gone else 0

    # --- what wakes a thread that waits for its pipe ------------------------------------------------------------------

    def _signalled(self, _number: int, _frame: FrameType | None) -> None:
        """The wake-up descriptor has said it already."""

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_in, b"\0")

    def _watch(self) -> None:
        """Ends the main thread's waiting, whatever it waits for: its two pipes end here, and the call begins anew."""
        number = self._woken()
        if number is None:
            return
        self._signal = number
        # First the descriptors: a call that has not begun yet finds them so, and one that has is interrupted.
        os.dup2(self._nothing, self._client_in, inheritable=False)
        os.dup2(self._nothing, self._server_in, inheritable=False)
        _interrupt(threading.main_thread().ident)
        if not number:
            # That interruption comes back as a signal of its own.
            ours = True
            while not number or (ours and number == signal.SIGHUP):
                ours = ours and not number
                number = self._woken()
                if number is None:
                    return
            self._signal = number
        self._let_go_of_client()

    def _woken(self) -> int | None:
        """The signal that has woken the watcher, 0 if the proxy itself has; None at the end."""
        number = os.read(self._wake_out, 1)[0]
        return None if self._ending.is_set() else number

    def _let_go_of_client(self) -> None:
        """A signal ends the proxy also where its client does not read what is written to it."""
        while not self._ending.is_set():
            if self._to_client.acquire(timeout=self._timing.server_obeys):
                self._to_client.release()
                self._ending.wait(NAP_SECONDS)
                continue
            os.dup2(self._nothing, self._client_out, inheritable=False)
            _interrupt(self._writing)

    def _reap(self, answers: threading.Thread) -> None:
        """What the server has started in its group ends with it, and with that the last who holds its output."""
        self._server.wait()
        self._to_group(signal.SIGTERM)
        answers.join(self._timing.server_obeys)
        if answers.is_alive() and not self._server_gone.is_set() and not self._ending.is_set():
            # What left the group may hold the server's output for ever, and answers nothing.
            self._server_gone.set()
            self._wake()

    def _to_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._server.pid, number)

    # --- client to server ---------------------------------------------------------------------------------------------

    def _carry_requests(self) -> None:
        for line, too_long in lines(self._read_client, self._limits.client_bytes):
            if self._server_gone.is_set():
                return
            if too_long:
                self._pass_on(self._screen.oversized(line, client=True))
            elif line and not line.isspace():
                with self._order:
                    verdict = self._screen.from_client(line)
                    if type(verdict) is Wait:
                        self._hold(line)
                self._pass_on(verdict)
                while self._held_bytes > HELD_BYTES_MAX and not (self._signal or self._server_gone.is_set()):
                    # Until the server has listed its tools, or the time for that is over.
                    time.sleep(NAP_SECONDS)

    def _hold(self, line: bytes) -> None:
        self._held.append(line)
        self._held_bytes += len(line)

    def _read_client(self) -> bytes:
        # What cannot be read any more has ended.
        with contextlib.suppress(OSError):
            return os.read(self._client_in, READ_BYTES)
        return b""

    def _pass_on(self, verdict: Verdict) -> None:
        """Does what was said of a message of the client, in its thread."""
        if type(verdict) is Forward:
            self._write_server(verdict.raw)
        elif type(verdict) is Reply:
            self._write_client(verdict.raw)
        elif type(verdict) is Wait and (asks := self._screen.asks()) is not None:
            self._ask(asks)

    def _write_server(self, raw: bytes) -> None:
        try:
            with self._to_server:
                _write_line(self._server_in, raw)
        except BrokenPipeError:
            # A server that does not read any more has ended, or is about to: its other pipe says so.
            if not self._deaf.is_set():
                self._deaf.set()
                threading.Thread(target=self._end_deaf, name="tollkeeper-mcp-deaf", daemon=True).start()

    def _end_deaf(self) -> None:
        """A server that has closed its input, and stays: it can answer nothing that is asked from now on."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(self._timing.server_obeys)
                return
            self._to_group(number)

    def _write_client(self, raw: bytes) -> None:
        try:
            with self._to_client:
                self._writing = threading.get_ident()
                _write_line(self._client_out, raw)
        except OSError:
            # Nobody reads: the client is gone.
            self._wake()

    # --- server to client ---------------------------------------------------------------------------------------------

    def _carry_answers(self) -> None:
        try:
            for line, too_long in lines(self._read_server, self._limits.server_bytes):
                if too_long:
                    verdict = self._screen.oversized(line, client=False)
                elif not line or line.isspace():
                    continue
                else:
                    verdict = self._screen.from_server(line)
                if type(verdict) is Forward:
                    self._write_client(verdict.raw)
                elif type(verdict) is Reply:
                    self._later(verdict.raw)
                elif type(verdict) is Drop and self._held:
                    self._go_on()
        finally:
            self._server_gone.set()
            if self._held:
                self._asked_in_vain()
            self._answer_for_server()
            self._wake()

    def _answer_for_server(self) -> None:
        for answer in self._screen.abandoned(GONE):
            self._write_client(answer)

    def _read_server(self) -> bytes:
        return os.read(self._server_out, READ_BYTES)

    def _go_on(self) -> None:
        """Asks for the next page, or lets go of the calls that waited for the last one."""
        with self._order:
            asks = self._screen.asks()
            if asks is not None:
                self._later(asks)
                return
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            for _ in range(len(self._held)):
                line = self._held.popleft()
                self._held_bytes -= len(line)
                verdict = self._screen.from_client(line)
                if type(verdict) is Wait:
                    self._hold(line)
                elif type(verdict) is Forward:
                    self._later(verdict.raw)
                elif type(verdict) is Reply:
                    self._write_client(verdict.raw)

    def _ask(self, asks: bytes) -> None:
        self._timer = threading.Timer(self._timing.list_answers, self._asked_in_vain)
        self._timer.daemon = True
        self._timer.start()
        self._write_server(asks)

    def _asked_in_vain(self) -> None:
        if not self._ending.is_set():
            self._screen.asked_in_vain()
            self._go_on()

    def _later(self, raw: bytes) -> None:
        """Has another thread write to the server: this one must go on reading, or neither would ever write again."""
        if self._outbox.qsize() >= OUTBOX_MAX:
            self._say("the server asks and does not read what it is told; it is ended")
            self._to_group(signal.SIGKILL)
            return
        self._outbox.put(raw)
        if self._writer is None:
            writer = threading.Thread(target=self._write_later, name="tollkeeper-mcp-outbox", daemon=True)
            writer.start()
            self._writer = writer

    def _write_later(self) -> None:
        while (raw := self._outbox.get()) is not None:
            self._write_server(raw)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _end_server(self, answers: threading.Thread) -> None:
        """Closes the server's input, and makes sure that it ends; what it still answers goes through."""
        patience = self._timing.server_obeys if self._signal else self._timing.list_answers
        end = time.monotonic() + patience
        while self._held and not self._server_gone.is_set() and time.monotonic() < end:
            # Calls that came before the end, and wait for the server to list its tools.
            time.sleep(NAP_SECONDS)
        with self._order:
            # Whoever lets go of the calls that waited has put all of them into the outbox by now.
            writer = self._writer
        if writer is not None:
            self._outbox.put(None)
            writer.join(self._timing.server_obeys)
        os.dup2(self._nothing, self._server_in, inheritable=False)
        for seconds, number in (
            (self._timing.server_ends if not self._signal else self._timing.server_obeys, signal.SIGTERM),
            (self._timing.server_obeys, signal.SIGKILL),
        ):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(seconds)
                break
            self._to_group(number)
        self._server.wait()
        self._to_group(signal.SIGKILL)
        # A client that does not read keeps it; what is open is then ended without it.
        answers.join(self._timing.server_obeys)


def _interrupt(thread: int | None) -> None:
    """Has a thread's system call begin anew; the handler of the signal does nothing."""
    if thread is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(thread, signal.SIGHUP)


def _write_line(descriptor: int, raw: bytes) -> None:
    left = raw + b"\n"
    while left:
        left = left[os.write(descriptor, left) :]


def _status(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"status {code}"
