"""backup: a copy that is a ledger of its own, made while others write."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from events_by_hand import answered_request, received, started
from played import History

from ledger import Ledger
from ledger import backup as backup_module
from ledger.backup import backup
from ledger.errors import DamagedLedger, LedgerError
from ledger.manifest import read_manifest
from ledger.reader import connect
from ledger.verify import verify

HISTORY = """
    session=crawl_1 task=analyze_page at=2026-11-22T23:59:30
        REASONING   503
        FAST        ok       in=1000 out=200
    session=crawl_2 task=extract_forms at=2026-11-23T00:00:10
        GENERAL     timeout  ceiling=0.01
"""
ROOT = Path(__file__).parents[1]


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    """A ledger with two segments, and one journal with an open request in it."""
    history = History(tmp_path / "ledger")
    history.play(HISTORY)
    history.ledger.seal()
    history.play("session=crawl_3\n    FAST pending ceiling=0.5")
    yield history
    history.close()


def totals(path: Path) -> list[Any]:
    with connect(path) as connection:
        return connection.execute("select * from sessions order by session_id").fetchall()


def test_the_copy_is_sound_and_says_the_same(history: History, tmp_path: Path) -> None:
    made = backup(history.path, tmp_path / "copy")

    found = verify(tmp_path / "copy")
    assert (found.findings, found.warnings) == ([], [])
    assert [note.kind for note in found.notes] == ["unfinished", "not-derived"]
    assert (made.path, made.segments, made.journals) == (tmp_path / "copy", 2, 1)
    assert made.head == found.head == verify(history.path).head
    assert found.counts == verify(history.path).counts
    assert totals(tmp_path / "copy") == totals(history.path)


def test_the_copy_is_byte_for_byte_what_was_sealed(history: History, tmp_path: Path) -> None:
    backup(history.path, tmp_path / "copy")

    for name in ("manifest.jsonl", "ledger.id", *(batch.file for batch in read_manifest(history.path)[0])):
        original, copy = history.path / name, tmp_path / "copy" / name
        assert copy.read_bytes() == original.read_bytes()
        assert copy.stat().st_ino != original.stat().st_ino
        assert copy.stat().st_mode & 0o777 == 0o600


def test_the_copy_opens_and_ends_what_was_open(history: History, tmp_path: Path) -> None:
    backup(history.path, tmp_path / "copy")

    with Ledger.open(tmp_path / "copy", auto_seal=False) as copy:
        assert copy.id == history.ledger.id
        answered_request(copy, "r-9")

    found = verify(tmp_path / "copy")
    assert (found.findings, found.notes) == ([], [])
    assert found.counts.requests == 4
    with connect(tmp_path / "copy") as connection:
        (row,) = connection.execute(
            "select status, reason from requests where reason = 'abandoned'"
        ).fetchall()
    assert row == ("failed", "abandoned")
    assert verify(history.path).is_sound


def test_plain_sql_reads_the_copy_and_not_the_original(history: History, tmp_path: Path) -> None:
    import duckdb

    backup(history.path, tmp_path / "copy")
    history.play("session=crawl_4\n    FAST ok in=5 out=5")

    with duckdb.connect() as connection:
        connection.execute((tmp_path / "copy" / "ledger.sql").read_text())
        assert connection.execute("select count(*) from sessions").fetchall() == [(3,)]


def test_a_journal_sealed_further_than_it_was_copied_is_sound(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is read later, and may cover more: those events come from the segments."""

    def sealed_meanwhile(path: Path) -> Any:
        history.play("session=crawl_4\n    FAST ok in=5 out=5")
        history.ledger.seal()
        return read_manifest(path)

    monkeypatch.setattr(backup_module, "read_manifest", sealed_meanwhile)
    backup(history.path, tmp_path / "copy")
    monkeypatch.undo()

    assert [note.kind for note in verify(tmp_path / "copy").notes] == [
        *("unfinished", "not-derived", "short-journal"),
    ]
    assert totals(tmp_path / "copy") == totals(history.path)
    Ledger.open(tmp_path / "copy", auto_seal=False).close()
    assert verify(tmp_path / "copy").findings == []


