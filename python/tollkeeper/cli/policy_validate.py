"""``tollkeeper policy validate``: whether policies, schema and entities can be used.

Findings are results, so they go to standard output and the exit code is 1; a file that cannot be opened is 2. With a
configuration the gate is loaded as well, which refuses more than the language does. Nothing is rewritten.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tollkeeper
from tollkeeper.cli import inputs
from tollkeeper.cli.terminal import EXIT_NO, EXIT_OK, counted, out, out_json, place, shown, shown_lines, warning
from tollkeeper.errors import ConfigError, EntityError, ErrorDetail, PolicyError

FINDING_KEYS = ("code", "message", "file", "line", "column", "offending", "help")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    inputs.add_sources(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Loads everything and lists what is wrong."""
    found = inputs.sources(arguments)
    findings: list[ErrorDetail] = []
    warnings: list[str] = []

    def attempt(load: Callable[[], Any], file: Path | None = None) -> Any:  # noqa: ANN401 - whatever is loaded
        try:
            return load()
        except (PolicyError, EntityError) as error:
            new = list(error.errors) or [ErrorDetail(error.code, str(error.args[0]))]
            for detail in new:
                detail.file = detail.file or (None if file is None else str(file))
        except ConfigError as error:
            new = [ErrorDetail(error.code, str(error), help=error.help)]
        findings.extend(detail for detail in new if detail not in findings)
        return None

    policies = attempt(lambda: inputs.load_policies(found.policies, found.schema, "annotation"))
    if found.entities is not None and not any(detail.code.startswith("schema.") for detail in findings):
        entities_file = found.entities
        attempt(lambda: tollkeeper.Entities.from_json(entities_file, found.schema), entities_file)
    if policies is not None:
        warnings = list(policies.warnings)
    gate = getattr(tollkeeper, "Gate", None)
    if arguments.policies is None and gate is not None and not findings:
        opened = attempt(lambda: gate.open(arguments.config))
        warnings.extend(text for text in getattr(opened, "warnings", []) if text not in warnings)
    number = 0 if policies is None else len(policies)
    _print(found, number, findings, warnings, as_json=arguments.json)
    return EXIT_NO if findings else EXIT_OK


def _print(
    found: inputs.Sources, policies: int, findings: list[ErrorDetail], warnings: list[str], *, as_json: bool
) -> None:
    if as_json:
        listed = [{key: getattr(detail, key) for key in FINDING_KEYS} for detail in findings]
        out_json({"valid": not findings, "policies": policies, "findings": listed, "warnings": warnings})
        return
    for detail in findings:
        out(shown(place(detail.file, detail.line, detail.column)) + shown_lines(detail.message))
        if detail.offending:
            out(f"  {shown(detail.offending)}")
        if detail.help:
            out(f"  help: {shown_lines(detail.help)}")
    for text in warnings:
        warning(text)
    if findings:
        out(counted(len(findings), "finding"))
        return
    against = "without a schema" if found.schema is None else f"against {found.schema}"
    files = counted(len(found.policies), "file")
    out(shown(f"valid: {counted(policies, 'policy', 'policies')} in {files}, {against}"))
