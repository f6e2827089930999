"""A line of a journal: how it is made, how it is read, and how far a file of lines can be believed.

    {"journal_id":"…","seq":7,"schema_version":1,"occurred_at":"…Z", …the event…, "check":"<16 hex>"}

`check` is the first 16 hex digits of the MD5 of all bytes before it: any engine with an MD5 can
tell a whole line from a torn one, plain DuckDB included. It guards against accidents; tampering is
what the chain of segments is for. A line is ASCII, so that its bytes are its characters.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, from_json

from ledger.errors import DamagedLedger, LedgerError
from ledger.events import plain_text, rfc3339
from ledger.files import read_private
from ledger.schema import SCHEMA_VERSION

_MOMENT = b'"occurred_at":"'
_NUMBERS = re.compile(rb'(\d+),"schema_version":(\d+),')  # of a line, right after its head
_LAST_LINES_BYTES = 4_096
_INTERRUPTED = "`: KeyboardInterrupt: "  # by pydantic, of a Ctrl-C while it calls a function of ours
CHECK_BYTES = len(',"check":"0123456789abcdef"}')


def check_of(body: bytes) -> bytes:
    """The check of a line's bytes before `,"check"`."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()[:16].encode()


def sealed_line(body: bytes) -> bytes:
    """A line out of a JSON object without its closing brace."""
    return b'%b,"check":"%b"}\n' % (body, check_of(body))


def read_line(line: bytes) -> dict[str, Any] | None:
    """What a line says, without its check; None for a line that is torn or altered."""
    with contextlib.suppress(DamagedLedger):
        return parsed(line) if _is_whole(line) else None
    return None


def parsed(line: bytes) -> dict[str, Any]:
    """What a line says whose check is right, without it. Raises DamagedLedger for one that was forged."""
    try:
        record: dict[str, Any] = from_json(line)
        del record["check"]
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedLedger(f"a line with a right check is no event: {plain_text(repr(line), 80)}") from error
    return record


def _is_whole(line: bytes) -> bool:
    return line[-CHECK_BYTES:] == b',"check":"' + check_of(line[:-CHECK_BYTES]) + b'"}'


def refuse_newer(path: Path, schema_version: int) -> None:
    """Raise LedgerError for what this version cannot read whole: guessing would drop what is new in it."""
    if schema_version > SCHEMA_VERSION:
        raise LedgerError(
            f"{path} holds events of schema {schema_version}, written by a newer bughive-costs;"
            f" this one knows up to {SCHEMA_VERSION}: update it"
        )


class Story(NamedTuple):
    """What a journal's file says as far as it can be believed: lines in sequence, without newlines."""

    first_seq: int
    lines: list[bytes]
    schema_version: int  # the highest of them
    good_bytes: int  # the length of the believable part, a last newline included
    torn_bytes: int  # what follows it
    ends_whole: bool  # False: the last line lacks only its newline
    damage: str | None  # whole lines stand behind a broken one: not a crash's doing

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines' events."""
        return [parsed(line) for line in self.lines]

    @property
    def last_seq(self) -> int:
        """Of the last line; of none, the number before the first that could be."""
        return self.first_seq + len(self.lines) - 1


def read_story(data: bytes, journal_id: str) -> Story:
    """The leading lines of a journal file that are whole, its own, and in sequence."""
    found = data.split(b"\n")
    head = line_head(journal_id)
    first_seq, versions = 1, {1}
    good = 0
    for line in found:
        stamp = _NUMBERS.match(line, len(head)) if line.startswith(head) else None
        if stamp is None or not _is_whole(line):
            break
        if good == 0:
            first_seq = int(stamp[1])
        elif int(stamp[1]) != first_seq + good:
            break
        versions.add(int(stamp[2]))
        good += 1
    lines, rest = found[:good], found[good:]
    broken = sum(map(_is_whole, rest))
    good_bytes = sum(map(len, lines)) + min(good, len(found) - 1)
    return Story(
        first_seq,
        lines,
        max(versions),
        good_bytes,
        len(data) - good_bytes,
        ends_whole=good < len(found),
        damage=f"{broken} whole lines out of sequence or behind a broken one" if broken else None,
    )


