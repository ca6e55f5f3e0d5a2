"""Verifies an audit log of Tollkeeper: one file, to be read in one sitting before it is trusted.

    python verify_log.py DIR [--key VKEY_OR_FILE]... [--since CHECKPOINT_FILE]...
    python verify_log.py [DIR] --proof FILE --entry FILE [--key VKEY_OR_FILE]

DIR is a copy of one log, or of an audit directory with a log per process slot (0, 1, ..). A public copy without ``wal``
will do. The log is an RFC 6962 tree in C2SP tlog-tiles with signed checkpoints. This file shares no code with what
writes the log and trusts nothing in it: every root is computed again from the entries. It needs Python and, for
Ed25519 only, the package `cryptography`. It writes nothing, and it does not read ``ring``: what is there is in no log
yet.

Three verdicts for each log (an epoch of a slot is one), then what was found, each with its place:

integrity     Do bundles, tiles, write-ahead segments, payloads and signed checkpoints all tell the same story?
completeness  Is every number of every producer there, or named as lost by a later recovery? Is each log there that
              another one saw when it started, and each epoch that a later one names? Decisions without an outcome are
              counted and decide nothing: they may be running.
anchored      What stands by something from outside: a checkpoint given by ``--since``, or a cosignature by a witness
              whose key is given by ``--key``. Whoever holds the log's own key can write everything after that anew, and
              roll the log back to any earlier signed state. Without an anchor neither shows.

Exit code: 0 all hold and every entry is under a signed checkpoint; 1 intact, but incomplete or with a tail that no
checkpoint signs; 2 the input cannot be used; 3 broken. Without ``--key`` the key is the one in ``verifier.pub``, which
whoever replaces the log replaces too: keep a copy elsewhere and give it.
"""

import argparse
import base64
import binascii
import json
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

OK: Final = 0
INCOMPLETE: Final = 1
UNUSABLE: Final = 2
BROKEN: Final = 3

HASH_BYTES: Final = 32
TILE_WIDTH: Final = 256
BUNDLE_BYTES_MAX: Final = TILE_WIDTH * (2 + 0xFFFF)
# A note is some lines; the history of a log that signs once a second for a year is 8 GB and then cut by an epoch.
NOTE_BYTES_MAX: Final = 1 << 20
HISTORY_BYTES_MAX: Final = 1 << 34
SEGMENT_BYTES_MAX: Final = 1 << 32
FINDINGS_SHOWN_MAX: Final = 20
FINDINGS_MAX: Final = 1_000
INDEX_MAX: Final = (1 << 63) - 1
LOG_KEY: Final = 1
WITNESS_KEY: Final = 4

SEGMENT_HEADER: Final = struct.Struct("<8sIIQQ24sII")
FRAME_HEADER: Final = struct.Struct("<4sIQIIIIQQqQ32s")
FRAME_TRAILER: Final = struct.Struct("<32sI4s")
PAYLOAD_HEADER: Final = struct.Struct("<IIII32s")
ALIGNMENT: Final = 8
ENVELOPE: Final = ("v", "kind", "producer", "seq", "time")


class MalformedError(Exception):
    """Bytes that no log of this form holds; the message is a sentence without the place."""


class UnusableError(Exception):
    """What the caller gave cannot be used."""


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
        self.levels = [bytearray()]
        self.size = 0

    def append(self, leaf: bytes) -> None:
        """Adds the hash of the next entry."""
        self.size += 1
        self.levels[0] += leaf
        level = 0
        while not (self.size >> level) & 1:
            above = sha256(b"\1" + self.levels[level][-2 * HASH_BYTES :]).digest()
            level += 1
            if level == len(self.levels):
                self.levels.append(bytearray())
            self.levels[level] += above

    def hashes(self, level: int, first: int, count: int) -> bytes:
        """The hashes of that many subtrees of 2**level leaves, fewer where the tree ends."""
        return bytes(self.levels[level][HASH_BYTES * first : HASH_BYTES * (first + count)]) if self.deep(level) else b""

    def deep(self, level: int) -> bool:
        """Whether a subtree of that level is complete."""
        return level < len(self.levels)

    def root(self, size: int) -> bytes:
        """The root when the tree had that many leaves."""
        root = b""
        for level in range(size.bit_length()):
            if (size >> level) & 1:
                left = self.hashes(level, (size >> level) - 1, 1)
                root = node_hash(left, root) if root else left
        return root or sha256().digest()


