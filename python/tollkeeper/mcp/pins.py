"""What a server's tools were when they were accepted, kept in a lock file.

A tool is what its definition says to the model: whoever changes the description later changes what the model does. So
each definition is pinned with the first list, or by a person, and one that has changed, was added or takes another's
name is withheld until a person has read the difference and accepted it. The lock file is text, sorted, and belongs in
version control. What is accepted here is the definition and never what the server does with it.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from tollkeeper.errors import ConfigError
from tollkeeper.mcp import strict
from tollkeeper.mcp.strict import folded

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from pathlib import Path

__all__ = [
    "BUILT_IN", "FILE_NAME", "INSTALL", "Pins", "accept", "difference", "digest", "moved", "pending_path", "pinned",
    "reached", "read_pending", "refuse_unknown",
]  # fmt: skip

FILE_NAME: Final = "mcp.lock.json"
VERSION: Final = 1
# What of a definition is pinned: all that a model or a client acts on.
FIELDS: Final = ("name", "title", "description", "inputSchema", "outputSchema", "annotations")
FOLDED_FIELDS: Final = frozenset(map(folded, FIELDS))
# The two tools that the proxy itself makes of a server.
BUILT_IN: Final = frozenset({"read_resource", "get_prompt"})
LOCK_BYTES_MAX: Final = 64 << 20
TOOLS_MAX: Final = 10_000
NAME_BYTES_MAX: Final = 256
# JCS writes numbers as doubles do; beyond this not every integer is one.
JCS_INTEGER_MAX: Final = (1 << 53) - 1
DIFF_LINES_MAX: Final = 200
# The name alone would fetch what somebody else has put on an index.
INSTALL: Final = "install the wheel with its extra: pip install 'tollkeeper-VERSION-....whl[mcp]'"
# What a refusal ends with where a person can lift it; for the model, which tells its user.
ACCEPT: Final = " The operator has to accept it: tollkeeper mcp accept"

Definition = dict[str, Any]


class Entry(msgspec.Struct, forbid_unknown_fields=True):
    """One tool of the lock file."""

    digest: str
    definition: Definition


class Server(msgspec.Struct, forbid_unknown_fields=True):
    """One server of the lock file."""

    reached: str
    tools: dict[str, Entry] = {}


class Lock(msgspec.Struct, forbid_unknown_fields=True):
    """The lock file."""

    version: int = VERSION
    servers: dict[str, Server] = {}


class Seen(msgspec.Struct, forbid_unknown_fields=True):
    """What a server has listed, and what of it is withheld."""

    reached: str
    tools: dict[str, Definition] = {}
    withheld: dict[str, str] = {}


class Pending(msgspec.Struct, forbid_unknown_fields=True):
    """The file beside the lock file: what waits for somebody to accept it."""

    version: int = VERSION
    servers: dict[str, Seen] = {}


def _exact(value: Any) -> Any:  # noqa: ANN401 - JSON
    """The same, with integers that JCS cannot write as text that no text of JSON is."""
    if type(value) is int and abs(value) > JCS_INTEGER_MAX:
        return f"\0{value}"
    if type(value) is str and value.startswith("\0"):
        return f"\0{value}"
    if type(value) is dict:
        return {key: _exact(item) for key, item in cast("dict[str, Any]", value).items()}
    if type(value) is list:
        return [_exact(item) for item in cast("list[object]", value)]
    return value


def digest(server: str, reached: str, definition: Definition) -> str:
    """SHA-256 over the canonical JSON (RFC 8785) of whose tool it is and what it says.

    Args:
        server: What the operator calls the server.
        reached: How it is reached.
        definition: As the server lists it; what is not pinned is left out.

    Raises:
        ConfigError: The extra `mcp` is not installed.
    """
    try:
        import rfc8785  # noqa: PLC0415 - of the extra `mcp`
    except ModuleNotFoundError:
        raise ConfigError("rfc8785 is not installed", "mcp.extra", INSTALL) from None
    pinned = {"server": {"name": server, "reached": reached}, **_reduced(definition)}
    return "sha256:" + hashlib.sha256(rfc8785.dumps(_exact(pinned))).hexdigest()


def _reduced(definition: Definition) -> Definition:
    """What of a definition is pinned; also by a name that only some readers take for it: they compare without case."""
    return {name: value for name, value in definition.items() if folded(name) in FOLDED_FIELDS}


def difference(before: Definition | None, after: Definition | None) -> list[str]:
    """What has changed between two definitions, as lines of a unified diff of their JSON."""
    left, right = (
        [] if one is None else json.dumps(one, ensure_ascii=True, indent=1, sort_keys=True).splitlines()
        for one in (before, after)
    )
    return list(difflib.unified_diff(left, right, "accepted", "listed", lineterm="", n=2))


def pending_path(lock: Path) -> Path:
    """Where it is written what waits to be accepted."""
    return lock.with_name(lock.name + ".pending")


def _load(path: Path, kind: Any) -> Any:  # noqa: ANN401 - the class of what is returned
    """Reads one of the two files; a new one where there is none."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(LOCK_BYTES_MAX + 1)
    except FileNotFoundError:
        return kind()
    try:
        found = msgspec.convert(strict.read(raw, bytes_max=LOCK_BYTES_MAX, fold=False), kind)
    except (strict.Malformed, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}", "mcp.lock", "restore the file, or delete it to begin anew") from None
    if found.version != VERSION:
        raise ConfigError(f"{path}: version {found.version}, this release reads {VERSION}", "mcp.lock")
    return found


