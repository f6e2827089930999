"""What the ledger promises about speed: appends, sealing, reopening after a crash, the first read.

    python -m benchmarks.bench_ledger [--rounds 5]

Ledgers lie below the working directory, as /tmp may be another file system. Each figure is a median
of interleaved rounds, and is taken only once the results were seen to be right.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

from benchmarks.compare import interleaved, verdict
from benchmarks.traffic import Clock, first_attempt, play
from ledger import Ledger
from ledger.events import AttemptStarted, RequestReceived
from router import books

REQUESTS = 12_150  # of traffic: just under 50,000 events, where a journal ends
IN_FLIGHT = 5
COMMITS = 500  # of one contestant in one round
REPORT_VIEWS = ("attempts", "requests", "sessions")
QUERY = "select count(*), sum(cost_usd) from sessions"

Commit = tuple[RequestReceived, AttemptStarted]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--play", metavar="LEDGER", help=argparse.SUPPRESS)
    parser.add_argument("--append", metavar="LEDGER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.play:
        play_and_crash(Path(arguments.play))
    if arguments.append:
        return append_as_told(Path(arguments.append))
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix="bench-ledger-") as folder:
        place = Path(folder)
        compare_with_bare_appends(place / "bare", arguments.rounds)
        compare_threads(place / "threads", arguments.rounds)
        compare_processes(place / "processes", arguments.rounds)
        crashed = crashed_ledger(place / "crashed")
        read_first(crashed, arguments.rounds)
        reopen_and_seal(crashed, arguments.rounds)
    return 0


def at_least(what: str, measured: float, goal: float) -> str:
    """A line that says how a ratio stands to its goal."""
    return f"{what}: {measured:.2f} × (goal: at least {goal:.2f}) {'ok' if measured >= goal else 'MISSED'}"


# appends


def commits_of(ledger: Ledger, random: Random, count: int) -> list[Commit]:
    """Requests that begin: two events each, as one commit."""
    first = (first_attempt(ledger, random, f"session-{number % 8}") for number in range(count))
    return [(received, books.started(attempt)) for received, attempt in first]


def requests_in(path: Path) -> int:
    with Ledger.open(path, auto_seal=False) as ledger, ledger.connect() as connection:
        ((count,),) = connection.execute("select count(*) from requests").fetchall()
    return int(count)


def compare_with_bare_appends(path: Path, rounds: int) -> None:
    """A commit, and as many bytes appended to a bare file and synced; each first in turn.

    A sync right after another's is cheaper than one after a pause: neither may always be second.
    """
    ratios, rates = [], []
    with Ledger.open(path, "power-loss", auto_seal=False) as ledger:
        bare = os.open(path.with_suffix(".appended"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        ledger.begin(*commits_of(ledger, Random(0), 1)[0])
        (journal,) = (file for file in (path / "journals").iterdir() if file.stem != "empty")
        same_bytes = b"x" * journal.stat().st_size

        def append() -> float:
            begin = time.perf_counter()
            os.write(bare, same_bytes)
            os.fdatasync(bare)
            return time.perf_counter() - begin

        for number in range(rounds):
            committing_s = appending_s = 0.0
            for turn, commit in enumerate(commits_of(ledger, Random(number), COMMITS)):
                appending_s += append() if turn % 2 else 0.0
                size = journal.stat().st_size
                begin = time.perf_counter()
                ledger.begin(*commit)
                committing_s += time.perf_counter() - begin
                same_bytes = b"x" * (journal.stat().st_size - size)
                appending_s += 0.0 if turn % 2 else append()
            ratios.append(appending_s / committing_s)
            rates.append(COMMITS / committing_s)
        os.close(bare)
    assert requests_in(path) == rounds * COMMITS + 1
    print(f"durable commits of one process: {statistics.median(rates):,.0f} per second")
    print(at_least("commits / bare fsynced appends of the same bytes", statistics.median(ratios), 0.85))


def compare_threads(path: Path, rounds: int) -> None:
    with Ledger.open(path, "power-loss", auto_seal=False) as ledger:

        def commits_per_s(threads: int) -> float:
            shares = [commits_of(ledger, Random(number), COMMITS) for number in range(threads)]
            ready = threading.Barrier(threads + 1)

            def commit_all(share: list[Commit]) -> None:
                ready.wait()
                for commit in share:
                    ledger.begin(*commit)

            running = [threading.Thread(target=commit_all, args=(share,)) for share in shares]
            for thread in running:
                thread.start()
            ready.wait()
            begin = time.perf_counter()
            for thread in running:
                thread.join()
            return threads * COMMITS / (time.perf_counter() - begin)

        rates = rates_of(commits_per_s, (1, 32), rounds)
    assert requests_in(path) == rounds * 33 * COMMITS
    print(at_least("32 threads / one thread", rates[32] / rates[1], 4))


def compare_processes(path: Path, rounds: int) -> None:
    Ledger.open(path, auto_seal=False).close()

    def commits_per_s(processes: int) -> float:
        with appenders(path, processes) as told:
            for appender in told:
                appender.say(COMMITS)
            spans = [appender.hear() for appender in told]
        elapsed_s = max(span["ended_at"] for span in spans) - min(span["begun_at"] for span in spans)
        return processes * COMMITS / elapsed_s

    rates = rates_of(commits_per_s, (1, 16), rounds)
    assert requests_in(path) == rounds * 17 * COMMITS
    print(at_least("16 processes together / one process", rates[16] / rates[1], 1))


def rates_of(
    commits_per_s: Callable[[int], float], sizes: tuple[int, ...], rounds: int
) -> Mapping[int, float]:
    """The median rate of each size, run in turn."""
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            taken[size].append(commits_per_s(size))
    return {size: statistics.median(rates) for size, rates in taken.items()}


class Appender(NamedTuple):
    """A process that appends when it is told to."""

    process: subprocess.Popen[str]

    def say(self, commits: int) -> None:
        """So many commits; 0: until it is told anything else."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{commits}\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, float]:
        """When its commits began and ended, by the machine's clock, and how long they took: seconds."""
        assert self.process.stdout is not None
        told: dict[str, float] = json.loads(self.process.stdout.readline())
        return told


