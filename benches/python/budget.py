"""Measures the budget room: single holds, the meter, two processes on one root, recovery of a dead process.

Peers run in the same run and take turns with ours. Every figure is asserted: at the end the counters say exactly what
was spent, ours and the peers'. A wrong result ends with status 1; a missed target is printed and ends with status 0.
Figures of different runs are not comparable, ratios are.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import budget_peers
import numpy as np
import percall
from percall import Candidate

from tollkeeper import Ledger, Meter, build_info

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "out"
LIMIT = 1 << 60
LEAF = budget_peers.LEVELS[-1]
TOKENS, NANO_USD = 100, 250_000
OURS = "Tollkeeper"

# The cells of one budget, in the order in which the growth table adds them; the first three are the headline's.
CELLS = [
    ("tokens", "1d"), ("nano_usd", "month"), ("requests", "total"),
    ("tokens", "month"), ("nano_usd", "1d"), ("requests", "1d"),
    ("tokens", "total"), ("nano_usd", "total"), ("requests", "month"),
    ("tokens", "1h"), ("nano_usd", "1h"), ("requests", "1h"),
]  # fmt: skip
# Levels and cells per level: 1, 2, 4, 8, 12, 24 and 48 cells.
SHAPES = [(1, 1), (2, 1), (4, 1), (4, 2), (4, 3), (4, 6), (4, 12)]


@dataclass
class Report:
    """What was found: figures for the file, wrong results, targets with what came of them."""

    figures: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)

    def expect(self, what: str, got: object, wanted: object) -> None:
        """Notes a wrong result and goes on, so that one run shows all of them."""
        if (sentence := budget_peers.expect(what, got, wanted)) is not None:
            self.wrong.append(sentence)
            print(f"WRONG: {sentence}")

    def target(self, what: str, value: float, sign: str, bar: float, unit: str) -> None:
        """A figure beside its target."""
        met = value <= bar if sign == "<=" else value >= bar if sign == ">=" else value > bar
        text = f"{sign} {bar:g} {unit}"
        self.targets.append({"what": what, "value": round(value, 3), "target": text, "met": met})


def title(text: str) -> None:
    """The head of a table."""
    print(f"\n{text}")


def limits_of(cells: list[tuple[str, str]]) -> str:
    """The TOML of one budget's limits, too high to be reached."""
    rows = (f'{{ unit = "{unit}", window = "{window}", limit = {LIMIT} }}' for unit, window in cells)
    return f"limits = [{', '.join(rows)}]\n"


def tree(paths: list[str], cells: list[tuple[str, str]], head: str = "") -> str:
    """A budgets.toml in which every path has the same cells."""
    return f"[ledger]\n{head}\n" + "".join(f'[budget."{path}"]\n{limits_of(cells)}' for path in paths)


