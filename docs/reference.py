"""Writes the reference, ``docs/reference/*.md``, out of what the package says about itself.

Signatures and texts come from docstrings, those of the native half from its stub; keys of the configuration from the
classes that read it, commands from their parsers, codes from the native module, bounds from the core's table.
Nothing is written here that is not said there. ``--check`` writes nothing and ends with 1 where a page is out of date.

    python docs/reference.py [--check]
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import tollkeeper
from tollkeeper import cli

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "tollkeeper"
FOLDER = ROOT / "docs" / "reference"
NOTE = "<!-- Made by `make docs` out of the docstrings; changes here are lost. -->\n"

# Page -> (title, what it is about, names). Names that the package exports and no page has are an error.
PAGES = {
    "gate": (
        "The gate",
        "Deciding about actions: [tools_and_labels.md](../tools_and_labels.md) shows how they belong together.",
        [
            *("Gate", "Run", "Scope", "Delegation", "Principal", "Action", "Decision", "Decisions"),
            *("ModelCall", "Approval", "decision_codes"),
        ],
    ),
    "admin": (
        "Administration",
        "What changes the rules, apart from the gate: [operations.md](../operations.md).",
        ["GateAdmin", "Receipt", "Target", "Holds", "Calls", "Question", "Reloaded"],
    ),
    "otel": (
        "OpenTelemetry",
        "In `tollkeeper.otel`, with the extra `otel`: [operations.md](../operations.md#looking-at-it).",
        ["instrument", "Instrumentation"],
    ),
    "policy": (
        "Policies",
        "Cedar, compiled and indexed, without a gate: [write_a_policy.md](../write_a_policy.md).",
        [
            *("PolicySet", "Answer", "BatchAnswer", "EvaluationError"),
            *("Entities", "Entity", "EntityUid", "Context"),
        ],
    ),
    "budget": (
        "Budgets",
        "Ledgers, holds and the meter of an engine: [budgets.md](../budgets.md).",
        ["Ledger", "Hold", "Denial", "Usage", "Meter", "FakeClock"],
    ),
    "audit": ("The audit log", "A log alone: [audit_for_auditors.md](../audit_for_auditors.md).", ["AuditLog"]),
    "errors": (
        "Errors",
        "A denial is a value and none of these, until somebody asks for it with `require` or a guard.",
        [
            *("TollkeeperError", "Denied", "PolicyError", "EntityError", "ContextError", "ConfigError", "BudgetError"),
            *(
                "AuditError",
                "StateError",
                "ArgumentsError",
                "HandleError",
                "InternalError",
                "ErrorDetail",
                "build_info",
            ),
        ],
    ),
}
# Python files in which a name is looked for before the stub of the native half.
MODULES = ("gate", "approvals", "admin", "unfinished", "otel", "audit", "budget", "errors")
# Sections of tollkeeper.toml, with the class that reads each, and of budgets.toml.
SECTIONS = (
    ("[gate]", "GateSection"),
    ("[policy]", "PolicySection"),
    ("[tools.NAME]", "Tool"),
    ("[budget]", "BudgetSection"),
    ("[audit]", "AuditSection"),
    ("[state]", "StateSection"),
    ("[admin]", "AdminSection"),
    ("[otel]", "OtelSection"),
)
BUDGET_SECTIONS = (("[ledger]", "LedgerSection"), ('[budget."PATH"]', "Budget"), ("one of `limits`", "Limit"))
LINE_CHARS_MAX = 100
# How annotations read: the stub says what the binding accepts, which is wider than what is meant.
SHORTER = (
    ("SupportsFloat | SupportsIndex", "float"),
    ("SupportsIndex", "int"),
    ("collections.abc.", ""),
    ("typing.", ""),
    ("_native.", ""),
)


@dataclass
class Definition:
    """Where a name is defined: a class or a function, and its text."""

    node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    native: bool


def tree(name: str) -> ast.Module:
    """A file of the package, empty where there is none."""
    file = PACKAGE / name
    return ast.parse(file.read_text()) if file.exists() else ast.parse("")


def definition(name: str, *, stub: bool = False) -> Definition | None:
    """The class or function of a name, in Python or else in the stub."""
    for module in (*(() if stub else (f"{module}.py" for module in MODULES)), "_native.pyi"):
        for node in tree(module).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                return Definition(node, module.endswith(".pyi"))
    return None


def text_of(node: ast.AST | None) -> str:
    """An expression as one reads it."""
    text = "" if node is None else ast.unparse(node)
    for long, short in SHORTER:
        text = text.replace(long, short)
    return text


def signature(node: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> str:
    """As one writes the call, with what it returns."""
    given = node.args
    bound = bool(given.posonlyargs + given.args) and (given.posonlyargs + given.args)[0].arg in {"self", "cls"}
    positional = (given.posonlyargs + given.args)[bound:]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    parts = [parameter(argument, default) for argument, default in zip(positional, defaults, strict=True)]
    hidden = len(given.posonlyargs) - bound
    if hidden > 0:
        parts.insert(hidden, "/")
    if given.vararg:
        parts.append(f"*{parameter(given.vararg, None)}")
    elif given.kwonlyargs:
        parts.append("*")
    parts += [
        parameter(argument, default) for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    if given.kwarg:
        parts.append(f"**{parameter(given.kwarg, None)}")
    makes = node.name in {"__new__", "__init__"}
    returns = "" if node.returns is None or makes else f" -> {text_of(node.returns)}"
    ahead = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    line = f"{ahead}{name}({', '.join(parts)}){returns}"
    if len(line) <= LINE_CHARS_MAX:
        return line
    return f"{ahead}{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def parameter(argument: ast.arg, default: ast.expr | None) -> str:
    """One parameter, as it is declared."""
    said = f": {text_of(argument.annotation)}" if argument.annotation else ""
    return argument.arg + said + (f" = {text_of(default)}" if default is not None else "")


HEADS = ("Args", "Returns", "Raises", "Attributes", "Example")


def markdown(text: str) -> str:
    """A docstring in Google's form as Markdown."""
    lines, parts, head = inspect.cleandoc(text).splitlines(), [], ""
    block: list[str] = []

    def finish() -> None:
        body = inspect.cleandoc("\n" + "\n".join(block)).strip()
        if body:
            parts.append(section(head, body))
        block.clear()

    for line in lines:
        if line.rstrip(":") in HEADS and line.endswith(":"):
            finish()
            head = line.rstrip(":")
        elif head and line and not line.startswith(" "):
            finish()
            head = ""
            block.append(line)
        else:
            block.append(line)
    finish()
    return "\n\n".join(parts)


