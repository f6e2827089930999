"""What `verify`, `recover` and `backup` show: short plain text, and the same as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ledger.checks.findings import CUT_SHORT, Finding, Note, Verification, in_words
from reports.render import harmless, shown

if TYPE_CHECKING:
    from ledger.backup import Backup
    from ledger.sealing import Recovery


def verification_text(found: Verification) -> str:
    """A verdict, how much was looked at, the head to keep, and each finding in three lines."""
    counts = found.counts
    where = f"in {counted(counts.segments, 'segment')} and {counted(counts.journals, 'journal')}"
    facts = [
        ("Events", f"{counts.events:,} {where}"),
        ("Requests", f"{counts.requests:,} with {counted(counts.attempts, 'attempt')}"),
        ("Cost", shown(counts.cost_usd, "usd")),
        ("Head", str(found.head)),
    ]
    lines = [_verdict(found), "", *(f"  {label:8}  {value}" for label, value in facts)]
    for finding in found.findings:
        lines += ["", *_told(finding)]
    for finding in found.warnings:
        lines += ["", *_told(finding, "warning: ")]
    if found.notes:
        lines += ["", *map(_noted, found.notes)]
    return "\n".join(map(harmless, lines)) + "\n"


def _verdict(found: Verification) -> str:
    if found.findings:
        return f"Damaged: {counted(len(found.findings), 'finding')}"
    cut_short = sum(note.times for note in found.notes if note.kind == CUT_SHORT)
    if cut_short:
        return f"Sound, but for the end of {counted(cut_short, 'journal')} that a disk had lost before"
    return "Sound: no event is lost, doubled or changed"


def _told(finding: Finding, beginning: str = "") -> Iterator[str]:
    place = [finding.file or "the ledger"]
    if finding.batch is not None:
        place.append(f"batch {finding.batch}")
    if finding.events:
        place.append(in_words(finding.events))
    yield f"{beginning}{finding.kind}: {', '.join(place)}"
    yield f"  {finding.what}"
    yield f"  to do: {finding.remedy}"


def _noted(note: Note) -> str:
    return f"note: {note.times:,} × {note.kind}: {note.what}"


def verification_data(found: Verification) -> dict[str, Any]:
    """All of it, for JSON."""
    return {
        "sound": found.is_sound,
        "head": {"text": str(found.head), **found.head._asdict()},
        "counts": found.counts._asdict(),
        "findings": [_finding_data(finding) for finding in found.findings],
        "warnings": [_finding_data(finding) for finding in found.warnings],
        "notes": [note._asdict() for note in found.notes],
    }


def _finding_data(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "file": finding.file,
        "batch": finding.batch,
        "journal_id": finding.journal_id,
        "first_seq": finding.first_seq,
        "last_seq": finding.last_seq,
        "events": [run._asdict() for run in finding.events],
        "what": finding.what,
        "remedy": finding.remedy,
    }


def recovery_text(done: Recovery) -> str:
    """What was finished, and what a disk has lost."""
    attempts = sum(journal.abandoned_attempts for journal in done.ended)
    requests = sum(journal.failed_requests for journal in done.ended)
    lost = sum(journal.lost_events for journal in done.ended)
    ended = (
        f"ended {counted(len(done.ended), 'journal')} of dead processes:"
        f" {counted(attempts, 'attempt')} abandoned, {counted(requests, 'request')} failed"
        if done.ended
        else "no journal of a dead process was left"
    )
    listed = f"; listed {counted(done.listed_batches, 'segment')} again" if done.listed_batches else ""
    gone = f"the disk has lost {counted(lost, 'event')} that state.db had counted\n" if lost else ""
    left = "".join(f"left as it is: {harmless(str(damage))}\n" for damage in done.damaged)
    return f"{ended}{listed}; derived state.db anew\n{gone}{left}"


def backup_text(made: Backup) -> str:
    """What was copied, and the head to keep."""
    what = f"{counted(made.segments, 'segment')} and {counted(made.journals, 'journal')}"
    return harmless(f"copied {what}, {made.size_bytes:,} bytes, to {made.path}") + f"\nhead {made.head}\n"


def counted(number: int, what: str) -> str:
    """A number of things."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