def root_by_inclusion(leaf: bytes, index: int, size: int, proof: Iterable[bytes]) -> bytes:
    """The root that a proof leads to from a leaf (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        raise MalformedError(f"index {index} is not below the size, {size}")
    position, last, root = index, size - 1, leaf
    for sibling in proof:
        if len(sibling) != HASH_BYTES or len(leaf) != HASH_BYTES:
            raise MalformedError("a hash is not 32 bytes long")
        if last == 0:
            raise MalformedError("the proof is too long")
        if position & 1 or position == last:
            root = node_hash(sibling, root)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise MalformedError("the proof is too short")
    return root


def verify_consistency(size: int, later_size: int, root: bytes, later_root: bytes, proof: list[bytes]) -> None:
    """For who holds two checkpoints and a proof but no log: the later tree goes on from the earlier (2.1.4.2)."""
    if not 0 < size <= later_size:
        raise MalformedError(f"nothing leads from size {size} to size {later_size}")
    if size == later_size:
        if proof or root != later_root:
            raise MalformedError("the sizes are equal, so the proof has to be empty and the roots the same")
        return
    if any(len(item) != HASH_BYTES for item in (root, later_root, *proof)):
        raise MalformedError("a hash is not 32 bytes long")
    path = list(proof) if size & (size - 1) else [root, *proof]
    position, last = size - 1, later_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    if not path:
        raise MalformedError("the proof is too short")
    early = late = path[0]
    for item in path[1:]:
        if last == 0:
            raise MalformedError("the proof is too long")
        if position & 1 or position == last:
            early, late = node_hash(item, early), node_hash(item, late)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            late = node_hash(late, item)
        position, last = position >> 1, last >> 1
    if last or early != root or late != later_root:
        raise MalformedError("the proof does not lead from one root to the other")


# --- signed notes: C2SP signed-note, tlog-checkpoint, tlog-cosignature ------------------------------------------------


def unbase64(text: str, length: int | None = None) -> bytes:
    """Standard base64 in its one canonical spelling."""
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        value = b""
    if not value or base64.b64encode(value).decode() != text or (length is not None and len(value) != length):
        raise MalformedError("that is not base64" + (f" of {length} bytes" if length else ""))
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
        found = re.fullmatch(r"([^\s+]+)\+([0-9a-f]{8})\+(\S+)", text)
        if not found:
            raise MalformedError("that is not a verifier key, NAME+HEX+BASE64")
        value = unbase64(found[3], 1 + HASH_BYTES)
        key = cls(found[1], value[0], value[1:])
        if key.kind not in (LOG_KEY, WITNESS_KEY):
            raise MalformedError(f"keys of type {key.kind} are not read here, only Ed25519: 1 of a log, 4 of a witness")
        if key.number.hex() != found[2]:
            raise MalformedError("the number in the verifier key does not belong to it")
        return key

    def under(self, origin: str) -> "Key":
        """The same key as it signs for another slot or epoch: those are numbers at the end of the name."""
        end = re.compile(r"(/[0-9]+)*\Z")
        same = self.kind == LOG_KEY and end.split(self.name, 1)[0] == end.split(origin, 1)[0]
        return replace(self, name=origin) if same else self


def ed25519_holds(key: Key, signature: bytes, message: bytes) -> bool:
    """The one thing that is not in the standard library."""
    try:
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - most of this file works without
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - the same
    except ImportError:
        raise UnusableError("signatures need the package cryptography: pip install cryptography") from None
    try:
        Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message)
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
        try:
            text, separator, lines = note.decode().rpartition("\n\n")
        except UnicodeDecodeError:
            raise MalformedError("a checkpoint is UTF-8") from None
        body = text.split("\n")
        if not separator or len(body) != 3 or not lines.endswith("\n"):  # noqa: PLR2004 - origin, size, root
            raise MalformedError("a checkpoint is origin, size, root, an empty line and signature lines")
        if not body[0].isprintable() or not body[0]:
            raise MalformedError("the origin is empty or does not print")
        if not re.fullmatch("0|[1-9][0-9]{0,18}", body[1]) or int(body[1]) > INDEX_MAX:
            raise MalformedError("the second line is not a size")
        signatures = []
        for line in lines[:-1].split("\n"):
            found = re.fullmatch(r"— ([^\s+]+) (\S+)", line)
            if not found:
                raise MalformedError("a line after the empty one is not a signature line")
            signatures.append((found[1], unbase64(found[2])))
        return cls(place, body[0], int(body[1]), unbase64(body[2], HASH_BYTES), f"{text}\n".encode(), tuple(signatures))

    def check(self, keys: Iterable[Key]) -> list[str]:
        """Names the witnesses that cosigned; raises unless a key of the log signed, or where a known one did not."""
        known = {(key.name, key.number): key for key in (key.under(self.origin) for key in keys)}
        signed, witnesses = False, []
        for name, value in self.signatures:
            key = known.get((name, value[:4]))
            if key is None:
                continue  # strangers may sign too: that is how witnesses and new keys arrive
            signature, message = value[4:], self.text
            if key.kind == WITNESS_KEY:
                time = int.from_bytes(signature[:8], "big")
                signature, message = signature[8:], b"cosignature/v1\ntime %d\n" % time + self.text
                witnesses.append(name)
            if not ed25519_holds(key, signature, message):
                raise MalformedError(f"the signature of {name} is not one over this text")
            signed |= key.kind == LOG_KEY and name == self.origin
        if not signed:
            raise MalformedError(f"no known key of {self.origin} signed it")
        return witnesses


# --- files ------------------------------------------------------------------------------------------------------------


def read(path: Path, bytes_max: int) -> bytes:
    """A file, never a pipe or a device, and never more than was expected."""
    try:
        if not path.is_file():
            raise MalformedError("there is no such file")
        if path.stat().st_size > bytes_max:
            raise MalformedError(f"it is larger than the {bytes_max} bytes that are possible")
        return path.read_bytes()
    except OSError as error:
        raise MalformedError(f"it cannot be read: {error.strerror}") from None


def tile_path(kind: str, number: int, width: int) -> str:
    """Where C2SP puts a tile (kind: its level) or a bundle (kind: entries)."""
    groups = [f"{number % 1000:03}"]
    while number := number // 1000:
        groups.insert(0, f"x{number % 1000:03}")
    return f"tile/{kind}/{'/'.join(groups)}" + (f".p/{width}" if width < TILE_WIDTH else "")


def parse_bundle(data: bytes, count: int) -> list[bytes]:
    """So many entries, each behind its length in two bytes, and nothing after them."""
    entries, offset = [], 0
    for number in range(count):
        end = offset + 2 + int.from_bytes(data[offset : offset + 2], "big")
        if end > len(data) or offset + 2 > len(data):
            raise MalformedError(f"it ends inside entry {number} of its {count}")
        entries.append(data[offset + 2 : end])
        offset = end
    if offset != len(data):
        raise MalformedError(f"{len(data) - offset} bytes follow the last of its {count} entries")
    return entries


def _crc32c_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [(value >> 1) ^ (0x82F63B78 * (value & 1)) for value in table]
    return table


_CRC32C: Final = _crc32c_table()


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum: it finds torn writes, not forgeries."""
    table, value = _CRC32C, 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 255] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


