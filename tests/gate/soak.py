"""A soak: every feature of the gate at full rate, for as long as one likes, from several threads of two processes.

Both processes share one state directory and one ledger, each has a log of its own. They check, call models and stream,
delegate, read and mail, ask for approvals and use them, reload, and begin a new epoch of the log every so often;
meanwhile this one revokes and restores an agent, answers approvals, and verifies every epoch that is over before it
deletes it, since at full rate no disk would hold them all. At the end the ledger must have counted what the callers
did, the logs must hold as many decisions as were answered, and neither memory, descriptors nor threads may have grown.

Refuses nothing by itself: what it finds stands in the verdict, and the exit status is 1 if anything is wrong.

    python tests/gate/soak.py --seconds 600
"""

import argparse
import contextlib
import ctypes
import gc
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from tollkeeper import Decision, Denied, Gate, Ledger, Scope, TollkeeperError
from tollkeeper._native import Control, audit_verify

WORKERS: Final = 2
CHECKERS: Final = 2
POLICIES: Final = 100
CALLS_PER_RUN: Final = 200
ROWS: Final = 32
VICTIM: Final = 'Agent::"victim"'
# Verified epochs are deleted; who makes them faster than they are verified has to wait.
EPOCHS_WAITING_MAX: Final = 6
SETTLED_SECONDS: Final = 1.0
# The first part of the samples, in which buffers and caches fill.
WARM_UP: Final = 0.3
# What the low water of memory may rise by, from the earlier half of the samples after the warm-up to the later one.
# Allocated: what the rings and a reload hold for a while, and an idle start. Resident: what the C library keeps free in
# an arena for each thread, some minutes long; with one arena for all it does not rise at all.
HEAP_KIB_MAX: Final = 3_500
RESIDENT_KIB_MAX: Final = 16 * 1024
# Python's objects: caches, and less than a leak of one for each check, however short the run is.
OBJECTS_MAX: Final = 2_000
OBJECTS_PER_DECISION_MAX: Final = 0.25
ALLOWED_CODES: Final = {
    "search": {"allow"},
    "read_file": {"allow"},
    "send_email": {"allow", "policy.forbidden"},
    "wipe": {"policy.no_permit"},
    "nothing": {"input.unknown_tool"},
}


# --- the files ----------------------------------------------------------------------------------------------------


def write_files(folder: Path, epoch_seconds: float) -> None:
    """A gate with everything: policies, labels, approvals, budgets of four levels, a log, a state directory."""
    fillers = "\n".join(
        f'@id("filler-{n}") permit(principal == Agent::"nobody-{n}", action == Action::"search", resource)'
        f' when {{ context.input has q && context.input.q == "{n}" }};'
        for n in range(POLICIES - 6)
    )
    (folder / "p.cedar").write_text(
        """
@id("look") permit(principal, action in [Action::"search", Action::"read_file"], resource);
@id("mail") permit(principal, action == Action::"send_email", resource);
@id("untrusted") forbid(principal, action == Action::"send_email", resource)
when { context.session.labels.contains("untrusted") };
@id("models") permit(principal, action == Action::"call_model", resource);
@id("helpers") permit(principal, action == Action::"delegate", resource);
@id("wire") @approval("finance") permit(principal, action == Action::"wire", resource);
"""
        + fillers
    )
    cells = (f'{{ unit = "{unit}", window = "total", limit = 1000000000000 }}' for unit in ("requests", "tokens"))
    limits = f"[{', '.join(cells)}]"
    paths = ["acme", "acme/team", "acme/team/soak"]
    paths += [f"acme/team/soak/w{worker}" for worker in range(WORKERS)]
    (folder / "budgets.toml").write_text("".join(f'[budget."{path}"]\nlimits = {limits}\n' for path in paths))
    tools = "".join(
        f"[tools.{name}]\nresource = 'Mcp::\"web\"'\ncost = {{ requests = 1 }}\n"
        for name in ("search", "send_email", "wire", "wipe")
    )
    (folder / "tollkeeper.toml").write_text(
        f"""
[policy]
files = ["p.cedar"]
[audit]
origin = "example.com/soak"
[state]
dir = "state"
[budget]
file = "budgets.toml"
state = "ledger.bin"
{tools}
[tools.read_file]
resource = 'Mcp::"files"'
reads = ["untrusted"]
paths = ["path"]
cost = {{ requests = 1 }}
"""
    )
    (folder / "soak.json").write_text(json.dumps({"epoch_seconds": epoch_seconds}))


