"""The official SDK's client and server, with the proxy between them and without: the same but for what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from proxied import PRINCIPAL, entries, environment, text_of

ROOT = Path(__file__).resolve().parent.parent.parent
SERVERS = Path(__file__).parent / "servers"


@pytest.fixture
def python() -> str:
    """An interpreter that has the SDK."""
    named = os.environ.get("TOLLKEEPER_HOSTS_PYTHON") or str(ROOT / ".venv-hosts" / "bin" / "python")
    if not Path(named).exists():
        pytest.skip("no environment with the MCP SDK: make .venv-hosts, or set TOLLKEEPER_HOSTS_PYTHON")
    done = subprocess.run([named, "-c", "import mcp.server.mcpserver"], capture_output=True, check=False)  # noqa: S603 - as above
    if done.returncode != 0:
        pytest.skip("the environment of TOLLKEEPER_HOSTS_PYTHON has no MCP SDK 2")
    return named


def talked(python: str, folder: Path, *command: str) -> dict[str, Any]:
    done = subprocess.run(  # noqa: S603 - the words are below
        [python, str(SERVERS / "sdk_client.py"), *command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_real_client_and_a_real_server(folder: Path, python: str) -> None:
    server = (python, str(SERVERS / "sdk_server.py"))
    proxy = (
        "-m",
        "tollkeeper",
        "mcp",
        "--principal",
        PRINCIPAL,
        "--server",
        "plain",
        "--budget",
        "acme",
        "--",
        *server,
    )
    direct, through = talked(python, folder, *server), talked(python, folder, sys.executable, *proxy)
    assert [tool["name"] for tool in direct["tools"]["tools"]] == ["add", "wipe"]
    assert [tool["name"] for tool in through["tools"]["tools"]] == ["add"]
    assert through["wipe"]["isError"] is True
    assert text_of({"result": through["wipe"]}).startswith("Denied (policy.no_permit)")
    assert "Denied (policy.no_permit)" in through["keys"]["raised"]
    refused = {"tools", "wipe", "keys"}
    assert {key: value for key, value in through.items() if key not in refused} == {
        key: value for key, value in direct.items() if key not in refused
    }
    assert through["many"][49]["structuredContent"] == {"result": 98}
    decided = [row["entry"] for row in entries(folder) if row["entry"]["kind"] == "decision"]
    assert [row["decision"] for row in decided].count("deny") == 2
    assert len(decided) == 55
