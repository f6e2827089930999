-- ledger_settled: what was said of attempts after they had ended; few, and a table.
-- Grain: attempt_id.  Reads: events.
with later as (
    select
        attempt_id,
        (occurred_at, journal_id, seq) as told_at,  -- two may be of one moment
        event_type = 'attempt_settled' as is_settlement,
        billing,
        billing_rule,
        coalesce(billed_cost_usd, list_cost_usd) as cost_usd,
        list_cost_usd
    from events
    -- said so, DuckDB looks at the kinds alone where none is of these, which it does not for `in`
    where case event_type when 'attempt_settled' then true when 'ceiling_broken' then true end
),
folded as (
    select
        attempt_id,
        arg_max(billing, told_at) filter (where is_settlement) as settled_billing,
        arg_max(billing_rule, told_at) filter (where is_settlement) as settled_billing_rule,
        sum(cost_usd) as settled_cost_usd,
        sum(list_cost_usd) as settled_list_cost_usd,
        bool_or(is_settlement) as is_settled,
        not bool_and(is_settlement) as is_ceiling_broken
    from later
    group by attempt_id
)
select * from folded