# --- one process --------------------------------------------------------------------------------------------------


@dataclass
class Counts:
    """What the threads of one process did; each thread has its own, so that no count is lost."""

    decisions: int = 0
    requests: int = 0
    tokens: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def note(self, decision: Decision, expected: set[str], *, costs: bool) -> None:
        """Counts an answer, and says so if it is none of those that it can be."""
        self.decisions += 1
        self.codes[decision.code] += 1
        if decision.allowed and costs:
            self.requests += 1
        if decision.code not in expected:
            self.wrong(f"{decision.code}, not {sorted(expected)}: {decision.reason}")

    def wrong(self, what: str) -> None:
        """Keeps the first few of what went wrong."""
        if len(self.errors) < 20:
            self.errors.append(what)


class Worker:
    """One process of the soak: its gate, its threads, and what they have counted."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.gate = Gate.open(folder / "tollkeeper.toml")
        self.budget = f"acme/team/soak/w{number}"
        self.over = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.epoch_seconds = json.loads((folder / "soak.json").read_text())["epoch_seconds"]
        self.counts: list[Counts] = []
        self.threads: list[threading.Thread] = []
        for check in range(CHECKERS):
            self._start(f"check-{check}", lambda counts, n=check: self.check(counts, n))
        self._start("stream", self.stream)
        self._start("approve", self.approve)
        self._start("chores", self.chores)

    def _start(self, name: str, work: Callable[[Counts], None]) -> None:
        counts = Counts()
        self.counts.append(counts)

        def guarded() -> None:
            while not self.over.is_set():
                try:
                    work(counts)
                except Exception as error:  # noqa: BLE001 - any error is a finding of the soak
                    counts.wrong(f"{name}: {type(error).__name__}: {error}")
                    time.sleep(0.05)

        thread = threading.Thread(target=guarded, name=name)
        self.threads.append(thread)
        thread.start()

    def pace(self) -> bool:
        """Waits while too many epochs are unverified; False at the end."""
        self.go.wait(10)
        return not self.over.is_set()

    def check(self, counts: Counts, number: int) -> None:
        """Runs of checks of every kind, over and over."""
        victim = number == 0
        principal = VICTIM if victim else f'Agent::"w{self.number}-{number}"'
        revoked: set[str] = {"principal.revoked"} if victim else set()
        reader = self.gate.action("read_file")
        while self.pace():
            with self.gate.run(
                principal=principal,
                budget=self.budget,
                request="soak",
                tools=["search", "read_file", "send_email", "wipe", "nothing"],
                forbid='forbid(principal, action == Action::"search", resource) when { context.input has bad };',
            ) as scope:
                self.one_run(counts, revoked, reader.check)
                self.helper(counts, scope, revoked)

    def one_run(self, counts: Counts, revoked: set[str], read: Callable[..., Decision]) -> None:
        """The calls of one run."""
        gate = self.gate
        for call in range(CALLS_PER_RUN):
            tool = "send_email" if call % 5 == 1 else "wipe" if call % 31 == 2 else "search"
            tool = "nothing" if call % 61 == 3 else tool
            decision = gate.check_blocking(tool, {"q": "weather in Lisbon", "n": call, "tags": ["a", "b"]}, timeout=30)
            counts.note(decision, ALLOWED_CODES[tool] | revoked, costs=True)
            if decision.allowed:
                gate.outcome(decision, "ok", duration_ms=1)
            if call == CALLS_PER_RUN // 2:
                decision = read({"path": "docs/a.txt"})
                # It waits for nothing: a full ring denies.
                counts.note(decision, {"allow", "audit.unavailable"} | revoked, costs=True)
                if decision.allowed:
                    gate.outcome(decision)
        many = gate.check_many("search", {"q": [f"row {row}" for row in range(ROWS)], "n": 1})
        for decision in many:  # type: ignore[attr-defined] - a sequence
            counts.note(decision, {"allow", "audit.unavailable"} | revoked, costs=True)

    def helper(self, counts: Counts, scope: Scope, revoked: set[str]) -> None:
        """Another principal acts for this one."""
        delegation = self.gate.delegate('Agent::"helper"', scope=scope, tools=["search"])
        try:
            with delegation:
                decision = self.gate.check_blocking("search", {"q": "for another"}, timeout=30)
                counts.note(decision, {"allow"} | revoked, costs=True)
        except Denied:
            pass
        if delegation.decision is not None:
            counts.note(delegation.decision, {"allow", "audit.unavailable"} | revoked, costs=False)

    def stream(self, counts: Counts) -> None:
        """Model calls that stream, some of them broken off."""
        number = 0
        while self.pace():
            with self.gate.run(principal=f'Agent::"w{self.number}-stream"', budget=self.budget):
                for _ in range(50):
                    number += 1
                    call = self.gate.model_call(model="m", prompt_tokens=50, max_tokens=100)
                    try:
                        with call:
                            length = number % 90
                            for _ in range(length):
                                if not call.charge(1):
                                    counts.wrong("a stream was stopped")
                            if number % 3:
                                call.settle(prompt=40, completion=length)
                                counts.tokens += 40 + length
                            else:
                                # Broken off: the prompt, and what came; everything if nothing did.
                                counts.tokens += 50 + (length or 100)
                    except Denied as denied:
                        if denied.code != "audit.unavailable":
                            raise
                    counts.note(call.decision, {"allow", "audit.unavailable"}, costs=True)
            time.sleep(0.01)

    def approve(self, counts: Counts) -> None:
        """Asks, is answered by the other process, and uses the answer once."""
        number = 0
        while not self.over.wait(0.5):
            number += 1
            arguments = {"to": "bob", "amount": number, "from": self.number}
            with self.gate.run(principal=f'Agent::"w{self.number}-payer"', budget=self.budget):
                asked = self.gate.check_blocking("wire", arguments, timeout=30)
                counts.note(asked, {"approval.required"}, costs=True)
                approval = self.gate.approval(asked, timeout=60)
                try:
                    if not approval.wait(20):
                        counts.wrong("an approval was not granted")
                except TimeoutError:
                    if self.over.is_set():
                        return
                    raise
                used = self.gate.check_blocking("wire", arguments, timeout=30)
                counts.note(used, {"allow"}, costs=True)
                again = self.gate.check_blocking("wire", arguments, timeout=30)
                counts.note(again, {"approval.required"}, costs=True)

    def chores(self, _counts: Counts) -> None:
        """Reloads, and begins a new epoch of the log every so often."""
        log = self.gate.log
        if log is None:
            message = "the soak's gate has a log"
            raise RuntimeError(message)
        last, next_epoch = 0.0, time.monotonic() + self.epoch_seconds
        while not self.over.wait(0.1):
            now = time.monotonic()
            if now - last > 2:
                last = now
                self.gate.reload()
            if now > next_epoch:
                next_epoch = now + self.epoch_seconds
                log.rotate(60)
            waiting = len(list((log.folder / "epochs").glob("*")))
            self.go.set() if waiting < EPOCHS_WAITING_MAX else self.go.clear()

    def sample(self) -> dict[str, Any]:
        """What this process is and has done so far."""
        codes: Counter[str] = Counter()
        for counts in self.counts:
            codes.update(dict(counts.codes))
        return {
            **memory(),
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "threads": len(list(Path("/proc/self/task").iterdir())),
            "decisions": sum(counts.decisions for counts in self.counts),
            "requests": sum(counts.requests for counts in self.counts),
            "tokens": sum(counts.tokens for counts in self.counts),
            "codes": dict(codes),
            "errors": [error for counts in self.counts for error in counts.errors],
        }

    def end(self) -> None:
        """Stops everybody and closes, with a last epoch that holds nothing but its beginning and its end."""
        self.over.set()
        self.go.set()
        for thread in self.threads:
            thread.join(120)
            if thread.is_alive():
                self.counts[0].wrong(f"{thread.name} did not end")
        gc.collect()
        if self.gate.log is not None:
            self.gate.log.rotate(120)
        stats = self.gate.stats()
        self.gate.close()
        tell(
            {
                **self.sample(),
                "last": True,
                "stats": stats["codes"],
                "p50_ns": stats["p50_ns"],
                "p99_ns": stats["p99_ns"],
            }
        )


def resident_kib() -> int:
    """Resident memory that is this process's own: pages of mapped files come and go with the kernel's cache."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


