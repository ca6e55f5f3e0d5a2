"""What a caller of `AuditLog` sees: entries in files, bad input, deaths, forks, closing, and an interpreter that ends.

The files are read by the few lines below, which share nothing with the package. Whether whole logs verify is looked at
by the tests of the verifiers.
"""

import base64
import decimal
import gc
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper import AuditError, AuditLog, HandleError

ORIGIN = "example.com/gate"
RING_BYTES_MIN = 512 << 10

ID = "0123456789abcdef-1"


def bundle(folder: Path, number: int, width: int) -> bytes:
    """The bytes of one bundle of entries."""
    digits = f"{number:03}".rjust(-(-len(f"{number:03}") // 3) * 3, "0")
    groups = [digits[at : at + 3] for at in range(0, len(digits), 3)]
    name = "/".join([*(f"x{group}" for group in groups[:-1]), groups[-1]])
    return (folder / "tile/entries" / (name if width == 256 else f"{name}.p/{width}")).read_bytes()


def texts(folder: Path) -> list[bytes]:
    """Every entry that the checkpoint covers."""
    size = int((folder / "checkpoint").read_text().splitlines()[1])
    found = []
    for number in range(-(-size // 256)):
        data, at = bundle(folder, number, min(256, size - 256 * number)), 0
        while at < len(data):
            end = at + 2 + int.from_bytes(data[at : at + 2])
            found.append(data[at + 2 : end])
            at = end
    assert len(found) == size
    return found


def entries(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    read = [json.loads(text) for text in texts(folder)]
    return [entry for entry in read if kind in {None, entry["kind"]}]


def root(leaves: list[bytes]) -> bytes:
    """The root of RFC 6962's tree."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    cut = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root(leaves[:cut]) + root(leaves[cut:])).digest()


# The room that a log takes in advance, which dozens of them on one disk add up.
SMALL = {"ring_bytes": RING_BYTES_MIN, "segment_bytes": 16 << 20}


def opened(folder: Path, **options: Any) -> AuditLog:
    return AuditLog.open(folder, origin=ORIGIN, **(SMALL | options))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "log"
    shutil.rmtree(tmp_path)


@pytest.fixture
def log(folder: Path) -> Iterator[AuditLog]:
    with opened(folder) as log:
        yield log


def run(code: str, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Runs a program that has `opened`, in an interpreter of its own."""
    head = f"""
import os, signal, sys, threading, time
from tollkeeper import AuditError, AuditLog, HandleError
folder = sys.argv[1]
def opened(**options):
    return AuditLog.open(folder, origin={ORIGIN!r}, **({SMALL!r} | options))
"""
    command = [sys.executable, "-c", head + code, str(folder), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - our own


# --- entries ------------------------------------------------------------------------------------------------------


def test_what_is_appended_can_be_read_back(folder: Path, log: AuditLog) -> None:
    assert [log.append({"text": "first"}), log.append({"text": "second"})] == [1, 2]
    assert log.flush() == 3
    log.checkpoint()
    start, *notes = entries(folder)
    assert (start["kind"], start["origin"], start["epoch"], start["exported"]) == ("start", ORIGIN, 1, False)
    assert [list(note) for note in notes] == [["v", "kind", "producer", "seq", "time", "text"]] * 2
    assert [(note["v"], note["kind"], note["seq"], note["text"]) for note in notes] == [
        (1, "note", 1, "first"),
        (1, "note", 2, "second"),
    ]
    assert notes[0]["producer"] + ".w" == start["producer"]


def test_a_log_goes_on_after_it_was_closed(folder: Path) -> None:
    with opened(folder) as log:
        log.append({"text": "before"})
        key = log.verifier_key
    with opened(folder) as log:
        assert log.append({"text": "after"}) == 1
        assert log.verifier_key == key
    kinds = [entry["kind"] for entry in entries(folder)]
    assert kinds == ["start", "note", "stop", "start", "note", "stop"]
    assert [entry["text"] for entry in entries(folder, "note")] == ["before", "after"]


def test_the_checkpoint_and_its_key(folder: Path, log: AuditLog) -> None:
    for number in range(600):
        log.append({"number": number})
    checkpoint = log.checkpoint()
    assert checkpoint == (folder / "checkpoint").read_text()
    origin, size, root_text, empty, signature = checkpoint.splitlines()
    assert (origin, size, empty) == (ORIGIN, "601", "")
    assert base64.b64decode(root_text) == root(texts(folder))
    name, key_id, public = (folder / "verifier.pub").read_text().removesuffix("\n").split("+", 2)
    assert log.verifier_key == f"{name}+{key_id}+{public}"
    assert name == ORIGIN
    kind_and_key = base64.b64decode(public)
    assert (kind_and_key[0], len(kind_and_key)) == (1, 33)
    assert hashlib.sha256(name.encode() + b"\n" + kind_and_key).hexdigest()[:8] == key_id
    dash, signer, signed = signature.split(" ")
    assert (dash, signer, base64.b64decode(signed)[:4].hex()) == ("—", ORIGIN, key_id)


def test_a_checkpoint_covers_what_came_before_it(log: AuditLog) -> None:
    for _ in range(20):
        log.append({})
        assert int(log.checkpoint().splitlines()[1]) >= log.size
    # Without a record of its own in between: the log itself has written one.
    log.append({}, private=b"x")
    size = log.flush()
    log.checkpoint()
    log.erase(size - 1)
    assert int(log.checkpoint().splitlines()[1]) == size + 1


def test_sizes_and_health(folder: Path, log: AuditLog) -> None:
    assert (log.size, log.durable_size) == (1, 1)
    for _ in range(10):
        log.append({})
    assert log.size == 11
    assert log.flush() == log.durable_size == 11
    log.checkpoint()
    health = log.health()
    assert (health["durable_size"], health["checkpoint_size"], health["pending"]) == (11, 11, 0)
    assert (health["origin"], health["epoch"], health["failure"], health["exported"]) == (ORIGIN, 1, None, False)
    assert health["ring_bytes"] == RING_BYTES_MIN
    assert health["ring_used_bytes"] == 0
    assert health["sync_max_us"] > 0
    assert (log.origin, log.folder, log.closed) == (ORIGIN, folder, False)


def test_private_files_are_private(folder: Path, log: AuditLog) -> None:
    log.append({}, private="secret")
    log.checkpoint()
    modes = {name: (folder / name).stat().st_mode & 0o777 for name in ("signer.key", "verifier.pub", "checkpoint", ".")}
    assert modes == {"signer.key": 0o400, "verifier.pub": 0o644, "checkpoint": 0o644, ".": 0o700}
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in (folder / "wal").iterdir())
    secret = (folder / "signer.key").read_text().splitlines()[1]
    assert secret not in repr(log)
    assert repr(log) == f"<AuditLog in {folder}>"


def test_the_key_may_lie_elsewhere(tmp_path: Path) -> None:
    keys = [opened(tmp_path / name, key=tmp_path / "shared.key") for name in ("a", "b")]
    assert keys[0].verifier_key == keys[1].verifier_key
    for log in keys:
        log.close()
    assert not (tmp_path / "a/signer.key").exists()


# --- values -------------------------------------------------------------------------------------------------------

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
NAMES = st.text().filter(lambda name: name not in {"v", "kind", "producer", "seq", "time", "private", "oversize"})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditLog]:
    folder = tmp_path_factory.mktemp("shared")
    with opened(folder / "log") as log:
        yield log
    shutil.rmtree(folder)


@given(st.lists(st.dictionaries(NAMES, TREES, max_size=5), min_size=1, max_size=30))
def test_values_come_back_as_they_were_and_in_order(shared: AuditLog, mappings: list[dict[str, Any]]) -> None:
    for mapping in mappings:
        shared.append(mapping)
    shared.checkpoint()
    for mapping, entry in zip(mappings, entries(shared.folder)[-len(mappings) :], strict=True):
        members = dict(list(entry.items())[5:])
        assert members == mapping
        assert list(members) == list(mapping)
        assert repr(members) == repr(mapping)


def test_numbers_keep_their_digits(folder: Path, log: AuditLog) -> None:
    price = decimal.Decimal("0.100000000000000000000000000000000010")
    log.append({"price": price, "big": 2**200, "least": decimal.Decimal("-1E-400"), "pair": (1, 1.0)})
    log.checkpoint()
    text = texts(folder)[-1].decode()
    assert text.endswith(f',"price":{price},"big":{2**200},"least":-1E-400,"pair":[1,1.0]}}')


@pytest.mark.parametrize("kind", [OrderedDict, MappingProxyType, dict])
def test_any_mapping_is_one(folder: Path, log: AuditLog, kind: Callable[[dict[str, Any]], Any]) -> None:
    log.append(kind({"b": 1, "a": 2}))
    log.checkpoint()
    assert list(entries(folder)[-1].items())[5:] == [("b", 1), ("a", 2)]


class Text(str):
    """What looks like a text and could write anything."""

    __slots__ = ()


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


itself: dict[str, Any] = {}
itself["again"] = itself

REFUSED: dict[str, tuple[object, type[Exception], str]] = {
    "list": ([1], TypeError, "an entry is a mapping, not `list`"),
    "text": ("a", TypeError, "an entry is a mapping, not `str`"),
    "none": (None, TypeError, "an entry is a mapping, not `NoneType`"),
    "key": ({1: 2}, TypeError, "entry: a key of type `int` is not a str"),
    "subclass key": ({"a": {Text("b"): 1}}, TypeError, "entry.a: a key of type `Text` is not a str"),
    "bytes": ({"a": [0, b"x"]}, TypeError, "entry.a[1]: a value of type `bytes` is not JSON"),
    "set": ({"a": {1}}, TypeError, "entry.a: a value of type `set` is not JSON"),
    "subclass": ({"a": Text("b")}, TypeError, "entry.a: a value of type `Text` is not JSON"),
    "nan": ({"a": {"b c": math.nan}}, AuditError, 'entry.a["b c"]: NaN and infinities have no form in JSON'),
    "infinity": ({"a": -math.inf}, AuditError, "entry.a: NaN and infinities"),
    "decimal": ({"a": decimal.Decimal("sNaN")}, AuditError, "entry.a: NaN and infinities"),
    "surrogate": ({"a": "\ud800"}, AuditError, "entry.a: the text holds a lone surrogate"),
    "surrogate key": ({"\ud800": 1}, AuditError, "entry: the text holds a lone surrogate"),
    "digits": ({"a": 10**5000}, AuditError, "entry.a: the integer has too many digits"),
    "deep": ({"a": deep(64)}, AuditError, "values nest deeper than 64 levels"),
    "itself": (itself, AuditError, "values nest deeper than 64 levels"),
    "version": ({"v": 1}, AuditError, "entry.v: the log writes this member itself"),
    "seq": ({"a": 1, "seq": 1}, AuditError, "entry.seq: the log writes this member itself"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_entry_is_refused_with_its_place(log: AuditLog, name: str) -> None:
    mapping, kind, message = REFUSED[name]
    with pytest.raises(kind) as caught:
        log.append(mapping)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert getattr(caught.value, "code", "audit.invalid") == "audit.invalid"
    assert log.append({"a": deep(63)}) == 1, "nothing was claimed"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda log: log.append({}, kind="stop"), "there is no kind `stop` to append; there is decision,"),
        (lambda log: log.append({}, kind="nonsense"), "there is no kind `nonsense`"),
        (lambda log: log.append({}, timeout=-1), "timeout is -1, not a number of seconds"),
        (lambda log: log.append({}, timeout=math.nan), "timeout is NaN"),
        (lambda log: log.append({}, private={"a": math.nan}), "private.a: NaN"),
        (lambda log: log.append({}, private="\ud800"), "private: the text holds a lone surrogate"),
        (
            lambda log: log.append({"id": ID, "arguments": 1}, private=1, kind="decision"),
            "entry.arguments: the log writes",
        ),
        (lambda log: log.append({"id": "x"}, kind="decision"), "entry.id: this kind, decision, needs"),
        (lambda log: log.append({}, kind="outcome"), "entry.of: this kind, outcome, needs"),
        (lambda log: log.wait(1), "there is no record 1; the last one is 0"),
        (lambda log: log.wait(0, "synced"), "there is no durability `synced`; there is group, sync, checkpointed"),
        (lambda log: log.erase(99), "there is no entry 99; the log has 1"),
        (lambda log: log.erase(0), "entry 0 has no payload here"),
    ],
)
def test_what_cannot_be_is_said(log: AuditLog, call: Callable[[AuditLog], object], message: str) -> None:
    with pytest.raises(AuditError) as caught:
        call(log)
    assert message in str(caught.value)
    assert caught.value.code == "audit.invalid"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"origin": "a b"}, "origin `a b` holds"),
        ({"origin": ""}, "origin `` has 0 bytes"),
        ({"ring_bytes": 1000}, "ring_bytes is 1000; it is a power of two from 524288"),
        ({"segment_bytes": 1}, "segment_bytes is 1"),
        ({"interval_ms": 0}, "interval_ms is 0; it is from 1 to 60000"),
    ],
)
def test_options_that_cannot_be(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AuditError) as caught:
        AuditLog.open(folder, **({"origin": ORIGIN} | options))
    assert message in str(caught.value)
    assert caught.value.code == "audit.invalid"


