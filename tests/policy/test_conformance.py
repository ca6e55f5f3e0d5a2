"""Cedar's own conformance data through the Python API: decision, reasons and erroring ids equal the recorded ones.

The data is not part of the project: TOLLKEEPER_CEDAR_CORPUS names its folder, and without it the tests are skipped.
"""

import json
from typing import Any

import pytest
from oracle import corpus, recorded, seen, uid_text

from tollkeeper import Context, Entities, EntityUid, PolicySet

pytestmark = pytest.mark.timeout(300)


def uid(parts: dict[str, str]) -> EntityUid:
    return EntityUid(parts["type"], parts["id"])


def disagreements(test: dict[str, Any], *, through_schema: bool) -> list[str]:
    """Asks every request of one test; says which answers are not the recorded ones."""
    schema = test["schema"] if through_schema else None
    policies = PolicySet.from_cedar(test["policies"])
    entities = Entities.from_json(json.dumps(test["entities"]), schema)
    wrong = []
    for number, request in enumerate(test["requests"]):
        action = uid(request["action"])
        context = Context.from_cedar_json(
            json.dumps(request["context"]), schema, action=action if through_schema else None
        )
        principal, resource = uid(request["principal"]), uid(request["resource"])
        answer = policies.decide(principal, action, resource, context, entities)
        quick = policies.decide(principal, action, resource, context, entities, decision_only=True)
        if seen(answer) != recorded(request) or quick.decision != answer.decision:
            place = f"{test['id']} request {number} of {uid_text(request['principal'])}"
            wrong.append(f"{place}: {answer!r}, recorded {recorded(request)}")
    return wrong


def check(name: str, *, through_schema: bool, tests_min: int, requests_min: int) -> None:
    tests, requests, wrong = 0, 0, []
    for test in corpus(name):
        wrong += disagreements(test, through_schema=through_schema)
        tests += 1
        requests += len(test["requests"])
    assert not wrong, f"{len(wrong)} of {requests} differ:\n" + "\n".join(wrong[:10])
    assert (tests, requests) >= (tests_min, requests_min), "the data is not complete"


def test_the_corpus_without_its_schemas() -> None:
    check("corpus.jsonl.gz", through_schema=False, tests_min=4_947, requests_min=39_576)


def test_the_handwritten_tests_through_their_schemas() -> None:
    """Thirteen of these requests name entities in a form that only the schema explains."""
    check("handwritten.jsonl.gz", through_schema=True, tests_min=22, requests_min=74)


def test_valid_policies_pass_the_validator() -> None:
    """Reading with the schema changes no answer and finds no fault in what is recorded as valid."""
    checked = 0
    for number, test in enumerate(corpus("corpus.jsonl.gz")):
        if number % 20 or not test["shouldValidate"]:
            continue
        validated = PolicySet.from_cedar(test["policies"], test["schema"])
        entities = Entities.from_json(json.dumps(test["entities"]), test["schema"])
        for request in test["requests"]:
            context = Context.from_cedar_json(
                json.dumps(request["context"]), test["schema"], action=uid(request["action"])
            )
            parts = (uid(request[part]) for part in ("principal", "action", "resource"))
            assert seen(validated.decide(*parts, context, entities)) == recorded(request), test["id"]
            checked += 1
    assert checked > 1_000
