"""Who has a log. Reads, and takes nothing.

A process has a log while it holds the kernel's lock on the first byte of its ring, in whatever namespace it lives.
"""

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from tollkeeper.unfinished import RING_MAGIC

__all__ = ["owner"]

# Of the ring's file: where its owner's process id stands.
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
