"""``tollkeeper report``: one page that shows what a log holds, to be read, printed or sent, without any server.

It reads the log once, verifies it, and writes the page as a whole or not at all. It changes nothing else.
"""

import argparse
import contextlib
import datetime as dt
import os
import stat
from pathlib import Path
from typing import Any, Final

from tollkeeper import _native, config, report
from tollkeeper.cli import audit_verify, logs
from tollkeeper.cli.terminal import InputError, counted, counter, out, progress, shown, warning
from tollkeeper.errors import TollkeeperError
from tollkeeper.gate import CONTROL_NAME
from tollkeeper.observed import Observed

TITLE: Final = "What the gate decided"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    logs.add_folder(parser)
    parser.add_argument(
        "-o", "--out", metavar="OUT.html", type=Path, default=Path("report.html"), help="default: report.html"
    )
    parser.add_argument("--title", default=TITLE, help="of the page")
    parser.add_argument(
        "--since",
        metavar="TIME",
        type=logs.moment_argument,
        help="only entries since: RFC 3339, a date, or 15m, 2h, 3d ago",
    )
    parser.add_argument("--until", metavar="TIME", type=logs.moment_argument, help="only entries before then")
    audit_verify.add_key(parser, "without it the one beside the log, which proves less")
    parser.add_argument("--no-verify", action="store_true", help="do not verify the log; the page says so")
    parser.epilog = (
        "The page names agents, tools, policies and budgets, and holds no arguments and nothing that users asked. Only "
        "its owner can read it. Exit code 0 if it was written and the log could be read, whatever it holds."
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the page."""
    found = logs.opened(arguments.folder)
    if arguments.out.is_dir():
        raise InputError(f"{arguments.out}: is a folder", "name the file of the page: -o report.html")
    if not arguments.out.parent.is_dir():
        raise InputError(
            f"{arguments.out}: {arguments.out.parent} is no folder", "make it, or name another: -o report.html"
        )
    _check_place(arguments.out)
    key = None if arguments.key is None else audit_verify.key_argument(arguments.key)
    observed = _observed(found, arguments)
    about = report.Page(
        title=arguments.title,
        source=_source(found, observed, arguments),
        made=_made(),
        integrity=None if arguments.no_verify else _verified(found.folder, key),
        faults=found.faults,
        latency=_latency(found.folder),
    )
    _check_place(arguments.out)
    _write(arguments.out, report.page(observed, about))
    out(f"wrote {shown(str(arguments.out))}: {counted(observed.calls.calls, 'call')} of {_entries(observed.entries)}")
    if about.integrity is not None and about.integrity.verdict == "broken":
        warning(f"the log is broken, and the page says so: tollkeeper audit verify {shown(str(found.folder))}")
    return found.exit_code()


def _latency(folder: Path) -> list[tuple[int, int, int]] | None:
    """How long checks took, by all gates that share the state of the configuration whose log this is.

    One check of sixteen is timed, since the state directory was made. None where no configuration leads from the log to
    a state directory.
    """
    for file in {folder.parent / config.FILE_NAME, config.find() or Path(config.FILE_NAME)}:
        with contextlib.suppress(TollkeeperError, OSError):
            settings = config.load(file)
            if settings.audit_dir is None or settings.audit_dir.resolve() != folder.resolve():
                continue
            if settings.state_dir is None or not (settings.state_dir / CONTROL_NAME).is_file():
                continue
            table = _native.Control.open(settings.state_dir / CONTROL_NAME)
            bins: dict[tuple[int, int], int] = {}
            for gate in [*table.gates(), table.retired()]:
                for low, high, count in gate["histogram"]:
                    bins[low, high] = bins.get((low, high), 0) + count
            return [(low, high, count) for (low, high), count in sorted(bins.items())] or None
    return None


def _observed(found: logs.Logs, arguments: argparse.Namespace) -> Observed:
    observed = Observed()
    since, until = arguments.since, arguments.until
    with progress(found.entries(), found.size, "entries") as entries:
        for entry in entries:
            if (since is None or entry.time >= since) and (until is None or entry.time < until):
                observed.take(entry.raw, lambda: found.recorded(entry).members)  # noqa: B023 - called at once
    return observed


def _entries(count: int) -> str:
    return counted(count, "entry", "entries")


def _source(found: logs.Logs, observed: Observed, arguments: argparse.Namespace) -> str:
    parts = [f"{_entries(observed.entries)} of {counted(len(found.all), 'log')} in {found.folder}"]
    if arguments.since is not None:
        parts.append(f"since {arguments.since}")
    if arguments.until is not None:
        parts.append(f"before {arguments.until}")
    if observed.first is not None:
        parts.append(f"from {_clock(observed.first)} to {_clock(observed.last)} UTC")
    return ", ".join(parts)


def _clock(time: str | None) -> str:
    return (time or "")[:19].replace("T", " ")


def _made() -> str:
    info = _native.build_info()
    return f"Made by tollkeeper {info['version']} at {dt.datetime.now(dt.UTC).strftime('%Y-%m-%d %H:%M:%S')} UTC."


def _verified(folder: Path, key: str | None) -> report.Integrity:
    with counter("entries") as draw:
        # Without a key the one beside the log is all there is, and the page says so.
        found = _native.audit_verify(folder, key, None, draw, trust_directory=key is None)
    epochs: list[dict[str, Any]] = [epoch for slot in found["slots"] for epoch in slot["epochs"]]
    signed = [(epoch, epoch["signed_size"] if epoch["anchored"] or epoch["chained"] else 0) for epoch in epochs]
    return report.Integrity(
        verdict=found["verdict"],
        findings=audit_verify.findings(found, given=key is not None),
        logs=[
            (audit_verify.label(epoch), epoch["size"], size, epoch["key_source"] != "directory")
            for epoch, size in signed
        ],
    )


def _check_place(file: Path) -> None:
    """Refuses to take the place of anything but an older page: a pipe, a device or a link is there for a reason."""
    hint = "name the file of the page: -o report.html"
    try:
        found = file.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        raise InputError(f"{file}: is a symbolic link", "name the file that it leads to")
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise InputError(f"{file}: is {what}", hint)
    if found.st_uid != os.geteuid():
        raise InputError(f"{file}: belongs to another user", hint)


def _write(file: Path, text: str) -> None:
    """Writes the file as a whole, for its owner only: it names who was denied what."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as stream:  # noqa: PTH123 - the mode is given
            stream.write(text.encode(errors="replace"))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
