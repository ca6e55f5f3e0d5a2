"""What the budget bench measures against: counters under a lock, Redis, `limits`, `pyrate-limiter`, LiteLLM.

Each peer takes an amount at four levels, all or nothing where it can, and gives it back where it can. Wherever the two
sides cannot do the same, the peer does less than Tollkeeper does: one counter per level instead of three, no windows,
no hold that could be recovered. `check` says what is wrong with its counters at the end, or nothing. A peer that is
not there is a reason to print, never an error.
"""

import json
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import percall

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LITELLM_PYTHON = ROOT / ".venv-litellm" / "bin" / "python"
LEVELS = ("acme", "acme/research", "acme/research/team", "acme/research/team/a")
LIMIT = 1 << 60
TOKENS = 100

# All or nothing over the keys, with the stock subtracted from what is free; and back again.
LUA_RESERVE = """
local n = tonumber(ARGV[1])
for _, key in ipairs(KEYS) do
  if tonumber(redis.call('GET', key) or '0') < n then return 0 end
end
for _, key in ipairs(KEYS) do redis.call('DECRBY', key, n) end
return 1
"""
LUA_RELEASE = """
for _, key in ipairs(KEYS) do redis.call('INCRBY', key, ARGV[1]) end
return 1
"""


@dataclass
class Peer:
    """One thing to time, what its last state must be, and what it does not do."""

    name: str
    candidate: percall.Candidate
    # What is wrong, given the number of calls made; None is right.
    check: Callable[[int], str | None] = lambda _: None
    note: str = ""


