"""What goes wrong around a gate, and what it promises then.

It denies with the code that says so, or raises an error that does, and whatever was answered before stays true.

Every process that is forked, stopped or killed here is the test's own. What needs a file system of its own is skipped
where none can be mounted.
"""

import asyncio
import contextlib
import fcntl
import functools
import gc
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import BudgetError, Denied, Gate, HandleError, Ledger, StateError, TollkeeperError, _native
from tollkeeper._native import AuditReader, Control, audit_verify
from tollkeeper.testing import FakeClock

NOW = 1_767_225_600_000
CONFIG = """
[policy]
files = ["p.cedar"]
[audit]
origin = "example.com/gate"
[state]
dir = "state"
[budget]
file = "budgets.toml"
state = "ledger/ledger.bin"
[tools.search]
resource = 'Mcp::"web"'
cost = { requests = 1 }
[tools.read]
resource = 'Mcp::"web"'
reads = ["untrusted"]
[tools.wire]
resource = 'Mcp::"bank"'
"""
POLICIES = """
@id("all") permit(principal, action in
    [Action::"search", Action::"read", Action::"call_model", Action::"delegate"], resource);
@id("wire") @approval("finance") permit(principal, action == Action::"wire", resource);
@id("seen") forbid(principal, action == Action::"search", resource)
    when { context.session.labels.contains("untrusted") };
"""
BUDGETS = """
[budget."acme"]
limits = [
    { unit = "requests", window = "total", limit = 1000000000 },
    { unit = "tokens", window = "1d", limit = 1000000 },
]
"""
# The byte, far beyond the end of either file, that whoever changes it locks.
LOCK = 1 << 40
EVERY_WAY = ("check", "action", "check_many", "acheck", "check_blocking", "guard", "model_call", "delegate")


@pytest.fixture
def gate(folder: Path) -> Iterator[Gate]:
    """It, open."""
    with opened(folder) as gate:
        yield gate


def opened(folder: Path, **more: Any) -> Gate:
    return Gate.open(folder / "tollkeeper.toml", **more)


def run(gate: Gate, **more: Any) -> Any:
    return gate.run(principal='Agent::"a"', budget="acme", **more)


def one(gate: Gate, tool: str = "search") -> str:
    """The code of one check."""
    with run(gate):
        return gate.check(tool, {"q": "x"}).code


