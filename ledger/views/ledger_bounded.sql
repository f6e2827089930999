-- ledger_bounded: ledger_attempts, each with its ceiling where that counts: in doubt, without a price, or in flight.
-- Grain: attempt_id.  Reads: events, ledger_attempts.
-- Outcomes repeat it there by themselves, but not those that the first versions recorded without a price.
with lacking as (
    select attempt_id
    from ledger_attempts
    where reserved_usd is null and (is_unpriced or billing = 'unknown')
),
ceilings as (
    select attempt_id, any_value(reserved_usd) as ceiling_usd
    from events
    where event_type = 'attempt_started' and attempt_id in (from lacking)
    group by attempt_id
),
bounded as (
    select
        ledger_attempts.* replace (coalesce(ledger_attempts.reserved_usd, ceilings.ceiling_usd) as reserved_usd)
    from ledger_attempts left join ceilings using (attempt_id)
)
select * from bounded
