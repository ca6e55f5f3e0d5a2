"""Administration: what changes what gates do, apart from the gates themselves and with credentials of its own.

`GateAdmin` revokes and restores, answers approvals, changes limits, has gates reload, and says how they are doing.
Where the configuration lists public keys under ``[admin]``, each of these acts needs the private half of one, and a
gate takes no grant without its signature. Looking needs none.

The keys keep apart those who use this class. Whoever can write to the state directory as the same user can change the
table of revocations without it; only grants are proof against that, because gates check their signatures. See the tiers
in ``status``.

What takes rights away is done first and recorded then, because a full disk must not keep anybody from stopping an
agent. What gives rights is checked, recorded on the disk, and only then done; if it cannot be done after all, a second
entry says ``failed``.
"""

import base64
import contextlib
import datetime as dt
import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from tollkeeper import _native, config, owners, reloading, unfinished
from tollkeeper.approvals import FOLDER, document_path, write_private
from tollkeeper.audit import AuditLog
from tollkeeper.budget import Ledger
from tollkeeper.errors import AuditError, BudgetError, StateError, TollkeeperError
from tollkeeper.gate import CONTROL_NAME, opened_log
from tollkeeper.reevaluate import is_object
from tollkeeper.unfinished import Target
from tollkeeper.watch import REPORTS, REQUEST_BYTES_MAX, REQUEST_NAME

__all__ = ["Calls", "GateAdmin", "Holds", "Question", "Receipt", "Reloaded", "Target"]

# A document that says what an approval is for: the arguments of one call, once more escaped, and a few names.
DOCUMENT_BYTES_MAX: Final = 16 << 20
EXPIRES_SECONDS_MAX: Final = 30 * 24 * 3600.0
BY_BYTES_MAX: Final = 128
# As the table of revocations has them.
NAME_BYTES_MAX: Final = 512
REASON_BYTES_MAX: Final = 256
# A document is written before its question is asked, so what is this young may still be asked.
LEFT_OVER_SECONDS: Final = 600.0
LOOK_SECONDS: Final = 0.05

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Holds:
    """What of the ledger is held for the revoked."""

    live: int = 0
    ids: tuple[str, ...] = ()
    """Of the holds, at most 100."""
    unknown: int = 0
    """Live holds of decisions that were not found in what was read of the logs: they may be the revoked's too."""


@dataclass(frozen=True)
class Calls:
    """Actions that were allowed before and that nobody has reported the end of."""

    live: int
    """Of processes that live."""
    abandoned: int
    """Of processes that have ended."""
    ids: tuple[str, ...]
    """Decisions of ``live``, the newest first, at most 100."""
    read: int
    """Entries that were read to find them."""
    since: str | None
    """The moment back to which they were looked for; `None` if the logs hold nothing."""
    whole: bool
    """Whether everything was read."""
    faults: tuple[str, ...] = ()
    """What could not be read, and why."""


@dataclass(frozen=True)
class Receipt:
    """What a change of the table of revocations came to."""

    target: Target
    restored: bool
    generation: int
    """From this generation of the table on it counts, in every process."""
    changed: bool
    """False if it was so already."""
    by: str
    holds: Holds | None = None
    holds_unknown: str | None = None
    """Why nothing is known about holds."""
    calls: Calls | None = None
    calls_unknown: str | None = None
    """Why nothing is known about calls."""
    unrecorded: str | None = None
    """Why the audit log does not say it, although it is done; `None` if it does, or if there is none."""


@dataclass(frozen=True)
class Question:
    """An approval that somebody asked for."""

    id: str
    state: str
    """``pending``, ``granted``, ``rejected``, ``expired`` or ``used``."""
    digest: bytes
    asked_ms: int
    expires_ms: int
    answered_ms: int | None
    grant_expires_ms: int | None
    document: Mapping[str, Any] | None
    """What was written down for the approver: ``kinds``, ``policies``, ``reason``, ``decision`` and others."""
    binding: Mapping[str, Any] | None
    """What exactly is asked for: ``chain``, ``action``, ``resource``, ``arguments``, ``pin``. `None` if it is not what
    the gate asked for: then ``fault`` says why, and it cannot be approved."""
    fault: str | None = None


