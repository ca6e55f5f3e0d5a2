"""Lets the tests of this folder import `plain`, and names the data that is not part of the project."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def traces(root: Path) -> list[Path]:
    """The two published traces. TOLLKEEPER_AZURE_TRACES names their folder."""
    folder = Path(os.getenv("TOLLKEEPER_AZURE_TRACES") or root.parent / "shared" / "data" / "azure-llm-2023")
    files = [folder / "code.csv", folder / "conv.csv"]
    if not all(file.is_file() for file in files):
        pytest.skip(f"no traces at {folder}; TOLLKEEPER_AZURE_TRACES names their folder")
    return files
