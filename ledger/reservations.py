"""Ceilings held against limits: whether they would still hold, over all processes, and what then counts.

    reserve_if_sure    where a ceiling fits with all that is live, whoever that is for
    reserve            else each limit is looked at, when state.db knows all this process has written

A limit is broken, or warned of, only by what is sure to count: a ceiling that another process holds may
have become a cost that state.db was not told of yet. `OthersMayLag` says whose journals to read first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import apsw

from ledger.accounts import INTEGER_AT_MOST, Accounts
from ledger.budgets import Balance, Budgets, Hold, Limit, Limits, Warned, check
from ledger.money import dollars, known_pico, pico
from ledger.windows import Window

# where a row of `_LIVE` says what a limit's id must be; days, months and `all` take every row
_COLUMN = {"request": 1, "session": 2, "task": 3, "tier": 4, "model": 5}
_LIVE = (
    "select 1, request_id, session_id, task, tier, model, quarter, ceiling_pico, journal_id from holds"
    " where ceiling_pico is not null"
    " union all select 0, null, session_id, task, tier, model, quarter, spent_pico, null from unsummed"
)
_AT_MOST = (  # no less than all that is live, in micro
    "(select coalesce(sum(ceiling_pico / 1000000 + 1), 0) from holds where ceiling_pico is not null)"
    " + (select coalesce(sum(max(spent_pico, 0) / 1000000 + 1), 0) from unsummed)"
)
_HOLD = "insert into holds values (?, ?, ?, ?, ?, ?, ?, ?, ?, 'reserved')"
_MICRO = 1_000_000  # pico
_ALIKE_AT_MOST = 1_024
_ALWAYS_LOOK = -INTEGER_AT_MOST
_Live = Sequence[tuple[Any, ...]]


Told = Collection[str]  # journals of which state.db knows all that counts


class OthersMayLag(Exception):
    """A limit would hold if these journals' processes had let go of what they hold: read them first."""

    def __init__(self, journal_ids: set[str]) -> None:
        super().__init__(journal_ids)
        self.journal_ids = journal_ids


class _Counted(NamedTuple):
    """What counts against a limit, in pico; and what of `reserved` is others', by their journals."""

    spent: int
    reserved: int
    in_doubt: int
    of_others: int
    others: set[str]

    @property
    def total(self) -> int:
        return self.spent + self.reserved + self.in_doubt

    def in_dollars(self) -> Balance:
        return Balance(*map(dollars, self[:3]))