@dataclass(frozen=True)
class Reloaded:
    """Which gates decide by the new bundle."""

    bundle: str
    """Its digest, in hexadecimal digits."""
    taken: list[int] = field(default_factory=list)
    """Process ids of gates that have it."""
    missing: dict[int, str] = field(default_factory=dict)
    """Process ids of gates that have not, each with why as far as it is known."""


class GateAdmin:
    r"""What operators do to the gates of a state directory.

    Example:
        >>> import pathlib, tempfile
        >>> from tollkeeper import Gate, GateAdmin
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "p.cedar").write_text("permit(principal, action, resource);")
        >>> _ = (folder / "tollkeeper.toml").write_text(
        ...     "[policy]\nfiles = ['p.cedar']\n[state]\n[tools.search]\nresource = 'Mcp::\"web\"'"
        ... )
        >>> admin = GateAdmin.open(folder / "tollkeeper.toml")
        >>> with Gate.open(folder / "tollkeeper.toml") as gate, gate.run(principal='Agent::"a"'):
        ...     receipt = admin.revoke(principal='Agent::"a"', reason="it was taken over")
        ...     receipt.generation, gate.check("search").code
        (1, 'principal.revoked')
    """

    def __init__(self, settings: config.Config, key: _native.AdminKey | None, name: str) -> None:
        """See `open`."""
        self.settings = settings
        self._key, self._name = key, name
        self._table: _native.Control | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], key: str | os.PathLike[str] | None = None) -> Self:
        """Reads a configuration, and the key of whoever administers.

        Args:
            path: `tollkeeper.toml`.
            key: The file of the private key, as ``tollkeeper audit keygen --out admin.key`` writes it. Needed for every
                act where the configuration has ``[admin]``.

        Raises:
            ConfigError: The configuration cannot be used.
            StateError: The key is none of those that the configuration lists (`admin.key`).
            AuditError: The key's file cannot be read, or others can read it.
            OSError: A file cannot be read.
        """
        settings = config.load(Path(path))
        private = None if key is None else _native.AdminKey.load(key)
        name = _user()
        if private is not None and settings.admin_keys:
            listed = [known for known in settings.admin_keys if _public(known) == private.public]
            if not listed:
                raise _refused(settings, f"{os.fsdecode(key or '')}: its public half is not among the keys of [admin]")
            name = "+".join(listed[0].split("+")[:2])
        return cls(settings, private, name.encode(errors="replace")[:BY_BYTES_MAX].decode(errors="ignore"))

    # --- acts ---------------------------------------------------------------------------------------------------------

    def revoke(
        self,
        *,
        principal: _native.EntityUid | str | None = None,
        tool: str | None = None,
        session: str | None = None,
        everything: bool = False,
        reason: str = "",
    ) -> Receipt:
        """Takes the right to act from a principal, a tool, a session or everything: name exactly one.

        When it returns, every check that begins is denied with `principal.revoked`, in every process that shares the
        state directory, wherever in a chain the principal stands, also after a restart; and the next `charge` of what
        is streaming says stop. What was allowed before goes on as far as its runtime lets it: the receipt says what is
        known.

        Args:
            principal: Its uid.
            tool: Name of the tool.
            session: Id of the session.
            everything: All of them.
            reason: For people; at most 256 bytes.

        Raises:
            StateError: The table cannot be changed, or there is no state directory, or the key is missing.
            EntityError: The principal is no uid.
        """
        target = _target(principal, tool, session, everything)
        _check_texts(target, reason)
        table = self._act()
        generation, changed = table.revoke(target.kind, target.name, reason, self._name, _now_ms())
        found, calls_unknown = self._unfinished(target)
        holds, holds_unknown = self._holds(target, found, calls_unknown)
        return Receipt(
            target=target,
            restored=False,
            generation=generation,
            changed=changed,
            by=self._name,
            holds=holds,
            holds_unknown=holds_unknown,
            calls=None if found is None else _calls(found),
            calls_unknown=calls_unknown,
            unrecorded=self._record_late("revoke", _revocation(target, generation, reason, self._name)),
        )

    def restore(
        self,
        *,
        principal: _native.EntityUid | str | None = None,
        tool: str | None = None,
        session: str | None = None,
        everything: bool = False,
        reason: str = "",
    ) -> Receipt:
        """Takes back a revocation of exactly this target; others stay in force. See `revoke`.

        Raises:
            StateError: As for `revoke`.
            AuditError: It could not be recorded, and is not done.
        """
        target = _target(principal, tool, session, everything)
        _check_texts(target, reason)
        table = self._act()
        rows = table.revocations()
        stands = any((row["kind"], row["name"]) == (target.kind, target.name) for row in rows)
        entry = _revocation(target, table.generation + stands, reason, self._name, restored=True)
        unrecorded = None
        with self._log() as log:
            generation, changed = _recorded(log, "revoke", entry, lambda: table.restore(target.kind, target.name))
            if generation != entry["generation"]:
                # Somebody else has changed the table meanwhile.
                unrecorded = _append(log, "revoke", {**entry, "generation": generation})
        return Receipt(
            target, restored=True, generation=generation, changed=changed, by=self._name, unrecorded=unrecorded
        )

    def approve(self, approval: str, *, expires_s: float = 3600.0) -> Question:
        """Grants what a gate asked for, to be used once and until it expires.

        The text that says what it is for is compared with the digest that the gate has left: a text that was changed
        since is refused.

        Args:
            approval: The question's id.
            expires_s: Seconds after which the grant is void.

        Returns:
            The question as it stands then.

        Raises:
            StateError: There is no such question, it was answered, or its document was changed (`admin.approval`,
                `admin.document`).
            AuditError: It could not be recorded, and is not granted.
        """
        if not 0 < expires_s <= EXPIRES_SECONDS_MAX:
            message = f"expires_s is {expires_s}, not between 0 and {EXPIRES_SECONDS_MAX:.0f} seconds"
            raise ValueError(message)
        table, question = self._act(), self._pending(approval)
        if question.fault is not None:
            raise StateError(question.fault, "admin.document", f"tollkeeper approvals reject {approval}")
        with self._log() as log:
            now_ms = _now_ms()
            expires_ms = now_ms + max(1, int(expires_s * 1000))
            signature = None
            if self._key is not None:
                signature = self._key.sign(_native.Control.approval_message(approval, question.digest, expires_ms))
            entry = self._answer_entry(question, granted=True, expires_ms=expires_ms)

            def grant() -> None:
                table.answer(approval, True, expires_ms, signature, now_ms)  # noqa: FBT003 - the native half

            _recorded(log, "approve", entry, grant)
        self._clean(table)
        return self.approval(approval)

    def reject(self, approval: str, reason: str = "") -> Question:
        """Refuses what a gate asked for: the same call is denied with `approval.rejected` from then on.

        Args:
            approval: The question's id.
            reason: For the audit log; at most 256 bytes.

        Raises:
            StateError: There is no such question, it was answered, or the reason is too long.
            AuditError: It is rejected, and the log does not say so.
        """
        _check_text("the reason", reason, (0, REASON_BYTES_MAX))
        table, question = self._act(), self._pending(approval)
        table.answer(approval, False, question.expires_ms, None, _now_ms())  # noqa: FBT003 - the native half
        fault = self._record_late("approve", self._answer_entry(question, granted=False, reason=reason))
        if fault is not None:
            raise AuditError(
                f"approval {approval} is rejected, and the log does not say so: {fault}", "audit.unavailable"
            )
        self._clean(table)
        return self.approval(approval)

    def set_limit(self, path: str, unit: str, window: str, limit: int) -> int:
        """Changes a limit of the ledger while it is in use; see `Ledger.set_limit`.

        The entry of the ledger's own names no person; where a log is kept, one more says who wanted it.

        Returns:
            The limit before.

        Raises:
            BudgetError: There is no such limit, it cannot be that, or the ledger cannot be used.
            StateError: The key is missing.
            AuditError: It could not be recorded, and is not done.
        """
        from tollkeeper.budgets import LIMIT_MAX  # noqa: PLC0415 - not every configuration has budgets

        self.authorize()
        with self._ledger() as ledger:
            used = ledger.usage(path).get((unit, window))
            if used is None:
                message = f"budget `{path}` has no limit on {unit} per {window}"
                raise BudgetError(message, "budget.unknown")
            if not 0 <= limit <= LIMIT_MAX:
                raise BudgetError(f"limit {limit} is not between 0 and {LIMIT_MAX}", "budget.spec")
            entry = {"path": path, "unit": unit, "window": window, "before": used.limit, "after": limit}
            with self._log() as log:
                return _recorded(
                    log,
                    "limit_changed",
                    {**entry, "pid": os.getpid(), "by": self._name},
                    lambda: ledger.set_limit(path, unit, window, limit),
                )

    def accept_clock(self) -> None:
        """Has the ledger believe the wall clock as it is now, after it was set right; see `Ledger.accept_clock`.

        Raises:
            BudgetError: The ledger cannot be used.
            StateError: The key is missing.
            AuditError: It could not be recorded, and is not done.
        """
        self.authorize()
        with self._ledger() as ledger, self._log() as log:
            _recorded(log, "clock_accepted", {"pid": os.getpid(), "by": self._name}, ledger.accept_clock)

    def reload(self, timeout: float = 10.0) -> Reloaded:
        """Has the gates read their configuration again, once it has proved to be usable.

        It is parsed, validated, and the policy tests beside it are run, before any gate is told. Gates with ``[gate]
        watch = true`` hear of it by themselves; others reload when their program calls `Gate.reload`.

        Args:
            timeout: Seconds to wait for the gates.

        Returns:
            Which gates have the new bundle, and which do not.

        Raises:
            ConfigError: The configuration cannot be used, as `Gate.open` says.
            PolicyError: The same of a policy, or a policy test fails.
            StateError: There is no state directory, or the key is missing.
        """
        table = self._act()
        state_dir = self._state_dir()
        try:
            bundle = self._rehearsed()
        except (TollkeeperError, OSError) as error:
            self._record_late("policy_load", {"failed": True, "reason": str(error)[:2000], "by": self._name})
            raise
        request = os.urandom(8).hex()
        document = {"request": request, "at_ms": _now_ms(), "by": self._name, "bundle": bundle.hex()}
        write_private(state_dir / REQUEST_NAME, json.dumps(document) + "\n")
        taken, missing = _awaited(table, state_dir, bundle, request, timeout)
        self._clean(table)
        return Reloaded(bundle.hex(), taken, missing)

    # --- looking ------------------------------------------------------------------------------------------------------

    def revocations(self) -> list[dict[str, Any]]:
        """What is revoked: ``kind``, ``name``, ``reason``, ``by``, ``at_ms``, ``generation``, ``damage``."""
        table = self._existing()
        return [] if table is None else table.revocations()

    def approvals(self) -> list[Question]:
        """The questions that are kept, the oldest first."""
        table = self._existing()
        if table is None:
            return []
        return [_question(row, self._state_dir()) for row in table.approvals(_now_ms())]

    def approval(self, approval: str) -> Question:
        """One question.

        Raises:
            StateError: There is none (`admin.approval`).
        """
        for question in self.approvals():
            if question.id == approval:
                return question
        raise StateError(f"there is no approval {approval}", "admin.approval", "tollkeeper approvals list")

    def status(self) -> dict[str, Any]:
        """How the gates are doing, as plain data. It makes nothing and changes nothing, and needs no key.

        Whatever cannot be read is there with an ``error`` instead.
        """
        from tollkeeper import condition  # noqa: PLC0415 - acts need none of it

        return condition.read(self.settings, self._existing)

    # --- below --------------------------------------------------------------------------------------------------------

    def authorize(self) -> None:
        """Refuses whoever has no key where one is needed.

        Raises:
            StateError: The key is missing (`admin.key`).
        """
        if self.settings.admin_keys and self._key is None:
            raise _refused(self.settings, "this needs the private key of an administrator")

    def _state_dir(self) -> Path:
        if self.settings.state_dir is None:
            message = f"{self.settings.file}: it names no state directory, so each gate's state is in its own memory"
            raise StateError(message, "state.missing", 'add to it: [state] dir = "state"')
        return self.settings.state_dir

    def _act(self) -> _native.Control:
        """The table, for somebody who may change it."""
        self.authorize()
        if self._table is None:
            self._table = _native.Control.open(self._state_dir() / CONTROL_NAME)
        return self._table

    def _existing(self) -> _native.Control | None:
        """The table, if a gate has made it. Looking makes none."""
        if self._table is None and self.settings.state_dir is not None:
            file = self.settings.state_dir / CONTROL_NAME
            if file.exists():
                self._table = _native.Control.open(file)
        return self._table

    def _pending(self, approval: str) -> Question:
        question = self.approval(approval)
        if question.state != "pending":
            raise StateError(f"approval {approval} is {question.state}", "admin.approval", "tollkeeper approvals list")
        return question

    def _answer_entry(
        self, question: Question, *, granted: bool, expires_ms: int | None = None, reason: str = ""
    ) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "approval": question.id,
            "granted": granted,
            "by": self._name,
            "digest": base64.b64encode(question.digest).decode(),
        }
        if expires_ms is not None:
            entry["expires"] = _time_text(expires_ms)
        if reason:
            entry["reason"] = reason
        return entry

    @contextlib.contextmanager
    def _log(self) -> Generator[AuditLog | None]:
        """A log of this process's own; `None` where nothing is recorded."""
        log = opened_log(self.settings, int.from_bytes(os.urandom(8)) or 1)
        if log is None:
            yield None
            return
        try:
            yield log
        finally:
            log.close()

    def _record_late(self, kind: str, entry: dict[str, Any]) -> str | None:
        """Records what is done already. Returns why that was not possible."""
        try:
            with self._log() as log:
                return _append(log, kind, entry)
        except (TollkeeperError, OSError) as error:
            return str(error)

    def _unfinished(self, target: Target) -> tuple[unfinished.Found | None, str | None]:
        settings = self.settings
        if settings.audit is None or settings.audit_dir is None:
            return None, "this gate keeps no log"
        if not settings.audit_dir.is_dir():
            return None, "no gate has written a log yet"
        try:
            found = unfinished.find(settings.audit_dir, target, lambda folder: owners.owner(folder) is not None)
        except (AuditError, OSError) as error:
            return None, str(error)
        return found, None

    def _holds(
        self, target: Target, found: unfinished.Found | None, unknown: str | None
    ) -> tuple[Holds | None, str | None]:
        if self.settings.budget_file is None:
            return Holds(), None
        try:
            with self._ledger() as ledger:
                held = ledger.holds()
        except (TollkeeperError, OSError) as error:
            return None, str(error)
        if target.kind == "everything":
            return Holds(len(held), tuple(str(hold["id"]) for hold in held[: unfinished.LISTED_MAX])), None
        if found is None:
            return (Holds() if not held else None), unknown if held else None
        own = [hold for hold in held if hold.get("decision") in found.decisions]
        # What was read as a whole leaves nothing unknown but holds that no gate has made.
        others = len(held) - len(own) if not found.whole else 0
        return Holds(len(own), tuple(str(hold["id"]) for hold in own[: unfinished.LISTED_MAX]), others), None

    @contextlib.contextmanager
    def _ledger(self) -> Generator[Ledger]:
        from tollkeeper import budgets  # noqa: PLC0415 - not every configuration has budgets

        settings = self.settings
        if settings.budget_file is None or settings.budget_state is None:
            what = "names no budgets" if settings.budget_file is None else "keeps its ledger in the memory of the gate"
            raise BudgetError(f"{settings.file}: it {what}", "budget.state", '[budget] state = "state/ledger.bin"')
        if not settings.budget_state.is_file():
            message = f"{settings.budget_state}: no such file"
            raise BudgetError(message, "budget.state", "the first gate that opens the ledger makes it")
        # Who looks at a ledger or operates it does not change its limits, whatever the file says by now.
        spec = {**budgets.spec(settings.budget_file), "keep_limits": True}
        with Ledger(spec, os.fsdecode(settings.budget_state)) as ledger:
            yield ledger

    def _rehearsed(self) -> bytes:
        """The digest of the configuration as it is now, which has loaded and passed its tests."""
        from tollkeeper import budgets  # noqa: PLC0415 - not every configuration has budgets

        ready = reloading.read(self.settings.file)
        if ready.settings.state_dir != self.settings.state_dir:
            message = f"{self.settings.file}: [state] has changed; gates go on with what they have until they restart"
            raise StateError(message, "state.reload")
        file = ready.settings.budget_file
        ledger = None if file is None else Ledger(budgets.spec(file), None)
        try:
            with reloading.rehearsed(ready.settings, ledger, ready.sources) as gate:
                return bytes(gate.stats()["bundle"])
        finally:
            if ledger is not None:
                ledger.close()

    def _clean(self, table: _native.Control) -> None:
        """Removes what is left of questions whose place was given to others, and of watchers that are gone."""
        state_dir = self._state_dir()
        kept = {row["id"] for row in table.approvals(_now_ms())}
        old = time.time() - LEFT_OVER_SECONDS
        for file in _listed(state_dir / FOLDER):
            if file.name.removesuffix(".json") not in kept:
                _remove_before(file, old)
        pids = {gate["pid"] for gate in table.gates() if gate["alive"]}
        for file in _listed(state_dir / REPORTS):
            if file.name.partition(".")[0] not in {str(pid) for pid in pids}:
                _remove_before(file, old)


