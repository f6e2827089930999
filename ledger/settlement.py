"""A later word on an attempt whose cost is not known: what it was, once somebody has found out."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger.errors import LedgerError
from ledger.events import AttemptSettled, plain_text
from ledger.files import only_one
from ledger.money import MONEY

if TYPE_CHECKING:
    from ledger.ledger import Ledger

SETTLE_LOCK = "settle.lock"
_WAIT_S = 30.0
_FIELDS = (
    *("session_id", "request_id", "attempt_id", "attempt_number", "task", "tags", "requested_tier"),
    *("tier", "provider", "model", "started_at"),
)


def settle(ledger: Ledger, attempt_id: str, billed_usd: Decimal | None, reason: str | None) -> AttemptSettled:
    """Record what an attempt in doubt, or without a price, was billed; None: it was not. Gives the event.

    Raises LedgerError for an attempt that is not there, still in flight, or known already. One process
    settles at a time, and knows what those before it have settled: nothing is settled twice.
    """
    with only_one(ledger.path / SETTLE_LOCK, _WAIT_S, "settling"):
        ledger.flush()
        ledger.end_dead_journals()
        attempt = _attempt(ledger.path, attempt_id)
        known_usd = attempt.pop("cost_usd")
        asked_usd = billed_usd or Decimal(0)
        is_told = billed_usd is not None or known_usd is not None
        event = AttemptSettled(
            **attempt,
            billed_cost_usd=MONEY.subtract(asked_usd, known_usd or Decimal(0)) if is_told else None,
            billing="unbilled" if billed_usd is None else "billed",
            billing_rule="settled",
            reason=plain_text(reason) if reason else None,
        )
        ledger.record(event)
        return event


def _attempt(path: Path, attempt_id: str) -> dict[str, Any]:
    from ledger.reader import connect

    with connect(path, views=("events", "attempts")) as connection:
        found = connection.execute(
            "select cost_usd, billing, outcome, is_unpriced from attempts where attempt_id = ?", [attempt_id]
        ).fetchone()
        if found is None:
            raise LedgerError(f"no attempt has the id {attempt_id}; see select attempt_id from in_doubt")
        cost_usd, billing, outcome, is_unpriced = found
        if outcome == "in_flight":
            raise LedgerError(f"attempt {attempt_id} is still in flight; settle it when it has ended")
        if billing != "unknown" and not is_unpriced:
            raise LedgerError(f"attempt {attempt_id} is not in doubt: it is {billing}, ${cost_usd:f}")
        row = connection.execute(
            f"select {', '.join(_FIELDS)} from events"
            " where attempt_id = ? and started_at is not null limit 1",
            [attempt_id],
        ).fetchone()
    assert row is not None, "an attempt with an outcome has its event"
    return {**dict(zip(_FIELDS, row, strict=True)), "cost_usd": cost_usd}
