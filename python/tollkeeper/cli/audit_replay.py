"""``tollkeeper audit replay``: decides recorded actions again, by the recorded policies or by others, and compares.

By the recorded policies it shows that decisions follow from them; by others, what those would change. Budgets,
approvals and the state of the process are not in the log: they are left out, and what is left out is counted.
"""

import argparse
import datetime as dt
import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tollkeeper import config, gate, reevaluate
from tollkeeper.cli import inputs, logs, plots
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
)

DIFFERENCES_SHOWN_MAX: Final = 50
DIFFERENCES_WRITTEN_MAX: Final = 1_000
MOMENTS_SHOWN_MAX: Final = 60
# Lengths of a moment that people read well, in milliseconds.
MOMENTS_MS: Final = tuple(1_000 * n for n in (1, 5, 15, 60, 300, 900, 3_600, 21_600, 86_400, 604_800, 2_592_000))
MINUTE_MS: Final = 60_000
DAY_MS: Final = 86_400_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    logs.add_folder(parser)
    logs.add_filters(parser)
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--policies",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="decide by these Cedar files, or folders of them, with the recorded tools and entities",
    )
    other.add_argument("--config", metavar="FILE", type=Path, help="decide by all that this configuration names")
    parser.add_argument("--schema", metavar="FILE", type=Path, help="Cedar schema of --policies; default: as recorded")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--html", metavar="OUT.html", type=Path, help="write a page with the differences and a plot")
    parser.epilog = "Exit code 0 if every action came out the same, 1 if one did not."


def run(arguments: argparse.Namespace) -> int:
    """Decides anew and compares."""
    if arguments.schema is not None and arguments.policies is None:
        raise InputError("--schema needs --policies")
    found = logs.opened(arguments.folder)
    fits = logs.filters(arguments)
    replay = reevaluate.Replay(found.bundle_folders, _other(arguments))
    with progress(found.entries(), found.size, "entries") as entries:
        for entry in entries:
            if entry.head.kind == "run":
                # What the user asked for is its payload, which is read only for what did not fit into the entry.
                spilled = "oversize" in entry.members
                replay.begin(found.recorded(entry).members if spilled else entry.members)
            elif entry.head.kind == "decision" and fits(entry):
                replay.take(found.recorded(entry))
    result = replay.result
    if arguments.html is not None:
        arguments.html.write_text(_page(arguments, result), encoding="utf-8")
    if arguments.json:
        out_json(_document(arguments, result))
    else:
        _print(arguments, result)
    return found.exit_code(EXIT_NO if result.different else EXIT_OK)


def _other(arguments: argparse.Namespace) -> Callable[[reevaluate.Bundle], reevaluate.Bundle] | None:
    """What to decide by instead of the recorded bundle; `None` for that itself."""
    if arguments.config is not None:
        settings = inputs.load_config(arguments.config)
        named = reevaluate.Bundle("", gate.gate_sources(settings))
        # At once, in case the log holds nothing to decide: a fault in it is bad input.
        named.gate()
        return lambda _: named
    if arguments.policies is None:
        return None
    files = inputs.cedar_files(arguments.policies)
    policies = [(str(file), config.read_text(file)) for file in files]
    schema = None if arguments.schema is None else (str(arguments.schema), config.read_text(arguments.schema))
    return lambda bundle: bundle.with_policies(policies, schema)


# --- what is printed --------------------------------------------------------------------------------------------------


def _is_other(arguments: argparse.Namespace) -> bool:
    return arguments.config is not None or arguments.policies is not None


def _by(arguments: argparse.Namespace) -> str:
    if arguments.config is not None:
        return f"by {arguments.config}"
    if arguments.policies is not None:
        return f"by {', '.join(map(str, arguments.policies))}"
    return "by the recorded policies"


def _left_out(arguments: argparse.Namespace) -> str:
    what = "budgets are" if _is_other(arguments) else "budgets and approvals are"
    return f"{what} not in the log: what they refused counts as what policies had said of it"


def _sorted(result: reevaluate.Result) -> list[reevaluate.Difference]:
    return sorted(result.differences.values(), key=lambda one: (-one.count, one.action, str(one.before)))


def _print(arguments: argparse.Namespace, result: reevaluate.Result) -> None:
    total = result.same + result.different + result.skipped.total()
    out(f"{counted(total, 'recorded decision')}, decided again {shown(_by(arguments))}")
    out(f"  {result.same:,} the same")
    different = f"  {result.different:,} different"
    out(coloured(different, "red") if result.different else different)
    if result.skipped:
        out(f"  {result.skipped.total():,} skipped")
        for reason, count in result.skipped.most_common():
            out(f"    {count:,}: {shown(reason)}")
    out(f"# {_left_out(arguments)}")
    if result.differences:
        out()
        for line in table(_heads(arguments), _rows(_sorted(result)[:DIFFERENCES_SHOWN_MAX])):
            out(line)
    if len(result.differences) > DIFFERENCES_SHOWN_MAX:
        out(f"and {len(result.differences) - DIFFERENCES_SHOWN_MAX:,} more kinds: --json")
    if arguments.html is not None:
        out()
        out(f"wrote {shown(str(arguments.html))}")


