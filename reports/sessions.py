"""The sessions of a ledger, the latest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ledger.reader import connect
from reports.options import ALL_TIME, Period
from reports.render import Column, Document, Table, rfc3339

if TYPE_CHECKING:
    from pathlib import Path

_COLUMNS = (
    Column("session_id", "Session", "text", whole=True),
    Column("first_at", "First", "minute"),
    Column("last_at", "Last", "moment", detail=True),
    Column("requests", "Requests", "count"),
    Column("succeeded_requests", "Succeeded", "count", detail=True),
    Column("failed_requests", "Failed requests", "count"),
    Column("denied_requests", "Denied", "count", if_any=True),
    Column("open_requests", "Open", "count", if_any=True),
    Column("attempts", "Attempts", "count", detail=True),
    Column("failed_attempts", "Failed attempts", "count", detail=True),
    Column("fallbacks", "Fallbacks", "count", detail=True),
    Column("input_tokens", "Input tokens", "count", can_go=True),
    Column("output_tokens", "Output tokens", "count", can_go=True),
    Column("cost_usd", "Cost", "usd"),
    Column("list_cost_usd", "List cost", "usd", detail=True),
    Column("unpriced_attempts", "Unpriced", "count", if_any=True),
    Column("unlisted_attempts", "Unlisted", "count", detail=True),
    Column("in_doubt_attempts", "In doubt", "count", if_any=True),
    Column("in_flight_attempts", "In flight", "count", if_any=True),
)
_MOMENTS = ("first_at", "last_at")


class Sessions(NamedTuple):
    """Some of the sessions, and how many there are."""

    rows: list[dict[str, Any]]
    in_all: int
    tz: str

    def table(self) -> Table:
        """All columns; one row per session, NULL for the requests without one."""
        return Table("", _COLUMNS, self.rows)

    def data(self) -> list[dict[str, Any]]:
        """The rows as they are."""
        return self.rows

    def document(self) -> Document:
        """The list for people."""
        hidden = self.in_all - len(self.rows)
        note = f"and {hidden:,} earlier; --limit 0 shows all" if hidden else ""
        return Document(f"Sessions ({self.tz})", [], [self.table()], note)


def sessions_report(
    path: str | Path,
    *,
    period: Period = ALL_TIME,
    limit: int = 20,
    tz: str = "UTC",
    allow_damage: bool = False,
) -> Sessions:
    """The sessions that began in the period, latest first; at most `limit`, 0: all.

    Raises as `ledger.reader.connect`.
    """
    columns = ", ".join(
        f"strftime({column.name}, '%Y-%m-%dT%H:%M:%S.%f%z') as {column.name}"
        if column.name in _MOMENTS
        else column.name
        for column in _COLUMNS
    )
    with connect(
        path, tz=tz, allow_damage=allow_damage, views=("attempts", "requests", "sessions")
    ) as connection:
        rows = connection.execute(
            f"select {columns}, count(*) over () as found from sessions"
            " where ($since is null or first_at >= $since::timestamptz)"
            " and ($until is null or first_at < $until::timestamptz)"
            " order by sessions.first_at desc, session_id limit $limit",
            {
                "since": period.since and period.since.isoformat(),
                "until": period.until and period.until.isoformat(),
                "limit": limit or 2**62,
            },
        ).fetchall()
    names = [column.name for column in _COLUMNS]
    found = [dict(zip(names, row[:-1], strict=True)) for row in rows]
    for session in found:
        session.update({name: rfc3339(session[name]) for name in _MOMENTS})
    return Sessions(found, rows[0][-1] if rows else 0, tz)
