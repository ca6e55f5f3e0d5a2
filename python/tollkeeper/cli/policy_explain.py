"""``tollkeeper policy explain``: what policies mean in words, and why a request was decided as it was.

Explanations show values of the request and of entities. They are for operators, never for a model.
"""

import argparse
from typing import Any

from tollkeeper import PolicySet
from tollkeeper.cli import inputs
from tollkeeper.cli.terminal import EXIT_OK, InputError, out, shown_lines

REQUEST = ("principal", "action", "resource")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("policy", metavar="ID", nargs="?", help="one policy; without it all of them")
    inputs.add_sources(parser)
    for name in REQUEST:
        parser.add_argument(f"--{name}", metavar="UID", help="explain the answer to a request")
    parser.add_argument(
        "--context", metavar="JSON", help="the request's context in Cedar's JSON; @FILE, or - for stdin"
    )
    parser.add_argument("--program", action="store_true", help="print what the compiler made of the policies")


def run(arguments: argparse.Namespace) -> int:
    """Prints an explanation."""
    given = [name for name in REQUEST if getattr(arguments, name) is not None]
    if given and len(given) < len(REQUEST):
        missing = ", ".join(f"--{name}" for name in REQUEST if name not in given)
        raise InputError(f"a request also needs {missing}")
    if arguments.context is not None and not given:
        raise InputError("--context needs --principal, --action and --resource")
    if bool(given) + bool(arguments.policy) + arguments.program > 1:
        raise InputError("explain one thing at a time: a policy, a request or the program")
    uids = [inputs.uid_argument(getattr(arguments, name), name) for name in given]
    found = inputs.sources(arguments)
    policies = inputs.load_policies(found.policies, found.schema, "annotation")
    if given:
        context = inputs.context_argument(arguments.context, found.schema, uids[1])
        entities = inputs.load_entities(found.entities, found.schema)
        text = native(policies, "explain_request")(*uids, context, entities)
    elif arguments.program:
        text = native(policies, "program")()
    else:
        if arguments.policy is not None and arguments.policy not in (*policies.ids, *policies.templates):
            raise InputError(
                f"no policy has the id `{arguments.policy}`", f"the policies are: {', '.join(policies.ids[:10])}"
            )
        text = native(policies, "explain")(arguments.policy)
    out(shown_lines(text).rstrip("\n"))
    return EXIT_OK


def native(policies: PolicySet, method: str) -> Any:  # noqa: ANN401 - a method of the native module
    """A method that an older build of the native module lacks."""
    found = getattr(policies, method, None)
    if found is None:
        raise InputError("this build cannot explain policies", "build the native module again: make build")
    return found
