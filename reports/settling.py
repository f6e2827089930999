"""Attempts in doubt, settled: one, or all from before a moment."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from ledger.budgets import limit_of
from ledger.errors import LedgerError, SettingsError
from ledger.ledger import Ledger
from ledger.reader import existing_ledger, reading
from ledger.settlement import SEE_THOSE_IN_DOUBT
from reports.options import UsageError, choice
from reports.render import Column, Document, Table

_COLUMNS = (
    Column("attempt_id", "Attempt", "text", whole=True),
    Column("request_id", "Request", "text", detail=True),
    Column("session_id", "Session", "text"),
    Column("tier", "Tier", "text"),
    Column("model", "Model", "text", detail=True),
    Column("started_at", "Started (UTC)", "minute"),
    Column("billing", "Settled as", "text"),
    Column("billed_cost_usd", "Cost", "usd"),
)


class Settled(NamedTuple):
    """What was settled."""

    rows: list[dict[str, Any]]

    def table(self) -> Table:
        """One row per attempt."""
        return Table("", _COLUMNS, self.rows)

    def data(self) -> list[dict[str, Any]]:
        """The rows as they are."""
        return self.rows

    def document(self) -> Document:
        """The list for people."""
        count = len(self.rows)
        note = f"settled {count} attempt{'' if count == 1 else 's'}"
        return Document("", [], [self.table()] if self.rows else [], note)


def what_is_settled(
    found_out: str | None, given: Sequence[str], before: datetime | None
) -> tuple[Decimal | None, str | None]:
    """The amount and the attempt that a command line means. Raises UsageError for what it cannot."""
    if found_out is None:
        raise UsageError("say what was found out: --as unbilled, or --as billed and the amount in USD")
    choice(found_out, ("unbilled", "billed"), "--as")
    words = list(given)
    billed_usd = None
    if found_out == "billed":
        if not words:
            raise UsageError("--as billed needs the amount in USD after it, such as --as billed 0.0042")
        try:
            billed_usd = limit_of(words.pop(0))
        except SettingsError as error:
            raise UsageError(str(error).replace("a limit", "what was billed")) from error
    if len(words) > 1 or bool(words) == (before is not None):
        raise UsageError(f"name one attempt, or --before a date; {SEE_THOSE_IN_DOUBT}")
    return billed_usd, words[0] if words else None


def settle(
    path: Path,
    *,
    attempt_id: str | None,
    before: datetime | None,
    billed_usd: Decimal | None,
    reason: str | None,
) -> Settled:
    """Settle one attempt, or all in doubt that started before a moment; `billed_usd` None: unbilled.

    All of them or none. Raises LedgerError.
    """
    root = existing_ledger(path)
    ids = [attempt_id] if attempt_id is not None else _in_doubt(root, before)
    rows = []
    with Ledger.open(root, auto_seal=False) as ledger:
        for event in ledger.settle_all(ids, billed_usd, reason=reason):
            told = event.model_dump(include={column.name for column in _COLUMNS})
            told["started_at"] = event.started_at.isoformat(timespec="seconds").replace("+00:00", "Z")
            rows.append({column.name: told.get(column.name) for column in _COLUMNS})
    return Settled(rows)


def _in_doubt(root: Path, before: datetime | None) -> Sequence[str]:
    if before is None:
        raise LedgerError(f"name one attempt, or --before a date; {SEE_THOSE_IN_DOUBT}")
    with reading(root, views=("events", "attempts", "in_doubt")) as connection:
        found = connection.execute(
            "select attempt_id from in_doubt where not is_in_flight and started_at < ?::timestamptz"
            " order by started_at, attempt_id",
            [before.isoformat()],
        ).fetchall()
    return [name for (name,) in found]