# --- questions --------------------------------------------------------------------------------------------------------


def _question(row: dict[str, Any], state_dir: Path) -> Question:
    document, binding, fault = _document(row, state_dir)
    return Question(
        id=row["id"],
        state=row["state"],
        digest=row["digest"],
        asked_ms=row["asked_ms"],
        expires_ms=row["expires_ms"],
        answered_ms=row["answered_ms"],
        grant_expires_ms=row["grant_expires_ms"],
        document=document,
        binding=binding,
        fault=fault,
    )


def _document(row: dict[str, Any], state_dir: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str | None]:
    """What was written down, what it is for, and why that cannot be relied on."""
    path = document_path(state_dir, row["id"])
    try:
        # A link could lead to what another user writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            document: Any = json.loads(file.read(DOCUMENT_BYTES_MAX + 1))
    except OSError as error:
        return None, None, f"{path}: what it is for cannot be read: {error.strerror}"
    except (ValueError, RecursionError):
        return None, None, f"{path}: changed since the gate asked: it is no JSON"
    text = document.get("binding") if is_object(document) else None
    if not is_object(document) or not isinstance(text, str):
        return None, None, f"{path}: changed since the gate asked: it does not say what it is for"
    if hashlib.sha256(text.encode(errors="surrogatepass")).digest() != row["digest"]:
        return document, None, f"{path}: changed since the gate asked: it is not what the gate would allow"
    # The digest is that of what the gate has written.
    binding: dict[str, Any] = json.loads(text)
    return document, binding, None


