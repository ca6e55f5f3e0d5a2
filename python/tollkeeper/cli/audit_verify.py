"""``tollkeeper audit verify``: what of a log holds, what does not and where, and what nobody outside vouches for.

It trusts a key and, if one is given, a checkpoint that was kept elsewhere; nothing that the writer wrote. It only
reads.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tollkeeper import _native, config
from tollkeeper.cli import logs
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, InputError, coloured, counted, counter, out, out_json, shown

EXIT_BROKEN: Final = 3
EXITS: Final = {"ok": EXIT_OK, "unanchored": EXIT_NO, "incomplete": EXIT_NO, "broken": EXIT_BROKEN}
COLOURS: Final = {"ok": "green", "unanchored": "yellow", "incomplete": "yellow", "broken": "red"}
# A signed note, or a file with some keys.
TEXT_BYTES_MAX: Final = 1 << 20
FAULTS_SHOWN_MAX: Final = 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    logs.add_folder(parser)
    add_key(parser, "without it the one beside the log, which proves less")
    parser.add_argument(
        "--since",
        metavar="FILE",
        type=Path,
        help="a checkpoint that was kept from earlier: shows whether the log was cut or written anew since",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with everything that was found")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = """\
integrity: entries, tiles, payloads and signed checkpoints tell the same story
completeness: no number of a producer is missing but those that a recovery names
anchoring: the key has signed everything; the newest entries wait for that for a second

