"""One request's line to the ledger: from what was asked to how it ended, in one journal.

log = ledger.open_request(received)
log.reserve(hold, limits)           where a limit is set
log.append(started)                 with `received` before it, durable before anything is sent
log.append(succeeded, completed)    durable before route() returns
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel

from ledger.budgets import Hold, Limit, Warned, in_words
from ledger.errors import BudgetError, LedgerError
from ledger.events import (
    REQUEST_ENDS,
    AttemptCancelled,
    AttemptStarted,
    BudgetWarned,
    RequestFailed,
    RequestReceived,
)
from ledger.fold import cost_of
from ledger.journal import Journal, MomentPassed
from ledger.money import MONEY
from ledger.windows import quarter_of

if TYPE_CHECKING:
    from ledger.ledger import Ledger


_log = logging.getLogger("ledger")

_NEVER = datetime.min.replace(tzinfo=UTC)
REQUEST_FACTS = {"request_id", "session_id", "task", "tags", "requested_tier"}


class _Reserved(NamedTuple):
    """A ceiling that is held for an attempt to start in that quarter of an hour."""

    hold: Hold
    limits: Sequence[Limit]
    quarter: int
    warnings: Sequence[BudgetWarned]

    def is_at(self, moment: datetime) -> bool:
        return quarter_of(moment) == self.quarter


class RequestLog:
    """An open request's line to the one journal that tells its story."""

    def __init__(self, ledger: Ledger, journal: Journal, received: RequestReceived) -> None:
        self._ledger = ledger
        self._journal = journal
        self._received = received
        self._begun = False
        self._ended = False
        self._reserved: _Reserved | None = None  # until its attempt has started
        self._asked_for: str | None = None  # likewise: the attempt that a ceiling may be held for
        self._earlier_usd: Decimal | None = Decimal(0)  # ceilings of its attempts; None: one has none
        self._held_usd: Decimal | None = None  # counts until state.db is told of the attempt's outcome
        self.started_at = _NEVER  # of the request, once begun

    @property
    def journal_id(self) -> str:
        """The journal that tells the story; its process holds its lock."""
        return self._journal.id

    @property
    def begun(self) -> bool:
        """Whether anything of the request is on the books."""
        return self._begun

    @property
    def ended(self) -> bool:
        """Whether the request's end is on the books, or was refused by the disk: nothing can follow."""
        return self._ended

    def reserve(self, hold: Hold, limits: Sequence[Limit] = ()) -> None:
        """Hold an attempt's ceiling against the budgets in force and `limits`, over all processes.

        One transaction looks at all of them and holds. Warn limits that are crossed are logged, and
        recorded with the attempt. Raises BudgetError where a hard limit would not hold, LedgerError where
        that cannot be told; then nothing is held. Where the attempt starts in a later quarter of an hour,
        which may be of another day, `append` does this again, and raises the same.
        """
        self._asked_for = hold.attempt_id  # a Ctrl-C may come when it is held, and before that is noted
        try:
            quarter, warned = self._ledger.reserve(self._journal, hold, limits, self._earlier_usd)
        except BudgetError:
            self._asked_for = None
            raise
        self._reserved = _Reserved(hold, limits, quarter, [self._warning(hold, each) for each in warned])

    def _warning(self, hold: Hold, warned: Warned) -> BudgetWarned:
        limit, balance = warned
        _log.warning("%s", in_words(warned, hold))
        return BudgetWarned(
            **self._received.model_dump(include=REQUEST_FACTS),
            scope=limit.scope,
            scope_id=limit.scope_id or None,
            tz=limit.tz,
            limit_usd=limit.limit_usd,
            spent_usd=balance.spent_usd,
            reserved_usd=balance.reserved_usd,
            in_doubt_usd=balance.in_doubt_usd,
            asked_usd=hold.asked_usd,
        )

    def append(self, *events: BaseModel) -> datetime:
        """Append events as one commit, the first after what was asked; durable on return. Gives their moment.

        The event that ends the request closes the log. Raises LedgerError where they could not be
        written: outcomes are written as soon as that is possible; an attempt that was to start is
        recorded as cancelled, and its request as failed.
        """
        if self._ended:
            raise LedgerError(f"request {self._received.request_id} has ended; nothing can follow")
        if self._begun:
            return self._commit(events)
        self.started_at = self._commit((self._received, *events))
        self._begun = True
        return self.started_at

    def abandon(self) -> None:
        """Give up a request of which nothing is on the books yet."""
        if not (self._begun or self._ended):
            self._end()

    def _commit(self, events: Sequence[BaseModel]) -> datetime:
        starting = [event for event in events if type(event) is AttemptStarted]
        ends = events[-1].event_type in REQUEST_ENDS  # type: ignore[attr-defined]
        self._ended = ends  # said before it is so: no Ctrl-C in between may leave room for a second end
        try:
            if starting or not self._begun:
                occurred_at = self._start(events, self._ending_of(starting, ends))
            else:  # it has happened: kept, whatever the disk says
                occurred_at = self._journal.append(events, must_keep=True)
        except BudgetError:  # nothing is recorded, and what follows is how that was refused
            self._ended = False
            raise
        except BaseException:
            self._ledger.journal_waits()
            if ends or starting or not self._begun:
                self._end()
            raise
        is_new = bool(starting) and self._reserved is None  # state.db has not heard of the attempt
        if starting:
            self._earlier_usd = _with_ceilings(self._earlier_usd, starting)
            self._held_usd = None if self._reserved is None else self._reserved.hold.asked_usd
            self._reserved = self._asked_for = None
        if ends:
            self._end()
        self._ledger.journal_appended(self._journal, occurred_at)
        if is_new or not starting:
            self._tell(events)
        return occurred_at

    def _tell(self, events: Sequence[BaseModel]) -> None:
        """Tell state.db of what counts now: at once where what it knows instead may count less."""
        held_usd = self._held_usd
        if held_usd is not None and any(_costs_more(event, held_usd) for event in events):
            self._earlier_usd = held_usd = None
        if self._ledger.is_limited or self._held_usd is not None:
            self._ledger.tell(self._journal, can_wait=held_usd is not None)

    def _start(
        self, events: Sequence[BaseModel], ending: Callable[[datetime], Sequence[BaseModel]]
    ) -> datetime:
        """Append where nothing has happened yet; in the quarter of an hour that its ceiling is held in."""
        while (reserved := self._reserved) is not None:
            try:
                return self._journal.append(
                    _with_warnings(events, reserved.warnings), unless_confirmed=ending, only_at=reserved.is_at
                )
            except MomentPassed:
                self._ledger.release(reserved.hold.attempt_id)
                self._reserved = self._asked_for = None
                self.reserve(reserved.hold, reserved.limits)
        return self._journal.append(events, unless_confirmed=ending)

    def _ending_of(
        self, starting: Sequence[AttemptStarted], ends: bool
    ) -> Callable[[datetime], Sequence[BaseModel]]:
        """How the request ends if these events, at that moment, cannot be recorded."""

        def ending(at: datetime) -> Sequence[BaseModel]:
            request_at = self.started_at if self._begun else at
            return () if ends else _never_sent(self._received, request_at, starting, at)

        return ending

    def _end(self) -> None:
        self._ended = True
        if self._asked_for is not None:
            self._ledger.release(self._asked_for)
        self._ledger.request_ended(self._journal)


