"""Recorded traffic through the real clients: what they return, and what stands on the books.

Each exchange is one session of one ledger. What is compared of it is a list of (field, found, expected),
and COMPARED says for how many exchanges each field is: a comparison cannot silently shrink. Whole answers
and streams are compared by the same rules; streams come in one piece, and again byte by byte.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from one_shot_server import OneShotServer, read_request

from ledger import CostTracker, Ledger
from ledger.prices import ModelPrices, PriceBook, UnitPrices
from ledger.reader import connect
from router import AnthropicClient, OpenRouterClient
from router.errors import ProviderError
from router.streams import Stream, StreamItem, TextDelta, ThinkingDelta, ToolCallDelta
from router.types import ClientResponse

_ROOT = Path(__file__).resolve().parent.parent
_TRAFFIC = Path(os.environ.get("BUGHIVE_TRAFFIC") or _ROOT.parent / "shared" / "traffic")

pytestmark = pytest.mark.skipif(
    not (_TRAFFIC / "expected.json").is_file(), reason=f"no recorded traffic at {_TRAFFIC}"
)

COMPARED = {  # for how many of the 171 whole answers, and of the 69 streams
    # answers, as the clients return them
    "text": (114, 65),
    "tool calls: number": (114, 65),
    "tool calls: id": (33, 19),
    "tool calls: name": (32, 19),
    "tool calls: input": (33, 19),
    "tool calls: raw arguments": (1, 0),
    "stop reason": (114, 65),
    "model": (114, 65),
    "id": (114, 65),
    "input_tokens": (114, 63),
    "cache_read_tokens": (114, 63),
    "cache_write_5m_tokens": (114, 63),
    "cache_write_1h_tokens": (114, 63),
    "output_tokens": (114, 63),
    "reasoning_tokens": (114, 63),
    "cost": (32, 23),
    "no cost": (82, 40),
    # failures, as the clients raise them
    "error class": (57, 4),
    "error status": (57, 4),
    "error message": (56, 3),
    "retryable": (57, 4),
    "retryable, as told": (13, 0),
    "wait in seconds": (2, 0),
    "wait in milliseconds": (1, 0),
    "partial text": (1, 3),
    # what stands on the books
    "stop reason, booked": (114, 65),
    "verdict, booked": (171, 69),
    "status, booked": (171, 69),
    "model, booked": (115, 68),
    "id, booked": (115, 68),
    "usage as reported, booked": (115, 66),
    "usage as spelt, booked": (115, 32),
    "service tier, booked": (115, 66),
    "input_tokens, booked": (115, 66),
    "cache_read_tokens, booked": (115, 66),
    "cache_write_5m_tokens, booked": (115, 66),
    "cache_write_1h_tokens, booked": (115, 66),
    "output_tokens, booked": (115, 66),
    "reasoning_tokens, booked": (115, 66),
    "web searches, booked": (13, 13),
    "sound usage": (111, 63),
    "no cost, booked": (83, 42),
    "list cost, booked": (106, 62),
    "request id, booked": (58, 28),
    "error class, booked": (57, 4),
    "error message, booked": (57, 4),
    "suspect usage": (4, 3),
    "no list cost, booked": (9, 4),
    "upstream, booked": (57, 26),
    "cost, booked": (32, 24),
    "own key, booked": (32, 24),
    "upstream cost, booked": (28, 9),
    # items of streams
    "items: text": (0, 69),
    "items: thinking": (0, 13),
    "items: order of tool calls": (0, 19),
    "items: input": (0, 19),
    "items: later ones": (0, 19),
    "items: tool call": (0, 19),
    "items: arguments": (0, 13),
    # what else of streams stands on the books
    "first token, booked": (171, 69),
    "streamed, booked": (171, 69),
    "first token in time": (0, 66),
    "no usage: costs": (0, 2),
    "no usage: suspect": (0, 2),
    "no usage: in doubt": (0, 2),
    "no usage, booked": (0, 2),
}
COMPARED_OF_EXPECTED = {
    *("text", "thinking", "tool_calls", "stop_reason", "refusal", "model", "response_id"),
    *("upstream_provider", "usage", "usage_iterations", "error"),
    *("provider_cost_usd", "upstream_inference_cost_usd", "is_byok"),
    *("usage: input_tokens", "usage: output_tokens", "usage: total_tokens", "usage: reasoning"),
    *("usage: cache_read", "usage: cache_write", "usage: cache_write_5m", "usage: cache_write_1h"),
    *("usage: convention", "usage: web_search_requests"),
    *("error: sdk_exception", "error: status", "error: body", "error: request-id", "error: x-request-id"),
    *("error: x-should-retry", "error: retry-after", "error: retry-after-ms"),
}
WITHOUT_A_PLACE_HERE = {  # what no answer of ours has a field for, or what tells another's spelling of it
    *("native_finish_reason", "stop_sequence", "function_call", "server_tool_calls"),
    *("block_types", "reasoning_details_types", "stop_details", "n_choices", "sse_comments", "accumulator"),
    *("error: message", "error: code", "error: type", "error: where"),
}
_SINCE = datetime(2020, 1, 1, tzinfo=UTC)
_DOLLARS = {  # USD per million tokens, primes; of every model there is, and twice that for a second one
    "input": 2,
    "cache_read": 3,
    "cache_write_5m": 5,
    "cache_write_1h": 7,
    "output": 11,
    "web_search": 13,
}
_STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    None: "end_turn",
}
_ERROR_TYPES = {  # by the class of the SDK's exception
    "BadRequestError": "invalid_request",
    "AuthenticationError": "authentication_failed",
    "PermissionDeniedError": "permission_denied",
    "NotFoundError": "not_found",
    "ContentTooLargeError": "request_too_large",
    "RateLimitError": "rate_limited",
    "InternalServerError": "server_error",
    "OverloadedError": "overloaded",
    "APIStatusError": "insufficient_credits",  # 402, of which it makes no class of its own
    None: "server_error",  # HTTP 200, which is no error to it; these have the code 502
}
_ERROR_TYPES_IN_STREAMS = {  # by the type or code that they have
    "overloaded_error": "overloaded",
    "server_error": "server_error",
    400: "invalid_request",
}
_BILLING = {
    "answered_with_error": "billed",
    "error_status": "unbilled",
    "error_in_answer": "unbilled",
    "no_answer": "unknown",
}
_RETRYABLE = ("rate_limited", "server_error", "overloaded")

Compared = Iterator[tuple[str, Any, Any]]


def _read(name: str) -> Any:
    return json.loads((_TRAFFIC / name).read_text("utf-8"))


@cache
def _expected() -> Mapping[str, Mapping[str, Any]]:
    content: Mapping[str, Mapping[str, Any]] = _read("expected.json")
    return content


def _files(*, streamed: bool) -> list[str]:
    if not (_TRAFFIC / "index.json").is_file():
        return []
    rows = [row for row in _read("index.json") if row["kind"] != "count_tokens"]
    return [row["file"] for row in rows if row["stream"] is streamed]


ANSWERS, STREAMS = _files(streamed=False), _files(streamed=True)
_SHORT = 4_000  # bytes; what is longer does not come over a socket byte by byte


class Replay(NamedTuple):
    """A file, and how its body comes."""

    file: str
    how: str = "in one piece"  # "byte by byte": out of a transport; "over a socket byte by byte"

    @property
    def session_id(self) -> str:
        return f"{self.file} {self.how}"


REPLAYS = [
    *(Replay(file) for file in (*ANSWERS, *STREAMS)),
    *(Replay(file, "byte by byte") for file in STREAMS),
    *(
        Replay(file, "over a socket byte by byte")
        for file in STREAMS
        if len(_read(file)["response"]["sse"]) < _SHORT
    ),
]


class Exchange(NamedTuple):
    """What was recorded of an exchange, and what became of it here."""

    file: str
    expected: Mapping[str, Any]
    recorded: Mapping[str, Any]  # the response: status, headers, body or sse or text
    returned: ClientResponse | ProviderError
    items: tuple[StreamItem, ...]
    booked: Mapping[str, Any]  # the event of its one attempt

    @property
    def headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.recorded["headers"].items()}

    @property
    def is_streamed(self) -> bool:
        return "sse" in self.recorded

    @property
    def is_cut(self) -> bool:
        """Whether a stream ended before its finish. The SDK does not mind."""
        is_ended = "error" in self.expected or self.expected["stop_reason"] is not None
        return self.is_streamed and not is_ended

    @property
    def body(self) -> Any:
        return _folded(self.recorded["sse"]) if self.is_streamed else self.recorded.get("body")


def _folded(sse: str) -> Mapping[str, Any]:
    """What is looked at here of the body that a stream would have been: usage, tier and annotations."""
    data = [line.removeprefix("data:").strip() for line in sse.split("\n") if line.startswith("data:")]
    chunks = [json.loads(one) for one in data if one not in ("", "[DONE]")]
    usage: dict[str, Any] = {}
    for chunk in chunks:
        told = chunk.get("usage") or (chunk.get("message") or {}).get("usage") or {}
        usage |= {name: value for name, value in told.items() if value is not None}
    choices = [choice for chunk in chunks for choice in chunk.get("choices") or () if not choice["index"]]
    annotations = [row for choice in choices for row in choice["delta"].get("annotations") or ()]
    return {
        "usage": usage,
        "service_tier": next((chunk["service_tier"] for chunk in chunks if chunk.get("service_tier")), None),
        "choices": [{"message": {"annotations": annotations}}],
    }


# The replay -----------------------------------------------------------------------------------


def _body(recorded: Mapping[str, Any]) -> str:
    text: str | None = recorded.get("sse") or recorded.get("text")
    return json.dumps(recorded["body"], ensure_ascii=False) if text is None else text


def _head(recorded: Mapping[str, Any], body: bytes) -> bytes:
    """What goes over the wire before the recorded body."""
    headers = {"content-length": str(len(body)), "connection": "close", **recorded["headers"]}
    lines = [
        f"HTTP/1.1 {recorded['status']} Recorded",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def _serve(connection: socket.socket, leaving: threading.Event) -> None:
    """Answer with the exchange that the path begins with."""
    _, path, _ = read_request(connection).split(b" ", 2)
    _, pieces, file, *_ = path.decode().split("/")
    recorded = _read(file)["response"]
    body = _body(recorded).encode()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(_head(recorded, body))
    for piece in _bytes_of(body) if pieces == "bytes" else (body,):
        connection.sendall(piece)


def _bytes_of(body: bytes) -> Iterator[bytes]:
    return (body[at : at + 1] for at in range(len(body)))


class ByteByByte(httpx.BaseTransport):
    """The same without a socket."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        recorded = _read(request.url.path.split("/")[2])["response"]
        stream = Bytes(_body(recorded).encode())
        return httpx.Response(recorded["status"], headers=recorded["headers"], stream=stream)