def test_a_journal_removed_while_it_is_copied_is_in_the_segments(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.close()
    history.ledger = Ledger.open(history.path, clock=lambda: history.now, auto_seal=False)
    history.ledger.seal()
    history.now += timedelta(minutes=2)
    read_lines = backup_module._whole_lines

    def removed_before(path: Path, size: int, journal_id: str) -> bytes:
        assert history.ledger.seal().removed_journals == [journal_id]
        return read_lines(path, size, journal_id)

    monkeypatch.setattr(backup_module, "_whole_lines", removed_before)

    assert backup(history.path, tmp_path / "copy").journals == 0
    assert verify(tmp_path / "copy").findings == []
    assert totals(tmp_path / "copy") == totals(history.path)


def test_a_torn_end_is_left_out(history: History, tmp_path: Path) -> None:
    (journal,) = (file for file in (history.path / "journals").glob("*.jsonl") if file.stat().st_size)
    whole = journal.read_bytes()
    with journal.open("ab") as file:
        file.write(whole[-50:-20])

    backup(history.path, tmp_path / "copy")

    assert (tmp_path / "copy" / "journals" / journal.name).read_bytes() == whole


def test_an_empty_ledger_can_be_copied(tmp_path: Path) -> None:
    Ledger.open(tmp_path / "ledger", auto_seal=False).close()

    made = backup(tmp_path / "ledger", tmp_path / "copy")

    assert (made.head.batch, made.segments, made.journals) == (0, 0, 0)
    assert verify(tmp_path / "copy").findings == []


def test_an_empty_folder_may_be_there_already(history: History, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()

    backup(history.path, tmp_path / "copy")

    assert verify(tmp_path / "copy").findings == []


def test_folders_on_the_way_are_made(history: History, tmp_path: Path) -> None:
    backup(history.path, tmp_path / "backups" / "of today")

    assert verify(tmp_path / "backups" / "of today").findings == []


@pytest.mark.parametrize("in_the_way", ["file", "folder", "symlink"])
def test_what_is_there_is_never_written_over(history: History, tmp_path: Path, in_the_way: str) -> None:
    target = tmp_path / "copy"
    if in_the_way == "file":
        target.write_text("mine")
    elif in_the_way == "symlink":
        target.symlink_to(tmp_path)
    else:
        target.mkdir()
        (target / "mine").touch()

    with pytest.raises(LedgerError, match=r"is there already|is not empty"):
        backup(history.path, target)

    assert os.path.lexists(target)
    assert not list(tmp_path.glob("copy.tmp-*"))


def test_a_copy_does_not_go_into_the_ledger(history: History) -> None:
    with pytest.raises(LedgerError, match="in the ledger itself"):
        backup(history.path, history.path / "events" / "copy")


@pytest.mark.parametrize(
    "damage", ["flip a segment", "remove a segment", "flip a journal", "remove ledger.id"]
)
def test_a_damaged_ledger_is_not_copied(history: History, tmp_path: Path, damage: str) -> None:
    batches, _ = read_manifest(history.path)
    segment = history.path / batches[0].file
    (journal,) = (file for file in (history.path / "journals").glob("*.jsonl") if file.stat().st_size)
    if damage == "remove a segment":
        segment.unlink()
    elif damage == "remove ledger.id":
        (history.path / "ledger.id").unlink()
    else:
        file = segment if damage == "flip a segment" else journal
        data = bytearray(file.read_bytes())
        data[300] ^= 1
        file.write_bytes(data)

    with pytest.raises(DamagedLedger, match="bughive-costs verify says more"):
        backup(history.path, tmp_path / "copy")

    assert not list(tmp_path.glob("copy*"))


def test_a_copy_that_cannot_be_finished_never_stands_there(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(root: Path, copy: Path, batch: Any) -> None:
        raise OSError(28, "No space left on device", str(copy))

    monkeypatch.setattr(backup_module, "_copy_segment", full)

    with pytest.raises(LedgerError, match="No space left on device"):
        backup(history.path, tmp_path / "copy")

    assert not list(tmp_path.glob("copy*"))


def test_copies_made_beside_writers_and_a_sealer_are_sound(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    Ledger.open(path, auto_seal=False).close()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(number)], env=environment)
        for number, script in enumerate([_WRITER, _WRITER, _WRITER, _WRITER, _SEALER])
    ]
    copies: list[Path] = []
    try:
        while any(worker.poll() is None for worker in workers) and len(copies) < 6:
            copies.append(tmp_path / f"copy-{len(copies)}")
            backup(path, copies[-1])
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for copy in copies:
        assert verify(copy).findings == []
        before = totals(copy)
        Ledger.open(copy, auto_seal=False).close()
        opened = verify(copy)
        assert (opened.findings, opened.notes) == ([], [])
        assert [row[0] for row in totals(copy)] == [row[0] for row in before]


_WRITER = """
import sys
from events_by_hand import answered_request, received, started
from ledger import Ledger
for round in range(10):
    ledger = Ledger.open(sys.argv[1], "process-crash", auto_seal=False)
    for number in range(40):
        answered_request(ledger, f"r-{sys.argv[2]}-{round}-{number}")
    if round % 3 == 0:
        ledger.begin(received(f"o-{sys.argv[2]}-{round}"), started(f"o-{sys.argv[2]}-{round}"))
    ledger.close()
"""
_SEALER = """
import sys
from ledger import Ledger, sealing
sealing.JOURNAL_REMOVED_AFTER_S = 0.0
with Ledger.open(sys.argv[1], auto_seal=False) as ledger:
    for _ in range(30):
        ledger.seal()
"""


def test_a_request_that_is_open_while_copied_is_whole_in_the_copy(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", auto_seal=False) as ledger:
        ledger.begin(received("r-1"), started("r-1"))
        backup(ledger.path, tmp_path / "copy")

        Ledger.open(tmp_path / "copy", auto_seal=False).close()

        with connect(tmp_path / "copy", views=("events", "attempts")) as connection:
            assert connection.execute("select outcome, reserved_usd::varchar from attempts").fetchall() == [
                ("abandoned", "0.010000000000")
            ]
