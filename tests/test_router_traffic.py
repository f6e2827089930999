"""Recorded traffic over a socket through the real clients: what they return, and what stands on the books.

Each exchange is one session of one ledger. What is compared of it is a list of (field, found, expected),
and COMPARED says for how many exchanges each field is: a comparison cannot silently shrink.
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

import pytest
from one_shot_server import OneShotServer, read_request

from ledger import CostTracker, Ledger
from ledger.prices import ModelPrices, PriceBook, UnitPrices
from ledger.reader import connect
from router import AnthropicClient, OpenRouterClient
from router.errors import ProviderError
from router.types import ClientResponse

_ROOT = Path(__file__).resolve().parent.parent
_TRAFFIC = Path(os.environ.get("BUGHIVE_TRAFFIC") or _ROOT.parent / "shared" / "traffic")

pytestmark = pytest.mark.skipif(
    not (_TRAFFIC / "expected.json").is_file(), reason=f"no recorded traffic at {_TRAFFIC}"
)

COMPARED = {  # for how many of the 171 exchanges
    # answers, as the clients return them
    "text": 114,
    "tool calls: number": 114,
    "tool calls: id": 33,
    "tool calls: name": 32,
    "tool calls: input": 33,
    "tool calls: raw arguments": 1,
    "stop reason": 114,
    "model": 114,
    "id": 114,
    "input_tokens": 114,
    "cache_read_tokens": 114,
    "cache_write_5m_tokens": 114,
    "cache_write_1h_tokens": 114,
    "output_tokens": 114,
    "reasoning_tokens": 114,
    "cost": 32,
    "no cost": 82,
    # failures, as the clients raise them
    "error class": 57,
    "error status": 57,
    "error message": 56,
    "retryable": 57,
    "retryable, as told": 13,
    "wait in seconds": 2,
    "wait in milliseconds": 1,
    "partial text": 1,
    # what stands on the books
    "stop reason, booked": 114,
    "verdict, booked": 171,
    "status, booked": 171,
    "model, booked": 115,
    "id, booked": 115,
    "usage as reported, booked": 115,
    "usage as spelt, booked": 115,
    "service tier, booked": 115,
    "input_tokens, booked": 115,
    "cache_read_tokens, booked": 115,
    "cache_write_5m_tokens, booked": 115,
    "cache_write_1h_tokens, booked": 115,
    "output_tokens, booked": 115,
    "reasoning_tokens, booked": 115,
    "web searches, booked": 13,
    "sound usage": 111,
    "no cost, booked": 83,
    "list cost, booked": 106,
    "request id, booked": 58,
    "error class, booked": 57,
    "error message, booked": 57,
    "suspect usage": 4,
    "no list cost, booked": 9,
    "upstream, booked": 57,
    "cost, booked": 32,
    "own key, booked": 32,
    "upstream cost, booked": 28,
}
COMPARED_OF_EXPECTED = {
    *("text", "tool_calls", "stop_reason", "refusal", "model", "response_id", "upstream_provider"),
    *("usage", "usage_iterations", "provider_cost_usd", "upstream_inference_cost_usd", "is_byok", "error"),
    *("usage: input_tokens", "usage: output_tokens", "usage: total_tokens", "usage: reasoning"),
    *("usage: cache_read", "usage: cache_write", "usage: cache_write_5m", "usage: cache_write_1h"),
    *("usage: convention", "usage: web_search_requests"),
    *("error: sdk_exception", "error: status", "error: body", "error: request-id", "error: x-request-id"),
    *("error: x-should-retry", "error: retry-after", "error: retry-after-ms"),
}
WITHOUT_A_PLACE_HERE = {  # what no answer of ours has a field for, or what tells another's spelling of it
    *("native_finish_reason", "stop_sequence", "function_call", "server_tool_calls"),
    *("block_types", "thinking", "reasoning_details_types"),
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
_RETRYABLE = ("rate_limited", "server_error", "overloaded")

Compared = Iterator[tuple[str, Any, Any]]


def _read(name: str) -> Any:
    return json.loads((_TRAFFIC / name).read_text("utf-8"))


@cache
def _expected() -> Mapping[str, Mapping[str, Any]]:
    content: Mapping[str, Mapping[str, Any]] = _read("expected.json")
    return content


def _unstreamed() -> list[str]:
    if not (_TRAFFIC / "index.json").is_file():
        return []
    rows = _read("index.json")
    return [row["file"] for row in rows if not row["stream"] and row["kind"] != "count_tokens"]


FILES = _unstreamed()


class Exchange(NamedTuple):
    """What was recorded of an exchange, and what became of it here."""

    file: str
    expected: Mapping[str, Any]
    recorded: Mapping[str, Any]  # the response: status, headers, body or text
    returned: ClientResponse | ProviderError
    booked: Mapping[str, Any]  # the event of its one attempt

    @property
    def headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.recorded["headers"].items()}


# The replay -----------------------------------------------------------------------------------


def _body(recorded: Mapping[str, Any]) -> str:
    text: str | None = recorded.get("text")
    return json.dumps(recorded["body"], ensure_ascii=False) if text is None else text


def _reply(recorded: Mapping[str, Any]) -> bytes:
    """The recorded response as it goes over the wire."""
    body = _body(recorded).encode()
    headers = {"content-length": str(len(body)), "connection": "close", **recorded["headers"]}
    lines = [
        f"HTTP/1.1 {recorded['status']} Recorded",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _serve(connection: socket.socket, leaving: threading.Event) -> None:
    """Answer with the exchange that the path begins with."""
    _, path, _ = read_request(connection).split(b" ", 2)
    connection.sendall(_reply(_read(path.decode().split("/")[1])["response"]))


def _ask(file: str, url: str, tracker: CostTracker) -> ClientResponse | ProviderError:
    asked = (_read(file).get("request") or {}).get("body") or {}
    model, messages = asked.get("model", "any"), [{"role": "user", "content": "…"}]
    made: dict[str, Any] = {
        "api_key": "not-a-key",
        "base_url": f"{url}/{file}",
        "max_retries": 0,
        "tracker": tracker,
    }
    try:
        if file.startswith("anthropic"):
            with AnthropicClient(**made) as anthropic:
                return anthropic.create_message(model, messages, session_id=file)
        with OpenRouterClient(**made) as openrouter:
            return openrouter.create_completion(model, messages, session_id=file)
    except ProviderError as failure:
        return failure


def _book() -> PriceBook:
    """A price for each model that was asked or answered."""
    units = UnitPrices(**{name: Decimal(price) for name, price in _DOLLARS.items()})
    twice = UnitPrices(**{name: Decimal(2 * price) for name, price in _DOLLARS.items()})
    asked = {((_read(file).get("request") or {}).get("body") or {}).get("model", "any") for file in FILES}
    passes = [row["model"] for file in FILES for row in _expected()[file].get("usage_iterations", ())]
    return PriceBook(
        [
            ModelPrices(provider, model, _SINCE, units)
            for provider in ("anthropic", "openrouter")
            for model in asked
        ]
        + [ModelPrices("anthropic", model, _SINCE, twice) for model in {*passes} - {None, *asked}]
    )


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exchange]:
    path = tmp_path_factory.mktemp("traffic") / "ledger"
    with (
        Ledger.open(path, "process-crash", prices=_book(), auto_seal=False) as ledger,
        OneShotServer(_serve) as server,
    ):
        tracker = CostTracker(ledger)
        returned = {file: _ask(file, server.url, tracker) for file in FILES}
    with connect(path, views=("events",)) as connection:
        asked = connection.execute(
            "select * from events where event_type in ('attempt_succeeded', 'attempt_failed')"
        )
        names = [column[0] for column in asked.description or ()]
        booked = [dict(zip(names, row, strict=True)) for row in asked.fetchall()]
    assert len(booked) == len(FILES)
    by_file = {event["session_id"]: event for event in booked}
    return {
        file: Exchange(file, _expected()[file], _read(file)["response"], returned[file], by_file[file])
        for file in FILES
    }


# What is compared -----------------------------------------------------------------------------


def _compared(exchange: Exchange) -> Compared:
    if "error" in exchange.expected:
        yield from _failure(exchange)
    else:
        yield from _answer(exchange)
    yield from _on_the_books(exchange)
    if exchange.expected.get("usage"):
        yield from _buckets(exchange)
        yield from _money(exchange)


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
    error_type = _ERROR_TYPES[known["sdk_exception"]]
    yield "error class", failure.error_type, error_type
    yield "error class, booked", booked["error_type"], error_type
    yield "error status", failure.http_status, known["status"]
    told = {"true": True, "false": False, None: error_type in _RETRYABLE}
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
    used = bool(exchange.expected.get("usage"))
    verdict = ("billed", "answered_with_error") if used else ("unbilled", _rule_of(known["status"]))
    yield "verdict, booked", (booked["billing"], booked["billing_rule"]), verdict
    if failure.partial is not None:
        yield "partial text", failure.partial.content, exchange.expected["text"]


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
    if expected["model"] is not None:
        yield "model, booked", booked["response_model"], expected["model"]
        yield "id, booked", booked["response_id"], expected["response_id"]
    if "upstream_provider" in expected:
        yield "upstream, booked", booked["upstream_provider"], expected["upstream_provider"]
    if request_id := _request_id(exchange.file, headers, exchange.recorded.get("body")):
        yield "request id, booked", booked["provider_request_id"], request_id
    if reported := _reported_usage(exchange):
        yield "usage as reported, booked", json.loads(booked["usage_json"]), reported
        yield "usage as spelt, booked", booked["usage_json"] in _body(exchange.recorded), True
        tier = reported.get("service_tier") or exchange.recorded["body"].get("service_tier")
        yield "service tier, booked", booked["service_tier"], tier


def _request_id(file: str, headers: Mapping[str, str], body: Any) -> str | None:
    if not file.startswith("anthropic"):
        return headers.get("x-generation-id") or headers.get("x-request-id")
    in_body = body.get("request_id") if isinstance(body, dict) else None
    return headers.get("request-id") or in_body


def _reported_usage(exchange: Exchange) -> Mapping[str, Any] | None:
    body = exchange.recorded.get("body")
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
        "reasoning_tokens": reasoning,
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
    choices = exchange.recorded["body"].get("choices") or [{}]
    return {row["type"] for row in choices[0].get("message", {}).get("annotations") or ()}


def _has_sound(exchange: Exchange) -> bool:
    """Whether some tokens are of sound, which has prices of its own."""
    usage = _reported_usage(exchange) or {}
    parts = [usage.get(name) or {} for name in ("prompt_tokens_details", "completion_tokens_details")]
    return any(part.get("audio_tokens") for part in parts)


def _money(exchange: Exchange) -> Compared:
    expected, booked = exchange.expected, exchange.booked
    billed, listed = _billed(expected), _list_cost(exchange)
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
    """Each bucket at its price; passes of a second model at twice that. None where something has none."""
    expected = exchange.expected
    buckets = _disjoint(expected)
    if expected["usage"]["convention"] == "input_includes_cache":
        if _is_contradictory(exchange) or "file" in _annotations(exchange) or _has_sound(exchange):
            return None
        searches = _searches(exchange)
    else:
        searches = expected["usage"].get("web_search_requests") or 0
    units = {name: buckets[f"{name}_tokens"] for name in _DOLLARS if name != "web_search"}
    pico = (
        sum(count * _DOLLARS[name] for name, count in units.items())
        + searches * _DOLLARS["web_search"] * 10**6
    )
    for row in expected.get("usage_iterations", ()):
        if row["model"] is not None:
            pico += row["input_tokens"] * _DOLLARS["input"] + row["output_tokens"] * _DOLLARS["output"]
            pico += (
                row["cache_read"] * _DOLLARS["cache_read"] + row["cache_write"] * _DOLLARS["cache_write_5m"]
            )
    return Decimal(pico).scaleb(-6)


# Tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_an_exchange_is_returned_and_booked_as_the_sdk_reads_it(
    file: str, replayed: Mapping[str, Exchange]
) -> None:
    compared = list(_compared(replayed[file]))

    assert [(field, found) for field, found, _ in compared] == [
        (field, known) for field, _, known in compared
    ]


def test_no_comparison_has_shrunk(replayed: Mapping[str, Exchange]) -> None:
    of = Counter(
        field for exchange in replayed.values() for field in {field for field, _, _ in _compared(exchange)}
    )

    assert dict(of) == COMPARED


def test_whatever_the_sdk_reads_is_compared_or_has_no_place_here() -> None:
    fields = set()
    for known in (_expected()[file] for file in FILES):
        fields |= known.keys()
        for part in ("usage", "error"):
            fields |= {f"{part}: {field}" for field in known.get(part) or ()}

    assert fields == COMPARED_OF_EXPECTED | WITHOUT_A_PLACE_HERE