class Bytes(httpx.SyncByteStream):
    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return _bytes_of(self._body)


Returned = tuple[ClientResponse | ProviderError, tuple[StreamItem, ...]]


def _ask(replay: Replay, url: str, tracker: CostTracker) -> Returned:
    file = replay.file
    model, messages = _asked(file), [{"role": "user", "content": "…"}]
    made: dict[str, Any] = {
        "api_key": "not-a-key",
        "base_url": f"{url}/{'bytes' if 'socket' in replay.how else 'whole'}/{file}",
        "max_retries": 0,
        "tracker": tracker,
        "transport": ByteByByte() if replay.how == "byte by byte" else None,
    }
    how: dict[str, Any] = {"session_id": replay.session_id, "stream": file in STREAMS}
    items: list[StreamItem] = []
    try:
        if file.startswith("anthropic"):
            with AnthropicClient(**made) as anthropic:
                return _read_to_its_end(anthropic.create_message(model, messages, **how), items)
        with OpenRouterClient(**made) as openrouter:
            return _read_to_its_end(openrouter.create_completion(model, messages, **how), items)
    except ProviderError as failure:
        return failure, tuple(items)


def _read_to_its_end(
    answer: ClientResponse | Stream[ClientResponse], items: list[StreamItem]
) -> tuple[ClientResponse, tuple[StreamItem, ...]]:
    if not isinstance(answer, Stream):
        return answer, ()
    with answer as stream:
        items.extend(stream)  # those before a failure too
    return stream.response, tuple(items)


