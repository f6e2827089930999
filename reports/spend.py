"""What was spent: in all, by tier, by model, and by any other key; of one session or of all.

Requests count at the moment they started and the tier that answered; attempts, tokens and money at
the moment and the tier of the attempt. So figures of adjacent periods, and of all values of a key,
add up to the total.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from ledger.errors import NoSuchSession
from ledger.reader import reading, sums_alone, tier_rank
from reports.keys import IN_TIME, grouped_sql, key_value, keys, shown_sql, titled
from reports.options import ALL_TIME, Period, in_period, nothing_in, shown_period, time_zone
from reports.render import Column, Document, Fact, Table, harmless, shown

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

_VIEWS = ("ledger_bounded", "ledger_requests", "ledger_failed")
_NOTHING = Decimal("0.000000000000")

Figures = dict[str, Any]
_SPEND = """
with requests as (
    select * from ledger_requests where status <> 'failed' or (provider is not null and model is not null)
    union all
    select * from ledger_failed
),
counted as (  -- what is alike as one, so that each condition below is asked of few
    select
        tier, provider, model, status{keys},
        count(*) as requests,
        min(started_at) as first_at,
        max(coalesce(ended_at, started_at)) as last_at
    from requests
    where {period}
    group by tier, provider, model, status{names}
    union all by name
    select
        tier, provider, model, outcome, billing, is_unpriced, is_unlisted, is_ceiling_broken,
        reserved_usd is null as is_unbounded,
        billing <> 'unbilled' and (input_tokens is null or output_tokens is null) as is_unmetered{keys},
        count(*) as attempts,
        sum(reserved_usd) as reserved_usd,
        sum(cost_usd) as cost_usd,
        sum(list_cost_usd) as list_cost_usd,
        sum(input_tokens) as input_tokens,
        sum(cache_read_tokens) as cache_read_tokens,
        sum(cache_write_tokens) as cache_write_tokens,
        sum(output_tokens) as output_tokens,
        sum(reasoning_tokens) as reasoning_tokens,
        min(started_at) as first_at,
        max(coalesce(ended_at, started_at)) as last_at
    from {attempts}
    where {period}
    group by
        tier, provider, model, outcome, billing, is_unpriced, is_unlisted, is_ceiling_broken,
        is_unbounded, is_unmetered{names}
)
select
    tier,
    provider,
    model{shown},
    sum(cost_usd) as cost_usd,
    sum(list_cost_usd) as list_cost_usd,
    {counts},
    sum(reserved_usd) filter (where is_unpriced) as unpriced_ceiling_usd,
    sum(reserved_usd) filter (where billing = 'unknown') as in_doubt_ceiling_usd,
    sum(reserved_usd) filter (where outcome = 'in_flight') as in_flight_ceiling_usd,
    epoch_us(min(first_at)) as first_us,
    epoch_us(max(last_at)) as last_us,
    (  -- in all; asked here, as DuckDB then reads them beside the rest
        select count(*) from events where event_type = 'fallback_engaged'{of_requests}
    ) as fallbacks
