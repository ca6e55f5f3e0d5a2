"""The agent runtimes that there are adapters for: versions, and what was found of each.

What is found is written by the contract suite into ``guarantees.json`` beside this file; nothing here knows better.
This module imports no runtime.
"""

import json
import logging
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from tollkeeper.errors import ConfigError

__all__ = ["CASES", "TABLE", "Host", "HostMissingError", "guarantees"]

log = logging.getLogger("tollkeeper.adapters")

GUARANTEES: Final = Path(__file__).parent / "guarantees.json"


class HostMissingError(ConfigError, ImportError):
    """A runtime is not installed: an `ImportError` too, for programs that go on without it."""


@dataclass(frozen=True)
class Host:
    """One agent runtime, and what is known of it."""

    name: str
    """Of the module."""
    title: str
    """What people call it."""
    distribution: str
    """The package whose version counts."""
    oldest: str
    """The oldest version that the contract suite runs with."""
    newest: str
    """The newest one."""

    @property
    def extra(self) -> str:
        """The extra of the wheel that brings it."""
        return self.name.replace("_", "-")

    def is_too_old(self, version: str) -> bool:
        """Whether a version is older than the oldest tested one."""
        return _numbers(version) < _numbers(self.oldest)

    def check(self) -> str:
        """The installed version, if the adapter can be used with it.

        A version newer than the newest tested one is used, and said in the log: choke points are looked at before they
        are replaced.

        Raises:
            HostMissingError: The runtime is not installed.
            ConfigError: It is older than the oldest tested version.
        """
        try:
            found = metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            help_ = f"install it, or this package's wheel with the extra: pip install 'tollkeeper-….whl[{self.extra}]'"
            message = f"{self.title} is not installed: there is no `{self.distribution}`; {help_}"
            raise HostMissingError(message, "host.missing", help_) from None
        if self.is_too_old(found):
            help_ = f"pip install '{self.distribution}>={self.oldest}'"
            message = (
                f"{self.distribution} {found} is older than {self.oldest}, the oldest version that was tested; {help_}"
            )
            raise ConfigError(message, "host.unsupported", help_)
        if _numbers(found)[:2] > _numbers(self.newest)[:2]:
            log.warning("%s %s is newer than %s, the newest tested version", self.distribution, found, self.newest)
        return found


def _numbers(version: str) -> tuple[int, ...]:
    """The release part of a version, for comparing."""
    numbers: list[int] = []
    for part in version.split("."):
        digits = "".join(character for character in part if character.isdigit())
        if not digits or not part[0].isdigit():
            break
        numbers.append(int(digits) if part.isdigit() else int(part[: len(part) - len(part.lstrip("0123456789"))]))
        if not part.isdigit():
            break
    return tuple(numbers)


TABLE: Final = {
    host.name: host
    for host in (
        Host("maf", "Microsoft Agent Framework", "agent-framework-core", "1.15.0", "1.23.0"),
        Host("langchain", "LangChain and LangGraph", "langchain", "1.0.3", "1.5.0"),
        Host("openai_agents", "OpenAI Agents SDK", "openai-agents", "0.9.0", "0.24.0"),
    )
}
"""By module name, in the order in which they are shown."""

CASES: Final = {
    "allow": "an allowed call runs once, with one decision and one outcome in the log",
    "deny": "a denied call does not run; the model reads code and reason, and goes on",
    "halt": "with `halt=True` a denied call stops the run, and no later call runs",
    "crash": "an error inside the gate denies",
    "parallel": "of several calls in one turn only the denied ones are refused",
    "budget race": "calls in parallel never spend more than the budget has",
    "stream": "the same while streaming",
    "abandoned stream": "a stream that its consumer leaves is settled with what was seen of it",
    "sub-agent": "the tools of an agent used as a tool, with the guard's hooks",
    "sub-agent without hooks": "the same where its author forgot them",
    "handoff": "the tools of an agent that takes over, with the guard's hooks",
    "handoff without hooks": "the same where its author forgot them",
    "models without hooks": "the model calls of an agent whose author forgot the hooks",
    "direct": "a tool object called by other code",
    "unknown tool": "a name that nobody has registered does no harm",
    "sync and async": "every way to run an agent gives the same decision",
    "ids": "session, run, call and agent are in the log, and which model call asked",
    "usage": "what is settled is what the host reports",
    "mutation": "arguments that are changed after the decision do not run undecided",
    "cancellation": "a cancelled call ends what it held, and the log says so",
}
"""What the contract suite asks of every host."""


def guarantees() -> dict[str, dict[str, dict[str, str]]]:
    """Host -> case -> `by`, which is `hooks`, `install` or `open`, and `reason` where it is not the hooks."""
    found: dict[str, Any] = json.loads(GUARANTEES.read_text(encoding="utf-8"))
    return found
