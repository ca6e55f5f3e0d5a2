"""Reads and runs policy cases: requests with the decision that is expected, written for people.

A Markdown file has policies in ``cedar`` blocks, or names files at the top between two lines ``---``, as ``policies:
FILE, FILE``; a ``cedarschema`` and an ``entities`` block, or ``schema: FILE`` and ``entities: FILE``; and cases: rows
of tables with a column ``expect``, or ``case NAME`` blocks of ``key: value`` lines. Keys are ``case``, ``principal``,
``action``, ``resource``, ``context`` (plain data, as a gate takes arguments), ``cedar context`` (Cedar's JSON with its
escapes), ``context.input.path`` and the like (one value each), ``expect``. The top may also say what all cases have in
common: ``principal: Agent::"a"``. Everything else is prose. TOML has the same keys, ``cedar = "..."`` and ``[[case]]``.

An expectation is ``allow``, ``allow by ID, ID``, ``deny by ID`` or ``deny (nothing permits)``, each with ``; error in
ID`` if policies err. Errors that are not expected fail the case. A case should say which policy denies, because "deny"
alone also passes when the wrong rule does it. What is not understood is refused with file and line, never skipped.
Cases ask a policy set, in the language's own semantics: no gate, no tools, no sessions.
"""

import difflib
import glob
import json
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypeGuard, cast

from tollkeeper import Answer, Context, Entities, EntityUid, PolicySet, config
from tollkeeper.errors import ContextError, EntityError, PolicyError, TollkeeperError

__all__ = ["Case", "CaseError", "CaseFile", "Expectation", "Failure", "Policy", "Report", "read", "run"]

# A case file is written by people; a megabyte of them is a book.
CASES_BYTES_MAX: Final = 1 << 20
REQUEST_KEYS: Final = ("principal", "action", "resource")
HEADER_KEYS: Final = ("policies", "schema", "entities", *REQUEST_KEYS)
BLOCKS: Final = ("cedar", "cedarschema", "entities", "case")
CASE_KEYS: Final = ("case", *REQUEST_KEYS, "context", "cedar context", "expect")


class CaseError(TollkeeperError, ValueError):
    """A case file cannot be used; the message names file and line."""


@dataclass(frozen=True)
class Expectation:
    """What a case expects."""

    decision: Literal["allow", "deny"]
    reasons: frozenset[str] | None
    """``None`` where any reason will do; empty where nothing may permit."""
    errors: frozenset[str]
    text: str
    """As written."""


@dataclass(frozen=True)
class Case:
    """One request and what is expected of it."""

    name: str
    line: int
    principal: str
    action: str
    resource: str
    context: dict[str, Any] | str
    """Plain data as a dict; Cedar's JSON with its escapes as ``str``."""
    expect: Expectation


@dataclass
class CaseFile:
    """A case file, read but not run."""

    path: Path
    sources: list[str | Path] = field(default_factory=list)
    """Policy texts, each with its lines where they stand in the case file, and policy files."""
    schema: str | Path | None = None
    entities: str | Path | None = None
    cases: list[Case] = field(default_factory=list)
    defaults: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """A policy under test, named by where it stands."""

    id: str
    file: str
    line: int
    column: int


@dataclass(frozen=True)
class Failure:
    """A case that went otherwise."""

    file: str
    line: int
    case: str
    expected: str
    actual: str
    errors: tuple[tuple[str, str], ...] = ()
    """Policies that erred, each with the message."""


@dataclass
class Report:
    """What one file gave."""

    file: str
    cases: int
    failures: list[Failure]
    satisfied: dict[Policy, int]
    """In how many cases each policy was satisfied, whether or not another one decided."""


def read(path: str | os.PathLike[str]) -> CaseFile:
    """Reads a case file; ``.toml`` is TOML, everything else Markdown.

    Raises:
        CaseError: With file and line.
        OSError: The file cannot be read.
    """
    file = Path(path)
    try:
        text = config.read_text(file, CASES_BYTES_MAX)
    except TollkeeperError as error:
        raise CaseError(str(error), error.code, error.help) from None
    reader = _Reader(CaseFile(file))
    if file.suffix == ".toml":
        reader.toml(text)
    else:
        reader.markdown(text.splitlines())
    if not reader.file.sources:
        raise _fault(
            file, 0, "the file has no policies", "put them in a ```cedar block, or name a file: policies: FILE"
        )
    if not reader.file.cases:
        raise _fault(file, 0, "the file has no cases", "write a table with a column `expect`")
    return reader.file


