"""``tollkeeper audit status``: how large logs are, who writes them, and who could rewrite them.

It reads only and verifies nothing.
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tollkeeper import owners
from tollkeeper.cli import audit_checkpoints, ledgers, logs
from tollkeeper.cli.terminal import EXIT_OK, coloured, counted, out, out_json, shown

ALONE: Final = "nothing outside this directory holds its checkpoints: whoever can write here can rewrite the log"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    logs.add_folder(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object for each log")


def run(arguments: argparse.Namespace) -> int:
    """Prints how logs are doing."""
    found = logs.opened(arguments.folder)
    states = [_state(found, log) for log in found.current()]
    for number, state in enumerate(states):
        if arguments.json:
            out_json(state)
            continue
        if number:
            out()
        for name, text in _lines(state):
            out(f"{name:<14}{shown(text)}")
        out(coloured(ALONE, "red") if state["alone"] else _held(state))
    return EXIT_OK


def _state(found: logs.Logs, log: logs.Log) -> dict[str, Any]:
    epochs = next(epochs for epochs in found.by_slot() if epochs[-1] == log)
    file = log.path / "checkpoint"
    age = max(0.0, time.time() - file.stat().st_mtime) if file.is_file() else None
    handed = audit_checkpoints.Handed.read(log.folder)
    witnesses = audit_checkpoints.cosigners(found.reader(log).checkpoint_text, log.origin)
    last = handed.last()
    return {
        "log": log.slot,
        "path": os.fspath(log.folder),
        "origin": log.origin,
        "epoch": log.epoch,
        "entries": sum(epoch.size for epoch in epochs),
        "entries_of_epoch": log.size,
        "signed": log.signed_size,
        "unsigned": log.size - log.signed_size,
        "checkpoint_age_seconds": None if age is None else round(age, 1),
        "wal_bytes": _bytes(log.folder, "wal"),
        "tile_bytes": _bytes(log.folder, "tile"),
        "ring_bytes": _size(log.folder / "ring"),
        "owner": owners.owner(log.folder),
        "handed_out": None if last is None else last._asdict(),
        "witnesses": witnesses,
        "alone": last is None and not witnesses,
    }


def _lines(state: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield f"log {state['log']}", f"{state['origin'] or 'without a checkpoint'}, {state['path']}"
    epochs = f"in {state['epoch']} epochs, {state['entries_of_epoch']:,} of them in this one"
    yield "  entries", counted(state["entries"], "entry", "entries") + (f" {epochs}" if state["epoch"] > 1 else "")
    yield "  owner", state["owner"] or "nobody has it open"
    if state["checkpoint_age_seconds"] is None:
        yield "  checkpoint", "none yet"
    else:
        tail = counted(state["unsigned"], "entry", "entries")
        rest = "everything" if not state["unsigned"] else f"all but {tail}"
        yield "  checkpoint", f"{_age(state['checkpoint_age_seconds'])} ago, over {rest}"
    parts = {"write-ahead": "wal_bytes", "tiles": "tile_bytes", "ring": "ring_bytes"}
    yield "  on disk", ", ".join(f"{name} {_size_text(state[key])}" for name, key in parts.items())


def _held(state: dict[str, Any]) -> str:
    parts = list[str]()
    if last := state["handed_out"]:
        when, behind = ledgers.moment(last["time_ms"]), max(0, state["signed"] - last["size"])
        same = last["origin"] == state["origin"]
        since = f", {counted(behind, 'signed entry', 'signed entries')} since" if same and behind else ""
        parts.append(f"last handed out {when} at {last['size']:,} entries, to {last['target']}{since}")
    if state["witnesses"]:
        parts.append(f"the last checkpoint is cosigned by {', '.join(state['witnesses'])}")
    return shown("; ".join(parts))


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"


def _size_text(size: int) -> str:
    for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= length:
            return f"{size / length:.1f} {unit}"
    return f"{size} bytes"


def _bytes(folder: Path, name: str) -> int:
    """Bytes of the files of the current epoch and of those before it."""
    roots = [folder / name, *folder.glob(f"epochs/*/{name}")]
    return sum(_size(Path(at) / file) for root in roots for at, _, files in os.walk(root) for file in files)


def _size(file: Path) -> int:
    """Bytes of a file on the disk: a segment is made larger than what it holds, but its blocks are taken."""
    try:
        return file.stat().st_blocks * 512
    except OSError:
        return 0
