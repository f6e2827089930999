"""Traffic as agents make it, without the calls: ids, sizes, usage and costs as the providers send them.

    clock = Clock(datetime(2026, 11, 3, 9, tzinfo=UTC))
    with Ledger.open(path, clock=clock, auto_seal=False) as ledger:
        play(ledger, clock, requests=12_500, seed=1)

Eight sessions at a time, of some sixty requests each; one request in twenty is tried again once.
Everything follows from the seed but the ids that the ledger itself makes.
"""

from __future__ import annotations

import json
import string
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import uuid_utils

from ledger import Ledger
from ledger.events import AttemptSettled, ErrorType, RequestReceived
from ledger.prices import Usage
from router import books
from router.books import Attempt, Request
from router.catalog import Route
from router.errors import ProviderError
from router.providers.client import Call
from router.providers.wire import Answer
from router.tasks import TASK_MODEL_MAP

ROUTES = {
    "ORCHESTRATOR": Route("ORCHESTRATOR", "claude-opus-4-5-20251101", "anthropic"),
    "REASONING": Route("REASONING", "deepseek/deepseek-chat", "openrouter"),
    "CODING": Route("CODING", "deepseek/deepseek-coder", "openrouter"),
    "GENERAL": Route("GENERAL", "qwen/qwen-2.5-72b-instruct", "openrouter"),
    "FAST": Route("FAST", "qwen/qwen-2.5-32b-instruct", "openrouter"),
}
TASKS = sorted(TASK_MODEL_MAP)
UPSTREAMS = ("DeepInfra", "Novita", "Together", "Fireworks", "Chutes", "SiliconFlow")
LETTERS = string.ascii_letters + string.digits
REQUESTS_PER_SESSION = 60
SESSIONS_AT_A_TIME = 8
RETRIED = 0.05


