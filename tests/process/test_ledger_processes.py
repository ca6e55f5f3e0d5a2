"""One ledger, many processes: killed at any moment, forked, in other PID namespaces, on a host that restarts."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import ledger_worker
import pytest
from ledger_worker import RECORD

from tollkeeper import BudgetError, HandleError, Hold, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKER = Path(__file__).with_name("ledger_worker.py")
WORKERS = 8
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
KILLS = int(os.environ.get("TOLLKEEPER_KILLS", "100"))
HOLD_MAX = 200 + 50
TIGHT, WIDE = 300_000, 1 << 50
TOTAL = ("tokens", "total")

BUDGETS = f"""
[ledger]
holds = 512
volatile = true
[budget."org"]
limits = [
  {{ unit = "tokens", window = "total", limit = {WIDE} }},
  {{ unit = "tokens", window = "1m", limit = {WIDE} }},
  {{ unit = "requests", window = "1d", limit = {WIDE} }},
]
[budget."org/tight"]
limits = [
  {{ unit = "tokens", window = "total", limit = {TIGHT} }},
  {{ unit = "in_flight", window = "total", limit = 6 }},
]
[budget."org/wide"]
limits = [{{ unit = "tokens", window = "total", limit = {WIDE} }}, {{ unit = "tokens", window = "1h", limit = {WIDE} }}]
[budget."org/tight/*"]
limits = [{{ unit = "tokens", window = "total", limit = {WIDE} }}]
[budget."org/wide/*"]
limits = [
  {{ unit = "tokens", window = "total", limit = {WIDE} }},
  {{ unit = "tokens", window = "month", limit = {WIDE} }},
]
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    budgets = tmp_path / "budgets.toml"
    budgets.write_text(BUDGETS)
    return budgets, tmp_path / "ledger.bin"


class Workers:
    """Processes that hammer one ledger, each with a journal of its own."""

    def __init__(self, files: tuple[Path, Path], prefix: list[str] | None = None) -> None:
        self.budgets, self.state = files
        self.folder = self.state.parent
        self.prefix = prefix
        self.started = 0
        self.running: list[int] = []

    def start(self) -> None:
        """Forks a worker, or runs one under a command; returns when it has the ledger open."""
        arguments = (str(self.budgets), str(self.state), str(self.folder / f"journal-{self.started}"), self.started)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                if self.prefix is None:
                    ledger_worker.main(*arguments, writing)
                os.dup2(writing, 1)
                os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
                command = [*self.prefix, sys.executable, str(WORKER), *map(str, arguments)]  # type: ignore[misc]
                os.execvp(command[0], command)  # noqa: S606 - our own worker
            finally:
                os._exit(1)
        os.close(writing)
        assert os.read(reading, 1) == b"r", "the worker started"
        os.close(reading)
        self.started += 1
        self.running.append(pid)

    def kill(self, pid: int) -> None:
        # The whole session: under another PID namespace the worker is a child of what was started.
        os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "the worker ran until it was killed"
        self.running.remove(pid)

    def kill_all(self) -> None:
        for worker in list(self.running):
            self.kill(worker)

    def spent(self) -> tuple[int, int]:
        """Acknowledged spend, and what was in flight when workers died."""
        journals = [RECORD.unpack(file.read_bytes()) for file in self.folder.glob("journal-*")]
        return sum(spent for _, spent, _ in journals), sum(held > 0 for held, _, _ in journals)

    def holds(self) -> int:
        return sum(RECORD.unpack(file.read_bytes())[2] for file in self.folder.glob("journal-*"))


@pytest.fixture
def workers(files: tuple[Path, Path]) -> Iterator[Workers]:
    running = Workers(files)
    yield running
    running.kill_all()


def assert_adds_up(ledger: Ledger) -> None:
    for path in ledger.paths:
        for cell, usage in ledger.usage(path).items():
            parts = usage.used + usage.held + usage.available + usage.stranded
            assert parts == usage.limit + usage.overdraft, (path, cell, usage)
            assert min(usage.used, usage.held, usage.available, usage.stranded) >= 0, (path, cell, usage)


def assert_quiet(ledger: Ledger, workers: Workers) -> None:
    """Nobody is left: everything that was acknowledged is spent, and little more than that."""
    ledger.recover()
    assert not ledger.holds()
    assert_adds_up(ledger)
    acknowledged, in_flight = workers.spent()
    for path in ("org", "org/tight", "org/wide"):
        usage = ledger.usage(path)[TOTAL]
        assert usage.held == usage.stranded == 0, (path, usage)
    used = ledger.usage("org")[TOTAL].used
    assert acknowledged <= used <= acknowledged + in_flight * HOLD_MAX
    children = sum(ledger.usage(path)[TOTAL].used for path in ("org/tight", "org/wide"))
    # A step that was ambiguous at one level need not have been so at another.
    assert abs(used - children) <= in_flight * HOLD_MAX
    assert ledger.usage("org/tight")["in_flight", "total"].available == 6


