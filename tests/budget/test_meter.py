"""The meter of an engine: exact to the token, strict about columns, for one thread, and equal to a plain model."""

import contextlib
import gc
import os
import threading
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper import BudgetError, HandleError, Ledger, Meter
from tollkeeper.testing import FakeClock

BUDGETS = """
[budget."pool"]
limits = [{ unit = "tokens", window = "total", limit = 1000 }]

[budget."pool/*"]
limits = [
    { unit = "tokens", window = "1h", limit = 900 },
    { unit = "kv_blocks", window = "total", limit = 40 },
    { unit = "in_flight", window = "total", limit = 8 },
]

[budget."paid"]
limits = [{ unit = "nano_usd", window = "total", limit = 1_000_000 }]

[price."cheap"]
prompt = 1_000_000_000
cached = 500_000_000
completion = 3_000_000_000

[price."mute"]
prompt = 1

[price."plain"]
prompt = 1_000_000_000
completion = 3_000_000_000
"""
U32 = np.iinfo(np.uint32).max
Array = npt.NDArray[Any]


def u32(*values: int) -> npt.NDArray[np.uint32]:
    return np.array(values, np.uint32)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger.from_toml(BUDGETS)


@pytest.fixture
def meter(ledger: Ledger) -> Meter:
    return Meter(ledger)


def tokens(ledger: Ledger, path: str = "pool") -> tuple[int, int]:
    usage = ledger.usage(path)["tokens", "total"]
    return usage.used, usage.held


def codes(status: Array) -> list[str]:
    return [Meter.STATUS[number] for number in status]


# --- what it counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_eight_sequences_that_share_a_budget_spend_it_to_the_token(ledger: Ledger, meter: Meter, seed: int) -> None:
    """Speculative steps of several tokens overshoot each hold; what is trimmed makes the sum exact."""
    random = np.random.default_rng(seed)
    nodes = np.full(8, meter.node("pool"), np.uint32)
    prompt = random.integers(0, 40, 8, np.uint32)
    slots, status = meter.reserve_many(nodes, prompt, np.uint32(125) - prompt)
    assert codes(status) == ["allow"] * 8
    assert codes(meter.reserve_many(nodes[:1], u32(1), u32(0))[1]) == ["budget.contended"]
    spent, running = int(prompt.sum()), slots
    while len(running):
        new = random.integers(0, 9, len(running), np.uint32)
        stop = np.full(len(running), 77, np.uint8)
        assert meter.charge(running, new, None, stop) == np.count_nonzero(stop)
        unpaid = np.where(stop > 0, stop.astype(np.int64) - 1, 0)
        assert (unpaid <= new).all()
        spent += int(new.sum() - unpaid.sum())
        running = running[stop == 0]
    assert spent == 1000
    assert meter.settle_many(slots) == 8
    assert tokens(ledger) == (1000, 0)
    assert codes(meter.reserve_many(nodes[:1], u32(1), u32(0))[1]) == ["budget.exhausted"]


def test_a_step(ledger: Ledger, meter: Meter) -> None:
    node = meter.node("pool/a")
    assert node == meter.node("pool/a")
    slots, status = meter.reserve_many(u32(node, node), u32(10, 20), u32(5, 300), u32(1, 39))
    assert (slots.dtype, status.dtype, list(status)) == (np.uint32, np.uint8, [0, 0])
    stop = np.zeros(2, np.uint8)
    assert meter.charge(slots, u32(4, 4), u32(7, 9), stop) == 0
    assert list(stop) == [0, 0]
    assert meter.charge(slots, u32(1, 4), None, stop) == 1
    assert list(stop) == [1, 0], "paid to the last token"
    assert meter.charge(slots, u32(300, 0), None, stop) == 1
    assert list(stop) == [254, 0], "no more than 253 can be said"
    counts = meter.counts(slots)
    assert (list(counts["charged"]), list(counts["compute"])) == ([15, 28], [7, 9])
    assert [hold["meter"] for hold in ledger.holds()] == [True, True]
    assert codes(meter.top_up(slots, u32(3, 2000))) == ["allow", "budget.too_large"]
    assert meter.charge(slots, u32(2, 0), None, stop) == 0
    assert meter.settle_many(slots, u32(10, 5)) == 2
    assert meter.settle_many(slots) == 0
    assert tokens(ledger) == (7 + 23, 0)
    assert ledger.usage("pool/a")["kv_blocks", "total"].available == 40
    assert list(meter.counts(slots)["charged"]) == [-1, -1]
    assert meter.charge(slots, u32(1, 1), u32(1, 1), stop) == 2
    assert list(stop) == [255, 255]


