"""What the views say about small histories whose figures can be added up by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from played import ROUTES, History

from ledger.events import AttemptSettled, BudgetSet, CeilingBroken, CircuitClosed, CircuitOpened
from ledger.reader import connect, tier_rank
from ledger.relations import VIEWS, sql_file, view_columns
from ledger.schema import COLUMNS, TIER_ORDER


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    history = History(tmp_path / "ledger")
    yield history
    history.close()


Kinds = dict[str, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def kinds_of(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    """Of each view its columns, in their order, and their types."""
    history = History(tmp_path_factory.mktemp("empty") / "ledger")
    history.close()
    with connect(history.path) as connection:
        return {
            view: [(name, kind) for name, kind, *_ in connection.execute(f"describe {view}").fetchall()]
            for view in VIEWS
        }


def test_a_fallback_is_billed_at_the_model_that_answered(history: History) -> None:
    history.play("""
        session=s-1
            REASONING   503
            REASONING   503
            FAST        ok    in=1000 out=200
    """)

    # FAST: 0.06 USD in, 0.24 USD out per million tokens
    assert history.column("sessions", "cost_usd") == [Decimal("0.000108")]
    assert history.rows("select tier, requests, attempts, cost_usd from tier_breakdown order by tier") == [
        ("FAST", 1, 1, Decimal("0.000108")),
        ("REASONING", 0, 2, Decimal(0)),
    ]


def test_a_request_that_failed_counts_at_the_last_tier_tried(history: History) -> None:
    history.play("""
        session=s-1
            REASONING   503
            FAST        529
    """)

    assert history.rows("select tier, model, status, reason, error_type from requests") == [
        ("FAST", "qwen/qwen-2.5-32b-instruct", "failed", "exhausted", "overloaded")
    ]


def test_what_the_provider_billed_counts_before_the_list_cost(history: History) -> None:
    history.play("""
        session=s-1
            REASONING   ok    in=1000 out=200 billed=0.0004
        session=s-1
            REASONING   ok    in=1000 out=200
    """)

    # list: 1000 × 0.27 + 200 × 1.10 per million = 0.00049
    assert history.rows("select cost_usd, list_cost_usd from sessions") == [
        (Decimal("0.00089"), Decimal("0.00098"))
    ]


def test_an_unpriced_attempt_leaves_the_priced_part_and_says_so(history: History) -> None:
    history.play("""
        session=s-1
            REASONING   ok    in=1000 out=200 list=none
        session=s-1
            REASONING   ok    in=1000 out=200
        session=s-2
            REASONING   ok    in=1000 out=200 list=none
    """)

    assert history.rows("select session_id, cost_usd, unpriced_attempts from sessions order by 1") == [
        ("s-1", Decimal("0.00049"), 1),
        ("s-2", None, 1),
    ]


def test_what_was_not_billed_costs_nothing_rather_than_an_unknown_amount(history: History) -> None:
    history.play("""
        session=s-1
            REASONING   503
        session=s-2
            REASONING   denied
    """)

    assert history.rows("select session_id, cost_usd, unpriced_attempts from sessions order by 1") == [
        ("s-1", Decimal(0), 0),
        ("s-2", Decimal(0), 0),
    ]
    assert history.column("requests", "status") == ["denied", "failed"]


def test_a_timeout_is_in_doubt_until_it_is_settled(history: History) -> None:
    history.play("""
        session=s-1
            REASONING   timeout   ceiling=0.01
            FAST        pending   ceiling=0.002
    """)
    assert history.rows(
        "select tier, is_in_flight, billing_rule, reserved_usd from in_doubt order by tier"
    ) == [
        ("FAST", True, None, Decimal("0.002")),
        ("REASONING", False, "no_answer", Decimal("0.01")),
    ]
    assert history.rows(
        "select cost_usd, in_doubt_attempts, in_flight_attempts, open_requests from sessions"
    ) == [(None, 1, 1, 1)]


def test_a_settlement_moves_an_attempt_out_of_doubt_and_into_the_cost(history: History) -> None:
    history.play("""
        session=s-1
            REASONING   timeout   ceiling=0.01 settle=0.003
        session=s-2
            REASONING   timeout   ceiling=0.01 settle=none settled_as=unbilled
        session=s-3
            REASONING   ok        in=1000 out=200 billed=0.0005 settle=-0.0001
    """)

    assert history.rows("select session_id, cost_usd, in_doubt_attempts from sessions order by 1") == [
        ("s-1", Decimal("0.003"), 0),
        ("s-2", Decimal(0), 0),
        ("s-3", Decimal("0.0004"), 0),
    ]
    assert history.rows("select billing, billing_rule, is_settled from attempts order by session_id") == [
        ("billed", "settled_by_hand", True),
        ("unbilled", "settled_by_hand", True),
        ("billed", "settled_by_hand", True),
    ]


def test_input_tokens_are_all_prompt_tokens(history: History) -> None:
    history.play("""
        session=s-1
            ORCHESTRATOR   ok   in=100 cached=2000 write5m=30 write1h=4 out=50 reasoning=20
    """)

    columns = "input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens"
    for view in ("attempts", "requests", "sessions", "tier_breakdown", "daily_spend", "model_performance"):
        assert history.rows(f"select {columns} from {view}") == [(2134, 2000, 34, 50, 20)], view


def test_requests_without_a_session_are_one_row(history: History) -> None:
    history.play("""
        task=analyze_page
            REASONING   ok    in=1000 out=200
        task=classify_bug
            REASONING   ok    in=1000 out=200
    """)

    assert history.rows("select session_id, requests, cost_usd from sessions") == [
        (None, 2, Decimal("0.00098"))
    ]


def test_money_belongs_to_the_day_its_attempt_started_settlements_included(history: History) -> None:
    history.play("""
        session=s-1 at=2026-11-22T23:59:59
            REASONING   timeout   ceiling=0.01 settle=0.003
            REASONING   ok        in=1000 out=200
    """)

    days = "select day, requests, attempts, cost_usd from daily_spend order by day"
    assert history.rows(days) == [
        (date(2026, 11, 22), 1, 1, Decimal("0.003")),
        (date(2026, 11, 23), 0, 1, Decimal("0.00049")),
    ]
    assert history.rows(days, tz="America/New_York") == [(date(2026, 11, 22), 1, 2, Decimal("0.00349"))]


def test_a_request_with_its_retries_and_waits(history: History) -> None:
    history.play("""
        session=s-1 task=propose_fix budget=0.5 tags={"app":"shop"}
            CODING   429
            CODING   ok    in=10 out=5
    """)

    assert history.rows("""
        select task, tags['app'], requested_tier, tier, status, attempts, failed_attempts, fallbacks,
            latency_ms, limit_usd, started_at, ended_at
        from requests
    """) == [
        (
            "propose_fix", "shop", "CODING", "CODING", "completed", 2, 1, 0, 2000.0, Decimal("0.5"),
            datetime(2026, 11, 22, 10, 0, tzinfo=UTC), datetime(2026, 11, 22, 10, 0, 2, tzinfo=UTC),
        )
    ]  # fmt: skip


def test_fallbacks_say_why_and_whether_it_helped(history: History) -> None:
    history.play("""
        session=s-1
            REASONING   529
            FAST        ok    in=1000 out=200
        session=s-2
            CODING      503
            FAST        503
    """)

    assert history.rows(
        "select session_id, from_tier, to_tier, reason, request_status, request_cost_usd"
        " from fallbacks order by 1"
    ) == [
        ("s-1", "REASONING", "FAST", "overloaded", "completed", Decimal("0.000108")),
        ("s-2", "CODING", "FAST", "server_error", "failed", Decimal(0)),
    ]


def test_model_performance_counts_answers_and_their_latency(history: History) -> None:
    history.play("""
        session=s-1
            REASONING   ok        in=1000 out=200 ms=100
        session=s-1
            REASONING   ok        in=1000 out=200 ms=300
        session=s-1
            REASONING   timeout   ms=60000
            REASONING   429
        session=s-1
            REASONING   pending
    """)

    assert history.rows("""
        select attempts, succeeded_attempts, failed_attempts, success_ratio, rate_limited_attempts,
            timed_out_attempts, latency_ms_p50, in_doubt_attempts, in_flight_attempts, cost_usd
        from model_performance
    """) == [(5, 2, 2, 0.5, 1, 1, 200.0, 1, 1, Decimal("0.00098"))]


def test_model_performance_counts_fallbacks_and_circuits(history: History) -> None:
    history.play("""
        session=s-1
            REASONING   503
            FAST        ok
    """)
    circuit = dict(zip(("provider", "model"), ROUTES["REASONING"], strict=True))
    circuit |= {"tier": "REASONING", "reason": "r"}
    first_at, second_at = history.now, history.now + timedelta(minutes=5)
    history.record(CircuitOpened(**circuit, started_at=first_at, error_type="timeout"))
    history.now = first_at + timedelta(seconds=90)
    history.record(CircuitClosed(**circuit, started_at=first_at))
    history.record(CircuitOpened(**circuit, started_at=second_at, error_type="timeout"))

    figures = "fallbacks, circuit_openings, circuit_open_s, circuit_opened_at"
    assert history.rows(f"select model, {figures} from model_performance order by attempts, model") == [
        (ROUTES["REASONING"][1], 1, 2, 90.0, second_at),
        (ROUTES["FAST"][1], 0, 0, None, None),
    ]


def test_a_broken_ceiling_shows_on_its_attempt(history: History) -> None:
    history.play("""
        session=s-1
            REASONING   ok    in=1000 out=200 ceiling=0.0001
    """)
    provider, model = ROUTES["REASONING"]
    history.record(
        CeilingBroken(
            request_id="r-1", session_id="s-1", task="analyze_page", requested_tier="REASONING",
            attempt_id="r-1-a1", attempt_number=1, tier="REASONING", provider=provider, model=model,
            reserved_usd=Decimal("0.0001"), spent_usd=Decimal("0.00049"),
        )
    )  # fmt: skip

    assert history.rows("select count(*), any_value(is_ceiling_broken), sum(cost_usd) from attempts") == [
        (1, True, Decimal("0.00049"))
    ]


def test_budget_status_knows_the_limit_in_force_and_what_is_left(history: History) -> None:
    history.now = datetime.now(UTC)
    history.play(
        """
        session=s-1
            REASONING   ok        in=1000 out=200
            REASONING   timeout   ceiling=0.01
            REASONING   pending   ceiling=0.02
    """.replace("ok        in", "503       in")
    )
    for scope, scope_id, limit in (
        ("session", "s-1", "9"),
        ("session", "s-1", "1"),
        ("session", "s-2", "1"),
        ("day", None, "2"),
        ("tier", "FAST", "3"),
        ("all", None, "5"),
        ("all", None, None),
    ):
        history.now += timedelta(milliseconds=1)
        history.record(BudgetSet(scope=scope, scope_id=scope_id, limit_usd=limit and Decimal(limit)))

    assert history.rows("""
        select scope, scope_id, limit_usd, spent_usd, reserved_usd, in_doubt_usd, left_usd
        from budget_status order by scope, scope_id
    """) == [
        ("day", None, 2, Decimal("0.00049"), Decimal("0.02"), Decimal("0.01"), Decimal("1.96951")),
        ("session", "s-1", 1, Decimal("0.00049"), Decimal("0.02"), Decimal("0.01"), Decimal("0.96951")),
        ("session", "s-2", 1, Decimal(0), Decimal(0), Decimal(0), Decimal(1)),
        ("tier", "FAST", 3, Decimal(0), Decimal(0), Decimal(0), Decimal(3)),
    ]


def test_every_view_of_an_empty_ledger_is_empty(history: History) -> None:
    with connect(history.path) as connection:
        for view in VIEWS:
            assert connection.execute(f"select * from {view}").fetchall() == [], view


@pytest.mark.parametrize("view", VIEWS[1:])
def test_the_header_of_a_view_names_its_columns_in_order(view: str, kinds_of: Kinds) -> None:
    assert [name for name, _ in view_columns(view)] == [name for name, _ in kinds_of[view]]
    assert all(meaning for _, meaning in view_columns(view))


@pytest.mark.parametrize("view", VIEWS)
def test_the_header_of_a_view_gives_its_name_grain_and_sources(view: str) -> None:
    text = sql_file(view)

    assert text.startswith(f"-- {view}: ")
    assert re.search(r"^-- Grain: .+  Reads: .+\.$", text, re.MULTILINE)


def test_events_are_the_columns_of_the_schema_in_order(kinds_of: Kinds) -> None:
    assert [name for name, _ in kinds_of["events"]] == [column.name for column in COLUMNS]


@pytest.mark.parametrize("view", VIEWS)
def test_money_is_decimal_with_twelve_places_in_every_view(view: str, kinds_of: Kinds) -> None:
    kinds = {name: kind for name, kind in kinds_of[view] if "_usd" in name}

    assert all(re.fullmatch(r"DECIMAL\(\d+,12\)", kind) for kind in kinds.values()), kinds


@pytest.mark.parametrize("view", VIEWS)
def test_no_view_divides_or_counts_in_hugeint(view: str, kinds_of: Kinds) -> None:
    query = re.sub(r"--.*", "", sql_file(view))

    assert "/" not in query
    assert not re.search(r"avg\((?!if\(outcome)", query)
    assert not {"HUGEINT", "FLOAT"} & {kind for _, kind in kinds_of[view]}


def test_views_know_the_tiers_in_the_order_of_the_events() -> None:
    assert sorted(["X", *reversed(TIER_ORDER)], key=tier_rank) == [*TIER_ORDER, "X"]


# laws

_attempts = st.lists(
    st.tuples(
        st.sampled_from(sorted(ROUTES)),
        st.sampled_from(["503", "429", "refused", "timeout"]),
        st.sampled_from(["", "in=7 out=3", "list=0.000000000001", "billed=0.25 list=none", "settle=0.007"]),
    ),
    max_size=3,
)
_last = st.tuples(
    st.sampled_from(sorted(ROUTES)),
    st.sampled_from(["ok", "503", "timeout", "cancelled", "pending", "denied"]),
    st.sampled_from(
        ["in=1000 cached=10 out=200", "in=9 out=1 list=none", "in=5 out=5 billed=0.1 ceiling=1", ""]
    ),
)
_histories = st.lists(
    st.tuples(st.sampled_from(["s-1", "s-2", None]), st.integers(0, 100_000), _attempts, _last), max_size=6
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=_histories, sealed_after=st.integers(0, 6))
def test_attempts_requests_sessions_days_and_tiers_add_up_to_the_same(
    requests: list, sealed_after: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    history = History(tmp_path_factory.mktemp("law") / "ledger")
    for number, (session, second, attempts, last) in enumerate(requests):
        at = (datetime(2026, 11, 22, tzinfo=UTC) + timedelta(seconds=second)).isoformat()
        lines = [f"session={session} at={at}" if session else f"at={at}"]
        lines += [f"    {tier} {verdict} {options}" for tier, verdict, options in [*attempts, last]]
        history.play("\n".join(lines))
        if number == sealed_after:
            history.ledger.seal()

    with connect(history.path) as connection:
        sums = {}
        for view in (
            "attempts",
            "requests",
            "sessions",
            "daily_spend",
            "tier_breakdown",
            "model_performance",
        ):
            unpriced = (
                "count(*) filter (where is_unpriced)" if view == "attempts" else "sum(unpriced_attempts)"
            )
            doubt = (
                "count(*) filter (where billing = 'unknown')"
                if view == "attempts"
                else "sum(in_doubt_attempts)"
            )
            sums[view] = connection.execute(
                "select coalesce(sum(cost_usd), 0), coalesce(sum(list_cost_usd), 0),"
                " coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),"
                f" coalesce({unpriced}, 0), coalesce({doubt}, 0) from {view}"
            ).fetchone()
        plain = connection.execute(
            "select coalesce(sum(coalesce(billed_cost_usd, list_cost_usd)), 0) from events"
        ).fetchone()
        counts = connection.execute(
            "select (select count(*) from attempts), (select sum(attempts) from requests),"
            " (select sum(attempts) from sessions), (select sum(attempts) from daily_spend),"
            " (select sum(attempts) from tier_breakdown)"
        ).fetchone()
        ended = connection.execute(
            "select (select count(*) from requests), (select sum(requests) from sessions),"
            " (select sum(requests) from daily_spend), (select sum(requests) from tier_breakdown),"
            " (select sum(succeeded_requests + failed_requests + denied_requests + open_requests)"
            " from sessions)"
        ).fetchone()
    history.close()
    assert len(set(sums.values())) == 1, sums
    assert plain is not None
    assert sums["attempts"][0] == plain[0]
    assert len({count or 0 for count in counts or ()}) == 1
    assert {count or 0 for count in ended or ()} == {len(requests)}
    assert ended is not None
    assert ended[0] == len(requests)


@pytest.mark.parametrize("kinds", [("billed", "unbilled"), ("unbilled", "billed")])
def test_of_two_settlements_in_one_moment_the_later_counts(kinds: tuple[str, str], history: History) -> None:
    history.play("session=s-1\n    FAST   timeout   ceiling=0.01")
    names = ("request_id", "session_id", "task", "tier", "provider", "model", "attempt_id", "attempt_number")
    (values,) = history.rows(f"select {', '.join(names)}, started_at from attempts")
    attempt = dict(zip((*names, "started_at"), values, strict=True))
    for kind in kinds:  # the clock of a history stands still
        history.record(
            AttemptSettled(**attempt, requested_tier="FAST", billing=kind, billing_rule="settled_by_hand")
        )

    assert history.rows("select billing from attempts") == [(kinds[1],)]
    history.ledger.seal()
    assert history.rows("select billing from attempts") == [(kinds[1],)]
