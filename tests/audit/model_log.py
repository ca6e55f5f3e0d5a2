"""The audit log as a plain, slow writer: what the verifiers are tried on, and what the real writer is compared with.

It follows the words of the format and shares no code with the core or with a verifier: roots are computed by the
recursion of RFC 6962 over the whole list each time, checksums bit by bit. It knows no crash, no ring and no rotation of
keys, and it is for some thousand entries at most.
"""

import base64
import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ORIGIN = "example.com/gate"
PRODUCER = "00000000000000a1"
ERASED = object()
"""In the place of a payload: it was there, and then erased."""


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Merkle:
    """Hashes over ranges of leaves, by the definition; each complete subtree is computed once."""

    def __init__(self) -> None:
        self.leaves: list[bytes] = []
        self.known: dict[tuple[int, int], bytes] = {}

    def range(self, start: int, end: int) -> bytes:
        if end - start <= 1:
            return self.leaves[start] if end > start else sha256()
        if (start, end) not in self.known:
            middle = start + split(end - start)
            self.known[start, end] = sha256(b"\1", self.range(start, middle), self.range(middle, end))
        return self.known[start, end]

    def root(self, size: int) -> bytes:
        return self.range(0, size)

    def inclusion(self, index: int, start: int, end: int) -> list[bytes]:
        """From the leaf's sibling upwards."""
        if end - start == 1:
            return []
        middle = start + split(end - start)
        if index < middle:
            return [*self.inclusion(index, start, middle), self.range(middle, end)]
        return [*self.inclusion(index, middle, end), self.range(start, middle)]


def split(size: int) -> int:
    """The largest power of two below a size."""
    power = 1
    while power * 2 < size:
        power *= 2
    return power


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
    return value ^ 0xFFFFFFFF


