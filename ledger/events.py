"""The facts the ledger keeps.

    JournalOpened                  first in each journal
      RequestReceived              one per route()
        AttemptStarted      0..n   durable before anything is sent, with the ceiling reserved
        AttemptSucceeded    0..1   tokens, and what they cost at the price then in force
        AttemptFailed       0..n   a try that gave no answer, with its billing verdict
        AttemptCancelled    0..1   the caller left
        AttemptAbandoned    0..n   the process died; written by recovery
        FallbackEngaged     0..n   a move to another tier
        CeilingBroken       0..n   an attempt cost more than its ceiling: the bound was wrong
      RequestCompleted | RequestFailed | RequestDenied    one per RequestReceived, always last
      AttemptSettled               a later word on an attempt, as a delta
      CircuitOpened, CircuitClosed a route left alone, and taken up again
      BudgetSet, BudgetWarned      a limit, and its nearing
    JournalClosed                  last

An event is never changed; a correction is another event. Tokens and money stand only on
outcomes and settlements, so that a plain sum over events is right; outcomes repeat their
attempt's routing fields, so that no sum needs a join. A field that is None is not written.

The journal adds what identifies an event (`STAMP_FIELDS`) when it appends it: `journal_id`,
`seq`, `schema_version`, `occurred_at`.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, TypeAdapter

from ledger.budgets import BudgetMode, BudgetScope
from ledger.money import MONEY_PLACES

STAMP_FIELDS = ("journal_id", "seq", "schema_version", "occurred_at")

ErrorType = Literal[
    "rate_limited",
    "overloaded",
    "server_error",
    "timeout",
    "connection_failed",
    "authentication_failed",
    "permission_denied",
    "insufficient_credits",
    "spend_limit_reached",
    "not_found",
    "invalid_request",
    "context_length_exceeded",
    "request_too_large",
    "content_filtered",
    "malformed_response",
    "stream_interrupted",
    "cancelled",
]
Billing = Literal["billed", "unbilled", "unknown"]


def plain_text(text: str, limit: int = 500) -> str:
    """Text from outside as an event may hold it: no control characters, encodable, bounded."""
    if text.isascii() and text.isprintable():
        return text[:limit]
    shown = "".join(char if char.isprintable() else " " for char in text[: limit * 2])
    return shown.encode("utf-8", "replace").decode("utf-8")[:limit]


def _fixed_point(amount: Decimal) -> str:
    return format(amount, "f")


Name = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
RawJson = Annotated[str, Field(max_length=65_536)]
Count = Annotated[int, Field(ge=0, le=2**62)]
Duration = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Usd = Annotated[
    Decimal,
    Field(max_digits=18, decimal_places=MONEY_PLACES, allow_inf_nan=False),
    PlainSerializer(_fixed_point, return_type=str, when_used="json"),
]
UsdAtLeastZero = Annotated[Usd, Field(ge=0)]
Tags = Annotated[dict[Name, Text], Field(max_length=32)]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
    event_type: str  # first in a line


class JournalOpened(_Event):
    event_type: Literal["journal_opened"] = "journal_opened"
    host: Name
    pid: Count
    version: Name


class JournalClosed(_Event):
    """A journal's last word. cut_short: recovery closed it, and a disk had lost events at its end."""

    event_type: Literal["journal_closed"] = "journal_closed"
    reason: Literal["closed", "rotated", "recovered", "cut_short"] = "closed"


class _OfRequest(_Event):
    """What every event of a request repeats."""

    request_id: Name
    session_id: Name | None = None
    task: Name
    tags: Tags | None = None
    requested_tier: Name


class RequestReceived(_OfRequest):
    event_type: Literal["request_received"] = "request_received"
    max_tokens: Count
    message_count: Count
    prompt_bytes: Count
    prompt_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    tool_count: Count = 0
    streamed: bool = False
    limit_usd: UsdAtLeastZero | None = None  # budget_usd of the call


class _OfAttempt(_OfRequest):
    """What every event of an attempt repeats."""

    attempt_id: Name
    attempt_number: Annotated[int, Field(ge=1, le=10_000)]  # counted across tiers
    tier: Name
    provider: Name
    model: Name


class AttemptStarted(_OfAttempt):
    """`reserved_usd` is the most this attempt can cost; None: unpriced or unbounded."""

    event_type: Literal["attempt_started"] = "attempt_started"
    max_tokens: Count
    streamed: bool = False
    reserved_usd: UsdAtLeastZero | None = None


