"""The night's figures for programs: JSON by section, and one sparse table as CSV and Parquet."""

from __future__ import annotations

import io
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any, get_type_hints

from reports.nightly_figures import Night, Row
from reports.render import Column, Table, as_csv, as_json

if TYPE_CHECKING:
    import pyarrow as pa

    from reports.nightly_page import Integrity


def _from(first: str, last: str) -> tuple[str, ...]:
    return Row._fields[Row._fields.index(first) : Row._fields.index(last) + 1]


_MEASURES = _from("requests", "output_tokens_per_s")
_OF_ATTEMPTS = tuple(
    name
    for name in _from("attempts", "in_flight_ceiling_usd")
    if name not in ("retries", "cost_per_success_usd")
)
_IN_DOUBT = _from("in_doubt_attempts", "in_flight_ceiling_usd")
SECTIONS = {  # in JSON; what a section has none of, as a day has no tier, is left out
    "day": ("day", *_MEASURES),
    "day_before": ("day", *_MEASURES),
    "week_before": ("day", *_MEASURES),
    "month": ("day", *_OF_ATTEMPTS),
    "day_tier": ("day", "tier", *_OF_ATTEMPTS),
    "hour": ("day", "hour", "attempts", "cost_usd"),
    "tier": ("tier", *_MEASURES),
    "model": ("provider", "model", *_MEASURES),
    "task": ("task", *_MEASURES),
    "session": ("session_id", *_MEASURES),
    "session_rest": _MEASURES,
    "failure": ("provider", "model", "error_type", "error_message", *_OF_ATTEMPTS),
    "unpriced": ("provider", "model", *_OF_ATTEMPTS),
    "in_doubt": ("day", "provider", "model", *_IN_DOUBT),
    "budget": _from("scope", "left_usd"),
}


def as_files(night: Night | None, day: date, tz: str, integrity: Integrity) -> dict[str, bytes]:
    """The figures by the suffix of their file; without a night those that say that there are none."""
    rows = list(night.rows) if night else []
    return {
        "json": as_json(_data(night, day, tz, integrity)).encode(),
        "csv": as_csv(_table(rows, day)).encode(),
        "parquet": _parquet(rows, day),
    }


def _data(night: Night | None, day: date, tz: str, integrity: Integrity) -> dict[str, Any]:
    findings = [
        {"kind": found.kind, "file": found.file, "what": found.what, "remedy": found.remedy}
        for found in integrity.findings
    ]
    return {
        "date": day,
        "tz": tz,
        "ledger_id": integrity.ledger_id or None,
        "sound": integrity.is_sound,
        "findings": findings,
        "problems": list(integrity.problems),
        "hard_budgets_broken": [_of(row) for row in night.broken_budgets()] if night else [],
        "sections": {name: [_of(row) for row in night.of(name)] for name in SECTIONS} if night else {},
    }


def _of(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in SECTIONS[row.section]}


def _table(rows: list[Row], day: date) -> Table:
    columns = [Column(name, name, "raw") for name in ("date", *Row._fields)]
    return Table("", columns, [{"date": day, **row._asdict()} for row in rows])


def _parquet(rows: list[Row], day: date) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [[day] * len(rows), *([getattr(row, name) for row in rows] for name in Row._fields)]
    schema = _schema()
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def _schema() -> pa.Schema:
    """By the types of Row: money is decimal(38,12), as sums may be wider than an attempt's cost."""
    import pyarrow as pa

    types = {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        date: pa.date32(),
        Decimal: pa.decimal128(38, 12),
    }
    fields = [pa.field("date", pa.date32(), nullable=False)]
    for name, hint in get_type_hints(Row).items():
        kind = next(type_ for type_ in types if type_ is hint or type_ in getattr(hint, "__args__", ()))
        fields.append(pa.field(name, types[kind]))
    return pa.schema(fields)
