"""router.testing as its user's tests see it: what a script says happens, and is on the books."""

from __future__ import annotations

import contextlib
import gc
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

from ledger.errors import LedgerError
from ledger.events import ErrorType
from router import LLMRouter, ModelTier, OpenRouterClient, ProviderError, RouteExhausted, UnknownTask
from router.simulator import cut_in_stream, stalled
from router.testing import Call, FakeProvider, NotAsScripted, Reply, Tokens, answer, fails

ASK: list[dict[str, Any]] = [{"role": "user", "content": "Which elements can be clicked?"}]
OPUS = "anthropic/claude-opus-4-5-20250514"
REASONING = "deepseek/deepseek-chat"
OF_EACH_PROVIDER = pytest.mark.parametrize(
    "task", ["quality_gate", "analyze_page"], ids=["anthropic", "openrouter"]
)
ERROR_TYPES: list[ErrorType] = [
    word for word in get_args(ErrorType) if word != "cancelled"
]  # that is the caller's doing


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No socket, no settings of whoever runs this, and an environment that leads astray."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("OPENROUTER_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)

    def no_socket(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_socket)


def test_three_lines_script_an_agents_day() -> None:
    script = (
        answer("a form with two fields", input_tokens=1000, output_tokens=200),
        fails(429, retry_after=0),
        answer(tool="click", input={"selector": "#go"}, input_tokens=100, output_tokens=10),
    )
    with FakeProvider(*script) as fake:
        seen = fake.router.route("analyze_page", ASK, session_id="s-1")
        done = fake.router.route("plan_crawl_strategy", ASK, session_id="s-1")

    assert seen["content"] == "a form with two fields"
    assert [(call["name"], call["input"]) for call in done["tool_calls"]] == [("click", {"selector": "#go"})]
    assert fake.event_types == [
        *("request_received", "attempt_started", "attempt_succeeded", "request_completed"),
        *("request_received", "attempt_started", "attempt_failed"),
        *("attempt_started", "attempt_succeeded", "request_completed"),
    ]
    # DeepSeek: 0.27 and 1.10, Opus: 15 and 75 USD per million tokens
    assert fake.cost_usd == Decimal("0.00049") + Decimal("0.00225")


def test_a_call_shows_what_was_sent_for_which_task_and_session() -> None:
    with FakeProvider() as fake:
        fake.router.route("analyze_page", ASK, session_id="s-1", max_tokens=77)

    (call,) = fake.calls
    assert (call.task, call.session_id, call.provider, call.model) == (
        "analyze_page",
        "s-1",
        "openrouter",
        REASONING,
    )
    assert call.messages == ASK
    assert call.body["max_tokens"] == 77


@OF_EACH_PROVIDER
def test_an_answer_may_hold_text_and_several_tools(task: str) -> None:
    both = answer("I look.", tools=[("click", {"selector": "#go"}), ("scroll", {})], stop_reason=None)
    with FakeProvider(both, answer("Enough.", stop_reason="refusal")) as fake:
        first, second = fake.router.route(task, ASK), fake.router.route(task, ASK)

    assert (first["content"], first["stop_reason"]) == ("I look.", "tool_use")
    assert [call["name"] for call in first["tool_calls"]] == ["click", "scroll"]
    assert len({call["id"] for call in first["tool_calls"]}) == 2
    assert (second["content"], second["stop_reason"]) == ("Enough.", "refusal")


@OF_EACH_PROVIDER
def test_a_failure_becomes_the_error_it_is_named_after(task: str) -> None:
    became: list[str] = []
    with FakeProvider(*map(fails, ERROR_TYPES), max_retries=0) as fake:
        for _ in ERROR_TYPES:
            with pytest.raises(RouteExhausted) as caught:
                fake.router.route(task, ASK)
            became += [attempt.error.error_type for attempt in caught.value.attempts]

    assert became == ERROR_TYPES
    assert fake.event_types[:4] == ["request_received", "attempt_started", "attempt_failed", "request_failed"]


def test_a_failure_has_the_status_wait_and_words_it_is_given() -> None:
    with FakeProvider(fails(418, retry_after=7, message="I am a teapot")) as fake:
        with pytest.raises(ProviderError, match="teapot") as caught:
            fake.openrouter.create_completion(REASONING, ASK)

    assert (caught.value.http_status, caught.value.retry_after_s) == (418, 7)


