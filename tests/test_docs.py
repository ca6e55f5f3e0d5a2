"""What people read is true: blocks of the README and of the guides run, links lead somewhere, named commands exist.

The blocks of a page are followed from the top to the bottom in an empty folder, as a reader would type them:

- `python` runs; blocks share their names. One with `>>>` is a doctest.
- `sh` runs line by line, in a shell where `tollkeeper` is this package's command. A line ends with 0, or with what its
  comment says: `# exit code 1`. What builds or installs is not run; its targets and files have to be there.
- `toml`, `cedar`, `cedarschema`, `json`, `jsonl`, `markdown` and `csv` name a file, in their first line as a comment
  or behind the language, which is written and then has to load. `# in FILE` adds to it: in TOML sections are replaced.
- `text` is what the block before it prints, `...` standing for anything.

A block marked `notest` needs more than the document brings: Python must compile, and what it imports must be there.
"""

import ast
import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tollkeeper
from tollkeeper import Entities, PolicySet, budgets, cli, config
from tollkeeper.adapters._hosts import TABLE

ROOT = Path(__file__).resolve().parent.parent
GUIDES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *GUIDES]
# Read too, for links and commands. Their examples are those of docstrings, which run below.
LISTED = ["DESIGN.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/reference").glob("*.md"))]
BLOCK = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"(?:#|//) (in )?([\w./-]+\.\w+)(?=[:;,.]? |$)")
EXIT_CODE = re.compile(r"# .*exit code (\d+)")
# What takes minutes, or changes the machine.
BUILDS = {"make", "cargo", "pip", "git", "maturin"}
# Packages of agent runtimes, which are in no environment but those of `make test-hosts`.
RUNTIMES = {"agent_framework", "agents", "langchain", "langgraph"}
FOLLOWED = ("python", "pycon", "sh", "text", "toml", "cedar", "cedarschema", "json", "jsonl", "markdown", "csv")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    words: list[str]
    """Behind the language."""
    line: int
    """Of the page, where the text begins."""
    text: str


def blocks(text: str) -> Iterator[Block]:
    for found in BLOCK.finditer(text):
        code = inspect.cleandoc(f"\n{found[4]}") + "\n" if found[1] else found[4]
        yield Block(found[2], found[3].split(), text.count("\n", 0, found.start(4)) + 1, code)


