-- fold: what state.db should say, after the events up to its own positions; ledger.state.fold in SQL.
-- Makes expected_positions, expected_balances, expected_request_spent, expected_holds, expected_settled and
-- expected_budgets, expected_circuits; and expected_sums, which are of state.db's own balances and doubts. Reads: events, sealed_rows, and state.db's tables as state_….
-- wide enough for every product: an event's amount is a decimal(18, 12)
create temp macro pico(usd) as (usd::decimal(24, 12) * 1000000000000::decimal(13, 0))::hugeint;

create temp view applied as
select events.*
from events join state_positions using (journal_id)
where events.seq <= state_positions.seq;

create temp table expected_positions as
select
    state_positions.journal_id,
    state_positions.seq,
    (events.event_type is not distinct from 'journal_closed')::bigint as closed
from state_positions left join events using (journal_id, seq);

create temp table money as
with priced as (
    select
        *,
        event_type = 'attempt_settled' as is_settlement,
        coalesce(billed_cost_usd, list_cost_usd) as cost_usd,
        coalesce(billing = 'billed' and coalesce(billed_cost_usd, list_cost_usd) is null, false) as is_unpriced
    from applied
    where
        event_type in (
            'attempt_succeeded', 'attempt_failed', 'attempt_cancelled', 'attempt_abandoned', 'attempt_settled'
        )
)
select
    task,
    tier,
    model,
    session_id,
    epoch_us(started_at) // 900000000 as quarter,
    sum(coalesce(pico(cost_usd), 0))::hugeint as spent_pico,
    count(*) filter (where is_unpriced) as unpriced_attempts
from priced
where cost_usd is not null or is_unpriced
group by all;

create temp table expected_balances as
with scoped as (
    select 'all' as scope, '' as scope_id, quarter, spent_pico, unpriced_attempts from money
    union all
    select 'task', task, quarter, spent_pico, unpriced_attempts from money
    union all
    select 'tier', tier, quarter, spent_pico, unpriced_attempts from money
    union all
    select 'model', model, quarter, spent_pico, unpriced_attempts from money
    union all
    select 'session', session_id, quarter, spent_pico, unpriced_attempts
    from money
    where session_id is not null
)
select
    scope,
    scope_id,
    quarter,
    sum(spent_pico)::hugeint as spent_pico,
    sum(unpriced_attempts)::bigint as unpriced_attempts
from scoped
group by scope, scope_id, quarter
having sum(spent_pico) <> 0 or sum(unpriced_attempts) <> 0;

-- of requests that have not ended; what was in doubt counts with its ceiling until then, settled or not
create temp table expected_request_spent as
select
    request_id,
    sum(
        coalesce(pico(coalesce(billed_cost_usd, list_cost_usd)), 0)
        + if(
            billing = 'unknown' or (billing = 'billed' and coalesce(billed_cost_usd, list_cost_usd) is null),
            coalesce(pico(reserved_usd), 0),
            0
        )
    )::hugeint as spent_pico
from
    applied
    anti join (
        select request_id
        from applied
        where event_type in ('request_completed', 'request_failed', 'request_denied')
    ) using (request_id)
where
    event_type in ('attempt_succeeded', 'attempt_failed', 'attempt_cancelled', 'attempt_abandoned')
    and (coalesce(billed_cost_usd, list_cost_usd) is not null or billing in ('billed', 'unknown'))
group by request_id;

create temp table expected_settled as
select distinct attempt_id
from applied
where event_type = 'attempt_settled' and billing <> 'unknown';

create temp table expected_holds as
with last_told as (
    select
        attempt_id,
        arg_max(
            {
                'state': case
                    when event_type = 'attempt_started' then 'in_flight'
                    when
                        billing = 'unknown'
                        or (billing = 'billed' and coalesce(billed_cost_usd, list_cost_usd) is null)
                    then 'in_doubt'
                end,
                'ceiling_pico': pico(reserved_usd)::bigint,
                'journal_id': journal_id,
                'quarter': epoch_us(coalesce(started_at, occurred_at)) // 900000000
            },
            event_type <> 'attempt_started'
        ) as told
    from applied
    where
        event_type in (
            'attempt_started', 'attempt_succeeded', 'attempt_failed', 'attempt_cancelled', 'attempt_abandoned'
        )
    group by attempt_id
)
select
    attempt_id,
    told.journal_id as journal_id,
    told.ceiling_pico as ceiling_pico,
    told.quarter as quarter,
    told.state as state
from last_told
where told.state = 'in_flight' or (told.state = 'in_doubt' and attempt_id not in (from expected_settled));

create temp table expected_budgets as
select
    scope,
    coalesce(scope_id, '') as scope_id,
    coalesce(mode, 'hard') as mode,
    pico(told.limit_usd)::bigint as limit_pico,
    coalesce(told.tz, 'UTC') as tz,
    told.journal_id as journal_id,
    told.seq as seq
from (
    select
        scope,
        scope_id,
        mode,
        max(
            {'at': occurred_at, 'journal_id': journal_id, 'seq': seq, 'limit_usd': limit_usd, 'tz': tz}
        ) as told
    from applied
    where event_type = 'budget_set'
    group by scope, scope_id, mode
);

-- what was spent lately is in none of the sums yet
create temp table expected_sums as
with lately as (
    select 'all' as scope, '' as scope_id, quarter, spent_pico from state_unsummed
    union all
    select 'task', task, quarter, spent_pico from state_unsummed
    union all
    select 'tier', tier, quarter, spent_pico from state_unsummed
    union all
    select 'model', model, quarter, spent_pico from state_unsummed
    union all
    select 'session', session_id, quarter, spent_pico from state_unsummed where session_id is not null
),
doubted as (
    select 'all' as scope, '' as scope_id, quarter, ceiling_pico from state_doubts
    union all
    select 'task', task, quarter, ceiling_pico from state_doubts
    union all
    select 'tier', tier, quarter, ceiling_pico from state_doubts
    union all
    select 'model', model, quarter, ceiling_pico from state_doubts
    union all
    select 'session', session_id, quarter, ceiling_pico from state_doubts where session_id is not null
),
counted as (
    select
        scope,
        scope_id,
        quarter,
        spent_micro::hugeint * 1000000 + spent_rest as spent_pico,
        0::hugeint as doubt_pico
    from state_balances
    union all
    select scope, scope_id, quarter, -spent_pico::hugeint, 0::hugeint from lately
    union all
    select scope, scope_id, quarter, 0::hugeint, coalesce(ceiling_pico, 0)::hugeint from doubted
),
ranges as (
    select scope, scope_id, -4611686018427387904 as first_quarter, 4611686018427387904 as end_quarter
    from counted
    union
    select scope, scope_id, first_quarter, end_quarter from state_sums
)
select
    ranges.scope,
    ranges.scope_id,
    first_quarter,
    end_quarter,
    sum(spent_pico)::hugeint as spent_pico,
    sum(doubt_pico)::hugeint as doubt_pico
from ranges join counted
    on
        ranges.scope = counted.scope
        and ranges.scope_id = counted.scope_id
        and counted.quarter >= first_quarter
        and counted.quarter < end_quarter
group by ranges.scope, ranges.scope_id, first_quarter, end_quarter
having sum(spent_pico) <> 0 or sum(doubt_pico) <> 0;

create temp table expected_circuits as
select
    provider,
    model,
    epoch_us(started_at) as opened_us,
    max(event_type = 'circuit_closed')::bigint as closed
from applied
where event_type in ('circuit_opened', 'circuit_closed') and started_at is not null
group by all;
