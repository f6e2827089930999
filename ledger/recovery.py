"""What a dead process left open is ended, and said so.

A journal whose flock can be had has no living writer. Its torn end is cut (a damaged one is left as
it is), each attempt without an outcome is recorded as abandoned with its ceiling, each request
without an end as failed, and the journal is closed. Then state.db is told. Recovery may itself die at
any point: the next one goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from ledger.errors import DamagedLedger
from ledger.events import (
    OUTCOMES,
    REQUEST_ENDS,
    AttemptAbandoned,
    JournalClosed,
    RequestFailed,
)
from ledger.files import locked, open_private, sync_data, sync_folder, write_all
from ledger.journal import Clock
from ledger.lines import (
    Story,
    journal_ids,
    merged_lines,
    parsed,
    part_path,
    part_paths,
    read_line,
    read_parts,
    refuse_gap,
    refuse_newer,
    stamped_line,
)
from ledger.state import State

_log = logging.getLogger("ledger")

YOUNG_S = 60.0
_LAST_LINE_BYTES = 1_024  # more than a journal_closed has

SealedEvents = Callable[[str], Sequence[Mapping[str, Any]]]


class Recovered(NamedTuple):
    """One journal that had to be ended for its writer."""

    journal_id: str
    abandoned_attempts: int
    failed_requests: int
    lost_events: int  # that state.db has counted and the disk did not keep: it must be derived anew


def recover(
    ledger_path: Path, state: State, clock: Clock, sealed: Mapping[str, int], load: SealedEvents
) -> list[Recovered]:
    """End every journal whose writer is gone, and bring state.db up to all of them.

    `sealed`: per journal the number of the last sealed event; `load`: a journal's sealed events.
    Damage is logged and left as it is: reading the ledger refuses it. Raises LedgerError for a
    journal that a newer version has written.
    """
    folder = ledger_path / "journals"
    closed = {name for name, (_, is_closed) in state.positions().items() if is_closed}
    recovered = []
    for journal_id in journal_ids(folder):
        if journal_id in closed and _ends_closed(folder, journal_id):
            continue
        try:
            found = _recover_journal(folder, journal_id, state, clock, sealed.get(journal_id, 0), load)
        except DamagedLedger as error:
            _log.error("%s", error)
            continue
        if found:
            recovered.append(found)
    _remove_unborn(folder)
    return recovered


def has_living_writers(ledger_path: Path) -> bool:
    """Whether a process holds one of the journals."""
    folder = ledger_path / "journals"
    for journal_id in journal_ids(folder):
        with locked(part_path(folder, journal_id, 1)) as fd:
            if fd is None and part_path(folder, journal_id, 1).exists():
                return True
    return False


def _ends_closed(folder: Path, journal_id: str) -> bool:
    """Whether the last line is there: a disk may have lost what state.db has been told of."""
    try:
        with part_paths(folder, journal_id)[-1].open("rb") as file:
            file.seek(-min(_LAST_LINE_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_CUR)
            *_, last, end = b"\n", *file.read().split(b"\n")
    except (IndexError, FileNotFoundError):
        return True  # sealed and removed meanwhile
    record = None if end else read_line(last)
    if record:
        refuse_newer(folder / journal_id, record["schema_version"])
    return record is not None and record.get("event_type") == "journal_closed"


def _recover_journal(
    folder: Path, journal_id: str, state: State, clock: Clock, sealed_seq: int, load: SealedEvents
) -> Recovered | None:
    with locked(part_path(folder, journal_id, 1)) as fd:
        if fd is None:  # its writer lives, or another recovers it
            _refuse_newer_writer(part_path(folder, journal_id, 1))
            return None
        parts = read_parts(folder, journal_id)
        events = _whole_story(parts, sealed_seq, lambda: load(journal_id))
        _mend_end(*parts[-1])
        found = None
        if not events or events[-1]["event_type"] != "journal_closed":
            lost_events = max(state.position(journal_id) - len(events), 0)
            ending = endings(events, is_cut_short=lost_events > 0)
            events += _append(
                _part_to_end(parts, journal_id, len(events)), journal_id, len(events), ending, clock
            )
            found = Recovered(
                journal_id,
                sum(isinstance(event, AttemptAbandoned) for event in ending),
                sum(isinstance(event, RequestFailed) for event in ending),
                lost_events,
            )
        for leftover in folder.glob(f"{journal_id}.*.tmp"):
            leftover.unlink()
        with state.transaction():
            state.apply(journal_id, list(enumerate(events, start=1)))
    if found:
        _log.warning("ended journal %s: %d attempts abandoned", journal_id, found.abandoned_attempts)
    return found


def _refuse_newer_writer(path: Path) -> None:
    """Raise LedgerError where a living writer is of a newer version: what it writes cannot be read whole."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        if record := read_line(file.readline().rstrip(b"\n")):
            refuse_newer(path, record["schema_version"])


