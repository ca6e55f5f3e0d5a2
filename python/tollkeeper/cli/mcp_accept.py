"""``tollkeeper mcp accept``: shows how a server's tools differ from what is pinned, and takes it over.

What is taken over is what is shown, also if the server changes meanwhile. Proxies that run see the lock file change.
Exit code 1 with ``--show``: something waits.
"""

import argparse
from pathlib import Path

from tollkeeper.cli import inputs
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, InputError, coloured, counted, out, shown

DESCRIPTION = "What is accepted is what is printed."
COLOURS = {"+": "green", "-": "red"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("tools", metavar="TOOL", nargs="*", help="default: all that wait")
    parser.add_argument("--server", metavar="NAME", help="default: the only one that waits")
    parser.add_argument("--lock", metavar="FILE", type=Path, help="default: mcp.lock.json beside the configuration")
    parser.add_argument("--show", action="store_true", help="only print; exit code 1 where something waits")
    inputs.add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the difference, then takes it over."""
    from tollkeeper.mcp import pins, settings  # noqa: PLC0415 - help needs none of it

    lock = settings.lock_path(arguments.lock, arguments.config)
    waiting = pins.read_pending(lock).servers
    if not waiting:
        out("nothing waits to be accepted")
        return EXIT_OK
    name = _named(arguments.server, sorted(waiting))
    seen, pinned = waiting[name], pins.pinned(lock, name)
    pins.refuse_unknown(seen, arguments.tools)
    before = pins.reached(lock, name)
    if before is not None and before != seen.reached:
        out(f"{coloured(shown(name), 'bold')}: it is reached another way than when its tools were accepted")
        out(f"  {coloured(shown(f'- {before}'), 'red')}")
        out(f"  {coloured(shown(f'+ {seen.reached}'), 'green')}")
    for tool in arguments.tools or sorted(set(seen.tools) | set(pinned)):
        if (reason := seen.withheld.get(tool)) is not None:
            out(f"{coloured(shown(tool), 'bold')}: {shown(reason)}")
        elif tool not in seen.tools:
            out(f"{coloured(shown(tool), 'bold')}: the server does not list it any more")
        elif not arguments.tools and pinned.get(tool) != seen.tools[tool]:
            # The lock file has changed since that was written down, as when an older one was restored.
            out(f"{coloured(shown(tool), 'bold')}: it differs from what is pinned now")
        else:
            continue
        lines = pins.difference(pinned.get(tool), seen.tools.get(tool))
        if not lines:
            out("  its definition is the one that was accepted")
        for line in lines:
            colour = COLOURS.get(line[:1])
            out("  " + (shown(line) if colour is None else coloured(shown(line), colour)))
    if arguments.show:
        return EXIT_NO
    changed = pins.accept(lock, name, seen, arguments.tools or None)
    out(f"accepted {counted(len(changed), 'change')} of {shown(name)} in {shown(str(lock))}")
    return EXIT_OK


def _named(given: str | None, waiting: list[str]) -> str:
    if given is None and len(waiting) == 1:
        return waiting[0]
    if given not in waiting:
        what = "several servers wait" if given is None else f"nothing of {given} waits"
        raise InputError(f"{what}: {', '.join(waiting)}", f"--server {waiting[0]}")
    return given