def on_tmpfs(folder: Path) -> bool:
    """Whether files there are lost on reboot, which a state file has to declare."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [row for row in mounts if folder.resolve().is_relative_to(row[1])]
    return bool(holding) and max(holding, key=lambda row: len(row[1]))[2] == "tmpfs"


def volatile_line(folder: Path) -> str:
    """The line of [ledger] that a state file in this folder needs."""
    return "volatile = true" if on_tmpfs(folder) else ""


# --- 1. single holds ----------------------------------------------------------------------------------------------


def reserve_release(ledger: Ledger, path: str) -> Callable[[], None]:
    """What is timed. A denial has no `release`, so it would end the bench."""
    reserve = ledger.reserve

    def call() -> None:
        reserve(path, tokens=TOKENS, nano_usd=NANO_USD, requests=1).release()

    return call


def reserve_settle(ledger: Ledger, path: str) -> Callable[[], None]:
    """The same with an actual amount below the held one."""
    reserve = ledger.reserve

    def call() -> None:
        reserve(path, tokens=TOKENS, nano_usd=NANO_USD, requests=1).settle(tokens=83, nano_usd=1_000)

    return call


def verify_spent(report: Report, ledger: Ledger, paths: list[str], spent: dict[str, int], day: int) -> None:
    """Every cell of every level says exactly this, and nothing is held. Cells of a window that ended are left out."""
    today = day == int(time.time() // 86_400)
    for path in paths:
        for (unit, window), cell in ledger.usage(path).items():
            report.expect(f"{path} {unit}/{window} held", cell.held, 0)
            if window == "total" or (today and window in ("1d", "month")):
                report.expect(f"{path} {unit}/{window} used", cell.used, spent[unit])
    report.expect("live holds", len(ledger.holds()), 0)


def single_holds(report: Report, rounds: int) -> None:
    """Reserve + release over four levels and twelve cells, from Python, against everybody."""
    day, paths = int(time.time() // 86_400), list(budget_peers.LEVELS)
    released, settled, bulked = (Ledger.from_toml(tree(paths, CELLS[:3])) for _ in range(3))
    peers = budget_peers.everyone()
    settle_name = f"{OURS}, reserve + settle"
    with peers.stack:
        candidates = {
            OURS: Candidate(reserve_release(released, LEAF)),
            settle_name: Candidate(reserve_settle(settled, LEAF)),
            **{peer.name: peer.candidate for peer in peers.found},
        }
        figures = percall.per_call(candidates, rounds)
        for peer in peers.found:
            if (sentence := peer.check(figures[peer.name].calls)) is not None:
                report.expect(peer.name, sentence, "the counters it should have")
    locked = {peer.name: peer.candidate.call for peer in peers.found if "lock" in peer.name}
    runs = percall.bulk({OURS: reserve_release(bulked, LEAF), **locked}, 15, 20_000)
    ours = figures[OURS].calls
    verify_spent(report, released, paths, {"tokens": 0, "nano_usd": 0, "requests": ours}, day)
    ours = figures[settle_name].calls
    verify_spent(report, settled, paths, {"tokens": 83 * ours, "nano_usd": 1_000 * ours, "requests": ours}, day)
    verify_spent(report, bulked, paths, {"tokens": 0, "nano_usd": 0, "requests": 15 * 20_000}, day)
    show_single(report, figures, runs, peers)


def show_single(
    report: Report, figures: dict[str, percall.Figure], runs: dict[str, float], peers: budget_peers.Peers
) -> None:
    """The first table and its targets."""
    title("reserve + release of one hold, 4 levels, 12 cells, from Python")
    ours, notes = figures[OURS], {peer.name: peer.note for peer in peers.found}
    print(f"{'':<30}{'p50 us':>9}{'p99 us':>9}{'in runs':>9}{'ratio':>8}")
    rows: dict[str, Any] = {}
    for name, figure in figures.items():
        ratio = figure.times(ours)
        run = f"{runs[name]:>9.3f}" if name in runs else " " * 9
        shown = "" if name in (OURS, percall.EMPTY) else f"{ratio:>7.1f}x"
        what = "taken off each of the others" if name == percall.EMPTY else notes.get(name, "")
        print(f"{name:<30}{figure.p50:>9.3f}{figure.p99:>9.3f}{run}{shown:>8}  {what}")
        rows[name] = {**figure.plain(), "run_us": runs.get(name), "times_ours": round(ratio, 2), "note": what}
    for name, reason in peers.skipped.items():
        print(f"skipped: {name}: {reason}")
    report.figures["single"] = {"rows": rows, "skipped": peers.skipped}
    report.target("reserve + release, 4 levels, 12 cells, p50", ours.p50, "<=", 0.5, "us")
    if "Redis PING" in figures:
        lua = figures["Redis Lua, reserve only"].times(ours)
        report.target("one Redis Lua reserve / our reserve + release", lua, ">=", 60, "x")
        pair = figures["Redis Lua, reserve + release"].times(ours)
        report.target("Redis Lua reserve + release / ours", pair, ">=", 60, "x")
    single = ours.times(figures["int under a lock"])
    report.target("ours / one Python int under a lock", single, "<=", 2, "x")
    levels = ours.times(figures["4 ints under a lock"])
    report.target("ours / four Python ints under a lock", levels, "<=", 2, "x")


def growth(report: Report, rounds: int) -> None:
    """The same hold over 1 to 48 cells."""
    day, ledgers = int(time.time() // 86_400), {}
    for levels, cells in SHAPES:
        paths = list(budget_peers.LEVELS[:levels])
        ledgers[levels * cells] = (Ledger.from_toml(tree(paths, CELLS[:cells])), paths)
    candidates = {str(n): Candidate(reserve_release(ledger, paths[-1])) for n, (ledger, paths) in ledgers.items()}
    figures = percall.per_call(candidates, rounds)
    title("reserve + release by cells (levels x cells per level)")
    print(f"{'cells':<12}{'p50 us':>9}{'p99 us':>9}{'of 12':>8}")
    for levels, cells in SHAPES:
        figure = figures[str(levels * cells)]
        ratio = figure.times(figures["12"])
        print(f"{f'{levels * cells} ({levels}x{cells})':<12}{figure.p50:>9.3f}{figure.p99:>9.3f}{ratio:>7.2f}x")
        ledger, paths = ledgers[levels * cells]
        verify_spent(report, ledger, paths, {"tokens": 0, "nano_usd": 0, "requests": figure.calls}, day)
    report.figures["growth"] = {name: figure.plain() for name, figure in figures.items()}


# --- 2. the meter -------------------------------------------------------------------------------------------------

SEQUENCES, TENANTS, ROWS = 10_000, 1_000, 1_024
MAX_NEW = 1 << 24


def meter_config(nodes: int, levels: int = 2) -> str:
    """A chain of `levels` budgets, the last one a template; limits in tokens."""
    paths = ["fleet", "fleet/pool", "fleet/pool/team"][: levels - 1]
    cells = [("tokens", "total")]
    return tree(paths, cells, "holds = 16384") + f'[budget."{paths[-1]}/*"]\nchildren_max = {nodes}\n{limits_of(cells)}'


class NumpyStep:
    """The charge of one step in numpy: rows in batch order, limits per sequence and per tenant, nothing atomic."""

    def __init__(self, tenants: np.ndarray, new: np.ndarray) -> None:
        """Everything allocated once and of one dtype: with uint32 amounts `add.at` takes 30 times as long."""
        self.tenants, self.new = tenants, new.astype(np.int64)
        self.charged = np.zeros(len(new), np.int64)
        self.held = np.full(len(new), MAX_NEW, np.int64)
        self.spent = np.zeros(TENANTS, np.int64)
        self.limit = np.full(TENANTS, LIMIT, np.int64)
        self.stop = np.zeros(len(new), np.bool_)
        self.over = np.zeros(TENANTS, np.bool_)

    def rows(self) -> int:
        """The sequences alone; no tenant is asked."""
        np.add(self.charged, self.new, out=self.charged)
        np.greater(self.charged, self.held, out=self.stop)
        return int(np.count_nonzero(self.stop))

    def tenants_too(self) -> int:
        """The part both ways below share."""
        np.greater(self.spent, self.limit, out=self.over)
        if self.over.any():
            self.stop |= self.over[self.tenants]
        return int(np.count_nonzero(self.stop))

    def bincount(self) -> int:
        """Tenants by `bincount`: exact below 2**53."""
        self.rows()
        self.spent += np.bincount(self.tenants, weights=self.new, minlength=TENANTS).astype(np.int64)
        return self.tenants_too()

    def add_at(self) -> int:
        """Tenants by `add.at`."""
        self.rows()
        np.add.at(self.spent, self.tenants, self.new)
        return self.tenants_too()


def meter_charge(report: Report, rounds: int) -> None:
    """One decode step of 10,000 sequences of 1,000 tenants, against numpy."""
    random = np.random.default_rng(7)
    tenants = random.integers(0, TENANTS, SEQUENCES)
    new = random.integers(1, 5, SEQUENCES).astype(np.uint32)
    ledger = Ledger.from_toml(meter_config(TENANTS))
    meter = Meter(ledger)
    nodes = np.array([meter.node(f"fleet/t{number}") for number in range(TENANTS)], np.uint32)
    prompt = np.full(SEQUENCES, 100, np.uint32)
    slots, status = meter.reserve_many(nodes[tenants], prompt, np.full(SEQUENCES, MAX_NEW, np.uint32))
    report.expect("meter rows denied", int(np.count_nonzero(status)), 0)
    stop, charge = np.zeros(SEQUENCES, np.uint8), meter.charge
    steps = {name: NumpyStep(tenants, new) for name in ("bincount", "add.at", "rows")}

    def ours() -> None:
        if charge(slots, new, None, stop):
            raise AssertionError("the meter stopped a sequence that has tokens left")

    calls = {OURS: ours, "numpy, bincount per tenant": steps["bincount"].bincount}
    calls |= {"numpy, add.at per tenant": steps["add.at"].add_at, "numpy, rows only": steps["rows"].rows}
    figures = percall.per_call({name: Candidate(call, 50) for name, call in calls.items()}, rounds)
    once = np.bincount(tenants, weights=new, minlength=TENANTS).astype(np.int64)
    for name, step in (("bincount", steps["bincount"]), ("add.at", steps["add.at"])):
        wanted = once * figures[f"numpy, {name} per tenant"].calls
        report.expect(f"numpy {name} equals the sum", bool(np.array_equal(step.spent, wanted)), wanted=True)
    report.expect("settled sequences", int(meter.settle_many(slots)), SEQUENCES)
    wanted = once * figures[OURS].calls + 100 * np.bincount(tenants, minlength=TENANTS)
    used = [ledger.usage(f"fleet/t{number}")["tokens", "total"] for number in range(TENANTS)]
    report.expect("tenants that used what they were charged", sum(c.used == w for c, w in zip(used, wanted)), TENANTS)  # noqa: B905 - array
    root = ledger.usage("fleet")["tokens", "total"]
    report.expect("fleet used, held", (root.used, root.held), (int(wanted.sum()), 0))
    title(f"charge of {SEQUENCES:,} sequences of {TENANTS:,} tenants, one step")
    show_plain(report, "charge", figures)
    stops_exactly(report)
    fastest = min(calls.keys() - {OURS, "numpy, rows only"}, key=lambda name: figures[name].p50)
    report.target("charge of 10,000 sequences, p50", figures[OURS].p50, "<=", 15, "us")
    report.target(f"{fastest} / ours", figures[fastest].times(figures[OURS]), ">", 1, "x")


def show_plain(report: Report, key: str, figures: dict[str, percall.Figure]) -> None:
    """A table of p50, p99 and the ratio to ours."""
    print(f"{'':<30}{'p50 us':>9}{'p99 us':>9}{'ratio':>8}")
    rows = {}
    for name, figure in figures.items():
        ratio = figure.times(figures[OURS])
        shown = "" if name in (OURS, percall.EMPTY) else f"{ratio:>7.2f}x"
        print(f"{name:<30}{figure.p50:>9.2f}{figure.p99:>9.2f}{shown:>8}")
        rows[name] = {**figure.plain(), "times_ours": round(ratio, 3)}
    report.figures[key] = rows


def stops_exactly(report: Report) -> None:
    """What is timed above also stops: 10 tokens held, 4 per step; the third step is 2 too many."""
    ledger = Ledger.from_toml(meter_config(1))
    meter = Meter(ledger)
    zero, ten, four = (np.full(8, value, np.uint32) for value in (0, 10, 4))
    slots, _ = meter.reserve_many(np.full(8, meter.node("fleet/a"), np.uint32), zero, ten)
    stop = np.zeros(8, np.uint8)
    counts = [int(meter.charge(slots, four, None, stop)) for _ in range(3)]
    report.expect("stops per step", counts, [0, 0, 8])
    report.expect("out_stop: 1 + the two tokens to trim", stop.tolist(), [3] * 8)


def meter_reserve(report: Report, rounds: int) -> None:
    """1,024 rows in one call, two levels and four, and the same rows one by one."""
    title(f"reserve of {ROWS:,} rows in one call, tokens; release and single reserves beside it")
    print(f"{'':<30}{'p50 us':>9}{'p99 us':>9}")
    rows: dict[str, Any] = {}
    random = np.random.default_rng(11)
    for levels in (2, 4):
        config = meter_config(64, levels)
        parent = ["fleet", "fleet/pool", "fleet/pool/team"][levels - 2]
        ledger, meter = (made := Ledger.from_toml(config)), Meter(made)
        picked = random.integers(0, 64, ROWS)
        nodes = np.array([meter.node(f"{parent}/t{number}") for number in range(64)], np.uint32)[picked]
        paths = [f"{parent}/t{number}" for number in picked]
        prompt, most = np.full(ROWS, 100, np.uint32), np.full(ROWS, 400, np.uint32)
        reserve, release, one = meter.reserve_many, meter.release_many, ledger.reserve
        taken: dict[str, list[float]] = {"reserve_many": [], "release_many": [], "reserve, one by one": []}
        for _ in range(rounds):
            start = time.perf_counter()
            slots, status = reserve(nodes, prompt, most)
            middle = time.perf_counter()
            ended = release(slots)
            end = time.perf_counter()
            holds = [one(path, tokens=500) for path in paths]
            last = time.perf_counter()
            if status.any() or ended != ROWS or not all(hold.release() for hold in holds):
                report.expect("rows granted and released", (int(status.any()), ended), (0, ROWS))
            for name, seconds in zip(taken, (middle - start, end - middle, last - end), strict=True):
                taken[name].append(seconds * 1e6)
        for name, values in taken.items():
            p50, p99 = percall.quantile(values, 0.5), percall.quantile(values, 0.99)
            print(f"{f'{name}, {levels} levels':<30}{p50:>9.1f}{p99:>9.1f}")
            rows[f"{name}, {levels} levels"] = {"p50_us": round(p50, 2), "p99_us": round(p99, 2), "calls": rounds}
        report.expect(f"{levels} levels: held after", ledger.usage("fleet")["tokens", "total"].held, 0)
        p50 = rows[f"reserve_many, {levels} levels"]["p50_us"]
        report.target(f"reserve of 1,024 rows, {levels} levels, p50", p50, "<=", 60, "us")
    report.figures["reserve_many"] = rows


# --- 3. processes -------------------------------------------------------------------------------------------------

WORKERS = 4


class Worker:
    """A process that spends on command."""

    def __init__(self, config: Path, state: Path) -> None:
        """Started, and its ledger open."""
        command = [sys.executable, str(HERE / "budget_worker.py"), "spend", str(config), str(state)]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
        if self.line() != "ready":
            sys.exit("error: a worker did not start")

    def line(self) -> str:
        """Its next word."""
        assert self.child.stdout is not None  # noqa: S101 - a pipe
        return self.child.stdout.readline().strip()

    def go(self, path: str, start: float, seconds: float) -> None:
        """Has it spend on a path, from a moment on."""
        assert self.child.stdin is not None  # noqa: S101 - a pipe
        self.child.stdin.write(f"{path} {start} {seconds}\n")
        self.child.stdin.flush()


@contextmanager
def workers(config: Path, states: list[Path]) -> Iterator[list[Worker]]:
    """One per state file given; ended at the end."""
    started: list[Worker] = []
    try:
        started.extend(Worker(config, state) for state in states)
        yield started
    finally:
        for worker in started:
            worker.child.stdin.close()  # type: ignore[union-attr]  # a pipe
            worker.child.wait(timeout=20)


def below(root: str, number: int) -> list[str]:
    """The four levels of one worker under a root."""
    return [root, f"{root}/w{number}", f"{root}/w{number}/x", f"{root}/w{number}/x/y"]


@dataclass
class Rate:
    """Holds per second of some workers together, and processor nanoseconds per hold."""

    holds_per_second: float
    cpu_ns: float


def together(group: list[Worker], paths: list[str], seconds: float, spent: dict[str, int]) -> Rate:
    """All of them over the same stretch of time."""
    start = time.monotonic() + 0.02
    for worker, path in zip(group, paths, strict=True):
        worker.go(path, start, seconds)
    total, used = 0, 0.0
    for worker, path in zip(group, paths, strict=True):
        count, cpu_seconds = worker.line().split()
        spent[path] = spent.get(path, 0) + int(count)
        total, used = total + int(count), used + float(cpu_seconds)
    return Rate(total / seconds, used * 1e9 / total)


def processes(report: Report, rounds: int, seconds: float) -> None:
    """1, 2 and 4 processes, each reserve + settle over 4 levels and 12 cells: where is the contention?

    On one root, on roots of their own in one file, and in files of their own. The last is what the machine gives; what
    the second lacks is what one file makes them share beside cells; what the first lacks in addition is the root.
    """
    cells = [("tokens", "total"), ("nano_usd", "total"), ("requests", "total")]
    hot = [below("hot", number)[-1] for number in range(WORKERS)]
    own = [below(f"own{number}", number)[-1] for number in range(WORKERS)]
    paths = {path for n in range(WORKERS) for path in (*below("hot", n), *below(f"own{n}", n))}
    found: dict[str, list[Rate]] = {}
    spent: dict[str, int] = {}
    apart: list[dict[str, int]] = [{} for _ in range(2)]
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        folder = Path(name)
        config = folder / "budgets.toml"
        config.write_text(tree(sorted(paths), cells, volatile_line(folder)))
        shared = folder / "shared.bin"
        alone = [folder / "alone0.bin", folder / "alone1.bin"]
        with workers(config, [shared] * WORKERS) as group, workers(config, alone) as singles:
            for _ in range(rounds):
                for count in (1, 2, 4):
                    rate = together(group[:count], hot[:count], seconds, spent)
                    found.setdefault(f"{count} on one root", []).append(rate)
                rate = together(group[:2], own[:2], seconds, spent)
                found.setdefault("2 on own roots, one file", []).append(rate)
                rates = together(singles, own[:2], seconds, both := {})
                for total, path in zip(apart, own[:2], strict=True):
                    total[path] = total.get(path, 0) + both[path]
                found.setdefault("2 in own files", []).append(rates)
        verify_processes(report, config, shared, spent)
        for state, total in zip(alone, apart, strict=True):
            verify_processes(report, config, state, total)
    show_processes(report, found)


def verify_processes(report: Report, config: Path, state: Path, spent: dict[str, int]) -> None:
    """Each path and every ancestor says the sum of what the workers report."""
    wanted: dict[str, int] = {}
    for leaf, count in spent.items():
        parts = leaf.split("/")
        for end in range(1, len(parts) + 1):
            path = "/".join(parts[:end])
            wanted[path] = wanted.get(path, 0) + count
    ledger = Ledger.open(config, state=state)
    for path, count in wanted.items():
        for (unit, _), cell in ledger.usage(path).items():
            report.expect(
                f"{state.name} {path} {unit} used, held, stranded", (cell.used, cell.held, cell.stranded), (count, 0, 0)
            )
    ledger.close()


def show_processes(report: Report, found: dict[str, list[Rate]]) -> None:
    """Rates, and ratios to one process round by round.

    Where other programs take the cores, the rates say little; what a hold costs the processor still shows contention.
    """
    title("processes on one state file: reserve + settle, 4 levels, 12 cells")
    print(f"{'':<30}{'holds/s':>12}{'of one':>9}{'cpu ns/hold':>13}")
    one, rows = [rate.holds_per_second for rate in found["1 on one root"]], {}
    for name, rates in found.items():
        ratio = median(rate.holds_per_second / single for rate, single in zip(rates, one, strict=True))
        middle, cpu_ns = median(rate.holds_per_second for rate in rates), median(rate.cpu_ns for rate in rates)
        print(f"{name:<30}{middle:>12,.0f}{ratio:>8.2f}x{cpu_ns:>13,.0f}")
        rows[name] = {"holds_per_second": round(middle), "times_one": round(ratio, 3), "cpu_ns": round(cpu_ns, 1)}
    report.figures["processes"] = rows
    report.target("two processes on one hot root / one", rows["2 on one root"]["times_one"], ">=", 1, "x")


# --- 4. recovery --------------------------------------------------------------------------------------------------

DEAD_HOLDS = 100_000


@dataclass
class Recovered:
    """Milliseconds by the clock and of the processor: the holds' pages touched for the first time, and again."""

    cold: list[tuple[float, float]] = field(default_factory=list)
    warm: list[tuple[float, float]] = field(default_factory=list)


