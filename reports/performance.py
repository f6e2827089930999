"""How each model did, or each task, or any other key: answers, speed, what an answer costs, what failures do.

An attempt counts in the period in which it started. A retry is an attempt on the same tier as the one
before it; a fallback is a request's move away to another tier. `compare` sets a period against the one
before it: see `reports.comparison`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from ledger.money import MONEY, usd
from ledger.reader import connect
from reports.keys import key_sql, key_value, keys, titled
from reports.options import ALL_TIME, Period, in_period, shown_period
from reports.render import Column, Document, Table, harmless, rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import duckdb

Figures = dict[str, Any]

# What an attempt, a move or a circuit adds to its group, one row each. Only requests of more than one
# step are put in order, to tell retries from moves; a step is an attempt, or a tier found left alone.
# `is_arrival`: the step before it, if any, was in another group. Of all groups together each request is
# one, in whichever it began.
_COUNTED = """
with again as (
    select distinct request_id from events
    where (event_type = 'attempt_started' and attempt_number > 1) or event_type = 'fallback_engaged'
),
steps as (
    select
        * replace (coalesce(started_at, occurred_at) as started_at, coalesce(tier, from_tier) as tier),
        event_type = 'attempt_started' as is_attempt
    from events
    where (event_type = 'attempt_started' or (event_type = 'fallback_engaged' and reason = 'circuit_open'))
        and request_id in (from again)
),
followed as (
    select
        attempt_id,
        journal_id,
        seq,
        is_attempt and lag(is_attempt) over earlier and tier = lag(tier) over earlier as is_retry,
        group_key is distinct from lag(group_key) over earlier as is_arrival,
        lag(seq) over earlier is null as is_first
    from (select *, row({group_key}) as group_key from steps)
    window earlier as (partition by request_id order by occurred_at, seq)
),
left_behind as (  -- an older move names no model: it is that of the attempts it followed
    select request_id, tier as from_tier, any_value(provider) as provider, any_value(model) as model
    from events
    where event_type = 'attempt_started'
        and request_id in (
            select request_id from events where event_type = 'fallback_engaged' and model is null
        )
    group by request_id, tier
),
moved as (
    select
        events.request_id,
        events.session_id,
        events.task,
        events.tags,
        events.from_tier as tier,
        coalesce(events.provider, left_behind.provider) as provider,
        coalesce(events.model, left_behind.model) as model,
        events.occurred_at as started_at,
        coalesce(followed.is_arrival, false) as is_arrival,
        coalesce(followed.is_first, false) as is_first
    from events
        left join left_behind using (request_id, from_tier)
        left join followed using (journal_id, seq)
    where events.event_type = 'fallback_engaged'
),
openings as (
    select
        provider,
        model,
        any_value(tier) as tier,
        started_at,
        null::varchar as task,
        null::varchar as session_id,
        null::map(varchar, varchar) as tags,
        min(occurred_at) filter (where event_type = 'circuit_closed') as closed_at
    from events
    where event_type in ('circuit_opened', 'circuit_closed')
    group by provider, model, started_at
    having bool_or(event_type = 'circuit_opened')
),
counted as (
    select
        {group_columns},
        {block} as block,
        outcome,
        outcome = 'succeeded' as is_answered,
        outcome not in ('succeeded', 'in_flight') as is_failed,
        coalesce(is_retry, false) as is_retry,
        coalesce(is_arrival, true) as is_arrival,
        coalesce(is_first, true) as is_first,
        error_type,
        billing,
        is_unpriced,
        cost_usd,
        latency_ms,
        first_token_ms,
        output_tokens
    from attempts left join followed using (attempt_id)
    where {period}
    union all by name
    select {group_columns}, {block} as block, true as is_move, is_arrival, is_first from moved where {period}
    union all by name
    select {group_columns}, started_at as circuit_started_at, closed_at from openings
    where {period} and {has_circuits}
)
"""
_SUMS = """
    count(outcome) as attempts,
    count(*) filter (where is_answered) as succeeded_attempts,
    count(*) filter (where is_failed) as failed_attempts,
    count(*) filter (where outcome = 'in_flight') as in_flight_attempts,
    count(*) filter (where is_retry) as retries,
    count(*) filter (where is_arrival) as requests,
    count(*) filter (where is_first) as requests_in_all,
    count(*) filter (where is_move) as fallbacks,
    sum(cost_usd) as cost_usd,
    if(count(*) filter (where is_failed) = 0, 0, sum(cost_usd) filter (where is_failed)) as failed_cost_usd,
    count(*) filter (where is_unpriced) as unpriced_attempts,
    count(*) filter (where billing = 'unknown') as in_doubt_attempts,
    coalesce(sum(output_tokens) filter (where is_answered and latency_ms > 0), 0)::bigint as timed_tokens,
    sum(latency_ms) filter (where is_answered and latency_ms > 0 and output_tokens is not null) as timed_ms
