"""What a budget costs a request: check and reservation with 100 budgets, and what a session has cost so far.

    python -m benchmarks.bench_budgets [--rounds 60] [--sessions 10000]

Ledgers take the same requests, some of them with 100 budgets, among them all eight scopes, hard and warn,
in several zones; with "process-crash", so that no disk is waited for. One of these has a history of many
sessions too, and must not take longer for it. A round is 128 requests of each: what is done at some of them
for all is in their share. Measured is processor time, which others on the machine do not add to.
`get_session_cost` is asked after each request, so that it never finds an answer that is ready.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
REQUESTS = 128  # of each in a round
WITHOUT, WITH, WITH_HISTORY = "without budgets", "with 100", "with 100 and many sessions"
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
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--sessions", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        ledgers = {
            name: Ledger.open(Path(folder) / name, "process-crash", auto_seal=False)
            for name in (WITHOUT, WITH, WITH_HISTORY, "costs")
        }
        for name in (WITH, WITH_HISTORY):
            for budget in budgets():
                ledgers[name].set_budget(budget)
            assert len(ledgers[name].budgets().all) == 100
        for number in range(options.sessions):
            for name in (WITH_HISTORY, "costs"):
                answered_request(ledgers[name], f"old-{number}", session_id=f"s-{number}")
        try:
            return measure(ledgers, options.rounds)
        finally:
            for ledger in ledgers.values():
                ledger.close()


def measure(ledgers: dict[str, Ledger], rounds: int) -> int:
    numbers = count()

    def requests(name: str) -> Callable[[], None]:
        def run() -> None:
            for _ in range(REQUESTS):
                ask(ledgers[name], f"r-{next(numbers)}", "s-1")

        return run

    timings = interleaved(
        {name: requests(name) for name in (WITHOUT, WITH, WITH_HISTORY)},
        rounds=rounds,
        clock=time.process_time,
    )
    each_us = {name: timing.median_s / REQUESTS * 1e6 for name, timing in timings.items()}
    for name, request_us in each_us.items():
        print(f"a request {name:34} {request_us:7.1f} µs")
    for name in (WITH, WITH_HISTORY):
        print(verdict(f"a request {name}, added", each_us[name] - each_us[WITHOUT], 40, "µs"))
    cost_us = measure_cost(ledgers["costs"], rounds * 20)
    print(verdict("get_session_cost", cost_us, 100, "µs"))
    return 0


def measure_cost(ledger: Ledger, rounds: int) -> float:
    """Microseconds of the question, after each request; the mean: some of them tell state.db of several."""
    tracker = CostTracker(ledger)
    taken_s, spent = 0.0, Decimal(0)
    for number in range(rounds):
        ask(ledger, f"c-{number}", "s-1")
        begin = time.process_time()
        spent = tracker.get_session_cost("s-1")
        taken_s += time.process_time() - begin
    shown = ledger.connect("s-1").execute("select sum(cost_usd) from sessions").fetchone()
    assert shown is not None
    assert spent == shown[0], (spent, shown)
    return taken_s / rounds * 1e6


if __name__ == "__main__":
    raise SystemExit(main())
