"""Polars frames of a ledger by the names of its views: what `reports.open()` gives.

Columns, types and units are those of the views: `bughive-costs schema VIEW`, data/README.md, or
`Frames.schema()`. Money is `pl.Decimal` with 12 places, moments are UTC-aware (in `tz` if another was asked
for), counts are Int64, ratios and durations Float64, tags Map(String, String); what is not known is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from threading import Lock
from typing import TYPE_CHECKING

from ledger.errors import LedgerError
from ledger.reader import altered_segment, connect, first_words, lock, one_select
from ledger.schema import TIER_ORDER

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    import polars as pl


_TIERS = ", ".join(f"'{tier}'" for tier in TIER_ORDER)
_IN_ORDER = {
    "events": "occurred_at, journal_id, seq",
    "attempts": "started_at, request_id, attempt_number",
    "requests": "started_at, request_id",
    "sessions": "first_at, session_id",
    "tier_breakdown": f"session_id, list_position([{_TIERS}], tier), tier",
    "model_performance": "attempts desc, provider, model",
    "daily_spend": "day",
    "budget_status": "scope, scope_id",
    "in_doubt": "started_at, attempt_id",
    "fallbacks": "occurred_at, request_id",
}


class Frames:
    """A ledger as it was when it was opened: all frames are of that one moment, and agree.

    A context manager; close it, or leave the block, to let its memory go. Threads may share it.
    `session_id=` keeps one session; None is all. Every method raises LedgerError once it is closed.
    """

    def __init__(self, path: str | Path, *, tz: str = "UTC", allow_damage: bool = False) -> None:
        self._path = path
        self._connection = connect(path, tz=tz, allow_damage=allow_damage)
        lock(self._connection)
        self._lock = Lock()
        self._is_closed = False

    def __enter__(self) -> Frames:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it; frames already made stay. Closing twice is fine."""
        with self._lock:
            self._is_closed = True
            self._connection.close()

    def events(self, session_id: str | None = None) -> pl.DataFrame:
        """All that the ledger knows, one row per event; `Ledger.scan()` gives the same lazily."""
        return self._view("events", session_id)

    def attempts(self, session_id: str | None = None) -> pl.DataFrame:
        """One row per HTTP call to a model: `cost_usd` in USD, tokens, `latency_ms`, `outcome`, …"""
        return self._view("attempts", session_id)

    def requests(self, session_id: str | None = None) -> pl.DataFrame:
        """One row per call of route(): how it ended, and what all its attempts cost in USD."""
        return self._view("requests", session_id)

    def sessions(self, session_id: str | None = None) -> pl.DataFrame:
        """One row per session; requests without one are a row whose `session_id` is null."""
        return self._view("sessions", session_id)

    def tier_breakdown(self, session_id: str | None = None) -> pl.DataFrame:
        """One row per session and tier: requests at the tier that answered, cost where it was incurred."""
        return self._view("tier_breakdown", session_id)

    def model_performance(self) -> pl.DataFrame:
        """One row per provider's model: success, latency percentiles in ms, cost in USD, circuits."""
        return self._view("model_performance")

    def daily_spend(self) -> pl.DataFrame:
        """One row per day that began at midnight in `tz`: requests, attempts, tokens, cost in USD."""
        return self._view("daily_spend")

    def budget_status(self) -> pl.DataFrame:
        """One row per budget in force: its limit and how much of it is used, in USD."""
        return self._view("budget_status")

    def in_doubt(self, session_id: str | None = None) -> pl.DataFrame:
        """One row per attempt that may yet cost something, with its ceiling in USD."""
        return self._view("in_doubt", session_id)

    def fallbacks(self, session_id: str | None = None) -> pl.DataFrame:
        """One row per move to another tier, why it was made and how the request ended."""
        return self._view("fallbacks", session_id)

    def sql(
        self, select: str, /, **parameters: str | int | float | Decimal | datetime | None
    ) -> pl.DataFrame:
        """The rows of one SELECT over the views, with values for its $names.

            ledger.sql("select task, sum(cost_usd) as usd from attempts where tier = $tier group by task",
                       tier="FAST")

        A sum of counts is Decimal(38, 0) unless cast. Raises LedgerError for any other SQL, and for one
        that DuckDB refuses; files and settings cannot be reached.
        """
        return self._frame(select, parameters)

    def schema(self) -> pl.DataFrame:
        """The data dictionary: `view`, `column`, `type` (SQL), `unit` and `meaning` of every column."""
        import polars as pl

        from ledger.dictionary import described_views

        rows = [(view.name, *column) for view in described_views().values() for column in view.columns]
        return pl.DataFrame(rows, schema=["view", "column", "type", "unit", "meaning"], orient="row")

    def _view(self, name: str, session_id: str | None = None) -> pl.DataFrame:
        parameters = {} if session_id is None else {"session_id": session_id}
        condition = " where session_id = $session_id" if parameters else ""
        return self._frame(f"select * from {name}{condition} order by {_IN_ORDER[name]}", parameters)

    def _frame(self, select: str, parameters: Mapping[str, object]) -> pl.DataFrame:
        import duckdb

        with self._lock:
            if self._is_closed:
                raise LedgerError("these frames are closed; open the ledger again with reports.open()")
            try:
                statement = one_select(self._connection, select)
                frame: pl.DataFrame = self._connection.sql(statement, params=dict(parameters)).pl()
            except duckdb.Error as error:
                raise altered_segment(self._path, error) or LedgerError(
                    f"this SQL cannot be run: {first_words(error)}"
                ) from error
        return frame
