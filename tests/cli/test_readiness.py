"""``tollkeeper readiness``: what the log of a gate in shadow mode says about enforcing, against counts made by hand."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import EntityUid, Gate, observed

sys.path.insert(0, str(Path(__file__).resolve().parent))

import shadow_gate

Cli = Callable[..., Any]


def asked(cli: Cli, *words: str) -> dict[str, Any]:
    done = cli("readiness", "--json", *words)
    assert not done.err
    found = json.loads(done.out)
    assert done.code == (0 if found["ready"] else 1)
    return found


def would(found: dict[str, Any], table: str) -> dict[str, int]:
    return {key: row["would_deny"] for key, row in found[table].items()}


@pytest.fixture
def shadow(tmp_path: Path) -> Path:
    return shadow_gate.recorded(tmp_path, "shadow")


@pytest.mark.usefixtures("shadow")
def test_would_denials_are_counted(cli: Cli) -> None:
    found = asked(cli)
    counts = {name: found[name] for name in ("calls", "allowed", "denied", "would_deny", "mode", "ready")}
    assert counts == {"calls": 12, "allowed": 4, "denied": 1, "would_deny": 7, "mode": "shadow", "ready": False}
    assert would(found, "by_code") == {"policy.forbidden": 3, "budget.exhausted": 2, "policy.no_permit": 2}
    assert would(found, "by_policy") == {"never-delete": 2, observed.NO_PERMIT: 2, "no-drafts": 1}
    tools = {"search": 3, "delete_file": 2, "send_email": 1, "call_model gpt-6": 1}
    assert would(found, "by_tool") == tools
    assert would(found, "by_principal") == {shadow_gate.RESEARCHER: 6, shadow_gate.GUEST: 1}
    assert found["denied_by_code"] == {"input.unknown_tool": 1}
    assert found["reasons"] == {"never-delete": "Agents do not delete; ask a person <b>first</b>"}
    assert found["policies_in_shadow"] == ["no-drafts"]
    assert sum(one["would_deny"] for one in found["over_time"]) == 7
    assert sum(one["new"] for one in found["over_time"]) == len(found["causes"]) == 5
    assert found["calls_since_newest_cause"] == 1


@pytest.mark.usefixtures("shadow")
def test_what_was_never_tried(cli: Cli) -> None:
    found = asked(cli)
    assert found["tools_never_called"] == ["create_invoice"]
    assert found["arguments_never_seen"] == {"search": ["language"]}
    # Without a schema nothing is declared; what an unknown tool was given is no matter of schemas.
    assert found["arguments_not_declared"] == {"delete_file": ["path"], "send_email": ["to"]}
    assert found["arguments_not_read"] == {}


def test_examples_lead_to_why(cli: Cli, shadow: Path) -> None:
    found = asked(cli)
    (first, second, *_) = found["look_first"]
    assert first["what"] == "delete_file: policy.forbidden by never-delete, 2 calls"
    assert second["what"] == "search: budget.exhausted, 2 calls"
    for look in found["look_first"]:
        words = look["command"].split()
        assert words[:2] == ["tollkeeper", "why"]
        assert words[3] == shadow.name
        told = cli(*words[1:])
        assert told.code == 0
        assert "would be" in told.out.splitlines()[0]
    known = set(re.findall(r'"id":"([^"]+)"', cli("audit", "show", "--json").out))
    tables = ("by_code", "by_policy", "by_tool", "by_principal")
    assert {id_ for table in tables for row in found[table].values() for id_ in row["examples"]} <= known


@pytest.mark.usefixtures("shadow")
def test_the_text_begins_with_the_verdict(cli: Cli) -> None:
    done = cli("readiness")
    assert done.code == 1
    assert done.out.startswith("not ready: enforcing would have denied 7 of the last 12 calls\nlook first at:\n")
    assert re.search(r"never-delete +2 +\S+ \S+ +Agents do not delete; ask a person <b>first</b>\n", done.out)
    assert re.search(r"no-drafts +1 .*stays in shadow until its @mode is taken away", done.out)
    assert "tools never called: create_invoice\n" in done.out
    assert re.search(r"\n  search +language", done.out)
    assert "denied in shadow mode too, by code" in done.out


def test_ready(cli: Cli, tmp_path: Path) -> None:
    gate = Gate.open(shadow_gate.write(tmp_path, "shadow"))
    shadow_gate.clean(gate, 120)
    shadow_gate.closed(gate)
    done = cli("readiness")
    assert done.code == 0
    assert done.out.startswith("ready: no would-denials in the last 120 calls\n")
    found = asked(cli)
    assert found["arguments_not_declared"] == {"search": ["page"]}
    assert asked(cli, "--calls", "121")["verdict"].startswith("only 120 calls by the policies in force now, and 121")
    # A configuration says where the log lies, from anywhere.
    assert asked(cli, str(tmp_path / "tollkeeper.toml"))["calls"] == 120


@pytest.mark.usefixtures("shadow")
def test_accepted_would_denials(cli: Cli) -> None:
    known = ("--accept", "never-delete", "--accept", "budget.exhausted", "--accept", "policy.no_permit", "--calls", "5")
    found = asked(cli, *known)
    assert (found["ready"], found["accepted"]) == (False, 6)
    assert [one["policies"] for one in found["causes"]] == [["no-drafts"]]
    found = asked(cli, *known, "--accept", "no-drafts")
    assert found["verdict"] == "no other would-denials in the last 12 calls (7 as accepted)"


@pytest.mark.usefixtures("shadow")
def test_accepting_what_is_not_there_is_warned_of(cli: Cli) -> None:
    done = cli("readiness", "--accept", "never-delte", "--accept", "readers", "--accept", "budget.exhausted")
    assert done.err == "warning: --accept never-delte: no policy and no code has this name; is `never-delete` meant?\n"


@pytest.mark.usefixtures("shadow")
def test_what_budgets_in_shadow_mode_cannot_show_is_said(cli: Cli) -> None:
    assert "  budgets: in shadow mode each process counts by itself and from zero" in cli("readiness").out


def test_only_the_policies_in_force_now_count(cli: Cli, tmp_path: Path, shadow: Path) -> None:
    gate = Gate.open(shadow_gate.write(tmp_path, "shadow", shadow_gate.POLICIES + "// changed\n"))
    shadow_gate.clean(gate, 4)
    shadow_gate.closed(gate)
    found = asked(cli, "--calls", "4")
    assert (found["ready"], found["calls"], found["earlier_policies"]["would_deny"]) == (True, 4, 7)
    assert asked(cli, "--earlier")["would_deny"] == 7
    moment = found["first"]
    assert asked(cli, "--until", moment)["would_deny"] == 7
    assert asked(cli, "--since", moment, "--earlier", str(shadow))["calls"] == 4


def test_a_gate_that_enforces_tries_its_policies_in_shadow(cli: Cli, tmp_path: Path, shadow: Path) -> None:
    gate = Gate.open(shadow_gate.write(tmp_path, "enforce"))
    shadow_gate.mixed(gate)
    shadow_gate.closed(gate)
    found = asked(cli)
    assert (found["mode"], found["would_deny"], found["denied"]) == ("enforce", 1, 7)
    assert found["other_mode"] == {"calls": 12, "allowed": 4, "denied": 1, "would_deny": 7}
    assert [(one["tool"], one["policies"]) for one in found["causes"]] == [("search", ["no-drafts"])]
    assert found["verdict"].startswith(
        "the gate enforces already; enforcing its policies in shadow would have denied 1"
    )
    assert "apart: 12 calls in shadow mode, of which 1 were denied and 7 would have been" in cli("readiness").out
    assert shadow.is_dir()


def test_erased_arguments_are_counted(cli: Cli, shadow: Path) -> None:
    entries = [json.loads(line) for line in cli("audit", "show", "--json", "--tool", "delete_file").out.splitlines()]
    assert cli("audit", "erase", str(entries[0]["index"]), str(shadow), "--yes").code == 0
    found = asked(cli)
    assert sum(found["arguments_not_read"].values()) == 1
    assert found["arguments_not_declared"]["delete_file"] == ["path"]
    assert "arguments of 1 call could not be read" in cli("readiness").out


def test_without_its_bundle_the_counts_stand(cli: Cli, shadow: Path) -> None:
    for file in (shadow / "bundle").iterdir():
        file.unlink()
    found = asked(cli)
    assert (found["would_deny"], found["tools_never_called"], found["reasons"]) == (7, None, {})
    assert "is not kept here" in found["remark"]


def test_what_cannot_be_used(cli: Cli, tmp_path: Path) -> None:
    assert cli("readiness").code == 2
    (tmp_path / "tollkeeper.toml").write_text("[gate]\n")
    done = cli("readiness", "tollkeeper.toml")
    assert done.code == 2
    assert "nothing was recorded" in done.err
    assert cli("readiness", "--calls", "0").code == 2
    gate = Gate.open(shadow_gate.write(tmp_path, "shadow"))
    shadow_gate.closed(gate)
    found = asked(cli)
    assert found["verdict"].startswith("no calls by the policies in force now")


def test_names_that_a_terminal_would_obey(cli: Cli, tmp_path: Path) -> None:
    hostile = "\x1b[2J\u202eevil" + "x" * 400
    gate = Gate.open(shadow_gate.write(tmp_path, "shadow"))
    with gate.run(principal=EntityUid("Agent", hostile), session="s-1"):
        gate.check("delete_file", {hostile: hostile})
    shadow_gate.closed(gate)
    done = cli("readiness")
    assert done.code == 1
    assert "\x1b" not in done.out
    assert "\u202e" not in done.out
    assert len(done.out) < 4_000
