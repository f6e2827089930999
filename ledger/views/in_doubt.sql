-- in_doubt: attempts that may yet cost something: sent, and how they ended is not known.
-- Grain: attempt_id.  Reads: ledger_bounded.
-- session_id: the caller's grouping key; NULL: none was given
-- request_id: the request it was made for
-- attempt_id: its own id; what a settlement names
-- started_at: when it was recorded, right before it was sent
-- task: what the agent asked for
-- tier: the tier tried
-- provider: anthropic or openrouter
-- model: as it was asked for
-- outcome: failed, cancelled, abandoned, or in_flight
-- error_type: why it failed; NULL: it did not
-- billing_rule: why its billing is not known; NULL: in flight
-- is_in_flight: no outcome so far: its process still waits, or died and was not yet recovered
-- reserved_usd: USD; its ceiling, the most it can cost; NULL: not known
with open_ended as (
    select
        session_id,
        request_id,
        attempt_id,
        started_at,
        task,
        tier,
        provider,
        model,
        outcome,
        error_type,
        billing_rule,
        outcome = 'in_flight' as is_in_flight,
        reserved_usd
    from ledger_bounded
    where billing = 'unknown' or outcome = 'in_flight'
)
select * from open_ended
