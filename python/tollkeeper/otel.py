"""OpenTelemetry: what a gate counts as metrics, and what it guards as spans. Needs the extra ``otel``.

Nothing else of this package loads this module, and a gate that is not instrumented does nothing for it. It measures and
describes; it decides nothing, and it never tells arguments, reasons or messages of exceptions: these may hold what the
model or a user has written. Names of tools, models, policies, budgets, units and codes are told.

Span and attribute names are those of OpenTelemetry's semantic conventions for generative AI
(https://github.com/open-telemetry/semantic-conventions-genai, status: development), as far as a gate knows the values:
it does not know ``gen_ai.provider.name``, which is left out instead of guessed. What has no convention is below
``tollkeeper.``.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakKeyDictionary

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "tollkeeper.otel needs the extra `otel` of this wheel, or its package: pip install opentelemetry-api",
        name=missing.name,
    ) from None

from tollkeeper._native import build_info
from tollkeeper.errors import Denied, TollkeeperError
from tollkeeper.gate import Decision, Gate, ModelCall

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from tollkeeper.audit import AuditLog

__all__ = ["Instrumentation", "instrument"]

# Each budget has a series for each of its limits; the first of them by name are told.
BUDGETS_MAX: Final = 100
POLICIES_MAX: Final = 16
# One for each collection at which the log was behind; a log that is so far behind denies.
MARKS_MAX: Final = 1024
NANOSECONDS: Final = 1e-9
QUANTILES: Final = (("0.5", "p50_ns"), ("0.99", "p99_ns"), ("0.999", "p999_ns"))


def instrument(
    gate: Gate,
    *,
    meter_provider: metrics.MeterProvider | None = None,
    tracer_provider: trace.TracerProvider | None = None,
    name: str | None = None,
) -> "Instrumentation":
    r"""Tells OpenTelemetry what a gate does, until `Instrumentation.close`.

    Metrics are read when they are collected, from counters that the gate keeps anyway: a check costs nothing more. For
    each guarded call and each model call there is a span, which is current while the gate decides, so that the audit
    log has its ids. That costs what a span costs: measured, 41 us more for a guarded call with the SDK, and 7 us with
    the API alone. A plain `check` makes no span and costs the same as before, 0.5 us; a collection takes 0.8 ms.

    | metric | what it is |
    |---|---|
    | `tollkeeper.decisions` | counter: decisions of this gate, by `tollkeeper.code` |
    | `tollkeeper.check.duration` | gauge in s, by `quantile`: of a sample of all checks since the gate was opened |
    | `tollkeeper.check.timed` | counter: how many checks that sample has |
    | `tollkeeper.holds` | gauge: live holds of the ledger, of all processes that share it |
    | `tollkeeper.budget.used` and `.limit` | gauges by `tollkeeper.budget.path`, `.unit` and `.window`: 100 budgets |
    | `tollkeeper.budget.count` | gauge: how many budgets there are |
    | `tollkeeper.audit.size` | counter: entries of the log |
    | `tollkeeper.audit.ring.depth` | gauge in By: bytes of the ring in use |
    | `tollkeeper.audit.pending` | gauge: records that are not on the disk yet |
    | `tollkeeper.audit.oldest_unsynced` | gauge in s: the oldest of them has waited at least so long, see below |
    | `tollkeeper.revocations` | gauge: what is revoked on this host, by `tollkeeper.kind` |
    | `tollkeeper.approvals.pending` | gauge: questions of this host that nobody has answered |

    The age of the oldest record is measured from the first collection that has found it: the true one is longer by at
    most the time between two collections.

    Args:
        gate: The gate, which is not instrumented yet.
        meter_provider: Where metrics go; the global one without it.
        tracer_provider: Where spans go; the global one without it.
        name: Attribute `tollkeeper.gate` of every metric, for a process with several gates.

    Raises:
        ValueError: The gate is instrumented already.

    Example:
        >>> import pathlib, tempfile
        >>> from tollkeeper import Gate
        >>> from tollkeeper.otel import instrument
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "p.cedar").write_text("permit(principal, action, resource);")
        >>> _ = (folder / "tollkeeper.toml").write_text("[policy]\nfiles = ['p.cedar']")
        >>> gate = Gate.open(folder / "tollkeeper.toml")
        >>> instrument(gate).close()
    """
    if _spans_of(gate) is not None:
        message = "the gate is instrumented already; close that first"
        raise ValueError(message)
    version = build_info()["version"]
    tracers = tracer_provider if tracer_provider is not None else trace.get_tracer_provider()
    instruments = Instruments.of(meter_provider, version)
    made = Instrumentation(gate, {} if name is None else {"tollkeeper.gate": name}, instruments)
    instruments.sources.append(made)
    _set_spans(gate, Spans(tracers.get_tracer("tollkeeper", version)))
    return made


def _spans_of(gate: Gate) -> "Spans | None":
    return gate._spans  # noqa: SLF001 - of this package  # pyright: ignore[reportPrivateUsage]


def _set_spans(gate: Gate, spans: "Spans | None") -> None:
    gate._spans = spans  # noqa: SLF001 - of this package  # pyright: ignore[reportPrivateUsage]


Values = Iterator[tuple[float, dict[str, str]]]


class Instrumentation:
    """What `instrument` has set up. A context manager."""

    def __init__(self, gate: Gate, attributes: dict[str, str], instruments: "Instruments") -> None:
        self.gate: Gate | None = gate
        """The gate, until this is closed."""
        self.attributes = attributes
        self._instruments = instruments
        self._marks: deque[tuple[float, int]] = deque()

    def close(self) -> None:
        """No more spans or measurements; spans that are open end as they would. Closing twice is the same as once."""
        gate, self.gate = self.gate, None
        if gate is not None:
            _set_spans(gate, None)
            # Closed at the same moment by another thread.
            with contextlib.suppress(ValueError):
                self._instruments.sources.remove(self)

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        self.close()

    def oldest_unsynced(self, gate: Gate) -> Values:
        """Whatever was appended by an earlier collection and is not on the disk has waited since then, or longer."""
        log = gate.log
        if log is None:
            return
        now, size, durable = time.monotonic(), log.size, int(log.health()["durable_size"])
        while self._marks and self._marks[0][1] <= durable:
            self._marks.popleft()
        if size > durable and len(self._marks) < MARKS_MAX and (not self._marks or self._marks[-1][1] < size):
            self._marks.append((now, size))
        yield (now - self._marks[0][0] if self._marks else 0.0), {}


class Instruments:
    """The instruments of one provider, which all gates share.

    They are made once and stay: OpenTelemetry knows no way to take one back, and what is made again under the same name
    is the first one, with its callbacks. Without gates they have nothing to say.
    """

    _global: "Instruments | None" = None
    _of: ClassVar["WeakKeyDictionary[metrics.MeterProvider, Instruments]"] = WeakKeyDictionary()
    _lock = threading.Lock()

    @classmethod
    def of(cls, provider: metrics.MeterProvider | None, version: str) -> "Instruments":
        """Those of the provider; `None` is the global one, also if that is set later."""
        with cls._lock:
            if provider is None:
                if cls._global is None:
                    cls._global = cls(metrics.get_meter("tollkeeper", version))
                return cls._global
            if provider not in cls._of:
                cls._of[provider] = cls(provider.get_meter("tollkeeper", version))
            return cls._of[provider]

    def __init__(self, meter: metrics.Meter) -> None:
        self.sources: list[Instrumentation] = []
        counter, gauge = meter.create_observable_counter, meter.create_observable_gauge
        told = self._told
        counter("tollkeeper.decisions", [told(_decisions)], "{decision}", "Decisions, by code")
        counter("tollkeeper.check.timed", [told(_timed)], "{check}", "Checks whose time was taken")
        gauge("tollkeeper.check.duration", [told(_durations)], "s", "Of a sample of all checks so far")
        gauge("tollkeeper.holds", [told(_holds)], "{hold}", "Live holds of the ledger")
        gauge("tollkeeper.budget.used", [told(_used)], "1", "Used in the current window, in the unit's amounts")
        gauge("tollkeeper.budget.limit", [told(_limits)], "1", "Limit of the window, in the unit's amounts")
        gauge("tollkeeper.budget.count", [told(_budgets)], "{budget}", "Budgets")
        counter("tollkeeper.audit.size", [told(_size)], "{entry}", "Entries of the audit log")
        gauge("tollkeeper.audit.ring.depth", [told(_depth)], "By", "Bytes of the ring in use")
        gauge("tollkeeper.audit.pending", [told(_pending)], "{record}", "Records not on the disk yet")
        oldest = self._of_sources(Instrumentation.oldest_unsynced)
        gauge("tollkeeper.audit.oldest_unsynced", [oldest], "s", "How long the oldest of them has waited, at least")
        gauge("tollkeeper.revocations", [told(_revocations)], "{revocation}", "What is revoked on this host")
        gauge("tollkeeper.approvals.pending", [told(_questions)], "{approval}", "Questions not answered yet")

    def _told(self, read: Callable[[Gate], Values]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return self._of_sources(lambda _, gate: read(gate))

    def _of_sources(
        self, read: Callable[[Instrumentation, Gate], Values]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """A callback, which has nothing to say of gates that have nothing of the kind."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            told: list[Observation] = []
            for source in list(self.sources):
                gate = source.gate
                if gate is None:
                    continue
                if gate.closed:
                    # Nothing comes of it any more, and nobody else may know it.
                    source.close()
                    continue
                # Closed in between, or inherited through a fork.
                with contextlib.suppress(TollkeeperError):
                    told += [Observation(value, source.attributes | labels) for value, labels in read(source, gate)]
            return told

        return observe


