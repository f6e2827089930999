-- sessions: what each session asked for and what it cost.
-- Grain: session_id; requests without a session are one row, whose id is NULL.  Reads: events, ledger_requests, ledger_attempts.
-- session_id: the caller's grouping key; NULL: none was given
-- first_at: start of its first request
-- last_at: end of its last request; where one is open, at least its start
-- requests: calls of route()
-- succeeded_requests: those that were answered
-- failed_requests: those that were tried and not answered
-- denied_requests: those refused before a byte was sent
-- open_requests: those without an end so far
-- attempts: HTTP calls made for them
-- failed_attempts: those that ended without an answer
-- fallbacks: moves to another tier
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
    select session_id, started_at as first_at, coalesce(ended_at, started_at) as last_at, status, 1 as requests
    from ledger_requests
    union all by name
    select
        session_id,
        1 as attempts,
        outcome,
        input_tokens,
        cache_read_tokens,
        cache_write_tokens,
        output_tokens,
        reasoning_tokens,
        cost_usd,
        list_cost_usd,
        is_unpriced,
        is_unlisted,
        billing
    from ledger_attempts
    union all by name
    select session_id, 1 as fallbacks from events where event_type = 'fallback_engaged'
),
summed as (
    select
        session_id,
        min(first_at) as first_at,
        max(last_at) as last_at,
        count(requests) as requests,
        count(*) filter (where status = 'completed') as succeeded_requests,
        count(*) filter (where status = 'failed') as failed_requests,
        count(*) filter (where status = 'denied') as denied_requests,
        count(*) filter (where status = 'open') as open_requests,
        count(attempts) as attempts,
        count(*) filter (where outcome not in ('succeeded', 'in_flight')) as failed_attempts,
        count(fallbacks) as fallbacks,
        coalesce(sum(input_tokens), 0)::bigint as input_tokens,
        coalesce(sum(cache_read_tokens), 0)::bigint as cache_read_tokens,
        coalesce(sum(cache_write_tokens), 0)::bigint as cache_write_tokens,
        coalesce(sum(output_tokens), 0)::bigint as output_tokens,
        coalesce(sum(reasoning_tokens), 0)::bigint as reasoning_tokens,
        if(count(attempts) = 0, 0, sum(cost_usd)) as cost_usd,
        if(count(attempts) = 0, 0, sum(list_cost_usd)) as list_cost_usd,
        count(*) filter (where is_unpriced) as unpriced_attempts,
        count(*) filter (where is_unlisted) as unlisted_attempts,
        count(*) filter (where billing = 'unknown') as in_doubt_attempts,
        count(*) filter (where outcome = 'in_flight') as in_flight_attempts
    from counted
    group by session_id
)
select * from summed
