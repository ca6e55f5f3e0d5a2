"""
The native half of the package. Import from `tollkeeper`, not from here.
"""

import collections.abc
import os
import typing
from os import PathLike
from pathlib import Path
from typing import Any, Final, SupportsFloat, SupportsIndex, final

from _typeshed import SupportsGetItem
from typing_extensions import disjoint_base

__all__ = [
    "Action",
    "AdminKey",
    "Answer",
    "AuditEntries",
    "AuditLog",
    "AuditReader",
    "AuditWatch",
    "BatchAnswer",
    "Context",
    "Control",
    "Decision",
    "Decisions",
    "Denial",
    "Entities",
    "Entity",
    "EntityUid",
    "EvaluationError",
    "FakeClock",
    "Gate",
    "Hold",
    "Ledger",
    "Meter",
    "ModelCall",
    "PolicySet",
    "Scope",
    "Usage",
    "_claim_interpreter",
    "_echo_arguments",
    "_echo_uid",
    "_end_tracing",
    "_fork_generation",
    "_measure_arguments",
    "_panic_in_check",
    "_panic_on_purpose",
    "_tool_pin",
    "audit_check_consistency",
    "audit_check_inclusion",
    "audit_check_proof",
    "audit_keygen",
    "audit_logs",
    "audit_prove",
    "audit_verify",
    "build_info",
    "decision_codes",
]

@final
class Action:
    """
    A tool that was prepared by `Gate.action`.
    """
    def __repr__(self, /) -> str: ...
    def check(
        self,
        /,
        arguments: collections.abc.Mapping[str, typing.Any] | None = None,
        *,
        scope: Scope | None = None,
        parent: str | None = None,
        asserted: collections.abc.Mapping[str, str] | None = None,
    ) -> Decision:
        """
        As `Gate.check`, for this tool.

        Args:
            arguments: Plain data with str keys; `None` is no arguments.
            scope: A scope other than the current one.
            parent: Id of the decision that this call follows from.
            asserted: As in `Gate.check`.
        """
    @property
    def name(self, /) -> str:
        """
        The tool's name.
        """

@final
class AdminKey:
    """
    The private key of somebody who administers. It is never shown, and only its file holds it.
    """
    def __repr__(self, /) -> str: ...
    @staticmethod
    def load(file: str | os.PathLike[str]) -> AdminKey:
        """
        Reads a key, Ed25519 in PKCS#8 PEM, as `tollkeeper audit keygen` writes it.

        Args:
            file: Its path.

        Raises:
            AuditError: The file cannot be read, others may read it, or it holds no such key.
        """
    @property
    def public(self, /) -> bytes:
        """
        The public half, 32 bytes.
        """
    def sign(self, /, message: bytes) -> bytes:
        """
        Signs a message.

        Returns:
            64 bytes.
        """

@final
class Answer:
    """
    The answer to one request: decision, reasons, errors.

    An answer has no truth value: `if answer:` raises, so nobody tests the object by accident.
    """
    def __bool__(self, /) -> bool: ...
    def __repr__(self, /) -> str: ...
    @property
    def allowed(self, /) -> bool:
        """
        Whether the decision is allow.
        """
    @property
    def annotations(self, /) -> dict[str, dict[str, str]]:
        """
        The annotations of the reasons, by policy id.
        """
    @property
    def decision(self, /) -> str:
        """
        `"allow"` or `"deny"`.
        """
    @property
    def errors(self, /) -> list[EvaluationError]:
        """
        The policies that erred, each with `.policy` and `.message`.
        """
    @property
    def reasons(self, /) -> list[str]:
        """
        Ids of the satisfied policies of the deciding effect; empty when nothing permits.
        """

@final
class AuditEntries:
    """
    An iteration over the entries of a log.
    """
    def __iter__(self, /) -> AuditEntries: ...
    def __next__(self, /) -> tuple[int, bytes]: ...

@disjoint_base
class AuditLog:
    """
    The native half of `tollkeeper.AuditLog`.
    """
    def __enter__(self, /) -> typing.Self: ...
    def __exit__(self, /, *_exc: object) -> None: ...
    def __new__(
        cls,
        /,
        directory: str | os.PathLike[str],
        *,
        origin: str,
        instance: SupportsIndex,
        key: str | os.PathLike[str] | None = None,
        interval_ms: SupportsIndex = 5,
        checkpoint_interval_ms: SupportsIndex = 1000,
        ring_bytes: SupportsIndex = ...,
        segment_bytes: SupportsIndex = ...,
        exported: bool = False,
        slot: bool = False,
        as_slot: SupportsIndex | None = None,
    ) -> typing.Self:
        """
        Args:
            directory: The folder of the log, made if it is not there.
            origin: What the log calls itself, such as `example.com/gate`.
            instance: A random number that tells the records of this opening from those of others.
            key: The file of the signing key, made if it is not there; `None` for `signer.key` in the folder.
            interval_ms: How long a record may be in the ring before it is on the disk: what a power cut can lose.
            checkpoint_interval_ms: How long an entry may be on the disk before a checkpoint covers it.
            ring_bytes: Size of the ring, a power of two.
            segment_bytes: Size of a write-ahead segment.
            exported: Whether something outside takes each checkpoint.
            slot: Whether the folder is one of logs, of which the first that no process has is opened.
            as_slot: The number of the process slot whose own folder this is; it is part of the origin.

        Raises:
            AuditError: Another process has the log, it is damaged, or the folder cannot be used.
        """
    def __repr__(self, /) -> str: ...
    def _expect(self, /, seq: SupportsIndex) -> None:
        """
        Refuses a handle that cannot be used, and a number that no record has yet.
        """
    def _is_durable(self, /, seq: SupportsIndex, durability: str) -> bool:
        """
        Whether a record is as certain as that; also of a log that was closed since, for those who wait.
        """
    def _request(self, /, durability: str) -> None:
        """
        Asks for everything to become as certain as that soon.
        """
    def _watch(self, /) -> AuditWatch:
        """
        What an event loop waits with.
        """
    def append(
        self,
        /,
        mapping: collections.abc.Mapping[str, typing.Any],
        *,
        private: typing.Any = None,
        kind: str = "note",
        timeout: SupportsFloat | SupportsIndex = 1.0,
    ) -> int:
        """
        Appends an entry. It is in the ring when this returns: the death of the process loses nothing any more, a power
        cut what was appended in the last `interval_ms`. See `wait` and `durable`.

        Args:
            mapping: Members of the entry, in this order: JSON, with whole numbers of any size and `decimal.Decimal` as
                they are. Too many for one entry are kept outside of it, behind a commitment.
            private: What the entry only commits to, and what `erase` can take away: bytes and text as they are, any
                other value as JSON.
            kind: What the entry is about.
            timeout: Seconds to wait for room in the ring.

        Returns:
            The sequence number of the record.

        Raises:
            TypeError: The mapping is none, or a value is not JSON.
            AuditError: A value has no form in JSON, a name is the log's own, or there is no room for the record.
            HandleError: The log is closed, or was inherited through a fork.
        """
    def checkpoint(self, /, timeout: SupportsFloat | SupportsIndex = 10.0) -> str:
        """
        Waits until a checkpoint covers everything that was appended before.

        Returns:
            The signed text of the checkpoint.

        Raises:
            AuditError: The time is over, or the disk refuses.
        """
    def close(self, /) -> None:
        """
        Takes no more entries, brings everything to the disk, signs the last checkpoint and lets go of the folder.
        Closing twice is the same as once; of an inherited log nothing is touched.

        Raises:
            AuditError: The disk refuses, or a file is gone; what is in the ring is recovered by the next opening.
        """
    @property
    def closed(self, /) -> bool:
        """
        Whether `close` was called.
        """
    @property
    def durable_size(self, /) -> int:
        """
        Entries of this epoch that are on the disk.
        """
    def erase(self, /, index: SupportsIndex, timeout: SupportsFloat | SupportsIndex = 10.0) -> None:
        """
        Erases what is private about an entry, and records that. The entry stays, and every proof of it.

        Args:
            index: The entry's place in this epoch, from 0.
            timeout: Seconds; a signal is looked at when they are over.

        Raises:
            AuditError: There is no such entry, or nothing private of it.
        """
    def flush(self, /, timeout: SupportsFloat | SupportsIndex = 10.0) -> int:
        """
        Waits until everything that was appended before is on the disk.

        Returns:
            How many entries are on the disk.

        Raises:
            AuditError: The time is over, or the disk refuses.
        """
    @property
    def folder(self, /) -> Path:
        """
        The folder of the log.
        """
    def health(self, /) -> dict[str, typing.Any]:
        """
        How the log is doing: `origin`, `epoch`, `durable_size`, `checkpoint_size`, `pending` (records that are not on
        the disk), `ring_bytes`, `ring_used_bytes`, `sync_max_us` (the slowest write so far), `failure` (why records do
        not get to the disk, or no checkpoint is signed), `exported`.
        """
    @property
    def origin(self, /) -> str:
        """
        What the log calls itself in this epoch.
        """
    def rotate(self, /, timeout: SupportsFloat | SupportsIndex = 10.0) -> None:
        """
        Ends this epoch and begins the next, whose first entry names the old origin, size and root. The files of the old
        one move to `epochs`.

        Args:
            timeout: Seconds; a signal is looked at when they are over.

        Raises:
            AuditError: The disk refuses.
        """
    @property
    def size(self, /) -> int:
        """
        Entries of this epoch, with those that are not on the disk yet.
        """
    @property
    def verifier_key(self, /) -> str:
        """
        The public key of this epoch, as C2SP writes verifier keys.
        """
    def wait(
        self, /, seq: SupportsIndex, durability: str = "sync", timeout: SupportsFloat | SupportsIndex = 10.0
    ) -> None:
        """
        Waits until a record is as certain as that. Many wait for one write.

        Args:
            seq: What `append` has returned.
            durability: `"group"`: in the ring, which is at once; `"sync"`: on the disk; `"checkpointed"`: covered by a
                signed checkpoint.
            timeout: Seconds.

        Raises:
            AuditError: The time is over, the disk refuses, or there is no such record.
        """

