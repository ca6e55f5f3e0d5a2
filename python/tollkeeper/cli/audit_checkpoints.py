"""``tollkeeper audit checkpoints``: the signed checkpoints of a log, and handing new ones to something outside.

What somebody else keeps cannot be written anew: with it `audit verify --since` shows a log that was cut or rewritten.
The first time only the newest checkpoint of a log is handed over, because it says what the older ones say; after that
each one. What was handed over is in ``exported.json`` beside the log. This verb signs nothing and verifies nothing.
"""

import argparse
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypedDict
from urllib.parse import quote

import msgspec

from tollkeeper import config
from tollkeeper.cli import logs
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, InputError, error, out, out_json, shown, table

POLL_SECONDS: Final = 0.2
# How soon something that failed is tried again while following.
RETRY_SECONDS: Final = 5.0
COMMAND_SECONDS_MAX: Final = 60
# Checkpoints that are handed over at a time: a day of one each second, after an outage of whoever takes them.
HANDED_MAX: Final = 86_400
HISTORY_BYTES_MAX: Final = 1 << 30
NAME_BYTES_MAX: Final = 250
SEPARATOR: Final = "---\n"


class Checkpoint(NamedTuple):
    """One signed checkpoint, as published."""

    log: logs.Log
    origin: str
    size: int
    root: str
    text: str


class Last(NamedTuple):
    """The last checkpoint that was handed to a target."""

    target: str
    origin: str
    size: int
    time_ms: int


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    logs.add_folder(parser)
    parser.add_argument(
        "--export",
        metavar="FOLDER|COMMAND",
        help="hand new checkpoints to a folder that is there, a file for each, or to a command on its standard input",
    )
    parser.add_argument("--follow", action="store_true", help="go on with what is added; ctrl-c ends it")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each checkpoint")
    parser.epilog = "Exit code 1 if something could not be handed over; it is tried again the next time."


def run(arguments: argparse.Namespace) -> int:
    """Prints checkpoints, or hands them over."""
    folder = logs.folder_argument(arguments.folder)
    target = None if arguments.export is None else _target(arguments.export)
    if target is None:
        return _list(folder, as_json=arguments.json, follow=arguments.follow)
    failed = _hand_over(folder, target, as_json=arguments.json)
    retry = time.monotonic() + RETRY_SECONDS
    # Interrupting is how it ends.
    with contextlib.suppress(KeyboardInterrupt):
        while arguments.follow:
            sys.stdout.flush()
            time.sleep(POLL_SECONDS)
            if failed and time.monotonic() < retry:
                continue
            with contextlib.suppress(InputError):
                failed = _hand_over(folder, target, as_json=arguments.json)
            retry = time.monotonic() + RETRY_SECONDS
    return EXIT_NO if failed else EXIT_OK


# --- reading ----------------------------------------------------------------------------------------------------------


def history(log: logs.Log, after: int = -1) -> list[Checkpoint]:
    """The checkpoints that a log has published, in order, from a size on; each size once."""
    found: dict[int, Checkpoint] = {}
    for name in ("checkpoints.log", "checkpoint"):
        try:
            text = config.read_text(log.path / name, HISTORY_BYTES_MAX)
        except FileNotFoundError:
            continue
        for note in text.split(SEPARATOR):
            one = parsed(log, note)
            if one is not None and one.size > after:
                found[one.size] = one
    return sorted(found.values(), key=lambda one: one.size)


def parsed(log: logs.Log, note: str) -> Checkpoint | None:
    """A checkpoint's lines; `None` if it is none, which a torn last one may be. Its signature is not checked."""
    head, _, signatures = note.partition("\n\n")
    lines = head.split("\n")
    if len(lines) < 3 or not re.fullmatch(r"[0-9]{1,19}", lines[1], re.ASCII) or not signatures.startswith("— "):  # noqa: PLR2004 - origin, size, root
        return None
    return Checkpoint(log, lines[0], int(lines[1]), lines[2], note)


def cosigners(note: str | None, origin: str | None) -> list[str]:
    """Names of others that have signed a checkpoint too."""
    if note is None:
        return []
    lines = note.partition("\n\n")[2].splitlines()
    names = [line.split(" ")[1] for line in lines if line.startswith("— ") and line.count(" ") == 2]  # noqa: PLR2004 - dash, name, signature
    return [name for name in names if name != origin]


def _list(folder: Path, *, as_json: bool, follow: bool) -> int:
    found = logs.Logs(folder)
    listed = [one for log in found.all for one in history(log)]
    rows = [(one.log.label, one.origin, f"{one.size:,}", one.root) for one in listed]
    if as_json:
        for one in listed:
            _out_json(one)
    else:
        for line in table(("log", "origin", "entries", "root"), rows):
            out(line)
    seen = {one.origin: one.size for one in listed}
    with contextlib.suppress(KeyboardInterrupt):
        while follow:
            sys.stdout.flush()
            time.sleep(POLL_SECONDS)
            for log in _found(folder):
                for one in history(log, seen.get(log.origin or "", -1)):
                    seen[one.origin] = one.size
                    if as_json:
                        _out_json(one)
                    else:
                        out(shown(f"{one.log.label}  {one.origin}  {one.size:,}  {one.root}"))
    return EXIT_OK


def _found(folder: Path) -> list[logs.Log]:
    try:
        return logs.Logs(folder).all
    except InputError:
        # Between two renames of a rotation.
        return []