def test_waits_take_no_time_but_count() -> None:
    began = time.monotonic()
    with FakeProvider(fails(429, retry_after=100), fails(503), answer("late")) as fake:
        response = fake.router.route("analyze_page", ASK)
        fake.script(fails(429, retry_after=100), fails(429, retry_after=100), fails(429, retry_after=100))
        with pytest.raises(RouteExhausted) as caught:
            fake.router.route("analyze_page", ASK, deadline_s=150)

    assert response["latency_s"] > 102
    assert caught.value.reason == "deadline"
    assert len(fake.calls) == 3 + 2
    assert time.monotonic() - began < 10


def test_a_silent_provider_takes_no_time_but_its_timeout_is_spent() -> None:
    with FakeProvider(fails("timeout"), Reply(delay_s=30), Reply(delay_s=3, text="late")) as fake:
        first = fake.router.route_with_fallback("analyze_page", ASK, timeout_s=50)
        second = fake.router.route_with_fallback("analyze_page", ASK, timeout_s=2)

    assert 80 < first["latency_s"] < 90
    assert first["fallback_used"]
    assert 2 < second["latency_s"] < 9
    assert (second["fallback_used"], fake.calls[-1].model) == (True, "qwen/qwen-2.5-32b-instruct")


def test_the_waits_of_one_thread_are_not_another_threads() -> None:
    refused: set[str | None] = set()

    def once_refused(call: Call) -> Reply:
        if call.session_id in refused:
            return answer("at last")
        refused.add(call.session_id)
        return fails(429, retry_after=100)

    def ask(number: int) -> str:
        return fake.router.route("analyze_page", ASK, session_id=f"s-{number}", deadline_s=150)["content"]

    with FakeProvider(*[once_refused] * 16) as fake, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == ["at last"] * 8


def test_tasks_and_models_may_have_scripts_of_their_own() -> None:
    with FakeProvider(answer("in order"), answer("in order too")) as fake:
        fake.script(answer("of the task"), task="classify_bug")
        fake.script(answer("of the model"), model=OPUS)
        fake.script(answer("of the reasoning model"), model=REASONING)

        def said(task: str) -> str:
            return fake.router.route(task, ASK)["content"]

        assert said("generate_title") == "in order"
        assert said("classify_bug") == "of the task"
        assert said("quality_gate") == "of the model"
        assert said("classify_bug") == "of the reasoning model"
        assert said("classify_bug") == "in order too"


def test_a_script_for_a_task_that_is_none_names_the_nearest() -> None:
    with FakeProvider() as fake, pytest.raises(UnknownTask, match="did you mean analyze_page"):
        fake.script(answer("never"), task="analyse_page")


def test_a_reply_may_be_a_function_of_the_call() -> None:
    def echo(call: Call) -> Reply:
        return answer(f"{call.task}: {call.messages[-1]['content']}")

    with FakeProvider(echo) as fake:
        assert fake.router.route("analyze_page", ASK)["content"] == f"analyze_page: {ASK[0]['content']}"


def test_unscripted_calls_get_plausible_answers_the_same_in_every_run() -> None:
    def answers(seed: int) -> list[str]:
        with FakeProvider(seed=seed) as fake:
            return [fake.router.route("analyze_page", ASK)["content"] for _ in range(3)]

    assert answers(7) == answers(7) != answers(8)
    assert all(answers(7))


def test_a_strict_fake_says_what_it_was_asked_without_a_script() -> None:
    with pytest.raises(NotAsScripted, match=r"call 2, quality_gate on claude-opus-4-5.*elements can be"):
        with FakeProvider(answer("one"), strict=True) as fake:
            fake.router.route("analyze_page", ASK)
            fake.router.route("quality_gate", ASK)

    assert fake.event_types[-2:] == ["attempt_cancelled", "request_failed"]


def test_a_strict_fake_is_not_hidden_by_an_agent_that_swallows_errors() -> None:
    with pytest.raises(NotAsScripted, match="analyze_page"), FakeProvider(strict=True) as fake:
        with contextlib.suppress(Exception):
            fake.router.route("analyze_page", ASK)


def test_a_strict_fake_wants_every_reply_used() -> None:
    with pytest.raises(NotAsScripted, match="1 for any call, 2 for classify_bug"):
        with FakeProvider(answer("never"), strict=True) as fake:
            fake.script(answer("never"), answer("never"), task="classify_bug")


