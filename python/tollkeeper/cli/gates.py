"""What the verbs that ask a gate share: opening it, and a decision as plain data."""

from pathlib import Path
from typing import Any

import tollkeeper
from tollkeeper import config
from tollkeeper.cli.terminal import InputError


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


def errors(decision: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - a Decision
    """The policies that erred, each with the message."""
    return [(str(policy), str(message)) for policy, message in decision.errors]


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
    }
