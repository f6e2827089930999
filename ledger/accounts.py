"""The money tables of state.db: what was spent and is held, for every scope a limit can be set on.

    balances      spent per scope and quarter of an hour, budget or not
    sums          spent and in doubt per scope of all time, and of the days and months that are asked for
    unsummed      spent lately, and in neither of them yet: a row per request, some are summed up at once
    request_spent spent and in doubt per request while it is open, settled or not
    holds         ceilings of attempts that are reserved or in flight
    doubts        ceilings of attempts whose cost is not known
    settled       attempts that are in doubt no longer, by a later word
    budgets       each as it was last set; lifted ones too, so that the latest word counts
    crossed       warn limits that are above, and have been told of

Amounts are whole numbers of 1e-12 USD ("pico"), which is what a ledger's decimal holds; a sum is kept as
millionths of a dollar ("micro") and the rest in pico, so that no sum outgrows an integer of SQLite. How many
rows a limit takes to check does not grow with the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import apsw

from ledger.budgets import Budget, Budgets
from ledger.errors import LedgerError
from ledger.fold import BudgetKey, BudgetRow, Change, Events, HoldRow, Spent, fold
from ledger.money import dollars
from ledger.windows import Window

_PICO_PER_MICRO = 1_000_000
_SUMMED_AT_ONCE = 64  # rows; fewer cost more sums per request, more cost each check
_FEW = 16
INTEGER_AT_MOST = 2**62  # what SQLite can hold, and some room
_EVER = (-INTEGER_AT_MOST, INTEGER_AT_MOST)
_OLD_QUARTERS = 96 * 62  # a window is forgotten two months after its end

TABLES = """
create table balances (
    scope text not null, scope_id text not null, quarter integer not null,
    spent_micro integer not null, spent_rest integer not null, unpriced_attempts integer not null,
    primary key (scope, scope_id, quarter)
) strict, without rowid;
create table sums (
    scope text not null, scope_id text not null, first_quarter integer not null, end_quarter integer not null,
    spent_micro integer not null, spent_rest integer not null,
    doubt_micro integer not null, doubt_rest integer not null,
    primary key (scope, scope_id, first_quarter, end_quarter)
) strict, without rowid;
create table unsummed (
    id integer primary key, quarter integer not null, session_id text, task text not null, tier text not null,
    model text not null, spent_pico integer not null, unpriced_attempts integer not null
) strict;
create table request_spent (
    request_id text primary key, spent_micro integer not null, spent_rest integer not null
) strict, without rowid;
create table holds (
    attempt_id text primary key, journal_id text not null, request_id text not null, session_id text,
    task text not null, tier text not null, model text not null, ceiling_pico integer,
    quarter integer not null, state text not null check (state in ('reserved', 'in_flight'))
) strict, without rowid;
create table doubts (
    attempt_id text primary key, journal_id text not null, request_id text not null, session_id text,
    task text not null, tier text not null, model text not null, ceiling_pico integer,
    quarter integer not null
) strict, without rowid;
create index doubts_of_request on doubts (request_id);
create index doubts_of_session on doubts (session_id);
create table settled (attempt_id text primary key) strict, without rowid;
create table budgets (
    scope text not null, scope_id text not null, mode text not null, limit_pico integer, tz text not null,
    reason text, set_at text not null, journal_id text not null, seq integer not null,
    primary key (scope, scope_id, mode)
) strict, without rowid;
create table crossed (
    scope text not null, scope_id text not null, limit_pico integer not null, attempt_id text not null,
    primary key (scope, scope_id, limit_pico)
) strict, without rowid;
"""
# No view: with one in it SQLite 3.54 no longer finds pages that nothing uses.
SPENT = """
select scope, scope_id, quarter, spent_micro, spent_rest, unpriced_attempts from balances
union all
select 'all', '', quarter, spent_pico / 1000000, spent_pico % 1000000, unpriced_attempts from unsummed
union all
select 'task', task, quarter, spent_pico / 1000000, spent_pico % 1000000, unpriced_attempts from unsummed
union all
select 'tier', tier, quarter, spent_pico / 1000000, spent_pico % 1000000, unpriced_attempts from unsummed
union all
select 'model', model, quarter, spent_pico / 1000000, spent_pico % 1000000, unpriced_attempts from unsummed
union all
select 'session', session_id, quarter, spent_pico / 1000000, spent_pico % 1000000, unpriced_attempts
from unsummed where session_id is not null
"""
_OF_SESSION = (
    f"from sums where scope = 'session' and scope_id = ?1 and first_quarter = {_EVER[0]}"
    f" and end_quarter = {_EVER[1]}"
)
_LATELY_OF_SESSION = "from unsummed where session_id = ?1"
_SESSION_SPENT = f"""
select exists (select 1 from doubts where session_id = ?1),
    coalesce((select seq from positions where journal_id = ?2), 0),
    (select spent_micro {_OF_SESSION}), (select spent_rest {_OF_SESSION}),
    (select sum(spent_pico / {_PICO_PER_MICRO}) {_LATELY_OF_SESSION}),
    (select sum(spent_pico % {_PICO_PER_MICRO}) {_LATELY_OF_SESSION})