def test_a_folder_keeps_its_origin(folder: Path) -> None:
    opened(folder).close()
    with pytest.raises(AuditError, match=r"the log's origin is `example.com/gate`, not `other`") as caught:
        AuditLog.open(folder, origin="other")
    assert caught.value.code == "audit.format"


# --- what is private, and what is large ---------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("note", "private"), ("run", "request"), ("decision", "arguments")])
def test_private_values_are_committed_to(folder: Path, log: AuditLog, kind: str, name: str) -> None:
    payloads: list[object] = ["plain text", b"\xff\x00", {"b": [1, None]}, 7, True]
    for payload in payloads:
        log.append({"id": ID}, private=payload, kind=kind)
    log.checkpoint()
    found = entries(folder, kind)
    assert [entry[name]["bytes"] for entry in found] == [10, 2, len(b'{"b":[1,null]}'), 1, 4]
    assert len({entry[name]["commitment"] for entry in found}) == len(payloads)
    assert all(len(base64.b64decode(entry[name]["commitment"])) == 32 for entry in found)
    wal = b"".join(file.read_bytes() for file in (folder / "wal").iterdir())
    assert b"plain text" in wal
    assert not any(b"plain text" in text for text in texts(folder))


def test_what_was_private_can_be_erased(folder: Path, log: AuditLog) -> None:
    log.append({"to": "bob"}, private={"address": "bob@example.com"})
    index = log.flush() - 1
    log.erase(index)
    wal = b"".join(file.read_bytes() for file in (folder / "wal").iterdir())
    assert b"bob@example.com" not in wal
    checkpoint = log.checkpoint()
    note, erasure = entries(folder)[-2:]
    assert (note["to"], erasure["kind"], erasure["index"]) == ("bob", "erasure", index)
    assert erasure["commitment"] == note["private"]["commitment"]
    assert base64.b64decode(checkpoint.splitlines()[2]) == root(texts(folder))