@final
class AuditReader:
    """
    Reads one log's entries and payloads; follows it while it grows, with `refresh`.

    Reading does not verify: see `audit_verify`.

    Args:
        path: The folder of one log, or of one of its epochs.

    Raises:
        AuditError: There is no log, or its checkpoint cannot be read.
    """
    def __new__(cls, /, path: str | PathLike[str]) -> AuditReader: ...
    def __repr__(self, /) -> str: ...
    @property
    def checkpoint_text(self, /) -> str | None:
        """
        The current checkpoint's text, not checked; `None` without one.
        """
    def entries(self, /, start: SupportsIndex = 0, stop: SupportsIndex | None = None) -> AuditEntries:
        """
        Iterates over `(index, bytes)`, up to `stop` or the size when this was called.
        """
    def entry(self, index: SupportsIndex, /) -> bytes:
        """
        The bytes of an entry, as they were hashed.

        Raises:
            AuditError: There is no such entry, or it cannot be read.
        """
    @property
    def origin(self, /) -> str | None:
        """
        The origin that the checkpoint names; `None` without one.
        """
    def payload(self, index: SupportsIndex, /) -> bytes | None:
        """
        The payload of an entry; `None` where there is none, or it was erased.

        Raises:
            AuditError: There is no such entry, or the payload is damaged.
        """
    def refresh(self, /) -> None:
        """
        Looks again how far the log goes.
        """
    def salt(self, index: SupportsIndex, /) -> bytes | None:
        """
        The salt of an entry's payload; `None` where there is none, or it was erased.
        """
    @property
    def size(self, /) -> int:
        """
        Entries, as far as the log was when it was opened or refreshed.
        """

@final
class AuditWatch:
    """
    Becomes readable whenever more of a log is durable. Closed when it goes.
    """
    def fileno(self, /) -> int:
        """
        The descriptor of the counter, which is the parent's alone after a fork.
        """

@final
class BatchAnswer:
    """
    What a batch answers, as numpy arrays with one row per request.
    """
    @property
    def decisions(self, /) -> Any:
        """
        uint8: 1 allow, 0 deny.
        """
    @property
    def error_counts(self, /) -> Any | None:
        """
        uint32, only with `detail="counts"`: policies that erred; else None.
        """
    @property
    def errors(self, /) -> tuple[Any, Any] | None:
        """
        The same for the policies that erred.
        """
    @property
    def reason_counts(self, /) -> Any | None:
        """
        uint32, only with `detail="counts"`: satisfied policies of the deciding effect; else None.
        """
    @property
    def reasons(self, /) -> tuple[Any, Any] | None:
        """
        Only with `detail="policies"`: (offsets, policies), both uint32; row i has `policies[offsets[i]:offsets[i+1]]`,
        positions in `PolicySet.ids`; else None.
        """

@final
class Context:
    """
    The context of a request, prepared once and used many times.

    `Context(mapping)` takes plain data; `Context.from_cedar_json(text)` reads Cedar's own JSON with its escapes for
    entities and extension values, and is for trusted text only.

    Example:
        >>> from tollkeeper import Context
        >>> context = Context({"path": "/srv/a"})
    """
    def __new__(cls, mapping: dict[str, typing.Any], /) -> Context: ...
    def __repr__(self, /) -> str: ...
    @staticmethod
    def from_cedar_json(
        text: str, schema: str | os.PathLike[str] | None = None, *, action: EntityUid | str | None = None
    ) -> Context:
        """
        Reads Cedar's JSON form of a context: `__entity` and `__extn` are decoded.

        Never pass a model's arguments through this: they could name any entity they like.

        Args:
            text: A JSON object.
            schema: With it, `action` must be given, and declared types decide how values are read.
            action: The action whose context this is.

        Raises:
            ContextError: The text is not a context.
        """

@final
class Control:
    """
    What the gates of a host share: one mapped file, or memory of this process.
    """
    def answer(
        self, /, id: str, granted: bool, expires_ms: SupportsIndex, signature: bytes | None, now_ms: SupportsIndex
    ) -> None:
        """
        Answers a question.

        Args:
            id: Of the question.
            granted: Whether the action may go ahead, once.
            expires_ms: When the grant is void.
            signature: Of [`Control.approval_message`], by a key that the gate knows.
            now_ms: The time.
        """
    @staticmethod
    def approval_message(id: str, digest: bytes, expires_ms: SupportsIndex) -> bytes:
        """
        What whoever grants signs.
        """
    def approvals(self, /, now_ms: SupportsIndex) -> list[dict[str, typing.Any]]:
        """
        Every question that is kept: `id`, `number`, `digest`, `state`, `asked_ms`, `expires_ms`, `answered_ms`,
        `grant_expires_ms`.
        """
    def approvals_count(self, /) -> int:
        """
        Counts what happened to approvals, to be given to `wait_approvals`.
        """
    def ask(self, /, id: str, digest: bytes, expires_ms: SupportsIndex, now_ms: SupportsIndex) -> None:
        """
        Asks for an approval.

        Args:
            id: 16 hex digits, chosen at random.
            digest: SHA-256 of what is asked for.
            expires_ms: When the question is void, in milliseconds since 1970.
            now_ms: The time.
        """
    def gates(self, /) -> list[dict[str, typing.Any]]:
        """
        Every gate of the host: `pid`, `alive`, `started_ms`, `bundle`, `shadow`, `generation`, `codes`, `timed`, `p50_ns`,
        `p99_ns`, `p999_ns`, `max_ns`, `histogram` (from, below, count). One that died is among them until another takes
        its place.
        """
    @property
    def generation(self, /) -> int:
        """
        Counts the changes of the table of revocations.
        """
    def labels(self, /) -> list[str]:
        """
        Labels that any session has been given.
        """
    @staticmethod
    def open(file: str | os.PathLike[str], *, volatile: bool = False) -> Control:
        """
        Opens the file, and makes it if there is none.

        Args:
            file: Its path, such as `state/control.bin`. Its folder is made for this user only.
            volatile: Take a file system that forgets everything at a restart.

        Raises:
            StateError: It is no such file, is damaged, or cannot be used where it lies.
        """
    def overflow(self, /) -> list[str]:
        """
        Labels that every session without a place of its own has, because the table of sessions is full.
        """
    @property
    def path(self, /) -> Path | None:
        """
        Path of the file; `None` for memory of this process.
        """
    def restore(self, /, kind: str, name: str) -> tuple[int, bool]:
        """
        Takes a revocation back.
        """
    def retired(self, /) -> dict[str, typing.Any]:
        """
        What all gates that are gone have counted, as one of [`Control.gates`].
        """
    def revocations(self, /) -> list[dict[str, typing.Any]]:
        """
        What is revoked: `kind`, `name`, `reason`, `by`, `at_ms`, `generation`, `damage`.
        """
    def revoke(self, /, kind: str, name: str, reason: str, by: str, now_ms: SupportsIndex) -> tuple[int, bool]:
        """
        Revokes a `"principal"`, `"tool"`, `"session"` or `"everything"`. When it returns, every later check of every
        process that shares the file denies, also after a restart.

        Returns:
            The generation from which on it counts, and whether this call changed anything.
        """
    def wait_approvals(self, /, seen: SupportsIndex, timeout_ms: SupportsIndex) -> None:
        """
        Waits, without the interpreter's lock, until something happens to an approval or the time is over.
        """

