"""Importing the package is cheap, starts nothing, and shows exactly the public names."""

import importlib
import subprocess
import sys

import pytest

import tollkeeper

IMPORT_MS_MAX = 25.0

# Time spent by `import tollkeeper` in a new interpreter, in milliseconds; then what it left behind.
PROBE = """
import sys, time
start = time.perf_counter()
import tollkeeper
print((time.perf_counter() - start) * 1e3)
import threading, os
print(threading.active_count(), len(os.listdir('/proc/self/task')))
heavy = {'numpy', 'msgspec', 'asyncio', 'dataclasses', 'inspect', 'json', 're', 'typing', 'uvloop'}
print(*sorted(heavy & set(sys.modules)))
"""


def probe() -> list[str]:
    done = subprocess.run([sys.executable, "-I", "-c", PROBE], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.splitlines()


def test_import_is_fast() -> None:
    # The best of several: the machine is shared, and the question is what the import costs.
    best = min(float(probe()[0]) for _ in range(7))
    assert best <= IMPORT_MS_MAX, f"import takes {best:.1f} ms, the limit is {IMPORT_MS_MAX} ms"


def test_import_starts_no_thread_and_loads_no_heavy_module() -> None:
    _, threads, modules = probe()
    assert threads == "1 1"
    assert not modules


def test_all_is_what_is_there() -> None:
    assert sorted(tollkeeper.__all__, key=str.lower) == sorted(set(tollkeeper.__all__), key=str.lower)
    for name in tollkeeper.__all__:
        thing = getattr(tollkeeper, name)
        assert thing.__doc__, name
        assert not name.startswith("_")


def test_the_build_is_an_optimized_one() -> None:
    assert tollkeeper.build_info()["profile"] == "release"


@pytest.mark.parametrize("name", ["tollkeeper", "tollkeeper.errors"])
def test_examples_in_docstrings_run(name: str) -> None:
    import doctest  # noqa: PLC0415 - only here

    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_examples_of_the_native_classes_run() -> None:
    import doctest  # noqa: PLC0415 - only here

    runner, finder = doctest.DocTestRunner(), doctest.DocTestFinder()
    count = 0
    for name in tollkeeper.__all__:
        for example in finder.find(getattr(tollkeeper, name), name, module=False):
            runner.run(example)
            count += len(example.examples)
    assert runner.summarize().failed == 0
    assert count
