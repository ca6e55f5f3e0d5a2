"""A session as the gate will keep it, emulated: labels grow beside the gate, forbids of a run are a gate of their own.

For: `suite.begin`, until the gate does both by itself; see `GATE_GROWS_LABELS`. Refuses to: decide. Every verdict is
`Gate.check`'s, with the labels and the policies that it would have seen.
"""

from __future__ import annotations

import narrowing
from suite import NO_PERMIT, NOT_IN_RUN, Call, Session, Suite, Verdict

from tollkeeper import Gate

_GATES: dict[tuple[str, str], Gate] = {}


class EmulatedSession(Session):
    """The same interface as `Session`."""

    def __init__(self, suite: Suite, column: str, request: str) -> None:
        self._suite, self._gate, self._tools = suite, suite.gates[column], None
        self._reads = {} if column == "static" else suite.reads
        self._labels: set[str] = set()
        if column == "narrowing":
            narrowed = narrowing.derive(suite.rules, suite.tools, request)
            self._tools = narrowed.tools
            self._gate = _gate_with(suite, narrowed.forbid) if narrowed.forbid else self._gate

    def decide(self, call: Call) -> Verdict:
        """As in `Session`."""
        labels = sorted(self._labels)
        with self._gate.run(principal=self._suite.principal, session="s", tools=self._tools, labels=labels):
            decision = self._gate.check(call.tool, call.args)
        if decision.allowed:
            self._labels.update(self._reads.get(call.tool, ()))
        silent = NO_PERMIT if self._tools is None or call.tool in self._tools else NOT_IN_RUN
        return Verdict(decision.allowed, decision.policies or [silent])


def _gate_with(suite: Suite, forbid: str) -> Gate:
    """The gate of the column with the forbids of one run among its policies."""
    found = _GATES.get((suite.name, forbid))
    if found is None:
        text = (suite.folder / "narrowing.toml").read_text(encoding="utf-8")
        (suite.folder / "request.cedar").write_text(forbid, encoding="utf-8")
        path = suite.folder / "request.toml"
        path.write_text(text.replace("files = [", 'files = ["request.cedar", ', 1), encoding="utf-8")
        found = _GATES[suite.name, forbid] = Gate.open(path)
    return found
