"""``tollkeeper bench``: what is judged how, what is asked, what stays untouched; once for real."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import bench, config
from tollkeeper.budget import Ledger
from tollkeeper.cli import bench as verb

Cli = Callable[..., Any]

QUIET = bench.Noise(spread=1.05, stolen=0.0, preempted=0.0, stalled=0.0)
UNSTEADY = bench.Noise(spread=1.6, stolen=0.0, preempted=0.0, stalled=0.0)
SHORT = ("--seconds", "0.3")


@pytest.fixture
def starter(cli: Cli, tmp_path: Path) -> Path:
    assert cli("init").code == 0
    return tmp_path


def tree(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Everything below a folder: when it was changed, and what files hold."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


# --- verdicts -----------------------------------------------------------------------------------------------------

JUDGED = [
    # Within the bound: kept, on any machine. The bound itself is kept only where that is said.
    ("check:p99<10us", 9_999, 100_000, QUIET, "kept"),
    ("check:p99<10us", 9_999, 100_000, UNSTEADY, "kept"),
    ("check:p99<10us", 10_000, 100_000, QUIET, "broken"),
    ("check:p99<=10us", 10_000, 100_000, QUIET, "kept"),
    # Over it: the machine decides, up to ten times.
    ("check:p99<10us", 10_001, 100_000, QUIET, "broken"),
    ("check:p99<10us", 10_001, 100_000, UNSTEADY, "noisy"),
    ("check:p99<10us", 100_000, 100_000, UNSTEADY, "noisy"),
    ("check:p99<10us", 100_001, 100_000, UNSTEADY, "broken"),
    ("check:p50<1us", 1_300, 100_000, UNSTEADY, "noisy"),
    ("policy:max<1ms", 1_000_001, 100_000, QUIET, "broken"),
    # Too few calls beyond the quantile say nothing, but for ten times the bound.
    ("check:p99<10us", 5_000, 999, QUIET, "noisy"),
    ("check:p99<10us", 5_000, 1_000, QUIET, "kept"),
    ("check:p99.9<10us", 50_000, 9_000, QUIET, "noisy"),
    ("check:p99.9<10us", 500_000, 9_000, QUIET, "broken"),
    ("model_call:max<10us", 5_000, 1, QUIET, "kept"),
]


@pytest.mark.parametrize(("text", "value_ns", "samples", "noise", "outcome"), JUDGED)
def test_a_budget_is_judged(text: str, value_ns: float, samples: int, noise: bench.Noise, outcome: str) -> None:
    verdict = bench.judge(bench.budget(text), value_ns, samples, noise)
    assert (verdict.outcome, bool(verdict.reasons)) == (outcome, outcome == "noisy")


@pytest.mark.parametrize(
    ("noise", "statistic", "said"),
    [
        (UNSTEADY, "p50", ["the reference loop varies by 1.60 between rounds, 1.25 are tolerated"]),
        (bench.Noise(1.0, 0.05, 0, 0), "p50", ["the host took 5.0% of the time away, 2% are tolerated"]),
        # One call in two hundred: nothing to a median, everything to p99.
        (bench.Noise(1.0, 0, 0.005, 0), "p50", []),
        (
            bench.Noise(1.0, 0, 0.005, 0),
            "p99",
            ["the reference loop was preempted in 0.500% of its calls, 0.100% are tolerated"],
        ),
        (
            bench.Noise(1.0, 0, 0, 0.0002),
            "p99.9",
            ["the reference loop stalled in 0.020% of its calls, 0.010% are tolerated"],
        ),
        (bench.Noise(1.0, 0, 0, 0.0002), "p99", []),
        (bench.Noise(1.0, 0, 1e-6, 0), "max", ["the reference loop was preempted in 0.000% of its calls"]),
    ],
)
def test_why_it_cannot_be_told(noise: bench.Noise, statistic: str, said: list[str]) -> None:
    reasons = noise.reasons(bench.STATISTICS[statistic])
    assert len(reasons) == len(said)
    assert all(reason.startswith(start) for reason, start in zip(reasons, said, strict=True))


def report(check_ns: float, noise: bench.Noise) -> bench.Report:
    """As if every statistic of every measure had been this."""
    values = dict.fromkeys(bench.STATISTICS, check_ns)
    names = (bench.REFERENCE, *bench.MEASURES)
    figures = {name: bench.Figure(100_000, values, 1e9 / check_ns, {"allow": 1}) for name in names}
    return bench.Report(figures, {}, noise, 1.0)


@pytest.mark.parametrize(
    ("noise", "budgets", "code", "said"),
    [
        (QUIET, ["check:p99<10us", "policy:p50<2us"], 0, ["kept: check:p99<10us: 1.50 us", "kept: policy:p50<2us"]),
        (QUIET, ["check:p50<1us"], 1, ["broken: check:p50<1us: 1.50 us"]),
        (UNSTEADY, ["check:p50<1us"], 3, ["too noisy to tell: check:p50<1us: 1.50 us", "  the reference loop varies"]),
        # What is broken for certain is not hidden by what cannot be told.
        (UNSTEADY, ["check:p50<1us", "check:p50<100ns"], 1, ["too noisy to tell: check:p50<1us", "broken: check:p50<"]),
        (UNSTEADY, [], 0, ["machine: the reference varies by 1.60 between rounds"]),
    ],
)
def test_the_exit_code(  # noqa: PLR0913, PLR0917 - a table and three fixtures
    noise: bench.Noise,
    budgets: list[str],
    code: int,
    said: list[str],
    starter: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The figures are given, so that the outcome is the same on every machine; everything else is as it is.
    monkeypatch.setattr(bench, "measure", lambda *_: report(1_500.0, noise))
    from tollkeeper.cli import main  # noqa: PLC0415 - in this process

    words = [word for text in budgets for word in ("--budget", text)]
    assert main(["bench", str(starter / "tollkeeper.toml"), *words]) == code
    lines = capsys.readouterr().out.splitlines()
    for start in said:
        assert any(line.startswith(start) for line in lines), (start, lines)


# --- for real -----------------------------------------------------------------------------------------------------


def test_a_real_run_touches_nothing(cli: Cli, starter: Path) -> None:
    text = (starter / "tollkeeper.toml").read_text()
    (starter / "tollkeeper.toml").write_text(text.replace("# state = ", "state = "))
    before = tree(starter)
    done = cli("bench", *SHORT, "--json", "--budget", "check:p50<1s".replace("1s", "1000ms"))
    assert (done.code, done.err) == (0, "")
    assert tree(starter) == before
    found = json.loads(done.out)
    assert list(found["figures"]) == ["reference", "check", "policy", "model_call"]
    assert found["figures"]["check"]["codes"] == {"allow": 4, "policy.forbidden": 2, "policy.no_permit": 5}
    assert found["asked"] == "11 actions from policy.tests"
    for figure in found["figures"].values():
        assert figure["calls"] >= 10
        assert 0 < figure["p50_ns"] <= figure["p99_ns"] <= figure["p999_ns"] <= figure["max_ns"]
    # A check with everything cannot be had for less than the policies alone; on any machine not for half.
    assert found["figures"]["check"]["p50_ns"] > found["figures"]["policy"]["p50_ns"] / 2
    assert [one["outcome"] for one in found["budgets"]] == ["kept"]


def test_what_no_machine_can_keep_is_broken(cli: Cli, starter: Path) -> None:
    done = cli("bench", str(starter / "tollkeeper.toml"), *SHORT, "--budget", "check:p50<1ns")
    assert done.code == 1
    assert "broken: check:p50<1ns: " in done.out
    assert "state: a private copy, with limits that cannot be reached" in done.out


def test_actions_are_asked_as_they_are_written(cli: Cli, starter: Path) -> None:
    """Also with a budget that the configuration would have used up at once."""
    (starter / "one.jsonl").write_text(
        '{"principal": "Agent::\\"researcher\\"", "tool": "search", "budget": "acme/trial/ann", '
        '"arguments": {"query": "budgets"}}\n'
    )
    done = cli("bench", *SHORT, "--actions", "one.jsonl")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("1 action from one.jsonl: 1 allow\n")


def test_without_cases_arguments_are_made_from_schemas(starter: Path) -> None:
    text = (starter / "tollkeeper.toml").read_text().replace('tests = ["policies/*.md"]', "")
    (starter / "tollkeeper.toml").write_text(text)
    settings = config.load(starter / "tollkeeper.toml")
    actions, source = verb._actions(None, settings)
    assert source == "the tools' schemas"
    assert {one.tool for one in actions} == set(settings.tools)
    assert {"to": ["text"], "subject": "text", "body": "text"} in [one.arguments for one in actions]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "minLength": 6, "maxLength": 6}, "textte"),
        ({"type": "string", "maxLength": 2}, "te"),
        ({"enum": ["a", "b"]}, "a"),
        ({"const": 3}, 3),
        ({"type": ["integer", "null"], "minimum": 7}, 7),
        ({"anyOf": [{"type": "boolean"}, {"type": "string"}]}, True),
        ({"type": "array", "items": {"type": "number"}, "minItems": 2}, [1, 1]),
        ({"type": "object", "properties": {"a": {"type": "null"}}}, {"a": None}),
    ],
)
def test_a_value_for_a_schema(schema: dict[str, Any], value: Any) -> None:
    assert verb.sample(schema) == value


# --- the private copy ---------------------------------------------------------------------------------------------


def test_the_copy_decides_alike_and_writes_elsewhere(starter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a [strange] folder"
    folder.mkdir()
    for name in ("tollkeeper.toml", "budgets.toml", "entities.json", "schema.cedarschema"):
        (starter / name).rename(folder / name)
    (starter / "policies").rename(folder / "policies")
    text = (folder / "tollkeeper.toml").read_text().replace('mode = "enforce"', 'mode = "shadow"')
    # A name that TOML has to quote, with everything that JSON would write otherwise.
    text += '\n[tools."tab\\tdel\\u007f \\U0001F600"]\nresource = \'Mcp::"web"\'\n'
    (folder / "tollkeeper.toml").write_text(text)
    settings = config.load(folder / "tollkeeper.toml")
    copied = config.load(bench.private_copy(settings, tmp_path / "copy"))
    assert (copied.gate.mode, copied.tools) == ("shadow", settings.tools)
    assert copied.policy_files == [file.resolve() for file in settings.policy_files]
    assert copied.audit_dir == tmp_path / "copy" / "audit"
    assert (copied.budget_file, copied.admin_keys, copied.gate.watch) == (None, [], False)
    if settings.state_dir is not None:
        assert copied.state_dir == tmp_path / "copy" / "state"
    alone = config.load(bench.private_copy(settings, tmp_path / "alone", alone=True))
    assert (alone.audit, alone.state_dir) == (None, None)
    assert all(tool.cost is None for tool in alone.tools.values())
    assert list(alone.tools) == list(settings.tools)


def test_the_copied_ledger_cannot_be_used_up(starter: Path, tmp_path: Path) -> None:
    settings = config.load(starter / "tollkeeper.toml")
    ledger = bench.private_ledger(settings, tmp_path)
    assert isinstance(ledger, Ledger)
    with ledger:
        usage = ledger.usage("acme")
        assert set(usage) == {("nano_usd", "month"), ("in_flight", "total")}
        assert {one.limit for one in usage.values()} == {1 << 60}


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("check", "there is no `:`"),
        ("check:p99", "there is no `<`"),
        ("check:p99<fast", "no number follows"),
        ("check:p99<1e3us", "no number follows"),
        ("chekc:p99<1us", "unknown measure `chekc`, known: check, policy, model_call"),
        ("check:p98<1us", "unknown statistic `p98`, known: p50, p99, p99.9, max"),
        ("check:p99<1s", "unknown unit `s`, known: ns, us, ms"),
        ("check:p99<1", "the unit of the time is missing, known: ns, us, ms"),
        ("check:p99<0us", "nothing takes no time"),
    ],
)
def test_a_bad_budget(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        bench.budget(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{text}: ")


@pytest.mark.parametrize(
    ("text", "bound_ns"),
    [("check:p99<10us", 10_000), (" check : p50 <= 0.5 us ", 500), ("policy:max<2\N{MICRO SIGN}s", 2000)],
)
def test_a_good_budget(text: str, bound_ns: float) -> None:
    assert bench.budget(text).bound_ns == bound_ns


def test_what_cannot_be_measured(cli: Cli, starter: Path) -> None:
    for words, said in (
        (("--budget", "check:p99"), "--budget check:p99: there is no `<`"),
        (("--seconds", "0"), "0 is not between 0.2 and 60 seconds"),
        (("--actions", "none.jsonl"), "none.jsonl: no such file or directory"),
        (("none.toml",), "none.toml: no such file"),
    ):
        done = cli("bench", *words)
        assert (done.code, done.out) == (2, "")
        assert said in done.err
    (starter / "bad.jsonl").write_text('{"principal": "nobody", "tool": "search"}\n')
    done = cli("bench", *SHORT, "--actions", "bad.jsonl")
    assert done.code == 2
    assert "`search` by nobody: " in done.err
    (starter / "tollkeeper.toml").write_text("[gate]\nmoed = 'shadow'\n")
    done = cli("bench", *SHORT)
    assert done.code == 2
    assert "gate.moed: unknown key" in done.err


def test_a_model_that_may_not_be_called_is_not_measured(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "p.cedar").write_text('permit (principal, action == Action::"search", resource);')
    (tmp_path / "tollkeeper.toml").write_text(
        "[policy]\nfiles = ['p.cedar']\n[tools.search]\nresource = 'Mcp::\"web\"'\n"
    )
    done = cli("bench", *SHORT)
    assert done.code == 0
    assert 'model_call: not measured: Agent::"bench" may not call model: policy.no_permit' in done.out
    done = cli("bench", *SHORT, "--budget", "model_call:p50<1ms")
    assert done.code == 2
    assert "model_call cannot be measured" in done.err
    (tmp_path / "paid.jsonl").write_text('{"principal": "Agent::\\"a\\"", "tool": "search", "budget": "acme"}\n')
    done = cli("bench", *SHORT, "--actions", "paid.jsonl")
    assert (done.code, done.out) == (2, "")
    assert "acme: an action names a budget, and the configuration has none" in done.err
