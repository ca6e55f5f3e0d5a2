"""``tollkeeper.toml``: what is read, and the message for everything that is not."""

import base64
import contextlib
import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper import _native, config
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


def public_key(name: str, content: bytes) -> str:
    """A verifier key, made here by the rules of signed notes."""
    number = hashlib.sha256(name.encode() + b"\n" + content).hexdigest()[:8]
    return f"{name}+{number}+{base64.b64encode(content).decode()}"


def test_state_and_admin_and_labels(tmp_path: Path) -> None:
    keys = [public_key(name, b"\x01" + bytes([byte]) * 32) for name, byte in (("admin", 7), ("example.com/ops", 251))]
    text = f"""\
[gate]
watch = true
[state]
dir = "shared"
[admin]
keys = {json.dumps(keys)}
[tools.fetch]
resource = 'Mcp::"web"'
reads = ["untrusted", "web page"]
"""
    read = config.load(text, tmp_path)
    assert (read.gate.watch, read.state_dir, read.admin_keys) == (True, tmp_path / "shared", keys)
    assert read.tools["fetch"].reads == ["untrusted", "web page"]
    assert "+" in keys[1].split("+", 2)[2], "the base64 holds one, so that it is read right"


def test_without_the_sections_nothing_is_shared_and_no_key_is_needed(tmp_path: Path) -> None:
    read = config.load("[tools.x]\nresource = 'M::\"x\"'", tmp_path)
    assert (read.gate.watch, read.state_dir, read.admin_keys, read.tools["x"].reads) == (False, None, [], [])
    assert config.load("[state]", tmp_path).state_dir == tmp_path / "state"


def test_a_key_as_keygen_makes_it(tmp_path: Path) -> None:
    key = _native.audit_keygen(tmp_path / "admin.key", "admin").strip()
    assert config.key_fault(key) is None
    for place in range(len(key)):
        changed = key[:place] + ("A" if key[place] != "A" else "B") + key[place + 1 :]
        assert config.key_fault(changed) is not None, changed


GOOD_KEY = b"\x01" + bytes(range(32))


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("", "not a public key: NAME+ID+BASE64"),
        ("-----BEGIN PRIVATE KEY-----\nMC4CAQ+A+A", "a private key; whoever reads this file has seen it"),
        ("admin+00000000", "not a public key: NAME+ID+BASE64"),
        ("+00000000+AQ==", "its name, before the first `+`, must have 1 to 255 bytes"),
        ("a b+00000000+AQ==", "its name, before the first `+`, must have 1 to 255 bytes"),
        ("n" * 256 + "+00000000+AQ==", "its name, before the first `+`, must have 1 to 255 bytes"),
        ("admin+00000000+A", "its key is not base64"),
        ("admin+00000000+ü", "its key is not base64"),
        (public_key("admin", GOOD_KEY) + "\n", "its key is not base64"),
        ("admin+00000000+", "not an Ed25519 key"),
        (public_key("admin", b"\x06" + bytes(32)), "not an Ed25519 key"),
        (public_key("admin", GOOD_KEY[:-1]), "its key has 31 bytes"),
        (public_key("admin", GOOD_KEY + b"\0"), "its key has 33 bytes"),
        (public_key("admin", GOOD_KEY).replace("admin", "other"), "its id is not "),
        (public_key("admin", GOOD_KEY)[:14].upper() + public_key("admin", GOOD_KEY)[14:], "its id is not "),
    ],
)
def test_what_is_no_public_key(key: str, what: str) -> None:
    assert (config.key_fault(key) or "").startswith(what)


def test_all_tools_together_have_no_more_labels_than_a_session_keeps() -> None:
    def tools(count: int) -> str:
        # Each label twice: what counts is how many different ones there are.
        return "".join(
            f"[tools.t{number}]\nresource = 'M::\"x\"'\nreads = ['l{number // 2}']\n" for number in range(2 * count)
        )

    assert len(config.load(tools(config.LABELS_MAX)).tools) == 2 * config.LABELS_MAX
    with pytest.raises(ConfigError, match=r"tools\.t128\.reads\.0: the tools bring in more than 64 different labels"):
        config.load(tools(config.LABELS_MAX + 1))


def test_no_file_means_a_gate_that_denies_everything() -> None:
    plain = config.default()
    assert plain == config.load("")
    assert (plain.policy_files, plain.tools, plain.audit, plain.budget_file, plain.state_dir) == (
        [],
        {},
        None,
        None,
        None,
    )
    assert (plain.gate.mode, plain.gate.on_error, plain.gate.watch) == ("enforce", "deny", False)


def test_which_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(config.ENVIRONMENT_NAME, raising=False)
    monkeypatch.chdir(tmp_path)
    below = tmp_path / "below"
    below.mkdir()
    assert config.find() is None
    (tmp_path / config.FILE_NAME).write_text("")
    assert config.find() == Path(config.FILE_NAME)
    assert config.find(below) is None, "folders above are not searched"
    assert config.find(tmp_path) == tmp_path / config.FILE_NAME
    monkeypatch.setenv(config.ENVIRONMENT_NAME, "")
    assert config.find() == Path(config.FILE_NAME)
    monkeypatch.setenv(config.ENVIRONMENT_NAME, "none.toml")
    assert config.find() == Path("none.toml"), "no other file is taken instead"
    assert config.find(below) == Path("none.toml")


def test_a_link_to_nowhere_is_found_and_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(config.ENVIRONMENT_NAME, raising=False)
    (tmp_path / config.FILE_NAME).symlink_to("nowhere")
    assert config.find(tmp_path) == tmp_path / config.FILE_NAME