def test_a_strict_fake_does_not_hide_why_a_test_failed() -> None:
    with pytest.raises(ZeroDivisionError), FakeProvider(answer("never"), strict=True):
        raise ZeroDivisionError


def test_all_is_readable_after_the_end_and_nothing_can_follow() -> None:
    with FakeProvider() as fake:
        fake.router.route("analyze_page", ASK, session_id="s-1")

    assert fake.event_types[-1] == "request_completed"
    assert fake.events[0].event_type == "request_received"
    assert fake.cost_usd == fake.tracker.get_session_cost("s-1") > 0
    assert fake.ledger.connect().execute("select count(*) from requests").fetchone() == (1,)
    with pytest.raises(LedgerError, match="closed"):
        fake.router.route("analyze_page", ASK)


def test_a_fakes_ledger_goes_with_it() -> None:
    with FakeProvider() as fake:
        fake.router.route("analyze_page", ASK)
    folder = fake.ledger.path
    assert folder.is_dir()

    del fake
    gc.collect()
    assert not folder.exists()


def test_the_cost_is_the_ledgers_own() -> None:
    billed_and_broken = {"id": "g", "choices": [{"error": {"code": 502, "message": "cut"}}]}
    usage = {"prompt_tokens": 89, "completion_tokens": 97, "cost": 0.001}
    with FakeProvider() as fake:
        fake.script(answer(cost_usd=Decimal("0.0123"), input_tokens=5), fails(503), answer())
        fake.script(Reply(body={**billed_and_broken, "usage": usage}), answer(input_tokens=7))
        fake.script(fails("timeout"), answer(input_tokens=50, output_tokens=3))
        fake.script(Reply(usage=Tokens(1, 2, 3, 4, 5, 1)))
        for task in ("analyze_page", "quality_gate", "propose_fix", "classify_bug", "plan_crawl_strategy"):
            fake.router.route_with_fallback(task, ASK, session_id="s-1")

    assert fake.event_types.count("attempt_failed") == 3
    assert fake.cost_usd == fake.tracker.get_session_cost("s-1") > Decimal("0.0133")


def test_what_has_no_price_makes_the_cost_unknown() -> None:
    with FakeProvider(catalog={ModelTier.REASONING: ("somebody/new-model", "openrouter")}) as fake:
        assert fake.router.route("analyze_page", ASK)["cost"] is None

    assert fake.cost_usd is None


def test_prices_and_tiers_of_bughive_toml_hold(tmp_path: Path) -> None:
    (tmp_path / "bughive.toml").write_text(
        '[tiers.REASONING]\nmodel = "deepseek/deepseek-coder"\nprovider = "openrouter"\n'
        '[[prices]]\nmodel = "deepseek/deepseek-coder"\nprovider = "openrouter"\nfrom = 2020-01-01\n'
        "input = 2\noutput = 3\n"
    )
    with FakeProvider(Reply(usage=Tokens(1_000_000, 1_000_000)), answer(input_tokens=1_000_000)) as fake:
        fake.router.route("analyze_page", ASK)
        fake.router.route("analyze_page", ASK)

    assert fake.cost_usd == 2 + 3 + 2
    assert fake.calls[0].model == "deepseek/deepseek-coder"


def test_its_clients_are_on_its_books_and_clients_of_ones_own_are_not() -> None:
    with FakeProvider(answer("yes"), fails(429, retry_after=100), answer("and yes")) as fake:
        assert fake.anthropic.create_message(OPUS, ASK)["content"] == "yes"
        booked = fake.event_types
        own = OpenRouterClient(
            "any", transport=fake.transport, base_url="https://openrouter.ai/api/v1", max_retries=0
        )
        with pytest.raises(ProviderError):
            own.create_completion(REASONING, ASK)
        assert own.create_completion(REASONING, ASK)["content"] == "and yes"

    assert (
        booked
        == fake.event_types
        == ["request_received", "attempt_started", "attempt_succeeded", "request_completed"]
    )
    assert [call.task for call in fake.calls[1:]] == [None, None]


