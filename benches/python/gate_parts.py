"""The parts of the gate bench: each measures, asserts what was counted, and returns rows for the table.

A row is plain data: `part`, `name`, figures in microseconds, and where there is one `target` with `met`. A part that
cannot run raises `RuntimeError` with the reason. Nothing is printed here.
"""

import contextlib
import contextvars
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import budget_peers
import gate_loop
import gate_measure
import gate_shape

HERE = Path(__file__).resolve().parent
AGT_PYTHON = HERE.parent.parent / ".venv-agt" / "bin" / "python"
SIZES = (10, 100, 1_000, 10_000)
CHECKS = 4_000
# A record takes up to 2 KiB of the ring's 16 MiB, and two threads fill one ring while the disk is busy.
CHECKS_AT_ONCE = 2_000
# What else ran here when the bench was started, in processors.
LOAD_BEFORE, LOAD_MAX = os.getloadavg()[0], 0.5
# A ticker of an idle machine is late by the rounding of its timers: one millisecond, sometimes two.
NOISE_MS = 3.0
PEER_WORDS = {
    "govern": "AGT govern(), audit on",
    "govern-terms": "AGT govern(), our conditions",
    "stack": "cedarpy + Redis Lua + AGT AuditLog",
}
Row = dict[str, Any]


class WrongError(Exception):
    """Something was decided, recorded or counted otherwise than it was asked."""


class Subjects:
    """Gates in folders of their own, each entered in a context of its own, all checked at the end."""

    def __init__(self, folder: Path) -> None:
        """Nothing is open yet."""
        self.folder = folder
        self.open: list[tuple[str, gate_shape.Subject]] = []

    def make(
        self, name: str, count: int, **settings: Any
    ) -> tuple[gate_shape.Subject, Callable[[Callable[[], Any]], Any]]:
        """A gate of so many policies, and a function that calls another one in its run."""
        file = gate_shape.write(self.folder / name, count, **settings)
        gate_shape.agreed(count, file.parent)
        subject = gate_shape.opened(file, count)
        context = contextvars.copy_context()
        context.run(subject.scope.__enter__)
        self.open.append((name, subject))
        return subject, context.run

    def finish(self) -> None:
        """Compares every log and ledger, and closes.

        Raises:
            WrongError: One is not as it must be.
        """
        for name, subject in self.open:
            if wrong := subject.wrong():
                raise WrongError(f"{name}: {wrong}")
            subject.gate.close()
        self.open = []


def sampler(
    subject: gate_shape.Subject, run: Callable[..., Any], take: Callable[..., list[float]], *more: Any
) -> gate_measure.Sample:
    """Samples in the subject's run; afterwards the ring is empty again, outside the samples."""

    def sample() -> list[float]:
        values: list[float] = run(take, subject, *more)
        subject.gate.log.flush()  # type: ignore[union-attr]
        return values

    return sample


# --- peers --------------------------------------------------------------------------------------------------------