def test_denials_have_numbers(meter: Meter) -> None:
    node = meter.node("pool/a")
    rows = {
        (node, 10, 880, 0): "allow",
        (node, 20, 0, 0): "budget.contended",
        (node, 901, 0, 0): "budget.too_large",
        (9_999, 1, 1, 0): "budget.unavailable",
        (node, 0, 0, 41): "budget.too_large",
        (node, 0, 10, 0): "allow",
    }
    nodes, prompt, max_new, kv_blocks = (np.array(column, np.uint32) for column in zip(*rows, strict=True))
    slots, status = meter.reserve_many(nodes, prompt, max_new, kv_blocks)
    assert codes(status) == list(rows.values())
    assert [slot == U32 for slot in slots] == [code != "allow" for code in codes(status)]
    stop = np.zeros(len(rows), np.uint8)
    assert meter.charge(slots, np.ones(len(rows), np.uint32), None, stop) == 4
    assert list(stop) == [0, 255, 255, 255, 255, 0]
    with pytest.raises(BudgetError, match="pool"):
        meter.node("nowhere")


def test_a_released_sequence_costs_nothing_unless_it_was_used(ledger: Ledger, meter: Meter) -> None:
    slots, _ = meter.reserve_many(u32(*[meter.node("pool")] * 2), u32(10, 10), u32(90, 90))
    assert meter.charge(slots, u32(0, 1), None, np.zeros(2, np.uint8)) == 0
    assert meter.release_many(slots) == 2
    assert meter.release_many(slots) == 0
    assert tokens(ledger) == (11, 0)


def test_a_closed_engine_pays_for_what_it_has_charged(tmp_path: Path) -> None:
    """And one whose hold is over."""
    state, clock = tmp_path / "ledger.bin", FakeClock(1_700_000_000_000)
    budgets = "[ledger]\nvolatile = true\nhold_ttl_s = 60\n" + BUDGETS
    with Ledger.from_toml(budgets, state=state, clock=clock) as watcher:
        for used in (15, 30):
            ledger = Ledger.from_toml(budgets, state=state, clock=clock)
            meter = Meter(ledger)
            slots, _ = meter.reserve_many(u32(meter.node("pool")), u32(10), u32(90))
            assert meter.charge(slots, u32(5), None, np.zeros(1, np.uint8)) == 0
            assert tokens(watcher) == (used - 15, 100)
            if used == 15:
                ledger.close()
            else:
                clock.advance(61_000)
                assert watcher.recover()["expired"] == 1
                assert meter.charge(slots, u32(1), None, np.zeros(1, np.uint8)) == 1
                assert meter.settle_many(slots) == 0
            assert tokens(watcher) == (used, 0)


def test_a_slot_that_another_meter_has_is_not_charged(ledger: Ledger, meter: Meter) -> None:
    slots, _ = meter.reserve_many(u32(meter.node("pool")), u32(0), u32(100))
    assert meter.settle_many(slots) == 1
    other = Meter(ledger)
    theirs, _ = other.reserve_many(u32(other.node("pool")), u32(0), u32(100))
    stop = np.zeros(1, np.uint8)
    for slot in (slots, theirs):
        assert meter.charge(slot, u32(50), u32(50), stop) == 1
        assert stop[0] == 255
        assert meter.settle_many(slot) == meter.release_many(slot) == 0
    assert (list(other.counts(theirs)["charged"]), list(other.counts(theirs)["compute"])) == ([0], [0])
    assert tokens(ledger) == (0, 100)


def test_a_dropped_meter_ends_its_holds_with_what_was_charged(ledger: Ledger) -> None:
    meter = Meter(ledger)
    slots, _ = meter.reserve_many(u32(meter.node("pool")), u32(10), u32(90))
    meter.charge(slots, u32(5), None, np.zeros(1, np.uint8))
    del meter
    gc.collect()
    assert tokens(ledger) == (15, 0)