# --- reload -----------------------------------------------------------------------------------------------------------


def watchers(state_dir: Path) -> list[dict[str, Any]]:
    """What the watchers of gates have come to, as they have left it: ``pid``, ``request``, ``error``."""
    found: list[dict[str, Any]] = []
    for file in _listed(state_dir / REPORTS):
        try:
            with file.open("rb") as stream:
                document: Any = json.loads(stream.read(16 * REQUEST_BYTES_MAX))
        except (OSError, ValueError, RecursionError):
            # Another one takes its place at this moment.
            continue
        if is_object(document) and isinstance(document.get("pid"), int):
            found.append(document)
    return found


def _awaited(
    table: _native.Control, state_dir: Path, bundle: bytes, request: str, timeout: float
) -> tuple[list[int], dict[int, str]]:
    """Waits for the gates that live. Returns those that have the bundle, and those that have not, each with why."""
    end = time.monotonic() + timeout
    while True:
        taken: list[int] = []
        missing: dict[int, str] = {}
        waiting = False
        reports = watchers(state_dir)
        for gate in table.gates():
            if not gate["alive"]:
                continue
            own = [report for report in reports if report["pid"] == gate["pid"]]
            why, late = _missing(own, gate["bundle"] == bundle, request)
            if why is None:
                taken.append(gate["pid"])
            else:
                missing[gate["pid"]] = why
            waiting |= late
        if not waiting or time.monotonic() >= end:
            return taken, missing
        time.sleep(LOOK_SECONDS)


