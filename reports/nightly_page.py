"""The nightly page: figures and pictures in, one self-contained HTML file out.

Nothing in it acts: no script, no address, and a content-security policy that allows its one style
sheet, by its hash. Names from outside go through `harmless`, then through the template's escaping.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reports import nightly_charts as charts
from reports.nightly_figures import DAYS_SHOWN, NOTHING, TOP, Night, Row, is_over
from reports.render import UNKNOWN, Column, Table, harmless, shown

if TYPE_CHECKING:
    from datetime import date

    from ledger.checks.findings import Finding

_TEMPLATES = Path(__file__).with_name("templates")
_LONGEST_TEXT = 120
_NEARLY = Decimal("0.8")


class Integrity(NamedTuple):
    """Whether the ledger could be sealed and proven. `problems`: what else went wrong, one line each."""

    findings: Sequence[Finding] = ()
    problems: Sequence[str] = ()

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings and not self.problems


class Alert(NamedTuple):
    """One thing to act on: what is so, and what to do."""

    title: str
    text: str


class Stat(NamedTuple):
    """One figure of the head."""

    label: str
    value: str
    note: str = ""


class Picture(NamedTuple):
    """A chart, and what it shows in words, for who cannot see it."""

    title: str
    svg: str
    words: str


class Grid(NamedTuple):
    """A table with its note. `shares`: 0..1 for a bar per row; `empty`: what is said instead of no row."""

    title: str
    table: Table
    note: str = ""
    shares: Sequence[float] | None = None
    empty: str = ""


def page(night: Night | None, day: date, tz: str, integrity: Integrity) -> bytes:
    """The page of a day, as UTF-8. `night` None: the ledger could not be read, and the page says so."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = _style()
    hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        environment.get_template("nightly.html.jinja")
        .render(
            title=f"{day:%A}, {day.day} {day:%B %Y}",
            date=day.isoformat(),
            tz=harmless(tz),
            style=Markup(style),
            style_hash=hashed,
            is_sound=integrity.is_sound,
            alerts=[*_of_integrity(integrity), *(_of_money(night) if night else ())],
            cost=_short_usd(night.one("day").cost_usd) if night else UNKNOWN,
            changes=_changes(night) if night else [],
            stats=_stats(night) if night else [],
            pictures=_pictures(night) if night else [],
            grids=_grids(night) if night else [],
            svg=Markup,
        )
        .encode()
    )


def _style() -> str:
    """The style sheet, and each colour of the pictures once more for the dark."""
    dark = [
        f'svg [{of}="{light}"] {{ {of}: {dark} }}'
        for light, dark in charts.PALETTE
        for of in ("fill", "stroke")
    ]
    text = (_TEMPLATES / "nightly.css").read_text("utf-8")
    return text + "@media screen and (prefers-color-scheme: dark) {\n" + "\n".join(dark) + "\n}\n"


# what to act on


def _of_integrity(integrity: Integrity) -> list[Alert]:
    alerts = [Alert("The ledger", _cut(problem, 400)) for problem in integrity.problems]
    for finding in integrity.findings[:TOP]:
        where = finding.file or "the ledger"
        alerts.append(Alert(f"Damaged: {_cut(where)}", _cut(f"{finding.what}. To do: {finding.remedy}", 400)))
    if (more := len(integrity.findings) - TOP) > 0:
        alerts.append(Alert("Damaged", f"and {more:,} more findings; bughive-costs verify names them"))
    return alerts


def _of_money(night: Night) -> list[Alert]:
    alerts = [
        Alert(
            f"Hard budget broken: {_budget_name(row)}",
            f"{shown(row.spent_usd, 'usd')} was spent of {shown(row.limit_usd, 'usd')}",
        )
        for row in night.broken_budgets()
    ]
    day = night.one("day")
    if day.over_limit_requests:
        text = f"{_counted(day.over_limit_requests, 'request')} cost more than the budget_usd of the call"
        alerts.append(Alert("Hard budget broken: request", text))
    if day.ceiling_broken_attempts:
        text = f"{_counted(day.ceiling_broken_attempts, 'attempt')} cost more than was reserved beforehand"
        alerts.append(Alert("Ceiling broken", text))
    return alerts