class Peers:
    """The process of `gate_peer.py`."""

    def __init__(self, folder: Path, sizes: tuple[int, ...], stack: contextlib.ExitStack) -> None:
        """Starts it with a Redis.

        Raises:
            RuntimeError: One of them is not there.
        """
        if not AGT_PYTHON.exists():
            raise RuntimeError("no .venv-agt; `make .venv-agt/.created` installs it")
        port = budget_peers.redis_server(stack)
        for size in sizes:
            case = gate_shape.policies(size)
            given = {"policies": size, "side": max(1, math.isqrt(size)), "cedar": case.policies}
            given |= {"entities": case.entities, "requests": gate_shape.plain_requests(size)}
            (folder / f"{size}.json").write_text(json.dumps(given))
        command = [str(AGT_PYTHON), "-W", "ignore", str(HERE / "gate_peer.py"), str(port), str(folder)]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - just found
        stack.callback(self.child.communicate)
        stack.callback(self.child.kill)
        self.calls: dict[tuple[str, int], int] = {}

    def ask(self, **command: object) -> Any:
        """One line there and back."""
        assert self.child.stdin is not None and self.child.stdout is not None  # noqa: S101, PT018 - both are pipes
        self.child.stdin.write(json.dumps(command) + "\n")
        self.child.stdin.flush()
        if not (line := self.child.stdout.readline()):
            raise WrongError("the peers' process died; run benches/python/gate_peer.py by hand to see why")
        return json.loads(line)

    def sample(self, kind: str, policies: int, count: int) -> gate_measure.Sample:
        """What `turns` takes."""

        def take() -> list[float]:
            self.calls[kind, policies] = self.calls.get((kind, policies), 0) + count
            return [value / 1e3 for value in self.ask(run=kind, policies=policies, count=count)]

        return take

    def finish(self) -> None:
        """Compares what the peers counted.

        Raises:
            WrongError: It is not what was asked of them.
        """
        for (kind, policies), calls in self.calls.items():
            found = self.ask(check=kind, policies=policies)
            wanted = [calls, True, [calls * gate_shape.TOKENS]] if kind == "stack" else [calls, True]
            if found != wanted:
                raise WrongError(f"{kind} at {policies} policies: {found} where {wanted} is right")


def peers(folder: Path, rounds: int) -> list[Row]:
    """One check at 100 policies beside the peers, all in each round."""
    subjects = Subjects(folder)
    strings, strings_run = subjects.make("four", 100)
    twelve, twelve_run = subjects.make("twelve", 100, cells=gate_shape.THREE_CELLS)
    with contextlib.ExitStack() as stack:
        other = Peers(folder, (100,), stack)
        candidates = {
            "check, 4 levels": sampler(strings, strings_run, gate_measure.checks, CHECKS),
            "check, 4 levels of 3 limits": sampler(twelve, twelve_run, gate_measure.checks, CHECKS),
            "prepared action, 4 levels": sampler(strings, strings_run, gate_measure.prepared, CHECKS),
        }
        for kind, count in (("govern", 100), ("govern-terms", 50), ("stack", 100)):
            candidates[PEER_WORDS[kind]] = other.sample(kind, 100, count)
        figures = gate_measure.turns(candidates, rounds)
        other.finish()
    subjects.finish()
    ours = figures["check, 4 levels"]
    rows = [{"part": "peers", **figure.plain(), "ratio": round(figure.times(ours), 2)} for figure in figures.values()]
    plain = rows[0]
    return [
        *rows,
        idle(target("p50 of a full check", plain["p50_us"], "us", 1.0)),
        idle(target("p99.9 of a full check, idle", plain["p999_us"], "us", 50.0)),
        idle(target("times as fast as govern()", figures[PEER_WORDS["govern"]].times(ours), "x", 300, least=True)),
        idle(target("times as fast as the stack", figures[PEER_WORDS["stack"]].times(ours), "x", 100, least=True)),
    ]


def idle(row: Row) -> Row:
    """A target for idle machines: what is missed on a busy one cannot be told."""
    if LOAD_BEFORE > LOAD_MAX and not row["met"]:
        row |= {"met": None, "why": f"the load before the run was {LOAD_BEFORE:.1f}, so this machine is not idle"}
    return row


def target(name: str, value: float, unit: str, bound: float, *, least: bool = False) -> Row:
    """What was wanted and whether it is so."""
    met = value >= bound if least else value <= bound
    return {"target": name, "value": round(value, 3), "unit": unit, "bound": bound, "least": least, "met": met}


