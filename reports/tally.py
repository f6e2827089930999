"""Attempts, moves and circuits of a period, counted by any keys: what performance is made of.

attempts ─┐
moves    ─┼─▶ counted, one row each ─▶ sums · sums by block · quantiles, per group and in all
circuits ─┘
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ledger.reader import connect
from reports.keys import key_sql, key_value
from reports.options import Period, in_period

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import duckdb

Figures = dict[str, Any]
BLOCKS = 100

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
_OF_CIRCUITS = {"provider", "model", "tier"}


def reading(path: str | Path, tz: str, allow_damage: bool) -> duckdb.DuckDBPyConnection:
    """A connection with what a tally reads. Raises as `ledger.reader.connect`."""
    return connect(path, tz=tz, allow_damage=allow_damage, views=("events", "attempts"))


def told_by_keys(by: tuple[str, ...]) -> tuple[str, ...]:
    """What a group is told by: a model also by its provider, right before it."""
    if "model" not in by or "provider" in by:
        return by
    at = by.index("model")
    return (*by[:at], "provider", *by[at:])


class Tally:
    """What a period holds, by keys. Each method gives one row per group, and one of all: `is_total`.

    Counted anew for each, unless `keep()` was called: worth it where more than one is asked for.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, by: tuple[str, ...], within: Period) -> None:
        self.told_by = told_by_keys(by)
        self.has_circuits = set(self.told_by) <= _OF_CIRCUITS
        self._connection = connection
        self._names = [f"group_{at}" for at in range(len(self.told_by))]
        expressions = [key_sql(key) for key in self.told_by]
        columns = zip(expressions, self._names, strict=True)
        condition, self._parameters = in_period(within)
        self._counted = _COUNTED.format(
            group_key=", ".join(expressions),
            group_columns=", ".join(f"{sql} as {name}" for sql, name in columns),
            period=condition,
            block=f"hash(request_id) % {BLOCKS}",
            has_circuits="true" if self.has_circuits else "false",
        )

    def keep(self) -> Tally:
        """Count once, into a table, in place of any kept before."""
        self._connection.execute(
            f"create or replace temp table counted as {self._counted} from counted", self._parameters
        )
        self._counted, self._parameters = "", {}
        return self

    def sums(self) -> list[Figures]:
        """Counts, costs, percentiles of latency and first token, circuits."""
        return self._rows(_SUMS + _DETAILS)

    def sums_by_block(self) -> list[Figures]:
        """Counts and costs, in `BLOCKS` blocks of requests that are as good as drawn by lot."""
        return self._rows(_SUMS, "block")

    def quantiles(self, points: Sequence[float]) -> list[Figures]:
        """How many latencies and first tokens of answers there are, and their quantiles at `points`."""
        return self._rows(
            ", ".join(
                f"count({name}) filter (where is_answered) as {name}_count,"
                f" quantile_cont({name}, {list(points)}) filter (where is_answered) as {name}"
                for name in ("latency_ms", "first_token_ms")
            )
        )

    def _rows(self, sums: str, more: str = "") -> list[Figures]:
        group = ", ".join([*self._names, more] if more else self._names)
        self._connection.execute(
            f"{self._counted} select {group}, grouping({self._names[0]}) = 1 as is_total, {sums}"
            f" from counted group by grouping sets (({group}), ({more}))",
            self._parameters,
        )
        found = [column[0] for column in self._connection.description or ()]
        rows = [dict(zip(found, row, strict=True)) for row in self._connection.fetchall()]
        for row in rows:
            row.update(
                (key, key_value(key, row.pop(name)))
                for key, name in zip(self.told_by, self._names, strict=True)
            )
        return rows