def soon(gate: Gate, code: str, seconds: float = 10.0) -> bool:
    """Whether checks come to have this code, and keep it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if one(gate) == code:
            return all(one(gate) == code for _ in range(20))
        time.sleep(0.01)
    return False


def used(gate: Gate) -> tuple[int, int]:
    """Requests that were used and are held."""
    assert gate.ledger is not None
    usage = gate.ledger.usage("acme")["requests", "total"]
    return usage.used, usage.held


def every_way(gate: Gate) -> dict[str, str]:
    """The code that each way to ask has now."""
    codes: dict[str, str] = {}

    @gate.guard(tool="search")
    def search(q: str) -> str:
        return q

    with run(gate) as scope:
        codes["check"] = gate.check("search", {"q": "x"}).code
        codes["action"] = gate.action("search").check({"q": "x"}).code
        codes["check_many"] = gate.check_many("search", {"q": ["x", "y"]})[1].code
        codes["acheck"] = asyncio.run(gate.acheck("search", {"q": "x"}, scope=scope)).code
        codes["check_blocking"] = gate.check_blocking("search", {"q": "x"}).code
        for name, enter in (
            ("guard", lambda: search("x")),
            ("model_call", lambda: gate.model_call(model="m", prompt_tokens=1, max_tokens=1).__enter__()),
            ("delegate", lambda: gate.delegate('Agent::"b"').__enter__()),
        ):
            try:
                enter()
            except Denied as denied:
                codes[name] = denied.code
            else:
                codes[name] = "allow"
    return codes


def entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = [
        json.loads(entry)
        for slot in sorted((folder / "audit").iterdir())
        if slot.name.isdigit()
        for _, entry in AuditReader(slot).entries()
    ]
    return [entry for entry in found if entry["kind"] == kind]


def verified(folder: Path) -> None:
    report = audit_verify(folder / "audit", trust_directory=True)
    assert report["verdict"] == "ok", report


def python(code: str, *arguments: object, **more: Any) -> "subprocess.CompletedProcess[str]":
    """Runs a program in a process of its own; it may have a minute."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)  # noqa: S603


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """A child that does this and ends, and where its bytes come from."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # No exception leaves the child: it would run the rest of the tests.
        code = 1
        try:
            os.close(reading)
            work(writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return child, reading


def told(work: Callable[[], Any]) -> Any:
    """What a forked child makes of it."""
    child, reading = forked(lambda writing: os.write(writing, json.dumps(work()).encode()) and None)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return json.loads(text)


# --- panics -------------------------------------------------------------------------------------------------------


def test_a_panic_denies_and_poisons_only_its_gate(folder: Path, gate: Gate, capfd: pytest.CaptureFixture[str]) -> None:
    with opened(folder) as other:
        with run(gate):
            before = gate.check("search", {"q": "x"})
        panicked = _native._panic_in_check(gate)
        assert (panicked.code, panicked.allowed) == ("internal.panic", False)
        assert every_way(gate) == dict.fromkeys(EVERY_WAY, "internal.panic")
        assert set(every_way(other).values()) == {"allow"}
        # What it allowed before ends as it should.
        hold = before.hold
        assert hold is not None
        assert hold.settle(requests=1)
        assert gate.stats()["codes"]["internal.panic"] >= len(EVERY_WAY)
        assert "internal.panic" not in other.stats()["codes"]
        del hold, before
        gc.collect()
        assert used(other)[1] == 0
    gate.close()
    verified(folder)
    out, error = capfd.readouterr()
    assert out == ""
    (line,) = error.splitlines()
    assert line.startswith("tollkeeper: internal error at ")
    assert "gate.rs" in line
    # The message of a panic may hold a piece of what was being checked.
    assert "on purpose" not in line


# --- fork ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_inherited_gate_refuses_every_way_and_leaves_its_parent_alone(folder: Path, gate: Gate) -> None:
    with run(gate) as scope:
        decision = gate.check("search", {"q": "x"})
        hold = decision.hold
        assert hold is not None
        before, counted = used(gate), gate.stats()["codes"]

        def child() -> Any:
            codes = every_way(gate)
            held = decision.hold is None
            codes["bound"] = scope.bind(lambda: gate.check("search").code)()
            with opened(folder) as own:
                codes["own"] = one(own)
            gate.close()
            codes["closed"] = one(gate)
            return codes, held

        codes, held = told(child)
        assert codes.pop("own") == "allow"
        assert set(codes.values()) == {"gate.forked"}, codes
        assert held
        assert gate.stats()["codes"] == counted
        # The child's own gate has spent one, and nothing of the parent's.
        assert used(gate) == (before[0] + 1, before[1])
        assert gate.check("search").code == "allow"
        assert hold.settle(requests=1)
    gate.close()
    verified(folder)
    ids = [entry["id"] for entry in entries(folder, "decision")]
    assert len(ids) == len(set(ids))


_INHERITED: list[Gate] = []


def in_a_process(path: Path, connection: Any) -> None:
    """The target of a `multiprocessing.Process`."""
    with Gate.open(path) as own:
        connection.send(([one(gate) for gate in _INHERITED], one(own)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("method", "inherits"), [("fork", True), ("spawn", False), ("forkserver", False)])
def test_processes_however_they_start(folder: Path, gate: Gate, method: str, *, inherits: bool) -> None:
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    _INHERITED.append(gate)
    try:
        process = context.Process(target=in_a_process, args=(folder / "tollkeeper.toml", theirs))
        process.start()
        assert ours.poll(60)
        assert ours.recv() == (["gate.forked"] if inherits else [], "allow")
        process.join(60)
        assert process.exitcode == 0
        with pytest.raises(TypeError):
            context.Process(target=in_a_process, args=(gate, theirs)).start() if not inherits else gate.__reduce__()
    finally:
        _INHERITED.clear()
    assert one(gate) == "allow"


# --- threads ------------------------------------------------------------------------------------------------------


def test_sixteen_threads_do_everything_at_once(folder: Path) -> None:  # noqa: C901 - one small function for each thread
    gate, over = opened(folder), threading.Event()
    control = Control.open(folder / "state" / "control.bin")
    codes: set[str] = set()
    errors: list[str] = []

    def thread(work: Callable[[int], None]) -> threading.Thread:
        def loop() -> None:
            number = 0
            while not over.is_set():
                number += 1
                try:
                    work(number)
                except Exception as error:  # noqa: BLE001 - any error but that the gate was closed is a finding
                    if not (gate.closed and isinstance(error, TollkeeperError)):
                        errors.append(f"{type(error).__name__}: {error}")
                        return
                    time.sleep(0.01)

        return threading.Thread(target=loop, daemon=True)

    def reload(number: int) -> None:
        (folder / f"p{number % 2}.cedar").write_text(POLICIES)
        gate.reload()
        time.sleep(0.01)

    def revoke(number: int) -> None:
        (control.revoke if number % 2 else control.restore)(
            "session", "nobody", *(["", "test", NOW] if number % 2 else [])
        )
        time.sleep(0.005)

    def register(number: int) -> None:
        gate._register([(f"tool_{number % 50}_{threading.get_ident()}", 'Mcp::"web"', None, [], None, [])])
        time.sleep(0.05)

    def ask(_: int) -> None:
        codes.update(every_way(gate).values())

    works: list[Callable[[int], None]] = [lambda _: codes.add(one(gate))] * 8
    works += [reload, reload, revoke, revoke, register, ask, ask]
    threads = [thread(work) for work in works]
    for each in threads:
        each.start()
    time.sleep(1.0)
    closing = threading.Thread(target=gate.close, daemon=True)
    closing.start()
    closing.join(30)
    time.sleep(0.1)
    assert one(gate) == "gate.closed"
    over.set()
    for each in threads:
        each.join(30)
    assert not any(each.is_alive() for each in [*threads, closing])
    assert not errors
    assert codes <= {"allow", "gate.closed", "audit.unavailable", "budget.unavailable"}, codes
    verified(folder)
    with opened(folder) as again:
        assert one(again) == "allow"
        assert used(again)[1] == 0


def test_a_closed_gate_is_not_reloaded(gate: Gate) -> None:
    gate.close()
    with pytest.raises(HandleError) as caught:
        gate.reload()
    assert caught.value.code == "gate.closed"


# `check_many` is not among them: it gives the interpreter's lock back, and CPython before 3.14 unwinds a daemon thread
# that wants it again through native code, which ends the process. Every record of it is safe by then.
@pytest.mark.parametrize("ask", ["check", "check_blocking", "action"])
def test_daemon_threads_may_check_while_the_interpreter_ends(folder: Path, ask: str) -> None:
    """OpenTelemetry is installed here, whose tracer is Python that runs inside a check."""
    pytest.importorskip("opentelemetry")
    asked = {"check_many": 'gate.check_many("search", {"q": ["x"] * 50})', "action": "action.check({})"}
    code = f"""
    import sys, threading, time
    from tollkeeper import Gate
    gate = Gate.open(sys.argv[1])
    action = gate.action("search")
    def work():
        with gate.run(principal='Agent::"a"', budget="acme"):
            while True:
                {asked.get(ask, f'gate.{ask}("search", {{}})')}
    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.1)
    """
    for _ in range(3):
        done = python(code, folder / "tollkeeper.toml")
        assert (done.returncode, done.stderr) == (0, "")
    verified(folder)


# --- subinterpreters ----------------------------------------------------------------------------------------------


def test_another_interpreter_is_refused_cleanly() -> None:
    code = """
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    import tollkeeper
    other = interpreters.create()
    text = '''
    try:
        import tollkeeper
    except ImportError as error:
        print(error, flush=True)
    else:
        print("imported", flush=True)
    '''
    import textwrap
    for _ in range(2):
        (getattr(interpreters, "run_string", None) or interpreters.exec)(other, textwrap.dedent(text))
    interpreters.destroy(other)
    print(tollkeeper.Gate.__name__)
    """
    done = python(code)
    first, second, own = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert first == second
    assert "tollkeeper serves one interpreter of a process" in first
    assert own == "Gate"


# --- the disk is full ---------------------------------------------------------------------------------------------

FULL_DISK = """
import os, sys, time
from pathlib import Path
from tollkeeper import AuditLog, Gate
from tollkeeper._native import audit_verify
folder, small = Path(sys.argv[1]), Path(sys.argv[2])
log = AuditLog.open(small / "audit", origin="t/x", ring_bytes=512 << 10, interval_ms=5, segment_bytes=16 << 20)
gate = Gate.open(folder / "tollkeeper.toml", log=log)
ballast = os.open(small / "ballast", os.O_WRONLY | os.O_CREAT)
size = 1 << 20
while size >= 512:
    try:
        os.write(ballast, b"x" * size)
    except OSError:
        size //= 2
