"""The book of guarantees: what each case found for each host, as the package ships it for `tollkeeper hosts`.

The suite compares; `make guarantees` writes. So the matrix that users see is what the tests have seen.
"""

import json
from typing import Any

from tollkeeper.adapters._hosts import CASES, GUARANTEES, TABLE

HELD = "hooks"
INSTALLED = "install"
OPEN = "open"


class Book:
    """Host -> case -> how far it is held, and the reason where that is not by the hooks alone."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, dict[str, str]]] = {}

    def note(self, driver: Any, case: str, *, installed: bool, held: bool) -> None:
        """Takes down what a case has seen, and fails where the driver says otherwise.

        A gap that is stated has to be there: a statement that is out of date is as wrong as a missing one.
        """
        assert case in CASES
        stated = case in driver.uncovered if installed else case in driver.gaps
        assert held != stated, f"{driver.host}, {case}: {'held' if held else 'not held'}, and stated otherwise"
        row = self.found.setdefault(driver.host, {}).setdefault(case, {})
        if held and not installed:
            row["by"] = HELD
        elif held:
            row.setdefault("by", INSTALLED)
        elif installed:
            row.update(by=OPEN, reason=driver.uncovered[case])
        else:
            row["reason"] = driver.gaps[case]

    def keep(self) -> None:
        """Writes what was found over what the package says of these hosts."""
        kept = json.loads(GUARANTEES.read_text()) if GUARANTEES.exists() else {}
        for host, cases in self.found.items():
            both = {**kept.get(host, {}), **cases}
            kept[host] = {case: both[case] for case in CASES if case in both}
        ordered = {host: kept[host] for host in TABLE if host in kept}
        GUARANTEES.write_text(json.dumps(ordered, indent=2) + "\n")


def stated(host: str) -> dict[str, Any]:
    """What the package says of a host."""
    found: dict[str, Any] = json.loads(GUARANTEES.read_text()).get(host, {})
    return found
