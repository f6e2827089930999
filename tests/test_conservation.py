"""Money neither comes nor goes between views: random histories in random zones, folded once more in Polars.

The fold here shares nothing with the views but the raw events: Σ attempts = Σ requests = Σ sessions =
Σ days = Σ tiers = Σ models, and every figure of every view is what Polars makes of the events.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest
from events_by_hand import received

from ledger.budgets import Budget
from ledger.events import (
    AttemptCancelled,
    AttemptFailed,
    AttemptStarted,
    AttemptSucceeded,
    CeilingBroken,
    FallbackEngaged,
    RequestCompleted,
    RequestDenied,
    RequestFailed,
)
from ledger.ledger import Ledger
from ledger.reader import connect, scan
from ledger.windows import zone_named

ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu", "America/New_York", "Australia/Lord_Howe")
TIERS = {"REASONING": "deepseek/deepseek-chat", "FAST": "qwen/qwen-2.5-32b-instruct", "LOCAL": "own/model"}
OUTCOMES = ("attempt_succeeded", "attempt_failed", "attempt_cancelled", "attempt_abandoned")
SUMS = ("input_tokens", "cache_read_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
MONEY = ("cost_usd", "list_cost_usd")
FLAGS = ("unpriced_attempts", "unlisted_attempts", "in_doubt_attempts", "in_flight_attempts")


class Teller:
    """Tells a random history, all of it from a seed."""

    def __init__(self, ledger: Ledger, random: Random, clock: list[datetime]) -> None:
        self.ledger, self.random, self.clock = ledger, random, clock
        self.in_doubt: list[str] = []

    def tell(self, requests: int) -> None:
        for number in range(requests):
            self.clock[0] += timedelta(seconds=self.random.choice((1, 60, 5_000, 40_000)))
            self.request(f"r-{number}")
        for name in self.random.sample(self.in_doubt, min(2, len(self.in_doubt))):
            self.ledger.settle(name, self.random.choice((None, self.usd())))

    def usd(self) -> Decimal:
        return Decimal(self.random.randint(0, 10**12)).scaleb(-12)

    def request(self, name: str) -> None:
        random = self.random
        facts = {
            "request_id": name,
            "session_id": random.choice(("s-1", "s-2", None)),
            "task": random.choice(("analyze_page", "format_ticket")),
            "requested_tier": random.choice(list(TIERS)),
        }
        log = self.ledger.open_request(received(**facts))
        tier = facts["requested_tier"]
        if random.random() < 0.1:
            route = {"tier": tier, "provider": "openrouter", "model": TIERS[tier]}
            limit = {
                "scope": "all",
                "limit_usd": 1,
                "spent_usd": 1,
                "in_doubt_usd": 0,
                "asked_usd": self.usd(),
            }
            end = {"started_at": self.clock[0], "attempt_number": 0, "reason": "budget_exceeded"}
            log.append(RequestDenied(**facts, **route, **limit, **end))
            return
        for attempt in range(1, random.randint(1, 3) + 1):
            if attempt > 1 and random.random() < 0.5:
                to_tier = random.choice([each for each in TIERS if each != tier])
                log.append(FallbackEngaged(**facts, from_tier=tier, to_tier=to_tier, reason="timeout"))
                tier = to_tier
            if self.attempt(log, facts, tier, attempt):
                return
        end = {"started_at": log.started_at, "latency_ms": 5.0, "attempt_number": attempt, "tier": tier}
        log.append(RequestFailed(**facts, **end, error_type="timeout", reason="exhausted"))

    def attempt(self, log: Any, facts: dict[str, Any], tier: str, number: int) -> bool:
        """Whether nothing follows it."""
        random = self.random
        route = {"tier": tier, "provider": "openrouter", "model": TIERS[tier]}
        named = {**facts, **route, "attempt_id": f"{facts['request_id']}-a{number}", "attempt_number": number}
        ceiling = random.choice((self.usd(), None))
        at = log.append(AttemptStarted(**named, max_tokens=9, reserved_usd=ceiling))
        if random.random() < 0.05:
            return True  # in flight when the history ends
        self.clock[0] += timedelta(seconds=random.choice((1, 1, 4_000)))
        timed = {"started_at": at, "latency_ms": random.randint(1, 9_000) / 7}
        what = random.random()
        if what < 0.6:
            verdict = {"billing": "billed", "billing_rule": "answered", "stop_reason": "end_turn"}
            outcome = AttemptSucceeded(**named, **timed, **verdict, **self.usage(ceiling))
            end = {"started_at": log.started_at, "latency_ms": 7.5, "attempt_number": number, **route}
            broken = (
                [CeilingBroken(**named, reserved_usd=ceiling, spent_usd=1)] if ceiling and what < 0.05 else []
            )
            log.append(outcome, *broken, RequestCompleted(**facts, **end, stop_reason="end_turn"))
            return True
        if what < 0.8:
            verdict = {"billing": "unbilled", "billing_rule": "error_status", "error_type": "rate_limited"}
            log.append(AttemptFailed(**named, **timed, **verdict, wait_s=2.0))
            return False
        self.in_doubt.append(named["attempt_id"])
        doubt = {"billing": "unknown", "billing_rule": "no_answer", "reserved_usd": ceiling}
        if what < 0.9:
            log.append(AttemptFailed(**named, **timed, **doubt, error_type="timeout"))
            return False
        cancelled = AttemptCancelled(**named, **timed, **doubt, reason="left")
        end = {"started_at": log.started_at, "attempt_number": number, "tier": tier}
        log.append(cancelled, RequestFailed(**facts, **end, error_type="cancelled", reason="cancelled"))
        return True

    def usage(self, ceiling: Decimal | None) -> dict[str, Any]:
        random = self.random
        tokens = {name: random.randint(0, 5_000) for name in ("input_tokens", "output_tokens")}
        cached = ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
        tokens |= {name: random.randint(0, 900) for name in cached if random.random() < 0.5}
        costs = {name: self.usd() for name in ("list_cost_usd", "billed_cost_usd") if random.random() < 0.6}
        return {**tokens, **costs} | ({} if costs else {"reserved_usd": ceiling})


# the fold


def cache_writes() -> pl.Expr:
    five, hour = pl.col("cache_write_5m_tokens"), pl.col("cache_write_1h_tokens")
    return pl.when(five.is_not_null() | hour.is_not_null()).then(five.fill_null(0) + hour.fill_null(0))


def attempts_of(events: pl.DataFrame) -> pl.DataFrame:
    of_attempts = events.filter(pl.col("attempt_id").is_not_null())
    begun = of_attempts.filter(pl.col("event_type") == "attempt_started").select(
        *("attempt_id", "request_id", "session_id", "task", "tier", "provider", "model", "attempt_number"),
        pl.col("occurred_at").alias("started_at"),
        pl.col("reserved_usd").alias("ceiling_usd"),
    )
    prompt = ("input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
    told = of_attempts.filter(pl.col("event_type").is_in(OUTCOMES)).select(
        "attempt_id",
        pl.col("event_type").str.strip_prefix("attempt_").alias("outcome"),
        pl.col("occurred_at").alias("ended_at"),
        pl.col("billing").alias("first_billing"),
        *("error_type", "latency_ms", "first_token_ms", "output_tokens", "reasoning_tokens"),
        *("cache_read_tokens", "billing_rule"),
        cache_writes().alias("cache_write_tokens"),
        pl.when(pl.any_horizontal(pl.col(name).is_not_null() for name in prompt))
        .then(pl.sum_horizontal(pl.col(name).fill_null(0) for name in prompt))
        .alias("input_tokens"),
    )
    settled = of_attempts.filter(pl.col("event_type") == "attempt_settled").select(
        "attempt_id", pl.col("billing").alias("last_billing")
    )
    cost = pl.coalesce("billed_cost_usd", "list_cost_usd")
    money = of_attempts.group_by("attempt_id").agg(
        pl.when(cost.is_not_null().any()).then(cost.sum()).alias("known"),
        pl.when(pl.col("list_cost_usd").is_not_null().any())
        .then(pl.col("list_cost_usd").sum())
        .alias("known_list"),
        (pl.col("event_type") == "ceiling_broken").any().alias("is_ceiling_broken"),
    )
    joined = begun
    for frame in (told, settled, money):
        joined = joined.join(frame, on="attempt_id", how="left")
    nothing = pl.lit(Decimal(0), pl.Decimal(38, 12))
    unbilled = pl.col("billing") == "unbilled"
    return joined.with_columns(
        pl.col("outcome").fill_null("in_flight"),
        pl.coalesce("last_billing", "first_billing").alias("billing"),
    ).with_columns(
        pl.when(unbilled).then(pl.col("known").fill_null(nothing)).otherwise("known").alias("cost_usd"),
        pl.when(unbilled)
        .then(pl.col("known_list").fill_null(nothing))
        .otherwise("known_list")
        .alias("list_cost_usd"),
        ((pl.col("billing") == "billed") & pl.col("known").is_null())
        .fill_null(False)
        .alias("unpriced_attempts"),
        ((pl.col("billing") == "billed") & pl.col("known_list").is_null())
        .fill_null(False)
        .alias("unlisted_attempts"),
        (pl.col("billing") == "unknown").fill_null(False).alias("in_doubt_attempts"),
        (pl.col("outcome") == "in_flight").alias("in_flight_attempts"),
        (~pl.col("outcome").is_in(("succeeded", "in_flight"))).alias("failed_attempts"),
    )


def summed(attempts: pl.DataFrame, *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """What attempts add up to, per key; None where nothing is priced."""
    counts = [
        pl.len().alias("attempts"),
        *(pl.col(name).sum() for name in ("failed_attempts", *FLAGS, *SUMS)),
    ]
    money = [pl.when(pl.col(name).is_not_null().any()).then(pl.col(name).sum()).alias(name) for name in MONEY]
    rows = attempts.group_by(*keys).agg(*counts, *money).to_dicts()
    return {tuple(row.pop(key) for key in keys): row for row in rows}


def of_view(view: Any, name: str, *keys: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The same figures as a view has them; rows without attempts left out."""
    figures = ("attempts", "failed_attempts", *FLAGS, *SUMS, *MONEY)
    rows = view.execute(f"select {', '.join((*keys, *figures))} from {name} where attempts > 0").fetchall()
    width = len(keys)
    return {row[:width]: dict(zip(figures, row[width:], strict=True)) for row in rows}


