"""The auditors' file against published vectors, against a log that Tessera made, and against every change to a log.

A change to a signed part has to be called broken, with its place. A change that the log's own signature cannot show has
to be named as an unanchored or unsigned tail, and becomes broken as soon as a checkpoint from outside is given.
"""

import base64
import io
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("cryptography")

from model_log import ERASED, ORIGIN, Entries, ModelLog, Signer, commitment, copies, fill, number_path, salted

OK, INCOMPLETE, UNUSABLE, BROKEN = range(4)
Check = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def check(auditor: ModuleType) -> Check:
    """Runs the file's main; no input may end in a traceback."""

    def run(*arguments: Any) -> tuple[int, str]:
        out = io.StringIO()
        with redirect_stdout(out):
            code = auditor.main([str(argument) for argument in arguments])
        return code, out.getvalue()

    return run


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ModelLog:
    """700 entries: two full bundles and a partial one, three checkpoints, two segments."""
    log = ModelLog(tmp_path_factory.mktemp("small") / "log")
    fill(log, 700, batch=40, every=6)
    return log


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ModelLog:
    """More than 5,000 entries, some checkpoints and segments."""
    log = ModelLog(tmp_path_factory.mktemp("large") / "log")
    fill(log, 5_100, batch=100, every=7, segment=1_000)
    return log


@pytest.fixture
def copy(small: ModelLog, tmp_path: Path) -> Callable[[], Path]:
    return copies(small, tmp_path)


def files_of(log: ModelLog) -> list[str]:
    return sorted(path.relative_to(log.folder).as_posix() for path in log.folder.rglob("*") if path.is_file())


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


# --- vectors ----------------------------------------------------------------------------------------------------------


