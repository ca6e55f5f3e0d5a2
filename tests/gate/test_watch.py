"""Reloading: by itself when files change, when it is told to, and only what has passed its tests."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import ConfigError, Gate, GateAdmin, PolicyError, StateError, _native
from tollkeeper.watch import fingerprint

POLICIES = '@id("search") permit(principal, action == Action::"search", resource);'
STOP = '@id("stop") forbid(principal, action == Action::"search", resource);'
CASES = """---
policies: policies/p.cedar
principal: Agent::"a"
resource: Mcp::"web"
---

| action | expect |
|---|---|
| Action::"search" | {expect} |
"""
CONFIG = """
[gate]
watch = true
[policy]
files = ["policies/*.cedar"]
tests = ["cases.md"]
[state]
[audit]
origin = "example.com/gate"
ring_kib = 512
[tools.search]
resource = 'Mcp::"web"'
"""
A = 'Agent::"a"'
WAIT_SECONDS = 15.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A gate's files."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "tollkeeper.toml").write_text(CONFIG)
    (tmp_path / "policies" / "p.cedar").write_text(POLICIES)
    (tmp_path / "cases.md").write_text(CASES.format(expect="allow by search"))
    return tmp_path


def code(gate: Gate) -> str:
    """The code of one check."""
    with gate.run(principal=A, session="s"):
        return gate.check("search").code


def until(condition: Callable[[], object]) -> None:
    """Waits for what another thread does."""
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def replace(file: Path, text: str) -> None:
    """Puts a new file in the place of one, as most editors do."""
    draft = file.with_name(file.name + "~")
    draft.write_text(text)
    draft.rename(file)


def forbid(folder: Path) -> None:
    """Policies and cases that go together, and deny."""
    (folder / "cases.md").write_text(CASES.format(expect="deny by stop"))
    replace(folder / "policies" / "p.cedar", POLICIES + STOP)


def loads(gate: Gate) -> list[dict[str, Any]]:
    """What the log says about loading."""
    assert gate.log is not None
    gate.log.flush()
    found = [json.loads(raw) for _, raw in _native.AuditReader(gate.log.folder).entries()]
    return [entry for entry in found if entry["kind"] == "policy_load"]


def test_changed_files_are_loaded(folder: Path, gate: Gate) -> None:
    assert code(gate) == "allow"
    forbid(folder)
    until(lambda: code(gate) == "policy.forbidden")
    until(lambda: gate.reload_error is None)
    first, last = loads(gate)[0], loads(gate)[-1]
    assert first["bundle"] != last["bundle"]


def test_a_new_file_that_a_pattern_matches_is_loaded(folder: Path, gate: Gate) -> None:
    assert code(gate) == "allow"
    (folder / "policies" / "q.cedar").write_text(STOP)
    until(lambda: code(gate) == "policy.forbidden")


def test_policies_that_fail_their_tests_change_nothing(folder: Path, gate: Gate) -> None:
    replace(folder / "policies" / "p.cedar", POLICIES + STOP)
    until(lambda: gate.reload_error)
    assert "1 of 1 policy cases fail" in str(gate.reload_error)
    assert code(gate) == "allow"
    first, *refused = loads(gate)
    assert refused
    assert all(one["failed"] and one["bundle"] == first["bundle"] for one in refused)
    assert "expected allow by search, actual deny by stop" in refused[-1]["reason"]
    (folder / "cases.md").write_text(CASES.format(expect="deny by stop"))
    until(lambda: code(gate) == "policy.forbidden")
    until(lambda: gate.reload_error is None)


def test_a_file_that_is_half_written_changes_nothing(folder: Path, gate: Gate) -> None:
    file = folder / "tollkeeper.toml"
    file.write_text(CONFIG + "[tools.wire\n")
    until(lambda: gate.reload_error)
    assert "tollkeeper.toml" in str(gate.reload_error)
    assert (code(gate), gate.tools) == ("allow", ["search"])
    file.write_text(CONFIG + "[tools.wire]\nresource = 'Mcp::\"bank\"'\n")
    until(lambda: gate.tools == ["search", "wire"])
    until(lambda: gate.reload_error is None)
    file.unlink()
    until(lambda: gate.reload_error)
    assert code(gate) == "allow"


def test_a_file_that_is_written_in_pieces_is_read_once_it_rests(folder: Path, gate: Gate) -> None:
    file = folder / "policies" / "p.cedar"
    with file.open("a") as stream:
        for character in "\n// a remark that somebody types slowly\n":
            stream.write(character)
            stream.flush()
            time.sleep(0.01)
    until(lambda: len(loads(gate)) > 1)
    assert code(gate) == "allow"
    assert len(loads(gate)) <= 4
    assert not any(one.get("failed") for one in loads(gate))


def test_closing_joins_the_thread(folder: Path) -> None:
    gate = Gate.open(folder / "tollkeeper.toml")
    watch = gate._watch
    assert watch is not None
    assert watch.alive
    assert len(list((folder / "state" / "reloads").iterdir())) == 1
    gate.close()
    assert not watch.alive
    assert list((folder / "state" / "reloads").iterdir()) == []
    gate.close()


def test_a_program_that_never_closes_its_gate_ends_all_the_same(folder: Path) -> None:
    program = "import sys; from tollkeeper import Gate; gate = Gate.open(sys.argv[1]); print(gate.mode)"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(  # noqa: S603 - of this test
        [sys.executable, "-c", program, str(folder / "tollkeeper.toml")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "enforce\n", "")


def test_the_gate_is_found_from_another_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with Gate.open("tollkeeper.toml") as gate:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        forbid(folder)
        until(lambda: code(gate) == "policy.forbidden")


def test_without_the_package_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(ConfigError, match="watchfiles") as caught:
        Gate.open(folder / "tollkeeper.toml")
    assert caught.value.help == "install the extra `watch` of this wheel, or its package: pip install watchfiles"
    # What was opened on the way is closed again.
    monkeypatch.delitem(sys.modules, "watchfiles")
    with Gate.open(folder / "tollkeeper.toml") as gate:
        assert gate.log is not None
        assert Path(gate.log.folder).name == "0"


def test_no_two_states_have_one_fingerprint(folder: Path) -> None:
    config = folder / "tollkeeper.toml"
    seen = [fingerprint(config)]
    for change in (
        lambda: replace(folder / "policies" / "p.cedar", POLICIES),
        lambda: (folder / "policies" / "q.cedar").write_text(STOP),
        (folder / "policies" / "q.cedar").unlink,
        lambda: config.write_text("[["),
        config.unlink,
    ):
        change()
        seen.append(fingerprint(config))
    assert seen[1] == seen[3], "what was added is gone again"
    assert len(set(seen)) == 5


# --- told to ----------------------------------------------------------------------------------------------------------


def test_a_program_can_reload_and_hears_of_failing_tests(folder: Path) -> None:
    (folder / "tollkeeper.toml").write_text(CONFIG.replace("watch = true", ""))
    with Gate.open(folder / "tollkeeper.toml") as gate:
        replace(folder / "policies" / "p.cedar", POLICIES + STOP)
        with pytest.raises(PolicyError) as caught:
            gate.reload()
        assert caught.value.code == "policy.tests"
        (detail,) = caught.value.errors
        assert (Path(detail.file or "").name, detail.line) == ("cases.md", 9)
        assert code(gate) == "allow"
        assert gate.reload_error == str(caught.value)


def test_gates_that_watch_are_told(folder: Path, gate: Gate) -> None:
    admin = GateAdmin.open(folder / "tollkeeper.toml")
    done = admin.reload()
    assert (done.taken, done.missing) == ([os.getpid()], {})
    assert done.bundle == gate.stats()["bundle"].hex()
    forbid(folder)
    done = admin.reload()
    assert (done.taken, done.missing) == ([os.getpid()], {})
    assert code(gate) == "policy.forbidden"


def test_nobody_is_told_of_what_fails(folder: Path, gate: Gate) -> None:
    admin = GateAdmin.open(folder / "tollkeeper.toml")
    replace(folder / "policies" / "p.cedar", POLICIES + STOP)
    with pytest.raises(PolicyError):
        admin.reload()
    assert not (folder / "state" / "reload").exists()
    assert code(gate) == "allow"
    logs = [Path(log["path"]) for log in _native.audit_logs(folder / "audit")]
    said = [json.loads(raw) for log in logs for _, raw in _native.AuditReader(log).entries()]
    failed = [entry for entry in said if entry["kind"] == "policy_load" and entry.get("by")]
    assert [(one["failed"], one["by"]) for one in failed] == [(True, admin._name)]


def test_what_a_gate_refuses_of_it_is_told(folder: Path, gate: Gate) -> None:
    text = CONFIG.replace("example.com/gate", "example.com/other")
    (folder / "tollkeeper.toml").write_text(text)
    done = GateAdmin.open(folder / "tollkeeper.toml").reload()
    assert done.taken == []
    assert "[audit] has changed" in done.missing[os.getpid()]
    assert code(gate) == "allow"


def test_a_gate_that_does_not_watch_is_named(folder: Path) -> None:
    (folder / "tollkeeper.toml").write_text(CONFIG.replace("watch = true", ""))
    with Gate.open(folder / "tollkeeper.toml") as gate:
        forbid(folder)
        admin = GateAdmin.open(folder / "tollkeeper.toml")
        done = admin.reload(timeout=0.2)
        assert done.taken == []
        assert "gate.reload()" in done.missing[os.getpid()]
        gate.reload()
        assert admin.reload(timeout=0.2).taken == [os.getpid()]


def test_a_bundle_has_one_digest_wherever_it_lies(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder / "tollkeeper.toml"
    config.write_text(CONFIG.replace("watch = true", ""))
    other = tmp_path / "copy"
    other.mkdir()
    for name in ("tollkeeper.toml", "cases.md"):
        (other / name).write_text((folder / name).read_text())
    (other / "policies").mkdir()
    (other / "policies" / "p.cedar").write_text(POLICIES)
    monkeypatch.chdir(other)
    with Gate.open(config) as one, Gate.open("tollkeeper.toml") as same:
        assert one.stats()["bundle"] == same.stats()["bundle"]
    key = _native.audit_keygen(folder / "admin.key", "admin")
    config.write_text(config.read_text() + f'[admin]\nkeys = ["{key}"]\n')
    with Gate.open(config) as with_key:
        assert with_key.stats()["bundle"] != same.stats()["bundle"], "whose grants count is part of it"


def test_without_a_state_directory_nobody_can_be_told(folder: Path) -> None:
    (folder / "tollkeeper.toml").write_text(CONFIG.replace("[state]\n", ""))
    with Gate.open(folder / "tollkeeper.toml") as gate:
        with pytest.raises(StateError) as caught:
            GateAdmin.open(folder / "tollkeeper.toml").reload()
        assert caught.value.code == "state.missing"
        forbid(folder)
        until(lambda: code(gate) == "policy.forbidden")