def _load_lock(path: Path) -> Lock:
    lock = cast("Lock", _load(path, Lock))
    for name, server in lock.servers.items():
        for tool, entry in server.tools.items():
            if tool != entry.definition.get("name") or entry.digest != digest(name, server.reached, entry.definition):
                raise ConfigError(
                    f"{path}: servers.{name}.tools.{tool}: the digest is not that of the definition",
                    "mcp.lock",
                    "restore the file; what is new is taken over with tollkeeper mcp accept",
                )
    return lock


def read_pending(lock: Path) -> Pending:
    """What waits to be accepted.

    Raises:
        ConfigError: The file cannot be used.
    """
    return cast("Pending", _load(pending_path(lock), Pending))


def pinned(lock: Path, server: str) -> dict[str, Definition]:
    """The definitions that are pinned of a server, by name.

    Raises:
        ConfigError: The lock file cannot be used.
    """
    found = _load_lock(lock).servers.get(server)
    return {} if found is None else {name: entry.definition for name, entry in found.tools.items()}


def reached(lock: Path, server: str) -> str | None:
    """How a server was reached when its tools were accepted.

    Raises:
        ConfigError: The lock file cannot be used.
    """
    found = _load_lock(lock).servers.get(server)
    return None if found is None else found.reached


@contextlib.contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Keeps others who change the files of this folder in the same way out, other processes too."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        # The names of new files are on the disk before anybody says they are.
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_unwritable(path: Path) -> None:
    """Does what `_store` does, but for the last step: only the system knows whether it works."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with _alone(path.parent):
            draft.unlink(missing_ok=True)
            os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
            draft.unlink()
    except OSError as error:
        message = f"{path}: the lock file cannot be written: {(error.strerror or str(error)).lower()}"
        raise ConfigError(message, "mcp.lock", "name a file in a folder that can be written: --lock FILE") from None


def _store(path: Path, document: Lock | Pending) -> None:
    text = json.dumps(msgspec.to_builtins(document), ensure_ascii=True, indent=1, sort_keys=True) + "\n"
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def _entries(server: str, reached: str, tools: dict[str, Definition]) -> dict[str, Entry]:
    return {name: Entry(digest(server, reached, tool), _reduced(tool)) for name, tool in tools.items()}


def refuse_unknown(seen: Seen, tools: Iterable[str]) -> None:
    """Refuses names that do not wait.

    Raises:
        ConfigError: One of them does not.
    """
    if unknown := sorted(set(tools) - set(seen.withheld)):
        waiting = ", ".join(map(_shown, sorted(seen.withheld)))
        raise ConfigError(f"{unknown[0]}: no such tool waits to be accepted", "mcp.accept", f"what waits: {waiting}")


def accept(path: Path, server: str, seen: Seen, tools: Iterable[str] | None = None) -> list[str]:
    """Takes over what waits, into the lock file.

    Args:
        path: The lock file.
        server: Whose tools.
        seen: What was shown to whoever accepts; what has come since stays.
        tools: Names; without them all, and what the server lists no more is removed.

    Returns:
        The names whose pins have changed.

    Raises:
        ConfigError: A file cannot be used, or a name is not among those that wait.
    """
    wanted = None if tools is None else set(tools)
    if wanted is not None:
        refuse_unknown(seen, wanted)
    with _alone(path.parent):
        lock = _load_lock(path)
        had = lock.servers.get(server)
        if had is not None and had.reached != seen.reached and wanted is not None:
            raise ConfigError(
                f"{server} is reached another way than before, so all its tools are accepted or none", "mcp.accept"
            )
        before: dict[str, Entry] = {} if had is None else had.tools
        taken = seen.tools if wanted is None else {name: seen.tools[name] for name in wanted if name in seen.tools}
        after = _entries(server, seen.reached, taken)
        if wanted is not None:
            after = {**before, **after}
        lock.servers[server] = Server(seen.reached, after)
        _store(path, lock)
        pending = read_pending(path)
        current = pending.servers.get(server)
        if current is not None and current.tools == seen.tools and current.reached == seen.reached:
            current.withheld = {} if wanted is None else {k: v for k, v in current.withheld.items() if k not in wanted}
            if not current.withheld:
                del pending.servers[server]
            _store_pending(path, pending)
    names = set(before) | set(after)
    return sorted(name for name in names if before.get(name) != after.get(name))


def _store_pending(lock: Path, pending: Pending) -> None:
    if pending.servers:
        _store(pending_path(lock), pending)
    else:
        pending_path(lock).unlink(missing_ok=True)


class Pins:
    """The pins of one server, and what they say of the tools it lists. Safe to share between threads.

    Args:
        path: The lock file; `None` keeps pins in memory, for as long as the process lives.
        server: What the operator calls the server.
        reached: How it is reached: another way is another server.
        locked: Whether tools of a server that the lock file does not know are withheld, instead of pinned as they are.
        say: Takes lines for the operator.

    Raises:
        ConfigError: The lock file cannot be used.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        server: str,
        reached: str,
        locked: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._path, self._server, self._reached, self._locked = path, server, reached, locked
        self._say = _to_stderr if say is None else say
        self._lock = Lock()
        self._stamp: tuple[int, ...] | None = None
        self._looked = 0.0
        self._first: dict[str, Definition] = {}
        """What was listed first, until all of it is written."""
        self._twice: set[str] = set()
        self._gone: set[str] = set()
        self._told: dict[str, str] = {}
        self.lock = threading.RLock()
        """Held while anything here changes; whoever reads more than one thing holds it too."""
        self.current: dict[str, Definition] = {}
        """The definitions as they were listed last, by name; also of tools that are not listed any more, since a
        list may leave out for one what it has for another."""
        self.withheld: dict[str, str] = {}
        """Why tools are withheld, for the model: nothing that the server has written is repeated."""
        # What is missing, or cannot be written, is said now and not with the first list.
        digest(server, reached, {})
        if path is not None:
            self._stamp = _stamp(path)
            self._lock = _load_lock(path)
            if server not in self._lock.servers and not locked:
                _refuse_unwritable(path)

    def refresh(self, within_seconds: float = 0.0) -> bool:
        """Looks whether the lock file has changed, and judges anew if it has.

        Args:
            within_seconds: Does not look if somebody has, so long ago at most.
        """
        if self._path is None:
            return False
        if within_seconds:
            now = time.monotonic()
            if now - self._looked < within_seconds:
                return False
            self._looked = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return False
        with self.lock:
            return self._refreshed(self._path, stamp)

    def _refreshed(self, path: Path, stamp: tuple[int, ...] | None) -> bool:
        self._stamp = stamp
        if stamp is None:
            self._say(f"{path} is gone; what it said holds until this process ends")
            return False
        had = self._lock.servers.get(self._server)
        try:
            self._lock = _load_lock(path)
        except (ConfigError, OSError) as error:
            self._say(f"what is pinned stays as it was: {error}")
            return False
        if had is not None and self._lock.servers.setdefault(self._server, had) is had:
            # Deleted, and perhaps written anew for another server: that accepts nothing of this one.
            self._say(f"{path} says nothing of {self._server} any more; what it said holds until this process ends")
        self._judge()
        return True

    def seen(self, page: list[Definition], whole: list[Definition] | None) -> None:
        """Takes what a server has listed.

        Args:
            page: The tools of one answer.
            whole: All pages together, once there are no more.

        Raises:
            ConfigError: There are too many tools.
            OSError: The lock file cannot be written.
        """
        with self.lock:
            self._refuse_many(len(self.current) + len(page))
            if whole is None:
                self._add(page)
            else:
                self._twice = set()
                self._add(whole, again=True)
                self._note_gone({str(tool.get("name")) for tool in whole})
            if self._server not in self._lock.servers and not self._locked:
                for name, tool in self.current.items():
                    self._first.setdefault(name, tool)
                if whole is not None:
                    self._keep_first()
            self._judge()

    @staticmethod
    def _refuse_many(number: int) -> None:
        # Each may be listed again under another name.
        if number > 2 * TOOLS_MAX:
            raise ConfigError(f"the server lists {number} tools, the limit is {TOOLS_MAX}", "mcp.tools")

    def _add(self, tools: list[Definition], *, again: bool = False) -> None:
        """Takes definitions; `again` says that all were taken before, and may now differ from one another only."""
        listed: dict[str, Definition] = {}
        for tool in tools:
            name = tool.get("name")
            if type(name) is not str or not 0 < len(name.encode()) <= NAME_BYTES_MAX:
                if not again:
                    self._say("hidden: a tool without a name, or with one that is too long")
                continue
            reduced = _reduced(tool)
            if listed.setdefault(name, reduced) != reduced:
                self._twice.add(name)
        self.current.update(listed)

    def _note_gone(self, listed: set[str]) -> None:
        had = self._lock.servers.get(self._server)
        pinned: set[str] = set() if had is None else set(had.tools)
        gone = (pinned | set(self.current)) - listed
        for name in sorted(gone - self._gone):
            self._say(f"{_shown(name)}: the server does not list this tool any more")
        self._gone = gone

    def _keep_first(self) -> None:
        """Pins what was listed first."""
        tools = {name: tool for name, tool in self._first.items() if self._clash(name, self._first) is None}
        made = Server(self._reached, _entries(self._server, self._reached, tools))
        if self._path is None:
            self._lock.servers[self._server] = made
            return
        with _alone(self._path.parent):
            lock = _load_lock(self._path)
            # Another proxy of the same server may have been faster: then this one's list is judged by that.
            if self._server not in lock.servers:
                lock.servers[self._server] = made
                _store(self._path, lock)
                self._say(f"pinned {len(tools)} tools of {self._server} in {self._path}, as they were listed first")
        self._lock, self._stamp, self._first = lock, _stamp(self._path), {}

    def _judge(self) -> None:
        had = self._lock.servers.get(self._server)
        judged = {name: self._reason(name, tool, had) for name, tool in self.current.items()}
        self.withheld = {name: reason for name, reason in judged.items() if reason is not None}
        self._tell(had)

    def _reason(self, name: str, tool: Definition, had: Server | None) -> str | None:
        """Why one tool is withheld; `None` if it is as it was accepted."""
        if name in self._twice:
            return f"the server lists two tools named `{_shown(name)}`."
        pinned: Iterable[str] = self._first if had is None else had.tools
        if (clash := self._clash(name, pinned)) is not None:
            return clash
        if had is None and self._locked:
            return f"the lock file knows nothing of this server, and only what it holds may be called.{ACCEPT}"
        if had is None:
            first = self._first.get(name)
            return None if first is None or first == tool else _changed(name, first, tool)
        return self._difference(name, tool, had)

    def _difference(self, name: str, tool: Definition, had: Server) -> str | None:
        if had.reached != self._reached:
            way = moved(had.reached, self._reached)
            return f"the server is reached another way than when its tools were accepted ({way}).{ACCEPT}"
        entry = had.tools.get(name)
        if entry is None:
            return f"the server has added `{_shown(name)}`, and nobody has accepted it yet.{ACCEPT}"
        if entry.digest == digest(self._server, self._reached, tool):
            return None
        return _changed(name, entry.definition, tool)

    def _clash(self, name: str, pinned: Iterable[str]) -> str | None:
        """Why a name cannot be told from another's."""
        key = folded(name)
        if key in BUILT_IN:
            return f"the name `{_shown(name)}` is that of a tool which the proxy makes of every server."
        if name in pinned and self._server in self._lock.servers:
            return None
        if any(other != name and folded(other) == key for other in (*self.current, *pinned)):
            return f"the name `{_shown(name)}` differs by case alone from that of another tool.{ACCEPT}"
        for server, known in self._lock.servers.items():
            if server != self._server and any(folded(other) == key for other in known.tools):
                return f"the name `{_shown(name)}` is that of a tool of another server.{ACCEPT}"
        return None

    def _tell(self, had: Server | None) -> None:
        """Says what is withheld and writes it down, once for each state of things."""
        news = {name: reason for name, reason in self.withheld.items() if self._told.get(name) != reason}
        over = [name for name in self._told if name not in self.withheld]
        self._told = dict(self.withheld)
        for name, reason in news.items():
            self._say(f"withheld: {_shown(name)}: {reason.removesuffix(ACCEPT)}")
            entry = None if had is None else had.tools.get(name)
            for line in difference(None if entry is None else entry.definition, self.current[name])[:DIFF_LINES_MAX]:
                self._say(f"  {line}")
        if news and had is not None and had.reached != self._reached:
            self._say(f"accepted as: {had.reached}")
            self._say(f"reached now: {self._reached}")
            self._say("if that is meant, accept it; if not, start the server as before")
        for name in over:
            self._say(f"no longer withheld: {_shown(name)}")
        if news and self._path is not None:
            self._say(f"read the difference, and accept it: tollkeeper mcp accept --lock {self._path}")
        if (news or over) and self._path is not None:
            try:
                self._write_pending(self._path)
            except (ConfigError, OSError) as error:
                # What is withheld is withheld, whether or not it can be written down for `accept`.
                self._say(f"what waits to be accepted cannot be written down: {error}")

    def _write_pending(self, path: Path) -> None:
        with _alone(path.parent):
            pending = read_pending(path)
            if self.withheld:
                listed = {n: t for n, t in self.current.items() if n not in self._gone or n in self.withheld}
                reasons = {name: reason.removesuffix(ACCEPT) for name, reason in self.withheld.items()}
                pending.servers[self._server] = Seen(self._reached, listed, reasons)
            else:
                pending.servers.pop(self._server, None)
            _store_pending(path, pending)


