"""All events of a ledger, journal by journal in order, for what is derived from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from ledger.files import read_private
from ledger.lines import Story, journal_ids, merged_lines, parsed, part_paths, read_story, refuse_newer
from ledger.manifest import coverage, read_manifest
from ledger.segments import read_segment
from ledger.state import FOLDED

Run = Sequence[tuple[int, Mapping[str, Any]]]


def all_runs(path: Path) -> Iterator[tuple[str, Run]]:
    """Runs of events with their numbers: of each journal all, in order; of sealed ones the folded fields.

    Journals are read before the manifest, as readers do: what is sealed in between is covered by then.
    A journal ends where it cannot be believed any further. Raises LedgerError for what a newer version wrote.
    """
    folder = path / "journals"
    journals = {
        journal_id: merged_lines((part, _story(part, journal_id)) for part in part_paths(folder, journal_id))
        for journal_id in journal_ids(folder)
    }
    batches, _ = read_manifest(path)
    for batch in batches:
        yield from _sealed_runs(path / batch.file)
    covered = coverage(batches)
    for journal_id, lines in journals.items():
        yield journal_id, list(_following(lines, covered.get(journal_id, 0)))


def _story(part: Path, journal_id: str) -> Story:
    story = read_story(read_private(part), journal_id)
    refuse_newer(part, story.schema_version)
    return story


def _sealed_runs(segment: Path) -> Iterator[tuple[str, Run]]:
    rows = read_segment(segment, ["journal_id", "seq", *FOLDED]).to_pylist()
    rows.sort(key=lambda row: (row["journal_id"], row["seq"]))  # events of a kind lie together
    for journal_id, run in groupby(rows, key=lambda row: row["journal_id"]):
        yield journal_id, [(row["seq"], row) for row in run]


def _following(lines: Mapping[int, bytes], covered_seq: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The events right after those that are sealed, up to the first that is missing."""
    seq = covered_seq + 1
    while seq in lines:
        yield seq, parsed(lines[seq])
        seq += 1
