"""state.db: what is derived from the events and wanted at once. A projection, never the truth.

    positions         how far each journal has been applied
    balances          spent per scope and quarter of an hour, budget or not
    request_spent     spent per request while it is open
    holds             ceilings of attempts that are reserved, in flight, or in doubt
    settled           attempts that are in doubt no longer, by a later word
    session_batches   which batches hold a session
    circuits          which routes are left alone; with circuit_watch, see ledger.circuit_table

`fold` turns events into a change, purely; `State.apply` writes that change and the position it
belongs to in one transaction, so that every event counts once, however often it is offered.
Amounts are whole numbers of 1e-12 USD ("pico"), which is what a ledger's decimal holds; a sum is kept as
millionths of a dollar ("micro") and the rest in pico, so that no sum outgrows an integer of SQLite.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

import apsw

from ledger import circuit_table
from ledger.budgets import Balance, Hold, Limit, check
from ledger.errors import DamagedLedger, LedgerBusy, LedgerError
from ledger.files import open_private
from ledger.money import dollars, pico

QUARTER_S = 900
_QUARTER = timedelta(seconds=QUARTER_S)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STATE_VERSION = 3
_PICO_PER_MICRO = 1_000_000
_BUSY_POLLS = 10_000  # of a millisecond each: then the database counts as stuck
_HASTY_POLLS = 5

_TABLES = (
    """
create table meta (key text primary key, value text not null) strict, without rowid;
create table positions (
    journal_id text primary key, seq integer not null, closed integer not null
) strict, without rowid;
create table balances (
    scope text not null, scope_id text not null, quarter integer not null,
    spent_micro integer not null, spent_rest integer not null, unpriced_attempts integer not null,
    primary key (scope, scope_id, quarter)
) strict, without rowid;
create table request_spent (
    request_id text primary key, spent_micro integer not null, spent_rest integer not null
) strict, without rowid;
create table holds (
    attempt_id text primary key, journal_id text not null, request_id text not null, session_id text,
    task text not null, tier text not null, model text not null, ceiling_pico integer,
    state text not null check (state in ('reserved', 'in_flight', 'in_doubt'))
) strict, without rowid;
create table settled (attempt_id text primary key) strict, without rowid;
create index holds_of_request on holds (request_id);
create index holds_of_journal on holds (journal_id);
create table session_batches (
    session_id text not null, batch integer not null, primary key (session_id, batch)
) strict, without rowid;
"""
    + circuit_table.TABLES
)

# of a scope, what of a hold must equal its id
_HOLD_COLUMNS = {
    "request": "request_id",
    "session": "session_id",
    "task": "task",
    "tier": "tier",
    "model": "model",
    "all": "''",
}

BalanceKey = tuple[str, str, int]
HoldState = Literal["reserved", "in_flight", "in_doubt"]


class HoldRow(NamedTuple):
    """A row of `holds`; `ceiling_pico` None: the attempt's cost has no known bound."""

    attempt_id: str
    journal_id: str
    request_id: str
    session_id: str | None
    task: str
    tier: str
    model: str
    ceiling_pico: int | None
    state: HoldState


@dataclass
class Change:
    """What a run of events does to the projection."""

    spent_pico: Counter[BalanceKey] = field(default_factory=Counter)
    unpriced_attempts: Counter[BalanceKey] = field(default_factory=Counter)
    request_spent_pico: Counter[str] = field(default_factory=Counter)
    requests_ended: set[str] = field(default_factory=set)
    holds: dict[str, HoldRow | None] = field(default_factory=dict)  # None: let go
    settled: set[str] = field(default_factory=set)
    circuit_turns: list[circuit_table.Turn] = field(default_factory=list)
    closed: bool = False


FOLDED = (  # the fields of events that `fold` looks at
    *("event_type", "request_id", "session_id", "task", "attempt_id", "tier", "model", "started_at"),
    *("billed_cost_usd", "list_cost_usd", "reserved_usd", "billing"),
    *circuit_table.FOLDED,
)


def fold(journal_id: str, events: Iterable[Mapping[str, Any]]) -> Change:
    """The change a journal's events make, in their order; pure. Values may be JSON's or Python's."""
    change = Change()
    for event in events:
        match event["event_type"]:
            case "attempt_started":
                change.holds[event["attempt_id"]] = _hold(journal_id, event, "in_flight")
            case "attempt_settled":
                _fold_money(change, event)
                if event["billing"] != "unknown":
                    change.settled.add(event["attempt_id"])
            case "attempt_succeeded" | "attempt_failed" | "attempt_cancelled" | "attempt_abandoned":
                _fold_money(change, event)
                keeps_ceiling = event["billing"] == "unknown" or _is_unpriced(event)
                held = _hold(journal_id, event, "in_doubt") if keeps_ceiling else None
                change.holds[event["attempt_id"]] = held
            case "request_completed" | "request_failed" | "request_denied":
                change.requests_ended.add(event["request_id"])
                change.request_spent_pico.pop(event["request_id"], None)
            case "circuit_opened" | "circuit_closed":
                turn = circuit_table.turn_of(event)
                change.circuit_turns += [turn] if turn else []
            case "journal_closed":
                change.closed = True
    return change