usage = lambda: gate.ledger.usage("acme")["requests", "total"]
with gate.run(principal='Agent::"a"', budget="acme"):
    allowed, end = 0, time.monotonic() + 40
    while time.monotonic() < end:
        decision = gate.check("search", {"q": "x" * 2000})
        allowed += decision.allowed
        if "No space left" in decision.reason:
            break
        decision = None
    assert decision.code == "audit.unavailable", (decision.code, decision.reason)
    decision = None
    before = usage()
    assert (before.used, before.held) == (allowed, 0)
    assert [gate.check("search", {"q": "x" * 2000}).code for _ in range(50)] == ["audit.unavailable"] * 50
    assert usage() == before
    os.close(ballast)
    (small / "ballast").unlink()
    end = time.monotonic() + 20
    while gate.check("search").code != "allow":
        assert time.monotonic() < end, "it never recovers"
        time.sleep(0.01)
gate.close()
log.close()
report = audit_verify(small / "audit", trust_directory=True)
found = report["slots"][0]["completeness"]
assert report["verdict"] == "ok", report
assert found["allowed"] == allowed + 1, (found, allowed)
assert found["denied_unlogged_count"] >= 50
print("recovered")
"""


def in_small_file_system(code: str, folder: Path, megabytes: int) -> "subprocess.CompletedProcess[str]":
    """Runs a program that finds an empty file system of this size at its second argument."""
    small = folder / "small"
    small.mkdir()
    program = folder / "program.py"
    program.write_text(code)
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed, so no small file system can be mounted")
    mount = f'mount -t tmpfs -o size={megabytes}m tmpfs "$2" 2>/dev/null || exit 77; exec "$0" "$3" "$1" "$2"'
    command = [unshare, "--map-root-user", "--mount", "sh", "-c", mount, sys.executable, folder, small, program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)  # noqa: S603
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no small file system can be mounted here: user namespaces are not allowed")
    return done


@pytest.mark.timeout(120)
def test_a_full_disk_denies_holds_nothing_and_recovers(folder: Path) -> None:
    done = in_small_file_system(FULL_DISK, folder, 64)
    assert (done.stdout, done.returncode) == ("recovered\n", 0), done.stderr


NO_ROOM = """
import resource, signal, sys
from pathlib import Path
from tollkeeper import Gate, TollkeeperError
folder, least = Path(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
before = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (least, before[1]))
try:
    Gate.open(folder / "tollkeeper.toml")
