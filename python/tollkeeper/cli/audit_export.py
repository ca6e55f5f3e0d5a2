"""``tollkeeper audit export``: every entry as it is stored, one JSON line each.

Payloads are written only if that is asked for. It reads and does not verify: a copy of the log's folder is what can be
verified elsewhere.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tollkeeper.cli import logs
from tollkeeper.cli.terminal import counted, note, progress, shown


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    logs.add_folder(parser)
    logs.add_filters(parser)
    parser.add_argument("--format", choices=("jsonl",), default="jsonl", help="default: %(default)s")
    parser.add_argument("--out", metavar="FILE", type=Path, help="default: standard output")
    parser.add_argument(
        "--with-payloads",
        action="store_true",
        help="also what entries only commit to, with the salt: arguments of calls, what users asked",
    )
    parser.epilog = "A file is readable by its owner only, and replaced as a whole."


def run(arguments: argparse.Namespace) -> int:
    """Writes entries."""
    found = logs.opened(arguments.folder)
    fits = logs.filters(arguments)
    with progress(found.entries(), found.size, "entries") as entries:
        lines = (_line(found, entry, payloads=arguments.with_payloads) for entry in entries if fits(entry))
        if arguments.out is None:
            for line in lines:
                logs.out_line(line)
            sys.stdout.buffer.flush()
            return found.exit_code()
        count = _write(arguments.out, lines)
    note(f"wrote {counted(count, 'entry', 'entries')} to {shown(str(arguments.out))}")
    return found.exit_code()


def _line(found: logs.Logs, entry: logs.Entry, *, payloads: bool) -> bytes:
    payload = found.payload(entry) if payloads else None
    if payload is None:
        return logs.json_line(entry)
    salt = found.reader(entry.log).salt(entry.index)
    return logs.json_line(entry, [("salt", msgspec.json.encode(salt)), _payload(payload)])


def _payload(payload: bytes) -> tuple[str, bytes]:
    """What it is by its bytes: JSON as it is, text as a string, the rest as base64."""
    try:
        if b"\n" not in payload and b"\r" not in payload and payload.decode():
            msgspec.json.decode(payload)
            return "payload", payload
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        pass
    try:
        return "payload_text", msgspec.json.encode(payload.decode())
    except UnicodeDecodeError:
        return "payload_base64", msgspec.json.encode(payload)


def _write(file: Path, lines: Iterator[bytes]) -> int:
    """Writes a file beside and puts it in place; nobody else may read it."""
    count = 0
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as stream:
        try:
            for line in lines:
                stream.write(line)
                count += 1
            stream.flush()
            os.fsync(stream.fileno())
            Path(stream.name).replace(file)
        except BaseException:
            Path(stream.name).unlink(missing_ok=True)
            raise
    return count