def _fold_money(change: Change, event: Mapping[str, Any]) -> None:
    cost = _cost_of(event)
    unpriced = _is_unpriced(event)
    if cost is None and not unpriced:
        return
    amount = pico(cost) if cost is not None else 0
    quarter = quarter_of(event["started_at"])
    scopes = [("all", ""), ("task", event["task"]), ("tier", event["tier"]), ("model", event["model"])]
    if event.get("session_id") is not None:
        scopes.append(("session", event["session_id"]))
    for scope, scope_id in scopes:
        change.spent_pico[scope, scope_id, quarter] += amount
        change.unpriced_attempts[scope, scope_id, quarter] += unpriced
    if event["event_type"] != "attempt_settled":  # a settlement may come after the request's end
        change.request_spent_pico[event["request_id"]] += amount


def _cost_of(event: Mapping[str, Any]) -> Decimal | str | None:
    billed: Decimal | str | None = event.get("billed_cost_usd")
    return event.get("list_cost_usd") if billed is None else billed


def _is_unpriced(event: Mapping[str, Any]) -> bool:
    return event["billing"] == "billed" and _cost_of(event) is None


def _hold(journal_id: str, event: Mapping[str, Any], state: HoldState) -> HoldRow:
    ceiling = event.get("reserved_usd")
    return HoldRow(
        event["attempt_id"],
        journal_id,
        event["request_id"],
        event.get("session_id"),
        event["task"],
        event["tier"],
        event["model"],
        None if ceiling is None else pico(ceiling),
        state,
    )