def section(head: str, body: str) -> str:
    """One part of a docstring."""
    if not head:
        return body
    if head == "Example":
        return f"```pycon\n{body}\n```"
    if head == "Returns":
        return f"Returns: {joined(body)}"
    items = re.split(r"\n(?=\S)", body)
    return f"{head}:\n\n" + "\n".join(item(one, head) for one in items)


def item(text: str, head: str) -> str:
    """One entry of such a part."""
    name, colon, said = joined(text).partition(": ")
    return f"- `{name}`: {said}" if colon and re.fullmatch(r"[\w*]+", name) else f"- {joined(text)}" * (head != "")


def joined(text: str) -> str:
    """Lines as one."""
    return " ".join(line.strip() for line in text.splitlines())


def attribute_docs(node: ast.ClassDef) -> list[tuple[ast.AnnAssign, str]]:
    """Annotated attributes with the text below each."""
    found = []
    for one, after in zip(node.body, [*node.body[1:], None], strict=True):
        said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and not one.target.id.startswith("_"):
            found.append((one, inspect.cleandoc(after.value.value) if said else ""))
    return found


def decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Their names."""
    return [text_of(one) for one in node.decorator_list]


def members(node: ast.ClassDef) -> list[tuple[str, str, str]]:
    """Name, code and text of what a class has."""
    found = []
    for one, text in attribute_docs(node):
        name = text_of(one.target)
        found.append((name, f"{name}: {text_of(one.annotation)}", text))
    for one in node.body:
        if not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) or one.name.startswith("_"):
            continue
        if "property" in decorators(one):
            found.append((one.name, f"{one.name}: {text_of(one.returns)}", ast.get_docstring(one) or ""))
        else:
            static = {"staticmethod", "classmethod"} & set(decorators(one))
            shown = f"{node.name}.{one.name}" if static else one.name
            found.append((one.name, signature(one, shown), ast.get_docstring(one) or ""))
    return found


def constructor(found: Definition) -> ast.FunctionDef | None:
    """Of classes that people make themselves; the others say what makes them."""
    wanted = "__new__" if found.native else "__init__"
    makes = found.native or any("Error" in text_of(base) for base in found.node.bases)
    for one in found.node.body if makes else ():
        if isinstance(one, ast.FunctionDef) and one.name == wanted and len(one.args.args + one.args.posonlyargs) > 1:
            return one
    return None


def described(name: str) -> str:
    """Everything about one exported name."""
    found = definition(name)
    if found is None:
        message = f"{name} is defined in none of {MODULES}, nor in the stub"
        raise SystemExit(message)
    node = found.node
    if not isinstance(node, ast.ClassDef):
        return f"## {name}\n\n```python\n{signature(node, name)}\n```\n\n{markdown(ast.get_docstring(node) or '')}\n"
    parts = [f"## {name}"]
    bases = [text_of(base) for base in node.bases if not text_of(base).startswith("_") and text_of(base) != name]
    if bases:
        parts.append(f"Is a kind of {' and '.join(f'`{base}`' for base in bases)}.")
    made = constructor(found)
    if made is not None:
        parts.append(f"```python\n{signature(made, name)}\n```")
    parts.append(markdown(ast.get_docstring(node) or ""))
    if made is not None and (said := ast.get_docstring(made)):
        parts.append(markdown(said))
    rows = members(node)
    below = None if found.native else definition(name, stub=True)
    if below is not None and isinstance(below.node, ast.ClassDef):
        known = {row[0] for row in rows}
        rows += [row for row in members(below.node) if row[0] not in known]
    for member, code, text in rows:
        parts.append(f"### {name}.{member}\n\n```python\n{code}\n```\n\n{markdown(text)}".rstrip())
    return "\n\n".join(part for part in parts if part) + "\n"


def python_pages() -> dict[str, str]:
    """The pages about Python, by name."""
    missing = set(tollkeeper.__all__) - {name for _, _, names in PAGES.values() for name in names}
    if missing:
        message = f"{sorted(missing)} are exported, and no page of docs/reference.py has them"
        raise SystemExit(message)
    return {
        page: f"# {title}\n\n{NOTE}\n{about}\n\n" + "\n".join(described(name) for name in names if definition(name))
        for page, (title, about, names) in PAGES.items()
        if any(definition(name) for name in names)
    }


def keys(module: str, sections: tuple[tuple[str, str], ...]) -> str:
    """Tables of the keys of a configuration file."""
    parts = []
    classes = {node.name: node for node in tree(module).body if isinstance(node, ast.ClassDef)}
    for title, name in sections:
        if name not in classes:
            continue
        node = classes[name]
        rows = [
            f"| `{text_of(one.target)}` | {cell(kind(one.annotation))} | "
            f"{cell(default_of(one.value))} | {cell(joined(text))} |"
            for one, text in attribute_docs(node)
        ]
        about = markdown(ast.get_docstring(node) or "")
        parts.append(f"### {title}\n\n{about}\n\n| key | takes | default | |\n|---|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def default_of(node: ast.expr | None) -> str:
    """A default as TOML writes it."""
    text = text_of(node)
    return {"": "required", "None": "none", "True": "`true`", "False": "`false`"}.get(text, f"`{toml(text)}`")


def toml(text: str) -> str:
    """Texts with the quotes that TOML has, numbers worked out."""
    if re.fullmatch(r"'[^']*'", text):
        return f'"{text[1:-1]}"'
    return str(eval(text, {"__builtins__": {}})) if "<<" in text else text  # noqa: S307 - our own source


def kind(node: ast.expr | None) -> str:
    """What a key takes, without the words that only a type checker needs."""
    text = text_of(node)
    if found := re.search(r"Annotated\[(.*?), msgspec\.Meta\((.*?)\)\]", text):
        text = text.replace(found[0], found[1])
        bounded = found[2].replace("ge=", "from ").replace(", le=", " to ").replace("AMOUNT_MAX", "2**53")
    else:
        bounded = ""
    if found := re.fullmatch(r"Literal\[(.*)\]", text):
        return " or ".join(f"`{toml(one)}`" for one in found[1].split(", "))
    return f"`{text.replace(' | None', '')}`" + (f", {bounded}" if bounded else "")


def cell(text: str) -> str:
    """Text for a table."""
    return text.replace("|", "\\|")


def configuration() -> str:
    """The page about both files."""
    about = """
