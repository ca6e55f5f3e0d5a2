"""The rules of the house that no tool knows."""

import ast
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tollkeeper.adapters._hosts import TABLE

ROOT = Path(__file__).resolve().parent.parent
FUNCTION_LINES_MAX = 70

# Longer functions, each with the reason why cutting it would not help the reader.
LONG_FUNCTIONS: dict[tuple[str, str], str] = {
    ("rust/core/src/policy/front.rs", "model"): "a slow state machine that shares no code with the scan it checks",
    ("rust/core/tests/generate/mod.rs", "condition"): "a table of shapes, one line each",
}

# Files that may say `unsafe`, each with the reason.
UNSAFE_FILES = {
    "rust/core/src/map.rs": "maps files, registers the fork handler, locks bytes of files",
    "rust/core/tests/alloc.rs": "a counting allocator has to be an allocator",
    "benches/rust/load.rs": "the same, to report memory",
}

# Words that name a machine instead of the thing. Written apart, so that this file does not hold them.
FORBIDDEN = ["/" + "work/", "/" + "tmp/", "/" + "root/", "/" + "home/", "pypi" + ".org", "index.crates" + ".io"]


@cache
def tracked() -> list[Path]:
    """Every file git knows or would know."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / line for line in done.stdout.splitlines() if (ROOT / line).is_file()]


def files(*suffixes: str) -> Iterator[tuple[str, str]]:
    for path in tracked():
        # Hostile documents are bytes, not text.
        if path.suffix in suffixes and "hostile" not in path.parts[:-1]:
            yield path.relative_to(ROOT).as_posix(), path.read_text()


def fail_on(found: list[str]) -> None:
    assert not found, "\n" + "\n".join(found)


def test_every_file_says_what_it_is_for() -> None:
    found = [name for name, text in files(".rs") if not text.startswith("//! ")]
    found += [name for name, text in files(".py") if ast.get_docstring(ast.parse(text)) is None]
    fail_on(found)


def test_nothing_names_a_machine() -> None:
    suffixes = (".rs", ".py", ".pyi", ".toml", ".md", ".cedar", ".cedarschema", ".txt", ".sh", ".json", "")
    fail_on(
        [
            f"{name}:{number}: {word}"
            for name, text in files(*suffixes)
            for number, line in enumerate(text.splitlines(), 1)
            for word in FORBIDDEN
            if word in line
        ]
    )


def python_functions(text: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def rust_functions(text: str) -> Iterator[tuple[str, int]]:
    """By the formatter's indentation: a function ends at the first closing brace in the column where it began."""
    start = re.compile(r"^( *)(?:pub(?:\([a-z]+\))? )?(?:const |async |unsafe |extern \"C\" )*fn (\w+)")
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if (found := start.match(line)) and not line.endswith((";", "}")):
            end = next((i for i in range(number, len(lines)) if lines[i].startswith(found[1] + "}")), number)
            yield found[2], end - number + 1


def test_functions_fit_on_a_screen() -> None:
    functions = [(name, *function) for name, text in files(".py") for function in python_functions(text)]
    functions += [(name, *function) for name, text in files(".rs") for function in rust_functions(text)]
    assert len(functions) > 100, "the search finds functions at all"
    long = {(name, function): lines for name, function, lines in functions if lines > FUNCTION_LINES_MAX}
    fail_on([f"{key}: {lines} lines" for key, lines in long.items() if key not in LONG_FUNCTIONS])
    assert set(LONG_FUNCTIONS) <= set(long), "an exception that is not needed any more"


def test_the_core_knows_no_python() -> None:
    fail_on([name for name, text in files(".rs", ".toml") if name.startswith("rust/core/") and "pyo3" in text.lower()])


def test_unsafe_stays_where_it_is() -> None:
    word = re.compile(r"^(?!\s*//).*\bunsafe\b(?!_)", re.MULTILINE)
    found = {name for name, text in files(".rs") if word.search(text)}
    assert found == set(UNSAFE_FILES)


def test_every_exception_has_a_reason() -> None:
    found = []
    for name, text in files(".rs"):
        attributes = re.findall(r"#!?\[(?:cfg_attr\(.*?)?(?:allow|expect)\((?:[^\]]|\n)*?\)\]", text)
        found += [f"{name}: {attribute}" for attribute in attributes if "reason = " not in attribute]
    for name, text in files(".py"):
        if name.startswith("python/"):
            found += [f"{name}: {line}" for line in text.splitlines() if re.search(r"# noqa(?!: [A-Z0-9, ]+ - )", line)]
            found += [f"{name}: {line}" for line in text.splitlines() if "type: ignore" in line]
    fail_on(found)


def test_pinned_versions_cover_the_groups() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    pins = {
        kind: {
            normal(line.split("==")[0])
            for line in (ROOT / "requirements" / f"{kind}.txt").read_text().splitlines()
            if not line.startswith("#")
        }
        for kind in ("test", "lint")
    }
    needed = {"test": [*groups["test"], *groups["bench"], "maturin"], "lint": groups["lint"]}
    needed["test"] += [re.split(r"[<>=]", entry)[0] for entry in project["project"]["dependencies"]]
    for kind, names in needed.items():
        assert {normal(name) for name in names} <= pins[kind]
    assert not pins["test"] & pins["lint"]
    for kind in pins:
        lines = (ROOT / "requirements" / f"{kind}.txt").read_text().splitlines()
        fail_on([line for line in lines if not re.fullmatch(r"#.*|[A-Za-z0-9_.-]+==[0-9.]+(b[0-9]+)?", line)])


def test_floors_of_the_hosts_are_what_is_tested() -> None:
    """An extra promises the oldest release that `make test-hosts` runs; the adapters say the same."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    oldest, newest = pinned("hosts-oldest"), pinned("hosts")
    floors = [entry.split(">=") for extra in ("maf", "langchain", "openai-agents") for entry in extras[extra]]
    assert len(floors) == 4
    for name, floor in floors:
        assert oldest[name] == floor
        assert newest[name] != floor
    for host in TABLE.values():
        assert (host.oldest, host.newest) == (oldest[host.distribution], newest[host.distribution])


def pinned(kind: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{kind}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_licences_and_sources_are_the_allowed_ones() -> None:
    """The part of deny.toml that needs no extra tool, so that it is checked everywhere."""
    allowed = set(tomllib.loads((ROOT / "deny.toml").read_text())["licenses"]["allow"])
    try:
        version = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout  # noqa: S607
    except OSError:
        pytest.skip("no Rust toolchain")
    host = re.search(r"^host: (.+)$", version, re.MULTILINE)
    assert host
    # What other platforms would need is not downloaded here.
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host[1]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        pytest.skip("the dependencies are not all downloaded")
    packages = json.loads(done.stdout)["packages"]
    assert len(packages) > 50
    fail_on([f"{package['name']}: {package['license']}" for package in packages if not permitted(package, allowed)])
    sources = {package["source"] for package in packages} - {None}
    assert len(sources) == 1
    assert all(source.startswith("registry+") for source in sources)


def permitted(package: dict[str, str], allowed: set[str]) -> bool:
    """Every part joined by AND needs one alternative that is allowed."""
    expression = (package["license"] or "").replace("/", " OR ").replace("(", "").replace(")", "")
    return all(
        any(alternative.strip() in allowed for alternative in part.split(" OR ")) for part in expression.split(" AND ")
    )