def recovery(report: Report, rounds: int) -> None:
    """A process that holds 100,000 is killed; another ends the holds, exactly."""
    title(f"recovery of {DEAD_HOLDS:,} holds of a killed process, ms (of the processor alone)")
    print(f"{'':<30}{'first touch':>18}{'again':>18}{'ns/hold':>9}")
    three = [("tokens", "total"), ("nano_usd", "total"), ("requests", "total")]
    cases = {
        "4 levels, 12 cells": (list(budget_peers.LEVELS), three, "ledger"),
        "2 levels, 2 cells": (list(budget_peers.LEVELS[:2]), three[:1], "ledger"),
        "meter, 2 levels, 2 cells": (list(budget_peers.LEVELS[:2]), three[:1], "meter"),
    }
    rows: dict[str, Any] = {}
    for name, (paths, cells, kind) in cases.items():
        found = Recovered()
        for _ in range(rounds):
            recover_twice(report, found, paths, cells, kind)
        if not found.cold:
            report.expect(f"{name}: rounds in which the ledger's own thread did not come first", 0, rounds)
            continue
        middle = {
            key: (median(wall for wall, _ in taken), median(cpu for _, cpu in taken))
            for key, taken in (("cold", found.cold), ("warm", found.warm))
            if taken
        }
        shown = "".join(f"{f'{wall:.1f} ({cpu:.1f})':>18}" for wall, cpu in middle.values())
        print(f"{name:<30}{shown}{middle['cold'][0] * 1e6 / DEAD_HOLDS:>9.0f}")
        rows[name] = {key: {"wall_ms": round(wall, 2), "cpu_ms": round(cpu, 2)} for key, (wall, cpu) in middle.items()}
        report.target(f"recovery of 100,000 holds, {name}", middle["cold"][0], "<=", 50, "ms")
    report.figures["recovery"] = rows


