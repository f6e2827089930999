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
),
endless as (
    select request_id
    from events
    where request_id is not null and (getvariable('ledger_asks_every_request')::boolean or journal_id in (from unfinished))
    group by request_id
    having
        count(*) filter (where event_type in ('request_completed', 'request_failed', 'request_denied')) = 0
        -- of each attempt there are two such events, once it has ended
        or bit_xor(hash(attempt_id)) filter (
            where event_type in (
                'attempt_started', 'attempt_succeeded', 'attempt_failed', 'attempt_cancelled', 'attempt_abandoned'
            )
        ) <> 0
),
kept as (
    select
        event_type,
        event_type in ('attempt_succeeded', 'attempt_failed', 'attempt_cancelled', 'attempt_abandoned')
            as is_outcome,
        seq,
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
    from events
    where
        event_type <> 'ceiling_broken'
        -- a settlement is of an attempt that has ended, in any journal
        and (event_type <> 'attempt_settled' or getvariable('ledger_asks_every_request')::boolean)
        and (getvariable('ledger_asks_every_request')::boolean or journal_id in (from unfinished))
        and request_id in (from endless)
)
select * from kept
