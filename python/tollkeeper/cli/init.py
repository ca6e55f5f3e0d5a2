"""``tollkeeper init``: writes a working example of every file. It never overwrites one."""

import argparse
import os
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from tollkeeper.cli.terminal import EXIT_OK, InputError, out, shown

# Who may change what an agent is allowed to do: the owner.
FILE_MODE: Final = 0o644
FOLDER_MODE: Final = 0o755


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, default=Path(), help="default: this folder")


def run(arguments: argparse.Namespace) -> int:
    """Writes the files, or none of them."""
    folder: Path = arguments.folder
    starter = sorted(_starter(files("tollkeeper").joinpath("starter"), Path()), key=lambda entry: entry[0])
    existing = [str(folder / name) for name, _ in starter if os.path.lexists(folder / name)]
    if existing:
        raise InputError(
            f"these files exist: {', '.join(existing)}",
            "nothing was written; name an empty folder: tollkeeper init DIR",
        )
    for name, content in starter:
        (folder / name).parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        # Exclusive: a file that has come into being meanwhile is not overwritten either, nor is a link followed.
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        out(f"wrote {shown(str(folder / name))}")
    out()
    out("Next:")
    if folder != Path():
        out(f"  cd {shown(str(folder))}")
    out("  tollkeeper policy validate")
    out("  tollkeeper policy test")
    out("  tollkeeper decide actions.jsonl")
    return EXIT_OK


def _starter(folder: Traversable, below: Path) -> list[tuple[Path, bytes]]:
    found: list[tuple[Path, bytes]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found.extend(_starter(entry, below / entry.name))
        elif not entry.name.endswith((".py", ".pyc")):
            found.append((below / entry.name, entry.read_bytes()))
    return found
