"""``tollkeeper audit ...`` and ``tollkeeper why``: what people read, exit codes, messages for what cannot be done."""

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tollkeeper import Gate, _native
from tollkeeper.audit import AuditLog
from tollkeeper.errors import AuditError

sys.path.insert(0, str(Path(__file__).resolve().parent))

import log_files

Cli = Callable[..., Any]
Snapshot = Callable[[Any], None]
ORIGIN = "example.com/gate"
HIDDEN = ("\x1b", "\u202e", "\x9b", "\u200b")


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    """The logs of a gate's two processes, with decisions of every kind; nothing is signed."""
    log_files.gate_logs(tmp_path / "audit")
    return tmp_path / "audit"


def opened(folder: Path, **options: Any) -> AuditLog:
    """A log that takes little room."""
    return AuditLog.open(folder, origin=ORIGIN, ring_bytes=512 << 10, segment_bytes=16 << 20, **options)


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    """A log of the real writer: eight notes with a payload each, between a start and a stop."""
    with opened(tmp_path / "audit") as log:
        for number in range(8):
            log.append({"number": number}, private={"secret": number})
    return tmp_path / "audit"


@pytest.fixture
def live(tmp_path: Path) -> Iterator[AuditLog]:
    """The same, with this process as its writer."""
    with opened(tmp_path / "audit") as log:
        for number in range(8):
            log.append({"number": number}, private={"secret": number})
        log.checkpoint()
        yield log


def lines(done: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


# --- show, tail, export -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kind", "desicion"), "no entry is of the kind `desicion`; is `decision` meant?"),
        (("--code", "policy.forbiden"), "no decision has the code `policy.forbiden`; is `policy.forbidden` meant?"),
        (("--code", "nonsense"), "no decision has the code `nonsense`\n"),
    ],
)
def test_what_no_entry_can_have_is_not_looked_for(cli: Cli, words: tuple[str, ...], said: str) -> None:
    done = cli("audit", "show", *words)
    assert done.code == 2
    assert said in done.err


@pytest.mark.usefixtures("audit")
def test_audit_show(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("audit", "show"))


@pytest.mark.usefixtures("audit")
@pytest.mark.parametrize(
    ("words", "places"),
    [
        (("--kind", "decision", "--decision", "allow"), ["0:3", "0:5"]),
        (("--principal", "guest"), ["1:2"]),
        (("--principal", 'Agent::"guest"'), ["1:2"]),
        (("--tool", "send_email"), ["0:7", "0:8"]),
        (("--tool", "call_model"), ["0:3", "0:9"]),
        (("--code", "policy"), ["1:2", "0:7", "0:8"]),
        (("--code", "policy.forbidden"), ["0:8"]),
        (("--code", "pol"), []),
        (("--run", "r2"), ["1:2"]),
        (("--id", "00000000000000a1-1"), ["0:3", "0:4", "0:5", "0:7"]),
        (("--since", "2026-11-21T17:00:08Z"), ["0:7", "0:8", "0:9"]),
        (("--since", "2026-11-21T18:00:08+01:00", "--until", "2026-11-21T17:00:09"), ["0:7"]),
        (("--until", "2026-11-21"), []),
        (("--since", "15m", "--until", "1s"), []),
        (("--limit", "2"), ["0:8", "0:9"]),
    ],
)
def test_audit_show_chooses(cli: Cli, words: tuple[str, ...], places: list[str]) -> None:
    assert [f"{line['log']}:{line['index']}" for line in lines(cli("audit", "show", "--json", *words))] == places


@pytest.mark.usefixtures("audit")
def test_audit_show_limits_the_table(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("audit", "show", "--limit", "1"))
    snapshot_of_none = cli("audit", "show", "--code", "internal.panic")
    assert (snapshot_of_none.out, snapshot_of_none.err) == ("", "no entry fits\n")


def test_entries_are_printed_as_they_are_stored(cli: Cli, audit: Path) -> None:
    raw = _native.AuditReader(audit / "1").entry(3)
    done = cli("audit", "show", "--json", "--kind", "note")
    assert done.out == f'{{"log":"1","index":3,"entry":{raw.decode()}}}\n'


def test_what_is_no_json_is_shown_as_bytes(cli: Cli, tmp_path: Path) -> None:
    log = log_files.LogFiles(tmp_path / "audit")
    hostile = [b"", b"\xff\x1b[2J", b'{"kind":\n"note"}', b"[1]", b'{"kind":[1],"time":{},"id":7}', b'{"a":' * 5_000]
    for entry in hostile:
        log.add_bytes(entry)
    log.flush()
    found = lines(cli("audit", "show", "--json"))
    assert [base64.b64decode(line["bytes"]) if "bytes" in line else line["entry"] for line in found] == [
        *hostile[:4],
        json.loads(hostile[4]),
        hostile[5],
    ]
    for words in (("show",), ("tail",), ("show", "--kind", "x"), ("export",), ("status",), ("replay",)):
        done = cli("audit", *words)
        assert done.code in {0, 1}
        assert "Traceback" not in done.err
        assert not any(hidden in done.out for hidden in HIDDEN[:1])
    assert cli("why", "last").code == 2


