"""A gate for a module of tests: its files, itself open, and its administration.

The module says what the files hold, by its constants `CONFIG`, `POLICIES` and, where it has budgets, `BUDGETS`. One
that needs more than these has a `folder` of its own.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tollkeeper import Gate, GateAdmin


def written(folder: Path, config: str, policies: str, budgets: str | None = None) -> Path:
    """Writes a gate's files into a folder, which is returned."""
    (folder / "tollkeeper.toml").write_text(config)
    (folder / "p.cedar").write_text(policies)
    if budgets is not None:
        (folder / "budgets.toml").write_text(budgets)
    return folder


@pytest.fixture(name="folder")
def folder_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A gate's files."""
    module = request.module
    return written(tmp_path, module.CONFIG, module.POLICIES, getattr(module, "BUDGETS", None))


@pytest.fixture(name="gate")
def gate_fixture(folder: Path) -> Iterator[Gate]:
    """An open gate."""
    with Gate.open(folder / "tollkeeper.toml") as gate:
        yield gate


@pytest.fixture(name="admin")
def admin_fixture(folder: Path) -> GateAdmin:
    """Its administration."""
    return GateAdmin.open(folder / "tollkeeper.toml")
