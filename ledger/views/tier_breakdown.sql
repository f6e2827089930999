-- tier_breakdown: what each tier did in each session.
-- Grain: (session_id, tier).  Reads: ledger_requests, ledger_bounded.
-- A request counts at the tier that answered it, else the last one tried; attempts, tokens and
-- cost count at the tier that incurred them. So a tier may have attempts and no request.
-- session_id: the caller's grouping key; NULL: none was given
-- tier: one of the five, one of your own, or DIRECT: a client asked without a router
-- requests: requests that it answered, or was the last to try
-- attempts: HTTP calls to its model
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
-- unpriced_ceiling_usd: USD; the most that unpriced_attempts can have cost; NULL: not known of all
-- in_doubt_ceiling_usd: USD; the most that in_doubt_attempts can have cost; NULL: not known of all
with counted as (
    select session_id, tier, 1 as requests, 0 as attempts from ledger_requests
    union all by name
    select *, 0 as requests, 1 as attempts from ledger_bounded
),
summed as (
    select
        session_id,
        tier,
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
        count(*) filter (where outcome = 'in_flight') as in_flight_attempts,
        if(
            bool_or(is_unpriced and reserved_usd is null),
            null,
            coalesce(sum(reserved_usd) filter (where is_unpriced), 0)
        ) as unpriced_ceiling_usd,
        if(
            bool_or(billing = 'unknown' and reserved_usd is null),
            null,
            coalesce(sum(reserved_usd) filter (where billing = 'unknown'), 0)
        ) as in_doubt_ceiling_usd
    from counted
    group by session_id, tier
)
select * from summed
