"""What the journals say: each line's check, its number, and whether its writer lives.

A crash leaves a torn end: the beginning of a line, or a hole of zeros where a disk had not yet written.
Anything else that cannot be believed was altered.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ledger.checks.findings import Finding, Run, holes_in, in_words, runs_of
from ledger.checks.folder import open_file
from ledger.lines import part_path, read_line, read_story, refuse_newer

_RESTORE = "put the file back from a backup; what was lost of it is lost"
_HOLE = bytes(8)  # a disk leaves whole sectors of zeros, never a single one in a line
_CHECK = re.compile(rb',"check":"[0-9a-f]{16}"\}')


class JournalRead(NamedTuple):
    """One journal over its parts, as far as its lines can be believed."""

    journal_id: str
    file: str  # of its first part, relative to the ledger
    lines: dict[int, bytes]  # by number
    is_living: bool  # its writer, or who recovers it, held its flock before it was read
    findings: list[Finding]

    @property
    def last_seq(self) -> int:
        """The highest number it has; 0: none."""
        return max(self.lines, default=0)

    @property
    def is_damaged(self) -> bool:
        """Whether some of its lines are lost or altered: then nothing else of it can be told for sure."""
        return bool(self.findings)


def read_journals(root: Path, files: Iterable[str], closed: set[str]) -> list[JournalRead]:
    """The journals of these files. Of those known as closed it is not asked who writes them.

    Raises LedgerError where a newer version of this program has written one.
    """
    parts: dict[str, set[str]] = {}
    for file in files:
        name = file.partition("/")[2]
        parts.setdefault(name.split(".")[0], set()).add(name)
    return [
        journal
        for journal_id in sorted(parts)
        if (journal := _read_journal(root, journal_id, parts[journal_id], journal_id not in closed))
    ]


def _read_journal(root: Path, journal_id: str, names: set[str], may_live: bool) -> JournalRead | None:
    """None where it was removed meanwhile, as what is sealed and closed is."""
    folder = root / "journals"
    is_living = may_live and _is_locked(part_path(folder, journal_id, 1))
    numbered = [part_path(folder, journal_id, number) for number in range(1, len(names) + 1)]
    lines: dict[int, bytes] = {}
    findings = [
        _without_first_part(f"journals/{name}") for name in sorted(names - {path.name for path in numbered})
    ]
    for path in numbered:
        if path.name not in names:
            continue
        try:
            data = _content(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            what = f"it cannot be read: {error.strerror}"
            findings.append(
                Finding("unreadable", f"journals/{path.name}", what, "give its owner's rights back")
            )
            continue
        found, said = _judged(data, path, journal_id)
        findings += said
        findings += _contradictions(lines, found, path, journal_id)
        lines = found | lines
    return JournalRead(journal_id, f"journals/{numbered[0].name}", lines, is_living, findings)


def _without_first_part(file: str) -> Finding:
    what = "the part of the journal before it is missing"
    return Finding("missing-journal", file, what, "put that part back from a backup")


def _content(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read()


def _is_locked(path: Path) -> bool:
    """Whether another holds the file's flock. A shared one is asked for, and given back at once."""
    try:
        with open_file(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _contradictions(
    known: dict[int, bytes], found: dict[int, bytes], path: Path, journal_id: str
) -> list[Finding]:
    """A part begins with lines of the one before it: the same, byte for byte."""
    differing = sorted(seq for seq in known.keys() & found.keys() if known[seq] != found[seq])
    runs = runs_of(differing, journal_id)
    if not runs:
        return []
    what = f"{in_words(runs)} have other content than in the part before"
    return [Finding("altered-journal", f"journals/{path.name}", what, _RESTORE, events=runs)]


def _judged(data: bytes, path: Path, journal_id: str) -> tuple[dict[int, bytes], list[Finding]]:
    """A part's believable lines by number, and what is wrong with the others."""
    file = f"journals/{path.name}"
    story = read_story(data, journal_id)
    refuse_newer(path, story.schema_version)
    lines = dict(enumerate(story.lines, start=story.first_seq))
    if story.damage:
        return _read_around(data, file, journal_id)
    if _is_altered(data[story.good_bytes :]):
        altered = [Run(journal_id, story.first_seq + len(lines), story.first_seq + len(lines))]
        what = f"its last line is altered ({altered[0]}): a crash does not end a line"
        return lines, [Finding("altered-journal", file, what, _RESTORE, events=altered)]
    return lines, []


def _is_altered(end: bytes) -> bool:
    """Whether what follows the believable lines is no torn end."""
    whole = _CHECK.search(end)
    if whole and len(end) > whole.end() and read_line(end[: whole.end()]) is not None:
        return True
    return b"\n" in end and _HOLE not in end


def _read_around(data: bytes, file: str, journal_id: str) -> tuple[dict[int, bytes], list[Finding]]:
    """What can be read of a damaged part: whole lines stand out of sequence, or behind a broken one."""
    lines: dict[int, bytes] = {}
    broken, doubled, strangers = 0, set[int](), set[str]()
    for line in data.split(b"\n"):
        record = read_line(line) if line else {}
        if record is None or (line and not isinstance(record.get("seq"), int)):
            broken += 1
        elif line and record.get("journal_id") != journal_id:
            strangers.add(str(record.get("journal_id")))
        elif line and lines.setdefault(record["seq"], line) != line:
            doubled.add(record["seq"])
    return lines, list(_told(file, journal_id, lines, broken, doubled, strangers))


def _told(
    file: str, journal_id: str, lines: dict[int, bytes], broken: int, doubled: set[int], strangers: set[str]
) -> Iterator[Finding]:
    if strangers:
        what = f"it has lines of another journal: {min(strangers)}"
        yield Finding(
            "foreign-lines", file, what, "see where the file comes from; put the journal's own back"
        )
    if doubled:
        runs = runs_of(sorted(doubled), journal_id)
        what = f"{in_words(runs)} stand there twice, with different content"
        yield Finding("altered-journal", file, what, _RESTORE, events=runs)
    is_first_part = file.count(".") == 1
    if missing := holes_in(lines, journal_id, 0 if is_first_part else min(lines, default=1)):
        what = f"{'altered' if broken else 'gone'}: {in_words(missing)}; whole lines follow"
        yield Finding("altered-journal", file, what, _RESTORE, events=missing)
    elif not strangers and not doubled:
        order = "are broken" if broken else "stand out of order"
        what = f"lines {order} among those with right checks"
        whole = [Run(journal_id, min(lines), max(lines))] if lines else []
        yield Finding("altered-journal", file, what, _RESTORE, events=whole)


def gaps(journal: JournalRead, sealed_seq: int) -> Finding | None:
    """Numbers that neither its parts nor the segments hold, below its highest."""
    missing = holes_in(journal.lines, journal.journal_id, sealed_seq)
    if not missing or journal.is_damaged:
        return None
    return Finding("cut-journal", journal.file, f"missing: {in_words(missing)}", _RESTORE, events=missing)