def quarter_of(moment: datetime | str) -> int:
    """The quarter of an hour a moment falls in, counted from 1970 in UTC."""
    at = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return (at - _EPOCH) // _QUARTER


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
                self._use_wal()
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
        except (apsw.NotADBError, apsw.CorruptError) as error:
            raise DamagedLedger(
                f"{self.path} is damaged: {error}; it is derived: bughive-costs recover makes it anew"
            ) from error
        except apsw.BusyError as error:
            raise LedgerBusy(f"another process is at {self.path} and did not let go; try again") from error
        except apsw.Error as error:
            raise LedgerError(f"{self.path} cannot be used: {error}; make room, or mend the disk") from error

    def is_intact(self) -> bool:
        """Whether SQLite finds nothing wrong with the file."""
        with self.told():
            return bool(self._db.execute("pragma quick_check").get == "ok")

    def _use_wal(self) -> None:
        """Switching to WAL takes a lock that SQLite does not wait for: whoever is second tries again."""
        polls = 0
        while True:
            try:
                self._db.execute("pragma journal_mode = wal; pragma synchronous = normal")
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
            self._undo()
            self._polls_at_most = _BUSY_POLLS if patient else _HASTY_POLLS
            self._db.execute("begin immediate")
            yield
            self._db.execute("commit")
        except BaseException:
            self._undo()
            raise

    def _undo(self) -> None:
        if self._db.in_transaction:
            self._db.execute("rollback")

    def position(self, journal_id: str) -> int:
        """The number of the last event of a journal that was applied; 0: none."""
        return int(self._db.execute("select seq from positions where journal_id = ?", (journal_id,)).get or 0)

    def positions(self) -> dict[str, tuple[int, bool]]:
        """Per journal the number of the last applied event, and whether the journal is closed."""
        rows = self._db.execute("select journal_id, seq, closed from positions")
        return {journal_id: (seq, bool(closed)) for journal_id, seq, closed in rows}

    def apply(self, journal_id: str, events: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
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
        change = fold(journal_id, (event for _, event in new))
        self._write(change)
        self._db.execute(
            "insert or replace into positions values (?, ?, ?)", (journal_id, new[-1][0], change.closed)
        )
        if change.closed:
            self._db.execute("delete from holds where journal_id = ? and state = 'reserved'", (journal_id,))

    def _write(self, change: Change) -> None:
        self._db.executemany(
            "insert into balances values (?, ?, ?, ?, ?, ?) on conflict do update set"
            " spent_micro = spent_micro + excluded.spent_micro,"
            " spent_rest = spent_rest + excluded.spent_rest,"
            " unpriced_attempts = unpriced_attempts + excluded.unpriced_attempts",
            [
                (*key, *divmod(amount, _PICO_PER_MICRO), change.unpriced_attempts[key])
                for key, amount in change.spent_pico.items()
            ],
        )
        self._db.executemany(
            "insert into request_spent values (?, ?, ?) on conflict do update set"
            " spent_micro = spent_micro + excluded.spent_micro,"
            " spent_rest = spent_rest + excluded.spent_rest",
            [
                (request_id, *divmod(amount, _PICO_PER_MICRO))
                for request_id, amount in change.request_spent_pico.items()
            ],
        )
        self._db.executemany(
            "delete from request_spent where request_id = ?", [(name,) for name in change.requests_ended]
        )
        self._db.executemany(
            "delete from holds where attempt_id = ?",
            [(attempt_id,) for attempt_id, row in change.holds.items() if row is None],
        )
        self._db.executemany(
            "insert or replace into holds values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [row for row in change.holds.values() if row is not None],
        )
        self._db.executemany("insert or ignore into settled values (?)", [(name,) for name in change.settled])
        circuit_table.write_turns(self._db, change.circuit_turns)
        self._db.executemany(  # whichever journal is applied first: the settlement's, or the attempt's
            "delete from holds where attempt_id = ? and state = 'in_doubt' and attempt_id in settled",
            [(attempt_id,) for attempt_id in {*change.settled, *change.holds}],
        )

    def reserve(self, journal_id: str, hold: Hold, limits: Iterable[Limit]) -> None:
        """Hold a ceiling if every limit would still hold with it. In a transaction.

        Raises BudgetExceeded for the first limit that would not.
        """
        for limit in limits:
            check(limit, self.balance(limit.scope, limit.scope_id), hold)
        self._db.execute(
            "insert into holds values (?, ?, ?, ?, ?, ?, ?, ?, 'reserved')",
            (
                hold.attempt_id,
                journal_id,
                hold.request_id,
                hold.session_id,
                hold.task,
                hold.tier,
                hold.model,
                pico(hold.ceiling_usd),
            ),
        )

    def release(self, attempt_id: str) -> None:
        """Let go of a reservation whose attempt never started."""
        self._db.execute("delete from holds where attempt_id = ? and state = 'reserved'", (attempt_id,))

    def balance(self, scope: str, scope_id: str) -> Balance:
        """What counts against a limit of that scope, all time."""
        column = _HOLD_COLUMNS.get(scope)
        if column is None:
            raise LedgerError(f"no balance is kept for the scope {scope!r}")
        if scope == "request":
            spent = self._db.execute(
                "select spent_micro, spent_rest from request_spent where request_id = ?", (scope_id,)
            )
        else:
            spent = self._db.execute(
                "select sum(spent_micro), sum(spent_rest) from balances where scope = ? and scope_id = ?",
                (scope, scope_id),
            )
        held = self._db.execute(
            f"select state = 'in_doubt', sum(ceiling_pico / {_PICO_PER_MICRO}),"
            f" sum(ceiling_pico % {_PICO_PER_MICRO}) from holds"
            f" where {column} = ? and ceiling_pico is not null group by 1",
            (scope_id,),
        )
        ceilings = {bool(in_doubt): _dollars(micro, rest) for in_doubt, micro, rest in held}
        return Balance(
            next((_dollars(micro or 0, rest or 0) for micro, rest in spent), Decimal(0)),
            ceilings.get(False, Decimal(0)),
            ceilings.get(True, Decimal(0)),
        )

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

    def rebuild(self, runs: Iterable[tuple[str, Sequence[tuple[int, Mapping[str, Any]]]]]) -> None:
        """Derive balances, holds, circuits and positions anew. In a transaction.

        Living journals' reservations stay, and what is watched of circuits.

        `runs`: of each journal all events with their numbers, in order, in one run or several.
        """
        self._db.execute(
            "delete from balances; delete from request_spent; delete from positions; delete from settled;"
            " delete from circuits;"
            " delete from holds where state <> 'reserved'"
        )
        for journal_id, events in runs:
            self.apply(journal_id, events)
        self._db.execute(
            "delete from holds where state = 'reserved'"
            " and journal_id not in (select journal_id from positions);"
            " insert or replace into meta values ('derived', 'yes')"
        )

    def make_durable(self) -> None:
        """Return only when everything applied so far would survive a power loss."""
        self._db.execute("pragma wal_checkpoint(truncate)")

    def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """All derived rows, sorted: equal dumps are equal projections. Reservations left out."""
        return {
            "balances": sorted(
                (scope, scope_id, quarter, micro * _PICO_PER_MICRO + rest, unpriced)
                for scope, scope_id, quarter, micro, rest, unpriced in self._db.execute(
                    "select * from balances where spent_micro or spent_rest or unpriced_attempts"
                )
            ),
            "holds": sorted(
                self._db.execute(
                    "select attempt_id, ceiling_pico, state from holds where state <> 'reserved'"
                )
            ),
            "positions": sorted(self._db.execute("select * from positions")),
            "request_spent": sorted(
                (request_id, micro * _PICO_PER_MICRO + rest)
                for request_id, micro, rest in self._db.execute("select * from request_spent")
            ),
            "settled": sorted(self._db.execute("select * from settled")),
            "circuits": circuit_table.dump(self._db),
        }


def _dollars(micro: int, rest: int) -> Decimal:
    return dollars(micro * _PICO_PER_MICRO + rest)
