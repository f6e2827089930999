"""The spend report: its figures, its keys and its periods, on histories that can be added up by hand."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from played import History

from ledger.errors import NoSuchSession
from reports.keys import KEYS
from reports.options import Period, UsageError, period
from reports.render import FORMATS, write
from reports.sessions import sessions_report
from reports.spend import Spend, spend_report

CRAWL = """
    session=crawl_1 task=analyze_page tags={"app":"shop"} at=2026-11-22T22:30:00
        REASONING      429
        REASONING      timeout   ceiling=0.01
        FAST           ok        in=1000 out=200
    session=crawl_1 task=plan_crawl_strategy at=2026-11-22T23:30:00
        ORCHESTRATOR   ok        in=100 cached=2000 out=50 reasoning=10 list=0.00825 billed=0.008
    session=crawl_1 task=format_ticket at=2026-11-23T00:30:00
        FAST           denied
    session=crawl_1 task=format_ticket
        FAST           ok        in=5 out=5 list=none
    session=crawl_1 task=format_ticket
        FAST           503
    session=crawl_2 task=extract_forms tags={"app":"blog"} at=2026-11-24T12:00:00
        GENERAL        ok        in=500 out=90
    at=2026-11-24T13:00:00
        CODING         pending   ceiling=0.5
"""
FAST_COST = Decimal("0.000108")  # 1000 × 0.06 + 200 × 0.24 per million
GENERAL_COST = Decimal("0.000129")  # 500 × 0.15 + 90 × 0.60 per million


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    history = History(tmp_path_factory.mktemp("spend") / "ledger")
    history.play(CRAWL)
    yield history.path
    history.close()


@cache
def all_by(ledger: Path, by: str) -> Spend:
    """What was spent in all by a key: of a ledger that stays as it is."""
    return spend_report(ledger, by=by)


def test_the_report_of_a_session(ledger: Path) -> None:
    report = spend_report(ledger, session_id="crawl_1").data()

    tiers = report.pop("by_tier")
    models = report.pop("by_model")
    assert report == {
        "session_id": "crawl_1",
        "cost_usd": Decimal("0.008") + FAST_COST,
        "list_cost_usd": Decimal("0.00825") + FAST_COST,
        "requests": 5,
        "succeeded_requests": 3,
        "failed_requests": 1,
        "denied_requests": 1,
        "open_requests": 0,
        "attempts": 6,
        "failed_attempts": 3,
        "fallbacks": 1,
        "input_tokens": 3105,
        "cache_read_tokens": 2000,
        "cache_write_tokens": 0,
        "output_tokens": 255,
        "reasoning_tokens": 10,
        "billed_attempts": 3,
        "unbilled_attempts": 2,
        "unpriced_attempts": 1,
        "unlisted_attempts": 1,
        "broken_ceilings": 0,
        "unmetered_attempts": 1,
        "unpriced": {"attempts": 1, "ceiling_usd": None},
        "in_doubt": {"attempts": 1, "ceiling_usd": Decimal("0.01")},
        "in_flight": {"attempts": 0, "ceiling_usd": Decimal(0)},
        "first_at": "2026-11-22T22:30:00.000000Z",
        "last_at": "2026-11-23T00:30:21.000000Z",
    }
    names = ("tier", "requests", "attempts", "cost_usd", "input_tokens", "output_tokens")
    assert [tuple(row[name] for name in names) for row in tiers] == [
        ("ORCHESTRATOR", 1, 1, Decimal("0.008"), 2100, 50),
        ("REASONING", 0, 2, Decimal(0), 0, 0),
        ("FAST", 4, 3, FAST_COST, 1005, 205),
    ]
    assert [(row["model"], row["provider"], row["requests"]) for row in models] == [
        ("anthropic/claude-opus-4-5-20250514", "anthropic", 1),
        ("qwen/qwen-2.5-32b-instruct", "openrouter", 4),
        ("deepseek/deepseek-chat", "openrouter", 0),
    ]


def test_the_report_of_all_sessions(ledger: Path) -> None:
    report = spend_report(ledger).data()

    assert report["session_id"] is None
    assert report["cost_usd"] == Decimal("0.008") + FAST_COST + GENERAL_COST
    assert report["requests"] == 7
    assert report["open_requests"] == 1
    assert report["in_flight"] == {"attempts": 1, "ceiling_usd": Decimal("0.5")}


def test_attempts_whose_tokens_nobody_told_are_said_to_be_missing_from_them(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play("""
        session=s-1
            FAST   429
            FAST   timeout   ceiling=0.01
            FAST   ok        in=1000 out=200
        session=s-1
            FAST   pending   ceiling=0.01
    """)
    report = spend_report(history.path, session_id="s-1")
    history.close()
    facts = {fact.label: fact for fact in report.document().facts}

    assert report.data()["unmetered_attempts"] == 1  # not what was refused or is in flight
    assert (facts["Unmetered"].value, facts["Unmetered"].note[:26]) == ("1", "attempts not in the tokens")
    assert facts["In flight"].note.endswith("bughive-costs recover ends those of dead programs")


def test_a_list_cost_says_how_many_attempts_it_lacks(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play("""
        session=s-1
            FAST   ok   in=1000 out=200
        session=s-1
            FAST   ok   in=10 cached=900 out=20 list=none billed=0.00001
    """)
    report = spend_report(history.path, session_id="s-1")
    assert report.data()["cost_usd"] == FAST_COST + Decimal("0.00001")
    assert report.document().facts[0].note == "at list prices $0.000108 without 1 attempt that has none"
    history.close()


VERDICTS = """
    session=s-1
        FAST        429
        FAST        refused
        FAST        ok        in=1000 out=200
    session=s-1
        FAST        timeout   ceiling=0.5
        REASONING   ok        in=10 list=none ceiling=0.25
    session=s-1
        FAST        pending   ceiling=0.125
