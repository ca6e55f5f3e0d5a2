"""Verifies an audit log of Tollkeeper: one file, to be read in one sitting before it is trusted.

    python verify_log.py DIR [--key VKEY_OR_FILE]... [--since CHECKPOINT_FILE]...
    python verify_log.py [DIR] --proof FILE --entry FILE [--key VKEY_OR_FILE]...

DIR is a copy of one log, or of an audit directory with a log per process slot (0, 1, ..); the private folder ``wal``
may be left out. A log is an RFC 6962 tree in C2SP tlog-tiles with signed checkpoints. This file shares no code with
what writes it and trusts nothing in it: every root is computed again from the entries. It needs Python and, for Ed25519
only, the package `cryptography`. It writes nothing, and does not look at ``ring``: what is there is in no log yet.

A log may be written meanwhile: what is found is looked at again. First the verdict over all, then three for each log
(an epoch of a slot is one), then what was found, each with its place:

integrity     Do bundles, tiles, write-ahead segments, payloads and signed checkpoints tell the same story?
completeness  Is every number of every producer there, or named as lost by a later recovery? Is each log there that
              another one saw when it started, and each epoch that a later one names? Allowed actions without an outcome
              are counted and decide nothing: they may be running.
anchored      What stands by something from outside: a checkpoint given by ``--since``, or a cosignature by a witness
              whose key is given by ``--key``. Whoever holds the log's own key can write anew what comes after that, or
              roll the log back to any earlier signed state. Without an anchor neither shows.

Exit code: 0 all holds and every entry is under a signed checkpoint; 1 intact, but incomplete or with a tail that no
checkpoint signs; 2 the input cannot be used; 3 broken. Without ``--key`` the key is the one in ``verifier.pub``, which
whoever replaces the log replaces too: keep a copy elsewhere and give it.
"""

import argparse
import base64
import json
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeGuard

OK, INCOMPLETE, UNUSABLE, BROKEN = range(4)
VERDICTS: Final = {OK: "verified", INCOMPLETE: "incomplete", BROKEN: "broken"}
GRADES: Final = {OK: "remark", INCOMPLETE: "incomplete", BROKEN: "broken"}
FINDINGS_SHOWN_MAX: Final = 20
FINDINGS_KEPT_MAX: Final = 1_000
PASSES_MAX: Final = 4

HASH_BYTES: Final = 32
TILE_WIDTH: Final = 256
BUNDLE_BYTES_MAX: Final = TILE_WIDTH * (2 + 0xFFFF)
NOTE_BYTES_MAX: Final = 1 << 20
FILE_BYTES_MAX: Final = 1 << 34
INDEX_MAX: Final = (1 << 63) - 1
LOG_KEY, WITNESS_KEY = 1, 4

# Little-endian; the frame's three numbers after `reserved` (producer, last_seq, time_ms) help recovery, not evidence.
SEGMENT_HEADER: Final = struct.Struct("<8sIIQQ24sII")
FRAME_HEADER: Final = struct.Struct("<4sIQIIII24xQ32s")
FRAME_TRAILER: Final = struct.Struct("<32sI4s")
PAYLOAD_HEADER: Final = struct.Struct("<IIII32s")
ENVELOPE: Final = ("v", "kind", "producer", "seq", "time")

Report = Callable[[int, str, str], None]


class MalformedError(Exception):
    """What no sound log holds; the message is a sentence without the place."""


class UnusableError(Exception):
    """What the caller gave cannot be used."""


def demand(holds: object, otherwise: str) -> None:
    """Raises unless something holds."""
    if not holds:
        raise MalformedError(otherwise)


# --- tree: RFC 6962 ---------------------------------------------------------------------------------------------------


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one entry."""
    return sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash over two subtrees."""
    return sha256(b"\1" + left + right).digest()


class Tree:
    """The hashes of all complete subtrees: ``levels[k]`` has those over 2**k leaves, one after the other."""

    def __init__(self) -> None:
        self.levels = [bytearray() for _ in range(INDEX_MAX.bit_length() + 1)]
        self.size = 0

    def append(self, leaf: bytes) -> None:
        """Adds the hash of the next entry."""
        self.size += 1
        self.levels[0] += leaf
        for level in range((self.size & -self.size).bit_length() - 1):
            self.levels[level + 1] += sha256(b"\1" + self.levels[level][-2 * HASH_BYTES :]).digest()

    def hashes(self, level: int, first: int, count: int) -> bytes:
        """The hashes of so many subtrees of 2**level leaves; fewer where the tree ends."""
        return bytes(self.levels[level][HASH_BYTES * first : HASH_BYTES * (first + count)])

    def root(self, size: int) -> bytes:
        """The root when the tree had so many leaves: its complete subtrees, joined from the right."""
        root = b""
        for level in range(size.bit_length()):
            if (size >> level) & 1:
                left = self.hashes(level, (size >> level) - 1, 1)
                root = node_hash(left, root) if root else left
        return root or sha256().digest()


def _split(size: int) -> int:
    return 1 << (size - 1).bit_length() - 1


def root_by_inclusion(leaf: bytes, index: int, size: int, proof: list[bytes]) -> bytes:
    """The root that a proof leads to from a leaf (RFC 6962, 2.1.1)."""
    demand(0 <= index < size, f"index {index} is not below the size, {size}")
    demand(all(len(item) == HASH_BYTES for item in (leaf, *proof)), "a hash is not 32 bytes long")
    rest = list(proof)

    def root(index: int, size: int) -> bytes:
        if size == 1:
            return leaf
        demand(rest, "the proof is too short")
        item, left = rest.pop(), _split(size)
        return node_hash(root(index, left), item) if index < left else node_hash(item, root(index - left, size - left))

    found = root(index, size)
    demand(not rest, "the proof is too long")
    return found


