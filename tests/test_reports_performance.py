"""`bughive-costs performance`: how each model did, alone and against the period before."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from played import ROUTES, History

from ledger.events import AttemptFailed, AttemptStarted, CircuitOpened, FallbackEngaged, RequestReceived
from ledger.reader import connect
from reports.cli import main
from reports.comparison import comparison_report
from reports.options import ALL_TIME, Period, UsageError
from reports.performance import performance_report
from reports.resampling import Quantile, Ratio, interval
from reports.tally import Tally, reading

CHAT, QWEN, QWEN_72B = (ROUTES[tier][1] for tier in ("REASONING", "FAST", "GENERAL"))
HISTORY = """
    session=s-1 task=analyze_page tags={"app":"shop"} at=2026-11-22T10:00:00
        REASONING   ok        in=1000 out=200 ms=1200
    session=s-1 task=analyze_page
        REASONING   503
        REASONING   timeout   ceiling=0.01
        FAST        ok        in=1000 out=200 ms=80
    session=s-2 task=classify_bug at=2026-11-23T10:00:00
        REASONING   529       billed=0.002
        REASONING   ok        in=1000 out=400 ms=1800
    session=s-2 task=format_ticket
        FAST        ok        in=10 out=20 ms=100 list=none
    session=s-3 task=format_ticket
        FAST        pending   ceiling=0.5
"""
CHAT_COST = Decimal("0.000490")  # 1000 × 0.27 + 200 × 1.10 per million
DEARER = Decimal("0.000710")


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    history = History(tmp_path_factory.mktemp("performance") / "ledger")
    history.play(HISTORY)
    opened = CircuitOpened(
        tier="REASONING", provider="openrouter", model=CHAT, error_type="server_error", wait_s=30,
        started_at=datetime(2026, 11, 22, 11, 5, 7, tzinfo=UTC), reason="2 failures in a row",
    )  # fmt: skip
    history.record(opened, opened.model_copy(update={"tier": "GENERAL", "model": QWEN_72B}))
    yield history
    history.close()


@pytest.fixture(scope="module")
def ledger(history: History) -> str:
    return str(history.path)


def by(ledger: str, *keys: str, **options: Any) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of a report by their keys."""
    rows = performance_report(ledger, by=keys, **options).data()
    return {tuple(row[key] for key in keys): row for row in rows}


