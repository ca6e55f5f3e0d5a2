"""``tollkeeper audit rotate``: ends a log's epoch and begins the next.

The first entry of the new epoch names origin, size and root of the old one.
"""

import argparse

from tollkeeper.cli import audit_owner, logs
from tollkeeper.cli.terminal import EXIT_OK, InputError, counted, out, shown
from tollkeeper.errors import AuditError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    logs.add_folder(parser)
    parser.add_argument("--slot", metavar="N", type=int, help="the slot, where there are several logs")
    parser.epilog = "The finished epoch is moved to epochs/; readers go on to show all epochs as one."


def run(arguments: argparse.Namespace) -> int:
    """Begins an epoch."""
    found = logs.opened(arguments.folder)
    log = logs.one_log(found, arguments.slot)
    try:
        with audit_owner.opened(log) as writer:
            size = writer.size
            writer.rotate()
            key = writer.verifier_key
    except AuditError as failure:
        if failure.code != "audit.in_use":
            raise
        raise InputError(
            str(failure), "a live process rotates its own log: AuditLog.rotate(); or end it first"
        ) from None
    out(f"epoch {log.epoch} of log {log.slot} is finished: {counted(size, 'entry', 'entries')}, in epochs/{log.epoch}")
    out(f"epoch {log.epoch + 1} has the verifier key {shown(key.strip())}")
    return EXIT_OK