"""
_DETAILS = """,
    count(*) filter (where error_type in ('rate_limited', 'overloaded')) as rate_limited_attempts,
    count(*) filter (where error_type = 'timeout') as timed_out_attempts,
    quantile_cont(latency_ms, [0.5, 0.95, 0.99]) filter (where is_answered) as latency_ms,
    quantile_cont(first_token_ms, [0.5, 0.95]) filter (where is_answered) as first_token_ms,
    count(circuit_started_at) as circuit_openings,
    sum(epoch(closed_at) - epoch(circuit_started_at)) as circuit_open_s,
    strftime(
        max(circuit_started_at) filter (where closed_at is null), '%Y-%m-%dT%H:%M:%S.%f%z'
    ) as circuit_opened_at
"""
_QUANTILES = (
    "latency_ms_p50",
    "latency_ms_p95",
    "latency_ms_p99",
    "first_token_ms_p50",
    "first_token_ms_p95",
)
BLOCKS = 100
_OF_CIRCUITS = {"provider", "model", "tier"}

COLUMNS = (
    Column("attempts", "Attempts", "count"),
    Column("succeeded_attempts", "Succeeded", "count", detail=True),
    Column("failed_attempts", "Failed", "count", detail=True),
    Column("success_ratio", "Success", "share"),
    Column("requests", "Requests", "count", detail=True),
    Column("retries", "Retries", "count", detail=True),
    Column("retry_ratio", "Retried", "share"),
    Column("fallbacks", "Fallbacks", "count", detail=True),
    Column("fallback_ratio", "Fell back", "share"),
    Column("rate_limited_attempts", "Rate limited", "count", if_any=True),
    Column("timed_out_attempts", "Timed out", "count", if_any=True),
    Column("latency_ms_p50", "ms p50", "ms"),
    Column("latency_ms_p95", "ms p95", "ms"),
    Column("latency_ms_p99", "ms p99", "ms"),
    Column("first_token_ms_p50", "First token ms p50", "ms", if_any=True),
    Column("first_token_ms_p95", "First token ms p95", "ms", if_any=True),
    Column("tokens_per_s", "Tokens per s", "rate"),
    Column("cost_usd", "Cost", "usd"),
    Column("cost_usd_per_success", "Cost per success", "usd"),
    Column("failed_cost_usd", "Lost on failures", "usd"),
    Column("unpriced_attempts", "Unpriced", "count", if_any=True),
    Column("in_doubt_attempts", "In doubt", "count", if_any=True),
    Column("in_flight_attempts", "In flight", "count", detail=True),
    Column("circuit_openings", "Circuit openings", "count", if_any=True),
    Column("circuit_open_s", "Circuit open s", "raw", detail=True),
    Column("circuit_opened_at", "Left alone since", "moment", if_any=True),
)


class Performance(NamedTuple):
    """One row per combination of keys, those asked most first, and one of all together."""

    rows: list[Figures]
    total: Figures | None  # None: nothing was asked
    by: tuple[str, ...]
    period: Period
    tz: str
    tasks: tuple[list[Figures], Figures | None] = ([], None)  # the same by task

    def table(self) -> Table:
        """All columns; one row per combination of keys, by default per provider's model."""
        return _table(self.rows, self.total, self.by)

    def data(self) -> list[Figures]:
        """The rows as they are."""
        return self.rows

    def document(self) -> Document:
        """The list for people; latencies are of answered attempts."""
        tables = [self.table(), *([_table(*self.tasks, ("task",))] if self.tasks[0] else [])]
        return Document(f"Performance{shown_period(self.period, self.tz)}", [], tables)


def performance_report(
    path: str | Path,
    *,
    by: str | Sequence[str] | None = None,
    with_tasks: bool = False,
    period: Period = ALL_TIME,
    tz: str = "UTC",
    allow_damage: bool = False,
) -> Performance:
    """How each model did, or each of the keys `by`, as `reports.keys.keys` takes them.

    with_tasks: the document shows the same by task. Raises UsageError for another key; else as
    `ledger.reader.connect`.
    """
    named = keys(by) or ("model",)
    with reading(path, tz, allow_damage) as connection:
        rows, total = figures_by(connection, named, period)
        tasks = figures_by(connection, ("task",), period) if with_tasks else ([], None)
    return Performance(rows, total, named, period, tz, tasks)


def reading(path: str | Path, tz: str, allow_damage: bool) -> duckdb.DuckDBPyConnection:
    """A connection with what the queries of this module read."""
    return connect(path, tz=tz, allow_damage=allow_damage, views=("events", "attempts"))


