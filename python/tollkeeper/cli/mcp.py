"""``tollkeeper mcp``: stands between an MCP client and an MCP server, and decides what goes through.

Standard output belongs to the protocol, and standard error to the server and to what the operator has to know. Exit
code 0: the client has ended it; 1: the server has; 128 and a signal's number: that signal has.
"""

from __future__ import annotations

import gc
import os
import select
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tollkeeper.cli import gates, inputs
from tollkeeper.cli.terminal import InputError, shown

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from tollkeeper.gate import Gate
    from tollkeeper.mcp.pins import Pins
    from tollkeeper.mcp.screen import Limits, Screen

STDERR = 2
# How long a line waits for a reader of standard error who has fallen behind.
SAY_SECONDS = 0.2
_behind = threading.Event()
SERVER_HELP = (
    'its name, as in Mcp::"NAME"; default: the host of the URL, or the name of the program, unless that runs what its '
    "arguments name, as npx and python do: then it has to be given"
)
HTTP_OPTIONS = ("listen", "allow_remote", "allow_origin", "forward_authorization", "token_file")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    add_server(parser)
    parser.add_argument("--principal", metavar="UID", help="who acts, such as 'Agent::\"researcher\"'; has to be given")
    parser.add_argument("--session", metavar="ID", help="default: one of its own for each run")
    parser.add_argument("--budget", metavar="PATH", help="the budget that pays")
    parser.add_argument(
        "--lock", metavar="FILE", type=Path, help="what pins the tools; default: beside the configuration"
    )
    parser.add_argument(
        "--locked", action="store_true", help="pin nothing: what the lock file does not hold may not be called"
    )
    parser.add_argument(
        "--sampling-model",
        metavar="NAME",
        default="sampling",
        help="the model that a server's requests for a model's answer are decided and paid as; default: sampling",
    )
    inputs.add_config(parser)
    web = parser.add_argument_group("with --upstream")
    web.add_argument("--listen", metavar="HOST:PORT", help="where clients find it")
    web.add_argument("--allow-remote", action="store_true", help="listen on more than this machine")
    web.add_argument("--allow-origin", metavar="ORIGIN", action="append", default=[], help="of pages that may ask")
    web.add_argument(
        "--forward-authorization", action="store_true", help="hand the client's credentials on to the server"
    )
    web.add_argument("--token-file", metavar="FILE", type=Path, help="what clients have to know, in a file")
    parser.epilog = (
        "tollkeeper mcp schema writes a first policy, tollkeeper mcp accept takes over what a server has changed. "
        "Exit code 0: the client has ended it; 1: the server has."
    )


