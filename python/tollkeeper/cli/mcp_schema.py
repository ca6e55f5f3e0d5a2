"""``tollkeeper mcp schema``: writes a Cedar schema and starter policies out of a server's tools.

The server is started, or asked, once; no tool is called. It never overwrites a file.
"""

import argparse
import os
from pathlib import Path

from tollkeeper.cli import mcp
from tollkeeper.cli.terminal import EXIT_OK, InputError, note, out, shown


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    mcp.add_server(parser)
    parser.add_argument(
        "--principal",
        metavar="UID",
        help="who may call what only reads, such as 'Agent::\"researcher\"'; has to be given",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path(), help="default: this folder")
    parser.epilog = "Read what it writes: a server says of itself which of its tools only read."


def run(arguments: argparse.Namespace) -> int:
    """Writes the three files, or none of them."""
    from tollkeeper.mcp import listing, schema, settings, stdio  # noqa: PLC0415 - help needs none of it

    mcp.one_server(arguments)
    mcp.principal(arguments)
    name = settings.server_name(arguments.server, arguments.command, arguments.upstream)
    folder: Path = arguments.out
    files = {kind: folder / f"{name}.{kind}" for kind in ("cedarschema", "cedar", "toml")}
    existing = [shown(str(file)) for file in files.values() if os.path.lexists(file)]
    if existing:
        raise InputError(f"these files exist: {', '.join(existing)}", "nothing was written; name a folder: --out DIR")
    if arguments.upstream is not None:
        tools = listing.of_url(arguments.upstream)
    else:
        tools = listing.of_command(arguments.command, stdio.environment(arguments.env, os.environ))
    written = schema.write(name, arguments.principal, tools)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, text in (("cedarschema", written.schema), ("cedar", written.policies), ("toml", written.tools)):
        # Exclusive: what has come into being meanwhile is not overwritten, nor is a link followed.
        with os.fdopen(
            os.open(files[kind], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8"
        ) as file:
            file.write(text)
        out(f"wrote {shown(str(files[kind]))}")
    for problem in written.left_out:
        note(f"left out: {shown(problem)}")
    out()
    out("Next: read them, name the first two under [policy] of tollkeeper.toml, and put the third into it")
    cedar, cedarschema = shown(str(files["cedar"])), shown(str(files["cedarschema"]))
    out(f"  tollkeeper policy validate --policies {cedar} --schema {cedarschema}")
    return EXIT_OK
