"""Proves that a ledger is whole: that nothing in it was lost, doubled or changed.

    verify("data/ledger").is_sound

What is looked at, in an order in which whatever is read later knows of all that was read before:

    state.db ─▶ the folder ─▶ journals ─▶ manifest.jsonl ─▶ segments ─▶ all events, in DuckDB

Writers and sealers may be at work meanwhile, and nothing is written. Where something seems wrong and the
folder was not still, all is looked at again: only what is found each time is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ledger.checks.chain import Chain, Listed, read_chain, read_lines
from ledger.checks.events import Events, JournalEnd
from ledger.checks.findings import (
    CUT_SHORT,
    NOTHING_SEALED,
    Counts,
    Finding,
    Head,
    Note,
    Run,
    Verification,
    in_words,
)
from ledger.checks.folder import Folder, check_readable, entries_of, ledger_id, look_at_folder
from ledger.checks.journals import JournalRead, gaps, read_journals
from ledger.checks.projection import NOTHING, RECOVER, STATE, Projection, read_projection
from ledger.errors import LedgerError
from ledger.manifest import MANIFEST
from ledger.reader import existing_ledger, first_words

__all__ = ["Counts", "Finding", "Head", "Note", "Run", "Verification", "verify"]

_LOOKS = 3
_RESTORE = "put the file back from a backup; what was lost of it is lost"


def verify(path: str | Path, *, expect_head: Head | None = None) -> Verification:
    """Look at all of a ledger, and tell what is wrong with it. Writes nothing.

    expect_head: a head kept from an earlier time, which the ledger's chain must still have.
    Raises LedgerError where there is no ledger, or one that a newer version has written.
    """
    root = existing_ledger(path)
    check_readable(root)
    before = entries_of(root)
    found = _Look(root).verification(expect_head)
    for _ in range(_LOOKS - 1):
        if found.is_sound or (after := entries_of(root)) == before:
            break
        seen = {_identity(finding) for finding in found.findings}
        found = _Look(root).verification(expect_head)
        found = found._replace(findings=[each for each in found.findings if _identity(each) in seen])
        before = after
    return found


def _identity(finding: Finding) -> tuple[str, str, int | None, str | None]:
    return finding.kind, finding.file, finding.batch, finding.journal_id


class _Look:
    """One look at a ledger: all its files are read here, in the order that matters."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._projection, self._findings = read_projection(root)
        self._state: Projection = self._projection or NOTHING
        self._folder: Folder = look_at_folder(root)
        closed = {name for name, (_, is_closed) in self._state.positions.items() if is_closed}
        self._journals = {
            journal.journal_id: journal for journal in read_journals(root, self._folder.journals(), closed)
        }
        self._listed: Listed = read_lines(root)
        self._chain: Chain = read_chain(root, self._folder.segments(), self._listed, self._state.indexed)
        self._covered = self._chain.covered()
        self._ledger_id = ledger_id(root)
        self._notes: list[Note] = []
        self._counts = Counts()

    def verification(self, expect_head: Head | None) -> Verification:
        """What there is to say."""
        head = self._head()
        self._findings += self._folder.findings
        self._findings += self._chain.findings
        self._findings += self._of_identity()
        self._findings += _against(head, expect_head, self._chain) if expect_head else ()
        of_positions = list(self._of_positions())  # may add events to what is found already
        self._findings += of_positions
        suspects = self._suspects()
        self._of_events(suspects)
        self._notes += self._more_notes()
        return Verification(head, self._counts, self._findings, self._folder.warnings, self._notes)

    def _head(self) -> Head:
        if not self._chain.links:
            return Head(self._ledger_id or "", 0, NOTHING_SEALED)
        last = self._chain.links[-1]
        return Head(last.batch.ledger_id, last.batch.batch, last.sha256)

    def _of_identity(self) -> Iterator[Finding]:
        if self._ledger_id is None:
            if (self._root / "ledger.id").is_file():
                what = "it is damaged: it names the ledger, and holds the key of its prompt hashes"
                yield Finding("altered-file", "ledger.id", what, "put it back from a backup of this ledger")
            return
        for link in self._chain.links:
            if link.batch.ledger_id != self._ledger_id:
                what = f"it is of ledger {link.batch.ledger_id}, and ledger.id says {self._ledger_id}"
                remedy = "put ledger.id and the segments back from one backup"
                yield Finding("other-ledger", link.batch.file, what, remedy, link.batch.batch, link.runs)
                return

    # journals against state.db and segments

    def _of_positions(self) -> Iterator[Finding]:
        """What state.db or the segments know of, and the journals do not."""
        for journal in self._journals.values():
            covered_seq = self._covered.get(journal.journal_id, 0)
            yield from journal.findings
            if gap := gaps(journal, covered_seq):
                yield gap
            elif not (journal.lines or journal.is_damaged):
                what = "it has no whole line, and a journal has its first before it has its name"
                yield Finding("cut-journal", journal.file, what, _RESTORE, events=[_first(journal)])
        yield from self._cut_short()
        yield from self._behind()
        yield from self._reserved_for_nobody()

    def _cut_short(self) -> Iterator[Finding]:
        """Events that state.db has counted, and that are nowhere."""
        without_file = []
        for journal_id, (position, _) in sorted(self._state.positions.items()):
            journal = self._journals.get(journal_id)
            known_seq = max(self._covered.get(journal_id, 0), journal.last_seq if journal else 0)
            if position <= known_seq:
                continue
            missing = Run(journal_id, known_seq + 1, position)
            if journal is None:
                without_file.append(missing)
            elif not journal.is_damaged:
                what = f"its end is missing: state.db has counted {missing}"
                yield Finding("cut-journal", journal.file, what, _RESTORE, events=[missing])
        if without_file and self._lacks_segments():
            self._findings = [_with_events(finding, without_file) for finding in self._findings]
            return
        for missing in without_file:
            what = f"it is missing: state.db has counted {missing}"
            file = f"journals/{missing.journal_id}.jsonl"
            yield Finding("missing-journal", file, what, _RESTORE, events=[missing])

    def _lacks_segments(self) -> bool:
        """Whether the chain is known to have lost its end, and with it what journals no longer hold."""
        return any(_is_of_lost_end(finding) for finding in self._findings)

    def _behind(self) -> Iterator[Finding]:
        """A journal is removed only when state.db has counted all of it."""
        if self._projection is None:
            return
        behind = [
            Run(journal_id, position + 1, covered_seq)
            for journal_id, covered_seq in sorted(self._covered.items())
            if journal_id not in self._journals
            and (position := self._state.positions.get(journal_id, (0, False))[0]) < covered_seq
        ]
        if behind:
            what = f"it is older than the ledger: it has not counted {in_words(behind)}, long sealed"
            yield Finding("state-behind", STATE, what, RECOVER, events=behind)

    def _reserved_for_nobody(self) -> Iterator[Finding]:
        lost = [
            (attempt_id, journal_id)
            for attempt_id, journal_id in self._state.reserved()
            if journal_id not in self._journals or self._state.positions.get(journal_id, (0, False))[1]
        ]
        if lost:
            attempt_id, journal_id = lost[0]
            what = f"{len(lost)} reservations of journals that are gone, such as {attempt_id} of {journal_id}"
            yield Finding("lost-reservation", STATE, what, RECOVER)

    def _suspects(self) -> set[str]:
        """Journals of which some events cannot be believed, or are not there."""
        lost = {run.journal_id for run in self._chain.lost() if not self._has_lines(run)}
        return (
            lost
            | {
                run.journal_id
                for finding in self._findings
                if finding.kind in _OF_LOST_EVENTS
                for run in finding.events
                if not self._has_lines(run)
            }
            | {journal.journal_id for journal in self._journals.values() if journal.is_damaged}
        )

    def _has_lines(self, run: Run) -> bool:
        """Whether a journal still holds what a segment has lost."""
        journal = self._journals.get(run.journal_id)
        if journal is None or len(journal.lines) < run.last_seq - run.first_seq + 1:
            return False
        return all(seq in journal.lines for seq in range(run.first_seq, run.last_seq + 1))

    # the events themselves

    def _of_events(self, suspects: set[str]) -> None:
        import duckdb

        try:
            events = Events(self._root, self._chain, list(self._journals.values()), suspects)
            try:
                self._judge(events, suspects)
            finally:
                events.close()
        except duckdb.OutOfMemoryException as error:
            raise LedgerError(f"{self._root} cannot be verified here: {first_words(error)}") from error
        except duckdb.Error as error:
            what = f"the events cannot be read: {first_words(error)[:200]}"
            remedy = "put the segments back from a backup"
            self._findings.append(Finding("unreadable", "events", what, remedy))

    def _judge(self, events: Events, suspects: set[str]) -> None:
        strange = [*events.read_journals(), *events.contradictions()]
        self._findings += strange
        stories = list(events.broken_stories())
        self._findings += stories
        self._findings += events.wrong_sums() if not stories else ()
        self._counts = events.counts()
        self._notes += events.broken_ceilings()
        self._of_ends(events.ends())
        self._of_projection(events, is_whole=not (suspects or strange))

    def _of_projection(self, events: Events, *, is_whole: bool) -> None:
        if self._projection is None:
            if not any(finding.kind == "state-unreadable" for finding in self._findings):
                what = "state.db is not derived yet: whoever opens the ledger does that"
                self._notes.append(Note("not-derived", 1, what))
            return
        self._findings += events.wrong_index(self._projection)
        if is_whole:
            self._findings += events.wrong_projection(self._projection)
        else:
            what = "balances and holds, as events are missing that they may stand for"
            self._notes.append(Note("not-compared", 1, what))

    def _of_ends(self, ends: Sequence[JournalEnd]) -> None:
        dead = [end for end in ends if not end.is_closed and not self._is_living(end.journal_id)]
        self._findings += [_endless(end) for end in dead if end.journal_id not in self._journals]
        unfinished = [end for end in dead if end.journal_id in self._journals]
        if unfinished:
            attempts = sum(end.open_attempts for end in unfinished)
            what = (
                f"journals that their writers did not close, with {attempts} attempts open in them:"
                " whoever opens the ledger ends them"
            )
            self._notes.append(Note("unfinished", len(unfinished), what))
        unproven = [end for end in ends if end.reason == "recovered" and not self._vouches_for(end)]
        if unproven:
            what = "journals that recovery closed, and state.db cannot say that nothing stood behind"
            self._notes.append(Note("end-unproven", len(unproven), what))
        cut_short = [end for end in ends if end.reason == "cut_short"]
        if cut_short:
            what = (
                "journals whose end a disk has lost, with events that state.db had counted: recovery saw it"
            )
            self._notes.append(Note(CUT_SHORT, len(cut_short), what))

    def _is_living(self, journal_id: str) -> bool:
        journal = self._journals.get(journal_id)
        return journal is not None and journal.is_living

    def _vouches_for(self, end: JournalEnd) -> bool:
        return self._state.positions.get(end.journal_id, (0, False)) == (end.last_seq, True)

    def _more_notes(self) -> Iterator[Note]:
        shorter = [
            journal
            for journal in self._journals.values()
            if journal.last_seq < self._covered.get(journal.journal_id, 0) and not journal.is_damaged
        ]
        if shorter:
            what = "journals that end before what is sealed of them, as in a backup, or after a disk lost it"
            yield Note("short-journal", len(shorter), what)
        if self._folder.unfinished:
            what = "files that were begun and not put in place: their process is at it, or died"
            yield Note("unfinished-files", self._folder.unfinished, what)
        if self._chain.unlisted and not any(f.kind == "manifest-short" for f in self._findings):
            what = "segments without their line in the manifest: a sealer is at work, or died"
            yield Note("unlisted-segment", self._chain.unlisted, what)


