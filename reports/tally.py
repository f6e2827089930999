"""Attempts, moves and circuits of a period, counted by any keys: what performance is made of.

attempts ─┐
moves    ─┼─▶ counted, one row each ─▶ sums · sums by block · quantiles, per group and in all
circuits ─┘
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from decimal import Decimal
from math import ceil, floor, fsum
from typing import TYPE_CHECKING, Any

from ledger import reader
from ledger.reader import sums_alone
from reports.keys import key_sql, key_value
from reports.options import Period, in_period

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import duckdb

Figures = dict[str, Any]
BLOCKS = 100
NOTHING = Decimal("0.000000000000")

# An attempt counts as a request that came to its group, and began there; what is otherwise is taken off
# again, here. A step of a request is an attempt, or a tier found left alone. `is_arrival`: the step before
# it, if any, was in another group. Of all groups together each request is one, in whichever it began.
#
# The step before an attempt is the one numbered before it, which had no answer. Only where a tier was left
# alone the steps of a request are put in order to tell; and of all requests of more than one step, if there
# is an attempt that is not the first, without one before it.
_CORRECTIONS = """
create or replace temp table corrections as
with moves as materialized (
    select {step_columns}, journal_id, seq, occurred_at, started_at, from_tier, reason
    from events
    where event_type = 'fallback_engaged'
),
answers as not materialized (
    select {step_columns}, started_at, seq from events where event_type = 'attempt_succeeded'
),
unanswered as not materialized (
    select {step_columns}, started_at, seq
    from events
    where event_type between 'attempt_abandoned' and 'attempt_failed'  -- all outcomes but answers
    union all by name
    select {step_columns}, occurred_at as started_at, seq
    from ledger_open
    where
        event_type = 'attempt_started'
        and attempt_id not in (select attempt_id from ledger_open where is_outcome)
),
put_in_order as materialized ({put_in_order}),
steps as (
    select *, row({group_key}) as group_key
    from (
        select *, true as is_attempt from answers where request_id in (from put_in_order)
        union all by name
        select *, true as is_attempt from unanswered where request_id in (from put_in_order)
        union all by name
        select
            * exclude (occurred_at, from_tier, reason)
                replace (coalesce(tier, from_tier) as tier, coalesce(started_at, occurred_at) as started_at),
            false as is_attempt
        from moves
        where reason = 'circuit_open'
    )
),
in_order as (
    select
        *,
        is_attempt and lag(is_attempt) over earlier and tier = lag(tier) over earlier as is_retry,
        group_key is distinct from lag(group_key) over earlier as is_arrival,
        lag(is_attempt) over earlier is null as is_first
    from steps
    window earlier as (partition by request_id order by seq)  -- without an outcome, that of its start
),
later as (
    select *, row({group_key}) as group_key
    from (
        select * from answers where attempt_number > 1
        union all by name
        select * from unanswered where attempt_number > 1
    )
    where request_id not in (from put_in_order)
),
before as (
    select request_id, attempt_number + 1 as attempt_number, tier, row({group_key}) as group_key
    from unanswered
),
by_number as (
    select
        later.*,
        coalesce(later.tier = before.tier, false) as is_retry,
        later.group_key is distinct from before.group_key as is_arrival,
        before.request_id is null as is_first
    from later left join before using (request_id, attempt_number)
),
followed as (
    select *, true as is_attempt from by_number
    union all by name
    select * from in_order
),
left_behind as (  -- an older move names no model: it is that of the attempts it followed
    select request_id, tier as from_tier, any_value(provider) as provider, any_value(model) as model
    from events
    where event_type = 'attempt_started' and request_id in (select request_id from moves where model is null)
    group by request_id, tier
),
moved as (
    select
        moves.request_id,
        moves.session_id,
        moves.task,
        moves.tags,
        moves.from_tier as tier,
        coalesce(moves.provider, left_behind.provider) as provider,
        coalesce(moves.model, left_behind.model) as model,
        moves.occurred_at as started_at,
        coalesce(followed.is_arrival, false)::int as arrivals,
        coalesce(followed.is_first, false)::int as firsts
    from moves
        left join left_behind using (request_id, from_tier)
        left join (from followed where not is_attempt) as followed using (journal_id, seq)
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
    where event_type between 'circuit_closed' and 'circuit_opened'
    group by provider, model, started_at
    having bool_or(event_type = 'circuit_opened')
),
corrected as (
    select
        {group_columns},
        {block} as block,
        is_retry::int as retries,
        is_arrival::int - 1 as arrivals,
        is_first::int - 1 as firsts,
        (is_first and attempt_number > 1)::int as strays
    from followed
    where is_attempt and (is_retry or not is_arrival or not is_first or attempt_number > 1) and {period}
    union all by name
    select {group_columns}, {block} as block, 1 as moves, arrivals, firsts from moved where {period}
)
select
    {names},
    block,
    sum(retries)::bigint as retries,
    sum(arrivals)::bigint as arrivals,
    sum(firsts)::bigint as firsts,
    sum(moves)::bigint as moves,
    sum(strays)::bigint as strays,
    null::timestamptz as circuit_started_at,
    null::timestamptz as closed_at