def recover_twice(report: Report, found: Recovered, paths: list[str], cells: list[tuple[str, str]], kind: str) -> None:
    """A new file, opened; a process killed and its holds recovered; the same again, with every page at hand.

    The ledger's own thread looks for dead processes once in a second. If it comes first there is nothing to time.
    """
    with tempfile.TemporaryDirectory(dir=OUT) as name:
        folder = Path(name)
        config, state = folder / "budgets.toml", folder / "ledger.bin"
        config.write_text(tree(paths, cells, f"holds = 131072\n{volatile_line(folder)}"))
        with Ledger.open(config, state=state) as ledger:
            for number, taken in ((1, found.cold), (2, found.warm)):
                kill_a_holder(report, config, state, kind, paths[-1])
                wall, cpu = time.perf_counter(), time.thread_time()
                recovered = ledger.recover()["holds"]
                wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
                if recovered != 0:
                    taken.append((wall * 1e3, cpu * 1e3))
                    report.expect(f"{kind}: holds recovered", recovered, DEAD_HOLDS)
                report.expect(f"{kind}: live holds after", len(ledger.holds()), 0)
                for path in paths:
                    for (unit, _), cell in ledger.usage(path).items():
                        what, got = f"{path} {unit} used, held, stranded", (cell.used, cell.held, cell.stranded)
                        report.expect(what, got, (number * DEAD_HOLDS, 0, 0))


