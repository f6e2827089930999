"""The nightly page's pictures: figures in, static SVG out; no script, no network, no font of its own.

Each is drawn for light paper; the page's style sheet names every colour of LIGHT again for the dark.
Amounts become floats here and nowhere else: a picture has no more than a few hundred pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from decimal import Decimal
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ledger.reader import tier_rank
from reports.nightly_figures import DAYS_SHOWN, NOTHING, Night, Row
from reports.render import harmless

if TYPE_CHECKING:
    import altair as alt

WIDTH, HEIGHT = 460, 250
_LONGEST_NAME = 26
_OTHERS = "all others"

# role: (light, dark). Tiers in their order, then further ones; told apart without red and green, too.
SERIES = (
    ("#33508a", "#8fb0f0"),
    ("#2f8f9d", "#6fcbd6"),
    ("#8a9a2e", "#c3d065"),
    ("#d09a2a", "#f0c46a"),
    ("#b8573f", "#ee9478"),
    ("#7b5a94", "#c39be0"),
    ("#6d737d", "#a9b0bb"),
)
INK = ("#4b5260", "#b4bbc6")
GRID = ("#e4e1da", "#2c323c")
PAPER = ("#fffefb", "#171b22")
LIMIT = ("#a8242f", "#ff8f8f")
PALETTE = (*SERIES, INK, GRID, PAPER, LIMIT)
_ACCENT, _QUIET = SERIES[0][0], SERIES[-1][0]


def spend_by_day(night: Night) -> str:
    """Four weeks of cost, a bar per day, cut by tier."""
    import altair as alt

    first = night.days.first_shown
    days = [first + timedelta(days=number) for number in range(DAYS_SHOWN)]
    shown = [row for row in night.of("day_tier") if row.day and row.day >= first]
    tiers = _tiers(shown)
    values = [
        {"day": _short(day), "tier": tier, "order": number, "usd": float(cost)}
        for day in days
        for number, tier in enumerate(tiers)
        if (cost := _cost(row for row in shown if row.day == day and _tier(row, tiers) == tier))
    ]
    highest = max((float(_cost(row for row in shown if row.day == day)) for day in days), default=0.0)
    x = alt.X("day:O", sort=None, title=None, scale=alt.Scale(domain=[*map(_short, days)], paddingInner=0.25))
    bars = (
        alt.Chart(alt.InlineData(values=values))
        .mark_bar()
        .encode(
            x=x.axis(values=[_short(day) for day in days[::-7]], labelAngle=0, ticks=False),
            y=_usd_axis(highest),
            color=alt.Color(
                "tier:N",
                title=None,
                scale=alt.Scale(domain=tiers, range=[light for light, _ in SERIES]),
                legend=alt.Legend(orient="top", columns=3, symbolType="square", symbolSize=80),
            ),
            order="order:Q",
        )
    )
    return _svg(bars)


def month_so_far(night: Night) -> str:
    """The month's cost, added up day by day, under the month's budgets."""
    first, day = night.days.first_of_month, night.days.day
    days = [first + timedelta(days=number) for number in range((day - first).days + 1)]
    costs = [_cost(row for row in night.of("day_tier") if row.day == each) for each in days]
    lines = [(number, summed) for number, summed in enumerate([NOTHING, *accumulate(costs)])]
    return _cumulative(
        {f"{first:%B}": lines}, _limits(night, "month"), _days_in_month(first), "days of the month"
    )


def hours_of_the_day(night: Night) -> str:
    """The day's cost, added up hour by hour, beside the day before and under the day's budgets."""
    lines = {}
    for name, day in {"this day": night.days.day, "the day before": night.days.before}.items():
        by_hour = {row.hour: row.cost_usd or NOTHING for row in night.of("hour") if row.day == day}
        hours = range(max(24, *(hour + 1 for hour in by_hour if hour is not None)) if by_hour else 24)
        costs = [by_hour.get(hour, NOTHING) for hour in hours]
        lines[name] = list(enumerate([NOTHING, *accumulate(costs)]))
    return _cumulative(lines, _limits(night, "day"), 24, "hours since midnight")


def latencies(night: Night) -> str:
    """Per model, from the median to the 95th percentile of the time an answer took."""
    import altair as alt

    models = [row for row in night.of("model") if row.latency_ms_p50 is not None][:8]
    names = _distinct([_name(row.model) for row in models])
    values = [
        {"model": name, "p50": (row.latency_ms_p50 or 0) / 1000, "p95": (row.latency_ms_p95 or 0) / 1000}
        for name, row in zip(names, models, strict=True)
    ]
    base = alt.Chart(alt.InlineData(values=values))
    y = alt.Y("model:N", sort=None, title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=170))
    x = alt.X(
        "p50:Q",
        title="seconds, from the median (●) to the 95th percentile",
        scale=alt.Scale(domainMin=0, nice=True),
    )
    span = base.mark_rule(strokeWidth=3, color=_ACCENT, opacity=0.45).encode(y=y, x=x, x2="p95:Q")
    median = base.mark_circle(size=90, color=_ACCENT, opacity=1).encode(y=y, x=x)
    slowest = base.mark_tick(thickness=3, size=14, color=_ACCENT).encode(y=y, x="p95:Q")
    return _svg(span + median + slowest)


def _cumulative(
    lines: dict[str, list[tuple[int, Decimal]]], limits: Sequence[Row], last: int, title: str
) -> str:
    import altair as alt

    highest = max(float(summed) for line in lines.values() for _, summed in line)
    highest = max([highest, *(float(limit.limit_usd or 0) for limit in limits)])
    values = [
        {"line": name, "at": at, "usd": float(summed)} for name, line in lines.items() for at, summed in line
    ]
    last = max(last, *(at for line in lines.values() for at, _ in line))
    x = alt.X("at:Q", title=title, scale=alt.Scale(domain=[0, last], nice=False))
    x = x.axis(grid=False, tickMinStep=1, values=[*range(0, last + 1, 6 if last <= 25 else 7)])
    colors = alt.Scale(domain=list(lines), range=[_ACCENT, _QUIET])
    legend = alt.Legend(orient="top", symbolType="stroke") if len(lines) > 1 else None
    base = alt.Chart(alt.InlineData(values=values)).encode(x=x, y=_usd_axis(highest))
    drawn: Any = base.mark_area(opacity=0.12, color=_ACCENT, line=False).transform_filter(
        alt.FieldEqualPredicate(field="line", equal=next(iter(lines)))
    )
    drawn += base.mark_line(strokeWidth=2.2).encode(
        color=alt.Color("line:N", title=None, scale=colors, legend=legend)
    )
    for limit in limits:
        drawn += _rule(limit)
    return _svg(drawn)


def _rule(limit: Row) -> Any:
    """A budget's line, with its name on it."""
    import altair as alt

    value = {"usd": float(limit.limit_usd or 0), "label": f"{limit.mode} limit of the {limit.scope}"}
    base = alt.Chart(alt.InlineData(values=[value])).encode(y="usd:Q")
    dash = [5, 3] if limit.mode == "warn" else [1, 0]
    text = base.mark_text(align="left", x=6, dy=10, color=LIMIT[0], fontSize=11).encode(text="label:N")
    return base.mark_rule(color=LIMIT[0], strokeWidth=1.5, strokeDash=dash) + text