def _whole_story(
    parts: Sequence[tuple[Path, Story]], sealed_seq: int, load: Callable[[], Sequence[Mapping[str, Any]]]
) -> list[Mapping[str, Any]]:
    """All events of a journal, from the first on.

    A disk may lose an end that was sealed already: those numbers are taken, and come from the segments.
    Raises DamagedLedger where a number is missing.
    """
    by_seq: dict[int, Mapping[str, Any]] = {seq: parsed(line) for seq, line in merged_lines(parts).items()}
    if any(seq not in by_seq for seq in range(1, sealed_seq + 1)):
        for event in load():
            by_seq.setdefault(event["seq"], event)
    refuse_gap(parts[0][0], by_seq, 1)
    return [by_seq[seq] for seq in range(1, len(by_seq) + 1)]


def _mend_end(path: Path, story: Story) -> None:
    """Complete a last line that lacks only its newline; cut what a crash has left torn."""
    fd = open_private(path, os.O_WRONLY | os.O_APPEND)
    try:
        if story.torn_bytes:
            os.ftruncate(fd, story.good_bytes)
        if not story.ends_whole:
            write_all(fd, b"\n")
        sync_data(fd)
    finally:
        os.close(fd)


def _part_to_end(parts: Sequence[tuple[Path, Story]], journal_id: str, last_seq: int) -> Path:
    """Where the journal goes on: a file that lost its sealed end must not go on with a gap in it."""
    path, story = parts[-1]
    if story.lines and story.last_seq < last_seq:
        return part_path(path.parent, journal_id, len(parts) + 1)
    return path


def _append(
    path: Path, journal_id: str, last_seq: int, events: Sequence[BaseModel], clock: Clock
) -> list[dict[str, Any]]:
    """Append events to a journal whose lock is held; gives them as read back."""
    now = clock()
    lines = [stamped_line(journal_id, last_seq + n, now, event) for n, event in enumerate(events, start=1)]
    fd = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        write_all(fd, b"".join(lines))
        sync_data(fd)
    finally:
        os.close(fd)
    sync_folder(path.parent)
    return [parsed(line) for line in lines]


def endings(events: Sequence[Mapping[str, Any]], *, is_cut_short: bool = False) -> list[BaseModel]:
    """The events that end what a journal's events left open, `journal_closed` last; pure.

    is_cut_short: a disk has lost more of them; nothing but that last event would tell it later.
    """
    requests: dict[str, Mapping[str, Any]] = {}
    attempts: dict[str, Mapping[str, Any]] = {}
    last_attempt: dict[str, Mapping[str, Any]] = {}
    for event in events:
        event_type = event["event_type"]
        if event_type == "request_received":
            requests[event["request_id"]] = event
        elif event_type == "attempt_started":
            attempts[event["attempt_id"]] = last_attempt[event["request_id"]] = event
        elif event_type in OUTCOMES:
            attempts.pop(event["attempt_id"], None)
        elif event_type in REQUEST_ENDS:
            requests.pop(event["request_id"], None)
    return [
        *(_abandoned(started) for started in attempts.values()),
        *(_failed(received, last_attempt.get(request_id)) for request_id, received in requests.items()),
        JournalClosed(reason="cut_short" if is_cut_short else "recovered"),
    ]


_REQUEST_FIELDS = ("request_id", "session_id", "task", "tags", "requested_tier")
_ATTEMPT_FIELDS = (
    *_REQUEST_FIELDS,
    *("attempt_id", "attempt_number", "tier", "provider", "model", "streamed", "reserved_usd"),
)


def _abandoned(started: Mapping[str, Any]) -> AttemptAbandoned:
    return AttemptAbandoned.model_validate(
        {
            **{name: started[name] for name in _ATTEMPT_FIELDS if name in started},
            "started_at": started["occurred_at"],
            "billing": "unknown",
            "billing_rule": "abandoned",
        }
    )


def _failed(received: Mapping[str, Any], last_attempt: Mapping[str, Any] | None) -> RequestFailed:
    return RequestFailed.model_validate(
        {
            **{name: received[name] for name in _REQUEST_FIELDS if name in received},
            "started_at": received["occurred_at"],
            "attempt_number": last_attempt["attempt_number"] if last_attempt else 0,
            "tier": last_attempt["tier"] if last_attempt else received["requested_tier"],
            "error_type": "cancelled",
            "error_message": "the process ended before the request did",
            "reason": "abandoned",
        }
    )


def _remove_unborn(folder: Path) -> None:
    """Remove journals that never got their name: their process died before writing anything else."""
    for leftover in folder.glob("*.tmp"):
        if part_path(folder, leftover.name.split(".")[0], 1).exists():
            continue  # the next part of a journal: its own recovery removes it
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime < YOUNG_S:
                continue  # its process may be about to lock and name it
            with locked(leftover) as fd:
                if fd is not None:
                    leftover.unlink()
