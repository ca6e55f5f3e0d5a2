"""What the MCP proxy's tests share: a configuration, and a client that talks to a proxy in a process of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import tollkeeper

PACKAGE = Path(tollkeeper.__file__).parent.parent
SERVER = Path(__file__).parent / "servers" / "plain.py"
PRINCIPAL = 'Agent::"tester"'
ALLOWED = ["echo", "fail", "slow", "die", "environment", "ask_model", "raw", "long", "background", "add"]
POLICY = "".join(
    f'@id("{name}") permit(principal == {PRINCIPAL}, action == Action::"{name}", resource == Mcp::"plain");\n'
    for name in ALLOWED
) + (
    '@id("no-secrets") forbid(principal, action == Action::"echo", resource)\n'
    '  when { context.input has text && context.input.text == "secret" };\n'
    '@id("ask-first") @approval("security")\n'
    'permit(principal, action == Action::"delete", resource) when { context.input.text == "all" };\n'
    '@id("read") permit(principal, action == Action::"read_resource", resource)\n'
    '  when { context.input.uri like "file:///open/*" };\n'
    '@id("prompt") permit(principal, action == Action::"get_prompt", resource)\n'
    '  when { context.input.name == "greeting" };\n'
    '@id("model") permit(principal, action == Action::"call_model", resource == Model::"sampling")\n'
    "  when { context.input.max_tokens <= 100 };\n"
)
BUDGETS = """[budget."acme"]
limits = [
    { unit = "requests", window = "total", limit = 1000 },
    { unit = "tokens", window = "total", limit = 100000 },
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
[tools.echo]
resource = 'Mcp::"plain"'
reads = ["untrusted"]
[tools.slow]
resource = 'Mcp::"plain"'
cost = { requests = 1, in_flight = 1 }
[tools.die]
resource = 'Mcp::"plain"'
cost = { requests = 1, in_flight = 1 }
"""


def environment(**more: str) -> dict[str, str]:
    """The caller's, without what changes anything."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TOLLKEEPER_", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(PACKAGE), "PYTHONUTF8": "1", "NO_COLOR": "1", **more}


def write_folder(folder: Path, budgets: str = BUDGETS) -> Path:
    """A configuration in which the plain server's tools are allowed but for some."""
    (folder / "p.cedar").write_text(POLICY)
    (folder / "budgets.toml").write_text(budgets)
    (folder / "tollkeeper.toml").write_text(CONFIG)
    return folder


class Client:
    """Speaks to a proxy over its pipes, one line at a time."""

    def __init__(
        self, folder: Path, *server: str, options: tuple[str, ...] = (), command: tuple[str, ...] = (), **more: str
    ) -> None:
        self.folder = folder
        words = command or (sys.executable, str(SERVER), "--received", str(folder / "received"), *server)
        given = ("--principal", PRINCIPAL, "--server", "plain", "--budget", "acme", *options)
        self.log = (folder / "stderr").open("ab")
        self.process = subprocess.Popen(  # noqa: S603 - the words are those of the tests
            [sys.executable, "-m", "tollkeeper", "mcp", *given, "--", *words],
            cwd=folder,
            env=environment(**more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            bufsize=0,
        )
        self.rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()

    def send(self, raw: bytes | dict[str, Any]) -> None:
        line = raw if isinstance(raw, bytes) else json.dumps({"jsonrpc": "2.0", **raw}).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")

    def line(self, seconds: float = 20) -> bytes:
        """The next line that the proxy writes; empty at the end."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self.rest:
            ready, _, _ = select.select([self.process.stdout], [], [], max(end - time.monotonic(), 0))
            assert ready, f"nothing in {seconds} s; {self.errors()}"
            chunk = os.read(self.process.stdout.fileno(), 65536)
            if not chunk:
                return b""
            self.rest += chunk
        line, self.rest = self.rest.split(b"\n", 1)
        return line

    def message(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.line())
        return found

    def ask(self, raw: bytes | dict[str, Any]) -> dict[str, Any]:
        self.send(raw)
        return self.message()

    def call(self, name: str, number: int | str = 1, **arguments: Any) -> dict[str, Any]:
        return self.ask(call(name, number, **arguments))

    def end(self) -> int:
        """Closes the client's side and waits."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.log.close()
        return self.process.wait(30)

    def errors(self) -> str:
        return (self.folder / "stderr").read_text()

    def received(self) -> list[bytes]:
        """What the server has received, line by line."""
        file = self.folder / "received"
        return file.read_bytes().splitlines() if file.exists() else []


def call(name: str, number: int | str = 1, **arguments: Any) -> dict[str, Any]:
    return {"id": number, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


def text_of(answer: dict[str, Any]) -> str:
    text: str = answer["result"]["content"][0]["text"]
    return text


def entries(folder: Path) -> list[dict[str, Any]]:
    """What the log holds, after it was verified."""

    def command(*words: str) -> str:
        done = subprocess.run(  # noqa: S603 - the words are above and below
            [sys.executable, "-m", "tollkeeper", *words],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    command("audit", "verify", "audit")
    return [json.loads(line) for line in command("audit", "show", "audit", "--json").splitlines()]
