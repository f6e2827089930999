"""verify: a sound ledger in every phase of its life, and each way in which one can be damaged.

One ledger is made, and each test damages a copy of it:

    batches 1, 2   journal A, over midnight; its file was removed
    batch 3        journal B, closed; its file is still there
                   journal C, closed, not sealed
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from events_by_hand import answered_request, completed, gave_up, received, started, succeeded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from played import History

from ledger import Ledger
from ledger.budgets import Hold
from ledger.checks import events
from ledger.checks.chain import Listed, read_lines
from ledger.errors import LedgerError
from ledger.events import JournalClosed
from ledger.history import all_runs
from ledger.lines import read_line, sealed_line
from ledger.manifest import Batch, list_batch, read_manifest
from ledger.relations import sql_file
from ledger.schema import SCHEMA_VERSION
from ledger.segments import parquet_bytes, write_segment
from ledger.state import State
from ledger.verify import Finding, Head, Verification, verify

TWO_DAYS = """
    session=crawl_1 task=analyze_page at=2026-11-22T23:59:30
        REASONING   503
        FAST        ok       in=1000 out=200
    session=crawl_1 task=analyze_page
        REASONING   timeout  ceiling=0.02
    session=crawl_2 task=extract_forms at=2026-11-23T00:00:10
        GENERAL     ok       in=500 out=90 billed=0.0004
    task=extract_forms
        GENERAL     ok       list=none in=7
"""
A_DAY = """
    session=crawl_2 task=extract_forms
        GENERAL     ok       in=500 out=90
    session=crawl_3 task=propose_fix budget=1 tags={"app":"shop","run":"7"}
        CODING      529
        CODING      ok       in=40 cached=10 out=5
