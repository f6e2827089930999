"""What the simulator streams, as the official SDKs and a plain HTTP client see it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from itertools import islice
from typing import Any

import anthropic
import httpx
import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from router.simulator import Reply, Simulator, Tokens, ToolCall
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
def sim() -> Iterator[Simulator]:
    with Simulator(seed=7) as simulator:
        yield simulator


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
    lines = [line[6:] for line in sent.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(line, parse_float=Decimal) for line in lines if line != b"[DONE]"]


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


def raw_stream(sim: Simulator, model: str, reply: Reply) -> bytes:
    """All bytes of an answer as they come from the socket."""
    sim.script(model, reply)
    url, body = request(sim, model)
    content = json.dumps(body).encode()
    head = (
        f"POST {httpx.URL(url).path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", sim.port), timeout=10) as connection:
        connection.sendall(head.encode() + content)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def chunks_of(sent: bytes) -> list[bytes]:
    """The HTTP chunks after the head, the one without bytes at the end too."""
    rest = sent.partition(b"\r\n\r\n")[2]
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return chunks


def text_pieces(sent: bytes) -> list[str]:
    data = data_of(sent)
    deltas = [event["delta"] for event in data if event.get("type") == "content_block_delta"]
    chunks = [event["choices"][0]["delta"] for event in data if "choices" in event][1:-2]
    return [delta["text"] for delta in deltas] + [delta["content"] for delta in chunks]


def text_of(sent: bytes) -> str:
    return "".join(text_pieces(sent))
