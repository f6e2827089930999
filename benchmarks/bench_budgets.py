"""What a budget costs a request: check and reservation with 100 budgets, and what a session has cost so far.

    python -m benchmarks.bench_budgets [--rounds 2000] [--requests 20000]

Two ledgers take the same requests, one of them with 100 budgets, among them all eight scopes, hard and warn,
in several zones; with "process-crash", so that no disk is waited for. A third has budgets too and a history:
neither may take longer for that. `get_session_cost` is asked after each request, so that it never finds
an answer that is ready.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from events_by_hand import answered_request, completed, received, started, succeeded

from benchmarks.compare import interleaved, verdict
from ledger import CostTracker, Ledger
from ledger.budgets import Budget, Hold

CEILING_USD = Decimal("0.01")
LIMIT_USD = Decimal(900_000)
ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York")


def budgets() -> Iterator[Budget]:
    """A hundred of them; a dozen hold for each request."""
    for mode in ("hard", "warn"):
        for scope in ("day", "month"):
            yield Budget(scope, None, LIMIT_USD, mode, ZONES[len(scope) % 4])
        for scope in ("request", "session", "task", "tier", "model", "all"):
            yield Budget(scope, None, LIMIT_USD, mode)
    for number in range(60):
        yield Budget("session", f"crawl-{number}", LIMIT_USD)
    for number in range(20):
        yield Budget("task", f"task-{number}", LIMIT_USD)
    for name in ("ORCHESTRATOR", "REASONING", "CODING", "FAST"):
        yield Budget("tier", name, LIMIT_USD)


def ask(ledger: Ledger, name: str, session_id: str) -> None:
    """A request as the router has it: budgets looked at, the ceiling held where there are any, an answer."""
    fields = {"session_id": session_id}
    asked, first = received(name, **fields), started(name, reserved_usd=CEILING_USD, **fields)
    in_force = ledger.budgets_known()
    log = ledger.open_request(asked)
    if in_force:
        log.reserve(
            Hold(first.attempt_id, name, session_id, first.task, first.tier, first.model, CEILING_USD)
        )
    log.append(first)
    log.append(succeeded(log, name, **fields), completed(log, name, **fields))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2_000)
    parser.add_argument("--requests", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        ledgers = {
            name: Ledger.open(Path(folder) / name, "process-crash", auto_seal=False)
            for name in ("without", "with 100", "with 100 and a history", "costs")
        }
        for name in ("with 100", "with 100 and a history"):
            for budget in budgets():
                ledgers[name].set_budget(budget)
            assert len(ledgers[name].budgets().all) == 100
        for number in range(options.requests):
            for name in ("with 100 and a history", "costs"):
                answered_request(ledgers[name], f"old-{number}", session_id=f"s-{number % 500}")
        return measure(ledgers, options.rounds)


def measure(ledgers: dict[str, Ledger], rounds: int) -> int:
    numbers = count()
    tracker = CostTracker(ledgers["costs"])

    def request(name: str) -> None:
        ask(ledgers[name], f"r-{next(numbers)}", "s-1")

    def cost() -> None:
        tracker.get_session_cost("s-1")

    def request_before_cost() -> None:
        request("costs")

    timings = interleaved(
        {
            "without budgets": lambda: request("without"),
            "with 100": lambda: request("with 100"),
            "with 100 and a history": lambda: request("with 100 and a history"),
            "(another)": request_before_cost,
            "get_session_cost": cost,
        },
        rounds=rounds,
        warm_up=50,
    )
    spent = tracker.get_session_cost("s-1")
    shown = ledgers["costs"].connect("s-1").execute("select sum(cost_usd) from sessions").fetchone()
    assert shown is not None
    assert spent == shown[0], (spent, shown)
    for name, timing in timings.items():
        print(f"{name:24} {timing}")
    for name in ("with 100", "with 100 and a history"):
        added_us = (timings[name].median_s - timings["without budgets"].median_s) * 1e6
        print(verdict(f"a request {name}, added", added_us, 40, "µs"))
    print(verdict("get_session_cost", timings["get_session_cost"].median_s * 1e6, 100, "µs"))
    for ledger in ledgers.values():
        ledger.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
