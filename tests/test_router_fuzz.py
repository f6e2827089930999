"""Whatever comes back is an answer that the books can hold, or a documented error; soon, in little memory."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import time
import tracemalloc
from collections.abc import Iterator
from copy import deepcopy
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from one_shot_server import OneShotServer, read_request

from ledger.events import AttemptFailed, AttemptSucceeded
from ledger.ledger import utc_now
from ledger.prices import PriceBook
from router import AnthropicClient, OpenRouterClient, ProviderError, books
from router.catalog import Route
from router.providers import anthropic, openrouter
from router.providers.wire import Answer

_ROOT = Path(__file__).resolve().parent.parent
_TRAFFIC = Path(os.environ.get("BUGHIVE_TRAFFIC") or _ROOT.parent / "shared" / "traffic")
DIALECTS = (anthropic, openrouter)
ASK = [{"role": "user", "content": "Analyze this page."}]
SECONDS, MEGABYTES = 1.0, 64
BOUNDED = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)


class Saying(httpx.BaseTransport):
    """Answers with what it was told to."""

    reply = (200, {"x": ""}, b"")

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        status, headers, body = self.reply
        raw = [(name.encode(), value.encode("utf-8", "replace")) for name, value in headers.items()]
        return httpx.Response(status, headers=raw, content=body)


SAYING = Saying()
CLIENTS = {
    anthropic: AnthropicClient("k" * 20, base_url="http://a.example", transport=SAYING),
    openrouter: OpenRouterClient("k" * 20, base_url="http://a.example", transport=SAYING),
}


def read(dialect: Any, status: int, headers: dict[str, str], body: bytes) -> Answer | ProviderError:
    """What a client makes of a reply, within its time and memory; it fits on the books."""
    SAYING.reply = (status, headers, body)
    with bounded():
        try:
            outcome: Answer | ProviderError = CLIENTS[dialect].send(b"{}", 5.0)
        except ProviderError as failure:
            outcome = failure
    record(outcome)
    return outcome


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """What is done here takes at most so much time and memory; watched here alone, for it makes all slow."""
    tracemalloc.start()
    try:
        began = time.thread_time()
        yield
        assert time.thread_time() - began <= SECONDS
        assert tracemalloc.get_traced_memory()[1] <= MEGABYTES * 2**20
    finally:
        tracemalloc.stop()


BOOK = PriceBook.load()
ROUTE = Route("REASONING", "deepseek/deepseek-chat", "openrouter")
ATTEMPT = books.Attempt(
    books.Request("r", None, "analyze_page", None, "REASONING"),
    *("a", 1, ROUTE, 10, Decimal(1)),
    BOOK.at(ROUTE.provider, ROUTE.model, utc_now()),
    "0" * 64,
)


def record(outcome: Answer | ProviderError) -> None:
    """As the router does it: an event that cannot be made would lose an answer that was paid for."""
    at = utc_now()
    if isinstance(outcome, ProviderError):
        cost = books.cost_of_failure(outcome, ROUTE, ATTEMPT.prices, BOOK, at)
        event: Any = books.failed(ATTEMPT, outcome, cost, books.Timing(at, 1.0), None)
        assert isinstance(event, AttemptFailed)
    else:
        cost = books.cost_of(outcome, ROUTE, ATTEMPT.prices, BOOK, at)
        event = books.succeeded(ATTEMPT, outcome, cost, books.Timing(at, 1.0))
        assert isinstance(event, AttemptSucceeded)
        outcome.as_response("m")
    event.model_dump_json()


# Whole recorded answers, and some by hand where there are none ------------------------------------

_BY_HAND: list[dict[str, Any]] = [
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-4-5-20251101",
        "content": [
            {"type": "text", "text": "so it is"},
            {"type": "tool_use", "id": "t", "name": "click", "input": {"at": {"x": 1.5}}},
        ],
        "stop_reason": "end_turn",
        "usage": {
            "input_tokens": 10,
            "output_tokens": 20,
            "cache_creation_input_tokens": 3,
            "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2},
            "iterations": [{"model": "x", "input_tokens": 5, "output_tokens": 6}],
            "server_tool_use": {"web_search_requests": 1},
        },
    },
    {
        "id": "gen-1",
        "model": "deepseek/deepseek-chat",
        "provider": "DeepInfra",
        "choices": [
            {
                "finish_reason": "stop",
                "message": {
                    "content": "so it is",
                    "tool_calls": [{"id": "c", "function": {"name": "click", "arguments": '{"x": 1}'}}],
                },
            }
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 20,
            "cost": 0.0001,
            "is_byok": True,
            "cost_details": {"upstream_inference_cost": 0.1},
            "completion_tokens_details": {"reasoning_tokens": 4},
        },
    },
    {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "r"},
    {"error": {"code": 502, "message": "no", "metadata": {"raw": "{}", "headers": {"Retry-After": "1"}}}},
]


def _recorded() -> list[dict[str, Any]]:
    index = _TRAFFIC / "index.json"
    if not index.is_file():
        return []
    rows = [row["file"] for row in json.loads(index.read_text("utf-8")) if not row["stream"]]
    responses = [json.loads((_TRAFFIC / file).read_text("utf-8"))["response"] for file in rows]
    bodies = [response["body"] for response in responses if isinstance(response.get("body"), dict)]
    return [body for body in bodies if len(json.dumps(body)) < 8_000]


ANSWERS = [*_BY_HAND, *_recorded()]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**53, -1, 10**30, -(10**400), 2**63]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
    st.sampled_from(["", "\ud800", "\x00", "end_turn", "error", "9" * 5_000, "sk-ant-abcdefgh"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
statuses = st.sampled_from([200, 200, 200, 201, 204, 301, 400, 403, 429, 500, 503, 529, 599, 100, 0, 99_999])


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, part in inner for path in _paths(part, (*at, key)))]


def _with(value: Any, path: tuple[Any, ...], part: Any) -> Any:
    """A copy in which what stands at the path is another thing; Ellipsis: is gone."""
    if not path:
        return None if part is ... else part
    changed = deepcopy(value)
    at = changed
    for key in path[:-1]:
        at = at[key]
    if part is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = part
    return changed


@st.composite
def broken_answers(draw: st.DrawFn) -> bytes:
    """A good answer of which one part is missing, of another type, or somewhere else's."""
    answer = draw(st.sampled_from(ANSWERS))
    path = draw(st.sampled_from(_paths(answer)))
    part = draw(st.just(...) | values)
    return json.dumps(_with(answer, path, part)).encode("utf-8", "replace")


