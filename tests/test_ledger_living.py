"""Processes tell state.db of their outcomes some at a time: nobody is refused, warned or misled by that."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from events_by_hand import answered_request, completed, received, started, succeeded

from ledger import living, own_journals
from ledger.budgets import Budget, Hold
from ledger.errors import BudgetExceeded
from ledger.ledger import Ledger
from ledger.request_log import RequestLog
from ledger.state import State
from ledger.tracker import CostTracker
from ledger.verify import verify

D = Decimal
CEILING = D("0.01")


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Ledger, Ledger]]:
    """Two writers of one ledger, as two processes are."""
    path = tmp_path / "ledger"
    with (
        Ledger.open(path, "process-crash", auto_seal=False) as one,
        Ledger.open(path, "process-crash", auto_seal=False) as another,
    ):
        yield one, another


def begin(ledger: Ledger, name: str, ceiling: Decimal = CEILING) -> RequestLog:
    log = ledger.open_request(received(name))
    first = started(name, reserved_usd=ceiling)
    log.reserve(Hold(first.attempt_id, name, "s-1", first.task, first.tier, first.model, ceiling))
    log.append(first)
    return log


def answer(log: RequestLog, name: str, cost: str = "0.001") -> None:
    log.append(succeeded(log, name, billed_cost_usd=D(cost)), completed(log, name))


def test_what_an_idle_process_has_not_told_yet_refuses_nobody(two: tuple[Ledger, Ledger]) -> None:
    idle, busy = two
    idle.set_budget(Budget("session", "s-1", D("0.03")))
    for name in ("r-1", "r-2"):
        answer(begin(idle, name), name)

    for name in ("r-3", "r-4"):
        begin(busy, name)
    with pytest.raises(BudgetExceeded) as refused:
        begin(busy, "r-5")
    assert (refused.value.spent_usd, refused.value.reserved_usd) == (D("0.002"), D("0.02"))
    assert verify(idle.path).findings == []


def test_what_a_process_has_in_flight_is_no_room_for_others(two: tuple[Ledger, Ledger]) -> None:
    one, another = two
    one.set_budget(Budget("session", "s-1", D("0.015")))
    log = begin(one, "r-1")
    with pytest.raises(BudgetExceeded):
        begin(another, "r-2")
    answer(log, "r-1")
    begin(another, "r-3")


def test_processes_that_take_turns_at_a_glance_use_a_budget_up_and_no_more(
    two: tuple[Ledger, Ledger],
) -> None:
    two[0].set_budget(Budget("session", "s-1", D("0.15")))
    for number in range(15):
        begin(two[number % 2], f"r-{number}")
    for ledger in two:
        with pytest.raises(BudgetExceeded):
            begin(ledger, "one too many")


def test_a_glance_heeds_what_others_have_summed_up_and_set(two: tuple[Ledger, Ledger]) -> None:
    one, another = two
    one.set_budget(Budget("all", None, D(1)))
    for number in range(3):
        answer(begin(one, f"r-{number}"), f"r-{number}")
    for number in range(16):  # of so many tasks that state.db, when it is told of them, sums them up at once
        name, of = f"s-{number}", {"task": f"task-{number}"}
        log = begin(another, name, D("0.05"))
        log.append(succeeded(log, name, billed_cost_usd=D("0.05"), **of), completed(log, name, **of))
    with pytest.raises(BudgetExceeded, match=r"limit \$1, spent \$0\.803"):
        begin(one, "too dear", D("0.2"))

    begin(one, "fits")
    another.set_budget(Budget("session", "s-1", D("0.8")))
    with pytest.raises(BudgetExceeded, match=r"limit \$0\.8"):
        begin(one, "fits no longer")


def test_a_warning_is_not_given_for_what_was_held_and_is_not_any_more(
    two: tuple[Ledger, Ledger], caplog: pytest.LogCaptureFixture
) -> None:
    idle, busy = two
    idle.set_budget(Budget("session", "s-1", D("0.025"), "warn"))
    for name in ("r-1", "r-2"):
        answer(begin(idle, name), name)
    begin(busy, "r-3")
    begin(busy, "r-4")
    assert "warn budget" not in caplog.text
    begin(busy, "r-5")
    assert "spent $0.002, reserved $0.02" in caplog.text


def test_attempts_that_began_without_a_budget_count_in_one_that_comes_and_goes_and_comes(
    two: tuple[Ledger, Ledger],
) -> None:
    ledger, _ = two
    budget = Budget("session", "s-1", D("0.025"))
    for number in range(3):
        ledger.set_budget(budget)
        answer(begin(ledger, f"held-{number}"), f"held-{number}", "0.001")
        ledger.lift_budget(budget)
        assert not ledger.budgets_known()
        name = f"free-{number}"
        answer(ledger.begin(received(name), started(name)), name, "0.005")
    ledger.set_budget(budget)
    with pytest.raises(BudgetExceeded, match=r"spent \$0\.018, reserved \$0,"):
        begin(ledger, "r-1")


def test_an_attempt_that_cost_more_than_its_ceiling_counts_at_once(two: tuple[Ledger, Ledger]) -> None:
    one, another = two
    one.set_budget(Budget("session", "s-1", D("0.03")))
    log = begin(one, "r-1")
    answer(log, "r-1", "0.025")
    with pytest.raises(BudgetExceeded, match=r"spent \$0\.025"):
        begin(another, "r-2")


def test_a_session_costs_what_was_spent_in_it_whoever_has_told_state_db_of_it(
    two: tuple[Ledger, Ledger],
) -> None:
    one, another = two
    costs = [CostTracker(ledger) for ledger in two]
    for number in range(1, 9):
        answered_request(two[number % 2], f"r-{number}", billed_cost_usd=D("0.001"))
        if number in (3, 6):  # reads what the others hold into state.db, whose writers keep it in mind too
            one.set_budget(Budget("all", None, D(number)))
        assert [cost.get_session_cost("s-1") for cost in costs] == [D("0.001") * number] * 2
    begin(another, "r-9")
    assert [cost.get_session_cost("s-1") for cost in costs] == [D("0.008")] * 2


def test_of_a_long_journal_only_the_end_is_read_that_state_db_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(tmp_path / "ledger", "process-crash", auto_seal=False) as ledger:
        for number in range(300):
            answered_request(ledger, f"r-{number}", billed_cost_usd=D("0.001"))
        [journal] = (ledger.path / "journals").glob("0*.jsonl")
        state = State(tmp_path / "state.db")  # which knows nothing yet
        assert living.tell_of_living(ledger.path, state, [journal.stem])
        assert state.balance("session", "s-1").spent_usd == D("0.300")

        answered_request(ledger, "r-300", billed_cost_usd=D("0.001"))
        read = []
        monkeypatch.setattr(
            living, "parsed", lambda line, as_is=living.parsed: read.append(line) or as_is(line)
        )
        assert living.tell_of_living(ledger.path, state, [journal.stem])
        assert state.balance("session", "s-1").spent_usd == D("0.301")
        assert len(read) == 4  # received, started, succeeded, completed
        state.close()


def test_a_ceiling_that_was_held_when_a_ctrl_c_came_is_let_go_of_with_its_request(
    two: tuple[Ledger, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, another = two
    ledger.set_budget(Budget("session", "s-1", D("0.015")))
    with monkeypatch.context() as interrupted:

        def reserve(*asked: Any, as_is: Any = ledger.reserve) -> None:
            as_is(*asked)
            raise KeyboardInterrupt

        interrupted.setattr(ledger, "reserve", reserve)
        log, first = ledger.open_request(received("r-1")), started("r-1")
        with pytest.raises(KeyboardInterrupt):
            log.reserve(Hold(first.attempt_id, "r-1", "s-1", first.task, first.tier, first.model, CEILING))
        log.abandon()
    begin(another, "r-2")


@pytest.mark.parametrize("ends", ["answered", "given up before it starts"])
def test_a_ceiling_held_right_before_its_journal_is_rotated_is_let_go_of_with_its_request(
    two: tuple[Ledger, Ledger], monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    ledger, another = two
    ledger.set_budget(Budget("session", "s-1", D("0.03")))
    monkeypatch.setattr(own_journals, "ROTATE_AT_EVENTS", 4)
    log, first = ledger.open_request(received("r-1")), started("r-1")
    log.reserve(Hold(first.attempt_id, "r-1", "s-1", first.task, first.tier, first.model, CEILING))
    answer(begin(ledger, "r-2"), "r-2", "0.004")  # rotates
    assert begin(ledger, "r-3").journal_id != log.journal_id
    with pytest.raises(BudgetExceeded) as refused:  # what is held counts, whichever journal it is in
        begin(another, "r-4")
    assert refused.value.reserved_usd == 2 * CEILING

    if ends == "answered":
        log.append(started("r-1"))
        answer(log, "r-1", "0.004")
    else:
        log.abandon()
    assert log.journal_id not in {journal.id for journal in ledger._journals.all()}
    held = another.read_state(lambda state: state.balance("session", "s-1"))
    assert held.reserved_usd == CEILING  # of r-3
    begin(another, "r-5", D("0.002"))
    assert verify(ledger.path).findings == []