def verify_consistency(size: int, later_size: int, root: bytes, later_root: bytes, proof: list[bytes]) -> None:
    """For who holds two checkpoints and a proof, but no log: the later tree goes on from the earlier (2.1.2)."""
    demand(0 < size <= later_size, f"nothing leads from size {size} to size {later_size}")
    demand(all(len(item) == HASH_BYTES for item in proof), "a hash is not 32 bytes long")
    rest = list(proof)

    def roots(size: int, later_size: int, *, whole: bool) -> tuple[bytes, bytes]:
        if size == later_size and whole:
            return root, root
        demand(rest, "the proof is too short")
        item, left = rest.pop(), _split(later_size)
        if size == later_size:
            return item, item
        if size <= left:
            early, late = roots(size, left, whole=whole)
            return early, node_hash(late, item)
        early, late = roots(size - left, later_size - left, whole=False)
        return node_hash(item, early), node_hash(item, late)

    found = roots(size, later_size, whole=True)
    demand(not rest and found == (root, later_root), "the proof does not lead from one root to the other")


# --- signed notes: C2SP signed-note, tlog-checkpoint, tlog-cosignature ------------------------------------------------


def unbase64(text: str, length: int | None = None) -> bytes:
    """Standard base64 in its one canonical spelling."""
    try:
        value = base64.b64decode(text, validate=True)
    except ValueError:
        value = b""
    fits = value and base64.b64encode(value).decode() == text and length in (None, len(value))
    demand(fits, "that is not base64" + (f" of {length} bytes" if length else ""))
    return value


@dataclass(frozen=True)
class Key:
    """A verifier key: of a log, or of a witness."""

    name: str
    kind: int
    public: bytes

    @property
    def number(self) -> bytes:
        """The four bytes by which a signature names it."""
        return sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.public).digest()[:4]

    @classmethod
    def parse(cls, text: str) -> "Key":
        """From ``NAME+HEX+BASE64``."""
        name, number, value = [*text.split("+", 2), "", ""][:3]
        kind, *public = unbase64(value, 1 + HASH_BYTES)
        demand(kind in (LOG_KEY, WITNESS_KEY), f"type {kind} is not one that is read here: 1 of a log, 4 of a witness")
        key = cls(name, kind, bytes(public))
        demand(key.number.hex() == number, "the number in the verifier key does not belong to it")
        return key

    def under(self, origin: str) -> "Key":
        """The same key as it signs for another slot or epoch: those are numbers at the end of the name."""
        names = {re.sub(r"(/[0-9]+)*\Z", "", name) for name in (self.name, origin)}
        return replace(self, name=origin) if self.kind == LOG_KEY and len(names) == 1 else self

    def signed(self, signature: bytes, message: bytes) -> bool:
        """Ed25519, the one thing that the standard library lacks."""
        try:
            from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - the rest works without it
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - the same
        except ImportError:
            raise UnusableError(
                "signatures need the package cryptography, the extra `verify` of this wheel: pip install cryptography"
            ) from None
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it stands in a file; nothing in it is believed before ``check`` returns."""

    place: str
    origin: str
    size: int
    root: bytes
    text: bytes
    signatures: tuple[tuple[str, bytes], ...]

    @classmethod
    def parse(cls, place: str, note: bytes) -> "Checkpoint":
        """Three lines, an empty one, signature lines; no extension lines, because no log of this kind has any."""
        form = r"([^\n]+)\n(0|[1-9][0-9]{0,18})\n([^\n]+)\n\n((?:— [^\s+]+ [^\s]+\n)+)"
        found = re.fullmatch(form, note.decode(errors="replace"))
        demand(found, "it is not a checkpoint: origin, size, root, an empty line and signature lines")
        assert found  # noqa: S101 - said to the type checker; `demand` has just made sure
        demand(found[1].isprintable() and int(found[2]) <= INDEX_MAX, "origin or size of the checkpoint is not one")
        lines = [line.split(" ") for line in found[4].splitlines()]
        signatures = tuple((name, unbase64(value)) for _, name, value in lines)
        text = note[: note.index(b"\n\n") + 1]
        return cls(place, found[1], int(found[2]), unbase64(found[3], HASH_BYTES), text, signatures)

    def check(self, keys: Iterable[Key]) -> list[str]:
        """Names the witnesses that cosigned; raises unless a key of the log signed, or where a known one did not."""
        known = {(key.name, key.number): key for key in (key.under(self.origin) for key in keys)}
        signers: dict[int, list[str]] = {LOG_KEY: [], WITNESS_KEY: []}
        for name, value in self.signatures:
            key = known.get((name, value[:4]))
            if key is None:
                continue  # strangers may sign too: that is how witnesses and new keys arrive
            signature, message = value[4:], self.text
            if key.kind == WITNESS_KEY:
                message = b"cosignature/v1\ntime %d\n" % int.from_bytes(signature[:8], "big") + self.text
                signature = signature[8:]
            demand(key.signed(signature, message), f"the signature of {name} is not one over this text")
            signers[key.kind].append(name)
        demand(self.origin in signers[LOG_KEY], f"no known key of {self.origin} signed it")
        return signers[WITNESS_KEY]


# --- files ------------------------------------------------------------------------------------------------------------


def read(path: Path, bytes_max: int) -> bytes:
    """A file, never a pipe or a device, and never more than was expected."""
    try:
        demand(path.is_file(), "there is no such file")
        demand(path.stat().st_size <= bytes_max, f"it is larger than the {bytes_max} bytes that are possible")
        return path.read_bytes()
    except OSError as error:
        raise MalformedError(f"it cannot be read: {error.strerror}") from None


def tile_path(kind: str, number: int, width: int) -> str:
    """Where C2SP puts a tile (kind: its level) or a bundle (kind: entries)."""
    groups = f"{number:,}".split(",")
    path = "/".join([f"x{group:0>3}" for group in groups[:-1]] + [f"{groups[-1]:0>3}"])
    return f"tile/{kind}/{path}" + (f".p/{width}" if width < TILE_WIDTH else "")


def parse_bundle(data: bytes, count: int) -> list[bytes]:
    """So many entries, each behind its length in two bytes, and nothing after them."""
    entries, offset = list[bytes](), 0
    for number in range(count):
        end = offset + 2 + int.from_bytes(data[offset : offset + 2], "big")
        demand(offset + 2 <= len(data) and end <= len(data), f"it ends inside entry {number} of its {count}")
        entries.append(data[offset + 2 : end])
        offset = end
    demand(offset == len(data), f"{len(data) - offset} bytes follow the last of its {count} entries")
    return entries


_CRC32C: Final = list(range(256))
for _ in range(8):
    _CRC32C[:] = [(value >> 1) ^ (0x82F63B78 * (value & 1)) for value in _CRC32C]


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum: it finds torn writes, not forgeries."""
    table, value = _CRC32C, 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 255] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


