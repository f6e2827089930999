"""The one wide, sparse table of events: its columns, their types and what they mean.

Written once, as data. The Arrow schema of segments, the struct that DuckDB reads journals with
and the data dictionary are made from `COLUMNS`; tests hold the event models against it.
Columns are only ever added, at the end of their group's meaning, never renamed or retyped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 2
NO_SEGMENT = "events/date=1970-01-01/empty.parquet"  # always there: all columns, no rows
TIER_ORDER = ("ORCHESTRATOR", "REASONING", "CODING", "GENERAL", "FAST")  # as reports list them

Kind = Literal["text", "count", "ratio", "flag", "usd", "moment", "tags"]

SQL_TYPES: dict[Kind, str] = {
    "text": "VARCHAR",
    "count": "BIGINT",
    "ratio": "DOUBLE",
    "flag": "BOOLEAN",
    "usd": "DECIMAL(18,12)",
    "moment": "TIMESTAMP WITH TIME ZONE",
    "tags": "MAP(VARCHAR, VARCHAR)",
}


class Column(NamedTuple):
    """One column of `events`; `means` gives unit and edge cases."""

    name: str
    kind: Kind
    means: str


COLUMNS: tuple[Column, ...] = (
    # identity
    Column("journal_id", "text", "the journal that holds it; with seq the event's identity"),
    Column("seq", "count", "1, 2, 3, … without a gap in each journal"),
    Column("event_type", "text", "what happened; see ledger/events.py"),
    Column("schema_version", "count", "of the writer"),
    Column("occurred_at", "moment", "UTC, microseconds; when it was appended"),
    Column(
        "started_at",
        "moment",
        "UTC; outcomes: of the attempt, whose money belongs to that moment; request ends: of the request;"
        " circuits: of the opening",
    ),
    # correlation
    Column("session_id", "text", "the caller's grouping key; NULL: none was given"),
    Column("request_id", "text", "one call of route()"),
    Column("attempt_id", "text", "one HTTP call on behalf of a request"),
    Column("attempt_number", "count", "1, 2, … across tiers; on request ends: of the last attempt, 0: none"),
    Column("task", "text", "what the agent asked for, e.g. analyze_page"),
    Column("tags", "tags", "the caller's own labels"),
    # routing
    Column("requested_tier", "text", "the tier the task maps to"),
    Column("tier", "text", "the tier tried; on request ends: that answered, else the last tried"),
    Column("provider", "text", "anthropic or openrouter"),
    Column("model", "text", "as it was asked for"),
    Column("response_model", "text", "as the provider named the model that answered"),
    Column("upstream_provider", "text", "who served it behind OpenRouter"),
    Column("from_tier", "text", "of a fallback"),
    Column("to_tier", "text", "of a fallback"),
    Column("reason", "text", "why: of a fallback, end, cancellation, settlement or circuit"),
    # call
    Column("max_tokens", "count", "tokens the answer may have"),
    Column("message_count", "count", "messages in the request"),
    Column("prompt_bytes", "count", "bytes of messages, system prompt and tools as JSON"),
    Column("prompt_hash", "text", "32 hex characters, keyed per ledger; equal prompts, equal hash"),
    Column("tool_count", "count", "tools offered"),
    Column("streamed", "flag", "whether the answer was streamed"),
    Column(
        "service_tier", "text", "as the provider reported it; fast mode and US-only inference joined with +"
    ),
    # usage
    Column("input_tokens", "count", "prompt tokens neither read from nor written to a cache"),
    Column("cache_read_tokens", "count", "prompt tokens read from a cache"),
    Column("cache_write_5m_tokens", "count", "prompt tokens written to a 5-minute cache"),
    Column("cache_write_1h_tokens", "count", "prompt tokens written to a 1-hour cache"),
    Column("output_tokens", "count", "tokens of the answer, reasoning included"),
    Column("reasoning_tokens", "count", "the part of output_tokens spent on reasoning"),
    Column("web_search_requests", "count", "searches the provider made and bills"),
    Column("usage_json", "text", "the provider's usage object, verbatim"),
    Column("usage_suspect", "text", "why the provider's numbers cannot all be right; NULL: nothing odd"),
    # money
    Column("list_cost_usd", "usd", "USD; units × prices of the book; NULL: some billed unit has no price"),
    Column("billed_cost_usd", "usd", "USD, as the provider reported it; NULL: it reported nothing"),
    Column("upstream_cost_usd", "usd", "USD, the upstream's part as OpenRouter reported it"),
    Column(
        "reserved_usd",
        "usd",
        "USD, the ceiling: the most the attempt can cost; NULL: not known; of a budget: those in flight",
    ),
    Column("is_byok", "flag", "paid with the caller's own key at the upstream"),
    Column("price_book", "text", "hash of the price book in use"),
    Column("input_usd_per_mtok", "usd", "price used, USD per million tokens"),
    Column("cache_read_usd_per_mtok", "usd", "price used, USD per million tokens"),
    Column("cache_write_5m_usd_per_mtok", "usd", "price used, USD per million tokens"),
    Column("cache_write_1h_usd_per_mtok", "usd", "price used, USD per million tokens"),
    Column("output_usd_per_mtok", "usd", "price used, USD per million tokens"),
    Column("web_search_usd_per_request", "usd", "price used, USD per search"),
    Column("billing", "text", "billed, unbilled or unknown"),
    Column("billing_rule", "text", "the rule that decided billing"),
    # budget
    Column("scope", "text", "request, session, task, tier, model, day, month or all"),
    Column(
        "scope_id",
        "text",
        "which one of its scope; NULL: each, or there is but one; of a day or month: its date",
    ),
    Column("limit_usd", "usd", "USD; of a budget; on request_received: budget_usd of the call"),
    Column("spent_usd", "usd", "USD counted against the limit at that moment"),
    Column("in_doubt_usd", "usd", "USD, ceilings of attempts whose outcome is not known"),
    Column("asked_usd", "usd", "USD, the ceiling that was asked for"),
    Column("mode", "text", "hard or warn"),
    Column("tz", "text", "of a budget: where its days and months begin; NULL: in UTC"),
    # outcome
    Column("http_status", "count", "HTTP status; NULL: no answer came"),
    Column("error_type", "text", "one of 17 words, see ledger/events.py"),
    Column("error_message", "text", "the provider's words, keys scrubbed, at most 500 characters"),
    Column("stop_reason", "text", "Anthropic's words: end_turn, max_tokens, tool_use, refusal, …"),
    Column("retry_after_s", "ratio", "seconds the provider asked to wait"),
    Column("wait_s", "ratio", "seconds waited before the next attempt; NULL: none followed"),
    Column(
        "latency_ms",
        "ratio",
        "milliseconds; attempts: of the HTTP call; request ends: of the request, waits included",
    ),
    Column("first_token_ms", "ratio", "milliseconds to the first token of a stream"),
    Column("provider_request_id", "text", "the provider's id of the HTTP call"),
    Column("response_id", "text", "the provider's id of the answer"),
    # writer
    Column("host", "text", "of the writing process"),
    Column("pid", "count", "of the writing process"),
    Column("version", "text", "of bughive-costs"),
)


def arrow_schema() -> pa.Schema:
    """The schema of every segment: `COLUMNS` in order, all nullable."""
    import pyarrow as pa

    arrow_types: dict[Kind, pa.DataType] = {
        "text": pa.string(),
        "count": pa.int64(),
        "ratio": pa.float64(),
        "flag": pa.bool_(),
        "usd": pa.decimal128(18, 12),
        "moment": pa.timestamp("us", tz="UTC"),
        "tags": pa.map_(pa.string(), pa.string()),
    }
    return pa.schema([pa.field(column.name, arrow_types[column.kind]) for column in COLUMNS])