@pytest.mark.timeout(60 + KILLS)
def test_killed_at_random_moments_nothing_is_overspent_and_nothing_is_lost(
    files: tuple[Path, Path], workers: Workers
) -> None:
    budgets, state = files
    choose = random.Random(7)  # noqa: S311 - a workload, not a secret
    ledger = Ledger.open(budgets, state=state)
    for _ in range(WORKERS):
        workers.start()
    for kill in range(KILLS):
        time.sleep(choose.random() * 0.02)
        workers.kill(choose.choice(workers.running))
        workers.start()
        if kill % 10 == 0:
            acknowledged, _ = workers.spent()
            ledger.recover()
            stranded = sum(usage.stranded for usage in ledger.usage("org").values())
            live = len(ledger.holds())
            assert stranded <= (live + WORKERS) * HOLD_MAX
            assert ledger.usage("org")[TOTAL].used >= acknowledged - WORKERS * HOLD_MAX
            assert ledger.usage("org/tight")[TOTAL].used <= TIGHT
    workers.kill_all()
    assert_quiet(ledger, workers)
    assert workers.started == WORKERS + KILLS
    assert workers.holds() > 10 * KILLS, "the workers did work"


def test_the_whole_budget_can_be_spent_after_kills(files: tuple[Path, Path], workers: Workers) -> None:
    budgets, state = files
    for _ in range(WORKERS):
        workers.start()
    ledger = Ledger.open(budgets, state=state)
    deadline = time.monotonic() + 10
    while ledger.usage("org/tight")[TOTAL].available > HOLD_MAX and time.monotonic() < deadline:
        time.sleep(0.05)
    workers.kill_all()
    assert_quiet(ledger, workers)
    rest = ledger.usage("org/tight")[TOTAL].available
    last = ledger.reserve("org/tight/a", tokens=rest)
    assert isinstance(last, Hold)
    assert ledger.reserve("org/tight/a", tokens=1).granted is False
    assert last.settle(tokens=rest)
    assert ledger.usage("org/tight")[TOTAL].used == TIGHT


def namespaces() -> list[str] | None:
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None:
        return None
    tried = subprocess.run([*command, "true"], capture_output=True, check=False)  # noqa: S603 - a fixed command
    return command if tried.returncode == 0 else None


def test_liveness_holds_across_pid_namespaces(files: tuple[Path, Path]) -> None:
    command = namespaces()
    if command is None:
        pytest.skip("this kernel lets nobody make a PID namespace")
    budgets, state = files
    inside, outside = Workers(files, command), Workers(files)
    outside.folder = inside.folder
    ledger = Ledger.open(budgets, state=state)
    try:
        inside.start()
        # Numbers go on, so that each has a journal of its own.
        outside.started = 1
        outside.start()
        time.sleep(0.3)
        assert ledger.recover()["processes"] == 0, "everybody lives, whatever their process ids say"
        inside.kill_all()
        outside.start()
        # The kernel takes its time to end a namespace.
        deadline = time.monotonic() + 10
        while not any(event["kind"] == "recovered" for event in ledger.events()):
            assert time.monotonic() < deadline
            ledger.recover()
            time.sleep(0.05)
    finally:
        inside.kill_all()
        outside.kill_all()
    assert_quiet(ledger, outside)


