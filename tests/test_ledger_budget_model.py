"""What state.db counts is what a model counts: whatever comes in whatever order, over two processes."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.budgets import Hold
from ledger.errors import BudgetExceeded
from ledger.reservations import OthersMayLag
from ledger.state import State
from ledger.windows import window_of

D = Decimal
LIMIT = D(2)
QUARTER = 5
AT = datetime(1970, 1, 1, 1, 15, tzinfo=UTC)

_USD = st.one_of(
    st.sampled_from([D("0"), D("0.000000000001"), D("0.25"), D("0.5"), D(1)]),
    st.integers(0, 10**9).map(lambda number: D(number).scaleb(-9)),
)
_STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            (
                *("reserve", "reserve", "reserve", "start", "answer", "be_in_doubt"),
                *("settle", "crash", "catch_up", "rebuild"),
            )
        ),
        st.integers(0, 7),
        _USD,
    ),
    max_size=50,
)


@settings(max_examples=80, deadline=None)
@given(_STEPS)
def test_state_db_counts_as_a_model_does_whatever_comes_in_whatever_order(steps: Any) -> None:
    """Reserve, start, outcome, settlement, crash, late catching up, rebuilding: the limit holds, no attempt
    is refused that it would have held for, and sums are right."""
    with tempfile.TemporaryDirectory() as folder:
        _Model(Path(folder)).play(steps)


class _Process:
    """A writer: its own connection, its present journal, and its attempts."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.lives = 0
        self.state = State(folder / "state.db")
        self.reserved: dict[str, Decimal] = {}  # attempt: ceiling
        self.in_flight: dict[str, Decimal] = {}

    @property
    def journal(self) -> str:
        return f"{self.name}{self.lives}"


class _Model:
    """Two processes, what they have written, and what should count."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = [_Process(name, folder) for name in "ab"]
        self.journals: dict[str, list[dict[str, Any]]] = {}
        self.doubt: dict[str, Decimal] = {}
        self.spent = D(0)
        self.count = 0
        for process in self.processes:
            self.write(process.journal, "journal_opened", None)
        for scope, scope_id in (("session", "s"), ("day", None)):
            self.write("a0", "budget_set", None, scope=scope, scope_id=scope_id, mode="hard", limit_usd=LIMIT)
        self.tell("a0", 0)

    @property
    def held(self) -> Decimal:
        return sum(
            (sum((*of.reserved.values(), *of.in_flight.values()), D(0)) for of in self.processes), D(0)
        )

    @property
    def counts(self) -> Decimal:
        return self.spent + self.held + sum(self.doubt.values(), D(0))

    def play(self, steps: Any) -> None:
        try:
            for what, which, amount in steps:
                getattr(self, what)(self.processes[which % 2], which, amount)
                assert self.counts <= LIMIT
            for journal in self.journals:
                self.tell(journal, 0)
            for process in self.processes:
                self.compare(process.state)
            self.compare_to_the_fold()
        finally:
            for process in self.processes:
                process.state.close()

    def compare(self, state: State) -> None:
        balance = state.balance("session", "s")
        assert balance == (self.spent, self.held, sum(self.doubt.values(), D(0)))
        window = window_of("day", "UTC", QUARTER)
        assert state.balance("day", window.label, window) == balance

    def compare_to_the_fold(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            fresh = State(Path(folder) / "state.db")
            with fresh.transaction():
                fresh.rebuild(self.runs())
            assert fresh.dump() == self.processes[0].state.dump()
            fresh.close()

    def runs(self) -> list[tuple[str, list[tuple[int, dict[str, Any]]]]]:
        return [(journal, list(enumerate(events, start=1))) for journal, events in self.journals.items()]

    # the steps

    def reserve(self, process: _Process, which: int, amount: Decimal) -> None:
        """As Ledger.reserve: at a glance, else knowing its own journal, else those of others too."""
        self.count += 1
        name = f"{self.count:03}"
        asked = (process.journal, Hold(name, name, "s", "t", "T", "m", amount), (), QUARTER)
        told = {process.journal}
        is_held = process.state.reserve_at_once(*asked, D(0))
        while not is_held:
            self.tell(process.journal, 0)
            try:
                with process.state.transaction():
                    process.state.reserve(*asked, told)
                is_held = True
            except OthersMayLag as lag:
                for journal in lag.journal_ids - told:  # of which there is one at least, or this never ends
                    self.tell(journal, 0)
                told |= lag.journal_ids
            except BudgetExceeded:
                assert self.counts + amount > LIMIT
                return
        process.reserved[name] = amount

    def start(self, process: _Process, which: int, amount: Decimal) -> None:
        if process.reserved:
            name, ceiling = process.reserved.popitem()
            process.in_flight[name] = ceiling
            self.write(process.journal, "attempt_started", name, ceiling)

    def answer(self, process: _Process, which: int, amount: Decimal) -> None:
        if process.in_flight:
            name, ceiling = process.in_flight.popitem()
            cost = min(amount, ceiling)
            self.spent += cost
            self.write(process.journal, "attempt_succeeded", name, billing="billed", billed_cost_usd=cost)

    def be_in_doubt(self, process: _Process, which: int, amount: Decimal) -> None:
        if process.in_flight:
            name, ceiling = process.in_flight.popitem()
            self.doubt[name] = ceiling
            self.write(process.journal, "attempt_failed", name, ceiling, billing="unknown")

    def settle(self, process: _Process, which: int, amount: Decimal) -> None:
        if self.doubt:
            name, ceiling = self.doubt.popitem()
            cost = min(amount, ceiling)
            self.spent += cost
            self.write(process.journal, "attempt_settled", name, billing="billed", billed_cost_usd=cost)
            self.tell(process.journal, 0)  # as Ledger.record does: nothing is held that counts no less

    def crash(self, process: _Process, which: int, amount: Decimal) -> None:
        """Recovery ends what a journal left open; a new one takes its place."""
        while process.in_flight:
            name, self.doubt[name] = process.in_flight.popitem()
            self.write(process.journal, "attempt_abandoned", name, self.doubt[name], billing="unknown")
        process.reserved.clear()
        self.write(process.journal, "journal_closed", None)
        self.tell(process.journal, 0)
        process.lives += 1
        self.write(process.journal, "journal_opened", None)

    def catch_up(self, process: _Process, which: int, amount: Decimal) -> None:
        self.tell(process.journal, which % 3)

    def rebuild(self, process: _Process, which: int, amount: Decimal) -> None:
        with process.state.transaction():
            process.state.rebuild(self.runs())
        self.compare(process.state)
        self.compare_to_the_fold()

    # how

    def tell(self, journal: str, repeated: int) -> None:
        """Its events, and some of those that are known already."""
        events = list(enumerate(self.journals.get(journal, ()), start=1))
        state = self.processes[journal[0] == "b"].state
        with state.transaction():
            state.apply(journal, events[max(state.position(journal) - repeated, 0) :])

    def write(
        self, journal: str, event_type: str, name: str | None, ceiling: Any = None, **fields: Any
    ) -> None:
        of = {"session_id": "s", "task": "t", "tier": "T", "model": "m"}
        event = {"event_type": event_type, "request_id": name, "attempt_id": name, **of}
        moment = {"occurred_at": AT, "started_at": AT, "reserved_usd": ceiling}
        self.journals.setdefault(journal, []).append(event | moment | fields)
