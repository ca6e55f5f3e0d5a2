"""``tollkeeper policy test``: runs policy cases and says which policies no case has tested.

Prints each case that went otherwise with file and line, then counts, then the policies that no case satisfied. It tests
policies as the language has them; a gate's own checks come before and after.
"""

import argparse
from pathlib import Path

from tollkeeper import cases
from tollkeeper.cli import inputs
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, InputError, coloured, counted, out, out_json, place, shown


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "files",
        metavar="CASES",
        nargs="*",
        type=Path,
        help="case files, .md or .toml; without them those that the configuration names",
    )
    inputs.add_config(parser)
    parser.add_argument("--require-coverage", action="store_true", help="fail if a policy is satisfied in no case")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Runs every case; 1 if one fails."""
    files = arguments.files
    if not files:
        settings = inputs.load_config(arguments.config)
        files = settings.test_files
        if not files:
            raise InputError(f"{settings.file}: policy.tests names no case files", 'tests = ["policies/*.md"]')
    reports = [cases.run(cases.read(file)) for file in files]
    failures = [failure for report in reports for failure in report.failures]
    satisfied: dict[cases.Policy, int] = {}
    for report in reports:
        for policy, count in report.satisfied.items():
            satisfied[policy] = satisfied.get(policy, 0) + count
    untested = [policy for policy, count in satisfied.items() if not count]
    total = sum(report.cases for report in reports)
    if arguments.json:
        _print_json(total, failures, satisfied)
    else:
        _print(total, failures, len(satisfied), untested)
    return EXIT_NO if failures or (arguments.require_coverage and untested) else EXIT_OK


def _print(total: int, failures: list[cases.Failure], policies: int, untested: list[cases.Policy]) -> None:
    for failure in failures:
        out(f"{coloured('FAIL', 'red')} {shown(place(failure.file, failure.line) + failure.case)}")
        out(f"  expected: {shown(failure.expected)}")
        out(f"  actual:   {shown(failure.actual)}")
        for erring, message in failure.errors:
            out(f"  {shown(erring)}: {shown(message)}")
    passed = total - len(failures)
    out(f"{counted(total, 'case')}: {passed:,} passed, {len(failures):,} failed")
    covered = policies - len(untested)
    out(f"{counted(policies, 'policy', 'policies')}: {covered:,} satisfied in a case, {len(untested):,} in none")
    for policy in untested:
        out(f"  not tested: {shown(place(policy.file, policy.line, policy.column) + policy.id)}")


def _print_json(total: int, failures: list[cases.Failure], satisfied: dict[cases.Policy, int]) -> None:
    out_json(
        {
            "cases": total,
            "failures": [
                {
                    "file": failure.file,
                    "line": failure.line,
                    "case": failure.case,
                    "expected": failure.expected,
                    "actual": failure.actual,
                    "errors": [{"policy": policy, "message": message} for policy, message in failure.errors],
                }
                for failure in failures
            ],
            "policies": [
                {"id": policy.id, "file": policy.file, "line": policy.line, "satisfied": count}
                for policy, count in satisfied.items()
            ],
        }
    )
