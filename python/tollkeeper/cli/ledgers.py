"""What the verbs about budgets share: opening the ledger that is meant, and how amounts and times are written."""

import argparse
import datetime as dt
import re
from pathlib import Path
from typing import Final

from tollkeeper import budgets
from tollkeeper.admin import GateAdmin
from tollkeeper.budget import Ledger, Usage
from tollkeeper.cli import inputs
from tollkeeper.cli.terminal import InputError
from tollkeeper.document import known_here

_AMOUNT: Final = re.compile(r"([^=,]+)=([0-9][0-9_]{0,25})", re.ASCII)
NANO: Final = 10**9


def add_ledger(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments that name a ledger."""
    inputs.add_config(parser)
    parser.add_argument(
        "--budgets", metavar="FILE", type=Path, help="budgets.toml; without it the one of the configuration"
    )
    parser.add_argument(
        "--state", metavar="FILE", type=Path, help="the ledger's state; without it the one of the configuration"
    )


def add_operator(parser: argparse.ArgumentParser) -> None:
    """Declares the argument that says who operates the ledger."""
    parser.add_argument(
        "--key", metavar="FILE", type=Path, help="an administrator's private key; needed where [admin] lists keys"
    )


def operator(arguments: argparse.Namespace) -> GateAdmin | None:
    """Who changes the ledger of a configuration, with the key where it lists some; `None` if --budgets names one.

    Whoever can write the state file could do so without this package: the keys bind who goes through a configuration.
    """
    if arguments.budgets is not None:
        return None
    inputs.load_config(arguments.config, "name the budgets: --budgets FILE --state FILE")
    admin = GateAdmin.open(arguments.config, arguments.key)
    admin.authorize()
    # Another ledger than the configuration's is none that its gates record.
    return admin if arguments.state is None else None


def opened(arguments: argparse.Namespace) -> Ledger:
    """Opens the ledger that the arguments or the configuration name. It is never made here."""
    file, state = arguments.budgets, arguments.state
    if file is None:
        settings = inputs.load_config(arguments.config, "name the budgets: --budgets FILE --state FILE")
        if settings.budget_file is None:
            raise InputError(
                f"{settings.file}: names no budgets", '[budget] file = "budgets.toml", state = "ledger.bin"'
            )
        file, state = settings.budget_file, state or settings.budget_state
    if state is None:
        raise InputError(
            f"{file}: the ledger has no state file, so it lives in the process that opened it: nothing to show here",
            'name a state: --state FILE, or in the configuration [budget] state = "ledger.bin"',
        )
    if not state.is_file():
        what = "is a folder, not a file" if state.is_dir() else "no such file"
        raise InputError(f"{state}: {what}", "the state is made by the first program that opens the ledger")
    # Who looks at a ledger or operates it does not change its limits, whatever the file says by now.
    return Ledger({**budgets.spec(Path(file)), "keep_limits": True}, str(state))


def usage(ledger: Ledger, path: str) -> dict[tuple[str, str], Usage]:
    """What a budget has, units and windows in the order of every list of them."""
    found = ledger.usage(path)
    order = [(unit, window) for unit in budgets.UNITS for window in budgets.WINDOWS]
    return {key: found[key] for key in order if key in found}


def budget_path(path: str) -> str:
    """The path of a budget given on the command line."""
    if fault := budgets.path_fault(path):
        raise InputError(f"{path}: {fault[0]}", fault[1])
    if path.endswith("*"):
        raise InputError(f"{path}: a template holds no money", "name one of its children")
    return path


def cost_argument(text: str) -> dict[str, int]:
    """Amounts by unit, from ``tokens=100,requests=1``."""
    cost: dict[str, int] = {}
    for part in text.split(","):
        found = _AMOUNT.fullmatch(part.strip())
        if found is None:
            raise InputError(f"COST: `{part}` is not UNIT=AMOUNT", "such as tokens=100,requests=1")
        unit, amount = found[1], int(found[2].rstrip("_"))
        if unit not in budgets.UNITS:
            raise InputError(f"COST: unknown unit `{unit}`", known_here(unit, budgets.UNITS))
        if unit in cost:
            raise InputError(f"COST: `{unit}` is given twice")
        if amount > budgets.AMOUNT_MAX:
            raise InputError(f"COST: {unit} is {amount}, the most is {budgets.AMOUNT_MAX}")
        cost[unit] = amount
    return cost


def amount(unit: str, value: int) -> str:
    """An amount as people read it: money in dollars, to the last digit."""
    if unit != "nano_usd":
        return f"{value:,}"
    dollars, nano = divmod(abs(value), NANO)
    digits = f"{nano:09}".rstrip("0").ljust(2, "0")
    return f"{'-' if value < 0 else ''}${dollars:,}.{digits}"


def moment(time_ms: int | None) -> str:
    """A time, in UTC."""
    if time_ms is None:
        return "never"
    return dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
