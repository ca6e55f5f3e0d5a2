"""What the type checkers see of the audit log. Checked by mypy and basedpyright, never run."""

from pathlib import Path
from typing import Any, assert_type

from tollkeeper import AuditError, AuditLog

with AuditLog.open(Path("audit"), origin="example.com/gate", key=None, exported=True) as log:
    assert_type(log, AuditLog)
    assert_type(log.append({"tool": "search", "arguments": [1, None]}), int)
    assert_type(log.append({}, private=b"secret", kind="run", timeout=0.5), int)
    assert_type(log.flush(), int)
    assert_type(log.checkpoint(timeout=1), str)
    assert_type(log.health(), dict[str, Any])
    assert_type(log.origin, str)
    assert_type(log.verifier_key, str)
    assert_type(log.folder, Path)
    assert_type(log.size, int)
    assert_type(log.durable_size, int)
    assert_type(log.closed, bool)
    log.wait(1, "checkpointed", timeout=2.0)
    log.erase(0)
    log.rotate()


async def wait(on: AuditLog) -> None:
    """The one coroutine."""
    await on.durable(1, "sync")


def handle(error: AuditError) -> str:
    """An audit error is a value error with a code."""
    value: ValueError = error
    assert_type(error.code, str)
    return str(value)


AuditLog.open("audit")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
log.append([1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
log.append({1: 2})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