def _asked(file: str) -> str:
    """The model that was asked, or was not recorded."""
    return str(((_read(file).get("request") or {}).get("body") or {}).get("model", "any"))


@cache
def _second_models() -> frozenset[str]:
    """Models that ran inside the answer of another one; they cost twice as much."""
    passes = [row for file in (*ANSWERS, *STREAMS) for row in _expected()[file].get("usage_iterations", ())]
    return frozenset(row["model"] for row in passes if row["model"] is not None)


def _times(model: str) -> int:
    return 2 if model in _second_models() else 1


def _book() -> PriceBook:
    """A price for each model that was asked or ran."""
    models = {*map(_asked, (*ANSWERS, *STREAMS)), *_second_models()}
    return PriceBook(
        [
            ModelPrices(provider, model, _SINCE, UnitPrices(**_prices(_times(model))))
            for provider in ("anthropic", "openrouter")
            for model in models
        ]
    )


def _prices(times: int) -> dict[str, Decimal]:
    return {name: Decimal(times * price) for name, price in _DOLLARS.items()}


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> dict[Replay, Exchange]:
    path = tmp_path_factory.mktemp("traffic") / "ledger"
    with (
        Ledger.open(path, "process-crash", prices=_book(), auto_seal=False) as ledger,
        OneShotServer(_serve) as server,
    ):
        tracker = CostTracker(ledger)
        returned = {replay: _ask(replay, server.url, tracker) for replay in REPLAYS}
    with connect(path, views=("events",)) as connection:
        asked = connection.execute(
            "select * from events where event_type in ('attempt_succeeded', 'attempt_failed')"
        )
        names = [column[0] for column in asked.description or ()]
        booked = [dict(zip(names, row, strict=True)) for row in asked.fetchall()]
    assert len(booked) == len(REPLAYS)
    by_session = {event["session_id"]: event for event in booked}
    return {
        replay: Exchange(
            replay.file,
            _expected()[replay.file],
            _read(replay.file)["response"],
            *returned[replay],
            by_session[replay.session_id],
        )
        for replay in REPLAYS
    }


