"""What can go wrong on the way to a model.

BughiveError                 carries request_id where there is one
  RouterError
    InvalidRequest           what was asked cannot be sent; raised before anything is recorded
      UnknownTask            names the nearest tasks
      UnknownTier            names the nearest tiers
    MissingKey               names the variable to set
    RouteExhausted           nothing is left to try; from the last ProviderError
  ProviderError              one attempt failed: why, and whether to try again
  LedgerError
    UnrecordedAnswer         an answer that was paid for and is not on the books: see .response
  BudgetError                BudgetExceeded, UnpricedModel, UnboundedRequest: nothing was sent
  SettingsError
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ledger.errors import (
    BudgetError,
    BudgetExceeded,
    BughiveError,
    LedgerError,
    SettingsError,
    UnboundedRequest,
    UnpricedModel,
    nearest,
)

if TYPE_CHECKING:
    from ledger.events import ErrorType
    from router.providers.wire import Answer
    from router.types import RouteResponse

__all__ = [
    "BudgetError",
    "BudgetExceeded",
    "BughiveError",
    "FailedAttempt",
    "InvalidRequest",
    "LedgerError",
    "MissingKey",
    "ProviderError",
    "RouteExhausted",
    "RouterError",
    "SettingsError",
    "UnboundedRequest",
    "UnknownTask",
    "UnknownTier",
    "UnpricedModel",
    "UnrecordedAnswer",
]


class RouterError(BughiveError):
    """The router cannot do what was asked."""


class InvalidRequest(RouterError):
    """A request that cannot be sent as it is; nothing was sent or recorded."""


class UnknownTask(InvalidRequest):
    """A task that TASK_MODEL_MAP does not name."""

    def __init__(self, task: str, known: Sequence[str]) -> None:
        hint = nearest(task, known)
        super().__init__(f"no tier is set for task {task!r}{hint or '; add it to TASK_MODEL_MAP'}")


class UnknownTier(InvalidRequest):
    """A tier for which the catalog has no model."""

    def __init__(self, tier: str, known: Sequence[str]) -> None:
        hint = nearest(tier.upper(), known)
        super().__init__(f"no model is set for tier {tier!r}{hint or '; known are ' + ', '.join(known)}")


class MissingKey(RouterError):
    """A provider's key that is needed now and cannot be used as it is; `variable` is the one to set."""

    def __init__(self, message: str, *, variable: str) -> None:
        super().__init__(message)
        self.variable = variable


class ProviderError(BughiveError):
    """One attempt that gave no answer.

    `retryable`: the same model may be asked again. `retry_after_s`: how long the provider asks
    to wait, None where it does not say. `http_status` is None where no status arrived.
    `billing_rule` is how the attempt is taken on the books; `partial` is what a failed answer
    nevertheless reported of its use.
    """

    def __init__(
        self,
        message: str,
        *,
        error_type: ErrorType,
        provider: str,
        retryable: bool,
        billing_rule: str,
        http_status: int | None = None,
        retry_after_s: float | None = None,
        provider_request_id: str | None = None,
        partial: Answer | None = None,
    ) -> None:
        super().__init__(message)
        self.error_type: ErrorType = error_type
        self.provider = provider
        self.retryable = retryable
        self.billing_rule = billing_rule
        self.http_status = http_status
        self.retry_after_s = retry_after_s
        self.provider_request_id = provider_request_id
        self.partial = partial


class FailedAttempt(NamedTuple):
    """One line of the story RouteExhausted tells."""

    attempt_id: str
    tier: str
    provider: str
    model: str
    error: ProviderError


class RouteExhausted(RouterError):
    """No answer, and nothing left to try; `attempts` in the order they were made."""

    def __init__(
        self, message: str, *, request_id: str, attempts: tuple[FailedAttempt, ...], reason: str
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.attempts = attempts
        self.reason = reason


class UnrecordedAnswer(LedgerError):
    """The answer came and was paid for, but the ledger could not record it; it is in `response`."""

    def __init__(self, message: str, *, request_id: str, response: RouteResponse) -> None:
        super().__init__(message, request_id=request_id)
        self.response = response
