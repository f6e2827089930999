r"""Server-sent events, read from bytes that may be split anywhere. Pure.

    EventReader().feed(piece)    the data of each event that this piece completes

A line ends with \n, \r\n or \r and with nothing else: U+2028 stands in texts. The data lines of one
event are joined by \n. Comments, names and ids of events are left out: both providers say in the data
what an event is. After https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

EVENT_BOUND = 16 * 1024 * 1024  # bytes; the longest events, a picture in one, have a few millions
_BOM = b"\xef\xbb\xbf"


class TooLong(Exception):
    """An event, or what many of them add up to, beyond all bounds."""


class Room:
    """How far one answer may grow: 16 Mi characters, its tool calls included."""

    def __init__(self) -> None:
        self._left = EVENT_BOUND

    def take(self, size: int) -> None:
        """Raises TooLong where there is no such room left."""
        self._left -= size
        if self._left < 0:
            raise TooLong(f"it is longer than {EVENT_BOUND:,} characters")


class EventReader:
    """Puts events together; each piece is looked through once, however long an event is."""

    def __init__(self) -> None:
        self._rest = bytearray()  # what no blank line has ended yet
        self._after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of each event that ends in this piece. Raises TooLong."""
        if self._after_cr or b"\r" in piece:
            piece = self._with_plain_ends(piece)
        rest = self._rest
        if not rest and piece.endswith(b"\n\n"):  # as nearly every piece is: whole events
            return _all_data(piece[:-2])
        seam = max(len(rest) - 1, 0)
        rest += piece
        end = rest.rfind(b"\n\n", seam)
        if end < 0:
            if len(rest) > EVENT_BOUND:
                raise TooLong(f"an event is longer than {EVENT_BOUND:,} bytes")
            return []
        events = bytes(rest[:end])
        del rest[: end + 2]
        return _all_data(events)

    def end(self) -> list[bytes]:
        """The data of an event that the end of the stream has ended, with no blank line behind it."""
        return _all_data(bytes(self._rest))

    def _with_plain_ends(self, piece: bytes) -> bytes:
        if self._after_cr and piece.startswith(b"\n"):  # the second half of \r\n
            piece, self._after_cr = piece[1:], False
        if piece:
            self._after_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _all_data(events: bytes) -> list[bytes]:
    return [data for event in events.split(b"\n\n") if (data := _data_of(event)) is not None]


def _data_of(event: bytes) -> bytes | None:
    before, found, data = event.partition(b"data: ")
    if found and b"\n" not in data and (not before or _is_one_line(before)):
        return data  # as nearly every event is: one line of data, perhaps its name before it
    lines = []
    for line in event.split(b"\n"):
        field, _, value = line.partition(b":")
        if field.removeprefix(_BOM) == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None


def _is_one_line(before: bytes) -> bool:
    """Whether one line stands there that is none of data."""
    return before.endswith(b"\n") and before.count(b"\n") == 1 and b"data" not in before