# What is compared -----------------------------------------------------------------------------


def _compared(exchange: Exchange) -> Compared:
    if exchange.is_cut:
        yield from _cut(exchange)
    elif "error" in exchange.expected:
        yield from _failure(exchange)
    else:
        yield from _answer(exchange)
    yield from _on_the_books(exchange)
    if exchange.is_streamed:
        yield from _in_items(exchange)
    if exchange.expected.get("usage"):
        yield from _buckets(exchange)
        yield from _money(exchange)
    elif isinstance(exchange.returned, dict):
        yield from _without_usage(exchange)


def _answer(exchange: Exchange) -> Compared:
    returned, expected, booked = exchange.returned, exchange.expected, exchange.booked
    assert isinstance(returned, dict), returned
    calls = returned["tool_calls"]
    yield "text", returned["content"], expected["text"]
    yield "tool calls: number", len(calls), len(expected["tool_calls"])
    for call, known in zip(calls, expected["tool_calls"], strict=True):
        yield "tool calls: id", call["id"], known["id"]
        yield "tool calls: input", call["input"], known["input"]
        if known["name"] is not None:  # the SDK reads no name of a custom tool
            yield "tool calls: name", call["name"], known["name"]
        if known["input"] is None:
            yield "tool calls: raw arguments", call["input_raw"], known["arguments_raw"]
    stop_reason = _stop_reason(expected)
    yield "stop reason", returned["stop_reason"], stop_reason
    yield "stop reason, booked", booked["stop_reason"], stop_reason
    yield "model", returned["model"], expected["model"]
    yield "id", returned["id"], expected["response_id"]
    yield "verdict, booked", (booked["billing"], booked["billing_rule"]), ("billed", "answered")