def number_path(number: int) -> str:
    """1234067 is x001/x234/067."""
    text = f"{number:03}"
    text = text.zfill(-(-len(text) // 3) * 3)
    groups = [text[i : i + 3] for i in range(0, len(text), 3)]
    return "/".join([f"x{group}" for group in groups[:-1]] + groups[-1:])


class Signer:
    """An Ed25519 key made from a number, so that tests can be repeated."""

    def __init__(self, seed: int = 1) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.public = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def number(self, name: str, kind: int = 1) -> bytes:
        return sha256(name.encode(), b"\n", bytes([kind]), self.public)[:4]

    def verifier_key(self, name: str, kind: int = 1) -> str:
        return f"{name}+{self.number(name, kind).hex()}+{base64_of(bytes([kind]) + self.public)}"

    def line(self, name: str, text: str) -> str:
        return f"— {name} {base64_of(self.number(name) + self.private.sign(text.encode()))}\n"

    def checkpoint(self, origin: str, size: int, root: bytes) -> str:
        text = f"{origin}\n{size}\n{base64_of(root)}\n"
        return f"{text}\n{self.line(origin, text)}"

    def cosigned(self, name: str, note: str, time_seconds: int) -> str:
        """The note with one more line, by a witness."""
        text = note.rpartition("\n\n")[0] + "\n"
        signature = self.private.sign(f"cosignature/v1\ntime {time_seconds}\n{text}".encode())
        return f"{note}— {name} {base64_of(self.number(name, 4) + time_seconds.to_bytes(8, 'big') + signature)}\n"


@dataclass
class ModelLog:
    """One epoch of a log. ``append``, then ``flush`` for a frame, then ``publish`` for tiles and a checkpoint."""

    folder: Path
    origin: str = ORIGIN
    signer: Signer = field(default_factory=Signer)
    keep_partial: bool = True
    entries: list[bytes] = field(default_factory=list)
    payloads: dict[int, Any] = field(default_factory=dict)
    """Salt and bytes by index, or ERASED."""
    tree: Merkle = field(default_factory=Merkle)
    frames: list[tuple[Path, int, int]] = field(default_factory=list)
    """For each frame its segment, the byte where it ends there, and the entries up to and with it."""
    published: list[str] = field(default_factory=list)
    segment: bytearray = field(default_factory=bytearray)
    segment_first: int = 0
    flushed: int = 0

    def __post_init__(self) -> None:
        (self.folder / "wal").mkdir(parents=True)
        (self.folder / "verifier.pub").write_text(self.key + "\n")
        self.new_segment()

    @property
    def key(self) -> str:
        return self.signer.verifier_key(self.origin)

    @property
    def size(self) -> int:
        return len(self.entries)

    def append(self, entry: bytes, payload: Any = None) -> int:
        self.entries.append(entry)
        self.tree.leaves.append(sha256(b"\0", entry))
        if payload is not None:
            self.payloads[self.size - 1] = payload
        return self.size - 1

    # The write-ahead file.

    @property
    def segment_path(self) -> Path:
        return self.folder / "wal" / f"{self.segment_first:020}.seg"

    def new_segment(self, first: int | None = None) -> None:
        """The next segment; with an index below the end, what the one before has from there on does not count."""
        self.segment_first = self.flushed if first is None else first
        self.segment = bytearray(64)

    def flush(self) -> None:
        """One frame with everything since the last."""
        first, self.flushed = self.flushed, self.size
        self.segment += self.frame(first, self.entries[first:])
        self.frames.append((self.segment_path, len(self.segment), self.size))
        self.write_segment()

    def frame(self, first: int, entries: list[bytes]) -> bytes:
        body = b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)
        items = b"".join(
            self.item(index - first, self.payloads[index])
            for index in range(first, first + len(entries))
            if index in self.payloads
        )
        header = b"TKF1" + struct.pack("<IQIIIIQQqQ", 0, first, len(entries), len(body), len(items), 0, 0xA1, 7, 1, 0)
        header += self.tree.root(first)
        new_root = self.tree.root(first + len(entries))
        frame = header + body + items + new_root + struct.pack("<I", crc32c(header + body + new_root)) + b"TKFE"
        return frame + bytes(-len(frame) % 8)

    @staticmethod
    def item(number: int, payload: Any) -> bytes:
        if payload is ERASED:
            return struct.pack("<IIII", number, 9, 1, 0) + bytes(32 + 9)
        salt, data = payload
        return struct.pack("<IIII", number, len(data), 0, crc32c(salt + data)) + salt + data

    def write_segment(self) -> None:
        length = -(-len(self.segment) // 4096) * 4096
        origin = sha256(self.origin.encode())[:24]
        header = b"TKWAL001" + struct.pack("<IIQQ", 64, 0, self.segment_first, length) + origin + bytes(4)
        self.segment[:64] = header + struct.pack("<I", crc32c(header))
        self.segment_path.write_bytes(bytes(self.segment).ljust(length, b"\0"))

    # What everybody may read.

    def publish(self) -> str:
        """Cuts the tiles and signs a checkpoint over everything flushed."""
        size = self.flushed
        for name, data in self.tiles(size):
            path = self.folder / "tile" / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            if "." not in name and not self.keep_partial:
                shutil.rmtree(path.with_name(path.name + ".p"), ignore_errors=True)
        self.published.append(self.signer.checkpoint(self.origin, size, self.tree.root(size)))
        (self.folder / "checkpoint").write_text(self.published[-1])
        (self.folder / "checkpoints.log").write_text("---\n".join(self.published))
        return self.published[-1]

    def tiles(self, size: int) -> Iterator[tuple[str, bytes]]:
        """Every file of a tree of that size."""
        level = 0
        while (count := size >> 8 * level) > 0:
            for number in range(-(-count // 256)):
                width = min(256, count - 256 * number)
                end = number_path(number) + (f".p/{width}" if width < 256 else "")
                span = 1 << 8 * level
                first = 256 * number
                hashes = [self.tree.range(i * span, (i + 1) * span) for i in range(first, first + width)]
                yield f"{level}/{end}", b"".join(hashes)
                if level == 0:
                    entries = self.entries[first : first + width]
                    yield f"entries/{end}", b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)
            level += 1

    def proof(self, index: int, size: int | None = None, note: str | None = None) -> str:
        """A proof file for an entry under the newest checkpoint."""
        size = self.flushed if size is None else size
        hashes = "".join(base64_of(item) + "\n" for item in self.tree.inclusion(index, 0, size))
        return f"c2sp.org/tlog-proof@v1\nindex {index}\n{hashes}\n{note or self.published[-1]}"


# --- entries ----------------------------------------------------------------------------------------------------------


def commitment(payload: tuple[bytes, bytes]) -> str:
    salt, data = payload
    return base64_of(sha256(b"\2", salt, data))


def time_text(at_ms: int) -> str:
    seconds, milliseconds = divmod(at_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"2026-11-21T{hours % 24:02}:{minutes:02}:{seconds:02}.{milliseconds:03}Z"


@dataclass
class Entries:
    """Makes entries of version 1, with the numbers of their producers."""

    producer: str = PRODUCER
    numbers: dict[str, int] = field(default_factory=dict)
    made: int = 0

    def entry(self, kind: str, *, writer: bool = False, seq: int | None = None, **members: Any) -> bytes:
        producer = self.producer + (".w" if writer else "")
        seq = self.numbers.get(producer, 0) + 1 if seq is None else seq
        self.numbers[producer] = seq
        self.made += 1
        envelope = {"v": 1, "kind": kind, "producer": producer, "seq": seq, "time": time_text(17 * self.made)}
        return json.dumps(envelope | members, separators=(",", ":"), ensure_ascii=False).encode()

    def start(self, origin: str = ORIGIN, epoch: int = 1, siblings: list[dict[str, Any]] | None = None) -> bytes:
        return self.entry(
            "start",
            writer=True,
            origin=origin,
            epoch=epoch,
            pid=4711,
            host="gate-1",
            engine="0.1.0",
            siblings=siblings or [],
            exported=False,
        )

    def decision(self, number: int, payload: tuple[bytes, bytes], decision: str = "allow") -> bytes:
        return self.entry(
            "decision",
            id=f"{self.producer}-{number}",
            principal='Agent::"research"',
            run="r3",
            action='Action::"search"',
            resource=f'Document::"{number}"',
            tool="search",
            arguments={"bytes": len(payload[1]), "commitment": commitment(payload)},
            decision=decision,
            code="ok" if decision == "allow" else "policy.forbidden",
            policies={"limits.cedar:3": base64_of(sha256(b"policy"))},
            mode="enforce",
            bundle=base64_of(sha256(b"bundle")),
            engine="0.1.0",
        )

    def outcome(self, number: int) -> bytes:
        return self.entry("outcome", of=f"{self.producer}-{number}", status="ok", duration_ms=12)


def salted(number: int) -> tuple[bytes, bytes]:
    """A payload with its salt, the same each time."""
    return sha256(b"salt", str(number).encode()), json.dumps({"input": {"query": f"offer {number}"}}).encode()


def fill(log: ModelLog, count: int, *, batch: int = 40, every: int = 3, segment: int = 400) -> Entries:
    """Decisions with their outcomes until the log has so many entries: in batches, some published, in some segments."""
    entries = Entries()
    log.append(entries.start(log.origin))
    flushes = 0
    while log.size < count:
        number = log.size
        log.append(entries.decision(number, salted(number)), salted(number))
        if log.size < count:
            log.append(entries.outcome(number))
        if log.size - log.flushed >= batch:
            log.flush()
            flushes += 1
            if flushes % every == 0:
                log.publish()
            if log.flushed - log.segment_first >= segment:
                log.new_segment()
    if log.flushed < log.size:
        log.flush()
    log.publish()
    return entries


def copies(log: ModelLog, place: Path) -> Callable[[], Path]:
    """Makes a fresh copy of a log at each call."""
    made = iter(range(1 << 30))

    def copy() -> Path:
        return Path(shutil.copytree(log.folder, place / f"copy{next(made)}"))

    return copy