def policies(folder: Path, rounds: int, peer_rounds: int = 3) -> list[Row]:
    """From 10 to 10,000 policies; the peers in fewer rounds, where one of their calls takes milliseconds."""
    subjects, candidates = Subjects(folder), dict[str, gate_measure.Sample]()
    for size in SIZES:
        subject, run = subjects.make(f"policies{size}", size)
        candidates[str(size)] = sampler(subject, run, gate_measure.checks, CHECKS)
    figures = gate_measure.turns(candidates, rounds)
    rows: list[Row] = [
        {"part": "policies", **figures[str(size)].plain(), "name": "check, 4 levels", "policies": size}
        for size in SIZES
    ]
    with contextlib.ExitStack() as stack:
        other = Peers(folder, SIZES, stack)
        counts = {10: 100, 100: 50, 1_000: 10, 10_000: 3}
        asked = {
            f"{kind} {size}": other.sample(kind, size, counts[size]) for kind in ("govern", "stack") for size in SIZES
        }
        for name, figure in gate_measure.turns(asked, peer_rounds).items():
            kind, _, size = name.partition(" ")
            rows.append({"part": "policies", **figure.plain(), "name": PEER_WORDS[kind], "policies": int(size)})
        other.finish()
    subjects.finish()
    growth = figures[str(SIZES[-1])].times(figures[str(SIZES[0])])
    return [*rows, target("10,000 policies against 10", growth, "x", 1.25)]


# --- threads and processes ----------------------------------------------------------------------------------------


def spread(part: str, name: str, values: list[float], rates: list[float]) -> Row:
    """A row of single calls with the checks a second of all of them together."""
    figure = gate_measure.Figure(name, [values])
    return {"part": part, **figure.plain(), "checks_per_s": round(statistics.median(rates))}


def at_once(subject: gate_shape.Subject, context: contextvars.Context, number: int, values: list[float]) -> float:
    """So many threads check at the same time; adds what each check took, and says how many were made a second."""
    barrier, before = threading.Barrier(number + 1), subject.checks
    failures: list[BaseException] = []

    def work(own: contextvars.Context) -> None:
        barrier.wait()
        try:
            values.extend(own.run(gate_measure.checks, subject, CHECKS_AT_ONCE))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that waits
            failures.append(error)
        barrier.wait()

    started = [threading.Thread(target=work, args=(context.copy(),)) for _ in range(number)]
    for one in started:
        one.start()
    barrier.wait()
    start = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - start
    for one in started:
        one.join()
    if failures:
        raise failures[0]
    # Two threads count in the same attribute; what each has asserted itself is the truth.
    subject.checks = before + number * CHECKS_AT_ONCE
    subject.gate.log.flush()  # type: ignore[union-attr]
    return number * CHECKS_AT_ONCE / seconds


def threads(folder: Path, rounds: int) -> list[Row]:
    """One thread, then two at the same time, on one gate."""
    subjects = Subjects(folder)
    subject, run = subjects.make("threads", 100)
    context = run(contextvars.copy_context)
    values: dict[int, list[float]] = {1: [], 2: []}
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds + 1):
        for number, kept in values.items():
            taken: list[float] = []
            rate = at_once(subject, context, number, taken)
            if turn:
                kept.extend(taken)
                rates[number].append(rate)
    subjects.finish()
    rows = [
        spread("threads", f"{number} thread{'s' * (number > 1)}", values[number], rates[number]) for number in values
    ]
    rows[-1]["ratio"] = round(statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True)), 2)
    return rows


@contextlib.contextmanager
def workers(file: Path, number: int) -> Iterator[list["subprocess.Popen[str]"]]:
    """Processes that are ready to check; ended by their own pipes."""
    command = [sys.executable, str(HERE / "gate_worker.py"), str(file), "100"]
    started: list[subprocess.Popen[str]] = []
    try:
        for _ in range(number):
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ourselves
            started.append(child)
            assert child.stdout is not None  # noqa: S101 - a pipe
            if child.stdout.readline().strip() != "ready":
                raise WrongError("a worker did not start; run benches/python/gate_worker.py by hand to see why")
        yield started
    finally:
        for child in started:
            child.communicate(timeout=60)


def said(child: "subprocess.Popen[str]", words: str) -> None:
    """Writes a line."""
    assert child.stdin is not None  # noqa: S101 - a pipe
    child.stdin.write(words + "\n")
    child.stdin.flush()


