"""The audit log in Python: opening one, and waiting for its records from asyncio.

What an entry is, how it is hashed, signed and recovered is decided by the native module. This file holds what has to be
Python: the coroutine that waits, and closing what is still open when the interpreter ends. It decides nothing.
"""

from __future__ import annotations

import os

from tollkeeper import _native
from tollkeeper.errors import AuditError

# As in the gate's module: an import of the package loads no module of the standard library that it can do without.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self
    from weakref import WeakSet

    from tollkeeper import aio

__all__ = ["AuditLog"]

_open: list[WeakSet[AuditLog]] = []
"""Logs that are closed when the interpreter ends; empty until there is one."""


class AuditLog(_native.AuditLog):
    """A log that outsiders can verify: a Merkle tree of entries, in files that any C2SP tile client reads.

    One process at a time has a log open. What was appended survives the death of the process; what a power cut may take
    is said by `wait` and `durable`.

    Example:
        >>> import tempfile
        >>> from tollkeeper import AuditLog
        >>> folder = tempfile.TemporaryDirectory()
        >>> with AuditLog.open(folder.name, origin="example.com/gate") as log:
        ...     log.append({"tool": "send_email", "allowed": True}, private={"to": "bob@example.com"})
        ...     log.flush()
        ...     log.checkpoint().splitlines()[:2]
        1
        2
        ['example.com/gate', '2']
        >>> folder.cleanup()
    """

    _line: aio.Durable | None
    """Who waits for records; made by the first."""

    def __new__(  # noqa: PLR0913 - every option has a name
        cls,
        directory: str | os.PathLike[str],
        *,
        origin: str,
        key: str | os.PathLike[str] | None = None,
        interval_ms: int = 5,
        checkpoint_interval_ms: int = 1000,
        ring_bytes: int = 16 << 20,
        segment_bytes: int = 64 << 20,
        exported: bool = False,
        instance: int | None = None,
        slot: bool = False,
    ) -> Self:
        """See `open`; with `slot` the first log below the folder that no process has."""
        log = super().__new__(
            cls,
            # Absolute: the writer goes on making files there when the process has gone to another folder.
            os.path.abspath(directory),  # noqa: PTH100 - pathlib is not loaded for this
            origin=origin,
            instance=int.from_bytes(os.urandom(8)) if instance is None else instance,
            key=key,
            interval_ms=interval_ms,
            checkpoint_interval_ms=checkpoint_interval_ms,
            ring_bytes=ring_bytes,
            segment_bytes=segment_bytes,
            exported=exported,
            slot=slot,
        )
        log._line = None
        _close_at_exit(log)
        return log

    @classmethod
    def open(  # noqa: PLR0913 - every option has a name
        cls,
        directory: str | os.PathLike[str],
        *,
        origin: str,
        key: str | os.PathLike[str] | None = None,
        interval_ms: int = 5,
        checkpoint_interval_ms: int = 1000,
        ring_bytes: int = 16 << 20,
        segment_bytes: int = 64 << 20,
        exported: bool = False,
    ) -> Self:
        """Opens the log of a folder, or makes one. What a process that died has left is recovered.

        Args:
            directory: The folder.
            origin: What the log calls itself, such as `example.com/gate`. A folder keeps its origin.
            key: The file of the signing key, made if it is not there; without one `signer.key` in the folder.
            interval_ms: How long a record may be in the ring before it is on the disk: what a power cut can lose.
            checkpoint_interval_ms: How long an entry may be on the disk before a signed checkpoint covers it.
            ring_bytes: Size of the ring, a power of two. A record takes at most half of it, and 8 MiB.
            segment_bytes: Size of a write-ahead segment.
            exported: Whether something outside takes each checkpoint; it is only written down.

        Raises:
            AuditError: Another process has the log (`audit.in_use`), it is damaged, or the folder cannot be used.
        """
        return cls(
            directory,
            origin=origin,
            key=key,
            interval_ms=interval_ms,
            checkpoint_interval_ms=checkpoint_interval_ms,
            ring_bytes=ring_bytes,
            segment_bytes=segment_bytes,
            exported=exported,
        )

    async def durable(self, seq: int, durability: str = "sync") -> None:
        """Waits until a record is as certain as that, without a thread; see `wait`.

        Args:
            seq: What `append` has returned.
            durability: `"group"`, `"sync"` or `"checkpointed"`.

        Raises:
            AuditError: The record will never be, or there is none of that number.
            HandleError: The log was closed, or was inherited through a fork.
        """
        from tollkeeper import aio  # noqa: PLC0415 - loads asyncio

        self._expect(seq)
        if self._line is None:
            self._line = aio.Durable()
        await self._line.wait(self, seq, durability)


def _close_at_exit(log: AuditLog) -> None:
    """Its last entry should say that it ended well, also where nobody has closed it."""
    import atexit  # noqa: PLC0415 - see the top
    import weakref  # noqa: PLC0415 - see the top

    def close_all() -> None:
        for still in list(_open[0]):
            try:
                still.close()
            except AuditError:
                # Nobody is left to be told. What is in the ring is recovered by the next opening.
                continue

    if not _open:
        _open.append(weakref.WeakSet())
        atexit.register(close_all)
    _open[0].add(log)
