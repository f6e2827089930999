"""Views are sums: what a report asks of a whole ledger is added up as it is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from played import History

from ledger.reader import connect
from ledger.relations import Holds, statements

REQUESTS = 30


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty requests of two attempts each in one session, and one that is open; sealed."""
    history = History(tmp_path_factory.mktemp("sums") / "ledger")
    for _ in range(REQUESTS):
        history.play("""
            session=s-1 at=2026-11-22T10:00:00
                REASONING   503
                FAST        ok   in=1000 out=200
        """)
    history.play("""
        session=s-1 at=2026-11-22T11:00:00
            REASONING   pending   ceiling=0.5
    """)
    history.ledger.seal()
    history.close()
    return history.path


def operators(connection: duckdb.DuckDBPyConnection, sql: str) -> Iterator[dict[str, Any]]:
    """What DuckDB does for a query, each step with the rows it gave."""
    ((_, plan),) = connection.execute(f"explain (analyze, format json) {sql}").fetchall()
    steps = list(json.loads(plan)["operator"])
    while steps:
        step = steps.pop()
        steps += step.get("children", [])
        yield step


@pytest.mark.parametrize("view", ["sessions", "tier_breakdown", "daily_spend"])
def test_nothing_is_grouped_by_request_or_attempt_on_the_way_to_a_sum(view: str, sealed: Path) -> None:
    with connect(sealed, views=(view,)) as connection:
        steps = list(operators(connection, f"select * from {view}"))
    grouped = [step["intermediate_rows"] for step in steps if "GROUP_BY" in str(step["type"])]

    assert grouped
    assert max(grouped) < REQUESTS, grouped


def test_attempts_are_read_without_their_beginnings_where_nobody_asks_for_ceilings(sealed: Path) -> None:
    def starts_read(columns: str) -> bool:
        steps = operators(connection, f"select {columns} from attempts")
        return any("attempt_started" in str(step.get("extra_info", {}).get("Filters")) for step in steps)

    with connect(sealed, views=("attempts",)) as connection:
        rows = connection.execute("select count(*), count(reserved_usd) from attempts").fetchall()
        assert starts_read("sum(reserved_usd)")
        assert not starts_read("sum(cost_usd), sum(input_tokens), min(started_at)")
    assert rows == [(2 * REQUESTS + 1, 1)]


def test_answers_are_a_row_group_of_their_own_and_ends_lie_together(sealed: Path) -> None:
    (segment, *_) = sorted(sealed.glob("events/date=2026*/*.parquet"))
    with pq.ParquetFile(segment) as file:
        kinds = [
            file.read_row_group(number, ["event_type"])["event_type"].to_pylist()
            for number in range(file.num_row_groups)
        ]

    assert len(kinds) == 3
    assert set(kinds[0]) == {"attempt_succeeded"}
    assert {"attempt_failed", "fallback_engaged", "journal_opened"} <= set(kinds[1])
    assert set(kinds[2][:-REQUESTS]) == {"request_received", "attempt_started"}
    assert kinds[2][-REQUESTS:] == ["request_completed"] * REQUESTS


@pytest.mark.parametrize(
    ("of_an_answer", "of_a_failure", "is_read"),
    [
        ("", "", False),
        ("", "settle=0.003", False),
        ("settle=0.002", "", True),
        ("settle=0.002", "settle=0.003", True),
    ],
)
def test_ids_of_answers_are_read_only_where_one_is_settled(
    of_an_answer: str,
    of_a_failure: str,
    is_read: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ledger.reader._MANY_EVENTS", 1)
    history = History(tmp_path / "ledger")
    history.play(f"""
        session=s-1
            REASONING   timeout   ceiling=0.01 {of_a_failure}
            REASONING   ok        in=1000 out=200 billed=0.0005 {of_an_answer}
        session=s-1
            FAST        ok        in=1000 out=200 billed=0.0005
            FAST        pending   ceiling=0.01
    """)
    history.ledger.seal()
    sums = "select sum(cost_usd), count(*), count(*) filter (where is_settled) from attempts"
    with connect(history.path, views=("attempts",)) as connection:
        row = connection.execute(sums).fetchone()
        steps = list(operators(connection, "select sum(cost_usd) from attempts"))
    history.close()

    settled = [Decimal(word.partition("=")[2]) for word in (of_an_answer, of_a_failure) if word]
    assert row == (Decimal("0.001") + sum(settled), 4, len(settled))
    scans = [step["extra_info"] for step in steps if step["type"] == "TABLE_SCAN"]
    of_answers = [
        "attempt_id" in scan["Projections"]
        for scan in scans
        if "billing IS NOT NULL" in str(scan.get("Filters"))
        and "event_type != 'attempt_succeeded'" not in str(scan["Filters"])
    ]
    assert set(of_answers) == {is_read}


@pytest.mark.parametrize("is_sealed", [False, True], ids=["in its journal", "in a segment too"])
def test_what_is_in_flight_is_looked_for_in_segments_of_its_journal_alone(
    is_sealed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_closed = History(tmp_path / "ledger")
    for _ in range(2):  # two segments
        of_closed.play("""
            session=s-1
                FAST   ok   in=1000 out=200
        """)
        of_closed.ledger.seal()
    of_closed.close()
    history = History(tmp_path / "ledger")
    history.ledger.seal()
    history.play("""
        id=r-open
            REASONING   pending   ceiling=0.5
    """)
    segments = 3  # the last one has the closing of the first journal
    if is_sealed:
        history.ledger.seal()
        segments += 1
    history.play("""
        id=r-later
            FAST        timeout   ceiling=0.25
            FAST        pending   ceiling=0.25
    """)
    asked = (
        "select request_id, attempt_number, outcome, started_at, reserved_usd from attempts order by all",
        "select request_id, status, tier, model, started_at from requests order by all",
        "select * from in_doubt order by all",
    )
    told = [history.rows(sql) for sql in asked]

    monkeypatch.setattr("ledger.reader._MANY_EVENTS", 1)
    of_many = [history.rows(sql) for sql in asked]
    with connect(history.path) as connection:
        ((opened, in_all),) = connection.execute(
            "select getvariable('ledger_unfinished_segments'), len(getvariable('ledger_segments'))"
        ).fetchall()
        unfinished = connection.execute("select distinct request_id from ledger_open order by 1").fetchall()
    history.close()

    assert of_many == told
    assert unfinished == [("r-later",), ("r-open",)]
    assert (len(opened), in_all) == (1 if is_sealed else 0, segments)
    (made,) = (
        sql for sql in statements(("attempts",), Holds(many_events=True)) if "table ledger_open" in sql
    )
    assert "with events as (" in made  # those segments alone, in place of the view over all