def _missing(own: list[dict[str, Any]], has_bundle: bool, request: str) -> tuple[str | None, bool]:  # noqa: FBT001 - two facts
    """Why a gate does not decide by the newest files, and whether that may change.

    Who watches is asked, because not everything is in the bundle: the budgets are not.
    """
    if not own:
        why = "it does not watch its files, so its program has to call gate.reload()"
        return (None, False) if has_bundle else (why, True)
    refused = [report["error"] for report in own if isinstance(report.get("error"), str)]
    if any(report.get("request") != request for report in own):
        return (refused[0] if refused else "it has not answered"), True
    if refused:
        return refused[0], False
    return (None, False) if has_bundle else ("it has reloaded, and has another bundle: it reads other files", True)


# --- small ------------------------------------------------------------------------------------------------------------


def _target(principal: object, tool: str | None, session: str | None, everything: object) -> Target:
    given = [
        name for name, value in (("principal", principal), ("tool", tool), ("session", session)) if value is not None
    ]
    if len(given) + bool(everything) != 1:
        message = "name exactly one of principal, tool, session and everything"
        raise ValueError(message)
    if everything:
        return Target("everything")
    if principal is not None:
        uid = principal if isinstance(principal, _native.EntityUid) else _native.EntityUid.parse(str(principal))
        return Target("principal", str(uid))
    return Target("tool", tool) if tool is not None else Target("session", str(session))


