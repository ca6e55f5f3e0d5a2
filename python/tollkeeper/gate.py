"""The gate: scopes, guards and reloading around the native check.

A gate decides whether the principal of the current run may call a tool with these arguments. This module holds what
needs Python: the context variable that carries the run's scope, the decorator, and reading the configuration. It
decides nothing.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
from contextvars import ContextVar
from time import monotonic as _now

from tollkeeper import _native
from tollkeeper._native import Decision, Entity, EntityUid
from tollkeeper.errors import ConfigError, HandleError, TollkeeperError

# The modules of the standard library that only annotations need, or only one method, would be most of the time an
# import of this package takes.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import inspect
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
    from contextvars import Token
    from pathlib import Path
    from types import TracebackType
    from typing import Any, ParamSpec, Self, TypeVar, overload

    from tollkeeper.approvals import Answers, Approval
    from tollkeeper.audit import AuditLog
    from tollkeeper.budget import Ledger
    from tollkeeper.budgets import Spec
    from tollkeeper.config import Config
    from tollkeeper.otel import Spans
    from tollkeeper.watch import Print, Watch

    P = ParamSpec("P")
    R = TypeVar("R")
    # Told the decision, where there is a span; then what a guarded call starts with.
    Told = Callable[[Decision], None] | None
    Admitted = Callable[[tuple[Any, ...], dict[str, Any], Told], tuple[inspect.BoundArguments, Decision, float]]

__all__ = ["Decision", "Delegation", "Gate", "ModelCall", "Principal", "Run", "Scope"]

# How long a guard waits for a record that has to be on the disk.
RECORD_SECONDS = 10.0
# What processes of a host share, below the state directory.
CONTROL_NAME = "control.bin"
NO_FILE = "there is no tollkeeper.toml here; run `tollkeeper init`"
CANCELLATIONS = ("CancelledError", "KeyboardInterrupt", "GeneratorExit")

_CURRENT: ContextVar[Scope | None] = ContextVar("tollkeeper_scope", default=None)


def Principal(  # noqa: N802 - reads as the noun it makes
    uid: EntityUid | str,
    attrs: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    parents: Iterable[EntityUid | str] = (),
) -> Entity:
    """A principal whose attributes come with the run and not from the entity store.

    Args:
        uid: Its uid; it must not be in the entity store as well.
        attrs: Attributes, as in `Entity`.
        tags: Tags, as in `Entity`.
        parents: Groups it belongs to.
    """
    return Entity(uid, dict(attrs or {}), list(parents), dict(tags or {}))


class Scope(_native.Scope):
    """Who acts, in which session, narrowed to which tools. Made by `Gate.run`."""

    around: Scope | None = None
    """What was in force where its run was entered, of whichever gate."""

    def bind(self, function: Callable[P, R]) -> Callable[P, R]:
        """A function that runs in this scope wherever it is called.

        Tasks and `asyncio.to_thread` inherit the scope; threads, pools and executors do not.

        Args:
            function: A plain function or a coroutine function.

        Raises:
            TypeError: It is a generator.
        """
        import inspect  # noqa: PLC0415 - see the top
        from typing import cast  # noqa: PLC0415 - see the top

        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            message = "a generator cannot be bound: its body runs wherever it is asked for the next value"
            raise TypeError(message)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def bound_async(*args: P.args, **kwargs: P.kwargs) -> object:
                token = _CURRENT.set(self)
                try:
                    return await function(*args, **kwargs)
                finally:
                    _CURRENT.reset(token)

            return cast("Callable[P, R]", bound_async)

        @functools.wraps(function)
        def bound(*args: P.args, **kwargs: P.kwargs) -> R:
            token = _CURRENT.set(self)
            try:
                return function(*args, **kwargs)
            finally:
                _CURRENT.reset(token)

        return bound

    def narrowed(  # noqa: PLR0913 - as many as a run has
        self,
        *,
        tools: Iterable[str] | None = None,
        forbid: str | Iterable[str] = (),
        labels: Iterable[str] = (),
        budget: str | None = None,
        request: str | None = None,
        expires_at: float | None = None,
    ) -> Scope:
        """A scope inside this one: only tools that both allow, this one's forbids and more, its budget or one below.

        Raises:
            PolicyError: A text of `forbid` cannot be used.
            BudgetError: The budget is none, or not this scope's or below it.
        """
        return Scope(
            self._gate,
            tools=_names("tools", tools),
            forbid=_texts(forbid),
            labels=_names("labels", labels) or [],
            budget=budget,
            expires_at=expires_at,
            outer=self,
            request=request,
        )


class Run:
    """A scope in force: a context manager, for `with` and `async with`.

    The scope is carried by a context variable, so that asyncio tasks and `asyncio.to_thread` inherit it.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self._tokens: list[Token[Scope | None]] = []
        self._over = False

    def __enter__(self) -> Scope:
        if self._over:
            message = "this run is over; make another with gate.run(...)"
            raise RuntimeError(message)
        self.scope.around = _CURRENT.get()
        self._tokens.append(_CURRENT.set(self.scope))
        return self.scope

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        token = self._tokens.pop()
        if not self._tokens:
            # Before the context variable: in whatever order runs end, a scope that is over allows nothing.
            self._over = True
            self.scope._end()  # noqa: SLF001 - the native half of this module
        try:
            _CURRENT.reset(token)
        except ValueError:
            # Entered in another context, by another task: that context's value is the scope just ended.
            _CURRENT.set(None)

    async def __aenter__(self) -> Scope:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