from counted
group by tier, provider, model{names}
"""
_COUNTED = {  # of what is alike, those of which a condition holds, added up
    "requests": ("requests", "true"),
    "succeeded_requests": ("requests", "status = 'completed'"),
    "failed_requests": ("requests", "status = 'failed'"),
    "denied_requests": ("requests", "status = 'denied'"),
    "open_requests": ("requests", "status = 'open'"),
    "attempts": ("attempts", "true"),
    "failed_attempts": ("attempts", "outcome not in ('succeeded', 'in_flight')"),
    "input_tokens": ("input_tokens", "true"),
    "cache_read_tokens": ("cache_read_tokens", "true"),
    "cache_write_tokens": ("cache_write_tokens", "true"),
    "output_tokens": ("output_tokens", "true"),
    "reasoning_tokens": ("reasoning_tokens", "true"),
    "billed_attempts": ("attempts", "billing = 'billed'"),
    "unbilled_attempts": ("attempts", "billing = 'unbilled'"),
    "unpriced_attempts": ("attempts", "is_unpriced"),
    "unlisted_attempts": ("attempts", "is_unlisted"),
    "in_doubt_attempts": ("attempts", "billing = 'unknown'"),
    "in_flight_attempts": ("attempts", "outcome = 'in_flight'"),
    "broken_ceilings": ("attempts", "is_ceiling_broken"),
    "unmetered_attempts": ("attempts", "is_unmetered"),
    "unpriced_unbounded": ("attempts", "is_unpriced and is_unbounded"),
    "in_doubt_unbounded": ("attempts", "billing = 'unknown' and is_unbounded"),
    "in_flight_unbounded": ("attempts", "outcome = 'in_flight' and is_unbounded"),
}
_COUNTS = tuple(name for name in _COUNTED if not name.endswith("_unbounded"))
_UNKNOWN_COSTS = {  # that the cost lacks, each with the most that it can be
    "unpriced": "Unpriced",
    "in_doubt": "In doubt",
    "in_flight": "In flight",
}


class Spend(NamedTuple):
    """A spend report: the figures in all, and one row per tier, per model and per value of a key."""

    session_id: str | None
    period: Period
    tz: str
    total: Figures
    by_tier: list[Figures]
    by_model: list[Figures]
    by: tuple[str, ...]
    rows: list[Figures]  # per values of the keys `by`, in their order

    def data(self) -> dict[str, Any]:
        """The report as --format json gives it; money is Decimal, moments are RFC 3339 text."""
        of = self.total
        report: dict[str, Any] = {"session_id": self.session_id}
        if self.period != ALL_TIME or self.session_id is None:
            report |= {"since": self.period.since, "until": self.period.until}
        report |= {name: of[name] for name in _IN_DATA}
        for name in _UNKNOWN_COSTS:
            report[name] = {"attempts": of[f"{name}_attempts"], "ceiling_usd": of[f"{name}_ceiling_usd"]}
        report["by_tier"] = [_row(row, "tier") for row in self.by_tier]
        report["by_model"] = [_row(row, "model", "provider") for row in self.by_model]
        if self.by:
            report |= {"by": list(self.by), "rows": [_row(row, *_named(self.by)) for row in self.rows]}
        return report | {"first_at": of["first_at"], "last_at": of["last_at"]}

    def table(self) -> Table:
        """The one table that --format csv gives: by the key asked for, else by tier."""
        return _table(self.rows if self.by else self.by_tier, self.total, self.by or ("tier",))

    def document(self) -> Document:
        """The report for people."""
        title = "All sessions" if self.session_id is None else f"Session {self.session_id}"
        if self.period != ALL_TIME:
            title += shown_period(self.period, self.tz)
        if not self.by_tier:
            return Document(title, self._facts(), [], nothing_in(self.period, self.tz, "nothing was asked"))
        tables = [self.table()]
        if not self.by:
            tables.append(_table(self.by_model, self.total, ("model",)))
        return Document(title, self._facts(), tables)

    def _facts(self) -> list[Fact]:
        of = self.total
        facts = [
            Fact("Cost", shown(of["cost_usd"], "usd"), _at_list_prices(of)),
            Fact("Requests", shown(of["requests"], "count"), _parts(of, _REQUEST_PARTS)),
            Fact("Attempts", shown(of["attempts"], "count"), _parts(of, _ATTEMPT_PARTS)),
            Fact("Input tokens", shown(of["input_tokens"], "count"), _parts(of, _INPUT_PARTS)),
            Fact("Output tokens", shown(of["output_tokens"], "count"), _parts(of, _OUTPUT_PARTS)),
        ]
        if of["unbilled_attempts"]:
            facts.append(
                Fact("Unbilled", shown(of["unbilled_attempts"], "count"), "attempts that cost nothing")
            )
        for name, label in _UNKNOWN_COSTS.items():
            if of[f"{name}_attempts"]:
                most = f"attempts not in the cost, at most {shown(of[f'{name}_ceiling_usd'], 'usd')}"
                advice = "; bughive-costs recover ends those of dead programs" if name == "in_flight" else ""
                facts.append(Fact(label, shown(of[f"{name}_attempts"], "count"), most + advice))
        if of["unmetered_attempts"]:
            what = "attempts not in the tokens, as nobody said how many they used"
            facts.append(Fact("Unmetered", shown(of["unmetered_attempts"], "count"), what))
        if of["broken_ceilings"]:
            what = "attempts that cost more than the most they could: limits may be overshot by that"
            facts.append(Fact("Ceiling broken", shown(of["broken_ceilings"], "count"), what))
        if of["first_at"]:
            facts += [
                Fact("First", shown(of["first_at"], "moment"), self.tz),
                Fact("Last", shown(of["last_at"], "moment"), self.tz),
            ]
        return facts


# what `in_doubt` and `in_flight` count is told in tables of their own
_TOKENS_FROM = _COUNTS.index("input_tokens")
_IN_DATA = (
    *("cost_usd", "list_cost_usd", *_COUNTS[:_TOKENS_FROM], "fallbacks"),
    *(name for name in _COUNTS[_TOKENS_FROM:] if name not in ("in_doubt_attempts", "in_flight_attempts")),
)
_REQUEST_PARTS = {
    "succeeded_requests": "succeeded",
    "failed_requests": "failed",
    "denied_requests": "denied",
    "open_requests": "open",
}
_ATTEMPT_PARTS = {"failed_attempts": "failed", "fallbacks": "fallbacks"}
_INPUT_PARTS = {"cache_read_tokens": "read from a cache", "cache_write_tokens": "written to a cache"}
_OUTPUT_PARTS = {"reasoning_tokens": "of them reasoning"}
_COLUMNS = (
    Column("requests", "Requests", "count"),
    Column("attempts", "Attempts", "count"),
    Column("failed_attempts", "Failed attempts", "count", can_go=2),
    Column("input_tokens", "Input tokens", "count"),
    Column("cache_read_tokens", "Cache read", "count", detail=True),
    Column("cache_write_tokens", "Cache write", "count", detail=True),
    Column("output_tokens", "Output tokens", "count"),
    Column("reasoning_tokens", "Reasoning", "count", detail=True),
    Column("cost_usd", "Cost", "usd"),
    Column("cost_share", "Share of cost", "bar", drawn=True),
    Column("list_cost_usd", "List cost", "usd", detail=True),
    Column("billed_attempts", "Billed", "count", detail=True),
    Column("unbilled_attempts", "Unbilled", "count", detail=True),
    Column("unpriced_attempts", "Unpriced", "count", if_any=True),
    Column("unpriced_ceiling_usd", "Unpriced, at most", "usd", detail=True),
    Column("unlisted_attempts", "Unlisted", "count", detail=True),
    Column("unmetered_attempts", "Unmetered", "count", detail=True),
    Column("in_doubt_attempts", "In doubt", "count", if_any=True),
    Column("in_doubt_ceiling_usd", "In doubt, at most", "usd", detail=True),
    Column("in_flight_attempts", "In flight", "count", if_any=True),
    Column("in_flight_ceiling_usd", "In flight, at most", "usd", detail=True),
    Column("broken_ceilings", "Ceiling broken", "count", if_any=True),
)


def _at_list_prices(figures: Figures) -> str:
    """The cost by the price book, and what that cannot count."""
    told = f"at list prices {shown(figures['list_cost_usd'], 'usd')}"
    unlisted = figures["unlisted_attempts"]
    if not unlisted:
        return told
    return f"{told} without {unlisted:,} {'attempt that has' if unlisted == 1 else 'attempts that have'} none"


def _parts(figures: Figures, names: Mapping[str, str]) -> str:
    """The parts that are not zero, in words."""
    return ", ".join(
        f"{shown(figures[name], 'count')} {word if figures[name] != 1 else word.removesuffix('s')}"
        for name, word in names.items()
        if figures[name]
    )


def _table(rows: list[Figures], total: Figures, by: tuple[str, ...]) -> Table:
    """Rows by their keys, each with its share of the cost for people."""
    keys = [Column(key, harmless(titled(key)), "text", whole=len(by) == 1) for key in by]
    if "model" in by and "provider" not in by:
        keys.append(Column("provider", "Provider", "text", detail=True))
    shared = [row | {"cost_share": _share(row["cost_usd"], total["cost_usd"])} for row in rows]
    in_all = total | {column.name: "" for column in keys} | {by[0]: "Total", "cost_share": ""}
    return Table(f"By {harmless(' and '.join(by))}", [*keys, *_COLUMNS], shared, in_all)


def _share(part_usd: Decimal | None, whole_usd: Decimal | None) -> float | None:
    """0..1; None where either is not known, or there is nothing to share."""
    return float(part_usd / whole_usd) if part_usd is not None and whole_usd else None


def _row(figures: Figures, *names: str) -> Figures:
    return {
        name: figures[name] for name in (*names, *(column.name for column in _COLUMNS if not column.drawn))
    }


def _named(by: tuple[str, ...]) -> tuple[str, ...]:
    """What a row of these keys is told by: a model also by its provider."""
    return (*by, "provider") if "model" in by and "provider" not in by else by


def spend_report(
    path: str | Path,
    *,
    session_id: str | None = None,
    period: Period = ALL_TIME,
    by: str | Sequence[str] | None = None,
    tz: str = "UTC",
    allow_damage: bool = False,
) -> Spend:
    """Read the ledger at `path` and sum up what was spent.

    by: keys as `reports.keys.keys` takes them. Raises UsageError for another key, NoSuchSession for a
    session without events, naming the nearest; else as `ledger.reader.connect`.
    """
    named = keys(by)
    zone = time_zone(tz)
    with reading(path, session_id, tz=tz, allow_damage=allow_damage, views=_VIEWS) as connection:
        if session_id is not None and not _has_events(connection):
            raise NoSuchSession(
                f"no session {session_id!r} in {path}{_nearest_sessions(path, session_id, allow_damage)}"
            )
        sums_alone(connection)
        parts = _parts_of(connection, named, period)
    return Spend(
        session_id,
        period,
        tz,
        total=_summed(parts, zone) | {"fallbacks": max((part["fallbacks"] for part in parts), default=0)},
        by_tier=_by(parts, zone, ("tier",)),
        by_model=_by(parts, zone, ("model",)),
        by=named,
        rows=_by(parts, zone, named) if named else [],
    )


def _parts_of(connection: duckdb.DuckDBPyConnection, by: tuple[str, ...], within: Period) -> list[Figures]:
    """The figures per tier, provider, model and keys: what all others are added up from.

    A ceiling that counts stands on the outcome; only where one is missing there, it is looked for elsewhere.
    """
    parts = _parts_in(connection, "ledger_attempts", by, within)
    if any(part[f"{name}_unbounded"] for part in parts for name in ("unpriced", "in_doubt")):
        return _parts_in(connection, "ledger_bounded", by, within)
    return parts


def _parts_in(
    connection: duckdb.DuckDBPyConnection, attempts: str, by: tuple[str, ...], within: Period
) -> list[Figures]:
    key_names = [f"key_{at}" for at in range(len(by))]
    expressions = [f", {grouped_sql(key)} as {name}" for key, name in zip(by, key_names, strict=True)]
    shown = [
        f", {shown_sql(key, f'counted.{name}')} as {name}" for key, name in zip(by, key_names, strict=True)
    ]
    condition, parameters = in_period(within)
    counts = (
        f"coalesce(sum({amount}) filter (where {which}), 0)::bigint as {name}"
        for name, (amount, which) in _COUNTED.items()
    )
    sql = _SPEND.format(
        counts=",\n    ".join(counts),
        keys="".join(expressions),
        names="".join(f", {name}" for name in key_names),
        shown="".join(shown),
        attempts=attempts,
        period=condition,
        of_requests=""
        if within == ALL_TIME
        else f" and request_id in (select request_id from ledger_requests where {condition})",
    )
    connection.execute(sql, parameters)
    names = [column[0] for column in connection.description or ()]
    parts = [dict(zip(names, row, strict=True)) for row in connection.fetchall()]
    for part in parts:
        part.update((key, key_value(key, part.pop(name))) for key, name in zip(by, key_names, strict=True))
    return parts


def _summed(parts: Sequence[Figures], zone: tzinfo) -> Figures:
    """Parts added up. Costs and ceilings are None where all that makes them up is unknown."""
    figures: Figures = {name: sum(part[name] for part in parts) for name in _COUNTS}
    for name in ("cost_usd", "list_cost_usd"):
        known = [part[name] for part in parts if part[name] is not None]
        figures[name] = sum(known, _NOTHING) if known or not figures["attempts"] else None
    for name in _UNKNOWN_COSTS:
        is_bounded = not any(part[f"{name}_unbounded"] for part in parts)
        ceilings = [part[f"{name}_ceiling_usd"] or _NOTHING for part in parts]
        figures[f"{name}_ceiling_usd"] = sum(ceilings, _NOTHING) if is_bounded else None
    figures["first_us"] = min((part["first_us"] for part in parts), default=None)
    figures["first_at"] = _moment(figures["first_us"], zone)
    figures["last_at"] = _moment(max((part["last_us"] for part in parts), default=None), zone)
    return figures


def _moment(microseconds: int | None, zone: tzinfo) -> str | None:
    if microseconds is None:
        return None
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    with contextlib.suppress(OverflowError):  # of a mad clock, at either end of time
        moment = moment.astimezone(zone)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _by(parts: Sequence[Figures], zone: tzinfo, by: tuple[str, ...]) -> list[Figures]:
    """One row for each combination of keys; a key's rows stand together, ranked as `_rank` says."""
    ranks: dict[tuple[Any, ...], Any] = {}
    for depth in range(1, len(by) + 1):
        for values, figures in _grouped(parts, zone, by[:depth]).items():
            ranks[values] = _rank(by[depth - 1], values[-1], figures)
    names = _named(by)
    rows = [
        dict(zip(names, of, strict=True)) | figures for of, figures in _grouped(parts, zone, names).items()
    ]
    return sorted(
        rows,
        key=lambda row: [ranks[tuple(row[key] for key in by[:depth])] for depth in range(1, len(by) + 1)],
    )