def run(file: CaseFile) -> Report:
    """Loads the policies and asks every case.

    Raises:
        PolicyError: The policies or the schema cannot be used.
        EntityError: The entities cannot be used.
        CaseError: A request cannot be made, or an expectation names a policy that does not exist.
    """
    name = str(file.path)
    try:
        policies = PolicySet.from_cedar(list(file.sources), file.schema, ids="annotation")
        entities = Entities() if file.entities is None else Entities.from_json(file.entities, file.schema)
    except (PolicyError, EntityError) as error:
        for detail in error.errors:
            detail.file = detail.file or name
        raise
    report = Report(name, len(file.cases), [], {})
    by_id: dict[str, Policy] = {}
    for policy in policies.ids:
        where, line, column = policies.place(policy)
        by_id[policy] = Policy(policy, where or name, line, column)
        report.satisfied[by_id[policy]] = 0
    for case in file.cases:
        _check_names(file, case, by_id)
        answer, outcomes = _ask(file, case, policies, entities)
        for policy, outcome in outcomes.items():
            report.satisfied[by_id[policy]] += outcome == "satisfied"
        errors = tuple((error.policy, error.message) for error in answer.errors)
        if not _as_expected(case.expect, answer, frozenset(policy for policy, _ in errors)):
            actual = _words(answer, [policy for policy, _ in errors])
            report.failures.append(Failure(name, case.line, case.name, case.expect.text, actual, errors))
    return report


def _ask(file: CaseFile, case: Case, policies: PolicySet, entities: Entities) -> tuple[Answer, dict[str, str]]:
    try:
        if isinstance(case.context, str):
            action = None if file.schema is None else case.action
            context = Context.from_cedar_json(case.context, file.schema, action=action)
        else:
            context = Context(case.context)
        request = (*_uids(file, case), context, entities)
        return policies.decide(*request), policies.outcomes(*request)
    except CaseError:
        raise
    except (EntityError, ContextError) as error:
        raise _fault(file.path, case.line, str(error.args[0]), error.help) from None
    except TollkeeperError as error:
        raise _fault(file.path, case.line, str(error), error.help) from None


def _uids(file: CaseFile, case: Case) -> tuple[EntityUid, EntityUid, EntityUid]:
    def parsed(key: str, text: str) -> EntityUid:
        try:
            return EntityUid.parse(text)
        except EntityError as error:
            raise _fault(file.path, case.line, f"{key} {text}: {error.args[0]}", error.help) from None

    return parsed("principal", case.principal), parsed("action", case.action), parsed("resource", case.resource)


def _as_expected(expect: Expectation, answer: Answer, errors: frozenset[str]) -> bool:
    because = expect.reasons is None or frozenset(answer.reasons) == expect.reasons
    return answer.decision == expect.decision and because and errors == expect.errors


def _words(answer: Answer, errors: list[str]) -> str:
    """An answer in the words of an expectation."""
    by = f" by {', '.join(answer.reasons)}" if answer.reasons else " (nothing permits)"
    return f"{answer.decision}{by}" + (f"; error in {', '.join(errors)}" if errors else "")


def _check_names(file: CaseFile, case: Case, known: dict[str, Policy]) -> None:
    """A misspelt policy would make a case fail for a reason that nobody sees."""
    for policy in (case.expect.reasons or frozenset()) | case.expect.errors:
        if policy not in known:
            hint = f"the policies are: {', '.join(list(known)[:10])}{', ...' if len(known) > 10 else ''}"  # noqa: PLR2004 - enough to find it
            raise _fault(file.path, case.line, f"no policy has the id `{policy}`", hint)


def _fault(file: Path, line: int, message: str, hint: str | None = None) -> CaseError:
    where = f"{file}:{line}" if line else str(file)
    return CaseError(f"{where}: {message}", "cases.invalid", hint)


EXPECT_HINT: Final = (
    "write allow, allow by ID, deny by ID, or deny (nothing permits); then, if policies err: ; error in ID"
)


