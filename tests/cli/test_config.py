"""``tollkeeper.toml``: what is read, and the message for everything that is not."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper import config
from tollkeeper.errors import ConfigError

FULL = """\
[gate]
mode = "shadow"
on_error = "cedar"
unguarded_forbid = "warn"

[policy]
files = ["policies/*.cedar", "extra.cedar"]
schema = "schema.cedarschema"
entities = "entities.json"
tests = ["policies/**/*.md"]

[tools.send_email]
resource = 'Mcp::"gmail"'
paths = ["attachment"]
schema = { type = "object", properties = { to = { type = "string" } } }

[tools."read file"]
resource = 'Mcp::"files"'
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policies" / "deep").mkdir(parents=True)
    for name in ("policies/b.cedar", "policies/a.cedar", "extra.cedar", "schema.cedarschema", "entities.json"):
        (tmp_path / name).write_text("")
    for name in ("policies/cases.md", "policies/deep/more.md"):
        (tmp_path / name).write_text("")
    (tmp_path / "tollkeeper.toml").write_text(FULL)
    return tmp_path


def test_everything_is_read(folder: Path) -> None:
    read = config.load(folder / "tollkeeper.toml")
    assert (read.gate.mode, read.gate.on_error, read.gate.unguarded_forbid) == ("shadow", "cedar", "warn")
    assert read.policy_files == [folder / "policies/a.cedar", folder / "policies/b.cedar", folder / "extra.cedar"]
    assert read.schema_file == folder / "schema.cedarschema"
    assert read.entities_file == folder / "entities.json"
    assert read.test_files == [folder / "policies/cases.md", folder / "policies/deep/more.md"]
    assert list(read.tools) == ["send_email", "read file"]
    assert read.tools["send_email"].paths == ["attachment"]
    assert read.tools["send_email"].schema == {"type": "object", "properties": {"to": {"type": "string"}}}


def test_text_is_read_relative_to_a_folder(folder: Path) -> None:
    assert config.load(FULL, folder).policy_files == config.load(folder / "tollkeeper.toml").policy_files


def test_nothing_said_is_the_safe_default() -> None:
    gate = config.load("").gate
    assert (gate.mode, gate.on_error, gate.unguarded_forbid) == ("enforce", "deny", "refuse")


def test_the_audit_section(tmp_path: Path) -> None:
    text = """\
[audit]
dir = "evidence"
origin = "example.com/gate"
durability = "sync"
interval_ms = 20
checkpoint_interval_ms = 5000
ring_kib = 512
on_full = "allow"
exported = true
"""
    read = config.load(text, tmp_path)
    assert (read.audit_dir, read.audit_origin) == (tmp_path / "evidence", "example.com/gate")
    assert read.audit == config.AuditSection(
        "evidence", "example.com/gate", "sync", 20, 5000, 512, "allow", exported=True
    )


def test_without_an_audit_section_nothing_is_recorded(tmp_path: Path) -> None:
    read = config.load("", tmp_path)
    assert (read.audit, read.audit_dir, read.audit_origin) == (None, None, None)
    read = config.load("[audit]", tmp_path)
    assert (read.audit, read.audit_dir) == (config.AuditSection(), tmp_path / "audit")
    assert read.audit_origin == config.default_origin()


@given(st.text())
def test_a_default_origin_is_one(host: str) -> None:
    origin = config.default_origin(host)
    read = config.load(f"[audit]\norigin = '{origin}'")
    assert read.audit_origin == origin