@dataclass(frozen=True)
class Frame:
    """One batch of a write-ahead segment."""

    first: int
    entries: list[bytes]
    payloads: list[tuple[int, bytes | None]]
    """The number of the entry in the frame; salt and payload, or None where they were erased."""
    previous_root: bytes
    new_root: bytes
    end: int

    @classmethod
    def parse(cls, data: bytes, start: int, first: int) -> "Frame":
        """The frame that begins there and whose first entry has that index."""
        if len(data) - start < FRAME_HEADER.size + FRAME_TRAILER.size:
            raise MalformedError("the file ends inside a frame")
        magic, flags, index, count, entries_bytes, payload_bytes, reserved, _, _, _, reserved_too, previous_root = (
            FRAME_HEADER.unpack_from(data, start)
        )
        entries_start = start + FRAME_HEADER.size
        payloads_start = entries_start + entries_bytes
        trailer_start = payloads_start + payload_bytes
        end = trailer_start + FRAME_TRAILER.size
        if magic != b"TKF1" or end > len(data):
            raise MalformedError("no frame begins here, or the file ends inside it")
        new_root, checksum, end_magic = FRAME_TRAILER.unpack_from(data, trailer_start)
        if end_magic != b"TKFE" or crc32c(data[start:payloads_start] + new_root) != checksum:
            raise MalformedError("the checksum of the frame does not hold")
        if flags or reserved or reserved_too or not count or index != first:
            raise MalformedError(f"the frame should begin with entry {first} and have no flags")
        padding = data[end : end + -end % ALIGNMENT]
        if padding.strip(b"\0"):
            raise MalformedError("the padding after the frame is not zero")
        entries = parse_bundle(data[entries_start:payloads_start], count)
        payloads = cls._payloads(data[payloads_start:trailer_start], count)
        return cls(first, entries, payloads, previous_root, new_root, end + len(padding))

    @staticmethod
    def _payloads(data: bytes, count: int) -> list[tuple[int, bytes | None]]:
        items, offset = [], 0
        while offset < len(data):
            if len(data) - offset < PAYLOAD_HEADER.size:
                raise MalformedError("the payloads of the frame end inside an item")
            number, length, flags, checksum, salt = PAYLOAD_HEADER.unpack_from(data, offset)
            offset += PAYLOAD_HEADER.size
            body = salt + data[offset : offset + length]
            offset += length
            if number >= count or offset > len(data) or flags not in (0, 1):
                raise MalformedError("a payload of the frame belongs to no entry, is cut or has unknown flags")
            if (checksum or body.strip(b"\0")) if flags else crc32c(body) != checksum:
                raise MalformedError(f"the payload of entry {number} of the frame is damaged or half erased")
            items.append((number, None if flags else body))
        return items


# --- entries ----------------------------------------------------------------------------------------------------------


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedError("a member of the entry stands twice")
    return members


def _no_constant(name: str) -> None:
    raise MalformedError(f"{name} is not JSON")