def expectation(text: str) -> Expectation:
    """Reads an expectation.

    Raises:
        ValueError: It is not one.

    Example:
        >>> expectation("deny by no-secrets; error in own-files").decision
        'deny'
    """
    plain = text.replace("`", "").strip()
    main, *rest = (part.strip() for part in plain.split(";"))
    errors: frozenset[str] = frozenset()
    if len(rest) > 1:
        raise ValueError(f"an expectation has at most two parts: {plain}")
    if rest:
        erring = re.fullmatch(r"errors? in (.+)", rest[0], re.IGNORECASE)
        if erring is None:
            raise ValueError(f"after `;` only `error in ID` can follow, not `{rest[0]}`")
        errors = _ids(erring[1])
    if re.fullmatch(r"deny \(nothing permits\)", main, re.IGNORECASE):
        return Expectation("deny", frozenset(), errors, plain)
    found = re.fullmatch(r"(allow|deny)(?: by (.+))?", main, re.IGNORECASE)
    if found is None:
        if re.match(r"errors? in ", main, re.IGNORECASE):
            raise ValueError(f"say the decision too: deny (nothing permits); {main}")
        raise ValueError(f"not an expectation: `{plain}`")
    reasons = None if found[2] is None else _ids(found[2])
    return Expectation("allow" if found[1].lower() == "allow" else "deny", reasons, errors, plain)


def _ids(text: str) -> frozenset[str]:
    ids = [part.strip() for part in text.split(",")]
    if not all(ids):
        raise ValueError(f"an id is missing in `{text}`")
    return frozenset(ids)


