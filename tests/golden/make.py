"""How the golden ledger of a schema version was made, once per version.

    PYTHONPATH=.:tests python -m golden.make

v<schema version>/ledger/         a small ledger, as that version wrote it; never changed again
v<schema version>/expected.json   what was in it, and every figure that was drawn from it

A new schema version keeps the older ledgers as they are and adds its own: bring `_tell` up to the
new events and columns, then run this. It gives the same files each time (its own clock and ids; the
bytes of a segment also depend on pyarrow), and refuses to write over a version that is there.

    2025-03-29   journal A: answers, a retry, fallbacks, in doubt, unpriced, denied, budgets, a circuit
                 journal B: its process dies with an attempt in flight
    2025-03-30   A goes on over midnight; B is recovered; both are sealed, and removed a little later
                 journal C: on both sides of Berlin's change to summer time; settles; closed, not sealed
                 journal D: a failed sync, so it goes on in a second part that repeats lines; its
                 process dies with a request open and half a line written
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

from pydantic import BaseModel

from golden.figures import as_text, figures_of
from ledger import journal as journal_module
from ledger.events import (
    AttemptCancelled,
    AttemptFailed,
    AttemptSettled,
    AttemptStarted,
    AttemptSucceeded,
    BudgetSet,
    BudgetWarned,
    CeilingBroken,
    CircuitClosed,
    CircuitOpened,
    FallbackEngaged,
    JournalOpened,
    RequestCompleted,
    RequestDenied,
    RequestFailed,
    RequestReceived,
)
from ledger.journal import Journal
from ledger.layout import lay_out
from ledger.ledger import Ledger
from ledger.lines import stamped_line
from ledger.schema import NO_SEGMENT, SCHEMA_VERSION

HERE = Path(__file__).parent
LEDGER_ID = "90" * 16
PROMPT_KEY = "07" * 32
DERIVED = ("state.db", "state.db-wal", "state.db-shm", "ledger.sql", "seal.lock", NO_SEGMENT)

ROUTES = {
    "ORCHESTRATOR": ("anthropic", "anthropic/claude-opus-4-5-20250514"),
    "REASONING": ("openrouter", "deepseek/deepseek-chat"),
    "FAST": ("openrouter", "qwen/qwen-2.5-32b-instruct"),
    "LOCAL": ("openrouter", "bughive/unlisted-model"),
}


class Clock:
    """A clock that goes on by a tenth of a second each time it is read."""

    def __init__(self, now: str) -> None:
        self.now = datetime.fromisoformat(now)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=100)
        return self.now

    def set(self, now: str) -> None:
        self.now = datetime.fromisoformat(now)


class Scribe:
    """A process that writes its journal."""

    def __init__(self, ledger: Path, clock: Clock, journal_id: str) -> None:
        self.clock = clock
        opened = JournalOpened(host="golden", pid=4711, version="0.1.0")
        self.journal = Journal.create(ledger / "journals", journal_id, opened, clock, durable=True)

    def write(self, *events: BaseModel) -> datetime:
        return self.journal.append(events)


class Request:
    """One request, told step by step; each attempt starts where the one before it ended."""

    def __init__(self, scribe: Scribe, request_id: str, tier: str, session_id: str | None, **fields: Any):
        self.scribe = scribe
        task = {"ORCHESTRATOR": "plan_crawl_strategy", "FAST": "format_ticket"}.get(tier, "analyze_page")
        self.request = {
            "request_id": request_id,
            "session_id": session_id,
            "task": task,
            "requested_tier": tier,
            "tags": fields.pop("tags", None),
        }
        call = {"max_tokens": 500, "message_count": 2, "prompt_bytes": 812, "prompt_hash": f"{7:032x}"}
        self.received: RequestReceived | None = RequestReceived(**self.request, **call, **fields)
        self.started_at: datetime | None = None
        self.number = 0

    def start(self, tier: str, reserved: str | None = "0.01", **fields: Any) -> None:
        self.number += 1
        self.tier = tier
        self.streamed = fields.get("streamed", False)
        self.reserved = Decimal(reserved) if reserved else None
        started = AttemptStarted(
            **self.request, **self.route, max_tokens=500, reserved_usd=self.reserved, **fields
        )
        asked, self.received = self.received, None
        self.attempt_at = self.scribe.write(*filter(None, (asked, started)))
        self.started_at = self.started_at or self.attempt_at

    @property
    def route(self) -> dict[str, Any]:
        provider, model = ROUTES[self.tier]
        attempt = {"attempt_id": f"{self.request['request_id']}-a{self.number}"}
        return {
            **attempt,
            "attempt_number": self.number,
            "tier": self.tier,
            "provider": provider,
            "model": model,
        }

    def outcome(self, **fields: Any) -> dict[str, Any]:
        timed = {"started_at": self.attempt_at, "latency_ms": 812.5, "streamed": self.streamed}
        return {**self.request, **self.route, **timed, **fields}

    def in_doubt(self) -> dict[str, Any]:
        return {"billing": "unknown", "billing_rule": "no_answer", "reserved_usd": self.reserved}

    def answer(self, *more: BaseModel, **fields: Any) -> None:
        billed = {
            "billing": "billed",
            "billing_rule": "answered",
            "stop_reason": "end_turn",
            "http_status": 200,
        }
        succeeded = AttemptSucceeded(**self.outcome(**{**billed, **fields}))
        end = {"attempt_number": self.number, "started_at": self.started_at, "latency_ms": 900.0}
        route = {name: self.route[name] for name in ("tier", "provider", "model")}
        completed = RequestCompleted(**self.request, **end, **route, stop_reason=succeeded.stop_reason)
        self.scribe.write(succeeded, *more, completed)

    def fail(self, error_type: str, **fields: Any) -> AttemptFailed:
        failed = AttemptFailed(**self.outcome(error_type=error_type, **fields))
        self.scribe.write(failed)
        return failed

    def fall_back(self, to_tier: str, reason: str) -> None:
        self.scribe.write(
            FallbackEngaged(**self.request, from_tier=self.tier, to_tier=to_tier, reason=reason)  # type: ignore[arg-type]
        )

    def give_up(self, *before: BaseModel, error_type: str, reason: str) -> None:
        end = {"attempt_number": self.number, "started_at": self.started_at, "latency_ms": 900.0}
        told = {"tier": self.tier, "error_type": error_type, "reason": reason}
        self.scribe.write(*before, RequestFailed(**self.request, **end, **told))


def main(arguments: Sequence[str] = ()) -> int:
    """Make the golden ledger of the present schema version."""
    kept = HERE / f"v{SCHEMA_VERSION}"
    if kept.exists():
        sys.stderr.write(
            f"{kept} is there, and a golden ledger is never changed; raise SCHEMA_VERSION first\n"
        )
        return 1
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger"
        make(ledger)
        figures = figures_of(ledger)
        for name in DERIVED:
            (ledger / name).unlink(missing_ok=True)
        shutil.copytree(ledger, kept / "ledger")
    (kept / "expected.json").write_text(as_text(figures), "utf-8")
    return 0


def make(ledger: Path) -> None:
    """Write the ledger with the code as it is."""
    ledger.mkdir(mode=0o700)
    identity = {"ledger_id": LEDGER_ID, "prompt_key": PROMPT_KEY}
    (ledger / "ledger.id").write_text(json.dumps(identity))
    lay_out(ledger)
    clock = Clock("2025-03-29T09:00:00+00:00")
    a = Scribe(ledger, clock, f"{0xA:032x}")
    in_doubt = _tell(a)
    _die_in_flight(Scribe(ledger, clock, f"{0xB:032x}"))
    _go_over_midnight(a)
    _recover_and_seal(ledger, clock)
    c = Scribe(ledger, clock, f"{0xC:032x}")
    _change_to_summer_time(c)
    _settle(c, in_doubt)
    c.journal.close()
    _fail_to_sync_and_die(ledger, Scribe(ledger, clock, f"{0xD:032x}"))


def _tell(scribe: Scribe) -> dict[str, Any]:
    """The first day: all that can be told of a request, each at least once. Gives an attempt in doubt."""
    scribe.write(
        BudgetSet(scope="session", scope_id="s-1", limit_usd=Decimal("0.05"), reason="a trial"),
        BudgetSet(scope="all", mode="warn", limit_usd=Decimal(100)),
        BudgetSet(scope="day", limit_usd=Decimal(1), tz="Europe/Berlin"),
        BudgetSet(scope="session", limit_usd=Decimal(2), mode="warn"),
        BudgetSet(scope="tier", scope_id="FAST", limit_usd=Decimal("0.5")),
    )
    scribe.write(BudgetSet(scope="tier", scope_id="FAST", reason="lifted"))

    tags = {"team": "crawler", "größe": 'ñ, "quoted" \\ 日本'}
    offered = {"tool_count": 2, "streamed": True, "limit_usd": Decimal("0.02")}
    everything = Request(scribe, "r-1", "REASONING", "s-1", tags=tags, **offered)
    everything.start("REASONING", streamed=True)
    everything.answer(
        first_token_ms=210.25,
        provider_request_id="req-011",
        response_id="gen-011",
        response_model="deepseek/deepseek-chat-v3",
        upstream_provider="DeepInfra",
        service_tier="standard",
        input_tokens=900,
        cache_read_tokens=80,
        cache_write_5m_tokens=15,
        cache_write_1h_tokens=5,
        output_tokens=200,
        reasoning_tokens=60,
        web_search_requests=1,
        usage_json='{"prompt_tokens":1000,"completion_tokens":200,"cost":0.0005}',
        usage_suspect="reasoning_tokens (60) were reported without a model that reasons",
        list_cost_usd=Decimal("0.010463000001"),
        billed_cost_usd=Decimal("0.000512345678"),
        upstream_cost_usd=Decimal("0.0005"),
        reserved_usd=Decimal("0.01"),
        is_byok=False,
        price_book="0f" * 8,
        input_usd_per_mtok=Decimal("0.27"),
        cache_read_usd_per_mtok=Decimal("0.07"),
        cache_write_5m_usd_per_mtok=Decimal("0.27"),
        cache_write_1h_usd_per_mtok=Decimal("0.27"),
        output_usd_per_mtok=Decimal("1.10"),
        web_search_usd_per_request=Decimal("0.01"),
    )

    retried = Request(scribe, "r-2", "REASONING", "s-1")
    retried.start("REASONING")
    retried.fail(
        "rate_limited", billing="unbilled", billing_rule="error_status", http_status=429,
        error_message="too many requests", retry_after_s=1.5, wait_s=1.5,
    )  # fmt: skip
    retried.start("REASONING")
    retried.answer(input_tokens=1000, output_tokens=200, list_cost_usd=Decimal("0.00049"))

    fell_back = Request(scribe, "r-3", "REASONING", "s-1", tags={"team": "triage"})
    fell_back.start("REASONING")
    in_doubt = {**fell_back.request, **fell_back.route, "started_at": fell_back.attempt_at}
    fell_back.fail("timeout", **fell_back.in_doubt())
    fell_back.fall_back("FAST", "timeout")
    fell_back.start("FAST")
    fell_back.answer(input_tokens=421, output_tokens=134, list_cost_usd=Decimal("0.00005742"))

    cancelled = Request(scribe, "r-4", "ORCHESTRATOR", "s-2")
    cancelled.start("ORCHESTRATOR", reserved="0.25")
    left = AttemptCancelled(**cancelled.outcome(**cancelled.in_doubt(), reason="the caller left"))
    cancelled.give_up(left, error_type="cancelled", reason="cancelled")

    unpriced = Request(scribe, "r-5", "LOCAL", "s-2")
    unpriced.start("LOCAL", reserved=None)
    unpriced.answer(input_tokens=50, output_tokens=10)

    no_session = Request(scribe, "r-6", "ORCHESTRATOR", None)
    no_session.start("ORCHESTRATOR", reserved="0.05")
    broken = CeilingBroken(
        **no_session.request, **no_session.route, reserved_usd=Decimal("0.05"), spent_usd=Decimal("0.0525")
    )
    no_session.answer(
        broken,
        input_tokens=1000,
        output_tokens=500,
        list_cost_usd=Decimal("0.0525"),
        stop_reason="max_tokens",
    )

    exhausted = Request(scribe, "r-7", "FAST", "s-2")
    for _ in range(2):
        exhausted.start("FAST")
        exhausted.fail("overloaded", billing="unbilled", billing_rule="error_status", http_status=529)
    circuit = {"tier": "FAST", "provider": "openrouter", "model": ROUTES["FAST"][1]}
    opened = CircuitOpened(**circuit, reason="2 failures in a row", error_type="overloaded", wait_s=30.0)
    exhausted.give_up(opened, error_type="overloaded", reason="exhausted")
    scribe.write(CircuitClosed(**circuit, reason="a probe was answered"))

    denied = Request(scribe, "r-8", "REASONING", "s-1")
    limits = {"spent_usd": Decimal("0.04"), "in_doubt_usd": Decimal("0.01"), "limit_usd": Decimal("0.05")}
    limits["reserved_usd"] = Decimal(0)
    budget = {"scope": "session", "scope_id": "s-1", "asked_usd": Decimal("0.01"), **limits}
    asked = denied.received
    assert asked is not None
    moment = scribe.write(asked, BudgetWarned(**denied.request, **budget))
    route = dict(zip(("provider", "model"), ROUTES["REASONING"], strict=True))
    scribe.write(
        RequestDenied(
            **denied.request, **route, **budget, tier="REASONING", started_at=moment, attempt_number=0,
            reason="budget_exceeded", error_message="budget of session s-1 exceeded",
        )
    )  # fmt: skip
    return in_doubt


def _die_in_flight(scribe: Scribe) -> None:
    request = Request(scribe, "r-9", "REASONING", "s-3")
    request.start("REASONING", reserved="0.015")
    scribe.journal.leave()


def _go_over_midnight(scribe: Scribe) -> None:
    scribe.clock.set("2025-03-29T23:59:59.800000+00:00")
    request = Request(scribe, "r-10", "REASONING", "s-3")
    request.start("REASONING")
    scribe.clock.set("2025-03-30T00:00:03+00:00")
    request.answer(input_tokens=2000, output_tokens=300, list_cost_usd=Decimal("0.00087"))
    scribe.journal.close()


def _recover_and_seal(ledger: Path, clock: Clock) -> None:
    clock.set("2025-03-30T00:30:00+00:00")
    with Ledger.open(ledger, clock=clock, auto_seal=False) as opened:
        assert len(opened.seal().batches) == 2
        clock.set("2025-03-30T00:40:00+00:00")
        assert len(opened.seal().removed_journals) == 2


def _change_to_summer_time(scribe: Scribe) -> None:
    for request_id, now in (("r-11", "2025-03-30T00:59:59+00:00"), ("r-12", "2025-03-30T01:00:01+00:00")):
        scribe.clock.set(now)
        request = Request(scribe, request_id, "FAST", "s-3")
        request.start("FAST")
        request.answer(input_tokens=100, output_tokens=20, list_cost_usd=Decimal("0.0000108"))


def _settle(scribe: Scribe, attempt: dict[str, Any]) -> None:
    verdict = {"billing": "billed", "billing_rule": "settled", "reason": "on the provider's bill"}
    scribe.write(AttemptSettled(**attempt, **verdict, billed_cost_usd=Decimal("0.0003")))


def _fail_to_sync_and_die(ledger: Path, scribe: Scribe) -> None:
    scribe.clock.set("2025-03-30T21:59:58+00:00")
    request = Request(scribe, "r-13", "REASONING", "s-3")
    request.start("REASONING")
    syncs = [OSError(errno.EIO, "Input/output error"), None]
    with mock.patch.object(journal_module, "sync_data", side_effect=syncs):
        request.answer(input_tokens=10, output_tokens=2, list_cost_usd=Decimal("0.0000049"))
    scribe.clock.set("2025-03-30T22:00:01+00:00")
    Request(scribe, "r-14", "REASONING", None).start("REASONING", reserved="0.02")
    scribe.journal.leave()
    half = stamped_line(scribe.journal.id, scribe.journal.seq + 1, scribe.clock(), CircuitClosed(
        tier="FAST", provider="openrouter", model="qwen", reason="never wholly written"
    ))[:100]  # fmt: skip
    with (ledger / "journals" / f"{scribe.journal.id}.2.jsonl").open("ab") as journal:
        journal.write(half)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
