"""Performance in a period against the period of equal length before it.

Each figure's difference has an interval, by the bootstrap (`reports.resampling`): where that excludes
zero, chance alone hardly explains the difference. Differences are exact; intervals are estimates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from ledger.money import MONEY, dollars, pico
from reports.keys import keys
from reports.options import Period, before, nothing_in, shown_period
from reports.performance import COLUMNS, figures_of
from reports.render import Column, Document, Kind, Table, shown
from reports.resampling import CONFIDENCE, POINTS, RESAMPLES, Quantile, Ratio, interval
from reports.tally import BLOCKS, Figures, Tally, reading, told_by_keys

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    import duckdb

_RATIOS = {  # name: part, whole, what is observed, and what the part is multiplied by
    "success_ratio": ("succeeded_attempts", "ended_attempts", "ended_attempts", 1),
    "retry_ratio": ("retries", "attempts", "attempts", 1),
    "fallback_ratio": ("fallbacks", "requests", "requests", 1),
    "tokens_per_s": ("timed_tokens", "timed_ms", "succeeded_attempts", 1000),
    "cost_usd_per_success": ("cost_pico", "succeeded_attempts", "succeeded_attempts", 1),
    "failed_cost_usd": ("failed_cost_pico", None, "attempts", 1),
}
_QUANTILES = {
    "latency_ms_p50": ("latency_ms", 0.5),
    "latency_ms_p95": ("latency_ms", 0.95),
    "latency_ms_p99": ("latency_ms", 0.99),
    "first_token_ms_p50": ("first_token_ms", 0.5),
    "first_token_ms_p95": ("first_token_ms", 0.95),
}
_KINDS: dict[str, Kind] = {column.name: column.kind for column in COLUMNS}
_TITLES = {column.name: column.title for column in COLUMNS}
_COMPARED = ("attempts", *(name for name in _KINDS if name in _RATIOS or name in _QUANTILES))

Group = tuple[Any, ...]


class Change(NamedTuple):
    """A figure now and before; `difference` and the interval are None where that is not known."""

    now: Any
    before: Any
    difference: Any
    low: Any
    high: Any
    excludes_zero: bool | None


class Comparison(NamedTuple):
    """Each group's figures in both periods, those asked most now first."""

    changes: dict[Group, dict[str, Change]]
    by: tuple[str, ...]
    period: Period
    previous: Period
    tz: str

    def data(self) -> dict[str, Any]:
        """For JSON: both periods, how intervals were made, and per group each figure's change."""
        return {
            "since": self.period.since,
            "until": self.period.until,
            "previous_since": self.previous.since,
            "previous_until": self.previous.until,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "rows": [
                self._named(group) | {name: change._asdict() for name, change in changes.items()}
                for group, changes in self.changes.items()
            ],
        }

    def table(self) -> Table:
        """For CSV: one row per group and figure."""
        columns = [Column(name, name, "raw") for name in (*told_by_keys(self.by), "figure", *Change._fields)]
        rows = [
            self._named(group) | {"figure": name} | change._asdict()
            for group, changes in self.changes.items()
            for name, change in changes.items()
        ]
        return Table("", columns, rows)

    def document(self) -> Document:
        """For people: a table per group, without figures that neither period knows; where nothing was
        asked before, the title says so, and the figures stand alone."""
        has_before = any(
            change.before is not None for changes in self.changes.values() for change in changes.values()
        )
        tables = [
            Table(
                " · ".join(shown(self._named(group)[key], "text") for key in self.by),
                _COLUMNS if has_before else _COLUMNS_ALONE,
                _rows(changes),
            )
            for group, changes in self.changes.items()
        ]
        title = f"Performance{shown_period(self.period, self.tz)}"
        if not tables:
            asked = nothing_in(self.period, self.tz, "nothing was asked")
            return Document(title, [], [], f"{asked}, nor in the same length of time before")
        if not has_before:
            return Document(f"{title}; nothing was asked in the same length of time before", [], tables)
        note = f"* chance alone hardly explains it: the {CONFIDENCE:.0%} bootstrap interval excludes zero"
        return Document(f"{title} against the same length of time before", [], tables, note)

    def _named(self, group: Group) -> dict[str, Any]:
        return dict(zip(told_by_keys(self.by), group, strict=True))


_COLUMNS = (
    Column("figure", "Figure", "text", whole=True),
    Column("before", "Before", "number"),
    Column("now", "Now", "number"),
    Column("difference", "Change", "number"),
    Column("low", "From", "number"),
    Column("high", "To", "number"),
    Column("mark", "", "text"),
)
_COLUMNS_ALONE = tuple(column for column in _COLUMNS if column.name in ("figure", "now"))


