"""``tollkeeper policy ...``: answers, findings and the messages for bad input."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
Snapshot = Callable[[Any], None]

POLICIES = """\
@id("readers")
permit (principal in Team::"readers", action == Action::"read", resource)
when { context.hour < 18 };

@id("no-drafts")
forbid (principal, action, resource is Doc)
when { resource.draft };
"""
ENTITIES = [
    {"uid": {"type": "User", "id": "ann"}, "attrs": {}, "parents": [{"type": "Team", "id": "readers"}]},
    {"uid": {"type": "Doc", "id": "d1"}, "attrs": {"draft": False}, "parents": []},
    {"uid": {"type": "Doc", "id": "d2"}, "attrs": {"draft": True}, "parents": []},
]
REQUESTS = [
    {"principal": 'User::"ann"', "action": 'Action::"read"', "resource": 'Doc::"d1"', "context": {"hour": 9}},
    {
        "principal": {"type": "User", "id": "ann"},
        "action": 'Action::"read"',
        "resource": 'Doc::"d2"',
        "context": {"hour": 9},
    },
    {"principal": 'User::"eve"', "action": 'Action::"read"', "resource": 'Doc::"d1"', "context": {"hour": 9}},
    {"principal": 'User::"ann"', "action": 'Action::"read"', "resource": 'Doc::"d3"'},
]
SCHEMA = """\
entity Team;
entity User in [Team];
entity Doc = { draft: Bool };
action read appliesTo { principal: [User], resource: [Doc], context: { hour: Long } };
"""
AUTHORIZE = ("policy", "authorize", "--policies", "p.cedar", "--entities", "e.json", "--requests", "r.jsonl")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p.cedar").write_text(POLICIES)
    (tmp_path / "e.json").write_text(json.dumps(ENTITIES))
    (tmp_path / "s.cedarschema").write_text(SCHEMA)
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(request) + "\n" for request in REQUESTS))
    return tmp_path


def test_authorize(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli(*AUTHORIZE))


def test_authorize_by_annotation(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli(*AUTHORIZE, "--ids", "annotation"))


def test_authorize_numbers_policies_across_files(cli: Cli, folder: Path) -> None:
    (folder / "q.cedar").write_text("permit (principal, action, resource);")
    words = [word if word != "p.cedar" else "q.cedar" for word in AUTHORIZE]
    done = cli(*words, "--policies", "p.cedar")
    assert [json.loads(line)["reasons"] for line in done.out.splitlines()] == [
        ["policy0", "policy1"],
        ["policy2"],
        ["policy0"],
        ["policy0"],
    ]


def test_every_mention_of_policies_counts(cli: Cli, folder: Path) -> None:
    (folder / "q.cedar").write_text("forbid (principal, action, resource);")
    done = cli(*AUTHORIZE, "--policies", "q.cedar")
    assert [json.loads(line)["decision"] for line in done.out.splitlines()] == ["deny"] * 4


def test_authorize_reads_entities_and_contexts_with_the_schema(cli: Cli, folder: Path) -> None:
    (folder / "s.cedarschema").write_text(SCHEMA.replace("hour: Long", "hour: Long, at: ipaddr"))
    (folder / "p.cedar").write_text("permit (principal, action, resource) when { context.at.isLoopback() };")
    request = {**REQUESTS[0], "context": {"hour": 9, "at": "127.0.0.1"}}
    (folder / "r.jsonl").write_text(json.dumps(request))
    done = cli(*AUTHORIZE, "--schema", "s.cedarschema")
    assert json.loads(done.out)["decision"] == "allow", done.err
    without = json.loads(cli(*AUTHORIZE).out)
    assert without["decision"] == "deny"
    assert without["errors"][0]["policy"] == "policy0"


def test_authorize_reads_standard_input_and_gzip(cli: Cli, folder: Path) -> None:
    text = (folder / "r.jsonl").read_text()
    (folder / "r.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    expected = cli(*AUTHORIZE)
    assert cli(*AUTHORIZE[:-1], "-", stdin=text).out == expected.out
    assert cli(*AUTHORIZE[:-1], "r.jsonl.gz").out == expected.out


BAD_LINES = {
    "not_json": b'{"principal": }',
    "cut_short": b'{"principal": "User::\\"ann\\""',
    "unknown_key": b'{"principal": "User::\\"ann\\"", "action": "A::\\"a\\"", "resource": "R::\\"r\\"", "contxt": {}}',
    "missing_key": b'{"principal": "User::\\"ann\\"", "action": "A::\\"a\\""}',
    "wrong_type": b'{"principal": 3, "action": "A::\\"a\\"", "resource": "R::\\"r\\""}',
    "not_utf8": b'{"principal": "\xff"}',
    "not_a_uid": b'{"principal": "User::ann", "action": "A::\\"a\\"", "resource": "R::\\"r\\""}',
    "float_in_context": (
        b'{"principal": "U::\\"a\\"", "action": "A::\\"a\\"", "resource": "R::\\"r\\"", "context": {"x": 1.5}}'
    ),
    "context_not_a_record": (
        b'{"principal": "U::\\"a\\"", "action": "A::\\"a\\"", "resource": "R::\\"r\\"", "context": []}'
    ),
    "deep": b'{"principal": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_request_line(cli: Cli, snapshot: Snapshot, folder: Path, name: str) -> None:
    (folder / "r.jsonl").write_bytes(b"\n" + BAD_LINES[name] + b"\n")
    done = cli(*AUTHORIZE)
    assert (done.code, done.out) == (2, "")
    assert "r.jsonl:2:" in done.err
    snapshot(done)


BAD_FILES: dict[str, tuple[str, bytes | None]] = {
    "policies_missing": ("p.cedar", None),
    "policies_syntax": ("p.cedar", b"permit(principal, action, resource)\nwhen { 1 + };\n"),
    "policies_not_utf8": ("p.cedar", b"// \xc3\x28\n"),
    "entities_missing": ("e.json", None),
    "entities_not_json": ("e.json", b"[\n  {]"),
    "entities_shape": ("e.json", b'[{"uid": 3}]'),
    "entities_cycle": (
        "e.json",
        b'[{"uid": {"type": "A", "id": "a"}, "attrs": {}, "parents": [{"type": "A", "id": "a"}]}]',
    ),
    "requests_missing": ("r.jsonl", None),
    "schema_syntax": ("s.cedarschema", b"entity A\naction"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(cli: Cli, snapshot: Snapshot, folder: Path, name: str) -> None:
    file, content = BAD_FILES[name]
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    done = cli(*AUTHORIZE, "--schema", "s.cedarschema") if file == "s.cedarschema" else cli(*AUTHORIZE)
    assert done.code == 2
    assert "Traceback" not in done.err
    snapshot(done)


def test_a_folder_where_a_file_was_meant(cli: Cli, snapshot: Snapshot, folder: Path) -> None:
    (folder / "empty").mkdir()
    snapshot(cli("policy", "authorize", "--policies", "p.cedar", "--requests", "empty"))


def test_a_folder_without_policies(cli: Cli, snapshot: Snapshot, folder: Path) -> None:
    (folder / "empty").mkdir()
    snapshot(cli("policy", "validate", "--policies", "empty"))


def test_not_a_gzip_file(cli: Cli, snapshot: Snapshot, folder: Path) -> None:
    (folder / "r.jsonl.gz").write_bytes(b"plain")
    snapshot(cli(*AUTHORIZE[:-1], "r.jsonl.gz"))


def test_validate(cli: Cli, snapshot: Snapshot) -> None:
    words = ("--schema", "s.cedarschema", "--entities", "e.json")
    snapshot(cli("policy", "validate", "--policies", "p.cedar", *words))


def test_validate_findings(cli: Cli, snapshot: Snapshot, folder: Path) -> None:
    (folder / "p.cedar").write_text(POLICIES.replace("context.hour", "context.huor"))
    (folder / "e.json").write_text("[{}]")
    words = ("--schema", "s.cedarschema", "--entities", "e.json")
    snapshot(cli("policy", "validate", "--policies", "p.cedar", *words))


def test_validate_json(cli: Cli, snapshot: Snapshot, folder: Path) -> None:
    (folder / "p.cedar").write_text("permit (principal);")
    snapshot(cli("policy", "validate", "--policies", "p.cedar", "--json"))


def test_explain(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("policy", "explain", "--policies", "p.cedar"))


def test_explain_one(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("policy", "explain", "no-drafts", "--policies", "p.cedar"))


def test_explain_unknown_policy(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("policy", "explain", "no-draughts", "--policies", "p.cedar"))


ANN_READS = ("--principal", 'User::"ann"', "--action", 'Action::"read"')


def test_explain_request(cli: Cli, snapshot: Snapshot) -> None:
    words = ("--resource", 'Doc::"d2"', "--context", '{"hour": 20}')
    snapshot(cli("policy", "explain", "--policies", "p.cedar", "--entities", "e.json", *ANN_READS, *words))


def test_explain_half_a_request(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("policy", "explain", "--policies", "p.cedar", *ANN_READS))


def test_explain_bad_uid(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("policy", "explain", "--policies", "p.cedar", *ANN_READS, "--resource", "Doc::d2"))


def test_explain_bad_context(cli: Cli, snapshot: Snapshot) -> None:
    words = ("--resource", 'Doc::"d2"', "--context", '{"hour": }')
    snapshot(cli("policy", "explain", "--policies", "p.cedar", *ANN_READS, *words))


def test_explain_program(cli: Cli) -> None:
    done = cli("policy", "explain", "--policies", "p.cedar", "--program")
    assert done.code == 0
    assert "no-drafts" in done.out


def test_matrix(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("policy", "matrix", "--policies", "p.cedar", "--entities", "e.json"))


def recorded(decision: str, entities: object = None) -> str:
    request = {
        "description": "",
        "principal": {"type": "User", "id": "ann"},
        "action": {"type": "Action", "id": "read"},
        "resource": {"type": "Doc", "id": "d1"},
        "context": {"hour": 9},
        "decision": decision,
        "reason": ["policy0"],
        "errors": [],
    }
    test = {
        "id": f"made-up/{decision}",
        "policies": POLICIES,
        "schema": SCHEMA,
        "entities": ENTITIES if entities is None else entities,
        "shouldValidate": True,
        "requests": [request],
    }
    return json.dumps(test) + "\n"


def test_conformance_of_a_made_up_file(cli: Cli, snapshot: Snapshot, folder: Path) -> None:
    (folder / "good.jsonl").write_text(recorded("allow"))
    (folder / "bad.jsonl").write_text(recorded("allow") + recorded("deny") + recorded("allow", [{}]))
    snapshot(cli("policy", "conformance", "good.jsonl", "bad.jsonl"))


def test_conformance_json(cli: Cli, folder: Path) -> None:
    (folder / "bad.jsonl.gz").write_bytes(gzip.compress(recorded("deny").encode()))
    done = cli("policy", "conformance", "--json", "bad.jsonl.gz")
    result = json.loads(done.out)
    assert done.code == 1
    assert result.pop("seconds") >= 0
    assert result == {
        "file": "bad.jsonl.gz",
        "tests": 1,
        "requests": 1,
        "mismatches": [
            {
                "test": "made-up/deny",
                "request": 0,
                "expected": "deny; reasons: policy0; errors: none",
                "actual": "allow; reasons: policy0; errors: none",
            }
        ],
    }


def test_conformance_of_an_empty_file(cli: Cli, snapshot: Snapshot, folder: Path) -> None:
    (folder / "none.jsonl").write_text("\n")
    snapshot(cli("policy", "conformance", "none.jsonl"))


@pytest.mark.timeout(300)
def test_conformance_of_the_published_files(cli: Cli, root: Path) -> None:
    named = os.environ.get("TOLLKEEPER_CEDAR_CORPUS")
    data = Path(named) if named else root.parent / "shared" / "data" / "cedar"
    files = [data / "corpus.jsonl.gz", data / "handwritten.jsonl.gz"]
    if not all(file.exists() for file in files):
        pytest.skip("no Cedar conformance data; set TOLLKEEPER_CEDAR_CORPUS to its folder")
    done = cli("policy", "conformance", "--json", *map(str, files))
    counts = [json.loads(line) for line in done.out.splitlines()]
    assert [(file["tests"], file["requests"], file["mismatches"]) for file in counts] == [
        (4947, 39576, []),
        (22, 74, []),
    ]
    assert done.code == 0