@pytest.fixture(scope="module", params=range(6))
def history(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, pl.DataFrame]:
    """A ledger that is only read from here on, a zone, and all events."""
    path = tmp_path_factory.mktemp("history") / "ledger"
    random = Random(request.param)
    clock = [datetime(2026, 3, 27, tzinfo=UTC) + timedelta(hours=random.randint(0, 48))]

    def now() -> datetime:
        clock[0] += timedelta(milliseconds=1)
        return clock[0]

    with Ledger.open(path, "process-crash", clock=now, auto_seal=False) as ledger:
        for budget in (Budget("session", None, Decimal(5)), Budget("tier", "FAST", Decimal(3), "warn")):
            ledger.set_budget(budget)
        ledger.set_budget(Budget("all", None, Decimal(50)))
        Teller(ledger, random, clock).tell(40)
        if request.param % 2:
            ledger.seal()
    return path, random.choice(ZONES), scan(path).collect()


def test_every_view_adds_up_to_what_the_events_say(history: tuple[Path, str, pl.DataFrame]) -> None:
    path, tz, events = history
    attempts = attempts_of(events)
    days = pl.col("started_at").map_elements(lambda at: at.astimezone(zone_named(tz)).date(), pl.Date)
    attempts = attempts.with_columns(days.alias("day"))
    with connect(path, tz=tz) as view:
        assert of_view(view, "requests", "request_id") == summed(attempts, "request_id")
        assert of_view(view, "sessions", "session_id") == summed(attempts, "session_id")
        assert of_view(view, "tier_breakdown", "session_id", "tier") == summed(attempts, "session_id", "tier")
        assert of_view(view, "daily_spend", "day") == summed(attempts, "day")
        assert of_view(view, "model_performance", "provider", "model") == summed(
            attempts, "provider", "model"
        )
        same = ("attempt_id", *MONEY, "outcome", "billing", "is_ceiling_broken", *SUMS)
        shown = view.execute(f"select {', '.join(same)} from attempts order by attempt_id").fetchall()
        assert shown == attempts.sort("attempt_id").select(same).rows()
        doubt = view.execute("select attempt_id, reserved_usd from in_doubt order by attempt_id").fetchall()
        open_ended = pl.col("in_doubt_attempts") | pl.col("in_flight_attempts")
        assert (
            doubt == attempts.filter(open_ended).sort("attempt_id").select("attempt_id", "ceiling_usd").rows()
        )
        whole = attempts.select(pl.col(name).sum() for name in MONEY).row(0)
        for name in (
            "attempts",
            "requests",
            "sessions",
            "tier_breakdown",
            "daily_spend",
            "model_performance",
        ):
            sums = view.execute(
                f"select {', '.join(f'sum({each})' for each in MONEY)} from {name}"
            ).fetchone()
            assert sums == whole, name
        moved = view.execute(
            "select request_id, from_tier, to_tier, reason from fallbacks order by all"
        ).fetchall()
        fell_back = events.filter(pl.col("event_type") == "fallback_engaged")
        assert moved == sorted(fell_back.select("request_id", "from_tier", "to_tier", "reason").rows())