def _revocation(target: Target, generation: int, reason: str, by: str, *, restored: bool = False) -> dict[str, Any]:
    named = {"kind": target.kind} if target.kind == "everything" else {"kind": target.kind, "name": target.name}
    return {"target": named, "restored": restored, "generation": generation, "reason": reason, "by": by}


def _check_texts(target: Target, reason: str) -> None:
    """Refuses what neither the table nor the log could take."""
    if target.kind != "everything":
        _check_text(f"the {target.kind}", target.name, (1, NAME_BYTES_MAX))
    _check_text("the reason", reason, (0, REASON_BYTES_MAX))


def _check_text(what: str, text: str, bounds: tuple[int, int]) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise StateError(
            f"{what} is no text: character {error.start + 1} is a lone surrogate", "control.text"
        ) from None
    least, most = bounds
    if not least <= size <= most:
        raise StateError(f"{what} has {size} bytes, not between {least} and {most}", "control.text")


def _recorded(log: AuditLog | None, kind: str, entry: dict[str, Any], act: Callable[[], _Result]) -> _Result:
    """Does what gives rights, once it is on the disk who wanted it."""
    if log is not None:
        log.append(entry, kind=kind)
        log.flush()
    try:
        return act()
    except BaseException as error:
        # What is raised matters more than that this could not be recorded.
        _append(log, kind, {**entry, "failed": True, "reason": repr(error)[:REASON_BYTES_MAX]})
        raise


