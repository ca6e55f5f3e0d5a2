"""``tollkeeper doctor``: what it finds in folders, file systems, clocks and packages, and that it never breaks."""

import importlib
import json
import os
import pwd
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tollkeeper
from tollkeeper import cli as package
from tollkeeper import config
from tollkeeper.adapters._hosts import TABLE
from tollkeeper.cli import doctor, doctor_folders, doctor_host
from tollkeeper.cli.doctor_folders import Folders, Place
from tollkeeper.cli.doctor_line import Line, watched

Cli = Callable[..., Any]
ROOT = os.geteuid() == 0
NOBODY = 65534


@pytest.fixture
def starter(cli: Cli, tmp_path: Path) -> Path:
    assert cli("init").code == 0
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir(mode=0o700)
    return made


def looked(path: Path, *files: str) -> list[Line]:
    return list(Folders().look(Place("state", path, files)))


def about(lines: list[Line], subject: str) -> list[Line]:
    return [line for line in lines if line.subject == subject]


def worst(lines: list[Line]) -> str:
    return max((line.state for line in lines), key=("ok", "warn", "fail").index)


def examined(cli: Cli, *words: str) -> tuple[int, list[dict[str, Any]]]:
    done = cli("doctor", "--json", *words)
    assert done.err == ""
    return done.code, [json.loads(line) for line in done.out.splitlines()]


def test_a_folder_of_its_own_is_fine(folder: Path) -> None:
    (folder / "control.bin").write_bytes(b"")
    (folder / "control.bin").chmod(0o600)
    lines = looked(folder, "control.bin")
    assert [line.text for line in about(lines, "state")] == [
        f"{folder}: of {doctor_folders.user(os.geteuid())}, mode 0700: nobody else can write it"
    ]
    assert "shared mappings, locks and allocation work; a sync takes " in about(lines, "file system")[-1].text
    assert about(lines, "disk")[0].text.endswith(" GiB free")
    assert [path.name for path in folder.iterdir()] == ["control.bin"], "the temporary file is gone"


@pytest.mark.parametrize(
    ("mode", "state", "text", "fix"),
    [
        (0o777, "fail", "everybody on this machine can write it", "chmod 0700 "),
        (0o1777, "fail", "everybody on this machine can write it", "name a folder of its own"),
        (0o770, "warn", "can write it", "chmod 0700 "),
        (0o755, "warn", "others can look into it", "chmod 0700 "),
    ],
)
def test_who_else_can_write_a_folder(folder: Path, mode: int, state: str, text: str, fix: str) -> None:
    folder.chmod(mode)
    line = about(looked(folder), "state")[0]
    assert (line.state, line.text.endswith(text), (line.fix or "").startswith(fix)) == (state, True, True), line
    assert f"mode {mode:04o}" in line.text


@pytest.mark.parametrize(
    ("name", "mode", "state"),
    [("control.bin", 0o666, "fail"), ("control.bin", 0o660, "warn"), ("signer.key", 0o640, "fail")],
)
def test_who_else_can_use_a_file(folder: Path, name: str, mode: int, state: str) -> None:
    (folder / name).write_bytes(b"x")
    (folder / name).chmod(mode)
    lines = [line for line in looked(folder, "*") if str(folder / name) in line.text]
    assert [line.state for line in lines] == [state]
    assert lines[0].fix == f"chmod 0600 {folder / name}"


def test_a_key_that_only_its_owner_reads(folder: Path) -> None:
    (folder / "signer.key").write_bytes(b"x")
    (folder / "signer.key").chmod(0o400)
    line = about(looked(folder, "signer.key"), "signing key")[0]
    assert (line.state, line.text.endswith("mode 0400")) == ("ok", True)


def test_a_parent_that_others_can_write(tmp_path: Path) -> None:
    above = tmp_path / "above"
    (above / "state").mkdir(parents=True, mode=0o700)
    for mode, state in ((0o777, "fail"), (0o775, "warn"), (0o1777, None), (0o755, None)):
        above.chmod(mode)
        found = [
            line for line in looked(above / "state") if f"{above}: " in line.text and "in the place of" in line.text
        ]
        assert [line.state for line in found] == ([state] if state else []), oct(mode)
        assert all(line.fix == f"chmod go-w {above}" for line in found)