@BOUNDED
@given(st.sampled_from(DIALECTS), statuses, st.binary(max_size=300))
@example(anthropic, 200, b"")
@example(openrouter, 200, b"\xff\xfe{}")
@example(openrouter, 500, b"\xef\xbb\xbf{}")
def test_any_bytes_are_an_answer_or_a_documented_failure(dialect: Any, status: int, body: bytes) -> None:
    read(dialect, status, {}, body)


@BOUNDED
@given(st.sampled_from(DIALECTS), statuses, values)
def test_so_is_any_json(dialect: Any, status: int, value: Any) -> None:
    read(dialect, status, {}, json.dumps(value).encode("utf-8", "replace"))


@settings(BOUNDED, max_examples=150)
@given(st.sampled_from(DIALECTS), statuses, broken_answers())
def test_so_is_an_answer_with_one_part_broken(dialect: Any, status: int, body: bytes) -> None:
    read(dialect, status, {}, body)


@BOUNDED
@given(
    statuses,
    st.sampled_from(["retry-after", "retry-after-ms", "x-should-retry", "request-id", "x-generation-id"]),
    st.text(max_size=30) | st.sampled_from(["1e400", "-1", "Sun, 99 Nov 99999 10:00:30 GMT", "0" * 9_000]),
)
def test_no_header_breaks_the_reading(status: int, name: str, value: str) -> None:
    for dialect in DIALECTS:
        read(dialect, status, {name: value}, b'{"error": {"message": "no"}}')


