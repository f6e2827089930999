-- daily_spend: what each day cost.
-- Grain: day, in the TimeZone of the connection.  Reads: ledger_requests, ledger_attempts.
-- Money belongs to the moment its attempt started, settlements included; a request counts on the
-- day it started.
-- day: date; midnight is that of the connection's TimeZone
-- requests: requests that started on it
-- attempts: HTTP calls that started on it
-- failed_attempts: those that ended without an answer
-- input_tokens: all prompt tokens, cached ones included
-- cache_read_tokens: the part of input_tokens read from a cache
-- cache_write_tokens: the part of input_tokens written to a cache
-- output_tokens: tokens of the answers, reasoning included
-- reasoning_tokens: the part of output_tokens spent on reasoning
-- cost_usd: USD; the priced part, settlements included; NULL: nothing priced; 0 without attempts
-- list_cost_usd: USD; the same at list prices
-- unpriced_attempts: billed attempts that cost_usd lacks, as nothing says how much
-- unlisted_attempts: billed attempts that list_cost_usd lacks, as the book has no price for all they used
-- in_doubt_attempts: attempts that were sent and whose outcome is not known; cost_usd lacks them
-- in_flight_attempts: attempts without an outcome so far; cost_usd lacks them
with counted as (  -- what is alike as one, so that each condition below is asked of few
    select
        if(current_setting('TimeZone') = 'UTC', make_timestamp(epoch_us(started_at))::date, started_at::date) as day,  -- UTC needs no calendar
        count(*) as requests
    from ledger_requests
    group by day
    union all by name
    select
        if(current_setting('TimeZone') = 'UTC', make_timestamp(epoch_us(started_at))::date, started_at::date) as day,
        outcome,
        billing,
        is_unpriced,
        is_unlisted,
        count(*) as attempts,
        sum(input_tokens) as input_tokens,
        sum(cache_read_tokens) as cache_read_tokens,
        sum(cache_write_tokens) as cache_write_tokens,
        sum(output_tokens) as output_tokens,
        sum(reasoning_tokens) as reasoning_tokens,
        sum(cost_usd) as cost_usd,
        sum(list_cost_usd) as list_cost_usd
    from ledger_attempts
    group by day, outcome, billing, is_unpriced, is_unlisted
),
summed as (
    select
        day,
        coalesce(sum(requests), 0)::bigint as requests,
        coalesce(sum(attempts), 0)::bigint as attempts,
        coalesce(sum(attempts) filter (where outcome not in ('succeeded', 'in_flight')), 0)::bigint
            as failed_attempts,
        coalesce(sum(input_tokens), 0)::bigint as input_tokens,
        coalesce(sum(cache_read_tokens), 0)::bigint as cache_read_tokens,
        coalesce(sum(cache_write_tokens), 0)::bigint as cache_write_tokens,
        coalesce(sum(output_tokens), 0)::bigint as output_tokens,
        coalesce(sum(reasoning_tokens), 0)::bigint as reasoning_tokens,
        if(count(attempts) = 0, 0, sum(cost_usd)) as cost_usd,
        if(count(attempts) = 0, 0, sum(list_cost_usd)) as list_cost_usd,
        coalesce(sum(attempts) filter (where is_unpriced), 0)::bigint as unpriced_attempts,
        coalesce(sum(attempts) filter (where is_unlisted), 0)::bigint as unlisted_attempts,
        coalesce(sum(attempts) filter (where billing = 'unknown'), 0)::bigint as in_doubt_attempts,
        coalesce(sum(attempts) filter (where outcome = 'in_flight'), 0)::bigint as in_flight_attempts
    from counted
    group by day
)
select * from summed
