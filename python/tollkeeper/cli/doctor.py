"""``tollkeeper doctor``: what this installation and this folder can and cannot do, each line with its fix.

It reads, tries the file system with a temporary file, and reports; it repairs nothing. Exit code 1 if something must be
fixed before a gate can be trusted or used.
"""

import argparse
import glob
import importlib.metadata
import multiprocessing
import os
import platform
import stat
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import msgspec

import tollkeeper
from tollkeeper import budgets, cases, config, watch
from tollkeeper.cli import doctor_host, gates, inputs
from tollkeeper.cli.config_check import installed
from tollkeeper.cli.doctor_folders import Folders, Place
from tollkeeper.cli.doctor_line import Line, reason, watched
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, coloured, counted, out, out_json, shown, wrapped
from tollkeeper.errors import TollkeeperError

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
SUBJECT_COLUMNS = 12
WARNED = "change the policy, or leave it if that is meant; tollkeeper config check repeats this"
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
# What a time server may slew by; the ledger follows no further.
CLOCK_SKEW_MS_MAX = 1_000
# Versions below these lack calls that the package uses; the same floors as in its metadata.
FLOORS = {"msgspec": (0, 18), "numpy": (1, 26)}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("--json", action="store_true", help="print one JSON line for each finding")
    inputs.add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Looks at everything."""
    path: Path = arguments.config
    lines = [
        *_installation(),
        *_packages(),
        *_process(),
        *watched("machine", doctor_host.look()),
        *watched("config", _folder(path)),
    ]
    for line in lines:
        if arguments.json:
            out_json(line._asdict())
        else:
            _print(line)
    return EXIT_NO if any(line.state == "fail" for line in lines) else EXIT_OK


def _print(line: Line) -> None:
    """One finding, its text beside state and subject."""
    before = f"{coloured(line.state.ljust(4), COLOURS[line.state])}  {line.subject.ljust(SUBJECT_COLUMNS)}  "
    indent = 4 + 2 + SUBJECT_COLUMNS + 2
    texts = [line.text, *([f"fix: {line.fix}"] if line.fix else [])]
    for number, part in enumerate(part for text in texts for part in wrapped(shown(text), indent)):
        out((before if number == 0 else " " * indent) + part)


def _installation() -> Iterator[Line]:
    info = tollkeeper.build_info()
    yield Line("ok", "tollkeeper", f"{info['version']}, {info['abi']}")
    if info["profile"] == "release":
        yield Line("ok", "build", "release")
    else:
        yield Line(
            "warn", "build", f"{info['profile']}: many times slower", "maturin develop --release, or install the wheel"
        )
    implementation = platform.python_implementation()
    yield Line("ok", "python", f"{platform.python_version()} ({implementation}, {sys.platform} {platform.machine()})")
    if sys.platform != "linux":
        yield Line("warn", "platform", f"{sys.platform} is not tested", "run on Linux")
    elif hasattr(os, "confstr") and (libc := os.confstr("CS_GNU_LIBC_VERSION")):
        yield Line("ok", "platform", libc)
    else:
        yield Line("warn", "platform", "not glibc; no wheel is made for it", "build from the source distribution")


def _packages() -> Iterator[Line]:
    for name, floor in FLOORS.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Line("fail", name, "not installed", f"pip install {name}")
            continue
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        wanted = ".".join(map(str, floor))
        old = numbers < floor
        yield Line("fail" if old else "ok", name, version, f"pip install '{name}>={wanted}'" if old else None)
    try:
        yield Line("ok", "uvloop", importlib.metadata.version("uvloop"))
    except importlib.metadata.PackageNotFoundError:
        yield Line("ok", "uvloop", "not installed; only a server uses it")


def _process() -> Iterator[Line]:
    # get_start_method would fix the method for this process.
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if method == "fork":
        text = "multiprocessing starts by fork; a gate opened before it refuses in the child"
        yield Line("ok", "fork", text, "open the gate in the child, or use the start method spawn")
    else:
        yield Line("ok", "fork", f"multiprocessing starts by {method}")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        gil = getattr(sys, "_is_gil_enabled", lambda: True)()
        text = "free-threaded Python, with the GIL switched on" if gil else "free-threaded Python"
        yield Line("warn", "threads", f"{text}: not tested", "use an ordinary build of Python")
    else:
        yield Line("ok", "threads", "ordinary build: a check holds the GIL")
    if os.environ.get("PYTHONOPTIMIZE"):
        yield Line("ok", "asserts", "switched off; the package relies on none")


def _folder(path: Path) -> Iterator[Line]:
    try:
        path.lstat()
    except FileNotFoundError:
        yield Line("warn", "config", f"{path}: no such file", "tollkeeper init")
        return
    yield from _permissions(path)
    try:
        settings = config.load(path)
    except (TollkeeperError, OSError) as error:
        yield _failed("config", error, path)
        return
    yield from _folders(settings)
    counts = [counted(len(settings.policy_files), "policy file"), counted(len(settings.tools), "tool")]
    if not settings.policy_files:
        yield Line(
            "fail", "config", f"{path}: no policy files, so everything is denied", 'files = ["policies/*.cedar"]'
        )
        return
    yield Line("ok", "config", f"{path}: {', '.join(counts)}")
    for file in [*settings.policy_files, settings.schema_file, settings.entities_file]:
        if file is not None:
            yield from _permissions(file)
    if settings.gate.mode == "shadow":
        yield Line("warn", "mode", "shadow: what policies deny is let through", '[gate] mode = "enforce"')
    yield from _contents(settings)


def _folders(settings: config.Config) -> Iterator[Line]:
    """The folders that gates of this configuration write to."""
    folders = Folders()
    if settings.state_dir is not None:
        yield from folders.look(Place("state", settings.state_dir, ("control.bin",)))
        if not settings.admin_keys:
            text = "no administrators' keys: whoever can write the state can revoke, restore and approve"
            yield Line(
                "warn", "admin", text, "tollkeeper audit keygen --out admin.key --origin admin, and [admin] keys"
            )
    if settings.audit_dir is not None:
        yield from folders.look(Place("audit", settings.audit_dir, ("signer.key", "*/signer.key", "*/ring")))
    state = settings.budget_state
    if state is not None:
        files = (glob.escape(state.name),)
        yield from folders.look(Place("ledger", state.parent, files), again=state.parent == settings.state_dir)
    yield from folders.parents(settings.file, "config")


def _contents(settings: config.Config) -> Iterator[Line]:
    schema = settings.schema_file
    try:
        policies = tollkeeper.PolicySet.from_cedar(list(settings.policy_files), schema, ids="annotation")
        against = "validated against the schema" if schema else "not validated"
        fix = None if schema else 'schema = "schema.cedarschema" finds misspelt names when policies are loaded'
        text = f"{counted(len(policies), 'policy', 'policies')}, {against}"
        yield Line("ok" if schema else "warn", "policies", text, fix)
        for text in policies.warnings:
            yield Line("warn", "policies", text, WARNED)
    except (TollkeeperError, OSError) as error:
        yield _failed("policies", error, None)
        return
    if settings.entities_file is not None:
        try:
            entities = tollkeeper.Entities.from_json(settings.entities_file, schema)
            yield Line("ok", "entities", _counted(entities, settings))
        except (TollkeeperError, OSError) as error:
            yield _failed("entities", error, settings.entities_file)
    try:
        ledger = _opened(settings)
        if settings.gate.watch and not installed("watchfiles"):
            text = "[gate] watch needs the package `watchfiles`, which is not installed: it does not open"
            yield Line("fail", "gate", text, watch.MISSING_HELP)
        with gates.rehearsed(settings, ledger) as gate:
            if not settings.gate.watch or installed("watchfiles"):
                yield Line("ok", "gate", f"opens, in mode {settings.gate.mode}")
            for text in gate.warnings:
                yield Line("warn", "gate", text, WARNED)
        yield from _ledger(settings, ledger)
        if ledger is not None:
            ledger.close()
        yield from _audit(settings)
    except (TollkeeperError, OSError) as error:
        yield _failed("gate", error, None)
    yield _tests(settings)


def _counted(entities: tollkeeper.Entities, settings: config.Config) -> str:
    """Those of the file, and apart from them what the schema brings along: its actions and their groups."""
    own = (
        len(msgspec.json.decode(config.read_text(settings.entities_file), type=list[object]))
        if settings.entities_file
        else 0
    )
    text = f"{settings.entities_file}: {counted(own, 'entity', 'entities')}"
    more = len(entities) - own
    return text + (f", and {counted(more, 'action')} of the schema" if more > 0 else "")


def _opened(settings: config.Config) -> tollkeeper.Ledger | None:
    """The ledger, or one in memory in its place: a state that is not there yet is not made here."""
    file, state = settings.budget_file, settings.budget_state
    if file is None:
        return None
    if state is None or not state.exists():
        return tollkeeper.Ledger.open(file)
    # As the verbs about budgets have it: to look at a ledger does not put the file's limits in force.
    return tollkeeper.Ledger({**budgets.spec(file), "keep_limits": True}, os.fsdecode(state))


def _ledger(settings: config.Config, ledger: tollkeeper.Ledger | None) -> Iterator[Line]:
    costs = [name for name, tool in settings.tools.items() if any((tool.cost or {}).values())]
    if ledger is None:
        if costs:
            text = f"none, so {counted(len(costs), 'tool')} with a cost cannot be called"
            yield Line("fail", "ledger", text, '[budget] file = "budgets.toml"')
        else:
            yield Line("ok", "ledger", "none: nothing that agents do is counted")
        return
    named = f"{settings.budget_file}: {counted(len(ledger.paths), 'budget')}"
    state = settings.budget_state
    if state is None:
        text = f"{named}, in the memory of each process; a restart forgets what was spent"
        yield Line("warn", "ledger", text, '[budget] state = "state/ledger.bin"')
        return
    if ledger.state is None:
        yield Line("ok", "ledger", f"{named}; {state} is made by the first program that opens it")
        return
    declared = settings.budget_file is not None and budgets.spec(settings.budget_file)["volatile"]
    volatile = ", volatile: a restart forgets what was spent" if declared else ""
    fix = "keep the state on a disk, without volatile = true" if volatile else None
    yield Line("warn" if volatile else "ok", "ledger", f"{named}, in {state}{volatile}", fix)
    holds = ledger.holds()
    gone = sum(1 for hold in holds if not hold["alive"])
    text = counted(len(holds), "live hold") + (f", {gone} of processes that have died" if gone else "")
    yield Line("warn" if gone else "ok", "holds", text, "tollkeeper budget recover" if gone else None)
    skew = ledger.clock_skew_ms
    if abs(skew) > CLOCK_SKEW_MS_MAX:
        where = "ahead of" if skew > 0 else "behind"
        text = f"the wall clock is {abs(skew) / 1000:.1f} s {where} the ledger's time"
        yield Line("warn", "clock", text, "set the clock right; if it is right now, Ledger.accept_clock()")
    else:
        yield Line("ok", "clock", "the ledger follows the wall clock")


def _audit(settings: config.Config) -> Iterator[Line]:
    if settings.audit is None or settings.audit_dir is None:
        yield Line("warn", "audit", "none: decisions are not recorded", '[audit] dir = "audit"')
        return
    named = f"{settings.audit_dir}, as {settings.audit_origin}"
    if settings.audit.on_full == "allow":
        text = f"{named}; actions pass unrecorded when the log is full"
        yield Line("warn", "audit", text, '[audit] on_full = "deny"')
    else:
        yield Line("ok", "audit", named)
    if not settings.audit.exported:
        text = "nothing outside takes its checkpoints: whoever can write the folder can rewrite the log"
        yield Line("warn", "audit", text, "tollkeeper audit checkpoints --export, and [audit] exported = true")


def _tests(settings: config.Config) -> Line:
    if not settings.test_files:
        return Line("warn", "tests", "no case files", 'tests = ["policies/*.md"]')
    try:
        reports = [cases.run(cases.read(file)) for file in settings.test_files]
    except (TollkeeperError, OSError) as error:
        return _failed("tests", error, None)
    failed = sum(len(report.failures) for report in reports)
    total = counted(sum(report.cases for report in reports), "case")
    if failed:
        return Line("fail", "tests", f"{failed} of {total} failed", "tollkeeper policy test")
    return Line("ok", "tests", f"{total} passed")


def _permissions(file: Path) -> Iterator[Line]:
    """Whoever can write these files decides what agents may do."""
    for path in (file, file.parent):
        state = path.stat()
        sticky = path.is_dir() and state.st_mode & stat.S_ISVTX
        if state.st_mode & WRITABLE_BY_OTHERS and not sticky:
            yield Line("warn", "permissions", f"{path}: others than its owner can write it", f"chmod go-w {path}")


def _failed(subject: str, error: Exception, file: Path | None) -> Line:
    first = reason(error) if isinstance(error, OSError) else str(error).partition("\n")[0]
    if file is not None and str(file) not in first:
        first = f"{file}: {first}" if not first[:1].isdigit() else f"{file}:{first}"
    fix = getattr(error, "help", None)
    return Line("fail", subject, first, fix or "tollkeeper config check")