_OF_LOST_EVENTS = ("cut-journal", "missing-journal", "missing-segment")


def _is_of_lost_end(finding: Finding) -> bool:
    return (finding.kind, finding.file) == ("missing-segment", MANIFEST)


def _with_events(finding: Finding, lost: Sequence[Run]) -> Finding:
    """What went with segments that nothing but state.db knows of."""
    if not _is_of_lost_end(finding):
        return finding
    return finding._replace(what=f"{finding.what}; gone with them: {in_words(lost)}", events=lost)


def _first(journal: JournalRead) -> Run:
    return Run(journal.journal_id, 1, 1)


def _endless(end: JournalEnd) -> Finding:
    missing = Run(end.journal_id, end.last_seq + 1, end.last_seq + 1)
    what = f"it is missing, and not closed: what follows event {end.last_seq} is not known"
    return Finding("missing-journal", f"journals/{end.journal_id}.jsonl", what, _RESTORE, events=[missing])


def _against(head: Head, kept: Head, chain: Chain) -> Iterator[Finding]:
    """Whether a head that was kept is one of the chain's."""
    remedy = "the kept head is right: put the ledger back from a backup"
    if kept.ledger_id != head.ledger_id:
        what = f"this is ledger {head.ledger_id or 'unknown'}, and the kept head is of {kept.ledger_id}"
        yield Finding("head", "", what, "name the ledger that the head was kept of")
    elif kept.batch > head.batch:
        what = f"the chain ends at batch {head.batch}, and had batch {kept.batch}: segments were taken away"
        yield Finding("head", MANIFEST, what, remedy, kept.batch)
    elif kept.batch:
        link = chain.links[kept.batch - 1]
        if kept.sha256 not in (link.sha256, link.batch.sha256):
            what = f"its hash is not the one that was kept, {kept.sha256[:12]}…: the chain was written anew"
            yield Finding("head", link.batch.file, what, remedy, kept.batch, link.runs)
