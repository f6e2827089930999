"""How each model did: answers, latency, and how often it was left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ledger.reader import connect
from reports.render import Column, Document, Table, rfc3339

if TYPE_CHECKING:
    from pathlib import Path

_COLUMNS = (
    Column("provider", "Provider", "text", can_go=1),
    Column("model", "Model", "text", whole=True),
    Column("attempts", "Attempts", "count"),
    Column("succeeded_attempts", "Succeeded", "count", detail=True),
    Column("failed_attempts", "Failed", "count", detail=True),
    Column("success_ratio", "Success", "share"),
    Column("rate_limited_attempts", "Rate limited", "count", if_any=True, can_go=1),
    Column("timed_out_attempts", "Timed out", "count", if_any=True, can_go=1),
    Column("latency_ms_p50", "ms p50", "ms"),
    Column("latency_ms_p95", "ms p95", "ms"),
    Column("fallbacks", "Fallbacks", "count"),
    Column("circuit_openings", "Circuit openings", "count"),
    Column("circuit_open_s", "Circuit open s", "raw", detail=True),
    Column("circuit_opened_at", "Left alone since", "moment", if_any=True),
    Column("cost_usd", "Cost", "usd", can_go=1),
)


class Performance(NamedTuple):
    """All models, those asked most first."""

    rows: list[dict[str, Any]]
    tz: str

    def table(self) -> Table:
        """All columns; one row per provider's model."""
        return Table("", _COLUMNS, self.rows)

    def data(self) -> list[dict[str, Any]]:
        """The rows as they are."""
        return self.rows

    def document(self) -> Document:
        """The list for people; latencies are of answered attempts."""
        return Document(f"Models ({self.tz})", [], [self.table()])


def performance_report(path: str | Path, *, tz: str = "UTC", allow_damage: bool = False) -> Performance:
    """How each model did, as the view model_performance has it. Raises as `ledger.reader.connect`."""
    names = [column.name for column in _COLUMNS]
    columns = [
        f"strftime({name}, '%Y-%m-%dT%H:%M:%S.%f%z')" if name == "circuit_opened_at" else name
        for name in names
    ]
    views = ("events", "attempts", "model_performance")
    with connect(path, tz=tz, allow_damage=allow_damage, views=views) as connection:
        found = connection.execute(
            f"select {', '.join(columns)} from model_performance order by attempts desc, provider, model"
        ).fetchall()
    rows = [dict(zip(names, row, strict=True)) for row in found]
    for row in rows:
        row["circuit_opened_at"] = rfc3339(row["circuit_opened_at"])
    return Performance(rows, tz)
