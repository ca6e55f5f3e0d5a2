"""``tollkeeper approvals``: what gates ask people for: lists the questions, shows one, grants it or refuses it.

What is granted is what is shown: principals, action, resource, arguments and the tool's definition, and nothing else.
Their digest is compared with the one that the gate has left, and a document that was changed since is refused. It may
hold text that an attacker has written, so it is escaped before a terminal sees it.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Final, cast

from tollkeeper.admin import GateAdmin, Question
from tollkeeper.cli import Parser, administration, ledgers
from tollkeeper.cli.terminal import (
    EXIT_NO,
    EXIT_OK,
    InputError,
    coloured,
    counted,
    error,
    note,
    out,
    out_json,
    shown,
    table,
)

ACTS: Final = ("list", "show", "approve", "reject")
EXPIRES_DEFAULT: Final = 3600.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("act", nargs="?", choices=ACTS, default="list", help="default: list")
    parser.add_argument("id", metavar="ID", nargs="?", help="the question, 16 hexadecimal digits")
    parser.add_argument("--all", action="store_true", help="list: those that are answered, used or expired, too")
    parser.add_argument(
        "--expires", metavar="TIME", type=administration.seconds, default=EXPIRES_DEFAULT, help="approve: default 1h"
    )
    parser.add_argument("--reason", metavar="TEXT", default="", help="reject: why, for the audit log")
    parser.add_argument("--yes", action="store_true", help="approve, reject: ask for no confirmation")
    parser.add_argument("--json", action="store_true", help="list, show: print one JSON line for each")
    administration.add_admin(parser)
    if isinstance(parser, Parser):
        parser.late = "id"


def run(arguments: argparse.Namespace) -> int:
    """Lists, shows or answers."""
    admin = administration.opened(arguments)
    if arguments.act == "list":
        return _list(admin, arguments)
    question = admin.approval(administration.approval_id(arguments.id, arguments.act))
    if arguments.act == "show" and arguments.json:
        out_json(_plain(question))
        return EXIT_NO if question.fault else EXIT_OK
    if arguments.act == "show" or not arguments.yes:
        for line in _lines(question):
            out(line)
    if arguments.act == "show":
        return _said(question)
    if question.state == "pending" and question.fault is None and not _confirmed(arguments):
        note("nothing is changed")
        return EXIT_NO
    if arguments.act == "approve":
        answered = admin.approve(question.id, expires_s=arguments.expires)
        until = ledgers.moment(answered.grant_expires_ms)
        out(f"{coloured('approved', 'green')} {question.id}: once, until {until}")
    else:
        admin.reject(question.id, arguments.reason)
        out(f"{coloured('rejected', 'red')} {question.id}")
    return EXIT_OK


def _confirmed(arguments: argparse.Namespace) -> bool:
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        hint = f"look at it with tollkeeper approvals show {arguments.id}, then say --yes"
        raise InputError(f"approvals {arguments.act} asks for a confirmation, and there is no terminal", hint)
    sys.stdout.flush()
    sys.stderr.write(f"{arguments.act} this? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _list(admin: GateAdmin, arguments: argparse.Namespace) -> int:
    if arguments.id is not None:
        raise InputError(f"approvals list takes no id: {arguments.id}", f"tollkeeper approvals show {arguments.id}")
    questions = admin.approvals()
    listed = [question for question in questions if arguments.all or question.state == "pending"]
    if arguments.json:
        for question in listed:
            out_json(_plain(question))
        return EXIT_OK
    if listed:
        now_ms = time.time_ns() // 1_000_000
        heads = ("approval", "state", "kind", "who", "what", "asked", "expires")
        for line in table(heads, (_row(question, now_ms) for question in listed)):
            out(line)
        out()
    pending = sum(question.state == "pending" for question in questions)
    rest = len(questions) - pending
    out(
        f"{counted(pending, 'question')} pending" + (f", {rest:,} others (--all)" if rest and not arguments.all else "")
    )
    return EXIT_OK


def _row(question: Question, now_ms: int) -> list[str]:
    binding = question.binding or {}
    chain = _texts(binding.get("chain"))
    return [
        question.id,
        question.state if question.fault is None else f"{question.state}, changed",
        ", ".join(_texts((question.document or {}).get("kinds"))),
        " for ".join(reversed(chain)),
        _text(binding.get("action")),
        f"{administration.duration(max(0, now_ms - question.asked_ms) / 1000)} ago",
        _left(question.expires_ms, now_ms) if question.state == "pending" else "-",
    ]


def _left(expires_ms: int, now_ms: int) -> str:
    return f"in {administration.duration(max(0, expires_ms - now_ms) / 1000)}"


def _lines(question: Question) -> Iterator[str]:
    document, binding = question.document or {}, question.binding
    yield f"approval      {question.id}, {question.state}"
    yield f"kind          {shown(', '.join(_texts(document.get('kinds'))) or '-')}"
    if binding is not None:
        chain = _texts(binding.get("chain"))
        yield f"who           {shown(chain[-1] if chain else '-')}"
        for outer in reversed(chain[:-1]):
            yield f"  on behalf   {shown(outer)}"
        yield f"action        {shown(_text(binding.get('action')))}"
        yield f"resource      {shown(_text(binding.get('resource')))}"
        yield f"arguments     {shown(json.dumps(binding.get('arguments'), ensure_ascii=False))}"
    policies = ", ".join(_texts(document.get("policies"))) or "-"
    yield f"asked because {shown(policies)}: {shown(_text(document.get('reason')))}"
    yield f"decision      {shown(_text(document.get('decision')))}"
    yield f"asked         {ledgers.moment(question.asked_ms)}"
    yield f"expires       {ledgers.moment(question.expires_ms)}"
    if question.answered_ms is not None:
        yield f"answered      {ledgers.moment(question.answered_ms)}"
    if question.grant_expires_ms is not None:
        yield f"grant expires {ledgers.moment(question.grant_expires_ms)}"
    if binding is not None:
        yield f"digest        {question.digest.hex()}, as the gate has left it"


def _said(question: Question) -> int:
    if question.fault is None:
        return EXIT_OK
    error(question.fault, f"tollkeeper approvals reject {question.id}")
    return EXIT_NO


def _plain(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "state": question.state,
        "digest": question.digest.hex(),
        "asked_ms": question.asked_ms,
        "expires_ms": question.expires_ms,
        "answered_ms": question.answered_ms,
        "grant_expires_ms": question.grant_expires_ms,
        "document": question.document,
        "binding": question.binding,
        "fault": question.fault,
    }


def _texts(value: object) -> list[str]:
    return [_text(item) for item in cast("list[object]", value)] if isinstance(value, list) else []


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)
