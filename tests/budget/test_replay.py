"""Replaying a trace: what is read, and sums that numpy computes from the files again, sharing no code."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper import budgets, replay
from tollkeeper.budget import Ledger
from tollkeeper.cli import budget_replay, plots
from tollkeeper.testing import FakeClock

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
ROW = "2023-11-16 18:17:03.9799600,4808,10"
WIDE = '[budget."t"]\nlimits = [{ unit = "tokens", window = "total", limit = 1_000_000_000_000 }]'
REQUESTS_MAX = 100
NARROW = f'{WIDE}\n[budget."t/*"]\nlimits = [{{ unit = "requests", window = "1m", limit = {REQUESTS_MAX} }}]'


def driven(text: str, requests: Any, rules: replay.Rules, paths: list[str]) -> tuple[replay.Result, Ledger]:
    """Runs a replay and returns its ledger, too."""
    made: list[Ledger] = []

    def start(now_ms: int) -> tuple[Ledger, Callable[[int], None]]:
        clock = FakeClock(now_ms)
        made.append(Ledger(budgets.spec(text), None, clock))
        return made[0], clock.advance

    return replay.run(requests, start, paths, rules), made[0]


def columns(files: list[Path]) -> tuple[Any, Any, Any]:
    """The columns of the traces in order of time, by numpy alone: minutes, prompts, generated."""
    tables = [np.loadtxt(file, delimiter=",", skiprows=1, dtype=str) for file in files]
    table = np.concatenate(tables)
    times = table[:, 0].astype("datetime64[ns]").astype(np.int64)
    order = np.argsort(times // 1_000_000, kind="stable")
    table, times = table[order], times[order]
    return times // 60_000_000_000, table[:, 1].astype(np.int64), table[:, 2].astype(np.int64)


def tenants(count: int, seed: int, tenants: int) -> Any:
    """The rule of the replay, in numpy: arithmetic modulo 2**64."""
    word = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (word ^ (word >> np.uint64(31))) % np.uint64(tenants)


def by_minute(minutes: Any, weights: Any) -> dict[int, int]:
    """Sums of each minute, in integers."""
    names, place = np.unique(minutes, return_inverse=True)
    sums = np.zeros(len(names), dtype=np.int64)
    np.add.at(sums, place, weights)
    return dict(zip(names.tolist(), sums.tolist(), strict=True))


def test_nothing_denied_is_everything_in_the_files(traces: list[Path]) -> None:
    minutes, prompt, generated = columns(traces)
    result, ledger = driven(WIDE, replay.merged(traces), replay.Rules(), ["t"])
    assert (result.requests, result.denied) == (28_185, 0)
    # The totals that are published with the traces.
    assert result.used_tokens == 18_059_974 + 245_896 + 22_361_870 + 4_088_665
    assert {number: one.used_tokens for number, one in result.windows.items()} == by_minute(minutes, prompt + generated)
    assert {number: one.admitted for number, one in result.windows.items()} == by_minute(minutes, np.ones_like(prompt))
    usage = ledger.usage("t")["tokens", "total"]
    assert (usage.used, usage.held) == (result.used_tokens, 0)


@pytest.mark.parametrize(("name", "rows"), [("code", 8_819), ("conv", 19_366)])
def test_each_trace_alone(traces: list[Path], name: str, rows: int) -> None:
    files = [file for file in traces if file.stem == name]
    minutes, prompt, generated = columns(files)
    result, _ = driven(WIDE, replay.read(files[0]), replay.Rules(), ["t"])
    assert result.requests == rows
    sums = {number: one.used_tokens for number, one in result.windows.items() if one.admitted}
    assert sums == by_minute(minutes, prompt + generated)
    assert list(result.windows) == list(range(minutes[0], minutes[-1] + 1)), "minutes without requests are there, too"


def test_denials_are_those_that_numpy_finds(traces: list[Path]) -> None:
    """With a limit on requests alone, which never come back, each tenant's first of a minute are admitted."""
    minutes, prompt, generated = columns(traces)
    whose = tenants(len(minutes), 7, 5)
    rank = np.zeros(len(minutes), dtype=np.int64)
    for minute in np.unique(minutes):
        for one in range(5):
            rows = np.flatnonzero((minutes == minute) & (whose == one))
            rank[rows] = np.arange(len(rows))
    admitted = (rank < REQUESTS_MAX).astype(np.int64)
    assert 0 < admitted.sum() < len(admitted)
    paths = [f"t/tenant-{number}" for number in range(5)]
    result, ledger = driven(NARROW, replay.merged(traces), replay.Rules(tenants=5, seed=7), paths)
    assert (result.admitted, result.denied) == (admitted.sum(), (1 - admitted).sum())
    used = (prompt + generated) * admitted
    assert {number: one.used_tokens for number, one in result.windows.items()} == by_minute(minutes, used)
    assert {number: one.denied for number, one in result.windows.items()} == by_minute(minutes, 1 - admitted)
    assert result.codes == {"budget.exhausted": result.denied}
    assert ledger.usage("t")["tokens", "total"].used == used.sum()


