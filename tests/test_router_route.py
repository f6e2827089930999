"""route() and route_with_fallback() over real sockets: what is tried, returned, refused and written."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from tenacity.wait import wait_none

import router as public
from ledger import CostTracker, Ledger
from ledger.budgets import Budget
from ledger.errors import LedgerError
from ledger.prices import PriceBook
from router import (
    TASK_MODEL_MAP,
    AnthropicClient,
    BudgetExceeded,
    InvalidRequest,
    LLMRouter,
    MissingKey,
    ModelTier,
    OpenRouterClient,
    ProviderError,
    RouteExhausted,
    SettingsError,
    UnboundedRequest,
    UnknownTask,
    UnknownTier,
    UnpricedModel,
    UnrecordedAnswer,
)
from router.simulator import (
    Reply,
    Simulator,
    Tokens,
    authentication_failed,
    content_filtered,
    context_length_exceeded,
    cut,
    error_in_answer,
    insufficient_credits,
    invalid_request,
    not_found,
    overloaded,
    rate_limited,
    reset,
    server_error,
    silent,
    unreadable,
)

pytestmark = pytest.mark.usefixtures("nothing_set")

REASONING = "deepseek/deepseek-chat"
FAST = "qwen/qwen-2.5-32b-instruct"
OPUS = "claude-opus-4-5-20251101"
ASK: list[dict[str, Any]] = [{"role": "user", "content": "Analyze this page."}]


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with Ledger.in_memory() as kept:
        yield kept


@pytest.fixture
def make_router(sim: Simulator, ledger: Ledger) -> Iterator[Callable[..., LLMRouter]]:
    """Routers whose clients speak to the simulator, and whose waits take no time."""
    with (
        AnthropicClient("sk-ant-test-key", base_url=sim.anthropic_url) as anthropic,
        OpenRouterClient("sk-or-test-key", base_url=sim.openrouter_url) as openrouter,
    ):
        yield lambda **options: LLMRouter(
            anthropic, openrouter, CostTracker(ledger), **{"backoff": wait_none(), **options}
        )


@pytest.fixture
def router(make_router: Callable[..., LLMRouter]) -> LLMRouter:
    return make_router()


def events(ledger: Ledger) -> list[dict[str, Any]]:
    """What the journals hold, in order, without the journal's own events."""
    lines = [
        json.loads(line)
        for path in sorted(ledger.path.glob("journals/*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    return [line for line in lines if not line["event_type"].startswith("journal_")]


def types(ledger: Ledger) -> list[str]:
    return [event["event_type"] for event in events(ledger)]


# The answer


def test_the_response_holds_exactly_what_is_promised(sim: Simulator, router: LLMRouter) -> None:
    sim.script(REASONING, Reply(text="A form.", usage=Tokens(1000, 200), cost=Decimal("0.0004912")))
    response = router.route("analyze_page", ASK, session_id="crawl_session_123", max_tokens=2000)

    assert set(response) == set(public.RouteResponse.__annotations__)
    assert response["content"] == "A form."
    assert response["model_tier"] == "REASONING"
    assert (response["model"], response["provider"]) == (REASONING, "openrouter")
    assert response["cost"] == Decimal("0.0004912")
    assert (response["usage"]["input_tokens"], response["usage"]["output_tokens"]) == (1000, 200)
    assert (response["stop_reason"], response["provider_stop_reason"]) == ("end_turn", "stop")
    assert (response["session_id"], response["attempts"]) == ("crawl_session_123", 1)
    assert response["fallback_used"] is False
    assert response["latency_s"] > 0
    assert type(response["model_tier"]) is str


def test_without_the_providers_word_the_cost_is_by_the_book(sim: Simulator, router: LLMRouter) -> None:
    sim.script(OPUS, Reply(usage=Tokens(1000, 500)))

    assert router.route("quality_gate", ASK)["cost"] == Decimal("0.0525")  # 15 and 75 USD per million


def test_without_price_and_word_the_cost_is_not_known(
    sim: Simulator, make_router: Callable[..., LLMRouter]
) -> None:
    sim.script("somebody/new-model", Reply(usage=Tokens(10, 10), cost="absent"))
    router = make_router(catalog={ModelTier.REASONING: ("somebody/new-model", "openrouter")})

    assert router.route("analyze_page", ASK)["cost"] is None


def test_a_failed_answer_that_was_billed_is_in_the_cost(sim: Simulator, router: LLMRouter) -> None:
    billed = {"prompt_tokens": 89, "completion_tokens": 972, "total_tokens": 1061, "cost": 0.001}
    broken = {"error": {"code": 502, "message": "cut"}, "message": {"content": "par"}, "finish_reason": None}
    sim.script(REASONING, Reply(body={"id": "g", "choices": [broken], "usage": billed}))
    sim.script(REASONING, Reply(usage=Tokens(10, 10), cost=Decimal("0.0002")))
    response = router.route("analyze_page", ASK)

    assert response["attempts"] == 2
    assert response["cost"] == Decimal("0.0012")


def test_every_task_has_a_tier_and_every_tier_its_model(sim: Simulator, router: LLMRouter) -> None:
    assert len(TASK_MODEL_MAP) == 20
    for task in TASK_MODEL_MAP:
        assert router.route(task, ASK)["model_tier"] == TASK_MODEL_MAP[task]

    asked = {served.model for served in sim.log}
    assert asked == {OPUS, REASONING, FAST, "deepseek/deepseek-coder", "qwen/qwen-2.5-72b-instruct"}


def test_the_task_map_and_the_catalog_are_read_at_each_call(
    make_router: Callable[..., LLMRouter], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = {"REASONING": (FAST, "openrouter")}
    router = make_router(catalog=catalog)
    assert router.route("analyze_page", ASK)["model"] == FAST

    catalog["REASONING"] = ("anthropic/claude-haiku-4-5", "anthropic")
    monkeypatch.setitem(TASK_MODEL_MAP, "my_new_task", ModelTier.REASONING)
    assert router.route("my_new_task", ASK)["provider"] == "anthropic"


def test_a_tier_is_repointed_in_bughive_toml(router: LLMRouter, tmp_path: Path) -> None:
    (tmp_path / "bughive.toml").write_text(f'[tiers.REASONING]\nmodel = "{FAST}"\nprovider = "openrouter"\n')

    assert router.route("analyze_page", ASK)["model"] == FAST


# Failures, row by row

AGAIN = {"REASONING": 3, "FAST": 1}  # all retries, then the next tier
NEXT = {"REASONING": 1, "FAST": 1}  # the next tier at once
STOP = {"REASONING": 1}  # nothing more

ROWS: dict[str, tuple[Reply, str, dict[str, int]]] = {
    "429 with Retry-After": (rate_limited(0.01), "rate_limited", AGAIN),
    "429 with Retry-After beyond the deadline": (rate_limited(9999), "rate_limited", NEXT),
    "429 without it": (rate_limited(), "rate_limited", AGAIN),
    **{f"{status}": (server_error(status), "server_error", AGAIN) for status in (408, 409, 500, 502, 504)},
    **{f"{status}": (overloaded(status), "overloaded", AGAIN) for status in (503, 529)},
    "reset before any byte": (reset(), "connection_failed", AGAIN),
    "spend limit": (Reply(status=429, message="monthly spend limit reached"), "spend_limit_reached", NEXT),
    "402": (insufficient_credits(), "insufficient_credits", NEXT),
    "silence": (silent(), "timeout", NEXT),
    "cut in mid-answer": (cut(after=40), "stream_interrupted", NEXT),
    "context length": (context_length_exceeded(), "context_length_exceeded", NEXT),
    "refused by policy": (content_filtered(), "content_filtered", STOP),
    "400": (invalid_request(), "invalid_request", STOP),
    "413": (Reply(status=413), "request_too_large", STOP),
    "401": (authentication_failed(), "authentication_failed", NEXT),
    "403": (Reply(status=403), "permission_denied", NEXT),
    "404": (not_found(), "not_found", NEXT),
    "not JSON": (unreadable(), "malformed_response", AGAIN),
    "error inside 200, a rate limit": (error_in_answer("rate_limited"), "rate_limited", AGAIN),
    "error inside 200, a bad key": (error_in_answer("authentication_failed"), "authentication_failed", NEXT),
    "x-should-retry: false": (
        Reply(status=529, headers={"x-should-retry": "false"}),
        "overloaded",
        NEXT,
    ),
    "x-should-retry: true": (
        Reply(status=400, headers={"x-should-retry": "true"}),
        "invalid_request",
        {"REASONING": 3},
    ),
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("task", ["analyze_page", "quality_gate"], ids=["openrouter", "anthropic"])
def test_each_failure_is_followed_by_what_the_table_says(
    row: str, task: str, sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    reply, error_type, attempts = ROWS[row]
    own_tier = TASK_MODEL_MAP[task]
    if reply.silence:  # its fallback has all the time it needs
        Path("bughive.toml").write_text(f"[tiers.{own_tier}]\ntimeout_s = 0.15\n")
    sim.script(REASONING if task == "analyze_page" else OPUS, *[reply] * 5)
    expectation = contextlib.nullcontext() if "FAST" in attempts else pytest.raises(RouteExhausted)
    with expectation:
        router.route_with_fallback(task, ASK)

    started = [event["tier"] for event in events(ledger) if event["event_type"] == "attempt_started"]
    expected = {own_tier if tier == "REASONING" else tier: count for tier, count in attempts.items()}
    assert {tier: started.count(tier) for tier in dict.fromkeys(started)} == expected
    failed = [event for event in events(ledger) if event["event_type"] == "attempt_failed"]
    assert {event["error_type"] for event in failed} == {error_type}


def test_what_is_exhausted_tells_its_whole_story(sim: Simulator, router: LLMRouter) -> None:
    sim.script(REASONING, *[overloaded()] * 3)
    sim.script(FAST, not_found())
    with pytest.raises(RouteExhausted) as caught:
        router.route_with_fallback("analyze_page", ASK)

    story = [(attempt.tier, attempt.model, attempt.error.error_type) for attempt in caught.value.attempts]
    assert story == [("REASONING", REASONING, "overloaded")] * 3 + [("FAST", FAST, "not_found")]
    assert caught.value.request_id
    assert isinstance(caught.value.__cause__, ProviderError)
    assert caught.value.reason == "exhausted"
    assert "\n" not in str(caught.value)


def test_the_own_tier_as_fallback_is_no_fallback(sim: Simulator, router: LLMRouter, ledger: Ledger) -> None:
    sim.script(FAST, *[server_error()] * 3)
    with pytest.raises(RouteExhausted):
        router.route_with_fallback("generate_title", ASK, fallback_tier=ModelTier.FAST)

    assert "fallback_engaged" not in types(ledger)
    assert len(sim.log) == 3


def test_max_retries_holds_for_each_tier(sim: Simulator, make_router: Callable[..., LLMRouter]) -> None:
    sim.script(REASONING, *[server_error()] * 9)
    sim.script(FAST, *[server_error()] * 9)
    with pytest.raises(RouteExhausted):
        make_router(max_retries=1).route_with_fallback("analyze_page", ASK)

    assert [served.model for served in sim.log] == [REASONING] * 2 + [FAST] * 2


def test_without_a_number_of_its_own_a_router_retries_as_its_clients_do(
    sim: Simulator, ledger: Ledger
) -> None:
    sim.script(REASONING, *[server_error()] * 9)
    with OpenRouterClient("sk-or-test-key", base_url=sim.openrouter_url, max_retries=4) as client:
        router = LLMRouter(openrouter_client=client, cost_tracker=CostTracker(ledger), backoff=wait_none())
        with pytest.raises(RouteExhausted):
            router.route("analyze_page", ASK)

    assert len(sim.log) == 5


def test_the_deadline_covers_attempts_and_waits(
    sim: Simulator, make_router: Callable[..., LLMRouter], ledger: Ledger
) -> None:
    slow = 0.0

    def sleep(seconds: float) -> None:
        nonlocal slow
        slow += seconds

    sim.script(REASONING, rate_limited(60), rate_limited(60), rate_limited(60))
    router = make_router(sleep=sleep, clock=lambda: slow)
    with pytest.raises(RouteExhausted) as caught:
        router.route("analyze_page", ASK, deadline_s=100)

    assert caught.value.reason == "deadline"
    assert slow == 60
    assert types(ledger)[-1] == "request_failed"


def test_an_attempt_gets_no_more_than_the_deadline_leaves(sim: Simulator, router: LLMRouter) -> None:
    sim.script(REASONING, silent())
    with pytest.raises(RouteExhausted) as caught:
        router.route("analyze_page", ASK, timeout_s=60, deadline_s=0.2)

    assert caught.value.reason == "deadline"
    assert caught.value.attempts[0].error.error_type == "timeout"


def test_a_tool_loop_begun_with_claude_goes_on_with_another_model(sim: Simulator, router: LLMRouter) -> None:
    tool = {"name": "look", "description": "Look", "input_schema": {"type": "object", "properties": {}}}
    sim.script(OPUS, Reply(text="I look.", tool_call=("look", {"at": "login"})), not_found())
    first = router.route("quality_gate", ASK, tools=[tool])
    call = first["tool_calls"][0]
    history = [
        *ASK,
        {
            "role": "assistant",
            "content": [{"type": "text", "text": first["content"]}, {"type": "tool_use", **call}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": "a form"}],
        },
    ]
    second = router.route_with_fallback("quality_gate", history, tools=[tool])

    assert (second["fallback_used"], second["model_tier"], second["attempts"]) == (True, "FAST", 2)
    sent = sim.log[-1].request_body
    assert sent["messages"][1]["tool_calls"][0]["function"] == {
        "name": "look",
        "arguments": '{"at": "login"}',
    }
    assert sent["messages"][2] == {"role": "tool", "tool_call_id": call["id"], "content": "a form"}
    assert sent["tools"][0]["function"]["name"] == "look"


# Keys


def test_a_router_with_one_key_serves_that_providers_tiers(sim: Simulator, ledger: Ledger) -> None:
    openrouter = OpenRouterClient("sk-or-test-key", base_url=sim.openrouter_url)
    router = LLMRouter(openrouter_client=openrouter, cost_tracker=CostTracker(ledger))

    assert router.route("analyze_page", ASK)["content"]
    with pytest.raises(MissingKey, match="ANTHROPIC_API_KEY"):
        router.route("quality_gate", ASK)
    assert types(ledger).count("request_received") == 1


def test_a_fallback_without_a_key_does_not_hide_the_failure(sim: Simulator, ledger: Ledger) -> None:
    sim.script(OPUS, not_found())
    anthropic = AnthropicClient("sk-ant-test-key", base_url=sim.anthropic_url)
    router = LLMRouter(anthropic, cost_tracker=CostTracker(ledger))
    with pytest.raises(RouteExhausted) as caught:
        router.route_with_fallback("quality_gate", ASK)

    assert caught.value.attempts[-1].error.error_type == "not_found"
    assert types(ledger) == ["request_received", "attempt_started", "attempt_failed", "request_failed"]


# Budgets


def test_a_budget_holds_over_the_retries_of_a_request(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    sim.script(REASONING, reset(), Reply())
    ceiling = _ceiling(router)
    with pytest.raises(BudgetExceeded) as caught:
        router.route("analyze_page", ASK, budget_usd=ceiling * Decimal("1.5"))

    assert caught.value.request_id
    assert caught.value.in_doubt_usd == ceiling  # the reset attempt may have been billed
    denied = events(ledger)[-1]
    assert (denied["event_type"], denied["reason"]) == ("request_denied", "budget_exceeded")
    assert denied["attempt_number"] == 1
    assert len(sim.log) == 1


def _ceiling(router: LLMRouter) -> Decimal:
    """What one attempt of `ASK` under a budget can cost: asked of a request that is refused."""
    with pytest.raises(BudgetExceeded) as caught:
        router.route("analyze_page", ASK, budget_usd=0)
    return caught.value.asked_usd


def test_an_answer_without_a_cost_keeps_its_ceiling_against_the_budget(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    usage = {"prompt_tokens": None, "completion_tokens": None}
    answer = {
        "id": "g",
        "model": REASONING,
        "choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}],
    }
    sim.script(REASONING, Reply(body={**answer, "usage": usage}))

    assert router.route("analyze_page", ASK, budget_usd="1")["cost"] is None

    started, succeeded = (event for event in events(ledger) if event["event_type"].startswith("attempt"))
    assert succeeded["billing"] == "billed"
    assert succeeded["reserved_usd"] == started["reserved_usd"]
    balance = ledger.read_state(lambda state: state.balance("tier", "REASONING"))
    assert balance.in_doubt_usd == Decimal(started["reserved_usd"])


def test_a_hard_budget_is_told_to_openrouter_as_a_price(sim: Simulator, router: LLMRouter) -> None:
    router.route("analyze_page", ASK, budget_usd="1", provider={"order": ["DeepInfra"]})
    router.route("analyze_page", ASK)

    with_budget, without = (served.request_body for served in sim.log)
    assert with_budget["provider"] == {
        "order": ["DeepInfra"],
        "max_price": {"prompt": 0.27, "completion": 1.1},
    }
    assert "provider" not in without


def test_a_hard_budget_needs_a_price(make_router: Callable[..., LLMRouter], sim: Simulator) -> None:
    router = make_router(catalog={"REASONING": ("somebody/new-model", "openrouter")})
    with pytest.raises(UnpricedModel, match="somebody/new-model") as caught:
        router.route("analyze_page", ASK, budget_usd=1)

    assert caught.value.request_id
    assert sim.log == []


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://a.example/b.png"}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}}
UNBOUNDED: dict[str, dict[str, Any]] = {
    "server tool": {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
    "mcp_servers": {"mcp_servers": [{"url": "https://a.example"}]},
    "unknown parameter": {"brand_new": 1},
    "service tier": {"service_tier": "auto"},
    "remote image": {"messages": [{"role": "user", "content": [IMAGE]}]},
    "remote image in a tool's result": {
        "messages": [
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}]}
        ]
    },
    "document": {"messages": [{"role": "user", "content": [PDF]}]},
}
UNBOUNDED_AT_OPENROUTER: dict[str, dict[str, Any]] = {
    "plugins": {"plugins": [{"id": "web"}]},
    "models": {"models": ["a/b", "c/d"]},
    "web search": {"web_search_options": {}},
    "unknown parameter": {"brand_new": 1},
    "remote image": {"messages": [{"role": "user", "content": [IMAGE]}]},
    "document": {"messages": [{"role": "user", "content": [PDF]}]},
}


@pytest.mark.parametrize(
    ("task", "more"),
    [
        *(pytest.param("quality_gate", more, id=f"anthropic {what}") for what, more in UNBOUNDED.items()),
        *(
            pytest.param("analyze_page", more, id=f"openrouter {what}")
            for what, more in UNBOUNDED_AT_OPENROUTER.items()
        ),
    ],
)
def test_what_has_no_bound_is_refused_under_a_hard_budget_only(
    task: str, more: dict[str, Any], sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    call = {"messages": ASK, **more}
    with pytest.raises(UnboundedRequest, match="no bound on its cost; leave it out, or lift the hard budget"):
        router.route(task, **call, budget_usd=1000)
    assert sim.log == []
    assert types(ledger) == ["request_received", "request_denied"]
    assert events(ledger)[-1]["reason"] == "unbounded_request"

    router.route(task, **call)
    assert "reserved_usd" not in events(ledger)[3]  # no bound, so none is claimed


def test_an_inline_image_and_a_tool_have_a_bound(sim: Simulator, router: LLMRouter) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    tool = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}]
    for task in ("quality_gate", "analyze_page"):
        assert router.route(task, messages, tools=[tool], budget_usd=5.0)["content"]


def test_several_answers_to_one_request_are_held_for_one_by_one(router: LLMRouter, ledger: Ledger) -> None:
    for count in (1, 3):
        router.route("analyze_page", ASK, max_tokens=1000, n=count)
    one, three = (
        Decimal(event["reserved_usd"]) for event in events(ledger) if event["event_type"] == "attempt_started"
    )

    assert three - one == 2 * 1000 * Decimal("0.0000011")


def test_a_ceiling_that_did_not_hold_is_on_the_books(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    sim.script(REASONING, Reply(usage=Tokens(10, 10), cost=Decimal("3.5")))
    router.route("analyze_page", ASK, max_tokens=10)

    assert types(ledger)[2:] == ["attempt_succeeded", "ceiling_broken", "request_completed"]
    assert events(ledger)[3]["spent_usd"] == "3.500000000000"


# Wrong input: one line, and nothing on the books

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "unknown task": ({"task": "analyse_page"}, UnknownTask, "analyze_page"),
    "task far from all": ({"task": "xyz"}, UnknownTask, "TASK_MODEL_MAP"),
    "unknown tier": ({"fallback_tier": "FASTT"}, UnknownTier, "FAST"),
    "lower-case tier": ({"fallback_tier": "fast"}, UnknownTier, "FAST"),
    "no messages": ({"messages": []}, InvalidRequest, "messages"),
    "a text for messages": ({"messages": "hello"}, InvalidRequest, "messages"),
    "a message without role": ({"messages": [{"content": "x"}]}, InvalidRequest, "role"),
    "max_tokens 0": ({"max_tokens": 0}, InvalidRequest, "max_tokens"),
    "max_tokens 1.5": ({"max_tokens": 1.5}, InvalidRequest, "max_tokens"),
    "max_tokens beyond all": ({"max_tokens": 10**30}, InvalidRequest, "max_tokens"),
    "empty session": ({"session_id": ""}, InvalidRequest, "session_id"),
    "long session": ({"session_id": "s" * 257}, InvalidRequest, "session_id"),
    "session of two lines": ({"session_id": "a\nb"}, InvalidRequest, "session_id"),
    "session under a budget": ({"session_id": "a\nb", "budget_usd": 9}, InvalidRequest, "session_id"),
    "a number for a session": ({"session_id": 5}, InvalidRequest, "session_id"),
    "a surrogate in a session": ({"session_id": "a\ud800"}, InvalidRequest, "session_id"),
    "a tag that is no text": ({"tags": {"a": 1}}, InvalidRequest, "tags"),
    "an empty tag": ({"tags": {"": "x"}}, InvalidRequest, "tags"),
    "too many tags": ({"tags": {str(n): "x" for n in range(33)}}, InvalidRequest, "tags"),
    "negative budget": ({"budget_usd": -1}, InvalidRequest, "budget_usd"),
    "budget NaN": ({"budget_usd": float("nan")}, InvalidRequest, "budget_usd"),
    "budget in words": ({"budget_usd": "a lot"}, InvalidRequest, "budget_usd"),
    "timeout 0": ({"timeout_s": 0}, InvalidRequest, "timeout_s"),
    "deadline NaN": ({"deadline_s": float("nan")}, InvalidRequest, "deadline_s"),
    "stream": ({"stream": True}, InvalidRequest, "stream"),
    "not JSON": ({"messages": [{"role": "user", "content": "x", "at": {1, 2}}]}, InvalidRequest, "JSON"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_refused_in_one_line_and_leaves_nothing(
    what: str, sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    change, kind, named = WRONG[what]
    with pytest.raises(kind) as refused:
        router.route_with_fallback(**{"task": "analyze_page", "messages": ASK, **change})

    assert type(refused.value) is kind
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)
    assert events(ledger) == []
    assert sim.log == []
    router.route("analyze_page", ASK, budget_usd=1)  # and nothing is held


def test_a_broken_bughive_toml_is_told_before_anything_is_sent(
    sim: Simulator, router: LLMRouter, tmp_path: Path
) -> None:
    (tmp_path / "bughive.toml").write_text('[tiers.FAST]\nmodle = "x"\n')
    with pytest.raises(SettingsError, match="line 2"):
        router.route("analyze_page", ASK)

    assert sim.log == []


# Leaving, and a ledger that fails


def through(handler: Callable[[httpx.Request], httpx.Response], ledger: Ledger, **options: Any) -> LLMRouter:
    """A router whose only provider is a function."""
    client = OpenRouterClient("sk-or-test-key", transport=httpx.MockTransport(handler))
    return LLMRouter(None, client, CostTracker(ledger), backoff=wait_none(), **options)


def answer(_: httpx.Request) -> httpx.Response:
    return httpx.Response(
        200,
        json={
            "id": "gen-1",
            "choices": [{"finish_reason": "stop", "message": {"content": "paid for"}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "cost": 0.001},
        },
    )


def test_ctrl_c_during_the_call_is_recorded_and_goes_on(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    sim.script(REASONING, silent())

    def interrupt() -> None:
        sim.wait_served(1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        router.route("analyze_page", ASK)

    assert types(ledger) == ["request_received", "attempt_started", "attempt_cancelled", "request_failed"]
    _, started, cancelled, failed = events(ledger)
    assert (cancelled["billing"], cancelled["reserved_usd"]) == ("unknown", started["reserved_usd"])
    assert (failed["reason"], failed["error_type"]) == ("cancelled", "cancelled")


def test_ctrl_c_during_a_wait_ends_the_request_alone(ledger: Ledger) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    router = through(lambda _: httpx.Response(503), ledger, sleep=interrupted)
    with pytest.raises(KeyboardInterrupt):
        router.route("analyze_page", ASK)

    assert types(ledger) == ["request_received", "attempt_started", "attempt_failed", "request_failed"]


def test_a_transport_that_breaks_leaves_the_attempt_in_doubt(ledger: Ledger) -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        through(broken, ledger).route("analyze_page", ASK)

    assert types(ledger)[-2:] == ["attempt_cancelled", "request_failed"]
    assert events(ledger)[-2]["reason"] == "ZeroDivisionError"


def test_nothing_is_sent_that_is_not_on_the_books(ledger: Ledger) -> None:
    sent: list[httpx.Request] = []
    router = through(lambda request: sent.append(request) or answer(request), ledger)
    ledger.close()
    with pytest.raises(LedgerError):
        router.route("analyze_page", ASK)

    assert sent == []


@pytest.mark.parametrize("status", [200, 404], ids=["an answer", "a failure"])
def test_what_was_paid_for_is_not_lost_with_the_ledger(
    status: int, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ledger.request_log import RequestLog

    def full(*_: object) -> None:
        raise LedgerError("the disk is full")

    def handler(request: httpx.Request) -> httpx.Response:
        monkeypatch.setattr(RequestLog, "append", full)
        return answer(request) if status == 200 else httpx.Response(status)

    with pytest.raises(LedgerError, match="the disk is full") as caught:
        through(handler, ledger).route("analyze_page", ASK)

    if status == 200:
        assert isinstance(caught.value, UnrecordedAnswer)
        assert caught.value.response["content"] == "paid for"
        assert caught.value.request_id == caught.value.response["request_id"]


def test_what_has_no_place_at_the_fallback_does_not_hide_the_failure(
    sim: Simulator, make_router: Callable[..., LLMRouter], ledger: Ledger
) -> None:
    sim.script(REASONING, not_found())
    sound = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    with pytest.raises(RouteExhausted) as caught:
        make_router().route_with_fallback(
            "analyze_page", [{"role": "user", "content": [sound]}], fallback_tier=ModelTier.ORCHESTRATOR
        )

    assert caught.value.attempts[-1].error.error_type == "not_found"
    assert "fallback_engaged" not in types(ledger)


# What the router makes itself


def test_a_router_makes_what_it_needs_and_closes_only_that(
    sim: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-or-test-key")
    monkeypatch.setenv("OPENROUTER_BASE_URL", sim.openrouter_url)
    with LLMRouter() as router:
        assert router.route("analyze_page", ASK, session_id="s-1")["content"]
        made = router.tracker
    assert (tmp_path / "data" / "ledger" / "journals").is_dir()

    with LLMRouter(cost_tracker=made) as again:
        again.route("analyze_page", ASK, session_id="s-1")
    assert made.ledger.path.is_dir()
    made.close()


def test_threads_share_a_router(sim: Simulator, router: LLMRouter, ledger: Ledger) -> None:
    def work() -> None:
        for _ in range(5):
            router.route("analyze_page", ASK, session_id="s-1", budget_usd="0.5")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert types(ledger).count("request_completed") == len(sim.log) == 40


def test_keys_and_prompts_reach_neither_journal_nor_log(
    sim: Simulator, router: LLMRouter, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    sim.script(REASONING, Reply(status=400, message="bad key sk-or-test-key in the prompt"))
    with pytest.raises(RouteExhausted):
        router.route("analyze_page", [{"role": "user", "content": "the secret plan"}], system="hush hush")

    written = "".join(path.read_text("utf-8") for path in ledger.path.glob("journals/*.jsonl")) + caplog.text
    for secret in ("sk-or-test-key", "the secret plan", "hush hush"):
        assert secret not in written


def test_prices_of_the_day_are_written_beside_the_cost(router: LLMRouter, ledger: Ledger) -> None:
    router.route("quality_gate", ASK)
    succeeded = events(ledger)[2]

    assert succeeded["price_book"] == PriceBook.load().hash
    assert Decimal(succeeded["input_usd_per_mtok"]) == 15
    assert Decimal(succeeded["output_usd_per_mtok"]) == 75


def test_the_public_face_is_what_is_listed() -> None:
    assert len(set(public.__all__)) == len(public.__all__)
    for exported in set(public.__all__) - {"TASK_MODEL_MAP"}:
        assert getattr(public, exported).__name__ == exported


# budgets in force


def test_a_budget_in_force_refuses_before_anything_is_sent_and_is_on_the_books(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    ledger.set_budget(Budget("session", "s-1", Decimal("0.0001")))
    with pytest.raises(BudgetExceeded, match="budget of session s-1 exceeded"):
        router.route("analyze_page", ASK, session_id="s-1")
    assert sim.log == []
    router.route("analyze_page", ASK, session_id="s-2")

    denied = events(ledger)[2]
    assert (denied["event_type"], denied["scope"], denied["scope_id"]) == ("request_denied", "session", "s-1")
    assert Decimal(denied["asked_usd"]) > Decimal("0.0001")


def test_a_fallback_reserves_anew_and_only_its_own_tiers_budget_holds_for_it(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    ledger.set_budget(Budget("tier", "FAST", Decimal(1)))
    sim.script(REASONING, insufficient_credits())
    router.route_with_fallback("analyze_page", ASK)
    first, second = (served.request_body for served in sim.log)
    assert "provider" not in first
    assert second["provider"]["max_price"] == {"prompt": 0.06, "completion": 0.24}

    ledger.set_budget(Budget("tier", "FAST", Decimal(0)))
    sim.script(REASONING, insufficient_credits())
    with pytest.raises(BudgetExceeded, match="budget of tier FAST exceeded"):
        router.route_with_fallback("analyze_page", ASK)
    assert events(ledger)[-1]["attempt_number"] == 1


def test_a_standing_hard_budget_needs_a_price_and_a_warn_budget_does_not(
    make_router: Callable[..., LLMRouter], sim: Simulator, ledger: Ledger
) -> None:
    router = make_router(catalog={"REASONING": ("somebody/new-model", "openrouter")})
    ledger.set_budget(Budget("all", None, Decimal(0), "warn"))
    router.route("analyze_page", ASK)
    assert types(ledger)[-1] == "request_completed"
    ledger.set_budget(Budget("day", None, Decimal(5)))
    with pytest.raises(UnpricedModel, match=r"the budget of day .* cannot hold: somebody/new-model has"):
        router.route("analyze_page", ASK)
    assert events(ledger)[-1]["reason"] == "unpriced_model"
