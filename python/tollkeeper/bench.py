r"""Measures a gate as a configuration makes it, and says whether latency budgets are kept.

Everything runs on a private copy of what a gate writes: a ledger whose limits cannot be reached, a log and a state
folder of its own, below a folder that the caller removes. The configuration's own ledger, log and state folder are not
opened. No tool and no model is called.

The figures are of single calls, between two readings of the clock whose own cost is taken off. A reference, a fixed
piece of work, is timed in the same turns; it says how far the machine can be trusted. What is over its bound on a
machine that cannot be trusted is neither kept nor broken, unless it is over it ten times.
"""

from __future__ import annotations

import contextlib
import contextvars
import hashlib
import json
import re
import statistics
import time
from array import array
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeGuard, cast

import numpy as np

from tollkeeper import budgets
from tollkeeper.budget import Ledger
from tollkeeper.config import FILE_NAME
from tollkeeper.document import read_text
from tollkeeper.errors import AuditError, BudgetError, Denied, EntityError, PolicyError
from tollkeeper.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tollkeeper.config import Config
    from tollkeeper.gate import Decision

__all__ = ["Action", "ActionError", "Budget", "Figure", "Noise", "Report", "Verdict", "budget", "judge", "measure"]

MEASURES: Final = ("check", "policy", "model_call")
REFERENCE: Final = "reference"
STATISTICS: Final = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
UNITS_NS: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000}

# A budget over its bound this many times is broken on any machine.
BROKEN_TIMES: Final = 10.0
# The medians of the reference may differ so much between a slow and a fast round: frequency and caches do that much.
SPREAD_MAX: Final = 1.25
# More than this share of all processor time taken away by the host.
STOLEN_MAX: Final = 0.02
# Calls of the reference that took three times its median, and calls during which the kernel took the processor away,
# may be a tenth of the calls that a statistic leaves out.
STALLED_TIMES: Final = 3.0
TOLERATED: Final = 0.1
# So many samples have to lie beyond a quantile before it says anything.
BEYOND_MIN: Final = 10

ROUNDS: Final = 20
# Parts of a round's time.
SHARES: Final = {REFERENCE: 0.2, "check": 0.4, "policy": 0.2, "model_call": 0.2}
# A burst is calls without a pause; then the log is brought to the disk, outside of what is timed.
BURST_MAX: Final = 1_000
# An entry takes about a kilobyte of the ring besides the arguments; a burst takes at most a quarter of the ring.
ENTRY_BYTES: Final = 2_048
SAMPLE_NS_MAX: Final = (1 << 32) - 1
PROMPT_TOKENS: Final = 1_200
MAX_TOKENS: Final = 400

_BUDGET: Final = re.compile(r"\s*([^:<\s]+)\s*:\s*([^<\s]+)\s*<(=?)\s*([0-9]+(?:\.[0-9]+)?)\s*([^\s0-9.]*)\s*")
_BLOCK: Final = bytes(1_024)


# --- budgets and verdicts -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """The most that a statistic of a measure may take."""

    measure: str
    statistic: str
    bound_ns: float
    inclusive: bool
    text: str
    """As written."""

    def holds(self, value_ns: float) -> bool:
        """Whether a figure is within the bound."""
        return value_ns <= self.bound_ns if self.inclusive else value_ns < self.bound_ns


