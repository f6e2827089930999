"""Reports of whole ledgers against plain SQL over one Parquet file, and one session's report at any size.

    python -m benchmarks.bench_reports [1 10 100] [--rounds 3] [--keep]

Sizes are millions of events. Of each, in processes of their own so that memory can be told apart:

- each ledger-wide report: at most 1 GB resident, and from 10 million on at most 1.5 × the best plain
  aggregation of the same columns over all events in one Parquet file, sorted by time
  (`benchmarks/plain_sql.py`);
- `report --session`, cold, as a whole process: at most 1.5 × its time in the smallest of the ledgers;
- what each day cost, over a million calls: at least 5 × faster than DuckDB over the same as JSON lines.

Results are checked first: against plain SQL over the events, settlements included. The ledgers are made
in data/bench (some 47 bytes an event, and 15 in the one file) and removed again, unless told to keep them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.big_ledgers import MILLION_CALLS, ledger_of
from benchmarks.compare import interleaved, output_of, verdict
from benchmarks.plain_sql import ENDS, OUTCOMES, QUERIES, daily_of_json_lines, json_lines, one_file
from ledger.reader import connect, sums_alone
from reports.performance import performance_report
from reports.sessions import sessions_report
from reports.spend import spend_report

FOLDER = Path("data/bench")
SLOWER_AT_MOST = 1.5
GIGABYTE = 1e9


def report_of(name: str, path: Path) -> Any:
    """A report by its name in `QUERIES`, as its command makes it."""
    if name == "sessions":
        return sessions_report(path)
    if name == "performance":
        return performance_report(path, by="model")
    if name == "daily_spend":
        return daily_spend(path)
    return spend_report(path, by=name.partition(" --by ")[2] or None)


def daily_spend(path: Path) -> list[tuple[Any, ...]]:
    """The view of that name, by day."""
    with connect(path, views=("daily_spend",)) as connection:
        return sums_alone(connection).execute("select * from daily_spend order by day").fetchall()


def totals_of(name: str, report: Any) -> tuple[int, Decimal]:
    """Attempts and USD that a report adds up to."""
    if name == "daily_spend":
        return sum(row[2] for row in report), sum((row[9] for row in report), Decimal(0))
    total = report.total
    return int(total["attempts"]), total["cost_usd"]


# the children: one contestant each, timed, with the most memory it had


def run_child(name: str, path: Path, rounds: int) -> dict[str, Any]:
    """Time one report, or with a Parquet file its plain SQL, in this process."""
    run: Callable[[], Any]
    if path.is_dir():
        run = lambda: report_of(name, path)  # noqa: E731
    else:
        connection = duckdb.connect()
        connection.execute("set TimeZone = 'UTC'")
        run = lambda: connection.execute(QUERIES[name], [str(path)]).fetchall()  # noqa: E731
    taken_s, cpu_s, result = [], [], None
    for _ in range(rounds):
        begin, cpu = time.perf_counter(), time.process_time()
        result = run()
        taken_s.append(time.perf_counter() - begin)
        cpu_s.append(time.process_time() - cpu)
    attempts, cost_usd = totals_of(name, result) if path.is_dir() else (0, Decimal(0))
    return {
        "s": statistics.median(taken_s),
        "cpu_s": statistics.median(cpu_s),
        "resident_bytes": _most_resident_bytes(),
        "attempts": attempts,
        "cost_usd": str(cost_usd),
    }


def _most_resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def child(name: str, path: Path, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.bench_reports", "--child", name, str(path)]
    found: dict[str, Any] = json.loads(output_of([*command, "--rounds", str(rounds)]))
    return found


# what is compared


def expected(path: Path) -> tuple[int, Decimal]:
    """Attempts and USD, by plain SQL over all events, those not sealed too."""
    with connect(path, views=("events",)) as connection:
        row = connection.execute(
            "select count(*) filter (where event_type = 'attempt_started'),"
            " sum(coalesce(billed_cost_usd, list_cost_usd)) from events"
        ).fetchone()
    assert row is not None
    return int(row[0]), row[1]


def whole_ledger(path: Path, file: Path, rounds: int, *, has_goal: bool) -> None:
    """Each report against its plain SQL, in turn."""
    right = expected(path)
    for name in QUERIES:
        ours, plain = [], []
        for _ in range(rounds):
            ours.append(child(name, path, 1))
            plain.append(child(name, file, 1))
        found = {(run["attempts"], Decimal(run["cost_usd"])) for run in ours}
        assert found == {right}, (name, found, right)
        times = {
            who: statistics.median(run["s"] for run in runs)
            for who, runs in (("ours", ours), ("plain", plain))
        }
        cpu = {
            who: statistics.median(run["cpu_s"] for run in runs)
            for who, runs in (("ours", ours), ("plain", plain))
        }
        print(
            f"{name:16} {times['ours']:7.2f} s, {cpu['ours']:7.2f} s of a core;"
            f" plain SQL {times['plain']:7.2f} s, {cpu['plain']:7.2f} s of a core"
        )
        if has_goal:
            print(verdict(f"  {name} / plain SQL", times["ours"] / times["plain"], SLOWER_AT_MOST))
        resident = max(run["resident_bytes"] for run in ours) / GIGABYTE
        print(verdict(f"  {name}, resident", resident, 1.0, "GB"))


def one_session(paths: dict[int, Path], rounds: int) -> None:
    """`report --session` as users run it, in ledgers of each size by turns."""
    commands = {}
    for millions, path in paths.items():
        session_id = f"crawl_session_118_{max(1, millions * 10)}"
        command = [sys.executable, "-m", "reports.cli", "report", "--session", session_id]
        commands[f"{millions} million"] = [*command, "--ledger", str(path), "--format", "json"]
        check_session(path, session_id, json.loads(output_of(commands[f"{millions} million"])))
    timings = interleaved(
        {name: lambda command=command: output_of(command) for name, command in commands.items()},  # type: ignore[misc]
        rounds=3 * rounds,
    )
    for name, timing in timings.items():
        print(f"report --session of {name:12} {timing}")
    smallest, *larger = timings.values()
    for name, timing in zip(list(timings)[1:], larger, strict=True):
        print(verdict(f"  of {name} / of the smallest", timing.median_s / smallest.median_s, SLOWER_AT_MOST))


def check_session(path: Path, session_id: str, report: dict[str, Any]) -> None:
    row = duckdb.execute(
        f"select count(*) filter (where event_type in {ENDS}),"
        f" count(*) filter (where event_type in {OUTCOMES}), sum(coalesce(billed_cost_usd, list_cost_usd))"
        " from read_parquet(?) where session_id = ?",
        [f"{path}/events/date=20*/*.parquet", session_id],
    ).fetchone()
    assert row is not None
    assert row[0] > 0, session_id
    told = (report["requests"], report["attempts"], Decimal(report["cost_usd"]))
    assert told == row, (told, row)


def million_calls(rounds: int) -> None:
    """The days of a million calls, against DuckDB over the same events as JSON lines."""
    path, lines = ledger_of(FOLDER, MILLION_CALLS), FOLDER / "million-calls.jsonl"
    if not lines.exists():
        json_lines(path, lines)
    ours = [(row[0], row[1], row[2], row[9]) for row in daily_spend(path)]
    theirs = daily_of_json_lines(lines)
    assert [row[:3] for row in ours if row[1] > 1000] == [row[:3] for row in theirs if row[1] > 1000]
    timings = interleaved(
        {"daily_spend": lambda: daily_spend(path), "JSON lines": lambda: daily_of_json_lines(lines)},
        rounds=rounds,
        warm_up=1,
    )
    print(f"days of {sum(row[1] for row in ours):,} calls")
    for name, timing in timings.items():
        print(f"  {name:14} {timing}")
    times = timings["JSON lines"].median_s / timings["daily_spend"].median_s
    print(f"  JSON lines / daily_spend: {times:.1f} × (goal: at least 5) {'ok' if times >= 5 else 'MISSED'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=[1, 10], help="millions of events")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep the ledgers for the next time")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, path = arguments.child
        print(json.dumps(run_child(name, Path(path), arguments.rounds)))
        return 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        paths = {size: ledger_of(FOLDER, size * 1_000_000) for size in sorted(arguments.sizes)}
        for size, path in paths.items():
            file = FOLDER / f"{path.name}.parquet"
            if not file.exists():
                one_file(path, file)
            print(f"\n{size} million events")
            whole_ledger(path, file, arguments.rounds, has_goal=size >= 10)
        print()
        one_session(paths, arguments.rounds)
        million_calls(arguments.rounds)
    finally:
        if not arguments.keep:
            shutil.rmtree(FOLDER)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
