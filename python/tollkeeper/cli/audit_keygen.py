"""``tollkeeper audit keygen``: makes a key, of a log or of an administrator, and prints its public half only.

A log makes its own key when it is first opened. This is for those who want the public half before that, elsewhere, and
for administrators: their public halves are listed in ``[admin] keys``.
"""

import argparse
import os
import socket
from pathlib import Path

from tollkeeper import _native, config
from tollkeeper.cli import logs
from tollkeeper.cli.terminal import EXIT_OK, InputError, note, out, shown


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    logs.add_folder(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, help="the key's file; default: signer.key in DIR")
    parser.add_argument(
        "--origin",
        metavar="NAME",
        help="what the log calls itself, such as example.com/gate, or an administrator's name; "
        f"default: [audit] origin of {config.FILE_NAME}, else the name of this host",
    )
    parser.epilog = (
        "The printed line is the public half. Of a log's key: keep it where the log's writer cannot change it. Of an "
        "administrator's key: list it in [admin] keys, and keep the private half away from the agents."
    )


def run(arguments: argparse.Namespace) -> int:
    """Makes a key."""
    folder = logs.folder_argument(arguments.folder)
    file = arguments.out or folder / "signer.key"
    origin = arguments.origin or logs.audit_section().get("origin") or socket.gethostname()
    if not isinstance(origin, str):
        raise InputError(f"{config.FILE_NAME}: audit.origin: must be a text", 'origin = "example.com/gate"')
    if os.path.lexists(file):
        raise InputError(
            f"{file}: there is a key already, and what it has signed could not go on without it",
            "name another file: --out FILE",
        )
    if arguments.out is None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = "the log's writer" if arguments.out is None else "who signs with it, the log's writer or an administrator,"
    key = _native.audit_keygen(file, origin)
    out(shown(key.strip()))
    note(f"wrote the private half to {shown(os.fspath(file))}; nobody but {owner} needs it")
    return EXIT_OK
