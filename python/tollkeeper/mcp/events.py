"""Cuts a stream of server-sent events into events without changing a byte, and writes one again with other data.

The format is the WHATWG's: lines end with CR LF, LF or CR; an empty line ends an event; lines of the field `data` are
joined. Whoever screens a stream has to cut it where every client cuts it, so what a lenient client could read as data
and a strict one would ignore is told apart here as well: see `plain`. An event that was not finished when the stream
ended is no event, and is never given out. This module knows nothing of what the data says.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["Splitter", "TooLarge", "data", "plain", "with_data"]

_BOM: Final = b"\xef\xbb\xbf"
# The end of a line and the end of an empty line after it. Atomic: half of a CR LF is no end.
_END: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
# Where no event has begun: an empty line, or a comment, by which servers keep a connection open.
_ALONE: Final = re.compile(rb"(?::[^\r\n]*+)?+(?>\r\n|\n|\r)")
_END_BYTES_MAX: Final = 4
_FIELDS: Final = (b"data", b"event", b"id", b"retry", b"")


class TooLarge(ValueError):  # noqa: N818 - says what it is
    """An event that has not ended within the bytes that one may have."""


class Splitter:
    r"""Takes bytes as they come and gives out whole events, each with the empty line that ends it.

    Args:
        bytes_max: The most bytes of an event.

    Example:
        >>> from tollkeeper.mcp.events import Splitter
        >>> splitter = Splitter(100)
        >>> splitter.feed(b"data: a\n\nda"), splitter.feed(b"ta: b\n\n")
        ([b'data: a\n\n'], [b'data: b\n\n'])
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._begun = False
        self._after_cr = False
        self._kept = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that are whole now. Joined they are the bytes that came, but for a byte order mark at the start.

        Raises:
            TooLarge: The event that has begun is too large; what comes after cannot be cut any more.
        """
        if not self._begun:
            self._kept += chunk
            if len(self._kept) < len(_BOM) and _BOM.startswith(self._kept):
                return []
            # A client drops it, so the first line does not begin with it.
            self._begun, chunk, self._kept = True, self._kept.removeprefix(_BOM), b""
        pieces: list[bytes] = []
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[:1] == b"\n":
                # The second half of the line's end that was given out already.
                pieces.append(chunk[:1])
                chunk = chunk[1:]
        seen = max(len(self._kept) - _END_BYTES_MAX, 0)
        kept = self._kept + chunk
        start = 0
        while start < len(kept):
            found = _ALONE.match(kept, start) or _END.search(kept, max(start, seen))
            if found is None:
                break
            pieces.append(kept[start : found.end()])
            start = found.end()
        self._kept = kept[start:] if start else kept
        if start and start == len(kept):
            self._after_cr = kept.endswith(b"\r")
        if max(len(self._kept), *map(len, pieces), 0) > self._bytes_max:
            message = f"an event of more than {self._bytes_max} bytes"
            raise TooLarge(message)
        return pieces


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name, value[1:] if value[:1] == b" " else value


def data(event: bytes) -> bytes | None:
    r"""What the event says; `None` if it has no line of data.

    Example:
        >>> from tollkeeper.mcp.events import data
        >>> data(b"id: 7\ndata: {\ndata:}\n\n"), data(b": ping\n\n")
        (b'{\n}', None)
    """
    # `bytes.splitlines` ends lines as the format does.
    values = [value for name, value in map(_field, event.splitlines()) if name == b"data"]
    return b"\n".join(values) if values else None


def has_id(event: bytes) -> bool:
    """Whether a client that loses the stream can ask for what comes after this event."""
    return any(name == b"id" and value for name, value in map(_field, event.splitlines()))


def plain(event: bytes) -> bool:
    r"""Whether every line is a comment or a field that the format knows.

    A field of another name is ignored, says the format; a client that compares without case, or trims, would read it.

    Example:
        >>> from tollkeeper.mcp.events import plain
        >>> plain(b"event: message\ndata: 1\n\n"), plain(b"Data: 1\n\n"), plain(b" data: 1\n\n")
        (True, False, False)
    """
    return all(_field(line)[0] in _FIELDS for line in event.splitlines())


def with_data(event: bytes, value: bytes | None) -> bytes:
    r"""The event with other data, or without: then a client only notes its id and how soon to come back.

    Args:
        event: With the empty line that ends it.
        value: With no end of a line but LF; `None` for no data.

    Example:
        >>> from tollkeeper.mcp.events import with_data
        >>> with_data(b"id: 7\ndata: 1\n\n", b"2"), with_data(b"id: 7\ndata: 1\n\n", None)
        (b'id: 7\ndata: 2\n\n', b'id: 7\n\n')
    """
    kept = (b"event", b"id", b"retry") if value is not None else (b"id", b"retry")
    lines = [line for line in event.splitlines() if _field(line)[0] in kept]
    if value is not None:
        lines += [b"data: " + line for line in value.split(b"\n")]
    return b"".join(line + b"\n" for line in lines) + b"\n" if lines else b""