def heard(child: "subprocess.Popen[str]") -> Any:
    """Reads a line."""
    assert child.stdout is not None  # noqa: S101 - a pipe
    if not (line := child.stdout.readline()):
        raise WrongError("a worker died; run benches/python/gate_worker.py by hand to see why")
    return json.loads(line)


def bursts(children: list["subprocess.Popen[str]"]) -> list[tuple[float, list[float]]]:
    """All of these check over the same stretch of time; seconds and microseconds of each."""
    start = time.monotonic() + 0.01
    for child in children:
        said(child, f"{start} {CHECKS_AT_ONCE}")
    return [(seconds, taken) for seconds, taken in map(heard, children)]


def ended(children: list["subprocess.Popen[str]"]) -> int:
    """Ends all of them; how many checks they made, each with an entry in its log."""
    for child in children:
        said(child, "end")
    total = 0
    for checks, entries in map(heard, children):
        if checks != entries:
            raise WrongError(f"a worker's log has {entries:,} entries where it made {checks:,} checks")
        total += checks
    return total


def processes(folder: Path, rounds: int) -> list[Row]:
    """Two processes on one ledger file and one folder of logs: one at a time, then both over the same stretch."""
    file = gate_shape.write(folder / "processes", 100)
    gate_shape.agreed(100, file.parent)
    values: dict[str, list[float]] = {"alone": [], "together": []}
    rates: dict[str, list[float]] = {"alone": [], "together": []}
    with workers(file, 2) as children:
        for turn in range(rounds + 1):
            for name, group in (("alone", [children[turn % 2]]), ("together", children)):
                kept = bursts(group)
                if turn:
                    values[name].extend(value for _, taken in kept for value in taken)
                    rates[name].append(sum(len(taken) / seconds for seconds, taken in kept))
        spent = ended(children)
    # Who opens the ledger now must find all of both.
    subject = gate_shape.opened(file, 100, fresh=False)
    if wrong := subject.wrong(root_checks=spent + subject.checks):
        raise WrongError(f"processes: {wrong}")
    subject.gate.close()
    rows = [spread("processes", f"2 processes, {name}", values[name], rates[name]) for name in values]
    pairs = zip(rates["together"], rates["alone"], strict=True)
    rows[-1]["ratio"] = round(statistics.median(a / b for a, b in pairs), 2)
    return rows


# --- arguments and event loops ------------------------------------------------------------------------------------


