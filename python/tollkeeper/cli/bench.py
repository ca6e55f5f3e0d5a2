"""``tollkeeper bench``: measures the gate of a configuration, and says whether latency budgets are kept.

Exit code 0: every budget is kept; 1: one is broken; 3: none is broken, and one cannot be told on this machine. It works
on a private copy of the state and touches no ledger, log or state folder; no tool and no model is called.
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from tollkeeper import bench, cases, config
from tollkeeper.cli import gates, inputs
from tollkeeper.cli.decide import ActionLine
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, InputError, coloured, counted, out, out_json, shown, table
from tollkeeper.errors import BudgetError

EXIT_NOISY: Final = 3
SECONDS_MIN, SECONDS_MAX = 0.2, 60.0
ACTIONS_MAX: Final = 10_000
# Entities that are tried as principals where nothing says who acts.
PRINCIPALS_MAX: Final = 64
FALLBACK_PRINCIPAL: Final = 'Agent::"bench"'


class EntityRow(msgspec.Struct, frozen=True):
    """What is read of an entity."""

    uid: inputs.Uid


METHOD: Final = f"""\
what is measured:
  check       gate.check of each action: policies, tool schema, budget, record in the audit log's ring
  policy      the same without budget, audit log and costs
  model_call  gate.model_call, from the decision to its settlement, for the first principal that may

how: single calls between two readings of the clock, whose own cost is taken off, in {bench.ROUNDS} rounds; between
bursts the log is brought to the disk, which is not timed. All state is a private copy in a temporary folder, with
limits that cannot be reached: no ledger, log or state folder of the configuration is opened, and no tool and no model
is called.

a budget is kept when the figure is within its bound, on any machine. Over it, it is broken, unless the machine cannot
be trusted: then it is too noisy to tell. Over {bench.BROKEN_TIMES:g} times the bound, it is broken however noisy it is.
A fixed piece of work, timed in the same rounds, decides: its medians differ by more than {bench.SPREAD_MAX:g} times
from round to round, or the host takes more than {bench.STOLEN_MAX:.0%} of the time, or it is preempted or stalled in
more calls than a tenth of those that the statistic leaves out (1 in 1,000 for p99). Fewer than {bench.BEYOND_MIN} calls
beyond a quantile are too few to tell.

exit codes: 0 kept, 1 broken, 2 the input cannot be used, 3 too noisy to tell
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    gates.add_file(parser)
    parser.add_argument(
        "--budget",
        metavar="BUDGET",
        action="append",
        default=[],
        help="MEASURE:STATISTIC<TIME, such as 'check:p99<10us'; check, policy or model_call; p50, p99, p99.9 or max; "
        "ns, us or ms. May be given more than once",
    )
    parser.add_argument("--seconds", metavar="S", type=_seconds, default=5.0, help="how long; default: %(default)s")
    parser.add_argument(
        "--actions",
        metavar="FILE",
        help="JSON lines as `tollkeeper decide` takes them; without it the cases of policy.tests, and without those "
        "arguments made from the tools' schemas",
    )
    parser.add_argument("--folder", metavar="FOLDER", type=Path, help="where the private copy is; default: temporary")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = METHOD


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number of seconds") from None
    if not SECONDS_MIN <= value <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not between {SECONDS_MIN:g} and {SECONDS_MAX:g} seconds")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Measures once and judges."""
    wanted = [_budget(text) for text in arguments.budget]
    file = arguments.file or config.find()
    if file is None:
        raise InputError(f"no {config.FILE_NAME} here", "tollkeeper init, or name the file")
    settings = inputs.load_config(file, "name a configuration")
    if not settings.tools:
        raise InputError(f"{settings.file}: no tools, so there is nothing to check", "[tools.search]")
    actions, source = _actions(arguments.actions, settings)
    report = _measured(settings, actions, arguments.seconds, arguments.folder)
    for one in wanted:
        if one.measure in report.missing:
            raise InputError(f"{one.text}: {one.measure} cannot be measured: {report.missing[one.measure]}")
    verdicts = [
        bench.judge(one, report.figures[one.measure].values_ns[one.statistic], report.figures[one.measure].samples,
                    report.noise)
        for one in wanted
    ]  # fmt: skip
    (_print_json if arguments.json else _print)(report, verdicts, f"{counted(len(actions), 'action')} from {source}")
    outcomes = {verdict.outcome for verdict in verdicts}
    return EXIT_NO if "broken" in outcomes else EXIT_NOISY if "noisy" in outcomes else EXIT_OK


