-- stories: what is wrong with the story of a journal, a request or an attempt.
-- Grain: (problem, journal).  Reads: events, journals.
-- problem: in words; subject: one such; times: how many; first_seq, last_seq: where
with told as (
    select
        *,
        event_type in ('request_completed', 'request_failed', 'request_denied') as is_end,
        event_type in ('attempt_succeeded', 'attempt_failed', 'attempt_cancelled', 'attempt_abandoned')
            as is_outcome
    from events
    where event_type <> 'attempt_settled'
),
journal_stories as (
    select
        journal_id,
        journal_id as subject,
        min(seq) as first_seq,
        max(seq) as last_seq,
        case
            when min(seq) <> 1 or count(*) <> max(seq) then 'its numbers are not gapless from 1'
            when arg_min(event_type, seq) <> 'journal_opened' then 'it does not begin with its opening'
            when count(*) filter (where event_type = 'journal_opened') > 1 then 'it is opened twice'
            when
                count(*) filter (where event_type = 'journal_closed') > 0
                and (
                    arg_max(event_type, seq) <> 'journal_closed'
                    or count(*) filter (where event_type = 'journal_closed') > 1
                )
            then 'it goes on after its end'
        end as problem
    from events
    group by journal_id
),
request_stories as (
    select
        min(journal_id) as journal_id,
        request_id as subject,
        min(seq) as first_seq,
        max(seq) as last_seq,
        case
            when min(journal_id) <> max(journal_id) then 'a request is told in two journals'
            when count(*) filter (where event_type = 'request_received') = 0
            then 'a request was never received'
            when count(*) filter (where event_type = 'request_received') > 1
            then 'a request was received twice'
            when arg_min(event_type, seq) <> 'request_received'
            then 'a request has events from before it was received'
            when count(*) filter (where is_end) > 1 then 'a request has two ends'
            when count(*) filter (where is_end) = 1 and max(seq) filter (where is_end) < max(seq)
            then 'a request goes on after its end'
            when count(*) filter (where is_end) = 0 and bool_or(is_closed)
            then 'a request has no end, and its journal is closed'
            when min(session_id) <> max(session_id) or count(session_id) not in (0, count(*))
            then 'a request is told of two sessions'
        end as problem,
        count(*) filter (where is_end) > 0 as is_ended
    from told left join journals using (journal_id)
    where request_id is not null
    group by request_id
),
attempt_stories as (
    select
        min(told.journal_id) as journal_id,
        attempt_id as subject,
        min(told.seq) as first_seq,
        max(told.seq) as last_seq,
        case
            when min(told.journal_id) <> max(told.journal_id) then 'an attempt is told in two journals'
            when count(*) filter (where event_type = 'attempt_started') = 0
            then 'an attempt has an outcome and was never started'
            when count(*) filter (where event_type = 'attempt_started') > 1
            then 'an attempt was started twice'
            when count(*) filter (where is_outcome) > 1 then 'an attempt has two outcomes'
            when arg_min(event_type, told.seq) <> 'attempt_started'
            then 'an attempt has an outcome from before it started'
            when
                count(*) filter (where is_outcome) = 0
                and bool_or(request_stories.is_ended)
            then 'an attempt has no outcome, and its request has ended'
            when
                min(told.request_id) <> max(told.request_id)
                or min(told.tier) <> max(told.tier)
                or min(told.provider) <> max(told.provider)
                or min(told.model) <> max(told.model)
            then 'an attempt is told of two requests or routes'
        end as problem
    from told left join request_stories on request_stories.subject = told.request_id
    where attempt_id is not null
    group by attempt_id
),
settlements as (
    select
        events.journal_id,
        events.attempt_id as subject,
        events.seq as first_seq,
        events.seq as last_seq,
        'a settlement names an attempt that is not there' as problem
    from events
        left join attempt_stories on attempt_stories.subject = events.attempt_id
    where
        events.event_type = 'attempt_settled'
        and attempt_stories.subject is null
        and not (select coalesce(bool_or(is_suspect), false) from journals)
),
unknown as (
    select
        journal_id,
        coalesce(event_type, 'NULL') as subject,
        seq as first_seq,
        seq as last_seq,
        'an event is of no kind there is' as problem
    from events
    where event_type is null or not list_contains($event_types, event_type)
),
problems as (
    select problem, journal_id, subject, first_seq, last_seq from journal_stories where problem is not null
    union all by name
    select problem, journal_id, subject, first_seq, last_seq from request_stories where problem is not null
    union all by name
    select problem, journal_id, subject, first_seq, last_seq from attempt_stories where problem is not null
    union all by name
    select * from settlements
    union all by name
    select * from unknown
),
grouped as (
    select
        problem,
        journal_id,
        min(subject) as subject,
        count(*) as times,
        min(first_seq) as first_seq,
        max(last_seq) as last_seq
    from problems
    group by problem, journal_id
)
select * from grouped order by problem, journal_id, first_seq