# the head


def _changes(night: Night) -> list[Stat]:
    """Against the day before, and the same day of the week before."""
    now = night.one("day").cost_usd
    names = {"day_before": "the day before", "week_before": f"the {night.days.day:%A} before"}
    costs = {name: night.one(section).cost_usd for section, name in names.items()}
    return [Stat(f"on {name}, {_short_usd(then)}", _change(now, then)) for name, then in costs.items()]


def _change(now: Decimal | None, then: Decimal | None) -> str:
    """By how much, in per cent and dollars."""
    if now is None or then is None:
        return "not comparable"
    if now == then:
        return "no change"
    difference = f"{'+' if now > then else '-'}{_short_usd(abs(now - then))}"
    if not then:
        return difference
    percent = ((now - then) / then * 100).quantize(Decimal("0.1"), ROUND_HALF_EVEN)
    return f"{difference} ({percent:+,} %)"


def _stats(night: Night) -> list[Stat]:
    day, month, outstanding = night.one("day"), night.one("month"), night.of("in_doubt")
    in_doubt = sum(row.in_doubt_attempts or 0 for row in outstanding)
    most = _most(outstanding, "in_doubt_ceiling_usd") if in_doubt else "no attempt"
    unpriced = day.unpriced_attempts or 0
    missing = _most([day], "unpriced_ceiling_usd") if unpriced else "every attempt has a price"
    return [
        Stat("This month", _short_usd(month.cost_usd), f"since 1 {night.days.day:%B}"),
        Stat("Requests", f"{day.requests or 0:,}", _answered(night)),
        Stat("Failed attempts", f"{day.failed_attempts or 0:,}", _cost_of_failures(day)),
        Stat("Retries and fallbacks", f"{day.retries or 0:,} + {day.fallbacks or 0:,}"),
        Stat("In doubt", f"{in_doubt:,}", most),
        Stat("Unpriced", f"{unpriced:,}", missing),
    ]


def _answered(night: Night) -> str:
    day, before = night.one("day"), night.one("day_before").requests or 0
    if not day.requests:
        return f"{before:,} the day before"
    return (
        f"{shown((day.succeeded_requests or 0) / day.requests, 'share')} answered; {before:,} the day before"
    )


def _cost_of_failures(day: Row) -> str:
    cost = f"they cost {_short_usd(day.failed_cost_usd)}" if day.failed_cost_usd else "no known cost"
    return f"of {day.attempts or 0:,}; {cost}"


def _most(rows: Sequence[Row], ceiling: str) -> str:
    amounts = [getattr(row, ceiling) for row in rows]
    if None in amounts:
        return "at most: not known"
    return f"at most {_short_usd(sum(amounts, NOTHING))}, not in the cost"


# pictures and tables


def _pictures(night: Night) -> list[Picture]:
    day, month = night.one("day"), night.one("month")
    drawn: list[tuple[str, Callable[[Night], str], str]] = [
        (
            "Spend by day and tier",
            charts.spend_by_day,
            f"Bars of {DAYS_SHOWN} days, the last at {_short_usd(day.cost_usd)}.",
        ),
        (
            "The month against its budget",
            charts.month_so_far,
            f"A line that rises to {_short_usd(month.cost_usd)}.{_limit_words(night, 'month')}",
        ),
        (
            "The day, hour by hour",
            charts.hours_of_the_day,
            f"A line that rises to {_short_usd(day.cost_usd)}.{_limit_words(night, 'day')}",
        ),
    ]
    if any(row.latency_ms_p50 is not None for row in night.of("model")):
        words = "Per model the median and the 95th percentile, as in the table of models."
        drawn.append(("How long answers took", charts.latencies, words))
    return [Picture(title, draw(night), words) for title, draw, words in drawn]


def _limit_words(night: Night, scope: str) -> str:
    limits = [row for row in night.of("budget") if row.scope == scope]
    return "".join(f" A {row.mode} limit of {_short_usd(row.limit_usd)}." for row in limits) or (
        f" No budget is set for the {scope}."
    )


