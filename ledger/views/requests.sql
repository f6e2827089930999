-- requests: each call of route(), how it ended and what it cost in all.
-- Grain: request_id.  Reads: events, attempts.
-- session_id: the caller's grouping key; NULL: none was given
-- request_id: its own id
-- started_at: when it was recorded, before its first attempt
-- ended_at: when its end was recorded; NULL: open
-- task: what the agent asked for
-- tags: the caller's own labels
-- requested_tier: the tier the task maps to
-- tier: the tier that answered, else the last one tried; the request counts there
-- provider: of the attempt that answered, else of the last one; NULL: none was made or named
-- model: as it was asked for; NULL: none was tried or named
-- status: completed, failed, denied (refused before a byte was sent) or open
-- reason: why it failed (exhausted, given_up, deadline, cancelled, abandoned) or was denied; NULL: it was not
-- error_type: of the failure; NULL: there was none
-- stop_reason: why the answer ended, in Anthropic's words; NULL: no answer
-- latency_ms: milliseconds from the call to its end, retries and waits included; NULL: open
-- max_tokens: tokens the answer may have
-- message_count: messages in the request
-- prompt_bytes: bytes of messages, system prompt and tools as JSON
-- prompt_hash: 32 hex characters, keyed per ledger; equal prompts have equal ones
-- tool_count: tools offered
-- limit_usd: USD; the budget_usd of the call; NULL: none
-- attempts: HTTP calls made for it
-- failed_attempts: those that ended without an answer, cancelled and abandoned ones included
-- fallbacks: moves to another tier
-- input_tokens: all prompt tokens of all its attempts, cached ones included
-- cache_read_tokens: the part of input_tokens read from a cache
-- cache_write_tokens: the part of input_tokens written to a cache
-- output_tokens: tokens of the answers, reasoning included
-- reasoning_tokens: the part of output_tokens spent on reasoning
-- cost_usd: USD; the priced part of all its attempts, settlements included; NULL: nothing priced; 0 without attempts
-- list_cost_usd: USD; the same at list prices
-- unpriced_attempts: billed attempts that cost_usd lacks, as nothing says how much
-- unlisted_attempts: billed attempts that list_cost_usd lacks, as the book has no price for all they used
-- in_doubt_attempts: attempts that were sent and whose outcome is not known; cost_usd lacks them
-- in_flight_attempts: attempts without an outcome so far; cost_usd lacks them
with told as (
    select
        session_id,
        request_id,
        coalesce(
            any_value(occurred_at) filter (where event_type = 'request_received'), any_value(started_at)
        ) as started_at,
        any_value(occurred_at) filter (where is_end) as ended_at,
        any_value(task) as task,
        any_value(tags) as tags,
        any_value(requested_tier) as requested_tier,
        any_value(tier) filter (where is_end) as tier,
        any_value(provider) filter (where is_end) as provider,
        any_value(model) filter (where is_end) as model,
        coalesce(any_value(replace(event_type, 'request_', '')) filter (where is_end), 'open') as status,
        any_value(reason) filter (where is_end) as reason,
        any_value(error_type) filter (where is_end) as error_type,
        any_value(stop_reason) filter (where is_end) as stop_reason,
        any_value(latency_ms) filter (where is_end) as latency_ms,
        any_value(max_tokens) as max_tokens,
        any_value(message_count) as message_count,
        any_value(prompt_bytes) as prompt_bytes,
        any_value(prompt_hash) as prompt_hash,
        any_value(tool_count) as tool_count,
        any_value(limit_usd) filter (where event_type = 'request_received') as limit_usd,
        count(*) filter (where event_type = 'fallback_engaged') as fallbacks
    from (
        select *, event_type in ('request_completed', 'request_failed', 'request_denied') as is_end
        from events
        where request_id is not null and attempt_id is null
    )
    group by session_id, request_id
),
tried as (
    select
        request_id,
        arg_max(tier, attempt_number) as tier,
        arg_max(provider, attempt_number) as provider,
        arg_max(model, attempt_number) as model,
        count(*) as attempts,
        count(*) filter (where outcome not in ('succeeded', 'in_flight')) as failed_attempts,
        sum(input_tokens) as input_tokens,
        sum(cache_read_tokens) as cache_read_tokens,
        sum(cache_write_tokens) as cache_write_tokens,
        sum(output_tokens) as output_tokens,
        sum(reasoning_tokens) as reasoning_tokens,
        sum(cost_usd) as cost_usd,
        sum(list_cost_usd) as list_cost_usd,
        count(*) filter (where is_unpriced) as unpriced_attempts,
        count(*) filter (where is_unlisted) as unlisted_attempts,
        count(*) filter (where billing = 'unknown') as in_doubt_attempts,
        count(*) filter (where outcome = 'in_flight') as in_flight_attempts
    from attempts
    group by request_id
),
joined as (
    select
        told.session_id,
        told.request_id,
        told.started_at,
        told.ended_at,
        told.task,
        told.tags,
        told.requested_tier,
        coalesce(told.tier, tried.tier, told.requested_tier) as tier,
        coalesce(told.provider, tried.provider) as provider,
        coalesce(told.model, tried.model) as model,
        told.status,
        told.reason,
        told.error_type,
        told.stop_reason,
        told.latency_ms,
        told.max_tokens,
        told.message_count,
        told.prompt_bytes,
        told.prompt_hash,
        told.tool_count,
        told.limit_usd,
        coalesce(tried.attempts, 0) as attempts,
        coalesce(tried.failed_attempts, 0) as failed_attempts,
        told.fallbacks,
        coalesce(tried.input_tokens, 0)::bigint as input_tokens,
        coalesce(tried.cache_read_tokens, 0)::bigint as cache_read_tokens,
        coalesce(tried.cache_write_tokens, 0)::bigint as cache_write_tokens,
        coalesce(tried.output_tokens, 0)::bigint as output_tokens,
        coalesce(tried.reasoning_tokens, 0)::bigint as reasoning_tokens,
        if(tried.attempts is null, 0, tried.cost_usd) as cost_usd,
        if(tried.attempts is null, 0, tried.list_cost_usd) as list_cost_usd,
        coalesce(tried.unpriced_attempts, 0) as unpriced_attempts,
        coalesce(tried.unlisted_attempts, 0) as unlisted_attempts,
        coalesce(tried.in_doubt_attempts, 0) as in_doubt_attempts,
        coalesce(tried.in_flight_attempts, 0) as in_flight_attempts
    from told left join tried using (request_id)
)
select * from joined
