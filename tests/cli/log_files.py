"""Writes logs for the tests of the command line: write-ahead segments with entries of any kind, and nothing signed.

Checksums and roots are as the format has them, computed the slow way. What needs a signature is tested on logs of the
real writer.
"""

import base64
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

PRODUCER = "00000000000000a1"


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
    return value ^ 0xFFFFFFFF


def root(leaves: list[bytes]) -> bytes:
    if len(leaves) <= 1:
        return leaves[0] if leaves else sha256()
    middle = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\1", root(leaves[:middle]), root(leaves[middle:]))


class LogFiles:
    """One log. ``add`` entries; each ``flush`` writes what there is so far as a frame."""

    def __init__(self, folder: Path, *, producer: str = PRODUCER, start_ms: int = 0) -> None:
        self.folder, self.producer = folder, producer
        self.time_ms = start_ms
        self.numbers: dict[str, int] = {}
        self.entries: list[bytes] = []
        self.payloads: dict[int, bytes] = {}
        self.erased: set[int] = set()
        self.flushed = 0
        self.segment = bytearray()
        (folder / "wal").mkdir(parents=True)
        self.flush()

    def time(self) -> str:
        self.time_ms += 1_017
        seconds, ms = divmod(self.time_ms, 1_000)
        return f"2026-11-21T{17 + seconds // 3_600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ms:03}Z"

    def add(self, kind: str, members: dict[str, Any], payload: bytes | None = None, **more: Any) -> int:
        """An entry with its envelope. A payload's commitment stands where ``...`` does, or in ``private``."""
        producer = self.producer + (".w" if kind in {"start", "stop", "recovery", "gap", "erasure", "epoch"} else "")
        self.numbers[producer] = self.numbers.get(producer, 0) + 1
        envelope = {"v": 1, "kind": kind, "producer": producer, "seq": self.numbers[producer], "time": self.time()}
        members = {**members, **more}
        if payload is not None:
            commitment = {"bytes": len(payload), "commitment": base64_of(sha256(b"\2", self.salt(), payload))}
            name = next((name for name, value in members.items() if value is ...), "private")
            members[name] = commitment
            self.payloads[len(self.entries)] = payload
        text = json.dumps({**envelope, **members}, separators=(",", ":"), ensure_ascii=False)
        return self.add_bytes(text.encode())

    def add_bytes(self, entry: bytes) -> int:
        self.entries.append(entry)
        return len(self.entries) - 1

    @staticmethod
    def salt() -> bytes:
        return b"s" * 32

    def flush(self) -> None:
        first, self.flushed = self.flushed, len(self.entries)
        if self.flushed > first:
            self.segment += self.frame(first)
        header = b"TKWAL001" + struct.pack("<IIQQ", 64, 0, 0, 1 << 20) + bytes(28)
        self.segment[:64] = header + struct.pack("<I", crc32c(header))
        file = self.folder / "wal" / f"{0:020}.seg"
        file.write_bytes(bytes(self.segment).ljust(1 << 20, b"\0"))

    def frame(self, first: int) -> bytes:
        entries = self.entries[first:]
        leaves = [sha256(b"\0", entry) for entry in self.entries]
        body = b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)
        items = b"".join(self.item(index, first) for index in self.payloads if index >= first)
        header = b"TKF1" + struct.pack(
            "<IQIIIIQQqQ", 0, first, len(entries), len(body), len(items), 0, int(self.producer, 16), 1, 1, 0
        )
        header += root(leaves[:first])
        new_root = root(leaves)
        frame = header + body + items + new_root + struct.pack("<I", crc32c(header + body + new_root)) + b"TKFE"
        return frame + bytes(-len(frame) % 8)

    def item(self, index: int, first: int) -> bytes:
        data = self.payloads[index]
        if index in self.erased:
            return struct.pack("<IIII", index - first, len(data), 1, 0) + bytes(32 + len(data))
        salt = self.salt()
        return struct.pack("<IIII", index - first, len(data), 0, crc32c(salt + data)) + salt + data


# --- a gate's logs ----------------------------------------------------------------------------------------------------