_COST = Column("cost_usd", "Cost", "usd")
_REQUESTS = Column("requests", "Requests", "count")
_FAILED = Column("failed_attempts", "Failed attempts", "count")


def _grids(night: Night) -> list[Grid]:
    return [
        _budgets(night),
        _by_key(night, "By tier", "tier", "Tier", [Column("change", "On the day before", "text")]),
        _by_key(night, "Top tasks", "task", "Task"),
        _sessions(night),
        _models(night),
        _failures(night),
        _in_doubt(night),
        _unpriced(night),
    ]


def _budgets(night: Night) -> Grid:
    rows = night.of("budget")
    dicts = [row._asdict() | {"name": _budget_name(row), "state": _state(row)} for row in rows]
    columns = [
        Column("name", "Budget", "text"),
        Column("mode", "Mode", "text"),
        Column("limit_usd", "Limit", "usd"),
        Column("spent_usd", "Spent", "usd"),
        Column("in_doubt_usd", "In doubt", "usd", if_any=True),
        Column("left_usd", "Left", "usd"),
        Column("state", "State", "text"),
    ]
    shares = [_share(row.spent_usd, row.limit_usd) for row in rows]
    note = f"A day's budget is of this day, a month's of {night.days.day:%B}; all others as they stand."
    return Grid("Budgets", Table("", columns, dicts), note, shares, "No budget is set.")


def _budget_name(row: Row) -> str:
    return _cut(f"{row.scope} {row.scope_id}" if row.scope_id is not None else f"{row.scope}")


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
    dicts = [row._asdict() | {section: _cut(getattr(row, section))} for row in rows]
    if section == "tier":
        before = _costs_of(night, night.days.before)
        for row, cells in zip(rows, dicts, strict=True):
            cells["change"] = _change(row.cost_usd, before.get(row.tier, NOTHING))
        total["change"] = _change(night.one("day").cost_usd, night.one("day_before").cost_usd)
    columns = [Column(section, heading, "text"), *_COUNTED, _COST, *more]
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
        cells["session_id"] = "all others" if is_rest else "(no session)" if name is None else _cut(name)
    columns = [Column("session_id", "Session", "text"), *_COUNTED, _COST]
    total = _totalled(night, "session_id")
    return Grid(
        "Top sessions", Table("", columns, dicts, total), "", _shares(night, rows), "Nothing was asked."
    )


def _models(night: Night) -> Grid:
    rows = [
        row._asdict()
        | {
            "model": _cut(row.model),
            "success": (row.succeeded_attempts or 0) / ended if (ended := _ended(row)) else None,
        }
        for row in night.of("model")
    ]
    columns = [
        Column("model", "Model", "text"),
        Column("attempts", "Attempts", "count"),
        Column("success", "Success", "share"),
        Column("latency_ms_p50", "ms p50", "ms"),
        Column("latency_ms_p95", "ms p95", "ms"),
        Column("first_token_ms_p50", "ms to first token", "ms", if_any=True),
        Column("output_tokens_per_s", "Tokens per s", "ms"),
        _COST,
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
        | {name: _cut(getattr(row, name)) for name in ("model", "error_type", "error_message")}
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
        row._asdict() | {"model": _cut(row.model), "day": row.day.isoformat() if row.day else UNKNOWN}
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
    rows = [row._asdict() | {"model": _cut(row.model)} for row in night.of("unpriced")]
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


def _cut(text: str | None, longest: int = _LONGEST_TEXT) -> str:
    """A text from outside as the page has it; in full it is in the files beside."""
    plain = harmless(text) if text is not None else UNKNOWN
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def _short_usd(amount: Decimal | None) -> str:
    """For a headline: as many places as tell something."""
    if amount is None:
        return UNKNOWN
    places = 2 if abs(amount) >= 100 else 4 if abs(amount) >= 1 else 6
    rounded = amount.quantize(Decimal(1).scaleb(-places), ROUND_HALF_EVEN)
    return shown(amount, "usd") if places == 6 else f"{'-' if amount < 0 else ''}${abs(rounded):,f}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
