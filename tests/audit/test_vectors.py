"""The vectors of transparency-dev/merkle and a log made by Tessera, through the binding.

The data is not part of the source: `TOLLKEEPER_TLOG_VECTORS` names its folder, and without it the tests are skipped.
"""

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import AuditError, TollkeeperError, _native

KEY = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"


@pytest.fixture(scope="session")
def vectors(root: Path) -> Path:
    """The folder with the vectors."""
    folder = Path(os.getenv("TOLLKEEPER_TLOG_VECTORS", root.parent / "shared" / "data" / "tlog"))
    if not folder.is_dir():
        pytest.skip("no transparency log vectors; set TOLLKEEPER_TLOG_VECTORS to their folder")
    return folder


@pytest.fixture
def log(vectors: Path, tmp_path: Path) -> Path:
    """A copy of Tessera's log that may be damaged."""
    return Path(shutil.copytree(vectors / "tessera-log", tmp_path / "log"))


def read(value: str | None) -> bytes:
    return base64.b64decode(value or "")


def cases(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))]


def check(call: Callable[[], None], *, wanted: bool) -> None:
    """Calls, and expects that the proof is refused where the vector wants that."""
    if not wanted:
        return call()
    with pytest.raises(AuditError) as caught:
        call()
    assert caught.value.code == "audit.proof"
    return None


def test_inclusion(vectors: Path) -> None:
    found = cases(vectors / "merkle" / "testdata" / "inclusion")
    assert len(found) == 98
    for case in found:
        proof = [read(text) for text in case["proof"] or []]
        arguments = (case["leafIdx"], case["treeSize"], read(case["root"]), read(case["leafHash"]), proof)
        check(partial(_native.audit_check_inclusion, *arguments), wanted=case.get("wantErr", False))


def test_consistency(vectors: Path) -> None:
    found = cases(vectors / "merkle" / "testdata" / "consistency")
    assert len(found) == 98
    for case in found:
        proof = [read(text) for text in case["proof"] or []]
        arguments = (case["size1"], case["size2"], read(case["root1"]), read(case["root2"]), proof)
        check(partial(_native.audit_check_consistency, *arguments), wanted=case.get("wantErr", False))


def test_the_whole_log_of_tessera(log: Path) -> None:
    report = _native.audit_verify(log, key=KEY, foreign=True)
    assert report["verdict"] == "ok"
    (slot,) = report["slots"]
    (epoch,) = slot["epochs"]
    assert (epoch["size"], epoch["verified_size"], epoch["faults"]) == (15, 15, [])
    for size in range(1, 16):
        since = (log / f"checkpoint.{size}").read_text()
        report = _native.audit_verify(log, key=KEY, since=since, foreign=True)
        assert (report["verdict"], report["since"]["consistent"]) == ("ok", True)
    reader = _native.AuditReader(log)
    assert (reader.size, reader.origin) == (15, "example.com/log/testdata")
    assert reader.checkpoint_text == (log / "checkpoint").read_text()
    entries = list(reader.entries())
    assert entries[:3] == [(0, b"one"), (1, b"two"), (2, b"three")]
    assert list(reader.entries(13)) == entries[13:]
    assert list(reader.entries(3, 5)) == entries[3:5]
    for index, entry in entries:
        assert reader.entry(index) == entry
        assert reader.payload(index) is None
        checked = _native.audit_check_proof(_native.audit_prove(log, index), KEY, entry)
        assert (checked["index"], checked["size"]) == (index, 15)
        with pytest.raises(AuditError):
            _native.audit_check_proof(_native.audit_prove(log, index), KEY, entry + b"x")


def test_a_rolled_back_log_is_seen_by_whoever_kept_a_checkpoint(log: Path) -> None:
    kept = (log / "checkpoint").read_text()
    shutil.copy(log / "checkpoint.9", log / "checkpoint")
    for path in sorted(log.glob("tile/*/000.p/*")):
        if int(path.name) > 9:
            path.unlink()
    assert _native.audit_verify(log, key=KEY, foreign=True)["verdict"] == "ok"
    report = _native.audit_verify(log, key=KEY, since=kept, foreign=True)
    assert report["verdict"] == "broken"
    assert {fault["kind"] for fault in report["slots"][0]["epochs"][0]["faults"]} == {"rollback"}


def test_every_flipped_bit_of_the_log_is_noticed(log: Path) -> None:
    files = [log / "checkpoint", *sorted(log.glob("tile/*/000.p/15"))]
    for path in files:
        whole = path.read_bytes()
        for bit in range(0, len(whole) * 8, 5):
            changed = bytearray(whole)
            changed[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(changed)
            report = _native.audit_verify(log, key=KEY, foreign=True)
            assert report["verdict"] == "broken", f"{path.name} bit {bit}"
            assert report["slots"][0]["epochs"][0]["faults"][0]["file"]
        path.write_bytes(whole)
    assert _native.audit_verify(log, key=KEY, foreign=True)["verdict"] == "ok"


def test_what_a_caller_may_do_wrong(log: Path, tmp_path: Path) -> None:
    calls = {
        "audit.not_found": lambda: _native.AuditReader(log).entry(15),
        "audit.key": lambda: _native.audit_verify(log, key="no key"),
        "audit.format": lambda: _native.audit_verify(log, key=KEY, since="no note"),
        "audit.signature": lambda: _native.audit_check_proof(_native.audit_prove(log, 0), other_key(), b"one"),
    }
    for code, call in calls.items():
        with pytest.raises(AuditError) as caught:
            call()
        assert caught.value.code == code
        assert isinstance(caught.value, TollkeeperError)
    with pytest.raises(AuditError, match="there is no audit log"):
        _native.audit_logs(tmp_path)
    (found,) = _native.audit_logs(log)
    assert (found["epoch"], found["slot"], found["size"], found["wal_size"]) == (1, None, 15, 0)


def other_key() -> str:
    """Another key under the same name."""
    name = "example.com/log/testdata"
    # The base point of the curve is a valid public key whose owner is nobody here.
    public = b"\x01" + bytes.fromhex("58" + "66" * 31)
    identity = hashlib.sha256(name.encode() + b"\n" + public).hexdigest()[:8]
    return f"{name}+{identity}+{base64.b64encode(public).decode()}"
