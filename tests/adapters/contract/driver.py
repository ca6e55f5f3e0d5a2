"""What a host has to be able to do for the contract suite: run a scripted model through the host's own loop.

A driver wires one agent runtime up as its documentation says, with a model that answers from a script and needs no
network. It holds no expectation: those are in `test_contract.py`, the same for all hosts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from tollkeeper import Gate

Entry = Literal["async", "sync", "stream"]


@dataclass(frozen=True)
class Call:
    """A tool call that the model asks for."""

    name: str
    arguments: dict[str, Any]
    id: str


@dataclass(frozen=True)
class Turn:
    """One answer of the model: calls, or a text that ends the loop."""

    calls: tuple[Call, ...] = ()
    text: str = ""
    usage: tuple[int, int] = (100, 10)
    """Tokens of the prompt and of the completion, as the model's provider would report them."""


@dataclass(frozen=True)
class Sub:
    """Another agent with its own model and tools: offered as a tool, or one that a conversation is handed to."""

    name: str
    tools: Sequence[Callable[..., Any]]
    turns: Sequence[Turn]
    guarded: bool = True
    """Whether it has the guard's hooks, as a careful author would give it."""


@dataclass
class Ran:
    """What came of a run."""

    inputs: list[str] = field(default_factory=list)
    """For each turn of the outer model: everything it was given to read, as one text."""
    output: str | None = None
    """The final text; `None` if the run was stopped or abandoned."""
    error: BaseException | None = None
    """What reached the caller."""
    stopped: bool = False
    """Whether that is the host's own hard stop."""


@dataclass(frozen=True)
class Plan:
    """One run of an agent."""

    tools: Sequence[Callable[..., Any]]
    turns: Sequence[Turn]
    entry: Entry = "async"
    agent: str = "researcher"
    session: str = "thread-7"
    """The host's own id of the conversation, where it has one."""
    model: str = "scripted"
    max_tokens: int = 50
    sub: Sub | None = None
    """Offered to the agent as a tool of its name, with one text argument called `task`."""
    handoff: Sub | None = None
    """The conversation goes over to it: after the first answer of the agent, or by the host's own handoff."""
    tamper: Callable[[dict[str, Any]], None] | None = None
    """Changes the arguments of a call after the guard's hook and before the tool, by the host's own means."""
    abandon: bool = False
    """With `stream`: leave after the first update of the first turn."""
    cancel_after: float | None = None
    """With `async`: cancel the run after so many seconds."""


class Driver(Protocol):
    """One host. `plans` run inside whatever `gate.run` the caller has entered."""

    host: str
    """The adapter module's name."""
    entries: tuple[Entry, ...]
    """The ways to run an agent that the host has."""
    gaps: dict[str, str]
    """Case -> why the hooks alone do not cover it; `install` does, unless the case is in `uncovered` too."""
    uncovered: dict[str, str]
    """Case -> why `install` does not cover it either."""
    session_known: bool
    """Whether the host tells a tool call's session."""

    def guard(self, gate: Gate, **options: Any) -> Any:
        """The module's `Guard`."""

    def run(self, guard: Any, plan: Plan) -> Ran:
        """Runs an agent that has the guard's hooks."""

    def direct(self, guard: Any, tool: Callable[..., Any], arguments: dict[str, Any]) -> str:
        """Calls a tool object of the host outside any agent; its text, or whatever is raised."""