def _budget(text: str) -> bench.Budget:
    try:
        return bench.budget(text)
    except ValueError as error:
        raise InputError(f"--budget {error}", "--budget 'check:p99<10us'") from None


def _measured(
    settings: config.Config, actions: list[bench.Action], seconds: float, folder: Path | None
) -> bench.Report:
    """In a folder that is removed. Where temporary files are kept in memory, a ledger refuses to be: then elsewhere."""
    places = [folder] if folder is not None else [None, Path("/var/tmp")]  # noqa: S108 - not guessable: see below
    for number, place in enumerate(places):
        try:
            with tempfile.TemporaryDirectory(prefix="tollkeeper-bench-", dir=place) as name:
                return bench.measure(settings, actions, seconds, Path(name))
        except bench.ActionError as error:
            raise InputError(str(error), getattr(error.__cause__, "help", None)) from None
        except BudgetError:
            if number == len(places) - 1:
                raise
    raise AssertionError  # the last place returns or raises


# --- what is asked ------------------------------------------------------------------------------------------------


def _actions(name: str | None, settings: config.Config) -> tuple[list[bench.Action], str]:
    """What to ask, and where it is from."""
    if name is not None:
        lines = [line for _, line in inputs.read_lines(name, msgspec.json.Decoder(ActionLine))]
        if not lines:
            raise InputError(f"{name}: the file holds no action")
        found = [
            bench.Action(one.principal, one.tool, one.arguments, one.session or "bench", one.budget) for one in lines
        ]
        source = shown(name)
    elif found := _from_cases(settings):
        source = "policy.tests"
    else:
        found, source = _from_schemas(settings), "the tools' schemas"
    if len(found) > ACTIONS_MAX:
        raise InputError(f"{source}: more than {ACTIONS_MAX:,} actions")
    return found, source


def _from_cases(settings: config.Config) -> list[bench.Action]:
    """The cases that ask about a tool and have plain arguments."""
    found: list[bench.Action] = []
    for file in settings.test_files:
        for case in cases.read(file).cases:
            tool = case.action.removeprefix('Action::"').removesuffix('"')
            arguments: Any = {} if isinstance(case.context, str) else case.context.get("input", {})
            if tool in settings.tools and not isinstance(case.context, str) and isinstance(arguments, dict):
                found.append(bench.Action(case.principal, tool, cast("dict[str, Any]", arguments)))
    return found


def _from_schemas(settings: config.Config) -> list[bench.Action]:
    """A call of each tool by each entity that could act; those that are no principals only cost a denial."""
    principals = [FALLBACK_PRINCIPAL]
    if settings.entities_file is not None:
        text = inputs.load_entities(settings.entities_file, None).to_json()
        rows = msgspec.json.decode(text, type=list[EntityRow])
        named = [str(inputs.read_uid(row.uid)) for row in rows]
        owners = {tool.resource for tool in settings.tools.values()}
        principals = [uid for uid in named if uid not in owners][:PRINCIPALS_MAX] or principals
    asked: list[bench.Action] = []
    for principal in principals:
        asked.extend(bench.Action(principal, name, sample(tool.schema or {})) for name, tool in settings.tools.items())
    return asked


def sample(schema: dict[str, Any]) -> Any:  # noqa: ANN401 - plain data of any shape
    """The smallest value that a JSON Schema of usual shape takes.

    Example:
        >>> from tollkeeper.cli.bench import sample
        >>> sample({"type": "object", "properties": {"to": {"type": "array", "items": {"type": "string"}}}})
        {'to': ['text']}
    """
    for key in ("const", "default", "enum", "examples"):
        if key in schema:
            return schema[key] if key in {"const", "default"} else next(iter(schema[key]), None)
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return sample(schema[key][0])
    return _of_kind(schema)