@contextmanager
def appenders(path: Path, count: int) -> Iterator[list[Appender]]:
    """So many processes that have the ledger open."""
    command = [sys.executable, "-m", "benchmarks.bench_ledger", "--append", str(path)]
    started = [
        Appender(subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        for _ in range(count)
    ]
    try:
        for appender in started:
            appender.hear()
        yield started
    finally:
        for appender in started:
            appender.process.communicate()


def append_as_told(path: Path) -> int:
    """What an appender does: for each number it is told, as many commits, each timed; 0: until told more."""
    with Ledger.open(path, "power-loss", auto_seal=False) as ledger:
        random = Random(os.getpid())
        gc.freeze()  # to look through all that is imported takes 15 ms, now and then: no sealer's doing
        print("{}", flush=True)
        for line in sys.stdin:
            taken_s = []
            commits = commits_of(ledger, random, int(line) or COMMITS)
            more = threading.Event()
            if not int(line):
                threading.Thread(target=lambda told=more: (sys.stdin.readline(), told.set())).start()
            begun_at = time.monotonic()
            while commits:
                begin = time.perf_counter()
                ledger.begin(*commits.pop())
                taken_s.append(time.perf_counter() - begin)
                if not commits and not int(line) and not more.is_set():
                    commits = commits_of(ledger, random, 50)
            ended_at = time.monotonic()
            taken_s.sort()
            told = {
                "begun_at": begun_at,
                "ended_at": ended_at,
                "median_s": statistics.median(taken_s),
                "p99_s": taken_s[len(taken_s) * 99 // 100],
                "longest_s": taken_s[-1],
            }
            print(json.dumps(told), flush=True)
    return 0


# a ledger of 50,000 unsealed events, whose process died


def play_and_crash(path: Path) -> None:
    """Record traffic, begin some requests more, and die."""
    clock = Clock(datetime(2026, 11, 3, 9, tzinfo=UTC))
    ledger = Ledger.open(path, "process-crash", clock=clock, auto_seal=False)
    play(ledger, clock, requests=REQUESTS, seed=1)
    for commit in commits_of(ledger, Random(2), IN_FLIGHT):
        ledger.begin(*commit)
    os._exit(0)


def crashed_ledger(path: Path) -> Path:
    subprocess.run([sys.executable, "-m", "benchmarks.bench_ledger", "--play", str(path)], check=True)
    return path


def lines_of(path: Path) -> list[bytes]:
    return [line for file in (path / "journals").glob("*.jsonl") for line in file.read_bytes().splitlines()]


def read_first(path: Path, rounds: int) -> None:
    """connect() and one query over all events, in this process, where DuckDB is imported already.

    Once with the views that a report asks for, and once with all views over all columns.
    """
    from ledger.reader import connect
    from ledger.relations import VIEWS

    events = [json.loads(line) for line in lines_of(path)]
    sessions = {event["session_id"] for event in events if "session_id" in event}
    costs = (event.get("billed_cost_usd") or event.get("list_cost_usd") or 0 for event in events)
    expected = (len(sessions), sum(map(Decimal, costs)))

    def read(views: tuple[str, ...]) -> tuple[object, ...]:
        with connect(path, views=views) as connection:
            (row,) = connection.execute(QUERY).fetchall()
        return row

    contestants = {"for a report": REPORT_VIEWS, "with all views": VIEWS}
    for views in contestants.values():
        assert read(views) == expected, (read(views), expected)
    timings = interleaved(
        {name: partial(read, views) for name, views in contestants.items()}, rounds=4 * rounds
    )
    for name, timing in timings.items():
        print(f"a first read of {len(events):,} unsealed events, {name}: {timing}")
        print(verdict(f"first read, {name}", timing.median_s, 0.15, "s"))


def reopen_and_seal(crashed: Path, rounds: int) -> None:
    """Of a copy each: recovery when it is opened again, then sealing, beside a process that appends."""
    reopening_s, sealing_s, beyond_ms, p99_beyond_ms = [], [], [], []
    journal_bytes = [len(line) + 1 for line in lines_of(crashed)]
    for number in range(rounds):
        path = crashed.with_name(f"copy-{number}")
        shutil.copytree(crashed, path)
        begin = time.perf_counter()
        with Ledger.open(path, auto_seal=False) as ledger:
            reopening_s.append(time.perf_counter() - begin)
            with appenders(path, 1) as (appender,):
                appender.say(COMMITS)
                alone = appender.hear()
                appender.say(0)
                begin = time.perf_counter()
                sealed = ledger.seal()
                sealing_s.append(time.perf_counter() - begin)
                appender.say(1)
                beside = appender.hear()
            beyond_ms.append((beside["longest_s"] - alone["longest_s"]) * 1e3)
            p99_beyond_ms.append((beside["p99_s"] - alone["p99_s"]) * 1e3)
            batch = max(sealed.batches, key=lambda batch: batch.rows)
            with ledger.connect() as connection:
                ended, abandoned = connection.execute(
                    "select count(*) filter (status <> 'open'), sum(in_doubt_attempts) from requests"
                ).fetchall()[0]
            assert ended >= REQUESTS + IN_FLIGHT, ended
            assert abandoned >= IN_FLIGHT, abandoned
        assert batch.rows == len(journal_bytes), batch.rows  # how recovery ended it is of another day
    print(verdict("reopening after a crash", statistics.median(reopening_s), 0.5, "s"))
    print(verdict(f"sealing {batch.rows:,} events", statistics.median(sealing_s), 1.5, "s"))
    print(verdict("an append's longest wait, beyond alone", statistics.median(beyond_ms), 10, "ms"))
    print(f"  its 99th percentile beyond alone: {statistics.median(p99_beyond_ms):.2f} ms")
    print(f"bytes of an event in its journal: {statistics.mean(journal_bytes):.0f}")
    print(verdict("bytes of a sealed event", batch.size_bytes / batch.rows, 65, "bytes"))


if __name__ == "__main__":
    raise SystemExit(main())
