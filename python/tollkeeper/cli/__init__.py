"""The command line: one module per verb, each imported only when its verb is used.

A verb's module has ``configure(parser)``, which declares its arguments, and ``run(arguments) -> int``. Results go to
standard output, everything else to standard error. Exit codes: 0 done or allowed, 1 the answer is no, 2 the input
cannot be used, 70 a defect of this package. The command line decides nothing itself; what changes what gates do goes
through `GateAdmin`.
"""

import argparse
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from tollkeeper.cli.terminal import EXIT_BAD_INPUT, EXIT_DEFECT, InputError, report_failure

__all__ = ["main"]

STDERR = 2

# Verb -> (module, what it does). The order is that of the help text.
VERBS = {
    "init": ("init", "write a working example of every file"),
    "check": ("check", "ask whether one action is allowed"),
    "status": ("status", "say how the gates are doing, while they run"),
    "revoke": ("revoke", "stop a principal, a tool, a session or everything"),
    "restore": ("restore", "take a revocation back"),
    "approvals": ("approvals", "list, show, grant and refuse what gates ask people for"),
    "reload": ("reload", "have running gates read their configuration again, once it is proved"),
    "decide": ("decide", "run a file of actions through a gate"),
    "config": (None, "check the configuration, and show what it comes to"),
    "policy": (None, "ask, test, explain and validate policies"),
    "budget": (None, "show, explain and change what budgets have left; replay a trace"),
    "audit": (None, "verify, show, prove, export and operate audit logs; decide recorded actions again"),
    "mcp": ("mcp", "stand between an MCP client and an MCP server, and decide what goes through"),
    "why": ("why", "say from the log why an action was denied, and what would change it"),
    "readiness": ("readiness", "say from a shadow gate's log what enforcing would have done"),
    "report": ("report", "write a page that shows what a log holds"),
    "hosts": ("hosts", "say what the adapter of each agent runtime guarantees"),
    "doctor": ("doctor", "say what this installation and this folder can and cannot do"),
    "bench": ("bench", "measure the gate of a configuration, and say whether latency budgets are kept"),
}
CONFIG_VERBS = {
    "check": ("config_check", "say everything that is wrong with the configuration and the files it names"),
    "show": ("config_show", "print every value that is in force, and where it comes from"),
}
POLICY_VERBS = {
    "authorize": ("policy_authorize", "answer requests, JSON lines in and out"),
    "validate": ("policy_validate", "check policies, schema and entities"),
    "test": ("policy_test", "run policy cases"),
    "explain": ("policy_explain", "say in words what policies mean, or why a request was decided as it was"),
    "matrix": ("policy_matrix", "print who may do what"),
    "conformance": ("policy_conformance", "compare with recorded answers of the reference"),
}

BUDGET_VERBS = {
    "show": ("budget_show", "print the budgets with what is used, held and left"),
    "explain": ("budget_explain", "say whether a cost fits, who would refuse it, and when that ends"),
    "holds": ("budget_holds", "print the holds that are alive"),
    "recover": ("budget_recover", "end the holds of processes that have died"),
    "set-limit": ("budget_set_limit", "change a limit of a ledger that is in use"),
    "replay": ("budget_replay", "drive recorded requests through budgets"),
}
AUDIT_VERBS = {
    "verify": ("audit_verify", "say what of a log holds: integrity, completeness, and how far it is anchored"),
    "show": ("audit_show", "print entries"),
    "tail": ("audit_tail", "print the newest entries, and follow"),
    "prove": ("audit_prove", "write the proof that an entry is in the log"),
    "check-proof": ("audit_check_proof", "check such a proof, without the log"),
    "export": ("audit_export", "write all entries to a file"),
    "erase": ("audit_erase", "erase what an entry commits to; the entry and its proofs stay"),
    "keygen": ("audit_keygen", "make a log's key and print its public half"),
    "checkpoints": ("audit_checkpoints", "print the checkpoints, or hand new ones to somebody else"),
    "rotate": ("audit_rotate", "end a log's epoch and begin the next"),
    "status": ("audit_status", "say how large a log is, who writes it, and who could rewrite it"),
    "replay": ("audit_replay", "decide recorded actions again, by the recorded policies or by others"),
}
# Beside what `mcp` does by itself.
MCP_VERBS = {
    "schema": ("mcp_schema", "write a Cedar schema and starter policies out of a server's tools"),
    "accept": ("mcp_accept", "show how a server's tools differ from what is pinned, and take it over"),
}
GROUPS = {
    "config": CONFIG_VERBS,
    "policy": POLICY_VERBS,
    "budget": BUDGET_VERBS,
    "audit": AUDIT_VERBS,
    "mcp": MCP_VERBS,
}