"""
CLEARED_TO_REBUILD = (*("balances", "sums", "unsummed", "request_spent", "doubts", "settled", "budgets"),)

_Account = tuple[str, str, int, int]


class Accounts:
    """The money tables of an open state.db. All in its transactions."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db
        self.known_budgets = Budgets()
        self._budgets_revision: Any = None
        self._sums: dict[_Account, tuple[int, int]] = {}  # spent and in doubt, as of that revision
        self._sums_revision: Any = None

    def forget(self) -> None:
        """What was read in a transaction that is undone never was."""
        self._budgets_revision = self._sums_revision = None

    # what events change

    def write(self, change: Change) -> None:
        """Count what a run of events says."""
        self._write_spent(change)
        self._write_holds(change)
        if change.budgets:
            self._write_budgets(change.budgets)

    def _write_spent(self, change: Change) -> None:
        rows = [
            (*spent, amount, change.unpriced_attempts[spent]) for spent, amount in change.spent_pico.items()
        ]
        if len(rows) <= _FEW and all(0 <= row[5] < INTEGER_AT_MOST for row in rows):
            self._run("insert into unsummed values (null, ?, ?, ?, ?, ?, ?, ?)", rows)
            if rows and self._db.last_insert_rowid() > _SUMMED_AT_ONCE:  # ids begin at 1 in an empty table
                self.sum_up()
        else:
            self._sum(rows)
        self._run(
            "insert into request_spent values (?, ?, ?) on conflict do update set"
            " spent_micro = spent_micro + excluded.spent_micro,"
            " spent_rest = spent_rest + excluded.spent_rest",
            [
                (request_id, *divmod(amount, _PICO_PER_MICRO))
                for request_id, amount in change.request_spent_pico.items()
            ],
        )
        self._run(
            "delete from request_spent where request_id = ?", [(name,) for name in change.requests_ended]
        )

    def _write_holds(self, change: Change) -> None:
        rows = change.holds.values()
        self._run(
            "delete from holds where attempt_id = ?",
            [(name,) for name, row in change.holds.items() if row is None or row.state == "in_doubt"],
        )
        self._run(
            "insert or replace into holds values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [row for row in rows if row is not None and row.state == "in_flight"],
        )
        self._run("insert or ignore into settled values (?)", [(name,) for name in change.settled])
        for row in rows:
            if row is not None and row.state == "in_doubt":
                self._doubt(row)
        for name in change.settled:  # whichever is applied first: the settlement's journal, or the attempt's
            self._end_doubt(name)

    def _doubt(self, row: HoldRow) -> None:
        if self._db.execute("select 1 from settled where attempt_id = ?", (row.attempt_id,)).get is not None:
            return
        self._db.execute("insert or ignore into doubts values (?, ?, ?, ?, ?, ?, ?, ?, ?)", row[:-1])
        if self._db.changes():
            self._add_to_sums(row.counts_for, doubt_pico=row.ceiling_pico or 0)

    def _end_doubt(self, attempt_id: str) -> None:
        for quarter, session_id, task, tier, model, ceiling_pico in self._db.execute(
            "delete from doubts where attempt_id = ?"
            " returning quarter, session_id, task, tier, model, ceiling_pico",
            (attempt_id,),
        ).fetchall():
            spent = Spent(int(quarter), session_id, task, tier, model)  # type: ignore[arg-type]
            self._add_to_sums(spent, doubt_pico=-int(ceiling_pico or 0))

    def _add_to_sums(self, spent: Spent, doubt_pico: int) -> None:
        self._write_sums(
            [
                (*account, spent.quarter, 0, 0, *divmod(doubt_pico, _PICO_PER_MICRO))
                for account in _accounts(spent)
            ]
        )

    def _sum(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add what was spent to the balances and sums of every scope it counts in."""
        spent: Counter[tuple[str, str, int]] = Counter()
        unpriced: Counter[tuple[str, str, int]] = Counter()
        for quarter, session_id, task, tier, model, amount, unpriced_attempts in rows:
            for account in _accounts(Spent(quarter, session_id, task, tier, model)):
                spent[*account, quarter] += amount
                unpriced[*account, quarter] += unpriced_attempts
        added = [(*key, *divmod(amount, _PICO_PER_MICRO)) for key, amount in spent.items()]
        self._run(
            "insert into balances values (?, ?, ?, ?, ?, ?) on conflict do update set"
            " spent_micro = spent_micro + excluded.spent_micro,"
            " spent_rest = spent_rest + excluded.spent_rest,"
            " unpriced_attempts = unpriced_attempts + excluded.unpriced_attempts",
            [(*row, unpriced[row[:3]]) for row in added],
        )
        self._write_sums([(*row, 0, 0) for row in added])

    def _write_sums(self, added: Sequence[tuple[Any, ...]]) -> None:
        """scope, scope_id, quarter, and what is to be added in micro and rest: spent, in doubt."""
        self.sums_changed()
        self._run(
            "insert into sums values (?, ?, ?, ?, ?, ?, ?, ?) on conflict do update set"
            " spent_micro = spent_micro + excluded.spent_micro,"
            " spent_rest = spent_rest + excluded.spent_rest,"
            " doubt_micro = doubt_micro + excluded.doubt_micro,"
            " doubt_rest = doubt_rest + excluded.doubt_rest",
            [(row[0], row[1], *_EVER, *row[3:]) for row in added],
        )
        self._run(
            "update sums set spent_micro = spent_micro + ?, spent_rest = spent_rest + ?,"
            " doubt_micro = doubt_micro + ?, doubt_rest = doubt_rest + ?"
            " where scope = 'all' and scope_id = '' and first_quarter <= ? and end_quarter > ?"
            f" and end_quarter < {_EVER[1]}",
            [(*row[3:], row[2], row[2]) for row in added if row[0] == "all"],
        )

    def sum_up(self) -> None:
        """Move what was spent lately into the balances and sums."""
        rows = self._db.execute(
            "select quarter, session_id, task, tier, model, spent_pico, unpriced_attempts from unsummed"
        ).fetchall()
        if rows:
            self._sum(rows)
            self._db.execute("delete from unsummed")

    def _run(self, sql: str, rows: Sequence[Any]) -> None:
        if rows:
            self._db.executemany(sql, rows)

    # budgets

    def _write_budgets(self, budgets: dict[BudgetKey, BudgetRow]) -> None:
        self._run(
            "insert into budgets values (?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do update set"
            " limit_pico = excluded.limit_pico, tz = excluded.tz, reason = excluded.reason,"
            " set_at = excluded.set_at, journal_id = excluded.journal_id, seq = excluded.seq"
            " where (set_at, journal_id, seq) < (excluded.set_at, excluded.journal_id, excluded.seq)",
            [(*key, *row[:3], *row.order) for key, row in budgets.items()],
        )
        self.budgets_changed()

    def budgets_changed(self) -> None:
        """Have every process look at the budgets again."""
        self._db.execute(
            "insert into meta values ('budgets', '1') on conflict do update set value = value + 1"
        )

    def budgets(self) -> Budgets:
        """The budgets in force."""
        revision = self._db.execute("select value from meta where key = 'budgets'").get or "0"
        if revision != self._budgets_revision:
            rows = self._db.execute(
                "select scope, scope_id, mode, limit_pico, tz, reason from budgets"
                " where limit_pico is not null"
            ).fetchall()
            self.known_budgets = Budgets(_budget(*row) for row in rows)
            self._budgets_revision = revision
        return self.known_budgets

    def budget_set_at(self, budget: Budget) -> str | None:
        """When a budget was last set or lifted, as a text that sorts; None: never."""
        found = self._db.execute(
            "select set_at from budgets where (scope, scope_id, mode) = (?, ?, ?)", budget.key
        ).get
        return None if found is None else str(found)

    # what is summed up

    @property
    def revision(self) -> tuple[str, str] | None:
        """As of which change the sums and budgets are known that were read last; None: not known."""
        if self._sums_revision is None or self._budgets_revision is None:
            return None
        return self._sums_revision, self._budgets_revision

    def refresh(self) -> bool:
        """Forget what was read of the sums, where anybody has changed them since; whether so."""
        revision = self._db.execute("select value from meta where key = 'sums'").get or "0"
        if revision == self._sums_revision:
            return False
        self._sums_revision = revision
        self._sums.clear()
        return True

    def sums_changed(self) -> None:
        """Have every process look at the sums again."""
        self._sums_revision = None
        self._db.execute("insert into meta values ('sums', '1') on conflict do update set value = value + 1")

    def _of_request(self, request_id: str) -> tuple[int, int]:
        row = self._row(
            "select spent_micro, spent_rest, doubt_micro, doubt_rest from"
            " (select sum(spent_micro) as spent_micro, sum(spent_rest) as spent_rest from request_spent"
            " where request_id = ?1),"
            f" (select sum(ceiling_pico / {_PICO_PER_MICRO}) as doubt_micro,"
            f" sum(ceiling_pico % {_PICO_PER_MICRO}) as doubt_rest from doubts where request_id = ?1)",
            (request_id,),
        )
        in_doubt = _whole(row[2:])
        return _whole(row[:2]) - in_doubt, in_doubt

    def stored(self, scope: str, scope_id: str, window: Window | None) -> tuple[int, int]:
        """What is spent and in doubt, but for what is live."""
        if scope == "request":
            return self._of_request(scope_id)
        if window is None and scope not in ("session", "task", "tier", "model", "all"):
            raise LedgerError(f"no balance is kept for the scope {scope!r}")
        account = (scope, scope_id, *_EVER) if window is None else ("all", "", window[0], window[1])
        known = self._sums.get(account)
        if known is None:
            row = self._sums_row(account)
            if row is None and window is not None:
                self._sum_window(window)
                row = self._sums_row(account)
            known = self._sums[account] = (0, 0) if row is None else (_whole(row[:2]), _whole(row[2:]))
        return known

    def _sums_row(self, account: _Account) -> Any:
        return self._db.execute(
            "select spent_micro, spent_rest, doubt_micro, doubt_rest from sums"
            " where scope = ? and scope_id = ? and first_quarter = ? and end_quarter = ?",
            account,
        ).fetchone()

    def _row(self, sql: str, bound: tuple[Any, ...] = ()) -> Any:
        return self._db.execute(sql, bound).fetchone()

    def _sum_window(self, window: Window) -> None:
        """Sum a day or month that is asked for the first time, and forget those long over."""
        first, end, _ = window
        self._db.execute("delete from sums where scope = 'all' and end_quarter < ?", (first - _OLD_QUARTERS,))
        within = "where quarter >= ?1 and quarter < ?2"
        self._db.execute(
            f"""insert into sums
            select 'all', '', ?1, ?2, coalesce(spent_micro, 0), coalesce(spent_rest, 0),
                coalesce(doubt_micro, 0), coalesce(doubt_rest, 0)
            from
                (select sum(spent_micro) as spent_micro, sum(spent_rest) as spent_rest
                from balances {within} and scope = 'all'),
                (select sum(ceiling_pico / {_PICO_PER_MICRO}) as doubt_micro,
                sum(ceiling_pico % {_PICO_PER_MICRO}) as doubt_rest from doubts {within})""",
            (first, end),
        )

    # reading

    def session_spent(self, session_id: str, journal_id: str, untold: Events) -> Decimal | None:
        """What a session has cost; None where that is not all known, as something of it is in doubt.

        untold: events of that journal that may not have been counted yet.
        """
        row: Any = self._db.execute(_SESSION_SPENT, (session_id, journal_id)).fetchone()
        has_doubts, position, spent, lately = row[0], row[1], row[2:4], row[4:]
        new = [
            (seq, event) for seq, event in untold if seq > position and event.get("session_id") == session_id
        ]
        change = fold(journal_id, new)
        if has_doubts or any(hold is not None and hold.state == "in_doubt" for hold in change.holds.values()):
            return None
        return dollars(_whole(spent) + _whole(lately) + sum(change.spent_pico.values()))

    def dump(self) -> dict[str, list[tuple[Any, ...]]]:
        """All derived rows, sorted; sums, as they are of the rest, left out, and reservations."""
        return {
            "balances": sorted(
                (scope, scope_id, quarter, micro * _PICO_PER_MICRO + rest, unpriced)
                for scope, scope_id, quarter, micro, rest, unpriced in self._db.execute(
                    "select scope, scope_id, quarter, sum(spent_micro), sum(spent_rest),"
                    f" sum(unpriced_attempts) from ({SPENT}) group by scope, scope_id, quarter"
                )
                if micro or rest or unpriced
            ),
            "holds": sorted(
                self._db.execute(
                    "select attempt_id, ceiling_pico, state from holds where state <> 'reserved'"
                    " union all select attempt_id, ceiling_pico, 'in_doubt' from doubts"
                ),
                key=str,
            ),
            "request_spent": sorted(
                (request_id, micro * _PICO_PER_MICRO + rest)
                for request_id, micro, rest in self._db.execute("select * from request_spent")
            ),
            "settled": sorted(self._db.execute("select * from settled")),
            "budgets": sorted(self._db.execute("select * from budgets"), key=str),
        }


def _accounts(spent: Spent) -> list[tuple[str, str]]:
    """Every scope that money counts in; days and months are made of `all`."""
    accounts = [("all", ""), ("task", spent.task), ("tier", spent.tier), ("model", spent.model)]
    if spent.session_id is not None:
        accounts.append(("session", spent.session_id))
    return accounts


def _whole(row: Any) -> int:
    """Micro and rest as pico; None is nothing."""
    return 0 if row is None else (row[0] or 0) * _PICO_PER_MICRO + (row[1] or 0)


def _budget(scope: Any, scope_id: Any, mode: Any, limit_pico: Any, tz: Any, reason: Any) -> Budget:
    return Budget(scope, scope_id or None, dollars(limit_pico), mode, tz, reason)
