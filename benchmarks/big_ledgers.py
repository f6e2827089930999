"""Ledgers of any size: real traffic, recorded and sealed once, then multiplied segment by segment.

    path = ledger_of(folder, 100_000_000)

What is multiplied are the sealed rows: each copy has ids, journals and days of its own, and goes through
the sealer's own code into the chain, so that a reader finds what a long-lived ledger holds: 50,000 events
a segment, 60 requests a session, one request in twenty retried, others failed, moved to another tier, in
doubt and settled. A journal that nobody closed stands beside them, with attempts in flight.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from benchmarks.traffic import Clock, first_attempt, play, play_mishaps
from ledger import Ledger
from ledger.manifest import Batch, list_batch, read_manifest
from ledger.segments import write_segment

if TYPE_CHECKING:
    import pyarrow as pa

FIRST_DAY = date(2026, 1, 1)
DAYS = 300  # the segments are spread over so many
PARTS = 4  # played for real; all else is their copies
REQUESTS_PER_PART = 11_500  # with the mishaps some 50,000 events
MISHAPS_PER_PART = 500
IN_FLIGHT = 5
EVENTS_PER_SEGMENT = 50_000
MILLION_CALLS = 4_200_000  # events


def ledger_of(folder: Path, events: int) -> Path:
    """A ledger of about that many events in a folder, made where it does not stand there yet."""
    path = folder / f"ledger-{events}"
    if not path.exists():
        template = folder / "template"
        if not template.exists():
            _play(template)
        unfinished = path.with_suffix(".making")
        shutil.rmtree(unfinished, ignore_errors=True)
        _multiply(template, unfinished, max(PARTS, round(events / EVENTS_PER_SEGMENT)))
        unfinished.rename(path)
    return path


def _play(path: Path) -> None:
    """Some segments of real traffic, each of one day."""
    clock = Clock(datetime(2026, 1, 1, tzinfo=UTC))
    for part in range(PARTS):
        clock.at = datetime(2026, 1, 1 + part, 0, 30, tzinfo=UTC)
        with Ledger.open(path, "process-crash", clock=clock, auto_seal=False) as ledger:
            play(ledger, clock, requests=REQUESTS_PER_PART, seed=part)
            play_mishaps(ledger, clock, requests=MISHAPS_PER_PART, seed=part, settled=0.0 if part else 0.2)
        with Ledger.open(path, "process-crash", clock=clock, auto_seal=False) as ledger:
            ledger.seal()


def _multiply(template: Path, path: Path, segments: int) -> None:
    import pyarrow.parquet as pq

    played, _ = read_manifest(template)
    tables = [pq.read_table(template / batch.file, partitioning=None) for batch in played]
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        previous: Batch | None = None
        for number in range(segments):
            copy, part = divmod(number, len(tables))
            before = played[part]
            day = FIRST_DAY + timedelta(days=number * DAYS // segments)
            shift = day - datetime.fromisoformat(before.first_at).date()
            table = _copied(tables[part], number, copy, shift)
            footer = {
                "batch": number + 1,
                "ledger_id": ledger.id,
                "rows": table.num_rows,
                "previous_sha256": previous.sha256 if previous else None,
                "covers": {_name(journal, copy): seq for journal, seq in before.covers.items()},
                **{
                    name: _shifted(getattr(before, name), shift)
                    for name in ("first_at", "last_at", "sealed_at")
                },
                "schema_version": before.schema_version,
            }
            previous = write_segment(path, f"{day}", table, footer)
            list_batch(path, previous)
        ledger.seal()  # indexes the sessions
    subprocess.run([sys.executable, "-m", "benchmarks.big_ledgers", str(path)], check=True)


def _copied(table: pa.Table, number: int, copy: int, shift: timedelta) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    for name in ("occurred_at", "started_at"):
        moved = pc.add(table[name], pa.scalar(shift, pa.duration("us")))
        table = table.set_column(table.schema.get_field_index(name), name, moved)
    for name in ("journal_id", "request_id", "attempt_id"):
        renamed = pc.binary_replace_slice(table[name].cast(pa.binary()), 0, 4, f"{copy:04x}".encode())
        table = table.set_column(
            table.schema.get_field_index(name), table.schema.field(name), renamed.cast(pa.string())
        )
    sessions = pc.binary_join_element_wise(table["session_id"], f"{number}", "_")
    return table.set_column(
        table.schema.get_field_index("session_id"), table.schema.field("session_id"), sessions
    )


def _name(name: str, copy: int) -> str:
    return f"{copy:04x}{name[4:]}"


def _shifted(moment: str, shift: timedelta) -> str:
    return (datetime.fromisoformat(moment) + shift).isoformat()


def _leave_in_flight(path: Path) -> None:
    """Record some more, begin a few requests, and die: an open journal."""
    clock = Clock(datetime.combine(FIRST_DAY, datetime.min.time(), UTC) + timedelta(days=DAYS))
    ledger = Ledger.open(path, "process-crash", clock=clock, auto_seal=False)
    play(ledger, clock, requests=500, seed=99)
    random = Random(99)
    from router import books

    for _ in range(IN_FLIGHT):
        received, attempt = first_attempt(ledger, random, "crawl_session_open")
        ledger.begin(received, books.started(attempt))
    os._exit(0)


if __name__ == "__main__":
    _leave_in_flight(Path(sys.argv[1]))