@dataclass(frozen=True)
class Frame:
    """One batch of a write-ahead segment. A payload is the number of its entry, and salt and bytes, or None: erased."""

    first: int
    entries: list[bytes]
    payloads: list[tuple[int, bytes | None]]
    previous_root: bytes
    new_root: bytes
    end: int
    payload_fault: str

    @classmethod
    def parse(cls, data: bytes, start: int, first: int) -> "Frame":
        """The frame that begins there and whose first entry has that index."""
        entries_start = start + FRAME_HEADER.size
        demand(entries_start <= len(data), "the file ends inside a frame")
        magic, flags, index, count, entries_bytes, payload_bytes, reserved, reserved_too, previous_root = (
            FRAME_HEADER.unpack_from(data, start)
        )
        payloads_start = entries_start + entries_bytes
        trailer_start = payloads_start + payload_bytes
        end = trailer_start + FRAME_TRAILER.size
        demand(magic == b"TKF1" and end <= len(data), "no frame begins here, or the file ends inside it")
        new_root, checksum, end_magic = FRAME_TRAILER.unpack_from(data, trailer_start)
        summed = crc32c(data[start:payloads_start] + new_root)
        demand(end_magic == b"TKFE" and summed == checksum, "the checksum of the frame does not hold")
        sound = not (flags or reserved or reserved_too) and count and index == first
        demand(sound, f"the frame should begin with entry {first} and have no flags")
        padding = data[end : end + -end % 8]
        demand(not any(padding), "the padding after the frame is not zero")
        entries = parse_bundle(data[entries_start:payloads_start], count)
        payloads, payload_fault = list[tuple[int, bytes | None]](), ""
        try:
            cls._payloads(data[payloads_start:trailer_start], count, payloads)
        except MalformedError as error:
            # The frame's checksum leaves payloads out, so that they can be erased: its entries stand without them.
            payload_fault = str(error)
        return cls(first, entries, payloads, previous_root, new_root, end + len(padding), payload_fault)

    @staticmethod
    def _payloads(data: bytes, count: int, items: list[tuple[int, bytes | None]]) -> None:
        offset = 0
        while offset < len(data):
            demand(len(data) - offset >= PAYLOAD_HEADER.size, "the payloads of the frame end inside an item")
            number, length, erased, checksum, salt = PAYLOAD_HEADER.unpack_from(data, offset)
            body = salt + data[offset + PAYLOAD_HEADER.size :][:length]
            offset += PAYLOAD_HEADER.size + length
            fits = number < count and offset <= len(data) and erased <= 1
            demand(fits, "a payload is cut, or of no entry of the frame")
            whole = not (checksum or any(body)) if erased else crc32c(body) == checksum
            demand(whole, f"the payload of entry {number} of the frame is damaged or half erased")
            in_order = not items or items[-1][0] < number
            demand(in_order, f"a payload of entry {number} of the frame comes twice or out of order")
            items.append((number, None if erased else body))


# --- entries and who wrote them ---------------------------------------------------------------------------------------