def _rows(changes: Mapping[str, Change]) -> list[dict[str, Any]]:
    return [
        {"figure": _TITLES[name]} | _shown(_KINDS[name], change)
        for name, change in changes.items()
        if (change.now, change.before) != (None, None)
    ]


def _shown(kind: Kind, change: Change) -> dict[str, str]:
    """A change as people read it; that of a share is in percentage points."""
    amounts = {"before": shown(change.before, kind), "now": shown(change.now, kind)}
    signed = {name: _signed(getattr(change, name), kind) for name in ("difference", "low", "high")}
    return amounts | signed | {"mark": "*" if change.excludes_zero else ""}


def _signed(value: Any, kind: Kind) -> str:
    if value is None:
        return shown(None, kind)
    if kind == "share":
        return f"{value * 100:+.1f} pp"
    return f"{'+' if value > 0 else ''}{shown(value, kind)}"


def comparison_report(
    path: str | Path,
    *,
    by: str | Sequence[str] | None = None,
    period: Period,
    now: datetime,
    tz: str = "UTC",
    allow_damage: bool = False,
) -> Comparison:
    """A period against the one of equal length before it; one without `until` lasts until `now`.

    Raises UsageError for a period without a beginning; else as `reports.performance.performance_report`.
    """
    named = keys(by) or ("model",)
    within = Period(period.since, period.until or now)
    previous = before(within, now)
    with reading(path, tz, allow_damage) as connection:
        now_samples, before_samples = (_samples(connection, named, each) for each in (within, previous))
    nothing = _Sample(dict.fromkeys(_COMPARED), {})
    groups = sorted(
        now_samples.keys() | before_samples.keys(),
        key=lambda of: (-(now_samples.get(of, nothing).figures["attempts"] or 0), list(map(str, of))),
    )
    changes = {
        group: _changes(now_samples.get(group, nothing), before_samples.get(group, nothing))
        for group in groups
    }
    return Comparison(changes, named, within, previous, tz)


class _Sample(NamedTuple):
    """What is known of a group in one period: its figures, and what they are resampled from."""

    figures: Figures
    resampled_from: dict[str, Ratio | Quantile]


def _changes(now: _Sample, earlier: _Sample) -> dict[str, Change]:
    return {name: _change(name, now, earlier) for name in _COMPARED}


def _change(name: str, now: _Sample, earlier: _Sample) -> Change:
    values = now.figures[name], earlier.figures[name]
    if None in values:
        return Change(*values, None, None, None, None)
    difference = MONEY.subtract(*values) if isinstance(values[0], Decimal) else values[0] - values[1]
    found = None
    if name in now.resampled_from and name in earlier.resampled_from:
        found = interval(now.resampled_from[name], earlier.resampled_from[name])
    if found is None:
        return Change(*values, difference, None, None, None)
    low, high = (dollars(int(end)) if _KINDS[name] == "usd" else end for end in (found.low, found.high))
    return Change(*values, difference, low, high, found.excludes_zero)


def _samples(
    connection: duckdb.DuckDBPyConnection, by: tuple[str, ...], within: Period
) -> dict[Group, _Sample]:
    tally = Tally(connection, by, within).keep()
    rows, _ = figures_of(tally)
    blocks: dict[Group, list[Figures]] = {}
    for block in tally.sums_by_block():
        blocks.setdefault(_group(block, by), []).append(block)
    points = {_group(row, by): row for row in tally.quantiles(POINTS)}
    return {
        (group := _group(row, by)): _Sample(row, {**_ratios(blocks[group]), **_quantiles(points[group])})
        for row in rows
    }


def _group(row: Figures, by: tuple[str, ...]) -> Group:
    return tuple(row[key] for key in told_by_keys(by))


def _ratios(blocks: Sequence[Figures]) -> dict[str, Ratio | Quantile]:
    sums: dict[str, list[Any]] = {name: [0] * BLOCKS for name in _SUMMED}
    for block in blocks:
        made = {
            **block,
            "ended_attempts": block["attempts"] - block["in_flight_attempts"],
            "cost_pico": pico(block["cost_usd"] or Decimal(0)),
            "failed_cost_pico": pico(block["failed_cost_usd"] or Decimal(0)),
        }
        for name in _SUMMED:
            sums[name][block["block"] or 0] += made[name] or 0
    return {
        name: Ratio(
            [part * times for part in sums[of]],
            sums[whole] if whole else None,
            sum(sums[observed]),
            is_whole=_KINDS[name] == "usd",
        )
        for name, (of, whole, observed, times) in _RATIOS.items()
    }


_SUMMED = {name for of in _RATIOS.values() for name in of if isinstance(name, str)}


def _quantiles(row: Figures) -> dict[str, Ratio | Quantile]:
    return {
        name: Quantile(share, row[of], row[f"{of}_count"])
        for name, (of, share) in _QUANTILES.items()
        if row[of]
    }