def figures_by(
    connection: duckdb.DuckDBPyConnection, by: tuple[str, ...], within: Period
) -> tuple[list[Figures], Figures | None]:
    """The rows of a report, by the keys given, and that of all together; None where there is nothing."""
    told_by = told_by_keys(by)
    rows, total = [], None
    for row in summed(connection, by, within, _SUMS + _DETAILS):
        if row["is_total"]:
            row["requests"] = row["requests_in_all"]
            total = _finished(row, told_by)
        else:
            rows.append({key: row[key] for key in told_by} | _finished(row, told_by))
    rows.sort(key=lambda row: [-row["attempts"], *(str(row[key]) for key in told_by)])
    return rows, total if rows else None


def sums_by_block(
    connection: duckdb.DuckDBPyConnection, by: tuple[str, ...], within: Period
) -> list[Figures]:
    """The sums of each group, in `BLOCKS` blocks of its requests that are as good as drawn by lot."""
    return summed(connection, by, within, _SUMS, "block")


def quantiles_by(
    connection: duckdb.DuckDBPyConnection, by: tuple[str, ...], within: Period, points: Sequence[float]
) -> list[Figures]:
    """How many latencies and first tokens of answers each group has, and their quantiles at `points`."""
    sums = ", ".join(
        f"count({name}) filter (where is_answered) as {name}_count,"
        f" quantile_cont({name}, {list(points)}) filter (where is_answered) as {name}"
        for name in ("latency_ms", "first_token_ms")
    )
    return summed(connection, by, within, sums)


def summed(
    connection: duckdb.DuckDBPyConnection, by: tuple[str, ...], within: Period, sums: str, more: str = ""
) -> list[Figures]:
    """What `sums` selects of `_COUNTED`, per group and of all (`is_total`), and per `more` if given."""
    told_by = told_by_keys(by)
    names = [f"group_{at}" for at in range(len(told_by))]
    expressions = [key_sql(key) for key in told_by]
    condition, parameters = in_period(within)
    counted = _COUNTED.format(
        group_key=", ".join(expressions),
        group_columns=", ".join(f"{sql} as {name}" for sql, name in zip(expressions, names, strict=True)),
        period=condition,
        block=f"hash(request_id) % {BLOCKS}",
        has_circuits="true" if set(told_by) <= _OF_CIRCUITS else "false",
    )
    group, rest = ", ".join([*names, more] if more else names), more
    connection.execute(
        f"{counted} select {group}, grouping({names[0]}) = 1 as is_total, {sums}"
        f" from counted group by grouping sets (({group}), ({rest}))",
        parameters,
    )
    found = [column[0] for column in connection.description or ()]
    rows = [dict(zip(found, row, strict=True)) for row in connection.fetchall()]
    for row in rows:
        row.update((key, key_value(key, row.pop(name))) for key, name in zip(told_by, names, strict=True))
    return rows


def told_by_keys(by: tuple[str, ...]) -> tuple[str, ...]:
    """What a row is told by: a model also by its provider, right before it."""
    if "model" not in by or "provider" in by:
        return by
    at = by.index("model")
    return (*by[:at], "provider", *by[at:])


def _finished(row: Figures, told_by: tuple[str, ...]) -> Figures:
    """Ratios and prices from sums; what has nothing to be a part of is None."""
    values = [*(row["latency_ms"] or [None] * 3), *(row["first_token_ms"] or [None] * 2)]
    quantiles = dict(zip(_QUANTILES, values, strict=True))
    made = {
        **row,
        **quantiles,
        "success_ratio": ratio(row["succeeded_attempts"], row["attempts"] - row["in_flight_attempts"]),
        "retry_ratio": ratio(row["retries"], row["attempts"]),
        "fallback_ratio": ratio(row["fallbacks"], row["requests"]),
        "tokens_per_s": ratio(row["timed_tokens"] * 1000, row["timed_ms"]),
        "cost_usd_per_success": cost_per_success(row),
        "circuit_openings": row["circuit_openings"] if set(told_by) <= _OF_CIRCUITS else None,
        "circuit_opened_at": rfc3339(row["circuit_opened_at"]),
    }
    return {column.name: made[column.name] for column in COLUMNS}


def ratio(part: float, whole: float | None) -> float | None:
    """None where there is nothing to be a part of."""
    return part / whole if whole else None


def cost_per_success(row: Figures) -> Decimal | None:
    """USD, half-even at 12 places: all that was paid, over what was answered; None where some is unpriced."""
    if row["cost_usd"] is None or row["unpriced_attempts"] or not row["succeeded_attempts"]:
        return None
    return usd(MONEY.divide(row["cost_usd"], Decimal(row["succeeded_attempts"])))


def _table(rows: list[Figures], total: Figures | None, by: tuple[str, ...]) -> Table:
    told_by = told_by_keys(by)
    names = [
        Column(
            key, harmless(titled(key)), "text", detail=key not in by, whole=key == "model" and len(by) == 1
        )
        for key in told_by
    ]
    in_all = total and dict.fromkeys(told_by, "") | {by[0]: "Total"} | total
    return Table(f"By {harmless(' and '.join(by))}", [*names, *COLUMNS], rows, in_all)
