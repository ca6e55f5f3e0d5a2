"""One finding of ``tollkeeper doctor``, and what keeps a failure to look from ending all looking."""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

__all__ = ["Line", "reason", "watched"]


class Line(NamedTuple):
    """One finding."""

    state: Literal["ok", "warn", "fail"]
    """``fail``: a gate would be unsafe or could not be used."""
    subject: str
    text: str
    fix: str | None = None


def watched(subject: str, lines: Iterable[Line]) -> Iterator[Line]:
    """The lines; where the system refuses a look, a line that says so."""
    try:
        yield from lines
    except (OSError, ValueError) as error:
        yield Line("fail", subject, reason(error), "look at it as the user that runs the gate")


def reason(error: Exception) -> str:
    """Why the system refuses, with the file."""
    text = getattr(error, "strerror", None) or str(error)
    name = getattr(error, "filename", None)
    return f"{name}: {text[:1].lower()}{text[1:]}" if isinstance(name, str) else f"{text[:1].lower()}{text[1:]}"
