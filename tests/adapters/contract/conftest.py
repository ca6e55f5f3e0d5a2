"""The drivers, a gate with everything, and the book in which the suite's results are kept.

Hosts live in environments of their own (`make test-hosts`). A host that is absent is skipped with the reason; where
`TOLLKEEPER_HOSTS` names it, its absence is a failure. `TOLLKEEPER_KEEP_GUARANTEES=1` writes what is found into the
package.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from book import Book  # noqa: E402 - found by the path above

from tollkeeper import Gate  # noqa: E402 - with the rest
from tollkeeper._native import AuditReader  # noqa: E402 - with the rest
from tollkeeper.adapters._hosts import TABLE  # noqa: E402 - with the rest

POLICIES = """
@id("tools") permit(principal, action in Action::"call_tool", resource);
@id("models") permit(principal, action == Action::"call_model", resource);
@id("secrets") @reason("Secrets are not for agents.") forbid(principal, action == Action::"look", resource)
when { context.input has q && context.input.q like "*secret*" };
@id("never") @reason("Nobody wipes anything.") forbid(principal, action == Action::"wipe", resource);
"""
CONFIG = """
[policy]
files = ["p.cedar"]
[audit]
origin = "example.com/hosts"
[budget]
file = "budgets.toml"
[tools.scarce]
resource = 'Mcp::"vault"'
cost = { in_flight = 0, requests = 1000 }
"""
BUDGETS = """
[budget."acme"]
limits = [
    { unit = "tokens", window = "1d", limit = 100000 },
    { unit = "requests", window = "1d", limit = 1000000 },
]
[budget."acme/small"]
limits = [{ unit = "requests", window = "1d", limit = 3500 }]
"""


@pytest.fixture(scope="session")
def book() -> Iterator[Book]:
    """What the cases find, compared with what the package says at the end."""
    book = Book()
    yield book
    if "TOLLKEEPER_KEEP_GUARANTEES" in os.environ:
        book.keep()


@pytest.fixture(scope="module", params=list(TABLE))
def driver(request: pytest.FixtureRequest) -> Any:
    """Each host's driver."""
    try:
        module = importlib.import_module(f"drivers.{request.param}")
    except ImportError as missing:
        if request.param in os.environ.get("TOLLKEEPER_HOSTS", ""):
            raise
        pytest.skip(f"no {request.param} ({missing.name or 'its package'}): run `make test-hosts`")
    return module.Driver()


@pytest.fixture(name="installed", params=["hooks", "installed"])
def installed_fixture(request: pytest.FixtureRequest) -> bool:
    """With the hooks alone, and with the choke point gated too."""
    return bool(request.param == "installed")


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    """The files of a gate."""
    (tmp_path / "p.cedar").write_text(POLICIES)
    (tmp_path / "budgets.toml").write_text(BUDGETS)
    (tmp_path / "tollkeeper.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture(name="gate")
def gate_fixture(folder: Path) -> Iterator[Gate]:
    """An open gate."""
    with Gate.open(folder / "tollkeeper.toml") as gate:
        yield gate


def entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The entries of a closed gate's log."""
    reader = AuditReader(folder / "audit" / "0")
    return [entry for _, raw in reader.entries() if (entry := json.loads(raw))["kind"] == kind]