def budget(text: str) -> Budget:
    """Reads a latency budget.

    Args:
        text: `MEASURE:STATISTIC<TIME`, with `check`, `policy` or `model_call`; `p50`, `p99`, `p99.9` or `max`; and a
            number of `ns`, `us` or `ms`. `<=` does as well.

    Raises:
        ValueError: It is not one; the message says which part.

    Example:
        >>> from tollkeeper import bench
        >>> bench.budget("check:p99<10us").bound_ns
        10000.0
        >>> bench.budget("check:p98<10us")
        Traceback (most recent call last):
        ValueError: check:p98<10us: unknown statistic `p98`, known: p50, p99, p99.9, max
    """
    found = _BUDGET.fullmatch(text)
    if found is None:
        what = "there is no `:`" if ":" not in text else "there is no `<`" if "<" not in text else "no number follows"
        raise ValueError(f"{text}: {what}; a budget is MEASURE:STATISTIC<TIME, such as check:p99<10us")
    measure, statistic, equal, number, unit = found.groups()
    unit = unit.replace("\N{MICRO SIGN}", "u").replace("\N{GREEK SMALL LETTER MU}", "u")
    for what, word, known in (
        ("measure", measure, MEASURES),
        ("statistic", statistic, STATISTICS),
        ("unit", unit, UNITS_NS),
    ):
        if word not in known:
            said = f"unknown {what} `{word}`" if word else f"the {what} of the time is missing"
            raise ValueError(f"{text}: {said}, known: {', '.join(known)}")
    bound_ns = float(number) * UNITS_NS[unit]
    if bound_ns <= 0:
        raise ValueError(f"{text}: nothing takes no time")
    return Budget(measure, statistic, bound_ns, equal == "=", text)


@dataclass(frozen=True)
class Noise:
    """How far the machine can be trusted, as the reference saw it."""

    spread: float
    """The median of a slow round of the reference over that of a fast one (tenth and ninetieth percentile)."""
    stolen: float
    """The share of processor time that the host took away."""
    preempted: float
    """Involuntary context switches for each call of the reference."""
    stalled: float
    """The share of calls of the reference that took three times its median."""

    def reasons(self, share: float) -> tuple[str, ...]:
        """Why a statistic that leaves out all but this share of calls cannot be told; empty if it can."""
        found: list[str] = []
        if self.spread > SPREAD_MAX:
            found.append(f"the reference loop varies by {self.spread:.2f} between rounds, {SPREAD_MAX:g} are tolerated")
        if self.stolen > STOLEN_MAX:
            found.append(f"the host took {self.stolen:.1%} of the time away, {STOLEN_MAX:.0%} are tolerated")
        tolerated = (1 - share) * TOLERATED
        for what, value in (("was preempted in", self.preempted), ("stalled in", self.stalled)):
            if value > tolerated:
                found.append(f"the reference loop {what} {value:.3%} of its calls, {tolerated:.3%} are tolerated")
        return tuple(found)


@dataclass(frozen=True)
class Verdict:
    """What became of a budget."""

    budget: Budget
    value_ns: float
    outcome: Literal["kept", "broken", "noisy"]
    reasons: tuple[str, ...] = ()
    """Why it cannot be told."""


def judge(given: Budget, value_ns: float, samples: int, noise: Noise) -> Verdict:
    """Says whether a budget is kept.

    Over the bound ten times, it is broken. With too few samples nothing else can be told. Within the bound it is kept,
    on any machine: noise makes calls slower and not faster. Over it, it is broken on a quiet machine; on a noisy one it
    cannot be told.

    Args:
        given: The budget.
        value_ns: What was measured.
        samples: From how many calls.
        noise: What the reference saw meanwhile.
    """
    share = STATISTICS[given.statistic]
    if value_ns > BROKEN_TIMES * given.bound_ns:
        return Verdict(given, value_ns, "broken")
    beyond = samples * (1 - share)
    if share < 1 and beyond < BEYOND_MIN:
        wanted = round(BEYOND_MIN / (1 - share))
        return Verdict(given, value_ns, "noisy", (f"{samples:,} calls are too few, {wanted:,} are needed",))
    if given.holds(value_ns):
        return Verdict(given, value_ns, "kept")
    reasons = noise.reasons(share)
    return Verdict(given, value_ns, "noisy" if reasons else "broken", reasons)


# --- the private copy ---------------------------------------------------------------------------------------------


def _is_table(value: object) -> TypeGuard[dict[str, Any]]:
    """What `isinstance` says, with the types that TOML has."""
    return isinstance(value, dict)


def _is_list(value: object) -> TypeGuard[list[Any]]:
    """As above."""
    return isinstance(value, list)


def _toml(value: Any) -> str:  # noqa: ANN401 - what TOML holds
    """A value in TOML's syntax, tables inline."""
    if _is_table(value):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if _is_list(value):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return ("true" if value else "false") if isinstance(value, bool) else repr(value)


