"""Streams over real sockets: what is shown, what is returned, what each way to break leaves on the books."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, NamedTuple

import httpx
import pytest
from one_shot_server import OneShotServer, read_request
from tenacity.wait import wait_none

from ledger import CostTracker, Ledger
from ledger.errors import BudgetExceeded
from ledger.events import ErrorType
from router import (
    AnthropicClient,
    InvalidRequest,
    LLMRouter,
    OpenRouterClient,
    ProviderError,
    Restarted,
    RouteExhausted,
    RouterError,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
)
from router.providers import streaming
from router.simulator import (
    Reply,
    Simulator,
    Tokens,
    cut_in_stream,
    ended_early,
    error_in_answer,
    error_in_stream,
    event_stream,
    malformed_chunk,
    overloaded,
    rate_limited,
    silent,
    stalled,
    without_done,
)

pytestmark = pytest.mark.usefixtures("nothing_set")

OPUS, CHAT, QWEN = "claude-opus-4-5-20251101", "deepseek/deepseek-chat", "qwen/qwen-2.5-32b-instruct"
TASK = {OPUS: "plan_crawl_strategy", CHAT: "analyze_page"}
ASK = [{"role": "user", "content": "Analyze this page."}]
TEXT = "The login form has three fields,\u2028and one of them has no label — “Name”. \N{BUG}"
BOTH = pytest.mark.parametrize("model", [OPUS, CHAT])


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.in_memory() as made:
        yield made


@pytest.fixture
def router(sim: Simulator, ledger: Ledger) -> Iterator[LLMRouter]:
    with (
        AnthropicClient("sk-ant-test-key", base_url=sim.anthropic_url) as anthropic,
        OpenRouterClient("sk-or-test-key", base_url=sim.openrouter_url) as openrouter,
    ):
        yield LLMRouter(
            *(anthropic, openrouter, CostTracker(ledger)),
            **{"max_retries": 1, "backoff": wait_none(), "sleep": lambda _: None},
        )


def events(ledger: Ledger, *types: str) -> list[dict[str, Any]]:
    """What stands in the journals, in order; of all types where none is named."""
    lines = [line for path in ledger.path.glob("journals/*.jsonl") for line in path.read_text().splitlines()]
    found = [json.loads(line) for line in lines]
    return [event for event in found if not types or event["event_type"] in types]


def text_of(items: list[Any]) -> str:
    return "".join(item.text for item in items if isinstance(item, TextDelta))


# What is shown is what is returned, and what it would have been unstreamed ------------------------


ANSWERS = {
    "a text": Reply(text=TEXT),
    "thinking": Reply(text=TEXT, thinking="First the form, then the rest."),
    "a tool call": Reply(tool_call=("click", {"selector": "#login", "times": 2})),
    "text and tool calls": Reply(text="Both.", tool_calls=[("click", {"at": "ä"}), ("scroll", {})]),
    "a refusal": Reply(text="", stop_reason="refusal"),
    "all buckets": Reply(text=TEXT, usage=Tokens(100, 50, 30, 20, 10, 5)),
}


@BOTH
@pytest.mark.parametrize("name", ANSWERS)
def test_a_stream_returns_books_and_shows_what_the_same_answer_unstreamed_is(
    sim: Simulator, router: LLMRouter, ledger: Ledger, model: str, name: str
) -> None:
    seen = []
    for streamed in (False, True):
        with Simulator(seed=3) as one:
            one.script(model, ANSWERS[name])
            sim.script(model, ANSWERS[name])
            if streamed:
                with router.stream(TASK[model], ASK) as stream:
                    items = list(stream)
                seen.append(stream.response)
            else:
                seen.append(router.route(TASK[model], ASK))
    whole, response = seen
    same = ("content", "stop_reason", "provider_stop_reason", "model_tier", "model", "provider", "attempts")

    assert {key: response[key] for key in same} == {key: whole[key] for key in same}
    assert [(call["name"], call["input"]) for call in response["tool_calls"]] == [
        (call["name"], call["input"]) for call in whole["tool_calls"]
    ]
    assert text_of(items) == response["content"]
    thoughts = "".join(item.text for item in items if isinstance(item, ThinkingDelta))
    assert thoughts == (ANSWERS[name].thinking or "")
    for index, call in enumerate(response["tool_calls"]):
        bits = [item for item in items if isinstance(item, ToolCallDelta) and item.index == index]
        assert (bits[0].id, bits[0].name) == (call["id"], call["name"])
        assert json.loads("".join(bit.arguments for bit in bits) or "{}") == call["input"]
    if ANSWERS[name].usage:
        assert (response["usage"], response["cost"]) == (whole["usage"], whole["cost"])
    first, second = events(ledger, "attempt_succeeded")
    assert (first.get("streamed", False), second["streamed"]) == (False, True)
    assert not items or 0 <= second["first_token_ms"] <= second["latency_ms"]
    assert [event["streamed"] for event in events(ledger, "request_received", "attempt_started")][-2:] == [
        True,
        True,
    ]


def test_the_response_is_there_at_the_end_and_not_before(sim: Simulator, router: LLMRouter) -> None:
    with router.stream("analyze_page", ASK) as stream:
        first = next(stream)
        with pytest.raises(RouterError, match="not whole yet"):
            _ = stream.response

        response = stream.read()

    assert isinstance(first, TextDelta)
    assert response["content"].startswith(first.text)
    assert stream.response is response
    assert list(stream) == []


def test_a_stream_that_nobody_reads_is_neither_sent_nor_recorded(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    with router.stream("analyze_page", ASK):
        pass

    assert sim.log == []
    assert events(ledger) == [] or [event["event_type"] for event in events(ledger)] == ["journal_opened"]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"first_token_s": 0}, "first_token_s must be a number of seconds above 0"),
        ({"idle_s": "long"}, "idle_s must be a number of seconds above 0"),
        ({"fallback_tier": "FASTER"}, "no model is set for tier 'FASTER'; did you mean FAST"),
        ({"stream": True}, "stream cannot be set here; call router.stream"),
        ({"sesion_id": "s"}, "there is no argument 'sesion_id'"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_is_sent(
    router: LLMRouter, sim: Simulator, wrong: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        router.stream("analyze_page", ASK, **wrong)
    assert sim.log == []


def test_limits_of_a_stream_are_for_streams(router: LLMRouter) -> None:
    with pytest.raises(InvalidRequest, match="idle_s is for stream"):
        router.route("analyze_page", ASK, idle_s=3)


@BOTH
def test_an_answer_that_comes_in_one_piece_is_shown_in_one(
    sim: Simulator, router: LLMRouter, model: str
) -> None:
    """Some gateways do not stream, whatever they are asked."""
    with Simulator(seed=7) as other:
        url = other.anthropic_url + "/v1/messages" if model == OPUS else other.openrouter_url
        url = url if model == OPUS else url + "/chat/completions"
        other.script(model, Reply(text="whole", tool_call=("click", {"a": 1})))
        body = httpx.post(url, json={"model": model, "messages": ASK, "max_tokens": 9}).json()
    sim.script(model, Reply(body=body))

    with router.stream(TASK[model], ASK) as stream:
        items = list(stream)

    call = stream.response["tool_calls"][0]
    assert items == [TextDelta("whole"), ToolCallDelta(0, call["id"], "click", '{"a": 1}')]


# What breaks, and what follows from it --------------------------------------------------------------


class Row(NamedTuple):
    """A reply, and what follows: how often the tier is asked, and whether the next one may be."""

    reply: Reply
    error_type: ErrorType
    billing: str
    tries: int = 1
    next_tier: bool = True


TABLE: dict[str, Row] = {
    "no head at all": Row(silent(), "timeout", "unknown"),
    "a head and nothing behind it": Row(stalled(0), "timeout", "unknown"),
    "signs of life, and no token": Row(stalled(0, keep_alive_s=0.02), "timeout", "unknown"),
    "a stall after some tokens": Row(stalled(3), "timeout", "unknown"),
    "signs of life after some tokens": Row(stalled(3, keep_alive_s=0.02), "timeout", "unknown"),
    "a cut after some tokens": Row(cut_in_stream(3), "stream_interrupted", "unknown"),
    "a reset after some tokens": Row(cut_in_stream(3, how="reset"), "stream_interrupted", "unknown"),
    "a cut before the first token": Row(cut_in_stream(0), "stream_interrupted", "unknown"),
    "an end without a finish": Row(ended_early(3), "stream_interrupted", "unknown"),
    "an end without anything": Row(ended_early(0), "malformed_response", "unknown", tries=2),
    "a page in place of a stream": Row(
        Reply(headers={"content-type": "text/html"}, body=b"<html>Bad gateway</html>"),
        *("malformed_response", "unknown", 2),
    ),
    "an error first": Row(error_in_stream(0), "overloaded", "unbilled", tries=2),
    "an error in the middle": Row(error_in_stream(3), "overloaded", "unknown"),
    "an error after the finish": Row(error_in_stream("finish", then="rest"), "overloaded", "billed"),
    "a part that cannot be read": Row(malformed_chunk(2), "stream_interrupted", "billed"),
    "noise, and no finish": Row(
        event_stream(b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\ndata: noise\n\n'),
        *("stream_interrupted", "unknown"),
    ),
    "an error status": Row(overloaded(503), "overloaded", "unbilled", tries=2),
    "a rate limit": Row(rate_limited(retry_after=1), "rate_limited", "unbilled", tries=2),
    "an error inside HTTP 200": Row(error_in_answer("not_found"), "not_found", "unbilled"),
    "a policy's refusal": Row(
        Reply(status=403, error="content_filtered"), "content_filtered", "unbilled", next_tier=False
    ),
}
CASES = [  # noise is written in OpenRouter's words
    (name, model) for name in TABLE for model in (OPUS, CHAT) if model == CHAT or "noise" not in name
]
IMPATIENT = {"first_token_s": 0.5, "idle_s": 0.5}  # where that is what is waited for


def patience(row: Row) -> dict[str, float]:
    return IMPATIENT if row.error_type == "timeout" else {}


@pytest.mark.parametrize(("name", "model"), CASES)
def test_without_a_fallback_what_breaks_is_an_error_and_never_a_shorter_answer(
    sim: Simulator, router: LLMRouter, ledger: Ledger, name: str, model: str
) -> None:
    row = TABLE[name]
    sim.script(model, row.reply, row.reply)

    with pytest.raises(RouteExhausted) as caught, router.stream(TASK[model], ASK, **patience(row)) as stream:
        stream.read()

    assert [attempt.error.error_type for attempt in caught.value.attempts] == [row.error_type] * row.tries
    failed = events(ledger, "attempt_failed")
    assert [event["billing"] for event in failed] == [row.billing] * row.tries
    assert all(event["streamed"] for event in failed)
    assert [("reserved_usd" in event) for event in failed] == [row.billing == "unknown"] * row.tries
    with pytest.raises(RouterError):
        _ = stream.response


@pytest.mark.parametrize(("name", "model"), CASES)
def test_with_a_fallback_the_answer_starts_anew_where_that_may_help(
    sim: Simulator, router: LLMRouter, ledger: Ledger, name: str, model: str
) -> None:
    row = TABLE[name]
    sim.script(model, row.reply, row.reply)
    sim.script(QWEN, Reply(text=TEXT))
    stream = router.stream(TASK[model], ASK, fallback_tier="FAST", **patience(row))
    if not row.next_tier:
        with pytest.raises(RouteExhausted):
            stream.read()
        return

    items = list(stream)

    shown = [item for item in items if isinstance(item, Restarted)]
    was_shown = text_of(items) != TEXT
    assert shown == ([Restarted(row.error_type, "FAST", QWEN)] if was_shown else [])
    since = items[items.index(shown[0]) + 1 :] if shown else items
    assert text_of(since) == stream.response["content"] == TEXT
    assert (stream.response["model_tier"], stream.response["fallback_used"]) == ("FAST", True)
    billed = events(ledger, "attempt_failed", "attempt_succeeded")
    assert [event["billing"] for event in billed] == [row.billing] * row.tries + ["billed"]
    assert [event["reason"] for event in events(ledger, "fallback_engaged")] == [row.error_type]


@BOTH
def test_what_a_broken_stream_is_known_to_have_used_is_on_the_books_and_its_cost_is_not(
    sim: Simulator, router: LLMRouter, ledger: Ledger, model: str
) -> None:
    reply = cut_in_stream(3)
    sim.script(model, Reply(text=TEXT, usage=Tokens(100, 50, 30), broken=reply.broken))

    with pytest.raises(RouteExhausted):
        router.stream(TASK[model], ASK).read()

    (failed,) = events(ledger, "attempt_failed")
    assert failed["billing_rule"] == "no_answer"
    assert "list_cost_usd" not in failed
    assert "billed_cost_usd" not in failed
    assert Decimal(failed["reserved_usd"]) > 0
    if model == OPUS:  # which says at the start what it has read; OpenRouter says all of it at the end
        assert (failed["input_tokens"], failed["cache_read_tokens"]) == (100, 30)
    assert failed["response_id"]


@BOTH
def test_noise_is_skipped_where_the_rest_proves_that_nothing_is_missing(
    sim: Simulator, router: LLMRouter, model: str
) -> None:
    noisy = malformed_chunk(2, data=b"keep-alive").broken
    sim.script(model, Reply(text=TEXT, broken=noisy))

    assert router.stream(TASK[model], ASK).read()["content"] == TEXT


@BOTH
def test_a_finish_is_the_end_though_the_provider_does_not_say_so(
    sim: Simulator, router: LLMRouter, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "FINISH_S", 0.1)
    sim.script(model, Reply(text=TEXT, usage=Tokens(10, 20), broken=without_done().broken))

    response = router.stream(TASK[model], ASK, idle_s=300, deadline_s=600, timeout_s=600).read()

    assert response["content"] == TEXT
    assert response["usage"]["output_tokens"] == 20
    assert response["latency_s"] < 60  # and waits for no more than what may still come


def test_a_finish_without_usage_is_an_answer_whose_cost_is_not_known(
    sim: Simulator, router: LLMRouter, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "FINISH_S", 0.1)
    sim.script(CHAT, Reply(text=TEXT, broken=stalled("finish").broken))

    response = router.stream("analyze_page", ASK).read()

    assert (response["content"], response["cost"]) == (TEXT, None)
    (booked,) = events(ledger, "attempt_succeeded")
    assert "not reported" in booked["usage_suspect"]
    assert Decimal(booked["reserved_usd"]) > 0


def test_a_packed_stream_is_unpacked_as_it_comes(sim: Simulator, router: LLMRouter) -> None:
    sent = (
        b'data: {"choices":[{"delta":{"content":"packed"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
    )
    packed = gzip.compress(sent)
    sim.script(
        CHAT, Reply(headers={"content-type": "text/event-stream", "content-encoding": "gzip"}, body=packed)
    )

    assert router.stream("analyze_page", ASK).read()["content"] == "packed"


def test_an_attempt_and_a_call_are_bounded_as_a_whole_however_much_comes(
    sim: Simulator, router: LLMRouter
) -> None:
    for bounds in ({"timeout_s": 0.3}, {"deadline_s": 0.3}):
        sim.script(CHAT, Reply(pieces=100_000, drip=(1, 0.01)))
        with pytest.raises(RouteExhausted, match=r"no whole answer from 127\.0\.0\.1 within 0\.\d+ s"):
            router.stream("analyze_page", ASK, max_tokens=10**6, **bounds).read()


def test_a_caller_who_takes_their_time_between_two_items_is_not_taken_for_a_stall(
    sim: Simulator, router: LLMRouter
) -> None:
    sim.script(CHAT, Reply(text=TEXT, drip=(2, 0.001)))

    with router.stream("analyze_page", ASK, idle_s=0.2) as stream:
        next(stream)
        time.sleep(0.4)

        assert stream.read()["content"] == TEXT


def test_a_ceiling_holds_for_streams_too(sim: Simulator, router: LLMRouter, ledger: Ledger) -> None:
    with pytest.raises(BudgetExceeded):
        router.stream("analyze_page", ASK, budget_usd="0.000001").read()
    router.stream("analyze_page", ASK, budget_usd="1").read()

    assert [served.request_body["provider"] for served in sim.log] == [
        {"max_price": {"prompt": 0.27, "completion": 1.1}}
    ]
    assert [event["event_type"] for event in events(ledger, "request_denied", "request_completed")] == [
        "request_denied",
        "request_completed",
    ]


# Leaving early ------------------------------------------------------------------------------------


class Bored(Exception):
    pass


def left(stream: Any, how: str) -> None:
    """Leaves a stream after its third item."""
    if how == "dropped":
        items = iter(stream)
        for _ in range(3):
            next(items)
        return
    with stream:
        for number, _ in enumerate(stream, start=1):
            if number < 3:
                continue
            if how == "break":
                break
            if how == "close":
                stream.close()
                break
            raise {"their own error": Bored, "Ctrl-C": KeyboardInterrupt}[how]


LEAVINGS = {
    "break": (None, "the caller closed the stream before its end"),
    "close": (None, "the caller closed the stream before its end"),
    "dropped": (None, "the caller closed the stream before its end"),
    "their own error": (Bored, "Bored"),
    "Ctrl-C": (KeyboardInterrupt, "interrupted by the caller"),
}


@BOTH
@pytest.mark.parametrize("how", LEAVINGS)
def test_leaving_early_is_booked_with_what_was_used_by_then_and_its_ceiling(
    sim: Simulator, router: LLMRouter, ledger: Ledger, model: str, how: str
) -> None:
    error, reason = LEAVINGS[how]
    sim.script(model, Reply(text=TEXT * 9, usage=Tokens(100, 50), drip=(1, 0.001)))
    stream = router.stream(TASK[model], ASK, fallback_tier="FAST")
    if error is None:
        left(stream, how)
        del stream
    else:
        with pytest.raises(error):
            left(stream, how)

    (cancelled,) = events(ledger, "attempt_cancelled")
    assert (cancelled["reason"], cancelled["billing"]) == (reason, "unknown")
    assert Decimal(cancelled["reserved_usd"]) > 0
    assert "list_cost_usd" not in cancelled
    assert cancelled["response_id"]
    assert cancelled["streamed"]
    assert 0 <= cancelled["first_token_ms"] <= cancelled["latency_ms"]
    if model == OPUS:
        assert cancelled["input_tokens"] == 100
    (ended,) = events(ledger, "request_failed")
    assert (ended["error_type"], ended["reason"]) == ("cancelled", "cancelled")
    assert len(sim.log) == 1


def test_an_attempt_of_which_nothing_came_is_not_booked_with_what_the_one_before_it_used(
    sim: Simulator, router: LLMRouter, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    sim.script(OPUS, Reply(text=TEXT, usage=Tokens(100, 50), broken=cut_in_stream(3).broken))
    monkeypatch.setattr(OpenRouterClient, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        router.stream(TASK[OPUS], ASK, fallback_tier="FAST").read()

    (failed,), (cancelled,) = events(ledger, "attempt_failed"), events(ledger, "attempt_cancelled")
    assert failed["input_tokens"] == 100
    assert cancelled["model"] == QWEN
    assert not {"input_tokens", "response_id", "first_token_ms"} & cancelled.keys()


def test_a_failure_of_the_callers_own_is_no_failure_of_the_stream(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    """A loop may call other models, and fail with what would be tried again if it came from this one."""
    theirs = ProviderError(
        "busy", error_type="overloaded", provider="other", retryable=True, billing_rule="error_status"
    )
    with (
        pytest.raises(ProviderError) as caught,
        router.stream("analyze_page", ASK, fallback_tier="FAST") as s,
    ):
        for _ in s:
            raise theirs

    assert caught.value is theirs
    assert [event["event_type"] for event in events(ledger)][-2:] == ["attempt_cancelled", "request_failed"]
    assert len(sim.log) == 1


def test_leaving_closes_the_connection_so_that_the_provider_can_stop(
    sim: Simulator, router: LLMRouter
) -> None:
    left = threading.Event()

    def serve(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        connection.sendall(b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n')
        if connection.recv(1) == b"":
            left.set()

    with OneShotServer(serve) as server, OpenRouterClient("k", base_url=server.url) as client:
        with client.create_completion(CHAT, ASK, stream=True) as stream:
            next(stream)
        assert left.wait(10)


# Clients alone ------------------------------------------------------------------------------------


def test_a_client_tries_again_until_the_first_item_and_not_after_it(sim: Simulator) -> None:
    with OpenRouterClient("k", base_url=sim.openrouter_url, sleep=lambda _: None) as client:
        sim.script(CHAT, overloaded(503), error_in_stream(0), Reply(text=TEXT))
        stream = client.create_completion(CHAT, ASK, stream=True)
        assert text_of(list(stream)) == stream.response["content"] == TEXT
        assert len(sim.log) == 3

        sim.script(CHAT, error_in_stream(3))
        with pytest.raises(ProviderError) as caught:
            client.create_completion(CHAT, ASK, stream=True).read()
        assert (caught.value.error_type, caught.value.retryable) == ("overloaded", False)
        assert len(sim.log) == 4


def test_a_client_with_a_tracker_books_its_streams(sim: Simulator, ledger: Ledger) -> None:
    with AnthropicClient("k", base_url=sim.anthropic_url, tracker=CostTracker(ledger)) as client:
        response = client.create_message(OPUS, ASK, stream=True, session_id="s").read()
        with client.create_message(OPUS, ASK, stream=True, session_id="s") as stream:
            next(stream)
        sim.script(OPUS, Reply(status=401))
        with pytest.raises(ProviderError):
            client.create_message(OPUS, ASK, stream=True, session_id="s").read()

    assert response["content"]
    assert [
        event["event_type"] for event in events(ledger) if event["event_type"].startswith("attempt_")
    ] == [
        *("attempt_started", "attempt_succeeded", "attempt_started", "attempt_cancelled"),
        *("attempt_started", "attempt_failed"),
    ]
    assert {event["tier"] for event in events(ledger, "attempt_started")} == {"DIRECT"}


def test_a_connection_is_kept_for_the_next_stream() -> None:
    sent = (
        b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
    )

    def serve(connection: socket.socket, leaving: threading.Event) -> None:
        while read_request(connection):
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            connection.sendall(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(sent), sent))

    with OneShotServer(serve) as server, OpenRouterClient("k", base_url=server.url) as client:
        for _ in range(3):
            assert client.create_completion(CHAT, ASK, stream=True).read()["content"] == "Hi"
        assert server.connections == 1


# Many, and long -----------------------------------------------------------------------------------


def test_a_hundred_streams_in_a_hundred_threads_lose_nothing(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    together = threading.Barrier(100)

    def ask(number: int) -> bool:
        together.wait(60)
        with router.stream("analyze_page", ASK, session_id=f"s-{number}") as stream:
            shown = text_of(list(stream))
        return shown == stream.response["content"] != ""

    with ThreadPoolExecutor(100) as pool:
        assert all(pool.map(ask, range(100)))

    booked = events(ledger, "attempt_succeeded")
    assert len({event["attempt_id"] for event in booked}) == 100
    assert sum(Decimal(event["billed_cost_usd"]) for event in booked) == sum(
        served.cost_usd or 0 for served in sim.log
    )
    assert sum(event["output_tokens"] for event in booked) == sum(served.output_tokens for served in sim.log)


class Endless(httpx.BaseTransport):
    """Answers with so many chunks of no text, made as they are read."""

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=self._sent())

    def _sent(self) -> Iterator[bytes]:
        for _ in range(self._chunks):
            yield b'data: {"id":"gen-1","choices":[{"index":0,"delta":{"content":"","reasoning":"h"}}]}\n\n'
        yield b'data: {"choices":[{"finish_reason":"stop","delta":{"content":"!"}}]}\n\ndata: [DONE]\n\n'


def test_memory_does_not_grow_with_the_chunks_of_an_answer() -> None:
    def peak(chunks: int) -> int:
        stream = OpenRouterClient("k", transport=Endless(chunks)).create_completion(CHAT, ASK, stream=True)
        tracemalloc.start()
        try:
            assert stream.read()["content"] == "!"
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    assert peak(10_000) < peak(100) + 50_000
