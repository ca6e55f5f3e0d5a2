"""What has to hold before a changed configuration decides: it is whole, it loads, and the policy tests beside it pass.

A gate that reloads, the watcher of one and whoever administers ask the same here, so that none of them lets in what
another would refuse. Nothing is swapped here, and no gate's files are made or changed.
"""

import contextlib
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final, NamedTuple

from tollkeeper import _native, config
from tollkeeper.audit import AuditLog
from tollkeeper.budget import Ledger
from tollkeeper.errors import ConfigError, ErrorDetail, PolicyError
from tollkeeper.gate import gate_sources

__all__ = ["Ready", "read", "rehearsed"]

# Files that change as often as that while they are read are being written by a program that does not stop.
READS_MAX: Final = 5
# Enough failing cases to see what is wrong.
FAILURES_SHOWN_MAX: Final = 20


class Ready(NamedTuple):
    """A configuration that may decide."""

    settings: config.Config
    sources: dict[str, Any]
    """Its files as they were read once: what is loaded is what was tested."""


def read(path: Path) -> Ready:
    """Reads a configuration and runs the case files that it names.

    The files are read before and after: what is taken is one state of all of them, and the one that the cases ran on.

    Raises:
        ConfigError: The configuration cannot be used, or its files do not stop changing (`config.changing`).
        PolicyError: A policy cannot be used, or a case fails (`policy.tests`); ``errors`` has each with file and line.
        OSError: A file cannot be read.
    """
    settings = config.load(path)
    sources = gate_sources(settings)
    for _ in range(READS_MAX):
        _run_cases(settings)
        settings_again = config.load(path)
        again = gate_sources(settings_again)
        if again == sources and settings_again == settings:
            return Ready(settings, sources)
        settings, sources = settings_again, again
    raise ConfigError(f"{path}: its files change while they are read", "config.changing", "try again when they rest")


def _run_cases(settings: config.Config) -> None:
    if not settings.test_files:
        return
    from tollkeeper import cases  # noqa: PLC0415 - few gates that reload have cases

    reports = [cases.run(cases.read(file)) for file in settings.test_files]
    failures = [failure for report in reports for failure in report.failures]
    if not failures:
        return
    total = sum(report.cases for report in reports)
    details = [
        ErrorDetail(
            "policy.tests",
            f"{failure.case}: expected {failure.expected}, actual {failure.actual}",
            failure.file,
            failure.line,
        )
        for failure in failures[:FAILURES_SHOWN_MAX]
    ]
    first = details[0]
    message = f"{len(failures)} of {total} policy cases fail: {first.file}:{first.line}: {first.message}"
    raise PolicyError(message, "policy.tests", "tollkeeper policy test", details)


@contextlib.contextmanager
def rehearsed(
    settings: config.Config, ledger: Ledger | None, sources: dict[str, Any] | None = None
) -> Generator[_native.Gate]:
    """A gate as the configuration has it, for finding what is wrong: it makes and opens nothing that others use.

    Args:
        settings: The configuration.
        ledger: Used as the gate's.
        sources: Its files, if they were read before.

    Raises:
        The same as `Gate.open`, but for what concerns state and log.
    """
    sources = gate_sources(settings) if sources is None else sources
    with _scratch_log(settings) as log:
        gate = _native.Gate(sources, 1, lambda: None, ledger, log)
        try:
            yield gate
        finally:
            gate.close()


@contextlib.contextmanager
def _scratch_log(settings: config.Config) -> Generator[AuditLog | None]:
    """Policies that speak of records are refused where there is no log, so there is one, in a folder of its own."""
    if settings.audit is None:
        yield None
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        AuditLog.open(
            folder, origin=settings.audit_origin or "localhost", ring_bytes=512 << 10, segment_bytes=16 << 20
        ) as log,
    ):
        yield log
