"""``tollkeeper check``: asks a gate about one action. Exit code 0 is allow, 1 is deny.

No tool is called, whatever the answer. It is a check like any other, though: what a budget held for it is given back,
but requests are spent when they are granted; the decision is recorded where there is a log; and labels that the tool
reads stay with the session, which is one of its own unless it is named.
"""

import argparse
import secrets

import msgspec

from tollkeeper.cli import gates, inputs
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, InputError, coloured, out, out_json, shown


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("tool", metavar="TOOL", help="the tool's name")
    parser.add_argument("--principal", metavar="UID", required=True, help="who acts, such as 'Agent::\"researcher\"'")
    parser.add_argument(
        "--session", metavar="ID", help="default: one of its own for each call, so that no labels stay from the last"
    )
    parser.add_argument("--budget", metavar="PATH", help="the budget that pays")
    parser.add_argument("--arguments", metavar="JSON", default="{}", help="the call's arguments; @FILE, or - for stdin")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    inputs.add_config(parser)
    parser.epilog = (
        "No tool is called. It counts as a check all the same: a granted request is spent, other holds are given back, "
        "the decision is recorded in the log, and labels that the tool reads stay with the session. To try policies "
        "without any of it: tollkeeper policy test, tollkeeper policy explain. Exit code 0 is allow, 1 is deny."
    )


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
    session = arguments.session or f"cli-{secrets.token_hex(4)}"
    gate = gates.opened(arguments.config)
    with gate.run(principal=arguments.principal, session=session, budget=arguments.budget):
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
