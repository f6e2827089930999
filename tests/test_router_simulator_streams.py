"""What the simulator streams, as the official SDKs and a plain HTTP client see it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from typing import Any

import anthropic
import httpx
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from router.simulator import (
    Broken,
    Reply,
    Simulator,
    Tokens,
    ToolCall,
    cut,
    cut_in_stream,
    ended_early,
    error_in_answer,
    error_in_stream,
    event_stream,
    malformed_chunk,
    rate_limited,
    stalled,
    without_done,
)
from router.simulator.answers import answer_to, call_of
from router.simulator.streams import events_of

CHAT = "deepseek/deepseek-chat"
OPUS = "claude-opus-4-5-20251101"
MODELS = pytest.mark.parametrize("model", [OPUS, CHAT])
MESSAGES = [{"role": "user", "content": "Look at this page. " * 20}]
CLICK = ToolCall("click", {"selector": "#login", "label": "Größe\u2028 & \r\n“ja”"})
ANSWERS = {
    "a text": Reply(text="Two forms,\u2028one of them – “signup” –\r\n\r\ndata: broken. 🐞"),
    "no text": Reply(text=""),
    "a plausible text": Reply(),
    "a tool call": Reply(tool_call=CLICK),
    "a text and three tool calls": Reply(text="I look.", tool_calls=[CLICK, ToolCall("wait", {}), CLICK]),
    "thinking": Reply(thinking="The form has no label, so …", text="A label is missing."),
    "thinking before a tool call": Reply(thinking="Click it.", tool_call=CLICK),
    "a text that does not fit": Reply(text="word " * 2000),
    "a refusal": Reply(text="", stop_reason="refusal"),
    "usage with every bucket": Reply(
        usage=Tokens(1000, 200, 300, 40, 5, 60), cost=Decimal("0.00000123456789")
    ),
}


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=10) as http:
        yield http


def request(sim: Simulator, model: str, **more: Any) -> tuple[str, dict[str, Any]]:
    url = f"{sim.anthropic_url}/v1/messages" if model == OPUS else f"{sim.openrouter_url}/chat/completions"
    return url, {"model": model, "max_tokens": 1000, "messages": MESSAGES, "stream": True, **more}


def streamed(client: httpx.Client, sim: Simulator, model: str, **more: Any) -> bytes:
    url, body = request(sim, model, **more)
    return client.post(url, json=body).raise_for_status().content


def data_of(sent: bytes) -> list[Any]:
    """The data of all events that are JSON, numbers exact."""
    events = [event.partition(b"data: ")[2] for event in sent.split(b"\n\n")[:-1]]
    return [
        json.loads(data, parse_float=Decimal) for data in events if data not in (b"", b"[DONE]", b"{oops")
    ]


@contextmanager
def two_alike(model: str, reply: Reply) -> Iterator[tuple[Simulator, Simulator]]:
    """One to be asked for the whole answer, one for the stream of the same."""
    with Simulator(seed=7) as whole, Simulator(seed=7) as in_events:
        whole.script(model, reply)
        in_events.script(model, reply)
        yield whole, in_events
        assert in_events.log[0].tokens == whole.log[0].tokens
        assert in_events.log[0].cost_usd == whole.log[0].cost_usd


@pytest.mark.parametrize("about", ANSWERS)
def test_anthropic_s_sdk_puts_a_stream_together_to_the_unstreamed_message(about):
    asked: Any = {"model": OPUS, "max_tokens": 1000, "messages": MESSAGES}
    with two_alike(OPUS, ANSWERS[about]) as (whole, in_events):
        with anthropic.Anthropic(api_key="any", base_url=whole.anthropic_url) as sdk:
            message = sdk.messages.create(**asked)
        with (
            anthropic.Anthropic(api_key="any", base_url=in_events.anthropic_url) as sdk,
            sdk.messages.stream(**asked) as stream,
        ):
            final = stream.get_final_message()

    assert final.to_dict() == message.to_dict() | {"stop_details": None}


@pytest.mark.parametrize("about", ANSWERS)
def test_openai_s_sdk_puts_a_stream_together_to_the_unstreamed_completion(about):
    asked: Any = {"model": CHAT, "max_tokens": 1000, "messages": MESSAGES}
    with two_alike(CHAT, ANSWERS[about]) as (whole, in_events):
        with openai.OpenAI(api_key="any", base_url=whole.openrouter_url) as sdk:
            completion = sdk.chat.completions.create(**asked)
        with (
            openai.OpenAI(api_key="any", base_url=in_events.openrouter_url) as sdk,
            sdk.chat.completions.create(**asked, stream=True) as chunks,
        ):
            state = ChatCompletionStreamState()
            for chunk in chunks:
                state.handle_chunk(chunk)
            final = state.current_completion_snapshot

    (choice,), (streamed,) = completion.choices, final.choices
    assert (final.id, final.model, final.usage) == (completion.id, completion.model, completion.usage)
    assert streamed.finish_reason == choice.finish_reason
    assert (streamed.message.content or None) == choice.message.content
    assert reasoning_of(streamed.message) == reasoning_of(choice.message)
    assert called_by(streamed.message) == called_by(choice.message)


def reasoning_of(message: Any) -> str | None:
    return getattr(message, "reasoning", None)


def called_by(message: Any) -> list[tuple[str, str, str]]:
    calls = message.tool_calls or []
    return [(call.id, call.function.name, call.function.arguments) for call in calls]


@pytest.mark.parametrize("about", ["a plausible text", "usage with every bucket"])
def test_openrouter_streams_the_usage_with_the_cost_to_its_last_digit(client, about):
    with two_alike(CHAT, ANSWERS[about]) as (whole, in_events):
        url, body = request(whole, CHAT, stream=False)
        completion = json.loads(client.post(url, json=body).content, parse_float=Decimal)
        *_, last = data_of(streamed(client, in_events, CHAT))

        assert last["usage"] == completion["usage"]
        assert last["usage"]["cost"] == in_events.log[0].cost_usd
        assert last["choices"][0]["delta"]["content"] == ""


def test_anthropic_s_usage_is_far_from_final_at_the_start_and_cumulative_at_the_end(sim, client):
    sim.script(OPUS, Reply(text="ok", usage=Tokens(1000, 200, 300, 40, 5, 60)))

    start, *_, delta, stop = data_of(streamed(client, sim, OPUS))

    assert start["message"]["usage"]["output_tokens"] == 1
    assert start["message"]["usage"]["cache_creation"]["ephemeral_1h_input_tokens"] == 5
    assert start["message"]["stop_reason"] is None
    assert delta["usage"]["output_tokens"] == 200
    assert delta["usage"]["input_tokens"] == 1000
    assert (delta["delta"]["stop_reason"], stop["type"]) == ("end_turn", "message_stop")


@MODELS
def test_every_event_is_an_http_chunk_of_its_own(sim, model):
    sent = raw_stream(sim, model, Reply(text="A form. 🐞"))

    assert b"content-type: text/event-stream\r\n" in sent
    assert b"transfer-encoding: chunked\r\n" in sent
    assert b"content-length" not in sent
    *events, last = chunks_of(sent)
    assert all(event.endswith(b"\n\n") and event.count(b"\n\n") == 1 for event in events)
    assert last == b""


@MODELS
def test_a_stream_in_small_chunks_has_the_same_bytes(model):
    with Simulator(seed=7) as one, Simulator(seed=7) as other:
        events = chunks_of(raw_stream(one, model, Reply(text="A form. 🐞")))
        small = chunks_of(raw_stream(other, model, Reply(text="A form. 🐞", split=3)))

    assert b"".join(small) == b"".join(events)
    assert {len(chunk) for chunk in small[:-2]} == {3}


@MODELS
@pytest.mark.parametrize("text", [None, "short"])
def test_a_text_comes_in_as_many_pieces_as_are_asked_for(sim, client, model, text):
    sim.script(model, Reply(text=text, pieces=2000))

    sent = streamed(client, sim, model, max_tokens=10_000)

    assert len(text_pieces(sent)) == 2000
    assert len(text_of(sent)) == (5 if text else 8000)


def test_a_million_pieces_are_made_as_they_are_asked_for():
    call, _ = call_of("/v1/messages", b'{"model": "m", "messages": [{}], "max_tokens": 9}')
    events = events_of(call, answer_to(call, Reply(), 7, {}), pieces=10**18)

    assert [event.part for event in islice(events, 6)] == [*["frame"] * 3, *["delta"] * 3]


# faults


@MODELS
def test_a_stalled_stream_says_so_many_deltas_and_then_nothing(sim, model):
    sim.script(model, stalled(after=2))

    with sent_on(sim, model) as connection:
        told = received_until(connection, lambda sent: len(text_pieces(sent)) == 2)
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)

    assert text_of(told) == whole_text(sim, model)[:8]
    assert sim.log[0].fault == "stalled"


@MODELS
def test_a_stalled_stream_ends_with_the_client_and_holds_up_no_stop(model):
    with Simulator(seed=7) as sim:
        sim.script(model, stalled(after=0), stalled(after=1))
        with sent_on(sim, model):
            sim.wait_served(1)
        with sent_on(sim, model) as connection:
            received_until(connection, lambda sent: bool(text_pieces(sent)))
            sim.stop()
            assert connection.recv(1) == b""


@MODELS
def test_a_stalled_stream_may_show_signs_of_life(sim, model):
    sim.script(model, stalled(after=1, keep_alive_s=0.01))
    sign = b"event: ping\n" if model == OPUS else b": OPENROUTER PROCESSING\n"

    with sent_on(sim, model) as connection:
        told = received_until(connection, lambda sent: sent.count(sign) >= 4)

    assert len(text_pieces(told)) == 1


@MODELS
@pytest.mark.parametrize("how", ["cut", "reset"])
def test_a_cut_stream_breaks_off_in_the_middle_of_an_event(sim, client, model, how):
    sim.script(model, cut_in_stream(after=2, how=how))

    told = b""
    with client.stream("POST", request(sim, model)[0], json=request(sim, model)[1]) as answer:
        with pytest.raises(httpx.RemoteProtocolError if how == "cut" else httpx.ReadError):
            for piece in answer.iter_raw():
                told += piece

    assert told.endswith(b'\n\ndata: {"')
    assert len(text_pieces(told)) == 2
    assert (sim.log[0].fault, sim.log[0].status) == (how, 200)
    assert sim.log[0].output_tokens > 2


@MODELS
def test_a_stream_may_be_cut_after_so_many_bytes(sim, model):
    sent = raw_stream(sim, model, cut(after=50))

    assert len(b"".join(chunks_of(sent))) == 50
    assert sent.endswith(b"\r\n40\r\n")
    assert sim.log[0].tokens is not None


@MODELS
def test_a_stream_that_ends_early_ends_well_in_http_and_without_a_finish(sim, client, model):
    sim.script(model, ended_early(after=2), ended_early(after=0), Reply(text="next"))

    told, nothing, following = (streamed(client, sim, model) for _ in range(3))

    assert len(text_pieces(told)) == 2
    assert finish_of(told) is None
    assert nothing == b""
    assert text_of(following) == "next"
    assert sim.log[0].fault == "ended_early"


@MODELS
def test_more_deltas_than_there_are_end_before_the_finish(sim, client, model):
    sim.script(model, Reply(text="A form.", broken=Broken(after=99, then="end")))

    told = streamed(client, sim, model)

    assert text_of(told) == "A form."
    assert finish_of(told) is None


@MODELS
@pytest.mark.parametrize("after", [0, 2])
def test_the_sdks_raise_an_error_that_comes_in_a_stream(sim, client, model, after):
    sim.script(model, *[error_in_stream(after, "overloaded", message="Come back later")] * 2)

    told = streamed(client, sim, model)
    with pytest.raises((anthropic.APIStatusError, openai.APIError), match="Come back later"):
        list(sdk_stream(sim, model))

    assert len(text_pieces(told)) == after
    assert finish_of(told) == (None if model == OPUS else "error")
    if after == 0:
        assert "error" in data_of(told)[0]
    assert sim.log[0].fault == "overloaded"


@MODELS
@pytest.mark.parametrize("then", ["end", "rest"])
def test_an_error_may_come_after_the_finish(sim, client, model, then):
    sim.script(model, error_in_stream("finish", "server_error", then=then))

    told = data_of(streamed(client, sim, model))

    at = next(number for number, event in enumerate(told) if "error" in event)
    finish = told[at - 1]
    assert finish["delta"]["stop_reason"] if model == OPUS else finish["choices"][0]["finish_reason"]
    assert len(told) - at - 1 == (1 if then == "rest" else 0)


@MODELS
def test_a_malformed_chunk_is_one_more_event_in_an_answer_that_is_whole(sim, client, model):
    sim.script(model, malformed_chunk(after=2, data=b"{oops"))

    told = streamed(client, sim, model)
    before, _, after = told.partition(b"data: {oops\n\n")

    assert len(text_pieces(before)) == 2
    assert finish_of(after)
    assert text_of(told) == whole_text(sim, model)
    assert sim.log[0].fault == "malformed_chunk"


@MODELS
def test_a_stream_without_its_last_word_has_all_else_and_stays_open(sim, model):
    sim.script(model, without_done())

    with sent_on(sim, model) as connection:
        told = received_until(connection, lambda sent: b"usage" in sent and bool(finish_of(sent)))
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)

    assert text_of(told) == whole_text(sim, model)
    assert b"[DONE]" not in told
    assert b"message_stop" not in told


@MODELS
def test_a_dripping_stream_comes_whole_with_time_between_its_events(sim, client, model):
    sim.script(model, Reply(text="A form.", drip=(2, 0.01)))

    before = time.monotonic()
    told = streamed(client, sim, model)

    assert text_of(told) == "A form."
    assert time.monotonic() - before >= 0.01 * (told.count(b"\n\n") // 2 - 1)


@pytest.mark.parametrize("split", [None, 1, 7])
def test_an_event_stream_of_one_s_own_is_sent_as_it_is(sim, client, split):
    own = "\ufeffdata: {\r\ndata: }\r\r:\u2028\n\ndata".encode()
    sim.script(CHAT, event_stream(own, split=split))

    with client.stream("POST", request(sim, CHAT)[0], json=request(sim, CHAT)[1]) as answer:
        assert b"".join(answer.iter_raw()) == own
        assert answer.headers["content-type"] == "text/event-stream"
        assert ("content-length" in answer.headers) == (split is None)


def test_an_event_stream_of_one_s_own_may_stay_open_or_be_cut(sim, client):
    own = b"data: {}\n\n"
    still_open = replace(event_stream(own), broken=Broken(after="usage", then="open"))
    sim.script(CHAT, still_open, replace(event_stream(own, split=3), cut_after=7))

    with sent_on(sim, CHAT) as connection:
        assert received_until(connection, lambda sent: sent.endswith(own)) == own
    with client.stream("POST", request(sim, CHAT)[0], json=request(sim, CHAT)[1]) as answer:
        pieces = answer.iter_raw()
        assert [next(pieces) for _ in range(3)] == [b"dat", b"a: ", b"{"]
        with pytest.raises(httpx.RemoteProtocolError):
            next(pieces)


@MODELS
def test_refusals_and_errors_are_no_streams(sim, client, model):
    sim.script(model, rate_limited(), error_in_answer())
    url, body = request(sim, model)

    limited, hidden = (client.post(url, json=body) for _ in range(2))
    refused = client.post(url, json=body | {"messages": []})

    assert (limited.status_code, hidden.status_code, refused.status_code) == (429, 200, 400)
    assert all(answer.headers["content-type"] == "application/json" for answer in (limited, hidden, refused))
    assert all("error" in answer.json() for answer in (limited, hidden, refused))


@MODELS
def test_what_breaks_a_stream_breaks_no_unstreamed_answer(sim, client, model):
    sim.script(model, cut_in_stream(after=0))
    url, body = request(sim, model, stream=False)

    assert client.post(url, json=body).json()["usage"]
    assert sim.log[0].fault is None


def sdk_stream(sim: Simulator, model: str) -> Iterator[Any]:
    asked: Any = {"model": model, "max_tokens": 1000, "messages": MESSAGES, "stream": True}
    if model == OPUS:
        with anthropic.Anthropic(api_key="any", base_url=sim.anthropic_url) as sdk:
            yield from sdk.messages.create(**asked)
    else:
        with openai.OpenAI(api_key="any", base_url=sim.openrouter_url) as sdk:
            yield from sdk.chat.completions.create(**asked)


def whole_text(sim: Simulator, model: str) -> str:
    """The text of the first answer of a model, had nothing gone wrong."""
    with Simulator(seed=7) as other, httpx.Client() as client:
        return text_of(streamed(client, other, model))


def finish_of(sent: bytes) -> str | None:
    data = data_of(sent)
    reasons = [event["delta"]["stop_reason"] for event in data if event.get("type") == "message_delta"]
    reasons += [event["choices"][0]["finish_reason"] for event in data if "choices" in event]
    return next(filter(None, reasons), None)


@contextmanager
def sent_on(sim: Simulator, model: str) -> Iterator[socket.socket]:
    """A connection on which a stream has been asked for."""
    url, body = request(sim, model)
    content = json.dumps(body).encode()
    head = (
        f"POST {httpx.URL(url).path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", sim.port), timeout=10) as connection:
        connection.sendall(head.encode() + content)
        yield connection


def received_until(connection: socket.socket, enough: Callable[[bytes], bool]) -> bytes:
    """The events that came so far, once they are enough."""
    sent = b""
    while not enough(told := b"".join(chunks_of(sent))):
        piece = connection.recv(65536)
        assert piece, told
        sent += piece
    return told


def raw_stream(sim: Simulator, model: str, reply: Reply) -> bytes:
    """All bytes of an answer as they come from the socket."""
    sim.script(model, reply)
    with sent_on(sim, model) as connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def chunks_of(sent: bytes) -> list[bytes]:
    """The HTTP chunks after the head, as far as they came; the one without bytes at the end too."""
    rest = sent.partition(b"\r\n\r\n")[2]
    chunks = []
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return chunks


def text_pieces(sent: bytes) -> list[str]:
    data = data_of(sent)
    deltas = [event["delta"] for event in data if event.get("type") == "content_block_delta"]
    choices = [event["choices"][0] for event in data if "choices" in event and "usage" not in event]
    told = [choice["delta"]["content"] for choice in choices[1:] if not choice["finish_reason"]]
    return [delta["text"] for delta in deltas] + told


def text_of(sent: bytes) -> str:
    return "".join(text_pieces(sent))
