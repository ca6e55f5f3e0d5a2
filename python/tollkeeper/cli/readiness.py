"""``tollkeeper readiness``: what enforcing would have done to the calls that a gate in shadow mode let through.

A verdict first, then would-denials by code, policy, tool and principal with decisions to look at, whether new kinds of
them are still being found, and what of the tools was never tried. It reads the log, and changes nothing.
"""

import argparse
import datetime as dt
import difflib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from tollkeeper import _native, config, document, reevaluate
from tollkeeper.cli import inputs, logs, plots, why
from tollkeeper.cli.terminal import (
    EXIT_NO,
    EXIT_OK,
    InputError,
    coloured,
    counted,
    out,
    out_json,
    progress,
    shown,
    table,
    warning,
)
from tollkeeper.observed import DAY_MS, NARROWED, UNLOGGED, WOULD_DENY, Breakdown, Row, Seen, Stretches, amount
from tollkeeper.rehearsal import Rehearsal, in_shadow, reasons, unknown

CALLS_DEFAULT: Final = 100
CALLS_MAX: Final = 1_000_000_000
ROWS_SHOWN_MAX: Final = 20
ROWS_WRITTEN_MAX: Final = 1_000
STRETCHES_SHOWN_MAX: Final = 14
LOOK_FIRST_MAX: Final = 3
MINUTE_MS: Final = 60_000
# What would-denials of budgets cannot show.
ONE_PROCESS: Final = (
    "in shadow mode each process counts by itself and from zero: enforcing, they pay together, and more is denied"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "source",
        metavar="DIR|FILE",
        nargs="?",
        type=Path,
        help=f"the folder of the logs, or a {config.FILE_NAME} that names it; default: as `audit show`",
    )
    parser.add_argument(
        "--since",
        metavar="TIME",
        type=logs.moment_argument,
        help="only calls since: RFC 3339, a date, or 15m, 2h, 3d ago",
    )
    parser.add_argument("--until", metavar="TIME", type=logs.moment_argument, help="only calls before then")
    parser.add_argument(
        "--calls",
        metavar="N",
        type=inputs.whole_number(CALLS_MAX, least=1),
        default=CALLS_DEFAULT,
        help=f"fewer calls are too few to be ready; default: {CALLS_DEFAULT}",
    )
    parser.add_argument(
        "--accept",
        metavar="POLICY|CODE",
        action="append",
        default=[],
        help="would-denials by this policy, or of this code, are as they should be",
    )
    parser.add_argument(
        "--earlier",
        action="store_true",
        help="calls count too that were decided by earlier policies than the last ones",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.epilog = "Exit code 0 if the gate is ready to enforce, 1 if not, 2 if the log cannot be used."


def run(arguments: argparse.Namespace) -> int:
    """Counts, and says whether the gate is ready."""
    found = logs.opened(_folder(arguments.source))
    rehearsal = _counted(found, arguments)
    bundle, remark = _bundle(found, rehearsal)
    _warn_unknown(arguments.accept, rehearsal, bundle)
    ready, verdict = _verdict(rehearsal, arguments.calls)
    if arguments.json:
        out_json(_document(found, rehearsal, bundle, ready=ready, verdict=verdict, remark=remark))
    else:
        out(f"{coloured('ready:', 'green') if ready else coloured('not ready:', 'red')} {shown(verdict)}")
        for line in _lines(found, rehearsal, bundle, remark):
            out(line)
    return found.exit_code(EXIT_OK if ready else EXIT_NO)


# --- reading ----------------------------------------------------------------------------------------------------------


def _folder(source: Path | None) -> Path | None:
    """The folder of the logs, where a configuration is named that names it."""
    if source is None or not source.is_file():
        return source
    read = document.decode(config.read_text(source, config.CONFIG_BYTES_MAX), str(source)).get("audit")
    if not isinstance(read, dict):
        raise InputError(f"{source}: it has no section [audit]: nothing was recorded", '[audit] dir = "audit"')
    named: object = read.get("dir", logs.DEFAULT_FOLDER)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - plain data
    if not isinstance(named, str):
        raise InputError(f"{source}: audit.dir: must be a text", 'dir = "audit"')
    return source.parent / named


def _counted(found: logs.Logs, arguments: argparse.Namespace) -> Rehearsal:
    last = _last(found, arguments)
    mode = "enforce" if last is not None and last.mode == "enforce" else "shadow"
    bundle = last.bundle if last is not None and isinstance(last.bundle, str) else None
    accepted = frozenset[str](arguments.accept)
    rehearsal = Rehearsal(bundle, mode, earlier=arguments.earlier, accepted=accepted)
    with progress(found.entries(), found.size, "entries") as entries:
        for entry in entries:
            if not _in_time(entry, arguments):
                continue
            if entry.head.kind in UNLOGGED:
                rehearsal.unlogged += amount(entry.members.get("count"))
            if entry.head.kind != "decision":
                continue
            if "oversize" in entry.members:
                # What was too long for the entry lies where its arguments do.
                recorded = found.recorded(entry)
                rehearsal.take(Seen.of_members(recorded.members), partial(_given, recorded))
            else:
                rehearsal.take(Seen.of_members(entry.members), partial(found.recorded, entry))
    return rehearsal


def _given(recorded: reevaluate.Recorded) -> reevaluate.Recorded:
    return recorded


def _last(found: logs.Logs, arguments: argparse.Namespace) -> Seen | None:
    """The newest decision that names its policies."""
    for entry in found.backwards():
        if arguments.since is not None and entry.time < arguments.since:
            return None
        if entry.head.kind == "decision" and _in_time(entry, arguments):
            seen = Seen.of_members(found.recorded(entry).members if "oversize" in entry.members else entry.members)
            if seen.bundle is not None and seen.mode in {"shadow", "enforce"}:
                return seen
    return None


def _in_time(entry: logs.Entry, arguments: argparse.Namespace) -> bool:
    return (arguments.since is None or entry.time >= arguments.since) and (
        arguments.until is None or entry.time < arguments.until
    )


def _bundle(found: logs.Logs, rehearsal: Rehearsal) -> tuple[reevaluate.Bundle | None, str | None]:
    """The policies and tools in force, or why they cannot be read."""
    if rehearsal.bundle is None:
        return None, "no call names the policies that decided it"
    try:
        return reevaluate.Bundle.read(found.bundle_folders, rehearsal.bundle), None
    except reevaluate.BundleError as failure:
        return None, f"tools and reasons are not known: {failure}"


def _warn_unknown(accepted: Sequence[str], rehearsal: Rehearsal, bundle: reevaluate.Bundle | None) -> None:
    """Says which accepted names nothing has: a misspelt one would accept nothing."""
    known = {*(code for code, _ in _native.decision_codes()), *rehearsal.by_policy.rows, *rehearsal.by_code.rows}
    rest = [one for one in accepted if one not in known]
    for one in unknown(bundle, rest) if bundle is not None else rest:
        close = difflib.get_close_matches(one, known, n=1)
        meant = f"; is `{close[0]}` meant?" if close else ""
        warning(f"--accept {one}: no policy and no code has this name{meant}")


# --- the verdict ------------------------------------------------------------------------------------------------------


def _verdict(rehearsal: Rehearsal, calls_least: int) -> tuple[bool, str]:
    calls = rehearsal.calls.calls
    who = "enforcing" if rehearsal.mode == "shadow" else "the gate enforces already; enforcing its policies in shadow"
    accepted = f" ({rehearsal.accepted:,} as accepted)" if rehearsal.accepted else ""
    if rehearsal.against:
        return False, f"{who} would have denied {rehearsal.against:,} of the last {counted(calls, 'call')}{accepted}"
    if calls < calls_least:
        few = "no calls" if not calls else f"only {counted(calls, 'call')}"
        return False, f"{few} by the policies in force now, and {calls_least:,} are asked for: --calls"
    already = "" if rehearsal.mode == "shadow" else "the gate enforces already; "
    other = "would-denials" if not rehearsal.accepted else "other would-denials"
    return True, f"{already}no {other} in the last {counted(calls, 'call')}{accepted}"


class Look(NamedTuple):
    """What to look at first."""

    what: str
    hint: str
    command: str


def _look_first(found: logs.Logs, rehearsal: Rehearsal) -> Iterator[Look]:
    for cause, row in rehearsal.first_causes()[:LOOK_FIRST_MAX]:
        what = f"{cause}, {counted(row.would_deny, 'call')}"
        yield Look(what, _remedy(cause.code, cause.policies), why.command("why", row.examples[-1], str(found.folder)))


def _remedy(code: str, policies: Sequence[str]) -> str:
    """What may be wrong, in a few words."""
    if code == "policy.forbidden" and NARROWED in policies:
        return "the run named its tools, and not this one"
    if code == "policy.no_permit":
        return "a permit is missing, or it should not be called"
    if code.startswith("budget."):
        return "the limit is too low, or it was meant to stop there"
    if code == "policy.error":
        return "the policy reads what is not there"
    if code.startswith("approval."):
        return "a person will have to approve each"
    return "the policy is too strict, or it was meant to stop this: --accept"


# --- what is printed --------------------------------------------------------------------------------------------------


def _lines(
    found: logs.Logs, rehearsal: Rehearsal, bundle: reevaluate.Bundle | None, remark: str | None
) -> Iterator[str]:
    if rehearsal.against:
        yield "look first at:"
        for look in _look_first(found, rehearsal):
            yield f"  {shown(look.what)}; {look.hint}"
            yield f"    {shown(look.command)}"
    yield ""
    yield from map(shown, _facts(rehearsal))
    if remark:
        yield f"# {shown(remark)}"
    yield from _breakdowns(rehearsal, bundle)
    yield from _trend(rehearsal)
    if bundle is not None:
        yield from _untried(rehearsal, bundle)


def _facts(rehearsal: Rehearsal) -> Iterator[str]:
    calls = rehearsal.calls
    when = f", {rehearsal.first} to {rehearsal.last}" if rehearsal.first else ""
    yield f"{counted(calls.calls, 'call')} in {rehearsal.mode} mode by the policies in force now{when}"
    too = _too(rehearsal, " in this mode")
    yield f"  {calls.allowed:,} allowed, {calls.would_deny:,} would be denied, {calls.denied:,} denied{too}"
    other = "enforce" if rehearsal.mode == "shadow" else "shadow"
    for row, what in ((rehearsal.other_policies, "by earlier policies"), (rehearsal.other_mode, f"in {other} mode")):
        if row.calls:
            yield (
                f"  apart: {counted(row.calls, 'call')} {what}, of which {row.denied:,} were denied "
                f"and {row.would_deny:,} would have been"
            )
    if rehearsal.mode == "shadow" and (
        rehearsal.paid or any(code.startswith("budget.") for code in rehearsal.by_code.rows)
    ):
        yield f"  budgets: {ONE_PROCESS}"
    if rehearsal.unlogged:
        yield f"  {counted(rehearsal.unlogged, 'call')} left no entry, because the log had no room"
    if rehearsal.unreadable:
        yield f"  {counted(rehearsal.unreadable, 'entry', 'entries')} that cannot be read"


def _too(rehearsal: Rehearsal, where: str = "") -> str:
    """Of denials: shadow mode lets through what policies and budgets say, and nothing that cannot be decided."""
    return f"{where} too" if rehearsal.mode == "shadow" else ""


def _breakdowns(rehearsal: Rehearsal, bundle: reevaluate.Bundle | None) -> Iterator[str]:
    for what, breakdown in (("code", rehearsal.by_code), ("policy", rehearsal.by_policy)):
        if rows := breakdown.most(_would):
            yield ""
            yield f"would-denials by {what}"
            yield from _by_cause(what, rows, bundle)
    for what, breakdown in (("tool", rehearsal.by_tool), ("principal", rehearsal.by_principal)):
        if rows := breakdown.most(_would):
            yield ""
            yield f"would-denials by {what}"
            cells = [(f"  {key}", f"{row.would_deny:,}", f"{row.calls:,}", _examples(row)) for key, row in rows]
            yield from _limited(table((f"  {what}", "calls", "of", "examples"), cells[:ROWS_SHOWN_MAX]), len(rows))
    if denied := rehearsal.denied_codes.most(_denied):
        yield ""
        yield f"denied in {rehearsal.mode} mode{_too(rehearsal)}, by code"
        codes = [(f"  {key}", f"{row.denied:,}", _examples(row)) for key, row in denied]
        yield from _limited(table(("  code", "calls", "examples"), codes[:ROWS_SHOWN_MAX]), len(denied))


def _by_cause(what: str, rows: list[tuple[str, Row]], bundle: reevaluate.Bundle | None) -> Iterator[str]:
    shown_rows = rows[:ROWS_SHOWN_MAX]
    ids = [key for key, _ in shown_rows]
    said = {} if bundle is None else reasons(bundle, ids)
    staying = set[str]() if bundle is None else in_shadow(bundle, ids)
    cells = [
        (f"  {key}", f"{row.would_deny:,}", _examples(row), _reason(key, said, staying)) for key, row in shown_rows
    ]
    yield from _limited(table((f"  {what}", "calls", "examples", "reason" if said else ""), cells), len(rows))


def _would(row: Row) -> int:
    return row.would_deny


def _denied(row: Row) -> int:
    return row.denied


def _examples(row: Row) -> str:
    return " ".join(row.examples)


def _reason(policy: str, said: dict[str, str], staying: set[str]) -> str:
    text = logs.cut(said.get(policy, ""))
    return f"{text} (stays in shadow until its @mode is taken away)".strip() if policy in staying else text


def _limited(lines: Iterable[str], total: int) -> Iterator[str]:
    yield from lines
    if total > ROWS_SHOWN_MAX:
        yield f"  and {total - ROWS_SHOWN_MAX:,} more: --json"


def _trend(rehearsal: Rehearsal) -> Iterator[str]:
    rows = list(_stretches(rehearsal.over_time))
    if not rehearsal.calls.would_deny or not rows:
        return
    yield ""
    yield "over time (UTC)"
    most = max(row["would_deny"] for row in rows)
    cells = [
        (f"  {row['shown']}", f"{row['calls']:,}", f"{row['would_deny']:,}", f"{row['new']:,}",
         plots.bar(row["would_deny"], 0, most))
        for row in rows
    ]  # fmt: skip
    yield from table(("  from", "calls", "would be denied", "new kinds", ""), cells)
    if rehearsal.newest_cause is not None:
        when, cause = rehearsal.newest_cause
        since = counted(rehearsal.since_new_cause, "call")
        yield f"  the last new kind was seen at {shown(when)}, {since} before the last: {shown(str(cause))}"


def _stretches(over_time: Stretches) -> Iterator[dict[str, Any]]:
    span = over_time.span(STRETCHES_SHOWN_MAX)
    if span is None:
        return
    for start, cell in zip(span.starts, over_time.over(span), strict=True):
        moment = dt.datetime.fromtimestamp(start / 1_000, dt.UTC)
        form = "%Y-%m-%d" if span.length_ms >= DAY_MS else "%m-%d %H:%M" if span.length_ms >= MINUTE_MS else "%H:%M:%S"
        yield {
            "from": moment.isoformat().replace("+00:00", "Z"),
            "seconds": span.length_ms // 1_000,
            "shown": moment.strftime(form),
            "calls": cell["calls"],
            "would_deny": cell[WOULD_DENY],
            "new": cell["new"],
        }


def _untried(rehearsal: Rehearsal, bundle: reevaluate.Bundle) -> Iterator[str]:
    yield ""
    never = rehearsal.never_called(bundle)
    yield f"tools never called: {shown(_names(never)) or 'none'}"
    missing, more = rehearsal.never_seen(bundle), rehearsal.undeclared(bundle)
    unread = {tool: f"{used.unread:,}" for tool, used in rehearsal.arguments.items() if used.unread}
    tools = list(dict.fromkeys(chain(missing, more, unread)))
    if tools:
        yield "arguments"
        heads = ("  tool", "declared, never seen", "seen, not declared", "calls not read")
        cells = [
            (f"  {logs.cut(tool)}", _names(missing.get(tool, [])), _names(more.get(tool, [])), unread.get(tool, "0"))
            for tool in tools
        ]
        yield from _limited(table(heads, cells[:ROWS_SHOWN_MAX]), len(tools))
    for reason, count in rehearsal.skips.most_common(ROWS_SHOWN_MAX):
        yield f"  arguments of {counted(count, 'call')} could not be read: {shown(reason)}"


def _names(found: Sequence[str]) -> str:
    more = f" and {len(found) - ROWS_SHOWN_MAX:,} more" if len(found) > ROWS_SHOWN_MAX else ""
    return ", ".join(logs.cut(one) for one in found[:ROWS_SHOWN_MAX]) + more


# --- JSON -------------------------------------------------------------------------------------------------------------


def _document(  # noqa: PLR0913 - all there is to say
    found: logs.Logs,
    rehearsal: Rehearsal,
    bundle: reevaluate.Bundle | None,
    *,
    ready: bool,
    verdict: str,
    remark: str | None,
) -> dict[str, Any]:
    ids = [policy for policy, _ in rehearsal.by_policy.most(_would)]
    newest = rehearsal.newest_cause
    return {
        "ready": ready,
        "verdict": verdict,
        "look_first": [look._asdict() for look in _look_first(found, rehearsal)],
        "mode": rehearsal.mode,
        "bundle": rehearsal.bundle,
        "remark": remark,
        "first": rehearsal.first,
        "last": rehearsal.last,
        **_row(rehearsal.calls),
        "accepted": rehearsal.accepted,
        "earlier_policies": _row(rehearsal.other_policies),
        "other_mode": _row(rehearsal.other_mode),
        "unlogged": rehearsal.unlogged,
        "unreadable": rehearsal.unreadable,
        "by_code": _table(rehearsal.by_code),
        "by_policy": _table(rehearsal.by_policy),
        "by_tool": _table(rehearsal.by_tool),
        "by_principal": _table(rehearsal.by_principal),
        "denied_by_code": {key: row.denied for key, row in rehearsal.denied_codes.most(_denied)},
        "reasons": {} if bundle is None else reasons(bundle, ids),
        "policies_in_shadow": [] if bundle is None else sorted(in_shadow(bundle, ids)),
        "causes": [
            {"tool": cause.tool, "code": cause.code, "policies": list(cause.policies), "calls": row.would_deny,
             "examples": list(row.examples)}
            for cause, row in rehearsal.first_causes()[:ROWS_WRITTEN_MAX]
        ],
        "newest_cause": None if newest is None else {"time": newest[0], "cause": str(newest[1])},
        "calls_since_newest_cause": None if newest is None else rehearsal.since_new_cause,
        "over_time": list(_stretches(rehearsal.over_time)),
        "tools_never_called": None if bundle is None else rehearsal.never_called(bundle),
        "arguments_never_seen": None if bundle is None else rehearsal.never_seen(bundle),
        "arguments_not_declared": None if bundle is None else rehearsal.undeclared(bundle),
        "arguments_not_read": dict(rehearsal.skips.most_common()),
    }  # fmt: skip


def _row(row: Row) -> dict[str, int]:
    return {"calls": row.calls, "allowed": row.allowed, "denied": row.denied, "would_deny": row.would_deny}


def _table(breakdown: Breakdown) -> dict[str, dict[str, Any]]:
    return {
        key: {"would_deny": row.would_deny, "examples": list(row.examples)}
        for key, row in breakdown.most(_would)[:ROWS_WRITTEN_MAX]
    }