def _stop_reason(expected: Mapping[str, Any]) -> str:
    told = expected["stop_reason"]
    if expected.get("refusal"):
        return "refusal"
    if expected["tool_calls"] and told in ("stop", None):
        return "tool_use"
    return str(_STOP_REASONS.get(told, told))


def _failure(exchange: Exchange) -> Compared:
    failure, known, booked = exchange.returned, exchange.expected["error"], exchange.booked
    assert isinstance(failure, ProviderError), failure
    error_type = _error_type(exchange)
    yield "error class", failure.error_type, error_type
    yield "error class, booked", booked["error_type"], error_type
    yield "error status", failure.http_status, exchange.recorded["status"]
    is_begun = exchange.is_streamed and exchange.expected["response_id"] is not None
    told = {"true": True, "false": False, None: error_type in _RETRYABLE and not is_begun}
    yield "retryable", failure.retryable, told[known.get("x-should-retry")]
    if known.get("x-should-retry"):
        yield "retryable, as told", failure.retryable, told[known["x-should-retry"]]
    if "retry-after-ms" in known:
        yield "wait in milliseconds", failure.retry_after_s, float(known["retry-after-ms"]) / 1000
    elif "retry-after" in known:
        yield "wait in seconds", failure.retry_after_s, float(known["retry-after"])
    if words := _words(known["body"]):
        yield "error message", words in str(failure), True
    yield "error message, booked", booked["error_message"], str(failure)[:500]
    rule = "answered_with_error" if _is_used(exchange) else _rule_of(exchange.recorded["status"])
    if is_begun and not _is_used(exchange):
        rule = "no_answer"
    yield "verdict, booked", (booked["billing"], booked["billing_rule"]), (_BILLING[rule], rule)
    if failure.partial is not None:
        yield "partial text", failure.partial.content, exchange.expected["text"]


def _error_type(exchange: Exchange) -> str:
    """Of an error in a stream, which has no status, by its own words."""
    known = exchange.expected["error"]
    if exchange.is_streamed:
        return _ERROR_TYPES_IN_STREAMS[known["type"] or known["code"]]
    assert exchange.recorded["status"] == known["status"]
    return str(_ERROR_TYPES[known["sdk_exception"]])


def _is_used(exchange: Exchange) -> bool:
    usage = exchange.expected.get("usage") or {}
    return any(count for name, count in usage.items() if name != "convention")


def _cut(exchange: Exchange) -> Compared:
    """A stream without its end is no answer, whatever it says of its use."""
    failure, booked = exchange.returned, exchange.booked
    assert isinstance(failure, ProviderError), failure
    yield "error class", failure.error_type, "stream_interrupted"
    yield "error class, booked", booked["error_type"], "stream_interrupted"
    yield "error status", failure.http_status, exchange.recorded["status"]
    yield "retryable", failure.retryable, False
    yield "error message, booked", booked["error_message"], str(failure)[:500]
    yield "verdict, booked", (booked["billing"], booked["billing_rule"]), ("unknown", "no_answer")
    yield "partial text", failure.partial and failure.partial.content, exchange.expected["text"]