class _Outcome(_OfAttempt):
    """How an attempt ended: what it used, what that cost, and who says so.

    `started_at` is the attempt's `occurred_at`; money belongs to that moment.
    `list_cost_usd` is tokens × the prices beside it; None where any billed unit has no price.
    `billed_cost_usd` is what the provider reported; None where it reported nothing.
    `reserved_usd` repeats the ceiling where billing is unknown: that much is in doubt.
    """

    started_at: AwareDatetime
    streamed: bool = False
    latency_ms: Duration | None = None  # of this HTTP call, waits excluded
    first_token_ms: Duration | None = None
    http_status: Annotated[int, Field(ge=100, le=999)] | None = None
    provider_request_id: Name | None = None
    response_id: Name | None = None
    response_model: Name | None = None
    upstream_provider: Name | None = None
    service_tier: Name | None = None

    input_tokens: Count | None = None
    cache_read_tokens: Count | None = None
    cache_write_5m_tokens: Count | None = None
    cache_write_1h_tokens: Count | None = None
    output_tokens: Count | None = None
    reasoning_tokens: Count | None = None  # part of output_tokens
    web_search_requests: Count | None = None
    usage_json: RawJson | None = None
    usage_suspect: Text | None = None  # why the provider's numbers cannot all be right

    list_cost_usd: UsdAtLeastZero | None = None
    billed_cost_usd: UsdAtLeastZero | None = None
    upstream_cost_usd: UsdAtLeastZero | None = None
    reserved_usd: UsdAtLeastZero | None = None
    is_byok: bool | None = None
    price_book: Name | None = None
    input_usd_per_mtok: UsdAtLeastZero | None = None
    cache_read_usd_per_mtok: UsdAtLeastZero | None = None
    cache_write_5m_usd_per_mtok: UsdAtLeastZero | None = None
    cache_write_1h_usd_per_mtok: UsdAtLeastZero | None = None
    output_usd_per_mtok: UsdAtLeastZero | None = None
    web_search_usd_per_request: UsdAtLeastZero | None = None
    billing: Billing
    billing_rule: Name


class AttemptSucceeded(_Outcome):
    event_type: Literal["attempt_succeeded"] = "attempt_succeeded"
    stop_reason: Name


class AttemptFailed(_Outcome):
    event_type: Literal["attempt_failed"] = "attempt_failed"
    error_type: ErrorType
    error_message: Text = ""  # the provider's own words, scrubbed
    retry_after_s: Duration | None = None
    wait_s: Duration | None = None  # before the next attempt; None: there is none


class AttemptCancelled(_Outcome):
    event_type: Literal["attempt_cancelled"] = "attempt_cancelled"
    reason: Text


class AttemptAbandoned(_Outcome):
    event_type: Literal["attempt_abandoned"] = "attempt_abandoned"
    reason: Text = "the process ended before an outcome was recorded"


class AttemptSettled(_OfAttempt):
    """A later word on an attempt: `list_cost_usd` or `billed_cost_usd` is a delta, may be negative."""

    event_type: Literal["attempt_settled"] = "attempt_settled"
    started_at: AwareDatetime
    list_cost_usd: Usd | None = None
    billed_cost_usd: Usd | None = None
    billing: Billing
    billing_rule: Name
    reason: Text | None = None


class CeilingBroken(_OfAttempt):
    event_type: Literal["ceiling_broken"] = "ceiling_broken"
    reserved_usd: UsdAtLeastZero
    spent_usd: UsdAtLeastZero


class FallbackEngaged(_OfRequest):
    """`provider` and `model` are those that were left, or, with the reason circuit_open, not even asked."""

    event_type: Literal["fallback_engaged"] = "fallback_engaged"
    from_tier: Name
    to_tier: Name
    provider: Name | None = None
    model: Name | None = None
    reason: ErrorType | Literal["circuit_open"]


class _RequestEnd(_OfRequest):
    started_at: AwareDatetime  # of the request
    latency_ms: Duration | None = None  # of the whole request, waits included
    attempt_number: Annotated[int, Field(ge=0, le=10_000)]  # of the last attempt; 0: none was made


class RequestCompleted(_RequestEnd):
    event_type: Literal["request_completed"] = "request_completed"
    tier: Name  # the one that answered
    provider: Name
    model: Name
    stop_reason: Name


