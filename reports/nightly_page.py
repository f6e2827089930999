"""The nightly page: figures and pictures in, one self-contained HTML file out.

Nothing in it acts: no script, no address, and a content-security policy that allows its one style
sheet, by its hash. Names from outside go through `harmless`, then through the template's escaping.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reports import nightly_charts as charts
from reports.integrity import counted
from reports.nightly_figures import DAYS_SHOWN, NOTHING, TOP, Night, Row
from reports.nightly_tables import budget_name, change, cut, grids, short_usd
from reports.render import UNKNOWN, harmless, shown

if TYPE_CHECKING:
    from datetime import date

    from jinja2 import Template

    from ledger.checks.findings import Finding

_TEMPLATES = Path(__file__).with_name("templates")


class Integrity(NamedTuple):
    """Whether the ledger could be sealed and proven. `problems`: what else went wrong, one line each."""

    findings: Sequence[Finding] = ()
    problems: Sequence[str] = ()
    ledger_id: str = ""  # empty where that is not known

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


@cache
def _template() -> Template:
    """The page's, compiled once, which takes longer than to fill it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("nightly.html.jinja")


def page(night: Night | None, day: date, tz: str, integrity: Integrity) -> bytes:
    """The page of a day, as UTF-8. `night` None: the ledger could not be read, and the page says so."""
    from markupsafe import Markup

    style = _style()
    hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        _template()
        .render(
            title=f"{day:%A}, {day.day} {day:%B %Y}",
            date=day.isoformat(),
            tz=harmless(tz),
            style=Markup(style),
            style_hash=hashed,
            is_sound=integrity.is_sound,
            alerts=[*_of_integrity(integrity), *(_of_money(night) if night else ())],
            cost=short_usd(night.one("day").cost_usd) if night else UNKNOWN,
            changes=_changes(night) if night else [],
            stats=_stats(night) if night else [],
            pictures=_pictures(night) if night else [],
            grids=grids(night) if night else [],
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
    alerts = [Alert("The ledger", cut(problem, 400)) for problem in integrity.problems]
    for finding in integrity.findings[:TOP]:
        where = finding.file or "the ledger"
        alerts.append(Alert(f"Damaged: {cut(where)}", cut(f"{finding.what}. To do: {finding.remedy}", 400)))
    if (more := len(integrity.findings) - TOP) > 0:
        alerts.append(Alert("Damaged", f"and {more:,} more findings; bughive-costs verify names them"))
    return alerts


def _of_money(night: Night) -> list[Alert]:
    alerts = [
        Alert(
            f"Hard budget broken: {budget_name(row)}",
            f"{shown(row.spent_usd, 'usd')} was spent of {shown(row.limit_usd, 'usd')}",
        )
        for row in night.broken_budgets()[:TOP]
    ]
    day = night.one("day")
    if day.over_limit_requests:
        text = f"{counted(day.over_limit_requests, 'request')} cost more than the budget_usd of the call"
        alerts.append(Alert("Hard budget broken: request", text))
    if day.ceiling_broken_attempts:
        text = f"{counted(day.ceiling_broken_attempts, 'attempt')} cost more than was reserved beforehand"
        alerts.append(Alert("Ceiling broken", text))
    return alerts


# the head


def _changes(night: Night) -> list[Stat]:
    """Against the day before, and the same day of the week before."""
    now = night.one("day").cost_usd
    names = {"day_before": "the day before", "week_before": f"the {night.days.day:%A} before"}
    costs = {name: night.one(section).cost_usd for section, name in names.items()}
    return [Stat(f"on {name}, {short_usd(then)}", change(now, then)) for name, then in costs.items()]


def _stats(night: Night) -> list[Stat]:
    day, month, outstanding = night.one("day"), night.one("month"), night.of("in_doubt")
    in_doubt = sum(row.in_doubt_attempts or 0 for row in outstanding)
    most = _most(outstanding, "in_doubt_ceiling_usd") if in_doubt else "no attempt"
    unpriced = day.unpriced_attempts or 0
    missing = _most([day], "unpriced_ceiling_usd") if unpriced else "every attempt has a price"
    return [
        Stat("This month", short_usd(month.cost_usd), f"since 1 {night.days.day:%B}"),
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
    cost = f"they cost {short_usd(day.failed_cost_usd)}" if day.failed_cost_usd else "no known cost"
    return f"of {day.attempts or 0:,}; {cost}"


def _most(rows: Sequence[Row], ceiling: str) -> str:
    amounts = [getattr(row, ceiling) for row in rows]
    if None in amounts:
        return "at most: not known"
    return f"at most {short_usd(sum(amounts, NOTHING))}, not in the cost"


# pictures and tables


def _pictures(night: Night) -> list[Picture]:
    day, month = night.one("day"), night.one("month")
    drawn: list[tuple[str, Callable[[Night], str], str]] = [
        (
            "Spend by day and tier",
            charts.spend_by_day,
            f"Bars of {DAYS_SHOWN} days, the last at {short_usd(day.cost_usd)}.",
        ),
        (
            "The month against its budget",
            charts.month_so_far,
            f"A line that rises to {short_usd(month.cost_usd)}.{_limit_words(night, 'month')}",
        ),
        (
            "The day, hour by hour",
            charts.hours_of_the_day,
            f"A line that rises to {short_usd(day.cost_usd)}.{_limit_words(night, 'day')}",
        ),
    ]
    if any(row.latency_ms_p50 is not None for row in night.of("model")):
        words = "Per model the median and the 95th percentile, as in the table of models."
        drawn.append(("How long answers took", charts.latencies, words))
    return [Picture(title, draw(night), words) for title, draw, words in drawn]


def _limit_words(night: Night, scope: str) -> str:
    limits = [row for row in night.of("budget") if row.scope == scope]
    return "".join(f" A {row.mode} limit of {short_usd(row.limit_usd)}." for row in limits) or (
        f" No budget is set for the {scope}."
    )
