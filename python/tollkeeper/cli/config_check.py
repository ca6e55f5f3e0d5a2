"""``tollkeeper config check``: everything that is wrong with a configuration and the files it names, at once.

It loads what a gate is made of and then lets go of it: no log, no state of a ledger and nothing that other processes
share is opened or made, no case is run, nothing is decided. Findings are results, so they go to standard output and the
exit code is 1; a configuration that cannot be read is 2.
"""

import argparse
import copy
import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

import tollkeeper
from tollkeeper import _native, config, watch
from tollkeeper.cli import gates
from tollkeeper.cli.terminal import (
    EXIT_NO,
    EXIT_OK,
    InputError,
    counted,
    out,
    out_json,
    place,
    shown,
    shown_lines,
    warning,
)
from tollkeeper.errors import BudgetError, ConfigError, EntityError, ErrorDetail, PolicyError, TollkeeperError
from tollkeeper.gate import gate_sources

FINDING_KEYS = ("code", "message", "file", "line", "column", "offending", "help")
# Where a message names its place itself: the start of an error of the configuration.
_PLACE = re.compile(r"(?P<file>[^\n]+?):(?P<line>\d+):(?:(?P<column>\d+):)? (?P<what>.*)", re.DOTALL)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    gates.add_file(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Loads everything and lists what is wrong."""
    file = arguments.file or config.find()
    if file is None:
        raise InputError(
            f"no {config.FILE_NAME} here, so a gate denies everything", "tollkeeper init, or name the file"
        )
    rehearsal = Rehearsal(file)
    rehearsal.all()
    if arguments.json:
        findings = [{key: getattr(detail, key) for key in FINDING_KEYS} for detail in rehearsal.findings]
        out_json({"file": str(file), "valid": not findings, "findings": findings, "warnings": rehearsal.warnings})
    else:
        _print(file, rehearsal)
    return EXIT_NO if rehearsal.findings else EXIT_OK


class Rehearsal:
    """Loads a configuration part by part and collects what is wrong.

    Args:
        file: The configuration.

    Raises:
        OSError: It cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.findings: list[ErrorDetail] = []
        self.warnings: list[str] = []
        self.policies = 0
        self.reading = config.examine(file)
        found = [_detail(fault, file) for fault in self.reading.faults]
        self.findings.extend(sorted(found, key=lambda detail: detail.line))

    def all(self) -> None:
        """Loads every part that can be loaded, whatever is wrong with the others."""
        settings = self.reading.settings
        if settings is None:
            return
        self._folders(settings)
        self._policies(settings)
        ledger = self._ledger(settings)
        if not self.findings:
            self._gate(settings, ledger)
        else:
            self._tools(settings)
        if not self.findings and not settings.policy_files:
            self.warnings.append(f"{settings.file}: no policy files, so everything is denied")
        if settings.gate.watch and not installed("watchfiles"):
            message = "gate.watch: needs the package `watchfiles`, which is not installed: a gate would not open"
            line = self._line("gate", "watch")
            self.findings.append(
                ErrorDetail("config.watch", message, str(settings.file), line, help=watch.MISSING_HELP)
            )
        costs = [name for name, tool in settings.tools.items() if any((tool.cost or {}).values())]
        if costs and settings.budget_file is None:
            what = f"{counted(len(costs), 'tool')} with a cost, and no budgets that could pay: such calls are denied"
            self.warnings.append(f"{settings.file}: {what}")

    def _add(self, error: Exception, file: Path | None, line: int = 0, where: str = "") -> bool:
        """Adds the findings of an error that are new; says whether there were any."""
        details = list(getattr(error, "errors", ())) or [_detail(error, file)]
        new = False
        for detail in details:
            named = copy.copy(detail)
            if named.file is None and file is not None:
                named.file, named.line = str(file), named.line or line
                named.message = f"{where}{named.message}"
            if named not in self.findings:
                self.findings.append(named)
                new = True
        return new

    def _line(self, *path: str) -> int:
        return (self.reading.place.line(path) if self.reading.place is not None else None) or 0

    def _folders(self, settings: config.Config) -> None:
        """What has to be a folder, or a file, and is the other."""
        for path, at, folder in (
            (settings.audit_dir, ("audit", "dir"), True),
            (settings.state_dir, ("state", "dir"), True),
            (settings.budget_state, ("budget", "state"), False),
        ):
            if path is not None and (path.is_file() if folder else path.is_dir()):
                message = f"{'.'.join(at)}: is a {'file, not a folder' if folder else 'folder, not a file'}: {path}"
                self.findings.append(ErrorDetail("config.invalid", message, str(settings.file), self._line(*at)))

    def _policies(self, settings: config.Config) -> None:
        schema = settings.schema_file
        try:
            if settings.policy_files:
                made = tollkeeper.PolicySet.from_cedar(list(settings.policy_files), schema, ids="annotation")
                self.policies = len(made)
                self.warnings.extend(made.warnings)
        except (TollkeeperError, OSError) as error:
            self._add(error, _named(error, None))
        if settings.entities_file is None or any(detail.code.startswith("schema.") for detail in self.findings):
            return
        try:
            tollkeeper.Entities.from_json(settings.entities_file, schema)
        except (TollkeeperError, OSError) as error:
            self._add(error, settings.entities_file)

    def _ledger(self, settings: config.Config) -> tollkeeper.Ledger | None:
        """The budgets in a ledger of its own, in memory: whatever the real one has used stays as it is."""
        if settings.budget_file is None:
            return None
        try:
            return tollkeeper.Ledger.open(settings.budget_file)
        except (ConfigError, BudgetError, OSError) as error:
            self._add(error, _named(error, settings.budget_file))
            return None

    def _gate(self, settings: config.Config, ledger: tollkeeper.Ledger | None) -> None:
        """The whole, and where that fails, which tools are to blame, and what is wrong besides."""
        try:
            with gates.rehearsed(settings, ledger) as gate:
                self.warnings.extend(text for text in gate.warnings if text not in self.warnings)
        except (TollkeeperError, OSError) as error:
            failure = error
        else:
            return
        found = self._tools(settings)
        try:
            with gates.rehearsed(msgspec.structs.replace(settings, tools={}), ledger):
                pass
        except (TollkeeperError, OSError) as error:
            found = self._add(error, _named(error, None)) or found
        if not found:
            self._add(failure, _named(failure, settings.file))

    def _tools(self, settings: config.Config) -> bool:
        """Each tool by itself, since a gate names the first one that is wrong."""
        found = False
        plain = msgspec.structs.replace(config.default(), file=settings.file)
        for name, tool in settings.tools.items():
            alone = msgspec.structs.replace(plain, tools={name: tool})
            try:
                _native.Gate(gate_sources(alone), 1, lambda: None).close()
            except (PolicyError, EntityError) as error:
                key = {"uid": "resource", "tool.schema": "schema", "tool.paths": "paths"}
                code = error.code if error.code in key else error.code.partition(".")[0]
                line = self._line("tools", name, *([key[code]] if code in key else []))
                where = "" if error.code.startswith("tool.") else f"tool `{name}`: "
                found = self._add(error, settings.file, line, where) or found
        return found


def installed(name: str) -> bool:
    """Whether a distribution is installed; it is not imported."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _detail(error: Exception, file: Path | None) -> ErrorDetail:
    """An error as one finding, its place taken from the start of its message if it has one there."""
    code, help_ = getattr(error, "code", "io"), getattr(error, "help", None)
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        return ErrorDetail(code, reason[:1].lower() + reason[1:], None if file is None else str(file))
    message = str(error.args[0])
    found = _PLACE.fullmatch(message)
    if found is None and file is not None and message.startswith(f"{file}: "):
        return ErrorDetail(code, message.removeprefix(f"{file}: "), str(file), help=help_)
    if found is None:
        return ErrorDetail(code, message, help=help_)
    return ErrorDetail(
        code, found["what"], found["file"], int(found["line"]), int(found["column"] or 0), "", cast("Any", help_)
    )


def _named(error: Exception, file: Path | None) -> Path | None:
    """The file that an error of the system names, else the one that was asked for."""
    name = getattr(error, "filename", None)
    return Path(name) if isinstance(name, str) else file


def _print(file: Path, rehearsal: Rehearsal) -> None:
    for detail in rehearsal.findings:
        out(shown(place(detail.file, detail.line, detail.column)) + shown_lines(detail.message))
        if detail.offending:
            out(f"  {shown(detail.offending)}")
        if detail.help:
            out(f"  help: {shown_lines(detail.help)}")
    for text in rehearsal.warnings:
        warning(text)
    if rehearsal.findings:
        out(counted(len(rehearsal.findings), "finding"))
        return
    out(shown(f"{file}: valid: {', '.join(_parts(rehearsal))}"))


def _parts(rehearsal: Rehearsal) -> Iterator[str]:
    settings = rehearsal.reading.settings
    if settings is None:
        return
    yield counted(rehearsal.policies, "policy", "policies")
    yield counted(len(settings.tools), "tool")
    yield "no budgets" if settings.budget_file is None else "budgets"
    yield "no audit log" if settings.audit is None else "audit log"
    yield f"mode {settings.gate.mode}"
