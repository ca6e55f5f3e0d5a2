"""Writes a first Cedar schema, policies and tool sections out of what a server lists.

Nothing that a server says of itself is a reason to allow anything: the policies permit what it calls read-only to one
principal, with a word of warning, and hold the rest commented out. What JSON Schema says and Cedar cannot is left out
with a comment; a tool that the gate would refuse is too. The texts are for a person to read and change.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from tollkeeper._native import EntityUid, PolicySet
from tollkeeper.errors import ConfigError, PolicyError
from tollkeeper.mcp.pins import BUILT_IN
from tollkeeper.mcp.strict import folded

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Written", "write"]

NESTING_MAX: Final = 8
REFERENCES_MAX: Final = 32
# Of one tool: a schema that refers to itself in two places doubles with each level.
TYPES_MAX: Final = 2000
NOTES_MAX: Final = 50
# As the core has it.
NAME_BYTES_MAX: Final = 256
RESERVED: Final = frozenset({"call_model", "call_tool", "delegate"})
SHOWN_CHARS: Final = 100
PLAIN: Final = {"string": "String", "integer": "Long", "number": "decimal", "boolean": "Bool"}
PATHS: Final = re.compile(r"(^|_)(path|file|filename|dir|directory|folder)s?$", re.IGNORECASE)
IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What Cedar's schema language keeps for itself, and what reads like a type.
KEYWORDS: Final = frozenset({
    "action", "appliesTo", "attributes", "Bool", "Boolean", "context", "entity", "enum", "in", "Long", "namespace",
    "principal", "Record", "resource", "Set", "String", "tags", "type",
    "__cedar", "else", "false", "has", "if", "is", "like", "then", "true",
})  # fmt: skip


@dataclass(frozen=True)
class Written:
    """The three texts."""

    schema: str
    policies: str
    tools: str
    left_out: list[str]
    """Names of tools that cannot be used, with the reason."""


class _Unfit(Exception):  # noqa: N818 - a type that Cedar does not have
    """Something that cannot be expressed; says what."""


def write(server: str, principal: str, tools: list[dict[str, Any]]) -> Written:
    """Makes the texts.

    Args:
        server: What the operator calls the server.
        principal: Uid of whoever is permitted what only reads.
        tools: As the server lists them.

    Raises:
        EntityError: The principal is no uid.
        ConfigError: Its type has a name that a schema has for something else, as `Action`.
    """
    kind = EntityUid.parse(principal).type
    _refuse_type(kind)
    fit: list[dict[str, Any]] = []
    left_out: list[str] = []
    seen = set(BUILT_IN)
    for tool in tools:
        name = tool.get("name")
        problem = "it has no name" if type(name) is not str else _name_problem(name, seen)
        if problem is not None:
            left_out.append(f"{_comment(str(name))}: {problem}")
            continue
        seen.add(folded(cast("str", name)))
        fit.append(tool)
    fit.sort(key=lambda tool: cast("str", tool["name"]))
    return Written(_schema(server, kind, fit), _policies(server, principal, fit), _sections(server, fit), left_out)


def _refuse_type(kind: str) -> None:
    try:
        PolicySet.from_cedar("", _schema("server", kind, []))
    except PolicyError:
        message = f"--principal: no schema can have entities of the type `{kind}`, whose name stands for something else"
        raise ConfigError(message, "mcp.principal", "--principal 'Agent::\"researcher\"'") from None


def _name_problem(name: str, seen: set[str]) -> str | None:
    if not 0 < len(name.encode()) <= NAME_BYTES_MAX or not name.isprintable() or name.strip() != name:
        return "the gate does not take such a name"
    if folded(name) in RESERVED:
        return "the name is that of a built-in action"
    return "another tool has this name, but for case at most" if folded(name) in seen else None


def _comment(text: str) -> str:
    """Text of a server for a comment: one line, short, nothing hidden."""
    line = " ".join(text.split())
    short = line if len(line) <= SHOWN_CHARS else line[:SHOWN_CHARS] + "..."
    return "".join(char if char.isprintable() else "?" for char in short)


def _quoted(text: str) -> str:
    """A string of Cedar."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char.isprintable() else f"\\u{{{ord(char):x}}}" for char in plain) + '"'


