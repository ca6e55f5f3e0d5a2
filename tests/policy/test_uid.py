"""Entity uids: one spelling, equal and hashed by type and id, usable as handle or as text."""

import copy
import enum
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper import EntityError, EntityUid, _native

text = st.text(st.characters(exclude_categories=["Cs"]))
type_name = st.from_regex(r"[A-Z][a-z]{0,5}(::[A-Z][a-z]{0,5}){0,2}", fullmatch=True)


@given(type_name, text)
def test_every_id_survives_printing_and_pickling(type_: str, id_: str) -> None:
    uid = EntityUid(type_, id_)
    assert (uid.type, uid.id) == (type_, id_)
    for again in (EntityUid.parse(str(uid)), pickle.loads(pickle.dumps(uid)), copy.deepcopy(uid)):  # noqa: S301
        assert again == uid
        assert hash(again) == hash(uid)
    assert repr(uid) == str(uid) == _native._echo_uid(uid) == _native._echo_uid(str(uid))


def test_equality_is_by_type_and_id() -> None:
    alice = EntityUid("User", "alice")
    assert alice == EntityUid.parse('User::"alice"')
    assert alice != EntityUid("Use", "ralice")
    assert alice != 'User::"alice"'
    assert len({alice, EntityUid("User", "alice"), EntityUid("User", "bob")}) == 2


@pytest.mark.parametrize("bad", ["", "User", 'User::"a', 'User::"a" ', 'User :: "a"', 'if::"a"', '__cedar::"a"'])
def test_other_spellings_are_errors(bad: str) -> None:
    for call in (EntityUid.parse, _native._echo_uid):
        with pytest.raises(EntityError) as caught:
            call(bad)
        assert caught.value.code == "uid.syntax"
        assert caught.value.help


@pytest.mark.parametrize("bad", ["", "a b", "A::", "::A", "in", "A::__cedar", "Ü", "A" * 50 + "!"])
def test_the_type_has_to_be_a_name(bad: str) -> None:
    with pytest.raises(EntityError, match="is not an entity type name") as caught:
        EntityUid(bad, "x")
    assert len(str(caught.value)) < 80


def test_misuse_is_a_type_error() -> None:
    for bad in (None, 1, b'User::"a"', ("User", "a")):
        with pytest.raises(TypeError):
            _native._echo_uid(bad)  # type: ignore[arg-type]


def test_texts_of_an_enumeration_are_texts() -> None:
    class Agent(enum.StrEnum):
        RESEARCHER = 'Agent::"researcher"'

    assert _native._echo_uid(Agent.RESEARCHER) == 'Agent::"researcher"'


def test_a_uid_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        EntityUid("User", "alice").id = "root"  # type: ignore[misc]