def test_the_command_says_the_same(traces: list[Path], tmp_path: Path) -> None:
    (tmp_path / "wide.toml").write_text(NARROW)
    words = ["budget", "replay", *map(str, traces), "--config", "wide.toml", "--json", "out.json", "--plot", "out.svg"]
    command = [sys.executable, "-m", "tollkeeper", *words, "--tenants", "5", "--seed", "7"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: S603 - our own words
    document = json.loads((tmp_path / "out.json").read_text())
    paths = [f"t/tenant-{number}" for number in range(5)]
    result, _ = driven(NARROW, replay.merged(traces), replay.Rules(tenants=5, seed=7), paths)
    assert (document["requests"], document["denied"]) == (result.requests, result.denied)
    assert document["used_tokens"] == document["ledger_used_tokens"] == result.used_tokens
    rows = [
        (one["window"], one["start_ms"], one["admitted"], one["denied"], one["used_tokens"])
        for one in document["windows"]
    ]
    assert rows == [
        (number, one.start_ms, one.admitted, one.denied, one.used_tokens) for number, one in result.windows.items()
    ]
    assert f"{result.denied:,} denied" in done.stdout
    assert ET.parse(tmp_path / "out.svg").getroot().tag.endswith("svg")  # noqa: S314 - our own file


def test_the_built_in_budgets_deny_something_and_hold(traces: list[Path]) -> None:
    paths = [f"azure/tenant-{number}" for number in range(4)]
    result, ledger = driven(budget_replay.BUILT_IN, replay.merged(traces), replay.Rules(), paths)
    minutes, _, _ = columns(traces)
    assert result.denied > 1_000
    assert {number: one.admitted + one.denied for number, one in result.windows.items()} == by_minute(
        minutes, np.ones_like(minutes)
    )
    assert max(one.used_tokens for one in result.windows.values()) <= 1_000_000
    assert ledger.usage("azure")["tokens", "total"].used == result.used_tokens
    assert ledger.usage("azure")["in_flight", "total"].held == 0


REQUESTS = st.lists(
    st.builds(replay.Request, st.integers(0, 400_000), st.integers(0, 3_000), st.integers(0, 2_000)), min_size=1
).map(lambda rows: sorted(rows, key=lambda row: row.at_ms))


@given(REQUESTS, st.integers(0, 5_000), st.integers(1, 3))
def test_any_trace_is_conserved(requests: list[replay.Request], max_tokens: int, count: int) -> None:
    text = WIDE.replace("1_000_000_000_000", "20_000") + '\n[budget."t/*"]\nlimits = []'
    paths = [f"t/{number}" for number in range(count)]
    result, ledger = driven(text, requests, replay.Rules(max_tokens=max_tokens), paths)
    usage = ledger.usage("t")["tokens", "total"]
    assert (usage.used, usage.held) == (result.used_tokens, 0)
    assert result.used_tokens == sum(one.used_tokens for one in result.windows.values())
    assert result.admitted + result.denied == result.requests == len(requests)
    assert result.denied == sum(result.codes.values())
    assert list(result.windows) == list(range(requests[0].at_ms // 60_000, requests[-1].at_ms // 60_000 + 1))


def test_a_row_is_read_to_the_millisecond(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(f"{HEAD}{ROW}\r\n2023-11-16 18:17:59.9999999,1,2\r\n2023-11-16 18:18:00,0,0", newline="")
    assert list(replay.read(file)) == [
        replay.Request(1_700_158_623_979, 4_808, 10),
        replay.Request(1_700_158_679_999, 1, 2),
        replay.Request(1_700_158_680_000, 0, 0),
    ]


BAD_ROWS = [
    "",
    "x",
    "2023-11-16 18:17:03.9799600,4808",
    f"{ROW},1",
    "2023-13-16 18:17:03.9799600,4808,10",
    "2023-11-16 24:17:03.9799600,4808,10",
    "2023-11-16 18:17:60.9799600,4808,10",
    "2023-11-16 18:17:03.97996001,4808,10",
    "2023-11-16T18:17:03.9799600,4808,10",
    "1969-11-16 18:17:03.9799600,4808,10",
    "2023-11-16 18:17:03.9799600,-4808,10",
    "2023-11-16 18:17:03.9799600,48.5,10",
    "2023-11-16 18:17:03.9799600,4808,9999999999",
    "2023-11-16 18:17:03.9799600,\u0661,10",
    "x" * 1_000,
]


@pytest.mark.parametrize("row", BAD_ROWS)
def test_a_row_that_is_none_is_refused_with_its_line(tmp_path: Path, row: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text(f"{HEAD}{ROW}\r\n{row}\r\n{ROW}", newline="")
    with pytest.raises(replay.TraceError, match=rf"^{re.escape(str(file))}:3: not a row of a trace: `"):
        list(replay.read(file))


def test_other_columns_and_rows_out_of_order_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(f"TIME,A,B\r\n{ROW}", newline="")
    with pytest.raises(replay.TraceError, match=r"t\.csv:1: the columns are not TIMESTAMP"):
        list(replay.read(file))
    file.write_text(f"{HEAD}{ROW}\r\n{ROW.replace('03.9', '03.8')}", newline="")
    with pytest.raises(replay.TraceError, match=r"t\.csv:3: earlier than the row before it"):
        list(replay.read(file))


def test_a_gap_of_years_is_refused() -> None:
    requests = [replay.Request(0, 1, 1), replay.Request(10**13, 1, 1)]
    with pytest.raises(replay.TraceError, match="windows without a request"):
        driven(WIDE, requests, replay.Rules(), ["t"])


def test_a_plot_is_xml_with_labels_and_every_window() -> None:
    rows = [plots.Row(f"1{number}:00", 2 * number, number, 10 * number, 25) for number in range(5)]
    root = ET.fromstring(plots.svg(rows, "a <title>", "a & note"))  # noqa: S314 - our own text
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"a <title>", "a & note", "tokens used", "requests", "start of the window (UTC)", "10:00", "limit"} <= set(
        texts
    )
    titles = [element.text for element in root.iter() if element.tag.endswith("title")]
    assert {"14:00: 40 used", "14:00: 8 admitted", "14:00: 4 denied"} <= set(titles)


def test_bars_show_what_is_not_zero_and_never_more_than_all() -> None:
    assert plots.bar(0, 0, 100, 10) == ".........."
    assert plots.bar(1, 1, 1000, 10) == "#=........"
    assert plots.bar(50, 50, 100, 10) == "#####====="
    assert plots.bar(500, 50, 100, 10) == "##########"
    assert plots.bar(0, 0, 0, 4) == "...."
    assert plots.bar(1, 0, 0, 4) == "####"


def test_a_time_line_has_a_bar_and_a_limit_in_each_row() -> None:
    rows = [plots.Row("10:00", 1, 0, 50, 100), plots.Row("10:01", 10, 2, 1_000, None)]
    assert [row[-1] for row in plots.timeline(rows)] == ["##|.....................", "########################"]
    assert [row[1:-1] for row in plots.timeline(rows)] == [(" 1", "0", "   50", "100"), ("10", "2", "1,000", "  -")]