def _schema(server: str, kind: str, tools: list[dict[str, Any]]) -> str:
    lines = [
        f"// What policies can say of the tools of {server}. It is checked when policies are loaded, and decides",
        "// nothing: what arguments may be is in the tools' own schemas, which the proxy registers.",
        "",
        *_entities(kind),
        "type Session = { id: String, labels: Set<String> };",
        "",
        "// The group of all tools.",
        "action call_tool;",
        "",
        *_action("read_resource", kind, ["uri: String"]),
        "// The arguments of prompts, by the names that policies read; all are text: { topic?: String }",
        *_action("get_prompt", kind, ["name: String", "arguments: {}"]),
    ]
    for tool in tools:
        fields, notes = _input(tool.get("inputSchema"))
        lines += [f"// {_comment(str(tool.get('description') or 'No description.'))}", *notes]
        lines += _action(cast("str", tool["name"]), kind, fields)
    lines += [
        "// A model's answer that the server asks the client for.",
        "action call_model appliesTo {",
        f"    principal: [{kind}],",
        "    resource: [Model],",
        "    context: {",
        "        input: { model: String, prompt_tokens: Long, max_tokens: Long, n: Long },",
        "        session: Session,",
        "        now: datetime",
        "    }",
        "};",
    ]
    return "\n".join(lines) + "\n"


def _entities(kind: str) -> Iterator[str]:
    namespace, _, plain = kind.rpartition("::")
    if namespace:
        yield f"namespace {namespace} {{ entity {plain}; }}"
    others = [name for name in ("Mcp", "Model") if name != kind]
    yield f"entity {', '.join(([] if namespace else [plain]) + others)};"


def _action(name: str, kind: str, fields: list[str]) -> list[str]:
    body = [f"            {field}," for field in fields[:-1]] + [f"            {field}" for field in fields[-1:]]
    return [
        f"action {_quoted(name)} in [call_tool] appliesTo {{",
        f"    principal: [{kind}],",
        "    resource: [Mcp],",
        "    context: {",
        *(["        input: {", *body, "        },"] if fields else ["        input: {},"]),
        "        session: Session,",
        "        now: datetime",
        "    }",
        "};",
        "",
    ]


def _input(schema: object) -> tuple[list[str], list[str]]:
    """Attributes of a tool's arguments, and comments on what was left out."""
    if type(schema) is not dict:
        return [], ["// It lists no schema of its arguments."]
    reader = _Reader(cast("dict[str, Any]", schema))
    try:
        fields = reader.fields(reader.resolved(reader.document), "", 0)
    except _Unfit as unfit:
        return [], [f"// Its arguments cannot be expressed: {unfit}."]
    return fields, reader.notes


