"""The examples that people read run: Python blocks of the README, and the examples in docstrings, native ones too.

A block with `>>>` is a doctest; any other is run as it stands. The blocks of a document share their names, from the top
to the bottom, as a reader would type them. A block marked `python notest` needs more than the document brings: it must
compile, and what it imports must be there.
"""

import ast
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import tollkeeper

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^( *)```(?:python|py|pycon)\b([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> Iterator[tuple[int, str, bool]]:
    """The Python blocks with the line each begins on, and whether it is to be run."""
    for found in BLOCK.finditer(text):
        code = inspect.cleandoc(f"\n{found[3]}") if found[1] else found[3]
        yield text.count("\n", 0, found.start(3)) + 1, code, "notest" not in found[2].split()


def check_imports(code: str, name: str) -> None:
    """What a block imports from somewhere is there."""
    for node in ast.walk(ast.parse(code, name)):
        if isinstance(node, ast.ImportFrom) and node.module:
            there = dir(importlib.import_module(node.module))
            assert [alias.name for alias in node.names if alias.name not in there] == [], name


def run(name: str, text: str) -> int:
    """Runs the blocks of a document; returns how many."""
    names: dict[str, object] = {"__name__": "__main__"}
    count = 0
    for line, code, runs in blocks(text):
        count += 1
        if not runs:
            check_imports(code, f"{name}, line {line}")
        elif ">>>" in code:
            check(code, f"{name}, line {line}", names)
        else:
            # The empty lines make the traceback name the line of the document.
            exec(compile("\n" * (line - 1) + code, name, "exec"), names)  # noqa: S102 - the document is ours
    return count


def check(text: str, name: str, names: dict[str, object]) -> int:
    """Runs the `>>>` examples of a text; returns how many."""
    examples = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    said: list[str] = []
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=said.append, clear_globs=False)
    assert not results.failed, "".join(said)
    return results.attempted


def docstrings() -> dict[str, str]:
    """Every docstring of what the package exports, its members included, by name."""
    found = {"tollkeeper": tollkeeper.__doc__ or ""}
    for name in tollkeeper.__all__:
        thing = getattr(tollkeeper, name)
        found[name] = inspect.getdoc(thing) or ""
        if not inspect.isclass(thing):
            continue
        for member_name, member in vars(thing).items():
            if not member_name.startswith("_") and isinstance(getattr(member, "__doc__", None), str):
                found[f"{name}.{member_name}"] = inspect.cleandoc(member.__doc__)
    return found


DOCSTRINGS = docstrings()


@pytest.mark.parametrize("name", [name for name, text in DOCSTRINGS.items() if ">>>" in text])
def test_examples_in_docstrings_run(name: str) -> None:
    assert check(DOCSTRINGS[name], name, {}) > 0


def test_public_names_have_docstrings() -> None:
    """Constants aside, whose documentation stands beside them."""
    assert [name for name, text in DOCSTRINGS.items() if not text.strip()] == []
    assert {"PolicySet", "Entities", "EntityUid", "Context"} <= {
        name for name, text in DOCSTRINGS.items() if ">>>" in text
    }


def test_a_docstring_with_an_example_shows_code() -> None:
    assert [
        name for name, text in DOCSTRINGS.items() if re.search(r"^Examples?:", text, re.MULTILINE) and ">>>" not in text
    ] == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_python_blocks_run(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, so that an example brings the files it needs."""
    text = (ROOT / document).read_text()
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) % 2 == 0, "a block is not closed"
    monkeypatch.chdir(tmp_path)
    assert run(document, text) == len(re.findall(r"^ *```py", text, re.MULTILINE)), "a block was not recognised"


def test_a_wrong_example_is_noticed() -> None:
    """The rest of this file would be worthless otherwise."""
    assert run("good", "text\n```python\nx = 1\n```\n\n```pycon\n>>> x\n1\n```\n") == 2
    assert run("indented", "- text\n\n  ```python\n  if True:\n      x = 1\n  ```\n") == 1
    with pytest.raises(AssertionError, match="line 2"):
        run("bad", "```python\n>>> 1 + 1\n3\n```\n")
    assert run("not run", "```python notest\nfrom tollkeeper import PolicySet\n1 / 0\n```\n") == 1
    with pytest.raises(AssertionError, match="line 2"):
        run("bad", "```python notest\nfrom tollkeeper import Nothing\n```\n")
    with pytest.raises(SyntaxError):
        run("bad", "```python notest\n1 +\n```\n")
    with pytest.raises(ZeroDivisionError):
        run("bad", "```python\n1 / 0\n```\n")
