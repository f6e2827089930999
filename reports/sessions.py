"""The sessions of a ledger, the latest first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ledger.reader import reading, sums_alone
from reports.options import ALL_TIME, Period, nothing_in, shown_period
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
    Column("input_tokens", "Input tokens", "count", can_go=1),
    Column("output_tokens", "Output tokens", "count", can_go=1),
    Column("cost_usd", "Cost", "usd"),
    Column("list_cost_usd", "List cost", "usd", detail=True),
    Column("unpriced_attempts", "Unpriced", "count", if_any=True),
    Column("unlisted_attempts", "Unlisted", "count", detail=True),
    Column("in_doubt_attempts", "In doubt", "count", if_any=True),
    Column("in_flight_attempts", "In flight", "count", if_any=True),
)
_MOMENTS = ("first_at", "last_at")


_SUMMED = tuple(column.name for column in _COLUMNS if column.kind in ("count", "usd"))
_IN_ALL = {  # a session without attempts cost 0, which is no price of those that others made
    "count": "sum({0})",
    "usd": "if(sum(attempts) > 0 and count({0}) filter (where attempts > 0) = 0, null, sum({0}))",
}
_FOUND = """
create temp table found as
select {columns} from sessions
where ($since is null or first_at >= $since::timestamptz)
    and ($until is null or first_at < $until::timestamptz)
"""


class Sessions(NamedTuple):
    """Some of the sessions, how many there are, and what all of them add up to."""

    rows: list[dict[str, Any]]
    in_all: int
    total: dict[str, Any]
    period: Period
    tz: str

    def table(self) -> Table:
        """All columns; one row per session, NULL for the requests without one."""
        return Table("", _COLUMNS, self.rows)

    def data(self) -> list[dict[str, Any]]:
        """The rows as they are."""
        return self.rows

    def document(self) -> Document:
        """The list for people."""
        title = f"Sessions{'' if self.period == ALL_TIME else ' begun'}{shown_period(self.period, self.tz)}"
        if not self.rows:
            return Document(title, [], [], nothing_in(self.period, self.tz, "no session began"))
        hidden = self.in_all - len(self.rows)
        note = f"and {hidden:,} earlier; --limit 0 shows all" if hidden else ""
        label = f"Total of all {self.in_all:,}" if hidden else "Total"
        total = self.total | {"session_id": label, "first_at": "", "last_at": ""}
        return Document(title, [], [Table("", _COLUMNS, self.rows, total)], note)


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
    names = [column.name for column in _COLUMNS]
    with reading(path, tz=tz, allow_damage=allow_damage, views=("sessions",)) as connection:
        sums_alone(connection)
        bounds = {"since": period.since, "until": period.until}
        connection.execute(
            _FOUND.format(columns=", ".join(names)),
            {name: at and at.isoformat() for name, at in bounds.items()},
        )
        rows = connection.execute(
            f"select {', '.join(map(_as_text, names))} from found"
            " order by found.first_at desc, session_id limit ?",
            [limit or 2**62],
        ).fetchall()
        sums = ", ".join(
            _IN_ALL[column.kind].format(column.name) for column in _COLUMNS if column.name in _SUMMED
        )
        (in_all, *total), *_ = connection.execute(f"select count(*), {sums} from found").fetchall()
    found = [dict(zip(names, row, strict=True)) for row in rows]
    for session in found:
        session.update({name: rfc3339(session[name]) for name in _MOMENTS})
    return Sessions(found, in_all, dict(zip(_SUMMED, total, strict=True)), period, tz)


def _as_text(name: str) -> str:
    return f"strftime({name}, '%Y-%m-%dT%H:%M:%S.%f%z') as {name}" if name in _MOMENTS else name