def _spelt(about: str) -> list[bytes]:
    """Each place of a number or a value in the answers by hand, with this in its stead."""
    return [
        json.dumps(_with(answer, path, "@@")).replace('"@@"', about).encode("utf-8", "surrogatepass")
        for answer in _BY_HAND
        for path in _paths(answer)
    ]


@pytest.mark.parametrize(
    "about",
    [
        *("NaN", "-Infinity", "1e999999999", "-1e-999999999", "9" * 5_000, "-" + "9" * 5_000, "0.1"),
        *('"\\ud800"', '"\\u0000"', '"' + "x" * 100_000 + '"', "1" + "0" * 400 + ".5", "1e400"),
        *("[" * 500 + "]" * 500, "[" * 900 + "]" * 900, "[" * 5_000 + "]" * 5_000),
        *(
            '{"a":' * 300 + "1" + "}" * 300,
            '{"a":' * 900 + "1" + "}" * 900,
            '{"a":' * 5_000 + "1" + "}" * 5_000,
        ),
        *(
            '{"a": 1, "a": 2}',
            '{"usage": {"usage": {}}}',
            '"{\\"a\\": ' + "[" * 5_000 + '"',
            "[]",
            "{}",
            "null",
        ),
    ],
    ids=lambda about: f"{about[:12]}…{len(about)}",
)
def test_what_no_well_behaved_provider_sends(about: str) -> None:
    for body in _spelt(about):
        for dialect in DIALECTS:
            for status in (200, 500):
                read(dialect, status, {}, body)


def test_members_that_come_twice_are_read_once() -> None:
    doubled = json.dumps(_BY_HAND[1])[:-1] + ', "usage": {"prompt_tokens": 1, "completion_tokens": 2}}'
    answer = read(openrouter, 200, {}, doubled.encode())

    assert isinstance(answer, Answer)
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (1, 2)


# Clients: what comes over a socket ------------------------------------------------------------------

heads = st.sampled_from(
    [
        *(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9%d\r\n"),
        *(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx: %d\r\n", b"HTTP/1.0 500 No\r\nx: %d\r\n"),
        *(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n", b"%d"),
        *(
            b"HTTP/1.1 101 Up\r\nx: %d\r\n",
            b"HTTP/1.1 999 What\r\ncontent-length: -%d\r\n",
            b"HTTP/9.9 200\r\n%d",
        ),
        *(b"HTTP/1.1 204 No\r\nx: %d\r\n", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx: %d\r\n"),
    ]
)
bodies = st.one_of(
    st.binary(max_size=200),
    broken_answers(),
    st.binary(max_size=50).map(gzip.compress),
    st.sampled_from(_BY_HAND).map(lambda answer: gzip.compress(json.dumps(answer).encode())),
)


@settings(BOUNDED, max_examples=30)
@given(heads, bodies)
@example(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n", gzip.compress(bytes(2**27)))
@example(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx: %d\r\n", b"ffffffffffffffff\r\n")
@example(b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999%d\r\n", b"{}")
def test_whatever_comes_over_a_socket_is_an_answer_or_a_documented_failure(head: bytes, body: bytes) -> None:
    sent = (head % len(body) if b"%d" in head else head) + b"\r\n" + body

    def act(connection: socket.socket, leaving: Any) -> None:
        read_request(connection)
        connection.sendall(sent)

    with (
        OneShotServer(act) as server,
        httpx.HTTPTransport() as own,
        AnthropicClient("k" * 20, base_url=server.url, max_retries=0, timeout=5) as plain,
        OpenRouterClient("k" * 20, base_url=server.url, max_retries=0, timeout=5, transport=own) as through,
    ):
        for ask in (plain.create_message, through.create_completion):
            with bounded(), contextlib.suppress(ProviderError):
                ask("m", ASK)  # type: ignore[operator]