POLICIES = """\
@id("readers")
permit(principal in Team::"ops", action == Action::"search", resource);

@id("mail-inside")
permit(principal, action == Action::"send_email", resource)
when { context.input.to like "*@example.com" };

@id("no-secrets") // stays; even inside
@reason("What was seen may not leave; ask a person")
forbid(principal, action == Action::"send_email", resource)
when { context.session.labels.contains("secret") };

@id("models")
permit(principal, action == Action::"call_model", resource);
"""
ENTITIES = (
    """[{"uid": {"type": "Agent", "id": "researcher"}, "attrs": {}, "parents": [{"type": "Team", "id": "ops"}]}]"""
)
BUNDLE: dict[str, Any] = {
    "policies": [["policies/mail.cedar", POLICIES]],
    "schema": None,
    "entities": ["entities.json", ENTITIES],
    "tools": [
        {"name": "search", "resource": 'Mcp::"web"', "schema": None, "paths": [], "cost": None},
        {"name": "send_email", "resource": 'Mcp::"gmail"', "schema": None, "paths": [], "cost": {"requests": 1}},
    ],
    "mode": "enforce",
    "on_error": "deny",
    "unguarded_forbid": "refuse",
    "engine": "0.1.0",
}
RESEARCHER = {"principal": 'Agent::"researcher"', "on_behalf_of": 'User::"ann"', "session": "s-42", "run": "r1"}
HOSTILE = "\x1b[2J\u202eevil\x9b0m\u200b"


def bundle(directory: Path, document: dict[str, Any] | None = None) -> str:
    """Keeps a bundle as a gate does, and returns its digest."""
    data = json.dumps(BUNDLE if document is None else document).encode()
    name = base64.urlsafe_b64encode(sha256(data)).decode().rstrip("=")
    (directory / "bundle").mkdir(parents=True, exist_ok=True)
    (directory / "bundle" / f"{name}.json").write_bytes(data)
    return base64_of(sha256(data))


def gate_logs(directory: Path) -> tuple[LogFiles, LogFiles]:
    """The logs of two processes of one gate."""
    log, other = LogFiles(directory / "0"), LogFiles(directory / "1", producer="00000000000000b2", start_ms=300)
    where = {"bundle": bundle(directory), "entities": base64_of(sha256(ENTITIES.encode())), "engine": "0.1.0"}

    def decide(log: LogFiles, number: int, members: dict[str, Any], given: Any = None, **more: Any) -> str:
        """A decision; what was given is its payload."""
        id_ = f"{log.producer}-{number}"
        payload = None if given is None else json.dumps({"input": given}, separators=(",", ":")).encode()
        parts = {"id": id_, **members, **({} if payload is None else {"arguments": ...})}
        log.add("decision", {**parts, **more, "mode": "enforce", **where}, payload)
        return id_

    mail = {**RESEARCHER, "action": 'Action::"send_email"', "resource": 'Mcp::"gmail"', "tool": "send_email"}
    search = {**RESEARCHER, "action": 'Action::"search"', "resource": 'Mcp::"web"', "tool": "search"}
    gpt = {**RESEARCHER, "action": 'Action::"call_model"', "resource": 'Model::"gpt-5"'}
    gpt["model"] = {"name": "gpt-5", "prompt_tokens": 1_200, "max_tokens": 400, "n": 1}
    for one, slot in ((log, 0), (other, 1)):
        one.add("start", {"origin": f"gate-1/{slot}/1", "epoch": 1, "pid": 4711 + slot, "host": "gate-1"})
        one.add("policy_load", {"bundle": where["bundle"], "policies": 4})
    log.add("run", {**RESEARCHER, "request": ...}, b"Find the offer and send it to Bob.\nThanks")
    models, readers = {"models": base64_of(sha256(b"m"))}, {"readers": base64_of(sha256(b"r"))}
    first = decide(log, 1, gpt, decision="allow", code="allow", policies=models)
    log.add(
        "outcome", {"of": first, "status": "ok", "usage": {"prompt": 1_200, "completion": 311}, "duration_ms": 1_840}
    )
    found = decide(
        log, 2, {**search, "parent": first}, {"query": "offer"}, decision="allow", code="allow", policies=readers
    )
    log.add("outcome", {"of": found, "status": "ok", "duration_ms": 12})
    decide(log, 3, {**mail, "parent": first}, {"to": "bob@else.org"}, decision="deny", code="policy.no_permit")
    forbidden = {"decision": "deny", "code": "policy.forbidden", "policies": {"no-secrets": base64_of(sha256(b"s"))}}
    decide(log, 4, mail, {"to": "ann@example.com"}, **forbidden, labels=["secret"])
    refused = {"path": "acme/research", "unit": "tokens", "window": "1d", "limit": 10_000, "used": 9_000, "held": 200}
    budget = {"path": "acme/research/a", "refused": {**refused, "retry_after_ms": 23_400_000}}
    decide(log, 5, gpt, decision="deny", code="budget.exhausted", policies=models, budget=budget)
    log.flush()
    guest = {**search, "principal": 'Agent::"guest"', "run": "r2", "session": HOSTILE}
    decide(other, 1, guest, {"query": "x"}, decision="deny", code="policy.no_permit")
    other.erased.add(len(other.entries) - 1)
    other.add("note", {"text": HOSTILE, "index": 3})
    other.flush()
    return log, other
