"""What the audit bench measures against: AGT's `AuditLog`, `pymerkle`, SQLite, `logging`. And Tollkeeper's own log.

Each takes the same record. A peer promises less than Tollkeeper's log wherever its words say so; nothing is switched
off that it would do by itself. `check` says what is wrong with what it holds at the end, or nothing. A peer that is not
there is a reason to print, never an error.
"""

import json
import logging
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
AGT_PYTHON = ROOT / ".venv-agt" / "bin" / "python"

RECORD: dict[str, Any] = {
    "principal": 'Agent::"researcher-07"',
    "on_behalf_of": ['User::"ada@example.com"'],
    "session": "s-18f2c",
    "action": 'Action::"send_email"',
    "resource": 'Server::"mail"',
    "tool": "send_email",
    "decision": "allow",
    "code": "allow",
    "policies": {"mail-internal": "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg="},
    "mode": "enforce",
    "bundle": "n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=",
}
PRIVATE: dict[str, Any] = {"to": "ada@example.com", "subject": "Figures of the third quarter", "priority": 3}


@dataclass
class Took:
    """One run: seconds of the clock and of the processor, all threads together."""

    wall_s: float
    processor_s: float


@dataclass
class Peer:
    """One way to record, how many records a round has, and what can be said of a record afterwards."""

    name: str
    run: Callable[[int], Took]
    count: int
    durable: str
    verifiable: str
    # What is wrong, given the number of records made; None is right.
    check: Callable[[int], str | None]
    rounds: list[Took] = field(default_factory=list)