def _in_items(exchange: Exchange) -> Compared:
    """Its items, joined, are the answer."""
    expected, items = exchange.expected, exchange.items
    yield "items: text", "".join(item.text for item in items if isinstance(item, TextDelta)), expected["text"]
    if "thinking" in expected:
        thought = "".join(item.text for item in items if isinstance(item, ThinkingDelta))
        yield "items: thinking", thought, expected["thinking"]
    fragments = [item for item in items if isinstance(item, ToolCallDelta)]
    if not fragments:
        return
    indexes = list(dict.fromkeys(item.index for item in fragments))
    yield "items: order of tool calls", indexes, list(range(len(expected["tool_calls"])))
    for index, known in enumerate(expected["tool_calls"]):
        first, *later = [item for item in fragments if item.index == index]
        arguments = "".join(item.arguments for item in (first, *later))
        yield "items: tool call", (first.id, first.name), (known["id"], known["name"])
        yield "items: later ones", {(item.id, item.name) for item in later} <= {(None, None)}, True
        yield "items: input", json.loads(arguments or "{}"), known["input"]
        if known.get("arguments_raw") is not None:
            yield "items: arguments", arguments, known["arguments_raw"]


def _rule_of(status: int) -> str:
    return "error_in_answer" if status == 200 else "error_status"


def _words(body: Any) -> str | None:
    """The beginning of what a recorded error says, up to where an error text is bounded or scrubbed."""
    if not isinstance(body, dict):
        return None
    error = body.get("error", body)
    said = error.get("message") or error.get("title")
    return " ".join(str(said).split())[:60] if said else None


def _on_the_books(exchange: Exchange) -> Compared:
    expected, booked, headers = exchange.expected, exchange.booked, exchange.headers
    yield "status, booked", booked["http_status"], exchange.recorded["status"]
    yield "streamed, booked", booked["streamed"], exchange.is_streamed
    first_token_ms = booked["first_token_ms"]
    yield "first token, booked", first_token_ms is not None, bool(exchange.items)
    if exchange.items:
        yield "first token in time", 0 <= first_token_ms <= booked["latency_ms"], True
    if expected["model"] is not None:
        yield "model, booked", booked["response_model"], expected["model"]
        yield "id, booked", booked["response_id"], expected["response_id"]
    if "upstream_provider" in expected:
        yield "upstream, booked", booked["upstream_provider"], expected["upstream_provider"]
    if request_id := _request_id(exchange.file, headers, exchange.body):
        yield "request id, booked", booked["provider_request_id"], request_id
    if reported := _reported_usage(exchange):
        yield "usage as reported, booked", json.loads(booked["usage_json"]), reported
        if not (exchange.is_streamed and exchange.file.startswith("anthropic")):  # told in two parts
            yield "usage as spelt, booked", booked["usage_json"] in _body(exchange.recorded), True
        tier = reported.get("service_tier") or exchange.body.get("service_tier")
        yield "service tier, booked", booked["service_tier"], tier


def _request_id(file: str, headers: Mapping[str, str], body: Any) -> str | None:
    if not file.startswith("anthropic"):
        return headers.get("x-generation-id") or headers.get("x-request-id")
    in_body = body.get("request_id") if isinstance(body, dict) else None
    return headers.get("request-id") or in_body


def _reported_usage(exchange: Exchange) -> Mapping[str, Any] | None:
    body = exchange.body
    usage: Mapping[str, Any] | None = body.get("usage") if isinstance(body, dict) else None
    return usage


# Tokens and money: from expected.json alone -----------------------------------------------------


