-- ledger_attempts: each HTTP call to a model as its outcome tells of it, which repeats what was told before.
-- Grain: attempt_id.  Reads: events, ledger_settled, ledger_open.
-- The columns are those of `attempts`; but reserved_usd is NULL where an outcome has no need to repeat it, which
-- is where it was billed at a known price, or not at all.
-- An attempt has one outcome, so nothing is grouped here but the few attempts in flight.
-- May be set:  ledger_answers_are_settled; false: each attempt in ledger_settled had no answer. Then answers, most of
--              the rows, are added up without a look at their ids.
with ended as not materialized (
    select
        event_type,
        session_id,
        request_id,
        attempt_id,
        attempt_number,
        started_at,
        occurred_at as ended_at,
        task,
        tags,
        tier,
        provider,
        model,
        response_model,
        upstream_provider,
        case event_type
            when 'attempt_succeeded' then 'succeeded'
            when 'attempt_failed' then 'failed'
            when 'attempt_cancelled' then 'cancelled'
            when 'attempt_abandoned' then 'abandoned'
        end as outcome,
        http_status,
        error_type,
        error_message,
        stop_reason,
        wait_s,
        latency_ms,
        first_token_ms,
        case
            when coalesce(input_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens) is not null
            then
                coalesce(input_tokens, 0)
                + coalesce(cache_read_tokens, 0)
                + coalesce(cache_write_5m_tokens, 0)
                + coalesce(cache_write_1h_tokens, 0)
        end as input_tokens,
        cache_read_tokens,
        case
            when coalesce(cache_write_5m_tokens, cache_write_1h_tokens) is not null
            then coalesce(cache_write_5m_tokens, 0) + coalesce(cache_write_1h_tokens, 0)
        end as cache_write_tokens,
        output_tokens,
        reasoning_tokens,
        web_search_requests,
        usage_suspect,
        billing,
        billing_rule,
        coalesce(billed_cost_usd, list_cost_usd) as cost_usd,
        list_cost_usd,
        reserved_usd
    from events
    where billing is not null and event_type <> 'attempt_settled'  -- said so, DuckDB skips all else
),
in_flight as (
    select
        session_id,
        request_id,
        attempt_id,
        any_value(attempt_number) as attempt_number,
        coalesce(
            min(occurred_at) filter (where event_type = 'attempt_started'), any_value(started_at)
        ) as started_at,
        any_value(task) as task,
        any_value(tags) as tags,
        any_value(tier) as tier,
        any_value(provider) as provider,
        any_value(model) as model,
        'in_flight' as outcome,
        any_value(reserved_usd) as reserved_usd
    from ledger_open
    where attempt_id is not null
    group by session_id, request_id, attempt_id
    having not bool_or(is_outcome)
),
told as (
    select * exclude (event_type)
    from ended
    where event_type <> 'attempt_succeeded' or coalesce(getvariable('ledger_answers_are_settled')::boolean, true)
    union all by name
    select * from in_flight
),
settled as (
    select
        told.* replace (
            coalesce(settled_billing, billing) as billing,
            coalesce(settled_billing_rule, billing_rule) as billing_rule,
            if(settled_cost_usd is null, cost_usd, coalesce(cost_usd, 0) + settled_cost_usd) as cost_usd,
            if(settled_list_cost_usd is null, list_cost_usd, coalesce(list_cost_usd, 0) + settled_list_cost_usd)
                as list_cost_usd
        ),
        coalesce(is_settled, false) as is_settled,
        coalesce(is_ceiling_broken, false) as is_ceiling_broken
    from told left join ledger_settled using (attempt_id)
    union all by name  -- of many events
    select * exclude (event_type), false as is_settled, false as is_ceiling_broken
    from ended
    where event_type = 'attempt_succeeded' and not coalesce(getvariable('ledger_answers_are_settled')::boolean, true)
),
priced as (
    select
        * exclude (cost_usd, list_cost_usd, reserved_usd, is_settled, is_ceiling_broken),
        if(billing = 'unbilled', coalesce(cost_usd, 0), cost_usd)::decimal(38, 12) as cost_usd,
        if(billing = 'unbilled', coalesce(list_cost_usd, 0), list_cost_usd)::decimal(38, 12) as list_cost_usd,
        reserved_usd,
        coalesce(billing = 'billed' and cost_usd is null, false) as is_unpriced,
        coalesce(billing = 'billed' and list_cost_usd is null, false) as is_unlisted,
        is_settled,
        is_ceiling_broken
    from settled
)
select * from priced
