"""Server-sent events from bytes that are split anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.providers.sse import EVENT_BOUND, EventReader, TooLong


def read(*pieces: bytes) -> list[bytes]:
    """The data of all events in these pieces; the end of the stream ends the last one."""
    reader = EventReader()
    return [data for piece in pieces for data in reader.feed(piece)] + reader.end()


STREAMS = {
    "one line of data": (b"data: a\n\n", [b"a"]),
    "no space behind the colon": (b"data:a\n\n", [b"a"]),
    "only one space is dropped": (b"data:  a\n\n", [b" a"]),
    "a name before it": (b"event: ping\ndata: {}\n\n", [b"{}"]),
    "a name that holds the word": (b"event: data: x\ndata: {}\n\n", [b"{}"]),
    "a name behind it": (b"data: {}\nevent: ping\n\n", [b"{}"]),
    "several lines of data": (b"data: a\ndata: b\n\n", [b"a\nb"]),
    "several lines, the first without a space": (b"data:a\ndata: b\n\n", [b"a\nb"]),
    "an empty line of data": (b"data\n\n", [b""]),
    "comments": (b": PROCESSING\n\n: data: no\n\ndata: a\n: more\n\n", [b"a"]),
    "ids and retries": (b"id: 7\nretry: 10\ndata: a\n\n", [b"a"]),
    "fields that are not known": (b"database: x\n\ndata: a\n\n", [b"a"]),
    "a mark of the byte order": (b"\xef\xbb\xbfdata: a\n\ndata: b\n\n", [b"a", b"b"]),
    "line ends of Windows": (b"event: x\r\ndata: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    "line ends of old Macs": (b"data: a\r\rdata: b\rdata: c\r\r", [b"a", b"b\nc"]),
    "line ends mixed": (b"data: a\r\n\ndata: b\n\r\ndata: c\r\n\r\n", [b"a", b"b", b"c"]),
    "many blank lines": (b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n", [b"a", b"b"]),
    "separators of Unicode are text": (
        "data: a\u2028b\u2029c\x85d\x0be\n\n".encode(),
        ["a\u2028b\u2029c\x85d\x0be".encode()],
    ),
    "an end without a blank line": (b"data: a\n\ndata: b", [b"a", b"b"]),
    "nothing": (b"", []),
}


@pytest.mark.parametrize(("sent", "events"), STREAMS.values(), ids=STREAMS)
def test_an_event_stream_is_read_as_the_standard_says(sent: bytes, events: list[bytes]) -> None:
    assert read(sent) == events


@pytest.mark.parametrize(("sent", "events"), STREAMS.values(), ids=STREAMS)
def test_wherever_it_is_split(sent: bytes, events: list[bytes]) -> None:
    assert read(*(sent[at : at + 1] for at in range(len(sent)))) == events
    for at in range(len(sent)):
        assert read(sent[:at], sent[at:]) == events


@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n"), max_size=20), max_size=8
    ),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_whatever_is_sent_comes_back(texts: list[str], line_end: bytes, cuts: list[int]) -> None:
    sent = b"".join(b"data: " + text.encode() + line_end * 2 for text in texts)
    edges = [0, *sorted(cuts), len(sent)]

    pieces = [sent[begin:end] for begin, end in pairwise(edges)]

    assert read(*pieces) == [text.encode() for text in texts]


def test_an_event_is_there_with_its_last_byte() -> None:
    reader = EventReader()

    assert reader.feed(b"data: a\r\n\r") == [b"a"]  # the second line has ended, whatever comes
    assert reader.feed(b"\ndata: b\n") == []
    assert reader.feed(b"\n") == [b"b"]


def test_an_event_of_five_million_bytes_is_read() -> None:
    data = b"x" * 5_000_000
    sent = b"data: " + data + b"\n\n"

    assert read(*(sent[at : at + 4_096] for at in range(0, len(sent), 4_096))) == [data]


def test_an_event_without_end_is_refused() -> None:
    reader = EventReader()

    with pytest.raises(TooLong, match="longer than"):
        for _ in range(EVENT_BOUND // 1_000_000 + 1):
            reader.feed(b"x" * 1_000_000)
