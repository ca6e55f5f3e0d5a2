"""Watches the files of a configuration, and has the gate reload when they change.

What is wrong with new files leaves the old ones in force, is said in ``gate.reload_error``, in the audit log and, for
``tollkeeper status``, in ``reloads/`` below the state directory. Nothing here is ever raised into the host, and nothing
is decided here: the gate's own ``reload`` tests and swaps.

Editors write a file in pieces or put a new one in its place, so folders are watched and not files, and nothing is read
before all of them have been as they are for a moment. A look at every file every few seconds finds what a file system
does not report.
"""

import contextlib
import importlib
import json
import os
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tollkeeper import config
from tollkeeper.approvals import write_private
from tollkeeper.errors import ConfigError, TollkeeperError
from tollkeeper.reevaluate import is_object

if TYPE_CHECKING:
    from tollkeeper.gate import Gate

__all__ = ["MISSING_HELP", "REPORTS", "REQUEST_NAME", "Watch", "fingerprint", "read_request"]

# Below the state directory: what `tollkeeper reload` writes, and what each watcher has come to.
REQUEST_NAME: Final = "reload"
REPORTS: Final = "reloads"
MISSING_HELP: Final = "install the extra `watch` of this wheel, or its package: pip install watchfiles"
REQUEST_BYTES_MAX: Final = 4_096
# Files have to rest for so long before they are read.
REST_SECONDS: Final = 0.15
RESTS_MAX: Final = 40
# Between two looks at whether anybody still wants this, and at files that nothing was reported of.
NAP_MS: Final = 500
STEP_MS: Final = 100
DEBOUNCE_MS: Final = 1_000
LOOK_SECONDS: Final = 5.0
JOIN_SECONDS: Final = 10.0
# Of a reason that is shown to people.
REASON_CHARACTERS_MAX: Final = 2_000

Print = tuple[object, ...]


def fingerprint(path: Path) -> Print:
    """What tells one state of a configuration and its files from another: no two differ without it.

    It never raises: a configuration that cannot be read is a state, too.
    """
    try:
        settings = config.load(path)
    except (TollkeeperError, OSError) as error:
        return (str(error)[:REASON_CHARACTERS_MAX], _stat(path))
    return tuple(_stat(file) for file in files(settings))


def files(settings: config.Config) -> list[Path]:
    """The files that a configuration is made of."""
    named = (settings.file, settings.schema_file, settings.entities_file, settings.budget_file)
    every = [*(file for file in named if file is not None), *settings.policy_files, *settings.test_files]
    return list(dict.fromkeys(every))


