"""Policy sets from Python: sources, schemas, ids, errors with their place, templates, answers, threads."""

import itertools
import json
import os
import threading
from pathlib import Path
from typing import Any

import cedarpy
import pytest
from oracle import ask_reference, reference, request, seen

from tollkeeper import Answer, Entities, Entity, EntityUid, PolicyError, PolicySet

ALICE, BOB, READ, WRITE, FILE = (
    'User::"alice"',
    'User::"bob"',
    'Action::"read"',
    'Action::"write"',
    'File::"a"',
)
PERMIT = "permit(principal, action, resource);"
SCHEMA = """
entity Team;
entity User in [Team] { level: Long };
entity File;
action read, write appliesTo { principal: User, resource: File, context: { path: String, size?: Long } };
"""


def error_of(*arguments: Any, **keywords: Any) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        PolicySet.from_cedar(*arguments, **keywords)
    assert caught.value.errors
    assert caught.value.code == caught.value.errors[0].code
    return caught.value


def where(error: PolicyError) -> tuple[str | None, int, int]:
    """The place of the first finding."""
    return error.errors[0].file, error.errors[0].line, error.errors[0].column


# --- sources ---------------------------------------------------------------------------------------------------------


def test_a_str_is_text_and_a_path_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.cedar"
    file.write_text(PERMIT)

    class Fspath:
        def __fspath__(self) -> str:
            return os.fspath(file)

    for source in (PERMIT, file, [PERMIT], [file], Fspath()):
        policies = PolicySet.from_cedar(source)  # type: ignore[arg-type]
        assert (len(policies), policies.ids, policies.templates) == (1, ["policy0"], [])
        assert policies.decide(ALICE, READ, FILE).allowed
    assert error_of(str(file)).code == "policy.syntax", "the name of a file is not a policy"
    for bad in (None, 1, b"", (file,), [1]):
        with pytest.raises(TypeError):
            PolicySet.from_cedar(bad)  # type: ignore[arg-type]


def test_nothing_is_a_set_too() -> None:
    for source in ("", "// only a comment", [], ["", ""]):
        policies = PolicySet.from_cedar(source)
        assert len(policies) == 0
        assert policies.ids == []
        assert seen(policies.decide(ALICE, READ, FILE)) == ("deny", frozenset(), frozenset())
        assert repr(policies) == "<PolicySet of 0 policies>"


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    missing = tmp_path / "none.cedar"
    for arguments in ((missing,), ([PERMIT, missing],), (PERMIT, missing)):
        with pytest.raises(FileNotFoundError) as caught:
            PolicySet.from_cedar(*arguments)
        assert caught.value.filename == str(missing)
    with pytest.raises(IsADirectoryError):
        PolicySet.from_cedar(tmp_path)


def test_text_that_is_not_utf8_is_an_error_with_its_place(root: Path) -> None:
    error = error_of(root / "tests" / "hostile" / "bad_utf8.cedar")
    assert error.code == "policy.encoding"
    assert error.errors[0].file
    assert error.errors[0].file.endswith("bad_utf8.cedar")
    with pytest.raises(ValueError, match="surrogates"):
        PolicySet.from_cedar("// \ud800")


def test_a_file_may_be_named_anything(tmp_path: Path) -> None:
    file = tmp_path / "\u202eödd \n name.cedar"
    file.write_text("permit(")
    error = error_of(file)
    assert "\u202e" not in str(error)
    assert "\n name" not in str(error)


# --- schemas ---------------------------------------------------------------------------------------------------------

JSON_SCHEMA = {
    "": {
        "entityTypes": {
            "User": {"shape": {"type": "Record", "attributes": {"level": {"type": "Long"}}}},
            "File": {},
        },
        "actions": {"read": {"appliesTo": {"principalTypes": ["User"], "resourceTypes": ["File"]}}},
    }
}


def test_schemas_come_as_text_as_file_and_as_json(tmp_path: Path) -> None:
    file, json_file = tmp_path / "a.cedarschema", tmp_path / "a.json"
    file.write_text(SCHEMA)
    json_file.write_text(json.dumps(JSON_SCHEMA))
    for schema in (SCHEMA, file, json.dumps(JSON_SCHEMA), json_file):
        good = PolicySet.from_cedar(
            'permit(principal, action == Action::"read", resource) when { principal.level > 1 };', schema
        )
        store = Entities([Entity(ALICE, {"level": 2})])
        assert good.decide(ALICE, READ, FILE, None, store).allowed
        error = error_of("permit(principal, action, resource) when { principal.levl > 1 };", schema)
        assert (error.code, error.errors[0].help) == ("policy.invalid", "did you mean `level`?")


