"""``tollkeeper budget ...``: what people read, and the message for everything that cannot be done."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tollkeeper.budget import Ledger

Cli = Callable[..., Any]
Snapshot = Callable[[Any], None]

# The folders of tests may lie in memory.
BUDGETS = """\
[ledger]
volatile = true
holds = 64

[budget."acme"]
limits = [
  { unit = "nano_usd", window = "month", limit = 500_000_000_000, overdraft = 1_250_000_000 },
  { unit = "requests", window = "1d", limit = 1000 },
]
[budget."acme/ops"]
limits = []
[budget."acme/research/*"]
limits = [
  { unit = "tokens", window = "1d", limit = 150_000 },
  { unit = "in_flight", window = "total", limit = 2 },
]
"""
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "\r\n".join(
    f"2023-11-16 18:{17 + second // 60}:{second % 60:02}.9799600,{1_000 + 10 * second},{7 * second % 90}"
    for second in range(150)
)
NAMED = ("--budgets", "budgets.toml", "--state", "ledger.bin")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    (tmp_path / "budgets.toml").write_text(BUDGETS)
    (tmp_path / "tollkeeper.toml").write_text('[budget]\nfile = "budgets.toml"\nstate = "ledger.bin"\n')
    (tmp_path / "t.csv").write_text(TRACE, newline="")
    return tmp_path


@pytest.fixture
def ledger(folder: Path) -> Iterator[Ledger]:
    with Ledger.open(folder / "budgets.toml", state=folder / "ledger.bin") as opened:
        yield opened


@pytest.fixture
def busy(ledger: Ledger) -> Iterator[Ledger]:
    """Something is used, something held, and something owed."""
    assert ledger.reserve("acme/research/a", tokens=40_000, requests=1, nano_usd=3_000_000).settle(tokens=36_000)
    hold = ledger.reserve("acme/research/a", tokens=100_000, requests=1, in_flight=1, nano_usd=7_500_000)
    assert ledger.reserve("acme/research/b", tokens=1_000, requests=1).settle(tokens=151_000)
    yield ledger
    assert hold.release()


@pytest.mark.usefixtures("busy")
def test_budget_show(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("budget", "show"))


@pytest.mark.usefixtures("busy")
def test_budget_show_named_files(cli: Cli, folder: Path) -> None:
    (folder / "tollkeeper.toml").unlink()
    assert cli("budget", "show", "acme/research/b", *NAMED).out.count("acme") == 2


@pytest.mark.usefixtures("busy")
def test_budget_show_json(cli: Cli) -> None:
    lines = [json.loads(line) for line in cli("budget", "show", "acme/research/a", "--json").out.splitlines()]
    assert [(line["path"], line["unit"], line["window"]) for line in lines] == [
        ("acme/research/a", "tokens", "1d"),
        ("acme/research/a", "in_flight", "total"),
    ]
    tokens = lines[0]
    assert (tokens["limit"], tokens["used"], tokens["held"], tokens["available"]) == (150_000, 36_000, 100_000, 14_000)
    assert tokens["window_end_ms"] % 86_400_000 == 0
    assert lines[1]["window_end_ms"] is None


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize(
    "cost",
    [
        "tokens=14_000,requests=1",
        "tokens=14001",
        "tokens=114001,in_flight=1",
        "tokens=150001,requests=1",
        "in_flight=2",
    ],
)
def test_budget_explain(cli: Cli, snapshot: Snapshot, cost: str) -> None:
    snapshot(cli("budget", "explain", "acme/research/a", cost))


@pytest.mark.usefixtures("busy")
def test_budget_explain_json(cli: Cli) -> None:
    done = cli("budget", "explain", "acme/research/b", "tokens=1", "--json")
    answer = json.loads(done.out)
    assert (done.code, answer["granted"], answer["cost"]) == (1, False, {"tokens": 1})
    assert [(one["path"], one["code"], one["available"]) for one in answer["refusals"]] == [
        ("acme/research/b", "budget.exhausted", -1_000)
    ]
    done = cli("budget", "explain", "acme/ops", "tokens=1", "--json")
    assert (done.code, json.loads(done.out)["granted"]) == (0, True)


@pytest.mark.usefixtures("ledger")
def test_budget_explain_an_unknown_budget(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("budget", "explain", "amce", "tokens=1"))


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    "cost", ["tokens", "tokens=", "tokens=-1", "tokens=1.5", "token=1", "tokens=1,tokens=2", f"tokens={2**53 + 1}", ""]
)
def test_budget_explain_bad_cost(cli: Cli, cost: str) -> None:
    done = cli("budget", "explain", "acme", cost)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: COST: ")


@pytest.mark.usefixtures("busy")
def test_budget_holds(cli: Cli) -> None:
    done = cli("budget", "holds")
    assert (done.code, done.err) == (0, "")
    head, row, _, count = done.out.splitlines()
    assert head.split() == ["hold", "decision", "budget", "process", "granted", "held", "charged", "state"]
    assert "acme/research/a" in row
    assert "tokens 100,000, nano_usd $0.0075, requests 1, in_flight 1" in row
    assert count == "1 live hold"
    (line,) = cli("budget", "holds", "--json").out.splitlines()
    assert json.loads(line)["path"] == "acme/research/a"


@pytest.mark.usefixtures("ledger")
def test_budget_holds_none(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("budget", "holds"))


def test_a_configuration_with_keys_wants_one(cli: Cli, folder: Path, ledger: Ledger) -> None:
    known = cli("audit", "keygen", "--out", "admin.key", "--origin", "admin").out.strip()
    with (folder / "tollkeeper.toml").open("a") as file:
        file.write(f'[state]\n[audit]\norigin = "example.com/gate"\nring_kib = 512\n[admin]\nkeys = ["{known}"]\n')
    change = ("budget", "set-limit", "acme", "requests", "1d", "5")
    accept = ("budget", "recover", "--accept-clock")
    for words in (change, (*change, "--state", "ledger.bin"), accept):
        done = cli(*words)
        assert (done.code, "private key" in done.err) == (2, True), done.err
    assert ledger.usage("acme")["requests", "1d"].limit == 1000
    assert cli("budget", "recover").code == 0
    for words in (change, accept):
        done = cli(*words, "--key", "admin.key")
        assert done.code == 0, done.err
    assert ledger.usage("acme")["requests", "1d"].limit == 5
    for kind in ("limit_changed", "clock_accepted"):
        said = [json.loads(line)["entry"] for line in cli("audit", "show", "--kind", kind, "--json").out.splitlines()]
        assert [entry["by"].split("+")[0] for entry in said if "by" in entry] == ["admin"]
    # Whoever can write the ledger can change it.
    assert cli(*change[:-1], "6", *NAMED).code == 0


@pytest.mark.usefixtures("busy")
def test_budget_recover(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("budget", "recover"))
    assert json.loads(cli("budget", "recover", "--json").out)["holds"] == 0


def test_budget_set_limit(cli: Cli, snapshot: Snapshot, busy: Ledger) -> None:
    snapshot(cli("budget", "set-limit", "acme", "nano_usd", "month", "2_500_000_000"))
    assert busy.usage("acme")["nano_usd", "month"].limit == 2_500_000_000
    assert busy.events()


@pytest.mark.usefixtures("ledger")
@pytest.mark.parametrize(
    "words",
    [
        ("acme", "tokens", "1d", "5"),
        ("amce", "tokens", "1d", "5"),
        ("acme/*", "tokens", "1d", "5"),
        ("acme", "token", "1d", "5"),
        ("acme", "nano_usd", "1y", "5"),
        ("acme", "nano_usd", "month", "-5"),
        ("acme", "nano_usd", "month", "5.0"),
        ("acme", "nano_usd", "month", str(2**60 + 1)),
    ],
)
def test_budget_set_limit_refuses(cli: Cli, words: tuple[str, ...]) -> None:
    done = cli("budget", "set-limit", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err


VERBS = [
    ("show",),
    ("holds",),
    ("recover",),
    ("explain", "acme", "tokens=1"),
    ("set-limit", "acme", "requests", "1d", "1"),
]


@pytest.mark.parametrize("words", VERBS, ids=[words[0] for words in VERBS])
def test_an_anonymous_ledger_has_nothing_to_show(cli: Cli, words: tuple[str, ...]) -> None:
    done = cli("budget", *words, "--budgets", "budgets.toml")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: budgets.toml: the ledger has no state file")


@pytest.mark.parametrize("words", VERBS, ids=[words[0] for words in VERBS])
def test_a_state_is_never_made_by_looking(cli: Cli, folder: Path, words: tuple[str, ...]) -> None:
    done = cli("budget", *words)
    assert (done.code, done.out) == (2, "")
    assert "ledger.bin: no such file" in done.err
    assert not (folder / "ledger.bin").exists()


@pytest.mark.parametrize("content", [b"", b"not a ledger", b"\0" * 1_000_000, b"\xff" * 100_000])
def test_a_state_that_is_none_is_bad_input(cli: Cli, folder: Path, content: bytes) -> None:
    (folder / "ledger.bin").write_bytes(content)
    done = cli("budget", "show")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    assert (folder / "ledger.bin").read_bytes() == content


def test_budget_without_a_section(cli: Cli, folder: Path, snapshot: Snapshot) -> None:
    (folder / "tollkeeper.toml").write_text("")
    snapshot(cli("budget", "show"))


def test_budget_without_a_configuration(cli: Cli, folder: Path, snapshot: Snapshot) -> None:
    (folder / "tollkeeper.toml").unlink()
    snapshot(cli("budget", "show"))


def test_budget_with_a_typo(cli: Cli, folder: Path, snapshot: Snapshot) -> None:
    (folder / "budgets.toml").write_text(BUDGETS.replace('"1d"', '"day"'))
    (folder / "ledger.bin").write_bytes(b"")
    snapshot(cli("budget", "show"))


def test_budget_replay(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("budget", "replay", "t.csv"))


def test_budget_replay_denies(cli: Cli, folder: Path, snapshot: Snapshot) -> None:
    (folder / "b.toml").write_text('[budget."x"]\nlimits = [{ unit = "tokens", window = "1m", limit = 100_000 }]')
    snapshot(cli("budget", "replay", "t.csv", "--config", "b.toml", "--max-tokens", "90", "--plot", "p.svg"))
    assert (folder / "p.svg").read_text().startswith("<svg ")


def test_budget_replay_takes_the_configuration_of_a_gate(cli: Cli, folder: Path) -> None:
    done = cli("budget", "replay", "t.csv", "--config", "tollkeeper.toml", "--json", "-")
    document = json.loads(done.out)
    assert document["paths"][0] == "acme/research/tenant-0"
    assert (document["requests"], len(document["windows"])) == (150, 3)
    assert not (folder / "ledger.bin").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("none.csv",),
        ("budgets.toml",),
        ("t.csv", "--config", "none.toml"),
        ("t.csv", "--config", "t.csv"),
        ("t.csv", "--path", "amce"),
        ("t.csv", "--path", "a//b"),
        ("t.csv", "--tenants", "0"),
        ("t.csv", "--max-tokens", "-1"),
        ("t.csv", "--window", "1y"),
        ("t.csv", "--json", "none/out.json"),
        (".",),
    ],
)
def test_budget_replay_refuses(cli: Cli, words: tuple[str, ...]) -> None:
    done = cli("budget", "replay", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err


def test_budget_replay_names_the_line(cli: Cli, folder: Path, snapshot: Snapshot) -> None:
    (folder / "t.csv").write_text(TRACE.replace(",1030,", ",many,"), newline="")
    snapshot(cli("budget", "replay", "t.csv"))


def test_budget_replay_of_no_requests(cli: Cli, folder: Path, snapshot: Snapshot) -> None:
    (folder / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens")
    snapshot(cli("budget", "replay", "t.csv"))
