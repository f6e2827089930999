"""What living journals hold and state.db was not told of yet: for whoever must know what counts by now.

Processes tell it of their own journals, but not at once. State.db takes each event once, whoever brings it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ledger.errors import DamagedLedger
from ledger.files import open_private, sync_data
from ledger.lines import (
    Story,
    last_seq,
    merged_lines,
    parsed,
    part_paths,
    read_parts,
    read_story,
    refuse_newer,
)
from ledger.state import State

_log = logging.getLogger("ledger")

_TAIL_BYTES = 16_384  # some thirty events


def tell_of_living(path: Path, state: State, journal_ids: Iterable[str]) -> bool:
    """Tell state.db what these journals hold beyond what it knows.

    False where one is damaged, which is logged.
    Raises OSError where one cannot be read, LedgerError where a newer version has written it.
    """
    folder = path / "journals"
    knows_all = True
    for journal_id in journal_ids:
        seq, is_closed = state.applied(journal_id)
        if is_closed or last_seq(folder, journal_id) == seq:
            continue
        try:
            lines = _lines_after(folder, journal_id, seq)
        except (DamagedLedger, FileNotFoundError) as error:
            _log.warning("journal %s is not counted: %s", journal_id, error)
            knows_all = False
            continue
        events = []
        while (line := lines.get(seq := seq + 1)) is not None:
            events.append((seq, parsed(line)))
        if events:
            with state.transaction():
                state.apply(journal_id, events)
    return knows_all


def _lines_after(folder: Path, journal_id: str, seq: int) -> Mapping[int, bytes]:
    """The lines of a journal that follow an event, and some before it; durable."""
    parts = part_paths(folder, journal_id)
    if len(parts) == 1:
        return merged_lines([(parts[0], _synced_tail(parts[0], journal_id, seq))])
    from ledger.sealing import synced_content

    return merged_lines(read_parts(folder, journal_id, synced_content))


def _synced_tail(path: Path, journal_id: str, seq: int) -> Story:
    """The end of a journal's file, from after that event at the latest on; where need be all of it."""
    fd = open_private(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        length = _TAIL_BYTES
        while True:
            begin = max(size - length, 0)
            found = os.pread(fd, size - begin, begin)
            story = read_story(found.partition(b"\n")[2] if begin else found, journal_id)
            if begin == 0 or (story.lines and story.first_seq <= seq + 1):
                break
            length *= 8
        sync_data(fd)
    finally:
        os.close(fd)
    if story.damage:
        raise DamagedLedger(f"{path}: {story.damage}; bughive-costs verify says more")
    refuse_newer(path, story.schema_version)
    return story