class Reservations:
    """The holds of an open state.db, and the warnings that were given. In its transactions."""

    def __init__(self, db: apsw.Connection, accounts: Accounts) -> None:
        self._db = db
        self._accounts = accounts
        self._room: dict[int, tuple[tuple[Limit, ...], int]] = {}  # as of the accounts' revision
        self._crossed: set[Any] = set()  # likewise
        self._standing = 0, -1  # what is live, in micro, and in which version of the file
        self._held_micro = 0  # the same, once it is committed

    def reserve_if_sure(
        self, journal_id: str, hold: Hold, own: Sequence[Limit], quarter: int, earlier_usd: Decimal
    ) -> bool:
        """Hold a ceiling where all that is live, whoever that is for, leaves it room. In a transaction.

        own: limits that the call brings along. earlier_usd: no less than what counts for its request so far.
        False: nothing is held, and `reserve` is to look. To be followed by `committed`.
        """
        live_micro = self._live_micro()
        budgets = self._accounts.known_budgets
        asked = pico(hold.asked_usd or Decimal(0))
        room = min(
            self._room_under(budgets.shared_on(hold, quarter)) - asked - live_micro * _MICRO,
            self._room_on_request(hold.request_id, budgets, own) - asked - known_pico(earlier_usd),
        )
        if room < 0:
            return False
        self._db.execute(_HOLD, (hold[0], journal_id, *hold[1:6], asked, quarter))
        self._held_micro = live_micro + asked // _MICRO + 1
        return True

    def _live_micro(self) -> int:
        """No less than all that is live; known without asking where nobody has written since."""
        live_micro, version = self._standing
        if version == self._db.data_version() and self._accounts.revision is not None:
            return live_micro
        self._refresh()
        self._accounts.budgets()
        row: Any = self._db.execute(f"select {_AT_MOST}").fetchone()
        return int(row[0])

    def _room_on_request(self, request_id: str, budgets: Budgets, own: Sequence[Limit]) -> int:
        """What a request may cost by its own limits; nothing is sure where one has come of another scope."""
        least_usd = budgets.least_on_request(request_id)
        room = INTEGER_AT_MOST if least_usd is None else known_pico(least_usd)
        for limit in own:
            room = min(room, known_pico(limit.limit_usd) if limit.scope == "request" else _ALWAYS_LOOK)
        return room

    def committed(self) -> None:
        """What `reserve_if_sure` has held is held: until anybody writes, that is what is live."""
        self._standing = self._held_micro, self._db.data_version()

    def reserve(
        self, journal_id: str, hold: Hold, limits: Limits, quarter: int, told: Told | None
    ) -> list[Warned]:
        """Hold a ceiling if every hard limit would still hold with it. Gives the warn limits it crosses.

        told: journals of which state.db knows all; None: it is to be taken for knowing all of all.
        Raises BudgetError for the first hard limit that would not hold, or cannot be told to; OthersMayLag
        where that, or a warning, is not sure yet. Limits that fit with all that is live, whoever that is
        for, are not looked at any closer.
        """
        self._refresh()
        row: Any = self._db.execute(f"select {_AT_MOST}").fetchone()
        asked_usd = hold.asked_usd
        asked = 0 if asked_usd is None else pico(asked_usd)
        warned: list[Warned] = []
        at_most = row[0] * _MICRO + asked
        if asked_usd is None or at_most > self._least_room(limits.own):
            self._check(limits.own, hold, asked, told, warned)
        if asked_usd is None or at_most > self._room_under(limits.shared):
            self._check(limits.shared, hold, asked, told, warned)
        if asked_usd is not None:
            self._db.execute(_HOLD, (hold[0], journal_id, *hold[1:6], asked, quarter))
        return warned

    def _room_under(self, shared: tuple[Limit, ...]) -> int:
        """What may be live at most for all of these limits to hold, whoever it is for; in pico."""
        room = self._room.get(id(shared))
        if room is None or room[0] is not shared:
            if len(self._room) >= _ALIKE_AT_MOST:
                self._room.clear()
            room = self._room[id(shared)] = (shared, self._least_room(shared))
        return room[1]

    def _least_room(self, limits: Sequence[Limit]) -> int:
        return min(map(self._room_of, limits), default=INTEGER_AT_MOST)

    def _room_of(self, limit: Limit) -> int:
        """What may be live at most without another look: also for a warning to be taken back in time."""
        stored = self._accounts.stored(limit.scope, limit.scope_id, limit.window)
        room = known_pico(limit.limit_usd) - sum(stored)
        if not self._is_crossed(limit):
            return room
        return INTEGER_AT_MOST if room < 0 else _ALWAYS_LOOK

    def _is_crossed(self, limit: Limit) -> bool:
        return limit.mode == "warn" and _key(limit) in self._crossed

    def _check(
        self, limits: Sequence[Limit], hold: Hold, asked: int, told: Told | None, warned: list[Warned]
    ) -> None:
        live = self._db.execute(_LIVE).fetchall()
        for limit in limits:
            counted = self._counted(limit.scope, limit.scope_id, limit.window, live, told)
            over = counted.total + asked - known_pico(limit.limit_usd)
            is_known_above = hold.asked_usd is None or self._is_crossed(limit)
            if 0 < over <= counted.of_others and not is_known_above:
                raise OthersMayLag(counted.others)
            if limit.mode == "warn":
                if self._crosses(limit, hold, over <= 0):
                    warned.append(Warned(limit, counted.in_dollars()))
            elif hold.asked_usd is None or over > 0:
                check(limit, counted.in_dollars(), hold)

    def _refresh(self) -> None:
        """Forget what was read of the sums, where anybody has changed them since."""
        if self._accounts.refresh():
            self._room.clear()
            self._crossed = set(
                self._db.execute("select scope, scope_id, limit_pico from crossed").fetchall()
            )

    def _crosses(self, limit: Limit, hold: Hold, fits: bool) -> bool:
        """Whether a warn limit is above from now on; it is told of once, until it fits again."""
        key = _key(limit)
        if fits != (key in self._crossed):
            return False
        self._accounts.sums_changed()
        if fits:
            self._crossed.discard(key)
            self._db.execute("delete from crossed where (scope, scope_id, limit_pico) = (?, ?, ?)", key)
            return False
        self._crossed.add(key)
        self._db.execute("insert or ignore into crossed values (?, ?, ?, ?)", (*key, hold.attempt_id))
        return True

    def release(self, attempt_id: str) -> None:
        """Let go of a reservation whose attempt never started, and of what it was to warn of."""
        self._db.execute("delete from holds where attempt_id = ? and state = 'reserved'", (attempt_id,))
        self._db.execute("delete from crossed where attempt_id = ?", (attempt_id,))
        if self._db.changes():
            self._accounts.sums_changed()

    def release_all(self, journal_id: str) -> None:
        """The same for all reservations of a journal that is closed."""
        for (attempt_id,) in self._db.execute(
            "select attempt_id from holds where journal_id = ? and state = 'reserved'", (journal_id,)
        ).fetchall():
            self.release(str(attempt_id))

    def balance(self, scope: str, scope_id: str, window: Window | None = None) -> Balance:
        """What counts against a limit of that scope, within a window or of all time."""
        self._refresh()
        return self._counted(scope, scope_id, window, self._db.execute(_LIVE).fetchall(), None).in_dollars()

    def _counted(
        self, scope: str, scope_id: str, window: Window | None, live: _Live, told: Told | None
    ) -> _Counted:
        column = _COLUMN.get(scope)
        amounts = [0, 0]  # spent, reserved
        of_others, others = 0, set()
        for row in live:
            if column is not None and row[column] != scope_id:
                continue
            if window is not None and not window.first_quarter <= row[6] < window.end_quarter:
                continue
            is_held, amount, journal_id = row[0], row[7], row[8]
            amounts[is_held] += amount
            if is_held and told is not None and journal_id not in told:
                of_others += amount
                others.add(journal_id)
        spent, in_doubt = self._accounts.stored(scope, scope_id, window)
        return _Counted(spent + amounts[0], amounts[1], in_doubt, of_others, others)


def _key(limit: Limit) -> tuple[str, str, int]:
    return (limit.scope, limit.scope_id, known_pico(limit.limit_usd))