def test_requests_end_as_their_events_say_and_count_once_everywhere(
    history: tuple[Path, str, pl.DataFrame],
) -> None:
    path, tz, events = history
    ends = events.filter(
        pl.col("event_type").is_in(("request_completed", "request_failed", "request_denied"))
    )
    ended: Mapping[str, str] = dict(
        ends.select("request_id", pl.col("event_type").str.strip_prefix("request_")).iter_rows()
    )
    asked = events.filter(pl.col("event_type") == "request_received")
    with connect(path, tz=tz) as view:
        status = dict(view.execute("select request_id, status from requests").fetchall())
        assert status == {name: ended.get(name, "open") for name in asked["request_id"]}
        for name in ("sessions", "tier_breakdown", "daily_spend"):
            assert view.execute(f"select sum(requests)::int from {name}").fetchone() == (len(asked),)
        latency = dict(view.execute("select model, latency_ms_p50 from model_performance").fetchall())
        answered = events.filter(pl.col("event_type") == "attempt_succeeded")
        medians = dict(answered.group_by("model").agg(pl.col("latency_ms").median()).iter_rows())
        assert {model: at for model, at in latency.items() if at is not None} == pytest.approx(medians)


def test_budgets_count_what_the_events_say_and_state_db_agrees(
    history: tuple[Path, str, pl.DataFrame], tmp_path: Path
) -> None:
    path, _, events = history
    attempts = attempts_of(events)
    held = pl.col("in_doubt_attempts") | pl.col("unpriced_attempts")
    with connect(path) as view:
        rows = view.execute(
            "select scope, scope_id, spent_usd, reserved_usd, in_doubt_usd from budget_status"
        ).fetchall()
    assert {row[:2] for row in rows} >= {("all", None), ("tier", "FAST"), ("session", "s-1")}
    copy = Path(shutil.copytree(path, tmp_path / "ledger"))
    with Ledger.open(copy, "process-crash", auto_seal=False) as ledger:  # ends what was in flight
        for scope, scope_id, spent, reserved, in_doubt in rows:
            column = {"session": "session_id", "tier": "tier"}.get(scope)
            of = attempts if column is None else attempts.filter(pl.col(column) == scope_id)
            ceilings = [
                of.filter(which)["ceiling_usd"].sum() for which in (pl.col("in_flight_attempts"), held)
            ]
            assert (spent, reserved, in_doubt) == (of["cost_usd"].sum(), *ceilings)
            balance = ledger.read_state(lambda state, to=(scope, scope_id or ""): state.balance(*to))
            assert balance == (spent, 0, in_doubt + reserved)
