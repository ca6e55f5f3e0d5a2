"""Budgets in Python: opening a ledger from its file, and waiting for room in it.

What is granted, denied, charged and settled is decided by the native module. This file holds what has to be Python:
reading the budgets, and the coroutine that waits. It decides nothing.
"""

from __future__ import annotations

import os

from tollkeeper import _native
from tollkeeper._native import Denial, Hold, Meter, Usage

# As in the gate's module: an import of the package loads no module of the standard library that it can do without.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Self

    from tollkeeper import aio

__all__ = ["Denial", "Hold", "Ledger", "Meter", "Usage"]


class Ledger(_native.Ledger):
    r"""A tree of budgets that cannot be overspent, for all threads and processes that share its state.

    Example:
        >>> from tollkeeper import Ledger
        >>> ledger = Ledger.from_toml('[budget."acme"]\nlimits = [{ unit = "tokens", window = "total", limit = 100 }]')
        >>> hold = ledger.reserve("acme", tokens=80)
        >>> hold.granted, hold.settle(tokens=60)
        (True, True)
        >>> ledger.reserve("acme", tokens=50).code
        'budget.exhausted'
        >>> ledger.usage("acme")["tokens", "total"].available
        40
    """

    _lines: dict[int, aio.Line]
    """Who waits for room, by process: a line does not survive a fork, since its thread stays behind."""

    def __new__(cls, spec: Mapping[str, Any], state: str | None = None, clock: _native.FakeClock | None = None) -> Self:
        """See `open` and `from_toml`, which make the spec."""
        ledger = super().__new__(cls, spec, state, clock)
        ledger._lines = {}
        return ledger

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        state: str | os.PathLike[str] | None = None,
        clock: _native.FakeClock | None = None,
    ) -> Self:
        """Opens the ledger of a `budgets.toml`.

        Args:
            path: The file.
            state: The file that holds what is used and held, shared by every process that opens it. Without one the
                ledger lives in this process alone and ends with it.
            clock: `tollkeeper.testing.FakeClock`, for tests and replays.

        Raises:
            ConfigError: The file cannot be used; the message names line and key.
            BudgetError: The state cannot be used, or the budgets do not fit it.
            OSError: A file cannot be read.
        """
        from pathlib import Path  # noqa: PLC0415 - see the top

        from tollkeeper import budgets  # noqa: PLC0415 - see the top

        return cls(budgets.spec(Path(path)), None if state is None else os.fsdecode(state), clock)

    @classmethod
    def from_toml(
        cls,
        text: str,
        *,
        state: str | os.PathLike[str] | None = None,
        clock: _native.FakeClock | None = None,
    ) -> Self:
        """As `open`, from the text of a `budgets.toml`.

        Args:
            text: TOML.
            state: As in `open`.
            clock: As in `open`.

        Raises:
            ConfigError: The text cannot be used; the message names line and key.
            BudgetError: The state cannot be used, or the budgets do not fit it.
        """
        from tollkeeper import budgets  # noqa: PLC0415 - see the top

        return cls(budgets.spec(text), None if state is None else os.fsdecode(state), clock)

    async def available(self, path: str, cost: Mapping[str, int], timeout: float | None = None) -> bool:  # noqa: ASYNC109 - a wait that ends is an answer here, not an error
        """Waits until a reserve of this cost would be granted; first come, first served, and nothing is polled.

        It reserves nothing: reserve right after it, without awaiting anything in between, and expect to be denied if
        another process was faster.

        Args:
            path: The budget.
            cost: Amounts by unit, as in `reserve`.
            timeout: Seconds; `None` waits for ever, 0 asks once.

        Returns:
            True if it would be granted now. False if the time is over, if the ledger is closed, or if it would never be
            granted: the cost is above a limit, or there is no such budget.
        """
        from tollkeeper import aio  # noqa: PLC0415 - loads asyncio

        line = self._lines.get(os.getpid()) or self._lines.setdefault(os.getpid(), aio.Line(self))
        return await line.available(path, cost, timeout)

    def close(self) -> None:
        """Closes this handle; what waits for room in it gets the answer False. Holds of this process are ended."""
        lines = list(self._lines.values())
        for line in lines:
            line.close()
        super().close()
        for line in lines:
            line.join()