class Delegation(Run):
    """A run in which another principal acts for the one around it. Made by `Gate.delegate`.

    Entering it decides, and raises `Denied` where the gate or one of the principals does not allow it.
    """

    def __init__(
        self, scope: Scope, outer: Scope, parent: str | None, asserted: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(scope)
        self._outer, self._parent, self._asserted = outer, parent, asserted
        self.decision: Decision | None = None
        """The decision, once the run was entered."""

    def __enter__(self) -> Scope:
        if self.decision is None:
            gate = self.scope._gate  # noqa: SLF001 - the native half of this module
            self.decision = gate._delegate(  # noqa: SLF001 - as above
                self._outer, self.scope, self._parent, self._asserted
            )
        self.decision.require()
        return super().__enter__()


class ModelCall(_native.ModelCall):
    """One call of a model: a context manager, for `with` and `async with`. Made by `Gate.model_call`.

    Entering decides and holds the worst case, or raises `Denied`. Leaving it, however that happens, ends what is held:
    as `settle` has said, or else with what was charged, the prompt included; in full if nothing was streamed.
    """

    def __enter__(self) -> Self:
        super().__enter__()
        _await_record(self.decision, RECORD_SECONDS)
        return self

    async def __aenter__(self) -> Self:
        super().__enter__()
        durability = self.decision.durability
        if durability not in (None, "group"):
            import asyncio  # noqa: PLC0415 - see the top

            async with _released_unless_recorded(self.decision, RECORD_SECONDS), asyncio.timeout(RECORD_SECONDS):
                await self.decision.durable(durability)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


class Gate(_native.Gate):
    r"""Decides whether an agent may call a tool.

    Example:
        >>> import pathlib, tempfile
        >>> from tollkeeper import Gate
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "p.cedar").write_text('permit(principal, action == Action::"search", resource);')
        >>> _ = (folder / "tollkeeper.toml").write_text(
        ...     "[policy]\nfiles = ['p.cedar']\n[tools.search]\nresource = 'Mcp::\"web\"'"
        ... )
        >>> gate = Gate.open(folder / "tollkeeper.toml")
        >>> with gate.run(principal='Agent::"researcher"', session="s-42"):
        ...     gate.check("search", {"query": "weather"}).code
        'allow'
    """

    _path: Path
    _budgets: tuple[Path | None, Spec | None]
    _ledger: Ledger | None
    _given: bool
    """The ledger is the caller's: it stays as it is."""
    _log: AuditLog | None
    _log_given: bool
    _audit: tuple[Any, ...]
    """How the log was opened, which a reload cannot change."""
    _state_dir: Path | None
    _table: _native.Control
    """What the gates of the host share: one handle for all who wait for it."""
    _answers: dict[int, Answers]
    """Who waits for approvals, by process, as in a ledger."""
    _watch: Watch | None
    _swapping: _thread.LockType
    _opener: int
    """The process that opened it."""
    reload_error: str | None
    """Why the newest files are not in force; `None` if they are. A watcher has nobody else to tell."""
    _spans: Spans | None = None
    """What makes spans of guarded calls and model calls, where `tollkeeper.otel` has instrumented this gate."""

    def __new__(cls, *native: Any) -> Self:  # noqa: ANN401 - what the native half takes, of `open` alone
        """Without arguments, opens what is there, or a gate that denies everything and says what to write.

        That is what `tollkeeper.config.find` finds: a file that the environment names, or ``tollkeeper.toml`` here.

        Example:
            >>> import os, tempfile
            >>> os.chdir(tempfile.mkdtemp())
            >>> from tollkeeper import Gate
            >>> with Gate() as gate, gate.run(principal='Agent::"researcher"'):
            ...     print(gate.check("search").reason.splitlines()[-1])
            resource = 'Mcp::"SERVER"'; there is no tollkeeper.toml here; run `tollkeeper init`
        """
        if native:
            return super().__new__(cls, *native)
        from tollkeeper import config  # noqa: PLC0415 - see the top

        found = config.find()
        return cls._made(config.default(), notice=NO_FILE) if found is None else cls.open(found)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, ledger: Ledger | None = None, log: AuditLog | None = None) -> Self:
        """Loads a gate from its configuration file.

        Args:
            path: `tollkeeper.toml`; the files it names are relative to it.
            ledger: Used instead of the one that the configuration names; whoever opened it closes it.
            log: The same for the audit log.

        Raises:
            ConfigError: The configuration cannot be used; the message names file and key.
            PolicyError: A policy, the schema or a tool cannot be used, with file, line and column.
            EntityError: The entities cannot be used.
            BudgetError: The ledger's state cannot be used.
            AuditError: The audit log cannot be used.
            OSError: A file cannot be read.
        """
        from pathlib import Path  # noqa: PLC0415 - see the top

        from tollkeeper import config  # noqa: PLC0415 - see the top

        return cls._made(_anchored(config.load(Path(path))), ledger, log)

    @classmethod
    def _made(
        cls,
        settings: Config,
        ledger: Ledger | None = None,
        log: AuditLog | None = None,
        notice: str | None = None,
    ) -> Self:
        seen: Print | None = None
        if settings.gate.watch:
            from tollkeeper import config  # noqa: PLC0415 - see the top
            from tollkeeper.watch import fingerprint  # noqa: PLC0415 - a gate without a watcher needs none

            # First of all: what changes while it is read is seen as a change. Absolute: the watcher has to find the
            # files also when the process goes to another folder.
            path = settings.file.absolute()
            seen, settings = fingerprint(path), config.load(path)
        budgets, instance = _budgets(settings), int.from_bytes(os.urandom(8)) or 1
        sources = gate_sources(settings, notice)
        shared = control(settings)
        used = ledger if ledger is not None else _opened(budgets)
        recorder = log if log is not None else opened_log(settings, instance)
        tracer = None if recorder is None else _tracer()
        try:
            gate = cls(sources, instance, _CURRENT.get, used, recorder, tracer, shared)
        except BaseException:
            if recorder is not None and log is None:
                recorder.close()
            raise
        gate._path, gate._budgets, gate._ledger, gate._given = settings.file, budgets, used, ledger is not None
        gate._log, gate._audit, gate._log_given = recorder, _audit(settings), log is not None
        gate._state_dir, gate._table, gate._watch = settings.state_dir, gate._control, None
        gate._answers = {}
        gate._swapping, gate._opener, gate.reload_error = _thread.allocate_lock(), os.getpid(), None
        if seen is not None:
            from tollkeeper.watch import Watch  # noqa: PLC0415 - as above

            try:
                gate._watch = Watch(gate, settings, seen)
            except BaseException:
                gate.close()
                raise
        return gate

    @property
    def log(self) -> AuditLog | None:
        """What records decisions; `None` if the configuration has no ``[audit]``."""
        return self._log

    @property
    def ledger(self) -> Ledger | None:
        """What pays for actions; `None` if the configuration names no budgets. A reload may replace it."""
        return self._ledger

    def reload(self) -> None:
        """Reads the configuration and everything it names again, and swaps it in as a whole.

        Checks go on meanwhile. The case files that the configuration names are run first, on exactly the files that are
        then swapped in. If anything is wrong, the error says what, the audit log too, and the gate goes on as before.

        Budgets that have not changed go on with their ledger. Changed ones are taken up if they have a state file,
        which is opened anew with the new limits: what is used and held stays. A ledger in memory cannot take them,
        because its counts would be lost: that is an error.

        Raises:
            HandleError: The gate was closed.
            The same as `Gate.open`.
        """
        if self.closed:
            message = "the gate was closed, and decides nothing that new policies could change; open it again"
            raise HandleError(message, "gate.closed")
        try:
            # A watcher may reload at the same time. In a child of a fork nobody would ever let go of the lock.
            own = self._opener == os.getpid()
            with self._swapping if own else contextlib.nullcontext():
                self._swap()
        except Exception as error:
            self.reload_error = str(error)
            # A log that is closed or full: whoever asked is told why all the same.
            with contextlib.suppress(TollkeeperError):
                self._load_failed(str(error))
            raise
        self.reload_error = None

    def _swap(self) -> None:
        from tollkeeper import reloading  # noqa: PLC0415 - see the top

        settings, sources = reloading.read(self._path)
        if _audit(settings) != self._audit:
            message = f"{settings.file}: [audit] has changed, and a log stays as it was opened; open a new gate"
            raise ConfigError(message, "audit.reload")
        if settings.state_dir != self._state_dir:
            message = f"{settings.file}: [state] has changed, and what it holds stays in force; open a new gate"
            raise ConfigError(message, "state.reload")
        budgets = _budgets(settings)
        if self._given or budgets == self._budgets:
            self._reload(sources, self._ledger)
            return
        _refuse_lost_counts(self._budgets, budgets, settings)
        # Everything else is tried first: opening the ledger puts its new limits in force, for other processes too. What
        # decides is swapped last, and once: if the ledger cannot be opened the gate goes on as before.
        with reloading.rehearsed(settings, self._ledger, sources):
            pass
        ledger = _opened(budgets)
        try:
            self._reload(sources, ledger)
        except BaseException:
            if ledger is not None:
                ledger.close()
            raise
        if self.closed and ledger is not None:
            # By another thread, meanwhile: it has not seen this ledger.
            ledger.close()
        # What still holds something in the ledger before keeps it open until it ends.
        self._budgets, self._ledger = budgets, ledger

    def close(self) -> None:
        """Closes the gate and the ledger it has opened: later checks are denied with `gate.closed`, live holds end.

        The audit log is brought to the disk and gets its last checkpoint.

        Raises:
            AuditError: The disk refuses. What is in the ring is recorded when the log is opened again.
        """
        if self._watch is not None:
            self._watch.close()
        super().close()
        for answers in list(self._answers.values()):
            answers.close()
            answers.join()
        if self._ledger is not None and not self._given:
            self._ledger.close()
        if self._log is not None and not self._log_given:
            # A child of a fork has its parent's log, which goes on.
            with contextlib.suppress(HandleError):
                self._log.close()

    def register(  # noqa: PLR0913 - as many as a tool has
        self,
        name: str,
        resource: EntityUid | str,
        *,
        schema: Mapping[str, Any] | None = None,
        paths: Iterable[str] = (),
        cost: Mapping[str, int] | None = None,
        reads: Iterable[str] = (),
    ) -> None:
        r"""Registers a tool as a runtime describes it; it stays over reloads.

        The same description again changes nothing; another one replaces the one before, for every check that begins
        after it. A tool that ``tollkeeper.toml`` names stays what the file says: resource, cost, reads, paths and
        schema. Only if the file gives no schema, this one is adopted.

        Args:
            name: The tool's name, as calls have it.
            resource: Uid of the server or system that owns it.
            schema: JSON Schema of its arguments.
            paths: Arguments that are file paths.
            cost: What a call costs, by unit; without it a run that has a budget pays for one request.
            reads: Labels that its output brings into the session.

        Example:
            >>> import pathlib, tempfile
            >>> from tollkeeper import Gate
            >>> folder = pathlib.Path(tempfile.mkdtemp())
            >>> _ = (folder / "p.cedar").write_text('permit(principal, action, resource == Mcp::"web");')
            >>> _ = (folder / "tollkeeper.toml").write_text("[policy]\nfiles = ['p.cedar']")
            >>> gate = Gate.open(folder / "tollkeeper.toml")
            >>> gate.register("search", 'Mcp::"web"', schema={"properties": {"query": {"type": "string"}}})
            >>> with gate.run(principal='Agent::"researcher"'):
            ...     gate.check("search", {"query": "weather"}).code, gate.check("search", {"query": 7}).code
            ('allow', 'input.unrepresentable')

        Raises:
            PolicyError: The name, the schema, the paths, the cost or the reads cannot be used, or another tool has the
                same name but for case.
            EntityError: The resource is no uid.
            AuditError: The log cannot keep the definition.
        """
        self._register([_tool(name, resource, schema=schema, paths=paths, cost=cost, reads=reads)])

    def register_many(self, tools: Iterable[Mapping[str, Any]]) -> None:
        r"""Registers many tools as `register` does: all of them or, if one is wrong, none.

        Args:
            tools: For each its `name` and `resource`, and what else `register` takes, by those names. One that is
                described twice in different ways is an error.

        Example:
            >>> from tollkeeper import Gate
            >>> gate = Gate()
            >>> gate.register_many([{"name": n, "resource": 'Mcp::"web"'} for n in ("search", "fetch")])
            >>> gate.tools
            ['fetch', 'search']

        Raises:
            TypeError: A description has other keys.
            The same as `register`.
        """
        self._register([_tool(**tool) for tool in tools])

    def run(  # noqa: PLR0913 - as many as a run has
        self,
        *,
        principal: EntityUid | Entity | str | None = None,
        session: str | None = None,
        on_behalf_of: EntityUid | str | None = None,
        tools: Iterable[str] | None = None,
        forbid: str | Iterable[str] = (),
        labels: Iterable[str] = (),
        budget: str | None = None,
        request: str | None = None,
        expires_at: float | None = None,
    ) -> Run:
        """A run: who acts, in which session, from here to the end of the `with` block.

        Inside another run it only narrows: principal, session and `on_behalf_of` stay as they are, and the budget is
        the same or one below it.

        Args:
            principal: Uid, or `Principal(uid, attrs, ...)` with attributes that come with the run.
            session: Id of the session; made up if the run has none.
            on_behalf_of: For whom the principal acts.
            tools: The only tools this run may call, whatever the policies say. Decide it before the agent reads
                anything it did not write itself.
            forbid: Cedar text, or several, of forbids that hold in this run and in all inside it, after the gate's own
                policies. They are compiled here, once; a permit among them is an error.
            labels: What the session has seen, for policies that read `context.session.labels`. They stay with the
                session, also in other runs and processes that continue it.
            budget: Path of the budget that pays for what the run does, such as `acme/research`. Without one, what has a
                cost is denied.
            request: What the user asked for. Each entry of the run commits to it; the text itself is kept outside the
                entries and can be erased.
            expires_at: Seconds since 1970 after which everything is denied with `principal.expired`.

        Raises:
            EntityError: The principal, the session's id or its labels cannot be used.
            PolicyError: A text of `forbid` cannot be used, with line and column.
            BudgetError: There is no such budget, or the gate has no ledger, or a run inside another one names a budget
                that is not below the outer one's.
            ValueError: A run inside another one changes the principal, the session or `on_behalf_of`.
        """
        chosen, seen, forbids = _names("tools", tools), _names("labels", labels) or [], _texts(forbid)
        outer = _outer_of(self)
        if outer is None:
            if principal is None:
                message = "a run needs a principal; only a run inside another one can leave it out"
                raise ValueError(message)
            session = session if session is not None else os.urandom(16).hex()
            scope = Scope(
                self,
                principal,
                session,
                labels=seen,
                on_behalf_of=on_behalf_of,
                tools=chosen,
                forbid=forbids,
                budget=budget,
                expires_at=expires_at,
                request=request,
            )
            return Run(scope)
        _refuse_change("principal", principal, outer.principal)
        _refuse_change("session", session, outer.session)
        _refuse_change("on_behalf_of", on_behalf_of, outer.on_behalf_of)
        inner = outer.narrowed(
            tools=chosen, forbid=forbids, labels=seen, budget=budget, request=request, expires_at=expires_at
        )
        return Run(inner)

    def delegate(  # noqa: PLR0913 - as many as a run has
        self,
        to: EntityUid | Entity | str,
        *,
        tools: Iterable[str] | None = None,
        forbid: str | Iterable[str] = (),
        labels: Iterable[str] = (),
        budget: str | None = None,
        request: str | None = None,
        expires_at: float | None = None,
        scope: Scope | None = None,
        parent: str | None = None,
        asserted: Mapping[str, str] | None = None,
    ) -> Delegation:
        r"""A run in which another principal acts for the one of the current run.

        Entering it decides on `Action::"delegate"`, with the other principal as the resource and `budget` and `tools`
        under `context.input`, and raises `Denied` where that is not allowed. From then on every principal of the chain,
        at most four, has to be allowed whatever is done, and what the outer run may not do this one may not either.

        Args:
            to: Uid, or `Principal(uid, attrs, ...)` with attributes that come with the run.
            tools: As in `run`.
            forbid: As in `run`.
            labels: As in `run`.
            budget: The current run's budget, or one below it.
            request: As in `run`.
            expires_at: As in `run`.
            scope: A scope other than the current one.
            parent: Id of the decision that this one follows from, for the audit log.
            asserted: As in `check`; looked at when it is entered.

        Raises:
            ValueError: There is no run around it.
            The same as `run`.
        """
        outer = scope if scope is not None else _outer_of(self)
        if outer is None or outer._gate is not self:  # noqa: SLF001 - the native half of this module
            message = "a delegation needs a run of this gate around it: with gate.run(...), or scope="
            raise ValueError(message)
        inner = Scope(
            self,
            to,
            tools=_names("tools", tools),
            forbid=_texts(forbid),
            labels=_names("labels", labels) or [],
            budget=budget,
            expires_at=expires_at,
            outer=outer,
            request=request,
        )
        return Delegation(inner, outer, parent, asserted)

    def approval(self, decision: Decision, *, timeout: float = 3600.0) -> Approval:
        """Asks somebody to approve what a decision with `approval.required` denied.

        The question is for exactly this: principal chain with the attributes and parents of principals that the program
        describes, on whose behalf, action, resource, arguments, the tool's definition and the kinds of approval; for a
        delegation also its forbids and its end. The session is not bound.

        Nothing is held while it is open. Once granted, the same check is allowed once. While the same question is open,
        whoever asked it, this joins it: it ends when that one ends.

        Args:
            decision: A denial with `approval.required` or `approval.expired`.
            timeout: Seconds after which the question is void.

        Returns:
            `Approval`, to be awaited or waited for.

        Raises:
            StateError: The gate has no state directory, or too many questions are open.
            ValueError: The decision asks for no approval.
        """
        from tollkeeper.approvals import Answers, ask  # noqa: PLC0415 - a gate without approvals needs none

        answers = self._answers.get(os.getpid()) or self._answers.setdefault(os.getpid(), Answers(self._table))
        return ask(answers, self._state_dir, decision, timeout)

    def model_call(  # noqa: PLR0913 - as many as a model call has
        self,
        *,
        model: str,
        prompt_tokens: int,
        max_tokens: int,
        n: int = 1,
        parent: str | None = None,
        asserted: Mapping[str, str] | None = None,
    ) -> ModelCall:
        r"""A call of a model, from the decision to what it has used.

        Policies see it as `Action::"call_model"` on `Model::"NAME"`, with `model`, `prompt_tokens`, `max_tokens` and
        `n` under `context.input`. The run's budget holds the worst case; with `admission = "incremental"` a part, which
        `charge` tops up while there is room.

        Args:
            model: Its name in the price table.
            prompt_tokens: Tokens of the prompt.
            max_tokens: The most tokens of one completion.
            n: How many completions.
            parent: Id of the decision that the call follows from, for the audit log.
            asserted: As in `check`.

        Raises:
            ValueError: A count is none, or as in `check`.

        Example:
            >>> import pathlib, tempfile
            >>> from tollkeeper import Gate
            >>> folder = pathlib.Path(tempfile.mkdtemp())
            >>> _ = (folder / "p.cedar").write_text('permit(principal, action == Action::"call_model", resource);')
            >>> _ = (folder / "budgets.toml").write_text(
            ...     '[budget."acme"]\nlimits = [{ unit = "tokens", window = "1d", limit = 2000 }]'
            ... )
            >>> _ = (folder / "tollkeeper.toml").write_text(
            ...     "[policy]\nfiles = ['p.cedar']\n[budget]\nfile = 'budgets.toml'"
            ... )
            >>> gate = Gate.open(folder / "tollkeeper.toml")
            >>> with gate.run(principal='Agent::"researcher"', budget="acme"):
            ...     with gate.model_call(model="gpt-5", prompt_tokens=1200, max_tokens=400) as call:
            ...         call.charge(17), call.settle(prompt=1200, completion=311)
            (True, True)
            >>> gate.ledger.usage("acme")["tokens", "1d"].used
            1511
        """
        made = ModelCall if self._spans is None else self._spans.model_call
        return made(self, model, prompt_tokens, max_tokens, n, parent, asserted)

    async def acheck(  # noqa: PLR0913 - as many as a check that waits has
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        scope: Scope | None = None,
        parent: str | None = None,
        asserted: Mapping[str, str] | None = None,
        timeout: float = 1.0,  # noqa: ASYNC109 - as everywhere in this package
        approval_timeout: float | None = None,
    ) -> Decision:
        """As `check`, and may wait: for room in the audit log, and until the record is as durable as it has to be.

        The arguments may have 4 MiB. Waiting keeps no thread and no event loop busy.

        Args:
            tool: Name of a registered tool.
            arguments: As in `check`.
            scope: As in `check`.
            parent: As in `check`.
            asserted: As in `check`.
            timeout: Seconds, for both together.
            approval_timeout: Where an approval is needed, asks for it, waits so many seconds for the answer and checks
                again. Nothing is held meanwhile.

        Raises:
            AuditError: The action is allowed, and its record did not get to the disk in time: it must not begin, and
                what was reserved is given back.
        """
        decision = await self._acheck(tool, arguments, scope, (parent, asserted), timeout)
        if approval_timeout is None or decision.code not in {"approval.required", "approval.expired"}:
            return decision
        from tollkeeper import aio  # noqa: PLC0415 - loads asyncio

        # In a thread, for the question is written to the disk.
        await (await aio.in_thread(lambda: self.approval(decision, timeout=approval_timeout)))
        # Whatever was answered: the check says what came of it.
        return await self._acheck(tool, arguments, scope, (decision.id, asserted), timeout)

    async def _acheck(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None,
        scope: Scope | None,
        said: tuple[str | None, Mapping[str, str] | None],
        timeout: float,  # noqa: ASYNC109 - as everywhere in this package
    ) -> Decision:
        import asyncio  # noqa: PLC0415 - see the top

        parent, asserted = said
        end, hopeless = _now() + timeout, False
        while True:
            while self._log is not None and (seq := self._room_after()) is not None and _now() < end:
                try:
                    async with asyncio.timeout(end - _now()):
                        await self._log.durable(seq)
                except (TollkeeperError, TimeoutError):
                    # The check says why there is no room.
                    hopeless = True
                    break
            decision = self._check_large(tool, arguments, scope=scope, parent=parent, asserted=asserted)
            if decision.code != "audit.unavailable" or hopeless or _now() >= end or self._room_after() is None:
                break
        if decision.allowed and decision.durability not in (None, "group"):
            async with _released_unless_recorded(decision, timeout), asyncio.timeout(max(end - _now(), 0.001)):
                await decision.durable(decision.durability)
        return decision

    def check_blocking(  # noqa: PLR0913 - as many as a check that waits has
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        scope: Scope | None = None,
        parent: str | None = None,
        asserted: Mapping[str, str] | None = None,
        timeout: float = 1.0,
    ) -> Decision:
        """As `acheck`, for threads: waits without the interpreter's lock.

        Args:
            tool: Name of a registered tool.
            arguments: As in `check`; up to 4 MiB.
            scope: As in `check`.
            parent: As in `check`.
            asserted: As in `check`.
            timeout: Seconds, for room in the log and the record together.

        Raises:
            AuditError: The action is allowed, and its record did not get to the disk in time: it must not begin, and
                what was reserved is given back.
        """
        end, hopeless = _now() + timeout, False
        while True:
            while self._log is not None and (seq := self._room_after()) is not None and _now() < end:
                try:
                    self._log.wait(seq, "sync", end - _now())
                except TollkeeperError:
                    hopeless = True
                    break
            decision = self._check_large(tool, arguments, scope=scope, parent=parent, asserted=asserted)
            if decision.code != "audit.unavailable" or hopeless or _now() >= end or self._room_after() is None:
                break
        if decision.allowed:
            _await_record(decision, max(end - _now(), 0.001))
        return decision

    def outcome(
        self,
        decision: Decision,
        status: str = "ok",
        *,
        error: BaseException | None = None,
        usage: Mapping[str, int] | None = None,
        duration_ms: int | None = None,
    ) -> bool:
        """Records what became of an action: once for each decision, and never by waiting.

        Guards and model calls do it themselves.

        Args:
            decision: What allowed the action.
            status: `ok`, `error`, `cancelled` or `unknown`.
            error: What was raised; only the name of its class is recorded.
            usage: What was used, by name.
            duration_ms: How long it took.

        Returns:
            Whether it was recorded; False without an audit log, or if an outcome is recorded already.

        Raises:
            AuditError: The log cannot take it.
        """
        name = None if error is None else type(error).__name__
        return decision._outcome(  # noqa: SLF001 - the native half of this module
            status, name, list((usage or {}).items()), duration_ms
        )

    if TYPE_CHECKING:

        @overload
        def guard(self, function: Callable[P, R], /) -> Callable[P, R]: ...

        @overload
        def guard(self, /, *, tool: str) -> Callable[[Callable[P, R]], Callable[P, R]]: ...

    def guard(self, function: Callable[P, R] | None = None, /, *, tool: str | None = None) -> Any:
        """Decorates a function, sync or async, so that each call is checked first; a denial raises `Denied`.

        The call's arguments, by parameter name and with defaults filled in, are what policies read. Lists and dicts
        are copied before the check, so that nobody can change them between the decision and the call. What is reserved
        for the call ends when the function returns or raises, or its task is cancelled: in full, since it ran.

        Args:
            function: The function.
            tool: The tool's name; without it the function's own.
        """
        if function is None:
            return functools.partial(self._guarded, tool=tool)
        return self._guarded(function, tool=tool)

    def _guarded(self, function: Callable[P, R], *, tool: str | None) -> Callable[P, Any]:
        import inspect  # noqa: PLC0415 - see the top

        if isinstance(function, functools.partial):
            message = "a partial hides arguments from policies; guard the function and make the partial of that"
            raise TypeError(message)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            message = "a generator runs after the call has returned; guard the function that it calls for each item"
            raise TypeError(message)
        signature = inspect.signature(function)
        name = tool if tool is not None else getattr(function, "__name__", "")
        _refuse_positional(signature, name)

        def admitted(
            args: tuple[Any, ...], kwargs: dict[str, Any], told: Told
        ) -> tuple[inspect.BoundArguments, Decision, float]:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            bound.arguments = _copied(dict(bound.arguments), {})
            decision = self.check(name, _by_name(signature, bound.arguments))
            if told is not None:
                told(decision)
            decision.require()
            return bound, decision, _now()

        made = self._guarded_async if inspect.iscoroutinefunction(function) else self._guarded_sync
        return made(function, name, admitted)

    def _guarded_async(self, function: Callable[P, Any], name: str, admitted: Admitted) -> Callable[P, Any]:
        async def called(args: tuple[Any, ...], kwargs: dict[str, Any], told: Told = None) -> object:
            import asyncio  # noqa: PLC0415 - see the top

            bound, decision, begun = admitted(args, kwargs, told)
            if decision.durability not in (None, "group"):
                async with _released_unless_recorded(decision, RECORD_SECONDS), asyncio.timeout(RECORD_SECONDS):
                    await decision.durable(decision.durability)
            try:
                result = await function(*bound.args, **bound.kwargs)
            except BaseException as raised:
                _ended(decision, begun, raised)
                raise
            _ended(decision, begun)
            return result

        @functools.wraps(function)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> object:
            if self._spans is None:
                return await called(args, kwargs)
            with self._spans.tool(name) as told:
                return await called(args, kwargs, told)

        return guarded

    def _guarded_sync(self, function: Callable[P, R], name: str, admitted: Admitted) -> Callable[P, R]:
        def called(args: tuple[Any, ...], kwargs: dict[str, Any], told: Told = None) -> R:
            bound, decision, begun = admitted(args, kwargs, told)
            _await_record(decision, RECORD_SECONDS)
            try:
                result = function(*bound.args, **bound.kwargs)
            except BaseException as raised:
                _ended(decision, begun, raised)
                raise
            if hasattr(type(result), "__await__"):
                # Its body has not run yet, and would run unguarded by what ends here.
                close: Callable[[], None] | None = getattr(result, "close", None)
                if close is not None:
                    close()
                message = f"`{name}` returns an awaitable; guard the `async def` that does the work"
                error = TypeError(message)
                _ended(decision, begun, error)
                raise error
            _ended(decision, begun)
            return result

        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            if self._spans is None:
                return called(args, kwargs)
            with self._spans.tool(name) as told:
                return called(args, kwargs, told)

        return guarded

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes in a thread, since the disk is waited for; a cancellation waits for that too."""
        from tollkeeper import aio  # noqa: PLC0415 - loads asyncio

        await aio.in_thread(self.close)


def _outer_of(gate: Gate) -> Scope | None:
    """The innermost run of this gate that is in force, also where a run of another gate is entered inside it."""
    outer = _CURRENT.get()
    while outer is not None and outer._gate is not gate:  # noqa: SLF001 - the native half of this module
        outer = outer.around
    return outer


def _await_record(decision: Decision, timeout: float) -> None:
    """Waits until the record is as durable as it has to be; without it the action never begins."""
    durability = decision.durability
    if durability in (None, "group"):
        return
    try:
        decision.wait_durable(durability, timeout)
    except BaseException as error:
        _never_began(decision, error)
        raise


@contextlib.asynccontextmanager
async def _released_unless_recorded(decision: Decision, seconds: float) -> AsyncGenerator[None]:
    from tollkeeper.errors import AuditError  # noqa: PLC0415 - see the top

    try:
        yield
    except BaseException as error:
        _never_began(decision, error)
        if isinstance(error, TimeoutError):
            message = f"the record of the decision is not on the disk after {seconds} s"
            raise AuditError(message, "audit.unavailable") from None
        raise


def _never_began(decision: Decision, error: BaseException) -> None:
    """Gives back what is held for an action whose record is not certain enough, and says so if that is possible."""
    decision._release()  # noqa: SLF001 - the native half of this module
    with contextlib.suppress(TollkeeperError):
        decision._outcome("cancelled", type(error).__name__, [], None)  # noqa: SLF001 - as above


def _ended(decision: Decision, begun: float, error: BaseException | None = None) -> None:
    """Ends what was reserved for a guarded call, and records how it ended."""
    status, name = "ok", None
    if error is not None:
        name = type(error).__name__
        status = "cancelled" if name in CANCELLATIONS else "error"
    duration_ms = max(int((_now() - begun) * 1000), 0)
    # The function has returned or raised already: that is what its caller is told, not that the log is broken. That is
    # told by the next check, which is denied.
    with contextlib.suppress(TollkeeperError):
        decision._finish(status, name, duration_ms)  # noqa: SLF001 - the native half of this module


# Exact types: a subclass is left as it is, and the check refuses it.
_MAPPINGS = (dict,)
_LISTS = (list,)
_TUPLES = (tuple,)


def _copied(value: Any, done: dict[int, Any]) -> Any:  # noqa: ANN401 - plain data of any shape
    """Plain containers copied, each once, everything else as it is; the check refuses what is not plain.

    A container that holds itself is copied into one that does, which the check refuses as too deep.
    """
    if id(value) in done:
        return done[id(value)]
    if type(value) in _MAPPINGS:
        fields: dict[Any, Any] = {}
        done[id(value)] = fields
        for key, item in value.items():
            fields[key] = _copied(item, done)
        return fields
    if type(value) in _LISTS:
        items: list[Any] = []
        done[id(value)] = items
        items.extend(_copied(item, done) for item in value)
        return items
    if type(value) in _TUPLES:
        copied: tuple[Any, ...] = tuple(_copied(item, done) for item in value)
        done[id(value)] = copied
        return copied
    if any("__struct_fields__" in vars(base) for base in type(value).__mro__):
        import copy  # noqa: PLC0415 - see the top

        return copy.deepcopy(value)
    return value


def _names(what: str, names: Iterable[str] | None) -> list[str] | None:
    """A str is an iterable of its characters, which is never what was meant."""
    if isinstance(names, str):
        message = f"{what} is a list of names, not a str"
        raise TypeError(message)
    return None if names is None else list(names)


def _tool(  # noqa: PLR0913 - as many as a tool has
    name: str,
    resource: EntityUid | str,
    *,
    schema: Mapping[str, Any] | None = None,
    paths: Iterable[str] = (),
    cost: Mapping[str, int] | None = None,
    reads: Iterable[str] = (),
) -> tuple[str, str, str | None, list[str], list[tuple[str, int]] | None, list[str]]:
    """A tool as the native half takes it."""
    import json  # noqa: PLC0415 - see the top

    return (
        name,
        str(resource),
        None if schema is None else json.dumps(schema),
        _names("paths", paths) or [],
        None if cost is None else list(cost.items()),
        _names("reads", reads) or [],
    )


def _texts(forbid: str | Iterable[str]) -> list[str]:
    """One text is one text, not its characters."""
    return [forbid] if isinstance(forbid, str) else list(forbid)


def _refuse_positional(signature: inspect.Signature, name: str) -> None:
    """Variable arguments have no names that a policy could speak of."""
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            message = f"`{name}` takes *{parameter.name}: a guarded function needs a name for each argument"
            raise TypeError(message)


def _by_name(signature: inspect.Signature, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as policies see them: those of `**kwargs` stand beside the named ones."""
    named: dict[str, Any] = {}
    for key, value in arguments.items():
        parameter = signature.parameters[key]
        if parameter.kind is parameter.VAR_KEYWORD:
            for name, item in value.items():
                if name in arguments:
                    message = f"`{name}` is given by position and by name; policies could see only one of them"
                    raise TypeError(message)
                named[name] = item
        else:
            named[key] = value
    return named


