"""What `route()` and the clients return."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, NotRequired, TypedDict


class ToolCall(TypedDict):
    """A tool the model wants called.

    `input` is None where the model wrote arguments that are not a JSON object; what it wrote
    is then in `input_raw`.
    """

    id: str
    name: str
    input: dict[str, Any] | None
    input_raw: NotRequired[str]


class UsageReport(TypedDict):
    """Tokens in disjoint buckets, but for `reasoning_tokens`, which is a part of `output_tokens`."""

    input_tokens: int
    cache_read_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    output_tokens: int
    reasoning_tokens: int


class ClientResponse(TypedDict):
    """What a client returns. `cost` is USD as the provider reported it; None where it did not."""

    content: str
    tool_calls: list[ToolCall]
    usage: UsageReport
    stop_reason: str
    model: str
    id: str | None
    cost: Decimal | None


class RouteResponse(TypedDict):
    """What `route()` returns.

    `cost` is USD for the whole request, failed attempts included: as the providers billed, else
    tokens by the price book; None where a part of it has no price. `attempts` counts all tiers;
    `latency_s` is the whole call, waits included. `stop_reason` is in Anthropic's words,
    `provider_stop_reason` in the provider's own.
    """

    content: str
    tool_calls: list[ToolCall]
    model_tier: str
    model: str
    provider: str
    cost: Decimal | None
    usage: UsageReport
    stop_reason: str
    provider_stop_reason: str | None
    request_id: str
    session_id: str | None
    attempts: int
    fallback_used: bool
    latency_s: float