def _costs_more(event: BaseModel, ceiling_usd: Decimal) -> bool:
    cost = cost_of(vars(event))
    return cost is not None and Decimal(cost) > ceiling_usd


def _with_ceilings(usd: Decimal | None, starting: Sequence[AttemptStarted]) -> Decimal | None:
    for attempt in starting:
        usd = None if usd is None or attempt.reserved_usd is None else MONEY.add(usd, attempt.reserved_usd)
    return usd


def _with_warnings(events: Sequence[BaseModel], warnings: Sequence[BudgetWarned]) -> Sequence[BaseModel]:
    """Warnings stand before the attempt that they are of."""
    return [*events[:-1], *warnings, events[-1]] if warnings else events


def _never_sent(
    received: RequestReceived, request_at: datetime, starting: Sequence[AttemptStarted], at: datetime
) -> list[BaseModel]:
    """How a request ends whose attempt was refused before a byte was sent; pure."""
    request = received.model_dump(include=REQUEST_FACTS)
    routing = {"attempt_id", "attempt_number", "tier", "provider", "model", "streamed"}
    reason = "the ledger could not record it, so nothing was sent"
    cancelled = [
        AttemptCancelled(
            **request,
            **attempt.model_dump(include=routing),
            started_at=at,
            billing="unbilled",
            billing_rule="never_sent",
            reason=reason,
        )
        for attempt in starting
    ]
    last = starting[-1] if starting else None
    failed = RequestFailed(
        **request,
        started_at=request_at,
        attempt_number=last.attempt_number if last else 0,
        tier=last.tier if last else received.requested_tier,
        error_type="cancelled",
        error_message=reason,
        reason="cancelled",
    )
    return [*cancelled, failed]
