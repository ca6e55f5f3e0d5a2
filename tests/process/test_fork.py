"""A child of fork knows that it is one; a spawned process starts from nothing."""

import multiprocessing
import os

import pytest

from tollkeeper import EntityUid, _native


def test_each_fork_raises_the_generation() -> None:
    start = _native._fork_generation()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # No assertion in here: a failing child would run the rest of the tests twice.
        grandchild = os.fork()
        if grandchild == 0:
            os.write(write, bytes([_native._fork_generation() - start]))
            os._exit(0)
        os.waitpid(grandchild, 0)
        os.write(write, bytes([_native._fork_generation() - start]))
        os._exit(0)
    os.waitpid(child, 0)
    assert list(os.read(read, 8)) == [2, 1]
    assert _native._fork_generation() == start
    os.close(read)
    os.close(write)


def report(connection: object, uid: EntityUid) -> None:
    connection.send((_native._fork_generation(), uid))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("method", "generation"), [("spawn", 0), ("forkserver", None)])
def test_handles_without_state_travel_to_other_processes(method: str, generation: int | None) -> None:
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    uid = EntityUid("User", "alice")
    process = context.Process(target=report, args=(theirs, uid))
    process.start()
    got, again = ours.recv()
    process.join()
    assert again == uid
    assert generation is None or got == generation