def _disjoint(expected: Mapping[str, Any]) -> dict[str, int]:
    """The buckets by `usage.convention`, and what only `usage_iterations` count."""
    usage = {name: count or 0 for name, count in expected["usage"].items() if name != "convention"}
    fresh, read, written = usage["input_tokens"], usage["cache_read"], usage["cache_write"]
    output, reasoning = usage["output_tokens"], usage["reasoning"]
    if expected["usage"]["convention"] == "input_includes_cache":
        fresh = max(fresh - read - written, 0)
        if reasoning and usage["total_tokens"] == usage["input_tokens"] + output + reasoning:
            output += reasoning  # counted apart: the total shows it
    if passes := expected.get("usage_iterations"):
        names = ("input_tokens", "cache_read", "cache_write", "output_tokens")
        fresh, read, written, output = (sum(row[name] for row in passes) for name in names)
    for_1h = usage["cache_write_1h"]
    return {
        "input_tokens": fresh,
        "cache_read_tokens": read,
        "cache_write_5m_tokens": written - for_1h,
        "cache_write_1h_tokens": for_1h,
        "output_tokens": output,
        "reasoning_tokens": min(reasoning, output),  # a part of it, whatever is told
    }


def _buckets(exchange: Exchange) -> Compared:
    buckets = _disjoint(exchange.expected)
    if isinstance(exchange.returned, dict):
        for name, count in buckets.items():
            yield name, exchange.returned["usage"][name], count  # type: ignore[literal-required]
    for name, count in buckets.items():
        yield f"{name}, booked", exchange.booked[name], count
    searches = exchange.expected["usage"].get("web_search_requests")
    if searches is not None:
        yield "web searches, booked", exchange.booked["web_search_requests"], searches
    is_suspect = _is_suspect(exchange)
    yield f"{'suspect' if is_suspect else 'sound'} usage", bool(exchange.booked["usage_suspect"]), is_suspect


def _is_suspect(exchange: Exchange) -> bool:
    usage = {name: count or 0 for name, count in exchange.expected["usage"].items() if name != "convention"}
    if exchange.expected["usage"]["convention"] == "input_includes_cache":
        return _is_contradictory(exchange)
    return bool(usage["cache_write"] > usage["cache_write_5m"] + usage["cache_write_1h"])


def _is_contradictory(exchange: Exchange) -> bool:
    """Whether the numbers of an OpenAI-compatible answer cannot all be right, or say too little."""
    usage = {name: count or 0 for name, count in exchange.expected["usage"].items() if name != "convention"}
    return (
        usage["cache_read"] + usage["cache_write"] > usage["input_tokens"]
        or usage["total_tokens"] != usage["input_tokens"] + usage["output_tokens"]
        or usage["reasoning"] > usage["output_tokens"]
        or ("url_citation" in _annotations(exchange) and not _searches(exchange))
    )


def _searches(exchange: Exchange) -> int:
    """OpenRouter's count of them, which the SDK does not read."""
    used = (_reported_usage(exchange) or {}).get("server_tool_use_details") or {}
    return int(used.get("web_search_requests", 0))


def _annotations(exchange: Exchange) -> set[str]:
    choices = exchange.body.get("choices") or [{}]
    return {row["type"] for row in choices[0].get("message", {}).get("annotations") or ()}


def _has_sound(exchange: Exchange) -> bool:
    """Whether some tokens are of sound, which has prices of its own."""
    usage = _reported_usage(exchange) or {}
    parts = [usage.get(name) or {} for name in ("prompt_tokens_details", "completion_tokens_details")]
    return any(part.get("audio_tokens") for part in parts)


def _without_usage(exchange: Exchange) -> Compared:
    """It may have cost whatever it may have cost: its ceiling stays in doubt."""
    booked = exchange.booked
    yield "no usage, booked", {booked[f"{name}_tokens"] for name in _DOLLARS if name != "web_search"}, {0}
    yield "no usage: suspect", bool(booked["usage_suspect"]), True
    yield "no usage: costs", (booked["list_cost_usd"], booked["billed_cost_usd"]), (None, None)
    yield "no usage: in doubt", booked["reserved_usd"] is not None, True


