"""Many requests in one call: the same answers as one by one, whatever the shape of the columns."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper import Context, Entities, Entity, EntityUid, PolicySet

POLICIES = PolicySet.from_cedar(
    """
    permit (principal in Team::"ops", action == Action::"read", resource)
    when { context.path like "/srv/*" && context.amount < 10 };
    permit (principal == Agent::"b", action in [Action::"read", Action::"write"], resource);
    forbid (principal, action == Action::"write", resource) when { context.amount > 5 };
    forbid (principal, action, resource == Mcp::"vault") unless { context has approved && context.approved };
    """
    + "\n".join(
        f'permit (principal, action == Action::"read", resource) when {{ context.kind == "k{n}" }};' for n in range(90)
    )
)
STORE = Entities([Entity('Agent::"a"', parents=['Team::"ops"'])])
AGENTS = ['Agent::"a"', 'Agent::"b"', 'Agent::"c"']
ACTIONS = ['Action::"read"', 'Action::"write"', 'Action::"drop"']
RESOURCES = ['Mcp::"files"', 'Mcp::"vault"']

CONTEXTS = st.fixed_dictionaries(
    {},
    optional={
        "path": st.sampled_from(["/srv/a", "/etc/b", 3]),
        "amount": st.integers(0, 12) | st.just("five"),
        "approved": st.booleans(),
        "kind": st.integers(0, 95).map(lambda n: f"k{n}"),
    },
)
ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=40
)


@given(contexts=st.lists(CONTEXTS, min_size=4, max_size=4), rows=ROWS, threads=st.integers(1, 3))
def test_equals_one_by_one(contexts: list[dict[str, Any]], rows: list[tuple[int, int, int, int]], threads: int) -> None:
    columns = [np.array(column, dtype=np.uint32) for column in zip(*rows, strict=True)]
    indices = dict(zip(("principal_index", "action_index", "resource_index", "context_index"), columns, strict=True))
    tables = (AGENTS, ACTIONS, RESOURCES, contexts)
    full = POLICIES.decide_many(*tables, STORE, detail="policies", threads=threads, **indices)
    quick = POLICIES.decide_many(*tables, STORE, **indices)
    counts = POLICIES.decide_many(*tables, STORE, detail="counts", **indices)
    ids = POLICIES.ids
    for row, (p, a, r, c) in enumerate(rows):
        answer = POLICIES.decide(AGENTS[p], ACTIONS[a], RESOURCES[r], contexts[c], STORE)
        assert full.decisions[row] == quick.decisions[row] == counts.decisions[row] == answer.allowed
        offsets, policies = full.reasons
        assert [ids[n] for n in sorted(policies[offsets[row] : offsets[row + 1]])] == answer.reasons
        offsets, policies = full.errors
        erring = {ids[n] for n in policies[offsets[row] : offsets[row + 1]]}
        assert erring == {error.policy for error in answer.errors}
        assert (counts.reason_counts[row], counts.error_counts[row]) == (len(answer.reasons), len(answer.errors))


def test_columns_without_indices_are_rows_and_single_values_repeat() -> None:
    got = POLICIES.decide_many(
        AGENTS, 'Action::"read"', EntityUid("Mcp", "files"), {"path": "/srv/a", "amount": 1}, STORE
    )
    assert got.decisions.tolist() == [1, 1, 0]
    assert got.decisions.dtype == np.uint8
    assert got.reasons is None
    prepared = [Context({"path": "/srv/a", "amount": n}) for n in (1, 11)]
    got = POLICIES.decide_many('Agent::"a"', 'Action::"read"', 'Mcp::"files"', prepared, STORE)
    assert got.decisions.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", ["uint32", "int64", "int32", "uint64"])
def test_any_integer_dtype_indexes(dtype: str) -> None:
    index = np.array([0, 2, 0], dtype=dtype)
    got = POLICIES.decide_many(
        AGENTS, 'Action::"read"', 'Mcp::"files"', {"path": "/srv/a", "amount": 1}, STORE, principal_index=index
    )
    assert got.decisions.tolist() == [1, 0, 1]
    from_list = POLICIES.decide_many(
        AGENTS, 'Action::"read"', 'Mcp::"files"', {"path": "/srv/a", "amount": 1}, STORE, principal_index=index.tolist()
    )
    assert from_list.decisions.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"principal_index": np.array([3], dtype=np.uint32)}, "3"),
        ({"principal_index": np.array([-1])}, "negative"),
        ({"principal_index": np.array([[0]], dtype=np.uint32)}, "one dimension"),
        ({"principal_index": np.array([0, 1], dtype=np.uint32), "context_index": [0, 0, 0]}, "rows"),
        ({"detail": "all"}, "detail"),
    ],
)
def test_bad_columns_are_refused_before_anything_is_decided(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        POLICIES.decide_many(AGENTS, 'Action::"read"', 'Mcp::"files"', [{}], STORE, **change)


def test_bad_values_are_refused() -> None:
    with pytest.raises(TypeError):
        POLICIES.decide_many(AGENTS, 'Action::"read"', 'Mcp::"files"', [{}], STORE, principal_index=np.array([0.5]))
    with pytest.raises(TypeError):
        POLICIES.decide_many([json], 'Action::"read"', 'Mcp::"files"', [{}], STORE)


def test_no_requests_no_answers() -> None:
    got = POLICIES.decide_many([], 'Action::"read"', 'Mcp::"files"', [{}], STORE)
    assert got.decisions.shape == (0,)