"""


class Made:
    """A copy of the ledger that was made, with the names of what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journals = sorted(file for file in (path / "journals").glob("*.jsonl") if file.stat().st_size)
        self.batches, _ = read_manifest(path)
        self.sealed, self.unsealed = self.journals  # B, C
        self.manifest = path / "manifest.jsonl"

    def segment(self, number: int) -> Path:
        return self.path / self.batches[number - 1].file

    def name(self, file: Path) -> str:
        return str(file.relative_to(self.path))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A, B and C as above; state.db knows all of it."""
    history = History(tmp_path_factory.mktemp("made") / "ledger")
    for text in (TWO_DAYS, A_DAY):
        history.play(text)
        history.close()
        history.now += timedelta(minutes=2)
        history.ledger = reopened(history)
        history.ledger.seal()
    assert [batch.batch for batch in read_manifest(history.path)[0]] == [1, 2, 3]
    history.play(A_DAY)
    history.close()
    return history.path


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Made:
    return Made(copied(original, tmp_path / "ledger"))


def reopened(history: History) -> Ledger:
    return Ledger.open(history.path, "process-crash", clock=lambda: history.now, auto_seal=False)


def copied(path: Path, to: Path) -> Path:
    shutil.copytree(path, to)
    return to


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x20
    file.write_bytes(data)


def the_finding(found: Verification) -> Finding:
    """The only one there is."""
    assert len(found.findings) == 1, found.findings
    return found.findings[0]


def told(finding: Finding) -> tuple[str, str, int | None, int | None, int | None]:
    return finding.kind, finding.file, finding.batch, finding.first_seq, finding.last_seq


def altered_line(line: bytes, **fields: Any) -> bytes:
    """A line that says something else, with a right check."""
    record = read_line(line)
    assert record is not None
    return sealed_line(json.dumps({**record, **fields}, separators=(",", ":")).encode()[:-1]).rstrip(b"\n")


def replace_line(file: Path, number: int, change: Callable[[bytes], bytes]) -> None:
    lines = file.read_bytes().split(b"\n")
    lines[number - 1] = change(lines[number - 1])
    file.write_bytes(b"\n".join(lines))


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().split(b"\n")[:-1]


# a sound ledger, in every phase of its life


def assert_sound(path: Path, *notes: str) -> Verification:
    found = verify(path)
    assert (found.findings, [note.kind for note in found.notes]) == ([], list(notes))
    return found


def test_a_fresh_ledger_is_sound(tmp_path: Path) -> None:
    Ledger.open(tmp_path / "ledger", auto_seal=False).close()

    found = assert_sound(tmp_path / "ledger")

    assert (found.counts.events, found.counts.cost_usd, found.head.batch) == (0, None, 0)


def test_a_ledger_is_sound_while_it_is_written_sealed_and_tidied_up(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play(TWO_DAYS)
    assert_sound(history.path)
    history.ledger.seal()
    assert_sound(history.path)
    history.play("""
        session=crawl_9
            FAST  pending ceiling=0.5
        session=crawl_9
            FAST  ok      in=7 out=7
    """)
    assert_sound(history.path)  # state.db does not know of it yet
    history.ledger.seal()  # an open request is sealed too
    assert_sound(history.path)
    history.close()
    assert_sound(history.path, "unfinished")
    history.ledger = reopened(history)
    assert_sound(history.path)
    history.ledger.seal()
    history.now += timedelta(minutes=2)
    assert history.ledger.seal().removed_journals
    assert_sound(history.path)
    history.ledger.settle("r-2-a1", Decimal("0.01"), reason="the bill came")
    history.ledger.settle("r-5-a1", None)
    history.close()

    found = assert_sound(history.path)

    assert found.counts.requests == 6
    assert found.head.batch == len(read_manifest(history.path)[0])


def test_what_was_made_for_these_tests_is_sound(made: Made) -> None:
    found = assert_sound(made.path)

    assert (found.counts.segments, found.counts.journals) == (3, 2)
    assert found.head == Head(made.batches[0].ledger_id, 3, made.batches[2].sha256)
    assert [warning.kind for warning in found.warnings] == ["other-sql"]  # it names the original's place


def test_a_clock_that_stepped_back_is_no_damage(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play("session=s-1\n    FAST ok in=5 out=5")
    history.play("session=s-1 at=2026-11-20T10:00:00\n    FAST ok in=5 out=5")
    history.play("session=s-1 at=2026-11-22T09:00:00\n    FAST ok in=5 out=5")
    history.ledger.seal()

    assert verify(history.path).counts.segments == 3
    assert_sound(history.path)


def test_a_journal_that_went_on_in_a_second_file_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(tmp_path / "ledger", auto_seal=False) as ledger:
        answered_request(ledger, "r-1")
        with monkeypatch.context() as broken:
            broken.setattr("ledger.journal.sync_data", _failing_once())
            answered_request(ledger, "r-2")
        answered_request(ledger, "r-3")
        assert list((tmp_path / "ledger" / "journals").glob("*.2.jsonl"))
        assert_sound(tmp_path / "ledger")
    assert_sound(tmp_path / "ledger")


def _failing_once() -> Callable[[int], None]:
    fails = [OSError(5, "Input/output error")]

    def sync(fd: int) -> None:
        if fails:
            raise fails.pop()
        os.fsync(fd)

    return sync


def test_a_crash_leaves_nothing_that_counts_as_damage(tmp_path: Path) -> None:
    writer = subprocess.run(
        [sys.executable, "-c", _WRITER_THAT_DIES, str(tmp_path / "ledger")],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parent}"},
        check=False,
    )
    assert writer.returncode == 9
    path = tmp_path / "ledger"
    (journal,) = (file for file in (path / "journals").glob("*.jsonl") if file.stat().st_size)
    with journal.open("ab") as file:
        file.write(lines_of(journal)[-1][:40])  # torn
    (path / "journals" / f"{'0' * 32}.jsonl.tmp").touch(0o600)
    assert_sound(path, "unfinished", "unfinished-files")

    Ledger.open(path, auto_seal=False).close()

    found = assert_sound(path, "unfinished-files")
    assert found.counts.attempts == 2


_WRITER_THAT_DIES = """
import os, sys
from events_by_hand import answered_request, received, started
from ledger import Ledger
ledger = Ledger.open(sys.argv[1], auto_seal=False)
answered_request(ledger, "r-1")
ledger.begin(received("r-2"), started("r-2"))
os._exit(9)
"""


def test_a_sealer_that_died_before_its_line_is_no_damage(made: Made) -> None:
    batches, last = made.batches[:2], made.manifest.read_bytes().rfind(b"\n", 0, -1) + 1
    os.truncate(made.manifest, last)
    _in_state(made, "update meta set value = '2' where key = 'indexed_batch'")
    _in_state(made, f"update meta set value = '{batches[1].sha256}' where key = 'indexed_sha256'")
    _in_state(made, "delete from session_batches where batch = 3")

    found = assert_sound(made.path, "unlisted-segment")

    assert found.counts.events == verify(made.path).counts.events


def test_a_ledger_without_state_db_is_sound_and_not_derived(made: Made) -> None:
    (made.path / "state.db").unlink()

    assert_sound(made.path, "not-derived")


def test_an_end_that_only_recovery_wrote_is_unproven_without_state_db(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play("session=s-1\n    FAST pending ceiling=0.5")
    history.close()
    reopened(history).close()
    assert_sound(history.path)
    (history.path / "state.db").unlink()

    assert_sound(history.path, "end-unproven", "not-derived")


def test_what_others_may_read_is_a_warning(made: Made) -> None:
    made.segment(1).chmod(0o644)

    found = assert_sound(made.path)

    assert [(w.kind, w.file) for w in found.warnings if w.kind == "permissions"] == [
        ("permissions", made.name(made.segment(1)))
    ]


def test_verifying_creates_nothing_and_changes_nothing(made: Made) -> None:
    def stand() -> list[tuple[str, int, int]]:
        return sorted((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in made.path.rglob("*"))

    before = stand()
    verify(made.path)

    assert stand() == before


def test_no_ledger_is_no_finding_but_an_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger at"):
        verify(tmp_path / "nothing")


def test_a_newer_ledger_is_an_error(made: Made) -> None:
    replace_line(made.unsealed, 3, lambda line: altered_line(line, schema_version=SCHEMA_VERSION + 1))

    with pytest.raises(LedgerError, match="update it"):
        verify(made.path)


def test_the_fold_in_sql_is_the_fold_of_state_db(original: Path, tmp_path: Path) -> None:
    state = State(tmp_path / "state.db")
    with state.transaction():
        state.rebuild(all_runs(original))
    fresh = state.dump()
    state.close()
    assert {table for table, rows in fresh.items() if rows} == {"balances", "holds", "positions"}
    shutil.copyfile(tmp_path / "state.db", copied(original, tmp_path / "ledger") / "state.db")

    assert [f.kind for f in verify(tmp_path / "ledger").findings] == []


# journals


@pytest.mark.parametrize("which", ["sealed", "unsealed"])
def test_a_flipped_byte_in_a_journal_is_named_with_its_event(made: Made, which: str) -> None:
    journal: Path = getattr(made, which)
    at = len(b"\n".join(lines_of(journal)[:3])) + 60  # in the fourth line
    flip(journal, at)

    finding = the_finding(verify(made.path))

    assert told(finding) == ("altered-journal", made.name(journal), None, 4, 4)
    assert finding.journal_id == journal.stem


def test_a_flipped_byte_in_the_last_line_is_named(made: Made) -> None:
    last = len(lines_of(made.unsealed))
    flip(made.unsealed, made.unsealed.stat().st_size - 10)

    assert told(the_finding(verify(made.path))) == (
        *("altered-journal", made.name(made.unsealed), None, last, last),
    )


def test_a_flipped_last_newline_is_named(made: Made) -> None:
    flip(made.unsealed, made.unsealed.stat().st_size - 1)

    assert the_finding(verify(made.path)).kind == "altered-journal"


def test_a_truncated_journal_is_missed_by_state_db(made: Made) -> None:
    lines = lines_of(made.unsealed)
    made.unsealed.write_bytes(b"\n".join(lines[:-3]) + b"\n")

    assert told(the_finding(verify(made.path))) == (
        *("cut-journal", made.name(made.unsealed), None, len(lines) - 2, len(lines)),
    )


def test_a_journal_cut_below_what_is_sealed_loses_nothing(made: Made) -> None:
    lines = lines_of(made.sealed)
    made.sealed.write_bytes(b"\n".join(lines[:-3]) + b"\n")

    assert_sound(made.path, "short-journal")


def test_an_emptied_journal_is_missed(made: Made) -> None:
    last = len(lines_of(made.unsealed))
    os.truncate(made.unsealed, 0)

    found = verify(made.path)

    assert ("cut-journal", made.name(made.unsealed), None, 1, last) in map(told, found.findings)


def test_a_deleted_journal_is_missed_by_state_db(made: Made) -> None:
    last = len(lines_of(made.unsealed))
    made.unsealed.unlink()

    assert told(the_finding(verify(made.path))) == (
        *("missing-journal", made.name(made.unsealed), None, 1, last),
    )


def test_a_deleted_living_journal_is_missed_without_state_db(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", auto_seal=False) as ledger:
        answered_request(ledger, "r-1")
        ledger.seal()
        (journal,) = (f for f in (tmp_path / "ledger/journals").glob("*.jsonl") if f.stat().st_size)
        sealed = len(lines_of(journal))
        journal.unlink()

        assert told(the_finding(verify(tmp_path / "ledger")))[:3] == (
            *("missing-journal", f"journals/{journal.name}", None),
        )
        assert sealed == 5


def test_an_event_taken_out_of_a_journal_is_named(made: Made) -> None:
    lines = lines_of(made.unsealed)
    made.unsealed.write_bytes(b"\n".join([*lines[:4], *lines[5:]]) + b"\n")

    assert told(the_finding(verify(made.path))) == ("altered-journal", made.name(made.unsealed), None, 5, 5)


def test_lines_that_were_swapped_are_named(made: Made) -> None:
    lines = lines_of(made.unsealed)
    lines[3], lines[4] = lines[4], lines[3]
    made.unsealed.write_bytes(b"\n".join(lines) + b"\n")

    assert the_finding(verify(made.path)).kind == "altered-journal"


def test_a_cost_edited_with_a_right_check_differs_from_state_db(made: Made) -> None:
    number = next(n for n, line in enumerate(lines_of(made.unsealed), 1) if b'"attempt_succeeded"' in line)
    replace_line(made.unsealed, number, lambda line: altered_line(line, list_cost_usd="0.000000000001"))

    finding = the_finding(verify(made.path))

    assert (finding.kind, finding.file) == ("state-differs", "state.db")
    assert re.search(
        r"the 15 minutes from 20\d\d-\d\d-\d\d \d\d:[0134][05] UTC: \$0\.\d{12} spent", finding.what
    )


def test_an_event_edited_with_a_right_check_differs_from_the_sealed_one(made: Made) -> None:
    replace_line(made.sealed, 3, lambda line: altered_line(line, task="propose_fix"))

    finding = the_finding(verify(made.path))

    assert told(finding) == ("altered-journal", made.name(made.sealed), None, 3, 3)
    assert "sealed" in finding.what


def test_a_line_with_a_right_check_that_is_no_event_is_named(made: Made) -> None:
    replace_line(made.unsealed, 4, lambda line: altered_line(line, attempt_number="many"))

    assert told(the_finding(verify(made.path))) == ("altered-journal", made.name(made.unsealed), None, 4, 4)


def test_a_forged_number_is_named_whatever_its_size(made: Made) -> None:
    replace_line(made.unsealed, 4, lambda line: altered_line(line, seq=2**61))

    assert told(the_finding(verify(made.path)))[:2] == ("altered-journal", made.name(made.unsealed))


def test_a_copied_journal_under_another_name_is_named(made: Made) -> None:
    copy = made.unsealed.with_name(f"{'a' * 32}.jsonl")
    shutil.copyfile(made.unsealed, copy)

    found = verify(made.path)

    assert {finding.file for finding in found.findings} == {made.name(copy)}
    assert made.unsealed.stem in found.findings[0].what


def test_two_contents_of_one_number_in_two_parts_are_named(made: Made) -> None:
    lines = lines_of(made.unsealed)
    part = made.unsealed.with_name(f"{made.unsealed.stem}.2.jsonl")
    part.write_bytes(altered_line(lines[-1], reason="rotated") + b"\n")

    assert told(the_finding(verify(made.path))) == (
        *("altered-journal", made.name(part), None, len(lines), len(lines)),
    )


def test_a_second_part_without_its_first_is_named(made: Made) -> None:
    made.unsealed.rename(made.unsealed.with_name(f"{made.unsealed.stem}.3.jsonl"))

    found = verify(made.path)

    assert f"journals/{made.unsealed.stem}.3.jsonl" in {finding.file for finding in found.findings}


# stories that lines with right checks tell


Story = Callable[[Ledger], None]


def _open_in_a_closed_journal(ledger: Ledger) -> None:
    ledger.begin(received("r-2"), started("r-2"))
    (journal,) = ledger._journals.all()
    journal.append([JournalClosed()])


def _two_outcomes(ledger: Ledger) -> None:
    log = ledger.begin(received("r-2"), started("r-2"))
    log.append(succeeded(log, "r-2"))
    log.append(succeeded(log, "r-2"), completed(log, "r-2"))


def _an_outcome_without_a_start(ledger: Ledger) -> None:
    log = ledger.begin(received("r-2"))
    log.append(succeeded(log, "r-2"), completed(log, "r-2"))


def _no_outcome(ledger: Ledger) -> None:
    log = ledger.begin(received("r-2"), started("r-2"))
    log.append(gave_up(log, "r-2"))


def _more_after_the_end(ledger: Ledger) -> None:
    log = ledger.begin(received("r-2"), started("r-2"))
    ended = [succeeded(log, "r-2"), completed(log, "r-2")]
    (journal,) = ledger._journals.all()
    journal.append(ended[::-1])


def _twice(ledger: Ledger) -> None:
    answered_request(ledger, "r-1")


@pytest.mark.parametrize(
    ("tell", "words"),
    [
        (_open_in_a_closed_journal, "has no end, and its journal is closed"),
        (_two_outcomes, "two outcomes"),
        (_an_outcome_without_a_start, "never started"),
        (_no_outcome, "no outcome"),
        (_more_after_the_end, "goes on after its end"),
        (_twice, "received twice"),
    ],
)
def test_a_story_that_is_not_whole_is_told(tmp_path: Path, tell: Story, words: str) -> None:
    with Ledger.open(tmp_path / "ledger", auto_seal=False) as ledger:
        answered_request(ledger, "r-1")
        tell(ledger)

        found = [finding for finding in verify(ledger.path).findings if finding.kind == "story"]

    assert [words in finding.what for finding in found].count(True) == 1, found
    assert all(finding.first_seq for finding in found)


def test_a_settlement_of_an_attempt_that_is_not_there_is_told(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play("session=s-1\n    FAST timeout ceiling=0.5 settle=0.1")
    (file,) = (f for f in (history.path / "journals").glob("*.jsonl") if b"attempt_settled" in f.read_bytes())
    replace_line(file, 2, lambda line: altered_line(line, attempt_id="nobody"))

    found = verify(history.path)

    assert "a settlement names an attempt that is not there: nobody" in [f.what for f in found.findings]


# segments and the manifest


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_flipped_byte_in_a_segment_is_named_with_what_it_holds(made: Made, number: int) -> None:
    flip(made.segment(number), 1000)

    finding = the_finding(verify(made.path))

    assert told(finding)[:3] == ("altered-segment", made.name(made.segment(number)), number)
    assert finding.last_seq == made.batches[number - 1].covers[finding.journal_id or ""]
    assert finding.first_seq == (1 if number != 2 else made.batches[0].covers[finding.journal_id or ""] + 1)


def test_a_truncated_segment_is_named(made: Made) -> None:
    os.truncate(made.segment(2), 500)

    assert told(the_finding(verify(made.path)))[:3] == ("altered-segment", made.name(made.segment(2)), 2)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_deleted_segment_is_named(made: Made, number: int) -> None:
    file = made.segment(number)
    file.unlink()

    finding = the_finding(verify(made.path))

    assert told(finding)[:3] == ("missing-segment", made.name(file), number)
    assert finding.last_seq == made.batches[number - 1].covers[finding.journal_id or ""]


def test_the_last_segment_deleted_with_its_line_is_known_to_state_db(made: Made) -> None:
    kept = verify(made.path).head
    _remove_last_batch(made)

    finding = the_finding(verify(made.path))

    assert (finding.kind, finding.file, finding.batch) == ("missing-segment", "manifest.jsonl", 3)
    assert "head" in [f.kind for f in verify(made.path, expect_head=kept).findings]


def test_with_state_db_gone_too_the_kept_head_still_knows(made: Made) -> None:
    kept = verify(made.path).head
    _remove_last_batch(made)
    for file in (made.sealed, made.path / "state.db"):
        file.unlink()
    assert_sound(made.path, "not-derived")

    finding = the_finding(verify(made.path, expect_head=kept))

    assert (finding.kind, finding.file, finding.batch) == ("head", "manifest.jsonl", 3)
    assert "the chain ends at batch 2" in finding.what


def _remove_last_batch(made: Made) -> None:
    made.segment(3).unlink()
    os.truncate(made.manifest, made.manifest.read_bytes().rfind(b"\n", 0, -1) + 1)


def test_swapped_segments_are_named_both(made: Made) -> None:
    first, second = made.segment(1).read_bytes(), made.segment(2).read_bytes()
    made.segment(1).write_bytes(second)
    made.segment(2).write_bytes(first)

    found = verify(made.path)

    assert [told(finding)[:3] for finding in found.findings] == [
        ("altered-segment", made.name(made.segment(1)), 1),
        ("altered-segment", made.name(made.segment(2)), 2),
    ]
    assert "its footer says it is batch 2" in found.findings[0].what


def test_a_copied_segment_is_named(made: Made) -> None:
    copy = made.segment(3).with_name(made.segment(3).name.replace("00000003", "00000004"))
    shutil.copyfile(made.segment(3), copy)

    finding = the_finding(verify(made.path))

    assert (finding.kind, finding.file) == ("foreign-file", made.name(copy))
    assert finding.what == "a copy of batch 3"


@pytest.mark.parametrize(
    "name", ["notes.txt", "journals/copy.jsonl", "events/x.parquet", "journals/sub/a", "manifest.jsonl.bak"]
)
def test_a_foreign_file_is_named(made: Made, name: str) -> None:
    (made.path / name).parent.mkdir(exist_ok=True)
    (made.path / name).write_bytes(b"hello")

    found = verify(made.path)

    assert found.findings
    assert {finding.kind for finding in found.findings} == {"foreign-file"}
    assert name in {finding.file for finding in found.findings}


def test_a_symlink_is_named(made: Made, tmp_path: Path) -> None:
    made.segment(1).rename(tmp_path / "elsewhere")
    made.segment(1).symlink_to(tmp_path / "elsewhere")

    found = verify(made.path)

    assert ("symlink", made.name(made.segment(1))) in [(f.kind, f.file) for f in found.findings]


@pytest.mark.parametrize(
    "name", ["ledger.id", "journals/empty.jsonl", "events/date=1970-01-01/empty.parquet"]
)
def test_what_every_ledger_has_is_missed(made: Made, name: str) -> None:
    (made.path / name).unlink()

    assert told(the_finding(verify(made.path)))[:2] == ("missing-file", name)


def test_an_empty_segment_with_other_bytes_is_named(made: Made) -> None:
    name = "events/date=1970-01-01/empty.parquet"
    (made.path / name).write_bytes(made.segment(1).read_bytes())

    assert told(the_finding(verify(made.path)))[:2] == ("altered-file", name)


def test_segments_of_another_ledger_are_named(made: Made) -> None:
    (made.path / "ledger.id").write_text(json.dumps({"ledger_id": "f" * 32, "prompt_key": "00"}))

    assert the_finding(verify(made.path)).kind == "other-ledger"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_flipped_byte_in_the_manifest_is_named_with_its_batch(made: Made, number: int) -> None:
    flip(made.manifest, len(b"\n".join(lines_of(made.manifest)[: number - 1])) + 50)

    finding = the_finding(verify(made.path))

    assert (finding.kind, finding.file, finding.batch) == ("manifest-line", "manifest.jsonl", number)


def test_a_flipped_last_newline_of_the_manifest_is_named_without_state_db(made: Made) -> None:
    (made.path / "state.db").unlink()
    flip(made.manifest, made.manifest.stat().st_size - 1)

    finding = the_finding(verify(made.path))

    assert (finding.kind, finding.batch) == ("manifest-line", 3)


@pytest.mark.parametrize("damage", ["flip", "shorten"])
def test_the_manifest_is_made_again_as_the_remedy_says(made: Made, tmp_path: Path, damage: str) -> None:
    if damage == "flip":
        flip(made.manifest, 100)
        assert "move manifest.jsonl away and run bughive-costs seal" in the_finding(verify(made.path)).remedy
        made.manifest.rename(tmp_path / "moved away")
    else:
        os.truncate(made.manifest, 0)
        assert "bughive-costs seal" in the_finding(verify(made.path)).remedy

    with Ledger.open(made.path, auto_seal=False) as ledger:
        ledger.seal()

    assert_sound(made.path)
    assert [batch.sha256 for batch in made.batches] == [b.sha256 for b in read_manifest(made.path)[0]][:3]


def test_a_line_taken_out_of_the_manifest_is_named(made: Made) -> None:
    lines = lines_of(made.manifest)
    made.manifest.write_bytes(b"\n".join([lines[0], lines[2]]) + b"\n")

    finding = the_finding(verify(made.path))

    assert (finding.kind, finding.batch) == ("manifest-line", 2)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_manifest_that_lost_its_end_is_named(made: Made, kept: int) -> None:
    lines = lines_of(made.manifest)
    made.manifest.write_bytes(b"".join(line + b"\n" for line in lines[:kept]))

    finding = the_finding(verify(made.path))

    assert (finding.kind, finding.file, finding.batch) == ("manifest-short", "manifest.jsonl", kept + 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"rows": 3},
        {"covers": {"a" * 32: 5}},
        {"sha256": "0" * 64},
        {"size_bytes": 5},
        {"last_at": "2027-01-01T00:00:00.000000Z"},
        {"previous_sha256": "1" * 64},
    ],
    ids=lambda fields: next(iter(fields)),
)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_manifest_edited_with_right_checks_is_named(
    made: Made, number: int, fields: dict[str, Any]
) -> None:
    replace_line(made.manifest, number, lambda line: altered_line(line, **fields))

    found = verify(made.path)

    assert [(f.kind, f.file, f.batch) for f in found.findings] == [
        ("manifest-differs", "manifest.jsonl", number)
    ]


def rewritten(made: Made, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """The chain from its first segment on, written anew with other rows, as one who knows how would."""
    written: list[Batch] = []
    made.manifest.unlink()
    for batch in made.batches:
        table = pq.read_table(made.path / batch.file, partitioning=None)
        rows = table.to_pylist()
        change(rows)
        altered = type(table).from_pylist(rows, schema=table.schema)
        (made.path / batch.file).unlink()
        footer = {
            name: getattr(batch, name)
            for name in Batch._fields
            if name not in ("file", "size_bytes", "sha256", "previous_sha256")
        }
        footer["previous_sha256"] = written[-1].sha256 if written else None
        footer["rows"] = altered.num_rows
        written.append(write_segment(made.path, batch.file.split("=")[1][:10], altered, footer))
        list_batch(made.path, written[-1])


def cheaper(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["list_cost_usd"] = row["list_cost_usd"] and row["list_cost_usd"] / 2


def test_a_wholly_rewritten_chain_is_known_by_a_kept_head(made: Made) -> None:
    kept = verify(made.path).head
    rewritten(made, cheaper)
    made.sealed.unlink()
    (made.path / "state.db").unlink()
    assert_sound(made.path, "not-derived")

    finding = the_finding(verify(made.path, expect_head=kept))

    assert (finding.kind, finding.file, finding.batch) == ("head", made.name(made.segment(3)), 3)
    assert "written anew" in finding.what


def test_a_wholly_rewritten_chain_is_known_by_state_db(made: Made) -> None:
    rewritten(made, cheaper)
    made.sealed.unlink()

    kinds = [(finding.kind, finding.batch) for finding in verify(made.path).findings]

    assert ("chain", 3) in kinds


def test_an_event_left_out_of_a_rewritten_segment_is_named(made: Made) -> None:
    rewritten(made, lambda rows: rows.pop(3) and None)
    (made.path / "state.db").unlink()

    found = verify(made.path)

    assert [(f.kind, f.batch) for f in found.findings] == [
        ("segment-rows", 1),
        ("segment-rows", 2),
        ("segment-rows", 3),
    ]


def test_an_event_twice_in_a_rewritten_segment_is_named(made: Made) -> None:
    rewritten(made, lambda rows: rows.append(rows[3]))

    assert ("segment-rows", 1) in [(f.kind, f.batch) for f in verify(made.path).findings]


def test_an_event_in_the_folder_of_another_day_is_named(made: Made) -> None:
    def later(rows: list[dict[str, Any]]) -> None:
        rows[0]["occurred_at"] += timedelta(days=3)

    rewritten(made, later)

    assert "in the folder of 2026-11-22" in verify(made.path).findings[0].what


# heads


def test_a_head_kept_earlier_is_still_in_the_chain(made: Made) -> None:
    for batch in made.batches:
        kept = Head(batch.ledger_id, batch.batch, batch.sha256)
        assert verify(made.path, expect_head=Head.parse(str(kept))).is_sound
    assert verify(made.path, expect_head=Head(made.batches[0].ledger_id, 0, "-")).is_sound


def test_a_head_of_another_ledger_is_told(made: Made) -> None:
    finding = the_finding(verify(made.path, expect_head=Head("e" * 32, 1, made.batches[0].sha256)))

    assert (finding.kind, "e" * 32 in finding.what) == ("head", True)


@pytest.mark.parametrize(
    "text", ["", "abc", f"{'a' * 32}:1:xyz", f"{'a' * 32}:0:{'b' * 64}", f"{'a' * 32}:-1:-"]
)
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(LedgerError, match="is no head; expected ledger_id:batch:sha256"):
        Head.parse(text)


# state.db


def _in_state(made: Made, sql: str) -> None:
    with sqlite3.connect(made.path / "state.db") as connection:
        connection.execute(sql)
    connection.close()


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("update unsummed set spent_pico = spent_pico + 1 where id = 1", "balances"),
        ("delete from unsummed where session_id is not null", "balances"),
        ("insert into balances values ('task', 'nothing', 5, 5, 0, 0)", "balances"),
        ("delete from doubts", "holds"),
        ("update doubts set ceiling_pico = 1 where ceiling_pico is not null", "holds"),
        ("update doubts set quarter = 1", "holds"),
        ("update sums set spent_rest = spent_rest + 1 where scope = 'tier'", "sums"),
        ("insert into budgets values ('all', '', 'hard', 5, 'UTC', null, '', 'j', 1)", "budgets"),
        ("insert into request_spent values ('r-99', 1, 0)", "request_spent"),
        ("insert into settled values ('r-2-a1')", "settled"),
        ("insert into circuits values ('openrouter', 'm', 1700000000000000, 0)", "circuits"),
        (f"insert into circuits values ('openrouter', 'm', {2**62}, 0)", "circuits"),
        (f"insert into balances values ('task', 'nothing', {2**62}, 5, 0, 0)", "balances"),
        ("update positions set closed = 0", "positions"),
        ("delete from session_batches where session_id = 'crawl_1'", "session_batches"),
    ],
)
def test_a_hand_edited_state_db_is_told(made: Made, sql: str, words: str) -> None:
    _in_state(made, sql)

    finding = the_finding(verify(made.path))

    assert (finding.kind, finding.file) == ("state-differs", "state.db")
    assert finding.what.startswith(words)
    assert "bughive-costs recover" in finding.remedy


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("insert into balances values ('all', '', 5, 5, 0, 0)", "all, the 15 minutes from 1970-01-01 01:15"),
        ("update sums set spent_rest = spent_rest + 1 where scope = 'all'", "all, from ever to ever:"),
        ("update sums set spent_rest = spent_rest + 1 where scope = 'tier'", "tier [A-Z]+, from ever"),
        (
            "insert into budgets values ('all', '', 'hard', null, 'UTC', null, '', 'j', 1)",
            "hard budget of all there is: lifted in UTC",
        ),
        (
            "insert into budgets values ('day', '', 'warn', 5, 'Asia/Tokyo', null, '', 'j', 1)",
            r"warn budget of the day: \$0.000000000005 in Asia/Tokyo",
        ),
        (
            "insert into budgets values ('session', '', 'hard', 5, 'UTC', null, '', 'j', 1)",
            r"hard budget of each session: \$0.000000000005 in UTC",
        ),
    ],
)
def test_what_state_db_differs_in_is_named_as_people_know_it(made: Made, sql: str, words: str) -> None:
    _in_state(made, sql)
    assert re.search(f": it has {words}", the_finding(verify(made.path)).what)


def test_a_state_db_that_sqlite_finds_broken_is_told(made: Made) -> None:
    with sqlite3.connect(made.path / "state.db") as connection:
        connection.execute("pragma writable_schema = on")
        connection.execute("delete from sqlite_schema where name = 'doubts_of_session'")
    connection.close()

    finding = the_finding(verify(made.path))

    assert (finding.kind, finding.file) == ("state-unreadable", "state.db")


def test_recover_makes_a_hand_edited_state_db_right_again(made: Made) -> None:
    _in_state(made, "update unsummed set spent_pico = 0")
    _in_state(made, "delete from session_batches")
    assert not verify(made.path).is_sound

    Ledger.recover(made.path)

    assert_sound(made.path)


def test_a_reservation_of_a_journal_that_is_gone_is_told(made: Made) -> None:
    _in_state(
        made, "insert into holds values ('a-1', 'gone', 'r-1', null, 't', 'FAST', 'm', 5, 1, 'reserved')"
    )

    finding = the_finding(verify(made.path))

    assert (finding.kind, finding.file) == ("lost-reservation", "state.db")


def test_a_reservation_of_a_living_journal_is_no_damage(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", auto_seal=False) as ledger:
        log = ledger.open_request(received("r-1"))
        log.reserve(Hold("r-1-a1", "r-1", "s-1", "analyze_page", "REASONING", "m", Decimal("0.01")), [])

        assert_sound(ledger.path)


# folders that were put together from different moments


@pytest.mark.parametrize("name", ["manifest.jsonl", "state.db", "events"])
def test_a_part_of_an_old_backup_over_the_folder_is_told(original: Path, tmp_path: Path, name: str) -> None:
    history = History(tmp_path / "ledger")
    history.play(TWO_DAYS)
    history.close()
    history.ledger = reopened(history)
    history.ledger.seal()
    history.close()
    old = copied(history.path, tmp_path / "old")
    history.ledger = reopened(history)
    for _ in range(2):
        history.play(A_DAY)
        history.close()
        history.now += timedelta(minutes=2)
        history.ledger = reopened(history)
        history.ledger.seal()
    history.close()
    assert_sound(history.path)
    if name == "events":
        shutil.rmtree(history.path / name)
        shutil.copytree(old / name, history.path / name)
    else:
        shutil.copyfile(old / name, history.path / name)

    found = verify(history.path)

    expected = {"manifest.jsonl": "manifest-short", "state.db": "state-behind", "events": "missing-segment"}
    assert expected[name] in {finding.kind for finding in found.findings}
    assert all(finding.file for finding in found.findings)


def test_a_whole_folder_of_an_old_backup_is_sound_and_known_by_a_kept_head(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play(TWO_DAYS)
    history.close()
    old = copied(history.path, tmp_path / "old")
    history.ledger = reopened(history)
    history.ledger.seal()
    history.close()
    kept = verify(history.path).head
    shutil.rmtree(history.path)
    old.rename(history.path)
    assert_sound(history.path)

    finding = the_finding(verify(history.path, expect_head=kept))

    assert (finding.kind, finding.file) == ("head", "manifest.jsonl")
    assert "the chain ends at batch 0" in finding.what


def test_a_folder_copied_while_in_use_is_told(tmp_path: Path) -> None:
    """In the worst order: the manifest first, the journals once they were sealed and removed."""
    history = History(tmp_path / "ledger")
    history.play(TWO_DAYS)
    history.close()
    history.ledger = reopened(history)
    copy = tmp_path / "copy"
    copy.mkdir(mode=0o700)
    shutil.copytree(history.path / "events", copy / "events")  # before
    history.ledger.seal()
    history.now += timedelta(minutes=2)
    assert history.ledger.seal().removed_journals
    history.close()
    batches, _ = read_manifest(history.path)
    shutil.copytree(history.path / "journals", copy / "journals")  # after
    for name in ("ledger.id", "ledger.sql", "state.db"):
        shutil.copyfile(history.path / name, copy / name)

    finding = the_finding(verify(copy))

    assert finding.kind == "missing-segment"
    assert finding.journal_id
    assert (finding.first_seq, finding.last_seq) == (1, batches[-1].covers[finding.journal_id])


# files that are not what they should be at all


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"\xff\xfe garbage \n" * 50, b"x" * 3_000_000])
@pytest.mark.parametrize("which", ["sealed", "unsealed", "segment", "manifest", "state.db", "ledger.id"])
def test_garbage_is_found_and_never_an_error(made: Made, which: str, content: bytes) -> None:
    file = {
        "sealed": made.sealed,
        "unsealed": made.unsealed,
        "segment": made.segment(2),
        "manifest": made.manifest,
        "state.db": made.path / "state.db",
        "ledger.id": made.path / "ledger.id",
    }[which]
    file.write_bytes(content)

    found = verify(made.path)

    if (which, content) == ("state.db", b""):
        assert [note.kind for note in found.notes] == ["not-derived"]
    else:
        assert found.findings
    assert all("\n" not in finding.what for finding in found.findings)


@pytest.mark.parametrize("name", ["ledger.id", "state.db", "manifest.jsonl", "journals/empty.jsonl"])
def test_a_folder_in_a_files_place_is_found(made: Made, name: str) -> None:
    (made.path / name).unlink()
    (made.path / name).mkdir()

    assert ("foreign-file", name) in [(f.kind, f.file) for f in verify(made.path).findings]


def test_a_forged_segment_that_cannot_be_read_is_found(made: Made) -> None:
    """With a right hash and a right line: only its content is wrong."""
    table = pq.read_table(made.segment(3), partitioning=None).select(["journal_id", "seq", "occurred_at"])
    batch = made.batches[2]
    footer = {
        name: getattr(batch, name) for name in Batch._fields if name not in ("file", "size_bytes", "sha256")
    }
    os.truncate(made.manifest, made.manifest.read_bytes().rfind(b"\n", 0, -1) + 1)
    changed = table.set_column(2, "occurred_at", table.column("seq"))
    made.segment(3).write_bytes(parquet_bytes(changed, footer))
    data = made.segment(3).read_bytes()
    list_batch(made.path, batch._replace(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)))

    assert ("segment-rows", 3) in [(f.kind, f.batch) for f in verify(made.path).findings]


# any byte


@pytest.fixture(scope="module")
def playground(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(original, tmp_path_factory.mktemp("playground") / "ledger")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_of_the_truth_is_found(playground: Path, data: st.DataObject) -> None:
    made = Made(playground)
    files = [*made.journals, *(made.segment(n) for n in (1, 2, 3)), made.manifest]
    file = data.draw(st.sampled_from(files))
    content = file.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(1, 255))
    try:
        file.write_bytes(content[:at] + bytes([content[at] ^ other]) + content[at + 1 :])
        found = verify(playground)
    finally:
        file.write_bytes(content)

    name = str(file.relative_to(playground))
    assert name in {finding.file for finding in found.findings}, (name, at, other, found.findings)


# views that do not add up


@pytest.mark.parametrize(
    ("are_few", "view"), [(True, "attempts"), (True, "requests"), (False, "sessions"), (False, "daily_spend")]
)
def test_a_view_that_leaves_a_row_out_is_told_however_many_events_there_are(
    original: Path, monkeypatch: pytest.MonkeyPatch, are_few: bool, view: str
) -> None:
    def without_one(name: str) -> str:
        text = sql_file(name)
        return f"select * from ({text}) order by all offset 1" if name == view else text

    if not are_few:
        monkeypatch.setattr(events, "_KEPT_UP_TO", {})
    monkeypatch.setattr(events, "sql_file", without_one)

    assert {finding.kind for finding in verify(original).findings} == {"sums"}


def test_many_events_add_up_as_few_do(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_KEPT_UP_TO", {})

    assert_sound(original)


# beside those who write


def test_what_is_found_only_once_in_a_folder_that_moves_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the manifest had been read too early, while a writer was at work."""
    history = History(tmp_path / "ledger")
    history.play(TWO_DAYS)
    history.ledger.seal()
    looks = []

    def seen_otherwise_each_time(root: Path) -> Listed:
        looks.append(root)
        history.play(A_DAY)
        return Listed({}, [], False, []) if len(looks) == 1 else read_lines(root)._replace(broken_lines=[9])

    monkeypatch.setattr("ledger.verify.read_lines", seen_otherwise_each_time)

    assert verify(history.path).findings == []
    assert len(looks) == 2


