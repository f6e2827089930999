"""A later word on an attempt whose cost is not known: what it was, once somebody has found out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger.errors import LedgerError
from ledger.events import AttemptSettled, CeilingBroken, plain_text
from ledger.files import only_one
from ledger.money import MONEY, plain

if TYPE_CHECKING:
    from ledger.ledger import Ledger

_log = logging.getLogger("ledger")

SETTLE_LOCK = "settle.lock"
SEE_THOSE_IN_DOUBT = 'see bughive-costs sql "select attempt_id from in_doubt"'
_WAIT_S = 30.0
_FIELDS = (
    *("session_id", "request_id", "attempt_id", "attempt_number", "task", "tags", "requested_tier"),
    *("tier", "provider", "model", "started_at"),
)


def settle(
    ledger: Ledger, attempt_ids: Sequence[str], billed_usd: Decimal | None, reason: str | None
) -> list[AttemptSettled]:
    """Record what attempts in doubt, or without a price, were billed each; None: they were not.

    Gives the events, one commit. Raises LedgerError, and settles none, where one is not there, still in
    flight, or known already. One process settles at a time, and knows what those before it have settled:
    nothing is settled twice.
    """
    with only_one(ledger.path / SETTLE_LOCK, _WAIT_S, "settling"):
        ledger.flush()
        ledger.end_dead_journals()
        attempts = _attempts(ledger.path, attempt_ids)
        settled = [_settled(attempt, billed_usd, reason) for attempt in attempts]
        broken = [event for attempt in attempts for event in _ceiling_broken(attempt, billed_usd)]
        if settled:
            ledger.record(*settled, *broken)
        for event in broken:
            _log.warning(
                "attempt %s was settled as $%s, more than its ceiling of $%s",
                event.attempt_id,
                plain(event.spent_usd),
                plain(event.reserved_usd),
            )
        return settled


def _settled(attempt: dict[str, Any], billed_usd: Decimal | None, reason: str | None) -> AttemptSettled:
    known_usd = attempt["cost_usd"]
    is_told = billed_usd is not None or known_usd is not None
    return AttemptSettled(
        **{name: attempt[name] for name in _FIELDS},
        billed_cost_usd=MONEY.subtract(billed_usd or Decimal(0), known_usd or Decimal(0))
        if is_told
        else None,
        billing="unbilled" if billed_usd is None else "billed",
        billing_rule="settled",
        reason=plain_text(reason) if reason else None,
    )


def _ceiling_broken(attempt: dict[str, Any], billed_usd: Decimal | None) -> list[CeilingBroken]:
    """That it cost more than was thought it could: the ceiling was too low, or the amount is mistaken."""
    ceiling_usd = attempt["reserved_usd"]
    if billed_usd is None or ceiling_usd is None or billed_usd <= ceiling_usd:
        return []
    facts = {name: attempt[name] for name in _FIELDS if name != "started_at"}
    return [CeilingBroken(**facts, reserved_usd=ceiling_usd, spent_usd=billed_usd)]


def _attempts(path: Path, attempt_ids: Sequence[str]) -> list[dict[str, Any]]:
    """The attempts, each once, as far as a settlement repeats them; with known cost and ceiling."""
    from ledger.reader import connect

    wanted = list(dict.fromkeys(attempt_ids))
    fields = ", ".join(f"told.{name}" for name in _FIELDS)
    with connect(path, views=("events", "attempts")) as connection:
        found = connection.execute(
            "select attempts.attempt_id, attempts.cost_usd, attempts.billing, attempts.outcome,"
            f" attempts.is_unpriced, attempts.reserved_usd, {fields} from attempts left join"
            " (select distinct on (attempt_id) * from events where started_at is not null) as told"
            " using (attempt_id) where list_contains(?, attempts.attempt_id)",
            [wanted],
        ).fetchall()
    known = {row[0]: row for row in found}
    for attempt_id in wanted:
        _refuse_what_is_known(attempt_id, known.get(attempt_id))
    return [
        dict(zip(_FIELDS, known[name][6:], strict=True))
        | {"cost_usd": known[name][1], "reserved_usd": known[name][5]}
        for name in wanted
    ]


def _refuse_what_is_known(attempt_id: str, found: tuple[Any, ...] | None) -> None:
    if found is None:
        raise LedgerError(f"no attempt has the id {attempt_id}; {SEE_THOSE_IN_DOUBT}")
    _, cost_usd, billing, outcome, is_unpriced, *_ = found
    if outcome == "in_flight":
        raise LedgerError(f"attempt {attempt_id} is still in flight; settle it when it has ended")
    if billing != "unknown" and not is_unpriced:
        raise LedgerError(f"attempt {attempt_id} is not in doubt: it is {billing}, ${cost_usd:f}")
