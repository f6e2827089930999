"""Many processes spend one session's budget, and some are killed: it is never overshot, and used up.

    python tests/budget_storm.py --runs 200
    python tests/budget_storm.py --seed 7 --runs 1        a run again
    TMPDIR=/dev/shm python tests/budget_storm.py          in memory: no disk is waited for

A run has a ledger of its own with a hard budget on one session, and beside it others of the day, the tier
and all there is. Sixteen processes of four threads reserve, start, answer, fail and retry at random prices;
a few are killed (`kill -9`) meanwhile. Then what is on the books is looked at by itself, without state.db:
in the order of their moments, at no start of an attempt may what was spent by then, what is in flight and
what is in doubt add up to more than the limit. In the end what is in doubt is settled and one process goes on
until it is refused, with ceilings of at most a hundredth of the limit: at least 95 % of it must be spent.

Exit status: 0, nothing was wrong; 1, something was: it is printed, and the run's folder is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import duckdb  # noqa: F401  loaded once, for all that are forked from this process
from events_by_hand import ROUTE, completed, failed, gave_up, received, started, succeeded

from ledger.budgets import Budget, Hold
from ledger.errors import BudgetExceeded
from ledger.ledger import Ledger
from ledger.verify import verify

SESSION = "s-1"
LIMIT_USD = Decimal("1")
OTHERS = (
    Budget("day", None, Decimal(3), tz="Asia/Kolkata"),
    Budget("tier", ROUTE["tier"], Decimal(2)),
    Budget("all", None, Decimal("0.5"), "warn"),
)
STUCK_S = 120.0


class Run(NamedTuple):
    """One run: everything that is drawn of it."""

    seed: int
    processes: int
    threads: int
    requests: int  # of a thread, at most
    killed: int  # processes

    @property
    def ceilings_usd(self) -> tuple[Decimal, Decimal]:
        """The least and the most an attempt may cost."""
        most = Random(self.seed).choice(("0.002", "0.01", "0.3"))
        return Decimal("0.0001"), Decimal(most)


def spend(ledger: Ledger, random: Random, name: str, ceilings_usd: tuple[Decimal, Decimal]) -> bool:
    """One request in the session, with a retry now and then; False where it was refused."""
    log = ledger.open_request(received(name, session_id=SESSION))
    for number in range(1, random.randint(1, 3) + 1):
        ceiling_usd = _between(random, *ceilings_usd)
        first = started(name, number, session_id=SESSION, reserved_usd=ceiling_usd)
        names = (first.attempt_id, name, SESSION, first.task, first.tier, first.model)
        try:
            log.reserve(Hold(*names, ceiling_usd))
            log.append(first)
        except BudgetExceeded:
            if log.begun:
                log.append(gave_up(log, name, session_id=SESSION, attempt_number=number - 1))
            log.abandon()
            return False
        if random.random() < 0.2:
            time.sleep(random.random() / 500)
        if random.random() < 0.8:
            cost_usd = _between(random, Decimal(0), ceiling_usd)
            outcome = succeeded(log, name, number, session_id=SESSION, billed_cost_usd=cost_usd)
            log.append(outcome, completed(log, name, session_id=SESSION, attempt_number=number))
            return True
        in_doubt = {"billing": "unknown", "billing_rule": "no_answer", "reserved_usd": ceiling_usd}
        verdict: dict[str, Any] = in_doubt if random.random() < 0.1 else {}
        log.append(failed(log, name, number, session_id=SESSION, **verdict))
    log.append(gave_up(log, name, session_id=SESSION, attempt_number=number))
    return True


def _between(random: Random, least: Decimal, most: Decimal) -> Decimal:
    return (least + (most - least) * random.randrange(10**6) / 10**6).quantize(Decimal("0.000000000001"))


def _live(path: Path, run: Run, process: int) -> None:
    def work(thread: int) -> None:
        random = Random(f"{run.seed} {process} {thread}")
        refused = 0
        for number in range(run.requests):
            refused += not spend(ledger, random, f"r-{process}-{thread}-{number}", run.ceilings_usd)
            if refused == 3:
                return

    durability = Random(f"{run.seed} {process}").choice(("power-loss", "process-crash", "process-crash"))
    with Ledger.open(path, durability, auto_seal=False) as ledger, ThreadPoolExecutor(run.threads) as pool:
        list(pool.map(work, range(run.threads)))


def play(run: Run, path: Path) -> Iterator[str]:
    """Play a run in a folder; what was wrong."""
    random = Random(run.seed)
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        ledger.set_budget(Budget("session", SESSION, LIMIT_USD))
        for budget in OTHERS:
            ledger.set_budget(budget)
    children = [_fork(path, run, process) for process in range(run.processes)]
    for child in random.sample(children, run.killed):
        time.sleep(random.random() / 10)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if wrong := [code for code in codes if code not in (0, -signal.SIGKILL)]:
        yield f"processes ended with {wrong}"
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        yield from overshot(ledger)
        _settle_and_use_up(ledger, random, run.ceilings_usd[0])
        yield from overshot(ledger)
        yield from _used_up(ledger)
    yield from map(str, verify(path).findings)


def _fork(path: Path, run: Run, process: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(int(STUCK_S))
        _live(path, run, process)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def overshot(ledger: Ledger) -> Iterator[str]:
    """Starts of attempts at which more counts than the limit, by the events alone."""
    with ledger.connect() as connection:
        rows = connection.execute(
            "select event_type, attempt_id, reserved_usd, coalesce(billed_cost_usd, list_cost_usd), billing"
            " from events where session_id = ? and attempt_id is not null order by occurred_at, seq",
            [SESSION],
        ).fetchall()
    counted: dict[str, Decimal] = {}
    total = Decimal(0)
    for event_type, attempt_id, reserved_usd, cost_usd, billing in rows:
        before = counted.get(attempt_id, Decimal(0))
        if event_type == "attempt_started":
            counted[attempt_id] = reserved_usd
        elif billing != "unknown":
            counted[attempt_id] = cost_usd or Decimal(0)
        total += counted[attempt_id] - before
        if event_type == "attempt_started" and total > LIMIT_USD:
            yield f"${total} counts at the start of {attempt_id}, and the limit is ${LIMIT_USD}"


def _settle_and_use_up(ledger: Ledger, random: Random, least_usd: Decimal) -> None:
    _settle(ledger, random.choice((None, least_usd)))
    refused = number = 0
    while refused < 5:
        number += 1
        refused += not spend(ledger, random, f"last-{number}", (LIMIT_USD / 1000, LIMIT_USD / 100))
        if number % 50 == 0:
            _settle(ledger, None)
    _settle(ledger, None)


def _settle(ledger: Ledger, billed_usd: Decimal | None) -> None:
    with ledger.connect() as connection:
        found = connection.execute("select attempt_id from in_doubt").fetchall()
    ledger.settle_all([attempt_id for (attempt_id,) in found], billed_usd)


def _used_up(ledger: Ledger) -> Iterator[str]:
    balance = ledger.read_state(lambda state: state.balance("session", SESSION))
    if balance.reserved_usd:
        yield f"${balance.reserved_usd} is held, and nothing is in flight"
    if balance.spent_usd + balance.in_doubt_usd < LIMIT_USD * Decimal("0.95"):
        yield f"only {balance} of ${LIMIT_USD} was used before all was refused"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    begin = time.monotonic()
    for number, seed in enumerate(range(options.seed, options.seed + options.runs), start=1):
        run = Run(seed, options.processes, options.threads, 200, options.processes // 4)
        folder = Path(tempfile.mkdtemp(prefix=f"budget-storm-{seed}-"))
        findings = list(play(run, folder / "ledger"))
        if findings:
            sys.stdout.write(f"{run}, in {folder}:\n" + "\n".join(findings) + "\n")
            return 1
        shutil.rmtree(folder)
        if number % 10 == 0:
            sys.stdout.write(f"{number} of {options.runs} runs, {time.monotonic() - begin:.0f} s\n")
            sys.stdout.flush()
    sys.stdout.write(
        f"{options.runs} runs of {options.processes} × {options.threads} threads:"
        " no limit was overshot, each was used up\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