def in_child(work: Callable[[], None]) -> int:
    """Runs work in a forked child; returns its exit status, 0 if nothing was raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_an_inherited_ledger_in_memory_refuses_until_it_is_opened_anew() -> None:
    ledger = Ledger.from_toml('[budget."a"]\nlimits = [{ unit = "tokens", window = "total", limit = 10 }]')

    def child() -> None:
        with pytest.raises(HandleError) as refused:
            ledger.reserve("a", tokens=1)
        assert refused.value.code == "gate.forked"
        fresh = Ledger.from_toml('[budget."a"]\nlimits = [{ unit = "tokens", window = "total", limit = 10 }]')
        assert fresh.reserve("a", tokens=10).granted

    assert in_child(child) == 0
    assert ledger.reserve("a", tokens=10).granted


def test_an_inherited_shared_ledger_works_without_doubling(files: tuple[Path, Path]) -> None:
    budgets, state = files
    ledger = Ledger.open(budgets, state=state)
    held = ledger.reserve("org/tight/a", tokens=TIGHT - 100)
    assert isinstance(held, Hold)

    def child() -> None:
        assert not ledger.reserve("org/tight/b", tokens=101).granted
        mine = ledger.reserve("org/tight/b", tokens=60)
        assert isinstance(mine, Hold)
        assert mine.settle(tokens=60)
        left = ledger.reserve("org/tight/b", tokens=40)
        assert left.granted
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(child) == -signal.SIGKILL
    assert held.live, "the parent's hold is the parent's, whatever became of the child"
    ledger.recover()
    assert [hold["path"] for hold in ledger.holds()] == ["org/tight/a"]
    assert ledger.usage("org/tight")[TOTAL].used == 100
    assert held.settle(tokens=1)
    assert ledger.usage("org/tight")[TOTAL].used == 101


def test_a_child_does_not_keep_its_dead_parent_alive(files: tuple[Path, Path]) -> None:
    budgets, state = files
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        ledger = Ledger.open(budgets, state=state)
        hold = ledger.reserve("org/tight/a", tokens=70)
        if os.fork() == 0:
            # The grandchild has inherited the ledger and sleeps until the test ends it.
            os.write(writing, str(os.getpid()).encode().ljust(16))
            time.sleep(60)
            os._exit(0)
        assert hold.granted
        time.sleep(60)
        os._exit(0)
    grandchild = int(os.read(reading, 16))
    try:
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        ledger = Ledger.open(budgets, state=state)
        assert ledger.usage("org/tight")[TOTAL].used == 70
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_spawned_processes_share_a_ledger(files: tuple[Path, Path]) -> None:
    budgets, state = files
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        spent = pool.starmap(spend_all, [(str(budgets), str(state)), (str(budgets), str(state))])
    assert sum(spent) == TIGHT
    assert Ledger.open(budgets, state=state).usage("org/tight")[TOTAL].used == TIGHT


def spend_all(budgets: str, state: str) -> int:
    """Spends in hundreds until nothing is left."""
    spent = 0
    with Ledger.open(budgets, state=state) as ledger:
        while True:
            got = ledger.reserve("org/tight/a", tokens=100)
            if isinstance(got, Hold):
                spent += 100
                assert got.settle(tokens=100)
            elif got.code == "budget.exhausted":
                return spent


BOOT_ID_AT = 40
"""Where a state file says which boot it belongs to: two words of eight bytes."""


def restart(state: Path, copy: bytes | None = None) -> None:
    """What a restart of the host leaves: what was synced, under another boot id."""
    data = bytearray(copy if copy is not None else state.read_bytes())
    data[BOOT_ID_AT : BOOT_ID_AT + 16] = bytes(byte ^ 0xFF for byte in data[BOOT_ID_AT : BOOT_ID_AT + 16])
    state.write_bytes(data)


@pytest.fixture
def durable(tmp_path: Path) -> tuple[Path, Path]:
    budgets = tmp_path / "budgets.toml"
    cells = [f'{{ unit = "tokens", window = "{window}", limit = 6400 }}' for window in ("total", "1d")]
    limits = f"limits = [{', '.join(cells)}]"
    budgets.write_text(f'[ledger]\nholds = 64\n[budget."a"]\n{limits}\n[budget."a/*"]\n{limits}\n')
    return budgets, tmp_path / "ledger.bin"


def open_durable(durable: tuple[Path, Path]) -> Ledger:
    try:
        return Ledger.open(durable[0], state=durable[1])
    except BudgetError as error:
        if error.code == "budget.state_volatile":
            pytest.skip("the temporary folder lies in memory")
        raise


def test_spend_survives_a_restart_of_the_host(durable: tuple[Path, Path]) -> None:
    ledger = open_durable(durable)
    for amount in (1000, 500):
        hold = ledger.reserve("a/child", tokens=amount)
        assert isinstance(hold, Hold)
        assert hold.settle(tokens=amount)
    ledger.sync()
    synced = durable[1].read_bytes()
    # What comes after the last sync is covered as far as the open chunk reaches: a sixty-fourth of the limit.
    late = ledger.reserve("a/child", tokens=50)
    assert isinstance(late, Hold)
    assert late.settle(tokens=50)
    ledger.close()
    restart(durable[1], synced)
    ledger = open_durable(durable)
    for path, window in itertools.product(("a", "a/child"), ("total", "1d")):
        usage = ledger.usage(path)["tokens", window]
        assert 1550 <= usage.used <= 1500 + 6400 // 64, (path, window, usage)
        assert usage.used + usage.available == usage.limit
    assert any(event["kind"] == "restarted" for event in ledger.events())


def test_a_ledger_that_was_closed_restarts_exactly(durable: tuple[Path, Path]) -> None:
    with open_durable(durable) as ledger:
        hold = ledger.reserve("a/child", tokens=1234)
        assert isinstance(hold, Hold)
        assert hold.settle(tokens=1000)
    restart(durable[1])
    usage = open_durable(durable).usage("a/child")["tokens", "total"]
    assert (usage.used, usage.held, usage.available) == (1000, 0, 5400)


def test_the_last_image_counts_when_the_next_one_is_torn(durable: tuple[Path, Path]) -> None:
    with open_durable(durable) as ledger:
        hold = ledger.reserve("a/child", tokens=1000)
        assert isinstance(hold, Hold)
        assert hold.settle(tokens=1000)
        ledger.sync()
        before = durable[1].read_bytes()
        hold = ledger.reserve("a/child", tokens=1000)
        assert isinstance(hold, Hold)
        assert hold.settle(tokens=1000)
        ledger.sync()
        after = bytearray(durable[1].read_bytes())
    changed = [at for at, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    # The second image lies at the end of the file; half of what it changed there never reached the disk.
    image = [at for at in changed if at > changed[-1] - 4096]
    for at in image[len(image) // 2 :]:
        after[at] = before[at]
    restart(durable[1], bytes(after))
    usage = open_durable(durable).usage("a/child")["tokens", "total"]
    assert 1000 <= usage.used <= 2000 + 6400 // 64
