"""Events for tests of the ledger, with everything that does not matter to a test filled in."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from ledger.events import (
    AttemptFailed,
    AttemptStarted,
    AttemptSucceeded,
    RequestCompleted,
    RequestFailed,
    RequestReceived,
)
from ledger.ledger import Ledger
from ledger.request_log import RequestLog

REQUEST = {"session_id": "s-1", "task": "analyze_page", "requested_tier": "REASONING"}
ROUTE = {"tier": "REASONING", "provider": "openrouter", "model": "deepseek/deepseek-chat"}


def received(request_id: str = "r-1", **fields: Any) -> RequestReceived:
    call = {"max_tokens": 100, "message_count": 1, "prompt_bytes": 50, "prompt_hash": "0" * 32}
    return RequestReceived(**{**REQUEST, **call, "request_id": request_id, **fields})


def started(request_id: str = "r-1", number: int = 1, **fields: Any) -> AttemptStarted:
    base = {**REQUEST, **ROUTE, **_attempt(request_id, number), "max_tokens": 100}
    return AttemptStarted(**{**base, "reserved_usd": Decimal("0.01"), **fields})


def succeeded(log: RequestLog, request_id: str = "r-1", number: int = 1, **fields: Any) -> AttemptSucceeded:
    base = {**REQUEST, **ROUTE, **_attempt(request_id, number), "started_at": log.started_at}
    usage = {"input_tokens": 1000, "output_tokens": 200, "list_cost_usd": Decimal("0.000490")}
    verdict = {"billing": "billed", "billing_rule": "answered", "stop_reason": "end_turn"}
    return AttemptSucceeded(**{**base, **usage, **verdict, **fields})


def failed(log: RequestLog, request_id: str = "r-1", number: int = 1, **fields: Any) -> AttemptFailed:
    base = {**REQUEST, **ROUTE, **_attempt(request_id, number), "started_at": log.started_at}
    verdict = {"billing": "unbilled", "billing_rule": "error_status", "error_type": "server_error"}
    return AttemptFailed(**{**base, **verdict, **fields})


def completed(log: RequestLog, request_id: str = "r-1", **fields: Any) -> RequestCompleted:
    base = {**REQUEST, **ROUTE, "request_id": request_id, "started_at": log.started_at}
    return RequestCompleted(**{**base, "attempt_number": 1, "stop_reason": "end_turn", **fields})


def gave_up(log: RequestLog, request_id: str = "r-1", **fields: Any) -> RequestFailed:
    base = {**REQUEST, "tier": "REASONING", "request_id": request_id, "started_at": log.started_at}
    end = {"attempt_number": 1, "error_type": "server_error", "reason": "exhausted"}
    return RequestFailed(**{**base, **end, **fields})


def answered_request(ledger: Ledger, request_id: str, **fields: Any) -> None:
    """One request that was answered at the first attempt."""
    log = ledger.begin(received(request_id), started(request_id))
    log.append(succeeded(log, request_id, **fields), completed(log, request_id))


def _attempt(request_id: str, number: int) -> dict[str, Any]:
    return {"request_id": request_id, "attempt_id": f"{request_id}-a{number}", "attempt_number": number}
