"""What each report sums up, as plain aggregations over one Parquet file: all events, in the order of time.

Of the same columns and as many figures, but without what makes a report right about every attempt: no
settlements, no attempts in flight, no ceilings, no retries, a failed request without its model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import duckdb

COLUMNS = """
    event_type, occurred_at, started_at, session_id, request_id, attempt_number, task, tier, provider, model,
    input_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens, output_tokens,
    reasoning_tokens, list_cost_usd, billed_cost_usd, reserved_usd, billing, error_type, latency_ms,
    first_token_ms
"""
OUTCOMES = "('attempt_succeeded', 'attempt_failed', 'attempt_cancelled', 'attempt_abandoned')"
ENDS = "('request_completed', 'request_failed', 'request_denied')"
_COST = "coalesce(billed_cost_usd, list_cost_usd)"
_PROMPT = """coalesce(input_tokens, 0) + coalesce(cache_read_tokens, 0) + coalesce(cache_write_5m_tokens, 0)
    + coalesce(cache_write_1h_tokens, 0)"""
_FIGURES = f"""
    count(*) filter (where event_type in {ENDS}) as requests,
    count(*) filter (where event_type = 'request_completed') as succeeded_requests,
    count(*) filter (where event_type = 'request_failed') as failed_requests,
    count(*) filter (where event_type = 'request_denied') as denied_requests,
    count(*) filter (where event_type in {OUTCOMES}) as attempts,
    count(*) filter (where event_type in {OUTCOMES} and event_type <> 'attempt_succeeded') as failed_attempts,
    sum({_PROMPT}) as input_tokens,
    sum(cache_read_tokens) as cache_read_tokens,
    sum(coalesce(cache_write_5m_tokens, 0) + coalesce(cache_write_1h_tokens, 0)) as cache_write_tokens,
    sum(output_tokens) as output_tokens,
    sum(reasoning_tokens) as reasoning_tokens,
    sum({_COST}) as cost_usd,
    sum(list_cost_usd) as list_cost_usd,
    count(*) filter (where billing = 'billed' and {_COST} is null) as unpriced_attempts,
    count(*) filter (where billing = 'billed' and list_cost_usd is null) as unlisted_attempts,
    count(*) filter (where billing = 'unknown') as in_doubt_attempts
"""
_SPEND = f"""{_FIGURES},
    count(*) filter (where billing = 'billed') as billed_attempts,
    count(*) filter (where billing = 'unbilled') as unbilled_attempts,
    sum(reserved_usd) filter (where billing = 'unknown') as in_doubt_ceiling_usd,
    count(*) filter (where billing = 'unknown' and reserved_usd is null) as in_doubt_unbounded,
    sum(reserved_usd) filter (where billing = 'billed' and {_COST} is null) as unpriced_ceiling_usd,
    min(started_at) as first_at,
    max(occurred_at) as last_at
"""
_WHERE = f"from read_parquet(?) where event_type in {OUTCOMES} or event_type in {ENDS}"
_ANSWERED = "where event_type = 'attempt_succeeded'"
_SPEED = f"""
    count(*) as attempts,
    count(*) filter (where event_type = 'attempt_succeeded') as succeeded_attempts,
    count(*) filter (where event_type <> 'attempt_succeeded') as failed_attempts,
    count(*) filter (where attempt_number > 1) as later_attempts,
    count(distinct request_id) as requests,
    sum({_COST}) as cost_usd,
    sum({_COST}) filter (where event_type <> 'attempt_succeeded') as failed_cost_usd,
    count(*) filter (where billing = 'billed' and {_COST} is null) as unpriced_attempts,
    count(*) filter (where billing = 'unknown') as in_doubt_attempts,
    count(*) filter (where error_type in ('rate_limited', 'overloaded')) as rate_limited_attempts,
    count(*) filter (where error_type = 'timeout') as timed_out_attempts,
    sum(output_tokens) filter (where event_type = 'attempt_succeeded' and latency_ms > 0) as timed_tokens,
    sum(latency_ms) filter (where event_type = 'attempt_succeeded' and latency_ms > 0) as timed_ms,
    quantile_cont(latency_ms, [0.5, 0.95, 0.99]) filter ({_ANSWERED}) as latency_ms,
    quantile_cont(first_token_ms, [0.5, 0.95]) filter ({_ANSWERED}) as first_token_ms
"""
_ATTEMPTS = f"from read_parquet(?) where event_type in {OUTCOMES}"
_DAY = "started_at::date as day"
_OF_SESSION = f"session_id, min(started_at), max(occurred_at), {_FIGURES}"
QUERIES = {
    "report": f"select tier, provider, model, {_SPEND} {_WHERE} group by all",
    "report --by day": f"select {_DAY}, tier, provider, model, {_SPEND} {_WHERE} group by all",
    "report --by task": f"select task, tier, provider, model, {_SPEND} {_WHERE} group by all",
    "sessions": f"select {_OF_SESSION} {_WHERE} group by session_id",
    "performance": f"select provider, model, {_SPEED} {_ATTEMPTS} group by provider, model",
    "daily_spend": f"select {_DAY}, {_FIGURES} {_WHERE} group by day",
}


def one_file(ledger: Path, file: Path) -> None:
    """All sealed events in one Parquet file, by time, as DuckDB writes it: day by day, and then as one."""
    days = sorted((ledger / "events").glob("date=20*"))
    with tempfile.TemporaryDirectory(dir=file.parent) as folder, duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        for number, day in enumerate(days):
            connection.execute(
                f"copy (select {COLUMNS} from read_parquet($segments, hive_partitioning = false)"
                f" order by occurred_at) to '{folder}/{number:05d}.parquet' (format parquet)",
                {"segments": f"{day}/*.parquet"},
            )
        connection.execute(
            f"copy (select * from read_parquet('{folder}/*.parquet')) to '{file}'"
            " (format parquet, compression zstd)"
        )


def json_lines(ledger: Path, file: Path) -> None:
    """All sealed events as journals have them: a line each, without what is not known."""
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.execute(
            "copy (select * from read_parquet($segments, hive_partitioning = false) order by occurred_at)"
            f" to '{file}' (format json)",
            {"segments": f"{ledger}/events/date=20*/*.parquet"},
        )


def daily_of_json_lines(file: Path) -> list[tuple[Any, ...]]:
    """Day, requests, attempts and cost of each, of no more columns than that takes."""
    sql = f"""
        select started_at::date as day, {_FIGURES}
        from read_json(
            ?,
            format = 'newline_delimited',
            columns = {{
                event_type: 'VARCHAR', started_at: 'TIMESTAMPTZ', input_tokens: 'BIGINT',
                cache_read_tokens: 'BIGINT', cache_write_5m_tokens: 'BIGINT', cache_write_1h_tokens: 'BIGINT',
                output_tokens: 'BIGINT', reasoning_tokens: 'BIGINT', list_cost_usd: 'DECIMAL(18, 12)',
                billed_cost_usd: 'DECIMAL(18, 12)', billing: 'VARCHAR'
            }}
        )
        where event_type in {OUTCOMES} or event_type in {ENDS}
        group by day
        order by day
    """
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        rows = connection.execute(sql, [str(file)]).fetchall()
        names = [column[0] for column in connection.description or ()]
    return [
        tuple(row[names.index(name)] for name in ("day", "requests", "attempts", "cost_usd")) for row in rows
    ]