@final
class Decision:
    """
    The answer to one check.

    A decision has no truth value: `if decision:` raises, so nobody tests the object by accident.
    """
    def __bool__(self, /) -> bool: ...
    def __repr__(self, /) -> str: ...
    @property
    def _binding(self, /) -> tuple[bytes, bytes] | None:
        """
        What exactly an approval would be for: a document and its SHA-256.
        """
    def _finish(
        self, /, status: str = "unknown", error: str | None = None, duration_ms: SupportsIndex | None = None
    ) -> None:
        """
        Ends what was reserved, the action being over: what nobody settled counts in full. Records the outcome.
        """
    def _outcome(
        self,
        /,
        status: str,
        error: str | None,
        usage: SupportsGetItem[int, tuple[str, SupportsIndex]],
        duration_ms: SupportsIndex | None,
    ) -> bool:
        """
        See `Gate.outcome`.
        """
    def _release(self, /) -> None:
        """
        Ends what was reserved for an action that never began.
        """
    @property
    def allowed(self, /) -> bool:
        """
        Whether the action may go ahead.
        """
    @property
    def approval(self, /) -> str | None:
        """
        Id of the approval that was used; `None` if none was needed.
        """
    @property
    def approvals(self, /) -> list[str]:
        """
        `@approval` of the permits that need one.
        """
    @property
    def asserted(self, /) -> dict[str, str]:
        """
        What the host said of the call: `runtime`, `agent`, `session`, `run`, `call`, those that were given.
        """
    @property
    def code(self, /) -> str:
        """
        Stable name of the outcome, such as `allow` or `policy.no_permit`.
        """
    @property
    def denial(self, /) -> Denial | None:
        """
        Why a budget refused: a `Denial` with the level, unit and window; `None` if none did.
        """
    @property
    def durability(self, /) -> str | None:
        """
        How certain its record has to be before the action begins: `"group"`, `"sync"` or `"checkpointed"`; `None` if it
        has no record.
        """
    def durable(self, /, durability: str = "sync") -> collections.abc.Coroutine[typing.Any, typing.Any, None]:
        """
        A coroutine that ends when the record is on the disk.

        Args:
            durability: `"sync"`, or `"checkpointed"` for a record that a signed checkpoint covers.

        Raises:
            AuditError: It never will be: the log has given up. Or the decision has no record.
        """
    @property
    def errors(self, /) -> list[tuple[str, str]]:
        """
        Policies that could not be evaluated, as pairs of id and message.
        """
    @property
    def hold(self, /) -> Hold | None:
        """
        What was reserved for the action: a `Hold`, or `None` if nothing was. Settle it with what was used. If nobody
        does, it ends in full when the decision and the hold are gone. A forked child has none: it is its parent's.
        """
    @property
    def id(self, /) -> str:
        """
        Name of this decision: the gate and a count.
        """
    @property
    def obligations(self, /) -> list[str]:
        """
        `@obligation` of the permits that allowed.
        """
    @property
    def policies(self, /) -> list[str]:
        """
        Ids of the policies that decided.
        """
    @property
    def principal_denied(self, /) -> str | None:
        """
        Uid of the principal that the action was denied for, if it is not the one that acts: one it acts for.
        """
    @property
    def reason(self, /) -> str:
        """
        A sentence that a model can act on; empty when allowed. Holds no value of the arguments.
        """
    def require(self, /) -> Decision:
        """
        Raises `Denied` unless the action may go ahead; returns the decision otherwise.
        """
    @property
    def retry_after(self, /) -> float | None:
        """
        Seconds until the same action is worth another try; `None` if it is not, or nobody knows.
        """
    def wait_durable(self, /, durability: str = "sync", timeout: SupportsFloat | SupportsIndex = 10.0) -> None:
        """
        The same for threads.

        Args:
            durability: As in `durable`.
            timeout: Seconds.
        """
    @property
    def would_deny(self, /) -> str | None:
        """
        The code this would have had without shadow mode, or with the policies that are in it.
        """
    @property
    def would_deny_policies(self, /) -> list[str]:
        """
        Ids of the policies behind `would_deny`.
        """

@final
class Decisions:
    """
    The answers to `Gate.check_many`, one for each row: `len`, and a `Decision` by position.
    """
    def __getitem__(self, row: SupportsIndex, /) -> Decision: ...
    def __len__(self, /) -> int: ...
    def __repr__(self, /) -> str: ...
    @property
    def allowed(self, /) -> Any:
        """
        bool, one for each row.
        """
    @property
    def codes(self, /) -> Any:
        """
        uint8, one for each row: a position in `decision_codes()`.
        """

@final
class Denial:
    """
    Why a reserve was not granted, with the level, unit and window that refused.

    A denial has no truth value: test `.granted`.
    """
    def __bool__(self, /) -> bool: ...
    def __repr__(self, /) -> str: ...
    @property
    def available(self, /) -> int:
        """
        limit + overdraft - used - held - stranded at that moment; negative is debt.
        """
    @property
    def code(self, /) -> str:
        """
        `"budget.exhausted"`, `"budget.contended"`, `"budget.too_large"`, `"budget.expired"`, `"budget.unpriced"` or
        `"budget.unavailable"`. Only a contended one is worth another try before the window ends.
        """
    @property
    def granted(self, /) -> bool:
        """
        False.
        """
    @property
    def held(self, /) -> int:
        """
        Held by live holds.
        """
    @property
    def limit(self, /) -> int:
        """
        The limit of the cell that refused.
        """
    @property
    def path(self, /) -> str:
        """
        The budget that refused, or the one that was asked for.
        """
    @property
    def reason(self, /) -> str:
        """
        The sentence for whoever asked.
        """
    @property
    def requested(self, /) -> int:
        """
        How much was asked for.
        """
    @property
    def retry_after(self, /) -> float | None:
        """
        Seconds until it is worth another try; `None` for never.
        """
    @property
    def unit(self, /) -> str | None:
        """
        The unit that refused; `None` where no cell did.
        """
    @property
    def used(self, /) -> int:
        """
        Spent in the window.
        """
    @property
    def window(self, /) -> str | None:
        """
        The window that refused; `None` where no cell did.
        """

@final
class Entities:
    """
    An immutable store of entities with closed ancestors. Safe to share between threads.

    Example:
        >>> from tollkeeper import Entities, Entity
        >>> store = Entities([Entity('User::"alice"', {"level": 3}, parents=['Team::"ops"'])])
        >>> len(store)
        1
    """
    def __contains__(self, uid: Any, /) -> bool: ...
    def __len__(self, /) -> int: ...
    def __new__(cls, entities: collections.abc.Iterable[Entity] | None = None, /) -> Entities: ...
    def __repr__(self, /) -> str: ...
    def ancestors(self, /, uid: EntityUid | str) -> list[str]:
        """
        The closed ancestors of an entity, sorted; empty if it is not in the store.

        Args:
            uid: Its uid.
        """
    @staticmethod
    def from_json(text: str | os.PathLike[str], schema: str | os.PathLike[str] | None = None) -> Entities:
        """
        Reads Cedar's JSON form of entities.

        Args:
            text: A JSON array as `str`, or a file as `pathlib.Path`.
            schema: A Cedar schema; declared types decide how values are read, and the actions it declares are added.

        Raises:
            EntityError: The text is not an entities document, a parent cycle, or two different entities with one uid.
        """
    @property
    def memory_bytes(self, /) -> int:
        """
        Approximate memory in bytes.
        """
    def to_json(self, /) -> str:
        """
        The store in Cedar's JSON form.
        """
    def update(
        self,
        /,
        entities: collections.abc.Iterable[Entity] | None = None,
        *,
        remove: collections.abc.Iterable[EntityUid | str] | None = None,
    ) -> Entities:
        """
        A store with some entities added or replaced and others removed; the original is unchanged and shared.

        Args:
            entities: Those to add or replace.
            remove: Uids of those to remove.

        Raises:
            EntityError: The change would make a parent cycle.
        """
    def with_additional(self, /, entities: collections.abc.Iterable[Entity]) -> Entities:
        """
        A store with a request's own entities in front; nothing of the original is copied.

        Args:
            entities: The request's own.

        Raises:
            EntityError: An entity is already there and differs.
        """

