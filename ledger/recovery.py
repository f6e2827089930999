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
from ledger.lines import journal_ids, merged_events, part_path, part_paths, read_story, stamped_line
from ledger.state import State

_log = logging.getLogger("ledger")

YOUNG_S = 60.0

SealedEvents = Callable[[str], Sequence[Mapping[str, Any]]]


class Recovered(NamedTuple):
    """One journal that had to be ended for its writer."""

    journal_id: str
    abandoned_attempts: int
    failed_requests: int


def recover(
    ledger_path: Path, state: State, clock: Clock, sealed: Mapping[str, int], load: SealedEvents
) -> list[Recovered]:
    """End every journal whose writer is gone, and bring state.db up to all of them.

    `sealed`: per journal the number of the last sealed event; `load`: a journal's sealed events.
    Damage is logged and left as it is: reading the ledger refuses it.
    """
    folder = ledger_path / "journals"
    closed = {name for name, (_, is_closed) in state.positions().items() if is_closed}
    recovered = []
    for journal_id in journal_ids(folder):
        if journal_id in closed:
            continue
        try:
            path = part_path(folder, journal_id, 1)
            found = _recover_journal(path, journal_id, state, clock, sealed.get(journal_id, 0), load)
        except DamagedLedger as error:
            _log.error("%s", error)
            continue
        if found:
            recovered.append(found)
    _remove_unborn(folder)
    return recovered


def _recover_journal(
    path: Path, journal_id: str, state: State, clock: Clock, sealed_seq: int, load: SealedEvents
) -> Recovered | None:
    with locked(path) as fd:
        if fd is None:
            return None  # its writer lives, or another recovers it
        parts = part_paths(path.parent, journal_id)
        events = _whole_story(parts, journal_id, sealed_seq, load)
        _mend_end(parts[-1], journal_id)
        found = None
        if not events or events[-1]["event_type"] != "journal_closed":
            ending = endings(events)
            events += _append(_part_to_end(parts, journal_id, events), journal_id, len(events), ending, clock)
            found = Recovered(
                journal_id,
                sum(isinstance(event, AttemptAbandoned) for event in ending),
                sum(isinstance(event, RequestFailed) for event in ending),
            )
        for leftover in path.parent.glob(f"{journal_id}.*.tmp"):
            leftover.unlink()
        with state.transaction():
            state.apply(journal_id, list(enumerate(events, start=1)))
    if found:
        _log.warning("ended journal %s: %d attempts abandoned", journal_id, found.abandoned_attempts)
    return found


def _whole_story(
    parts: Sequence[Path], journal_id: str, sealed_seq: int, load: SealedEvents
) -> list[Mapping[str, Any]]:
    """All events of a journal over its parts, each number once.

    A disk may lose an end that was sealed already: those numbers are taken, and come from the segments.
    Raises DamagedLedger where a number is missing.
    """
    stories = [(part, read_story(part.read_bytes(), journal_id)) for part in parts]
    for part, story in stories:
        if story.damage:  # a crash does not leave such: whoever looks into it must find it as it is
            raise DamagedLedger(f"{part}: {story.damage}; nothing was changed")
    by_seq = merged_events(stories)
    if any(seq not in by_seq for seq in range(1, sealed_seq + 1)):
        by_seq = merged_events(stories, {event["seq"]: event for event in load(journal_id)})
    missing = next((seq for seq in range(1, max(by_seq, default=0) + 1) if seq not in by_seq), None)
    if missing:
        raise DamagedLedger(f"{parts[0]}: event {missing} is missing; nothing was changed")
    return [by_seq[seq] for seq in sorted(by_seq)]


def _part_to_end(parts: Sequence[Path], journal_id: str, events: Sequence[Mapping[str, Any]]) -> Path:
    """Where the journal goes on: a file that lost its sealed end must not go on with a gap in it."""
    here = read_story(parts[-1].read_bytes(), journal_id).events
    if here and here[-1]["seq"] < len(events):
        return part_path(parts[-1].parent, journal_id, len(parts) + 1)
    return parts[-1]


def _mend_end(path: Path, journal_id: str) -> None:
    """Complete a last line that lacks only its newline; cut what a crash has left torn."""
    data = path.read_bytes()
    story = read_story(data, journal_id)
    fd = open_private(path, os.O_WRONLY | os.O_APPEND)
    try:
        if story.good_bytes < len(data):
            os.ftruncate(fd, story.good_bytes)
        if not story.ends_whole:
            write_all(fd, b"\n")
        sync_data(fd)
    finally:
        os.close(fd)


def _append(
    path: Path, journal_id: str, last_seq: int, events: Sequence[BaseModel], clock: Clock
) -> list[dict[str, Any]]:
    """Append events to a journal whose lock is held; gives them as read back."""
    now = clock()
    lines = [stamped_line(journal_id, last_seq + n, now, event) for n, event in enumerate(events, start=1)]
    data = b"".join(lines)
    fd = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        write_all(fd, data)
        sync_data(fd)
    finally:
        os.close(fd)
    sync_folder(path.parent)
    return read_story(data, journal_id).events


def endings(events: Sequence[Mapping[str, Any]]) -> list[BaseModel]:
    """The events that end what a journal's events left open, `journal_closed` last; pure."""
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
        JournalClosed(reason="recovered"),
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
        if (folder / f"{leftover.name.split('.')[0]}.jsonl").exists():
            continue  # the next part of a journal: its own recovery removes it
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime < YOUNG_S:
                continue  # its process may be about to lock and name it
            with locked(leftover) as fd:
                if fd is not None:
                    leftover.unlink()
