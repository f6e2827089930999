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
with counted as (
    select started_at, 1 as requests, 0 as attempts from ledger_requests
    union all by name
    select *, 0 as requests, 1 as attempts from ledger_attempts
),
summed as (
    select
        started_at::date as day,
        sum(requests)::bigint as requests,
        sum(attempts)::bigint as attempts,
        count(*) filter (where outcome not in ('succeeded', 'in_flight')) as failed_attempts,
        coalesce(sum(input_tokens), 0)::bigint as input_tokens,
        coalesce(sum(cache_read_tokens), 0)::bigint as cache_read_tokens,
        coalesce(sum(cache_write_tokens), 0)::bigint as cache_write_tokens,
        coalesce(sum(output_tokens), 0)::bigint as output_tokens,
        coalesce(sum(reasoning_tokens), 0)::bigint as reasoning_tokens,
        if(sum(attempts) = 0, 0, sum(cost_usd)) as cost_usd,
        if(sum(attempts) = 0, 0, sum(list_cost_usd)) as list_cost_usd,
        count(*) filter (where is_unpriced) as unpriced_attempts,
        count(*) filter (where is_unlisted) as unlisted_attempts,
        count(*) filter (where billing = 'unknown') as in_doubt_attempts,
        count(*) filter (where outcome = 'in_flight') as in_flight_attempts
    from counted
    group by day
)
select * from summed
