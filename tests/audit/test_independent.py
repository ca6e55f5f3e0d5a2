"""Verifiers that know nothing of Tollkeeper: Go's transparency log library, Tessera's fsck, pymerkle, sigstore.

They have to accept the model log and the real one, and refuse every mutant. Each is skipped with a reason where it is
not installed; `make test-verifiers` installs what `make test` leaves out.
"""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("cryptography")

from model_log import ModelLog, Signer, copies, fill, number_path

TESSERA_KEY = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"
GoCheck = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def go_check(tmp_path_factory: pytest.TempPathFactory) -> GoCheck:
    """The Go program, built once from a copy of its sources."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go: the sumdb and Tessera verifiers are not tried")
    folder = tmp_path_factory.mktemp("tlog_check")
    sources = shutil.copytree(Path(__file__).parent / "tlog_check", folder / "sources")
    environment = os.environ | {"GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "local"}
    command = [go, "build", "-trimpath", "-o", str(folder / "tlog_check"), "."]
    try:
        built = subprocess.run(  # noqa: S603 - our own command line
            command, cwd=sources, env=environment, capture_output=True, text=True, check=False, timeout=100
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the Go program could not be built in time: its modules are not downloaded yet")
    if built.returncode:
        reason = built.stderr.strip().splitlines()[-1:]
        # A mistake in the program itself is no reason to skip.
        assert "./main.go:" not in built.stderr, built.stderr
        pytest.skip(f"the Go program cannot be built here: {reason}")

    def check(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "tlog_check"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)  # noqa: S603

    return check


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelLog:
    log = ModelLog(tmp_path_factory.mktemp("model") / "log")
    fill(log, 5_100, batch=100, every=7, segment=1_000)
    return log


def accepted(done: subprocess.CompletedProcess[str]) -> bool:
    """The exit code and what it prints have to agree: Tessera's own command ends with 0 when it fails."""
    assert (done.returncode == 0) == (done.stdout == "everything holds\n"), done
    assert (done.returncode == 1) == ("refused: " in done.stderr), done
    return done.returncode == 0


def test_go_accepts_the_model_and_the_log_of_tessera(
    go_check: GoCheck, model: ModelLog, tlog_data: Path, tmp_path: Path
) -> None:
    assert accepted(go_check("-log", model.folder))
    (tmp_path / "key").write_text(TESSERA_KEY)
    assert accepted(go_check("-log", tlog_data / "tessera-log", "-key", tmp_path / "key"))


def test_go_accepts_a_log_without_its_private_part(go_check: GoCheck, model: ModelLog, tmp_path: Path) -> None:
    folder = copies(model, tmp_path)()
    shutil.rmtree(folder / "wal")
    for path in folder.rglob("*.p"):
        if path.with_suffix("").exists():
            shutil.rmtree(path)
    assert accepted(go_check("-log", folder))


