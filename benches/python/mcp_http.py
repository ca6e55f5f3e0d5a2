"""What the proxy adds to a call over streamable HTTP, beside a plain byte-forwarding proxy of the same construction.

    python benches/python/mcp_http.py [--calls N] [--rounds N]

Three paths to the same server: direct; through a proxy that only forwards bytes, on the same libraries and the same
event loop; and through `tollkeeper mcp` with policies, budget and log. They take turns, call by call, so that whatever
slows the machine slows all of them; the figures are medians and their ratios. Answers are compared. The server is one
that only writes an answer, as the floor, and the official SDK's (the fixture server of the conformance tests) where its
interpreter is named by TOLLKEEPER_HOSTS_PYTHON, or .venv-hosts is there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

ROOT = Path(__file__).resolve().parent.parent.parent
SDK_SERVER = ROOT / "tests" / "mcp" / "conformance_server.py"
PRINCIPAL = 'Agent::"bench"'
POLICY = f"""@id("all") permit(principal == {PRINCIPAL}, action, resource == Mcp::"bench");
@id("not") forbid(principal, action == Action::"test_simple_text", resource)
when {{ context.input has text && context.input.text == "secret" }};
"""
BUDGETS = """[budget."acme"]
limits = [
    { unit = "requests", window = "total", limit = 100_000_000 },
    { unit = "in_flight", window = "total", limit = 100 },
]
"""
CONFIG = """[policy]
files = ["p.cedar"]
[budget]
file = "budgets.toml"
state = "ledger.bin"
[audit]
[state]
[tools.test_simple_text]
resource = 'Mcp::"bench"'
cost = { requests = 1, in_flight = 1 }
"""
VERSION = "2026-07-28"
META = {"io.modelcontextprotocol/protocolVersion": VERSION, "io.modelcontextprotocol/clientCapabilities": {}}
TEXT = "This is a simple text response for testing."
HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
    "MCP-Protocol-Version": VERSION,
    "Mcp-Method": "tools/call",
    "Mcp-Name": "test_simple_text",
}
START_SECONDS = 60.0


async def listening(handler: Any) -> str:
    """Serves it on any port; the URL."""
    runner = web.ServerRunner(web.Server(handler, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"


async def floor() -> str:
    """The least that a server can do: it reads the request and writes an answer."""
    tools = [{"name": "test_simple_text", "inputSchema": {"type": "object"}}]

    async def answered(request: Any) -> Any:
        message = json.loads(await request.read())
        result: dict[str, Any] = {"content": [{"type": "text", "text": TEXT}], "isError": False}
        if message["method"] == "tools/list":
            result = {"tools": tools}
        raw = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": {"resultType": "complete", **result}})
        return web.Response(body=raw.encode(), content_type="application/json")

    return await listening(answered)


async def plain(upstream: str) -> str:
    """Forwards bytes, and looks at nothing; connections are kept as in the proxy."""
    client = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
    )

    async def forwarded(request: Any) -> Any:
        headers = [(k, v) for k, v in request.headers.items() if k not in {"Host", "Content-Length", "Accept-Encoding"}]
        raw = await request.read()
        async with client.post(upstream, data=raw, headers=headers, allow_redirects=False) as answer:
            back = [(k, v) for k, v in answer.headers.items() if k not in {"Content-Length", "Date", "Server"}]
            return web.Response(status=answer.status, body=await answer.read(), headers=back)

    return await listening(forwarded)


def role(name: str, upstream: str) -> None:
    """One of the processes that the bench starts; it says its URL."""

    async def served() -> None:
        print(await (floor() if name == "floor" else plain(upstream)), flush=True)
        await asyncio.Event().wait()

    uvloop.run(served())


@contextlib.contextmanager
def process(command: list[str], folder: Path, **more: str) -> Iterator[Path]:
    """A process and the file that it writes to."""
    log = folder / f"{len(list(folder.iterdir()))}.log"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python"), "PYTHONUNBUFFERED": "1"} | more
    with log.open("wb") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, cwd=folder)  # noqa: S603
    try:
        yield log
    finally:
        child.terminate()
        child.wait(10)


def url_in(log: Path) -> str:
    """The URL that a process has written."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        found = [word for line in log.read_text().splitlines() for word in line.split() if word.startswith("http://")]
        if found:
            return found[0].rstrip(",")
        time.sleep(0.05)
    raise SystemExit(f"did not start:\n{log.read_text()}")


