"""From a call and a `Reply` to what is sent over HTTP: a status, headers, and bytes whole or in pieces.

Pure: silence, resets, delays and drips are the sender's, as is how a stream ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from router.simulator.answers import (
    Answer,
    Call,
    answer_to,
    anthropic_body,
    error_body,
    openrouter_body,
    wants_stream,
)
from router.simulator.replies import Broken, Price, Reply
from router.simulator.streams import (
    KEEP_ALIVE,
    Event,
    broken,
    events_of,
    first_bytes,
    said_in_between,
    split,
)

End = Literal["end", "open", "cut", "reset"]


class Stream(NamedTuple):
    """A body in pieces, made as they are asked for, and what comes after the last.

    "end" the body is complete; "open" nothing more; "cut" the connection is closed with the body
    incomplete; "reset" the same by a RST. `keep_alive` comes every `keep_alive_s` while it is open.
    """

    pieces: Iterator[bytes]
    end: End = "end"
    keep_alive: bytes = b""
    keep_alive_s: float | None = None


class Response(NamedTuple):
    """What goes back over HTTP; `answer` is None where there is none in it. Header names in lower case.

    `stream` stands in place of `body`, which is then empty.
    """

    answer: Answer | None
    status: int
    headers: Mapping[str, str]
    body: bytes
    stream: Stream | None = None


def response_to(call: Call, reply: Reply, seed: int, prices: Mapping[str, Price]) -> Response:
    """A whole response, as if nothing broke on its way but what breaks within a stream."""
    request_id = f"req_simulated_{call.model.rpartition('/')[2]}_{call.number}"
    headers = {"content-type": "application/json"}
    if call.provider == "anthropic":
        headers["request-id"] = request_id
    given = {name.lower(): value for name, value in reply.headers.items()}
    if reply.silence or reply.reset:
        return Response(None, reply.status, headers | given, b"")
    if reply.body is not None:
        raw = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        return _in_chunks(Response(None, reply.status, headers | given, raw), call, reply)
    if reply.error is not None or reply.status >= 400:
        body = error_body(call, reply, request_id)
        return _in_chunks(Response(None, reply.status, headers | given, body), call, reply)
    answer = answer_to(call, reply, seed, prices)
    if call.provider == "openrouter":
        headers["x-generation-id"] = answer.response_id
    if wants_stream(call.body):
        headers |= {"content-type": "text/event-stream", "cache-control": "no-cache"}
        stream = _answer_in_events(call, reply, answer)
        return Response(answer, reply.status, headers | given, b"", stream)
    body = anthropic_body(answer) if call.provider == "anthropic" else openrouter_body(answer)
    return _in_chunks(Response(answer, reply.status, headers | given, body), call, reply)


def _answer_in_events(call: Call, reply: Reply, answer: Answer) -> Stream:
    events = events_of(call, answer, reply.pieces)
    between = said_in_between(call, answer, reply.broken, reply.message) if reply.broken else b""
    return _stream_of(events, call, reply, between)


def _in_chunks(response: Response, call: Call, reply: Reply) -> Response:
    """The same as a stream of one piece, where the reply wants HTTP chunks or an end that needs them."""
    if reply.split is None and _fault(call, reply) is None:
        return response
    events = iter([Event("frame", response.body)] if response.body else [])
    stream = _stream_of(events, call, reply, b"")
    return response._replace(body=b"", stream=stream)


def _fault(call: Call, reply: Reply) -> Broken | None:
    return reply.broken if wants_stream(call.body) else None


def _stream_of(events: Iterator[Event], call: Call, reply: Reply, between: bytes) -> Stream:
    end: End = "end"
    fault = _fault(call, reply)
    if fault is not None:
        pieces = broken(events, fault, between)
        end = "end" if fault.then == "rest" else fault.then
    else:
        pieces = (event.sent for event in events)
        if reply.cut_after is not None:
            pieces, end = first_bytes(pieces, reply.cut_after), "cut"
    if reply.split is not None:
        pieces = split(pieces, reply.split)
    return Stream(pieces, end, KEEP_ALIVE[call.provider], fault.keep_alive_s if fault else None)
