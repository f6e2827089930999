"""What happens after a failure. Pure: a failure and what is left in, a decision out.

    FAILURES                 the table: per kind of failure, may the same tier, may another one
    next_step(failure, …) -> Retry(wait_s) | FallBack | GiveUp(reason)
    wait_told(headers)       how long the provider asks to wait

The waits are tenacity's: exponential from 2 s to 30 s with up to 1 s of jitter, unless the
provider says how long.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

from tenacity import RetryCallState, Retrying
from tenacity.retry import retry_if_exception
from tenacity.stop import stop_after_attempt, stop_before_delay
from tenacity.wait import wait_base, wait_exponential_jitter

from router.errors import ProviderError

if TYPE_CHECKING:
    from ledger.events import ErrorType

DEADLINE_S = 300.0  # for a whole call, where it names none
BACKOFF: wait_base = wait_exponential_jitter(multiplier=2, max=30, jitter=1)


class Rule(NamedTuple):
    """Whether the same tier is asked again, and whether another one may be asked instead.

    `route`: what the failure says of the model, for its circuit. down: it does not serve, and enough of
    these in a row open the circuit. up: it serves, and the request was at fault. unclear: neither; a
    provider that limits us is there, and says itself when to come back.
    """

    same_tier: bool
    next_tier: bool
    route: Literal["up", "down", "unclear"]


FAILURES: Mapping[ErrorType, Rule] = {
    "rate_limited": Rule(same_tier=True, next_tier=True, route="unclear"),
    "overloaded": Rule(same_tier=True, next_tier=True, route="down"),
    "server_error": Rule(same_tier=True, next_tier=True, route="down"),
    "connection_failed": Rule(same_tier=True, next_tier=True, route="down"),
    "malformed_response": Rule(same_tier=True, next_tier=True, route="down"),
    # It may have been billed, and a silent route is not asked twice.
    "timeout": Rule(same_tier=False, next_tier=True, route="down"),
    "stream_interrupted": Rule(same_tier=False, next_tier=True, route="down"),
    # This route's fault.
    "spend_limit_reached": Rule(same_tier=False, next_tier=True, route="unclear"),
    "insufficient_credits": Rule(same_tier=False, next_tier=True, route="unclear"),
    "context_length_exceeded": Rule(same_tier=False, next_tier=True, route="up"),
    "authentication_failed": Rule(same_tier=False, next_tier=True, route="unclear"),
    "permission_denied": Rule(same_tier=False, next_tier=True, route="unclear"),
    "not_found": Rule(same_tier=False, next_tier=True, route="unclear"),
    # The caller's.
    "content_filtered": Rule(same_tier=False, next_tier=False, route="up"),
    "invalid_request": Rule(same_tier=False, next_tier=False, route="up"),
    "request_too_large": Rule(same_tier=False, next_tier=False, route="up"),
    "cancelled": Rule(same_tier=False, next_tier=False, route="unclear"),
}


class Retry(NamedTuple):
    """Ask the same tier again after `wait_s` seconds."""

    wait_s: float


class FallBack(NamedTuple):
    """Ask the next tier, at once."""


class GiveUp(NamedTuple):
    """Nothing more is tried. given_up: trying on would not help; exhausted: nothing is left to
    try; deadline: there is no time left to try it; circuit_open: its model is left alone for a while."""

    reason: Literal["given_up", "exhausted", "deadline", "circuit_open"]


Step = Retry | FallBack | GiveUp


def next_step(
    failure: ProviderError,
    *,
    attempts_on_tier: int,
    max_retries: int,
    left_s: float,
    has_fallback: bool,
    left_alone: bool = False,
    backoff: wait_base = BACKOFF,
) -> Step:
    """What to do after a failure.

    `attempts_on_tier` counts those made on this tier, the failed one included; `left_s` is what
    remains of the deadline. A wait that does not fit into it is not begun. `left_alone`: the model's circuit
    is open, so that no retry is made.
    """
    wait_s = wait_before_retry(failure, attempts_on_tier, backoff)
    has_retries = failure.retryable and attempts_on_tier <= max_retries
    may_retry = has_retries and not left_alone
    if may_retry and wait_s < left_s:
        return Retry(wait_s)
    if not FAILURES[failure.error_type].next_tier:
        return GiveUp("given_up")
    if left_s <= 0 or (may_retry and not has_fallback):
        return GiveUp("deadline")
    if has_fallback:
        return FallBack()
    return GiveUp("circuit_open" if has_retries and left_alone else "exhausted")


def wait_before_retry(failure: ProviderError, attempts_made: int, backoff: wait_base = BACKOFF) -> float:
    """Seconds to wait: what the provider asks for, else tenacity's growing wait."""
    if failure.retry_after_s is not None:
        return failure.retry_after_s
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempts_made
    return float(backoff(state))


def retrying(
    max_retries: int,
    *,
    deadline_s: float = DEADLINE_S,
    backoff: wait_base = BACKOFF,
    sleep: Callable[[float], None] = time.sleep,
) -> Retrying:
    """The same policy as tenacity's own loop, for a client that is used without a router.

    A wait that would end after deadline_s is not begun.
    """

    def wait_s(state: RetryCallState) -> float:
        failure = _failure_of(state)
        return wait_before_retry(failure, state.attempt_number, backoff) if failure else 0.0

    return Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, ProviderError) and error.retryable),
        stop=stop_after_attempt(max_retries + 1) | stop_before_delay(deadline_s),
        wait=wait_s,
        sleep=sleep,
        reraise=True,
    )


def _failure_of(state: RetryCallState) -> ProviderError | None:
    error = state.outcome.exception() if state.outcome else None
    return error if isinstance(error, ProviderError) else None


def retryable(error_type: ErrorType, headers: Mapping[str, str]) -> bool:
    """Whether the same model may be asked again; the provider's own x-should-retry wins.

    But not over the account's own limit, which no waiting lifts.
    """
    if error_type == "spend_limit_reached":
        return False
    told = {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())
    return FAILURES[error_type].same_tier if told is None else told


def wait_told(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds the provider asks to wait, from retry-after-ms, else retry-after; None: it does not say.

    retry-after is a number of seconds, perhaps fractional, or an HTTP date; a date that is past
    asks for no wait. What is neither, or negative, says nothing.

    >>> wait_told({"retry-after-ms": "1500", "retry-after": "2"})
    1.5
    """
    in_ms = _seconds(headers.get("retry-after-ms", ""))
    if in_ms is not None:
        return in_ms / 1000
    told = headers.get("retry-after", "")
    in_s = _seconds(told)
    return in_s if in_s is not None else _seconds_until(told, now or datetime.now(UTC))


def _seconds(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and 0 <= number <= 1e9 else None


def _seconds_until(http_date: str, now: datetime) -> float | None:
    try:
        moment = parsedate_to_datetime(http_date)
    except (ValueError, TypeError, OverflowError):
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max((aware - now).total_seconds(), 0.0)
