-- attempts: each HTTP call to a model, and what it cost.
-- Grain: attempt_id.  Reads: events, ledger_attempts.
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
with ceilings as (
    select attempt_id, any_value(reserved_usd) as ceiling_usd
    from events
    where event_type = 'attempt_started'
    group by attempt_id
),
bounded as (
    select
        ledger_attempts.* replace (coalesce(ledger_attempts.reserved_usd, ceilings.ceiling_usd) as reserved_usd)
    from ledger_attempts left join ceilings using (attempt_id)
)
select * from bounded
