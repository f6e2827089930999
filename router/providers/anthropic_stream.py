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
from router.providers.wire import Answer, Reply, compact, table
from router.streams import StreamItem, TextDelta, ThinkingDelta, ToolCallDelta


class _Block:
    """A text or a tool call, as far as it has come."""

    __slots__ = ("call_index", "start", "written")

    def __init__(self, start: Mapping[str, Any], call_index: int) -> None:
        self.start = start
        self.call_index = call_index  # among the tool calls
        self.written = StringIO()  # of a text all of it, of a tool call its arguments

    def whole(self) -> Mapping[str, Any]:
        if self.start.get("type") == "text":
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

    def take(self, chunk: Mapping[str, Any], data: bytes) -> Sequence[StreamItem]:
        match chunk.get("type"):
            case "content_block_delta":
                return self._add(chunk.get("index"), table(chunk.get("delta")))
            case "content_block_start":
                return self._start_block(chunk.get("index"), table(chunk.get("content_block")), data)
            case "message_start":
                message = table(chunk.get("message"))
                self._message.update(message)
                self._take_usage(message.get("usage"))
                self.begun = True
            case "message_delta":
                self._end(table(chunk.get("delta")), chunk.get("usage"))
            case "message_stop":
                self.finished = self.done = True
            case kind if kind == "error" or "error" in chunk:
                self.error = ToldError(code_of(chunk), said_by(chunk), data)
        return ()

    def answer(self, reply: Reply) -> Answer:
        content = [self._blocks[index].whole() for index in sorted(self._blocks)]
        usage = {**self._usage, **self._breakdown()} if self._usage else None
        message = {**self._message, "content": content, "usage": usage}
        answer = answer_of(message, reply._replace(body=b""), request_id_of(reply))
        return replace(answer, usage_json=compact(self._usage)) if self._usage else answer

    def _add(self, index: object, delta: Mapping[str, Any]) -> Sequence[StreamItem]:
        self.begun = self.flowing = True
        match delta.get("type"):
            case "text_delta" if isinstance(text := delta.get("text"), str):
                block = self._block(index, {"type": "text"})
                return self._written(block, text) if block.start.get("type") == "text" else ()
            case "input_json_delta" if isinstance(part := delta.get("partial_json"), str):
                known = self._blocks.get(_whole(index))  # none: a tool the provider runs itself
                return self._written(known, part) if known and known.start.get("type") == "tool_use" else ()
            case "thinking_delta" if isinstance(thought := delta.get("thinking"), str) and thought:
                return (ThinkingDelta(thought),)
        return ()

    def _start_block(self, index: object, start: Mapping[str, Any], data: bytes) -> Sequence[StreamItem]:
        self.begun = self.flowing = True
        kind = start.get("type")
        if kind == "text":
            text = start.get("text")
            return self._written(self._block(index, {"type": "text"}), text if isinstance(text, str) else "")
        if kind != "tool_use":
            return ()
        self._room.take(len(data))
        block = self._block(index, start)
        given = start.get("input")
        return (
            ToolCallDelta(
                block.call_index,
                str(start.get("id") or "") or None,
                str(start.get("name") or "") or None,
                compact(given) if given else "",
            ),
        )

    def _block(self, index: object, start: Mapping[str, Any]) -> _Block:
        """The block of that index, begun now if it is new."""
        place = _whole(index)
        block = self._blocks.get(place)
        if block is None:
            block = self._blocks[place] = _Block(start, self._call_count)
            self._room.take(64)  # what a block takes by itself
            self._call_count += start.get("type") == "tool_use"
        return block

    def _written(self, block: _Block, part: str) -> Sequence[StreamItem]:
        if not part:
            return ()
        self._room.take(len(part))
        block.written.write(part)
        if block.start.get("type") == "text":
            return (TextDelta(part),)
        return (ToolCallDelta(block.call_index, None, None, part),)

    def _end(self, delta: Mapping[str, Any], usage: object) -> None:
        self._message.update({key: value for key, value in delta.items() if value is not None})
        self._take_usage(usage)
        if delta.get("stop_reason") is not None:
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


def _whole(index: object) -> int:
    return index if isinstance(index, int) else -1
