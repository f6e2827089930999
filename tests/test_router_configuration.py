"""What is set for a tier, and clients that keep books of their own: over real sockets, in the events."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tenacity.wait import wait_none

from ledger import CostTracker, Ledger
from ledger.prices import PriceBook
from ledger.schema import SCHEMA_VERSION
from ledger.settings import OwnPrice, Settings
from router import (
    AnthropicClient,
    InvalidRequest,
    LLMRouter,
    ModelTier,
    OpenRouterClient,
    ProviderError,
    RouteExhausted,
    UnknownTier,
)
from router.simulator import Reply, Simulator, Tokens, server_error, silent

REASONING = "deepseek/deepseek-chat"
CODING = "deepseek/deepseek-coder"
FAST = "qwen/qwen-2.5-32b-instruct"
OPUS = "claude-opus-4-5-20251101"
ASK: list[dict[str, Any]] = [{"role": "user", "content": "Analyze this page."}]


@pytest.fixture
def set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Work in a folder with that bughive.toml."""
    monkeypatch.chdir(tmp_path)
    return lambda text: (tmp_path / "bughive.toml").write_text(text) and None


@pytest.fixture
def make_router(sim: Simulator) -> Iterator[Callable[..., LLMRouter]]:
    """Routers of what is set where they are made; their clients as a test wants them."""
    opened: list[Any] = []

    def make(max_retries: int | None = None, **client: Any) -> LLMRouter:
        ledger = Ledger.in_memory(prices=PriceBook.load(Settings.load(environ={}).prices))
        anthropic = AnthropicClient("not-a-key", base_url=sim.anthropic_url, **client)
        openrouter = OpenRouterClient("not-a-key", base_url=sim.openrouter_url, **client)
        opened.extend([ledger, anthropic, openrouter])
        return LLMRouter(
            anthropic, openrouter, CostTracker(ledger), max_retries=max_retries, backoff=wait_none()
        )

    yield make
    for part in opened:
        part.close()


