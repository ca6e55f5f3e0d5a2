"""``tollkeeper audit prove``: the proof that an entry is in a log, for somebody who does not have the log.

The proof is a `c2sp.org/tlog-proof@v1`: it holds the signed checkpoint, and the hashes from the entry to its root.
"""

import argparse
import sys
from pathlib import Path

from tollkeeper import _native
from tollkeeper.cli import logs
from tollkeeper.cli.terminal import EXIT_OK, note, shown


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    logs.add_place(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, help="where to write the proof; default: standard output")
    parser.add_argument(
        "--entry", metavar="FILE", type=Path, help="where to write the entry itself, which whoever checks needs too"
    )
    parser.epilog = "The proof is checked with: tollkeeper audit check-proof PROOF --key VKEY --entry FILE"


def run(arguments: argparse.Namespace) -> int:
    """Writes a proof."""
    found = logs.opened(arguments.folder)
    log, index = logs.placed(found, arguments.place, arguments.slot)
    proof = _native.audit_prove(log.path, index)
    entry = found.entry(log, index)
    if arguments.entry is not None:
        arguments.entry.write_bytes(entry.raw)
        note(f"wrote entry {entry.place} to {shown(str(arguments.entry))}")
    if arguments.out is None:
        sys.stdout.write(proof)
    else:
        arguments.out.write_text(proof, encoding="utf-8")
        note(f"wrote the proof of entry {entry.place} to {shown(str(arguments.out))}")
    return EXIT_OK
