-- model_performance: how each model did, and at what cost.
-- Grain: (provider, model).  Reads: events, ledger_attempts.
-- provider: anthropic or openrouter
-- model: as it was asked for
-- attempts: HTTP calls to it
-- succeeded_attempts: those that brought an answer
-- failed_attempts: those that ended without one
-- success_ratio: 0..1, of attempts with an outcome; NULL: none has one
-- rate_limited_attempts: those refused for too many calls or too much load (HTTP 429, 529)
-- timed_out_attempts: those without an answer in time
-- fallbacks: requests' moves away from it to another tier
-- circuit_openings: times it was left alone for a while, after failures in a row
-- circuit_open_s: seconds it was left alone in all; the opening that lasts is not in it; NULL: none is over
-- circuit_opened_at: since when it is left alone now; NULL: it is not
-- latency_ms_p50: milliseconds, median; answered attempts only; NULL: none was answered
-- latency_ms_p95: milliseconds, 95th percentile; answered attempts only
-- latency_ms_p99: milliseconds, 99th percentile; answered attempts only
-- first_token_ms_p50: milliseconds, median; streamed and answered attempts only
-- first_token_ms_p95: milliseconds, 95th percentile; streamed and answered attempts only
-- input_tokens: all prompt tokens, cached ones included
-- cache_read_tokens: the part of input_tokens read from a cache
-- cache_write_tokens: the part of input_tokens written to a cache
-- output_tokens: tokens of the answers, reasoning included
-- reasoning_tokens: the part of output_tokens spent on reasoning
-- cost_usd: USD; the priced part, settlements included; NULL: nothing priced
-- failed_cost_usd: USD; the part of cost_usd that attempts without an answer cost; NULL: none of it is known
-- list_cost_usd: USD; the same as cost_usd at list prices
-- unpriced_attempts: billed attempts that cost_usd lacks, as nothing says how much
-- unlisted_attempts: billed attempts that list_cost_usd lacks, as the book has no price for all they used
-- in_doubt_attempts: attempts that were sent and whose outcome is not known; cost_usd lacks them
-- in_flight_attempts: attempts without an outcome so far; cost_usd lacks them
with summed as (
    select
        provider,
        model,
        count(*) as attempts,
        count(*) filter (where outcome = 'succeeded') as succeeded_attempts,
        count(*) filter (where outcome not in ('succeeded', 'in_flight')) as failed_attempts,
        avg(if(outcome = 'succeeded', 1.0, 0.0)) filter (where outcome <> 'in_flight') as success_ratio,
        count(*) filter (where error_type in ('rate_limited', 'overloaded')) as rate_limited_attempts,
        count(*) filter (where error_type = 'timeout') as timed_out_attempts,
        quantile_cont(latency_ms, 0.50) filter (where outcome = 'succeeded') as latency_ms_p50,
        quantile_cont(latency_ms, 0.95) filter (where outcome = 'succeeded') as latency_ms_p95,
        quantile_cont(latency_ms, 0.99) filter (where outcome = 'succeeded') as latency_ms_p99,
        quantile_cont(first_token_ms, 0.50) filter (where outcome = 'succeeded') as first_token_ms_p50,
        quantile_cont(first_token_ms, 0.95) filter (where outcome = 'succeeded') as first_token_ms_p95,
        coalesce(sum(input_tokens), 0)::bigint as input_tokens,
        coalesce(sum(cache_read_tokens), 0)::bigint as cache_read_tokens,
        coalesce(sum(cache_write_tokens), 0)::bigint as cache_write_tokens,
        coalesce(sum(output_tokens), 0)::bigint as output_tokens,
        coalesce(sum(reasoning_tokens), 0)::bigint as reasoning_tokens,
        sum(cost_usd) as cost_usd,
        if(
            count(*) filter (where outcome not in ('succeeded', 'in_flight')) = 0,
            0,
            sum(cost_usd) filter (where outcome not in ('succeeded', 'in_flight'))
        ) as failed_cost_usd,
        sum(list_cost_usd) as list_cost_usd,
        count(*) filter (where is_unpriced) as unpriced_attempts,
        count(*) filter (where is_unlisted) as unlisted_attempts,
        count(*) filter (where billing = 'unknown') as in_doubt_attempts,
        count(*) filter (where outcome = 'in_flight') as in_flight_attempts
    from ledger_attempts
    group by provider, model
),
moved as (
    select provider, model
    from events
    where event_type = 'fallback_engaged' and provider is not null and model is not null
    union all
    -- an older move names no model: it is that of the attempt it followed
    select
        coalesce(older.provider, any_value(ledger_attempts.provider)) as provider,
        coalesce(older.model, any_value(ledger_attempts.model)) as model
    from (
        select *
        from events
        where event_type = 'fallback_engaged' and (provider is null or model is null)
    ) as older
        left join ledger_attempts
            on ledger_attempts.request_id = older.request_id and ledger_attempts.tier = older.from_tier
    group by older.journal_id, older.seq, older.provider, older.model
),
moves as (
    select provider, model, count(*) as fallbacks from moved group by provider, model
),
openings as (
    select
        provider,
        model,
        started_at,
        count(*) filter (where event_type = 'circuit_opened') as circuit_openings,
        min(occurred_at) filter (where event_type = 'circuit_closed') as closed_at
    from events
    where event_type between 'circuit_closed' and 'circuit_opened'
    group by provider, model, started_at
),
circuits as (
    select
        provider,
        model,
        sum(circuit_openings)::bigint as circuit_openings,
        sum(epoch(closed_at) - epoch(started_at)) as circuit_open_s,
        max(started_at) filter (where closed_at is null) as circuit_opened_at
    from openings
    group by provider, model
),
joined as (
    select
        summed.provider,
        summed.model,
        summed.attempts,
        summed.succeeded_attempts,
        summed.failed_attempts,
        summed.success_ratio,
        summed.rate_limited_attempts,
        summed.timed_out_attempts,
        coalesce(moves.fallbacks, 0) as fallbacks,
        coalesce(circuits.circuit_openings, 0) as circuit_openings,
        circuits.circuit_open_s,
        circuits.circuit_opened_at,
        summed.* exclude (
            provider, model, attempts, succeeded_attempts, failed_attempts, success_ratio,
            rate_limited_attempts, timed_out_attempts
        )
    from summed
        left join moves using (provider, model)
        left join circuits using (provider, model)
)
select * from joined