def vectors(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    found = [(str(path.relative_to(folder)), json.loads(path.read_text())) for path in sorted(folder.rglob("*.json"))]
    assert len(found) == 98
    assert sum(vector["wantErr"] for _, vector in found) == 92
    return found


def refused(auditor: ModuleType, call: Callable[[], None]) -> bool:
    try:
        call()
    except auditor.MalformedError:
        return True
    return False


def hashes(vector: dict[str, Any]) -> list[bytes]:
    return [base64.b64decode(item) for item in vector["proof"] or []]


def test_inclusion_vectors(auditor: ModuleType, tlog_data: Path) -> None:
    for name, vector in vectors(tlog_data / "merkle" / "testdata" / "inclusion"):

        def call(vector: dict[str, Any] = vector) -> None:
            leaf, root = base64.b64decode(vector["leafHash"] or ""), base64.b64decode(vector["root"] or "")
            found = auditor.root_by_inclusion(leaf, vector["leafIdx"], vector["treeSize"], hashes(vector))
            if found != root:
                raise auditor.MalformedError

        assert refused(auditor, call) == vector["wantErr"], name


def test_consistency_vectors(auditor: ModuleType, tlog_data: Path) -> None:
    for name, vector in vectors(tlog_data / "merkle" / "testdata" / "consistency"):

        def call(vector: dict[str, Any] = vector) -> None:
            roots = [base64.b64decode(vector[root] or "") for root in ("root1", "root2")]
            auditor.verify_consistency(vector["size1"], vector["size2"], *roots, hashes(vector))

        assert refused(auditor, call) == vector["wantErr"], name


TESSERA_KEY = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"


def test_the_log_that_tessera_made(auditor: ModuleType, check: Check, tlog_data: Path, tmp_path: Path) -> None:
    folder = tlog_data / "tessera-log"
    since = [item for size in range(16) for item in ("--since", folder / f"checkpoint.{size}")]
    code, text = check(folder, "--key", TESSERA_KEY, *since)
    # Its entries are words, so nothing can be said about completeness; the rest holds at each of its sizes.
    assert code == INCOMPLETE
    assert "integrity     holds: entries 0..14 give the signed root of size 15" in text
    assert "completeness  INCOMPLETE (15 findings)" in text
    assert "checkpoint.0 (size 0)" in text
    assert "anchored      0..14" in text

    entries = auditor.parse_bundle((folder / "tile" / "entries" / "000.p" / "15").read_bytes(), 15)
    assert entries[:2] == [b"one", b"two"]
    model = ModelLog(tmp_path / "model")
    for entry in entries:
        model.append(entry)
    for size in range(1, 16):
        note = (folder / f"checkpoint.{size}").read_text()
        for index in range(size):
            (tmp_path / "entry").write_bytes(entries[index])
            (tmp_path / "proof").write_text(model.proof(index, size, note))
            code, text = check("--key", TESSERA_KEY, "--proof", tmp_path / "proof", "--entry", tmp_path / "entry")
            assert (code, text) == (OK, f"this is entry {index} of example.com/log/testdata at size {size}\n")


# --- a log that holds -------------------------------------------------------------------------------------------------


def test_it_holds(small: ModelLog, large: ModelLog, check: Check) -> None:
    for log in (small, large):
        code, text = check(log.folder, "--key", log.key)
        assert code == OK, text
        assert f"integrity     holds: entries 0..{log.size - 1} give the signed root of size {log.size}" in text
        assert "completeness  holds; 2 producers; 1 actions await an outcome" in text
        assert "unanchored    0.." in text
        assert "unsigned" not in text


def test_it_runs_alone(small: ModelLog, auditor_file: Path, tmp_path: Path) -> None:
    alone = shutil.copy(auditor_file, tmp_path / "v.py")
    command = [sys.executable, "-I", str(alone), str(small.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command line
    assert (done.returncode, done.stderr) == (OK, "")
    assert "give --key to rule out" in done.stdout
    imports = set(re.findall(r"^ *(?:from|import) (\w+)", auditor_file.read_text(), re.MULTILINE))
    assert imports <= set(sys.stdlib_module_names) | {"cryptography"}


def test_a_public_copy_holds(copy: Callable[[], Path], check: Check, small: ModelLog) -> None:
    folder = copy()
    shutil.rmtree(folder / "wal")
    assert check(folder, "--key", small.key)[0] == OK
    # As a log that lets partial tiles go.
    for path in folder.rglob("*.p"):
        if path.with_suffix("").exists():
            shutil.rmtree(path)
    assert check(folder, "--key", small.key)[0] == OK


def test_the_empty_log_and_the_unpublished_one(tmp_path: Path, check: Check) -> None:
    log = ModelLog(tmp_path / "log")
    assert check(log.folder)[0] == OK
    log.publish()
    assert check(log.folder)[0] == OK
    log.append(Entries().start())
    log.flush()
    code, text = check(log.folder)
    assert code == INCOMPLETE
    assert "unsigned      0..0" in text


# --- changes to the files ---------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_reported(copy: Callable[[], Path], small: ModelLog, check: Check) -> None:
    folder = copy()
    chosen = random.Random(5)  # noqa: S311 - a sample, not a secret
    for name in files_of(small):
        path = folder / name
        bits = path.stat().st_size * 8
        for bit in {0, bits - 1, *(chosen.randrange(bits) for _ in range(5))}:
            flip(path, bit)
            code, text = check(folder, "--key", small.key)
            # In the history or behind the last frame it may be torn; in what is signed it is broken.
            unsigned = name == "checkpoints.log" or name.startswith("wal")
            if code == OK:
                # Behind the last frame of a segment is nothing that anybody was told of.
                assert name.startswith("wal/")
                assert "bytes follow the last frame" in text or "no frame begins here" in text
            else:
                assert code in ((INCOMPLETE, BROKEN) if unsigned else (BROKEN,)), (name, bit, text)
            assert name.partition(".p/")[0] in text, (name, bit, text)
            flip(path, bit)


def test_flipped_bits_in_a_large_log_are_reported_with_the_entry(large: ModelLog, tmp_path: Path, check: Check) -> None:
    folder = copies(large, tmp_path)()
    chosen = random.Random(6)  # noqa: S311
    for _ in range(12):
        index = chosen.randrange(large.size // 256 * 256)
        name = f"tile/entries/{number_path(index // 256)}"
        start = sum(2 + len(entry) for entry in large.entries[index // 256 * 256 : index])
        bit = 8 * (start + 2) + chosen.randrange(8 * len(large.entries[index]))
        flip(folder / name, bit)
        code, text = check(folder)
        assert code == BROKEN
        assert (
            f"tile/0/{number_path(index // 256)}: it is not what the entries give: it differs at entry {index}" in text
        )
        below = max((entry for _, _, entry in large.frames if entry <= index), default=0)
        held = [int(note.split("\n")[1]) for note in large.published]
        sound = max([size for size in held if size <= below], default=0)
        assert f"0..{sound - 1} give the signed root" in text if sound else "no entry is under a signed root" in text
        flip(folder / name, bit)


def test_every_truncated_file_is_reported(copy: Callable[[], Path], small: ModelLog, check: Check) -> None:
    folder = copy()
    chosen = random.Random(7)  # noqa: S311
    for name in files_of(small):
        path = folder / name
        whole = path.read_bytes()
        # The newline at the end of a key may be missing.
        for length in {0, len(whole) - 1 - (name == "verifier.pub"), chosen.randrange(len(whole) - 1)}:
            path.write_bytes(whole[:length])
            code, text = check(folder, "--key", small.key)
            if name == "checkpoints.log" and length == 0:
                assert code == OK, "the history is a convenience: without it the checkpoint stands for itself"
            else:
                assert code in ((INCOMPLETE, BROKEN) if name == "checkpoints.log" else (BROKEN,)), (name, length, text)
                assert name.partition(".p/")[0] in text
        path.write_bytes(whole)


def test_every_dropped_file_is_reported(copy: Callable[[], Path], small: ModelLog, check: Check) -> None:
    folder = copy()
    needed = {name for name in files_of(small) if ".p/" not in name or name.endswith(f".p/{small.size % 256}")}
    for name in sorted(needed - {"checkpoints.log"}):
        whole = (folder / name).read_bytes()
        (folder / name).unlink()
        code, text = check(folder, "--key", small.key)
        if name == "verifier.pub":
            assert code == OK
            assert check(folder)[0] == UNUSABLE
        elif name == "wal/00000000000000000000.seg":
            assert code == OK, "the oldest segments may go once tiles hold their entries"
        else:
            assert code == BROKEN, (name, text)
            assert name in text or "wal: its segments end with" in text, (name, text)
        (folder / name).write_bytes(whole)


def test_swapped_and_duplicated_files_are_reported(copy: Callable[[], Path], check: Check) -> None:
    folder = copy()
    pairs = [
        ("tile/entries/000", "tile/entries/001"),
        ("tile/0/000", "tile/0/001"),
        ("tile/entries/000", "tile/0/000"),
        (f"wal/{0:020}.seg", f"wal/{401:020}.seg"),
        ("checkpoint", "verifier.pub"),
    ]
    for left, right in pairs:
        one, two = (folder / left).read_bytes(), (folder / right).read_bytes()
        for new_left, new_right in ((two, one), (two, two), (one, one)):
            (folder / left).write_bytes(new_left)
            (folder / right).write_bytes(new_right)
            code, text = check(folder)
            assert code == BROKEN, (left, right, text)
            assert left in text or right in text
        (folder / left).write_bytes(one)
        (folder / right).write_bytes(two)
    for source, target in (
        ("tile/entries/000", "tile/entries/003"),
        ("tile/0/000", "tile/0/009"),
        ("tile/1/000.p/2", "tile/2/000.p/2"),
    ):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / source, folder / target)
        code, text = check(folder)
        assert code == BROKEN
        assert f"{target}: it reaches beyond the 700 entries" in text
        (folder / target).unlink()
    (folder / "tile" / "0" / "000.bak").write_bytes(b"")
    (folder / "tile" / "0" / "x000").mkdir()
    shutil.copy(folder / "tile/0/000", folder / "tile" / "0" / "x000" / "000")
    code, text = check(folder)
    assert (code, text.count("no reader looks here")) == (OK, 2)


# --- changes to the entries, with everything hashed anew --------------------------------------------------------------


def rewritten(log: ModelLog, folder: Path, entries: list[bytes], *, signer: Signer | None = None) -> Path:
    """A log of other entries with the files that belong to them: signed by the key given, else by the old notes."""
    other = ModelLog(folder, log.origin, signer or log.signer)
    payloads = {commitment(payload).encode(): payload for payload in log.payloads.values()}
    for index, entry in enumerate(entries):
        named = re.search(rb'"commitment":"([^"]+)"', entry)
        other.append(entry, payloads[named[1]] if named else None)
        if index + 1 in (log.size, len(entries)):
            other.flush()
            other.publish()
    if signer is None:
        for name in ("checkpoint", "checkpoints.log"):
            shutil.copy(log.folder / name, folder / name)
    return folder


def changes(entries: list[bytes]) -> dict[str, list[bytes]]:
    middle = 351  # a decision
    swapped = [*entries[: middle - 1], entries[middle], entries[middle - 1], *entries[middle + 1 :]]
    return {
        "dropped": entries[:middle] + entries[middle + 1 :],
        "swapped": swapped,
        "duplicated": entries[:middle] + entries[middle - 1 :],
        "altered": [*entries[:middle], entries[middle].replace(b"allow", b"deny!"), *entries[middle + 1 :]],
        "first dropped": entries[1:],
        "last dropped": entries[:-1],
        "appended": [*entries, entries[-1]],
    }


def test_changed_entries_without_the_key(small: ModelLog, tmp_path: Path, check: Check) -> None:
    for name, entries in changes(small.entries).items():
        code, text = check(rewritten(small, tmp_path / name, entries))
        assert code == (INCOMPLETE if name == "appended" else BROKEN), (name, text)
        if name == "appended":
            assert "unsigned      700..700" in text
        else:
            assert "checkpoint" in text


def test_changed_entries_with_the_key(small: ModelLog, tmp_path: Path, check: Check) -> None:
    """Who has the key can do it; only what stands outside shows it, or the numbers of the producers."""
    since = tmp_path / "since"
    since.write_text(small.published[-1])
    for name, entries in changes(small.entries).items():
        folder = rewritten(small, tmp_path / name, entries, signer=small.signer)
        code, text = check(folder, "--key", small.key)
        # A changed decision has its number; the only one, or the last, of a producer is missed by nobody.
        shows = name not in ("first dropped", "last dropped", "altered")
        assert code == (INCOMPLETE if shows else OK), (name, text)
        assert f"unanchored    0..{len(entries) - 1}" in text
        code, text = check(folder, "--key", small.key, "--since", since)
        assert code == (INCOMPLETE if name == "appended" else BROKEN), (name, text)
        if name == "appended":
            assert "anchored      0..699 by" in text
            assert "unanchored    700..700" in text
        else:
            assert f"broken: against {since}: " in text


def test_a_rewritten_tail_after_the_anchor_is_named(small: ModelLog, tmp_path: Path, check: Check) -> None:
    (tmp_path / "since").write_text(small.published[0])
    size = int(small.published[0].split("\n")[1])
    entries = [*small.entries[:-3], *[entry.replace(b"ok", b"no") for entry in small.entries[-3:]]]
    folder = rewritten(small, tmp_path / "log", entries, signer=small.signer)
    code, text = check(folder, "--key", small.key, "--since", tmp_path / "since")
    assert code == OK
    assert f"anchored      0..{size - 1} by" in text
    assert f"unanchored    {size}..699: whoever holds the key can have rewritten or cut this tail" in text


def test_another_key(small: ModelLog, tmp_path: Path, check: Check) -> None:
    folder = rewritten(small, tmp_path / "log", small.entries, signer=Signer(9))
    assert check(folder)[0] == OK, "with the key beside the log nothing can show"
    code, text = check(folder, "--key", small.key)
    assert code == BROKEN
    assert "verifier.pub: this is not the key given by --key" in text
    (tmp_path / "since").write_text(small.published[-1])
    code, text = check(folder, "--since", tmp_path / "since")
    assert code == BROKEN
    assert "the log was changed, or the key, or this file" in text


def test_truncation_at_every_batch_edge(small: ModelLog, tmp_path: Path, check: Check) -> None:
    """The files as they were when the log was that long: perfect in themselves."""
    since = tmp_path / "since"
    since.write_text(small.published[-1])
    sizes = [int(note.split("\n")[1]) for note in small.published]
    for number, (_, _, size) in enumerate(small.frames):
        older = ModelLog(tmp_path / str(number))
        for index, entry in enumerate(small.entries[:size]):
            older.append(entry, small.payloads.get(index))
            if index + 1 in [*sizes, size]:
                older.flush()
            if index + 1 in sizes:
                older.publish()
        signed = max([0, *[published for published in sizes if published <= size]])
        code, text = check(older.folder, "--key", small.key)
        assert code == (OK if signed == size else INCOMPLETE), text
        assert f"unanchored    0..{size - 1}" in text
        assert (f"unsigned      {signed}..{size - 1}" in text) == (signed < size)
        code, text = check(older.folder, "--key", small.key, "--since", since)
        assert code == (OK if size == small.size else BROKEN), text
        if size < small.size:
            assert f"{since}: size 700 was signed, but {size} entries can be read: cut or rolled back" in text


def test_a_rolled_back_checkpoint(copy: Callable[[], Path], small: ModelLog, tmp_path: Path, check: Check) -> None:
    folder = copy()
    (folder / "checkpoint").write_text(small.published[0])
    size = int(small.published[0].split("\n")[1])
    code, text = check(folder)
    assert code == INCOMPLETE
    assert f"checkpoint: size {size} after size 700 was signed: rolled back" in text
    (folder / "checkpoints.log").write_text(small.published[0])
    code, text = check(folder)
    assert code == INCOMPLETE
    assert f"unsigned      {size}..699" in text
    (tmp_path / "since").write_text(small.published[-1])
    code, text = check(folder, "--since", tmp_path / "since")
    assert "anchored      0..699" in text


def test_a_fork_is_seen(small: ModelLog, copy: Callable[[], Path], check: Check) -> None:
    folder = copy()
    fork = small.signer.checkpoint(ORIGIN, 300, bytes(32))
    (folder / "checkpoints.log").write_text(fork + "---\n" + "---\n".join(small.published))
    code, text = check(folder)
    assert code == BROKEN
    assert "checkpoints.log block 1: the entries do not give the root that was signed for size 300" in text


def test_a_giant_size_costs_nothing(copy: Callable[[], Path], small: ModelLog, check: Check) -> None:
    folder = copy()
    (folder / "checkpoint").write_text(small.signer.checkpoint(ORIGIN, (1 << 63) - 1, bytes(32)))
    code, text = check(folder)
    assert code == BROKEN
    assert "checkpoint: size 9223372036854775807 was signed, but 700 entries can be read" in text


# --- the write-ahead file ---------------------------------------------------------------------------------------------


def with_tail(folder: Path) -> ModelLog:
    log = ModelLog(folder)
    entries = fill(log, 300)
    for number in range(300, 310):
        log.append(entries.decision(number, salted(number)), salted(number))
        log.append(entries.outcome(number))
        log.flush()
    return log


def test_the_tail_is_read_and_a_torn_one_is_named(tmp_path: Path, check: Check) -> None:
    log = with_tail(tmp_path / "log")
    code, text = check(log.folder)
    assert code == INCOMPLETE
    assert "unsigned      300..319" in text
    assert ": 320 entries" in text
    path, end, _ = log.frames[-2]
    whole = path.read_bytes()
    path.write_bytes(whole[: end + 50] + bytes(len(whole) - end - 50))
    code, text = check(log.folder)
    assert code == INCOMPLETE
    assert f"remark: wal/{path.name} byte {end}: " in text
    assert "entries from 318 on are lost, if this was a crash" in text
    # Recovery goes on in a new segment, and leaves the torn one as it is.
    del log.entries[318:], log.tree.leaves[318:]
    log.tree.known.clear()
    log.payloads = {index: payload for index, payload in log.payloads.items() if index < 318}
    log.flushed = 318
    log.new_segment()
    log.append(Entries().entry("recovery", writer=True, of="00000000000000a1", cut_bytes=50, lost=[], reason="torn"))
    log.flush()
    log.publish()
    code, text = check(log.folder)
    assert code == INCOMPLETE, "the writer's first number is its start's, and comes again"
    assert "comes again" in text
    assert "remark: wal/" in text


def test_frames_beyond_the_next_segment_do_not_count(tmp_path: Path, check: Check) -> None:
    log = with_tail(tmp_path / "log")
    entries = [*log.entries[:317]]
    log.entries, log.tree.leaves, log.flushed = entries, log.tree.leaves[:317], 317
    log.tree.known.clear()
    log.payloads = {index: payload for index, payload in log.payloads.items() if index < 317}
    log.new_segment()
    log.append(Entries("00000000000000b2").entry("note"))
    log.flush()
    log.publish()
    code, text = check(log.folder)
    assert code == OK
    assert ": 318 entries" in text
    assert "broken" not in text


def test_payloads(tmp_path: Path, check: Check) -> None:
    log = ModelLog(tmp_path / "log")
    entries = Entries()
    log.append(entries.decision(1, salted(1)), salted(1))
    log.append(entries.decision(2, salted(2)), ERASED)
    log.append(entries.decision(3, salted(3)), salted(4))
    log.flush()
    code, text = check(log.folder)
    assert code == BROKEN
    assert "payload of entry 2 in wal/00000000000000000000.seg byte 64: the entry does not commit to it" in text
    assert "payload of entry 1 in wal/00000000000000000000.seg byte 64: it is erased, and no erasure entry says" in text
    assert "payload of entry 0" not in text


def test_an_erased_payload_that_an_entry_explains(tmp_path: Path, check: Check, auditor: ModuleType) -> None:
    log = ModelLog(tmp_path / "log")
    entries = Entries()
    log.append(entries.decision(1, salted(1)), ERASED)
    named = json.loads(log.entries[0])["arguments"]["commitment"]
    log.append(entries.entry("erasure", writer=True, index=0, commitment=named))
    log.flush()
    log.publish()
    assert check(log.folder)[0] == OK
    assert auditor.crc32c(b"123456789") == 0xE3069283


def two_payloads(folder: Path, *payloads: Any, later: dict[str, Any] | None = None) -> Path:
    """A run's request and a decision that names it too, with the payload items given for entry 0 and 1, in order."""
    log, entries = ModelLog(folder), Entries()
    request = {"bytes": 9, "commitment": commitment(salted(1))}
    log.append(entries.entry("run", request=request))
    log.append(entries.decision(1, salted(2)).replace(b'"run":"r3"', f'"request":"{request["commitment"]}"'.encode()))
    if later is not None:
        log.append(entries.entry("erasure", writer=True, **later))
    items = b"".join(log.item(number, payload) for number, payload in payloads)
    log.payloads[0] = None
    log.item = lambda *_: items  # type: ignore[method-assign]
    log.flush()
    log.publish()
    return log.folder


@pytest.mark.parametrize(
    ("items", "grade", "says"),
    [
        ([(0, 1), (1, 2)], OK, ""),
        ([(0, 1), (1, 1)], BROKEN, "payload of entry 1 in wal/00000000000000000000.seg byte 64: the entry does not"),
        ([(0, 2), (1, 2)], BROKEN, "payload of entry 0 in wal/00000000000000000000.seg byte 64: the entry does not"),
        ([(0, 1), (1, 2), (1, 2)], BROKEN, "a payload of entry 1 of the frame comes twice or out of order"),
        ([(0, 1), (1, 2), (1, 1)], BROKEN, "comes twice or out of order"),
        ([(1, 2), (0, 1)], BROKEN, "a payload of entry 0 of the frame comes twice or out of order"),
        ([(0, 1)], INCOMPLETE, "payload of entry 1 in wal/00000000000000000000.seg byte 64: the entry commits to one"),
        ([], INCOMPLETE, "payload of entry 0 in wal/00000000000000000000.seg byte 64: the entry commits to one"),
    ],
)
def test_payloads_in_places_of_others(
    items: list[tuple[int, int]], grade: int, says: str, tmp_path: Path, check: Check
) -> None:
    folder = two_payloads(tmp_path / "log", *[(number, salted(seed)) for number, seed in items])
    code, text = check(folder)
    assert (code, says in text) == (grade, True), text


@pytest.mark.parametrize(
    ("erasure", "grade"),
    [
        ({"index": 1, "commitment": commitment(salted(2))}, OK),
        ({"index": 1}, OK),
        ({"index": 1, "commitment": commitment(salted(1))}, INCOMPLETE),
        ({"index": 0, "commitment": commitment(salted(2))}, INCOMPLETE),
        ({"index": 0}, INCOMPLETE),
        ({"index": True}, INCOMPLETE),
        ({"commitment": commitment(salted(2))}, INCOMPLETE),
        (None, INCOMPLETE),
    ],
)
def test_an_erasure_goes_by_index(erasure: dict[str, Any] | None, grade: int, tmp_path: Path, check: Check) -> None:
    folder = two_payloads(tmp_path / "log", (0, salted(1)), (1, ERASED), later=erasure)
    code, text = check(folder)
    assert code == grade, text
    assert ("payload of entry 1 in" in text) == (grade != OK)


def test_only_the_writers_own_members_commit(tmp_path: Path, check: Check) -> None:
    """A program may have members of these names, and repeat names deeper inside."""
    log, entries = ModelLog(tmp_path / "log"), Entries()
    log.append(entries.entry("note", arguments={"commitment": commitment(salted(1))}, request="none"))
    log.append(entries.entry("note", usage={"a": 1}).replace(b'{"a":1}', b'{"a":1,"a":2}'))
    log.append(entries.entry("note", oversize={"bytes": 9, "commitment": commitment(salted(2))}), salted(2))
    log.flush()
    log.publish()
    code, text = check(log.folder)
    assert code == OK, text


def test_many_unlogged_are_one_finding(tmp_path: Path, check: Check) -> None:
    log, entries = ModelLog(tmp_path / "log"), Entries()
    for count in range(1, 51):
        log.append(entries.entry("denied_unlogged", writer=True, count=count))
    log.flush()
    log.publish()
    code, text = check(log.folder)
    assert code == OK
    assert text.count("unlogged") == 1
    assert "entry 0 in tile/entries/000.p/50, and 49 later entries: the log itself says that 1275 actions were" in text


# --- completeness -----------------------------------------------------------------------------------------------------


def entries_with(numbers: list[int], *after: dict[str, Any]) -> list[bytes]:
    maker = Entries()
    made = [maker.entry("note", seq=number) for number in numbers]
    return made + [maker.entry("recovery", writer=True, of=maker.producer, **members) for members in after]


@pytest.mark.parametrize(
    ("numbers", "after", "says"),
    [
        ([1, 2, 3], [], ""),
        ([2, 3], [], "numbers 1..1 of producer"),
        ([1, 2, 5, 6], [], "numbers 3..4 of producer"),
        ([1, 2, 5], [{"lost": [[3, 4]]}], ""),
        ([1, 2, 9], [{"lost": [[3, 4], [6, 6]]}], "numbers 5..5 of producer|numbers 7..8 of producer"),
        ([1, 2, 9], [{"lost": [[6, 20]]}, {"lost": [[1, 5]]}], ""),
        ([1, 3, 2], [], "comes again or late"),
        ([1, 2, 2], [], "number 2 of producer"),
        ([1, 2], [{"lost": [["a", 3]]}], "not pairs of numbers"),
        ([1, 2], [{"lost": 3}], "lost of the entry is not a list"),
    ],
)
def test_numbers(numbers: list[int], after: list[dict[str, Any]], says: str, tmp_path: Path, check: Check) -> None:
    log = ModelLog(tmp_path / "log")
    for entry in entries_with(numbers, *after):
        log.append(entry)
    log.flush()
    log.publish()
    code, text = check(log.folder)
    assert code == (INCOMPLETE if says else OK), text
    assert all(part in text for part in says.split("|"))


def test_a_gap_is_incomplete_and_an_earlier_recovery_explains_nothing(tmp_path: Path, check: Check) -> None:
    log = ModelLog(tmp_path / "log")
    maker = Entries()
    log.append(maker.entry("recovery", writer=True, of=maker.producer, lost=[[1, 4]]))
    log.append(maker.entry("note", seq=5))
    log.append(maker.entry("gap", writer=True, count=17, producers=[maker.producer]))
    log.flush()
    log.publish()
    code, text = check(log.folder)
    assert code == INCOMPLETE
    assert "numbers 1..4 of producer 00000000000000a1 are missing before it" in text
    assert "17 actions were let through unlogged" in text


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (b"\xff", "not JSON"),
        (b"[" * 5_000, "not JSON"),
        (b'{"v":1,"kind":"note","producer":"00000000000000a1","seq":1' + b"0" * 5_000 + b',"time":"x"}', "not JSON"),
        (b'{"v":1}', "not an object of version 1 that begins with"),
        (
            b'{"v":true,"kind":"note","producer":"00000000000000a1","seq":2,"time":"2026-11-21T00:00:00.000Z"}',
            "not an object of version 1",
        ),
        (b"[1]", "not an object of version 1 that begins with"),
        (b'{"v":1,"kind":"note","producer":"00000000000000a1","seq":NaN,"time":"x"}', "seq of the entry"),
        (b'{"v":1,"kind":"note","producer":"00000000000000a1","seq":true,"time":"x"}', "seq of the entry"),
        (b'{"v":1,"kind":"note","kind":"note","producer":"00000000000000a1","seq":1,"time":"x"}', "stands twice"),
        (b'{"v":1,"kind":"note","producer":"1","seq":1,"time":"x"}', "producer of the entry"),
        (Entries().entry("outcome", status="ok"), "of of the entry is not the id of a decision"),
        (Entries().entry("outcome", of="r3-1"), "of of the entry is not the id of a decision"),
        (Entries().entry("decision", id=f"{'a' * 16}-01", decision="deny"), "id of the entry is not the id"),
        (b'{"v":1,"kind":"note","producer":"00000000000000a1","seq":1,"time":"yesterday"}', "time of the entry"),
        (
            b'{"v":1,"kind":"start","producer":"00000000000000a1","seq":2,"time":"2026-11-21T00:00:00.000Z","siblings":[1]}',
            "has no size",
        ),
        (
            b'{"v":1,"kind":"start","producer":"00000000000000a1","seq":2,"time":"2026-11-21T00:00:00.000Z","siblings":7}',
            "siblings",
        ),
    ],
)
def test_malformed_entries_are_named(entry: bytes, says: str, tmp_path: Path, check: Check) -> None:
    log = ModelLog(tmp_path / "log")
    log.append(Entries().entry("note"))
    log.append(entry)
    log.flush()
    log.publish()
    code, text = check(log.folder)
    assert code == (INCOMPLETE if b"siblings" in entry else BROKEN)
    assert f"entry 1 in {'tile/entries/000.p/2'}: " in text
    assert says in text


# --- slots and epochs -------------------------------------------------------------------------------------------------


def gate(folder: Path) -> list[ModelLog]:
    """An audit directory: slot 0 with two epochs, slot 1 that saw the first."""
    first = ModelLog(folder / "0" / "epochs" / "1", f"{ORIGIN}/0/1")
    maker = fill(first, 60)
    note = first.published[-1]
    claim = {"origin": first.origin, "size": 60, "root": note.split("\n")[2]}
    second = ModelLog(folder / "0" / "second", f"{ORIGIN}/0/2")
    second.append(maker.entry("epoch", writer=True, **claim, checkpoint=note))
    second.append(maker.entry("note"))
    other = ModelLog(folder / "1", f"{ORIGIN}/1/1")
    other.append(Entries("00000000000000b2").start(other.origin, siblings=[claim]))
    for log in (second, other):
        log.flush()
        log.publish()
    for path in second.folder.iterdir():
        path.rename(folder / "0" / path.name)
    second.folder.rmdir()
    second.folder = folder / "0"
    return [first, second, other]


def test_slots_and_epochs_are_seen_as_one(tmp_path: Path, check: Check) -> None:
    first, second, other = gate(tmp_path / "audit")
    code, text = check(tmp_path / "audit", "--key", first.key)
    assert code == OK, text
    for log, label in ((first, "0/epochs/1/"), (second, "0/"), (other, "1/")):
        assert f"{label} {log.origin}: {log.size} entries" in text
        (tmp_path / f"since{log.origin.replace('/', '-')}").write_text(log.published[-1])
    since = [item for path in tmp_path.glob("since*") for item in ("--since", path)]
    code, text = check(tmp_path / "audit", "--key", other.key, *since)
    assert (code, "unanchored" in text) == (OK, False)
    assert check(tmp_path / "audit" / "1")[0] == OK, "one slot by itself says nothing of the others"
    shutil.rmtree(tmp_path / "audit" / "1")
    code, text = check(tmp_path / "audit", *since)
    assert code == BROKEN
    assert f"no log of {other.origin} is here" in text


def test_a_missing_slot_or_epoch_shows(tmp_path: Path, check: Check) -> None:
    gate(tmp_path / "audit")
    copied = shutil.copytree(tmp_path / "audit", tmp_path / "copy")
    shutil.rmtree(copied / "0" / "epochs")
    code, text = check(copied)
    assert code == BROKEN
    assert f"it saw a log beside it, {ORIGIN}/0/1, with 60 entries; it is gone" in text
    assert f"it saw the epoch before, {ORIGIN}/0/1, with 60 entries; it is not here" in text
    code, text = check(copied / "0")
    assert code == INCOMPLETE
    assert "are missing before it" not in text, "its producers began in the epoch that is not here"
    shutil.rmtree(copied / "0")
    code, text = check(copied)
    assert code == BROKEN
    assert "1/entry 0 in tile/entries/000.p/1: it saw a log beside it" in text


def test_a_rolled_back_slot_shows(tmp_path: Path, check: Check) -> None:
    gate(tmp_path / "audit")
    shutil.rmtree(tmp_path / "audit" / "0" / "epochs" / "1")
    shorter = ModelLog(tmp_path / "audit" / "0" / "epochs" / "1", f"{ORIGIN}/0/1")
    fill(shorter, 40)
    code, text = check(tmp_path / "audit")
    assert code == BROKEN
    assert "with 60 entries; now it has 40: cut or rolled back" in text


# --- cosignatures, proofs, keys, and what cannot be used --------------------------------------------------------------


def test_a_cosignature_is_an_anchor(copy: Callable[[], Path], small: ModelLog, check: Check) -> None:
    folder = copy()
    witness = Signer(7)
    note = witness.cosigned("witness.example", small.published[-1], 1_790_000_000)
    (folder / "checkpoint").write_text(note)
    keys = ["--key", small.key, "--key", witness.verifier_key("witness.example", 4)]
    code, text = check(folder, *keys)
    assert code == OK
    assert "anchored      0..699 by witness.example's cosignature in checkpoint (size 700)" in text
    assert "anchored      nothing" in check(folder, "--key", small.key)[1], "a stranger's line means nothing"
    line = note.splitlines()[-1]
    damaged = line[:-8] + ("A" if line[-8] != "A" else "B") + line[-7:]
    (folder / "checkpoint").write_text(note.replace(line, damaged))
    code, text = check(folder, *keys)
    assert code == BROKEN
    assert "checkpoint: the signature of witness.example is not one over this text" in text


def test_proofs(small: ModelLog, tmp_path: Path, check: Check) -> None:
    proof, entry = tmp_path / "proof", tmp_path / "entry"
    arguments = ["--proof", proof, "--entry", entry]
    for index in (0, 1, 255, 256, 511, 698, 699):
        proof.write_text(small.proof(index))
        entry.write_bytes(small.entries[index])
        assert check(small.folder, *arguments)[0] == OK
        assert check("--key", small.key, *arguments)[0] == OK
        entry.write_bytes(small.entries[index] + b" ")
        code, text = check(small.folder, *arguments)
        assert code == BROKEN
        assert "does not lead from this entry" in text
    entry.write_bytes(small.entries[5])
    good = small.proof(5)
    lines = good.split("\n")
    proof.write_text(good.replace("index", "extra aGk=\nindex"))
    assert check(small.folder, *arguments)[0] == OK
    bad = [good.replace("@v1", "@v2"), good.replace("index 5", "index 05"), good.replace("index 5", "index 700")]
    bad += [
        "",
        "\n",
        "c2sp.org/tlog-proof@v1",
        "\n".join(lines[:2] + lines[3:]),
        "\n".join(lines[:3] + lines[2:]),
        good[:-2],
    ]
    for text in bad:
        proof.write_text(text)
        assert check(small.folder, *arguments)[0] == BROKEN, text
    proof.write_text(good)
    assert check("--key", Signer(3).verifier_key(ORIGIN), *arguments)[0] == BROKEN
    assert check(*arguments)[0] == UNUSABLE
    assert check(small.folder, "--proof", proof)[0] == UNUSABLE


def test_what_cannot_be_used(small: ModelLog, tmp_path: Path, check: Check) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "keys").write_text(f"{Signer(3).verifier_key('other.example')}\n{small.key}\n")
    assert check(small.folder, "--key", tmp_path / "keys")[0] == OK
    for arguments in (
        [],
        [tmp_path / "absent"],
        [tmp_path / "empty"],
        [small.folder, "--key", "nonsense"],
        [small.folder, "--key", small.key[:-4] + "AAA="],
        [small.folder, "--key", small.key.replace("+", "+f", 1)],
        [small.folder, "--key", small.folder],
        [small.folder, "--since", tmp_path / "absent"],
        [small.folder, "--since", tmp_path / "keys"],
    ):
        code, text = check(*arguments)
        assert code == UNUSABLE, text
        assert text.startswith("unusable: ")


def test_control_characters_stay_out_of_the_terminal(tmp_path: Path, check: Check) -> None:
    log = ModelLog(tmp_path / "log")
    entry = Entries().entry(
        "epoch", writer=True, origin="\x1b[31mred", size=1, root=base64.b64encode(bytes(32)).decode()
    )
    log.append(entry)
    log.flush()
    _, text = check(log.folder)
    assert "\x1b" not in text
    assert "\\x1b[31mred" in text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_no_bytes_end_in_a_traceback(data: st.DataObject, tmp_path: Path, check: Check) -> None:
    """Small logs with a file replaced, cut or patched; the mutant is never called whole."""
    folder = tmp_path / "log"
    if not folder.exists():
        log = ModelLog(folder)
        fill(log, 20, batch=7, every=2)
        shutil.copytree(folder, tmp_path / "whole")
    name = data.draw(st.sampled_from(sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())))
    whole = (tmp_path / "whole" / name).read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, 64))
    patched = whole[:start] + data.draw(st.binary(max_size=64)) + whole[start + length :]
    (folder / name).write_bytes(patched)
    code, text = check(folder)
    (folder / name).write_bytes(whole)
    assert text
    if name not in ("checkpoints.log", "verifier.pub"):
        assert (code == OK) == (patched == whole), (name, text)
