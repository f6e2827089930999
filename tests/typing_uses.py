"""Uses of the public face for type checkers alone; never run. test_typing.py says how it is read.

What must be an error stands with a `type: ignore` and its code: were it no error, the comment would
be one.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any, assert_type

from ledger import CostTracker, Ledger
from ledger.events import Event
from router import (
    TASK_MODEL_MAP,
    AnthropicClient,
    BudgetExceeded,
    BughiveError,
    ClientResponse,
    LLMRouter,
    ModelTier,
    OpenRouterClient,
    ProviderError,
    RouteExhausted,
    RouteResponse,
    ToolCall,
    UnrecordedAnswer,
    UsageReport,
    to_json,
)
from router import CostTracker as TrackerOfTheRouter
from router.testing import Call, FakeProvider, Reply, Tokens, answer, fails

ASK = [{"role": "user", "content": "Which elements can be clicked?"}]
TOOL = {"name": "click", "description": "Click", "input_schema": {"type": "object"}}


def clients_take_what_the_document_shows() -> None:
    with AnthropicClient(api_key="sk-ant-...", max_retries=5, timeout=180.0) as anthropic:
        assert_type(anthropic, AnthropicClient)
        message = anthropic.create_message(model="claude", messages=ASK, max_tokens=2000, tools=[TOOL])
    with OpenRouterClient(api_key=None, timeout=120, max_retries=3) as openrouter:
        completion = openrouter.create_completion("some/model", ASK, system="Be brief.", top_p=0.5)
    assert_type(message, ClientResponse)
    assert_type(completion["cost"], Decimal | None)
    assert_type(completion["id"], str | None)


def a_response_is_a_dict_of_known_types(router: LLMRouter) -> None:
    response = router.route(
        "analyze_page", ASK, session_id="s", max_tokens=9, tags={"a": "b"}, budget_usd="0.5", temperature=0
    )
    assert_type(response, RouteResponse)
    assert_type(response["content"], str)
    assert_type(response["tool_calls"], list[ToolCall])
    assert_type(response["usage"], UsageReport)
    assert_type(response["usage"]["output_tokens"], int)
    assert_type(response["cost"], Decimal | None)
    assert_type(response["fallback_used"], bool)
    assert_type(response.get("tool_calls"), list[ToolCall])
    for call in response["tool_calls"]:
        assert_type(call["input"], dict[str, Any] | None)
        assert_type(call.get("input_raw"), str | None)
    plain: dict[str, Any] = {**response}
    assert_type(to_json(plain), str)
    to_json(response, indent=2)


def messages_may_be_any_mappings(router: LLMRouter) -> None:
    first: dict[str, object] = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    router.route("analyze_page", (first,), system=[{"type": "text", "text": "Be brief."}])
    response = router.route_with_fallback("analyze_page", [first], fallback_tier=ModelTier.FAST)
    router.route_with_fallback("analyze_page", [first], fallback_tier="FAST", deadline_s=60)
    history: list[dict[str, Any]] = [*ASK]
    history.append({"role": "assistant", "content": "", "tool_calls": response["tool_calls"]})
    router.route("analyze_page", history, tool_choice={"type": "auto"})


async def asyncio_keeps_the_types(router: LLMRouter) -> None:
    response = await asyncio.to_thread(router.route, "analyze_page", ASK, session_id="s")
    assert_type(response, RouteResponse)


def tasks_and_tiers() -> LLMRouter:
    TASK_MODEL_MAP["my_new_task"] = ModelTier.REASONING
    assert_type(TASK_MODEL_MAP["analyze_page"], ModelTier)
    return LLMRouter(catalog={ModelTier.FAST: ("some/model", "openrouter"), "VISION": ("m", "anthropic")})


def costs(folder: Path) -> None:
    with CostTracker() as tracker, LLMRouter(cost_tracker=tracker) as router:
        assert_type(router, LLMRouter)
        assert_type(tracker.get_session_cost("s"), Decimal)
        assert_type(tracker.get_cost_summary(session_id="s"), str)
        for tier, stats in tracker.get_breakdown("s").items():
            assert_type(tier, str)
            assert_type(stats["cost"], Decimal)
            assert_type(stats["requests"], int)
        assert_type(router.tracker, TrackerOfTheRouter)
    CostTracker(folder, durability="process-crash")
    with Ledger.open(folder, durability="power-loss") as ledger, Ledger.in_memory() as other:
        CostTracker(ledger)
        assert_type(other, Ledger)


def errors_carry_what_they_say(router: LLMRouter) -> None:
    try:
        router.route("analyze_page", ASK, budget_usd=Decimal(1))
    except RouteExhausted as exhausted:
        assert_type(exhausted.attempts[0].error, ProviderError)
        assert_type(exhausted.attempts[0].error.http_status, int | None)
        assert_type(exhausted.request_id, str | None)
    except BudgetExceeded as refused:
        assert_type(refused.limit_usd, Decimal)
    except UnrecordedAnswer as unrecorded:
        assert_type(unrecorded.response, RouteResponse)
    except BughiveError as error:
        assert_type(error.request_id, str | None)


def tests_of_ones_own() -> None:
    def echo(call: Call) -> Reply:
        assert_type(call.task, str | None)
        return answer(str(call.messages), input_tokens=1)

    with FakeProvider(answer("yes"), fails(429, retry_after=0), fails("timeout"), echo) as fake:
        fake.script(Reply(usage=Tokens(1, 2)), task="analyze_page")
        assert_type(fake, FakeProvider)
        assert_type(fake.router, LLMRouter)
        assert_type(fake.events, list[Event])
        assert_type(fake.event_types, list[str])
        assert_type(fake.cost_usd, Decimal | None)
        assert_type(fake.calls, list[Call])


def what_must_be_an_error(router: LLMRouter, tracker: CostTracker, response: RouteResponse) -> None:
    router.route(messages=ASK)  # type: ignore[call-arg]
    router.route("analyze_page", ["a text"])  # type: ignore[list-item]
    router.route("analyze_page", ASK, "s-1")  # type: ignore[call-arg]
    router.route("analyze_page", ASK, budget_usd=[1])  # type: ignore[arg-type]
    response["costs"]  # type: ignore[typeddict-item]
    response["cost"] + 1  # type: ignore[operator]
    response["tool_calls"][0]["arguments"]  # type: ignore[typeddict-item]
    response["tool_calls"][0]["input"]["selector"]  # type: ignore[index]
    AnthropicClient(timeout="60")  # type: ignore[arg-type]
    TASK_MODEL_MAP["my_new_task"] = "REASONING"  # type: ignore[assignment]
    tracker.get_session_cost()  # type: ignore[call-arg]
    tracker.get_breakdown("s")["FAST"]["costs"]  # type: ignore[typeddict-item]
    Ledger.open("here", durability="fast")  # type: ignore[arg-type]
    answer(tokens=5)  # type: ignore[call-arg]
    fails("too slow")  # type: ignore[arg-type]
    FakeProvider("a text")  # type: ignore[arg-type]
