"""Anthropic's stream, put together to the Message it would have been unstreamed. Pure.

message_start ─▶ (content_block_start ─▶ content_block_delta … ─▶ content_block_stop) …
                                                                   └─▶ message_delta ─▶ message_stop

Usage is cumulative: what message_delta says replaces what message_start said, and what it leaves out stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from typing import Any

from router.providers.anthropic import answer_of, code_of, request_id_of, said_by
from router.providers.client import ToldError
from router.providers.sse import Room
from router.providers.wire import Answer, Reply, compact, table, verbatim
from router.streams import StreamItem, TextDelta, ThinkingDelta, ToolCallDelta

_PART_OF: Mapping[str, str] = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "input_json_delta": "partial_json",
}


class _Block:
    """A text or a tool call, as far as it has come."""

    __slots__ = ("call_index", "is_text", "start", "written")

    def __init__(self, start: Mapping[str, Any], call_index: int) -> None:
        self.start = start
        self.is_text = start.get("type") == "text"
        self.call_index = call_index  # among the tool calls
        self.written = StringIO()  # of a text all of it, of a tool call its arguments

    def whole(self) -> Mapping[str, Any]:
        if self.is_text:
            return {"type": "text", "text": self.written.getvalue()}
        return {**self.start, "input": self.written.getvalue() or self.start.get("input")}


class AnthropicStream:
    """An Assembler; see there."""

    def __init__(self) -> None:
        self.begun = False
        self.flowing = False
        self.finished = False
        self.done = False
        self.has_usage = False
        self.error: ToldError | None = None
        self._message: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._blocks: dict[int, _Block] = {}  # texts and tool calls alone
        self._call_count = 0
        self._room = Room()

    def take(self, chunk: Mapping[str, Any], data: bytes) -> Sequence[StreamItem] | None:
        kind = chunk.get("type")
        if kind == "content_block_delta":  # nearly all of them
            return self._add(chunk.get("index"), table(chunk.get("delta")))
        match kind:
            case "content_block_start":
                return self._start_block(chunk.get("index"), table(chunk.get("content_block")), data)
            case "message_start":
                self._room.take(len(data))
                message = table(chunk.get("message"))
                self._message.update(message)
                self._take_usage(message.get("usage"))
                self.begun = True
            case "message_delta":
                self._room.take(len(data))
                self._end(table(chunk.get("delta")), chunk.get("usage"))
            case "ping":
                return None
            case "message_stop":
                self.finished = self.done = True
            case _ if kind == "error" or "error" in chunk:
                self.error = ToldError(code_of(chunk), said_by(chunk), data)
            case _:
                _typed(chunk)
        return ()

    def answer(self, reply: Reply) -> Answer:
        content = [block.whole() for block in self._blocks.values()]  # in the order of their items
        usage = {**self._usage, **self._breakdown()} if self._usage else None
        message = {**self._message, "content": content, "usage": usage}
        answer = answer_of(message, reply._replace(body=b""), request_id_of(reply))
        return replace(answer, usage_json=verbatim(b"", self._usage)) if self._usage else answer

    def _add(self, index: object, delta: Mapping[str, Any]) -> Sequence[StreamItem]:
        self.begun = self.flowing = True
        kind = delta.get("type")
        part = delta.get(_PART_OF.get(kind, "")) if isinstance(kind, str) else None
        if not isinstance(part, str):
            if _typed(delta) in _PART_OF:
                raise ValueError("a delta is no text")
            return ()
        if not part:
            return ()
        if kind == "thinking_delta":
            return (ThinkingDelta(part),)
        place = _whole(index)
        if kind == "text_delta":
            block = self._blocks.get(place) or self._block(place, {"type": "text"})
            return self._text(block, part) if block.is_text else ()
        known = self._blocks.get(place)  # none: a tool the provider runs itself
        return () if known is None or known.is_text else self._arguments(known, part)

    def _start_block(self, index: object, start: Mapping[str, Any], data: bytes) -> Sequence[StreamItem]:
        self.begun = self.flowing = True
        kind = _typed(start)
        if kind == "text":
            text = start.get("text")
            block = self._block(_whole(index), {"type": "text"})
            return self._text(block, text) if isinstance(text, str) and text else ()
        if kind != "tool_use":
            return ()
        self._room.take(len(data))
        block = self._block(_whole(index), start)
        given = start.get("input")
        return (
            ToolCallDelta(
                block.call_index,
                str(start.get("id") or "") or None,
                str(start.get("name") or "") or None,
                compact(given) if given else "",
            ),
        )

    def _block(self, place: int, start: Mapping[str, Any]) -> _Block:
        """The block of that place, begun now if it is new."""
        block = self._blocks.get(place)
        if block is None:
            self._room.take(64)  # what a block takes by itself
            block = self._blocks[place] = _Block(start, self._call_count)
            self._call_count += not block.is_text
        return block

    def _text(self, block: _Block, part: str) -> Sequence[StreamItem]:
        self._room.take(len(part))
        block.written.write(part)
        return (TextDelta(part),)

    def _arguments(self, block: _Block, part: str) -> Sequence[StreamItem]:
        self._room.take(len(part))
        block.written.write(part)
        return (ToolCallDelta(block.call_index, None, None, part),)

    def _end(self, delta: Mapping[str, Any], usage: object) -> None:
        self._message.update({key: value for key, value in delta.items() if value is not None})
        self._take_usage(usage)
        if delta.get("stop_reason"):
            self.finished = True
            self.has_usage = isinstance(usage, dict)

    def _take_usage(self, usage: object) -> None:
        """Later values replace earlier ones; what is left out, or null, stands."""
        self._usage.update({key: value for key, value in table(usage).items() if value is not None})

    def _breakdown(self) -> Mapping[str, Any]:
        """The cache writes by age, unless the total has since been taken back below them: then none."""
        total = self._usage.get("cache_creation_input_tokens")
        ages = [count for count in table(self._usage.get("cache_creation")).values() if type(count) is int]
        is_stale = type(total) is int and sum(ages) > total
        return {"cache_creation": None} if is_stale else {}


def _typed(part: Mapping[str, Any]) -> str:
    """The type of a part, which may be one that is not known. Raises ValueError where it has none."""
    kind = part.get("type")
    if not isinstance(kind, str):
        raise ValueError("a part of the stream has no type")
    return kind


def _whole(index: object) -> int:
    """The place of a block; those without are one. Raises ValueError for what is no place."""
    if index is None:
        return -1
    if not isinstance(index, int):
        raise ValueError("the index of a block is no number")
    return index
