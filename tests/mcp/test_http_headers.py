"""Headers that say what the body says, in every way in which they may say it, and those that do not."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.mcp import http_headers
from tollkeeper.mcp.http_headers import HeaderCheck, Peers, Refused

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string", "x-mcp-header": "Text"},
        "count": {"type": "integer", "x-mcp-header": "Count"},
        "sure": {"type": "boolean", "x-mcp-header": "Sure"},
        "deep": {"type": "object", "properties": {"er": {"type": "string", "x-mcp-header": "Deeper"}}},
    },
}
VERSION = {"MCP-Protocol-Version": "2026-07-28"}


class Lower(dict[str, str]):
    """Headers, by names in any case."""

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__({name.lower(): value for name, value in headers.items()})

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())


def differs(headers: dict[str, str], arguments: Any, schema: Any = SCHEMA, name: str = "tool") -> str | None:
    check = HeaderCheck(SimpleNamespace(current={"tool": {"name": "tool", "inputSchema": schema}}))
    message = {"method": "tools/call", "params": {"name": name, "arguments": arguments}}
    return check(Lower({**VERSION, "Mcp-Method": "tools/call", "Mcp-Name": name, **headers}), message)


def sentinel(text: str) -> str:
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


@pytest.mark.parametrize(
    ("headers", "arguments"),
    [
        ({}, {}),
        ({}, None),
        ({}, {"text": None, "other": 1}),
        ({"Mcp-Param-Text": "a"}, {"text": "a"}),
        ({"mcp-param-TEXT": sentinel("ä b")}, {"text": "ä b"}),
        ({"Mcp-Param-Text": sentinel(sentinel("a"))}, {"text": sentinel("a")}),
        ({"Mcp-Param-Text": ""}, {"text": ""}),
        ({"Mcp-Param-Count": "42"}, {"count": 42}),
        ({"Mcp-Param-Count": "42.0"}, {"count": 42}),
        ({"Mcp-Param-Count": "-7"}, {"count": -7.0}),
        ({"Mcp-Param-Count": str(10**30)}, {"count": 10**30}),
        ({"Mcp-Param-Sure": "true"}, {"sure": True}),
        ({"Mcp-Param-Sure": "false"}, {"sure": False}),
        ({"Mcp-Param-Deeper": "x"}, {"deep": {"er": "x"}}),
        ({"Mcp-Param-Unknown": "x"}, {}),
    ],
)
def test_headers_that_agree(headers: dict[str, str], arguments: Any) -> None:
    assert differs(headers, arguments) is None


@pytest.mark.parametrize(
    ("headers", "arguments"),
    [
        ({}, {"text": "a"}),
        ({"Mcp-Param-Text": "a"}, {}),
        ({"Mcp-Param-Text": "a"}, None),
        ({"Mcp-Param-Text": "a"}, {"text": None}),
        ({"Mcp-Param-Text": "A"}, {"text": "a"}),
        ({"Mcp-Param-Text": "=?base64?YQ?="}, {"text": "a"}),
        ({"Mcp-Param-Text": "=?base64?YR==?="}, {"text": "a"}),
        ({"Mcp-Param-Text": "=?base64?/w==?="}, {"text": "ÿ"}),
        ({"Mcp-Param-Text": "1"}, {"text": 1}),
        ({"Mcp-Param-Text": "['a']"}, {"text": ["a"]}),
        ({"Mcp-Param-Count": "42.5"}, {"count": 42}),
        ({"Mcp-Param-Count": "4e1"}, {"count": 40}),
        ({"Mcp-Param-Count": "1"}, {"count": True}),
        ({"Mcp-Param-Count": "9" * 5000}, {"count": 9}),
        ({"Mcp-Param-Sure": "True"}, {"sure": True}),
        ({"Mcp-Param-Deeper": "x"}, {"deep": {}}),
        ({"Mcp-Param-Deeper": "x"}, {"deep": "x"}),
    ],
)
def test_headers_that_do_not(headers: dict[str, str], arguments: Any) -> None:
    found = differs(headers, arguments)
    assert found is not None
    assert "does not say the body's argument" in found


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"text": {"type": "number", "x-mcp-header": "Text"}}},
        {"properties": {"text": {"type": "string", "x-mcp-header": "Te xt"}}},
        {"properties": {"text": {"type": "string", "x-mcp-header": 7}}},
        {"type": "string", "x-mcp-header": "Text"},
        {"properties": {name: {"type": "string", "x-mcp-header": name} for name in ("text", "TEXT")}},
        {"properties": "text"},
        None,
    ],
)
def test_a_schema_that_says_it_wrongly_says_nothing(schema: Any) -> None:
    assert differs({"Mcp-Param-Text": "b"}, {"text": "a"}, schema) is None


@given(st.text(), st.booleans())
def test_what_a_client_makes_fit_for_a_header_agrees(text: str, plain: bool) -> None:  # noqa: FBT001
    safe = text.isascii() and text.isprintable() and not text.startswith("=?")
    header = text if plain and safe else sentinel(text)
    assert differs({"Mcp-Param-Text": header}, {"text": text}) is None
    assert differs({"Mcp-Param-Text": header}, {"text": text + "x"}) is not None


def test_names_of_resources_and_prompts_are_headers_too() -> None:
    check = HeaderCheck(SimpleNamespace(current={}))
    for method, key in (("resources/read", "uri"), ("prompts/get", "name")):
        message: dict[str, Any] = {"method": method, "params": {key: "a"}}
        assert check(Lower({**VERSION, "Mcp-Method": method, "Mcp-Name": "a"}), message) is None
        assert check(Lower({**VERSION, "Mcp-Method": method, "Mcp-Name": "b"}), message) is not None
        assert check(Lower({**VERSION, "Mcp-Method": method}), message) is not None
        # In older revisions they need not be there.
        assert check(Lower({}), message) is None
        assert check(Lower({"Mcp-Name": "b"}), message) is not None


def test_a_tool_that_is_defined_anew_is_looked_at_anew() -> None:
    pins = SimpleNamespace(current={"tool": {"inputSchema": SCHEMA}})
    check = HeaderCheck(pins)
    headers = Lower({**VERSION, "Mcp-Method": "tools/call", "Mcp-Name": "tool"})
    message = {"method": "tools/call", "params": {"name": "tool", "arguments": {"text": "a"}}}
    assert check(headers, message) is not None
    pins.current = {"tool": {"inputSchema": {"type": "object"}}}
    assert check(headers, message) is None
    pins.current = {}
    assert check(headers, message) is None


@pytest.mark.parametrize(
    ("version", "modern"),
    [
        ("2026-07-28", True),
        ("2027-01-01", True),
        ("2025-11-25", False),
        ("2026-07-2", False),
        ("9", False),
        ("", False),
        (None, False),
    ],
)
def test_the_revision_without_sessions_is_known(version: str | None, modern: bool) -> None:  # noqa: FBT001
    assert http_headers.is_modern(version) == modern


def test_a_header_twice_is_found() -> None:
    assert http_headers.repeated(["accept", "accept", "mcp-name"]) is None
    assert http_headers.repeated(["mcp-name", "host", "mcp-name"]) == "mcp-name"
    assert http_headers.repeated(["mcp-param-a", "mcp-param-b", "mcp-param-a"]) == "mcp-param-a"
    assert http_headers.repeated(["mcp-method", "mcp_method"]) == "mcp-method"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.1.2.3:9", "[::1]", "[::1]:80", "localhost."]
)
def test_names_of_this_machine_come_in(host: str) -> None:
    Peers("127.0.0.1", (), ()).check({"Host": host})


@pytest.mark.parametrize(
    "host", ["", "a", "localhost.example", "127.0.0.1.example", "[::2]", "[", "10.0.0.2", "localhost@evil.example"]
)
def test_other_names_do_not(host: str) -> None:
    with pytest.raises(Refused):
        Peers("127.0.0.1", (), ()).check({"Host": host})
    # Where others are meant to come in, they use other names.
    Peers("10.0.0.1", (), ()).check({"Host": host})