def events(ledger: Ledger, *types: str) -> list[dict[str, Any]]:
    lines = [
        json.loads(line)
        for path in sorted(ledger.path.glob("journals/*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    return [line for line in lines if line["event_type"] in types]


# tiers


def test_a_tiers_own_patience_and_length_hold_where_the_call_names_none(
    sim: Simulator, set_up: Callable[[str], None], make_router: Callable[..., LLMRouter]
) -> None:
    set_up("[tiers.REASONING]\nmax_tokens = 77\nmax_retries = 0\n")
    sim.script(REASONING, server_error())
    router = make_router()
    with pytest.raises(RouteExhausted):
        router.route("analyze_page", ASK)
    router.route("analyze_page", ASK, max_tokens=5)
    router.route("propose_fix", ASK)

    assert [served.request_body["max_tokens"] for served in sim.log] == [77, 5, 4096]
    received = events(router.tracker.ledger, "request_received", "attempt_started")
    assert [event["max_tokens"] for event in received] == [77, 77, 5, 5, 4096, 4096]


def test_a_tiers_own_timeout_wins_over_its_clients_and_the_calls_over_both(
    sim: Simulator, set_up: Callable[[str], None], make_router: Callable[..., LLMRouter]
) -> None:
    set_up("[tiers.REASONING]\ntimeout_s = 0.2\n")
    sim.script(REASONING, silent(), silent())
    sim.script(CODING, silent())
    router = make_router(timeout=0.3)
    for task, call, told in (
        ("analyze_page", {}, "0.2 s"),
        ("analyze_page", {"timeout_s": 0.1}, "0.1 s"),
        ("propose_fix", {}, "0.3 s"),
    ):
        with pytest.raises(RouteExhausted, match=f"within {told}"):
            router.route(task, ASK, **call)


def test_a_routers_own_retries_win_over_the_tiers(
    sim: Simulator, set_up: Callable[[str], None], make_router: Callable[..., LLMRouter]
) -> None:
    set_up("[tiers.REASONING]\nmax_retries = 5\n")
    sim.script(REASONING, *[server_error()] * 9)
    with pytest.raises(RouteExhausted):
        make_router(max_retries=1).route("analyze_page", ASK)
    assert len(sim.log) == 2


def test_a_fallback_chain_is_followed_to_its_end(
    sim: Simulator, set_up: Callable[[str], None], make_router: Callable[..., LLMRouter]
) -> None:
    set_up('[tiers.REASONING]\nfallback = ["CODING", "ORCHESTRATOR"]\nmax_retries = 0\n')
    sim.script(REASONING, server_error())
    sim.script(CODING, *[server_error()] * 3)
    router = make_router()

    response = router.route_with_fallback("analyze_page", ASK)

    assert (response["model_tier"], response["attempts"]) == ("ORCHESTRATOR", 5)
    moves = events(router.tracker.ledger, "fallback_engaged")
    assert [(move["from_tier"], move["to_tier"]) for move in moves] == [
        ("REASONING", "CODING"),
        ("CODING", "ORCHESTRATOR"),
    ]


def test_the_calls_own_fallback_wins_over_the_chain_and_without_either_it_is_fast(
    sim: Simulator, set_up: Callable[[str], None], make_router: Callable[..., LLMRouter]
) -> None:
    set_up('[tiers.REASONING]\nfallback = ["CODING"]\n')
    sim.script(REASONING, *[server_error()] * 3)
    sim.script(OPUS, *[server_error()] * 3)
    router = make_router()

    named = router.route_with_fallback("analyze_page", ASK, fallback_tier=["GENERAL", ModelTier.FAST])
    default = router.route_with_fallback("quality_gate", ASK)

    assert (named["model_tier"], default["model_tier"]) == ("GENERAL", "FAST")


def test_an_unknown_fallback_tier_is_named_before_anything_is_recorded(
    make_router: Callable[..., LLMRouter],
) -> None:
    router = make_router()
    with pytest.raises(UnknownTier, match=r"FATS.*did you mean FAST"):
        router.route_with_fallback("analyze_page", ASK, fallback_tier=["CODING", "FATS"])
    assert events(router.tracker.ledger, "request_received") == []


def test_a_new_tier_with_a_model_and_a_price_of_ones_own(
    sim: Simulator, set_up: Callable[[str], None], make_router: Callable[..., LLMRouter]
) -> None:
    set_up(
        '[tiers.TRIAGE]\nmodel = "own/model"\nprovider = "openrouter"\n'
        '[[prices]]\nprovider = "openrouter"\nmodel = "own/model"\nfrom = 2026-01-01\n'
        "input = 2\noutput = 3.5\n"
    )
    sim.script(REASONING, *[server_error()] * 3)
    sim.script("own/model", Reply(usage=Tokens(1000, 100), cost="absent"))

    response = make_router().route_with_fallback("analyze_page", ASK, fallback_tier="TRIAGE")

    assert (response["model_tier"], response["cost"]) == ("TRIAGE", Decimal("0.00235"))


# clients with books of their own


@pytest.fixture
def tracker() -> Iterator[CostTracker]:
    with Ledger.in_memory() as ledger:
        yield CostTracker(ledger)


def test_a_client_with_a_tracker_puts_every_attempt_on_the_books(
    sim: Simulator, tracker: CostTracker
) -> None:
    sim.script(REASONING, server_error(), Reply(usage=Tokens(1000, 200)))
    with OpenRouterClient("k", base_url=sim.openrouter_url, tracker=tracker, sleep=lambda _: None) as client:
        response = client.create_completion(REASONING, ASK, session_id="s-1", tags={"app": "shop"})

    assert response["cost"] == tracker.get_session_cost("s-1") == Decimal("0.00049")
    assert list(tracker.get_breakdown("s-1")) == ["DIRECT"]
    told = events(tracker.ledger, "attempt_failed", "attempt_succeeded", "request_completed")
    assert [(event["event_type"], event["tier"], event["task"]) for event in told if "tier" in event] == [
        ("attempt_failed", "DIRECT", "create_completion"),
        ("attempt_succeeded", "DIRECT", "create_completion"),
        ("request_completed", "DIRECT", "create_completion"),
    ]
    assert told[0]["tags"] == {"app": "shop"}


def test_an_anthropic_client_with_a_tracker_books_list_prices(sim: Simulator, tracker: CostTracker) -> None:
    sim.script(OPUS, Reply(usage=Tokens(1000, 500)))
    with AnthropicClient("k", base_url=sim.anthropic_url, tracker=tracker) as client:
        response = client.create_message("anthropic/claude-opus-4-5-20250514", ASK, session_id="s-1")

    assert response["cost"] is None, "Anthropic reports none"
    assert tracker.get_session_cost("s-1") == Decimal("0.0525")


def test_the_error_is_the_same_with_books_and_without(sim: Simulator, tracker: CostTracker) -> None:
    for books in (None, tracker):
        sim.script(REASONING, *[server_error()] * 3)
        with (
            OpenRouterClient("k", base_url=sim.openrouter_url, tracker=books, sleep=lambda _: None) as client,
            pytest.raises(ProviderError) as failed,
        ):
            client.create_completion(REASONING, ASK)
        assert (failed.value.error_type, failed.value.http_status) == ("server_error", 500)
    assert len(sim.log) == 6
    assert [event["reason"] for event in events(tracker.ledger, "request_failed")] == ["exhausted"]


def test_a_session_without_books_is_refused_rather_than_lost(sim: Simulator) -> None:
    with (
        OpenRouterClient("k", base_url=sim.openrouter_url) as client,
        pytest.raises(InvalidRequest, match="give this client a tracker="),
    ):
        client.create_completion(REASONING, ASK, session_id="s-1")


def test_in_a_router_a_clients_own_tracker_does_not_book_twice(sim: Simulator, tracker: CostTracker) -> None:
    with OpenRouterClient("k", base_url=sim.openrouter_url, tracker=tracker) as client:
        LLMRouter(openrouter_client=client, cost_tracker=tracker).route("analyze_page", ASK, session_id="s-1")
    assert len(events(tracker.ledger, "attempt_succeeded")) == 1


def test_a_closed_client_may_be_used_again_and_threads_share_one(sim: Simulator) -> None:
    client = OpenRouterClient("k", base_url=sim.openrouter_url)
    client.create_completion(REASONING, ASK)
    client.close()
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.create_completion(FAST, ASK)["content"]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    assert len(answers) == 8


# what the events say


def test_every_fact_of_a_request_stands_in_its_events(
    sim: Simulator, set_up: Callable[[str], None], tmp_path: Path
) -> None:
    """A retry and an answer, with all that a caller can say, by a clock of the ledger's own."""
    now = datetime(2024, 5, 1, 12, tzinfo=UTC)
    prices = PriceBook.load([OwnPrice("here", PRICE)])
    sim.script(
        REASONING, server_error(502), Reply(text="done", usage=Tokens(1000, 200, 300), cost=Decimal("0.0007"))
    )
    with (
        Ledger.in_memory(clock=lambda: now, prices=prices) as ledger,
        OpenRouterClient("k", base_url=sim.openrouter_url) as client,
    ):
        router = LLMRouter(openrouter_client=client, cost_tracker=CostTracker(ledger), backoff=wait_none())
        router.route(
            "analyze_page",
            ASK,
            session_id="s-1",
            tags={"app": "shop"},
            tools=[{"name": "click", "description": "d", "input_schema": {"type": "object"}}],
            max_tokens=50,
            budget_usd="0.5",
        )
        found = [event for event in _journal(ledger) if not event["event_type"].startswith("journal")]
        body = sim.log[-1].request_body
    prompt = json.dumps(
        {"messages": body["messages"], "tools": body["tools"]}, separators=(",", ":"), ensure_ascii=False
    ).encode()
    request = {
        "session_id": "s-1",
        "task": "analyze_page",
        "tags": {"app": "shop"},
        "requested_tier": "REASONING",
        "occurred_at": "2024-05-01T12:00:00.000000Z",
        "schema_version": SCHEMA_VERSION,
    }
    route = {"tier": "REASONING", "provider": "openrouter", "model": REASONING}
    start = {"started_at": "2024-05-01T12:00:00Z"}
    ceiling = found[1]["reserved_usd"]
    told = [{name: event[name] for name in event if name not in VARYING} for event in found]
    assert told == [
        request
        | {"event_type": "request_received", "max_tokens": 50, "message_count": 1, "tool_count": 1}
        | {"prompt_bytes": len(prompt), "streamed": False, "limit_usd": "0.500000000000"},
        request
        | route
        | {"event_type": "attempt_started", "attempt_number": 1, "max_tokens": 50, "streamed": False}
        | {"reserved_usd": ceiling},
        request
        | route
        | start
        | {"event_type": "attempt_failed", "attempt_number": 1, "streamed": False, "http_status": 502}
        | {
            "error_type": "server_error",
            "billing": "unbilled",
            "billing_rule": "error_status",
            "wait_s": 0.0,
        },
        request
        | route
        | {"event_type": "attempt_started", "attempt_number": 2, "max_tokens": 50, "streamed": False}
        | {"reserved_usd": ceiling},
        request
        | route
        | start
        | {"event_type": "attempt_succeeded", "attempt_number": 2, "streamed": False, "http_status": 200}
        | {"input_tokens": 1000, "cache_read_tokens": 300, "cache_write_5m_tokens": 0}
        | {"cache_write_1h_tokens": 0, "output_tokens": 200, "reasoning_tokens": 0, "web_search_requests": 0}
        | {"list_cost_usd": "0.001460000000", "billed_cost_usd": "0.000700000000", "is_byok": False}
        | {"price_book": prices.hash, "input_usd_per_mtok": "1", "output_usd_per_mtok": "2"}
        | {"cache_read_usd_per_mtok": "0.2", "billing": "billed", "billing_rule": "answered"}
        | {"stop_reason": "end_turn", "response_model": REASONING},
        request
        | route
        | start
        | {"event_type": "request_completed", "attempt_number": 2, "stop_reason": "end_turn"},
    ]
    failed, succeeded, completed = found[2], found[4], found[5]
    assert found[0]["prompt_hash"] == ledger.prompt_hash(prompt)
    assert 0 < succeeded["latency_ms"] < completed["latency_ms"]
    assert failed["latency_ms"] + succeeded["latency_ms"] <= completed["latency_ms"], "each of its own call"
    assert json.loads(succeeded["usage_json"])["prompt_tokens"] == 1300
    assert succeeded["upstream_provider"]
    assert succeeded["response_id"]


PRICE = {
    "provider": "openrouter",
    "model": REASONING,
    "from": date(2024, 1, 1),
    "input": Decimal(1),
    "cache_read": Decimal("0.2"),
    "output": Decimal(2),
}
VARYING = {
    *("journal_id", "seq", "check", "request_id", "attempt_id", "prompt_hash", "latency_ms", "usage_json"),
    *("response_id", "provider_request_id", "upstream_provider", "error_message", "upstream_cost_usd"),
}


def _journal(ledger: Ledger) -> list[dict[str, Any]]:
    (path,) = (path for path in ledger.path.glob("journals/*.jsonl") if path.stem != "empty")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_equal_prompts_have_equal_hashes_however_they_are_asked(sim: Simulator) -> None:
    with (
        Ledger.in_memory() as ledger,
        OpenRouterClient("k", base_url=sim.openrouter_url) as client,
    ):
        router = LLMRouter(openrouter_client=client, cost_tracker=CostTracker(ledger))
        for task, said in (
            ("analyze_page", {}),
            ("propose_fix", {"max_tokens": 7, "temperature": 0.5, "budget_usd": 1}),
            ("analyze_page", {"system": "Be brief."}),
        ):
            router.route(task, ASK, **said)
        same, again, other = events(ledger, "request_received")
    assert same["prompt_hash"] == again["prompt_hash"] != other["prompt_hash"]
    assert same["prompt_bytes"] == again["prompt_bytes"]


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("sesion_id", "session_id"),
        ("budget", "budget_usd"),
        ("max_token", "max_tokens"),
        ("timeout", "timeout_s"),
        ("deadline", "deadline_s"),
    ],
)
def test_a_mistyped_argument_is_refused_rather_than_sent(
    mistyped: str, meant: str, make_router: Callable[..., LLMRouter], sim: Simulator
) -> None:
    router = make_router()
    for route in (router.route, router.route_with_fallback):
        with pytest.raises(InvalidRequest, match=f"there is no argument '{mistyped}'.*{meant}"):
            route("analyze_page", ASK, **{mistyped: 1})
        with pytest.raises(InvalidRequest, match="max_retries is a setting of the router, of a tier or of a"):
            route("analyze_page", ASK, max_retries=0)
    with pytest.raises(InvalidRequest, match=r"fallback_tier is for route_with_fallback\(\)"):
        router.route("analyze_page", ASK, fallback_tier="FAST")
    assert sim.log == []