An unknown key is an error with a suggestion. `tollkeeper config check` says everything that is wrong,
`tollkeeper config show` every value in force and where it comes from. Paths are relative to the file. One environment
variable is read, `TOLLKEEPER_CONFIG`: it may name the file, and can change nothing in it.
"""
    prices = """
`[price."MODEL"]` has what a million tokens of each component cost: nano-USD as a whole number, or US dollars as text.
Components are an open set: `prompt`, `cached`, `completion` and whatever else the provider bills.
"""
    gate, budgets = keys("config.py", SECTIONS), keys("budgets.py", BUDGET_SECTIONS)
    return f"# Configuration\n\n{NOTE}{about}\n## tollkeeper.toml\n\n{gate}\n## budgets.toml\n\n{budgets}{prices}"


def codes() -> str:
    """The page of decision codes."""
    rows = "\n".join(f"| `{code}` | {cell(meaning)} |" for code, meaning in tollkeeper.decision_codes())
    about = """
`decision.code` is one of these, and no other. A position in this list is what `Decisions.codes` holds.
`tollkeeper.decision_codes()` gives the list.
"""
    return f"# Codes of decisions\n\n{NOTE}{about}\n| code | meaning |\n|---|---|\n{rows}\n"


def usage(action: argparse.Action) -> str:
    """How one argument is written."""
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    shown = value if isinstance(value, str) else " ".join(value)
    if not action.option_strings:
        return {"*": f"[{shown} ...]", "?": f"[{shown}]", "+": f"{shown} ..."}.get(str(action.nargs), shown)
    takes = "" if action.nargs == 0 else f" {shown}" + (" ..." if action.nargs in {"+", "*"} else "")
    return ", ".join(action.option_strings) + takes


def command(words: list[str], module: str, what: str) -> str:
    """One command, out of its parser."""
    parser = argparse.ArgumentParser(prog=f"tollkeeper {' '.join(words)}", allow_abbrev=False)
    importlib.import_module(f"tollkeeper.cli.{module}").configure(parser)
    formatter = argparse.HelpFormatter(parser.prog)
    rows = [
        f"| `{cell(usage(action))}` | {cell(formatter._expand_help(action) if action.help else '')} |"  # noqa: SLF001 - argparse has no other way to fill in defaults
        for action in parser._actions  # noqa: SLF001 - nor to list what was declared
        if action.dest != "help" and action.help != argparse.SUPPRESS
    ]
    parts = [f"## tollkeeper {' '.join(words)}", f"{what[:1].upper()}{what[1:]}."]
    if rows:
        parts.append("| argument | |\n|---|---|\n" + "\n".join(rows))
    if parser.epilog:
        said = parser.epilog.strip()
        parts.append(f"```console\n{said}\n```" if "\n" in said else said)
    return "\n\n".join(parts)


def commands() -> str:
    """The page about the command line."""
    parts = []
    for verb, (module, what) in cli.VERBS.items():
        if module is not None:
            parts.append(command([verb], module, what))
        for name, (below, told) in cli.GROUPS.get(verb, {}).items():
            parts.append(command([verb, name], below, told))
    about = """