# --- prices ---------------------------------------------------------------------------------------------------------


def test_the_worst_case_is_held_and_the_real_cost_settled(ledger: Ledger, meter: Meter) -> None:
    def cost() -> tuple[int, int]:
        usage = ledger.usage("paid")["nano_usd", "total"]
        return usage.used, usage.held

    place = np.array([ledger.models.index("cheap")], np.uint16)
    slots, status = meter.reserve_many(u32(meter.node("paid")), u32(100), u32(10), price=place)
    assert codes(status) == ["allow"]
    assert cost() == (0, ledger.price("cheap", {"prompt": 100, "completion": 10}))
    assert codes(meter.top_up(slots, u32(5))) == ["allow"]
    assert cost() == (0, ledger.price("cheap", {"prompt": 100, "completion": 15}))
    meter.charge(slots, u32(7), None, np.zeros(1, np.uint8))
    assert meter.settle_many(slots, u32(30)) == 1
    assert cost() == (ledger.price("cheap", {"prompt": 70, "cached": 30, "completion": 7}), 0)


def test_cached_tokens_without_a_price_cost_as_any_others(ledger: Ledger, meter: Meter) -> None:
    place = np.array([ledger.models.index("plain")], np.uint16)
    slots, _ = meter.reserve_many(u32(meter.node("paid")), u32(100), u32(10), price=place)
    assert meter.settle_many(slots, u32(1_000_000)) == 1
    assert ledger.usage("paid")["nano_usd", "total"].used == ledger.price("plain", {"prompt": 100})


def test_what_has_no_price_is_denied(ledger: Ledger, meter: Meter) -> None:
    node = meter.node("paid")
    places = np.array([ledger.models.index("mute"), 99, ledger.models.index("cheap")], np.uint16)
    _, status = meter.reserve_many(u32(node, node, node), u32(1, 1, 500), u32(1, 1, 200), price=places)
    assert codes(status) == ["budget.unpriced", "budget.unpriced", "budget.too_large"]
    assert ledger.holds() == []


# --- columns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "error", "says"),
    [
        (np.zeros(2, np.int64), TypeError, "must hold uint32, not int64"),
        (np.zeros(2, np.int32), TypeError, "must hold uint32, not int32"),
        (np.zeros(2, np.uint64), TypeError, "must hold uint32, not uint64"),
        (np.zeros(2, np.float32), TypeError, "must hold uint32, not float32"),
        (np.zeros(2, ">u4"), TypeError, "must hold uint32, not >u4"),
        (np.zeros(2, np.uint8), TypeError, "must hold uint32, not uint8"),
        (np.zeros(2, bool), TypeError, "must hold uint32, not bool"),
        (b"\0\0", TypeError, "must hold uint32, not B"),
        ([0, 0], TypeError, "must be a one-dimensional array of uint32, not list"),
        (None, TypeError, "must be a one-dimensional array of uint32, not NoneType"),
        (7, TypeError, "must be a one-dimensional array of uint32, not int"),
        (np.zeros((2, 1), np.uint32), ValueError, "must have 1 dimension, not 2"),
        (np.zeros((), np.uint32), TypeError, "must be a one-dimensional array of uint32, not ndarray"),
        (np.zeros(4, np.uint32)[::2], ValueError, "must be contiguous"),
        (np.zeros(4, np.uint32)[2::-1][:2], ValueError, "must be contiguous"),
    ],
)
def test_a_column_is_what_it_has_to_be(meter: Meter, column: Any, error: type[Exception], says: str) -> None:
    good, stop = np.zeros(2, np.uint32), np.zeros(2, np.uint8)
    calls: list[tuple[str, Any]] = [
        ("nodes", lambda: meter.reserve_many(column, good, good)),
        ("prompt", lambda: meter.reserve_many(good, column, good)),
        ("max_new", lambda: meter.reserve_many(good, good, column)),
        ("slots", lambda: meter.charge(column, good, None, stop)),
        ("new_tokens", lambda: meter.charge(good, column, None, stop)),
        ("slots", lambda: meter.top_up(column, good)),
        ("tokens", lambda: meter.top_up(good, column)),
        ("slots", lambda: meter.settle_many(column)),
        ("slots", lambda: meter.release_many(column)),
        ("slots", lambda: meter.counts(column)),
        ("nodes", lambda: meter.snapshot(column)),
    ]
    if column is not None:
        calls += [
            ("kv_blocks", lambda: meter.reserve_many(good, good, good, column)),
            ("compute", lambda: meter.charge(good, good, column, stop)),
            ("cached", lambda: meter.settle_many(good, column)),
        ]
    for name, call in calls:
        with pytest.raises(error, match=f"{name} {says}"):
            call()


