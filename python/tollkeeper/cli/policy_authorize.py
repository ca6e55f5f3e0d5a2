"""``tollkeeper policy authorize``: answers requests as the reference does, JSON lines in, JSON lines out.

The language's own semantics: a policy that errs is skipped and named, and policies are called ``policy0``, ``policy1``
and so on. A gate is stricter; ask one with ``tollkeeper decide``. Contexts are read with Cedar's escapes, so requests
must come from somebody who is trusted.
"""

import argparse
from functools import lru_cache
from pathlib import Path

import msgspec

from tollkeeper import Context, EntityUid
from tollkeeper.cli import inputs
from tollkeeper.cli.terminal import EXIT_OK, InputError, out_json
from tollkeeper.errors import EntityError

# With a schema each context is read through it, which costs as much as reading the schema.
CONTEXTS_KEPT = 1024


class RequestLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the requests file."""

    principal: str | inputs.Uid
    action: str | inputs.Uid
    resource: str | inputs.Uid
    context: msgspec.Raw = msgspec.Raw(b"{}")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    inputs.add_sources(parser)
    parser.add_argument(
        "--requests",
        metavar="FILE",
        required=True,
        help="JSON lines with principal, action, resource, context; - is stdin",
    )
    parser.add_argument(
        "--ids", choices=["positional", "annotation"], default="positional", help="default: %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    """Answers every request; the exit code says whether all could be read, not how they were decided."""
    found = inputs.sources(arguments)
    policies = inputs.load_policies(found.policies, found.schema, arguments.ids)
    entities = inputs.load_entities(found.entities, found.schema)
    contexts = lru_cache(CONTEXTS_KEPT)(_context)
    name = arguments.requests
    for number, request in inputs.read_lines(name, msgspec.json.Decoder(RequestLine)):
        uids = {key: _uid(getattr(request, key), key, name, number) for key in ("principal", "action", "resource")}
        with inputs.located(name, number, "context: "):
            context = contexts(bytes(request.context), found.schema, uids["action"])
        answer = policies.decide(uids["principal"], uids["action"], uids["resource"], context, entities)
        errors = [{"policy": error.policy, "message": error.message} for error in answer.errors]
        out_json({"decision": answer.decision, "reasons": answer.reasons, "errors": errors})
    return EXIT_OK


def _context(text: bytes, schema: Path | None, action: EntityUid) -> Context:
    return Context.from_cedar_json(text.decode(), schema, action=None if schema is None else action)


def _uid(value: str | inputs.Uid, key: str, name: str, number: int) -> EntityUid:
    try:
        return inputs.read_uid(value)
    except EntityError as error:
        raise InputError(f"{name}:{number}: {key}: {error.args[0]}", error.help) from None
