"""A streamed answer against the official SDKs': 2,000 chunks of the same bytes; then delay, and memory.

    python -m benchmarks.bench_stream [--rounds 15] [--chunks 2000] [--long 1000000]

Time: each library reads the same bytes, put together to the whole answer, by a transport that gives one chunk
at a time: what is timed is what the library itself does. A client of ours may take at most 0.15 of the
SDK's time. Delay: how long after a server has sent a chunk its item is there, less what a bare socket takes.
Memory: the most that an answer of a million chunks takes, beside its text.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import anthropic
import httpx
import httpx2
import openai

from benchmarks.compare import interleaved, verdict
from router import AnthropicClient, OpenRouterClient, TextDelta
from router.simulator import Reply, Simulator

KEY = "not-a-real-key"
OPENROUTER = "https://openrouter.ai/api/v1"
GOAL = 0.15
DELAY_GOAL_US = 50.0
MEMORY_GOAL = 3.0  # the text being written, with room to grow, and the text it becomes
MESSAGES: list[Any] = [{"role": "user", "content": "Analyze the structure of this page."}]
MODELS = {"Anthropic": "claude-opus-4-5-20251101", "OpenRouter": "deepseek/deepseek-chat"}
HEADERS = {"content-type": "text/event-stream", "request-id": "req_01", "x-generation-id": "gen-01"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--chunks", type=int, default=2_000)
    parser.add_argument("--long", type=int, default=1_000_000)
    arguments = parser.parse_args()
    missed = [compare(provider, arguments.chunks, arguments.rounds) for provider in MODELS]
    missed.append(compare_delays(arguments.rounds))
    missed.append(measure_memory(arguments.long))
    return int(any(missed))


def recorded(provider: str, chunks: int) -> list[bytes]:
    """The events of an answer of so many chunks, as the simulator sends them."""
    with Simulator(seed=1) as sim:
        sim.script(MODELS[provider], Reply(pieces=chunks))
        url = (
            f"{sim.anthropic_url}/v1/messages"
            if provider == "Anthropic"
            else f"{sim.openrouter_url}/chat/completions"
        )
        body = {"model": MODELS[provider], "messages": MESSAGES, "max_tokens": 4 * chunks, "stream": True}
        sent = httpx.post(url, json=body).content
    return [event + b"\n\n" for event in sent.split(b"\n\n") if event]


class Pieces(httpx.SyncByteStream, httpx2.SyncByteStream):
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces


def streaming(library: Any, pieces: list[bytes]) -> Any:
    """A transport of httpx, or of its successor, that answers everything with these pieces."""
    return library.MockTransport(lambda _: library.Response(200, headers=HEADERS, stream=Pieces(pieces)))


def compare(provider: str, chunks: int, rounds: int) -> bool:
    pieces = recorded(provider, chunks)
    model = MODELS[provider]
    http = httpx2.Client(transport=streaming(httpx2, pieces))
    transport = streaming(httpx, pieces)
    if provider == "Anthropic":
        ours: Any = AnthropicClient(KEY, transport=transport).create_message
        sdk: Any = anthropic.Anthropic(api_key=KEY, http_client=http, max_retries=0)

        def ask_sdk() -> Any:
            with sdk.messages.stream(model=model, messages=MESSAGES, max_tokens=4096) as stream:
                text = "".join(stream.text_stream)
                return text, stream.get_final_message().usage.output_tokens
    else:
        ours = OpenRouterClient(KEY, transport=transport).create_completion
        sdk = openai.OpenAI(
            api_key=KEY, base_url="https://openrouter.ai/api/v1", http_client=http, max_retries=0
        )

        def ask_sdk() -> Any:
            with sdk.chat.completions.stream(model=model, messages=MESSAGES, max_tokens=4096) as stream:
                text = "".join(event.delta for event in stream if event.type == "content.delta")
                return text, stream.get_final_completion().usage.completion_tokens

    def ask_ours() -> Any:
        with ours(model, MESSAGES, stream=True) as stream:
            text = "".join([item.text for item in stream if isinstance(item, TextDelta)])
            return text, stream.response["usage"]["output_tokens"]

    assert ask_ours() == ask_sdk()
    timings = interleaved({"ours": ask_ours, "sdk": ask_sdk}, rounds=rounds, warm_up=2)
    for name, timing in timings.items():
        print(f"  {name:18} {timing}")
    mine, theirs = (timing.median_s for timing in timings.values())
    print(verdict(f"{provider}: {len(pieces):,} chunks, ours / SDK", mine / theirs, GOAL))
    return mine > theirs * GOAL


# Delay --------------------------------------------------------------------------------------------


def compare_delays(rounds: int) -> bool:
    """Whether a chunk is longer on its way to the caller than its goal, beyond what the bare socket takes."""
    ours_us, bare_us = [], []
    for _ in range(rounds):
        ours_us.append(statistics.median(delays_us(read_by_a_client)))
        bare_us.append(statistics.median(delays_us(read_by_a_socket)))
    added = statistics.median(ours_us) - statistics.median(bare_us)
    print(f"  a chunk, sent to item  {statistics.median(ours_us):8.1f} µs")
    print(f"  a chunk, bare socket   {statistics.median(bare_us):8.1f} µs")
    print(verdict("Added delay per chunk, p50", added, DELAY_GOAL_US, "µs"))
    return added > DELAY_GOAL_US


def delays_us(read: Callable[[int], Iterator[float]], chunks: int = 200) -> list[float]:
    """From just before a chunk is sent until it is read, by one clock; the server is another process."""
    ours, servers = multiprocessing.Pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = multiprocessing.get_context("fork").Process(target=serve, args=(listener, servers, chunks))
        server.start()
        read_at = []
        ours.send_bytes(b"next")
        for moment in read(listener.getsockname()[1]):
            read_at.append(moment)
            ours.send_bytes(b"next")
        sent_at = ours.recv()
        server.join()
    return [(read - sent) * 1e6 for read, sent in zip(read_at, sent_at, strict=True)]


def serve(listener: socket.socket, reader: Connection, chunks: int) -> None:
    """Send a chunk each time that the reader has read the last one, and say when."""
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    received = b""
    while not received.endswith((b"}", b"GO")):
        received += connection.recv(65_536)
    connection.sendall(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    event = b'data: {"id":"gen-1","model":"m","choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
    sent_at = []
    for _ in range(chunks):
        reader.recv_bytes()
        time.sleep(0.0002)  # so that the reader waits for it, as it does for a model
        sent_at.append(time.perf_counter())
        connection.sendall(b"%x\r\n%s\r\n" % (len(event), event))
    reader.recv_bytes()  # the last one is read too
    reader.send(sent_at)
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    connection.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(end), end))
    connection.close()


def read_by_a_client(port: int) -> Iterator[float]:
    with OpenRouterClient(KEY, base_url=f"http://127.0.0.1:{port}") as client:
        for item in client.create_completion("m", MESSAGES, stream=True):
            if isinstance(item, TextDelta):
                yield time.perf_counter()


def read_by_a_socket(port: int) -> Iterator[float]:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GO")
        while b"[DONE]" not in (received := connection.recv(65_536)):
            if b"word" in received:
                yield time.perf_counter()


# Memory -------------------------------------------------------------------------------------------


class Long(httpx.BaseTransport):
    """Answers with so many chunks, made as they are read."""

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=HEADERS, content=self._sent())

    def _sent(self) -> Iterator[bytes]:
        for _ in range(self._chunks):
            yield b'data: {"id":"gen-1","choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
        yield b'data: {"choices":[{"finish_reason":"stop","delta":{}}]}\n\ndata: [DONE]\n\n'


def measure_memory(chunks: int) -> bool:
    """Whether five times as many chunks take more, at the most, than three times the text that is added."""

    def peak_bytes(count: int) -> int:
        stream = OpenRouterClient(KEY, transport=Long(count)).create_completion("m", MESSAGES, stream=True)
        tracemalloc.start()
        try:
            assert len(stream.read()["content"]) == 4 * count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few = chunks // 5
    beside = (peak_bytes(chunks) - peak_bytes(few)) / (4 * (chunks - few))
    print(verdict(f"Memory of {few:,} to {chunks:,} chunks, added / text added", beside, MEMORY_GOAL))
    return beside > MEMORY_GOAL


if __name__ == "__main__":
    raise SystemExit(main())