def _of_kind(schema: dict[str, Any]) -> Any:  # noqa: ANN401 - as above
    kind = schema.get("type", "object")
    # The first of several kinds.
    kind = kind if isinstance(kind, str) else next(iter(kind), "object")
    if kind == "object":
        return {name: sample(below) for name, below in schema.get("properties", {}).items()}
    if kind == "array":
        return [sample(schema.get("items", {"type": "string"}))] * max(1, schema.get("minItems", 1))
    if kind == "string":
        length = max(schema.get("minLength", 0), 4)
        return ("text" * math.ceil(length / 4))[: min(length, schema.get("maxLength", length))]
    if kind in {"integer", "number"}:
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    return True if kind == "boolean" else None


# --- what is printed ----------------------------------------------------------------------------------------------


def time_text(nanoseconds: float) -> str:
    """A time in the unit that suits it.

    Example:
        >>> from tollkeeper.cli.bench import time_text
        >>> time_text(812), time_text(1_310), time_text(27_000_000)
        ('812 ns', '1.31 us', '27.0 ms')
    """
    for unit, factor in (("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= factor:
            value = nanoseconds / factor
            return f"{value:.2f} {unit}" if value < 10 else f"{value:.1f} {unit}"  # noqa: PLR2004 - digits
    return f"{nanoseconds:.0f} ns"


def _print(report: bench.Report, verdicts: list[bench.Verdict], asked: str) -> None:
    codes = ", ".join(f"{count:,} {code}" for code, count in sorted(report.figures["check"].codes.items()))
    out(f"{asked}: {codes}")
    out("state: a private copy, with limits that cannot be reached; this configuration's own is not touched")
    out()
    rows = [
        (name, *(time_text(figure.values_ns[one]) for one in bench.STATISTICS), f"{figure.per_s:,.0f}",
         f"{figure.samples:,}")
        for name, figure in report.figures.items()
    ]  # fmt: skip
    for line in table(("", *bench.STATISTICS, "a second", "calls"), rows):
        out(line)
    for name, reason in report.missing.items():
        out(f"{name}: not measured: {shown(reason)}")
    noise = report.noise
    out()
    out(
        f"machine: the reference varies by {noise.spread:.2f} between rounds; {noise.stolen:.1%} of the time stolen, "
        f"{noise.preempted:.3%} of its calls preempted, {noise.stalled:.3%} stalled"
    )
    words = {"kept": ("kept", "green"), "broken": ("broken", "red"), "noisy": ("too noisy to tell", "yellow")}
    for verdict in verdicts:
        word, colour = words[verdict.outcome]
        out(f"{coloured(word, colour)}: {shown(verdict.budget.text)}: {time_text(verdict.value_ns)}")
        for reason in verdict.reasons:
            out(f"  {reason}")


def _print_json(report: bench.Report, verdicts: list[bench.Verdict], asked: str) -> None:
    figures: dict[str, Any] = {}
    for name, figure in report.figures.items():
        figures[name] = {"calls": figure.samples, "per_s": round(figure.per_s), "codes": figure.codes}
        figures[name] |= {f"{key.replace('.', '')}_ns": round(value) for key, value in figure.values_ns.items()}
    out_json(
        {
            "asked": asked,
            "figures": figures,
            "not_measured": report.missing,
            "noise": {
                key: round(getattr(report.noise, key), 6) for key in ("spread", "stolen", "preempted", "stalled")
            },
            "seconds": round(report.seconds, 3),
            "budgets": [
                {
                    "budget": one.budget.text,
                    "bound_ns": one.budget.bound_ns,
                    "value_ns": round(one.value_ns),
                    "outcome": one.outcome,
                    "reasons": list(one.reasons),
                }
                for one in verdicts
            ],
        }
    )