def _changed(name: str, before: Definition, after: Definition) -> str:
    fields = [part for part in FIELDS if before.get(part) != after.get(part) or (part in before) != (part in after)]
    what = f" ({', '.join(fields)})" if fields else ""
    return f"the definition of `{_shown(name)}` changed since it was accepted{what}.{ACCEPT}"


def moved(before: str, after: str) -> str:
    """What of the way to a server has changed, in words that a model may read: no arguments, and no path of a URL.

    Args:
        before: How it was reached when its tools were accepted, as the lock file has it.
        after: How it is reached now.

    Example:
        >>> from tollkeeper.mcp.pins import moved
        >>> moved("stdio npx sha256:0a1b2c3d4e5f6071", "http https://mcp.example.com/mcp")
        'before: the program `npx` (command sha256:0a1b2c3d4e5f6071); now: https://mcp.example.com'
    """
    same = ""
    if before.split(" ")[:-1] == after.split(" ")[:-1] and after.startswith("stdio "):
        same = ", the same program with other arguments"
    elif _way(before) == _way(after):
        same = ", another path of the same host"
    return f"before: {_way(before)}; now: {_way(after)}{same}"


def _way(reached: str) -> str:
    kind, _, rest = reached.partition(" ")
    if kind == "http":
        scheme, _, host = rest.partition("://")
        return f"{scheme}://{host.partition('/')[0]}"
    if kind == "stdio":
        program, _, words = rest.rpartition(" ")
        return f"the program `{program}` (command {words})"
    return reached


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Changes whenever the file is replaced or written."""
    try:
        found = os.stat(path)  # noqa: PTH116 - before each call: a third of the time
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _shown(name: str) -> str:
    return name if name.isascii() and name.isprintable() else json.dumps(name)


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"tollkeeper: {text}\n")
    sys.stderr.flush()
