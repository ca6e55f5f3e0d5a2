"""``tollkeeper hosts``: the book that the contract suite keeps, as people and as programs read it."""

import json

import pytest

from tollkeeper.adapters import _hosts
from tollkeeper.cli import hosts, main


def test_every_case_of_every_host_is_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hosts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == list(_hosts.TABLE)
    words = {word for word, _ in hosts.BY.values()}
    for case, what in _hosts.CASES.items():
        (line,) = [line for line in lines if line.startswith(f"{case} ") and line.endswith(what)]
        said = line.removeprefix(case).removesuffix(what).split()
        assert said == [hosts.BY[cases[case]["by"]][0] for cases in _hosts.guarantees().values()]
        assert set(said) <= words
    for host in _hosts.TABLE.values():
        assert any(line.startswith(f"{host.title}: tested with {host.distribution} {host.oldest}") for line in lines)
    reasons = [row["reason"] for cases in _hosts.guarantees().values() for row in cases.values() if "reason" in row]
    assert all(any(line.endswith(reason) for line in lines) for reason in reasons)


def test_programs_get_one_object_for_each_host_and_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hosts", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["host"], row["case"]) for row in rows] == [
        (host, case) for host in _hosts.TABLE for case in _hosts.CASES
    ]
    assert all(row["what"] == _hosts.CASES[row["case"]] for row in rows)


def test_a_version_that_is_too_old_is_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    host = _hosts.TABLE["maf"]
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.2.0")
    assert hosts.installed(host) == "1.2.0 is installed, which is too old"
    monkeypatch.setattr("importlib.metadata.version", lambda _: host.newest)
    assert hosts.installed(host) == f"{host.newest} is installed"
