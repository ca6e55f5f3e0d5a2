"""Asks a server what tools it has, once, as a client would: for what is written out of that list.

It calls no tool, and what the server says is read as strictly as in the proxy.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, cast

from tollkeeper.errors import ConfigError
from tollkeeper.mcp import strict
from tollkeeper.mcp.screen import META, SERVER_BYTES_MAX
from tollkeeper.mcp.stdio import start

__all__ = ["of_command", "of_url"]

LEGACY: Final = "2025-11-25"
MODERN: Final = "2026-07-28"
CLIENT: Final = {"name": "tollkeeper", "version": "1"}
PAGES_MAX: Final = 1000
READ_BYTES: Final = 64 << 10

# Sends a message; returns the answer's, or an empty one to a notification.
Ask = Callable[[dict[str, Any]], dict[str, Any]]


def _failed(what: str) -> ConfigError:
    return ConfigError(f"the server's tools cannot be listed: {what}", "mcp.list")


def _tools(ask: Ask) -> list[dict[str, Any]]:
    """The handshake of either revision, and all pages."""
    legacy = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": CLIENT}
    answer = ask({"id": 1, "method": "initialize", "params": legacy})
    meta: dict[str, Any] = {}
    if "error" in answer:
        meta = {META + "protocolVersion": MODERN, META + "clientCapabilities": {}, META + "clientInfo": CLIENT}
    else:
        ask({"method": "notifications/initialized"})
    tools: list[dict[str, Any]] = []
    cursor: str | None = None
    for page in range(PAGES_MAX):
        params = {**({} if cursor is None else {"cursor": cursor}), **({"_meta": meta} if meta else {})}
        answer = ask({"id": page + 2, "method": "tools/list", "params": params})
        result = answer.get("result")
        found = cast("dict[str, Any]", result).get("tools") if type(result) is dict else None
        if type(found) is not list:
            raise _failed(json.dumps(answer.get("error"))[:200])
        tools += [cast("dict[str, Any]", tool) for tool in cast("list[object]", found) if type(tool) is dict]
        cursor = cast("dict[str, Any]", result).get("nextCursor")
        if type(cursor) is not str:
            return tools
    raise _failed(f"there are more than {PAGES_MAX} pages")


def of_command(command: Sequence[str], environment: Mapping[str, str], timeout: float = 30.0) -> list[dict[str, Any]]:
    """The tools of a server on stdio, which is started and ended again.

    Args:
        command: Program and arguments.
        environment: All that it gets of one.
        timeout: Seconds, for everything.

    Raises:
        ConfigError: It does not answer, or not with tools.
        OSError: It cannot be started.
    """
    server = start(command, environment)
    pipe = _Pipe(server, time.monotonic() + timeout)
    try:
        return _tools(pipe.ask)
    finally:
        if server.stdin is not None and server.stdout is not None:
            server.stdin.close()
            server.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            server.wait(2)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


class _Pipe:
    """A server's pipes, for one request after the other."""

    def __init__(self, server: subprocess.Popen[bytes], end: float) -> None:
        self._server, self._end, self._rest = server, end, b""

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._server.stdin is None:
            raise _failed("it has no input")
        try:
            self._server.stdin.write(strict.write({"jsonrpc": "2.0", **message}) + b"\n")
        except BrokenPipeError:
            raise _failed("it has ended") from None
        while "id" in message:
            found = _message(self._line())
            if found.get("id") == message["id"] and "method" not in found:
                return found
        return {}

    def _line(self) -> bytes:
        if self._server.stdout is None:
            raise _failed("it has no output")
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._server.stdout], [], [], max(self._end - time.monotonic(), 0.0))
            if not ready:
                raise _failed("it does not answer in time")
            chunk = os.read(self._server.stdout.fileno(), READ_BYTES)
            if not chunk:
                raise _failed("it has ended")
            self._rest += chunk
            if len(self._rest) > SERVER_BYTES_MAX:
                raise _failed("an answer is too long")
        line, self._rest = self._rest.split(b"\n", 1)
        return line


def _message(raw: bytes) -> dict[str, Any]:
    try:
        found = strict.read(raw, bytes_max=SERVER_BYTES_MAX, fold=False)
    except strict.Malformed as error:
        raise _failed(f"an answer is refused: {error}") from None
    return cast("dict[str, Any]", found) if type(found) is dict else {}


def of_url(url: str, timeout: float = 30.0) -> list[dict[str, Any]]:
    """The tools of a server on streamable HTTP.

    Args:
        url: Its endpoint.
        timeout: Seconds, for each answer.

    Raises:
        ConfigError: It does not answer, or not with tools.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError("--upstream: not a URL of http or https", "mcp.url", "https://mcp.example.com/mcp")
    session: list[str] = []
    opener = _without_redirects()

    def ask(message: dict[str, Any]) -> dict[str, Any]:
        body = strict.write({"jsonrpc": "2.0", **message})
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if META + "protocolVersion" in message.get("params", {}).get("_meta", {}):
            headers |= {"MCP-Protocol-Version": MODERN, "Mcp-Method": message["method"]}
        elif message["method"] != "initialize":
            headers["MCP-Protocol-Version"] = LEGACY
        if session:
            headers["Mcp-Session-Id"] = session[0]
        request = urllib.request.Request(url, body, headers)  # noqa: S310 - the scheme is looked at above
        try:
            with opener.open(request, timeout=timeout) as response:
                if response.headers.get("Mcp-Session-Id") and not session:
                    session.append(response.headers["Mcp-Session-Id"])
                return _answer(response, message.get("id"))
        except urllib.error.HTTPError as error:
            with error:
                # An error of the protocol may come with a status of its own.
                found = _unless_malformed(error.read(READ_BYTES))
            if "error" in found:
                return found
            raise _failed(f"HTTP status {error.code}") from None
        except OSError as error:
            raise _failed(str(error)) from None

    return _tools(ask)


def _without_redirects() -> urllib.request.OpenerDirector:
    """What a server names as another place is not asked: it may be one that only this machine reaches."""
    made = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        made.add_handler(handler)
    return made


def _unless_malformed(raw: bytes) -> dict[str, Any]:
    with suppress(ConfigError):
        return _message(raw)
    return {}


def _answer(response: Any, id_: object) -> dict[str, Any]:  # noqa: ANN401 - what urllib returns
    """The answer in a body, or among the events of one."""
    if id_ is None:
        return {}
    if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
        return _message(response.read(SERVER_BYTES_MAX + 1))
    data: list[bytes] = []
    size = 0
    for line in iter(lambda: response.readline(SERVER_BYTES_MAX), b""):
        size += len(line)
        if size > SERVER_BYTES_MAX:
            break
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif not line.strip() and data:
            found = _message(b"\n".join(data))
            data = []
            if found.get("id") == id_ and "method" not in found:
                return found
    raise _failed("its stream ends without an answer")
