"""What tests and replays need: a clock that stands still until it is moved.

Nothing here is for production: a ledger with such a clock never opens a new window by itself.
"""

from tollkeeper._native import FakeClock

__all__ = ["FakeClock"]