@pytest.mark.usefixtures("audit")
@pytest.mark.parametrize("words", [("audit", "show"), ("audit", "tail", "-n", "99"), ("why", "00000000000000b2-1")])
def test_hidden_characters_are_escaped(cli: Cli, words: tuple[str, ...]) -> None:
    done = cli(*words)
    assert "\\u{202e}" in done.out
    assert not any(hidden in done.out for hidden in HIDDEN)


def on_a_terminal(folder: Path, *words: str) -> str:
    """What a command prints where its output is a terminal."""
    reader, writer = os.openpty()
    with subprocess.Popen(  # noqa: S603 - the words are those of the tests
        [sys.executable, "-m", "tollkeeper", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(_native.__file__).parent.parent), "NO_COLOR": "1"},
        stdout=writer,
        stderr=subprocess.PIPE,
    ) as command:
        os.close(writer)
        text = b""
        while True:
            try:
                chunk = os.read(reader, 65_536)
            except OSError:
                # The other end is closed.
                break
            if not chunk:
                break
            text += chunk
        os.close(reader)
        assert command.wait() == 0
    return text.decode()


@pytest.mark.usefixtures("audit")
@pytest.mark.parametrize("words", [("show", "--json"), ("tail", "--json", "-n", "99"), ("export", "--with-payloads")])
def test_json_on_a_terminal_has_no_hidden_characters(tmp_path: Path, words: tuple[str, ...]) -> None:
    text = on_a_terminal(tmp_path, "audit", *words)
    assert not any(hidden in text for hidden in HIDDEN)
    notes = [json.loads(line)["entry"] for line in text.splitlines() if '"note"' in line]
    assert [entry["text"] for entry in notes] == [log_files.HOSTILE]


@pytest.mark.usefixtures("audit")
def test_audit_tail(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("audit", "tail", "-n", "3"))


