"""Whatever is streamed is an answer that the books can hold, or a documented error; soon, in little memory.

And it is never a part of an answer for the whole: what cannot be read of a stream is a failure, unless
all of the answer is there without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from ledger.events import AttemptCancelled, AttemptFailed, AttemptSucceeded
from ledger.ledger import utc_now
from ledger.prices import PriceBook
from router import AnthropicClient, OpenRouterClient, ProviderError, books
from router.catalog import Route
from router.providers import anthropic, openrouter
from router.providers.client import StreamLimits
from router.providers.wire import Answer
from router.streams import StreamItem, TextDelta, ToolCallDelta

_ROOT = Path(__file__).resolve().parent.parent
_TRAFFIC = Path(os.environ.get("BUGHIVE_TRAFFIC") or _ROOT.parent / "shared" / "traffic")
DIALECTS = (anthropic, openrouter)
SECONDS, MEGABYTES = 1.0, 64
BOUNDED = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)


class Pieces(httpx.SyncByteStream):
    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)


class Streaming(httpx.BaseTransport):
    """Answers with the stream that it was told to."""

    pieces: Iterable[bytes] = ()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        headers = {"content-type": "text/event-stream"}
        return httpx.Response(200, headers=headers, stream=Pieces(self.pieces))


STREAMING = Streaming()
CLIENTS = {
    anthropic: AnthropicClient("k" * 20, base_url="http://a.example", transport=STREAMING),
    openrouter: OpenRouterClient("k" * 20, base_url="http://a.example", transport=STREAMING),
}
BOOK = PriceBook.load()
ROUTE = Route("REASONING", "deepseek/deepseek-chat", "openrouter")
ATTEMPT = books.Attempt(
    books.Request("r", None, "analyze_page", None, "REASONING"),
    *("a", 1, ROUTE, 10, None),
    BOOK.at(ROUTE.provider, ROUTE.model, utc_now()),
    *("0" * 64, True),
)


class Read(NamedTuple):
    """What became of a stream."""

    outcome: Answer | ProviderError
    items: list[StreamItem]


def read(dialect: Any, *pieces: bytes) -> Read:
    """A stream as a client reads it, within its time and memory; it fits on the books, left or not."""
    STREAMING.pieces = pieces
    began = time.thread_time()
    reading = CLIENTS[dialect].read(b"{}", 5.0, StreamLimits())
    items: list[StreamItem] = []
    outcome: Answer | ProviderError
    with little_memory():
        try:
            items.extend(reading)
            outcome = reading.answer
        except ProviderError as failure:
            outcome = failure
        partial = reading.partial()
    assert time.thread_time() - began <= SECONDS
    record(outcome)
    cancelled = books.cancelled(ATTEMPT, partial, books.Timing(utc_now(), 1.0), "left")
    assert isinstance(cancelled, AttemptCancelled)
    return Read(outcome, items)


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


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= MEGABYTES * 2**20
    finally:
        tracemalloc.stop()


# Streams: one by hand for each provider, and what was recorded ---------------------------------------


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def sent(chunks: Iterable[Any]) -> list[bytes]:
    return [event(json.dumps(chunk).encode("utf-8", "replace")) for chunk in chunks]


def _of_anthropic() -> list[dict[str, Any]]:
    usage = {
        "input_tokens": 10,
        "output_tokens": 1,
        "cache_creation_input_tokens": 3,
        "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2},
    }
    message = {"id": "msg_1", "type": "message", "model": "claude-opus-4-5", "content": [], "usage": usage}
    tool = {"type": "tool_use", "id": "t", "name": "click", "input": {}}
    passes = [{"model": "x", "input_tokens": 5, "output_tokens": 6}]

    def delta(index: int, **members: Any) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": members}

    return [
        {"type": "message_start", "message": message},
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        delta(0, type="thinking_delta", thinking="hm"),
        delta(0, type="signature_delta", signature="s"),
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        delta(1, type="text_delta", text="so "),
        delta(1, type="text_delta", text="it is"),
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2, "content_block": tool},
        delta(2, type="input_json_delta", partial_json='{"at": {"x"'),
        delta(2, type="input_json_delta", partial_json=": 1.5}}"),
        {"type": "content_block_stop", "index": 2},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use", "stop_sequence": None},
            "usage": {
                "output_tokens": 20,
                "iterations": passes,
                "server_tool_use": {"web_search_requests": 1},
            },
        },
        {"type": "message_stop"},
    ]


def _of_openrouter() -> list[dict[str, Any]]:
    def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
        choice = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": finish}
        return {"id": "gen-1", "model": "deepseek/deepseek-chat", "provider": "Novita", "choices": [choice]}

    def fragment(arguments: str, **more: Any) -> dict[str, Any]:
        function = {"arguments": arguments, **more}
        return {"index": 0, "function": function, **({"id": "c"} if more else {})}

    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "cost": 0.0001,
        "is_byok": True,
        "cost_details": {"upstream_inference_cost": 0.1},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    return [
        chunk(content="", reasoning="hm"),
        chunk(content="so "),
        chunk(content="it is", annotations=[{"type": "url_citation"}]),
        chunk(tool_calls=[fragment('{"x"', name="click")]),
        chunk(tool_calls=[fragment(": 1}")]),
        chunk("tool_calls"),
        {**chunk(content=""), "usage": usage},
    ]


BY_HAND = {anthropic: _of_anthropic(), openrouter: _of_openrouter()}
DONE = b"data: [DONE]\n\n"


class Recorded(NamedTuple):
    name: str
    dialect: Any
    events: tuple[bytes, ...]  # as they came, each with its blank line


def _recorded() -> list[Recorded]:
    """Streams that come to their end; short ones, for each event of each is broken."""
    streams = [
        Recorded("anthropic, by hand", anthropic, tuple(sent(BY_HAND[anthropic]))),
        Recorded("openrouter, by hand", openrouter, (*sent(BY_HAND[openrouter]), DONE)),
    ]
    if not (_TRAFFIC / "index.json").is_file():
        return streams
    for row in json.loads((_TRAFFIC / "index.json").read_text("utf-8")):
        if not row["stream"] or row["kind"] in ("midstream_error", "truncated_stream"):
            continue
        sse = json.loads((_TRAFFIC / row["file"]).read_text("utf-8"))["response"]["sse"].encode()
        dialect = anthropic if row["file"].startswith("anthropic") else openrouter
        events = tuple(part + b"\n\n" for part in sse.strip().split(b"\n\n"))
        if len(sse) < 7_000:
            streams.append(Recorded(row["file"], dialect, events))
    return streams


RECORDED = _recorded()


@cache
def whole(stream: Recorded) -> Answer:
    outcome, _ = read(stream.dialect, *stream.events)
    assert isinstance(outcome, Answer), outcome
    return outcome


def assert_the_same_or_a_failure(stream: Recorded, outcome: Answer | ProviderError) -> None:
    if isinstance(outcome, Answer):
        known = whole(stream)
        assert (outcome.content, outcome.tool_calls) == (known.content, known.tool_calls)


streams = st.sampled_from(RECORDED)


@st.composite
def one_of_a_stream(draw: st.DrawFn) -> tuple[Recorded, int]:
    stream = draw(streams)
    return stream, draw(st.integers(0, len(stream.events) - 1))


# What is no stream at all --------------------------------------------------------------------------

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


@BOUNDED
@given(st.sampled_from(DIALECTS), st.lists(st.binary(max_size=200), max_size=5))
@example(openrouter, [b"data: \xff\n\n"])
@example(anthropic, [b"\xef\xbb\xbf"])
@example(openrouter, [b"data: [DONE]\n\n"])
@example(openrouter, [b": OPENROUTER PROCESSING\n\n"] * 3)
def test_any_bytes_are_no_answer(dialect: Any, pieces: list[bytes]) -> None:
    outcome, items = read(dialect, *pieces)

    assert isinstance(outcome, ProviderError)
    assert items == []


@BOUNDED
@given(st.sampled_from(DIALECTS), st.lists(values, max_size=5))
def test_any_json_is_an_answer_or_a_documented_failure(dialect: Any, chunks: list[Any]) -> None:
    read(dialect, *sent(chunks), DONE)


# One part of a stream is another ---------------------------------------------------------------------


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, part in inner for path in paths(part, (*at, key)))]


def with_part(value: Any, path: tuple[Any, ...], part: Any) -> Any:
    """A copy in which what stands at the path is another thing; Ellipsis: is gone."""
    if not path:
        return part
    key, *rest = path
    copy = value.copy()
    if part is ... and not rest:
        del copy[key]
    else:
        copy[key] = with_part(copy[key], tuple(rest), part)
    return copy


@st.composite
def changed_streams(draw: st.DrawFn) -> tuple[Any, list[Any]]:
    dialect = draw(st.sampled_from(DIALECTS))
    chunks = BY_HAND[dialect]
    path = draw(st.sampled_from([path for path in paths(chunks) if path]))
    return dialect, with_part(chunks, path, draw(st.just(...) | values))


@settings(BOUNDED, max_examples=120)
@given(changed_streams())
def test_so_is_a_stream_with_one_part_changed(changed: tuple[Any, list[Any]]) -> None:
    dialect, chunks = changed
    read(dialect, *sent(chunks), DONE)


ODD = [
    *("NaN", "1e999999999", "9" * 5_000, "-1", "null", "[]", "{}", '""'),
    *('"\\ud800"', '"\\u0000"', '"' + "x" * 50_000 + '"', '{"type": []}', '[{"type": {}}]', '"error"'),
    *("[" * 900 + "]" * 900, "[" * 5_000 + "]" * 5_000),
    *('{"a":' * 400 + "1" + "}" * 400, '{"usage": {"usage": {}}}'),
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: f"{odd[:12]}…{len(odd)}")
@pytest.mark.parametrize("dialect", DIALECTS, ids=("anthropic", "openrouter"))
def test_what_no_well_behaved_provider_streams(dialect: Any, odd: str) -> None:
    """Each place of each chunk, with this in its stead."""
    for path in paths(BY_HAND[dialect])[1:]:
        chunks = sent(with_part(BY_HAND[dialect], path, "@@"))
        read(dialect, *(chunk.replace(b'"@@"', odd.encode()) for chunk in chunks), DONE)


_SAID = {  # where a text, or a part of a tool call, stands; and the way to it
    anthropic: [(number, *way) for number in (7, 8, 11) for way in (("delta",), ("index",))]
    + [(10, "content_block"), (10, "content_block", "type"), (8, "delta", "text"), (8, "delta", "type")]
    + [(11, "delta", "partial_json"), (7, "type"), (10, "type")],
    openrouter: [(number, *way) for number in (1, 2, 3) for way in (("choices",), ("choices", 0))]
    + [(1, "choices", 0, "index"), (1, "choices", 0, "delta"), (1, "choices", 0, "delta", "content")]
    + [(3, "choices", 0, "delta", "tool_calls"), (3, "choices", 0, "delta", "tool_calls", 0)]
    + [(4, "choices", 0, "delta", "tool_calls", 0, "function")],
}


@pytest.mark.parametrize("other", [5, "odd", [5], {"a": 5}], ids=repr)
@pytest.mark.parametrize("dialect", DIALECTS, ids=("anthropic", "openrouter"))
def test_a_part_of_the_answer_of_another_type_is_a_failure_not_a_shorter_answer(
    dialect: Any, other: Any
) -> None:
    stream = next(one for one in RECORDED if one.dialect is dialect)
    for path in _SAID[dialect]:
        known: Any = BY_HAND[dialect]
        for key in path:
            known = known[key]
        if type(other) is type(known):
            continue  # another text is another answer
        outcome, _ = read(dialect, *sent(with_part(BY_HAND[dialect], path, other)), DONE)
        assert_the_same_or_a_failure(stream, outcome)


# One event of a stream is broken ----------------------------------------------------------------------

noise = st.binary(min_size=1, max_size=20).filter(lambda data: not data.strip().startswith(b"[DONE]"))


@st.composite
def broken_data(draw: st.DrawFn, data: bytes) -> bytes:
    """Data that is no JSON any more, but the beginning of it, or with something in it."""
    at = draw(st.integers(1, max(len(data) - 1, 1)))
    broken = data[:at] + draw(st.just(b"") | noise.map(lambda more: more + data[at:]))
    with contextlib.suppress(ValueError):
        json.loads(broken)
        assume(False)
    return broken.replace(b"\n", b" ").replace(b"\r", b" ")


@settings(BOUNDED, max_examples=200)
@given(st.data(), one_of_a_stream())
def test_a_broken_event_is_a_failure_or_no_part_of_the_answer(
    data: st.DataObject, chosen: tuple[Recorded, int]
) -> None:
    stream, at = chosen
    name, found, said = stream.events[at].partition(b"data: ")
    assume(found)
    broken = name + found + data.draw(broken_data(said.rstrip())) + b"\n\n"

    outcome, items = read(stream.dialect, *stream.events[:at], broken, *stream.events[at + 1 :])

    assert_the_same_or_a_failure(stream, outcome)
    assert_items_are_the_answer(outcome, items)


def test_each_event_cut_anywhere_is_a_failure_or_no_part_of_the_answer() -> None:
    for stream in RECORDED[:2]:
        for at, one in enumerate(stream.events):
            said = one.removeprefix(b"data: ").rstrip()
            for end in (*range(1, 12), *range(30, len(said), 30)):
                cut = event(said[:end])
                outcome, _ = read(stream.dialect, *stream.events[:at], cut, *stream.events[at + 1 :])
                assert_the_same_or_a_failure(stream, outcome)


@settings(BOUNDED, max_examples=80)
@given(one_of_a_stream(), st.integers(0, 10_000))
def test_a_stream_that_ends_anywhere_is_whole_or_a_failure(chosen: tuple[Recorded, int], cut: int) -> None:
    stream, at = chosen
    last = stream.events[at]

    outcome, items = read(stream.dialect, *stream.events[:at], last[: cut % (len(last) + 1)])

    assert_the_same_or_a_failure(stream, outcome)
    assert_items_are_the_answer(outcome, items)


def test_a_stream_that_ends_behind_any_event_is_whole_or_a_failure() -> None:
    for stream in RECORDED:
        for end in range(len(stream.events)):
            assert_the_same_or_a_failure(stream, read(stream.dialect, *stream.events[:end]).outcome)


@settings(BOUNDED, max_examples=100)
@given(st.data(), one_of_a_stream(), st.sampled_from(["gone", "twice", "elsewhere", "from another"]))
def test_an_event_that_is_missing_or_out_of_place_breaks_no_rule(
    data: st.DataObject, chosen: tuple[Recorded, int], how: str
) -> None:
    stream, at = chosen
    events = list(stream.events)
    one = events.pop(at)
    place = data.draw(st.integers(0, len(events)))
    if how == "from another":
        one = data.draw(st.sampled_from(data.draw(streams).events))
    more = {"gone": [], "twice": [one, one], "elsewhere": [one], "from another": [one]}[how]
    where = at if how in ("gone", "twice") else place
    events[where:where] = more

    read(stream.dialect, *events)


def test_a_stream_without_its_finish_is_an_answer_only_where_its_usage_counts_the_whole() -> None:
    for stream in RECORDED:
        kept = [_without_finish(one) for one in stream.events]
        outcome, _ = read(stream.dialect, *kept)
        assert_the_same_or_a_failure(stream, outcome)
        if isinstance(outcome, Answer):
            assert stream.dialect is openrouter
            assert outcome.usage_json

        without_done, _ = read(stream.dialect, *(one for one in kept if one != DONE))
        assert isinstance(without_done, ProviderError)
        assert without_done.error_type == "stream_interrupted"


def _without_finish(one: bytes) -> bytes:
    data = one.partition(b"data: ")[2]
    if not data.startswith(b"{"):
        return one
    chunk = json.loads(data)
    if chunk.get("type") in ("message_delta", "message_stop"):
        return b""
    for choice in chunk.get("choices") or ():
        choice["finish_reason"] = None
    return event(json.dumps(chunk).encode())


def assert_items_are_the_answer(outcome: Answer | ProviderError, items: list[StreamItem]) -> None:
    answer = outcome.partial if isinstance(outcome, ProviderError) else outcome
    if answer is None:
        assert items == []
        return
    assert "".join(item.text for item in items if isinstance(item, TextDelta)) == answer.content
    for index, call in enumerate(answer.tool_calls):
        fragments = [item for item in items if isinstance(item, ToolCallDelta) and item.index == index]
        arguments = "".join(item.arguments for item in fragments)
        with contextlib.suppress(ValueError):
            assert call["input"] is None or json.loads(arguments or "{}") == call["input"]


# What some send otherwise, and mean the same ------------------------------------------------------------


def _with_finish_in_every_chunk(chunk: dict[str, Any]) -> dict[str, Any]:
    choices = [{**choice, "finish_reason": choice["finish_reason"] or ""} for choice in chunk["choices"]]
    return {**chunk, "choices": choices}


def test_an_empty_finish_is_none() -> None:
    stream = next(one for one in RECORDED if one.dialect is openrouter)
    chunks = [_with_finish_in_every_chunk(chunk) for chunk in BY_HAND[openrouter]]

    assert read(openrouter, *sent(chunks), DONE).outcome == read(openrouter, *stream.events).outcome
    assert isinstance(read(openrouter, *sent(chunks[:3])).outcome, ProviderError)


@pytest.mark.parametrize("dialect", DIALECTS, ids=("anthropic", "openrouter"))
def test_space_before_the_json_is_no_part_of_it(dialect: Any) -> None:
    stream = next(one for one in RECORDED if one.dialect is dialect)
    spaced = [one.replace(b"data: ", b"data:  \t ") for one in stream.events]

    assert read(dialect, *spaced).outcome == whole(stream)


def test_blocks_come_in_the_order_in_which_they_began() -> None:
    def block(index: int, text: str) -> list[dict[str, Any]]:
        delta = {"type": "text_delta", "text": text}
        return [
            {"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": index, "delta": delta},
        ]

    start, *_, end, stop = BY_HAND[anthropic]
    outcome, items = read(anthropic, *sent([start, *block(1, "so "), *block(0, "it is"), end, stop]))

    assert isinstance(outcome, Answer)
    assert outcome.content == "so it is"
    assert_items_are_the_answer(outcome, items)


def test_a_key_in_the_usage_of_a_message_is_not_recorded_and_neither_is_one_beyond_bounds() -> None:
    def usage_of(note: str) -> str | None:
        *chunks, end, stop = BY_HAND[anthropic]
        told = {**end, "usage": {**end["usage"], "note": note}}
        outcome, _ = read(anthropic, *sent([*chunks, told, stop]))
        assert isinstance(outcome, Answer)
        return outcome.usage_json

    assert "[key]" in (usage_of("sk-ant-abcdefgh") or "")
    assert usage_of("x" * 70_000) is None


# Much of it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS, ids=("anthropic", "openrouter"))
def test_an_answer_beyond_all_bounds_is_a_documented_failure(dialect: Any) -> None:
    number = 8 if dialect is anthropic else 2
    way = ("delta", "text") if dialect is anthropic else ("choices", 0, "delta", "content")
    (long,) = sent([with_part(BY_HAND[dialect][number], way, "x" * 1_000_000)])
    begun = sent(BY_HAND[dialect][:number])

    STREAMING.pieces = [*begun, *[long] * 17, *sent(BY_HAND[dialect][number:]), DONE]
    reading = CLIENTS[dialect].read(b"{}", 30.0, StreamLimits())
    with pytest.raises(ProviderError, match="longer than") as failed:
        for _ in reading:
            pass

    assert failed.value.error_type == "malformed_response"
    assert not failed.value.retryable
    record(failed.value)


@pytest.mark.parametrize(
    ("dialect", "chunk"),
    [
        (anthropic, {"type": "message_start", "message": {"@": "x" * 100_000}}),
        (anthropic, {"type": "message_delta", "delta": {}, "usage": {"@": "x" * 100_000}}),
        (
            anthropic,
            {
                "type": "content_block_start",
                "index": "@",
                "content_block": {"type": "tool_use", "x": "x" * 100_000},
            },
        ),
        (openrouter, {"id": "@", "usage": {"prompt_tokens": 1, "@": "x" * 100_000}}),
        (openrouter, {"choices": [{"delta": {"annotations": [{"type": "@", "x": "x" * 100_000}]}}]}),
    ],
)
def test_what_is_said_again_and_again_is_not_kept(dialect: Any, chunk: dict[str, Any]) -> None:
    spelt = sent([chunk])[0]
    spelt = spelt.replace(b'"index": "@"', b'"index": @')
    STREAMING.pieces = (spelt.replace(b"@", b"%d" % number) for number in range(1_000))
    with little_memory(), contextlib.suppress(ProviderError):
        list(CLIENTS[dialect].read(b"{}", 30.0, StreamLimits()))
