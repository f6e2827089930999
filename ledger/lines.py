"""A line of a journal: how it is made, how it is read, and how far a file of lines can be believed.

    {"journal_id":"…","seq":7,"schema_version":1,"occurred_at":"…Z", …the event…, "check":"<16 hex>"}

`check` is the first 16 hex digits of the MD5 of all bytes before it: any engine with an MD5 can
tell a whole line from a torn one, plain DuckDB included. It guards against accidents; tampering is
what the chain of segments is for. A line is ASCII, so that its bytes are its characters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from ledger.errors import DamagedLedger, LedgerError
from ledger.events import SCHEMA_VERSION, rfc3339


def check_of(body: bytes) -> bytes:
    """The check of a line's bytes before `,"check"`."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()[:16].encode()


def sealed_line(body: bytes) -> bytes:
    """A line out of a JSON object without its closing brace."""
    return body + b',"check":"' + check_of(body) + b'"}\n'


def read_line(line: bytes) -> dict[str, Any] | None:
    """What a line says, without its check; None for a line that is torn or altered."""
    body, separator, end = line.rpartition(b',"check":"')
    if not separator or end != check_of(body) + b'"}':
        return None
    record: dict[str, Any] = json.loads(body + b"}")
    return record


def refuse_newer(path: Path, record: Mapping[str, Any]) -> None:
    """Raise LedgerError for what this version cannot read whole: guessing would drop what is new in it."""
    version = record.get("schema_version", 1)
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"{path} holds events of schema {version}, written by a newer bughive-costs; this one knows up to"
            f" {SCHEMA_VERSION}: update it"
        )


class Story(NamedTuple):
    """What a journal's file says up to where it can be believed."""

    events: list[dict[str, Any]]  # seq without a gap
    good_bytes: int  # the length of the believable part, a last newline included
    ends_whole: bool  # False: the last line lacks only its newline
    damage: str | None  # whole lines stand behind a broken one: not a crash's doing


def read_story(data: bytes, journal_id: str) -> Story:
    """The leading lines of a journal file that are whole, its own, and in sequence."""
    events: list[dict[str, Any]] = []
    offset = 0
    while offset < len(data):
        end = data.find(b"\n", offset)
        line_end = len(data) if end < 0 else end
        event = read_line(data[offset:line_end])
        if event is None or event.get("journal_id") != journal_id:
            break
        if events and event["seq"] != events[-1]["seq"] + 1:
            break
        events.append(event)
        if end < 0:
            return Story(events, line_end, ends_whole=False, damage=None)
        offset = end + 1
    behind = [line for line in data[offset:].split(b"\n")[1:] if read_line(line)]
    stray = read_line(data[offset:].split(b"\n")[0])
    broken = len(behind) + (stray is not None)
    damage = f"{broken} whole lines out of sequence or behind a broken one" if broken else None
    return Story(events, offset, ends_whole=True, damage=damage)


def part_path(folder: Path, journal_id: str, part: int) -> Path:
    """The file of a journal's part: the first has no number."""
    return folder / (f"{journal_id}.jsonl" if part == 1 else f"{journal_id}.{part}.jsonl")


def part_paths(folder: Path, journal_id: str) -> list[Path]:
    """The files of a journal in the order they were written."""
    paths: list[Path] = []
    while (path := part_path(folder, journal_id, len(paths) + 1)).exists():
        paths.append(path)
    return paths


def journal_ids(folder: Path) -> list[str]:
    """The journals in a folder, oldest first; the empty one that is always there is none."""
    names = (path.name.removesuffix(".jsonl") for path in folder.glob("*.jsonl"))
    return sorted(name for name in names if "." not in name and name != "empty")


def merged_events(
    stories: Iterable[tuple[Path, Story]], sealed: Mapping[int, Mapping[str, Any]] | None = None
) -> dict[int, Mapping[str, Any]]:
    """The events of a journal's parts by number, each once; with what is `sealed` where a part lacks it.

    A part begins with lines of the one before it. Raises DamagedLedger where two copies differ.
    """
    events: dict[int, Mapping[str, Any]] = {}
    for path, story in stories:
        for event in story.events:
            if events.setdefault(event["seq"], event) != event:
                raise DamagedLedger(f"{path}: event {event['seq']} has other content than in the part before")
    for seq, known in (sealed or {}).items():
        events.setdefault(seq, known)
    return events


def line_head(journal_id: str) -> bytes:
    """How every line of a journal begins, up to its number."""
    return f'{{"journal_id":"{journal_id}","seq":'.encode()


def stamped_line(journal_id: str, seq: int, occurred_at: datetime, event: BaseModel) -> bytes:
    """The whole line of an event, its newline included."""
    return numbered(line_head(journal_id), seq, rfc3339(occurred_at).encode(), facts_of(event))


def facts_of(event: BaseModel) -> bytes:
    """An event's own fields as they go into its line, without the opening brace."""
    return event.__pydantic_serializer__.to_json(event, exclude_none=True, ensure_ascii=True)[1:-1]


def numbered(head: bytes, seq: int, occurred_at: bytes, facts: bytes) -> bytes:
    """The line that gives an event's facts their number and moment."""
    return sealed_line(
        b'%b%d,"schema_version":%d,"occurred_at":"%b",%b' % (head, seq, SCHEMA_VERSION, occurred_at, facts)
    )
