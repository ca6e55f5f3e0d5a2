"""Who has a log, and taking a log that nobody has: for the verbs that write to one.

A process has a log while it holds the kernel's lock on the first byte of its ring, in whatever namespace it lives.
"""

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from tollkeeper import _native
from tollkeeper.cli import logs
from tollkeeper.cli.terminal import InputError

# Of the ring's file: what it begins with, and where its owner's process id stands.
RING_MAGIC: Final = b"TKRING01"
PID_OFFSET: Final = 24
# struct flock: type, whence, start, length, process.
_FLOCK: Final = "hhqqi"


def owner(folder: Path) -> str | None:
    """Who has the log of a folder: ``process 4711``, by its own number; `None` if nobody has."""
    try:
        with (folder / "ring").open("rb") as ring:
            answer = fcntl.fcntl(ring, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
            head = ring.read(PID_OFFSET + 8)
    except FileNotFoundError:
        return None
    if struct.unpack(_FLOCK, answer)[0] == fcntl.F_UNLCK:
        return None
    pid = int.from_bytes(head[PID_OFFSET:], "little") if head.startswith(RING_MAGIC) else 0
    return f"process {pid}" if pid else "another process"


def signing_key(log: logs.Log) -> Path:
    """The log's key: beside it, or beside all the logs of a gate.

    Raises:
        InputError: There is none. A new one could not go on with the log.
    """
    for file in (log.folder / "signer.key", log.folder.parent / "signer.key"):
        if file.is_file():
            return file
    raise InputError(
        f"{log.folder}: the log's signing key is not here", "put signer.key back beside the log, or where the log runs"
    )


def opened(log: logs.Log) -> _native.AuditLog:
    """Opens a log to be written.

    Raises:
        AuditError: With the code ``audit.in_use`` if another process has it.
        InputError: The log has no key or no name.
    """
    origin, slot = _name(log)
    instance = int.from_bytes(os.urandom(8))
    return _native.AuditLog(
        log.folder, origin=origin, instance=instance, key=signing_key(log), exported=exported(log), as_slot=slot
    )


def exported(log: logs.Log) -> bool:
    """Whether checkpoints of the log were ever handed to something outside."""
    return (log.folder / "exported.json").is_file()


def _name(log: logs.Log) -> tuple[str, int | None]:
    """What the log was opened with: its origin without epoch and slot, and the slot."""
    origin = log.origin
    if origin is None:
        # Nothing is signed yet, but the key file names the origin.
        try:
            origin = (log.folder / "verifier.pub").read_text().partition("+")[0]
        except (OSError, UnicodeDecodeError):
            raise InputError(
                f"{log.folder}: the log has no checkpoint and no verifier.pub, so it has no name"
            ) from None
    if log.folder.name == str(log.slot) and origin.endswith(f"/{log.slot}/{log.epoch}"):
        return origin.removesuffix(f"/{log.slot}/{log.epoch}"), log.slot
    return (origin if log.epoch == 1 else origin.removesuffix(f"/{log.epoch}")), None
