"""For each thing that can happen to a request, the exact list of events it leaves.

Each scenario goes through the real router and clients to the simulator over a socket; what it left
is read by plain DuckDB, with nothing of this project loaded: once from the journals, and once more
from Parquet when they are sealed.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pytest
from tenacity.wait import wait_none

from ledger import CostTracker, Ledger
from router import AnthropicClient, BudgetExceeded, LLMRouter, ModelTier, OpenRouterClient, RouteExhausted
from router.errors import ProviderError
from router.simulator import (
    Reply,
    Simulator,
    authentication_failed,
    content_filtered,
    invalid_request,
    overloaded,
    rate_limited,
    reset,
    server_error,
    silent,
)

REASONING = "deepseek/deepseek-chat"
FAST = "qwen/qwen-2.5-32b-instruct"
OPUS = "claude-opus-4-5-20251101"
ASK = [{"role": "user", "content": "Analyze this page."}]
TOOL = {"name": "take_screenshot", "description": "d", "input_schema": {"type": "object", "properties": {}}}


class Scenario(NamedTuple):
    """What the providers are told to answer, what is asked, and what then stands in the ledger.

    `events` gives each event as its type and the facts in which scenarios differ.
    """

    replies: dict[str, list[Reply]]
    call: dict[str, Any]
    raises: type[BaseException] | None
    events: list[str]
    fallback: ModelTier | None = None
    settings: str = ""  # of bughive.toml


RETRY_AFTER_DATE = format_datetime(datetime.now(UTC) - timedelta(seconds=5), usegmt=True)  # asks for no wait

SCENARIOS = {
    "success": Scenario(
        {REASONING: [Reply()]},
        {},
        None,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_succeeded 1 REASONING billed/answered",
            "request_completed REASONING",
        ],
    ),
    "retry": Scenario(
        {REASONING: [overloaded(), server_error(502), Reply()]},
        {},
        None,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_failed 1 REASONING overloaded 529 unbilled/error_status wait 0.0",
            "attempt_started 2 REASONING",
            "attempt_failed 2 REASONING server_error 502 unbilled/error_status wait 0.0",
            "attempt_started 3 REASONING",
            "attempt_succeeded 3 REASONING billed/answered",
            "request_completed REASONING",
        ],
    ),
    "Retry-After in seconds, in milliseconds, as a date": Scenario(
        {
            REASONING: [
                rate_limited("0.05"),
                Reply(status=429, headers={"retry-after-ms": "20", "retry-after": "9"}),
                Reply(),
            ]
        },
        {},
        None,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_failed 1 REASONING rate_limited 429 unbilled/error_status after 0.05 wait 0.05",
            "attempt_started 2 REASONING",
            "attempt_failed 2 REASONING rate_limited 429 unbilled/error_status after 0.02 wait 0.02",
            "attempt_started 3 REASONING",
            "attempt_succeeded 3 REASONING billed/answered",
            "request_completed REASONING",
        ],
    ),
    "Retry-After as a date that is past": Scenario(
        {REASONING: [rate_limited(RETRY_AFTER_DATE), Reply()]},
        {},
        None,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_failed 1 REASONING rate_limited 429 unbilled/error_status after 0.0 wait 0.0",
            "attempt_started 2 REASONING",
            "attempt_succeeded 2 REASONING billed/answered",
            "request_completed REASONING",
        ],
    ),
    "Retry-After beyond the deadline, with a fallback": Scenario(
        {REASONING: [rate_limited(3600)], FAST: [Reply()]},
        {},
        None,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_failed 1 REASONING rate_limited 429 unbilled/error_status after 3600.0",
            "fallback_engaged REASONING→FAST rate_limited",
            "attempt_started 2 FAST",
            "attempt_succeeded 2 FAST billed/answered",
            "request_completed FAST",
        ],
        fallback=ModelTier.FAST,
    ),
    "timeout": Scenario(
        {REASONING: [silent()]},
        {"timeout_s": 0.4},
        RouteExhausted,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_failed 1 REASONING timeout unknown/no_answer in doubt",
            "request_failed REASONING timeout exhausted",
        ],
    ),
    "timeout with a fallback": Scenario(
        {REASONING: [silent()], FAST: [Reply()]},
        {},
        None,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_failed 1 REASONING timeout unknown/no_answer in doubt",
            "fallback_engaged REASONING→FAST timeout",
            "attempt_started 2 FAST",
            "attempt_succeeded 2 FAST billed/answered",
            "request_completed FAST",
        ],
        fallback=ModelTier.FAST,
        settings="[tiers.REASONING]\ntimeout_s = 0.4\n",
    ),
    "fallback when retries are spent": Scenario(
        {REASONING: [server_error(503)] * 3, FAST: [Reply()]},
        {},
        None,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_failed 1 REASONING overloaded 503 unbilled/error_status wait 0.0",
            "attempt_started 2 REASONING",
            "attempt_failed 2 REASONING overloaded 503 unbilled/error_status wait 0.0",
            "attempt_started 3 REASONING",
            "attempt_failed 3 REASONING overloaded 503 unbilled/error_status",
            "fallback_engaged REASONING→FAST overloaded",
            "attempt_started 4 FAST",
            "attempt_succeeded 4 FAST billed/answered",
            "request_completed FAST",
        ],
        fallback=ModelTier.FAST,
    ),
    "exhausted": Scenario(
        {REASONING: [reset(), server_error(500), server_error(500)]},
        {},
        RouteExhausted,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_failed 1 REASONING connection_failed unknown/no_answer in doubt wait 0.0",
            "attempt_started 2 REASONING",
            "attempt_failed 2 REASONING server_error 500 unbilled/error_status wait 0.0",
            "attempt_started 3 REASONING",
            "attempt_failed 3 REASONING server_error 500 unbilled/error_status",
            "request_failed REASONING server_error exhausted",
        ],
    ),
    "refused by policy, although there is a fallback": Scenario(
        {REASONING: [content_filtered()]},
        {},
        RouteExhausted,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_failed 1 REASONING content_filtered 403 unbilled/error_status",
            "request_failed REASONING content_filtered given_up",
        ],
        fallback=ModelTier.FAST,
    ),
    "the caller's fault": Scenario(
        {REASONING: [invalid_request()]},
        {},
        RouteExhausted,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_failed 1 REASONING invalid_request 400 unbilled/error_status",
            "request_failed REASONING invalid_request given_up",
        ],
        fallback=ModelTier.FAST,
    ),
    "the route's fault": Scenario(
        {REASONING: [authentication_failed()], FAST: [Reply()]},
        {},
        None,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_failed 1 REASONING authentication_failed 401 unbilled/error_status",
            "fallback_engaged REASONING→FAST authentication_failed",
            "attempt_started 2 FAST",
            "attempt_succeeded 2 FAST billed/answered",
            "request_completed FAST",
        ],
        fallback=ModelTier.FAST,
    ),
    "refused in an answer": Scenario(
        {OPUS: [Reply(stop_reason="refusal", text="")]},
        {"task": "quality_gate"},
        None,
        [
            "request_received",
            "attempt_started 1 ORCHESTRATOR",
            "attempt_succeeded 1 ORCHESTRATOR refusal billed/answered",
            "request_completed ORCHESTRATOR refusal",
        ],
    ),
    "denied by budget_usd": Scenario(
        {},
        {"budget_usd": "0.000001"},
        BudgetExceeded,
        ["request_received", "request_denied REASONING budget_exceeded request"],
    ),
    "denied by budget_usd at the retry, the first attempt being in doubt": Scenario(
        {REASONING: [reset()]},
        {"budget_usd": "0.006", "max_tokens": 4096},
        BudgetExceeded,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_failed 1 REASONING connection_failed unknown/no_answer in doubt wait 0.0",
            "request_denied REASONING budget_exceeded request",
        ],
    ),
    "tool call": Scenario(
        {OPUS: [Reply(tool_call=("take_screenshot", {"selector": "#login"}))]},
        {"task": "plan_crawl_strategy", "tools": [TOOL]},
        None,
        [
            "request_received 1 tools",
            "attempt_started 1 ORCHESTRATOR",
            "attempt_succeeded 1 ORCHESTRATOR tool_use billed/answered",
            "request_completed ORCHESTRATOR tool_use",
        ],
    ),
}


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator(seed=7) as running:
        yield running


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger", auto_seal=False) as opened:
        yield opened


@pytest.fixture
def router(simulator: Simulator, ledger: Ledger) -> Iterator[LLMRouter]:
    with (
        AnthropicClient(api_key="not-a-key", base_url=simulator.anthropic_url) as anthropic,
        OpenRouterClient(api_key="not-a-key", base_url=simulator.openrouter_url) as openrouter,
    ):
        yield LLMRouter(anthropic, openrouter, CostTracker(ledger), backoff=wait_none())


def told(event: dict[str, Any]) -> str:
    """An event as the table spells it."""
    kind = event["event_type"]
    stop_reason = None if event["stop_reason"] == "end_turn" else event["stop_reason"]
    words = {
        "request_received": [f"{event['tool_count']} tools" if event["tool_count"] else None],
        "attempt_started": [event["attempt_number"], event["tier"]],
        "attempt_succeeded": [
            event["attempt_number"],
            event["tier"],
            stop_reason,
        ],
        "attempt_failed": [event["attempt_number"], event["tier"], event["error_type"], event["http_status"]],
        "attempt_cancelled": [event["attempt_number"], event["tier"], event["reason"]],
        "fallback_engaged": [f"{event['from_tier']}→{event['to_tier']}", event["reason"]],
        "request_completed": [event["tier"], stop_reason],
        "request_failed": [event["tier"], event["error_type"], event["reason"]],
        "request_denied": [event["tier"], event["reason"], event["scope"]],
    }[kind]
    if event["billing"]:
        words.append(f"{event['billing']}/{event['billing_rule']}")
        words.append("in doubt" if event["billing"] == "unknown" and event["reserved_usd"] else None)
    words.append(None if event["retry_after_s"] is None else f"after {event['retry_after_s']}")
    words.append(None if event["wait_s"] is None else f"wait {event['wait_s']}")
    return " ".join(str(word) for word in [kind, *words] if word is not None)


def events_by_plain_duckdb(ledger: Ledger) -> list[dict[str, Any]]:
    """What `ledger.sql` shows at a prompt, in the order it was written."""
    connection = duckdb.connect()
    for statement in connection.extract_statements((ledger.path / "ledger.sql").read_text()):
        connection.execute(statement)
    found = connection.execute("select * from events where request_id is not null order by journal_id, seq")
    names = [column[0] for column in found.description or ()]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def check(ledger: Ledger, expected: list[str]) -> list[dict[str, Any]]:
    """The journals say it; and once they are sealed, the segments say the very same."""
    from_journals = events_by_plain_duckdb(ledger)
    assert [told(event) for event in from_journals] == expected
    ledger.seal()
    for journal in ledger.path.glob("journals/*.jsonl"):
        if journal.name != "empty.jsonl":
            journal.write_bytes(b"")
    assert events_by_plain_duckdb(ledger) == from_journals
    return from_journals


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_leaves_exactly_its_events(
    name: str,
    simulator: Simulator,
    router: LLMRouter,
    ledger: Ledger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = SCENARIOS[name]
    monkeypatch.chdir(tmp_path)
    Path("bughive.toml").write_text(scenario.settings)
    for model, replies in scenario.replies.items():
        simulator.script(model, *replies)
    call = {"task": "analyze_page", "session_id": "s-1", "deadline_s": 60, **scenario.call}
    with pytest.raises(scenario.raises) if scenario.raises else contextlib.nullcontext():
        if scenario.fallback:
            router.route_with_fallback(messages=ASK, fallback_tier=scenario.fallback, **call)
        else:
            router.route(messages=ASK, **call)

    events = check(ledger, scenario.events)

    assert len({event["request_id"] for event in events}) == 1
    assert {event["session_id"] for event in events} == {"s-1"}
    attempts = [event for event in events if event["event_type"] == "attempt_started"]
    assert len({event["attempt_id"] for event in attempts}) == len(attempts) == len(simulator.log)
    starts = {event["attempt_id"]: event["occurred_at"] for event in attempts}
    for event in events:
        if event["attempt_id"] and event["event_type"] != "attempt_started":
            assert event["started_at"] == starts[event["attempt_id"]], "money belongs to the attempt's start"


def test_the_callers_ctrl_c_is_recorded_and_goes_on_its_way(
    simulator: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    simulator.script(REASONING, silent())

    def interrupt_when_asked() -> None:
        simulator.wait_served(1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt_when_asked)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        router.route("analyze_page", ASK, session_id="s-1")
    interrupter.join()
    check(
        ledger,
        [
            "request_received",
            "attempt_started 1 REASONING",
            "attempt_cancelled 1 REASONING interrupted by the caller unknown/no_answer in doubt",
            "request_failed REASONING cancelled cancelled",
        ],
    )


def test_nothing_is_sent_that_the_ledger_could_not_record(
    simulator: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    ledger.close()
    with pytest.raises(Exception, match="is closed"):
        router.route("analyze_page", ASK)
    assert simulator.log == []


def test_what_is_raised_says_which_request_and_what_was_tried(
    simulator: Simulator, router: LLMRouter
) -> None:
    simulator.script(REASONING, server_error(), rate_limited(3600))
    with pytest.raises(RouteExhausted) as exhausted:
        router.route("analyze_page", ASK, deadline_s=60)
    assert [attempt.error.error_type for attempt in exhausted.value.attempts] == [
        "server_error",
        "rate_limited",
    ]
    assert isinstance(exhausted.value.__cause__, ProviderError)
    assert exhausted.value.__cause__.retry_after_s == 3600
    assert exhausted.value.request_id == exhausted.value.__cause__.request_id