from corrected
group by {names}, block
union all by name
select {group_columns}, started_at as circuit_started_at, closed_at from openings
where {period} and {has_circuits}
"""
# What an attempt adds to its group, one row each, and the corrections.
_COUNTED = """
with counted as (
    select
        {group_columns},
        {block} as block,
        outcome,
        outcome = 'succeeded' as is_answered,
        outcome not in ('succeeded', 'in_flight') as is_failed,
        error_type,
        billing,
        is_unpriced,
        cost_usd,
        latency_ms,
        first_token_ms,
        output_tokens
    from ledger_attempts
    where {period}
    union all by name
    select * from corrections
)
"""
_STEP_COLUMNS = "request_id, session_id, task, tags, tier, provider, model, attempt_number"
_LEFT_ALONE = "select request_id from moves where reason = 'circuit_open'"
_OF_MORE_THAN_ONE_STEP = f"""
    {_LEFT_ALONE}
    union all
    select request_id from events where billing is not null and attempt_number > 1
    union all
    select request_id from ledger_open where attempt_number > 1
"""
# A sum of floats depends on its order, which threads change; one of decimals does not.
_SUMS = """
    count(outcome) as attempts,
    count(*) filter (where is_answered) as succeeded_attempts,
    count(*) filter (where is_failed) as failed_attempts,
    count(*) filter (where outcome = 'in_flight') as in_flight_attempts,
    coalesce(sum(retries), 0)::bigint as retries,
    (count(outcome) + coalesce(sum(arrivals), 0))::bigint as requests,
    (count(outcome) + coalesce(sum(firsts), 0))::bigint as requests_in_all,
    coalesce(sum(moves), 0)::bigint as fallbacks,
    sum(cost_usd) as cost_usd,
    if(count(*) filter (where is_failed) = 0, 0, sum(cost_usd) filter (where is_failed)) as failed_cost_usd,
    count(*) filter (where is_unpriced) as unpriced_attempts,
    count(*) filter (where billing = 'unknown') as in_doubt_attempts,
    coalesce(sum(output_tokens) filter (where is_answered and latency_ms > 0), 0)::bigint as timed_tokens,
    sum(try_cast(latency_ms as decimal(18, 6))) filter (
        where is_answered and latency_ms > 0 and output_tokens is not null
    )::double as timed_ms
"""
_POINTS = {"latency_ms": [0.5, 0.95, 0.99], "first_token_ms": [0.5, 0.95]}
_QUANTILES = ",".join(
    f" quantile_cont({name}, {points}) filter (where is_answered) as {name}"
    for name, points in _POINTS.items()
)
_DETAILS = f""",
    count(*) filter (where error_type in ('rate_limited', 'overloaded')) as rate_limited_attempts,
    count(*) filter (where error_type = 'timeout') as timed_out_attempts,
{_QUANTILES},
    count(circuit_started_at) as circuit_openings,
    sum(epoch(closed_at) - epoch(circuit_started_at)) as circuit_open_s,
    strftime(
        max(circuit_started_at) filter (where closed_at is null), '%Y-%m-%dT%H:%M:%S.%f%z'
    ) as circuit_opened_at
