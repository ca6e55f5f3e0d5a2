"""Taking a log that nobody has: for the verbs that write to one. A log that somebody has is not opened."""

import os
from pathlib import Path

from tollkeeper import _native
from tollkeeper.cli import logs
from tollkeeper.cli.terminal import InputError


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
