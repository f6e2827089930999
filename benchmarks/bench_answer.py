"""A client's call against the official SDK's: a 10 KB answer, asked for and read, of the same bytes.

    python -m benchmarks.bench_answer [--rounds 400]

Each speaks through a transport that answers at once with the same bytes, so that what is timed is what a
library itself does: the request made, the answer read. A client of ours may take at most half of the SDK's
time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import httpx2
import openai

from benchmarks.compare import interleaved, verdict
from router import AnthropicClient, OpenRouterClient

KEY = "not-a-real-key"
GOAL = 0.5
MESSAGES: list[Any] = [{"role": "user", "content": "Analyze the structure of this page. " * 20}]
TEXT = 'The form has a field "name" without a label.\nIts button says “Go”. ' * 140
TOOL_INPUT = {"selector": "#login", "steps": ["focus", "type", "submit"]}

MESSAGE = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-4-5-20251101",
    "content": [
        {"type": "text", "text": TEXT},
        {"type": "tool_use", "id": "toolu_01", "name": "click", "input": TOOL_INPUT},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 2095,
        "cache_creation_input_tokens": 100,
        "cache_read_input_tokens": 1024,
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 2503,
        "service_tier": "standard",
    },
}
COMPLETION = {
    "id": "gen-01",
    "provider": "DeepInfra",
    "model": "deepseek/deepseek-chat",
    "object": "chat.completion",
    "created": 1_764_000_000,
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": TEXT,
                "refusal": None,
                "tool_calls": [
                    {
                        "id": "call_01",
                        "index": 0,
                        "type": "function",
                        "function": {"name": "click", "arguments": json.dumps(TOOL_INPUT)},
                    }
                ],
            },
            "finish_reason": "tool_calls",
            "native_finish_reason": "tool_calls",
            "logprobs": None,
        }
    ],
    "usage": {
        "prompt_tokens": 2095,
        "completion_tokens": 2503,
        "total_tokens": 4598,
        "prompt_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 12},
        "cost": 0.00331895,
        "is_byok": False,
    },
}
HEADERS = {"content-type": "application/json", "request-id": "req_01", "x-generation-id": "gen-01"}


def answering(library: Any, body: bytes) -> Any:
    """A transport of httpx, or of its successor, that answers everything with one body."""
    return library.MockTransport(lambda _: library.Response(200, headers=HEADERS, content=body))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    rounds = parser.parse_args().rounds
    missed = [compare_anthropic(rounds), compare_openrouter(rounds)]
    return int(any(missed))


def compare_anthropic(rounds: int) -> bool:
    body = json.dumps(MESSAGE).encode()
    http = httpx2.Client(transport=answering(httpx2, body))
    model = "claude-opus-4-5-20251101"
    with (
        AnthropicClient(KEY, transport=answering(httpx, body)) as ours,
        anthropic.Anthropic(api_key=KEY, http_client=http, max_retries=0) as sdk,
    ):

        def ask_ours() -> Any:
            return ours.create_message(model, MESSAGES, max_tokens=4096)

        def ask_sdk() -> Any:
            return sdk.messages.create(model=model, messages=MESSAGES, max_tokens=4096)

        mine, theirs = ask_ours(), ask_sdk()
        said, called = theirs.content
        assert mine["content"] == said.text == TEXT
        assert mine["tool_calls"][0]["input"] == called.input == TOOL_INPUT
        assert mine["usage"]["output_tokens"] == theirs.usage.output_tokens
        assert mine["usage"]["cache_read_tokens"] == theirs.usage.cache_read_input_tokens
        assert mine["stop_reason"] == theirs.stop_reason
        return timed("Anthropic", len(body), ask_ours, ask_sdk, rounds)


def compare_openrouter(rounds: int) -> bool:
    body = json.dumps(COMPLETION).encode()
    http = httpx2.Client(transport=answering(httpx2, body))
    model = "deepseek/deepseek-chat"
    with (
        OpenRouterClient(KEY, transport=answering(httpx, body)) as ours,
        openai.OpenAI(
            api_key=KEY, base_url="https://openrouter.ai/api/v1", http_client=http, max_retries=0
        ) as sdk,
    ):

        def ask_ours() -> Any:
            return ours.create_completion(model, MESSAGES, max_tokens=4096)

        def ask_sdk() -> Any:
            return sdk.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4096)

        mine, theirs = ask_ours(), ask_sdk()
        message = theirs.choices[0].message
        assert mine["content"] == message.content == TEXT
        assert mine["tool_calls"][0]["input"] == json.loads(message.tool_calls[0].function.arguments)
        assert mine["usage"]["output_tokens"] == theirs.usage.completion_tokens
        assert mine["usage"]["cache_read_tokens"] == theirs.usage.prompt_tokens_details.cached_tokens
        assert mine["cost"] is not None
        return timed("OpenRouter", len(body), ask_ours, ask_sdk, rounds)


def timed(
    provider: str, size: int, ours: Callable[[], object], sdk: Callable[[], object], rounds: int
) -> bool:
    """Whether the goal was missed."""
    name = "openai" if provider == "OpenRouter" else "anthropic"
    timings = interleaved({f"{provider}Client": ours, f"the {name} SDK": sdk}, rounds=rounds, warm_up=30)
    print(f"{provider}, an answer of {size:,} bytes")
    for contestant, timing in timings.items():
        print(f"  {contestant:18} {timing}")
    mine, theirs = (timing.median_s for timing in timings.values())
    print(verdict(f"  {provider}Client / the {name} SDK", mine / theirs, GOAL))
    return mine > theirs * GOAL


if __name__ == "__main__":
    raise SystemExit(main())
