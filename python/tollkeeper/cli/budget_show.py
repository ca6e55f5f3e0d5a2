"""``tollkeeper budget show``: the budgets of a ledger as a tree, with what is used, held and left. It reads only."""

import argparse
from collections.abc import Iterator

from tollkeeper.budget import Ledger, Usage
from tollkeeper.cli import ledgers, plots
from tollkeeper.cli.terminal import EXIT_OK, InputError, coloured, out, out_json, shown, table


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("path", metavar="PATH", nargs="?", help="only this budget and those below it")
    parser.add_argument("--json", action="store_true", help="print one JSON line for each limit")
    ledgers.add_ledger(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the budgets."""
    top = None if arguments.path is None else ledgers.budget_path(arguments.path)
    with ledgers.opened(arguments) as ledger:
        paths = sorted(
            (path for path in ledger.paths if top is None or path == top or path.startswith(f"{top}/")),
            key=lambda path: path.split("/"),
        )
        if top is not None and not paths:
            raise InputError(f"no budget `{top}`", f"the budgets are: {', '.join(ledger.paths[:10])}")
        if arguments.json:
            for path in paths:
                for (unit, window), usage in ledgers.usage(ledger, path).items():
                    out_json({"path": path, "unit": unit, "window": window, **_plain(usage)})
        else:
            _print(ledger, paths)
    return EXIT_OK


def _plain(usage: Usage) -> dict[str, int | None]:
    return {
        "limit": usage.limit,
        "overdraft": usage.overdraft,
        "used": usage.used,
        "held": usage.held,
        "available": usage.available,
        "stranded": usage.stranded,
        "window_end_ms": usage.window_end_ms,
    }


def _print(ledger: Ledger, paths: list[str]) -> None:
    usages = {path: ledgers.usage(ledger, path) for path in paths}
    stranded = any(usage.stranded for limits in usages.values() for usage in limits.values())
    heads = ["budget", "", "used", "held", "available", "limit", *(["stranded"] if stranded else []), "window ends"]
    for line in table(heads, _rows(usages, stranded=stranded)):
        out(line)
    out()
    out("# used, = held" + (", ! stranded by a process that died" if stranded else "") + ", . available")
    debts = [path for path, limits in usages.items() if any(usage.available < 0 for usage in limits.values())]
    if debts:
        out(coloured(f"in debt: {shown(', '.join(debts))}", "red"))


def _rows(usages: dict[str, dict[tuple[str, str], Usage]], *, stranded: bool) -> Iterator[list[str]]:
    blank = [""] * (7 if stranded else 6)
    above: list[str] = []
    for path, limits in usages.items():
        parts = path.split("/")
        # A parent without limits of its own is no budget, but the tree hangs on it.
        for depth, part in enumerate(parts[:-1]):
            if above[: depth + 1] != parts[: depth + 1]:
                yield [f"{'  ' * depth}{part}", *blank]
                above = parts[: depth + 1]
        above = parts
        indent = "  " * (len(parts) - 1)
        yield [indent + parts[-1] + ("" if limits else "  (no limits of its own)"), *blank]
        for (unit, window), usage in limits.items():
            row = [f"{indent}  {unit} {window}", _bar(usage)]
            row += [ledgers.amount(unit, value) for value in (usage.used, usage.held, usage.available)]
            over = f" + {ledgers.amount(unit, usage.overdraft)}" if usage.overdraft else ""
            row.append(ledgers.amount(unit, usage.limit) + over)
            if stranded:
                row.append(ledgers.amount(unit, usage.stranded))
            yield [*row, ledgers.moment(usage.window_end_ms)]


def _bar(usage: Usage) -> str:
    size = usage.limit + usage.overdraft
    drawn = plots.bar(usage.used, usage.held, size, width=20)
    lost = plots.bar(usage.stranded, 0, size, width=20).count("#") if usage.stranded else 0
    free = drawn.rstrip(".")
    return "[" + (free + "!" * lost).ljust(20, ".")[:20] + "]"