def test_a_schema_that_cannot_be_read_is_an_error_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "a.cedarschema"
    file.write_text("entity User;\nentitty File;")
    error = error_of(PERMIT, file)
    assert error.code == "schema.syntax"
    assert where(error) == (str(file), 2, 1)
    assert error.errors[0].offending == "entitty File;"


def test_validation_reports_each_finding(tmp_path: Path) -> None:
    file = tmp_path / "a.cedar"
    file.write_text(
        "permit(principal, action, resource) when { principal.levl > 1 };\n"
        "permit(principal, action, resource) when { context.size > 1 };\n"
        'permit(principal == Usr::"a", action, resource);\n'
    )
    error = error_of(file, SCHEMA)
    assert len(error.errors) >= 3
    assert {detail.line for detail in error.errors} == {1, 2, 3}
    assert {(detail.code, detail.file) for detail in error.errors} == {("policy.invalid", str(file))}
    assert all(detail.column > 1 for detail in error.errors)
    assert cedarpy.validate_policies(file.read_text(), SCHEMA).validation_passed is False


def test_warnings_do_not_refuse() -> None:
    policies = PolicySet.from_cedar(PERMIT, SCHEMA)
    assert policies.warnings == []
    policies = PolicySet.from_cedar(
        'permit(principal, action, resource) when { false && context.path == "a" };', SCHEMA
    )
    assert len(policies.warnings) == 1
    assert "impossible" in policies.warnings[0]
    assert PolicySet.from_cedar("permit(principal, action, resource) when { false };").warnings == []


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("permit(principal, action, resource) when { context.x < };", 1, 56),
        (PERMIT + "\n\n  permit(principal, action);", 3, 27),
        ("// ä\U0001f600\n" + PERMIT + ' "ä\U0001f600" permit', 2, 38),
        ("permit(principal, action, resource)\n// comment", 1, 36),
        ("permit(principal, action, resource) when { foo(1) };", 1, 44),
    ],
)
def test_a_syntax_error_has_a_place_and_the_line(tmp_path: Path, text: str, line: int, column: int) -> None:
    file = tmp_path / "bad.cedar"
    file.write_text(text)
    for source, name in ((text, None), (file, str(file))):
        error = error_of(source)
        detail = error.errors[0]
        assert detail.code.startswith("policy.")
        assert (detail.file, detail.line, detail.column) == (name, line, column)
        assert str(error).startswith(f"{name + ':' if name else ''}{line}:{column}: {detail.message}")
        assert detail.offending
        assert text.splitlines()[line - 1].strip().endswith(detail.offending.removeprefix("…")[-10:])


