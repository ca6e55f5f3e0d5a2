"""What the commands around the proxy agree on: what a server is called, how it is reached, where its pins are.

A server has no name of its own that anybody could trust, so the operator gives it one. Nothing here starts anything.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tollkeeper.errors import ConfigError
from tollkeeper.mcp.pins import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["lock_path", "reached_by_command", "reached_by_url", "server_name"]

# Programs that run what their arguments name.
LAUNCHERS: Final = frozenset({"npx", "bunx", "uvx", "pipx", "docker", "podman", "env", "sh", "bash"})
INTERPRETER: Final = re.compile(r"(python|node|deno|bun|ruby|java)[\d.]*")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIGITS: Final = 16


def server_name(given: str | None, command: Sequence[str], url: str | None) -> str:
    """What the server is called: as the operator says, else after what is started or the host of the URL.

    Args:
        given: ``--server``.
        command: The command, if it is one.
        url: The URL, if it is one.

    Raises:
        ConfigError: The name cannot be one, or none can be made out of the command.

    Example:
        >>> from tollkeeper.mcp.settings import server_name
        >>> server_name(None, ["/usr/bin/mail-server", "--quiet"], None)
        'mail-server'
        >>> server_name(None, [], "https://mcp.example.com/mcp")
        'mcp.example.com'
    """
    hint = "add --server NAME"
    host = "" if url is None else _host_of(url)
    if given is not None:
        if NAME.fullmatch(given) is None:
            raise ConfigError("--server: a name has 1 to 64 letters, digits, `.`, `_` or `-`", "mcp.server", hint)
        return given
    name = host if url is not None else Path(command[0]).stem
    if NAME.fullmatch(name) is None or name in LAUNCHERS or INTERPRETER.fullmatch(name) is not None:
        message = f"the server needs a name, which policies and pins then use; `{name}` does not say which server it is"
        raise ConfigError(message, "mcp.server", hint)
    return name


def _host_of(url: str) -> str:
    """The host of a URL, which may be missing; refused is what cannot be taken apart, or not be sent."""
    try:
        parts = urlsplit(url)
        good = (parts.port or 1) > 0 and url.isprintable() and not any(map(str.isspace, url))
    except ValueError:
        good, parts = False, urlsplit("")
    if not good:
        raise ConfigError("--upstream: not a URL", "mcp.url", "https://mcp.example.com/mcp")
    return parts.hostname or ""


def reached_by_command(command: Sequence[str]) -> str:
    """How a server on stdio is reached: its program, and a digest of all words, for they may hold secrets.

    Example:
        >>> from tollkeeper.mcp.settings import reached_by_command
        >>> reached_by_command(["npx", "mail-server"])
        'stdio npx sha256:ab5cb5cf81e8b97d'
    """
    words = hashlib.sha256(json.dumps(list(command)).encode()).hexdigest()[:DIGITS]
    return f"stdio {Path(command[0]).name} sha256:{words}"


def reached_by_url(url: str) -> str:
    """How a server on HTTP is reached: its URL, without user, password and query.

    Example:
        >>> from tollkeeper.mcp.settings import reached_by_url
        >>> reached_by_url("https://me:secret@mcp.example.com/mcp?key=1")
        'http https://mcp.example.com/mcp'
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = "" if parts.port is None else f":{parts.port}"
    return f"http {parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"


def lock_path(given: Path | None, config: Path) -> Path:
    """The lock file: the one that is named, or the one beside the configuration.

    Raises:
        ConfigError: There is no folder that could hold it.
    """
    path = given if given is not None else config.absolute().parent / FILE_NAME
    if not path.name or not path.parent.is_dir():
        raise ConfigError(f"--lock {path}: there is no such folder, or this is no file", "mcp.lock", "--lock FILE")
    return path
