"""What `tollkeeper mcp schema` writes loads, validates, and works with the proxy."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxied import PRINCIPAL, SERVER, Client, environment, text_of

from tollkeeper import PolicySet
from tollkeeper.errors import ConfigError
from tollkeeper.mcp import listing, schema

if TYPE_CHECKING:
    from pathlib import Path

TOOLS: list[dict[str, Any]] = [
    {
        "name": "read-file",
        "description": "reads\n a file */ // permit(principal, action, resource);",
        "annotations": {"readOnlyHint": True},
        "inputSchema": {
            "type": "object",
            "required": ["path", "head"],
            "properties": {
                "path": {"type": "string"},
                "head": {"type": ["integer", "null"]},
                "options": {"$ref": "#/$defs/o"},
                "any": {},
                "in": {"type": "string"},
                "a-b": {"type": "number"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                "number": {"anyOf": [{"type": "integer"}, {"type": "number"}, {"type": "null"}]},
                "word": {"enum": ["a", "b"]},
            },
            "$defs": {"o": {"type": "object", "properties": {"deep": {"type": "boolean"}}}},
        },
    },
    {"name": 'say "x"', "inputSchema": {"type": "object"}},
    {"name": "call_tool"},
    {"name": "Read-File"},
    {"name": "read_resource"},
    {"name": "hidden\u200b"},
    {"name": "bare"},
]


def load(written: schema.Written) -> PolicySet:
    tomllib.loads(written.tools)
    return PolicySet.from_cedar(written.policies, written.schema)


def test_what_can_be_expressed_is_and_the_rest_is_said() -> None:
    written = schema.write("files", PRINCIPAL, TOOLS)
    assert len(load(written)) == 1
    for line in (
        "path: String,",
        "head?: Long,",
        "options?: { deep?: Bool },",
        '"in"?: String,',
        '"a-b"?: decimal,',
        "number?: decimal,",
        "word?: String",
        "// Left out: any: anything goes.",
        "// Left out: either: values of several types.",
    ):
        assert line in written.schema
    assert [line.split(":")[0] for line in written.left_out] == ["call_tool", "Read-File", "read_resource", "hidden?"]
    assert 'Action::"read-file"' in written.policies
    assert '// permit (principal == Agent::"tester", action == Action::"bare"' in written.policies
    assert '# paths = ["path"]' in written.tools


def test_a_policy_can_use_what_was_written() -> None:
    written = schema.write("files", PRINCIPAL, TOOLS)
    policy = 'permit(principal, action == Action::"read-file", resource) when { context.input.path like "/open/*" };'
    assert len(PolicySet.from_cedar(policy, written.schema)) == 1
    with pytest.raises(ValueError, match="pathh"):
        PolicySet.from_cedar(policy.replace("input.path", "input.pathh"), written.schema)


@pytest.mark.parametrize(
    "principal", ['Agent::"x"', 'Corp::Agent::"a b"', 'Session::"x"', 'Mcp::"self"', 'User::"q\\"uote"']
)
def test_any_principal(principal: str) -> None:
    assert len(load(schema.write("s", principal, TOOLS))) == 1


@pytest.mark.parametrize("kind", ["Action", "Corp::Action", "Corp::Session"])
def test_a_principal_whose_type_no_schema_can_have_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=kind):
        schema.write("s", f'{kind}::"a"', TOOLS)


def test_prompts_are_text_of_others_too() -> None:
    written = schema.write("s", PRINCIPAL, TOOLS)
    assert tomllib.loads(written.tools)["tools"]["get_prompt"]["reads"] == ["untrusted"]
    assert "        input: {\n            name: String,\n            arguments: {}\n        }," in written.schema


kinds = st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object", "odd", 7])
names = st.text(max_size=6)
schemas = st.recursive(
    st.fixed_dictionaries({"type": kinds}) | st.just({}) | st.booleans() | st.just({"$ref": "#"}) | st.none(),
    lambda inner: st.fixed_dictionaries({"type": kinds}, optional={
        "properties": st.dictionaries(names, inner, max_size=3),
        "required": st.lists(names, max_size=2),
        "items": inner,
        "anyOf": st.lists(inner, max_size=2),
        "allOf": st.lists(inner, max_size=2),
        "enum": st.lists(st.none() | st.integers() | names, max_size=2),
        "const": st.none() | names,
        "$ref": st.sampled_from(["#", "#/properties", "#/$defs/a", "x", 5]),
    }),
    max_leaves=8,
)  # fmt: skip


@given(st.lists(st.fixed_dictionaries({"name": names, "inputSchema": schemas, "description": names}), max_size=3))
@settings(max_examples=60)
def test_whatever_a_server_lists_what_is_written_loads(tools: list[dict[str, Any]]) -> None:
    load(schema.write("s", PRINCIPAL, tools))


def test_a_schema_that_refers_to_itself_ends() -> None:
    both = {"type": "object", "properties": {name: {"$ref": "#"} for name in "abcdefgh"}}
    load(schema.write("s", PRINCIPAL, [{"name": "x", "inputSchema": both}]))


def test_the_command_and_then_the_proxy(folder: Path) -> None:
    server = (sys.executable, str(SERVER))
    words = ["mcp", "schema", "--server", "plain", "--principal", PRINCIPAL, "--out", "made", "--", *server]
    tollkeeper = [sys.executable, "-m", "tollkeeper"]

    def run(*rest: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - the words are above and below
            [*tollkeeper, *rest], cwd=folder, env=environment(), capture_output=True, text=True, check=False
        )

    done = run(*words)
    assert (done.returncode, done.stderr) == (0, "")
    again = run(*words)
    assert again.returncode == 2
    assert "these files exist" in again.stderr
    done = run("policy", "validate", "--policies", "made/plain.cedar", "--schema", "made/plain.cedarschema")
    assert done.returncode == 0, done.stderr
    # Everything that it holds back, permitted.
    policies = (folder / "made" / "plain.cedar").read_text().splitlines()
    kept = [line.removeprefix("// ") for line in policies if line.startswith(("// @id", "// permit"))]
    (folder / "p.cedar").write_text("\n".join(kept))
    (folder / "tollkeeper.toml").write_text(
        '[policy]\nfiles = ["p.cedar"]\nschema = "made/plain.cedarschema"\n[budget]\nfile = "budgets.toml"\n'
        + (folder / "made" / "plain.toml").read_text()
    )
    with Client(folder) as client:
        assert text_of(client.call("echo", 1, text="x")) == "x"
        assert client.ask({"id": 2, "method": "resources/read", "params": {"uri": "a:b"}})["result"]["contents"]
        refused = text_of(client.call("echo", 3, text=["x"]))
        assert refused.startswith("Denied (input.unrepresentable)"), json.dumps(refused)
        client.end()


@pytest.mark.parametrize("word", ["if", "then", "else", "true", "false", "has", "is", "like", "in", "__cedar"])
def test_words_of_the_language_may_name_arguments(word: str) -> None:
    of = {"type": "object", "properties": {word: {"type": "string"}}}
    load(schema.write("s", PRINCIPAL, [{"name": word, "inputSchema": of}]))


def test_a_server_may_not_send_elsewhere() -> None:
    asked: list[str] = []

    class Moved(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(302)
            self.send_header("Location", "/inner")
            self.end_headers()

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Moved)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ConfigError, match="HTTP status 302"):
            listing.of_url(f"http://127.0.0.1:{server.server_address[1]}/mcp")
    finally:
        server.shutdown()
        server.server_close()
    assert asked == []
