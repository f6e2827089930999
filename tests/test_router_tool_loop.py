"""An agent's loop of ten rounds whose provider goes down in the fifth: the other one carries on.

The caller writes the history in one shape from beginning to end, and need not know who is asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sdk_shapes import (
    assert_anthropic_accepts,
    assert_anthropic_messages,
    assert_openai_messages,
    assert_openrouter_accepts,
)
from tenacity.wait import wait_none
from told import Messages, told_in_anthropic, told_in_openai

from ledger import CostTracker, Ledger
from router import AnthropicClient, LLMRouter, ModelTier, OpenRouterClient
from router.simulator import Reply, Served, Simulator, ToolCall, overloaded
from router.types import RouteResponse

OPUS = "claude-opus-4-5-20251101"
CHAT = "deepseek/deepseek-chat"
ROUNDS, DOWN_FROM = 10, 5
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
SYSTEM = "You test a shop."
TOOLS: list[dict[str, Any]] = [
    {
        "name": "click",
        "description": "Click an element",
        "input_schema": {"type": "object", "properties": {"selector": {"type": "string"}}},
    },
    {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
    },
]
Write = Callable[[RouteResponse, int], Messages]


# How a caller writes what happened ------------------------------------------------------------

ANTHROPIC_SO_FAR: Messages = [
    {"role": "user", "content": [{"type": "text", "text": "Test the login form."}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Two looks at once.", "signature": "c2ln"},
            {"type": "tool_use", "id": "toolu_a", "name": "look", "input": {}},
            {"type": "tool_use", "id": "toolu_b", "name": "click", "input": {"selector": "#login"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "toolu_a",
                "content": [IMAGE],
            },
            {"type": "tool_result", "tool_use_id": "toolu_b", "content": "no such element", "is_error": True},
            {"type": "text", "text": "Go on."},
        ],
    },
]
OPENAI_SO_FAR: Messages = [
    {"role": "user", "content": "Test the login form."},
    {
        "role": "assistant",
        "content": None,
        "reasoning": "Two looks at once.",
        "tool_calls": [
            {"id": "f.look:0", "type": "function", "function": {"name": "look", "arguments": ""}},
            {"id": "f.click:1", "type": "function", "function": {"name": "click", "arguments": "{}"}},
        ],
    },
    {"role": "tool", "tool_call_id": "f.look:0", "content": "a form"},
    {"role": "tool", "tool_call_id": "f.click:1", "content": [{"type": "text", "text": "clicked"}]},
]


def in_anthropics_shape(response: RouteResponse, number: int) -> Messages:
    said = [{"type": "text", "text": response["content"]}] if response["content"] else []
    calls = [
        {"type": "tool_use", "id": call["id"], "name": call["name"], "input": call["input"]}
        for call in response["tool_calls"]
    ]
    results = [
        {"type": "tool_result", "tool_use_id": call["id"], **result_of(number)}
        for call in response["tool_calls"]
    ]
    return [{"role": "assistant", "content": [*said, *calls]}, {"role": "user", "content": results}]


def result_of(number: int) -> dict[str, Any]:
    """Text, a failure, a picture and nothing at all, in turn."""
    text = {"type": "text", "text": f"page {number}"}
    return (
        {"content": json.dumps({"page": number})},
        {"content": [text, text], "is_error": True},
        {"content": [text, IMAGE]},
        {},
    )[number % 4]


def in_openais_shape(response: RouteResponse, number: int) -> Messages:
    calls = [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["input"])},
        }
        for call in response["tool_calls"]
    ]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": json.dumps({"page": number})}
        for call in response["tool_calls"]
    ]
    return [{"role": "assistant", "content": response["content"], "tool_calls": calls}, *results]


# The loop -------------------------------------------------------------------------------------


@pytest.fixture
def router(sim: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LLMRouter]:
    monkeypatch.chdir(tmp_path)
    with (
        Ledger.in_memory() as ledger,
        AnthropicClient("sk-ant-test-key", base_url=sim.anthropic_url) as anthropic,
        OpenRouterClient("sk-or-test-key", base_url=sim.openrouter_url) as openrouter,
    ):
        yield LLMRouter(
            anthropic, openrouter, CostTracker(ledger), circuit=False, max_retries=0, backoff=wait_none()
        )


def script(sim: Simulator, goes_down: str, carries_on: str) -> None:
    def called(number: int) -> Reply:
        text = f"Round {number}." if number % 2 else ""
        return Reply(text=text, tool_call=ToolCall("click", {"selector": f"#page-{number}"}))

    sim.script(goes_down, *[called(number) for number in range(1, DOWN_FROM)])
    sim.script(goes_down, *[overloaded() for _ in range(DOWN_FROM, ROUNDS + 1)])
    sim.script(carries_on, *[called(number) for number in range(DOWN_FROM, ROUNDS)], Reply(text="Done."))


def as_it_was_sent(served: Served) -> Any:
    """What a provider was told, once its body is found to be one it accepts."""
    body = served.request_body
    if served.provider == "anthropic":
        assert_anthropic_accepts(body)
        assert_anthropic_messages(body["messages"])
        return told_in_anthropic(body["system"], body["messages"])
    assert_openrouter_accepts(body)
    assert_openai_messages(body["messages"])
    return told_in_openai(body["messages"])


@pytest.mark.parametrize("direction", ["from Anthropic to OpenRouter", "from OpenRouter to Anthropic"])
@pytest.mark.parametrize("shape", ["Anthropic's", "OpenAI's"])
def test_a_tool_loop_goes_on_at_the_other_provider(
    direction: str, shape: str, sim: Simulator, router: LLMRouter
) -> None:
    begins_with_claude = direction == "from Anthropic to OpenRouter"
    task, fallback = (
        ("plan_crawl_strategy", ModelTier.REASONING)
        if begins_with_claude
        else ("analyze_page", ModelTier.ORCHESTRATOR)
    )
    script(sim, *((OPUS, CHAT) if begins_with_claude else (CHAT, OPUS)))
    in_ours = shape == "Anthropic's"
    history = list(ANTHROPIC_SO_FAR if in_ours else OPENAI_SO_FAR)
    write: Write = in_anthropics_shape if in_ours else in_openais_shape
    written: list[Any] = []
    responses: list[RouteResponse] = []

    for number in range(1, ROUNDS + 1):
        written.append(told(history, in_ours))
        response = router.route_with_fallback(
            task, history, tools=TOOLS, system=SYSTEM, fallback_tier=fallback, tool_choice="auto"
        )
        responses.append(response)
        history += write(response, number)

    assert responses[-1]["content"] == "Done."
    assert [response["fallback_used"] for response in responses] == [False] * 4 + [True] * 6
    assert [call["input"] for response in responses for call in response["tool_calls"]] == [
        {"selector": f"#page-{number}"} for number in range(1, ROUNDS)
    ]
    answered = [served for served in sim.log if served.status == 200]
    assert [as_it_was_sent(served) for served in answered] == written
    refused = [served for served in sim.log if served.status != 200]
    assert [as_it_was_sent(served) for served in refused] == written[DOWN_FROM - 1 :]


def told(history: Messages, in_ours: bool) -> Any:
    if in_ours:
        return told_in_anthropic(SYSTEM, history)
    return told_in_openai([{"role": "system", "content": SYSTEM}, *history])


def test_what_a_model_thought_is_told_to_its_own_provider_alone(sim: Simulator, router: LLMRouter) -> None:
    for task in ("plan_crawl_strategy", "analyze_page"):
        router.route(task, ANTHROPIC_SO_FAR, tools=TOOLS)
        router.route(task, OPENAI_SO_FAR, tools=TOOLS)

    bodies = [json.dumps(served.request_body) for served in sim.log]
    assert ["Two looks at once." in body for body in bodies] == [True, False, False, True]