def _refuse_change(what: str, wanted: object, current: str | None) -> None:
    if wanted is not None and str(wanted) != current:
        message = f"a run inside another one cannot change its {what}; it is `{current}` there"
        raise ValueError(message)


def _budgets(settings: Config) -> tuple[Path | None, Spec | None]:
    """Where the ledger's state is, and the budgets; `(None, None)` without budgets."""
    if settings.budget_file is None:
        return None, None
    from tollkeeper import budgets  # noqa: PLC0415 - see the top

    return settings.budget_state, budgets.spec(settings.budget_file)


def _anchored(settings: Config) -> Config:
    """The same, with what is looked for later by absolute paths: the process may go to another folder meanwhile."""
    from msgspec.structs import replace  # noqa: PLC0415 - see the top

    places = {
        name: path.absolute()
        for name in ("file", "budget_state", "audit_dir", "state_dir")
        if (path := getattr(settings, name)) is not None
    }
    return replace(settings, **places)


def _audit(settings: Config) -> tuple[Any, ...]:
    """What a log is opened with."""
    return settings.audit, settings.audit_dir, settings.audit_origin


def opened_log(settings: Config, instance: int) -> AuditLog | None:
    """A log of this process's own among those of the configuration; `None` if it names none."""
    audit, folder, origin = settings.audit, settings.audit_dir, settings.audit_origin
    if audit is None or folder is None or origin is None:
        return None
    from tollkeeper.audit import AuditLog  # noqa: PLC0415 - a gate without a log needs none

    return AuditLog(
        folder,
        origin=origin,
        interval_ms=audit.interval_ms,
        checkpoint_interval_ms=audit.checkpoint_interval_ms,
        ring_bytes=audit.ring_kib << 10,
        exported=audit.exported,
        instance=instance,
        slot=True,
    )


