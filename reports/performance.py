"""How each model did, or each task, or any other key: answers, speed, what an answer costs, what failures do.

An attempt counts in the period in which it started. A retry is an attempt on the same tier as the one
before it; a fallback is a request's move away to another tier. `compare` sets a period against the one
before it: see `reports.comparison`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from ledger.money import MONEY, usd
from reports.keys import keys, titled
from reports.options import ALL_TIME, Period, nothing_in, shown_period
from reports.render import Column, Document, Table, harmless, rfc3339
from reports.tally import Figures, Tally, reading, told_by_keys

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_QUANTILES = (
    "latency_ms_p50",
    "latency_ms_p95",
    "latency_ms_p99",
    "first_token_ms_p50",
    "first_token_ms_p95",
)
COLUMNS = (
    Column("attempts", "Attempts", "count"),
    Column("succeeded_attempts", "Succeeded", "count", detail=True),
    Column("failed_attempts", "Failed", "count", detail=True),
    Column("success_ratio", "Success", "share"),
    Column("requests", "Requests", "count", detail=True),
    Column("retries", "Retries", "count", detail=True),
    Column("retry_ratio", "Retried", "share"),
    Column("fallbacks", "Fallbacks", "count", detail=True),
    Column("fallback_ratio", "Fell back", "share"),
    Column("rate_limited_attempts", "Rate limited", "count", if_any=True),
    Column("timed_out_attempts", "Timed out", "count", if_any=True),
    Column("latency_ms_p50", "ms p50", "ms"),
    Column("latency_ms_p95", "ms p95", "ms"),
    Column("latency_ms_p99", "ms p99", "ms"),
    Column("first_token_ms_p50", "First token ms p50", "ms", if_any=True),
    Column("first_token_ms_p95", "First token ms p95", "ms", if_any=True),
    Column("tokens_per_s", "Tokens per s", "rate"),
    Column("cost_usd", "Cost", "usd"),
    Column("cost_usd_per_success", "Cost per success", "usd"),
    Column("failed_cost_usd", "Lost on failures", "usd"),
    Column("unpriced_attempts", "Unpriced", "count", if_any=True),
    Column("in_doubt_attempts", "In doubt", "count", if_any=True),
    Column("in_flight_attempts", "In flight", "count", detail=True),
    Column("circuit_openings", "Circuit openings", "count", if_any=True),
    Column("circuit_open_s", "Circuit open s", "raw", detail=True),
    Column("circuit_opened_at", "Left alone since", "moment", if_any=True),
)


class Performance(NamedTuple):
    """One row per combination of keys, those asked most first, and one of all together."""

    rows: list[Figures]
    total: Figures | None  # None: nothing was asked
    by: tuple[str, ...]
    period: Period
    tz: str
    tasks: tuple[list[Figures], Figures | None] = ([], None)  # the same by task

    def table(self) -> Table:
        """All columns; one row per combination of keys, by default per provider's model."""
        return _table(self.rows, self.total, self.by)

    def data(self) -> list[Figures]:
        """The rows as they are."""
        return self.rows

    def document(self) -> Document:
        """The list for people; latencies are of answered attempts."""
        title = f"Performance{shown_period(self.period, self.tz)}"
        if not self.rows:
            return Document(title, [], [], nothing_in(self.period, self.tz, "no model was asked"))
        tables = [self.table(), *([_table(*self.tasks, ("task",))] if self.tasks[0] else [])]
        return Document(title, [], tables)


def performance_report(
    path: str | Path,
    *,
    by: str | Sequence[str] | None = None,
    with_tasks: bool = False,
    period: Period = ALL_TIME,
    tz: str = "UTC",
    allow_damage: bool = False,
) -> Performance:
    """How each model did, or each of the keys `by`, as `reports.keys.keys` takes them.

    with_tasks: the document shows the same by task. Raises UsageError for another key; else as
    `ledger.reader.connect`.
    """
    named = keys(by) or ("model",)
    with reading(path, tz, allow_damage) as connection:
        rows, total = figures_of(Tally(connection, named, period))
        tasks = figures_of(Tally(connection, ("task",), period)) if with_tasks else ([], None)
    return Performance(rows, total, named, period, tz, tasks)


def figures_of(tally: Tally) -> tuple[list[Figures], Figures | None]:
    """The rows of a report, and that of all groups together; None where there is nothing."""
    groups = tally.sums()
    rows = [{key: group[key] for key in tally.told_by} | _finished(group, tally) for group in groups]
    rows.sort(key=lambda row: [-row["attempts"], *(str(row[key]) for key in tally.told_by)])
    return rows, _finished(tally.total(groups), tally) if groups else None


def _finished(row: Figures, tally: Tally) -> Figures:
    """Ratios and prices from sums; what has nothing to be a part of is None."""
    values = [*(row["latency_ms"] or [None] * 3), *(row["first_token_ms"] or [None] * 2)]
    quantiles = dict(zip(_QUANTILES, values, strict=True))
    made = {
        **row,
        **quantiles,
        "success_ratio": ratio(row["succeeded_attempts"], row["attempts"] - row["in_flight_attempts"]),
        "retry_ratio": ratio(row["retries"], row["attempts"]),
        "fallback_ratio": ratio(row["fallbacks"], row["requests"]),
        "tokens_per_s": ratio(row["timed_tokens"] * 1000, row["timed_ms"]),
        "cost_usd_per_success": cost_per_success(row),
        "circuit_openings": row["circuit_openings"] if tally.has_circuits else None,
        "circuit_opened_at": rfc3339(row["circuit_opened_at"]),
    }
    return {column.name: made[column.name] for column in COLUMNS}


def ratio(part: float, whole: float | None) -> float | None:
    """None where there is nothing to be a part of."""
    return part / whole if whole else None


def cost_per_success(row: Figures) -> Decimal | None:
    """USD, half-even at 12 places: all that was paid, over what was answered; None where some is unpriced."""
    if row["cost_usd"] is None or row["unpriced_attempts"] or not row["succeeded_attempts"]:
        return None
    return usd(MONEY.divide(row["cost_usd"], Decimal(row["succeeded_attempts"])))


def _table(rows: list[Figures], total: Figures | None, by: tuple[str, ...]) -> Table:
    told_by = told_by_keys(by)
    names = [
        Column(
            key, harmless(titled(key)), "text", detail=key not in by, whole=key == "model" and len(by) == 1
        )
        for key in told_by
    ]
    in_all = total and dict.fromkeys(told_by, "") | {by[0]: "Total"} | total
    return Table(f"By {harmless(' and '.join(by))}", [*names, *COLUMNS], rows, in_all)