def test_audit_tail_follows_through_a_rotation_until_it_is_interrupted(live: AuditLog, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tollkeeper", "audit", "tail", "-f", "-n", "0", "--json", "--kind", "note"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(_native.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout
        assert command.stderr
        # What is appended until the first poll is seen or not: so until one is.
        for number in range(100):
            live.append({"number": 100 + number})
            if number % 10 == 9:
                live.rotate()
            live.flush()
            time.sleep(0.05)
        live.append({"number": "last"})
        live.flush()
        seen: list[Any] = []
        while not seen or seen[-1] != "last":
            seen.append(json.loads(command.stdout.readline())["entry"]["number"])
        command.send_signal(signal.SIGINT)
        assert command.wait(10) == 0
        assert command.stderr.read() == ""
    assert seen[:-1] == list(range(seen[0], 200))


@pytest.mark.usefixtures("audit")
def test_audit_export(cli: Cli, tmp_path: Path) -> None:
    done = cli("audit", "export", "--out", "out.jsonl", "--with-payloads")
    assert (done.code, done.out, done.err) == (0, "", "wrote 14 entries to out.jsonl\n")
    file = tmp_path / "out.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = [json.loads(line) for line in file.read_text().splitlines()]
    (run,) = [line for line in found if line["entry"]["kind"] == "run"]
    assert run["payload_text"] == "Find the offer and send it to Bob.\nThanks"
    (mail,) = [line for line in found if line["entry"].get("id") == "00000000000000a1-4"]
    assert mail["payload"] == {"input": {"to": "ann@example.com"}}
    salted = b"\2" + base64.b64decode(mail["salt"]) + b'{"input":{"to":"ann@example.com"}}'
    commitment = base64.b64encode(hashlib.sha256(salted).digest()).decode()
    assert mail["entry"]["arguments"]["commitment"] == commitment
    assert sum("payload" in line for line in found) == 3
    assert "payload" not in cli("audit", "export").out


# --- verify, prove ----------------------------------------------------------------------------------------------------


def test_audit_verify(cli: Cli, snapshot: Snapshot, signed: Path) -> None:
    snapshot(cli("audit", "verify"))
    done = cli("audit", "verify", "--key", str(signed / "verifier.pub"), "--json")
    report = json.loads(done.out)
    assert (done.code, report["verdict"], report["slots"][0]["epochs"][0]["key_source"]) == (0, "ok", "given")


def test_audit_verify_with_a_key_and_a_checkpoint(cli: Cli, snapshot: Snapshot, signed: Path, tmp_path: Path) -> None:
    shutil.copy(signed / "checkpoint", tmp_path / "kept")
    with opened(signed) as log:
        log.append({"more": True})
    shutil.copy(signed / "verifier.pub", tmp_path / "key")
    snapshot(cli("audit", "verify", "--key", "key", "--since", "kept"))
    key = (signed / "verifier.pub").read_text().strip()
    assert cli("audit", "verify", "audit", "--key", key, "--since", "kept").code == 0


def test_audit_verify_names_the_tail(cli: Cli, tmp_path: Path, snapshot: Snapshot) -> None:
    with opened(tmp_path / "audit", checkpoint_interval_ms=3_600_000) as log:
        log.checkpoint()
        log.append({"number": 1})
        log.flush()
        snapshot(cli("audit", "verify"))


def test_audit_verify_broken(cli: Cli, signed: Path) -> None:
    (bundle,) = (signed / "tile" / "entries").rglob("10")
    data = bytearray(bundle.read_bytes())
    data[data.index(b'"number":3') + 9] ^= 1
    bundle.write_bytes(data)
    done = cli("audit", "verify")
    assert done.code == 3
    assert "entry 4" in done.out
    assert "what still holds: log 0" in done.out


def test_audit_verify_sees_a_log_that_was_cut_back(cli: Cli, signed: Path, tmp_path: Path) -> None:
    shutil.copytree(signed, tmp_path / "old")
    with opened(signed) as log:
        log.append({"more": True})
    done = cli("audit", "verify", "old", "--since", "audit/checkpoint")
    assert done.code == 3
    assert "does not go on from the checkpoint you kept" in done.out
    assert cli("audit", "verify", "old").code == 0


@pytest.mark.usefixtures("signed")
@pytest.mark.parametrize(
    "words",
    [
        ("--key", "none"),
        ("--key", "tollkeeper.toml"),
        ("--key", "a+b+c"),
        ("--since", "none"),
        ("--since", "audit/verifier.pub"),
    ],
)
def test_audit_verify_refuses(cli: Cli, tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "tollkeeper.toml").write_text("")
    done = cli("audit", "verify", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err


def test_a_proof_holds_without_the_log(cli: Cli, signed: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    key = (signed / "verifier.pub").read_text().strip()
    done = cli("audit", "prove", "4", "--out", "proof", "--entry", "entry")
    assert (done.code, done.out) == (0, "")
    assert done.err == "wrote entry 0:4 to entry\nwrote the proof of entry 0:4 to proof\n"
    assert cli("audit", "prove", "0:4").out == (tmp_path / "proof").read_text()
    shutil.rmtree(signed)
    done = cli("audit", "check-proof", "proof", "--key", key, "--entry", "entry")
    assert (done.code, done.out.splitlines()[0]) == (0, f"holds: entry 4 of {ORIGIN}")
    entry = (tmp_path / "entry").read_text()
    assert cli("audit", "check-proof", "proof", "--key", key, "--entry", "-", stdin=f"{entry}\n").code == 0
    done = cli("audit", "check-proof", "proof", "--key", key, "--entry", "-", stdin=entry.replace("3", "4"))
    assert (done.code, done.out) == (1, "does not hold: the proof does not lead to the root\n")
    other = _native.audit_keygen(tmp_path / "other.key", ORIGIN).strip()
    done = cli("audit", "check-proof", "proof", "--key", other, "--entry", "entry", "--json")
    assert (done.code, json.loads(done.out)["holds"]) == (1, False)
    (tmp_path / "key").write_text(key)
    snapshot(cli("audit", "check-proof", "entry", "--key", "key", "--entry", "entry"))
    for words in (
        ("none", "key", "entry"),
        ("proof", "entry", "entry"),
        ("proof", "none", "entry"),
        ("proof", "key", "."),
    ):
        done = cli("audit", "check-proof", words[0], "--key", words[1], "--entry", words[2])
        assert (done.code, done.out, done.err.startswith("error: ")) == (2, "", True)


@pytest.mark.usefixtures("signed")
@pytest.mark.parametrize("place", ["10", "0:10", "1:0", "0/2:0", "-1", "x", "99999999999999999999", "0:", ":0"])
def test_a_place_that_is_none(cli: Cli, place: str) -> None:
    done = cli("audit", "prove", "--", place)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")


@pytest.mark.usefixtures("audit")
def test_a_place_that_two_logs_have(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("audit", "prove", "2"))


# --- erase, keygen, rotate, status, checkpoints -----------------------------------------------------------------------


def test_audit_erase(cli: Cli, signed: Path) -> None:
    done = cli("audit", "erase", "4")
    assert done.code == 0
    assert done.out.splitlines()[1] == "would erase the payload of 12 bytes and its salt; the entry and its proofs stay"
    assert _native.AuditReader(signed).payload(4) == b'{"secret":3}'
    done = cli("audit", "erase", "4", "--yes")
    assert done.code == 0
    assert done.out.splitlines()[1] == "erased the payload of 12 bytes and its salt; the entry and its proofs stay"
    assert _native.AuditReader(signed).payload(4) is None
    (said,) = lines(cli("audit", "show", "--kind", "erasure", "--json"))
    for words in ((), ("--yes",)):
        done = cli("audit", "erase", "4", *words)
        assert (done.code, done.err) == (0, "")
        assert done.out.splitlines()[1] == f"its payload is erased already, says entry 0:{said['index']}"
    done = cli("audit", "erase", "0", "--yes")
    assert (done.code, done.err) == (2, "error: entry 0:0 never had a payload\n")
    assert cli("audit", "verify").code == 0
    assert lines(cli("audit", "show", "--kind", "erasure", "--json"))[0]["entry"]["index"] == 4


def request_to_erase(folder: Path, index: int) -> Path:
    """The file that asks for the payload of an entry of the first epoch."""
    entry = json.loads(_native.AuditReader(folder).entry(index))
    commitment = base64.b64decode(entry["private"]["commitment"])
    return folder / "erase" / f"1.{index}.{base64.urlsafe_b64encode(commitment).decode().rstrip('=')}"


def test_a_live_process_is_asked_to_erase(cli: Cli, live: AuditLog) -> None:
    request = request_to_erase(live.folder, 4)
    ended = threading.Event()

    def erase_when_asked() -> None:
        # As the writer does, if that has not done it by then.
        while not ended.wait(0.005):
            if request.exists():
                with contextlib.suppress(AuditError):
                    live.erase(4)
                request.unlink(missing_ok=True)

    thread = threading.Thread(target=erase_when_asked)
    thread.start()
    try:
        done = cli("audit", "erase", "4", "--yes")
    finally:
        ended.set()
        thread.join()
    assert (done.code, done.out.splitlines()[1].partition(", says entry 0:")[0]) == (
        0,
        "erased the payload of 12 bytes and its salt",
    )
    assert done.err == f"the log is in use by process {os.getpid()}; asked it to erase\n"
    live.flush()
    assert _native.AuditReader(live.folder).payload(4) is None
    assert [_native.AuditReader(live.folder).payload(index) is None for index in (3, 5)] == [False, False]


@contextlib.contextmanager
def asked_without_an_answer(folder: Path, index: int) -> Iterator["subprocess.Popen[str]"]:
    """The command, waiting for a process that has the log and does nothing."""
    with (folder / "ring").open("r+b") as ring:
        fcntl.fcntl(ring, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
        with subprocess.Popen(  # noqa: S603 - the words are those of the tests
            [sys.executable, "-m", "tollkeeper", "audit", "erase", f"0:{index}", str(folder), "--yes"],
            env={**os.environ, "PYTHONPATH": str(Path(_native.__file__).parent.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as command:
            request = request_to_erase(folder, index)
            while not request.exists():
                assert command.poll() is None
                time.sleep(0.005)
            assert [file.name for file in request.parent.iterdir()] == [request.name]
            yield command


def test_a_request_to_erase_waits(signed: Path) -> None:
    with asked_without_an_answer(signed, 4) as command:
        out, err = command.communicate()
    assert (command.returncode, len(out.splitlines())) == (1, 1)
    assert err.splitlines()[1] == f"not erased after 5 s; the request waits in {signed / 'erase'}"
    assert request_to_erase(signed, 4).exists()


@pytest.mark.parametrize("erased", [False, True])
def test_nothing_is_erased_in_another_epoch(signed: Path, tmp_path: Path, *, erased: bool) -> None:
    # How the log looks once the next epoch has begun, with an erasure at the same index.
    shutil.copytree(signed, tmp_path / "next")
    request = request_to_erase(signed, 4)
    with opened(tmp_path / "next") as log:
        if erased:
            log.erase(4)
        log.rotate()
        for number in range(8):
            log.append({"number": number}, private={"other": number})
        log.flush()
        log.erase(4)
    with asked_without_an_answer(signed, 4) as command:
        (signed / "epochs").mkdir(exist_ok=True)
        for name in ("wal", "tile", "checkpoint"):
            shutil.rmtree(signed / name) if (signed / name).is_dir() else (signed / name).unlink()
            shutil.move(tmp_path / "next" / name, signed / name)
        time.sleep(0.3)
        shutil.move(tmp_path / "next" / "epochs" / "1", signed / "epochs" / "1")
        out, err = command.communicate()
    if erased:
        assert (command.returncode, out.splitlines()[1].partition(", says entry 0:")[0]) == (
            0,
            "erased the payload of 12 bytes and its salt",
        )
        return
    assert (command.returncode, len(out.splitlines())) == (1, 1)
    assert err.splitlines()[1:] == [
        "nothing was erased: epoch 1 of log 0 has ended in the meantime, and no process writes to a finished epoch",
        f"if all payloads of that epoch may go, remove {signed / 'epochs' / '1' / 'wal'}",
    ]
    assert not request.exists()
    assert _native.AuditReader(signed / "epochs" / "1").payload(4) == b'{"secret":3}'


@pytest.mark.parametrize("name", ["private", "arguments", "request", "oversize"])
def test_the_commitment_to_what_is_erased(cli: Cli, tmp_path: Path, name: str) -> None:
    log = log_files.LogFiles(tmp_path / "audit")
    log.add("note", {name: ...}, b"secret")
    log.add("note", {name: ...}, b"other")
    log.add("erasure", {"index": 1, "commitment": json.loads(log.entries[1])[name]["commitment"]})
    log.add("note", {name: {"bytes": 5, "commitment": "x"}})
    log.erased.add(1)
    log.flush()
    done = cli("audit", "erase", "0")
    assert (done.code, done.out.splitlines()[1][:36]) == (0, "would erase the payload of 6 bytes a")
    done = cli("audit", "erase", "1", "--yes")
    assert (done.code, done.out.splitlines()[1]) == (0, "its payload is erased already, says entry 0:2")
    assert cli("audit", "erase", "3", "--yes").code == 2


def test_audit_keygen(cli: Cli, tmp_path: Path) -> None:
    done = cli("audit", "keygen", "--origin", ORIGIN)
    file = tmp_path / "audit" / "signer.key"
    assert (done.code, done.out.count("\n"), done.out.startswith(f"{ORIGIN}+")) == (0, 1, True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o400
    assert "PRIVATE" not in done.out + done.err
    again = cli("audit", "keygen", "--origin", ORIGIN)
    assert (again.code, again.out) == (2, "")
    assert again.err.startswith("error: audit/signer.key: there is a key already")
    with opened(tmp_path / "audit") as log:
        assert log.verifier_key.strip() == done.out.strip()
    assert cli("audit", "keygen", "--out", "k", "--origin", "no spaces").code == 2


def test_audit_rotate(cli: Cli, signed: Path) -> None:
    done = cli("audit", "rotate")
    first, second = done.out.splitlines()
    assert done.code == 0
    assert first == "epoch 1 of log 0 is finished: 11 entries, in epochs/1"
    assert second.startswith(f"epoch 2 has the verifier key {ORIGIN}/2+")
    assert cli("audit", "verify").code == 0
    places = [f"{line['log']}:{line['index']}" for line in lines(cli("audit", "show", "--json", "--limit", "3"))]
    assert places[1:] == ["0/2:0", "0/2:1"]
    assert "0:1, 0/2:1" in cli("audit", "prove", "1").err
    assert cli("audit", "prove", "0/2:1").out.startswith("c2sp.org/tlog-proof@v1\nindex 1\n")
    assert cli("audit", "erase", "0:4", "--yes").code == 2
    assert (signed / "epochs" / "1" / "checkpoint").is_file()


def test_a_live_log_is_not_rotated(cli: Cli, live: AuditLog) -> None:
    done = cli("audit", "rotate")
    assert (done.code, done.out) == (2, "")
    assert f"in use by process {os.getpid()}" in done.err
    assert live.origin == ORIGIN


def test_audit_status(cli: Cli, live: AuditLog, tmp_path: Path) -> None:
    state = json.loads(cli("audit", "status", "--json").out)
    assert (state["entries"], state["signed"], state["owner"]) == (9, 9, f"process {os.getpid()}")
    assert (state["alone"], state["handed_out"], state["witnesses"]) == (True, None, [])
    assert cli("audit", "status").out.splitlines()[-1] == (
        "nothing outside this directory holds its checkpoints: whoever can write here can rewrite the log"
    )
    live.close()
    (tmp_path / "out").mkdir()
    assert cli("audit", "checkpoints", "--export", "out").code == 0
    out = cli("audit", "status").out
    assert "nobody has it open" in out
    assert out.splitlines()[-1].startswith("last handed out ")


def test_checkpoints_are_handed_to_a_folder(cli: Cli, signed: Path, tmp_path: Path, snapshot: Snapshot) -> None:
    (tmp_path / "out").mkdir()
    snapshot(cli("audit", "checkpoints", "--export", "out"))
    file = tmp_path / "out" / "example.com%2Fgate" / "10"
    assert file.read_bytes() == (signed / "checkpoint").read_bytes()
    assert cli("audit", "checkpoints", "--export", "out").out == ""
    with opened(signed) as log:
        log.append({"more": True})
    assert cli("audit", "checkpoints", "--export", "out").out.splitlines()[-1].endswith(" at 13 entries")
    # A log that was written anew does not replace what was handed over.
    (signed / "exported.json").unlink()
    file.with_name("13").write_text(file.with_name("13").read_text().replace("13", "14"))
    done = cli("audit", "checkpoints", "--export", "out")
    assert done.code == 1
    assert "the log has two histories" in done.err
    assert not (signed / "exported.json").exists()


def test_checkpoints_are_handed_to_a_command(cli: Cli, signed: Path, tmp_path: Path) -> None:
    done = cli("audit", "checkpoints", "--export", "false")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"error: {ORIGIN} at 10 entries: false ended with 1\n"
    done = cli("audit", "checkpoints", "--export", "sh -c 'cat > \"it is\"'")
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "it is").read_text() == (signed / "checkpoint").read_text()
    assert cli("audit", "checkpoints", "--export", "sh -c 'cat > \"it is\"'").out == ""
    for command in ("nothing-like-this", "", "sh 'x"):
        assert cli("audit", "checkpoints", "--export", command).code == 2


def test_audit_checkpoints(cli: Cli, signed: Path) -> None:
    listed = lines(cli("audit", "checkpoints", "--json"))
    assert [one["size"] for one in listed][-1] == 10
    assert listed[-1]["checkpoint"] == (signed / "checkpoint").read_text()
    assert cli("audit", "checkpoints").out.splitlines()[-1].split()[:3] == ["0", ORIGIN, "10"]
    (signed / "exported.json").write_text('{"targets":{"x":{"y":{"size":"z"}}}}')
    assert cli("audit", "status").code == 2


# --- why --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("audit")
@pytest.mark.parametrize(
    "decision", ["last", "00000000000000a1-1", "00000000000000a1-2", "00000000000000a1-3", "00000000000000a1-4"]
)
def test_why(cli: Cli, snapshot: Snapshot, decision: str) -> None:
    snapshot(cli("why", decision))


@pytest.mark.usefixtures("audit")
def test_why_without_the_payload(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("why", "00000000000000b2-1"))


def test_why_without_the_bundle(cli: Cli, audit: Path, snapshot: Snapshot) -> None:
    shutil.rmtree(audit / "bundle")
    snapshot(cli("why", "00000000000000a1-4"))


@pytest.mark.usefixtures("audit")
def test_why_json(cli: Cli) -> None:
    story = json.loads(cli("why", "last", "--any", "--json").out)
    assert (story["log"], story["index"], story["decision"]["code"]) == ("0", 9, "budget.exhausted")
    assert story["change"] == ["tollkeeper budget set-limit acme/research tokens 1d 10800"]
    assert [policy["id"] for policy in story["policies"]] == ["models"]


@pytest.mark.usefixtures("audit")
def test_why_nothing(cli: Cli, snapshot: Snapshot, tmp_path: Path) -> None:
    snapshot(cli("why", "00000000000000a1-99"))
    log_files.LogFiles(tmp_path / "empty").flush()
    assert cli("why", "last", "empty").err == "error: empty: nothing was denied yet\n"


def test_a_command_to_paste_is_quoted(cli: Cli, tmp_path: Path) -> None:
    log = log_files.LogFiles(tmp_path / "audit")
    refused = {"path": "a; rm -rf x", "unit": "tokens", "window": "1d", "limit": 10, "used": 9, "held": 0}
    log.add("decision", {"id": "x-1", "decision": "deny", "code": "budget.exhausted", "budget": {"refused": refused}})
    log.flush()
    out = cli("why", "last").out
    assert "tollkeeper budget set-limit 'a; rm -rf x' tokens 1d 20" in out
    assert "it never refills: only a higher limit helps" in out


@pytest.mark.parametrize("name", ["decision", "code", "would_deny", "tool", "resource", "principal", "session", "run"])
def test_why_obeys_nothing_that_the_log_says(cli: Cli, tmp_path: Path, name: str) -> None:
    log = log_files.LogFiles(tmp_path / "audit")
    for value in (log_files.HOSTILE, [log_files.HOSTILE], {log_files.HOSTILE: 1}):
        id_ = f"x-{len(log.entries)}"
        log.add("decision", {"id": id_, "decision": "deny", "code": "policy.no_permit", name: value})
    log.flush()
    for number in range(3):
        done = cli("why", f"x-{number}")
        assert done.code == 0
        assert "\\u{202e}" in done.out
        assert not any(hidden in done.out + done.err for hidden in HIDDEN)


@pytest.mark.parametrize("wait_ms", [10**18, 10**15, -(10**18), 10**300, 1e300])
def test_why_without_a_date_that_there_is(cli: Cli, tmp_path: Path, wait_ms: float) -> None:
    log = log_files.LogFiles(tmp_path / "audit")
    refused = {"path": "a", "unit": "tokens", "window": "1d", "limit": 10, "used": 9, "held": 0}
    budget = {"refused": {**refused, "retry_after_ms": wait_ms}}
    log.add("decision", {"id": "x-1", "decision": "deny", "code": "budget.exhausted", "budget": budget})
    log.flush()
    done = cli("why", "last")
    assert (done.code, done.err) == (0, "")
    assert "it refills, but the log names no time for it that a calendar has" in done.out


# --- replay -----------------------------------------------------------------------------------------------------------

OTHER = """\
@id("all") permit(principal, action, resource);
@id("b") @approval("boss") permit(principal, action == Action::"search", resource);
"""


@pytest.mark.usefixtures("audit")
def test_audit_replay(cli: Cli, snapshot: Snapshot) -> None:
    snapshot(cli("audit", "replay"))


@pytest.mark.usefixtures("audit")
def test_audit_replay_by_other_policies(cli: Cli, snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "new.cedar").write_text(OTHER)
    snapshot(cli("audit", "replay", "--policies", "new.cedar", "--html", "out.html"))
    page = (tmp_path / "out.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert page.count("<svg ") == 1
    document = json.loads(cli("audit", "replay", "--policies", "new.cedar", "--json").out)
    assert (document["same"], document["different"]) == (2, 3)


def test_a_decision_that_does_not_follow_is_a_difference(cli: Cli, audit: Path, snapshot: Snapshot) -> None:
    log = log_files.LogFiles(audit / "2", producer="00000000000000c3", start_ms=60_000)
    entry = _native.AuditReader(audit / "0").entry(7)
    members = {key: value for key, value in json.loads(entry).items() if key not in {"v", "kind", "producer", "seq"}}
    given = b'{"input":{"to":"bob@else.org"}}'
    forged = {**members, "id": "00000000000000c3-1", "arguments": ..., "decision": "allow", "code": "allow"}
    log.add("decision", forged, given)
    log.add("decision", {**members, "id": "00000000000000c3-2", "bundle": "A" * 43 + "="}, given)
    log.add("decision", {**members, "id": "00000000000000c3-3"}, given)
    log.flush()
    snapshot(cli("audit", "replay", "audit/2"))


TOOL = {"name": "search", "resource": 'Mcp::"web"'}


@pytest.mark.parametrize(
    ("members", "by_others"),
    [
        ({"policies": [[]]}, False),
        ({"policies": 5}, False),
        ({"policies": [["a.cedar", "permit("]]}, True),
        ({"schema": ["s", "x"]}, False),
        ({"entities": ["e", "[5]"]}, False),
        ({"tools": [{**TOOL, "resource": "x"}]}, False),
        ({"tools": [{**TOOL, "schema": {"properties": 5}}]}, False),
        ({"tools": [TOOL, TOOL]}, False),
        ({"mode": "x"}, False),
        ({"on_error": "x"}, False),
    ],
)
def test_a_malformed_bundle_is_skipped(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, Any], *, by_others: bool
) -> None:
    monkeypatch.setattr(log_files, "BUNDLE", {**log_files.BUNDLE, **members})
    log_files.gate_logs(tmp_path / "audit")
    (tmp_path / "new.cedar").write_text(OTHER)
    for words in ((), ("--policies", "new.cedar")):
        done = cli("audit", "replay", "--json", *words)
        assert (done.code, done.err) == (1 if words and by_others else 0, "")
        document = json.loads(done.out)
        skipped = 1 if words and by_others else 6
        assert sum(document["skipped"].values()) == skipped
        assert all(len(reason) <= 500 for reason in document["skipped"])
    for name in ("a1-4", "a1-2", "b2-1"):
        done = cli("why", f"00000000000000{name}")
        assert (done.code, done.err) == (0, "")


def test_an_entry_with_odd_policies_is_decided_again(cli: Cli, audit: Path) -> None:
    log = log_files.LogFiles(audit / "2", producer="00000000000000c3", start_ms=60_000)
    members = json.loads(_native.AuditReader(audit / "0").entry(5))
    members = {key: value for key, value in members.items() if key not in {"v", "kind", "producer", "seq", "time"}}
    odd: list[Any] = [[[]], [{}], {"a": []}, 5, "x"]
    for policies in odd:
        log.add("decision", {**members, "policies": policies, "arguments": ...}, b'{"input":{}}')
    log.flush()
    done = cli("audit", "replay", "audit/2", "--json")
    assert (done.code, json.loads(done.out)["different"]) == (1, 5)


@pytest.mark.parametrize("what", ["folder", "pipe", "loop"])
def test_a_bundle_that_is_no_file_is_skipped(cli: Cli, audit: Path, what: str) -> None:
    (file,) = (audit / "bundle").iterdir()
    file.unlink()
    if what == "folder":
        file.mkdir()
    elif what == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(file)
    done = cli("audit", "replay", "--json")
    assert (done.code, done.err) == (0, "")
    ((reason, count),) = json.loads(done.out)["skipped"].items()
    assert count == 6
    assert file.name in reason
    done = cli("why", "last")
    assert (done.code, done.err) == (0, "")
    assert "which condition failed cannot be shown: " in done.out


@pytest.mark.parametrize("name", ["..", "", "/", "a\0b", "x" * 5_000, "\n"])
def test_why_with_policies_of_any_name(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(log_files, "BUNDLE", {**log_files.BUNDLE, "policies": [[name, log_files.POLICIES]]})
    log_files.gate_logs(tmp_path / "audit")
    done = cli("why", "00000000000000a1-4")
    assert (done.code, done.err) == (0, "")
    assert 'forbid(principal, action == Action::"send_email", resource)' in done.out


@pytest.mark.usefixtures("audit")
def test_audit_replay_refuses(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.cedar").write_text("permit(")
    for words in (
        ("--policies", "bad.cedar"),
        ("--policies", "none.cedar"),
        ("--config", "none.toml"),
        ("--schema", "x"),
        ("--html", "none/out.html"),
    ):
        done = cli("audit", "replay", *words)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith("error: ")
        assert "Traceback" not in done.err


# --- a real gate ------------------------------------------------------------------------------------------------------

CONFIG = """\
[policy]
files = ["mail.cedar"]
entities = "entities.json"
[budget]
file = "budgets.toml"
[audit]
origin = "example.com/gate"
ring_kib = 512
[tools.search]
resource = 'Mcp::"web"'
schema = { type = "object", properties = { limit = { type = "number" } } }
[tools.send_email]
resource = 'Mcp::"gmail"'
cost = { requests = 1 }
"""
BUDGETS = '[budget."acme"]\nlimits = [{ unit = "requests", window = "1d", limit = 2 }]\n'


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    (tmp_path / "mail.cedar").write_text(log_files.POLICIES)
    (tmp_path / "entities.json").write_text(log_files.ENTITIES)
    (tmp_path / "budgets.toml").write_text(BUDGETS)
    (tmp_path / "tollkeeper.toml").write_text(CONFIG)
    with Gate.open(tmp_path / "tollkeeper.toml") as opened_gate:
        yield opened_gate


def test_what_a_gate_records_is_explained_and_decided_again(cli: Cli, gate: Gate, tmp_path: Path) -> None:
    with gate.run(principal='Agent::"researcher"', session="s", budget="acme", request="Write to Ann"):
        codes = [gate.check("search", {"limit": 5, "query": "x", "none": None}).code]
        codes += [gate.check("send_email", {"to": to}).code for to in ("a@example.com", "b@else.org", "c@example.com")]
        codes.append(gate.check("erase_all", {}).code)
        with gate.run(tools=["search"]):
            codes.append(gate.check("send_email", {"to": "a@example.com"}).code)
    with gate.run(principal='Agent::"researcher"', session="t", budget="acme", labels=["secret"]):
        last = gate.check("send_email", {"to": "a@example.com"})
    assert [*codes, last.code] == [
        "allow",
        "allow",
        "policy.no_permit",
        "budget.exhausted",
        "input.unknown_tool",
        "policy.forbidden",
        "policy.forbidden",
    ]
    assert gate.log
    gate.log.flush()
    done = cli("audit", "replay", "--json")
    document = json.loads(done.out)
    assert document["differences"] == []
    assert (done.code, document["same"], document["different"]) == (0, 7, 0)
    assert document["skipped"] == {}
    assert f"decision  {last.id}" in cli("why", "last").out
    out = cli("why", lines(cli("audit", "show", "--json", "--code", "budget"))[0]["entry"]["id"]).out
    assert "request   Write to Ann" in out
    assert "budget acme refused requests 1d: limit 2, used 2, held 0, requested 1" in out
    assert "tollkeeper budget set-limit acme requests 1d 3" in out
    gate.close()
    assert cli("audit", "verify").code == 0
    assert cli("audit", "rotate").code == 0
    assert cli("audit", "show", "--limit", "1", "--json").out.startswith('{"log":"0/2","index":')
    assert (tmp_path / "audit" / "0" / "verifier.pub").read_text().startswith("example.com/gate/0/2+")
    (tmp_path / "mail.cedar").write_text(log_files.POLICIES.replace("forbid", "permit"))
    by_config = json.loads(cli("audit", "replay", "--config", "tollkeeper.toml", "--json").out)
    assert [(one["before"]["code"], one["after"]["code"]) for one in by_config["differences"]] == [
        ("policy.forbidden", "allow")
    ]


# --- folders that are none --------------------------------------------------------------------------------------------

VERBS = [
    ("audit", "verify"),
    ("audit", "show"),
    ("audit", "tail"),
    ("audit", "prove", "0"),
    ("audit", "export"),
    ("audit", "erase", "0", "--yes"),
    ("audit", "checkpoints"),
    ("audit", "rotate"),
    ("audit", "status"),
    ("audit", "replay"),
    ("why", "last"),
]


@pytest.mark.parametrize("words", VERBS, ids=[" ".join(words) for words in VERBS])
@pytest.mark.parametrize("what", ["nothing", "empty", "file", "junk"])
def test_a_folder_without_a_log(cli: Cli, tmp_path: Path, words: tuple[str, ...], what: str) -> None:
    audit = tmp_path / "audit"
    if what == "file":
        audit.write_text("x")
    elif what != "nothing":
        audit.mkdir()
    if what == "junk":
        (audit / "wal").mkdir()
        (audit / "checkpoint").write_bytes(b"\xff" * 1_000)
        (audit / "wal" / f"{0:020}.seg").write_bytes(b"x" * 5_000)
    done = cli(*words)
    assert "Traceback" not in done.err
    assert done.code in ({2} if what != "junk" or words[1] != "verify" else {2, 3})
    if done.code == 2:
        assert done.err.startswith("error: ")


@pytest.mark.usefixtures("audit")
def test_the_folder_of_the_configuration(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "audit").rename(tmp_path / "elsewhere")
    assert cli("audit", "show").code == 2
    (tmp_path / "tollkeeper.toml").write_text('[audit]\ndir = "elsewhere"\n[gate]\nwrong = 1\n')
    assert len(lines(cli("audit", "show", "--json"))) == 14
    (tmp_path / "tollkeeper.toml").write_text("[audit]\ndir = 1\n")
    assert cli("audit", "show").err.startswith("error: tollkeeper.toml: audit.dir: must be a text\n")
    (tmp_path / "tollkeeper.toml").write_text("audit = 1\n")
    assert cli("audit", "show").code == 2
