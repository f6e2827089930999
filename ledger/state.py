"""state.db: what is derived from the events and wanted at once. A projection, never the truth.

    positions         how far each journal has been applied
    session_batches   which batches hold a session
    circuits          which routes are left alone; with circuit_watch, see ledger.circuit_table
    and what is spent, held and limited: see ledger.accounts

`fold` turns events into a change, purely; `State.apply` writes that change and the position it
belongs to in one transaction, so that every event counts once, however often it is offered.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import apsw

from ledger import circuit_table
from ledger.accounts import CLEARED_TO_REBUILD, TABLES, Accounts
from ledger.budgets import Balance, Budget, Budgets, Hold, Limit, Limits, Warned
from ledger.errors import DamagedLedger, LedgerBusy, LedgerError
from ledger.files import open_private
from ledger.fold import FOLDED, Events, fold
from ledger.reservations import Reservations
from ledger.windows import QUARTER_S, Window, quarter_of

__all__ = ["FOLDED", "QUARTER_S", "STATE_VERSION", "State", "fold", "quarter_of"]

STATE_VERSION = 5
_PAGE_BYTES = 1024  # rows are short, and a commit writes whole pages
_CHECKPOINT_AT_PAGES = 4_000  # 4 MB: each waits for the disk
_BUSY_POLLS = 10_000  # of a millisecond each: then the database counts as stuck
_HASTY_POLLS = 5

_TABLES = f"""
create table meta (key text primary key, value text not null) strict, without rowid;
create table positions (
    journal_id text primary key, seq integer not null, closed integer not null
) strict, without rowid;
create table session_batches (
    session_id text not null, batch integer not null, primary key (session_id, batch)
) strict, without rowid;
{TABLES}{circuit_table.TABLES}"""


class State:
    """state.db of one ledger. Not thread-safe: its owner holds a lock; processes wait for each other."""

    def __init__(self, path: Path) -> None:
        """Open or create it. Raises LedgerError for a file that is not such a database."""
        self.path = path
        self._polls_at_most = _BUSY_POLLS
        try:
            os.close(open_private(path, os.O_RDWR | os.O_CREAT))
        except OSError as error:
            raise LedgerError(f"{path} cannot be used: {error.strerror}; see what stands there") from error
        with self.told():
            self._db = apsw.Connection(str(path))
            try:
                self._db.set_busy_handler(self._wait_a_millisecond)
                self._db.pragma("page_size", _PAGE_BYTES)  # of a new file
                self._use_wal()
                self._accounts = Accounts(self._db)
                self._reservations = Reservations(self._db, self._accounts)
                if self._db.pragma("user_version") != STATE_VERSION:
                    self._create()
            except BaseException:
                self._db.close()
                raise

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """What SQLite raises in the block becomes a LedgerError: LedgerBusy, DamagedLedger, or plain."""
        try:
            yield
        except apsw.Error as error:
            raise self.error_of(error) from error

    def error_of(self, error: apsw.Error) -> LedgerError:
        """What SQLite raised, in words."""
        if isinstance(error, (apsw.NotADBError, apsw.CorruptError)):
            return DamagedLedger(
                f"{self.path} is damaged: {error}; it is derived: bughive-costs recover makes it anew"
            )
        if isinstance(error, apsw.BusyError):
            return LedgerBusy(f"another process is at {self.path} and did not let go; try again")
        return LedgerError(f"{self.path} cannot be used: {error}; make room, or mend the disk")

    def is_intact(self) -> bool:
        """Whether SQLite finds nothing wrong with the file."""
        with self.told():
            return bool(self._db.execute("pragma quick_check").get == "ok")

    def _use_wal(self) -> None:
        """Switching to WAL takes a lock that SQLite does not wait for: whoever is second tries again."""
        polls = 0
        while True:
            try:
                self._db.pragma("journal_mode", "wal")
                self._db.wal_autocheckpoint(_CHECKPOINT_AT_PAGES)
                self._db.pragma("synchronous", "normal")  # a power loss takes the latest; it is derived
                return
            except apsw.BusyError:
                polls += 1
                if not self._wait_a_millisecond(polls):
                    raise

    def _wait_a_millisecond(self, polls: int) -> bool:
        time.sleep(0.001)
        return polls < self._polls_at_most

    @property
    def db(self) -> apsw.Connection:
        """The database, for tables whose words are in a module of their own."""
        return self._db

    def close(self) -> None:
        self._db.close()

    def _create(self) -> None:
        with self.transaction():
            found = int(str(self._db.pragma("user_version")))
            if found > STATE_VERSION:
                raise LedgerError(
                    f"{self.path} has version {found}, written by a newer bughive-costs; this one knows"
                    f" {STATE_VERSION}: update it"
                )
            if found < STATE_VERSION:  # new, or of an older version: it is derived anew
                tables = self._db.execute("select name from sqlite_schema where type = 'table'").fetchall()
                for (name,) in tables:
                    self._db.execute(f'drop table "{name}"')
                self._db.execute(_TABLES)
                self._db.execute(f"pragma user_version = {STATE_VERSION}")

    @property
    def is_derived(self) -> bool:
        """Whether it has ever been derived from the ledger's events; False for a new file."""
        return self._db.execute("select 1 from meta where key = 'derived'").get is not None

    @contextlib.contextmanager
    def transaction(self, *, patient: bool = True) -> Iterator[None]:
        """All of the block or nothing, one writer at a time across processes; apsw.BusyError after a while.

        A Ctrl-C may come between any two steps: whatever is open is undone, here or before the next.
        """
        try:
            self.begin(wait_s=None if patient else 0)
            yield
            self.commit()
        except BaseException:
            self.undo()
            raise

    def begin(self, *, wait_s: float | None = None) -> None:
        """Begin a transaction, as `transaction` does, to be ended by `commit` or `undo`."""
        if self._db.in_transaction:
            self.undo()
        self._polls_at_most = _BUSY_POLLS if wait_s is None else max(int(wait_s * 1000), _HASTY_POLLS)
        self._db.execute("begin immediate")

    def commit(self) -> None:
        self._db.execute("commit")

    def undo(self) -> None:
        """Nothing of the transaction has been. SQLite may have ended it already: the disk was full."""
        self._accounts.forget()
        if self._db.in_transaction:
            self._db.execute("rollback")

    def position(self, journal_id: str) -> int:
        """The number of the last event of a journal that was applied; 0: none."""
        return int(self._db.execute("select seq from positions where journal_id = ?", (journal_id,)).get or 0)

    def applied(self, journal_id: str) -> tuple[int, bool]:
        """The same, and whether the journal is closed."""
        row = self._db.execute(
            "select seq, closed from positions where journal_id = ?", (journal_id,)
        ).fetchone()
        return (0, False) if row is None else (int(row[0]), bool(row[1]))

    def positions(self) -> dict[str, tuple[int, bool]]:
        """Per journal the number of the last applied event, and whether the journal is closed."""
        rows = self._db.execute("select journal_id, seq, closed from positions")
        return {journal_id: (seq, bool(closed)) for journal_id, seq, closed in rows}

    def apply(self, journal_id: str, events: Events) -> None:
        """Count events, with their numbers and in order, that have not been counted. In a transaction.

        Raises LedgerError where they do not follow the position: something in between is missing.
        """
        position = self.position(journal_id)
        new = [(seq, event) for seq, event in events if seq > position]
        if not new:
            return
        if new[0][0] != position + 1:
            raise LedgerError(
                f"{self.path} knows journal {journal_id} up to {position}, not up to {new[0][0] - 1};"
                " it is derived: stop what uses the ledger, remove it and open the ledger again"
            )
        change = fold(journal_id, new)
        self._accounts.write(change)
        if change.circuit_turns:
            circuit_table.write_turns(self._db, change.circuit_turns)
        self._db.execute(
            "insert or replace into positions values (?, ?, ?)", (journal_id, new[-1][0], change.closed)
        )
        if change.closed:
            self._reservations.release_all(journal_id)

    def budgets(self) -> Budgets:
        """The budgets in force."""
        return self._accounts.budgets()

    @property
    def known_budgets(self) -> Budgets:
        """The budgets in force as of the last look."""
        return self._accounts.known_budgets

    def budget_set_at(self, budget: Budget) -> str | None:
        """When a budget was last set or lifted, as a text that sorts; None: never."""
        return self._accounts.budget_set_at(budget)

    def reserve_at_once(
        self, journal_id: str, hold: Hold, own: Sequence[Limit], quarter: int, earlier_usd: Decimal | None
    ) -> bool:
        """Hold a ceiling if it is sure to fit at a glance; a transaction of its own.

        own: the limits that its call brings along. earlier_usd: no less than what counts for its request so
        far; None: not known. False: nothing is held, and `reserve` is to look.
        """
        if hold.asked_usd is None or earlier_usd is None:
            return False
        try:
            self.begin()
            is_held = self._reservations.reserve_if_sure(journal_id, hold, own, quarter, earlier_usd)
            self._db.execute("commit")
        except BaseException:
            self.undo()
            raise
        if is_held:
            self._reservations.committed()
        return is_held

    def reserve(
        self,
        journal_id: str,
        hold: Hold,
        own: Sequence[Limit],
        quarter: int,
        told: Collection[str] | None = None,
    ) -> list[Warned]:
        """Hold a ceiling if every hard limit would still hold with it. In a transaction.

        own: the limits that its call brings along. told: journals of which all is known here; None: all.
        Gives the warn limits it crosses. Raises BudgetError for the first hard limit that would not hold,
        OthersMayLag where that is not sure.
        """
        of_request, shared = self._accounts.budgets().limits_on(hold, quarter)
        return self._reservations.reserve(
            journal_id, hold, Limits([*own, *of_request], shared), quarter, told
        )

    def release(self, attempt_id: str) -> None:
        """Let go of a reservation whose attempt never started."""
        self._reservations.release(attempt_id)

    def balance(self, scope: str, scope_id: str, window: Window | None = None) -> Balance:
        """What counts against a limit of that scope, within a window or of all time."""
        return self._reservations.balance(scope, scope_id, window)

    def session_spent(self, session_id: str, journal_id: str = "", untold: Events = ()) -> Decimal | None:
        """What a session has cost; None where something of it is in doubt, or has no price.

        untold: events of that journal that may not have been applied yet.
        """
        return self._accounts.session_spent(session_id, journal_id, untold)

    def index_batch(self, batch: int, sha256: str, sessions: Iterable[str]) -> None:
        """Note which sessions a batch holds; batches are noted in order."""
        with self.transaction():
            self._db.executemany(
                "insert or ignore into session_batches values (?, ?)", [(name, batch) for name in sessions]
            )
            self._db.execute(
                "insert or replace into meta values ('indexed_batch', ?), ('indexed_sha256', ?)",
                (str(batch), sha256),
            )

    def indexed(self) -> tuple[int, str]:
        """All batches up to this one, which has that hash, are in `session_batches`; 0: none."""
        meta = {str(key): str(value) for key, value in self._db.execute("select key, value from meta")}
        return int(meta.get("indexed_batch", 0)), meta.get("indexed_sha256", "")

    def forget_index(self) -> None:
        """Begin the index of sessions anew: its batches are not those of the ledger."""
        with self.transaction():
            self._db.execute("delete from session_batches; delete from meta where key like 'indexed%'")

    def rebuild(self, runs: Iterable[tuple[str, Events]]) -> None:
        """Derive balances, holds, circuits and positions anew. In a transaction.

        Living journals' reservations stay, and what is watched of circuits.

        `runs`: of each journal all events with their numbers, in order, in one run or several.
        """
        for table in (*CLEARED_TO_REBUILD, "circuits", "positions"):
            self._db.execute(f"delete from {table}")
        self._db.execute("delete from holds where state <> 'reserved'")
        for journal_id, events in runs:
            self.apply(journal_id, events)
        self._db.execute(
            "delete from holds where state = 'reserved'"
            " and journal_id not in (select journal_id from positions);"
            " insert or replace into meta values ('derived', 'yes')"
        )
        self._accounts.sum_up()
        self._accounts.sums_changed()
        self._accounts.budgets_changed()

    def make_durable(self) -> None:
        """Return only when everything applied so far would survive a power loss."""
        self._db.execute("pragma wal_checkpoint(truncate)")

    def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """All derived rows, sorted: equal dumps are equal projections. Reservations left out."""
        return self._accounts.dump() | {
            "positions": sorted(self._db.execute("select * from positions")),
            "circuits": circuit_table.dump(self._db),
        }
