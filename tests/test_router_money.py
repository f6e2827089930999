"""What an answer cost, who pays for what failed, and what is said where that cannot be known."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from one_shot_server import Act, OneShotServer, read_request

from ledger import CostTracker, Ledger
from ledger.billing import BILLING_RULES
from ledger.prices import PriceBook, Usage, list_cost_usd
from ledger.reader import connect
from ledger.settings import OwnPrice
from reports.spend import spend_report
from router import AnthropicClient, OpenRouterClient, books
from router.catalog import Route
from router.errors import ProviderError
from router.providers import anthropic, openrouter
from router.providers.wire import Answer, Reply
from router.types import ClientResponse

D = Decimal
NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
BOOK = PriceBook.load()
DEEPSEEK = "deepseek/deepseek-chat"  # 0.27 USD in, 1.10 out per million tokens; no cache, no search
OPUS = "claude-opus-4-5-20251101"  # 15 in, 75 out, 1.50 from a cache, 18.75 and 30 into one, 0.01 a search
MESSAGES = [{"role": "user", "content": "How severe is this bug?"}]


def chat(usage: str | None, **body: Any) -> bytes:
    """A completion whose usage is spelt so; None: it has none."""
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": "High."}}
    text = json.dumps({"id": "gen-1", "model": DEEPSEEK, "choices": [choice], **body})
    return (text if usage is None else f'{text[:-1]}, "usage": {usage}}}').encode()


def message(usage: str | None, **body: Any) -> bytes:
    """The same in Anthropic's shape."""
    content = [{"type": "text", "text": "High."}]
    text = json.dumps({"type": "message", "id": "msg_1", "model": OPUS, "content": content, **body})
    return (text if usage is None else f'{text[:-1]}, "usage": {usage}}}').encode()


GOOD_CHAT = chat('{"prompt_tokens": 1000, "completion_tokens": 100}')
ERROR = {"error": {"code": 502, "message": "Provider returned error"}}


def says(status: int, body: bytes, headers: str = "") -> Act:
    """Answers so."""
    head = f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\n{headers}\r\n"

    def act(connection: socket.socket, leaving: threading.Event) -> None:
        read_request(connection)
        connection.sendall(head.encode() + body)

    return act


def resets(connection: socket.socket, leaving: threading.Event) -> None:
    read_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def stays_silent(connection: socket.socket, leaving: threading.Event) -> None:
    read_request(connection)
    leaving.wait()


def breaks_off(connection: socket.socket, leaving: threading.Event) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + GOOD_CHAT[:50])


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger", "process-crash", auto_seal=False) as opened:
        yield opened


def ask(ledger: Ledger, url: str, **made: Any) -> ClientResponse:
    made = {"api_key": "not-a-key", "base_url": url, "max_retries": 0, "timeout": 10, **made}
    with OpenRouterClient(tracker=CostTracker(ledger), **made) as client:
        return client.create_completion(DEEPSEEK, MESSAGES, max_tokens=100, session_id="s-1")


def ask_claude(ledger: Ledger, url: str) -> ClientResponse:
    with AnthropicClient("not-a-key", base_url=url, max_retries=0, tracker=CostTracker(ledger)) as client:
        return client.create_message(OPUS, MESSAGES, max_tokens=100, session_id="s-1")


def rows(path: Path, sql: str) -> list[dict[str, Any]]:
    with connect(path, views=("events", "attempts")) as connection:
        asked = connection.execute(sql)
        names = [column[0] for column in asked.description or ()]
        return [dict(zip(names, row, strict=True)) for row in asked.fetchall()]


def attempt(path: Path) -> dict[str, Any]:
    """The one attempt there is, as the view `attempts` shows it."""
    [row] = rows(path, "select * from attempts")
    return row


# Billing verdicts: which failure is paid for ----------------------------------------------------

ANSWER_FROM_A_FILTER = chat('{"prompt_tokens": 1000, "completion_tokens": 100}').replace(
    b"stop", b"content_filter"
)
PARTIAL = chat('{"prompt_tokens": 89, "completion_tokens": 972}', **ERROR)

