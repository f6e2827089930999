-- attempts: each HTTP call to a model, and what it cost; the fold of its events.
-- Grain: attempt_id.  Reads: events.
-- session_id: the caller's grouping key; NULL: none was given
-- request_id: the request it was made for
-- attempt_id: its own id
-- attempt_number: 1, 2, … within the request, across tiers
-- started_at: when it was recorded, right before anything was sent; its money belongs to this moment
-- ended_at: when its outcome was recorded; NULL: in flight
-- task: what the agent asked for
-- tags: the caller's own labels
-- tier: the tier tried
-- provider: anthropic or openrouter
-- model: as it was asked for
-- response_model: as the provider named the model that answered; NULL: it did not
-- upstream_provider: who served it behind OpenRouter; NULL: not told
-- outcome: succeeded, failed, cancelled (the caller left), abandoned (the process died) or in_flight
-- http_status: HTTP status; NULL: no answer came
-- error_type: why it failed; NULL: it did not
-- error_message: the provider's own words, scrubbed
-- stop_reason: why the answer ended, in Anthropic's words; NULL: no answer
-- wait_s: seconds waited before the next attempt; NULL: none followed
-- latency_ms: milliseconds of the HTTP call, waits excluded
-- first_token_ms: milliseconds to the first token of a stream; NULL: not streamed
-- input_tokens: all prompt tokens, cached ones included (events keep the parts apart); NULL: not reported
-- cache_read_tokens: the part of input_tokens read from a cache
-- cache_write_tokens: the part of input_tokens written to a cache
-- output_tokens: tokens of the answer, reasoning included; NULL: not reported
-- reasoning_tokens: the part of output_tokens spent on reasoning
-- web_search_requests: searches the provider made
-- usage_suspect: why the provider's numbers cannot all be right; NULL: nothing odd
-- billing: billed, unbilled or unknown (in doubt), settlements heeded; NULL: in flight
-- billing_rule: the rule or settlement that decided billing
-- cost_usd: USD; what the provider reported, else the list cost, plus settlements; unbilled: 0; NULL: not known
-- list_cost_usd: USD; units × prices of the book, plus settlements; unbilled: 0; NULL: no price
-- reserved_usd: USD; the ceiling, the most it can cost; NULL: not known
-- is_unpriced: billed, and neither the provider nor the price book says how much
-- is_unlisted: billed, and the book has no price for all it used: list_cost_usd is NULL
-- is_settled: whether a later word corrected it
-- is_ceiling_broken: whether it cost more than its ceiling
with told as (
    select
        *,
        case event_type
            when 'attempt_succeeded' then 'succeeded'
            when 'attempt_failed' then 'failed'
            when 'attempt_cancelled' then 'cancelled'
            when 'attempt_abandoned' then 'abandoned'
        end as outcome,
        event_type = 'attempt_settled' as is_settlement,
        case
            when coalesce(input_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens) is not null
            then
                coalesce(input_tokens, 0)
                + coalesce(cache_read_tokens, 0)
                + coalesce(cache_write_5m_tokens, 0)
                + coalesce(cache_write_1h_tokens, 0)
        end as prompt_tokens,
        case
            when coalesce(cache_write_5m_tokens, cache_write_1h_tokens) is not null
            then coalesce(cache_write_5m_tokens, 0) + coalesce(cache_write_1h_tokens, 0)
        end as cache_write_tokens
    from events
    where attempt_id is not null
),
folded as (
    select
        session_id,
        request_id,
        attempt_id,
        any_value(attempt_number) as attempt_number,
        coalesce(
            any_value(started_at), min(occurred_at) filter (where event_type = 'attempt_started')
        ) as started_at,
        any_value(occurred_at) filter (where outcome is not null) as ended_at,
        any_value(task) as task,
        any_value(tags) as tags,
        any_value(tier) as tier,
        any_value(provider) as provider,
        any_value(model) as model,
        any_value(response_model) as response_model,
        any_value(upstream_provider) as upstream_provider,
        coalesce(any_value(outcome), 'in_flight') as outcome,
        any_value(http_status) as http_status,
        any_value(error_type) as error_type,
        any_value(error_message) as error_message,
        any_value(stop_reason) as stop_reason,
        any_value(wait_s) as wait_s,
        any_value(latency_ms) as latency_ms,
        any_value(first_token_ms) as first_token_ms,
        any_value(prompt_tokens) as input_tokens,
        any_value(cache_read_tokens) as cache_read_tokens,
        any_value(cache_write_tokens) as cache_write_tokens,
        any_value(output_tokens) as output_tokens,
        any_value(reasoning_tokens) as reasoning_tokens,
        any_value(web_search_requests) as web_search_requests,
        any_value(usage_suspect) as usage_suspect,
        coalesce(
            arg_max(billing, occurred_at) filter (where is_settlement),
            any_value(billing) filter (where not is_settlement)
        ) as billing,
        coalesce(
            arg_max(billing_rule, occurred_at) filter (where is_settlement),
            any_value(billing_rule) filter (where not is_settlement)
        ) as billing_rule,
        sum(coalesce(billed_cost_usd, list_cost_usd)) as known_cost_usd,
        sum(list_cost_usd) as known_list_cost_usd,
        any_value(reserved_usd) as reserved_usd,
        bool_or(is_settlement) as is_settled,
        bool_or(event_type = 'ceiling_broken') as is_ceiling_broken
    from told
    group by session_id, request_id, attempt_id
),
priced as (
    select
        * exclude (known_cost_usd, known_list_cost_usd, reserved_usd, is_settled, is_ceiling_broken),
        if(billing = 'unbilled', coalesce(known_cost_usd, 0), known_cost_usd) as cost_usd,
        if(billing = 'unbilled', coalesce(known_list_cost_usd, 0), known_list_cost_usd) as list_cost_usd,
        reserved_usd,
        coalesce(billing = 'billed' and known_cost_usd is null, false) as is_unpriced,
        coalesce(billing = 'billed' and known_list_cost_usd is null, false) as is_unlisted,
        is_settled,
        is_ceiling_broken
    from folded
)
select * from priced