def parse_entry(data: bytes) -> dict[str, Any]:
    """An entry of version 1: its envelope checked, the members of its kind as they are."""
    try:
        entry = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise MalformedError("the entry is not JSON") from None
    if not isinstance(entry, dict) or tuple(entry)[: len(ENVELOPE)] != ENVELOPE or entry["v"] != 1:
        raise MalformedError(f"the entry is not an object that begins with {', '.join(ENVELOPE)}, of version 1")
    if type(entry["seq"]) is not int or not 0 < entry["seq"] <= INDEX_MAX or not isinstance(entry["kind"], str):
        raise MalformedError("seq or kind of the entry is not one")
    if not re.fullmatch(r"[0-9a-f]{16}(\.w)?", str(entry["producer"])):
        raise MalformedError("producer of the entry is not one")
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(entry["time"]), re.ASCII):
        raise MalformedError("time of the entry is not one")
    return entry


@dataclass(frozen=True)
class Claim:
    """What an entry says about another log: it had this root at this size."""

    place: str
    what: str
    origin: str
    size: int
    root: bytes

    @classmethod
    def parse(cls, place: str, what: str, members: Any) -> "Claim":
        """From the members origin, size and root."""
        members = members if isinstance(members, dict) else {}
        origin, size, root = (members.get(name) for name in ("origin", "size", "root"))
        if not isinstance(origin, str) or type(size) is not int or size < 0 or not isinstance(root, str):
            raise MalformedError(f"what it says of {what} has no origin, size and root")
        return cls(place, what, origin, size, unbase64(root, HASH_BYTES))


Report = Callable[[int, str, str], None]


@dataclass
class Census:
    """Who wrote what in one slot, through all its epochs, in order."""

    entries: int = 0
    foreign: list[tuple[str, str]] = field(default_factory=list)
    last: dict[str, int] = field(default_factory=dict)
    missing: list[tuple[str, int, int, int, str]] = field(default_factory=list)
    lost: list[tuple[str, int, int, int]] = field(default_factory=list)
    undecided: dict[str, str] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)
    claims: list[Claim] = field(default_factory=list)
    beheaded: bool = False
    """Whether an earlier epoch is not here, so that a producer may begin in the middle."""

    def take(self, data: bytes, place: str, report: Report) -> None:
        """The next entry of the slot."""
        self.entries += 1
        try:
            entry = parse_entry(data)
            self._number(entry["producer"], entry["seq"], place, report)
            self._kind(entry, place, report)
        except MalformedError as error:
            if len(self.foreign) < FINDINGS_MAX:
                self.foreign.append((place, str(error)))

    def _number(self, producer: str, number: int, place: str, report: Report) -> None:
        last = self.last.get(producer, number - 1 if self.beheaded else 0)
        if number <= last:
            report(INCOMPLETE, place, f"number {number} of producer {producer} comes again or late, after {last}")
        elif number > last + 1:
            self.missing.append((producer, last + 1, number - 1, self.entries, place))
        self.last[producer] = max(last, number)

    def _kind(self, entry: dict[str, Any], place: str, report: Report) -> None:
        kind = entry["kind"]
        if kind == "decision" and entry.get("decision") == "allow":
            self.undecided[str(entry.get("id"))] = place
        elif kind == "outcome":
            self.undecided.pop(str(entry.get("of")), None)
        elif kind == "erasure":
            self.erased.add(str(entry.get("commitment")))
        elif kind == "gap":
            report(
                INCOMPLETE, place, f"the log itself says that {entry.get('count')} actions were let through unlogged"
            )
        elif kind == "recovery":
            for pair in entry.get("lost", []):
                if not isinstance(pair, list) or [type(number) for number in pair] != [int, int]:
                    raise MalformedError("lost of the recovery entry is not pairs of numbers")
                self.lost.append((str(entry.get("of")), pair[0], pair[1], self.entries))
        elif kind == "start":
            self.claims += [Claim.parse(place, "a log beside it", item) for item in entry.get("siblings", [])]
        elif kind == "epoch":
            self.claims.append(Claim.parse(place, "the epoch before", entry))

    def unexplained(self) -> list[tuple[str, int, int, str]]:
        """The missing numbers that no later recovery names."""
        found = []
        for producer, first, last, when, place in self.missing:
            named = sorted((a, b) for who, a, b, later in self.lost if who == producer and later > when)
            for start, end in [*named, (last + 1, last + 1)]:
                if first < min(start, last + 1):
                    found.append((producer, first, min(start - 1, last), place))
                first = max(first, end + 1)
        return found


# --- one log ----------------------------------------------------------------------------------------------------------