except TollkeeperError as error:
    print(error.code, "File too large" in str(error))
print(sorted(path.name for path in folder.glob("*/*") if path.parent.name in ("state", "ledger")))
resource.setrlimit(resource.RLIMIT_FSIZE, before)
with Gate.open(folder / "tollkeeper.toml") as gate, gate.run(principal='Agent::"a"', budget="acme"):
    print(gate.check("search").code)
"""


@pytest.mark.parametrize(
    ("unneeded", "code"), [('[state]\ndir = "state"\n', "budget.io"), ('state = "ledger/ledger.bin"\n', "control.io")]
)
def test_state_that_does_not_fit_on_the_disk_is_an_error_and_leaves_nothing(
    folder: Path, unneeded: str, code: str
) -> None:
    config = folder / "tollkeeper.toml"
    config.write_text(config.read_text().replace(unneeded, "").replace('[audit]\norigin = "example.com/gate"\n', ""))
    done = python(NO_ROOM, folder, 8192)
    assert done.stdout.splitlines() == [f"{code} True", "[]", "allow"], done


def test_an_approval_that_cannot_be_written_down_is_not_asked_for(folder: Path) -> None:
    code = """
    import resource, signal, sys
    from tollkeeper import Gate
    gate = Gate.open(sys.argv[1])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with gate.run(principal='Agent::"a"', budget="acme"):
        decision = gate.check("wire", {"amount": 5})
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
        try:
            gate.approval(decision)
        except OSError as error:
            print(error.strerror)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        print(gate._control.approvals(0))
        print(gate.approval(decision).state, gate.check("wire", {"amount": 5}).code)
    """
    config = folder / "tollkeeper.toml"
    config.write_text(config.read_text().replace('[audit]\norigin = "example.com/gate"\n', ""))
    done = python(code, config)
    assert done.stdout.splitlines() == ["File too large", "[]", "pending approval.required"], done
    assert [path.suffix for path in (folder / "state" / "approvals").iterdir()] == [".json"]


# --- the files of the state ---------------------------------------------------------------------------------------


def overwrite(file: Path) -> None:
    """With zeros, in place."""
    with file.open("r+b") as handle:
        handle.write(bytes(file.stat().st_size))


def replace(file: Path) -> None:
    """With a copy of itself."""
    copy = file.with_suffix(".copy")
    shutil.copy(file, copy)
    copy.rename(file)


@pytest.mark.parametrize("what", [Path.unlink, replace, lambda file: file.rename(file.with_suffix(".old"))])
def test_a_ledger_that_lost_its_name_refuses(folder: Path, gate: Gate, what: Callable[[Path], object]) -> None:
    assert one(gate) == "allow"
    what(folder / "ledger" / "ledger.bin")
    assert soon(gate, "budget.unavailable")
    assert set(every_way(gate).values()) <= {"budget.unavailable", "allow"}
    assert every_way(gate)["delegate"] == "allow", "it costs nothing"


def test_an_overwritten_ledger_allows_nothing(folder: Path, gate: Gate) -> None:
    assert one(gate) == "allow"
    overwrite(folder / "ledger" / "ledger.bin")
    codes = {one(gate) for _ in range(50)}
    assert codes <= {"budget.too_large", "budget.unavailable", "budget.exhausted"}, codes


@pytest.mark.parametrize("what", [Path.unlink, replace, lambda file: file.rename(file.with_suffix(".old")), overwrite])
def test_revocations_that_nobody_can_reach_stop_everything(
    folder: Path, gate: Gate, what: Callable[[Path], object]
) -> None:
    """Whoever revokes would write to another file, and the gate would never see it."""
    control = folder / "state" / "control.bin"
    assert one(gate) == "allow"
    what(control)
    Control.open(control).revoke("principal", 'Agent::"a"', "", "test", NOW) if what is not overwrite else None
    assert soon(gate, "principal.revoked")
    with run(gate):
        assert "the file of revocations was moved" in gate.check("search").reason
    gate.close()
    observed = [entry for entry in entries(folder, "revoke") if entry.get("observed")][-1]
    assert observed["in_force"] >= 1
    control.unlink(missing_ok=True)
    with opened(folder) as again:
        assert one(again) == "allow"


def test_a_wiped_revocation_is_in_force(folder: Path, gate: Gate) -> None:
    control = folder / "state" / "control.bin"
    backup = control.read_bytes()
    Control.open(control).revoke("principal", 'Agent::"b"', "", "test", NOW)
    assert soon(gate, "allow")
    time.sleep(1.1)
    assert one(gate) == "allow"
    with control.open("r+b") as handle:
        handle.write(backup)
    assert soon(gate, "principal.revoked")


@pytest.mark.parametrize("name", ["state/control.bin", "ledger/ledger.bin"])
def test_a_state_file_cut_short_ends_the_process_and_allows_nothing(folder: Path, name: str) -> None:
    """A page that is gone cannot be read: the kernel ends the process."""
    code = """
    import os, sys
    from pathlib import Path
    from tollkeeper import Gate
    folder, file = Path(sys.argv[1]), Path(sys.argv[1]) / sys.argv[2]
    gate = Gate.open(folder / "tollkeeper.toml")
    with gate.run(principal='Agent::"a"', budget="acme"):
        print(gate.check("search").code, flush=True)
        os.truncate(file, 0)
        while True:
            print(gate.check("search").code, flush=True)
    """
    config = folder / "tollkeeper.toml"
    config.write_text(config.read_text().replace('[audit]\norigin = "example.com/gate"\n', ""))
    done = python(code, folder, name)
    assert done.returncode == -signal.SIGBUS
    assert done.stdout.splitlines() == ["allow"]
    with pytest.raises((StateError, BudgetError)):
        opened(folder)


def test_state_that_others_may_write_is_refused(folder: Path) -> None:
    opened(folder).close()
    control = folder / "state" / "control.bin"
    control.chmod(0o666)
    with pytest.raises(StateError) as caught:
        opened(folder)
    assert "666" in str(caught.value)
    control.chmod(0o600)
    (folder / "state").chmod(0o777)
    with pytest.raises(StateError):
        opened(folder)
    (folder / "state").chmod(0o700)
    opened(folder).close()
    assert stat.S_IMODE(control.stat().st_mode) == 0o600


def test_permissions_taken_away_count_for_whoever_opens_next(folder: Path, gate: Gate) -> None:
    """An open gate goes on with what it has open, and what it spends is counted there."""
    before = used(gate)
    (folder / "ledger" / "ledger.bin").chmod(0)
    (folder / "state" / "control.bin").chmod(0)
    assert one(gate) == "allow"
    gc.collect()
    assert used(gate) == (before[0] + 1, 0)
    if os.geteuid() != 0:
        with pytest.raises(TollkeeperError):
            opened(folder)


@pytest.mark.parametrize(("name", "code"), [("state/control.bin", "control.busy"), ("ledger/ledger.bin", None)])
def test_a_stopped_process_with_the_lock_holds_up_no_check(
    folder: Path, gate: Gate, name: str, code: str | None
) -> None:
    """Checks take no lock. What takes one, such as revoking, says after a while that it cannot have it."""

    def keep(writing: int) -> None:
        with (folder / name).open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX, 1, LOCK)
            os.write(writing, b"locked")
            time.sleep(60)

    child, reading = forked(keep)
    try:
        assert os.read(reading, 6) == b"locked"
        os.kill(child, signal.SIGSTOP)
        began = time.monotonic()
        assert [one(gate) for _ in range(200)] == ["allow"] * 200
        assert time.monotonic() - began < 5
        waits = functools.partial(opened, folder)
        if code is not None:
            waits = functools.partial(gate._control.revoke, "everything", "", "", "test", NOW)
        with pytest.raises(TollkeeperError) as caught:
            waits()
        assert time.monotonic() - began < 30
        assert code is None or caught.value.code == code
        assert one(gate) == "allow"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
    assert gate._control.revoke("everything", "", "", "test", NOW)[1]
    assert one(gate) == "principal.revoked"


# --- clocks -------------------------------------------------------------------------------------------------------


def clocked(folder: Path, clock: FakeClock, budgets: str = BUDGETS) -> Gate:
    return opened(folder, ledger=Ledger.from_toml(budgets, clock=clock))


def test_a_clock_set_back_gives_a_run_no_more_time(folder: Path) -> None:
    clock = FakeClock(NOW)
    with clocked(folder, clock) as gate, run(gate, expires_at=NOW / 1000 + 0.3) as outer:
        assert gate.check("search").code == "allow"
        clock.step(-3_600_000)
        with run(gate, expires_at=NOW / 1000 + 3600):
            time.sleep(0.35)
            assert gate.check("search").code == "principal.expired", "nor does a run inside it"
        assert gate.check("search", scope=outer).code == "principal.expired"


def test_a_clock_set_forward_ends_runs_early(folder: Path) -> None:
    clock = FakeClock(NOW)
    with clocked(folder, clock) as gate, run(gate, expires_at=NOW / 1000 + 60):
        assert gate.check("search").code == "allow"
        clock.step(61_000)
        assert gate.check("search").code == "principal.expired"


def test_a_clock_that_steps_opens_no_window(folder: Path) -> None:
    clock = FakeClock(NOW)
    budgets = '[budget."acme"]\nlimits = [{ unit = "requests", window = "1h", limit = 2 }]\n'
    with clocked(folder, clock, budgets) as gate:
        assert [one(gate) for _ in range(3)] == ["allow", "allow", "budget.exhausted"]
        for step in (-60_000, -7_200_000, 0, 30_000):
            clock.step(NOW + step - clock.wall_ms)
            assert one(gate) == "budget.exhausted", step


def test_labels_outlive_a_clock_that_steps(folder: Path) -> None:
    clock = FakeClock(NOW)
    month = 31 * 24 * 3600 * 1000
    with clocked(folder, clock) as gate:
        with run(gate, session="s", labels=["untrusted"]):
            assert gate.check("search").code == "policy.forbidden"
        for step in (-month, month, 0):
            clock.step(NOW + step - clock.wall_ms)
            with run(gate, session="s"):
                assert gate.check("search").code == "policy.forbidden", step


# --- signals ------------------------------------------------------------------------------------------------------

BUSY = """
import os, signal, sys
from tollkeeper import Gate
if sys.argv[2] == "exits":
    def leave(*_):
        raise SystemExit(3)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