"""


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    history = History(tmp_path_factory.mktemp("verdicts") / "ledger")
    history.play(VERDICTS)
    yield history.path
    history.close()


def written(path: Path, format: str) -> str:
    out = io.StringIO()
    write(spend_report(path, session_id="s-1"), format, out)
    return out.getvalue()


def test_what_was_spent_what_was_not_and_what_is_in_doubt_add_up_to_all_attempts(verdicts: Path) -> None:
    report = spend_report(verdicts, session_id="s-1").data()

    assert report["cost_usd"] == FAST_COST
    assert (report["billed_attempts"], report["unbilled_attempts"]) == (2, 2)
    assert report["unpriced"] == {"attempts": 1, "ceiling_usd": Decimal("0.25")}
    assert report["in_doubt"] == {"attempts": 1, "ceiling_usd": Decimal("0.5")}
    assert report["in_flight"] == {"attempts": 1, "ceiling_usd": Decimal("0.125")}
    assert report["attempts"] == 2 + 2 + 1 + 1


def test_every_format_says_what_was_spent_what_was_not_and_what_is_in_doubt(verdicts: Path) -> None:
    facts = [" ".join(line.split()) for line in written(verdicts, "table").splitlines()]
    assert "Cost $0.000108 at list prices $0.000108 without 1 attempt that has none" in facts
    assert "Unbilled 2 attempts that cost nothing" in facts
    assert "Unpriced 1 attempts not in the cost, at most $0.250000" in facts
    assert "In doubt 1 attempts not in the cost, at most $0.500000" in facts

    markdown = written(verdicts, "markdown").splitlines()
    assert "| Unbilled | 2 | attempts that cost nothing |" in markdown
    assert "| In doubt | 1 | attempts not in the cost, at most $0.500000 |" in markdown

    rows = {row["tier"]: row for row in csv.DictReader(written(verdicts, "csv").splitlines())}
    assert {name: rows["FAST"][name] for name in rows["FAST"] if "bill" in name or "doubt" in name} == {
        "billed_attempts": "1",
        "unbilled_attempts": "2",
        "in_doubt_attempts": "1",
        "in_doubt_ceiling_usd": "0.500000000000",
    }
    assert rows["REASONING"]["unpriced_ceiling_usd"] == "0.250000000000"
    assert rows["REASONING"]["cost_usd"] == ""

    data = json.loads(written(verdicts, "json"))
    assert (data["cost_usd"], data["unbilled_attempts"]) == ("0.000108000000", 2)
    assert data["in_doubt"] == {"attempts": 1, "ceiling_usd": "0.500000000000"}
    assert data["by_tier"][1]["in_doubt_ceiling_usd"] == "0.500000000000"


def test_an_empty_ledger_has_cost_nothing(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    report = spend_report(history.path).data()
    history.close()

    assert report["cost_usd"] == Decimal(0)
    assert report["requests"] == report["attempts"] == 0
    assert report["by_tier"] == []
    assert report["first_at"] is None


def test_a_ceiling_that_is_not_known_leaves_the_sum_of_ceilings_unknown(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play("""
        session=s-1
            FAST   timeout   ceiling=0.5
            FAST   timeout
    """)
    report = spend_report(history.path).data()
    history.close()

    assert report["in_doubt"] == {"attempts": 2, "ceiling_usd": None}
    assert report["cost_usd"] is None


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        (
            "tier",
            [
                ("ORCHESTRATOR", 1, 1),
                ("REASONING", 0, 2),
                ("CODING", 1, 1),
                ("GENERAL", 1, 1),
                ("FAST", 4, 3),
            ],
        ),
        (
            "model",
            [
                ("anthropic/claude-opus-4-5-20250514", 1, 1),
                ("qwen/qwen-2.5-72b-instruct", 1, 1),
                ("qwen/qwen-2.5-32b-instruct", 4, 3),
                ("deepseek/deepseek-chat", 0, 2),
                ("deepseek/deepseek-coder", 1, 1),
            ],
        ),
        (
            "task",
            [
                ("plan_crawl_strategy", 1, 1),
                ("extract_forms", 1, 1),
                ("analyze_page", 2, 4),
                ("format_ticket", 3, 2),
            ],
        ),
        ("provider", [("anthropic", 1, 1), ("openrouter", 6, 7)]),
        ("session", [("crawl_1", 5, 6), ("crawl_2", 1, 1), (None, 1, 1)]),
        ("day", [("2026-11-22", 2, 4), ("2026-11-23", 3, 2), ("2026-11-24", 2, 2)]),
        (
            "hour",
            [
                ("2026-11-22T22:00Z", 1, 3),
                ("2026-11-22T23:00Z", 1, 1),
                ("2026-11-23T00:00Z", 3, 2),
                ("2026-11-24T12:00Z", 1, 1),
                ("2026-11-24T13:00Z", 1, 1),
            ],
        ),
        ("tag:app", [(None, 5, 4), ("blog", 1, 1), ("shop", 1, 3)]),
        ("tag:it's", [(None, 7, 8)]),
    ],
)
def test_by_each_key(by: str, expected: list[tuple[Any, ...]], ledger: Path) -> None:
    report = all_by(ledger, by).data()

    assert [(row[by], row["requests"], row["attempts"]) for row in report["rows"]] == expected
    assert sum(row["cost_usd"] or 0 for row in report["rows"]) == report["cost_usd"]


def test_by_several_keys_rows_of_one_value_stand_together(ledger: Path) -> None:
    report = spend_report(ledger, by=["day", "tier,model"]).data()

    assert report["by"] == ["day", "tier", "model"]
    assert [(row["day"], row["tier"], row["attempts"]) for row in report["rows"]] == [
        ("2026-11-22", "ORCHESTRATOR", 1),
        ("2026-11-22", "REASONING", 2),
        ("2026-11-22", "FAST", 1),
        ("2026-11-23", "FAST", 2),
        ("2026-11-24", "CODING", 1),
        ("2026-11-24", "GENERAL", 1),
    ]
    assert {row["provider"] for row in report["rows"]} == {"anthropic", "openrouter"}
    assert sum(row["cost_usd"] or 0 for row in report["rows"]) == report["cost_usd"]


def test_keys_that_come_first_are_ranked_by_all_that_is_theirs(ledger: Path) -> None:
    report = spend_report(ledger, by="task,session").data()

    assert [(row["task"], row["session"]) for row in report["rows"]] == [
        ("plan_crawl_strategy", "crawl_1"),
        ("extract_forms", "crawl_2"),
        ("analyze_page", "crawl_1"),
        ("analyze_page", None),
        ("format_ticket", "crawl_1"),
    ]


@pytest.mark.parametrize("by", ["model", "provider,model", "model,provider", "hour", "task,tag:app"])
def test_every_format_knows_every_key(by: str, ledger: Path) -> None:
    report = all_by(ledger, by)
    for format in FORMATS:
        out = io.StringIO()
        write(report, format, out)
        assert out.getvalue()


def test_shares_are_of_the_cost_in_all(ledger: Path) -> None:
    rows = all_by(ledger, "session").table().rows

    whole = Decimal("0.008") + FAST_COST + GENERAL_COST
    assert rows[0]["cost_share"] == float((Decimal("0.008") + FAST_COST) / whole)
    assert rows[-1]["cost_share"] is None  # its cost is not known
    assert spend_report(ledger, session_id="crawl_2", by="task").table().rows[0]["cost_share"] == 1.0


def test_a_key_given_twice_is_refused(ledger: Path) -> None:
    with pytest.raises(UsageError, match="--by names tier twice"):
        spend_report(ledger, by=["tier,model", "tier"])


def test_days_begin_at_midnight_in_the_zone_asked_for(ledger: Path) -> None:
    berlin = spend_report(ledger, by="day", tz="Europe/Berlin").data()
    nepal = spend_report(ledger, by="hour", tz="Asia/Kathmandu").data()

    assert [(row["day"], row["requests"]) for row in berlin["rows"]] == [
        ("2026-11-22", 1),
        ("2026-11-23", 4),
        ("2026-11-24", 2),
    ]
    assert berlin["first_at"] == "2026-11-22T23:30:00.000000+01:00"
    assert nepal["rows"][0]["hour"] == "2026-11-23T04:00+05:45"


def test_a_session_that_is_not_there_names_the_nearest(ledger: Path) -> None:
    with pytest.raises(NoSuchSession, match=r"no session 'crawl_3' in .*; did you mean crawl_1 or crawl_2\?"):
        spend_report(ledger, session_id="crawl_3")
    with pytest.raises(NoSuchSession, match=r"no session 'xyz' in .*; see bughive-costs sessions$"):
        spend_report(ledger, session_id="xyz")


@pytest.mark.parametrize("by", ["teir", "tag:", "tag", "cost", ""])
def test_an_unknown_key_is_refused(by: str, ledger: Path) -> None:
    with pytest.raises(UsageError, match="--by knows no"):
        spend_report(ledger, by=by)


def test_a_period_is_half_open(ledger: Path) -> None:
    def requests(since: datetime | None, until: datetime | None) -> int:
        return int(spend_report(ledger, period=Period(since, until)).data()["requests"])

    first = datetime(2026, 11, 22, 22, 30, tzinfo=UTC)
    second = datetime(2026, 11, 22, 23, 30, tzinfo=UTC)
    assert requests(first, second) == 1
    assert requests(first, first) == 0
    assert requests(None, first) == 0
    assert requests(second, None) == 6


_moments = st.integers(0, 40 * 60).map(
    lambda minutes: datetime(2026, 11, 22, 22, tzinfo=UTC) + timedelta(minutes=minutes)
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=_moments, second=_moments, by=st.sampled_from([*KEYS, "tag:app"]))
def test_adjacent_periods_add_up_to_the_whole(
    first: datetime, second: datetime, by: str, ledger: Path
) -> None:
    early, late = sorted((first, second))
    parts = [
        spend_report(ledger, period=within, by=by).data()
        for within in (Period(None, early), Period(early, late), Period(late, None))
    ]
    whole = all_by(ledger, by).data()

    for name in ("requests", "attempts", "failed_attempts", "fallbacks", "input_tokens", "unpriced_attempts"):
        assert sum(part[name] for part in parts) == whole[name]
        if name != "fallbacks":
            assert sum(row[name] for part in parts for row in part["rows"]) == whole[name]
    assert sum(part["cost_usd"] or 0 for part in parts) == whole["cost_usd"]
    assert sum(part["in_doubt"]["attempts"] for part in parts) == whole["in_doubt"]["attempts"]


# what may be asked for

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("since", "until", "last", "tz", "expected"),
    [
        (None, None, None, "UTC", Period()),
        ("2026-11-22", "2026-11-23", None, "UTC", Period(utc(2026, 11, 22), utc(2026, 11, 23))),
        ("2026-11-22", None, None, "Europe/Berlin", Period(utc(2026, 11, 21, 23))),
        ("2026-07-22", None, None, "Europe/Berlin", Period(utc(2026, 7, 21, 22))),
        (None, "2026-11-22T10:30", None, "Asia/Kathmandu", Period(None, utc(2026, 11, 22, 4, 45))),
        ("2026-11-22T10:30+02:00", None, None, "Asia/Kathmandu", Period(utc(2026, 11, 22, 8, 30))),
        ("2026-11-22T10:30Z", None, None, "UTC", Period(utc(2026, 11, 22, 10, 30))),
        (None, None, "7d", "UTC", Period(utc(2026, 11, 18, 12))),
        (None, None, "30m", "UTC", Period(utc(2026, 11, 25, 11, 30))),
        (None, None, "24h", "UTC", Period(utc(2026, 11, 24, 12))),
        (None, None, "2w", "UTC", Period(utc(2026, 11, 11, 12))),
        (None, None, "mtd", "UTC", Period(utc(2026, 11, 1))),
        (None, None, "mtd", "Europe/Berlin", Period(utc(2026, 10, 31, 23))),
    ],
)  # fmt: skip
def test_what_a_period_means(
    since: str | None, until: str | None, last: str | None, tz: str, expected: Period
) -> None:
    assert period(since, until, last, tz, NOW) == expected


@pytest.mark.parametrize(
    ("since", "until", "last", "tz", "message"),
    [
        ("2026-02-30", None, None, "UTC", r"--since '2026-02-30' is no date or moment"),
        (None, "yesterday", None, "UTC", r"--until 'yesterday' is no date or moment"),
        ("", None, None, "UTC", r"--since '' is no date"),
        ("0001-01-01", None, None, "Asia/Tokyo", r"--since '0001-01-01' is no date"),
        ("2026-11-23", "2026-11-22", None, "UTC", r"nothing lies between --since 2026-11-23"),
        ("2026-11-22", None, "7d", "UTC", r"--last goes without"),
        (None, None, "7", "UTC", r"--last '7' is no span of time"),
        (None, None, "MTD", "UTC", r"--last 'MTD' is no span of time"),
        (None, None, "0d", "UTC", r"--last '0d' is no span of time"),
        (None, None, "-7d", "UTC", r"--last '-7d' is no span of time"),
        (None, None, "99999999w", "UTC", r"--last 99999999w reaches back"),
        (None, None, "999999999999999999w", "UTC", r"--last 999999999999999999w reaches back"),
        (None, None, None, "Europe/Berln", r"no time zone 'Europe/Berln'; did you mean Europe/Berlin"),
    ],
)  # fmt: skip
def test_what_a_period_cannot_mean(
    since: str | None, until: str | None, last: str | None, tz: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        period(since, until, last, tz, NOW)


def test_sessions_and_report_say_the_same_of_a_ledger_without_a_price(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play("""
        session=s-1
            FAST   denied
        session=s-2
            FAST   timeout   ceiling=0.01
    """)
    totals = spend_report(history.path).total, sessions_report(history.path).total
    history.close()

    assert [total["cost_usd"] for total in totals] == [None, None]
