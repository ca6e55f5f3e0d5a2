"""Fixtures of the MCP proxy's tests; what they share otherwise is in `proxied.py`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from proxied import write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration in which the plain server's tools are allowed but for some."""
    return write_folder(tmp_path)