def test_a_parent_that_a_link_hides(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    (open_to_all / "state").mkdir(parents=True, mode=0o700)
    open_to_all.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(open_to_all / "state")
    assert any(line.state == "fail" and line.text.startswith(f"{open_to_all}: ") for line in looked(link))


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access list as the kernel takes it."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NONE = 0xFFFFFFFF


def test_an_access_list_that_lets_somebody_write(folder: Path) -> None:
    content = acl(
        (0x01, 7, NONE), (0x02, 7, NOBODY), (0x04, 0, NONE), (0x08, 2, 4242), (0x10, 7, NONE), (0x20, 0, NONE)
    )
    assert doctor_folders.acl_writers(content) == [f"user {doctor_folders.user(NOBODY)}", "group 4242"]
    try:
        os.setxattr(folder, "system.posix_acl_access", content)
    except OSError:
        pytest.skip("the file system has no access lists")
    found = [line for line in looked(folder) if "access list lets" in line.text]
    assert [line.state for line in found] == ["warn"]
    assert f"user {doctor_folders.user(NOBODY)}, group 4242 write it" in found[0].text


def test_an_access_list_whose_mask_forbids_writing() -> None:
    assert doctor_folders.acl_writers(acl((0x02, 7, 1), (0x10, 5, NONE))) == []
    for broken in (b"", b"\x02\0\0\0\x01", struct.pack("<I", 3), os.urandom(21)):
        assert doctor_folders.acl_writers(broken) == []


def test_what_is_no_folder(tmp_path: Path) -> None:
    file, link, loop = tmp_path / "file", tmp_path / "link", tmp_path / "loop"
    file.write_text("")
    link.symlink_to("nowhere")
    loop.symlink_to("loop")
    for path, text in ((file, "a file"), (file / "below", "a file"), (link, "a link"), (loop, "a link")):
        lines = looked(path)
        assert [line.state for line in lines] == ["fail"], lines
        assert text in lines[0].text


def test_a_folder_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    lines = looked(tmp_path / "a" / "b")
    assert worst(about(lines, "state")) == "ok"
    assert "made by the first gate" in about(lines, "state")[0].text
    assert about(lines, "file system")[-1].text.startswith(f"{tmp_path}: "), "tried where it would be made"
    assert list(tmp_path.iterdir()) == []


def test_a_gate_makes_its_folders_for_its_user_alone(starter: Path) -> None:
    """What is said of folders that are not there yet."""
    file = starter / "tollkeeper.toml"
    file.write_text(file.read_text().replace("# state =", "state =").replace('dir = "state"', 'dir = "shared"'))
    budgets = starter / "budgets.toml"
    budgets.write_text("[ledger]\nvolatile = true\n" + budgets.read_text())
    tollkeeper.Gate.open(file).close()
    made = [path for path in (starter / "audit", starter / "shared", starter / "state") if path.exists()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}
    assert starter / "audit" in made


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder of root, 0700, in one that everybody can enter; the test is another user."""
    if not ROOT:
        pytest.skip("only root can become another user")
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    (root / "state").mkdir(mode=0o700)
    (root / "closed" / "state").mkdir(parents=True)
    (root / "closed").chmod(0o700)
    os.seteuid(NOBODY)
    try:
        yield root
    finally:
        os.seteuid(0)
        shutil.rmtree(root)


def test_a_folder_of_somebody_else(as_nobody: Path) -> None:
    lines = looked(as_nobody / "state")
    assert [line.state for line in about(lines, "state")] == ["fail"]
    assert "cannot write it" in about(lines, "state")[0].text
    assert [line.state for line in about(lines, "file system")] == ["fail"]
    assert "permission denied" in about(lines, "file system")[0].text


def test_a_folder_that_cannot_be_seen(as_nobody: Path) -> None:
    lines = looked(as_nobody / "closed" / "state")
    assert lines
    assert worst(lines) == "fail"


def test_a_configuration_that_cannot_be_seen(as_nobody: Path) -> None:
    for name in ("closed/tollkeeper.toml", "closed/state"):
        lines = list(watched("config", doctor._folder(as_nobody / name)))
        assert [line.state for line in lines] == ["fail"]
        assert "permission denied" in lines[0].text
    assert config.find(as_nobody / "closed") == as_nobody / "closed" / config.FILE_NAME, "it may be there"


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /data rw - nfs4 host:/x rw
24 22 0:6 / /data/with\\040space rw master:1 - tmpfs tmpfs rw
25 22 0:7 / /again rw - ext4 /dev/sdb rw
26 22 0:8 / /again rw - overlay overlay rw
broken
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/elsewhere/x", "ext4"),
        ("/data", "nfs4"),
        ("/database", "ext4"),
        ("/data/with space/x", "tmpfs"),
        ("/again/x", "overlay"),
    ],
)
def test_which_file_system_a_path_is_on(path: str, kind: str) -> None:
    assert doctor_folders.filesystem(Path(path), MOUNTS) == kind
    assert doctor_folders.filesystem(Path(path), "") is None


def test_the_file_system_of_this_machine_is_known() -> None:
    assert doctor_folders.filesystem(Path("/proc/self")) == "proc"


def test_a_folder_in_memory_is_warned_of() -> None:
    shared = Path("/dev/shm")  # noqa: S108 - the one folder that is in memory on every Linux
    if doctor_folders.filesystem(shared) != "tmpfs" or not os.access(shared, os.W_OK):
        pytest.skip("no tmpfs here")
    with tempfile.TemporaryDirectory(dir=shared) as name:
        lines = about(looked(Path(name)), "file system")
        assert lines[0].state == "warn"
        assert "in memory: what is kept there is lost" in lines[0].text
        assert "shared mappings, locks and allocation work" in lines[1].text


def test_a_file_system_that_takes_no_files() -> None:
    lines = looked(Path("/proc/tollkeeper"))
    assert worst(about(lines, "file system")) == "fail"
    assert about(lines, "disk") == []


def test_a_trial_measures_and_leaves_nothing(tmp_path: Path) -> None:
    faults, sync_ms = doctor_folders.trial(tmp_path)
    assert faults == []
    assert 0 < sync_ms < 60_000
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_not_held_is_not_seen(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x")
    one, two = os.open(file, os.O_RDWR), os.open(file, os.O_RDWR)
    try:
        assert doctor_folders._lock_is_seen(one, two)
        assert not doctor_folders._lock_is_seen(one, one), "a descriptor does not see its own"
    finally:
        os.close(one)
        os.close(two)


def test_the_members_of_a_group_are_named() -> None:
    mine = pwd.getpwuid(os.getuid())
    assert doctor_folders.group(mine.pw_gid, os.getuid()).startswith("group ")
    assert doctor_folders.group(4_000_000_000, None) == "group 4000000000"
    assert doctor_folders.user(4_000_000_000) == "4000000000"
    others = [one for one in pwd.getpwall() if one.pw_uid not in {0, os.getuid()}]
    assert others
    assert others[0].pw_name in doctor_folders.group(others[0].pw_gid, None) or len(others) > 5


def test_the_machine_is_looked_at() -> None:
    lines = list(doctor_host.look())
    subjects = {line.subject for line in lines}
    assert {"clocks", "boot id", "time server", "namespace", "hosts"} <= subjects
    assert about(lines, "boot id")[0].state == "ok"
    assert "h after boot" in about(lines, "clocks")[0].text or about(lines, "clocks")[0].fix


def test_hosts_are_named_and_not_imported(environment: dict[str, str]) -> None:
    code = (
        "import sys; from tollkeeper.cli import doctor_host; list(doctor_host.hosts());"
        "print([n for n in ('langchain', 'mcp', 'ray', 'vllm', 'opentelemetry', 'watchfiles') if n in sys.modules])"
    )
    done = subprocess.run(  # noqa: S603 - the code is above
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def installed(folder: Path, name: str, content: str) -> None:
    """A distribution's metadata, as an installer leaves it."""
    (folder / f"{name}-1.0.dist-info").mkdir()
    (folder / f"{name}-1.0.dist-info" / "METADATA").write_text(content)


def test_what_is_installed_has_no_adapter_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "mcp", "Metadata-Version: 2.1\nName: mcp\nVersion: 1.9\n")
    installed(tmp_path, "watchfiles", "Metadata-Version: 2.1\nName: watchfiles\nVersion: 1.0\n")
    installed(tmp_path, "langchain", "Metadata-Version: 2.1\nName: langchain\nVersion: 0.3\n")
    installed(tmp_path, "openai_agents", "Metadata-Version: 2.1\nName: openai-agents\nVersion: 0.24.0\n")
    # As a removal that was cut short leaves it.
    installed(tmp_path, "ray", "")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    texts = [line.text for line in doctor_host.hosts()]
    assert "mcp 1.9, any of its servers can stand behind `tollkeeper mcp`" in texts
    assert f"langchain 0.3: the adapter works from {TABLE['langchain'].oldest}" in texts
    assert "openai-agents 0.24.0, tollkeeper.adapters.openai_agents is for it (`tollkeeper hosts`)" in texts
    assert any(text.startswith("watchfiles 1.0, hooked: ") for text in texts)
    missing = texts[-1]
    assert missing.startswith("not installed: ")
    assert "mcp" not in missing
    assert "vllm" in missing or any("vllm" in text for text in texts)


