"""What the verbs that ask a gate share: opening it, asking, and a decision as plain data.

They ask and do nothing, so what is held for an action is given back at once. A request is spent when it is granted: it
counts, in a ledger with a state file too.
"""

import argparse
from pathlib import Path
from typing import Any

import tollkeeper
from tollkeeper import config
from tollkeeper.cli.terminal import InputError
from tollkeeper.reloading import rehearsed

__all__ = ["add_file", "as_json", "errors", "opened", "refusal", "rehearsed", "release"]


def opened(path: Path) -> Any:  # noqa: ANN401 - the gate's class, if this build has one
    """Opens the gate of a configuration."""
    gate = getattr(tollkeeper, "Gate", None)
    if gate is None:
        raise InputError("this build has no gate", "build the native module again: make build")
    if not path.exists():
        raise InputError(
            f"{path}: no such file", f"write one with tollkeeper init, or name it: --config {config.FILE_NAME}"
        )
    return gate.open(path)


def add_file(parser: argparse.ArgumentParser) -> None:
    """Declares the configuration as an argument of its own, for the verbs that are about nothing else."""
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=Path,
        help=f"default: what the variable {config.ENVIRONMENT_NAME} names, else {config.FILE_NAME} of this folder",
    )


def release(decision: Any) -> None:  # noqa: ANN401 - a Decision
    """Gives back what is held for an action that will not happen."""
    if decision.hold is not None:
        decision.hold.release()


def errors(decision: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - a Decision
    """The policies that erred, each with the message."""
    return [(str(policy), str(message)) for policy, message in decision.errors]


def refusal(decision: Any) -> dict[str, Any] | None:  # noqa: ANN401 - a Decision
    """What a budget refused, and when to try again."""
    denial = decision.denial
    if denial is None:
        return None
    names = ("path", "unit", "window", "requested", "available", "limit", "retry_after")
    return {name: getattr(denial, name) for name in names}


def as_json(decision: Any) -> dict[str, Any]:  # noqa: ANN401 - a Decision
    """A decision as JSON. Its id is left out: it differs from run to run and names nothing that is kept."""
    return {
        "decision": "allow" if decision.allowed else "deny",
        "code": decision.code,
        "reason": decision.reason,
        "policies": list(decision.policies),
        "errors": [{"policy": policy, "message": message} for policy, message in errors(decision)],
        "obligations": list(decision.obligations),
        "would_deny": decision.would_deny,
        "budget": refusal(decision),
    }
