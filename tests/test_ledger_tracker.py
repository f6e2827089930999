"""What a program asks of its tracker: figures, and the summary as text."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from played import History

from ledger import CostTracker, Ledger
from ledger.errors import LedgerError


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    history = History(tmp_path / "ledger")
    yield history
    history.close()


def test_the_summary_of_a_session(history: History) -> None:
    history.play("""
        session=session_123
            FAST           ok    in=421 out=134
        session=session_123
            REASONING      503
            REASONING      ok    in=1000 out=300
        session=session_123
            REASONING      ok    in=500 out=200
        session=session_123
            REASONING      ok    in=500 out=100 billed=0.0003
        session=session_123
            ORCHESTRATOR   ok    in=1000 out=500
        session=another
            CODING         ok    in=1000 out=500
    """)

    # 0.0525 + (0.0006 + 0.000355 + 0.0003) + (421 × 0.06 + 134 × 0.24 per million)
    assert CostTracker(history.path).get_cost_summary("session_123") == (
        "Session session_123 Cost Summary:\n"
        "  Total Cost: $0.0538\n"
        "  Total Requests: 5\n"
        "  Input Tokens: 3,421\n"
        "  Output Tokens: 1,234\n"
        "\n"
        "Model Breakdown:\n"
        "  ORCHESTRATOR: $0.0525 (1 requests, 1000 in, 500 out)\n"
        "  REASONING: $0.0013 (3 requests, 2000 in, 600 out)\n"
        "  FAST: $0.000057 (1 requests, 421 in, 134 out)"
    )


def test_the_summary_of_all_sessions_and_of_none(history: History) -> None:
    with CostTracker(history.path) as tracker:
        assert tracker.get_cost_summary() == (
            "All Sessions Cost Summary:\n"
            "  Total Cost: $0.0000\n"
            "  Total Requests: 0\n"
            "  Input Tokens: 0\n"
            "  Output Tokens: 0\n"
            "\n"
            "Model Breakdown:"
        )
        history.play("""
            session=s-1
                FAST   ok   in=1000000 out=0
            session=s-2
                FAST   ok   in=1000000 out=0
        """)
        assert tracker.get_cost_summary().splitlines()[:2] == [
            "All Sessions Cost Summary:",
            "  Total Cost: $0.1200",
        ]
        assert tracker.get_cost_summary().endswith("\n  FAST: $0.1200 (2 requests, 2000000 in, 0 out)")


def test_what_has_no_price_is_said_and_never_shown_as_nothing(
    history: History, caplog: pytest.LogCaptureFixture
) -> None:
    history.play("""
        session=s-1
            REASONING   ok    in=1000 out=200
        session=s-1
            FAST        ok    in=1000 out=200 list=none
        session=s-1
            CODING      timeout
    """)
    tracker = CostTracker(history.path)

    with caplog.at_level(logging.WARNING, logger="ledger"):
        assert tracker.get_session_cost("s-1") == Decimal("0.00049")
    assert "session s-1: 1 attempts have no price" in caplog.text
    assert tracker.get_cost_summary("s-1").splitlines() == [
        "Session s-1 Cost Summary:",
        "  Total Cost: $0.00049",
        "  Total Requests: 3",
        "  Input Tokens: 2,000",
        "  Output Tokens: 400",
        "  Unpriced Attempts: 1",
        "",
        "Model Breakdown:",
        "  REASONING: $0.00049 (1 requests, 1000 in, 200 out)",
        "  CODING: unknown (1 requests, 0 in, 0 out)",
        "  FAST: unpriced (1 requests, 1000 in, 200 out)",
    ]


def test_the_breakdown_has_the_tiers_in_their_order(history: History) -> None:
    history.play("""
        session=s-1
            FAST        ok    in=1000 out=200
        session=s-1
            REASONING   503
            FAST        ok    in=1000 out=200
    """)

    breakdown = CostTracker(str(history.path)).get_breakdown("s-1")

    assert list(breakdown) == ["REASONING", "FAST"]
    assert breakdown["FAST"] == {
        "cost": Decimal("0.000216"),
        "requests": 2,
        "input_tokens": 2000,
        "output_tokens": 400,
        "unpriced_attempts": 0,
    }
    assert breakdown["REASONING"]["cost"] == 0
    assert breakdown["REASONING"]["requests"] == 0


def test_the_cost_is_exact_to_the_last_place_and_zero_for_an_unknown_session(history: History) -> None:
    history.play("""
        session=s-1
            FAST   ok   list=0.000000000001
        session=s-1
            FAST   ok   list=123456.789012345678
    """)
    tracker = CostTracker(history.path)

    assert tracker.get_session_cost("s-1") == Decimal("123456.789012345679")
    assert tracker.get_session_cost("s-2") == Decimal(0)


def test_dollars_are_rounded_half_to_even(history: History) -> None:
    history.play("""
        session=s-1
            FAST   ok   list=0.00105
        session=s-2
            FAST   ok   list=0.00115
    """)
    tracker = CostTracker(history.path)

    assert "Total Cost: $0.0010" in tracker.get_cost_summary("s-1")
    assert "Total Cost: $0.0012" in tracker.get_cost_summary("s-2")


@pytest.mark.parametrize(
    ("cost_usd", "shown"),
    [
        ("0.00000684", "$0.0000068"),
        ("0.00049", "$0.00049"),
        ("0.0003", "$0.0003"),
        ("0.00034999", "$0.00035"),
        ("0.000000000001", "$0.000000000001"),
        ("0.0012345", "$0.0012"),
        ("123.4", "$123.4000"),
        ("0", "$0.0000"),
    ],
)
def test_what_was_paid_for_is_never_shown_as_nothing(history: History, cost_usd: str, shown: str) -> None:
    history.play(f"""
        session=s-1
            FAST   ok   list={cost_usd}
    """)
    assert f"  Total Cost: {shown}\n" in CostTracker(history.path).get_cost_summary("s-1")


def test_a_tracker_opens_its_ledger_when_it_is_needed_and_closes_only_what_it_opened(tmp_path: Path) -> None:
    with CostTracker(tmp_path / "own", durability="process-crash") as tracker:
        assert tracker.get_session_cost("s-1") == 0
        assert not (tmp_path / "own").exists()
        assert tracker.ledger.path == tmp_path / "own"
        assert tracker.ledger is tracker.ledger
        assert tracker.ledger.durability == "process-crash"
        own = tracker.ledger
    assert "closed" in repr(own)

    with Ledger.open(tmp_path / "given", "process-crash") as given:
        with CostTracker(given) as tracker:
            assert tracker.ledger is given
        assert "closed" not in repr(given)
        with pytest.raises(LedgerError, match=r"durability belongs to Ledger\.open"):
            CostTracker(given, durability="power-loss")


def test_the_default_ledger_is_the_one_settings_name(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.play("""
        session=s-1
            FAST   ok   list=0.25
    """)
    monkeypatch.setenv("BUGHIVE_LEDGER", str(history.path))

    assert CostTracker().get_session_cost("s-1") == Decimal("0.25")


def test_duckdb_is_loaded_when_something_is_read(history: History) -> None:
    code = (
        "import sys; from ledger import CostTracker; tracker = CostTracker(sys.argv[1]); tracker.ledger;"
        " assert not {'duckdb', 'polars', 'pyarrow'} & set(sys.modules);"
        " tracker.get_session_cost('s-1'); assert 'duckdb' not in sys.modules;"
        " tracker.get_breakdown('s-1'); assert 'duckdb' in sys.modules; tracker.close()"
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code, str(history.path)], cwd=root, check=True)


def test_a_sessions_cost_is_known_without_the_events_where_state_db_knows_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from events_by_hand import answered_request, failed, received, started

    from ledger import CostTracker, Ledger
    from ledger.reader import connect

    with (
        Ledger.open(tmp_path / "ledger", "process-crash", auto_seal=False) as ledger,
        CostTracker(ledger) as tracker,
    ):
        asked: list[str] = []
        of_events = CostTracker._tiers

        def counted(self: CostTracker, session_id: str | None) -> Any:
            asked.append("the events")
            return of_events(self, session_id)

        monkeypatch.setattr(CostTracker, "_tiers", counted)

        def cost_of(session_id: str) -> Decimal:
            cost = tracker.get_session_cost(session_id)
            with connect(ledger.path, session_id, views=("sessions",)) as connection:
                ((shown,),) = connection.execute("select coalesce(sum(cost_usd), 0) from sessions").fetchall()
            assert cost == shown
            return cost

        assert cost_of("s-1") == 0
        for number in range(40):
            answered_request(ledger, f"r-{number}", billed_cost_usd=Decimal("0.000000000001"))
            assert cost_of("s-1") == Decimal(number + 1).scaleb(-12)
        assert asked == []
        with Ledger.open(ledger.path, "process-crash", auto_seal=False) as another:
            answered_request(another, "r-x", billed_cost_usd=Decimal("0.5"))
            assert cost_of("s-1") == Decimal("0.500000000040")
            assert asked == []  # another, which still lives, has not told state.db: its journal was read
        assert cost_of("s-1") == Decimal("0.500000000040")
        assert asked == []
        log = ledger.begin(received("r-y"), started("r-y"))
        log.append(failed(log, "r-y", billing="unknown", billing_rule="no_answer"))
        assert cost_of("s-1") == Decimal("0.500000000040")
        assert asked.pop() == "the events"  # which know what may be lacking