gate = Gate.open(sys.argv[1])
with gate.run(principal='Agent::"a"', budget="acme"):
    while True:
        many = gate.check_many("search", {"q": ["x"] * 16}) if sys.argv[3] == "many" else [gate.check("search")]
        os.write(1, "".join(f"{decision.id}\\n" for decision in many).encode())
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["dies", "exits"])
@pytest.mark.parametrize("ask", ["many", "one"])
def test_what_was_answered_before_a_signal_is_in_the_log(folder: Path, how: str, ask: str) -> None:
    repetitions = int(os.environ.get("TOLLKEEPER_SIGNALS", "6"))
    answered: list[str] = []
    for number in range(repetitions):
        sent = signal.SIGINT if number % 3 == 2 else signal.SIGTERM
        command = [sys.executable, "-c", BUSY, str(folder / "tollkeeper.toml"), how, ask]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # noqa: S603
        assert process.stdout is not None
        answered += [process.stdout.readline().decode().strip() for _ in range(1 + 37 * number % 60)]
        process.send_signal(sent)
        answered += [line.decode().strip() for line in process.stdout if line.endswith(b"\n")]
        # Python's own answer to SIGINT is an exception, and then the signal.
        assert process.wait(60) == (3 if how == "exits" else -sent)
        process.stdout.close()
    with opened(folder) as gate:
        assert one(gate) == "allow"
        gc.collect()
        assert gate.ledger is not None
        gate.ledger.recover()
        total, held = used(gate)
    verified(folder)
    decisions = entries(folder, "decision")
    recorded = [entry["id"] for entry in decisions]
    assert len(recorded) == len(set(recorded))
    assert not set(answered) - set(recorded)
    # Whoever died may have been between its place in the log and the reserve, or the other way round: never more.
    assert held == 0
    assert len(set(answered)) <= total <= len(recorded) + repetitions


