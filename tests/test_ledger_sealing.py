"""Sealing: each event once, in a chain of files that are never changed."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from events_by_hand import answered_request, completed, received, started, succeeded
from hypothesis import given
from hypothesis import strategies as st

from ledger import Ledger, manifest, sealing, segments
from ledger.errors import DamagedLedger, LedgerError
from ledger.files import open_private, try_lock
from ledger.lines import Line
from ledger.manifest import Batch, coverage, read_manifest
from ledger.sealing import next_batch
from ledger.segments import batch_of_segment
from ledger.state import State


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


class Clock:
    def __init__(self, at: str = "2026-11-22T12:00:00") -> None:
        self.now = datetime.fromisoformat(at).replace(tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


def sealed_ids(path: Path) -> list[tuple[str, int]]:
    """The identity of every event in the segments, as a plain DuckDB user counts them."""
    rows = duckdb.execute(
        "select journal_id, seq from read_parquet(?, hive_partitioning = true, union_by_name = true)",
        [f"{path}/events/**/*.parquet"],
    ).fetchall()
    return sorted(rows)


def journal_files(path: Path) -> list[str]:
    return sorted(file.name for file in (path / "journals").glob("*.jsonl") if file.name != "empty.jsonl")


def test_every_event_is_sealed_once_and_the_footer_says_what_the_manifest_says(path: Path) -> None:
    with Ledger.open(path) as ledger:
        answered_request(ledger, "r-1", tags=None)
        (batch,) = ledger.seal().batches
        assert ledger.seal().batches == []
    assert batch.rows == 5
    assert [seq for _, seq in sealed_ids(path)] == [1, 2, 3, 4, 5]
    file = path / batch.file
    assert batch.file == f"events/date={batch.first_at[:10]}/{ledger.id}-00000001.parquet"
    assert batch.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert batch.size_bytes == file.stat().st_size
    assert batch_of_segment(path, file) == batch == read_manifest(path)[0][0]


def test_a_living_journal_is_sealed_as_far_as_it_goes_and_the_rest_later(path: Path) -> None:
    with Ledger.open(path) as ledger:
        log = ledger.begin(received(), started())
        ledger.seal()
        log.append(succeeded(log), completed(log))
        ledger.seal()
        assert [batch.rows for batch in read_manifest(path)[0]] == [3, 2]
    with Ledger.open(path) as ledger:
        ledger.seal()
    first, second, third = read_manifest(path)[0]
    assert [batch.previous_sha256 for batch in (first, second, third)] == [None, first.sha256, second.sha256]
    assert [seq for _, seq in sealed_ids(path)] == [1, 2, 3, 4, 5, 6]


def test_a_day_is_a_folder_and_a_clock_that_steps_back_costs_a_further_segment(path: Path) -> None:
    clock = Clock("2026-11-22T23:59:59")
    with Ledger.open(path, clock=clock, auto_seal=False) as ledger:
        answered_request(ledger, "r-1")
        clock.forward(seconds=2)
        answered_request(ledger, "r-2")
        clock.forward(seconds=-2)
        answered_request(ledger, "r-3")
        batches = ledger.seal().batches
    assert [batch.file[7:22] for batch in batches] == [
        "date=2026-11-22",
        "date=2026-11-23",
        "date=2026-11-22",
    ]
    assert [batch.rows for batch in batches] == [5, 4, 4]


EVENTS = st.lists(st.sampled_from(["2026-01-01", "2026-01-02", "2026-01-03"]), max_size=12)


@given(journals=st.dictionaries(st.sampled_from("abcd"), EVENTS, max_size=4), room=st.integers(1, 5))
def test_what_is_covered_of_a_journal_is_always_a_prefix_of_it(
    journals: dict[str, list[str]], room: int
) -> None:
    pending = {
        name: [Line(seq, f"{date}T00:00:00Z", b"") for seq, date in enumerate(dates, start=1)]
        for name, dates in journals.items()
        if dates
    }
    expected = {name: [line.seq for line in lines] for name, lines in pending.items()}
    covered: dict[str, list[int]] = {name: [] for name in pending}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealing, "ROWS_PER_SEGMENT", room)
        while pending:
            date, runs = next_batch(pending)
            assert 0 < sum(map(len, runs.values())) <= room
            for name, run in runs.items():
                assert {line.date for line in run} == {date}
                covered[name] += [line.seq for line in run]
                del pending[name][: len(run)]
            pending = {name: events for name, events in pending.items() if events}
    assert covered == expected


def test_a_segment_without_its_line_is_listed_as_it_is(path: Path) -> None:
    with Ledger.open(path) as ledger:
        answered_request(ledger, "r-1")
        ledger.seal()
        answered_request(ledger, "r-2")
        ledger.seal()
        manifest = path / "manifest.jsonl"
        whole = manifest.read_bytes()
        files = {file: file.read_bytes() for file in path.glob("events/**/*.parquet")}
        for torn in (whole.splitlines(keepends=True)[0], whole[:-10], whole[:-1], b""):
            manifest.write_bytes(torn)
            answered = ledger.seal()
            assert answered.batches == []
            assert manifest.read_bytes() == whole
    assert {file: file.read_bytes() for file in path.glob("events/**/*.parquet")} == files


def test_a_foreign_segment_in_the_next_place_stops_the_sealer(path: Path) -> None:
    with Ledger.open(path) as ledger:
        answered_request(ledger, "r-1")
        (batch,) = ledger.seal().batches
        intruder = (path / batch.file).with_name(f"{ledger.id}-00000002.parquet")
        intruder.write_bytes((path / batch.file).read_bytes())
        with pytest.raises(DamagedLedger, match="does not follow batch 1"):
            ledger.seal()
        intruder.unlink()


@pytest.mark.parametrize("edit", ["cut a line", "change a number", "swap two"])
def test_an_edited_manifest_is_refused(path: Path, edit: str) -> None:
    with Ledger.open(path) as ledger:
        for number in range(3):
            answered_request(ledger, f"r-{number}")
            ledger.seal()
        manifest = path / "manifest.jsonl"
        lines = manifest.read_bytes().splitlines(keepends=True)
        if edit == "cut a line":
            lines.pop(1)
        elif edit == "change a number":
            lines[0] = lines[0].replace(b'"rows":5', b'"rows":6')
        else:
            lines[0], lines[1] = lines[1], lines[0]
        manifest.write_bytes(b"".join(lines))
        with pytest.raises(DamagedLedger, match=r"manifest\.jsonl, line \d"):
            ledger.seal()


def test_a_covered_journal_goes_a_minute_after_it_was_closed_and_applied(path: Path) -> None:
    clock = Clock()
    with Ledger.open(path, clock=clock) as ledger:
        answered_request(ledger, "r-1")
    with Ledger.open(path, clock=clock) as ledger:
        assert ledger.seal().removed_journals == [], "a reader may still be at it"
        clock.forward(seconds=59)
        assert ledger.seal().removed_journals == []
        clock.forward(seconds=2)
        (removed,) = ledger.seal().removed_journals
        assert f"{removed}.jsonl" not in journal_files(path)
        assert [seq for _, seq in sealed_ids(path)] == [1, 2, 3, 4, 5, 6]


def test_a_journal_that_lives_or_was_not_applied_stays(path: Path) -> None:
    clock = Clock()
    with Ledger.open(path, clock=clock) as living, Ledger.open(path, clock=clock) as ledger:
        answered_request(living, "r-1")
        ledger.seal()
        clock.forward(hours=1)
        assert ledger.seal().removed_journals == []


def test_two_sealers_do_not_seal_at_once(path: Path) -> None:
    with Ledger.open(path) as ledger:
        answered_request(ledger, "r-1")
        ledger.seal()
        other = open_private(path / "seal.lock", os.O_RDWR)
        assert try_lock(other)
        with pytest.raises(LedgerError, match="another process has been sealing"):
            ledger.seal(wait_s=0)
        os.close(other)
        ledger.seal(wait_s=0)


def test_sessions_are_indexed_by_batch_and_a_missing_index_is_made_up_for(path: Path) -> None:
    with Ledger.open(path) as ledger:
        for number, session in enumerate(["s-1", "s-2", "s-1", None]):
            log = ledger.begin(received(f"r-{number}", session_id=session))
            ledger.seal()
        del log
    (path / "state.db").unlink()
    with Ledger.open(path, auto_seal=False) as ledger:
        ledger.seal()
        with ledger._projection.state() as state:
            rows = list(state._db.execute("select session_id, batch from session_batches order by 1, 2"))
    batches = read_manifest(path)[0]
    expected = {
        (session, batch.batch)
        for batch in batches
        for session in pq.read_table(path / batch.file, partitioning=None)["session_id"].to_pylist()
        if session is not None
    }
    assert set(rows) == expected


def test_coverage_is_the_furthest_a_batch_goes(path: Path) -> None:
    def batch(number: int, covers: dict[str, int]) -> Batch:
        return Batch(number, "f", 1, 1, "h", None, "l", covers, "t", "t", "t", 1)

    assert coverage([batch(1, {"a": 3}), batch(2, {"a": 5, "b": 2})]) == {"a": 5, "b": 2}


def test_the_footer_can_be_read_by_any_parquet_reader(path: Path) -> None:
    with Ledger.open(path) as ledger:
        answered_request(ledger, "r-1")
        (batch,) = ledger.seal().batches
    footer = json.loads(pq.read_metadata(path / batch.file).metadata[b"bughive"])
    assert footer["covers"] == batch.covers
    assert footer["ledger_id"] == ledger.id


def test_what_a_step_relies_on_is_durable_before_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals before the segment made from them, the segment before its name, its name before the line."""
    steps: list[str] = []

    def spy(owner: Any, name: str, say: Any) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            steps.append(say(*arguments))
            return real(*arguments)

        monkeypatch.setattr(owner, name, call)

    def file_of(fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).suffix

    with Ledger.open(path) as ledger:
        answered_request(ledger, "r-1")
        ledger.seal()
        answered_request(ledger, "r-2")
        for module in (sealing, segments, manifest):
            spy(module, "sync_data", lambda fd: f"sync {file_of(fd)}")
        spy(segments.os, "rename", lambda old, new: f"rename {Path(new).suffix}")
        for module in (segments, manifest):
            spy(module, "sync_folder", lambda folder: f"sync {folder.name.split('=')[0]}")
        ledger.seal()
    assert steps == [
        *("sync .jsonl", "sync .tmp", "rename .parquet", "sync date", "sync events"),
        *("sync .jsonl", "sync ledger"),
    ]


def test_a_journal_whose_flock_another_holds_is_not_removed(path: Path) -> None:
    clock = Clock()
    with Ledger.open(path, clock=clock) as ledger:
        answered_request(ledger, "r-1")
    (name,) = journal_files(path)
    held = open_private(path / "journals" / name, os.O_RDWR)
    with Ledger.open(path, clock=clock) as ledger:
        ledger.seal()
        clock.forward(hours=1)
        assert try_lock(held)
        assert ledger.seal().removed_journals == []
        os.close(held)
        assert ledger.seal().removed_journals == [name.removesuffix(".jsonl")]


def test_a_journal_is_removed_only_when_state_db_would_survive_a_power_loss(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    with Ledger.open(path, clock=clock) as ledger:
        answered_request(ledger, "r-1")

    def cannot(_: object) -> None:
        raise LedgerError("the disk is gone")

    with Ledger.open(path, clock=clock) as ledger:
        ledger.seal()
        clock.forward(hours=1)
        with monkeypatch.context() as patch:
            patch.setattr(State, "make_durable", cannot)
            with pytest.raises(LedgerError, match="the disk is gone"):
                ledger.seal()
        assert len(journal_files(path)) == 1