def test_columns_have_the_same_length(meter: Meter) -> None:
    two, three, stop = np.zeros(2, np.uint32), np.zeros(3, np.uint32), np.zeros(2, np.uint8)
    for call in (
        lambda: meter.reserve_many(three, three, two),
        lambda: meter.reserve_many(three, three, three, None, np.zeros(2, np.uint16)),
        lambda: meter.charge(three, two, None, stop),
        lambda: meter.charge(three, three, two, stop),
        lambda: meter.charge(three, three, None, stop),
        lambda: meter.settle_many(three, two),
        lambda: meter.top_up(three, two),
    ):
        with pytest.raises(ValueError, match=r"has 2 rows, (nodes|slots) has 3"):
            call()


def test_where_the_answer_goes_is_writable_bytes(meter: Meter) -> None:
    two, fixed = np.zeros(2, np.uint32), np.zeros(2, np.uint8)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="out_stop must be writable"):
        meter.charge(two, two, None, fixed)
    with pytest.raises(TypeError, match="out_stop must hold uint8, not uint32"):
        meter.charge(two, two, None, two)
    with pytest.raises(TypeError, match="price must hold uint16, not uint32"):
        meter.reserve_many(two, two, two, None, two)
    out = bytearray(2)
    assert meter.charge(two, two, None, out) == 2
    assert out == b"\xff\xff"


def test_no_rows(meter: Meter) -> None:
    none = u32()
    slots, status = meter.reserve_many(none, none, none)
    assert (len(slots), len(status), slots.dtype, status.dtype) == (0, 0, np.uint32, np.uint8)
    assert meter.charge(none, none, none, np.zeros(0, np.uint8)) == meter.settle_many(none) == meter.release_many(none)
    assert meter.snapshot(none)["used"].shape == (0, 5)


def test_a_snapshot(meter: Meter) -> None:
    pool, leaf = meter.node("pool"), meter.node("pool/a")
    slots, _ = meter.reserve_many(u32(leaf, leaf), u32(10, 10), u32(10, 10), u32(3, 4))
    assert meter.settle_many(slots[:1]) == 1
    shot = meter.snapshot(u32(pool, leaf))
    free = np.iinfo(np.int64).max
    assert {name: (column.dtype, column.shape) for name, column in shot.items()} == dict.fromkeys(
        ("used", "held", "available"), (np.int64, (2, 5))
    )
    assert shot["used"].tolist() == [[10, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert shot["held"].tolist() == [[20, 0, 0, 0, 0], [0, 0, 0, 1, 4]]
    assert shot["available"].tolist() == [[970, free, free, free, free], [free, free, free, 7, 36]]
    assert meter.snapshot(u32(leaf), window="1h")["available"].tolist() == [[870, free, free, free, free]]
    with pytest.raises(ValueError, match="1w"):
        meter.snapshot(u32(leaf), window="1w")
    with pytest.raises(ValueError, match="node 4321"):
        meter.snapshot(u32(4321))


# --- whose it is -----------------------------------------------------------------------------------------------------


def test_a_second_thread_is_refused(meter: Meter) -> None:
    """Neither is harmed, and nobody waits."""
    rows, done = 4_000_000, threading.Event()
    columns = np.zeros(rows, np.uint32), np.zeros(rows, np.uint32), np.zeros(rows, np.uint8)

    def charge() -> None:
        while not done.is_set():
            slots, new, stop = columns
            with contextlib.suppress(HandleError):
                meter.charge(slots, new, None, stop)

    thread = threading.Thread(target=charge)
    thread.start()
    found = ""
    try:
        for _ in range(10_000_000):
            try:
                meter.release_many(u32())
            except HandleError as error:
                found = error.code
                break
    finally:
        done.set()
        thread.join()
    assert found == "budget.meter_busy"
    assert meter.release_many(u32()) == 0


def test_a_meter_stays_with_its_ledger_and_its_process(ledger: Ledger) -> None:
    meter = Meter(ledger)
    read, write = os.pipe()
    if os.fork() == 0:
        # No assertion in here: a failing child would run the rest of the tests twice.
        try:
            meter.release_many(u32())
        except HandleError as error:
            os.write(write, error.code.encode())
        os._exit(0)
    assert os.read(read, 99) == b"gate.forked"
    os.wait()
    os.close(read)
    os.close(write)
    ledger.close()
    for call in (lambda: meter.release_many(u32()), lambda: meter.node("pool"), lambda: Meter(ledger)):
        with pytest.raises(HandleError) as caught:
            call()
        assert caught.value.code == "gate.closed"


# --- against a plain model --------------------------------------------------------------------------------------------

LIMIT = 1000
ROWS = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 120)), min_size=1, max_size=12)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "charge", "charge", "charge", "top_up", "settle", "release"]),
        ROWS,
        st.integers(0, 999),
    ),
    max_size=20,
)