VERDICTS: Mapping[str, tuple[Act, str, str]] = {
    "an answer": (says(200, GOOD_CHAT), "billed", "answered"),
    "a content filter inside 200": (says(200, ANSWER_FROM_A_FILTER), "billed", "answered"),
    "an error beside a usage": (says(200, PARTIAL), "billed", "answered_with_error"),
    "an error beside half an answer": (says(200, chat(None, **ERROR)), "unknown", "no_answer"),
    "an error alone inside 200": (says(200, json.dumps(ERROR).encode()), "unbilled", "error_in_answer"),
    **{
        f"HTTP {status}": (says(status, json.dumps(ERROR).encode()), "unbilled", "error_status")
        for status in (307, 400, 401, 402, 403, 404, 409, 413, 422, 429, 500, 502, 503, 522, 529)
    },
    "HTML of a gateway": (says(502, b"<html>502 Bad Gateway</html>"), "unbilled", "error_status"),
    "a reset": (resets, "unknown", "no_answer"),
    "silence": (stays_silent, "unknown", "no_answer"),
    "half an answer": (breaks_off, "unknown", "no_answer"),
    "an answer that is not JSON": (says(200, b"<html>ok</html>"), "unknown", "unreadable_answer"),
    "an answer without a message": (says(200, b'{"choices": []}'), "unknown", "unreadable_answer"),
    "half a packed answer": (
        says(200, gzip.compress(GOOD_CHAT)[:40], "content-encoding: gzip\r\n"),
        "unknown",
        "unreadable_answer",
    ),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_each_outcome_has_its_verdict_and_what_is_in_doubt_its_ceiling(case: str, ledger: Ledger) -> None:
    act, billing, rule = VERDICTS[case]
    with OneShotServer(act) as server:
        with contextlib.suppress(ProviderError):
            ask(ledger, server.url, timeout=0.5 if case == "silence" else 10)

    booked = attempt(ledger.path)
    [outcome] = rows(ledger.path, "select * from events where billing is not null")
    assert (booked["billing"], booked["billing_rule"]) == (billing, rule)
    assert BILLING_RULES[rule].billing == billing
    assert (outcome["reserved_usd"] is not None) == (billing == "unknown")
    match billing:
        case "billed":
            assert booked["cost_usd"] > 0
        case "unbilled":
            assert booked["cost_usd"] == 0
        case _:
            assert booked["cost_usd"] is None
            assert booked["reserved_usd"] > 0


def test_what_never_left_is_not_billed(ledger: Ledger) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ProviderError):
        ask(ledger, f"http://127.0.0.1:{port}")

    assert (attempt(ledger.path)["billing"], attempt(ledger.path)["billing_rule"]) == (
        "unbilled",
        "never_sent",
    )