class _Reader:
    """Makes types of Cedar of one tool's schema."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.notes: list[str] = []
        self._types = 0

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """What a reference into the same document refers to."""
        for _ in range(REFERENCES_MAX):
            reference = schema.get("$ref")
            if reference is None:
                return schema
            if type(reference) is not str or not reference.startswith("#"):
                raise _Unfit("a reference out of the schema")
            found: Any = self.document
            for step in reference[1:].split("/")[1:]:
                word = step.replace("~1", "/").replace("~0", "~")
                if type(found) is not dict or word not in found:
                    raise _Unfit("a reference to nothing")
                found = cast("dict[str, Any]", found)[word]
            if type(found) is not dict:
                raise _Unfit("a reference to what is no schema")
            schema = cast("dict[str, Any]", found)
        raise _Unfit("references in a circle")

    def fields(self, schema: dict[str, Any], place: str, depth: int) -> list[str]:
        """The attributes of a record."""
        properties = schema.get("properties")
        if type(properties) is not dict:
            return []
        required = schema.get("required")
        needed = set(map(str, cast("list[object]", required))) if type(required) is list else set[str]()
        fields: list[str] = []
        for name, item in sorted(cast("dict[str, Any]", properties).items()):
            at = f"{place}.{name}" if place else name
            try:
                written, nullable = self._type(item, at, depth)
            except _Unfit as unfit:
                if len(self.notes) < NOTES_MAX:
                    self.notes.append(f"// Left out: {_comment(at)}: {unfit}.")
                continue
            optional = nullable or name not in needed
            shown = name if IDENTIFIER.fullmatch(name) and name not in KEYWORDS else _quoted(name)
            fields.append(f"{shown}{'?' if optional else ''}: {written}")
        return fields

    def _type(self, schema: object, at: str, depth: int) -> tuple[str, bool]:
        """A type of Cedar, and whether null is among the values: to policies null is an absent attribute."""
        self._types += 1
        if depth >= NESTING_MAX or self._types > TYPES_MAX:
            raise _Unfit("nested too deeply")
        if type(schema) is not dict:
            raise _Unfit("anything goes")
        found = self.resolved(cast("dict[str, Any]", schema))
        for word in ("anyOf", "oneOf"):
            if word in found:
                return self._one_of(found[word], at, depth)
        if "allOf" in found:
            raise _Unfit("several schemas at once")
        kinds = found.get("type")
        if kinds is None:
            values: object = [found["const"]] if "const" in found else found.get("enum")
            if type(values) is not list:
                raise _Unfit("anything goes")
            return _listed(cast("list[object]", values))
        names = cast("list[object]", kinds) if type(kinds) is list else [kinds]
        others = [name for name in names if name != "null"]
        if len(others) != 1 or type(others[0]) is not str:
            raise _Unfit("values of several types")
        return self._named(others[0], found, at, depth), "null" in names

    def _named(self, kind: str, schema: dict[str, Any], at: str, depth: int) -> str:
        if kind in PLAIN:
            return PLAIN[kind]
        if kind == "array":
            inner, nullable = self._type(schema.get("items"), f"{at}[]", depth + 1)
            if nullable or "prefixItems" in schema:
                raise _Unfit("a list of values of several types")
            return f"Set<{inner}>"
        if kind == "object":
            fields = self.fields(schema, at, depth + 1)
            if not fields:
                raise _Unfit("an object whose members are not known")
            return "{ " + ", ".join(fields) + " }"
        raise _Unfit("a type that is not known")

    def _one_of(self, forms: object, at: str, depth: int) -> tuple[str, bool]:
        if type(forms) is not list:
            raise _Unfit("alternatives that are no list")
        found: set[str] = set()
        nullable = False
        for form in cast("list[object]", forms):
            if form == {"type": "null"}:
                nullable = True
                continue
            written, null = self._type(form, at, depth + 1)
            found.add(written)
            nullable = nullable or null
        # The gate reads every number as a decimal where either may stand.
        if found == {"Long", "decimal"}:
            found = {"decimal"}
        if len(found) != 1:
            raise _Unfit("values of several types")
        return found.pop(), nullable


def _listed(values: list[object]) -> tuple[str, bool]:
    names: dict[type[object], str] = {bool: "Bool", int: "Long", str: "String"}
    kinds = {names.get(type(value)) for value in values if value is not None}
    if len(kinds) != 1 or None in kinds:
        raise _Unfit("values of several types")
    return cast("str", kinds.pop()), None in values


def _read_only(tool: dict[str, Any]) -> bool:
    notes = tool.get("annotations")
    return type(notes) is dict and cast("dict[str, Any]", notes).get("readOnlyHint") is True


def _policies(server: str, principal: str, tools: list[dict[str, Any]]) -> str:
    resource = f"Mcp::{_quoted(server)}"
    reads = [cast("str", tool["name"]) for tool in tools if _read_only(tool)]
    lines = [f"// A first policy for {server}. What nothing permits is denied.", ""]
    if reads:
        lines += [
            "// The server says of these tools that they only read (readOnlyHint). It says so of itself and nobody has",
            "// checked it: read what each does, and take out what this principal does not need.",
            f'@id("{server}-reads")',
            "permit (",
            f"    principal == {principal},",
            "    action in [",
            *(f"        Action::{_quoted(name)}," for name in reads[:-1]),
            f"        Action::{_quoted(reads[-1])}",
            "    ],",
            f"    resource == {resource}",
            ");",
            "",
        ]
    lines += ["// Everything else, to be permitted one by one, each with the arguments that are needed:", "//"]
    others = [cast("str", tool["name"]) for tool in tools if not _read_only(tool)]
    for name in [*others, "read_resource", "get_prompt"]:
        lines += [
            f"// @id({_quoted(f'{server}-{name}')})",
            f"// permit (principal == {principal}, action == Action::{_quoted(name)}, resource == {resource});",
            "//",
        ]
    return "\n".join(lines[:-1]) + "\n"


def _sections(server: str, tools: list[dict[str, Any]]) -> str:
    resource = f"Mcp::{_quoted(server)}"
    lines = [
        f"# For tollkeeper.toml: the tools of {server}. Without a section a tool costs one request, without labels.",
        "# What they return was written by others; policies can read that a session has seen it. Each tool's schema",
        "# comes from the server, pinned; write one here, and it holds instead.",
    ]
    for name in ["read_resource", "get_prompt", *(cast("str", tool["name"]) for tool in tools)]:
        found = next((tool for tool in tools if tool["name"] == name), cast("dict[str, Any]", {}))
        lines += ["", f"[tools.{_key(name)}]", f"resource = {_toml(resource)}", 'reads = ["untrusted"]']
        schema = found.get("inputSchema")
        properties = cast("dict[str, Any]", schema).get("properties") if type(schema) is dict else None
        names = cast("dict[str, Any]", properties) if type(properties) is dict else {}
        paths = [argument for argument in names if PATHS.search(argument)]
        if paths:
            lines.append(f"# paths = [{', '.join(_toml(argument) for argument in paths)}]  # refuses `..` and `~`")
    text = "\n".join(lines) + "\n"
    tomllib.loads(text)
    return text


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(text: str) -> str:
    # The escapes of JSON are among those of TOML's basic strings, but for characters beyond the first plane.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
