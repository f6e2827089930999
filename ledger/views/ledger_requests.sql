-- ledger_requests: each call of route() as its end tells of it, which repeats what was told before.
-- Grain: request_id.  Reads: events, ledger_open.
-- The columns are some of those of `requests`. The end of a request that failed names no provider and no
-- model: ledger_failed has them. Nothing is grouped here but the few open requests.
with ended as (
    select
        session_id,
        request_id,
        started_at,
        occurred_at as ended_at,
        task,
        tags,
        requested_tier,
        tier,
        provider,
        model,
        attempt_number,
        case event_type
            when 'request_completed' then 'completed'
            when 'request_failed' then 'failed'
            when 'request_denied' then 'denied'
        end as status
    from events
    where event_type between 'request_completed' and 'request_failed'  -- these three; said so, DuckDB skips all else
),
open as (
    select
        session_id,
        request_id,
        coalesce(
            min(occurred_at) filter (where event_type = 'request_received'),
            any_value(started_at) filter (where attempt_id is null)
        ) as started_at,
        any_value(task) as task,
        any_value(tags) as tags,
        any_value(requested_tier) as requested_tier,
        coalesce(
            arg_max(tier, attempt_number) filter (where attempt_id is not null), any_value(requested_tier)
        ) as tier,
        arg_max(provider, attempt_number) filter (where attempt_id is not null) as provider,
        arg_max(model, attempt_number) filter (where attempt_id is not null) as model,
        'open' as status
    from ledger_open
    group by session_id, request_id
    having
        count(*) filter (where attempt_id is null) > 0
        and count(*) filter (where event_type in ('request_completed', 'request_failed', 'request_denied')) = 0
),
told as (
    select * from ended
    union all by name
    select * from open
)
select * from told
