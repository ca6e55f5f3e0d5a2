"""``tollkeeper policy matrix``: who may do what, for every principal, action and resource that is known."""

import argparse

from tollkeeper.cli import inputs
from tollkeeper.cli.policy_explain import native
from tollkeeper.cli.terminal import EXIT_OK, out, shown_lines


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    inputs.add_sources(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the matrix."""
    found = inputs.sources(arguments)
    policies = inputs.load_policies(found.policies, found.schema, "annotation")
    entities = inputs.load_entities(found.entities, found.schema)
    out(shown_lines(native(policies, "matrix")(entities)).rstrip("\n"))
    return EXIT_OK
