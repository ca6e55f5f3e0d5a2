"""The entity store from Python: values of Python's own types, JSON both ways, layers, hierarchies.

What a store holds is compared through the reference: its JSON form is given to cedarpy, and both answer the same.
"""

import datetime as dt
import decimal
import enum
import ipaddress
import itertools
import json
from typing import TYPE_CHECKING, Any

import cedarpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import reference, request, seen

from tollkeeper import Entities, Entity, EntityError, EntityUid, PolicySet

if TYPE_CHECKING:
    from collections.abc import Callable

ALICE, READ, FILE = 'User::"alice"', 'Action::"read"', 'File::"a"'


def ref(uid: EntityUid) -> dict[str, Any]:
    return {"__entity": {"type": uid.type, "id": uid.id}}


def extension(function: str, text: str) -> dict[str, Any]:
    return {"__extn": {"fn": function, "arg": text}}


def holds(expression: str, store: Entities) -> bool:
    """Whether the expression is true of alice, here and in the reference, which reads the store's JSON form."""
    text = f"permit(principal, action, resource) when {{ {expression} }};"
    asked = request(ALICE, READ, FILE)
    theirs = reference(cedarpy.PolicySet.from_str(text), cedarpy.Entities.from_json_str(store.to_json()), [asked])[0]
    ours = seen(PolicySet.from_cedar(text).decide(ALICE, READ, FILE, None, store))
    assert ours == theirs, expression
    assert not ours.errors, expression
    return ours.decision == "allow"


def canonical(store: Entities) -> list[dict[str, Any]]:
    """The content of a store, whatever the order it was given in."""
    entities = json.loads(store.to_json())
    for entity in entities:
        entity["parents"].sort(key=json.dumps)
    return sorted(entities, key=lambda entity: json.dumps(entity["uid"]))


def parentless(store: Entities) -> object:
    return [{**entity, "parents": []} for entity in canonical(store)]


# --- values ----------------------------------------------------------------------------------------------------------


class Level(enum.IntEnum):
    """Attributes are trusted, so enumerations are as good as what they stand for."""

    HIGH = 3


class Kind(enum.StrEnum):
    """The same for texts."""

    STAFF = "staff"


EAST = dt.timezone(dt.timedelta(hours=5, minutes=30))
VALUES: list[tuple[object, str]] = [
    (True, "true"),
    (0, "0"),
    (-(2**63), "-9223372036854775808"),
    (2**63 - 1, "9223372036854775807"),
    ("", '""'),
    ('a\0\n"\\\U0001f600', '"a\\0\\n\\"\\\\\U0001f600"'),
    (1.5, 'decimal("1.5")'),
    (-0.0, 'decimal("0.0")'),
    (decimal.Decimal("1.50"), 'decimal("1.5")'),
    (decimal.Decimal("-0.0001"), 'decimal("-0.0001")'),
    (decimal.Decimal("1E+2"), 'decimal("100.0")'),
    (decimal.Decimal(7), 'decimal("7.0")'),
    (decimal.Decimal("922337203685477.5807"), 'decimal("922337203685477.5807")'),
    (decimal.Decimal("-922337203685477.5808"), 'decimal("-922337203685477.5808")'),
    (ipaddress.ip_address("10.1.2.3"), 'ip("10.1.2.3")'),
    (ipaddress.ip_address("10.1.2.3"), 'ip("10.1.2.3/32")'),
    (ipaddress.ip_address("2001:db8::1"), 'ip("2001:db8:0::1")'),
    (ipaddress.ip_interface("10.1.2.3/8"), 'ip("10.1.2.3/8")'),
    (ipaddress.ip_interface("2001:db8::1/32"), 'ip("2001:db8::1/32")'),
    (dt.datetime(2026, 1, 2, tzinfo=dt.UTC), 'datetime("2026-01-02")'),
    (dt.datetime(2026, 1, 2, 3, 4, 5, 678_000, dt.UTC), 'datetime("2026-01-02T03:04:05.678Z")'),
    (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=EAST), 'datetime("2026-01-02T03:04:05+0530")'),
    (dt.datetime(1969, 12, 31, 23, 59, 59, 999_000, dt.UTC), 'datetime("1970-01-01").offset(duration("-1ms"))'),
    (dt.datetime(1, 1, 1, tzinfo=dt.UTC), 'datetime("0001-01-01")'),
    (dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC), 'datetime("9999-12-31T23:59:59Z")'),
    (dt.timedelta(days=1, hours=2, milliseconds=3), 'duration("1d2h3ms")'),
    (dt.timedelta(milliseconds=-5), 'duration("-5ms")'),
    (EntityUid("Ns::User", 'b"\n'), 'Ns::User::"b\\"\\n"'),
    ([], "[]"),
    ([1, "x", 1], '["x", 1]'),
    ((1, (2,)), "[[2], 1]"),
    ({1, 2}, "[2, 1]"),
    (frozenset({EntityUid("User", "a"), "x"}), '["x", User::"a"]'),
    ({}, "{}"),
    ({"a b": {"c": [decimal.Decimal("1.0"), None.__class__.__name__]}}, '{"a b": {c: [decimal("1.0"), "NoneType"]}}'),
    (Level.HIGH, "3"),
    (Kind.STAFF, '"staff"'),
]