def mutants(model: ModelLog, folder: Path) -> dict[str, Callable[[], None]]:
    """What has to be refused, by what is done to a copy."""
    chosen = random.Random(8)  # noqa: S311 - a sample, not a secret
    size = model.size
    partial = f".p/{size % 256}"
    names = ["checkpoint", "verifier.pub"]
    names += [f"tile/{kind}/{number_path(number)}" for kind in ("0", "entries") for number in (0, 7, size // 256 - 1)]
    names += [f"tile/{kind}/{number_path(size // 256)}{partial}" for kind in ("0", "entries")]
    names += [f"tile/1/000.p/{size // 256}"]

    def flip(name: str) -> Callable[[], None]:
        def change() -> None:
            data = bytearray((folder / name).read_bytes())
            bit = chosen.randrange(8 * len(data) - 16)
            data[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(data)

        return change

    def cut(name: str) -> Callable[[], None]:
        return lambda: (folder / name).write_bytes((folder / name).read_bytes()[:-40]) and None

    def drop(name: str) -> Callable[[], None]:
        return (folder / name).unlink

    def swap(left: str, right: str) -> Callable[[], None]:
        def change() -> None:
            one, two = (folder / left).read_bytes(), (folder / right).read_bytes()
            (folder / left).write_bytes(two)
            (folder / right).write_bytes(one)

        return change

    def sign(root: bytes, signer: Signer) -> Callable[[], None]:
        note = signer.checkpoint(model.origin, size, root)
        return lambda: (folder / "checkpoint").write_text(note) and None

    changes = {f"{how.__name__} {name}": how(name) for name in names for how in (flip, cut, drop)}
    for kind in ("0", "entries"):
        changes[f"swap {kind}"] = swap(f"tile/{kind}/000", f"tile/{kind}/001")
    changes["another root"] = sign(bytes(32), model.signer)
    changes["another key"] = sign(model.tree.root(size), Signer(2))
    changes["a fork in the history"] = lambda: (
        (folder / "checkpoints.log").write_text(
            "---\n".join([model.signer.checkpoint(model.origin, 300, bytes(32)), *model.published])
        )
        and None
    )
    return changes


def test_go_refuses_mutants(go_check: GoCheck, model: ModelLog, tmp_path: Path) -> None:
    names = list(mutants(model, tmp_path))
    assert len(names) > 35
    for name in names:
        folder = tmp_path / "mutant"
        shutil.copytree(model.folder, folder)
        mutants(model, folder)[name]()
        assert not accepted(go_check("-log", folder)), name
        shutil.rmtree(folder)


def test_go_checks_proof_files(go_check: GoCheck, model: ModelLog, tmp_path: Path) -> None:
    proof, entry = tmp_path / "proof", tmp_path / "entry"
    arguments = ["-key", model.folder / "verifier.pub", "-proof", proof, "-entry", entry]
    for index in (0, 1, 255, 256, 4_095, 4_096, model.size - 1):
        proof.write_text(model.proof(index))
        entry.write_bytes(model.entries[index])
        assert accepted(go_check(*arguments))
        entry.write_bytes(model.entries[index][:-1] + b"!")
        assert not accepted(go_check(*arguments))
    entry.write_bytes(model.entries[5])
    good = model.proof(5)
    for text in (good.replace("index 5", "index 6"), good.replace("@v1", "@v2"), good[:-9], model.proof(6)):
        proof.write_text(text)
        assert not accepted(go_check(*arguments)), text


def entries_of(folder: Path, auditor: ModuleType) -> list[bytes]:
    """Every entry of a log's bundles."""
    found: list[bytes] = []
    size = int((folder / "checkpoint").read_text().split("\n")[1])
    while len(found) < size:
        width = min(256, size - len(found))
        data = (folder / auditor.tile_path("entries", len(found) // 256, width)).read_bytes()
        found += auditor.parse_bundle(data, width)
    return found


def test_pymerkle_finds_the_same_roots(model: ModelLog, auditor: ModuleType) -> None:
    pymerkle = pytest.importorskip("pymerkle")
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for entry in entries_of(model.folder, auditor):
        tree.append_entry(entry)
    assert tree.get_root() == model.tree.root(model.size)
    for note in model.published:
        size = int(note.split("\n")[1])
        assert tree.get_root(size) == model.tree.root(size)


def test_sigstore_follows_the_proofs(model: ModelLog) -> None:
    merkle = pytest.importorskip("sigstore._internal.merkle", reason="no sigstore: run `make test-verifiers`")
    for size in (1, 2, 3, 7, 256, 257, 4_096, 5_099, 5_100):
        for index in {0, size // 3, size // 2, size - 1}:
            proof = model.tree.inclusion(index, 0, size)
            inner, border = merkle._decomp_inclusion_proof(index, size)
            assert inner + border == len(proof)
            root = merkle._chain_inner(model.tree.leaves[index], proof[:inner], index)
            assert merkle._chain_border_right(root, proof[inner:]) == model.tree.root(size)


# --- the real log -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1_000])
def test_others_accept_our_log(
    make_log: Callable[[Path, int], None], go_check: GoCheck, auditor: ModuleType, tmp_path: Path, count: int
) -> None:
    pymerkle = pytest.importorskip("pymerkle")
    folder = tmp_path / "log"
    make_log(folder, count)
    assert accepted(go_check("-log", folder))
    entries = entries_of(folder, auditor)
    assert sum(json.loads(entry)["kind"] == "note" for entry in entries) == count
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    for entry in entries:
        tree.append_entry(entry)
    signed = auditor.Checkpoint.parse("checkpoint", (folder / "checkpoint").read_bytes())
    assert tree.get_root() == signed.root
    assert auditor.main([str(folder)]) == 0


def test_others_refuse_mutants_of_our_log(
    make_log: Callable[[Path, int], None], go_check: GoCheck, auditor: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    make_log(folder, 600)
    chosen = random.Random(9)  # noqa: S311
    for path in sorted((folder / "tile").rglob("*")):
        if path.is_dir() or path.parent.suffix == ".p":
            continue
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[chosen.randrange(len(whole))] ^= 1 << chosen.randrange(8)
        path.write_bytes(changed)
        assert not accepted(go_check("-log", folder)), path
        assert auditor.main([str(folder)]) == 3, path
        path.write_bytes(whole)


def test_our_files_are_those_of_the_model(
    make_log: Callable[[Path, int], None], auditor: ModuleType, tmp_path: Path
) -> None:
    """Byte for byte, tiles and bundles alike: the two writers have only the words of the format in common."""
    folder = tmp_path / "log"
    make_log(folder, 600)
    model = ModelLog(tmp_path / "model")
    for entry in entries_of(folder, auditor):
        model.append(entry)
    for name, data in model.tiles(model.size):
        assert (folder / "tile" / name).read_bytes() == data, name
    signed = auditor.Checkpoint.parse("checkpoint", (folder / "checkpoint").read_bytes())
    assert signed.root == model.tree.root(model.size)
