"""Sealing: events leave the journals for immutable Parquet files, in batches that form a chain.

    journals/*.jsonl ──sync, read──▶ one date's consecutive run per journal
        ──▶ events/date=…/<ledger_id>-<batch>.parquet ──▶ a line in manifest.jsonl

A segment's footer says what it covers and hashes the one before it, so the manifest can always be
made again. A segment that stands without its line (the sealer died in between) is never removed or
rewritten: if its footer is next in the chain, it is listed as it says of itself. Journals that are
closed, covered and applied to state.db go a minute later: a reader may still be at them.

Run as a program, `python -m ledger.sealing LEDGER` seals once; writers start it as a process of
its own, because pyarrow has no place in an agent.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from ledger.errors import DamagedLedger, LedgerError
from ledger.files import locked, only_one, open_private, sync_data, sync_folder
from ledger.history import all_runs
from ledger.journal import Clock
from ledger.lines import Line, journal_ids, merged_lines, part_path, part_paths, read_parts, refuse_gap
from ledger.manifest import MANIFEST, Batch, coverage, list_batch, read_manifest
from ledger.recovery import Recovered, recover
from ledger.segments import batch_of_segment, read_segment, sealed_events, table_of_lines, write_segment
from ledger.state import State

_log = logging.getLogger("ledger")

SEAL_LOCK = "seal.lock"
JOURNAL_REMOVED_AFTER_S = 60.0
ROWS_PER_SEGMENT = 500_000
_NICENESS = 10


class Sealed(NamedTuple):
    """What one run of the sealer did."""

    batches: list[Batch]
    removed_journals: list[str]


class Recovery(NamedTuple):
    """What was finished before state.db was derived anew."""

    ended: list[Recovered]  # journals of dead processes
    listed_batches: int  # segments that stood without their line in the manifest
    damaged: Sequence[DamagedLedger] = ()  # journals that were left as they are


def seal(ledger_path: Path, ledger_id: str, state: State, clock: Clock, *, wait_s: float = 60.0) -> Sealed:
    """Recover what dead processes left, seal all whole lines, index them, remove what is no longer needed.

    Raises LedgerError where another sealer holds the lock for longer than `wait_s`, or a file cannot
    be written; what was sealed by then stays sealed. DamagedLedger, when all else is sealed, where a
    journal is not what a crash leaves.
    """
    try:
        with only_one(ledger_path / SEAL_LOCK, wait_s, "sealing"):
            batches, _ = _listed_batches(ledger_path)
            recover_dead(ledger_path, state, clock)
            for leftover in (ledger_path / "events").glob("date=*/*-????????.tmp"):
                leftover.unlink()  # of a sealer that died; nobody else is at it now
            pending, damaged = _unsealed(ledger_path, coverage(batches))
            new = _seal_runs(ledger_path, ledger_id, batches, pending, clock)
            _index_sessions(ledger_path, batches + new, state)
            removed = _remove_covered(ledger_path, batches + new, state, clock())
    except OSError as error:
        raise LedgerError(f"sealing {ledger_path} stopped: {error}; run it again, nothing is lost") from error
    if damaged:
        raise DamagedLedger(f"{damaged[0]} ({_others(len(damaged) - 1)} is sealed)")
    return Sealed(new, removed)


def _others(more_damaged: int) -> str:
    return f"and {more_damaged} more journals so; all else" if more_damaged else "all else"


def recover_dead(ledger_path: Path, state: State, clock: Clock) -> list[Recovered]:
    """End the journals of dead processes; see ledger.recovery.

    A state.db of an earlier moment, put back from a backup, is derived anew.
    """
    batches, _ = read_manifest(ledger_path)
    covered = coverage(batches)
    ended = recover(
        ledger_path, state, clock, covered, lambda name: sealed_events(ledger_path, batches, name)
    )
    if _is_older(ledger_path, state, covered):
        _log.warning("%s is older than the ledger, and derived anew", state.path)
        with state.transaction():
            state.rebuild(all_runs(ledger_path))
    if lost := [journal for journal in ended if journal.lost_events]:
        _log.error("the disk lost %d events of journal %s", lost[0].lost_events, lost[0].journal_id)
        with state.transaction():
            state.rebuild(all_runs(ledger_path))
    return ended


def _is_older(ledger_path: Path, state: State, covered: Mapping[str, int]) -> bool:
    """Whether state.db lacks events of journals that are gone: they were removed when it had counted all."""
    present = set(journal_ids(ledger_path / "journals"))
    positions = state.positions()
    return any(
        name not in present and positions.get(name, (0, False))[0] < seq for name, seq in covered.items()
    )


def rebuild(ledger_path: Path, state: State, clock: Clock, *, wait_s: float = 60.0) -> Recovery:
    """Finish what crashed, and derive all of state.db anew from the events. Raises as `seal`."""
    try:
        with only_one(ledger_path / SEAL_LOCK, wait_s, "sealing"):
            batches, listed = _listed_batches(ledger_path)
            ended = recover_dead(ledger_path, state, clock)
            with state.transaction():
                state.rebuild(all_runs(ledger_path))
            state.forget_index()
            _index_sessions(ledger_path, batches, state)
            _, damaged = _unsealed(ledger_path, coverage(batches))
    except OSError as error:
        raise LedgerError(f"recovering {ledger_path} stopped: {error}; run it again") from error
    return Recovery(ended, listed, damaged)


def _listed_batches(ledger_path: Path) -> tuple[list[Batch], int]:
    """The manifest's batches, after listing segments that stand without their line; and how many did."""
    batches, good_bytes = read_manifest(ledger_path)
    manifest = ledger_path / MANIFEST
    if manifest.exists() and manifest.stat().st_size > good_bytes:
        os.truncate(manifest, good_bytes)  # a torn last line: its segment is an orphan now
    listed = len(batches)
    while orphan := _orphan_after(ledger_path, batches):
        folder = (ledger_path / orphan.file).parent
        sync_folder(folder)  # its sealer may have died before it had
        sync_folder(folder.parent)
        list_batch(ledger_path, orphan)
        batches.append(orphan)
    return batches, len(batches) - listed