def test_a_healthy_folder_is_reported_in_full(cli: Cli, starter: Path) -> None:
    code, lines = examined(cli)
    subjects = {line["subject"] for line in lines}
    assert (code, {"state", "audit", "file system", "disk", "admin", "clocks", "hosts"} - subjects) == (0, set())
    assert not (starter / "state").exists()
    assert not (starter / "audit").exists()
    asked = ("check", "search", "--principal", 'Agent::"researcher"', "--arguments", '{"query": "x"}')
    assert cli(*asked, "--budget", "acme/research").code == 0
    code, lines = examined(cli)
    keys = [line["text"] for line in lines if line["subject"] == "signing key"]
    assert (code, keys) == (0, [f"audit/signer.key: of {doctor_folders.user(os.geteuid())}, mode 0400"])


@pytest.mark.parametrize("broken", ["file", "link", "loop", "open", "key", "ledger", "toml", "bytes", "folder"])
def test_nothing_that_is_broken_breaks_it(cli: Cli, starter: Path, broken: str) -> None:
    file, state = starter / "tollkeeper.toml", starter / "state"
    file.write_text(file.read_text().replace("# state =", "state ="))
    if broken == "file":
        state.write_text("x")
    elif broken in {"link", "loop"}:
        state.symlink_to("nowhere" if broken == "link" else "state")
    elif broken == "open":
        state.mkdir()
        state.chmod(0o777)
    elif broken == "key":
        (starter / "audit").mkdir(mode=0o700)
        (starter / "audit" / "signer.key").write_text("k")
        (starter / "audit" / "signer.key").chmod(0o644)
    elif broken == "ledger":
        state.mkdir(mode=0o700)
        (state / "ledger.bin").write_bytes(b"no ledger" * 1000)
    elif broken == "toml":
        file.write_text("[gate")
    elif broken == "bytes":
        file.write_bytes(bytes(range(256)))
    else:
        file.unlink()
        file.mkdir()
    code, lines = examined(cli)
    failed = [line for line in lines if line["state"] == "fail"]
    assert code == 1
    assert failed
    assert all(line["fix"] for line in failed)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_lines_fit_a_terminal(
    starter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.chdir(starter)
    monkeypatch.delenv(config.ENVIRONMENT_NAME, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    package.main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert all(line[:6] in {"ok    ", "warn  ", "fail  ", "      "} for line in lines)