def _append(log: AuditLog | None, kind: str, entry: dict[str, Any]) -> str | None:
    """Brings an entry to the disk. Returns why that was not possible."""
    if log is None:
        return None
    try:
        log.append(entry, kind=kind)
        log.flush()
    except TollkeeperError as error:
        return str(error)
    return None


def _calls(found: unfinished.Found) -> Calls:
    return Calls(
        found.open, found.abandoned, tuple(found.ids), found.read, found.since, found.whole, tuple(found.faults)
    )


def _public(key: str) -> bytes:
    """The 32 bytes of a verifier key that was checked when the configuration was read."""
    return base64.b64decode(key.split("+", 2)[2])[1:]


def _refused(settings: config.Config, what: str) -> StateError:
    listed = ", ".join("+".join(key.split("+")[:2]) for key in settings.admin_keys)
    return StateError(
        f"{what}; those of {settings.file} are: {listed}", "admin.key", "--key FILE, GateAdmin.open(..., key=)"
    )


def _user() -> str:
    import pwd  # noqa: PLC0415 - only where nobody has a key

    uid = os.getuid()
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _time_text(time_ms: int) -> str:
    """A time as entries write it."""
    moment = dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _remove_before(file: Path, moment: float) -> None:
    with contextlib.suppress(OSError):
        if file.stat().st_mtime < moment:
            file.unlink()