def private_copy(settings: Config, folder: Path, *, alone: bool = False) -> Path:
    """Writes a configuration that decides alike and keeps all its state below a folder.

    Budgets are left out: the ledger is given to the gate. Administration and watching are left out.

    Args:
        settings: What to copy.
        folder: Where to write it.
        alone: Whether only policies are left: no audit log, no state, no costs.

    Returns:
        The file.
    """
    import tomllib  # noqa: PLC0415 - only a measurement needs it

    document = tomllib.loads(read_text(settings.file))
    # In `policy.files` brackets would be a pattern.
    policy: dict[str, Any] = {"files": [escape(str(file.resolve())) for file in settings.policy_files]}
    for key, file in (("schema", settings.schema_file), ("entities", settings.entities_file)):
        if file is not None:
            policy[key] = str(file.resolve())
    tools = {
        name: {key: value for key, value in tool.items() if not (alone and key == "cost")}
        for name, tool in document.get("tools", {}).items()
    }
    gate = {key: value for key, value in document.get("gate", {}).items() if key != "watch"}
    copied: dict[str, Any] = {"gate": gate, "policy": policy, "tools": tools}
    if not alone:
        copied |= {"audit": {**document["audit"], "dir": "audit"}} if "audit" in document else {}
        copied |= {"state": {**document["state"], "dir": "state"}} if "state" in document else {}
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / FILE_NAME
    target.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in copied.items()), encoding="utf-8")
    return target


def private_ledger(settings: Config, folder: Path) -> Ledger | None:
    """A ledger of the same budgets, whose limits cannot be reached; with a state file where the other one has one."""
    if settings.budget_file is None:
        return None
    given = budgets.spec(settings.budget_file)
    raised = [
        (path, [(unit, window, budgets.LIMIT_MAX, 0) for unit, window, _, _ in limits], children)
        for path, limits, children in given["budgets"]
    ]
    state = None if settings.budget_state is None else str(folder / "ledger.bin")
    return Ledger({**given, "budgets": raised}, state)


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Action:
    """One call to ask about."""

    principal: str
    tool: str
    arguments: dict[str, Any]
    session: str = "bench"
    budget: str | None = None
    """Who pays; without one the deepest budget that is written out."""


class ActionError(ValueError):
    """An action cannot be asked."""


@dataclass
class Figure:
    """What single calls of one measure took."""

    samples: int
    values_ns: dict[str, float]
    """By statistic."""
    per_s: float
    """Calls a second if nothing else is done."""
    codes: dict[str, int] = field(default_factory=dict)
    """How the actions are decided."""


@dataclass
class Report:
    """A measurement."""

    figures: dict[str, Figure]
    missing: dict[str, str]
    """Measures that could not be taken, each with the reason."""
    noise: Noise
    seconds: float


# In which context, what makes so many of these calls and says what each took in nanoseconds, and the calls.
Burst = tuple[contextvars.Context, "Callable[[Sequence[Any], int], array[int]]", "Sequence[Any]"]


def clock_cost_ns() -> int:
    """What two readings of the clock, one after another, differ by: the median."""
    now, taken = time.perf_counter_ns, array("q", bytes(8 * 2_001))
    for number in range(len(taken)):
        start = now()
        taken[number] = now() - start
    return int(statistics.median(taken))


class _Calls:
    """One measure: bursts of calls, and what they took."""

    def __init__(self, gate: Gate | None, bursts: list[Burst], size: int) -> None:
        self.gate, self.bursts, self.size = gate, bursts, size
        self.samples: array[int] = array("I")
        self.medians: list[float] = []

    def run(self, seconds: float) -> None:
        """Bursts until the time is over; the log is empty afterwards."""
        end, taken = time.perf_counter() + seconds, array("I")
        while True:
            for context, burst, given in self.bursts:
                taken.extend(context.run(burst, given, self.size))
            if self.gate is not None and self.gate.log is not None:
                self.gate.log.flush()
            if time.perf_counter() >= end:
                break
        self.samples.extend(taken)
        self.medians.append(statistics.median(taken))

    def figure(self, cost_ns: int) -> Figure:
        """Sums up."""
        values = np.sort(np.frombuffer(self.samples, np.uint32))
        found = {
            name: float(max(int(values[min(len(values) - 1, int(share * len(values)))]) - cost_ns, 1))
            for name, share in STATISTICS.items()
        }
        return Figure(len(values), found, 1e9 / max(float(values.mean()) - cost_ns, 1.0))