def _tracer() -> tuple[Callable[[], Any], Callable[[Any], tuple[int, int] | None]] | None:
    """Says what is traced, and the ids of the current trace and span in it, where OpenTelemetry is installed."""
    try:
        from opentelemetry import context, trace  # noqa: PLC0415 - an optional host
    except ImportError:
        return None
    import atexit  # noqa: PLC0415 - see the top

    # Registered again and again it is still run once: what counts is that it is before the interpreter ends.
    atexit.unregister(_native._end_tracing)  # noqa: SLF001 - the native half of this module
    atexit.register(_native._end_tracing)  # noqa: SLF001 - as above

    def ids(traced: Any) -> tuple[int, int] | None:  # noqa: ANN401 - a context of the host
        span = trace.get_current_span(traced).get_span_context()
        return (span.trace_id, span.span_id) if span.is_valid else None

    # The variable behind `get_current`, where it is one: a tenth of the call.
    variable = getattr(getattr(context, "_RUNTIME_CONTEXT", None), "_current_context", None)
    current: Callable[[], Any] = getattr(variable, "get", context.get_current)
    return current, ids


def control(settings: Config) -> _native.Control | None:
    """What the gates of the host share; `None` without a state directory."""
    if settings.state_dir is None:
        return None
    return _native.Control.open(settings.state_dir / CONTROL_NAME)