def _out_json(one: Checkpoint) -> None:
    document = {"log": one.log.label, "origin": one.origin, "size": one.size, "root": one.root, "checkpoint": one.text}
    out_json(document)


# --- handing over -----------------------------------------------------------------------------------------------------


class _One(TypedDict):
    size: int
    time_ms: int


class _Exported(msgspec.Struct):
    targets: dict[str, dict[str, _One]]


class Handed:
    """What was handed over of the logs of one slot, by target and origin: the size, and when."""

    def __init__(self, file: Path, targets: dict[str, dict[str, _One]]) -> None:
        self.file, self.targets = file, targets

    @classmethod
    def read(cls, folder: Path) -> "Handed":
        """Reads it; empty where nothing was handed over.

        Raises:
            InputError: The file is not what this program wrote.
        """
        file = folder / "exported.json"
        try:
            targets = msgspec.json.decode(file.read_bytes(), type=_Exported).targets
        except FileNotFoundError:
            targets = {}
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise InputError(
                f"{file}: not a record of what was handed over", "remove it: the newest checkpoint is handed over again"
            ) from None
        return cls(file, targets)

    def size(self, target: str, origin: str) -> int | None:
        """How far a target has been given an origin."""
        known = self.targets.get(target, {}).get(origin)
        return None if known is None else known["size"]

    def add(self, target: str, one: Checkpoint) -> None:
        """Remembers that one was handed over."""
        self.targets.setdefault(target, {})[one.origin] = {"size": one.size, "time_ms": int(time.time() * 1_000)}

    def last(self) -> Last | None:
        """What was handed over last, to anybody."""
        all_ = [Last(target, origin, **one) for target, by in self.targets.items() for origin, one in by.items()]
        return max(all_, key=lambda one: (one.time_ms, one.size), default=None)

    def write(self) -> None:
        """Puts it in place as a whole."""
        _put(self.file, msgspec.json.format(msgspec.json.encode({"targets": self.targets}), indent=1) + b"\n")


def _target(given: str) -> tuple[str, Path | list[str]]:
    """What is remembered of a target, and the folder or the command."""
    folder = Path(given)
    if given and folder.is_dir():
        return os.fspath(folder.resolve()), folder
    try:
        words = shlex.split(given)
    except ValueError as fault:
        raise InputError(f"--export {given}: {str(fault)[:1].lower()}{str(fault)[1:]}") from None
    if not words or shutil.which(words[0]) is None:
        raise InputError(f"--export {given}: neither a folder nor a command", "a folder is not made: make it first")
    return given, words


def _hand_over(folder: Path, target: tuple[str, Path | list[str]], *, as_json: bool) -> bool:
    """Hands over what is new; true if something failed. What is behind a failure waits, so that the order stays."""
    name, place = target
    failed = False
    found = logs.Logs(folder)
    for epochs in found.by_slot():
        handed = Handed.read(epochs[-1].folder)
        count = 0
        try:
            for one in _new(epochs, handed, name):
                if fault := _give(place, one):
                    error(f"{one.origin} at {one.size:,} entries: {fault}")
                    failed = True
                    break
                handed.add(name, one)
                count += 1
                if as_json:
                    _out_json(one)
                else:
                    out(shown(f"handed over {one.origin} at {one.size:,} entries"))
        finally:
            if count:
                handed.write()
    return failed


def _new(epochs: list[logs.Log], handed: Handed, target: str) -> Iterator[Checkpoint]:
    for log in epochs:
        known = None if log.origin is None else handed.size(target, log.origin)
        listed = history(log, -1 if known is None else known)
        yield from listed[-1:] if known is None else listed[:HANDED_MAX]


def _give(place: Path | list[str], one: Checkpoint) -> str | None:
    """Hands one over; the reason if that failed."""
    if isinstance(place, Path):
        try:
            return _to_folder(place, one)
        except OSError as fault:
            return f"{place}: {fault.strerror or fault}"
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own command, without a shell
            place, input=one.text.encode(), stdout=sys.stderr, timeout=COMMAND_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{place[0]} took more than {COMMAND_SECONDS_MAX} s"
    except OSError as fault:
        return f"{place[0]}: {fault.strerror or fault}"
    return None if done.returncode == 0 else f"{place[0]} ended with {done.returncode}"


def _to_folder(folder: Path, one: Checkpoint) -> str | None:
    """A file named by the size, in a folder named by the origin. What is there is never overwritten."""
    name = re.sub(r"^\.", "%2E", quote(one.origin, safe=""))
    if len(name) > NAME_BYTES_MAX:
        return f"the origin has more than {NAME_BYTES_MAX} characters as the name of a folder"
    file = folder / name / str(one.size)
    file.parent.mkdir(exist_ok=True)
    if _put(file, one.text.encode(), overwrite=False):
        return None
    # Another signature under the same three lines is no other history.
    if file.read_bytes().partition(b"\n\n")[0] == one.text.encode().partition(b"\n\n")[0]:
        return None
    return f"{file} holds another checkpoint of this size: the log has two histories, or two logs have one origin"


def _put(file: Path, data: bytes, *, overwrite: bool = True) -> bool:
    """Writes a file as a whole and brings it to the disk; false if it is there and may not be overwritten."""
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".new.", delete=False) as stream:
        beside = Path(stream.name)
        try:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            beside.chmod(0o644 if not overwrite else 0o600)
            if overwrite:
                beside.replace(file)
            else:
                file.hardlink_to(beside)
        except FileExistsError:
            return False
        finally:
            beside.unlink(missing_ok=True)
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True
