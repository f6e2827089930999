-- fallbacks: each move to another tier, why, and whether it helped.
-- Grain: (request_id, occurred_at, to_tier).  Reads: events, ledger_requests, ledger_attempts.
-- occurred_at: when the move was made
-- session_id: the caller's grouping key; NULL: none was given
-- request_id: the request that moved
-- task: what the agent asked for
-- from_tier: the tier that failed
-- to_tier: the tier tried next
-- reason: the error_type that caused it
-- request_status: how the request ended: completed, failed, denied or open
-- request_cost_usd: USD; of the whole request, failed attempts included; NULL: nothing priced
with moves as (
    select * from events where event_type = 'fallback_engaged'
),
tried as (
    select request_id, sum(cost_usd) as cost_usd
    from ledger_attempts
    where request_id in (select request_id from moves)
    group by request_id
),
moved as (
    select
        moves.occurred_at,
        moves.session_id,
        moves.request_id,
        moves.task,
        moves.from_tier,
        moves.to_tier,
        moves.reason,
        ledger_requests.status as request_status,
        if(tried.request_id is null, 0, tried.cost_usd) as request_cost_usd
    from moves
        left join ledger_requests using (request_id)
        left join tried using (request_id)
)
select * from moved