def picked(row: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def test_a_model_is_told_by_its_answers_retries_and_moves(ledger: str) -> None:
    chat = by(ledger, "model")[CHAT,]

    counts = picked(chat, "attempts", "succeeded_attempts", "failed_attempts", "requests")
    assert counts == (5, 2, 3, 3)
    assert picked(chat, "retries", "fallbacks") == (2, 1)
    assert picked(chat, "success_ratio", "retry_ratio", "fallback_ratio") == (2 / 5, 2 / 5, 1 / 3)
    assert picked(chat, "rate_limited_attempts", "timed_out_attempts", "in_doubt_attempts") == (1, 1, 1)


def test_latency_and_speed_are_those_of_answers(ledger: str) -> None:
    chat = by(ledger, "model")[CHAT,]

    assert picked(chat, "latency_ms_p50", "latency_ms_p95", "latency_ms_p99") == (1500, 1770, 1794)
    assert chat["tokens_per_s"] == 600 / 3.0
    assert picked(chat, "first_token_ms_p50", "first_token_ms_p95") == (None, None)  # nothing was streamed


def test_a_total_is_the_same_in_whatever_order_its_groups_come(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    for task, ms in (("analyze_page", 0.1), ("classify_bug", 0.2), ("format_ticket", 0.3)):
        history.play(f"""
            session=s-1 task={task}
                REASONING   ok   in=1 out=1 ms={ms}
        """)
    history.close()
    with reading(history.path, "UTC", False) as connection:
        tally = Tally(connection, ("task",), ALL_TIME)
        totals = [tally.total(groups)["timed_ms"] for groups in permutations(tally.sums())]

    assert totals == [0.6] * 6  # while 0.1 + 0.2 + 0.3 is 0.6000000000000001


@pytest.mark.parametrize(
    ("attempts", "times"),
    [
        (
            ("REASONING 503", "REASONING ok in=1 out=1", "FAST pending ceiling=0.5"),
            2,
        ),  # of the last: an answer
        (("REASONING 503", "REASONING timeout ceiling=0.01", "FAST ok in=1 out=1"), 1),
    ],
)
def test_requests_are_put_in_order_only_where_the_attempt_before_one_had_an_answer(
    attempts: tuple[str, ...], times: int, tmp_path: Path
) -> None:
    history = History(tmp_path / "ledger")
    history.play("session=s-1\n" + "\n".join(f"    {attempt}" for attempt in attempts))
    history.close()
    asked: list[str] = []

    class Asked:
        """A connection, and what it is asked."""

        def execute(self, sql: str, *parameters: Any) -> Any:
            asked.append(sql)
            return connection.execute(sql, *parameters)

        def __getattr__(self, name: str) -> Any:
            return getattr(connection, name)

    with reading(history.path, "UTC", False) as connection:
        groups = Tally(Asked(), ("tier",), ALL_TIME).sums()  # type: ignore[arg-type]

    assert sum("temp table corrections" in sql for sql in asked) == times
    counts = {group["tier"]: picked(group, "attempts", "retries", "requests") for group in groups}
    assert counts == {"REASONING": (2, 1, 1), "FAST": (1, 0, 1)}


@pytest.mark.parametrize("are_put_in_order", [False, True])
def test_attempts_follow_each_other_as_they_are_numbered_whatever_the_clock_says(
    are_put_in_order: bool, tmp_path: Path
) -> None:
    history = History(tmp_path / "ledger")
    history.play(f"""
        session=s-1
            REASONING   503   takes=-3600
            REASONING   ok    in=1 out=1  model=deepseek/deepseek-r1
        session=s-1
            REASONING   503   takes=-3600
            REASONING   {"ok in=1 out=1" if are_put_in_order else "503"}  takes=-3600
            FAST        pending   ceiling=0.5
    """)
    history.close()
    models = by(str(history.path), "model")

    figures = {name: picked(row, "attempts", "retries", "requests") for (name,), row in models.items()}
    assert figures == {CHAT: (3, 1, 2), "deepseek/deepseek-r1": (1, 1, 1), QWEN: (1, 0, 1)}


def test_money_is_exact_and_what_is_not_known_is_none(ledger: str) -> None:
    rows = by(ledger, "model")

    paid = CHAT_COST + DEARER + Decimal("0.002")
    assert picked(rows[CHAT,], "cost_usd", "failed_cost_usd") == (paid, Decimal("0.002"))
    assert rows[CHAT,]["cost_usd_per_success"] == paid / 2
    assert rows[QWEN,]["unpriced_attempts"] == 1
    assert rows[QWEN,]["cost_usd_per_success"] is None  # an answer of unknown price is among them
    assert by(ledger, "task")["format_ticket",]["success_ratio"] == 1.0  # the one in flight has no outcome


def test_a_request_counts_once_where_it_came_to(ledger: str) -> None:
    models, tasks = by(ledger, "model"), by(ledger, "task")

    assert [models[name,]["requests"] for name in (CHAT, QWEN)] == [3, 3]
    assert picked(tasks["analyze_page",], "requests", "attempts", "fallbacks", "fallback_ratio") == (
        2,
        4,
        1,
        0.5,
    )
    total = performance_report(ledger, by="model").total
    assert total
    assert picked(total, "requests", "attempts", "retries", "fallbacks") == (5, 8, 2, 1)


def test_a_retry_across_midnight_is_still_one(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play("""
        session=s-1 at=2026-11-22T23:59:59.5
            REASONING   503
            REASONING   ok   in=10 out=2
    """)
    days = by(str(history.path), "day")
    history.close()

    assert [picked(row, "attempts", "retries", "requests") for row in days.values()] == [(1, 0, 1), (1, 1, 1)]


def test_an_answer_that_another_attempt_follows_is_a_step_of_its_request(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play("""
        session=s-1
            REASONING   ok   in=10 out=2
            REASONING   ok   in=10 out=2
            FAST        ok   in=10 out=2
    """)
    models = by(str(history.path), "model")
    total = performance_report(history.path, by="model").total
    history.close()

    assert picked(models[CHAT,], "attempts", "retries", "requests") == (2, 1, 1)
    assert picked(models[QWEN,], "attempts", "retries", "requests") == (1, 0, 1)
    assert total
    assert picked(total, "attempts", "retries", "requests") == (3, 1, 1)


@pytest.mark.parametrize("is_answered", [False, True])
def test_a_tier_found_left_alone_counts_as_one_that_was_come_to(is_answered: bool, tmp_path: Path) -> None:
    from ledger.events import AttemptStarted, AttemptSucceeded, FallbackEngaged, RequestReceived

    history = History(tmp_path / "ledger")
    request: dict[str, Any] = {
        "request_id": "r-1", "session_id": "s-1", "task": "analyze_page", "requested_tier": "REASONING",
    }  # fmt: skip
    attempt = {
        **request,
        "tier": "FAST",
        "provider": "openrouter",
        "model": QWEN,
        "attempt_id": "a-1",
        "attempt_number": 1,
    }
    answered = AttemptSucceeded(
        **attempt, started_at=history.now, billing="billed", billing_rule="answered", stop_reason="end_turn"
    )
    history.record(
        RequestReceived(**request, max_tokens=5, message_count=1, prompt_bytes=9,
                        prompt_hash="0" * 32),
        FallbackEngaged(**request, from_tier="REASONING", to_tier="FAST", provider="openrouter", model=CHAT,
                        reason="circuit_open"),
        AttemptStarted(**attempt, max_tokens=5),
        *([answered] if is_answered else []),
    )  # fmt: skip
    models, tasks = by(str(history.path), "model"), by(str(history.path), "task")
    history.close()

    assert picked(models[CHAT,], "attempts", "requests", "fallbacks", "success_ratio") == (0, 1, 1, None)
    assert picked(models[QWEN,], "attempts", "succeeded_attempts") == (1, int(is_answered))
    assert picked(models[QWEN,], "requests", "retries") == (1, 0)
    assert picked(tasks["analyze_page",], "attempts", "requests", "fallback_ratio") == (1, 1, 1.0)


def test_an_attempt_whose_outcome_is_lost_keeps_its_place_after_a_tier_left_alone(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    request: dict[str, Any] = {
        "request_id": "r-1", "session_id": "s-1", "task": "analyze_page", "requested_tier": "REASONING",
    }  # fmt: skip
    events: list[Any] = [
        RequestReceived(**request, max_tokens=5, message_count=1, prompt_bytes=9, prompt_hash="0" * 32),
        FallbackEngaged(**request, from_tier="REASONING", to_tier="GENERAL", reason="circuit_open"),
    ]
    for number, tier in enumerate(("GENERAL", "GENERAL", "FAST"), start=1):
        provider, model = ROUTES[tier]
        attempt = {
            **request,
            "tier": tier,
            "provider": provider,
            "model": model,
            "attempt_id": f"a-{number}",
            "attempt_number": number,
        }
        failed = AttemptFailed(
            **attempt, started_at=history.now, billing="unbilled", billing_rule="error_status",
            error_type="server_error",
        )  # fmt: skip
        events += [AttemptStarted(**attempt, max_tokens=5), failed]
    history.record(*events, journal_id="f" * 32)
    journal = history.path / "journals" / f"{'f' * 32}.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if b'"seq":5,' not in line))  # a-1 has failed
    rows = by(str(history.path), "tier", allow_damage=True)
    history.close()

    assert picked(rows["GENERAL",], "attempts", "in_flight_attempts", "requests", "retries") == (2, 1, 1, 1)
    assert picked(rows["FAST",], "attempts", "requests", "retries") == (1, 1, 0)


def test_a_period_and_several_keys(ledger: str) -> None:
    late = Period(datetime(2026, 11, 23, tzinfo=UTC), None)
    rows = by(ledger, "task", "model", period=late)

    assert {keys: row["attempts"] for keys, row in rows.items()} == {
        ("classify_bug", CHAT): 2,
        ("format_ticket", QWEN): 2,
    }
    assert {row["provider"] for row in rows.values()} == {"openrouter"}
    assert {key: row["attempts"] for key, row in by(ledger, "tag:app").items()} == {("shop",): 1, (None,): 7}


def test_the_report_says_what_the_view_says(history: History) -> None:
    rows = by(str(history.path), "provider", "model")
    with connect(history.path) as connection:
        found = connection.execute("select * from model_performance").fetchall()
        names = [column[0] for column in connection.description or ()]
    views = {row[:2]: dict(zip(names, row, strict=True)) for row in found}

    # a model that was left alone and never asked is a row of the report alone
    assert rows.keys() - views.keys() == {("openrouter", QWEN_72B)}
    both = set(names) & set(next(iter(rows.values()))) - {"circuit_opened_at"}
    assert len(both) > 15
    for key, view in views.items():
        assert {name: rows[key][name] for name in both} == {name: view[name] for name in both}


def test_people_see_each_model_each_task_and_since_when_one_is_left_alone(
    ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["performance", "--ledger", ledger, "--tz", "Europe/Berlin"]) == 0
    shown = capsys.readouterr().out
    title, _, heading, _, chat, qwen, *_ = shown.splitlines()

    assert (title, heading) == ("Performance (Europe/Berlin)", "By model")
    assert chat.split()[:5] == [CHAT, "5", "40.0%", "40.0%", "33.3%"]
    assert chat.split()[-3:] == ["1", "2026-11-22", "12:05:07"]
    assert qwen.split()[-2:] == ["0", "-"]
    tasks = shown.partition("By task\n")[2].splitlines()
    assert [line.split()[0] for line in tasks] == [
        "Task",
        "analyze_page",
        "classify_bug",
        "format_ticket",
        "Total",
    ]


def test_programs_get_the_figures_as_they_are(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["performance", "--ledger", ledger, "--format", "json"]) == 0
    chat, qwen, alone = json.loads(capsys.readouterr().out)

    assert (chat["provider"], chat["model"], chat["attempts"]) == ("openrouter", CHAT, 5)
    assert chat["circuit_opened_at"] == "2026-11-22T11:05:07.000000Z"
    assert (chat["circuit_openings"], chat["circuit_open_s"]) == (1, None)
    assert chat["cost_usd_per_success"] == "0.001600000000"
    assert (qwen["circuit_openings"], qwen["circuit_opened_at"], qwen["cost_usd_per_success"]) == (
        0,
        None,
        None,
    )
    assert (alone["model"], alone["attempts"], alone["circuit_openings"]) == (QWEN_72B, 0, 1)


def test_a_ledger_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["performance", "--ledger", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# against the period before

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
A_DAY = Period(datetime(2026, 11, 23, 12, tzinfo=UTC))


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two days of thirty requests each: on the second REASONING is far slower, and FAST is as it was."""
    history = History(tmp_path_factory.mktemp("slower") / "ledger")
    for day, ms in ((22, 1000), (23, 3000)):
        for number in range(30):
            history.play(f"""
                session=s-{day} task=analyze_page at=2026-11-{day}T12:{number:02}:00
                    REASONING   ok   in=100 out=20 ms={ms + number * 10}
                session=s-{day} task=format_ticket
                    FAST        {"503" if number % 5 == 0 else "ok in=100 out=20 ms=500"}
            """)
    history.play("""
        session=s-24 task=extract_forms at=2026-11-23T12:00:00
            GENERAL   ok   in=100 out=20 ms=10
    """)
    yield str(history.path)
    history.close()


def test_what_chance_hardly_explains_is_marked_and_nothing_else(slower: str) -> None:
    changes = comparison_report(slower, period=A_DAY, now=NOON).changes
    chat, fast = changes["openrouter", CHAT], changes["openrouter", QWEN]

    latency = chat["latency_ms_p50"]
    assert (latency.before, latency.now, latency.difference, latency.excludes_zero) == (
        1145,
        3145,
        2000,
        True,
    )
    assert 1900 < latency.low < 2000 < latency.high < 2100
    assert chat["tokens_per_s"].excludes_zero
    assert chat["success_ratio"].excludes_zero is False
    assert fast["success_ratio"].difference == 0
    assert fast["success_ratio"].low < 0 < fast["success_ratio"].high
    assert not any(change.excludes_zero for change in fast.values())


def test_differences_of_money_are_exact(slower: str) -> None:
    cost = comparison_report(slower, period=A_DAY, now=NOON).changes["openrouter", CHAT][
        "cost_usd_per_success"
    ]

    assert (cost.before, cost.now, cost.difference) == (Decimal("0.000049"), Decimal("0.000049"), Decimal(0))
    assert (cost.low, cost.high, cost.excludes_zero) == (Decimal(0), Decimal(0), False)
    assert isinstance(cost.low, Decimal)


def test_of_what_is_new_or_rare_nothing_is_claimed(slower: str) -> None:
    new = comparison_report(slower, period=A_DAY, now=NOON).changes["openrouter", QWEN_72B]

    assert (new["attempts"].now, new["attempts"].before) == (1, None)
    assert {change.excludes_zero for change in new.values()} == {None}


def test_the_same_question_has_the_same_answer(slower: str) -> None:
    first, second = (comparison_report(slower, by="task", period=A_DAY, now=NOON).data() for _ in range(2))
    assert first == second
    assert (first["previous_since"], first["previous_until"]) == (
        datetime(2026, 11, 22, 12, tzinfo=UTC),
        A_DAY.since,
    )


def test_a_comparison_in_each_format(slower: str, capsys: pytest.CaptureFixture[str]) -> None:
    days = ["--since", "2026-11-23T12:00", "--until", "2026-11-24T12:00", "--compare", "previous"]
    written = {}
    for format in ("table", "json", "csv", "markdown"):
        assert main(["performance", "--ledger", slower, *days, "--format", format]) == 0
        written[format] = capsys.readouterr().out

    (p50,) = [line for line in written["table"].splitlines() if line.split()[:2] == ["ms", "p50"]][:1]
    assert p50.split()[2:5] == ["1,145", "3,145", "+2,000"]
    assert p50.endswith("  *")
    assert "bootstrap interval excludes zero" in written["markdown"]
    rows = list(csv.DictReader(written["csv"].splitlines()))
    assert {row["figure"] for row in rows if row["model"] == CHAT} >= {"latency_ms_p99", "failed_cost_usd"}
    chat = next(row for row in json.loads(written["json"])["rows"] if row["model"] == CHAT)
    assert chat["latency_ms_p50"]["excludes_zero"] is True
    assert chat["cost_usd_per_success"]["difference"] == "0.000000000000"


def test_where_nothing_was_asked_before_a_comparison_says_so(
    slower: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ["--since", "2026-11-22", "--until", "2026-11-25", "--compare", "previous"]
    assert main(["performance", "--ledger", slower, *first]) == 0
    title, _, model, heads, *_ = capsys.readouterr().out.splitlines()
    assert title == (
        "Performance from 2026-11-22 00:00 until 2026-11-25 00:00 (UTC);"
        " nothing was asked in the same length of time before"
    )
    assert (model, heads.split()) == (CHAT, ["Figure", "Now"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no model was asked until 2020-01-01 00:00 (Europe/Berlin)"),
        (
            ["--since", "2019-12-31", "--compare", "previous"],
            "nothing was asked from 2019-12-31 00:00 until 2020-01-01 00:00 (Europe/Berlin),"
            " nor in the same length of time before",
        ),
    ],
)
def test_where_there_is_nothing_a_line_says_so_and_no_table_is_headed(
    words: list[str], told: str, slower: str, capsys: pytest.CaptureFixture[str]
) -> None:
    within = ["--until", "2020-01-01", "--tz", "Europe/Berlin", *words]
    assert main(["performance", "--ledger", slower, *within]) == 0
    title, *rest = capsys.readouterr().out.splitlines()
    assert title.startswith("Performance ")
    assert rest == ["", told]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "previous"], "--compare previous needs to know since when"),
        (["--compare", "previos", "--last", "7d"], "--compare knows no 'previos'; did you mean previous?"),
        (
            ["--compare", "previous", "--since", "2100-01-01"],
            "--compare previous needs a period that has begun",
        ),
        (
            ["--compare", "previous", "--since", "0002-01-01"],
            "--compare previous reaches back before the year 1",
        ),
    ],
)
def test_a_comparison_that_cannot_be_meant(
    arguments: list[str], message: str, slower: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["performance", "--ledger", slower, *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"bughive-costs: {message}")


# intervals, held against what theory says of them


def test_the_interval_of_a_ratio_is_as_wide_as_that_of_a_binomial() -> None:
    half = Ratio([10] * 50 + [0] * 50, [10] * 100, 1000)  # answers in blocks that are all or nothing
    found = interval(half, half)

    assert found
    width = 2 * 1.96 * (2 * 0.25 / 100) ** 0.5  # 100 blocks of 0 or 1 on either side
    assert found.high - found.low == pytest.approx(width, rel=0.15)
    assert not found.excludes_zero


def test_the_interval_of_a_quantile_is_as_wide_as_order_statistics_have_it() -> None:
    even = Quantile(0.5, [point / 1000 for point in range(1001)], 400)  # uniform on 0..1
    found = interval(even, even)

    assert found
    assert found.high - found.low == pytest.approx(2 * 1.96 * (2 * 0.25 / 400) ** 0.5, rel=0.15)


def test_few_observations_make_no_interval() -> None:
    assert interval(Ratio([9], [9], 9), Ratio([0], [90], 90)) is None
    assert interval(Ratio([0] * 100, [0] * 100, 50), Ratio([0] * 100, [0] * 100, 50)) is None


def test_a_period_before_without_a_beginning_is_refused(slower: str) -> None:
    with pytest.raises(UsageError, match="--last or --since"):
        comparison_report(slower, period=Period(None, NOON), now=NOON)


def test_percentiles_of_all_are_those_of_all_answers_together(slower: str) -> None:
    total = performance_report(slower).total
    with connect(slower) as connection:
        (row,) = connection.execute(
            "select quantile_cont(latency_ms, [0.5, 0.95, 0.99]) from attempts where outcome = 'succeeded'"
        ).fetchall()

    assert total
    assert list(picked(total, "latency_ms_p50", "latency_ms_p95", "latency_ms_p99")) == row[0]
