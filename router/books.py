"""What goes onto the books of a request: its events, made from what happened. Pure.

Request    who asks for what; repeated by every event
Attempt    one HTTP call on its behalf; repeated by its outcome
Cost       what an answer cost, by the provider's word and by the price book
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ValidationError

from ledger.billing import billing_by
from ledger.errors import BudgetError, BudgetExceeded, UnpricedModel
from ledger.events import (
    AttemptCancelled,
    AttemptFailed,
    AttemptStarted,
    AttemptSucceeded,
    CeilingBroken,
    ErrorType,
    FallbackEngaged,
    RequestCompleted,
    RequestDenied,
    RequestFailed,
    RequestReceived,
    plain_text,
)
from ledger.money import total, usd
from ledger.prices import ModelPrices, PriceBook, list_cost_usd
from router.catalog import Route
from router.errors import InvalidRequest, ProviderError
from router.providers.client import Call
from router.providers.wire import Answer, Pass


class Request(NamedTuple):
    """What every event of a request repeats."""

    request_id: str
    session_id: str | None
    task: str
    tags: Mapping[str, str] | None
    requested_tier: str
    budget_usd: Decimal | None = None

    def facts(self) -> dict[str, Any]:
        return {
            "request_id": self.request_id,
            "session_id": self.session_id,
            "task": self.task,
            "tags": self.tags,
            "requested_tier": self.requested_tier,
        }


class Attempt(NamedTuple):
    """What the outcome of an attempt repeats. `prices` is None where the model has none."""

    request: Request
    attempt_id: str
    number: int
    route: Route
    max_tokens: int
    ceiling_usd: Decimal | None
    prices: ModelPrices | None
    price_book: str
    streamed: bool = False

    def facts(self) -> dict[str, Any]:
        return {
            **self.request.facts(),
            "attempt_id": self.attempt_id,
            "attempt_number": self.number,
            "tier": self.route.tier,
            "provider": self.route.provider,
            "model": self.route.model,
        }


class Cost(NamedTuple):
    """What one answer cost in USD; None: not known."""

    billed_usd: Decimal | None
    list_usd: Decimal | None

    @property
    def usd(self) -> Decimal | None:
        """As the provider billed it, else by the price book."""
        return self.list_usd if self.billed_usd is None else self.billed_usd


UNKNOWN = Cost(None, None)


def cost_of_failure(
    failure: ProviderError, route: Route, prices: ModelPrices | None, book: PriceBook, at: datetime
) -> Cost:
    """What a failed attempt certainly cost, by what it reported; of what is in doubt nothing is certain."""
    if failure.partial is None or billing_by(failure.billing_rule) != "billed":
        return UNKNOWN
    return cost_of(failure.partial, route, prices, book, at)


def cost_of(answer: Answer, route: Route, prices: ModelPrices | None, book: PriceBook, at: datetime) -> Cost:
    """What an answer cost: each pass at the price of the model that made it.

    No list cost without a price for all of it, nor from numbers that cannot all be right.
    """
    listed = _list_cost(answer, route, prices, book, at) if answer.usage_known else None
    return Cost(answer.cost_usd, listed)


def _list_cost(
    answer: Answer, route: Route, prices: ModelPrices | None, book: PriceBook, at: datetime
) -> Decimal | None:
    parts = []
    for model, usage in _passes(answer):
        of_model = prices if model is None else book.at(route.provider, model, at)
        if of_model is None:
            return None
        part = list_cost_usd(of_model.units(usage.prompt_tokens, answer.service_tier), usage)
        if part is None:
            return None
        parts.append(part)
    return usd(total(parts))


def _passes(answer: Answer) -> tuple[Pass, ...]:
    return answer.passes or (Pass(None, answer.usage),)


# Events ---------------------------------------------------------------------------------------


def received(request: Request, prompt: bytes, prompt_hash: str, call: Call) -> RequestReceived:
    """Raises InvalidRequest for a session id, task or tag that the ledger cannot hold."""
    try:
        return RequestReceived(
            **request.facts(),
            max_tokens=call.max_tokens,
            message_count=len(call.messages),
            prompt_bytes=len(prompt),
            prompt_hash=prompt_hash,
            tool_count=len(call.tools or ()),
            streamed=call.stream,
            limit_usd=request.budget_usd,
        )
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part != "[key]") or "the request"
    given = plain_text(repr(first["input"]), 60)
    return InvalidRequest(f"{where} cannot be {given}: {_EXPECTED.get(where.split('.')[0], first['msg'])}")


_NAME = "use 1 to 256 characters, none of them a control character"
_EXPECTED = {
    "session_id": _NAME,
    "task": _NAME,
    "tags": "use at most 32 names of 1 to 256 characters with texts of at most 500, no control characters",
}


def started(attempt: Attempt) -> AttemptStarted:
    return AttemptStarted(
        **attempt.facts(),
        streamed=attempt.streamed,
        max_tokens=attempt.max_tokens,
        reserved_usd=attempt.ceiling_usd,
    )


class Timing(NamedTuple):
    """When an attempt began, how long it took without waits, and how long its first token, if it came."""

    started_at: datetime
    latency_ms: float
    first_token_ms: float | None = None


def succeeded(attempt: Attempt, answer: Answer, cost: Cost, timing: Timing) -> AttemptSucceeded:
    return AttemptSucceeded(
        **attempt.facts(),
        **timing._asdict(),
        **_usage(answer, attempt, cost),
        **_verdict("answered", attempt, cost),
        streamed=attempt.streamed,
        stop_reason=answer.stop_reason,
    )


def failed(
    attempt: Attempt, failure: ProviderError, cost: Cost, timing: Timing, wait_s: float | None
) -> AttemptFailed:
    usage = _usage(failure.partial, attempt, cost) if failure.partial else {}
    told = {"http_status": failure.http_status, "provider_request_id": failure.provider_request_id}
    return AttemptFailed(
        **attempt.facts(),
        **{**usage, **told},
        **timing._asdict(),
        **_verdict(failure.billing_rule, attempt, cost),
        streamed=attempt.streamed,
        error_type=failure.error_type,
        error_message=plain_text(str(failure)),
        retry_after_s=failure.retry_after_s,
        wait_s=wait_s,
    )


def cancelled(attempt: Attempt, partial: Answer | None, timing: Timing, reason: str) -> AttemptCancelled:
    """`partial` is what came of the answer by then; what it cost is not known."""
    return AttemptCancelled(
        **attempt.facts(),
        **timing._asdict(),
        **(_usage(partial, attempt, UNKNOWN) if partial else {}),
        **_verdict("no_answer", attempt),
        streamed=attempt.streamed,
        reason=plain_text(reason),
    )


def _verdict(rule: str, attempt: Attempt, cost: Cost | None = None) -> dict[str, Any]:
    """Who pays, by which rule. The ceiling stays beside what is in doubt, and what has no price."""
    billing = billing_by(rule)
    unpriced = billing == "billed" and cost is not None and cost.usd is None
    in_doubt = attempt.ceiling_usd if billing == "unknown" or unpriced else None
    return {"billing": billing, "billing_rule": rule, "reserved_usd": in_doubt}


def _usage(answer: Answer, attempt: Attempt, cost: Cost) -> dict[str, Any]:
    return {
        "http_status": answer.http_status,
        "provider_request_id": answer.provider_request_id,
        "response_id": answer.id,
        "response_model": answer.model,
        "upstream_provider": answer.upstream_provider,
        "service_tier": answer.service_tier,
        **answer.usage._asdict(),
        "usage_json": answer.usage_json,
        "usage_suspect": answer.usage_suspect,
        "list_cost_usd": cost.list_usd,
        "billed_cost_usd": cost.billed_usd,
        "upstream_cost_usd": answer.upstream_cost_usd,
        "is_byok": answer.is_byok,
        "price_book": attempt.price_book,
        **_prices_used(answer, attempt.prices),
    }


def _prices_used(answer: Answer, prices: ModelPrices | None) -> dict[str, Decimal | None]:
    """The unit prices of an answer; none where its passes have several."""
    if prices is None or any(model is not None for model, _ in answer.passes):
        return {}
    used = {prices.units(usage.prompt_tokens, answer.service_tier) for _, usage in _passes(answer)}
    return used.pop().as_event_fields() if len(used) == 1 else {}


def ceiling_broken(attempt: Attempt, cost: Cost) -> list[BaseModel]:
    """The event that says a ceiling was too low; none where it held, or there was none."""
    if attempt.ceiling_usd is None or cost.usd is None or cost.usd <= attempt.ceiling_usd:
        return []
    return [CeilingBroken(**attempt.facts(), reserved_usd=attempt.ceiling_usd, spent_usd=cost.usd)]


def fell_back(
    request: Request, from_route: Route, to_route: Route, reason: ErrorType | Literal["circuit_open"]
) -> FallbackEngaged:
    return FallbackEngaged(
        **request.facts(),
        from_tier=from_route.tier,
        to_tier=to_route.tier,
        provider=from_route.provider,
        model=from_route.model,
        reason=reason,
    )


def completed(attempt: Attempt, answer: Answer, started_at: datetime, latency_ms: float) -> RequestCompleted:
    return RequestCompleted(
        **attempt.request.facts(),
        started_at=started_at,
        latency_ms=latency_ms,
        attempt_number=attempt.number,
        tier=attempt.route.tier,
        provider=attempt.route.provider,
        model=attempt.route.model,
        stop_reason=answer.stop_reason,
    )


def request_failed(
    attempt: Attempt, started_at: datetime, latency_ms: float, failure: ProviderError, reason: str
) -> RequestFailed:
    return RequestFailed(
        **attempt.request.facts(),
        started_at=started_at,
        latency_ms=latency_ms,
        attempt_number=attempt.number,
        tier=attempt.route.tier,
        error_type=failure.error_type,
        error_message=plain_text(str(failure)),
        reason=reason,
    )


def not_asked(
    request: Request,
    route: Route,
    attempts_made: int,
    started_at: datetime,
    latency_ms: float,
    error_type: ErrorType,
    why: str,
) -> RequestFailed:
    """The end of a request whose last tier is left alone. `error_type`: of the failure that is the cause."""
    return RequestFailed(
        **request.facts(),
        started_at=started_at,
        latency_ms=latency_ms,
        attempt_number=attempts_made,
        tier=route.tier,
        error_type=error_type,
        error_message=plain_text(why),
        reason="circuit_open",
    )


def request_cancelled(
    attempt: Attempt, started_at: datetime, latency_ms: float, reason: str
) -> RequestFailed:
    return RequestFailed(
        **attempt.request.facts(),
        started_at=started_at,
        latency_ms=latency_ms,
        attempt_number=attempt.number,
        tier=attempt.route.tier,
        error_type="cancelled",
        error_message=plain_text(reason),
        reason="cancelled",
    )


def denied(
    request: Request,
    route: Route,
    attempts_made: int,
    started_at: datetime,
    latency_ms: float,
    refusal: BudgetError,
) -> RequestDenied:
    return RequestDenied(
        **request.facts(),
        started_at=started_at,
        latency_ms=latency_ms,
        attempt_number=attempts_made,
        tier=route.tier,
        provider=route.provider,
        model=route.model,
        reason=_reason_of(refusal),
        error_message=plain_text(str(refusal)),
        **refusal.facts(),
    )


def _reason_of(refusal: BudgetError) -> Literal["budget_exceeded", "unpriced_model", "unbounded_request"]:
    if isinstance(refusal, BudgetExceeded):
        return "budget_exceeded"
    return "unpriced_model" if isinstance(refusal, UnpricedModel) else "unbounded_request"