Results go to standard output, everything else to standard error. Exit codes, where a command says nothing else:
0 done or allowed, 1 the answer is no, 2 the input cannot be used, 70 a defect of this package.
"""
    return f"# Commands\n\n{NOTE}{about}\n" + "\n\n".join(parts) + "\n"


def bounds() -> str:
    """Every constant of the core's table, with its reason."""
    text = (ROOT / "rust" / "core" / "src" / "limits.rs").read_text()
    values: dict[str, int] = {}
    rows = []
    for comment, name, written in re.findall(r"((?:^///.*\n)+)pub const (\w+): \w+ = ([^;]+);", text, re.MULTILINE):
        plain = re.sub(r"\bas \w+|_(?=\d)", "", written).replace("/", "//")
        try:
            values[name] = eval(plain, {"__builtins__": {}}, values)  # noqa: S307 - our own source, names of numbers only
        except (NameError, SyntaxError):
            continue
        reason = joined(comment.replace("///", "")).replace("[`", "`").replace("`]", "`")
        rows.append(f"| `{name}` | {values[name]:,} | {cell(reason)} |")
    about = "Everything has a bound, and the error that reports one names it. From `rust/core/src/limits.rs`."
    table = "| bound | | why |\n|---|---:|---|\n" + "\n".join(rows)
    return f"# Bounds\n\n{NOTE}\n{about}\n\n{table}\n"


def index(pages: dict[str, str]) -> str:
    """The list of pages."""
    rows = "\n".join(f"- [{text.splitlines()[0].removeprefix('# ')}]({page}.md)" for page, text in pages.items())
    return f"# Reference\n\n{NOTE}\n{rows}\n"


def pages() -> dict[str, str]:
    """Every page, by file name."""
    found = {
        **python_pages(),
        "configuration": configuration(),
        "codes": codes(),
        "cli": commands(),
        "bounds": bounds(),
    }
    return {f"{name}.md": text for name, text in {**found, "README": index(found)}.items()}


def main() -> int:
    """Writes the pages, or with `--check` says which would change."""
    wanted, there = pages(), {path.name: path.read_text() for path in FOLDER.glob("*.md")}
    stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    if sys.argv[1:] == ["--check"]:
        for name in stale:
            print(f"docs/reference/{name} is out of date: make docs", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        if name in wanted:
            (FOLDER / name).write_text(wanted[name])
        else:
            (FOLDER / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