def _check_burst(check: Callable[..., Any]) -> Callable[[Sequence[Any], int], array[int]]:
    def burst(calls: Sequence[tuple[str, dict[str, Any]]], count: int) -> array[int]:
        now, taken, size = time.perf_counter_ns, array("I", bytes(4 * count)), len(calls)
        decision: Any = None
        for number in range(count):
            tool, arguments = calls[number % size]
            start = now()
            # The decision before ends here, and what it held: that is part of a call.
            decision = check(tool, arguments)
            taken[number] = min(now() - start, SAMPLE_NS_MAX)
        if decision is not None and decision.code == "audit.unavailable":
            raise AuditError(f"the log takes no more: {decision.reason}", "audit.unavailable")
        return taken

    return burst


def _reference_burst(_: Sequence[Any], count: int) -> array[int]:
    """A fixed piece of work, about as long as a check: a hash of a kilobyte."""
    now, taken, work, block = time.perf_counter_ns, array("I", bytes(4 * count)), hashlib.sha256, _BLOCK
    for number in range(count):
        start = now()
        work(block).digest()
        taken[number] = min(now() - start, SAMPLE_NS_MAX)
    return taken


def _model_burst(gate: Gate, model: str) -> Callable[[Sequence[Any], int], array[int]]:
    def burst(_: Sequence[Any], count: int) -> array[int]:
        now, taken = time.perf_counter_ns, array("I", bytes(4 * count))
        for number in range(count):
            start = now()
            with gate.model_call(model=model, prompt_tokens=PROMPT_TOKENS, max_tokens=MAX_TOKENS) as call:
                call.settle(prompt=PROMPT_TOKENS, completion=MAX_TOKENS)
            taken[number] = min(now() - start, SAMPLE_NS_MAX)
        return taken

    return burst


def _entered(gate: Gate, action: Action, payer: str | None) -> contextvars.Context:
    """A context in which the action's run is in force."""
    context = contextvars.copy_context()
    try:
        run = gate.run(principal=action.principal, session=action.session, budget=payer)
    except (EntityError, BudgetError, ValueError) as error:
        raise ActionError(f"`{action.tool}` by {action.principal}: {error.args[0]}") from error
    context.run(run.__enter__)
    return context


def _payer(ledger: Ledger | None, action: Action) -> str | None:
    if ledger is None:
        return None
    written = [path for path in ledger.paths if "*" not in path]
    return action.budget or max(written, key=lambda path: path.count("/"), default=None)