class Page:
    """Follows the blocks of one page."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.names: dict[str, object] = {"__name__": "__main__"}
        self.printed = ""
        self.followed = 0

    def follow(self, text: str) -> int:
        """Returns how many blocks there were to follow."""
        here = Path.cwd()
        os.chdir(self.folder)
        try:
            for block in blocks(text):
                if block.language in FOLLOWED:
                    self.followed += 1
                    self.step(block, f"{self.name}, line {block.line}")
        finally:
            os.chdir(here)
            for thing in self.names.values():
                if isinstance(thing, tollkeeper.Gate | tollkeeper.AuditLog | tollkeeper.Ledger):
                    thing.close()
        return self.followed

    def step(self, block: Block, where: str) -> None:
        if "notest" in block.words:
            assert block.language == "python", f"{where}: only Python can be left out"
            check_imports(block.text, where)
        elif block.language in {"python", "pycon"}:
            self.python(block, where)
        elif block.language == "sh":
            self.shell(block, where)
        elif block.language == "text":
            same = doctest.OutputChecker().check_output(block.text, self.printed, doctest.ELLIPSIS)
            assert same, f"{where}: it prints\n{self.printed}"
        else:
            self.write(block, where)

    def python(self, block: Block, where: str) -> None:
        if ">>>" in block.text:
            check(block.text, where, self.names)
            return
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # The empty lines make the traceback name the line of the document.
            exec(compile("\n" * (block.line - 1) + block.text, self.name, "exec"), self.names)  # noqa: S102 - the document is ours
        self.printed = printed.getvalue()

    def shell(self, block: Block, where: str) -> None:
        self.printed = ""
        for line in block.text.replace("\\\n", "").splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            if words[0] in BUILDS:
                check_recipe(line, where)
                continue
            expected = int(said[1]) if (said := EXIT_CODE.search(line)) else 0
            code, out = run_line(line)
            assert code == expected, f"{where}: {line}\nexit code {code}, not {expected}\n{out}"
            self.printed += out

    def write(self, block: Block, where: str) -> None:
        first = block.text.splitlines()[0] if block.text.strip() else ""
        said = NAMED.match(first)
        assert said or block.words, f"{where}: names no file"
        file = Path(said[2] if said else block.words[0])
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = file.read_text() if said and said[1] else ""
        if file.suffix == ".toml":
            kept = without_sections(kept, block.text)
        file.write_text(kept + block.text)
        load(file)


def run_line(line: str) -> tuple[int, str]:
    """Runs a line where the lines before it have left the folder; returns exit code and output."""
    left = Path.cwd() / ".folder"
    package = str(Path(tollkeeper.__file__).parent.parent)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("TOLLKEEPER_", "PYTHON"))}
    python = shlex.quote(sys.executable)
    script = (
        f'tollkeeper() {{ {python} -m tollkeeper "$@"; }}\npython() {{ {python} "$@"; }}\n'
        f"{line}\ncode=$?; pwd >{shlex.quote(str(left))}; exit $code\n"
    )
    done = subprocess.run(  # noqa: S603 - the document is ours
        ["/bin/bash", "-c", script],
        env={**kept, "PYTHONPATH": package, "PYTHONUTF8": "1", "COLUMNS": "100", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        check=False,
        umask=0o022,
    )
    if left.exists():
        os.chdir(left.read_text().strip())
        left.unlink()
    return done.returncode, done.stdout


def check_recipe(line: str, where: str) -> None:
    """What a line builds with is there, though it is not run."""
    for target in re.findall(r"\bmake ([a-z][\w-]*)", line):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{where}: make {target}"
    for name in re.findall(r"(?<![\w/])tests/[\w./]+", line):
        assert (ROOT / name).exists(), f"{where}: {name}"
    for kind, name in re.findall(r"--(test|bench) (\w+)", line):
        place = {"test": "rust/core/tests", "bench": "benches/rust"}[kind]
        assert (ROOT / place / f"{name}.rs").exists(), f"{where}: {name}"


def without_sections(text: str, wanted: str) -> str:
    """A TOML text without the sections that another one has."""
    kept, header = [], ""
    headers = set(re.findall(r"^\[.*?\]", wanted, re.MULTILINE))
    for line in text.splitlines(keepends=True):
        if line.startswith("["):
            header = line[: line.index("]") + 1]
        if header not in headers:
            kept.append(line)
    return "".join(kept)


def load(file: Path) -> None:
    """Whatever reads such a file takes it."""
    if file.name == "tollkeeper.toml":
        assert [str(fault) for fault in config.examine(file).faults] == []
    elif file.suffix == ".toml":
        budgets.spec(file)
    elif file.suffix == ".cedar":
        schema = Path("schema.cedarschema")
        PolicySet.from_cedar(file, schema if schema.exists() else None, ids="annotation")
    elif file.suffix == ".cedarschema":
        PolicySet.from_cedar("", file)
    elif file.name == "entities.json":
        Entities.from_json(file)
    elif file.suffix == ".json":
        json.loads(file.read_text())
    elif file.suffix == ".jsonl":
        assert all(isinstance(json.loads(line), dict) for line in file.read_text().splitlines())
    else:
        # Cases and traces: a line below runs them.
        assert file.suffix in {".md", ".csv"}, file


def check_imports(code: str, name: str) -> None:
    """What a block imports from somewhere is there; from a runtime, where `make test-hosts` has installed it."""
    adapters = {f"tollkeeper.adapters.{host}" for host in TABLE}
    for node in ast.walk(ast.parse(code, name)):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "tollkeeper.adapters":
                assert {f"{node.module}.{alias.name}" for alias in node.names} <= adapters, name
                continue
            if (
                node.module.partition(".")[0] in RUNTIMES
                and importlib.util.find_spec(node.module.split(".")[0]) is None
            ):
                continue
            there = dir(importlib.import_module(node.module))
            assert [alias.name for alias in node.names if alias.name not in there] == [], name


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
            text = inspect.getdoc(getattr(thing, member_name) if isinstance(member, staticmethod) else member)
            if not member_name.startswith("_") and text is not None and type(member) not in {str, tuple}:
                found[f"{name}.{member_name}"] = text
    return found


DOCSTRINGS = docstrings()


@pytest.mark.parametrize("name", [name for name, text in DOCSTRINGS.items() if ">>>" in text])
def test_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
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


def test_functions_say_what_they_take() -> None:
    """A parameter that a docstring names exists, and one that exists is named as soon as any is."""
    wrong = []
    for name, text in DOCSTRINGS.items():
        thing: object = tollkeeper
        for part in name.split(".")[name == "tollkeeper" :]:
            thing = getattr(thing, part)
        said = re.search(r"^Args:\n((?: .*\n|\n)*)", text + "\n", re.MULTILINE)
        if said is None or not callable(thing):
            continue
        try:
            parameters = set(inspect.signature(thing).parameters) - {"self", "cls"}
        except ValueError:
            continue
        documented = set(re.findall(r"^    \*{0,2}(\w+):", said[1], re.MULTILINE))
        if documented != parameters:
            wrong.append(f"{name}: {sorted(documented ^ parameters)}")
    assert wrong == []


@pytest.mark.parametrize("name", PAGES)
def test_blocks_run(name: str, tmp_path: Path) -> None:
    """In an empty folder, so that an example brings the files it needs."""
    text = (ROOT / name).read_text()
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) % 2 == 0, "a block is not closed"
    unknown = [block.language for block in blocks(text) if block.language not in {*FOLLOWED, "console"}]
    assert unknown == [], "blocks that nobody runs"
    opened = re.findall(rf"^ *```(?:{'|'.join(FOLLOWED)})\b", text, re.MULTILINE)
    assert Page(name, tmp_path).follow(text) == len(opened), "a block was not recognised"


def headings(text: str) -> set[str]:
    """The anchors of a page, as they are made of its headings."""
    lines = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("name", [*PAGES, *LISTED])
def test_links_lead_somewhere(name: str) -> None:
    text = BLOCK.sub("", (ROOT / name).read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        assert not anchor or anchor in headings(file.read_text()), target


@pytest.mark.parametrize("name", [*PAGES, *LISTED])
def test_commands_in_the_text_exist(name: str) -> None:
    """Verbs of `tollkeeper`, targets of make, tests and files that a page names in passing."""
    text = BLOCK.sub("", (ROOT / name).read_text())
    for code in re.findall(r"`([^`\n]+)`", text):
        words = code.split()
        if words[0] == "tollkeeper" and len(words) > 1 and words[1].islower():
            assert words[1] in cli.VERBS, code
            below = cli.GROUPS.get(words[1])
            if below and len(words) > 2 and words[2].islower():
                assert words[2] in below, code
        for place, test in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", code):
            assert (ROOT / place).exists(), code
            assert f"def {test}(" in (ROOT / place).read_text() or not test, code
        check_recipe(code, name)


def test_the_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "docs/reference.py", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(Path(tollkeeper.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def followed(text: str, folder: Path) -> int:
    return Page("page", folder).follow(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\n>>> 1 + 1\n3\n```\n", AssertionError),
        ("```python notest\nfrom tollkeeper import Nothing\n```\n", AssertionError),
        ("```python notest\n1 +\n```\n", SyntaxError),
        ("```python\n1 / 0\n```\n", ZeroDivisionError),
        ("```python\nprint(1)\n```\n```text\n2\n```\n", AssertionError),
        ("```sh\ntollkeeper no-such-verb\n```\n", AssertionError),
        ("```sh\ntrue    # exit code 1\n```\n", AssertionError),
        ("```sh\nmake nothing-of-the-kind\n```\n", AssertionError),
        ("```sh notest\ntrue\n```\n", AssertionError),
        ("```toml\n[gate]\n```\n", AssertionError),
        ("```toml\n# tollkeeper.toml\n[gate]\nmoed = 1\n```\n", AssertionError),
        ("```toml\n# budgets.toml\n[budget.a]\nlimits = 1\n```\n", tollkeeper.ConfigError),
        ("```cedar\n// a.cedar\npermit(principal, action);\n```\n", tollkeeper.PolicyError),
        ("```json entities.json\n[{}]\n```\n", tollkeeper.EntityError),
    ],
)
def test_a_wrong_example_is_noticed(text: str, expected: type[Exception], tmp_path: Path) -> None:
    """The rest of this file would be worthless otherwise."""
    with pytest.raises(expected):
        followed(text, tmp_path)


def test_blocks_follow_one_another(tmp_path: Path) -> None:
    good = "text\n```python\nx = 1\n```\n\n```pycon\n>>> x\n1\n```\n"
    assert followed(good, tmp_path) == 2
    assert followed("- text\n\n  ```python\n  if True:\n      x = 1\n  ```\n", tmp_path) == 1
    assert (
        followed("```sh\nmkdir a && cd a\nfalse   # exit code 1\necho here\n```\n```text\nh...e\n```\n", tmp_path) == 2
    )
    assert followed("```python notest\nfrom tollkeeper import PolicySet\n1 / 0\n```\n", tmp_path) == 1
    added = "```toml\n# tollkeeper.toml\n[gate]\nmode = 'shadow'\n```\n```toml\n# in tollkeeper.toml\n[gate]\n```\n"
    assert followed(added, tmp_path) == 2
    assert "shadow" not in (tmp_path / "tollkeeper.toml").read_text()
