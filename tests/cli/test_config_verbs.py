"""``tollkeeper config check`` and ``config show``: every fault at once, every value with its origin."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import _native, config
from tollkeeper import cli as package
from tollkeeper.cli.config_check import Rehearsal

Cli = Callable[..., Any]


@pytest.fixture
def starter(cli: Cli, tmp_path: Path) -> Path:
    assert cli("init").code == 0
    return tmp_path


def edit(file: Path, *changes: tuple[str, str]) -> None:
    text = file.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text)


def faults(folder: Path) -> list[str]:
    """What a check finds, as ``file:line: message``."""
    rehearsal = Rehearsal(folder / "tollkeeper.toml")
    rehearsal.all()
    root = f"{folder}/"
    return [
        f"{(found.file or '').removeprefix(root)}:{found.line}: {found.message.replace(root, '')}"
        for found in rehearsal.findings
    ]


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_the_starter_is_valid_and_stays_as_it_was(cli: Cli, starter: Path) -> None:
    edit(starter / "tollkeeper.toml", ("# state =", "state ="))
    before = listing(starter)
    done = cli("config", "check")
    assert (done.code, done.err) == (0, "")
    assert done.out == "tollkeeper.toml: valid: 6 policies, 4 tools, budgets, audit log, mode enforce\n"
    assert cli("config", "show").code == 0
    assert listing(starter) == before, "no log, no ledger and no state was made"


def test_every_fault_is_told_at_once(cli: Cli, starter: Path) -> None:
    (starter / "policies/limits.cedar").write_text("forbid (principal, action, resource) when { nonsense };\nfoo\n")
    (starter / "entities.json").write_text('[\n  {"uid": 3}\n]')
    edit(starter / "budgets.toml", ("1d", "1day"))
    edit(
        starter / "tollkeeper.toml",
        ("on_error =", "on_eror ="),
        ("""'Mcp::"web"'""", "'web'"),
        ('paths = ["path"]', 'paths = ["pat"]'),
        ('type = "array", items', 'type = "arry", items'),
        ('dir = "audit"', 'dir = "entities.json"'),
        ('reads = ["untrusted"]', 'reads = ["", "x"]'),
    )
    found = faults(starter)
    wanted = [
        r"tollkeeper\.toml:5: gate\.on_eror: unknown key",
        r"tollkeeper\.toml:\d+: tools\.search\.reads\.0: a label has 1 to 256 bytes",
        r"tollkeeper\.toml:\d+: audit\.dir: is a file, not a folder: entities\.json",
        r"policies/limits\.cedar:2: .*",
        r"entities\.json:2: .*",
        r'budgets\.toml:\d+: budget\."acme/research"\.limits\.0\.window: invalid enum value .*',
        r'tollkeeper\.toml:\d+: tool `search`: an entity uid must read Type::"id"',
        r"tollkeeper\.toml:\d+: tool `read_file` lists `pat` in paths, but its schema has no such property",
        r"tollkeeper\.toml:\d+: tool `delete_file` lists `pat` in paths, but its schema has no such property",
        r"tollkeeper\.toml:\d+: tool `send_email`: #/properties/to: unknown type",
    ]
    assert len(found) >= len(wanted), found
    for pattern in wanted:
        assert any(re.fullmatch(pattern, one) for one in found), (pattern, found)
    lines = (starter / "tollkeeper.toml").read_text().splitlines()
    for one in found:
        if one.startswith("tollkeeper.toml:") and " tool `" in one:
            line = lines[int(one.split(":")[1]) - 1]
            assert any(part in line for part in ("'web'", '"pat"', "[tools.send_email.schema")), (one, line)
    done = cli("config", "check")
    assert done.code == 1
    assert done.out.splitlines()[0] == "tollkeeper.toml:5: gate.on_eror: unknown key"
    assert "  help: did you mean `on_error`?" in done.out
    assert done.out.splitlines()[-1] == f"{len(found)} findings"
    as_json = json.loads(cli("config", "check", "--json").out)
    assert (as_json["valid"], len(as_json["findings"])) == (False, len(found))
    assert as_json["findings"][0]["line"] == 5


def test_what_only_the_gate_refuses_and_a_tool_besides(starter: Path) -> None:
    edit(starter / "tollkeeper.toml", ("schema = ", "# schema = "), ("""'Mcp::"mail"'""", "'mail'"))
    found = faults(starter)
    assert any("forbid `no-secrets` reads `context.input.path`" in one for one in found), found
    assert any("tool `send_email`: an entity uid must read" in one for one in found), found


@pytest.mark.parametrize(
    ("section", "what"),
    [
        ("[state]\ndir = 'p.cedar'", "tollkeeper.toml:2: state.dir: is a file, not a folder: p.cedar"),
        ("[budget]\nfile = 'b.toml'\nstate = 'd'", "tollkeeper.toml:3: budget.state: is a folder, not a file: d"),
        ("[policy]\nfiles = ['latin.cedar']", "latin.cedar:1: byte 0xe9 at offset 0 is not UTF-8"),
        ("[policy]\nschema = 'latin.cedar'", "latin.cedar:1: byte 0xe9 is not UTF-8"),
        ("[budget]\nfile = 'latin.cedar'", "latin.cedar:1: byte 0xe9 is not UTF-8"),
        ("[admin]\nkeys = ['PRIVATE KEY']", "tollkeeper.toml:2: admin.keys.0: a private key; whoever reads this"),
        ("[", "tollkeeper.toml:0: at the end: invalid initial character for a key part"),
    ],
)
def test_a_fault_names_its_place(tmp_path: Path, section: str, what: str) -> None:
    (tmp_path / "p.cedar").write_text("permit (principal, action, resource);")
    (tmp_path / "latin.cedar").write_bytes(b"\xe9")
    (tmp_path / "b.toml").write_text("")
    (tmp_path / "d").mkdir()
    (tmp_path / "tollkeeper.toml").write_text(section)
    found = faults(tmp_path)
    assert len(found) == 1, found
    assert found[0].startswith(what[:40]), found


def test_warnings_are_no_findings(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tollkeeper.toml").write_text("[tools.x]\nresource = 'M::\"x\"'\ncost = { tokens = 3 }")
    done = cli("config", "check")
    assert done.code == 0
    assert "warning: tollkeeper.toml: no policy files, so everything is denied\n" in done.err
    assert "1 tool with a cost, and no budgets that could pay" in done.err
    assert len(json.loads(cli("config", "check", "--json").out)["warnings"]) == 2


@pytest.mark.parametrize("there", [True, False])
def test_watching_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, there: bool) -> None:
    (tmp_path / "tollkeeper.toml").write_text("[gate]\nwatch = true")
    monkeypatch.setattr("tollkeeper.cli.config_check.installed", lambda name: there and name == "watchfiles")
    rehearsal = Rehearsal(tmp_path / "tollkeeper.toml")
    rehearsal.all()
    assert [(detail.code, detail.line) for detail in rehearsal.findings] == ([] if there else [("config.watch", 2)])


def test_policies_that_speak_of_records_need_a_log_and_get_one(tmp_path: Path) -> None:
    (tmp_path / "p.cedar").write_text('@durability("sync") permit (principal, action, resource);')
    (tmp_path / "tollkeeper.toml").write_text("[policy]\nfiles = ['p.cedar']")
    assert any("this gate keeps no audit log" in one for one in faults(tmp_path))
    (tmp_path / "tollkeeper.toml").write_text("[policy]\nfiles = ['p.cedar']\n[audit]")
    assert faults(tmp_path) == []
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize("verb", ["check", "show"])
def test_a_file_that_cannot_be_read_is_bad_input(cli: Cli, tmp_path: Path, verb: str) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("none.toml", "folder", "x" * 300):
        done = cli("config", verb, name)
        assert (done.code, done.out) == (2, ""), name
        assert done.err.startswith("error: "), done.err
        assert "Traceback" not in done.err


def test_a_check_of_nothing_says_what_a_gate_would_do(cli: Cli) -> None:
    done = cli("config", "check")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: no tollkeeper.toml here, so a gate denies everything\nhint: tollkeeper init, or name the file\n"
    )


def shown(cli: Cli, *words: str) -> dict[str, dict[str, Any]]:
    done = cli("config", "show", "--json", *words)
    assert (done.code, done.err) == (0, "")
    return {value["key"]: value for value in json.loads(done.out)["values"]}


def test_every_value_has_its_origin(cli: Cli, tmp_path: Path) -> None:
    key = _native.audit_keygen(tmp_path / "admin.key", "admin").strip()
    (tmp_path / "p.cedar").write_text("")
    (tmp_path / "t.toml").write_text(
        f"""\
