"""Cutting streams of server-sent events: where a client cuts them, however they arrive, and without changing a byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.mcp import events
from tollkeeper.mcp.events import Splitter, TooLarge

BYTES_MAX = 1000
# What ends lines and events, what begins fields, and a mark at the start.
PARTS = st.sampled_from(
    [b"\r", b"\n", b"\r\n", b":", b"data", b"data: a", b"id: 7", b" ", b"x", b"\xef\xbb\xbf", b"\xef"]
)
STREAMS = st.lists(PARTS, max_size=24).map(b"".join)


def told(stream: bytes) -> list[bytes]:
    """What a client is told by a stream, by the text of the format, letter by letter: the slow way."""
    lines, line, at = list[bytes](), b"", 3 if stream.startswith(b"\xef\xbb\xbf") else 0
    while at < len(stream):
        if stream[at : at + 2] == b"\r\n":
            lines, line, at = [*lines, line], b"", at + 2
        elif stream[at : at + 1] in {b"\r", b"\n"}:
            lines, line, at = [*lines, line], b"", at + 1
        else:
            line, at = line + stream[at : at + 1], at + 1
    said, values = list[bytes](), list[bytes]()
    for each in lines:
        if not each:
            said += [b"\n".join(values)] if values else []
            values = []
        elif each.partition(b":")[0] == b"data":
            values.append(each.partition(b":")[2].removeprefix(b" "))
    return said


@given(STREAMS, st.lists(st.integers(min_value=0, max_value=60)))
def test_every_way_to_arrive_is_cut_alike(stream: bytes, cuts: list[int]) -> None:
    splitter, pieces, start = Splitter(BYTES_MAX), list[bytes](), 0
    for cut in sorted({*cuts, len(stream)}):
        pieces += splitter.feed(stream[start:cut])
        start = max(start, min(cut, len(stream)))
    assert stream.removeprefix(b"\xef\xbb\xbf").startswith(b"".join(pieces))
    assert [data for piece in pieces if (data := events.data(piece)) is not None] == told(stream)


@given(STREAMS)
def test_other_data_says_that_and_nothing_else(stream: bytes) -> None:
    for piece in Splitter(BYTES_MAX).feed(stream):
        assert told(events.with_data(piece, b'{"a":1}')) == [b'{"a":1}']
        without = events.with_data(piece, None)
        assert told(without) == []
        assert events.has_id(without) == events.has_id(piece)


def test_a_comment_does_not_wait_for_an_event() -> None:
    splitter = Splitter(BYTES_MAX)
    assert splitter.feed(b": ping\n") == [b": ping\n"]
    assert splitter.feed(b"data: 1\n: inside\n") == []
    assert splitter.feed(b"\n") == [b"data: 1\n: inside\n\n"]


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 60, b"data: " + b"x" * 60 + b"\n\n", b":" + b"x" * 60])
def test_an_event_has_a_limit(stream: bytes) -> None:
    with pytest.raises(TooLarge, match="50 bytes"):
        Splitter(50).feed(stream)
    splitter = Splitter(50)
    with pytest.raises(TooLarge):
        [splitter.feed(stream[at : at + 1]) for at in range(len(stream))]


def test_many_small_events_have_none() -> None:
    assert len(Splitter(10).feed(b"data: 1\n\n" * 1000)) == 1000


@pytest.mark.parametrize(
    ("event", "plain"),
    [
        (b"event: message\nid: 1\nretry: 2\ndata: x\n: note\n\n", True),
        (b"data\n\n", True),
        (b"Data: x\n\n", False),
        (b" data: x\n\n", False),
        (b"data : x\n\n", False),
        (b"\xef\xbb\xbfdata: x\n\n", False),
        (b"other: x\n\n", False),
    ],
)
def test_fields_that_a_lenient_client_might_read_are_told_apart(event: bytes, plain: bool) -> None:  # noqa: FBT001
    assert events.plain(event) == plain


def test_data_of_several_lines_stays_data() -> None:
    written = events.with_data(b"x: 1\ndata: {\ndata: }\n\n", b"{\n}")
    assert written == b"data: {\ndata: }\n\n"
    assert events.data(written) == b"{\n}"