class HeapInfo(ctypes.Structure):
    """What glibc's `mallinfo2` returns."""

    _fields_: ClassVar = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def heap_kib() -> int:
    """What is allocated from the C library right now, over all its arenas; 0 where the library does not tell."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0
    mallinfo2.restype = HeapInfo
    info = mallinfo2()
    return (info.uordblks + info.hblkhd) // 1024


def memory() -> dict[str, int]:
    """Memory of this process: what the kernel gave, and what is in use of it by native code and by Python."""
    gc.collect()
    return {"rss_kib": resident_kib(), "heap_kib": heap_kib(), "objects": sys.getallocatedblocks()}


def tell(what: dict[str, Any]) -> None:
    """One line to the parent."""
    sys.stdout.write(json.dumps(what, default=str) + "\n")
    sys.stdout.flush()


def work(folder: Path, number: int) -> None:
    """The whole life of a worker: it ends when its standard input does."""
    worker = Worker(folder, number)
    stopped = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        stopped.set()

    threading.Thread(target=watch, daemon=True).start()
    while not stopped.wait(1.0):
        tell(worker.sample())
    worker.end()


# --- the parent ---------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What came of it."""

    seconds: float = 0.0
    decisions: int = 0
    epochs: int = 0
    entries: int = 0
    logged: int = 0
    revocations: int = 0
    approvals: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    low_water: list[dict[str, tuple[int, int]]] = field(default_factory=list)
    """For each process and kind of memory: in the earlier half of the samples after the warm-up, and in the later."""
    faults: list[str] = field(default_factory=list)

    def wrong(self, what: str) -> None:
        """Adds what went wrong."""
        self.faults.append(what)