def test_a_router_of_ones_own_can_be_made_of_its_parts() -> None:
    with FakeProvider(answer("yes")) as fake:
        router = LLMRouter(fake.anthropic, fake.openrouter, fake.tracker)
        assert router.route("analyze_page", ASK, session_id="s-2")["content"] == "yes"

    assert (fake.calls[0].task, fake.calls[0].session_id) == ("analyze_page", "s-2")


def test_threads_share_a_fake() -> None:
    def ask(number: int) -> str:
        task = "analyze_page" if number % 2 else "quality_gate"
        return fake.router.route(task, ASK, session_id=f"s-{number}")["content"]

    with FakeProvider(*[lambda call: answer(f"{call.task} {call.session_id}")] * 40) as fake:
        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(ask, range(40)))

    assert said == [f"{'analyze_page' if number % 2 else 'quality_gate'} s-{number}" for number in range(40)]


def test_what_no_provider_would_take_is_refused_and_uses_no_reply() -> None:
    with FakeProvider(answer("kept")) as fake, httpx.Client(transport=fake.transport) as http:
        without_max_tokens = {"model": "claude-opus-4-5-20251101", "messages": ASK}
        assert http.post("https://api.anthropic.com/v1/messages", json=without_max_tokens).status_code == 400
        assert http.post("https://api.anthropic.com/v1/elsewhere", json={}).status_code == 404
        assert fake.router.route("quality_gate", ASK)["content"] == "kept"


@pytest.mark.parametrize("wrong", [200, 99, "cancelled", "nothing"])
def test_what_is_no_failure_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="is no failure"):
        fails(wrong)


def test_an_input_needs_its_tool() -> None:
    with pytest.raises(ValueError, match="tool="):
        answer(input={"selector": "#go"})


# streams


def asked_for_a_stream(fake: FakeProvider, told: list[bytes], *, read_s: float = 30.0) -> None:
    """Asks OpenRouter for a stream; `told` gets what comes, also where it breaks off."""
    body = {"model": REASONING, "messages": ASK, "stream": True}
    url = "https://openrouter.test/api/v1/chat/completions"
    with (
        httpx.Client(transport=fake.transport, timeout=read_s) as client,
        client.stream("POST", url, json=body) as streamed,
    ):
        assert streamed.headers["content-type"] == "text/event-stream"
        told.extend(streamed.iter_raw())


def test_a_streamed_answer_comes_event_by_event() -> None:
    told: list[bytes] = []
    with FakeProvider(answer("a form", cost_usd=Decimal("0.0123"))) as fake:
        asked_for_a_stream(fake, told)

    assert len(told) == 7  # a comment, the role, two deltas, the finish, the usage and the last word
    assert b'"cost": 0.0123}' in told[-2]
    assert told[-1] == b"data: [DONE]\n\n"
    assert fake.calls[0].body["stream"] is True


@pytest.mark.parametrize(
    ("reply", "error", "deltas"),
    [
        (fails("stream_interrupted"), httpx.RemoteProtocolError, 4),
        (replace(cut_in_stream(2, how="reset"), text="a form with two fields"), httpx.ReadError, 2),
        (stalled(3), httpx.ReadTimeout, 3),
        (stalled(3, keep_alive_s=10), httpx.ReadTimeout, 3),
        (Reply(text="slow", drip=(1, 60)), httpx.ReadTimeout, 0),
    ],
    ids=["interrupted", "reset", "stalled", "stalled with signs of life", "dripping"],
)
def test_a_stream_breaks_off_as_scripted_and_no_wait_takes_time(
    reply: Reply, error: type[Exception], deltas: int
) -> None:
    told: list[bytes] = []
    with FakeProvider(reply) as fake, pytest.raises(error):
        asked_for_a_stream(fake, told)

    assert max(0, sum(piece.endswith(b"}\n\n") for piece in told) - 1) == deltas
    assert told.count(b": OPENROUTER PROCESSING\n\n") == (
        4 if reply.broken and reply.broken.keep_alive_s else 1
    )


def test_a_stream_that_times_out_gives_nothing_and_one_that_drips_in_time_all() -> None:
    told: list[bytes] = []
    with FakeProvider(fails("timeout"), Reply(text="slow", drip=(1, 20))) as fake:
        with pytest.raises(httpx.ReadTimeout):
            asked_for_a_stream(fake, told)
        assert told == []
        asked_for_a_stream(fake, told)

    assert told[-1] == b"data: [DONE]\n\n"