class _Reader:
    """Fills a `CaseFile`, line by line."""

    def __init__(self, file: CaseFile) -> None:
        self.file = file

    def fault(self, line: int, message: str, hint: str | None = None) -> CaseError:
        return _fault(self.file.path, line, message, hint)

    def header(self, key: str, value: str, line: int) -> None:
        """One setting: files relative to the case file, or what a case has that does not say otherwise."""
        folder = self.file.path.parent
        if key == "policies":
            for pattern in filter(None, (part.strip() for part in value.split(","))):
                names = [pattern]
                if glob.has_magic(pattern):
                    names = sorted(glob.glob(pattern, root_dir=folder, recursive=True))  # noqa: PTH207 - may start with ../
                if not names:
                    raise self.fault(line, f"no file matches: {pattern}")
                self.file.sources.extend(self.existing(folder / name, line) for name in names)
        elif key == "schema":
            self.file.schema = self.existing(folder / value, line)
        elif key == "entities":
            self.file.entities = self.existing(folder / value, line)
        elif key in REQUEST_KEYS:
            self.file.defaults[key] = value.replace("`", "")
        else:
            raise self.fault(line, f"unknown key `{key}`", f"known here: {', '.join(HEADER_KEYS)}")

    def existing(self, file: Path, line: int) -> Path:
        if not file.is_file():
            raise self.fault(line, f"no such file: {file}", "names are relative to the case file")
        return file

    def case(self, cells: dict[str, str], line: int) -> None:
        """One case from its texts."""
        request = {key: cells.get(key) or self.file.defaults.get(key, "") for key in REQUEST_KEYS}
        for key, value in request.items():
            if not value:
                raise self.fault(
                    line, f"the case has no {key}", f'add a column, or a default at the top: {key}: Type::"id"'
                )
        if not cells.get("expect"):
            raise self.fault(line, "the case expects nothing", EXPECT_HINT)
        try:
            expect = expectation(cells["expect"])
        except ValueError as error:
            raise self.fault(line, str(error), EXPECT_HINT) from None
        name = cells.get("case") or f"case {len(self.file.cases) + 1}"
        self.file.cases.append(Case(name, line, **request, context=self.context(cells, line), expect=expect))

    def context(self, cells: dict[str, str], line: int) -> dict[str, Any] | str:
        """Plain data, from one cell or from one column for each value; or Cedar's own JSON."""
        paths = {key: value for key, value in cells.items() if key.startswith("context.") and value}
        given = [key for key in ("context", "cedar context") if cells.get(key)] + list(paths)[:1]
        if len(given) > 1:
            raise self.fault(line, f"the context is given twice, as `{given[0]}` and as `{given[1]}`")
        if cells.get("cedar context"):
            return cells["cedar context"]
        if cells.get("context"):
            value = self.json(cells["context"], line)
            if not isinstance(value, dict):
                raise self.fault(line, "the context is not a JSON object")
            return cast("dict[str, Any]", value)
        context: dict[str, Any] = {}
        for key, text in paths.items():
            *parents, last = key.split(".")[1:]
            record = context
            for parent in parents:
                inner = record.setdefault(parent, {})
                if not isinstance(inner, dict):
                    raise self.fault(line, f"`{key}` is inside a column that is a value of its own")
                record = cast("dict[str, Any]", inner)
            if last in record:
                raise self.fault(line, f"`{key}` is given twice, once by a column inside it")
            record[last] = self.json(text, line) if _is_json(text) else text
        return context

    def json(self, text: str, line: int) -> Any:  # noqa: ANN401 - plain data of any shape
        def refused(word: str) -> NoReturn:
            raise self.fault(line, f"not JSON: {word}")

        try:
            return json.loads(text, parse_constant=refused)
        except json.JSONDecodeError as error:
            what = error.msg[:1].lower() + error.msg[1:]
            raise self.fault(line, f"bad JSON: {what}, at character {error.pos + 1} of {text}") from None
        except CaseError:
            raise
        except (ValueError, RecursionError) as error:
            what = "it nests too deeply" if isinstance(error, RecursionError) else "a number is too long"
            raise self.fault(line, f"bad JSON: {what}") from None

    def markdown(self, lines: list[str]) -> None:
        """Front matter, fenced blocks, tables; everything else is prose."""
        number = self.front(lines)
        while number < len(lines):
            line = lines[number]
            if fence := re.match(r" {0,3}(`{3,}|~{3,})\s*(.*)$", line):
                end = next((i for i in range(number + 1, len(lines)) if lines[i].strip() == fence[1]), None)
                if end is None:
                    raise self.fault(number + 1, f"the block that starts with {fence[1]} has no end")
                self.block(fence[2].strip(), lines[number + 1 : end], number + 2)
                number = end + 1
            elif line.lstrip().startswith("|"):
                end = next((i for i in range(number, len(lines)) if not lines[i].lstrip().startswith("|")), len(lines))
                self.table(lines[number:end], number + 1)
                number = end
            else:
                number += 1

    def front(self, lines: list[str]) -> int:
        """Settings between two lines of dashes at the very top."""
        if not lines or lines[0].rstrip() != "---":
            return 0
        for number, line in enumerate(lines[1:], 2):
            if line.rstrip() == "---":
                return number
            if line.strip():
                key, colon, value = line.partition(":")
                if not colon or not value.strip():
                    raise self.fault(number, f"not a setting: {line.strip()}", "write: key: value")
                self.header(key.strip().lower(), value.strip(), number)
        raise self.fault(1, "the settings at the top have no closing ---")

    def block(self, info: str, lines: list[str], first: int) -> None:
        """One fenced block; `first` is the line after the fence."""
        word, _, rest = info.partition(" ")
        # Empty lines in front, so that positions in errors are those of the case file.
        padded = "\n" * (first - 1) + "\n".join(lines)
        if word == "cedar":
            self.file.sources.append(padded)
        elif word in {"cedarschema", "entities"}:
            key = "schema" if word == "cedarschema" else "entities"
            if getattr(self.file, key) is not None:
                raise self.fault(first - 1, f"the file already has {'a schema' if key == 'schema' else 'entities'}")
            setattr(self.file, key, padded)
        elif word == "case":
            self.fenced_case(rest.strip(), lines, first)
        elif close := difflib.get_close_matches(word.lower(), BLOCKS, 1, 0.75):
            raise self.fault(first - 1, f"unknown kind of block `{word}`", f"did you mean `{close[0]}`?")

    def fenced_case(self, name: str, lines: list[str], first: int) -> None:
        """`key: value` lines; a line that starts with white space continues the one before."""
        cells: dict[str, str] = {"case": name}
        key = ""
        for number, line in enumerate(lines, first):
            if line[:1].isspace() and line.strip() and key:
                cells[key] += "\n" + line.strip()
            elif line.strip():
                key, colon, value = (part.strip() for part in line.partition(":"))
                key = key.lower()
                self.known(key, number)
                if not colon or cells.get(key):
                    raise self.fault(number, f"`{key}` is given twice" if colon else f"not a setting: {line}")
                cells[key] = _unticked(value)
        self.case(cells, first - 1)

    def known(self, key: str, line: int) -> None:
        if key not in CASE_KEYS and not re.fullmatch(r"context(\.[^.\s]+)+", key):
            raise self.fault(line, f"unknown key `{key}`", f"known here: {', '.join(CASE_KEYS)}, context.NAME")

    def table(self, lines: list[str], first: int) -> None:
        """A table with a column `expect`; others are prose."""
        heads = [head if head.startswith("context.") else head.lower() for head in map(_unticked, _cells(lines[0]))]
        if "expect" not in heads:
            if set(heads) & set(CASE_KEYS) or any(head.startswith("context.") for head in heads):
                raise self.fault(first, "a table of cases has no column `expect`")
            return
        for head in heads:
            self.known(head, first)
        if len(set(heads)) < len(heads):
            raise self.fault(first, "two columns have the same name")
        if len(lines) < 2 or not re.fullmatch(r"[\s|:-]+", lines[1]):  # noqa: PLR2004 - head and rule
            raise self.fault(first, "the line under a table's head must be |---|---|")
        for number, line in enumerate(lines[2:], first + 2):
            cells = _cells(line)
            if len(cells) != len(heads):
                hint = "a | inside a cell is written \\|"
                raise self.fault(number, f"the row has {len(cells)} cells, the table {len(heads)} columns", hint)
            self.case({head: _unticked(cell) for head, cell in zip(heads, cells, strict=True)}, number)

    def toml(self, text: str) -> None:
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            what = "values nest too deeply" if isinstance(error, RecursionError) else str(error)
            raise self.fault(0, what[:1].lower() + what[1:]) from None
        given = document.pop("case", [])
        cases = given if _is_list(given) else [given]
        if not all(isinstance(case, dict) for case in cases):
            raise self.fault(0, "cases are written as [[case]]")
        if "cedar" in document:
            self.file.sources.append(self.string("cedar", document.pop("cedar"), 0))
        for key, value in document.items():
            for one in value if key == "policies" and _is_list(value) else [value]:
                self.header(key, self.string(key, one, 0), 0)
        lines = [n for n, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*case\s*\]\]", line)]
        for index, case in enumerate(cases):
            self.toml_case(cast("dict[str, Any]", case), lines[index] if len(lines) == len(cases) else 0)

    def toml_case(self, case: dict[str, Any], line: int) -> None:
        case = {key.replace("_", " "): value for key, value in case.items()}
        if "name" in case:
            case["case"] = case.pop("name")
        for key in case:
            if key not in CASE_KEYS:
                raise self.fault(line, f"unknown key `{key}`", f"known here: name, {', '.join(CASE_KEYS[1:])}")
        cells = {
            key: self.string(key, value, line) for key, value in case.items() if key not in {"context", "cedar context"}
        }
        for key in ("context", "cedar context"):
            if key in case:
                try:
                    cells[key] = json.dumps(case[key], allow_nan=False)
                except (TypeError, ValueError):
                    hint = 'write a time as text, or as {__extn = {fn = "datetime", arg = "..."}} in cedar_context'
                    raise self.fault(line, f"{key} holds a value that JSON has not", hint) from None
        self.case(cells, line)

    def string(self, key: str, value: object, line: int) -> str:
        if not isinstance(value, str):
            raise self.fault(line, f"`{key}` must be text")
        return value


def _is_list(value: object) -> TypeGuard[list[Any]]:
    """What `isinstance` says, with the element type that TOML has."""
    return isinstance(value, list)


def _is_json(text: str) -> bool:
    """Whether a cell is written as JSON: a quoted text, a number, a list, an object, true, false or null."""
    return text[:1] in {'"', "[", "{"} or bool(re.fullmatch(r"true|false|null|-?\d+(\.\d+)?([eE][+-]?\d+)?", text))


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|")
    inner = inner[:-1] if inner.endswith("|") and not inner.endswith("\\|") else inner
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


def _unticked(cell: str) -> str:
    """A cell without the backticks around the whole of it."""
    found = re.fullmatch(r"`([^`]*)`", cell.strip())
    return found[1].strip() if found else cell.strip()
