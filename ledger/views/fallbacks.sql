-- fallbacks: each move to another tier, why, and whether it helped.
-- Grain: (request_id, occurred_at, to_tier).  Reads: events, requests.
-- occurred_at: when the move was made
-- session_id: the caller's grouping key; NULL: none was given
-- request_id: the request that moved
-- task: what the agent asked for
-- from_tier: the tier that failed
-- to_tier: the tier tried next
-- reason: the error_type that caused it
-- request_status: how the request ended: completed, failed, denied or open
-- request_cost_usd: USD; of the whole request, failed attempts included; NULL: nothing priced
with moved as (
    select
        events.occurred_at,
        events.session_id,
        events.request_id,
        events.task,
        events.from_tier,
        events.to_tier,
        events.reason,
        requests.status as request_status,
        requests.cost_usd as request_cost_usd
    from events left join requests using (request_id)
    where events.event_type = 'fallback_engaged'
)
select * from moved