"""
_OF_CIRCUITS = {"provider", "model", "tier"}


def reading(
    path: str | Path, tz: str, allow_damage: bool
) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """A connection with what a tally reads. Raises as `ledger.reader.connect`."""
    return reader.reading(path, tz=tz, allow_damage=allow_damage, views=("events", "ledger_attempts"))


def told_by_keys(by: tuple[str, ...]) -> tuple[str, ...]:
    """What a group is told by: a model also by its provider, right before it."""
    if "model" not in by or "provider" in by:
        return by
    at = by.index("model")
    return (*by[:at], "provider", *by[at:])


class Tally:
    """What a period holds, by keys. Each method gives one row per group.

    Counted anew for each, unless `keep()` was called: worth it where more than one is asked for.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, by: tuple[str, ...], within: Period) -> None:
        self.told_by = told_by_keys(by)
        self.has_circuits = set(self.told_by) <= _OF_CIRCUITS
        self._connection = connection
        self._names = [f"group_{at}" for at in range(len(self.told_by))]
        expressions = [key_sql(key) for key in self.told_by]
        columns = zip(expressions, self._names, strict=True)
        self._within = condition, self._parameters = in_period(within)
        words = {
            "group_key": ", ".join(expressions),
            "step_columns": _STEP_COLUMNS,
            "group_columns": ", ".join(f"{sql} as {name}" for sql, name in columns),
            "period": condition,
            "block": f"hash(request_id) % {BLOCKS}",
            "names": ", ".join(self._names),
            "has_circuits": "true" if self.has_circuits else "false",
        }
        self._correct(words)
        self._counted = _COUNTED.format(**words)

    def _correct(self, words: Mapping[str, str]) -> None:
        connection = sums_alone(self._connection)
        connection.execute(_CORRECTIONS.format(**words, put_in_order=_LEFT_ALONE), self._parameters)
        connection.execute("select 1 from corrections where strays > 0 limit 1")
        if connection.fetchone():
            connection.execute(
                _CORRECTIONS.format(**words, put_in_order=_OF_MORE_THAN_ONE_STEP), self._parameters
            )
        connection.execute("reset memory_limit")  # percentiles are made of all values at once

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

    def total(self, groups: Sequence[Figures]) -> Figures:
        """The sums of all groups as one. Only percentiles are asked for: they do not add up."""
        total = {
            name: _added(group[name] for group in groups) for name in groups[0] if name not in self.told_by
        }
        failed = [group["failed_cost_usd"] for group in groups if group["failed_attempts"]]
        openings = [group["circuit_opened_at"] for group in groups if group["circuit_opened_at"]]
        return (
            total
            | self._quantiles_of_all(groups)
            | {
                "requests": total["requests_in_all"],
                "failed_cost_usd": _added(failed) if failed else NOTHING,
                "circuit_opened_at": max(openings, default=None),
            }
        )

    def _quantiles_of_all(self, groups: Sequence[Figures]) -> Figures:
        return {
            name: self._quantiles(name, points) if any(group[name] for group in groups) else None
            for name, points in _POINTS.items()
        }

    def _quantiles(self, name: str, points: Sequence[float]) -> list[float]:
        """As quantile_cont has them, in little memory: of all values only those near the points are kept."""
        condition, parameters = self._within
        answers = f"from events where event_type = 'attempt_succeeded' and {name} is not null and {condition}"
        whole = f"floor({name})::bigint"
        sql = f"select {whole} as whole, count(*) {answers} group by whole order by whole"
        counts = self._connection.execute(sql, parameters).fetchall()
        last = sum(times for _, times in counts) - 1
        ranks = {rank for point in points for rank in (floor(last * point), ceil(last * point))}
        places, rank = [], 0
        for number, times in counts:
            if any(rank <= wanted < rank + times for wanted in ranks):
                places.append((number, rank))
            rank += times
        numbers = ", ".join(str(number) for number, _ in places)
        values = f"list({name} order by {name})"
        sql = f"select {whole} as whole, {values} {answers} and {whole} in ({numbers}) group by whole"
        near = dict(self._connection.execute(sql, parameters).fetchall())
        at = {first + index: value for number, first in places for index, value in enumerate(near[number])}
        return [
            self._between(at[floor(last * point)], at[ceil(last * point)], last * point) for point in points
        ]

    def _between(self, low: float, high: float, rank: float) -> float:
        """The value at a rank between those of two whole ones, by the same arithmetic as of all values."""
        ends = "unnest([$low, $high]::double[]) ends (value)"
        sql = f"select quantile_cont(value, {rank - floor(rank)}) from {ends}"
        ((value,),) = self._connection.execute(sql, {"low": low, "high": high}).fetchall()
        return float(value)

    def sums_by_block(self) -> list[Figures]:
        """Counts and costs, in `BLOCKS` blocks of requests that are as good as drawn by lot."""
        return self._rows(_SUMS, ["block"])

    def quantiles(self, points: Sequence[float]) -> list[Figures]:
        """How many latencies and first tokens of answers there are, and their quantiles at `points`."""
        return self._rows(
            ", ".join(
                f"count({name}) filter (where is_answered) as {name}_count,"
                f" quantile_cont({name}, {list(points)}) filter (where is_answered) as {name}"
                for name in ("latency_ms", "first_token_ms")
            )
        )

    def _rows(self, sums: str, more: Sequence[str] = ()) -> list[Figures]:
        group = ", ".join([*self._names, *more])
        self._connection.execute(
            f"{self._counted} select {group}, {sums} from counted group by {group}", self._parameters
        )
        found = [column[0] for column in self._connection.description or ()]
        rows = [dict(zip(found, row, strict=True)) for row in self._connection.fetchall()]
        for row in rows:
            row.update(
                (key, key_value(key, row.pop(name)))
                for key, name in zip(self.told_by, self._names, strict=True)
            )
        return rows


def _added(amounts: Iterable[Any]) -> Any:
    """The sum of what is known, in whatever order it comes; None where nothing is."""
    known = [amount for amount in amounts if isinstance(amount, (int, float, Decimal))]
    if any(isinstance(amount, float) for amount in known):
        return fsum(known)
    return sum(known[1:], known[0]) if known else None
