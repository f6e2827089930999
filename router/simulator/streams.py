"""From an `Answer` to the events a provider streams it in. Pure, and lazy: only the answer is held.

    events_of(call, answer) ──▶ Event, Event, …      whole, and what each is part of
      broken(…, Broken)     ──▶ bytes, bytes, …      as they are sent, up to where it goes wrong
      split(…, n)           ──▶ bytes, bytes, …      in pieces that know nothing of events

Put together the events say exactly what the unstreamed answer says, to the last digit of the cost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from router.simulator.answers import (
    PIECE_LENGTH,
    Answer,
    Call,
    Provider,
    anthropic_blocks,
    anthropic_message,
    anthropic_usage,
    error_of,
    openrouter_finish,
    openrouter_head,
    openrouter_reasoning,
    openrouter_usage,
    with_member,
)
from router.simulator.replies import Broken

Part = Literal["frame", "delta", "finish", "usage", "done"]
_NOT_BEFORE: Mapping[str, tuple[Part, ...]] = {"finish": ("usage", "done"), "usage": ("done",)}
_FROM_THE_FINISH: tuple[Part, ...] = ("finish", "usage", "done")
_compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_HALF_AN_EVENT = b'data: {"'

KEEP_ALIVE: Mapping[Provider, bytes] = {
    "anthropic": b'event: ping\ndata: {"type": "ping"}\n\n',
    "openrouter": b": OPENROUTER PROCESSING\n\n",
}


class Event(NamedTuple):
    """One event as it is sent. With Anthropic the finish has the final usage in it."""

    part: Part
    sent: bytes


def events_of(call: Call, answer: Answer, pieces: int | None = None) -> Iterator[Event]:
    """All events of an answer, its text in so many `pieces`, or one per four characters."""
    if call.provider == "anthropic":
        return anthropic_events(answer, pieces)
    return openrouter_events(answer, pieces)


def anthropic_events(answer: Answer, pieces: int | None = None) -> Iterator[Event]:
    usage = anthropic_usage(answer.tokens)
    so_far = {name: value for name, value in usage.items() if name != "output_tokens_details"}
    message = anthropic_message(answer, []) | {"stop_reason": None, "usage": so_far | {"output_tokens": 1}}
    yield _anthropic("frame", "message_start", message=message)
    for index, block in enumerate(anthropic_blocks(answer)):
        empty, deltas = _block_in_deltas(block, pieces)
        yield _anthropic("frame", "content_block_start", index=index, content_block=empty)
        if index == 0:
            yield Event("frame", KEEP_ALIVE["anthropic"])
        for delta in deltas:
            yield _anthropic("delta", "content_block_delta", index=index, delta=delta)
        yield _anthropic("frame", "content_block_stop", index=index)
    final = {name: value for name, value in usage.items() if name not in ("cache_creation", "service_tier")}
    stop = {"stop_reason": answer.stop_reason, "stop_sequence": None}
    yield _anthropic("finish", "message_delta", delta=stop, usage=final)
    yield _anthropic("done", "message_stop")


def _block_in_deltas(
    block: dict[str, object], pieces: int | None
) -> tuple[dict[str, object], Iterator[dict[str, object]]]:
    """The block as it starts, empty, and what fills it."""
    if block["type"] == "tool_use":
        said = ["", *in_pieces(json.dumps(block["input"], ensure_ascii=False))]
        return block | {"input": {}}, ({"type": "input_json_delta", "partial_json": piece} for piece in said)
    if block["type"] == "thinking":
        return block | {"thinking": "", "signature": ""}, _thinking_deltas(block)
    texts = in_pieces(str(block["text"]), pieces)
    return block | {"text": ""}, ({"type": "text_delta", "text": piece} for piece in texts)


def _thinking_deltas(block: dict[str, object]) -> Iterator[dict[str, object]]:
    for piece in in_pieces(str(block["thinking"])):
        yield {"type": "thinking_delta", "thinking": piece}
    yield {"type": "signature_delta", "signature": block["signature"]}


def openrouter_events(answer: Answer, pieces: int | None = None) -> Iterator[Event]:
    yield Event("frame", KEEP_ALIVE["openrouter"])
    yield _openrouter("frame", answer, {})
    for piece in in_pieces(answer.thinking):
        yield _openrouter("delta", answer, openrouter_reasoning(piece))
    for piece in in_pieces(answer.text, pieces):
        yield _openrouter("delta", answer, {"content": piece})
    for fragment in _tool_call_fragments(answer):
        yield _openrouter("delta", answer, {"content": None, "tool_calls": [fragment]})
    yield _openrouter("finish", answer, {}, answer.stop_reason)
    usage = with_member(_chunk(answer, {}), "usage", openrouter_usage(answer))
    yield Event("usage", b"data: " + usage.encode() + b"\n\n")
    yield Event("done", b"data: [DONE]\n\n")


def _tool_call_fragments(answer: Answer) -> Iterator[dict[str, object]]:
    """Only the first of a call has its id and name; they are told apart by their index."""
    for index, (call_id, (name, given)) in enumerate(answer.tool_calls.items()):
        function = {"name": name, "arguments": ""}
        yield {"index": index, "id": call_id, "type": "function", "function": function}
        for piece in in_pieces(json.dumps(given)):
            yield {"index": index, "type": "function", "function": {"arguments": piece}}


def in_pieces(text: str, count: int | None = None) -> Iterator[str]:
    """The text in so many parts of about one length, or in parts of four characters.

    >>> list(in_pieces("a form", 4))
    ['a', ' f', 'o', 'rm']
    """
    if count is None:
        return (text[at : at + PIECE_LENGTH] for at in range(0, len(text), PIECE_LENGTH))
    return (text[len(text) * at // count : len(text) * (at + 1) // count] for at in range(count))


def _anthropic(part: Part, name: str, **members: object) -> Event:
    return Event(part, f"event: {name}\ndata: {_compact({'type': name, **members})}\n\n".encode())


def _openrouter(
    part: Part, answer: Answer, delta: Mapping[str, object], stop_reason: str | None = None
) -> Event:
    return Event(part, f"data: {_compact(_chunk(answer, delta, stop_reason))}\n\n".encode())


def _chunk(answer: Answer, delta: Mapping[str, object], stop_reason: str | None = None) -> dict[str, object]:
    said = {"role": "assistant", "content": "", **delta}
    choice = {"index": 0, "delta": said, **openrouter_finish(stop_reason), "logprobs": None}
    return openrouter_head(answer, "chat.completion.chunk") | {"choices": [choice]}


def error_event(call: Call, answer: Answer, fault: Broken, message: str | None) -> bytes:
    """The provider's error in the middle of a stream that began with HTTP 200."""
    error = error_of(call, fault.error or "server_error", 200, message)
    if call.provider == "anthropic":
        return _anthropic("frame", "error", error={"details": None, **error}).sent
    chunk = _chunk(answer, {}, "error") | {"error": error}
    return f"data: {_compact(chunk)}\n\n".encode()


