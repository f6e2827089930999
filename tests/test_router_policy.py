"""The failure table of the design, row by row, and how long a wait is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity.wait import wait_fixed

from ledger.events import ErrorType
from router.errors import ProviderError
from router.policy import (
    FAILURES,
    FallBack,
    GiveUp,
    Retry,
    Step,
    next_step,
    retryable,
    wait_before_retry,
    wait_told,
)

AGAIN, NEXT, STOP = Retry(4.0), FallBack(), GiveUp("given_up")

# what failed, what follows on the same tier, what follows when its retries are spent
TABLE: dict[ErrorType, tuple[Step, Step]] = {
    "rate_limited": (AGAIN, NEXT),
    "overloaded": (AGAIN, NEXT),
    "server_error": (AGAIN, NEXT),
    "connection_failed": (AGAIN, NEXT),
    "malformed_response": (AGAIN, NEXT),
    "spend_limit_reached": (NEXT, NEXT),
    "insufficient_credits": (NEXT, NEXT),
    "timeout": (NEXT, NEXT),
    "stream_interrupted": (NEXT, NEXT),
    "context_length_exceeded": (NEXT, NEXT),
    "authentication_failed": (NEXT, NEXT),
    "permission_denied": (NEXT, NEXT),
    "not_found": (NEXT, NEXT),
    "content_filtered": (STOP, STOP),
    "invalid_request": (STOP, STOP),
    "request_too_large": (STOP, STOP),
    "cancelled": (STOP, STOP),
}


def failure(error_type: ErrorType, **more: Any) -> ProviderError:
    facts = {"retryable": FAILURES[error_type].same_tier, "billing_rule": "error_status", **more}
    return ProviderError("it failed", error_type=error_type, provider="openrouter", **facts)


def step(error: ProviderError, **more: Any) -> Step:
    given_facts = {"attempts_on_tier": 1, "max_retries": 2, "left_s": 100.0, "has_fallback": True}
    return next_step(error, backoff=wait_fixed(4), **{**given_facts, **more})


def test_the_table_has_a_row_for_every_kind_of_failure() -> None:
    assert set(TABLE) == set(FAILURES) == set(get_args(ErrorType))


@pytest.mark.parametrize("error_type", TABLE)
def test_each_failure_is_answered_as_the_table_says(error_type: ErrorType) -> None:
    first, spent = TABLE[error_type]

    assert step(failure(error_type), attempts_on_tier=1) == first
    assert step(failure(error_type), attempts_on_tier=3) == spent


@pytest.mark.parametrize("error_type", [kind for kind, row in TABLE.items() if row[1] == NEXT])
def test_without_a_fallback_a_route_is_exhausted(error_type: ErrorType) -> None:
    assert step(failure(error_type), attempts_on_tier=3, has_fallback=False) == GiveUp("exhausted")


def test_a_wait_the_provider_asks_for_is_kept_to_the_second() -> None:
    assert step(failure("rate_limited", retry_after_s=65.0)) == Retry(65.0)
    assert step(failure("overloaded", retry_after_s=0.25)) == Retry(0.25)


def test_a_wait_that_does_not_fit_the_deadline_is_not_begun() -> None:
    asked_to_wait = failure("rate_limited", retry_after_s=100.0)

    assert step(asked_to_wait, left_s=100.0) == FallBack()
    assert step(asked_to_wait, left_s=100.0, has_fallback=False) == GiveUp("deadline")


def test_after_the_deadline_nothing_is_tried() -> None:
    assert step(failure("timeout"), left_s=0.0) == GiveUp("deadline")
    assert step(failure("server_error"), left_s=-1.0) == GiveUp("deadline")


def test_max_retries_counts_further_attempts() -> None:
    assert step(failure("server_error"), max_retries=0) == FallBack()
    assert step(failure("server_error"), max_retries=5, attempts_on_tier=5) == AGAIN
    assert step(failure("server_error"), max_retries=5, attempts_on_tier=6) == FallBack()


def test_x_should_retry_wins_both_ways() -> None:
    assert retryable("overloaded", {"x-should-retry": "false"}) is False
    assert retryable("invalid_request", {"x-should-retry": "true"}) is True
    assert retryable("overloaded", {"x-should-retry": "perhaps"}) is True

    assert retryable("spend_limit_reached", {"x-should-retry": "true"}) is False  # no waiting lifts it

    assert step(failure("overloaded", retryable=False)) == FallBack()
    assert step(failure("invalid_request", retryable=True)) == AGAIN


def test_the_backoff_grows_from_two_seconds_to_thirty_with_jitter() -> None:
    waits = [wait_before_retry(failure("server_error"), attempt) for attempt in range(1, 9)]

    for attempt, wait_s in enumerate(waits, start=1):
        assert min(2**attempt, 30) <= wait_s <= min(2**attempt + 1, 30)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": "0.75"}, 0.75),
        ({"retry-after-ms": "20000", "retry-after": "7"}, 20.0),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": "Sun, 22 Nov 2026 10:00:30 GMT"}, 30.0),
        ({"retry-after": "Sun, 22 Nov 2026 09:00:00 GMT"}, 0.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_its_three_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert wait_told(headers, now=datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)) == seconds


@given(st.text(max_size=40))
def test_no_header_breaks_the_reading(text: str) -> None:
    told = wait_told({"retry-after": text, "retry-after-ms": text})

    assert told is None or told >= 0