def _stats(gate: Gate) -> dict[str, Any]:
    return gate.stats()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _decisions(gate: Gate) -> Values:
    codes: dict[str, int] = _stats(gate)["codes"]
    for code, count in codes.items():
        yield count, {"tollkeeper.code": code}


def _timed(gate: Gate) -> Values:
    yield _stats(gate)["timed"], {}


def _durations(gate: Gate) -> Values:
    stats = _stats(gate)
    for quantile, member in QUANTILES if stats["timed"] else ():
        yield stats[member] * NANOSECONDS, {"quantile": quantile}


def _holds(gate: Gate) -> Values:
    if gate.ledger is not None:
        yield len(gate.ledger.holds()), {}


def _budgets(gate: Gate) -> Values:
    if gate.ledger is not None:
        yield len(gate.ledger.paths), {}


def _used(gate: Gate) -> Values:
    return _windows(gate, "used")


def _limits(gate: Gate) -> Values:
    return _windows(gate, "limit")


def _windows(gate: Gate, member: str) -> Values:
    ledger = gate.ledger
    for path in islice(sorted(ledger.paths), BUDGETS_MAX) if ledger is not None else ():
        labels = {"tollkeeper.budget.path": path}
        for (unit, window), usage in ledger.usage(path).items() if ledger is not None else ():
            yield getattr(usage, member), labels | {"tollkeeper.budget.unit": unit, "tollkeeper.budget.window": window}