class Clock:
    """A clock that stands still until it is moved on."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at

    def pass_s(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


def play(ledger: Ledger, clock: Clock, *, requests: int, seed: int) -> None:
    """Record that many requests, each with all its events, as the router would."""
    random = Random(seed)
    for number in range(requests):
        at_once = number // (SESSIONS_AT_A_TIME * REQUESTS_PER_SESSION) * SESSIONS_AT_A_TIME
        session = at_once + random.randrange(SESSIONS_AT_A_TIME)
        _play_one(ledger, clock, random, f"crawl_session_{session}")


def play_mishaps(ledger: Ledger, clock: Clock, *, requests: int, seed: int, settled: float) -> None:
    """Record requests that go another way, by turns: given up, or moved to another tier and left in doubt.

    settled: 0..1, how many of those in doubt somebody says a later word on.
    """
    random = Random(f"mishap {seed}")
    for number in range(requests):
        session = number // REQUESTS_PER_SESSION
        name = f"crawl_session_{session}"
        if number % 4 == 0:
            _gave_up(ledger, clock, random, name)
            continue
        in_doubt = _fell_back(ledger, clock, random, name)
        if random.random() < settled:
            verdict = {"billing": "billed", "billing_rule": "settled"}
            cost_usd = Decimal(random.randrange(1, 10**6)).scaleb(-9)
            ledger.record(AttemptSettled(**in_doubt, **verdict, billed_cost_usd=cost_usd))


def first_attempt(ledger: Ledger, random: Random, session_id: str) -> tuple[RequestReceived, Attempt]:
    """A request that is asked for now, and its first attempt: what a commit is made of."""
    task = random.choice(TASKS)
    route = ROUTES[TASK_MODEL_MAP[task]]
    prices = ledger.prices.at(route.provider, route.model, ledger.now())
    request = Request(uuid_utils.uuid7().hex, session_id, task, None, route.tier)
    call = Call([{"role": "user", "content": "…"}], max_tokens=random.choice((500, 1000, 2000, 4096)))
    prompt_bytes = int(random.lognormvariate(8, 1))
    prompt = random.randbytes(8)
    received = books.received(request, prompt, ledger.prompt_hash(prompt), call)
    received = received.model_copy(update={"prompt_bytes": prompt_bytes})
    bound_usd = Decimal(prompt_bytes + 4 * call.max_tokens).scaleb(-6)
    attempt = Attempt(
        request, uuid_utils.uuid7().hex, 1, route, call.max_tokens, bound_usd, prices, ledger.prices.hash
    )
    return received, attempt


def _play_one(ledger: Ledger, clock: Clock, random: Random, session_id: str) -> None:
    received, attempt = first_attempt(ledger, random, session_id)
    route, prices = attempt.route, attempt.prices
    clock.pass_s(random.expovariate(5))
    begun_at = clock()
    log = ledger.begin(received, books.started(attempt))
    started_at = log.started_at
    if random.random() < RETRIED:
        latency_ms = random.lognormvariate(5, 1)
        failure = ProviderError(
            "Overloaded",
            error_type="overloaded",
            provider=route.provider,
            retryable=True,
            billing_rule="error_status",
            http_status=529,
        )
        clock.pass_s(latency_ms / 1000)
        log.append(
            books.failed(attempt, failure, books.Cost(None, None), books.Timing(started_at, latency_ms), 2.0)
        )
        clock.pass_s(2.0)
        attempt = attempt._replace(attempt_id=uuid_utils.uuid7().hex, number=2)
        started_at = log.append(books.started(attempt))

    latency_ms = random.lognormvariate(7.5, 0.7)
    clock.pass_s(latency_ms / 1000)
    answer = _answer(random, route, received.prompt_bytes // 4, attempt.max_tokens)
    cost = books.cost_of(answer, route, prices, ledger.prices, started_at)
    whole_ms = (clock() - begun_at).total_seconds() * 1000 + random.random()
    log.append(
        books.succeeded(attempt, answer, cost, books.Timing(started_at, latency_ms)),
        books.completed(attempt, answer, log.started_at, whole_ms),
    )


def _fell_back(ledger: Ledger, clock: Clock, random: Random, session_id: str) -> dict[str, Any]:
    """No answer in time, and then a streamed one from FAST; gives what is in doubt."""
    received, attempt = first_attempt(ledger, random, session_id)
    begun_at = clock()
    log = ledger.begin(received, books.started(attempt))
    first_started_at = log.started_at
    clock.pass_s(120)
    failure = _failure("timeout", attempt.route, "no_answer", None)
    fast = ROUTES["FAST"]
    log.append(
        books.failed(attempt, failure, books.UNKNOWN, books.Timing(first_started_at, 120_000.0), None),
        books.fell_back(attempt.request, attempt.route, fast, "timeout"),
    )
    prices = ledger.prices.at(fast.provider, fast.model, ledger.now())
    second = attempt._replace(
        attempt_id=uuid_utils.uuid7().hex, number=2, route=fast, prices=prices, streamed=True
    )
    started_at = log.append(books.started(second))
    latency_ms = random.lognormvariate(7, 0.7)
    clock.pass_s(latency_ms / 1000)
    answer = _answer(random, fast, received.prompt_bytes // 4, second.max_tokens)
    cost = books.cost_of(answer, fast, prices, ledger.prices, started_at)
    whole_ms = (clock() - begun_at).total_seconds() * 1000 + random.random()
    log.append(
        books.succeeded(second, answer, cost, books.Timing(started_at, latency_ms, latency_ms / 5)),
        books.completed(second, answer, log.started_at, whole_ms),
    )
    return attempt.facts() | {"started_at": first_started_at}


def _gave_up(ledger: Ledger, clock: Clock, random: Random, session_id: str) -> None:
    received, attempt = first_attempt(ledger, random, session_id)
    log = ledger.begin(received, books.started(attempt))
    latency_ms = random.lognormvariate(5, 1)
    clock.pass_s(latency_ms / 1000)
    failure = _failure("invalid_request", attempt.route, "error_status", 400)
    log.append(
        books.failed(attempt, failure, books.UNKNOWN, books.Timing(log.started_at, latency_ms), None),
        books.request_failed(attempt, log.started_at, latency_ms, failure, "given_up"),
    )


def _failure(error_type: ErrorType, route: Route, rule: str, http_status: int | None) -> ProviderError:
    return ProviderError(
        error_type,
        error_type=error_type,
        provider=route.provider,
        retryable=False,
        billing_rule=rule,
        http_status=http_status,
    )


def _answer(random: Random, route: Route, prompt_tokens: int, max_tokens: int) -> Answer:
    written = min(int(random.lognormvariate(5.5, 0.8)), max_tokens)
    cached = random.choice((0, 0, prompt_tokens // 2))
    stop_reason = random.choice(("end_turn", "end_turn", "tool_use"))
    if route.provider == "anthropic":
        usage = {
            "input_tokens": prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": written,
            "service_tier": "standard",
        }
        return Answer(
            "",
            (),
            Usage(prompt_tokens - cached, cached, 0, 0, written),
            stop_reason,
            stop_reason,
            route.model,
            f"msg_01{_letters(random, 22)}",
            service_tier="standard",
            usage_json=json.dumps(usage, separators=(",", ":")),
            provider_request_id=f"req_011{_letters(random, 21)}",
        )
    cost_usd = Decimal(prompt_tokens * 21 + written * 83).scaleb(-8)
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
        "cost": float(cost_usd),
        "is_byok": False,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0, "video_tokens": 0},
        "cost_details": {
            "upstream_inference_cost": None,
            "upstream_inference_prompt_cost": prompt_tokens * 21e-8,
            "upstream_inference_completions_cost": written * 83e-8,
        },
        "completion_tokens_details": {"reasoning_tokens": 0, "image_tokens": 0},
    }
    answer_id = f"gen-{random.randrange(1_760_000_000, 1_770_000_000)}-{_letters(random, 20)}"
    return Answer(
        "",
        (),
        Usage(prompt_tokens - cached, cached, 0, 0, written),
        stop_reason,
        "stop" if stop_reason == "end_turn" else "tool_calls",
        route.model,
        answer_id,
        cost_usd=cost_usd,
        is_byok=False,
        upstream_provider=random.choice(UPSTREAMS),
        usage_json=json.dumps(usage, separators=(",", ":")),
        provider_request_id=answer_id,
    )


def _letters(random: Random, count: int) -> str:
    return "".join(random.choices(LETTERS, k=count))
