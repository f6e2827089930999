"""The nightly page's tables: rows of the night as cells for people, and the words that both share."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from reports.nightly_figures import NOTHING, Night, Row, is_over
from reports.render import UNKNOWN, Column, Table, harmless, shown

if TYPE_CHECKING:
    from datetime import date

_LONGEST_TEXT = 120
_NEARLY = Decimal("0.8")
_MOST_ROWS = 20


class Grid(NamedTuple):
    """A table. `shares`: 0..1, a bar after each row's first amount; `empty`: what is said without a row."""

    title: str
    table: Table
    note: str = ""
    shares: Sequence[float] | None = None
    empty: str = ""


_COST = Column("cost_usd", "Cost", "usd")
_REQUESTS = Column("requests", "Requests", "count")
_FAILED = Column("failed_attempts", "Failed attempts", "count")


def grids(night: Night) -> list[Grid]:
    every = [
        _budgets(night),
        _by_key(night, "By tier", "tier", "Tier", [Column("change", "On the day before", "text")]),
        _by_key(night, "Top tasks", "task", "Task"),
        _sessions(night),
        _models(night),
        _failures(night),
        _in_doubt(night),
        _unpriced(night),
    ]
    return [_capped(grid) for grid in every]


def _capped(grid: Grid) -> Grid:
    """The first rows, and how many more there are: who names a thousand tasks gets no thousand rows."""
    more = len(grid.table.rows) - _MOST_ROWS
    if more <= 0:
        return grid
    note = f"And {more:,} more, in the files beside. {grid.note}".strip()
    table = grid.table._replace(rows=grid.table.rows[:_MOST_ROWS])
    return grid._replace(table=table, note=note)


def _budgets(night: Night) -> Grid:
    rows = night.of("budget")
    dicts = [row._asdict() | {"name": budget_name(row), "state": _state(row)} for row in rows]
    columns = [
        Column("name", "Budget", "text"),
        Column("spent_usd", "Spent", "usd"),
        Column("limit_usd", "Limit", "usd"),
        Column("in_doubt_usd", "In doubt", "usd", if_any=True),
        Column("left_usd", "Left", "usd"),
        Column("mode", "Mode", "text"),
        Column("state", "State", "text"),
    ]
    shares = [_share(row.spent_usd, row.limit_usd) for row in rows]
    note = f"A day's budget is of this day, a month's of {night.days.day:%B}; all others as they stand."
    return Grid("Budgets", Table("", columns, dicts), note, shares, "No budget is set.")


def budget_name(row: Row) -> str:
    return cut(f"{row.scope} {row.scope_id}" if row.scope_id is not None else f"{row.scope}")


def _state(row: Row) -> str:
    if is_over(row):
        return "broken" if row.mode == "hard" else "exceeded"
    if (row.left_usd or NOTHING) < 0:
        return "perhaps exceeded"
    nearly = (row.limit_usd or NOTHING) * _NEARLY
    return "nearly used" if (row.spent_usd or NOTHING) > nearly else "fine"


def _by_key(night: Night, title: str, section: str, heading: str, more: Sequence[Column] = ()) -> Grid:
    rows = night.of(section)
    total = _totalled(night, section)
    dicts = [row._asdict() | {section: cut(getattr(row, section))} for row in rows]
    if section == "tier":
        before = _costs_of(night, night.days.before)
        for row, cells in zip(rows, dicts, strict=True):
            cells["change"] = change(row.cost_usd, before.get(row.tier, NOTHING))
        total["change"] = change(night.one("day").cost_usd, night.one("day_before").cost_usd)
    columns = [Column(section, heading, "text"), _COST, *more, *_COUNTED]
    return Grid(title, Table("", columns, dicts, total), "", _shares(night, rows), "Nothing was asked.")


_COUNTED = (
    _REQUESTS,
    Column("attempts", "Attempts", "count"),
    _FAILED,
    Column("input_tokens", "Input tokens", "count"),
    Column("output_tokens", "Output tokens", "count"),
)


def _costs_of(night: Night, day: date) -> dict[str | None, Decimal | None]:
    return {row.tier: row.cost_usd for row in night.of("day_tier") if row.day == day}


def _sessions(night: Night) -> Grid:
    rows = night.of("session", "session_rest")
    dicts = [row._asdict() for row in rows]
    for cells in dicts:
        name = cells["session_id"]
        is_rest = cells["section"] == "session_rest"
        cells["session_id"] = "all others" if is_rest else "(no session)" if name is None else cut(name)
    columns = [Column("session_id", "Session", "text"), _COST, *_COUNTED]
    total = _totalled(night, "session_id")
    return Grid(
        "Top sessions", Table("", columns, dicts, total), "", _shares(night, rows), "Nothing was asked."
    )


