"""Lets the tests of this folder import the model, loads the auditors' file by itself, and names the data they need."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def auditor_file(root: Path) -> Path:
    """The file that auditors get."""
    return root / "python" / "tollkeeper" / "verify_log.py"


@pytest.fixture(scope="session")
def auditor(auditor_file: Path) -> ModuleType:
    """Loaded from its path and under a name of its own: it has to work without the package."""
    pytest.importorskip("cryptography")
    spec = importlib.util.spec_from_file_location("verify_log_alone", auditor_file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tlog_data(root: Path) -> Path:
    """Published vectors, and a log that Tessera made. TOLLKEEPER_TLOG_DATA names their folder."""
    folder = Path(os.getenv("TOLLKEEPER_TLOG_DATA") or root.parent / "shared" / "data" / "tlog")
    if not (folder / "merkle").is_dir():
        pytest.skip(f"no vectors at {folder}; TOLLKEEPER_TLOG_DATA names their folder")
    return folder


@pytest.fixture
def make_log() -> Callable[[Path, int], None]:
    """Has the real writer make a log of some entries."""
    tollkeeper = pytest.importorskip("tollkeeper")
    if not hasattr(tollkeeper, "AuditLog"):
        pytest.skip("this build has no AuditLog")

    def make(folder: Path, count: int) -> None:
        log = tollkeeper.AuditLog.open(folder, origin="example.com/gate")
        for number in range(count):
            log.append({"number": number, "text": f"note {number}", "nested": json.loads('{"a":[1,null,"é"]}')})
            if number % 100 == 99:
                log.flush()
        log.flush()
        log.close()

    return make
