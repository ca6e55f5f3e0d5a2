"""What the proxy adds to a call over stdio, beside a plain byte pump of the same construction, in the same run.

    python benches/python/mcp_stdio.py [--calls N] [--rounds N]

Three paths to the same server: direct, through a pump (two threads, `os.read` and `os.write`, nothing looked at),
and through `tollkeeper mcp` with policies, budget and log. They take turns, twenty calls each, so that whatever slows
the machine slows all of them; the figure is the ratio of medians, that of the fastest quarter stands beside it, which
other load disturbs less. Every answer is compared. The server is the official SDK's where its interpreter is named by
TOLLKEEPER_HOSTS_PYTHON (or .venv-hosts is there), and, as the floor, one that does the least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent.parent
# The least that a server can do: no protocol, the answer that the request's id calls for.
FLOOR = """
import os, sys
while line := sys.stdin.buffer.readline():
    at = line.find(b'"id":') + 5
    if at < 5:
        continue
    end = min(i for i in (line.find(b",", at), line.find(b"}", at)) if i > 0)
    if b'"tools/list"' in line:
        body = b'{"tools":[{"name":"add","inputSchema":{"type":"object"}}]}'
    else:
        body = b'{"content":[{"type":"text","text":"3"}],"isError":false}'
    os.write(1, b'{"jsonrpc":"2.0","id":' + line[at:end] + b',"result":' + body + b"}\\n")
"""
SDK = """
from mcp.server.mcpserver import MCPServer
server = MCPServer("bench")

@server.tool()
def add(a: int, b: int) -> int:
    return a + b

server.run("stdio")
"""
PUMP = """
import os, subprocess, sys, threading
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
def pump(source, sink):
    while data := os.read(source, 65536):
        os.write(sink, data)
thread = threading.Thread(target=pump, args=(child.stdout.fileno(), 1), daemon=True)
thread.start()
pump(0, child.stdin.fileno())
child.stdin.close()
child.wait()
"""
POLICY = """
permit(principal == Agent::"bench", action == Action::"add", resource == Mcp::"bench")
when { context.input.a < 1000000 };
forbid(principal, action, resource) when { context.input has path && context.input.path like "*.." };
"""
BUDGETS = """[budget."acme"]
limits = [{ unit = "requests", window = "total", limit = 1000000000 }]
"""
CONFIG = """[policy]
files = ["p.cedar"]
[budget]
file = "budgets.toml"
state = "ledger.bin"
[audit]
[state]
"""
INITIALIZE = {
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}},
}
WARM_UP = 100
# Calls in a row: as an agent has a server to itself while it works.
BLOCK = 20
TARGET = 1.15


def fail(what: str) -> NoReturn:
    """Ends the bench: nothing is measured of what does not answer alike."""
    raise SystemExit(f"error: {what}")


class Path_:  # noqa: N801 - pathlib has the name
    """One way to the server."""

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name = name
        self.ns: list[int] = []
        self.answers = b""
        self.process = subprocess.Popen(  # noqa: S603 - the commands are below
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        if self.process.stdin is None or self.process.stdout is None:
            fail("no pipes")
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.ask(INITIALIZE)
        self.write({"method": "notifications/initialized"})
        self.tools = self.ask({"id": 1, "method": "tools/list"})

    def write(self, message: dict[str, object]) -> None:
        """Sends a message."""
        text = json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":"))
        os.write(self.stdin.fileno(), text.encode() + b"\n")

    def ask(self, message: dict[str, object]) -> dict[str, object]:
        """Sends a message and reads one."""
        self.write(message)
        return json.loads(self.read())

    def read(self) -> bytes:
        """One line."""
        line = b""
        while not line.endswith(b"\n"):
            more = os.read(self.stdout.fileno(), 1 << 20)
            if not more:
                fail(f"{self.name} has ended")
            line += more
        return line

    def block(self, first: int, *, counts: bool) -> None:
        """A row of calls."""
        self.answers = b"".join(self.timed(call(first + number), counts=counts) for number in range(BLOCK))

    def timed(self, line: bytes, *, counts: bool) -> bytes:
        """Sends a line and reads one, with the time of both."""
        begun = time.perf_counter_ns()
        os.write(self.stdin.fileno(), line)
        answer = self.read()
        if counts:
            self.ns.append(time.perf_counter_ns() - begun)
        return answer

    def end(self) -> None:
        """Closes its input and waits."""
        self.stdin.close()
        self.process.wait(20)
        self.stdout.close()


def call(number: int) -> bytes:
    """A request, as a line."""
    params = {"name": "add", "arguments": {"a": 1, "b": 2}, "_meta": {"progressToken": number}}
    message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def measure(name: str, server: list[str], calls: int) -> float:
    """Prints the medians of the paths to a server, and returns the proxy's over the pump's."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "p.cedar").write_text(POLICY)
        (folder / "budgets.toml").write_text(BUDGETS)
        (folder / "tollkeeper.toml").write_text(CONFIG)
        given = ["--principal", 'Agent::"bench"', "--server", "bench", "--budget", "acme"]
        paths = [
            Path_("direct", server, folder),
            Path_("pump", [sys.executable, "-c", PUMP, *server], folder),
            Path_("tollkeeper", [sys.executable, "-m", "tollkeeper", "mcp", *given, "--", *server], folder),
        ]
        if len({json.dumps(path.tools, sort_keys=True) for path in paths}) != 1:
            fail("the tools differ")
        for block in range((WARM_UP + calls) // BLOCK):
            # Whoever comes first after another finds the caches cold: each does, in turn.
            turn = block % len(paths)
            for path in paths[turn:] + paths[:turn]:
                path.block(block * BLOCK + 2, counts=block * BLOCK >= WARM_UP)
            if len({path.answers for path in paths}) != 1 or b'"isError":true' in paths[0].answers:
                fail(f"the answers are {[path.answers for path in paths]}")
        for path in paths:
            path.end()
        medians = {path.name: statistics.median(path.ns) / 1000 for path in paths}
        tails = {path.name: statistics.quantiles(path.ns, n=100)[98] / 1000 for path in paths}
    for key, value in medians.items():
        print(f"  {name:6} {key:10} p50 {value:8.1f} us  p99 {tails[key]:8.1f} us")
    quarters = {path.name: statistics.quantiles(path.ns, n=4)[0] for path in paths}
    print(f"  {name:6} fastest quarter, tollkeeper / pump: {quarters['tollkeeper'] / quarters['pump']:.3f}")
    return medians["tollkeeper"] / medians["pump"]


def sdk_python() -> str | None:
    """The interpreter that has the SDK."""
    named = os.environ.get("TOLLKEEPER_HOSTS_PYTHON")
    found = named or str(ROOT / ".venv-hosts" / "bin" / "python")
    return found if Path(found).exists() else None


def main() -> int:
    """Measures, and says whether the bound is kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    python = sdk_python()
    if python is None:
        print("no MCP SDK here (make .venv-hosts, or TOLLKEEPER_HOSTS_PYTHON): only the floor is measured")
    ratios: list[float] = []
    for _ in range(given.rounds):
        floor = measure("floor", [sys.executable, "-c", FLOOR], given.calls)
        print(f"  floor  tollkeeper / pump: {floor:.3f}")
        if python is not None:
            ratios.append(measure("sdk", [python, "-c", SDK], given.calls))
            print(f"  sdk    tollkeeper / pump: {ratios[-1]:.3f}")
    if not ratios:
        return 0
    middle = statistics.median(ratios)
    print(f"stdio, official SDK's server: {middle:.3f} times a byte pump; the bound is {TARGET}")
    return 0 if middle <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
