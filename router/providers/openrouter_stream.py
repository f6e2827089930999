"""A stream of chat completion chunks, put together to the completion it would have been unstreamed. Pure.

Fragments of a tool call belong together by their index. The finish may be said more than once, and content
may follow it; usage comes last, in a chunk with or without choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from router.providers.client import ToldError
from router.providers.openrouter import answer_of, request_id_of, said_by, text_of
from router.providers.sse import Room
from router.providers.wire import Answer, Reply, compact, rows, table
from router.streams import StreamItem, TextDelta, ThinkingDelta, ToolCallDelta

_OF_COMPLETION = ("id", "model", "provider", "service_tier")
_BILLED_ANNOTATIONS = {"url_citation", "file"}
_COUNTED = ("prompt_tokens", "completion_tokens", "cost")


class _Call:
    """A tool call, as far as it has come."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments = StringIO()

    def whole(self) -> Mapping[str, Any]:
        return {"id": self.id, "function": {"name": self.name, "arguments": self.arguments.getvalue()}}


class OpenRouterStream:
    """An Assembler; see there."""

    def __init__(self) -> None:
        self.begun = False
        self.flowing = False
        self.finished = False
        self.done = False  # set by whoever reads [DONE], which is no chunk
        self.has_usage = False
        self.error: ToldError | None = None
        self._completion: dict[str, Any] = {}
        self._usage_data = b""
        self._text = StringIO()
        self._refusal = StringIO()
        self._finish: object = None
        self._calls: list[_Call] = []
        self._call_of: dict[object, int] = {}  # by index
        self._annotations: set[str] = set()
        self._room = Room()

    def take(self, chunk: Mapping[str, Any], data: bytes) -> Sequence[StreamItem]:
        self._remember(chunk, data)
        if chunk.get("error"):
            self.error = ToldError(_code(chunk["error"]), said_by(chunk), data)
        choices = chunk.get("choices")
        if not choices:
            return ()
        for choice in _objects(choices):
            if not (index := choice.get("index")):  # the first answer of several, or the only one
                return self._choice(choice, data)
            if not isinstance(index, int):
                raise ValueError("the index of a choice is no number")
        return ()

    def answer(self, reply: Reply) -> Answer:
        message = {
            "content": self._text.getvalue(),
            "refusal": self._refusal.getvalue(),
            "tool_calls": [call.whole() for call in self._calls],
            "annotations": [{"type": kind} for kind in self._annotations],
        }
        choice = {"message": message, "finish_reason": self._finish}
        return answer_of(
            self._completion, choice, reply._replace(body=self._usage_data), request_id_of(reply)
        )

    def _remember(self, chunk: Mapping[str, Any], data: bytes) -> None:
        """What is said of the whole: the first word counts, of usage the last."""
        known = self._completion
        if len(known) < len(_OF_COMPLETION):
            known.update({key: chunk[key] for key in _OF_COMPLETION if key not in known and chunk.get(key)})
        usage = chunk.get("usage")
        if isinstance(usage, dict) and (is_used := any(usage.get(key) for key in _COUNTED)) >= self.has_usage:
            known["usage"], self._usage_data, self.has_usage = usage, data, is_used  # zeros replace nothing

    def _choice(self, choice: Mapping[str, Any], data: bytes) -> Sequence[StreamItem]:
        if choice.get("error"):
            self.error = ToldError(_code(choice["error"]), said_by(choice), data)
        delta = choice.get("delta")
        items = self._content(_object(delta)) if delta else []
        finish = choice.get("finish_reason")
        if finish == "error":
            self.error = self.error or ToldError(None, "", data)
        elif finish and isinstance(finish, str):  # some say "" until then
            self._finish = finish
            self.finished = True
        return items

    def _content(self, delta: Mapping[str, Any]) -> list[StreamItem]:
        items: list[StreamItem] = []
        if thought := delta.get("reasoning") or delta.get("reasoning_content"):
            self.begun = self.flowing = True
            items.append(ThinkingDelta(str(thought)))
        if content := delta.get("content"):
            text = content if isinstance(content, str) else text_of(_objects(content))
            if text:
                items.append(TextDelta(self._kept(self._text, text)))
        if refusal := delta.get("refusal"):
            self._kept(self._refusal, str(refusal))
        if calls := delta.get("tool_calls"):
            items += [self._fragment(row) for row in _objects(calls)]
        if annotations := delta.get("annotations"):
            kinds = {str(row.get("type")) for row in rows(annotations)}
            self._annotations |= kinds & _BILLED_ANNOTATIONS
        return items

    def _kept(self, where: StringIO, part: str) -> str:
        self.begun = self.flowing = True
        self._room.take(len(part))
        where.write(part)
        return part

    def _fragment(self, row: Mapping[str, Any]) -> ToolCallDelta:
        function = _object(row.get("function") or row.get("custom") or {})
        call_id, called = str(row.get("id") or ""), str(function.get("name") or "")
        place = self._place_of(row.get("index"), call_id, called)
        call = self._calls[place]
        first_id, first_name = "" if call.id else call_id, "" if call.name else called
        call.id, call.name = call.id or call_id, call.name or called
        given = function.get("arguments", function.get("input"))
        part = given if isinstance(given, str) else compact(given) if given is not None else ""
        self._room.take(len(first_id) + len(first_name))
        return ToolCallDelta(place, first_id or None, first_name or None, self._kept(call.arguments, part))

    def _place_of(self, index: object, call_id: str, called: str) -> int:
        """Where a fragment belongs: by its index, but a new id with a name is a call of its own."""
        key = index if isinstance(index, int) else call_id or None
        place = self._call_of.get(key)
        if place is None and key is None and self._calls:
            return len(self._calls) - 1
        if place is None or (called and call_id and self._calls[place].id not in ("", call_id)):
            self._room.take(64)  # what a call takes by itself
            self._calls.append(_Call())
            place = self._call_of[key] = len(self._calls) - 1
        return place


def _object(value: Any) -> Mapping[str, Any]:
    """Raises ValueError for what is no JSON object: a part of the answer may have been there."""
    if not isinstance(value, dict):
        raise ValueError("a part of a chunk is no object")
    return value


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """Raises ValueError for what is no list of JSON objects."""
    if not isinstance(value, list):
        raise ValueError("a part of a chunk is no list")
    return [_object(row) for row in value]


def _code(error: object) -> object:
    return table(error).get("code")