class Plain:
    """One budget, and each sequence as [held, charged, prompt]."""

    def __init__(self) -> None:
        self.used = 0
        self.live: dict[int, list[int]] = {}

    def free(self) -> int:
        return LIMIT - self.used - sum(held for held, _, _ in self.live.values())

    def charge(self, slot: int, new: int) -> int:
        if slot not in self.live:
            return 255
        held, charged, _ = self.live[slot]
        self.live[slot][1] = min(held, charged + new)
        return 0 if charged + new < held else 1 + min(charged + new - held, 253)

    def end(self, slot: int, cached: int = 0) -> int:
        """A discount is on the prompt, whatever the engine says was cached."""
        if slot not in self.live:
            return 0
        _, charged, prompt = self.live.pop(slot)
        self.used += max(charged - min(cached, prompt), 0)
        return 1

    def release(self, slot: int) -> int:
        if slot in self.live and self.live[slot][1] == self.live[slot][2]:
            self.live[slot][1] = 0
        return self.end(slot)


@given(STEPS)
def test_it_equals_a_plain_model(steps: list[tuple[str, list[tuple[int, int]], int]]) -> None:
    ledger, plain, given_out = Ledger.from_toml(BUDGETS), Plain(), [0, 5, U32]
    meter = Meter(ledger)
    node = meter.node("pool")
    for what, rows, seed in steps:
        first, second = (np.array(column, np.uint32) for column in zip(*rows, strict=True))
        picked = Random(seed).sample(  # noqa: S311 - a test's
            given_out, min(len(given_out), len(rows))
        )
        slots, amounts = np.array(picked, np.uint32), first[: len(picked)]
        if what == "reserve":
            new, status = meter.reserve_many(np.full(len(rows), node, np.uint32), first, second)
            for slot, code, (prompt, most) in zip(new.tolist(), status.tolist(), rows, strict=True):
                assert (code == 0) == (prompt + most <= plain.free())
                if code == 0:
                    assert slot not in plain.live
                    plain.live[slot] = [prompt + most, prompt, prompt]
                    given_out = [*{*given_out, slot}]
        elif what == "charge":
            stop = np.zeros(len(picked), np.uint8)
            expected = [plain.charge(slot, int(new)) for slot, new in zip(picked, amounts, strict=True)]
            assert meter.charge(slots, amounts, None, stop) == sum(code > 0 for code in expected)
            assert stop.tolist() == expected
        elif what == "top_up":
            for slot, more, code in zip(picked, amounts.tolist(), meter.top_up(slots, amounts).tolist(), strict=True):
                fits = slot in plain.live and more <= plain.free()
                assert (code == 0) == fits
                if fits:
                    plain.live[slot][0] += more
        elif what == "settle":
            assert meter.settle_many(slots, amounts) == sum(map(plain.end, picked, amounts.tolist()))
        else:
            assert meter.release_many(slots) == sum(map(plain.release, picked))
        assert tokens(ledger) == (plain.used, sum(held for held, _, _ in plain.live.values()))
        charged = [plain.live[slot][1] if slot in plain.live else -1 for slot in picked]
        assert meter.counts(slots)["charged"].tolist() == charged