def _opened(budgets: tuple[Path | None, Spec | None]) -> Ledger | None:
    state, spec = budgets
    if spec is None:
        return None
    from tollkeeper.budget import Ledger  # noqa: PLC0415 - a gate without budgets needs none

    return Ledger(spec, None if state is None else os.fsdecode(state))


def _refuse_lost_counts(
    before: tuple[Path | None, Spec | None], after: tuple[Path | None, Spec | None], settings: Config
) -> None:
    """Counts in memory would be lost with their ledger, and every budget would begin anew."""
    if before[1] is None or (before[0] is not None and before[0] == after[0]):
        return
    from tollkeeper.errors import BudgetError  # noqa: PLC0415 - see the top

    if before[0] is None:
        message = (
            f"{settings.budget_file or settings.file}: the budgets have changed, and what is spent is in memory only"
        )
        help_ = 'open a new gate to begin anew; with [budget] state = "ledger.bin" changed budgets can be reloaded'
    else:
        message = f"{settings.file}: the state of the ledger was {before[0]}; another one would begin anew"
        help_ = "open a new gate, or put the state back"
    raise BudgetError(message, "budget.reload", help_)


def gate_sources(settings: Config, notice: str | None = None) -> dict[str, Any]:
    """Reads the files that the configuration names. `notice` is what denials say beside their reason."""
    import json  # noqa: PLC0415 - see the top

    from tollkeeper import config  # noqa: PLC0415 - see the top

    def named(file: Path | None) -> tuple[str, str] | None:
        return None if file is None else (str(file), config.read_text(file))

    return {
        "policies": [named(file) for file in settings.policy_files],
        "schema": named(settings.schema_file),
        "entities": named(settings.entities_file),
        "tools": [
            (
                name,
                tool.resource,
                None if tool.schema is None else json.dumps(tool.schema),
                list(tool.paths),
                None if tool.cost is None else list(tool.cost.items()),
                list(tool.reads),
            )
            for name, tool in settings.tools.items()
        ],
        "mode": settings.gate.mode,
        "on_error": settings.gate.on_error,
        "unguarded_forbid": settings.gate.unguarded_forbid,
        "on_full": "deny" if settings.audit is None else settings.audit.on_full,
        "durability": "group" if settings.audit is None else settings.audit.durability,
        "approvers": list(settings.admin_keys),
        "notice": notice,
        "folder": str(settings.file.parent),
    }
