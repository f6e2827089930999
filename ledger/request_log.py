"""One request's line to the ledger: from what was asked to how it ended, in one journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel

from ledger.errors import LedgerError
from ledger.events import REQUEST_ENDS, AttemptCancelled, AttemptStarted, RequestFailed, RequestReceived
from ledger.journal import Journal

if TYPE_CHECKING:
    from ledger.ledger import Ledger


class RequestLog:
    """An open request's line to the one journal that tells its story."""

    def __init__(self, ledger: Ledger, journal: Journal, received: RequestReceived) -> None:
        self._ledger = ledger
        self._journal = journal
        self._received = received
        self._ended = False
        self.started_at = datetime.min.replace(tzinfo=UTC)  # of the request, once begun

    @property
    def ended(self) -> bool:
        """Whether the request's end is on the books, or was refused by the disk: nothing can follow."""
        return self._ended

    def append(self, *events: BaseModel) -> datetime:
        """Append events as one commit; durable on return. Gives their `occurred_at`.

        The event that ends the request closes the log. Raises LedgerError where they could not be
        written: outcomes are written as soon as that is possible; an attempt that was to start is
        recorded as cancelled, and its request as failed.
        """
        if self._ended:
            raise LedgerError(f"request {self._received.request_id} has ended; nothing can follow")
        return self._commit(events)

    def begin(self, events: Sequence[BaseModel]) -> None:
        """Append the request's first events; `append`, for what follows, says more."""
        self.started_at = self._commit(events)

    def _commit(self, events: Sequence[BaseModel]) -> datetime:
        first = isinstance(events[0], RequestReceived)
        starting = [event for event in events if type(event) is AttemptStarted]
        ends = events[-1].event_type in REQUEST_ENDS  # type: ignore[attr-defined]
        try:
            if starting or first:
                occurred_at = self._journal.append(
                    events, unless_confirmed=self._ending_of(starting, first, ends)
                )
            else:  # it has happened: kept, whatever the disk says
                occurred_at = self._journal.append(events, must_keep=True)
        except BaseException:
            for event in starting:
                self._ledger.release(event.attempt_id)
            if ends or starting or first:
                self._end()
            raise
        if ends:
            self._end()
        self._ledger.journal_appended(self._journal, occurred_at)
        return occurred_at

    def _ending_of(
        self, starting: Sequence[AttemptStarted], first: bool, ends: bool
    ) -> Callable[[datetime], Sequence[BaseModel]]:
        """How the request ends if these events, at that moment, cannot be recorded."""

        def ending(at: datetime) -> Sequence[BaseModel]:
            return () if ends else _never_sent(self._received, at if first else self.started_at, starting, at)

        return ending

    def _end(self) -> None:
        self._ended = True
        self._ledger.request_ended(self._journal)


def _never_sent(
    received: RequestReceived, request_at: datetime, starting: Sequence[AttemptStarted], at: datetime
) -> list[BaseModel]:
    """How a request ends whose attempt was refused before a byte was sent; pure."""
    request = received.model_dump(include={"request_id", "session_id", "task", "tags", "requested_tier"})
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