def _grouped(
    parts: Sequence[Figures], zone: tzinfo, names: tuple[str, ...]
) -> dict[tuple[Any, ...], Figures]:
    groups: dict[tuple[Any, ...], list[Figures]] = {}
    for part in parts:
        groups.setdefault(tuple(part[name] for name in names), []).append(part)
    return {of: _summed(group, zone) for of, group in groups.items()}


def _rank(key: str, value: Any, figures: Figures) -> Any:
    """Tiers in their order, days and hours as they came, all else dearest first."""
    if key == "tier":
        return tier_rank(value)
    if key in IN_TIME:  # an hour that comes twice a day has two offsets
        return figures["first_us"]
    return -(figures["cost_usd"] or 0), str(value)


def _has_events(connection: duckdb.DuckDBPyConnection) -> bool:
    return connection.execute("select 1 from events limit 1").fetchone() is not None


def _nearest_sessions(path: str | Path, session_id: str, allow_damage: bool) -> str:
    with reading(path, allow_damage=allow_damage, views=("events",)) as connection:
        found = connection.execute(
            "select session_id from (select distinct session_id from events where session_id is not null)"
            " where jaro_winkler_similarity(session_id, $1) > 0.7"
            " order by jaro_winkler_similarity(session_id, $1) desc, session_id limit 3",
            [session_id],
        ).fetchall()
    near = " or ".join(name for (name,) in found)
    return f"; did you mean {near}?" if near else "; see bughive-costs sessions"
