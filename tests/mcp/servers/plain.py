"""A small MCP server on stdio, out of the standard library: it does what it is told, misbehaviour included.

    python plain.py [--tools FILE] [--received FILE]

`--tools` is read at each list, so that a test can change it meanwhile; `--received` gets every line as it came.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}}
TOOLS = [
    {"name": name, "description": what, "inputSchema": TEXT}
    for name, what in {
        "echo": "returns its text",
        "fail": "is an error",
        "slow": "never answers, until it is cancelled",
        "die": "kills the server",
        "environment": "returns the names of its variables",
        "ask_model": "asks the client for a model's answer",
        "raw": "writes its text as a line",
        "long": "writes a line of so many bytes",
        "delete": "deletes everything",
        "background": "leaves a program behind",
    }.items()
]


class Server:
    """Reads a line, writes a line."""

    def __init__(self, tools: Path | None, received: Path | None) -> None:
        self.tools, self.received = tools, received
        self.input = sys.stdin.buffer

    def listed(self) -> list[dict[str, Any]]:
        return TOOLS if self.tools is None else json.loads(self.tools.read_text())

    def write(self, message: dict[str, Any] | bytes) -> None:
        line = message if isinstance(message, bytes) else json.dumps({"jsonrpc": "2.0", **message}).encode()
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()

    def read(self) -> dict[str, Any] | None:
        line = self.input.readline()
        if self.received is not None and line:
            with self.received.open("ab") as file:
                file.write(line)
        return json.loads(line) if line else None

    def run(self) -> None:
        while (message := self.read()) is not None:
            if "id" in message and "method" in message:
                result = self.result(message["method"], message.get("params") or {})
                if result is not None:
                    self.write({"id": message["id"], **result})

    def result(self, method: str, params: dict[str, Any]) -> dict[str, Any] | None:
        if method == "initialize":
            info = {"name": "plain", "version": "1"}
            return {"result": {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}}
        if method == "tools/list":
            return self.page(params.get("cursor"))
        if method == "tools/call":
            return self.called(params["name"], params.get("arguments") or {})
        if method == "resources/read":
            return {"result": {"contents": [{"uri": params["uri"], "text": "content"}]}}
        if method == "prompts/get":
            return {"result": {"messages": []}}
        return {"result": {}}

    def page(self, cursor: str | None) -> dict[str, Any]:
        tools, size = self.listed(), int(os.environ.get("PAGE_SIZE", "1000"))
        at = int(cursor or 0)
        more = {"nextCursor": str(at + size)} if at + size < len(tools) else {}
        return {"result": {"tools": tools[at : at + size], **more}}

    def called(self, name: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
        text = str(arguments.get("text", ""))
        if name == "slow":
            return None
        if name == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "raw":
            self.write(text.encode())
            return None
        if name == "long":
            sys.stdout.buffer.write(b'{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"')
            for _ in range(int(text) >> 16):
                sys.stdout.buffer.write(b"x" * 65536)
            self.write(b'"}}')
        if name == "ask_model":
            return self.ask_model(arguments)
        if name == "background":
            subprocess.Popen(["sleep", "600"])  # noqa: S607 - found by PATH
        texts = {"environment": json.dumps(sorted(os.environ))}
        result: dict[str, Any] = {"content": [{"type": "text", "text": texts.get(name, text)}]}
        if name == "fail":
            result["isError"] = True
        return {"result": result}

    def ask_model(self, arguments: dict[str, Any]) -> dict[str, Any]:
        content = {"type": "text", "text": "hello"}
        params = {"messages": [{"role": "user", "content": content}], "maxTokens": arguments.get("tokens", 100)}
        self.write({"id": "s1", "method": "sampling/createMessage", "params": params})
        while (answer := self.read()) is not None:
            if answer.get("id") == "s1":
                return {"result": {"content": [{"type": "text", "text": json.dumps(answer)}]}}
        return {"result": {"content": []}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tools", type=Path)
    parser.add_argument("--received", type=Path)
    parser.add_argument("--stubborn", action="store_true", help="does not end when its input does, nor when told to")
    given = parser.parse_args()
    if given.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Server(given.tools, given.received).run()
    while given.stubborn:
        time.sleep(1)


if __name__ == "__main__":
    main()