def _stat(file: Path) -> tuple[object, ...]:
    try:
        stat = file.stat()
    except OSError as error:
        return (str(file), error.errno)
    return (str(file), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def read_request(state_dir: Path | None) -> str | None:
    """The id of the newest request to reload; `None` if there was none or it cannot be read."""
    if state_dir is None:
        return None
    try:
        with (state_dir / REQUEST_NAME).open("rb") as file:
            document: Any = json.loads(file.read(REQUEST_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return None
    found = document.get("request") if is_object(document) else None
    return found if isinstance(found, str) else None


class Watch:
    """Watches for one gate, in a thread of its own, until it is closed or the gate is gone.

    Args:
        gate: It reloads.
        settings: What it was opened with.
        seen: The `fingerprint` of what it has loaded.

    Raises:
        ConfigError: The package `watchfiles` is missing.
    """

    def __init__(self, gate: "Gate", settings: config.Config, seen: Print) -> None:
        try:
            importlib.import_module("watchfiles")
        except ImportError:
            message = f"{settings.file}: gate.watch needs the package `watchfiles`, which is not installed"
            raise ConfigError(message, "config.watch", MISSING_HELP) from None
        self._gate = weakref.ref(gate)
        # Absolute: the process may go to another folder.
        self._path = settings.file.absolute()
        self._state_dir = None if settings.state_dir is None else settings.state_dir.absolute()
        self._report = None
        if self._state_dir is not None:
            self._report = self._state_dir / REPORTS / f"{os.getpid()}.{os.urandom(4).hex()}.json"
        self._seen: Print = seen
        self._requested = read_request(self._state_dir)
        self._folders = self._watched(settings)
        self._over = threading.Event()
        self._pid = os.getpid()
        # Not a daemon: those are killed in the middle of native code when the interpreter ends.
        self._thread = threading.Thread(target=self._run, name="tollkeeper-watch")
        # That it watches is known before it is open.
        self._write(None)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and waits for it. A child of a fork has none."""
        self._over.set()
        if self._pid == os.getpid() and self._thread is not threading.current_thread():
            self._thread.join(JOIN_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether it watches."""
        return self._pid == os.getpid() and self._thread.is_alive()

    def _watched(self, settings: config.Config) -> list[Path]:
        folders = {file.absolute().parent for file in files(settings)}
        if self._state_dir is not None:
            folders.add(self._state_dir)
        return sorted(folder for folder in folders if folder.is_dir())

    def _wanted(self) -> bool:
        # The main thread is over once the interpreter is ending.
        return not self._over.is_set() and self._gate() is not None and threading.main_thread().is_alive()

    def _run(self) -> None:
        try:
            # At once: files may have changed between their reading and here.
            self._look()
            while self._wanted():
                try:
                    self._follow()
                except Exception as error:  # noqa: BLE001 - such as too many watches: looking now and then goes on
                    self._say(f"files cannot be watched, and are looked at every {LOOK_SECONDS:.0f} s: {error}")
                    end = time.monotonic() + LOOK_SECONDS
                    while self._wanted() and time.monotonic() < end:
                        self._over.wait(NAP_MS / 1000)
                    self._look()
        finally:
            if self._report is not None:
                with contextlib.suppress(OSError):
                    self._report.unlink()

    def _follow(self) -> None:
        """Until other folders have to be watched, or nobody wants it."""
        import watchfiles  # noqa: PLC0415 - an optional package

        # Soon after it has begun to listen: what happened just before was reported to nobody.
        folders, looked = self._folders, time.monotonic() - LOOK_SECONDS
        for changes in watchfiles.watch(
            *folders,
            watch_filter=None,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            stop_event=self._over,
            rust_timeout=NAP_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
            recursive=False,
            ignore_permission_denied=True,
        ):
            if not self._wanted():
                return
            if changes or time.monotonic() - looked >= LOOK_SECONDS:
                self._look()
                looked = time.monotonic()
            if self._folders != folders:
                return

    def _look(self) -> None:
        """Reloads if anything has changed since it was loaded or refused."""
        request, now = read_request(self._state_dir), fingerprint(self._path)
        if request == self._requested and now == self._seen:
            return
        for _ in range(RESTS_MAX):
            if self._over.wait(REST_SECONDS):
                return
            before, now = now, fingerprint(self._path)
            if now == before:
                break
        gate = self._gate()
        if gate is None:
            return
        self._requested, self._seen = request, now
        try:
            gate.reload()
        except Exception as error:  # noqa: BLE001 - whatever it is, the host goes on with what it had
            self._say(str(error), gate)
        else:
            self._say(None, gate)
        with contextlib.suppress(TollkeeperError, OSError):
            self._folders = self._watched(config.load(self._path))

    def _say(self, error: str | None, gate: "Gate | None" = None) -> None:
        gate = gate or self._gate()
        if gate is None:
            return
        gate.reload_error = None if error is None else error[:REASON_CHARACTERS_MAX]
        self._write(gate.reload_error)

    def _write(self, error: str | None) -> None:
        if self._report is None:
            return
        now_ms = time.time_ns() // 1_000_000
        document = {"pid": self._pid, "request": self._requested, "at_ms": now_ms, "error": error}
        # A full disk: the host goes on, and the audit log says it too.
        with contextlib.suppress(OSError):
            write_private(self._report, json.dumps(document) + "\n")