def _orphan_after(ledger_path: Path, batches: Sequence[Batch]) -> Batch | None:
    number = len(batches) + 1
    for path in sorted((ledger_path / "events").glob(f"date=*/*-{number:08d}.parquet")):
        batch = batch_of_segment(ledger_path, path)
        if batch.previous_sha256 == (batches[-1].sha256 if batches else None):
            return batch
        raise DamagedLedger(
            f"{path} stands where batch {number} belongs but does not follow batch {number - 1}"
        )
    return None


def _unsealed(
    ledger_path: Path, covered: Mapping[str, int]
) -> tuple[dict[str, list[Line]], list[DamagedLedger]]:
    """Per journal the whole lines after what is covered, in order, on disk for certain.

    A damaged journal is left out, and what is wrong with it given: it does not keep others from being sealed.
    """
    pending: dict[str, list[Line]] = {}
    damaged: list[DamagedLedger] = []
    folder = ledger_path / "journals"
    for journal_id in journal_ids(folder):
        first = covered.get(journal_id, 0) + 1
        try:
            lines = merged_lines(read_parts(folder, journal_id, synced_content))
            refuse_gap(part_path(folder, journal_id, 1), lines, first)
        except DamagedLedger as damage:
            damaged.append(damage)
            continue
        last = max(lines, default=0)
        if last >= first:
            pending[journal_id] = [Line.of(seq, lines[seq]) for seq in range(first, last + 1)]
    return pending, damaged


def _seal_runs(
    ledger_path: Path,
    ledger_id: str,
    batches: Sequence[Batch],
    pending: dict[str, list[Line]],
    clock: Clock,
) -> list[Batch]:
    new: list[Batch] = []
    while pending:
        date, runs = next_batch(pending)
        previous = new[-1] if new else batches[-1] if batches else None
        batch = _write_runs(ledger_path, ledger_id, date, runs, previous, clock())
        list_batch(ledger_path, batch)
        new.append(batch)
        pending = {
            journal_id: rest
            for journal_id, events in pending.items()
            if (rest := events[len(runs.get(journal_id, ())) :])
        }
    return new