@final
class Entity:
    """
    One entity: uid, attributes, parents, tags.

    Attribute and tag values: bool, int, str, float (as decimal), list, tuple, set, dict, `EntityUid`, and from the
    standard library `decimal.Decimal`, `ipaddress` addresses and interfaces, aware `datetime.datetime`,
    `datetime.timedelta`. Times are cut to whole milliseconds, towards the past.

    Raises:
        EntityError: The uid cannot be read.
        ValueError: A value has no Cedar form.
    """
    def __new__(
        cls,
        /,
        uid: EntityUid | str,
        attrs: dict[str, typing.Any] | None = None,
        parents: collections.abc.Iterable[EntityUid | str] | None = None,
        tags: dict[str, typing.Any] | None = None,
    ) -> Entity: ...
    def __repr__(self, /) -> str: ...

@final
class EntityUid:
    """
    The name of a principal, an action or a resource: a type and an id.

    Prepared once and used many times, it saves reading the text on each call.

    Args:
        type: The type name, such as `User` or `Ns::User`.
        id: The id; any text, not escaped.

    Raises:
        EntityError: The type is not a type name.

    Example:
        >>> from tollkeeper import EntityUid
        >>> alice = EntityUid("User", "alice")
        >>> str(alice)
        'User::"alice"'
        >>> EntityUid.parse('User::"alice"') == alice
        True
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __getnewargs__(self, /) -> tuple[str, str]: ...
    def __hash__(self, /) -> int: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __new__(cls, /, type: str, id: str) -> EntityUid: ...
    def __repr__(self, /) -> str: ...
    def __str__(self, /) -> str: ...
    @property
    def id(self, /) -> str:
        """
        The id, not escaped.
        """
    @staticmethod
    def parse(text: str, /) -> EntityUid:
        """
        Reads the text form, `Type::"id"`, exactly as Cedar prints it.

        Args:
            text: Such as `User::"alice"`, with Cedar's escapes.

        Raises:
            EntityError: The text is not a uid in its printed form.
        """
    @property
    def type(self, /) -> str:
        """
        The type name.
        """

@final
class EvaluationError:
    """
    A policy that could not be evaluated.
    """
    def __repr__(self, /) -> str: ...
    @property
    def message(self, /) -> str:
        """
        What went wrong and where; no value of the request is in it.
        """
    @property
    def policy(self, /) -> str:
        """
        Id of the policy.
        """

@final
class FakeClock:
    """
    A clock that stands still until it is moved, for tests and replays.

    Args:
        wall_ms: What the wall clock shows, in milliseconds since 1970.

    Example:
        >>> from tollkeeper.testing import FakeClock
        >>> clock = FakeClock(1_000)
        >>> clock.advance(500)
        >>> clock.wall_ms
        1500
    """
    def __new__(cls, /, wall_ms: int = ...) -> FakeClock: ...
    def __repr__(self, /) -> str: ...
    def advance(self, ms: int, /) -> None:
        """
        Lets time pass: the wall clock and the clock since boot move.
        """
    @property
    def boot_ms(self, /) -> int:
        """
        What the clock since boot shows, in milliseconds.
        """
    def step(self, ms: int, /) -> None:
        """
        Sets the wall clock forwards or backwards while no time passes.
        """
    @property
    def wall_ms(self, /) -> int:
        """
        What the wall clock shows, in milliseconds since 1970.
        """

@disjoint_base
class Gate:
    """
    The native half of `tollkeeper.Gate`.
    """
    def __new__(
        cls,
        /,
        sources: dict[str, typing.Any],
        instance: SupportsIndex,
        current: collections.abc.Callable[[], Scope | None],
        ledger: Ledger | None = None,
        log: AuditLog | None = None,
        trace: tuple[
            collections.abc.Callable[[], typing.Any], collections.abc.Callable[[typing.Any], tuple[int, int] | None]
        ]
        | None = None,
        control: Control | None = None,
    ) -> typing.Self:
        """
        Args:
            sources: Mapping with `policies`, `schema`, `entities`, `tools`, `mode`, `on_error`, `unguarded_forbid`,
                `on_full`, `durability`, `approvers`, `notice`.
            instance: A random number that tells this gate's decisions from those of others.
            current: Callable that returns the current scope or `None`.
            ledger: What pays for actions.
            log: What records decisions.
            trace: Two callables: one returns a mapping that is empty where nothing is traced; the other takes it and
                returns the ids of the trace and the span, or `None`.
            control: What the gates of a host share; without it nothing is shared.
        """
    def _check_large(
        self,
        /,
        tool: str,
        arguments: collections.abc.Mapping[str, typing.Any] | None = None,
        *,
        scope: Scope | None = None,
        parent: str | None = None,
        asserted: collections.abc.Mapping[str, str] | None = None,
    ) -> Decision:
        """
        The same for callers that may wait: the arguments may have 4 MiB instead of 64 KiB.
        """
    @property
    def _control(self, /) -> Control:
        """
        What the gates of the host share.
        """
    def _decide_at(
        self,
        /,
        scope: Scope,
        now_ms: SupportsIndex,
        tool: str | None = None,
        arguments: collections.abc.Mapping[str, typing.Any] | None = None,
        model: tuple[str, int, int, int] | None = None,
    ) -> Decision:
        """
        Decides as `check` does, or as a model call does, but at another time: for replays of what was recorded.

        Args:
            scope: Who acts.
            now_ms: The time, in milliseconds since 1970.
            tool: Name of a tool; `None` with `model`.
            arguments: The tool's arguments, of any size that can be recorded.
            model: Name, tokens of the prompt, most tokens of a completion, completions.
        """
    def _delegate(
        self,
        /,
        outer: Scope,
        inner: Scope,
        parent: str | None = None,
        asserted: collections.abc.Mapping[str, str] | None = None,
    ) -> Decision:
        """
        Decides on a delegation: whether `outer`'s principals may have the principal of `inner` act for them. Allowed,
        the inner scope counts from now on.
        """
    def _load_failed(self, /, reason: str) -> None:
        """
        Says in the log that a configuration was to be loaded and could not be, so that the one before goes on.

        Raises:
            AuditError: The log cannot take it.
        """
    def _register(
        self, /, tools: list[tuple[str, str, str | None, list[str], list[tuple[str, int]] | None, list[str]]]
    ) -> None:
        """
        See `Gate.register_many`.
        """
    def _reload(self, /, sources: dict[str, typing.Any], ledger: Ledger | None = None) -> None:
        """
        Loads everything anew and swaps it in; if anything is wrong, the old state stays.

        Raises:
            PolicyError: What is wrong, with file, line and column.
        """
    def _room_after(self, /) -> int | None:
        """
        The record that has to be on the disk before there is room for more; `None` where there is, or no log.
        """
    def action(self, /, tool: str) -> Action:
        """
        A tool by name, prepared: its checks skip the lookup.

        Args:
            tool: Name of a tool, registered by the time of a check.
        """
    def check(
        self,
        /,
        tool: str,
        arguments: collections.abc.Mapping[str, typing.Any] | None = None,
        *,
        scope: Scope | None = None,
        parent: str | None = None,
        asserted: collections.abc.Mapping[str, str] | None = None,
    ) -> Decision:
        """
        Decides whether the current scope's principal may call a tool with these arguments. Never raises on a denial.

        Args:
            tool: Name of a registered tool.
            arguments: Plain data with str keys; `None` is no arguments.
            scope: A scope other than the current one.
            parent: Id of the decision that this call follows from, such as that of the model call which asked for it.
            asserted: Ids of the call as its host has them, for the audit log: `runtime`, `agent`, `session`, `run`,
                `call`. Nobody checks them; of each 256 bytes are kept.

        Raises:
            ValueError: `asserted` holds something else.
        """
    def check_many(
        self,
        /,
        tool: str,
        columns: collections.abc.Mapping[str, typing.Any],
        *,
        scope: Scope | None = None,
        parent: str | None = None,
        asserted: collections.abc.Mapping[str, str] | None = None,
    ) -> Decisions:
        """
        Decides many calls of one tool in the current scope, each as `check` does and in the order of the rows. The
        interpreter's lock is released meanwhile.

        Args:
            tool: Name of a registered tool.
            columns: Arguments by name: one-dimensional numpy arrays or lists of integers, floats, booleans or text,
                all of the same length, or single values for every row.
            scope: A scope other than the current one.
            parent: Id of the decision that the calls follow from.
            asserted: As in `check`, for all rows.

        Raises:
            TypeError: A column holds something else.
            ValueError: Columns differ in length, or there are more than 65,536 rows; or as in `check`.
        """
    def close(self, /) -> None:
        """
        Closes the gate: every later check is denied with `gate.closed`.
        """
    @property
    def closed(self, /) -> bool:
        """
        Whether the gate was closed.
        """
    def may_call(self, /, tool: str, *, scope: Scope | None = None) -> bool:
        """
        Whether a check of this tool could come out as allowed, for some arguments: what a list of tools may leave out.
        It decides nothing and records nothing; true promises nothing.

        Args:
            tool: Name of a tool.
            scope: A scope other than the current one.

        Returns:
            False where it is certain that nobody in the scope can call it whatever the arguments are: it is not
            registered or is withheld, the run is narrowed to other tools, no permit speaks of it, a forbid without a
            condition does; or there is no run.
        """
    @property
    def mode(self, /) -> str:
        """
        `"enforce"` or `"shadow"`.
        """
    def stats(self, /) -> dict[str, typing.Any]:
        """
        What this gate has counted: decisions by code, and how long checks take in the core, in nanoseconds; one check
        of sixteen is timed.
        """
    @property
    def tools(self, /) -> list[str]:
        """
        Names of the registered tools, sorted.
        """
    @property
    def warnings(self, /) -> list[str]:
        """
        Warnings of the last load.
        """
    def withhold(self, /, tools: collections.abc.Mapping[str, str]) -> None:
        """
        Refuses calls of these tools from now on with `tool.changed`, registered or not: their definitions are not those
        that somebody has accepted. Whatever was withheld before is not any more; a reload changes nothing of it.

        Args:
            tools: Reasons by name, for whoever reads the denial; of each 4 KiB are kept. Empty: nothing is withheld.

        Raises:
            HandleError: In the child of a fork.
        """

@final
class Hold:
    """
    What a reserve was granted: room at a budget and at every level above it, until it is settled or released.

    Ending is idempotent: the first `settle` or `release` counts, later ones return False. A hold that is dropped, or
    left as a context manager, ends as nobody reports it: a unit that was charged counts as charged; of dispatched work
    what was never charged counts in full; else it goes back. Requests stay spent.

    A hold has no truth value, because a `Denial` is an object too: test `.granted`.
    """
    def __bool__(self, /) -> bool: ...
    def __enter__(self, /) -> Hold: ...
    def __exit__(self, /, *_exc: object) -> None: ...
    def __repr__(self, /) -> str: ...
    @property
    def amounts(self, /) -> dict[str, int]:
        """
        What is held now, by unit; all 0 once the hold has ended.
        """
    def charge(
        self,
        /,
        *,
        tokens: int = ...,
        nano_usd: int = ...,
        requests: int = ...,
        in_flight: int = ...,
        kv_blocks: int = ...,
    ) -> bool:
        """
        Notes what the work has used so far. True: go on. False: stop, because it is more than was held, the hold has
        ended, or those who made it were revoked; never raises for the state of the hold or of the ledger.

        Args:
            tokens: Tokens of language models.
            nano_usd: Billionths of a US dollar.
            requests: Requests.
            in_flight: Calls in flight.
            kv_blocks: Blocks of a KV cache.

        Raises:
            TypeError: An amount is not an `int`.
            BudgetError: An amount is negative or above 2**53.
        """
    @property
    def charged(self, /) -> dict[str, int]:
        """
        What was charged so far, by unit; all 0 once the hold has ended.
        """
    @property
    def code(self, /) -> str:
        """
        `"allow"`.
        """
    @property
    def decision(self, /) -> str | None:
        """
        Id of the decision that it belongs to; `None` if no gate made it.
        """
    def dispatch(
        self,
        /,
        *,
        tokens: int = ...,
        nano_usd: int = ...,
        requests: int = ...,
        in_flight: int = ...,
        kv_blocks: int = ...,
    ) -> bool:
        """
        Says that the work has begun, and charges what that costs for certain, such as the prompt. Answers as `charge`
        does.

        Args:
            tokens: Tokens of language models.
            nano_usd: Billionths of a US dollar.
            requests: Requests.
            in_flight: Calls in flight.
            kv_blocks: Blocks of a KV cache.

        Raises:
            TypeError: An amount is not an `int`.
            BudgetError: An amount is negative or above 2**53.
        """
    @property
    def granted(self, /) -> bool:
        """
        True.
        """
    @property
    def id(self, /) -> str:
        """
        Its name, as `Ledger.holds` lists it; never used again.
        """
    @property
    def live(self, /) -> bool:
        """
        Whether it has not ended.
        """
    @property
    def path(self, /) -> str:
        """
        The budget it was reserved at.
        """
    @property
    def reason(self, /) -> str:
        """
        `""`.
        """
    def release(self, /) -> bool:
        """
        Ends a hold that was not used: what was not charged goes back. Requests stay spent.

        Returns:
            Whether this call ended it.

        Raises:
            HandleError: The ledger is closed, or was inherited through a fork and lives in memory.
        """
    def settle(
        self,
        /,
        *,
        tokens: int | None = None,
        nano_usd: int | None = None,
        requests: int | None = None,
        in_flight: int | None = None,
        kv_blocks: int | None = None,
    ) -> bool:
        """
        Ends the hold with what was really used. More than was held becomes debt at every level.

        Of what is not mentioned, levels come back, requests stay spent, and the rest counts as charged, or in full if
        it never was.

        Args:
            tokens: Tokens of language models.
            nano_usd: Billionths of a US dollar.
            requests: Requests.
            in_flight: Calls in flight.
            kv_blocks: Blocks of a KV cache.

        Returns:
            Whether this call ended it; False if it had ended before, and then nothing changes.

        Raises:
            HandleError: The ledger is closed, or was inherited through a fork and lives in memory.
        """
    def top_up(
        self,
        /,
        *,
        tokens: int = ...,
        nano_usd: int = ...,
        requests: int = ...,
        in_flight: int = ...,
        kv_blocks: int = ...,
    ) -> Hold | Denial:
        """
        Holds more, in the same windows, or changes nothing.

        Args:
            tokens: Tokens of language models.
            nano_usd: Billionths of a US dollar.
            requests: Only 0: requests are spent when granted.
            in_flight: Calls in flight.
            kv_blocks: Blocks of a KV cache.

        Returns:
            This hold, or a `Denial`. Requests are spent when granted and cannot be added.
        """

@disjoint_base
class Ledger:
    """
    The native half of `tollkeeper.Ledger`.
    """
    def __enter__(self, /) -> typing.Self: ...
    def __exit__(self, /, *_exc: object) -> None: ...
    def __new__(
        cls,
        /,
        spec: collections.abc.Mapping[str, typing.Any],
        state: str | os.PathLike[str] | None = None,
        clock: FakeClock | None = None,
    ) -> typing.Self:
        """
        Args:
            spec: Mapping with `budgets` (path, limits, children_max), each limit (unit, window, limit, overdraft);
                `prices` (model, (component, nano-USD per million tokens)); `holds`, `nodes`, `volatile`, `admission`,
                `increment_tokens`, `hold_ttl_ms`.
            state: The file that holds what is used and held; `None` for the memory of this process.
            clock: `tollkeeper.testing.FakeClock`, for tests and replays.

        Raises:
            BudgetError: The budgets or the state cannot be used.
        """
    def __repr__(self, /) -> str: ...
    def _unwatch(self, /) -> None:
        """
        The other half of `_watch`; also of a ledger that was closed since, for the other processes' sake.
        """
    def _wake(self, /) -> None:
        """
        Wakes whoever waits, though nothing has changed.
        """
    def _watch(self, /) -> None:
        """
        Has changes counted from now on, also between two waits; each call needs an `_unwatch`.
        """
    def accept_clock(self, /) -> None:
        """
        Believes the wall clock as it is now, after it was set right. The ledger's time still never goes backwards.
        """
    @property
    def admission(self, /) -> str:
        """
        How model calls are admitted: `"safe"` or `"incremental"`.
        """
    def change_count(self, /) -> int:
        """
        A number that changes when something has ended or changed while somebody waited; see `wait_for_change`.
        """
    @property
    def clock_skew_ms(self, /) -> int:
        """
        How far the wall clock is ahead of the ledger's time, or behind it if negative. More than a second means that
        the clock was set: see `accept_clock`.
        """
    def close(self, /) -> None:
        """
        Lets go of the ledger: this process's live holds end as nobody reports them. Closing twice is the same as once.
        """
    @property
    def closed(self, /) -> bool:
        """
        Whether `close` was called.
        """
    def events(self, /) -> list[dict[str, typing.Any]]:
        """
        What an auditor wants to know, oldest first, the last ones only: `number`, `at_ms`, `kind`, `pid`, `path`,
        `unit`, `window`, `before`, `after`.
        """
    def explain(
        self,
        /,
        path: str,
        *,
        tokens: int = ...,
        nano_usd: int = ...,
        requests: int = ...,
        in_flight: int = ...,
        kv_blocks: int = ...,
    ) -> list[Denial]:
        """
        Every limit that would refuse these amounts now, from the budget upwards; empty if they fit.
        """
    def holds(self, /) -> list[dict[str, typing.Any]]:
        """
        Every live hold of every process: `id`, `path`, `amounts`, `charged`, `granted_ms`, `deadline_ms`,
        `decision`, `owner_pid`, `alive`, `dispatched`, `meter`.
        """
    @property
    def increment_tokens(self, /) -> int:
        """
        Tokens that are held at a time in incremental admission.
        """
    @property
    def models(self, /) -> list[str]:
        """
        Models with prices, sorted; a meter names them by their place here.
        """
    @property
    def paths(self, /) -> list[str]:
        """
        Every budget, made ones included, sorted.
        """
    def price(self, /, model: str, usage: collections.abc.Mapping[str, int]) -> int:
        """
        What the use of a model costs, in nano-USD, rounded up once.

        Args:
            model: Name in the price table.
            usage: Tokens by component, such as `{"prompt": 1200, "completion": 80}`.

        Raises:
            BudgetError: The model, or a component of which anything was used, has no price (`budget.unpriced`).
        """
    @property
    def price_digest(self, /) -> str:
        """
        SHA-256 of the price table in hex: the same prices give the same digest.
        """
    def recover(self, /) -> dict[str, int]:
        """
        Ends the holds of dead processes and those past their deadline, and settles what they left in doubt.

        Returns:
            `processes` that were gone, their `holds`, holds that were `expired`; units that were `found` stranded, of
            these `freed` and `spent`; cells that were `not_quiet` enough to settle.
        """
    def reserve(
        self,
        /,
        path: str,
        *,
        tokens: int = ...,
        nano_usd: int = ...,
        requests: int = ...,
        in_flight: int = ...,
        kv_blocks: int = ...,
        ttl_ms: int | None = None,
        dispatched: bool = False,
    ) -> Hold | Denial:
        """
        Reserves the amounts at a budget and at every level above it, in all windows, or changes nothing.

        Args:
            path: The budget, such as `acme/research/a`; made from its template if this is the first time.
            tokens: Tokens of language models.
            nano_usd: Billionths of a US dollar.
            requests: Requests; spent when granted.
            in_flight: Calls in flight; come back when the hold ends.
            kv_blocks: Blocks of a KV cache; come back when the hold ends.
            ttl_ms: After this time the hold is over and `recover` may end it; `None` for the ledger's own.
            dispatched: The work begins at once, as `Hold.dispatch` would say.

        Returns:
            A `Hold` or a `Denial`; test `.granted`. An unknown path is a denial too, `budget.unavailable`.

        Raises:
            TypeError: An amount is not an `int`; a `bool` is none.
            BudgetError: An amount is negative or above 2**53.
            HandleError: The ledger is closed, or was inherited through a fork and lives in memory.
        """
    def set_limit(self, /, path: str, unit: str, window: str, limit: int) -> int:
        """
        Changes a limit while the ledger runs, for every process; noted in `events`.

        Returns:
            The limit as it was.

        Raises:
            BudgetError: There is no such limit, or it cannot be that.
        """
    @property
    def state(self, /) -> str | None:
        """
        The file that holds the state; `None` for a ledger in memory.
        """
    def sync(self, /) -> None:
        """
        Makes everything that was spent until now survive a restart of the host.

        Raises:
            BudgetError: The disk refused.
        """
    def usage(self, /, path: str) -> dict[tuple[str, str], Usage]:
        """
        What a budget's own limits have, in the windows of now, by (unit, window).

        Raises:
            BudgetError: There is no such budget.
        """
    def wait_for_change(self, /, seen: SupportsIndex, timeout_ms: SupportsIndex) -> int:
        """
        Waits until something has ended or changed since `seen` was read, in any process, or the time is over. May come
        back early.

        Returns:
            `change_count()` as it is then.
        """

@final
class Meter:
    """
    The meter of an inference engine: one call for all sequences of a decode step.

    Each sequence has a hold, named by its slot. `reserve_many` takes prompt + max_new tokens, one request, one call in
    flight and the KV blocks; `charge` counts the tokens of one step without touching a budget and says which sequences
    must stop; `settle_many` ends them with what was charged.

    Columns are one-dimensional contiguous arrays of exactly the type that is named: uint32, price uint16, out_stop
    uint8. A meter is of one engine: one thread at a time, and only slots that it has given out and not yet ended.
    What it still holds when it is dropped ends with the tokens that were charged.

    Args:
        ledger: The ledger.

    Example:
        >>> import numpy as np
        >>> from tollkeeper import Ledger, Meter
        >>> ledger = Ledger.from_toml('[budget."a"]\\nlimits = [{ unit = "tokens", window = "total", limit = 100 }]')
        >>> meter = Meter(ledger)
        >>> node = meter.node("a")
        >>> u32 = lambda *values: np.array(values, np.uint32)
        >>> slots, status = meter.reserve_many(u32(node, node), u32(10, 60), u32(5, 60))
        >>> [Meter.STATUS[code] for code in status]
        ['allow', 'budget.too_large']
        >>> stop = np.zeros(1, np.uint8)
        >>> meter.charge(slots[:1], u32(7), None, stop), int(stop[0])
        (1, 3)
        >>> meter.settle_many(slots[:1]), ledger.usage("a")["tokens", "total"].used
        (1, 15)
    """

    STATUS: Final[tuple[str, str, str, str, str, str, str]]
    """
    The codes of a status, by its number.
    """
    def __new__(cls, ledger: Ledger, /) -> Meter: ...
    def __repr__(self, /) -> str: ...
    def charge(self, /, slots: typing.Any, new_tokens: typing.Any, compute: typing.Any, out_stop: typing.Any) -> int:
        """
        Charges one step: new tokens to each slot, and compute tokens beside them, which no limit counts.

        Args:
            slots: uint32; each at most once.
            new_tokens: uint32.
            compute: uint32, or `None`.
            out_stop: uint8, writable. Filled with 0: go on; 255: no live hold; else stop, and so many of the new tokens
                less one are not paid for (253 at most): trim them.

        Returns:
            How many must stop.
        """
    def counts(self, /, slots: typing.Any) -> dict[str, typing.Any]:
        """
        What was counted of each slot so far.

        Args:
            slots: uint32.

        Returns:
            `charged`, prompt included, and `compute`: int64 arrays; -1 for no live hold.
        """
    def node(self, /, path: str) -> int:
        """
        The place of a budget, for `reserve_many` and `snapshot`; made from its template if this is the first time.

        Args:
            path: The budget, such as `acme/research`.

        Raises:
            BudgetError: There is no such budget.
        """
    def release_many(self, /, slots: typing.Any) -> int:
        """
        Ends holds that were not used: their tokens go back, the prompt's too, and their requests stay spent. A sequence
        that has generated anything is settled instead.

        Args:
            slots: uint32.

        Returns:
            How many this call ended.
        """
    def reserve_many(
        self,
        /,
        nodes: typing.Any,
        prompt: typing.Any,
        max_new: typing.Any,
        kv_blocks: typing.Any = None,
        price: typing.Any = None,
    ) -> tuple[typing.Any, typing.Any]:
        """
        Reserves each row or nothing of it, in their order. The prompt counts as charged from then on.

        Args:
            nodes: uint32; budgets, as `node` gives them.
            prompt: uint32; tokens of each prompt.
            max_new: uint32; the most tokens that will be generated.
            kv_blocks: uint32; blocks of the KV cache.
            price: uint16; place of the model in `Ledger.models`. Its worst case is held in nano-USD, and `settle_many`
                settles its real cost. A model without a price for prompt or completion is denied as unpriced.

        Returns:
            Slots (uint32; 4294967295 where denied) and status (uint8; 0 granted, else a denial, see `Meter.STATUS`).
        """
    def settle_many(self, /, slots: typing.Any, cached: typing.Any = None) -> int:
        """
        Ends the holds with the tokens that were charged, less what of a prompt came out of a cache; those with a price
        with their real cost. Without a price for `cached`, cached tokens cost as any others of the prompt.

        Args:
            slots: uint32.
            cached: uint32; tokens of each prompt that came out of a cache.

        Returns:
            How many this call ended.
        """
    def snapshot(self, /, nodes: typing.Any, *, window: str = "total") -> dict[str, typing.Any]:
        """
        What budgets have in the windows of now.

        Args:
            nodes: uint32; as `node` gives them.
            window: The kind of window.

        Returns:
            `used`, `held` and `available`: int64 arrays of a row for each node and a column for each of tokens,
            nano_usd, requests, in_flight, kv_blocks. Where there is no limit: 0, 0 and 2**63 - 1.
        """
    def top_up(self, /, slots: typing.Any, tokens: typing.Any) -> typing.Any:
        """
        Holds more tokens for each slot, or not.

        Args:
            slots: uint32.
            tokens: uint32.

        Returns:
            uint8; 0 granted, else a denial, see `Meter.STATUS`.
        """

@disjoint_base
class ModelCall:
    """
    The native half of a model call.
    """
    def __enter__(self, /) -> typing.Self: ...
    def __exit__(self, /, *exc: object) -> None: ...
    def __new__(
        cls,
        /,
        gate: Gate,
        model: str,
        prompt_tokens: int,
        max_tokens: int,
        n: int = ...,
        parent: str | None = None,
        asserted: collections.abc.Mapping[str, str] | None = None,
    ) -> typing.Self:
        """
        Args:
            gate: The gate that decides.
            model: Its name in the price table.
            prompt_tokens: Tokens of the prompt.
            max_tokens: The most tokens of one completion.
            n: How many completions.
            parent: Id of the decision that the call follows from.
            asserted: As in `Gate.check`.
        """
    def __repr__(self, /) -> str: ...
    def charge(self, n_tokens: int, /) -> bool:
        """
        Charges tokens that have appeared. Never raises.

        Returns:
            True: go on. False: stop; they are noted, but not covered, or the call is over.
        """
    @property
    def decision(self, /) -> Decision:
        """
        The decision on this call.
        """
    @property
    def hold(self, /) -> Hold | None:
        """
        What is held for it: a `Hold`, or `None` where nobody pays.
        """
    def settle(
        self, /, *, prompt: int | None = None, cached: int = ..., completion: int | None = None, **components: int
    ) -> bool:
        """
        Ends the call with what the provider says was used.

        Args:
            prompt: Tokens of the prompt, cached ones included; without it those the call was asked with.
            cached: Tokens of the prompt that came from a cache; they cost the price of `cached`.
            completion: Tokens that were generated; without it those that were charged.
            components: Tokens of further components of the price table, which cost on top of these and count no
                tokens. One that has no price costs all the money that is held.

        Returns:
            Whether this call ended it; False if it had ended before, or nothing was held.

        Raises:
            BudgetError: More was cached than the prompt has. The call goes on.
        """

@final
class PolicySet:
    """
    A compiled set of Cedar policies. Immutable and safe to share between threads.

    Example:
        >>> from tollkeeper import PolicySet
        >>> policies = PolicySet.from_cedar('permit(principal, action == Action::"read", resource);')
        >>> policies.decide('User::"alice"', 'Action::"read"', 'File::"a"').decision
        'allow'
    """
    def __len__(self, /) -> int: ...
    def __repr__(self, /) -> str: ...
    def annotations(self, /, id: str) -> dict[str, str]:
        """
        The annotations of a policy.

        Args:
            id: Its id, as in `ids`.

        Raises:
            KeyError: No policy has this id.
        """
    def decide(
        self,
        /,
        principal: EntityUid | str,
        action: EntityUid | str,
        resource: EntityUid | str,
        context: Context | dict[str, typing.Any] | None = None,
        entities: Entities | None = None,
        *,
        decision_only: bool = False,
    ) -> Answer:
        """
        Answers one request.

        Args:
            principal: `EntityUid` or its text, `'User::"alice"'`.
            action: The same.
            resource: The same.
            context: A prepared `Context`, or a mapping of plain data that becomes the context record; `None` is empty.
            entities: The entity store; `None` is empty.
            decision_only: Stop at the first policy that settles the decision; `reasons` and `errors` are then not
                complete.

        Raises:
            EntityError: A uid cannot be read.
            ArgumentsError: The mapping is not plain data, or too large.
        """
    def decide_many(
        self,
        /,
        principals: collections.abc.Iterable[EntityUid | str] | EntityUid | str,
        actions: collections.abc.Iterable[EntityUid | str] | EntityUid | str,
        resources: collections.abc.Iterable[EntityUid | str] | EntityUid | str,
        contexts: collections.abc.Iterable[Context | dict[str, typing.Any]] | Context | dict[str, typing.Any],
        entities: Entities | None = None,
        *,
        principal_index: typing.Any = None,
        action_index: typing.Any = None,
        resource_index: typing.Any = None,
        context_index: typing.Any = None,
        detail: str = "decisions",
        threads: SupportsIndex = 1,
    ) -> BatchAnswer:
        """
        Answers many requests in one call, with the interpreter's lock released.

        Each column is a list of distinct values with an index array of one row per request; without an index array the
        values are the rows themselves, and a single value stands in every row.

        Args:
            principals: Uids, handles or text.
            actions: The same.
            resources: The same.
            contexts: Prepared contexts or mappings.
            entities: The entity store; `None` is empty.
            principal_index: Integers of shape (n,), uint32 for the least work; any integer dtype is accepted.
            action_index: The same.
            resource_index: The same.
            context_index: The same.
            detail: `"decisions"` stops at the policy that settles a request; `"counts"` adds how many reasons and
                errors there are; `"policies"` adds which.
            threads: Threads to decide on.

        Raises:
            ValueError: Columns of different lengths, an index outside its table.
            EntityError: A uid cannot be read.
            ArgumentsError: A mapping is not plain data.
        """
    def explain(self, /, id: str | None = None) -> str:
        """
        Says in words what a policy does, or every policy and template.

        Args:
            id: Its id, as in `ids`; `None` for all.

        Raises:
            KeyError: No policy has this id.
        """
    def explain_request(
        self,
        /,
        principal: EntityUid | str,
        action: EntityUid | str,
        resource: EntityUid | str,
        context: Context | dict[str, typing.Any] | None = None,
        entities: Entities | None = None,
    ) -> str:
        """
        Says in words how a request is decided: the verdict, every policy whose scope matches with the condition that
        was or was not met, and for a denial the nearest permit and what it lacked. Values of the request are shown.

        Args:
            principal: Uid, handle or text.
            action: The same.
            resource: The same.
            context: A prepared `Context`, or a mapping of plain data; `None` is empty.
            entities: The entity store; `None` is empty.

        Raises:
            EntityError: A uid cannot be read.
            ArgumentsError: The mapping is not plain data, or too large.
        """
    @staticmethod
    def from_cedar(
        source: str | os.PathLike[str] | list[str | os.PathLike[str]],
        schema: str | os.PathLike[str] | None = None,
        *,
        ids: str = "positional",
    ) -> PolicySet:
        """
        Parses, validates where a schema is given, compiles and indexes.

        Args:
            source: Cedar policies as `str`, a file as `pathlib.Path`, or a list of them.
            schema: A Cedar schema, Cedar syntax or JSON, as `str` or `Path`; policies are validated strictly.
            ids: `"positional"` names policies `policy0`, `policy1`, ... as Cedar does; `"annotation"` by `@id`, else
                by file name and ordinal.

        Raises:
            PolicyError: With file, line, column and help for each finding.
            OSError: A file cannot be read.
        """
    @property
    def ids(self, /) -> list[str]:
        """
        The ids of the policies that can decide, in the order of their text.
        """
    def link(
        self,
        /,
        template: str,
        id: str,
        *,
        principal: EntityUid | str | None = None,
        resource: EntityUid | str | None = None,
    ) -> PolicySet:
        """
        Makes a new set with one more policy, linked from a template.

        Args:
            template: Id of the template.
            id: Id of the new policy.
            principal: Value of `?principal`, if the template has it.
            resource: Value of `?resource`, if the template has it.

        Raises:
            PolicyError: No such template, an id that is taken, or a slot without a value.
        """
    def matrix(self, /, entities: Entities | None = None) -> str:
        """
        Principals' types and groups by actions: each cell allow, never, or when, with the conditions below.

        Args:
            entities: The entity store, whose groups are rows; `None` is empty.
        """
    @property
    def memory_bytes(self, /) -> int:
        """
        Approximate memory of the compiled set in bytes.
        """
    def outcomes(
        self,
        /,
        principal: EntityUid | str,
        action: EntityUid | str,
        resource: EntityUid | str,
        context: Context | dict[str, typing.Any] | None = None,
        entities: Entities | None = None,
    ) -> dict[str, str]:
        """
        How each policy whose scope matches a request ends: `"satisfied"`, `"unsatisfied"` or `"error"`, by id.

        Args:
            principal: Uid, handle or text.
            action: The same.
            resource: The same.
            context: A prepared `Context`, or a mapping of plain data; `None` is empty.
            entities: The entity store; `None` is empty.

        Raises:
            EntityError: A uid cannot be read.
            ArgumentsError: The mapping is not plain data, or too large.
        """
    def place(self, /, id: str) -> tuple[str | None, int, int]:
        """
        Where a policy stands: file (or `None`), line and column, from 1.

        Args:
            id: Its id, as in `ids`.

        Raises:
            KeyError: No policy has this id.
        """
    def program(self, /) -> str:
        """
        The compiled instructions of each policy and the buckets of the index.
        """
    @property
    def templates(self, /) -> list[str]:
        """
        The ids of the templates.
        """
    @property
    def warnings(self, /) -> list[str]:
        """
        Warnings of the validator.
        """

@disjoint_base
class Scope:
    """
    The native half of a scope: who acts, in which session, narrowed to what.
    """
    def __new__(
        cls,
        /,
        gate: Gate,
        principal: EntityUid | Entity | str | None = None,
        session: str | None = None,
        *,
        labels: list[str] = ...,
        on_behalf_of: EntityUid | str | None = None,
        tools: list[str] | None = None,
        forbid: list[str] = ...,
        budget: str | None = None,
        expires_at: float | None = None,
        outer: Scope | None = None,
        request: str | None = None,
    ) -> typing.Self:
        """
        Args:
            gate: The gate the run goes through.
            principal: Uid, or an `Entity` with attributes that the entity store does not have.
            session: Id of the session.
            labels: What the session has seen.
            on_behalf_of: For whom the principal acts.
            tools: The only tools this run may call.
            forbid: Texts of forbids that hold in this run.
            budget: Path of the budget that pays.
            expires_at: Seconds since 1970 after which the run is over.
            outer: A scope that this one narrows; principal and session are then its own. With a principal as well, that
                is to act for the outer one's, and the scope counts only once the gate has decided so.
            request: What the user asked for: the audit log commits to it, and keeps it outside the entries.
        """
    def __repr__(self, /) -> str: ...
    def _end(self, /) -> None:
        """
        Ends the scope: checks with it are denied with `scope.missing` from now on.
        """
    @property
    def _gate(self, /) -> Gate:
        """
        The gate the run goes through.
        """
    @property
    def _over(self, /) -> bool:
        """
        Whether the run is over, or may not begin.
        """
    @staticmethod
    def _recorded(
        gate: Gate,
        chain: list[EntityUid | Entity | str],
        session: str,
        labels: list[str],
        *,
        on_behalf_of: EntityUid | str | None = None,
        tools: list[str] | None = None,
        forbids: list[list[str]] = ...,
        expires_ms: SupportsIndex | None = None,
    ) -> Scope:
        """
        The scope of a decision that is made again, out of what a log says; nothing of it is recorded.

        Args:
            gate: The gate that decides.
            chain: Everybody who had to be allowed, outermost first: uids, or entities as the runs described them.
            session: Id of the session.
            labels: What it had seen.
            on_behalf_of: For whom the last of the chain acted.
            tools: The only tools the run might call.
            forbids: For each run that came with forbids their texts.
            expires_ms: When the run's time was over.
        """
    def allows(self, /, tool: str) -> bool:
        """
        Whether the run may call this tool at all, before any policy is asked.
        """
    @property
    def budget(self, /) -> str | None:
        """
        Path of the budget that pays, if anybody does.
        """
    @property
    def chain(self, /) -> list[str]:
        """
        Everybody who has to be allowed, outermost first; the last one acts.
        """
    @property
    def labels(self, /) -> list[str]:
        """
        What the session has seen by now, sorted.
        """
    @property
    def on_behalf_of(self, /) -> str | None:
        """
        For whom the principal acts, if for anybody.
        """
    @property
    def principal(self, /) -> str:
        """
        Who acts.
        """
    @property
    def session(self, /) -> str:
        """
        Id of the session.
        """

@final
class Usage:
    """
    What one window of one budget has of one unit.
    """
    def __eq__(self, value: object, /) -> bool: ...
    def __ne__(self, value: object, /) -> bool: ...
    def __repr__(self, /) -> str: ...
    @property
    def available(self, /) -> int:
        """
        limit + overdraft - used - held - stranded; negative is debt.
        """
    @property
    def held(self, /) -> int:
        """
        Held by live holds.
        """
    @property
    def limit(self, /) -> int:
        """
        The most that may be used.
        """
    @property
    def overdraft(self, /) -> int:
        """
        How much more is let through.
        """
    @property
    def stranded(self, /) -> int:
        """
        Lost to a process that died in the middle of a step, until a recovery settles it.
        """
    @property
    def used(self, /) -> int:
        """
        Spent for good.
        """
    @property
    def window_end_ms(self, /) -> int | None:
        """
        When the window ends, in milliseconds since 1970; `None` for `total`.
        """

def _claim_interpreter() -> None:
    """
    Refuses every interpreter of the process but the one that called it first: classes and objects that are kept here would
    cross from one to the other.
    """

def _echo_arguments(arguments: object, /) -> object:
    """
    Takes the snapshot of `arguments` and gives it back as Python data; an integer beyond 64 bits becomes `...`.
    """

def _echo_uid(uid: EntityUid | str, /) -> str:
    """
    Reads a uid argument, a handle or its text, and returns the text.
    """

def _end_tracing() -> None:
    """
    Asks no tracer from now on, and waits for those that are being asked.

    A tracer is the only Python that runs inside a check. Before version 3.14 an interpreter that ends unwinds the
    daemon threads that come back to it, and through this code that would abort the process.
    """

def _fork_generation() -> int:
    """
    The fork generation of this process, with the hook in place.
    """

def _measure_arguments(arguments: object, /) -> int:
    """
    Takes the snapshot of `arguments` and returns the bytes charged for it.
    """

def _panic_in_check(gate: Gate, /) -> Decision:
    """
    Makes one check of a gate panic, to show what becomes of the gate: it denies from then on, which whoever has the handle
    can have with `close` as well. Returns the decision.
    """

def _panic_on_purpose() -> None:
    """
    Panics, to show what becomes of it.
    """

def _tool_pin(tool: tuple[str, str, str | None, list[str], list[tuple[str, int]] | None, list[str]]) -> str:
    """
    The digest of a tool's definition, as entries name it.
    """

def audit_check_consistency(
    size1: SupportsIndex, size2: SupportsIndex, root1: bytes, root2: bytes, proof: list[bytes], /
) -> None:
    """
    Checks a proof that a tree is the beginning of another, as RFC 6962 has it.

    Raises:
        AuditError: It is not proven.
    """

def audit_check_inclusion(
    leaf_index: SupportsIndex, tree_size: SupportsIndex, root: bytes, leaf_hash: bytes, proof: list[bytes], /
) -> None:
    """
    Checks a proof that a leaf is in a tree, as RFC 6962 has it.

    Raises:
        AuditError: It is not proven.
    """

def audit_check_proof(text: str, key: str, entry: bytes, /) -> dict[str, typing.Any]:
    """
    Checks a proof offline: that the key has signed a tree in which `entry` has the proof's index.

    Raises:
        AuditError: The proof, the key or the signature does not hold.
    """

def audit_keygen(path: str | PathLike[str], origin: str) -> str:
    """
    Makes the key that signs a log's checkpoints, in a file that must not be there.

    Args:
        path: The file of the key.
        origin: What the log calls itself.

    Returns:
        The public half, as C2SP writes verifier keys.

    Raises:
        AuditError: The file is there or cannot be written, or the origin cannot be one.
    """

def audit_logs(path: str | PathLike[str], /) -> list[dict[str, typing.Any]]:
    """
    Lists the logs of a folder: each epoch of each process slot.
    """

def audit_prove(path: str | PathLike[str], index: SupportsIndex, /, extra: bytes | None = None) -> str:
    """
    Writes the proof (`c2sp.org/tlog-proof@v1`) that an entry is in the log.

    Raises:
        AuditError: There is no such entry, or no checkpoint covers it yet.
    """

def audit_verify(
    path: str | PathLike[str],
    key: str | None = None,
    since: str | None = None,
    progress: collections.abc.Callable[[int, int], object] | None = None,
    *,
    trust_directory: bool = False,
    foreign: bool = False,
) -> dict[str, typing.Any]:
    """
    Verifies the logs of a folder: integrity, completeness, and how far they are anchored.

    Args:
        path: The folder of a log, or of all logs of a gate.
        key: Verifier keys, one a line; without one, the key beside the log is taken, which proves less.
        since: A checkpoint that was kept from earlier: the log must have grown from it.
        progress: Called with entries done and in all, every 65,536 entries; returning `False` stops.
        trust_directory: The key beside the log counts as given.
        foreign: The entries are another program's: only the tree is checked.

    Returns:
        What was found, with `verdict` one of `ok`, `unanchored`, `incomplete`, `broken`.

    Raises:
        AuditError: There is no log, a key or `since` cannot be used, or `progress` stopped it.
    """

def build_info() -> dict[str, str]:
    """
    Tells how this module was built: `version`, `profile` (`release` or `debug`) and `abi` (`abi3` or `native`).
    """

def decision_codes() -> list[tuple[str, str]]:
    """
    Every code a decision can have, with its meaning.
    """