def _checks(gate: Gate, actions: Sequence[Action], settings: Config) -> tuple[_Calls, dict[str, int]]:
    """Everything that is asked of a gate, by run; and how each action is decided."""
    groups: dict[tuple[str, str, str | None], tuple[contextvars.Context, list[Any]]] = {}
    codes: dict[str, int] = {}
    for action in actions:
        payer = _payer(gate.ledger, action)
        key = (action.principal, action.session, payer)
        if key not in groups:
            groups[key] = (_entered(gate, action, payer), [])
        context, calls = groups[key]
        calls.append((action.tool, action.arguments))
        decision = context.run(gate.check, action.tool, action.arguments)
        codes[decision.code] = codes.get(decision.code, 0) + 1
    largest = max(len(json.dumps(action.arguments)) for action in actions)
    ring_bytes = (16 << 20) if settings.audit is None else settings.audit.ring_kib << 10
    room = ring_bytes // 4 // (ENTRY_BYTES + largest)
    burst = _check_burst(gate.check)
    size = max(1, min(BURST_MAX, room) // len(groups))
    return _Calls(gate, [(context, burst, calls) for context, calls in groups.values()], size), codes


def _models(gate: Gate, actions: Sequence[Action]) -> _Calls | str:
    """Model calls by the first of the principals that may make one; or why none may."""
    ledger = gate.ledger
    model = next(iter(ledger.models), "model") if ledger is not None else "model"
    reason = "there is no action"
    for action in {one.principal: one for one in actions}.values():
        context = _entered(gate, action, _payer(ledger, action))
        try:
            context.run(_model_burst(gate, model), (), 1)
        except Denied as denied:
            decided = cast("Decision", denied.decision)
            reason = f"{action.principal} may not call {model}: {decided.code}"
            continue
        return _Calls(gate, [(context, _model_burst(gate, model), ())], BURST_MAX // 10)
    return reason


def _stolen() -> tuple[int, int]:
    """Ticks that the host took away since the boot, and all ticks."""
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[7], sum(fields)


def _switches() -> int:
    """How often the kernel took the processor away from this thread."""
    text = Path("/proc/thread-self/status").read_text()
    return int(text.rpartition("nonvoluntary_ctxt_switches:")[2])


def _noise(reference: _Calls, switches: int, before: tuple[int, int]) -> Noise:
    stolen, ticks = _stolen()
    medians, values = sorted(reference.medians), np.frombuffer(reference.samples, np.uint32)
    low, high = medians[len(medians) // 10], medians[-1 - len(medians) // 10]
    return Noise(
        spread=high / max(low, 1.0),
        stolen=(stolen - before[0]) / max(ticks - before[1], 1),
        preempted=switches / len(values),
        stalled=float(np.count_nonzero(values > STALLED_TIMES * float(np.median(values)))) / len(values),
    )


def measure(settings: Config, actions: Sequence[Action], seconds: float, folder: Path) -> Report:
    """Measures checks, policies alone and model calls, in turns.

    Args:
        settings: The configuration.
        actions: What to ask; at least one. Each is asked about as often as the others.
        seconds: How long, all together.
        folder: An empty folder for the private copy; the caller removes it.

    Raises:
        ActionError: An action cannot be asked.
        AuditError: The disk does not take what is recorded.
        TollkeeperError: The configuration cannot be used.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as stack:
        ledger = private_ledger(settings, folder)
        if ledger is not None:
            stack.enter_context(ledger)
        elif payers := {action.budget for action in actions if action.budget is not None}:
            raise ActionError(f"{min(payers)}: an action names a budget, and the configuration has none")
        full = stack.enter_context(Gate.open(private_copy(settings, folder), ledger=ledger))
        measures = {REFERENCE: _Calls(None, [(contextvars.Context(), _reference_burst, [])], BURST_MAX)}
        codes: dict[str, dict[str, int]] = {}
        missing: dict[str, str] = {}
        measures["check"], codes["check"] = _checks(full, actions, settings)
        try:
            alone = stack.enter_context(Gate.open(private_copy(settings, folder / "alone", alone=True)))
            measures["policy"], codes["policy"] = _checks(alone, actions, settings)
        except PolicyError as error:
            # Some policies mean something only together with a log.
            missing["policy"] = f"the policies cannot be loaded alone: {error}"
        models = _models(full, actions)
        if isinstance(models, str):
            missing["model_call"] = models
        else:
            measures["model_call"] = models
        return _measured(measures, codes, missing, seconds)


def _measured(
    measures: dict[str, _Calls], codes: dict[str, dict[str, int]], missing: dict[str, str], seconds: float
) -> Report:
    before, switches, begun = _stolen(), 0, time.perf_counter()
    part = seconds / (ROUNDS + 1) / sum(SHARES[name] for name in measures)
    for turn in range(ROUNDS + 1):
        for name, calls in measures.items():
            start = _switches()
            calls.run(part * SHARES[name])
            if turn == 0:
                # Caches, branch predictors and the first pages of the ring are warm from here on.
                calls.samples, calls.medians = array("I"), []
            elif name == REFERENCE:
                switches += _switches() - start
    cost_ns = clock_cost_ns()
    figures = {name: calls.figure(cost_ns) for name, calls in measures.items()}
    for name, decided in codes.items():
        figures[name].codes = decided
    noise = _noise(measures[REFERENCE], switches, before)
    return Report(figures, missing, noise, time.perf_counter() - begun)
