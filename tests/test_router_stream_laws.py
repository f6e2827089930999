"""Streamed or not, an answer is the same answer: to its caller, and on the books."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import CostTracker, Ledger
from ledger.reader import connect
from router import AnthropicClient, LLMRouter, OpenRouterClient
from router.simulator import BUGHIVE_PRICES, Reply, Simulator, Tokens, ToolCall
from router.streams import StreamItem, TextDelta, ThinkingDelta, ToolCallDelta
from router.types import RouteResponse

ASK = [{"role": "user", "content": "Analyze this page."}]
OPUS, CHAT = "claude-opus-4-5-20251101", "deepseek/deepseek-chat"
TASKS = {"plan_crawl_strategy": OPUS, "analyze_page": CHAT}
OWN = {"request_id", "latency_s"}  # what two requests never share
BOOKED = (
    *("provider", "model", "tier", "http_status", "stop_reason", "billing", "billing_rule"),
    *("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens"),
    *("output_tokens", "reasoning_tokens", "web_search_requests", "usage_suspect", "service_tier"),
    *("list_cost_usd", "billed_cost_usd", "upstream_cost_usd", "is_byok", "price_book"),
    *("response_id", "response_model", "upstream_provider"),
)

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
plain = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), words)
inputs = st.dictionaries(words, plain | st.lists(plain, max_size=2), max_size=3)
counts = st.integers(0, 200_000)
usages = st.builds(Tokens, counts, counts, counts, counts, counts)
replies = st.builds(
    Reply,
    text=st.none() | words,
    thinking=st.none() | words,
    tool_calls=st.lists(st.builds(ToolCall, st.sampled_from(["click", "wait", "fill"]), inputs), max_size=3),
    usage=st.none() | usages,
    cost=st.sampled_from(["computed", "absent"]) | st.decimals(0, 9, places=9),
    pieces=st.none() | st.integers(1, 9),
    split=st.none() | st.integers(1, 99),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("laws") / "ledger"


@pytest.fixture(scope="module")
def ledger(folder: Path) -> Iterator[Ledger]:
    with Ledger.open(folder, "process-crash", auto_seal=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def two_alike(ledger: Ledger) -> Iterator[tuple[tuple[Simulator, LLMRouter], ...]]:
    """Two providers that say the same, each to a router of its own; one ledger."""
    with (
        Simulator(seed=7, prices=BUGHIVE_PRICES) as one,
        Simulator(seed=7, prices=BUGHIVE_PRICES) as other,
    ):
        routers = [
            LLMRouter(
                AnthropicClient("any", base_url=sim.anthropic_url),
                OpenRouterClient("any", base_url=sim.openrouter_url),
                CostTracker(ledger),
            )
            for sim in (one, other)
        ]
        yield tuple(zip((one, other), routers, strict=True))


def test_an_answer_is_the_same_streamed_and_unstreamed(
    two_alike: tuple[tuple[Simulator, LLMRouter], ...], folder: Path
) -> None:
    (_, router), (_, streaming) = two_alike
    answered: list[tuple[str, str]] = []

    @settings(max_examples=80, deadline=None, derandomize=True, database=None)
    @given(st.sampled_from(list(TASKS)), replies)
    def ask_both(task: str, reply: Reply) -> None:
        for sim, _ in two_alike:
            sim.script(TASKS[task], reply)
        whole = router.route(task, ASK)
        items: list[StreamItem] = []
        with streaming.stream(task, ASK) as stream:
            items.extend(stream)

        assert without(OWN, stream.response) == without(OWN, whole)
        assert_joined(items, stream.response, reply)
        answered.append((whole["request_id"], stream.response["request_id"]))

    ask_both()
    on_the_books = booked(folder)
    assert len(answered) >= 80
    assert [on_the_books[streamed] for _, streamed in answered] == [on_the_books[one] for one, _ in answered]
    assert any(row["billed_cost_usd"] for row in on_the_books.values())
    assert any(row["list_cost_usd"] for row in on_the_books.values())


def without(names: set[str], response: RouteResponse) -> dict[str, Any]:
    return {name: value for name, value in response.items() if name not in names}


def booked(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """What the books say of the attempts that answered, by request."""
    with connect(folder, views=("events",)) as connection:
        rows = connection.execute(
            f"select request_id, {', '.join(BOOKED)} from events where event_type = 'attempt_succeeded'"
        ).fetchall()
    return {request_id: dict(zip(BOOKED, row, strict=True)) for request_id, *row in rows}


def assert_joined(items: list[StreamItem], response: RouteResponse, reply: Reply) -> None:
    """The items say what the response says, and what was thought."""
    assert "".join(item.text for item in items if isinstance(item, TextDelta)) == response["content"]
    thought = "".join(item.text for item in items if isinstance(item, ThinkingDelta))
    assert thought == (reply.thinking or "")
    firsts = {
        item.index: (item.id, item.name) for item in items if isinstance(item, ToolCallDelta) and item.id
    }
    assert [firsts[index] for index in sorted(firsts)] == [
        (call["id"], call["name"]) for call in response["tool_calls"]
    ]