def test_what_is_found_in_a_folder_that_is_still_is_told_at_once(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    monkeypatch.setattr("ledger.verify.read_lines", lambda root: looks.append(root) or read_lines(root))
    made.segment(1).unlink()

    assert the_finding(verify(made.path)).kind == "missing-segment"
    assert len(looks) == 1


def test_writers_and_a_sealer_at_work_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    Ledger.open(path, auto_seal=False).close()
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parent}"}
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(number)], env=environment)
        for number, script in enumerate([_WRITER, _WRITER, _WRITER, _SEALER])
    ]
    try:
        while any(worker.poll() is None for worker in workers):
            assert verify(path).findings == []
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers] == [0] * len(workers)
    assert_sound(path)


_WRITER = """
import sys
from events_by_hand import answered_request
from ledger import Ledger
for round in range(12):
    with Ledger.open(sys.argv[1], "process-crash", auto_seal=False) as ledger:
        for number in range(60):
            answered_request(ledger, f"r-{sys.argv[2]}-{round}-{number}")
"""
_SEALER = """
import sys
from ledger import Ledger, sealing
sealing.JOURNAL_REMOVED_AFTER_S = 0.0
with Ledger.open(sys.argv[1], auto_seal=False) as ledger:
    for _ in range(25):
        ledger.seal()
"""