@pytest.mark.parametrize(("value", "literal"), VALUES, ids=[literal for _, literal in VALUES])
def test_a_value_equals_its_literal(value: object, literal: str) -> None:
    store = Entities([Entity(ALICE, {"x": value, "y": [value]}, tags={"t": value})])
    assert holds(f"principal.x == {literal}", store)
    assert holds(f'principal.getTag("t") == {literal}', store)
    assert holds(f"principal.y == [{literal}] && [{literal}].contains(principal.x)", store)
    assert canonical(Entities.from_json(store.to_json())) == canonical(store)


class Naive(dt.tzinfo):
    """Knows no offset."""

    def utcoffset(self, _: dt.datetime | None) -> None:
        return None


BAD: list[object] = [
    *(None, b"x", bytearray(b"x"), 1j, object(), int, range(3), iter([1]), ..., Entity(ALICE), Entities()),
    *(2**63, -(2**63) - 1, float("nan"), float("inf"), 1e300, 0.00001, "\ud800"),
    *(decimal.Decimal("NaN"), decimal.Decimal("Infinity"), decimal.Decimal("0.00001")),
    *(decimal.Decimal("922337203685477.5808"), decimal.Decimal("1E+30")),
    *(dt.date(2026, 1, 1), dt.time(1), dt.datetime(2026, 1, 1)),  # noqa: DTZ001 - that is the point
    ipaddress.ip_address("fe80::1%eth0"),
]


@pytest.mark.parametrize("value", BAD, ids=[repr(value)[:30].encode("ascii", "replace").decode() for value in BAD])
def test_a_value_without_a_cedar_form_is_refused(value: object) -> None:
    """Anywhere: attributes are written by people, who want to know."""
    for attrs in ({"x": value}, {"x": [value]}, {"x": {"y": (value,)}}):
        with pytest.raises(ValueError, match=r"Cedar form|64 bits|four fraction digits|time zone|surrogates"):
            Entity(ALICE, attrs)
        with pytest.raises(ValueError, match=r"Cedar form|64 bits|four fraction digits|time zone|surrogates"):
            Entity(ALICE, tags=attrs)


