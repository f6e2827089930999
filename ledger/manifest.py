"""manifest.jsonl: one line per segment, in the order they were sealed; a cache of their footers.

A batch covers a prefix of each journal it names: all events up to that number are in this batch or
an earlier one. Lines carry a check as journals' do. The hash of each segment stands in the footer
of the next, so that the last hash vouches for all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ledger.errors import DamagedLedger
from ledger.files import open_private, read_private, sync_data, sync_folder, write_all
from ledger.lines import read_line, refuse_newer, sealed_line

MANIFEST = "manifest.jsonl"


class Batch(NamedTuple):
    """One sealed segment: its file (relative to the ledger), and what it covers per journal."""

    batch: int
    file: str
    rows: int
    size_bytes: int
    sha256: str
    previous_sha256: str | None
    ledger_id: str
    covers: Mapping[str, int]  # journal_id: number of the last event covered
    first_at: str
    last_at: str
    sealed_at: str
    schema_version: int  # the highest of its events

    def as_line(self) -> bytes:
        """The line of the manifest that says so."""
        return sealed_line(json.dumps(self._asdict(), separators=(",", ":")).encode()[:-1])

    def age_s(self, now: datetime) -> float:
        """Seconds since it was sealed; negative after the clock was set back."""
        return (now - datetime.fromisoformat(self.sealed_at)).total_seconds()


def read_manifest(ledger_path: Path) -> tuple[list[Batch], int]:
    """The batches in order, and the bytes of the manifest that say so: a torn last line is left out.

    Raises DamagedLedger for a broken line before the last, a gap, or a chain that does not hold,
    LedgerError for one that a newer version of this program has written.
    """
    path = ledger_path / MANIFEST
    try:
        data = read_private(path)
    except FileNotFoundError:
        return [], 0
    batches: list[Batch] = []
    good_bytes = 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        record = read_line(line) if number < len(lines) else None  # what lacks its newline is torn
        if record is None:
            if number < len(lines) - 1:
                raise DamagedLedger(
                    f"{path}, line {number} is altered; rebuild it from the segments' footers"
                )
            break
        refuse_newer(path, record.get("schema_version", 1))
        batch = batch_of(record)
        before = batches[-1] if batches else None
        if batch.batch != len(batches) + 1 or batch.previous_sha256 != (before.sha256 if before else None):
            raise DamagedLedger(f"{path}, line {number} does not follow the line before it")
        batches.append(batch)
        good_bytes += len(line) + 1
    return batches, good_bytes


def batch_of(record: Mapping[str, Any]) -> Batch:
    """A batch out of a manifest's line."""
    return Batch(**{name: record[name] for name in Batch._fields})


def coverage(batches: Iterable[Batch]) -> dict[str, int]:
    """Per journal the number of the last event that is sealed."""
    covered: dict[str, int] = {}
    for batch in batches:
        covered.update(batch.covers)  # later batches cover more
    return covered


def list_batch(ledger_path: Path, batch: Batch) -> None:
    """Add a batch's line to the manifest; durable on return."""
    fd = open_private(ledger_path / MANIFEST, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        write_all(fd, batch.as_line())
        sync_data(fd)
    finally:
        os.close(fd)
    sync_folder(ledger_path)
