"""state.db put back from another moment, and sums beyond what one integer of SQLite holds."""

from __future__ import annotations

import shutil
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from events_by_hand import answered_request, received, started
from played import History

from ledger import CostTracker, Ledger, history
from ledger.budgets import Budget, Hold
from ledger.errors import BudgetExceeded
from ledger.reader import connect
from ledger.verify import verify

COST = Decimal("0.00049")  # 1000 × 0.27 + 200 × 1.10 USD per million tokens
DEAREST_USD = Decimal("999999.999999999999")  # that one event can hold
MANY = 25  # times that is more than 9.2 million dollars, and their 1e-12 are more than 2^63


def play_and_seal(told: History, session: str) -> None:
    """One answered request, sealed in a batch of its own; its journal is gone afterwards."""
    told.play(f"session={session}\n    REASONING ok in=1000 out=200")
    told.close()
    told.now += timedelta(minutes=2)
    told.ledger = Ledger.open(told.path, "process-crash", clock=lambda: told.now, auto_seal=False)
    told.ledger.seal()


def go_on(told: History, sessions: list[str]) -> None:
    """A process that answers and seals a request of each session, and ends."""
    for session in sessions:
        told.ledger = Ledger.open(told.path, "process-crash", clock=lambda: told.now, auto_seal=False)
        play_and_seal(told, session)
        told.close()


def put_back(database: Path, kept: Path) -> None:
    """state.db as it was kept; what SQLite has beside it is of the other one."""
    for name in ("state.db-wal", "state.db-shm"):
        database.with_name(name).unlink(missing_ok=True)
    shutil.copyfile(kept, database)


def spent_in(path: Path, session: str) -> tuple[int, Decimal, Decimal]:
    """Requests and dollars of a session as its own report reads them, and as the tracker says."""
    with connect(path, session) as connection:
        ((requests, cost),) = connection.execute("select requests, cost_usd from sessions").fetchall()
    with CostTracker(path) as tracker:
        return requests, cost, tracker.get_session_cost(session)


@pytest.mark.parametrize("goes_on", [[], ["s-1"]], ids=["at once", "after more was sealed"])
@pytest.mark.parametrize("kept_after", [1, 3])
def test_a_session_is_whole_with_a_state_db_of_an_earlier_day(
    tmp_path: Path, kept_after: int, goes_on: list[str]
) -> None:
    sessions = ["s-1", "s-2", "s-1", "s-1"]
    told = History(tmp_path / "ledger")
    told.close()
    go_on(told, sessions[:kept_after])
    shutil.copyfile(told.path / "state.db", tmp_path / "kept.db")
    go_on(told, sessions[kept_after:])
    put_back(told.path / "state.db", tmp_path / "kept.db")
    go_on(told, goes_on)

    requests = [*sessions, *goes_on].count("s-1")
    assert spent_in(told.path, "s-1") == (requests, requests * COST, requests * COST)


def test_a_budget_counts_all_with_a_state_db_of_an_earlier_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = History(tmp_path / "ledger")
    told.ledger.set_budget(Budget("all", None, 3 * COST))
    told.close()
    go_on(told, ["s-1"])
    shutil.copyfile(told.path / "state.db", tmp_path / "kept.db")
    go_on(told, ["s-1", "s-2"])
    put_back(told.path / "state.db", tmp_path / "kept.db")

    with Ledger.open(told.path, "process-crash", clock=lambda: told.now, auto_seal=False) as ledger:
        log, first = ledger.open_request(received("r-last")), started("r-last")
        names = (first.attempt_id, "r-last", "s-1", first.task, first.tier, first.model)
        with pytest.raises(BudgetExceeded) as refused:
            log.reserve(Hold(*names, COST))
        log.abandon()
    assert refused.value.spent_usd == 3 * COST
    assert caplog.text.count("state.db is older than the ledger, and derived anew") == 1
    assert not verify(told.path).findings


@pytest.mark.parametrize("sealed_before", [0, 2])
@pytest.mark.parametrize("sealed_after", [0, 1, 2])
def test_a_session_is_whole_with_a_state_db_newer_than_the_rest(
    tmp_path: Path, sealed_before: int, sealed_after: int
) -> None:
    """The folder came back from a backup, state.db did not: it knows other batches by the same numbers."""
    told = History(tmp_path / "ledger")
    told.close()
    go_on(told, ["s-1"])
    shutil.copytree(told.path, tmp_path / "backup")
    go_on(told, ["s-2", "s-2"])
    shutil.copyfile(told.path / "state.db", tmp_path / "newer.db")
    shutil.rmtree(told.path)
    shutil.copytree(tmp_path / "backup", told.path)
    go_on(told, ["s-1"] * sealed_before)
    put_back(told.path / "state.db", tmp_path / "newer.db")
    go_on(told, ["s-1"] * sealed_after)

    requests = 1 + sealed_before + sealed_after
    assert spent_in(told.path, "s-1") == (requests, requests * COST, requests * COST)


def test_a_quarter_of_an_hour_may_cost_more_than_an_integer_of_sqlite_holds(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        for number in range(MANY):
            answered_request(ledger, f"r-{number}", list_cost_usd=DEAREST_USD, billed_cost_usd=None)
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:  # it opens, and knows the sum
        for scope, scope_id in (("session", "s-1"), ("all", "")):
            with ledger._projection.state() as state:
                assert state.balance(scope, scope_id).spent_usd == MANY * DEAREST_USD
        ledger.seal()
        with ledger._projection.state() as state:
            along_the_way = state.dump()
            state.rebuild(history.all_runs(path))
            assert state.dump() == along_the_way
    assert spent_in(path, "s-1") == (MANY, MANY * DEAREST_USD, MANY * DEAREST_USD)
    assert not verify(path).findings


def test_ceilings_in_flight_may_be_more_than_an_integer_of_sqlite_holds(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", "process-crash", auto_seal=False) as ledger:
        for number in range(MANY):
            ledger.begin(received(f"r-{number}"), started(f"r-{number}", reserved_usd=DEAREST_USD))
        held = ledger.read_state(lambda state: state.balance("session", "s-1"))

    assert (held.spent_usd, held.reserved_usd) == (0, MANY * DEAREST_USD)