def test_what_the_caller_left_is_in_doubt(ledger: Ledger) -> None:
    def interrupt(request: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(ledger, "http://provider", transport=httpx.MockTransport(interrupt))

    booked = attempt(ledger.path)
    assert (booked["outcome"], booked["billing_rule"]) == ("cancelled", "no_answer")
    assert (booked["billing"], booked["cost_usd"]) == ("unknown", None)
    assert booked["reserved_usd"] > 0


DIES = """
import os, sys, httpx
from ledger import CostTracker, Ledger
from router import OpenRouterClient
ledger = Ledger.open(sys.argv[1], "process-crash", auto_seal=False)
transport = httpx.MockTransport(lambda request: os._exit(7))
tracker = CostTracker(ledger)
client = OpenRouterClient("not-a-key", base_url="http://provider", transport=transport, tracker=tracker)
client.create_completion(sys.argv[2], [{"role": "user", "content": "x"}], max_tokens=100)
"""


def test_what_a_dead_process_had_sent_is_in_doubt(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    died = subprocess.run([sys.executable, "-c", DIES, str(path), DEEPSEEK], env=environment, check=False)
    assert died.returncode == 7
    with Ledger.open(path, "process-crash", auto_seal=False):
        pass

    booked = attempt(path)
    assert (booked["billing"], booked["billing_rule"]) == ("unknown", "abandoned")
    assert booked["reserved_usd"] > 0


@pytest.mark.parametrize(("billed_usd", "billing"), [(D("0.002"), "billed"), (None, "unbilled")])
def test_what_is_found_out_later_ends_the_doubt(
    billed_usd: Decimal | None, billing: str, ledger: Ledger
) -> None:
    with OneShotServer(resets) as server, pytest.raises(ProviderError):
        ask(ledger, server.url)
    ledger.settle(attempt(ledger.path)["attempt_id"], billed_usd)

    booked = attempt(ledger.path)
    assert (booked["billing"], booked["billing_rule"]) == (billing, "settled")
    assert booked["cost_usd"] == (billed_usd or 0)


def test_no_rule_is_without_its_test() -> None:
    by_their_own = {"never_sent", "abandoned", "settled"}
    assert {rule for _, _, rule in VERDICTS.values()} | by_their_own == set(BILLING_RULES)


def test_a_sessions_cost_says_how_much_it_may_lack(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    for act in (says(200, GOOD_CHAT), says(200, chat(None)), resets):
        with OneShotServer(act) as server:
            with contextlib.suppress(ProviderError):
                ask(ledger, server.url)
    ceilings = [row["reserved_usd"] for row in rows(ledger.path, "select reserved_usd from attempts")]
    assert len(set(ceilings)) == 1

    with caplog.at_level(logging.WARNING, logger="ledger"):
        assert CostTracker(ledger).get_session_cost("s-1") == D("0.00038")
    most = f"its cost lacks at most ${ceilings[0]}"
    assert f"session s-1: 1 attempts have no price; {most}" in caplog.text
    assert f"session s-1: 1 attempts are in doubt; {most}" in caplog.text


# Numbers that cannot be meant: the answer comes, its cost is the provider's word or not known ---------

STRANGE_CHAT = {
    "absent usage": (None, "prompt_tokens is not reported"),
    "no object": ("[]", "prompt_tokens is not reported"),
    "absent output": ('{"prompt_tokens": 10}', "completion_tokens is not reported"),
    "negative": ('{"prompt_tokens": -10, "completion_tokens": 1}', "prompt_tokens is -10"),
    "NaN": ('{"prompt_tokens": NaN, "completion_tokens": 1}', "prompt_tokens is NaN"),
    "infinite": ('{"prompt_tokens": 10, "completion_tokens": Infinity}', "completion_tokens is Infinity"),
    "fractional": ('{"prompt_tokens": 10.5, "completion_tokens": 1}', "prompt_tokens is 10.5"),
    "huge": ('{"prompt_tokens": 1e30, "completion_tokens": 1}', "prompt_tokens is 1E+30"),
    "of 5,000 digits": (f'{{"prompt_tokens": {"9" * 5_000}, "completion_tokens": 1}}', "prompt_tokens is"),
    "a word": ('{"prompt_tokens": "ten", "completion_tokens": 1}', 'prompt_tokens is "ten", not a number'),
    "negative cached": (
        '{"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": -3}}',
        "cached_tokens is -3",
    ),
    "more cached than there are": (
        '{"prompt_tokens": 750, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 900}}',
        "cached_tokens (900) + cache_write_tokens (0) exceed prompt_tokens (750)",
    ),
    "more reasoning than output": (
        '{"prompt_tokens": 7, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 9}}',
        "reasoning_tokens (9) exceed completion_tokens (3)",
    ),
    "reasoning beside output": (
        '{"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 19,'
        ' "completion_tokens_details": {"reasoning_tokens": 9}}',
        "reasoning_tokens (9) are counted beside completion_tokens (3)",
    ),
    "another total": (
        '{"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 11}',
        "total_tokens (11)",
    ),
    "negative cost": ('{"prompt_tokens": 7, "completion_tokens": 3, "cost": -0.1}', "cost is -0.1"),
    "cost NaN": ('{"prompt_tokens": 7, "completion_tokens": 3, "cost": NaN}', "cost is NaN"),
    "cost of a million": ('{"prompt_tokens": 7, "completion_tokens": 3, "cost": 1e6}', "cost is 1E+6"),
    "half a cost with one's own key": (
        '{"prompt_tokens": 7, "completion_tokens": 3, "cost": 0, "is_byok": true}',
        "is_byok, and a part of the cost is not reported",
    ),
    "perhaps one's own key": (
        '{"prompt_tokens": 7, "completion_tokens": 3, "cost": 0, "is_byok": "yes"}',
        'is_byok is "yes", neither true nor false',
    ),
    "a cost of two huge parts": (
        '{"prompt_tokens": 7, "completion_tokens": 3, "cost": 600000, "is_byok": true,'
        ' "cost_details": {"upstream_inference_cost": 600000}}',
        "add up to no amount that can be meant",
    ),
}
STRANGE_MESSAGES = {
    "absent usage": (None, "input_tokens is not reported"),
    "negative": ('{"input_tokens": -1, "output_tokens": 1}', "input_tokens is -1"),
    "NaN in a cache": (
        '{"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": NaN}',
        "cache_read_input_tokens is NaN",
    ),
    "more by age than in all": (
        '{"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 5,'
        ' "cache_creation": {"ephemeral_5m_input_tokens": 9, "ephemeral_1h_input_tokens": 0}}',
        "5m + 1h (9) exceed cache_creation_input_tokens (5)",
    ),
    "more thinking than output": (
        '{"input_tokens": 1, "output_tokens": 1, "output_tokens_details": {"thinking_tokens": 2}}',
        "thinking_tokens (2) exceed output_tokens (1)",
    ),
    "passes that do not add up": (
        '{"input_tokens": 100, "output_tokens": 1, "iterations": [{"input_tokens": 5, "output_tokens": 1}]}',
        "iterations add up to less than the whole",
    ),
    "passes that are none": (
        '{"input_tokens": 1, "output_tokens": 1, "iterations": [7]}',
        "iterations are not a list of passes",
    ),
}


def assert_unpriced(ledger: Ledger, answer: ClientResponse, why: str) -> None:
    """The answer is there, its cost is not known, and its ceiling stands beside it."""
    [outcome] = rows(ledger.path, "select * from events where event_type = 'attempt_succeeded'")
    assert answer["content"] == "High."
    assert answer["cost"] is None
    assert why in outcome["usage_suspect"]
    assert (outcome["list_cost_usd"], outcome["billed_cost_usd"]) == (None, None)
    assert outcome["billing"] == "billed"
    assert outcome["reserved_usd"] > 0


@pytest.mark.parametrize("case", STRANGE_CHAT)
def test_an_answer_with_strange_numbers_is_delivered_and_unpriced(case: str, ledger: Ledger) -> None:
    usage, why = STRANGE_CHAT[case]
    with OneShotServer(says(200, chat(usage))) as server:
        answer = ask(ledger, server.url)

    assert_unpriced(ledger, answer, why)


@pytest.mark.parametrize("case", STRANGE_MESSAGES)
def test_so_is_one_in_anthropics_shape(case: str, ledger: Ledger) -> None:
    usage, why = STRANGE_MESSAGES[case]
    with OneShotServer(says(200, message(usage))) as server:
        answer = ask_claude(ledger, server.url)

    assert_unpriced(ledger, answer, why)


def test_a_report_shows_what_is_unpriced_with_the_most_it_can_be(ledger: Ledger) -> None:
    with OneShotServer(says(200, chat(None))) as server:
        ask(ledger, server.url)
    report = spend_report(ledger.path, session_id="s-1").data()

    assert report["cost_usd"] is None
    assert report["unpriced"] == {"attempts": 1, "ceiling_usd": attempt(ledger.path)["reserved_usd"]}


def test_beside_strange_tokens_the_providers_own_figure_is_the_cost(ledger: Ledger) -> None:
    usage = (
        '{"prompt_tokens": 750, "completion_tokens": 1, "cost": 0.0041,'
        ' "prompt_tokens_details": {"cached_tokens": 900}}'
    )
    with OneShotServer(says(200, chat(usage))) as server:
        assert ask(ledger, server.url)["cost"] == D("0.0041")

    booked = attempt(ledger.path)
    assert (booked["cost_usd"], booked["list_cost_usd"]) == (D("0.0041"), None)
    assert (booked["is_unpriced"], booked["is_unlisted"]) == (False, True)
    assert booked["usage_suspect"]


# What has a price and what has none -------------------------------------------------------------------


def read_chat(usage: Any, **body: Any) -> Answer:
    return openrouter.read_reply(Reply(200, {}, chat(json.dumps(usage), **body)))


def read_message(usage: Any) -> Answer:
    return anthropic.read_reply(Reply(200, {}, message(json.dumps(usage))))


def list_cost(answer: Answer, book: PriceBook = BOOK, model: str = OPUS) -> Decimal | None:
    provider = "anthropic" if model.startswith("claude") else "openrouter"
    route = Route("ANY", model, provider)
    return books.cost_of(answer, route, book.at(provider, model, NOW), book, NOW).list_usd


THOUSANDS = {"input_tokens": 1_000, "output_tokens": 1_000}


@pytest.mark.parametrize(
    ("reported", "usd"),
    [
        ({}, "0.09"),
        ({"service_tier": "standard"}, "0.09"),
        ({"service_tier": "batch"}, "0.045"),
        ({"service_tier": "priority"}, None),
        ({"service_tier": "standard", "speed": "fast"}, None),
        ({"speed": "standard", "inference_geo": "global"}, "0.09"),
        ({"inference_geo": "us"}, None),
        ({"server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 3}}, "0.11"),
        ({"server_tool_use": {"code_execution_requests": 1}}, None),
        ({"cache_read_input_tokens": 1_000}, "0.0915"),
        (
            {
                "cache_creation_input_tokens": 3_000,
                "cache_creation": {"ephemeral_5m_input_tokens": 1_000, "ephemeral_1h_input_tokens": 1_000},
            },
            "0.1575",  # 18.75 for the first thousand, 30 for the second, 18.75 for the one that is of neither
        ),
    ],
)
def test_what_an_anthropic_answer_costs_at_list_prices(reported: dict[str, Any], usd: str | None) -> None:
    assert list_cost(read_message({**THOUSANDS, **reported})) == (usd and D(usd))


@pytest.mark.parametrize(
    ("reported", "body", "usd"),
    [
        ({}, {}, "0.00137"),
        ({}, {"service_tier": "default"}, "0.00137"),
        ({}, {"service_tier": "flex"}, None),
        ({"service_tier": "priority"}, {}, None),
        ({"server_tool_use_details": {"web_search_requests": 1}}, {}, None),
        ({"prompt_tokens_details": {"cached_tokens": 1}}, {}, None),
        ({"prompt_tokens_details": {"audio_tokens": 1}}, {}, None),
        ({"completion_tokens_details": {"image_tokens": 1}}, {}, None),
    ],
)
def test_what_an_openrouter_answer_costs_at_list_prices(
    reported: dict[str, Any], body: dict[str, Any], usd: str | None
) -> None:
    answer = read_chat({"prompt_tokens": 1_000, "completion_tokens": 1_000, **reported}, **body)

    assert answer.usage_suspect is None
    assert list_cost(answer, model=DEEPSEEK) == (usd and D(usd))


@pytest.mark.parametrize(("kind", "is_suspect"), [("url_citation", True), ("file", False)])
def test_what_only_an_annotation_shows_was_billed_and_has_no_list_price(kind: str, is_suspect: bool) -> None:
    noted = {"role": "assistant", "content": "High.", "annotations": [{"type": kind}]}
    answer = read_chat(
        {"prompt_tokens": 1_000, "completion_tokens": 1_000},
        choices=[{"message": noted, "finish_reason": "stop"}],
    )

    assert list_cost(answer, model=DEEPSEEK) is None
    assert (answer.usage_suspect is not None) == is_suspect


def test_the_tier_that_set_the_price_is_on_the_books(ledger: Ledger) -> None:
    usage = json.dumps({**THOUSANDS, "service_tier": "batch", "inference_geo": "us"})
    with OneShotServer(says(200, message(usage))) as server:
        ask_claude(ledger, server.url)

    [outcome] = rows(ledger.path, "select * from events where event_type = 'attempt_succeeded'")
    assert (outcome["service_tier"], outcome["list_cost_usd"]) == ("batch+us", None)
    assert outcome["input_usd_per_mtok"] is None


def book_of(*entries: dict[str, Any]) -> PriceBook:
    since = NOW.date()
    return PriceBook.load([OwnPrice("test", {"from": since, **entry}) for entry in entries])


def test_each_pass_is_in_the_context_tier_of_its_own_prompt() -> None:
    dear = {"above_tokens": 1_000, "input": 2, "output": 2}
    book = book_of(
        {"provider": "anthropic", "model": "claude-x", "input": 1, "output": 1, "long_context": [dear]}
    )
    short, long = ({"input_tokens": count, "output_tokens": 0} for count in (900, 1_100))

    def cost(*passes: Mapping[str, int]) -> Decimal | None:
        return list_cost(read_message({**short, "iterations": list(passes)}), book, "claude-x")

    assert cost(short, short) == D("0.0018")  # together they are above the threshold
    assert cost(short, long) == D("0.0031")


def test_a_pass_that_names_the_model_asked_is_one_of_its_own() -> None:
    own = {**THOUSANDS, "model": OPUS}
    answer = read_message({**THOUSANDS, "iterations": [own, {**own, "model": "claude-nobody"}]})

    assert [model for model, _ in answer.passes] == [None, "claude-nobody"]
    assert answer.usage.input_tokens == 2_000
    assert list_cost(answer) is None


def test_searches_are_paid_once_however_many_passes_there_were() -> None:
    searched = {"server_tool_use": {"web_search_requests": 2}}
    answer = read_message({**THOUSANDS, **searched, "iterations": [{**THOUSANDS, **searched}]})

    assert answer.usage.web_search_requests == 2
    assert list_cost(answer) == D("0.11")


# Laws ---------------------------------------------------------------------------------------------------

_tokens = st.integers(0, 10**7)
_prices = st.decimals(0, 1000, places=6)
UNITS = {
    "input": "input_tokens",
    "cache_read": "cache_read_tokens",
    "cache_write_5m": "cache_write_5m_tokens",
    "cache_write_1h": "cache_write_1h_tokens",
    "output": "output_tokens",
}


@st.composite
def _usages(draw: Callable[..., Any]) -> Usage:
    counts = {name: draw(_tokens) for name in UNITS.values()}
    reasoning = draw(st.integers(0, counts["output_tokens"]))
    return Usage(**counts, reasoning_tokens=reasoning, web_search_requests=draw(st.integers(0, 50)))


def as_anthropic(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "cache_creation_input_tokens": usage.cache_write_5m_tokens + usage.cache_write_1h_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "server_tool_use": {"web_search_requests": usage.web_search_requests},
    }


def as_openrouter(usage: Usage) -> dict[str, Any]:
    written = usage.cache_write_5m_tokens
    return {
        "prompt_tokens": usage.input_tokens + usage.cache_read_tokens + written,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.cache_read_tokens + written + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "server_tool_use_details": {"web_search_requests": usage.web_search_requests},
    }


@given(_usages())
def test_the_buckets_are_disjoint_and_add_up_to_what_was_reported(usage: Usage) -> None:
    claude = read_message(as_anthropic(usage))
    assert (claude.usage, claude.usage_suspect) == (usage, None)

    reported = as_openrouter(usage)
    other = read_chat(reported)
    assert (other.usage, other.usage_suspect) == (usage._replace(cache_write_1h_tokens=0), None)
    assert other.usage.prompt_tokens == reported["prompt_tokens"]
    assert other.usage.prompt_tokens + other.usage.output_tokens == reported["total_tokens"]


@given(st.lists(_usages(), min_size=1, max_size=4), _tokens)
def test_passes_add_up_to_the_whole_and_cost_what_the_whole_costs(parts: list[Usage], searches: int) -> None:
    top = as_anthropic(parts[-1]._replace(web_search_requests=searches))
    answer = read_message({**top, "iterations": [as_anthropic(part) for part in parts]})
    whole = Usage(*(sum(counts) for counts in zip(*parts, strict=True)))

    assert answer.usage == whole._replace(web_search_requests=searches)
    entry = BOOK.at("anthropic", OPUS, NOW)
    assert entry is not None
    assert list_cost(answer) == list_cost_usd(entry.base, answer.usage)


@st.composite
def _entries(draw: Callable[..., Any]) -> dict[str, Any]:
    """A price entry: each unit may lack a price; two context tiers and two service tiers at most."""

    def units() -> dict[str, Decimal]:
        return {name: draw(_prices) for name in (*UNITS, "web_search") if draw(st.integers(0, 9))}

    def table() -> dict[str, Any]:
        thresholds = draw(st.lists(_tokens, max_size=2, unique=True))
        return {**units(), "long_context": [{**units(), "above_tokens": above} for above in thresholds]}

    tiers = draw(st.lists(st.sampled_from(["batch", "priority"]), max_size=2, unique=True))
    named = {"provider": "anthropic", "model": "claude-x"}
    return {**named, **table(), "service_tiers": {tier: table() for tier in tiers}}


def by_hand(entry: Mapping[str, Any], usage: Usage, tier: str) -> Decimal | None:
    """The list cost worked out with nothing of the package, in decimals of a hundred digits."""
    table = entry if tier == "standard" else entry["service_tiers"].get(tier)
    if table is None:
        return None if any(usage) else D(0)
    prompt = sum(getattr(usage, name) for unit, name in UNITS.items() if unit != "output")
    below = [row for row in table["long_context"] if row["above_tokens"] < prompt]
    units = max(below, key=lambda row: row["above_tokens"]) if below else table
    cost = D(0)
    with localcontext(Context(prec=100)):
        for unit, name in {**UNITS, "web_search": "web_search_requests"}.items():
            count = getattr(usage, name)
            if count and unit not in units:
                return None
            if count:
                cost += units[unit] * count * (1 if unit == "web_search" else D("0.000001"))
    return cost if cost < 1_000_000 else None


@given(_entries(), _usages(), st.sampled_from(["standard", "batch", "priority"]))
def test_a_list_cost_is_exact_for_any_usage_prices_and_tiers(
    entry: dict[str, Any], usage: Usage, tier: str
) -> None:
    with localcontext() as context:
        context.prec = 5
        cost = list_cost(
            read_message({**as_anthropic(usage), "service_tier": tier}), book_of(entry), "claude-x"
        )

    assert cost == by_hand(entry, usage, tier)


@given(_entries(), _usages(), _usages())
def test_the_cost_of_parts_is_the_cost_of_the_whole(
    entry: dict[str, Any], first: Usage, second: Usage
) -> None:
    model = book_of(entry).at("anthropic", "claude-x", NOW)
    assert model is not None
    for units in model.all_units():
        whole = Usage(*(one + other for one, other in zip(first, second, strict=True)))
        parts = [list_cost_usd(units, usage) for usage in (first, second)]
        known = [part for part in parts if part is not None]
        together = list_cost_usd(units, whole)
        if together is not None:
            assert together == sum(known)
            assert len(known) == 2
        else:  # a bucket without a price, or more than a ledger holds
            assert len(known) < 2 or sum(known) >= 1_000_000


_BAD = st.sampled_from(["-1", "0.5", "NaN", "-Infinity", "1e40", '"7"', "true", "[]", "{}"])


@given(usage=_usages(), at=st.integers(0, 10), bad=_BAD, is_anthropic=st.booleans())
def test_one_broken_number_costs_no_answer_and_no_cost_is_made_up(
    usage: Usage, at: int, bad: str, is_anthropic: bool
) -> None:
    reported = as_anthropic(usage) if is_anthropic else as_openrouter(usage)
    broken = _broken(reported, at, bad)
    if is_anthropic:
        answer = anthropic.read_reply(Reply(200, {}, message(broken)))
    else:
        answer = openrouter.read_reply(Reply(200, {}, chat(broken)))

    assert answer.content == "High."
    assert answer.usage_suspect
    assert not answer.usage_known
    assert answer.cost_usd is None


def _broken(reported: Mapping[str, Any], at: int, bad: str) -> str:
    """The usage as JSON with one of its numbers spelt so."""
    mark = 123_456_789_123
    paths = [
        (name, inner)
        for name, value in reported.items()
        for inner in (value if isinstance(value, dict) else [None])
    ]
    name, inner = paths[at % len(paths)]
    marked = {**reported, name: mark if inner is None else {**reported[name], inner: mark}}
    return json.dumps(marked).replace(str(mark), bad)
