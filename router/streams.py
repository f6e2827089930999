"""An answer while it is written.

with router.stream("analyze_page", messages) as stream:
    for item in stream:
        match item:
            case TextDelta(text):        shown as it comes
            case ThinkingDelta(text):    what the model thinks; not a part of the answer
            case ToolCallDelta(...):     a tool call's name, then its arguments bit by bit
            case Restarted(...):         what was shown is void: the answer starts anew
    stream.response                      what `route()` returns
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from router.errors import RouterError

if TYPE_CHECKING:
    from ledger.events import ErrorType

ResponseT = TypeVar("ResponseT")


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next bit of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """The next bit of what the model thinks aloud."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next bit of a tool call.

    `index` is its place in the response's `tool_calls`. The first bit of a call has `id` and `name` where
    the provider sends them, later ones None. The `arguments` of all bits, joined, are the JSON of its input.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class Restarted:
    """What was shown so far is void: the answer starts anew on `tier` and `model`, because of `reason`."""

    reason: ErrorType
    tier: str
    model: str


StreamItem = TextDelta | ThinkingDelta | ToolCallDelta | Restarted
Items = Generator[StreamItem, None, ResponseT]


class CallerLeft(BaseException):
    """Thrown into a stream whose caller leaves by an exception, so that the books say why.

    Not the exception itself: a failure of theirs is no failure of the answer's.
    """

    def __init__(self, kind: type[BaseException]) -> None:
        super().__init__(kind.__name__)
        self.kind = kind


class Stream(Generic[ResponseT]):
    """The items of one answer, and at their end its response. For one thread; a context manager.

    Nothing is sent before the first item is asked for. Leaving early (by `close()`, the end of `with`, or
    an exception in between) ends the call: what it used by then may have been billed, and stays in doubt.
    """

    def __init__(self, items: Items[ResponseT]) -> None:
        self._ended: list[ResponseT] = []  # the response, once it is there
        self._items = _kept(items, self._ended)

    def __iter__(self) -> Iterator[StreamItem]:
        return self._items

    def __next__(self) -> StreamItem:
        return next(self._items)

    @property
    def response(self) -> ResponseT:
        """The whole answer. Raises RouterError before the stream has ended."""
        if not self._ended:
            raise RouterError("the answer is not whole yet: read the stream to its end, or call its read()")
        return self._ended[0]

    def read(self) -> ResponseT:
        """The whole answer, once the rest of it has come. Raises as iterating does."""
        for _ in self._items:
            pass
        return self.response

    def close(self) -> None:
        """End the call, if it has not ended; twice is once."""
        self._items.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        with suppress(CallerLeft):
            self._items.throw(CallerLeft(type(error)))


def _kept(items: Items[ResponseT], ended: list[ResponseT]) -> Generator[StreamItem, None, None]:
    """The items, and what they end with. No method, so that a stream that is dropped is closed at once."""
    ended.append((yield from items))
