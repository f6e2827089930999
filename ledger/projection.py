"""state.db as this process has it: opened when first used, for one thread at a time, never across a fork.

    with projection.state() as state:    a look at it
    projection.transact(journals, do)    a transaction that begins with what journals have written
    projection.apply_quietly(journal)    that alone; nothing that fails in it fails anything else

It is derived: what it lacks of a journal it is told of the next time.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TypeVar

import apsw

from ledger.budgets import NO_BUDGETS, Budgets, Hold, Limit
from ledger.errors import LedgerBusy
from ledger.journal import Journal
from ledger.state import State

_T = TypeVar("_T")

_log = logging.getLogger("ledger")

_POLL_S = 0.000_5


class Projection:
    """A ledger's state.db, as far as this process uses it. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path / "state.db"
        self._state: State | None = None  # while it is open
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def state(self, *, patient: bool = True) -> Iterator[State]:
        """state.db, for one thread at a time. Raises LedgerError; LedgerBusy for one that is not patient."""
        self._wait(None if patient else 0)
        with self._lock:
            state = self._opened()
            with state.told():
                yield state

    def _opened(self) -> State:
        self._state = self._state or State(self._path)
        return self._state

    def _wait(self, wait_s: float | None) -> None:
        """Wait until no other thread is at it; `with` then takes the lock, which no Ctrl-C can keep."""
        give_up_at = time.monotonic() + (wait_s or 0)
        while wait_s is not None and self._lock.locked():
            if time.monotonic() >= give_up_at:
                raise LedgerBusy(f"another thread is at {self._path}; try again")
            time.sleep(_POLL_S)

    def transact(
        self, journals: Sequence[Journal], do: Callable[[State], _T], *, wait_s: float | None = None
    ) -> _T:
        """Do something in a transaction of state.db that begins with what these journals have written.

        wait_s: for threads and processes that are at it; None: as long as it takes, up to a bound.
        """
        self._wait(wait_s)
        with self._lock:
            state = self._opened()
            try:
                state.begin(wait_s=wait_s)
                applied = [(journal, apply(state, journal)) for journal in journals]
                result = do(state)
                state.commit()
            except apsw.Error as error:
                state.undo()
                raise state.error_of(error) from error
            except BaseException:
                state.undo()
                raise
        for journal, seq in applied:  # only now: a transaction that failed has applied nothing
            if seq:
                journal.applied(seq)
        return result

    def apply_quietly(self, journal: Journal, *, wait_s: float | None = None) -> None:
        """Tell state.db what a journal has written; what fails is logged: it may fail no request."""
        try:
            self.transact([journal], _nothing, wait_s=wait_s)
        except Exception as error:
            unremarkable = isinstance(error, LedgerBusy) and wait_s is not None
            level = logging.DEBUG if unremarkable else logging.WARNING
            _log.log(level, "state.db lags behind journal %s: %s", journal.id, error)

    def catch_up(self, journals: Sequence[Journal]) -> None:
        """Tell state.db what these journals have written. Raises LedgerError."""
        self.transact(journals, _nothing)

    @property
    def known_budgets(self) -> Budgets:
        """The budgets in force as of this process's last look; none where it has not looked yet."""
        state = self._state
        return state.known_budgets if state is not None else NO_BUDGETS

    def reserve_at_once(
        self,
        journal_id: str,
        hold: Hold,
        own: Sequence[Limit],
        quarter: int,
        earlier_usd: Decimal | None,
    ) -> bool:
        """As State.reserve_at_once; False also where state.db is not open yet."""
        with self._lock:
            state = self._state
            try:
                return state is not None and state.reserve_at_once(
                    journal_id, hold, own, quarter, earlier_usd
                )
            except apsw.Error as error:
                raise state.error_of(error) from error  # type: ignore[union-attr]  # it has raised it

    def close(self) -> None:
        """Close state.db; it is opened again if it is used again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._state is not None:
            self._state.close()
            self._state = None

    # forks: SQLite must not be open in both

    def before_fork(self) -> None:
        self._lock.acquire()
        self._close()

    def after_fork_in_parent(self) -> None:
        self._lock.release()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()


def apply(state: State, journal: Journal) -> int:
    """Count what a journal has written and state.db has not; the number of the last such event, else 0.

    In a transaction; once that has succeeded, the journal is to be told of the number.
    """
    events = journal.take_unapplied()
    if not events:
        return 0
    state.apply(journal.id, events)
    return events[-1][0]


def _nothing(_: State) -> None:
    """What is done where catching up is all there is to do."""
