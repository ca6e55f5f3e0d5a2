"""What the verbs that administer share: opening the gates' administration, naming a target, and printing a receipt."""

import argparse
import math
import re
from pathlib import Path
from typing import Any, Final

from tollkeeper.admin import Calls, GateAdmin, Receipt
from tollkeeper.cli import inputs
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, InputError, coloured, counted, error, out, out_json, shown
from tollkeeper.config import Tool

_DURATION: Final = re.compile(r"([0-9]{1,9})([smhd]?)", re.ASCII)
# As `tollkeeper audit keygen` prints it; the private half begins with PRIVATE.
_PUBLIC: Final = re.compile(rb"(?!PRIVATE\+)[^+\s]+\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+")
KEY_BYTES_MAX: Final = 4_096
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def add_admin(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that say what is administered, and by whom."""
    inputs.add_config(parser)
    parser.add_argument(
        "--key", metavar="FILE", type=Path, help="an administrator's private key; needed where [admin] lists keys"
    )


def opened(arguments: argparse.Namespace) -> GateAdmin:
    """The administration of the configuration that is named."""
    inputs.load_config(arguments.config, "name the configuration with --config")
    key: Path | None = getattr(arguments, "key", None)
    if key is not None and _is_public(key):
        raise InputError(
            f"{key}: this is the public half of a key", "name the file of the private half: --key admin.key"
        )
    return GateAdmin.open(arguments.config, key)


def _is_public(file: Path) -> bool:
    """Whether a file holds a verifier key: then what is wrong is not who can read it."""
    try:
        with file.open("rb") as stream:
            return _PUBLIC.fullmatch(stream.read(KEY_BYTES_MAX).strip()) is not None
    except OSError:
        return False


def add_target(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that name what is revoked."""
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--principal", metavar="UID", help="such as 'Agent::\"researcher\"', wherever in a chain it stands"
    )
    target.add_argument("--tool", metavar="NAME", help="a tool")
    target.add_argument("--session", metavar="ID", help="a session")
    target.add_argument("--everything", action="store_true", help="whatever anybody does")
    parser.add_argument("--reason", metavar="TEXT", default="", help="why, for people; at most 256 bytes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_admin(parser)


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """The target and the reason, as `GateAdmin` takes them."""
    principal = arguments.principal
    return {
        "principal": None if principal is None else inputs.uid_argument(principal, "principal"),
        "tool": arguments.tool,
        "session": arguments.session,
        "everything": arguments.everything,
        "reason": arguments.reason,
    }


def seconds(text: str) -> float:
    """A duration such as ``90``, ``15m``, ``2h``, for `argparse`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"`{text}` is no time, such as 90, 15m, 2h, 1d")
    return float(int(found[1]) * _SECONDS[found[2]])


def duration(value_s: float) -> str:
    """A duration as people read it, in one unit."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if value_s >= 2 * length:
            return f"{math.floor(value_s / length)} {unit}"
    return f"{math.floor(value_s)} s"


def print_receipt(receipt: Receipt, tools: dict[str, Tool], *, as_json: bool, doubt: str | None = None) -> int:
    """Prints what a change came to, and returns the exit code.

    Args:
        receipt: Of the change.
        tools: Those that there are.
        as_json: As one object.
        doubt: What to ask about the name.
    """
    if as_json:
        out_json(_plain(receipt) | ({"doubt": doubt} if not receipt.restored else {}))
    else:
        _print(receipt, tools)
        if doubt is not None:
            out(coloured(shown(doubt), "yellow"))
    if receipt.unrecorded is not None:
        done = "restored" if receipt.restored else "revoked"
        error(f"it is {done}, and the audit log does not say so: {receipt.unrecorded}", "tollkeeper audit status")
        return EXIT_NO
    return EXIT_OK


def _print(receipt: Receipt, tools: dict[str, Tool]) -> None:
    target = shown(str(receipt.target))
    if receipt.restored and not receipt.changed:
        out(f"{coloured('nothing was revoked:', 'yellow')} {target} was not, so it could not be restored")
        out("tollkeeper status lists what is revoked")
        return
    state = coloured("restored", "green") if receipt.restored else coloured("revoked", "red")
    out(f"{state} {target}{'' if receipt.changed else ' (it was already)'}")
    out(f"generation    {receipt.generation}: every check from now on, in every process that shares the state")
    out(f"by            {shown(receipt.by)}")
    if receipt.restored:
        return
    out(f"live holds    {_holds(receipt)}")
    out(f"unfinished    {_unfinished(receipt.calls, receipt.calls_unknown)}")
    for line in _listed(receipt.calls):
        out(line)
    if receipt.target.kind == "tool" and receipt.target.name not in tools:
        out(coloured(f"the configuration has no tool {shown(receipt.target.name)}: is the name right?", "yellow"))


def _holds(receipt: Receipt) -> str:
    if receipt.holds is None:
        return f"unknown: {shown(receipt.holds_unknown or '')}"
    text = f"{receipt.holds.live:,}"
    if receipt.holds.ids:
        text += f": {', '.join(receipt.holds.ids[:5])}" + (", ..." if len(receipt.holds.ids) > 5 else "")  # noqa: PLR2004 - enough to begin with
    if receipt.holds.live:
        text += "; whoever charges one is told to stop"
    if receipt.holds.unknown:
        text += f"; {counted(receipt.holds.unknown, 'more')} of older decisions may be theirs"
    return text


def _unfinished(calls: Calls | None, unknown: str | None) -> str:
    if calls is None:
        return f"unknown: {shown(unknown or '')}"
    text = f"{counted(calls.live, 'call')} allowed before and not yet reported finished"
    if calls.abandoned:
        text += f", and {calls.abandoned:,} of processes that have ended"
    entries = counted(calls.read, "entry", "entries")
    if calls.whole:
        return f"{text} (all {entries})" if calls.read else text
    faults = "".join(f"; {shown(fault)}" for fault in calls.faults)
    return f"{text} (of the newest {entries}, since {shown(calls.since or 'then')}{faults})"


def _listed(calls: Calls | None) -> list[str]:
    if calls is None or not calls.ids:
        return []
    few = [f"  {shown(one)}" for one in calls.ids[:5]]
    return few if len(calls.ids) <= 5 else [*few, "  ..."]  # noqa: PLR2004 - as above


def _plain(receipt: Receipt) -> dict[str, Any]:
    holds, calls = receipt.holds, receipt.calls
    plain: dict[str, Any] = {
        "target": {"kind": receipt.target.kind, "name": receipt.target.name},
        "restored": receipt.restored,
        "generation": receipt.generation,
        "changed": receipt.changed,
        "by": receipt.by,
        "unrecorded": receipt.unrecorded,
    }
    if receipt.restored:
        return plain
    plain["holds"] = None if holds is None else {"live": holds.live, "ids": holds.ids, "unknown": holds.unknown}
    plain["holds_unknown"] = receipt.holds_unknown
    plain["calls"] = None
    if calls is not None:
        plain["calls"] = {
            "live": calls.live,
            "abandoned": calls.abandoned,
            "ids": calls.ids,
            "read": calls.read,
            "since": calls.since,
            "whole": calls.whole,
            "faults": calls.faults,
        }
    plain["calls_unknown"] = receipt.calls_unknown
    return plain


def approval_id(text: str | None, act: str) -> str:
    """The id of a question, where the verb needs one."""
    if text is None:
        raise InputError(f"approvals {act}: say which", f"tollkeeper approvals list; tollkeeper approvals {act} ID")
    return text
