"""Policy cases: the committed files pass, the reader refuses what it does not understand, the report is readable."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper import cases

Cli = Callable[..., Any]
Snapshot = Callable[[Any], None]

CASES = Path(__file__).resolve().parent.parent / "cases"
FILES = sorted([*CASES.glob("*.md"), *CASES.glob("*.toml")])

TOP = """\
---
principal: U::"a"
action: A::"read"
resource: R::"r"
---
```cedar
@id("small")
permit (principal, action, resource) when { context.n < 10 };
@id("never")
forbid (principal == U::"nobody", action, resource);
```
"""
HEAD = "| case | context | expect |\n|---|---|---|\n"


def test_there_are_case_files() -> None:
    assert len(FILES) >= 4


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_committed_cases_pass_and_cover_their_policies(file: Path) -> None:
    report = cases.run(cases.read(file))
    assert report.failures == []
    assert report.cases >= 5
    assert [policy.id for policy, count in report.satisfied.items() if not count and "safely" not in policy.id] == []


def test_report(cli: Cli, snapshot: Snapshot, tmp_path: Path) -> None:
    rows = [
        '| fine | `{"n": 1}` | allow by small |',
        '| too large | `{"n": 10}` | allow by small |',
        "| errs | `{}` | deny (nothing permits) |",
        '| the wrong reason | `{"n": 10}` | deny by never |',
    ]
    (tmp_path / "c.md").write_text(TOP + HEAD + "\n".join(rows) + "\n")
    snapshot(cli("policy", "test", "c.md"))


def test_report_json(cli: Cli, snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "c.md").write_text(TOP + HEAD + "| errs | `{}` | deny |\n")
    snapshot(cli("policy", "test", "--json", "c.md"))


def test_coverage_can_be_required(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "c.md").write_text(TOP + HEAD + '| fine | `{"n": 1}` | allow by small |\n')
    assert cli("policy", "test", "c.md").code == 0
    assert cli("policy", "test", "--require-coverage", "c.md").code == 1


REFUSED = {
    "no_cases": (TOP, "the file has no cases"),
    "no_policies": (HEAD, "the file has no policies"),
    "unknown_setting": ("---\nprincipl: x\n---\n", ":2: unknown key `principl`"),
    "unclosed_settings": ("---\nprincipal: x\n", ":1: the settings at the top have no closing ---"),
    "unclosed_block": ("```cedar\n", ":1: the block that starts with ``` has no end"),
    "misspelt_block": ("```ceddar\n```\n", ":1: unknown kind of block `ceddar`"),
    "missing_file": ("---\npolicies: none.cedar\n---\n", ":2: no such file: "),
    "missing_pattern": ("---\npolicies: *.none\n---\n", ":2: no file matches: *.none"),
    "no_expect_column": (TOP + "| case | expct |\n|---|---|\n", ":12: a table of cases has no column `expect`"),
    "unknown_column": (TOP + "| cas | expect |\n|---|---|\n", ":12: unknown key `cas`"),
    "too_many_cells": (TOP + HEAD + "| a | b | deny | c |\n", ":14: the row has 4 cells, the table 3 columns"),
    "no_principal": (
        TOP.replace('principal: U::"a"\n', "") + HEAD + "| a | | deny |\n",
        ":13: the case has no principal",
    ),
    "no_expectation": (TOP + HEAD + "| a | | |\n", ":14: the case expects nothing"),
    "not_an_expectation": (TOP + HEAD + "| a | | denied |\n", ":14: not an expectation: `denied`"),
    "error_alone": (TOP + HEAD + "| a | | error in small |\n", ":14: say the decision too"),
    "no_id": (TOP + HEAD + "| a | | deny by small, |\n", ":14: an id is missing in `small,`"),
    "bad_json": (TOP + HEAD + "| a | `{n: 1}` | deny |\n", ":14: bad JSON: "),
    "not_an_object": (TOP + HEAD + "| a | `[1]` | deny |\n", ":14: the context is not a JSON object"),
    "nan": (TOP + HEAD + '| a | `{"n": NaN}` | deny |\n', ":14: not JSON: NaN"),
    "unknown_case_key": (TOP + "```case x\nexpects: deny\n```\n", ":13: unknown key `expects`"),
    "given_twice": (TOP + "```case x\nexpect: deny\nexpect: allow\n```\n", ":14: `expect` is given twice"),
    "two_contexts": (
        TOP + "| context | context.n | expect |\n|---|---|---|\n| `{}` | 1 | deny |\n",
        ":14: the context is given twice",
    ),
    "value_and_record": (
        TOP + "| context.n | context.n.m | expect |\n|---|---|---|\n| 1 | 1 | deny |\n",
        ":14: `context.n.m` is inside a column",
    ),
    "record_and_value": (
        TOP + "| context.n.m | context.n | expect |\n|---|---|---|\n| 1 | 1 | deny |\n",
        ":14: `context.n` is given twice",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused(tmp_path: Path, name: str) -> None:
    text, message = REFUSED[name]
    file = tmp_path / "c.md"
    file.write_text(text)
    with pytest.raises(cases.CaseError) as caught:
        cases.read(file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(file))


def test_an_expectation_names_known_policies(cli: Cli, snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "c.md").write_text(TOP + HEAD + "| a | `{}` | deny by nevr |\n")
    snapshot(cli("policy", "test", "c.md"))


def test_errors_in_policies_have_the_line_of_the_case_file(cli: Cli, snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "c.md").write_text(TOP.replace("context.n <", "context.n <<") + HEAD + "| a | `{}` | deny |\n")
    snapshot(cli("policy", "test", "c.md"))


def test_a_bad_uid_has_the_line_of_its_case(cli: Cli, snapshot: Snapshot, tmp_path: Path) -> None:
    (tmp_path / "c.md").write_text(TOP.replace('U::"a"', "U::a") + HEAD + "| a | `{}` | deny |\n")
    snapshot(cli("policy", "test", "c.md"))


TOML = """\
cedar = 'permit (principal, action, resource);'
principal = 'U::"a"'
action = 'A::"a"'
resource = 'R::"r"'

