"""``tollkeeper check``: asks a gate about one action. Exit code 0 is allow, 1 is deny.

It asks and does nothing: no tool is called, whatever the answer, and what a budget held for it is given back. Requests
are spent when they are granted, so one that is asked for counts.
"""

import argparse

import msgspec

from tollkeeper.cli import gates, inputs
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, InputError, coloured, out, out_json, shown


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("tool", metavar="TOOL", help="the tool's name")
    parser.add_argument("--principal", metavar="UID", required=True, help="who acts, such as 'Agent::\"researcher\"'")
    parser.add_argument("--session", metavar="ID", default="cli", help="default: %(default)s")
    parser.add_argument("--budget", metavar="PATH", help="the budget that pays")
    parser.add_argument("--arguments", metavar="JSON", default="{}", help="the call's arguments; @FILE, or - for stdin")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    inputs.add_config(parser)


def run(arguments: argparse.Namespace) -> int:
    """Asks once."""
    inputs.uid_argument(arguments.principal, "principal")
    text = inputs.json_argument(arguments.arguments)
    try:
        given = msgspec.json.decode(text, type=dict[str, object])
    except msgspec.ValidationError:
        raise InputError("--arguments: not a JSON object", '--arguments \'{"path": "/workspace/a.txt"}\'') from None
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        what, offset = inputs.json_fault(str(error), len(text))
        raise InputError(f"--arguments: {what}, at character {offset + 1}") from None
    gate = gates.opened(arguments.config)
    with gate.run(principal=arguments.principal, session=arguments.session, budget=arguments.budget):
        decision = gate.check(arguments.tool, given)
        gates.release(decision)
    if arguments.json:
        out_json(gates.as_json(decision))
    else:
        word = coloured("allow", "green") if decision.allowed else coloured("deny", "red")
        out(f"{word} {shown(arguments.tool)} ({decision.code})")
        for line in decision.reason.splitlines():
            out(f"  {shown(line)}")
        if decision.policies:
            out(f"  policies: {shown(', '.join(decision.policies))}")
        for policy, message in gates.errors(decision):
            out(f"  error in {shown(policy)}: {shown(message)}")
        if (denial := decision.denial) is not None and denial.unit is not None:
            after = "" if denial.retry_after is None else f", worth a try in {denial.retry_after:.3f} s"
            out(f"  budget: {shown(denial.path)}, {denial.unit} {denial.window}{after}")
        if decision.would_deny:
            out(f"  without shadow mode: deny ({decision.would_deny})")
    return EXIT_OK if decision.allowed else EXIT_NO
