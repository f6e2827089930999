-- sessions: what each session asked for and what it cost.
-- Grain: session_id; requests without a session are one row, whose id is NULL.  Reads: requests.
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
with summed as (
    select
        session_id,
        min(started_at) as first_at,
        max(coalesce(ended_at, started_at)) as last_at,
        count(*) as requests,
        count(*) filter (where status = 'completed') as succeeded_requests,
        count(*) filter (where status = 'failed') as failed_requests,
        count(*) filter (where status = 'denied') as denied_requests,
        count(*) filter (where status = 'open') as open_requests,
        sum(attempts)::bigint as attempts,
        sum(failed_attempts)::bigint as failed_attempts,
        sum(fallbacks)::bigint as fallbacks,
        sum(input_tokens)::bigint as input_tokens,
        sum(cache_read_tokens)::bigint as cache_read_tokens,
        sum(cache_write_tokens)::bigint as cache_write_tokens,
        sum(output_tokens)::bigint as output_tokens,
        sum(reasoning_tokens)::bigint as reasoning_tokens,
        sum(cost_usd) as cost_usd,
        sum(list_cost_usd) as list_cost_usd,
        sum(unpriced_attempts)::bigint as unpriced_attempts,
        sum(unlisted_attempts)::bigint as unlisted_attempts,
        sum(in_doubt_attempts)::bigint as in_doubt_attempts,
        sum(in_flight_attempts)::bigint as in_flight_attempts
    from requests
    group by session_id
)
select * from summed
