"""``tollkeeper audit check-proof``: whether a key has signed a log that has an entry where a proof says. Offline.

It needs no log: the proof, the entry's bytes, and a key that came by another way than the proof.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Final

from tollkeeper import _native, config
from tollkeeper.cli import inputs
from tollkeeper.cli.audit_verify import TEXT_BYTES_MAX, add_key, key_argument
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, InputError, coloured, out, out_json, shown
from tollkeeper.errors import AuditError

ENTRY_BYTES_MAX: Final = 65_535
# What says no; everything else is a file that cannot be used.
NO: Final = ("audit.proof", "audit.signature")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("proof", metavar="FILE", type=Path, help="the proof, a c2sp.org/tlog-proof@v1")
    add_key(parser, "", required=True)
    parser.add_argument("--entry", metavar="FILE", required=True, help="the entry's bytes; - for standard input")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.epilog = "Exit code 0 if the proof holds, 1 if it does not, 2 if a file cannot be used."


def run(arguments: argparse.Namespace) -> int:
    """Checks a proof."""
    text = config.read_text(arguments.proof, 2 * TEXT_BYTES_MAX)
    key, entry = key_argument(arguments.key), _entry(arguments.entry)
    try:
        proof = _check(text, key, entry)
    except AuditError as failure:
        if failure.code not in NO:
            raise
        if arguments.json:
            out_json({"holds": False, "code": failure.code, "reason": str(failure)})
        else:
            out(f"{coloured('does not hold', 'red')}: {shown(str(failure))}")
        return EXIT_NO
    if arguments.json:
        out_json({"holds": True, **{name: proof[name] for name in ("origin", "index", "size", "root")}})
    else:
        out(f"{coloured('holds', 'green')}: entry {proof['index']:,} of {shown(proof['origin'])}")
        out(f"  under the signed root of {proof['size']:,} entries: {proof['root']}")
    return EXIT_OK


def _check(text: str, key: str, entry: bytes) -> dict[str, Any]:
    try:
        return _native.audit_check_proof(text, key, entry)
    except AuditError:
        # Tools that print an entry end its line, which is not part of it.
        if not entry.endswith(b"\n"):
            raise
        return _native.audit_check_proof(text, key, entry[:-1])


def _entry(name: str) -> bytes:
    if name == inputs.STDIN:
        entry = sys.stdin.buffer.read(ENTRY_BYTES_MAX + 2)
    else:
        with Path(name).open("rb") as stream:
            entry = stream.read(ENTRY_BYTES_MAX + 2)
    if len(entry) > ENTRY_BYTES_MAX + 1:
        raise InputError(f"--entry {name}: more than {ENTRY_BYTES_MAX:,} bytes, which no entry has")
    return entry
