"""Everything a ledger says, as JSON: what a golden ledger's figures are kept as and compared by.

Amounts and moments are text; what is NULL is left out, so that a column added later makes no difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb

from ledger.reader import connect, ledger_sql, scan
from ledger.relations import VIEWS
from reports.options import Period
from reports.render import as_json
from reports.sessions import sessions_report
from reports.spend import spend_report

KEYS = ("tier", "model", "task", "provider", "session", "day", "hour", "tag:team")
SUMMER_TIME = "Europe/Berlin"  # which began in the middle of the golden ledgers' second day
Rows = list[dict[str, Any]]


def figures_of(ledger: Path) -> dict[str, Any]:
    """All events, all views, and the reports of the command line."""
    return {**events_and_views_of(ledger), "reports": reports_of(ledger)}


def events_and_views_of(ledger: Path) -> dict[str, Any]:
    """What `connect` shows of it."""
    views = by_connection(ledger, "UTC", VIEWS)
    return {
        "events": views.pop("events"),
        "views": views,
        f"views in {SUMMER_TIME}": by_connection(ledger, SUMMER_TIME, ["daily_spend"]),
    }


def by_connection(ledger: Path, zone: str, views: Iterable[str]) -> dict[str, Rows]:
    """The rows of views, as `connect` shows them."""
    with connect(ledger, tz=zone) as connection:
        return {view: _rows(connection, view) for view in views}


def by_plain_duckdb(ledger: Path, views: Iterable[str]) -> dict[str, Rows]:
    """The rows of views, as ledger.sql shows them at a plain DuckDB prompt."""
    with duckdb.connect() as connection:
        connection.execute(ledger_sql(ledger))
        return {view: _rows(connection, view) for view in views}


def by_scan(ledger: Path) -> Rows:
    """The events, as `scan` gives them to Polars."""
    return _in_order(scan(ledger).collect().to_dicts())


def reports_of(ledger: Path) -> dict[str, Any]:
    """What the command line reports, as its --format json has it; of a report by a key its rows."""
    day = datetime(2025, 3, 30, tzinfo=UTC)
    reports: dict[str, Any] = {
        "report": spend_report(ledger).data(),
        "report --session s-1": spend_report(ledger, session_id="s-1").data(),
        "report --until 2025-03-30": spend_report(ledger, period=Period(None, day)).data(),
        "sessions": sessions_report(ledger).data(),
    }
    for key in KEYS:
        zone = SUMMER_TIME if key in ("day", "hour") else "UTC"
        rows = spend_report(ledger, by=key, tz=zone).data()["rows"]
        reports[f"report --by {key} --tz {zone}"] = rows
    return {name: plain(json.loads(as_json(report))) for name, report in reports.items()}


def as_text(figures: Any, indent: str = "") -> str:
    """JSON with a line per row, so that a difference can be seen."""
    if isinstance(figures, dict) and any(isinstance(value, dict | list) for value in figures.values()):
        inner = [f"{indent} {json.dumps(name)}: {as_text(of, indent + ' ')}" for name, of in figures.items()]
        text = "{\n" + ",\n".join(inner) + f"\n{indent}}}"
    elif isinstance(figures, list) and figures:
        text = "[\n" + ",\n".join(f"{indent} {_on_a_line(row)}" for row in figures) + f"\n{indent}]"
    else:
        text = _on_a_line(figures)
    return text if indent else text + "\n"


def _on_a_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _rows(connection: duckdb.DuckDBPyConnection, view: str) -> Rows:
    # moments as microseconds since 1970: what a session's TimeZone shows is none of a view's figures
    columns = connection.execute(f"describe {view}").fetchall()
    asked = [
        f"epoch_us({name}) as {name}" if kind == "TIMESTAMP WITH TIME ZONE" else name
        for name, kind, *_ in columns
    ]
    found = connection.execute(f"select {', '.join(asked)} from {view}").fetchall()
    moments = {name for name, kind, *_ in columns if kind == "TIMESTAMP WITH TIME ZONE"}
    return _in_order(
        {name: _moment(value) if name in moments else value for name, value in zip(names, row, strict=True)}
        for names in [[name for name, *_ in columns]]
        for row in found
    )


def _moment(microseconds: int | None) -> datetime | None:
    if microseconds is None:
        return None
    seconds, rest = divmod(microseconds, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def _in_order(rows: Iterable[Mapping[str, Any]]) -> Rows:
    return sorted((plain(row) for row in rows), key=lambda row: json.dumps(row, sort_keys=True))


def plain(value: Any) -> Any:
    """A value as JSON holds it, exactly; keys that are None go."""
    match value:
        case Mapping():
            return {str(name): plain(of) for name, of in value.items() if of is not None}
        case str() | int() | float() | None:
            return value
        case Decimal():
            return format(value, "f")
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case Sequence():
            return [plain(of) for of in value]
    raise TypeError(f"{type(value).__name__} has no plain form")