def _is_object(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def parse_entry(data: bytes) -> dict[str, Any]:
    """An entry of version 1: its envelope and the ids of decisions checked, other members as they are."""
    outermost: list[tuple[str, Any]] = []

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        outermost[:] = pairs
        return dict(pairs)

    try:
        entry: object = json.loads(data.decode(), object_pairs_hook=members)
    except (ValueError, RecursionError):
        raise MalformedError("the entry is not JSON") from None
    # Names deeper inside come from programs, and decide nothing here.
    demand(not _is_object(entry) or len(entry) == len(outermost), "a member of the entry stands twice")
    entry = entry if _is_object(entry) else {}
    begins = tuple(entry)[: len(ENVELOPE)] == ENVELOPE and type(entry["v"]) is int and entry["v"] == 1
    demand(begins, f"the entry is not an object of version 1 that begins with {', '.join(ENVELOPE)}")
    demand(type(entry["seq"]) is int and 0 < entry["seq"] <= INDEX_MAX, "seq of the entry is not one")
    demand(isinstance(entry["kind"], str), "kind of the entry is not one")
    demand(re.fullmatch(r"[0-9a-f]{16}(\.w)?", str(entry["producer"])), "producer of the entry is not one")
    time = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z"
    demand(re.fullmatch(time, str(entry["time"])), "time of the entry is not one")
    name = {"decision": "id", "outcome": "of"}.get(entry["kind"])
    is_id = not name or re.fullmatch(r"[0-9a-f]{16}-(0|[1-9][0-9]{0,19})", str(entry.get(name)))
    demand(is_id, f"{name} of the entry is not the id of a decision")
    return entry


def committed(data: bytes) -> str:
    """The commitment to its payload that an entry has at the one place where the writer puts it; empty without one."""
    try:
        entry = parse_entry(data)
    except MalformedError:
        return ""
    named = {"run": "request", "note": "private"}.get(entry["kind"], "arguments")
    member = entry.get("oversize", entry.get(named))
    return str(member.get("commitment", "")) if _is_object(member) else ""


@dataclass
class Census:
    """Who wrote what in one slot, through all its epochs, in order."""

    entries: int = 0
    last: dict[str, int] = field(default_factory=dict)
    missing: list[tuple[str, int, int, int, str]] = field(default_factory=list)
    lost: list[tuple[str, int, int, int]] = field(default_factory=list)
    awaiting: set[str] = field(default_factory=set)
    seen: list[tuple[str, str, str, int, bytes]] = field(default_factory=list)
    """Place, what it is, and origin, size and root of other logs that entries speak of."""
    beheaded: bool = False
    """Whether an earlier epoch is not here, so that a producer may begin in the middle."""
    ours: bool = False
    """Whether an entry was one of Tollkeeper; the trees of others hold what they like."""

    def take(self, data: bytes, place: str, report: Report) -> dict[str, Any]:
        """The next entry of the slot; returns its members."""
        self.entries += 1
        try:
            entry = parse_entry(data)
        except MalformedError as error:
            report(BROKEN if self.ours else INCOMPLETE, place, str(error))
            return {}
        self.ours = True
        try:
            producer, number = entry["producer"], entry["seq"]
            last = self.last.get(producer, number - 1 if self.beheaded else 0)
            if number <= last:
                report(INCOMPLETE, place, f"number {number} of producer {producer} comes again or late, after {last}")
            elif number > last + 1:
                self.missing.append((producer, last + 1, number - 1, self.entries, place))
            self.last[producer] = max(last, number)
            self._by_kind(entry, place, report)
        except MalformedError as error:
            report(INCOMPLETE, place, str(error))
        return entry

    def _by_kind(self, entry: dict[str, Any], place: str, report: Report) -> None:
        kind, of = entry["kind"], str(entry.get("of"))
        if kind == "decision" and entry.get("decision") == "allow":
            self.awaiting.add(str(entry.get("id")))
        elif kind == "outcome":
            self.awaiting.discard(of)
        elif kind == "recovery":
            for pair in self._list(entry, "lost"):
                numbers = _is_list(pair) and [type(number) for number in pair] == [int, int]
                demand(numbers, "lost of the entry is not pairs of numbers")
                self.lost.append((of, pair[0], pair[1], self.entries))
                report(OK, place, f"numbers {pair[0]}..{pair[1]} of producer {of} were lost, it says")
        elif kind in ("start", "epoch"):
            logs = self._list(entry, "siblings") if kind == "start" else [entry]
            what = "a log beside it" if kind == "start" else "the epoch before"
            for log in (item if _is_object(item) else dict[str, Any]() for item in logs):
                origin, size, root = (log.get(name) for name in ("origin", "size", "root"))
                demand(type(size) is int and 0 <= size <= INDEX_MAX, f"what it says of {what} has no size")
                self.seen.append((place, what, str(origin), int(size or 0), unbase64(str(root), HASH_BYTES)))

    @staticmethod
    def _list(entry: dict[str, Any], name: str) -> list[Any]:
        value = entry.get(name, [])
        demand(_is_list(value), f"{name} of the entry is not a list")
        return list(value)

    def unexplained(self) -> Iterable[tuple[str, int, int, str]]:
        """The missing numbers that no later recovery names."""
        for producer, missing, last, when, place in self.missing:
            first = missing
            named = sorted((a, b) for who, a, b, later in self.lost if who == producer and later > when)
            for start, end in [*named, (last + 1, last + 1)]:
                if first < min(start, last + 1):
                    yield producer, first, min(start - 1, last), place
                first = max(first, end + 1)


# --- one log ----------------------------------------------------------------------------------------------------------


def _lasting(finding: tuple[int, str, str]) -> tuple[int, str, str]:
    grade, place, text = finding
    place = re.sub(r"(entry [0-9]+) in (tile|wal)/.*", r"\1", re.sub(r"\.p/[0-9]+", "", place))
    return grade, place, re.sub(r"\.p/[0-9]+|[0-9]+|\S{43}=", "", text)


class Log:
    """One epoch of one slot: reads it once from front to back and remembers what does not fit."""

    def __init__(self, folder: Path, label: str, keys: list[Key], census: Census, ending: str = "") -> None:
        self.folder, self.label, self.keys, self.census, self.ending = folder, label, keys, census, ending
        self.tree = Tree()
        self.origin = ""
        self.findings: list[tuple[int, str, str]] = []
        self.grades: Counter[int] = Counter()
        self.signed: list[Checkpoint] = []
        self.sound_size = 0
        self.anchors: dict[str, int] = {}
        self.files: dict[tuple[str, int], set[int]] = {}
        self.erased: list[tuple[str, int, str]] = []
        """Place, index and commitment of each payload that is gone."""
        self.erasures: set[tuple[int, str]] = set()
        """Index and commitment that erasure entries name; one that was told late has no commitment."""
        self.unlogged: dict[str, tuple[str, int, int]] = {}
        """For a kind of entry that counts what has none of its own: the first one's place, how many, their sum."""
        self.owed = 0
        self.started: list[tuple[str, str]] = []
        """Place and origin of each start."""
        self.first_kind = ""

    def report(self, grade: int, place: str, text: str) -> None:
        """Counts a finding, and remembers it unless there are many."""
        self.grades[grade] += 1
        if self.grades[grade] <= FINDINGS_KEPT_MAX:
            self.findings.append((grade, f"{self.label}{place}" if place else self.label or "./", text))

    def lasting(self) -> set[tuple[int, str, str]]:
        """What is worse than a remark, without what may differ when the same is found again in a log that grew."""
        return {_lasting(finding) for finding in self.findings if finding[0] > OK}

    def keep(self, found: set[tuple[int, str, str]]) -> None:
        """Takes back what came from reading while it was written; not where there is more than is remembered."""
        if max(self.grades.values(), default=0) <= FINDINGS_KEPT_MAX:
            self.findings = [item for item in self.findings if item[0] == OK or _lasting(item) in found]
            self.grades = Counter(grade for grade, _, _ in self.findings)

    def verify(self) -> None:
        """Everything that can be said from this folder alone."""
        self._keys()
        published = self._checkpoints()
        self._list_tiles()
        self._bundles()
        self._segments()
        self._compare_tiles()
        self._whole_log()
        # No more than there can be: who signs may have signed any number.
        self._files_of(min(published.size, self.tree.size) if published else 0)
        # One earlier signed state that fails says from where on; the others fail with it.
        failing = [item for item in sorted(self.signed, key=lambda item: item.size) if not self.holds(item)]
        for checkpoint in {item.place: item for item in (*failing[:1], *failing[-1:])}.values():
            self.report(BROKEN, checkpoint.place, self._why(checkpoint))

    def _keys(self) -> None:
        if not (self.folder / "verifier.pub").is_file():
            if not self.keys:
                raise UnusableError(f"{self.folder / 'verifier.pub'}: not there, and no --key was given")
            return
        try:
            key = Key.parse(self._read("verifier.pub", NOTE_BYTES_MAX).decode(errors="replace").removesuffix("\n"))
        except MalformedError as error:
            self.report(BROKEN, "verifier.pub", str(error))
            return
        if self.keys and key not in [known.under(key.name) for known in self.keys]:
            self.report(BROKEN, "verifier.pub", f"this is not the key given by --key: {key.name}")
        self.origin, self.keys = key.name, self.keys or [key]

    def _read(self, name: str, bytes_max: int) -> bytes:
        try:
            return read(self.folder / name, bytes_max)
        except MalformedError as error:
            self.report(BROKEN, name, str(error))
            return b""

    def _checkpoints(self) -> Checkpoint | None:
        """Reads the history and the published one; a block of the history that nobody known signed is no evidence."""
        notes: list[tuple[str, bytes, int]] = []
        if (self.folder / "checkpoints.log").is_file():
            blocks = re.split(rb"(?:\A|(?<=\n))---\n", self._read("checkpoints.log", FILE_BYTES_MAX))
            notes = [(f"checkpoints.log block {n}", note, INCOMPLETE) for n, note in enumerate(blocks, 1) if note]
        if (self.folder / "checkpoint").is_file():
            notes.append(("checkpoint", self._read("checkpoint", NOTE_BYTES_MAX), BROKEN))
        elif notes:
            # The history is written first: a death may come between the two.
            self.report(OK if len(notes) == 1 else BROKEN, "checkpoint", "there is none, though the history has one")
        if (self.folder / "wal").is_dir() and {name for name, _, _ in notes} == {"checkpoint"}:
            self.report(BROKEN, "checkpoints.log", "it is missing or empty, though a checkpoint was published")
        size_before, last = 0, len(notes) - sum(name == "checkpoint" for name, _, _ in notes)
        for number, (place, note, grade) in enumerate(notes, 1):
            try:
                if number == last and (not note.endswith(b"\n") or "\n\n—".encode() not in note):
                    self.report(OK, place, "the last of the history is not whole, as after a crash")
                    continue
                checkpoint = Checkpoint.parse(place, note)
                witnesses = checkpoint.check(self.keys)
                self.origin = self.origin or checkpoint.origin
                demand(checkpoint.origin == self.origin, f"it is of {checkpoint.origin}, not of {self.origin}")
            except MalformedError as error:
                self.report(grade, place, str(error))
                continue
            if checkpoint.size < size_before:
                ahead = sum(item.size > checkpoint.size for item in self.signed)
                told = f"size {checkpoint.size} after size {size_before} was signed"
                if place == "checkpoint" and ahead == 1:
                    self.report(OK, place, f"{told}: a death came before it was published, or it was rolled back")
                else:
                    self.report(INCOMPLETE, place, f"{told}: rolled back")
            size_before = max(size_before, checkpoint.size)
            self.signed.append(checkpoint)
            self.anchors.update((f"{name}'s cosignature in {place}", checkpoint.size) for name in witnesses)
        return self.signed[-1] if self.signed and self.signed[-1].place == "checkpoint" else None

    def _list_tiles(self) -> None:
        name_of = re.compile(
            r"tile/(entries|[0-9]|[1-5][0-9]|6[0-3])/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([0-9]{1,3}))?"
        )
        for path in sorted((self.folder / "tile").rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            found = name_of.fullmatch(name)
            number = int(re.sub("[x/]", "", found[2])) if found else 0
            width = int(found[3] or TILE_WIDTH) if found else 0
            if found and width and tile_path(found[1], number, width) == name and not path.is_dir():
                self.files.setdefault((found[1], number), set()).add(width)
            elif not path.is_dir():
                self.report(OK, name, "no reader looks here")

    def _take(self, entry: bytes, place: str) -> None:
        if not self.tree.size:
            found = re.match(rb'\{"v":1,"kind":"(\w+)"', entry)
            self.first_kind = found[1].decode() if found else ""
            self.census.beheaded |= self.first_kind == "epoch" and not self.census.entries
        place = f"entry {self.tree.size} in {place}"
        members = self.census.take(entry, place, self.report)
        kind, count = members.get("kind", ""), members.get("count")
        if kind == "erasure" and type(members.get("index")) is int:
            self.erasures.add((members["index"], str(members.get("commitment", ""))))
        elif kind == "start":
            self.started.append((place, str(members.get("origin"))))
        elif kind in ("gap", "denied_unlogged"):
            first, entries, total = self.unlogged.get(kind, (place, 0, 0))
            self.unlogged[kind] = first, entries + 1, total + (count if isinstance(count, int) else 0)
        self.tree.append(leaf_hash(entry))

    def _bundle(self, place: str, width: int) -> list[bytes]:
        try:
            return parse_bundle(read(self.folder / place, BUNDLE_BYTES_MAX), width)
        except MalformedError as error:
            self.report(BROKEN, place, str(error))
            return []

    def _width_now(self, kind: str, number: int, width: int) -> int:
        """While a log is written, the full tile takes the place of a partial one."""
        there = (self.folder / tile_path(kind, number, width)).is_file()
        return width if there or not (self.folder / tile_path(kind, number, TILE_WIDTH)).is_file() else TILE_WIDTH

    def _bundles(self) -> None:
        number = 0
        while (widths := self.files.get(("entries", number))) and self.tree.size == TILE_WIDTH * number:
            width = self._width_now("entries", number, max(widths))
            place = tile_path("entries", number, width)
            for entry in self._bundle(place, width):
                self._take(entry, place)
            # This file is what the others are compared with.
            widths.remove(max(widths))
            number += 1

    def _segments(self) -> None:
        paths = sorted(path for path in (self.folder / "wal").glob("*.seg") if re.fullmatch("[0-9]{20}", path.stem))
        bundled = self.tree.size
        self.owed = max([bundled, *(checkpoint.size for checkpoint in self.signed)])
        end = int(paths[0].stem) if paths else bundled
        limits = [first for _, first in pairwise([*(int(path.stem) for path in paths), INDEX_MAX])]
        for path, limit in zip(paths, limits, strict=True):
            first, place = int(path.stem), f"wal/{path.name}"
            if first > min(end, self.tree.size):
                self.report(
                    BROKEN, place, f"it begins with entry {first}; those from {min(end, self.tree.size)} on are missing"
                )
            if first > self.tree.size:
                return
            end, offset, text = self._segment(path, place, limit)
            if text:
                # A crash tears only the end of what counts, and nobody had been told that it was there.
                newest = limit == INDEX_MAX
                grade = BROKEN if end < (self.owed if newest else limit) else OK
                lost = f"; entries from {end} on are lost, if this was a crash" if newest and grade == OK else ""
                self.report(grade, f"{place} byte {offset}", text + lost)
            end = min(end, limit)
        if end < bundled:
            self.report(BROKEN, "wal", f"its segments end with entry {end}, but there are bundles up to {bundled}")

    def _segment(self, path: Path, place: str, limit: int) -> tuple[int, int, str]:
        """Reads its frames; returns the entry and the byte where that ended, and why if it was too early."""
        end, offset, agrees = int(path.stem), 0, True
        try:
            data = read(path, FILE_BYTES_MAX)
            self._segment_header(data, end)
            offset = SEGMENT_HEADER.size
            while any(data[offset : offset + 4]):
                frame = Frame.parse(data, offset, end)
                # Where one frame disagrees with the tree, all after it do.
                agrees = agrees and self._frame(frame, f"{place} byte {offset}", limit)
                offset, end = frame.end, end + len(frame.entries)
            demand(not any(data[offset:]), "bytes follow the last frame")
        except MalformedError as error:
            return end, offset, str(error)
        return end, offset, ""

    def _segment_header(self, data: bytes, first: int) -> None:
        demand(len(data) >= SEGMENT_HEADER.size, "the header of the segment is cut")
        magic, size, flags, index, length, origin, reserved, checksum = SEGMENT_HEADER.unpack_from(data)
        sound = magic == b"TKWAL001" and size == SEGMENT_HEADER.size and crc32c(data[: size - 4]) == checksum
        demand(sound, "the header of the segment does not hold")
        described = not (flags or reserved) and index == first and length == len(data)
        demand(described, "the header of the segment does not describe this file")
        ours = not self.origin or origin == sha256(self.origin.encode()).digest()[: len(origin)]
        demand(ours, f"the segment is not of {self.origin}")

    def _frame(self, frame: Frame, place: str, limit: int) -> bool:
        """Takes its entries up to the limit, or compares them with those of the bundles; whether all agrees."""
        if frame.first >= limit:
            return True
        if frame.previous_root != self.tree.root(frame.first):
            self.report(BROKEN, place, f"the frame does not follow the {frame.first} entries before it")
            return False
        for index, entry in enumerate(frame.entries[: limit - frame.first], frame.first):
            if index == self.tree.size:
                self._take(entry, place)
            elif leaf_hash(entry) != self.tree.hashes(0, index, 1):
                bundle = tile_path("entries", index // TILE_WIDTH, TILE_WIDTH)
                self.report(BROKEN, f"entry {index} in {place}", f"{bundle} has another entry there")
                return False
        after = frame.first + len(frame.entries)
        if after <= limit and frame.new_root != self.tree.root(after):
            self.report(BROKEN, place, "the root after the frame is not the one that it states")
            return False
        self._payloads(frame, place, limit)
        return True

    def _payloads(self, frame: Frame, place: str, limit: int) -> None:
        bodies = dict(frame.payloads)
        for index, entry in enumerate(frame.entries[: limit - frame.first], frame.first):
            name, commitment = f"payload of entry {index} in {place}", committed(entry)
            body = bodies.get(index - frame.first, b"")
            if index - frame.first not in bodies:
                if commitment and not frame.payload_fault:
                    self.report(INCOMPLETE, name, "the entry commits to one, and it is not there")
            elif not commitment:
                self.report(BROKEN, name, "the entry does not commit to any")
            elif body is None:
                self.erased.append((name, index, commitment))
            elif base64.b64encode(sha256(b"\2" + body).digest()).decode() != commitment:
                self.report(BROKEN, name, "the entry does not commit to it")
        if frame.payload_fault:
            # A crash tears only what nobody had been told of.
            after = frame.first + len(frame.entries)
            self.report(BROKEN if after <= self.owed else INCOMPLETE, place, frame.payload_fault)

    def _whole_log(self) -> None:
        """Once it is read: it is the log of this place, who erased said so, what was not logged was counted."""
        if self.origin and not re.search(f"{self.ending}\\Z", self.origin):
            self.report(BROKEN, "", f"this is {self.origin}; the origin of a log here ends in {self.ending}")
        for place, origin in self.started:
            if self.origin and origin != self.origin:
                self.report(BROKEN, place, f"it starts {origin}, but this is {self.origin}")
        for name, index, commitment in self.erased:
            if not self.erasures & {(index, commitment), (index, "")}:
                self.report(INCOMPLETE, name, f"it is erased, and no erasure entry says so of entry {index}")
        for kind, (place, entries, total) in self.unlogged.items():
            what, grade = ("let through", INCOMPLETE) if kind == "gap" else ("denied", OK)
            more = f", and {entries - 1} later entries" if entries > 1 else ""
            self.report(grade, f"{place}{more}", f"the log itself says that {total} actions were {what} unlogged")

    def _compare_tiles(self) -> None:
        """Every file that is there, also those that no reader of the newest checkpoint needs."""
        for (kind, number), widths in sorted(self.files.items()):
            for width in sorted(width for width in widths if self._width_now(kind, number, width) == width):
                place, first = tile_path(kind, number, width), number * TILE_WIDTH
                if kind == "entries":
                    level, actual = 0, b"".join(map(leaf_hash, self._bundle(place, width)))
                else:
                    level, actual = 8 * int(kind), self._read(place, HASH_BYTES * TILE_WIDTH)
                expected = self.tree.hashes(level, first, width) if level < len(self.tree.levels) else b""
                pairs = [
                    (actual[i : i + HASH_BYTES], expected[i : i + HASH_BYTES])
                    for i in range(0, len(actual), HASH_BYTES)
                ]
                differing = (n for n, (one, other) in enumerate(pairs) if one != other)
                if len(expected) < HASH_BYTES * width:
                    self.report(BROKEN, place, f"it reaches beyond the {self.tree.size} entries that can be read")
                elif len(actual) != len(expected):
                    self.report(BROKEN, place, f"it does not have {width} hashes")
                elif actual != expected:
                    index = (first + next(differing)) << level
                    self.report(BROKEN, place, f"it is not what the entries give: it differs at entry {index}")

    def _files_of(self, size: int) -> None:
        """What a reader of the published checkpoint asks for."""
        for kind in ("entries", *map(str, range(8))):
            count = size >> (0 if kind == "entries" else 8 * int(kind))
            for number in range(-(-count // TILE_WIDTH)):
                place = tile_path(kind, number, min(TILE_WIDTH, count - number * TILE_WIDTH))
                if not any((self.folder / path).is_file() for path in (place, tile_path(kind, number, TILE_WIDTH))):
                    self.report(BROKEN, place, "it is missing; readers of the checkpoint need it")

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether the entries give the root of a checkpoint."""
        holds = checkpoint.size <= self.tree.size and checkpoint.root == self.tree.root(checkpoint.size)
        self.sound_size = max(self.sound_size, checkpoint.size if holds else 0)
        return holds

    def _why(self, checkpoint: Checkpoint) -> str:
        if checkpoint.size > self.tree.size:
            return f"size {checkpoint.size} was signed, but {self.tree.size} entries can be read: cut or rolled back"
        return f"the entries do not give the root that was signed for size {checkpoint.size}"

    def check_since(self, checkpoint: Checkpoint) -> None:
        """A checkpoint from outside: the log has to go on from it."""
        try:
            checkpoint.check(self.keys)
            demand(self.holds(checkpoint), self._why(checkpoint))
            self.anchors[checkpoint.place] = checkpoint.size
        except MalformedError as error:
            self.report(
                BROKEN, f"against {checkpoint.place}", f"{error}; the log was changed, or the key, or this file"
            )


# --- all logs of a directory ------------------------------------------------------------------------------------------


def is_log(folder: Path) -> bool:
    """Whether a folder is a log, or a public copy of one."""
    return any((folder / name).exists() for name in ("wal", "tile", "checkpoint"))


def numbered(folder: Path) -> list[Path]:
    """Its subfolders with decimal names, in order."""
    found = [path for path in folder.glob("*") if re.fullmatch("0|[1-9][0-9]{0,8}", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def read_directory(folder: Path, keys: list[Key]) -> list[Log]:
    """Every log of a directory, each checked by itself and then against what the others saw of it."""
    slots = [folder] if is_log(folder) else [path for path in numbered(folder) if is_log(path)]
    if not slots:
        raise UnusableError(f"{folder}: no log is here, nor in its numbered subfolders")
    newest, logs = list[Log](), list[Log]()
    for slot in slots:
        census, label = Census(), "" if slot == folder else f"{slot.name}/"
        epochs = numbered(slot / "epochs")
        # Numbers in the origin keep logs from changing places. A single log has none before its first rotation.
        after = str(int(epochs[-1].name) + 1) if epochs else "[1-9][0-9]*" if label else ""
        of_slot = [Log(path, f"{label}epochs/{path.name}/", keys, census, _ending(label, path.name)) for path in epochs]
        of_slot.append(Log(slot, label, keys, census, _ending(label, after)))
        for number, log in enumerate(of_slot):
            log.verify()
            if number and log.first_kind not in ("epoch", ""):
                log.report(BROKEN, "entry 0", "an epoch begins with an entry that names the one before")
        for producer, first, last, place in census.unexplained():
            of_slot[-1].report(
                INCOMPLETE, place, f"numbers {first}..{last} of producer {producer} are missing before it"
            )
        newest.append(of_slot[-1])
        logs += of_slot
    by_origin = dict[str, Log]()
    for log in logs:
        other = by_origin.setdefault(log.origin, log)
        if other is not log and log.origin:
            log.report(BROKEN, "", f"{other.label or './'} is {log.origin} too: one is a copy")
    _compare(by_origin, newest, whole=slots != [folder])
    return logs


def _ending(label: str, epoch: str) -> str:
    if label:
        return f"/{label}{epoch}"
    return f"/{epoch}" if epoch not in ("", "1") else ""


def _compare(by_origin: dict[str, Log], newest: list[Log], *, whole: bool) -> None:
    """What the logs saw of each other; with the whole audit directory at hand, one that is gone shows."""
    for log in newest:
        for place, what, origin, size, root in log.census.seen:
            other, text = by_origin.get(origin), f"it saw {what}, {origin}, with {size} entries"
            if other is None and what == "the epoch before":
                log.report(INCOMPLETE, place, f"{text}; it is not here")
            elif other is None and whole and size:
                log.report(BROKEN, place, f"{text}; it is gone")
            elif other and size > other.tree.size:
                log.report(BROKEN, place, f"{text}; now it has {other.tree.size}: cut or rolled back")
            elif other and root != other.tree.root(size):
                log.report(BROKEN, place, f"{text}; those are not the ones that it has now")


def parse_proof(path: Path) -> tuple[int, list[bytes], Checkpoint]:
    """Index, hashes and checkpoint of a proof file as C2SP tlog-proof has it."""
    head, _, note = read(path, NOTE_BYTES_MAX).partition(b"\n\n")
    form = r"c2sp\.org/tlog-proof@v1\n(?:extra [A-Za-z0-9+/=]+\n)?index (0|[1-9][0-9]{0,18})((?:\n[^\n]+)*)"
    found = re.fullmatch(form, head.decode(errors="replace"))
    demand(found, "it is not a proof file: c2sp.org/tlog-proof@v1, index, hashes, an empty line, a checkpoint")
    assert found  # noqa: S101 - said to the type checker; `demand` has just made sure
    return int(found[1]), [unbase64(line, HASH_BYTES) for line in found[2].split()], Checkpoint.parse(str(path), note)


def verdict(log: Log) -> tuple[int, list[str]]:
    """The exit code of one log, and its verdicts as lines."""
    size, sound, anchored = log.tree.size, log.sound_size, max(log.anchors.values(), default=0)
    grades = log.grades
    signed = (
        f"entries 0..{sound - 1} give the signed root of size {sound}" if sound else "no entry is under a signed root"
    )
    broken = f"BROKEN ({grades[BROKEN]} findings); what still holds"
    integrity = f"{broken if grades[BROKEN] else 'holds'}: {signed}"
    complete = f"INCOMPLETE ({grades[INCOMPLETE]} findings)" if grades[INCOMPLETE] else "holds"
    waiting = len(log.census.awaiting)
    by = ", ".join(f"{name} (size {count})" for name, count in sorted(log.anchors.items()))
    lines = [
        f"{log.label or './'} {log.origin}: {size} entries",
        f"  integrity     {integrity}",
        f"  completeness  {complete}; {len(log.census.last)} producers; {waiting} actions await an outcome",
        f"  anchored      0..{anchored - 1} by {by}"
        if anchored
        else "  anchored      nothing: no --since, no cosignature",
    ]
    if size > anchored:
        lines.append(
            f"  unanchored    {anchored}..{size - 1}: whoever holds the key can have rewritten or cut this tail"
        )
    if size > sound:
        lines.append(f"  unsigned      {sound}..{size - 1}: under no signed root that holds")
    code = BROKEN if grades[BROKEN] else INCOMPLETE if grades[INCOMPLETE] or size > sound else OK
    return code, lines


def given_keys(texts: list[str]) -> list[Key]:
    """From the command line: keys as they are, or files with one in each line."""
    keys = list[Key]()
    for text in texts:
        try:
            is_key = re.fullmatch(r"[^\s+]+\+[0-9a-f]{8}\+\S+", text)
            lines = text if is_key else read(Path(text), NOTE_BYTES_MAX).decode(errors="replace")
            keys += [Key.parse(line) for line in lines.split("\n") if line]
        except MalformedError as error:
            raise UnusableError(f"key {text}: {error}") from None
    return keys


def state(folder: Path) -> list[tuple[str, int, int]]:
    """What changes when a log is written: its checkpoints, its epochs and its segments."""
    patterns = ("checkpoint", "verifier.pub", "epochs/*", "wal/*.seg")
    found = list[tuple[str, int, int]]()
    for path in sorted(path for slot in (folder, *numbered(folder)) for name in patterns for path in slot.glob(name)):
        try:
            seen = path.stat()
            found.append((str(path), seen.st_size, seen.st_mtime_ns))
        except OSError:
            found.append((str(path), -1, -1))
    return found


def examine(folder: Path, keys: list[Key], since: list[Path]) -> list[Log]:
    """Reads all; where the logs are being written, again, because what was read did not stand there at one time.

    What is found in a log that did not change meanwhile counts, and what is found each time.
    """
    lasting: set[tuple[int, str, str]] | None = None
    logs = list[Log]()
    for left in reversed(range(PASSES_MAX)):
        before = state(folder)
        try:
            logs = examine_once(folder, keys, since)
        except UnusableError:
            if left and state(folder) != before:
                continue
            raise
        found = set[tuple[int, str, str]]().union(*(log.lasting() for log in logs))
        if not found or state(folder) == before:
            return logs
        lasting = found if lasting is None else lasting & found
    for log in logs:
        log.keep(lasting or set())
    return logs


def examine_once(folder: Path, keys: list[Key], since: list[Path]) -> list[Log]:
    """Every log, and what the checkpoints from outside say of them."""
    outside = list[Checkpoint]()
    for path in since:
        try:
            outside.append(Checkpoint.parse(str(path), read(path, NOTE_BYTES_MAX)))
        except MalformedError as error:
            raise UnusableError(f"{path}: {error}") from None
    logs = read_directory(folder, keys)
    for checkpoint in outside:
        found = [log for log in logs if log.origin == checkpoint.origin]
        if not found:
            text = f"no log of {checkpoint.origin} is here, though {checkpoint.place} is its checkpoint"
            logs[-1].report(BROKEN, "", text)
        for log in found:
            log.check_since(checkpoint)
    return logs


def run(options: argparse.Namespace) -> tuple[int, list[str]]:
    """The whole job; returns the exit code and what to print."""
    keys, folder = given_keys(options.key), options.directory
    if options.proof or options.entry:
        keys = keys or given_keys([str(folder / "verifier.pub")] if folder else [])
        if not options.proof or not options.entry or not keys:
            raise UnusableError("a proof is checked with --proof, --entry and --key (or DIR with its verifier.pub)")
        try:
            index, hashes, checkpoint = parse_proof(options.proof)
            checkpoint.check(keys)
            leaf = leaf_hash(read(options.entry, 0xFFFF))
            leads = root_by_inclusion(leaf, index, checkpoint.size, hashes) == checkpoint.root
            demand(leads, "the proof does not lead from this entry to the signed root")
        except MalformedError as error:
            return BROKEN, [f"broken: {options.proof}: {error}"]
        return OK, [f"this is entry {index} of {checkpoint.origin} at size {checkpoint.size}"]
    if folder is None or not folder.is_dir():
        raise UnusableError(f"{folder}: not a directory")
    logs = examine(folder, keys, options.since)
    verdicts = [verdict(log) for log in logs]
    code = max(code for code, _ in verdicts)
    grades = sum((log.grades for log in logs), Counter[int]())
    counts = ", ".join(f"{grades[grade]} {GRADES[grade]}" for grade in sorted(grades, reverse=True)) or "none"
    lines = [f"{VERDICTS[code]}: {sum(log.tree.size for log in logs)} entries, {len(logs)} logs; findings: {counts}"]
    lines += [line for _, of_log in verdicts for line in of_log]
    findings = sorted((finding for log in logs for finding in log.findings), key=lambda finding: -finding[0])
    lines += [f"  {GRADES[grade]}: {place}: {text}" for grade, place, text in findings[:FINDINGS_SHOWN_MAX]]
    if grades.total() > FINDINGS_SHOWN_MAX:
        lines.append(f"  and {grades.total() - FINDINGS_SHOWN_MAX} more findings")
    if not keys:
        lines.append("the keys are those beside the logs; give --key to rule out that both were replaced")
    return code, lines


def main(arguments: list[str] | None = None) -> int:
    """Prints the verdicts and returns the exit code."""
    parser = argparse.ArgumentParser(description="Verifies an audit log of Tollkeeper.")
    parser.add_argument("directory", type=Path, nargs="?", metavar="DIR")
    parser.add_argument("--key", action="append", default=[], metavar="VKEY_OR_FILE")
    parser.add_argument("--since", action="append", default=[], type=Path, metavar="CHECKPOINT_FILE")
    parser.add_argument("--proof", type=Path, metavar="FILE")
    parser.add_argument("--entry", type=Path, metavar="FILE")
    try:
        code, lines = run(parser.parse_args(arguments))
    except (UnusableError, OSError) as error:
        code, lines = UNUSABLE, [f"unusable: {error}"]
    for line in lines:
        # Names and entries come from files: a terminal prints them and does not obey them.
        sys.stdout.write("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
