-- budget_status: each budget in force and how much of it is used.
-- Grain: (scope, is_each, scope_id, mode).  Reads: events, ledger_open, ledger_bounded.
-- A budget of each session, task, tier, model or request has a row for each of them that there is; but not for a
-- request that had ended when the budget was set, as that can spend no more.
-- Days and months are the current ones, in the budget's own zone.
-- scope: request, session, task, tier, model, day, month or all
-- scope_id: which one this row counts; NULL: of day, month and all; of each, where there is none yet
-- mode: hard (refuses) or warn
-- limit_usd: USD; the limit last set; lifted budgets are not shown
-- set_at: when it was last set
-- spent_usd: USD; cost of the attempts that count against it; 0: nothing so far
-- reserved_usd: USD; ceilings of attempts in flight
-- in_doubt_usd: USD; ceilings of attempts whose outcome is not known, or that have no price
-- left_usd: USD; limit less spent, reserved and in doubt; negative once overspent
-- unpriced_attempts: billed attempts that spent_usd lacks, as nothing says how much
-- is_each: whether the limit holds for each of its scope by itself
-- tz: where its days and months begin
-- reason: the file that says so, or what was said when it was set; NULL: nothing
-- unbounded_attempts: attempts in flight, in doubt or unpriced whose ceiling is not known: left_usd lacks them
-- spent_since: when the first attempt that counts against it was started; NULL: none was
with told as (
    select
        scope,
        scope_id as budget_id,
        coalesce(mode, 'hard') as mode,
        arg_max(coalesce(tz, 'UTC'), (occurred_at, journal_id, seq)) as tz,
        arg_max(coalesce(limit_usd, -1), (occurred_at, journal_id, seq)) as limit_usd,
        arg_max(coalesce(reason, ''), (occurred_at, journal_id, seq)) as reason,
        max(occurred_at) as set_at
    from events
    where event_type = 'budget_set'
    group by scope, scope_id, coalesce(mode, 'hard')
),
in_force as (
    select
        * replace (nullif(reason, '') as reason),
        case scope
            when 'day' then strftime(timezone(tz, now()), '%Y-%m-%d')
            when 'month' then strftime(timezone(tz, now()), '%Y-%m')
        end as period
    from told
    where limit_usd >= 0
),
scoped as (
    select 'request' as scope, request_id as scope_id, * exclude (tier) from ledger_bounded
    union all by name
    select 'session' as scope, session_id as scope_id, * exclude (tier) from ledger_bounded where session_id is not null
    union all by name
    select 'task' as scope, task as scope_id, * exclude (tier) from ledger_bounded
    union all by name
    select 'tier' as scope, tier as scope_id, * exclude (tier) from ledger_bounded
    union all by name
    select 'model' as scope, model as scope_id, * exclude (tier) from ledger_bounded
),
of_names as (
    select in_force.*, scoped.* exclude (scope)
    from in_force inner join scoped
        on scoped.scope = in_force.scope and scoped.scope_id = coalesce(in_force.budget_id, scoped.scope_id)
    where in_force.scope not in ('day', 'month', 'all')
),
of_times as (
    select in_force.*, null as scope_id, ledger_bounded.* exclude (tier)
    from in_force inner join ledger_bounded on case in_force.scope
        when 'day' then strftime(timezone(in_force.tz, ledger_bounded.started_at), '%Y-%m-%d') = in_force.period
        when 'month' then strftime(timezone(in_force.tz, ledger_bounded.started_at), '%Y-%m') = in_force.period
        else true
    end
    where in_force.scope in ('day', 'month', 'all')
),
counted as (
    select *, null as scope_id from in_force  -- so that one that nothing counts against has a row too
    union all by name
    select * from of_names
    union all by name
    select * from of_times
),
used as (
    select
        scope,
        budget_id is null and scope not in ('day', 'month', 'all') as is_each,
        coalesce(scope_id, budget_id) as scope_id,
        mode,
        tz,
        limit_usd,
        set_at,
        reason,
        coalesce(sum(cost_usd), 0) as spent_usd,
        coalesce(sum(reserved_usd) filter (where outcome = 'in_flight'), 0) as reserved_usd,
        coalesce(sum(reserved_usd) filter (where billing = 'unknown' or is_unpriced), 0) as in_doubt_usd,
        count(*) filter (where is_unpriced) as unpriced_attempts,
        count(*) filter (
            where reserved_usd is null and (outcome = 'in_flight' or billing = 'unknown' or is_unpriced)
        ) as unbounded_attempts,
        min(started_at) as spent_since,
        max(started_at) as last_started_at
    from counted
    group by scope, budget_id, coalesce(scope_id, budget_id), mode, tz, limit_usd, set_at, reason
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
        unpriced_attempts,
        is_each,
        tz,
        reason,
        unbounded_attempts,
        spent_since
    from used
    where
        scope <> 'request'
        or not is_each
        or scope_id is null
        or last_started_at >= set_at
        or scope_id in (select request_id from ledger_open)
    qualify scope_id is not null or count(*) over (partition by scope, is_each, mode) = 1
)
select * from left_over