def test_misuse_is_a_type_error() -> None:
    calls: list[Callable[[], object]] = [
        lambda: Entity(None),  # type: ignore[arg-type]
        lambda: Entity(ALICE, [("x", 1)]),  # type: ignore[arg-type]
        lambda: Entity(ALICE, {1: 2}),  # type: ignore[dict-item]
        lambda: Entity(ALICE, {"x": {b"y": 1}}),
        lambda: Entity(ALICE, None, 'Team::"ops"'),
        lambda: Entity(ALICE, None, [1]),  # type: ignore[list-item]
        lambda: Entities(1),  # type: ignore[arg-type]
        lambda: Entities([ALICE]),  # type: ignore[list-item]
        lambda: Entities().update(remove=ALICE),
        lambda: Entities.from_json(1),  # type: ignore[arg-type]
        lambda: 1 in Entities(),  # type: ignore[operator]
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    for bad_uid in ("alice", "", 'User::"a', "User::a"):
        with pytest.raises(EntityError):
            Entity(bad_uid)
        with pytest.raises(EntityError):
            Entity(ALICE, None, [bad_uid])


def test_nesting_has_a_bound() -> None:
    def nested(depth: int) -> object:
        value: object = 1
        for _ in range(depth):
            value = {"k": [value]}
        return value

    assert Entities([Entity(ALICE, {"x": nested(25)})]).to_json()
    ring: list[object] = []
    ring.append(ring)
    for bad in (nested(33), nested(100_000), ring):
        with pytest.raises(ValueError, match="nest deeper than 64"):
            Entity(ALICE, {"x": bad})


# --- JSON ------------------------------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
key = text.filter(lambda name: not name.startswith("__"))
uids = st.builds(EntityUid, st.sampled_from(["User", "Team", "Ns::File"]), st.sampled_from("abcdef") | text)
longs = st.integers(-(2**63), 2**63 - 1)
durations = st.integers(-(10**12), 10**12)

# Each value in both forms: Python's, and Cedar's JSON.
both = st.one_of(
    st.booleans().map(lambda value: (value, value)),
    longs.map(lambda value: (value, value)),
    text.map(lambda value: (value, value)),
    uids.map(lambda value: (value, ref(value))),
    st.decimals(-(10**9), 10**9, places=4).map(lambda value: (value, extension("decimal", f"{value:.4f}"))),
    st.ip_addresses().map(lambda value: (value, extension("ip", value.exploded))),
    durations.map(lambda value: (dt.timedelta(milliseconds=value), extension("duration", f"{value}ms"))),
    st.datetimes(min_value=dt.datetime(1, 1, 2), max_value=dt.datetime(9999, 12, 30)).map(  # noqa: DTZ001 - made aware
        lambda value: (
            value.replace(microsecond=value.microsecond // 1000 * 1000, tzinfo=dt.UTC),
            extension("datetime", f"{value:%Y-%m-%dT%H:%M:%S}.{value.microsecond // 1000:03}Z".rjust(24, "0")),
        )
    ),
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=3).map(lambda pairs: ([one for one, _ in pairs], [two for _, two in pairs]))
    records = st.dictionaries(key, inner, max_size=3)
    return lists | records.map(
        lambda pairs: ({k: one for k, (one, _) in pairs.items()}, {k: two for k, (_, two) in pairs.items()})
    )


fields = st.dictionaries(key, st.recursive(both, _nested, max_leaves=5), max_size=3)
drafts = st.dictionaries(uids, st.tuples(fields, fields), max_size=6)


@given(drafts, st.data())
def test_a_store_equals_the_one_read_from_json(content: dict[EntityUid, Any], data: st.DataObject) -> None:
    made, written = [], []
    order = list(content)
    for number, uid in enumerate(order):
        attrs, tags = content[uid]
        # Parents stand later in the order, or nowhere, so that there is no cycle.
        later = st.sampled_from([*order[number + 1 :], EntityUid("Team", "elsewhere")])
        parents = data.draw(st.lists(later, max_size=3))
        one, two = ({k: pair[n] for k, pair in attrs.items()} for n in (0, 1))
        three, four = ({k: pair[n] for k, pair in tags.items()} for n in (0, 1))
        made.append(Entity(uid, one, parents, three))
        written.append(
            {"uid": ref(uid)["__entity"], "attrs": two, "parents": [ref(p)["__entity"] for p in parents], "tags": four}
        )
    store, read = Entities(made), Entities.from_json(json.dumps(written))
    assert canonical(store) == canonical(read)
    assert len(store) == len(read) == len(content)
    again = Entities.from_json(read.to_json())
    assert canonical(again) == canonical(read)
    theirs = cedarpy.Entities.from_json_str(read.to_json())
    assert len(theirs) == len(content)
    # The reference prints the closed ancestors as parents.
    reread = Entities.from_json(str(theirs))
    assert parentless(reread) == parentless(read)
    for uid in order:
        assert uid in store
        assert str(uid) in read
        assert store.ancestors(uid) == read.ancestors(uid) == reread.ancestors(uid)


def test_escapes_are_for_json_only() -> None:
    """A record of Python's that looks like an escape is no entity, and has no JSON form."""
    looks = {"__entity": {"type": "User", "id": "alice"}}
    read = Entities.from_json(
        json.dumps([{"uid": {"type": "User", "id": "alice"}, "attrs": {"x": looks}, "parents": []}])
    )
    assert holds("principal.x == principal", read)
    made = Entities([Entity(ALICE, {"x": looks})])
    policies = PolicySet.from_cedar(
        "permit(principal, action, resource) when { principal.x == principal };"
        'permit(principal, action, resource) when { principal.x["__entity"].id == "alice" };'
    )
    assert policies.decide(ALICE, READ, FILE, None, made).reasons == ["policy1"]
    with pytest.raises(EntityError) as caught:
        made.to_json()
    assert caught.value.code == "entities.reserved_key"


def test_json_through_a_schema(tmp_path: Any) -> None:
    """Declared types decide how bare values are read, and the actions of the schema join the store."""
    schema = """
        entity User { boss?: User, from: ipaddr, limit: decimal } tags String;
        entity File;
        action read in [all] appliesTo { principal: User, resource: File };
        action all;
    """
    document = json.dumps(
        [
            {
                "uid": {"type": "User", "id": "alice"},
                "attrs": {"boss": {"type": "User", "id": "bob"}, "from": "10.0.0.1", "limit": "1.5"},
                "parents": [],
            }
        ]
    )
    schema_file, file = tmp_path / "a.cedarschema", tmp_path / "entities.json"
    schema_file.write_text(schema)
    file.write_text(document)
    for store in (Entities.from_json(document, schema), Entities.from_json(file, schema_file)):
        assert holds('principal.boss == User::"bob" && principal.from == ip("10.0.0.1")', store)
        assert holds('principal.limit.lessThan(decimal("2.0")) && action in Action::"all"', store)
        assert len(store) == 3
    plain = Entities.from_json(document)
    assert holds('principal.from == "10.0.0.1" && principal.boss == {type: "User", id: "bob"}', plain)
    for wrong in ('{"from": 1}', '{"from": "10.0.0.1", "limit": "1.5", "more": 1}', "{}"):
        bad = f'[{{"uid": {{"type": "User", "id": "a"}}, "attrs": {wrong}, "parents": []}}]'
        with pytest.raises(EntityError) as caught:
            Entities.from_json(bad, schema)
        assert caught.value.code.startswith("entities.")


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ("", "entities.syntax"),
        ("{}", "entities.syntax"),
        ("[1]", "entities.syntax"),
        ('[{"uid": 1}]', "entities.syntax"),
        ('[{"uid": {"type": "U", "id": "a"}, "attrs": {"x": 1.5}, "parents": []}]', "entities.syntax"),
        ('[{"uid": {"type": "U", "id": "a"}, "attrs": {"x": null}, "parents": []}]', "entities.syntax"),
        ('[{"uid": {"type": "U", "id": "a"}, "attrs": {"x": {"__expr": "1"}}, "parents": []}]', "entities.syntax"),
    ],
)
def test_documents_that_are_no_entities(document: str, code: str) -> None:
    with pytest.raises(EntityError) as caught:
        Entities.from_json(document)
    assert caught.value.code == code
    assert caught.value.errors
    with pytest.raises(ValueError, match=r"."):
        cedarpy.Entities.from_json_str(document)


