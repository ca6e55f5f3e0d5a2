"""How the gates of a configuration are doing, as plain data for ``tollkeeper status``: read from files while they run.

It makes no file, changes none and takes no lock that a check would wait for. What cannot be read is an ``error`` in its
place, so that whoever looks in trouble sees the rest.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tollkeeper import _native, owners, unfinished
from tollkeeper.config import Config
from tollkeeper.errors import TollkeeperError

__all__ = ["TIER", "read"]

TIER: Final = {
    "name": "library",
    "protects_against": "what a model says and asks for",
    "not_against": [
        "code in the process of the agent, which can reach the gate's key, log, ledger and state",
        "whoever can write to the state directory as the same user, who can lift revocations",
        "the operator, who can write the log anew, unless a witness or somebody else holds a checkpoint",
    ],
}
# A writer is behind when its oldest record is older than so many of its intervals, and than so much.
BEHIND_INTERVALS: Final = 20
BEHIND_MS: Final = 1_000


def read(settings: Config, table: Callable[[], _native.Control | None]) -> dict[str, Any]:
    """See `GateAdmin.status`.

    Args:
        settings: The configuration.
        table: Opens what the gates share, if it is there.
    """
    now_ms = time.time_ns() // 1_000_000
    state: dict[str, Any] = {
        "tier": TIER,
        "config": os.fspath(settings.file),
        "mode": settings.gate.mode,
        "watch": settings.gate.watch,
        "admin_keys": ["+".join(key.split("+")[:2]) for key in settings.admin_keys],
    }
    state["state"] = _guarded(lambda: _state(settings, table, now_ms))
    state["budgets"] = None if settings.budget_file is None else _guarded(lambda: _budgets(settings))
    state["logs"] = None if settings.audit_dir is None else _guarded(lambda: _logs(settings, now_ms))
    return state


def _guarded(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return look()
    except TollkeeperError as error:
        return {"error": str(error), "code": error.code}
    except OSError as error:
        return {"error": f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")}


def _state(settings: Config, table: Callable[[], _native.Control | None], now_ms: int) -> dict[str, Any]:
    if settings.state_dir is None:
        return {
            "missing": "no [state]: each gate keeps its state in the memory of its process, and cannot be seen here"
        }
    control = table()
    if control is None:
        return {
            "dir": os.fspath(settings.state_dir),
            "missing": f"{settings.state_dir}: no gate has made its state yet",
        }
    generation, revoked = control.generation, control.revocations()
    gates, gone = control.gates(), control.retired()
    codes: Counter[str] = Counter()
    for row in (*gates, gone):
        codes.update(row["codes"])
    states = Counter(row["state"] for row in control.approvals(now_ms))
    reports = _reports(settings.state_dir)
    return {
        "dir": os.fspath(settings.state_dir),
        "generation": generation,
        "revocations": revoked,
        "gates": [_gate(row, generation, reports, now_ms) for row in gates],
        "gone": {"decisions": sum(gone["codes"].values()), "codes": gone["codes"]},
        "decisions": sum(codes.values()),
        "denials": {code: count for code, count in codes.most_common() if code != "allow"},
        "approvals": dict(states),
        "labels": control.labels(),
        "labels_overflow": control.overflow(),
    }


def _reports(state_dir: Path) -> dict[int, str | None]:
    from tollkeeper.admin import watchers  # noqa: PLC0415 - it loads this one

    return {report["pid"]: report.get("error") for report in watchers(state_dir)}


def _gate(row: dict[str, Any], generation: int, reports: dict[int, str | None], now_ms: int) -> dict[str, Any]:
    return {
        "pid": row["pid"],
        "alive": row["alive"],
        "uptime_seconds": max(0, now_ms - row["started_ms"]) // 1000,
        "mode": "shadow" if row["shadow"] else "enforce",
        "bundle": row["bundle"].hex(),
        "generation": row["generation"],
        # A gate notes a change when it next decides, or within a second where it keeps a log; each check looks itself.
        "generation_current": generation,
        "decisions": sum(row["codes"].values()),
        "codes": row["codes"],
        "timed": row["timed"],
        "p50_ns": row["p50_ns"],
        "p99_ns": row["p99_ns"],
        "p999_ns": row["p999_ns"],
        "max_ns": row["max_ns"],
        "reload_error": reports.get(row["pid"]) if row["alive"] else None,
    }


def _budgets(settings: Config) -> dict[str, Any]:
    from tollkeeper import budgets  # noqa: PLC0415 - not every configuration has budgets
    from tollkeeper.budget import Ledger  # noqa: PLC0415 - as above

    file, state = settings.budget_file, settings.budget_state
    if file is None or state is None:
        return {
            "missing": "no [budget] state: the ledger is in the memory of the gate's process, and cannot be seen here"
        }
    if not state.is_file():
        return {"missing": f"{state}: no gate has opened the ledger yet"}
    with Ledger({**budgets.spec(file), "keep_limits": True}, os.fsdecode(state)) as ledger:
        held = ledger.holds()
        limits: list[dict[str, Any]] = []
        for path in ledger.paths:
            for (unit, window), usage in sorted(ledger.usage(path).items()):
                limits.append(
                    {
                        "path": path,
                        "unit": unit,
                        "window": window,
                        "limit": usage.limit,
                        "used": usage.used,
                        "held": usage.held,
                        "available": usage.available,
                    }
                )
        return {"state": os.fspath(state), "holds": len(held), "limits": limits}


def _logs(settings: Config, now_ms: int) -> dict[str, Any]:
    folder, audit = settings.audit_dir, settings.audit
    if folder is None or audit is None:
        return {"missing": "nothing is recorded"}
    if not folder.is_dir():
        return {"dir": os.fspath(folder), "missing": f"{folder}: no gate has written a log yet"}
    newest: dict[Any, dict[str, Any]] = {}
    for log in _native.audit_logs(folder):
        if log["slot"] not in newest or log["epoch"] > newest[log["slot"]]["epoch"]:
            newest[log["slot"]] = log
    found: list[dict[str, Any]] = []
    for log in newest.values():
        path = Path(log["path"])
        ring = unfinished.ring_state(path)
        oldest_ms = None if ring is None or ring.oldest_ms is None else max(0, now_ms - ring.oldest_ms)
        owner = owners.owner(path)
        found.append(
            {
                "log": log["slot"] or 0,
                "owner": owner,
                "entries": max(log["size"], log["wal_size"]),
                "signed": log["size"],
                "ring_records": None if ring is None else ring.records,
                "ring_used_bytes": None if ring is None else ring.used_bytes,
                "ring_bytes": None if ring is None else ring.bytes,
                "oldest_unsynced_ms": oldest_ms,
                "writer": _writer(owner, oldest_ms, audit.interval_ms),
            }
        )
    return {"dir": os.fspath(folder), "logs": sorted(found, key=lambda log: log["log"])}


def _writer(owner: str | None, oldest_ms: int | None, interval_ms: int) -> str:
    if owner is None:
        return "none" if oldest_ms is None else "gone, with records that the next opening recovers"
    if oldest_ms is not None and oldest_ms > max(BEHIND_MS, BEHIND_INTERVALS * interval_ms):
        return "behind"
    return "keeps up"