@dataclass
class Peers:
    """The peers that could be started, the others with the reason, and what has to be stopped."""

    found: list[Peer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def add(self, name: str, make: Callable[["Peers"], list[Peer]]) -> None:
        """Makes these or notes why not."""
        try:
            self.found.extend(make(self))
        except (ImportError, OSError, RuntimeError) as error:
            self.skipped[name] = str(error)


def expect(name: str, got: object, wanted: object) -> str | None:
    """A sentence if the two differ."""
    return None if got == wanted else f"{name}: {got} where {wanted} is right"


# --- a Python integer under a lock --------------------------------------------------------------------------------


class LockedInt:
    """One counter."""

    def __init__(self) -> None:
        """All of it is free."""
        self.free = LIMIT
        self.lock = threading.Lock()

    def take(self, amount: int) -> bool:
        """Subtracts if it fits."""
        with self.lock:
            if self.free < amount:
                return False
            self.free -= amount
            return True

    def give(self, amount: int) -> None:
        """Adds."""
        with self.lock:
            self.free += amount


class LockedTree:
    """A counter per level, found by path, under one lock: all or nothing."""

    def __init__(self) -> None:
        """All of it is free."""
        self.chains = {path: [[LIMIT] for _ in range(number + 1)] for number, path in enumerate(LEVELS)}
        self.lock = threading.Lock()

    def take(self, path: str, amount: int) -> bool:
        """Subtracts at every level, or nowhere."""
        chain = self.chains[path]
        with self.lock:
            for cell in chain:
                if cell[0] < amount:
                    return False
            for cell in chain:
                cell[0] -= amount
            return True

    def give(self, path: str, amount: int) -> None:
        """Adds at every level."""
        chain = self.chains[path]
        with self.lock:
            for cell in chain:
                cell[0] += amount


def locked(_: Peers) -> list[Peer]:
    """The two above."""
    one, tree, leaf = LockedInt(), LockedTree(), LEVELS[-1]

    def single() -> None:
        if one.take(TOKENS):
            one.give(TOKENS)

    def levels() -> None:
        if tree.take(leaf, TOKENS):
            tree.give(leaf, TOKENS)

    return [
        Peer("int under a lock", percall.Candidate(single), lambda _: expect("int", one.free, LIMIT), "one counter"),
        Peer(
            "4 ints under a lock",
            percall.Candidate(levels),
            lambda _: expect("4 ints", tree.chains[leaf], [[LIMIT]] * 4),
            "one counter per level",
        ),
    ]


# --- Redis --------------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def redis_server(stack: ExitStack) -> int:
    """Starts one without persistence, to be stopped with the stack; its port."""
    program = shutil.which("redis-server")
    if program is None:
        raise RuntimeError("redis-server is not on PATH; on Debian and Ubuntu: apt-get install redis-server")
    port = free_port()
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603 - from PATH

    def stop() -> None:
        server.terminate()
        server.wait(timeout=10)

    stack.callback(stop)
    return port


def redis_client(port: int, stack: ExitStack) -> Any:
    """A connected client, once the server answers."""
    import redis  # noqa: PLC0415 - a peer, may be missing

    client = redis.Redis(host="127.0.0.1", port=port)
    stack.callback(client.close)
    deadline = time.monotonic() + 10
    while True:
        try:
            client.ping()
        except redis.ConnectionError as error:
            if time.monotonic() > deadline:
                raise RuntimeError("redis-server did not answer within 10 s") from error
            time.sleep(0.02)
        else:
            return client


def redis_lua(peers: Peers) -> list[Peer]:
    """PING as the floor; the script over four keys alone, with its counterpart, and with three keys per level."""
    client = redis_client(redis_server(peers.stack), peers.stack)
    reserve, release = client.script_load(LUA_RESERVE), client.script_load(LUA_RELEASE)
    spend = [f"spend:{path}" for path in LEVELS]
    keys = [f"free:{path}" for path in LEVELS]
    wide = [f"free:{path}:{unit}" for path in LEVELS for unit in ("tokens", "nano_usd", "requests")]
    client.mset(dict.fromkeys([*spend, *keys, *wide], 1 << 52))
    evalsha = client.evalsha

    def refuse() -> None:
        raise AssertionError("Redis denied what fits")

    def once() -> None:
        evalsha(reserve, 4, *spend, TOKENS) or refuse()

    def both() -> None:
        evalsha(reserve, 4, *keys, TOKENS) or refuse()
        evalsha(release, 4, *keys, TOKENS)

    def twelve() -> None:
        evalsha(reserve, 12, *wide, TOKENS) or refuse()
        evalsha(release, 12, *wide, TOKENS)

    def values(names: list[str]) -> set[int]:
        return {int(value) for value in client.mget(names)}

    return [
        Peer("Redis PING", percall.Candidate(client.ping, 300), note="the round trip alone"),
        Peer(
            "Redis Lua, reserve only",
            percall.Candidate(once, 300),
            lambda calls: expect("Redis", values(spend), {(1 << 52) - calls * TOKENS}),
            "4 counters; nothing given back",
        ),
        Peer(
            "Redis Lua, reserve + release",
            percall.Candidate(both, 300),
            lambda _: expect("Redis", values(keys), {1 << 52}),
            "4 counters, two round trips",
        ),
        Peer(
            "Redis Lua, 12 counters",
            percall.Candidate(twelve, 300),
            lambda _: expect("Redis", values(wide), {1 << 52}),
            "12 counters, two round trips",
        ),
    ]


# --- libraries ----------------------------------------------------------------------------------------------------


def limits_library(_: Peers) -> list[Peer]:
    """`limits`: fixed window, level by level, nothing can be given back."""
    from limits import RateLimitItemPerDay, storage, strategies  # noqa: PLC0415 - a peer, may be missing

    limiter = strategies.FixedWindowRateLimiter(storage.MemoryStorage())
    item = RateLimitItemPerDay(LIMIT)

    def hit() -> None:
        for path in LEVELS:
            if not limiter.hit(item, path, cost=TOKENS):
                raise AssertionError("limits denied what fits")

    def check(calls: int) -> str | None:
        left = {limiter.get_window_stats(item, path).remaining for path in LEVELS}
        return expect("limits", left, {LIMIT - calls * TOKENS})

    return [Peer("limits, fixed window", percall.Candidate(hit, 500), check, "reserve only; not all or nothing")]


def pyrate_library(_: Peers) -> list[Peer]:
    """`pyrate-limiter`: a bucket per level, weight 1 because it stores one entry per unit."""
    from pyrate_limiter import InMemoryBucket, Limiter, Rate  # noqa: PLC0415 - a peer, may be missing

    buckets = [InMemoryBucket([Rate(1 << 40, 86_400_000)]) for _ in LEVELS]
    limiters = [Limiter(bucket) for bucket in buckets]

    def acquire() -> None:
        for limiter in limiters:
            if not limiter.try_acquire("a", weight=1, blocking=False):
                raise AssertionError("pyrate-limiter denied what fits")

    def check(calls: int) -> str | None:
        return expect("pyrate-limiter", {bucket.count() for bucket in buckets}, {calls})

    note = "reserve of 1 token only; not all or nothing"
    return [Peer("pyrate-limiter", percall.Candidate(acquire, 300), check, note)]


def litellm_library(peers: Peers) -> list[Peer]:
    """LiteLLM's limiter in memory, in a process and an environment of its own: its pins exclude this one's."""
    if not LITELLM_PYTHON.exists():
        raise RuntimeError("no .venv-litellm; `make .venv-litellm/.created` installs it (340 MB)")
    command = [str(LITELLM_PYTHON), str(HERE / "litellm_peer.py")]
    child = subprocess.Popen(  # noqa: S603 - the interpreter just found
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )

    def stop() -> None:
        child.kill()
        child.communicate()

    peers.stack.callback(stop)
    assert child.stdin is not None and child.stdout is not None  # noqa: S101, PT018 - both are pipes
    to_child, from_child = child.stdin, child.stdout

    def ask(command: str) -> Any:
        to_child.write(command + "\n")
        to_child.flush()
        line = from_child.readline()
        if not line:
            raise RuntimeError("the LiteLLM process died; run benches/python/litellm_peer.py by hand to see why")
        return json.loads(line)

    cost_us = ask("empty 1000") / 1e3

    def counters(kind: str, wanted: Callable[[int], int]) -> Callable[[int], str | None]:
        return lambda calls: expect("LiteLLM", ask(f"left {kind}"), [wanted(calls)] * 4)

    note = "one counter per level; the limiter its proxy calls before a request"
    return [
        Peer(
            f"LiteLLM, {words}",
            percall.Candidate(count=100, remote=lambda count, kind=kind: ask(f"{kind} {count}"), cost_us=cost_us),
            counters(kind, wanted),
            note,
        )
        for kind, words, wanted in (
            ("reserve", "reserve only", lambda calls: calls * TOKENS),
            ("both", "reserve + refund", lambda _: 0),
        )
    ]


def everyone() -> Peers:
    """All peers of the first table."""
    peers = Peers()
    peers.add("int under a lock", locked)
    peers.add("Redis", redis_lua)
    peers.add("limits", limits_library)
    peers.add("pyrate-limiter", pyrate_library)
    peers.add("LiteLLM", litellm_library)
    return peers
