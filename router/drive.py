"""One request on its way to an answer: attempts, waits, fallback, each on the books as it happens.

    begin(received, started) ─▶ HTTP ─▶ append(succeeded, completed)                the answer
                                  └───▶ append(failed(wait)) ─ wait ─ append(started) ─▶ HTTP …
                                  └───▶ append(failed, fell_back) ─── append(started) ─▶ HTTP …
                                  └───▶ append(failed, request_failed)              RouteExhausted
    its model is left alone ─── fell_back, with the next append; or append(request_failed): RouteExhausted

What is to be done is policy's decision, what is written down books's; this does it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Literal, NamedTuple

import uuid_utils
from pydantic import BaseModel
from tenacity.wait import wait_base

from ledger.billing import billing_by
from ledger.budgets import NO_BUDGETS, Hold, Limit
from ledger.errors import BudgetError, LedgerError, SettingsError
from ledger.events import ErrorType, RequestReceived
from ledger.money import total
from router import books
from router.books import Attempt, Cost, Request, Timing
from router.catalog import Route
from router.errors import (
    FailedAttempt,
    InvalidRequest,
    MissingKey,
    ProviderError,
    RouteExhausted,
    UnrecordedAnswer,
)
from router.gate import Gate
from router.policy import FallBack, GiveUp, Retry, next_step
from router.prepare import Prepared, Target, prepare
from router.providers.wire import Answer, usage_report
from router.streams import CallerLeft, Items, Restarted, StreamItem
from router.types import RouteResponse

if TYPE_CHECKING:
    from ledger.circuits import Circuit
    from ledger.ledger import Ledger
    from ledger.request_log import RequestLog
    from ledger.settings import CircuitSetting
    from router.providers.streaming import Reading

__all__ = ["Drive", "Pace", "Request", "Target", "new_id"]

OnLedgerError = Literal["raise", "warn"]

_log = logging.getLogger("router")


_LEAVINGS: Mapping[type[BaseException], str] = {
    KeyboardInterrupt: "interrupted by the caller",
    GeneratorExit: "the caller closed the stream before its end",
}


def new_id() -> str:
    """A UUIDv7 as 32 hex characters: ids sort by the time they were made."""
    return uuid_utils.uuid7().hex


class Pace(NamedTuple):
    """How long to go on, and how to wait. Sleep and clock are real ones but in tests."""

    deadline_s: float  # the whole call, waits included
    backoff: wait_base
    sleep: Callable[[float], None]
    clock: Callable[[], float]


class Drive:
    """Drives one request through its targets; used once.

    Raises InvalidRequest, before anything is recorded, for a request that cannot be sent or booked.
    """

    def __init__(
        self,
        ledger: Ledger,
        request: Request,
        targets: Sequence[Target],
        pace: Pace,
        on_ledger_error: OnLedgerError = "raise",
        circuit: CircuitSetting | None = None,
    ) -> None:
        self._ledger = ledger
        self._request = request
        self._targets = list(targets)
        self._pace = pace
        self._must_record = on_ledger_error == "raise"
        self._gate = Gate(ledger, request.request_id, circuit)
        self._moves: list[BaseModel] = []  # past tiers left alone, for the next append
        self._began = pace.clock()
        self._prepared: dict[str, Prepared] = {}  # by tier
        self._budgets = NO_BUDGETS  # those in force, as of the last look
        self._log: RequestLog | None = None
        self._attempt: Attempt | None = None  # the last one
        self._in_flight = False
        self._body = b""  # what it sends
        self._started_at = ledger.now()  # of the last attempt
        self._sent = 0.0
        self._reading: Reading | None = None  # of the last attempt, where it is streamed
        self._first_token_ms: float | None = None
        self._is_shown = False  # a part of a streamed answer has reached the caller
        self._failures: list[FailedAttempt] = []
        self._cost: Decimal | None = Decimal(0)
        self._received = self._receive(self._targets[0])

    def answer(self) -> tuple[Answer, RouteResponse]:
        """Try until there is an answer, or nothing is left to try. Gives it as read, and as returned.

        Raises RouteExhausted, BudgetError, LedgerError; whatever else comes, such as Ctrl-C, is
        recorded as the caller's leaving and goes on its way.
        """
        items = self.stream()
        while True:  # what is not streamed has no items
            try:
                next(items)
            except StopIteration as end:
                answered: tuple[Answer, RouteResponse] = end.value
                return answered

    def stream(self) -> Items[tuple[Answer, RouteResponse]]:
        """The same, with the items of a streamed answer as they come.

        Where it is closed before its end, or something is thrown into it, the caller has left.
        """
        try:
            return (yield from self._answer_of(self._targets.pop(0)))
        except BaseException as leaving:
            self._leave(leaving)
            raise

    def _answer_of(self, target: Target) -> Items[tuple[Answer, RouteResponse]]:
        on_tier = 0
        while True:
            if circuit := self._gate.shut(target, self._opened_log()):
                target = self._pass_by(target, circuit)
                on_tier = 0
                continue
            attempt = self._start(target)
            on_tier += 1
            try:
                answer = (yield from self._read(target)) if attempt.streamed else self._send(target)
            except ProviderError as failure:
                match self._next(failure, target, on_tier):
                    case Retry(wait_s=wait_s):
                        self._record_failure(attempt, failure, wait_s=wait_s)
                        self._pace.sleep(wait_s)
                    case FallBack():
                        target = self._fall_back(attempt, failure)
                        on_tier = 0
                    case GiveUp(reason=reason):
                        raise self._give_up(attempt, failure, reason) from failure
            else:
                response = self._finish(attempt, answer)
                self._gate.answered(self._started_at)
                return answer, response

    def _pass_by(self, target: Target, circuit: Circuit) -> Target:
        """The tier to ask instead of one that is left alone. Raises RouteExhausted where there is none."""
        if not self._has_usable_fallback():
            last = self._failures[-1].error if self._failures else None
            raise self._give_up_unasked(target, circuit) from last
        onward = self._targets.pop(0)
        self._moves.append(books.fell_back(self._request, target.route, onward.route, "circuit_open"))
        _log.info("falling back from %s to %s: its circuit is open", target.route.tier, onward.route.tier)
        return onward

    def _give_up_unasked(self, target: Target, circuit: Circuit) -> RouteExhausted:
        route, log = target.route, self._opened_log()
        why = f"{route.model} ({route.tier}) is {self._gate.why_shut(circuit)}"
        error_type: ErrorType = circuit.error_type or "server_error"  # type: ignore[assignment]
        end = books.not_asked(
            self._request,
            route,
            self._attempt.number if self._attempt else 0,
            log.started_at if log.begun else self._ledger.now(),
            self._elapsed_ms(self._began),
            error_type,
            why,
        )
        self._log = None
        log.append(*self._take_moves(), end)
        return RouteExhausted(
            f"{self._request.task} got no answer: {why}",
            request_id=self._request.request_id,
            attempts=tuple(self._failures),
            reason="circuit_open",
        )

    def _take_moves(self) -> list[BaseModel]:
        moves, self._moves = self._moves, []
        return moves

    # an attempt

    def _start(self, target: Target) -> Attempt:
        """Put an attempt on the books; when this returns it may be sent."""
        prepared = self._prepared_for(target)
        self._opened_log()
        attempt = Attempt(
            self._request,
            new_id(),
            self._attempt.number + 1 if self._attempt else 1,
            target.route,
            target.call.max_tokens,
            prepared.ceiling if isinstance(prepared.ceiling, Decimal) else None,
            prepared.prices,
            self._ledger.prices.hash,
            target.call.stream,
        )
        log, started = self._open_log(), books.started(attempt)
        try:
            self._reserve(attempt, prepared.ceiling)
            self._log = None  # where this cannot be recorded, the ledger ends the request
            started_at = log.append(*self._moves, started)
        except BudgetError as refusal:
            refusal.request_id = self._request.request_id
            self._record_denial(log, attempt, refusal)
            raise
        self._attempt, self._in_flight, self._body = attempt, True, prepared.body
        self._reading, self._first_token_ms = None, None  # nothing of this one has come
        self._started_at, self._log, self._moves = started_at, log, []
        return attempt

    def _receive(self, first: Target) -> RequestReceived:
        """The request as it goes on the books. Raises InvalidRequest for what they cannot hold."""
        prepared = self._prepared_for(first)
        return books.received(
            self._request,
            prepared.prompt,
            self._ledger.prompt_hash(prepared.prompt),
            first.call,
        )

    def _send(self, target: Target) -> Answer:
        self._sent = self._pace.clock()
        return target.client.send(self._body, self._timeout_s(target))

    def _read(self, target: Target) -> Generator[StreamItem, None, Answer]:
        """The items of one attempt, before them the word that earlier ones are void."""
        self._sent = self._pace.clock()
        reading = self._reading = target.client.read(self._body, self._timeout_s(target), target.limits)
        items = iter(reading)
        first = next(items, None)
        if self._is_shown:
            reason = self._failures[-1].error.error_type
            yield Restarted(reason, target.route.tier, target.route.model)
            self._is_shown = False
        if first is not None:
            self._first_token_ms = self._elapsed_ms(self._sent)
            self._is_shown = True
            yield first
            yield from items
        return reading.answer

    def _timeout_s(self, target: Target) -> float:
        return min(target.timeout_s, max(self._left_s(), 0.001))

    def _next(self, failure: ProviderError, target: Target, on_tier: int) -> Retry | FallBack | GiveUp:
        return next_step(
            failure,
            attempts_on_tier=on_tier,
            max_retries=target.max_retries,
            left_s=self._left_s(),
            has_fallback=self._has_usable_fallback(),
            left_alone=self._gate.failed(failure, self._started_at),
            backoff=self._pace.backoff,
        )

    def _left_s(self) -> float:
        return self._pace.deadline_s - (self._pace.clock() - self._began)

    def _has_usable_fallback(self) -> bool:
        """Whether there is a tier that can be fallen back to: else the failure itself is reported."""
        if not self._targets:
            return False
        try:
            self._targets[0].client.require_key()
            self._prepared_for(self._targets[0])
        except (MissingKey, InvalidRequest, SettingsError) as error:
            _log.warning("no fallback to %s: %s", self._targets[0].route.tier, error)
            self._targets.clear()
            return False
        return True

    # what is sent, and what it may cost

    def _prepared_for(self, target: Target) -> Prepared:
        """The call as this target is sent it, at the prices now in force."""
        route = target.route
        if self._attempt is None and route.tier in self._prepared:  # made ready a moment ago
            return self._prepared[route.tier]
        prices = self._ledger.prices.at(route.provider, route.model, self._ledger.now())
        prepared, hard = self._prepared.get(route.tier), self._is_hard(route)
        if prepared is None or prepared.prices is not prices or prepared.is_hard != hard:
            prepared = prepare(target, prices, hard=hard)
            self._prepared[route.tier] = prepared
        return prepared

    def _reserve(self, attempt: Attempt, ceiling: Decimal | BudgetError) -> None:
        """Hold the ceiling against budget_usd and the budgets in force. Raises BudgetError."""
        request, route = self._request, attempt.route
        if request.budget_usd is None and not self._budgets:
            return
        hold = Hold(
            attempt.attempt_id,
            request.request_id,
            request.session_id,
            request.task,
            route.tier,
            route.model,
            ceiling,
        )
        own = () if request.budget_usd is None else [Limit("request", request.request_id, request.budget_usd)]
        self._open_log().reserve(hold, own)

    def _is_hard(self, route: Route) -> bool:
        """Whether a hard limit holds for an attempt there, by the budgets that are known."""
        request = self._request
        self._budgets = self._ledger.budgets_known()
        return request.budget_usd is not None or self._budgets.is_hard_on(
            request=request.request_id,
            session=request.session_id,
            task=request.task,
            tier=route.tier,
            model=route.model,
        )

    def _record_denial(self, log: RequestLog, attempt: Attempt, refusal: BudgetError) -> None:
        event = books.denied(
            self._request,
            attempt.route,
            attempt.number - 1,
            log.started_at if log.begun else self._ledger.now(),
            self._elapsed_ms(self._began),
            refusal,
        )
        self._log = None
        log.append(*self._take_moves(), event)

    # how it ended

    def _finish(self, attempt: Attempt, answer: Answer) -> RouteResponse:
        timing = self._timing()
        cost = books.cost_of(answer, attempt.route, attempt.prices, self._ledger.prices, self._started_at)
        self._add(cost)
        response = self._response(attempt, answer)
        try:
            log = self._open_log()
            events = [
                books.succeeded(attempt, answer, cost, timing),
                *books.ceiling_broken(attempt, cost),
                books.completed(attempt, answer, log.started_at, self._elapsed_ms(self._began)),
            ]
            self._in_flight, self._log = False, None
            log.append(*events)
        except Exception as error:
            if self._must_record:
                raise UnrecordedAnswer(
                    f"the answer to request {self._request.request_id} came, but could not be recorded:"
                    f" {error}; it is in this error's response",
                    request_id=self._request.request_id,
                    response=response,
                ) from error
            self._warn_of_delay("the answer to", error)
        return response

    def _warn_of_delay(self, what: str, error: Exception) -> None:
        _log.warning(
            "%s request %s is not on the books yet, and follows when they can be written: %s",
            what,
            self._request.request_id,
            error,
        )

    def _response(self, attempt: Attempt, answer: Answer) -> RouteResponse:
        return {
            "content": answer.content,
            "tool_calls": list(answer.tool_calls),
            "model_tier": attempt.route.tier,
            "model": answer.model or attempt.route.model,
            "provider": attempt.route.provider,
            "cost": self._cost,
            "usage": usage_report(answer.usage),
            "stop_reason": answer.stop_reason,
            "provider_stop_reason": answer.provider_stop_reason,
            "request_id": self._request.request_id,
            "session_id": self._request.session_id,
            "attempts": attempt.number,
            "fallback_used": attempt.route.tier != self._request.requested_tier,
            "latency_s": self._pace.clock() - self._began,
        }

    def _record_failure(
        self,
        attempt: Attempt,
        failure: ProviderError,
        *further: BaseModel,
        wait_s: float | None = None,
        ends: bool = False,
    ) -> None:
        failure.request_id = self._request.request_id
        timing = self._timing()
        log, route = self._open_log(), attempt.route
        cost = books.cost_of_failure(failure, route, attempt.prices, self._ledger.prices, self._started_at)
        if billing_by(failure.billing_rule) == "billed":
            self._add(cost)
        events = [
            books.failed(attempt, failure, cost, timing, wait_s),
            *books.ceiling_broken(attempt, cost),
            *further,
        ]
        self._failures.append(
            FailedAttempt(attempt.attempt_id, route.tier, route.provider, route.model, failure)
        )
        self._in_flight = False
        if ends:
            self._log = None
        try:
            log.append(*events)
        except LedgerError as error:
            if self._must_record:
                raise
            self._warn_of_delay("a failed attempt of", error)
        _log.info("attempt %d on %s failed: %s", attempt.number, attempt.route.tier, failure)

    def _fall_back(self, attempt: Attempt, failure: ProviderError) -> Target:
        target = self._targets.pop(0)
        self._record_failure(
            attempt, failure, books.fell_back(self._request, attempt.route, target.route, failure.error_type)
        )
        _log.info("falling back from %s to %s", attempt.route.tier, target.route.tier)
        return target

    def _give_up(self, attempt: Attempt, failure: ProviderError, reason: str) -> RouteExhausted:
        started_at = self._open_log().started_at
        elapsed_ms = self._elapsed_ms(self._began)
        end = books.request_failed(attempt, started_at, elapsed_ms, failure, reason)
        self._record_failure(attempt, failure, end, ends=True)
        count = len(self._failures)
        return RouteExhausted(
            f"{self._request.task} got no answer in {count} attempt{'s' if count > 1 else ''}, the last on"
            f" {attempt.route.tier} ({attempt.route.model}): {failure.error_type}, {failure}",
            request_id=self._request.request_id,
            attempts=tuple(self._failures),
            reason=reason,
        )

    def _leave(self, leaving: BaseException) -> None:
        """Record that the caller left, where the request has not ended: the attempt stays in doubt."""
        self._gate.leave()
        log, attempt = self._log, self._attempt
        if log is None or log.ended:
            return None
        self._log = None
        if attempt is None or not log.begun:
            return log.abandon()
        kind = leaving.kind if isinstance(leaving, CallerLeft) else type(leaving)
        reason = _LEAVINGS.get(kind, kind.__name__)
        events: list[BaseModel] = []
        if self._in_flight:
            partial = self._reading.partial() if self._reading else None
            events.append(books.cancelled(attempt, partial, self._timing(), reason))
        events.append(books.request_cancelled(attempt, log.started_at, self._elapsed_ms(self._began), reason))
        try:
            log.append(*events)
        except LedgerError as error:
            _log.error("the end of request %s is not recorded: %s", self._request.request_id, error)

    def _opened_log(self) -> RequestLog:
        if self._log is None:
            self._log = self._ledger.open_request(self._received)
        return self._log

    def _open_log(self) -> RequestLog:
        assert self._log is not None, "an attempt is begun before it ends"
        return self._log

    def _timing(self) -> Timing:
        """Of the last attempt, up to now."""
        return Timing(self._started_at, self._elapsed_ms(self._sent), self._first_token_ms)

    def _add(self, cost: Cost) -> None:
        """An unknown part makes the whole unknown, not smaller."""
        self._cost = None if self._cost is None or cost.usd is None else total([self._cost, cost.usd])

    def _elapsed_ms(self, since: float) -> float:
        return max(self._pace.clock() - since, 0.0) * 1000
