"""What these tests share: the reference (cedarpy), asked through its handles, and Cedar's conformance data.

Both sides are reduced to a `Seen`, which compares decision, reasons and the ids of erroring policies. Messages are not
compared: the language does not define them.
"""

import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cedarpy
import pytest

from tollkeeper import Answer

ROOT = Path(__file__).resolve().parent.parent.parent
DEEP = os.getenv("HYPOTHESIS_PROFILE") == "deep"

_ERRING = re.compile(r"while evaluating policy `(.*?)`: ", re.DOTALL)


class Seen(NamedTuple):
    """What one side answered."""

    decision: str
    reasons: frozenset[str]
    errors: frozenset[str]


def seen(answer: Answer) -> Seen:
    """An answer of the subject. Ids come once each, and the two ways to read the decision agree."""
    reasons, errors = answer.reasons, [error.policy for error in answer.errors]
    assert len(set(reasons)) == len(reasons)
    assert len(set(errors)) == len(errors)
    assert answer.allowed == (answer.decision == "allow")
    return Seen(answer.decision, frozenset(reasons), frozenset(errors))


def reference(
    policies: cedarpy.PolicySet, entities: cedarpy.Entities, requests: Sequence[dict[str, Any]]
) -> list[Seen]:
    """The answers of the reference; a request it cannot build is a mistake of the test."""
    answers = cedarpy.is_authorized_batch(list(requests), policies, entities)
    return [_reference_answer(answer) for answer in answers]


def _reference_answer(answer: cedarpy.AuthzResult) -> Seen:
    assert answer.decision is not cedarpy.Decision.NoDecision, answer.diagnostics.errors
    errors = []
    for message in answer.diagnostics.errors:
        found = _ERRING.search(message)
        assert found, message
        errors.append(found[1])
    return Seen(answer.decision.name.lower(), frozenset(answer.diagnostics.reasons), frozenset(errors))


def ask_reference(policies: str, entities: list[Any], request: dict[str, Any]) -> Seen:
    """One request, from text."""
    store = cedarpy.Entities.from_json_str(json.dumps(entities))
    return reference(cedarpy.PolicySet.from_str(policies), store, [request])[0]


def request(principal: str, action: str, resource: str, context: dict[str, Any] | None = None) -> dict[str, Any]:
    """A request as the reference takes it; uids in their printed form."""
    return {"principal": principal, "action": action, "resource": resource, "context": context or {}}


def uid_text(uid: dict[str, str]) -> str:
    """A uid of the conformance data in a form both sides read the same way, for display only."""
    return f"{uid['type']}::{json.dumps(uid['id'])}"


def corpus(name: str) -> Iterator[dict[str, Any]]:
    """The tests of a file of the conformance data; skips where the data is absent."""
    folder = Path(os.getenv("TOLLKEEPER_CEDAR_CORPUS") or ROOT.parent / "shared" / "data" / "cedar")
    path = folder / name
    if not path.is_file():
        pytest.skip(f"no Cedar conformance data at {path}; TOLLKEEPER_CEDAR_CORPUS names its folder")
    return _lines(path)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def recorded(request: dict[str, Any]) -> Seen:
    """What the conformance data says about a request."""
    return Seen(request["decision"], frozenset(request["reason"]), frozenset(request["errors"]))


def distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, in the order of the first."""
    return list(dict.fromkeys(texts))