def said_in_between(call: Call, answer: Answer, fault: Broken, message: str | None) -> bytes:
    """What comes at the point where a stream goes wrong; empty: nothing."""
    if fault.error is not None:
        return error_event(call, answer, fault, message)
    if fault.data is not None:
        name = b"event: content_block_delta\n" if call.provider == "anthropic" else b""
        return name + b"data: " + fault.data + b"\n\n"
    return _HALF_AN_EVENT if fault.then in ("cut", "reset") else b""


def broken(events: Iterable[Event], fault: Broken, between: bytes) -> Iterator[bytes]:
    """What is sent of a stream: up to where it goes wrong, what is said there, and the rest if it follows."""
    deltas, whole = 0, True
    for part, sent in events:
        if whole and _is_due(fault.after, deltas, part):
            whole = False
            if between:
                yield between
            if fault.then != "rest":
                return
        yield sent
        deltas += part == "delta"
    if whole and between:
        yield between


def _is_due(after: int | Literal["finish", "usage"], deltas: int, next_part: Part) -> bool:
    if isinstance(after, int):
        return deltas >= after or next_part in _FROM_THE_FINISH
    return next_part in _NOT_BEFORE[after]


def split(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes, so many at a time."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


def first_bytes(pieces: Iterable[bytes], count: int) -> Iterator[bytes]:
    for piece in pieces:
        if count <= 0:
            return
        yield piece[:count]
        count -= len(piece)
