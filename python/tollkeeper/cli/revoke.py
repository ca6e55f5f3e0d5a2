"""``tollkeeper revoke``: stops a principal, a tool, a session or everything, and prints a receipt.

When it returns, every later check of every process that shares the state directory denies. A record that cannot be
written does not keep it from revoking: it is said, and the exit code is 1. Nor does a name that nobody knows, since who
it is may have yet to come: that is said, too.
"""

import argparse
import itertools

import msgspec

from tollkeeper import Entities, config
from tollkeeper.admin import Target
from tollkeeper.cli import administration, logs
from tollkeeper.cli.terminal import InputError, counted
from tollkeeper.errors import TollkeeperError

# A person waits, and is told how far it was looked.
ENTRIES_MAX = 200_000
# What names who acts or is asked for; a revocation names whoever it was given.
KINDS = frozenset({"decision", "run"})


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    administration.add_target(parser)


def run(arguments: argparse.Namespace) -> int:
    """Revokes."""
    admin = administration.opened(arguments)
    receipt = admin.revoke(**administration.chosen(arguments))
    doubt = _doubt(receipt.target, admin.settings) if receipt.changed else None
    return administration.print_receipt(receipt, admin.settings.tools, as_json=arguments.json, doubt=doubt)


def _doubt(target: Target, settings: config.Config) -> str | None:
    """What to ask where nothing that is known has the name; `None` if something has it, or nothing can be known."""
    if target.kind not in {"principal", "session"}:
        return None
    nowhere: list[str] = []
    if target.kind == "principal" and settings.entities_file is not None:
        try:
            if target.name in Entities.from_json(settings.entities_file, settings.schema_file):
                return None
        except (TollkeeperError, OSError):
            return None
        nowhere.append("no entity has this name")
    try:
        looked = _looked(target.name, settings)
    except (TollkeeperError, InputError, OSError):
        looked = None
    if looked is not None:
        if looked == "":
            return None
        nowhere.insert(0, f"no decision of this {target.kind} is in the log{looked}")
    return f"{' and '.join(nowhere)}; is it right?" if nowhere else None


def _looked(name: str, settings: config.Config) -> str | None:
    """How far the log was read without the name; an empty text if it is there, `None` if there is no log."""
    if settings.audit_dir is None or not settings.audit_dir.is_dir():
        return None
    found, written = logs.Logs(settings.audit_dir), msgspec.json.encode(name)
    for entry in itertools.islice(found.backwards(), ENTRIES_MAX):
        # Before anything is decoded: a name stands in an entry as JSON writes it.
        if written in entry.raw and entry.head.kind in KINDS:
            return ""
    if found.faults:
        return None
    newest = f"the newest {ENTRIES_MAX:,}" if found.size > ENTRIES_MAX else "all"
    return f" ({newest} of {counted(found.size, 'entry', 'entries')})"