class Line(NamedTuple):
    """A whole line of a journal, without its newline, and what of it decides where it is sealed."""

    seq: int
    occurred_at: str
    text: bytes

    @classmethod
    def of(cls, seq: int, text: bytes) -> Line:
        """The line of that number."""
        begin = text.index(_MOMENT) + len(_MOMENT)
        return cls(seq, text[begin : text.index(b'"', begin)].decode(), text)

    @property
    def date(self) -> str:
        """The UTC day it was stamped."""
        return self.occurred_at[:10]


def read_parts(
    folder: Path, journal_id: str, read: Callable[[Path], bytes] = read_private
) -> list[tuple[Path, Story]]:
    """What each part of a journal says, in the order they were written.

    Raises DamagedLedger where that is not what a crash leaves, LedgerError where a newer version wrote it.
    """
    stories = [(part, read_story(read(part), journal_id)) for part in part_paths(folder, journal_id)]
    for part, story in stories:
        if story.damage:  # whoever looks into it must find it as it is
            raise DamagedLedger(
                f"{part}: {story.damage}; nothing was changed, bughive-costs verify says more"
            )
        refuse_newer(part, story.schema_version)
    return stories


def merged_lines(stories: Iterable[tuple[Path, Story]]) -> dict[int, bytes]:
    """The lines of a journal's parts by number, each once: a part begins with lines of the one before.

    Raises DamagedLedger where two copies differ.
    """
    merged: dict[int, bytes] = {}
    for path, story in stories:
        for seq, line in enumerate(story.lines, start=story.first_seq):
            if merged.setdefault(seq, line) != line:
                raise DamagedLedger(f"{path}: event {seq} has other content than in the part before")
    return merged


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
    try:
        found = [name[: -len(".jsonl")] for name in os.listdir(folder) if name.endswith(".jsonl")]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if "." not in name and name != "empty")


def last_seq(folder: Path, journal_id: str) -> int:
    """The number of a journal's last whole line; 0 where that cannot be told at a glance."""
    try:
        with part_paths(folder, journal_id)[-1].open("rb") as file:
            file.seek(-min(_LAST_LINES_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_CUR)
            *_, last, end = b"\n", *file.read().split(b"\n")
    except (IndexError, FileNotFoundError):
        return 0
    record = None if end else read_line(last)
    return 0 if record is None else int(record["seq"])


def refuse_gap(path: Path, numbers: Collection[int], first_seq: int) -> None:
    """Raise DamagedLedger, naming the journal, where a number from the first on to the last is missing."""
    missing = next((seq for seq in range(first_seq, max(numbers, default=0)) if seq not in numbers), None)
    if missing:
        raise DamagedLedger(f"{path}: event {missing} is missing; nothing was changed")


def line_head(journal_id: str) -> bytes:
    """How every line of a journal begins, up to its number."""
    return f'{{"journal_id":"{journal_id}","seq":'.encode()


def stamped_line(journal_id: str, seq: int, occurred_at: datetime, event: BaseModel) -> bytes:
    """The whole line of an event, its newline included."""
    return numbered(line_head(journal_id), seq, rfc3339(occurred_at).encode(), facts_of(event))


def facts_of(event: BaseModel) -> bytes:
    """An event's own fields as they go into its line, without the opening brace."""
    try:
        return event.__pydantic_serializer__.to_json(event, exclude_none=True, ensure_ascii=True)[1:-1]
    except PydanticSerializationError as error:
        if _INTERRUPTED in str(error):  # it keeps no other trace of what it caught
            raise KeyboardInterrupt from error
        raise


def numbered(head: bytes, seq: int, occurred_at: bytes, facts: bytes) -> bytes:
    """The line that gives an event's facts their number and moment."""
    return sealed_line(
        b'%b%d,"schema_version":%d,"occurred_at":"%b",%b' % (head, seq, SCHEMA_VERSION, occurred_at, facts)
    )
