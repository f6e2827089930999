-- ledger_failed: requests whose end names no provider and model, with those of the last attempt.
-- Grain: request_id.  Reads: events, ledger_open.
-- The columns are those of ledger_requests, which has these requests too, without what is looked up here. An
-- answer is rarely the last attempt of a request that failed; so answers are read only where the attempts
-- without one do not reach as far as the end says.
with nameless as materialized (
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
        'failed' as status
    from events
    where event_type = 'request_failed' and (provider is null or model is null)
),
unanswered as (
    select
        request_id,
        max(attempt_number) as last_number,
        arg_max(provider, attempt_number) as last_provider,
        arg_max(model, attempt_number) as last_model
    from (
        select request_id, attempt_number, provider, model
        from events
        where event_type between 'attempt_abandoned' and 'attempt_failed'  -- all outcomes but answers
        union all
        select request_id, attempt_number, provider, model from ledger_open where attempt_id is not null
    )
    where request_id in (select request_id from nameless)
    group by request_id
),
looked_up as (
    select nameless.*, last_number, last_provider, last_model
    from nameless left join unanswered using (request_id)
),
further as (
    select
        request_id,
        arg_max(provider, attempt_number) as last_provider,
        arg_max(model, attempt_number) as last_model
    from events
    where
        event_type = 'attempt_succeeded'
        and request_id in (
            select request_id from looked_up where attempt_number > coalesce(last_number, 0)
        )
    group by request_id
),
named as (
    select
        looked_up.* exclude (last_number, last_provider, last_model) replace (
            coalesce(provider, further.last_provider, looked_up.last_provider) as provider,
            coalesce(model, further.last_model, looked_up.last_model) as model
        )
    from looked_up left join further using (request_id)
)
select * from named
