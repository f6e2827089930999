"""What living journals hold and state.db was not told of yet: for whoever must know what counts by now.

Processes tell it of their own journals, but not at once. State.db takes each event once, whoever brings it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ledger.errors import DamagedLedger, LedgerError
from ledger.files import open_private, sync_data
from ledger.lines import (
    Story,
    journal_ids,
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
_COARSE_CLOCK_NS = 3_000_000_000  # of a file system: within it a folder may change again, and not show it


class LivingJournals:
    """The journals of all processes, and which of them state.db does not know to their end."""

    def __init__(self, path: Path) -> None:
        self._folder = path / "journals"
        self._folder_name = str(self._folder)
        self._listed: tuple[int, list[str]] = 0, []  # the journals, and when their folder had last changed
        self._applied: set[str] = set()  # closed journals that state.db knows to their end

    def names(self) -> list[str]:
        """The folder's journals; listed anew where it has changed since, or that cannot be told.

        Raises LedgerError where it cannot be read.
        """
        try:
            changed_ns = os.stat(self._folder_name).st_mtime_ns
        except OSError as error:
            raise LedgerError(f"{self._folder_name} cannot be read: {error}") from error
        if changed_ns != self._listed[0]:
            is_settled = time.time_ns() - changed_ns > _COARSE_CLOCK_NS
            self._listed = changed_ns if is_settled else 0, journal_ids(self._folder)
        return self._listed[1]

    def lagging(self, state: State, but: Collection[str]) -> list[str]:
        """Those that hold more than state.db knows; but for some."""
        lagging = []
        for name in self.names():
            if name in but or name in self._applied:
                continue
            seq, is_closed = state.applied(name)
            if last_seq(self._folder, name) != seq:
                lagging.append(name)
            elif is_closed:
                self._applied.add(name)
        return lagging


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
