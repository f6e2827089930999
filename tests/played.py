"""Histories written as text, recorded in a real ledger at moments a test chooses.

    history.play('''
        session=s-1 task=analyze_page at=2026-11-22T10:00:00
            REASONING  503
            REASONING  timeout   ceiling=0.01
            FAST       ok        in=1000 out=200
    ''')

One block per request, one indented line per attempt. An attempt is `ok`, an HTTP status, `timeout`
(sent, no answer), `refused` (never sent), `cancelled`, `pending` (no outcome yet) or `denied` (no
attempt at all). A request ends as its last attempt does. Each attempt takes a second, unless it is said.

    in cached write5m write1h out reasoning    tokens
    list billed                                USD; list is what the price book says unless given, or none
    ceiling                                    USD reserved
    settle                                     USD by which a later word corrects it; its billing: settled_as
    says                                       the provider's words, of an HTTP status
    takes                                      seconds by the clock, which may jump
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ledger.events import (
    AttemptCancelled,
    AttemptFailed,
    AttemptSettled,
    AttemptStarted,
    AttemptSucceeded,
    FallbackEngaged,
    JournalOpened,
    RequestCompleted,
    RequestDenied,
    RequestFailed,
    RequestReceived,
)
from ledger.journal import Journal
from ledger.ledger import Ledger
from ledger.prices import PriceBook, Usage, list_cost_usd

ROUTES = {
    "ORCHESTRATOR": ("anthropic", "anthropic/claude-opus-4-5-20250514"),
    "REASONING": ("openrouter", "deepseek/deepseek-chat"),
    "CODING": ("openrouter", "deepseek/deepseek-coder"),
    "GENERAL": ("openrouter", "qwen/qwen-2.5-72b-instruct"),
    "FAST": ("openrouter", "qwen/qwen-2.5-32b-instruct"),
}
_TOKENS = {
    "in": "input_tokens",
    "cached": "cache_read_tokens",
    "write5m": "cache_write_5m_tokens",
    "write1h": "cache_write_1h_tokens",
    "out": "output_tokens",
    "reasoning": "reasoning_tokens",
}
_ERRORS = {429: "rate_limited", 529: "overloaded", 400: "invalid_request"}


class History:
    """A ledger and the clock that its events are stamped by."""

    def __init__(self, path: Path) -> None:
        self.now = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
        self.prices = PriceBook.load()
        self.ledger = Ledger.open(path, "process-crash", clock=lambda: self.now, auto_seal=False)
        self.path = path
        self._requests = 0
        self._journals = 0

    def close(self) -> None:
        self.ledger.close()

    def play(self, text: str) -> None:
        """Record the requests that the text tells of."""
        for header, attempts in _requests(textwrap.dedent(text)):
            self._play_request(header, attempts)

    def record(self, *events: BaseModel, journal_id: str | None = None) -> None:
        """Record events that belong to no open request, in a journal of their own."""
        self._journals += 1
        name = journal_id or f"{self._journals:032x}"
        opened = JournalOpened(host="test", pid=1, version="0")
        journal = Journal.create(self.path / "journals", name, opened, lambda: self.now, durable=False)
        journal.append(events)

    def rows(self, sql: str, **options: Any) -> list[tuple[Any, ...]]:
        """What a SELECT gives through the ledger's own reader, which makes the views that it names."""
        from ledger.reader import connect
        from ledger.relations import VIEWS

        named = [view for view in VIEWS if view in sql]
        with connect(self.path, **{"views": named, **options}) as connection:
            return connection.execute(sql).fetchall()

    def column(self, view: str, name: str) -> list[Any]:
        """One column of a view, in the order of its first."""
        return [row[0] for row in self.rows(f"select {name} from {view} order by all")]

    def _play_request(
        self, header: Mapping[str, str], attempts: list[tuple[str, str, dict[str, str]]]
    ) -> None:
        self._requests += 1
        if "at" in header:
            moment = datetime.fromisoformat(header["at"])
            self.now = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        request: dict[str, Any] = {
            "request_id": header.get("id", f"r-{self._requests}"),
            "session_id": header.get("session"),
            "task": header.get("task", "analyze_page"),
            "requested_tier": attempts[0][0],
            "tags": json.loads(header["tags"]) if "tags" in header else None,
        }
        received = RequestReceived(
            **request,
            max_tokens=500,
            message_count=1,
            prompt_bytes=100,
            prompt_hash="0" * 32,
            limit_usd=Decimal(header["budget"]) if "budget" in header else None,
        )
        steps = [_Attempt(self, request, number, *told) for number, told in enumerate(attempts, start=1)]
        log = None
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            opening = step.opening()
            if log is None:
                log = self.ledger.begin(received, *opening)
            else:
                log.append(*opening)
            step.started_at = self.now
            self.now += timedelta(seconds=float(step.options.get("takes", 1)))
            if closing := step.closing(following, log.started_at):
                log.append(*closing)
            if "settle" in step.options:
                self.record(step.settlement())
        self.now += timedelta(seconds=9)