def kill_a_holder(report: Report, config: Path, state: Path, kind: str, path: str) -> None:
    """Starts it, waits until it holds everything, kills it."""
    command = [sys.executable, str(HERE / "budget_worker.py"), "hold", str(config), str(state), kind, path]
    child = subprocess.Popen([*command, str(DEAD_HOLDS)], stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
    assert child.stdout is not None  # noqa: S101 - a pipe
    held = child.stdout.readline().strip()
    child.send_signal(signal.SIGKILL)
    child.communicate()
    report.expect("holds of the process to kill", held, str(DEAD_HOLDS))


# --- all ----------------------------------------------------------------------------------------------------------


def main() -> int:
    """Runs the parts asked for."""
    parts = {
        "single": lambda: single_holds(report, arguments.rounds),
        "growth": lambda: growth(report, arguments.rounds),
        "charge": lambda: meter_charge(report, arguments.rounds),
        "reserve": lambda: meter_reserve(report, arguments.rounds * 20),
        "processes": lambda: processes(report, max(3, arguments.rounds // 4), 0.4),
        "recovery": lambda: recovery(report, max(3, arguments.rounds // 4)),
    }
    parser = argparse.ArgumentParser(description="the budget room, against its peers")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    if build_info()["profile"] != "release":
        sys.exit("error: this is a debug build; run `make build` first")
    OUT.mkdir(exist_ok=True)
    report = Report()
    for part in arguments.parts:
        parts[part]()
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    title(f"targets ({cores} cores; load average {load:.1f}, of which this bench is about one)")
    for row in report.targets:
        print(f"{'met   ' if row['met'] else 'MISSED'} {row['what']:<52}{row['value']:>10.3f}  {row['target']}")
    found = {"figures": report.figures, "targets": report.targets, "wrong": report.wrong}
    found["machine"] = {"cores": cores, "load_average": round(load, 2)}
    (OUT / "budget.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nall figures: {(OUT / 'budget.json').relative_to(OUT.parent.parent)}")
    for sentence in report.wrong:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