def synced_content(path: Path) -> bytes:
    """A journal's bytes as of now, durable: a segment must not outlive the lines it was made from."""
    fd = open_private(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        data = b"".join(iter(lambda: os.read(fd, max(size, 65_536)), b""))
        sync_data(fd)
        return data
    finally:
        os.close(fd)


def next_batch(pending: Mapping[str, Sequence[Line]]) -> tuple[str, dict[str, list[Line]]]:
    """The earliest date that is next in any journal, and each journal's leading run of that date; pure.

    Runs are leading runs, so that what is covered of a journal is always a prefix of it: a clock
    that steps back costs a further segment, never a hole. At most ROWS_PER_SEGMENT events.
    """
    date = min(lines[0].date for lines in pending.values())
    runs: dict[str, list[Line]] = {}
    room = ROWS_PER_SEGMENT
    for journal_id, lines in pending.items():
        if run := list(takewhile(lambda line: line.date == date, lines[:room])):
            runs[journal_id] = run
            room -= len(run)
        if not room:
            break
    return date, runs


def _write_runs(
    ledger_path: Path,
    ledger_id: str,
    date: str,
    runs: Mapping[str, Sequence[Line]],
    previous: Batch | None,
    now: datetime,
) -> Batch:
    lines = [line for run in runs.values() for line in run]
    moments = [line.occurred_at for line in lines]
    table = table_of_lines([line.text for line in lines])
    if table["seq"].to_pylist() != [line.seq for line in lines]:
        raise LedgerError(
            f"sealing {ledger_path} stopped: events came out of their order; nothing was sealed"
        )
    footer = {
        "batch": previous.batch + 1 if previous else 1,
        "ledger_id": ledger_id,
        "rows": len(lines),
        "previous_sha256": previous.sha256 if previous else None,
        "covers": {journal_id: run[-1].seq for journal_id, run in runs.items()},
        "first_at": min(moments),
        "last_at": max(moments),
        "sealed_at": now.isoformat(),
        "schema_version": max(table["schema_version"].to_pylist()),
    }
    return write_segment(ledger_path, date, table, footer)


def _index_sessions(ledger_path: Path, batches: Sequence[Batch], state: State) -> None:
    number, sha256 = state.indexed()
    if number and (number > len(batches) or batches[number - 1].sha256 != sha256):
        state.forget_index()  # of a state.db or a manifest that was put back from elsewhere
        number = 0
    for batch in batches[number:]:
        column = read_segment(ledger_path / batch.file, ["session_id"]).column(0)
        sessions = column.unique().drop_null().to_pylist()
        state.index_batch(batch.batch, batch.sha256, sessions)


def _remove_covered(ledger_path: Path, batches: Sequence[Batch], state: State, now: datetime) -> list[str]:
    """Remove journals that are closed, covered for a while, and applied, in that knowledge durable."""
    old = coverage(batch for batch in batches if batch.age_s(now) >= JOURNAL_REMOVED_AFTER_S)
    done = {
        journal_id
        for journal_id, (seq, closed) in state.positions().items()
        if closed and old.get(journal_id, 0) >= seq
    }
    folder = ledger_path / "journals"
    removable = [journal_id for journal_id in sorted(done) if part_path(folder, journal_id, 1).exists()]
    if removable:
        state.make_durable()
    removed = []
    for journal_id in removable:
        with locked(part_path(folder, journal_id, 1)) as fd:
            if fd is not None:
                first, *more = part_paths(folder, journal_id)
                for path in reversed(more):
                    path.unlink()
                    sync_folder(folder)  # the first goes last, after a power loss too: it tells of the others
                first.unlink()
                removed.append(journal_id)
    return removed


def main(arguments: Sequence[str]) -> int:
    """Seal the ledger at the one argument's path; an error is one line on stderr and status 2."""
    from ledger.ledger import Ledger

    os.nice(_NICENESS)  # writers come first
    try:
        with Ledger.open(Path(arguments[0]), auto_seal=False) as ledger:
            ledger.seal(wait_s=0)
    except LedgerError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