def _of_log(gate: Gate, read: "Callable[[AuditLog], float]") -> Values:
    if gate.log is not None:
        yield read(gate.log), {}


def _size(gate: Gate) -> Values:
    return _of_log(gate, lambda log: log.size)


def _depth(gate: Gate) -> Values:
    return _of_log(gate, lambda log: log.health()["ring_used_bytes"])


def _pending(gate: Gate) -> Values:
    return _of_log(gate, lambda log: log.health()["pending"])


def _revocations(gate: Gate) -> Values:
    counts = dict.fromkeys(("principal", "tool", "session", "everything"), 0)
    for row in gate._control.revocations():  # noqa: SLF001 - the native half
        counts[row["kind"]] += 1
    for kind, count in counts.items():
        yield count, {"tollkeeper.kind": kind}


def _questions(gate: Gate) -> Values:
    rows = gate._control.approvals(time.time_ns() // 1_000_000)  # noqa: SLF001 - the native half
    yield sum(row["state"] == "pending" for row in rows), {}


class Spans:
    """What a gate calls for spans."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    @contextlib.contextmanager
    def tool(self, name: str) -> Generator[Callable[[Decision], None]]:
        """The span of one guarded call. What it yields is called with the decision."""
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
        }
        with self._opened(f"execute_tool {name}", SpanKind.INTERNAL, attributes) as span:
            try:
                yield lambda decision: _decided(span, decision)
            except BaseException as error:
                _failed(span, error)
                raise

    def model_call(  # noqa: PLR0913, PLR0917 - as many as a model call has
        self,
        gate: Gate,
        model: str,
        prompt_tokens: int,
        max_tokens: int,
        n: int,
        parent: str | None,
        asserted: Mapping[str, str] | None = None,
    ) -> ModelCall:
        """A model call with a span, from entering to leaving it."""
        call = TracedModelCall(gate, model, prompt_tokens, max_tokens, n, parent, asserted)
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model,
            "gen_ai.request.max_tokens": max_tokens,
        }
        if n != 1:
            attributes["gen_ai.request.choice.count"] = n
        call.prepare(prompt_tokens, lambda: self._opened(f"chat {model}", SpanKind.CLIENT, attributes))
        return call

    def _opened(
        self, name: str, kind: SpanKind, attributes: "dict[str, Any]"
    ) -> contextlib.AbstractContextManager[trace.Span]:
        # An exception's message may hold arguments: only its type is told, by `_failed`.
        return self._tracer.start_as_current_span(
            name, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
        )


class TracedModelCall(ModelCall):
    """A model call with a span."""

    _open: "Callable[[], contextlib.AbstractContextManager[trace.Span]]"
    _prompt_tokens: int
    _span: trace.Span
    _ends: contextlib.ExitStack | None = None

    def prepare(self, prompt_tokens: int, open_: "Callable[[], contextlib.AbstractContextManager[trace.Span]]") -> None:
        """What it is made with besides what its native half takes."""
        self._prompt_tokens, self._open = prompt_tokens, open_

    def __enter__(self) -> "Self":
        with contextlib.ExitStack() as ends:
            self._begin(ends)
            with self._described():
                super().__enter__()
            self._ends = ends.pop_all()
        return self

    async def __aenter__(self) -> "Self":
        with contextlib.ExitStack() as ends:
            self._begin(ends)
            with self._described():
                await super().__aenter__()
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        ends, self._ends = self._ends, None
        with ends if ends is not None else contextlib.nullcontext():
            error = exc[1] if len(exc) > 1 else None
            if isinstance(error, BaseException):
                _failed(self._span, error)
            super().__exit__(*exc)

    def settle(
        self, *, prompt: int | None = None, cached: int = 0, completion: int | None = None, **components: int
    ) -> bool:
        """See `ModelCall.settle`; what was used is told by the span as well."""
        settled = super().settle(prompt=prompt, cached=cached, completion=completion, **components)
        self._span.set_attribute("gen_ai.usage.input_tokens", self._prompt_tokens if prompt is None else prompt)
        if completion is not None:
            self._span.set_attribute("gen_ai.usage.output_tokens", completion)
        if cached:
            self._span.set_attribute("gen_ai.usage.cache_read.input_tokens", cached)
        return settled

    def _begin(self, ends: contextlib.ExitStack) -> None:
        self._span = ends.enter_context(self._open())

    @contextlib.contextmanager
    def _described(self) -> Generator[None]:
        try:
            yield
        except Denied as denied:
            _decided(self._span, denied.decision)
            raise
        except BaseException as error:
            _failed(self._span, error)
            raise
        _decided(self._span, self.decision)


def _decided(span: trace.Span, decision: object) -> None:
    """A denial is an event, and the status of the span."""
    if not isinstance(decision, Decision) or not span.is_recording():
        return
    policies: Sequence[str] = decision.policies[:POLICIES_MAX]
    told: dict[str, str | Sequence[str]] = {
        "tollkeeper.decision.id": decision.id,
        "tollkeeper.decision.code": decision.code,
        "tollkeeper.decision.policies": policies,
    }
    if decision.would_deny is not None:
        told["tollkeeper.decision.would_deny"] = decision.would_deny
    span.set_attributes(told)
    if not decision.allowed:
        span.add_event("tollkeeper.denied", told)
        span.set_attribute("error.type", decision.code)
        span.set_status(Status(StatusCode.ERROR, decision.code))


def _failed(span: trace.Span, error: BaseException) -> None:
    """Only the type: a message may hold arguments. A denial of this very call has said more already."""
    if not span.is_recording():
        return
    kind = error.code if isinstance(error, Denied) else type(error).__qualname__
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, kind))