REFUSED = {
    "[gate": ("tollkeeper.toml: at the end: expected ']'", None),
    "[gate]\nmode 3": ("tollkeeper.toml:2:6: expected '='", None),
    "[gate]\nmode = 'enforced'": ("tollkeeper.toml:2: gate.mode: invalid enum value", 'one of: "enforce", "shadow"'),
    "[gate]\nmoed = 'shadow'": ("tollkeeper.toml:2: gate.moed: unknown key", "did you mean `mode`?"),
    "gate.moed = 1": ("tollkeeper.toml:1: gate.moed: unknown key", "did you mean `mode`?"),
    "[gates]": ("tollkeeper.toml:1: gates: unknown section", "did you mean `gate`?"),
    "gate = 3": ("tollkeeper.toml:1: gate: expected `object`", None),
    "tools = 3": ("tollkeeper.toml:1: tools: must be sections", None),
    "[policy]\nfiles = 'a'": ("tollkeeper.toml:2: policy.files: expected `array`", None),
    "[policy]\nfiles = [\n  3]": ("tollkeeper.toml:2: policy.files.0: expected `str`", None),
    "[policy]\nfiles = ['*.none']": ("tollkeeper.toml:2: policy.files.0: no file matches: *.none", None),
    "[policy]\nschema = 'none'": ("tollkeeper.toml:2: policy.schema: no such file: none", None),
    "[policy]\nentities = '.'": ("tollkeeper.toml:2: policy.entities: is a folder", None),
    "[tools.x]": ("tollkeeper.toml:1: tools.x: object missing required field `resource`", None),
    "[tools.x]\nresource = 'M::\"x\"'\ncosts = { requests = 1 }": (
        "tollkeeper.toml:3: tools.x.costs: unknown key",
        "did you mean `cost`? known here: resource, schema, paths, cost",
    ),
    "[tools.'x y']\nreads = ['untrusted']": (
        'tollkeeper.toml:2: tools."x y".reads: unknown key',
        "known here: resource",
    ),
    "[audit]\ndirs = 'a'": ("tollkeeper.toml:2: audit.dirs: unknown key", "did you mean `dir`?"),
    "[audit]\npayloads = false": ("tollkeeper.toml:2: audit.payloads: unknown key", "known here: dir, origin"),
    "[audit]\ndir = ''": ("tollkeeper.toml:2: audit.dir: must name a folder", None),
    "[audit]\norigin = ''": ("tollkeeper.toml:2: audit.origin: must have 1 to 255 bytes", None),
    "[audit]\norigin = 'a b'": ("tollkeeper.toml:2: audit.origin: must not hold spaces", "a name such as"),
    "[audit]\ndurability = 'synced'": (
        "tollkeeper.toml:2: audit.durability: invalid enum value",
        'one of: "group", "sync", "checkpointed"',
    ),
    "[audit]\non_full = 'drop'": ("tollkeeper.toml:2: audit.on_full: invalid enum value", 'one of: "deny", "allow"'),
    "[audit]\ninterval_ms = 0": ("tollkeeper.toml:2: audit.interval_ms: expected `int` >= 1", None),
    "[audit]\ncheckpoint_interval_ms = '1s'": ("tollkeeper.toml:2: audit.checkpoint_interval_ms: expected `int`", None),
    "[audit]\nring_kib = 1000": ("tollkeeper.toml:2: audit.ring_kib: must be a power of two", None),
    "[audit]\nring_kib = 256": ("tollkeeper.toml:2: audit.ring_kib: must be a power of two from 512 to 524288", None),
    "[audit]\nexported = 'no'": ("tollkeeper.toml:2: audit.exported: expected `bool`", None),
    "audit = 3": ("tollkeeper.toml:1: audit: expected `object`", None),
    "x = " + "[" * 10_000: ("tollkeeper.toml: values nest too deeply", None),
}


@pytest.mark.parametrize("text", REFUSED, ids=[text[:30] for text in REFUSED])
def test_what_is_not_known_is_refused(text: str) -> None:
    message, hint = REFUSED[text]
    with pytest.raises(ConfigError) as caught:
        config.load(text)
    assert str(caught.value).startswith(message)
    assert caught.value.code.startswith("config.")
    if hint is not None:
        assert (caught.value.help or "").startswith(hint)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_bytes("# ü\n# ".encode() + b"\xff")
    with pytest.raises(ConfigError, match=r"t\.toml:2:3: byte 0xff is not UTF-8"):
        config.load(file)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_bytes(b"#" * (config.CONFIG_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="has more than 4194304 bytes"):
        config.load(file)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        config.load(tmp_path / "none.toml")


PIECES = st.sampled_from(["[", "]", "gate", "tools", ".", "x", "=", "'a'", "\n", "3", '"', "mode", " ", "{", "}", ","])


@given(st.lists(PIECES).map("".join))
def test_no_text_breaks_the_reader(text: str) -> None:
    with contextlib.suppress(ConfigError):
        config.load(text)