ADMIN = {
    "revoking": """
        number = 0
        while True:
            number += 1
            control.revoke("session", f"s{number % 7}", "r" * 200, "test", number)
            os.write(1, b"+")
            control.restore("session", f"s{number % 7}")
    """,
    "answering": """
        while True:
            approval = os.urandom(8).hex()
            control.ask(approval, os.urandom(32), 2**50, 1)
            control.answer(approval, True, 2**50, None, 2)
            os.write(1, b"+")
    """,
    "reloading": """
        from tollkeeper import Gate
        gate = Gate.open(sys.argv[1] + "/tollkeeper.toml")
        while True:
            gate.reload()
            os.write(1, b"+")
    """,
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ADMIN)
def test_killed_while_it_administers_the_state_stays_usable(folder: Path, gate: Gate, what: str) -> None:
    head = "import os, sys\nfrom tollkeeper._native import Control\n"
    head += "control = Control.open(sys.argv[1] + '/state/control.bin')\n"
    for number in range(5):
        command = [sys.executable, "-c", head + textwrap.dedent(ADMIN[what]), str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: S603
        assert process.stdout is not None
        process.stdout.read(1 + 7 * number)
        process.kill()
        process.wait()
        process.stdout.close()
        assert one(gate) == "allow"
    control = Control.open(folder / "state" / "control.bin")
    assert not any(row["damage"] for row in control.revocations())
    assert control.revoke("principal", 'Agent::"a"', "after all", "test", NOW)[1]
    assert one(gate) == "principal.revoked"
    assert control.restore("principal", 'Agent::"a"')[1]
    assert one(gate) == "allow"
    gate.close()
    # The log of whoever was killed is recovered by the next who opens its slot.
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(opened(folder))
    verified(folder)
