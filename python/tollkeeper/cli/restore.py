"""``tollkeeper restore``: takes a revocation back. Only the one that is named: others that concern the same stay.

What cannot be recorded is not restored.
"""

import argparse

from tollkeeper.cli import administration


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    administration.add_target(parser)


def run(arguments: argparse.Namespace) -> int:
    """Restores."""
    admin = administration.opened(arguments)
    receipt = admin.restore(**administration.chosen(arguments))
    return administration.print_receipt(receipt, admin.settings.tools, as_json=arguments.json)
