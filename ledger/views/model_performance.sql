-- model_performance: how each model did, and at what cost.
-- Grain: (provider, model).  Reads: attempts.
-- provider: anthropic or openrouter
-- model: as it was asked for
-- attempts: HTTP calls to it
-- succeeded_attempts: those that brought an answer
-- failed_attempts: those that ended without one
-- success_ratio: 0..1, of attempts with an outcome; NULL: none has one
-- rate_limited_attempts: those refused for too many calls or too much load (HTTP 429, 529)
-- timed_out_attempts: those without an answer in time
-- latency_ms_p50: milliseconds, median; answered attempts only; NULL: none was answered
-- latency_ms_p95: milliseconds, 95th percentile; answered attempts only
-- first_token_ms_p50: milliseconds, median; streamed and answered attempts only
-- input_tokens: all prompt tokens, cached ones included
-- cache_read_tokens: the part of input_tokens read from a cache
-- cache_write_tokens: the part of input_tokens written to a cache
-- output_tokens: tokens of the answers, reasoning included
-- reasoning_tokens: the part of output_tokens spent on reasoning
-- cost_usd: USD; the priced part, settlements included; NULL: nothing priced
-- list_cost_usd: USD; the same at list prices
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
        quantile_cont(first_token_ms, 0.50) filter (where outcome = 'succeeded') as first_token_ms_p50,
        coalesce(sum(input_tokens), 0)::bigint as input_tokens,
        coalesce(sum(cache_read_tokens), 0)::bigint as cache_read_tokens,
        coalesce(sum(cache_write_tokens), 0)::bigint as cache_write_tokens,
        coalesce(sum(output_tokens), 0)::bigint as output_tokens,
        coalesce(sum(reasoning_tokens), 0)::bigint as reasoning_tokens,
        sum(cost_usd) as cost_usd,
        sum(list_cost_usd) as list_cost_usd,
        count(*) filter (where is_unpriced) as unpriced_attempts,
        count(*) filter (where is_unlisted) as unlisted_attempts,
        count(*) filter (where billing = 'unknown') as in_doubt_attempts,
        count(*) filter (where outcome = 'in_flight') as in_flight_attempts
    from attempts
    group by provider, model
)
select * from summed