def test_files(tmp_path: Any, root: Any) -> None:
    with pytest.raises(FileNotFoundError):
        Entities.from_json(tmp_path / "none.json")
    with pytest.raises(ValueError, match="UTF-8") as caught:
        Entities.from_json(root / "tests" / "hostile" / "bad_utf8.json")
    assert getattr(caught.value, "code", "").endswith(".encoding")


# --- hierarchies and layers ------------------------------------------------------------------------------------------


def chain(*names: str) -> list[Entity]:
    """Each below the next."""
    return [Entity(f'G::"{low}"', parents=[f'G::"{high}"']) for low, high in itertools.pairwise(names)]


def test_ancestors_are_closed() -> None:
    store = Entities([Entity('G::"a"', parents=['G::"b"', 'G::"x"']), *chain("b", "c", "d")])
    assert store.ancestors('G::"a"') == [f'G::"{name}"' for name in "bcdx"]
    assert store.ancestors(EntityUid("G", "c")) == ['G::"d"']
    assert store.ancestors('G::"d"') == store.ancestors('G::"nobody"') == []
    assert ('G::"a"' in store, 'G::"d"' in store, EntityUid("G", "x") in store) == (True, False, False)


def test_cycles_are_errors() -> None:
    for names in ("aa", "aba", "abca", "xabcda"):
        with pytest.raises(EntityError) as caught:
            Entities(chain(*names))
        assert caught.value.code == "entities.cycle"
        assert caught.value.help
    store = Entities(chain(*"abc"))
    for call in (store.update, store.with_additional):
        with pytest.raises(EntityError) as caught:
            call(chain("c", "a"))
        assert caught.value.code == "entities.cycle"
    assert store.update([Entity('G::"c"', parents=['G::"a"'])], remove=['G::"a"']), "no cycle without a"