def _models(night: Night) -> Grid:
    rows = [
        row._asdict()
        | {
            "model": cut(row.model),
            "success": (row.succeeded_attempts or 0) / ended if (ended := _ended(row)) else None,
        }
        for row in night.of("model")
    ]
    columns = [
        Column("model", "Model", "text"),
        _COST,
        Column("attempts", "Attempts", "count"),
        Column("success", "Success", "share"),
        Column("latency_ms_p50", "ms p50", "ms"),
        Column("latency_ms_p95", "ms p95", "ms"),
        Column("first_token_ms_p50", "ms to first token", "ms", if_any=True),
        Column("output_tokens_per_s", "Tokens per s", "ms"),
        Column("cost_per_success_usd", "Cost per answer", "usd"),
        Column("failed_cost_usd", "Lost on failures", "usd"),
    ]
    note = "Times are of answered attempts; the cost per answer has the failures in it."
    return Grid("How the models did", Table("", columns, rows), note, None, "No model was asked.")


def _ended(row: Row) -> int:
    return (row.succeeded_attempts or 0) + (row.failed_attempts or 0)


def _failures(night: Night) -> Grid:
    rows = [
        row._asdict()
        | {name: cut(getattr(row, name)) for name in ("model", "error_type", "error_message")}
        | {"in_doubt_ceiling_usd": row.in_doubt_ceiling_usd if row.in_doubt_attempts else NOTHING}
        for row in night.of("failure")
    ]
    columns = [
        Column("model", "Model", "text"),
        Column("error_type", "What happened", "text"),
        Column("attempts", "Attempts", "count"),
        Column("failed_cost_usd", "Cost", "usd"),
        Column("in_doubt_ceiling_usd", "In doubt, at most", "usd"),
        Column("error_message", "The latest, in the provider's words", "text"),
    ]
    return Grid("Failures, and what they cost", Table("", columns, rows), "", None, "No attempt failed.")


def _in_doubt(night: Night) -> Grid:
    rows = [
        row._asdict() | {"model": cut(row.model), "day": row.day.isoformat() if row.day else UNKNOWN}
        for row in night.of("in_doubt")
    ]
    columns = [
        Column("model", "Model", "text"),
        Column("day", "Since", "text"),
        Column("in_doubt_attempts", "In doubt", "count"),
        Column("in_doubt_ceiling_usd", "At most", "usd"),
        Column("in_flight_attempts", "In flight", "count", if_any=True),
        Column("in_flight_ceiling_usd", "In flight, at most", "usd", if_any=True),
    ]
    note = "Sent, and how they ended is not known: not in the cost until settled. Of all days up to this one."
    return Grid("In doubt", Table("", columns, rows), note, None, "No attempt is in doubt.")


def _unpriced(night: Night) -> Grid:
    rows = [row._asdict() | {"model": cut(row.model)} for row in night.of("unpriced")]
    columns = [
        Column("model", "Model", "text"),
        Column("attempts", "Attempts", "count"),
        Column("input_tokens", "Input tokens", "count"),
        Column("output_tokens", "Output tokens", "count"),
        Column("unpriced_ceiling_usd", "At most", "usd"),
    ]
    note = "Billed, and neither the provider nor the price book says how much; not in the cost."
    return Grid("Unpriced", Table("", columns, rows), note, None, "Every attempt has a price.")


def _totalled(night: Night, name: str) -> dict[str, Any]:
    return night.one("day")._asdict() | {name: "Total"}


def _shares(night: Night, rows: Sequence[Row]) -> list[float]:
    whole = night.one("day").cost_usd
    return [_share(row.cost_usd, whole) for row in rows]


def _share(part: Decimal | None, whole: Decimal | None) -> float:
    if not whole:
        return 0.0 if not part else 1.0
    return min(max(float((part or NOTHING) / whole), 0.0), 1.0)


def change(now: Decimal | None, then: Decimal | None) -> str:
    """By how much, in per cent and dollars."""
    if now is None or then is None:
        return "not comparable"
    if now == then:
        return "no change"
    difference = f"{'+' if now > then else '-'}{short_usd(abs(now - then))}"
    if not then:
        return difference
    percent = ((now - then) / then * 100).quantize(Decimal("0.1"), ROUND_HALF_EVEN)
    return f"{difference} ({percent:+,} %)"


def cut(text: str | None, longest: int = _LONGEST_TEXT) -> str:
    """A text from outside as the page has it; in full it is in the files beside."""
    plain = harmless(text) if text is not None else UNKNOWN
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def short_usd(amount: Decimal | None) -> str:
    """For a headline: as many places as tell something."""
    if amount is None:
        return UNKNOWN
    places = 2 if abs(amount) >= 100 else 4 if abs(amount) >= 1 else 6
    rounded = amount.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)
    return shown(amount, "usd") if places == 6 else f"{'-' if amount < 0 else ''}${abs(rounded):,f}"
