"""``tollkeeper budget replay``: drives recorded requests through budgets, on the trace's time, and shows what happens.

What a trace does not say is decided by the rules of `tollkeeper.replay`, which are printed. The ledger lives in memory
and ends with the command: no state is read or changed.
"""

import argparse
import datetime as dt
import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

from tollkeeper import budgets, config, replay
from tollkeeper.budget import Ledger
from tollkeeper.cli import inputs, plots
from tollkeeper.cli.terminal import EXIT_OK, InputError, counted, out, progress, shown, table
from tollkeeper.errors import InternalError
from tollkeeper.testing import FakeClock

# Sized so that the published traces, which use 770,000 tokens a minute on average, meet both limits.
BUILT_IN: Final = """\
[budget."azure"]
limits = [
  { unit = "tokens", window = "1m", limit = 1_000_000 },
  { unit = "tokens", window = "total", limit = 1_000_000_000_000 },
  { unit = "in_flight", window = "total", limit = 256 },
]
[budget."azure/*"]
limits = [{ unit = "tokens", window = "1m", limit = 300_000 }]
"""
TENANTS_MAX: Final = 1_000
TOKENS_MAX: Final = 1 << 40
TENANT: Final = "tenant-{}"


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "traces", metavar="TRACE.csv", nargs="+", type=Path, help="requests by time; several are merged by time"
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help="budgets.toml or tollkeeper.toml; default: built in"
    )
    parser.add_argument(
        "--path", metavar="PATH", help="the budget of the requests; default: the first that has children"
    )
    parser.add_argument("--json", metavar="OUT", help="write the sums as JSON; - prints nothing else")
    parser.add_argument("--plot", metavar="OUT.svg", type=Path, help="write a plot")
    parser.add_argument(
        "--max-tokens",
        metavar="N",
        type=inputs.whole_number(TOKENS_MAX),
        default=replay.Rules.max_tokens,
        help="held for what a request generates; default: %(default)s",
    )
    parser.add_argument(
        "--tenants",
        metavar="N",
        type=inputs.whole_number(TENANTS_MAX, least=1),
        default=replay.Rules.tenants,
        help="children that requests are spread over; default: %(default)s",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=inputs.whole_number(TOKENS_MAX),
        default=0,
        help="of the spread; default: %(default)s",
    )
    parser.add_argument(
        "--window", choices=tuple(replay.WINDOWS_MS), default=replay.Rules.window, help="default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    """Replays the traces."""
    spec, name = _spec(arguments.config)
    paths = _paths(spec, name, arguments.path, arguments.tenants)
    rules = replay.Rules(arguments.max_tokens, len(paths), arguments.seed, arguments.window)
    ledgers: list[Ledger] = []

    def start(now_ms: int) -> tuple[Ledger, Callable[[int], None]]:
        clock = FakeClock(now_ms)
        ledger = Ledger(spec, None, clock)
        for path in paths:
            _refuse_unknown(ledger, path)
        ledgers.append(ledger)
        return ledger, clock.advance

    with progress(replay.merged(arguments.traces), None, "requests") as requests:
        result = replay.run(requests, start, paths, rules)
    if not ledgers:
        raise InputError(f"{arguments.traces[0]}: no requests")
    root = paths[0].rpartition("/")[0] if len(paths) > 1 else paths[0]
    limit = _limit(ledgers[0], root, rules.window)
    total = _total(ledgers[0], root)
    if total not in {None, result.used_tokens}:
        raise InternalError(f"the ledger counted {total} tokens, the replay {result.used_tokens}")
    rows = [
        plots.Row(_clock(one.start_ms, rules.window), one.admitted, one.denied, one.used_tokens, limit)
        for one in result.windows.values()
    ]
    if arguments.plot is not None:
        title = f"{counted(result.requests, 'request')}: {result.admitted:,} admitted, {result.denied:,} denied"
        arguments.plot.write_text(
            plots.svg(rows, title, f"budgets of {root}; each request holds its prompt and {rules.max_tokens:,} tokens")
        )
    document = _document(arguments.traces, name, paths, rules, result, total)
    if arguments.json == inputs.STDIN:
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
        return EXIT_OK
    if arguments.json is not None:
        Path(arguments.json).write_text(json.dumps(document, indent=1) + "\n")
    _print(arguments, name, root, rules, result, rows, total)
    return EXIT_OK


def _spec(file: Path | None) -> tuple[budgets.Spec, str]:
    """The budgets, and what to call them. A configuration of the gate names its budgets."""
    if file is None:
        return budgets.spec(BUILT_IN), "built in"
    try:
        text = config.read_text(file, config.CONFIG_BYTES_MAX)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file", "write a budgets.toml, or leave --config out") from None
    if _is_configuration(text):
        settings = config.load(file)
        if settings.budget_file is None:
            raise InputError(f"{file}: names no budgets", '[budget] file = "budgets.toml"')
        return budgets.spec(settings.budget_file), str(settings.budget_file)
    return budgets.spec(file), str(file)


def _is_configuration(text: str) -> bool:
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError):
        # Not TOML: whoever reads it next says where.
        return False
    if not document.keys().isdisjoint({"gate", "policy", "tools"}):
        return True
    budget = document.get("budget")
    return isinstance(budget, dict) and isinstance(cast("dict[str, object]", budget).get("file"), str)


def _paths(spec: budgets.Spec, name: str, asked: str | None, tenants: int) -> list[str]:
    """The budget of each tenant."""
    known = [path for path, _, _ in spec["budgets"]]
    if not known:
        raise InputError(f"{name}: no budgets", '[budget."acme"]')
    if asked is None:
        parents = [path.removesuffix("/*") for path in known if path.endswith("/*") and not path.endswith("/*/*")]
        if not parents:
            return [next((path for path in known if not path.endswith("/*")), known[0])]
        asked = parents[0]
    elif fault := budgets.path_fault(asked):
        raise InputError(f"--path {asked}: {fault[0]}", fault[1])
    if f"{asked}/*" not in known:
        return [asked]
    return [f"{asked}/{TENANT.format(number)}" for number in range(tenants)]


def _refuse_unknown(ledger: Ledger, path: str) -> None:
    for denial in ledger.explain(path):
        if denial.code == "budget.unavailable":
            raise InputError(f"--path {path}: {denial.reason}")


def _limit(ledger: Ledger, path: str, window: str) -> int | None:
    """The limit to draw, if the budget has one of this window."""
    usage = ledger.usage(path).get(("tokens", window)) if path in ledger.paths else None
    return None if usage is None else usage.limit + usage.overdraft


def _total(ledger: Ledger, path: str) -> int | None:
    """What the ledger itself counted over all windows, if the budget has such a limit."""
    usage = ledger.usage(path).get(("tokens", "total")) if path in ledger.paths else None
    return None if usage is None else usage.used


def _clock(at_ms: int, window: str) -> str:
    time = dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC)
    return time.strftime("%Y-%m-%d" if window == "1d" else "%H:%M")


def _described(rules: replay.Rules) -> str:
    held = f"each holds its prompt and {rules.max_tokens:,} tokens, one request, one in flight"
    ended = f"ends {replay.PROMPT_MICROSECONDS} us a token of prompt and {replay.GENERATED_MICROSECONDS // 1000} ms a"
    spread = (
        f"spread over {counted(rules.tenants, 'tenant')} by seed {rules.seed}" if rules.tenants > 1 else "one budget"
    )
    return f"{held}; {ended} generated one after it came; {spread}"


def _document(  # noqa: PLR0913, PLR0917 - everything that the result was made from is in it
    traces: list[Path],
    name: str,
    paths: list[str],
    rules: replay.Rules,
    result: replay.Result,
    total: int | None,
) -> dict[str, Any]:
    return {
        "traces": [str(trace) for trace in traces],
        "budgets": name,
        "paths": paths,
        "rules": {
            "max_tokens": rules.max_tokens,
            "seed": rules.seed,
            "window": rules.window,
            "tenant": "splitmix64 finaliser of (row + 1 + seed) * 0x9e3779b97f4a7c15, modulo the number of paths",
            "prompt_us": replay.PROMPT_MICROSECONDS,
            "generated_us": replay.GENERATED_MICROSECONDS,
        },
        "requests": result.requests,
        "admitted": result.admitted,
        "denied": result.denied,
        "denied_by_code": dict(sorted(result.codes.items())),
        "used_tokens": result.used_tokens,
        "ledger_used_tokens": total,
        "windows": [
            {
                "window": number,
                "start_ms": one.start_ms,
                "start": dt.datetime.fromtimestamp(one.start_ms / 1000, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "admitted": one.admitted,
                "denied": one.denied,
                "used_tokens": one.used_tokens,
            }
            for number, one in result.windows.items()
        ],
    }


def _print(  # noqa: PLR0913, PLR0917 - all of it is printed
    arguments: argparse.Namespace,
    name: str,
    root: str,
    rules: replay.Rules,
    result: replay.Result,
    rows: list[plots.Row],
    total: int | None,
) -> None:
    out(f"{counted(result.requests, 'request')} of {shown(', '.join(str(trace) for trace in arguments.traces))}")
    out(f"through the budgets of {shown(root)} ({shown(name)}), in windows of {rules.window}")
    for line in _described(rules).split("; "):
        out(f"  {line}")
    out()
    heads = ("window", "admitted", "denied", "used", "limit", "tokens used; | is the limit")
    for line in table(heads, plots.timeline(rows)):
        out(line)
    out()
    out(f"{result.admitted:,} admitted, {result.denied:,} denied, {result.used_tokens:,} tokens used")
    for code, count in sorted(result.codes.items()):
        out(f"  {count:,} {code}")
    if total is not None:
        out(f"the ledger counted the same: {total:,} tokens")
    for file in (arguments.json, arguments.plot):
        if file is not None:
            out(f"wrote {shown(str(file))}")