def test_the_same_entity_twice() -> None:
    assert len(Entities([Entity(ALICE, {"x": 1.5}), Entity(ALICE, {"x": decimal.Decimal("1.50")})])) == 1
    for other in (Entity(ALICE, {"x": 2}), Entity(ALICE, {"x": 1}, ['G::"a"']), Entity(ALICE, {"x": 1}, tags={"t": 1})):
        with pytest.raises(EntityError) as caught:
            Entities([Entity(ALICE, {"x": 1}), other])
        assert caught.value.code == "entities.duplicate"


def test_update_makes_another_store() -> None:
    store = Entities([Entity(ALICE, {"x": 1}, ['G::"a"']), *chain(*"abc")])
    before = canonical(store)
    changed = store.update([Entity(ALICE, {"x": 2}, ['G::"b"']), Entity('G::"n"')], remove=['G::"a"', 'G::"nobody"'])
    assert canonical(store) == before
    assert canonical(changed) == canonical(
        Entities([Entity(ALICE, {"x": 2}, ['G::"b"']), Entity('G::"n"'), *chain(*"bc")])
    )
    assert changed.ancestors(ALICE) == ['G::"b"', 'G::"c"']
    cut = store.update(remove=[EntityUid("G", "a")])
    assert cut.ancestors(ALICE) == ['G::"a"'], "what was above it is not above alice any more"
    assert canonical(cut.update(chain("a", "b"))) == before
    assert canonical(store.update()) == canonical(store.update([])) == before
    assert len(Entities().update([Entity(ALICE)], remove=[])) == 1


def test_with_additional_never_replaces() -> None:
    store = Entities([Entity(ALICE, {"x": 1})])
    more = store.with_additional([Entity('User::"bob"', {"y": 1}, [ALICE])])
    assert (len(store), len(more), more.ancestors('User::"bob"')) == (1, 2, [ALICE])
    assert len(store.with_additional([Entity(ALICE, {"x": 1})])) == 1
    with pytest.raises(EntityError) as caught:
        store.with_additional([Entity(ALICE, {"x": 2})])
    assert caught.value.code == "entities.duplicate"
    assert canonical(more.with_additional([])) == canonical(more)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ABCDEFGH"),
            st.booleans(),
            st.integers(0, 3),
            st.lists(st.sampled_from("ABCDEFGH"), max_size=2),
        ),
        max_size=30,
    )
)
def test_layers_equal_a_store_made_at_once(steps: list[tuple[str, bool, int, list[str]]]) -> None:
    """Any row of updates leaves what a plain dict would hold, hierarchy included."""
    held: dict[str, Entity] = {}
    store = Entities()
    for name, remove, level, above in steps:
        # Parents are later letters, so that there is no cycle.
        uid, parents = f'G::"{name}"', [f'G::"{other}"' for other in above if other > name]
        if remove:
            held.pop(uid, None)
            store = store.update(remove=[uid])
        else:
            held[uid] = Entity(uid, {"level": level}, parents)
            store = store.update([held[uid]])
    at_once = Entities(held.values())
    assert canonical(store) == canonical(at_once)
    assert len(store) == len(at_once) == len(held)
    for name in "ABCDEFGH":
        assert store.ancestors(f'G::"{name}"') == at_once.ancestors(f'G::"{name}"')


def test_many_updates_stay_correct() -> None:
    """Enough of them that layers are compacted on the way."""
    store = Entities([Entity(f'U::"{number}"', {"n": 0}, ['G::"old"']) for number in range(200)])
    for turn in range(30):
        store = store.update(
            [Entity(f'U::"{number}"', {"n": turn}, ['G::"new"']) for number in range(turn * 200, turn * 200 + 200)]
        )
    assert len(store) == 6_000
    assert store.ancestors('U::"0"') == store.ancestors('U::"5999"') == ['G::"new"']


def test_what_is_shown() -> None:
    store = Entities(Entity(f'U::"{number}"') for number in range(3))
    assert (repr(store), repr(Entity(ALICE)), len(Entities())) == ("<Entities: 3>", f"<Entity {ALICE}>", 0)
    assert store.memory_bytes > Entities().memory_bytes
    assert json.loads(Entities().to_json()) == []