def sized(size: int, *, many: bool) -> dict[str, Any]:
    """Arguments of about so many bytes: one string, or many members of twenty characters."""
    base: dict[str, Any] = {"path": "/data/0/notes.txt", "amount": 3}
    if many:
        members = max(1, (size - 40) // 28)
        return {**base, "kind": "k0", **{f"m{number:04}": "x" * 20 for number in range(members)}}
    return {**base, "body": "x" * max(1, size - 40)}


def bytes_(folder: Path, rounds: int) -> list[Row]:
    """What each byte of the arguments costs, beside `json.dumps` of the same, the least that peers pay."""
    subjects = Subjects(folder)
    subject, run = subjects.make("bytes", 100)
    # A member takes more of the 64 KiB that a check copies than its text does.
    tool = subject.calls[0].tool
    sizes = {False: (100, 1_000, 10_000, 30_000, 60_000), True: (100, 1_000, 10_000, 30_000)}
    candidates: dict[str, gate_measure.Sample] = {}
    lengths: dict[str, int] = {}
    for many, wanted in sizes.items():
        for size in wanted:
            name, arguments = f"{'many members' if many else 'one string'} {size}", sized(size, many=many)
            lengths[name] = len(json.dumps(arguments, separators=(",", ":")))
            count = min(1_000, 4_000_000 // size)
            candidates[name] = sampler(subject, run, gate_measure.checks, count, [(tool, arguments)])
            candidates[f"json.dumps, {name}"] = dumping(arguments, min(count, 200))
    figures = gate_measure.turns(candidates, rounds)
    subjects.finish()
    rows: list[Row] = []
    for many, shape in ((False, "one string"), (True, "many members")):
        small, large = f"{shape} {sizes[many][0]}", f"{shape} {sizes[many][-1]}"
        between = lengths[large] - lengths[small]
        for prefix in ("", "json.dumps, "):
            pairs = zip(figures[prefix + large].p50s(), figures[prefix + small].p50s(), strict=True)
            rows.append(
                {"part": "bytes", "name": f"{prefix}{shape}",
                 "ns_per_byte": round(statistics.median((a - b) * 1e3 / between for a, b in pairs), 3)}
            )  # fmt: skip
    rows.extend(
        {"part": "bytes", **figures[name].plain(), "argument_bytes": lengths[name]}
        for name in candidates
        if not name.startswith("json")
    )
    return rows


def dumping(arguments: dict[str, Any], count: int) -> gate_measure.Sample:
    """`json.dumps` in the same turns."""

    def sample() -> list[float]:
        now, taken = time.perf_counter_ns, []
        for _ in range(count):
            start = now()
            json.dumps(arguments, separators=(",", ":"))
            taken.append((now() - start) / 1e3)
        return taken

    return sample


def loop(folder: Path, rounds: int, seconds: float = 0.7) -> list[Row]:
    """The lag of asyncio's and uvloop's event loop, with checks and without, in turns."""
    import asyncio  # noqa: PLC0415 - only this part

    factories: dict[str, Any] = {"asyncio": asyncio.new_event_loop}
    rows: list[Row] = []
    try:
        import uvloop  # noqa: PLC0415 - may be missing

        factories["uvloop"] = uvloop.new_event_loop
    except ImportError:
        rows.append({"part": "loop", "skipped": "uvloop", "reason": "it is not installed"})
    subjects = Subjects(folder)
    # A ring for all of a run: a disk that takes less than 75 MB a second would end it, and that is not what is asked.
    subject, run = subjects.make("loop", 100, audit="ring_kib = 131072\n")
    checks, empty = gate_loop.calls_of(subject)
    for name, factory in factories.items():
        taken: dict[str, list[gate_loop.Lag]] = {"without": [], "with": []}
        for turn in range(rounds + 1):
            for kind, call in (("without", empty), ("with", checks)):
                lag = run(gate_loop.measured, factory, call, seconds)
                subject.gate.log.flush()  # type: ignore[union-attr]
                if turn:
                    taken[kind].append(lag)
        for kind, lags in taken.items():
            late = sorted(value for lag in lags for value in lag.late_us)
            rows.append(
                {"part": "loop", "name": f"{name}, {kind} checks", "calls": sum(lag.calls for lag in lags),
                 "p50_us": round(gate_measure.quantile(late, 0.5), 1),
                 "p99_us": round(gate_measure.quantile(late, 0.99), 1),
                 "p999_us": round(gate_measure.quantile(late, 0.999), 1), "max_us": round(late[-1], 1),
                 "checks_per_s": round(statistics.median(lag.rate for lag in lags))}
            )  # fmt: skip
        pairs = zip(taken["with"], taken["without"], strict=True)
        added = statistics.median(a.p99() - b.p99() for a, b in pairs)
        rows.append(idle(target(f"{name}: p99 of the lag that checks add", added / 1e3, "ms", 1.0)))
        idle_ms = statistics.median(lag.p99() for lag in taken["without"]) / 1e3
        if idle_ms > NOISE_MS:
            rows[-1] |= {"met": None, "why": f"without any check the ticker's p99 is {idle_ms:.1f} ms already"}
        reached = statistics.median(lag.rate for lag in taken["with"])
        rows.append(idle(target(f"{name}: checks a second", reached, "/s", 0.95 * gate_loop.RATE, least=True)))
    subjects.finish()
    return rows
