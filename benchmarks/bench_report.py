"""`bughive-costs report --session` on a ledger of 4 million events, cold, as a whole process.

    python -m benchmarks.bench_report [--events 4000000] [--rounds 9]

At most 2 × a process that imports duckdb and typer and runs `select 1`. The ledger is made once per
size, in the system's temporary folder, as 50,000 events a segment: what a long-lived ledger looks like.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from benchmarks.compare import interleaved, output_of, verdict
from ledger import Ledger
from ledger.manifest import Batch, list_batch
from ledger.schema import COLUMNS, SQL_TYPES, arrow_schema
from ledger.segments import write_segment

EVENTS_PER_SEGMENT = 50_000
EVENTS_PER_SESSION = 240  # sixty requests, each answered at the first attempt
BASELINE = "import duckdb, typer; duckdb.sql('select 1').fetchall()"

# Each request is four events; sessions overlap by eight; every figure follows from the number n.
EVENTS_SQL = """
select
    $journal as journal_id, n - $first + 1 as seq, 1 as schema_version,
    ['request_received', 'attempt_started', 'attempt_succeeded', 'request_completed'][n % 4 + 1]
        as event_type,
    $at::timestamptz + to_microseconds((n - $first) * 1000) as occurred_at,
    case when n % 4 >= 2 then occurred_at - interval 1 millisecond end as started_at,
    'session-' || (n // (8 * $per_session) * 8 + n // 4 % 8) as session_id,
    'request-' || n // 4 as request_id,
    case when n % 4 in (1, 2) then 'attempt-' || n // 4 end as attempt_id,
    case when n % 4 > 0 then 1 end as attempt_number,
    ['analyze_page', 'propose_fix', 'extract_forms', 'format_ticket'][n // 4 % 4 + 1] as task,
    ['REASONING', 'CODING', 'GENERAL', 'FAST'][n // 4 % 4 + 1] as requested_tier,
    case when n % 4 > 0 then requested_tier end as tier,
    case when n % 4 > 0 then 'openrouter' end as provider,
    case when n % 4 > 0 then 'model-' || n // 4 % 4 end as model,
    case when n % 4 = 2 then 500 + hash(n) % 4000 end as input_tokens,
    case when n % 4 = 2 then 0 end as cache_read_tokens,
    case when n % 4 = 2 then 50 + hash(n) % 400 end as output_tokens,
    case when n % 4 = 2 then (input_tokens * 270000 + output_tokens * 1100000)::decimal(18, 0) end as pico,
    case when n % 4 = 2 then (pico * 0.000000000001)::decimal(18, 12) end as list_cost_usd,
    list_cost_usd as billed_cost_usd,
    case when n % 4 = 2 then 'billed' end as billing,
    case when n % 4 = 2 then 'answered' end as billing_rule,
    case when n % 4 >= 2 then 'end_turn' end as stop_reason,
    case when n % 4 >= 2 then 300 + hash(n + 1) % 5000 end as latency_ms,
    case when n % 4 = 2 then 200 end as http_status
from range($first, $last) numbers (n)
"""


def make_ledger(path: Path, events: int) -> None:
    """A ledger of that many events, as the sealer would have left it after a month."""
    schema = arrow_schema()
    columns = ", ".join(
        f"try_cast({column.name} as {SQL_TYPES[column.kind]}) as {column.name}" for column in COLUMNS
    )
    with Ledger.open(path, auto_seal=False) as ledger:
        previous: Batch | None = None
        for first in range(0, events, EVENTS_PER_SEGMENT):
            number = first // EVENTS_PER_SEGMENT + 1
            last = min(first + EVENTS_PER_SEGMENT, events)
            at = datetime(2026, 10, 1, tzinfo=UTC) + timedelta(hours=9 * number)
            made = duckdb.connect()
            made.execute("set timezone = 'UTC'")
            made.execute(
                f"create table made as {EVENTS_SQL}",
                {
                    "journal": f"journal-{number}",
                    "first": first,
                    "last": last,
                    "at": at,
                    "per_session": EVENTS_PER_SESSION,
                },
            )
            for column in COLUMNS:
                made.execute(f"alter table made add column if not exists {column.name} varchar")
            table = made.sql(f"select {columns} from made").to_arrow_table().cast(schema)
            footer = {
                "batch": number,
                "ledger_id": ledger.id,
                "rows": table.num_rows,
                "previous_sha256": previous.sha256 if previous else None,
                "covers": {f"journal-{number}": table.num_rows},
                "first_at": at.isoformat(),
                "last_at": at.isoformat(),
                "sealed_at": at.isoformat(),
                "schema_version": 1,
            }
            previous = write_segment(path, f"{at:%Y-%m-%d}", table, footer)
            list_batch(path, previous)
        ledger.seal()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    path = Path(tempfile.gettempdir()) / f"bughive-bench-{arguments.events}"
    if not (path / "state.db").exists():
        make_ledger(path, arguments.events)
    report = [
        *(sys.executable, "-m", "reports.cli", "report"),
        *("--session", "session-4003", "--ledger", str(path), "--format", "json"),
    ]
    check(path, json.loads(output_of(report)))
    timings = interleaved(
        {
            "import duckdb, typer; select 1": lambda: output_of([sys.executable, "-c", BASELINE]),
            "report --session": lambda: output_of(report),
        },
        rounds=arguments.rounds,
    )
    for name, timing in timings.items():
        print(f"{name:32} {timing}")
    bare_s = timings["import duckdb, typer; select 1"].median_s
    print(verdict("report --session / baseline", timings["report --session"].median_s / bare_s, 2.0))
    return 0


def check(path: Path, report: dict[str, object]) -> None:
    """The report says what a plain sum over all segments says."""
    expected = duckdb.execute(
        "select count(*) filter (event_type = 'request_completed'), sum(billed_cost_usd)"
        " from read_parquet(?) where session_id = 'session-4003'",
        [f"{path}/events/**/*.parquet"],
    ).fetchone()
    assert expected is not None
    assert (report["requests"], report["cost_usd"]) == (expected[0], f"{expected[1]:f}"), (report, expected)


if __name__ == "__main__":
    raise SystemExit(main())