class RequestFailed(_RequestEnd):
    """`tier` is the last one tried."""

    event_type: Literal["request_failed"] = "request_failed"
    tier: Name
    error_type: ErrorType
    error_message: Text = ""
    reason: Name  # exhausted | given_up | deadline | circuit_open | cancelled | abandoned


class RequestDenied(_RequestEnd):
    """Refused before a byte was sent: a limit would not hold, or could not be told to hold.

    The limit, and what counted against it at that moment; `reserved_usd`: ceilings of attempts in flight.
    """

    event_type: Literal["request_denied"] = "request_denied"
    tier: Name
    provider: Name
    model: Name
    reason: Literal["budget_exceeded", "unpriced_model", "unbounded_request"]
    error_message: Text = ""
    scope: BudgetScope
    scope_id: Name | None = None
    mode: BudgetMode = "hard"
    tz: Name | None = None
    limit_usd: UsdAtLeastZero
    spent_usd: Usd
    reserved_usd: UsdAtLeastZero | None = None
    in_doubt_usd: UsdAtLeastZero
    asked_usd: UsdAtLeastZero | None = None  # None: not known, which is why


class BudgetSet(_Event):
    """`limit_usd` None: the budget is lifted. `scope_id` None: of each, where there are several.

    A budget is known by scope, scope_id and mode. `tz`: where its days and months begin; None: in UTC.
    `reason`: the file that says so, or what was said when it was set.
    """

    event_type: Literal["budget_set"] = "budget_set"
    scope: BudgetScope
    scope_id: Name | None = None
    mode: BudgetMode = "hard"
    tz: Name | None = None
    limit_usd: UsdAtLeastZero | None = None
    reason: Text | None = None


class BudgetWarned(_OfRequest):
    """An attempt takes a warn budget above its limit, or may; once, until it is below again."""

    event_type: Literal["budget_warned"] = "budget_warned"
    scope: BudgetScope
    scope_id: Name | None = None
    mode: BudgetMode = "warn"
    tz: Name | None = None
    limit_usd: UsdAtLeastZero
    spent_usd: Usd
    reserved_usd: UsdAtLeastZero | None = None
    in_doubt_usd: UsdAtLeastZero
    asked_usd: UsdAtLeastZero | None = None  # None: not known


class _Circuit(_Event):
    """Of a provider's model; `tier` is the one on whose behalf it was asked.

    `started_at` is the moment of the opening, by which its closing names it.
    """

    started_at: AwareDatetime | None = None
    tier: Name
    provider: Name
    model: Name
    reason: Text


class CircuitOpened(_Circuit):
    event_type: Literal["circuit_opened"] = "circuit_opened"
    error_type: ErrorType
    wait_s: Duration | None = None  # until the first probe


class CircuitClosed(_Circuit):
    event_type: Literal["circuit_closed"] = "circuit_closed"


Event = Annotated[
    Union[
        JournalOpened,
        RequestReceived,
        AttemptStarted,
        AttemptSucceeded,
        AttemptFailed,
        AttemptCancelled,
        AttemptAbandoned,
        AttemptSettled,
        FallbackEngaged,
        CircuitOpened,
        CircuitClosed,
        RequestCompleted,
        RequestFailed,
        RequestDenied,
        BudgetSet,
        BudgetWarned,
        CeilingBroken,
        JournalClosed,
    ],
    Field(discriminator="event_type"),
]
EVENT_CLASSES: tuple[type[BaseModel], ...] = get_args(get_args(Event)[0])

OUTCOMES = frozenset({"attempt_succeeded", "attempt_failed", "attempt_cancelled", "attempt_abandoned"})
REQUEST_ENDS = frozenset({"request_completed", "request_failed", "request_denied"})


def build_models() -> None:
    """Build all that is not built yet: the first use would do it under a lock that a fork may find taken."""
    for event_class in EVENT_CLASSES:
        if not event_class.__pydantic_complete__:
            event_class.model_rebuild()


@cache
def _event_adapter() -> TypeAdapter[Event]:
    return TypeAdapter(Event)


def event_of(recorded: dict[str, Any]) -> Event:
    """The event in a journal's line or a segment's row: identity and absent fields are left out.

    Raises pydantic.ValidationError for a row that is not an event of this schema version.
    """
    facts = {
        name: value for name, value in recorded.items() if value is not None and name not in STAMP_FIELDS
    }
    return _event_adapter().validate_python(facts)


def rfc3339(moment: datetime) -> str:
    """A moment in UTC as journals write it: microseconds always, Z at the end."""
    return moment.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