def add_server(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that say which server."""
    parser.add_argument("command", metavar="-- COMMAND", nargs="*", help="what starts the server, on stdio")
    parser.add_argument("--upstream", metavar="URL", help="the server, on streamable HTTP")
    parser.add_argument("--server", metavar="NAME", help=SERVER_HELP)
    parser.add_argument(
        "--env",
        metavar="NAME",
        action="append",
        default=[],
        help="hand this variable on to the server, besides what every program needs",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs until one side ends."""
    from tollkeeper.mcp import settings  # noqa: PLC0415 - help needs none of it
    from tollkeeper.mcp.screen import Limits  # noqa: PLC0415 - as above

    one_server(arguments)
    principal(arguments)
    name = settings.server_name(arguments.server, arguments.command, arguments.upstream)
    reached = reached_as(arguments)
    pins = _pins(arguments, name, reached)
    gate = gates.opened(arguments.config)
    try:
        if arguments.upstream is None:
            limits = Limits(one_line=True)
            return _on_stdio(arguments, limits, _screen_maker(arguments, gate, name, pins, limits))
        return _on_http(arguments, gate, name, pins)
    finally:
        gate.close()


def one_server(arguments: argparse.Namespace) -> None:
    """Refuses a command and a URL, or neither, and options that belong to the other."""
    if bool(arguments.command) == (arguments.upstream is not None):
        raise InputError(
            "name one server: a command or --upstream", "tollkeeper mcp --principal 'Agent::\"me\"' -- npx some-server"
        )
    if arguments.upstream is not None and arguments.env:
        raise InputError("--env is for a server that is started here", "leave it out with --upstream")
    stray = [option for option in HTTP_OPTIONS if getattr(arguments, option, None)]
    if arguments.upstream is None and stray:
        raise InputError(f"--{stray[0].replace('_', '-')} is for --upstream", "leave it out")


def principal(arguments: argparse.Namespace) -> None:
    """Refuses a missing principal, and one that is no uid. Not by argparse: it would hide options that are none."""
    if arguments.principal is None:
        raise InputError("--principal is missing: who acts", "--principal 'Agent::\"researcher\"'")
    inputs.uid_argument(arguments.principal, "principal")


def reached_as(arguments: argparse.Namespace) -> str:
    """How the server is reached, as pins have it."""
    from tollkeeper.mcp import settings  # noqa: PLC0415 - as above

    if arguments.upstream is not None:
        return settings.reached_by_url(arguments.upstream)
    return settings.reached_by_command(arguments.command)


def say(text: str) -> None:
    """A line for the operator; where nobody reads it, no reason to stop deciding or to wait."""
    raw = f"tollkeeper: {shown(text)}\n".encode(errors="backslashreplace")
    try:
        for at in range(0, len(raw), select.PIPE_BUF):
            # So many bytes are taken at once by a pipe that is said to take any.
            patience = 0.0 if _behind.is_set() else SAY_SECONDS
            if not select.select([], [STDERR], [], patience)[1]:
                _behind.set()
                return
            _behind.clear()
            os.write(STDERR, raw[at : at + select.PIPE_BUF])
    except (OSError, ValueError):
        return


def _pins(arguments: argparse.Namespace, name: str, reached: str) -> Pins:
    from tollkeeper.mcp import settings  # noqa: PLC0415 - as above
    from tollkeeper.mcp.pins import Pins  # noqa: PLC0415 - as above

    lock = settings.lock_path(arguments.lock, arguments.config)
    return Pins(lock, server=name, reached=reached, locked=arguments.locked, say=say)


def _screen_maker(
    arguments: argparse.Namespace, gate: Gate, name: str, pins: Pins, limits: Limits
) -> Callable[[], Screen]:
    from tollkeeper.mcp.screen import Screen  # noqa: PLC0415 - as above

    def made() -> Screen:
        return Screen(
            gate,
            principal=arguments.principal,
            server=name,
            session=arguments.session,
            budget=arguments.budget,
            pins=pins,
            limits=limits,
            sampling_model=arguments.sampling_model,
            say=say,
        )

    return made


def _on_stdio(arguments: argparse.Namespace, limits: Limits, made: Callable[[], Screen]) -> int:
    from tollkeeper.mcp import stdio  # noqa: PLC0415 - as above

    # First the screen: a principal or a budget that cannot be used starts nothing.
    screen = made()
    try:
        server = stdio.start(arguments.command, stdio.environment(arguments.env, os.environ))
    except OSError as error:
        screen.close()
        raise InputError(f"{shown(arguments.command[0])}: {error.strerror or error}", "name a program") from None
    # What there is now stays: the collector has to look at messages only.
    gc.collect()
    gc.freeze()
    return stdio.Proxy(screen, server, client_in=0, client_out=1, limits=limits, say=say).run()


def _on_http(arguments: argparse.Namespace, gate: Gate, name: str, pins: Pins) -> int:
    from tollkeeper.mcp.pins import INSTALL  # noqa: PLC0415 - as above
    from tollkeeper.mcp.screen import Screen  # noqa: PLC0415 - as above

    if arguments.listen is None:
        raise InputError("--listen is missing", "--listen 127.0.0.1:8931")
    try:
        from tollkeeper.mcp import http, http_headers  # noqa: PLC0415 - as above
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed", INSTALL) from None
    check = http_headers.HeaderCheck(pins)

    def made(session: str | None) -> Screen:
        return Screen(
            gate,
            principal=arguments.principal,
            server=name,
            session=arguments.session or session,
            budget=arguments.budget,
            pins=pins,
            sampling_model=arguments.sampling_model,
            check_headers=check,
            waits=False,
            one_client=session is not None,
            say=say,
        )

    try:
        settings = http.Settings(
            upstream=arguments.upstream,
            listen=arguments.listen,
            allow_remote=arguments.allow_remote,
            allow_origins=tuple(arguments.allow_origin),
            forward_authorization=arguments.forward_authorization,
            token_file=arguments.token_file,
        )
        return http.serve(settings, made, say)
    except http.UsageError as error:
        raise InputError(str(error)) from None
