"""A streamed answer against the official SDKs': 2,000 chunks of the same bytes; then delay, and memory.

    python -m benchmarks.bench_stream [--rounds 15] [--chunks 2000] [--long 1000000]

Time: each library reads the same bytes, put together to the whole answer, by a transport that gives one chunk
at a time: what is timed is what the library itself does. A client of ours may take at most 0.15 of the
SDK's time. Delay: how long after a server has sent a chunk its item is there, less what a bare socket takes.
Memory: what a million chunks leave beside the text itself, over the simulator's socket.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
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
    print(f"   {mine / len(pieces) * 1e6:.2f} us per chunk")
    return mine > theirs * GOAL


if __name__ == "__main__":
    raise SystemExit(main())