class Epochs:
    """Verifies the epochs that are over, and deletes them, in a thread of its own."""

    def __init__(self, audit: Path, verdict: Verdict) -> None:
        self.audit, self.verdict = audit, verdict
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        """Until nobody makes epochs any more."""
        try:
            while not self.over.wait(0.2):
                self.look()
        except Exception as error:  # noqa: BLE001 - any error is a finding of the soak
            self.verdict.wrong(f"verifying: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Ends the thread."""
        self.over.set()
        self.thread.join()

    def look(self) -> None:
        """Verifies every epoch that no log writes to any more."""
        # One that is being made has another name until it is complete, and a rotation moves file after file.
        made = [path for path in self.audit.glob("*/epochs/*") if path.name.isdigit()]
        for epoch in sorted(made, key=lambda path: int(path.name)):
            if self.over.is_set() or time.time() - epoch.stat().st_mtime > SETTLED_SECONDS:
                self.verify(epoch)
                shutil.rmtree(epoch)

    def last(self) -> None:
        """The current epochs, whose writers have closed: taken by themselves, since those before are deleted."""
        self.close()
        self.look()
        for current in sorted(path for path in self.audit.iterdir() if path.name.isdigit()):
            alone = self.audit.parent / f"last-{current.name}"
            shutil.copytree(current, alone, ignore=shutil.ignore_patterns("epochs", "ring"))
            self.verify(alone)
            shutil.rmtree(alone)

    def verify(self, folder: Path) -> None:
        """One epoch, as a third party would."""
        report = audit_verify(folder, trust_directory=True)
        found = report["slots"][0]["completeness"]
        self.verdict.epochs += 1
        self.verdict.entries += found["entries"]
        self.verdict.logged += found["decisions"]
        losses = {name: found[name] for name in ("lost_count", "disordered_count", "gap_count")}
        # What is before this epoch was in those that are deleted: the sum of all decisions tells whether it was.
        losses["missing_count"] = sum(missing["from"] > 1 for missing in found["missing"])
        faults = [fault for epoch in report["slots"][0]["epochs"] for fault in epoch["faults"]]
        if not report["integrity"] or report["faults"] or faults or any(losses.values()):
            self.verdict.wrong(f"{folder}: {report['verdict']}, {losses}, {faults[:3]}, {report['faults'][:3]}")


class Approver:
    """Revokes and restores one agent, and grants whatever is asked for."""

    def __init__(self, folder: Path, verdict: Verdict, seconds_each: float) -> None:
        self.control = Control.open(folder / "state" / "control.bin", volatile=True)
        self.verdict, self.each, self.next = verdict, seconds_each, time.monotonic() + seconds_each
        self.revoked = False

    def look(self) -> None:
        """Does what is due."""
        now_ms = time.time_ns() // 1_000_000
        for row in self.control.approvals(now_ms):
            if row["state"] == "pending":
                self.control.answer(row["id"], True, now_ms + 60_000, None, now_ms)  # noqa: FBT003 - positional there
                self.verdict.approvals += 1
        if time.monotonic() > self.next:
            self.next = time.monotonic() + self.each
            if self.revoked:
                self.control.restore("principal", VICTIM)
            else:
                self.control.revoke("principal", VICTIM, "the soak", "soak", now_ms)
                self.verdict.revocations += 1
            self.revoked = not self.revoked


@contextlib.contextmanager
def workers(folder: Path) -> Iterator[tuple[list["subprocess.Popen[str]"], "queue.Queue[tuple[int, str]]"]]:
    """The processes, and their lines; whatever happens they are gone afterwards."""
    lines: queue.Queue[tuple[int, str]] = queue.Queue()
    started, collectors = [], []

    def collect(number: int, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            lines.put((number, line))

    try:
        for number in range(WORKERS):
            command = [sys.executable, __file__, "--worker", str(number), "--folder", str(folder)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
            started.append(process)
            collectors.append(threading.Thread(target=collect, args=(number, process), daemon=True))
            collectors[-1].start()
        yield started, lines
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()
        for process, collector in zip(started, collectors, strict=True):
            collector.join(10)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def soak(folder: Path, seconds: float, *, epoch_seconds: float = 20.0, say: Callable[[str], None] = print) -> Verdict:
    """Runs the soak.

    Args:
        folder: Where everything lies; empty.
        seconds: How long.
        epoch_seconds: How often each log begins a new epoch.
        say: Told how it goes, now and then.
    """
    write_files(folder, epoch_seconds)
    verdict = Verdict()
    began = time.monotonic()
    samples: list[list[dict[str, Any]]] = [[] for _ in range(WORKERS)]
    with workers(folder) as (processes, lines), contextlib.closing(Epochs(folder / "audit", verdict)) as epochs:
        approver = Approver(folder, verdict, min(3.0, seconds / 6))
        told = began
        while time.monotonic() - began < seconds and all(process.poll() is None for process in processes):
            take(lines, samples, 0.1)
            approver.look()
            if time.monotonic() - told > 10:
                told = time.monotonic()
                say(progress(told - began, samples))
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()
        verdict.seconds = time.monotonic() - began
        end = time.monotonic() + 240
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            take(lines, samples, 0.1)
            approver.look()
        time.sleep(0.2)
        while take(lines, samples, 0.0):
            pass
        for number, process in enumerate(processes):
            if process.poll() != 0:
                verdict.wrong(f"process {number} ended with {process.poll()}")
        epochs.last()
    judge(folder, verdict, samples)
    return verdict


def take(lines: "queue.Queue[tuple[int, str]]", samples: list[list[dict[str, Any]]], wait: float) -> bool:
    """Takes a line, if one comes in time."""
    try:
        number, line = lines.get(timeout=wait) if wait else lines.get_nowait()
    except queue.Empty:
        return False
    samples[number].append(json.loads(line))
    return True


def progress(seconds: float, samples: list[list[dict[str, Any]]]) -> str:
    """One line for people."""
    latest = [rows[-1] for rows in samples if rows]
    decisions = sum(row["decisions"] for row in latest)
    memory = ", ".join(f"{row['rss_kib'] / 1024:.1f}" for row in latest)
    errors = sum(len(row["errors"]) for row in latest)
    rate = f"{decisions:,} decisions, {decisions / seconds:,.0f} a second"
    return f"{seconds:5.0f} s: {rate}, MiB: {memory}, errors: {errors}"


def judge(folder: Path, verdict: Verdict, samples: list[list[dict[str, Any]]]) -> None:
    """Holds what was counted against what the ledger and the logs say."""
    requests = tokens = 0
    with Ledger.from_toml(folder / "budgets.toml", state=folder / "ledger.bin") as ledger:
        for number, rows in enumerate(samples):
            last = rows[-1] if rows else {}
            if not last.get("last"):
                verdict.wrong(f"process {number} has not told how it ended")
                continue
            verdict.decisions += last["decisions"]
            verdict.codes.update(last["codes"])
            verdict.faults += [f"process {number}: {error}" for error in last["errors"]]
            counted = sum(last["stats"].values())
            if counted != last["decisions"]:
                verdict.wrong(f"process {number} counts {counted} decisions, and {last['decisions']} were answered")
            requests, tokens = requests + last["requests"], tokens + last["tokens"]
            compare(verdict, ledger, f"acme/team/soak/w{number}", last["requests"], last["tokens"])
            flat(verdict, number, rows[:-1])
        for path in ("acme", "acme/team", "acme/team/soak"):
            compare(verdict, ledger, path, requests, tokens)
        if ledger.holds():
            verdict.wrong(f"{len(ledger.holds())} holds are left")
    unlogged = verdict.codes["audit.unavailable"]
    if verdict.logged + unlogged != verdict.decisions:
        verdict.wrong(f"{verdict.logged} decisions in the logs and {unlogged} refused for them, of {verdict.decisions}")


def compare(verdict: Verdict, ledger: Ledger, path: str, requests: int, tokens: int) -> None:
    """The ledger against a plain sum."""
    usage = ledger.usage(path)
    found = {unit: (usage[unit, "total"].used, usage[unit, "total"].held) for unit in ("requests", "tokens")}
    if found != {"requests": (requests, 0), "tokens": (tokens, 0)}:
        verdict.wrong(f"{path}: the ledger has {found}, and the callers {requests} requests and {tokens} tokens")


def flat(verdict: Verdict, number: int, rows: list[dict[str, Any]]) -> None:
    """Whether memory, descriptors and threads stay where they are after the warm-up."""
    warm = rows[int(len(rows) * WARM_UP) :]
    if len(warm) < 4:
        verdict.wrong(f"process {number}: {len(rows)} samples say nothing about its memory")
        return
    half = len(warm) // 2
    decisions = warm[-1]["decisions"] - warm[half]["decisions"]
    low = {what: (lowest(warm[:half], what), lowest(warm[half:], what)) for what in ("rss_kib", "heap_kib", "objects")}
    verdict.low_water.append(low)
    limits = {
        "rss_kib": RESIDENT_KIB_MAX,
        "heap_kib": HEAP_KIB_MAX,
        "objects": OBJECTS_MAX + int(OBJECTS_PER_DECISION_MAX * decisions),
    }
    for what, limit in limits.items():
        before, after = low[what]
        if after - before > limit:
            verdict.wrong(f"process {number}: {what} grew from {before} to {after} over {decisions} decisions")
    for what in ("descriptors", "threads"):
        before, after = max(row[what] for row in warm[:half]), max(row[what] for row in warm[half:])
        if after > before + 2:
            verdict.wrong(f"process {number}: {what} grew from {before} to {after}")


def lowest(rows: list[dict[str, Any]], what: str) -> int:
    """The low water: what comes and goes is not in it."""
    return min(row[what] for row in rows)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Soaks the gate; exit status 1 if anything is wrong.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--folder", type=Path, help="an empty folder; without one a temporary one")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments.folder, arguments.worker)
        return 0
    with tempfile.TemporaryDirectory(prefix="tollkeeper-soak-") as made:
        verdict = soak(arguments.folder or Path(made), arguments.seconds, say=lambda line: print(line, flush=True))
    print(
        f"{verdict.decisions:,} decisions in {verdict.seconds:.0f} s, "
        f"{verdict.decisions / verdict.seconds:,.0f} a second"
    )
    print(f"{verdict.entries:,} entries in {verdict.epochs} epochs verified, {verdict.logged:,} of them decisions")
    print(f"{verdict.revocations} revocations, {verdict.approvals} approvals, codes: {dict(verdict.codes)}")
    for number, low in enumerate(verdict.low_water):
        print(f"process {number}: " + ", ".join(f"{what} {low[what][0]:,} -> {low[what][1]:,}" for what in low))
    for fault in verdict.faults:
        print(f"WRONG: {fault}")
    print("nothing is wrong" if not verdict.faults else f"{len(verdict.faults)} faults")
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    # The workers may see the interpreter end while they work: any error of the package is told by the exit status.
    try:
        sys.exit(main())
    except TollkeeperError as error:
        sys.exit(f"{error.code}: {error}")
