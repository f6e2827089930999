-- ledger_open: the events of requests that have not ended; few, and a table.
-- Grain: (journal_id, seq).  Reads: events.
-- A request is told in one journal, and a journal is closed only once all its requests have ended: what is
-- open is in journals that are not closed. Of one session no journal's end is seen, and of a damaged
-- ledger none is believed: then every request is asked whether it has an end.
with unfinished as (
    select journal_id
    from events
    where event_type between 'journal_closed' and 'journal_opened'
    group by journal_id
    having not bool_or(event_type = 'journal_closed')
    union
    select distinct journal_id
    from events
    where getvariable('ledger_session') is not null or coalesce(getvariable('ledger_allow_damage')::boolean, false)
),
told as not materialized (
    select
        *,
        event_type in ('request_completed', 'request_failed', 'request_denied') as is_end,
        event_type in ('attempt_succeeded', 'attempt_failed', 'attempt_cancelled', 'attempt_abandoned')
            as is_outcome
    from events
    where
        request_id is not null
        and event_type <> 'ceiling_broken'
        and (
            event_type <> 'attempt_settled'  -- of an attempt that has ended, in whichever journal
            or getvariable('ledger_session') is not null
            or coalesce(getvariable('ledger_allow_damage')::boolean, false)
        )
        and journal_id in (from unfinished)
),
endless as (
    select request_id
    from told
    group by request_id
    having not bool_or(is_end)
    union
    select request_id
    from told
    where attempt_id is not null
    group by request_id, attempt_id
    having not bool_or(is_outcome)
),
kept as (
    select
        event_type,
        is_outcome,
        occurred_at,
        started_at,
        session_id,
        request_id,
        attempt_id,
        attempt_number,
        task,
        tags,
        requested_tier,
        tier,
        provider,
        model,
        reserved_usd
    from told
    where request_id in (from endless)
)
select * from kept
