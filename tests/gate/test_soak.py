"""The soak, for some seconds: that it runs, and that nothing it looks for is wrong. `make soak` runs it for long."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SECONDS = 8.0


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


def judged(soak: ModuleType, samples: int, decisions_each: int, **grow: float) -> list[str]:
    """What is said of a process whose samples grow by so much each."""
    verdict = soak.Verdict()
    rows = [
        {"rss_kib": 30_000, "heap_kib": 13_000, "objects": 130_000, "descriptors": 20, "threads": 12}
        | {"decisions": step * decisions_each}
        | {name: 20_000 + int(step * each) for name, each in grow.items()}
        for step in range(samples)
    ]
    soak.flat(verdict, 0, rows)
    return list(verdict.faults)


def test_the_verdict_notices_what_grows(soak: ModuleType) -> None:
    assert judged(soak, 100, 10_000) == []
    assert judged(soak, 100, 10_000, rss_kib=200, heap_kib=50, objects=500) == []
    assert "rss_kib grew" in judged(soak, 100, 10_000, rss_kib=600)[0]
    assert "heap_kib grew" in judged(soak, 100, 10_000, heap_kib=200)[0]
    assert "descriptors grew" in judged(soak, 100, 10_000, descriptors=1)[0]
    assert "threads grew" in judged(soak, 100, 10_000, threads=1)[0]


def test_one_object_for_each_check_is_too_much_in_a_run_of_seconds(soak: ModuleType) -> None:
    # Eight samples of a machine that is busy with other things.
    assert judged(soak, 8, 3_000, objects=300) == []
    assert "objects grew" in judged(soak, 8, 3_000, objects=3_000)[0]
    # Ten minutes of an idle one: a leak of 48 bytes for each check.
    assert "heap_kib grew" in judged(soak, 600, 14_000, heap_kib=14_000 * 48 / 1024)[0]
