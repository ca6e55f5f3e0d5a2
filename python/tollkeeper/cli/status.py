"""``tollkeeper status``: how the gates of a configuration are doing, while they run. It reads only.

It says what can be seen from outside their processes: what they share, their ledger and their logs.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from tollkeeper.admin import GateAdmin
from tollkeeper.cli import administration, gates, inputs, ledgers
from tollkeeper.cli.terminal import EXIT_OK, coloured, counted, one_line, out, out_json, shown, table
from tollkeeper.config import FILE_NAME, find


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    gates.add_file(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Prints how the gates are doing."""
    from pathlib import Path  # noqa: PLC0415 - only for the default

    file = arguments.file or find() or Path(FILE_NAME)
    if file.is_dir():
        file /= FILE_NAME
    inputs.load_config(file, "name the configuration: tollkeeper status FILE")
    status = GateAdmin.open(file).status()
    if arguments.json:
        out_json(status)
        return EXIT_OK
    parts = (_configuration(status), _state(status["state"]), _budgets(status["budgets"]), _logs(status["logs"]))
    for part in (*parts, _tier(status)):
        for line in part:
            out(line)
    return EXIT_OK


def _tier(status: dict[str, Any]) -> Iterator[str]:
    tier = status["tier"]
    yield ""
    yield f"tier          {tier['name']}: it stands against {tier['protects_against']}, not against"
    for what in tier["not_against"]:
        yield f"              - {what}"


def _configuration(status: dict[str, Any]) -> Iterator[str]:
    yield f"configuration {shown(status['config'])}, mode {status['mode']}" + (", watched" if status["watch"] else "")
    keys = ", ".join(shown(key) for key in status["admin_keys"])
    yield f"admin keys    {keys or 'none: administration and approvals need no key'}"


def _fault(part: dict[str, Any] | None) -> str | None:
    if part is None:
        return "not configured"
    if "error" in part:
        return coloured(f"cannot be read: {shown(one_line(part['error']))}", "red")
    return shown(part["missing"]) if "missing" in part else None


def _state(state: dict[str, Any]) -> Iterator[str]:
    if (fault := _fault(state)) is not None:
        yield f"state         {fault}"
        return
    yield f"state         {shown(state['dir'])}"
    yield ""
    yield from _gates(state)
    yield ""
    denials = ", ".join(f"{code} {count:,}" for code, count in state["denials"].items())
    yield f"decisions     {state['decisions']:,}; denied: {denials or 'none'}"
    yield from _revocations(state)
    pending = state["approvals"].get("pending", 0)
    yield f"approvals     {pending:,} pending" + (": tollkeeper approvals" if pending else "")
    labels = ", ".join(shown(label) for label in state["labels"])
    yield f"labels        {labels or 'none'}"
    if overflow := state["labels_overflow"]:
        names = ", ".join(shown(label) for label in overflow)
        yield coloured(f"              the table of sessions is full: every session without labels has {names}", "red")


def _gates(state: dict[str, Any]) -> Iterator[str]:
    rows = state["gates"]
    if not rows:
        yield "gates         none is running"
    else:
        heads = ("process", "", "for", "mode", "bundle", "generation", "decisions", "timed", "p50", "p99", "p99.9")
        yield from table(heads, (_gate(row) for row in rows))
        for row in rows:
            if row["reload_error"]:
                reason = shown(one_line(row["reload_error"]))
                yield coloured(f"process {row['pid']} goes on with what it had: {reason}", "red")
    if gone := state["gone"]["decisions"]:
        yield f"processes that are gone have made {counted(gone, 'decision')}"


def _gate(row: dict[str, Any]) -> list[str]:
    behind = row["alive"] and row["generation"] != row["generation_current"]
    return [
        str(row["pid"]),
        "alive" if row["alive"] else "dead",
        administration.duration(row["uptime_seconds"]),
        row["mode"],
        row["bundle"][:12],
        f"{row['generation']} of {row['generation_current']}" if behind else str(row["generation"]),
        f"{row['decisions']:,}",
        f"{row['timed']:,}",
        *(_ns(row[name]) if row["timed"] else "-" for name in ("p50_ns", "p99_ns", "p999_ns")),
    ]


def _ns(value: int) -> str:
    for unit, length in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if value >= length:
            return f"{value / length:.1f} {unit}"
    return f"{value} ns"


def _revocations(state: dict[str, Any]) -> Iterator[str]:
    revoked = state["revocations"]
    yield f"revocations   {len(revoked):,} in force, generation {state['generation']}"
    for one in revoked:
        what = one["kind"] if one["kind"] == "everything" else f"{one['kind']} {one['name']}"
        why = f": {one['reason']}" if one["reason"] else ""
        line = shown(one_line(f"  {what}{why} (by {one['by'] or '-'}, {ledgers.moment(one['at_ms'])})"))
        yield coloured(line, "red")


def _budgets(budgets: dict[str, Any] | None) -> Iterator[str]:
    yield ""
    if (fault := _fault(budgets)) is not None or budgets is None:
        yield f"budgets       {fault}"
        return
    yield f"budgets       {counted(budgets['holds'], 'live hold')}"
    heads = ("  budget", "unit", "window", "used", "held", "available", "limit")
    rows: list[list[str]] = []
    for limit in budgets["limits"]:
        amounts = (ledgers.amount(limit["unit"], limit[name]) for name in ("used", "held", "available", "limit"))
        rows.append([f"  {limit['path']}", limit["unit"], limit["window"], *amounts])
    yield from table(heads, rows)


def _logs(logs: dict[str, Any] | None) -> Iterator[str]:
    yield ""
    if (fault := _fault(logs)) is not None or logs is None:
        yield f"audit         {fault if logs is not None else 'nothing is recorded'}"
        return
    yield f"audit         {shown(logs['dir'])}"
    heads = ("  log", "owner", "entries", "in the ring", "oldest unsynced", "writer")
    rows: list[list[str]] = []
    for log in logs["logs"]:
        oldest = "-" if log["oldest_unsynced_ms"] is None else f"{log['oldest_unsynced_ms']:,} ms"
        ring = "-"
        if log["ring_records"] is not None:
            full = 100 * log["ring_used_bytes"] / log["ring_bytes"]
            ring = f"{counted(log['ring_records'], 'record')}, {full:.1f} %"
        rows.append([f"  {log['log']}", log["owner"] or "nobody", f"{log['entries']:,}", ring, oldest, log["writer"]])
    yield from table(heads, rows)
