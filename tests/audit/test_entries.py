"""The schema of entries: it is one, the entries of the model and of the real log follow it, and the page follows it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("cryptography")
pytest.importorskip("jsonschema")

import jsonschema
from model_log import Entries, base64_of, commitment, salted, sha256

DIGEST = base64_of(sha256(b"anything"))
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"


@pytest.fixture(scope="module")
def schema(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "python" / "tollkeeper" / "entry_schema.json").read_text())
    return found


@pytest.fixture(scope="module")
def errors(schema: dict[str, Any]) -> Callable[[bytes], list[str]]:
    """What is wrong with an entry, also with the order of its members."""
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)

    def find(entry: bytes) -> list[str]:
        members = json.loads(entry)
        found = [error.message for error in validator.iter_errors(members)]
        order = [*schema["properties"], *schema["$defs"].get(members.get("kind"), {}).get("properties", {})]
        known = [name for name in members if name in order]
        return found + (["order"] if known != sorted(known, key=order.index) else [])

    return find


def full_decision(maker: Entries) -> bytes:
    """With every member that there is."""
    return maker.entry(
        "decision",
        id=f"{maker.producer}-2",
        principal='Agent::"a"',
        chain=['Agent::"c"', 'Agent::"a"'],
        on_behalf_of='User::"b"',
        session="s",
        run="r3",
        narrowing=[DIGEST],
        request=DIGEST,
        parent=f"{maker.producer}-1",
        asserted={"runtime": "maf", "agent": "a", "session": "t", "run": "r", "call": "c"},
        action='Action::"ask"',
        resource='Model::"m"',
        tool="ask",
        pin=DIGEST,
        model={"name": "m", "prompt_tokens": 10, "max_tokens": 20, "n": 1},
        arguments={"bytes": 3, "commitment": commitment(salted(2))},
        decision="deny",
        code="budget.tokens",
        would_deny="policy.forbidden",
        policies={"limits.cedar:3": DIGEST},
        denied_for='Agent::"c"',
        approval="0123456789abcdef",
        would_deny_policies=["other"],
        errors=["third"],
        obligations=["tell"],
        labels=["pii"],
        budget={
            "path": "team/agent",
            "reserved": {"tokens": 30},
            "remaining": {"tokens": -5},
            "refused": {
                "path": "team",
                "unit": "tokens",
                "window": "1h",
                "limit": 9,
                "used": 8,
                "held": 1,
                "retry_after_ms": 1_000,
            },
        },
        budget_seen={"tokens": {"1h": {"remaining": 1, "used": 8, "limit": 9}}},
        mode="shadow",
        bundle=DIGEST,
        entities=DIGEST,
        generation=4,
        durability="sync",
        trace={"trace_id": "0" * 31 + "1", "span_id": "0" * 15 + "1"},
        engine="0.1.0",
    )


def examples() -> Iterator[bytes]:
    """An entry of each kind, those with members of their own in full."""
    maker = Entries()
    sibling = {"origin": "example.com/gate/1/1", "size": 7, "root": DIGEST}
    yield maker.start(siblings=[sibling])
    yield maker.decision(1, salted(1))
    yield full_decision(maker)
    yield maker.outcome(1)
    yield maker.entry(
        "outcome",
        of=f"{maker.producer}-1",
        status="error",
        error="TimeoutError",
        usage={"input_tokens": 3},
        model="m-2026",
        cost={"tokens": 3},
        duration_ms=12,
        labels_added=["untrusted"],
        trace={"trace_id": "0" * 31 + "1", "span_id": "0" * 15 + "1"},
    )
    yield maker.entry(
        "recovery",
        writer=True,
        of=maker.producer,
        cut_bytes=50,
        cut_from_size=7,
        drained=3,
        lost=[[4, 5]],
        reason="killed",
    )
    span = {"from": "2026-11-21T17:05:18.123Z", "to": "2026-11-21T17:05:19.000Z", "producers": [maker.producer]}
    yield maker.entry("gap", writer=True, count=17, **span)
    yield maker.entry("denied_unlogged", writer=True, count=17, **span)
    yield maker.entry("epoch", writer=True, **sibling, checkpoint="a note")
    yield maker.entry("erasure", writer=True, index=3, commitment=DIGEST)
    yield maker.entry("stop", writer=True, clean=True)
    commits = {"bytes": 3, "commitment": DIGEST}
    yield maker.entry(
        "run",
        principal='Agent::"a"',
        chain=['Agent::"c"', 'Agent::"a"'],
        on_behalf_of='User::"b"',
        session="s",
        run="r2",
        narrowing=[DIGEST],
        inside="r1",
        parent=f"{maker.producer}-1",
        tools=["ask"],
        path="acme",
        expires_ms=1_795_000_000_000,
        labels=["pii"],
        request=commits,
    )
    yield maker.entry(
        "policy_load", bundle=DIGEST, entities=DIGEST, policies=3, tools=2, mode="enforce", on_full="deny"
    )
    target = {"kind": "principal", "name": 'Agent::"a"'}
    yield maker.entry("revoke", target=target, restored=False, generation=3, reason="lost", by="root")
    yield maker.entry("revoke", generation=3, observed=True, in_force=1)
    yield maker.entry(
        "approve", approval="0123456789abcdef", granted=True, by="admin", digest=DIGEST, expires=span["to"]
    )
    for kind in ("limit_changed", "limits_loaded", "recovered", "healed", "restarted", "clock_accepted"):
        cell = {"path": "acme", "unit": "tokens", "window": "1d"}
        yield maker.entry(kind, number=1, pid=2, **cell, before=3, after=4)


def test_every_kind_has_entries_that_follow(schema: dict[str, Any], errors: Callable[[bytes], list[str]]) -> None:
    seen = set()
    for entry in examples():
        assert not errors(entry), entry
        seen.add(json.loads(entry)["kind"])
    kinds = schema["properties"]["kind"]["enum"]
    closed = {kind for kind in kinds if "properties" in schema["$defs"][kind]}
    assert seen == closed
    for kind in set(kinds) - closed:
        assert not errors(Entries().entry(kind, whatever=[1])), kind
    # The full example leaves no member out.
    decision = json.loads(list(examples())[2])
    assert list(decision) == [*schema["properties"], *schema["$defs"]["decision"]["properties"]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"v": 2}, "1 was expected"),
        ({"kind": "other"}, "is not one of"),
        ({"producer": "A1"}, "does not match"),
        ({"seq": 0}, "less than the minimum"),
        ({"time": "2026-11-21 17:05"}, "does not match"),
        ({"decision": "maybe"}, "is not one of"),
        ({"bundle": "short"}, "does not match"),
        ({"surprise": 1}, "Unevaluated properties"),
        ({"arguments": {"bytes": 1}}, "required property"),
    ],
)
def test_what_does_not_follow(change: dict[str, Any], says: str, errors: Callable[[bytes], list[str]]) -> None:
    entry = json.loads(Entries().decision(1, salted(1))) | change
    assert any(says in error for error in errors(json.dumps(entry).encode()))


def test_the_order_is_part_of_it(errors: Callable[[bytes], list[str]]) -> None:
    entry = json.loads(Entries().decision(1, salted(1)))
    assert errors(json.dumps(dict(reversed(entry.items()))).encode()) == ["order"]


def tables(schema: dict[str, Any]) -> str:
    """The tables of the page, from the schema."""
    kinds = schema["properties"]["kind"]["enum"]
    text = "### Every entry\n\n" + table(schema["properties"], set(schema["required"]))
    for kind in kinds:
        of_kind = schema["$defs"][kind]
        if "properties" in of_kind:
            text += f"\n### {kind}\n\n{of_kind['description']}\n\n"
            text += table(of_kind["properties"], set(of_kind.get("required", ())))
    text += "\n### Kinds with members of their own\n\n| kind | what it says |\n|---|---|\n"
    for kind in kinds:
        if "properties" not in schema["$defs"][kind]:
            text += f"| `{kind}` | {schema['$defs'][kind]['description']} |\n"
    return text


def table(properties: dict[str, Any], required: set[str]) -> str:
    rows = "".join(
        f"| `{name}` | {form(value)} | {'yes' if name in required else ''} | {value['description']} |\n"
        for name, value in properties.items()
    )
    return f"| member | form | always | what it says |\n|---|---|---|---|\n{rows}"


def form(value: dict[str, Any]) -> str:
    if "$ref" in value:
        return str(value["$ref"].rpartition("/")[2])
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return "one of " + ", ".join(f"`{item}`" for item in value["enum"]) if len(value["enum"]) < 8 else "a kind"
    if value["type"] == "object":
        members = ", ".join(f"`{name}`" for name in value.get("properties", ()))
        return f"object: {members}" if members else "object: any names"
    return {"array": "list"}.get(value["type"], value["type"])


def test_the_page_has_the_tables_of_the_schema(schema: dict[str, Any], root: Path) -> None:
    page = (root / "docs" / "audit_entries.md").read_text()
    assert page.partition(BEGIN)[2].partition(END)[0] == tables(schema), "put this between the marks:\n" + tables(
        schema
    )


def test_entries_of_the_real_log_follow(
    make_log: Callable[[Path, int], None], auditor: ModuleType, errors: Callable[[bytes], list[str]], tmp_path: Path
) -> None:
    make_log(tmp_path / "log", 20)
    size = int((tmp_path / "log" / "checkpoint").read_text().split("\n")[1])
    bundle = (tmp_path / "log" / auditor.tile_path("entries", 0, size)).read_bytes()
    for entry in auditor.parse_bundle(bundle, size):
        assert not errors(entry), entry
        auditor.parse_entry(entry)