class _Attempt:
    def __init__(
        self,
        history: History,
        request: dict[str, Any],
        number: int,
        tier: str,
        verdict: str,
        options: dict[str, str],
    ) -> None:
        self.tier, self.verdict, self.options = tier, verdict, options
        self.started_at = history.now
        provider, model = ROUTES[tier]
        self.route = {"tier": tier, "provider": provider, "model": options.get("model", model)}
        self.request = request
        self.number = number
        self.identity = {
            **request,
            **self.route,
            "attempt_id": f"{request['request_id']}-a{number}",
            "attempt_number": number,
        }
        self._history = history

    def opening(self) -> list[BaseModel]:
        if self.verdict == "denied":
            return [self._denied()]
        return [AttemptStarted(**self.identity, max_tokens=500, reserved_usd=self._usd("ceiling"))]

    def closing(self, following: _Attempt | None, request_started_at: datetime) -> list[BaseModel]:
        if self.verdict in ("pending", "denied"):
            return []
        moved = following is not None and following.tier != self.tier
        events = [self._outcome()]
        if moved and following is not None:
            reason = getattr(events[0], "error_type", "cancelled")
            fallback = FallbackEngaged(
                **self.request, from_tier=self.tier, to_tier=following.tier, reason=reason
            )
            return [*events, fallback]
        return events if following else [*events, self._end(events[0], request_started_at)]

    def settlement(self) -> AttemptSettled:
        return AttemptSettled(
            **self.identity,
            started_at=self.started_at,
            billed_cost_usd=self._usd("settle"),
            billing=self.options.get("settled_as", "billed"),  # type: ignore[arg-type]
            billing_rule="settled_by_hand",
        )

    def _outcome(self) -> BaseModel:
        base = {
            **self.identity,
            "started_at": self.started_at,
            "latency_ms": float(self.options.get("ms", "1000")),
            "billed_cost_usd": self._usd("billed"),
            **self._usage(),
        }
        unknown = {"billing": "unknown", "billing_rule": "no_answer", "reserved_usd": self._usd("ceiling")}
        if self.verdict == "ok":
            answered = {"billing": "billed", "billing_rule": "answered", "stop_reason": "end_turn"}
            return AttemptSucceeded(**base, **answered, http_status=200)
        if self.verdict == "timeout":
            return AttemptFailed(**base, **unknown, error_type="timeout")
        if self.verdict == "cancelled":
            return AttemptCancelled(**base, **unknown, reason="the caller left")
        if self.verdict == "refused":
            return AttemptFailed(
                **base, billing="unbilled", billing_rule="never_sent", error_type="connection_failed"
            )
        status = int(self.verdict)
        return AttemptFailed(
            **base,
            billing="unbilled",
            billing_rule="error_status",
            http_status=status,
            error_type=_ERRORS.get(status, "server_error"),  # type: ignore[arg-type]
            error_message=self.options.get("says", ""),
        )

    def _end(self, outcome: BaseModel, request_started_at: datetime) -> BaseModel:
        base = {
            **self.request,
            "started_at": request_started_at,
            "attempt_number": self.number,
            "latency_ms": 1000.0 * self.number,
        }
        if self.verdict == "ok":
            return RequestCompleted(**base, **self.route, stop_reason="end_turn")
        reason = "cancelled" if self.verdict == "cancelled" else "exhausted"
        error_type = getattr(outcome, "error_type", "cancelled")
        return RequestFailed(**base, tier=self.tier, reason=reason, error_type=error_type)

    def _denied(self) -> RequestDenied:
        return RequestDenied(
            **self.request,
            **self.route,
            started_at=self._history.now,
            attempt_number=self.number - 1,
            reason="budget_exceeded",
            scope="request",
            scope_id=self.request["request_id"],
            limit_usd=Decimal("0.01"),
            spent_usd=Decimal(0),
            in_doubt_usd=Decimal(0),
            asked_usd=Decimal("0.02"),
        )

    def _usage(self) -> dict[str, Any]:
        counts = {name: int(self.options[word]) for word, name in _TOKENS.items() if word in self.options}
        if not counts:
            return {"list_cost_usd": self._usd("list")}
        usage = Usage(**counts)
        listed = self._usd("list")
        if "list" not in self.options:
            prices = self._history.prices.at(self.route["provider"], self.route["model"], self.started_at)
            listed = list_cost_usd(prices.units(usage.prompt_tokens), usage) if prices else None
        tokens = {name: count for name, count in usage._asdict().items() if name != "web_search_requests"}
        return {**tokens, "list_cost_usd": listed}

    def _usd(self, word: str) -> Decimal | None:
        text = self.options.get(word)
        return None if text in (None, "none") else Decimal(text)


def _requests(text: str) -> Iterator[tuple[dict[str, str], list[tuple[str, str, dict[str, str]]]]]:
    header: dict[str, str] | None = None
    attempts: list[tuple[str, str, dict[str, str]]] = []
    for line in filter(str.strip, text.splitlines()):
        words = line.split()
        if line[0].isspace():
            attempts.append((words[0], words[1], _options(words[2:])))
            continue
        if header is not None:
            yield header, attempts
        header, attempts = _options(words), []
    if header is not None:
        yield header, attempts


def _options(words: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}
