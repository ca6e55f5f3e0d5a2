"""The soak, for some seconds: that it runs, and that nothing it looks for is wrong. `make soak` runs it for long."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

SECONDS = float(os.environ.get("SOAK_SECONDS", "8"))


@pytest.fixture
def soak(root: Path) -> ModuleType:
    """The program, as a module."""
    specification = importlib.util.spec_from_file_location("soak", root / "tests" / "gate" / "soak.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Dataclasses look their module up.
    sys.modules["soak"] = module
    specification.loader.exec_module(module)
    return module


@pytest.mark.timeout(300 + SECONDS)
def test_some_seconds_of_everything_at_once(soak: ModuleType, tmp_path: Path) -> None:
    verdict = soak.soak(tmp_path, SECONDS, epoch_seconds=3.0)
    assert verdict.faults == []
    assert verdict.decisions > 1000
    assert verdict.epochs > soak.WORKERS
    assert verdict.revocations > 0
    assert verdict.approvals > 0
    assert {"allow", "policy.forbidden", "policy.no_permit", "input.unknown_tool"} <= set(verdict.codes)
    assert {"approval.required", "principal.revoked"} <= set(verdict.codes)


def test_the_verdict_notices_memory_that_grows(soak: ModuleType) -> None:
    def judged(**grow: int) -> list[str]:
        verdict = soak.Verdict()
        rows = [
            {"rss_kib": 30_000, "descriptors": 20, "threads": 12}
            | {name: 20_000 + step * each for name, each in grow.items()}
            for step in range(100)
        ]
        soak.flat(verdict, 0, rows)
        return list(verdict.faults)

    assert judged() == []
    assert judged(rss_kib=20) == []
    assert "memory grew" in judged(rss_kib=200)[0]
    assert "descriptors grew" in judged(descriptors=1)[0]
    assert "threads grew" in judged(threads=1)[0]
