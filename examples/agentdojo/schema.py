"""Write a Cedar schema from tool signatures: one action per tool, its arguments under `context.input`.

For: validating policies strictly against what the tools really take, so that a misspelt argument or a
comparison of unlike types is an error when the policy is loaded and not a rule that never matches.

Refuses to: guess. A part of JSON Schema that has no counterpart in Cedar (a union of unlike types, a list of
unspecified items, an object without declared fields) is a `SchemaError` that names the argument; the caller
may then state the Cedar type of that argument. Cedar has no null, so an argument that may be null, or that
has a default, is an optional attribute.

No dependency beyond the standard library, so that any project can copy the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# Action group of every tool call; policies may speak of all tools at once with it.
GROUP = "call_tool"

# What the gate says about every call, besides its arguments.
SESSION = "type Session = { id: String, labels: Set<String> };"

# `number` is decimal, whole numbers too: one argument has one type. Cedar's decimal has four digits.
_SCALARS = {"string": "String", "integer": "Long", "number": "decimal", "boolean": "Bool"}

# Signatures come from other programs, so their depth is not ours to trust. Arguments of real tools nest
# three or four deep; the gate itself takes 32.
MAX_DEPTH = 32


class SchemaError(ValueError):
    """A tool signature that Cedar cannot express as it stands."""


def cedar_schema(
    tools: Mapping[str, Mapping[str, Any]],
    resources: Mapping[str, str],
    entities: str,
    *,
    principal: str = "Agent",
    open_objects: Mapping[str, str] | None = None,
) -> str:
    """The schema text for `tools`.

    `tools` maps a tool's name to the JSON Schema of its arguments, `resources` maps it to the entity type of
    the system that owns it, `entities` is the text that declares the entity types, and `open_objects` maps
    `"tool.argument"` to the Cedar type of an argument whose JSON Schema leaves it open.
    """
    stated = dict(open_objects or {})
    lines = [entities.rstrip(), SESSION, "", f"action {json.dumps(GROUP)};"]
    for tool in sorted(tools):
        fields = _fields(tool, tools[tool], stated)
        lines += [
            "",
            f"action {json.dumps(tool, ensure_ascii=False)} in [{json.dumps(GROUP)}] appliesTo {{",
            f"    principal: [{principal}],",
            f"    resource: [{resources[tool]}],",
            f"    context: {{ input: {fields}, session: Session, now: datetime }},",
            "};",
        ]
    if stated:
        raise SchemaError(f"types are stated for arguments that no tool has: {', '.join(sorted(stated))}")
    return "\n".join(lines) + "\n"


def _fields(tool: str, schema: Mapping[str, Any], stated: dict[str, str]) -> str:
    """The record of a tool's arguments; takes the types it uses out of `stated`."""
    definitions = schema.get("$defs", {})
    required = set(schema.get("required", ()))
    parts = []
    for name, declared in schema.get("properties", {}).items():
        where = f"{tool}.{name}"
        resolved, nullable = _resolve(where, declared, definitions)
        cedar = stated.pop(where, None) or _type(where, resolved, definitions, 1)
        optional = nullable or name not in required
        parts.append(f"{json.dumps(name, ensure_ascii=False)}{'?' if optional else ''}: {cedar}")
    return "{ " + ", ".join(parts) + " }" if parts else "{}"


def _resolve(where: str, declared: Mapping[str, Any], definitions: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """Follow references and take null out of a union; says whether null was there."""
    nullable = False
    for _ in range(MAX_DEPTH):
        if "$ref" in declared:
            reference = declared["$ref"]
            name = reference.removeprefix("#/$defs/")
            if name not in definitions:
                raise SchemaError(f"{where}: the reference {reference!r} leads nowhere")
            declared = definitions[name]
        elif "anyOf" in declared:
            branches = [branch for branch in declared["anyOf"] if branch.get("type") != "null"]
            nullable = nullable or len(branches) < len(declared["anyOf"])
            if len(branches) != 1:
                raise SchemaError(f"{where}: Cedar has no type for a union of {len(branches)} types")
            declared = branches[0]
        else:
            return declared, nullable
    raise SchemaError(f"{where}: references nest deeper than {MAX_DEPTH}")


def _type(where: str, declared: Mapping[str, Any], definitions: Mapping[str, Any], depth: int) -> str:
    """The Cedar type of one resolved JSON Schema."""
    if depth > MAX_DEPTH:
        raise SchemaError(f"{where}: types nest deeper than {MAX_DEPTH}")
    kind = declared.get("type")
    if isinstance(kind, str) and kind in _SCALARS:
        return _SCALARS[kind]
    if kind == "array" and isinstance(declared.get("items"), Mapping):
        item, nullable = _resolve(where, declared["items"], definitions)
        if nullable:
            raise SchemaError(f"{where}: a Cedar set cannot hold null")
        return f"Set<{_type(where, item, definitions, depth + 1)}>"
    if kind == "object" and declared.get("properties"):
        required = set(declared.get("required", ()))
        parts = []
        for name, inner in declared["properties"].items():
            resolved, nullable = _resolve(f"{where}.{name}", inner, definitions)
            mark = "?" if nullable or name not in required else ""
            cedar = _type(f"{where}.{name}", resolved, definitions, depth + 1)
            parts.append(f"{json.dumps(name, ensure_ascii=False)}{mark}: {cedar}")
        return "{ " + ", ".join(parts) + " }"
    raise SchemaError(
        f"{where}: Cedar has no type for {json.dumps(declared, sort_keys=True)}; state it in `open_objects`"
    )