exit code: 0 verified; 1 nothing is broken, but the last entries are under no signature (unanchored), or entries are
missing (incomplete); 2 there is no log, or a key or a checkpoint cannot be used; 3 broken"""


def add_key(parser: argparse.ArgumentParser, otherwise: str, *, required: bool = False) -> None:
    """Declares the argument that names a verifier key."""
    parser.add_argument(
        "--key",
        metavar="VKEY|FILE",
        required=required,
        help=f"the log's verifier key, or a file with keys, one in each line{'; ' if otherwise else ''}{otherwise}",
    )


def key_argument(given: str) -> str:
    """The keys of a file, or the key itself."""
    # No file is named like a key, which holds a checksum and 44 characters of base64.
    if given.count("+") >= 2 and not Path(given).is_file():  # noqa: PLR2004 - NAME+ID+BASE64
        return given
    text = config.read_text(Path(given), TEXT_BYTES_MAX)
    if not text.strip():
        raise InputError(f"{given}: the file is empty, and no key", "a key is one line, NAME+ID+BASE64")
    return text


def run(arguments: argparse.Namespace) -> int:
    """Verifies."""
    folder = logs.folder_argument(arguments.folder)
    key = None if arguments.key is None else key_argument(arguments.key)
    since = None if arguments.since is None else config.read_text(arguments.since, TEXT_BYTES_MAX)
    with counter("entries") as draw:
        # Without a key the one beside the log is all there is, and what is printed says so.
        report = _native.audit_verify(folder, key, since, draw, trust_directory=key is None)
    if arguments.json:
        out_json({**report, "path": str(report["path"]), "slots": [_plain(slot) for slot in report["slots"]]})
    else:
        _print(report, given=key is not None)
    return EXITS[report["verdict"]]


def _plain(slot: dict[str, Any]) -> dict[str, Any]:
    return {**slot, "epochs": [{**epoch, "path": str(epoch["path"])} for epoch in slot["epochs"]]}


def _print(report: dict[str, Any], *, given: bool) -> None:
    epochs = [epoch for slot in report["slots"] for epoch in slot["epochs"]]
    entries = counted(sum(epoch["size"] for epoch in epochs), "entry", "entries")
    verdict = coloured(_VERDICTS[report["verdict"]], COLOURS[report["verdict"]])
    out(f"{verdict}: {entries} in {counted(len(epochs), 'log')}")
    out()
    for name, lines in findings(report, given=given):
        for number, line in enumerate(lines):
            out(f"{'' if number else name:<14}{shown(line)}")
    warnings = [f"{label(epoch)} {warning}" for epoch in epochs for warning in epoch["warnings"]]
    for warning in warnings[:FAULTS_SHOWN_MAX]:
        out(f"{'':<14}{shown(warning)}")


def findings(report: dict[str, Any], *, given: bool) -> list[tuple[str, list[str]]]:
    """What was found, in words, by what was looked at.

    Args:
        report: As the native half gives it.
        given: Whether the key was given.
    """
    epochs = [epoch for slot in report["slots"] for epoch in slot["epochs"]]
    faults = [(label(epoch), fault) for epoch in epochs for fault in epoch["faults"]]
    faults += [("", fault) for fault in report["faults"]]
    return [
        ("integrity", list(_integrity(report, epochs, faults))),
        ("completeness", list(_completeness(report))),
        ("anchoring", list(_anchoring(report, epochs, given=given))),
    ]


_VERDICTS: Final = {"ok": "verified", "unanchored": "unanchored", "incomplete": "incomplete", "broken": "BROKEN"}


def label(epoch: dict[str, Any]) -> str:
    """Names a log as entries do: its slot, and its epoch but for the first."""
    slot = epoch["slot"] or 0
    return f"log {slot}" if epoch["epoch"] == 1 else f"log {slot}/{epoch['epoch']}"


def _integrity(
    report: dict[str, Any], epochs: list[dict[str, Any]], faults: list[tuple[str, dict[str, Any]]]
) -> Iterator[str]:
    if report["integrity"]:
        yield "holds: entries, tiles, payloads and checkpoints tell the same story"
    else:
        count = sum(epoch["fault_count"] for epoch in epochs) + len(report["faults"])
        yield f"does not hold: {counted(count, 'finding')}"
        for where, fault in faults[:FAULTS_SHOWN_MAX]:
            yield f"  {where} {_fault(fault)}".replace("   ", "  ")
        if count > FAULTS_SHOWN_MAX:
            yield f"  and {count - FAULTS_SHOWN_MAX:,} more"
        for epoch in epochs:
            yield f"  what still holds: {label(epoch)} {_sound(epoch)}"
    payloads = {name: sum(epoch["payloads"][name] for epoch in epochs) for name in _PAYLOADS}
    said = [f"{count:,} {what}" for name, what in _PAYLOADS.items() if (count := payloads[name])]
    if said:
        yield f"payloads: {', '.join(said)}"


_PAYLOADS: Final = {
    "verified": "are what their entries commit to",
    "missing": "not there",
    "erased": "erased",
    "erased_unrecorded": "erased, and no entry says so",
    "wrong": "not what their entries commit to",
}


def _fault(fault: dict[str, Any]) -> str:
    place = fault["file"]
    if fault["index"] is not None:
        place += f", entry {fault['index']:,}"
    if fault["offset"] is not None:
        place += f", byte {fault['offset']:,}"
    return f"{place}: {fault['message']}"


def _sound(epoch: dict[str, Any]) -> str:
    if not epoch["sound_size"]:
        return "no entry"
    text = f"entries 0 to {epoch['sound_size'] - 1:,} of {epoch['size']:,} by themselves"
    if epoch["verified_size"]:
        return f"{text}, 0 to {epoch['verified_size'] - 1:,} up to a signed root"
    return f"{text}, none of them up to a signed root"


def _completeness(report: dict[str, Any]) -> Iterator[str]:
    found = [(slot["slot"] or 0, slot["completeness"]) for slot in report["slots"]]
    missing = sum(one["missing_count"] for _, one in found)
    if report["complete"]:
        yield f"holds: no entry of {counted(sum(one['producers'] for _, one in found), 'producer')} is missing"
    else:
        yield f"does not hold: {counted(missing, 'entry is', 'entries are')} missing"
        ranges = [(slot, gap) for slot, one in found for gap in one["missing"]]
        for slot, gap in ranges[:FAULTS_SHOWN_MAX]:
            numbers = f"{gap['from']:,}" if gap["from"] == gap["to"] else f"{gap['from']:,} to {gap['to']:,}"
            yield f"  log {slot}: number {numbers} of {gap['producer']}, before entry {gap['before_index']:,}"
        if len(ranges) > FAULTS_SHOWN_MAX:
            yield f"  and {len(ranges) - FAULTS_SHOWN_MAX:,} more gaps"
    for name, singular, plural in _COUNTS:
        if count := sum(one[name] for _, one in found):
            yield counted(count, singular, plural)


_COUNTS: Final = (
    ("disordered_count", "entry is out of its producer's order", "entries are out of their producers' order"),
    ("lost_count", "record died with its process, as an entry says", "records died with processes, as entries say"),
    ("gap_count", "action was let through without an entry", "actions were let through without an entry"),
    ("denied_unlogged_count", "denial found no room for an entry", "denials found no room for an entry"),
    ("allowed_without_outcome", "allowed action has no outcome yet", "allowed actions have no outcome yet"),
    ("outcomes_without_decision", "outcome names no decision of the log", "outcomes name no decision of the log"),
)  # fmt: skip


def _anchoring(report: dict[str, Any], epochs: list[dict[str, Any]], *, given: bool) -> Iterator[str]:
    signed = [epoch for epoch in epochs if epoch["anchored"] or epoch["chained"]]
    for epoch in epochs:
        if epoch not in signed:
            yield f"{label(epoch)}: no signed checkpoint that holds: whoever can write there can have made all of it"
        elif epoch["tail"]:
            first, last = epoch["signed_size"], epoch["size"] - 1
            which = f"entry {last:,} is" if first == last else f"entries {first:,} to {last:,} are"
            yield f"{label(epoch)}: {which} under no signature yet"
    if len(signed) == len(epochs) and not any(epoch["tail"] for epoch in epochs):
        yield "every entry is under a signed checkpoint"
    if any(epoch["key_source"] == "directory" for epoch in epochs):
        yield "the key came from the log itself: whoever could write there could replace both; give yours: --key"
    if since := report["since"]:
        what = "has grown from" if since["consistent"] else "does not go on from"
        yield f"the log {what} the checkpoint you kept, {since['origin']} at {since['size']:,} entries"
    elif given or signed:
        yield "a log that was cut back to an earlier checkpoint looks the same: --since with one you kept shows it"