# What the system hands over is not decoded where it is no text; nothing that records or compares takes that.
_UNDECODED = re.compile("[\ud800-\udfff]")


class Parser(argparse.ArgumentParser):
    """Reports wrong usage as every other bad input is reported."""

    late: str | None = None
    """A positional argument that may also stand behind options."""

    def parse_known_args(self, *words: Any, **named: Any) -> Any:  # noqa: ANN401 - all overloads at once
        # Where two positional arguments may be left out, those before the first option decide for both.
        found, rest = super().parse_known_args(*words, **named)
        if self.late is not None and getattr(found, self.late, "") is None and rest and not rest[0].startswith("-"):
            setattr(found, self.late, rest.pop(0))
        return found, rest

    def error(self, message: str) -> NoReturn:
        raise InputError(message, f"{self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        arguments: Without the program's name; ``None`` takes those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read has enough. What is still buffered would raise again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:  # noqa: BLE001 - the last resort: no input may end in exit code 1, which means no
        return report_failure(error)
    return code


def _open_standard_streams() -> None:
    """Where the shell has closed one of them, the next file that is opened, a log say, would take its place."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(free, True)  # noqa: FBT003 - its only form
    os.close(free)
    for descriptor, name in enumerate(("stdout", "stderr"), 1):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - stays


def _run(words: list[str]) -> int:
    for position, word in enumerate(words, 1):
        if not word.isascii() and _UNDECODED.search(word):
            raise InputError(f"argument {position} is not UTF-8 text: {word!r}", "write it in UTF-8")
    parser = _parser(words)
    try:
        arguments, unknown = parser.parse_known_args(words)
    except SystemExit as done:
        # --help and --version have printed what they are for.
        return EXIT_BAD_INPUT if done.code else 0
    if unknown:
        used = words[: 1 + (words[1:2] != [] and words[1] in GROUPS.get(words[0], {}))] if words[0] in VERBS else []
        raise InputError(f"unrecognized arguments: {' '.join(unknown)}", " ".join(("tollkeeper", *used, "--help")))
    if not hasattr(arguments, "run"):
        verb = f" {words[0]}" if words and words[0] in GROUPS else ""
        raise InputError("no command given", f"tollkeeper{verb} --help")
    code = arguments.run(arguments)
    return code if isinstance(code, int) else EXIT_DEFECT


def _parser(words: list[str]) -> Parser:
    """Declares all verbs, and the arguments of the one that is used."""
    parser = Parser(
        prog="tollkeeper",
        description="The admission controller for AI agents.",
        epilog="Start with: tollkeeper init",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and how it was built")
    verbs = parser.add_subparsers(metavar="COMMAND")
    for verb, (module, what) in VERBS.items():
        child = verbs.add_parser(verb, help=what, description=_sentence(what), allow_abbrev=False)
        if module is not None and not (words[:1] == [verb] and words[1:2] and words[1] in GROUPS.get(verb, {})):
            _configure(child, module, used=words[:1] == [verb])
            continue
        below = child.add_subparsers(metavar="COMMAND")
        for name, (submodule, subwhat) in GROUPS[verb].items():
            grandchild = below.add_parser(name, help=subwhat, description=_sentence(subwhat), allow_abbrev=False)
            _configure(grandchild, submodule, used=words[:2] == [verb, name])
    if words[:1] == ["--version"]:
        parser.set_defaults(run=_version)
    return parser


def _configure(parser: argparse.ArgumentParser, module: str, *, used: bool) -> None:
    if used:
        loaded = importlib.import_module(f"tollkeeper.cli.{module}")
        loaded.configure(parser)
        parser.set_defaults(run=loaded.run)


def _sentence(what: str) -> str:
    return what[:1].upper() + what[1:] + "."


def _version(_: argparse.Namespace) -> int:
    from tollkeeper import build_info  # noqa: PLC0415 - starting is faster without

    info = build_info()
    print(f"tollkeeper {info['version']} ({info['profile']}, {info['abi']})")  # noqa: T201 - the command's output
    return 0