@contextlib.contextmanager
def paths(server: str, folder: Path, python: str | None) -> Iterator[dict[str, str]]:
    """The URLs of the three paths to a server."""
    (folder / "p.cedar").write_text(POLICY)
    (folder / "budgets.toml").write_text(BUDGETS)
    (folder / "tollkeeper.toml").write_text(CONFIG)
    this = [sys.executable, __file__]
    with contextlib.ExitStack() as stack:
        if server == "floor":
            upstream = url_in(stack.enter_context(process([*this, "--role", "floor"], folder)))
        else:
            ready = folder / "ready"
            command = [str(python), "-W", "ignore", str(SDK_SERVER), "--ready", str(ready), "--json"]
            stack.enter_context(process(command, folder))
            end = time.monotonic() + START_SECONDS
            while not ready.exists() and time.monotonic() < end:
                time.sleep(0.05)
            upstream = f"http://127.0.0.1:{ready.read_text().strip()}/mcp"
        forward = url_in(stack.enter_context(process([*this, "--role", "plain", "--upstream", upstream], folder)))
        words = ["-m", "tollkeeper", "mcp", "--upstream", upstream, "--listen", "127.0.0.1:0", "--server", "bench"]
        words += ["--principal", PRINCIPAL, "--budget", "acme"]
        guarded = url_in(stack.enter_context(process([sys.executable, *words], folder)))
        yield {"direct": upstream, "plain": forward, "tollkeeper": guarded}


def body(number: int, text: str) -> bytes:
    """A call of the tool."""
    params = {"name": "test_simple_text", "arguments": {"text": text}, "_meta": META}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}).encode()


async def measured(urls: dict[str, str], calls: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of every call, by path; each path in turn, and a denied call after the three."""
    taken: dict[str, list[float]] = {name: [] for name in (*urls, "denied")}
    number = 0
    async with contextlib.AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(aiohttp.ClientSession()) for name in (*urls, "denied")}

        async def one(name: str, text: str) -> tuple[float, dict[str, Any]]:
            url = urls["tollkeeper" if name == "denied" else name]
            begun = time.perf_counter()
            async with clients[name].post(url, data=body(number, text), headers=HEADERS) as answer:
                raw = await answer.read()
            return (time.perf_counter() - begun) * 1e6, json.loads(raw)

        for turn in range(-1, rounds):
            for _ in range(calls):
                number += 1
                for name, micros_all in taken.items():
                    text = "secret" if name == "denied" else "hello"
                    micros, answer = await one(name, text)
                    result = answer["result"]
                    if answer["id"] != number or result["isError"] != (name == "denied"):
                        raise SystemExit(f"{name}: {answer}")
                    if name != "denied" and result["content"][0]["text"] != TEXT:
                        raise SystemExit(f"{name}: {answer}")
                    if turn >= 0:
                        micros_all.append(micros)
    return taken


def report(server: str, taken: dict[str, list[float]]) -> None:
    """Prints the figures of one server."""
    direct = statistics.median(taken["direct"])
    print(f"\n{server}: microseconds of a call, {len(taken['direct'])} of each path")
    print(f"{'path':<12}{'p50':>9}{'p99':>9}{'added':>9}{'of direct':>11}")
    for name, values in taken.items():
        middle, high = statistics.median(values), statistics.quantiles(values, n=100)[98]
        print(f"{name:<12}{middle:>9.0f}{high:>9.0f}{middle - direct:>9.0f}{middle / direct:>11.2f}")
    added = statistics.median(taken["tollkeeper"]) - statistics.median(taken["plain"])
    print(f"over the plain proxy: {added:.0f} us, {added / statistics.median(taken['plain']):+.1%}")


def main() -> None:
    """Measures in front of both servers, or is one of the processes for that."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100, help="of each path in a round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--role", choices=["floor", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--upstream", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.role:
        role(given.role, given.upstream)
        return
    python = os.environ.get("TOLLKEEPER_HOSTS_PYTHON") or str(ROOT / ".venv-hosts/bin/python")
    for server in ("floor", "sdk"):
        if server == "sdk" and not Path(python).exists():
            print("\nsdk: left out, TOLLKEEPER_HOSTS_PYTHON names no interpreter with the MCP SDK")
            continue
        with tempfile.TemporaryDirectory() as made, paths(server, Path(made), python) as urls:
            report(server, uvloop.run(measured(urls, given.calls, given.rounds)))


if __name__ == "__main__":
    main()
