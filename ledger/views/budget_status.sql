-- budget_status: each budget in force and how much of it is used.
-- Grain: (scope, scope_id).  Reads: events, attempts.
-- Days and months are those of the connection's TimeZone, and the current ones.
-- scope: request, session, task, tier, model, day, month or all
-- scope_id: which one of its scope; NULL: of day, month and all there is but one
-- mode: hard (refuses) or warn
-- limit_usd: USD; the limit last set; lifted budgets are not shown
-- set_at: when it was last set
-- spent_usd: USD; cost of the attempts that count against it; 0: nothing so far
-- reserved_usd: USD; ceilings of attempts in flight
-- in_doubt_usd: USD; ceilings of attempts whose outcome is not known
-- left_usd: USD; limit less spent, reserved and in doubt; negative once overspent
-- unpriced_attempts: billed attempts that spent_usd lacks, as nothing says how much
with latest as (
    select
        scope,
        scope_id,
        arg_max(mode, (occurred_at, journal_id, seq)) as mode,
        arg_max(coalesce(limit_usd, -1), (occurred_at, journal_id, seq)) as limit_usd,
        max(occurred_at) as set_at
    from events
    where event_type = 'budget_set'
    group by scope, scope_id
),
in_force as (
    select * from latest where limit_usd >= 0
),
counted as (
    select in_force.*, attempts.*
    from in_force left join attempts on case in_force.scope
        when 'request' then attempts.request_id = in_force.scope_id
        when 'session' then attempts.session_id = in_force.scope_id
        when 'task' then attempts.task = in_force.scope_id
        when 'tier' then attempts.tier = in_force.scope_id
        when 'model' then attempts.model = in_force.scope_id
        when 'day' then attempts.started_at >= date_trunc('day', now())
        when 'month' then attempts.started_at >= date_trunc('month', now())
        else true
    end
),
used as (
    select
        scope,
        scope_id,
        mode,
        limit_usd,
        set_at,
        coalesce(sum(cost_usd), 0) as spent_usd,
        coalesce(sum(reserved_usd) filter (where outcome = 'in_flight'), 0) as reserved_usd,
        coalesce(sum(reserved_usd) filter (where billing = 'unknown'), 0) as in_doubt_usd,
        count(*) filter (where is_unpriced) as unpriced_attempts
    from counted
    group by scope, scope_id, mode, limit_usd, set_at
),
left_over as (
    select
        scope,
        scope_id,
        mode,
        limit_usd,
        set_at,
        spent_usd,
        reserved_usd,
        in_doubt_usd,
        limit_usd - spent_usd - reserved_usd - in_doubt_usd as left_usd,
        unpriced_attempts
    from used
)
select * from left_over
