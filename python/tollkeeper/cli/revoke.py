"""``tollkeeper revoke``: stops a principal, a tool, a session or everything, and prints a receipt.

When it returns, every later check of every process that shares the state directory denies. A record that cannot be
written does not keep it from revoking: it is said, and the exit code is 1.
"""

import argparse

from tollkeeper.cli import administration


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    administration.add_target(parser)


def run(arguments: argparse.Namespace) -> int:
    """Revokes."""
    admin = administration.opened(arguments)
    receipt = admin.revoke(**administration.chosen(arguments))
    return administration.print_receipt(receipt, admin.settings.tools, as_json=arguments.json)
