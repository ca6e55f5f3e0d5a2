"""``tollkeeper policy conformance``: asks the recorded questions of the reference and compares the answers.

Each line of a file is one test: policies, schema, entities, and requests with the decision, the reasons and the ids of
erroring policies that the reference gave. Entities are read with the test's schema, contexts as they are; policies are
not validated, because some of the recorded ones are invalid on purpose. Nothing is skipped: what cannot be read is a
mismatch.
"""

import argparse
import time
from functools import lru_cache
from typing import Final

import msgspec

from tollkeeper import Context, Entities, EntityUid, PolicySet
from tollkeeper.cli import inputs
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, InputError, counted, out, out_json, progress, shown
from tollkeeper.errors import ContextError, EntityError, PolicyError

# Most tests of the published corpus share their policies with others: 4,947 tests, 1,974 texts.
POLICY_SETS_KEPT: Final = 4096


class RecordedRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"validate": "validateRequest"}):
    """One recorded question and its answer."""

    principal: inputs.Uid
    action: inputs.Uid
    resource: inputs.Uid
    context: msgspec.Raw
    decision: str
    reason: list[str]
    errors: list[str]
    description: str = ""
    validate: bool = False


class RecordedTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"validates": "shouldValidate"}):
    """One line of the file."""

    id: str
    policies: str
    entities: msgspec.Raw
    requests: list[RecordedRequest]
    schema: str | None = None
    validates: bool = False


class Mismatch(msgspec.Struct, frozen=True):
    """An answer that is not the recorded one."""

    test: str
    request: int | None
    """Counted from 0; null where the test could not be loaded."""
    expected: str
    actual: str


class FileResult(msgspec.Struct):
    """What one file gave."""

    file: str
    tests: int = 0
    requests: int = 0
    mismatches: list[Mismatch] = []
    seconds: float = 0.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("files", metavar="FILE", nargs="+", help="recorded tests, .jsonl or .jsonl.gz")
    parser.add_argument("--json", action="store_true", help="print one JSON object per file")


def run(arguments: argparse.Namespace) -> int:
    """Runs every file; 1 if any answer differs."""
    wrong = 0
    for name in arguments.files:
        result = compare(name)
        wrong += len(result.mismatches)
        if not result.tests:
            raise InputError(f"{name}: the file holds no test")
        if arguments.json:
            out_json(msgspec.to_builtins(result))
            continue
        for mismatch in result.mismatches:
            at = f"{mismatch.test}" + ("" if mismatch.request is None else f" request {mismatch.request}")
            out(f"mismatch: {shown(at)}")
            out(f"  expected: {shown(mismatch.expected)}")
            out(f"  actual:   {shown(mismatch.actual)}")
        counts = [counted(result.tests, "test"), counted(result.requests, "request")]
        counts.append(counted(len(result.mismatches), "mismatch", "mismatches"))
        out(f"{shown(name)}: {', '.join(counts)} in {result.seconds:.1f} s")
    return EXIT_NO if wrong else EXIT_OK


def compare(name: str) -> FileResult:
    """Asks everything that one file holds."""
    result = FileResult(name, mismatches=[])
    started = time.perf_counter()
    loaded = lru_cache(POLICY_SETS_KEPT)(PolicySet.from_cedar)
    lines = inputs.read_lines(name, msgspec.json.Decoder(RecordedTest))
    with progress(lines, None, "tests") as drawn:
        for _, test in drawn:
            result.tests += 1
            result.requests += len(test.requests)
            try:
                policies = loaded(test.policies)
                entities = Entities.from_json(bytes(test.entities).decode(), test.schema)
            except (PolicyError, EntityError) as error:
                result.mismatches.append(Mismatch(test.id, None, "a test that can be loaded", str(error)))
                continue
            result.mismatches.extend(_differences(test, policies, entities))
    result.seconds = round(time.perf_counter() - started, 3)
    return result


def _differences(test: RecordedTest, policies: PolicySet, entities: Entities) -> list[Mismatch]:
    found: list[Mismatch] = []
    for number, request in enumerate(test.requests):
        expected = _words(request.decision, request.reason, request.errors)
        try:
            principal, action, resource = (
                EntityUid(uid.type, uid.id) for uid in (request.principal, request.action, request.resource)
            )
            context = Context.from_cedar_json(bytes(request.context).decode())
        except (EntityError, ContextError) as error:
            found.append(Mismatch(test.id, number, expected, str(error)))
            continue
        answer = policies.decide(principal, action, resource, context, entities)
        actual = _words(answer.decision, answer.reasons, [error.policy for error in answer.errors])
        if actual != expected:
            found.append(Mismatch(test.id, number, expected, actual))
    return found


def _words(decision: str, reasons: list[str], errors: list[str]) -> str:
    because = ", ".join(sorted(reasons)) or "none"
    return f"{decision}; reasons: {because}; errors: {', '.join(sorted(errors)) or 'none'}"