def _money(exchange: Exchange) -> Compared:
    expected, booked = exchange.expected, exchange.booked
    is_in_doubt = booked["billing"] == "unknown"
    billed, listed = _billed(expected), None if is_in_doubt else _list_cost(exchange)
    cost = "cost" if billed is not None else "no cost"
    if isinstance(exchange.returned, dict):
        yield cost, exchange.returned["cost"], billed
    yield f"{cost}, booked", booked["billed_cost_usd"], billed
    if "is_byok" in expected or billed is not None:
        yield "own key, booked", bool(booked["is_byok"]), bool(expected.get("is_byok"))
    if "upstream_inference_cost_usd" in expected:
        upstream = Decimal(str(expected["upstream_inference_cost_usd"]))
        yield "upstream cost, booked", booked["upstream_cost_usd"], round(upstream, 12)
    yield f"{'list cost' if listed is not None else 'no list cost'}, booked", booked["list_cost_usd"], listed


def _billed(expected: Mapping[str, Any]) -> Decimal | None:
    if expected.get("provider_cost_usd") is None:
        return None
    upstream = expected["upstream_inference_cost_usd"] if expected.get("is_byok") else 0
    return round(Decimal(str(expected["provider_cost_usd"])) + Decimal(str(upstream)), 12)


def _list_cost(exchange: Exchange) -> Decimal | None:
    """Each bucket at its price, passes of another model at that one's. None where something has none."""
    expected = exchange.expected
    buckets = _disjoint(expected)
    if expected["usage"]["convention"] == "input_includes_cache":
        if _is_contradictory(exchange) or "file" in _annotations(exchange) or _has_sound(exchange):
            return None
        searches = _searches(exchange)
    else:
        searches = expected["usage"].get("web_search_requests") or 0
    units = {name: buckets[f"{name}_tokens"] for name in _DOLLARS if name != "web_search"}
    own = _times(_asked(exchange.file))
    of_tokens = sum(count * _DOLLARS[name] for name, count in units.items())
    pico = own * (of_tokens + searches * _DOLLARS["web_search"] * 10**6)
    for row in expected.get("usage_iterations", ()):
        if row["model"] is not None:
            of_pass = row["input_tokens"] * _DOLLARS["input"] + row["output_tokens"] * _DOLLARS["output"]
            of_pass += row["cache_read"] * _DOLLARS["cache_read"]
            of_pass += row["cache_write"] * _DOLLARS["cache_write_5m"]
            pico += of_pass * (_times(row["model"]) - own)  # once they are counted
    return Decimal(pico).scaleb(-6)


# Tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("replay", REPLAYS, ids=lambda replay: replay.session_id)
def test_an_exchange_is_returned_and_booked_as_the_sdk_reads_it(
    replay: Replay, replayed: Mapping[Replay, Exchange]
) -> None:
    compared = list(_compared(replayed[replay]))

    assert [(field, found) for field, found, _ in compared] == [
        (field, known) for field, _, known in compared
    ]


def test_no_comparison_has_shrunk(replayed: Mapping[Replay, Exchange]) -> None:
    def fields(files: list[str], how: str) -> Counter[str]:
        exchanges = [replayed[Replay(file, how)] for file in files]
        return Counter(field for one in exchanges for field in {field for field, _, _ in _compared(one)})

    whole, streams = fields(ANSWERS, "in one piece"), fields(STREAMS, "in one piece")

    assert {field: (whole[field], streams[field]) for field in whole | streams} == COMPARED
    assert fields(STREAMS, "byte by byte") == streams


def test_whatever_the_sdk_reads_is_compared_or_has_no_place_here() -> None:
    fields = set()
    for known in (_expected()[file] for file in (*ANSWERS, *STREAMS)):
        fields |= known.keys()
        for part in ("usage", "error"):
            fields |= {f"{part}: {field}" for field in known.get(part) or ()}

    assert fields == COMPARED_OF_EXPECTED | WITHOUT_A_PLACE_HERE