VARIABLES = """
    MODE GATE_MODE ON_ERROR GATE_ON_ERROR ON_FULL AUDIT_ON_FULL UNGUARDED_FORBID FAIL_OPEN DISABLE DISABLED SHADOW DEBUG
    DURABILITY AUDIT AUDIT_DIR STATE STATE_DIR ADMIN_KEYS POLICY POLICY_FILES WATCH BUDGET
"""


def test_no_environment_variable_changes_what_a_file_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = folder / "tollkeeper.toml"
    (folder / "other.toml").write_text("[gate]\nmode = 'enforce'")
    names = [f"TOLLKEEPER_{name}" for name in VARIABLES.split()]
    before = [config.load(file), config.default(), config.load("")]
    for value in ("shadow", "cedar", "allow", "1", "true", "/dev/null"):
        for name in [*names, *(name.lower() for name in names)]:
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(config.ENVIRONMENT_NAME, str(folder / "other.toml"))
        assert [config.load(file), config.default(), config.load("")] == before


def test_the_package_reads_no_other_variable() -> None:
    """Of those that begin with its name: a list in the test above cannot be complete."""
    root = Path(config.__file__).parent
    found = {
        (file.name, name)
        for file in root.rglob("*.py")
        for name in re.findall(r"TOLLKEEPER_[A-Z_]+", file.read_text(encoding="utf-8"))
    }
    assert found == {("config.py", config.ENVIRONMENT_NAME)}


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = """\
[gate]
moed = "shadow"
on_error = "ignore"
watch = 1
[audti]
[policy]
files = ["none.cedar", "*.none"]
schema = 3
[audit]
ring_kib = 3
origin = "a b"
[tools.a]
costs = 1
[tools.b]
resource = 'M::"b"'
cost = { request = 1 }
"""
    reading = config.examine(text, tmp_path)
    assert [re.sub(r"^tollkeeper\.toml:", "", str(fault)) for fault in reading.faults] == [
        "5: audti: unknown section",
        "2: gate.moed: unknown key",
        "3: gate.on_error: invalid enum value 'ignore'",
        "4: gate.watch: expected `bool`, got `int`",
        "8: policy.schema: expected `str | null`, got `int`",
        "11: audit.origin: must not hold spaces, control characters or `+`",
        "10: audit.ring_kib: must be a power of two from 512 to 524288",
        "7: policy.files.0: no such file: none.cedar",
        "7: policy.files.1: no file matches: *.none",
        "13: tools.a.costs: unknown key",
        "12: tools.a: object missing required field `resource`",
        "16: tools.b.cost.request: unknown unit",
    ]
    with pytest.raises(ConfigError) as caught:
        config.load(text, tmp_path)
    assert str(caught.value) == str(reading.faults[0])


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
        "did you mean `cost`? known here: resource, schema, paths, cost, reads",
    ),
    "[tools.'x y']\nresource = 'M::\"x\"'\nread = ['untrusted']": (
        'tollkeeper.toml:3: tools."x y".read: unknown key',
        "did you mean `reads`? known here: resource",
    ),
    "[tools.x]\nresource = 'M::\"x\"'\nreads = 'untrusted'": (
        "tollkeeper.toml:3: tools.x.reads: expected `array`",
        None,
    ),
    "[tools.x]\nresource = 'M::\"x\"'\nreads = ['a', '']": (
        "tollkeeper.toml:3: tools.x.reads.1: a label has 1 to 256 bytes",
        None,
    ),
    "[tools.x]\nresource = 'M::\"x\"'\nreads = ['" + "ü" * 129 + "']": (
        "tollkeeper.toml:3: tools.x.reads.0: a label has 1 to 256 bytes",
        None,
    ),
    '[tools.x]\nresource = "M::\\"x\\""\nreads = ["a\\u007f"]': (
        "tollkeeper.toml:3: tools.x.reads.0: a label must not hold control characters",
        None,
    ),
    "[gate]\nwacht = true": ("tollkeeper.toml:2: gate.wacht: unknown key", "did you mean `watch`?"),
    "[gate]\nwatch = 1": ("tollkeeper.toml:2: gate.watch: expected `bool`", None),
    "[sate]\ndir = 's'": ("tollkeeper.toml:1: sate: unknown section", "did you mean `state`?"),
    "[state]\ndri = 's'": ("tollkeeper.toml:2: state.dri: unknown key", "did you mean `dir`?"),
    "[state]\ndir = ''": ("tollkeeper.toml:2: state.dir: must name a folder", None),
    '[state]\ndir = "a\\u0000"': ("tollkeeper.toml:2: state.dir: must name a folder", None),
    "[admin]": ("tollkeeper.toml:1: admin: object missing required field `keys`", None),
    "[admin]\nkey = ['x']": ("tollkeeper.toml:2: admin.key: unknown key", "did you mean `keys`?"),
    "[admin]\nkeys = []": ("tollkeeper.toml:2: admin.keys: names no key", "the line that"),
    "[admin]\nkeys = ['admin']": ("tollkeeper.toml:2: admin.keys.0: not a public key", "the line that"),
    "[audit]\ndirs = 'a'": ("tollkeeper.toml:2: audit.dirs: unknown key", "did you mean `dir`?"),
    "[audit]\npayloads = false": ("tollkeeper.toml:2: audit.payloads: unknown key", "known here: dir, origin"),
    '[audit]\ndir = "a\\u0000"': ("tollkeeper.toml:2: audit.dir: must name a folder", None),
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