@dataclass
class Peers:
    """Those that could be started, the others with the reason, and what has to be stopped."""

    folder: Path
    found: list[Peer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def add(self, name: str, make: Callable[["Peers"], list[Peer]]) -> None:
        """Makes these or notes why not."""
        try:
            self.found.extend(make(self))
        except (ImportError, OSError, RuntimeError) as error:
            self.skipped[name] = str(error)


def timed(record: Callable[[], object], after: Callable[[], object] = lambda: None) -> Callable[[int], Took]:
    """Calls so often, then whatever brings all of it to where it shall be."""

    def run(count: int) -> Took:
        processor, wall = time.process_time(), time.perf_counter()
        for _ in range(count):
            record()
        after()
        return Took(time.perf_counter() - wall, time.process_time() - processor)

    return run


def expect(name: str, got: object, wanted: object) -> str | None:
    """A sentence if the two differ."""
    return None if got == wanted else f"{name}: {got} where {wanted} is right"


# --- ours ---------------------------------------------------------------------------------------------------------


def tollkeeper_log(peers: Peers) -> list[Peer]:
    """A run that waits for the disk once, and one that waits for every record."""
    from tollkeeper import AuditLog  # noqa: PLC0415 - without it the others can still be timed

    def opened(name: str) -> AuditLog:
        return peers.stack.enter_context(AuditLog.open(peers.folder / name, origin=f"example.com/{name}"))

    batched, single = opened("batched"), opened("single")

    def one() -> None:
        single.append(RECORD, private=PRIVATE)
        single.flush()

    def size(log: AuditLog) -> Callable[[int], str | None]:
        # The first entry says that the log was opened.
        return lambda count: expect("Tollkeeper", log.flush(), count + 1)

    group = timed(lambda: batched.append(RECORD, private=PRIVATE), batched.flush)
    proofs = "by outsiders: Merkle tree, signed"
    return [
        Peer("Tollkeeper, append; flush at the end", group, 20_000, "all, at the flush", proofs, size(batched)),
        Peer("Tollkeeper, append + flush each", timed(one), 100, "each, at once", proofs, size(single)),
    ]


# --- AGT ----------------------------------------------------------------------------------------------------------


def agt_library(peers: Peers) -> list[Peer]:
    """AGT's log in a process and an environment of its own: its pins exclude this one's."""
    if not AGT_PYTHON.exists():
        raise RuntimeError("no .venv-agt; `make .venv-agt/.created` installs it")
    command = [str(AGT_PYTHON), str(HERE / "agt_peer.py"), str(peers.folder)]
    child = subprocess.Popen(  # noqa: S603 - the interpreter just found
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )

    def stop() -> None:
        child.kill()
        child.communicate()

    peers.stack.callback(stop)
    assert child.stdin is not None and child.stdout is not None  # noqa: S101, PT018 - both are pipes
    to_child, from_child = child.stdin, child.stdout

    def ask(**command: object) -> Any:
        to_child.write(json.dumps(command) + "\n")
        to_child.flush()
        line = from_child.readline()
        if not line:
            raise RuntimeError("the AGT process died; run benches/python/agt_peer.py by hand to see why")
        return json.loads(line)

    def peer(kind: str, words: str, durable: str, verifiable: str) -> Peer:
        def run(count: int) -> Took:
            return Took(*ask(run=kind, count=count, record=RECORD, private=PRIVATE))

        def check(count: int) -> str | None:
            return expect("AGT", ask(check=kind), [count, True])

        return Peer(words, run, 2_000, durable, verifiable, check)

    ask(check="memory")
    return [
        peer("memory", "AGT AuditLog, in memory", "no", "by itself: hash chain; 5 fields"),
        peer("file", "AGT AuditLog, FileAuditSink", "no: never synced", "by who holds the HMAC key"),
    ]


# --- others -------------------------------------------------------------------------------------------------------


def line() -> bytes:
    """The record as one line of JSON."""
    return json.dumps({**RECORD, "private": PRIVATE}).encode()


def pymerkle_library(peers: Peers) -> list[Peer]:
    """The same tree in Python, in memory and in SQLite."""
    from pymerkle import InmemoryTree, SqliteTree  # noqa: PLC0415 - a peer, may be missing

    memory = InmemoryTree(algorithm="sha256")
    stored = SqliteTree(str(peers.folder / "pymerkle.db"), algorithm="sha256")

    def peer(name: str, tree: Any, count: int, durable: str) -> Peer:
        def check(made: int) -> str | None:
            return expect("pymerkle", tree.get_size(), made)

        run = timed(lambda: tree.append_entry(line()))
        return Peer(name, run, count, durable, "root only: nothing signed", check)

    return [
        peer("pymerkle, in memory", memory, 5_000, "no"),
        peer("pymerkle, SQLite", stored, 50, "each, at once"),
    ]


def sqlite_library(peers: Peers) -> list[Peer]:
    """An insert and a commit for each, and one commit for a thousand."""

    def peer(name: str, each: int, count: int, durable: str) -> Peer:
        database = sqlite3.connect(peers.folder / f"{each}.db", isolation_level=None)
        peers.stack.callback(database.close)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE log (seq INTEGER PRIMARY KEY, entry BLOB NOT NULL)")
        insert = "INSERT INTO log (entry) VALUES (?)"

        def many() -> None:
            database.execute("BEGIN")
            for _ in range(each):
                database.execute(insert, (line(),))
            database.execute("COMMIT")

        def run(records: int) -> Took:
            return timed(many)(records // each)

        def check(made: int) -> str | None:
            return expect("sqlite", database.execute("SELECT count(*) FROM log").fetchone()[0], made)

        return Peer(name, run, count, durable, "no", check)

    return [
        peer("sqlite WAL, FULL, commit each", 1, 100, "each, at once"),
        peer("sqlite WAL, FULL, commit per 1,000", 1_000, 10_000, "at each commit"),
    ]


def logging_library(peers: Peers) -> list[Peer]:
    """`logging` with a file handler, which hands each line to the kernel."""
    path = peers.folder / "log.jsonl"
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.Logger("bench", logging.INFO)  # noqa: LOG001 - one that no other code finds
    logger.addHandler(handler)
    peers.stack.callback(handler.close)

    def record() -> None:
        logger.info(json.dumps({"time": time.time(), **RECORD, "private": PRIVATE}))

    def check(made: int) -> str | None:
        return expect("logging", path.read_bytes().count(b"\n"), made)

    return [Peer("logging, JSON lines", timed(record), 5_000, "no: survives the process", "no", check)]


def everyone(folder: Path) -> Peers:
    """All of the table."""
    peers = Peers(folder)
    peers.add("Tollkeeper", tollkeeper_log)
    peers.add("AGT", agt_library)
    peers.add("pymerkle", pymerkle_library)
    peers.add("sqlite", sqlite_library)
    peers.add("logging", logging_library)
    return peers