class Log:
    """One epoch of one slot: reads it once from front to back and remembers what does not fit."""

    def __init__(self, folder: Path, label: str, keys: list[Key], census: Census) -> None:
        self.folder, self.label, self.keys, self.census = folder, label, keys, census
        self.tree = Tree()
        self.findings: list[tuple[int, str, str]] = []
        self.checkpoint: Checkpoint | None = None
        self.signed: list[Checkpoint] = []
        self.sound_size = 0
        """The largest signed size whose root came out."""
        self.anchors: dict[str, int] = {}
        self.files: dict[tuple[str, int], set[int]] = {}
        self.unread: list[tuple[str, bytes | None, int]] = []
        self.first_kind = ""

    def report(self, grade: int, place: str, text: str) -> None:
        """Remembers a finding."""
        if len(self.findings) < FINDINGS_MAX or grade == BROKEN:
            self.findings.append((grade, f"{self.label}{place}", text))

    @property
    def origin(self) -> str:
        """As its newest checkpoint says."""
        return max(self.signed, key=lambda item: item.size).origin if self.signed else ""

    def verify(self) -> None:
        """Everything that can be said from this folder alone."""
        self._keys()
        self._checkpoints()
        self._list_tiles()
        self._bundles()
        if (self.folder / "wal").is_dir():
            self._segments()
        self._compare_tiles()
        for checkpoint in self.signed:
            self.holds(checkpoint)
        if self.checkpoint:
            self._files_of(self.checkpoint.size)

    def _keys(self) -> None:
        path = self.folder / "verifier.pub"
        if not path.is_file():
            if not self.keys:
                raise UnusableError(f"{path}: not there, and no --key was given")
            return
        try:
            key = Key.parse(read(path, NOTE_BYTES_MAX).decode().removesuffix("\n"))
        except (MalformedError, UnicodeDecodeError) as error:
            self.report(BROKEN, "verifier.pub", str(error))
            return
        if self.keys and key not in [known.under(key.name) for known in self.keys]:
            self.report(BROKEN, "verifier.pub", f"this is not the key given by --key: {key.name}")
        self.keys = self.keys or [key]

    def _checkpoints(self) -> None:
        """Reads the history and the published one; what is signed by nobody known is not evidence."""
        history = self.folder / "checkpoints.log"
        blocks: list[tuple[str, bytes, int]] = []
        if history.is_file():
            notes = re.split(rb"(?:\A|(?<=\n))---\n", self._read("checkpoints.log", HISTORY_BYTES_MAX))
            blocks = [(f"checkpoints.log block {n}", note, INCOMPLETE) for n, note in enumerate(notes, 1) if note]
        if (self.folder / "checkpoint").is_file():
            blocks.append(("checkpoint", self._read("checkpoint", NOTE_BYTES_MAX), BROKEN))
        for place, note, grade in blocks:
            try:
                checkpoint = Checkpoint.parse(place, note)
                witnesses = checkpoint.check(self.keys)
            except MalformedError as error:
                self.report(grade, place, str(error))
                continue
            before = self.signed[-1] if self.signed else None
            self.signed.append(checkpoint)
            self.anchors.update((f"{name}'s cosignature in {place}", checkpoint.size) for name in witnesses)
            if grade == BROKEN:
                self.checkpoint = checkpoint
            if before and before.origin != checkpoint.origin:
                self.report(BROKEN, place, f"it is of {checkpoint.origin}, the one before of {before.origin}")
            if before and before.size > checkpoint.size:
                self.report(
                    INCOMPLETE, place, f"size {checkpoint.size} after size {before.size} was signed: rolled back"
                )
        if self.signed and not self.checkpoint and not (self.folder / "checkpoint").is_file():
            self.report(BROKEN, "checkpoint", "there is none, though the history has one")

    def _read(self, name: str, bytes_max: int) -> bytes:
        try:
            return read(self.folder / name, bytes_max)
        except MalformedError as error:
            self.report(BROKEN, name, str(error))
            return b""

    def _list_tiles(self) -> None:
        name_of = re.compile(r"tile/(entries|[0-9]{1,2})/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([0-9]{1,3}))?")
        for path in sorted((self.folder / "tile").rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_dir() and not path.is_symlink():
                continue
            found = name_of.fullmatch(name)
            number = int(found[2].replace("x", "").replace("/", "")) if found else 0
            width = int(found[3] or TILE_WIDTH) if found else 0
            if not found or not width or tile_path(found[1], number, width) != name:
                self.report(OK, name, "no reader looks here")
            else:
                self.files.setdefault((found[1], number), set()).add(width)

    def _take(self, entry: bytes, place: str) -> None:
        if not self.tree.size:
            found = re.match(rb'\{"v":1,"kind":"(\w+)"', entry)
            self.first_kind = found[1].decode() if found else ""
            self.census.beheaded |= self.first_kind == "epoch" and not self.census.entries
        self.census.take(entry, f"entry {self.tree.size} in {place}", self.report)
        self.tree.append(leaf_hash(entry))

    def _bundle(self, number: int, width: int) -> list[bytes] | None:
        place = tile_path("entries", number, width)
        try:
            return parse_bundle(read(self.folder / place, BUNDLE_BYTES_MAX), width)
        except MalformedError as error:
            self.report(BROKEN, place, str(error))
            return None

    def _bundles(self) -> None:
        number = 0
        while widths := self.files.get(("entries", number)):
            entries = self._bundle(number, max(widths))
            widths.discard(max(widths) if entries is not None else 0)
            for entry in entries or []:
                self._take(entry, tile_path("entries", number, len(entries or [])))
            if self.tree.size < TILE_WIDTH * (number := number + 1):
                return

    def _segments(self) -> None:
        paths = sorted(path for path in (self.folder / "wal").iterdir() if re.fullmatch(r"[0-9]{20}\.seg", path.name))
        bundled = self.tree.size
        owed = max([bundled, *(checkpoint.size for checkpoint in self.signed)])
        end = int(paths[0].stem) if paths else 0
        for path, later in zip(paths, [*paths[1:], None], strict=True):
            first, limit = int(path.stem), int(later.stem) if later else None
            place = f"wal/{path.name}"
            if first > end or first > self.tree.size:
                self.report(BROKEN, place, f"it begins with entry {first}; no segment has those from {end} on")
            if first > self.tree.size:
                return
            offset, end = 0, first
            try:
                data = read(path, SEGMENT_BYTES_MAX)
                self._segment_header(data, first)
                offset = SEGMENT_HEADER.size
                while data[offset : offset + 4].strip(b"\0"):
                    frame = Frame.parse(data, offset, end)
                    self._frame(frame, f"{place} byte {offset}", limit)
                    offset, end = frame.end, end + len(frame.entries)
                if data[offset:].strip(b"\0"):
                    raise MalformedError("bytes follow the last frame")  # noqa: TRY301 - one place for all of them
            except MalformedError as error:
                # A write that a crash tore is at the end of what counts, and nobody was told that it was there.
                torn = end >= owed if limit is None else end >= limit
                grade = (INCOMPLETE if limit is None else OK) if torn else BROKEN
                note = f"; entries from {end} on are lost if this was a crash" if grade == INCOMPLETE else ""
                self.report(grade, f"{place} byte {offset}", f"{error}{note}")
            end = end if limit is None else min(end, limit)
        if paths and end < bundled:
            self.report(BROKEN, "wal", f"its segments end with entry {end}, but there are bundles up to {bundled}")

    def _segment_header(self, data: bytes, first: int) -> None:
        if len(data) < SEGMENT_HEADER.size:
            raise MalformedError("the header of the segment is cut")
        magic, size, flags, index, length, origin, reserved, checksum = SEGMENT_HEADER.unpack_from(data)
        if magic != b"TKWAL001" or size != SEGMENT_HEADER.size or crc32c(data[: SEGMENT_HEADER.size - 4]) != checksum:
            raise MalformedError("the header of the segment does not hold")
        if flags or reserved or index != first or length != len(data):
            raise MalformedError("the header of the segment does not describe this file")
        if self.origin and origin != sha256(self.origin.encode()).digest()[: len(origin)]:
            raise MalformedError(f"the segment is not of {self.origin}")

    def _frame(self, frame: Frame, place: str, limit: int | None) -> None:
        """Its entries up to the limit; where a bundle has them too, they have to be the same."""
        if frame.previous_root != self.tree.root(frame.first):
            self.report(BROKEN, place, f"the frame does not follow the {frame.first} entries before it")
        for index, entry in enumerate(frame.entries, frame.first):
            if limit is not None and index >= limit:
                return
            if index == self.tree.size:
                self._take(entry, place)
            elif leaf_hash(entry) != self.tree.hashes(0, index, 1):
                self.report(BROKEN, f"entry {index} in {place}", "the bundle has another entry here")
        if frame.new_root != self.tree.root(frame.first + len(frame.entries)):
            self.report(BROKEN, place, "the root after the frame is not the one that it states")
        for number, body in frame.payloads:
            name, entry = f"payload of entry {frame.first + number} in {place}", frame.entries[number]
            if body is None:
                self.unread.append((name, entry, frame.first + number))
            elif b'"' + base64.b64encode(sha256(b"\2" + body).digest()) + b'"' not in entry:
                self.report(BROKEN, name, "the entry does not commit to it")

    def check_erasures(self) -> None:
        """Once every epoch is read: who erased also said so."""
        for name, entry, _ in self.unread:
            if entry and not any(f'"{commitment}"'.encode() in entry for commitment in self.census.erased):
                self.report(INCOMPLETE, name, "it is erased, and no erasure entry says so")

    def _compare_tiles(self) -> None:
        """Every file that is there, also those that no reader of the newest checkpoint needs."""
        for (kind, number), widths in sorted(self.files.items()):
            for width in sorted(widths):
                place = tile_path(kind, number, width)
                level, length = (0 if kind == "entries" else 8 * int(kind)), HASH_BYTES * width
                expected = self.tree.hashes(level, number * TILE_WIDTH, width)
                if kind == "entries":
                    actual = b"".join(map(leaf_hash, self._bundle(number, width) or []))
                else:
                    actual = self._read(place, HASH_BYTES * TILE_WIDTH)
                if len(expected) < length:
                    self.report(BROKEN, place, f"it reaches beyond the {self.tree.size} entries that can be read")
                elif actual != expected:
                    pairs = zip(range(0, length, HASH_BYTES), range(HASH_BYTES, length + 1, HASH_BYTES), strict=True)
                    wrong = next((start for start, end in pairs if actual[start:end] != expected[start:end]), length)
                    first = (number * TILE_WIDTH + wrong // HASH_BYTES) << level
                    what = "the number of hashes is wrong" if wrong == length else f"differs at entry {first}"
                    self.report(BROKEN, place, f"it is not what the entries give: {what}")

    def _files_of(self, size: int) -> None:
        """What a reader of the published checkpoint asks for."""
        for level in range(8):
            hashes = size >> (8 * level)
            for number in range((hashes + TILE_WIDTH - 1) // TILE_WIDTH):
                width = min(TILE_WIDTH, hashes - number * TILE_WIDTH)
                for kind in [str(level), "entries"] if level == 0 else [str(level)]:
                    path = self.folder / tile_path(kind, number, width)
                    if not path.is_file() and not (self.folder / tile_path(kind, number, TILE_WIDTH)).is_file():
                        self.report(BROKEN, tile_path(kind, number, width), "it is missing; the checkpoint needs it")

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether the entries give the root of a checkpoint."""
        size = checkpoint.size
        if size > self.tree.size:
            text = f"size {size} was signed, but only {self.tree.size} entries can be read: cut or rolled back"
        elif checkpoint.root != self.tree.root(size):
            text = f"the entries do not give the root that was signed for size {size}"
        else:
            self.sound_size = max(self.sound_size, size)
            return True
        self.report(BROKEN, checkpoint.place, text)
        return False


# --- all logs of a directory ------------------------------------------------------------------------------------------


def is_log(folder: Path) -> bool:
    """Whether a folder is a log, or a public copy of one."""
    return any((folder / name).is_dir() for name in ("wal", "tile")) or (folder / "checkpoint").is_file()


def numbered(folder: Path) -> list[Path]:
    """Its subfolders with decimal names, in order."""
    found = [path for path in folder.iterdir() if re.fullmatch("0|[1-9][0-9]{0,8}", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def read_directory(folder: Path, keys: list[Key]) -> list[Log]:
    """Every log of a directory, each read and checked by itself."""
    slots = [folder] if is_log(folder) else [path for path in numbered(folder) if is_log(path)]
    if not slots:
        raise UnusableError(f"{folder}: no log is here, nor in its numbered subfolders")
    logs = []
    for slot in slots:
        census = Census()
        prefix = "" if slot == folder else f"{slot.name}/"
        epochs = numbered(slot / "epochs") if (slot / "epochs").is_dir() else []
        labels = [(path, f"{prefix}epochs/{path.name}/") for path in epochs]
        of_slot = [Log(path, label, keys, census) for path, label in [*labels, (slot, prefix)]]
        for number, log in enumerate(of_slot):
            log.verify()
            if number and log.first_kind not in ("epoch", ""):
                log.report(BROKEN, "entry 0", "an epoch begins with an entry that names the one before")
        for log in of_slot:
            log.check_erasures()
        if [path.name for path in epochs] != [str(number) for number in range(1, len(epochs) + 1)]:
            of_slot[-1].report(INCOMPLETE, "epochs", f"only {', '.join(path.name for path in epochs)} are here")
        _complete(of_slot[-1], census)
        logs += of_slot
    _compare_claims(logs, whole=not is_log(folder))
    return logs


def _complete(log: Log, census: Census) -> None:
    """The findings of a slot's census go to its newest log."""
    if census.entries and len(census.foreign) == census.entries:
        log.report(INCOMPLETE, "", "no entry has the form of Tollkeeper, so nobody can say what is missing")
    else:
        for place, text in census.foreign:
            log.report(INCOMPLETE, place, text)
    for producer, first, last, place in census.unexplained():
        log.report(INCOMPLETE, place, f"numbers {first}..{last} of producer {producer} are missing before it")


def _compare_claims(logs: list[Log], *, whole: bool) -> None:
    """What each log says of the others; one that is gone shows here."""
    by_origin = {log.origin: log for log in logs}
    for census, log in {id(log.census): (log.census, log) for log in logs}.values():
        for claim in census.claims:
            other = by_origin.get(claim.origin)
            text = f"it saw {claim.what}, {claim.origin}, with {claim.size} entries"
            if other is None and claim.what == "the epoch before":
                log.report(INCOMPLETE, claim.place, f"{text}; it is not here")
            elif other is None and whole and claim.size:
                log.report(BROKEN, claim.place, f"{text}; it is gone")
            elif other and claim.size > other.tree.size:
                log.report(BROKEN, claim.place, f"{text}; now it has {other.tree.size}: cut or rolled back")
            elif other and claim.root != other.tree.root(claim.size):
                log.report(BROKEN, claim.place, f"{text}; those are not the ones that it has now")


def check_since(path: Path, logs: list[Log]) -> None:
    """A checkpoint from outside: the log has to go on from it."""
    try:
        checkpoint = Checkpoint.parse(str(path), read(path, NOTE_BYTES_MAX))
    except MalformedError as error:
        raise UnusableError(f"{path}: {error}") from None
    log = next((log for log in logs if log.origin == checkpoint.origin), None)
    if log is None:
        logs[-1].report(BROKEN, str(path), f"no log of {checkpoint.origin} is here, though it signed this")
        return
    try:
        checkpoint.check(log.keys)
    except MalformedError as error:
        log.report(BROKEN, str(path), f"{error}: it is not of this log, or the key of the log was replaced")
        return
    if log.holds(checkpoint):
        log.anchors[str(path)] = checkpoint.size


def check_proof(proof: Path, entry: Path, keys: list[Key]) -> str:
    """A proof file of C2SP tlog-proof, offline; returns what it proves."""
    data = read(proof, NOTE_BYTES_MAX)
    head, _, note = data.partition(b"\n\n")
    try:
        lines = head.decode().split("\n")
    except UnicodeDecodeError:
        raise MalformedError("a proof file begins with text") from None
    if lines[0] != "c2sp.org/tlog-proof@v1":
        raise MalformedError("line 1 is not c2sp.org/tlog-proof@v1")
    if len(lines) > 1 and lines[1].startswith("extra "):
        unbase64(lines.pop(1).removeprefix("extra "))
    found = re.fullmatch("index (0|[1-9][0-9]{0,18})", lines[1] if len(lines) > 1 else "")
    if not found:
        raise MalformedError("there is no line index N")
    hashes = [unbase64(line, HASH_BYTES) for line in lines[2:]]
    checkpoint = Checkpoint.parse(str(proof), note)
    checkpoint.check(keys)
    leaf = leaf_hash(read(entry, 0xFFFF))
    if root_by_inclusion(leaf, int(found[1]), checkpoint.size, hashes) != checkpoint.root:
        raise MalformedError("the proof does not lead from this entry to the signed root")
    return f"this is entry {found[1]} of {checkpoint.origin} at size {checkpoint.size}"


# --- verdicts ---------------------------------------------------------------------------------------------------------


def verdict(log: Log) -> tuple[int, list[str]]:
    """The exit code of one log, and its verdicts as lines."""
    size, sound = log.tree.size, log.sound_size
    grades = Counter(grade for grade, _, _ in log.findings)
    signed = (
        f"entries 0..{sound - 1} give the signed root of size {sound}" if sound else "no entry is under a signed root"
    )
    integrity = (
        f"BROKEN ({grades[BROKEN]} findings); what still holds: {signed}" if grades[BROKEN] else f"holds: {signed}"
    )
    waiting = len(log.census.undecided)
    complete = "INCOMPLETE, or not as it should be: see below" if grades[INCOMPLETE] else "holds"
    anchored = max(log.anchors.values(), default=0)
    by = ", ".join(f"{name} (size {count})" for name, count in sorted(log.anchors.items()))
    lines = [
        f"{log.label or './'} {log.origin or 'of no known origin'}: {size} entries",
        f"  integrity     {integrity}",
        f"  completeness  {complete}; {len(log.census.last)} producers; {waiting} allowed actions await an outcome",
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
    worst_first = sorted(log.findings, key=lambda finding: -finding[0])
    names = {OK: "remark", INCOMPLETE: "incomplete", BROKEN: "broken"}
    lines += [f"  {names[grade]}: {place}: {text}" for grade, place, text in worst_first[:FINDINGS_SHOWN_MAX]]
    if len(worst_first) > FINDINGS_SHOWN_MAX:
        lines.append(f"  and {len(worst_first) - FINDINGS_SHOWN_MAX} more findings")
    return code, lines


def given_keys(texts: list[str]) -> list[Key]:
    """From the command line: keys as they are, or files with one in each line."""
    keys = []
    for text in texts:
        try:
            lines = (
                [text]
                if re.fullmatch(r"[^\s+]+\+[0-9a-f]{8}\+\S+", text)
                else read(Path(text), NOTE_BYTES_MAX).decode()
            )
            keys += [Key.parse(line) for line in (lines if isinstance(lines, list) else lines.split("\n")) if line]
        except (MalformedError, ValueError) as error:
            raise UnusableError(f"--key {text}: {error}") from None
    return keys


def run(options: argparse.Namespace) -> tuple[int, list[str]]:
    """The whole job; returns the exit code and what to print."""
    keys, folder = given_keys(options.key), options.directory
    if options.proof or options.entry:
        if not keys and folder:
            keys = given_keys([str(folder / "verifier.pub")])
        if not options.proof or not options.entry or not keys:
            raise UnusableError("a proof is checked with --proof, --entry and --key (or DIR with its verifier.pub)")
        try:
            return OK, [check_proof(options.proof, options.entry, keys)]
        except MalformedError as error:
            return BROKEN, [f"broken: {options.proof}: {error}"]
    if folder is None or not folder.is_dir():
        raise UnusableError(f"{folder}: not a directory")
    logs = read_directory(folder, keys)
    for path in options.since:
        check_since(path, logs)
    code, lines = OK, list[str]()
    for log in logs:
        of_log, more = verdict(log)
        code, lines = max(code, of_log), lines + more
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