gate.mode = "shadow"
[policy]
files = ["*.cedar"]
[audit]
ring_kib = 512
[state]
[admin]
keys = ["{key}"]
[tools."a b"]
resource = 'M::"x"'
reads = ["untrusted"]
"""
    )
    values = shown(cli, "t.toml")

    def origin(name: str) -> tuple[object, str, int | None]:
        return values[name]["value"], values[name]["source"], values[name]["line"]

    assert origin("gate.mode") == ("shadow", "file", 1)
    assert origin("gate.on_error") == ("deny", "default", None)
    assert origin("policy.files") == (["p.cedar"], "file", 3)
    assert origin("policy.schema") == (None, "default", None)
    assert origin("audit.ring_kib") == (512, "file", 5)
    assert origin("audit.dir") == ("audit", "default", None)
    assert origin("audit.origin") == (config.default_origin(), "derived", None)
    assert origin("state.dir") == ("state", "default", None)
    assert origin("admin.keys") == ([key], "file", 8)
    assert origin('tools."a b".reads') == (["untrusted"], "file", 11)
    assert origin('tools."a b".schema') == (None, "default", None)
    assert {value["file"] for value in values.values() if value["source"] == "file"} == {"t.toml"}
    table = cli("config", "show", "t.toml").out
    assert re.search(r"^gate\.mode +t\.toml:1 +shadow$", table, re.MULTILINE)
    assert re.search(r"^audit\.origin +derived +\S+ \(the name of this host\)$", table, re.MULTILINE)
    assert (tmp_path / "admin.key").read_text() not in table


def test_all_keys_that_there_are_are_shown(cli: Cli, starter: Path) -> None:
    edit(starter / "tollkeeper.toml", ('# keys = ["..."]', ""), ("# [admin]", ""))
    keys = set(shown(cli))
    for name, kind in (("gate", config.GateSection), ("policy", config.PolicySection), ("audit", config.AuditSection)):
        assert {f"{name}.{field}" for field in kind.__struct_fields__} <= keys
    assert {f"tools.search.{field}" for field in config.Tool.__struct_fields__} <= keys
    assert {"budget.file", "budget.state", "state.dir", "admin"} <= keys


def test_without_a_file_the_defaults_are_shown(cli: Cli, tmp_path: Path) -> None:
    done = cli("config", "show")
    assert done.code == 0
    first = done.out.splitlines()[0]
    assert first == "no tollkeeper.toml here: these are the defaults, by which a gate denies everything"
    values = shown(cli)
    assert {value["source"] for value in values.values()} == {"default"}
    assert (values["gate.mode"]["value"], values["audit"]["value"], values["tools"]["value"]) == ("enforce", None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_a_fault_is_not_shown(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tollkeeper.toml").write_text("[gate]\nmoed = 'shadow'")
    done = cli("config", "show")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: tollkeeper.toml:2: gate.moed: unknown key\nhint: did you mean `mode`?")


def test_the_variable_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.toml").write_text("[gate]\nmode = 'shadow'")
    monkeypatch.setenv(config.ENVIRONMENT_NAME, "other.toml")
    assert package.main(["config", "show"]) == 0
    assert capsys.readouterr().out.startswith("other.toml, which the variable TOLLKEEPER_CONFIG names\n")
    assert package.main(["config", "check"]) == 0
    assert capsys.readouterr().out.startswith("other.toml: valid")
    monkeypatch.setenv(config.ENVIRONMENT_NAME, "none.toml")
    assert package.main(["config", "check"]) == 2
    assert "none.toml: no such file" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_a_terminal(
    starter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.chdir(starter)
    monkeypatch.delenv(config.ENVIRONMENT_NAME, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert package.main(["config", "show"]) == 0
    narrow = capsys.readouterr().out
    assert max(len(line) for line in narrow.splitlines()) <= columns
    assert "\x1b" not in narrow
    monkeypatch.delenv("COLUMNS")
    assert package.main(["config", "show"]) == 0
    piped = capsys.readouterr().out
    assert narrow.split() == piped.split(), "a pipe gets the same words, unwrapped"
    assert len(piped.splitlines()) < len(narrow.splitlines())


def test_hidden_characters_of_a_file_do_not_reach_the_terminal(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tollkeeper.toml").write_text('[tools."a\\u001b[31m"]\nresource = "M::\\"\\u202e\\""')
    done = cli("config", "show")
    assert done.code == 0
    assert "\x1b" not in done.out
    assert "\u202e" not in done.out
    assert "\\u{1b}[31m" in done.out
