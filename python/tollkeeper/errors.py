"""The exceptions of Tollkeeper.

Each has a stable ``code`` to branch on, a message for people, and a ``help`` line that says what to do. A denial is a
value, never one of these. The native module raises them too; they are defined in Python so that they inherit from the
builtin exceptions callers already handle and survive pickling.
"""

from __future__ import annotations

# Not from `typing`: importing that and `collections` would be nearly all the time an import of this package takes.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ArgumentsError",
    "AuditError",
    "BudgetError",
    "ConfigError",
    "ContextError",
    "Denied",
    "EntityError",
    "ErrorDetail",
    "HandleError",
    "InternalError",
    "PolicyError",
    "StateError",
    "TollkeeperError",
]


class ErrorDetail:
    """One finding in a text that a person wrote.

    Attributes:
        code: Stable name, such as ``policy.syntax``.
        message: What is wrong, in one line.
        file: The file, or the name the text was given under.
        line: Counted from 1; 0 where the finding has no place.
        column: Counted from 1, in characters; 0 where the finding has no place.
        offending: The start of the line in question.
        help: What to do about it.
    """

    __slots__ = ("code", "column", "file", "help", "line", "message", "offending")

    def __init__(  # noqa: PLR0913, PLR0917 - one argument per attribute
        self,
        code: str,
        message: str,
        file: str | None = None,
        line: int = 0,
        column: int = 0,
        offending: str = "",
        help: str | None = None,  # noqa: A002 - the attribute's name
    ) -> None:
        self.code = code
        self.message = message
        self.file = file
        self.line = line
        self.column = column
        self.offending = offending
        self.help = help

    def _values(self) -> tuple[str, str, str | None, int, int, str, str | None]:
        return self.code, self.message, self.file, self.line, self.column, self.offending, self.help

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, ErrorDetail) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"ErrorDetail{self._values()!r}"

    def __reduce__(self) -> tuple[object, ...]:
        return ErrorDetail, self._values()


class TollkeeperError(Exception):
    """The base of every exception this package raises.

    Args:
        message: What is wrong, with the actual value and the limit.
        code: Stable name; see the attribute.
        help: What to do about it.

    Example:
        >>> from tollkeeper import EntityUid, TollkeeperError
        >>> try:
        ...     EntityUid("not a type", "x")
        ... except TollkeeperError as error:
        ...     error.code
        'uid.syntax'
    """

    code: str
    """Stable name to branch on, such as ``input.too_large``."""
    help: str | None
    """What to do about it."""

    def __init__(self, message: str, code: str = "internal", help: str | None = None) -> None:  # noqa: A002 - the attribute's name
        super().__init__(message)
        self.code = code
        self.help = help

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (*self.args, self.code, self.help)


class _DetailedError(TollkeeperError, ValueError):
    """Text that a person wrote cannot be used; every finding is listed."""

    errors: tuple[ErrorDetail, ...]
    """The findings, in the order of the text; capped by the core."""

    def __init__(
        self,
        message: str,
        code: str = "internal",
        help: str | None = None,  # noqa: A002 - the attribute's name
        errors: Iterable[ErrorDetail | tuple[str, str, str | None, int, int, str, str | None]] = (),
    ) -> None:
        super().__init__(message, code, help)
        self.errors = tuple(detail if isinstance(detail, ErrorDetail) else ErrorDetail(*detail) for detail in errors)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (*self.args, self.code, self.help, self.errors)


class PolicyError(_DetailedError):
    """A policy or a schema cannot be used; ``errors`` says where and why."""


class EntityError(_DetailedError):
    """An entity, or the name of one, cannot be used."""


class ContextError(_DetailedError):
    """A request's context cannot be used."""


class ConfigError(TollkeeperError, ValueError):
    """The configuration cannot be used; the message names the file and the key."""


class BudgetError(TollkeeperError, ValueError):
    """A ledger cannot be opened, or cannot do what was asked of it; ``code`` begins with ``budget.``.

    A reserve that does not fit is no error: it returns a `Denial`.
    """


class AuditError(TollkeeperError, ValueError):
    """An audit log cannot be opened, written or read, or a proof does not hold; ``code`` begins with ``audit.``."""


class StateError(TollkeeperError, ValueError):
    """What the gates of a host share cannot be used: revocations, labels, approvals; ``code`` names what."""


class Denied(TollkeeperError):  # noqa: N818 - a denial is no error
    """A guarded action was denied. ``str()`` is the sentence for the model; ``code`` the decision's code.

    Args:
        decision: The decision; a pickled and restored `Denied` has its code and reason but no decision.
        code: Instead of the decision's.
        reason: Instead of the decision's.
    """

    decision: object
    """The `Decision`, or ``None`` after unpickling."""

    def __init__(self, decision: object, code: str = "", reason: str = "") -> None:
        code = code or getattr(decision, "code", "")
        super().__init__(reason or getattr(decision, "reason", ""), code)
        self.decision = decision

    @property
    def reason(self) -> str:
        """The sentence for the model."""
        return str(self)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (None, self.code, str(self))


class ArgumentsError(TollkeeperError, ValueError):
    """Arguments are not plain data, or too much of it. The message names the place and never the value."""


class HandleError(TollkeeperError, RuntimeError):
    """A handle cannot be used any more: it is closed, or it was made before a fork in another process."""


class InternalError(TollkeeperError, RuntimeError):
    """A defect of this package. Whatever was being decided is denied."""