[[case]]
name = "first"
expect = "allow by policy#1"

"""
REFUSED_TOML = {
    "syntax": ("x = ", "invalid value"),
    "unknown_key": (TOML + "[[case]]\nexpct = 'deny'\n", ":10: unknown key `expct`"),
    "unknown_setting": ("polices = 'x'\n" + TOML, "unknown key `polices`"),
    "not_text": (TOML + "[[case]]\nexpect = 3\n", ":10: `expect` must be text"),
    "a_date": (TOML + "[[case]]\nexpect = 'deny'\ncontext = { now = 2026-01-01 }\n", ":10: context holds a value"),
    "one_case": ("case = 3\n", "cases are written as [[case]]"),
}


@pytest.mark.parametrize("name", REFUSED_TOML)
def test_what_is_not_understood_is_refused_in_toml(tmp_path: Path, name: str) -> None:
    text, message = REFUSED_TOML[name]
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(cases.CaseError) as caught:
        cases.read(file)
    assert message in str(caught.value)


def test_toml_cases_know_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(TOML)
    read = cases.read(file)
    assert [(case.name, case.line) for case in read.cases] == [("first", 6)]
    assert cases.run(read).failures == []


def test_json_names_every_policy(cli: Cli) -> None:
    done = cli("policy", "test", "--json", str(CASES / "mail_after_untrusted_text.md"))
    result = json.loads(done.out)
    assert done.code == 0
    assert {policy["id"] for policy in result["policies"]} == {
        "mail",
        "known-people-after-untrusted-text",
        "no-mail-about-secrets",
    }


PIECES = st.sampled_from(
    [
        "---\n",
        "```cedar\n",
        "```\n",
        "```case x\n",
        "| case | expect |\n",
        "|---|---|\n",
        "| a | deny |\n",
        "\n",
        "|",
        ":",
    ]
)


@given(st.lists(PIECES | st.text(max_size=8)).map("".join))
def test_no_text_breaks_the_reader(text: str) -> None:
    reader = cases._Reader(cases.CaseFile(Path("c.md")))
    with contextlib.suppress(cases.CaseError):
        reader.markdown(text.splitlines())