def test_an_error_in_one_of_many_files_names_the_file(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.cedar", tmp_path / "bad.cedar"
    good.write_text(PERMIT)
    bad.write_text("\nperm")
    assert where(error_of([good, bad])) == (str(bad), 2, 5)


def test_ids_is_one_of_two_words() -> None:
    with pytest.raises(ValueError, match='ids is "file"'):
        PolicySet.from_cedar(PERMIT, ids="file")


# --- ids, annotations, places ----------------------------------------------------------------------------------------

NAMED = """@id("first")
permit(principal, action, resource);
@reason("because \\"x\\"") @flag permit(principal, action, resource);
  @id("template") permit(principal == ?principal, action, resource);
@id("last") forbid(principal, action == Action::"write", resource);
"""


def test_ids_by_position_and_by_annotation(tmp_path: Path) -> None:
    positional = PolicySet.from_cedar(NAMED)
    assert (positional.ids, positional.templates) == (["policy0", "policy1", "policy3"], ["policy2"])
    named = PolicySet.from_cedar(NAMED, ids="annotation")
    assert (named.ids, named.templates) == (["first", "policy#2", "last"], ["template"])
    file, other = tmp_path / "a.cedar", tmp_path / "b.cedar"
    file.write_text(NAMED)
    other.write_text(PERMIT * 2)
    both = PolicySet.from_cedar([file, other], ids="annotation")
    assert both.ids == ["first", "a.cedar#2", "last", "b.cedar#1", "b.cedar#2"]
    assert both.decide(ALICE, WRITE, FILE).reasons == ["last"]
    assert both.decide(ALICE, READ, FILE).reasons == [name for name in both.ids if name != "last"]


def test_positional_ids_count_on_from_source_to_source(tmp_path: Path) -> None:
    """Several sources are as good as one text, for the reference too, and a link keeps every id."""
    file = tmp_path / "a.cedar"
    file.write_text(NAMED)
    together = PolicySet.from_cedar(NAMED + PERMIT + NAMED)
    apart = PolicySet.from_cedar([file, PERMIT, NAMED])
    assert (apart.ids, apart.templates) == (together.ids, together.templates)
    assert apart.templates == ["policy2", "policy7"]
    assert [apart.place(id_) for id_ in ("policy3", "policy4", "policy6")] == [
        (str(file), 5, 1),
        (None, 1, 1),
        (None, 3, 1),
    ]
    for policies in (together, apart):
        linked = policies.link("policy7", "link", principal=ALICE)
        assert linked.ids == [*policies.ids, "link"]
        for asked in (request(ALICE, READ, FILE), request(ALICE, WRITE, FILE)):
            theirs = cedarpy.PolicySet.from_str(NAMED + PERMIT + NAMED).with_linked(
                "policy7", "link", {"?principal": ALICE}
            )
            expected = reference(theirs, cedarpy.Entities.from_json_str("[]"), [asked])[0]
            assert seen(linked.decide(asked["principal"], asked["action"], asked["resource"])) == expected


def test_annotations_and_places() -> None:
    policies = PolicySet.from_cedar(NAMED)
    assert policies.annotations("policy1") == {"reason": 'because "x"', "flag": ""}
    assert policies.annotations("policy0") == {"id": "first"}
    assert policies.place("policy0") == (None, 1, 1)
    assert policies.place("policy1") == (None, 3, 1)
    assert policies.place("policy3") == (None, 5, 1)
    for ask in (policies.annotations, policies.place):
        with pytest.raises(KeyError, match="policy9"):
            ask("policy9")
    assert policies.memory_bytes > 0


def test_places_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.cedar"
    file.write_text(f"// comment\n  {PERMIT}")
    assert PolicySet.from_cedar(file).place("policy0") == (str(file), 2, 3)


@pytest.mark.parametrize(
    "second", ["permit(principal, action, resource);", "permit(principal, action, resource == ?resource);"]
)
def test_two_equal_ids_are_an_error(tmp_path: Path, second: str) -> None:
    one, two = tmp_path / "one.cedar", tmp_path / "two.cedar"
    one.write_text('@id("x") permit(principal, action, resource);')
    two.write_text(f'\n @id("x") {second}')
    error = error_of([one, two], ids="annotation")
    detail = error.errors[0]
    assert (detail.code, detail.message) == ("policy.duplicate_id", "policy id `x` is used twice")
    assert where(error) == (str(two), 2, 2)
    assert detail.help
    assert f"{one}, line 1" in detail.help
    positional = PolicySet.from_cedar(two.read_text() * 2)
    assert positional.ids + positional.templates == ["policy0", "policy1"], "positional ids do not care"


# --- templates -------------------------------------------------------------------------------------------------------

SLOTS = {
    "principal == ?principal": 'principal == User::"alice"',
    "principal in ?principal": 'principal in Team::"ops"',
    "principal is User in ?principal": 'principal is User in Team::"ops"',
    "principal": "principal",
}
RESOURCE_SLOTS = {
    "resource == ?resource": 'resource == File::"a"',
    "resource in ?resource": 'resource in Folder::"f"',
    "resource is File in ?resource": 'resource is File in Folder::"f"',
    "resource": "resource",
}
STORE = [
    {"uid": {"type": "User", "id": "alice"}, "attrs": {}, "parents": [{"type": "Team", "id": "ops"}]},
    {"uid": {"type": "Team", "id": "ops"}, "attrs": {}, "parents": []},
    {"uid": {"type": "File", "id": "a"}, "attrs": {"size": 1}, "parents": [{"type": "Folder", "id": "f"}]},
    {"uid": {"type": "Bot", "id": "alice"}, "attrs": {}, "parents": [{"type": "Team", "id": "ops"}]},
]
ASKED = [
    request(*parts)
    for parts in itertools.product(
        (ALICE, BOB, 'Team::"ops"', 'Bot::"alice"'), (READ, WRITE), (FILE, 'File::"b"', 'Folder::"f"')
    )
]


def answers(policies: PolicySet, asked: list[dict[str, Any]] = ASKED) -> list[tuple[object, ...]]:
    store = Entities.from_json(json.dumps(STORE))
    return [seen(policies.decide(one["principal"], one["action"], one["resource"], None, store)) for one in asked]


@pytest.mark.parametrize("effect", ["permit", "forbid"])
@pytest.mark.parametrize(("principal", "resource"), [*itertools.product(SLOTS, RESOURCE_SLOTS)][:-1])
def test_a_link_is_the_policy_with_its_slots_filled(effect: str, principal: str, resource: str) -> None:
    """Compared with the same policy written out, and with the reference's own linking."""
    clause = 'when { resource.size == 1 || action == Action::"write" }'
    base = f"{PERMIT}{effect}({principal}, action, {resource}) {clause};"
    plain = f"{PERMIT}{effect}({SLOTS[principal]}, action, {RESOURCE_SLOTS[resource]}) {clause};"
    values = {}
    if "?" in principal:
        values["principal"] = ALICE if "==" in principal else 'Team::"ops"'
    if "?" in resource:
        values["resource"] = FILE if "==" in resource else 'Folder::"f"'
    unlinked = PolicySet.from_cedar(base)
    linked = unlinked.link("policy1", "policy1-linked", **values)
    theirs = cedarpy.PolicySet.from_str(base).with_linked(
        "policy1", "policy1-linked", {f"?{slot}": value for slot, value in values.items()}
    )
    found = answers(linked)
    assert found == reference(theirs, cedarpy.Entities.from_json_str(json.dumps(STORE)), ASKED)
    written_out = answers(PolicySet.from_cedar(plain))
    assert [one[0] for one in found] == [one[0] for one in written_out]
    assert answers(unlinked) == answers(PolicySet.from_cedar(PERMIT)), "the original is unchanged"
    assert linked.ids == ["policy0", "policy1-linked"]
    assert linked.templates == ["policy1"]


def test_a_template_can_be_linked_again_and_again() -> None:
    policies = PolicySet.from_cedar(
        '@id("t") @reason("r") permit(principal == ?principal, action, resource);\n' + NAMED, ids="annotation"
    )
    for number in range(5):
        policies = policies.link("t", f"link{number}", principal=EntityUid("User", f"u{number % 3}"))
    assert policies.ids == ["first", "policy#3", "last", *(f"link{number}" for number in range(5))]
    assert policies.templates == ["t", "template"]
    answer = policies.decide('User::"u1"', READ, FILE)
    assert answer.reasons == ["first", "policy#3", "link1", "link4"]
    assert answer.annotations["link4"] == {"id": "t", "reason": "r"}
    assert policies.place("link4") == policies.place("link0") == (None, 1, 1)
    assert policies.decide('User::"u1"', WRITE, FILE).reasons == ["last"]


def test_links_that_cannot_be_made() -> None:
    policies = PolicySet.from_cedar(
        f"{PERMIT} permit(principal == ?principal, action, resource in ?resource);"
        "permit(principal in ?principal, action, resource);"
    )
    for template, id_, values, code in (
        ("nope", "x", {"principal": ALICE}, "policy.invalid"),
        ("policy0", "x", {"principal": ALICE}, "policy.invalid"),
        ("policy1", "x", {"principal": ALICE}, "policy.invalid"),
        ("policy1", "x", {"resource": FILE}, "policy.invalid"),
        ("policy1", "x", {}, "policy.invalid"),
        ("policy2", "x", {"principal": ALICE, "resource": FILE}, "policy.invalid"),
        ("policy1", "policy0", {"principal": ALICE, "resource": FILE}, "policy.duplicate_id"),
        ("policy1", "policy1", {"principal": ALICE, "resource": FILE}, "policy.duplicate_id"),
    ):
        with pytest.raises(PolicyError) as caught:
            policies.link(template, id_, **values)
        assert caught.value.code == code, (template, id_, values)


# --- answers ---------------------------------------------------------------------------------------------------------

MANY = """
permit(principal == User::"alice", action, resource);
permit(principal, action == Action::"read", resource) when { context.level > 3 };
permit(principal, action, resource) when { principal in Team::"ops" };
forbid(principal, action == Action::"write", resource) unless { context.level > 5 };
forbid(principal, action, resource) when { context has secret && context.secret };
"""


def cases() -> list[tuple[str, str, dict[str, Any]]]:
    contexts: list[dict[str, Any]] = [{}, {"level": 1}, {"level": 4}, {"level": 9}, {"level": "x"}, {"secret": True}]
    return [*itertools.product((ALICE, BOB), (READ, WRITE), contexts)]


def test_answers_equal_the_reference_and_decision_only_agrees() -> None:
    policies, store = PolicySet.from_cedar(MANY), Entities.from_json(json.dumps(STORE))
    for principal, action, context in cases():
        answer = policies.decide(principal, action, FILE, context, store)
        assert seen(answer) == ask_reference(MANY, STORE, request(principal, action, FILE, context))
        quick = policies.decide(principal, action, FILE, context, store, decision_only=True)
        assert (quick.decision, quick.allowed) == (answer.decision, answer.allowed)
        assert set(quick.reasons) <= set(answer.reasons)


def test_an_answer_has_no_truth_value() -> None:
    answer = PolicySet.from_cedar(MANY).decide(ALICE, READ, FILE, {"level": "secret words"})
    with pytest.raises(TypeError, match="no truth value"):
        bool(answer)
    with pytest.raises(TypeError, match="no truth value"):
        assert not answer
    assert repr(answer) == "<Answer allow ['policy0'] 1 errors>"
    (error,) = answer.errors
    assert (error.policy, error.message.endswith(" at 3:62")) == ("policy1", True)
    assert "secret words" not in error.message
    assert "policy1" in repr(error)
    for name in ("decision", "allowed", "reasons"):
        with pytest.raises(AttributeError):
            setattr(answer, name, None)
    with pytest.raises(TypeError):
        Answer()


def test_an_answer_outlives_its_set() -> None:
    answer = PolicySet.from_cedar('@note("n") ' + PERMIT).decide(ALICE, READ, FILE)
    assert (answer.reasons, answer.annotations) == (["policy0"], {"policy0": {"note": "n"}})


def test_one_set_serves_different_stores() -> None:
    policies = PolicySet.from_cedar('permit(principal in Team::"ops", action, resource) when { principal.level > 1 };')
    for level, team, expected in ((2, "ops", "allow"), (1, "ops", "deny"), (2, "hr", "deny"), (2, "ops", "allow")):
        store = Entities([Entity(ALICE, {"level": level}, [f'Team::"{team}"'])])
        assert policies.decide(ALICE, READ, FILE, None, store).decision == expected
        assert policies.decide(ALICE, READ, FILE).decision == "deny"
    assert [error.policy for error in policies.decide('Team::"ops"', READ, FILE).errors] == ["policy0"]


def test_uids_come_as_handles_and_as_text() -> None:
    policies = PolicySet.from_cedar('permit(principal == User::"a\\"\\u{1f600}", action, resource);')
    handle = EntityUid("User", 'a"\U0001f600')
    for principal in (handle, str(handle)):
        assert policies.decide(principal, READ, FILE).allowed
    assert not policies.decide(EntityUid("User", "a"), READ, FILE).allowed
    for bad in (None, 1, b"", ("User", "a"), {"type": "User", "id": "a"}):
        with pytest.raises(TypeError):
            policies.decide(bad, READ, FILE)  # type: ignore[arg-type]
    for bad_text in ("", "alice", 'User::"a', "\ud800"):
        with pytest.raises(ValueError, match=r"entity uid|surrogates"):
            policies.decide(ALICE, bad_text, FILE)


# --- threads ---------------------------------------------------------------------------------------------------------


def test_threads_share_a_set() -> None:
    """Eight threads ask one set for a while, with stores and links made meanwhile; every answer is the known one."""
    policies, store = PolicySet.from_cedar(MANY), Entities.from_json(json.dumps(STORE))
    known = [seen(policies.decide(principal, action, FILE, context, store)) for principal, action, context in cases()]
    assert len(set(known)) > 5
    failures: list[object] = []
    stop = threading.Event()
    asked = [0] * 8

    def work(number: int) -> None:
        while not stop.is_set():
            for (principal, action, context), expected in zip(cases(), known, strict=True):
                try:
                    found = seen(policies.decide(principal, action, FILE, context, store))
                except BaseException as error:  # noqa: BLE001 - reported by the test
                    failures.append(error)
                    return
                if found != expected:
                    failures.append((found, expected))
            asked[number] += len(known)
            if number == 0:
                store.update([Entity(BOB, {}, ['Team::"ops"'])])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    stop.wait(1)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures, failures[:3]
    assert all(asked)