def _heads(arguments: argparse.Namespace) -> tuple[str, ...]:
    return ("action", "recorded", "now" if _is_other(arguments) else "decided again", "count", "entry", "example")


def _rows(differences: Sequence[reevaluate.Difference]) -> Iterator[tuple[str, ...]]:
    for one in differences:
        texts = [f"{decided}{_deciders(decided)}" for decided in (one.before, one.after)]
        yield (one.action, *texts, f"{one.count:,}", one.place, one.example)


def _deciders(decided: reevaluate.Decided) -> str:
    return f" by {', '.join(sorted(decided.policies))}" if decided.policies else ""


def _document(arguments: argparse.Namespace, result: reevaluate.Result) -> dict[str, Any]:
    return {
        "decided": _by(arguments),
        "left_out": _left_out(arguments),
        "same": result.same,
        "different": result.different,
        "skipped": dict(result.skipped.most_common()),
        "differences": [
            {
                "action": one.action,
                "before": _plain(one.before),
                "after": _plain(one.after),
                "count": one.count,
                "example": {"id": one.example, "entry": one.place},
            }
            for one in _sorted(result)
        ],
    }


def _plain(decided: reevaluate.Decided) -> dict[str, Any]:
    policies = {} if decided.policies is None else {"policies": sorted(decided.policies)}
    return {"code": decided.code, "would_deny": decided.would_deny, **policies}


# --- the page ---------------------------------------------------------------------------------------------------------

STYLE: Final = """
body { font: 15px/1.5 sans-serif; color: #2e3436; max-width: 960px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { text-align: left; padding: .3em .8em; border-bottom: 1px solid #d3d7cf }
td.number { text-align: right }
svg { max-width: 100%; height: auto }
"""


def _page(arguments: argparse.Namespace, result: reevaluate.Result) -> str:
    """A page that needs nothing from elsewhere."""
    decided = result.same + result.different
    title = f"{result.different:,} of {counted(decided, 'decision')} would be different"
    if not _is_other(arguments):
        title = f"{result.same:,} of {counted(decided, 'decision')} follow from their policies"
    moments = list(_moments(result))
    before = [plots.Row(label, one.allowed_before, one.denied_before, 0, None) for label, one in moments]
    after = [plots.Row(label, one.allowed_after, one.denied_after, 0, None) for label, one in moments]
    note = _left_out(arguments)
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title><style>{STYLE}</style></head><body>',
        f"<h1>{_text(title)}</h1>",
        f"<p>Recorded decisions, decided again {_text(_by(arguments))}. {_text(note[:1].upper() + note[1:])}.</p>",
        *_counts(result),
    ]
    if moments:
        parts.append(plots.compared(before, after, ("recorded", "decided again"), shown(title), shown(_by(arguments))))
    if result.differences:
        parts.append("<h2>Differences</h2>")
        rows = list(_rows(_sorted(result)[:DIFFERENCES_WRITTEN_MAX]))
        parts += _html_table(_heads(arguments), rows, number=3)
    return "\n".join([*parts, "</body></html>", ""])


def _counts(result: reevaluate.Result) -> Iterator[str]:
    rows = [("the same", f"{result.same:,}"), ("different", f"{result.different:,}")]
    rows += [(f"skipped: {reason}", f"{count:,}") for reason, count in result.skipped.most_common()]
    yield from _html_table(("decisions", "count"), rows, number=1)


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, number: int) -> Iterator[str]:
    yield f"<table><tr>{''.join(f'<th>{_text(head)}</th>' for head in heads)}</tr>"
    for row in rows:
        kinds = [' class="number"' if column == number else "" for column in range(len(row))]
        yield "<tr>" + "".join(f"<td{kind}>{_text(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
    yield "</table>"


def _text(text: str) -> str:
    return html.escape(shown(text))


def _moments(result: reevaluate.Result) -> Iterator[tuple[str, reevaluate.Moment]]:
    """The timeline in as many stretches as a plot shows, those in which nothing happened too."""
    if not result.moments:
        return
    span = max(result.moments) - min(result.moments)
    fitting = [length for length in MOMENTS_MS if span // length < MOMENTS_SHOWN_MAX]
    length = max(result.moment_ms, min(fitting, default=span // MOMENTS_SHOWN_MAX + 1))
    result.coarsen(length)
    for start in range(min(result.moments), max(result.moments) + 1, length):
        yield _clock(start, length), result.moments.get(start, reevaluate.Moment())


def _clock(at_ms: int, length_ms: int) -> str:
    form = "%Y-%m-%d" if length_ms >= DAY_MS else "%H:%M" if length_ms >= MINUTE_MS else "%H:%M:%S"
    return (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=at_ms)).strftime(form)