def _limits(night: Night, scope: str) -> list[Row]:
    return [row for row in night.of("budget") if row.scope == scope]


def _usd_axis(highest: float) -> alt.Y:
    """As many places as the highest amount needs, so that labels differ."""
    import altair as alt

    places = next((places for places in range(6) if highest >= 5 / 10**places), 6)
    scale = alt.Scale(domainMin=0, domainMax=highest * 1.08 or 1, nice=False)
    return alt.Y("usd:Q", title=None, scale=scale, axis=alt.Axis(format=f"$,.{places}f", tickCount=5))


def _svg(chart: Any) -> str:
    """Drawn by itself, without ids or styles; hidden from screen readers, whom the page tells in words."""
    import altair as alt
    import vl_convert

    spec = chart.properties(
        width=WIDTH, height=HEIGHT, autosize=alt.AutoSizeParams(type="fit", contains="padding")
    ).to_dict()
    spec["config"] = _CONFIG
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    drawn = vl_convert.vegalite_to_svg(spec, vl_version=version, allowed_base_urls=[])
    return drawn.replace("<svg ", '<svg aria-hidden="true" ', 1)


_CONFIG = {
    "font": "sans-serif",
    "background": "transparent",
    "padding": 2,
    "aria": False,
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK[0],
        "labelFontSize": 12,
        "titleColor": INK[0],
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "gridColor": GRID[0],
        "domainColor": GRID[0],
        "tickColor": GRID[0],
        "labelPadding": 5,
    },
    "axisX": {"grid": False},
    "axisY": {"domain": False, "ticks": False},
    "legend": {"labelColor": INK[0], "labelFontSize": 12, "labelLimit": 130, "offset": 10, "rowPadding": 3},
}


def _tiers(rows: Iterable[Row]) -> list[str]:
    """Names of the tiers, in their order; those that there is no colour for count as one."""
    found = sorted({row.tier or "" for row in rows}, key=tier_rank)
    names = [_name(tier) for tier in found]
    return names if len(names) <= len(SERIES) else [*names[: len(SERIES) - 1], _OTHERS]


def _tier(row: Row, tiers: Sequence[str]) -> str:
    return name if (name := _name(row.tier)) in tiers else _OTHERS


def _cost(rows: Iterable[Row]) -> Decimal:
    return sum((row.cost_usd or NOTHING for row in rows), NOTHING)


def _name(text: str | None) -> str:
    """A name from outside, as it may stand in a picture."""
    plain = harmless(text or "-")
    return plain if len(plain) <= _LONGEST_NAME else plain[: _LONGEST_NAME - 1] + "…"


def _distinct(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({at + 1})" for at, name in enumerate(names)]


def _short(day: date) -> str:
    return f"{day.day} {day:%b}"


def _days_in_month(first: date) -> int:
    return ((first + timedelta(days=32)).replace(day=1) - first).days
