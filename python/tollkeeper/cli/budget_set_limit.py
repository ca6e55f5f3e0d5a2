"""``tollkeeper budget set-limit``: changes a limit of a ledger that is in use; the ledger's events keep the change.

It does not change ``budgets.toml``. A limit below what is used blocks new holds and breaks no live one.
A configuration that lists keys under ``[admin]`` wants one of them.
"""

import argparse

from tollkeeper import budgets
from tollkeeper.cli import inputs, ledgers
from tollkeeper.cli.terminal import EXIT_OK, InputError, out, shown


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("path", metavar="PATH", help="the budget")
    parser.add_argument("unit", metavar="UNIT", choices=budgets.UNITS, help=", ".join(budgets.UNITS))
    parser.add_argument("window", metavar="WINDOW", choices=budgets.WINDOWS, help=", ".join(budgets.WINDOWS))
    parser.add_argument("limit", metavar="LIMIT", type=inputs.whole_number(budgets.LIMIT_MAX), help="the new limit")
    ledgers.add_operator(parser)
    ledgers.add_ledger(parser)


def run(arguments: argparse.Namespace) -> int:
    """Changes the limit."""
    path, unit, window = ledgers.budget_path(arguments.path), arguments.unit, arguments.window
    admin = ledgers.operator(arguments)
    with ledgers.opened(arguments) as ledger:
        known = ledger.usage(path) if path in ledger.paths else None
        if known is None:
            raise InputError(f"no budget `{path}`", f"the budgets are: {', '.join(ledger.paths[:10])}")
        if (unit, window) not in known:
            limits = ", ".join(f"{unit} {window}" for unit, window in known) or "none"
            raise InputError(f"`{path}` has no limit for {unit} {window}", f"its limits are: {limits}")
        old = (admin or ledger).set_limit(path, unit, window, arguments.limit)
    before, after = ledgers.amount(unit, old), ledgers.amount(unit, arguments.limit)
    out(f"{shown(path)}: {unit} {window}: {before} -> {after}")
    return EXIT_OK