def test_too_much_for_an_entry_goes_outside(folder: Path, log: AuditLog) -> None:
    log.append({"text": "x" * 70_000})
    log.append({"text": "x" * 60_000})
    log.checkpoint()
    large, small = entries(folder, "note")
    assert list(large) == ["v", "kind", "producer", "seq", "time", "oversize"]
    assert large["oversize"]["bytes"] > 70_000
    assert len(small["text"]) == 60_000


def test_too_much_for_the_ring_is_refused(folder: Path) -> None:
    with opened(folder) as log:
        with pytest.raises(AuditError, match="larger than the 256 KiB that the log's ring of 512 KiB takes") as e:
            log.append({}, private=bytes(RING_BYTES_MIN // 2))
        assert e.value.code == "audit.unavailable"
        assert log.append({}, private=bytes(RING_BYTES_MIN // 4)) == 1


# --- epochs -------------------------------------------------------------------------------------------------------


def test_rotation_begins_a_new_epoch(folder: Path, log: AuditLog) -> None:
    log.append({"text": "old"})
    before = log.checkpoint()
    key = log.verifier_key
    log.rotate()
    assert log.origin == f"{ORIGIN}/2"
    assert log.append({"text": "new"}) == 2, "sequence numbers run on"
    log.checkpoint()
    old = folder / "epochs/1"
    assert sorted(path.name for path in old.iterdir()) == [
        "checkpoint",
        "checkpoints.log",
        "tile",
        "verifier.pub",
        "wal",
    ]
    assert (old / "checkpoint").read_text() == before
    assert (old / "verifier.pub").read_text() == f"{key}\n"
    assert (folder / "verifier.pub").read_text() == f"{log.verifier_key}\n"
    assert [entry["text"] for entry in entries(old, "note")] == ["old"]
    epoch, note = entries(folder)
    _, size, root_text, *_ = before.splitlines()
    assert (epoch["kind"], epoch["origin"], epoch["size"], epoch["root"]) == ("epoch", ORIGIN, int(size), root_text)
    assert epoch["checkpoint"] == before
    assert note["text"] == "new"


def test_checkpoints_and_waits_while_epochs_change(folder: Path, log: AuditLog) -> None:
    over = threading.Event()
    seqs: list[int] = []

    def work() -> None:
        while not over.is_set():
            seq = log.append({"text": "x"})
            log.wait(seq, "checkpointed")
            assert log.checkpoint().startswith(ORIGIN)
            seqs.append(seq)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        log.rotate()
    over.set()
    for thread in threads:
        thread.join()
    log.checkpoint()
    folders = [*(folder / "epochs" / str(epoch) for epoch in range(1, 11)), folder]
    found = [note["seq"] for place in folders for note in entries(place, "note")]
    assert found == list(range(1, len(found) + 1))
    assert set(seqs) == set(found)


def test_a_file_that_is_gone_is_noticed(folder: Path) -> None:
    log = opened(folder)
    log.append({"text": "before"})
    log.flush()
    (folder / "ring").unlink()

    def until_it_is_noticed() -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            log.append({"text": "maybe"})
            time.sleep(0.05)

    with pytest.raises(AuditError, match=r"ring is gone while the log was open; nothing is recorded until") as caught:
        until_it_is_noticed()
    assert caught.value.code == "audit.unavailable"
    assert "is gone" in log.health()["failure"]
    began = time.monotonic()
    with pytest.raises(AuditError, match=r"ring is gone"):
        log.close()
    assert time.monotonic() - began < 5
    log.close()
    opened(folder).close()
    assert entries(folder)[1]["text"] == "before"


# --- many, and others ---------------------------------------------------------------------------------------------


def test_threads_append_at_once(folder: Path, log: AuditLog) -> None:
    count, each = 8, 1_000
    seqs: list[list[int]] = [[] for _ in range(count)]

    def work(number: int) -> None:
        seqs[number] = [log.append({"thread": number, "n": n}) for n in range(each)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seq for own in seqs for seq in own) == list(range(1, count * each + 1))
    log.checkpoint()
    notes = entries(folder, "note")
    assert [note["seq"] for note in notes] == list(range(1, count * each + 1))
    for number in range(count):
        assert [note["n"] for note in notes if note["thread"] == number] == list(range(each))


def test_another_process_cannot_open_it(folder: Path, log: AuditLog) -> None:
    code = """
try:
    opened()
except AuditError as error:
    print(error.code, error)
"""
    done = run(code, folder)
    assert done.stdout.startswith("audit.in_use ")
    assert f"the log is in use by process {os.getpid()}" in done.stdout
    assert log.append({}) == 1


def test_nor_can_this_one_twice(folder: Path, log: AuditLog) -> None:
    with pytest.raises(AuditError) as caught:
        opened(folder)
    assert caught.value.code == "audit.in_use"
    log.close()
    opened(folder).close()


@pytest.mark.parametrize("count", [1, 257, 5_000])
def test_a_killed_process_loses_nothing(folder: Path, count: int) -> None:
    code = """
log = opened()
for number in range(int(sys.argv[2])):
    seq = log.append({"number": number}, private={"n": number})
print(seq, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = run(code, folder, str(count))
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, f"{count}\n"), done.stderr
    with opened(folder) as log:
        log.checkpoint()
    assert [note["number"] for note in entries(folder, "note")] == list(range(count))
    (recovery,) = entries(folder, "recovery")
    assert recovery["lost"] == []
    assert recovery["of"] == entries(folder, "note")[0]["producer"]


# A limit on the size of files is a disk that refuses, and takes nothing but the call to lift it again.
FULL_DISK = """
import resource
def refuse(): resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
def accept(): resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


def test_a_full_ring_is_said_with_its_reason(folder: Path) -> None:
    code = f"""{FULL_DISK}
log = opened()
refuse()
count = 0
try:
    while True:
        log.append({{"number": count, "text": "x" * 1000}}, timeout=0.3)
        count += 1
except AuditError as error:
    print(error.code, error)
began = time.monotonic()
try:
    log.flush(timeout=0.3)
except AuditError as error:
    print(error.code, error)
assert 0.2 < time.monotonic() - began < 5
assert "cannot" in log.health()["failure"], log.health()
accept()
log.append({{"number": count}}, timeout=10)
assert log.flush() >= count
log.checkpoint()
assert log.health()["failure"] is None, log.health()
log.close()
print(count)
"""
    done = run(code, folder)
    assert done.returncode == 0, done.stderr
    full, late, count = done.stdout.splitlines()
    assert full.startswith("audit.unavailable the log's ring of 512 KiB is full, because")
    assert "File too large" in full
    assert late.startswith("audit.unavailable the record is not on the disk after 300 ms:")
    assert [note["number"] for note in entries(folder, "note")] == list(range(int(count) + 1))


@pytest.mark.parametrize(
    "wait", ["log.flush(60)", "log.checkpoint(60)", "log.wait(1, 'sync', 60)", "log.append(large, timeout=60)"]
)
def test_a_wait_ends_with_an_interrupt(folder: Path, wait: str) -> None:
    code = f"""{FULL_DISK}
log = opened()
refuse()
large = {{"text": "x" * 120_000}}
log.append(large), log.append(large), log.append(large), log.append(large)
# Whoever runs the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
began = time.monotonic()
try:
    {wait}
except KeyboardInterrupt:
    print(time.monotonic() - began < 10)
accept()
log.close()
"""
    done = run(code, folder)
    assert done.stdout == "True\n", done.stderr


# --- handles that are over ----------------------------------------------------------------------------------------

METHODS: list[Callable[[AuditLog], object]] = [
    lambda log: log.append({}),
    lambda log: log.flush(),
    lambda log: log.checkpoint(),
    lambda log: log.wait(0),
    lambda log: log.erase(0),
    lambda log: log.rotate(),
    lambda log: log.health(),
    lambda log: log.durable(0).send(None),
]
PROPERTIES: list[Callable[[AuditLog], object]] = [
    lambda log: log.origin,
    lambda log: log.verifier_key,
    lambda log: log.size,
    lambda log: log.durable_size,
]


def in_child(work: Callable[[], object]) -> str:
    """What `work` returns in a forked child, or the code of what it raises."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # No assertion in here: a failing child would run the rest of the tests twice.
        try:
            answer = repr(work())
        except Exception as error:  # noqa: BLE001 - the parent looks at it
            answer = getattr(error, "code", repr(error))
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


def test_a_closed_log_refuses(folder: Path) -> None:
    log = opened(folder)
    log.append({})
    log.close()
    log.close()
    assert log.closed
    assert repr(log) == f"<AuditLog in {folder}, closed>"
    for method in METHODS:
        with pytest.raises(HandleError) as caught:
            method(log)
        assert caught.value.code == "gate.closed"
    assert [read(log) for read in PROPERTIES][2:] == [3, 3]


def test_an_inherited_log_refuses(folder: Path, log: AuditLog) -> None:
    log.append({})
    for use in METHODS + PROPERTIES:
        assert in_child(lambda use=use: use(log)) == "gate.forked"
    assert in_child(lambda: (log.folder, log.closed, repr(log))) == repr((folder, False, f"<AuditLog in {folder}>"))


def test_a_child_does_not_touch_its_parents_log(folder: Path) -> None:
    log = opened(folder)
    held = [log]
    log.append({"text": "parent"})
    assert in_child(log.close) == "None"

    def drop() -> str:
        nonlocal log
        del log
        held.clear()
        gc.collect()
        return "gone"

    assert in_child(drop) == "'gone'"
    assert in_child(lambda: opened(folder)) == "audit.in_use"
    other = folder.with_name("other")
    assert in_child(lambda: opened(other).append({})) == "1"
    assert held[0].append({"text": "still"}) == 2
    assert held[0].flush() == 3
    held[0].close()
    assert [entry["kind"] for entry in entries(folder)] == ["start", "note", "note", "stop"]


def test_forks_while_threads_append(folder: Path, log: AuditLog) -> None:
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            log.append({"text": "x"})

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            # With the writer in the middle of anything: a child that waited for its locks would wait for ever.
            assert in_child(lambda: log.append({})) == "gate.forked"
            assert in_child(lambda: (log.close(), repr(log))[0]) == "None"
    finally:
        over.set()
        for thread in threads:
            thread.join()
    log.checkpoint()
    seqs = [note["seq"] for note in entries(folder, "note")]
    assert seqs == list(range(1, len(seqs) + 1))


def test_a_log_that_nobody_has_is_closed(folder: Path) -> None:
    log = opened(folder)
    log.append({})
    del log
    gc.collect()
    opened(folder).close()
    kinds = [entry["kind"] for entry in entries(folder)]
    assert kinds == ["start", "note", "stop", "start", "stop"]


def test_closing_ends_a_wait_in_another_thread(folder: Path) -> None:
    ends: list[str] = []

    def work(log: AuditLog, seq: int) -> None:
        try:
            log.wait(seq, "checkpointed", timeout=60)
            ends.append("durable")
        except HandleError as error:
            # It came too late.
            ends.append(error.code)

    for _ in range(10):
        log = opened(folder, checkpoint_interval_ms=60_000)
        waiting = threading.Thread(target=work, args=(log, log.append({})))
        waiting.start()
        log.close()
        waiting.join(30)
    assert set(ends) <= {"durable", "gate.closed"}
    assert len(ends) == 10


# --- the end of the interpreter -----------------------------------------------------------------------------------

ENDINGS = {
    "open": "",
    "in a cycle": "cycle = [log]; cycle.append(cycle); del log",
    "a daemon appends": """
def work():
    try:
        while True:
            log.append({"text": "more"})
    except HandleError:
        time.sleep(60)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
""",
    "a daemon waits": """
def work():
    try:
        while True:
            log.wait(log.append({"text": "more"}), "checkpointed")
    except HandleError:
        time.sleep(60)
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
""",
    "in a thread that ends later": """
def work():
    for _ in range(20):
        log.append({"text": "more"})
        time.sleep(0.01)
threading.Thread(target=work).start()
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_interpreter_ends_with_an_open_log(folder: Path, ending: str) -> None:
    code = f"""
log = opened()
log.append({{"text": "first"}})
{ENDINGS[ending]}
"""
    began = time.monotonic()
    done = run(code, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began < 30
    found = entries(folder)
    assert (found[1]["text"], found[-1]["kind"]) == ("first", "stop")
    seqs = [entry["seq"] for entry in found if entry["kind"] == "note"]
    assert seqs == list(range(1, len(seqs) + 1))
