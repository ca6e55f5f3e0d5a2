"""``tollkeeper reload``: has running gates read their configuration again, once it has loaded and passed its tests.

Nothing is told to any gate before the files are valid and the policy tests beside them pass. Then it waits for the
gates and says which of them have the new bundle; exit code 1 if not all do.
"""

import argparse
from typing import Any

from tollkeeper.admin import Reloaded
from tollkeeper.cli import administration
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, coloured, counted, out, out_json, shown_lines


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--wait", metavar="TIME", type=administration.seconds, default=10.0, help="for the gates; default: 10s"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    administration.add_admin(parser)
    parser.epilog = "Gates hear of it with [gate] watch = true; in others the program calls gate.reload()."


def run(arguments: argparse.Namespace) -> int:
    """Tests, tells, waits."""
    done = administration.opened(arguments).reload(timeout=arguments.wait)
    if arguments.json:
        out_json(_plain(done))
    else:
        _print(done)
    return EXIT_NO if done.missing else EXIT_OK


def _plain(done: Reloaded) -> dict[str, Any]:
    missing = [{"pid": pid, "why": why} for pid, why in done.missing.items()]
    return {"bundle": done.bundle, "taken": done.taken, "missing": missing}


def _print(done: Reloaded) -> None:
    out(f"bundle {done.bundle[:12]}: the files are valid, and their tests pass")
    if not done.taken and not done.missing:
        out("no gate is running")
    for pid in done.taken:
        out(f"  {coloured('has it', 'green')}      process {pid}")
    for pid, why in done.missing.items():
        out(f"  {coloured('has it not', 'red')}  process {pid}: {shown_lines(why)}")
    if done.missing:
        every = len(done.missing) + len(done.taken)
        out(f"{counted(len(done.missing), 'gate')} of {every} decides by what it had before")
