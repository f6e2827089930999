"""What a dead process left is ended, torn ends are cut, damage is kept and said."""

from __future__ import annotations

import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from events_by_hand import answered_request, received, started

from ledger import Ledger, recovery
from ledger.budgets import Balance, Hold
from ledger.errors import DamagedLedger
from ledger.lines import part_path, read_story
from ledger.manifest import coverage, read_manifest
from ledger.recovery import endings
from ledger.segments import sealed_events

D = Decimal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def die(path: Path, last_words: Callable[[Ledger], Any]) -> Path:
    """A process opens the ledger, does something and is gone without a word. Gives its journal's file."""
    before = set(journals(path))
    child = os.fork()
    if child == 0:
        ledger = Ledger.open(path, "process-crash")  # kept until the end: one that is let go of is closed
        try:
            last_words(ledger)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    (journal,) = set(journals(path)) - before
    return journal


def journals(path: Path) -> list[Path]:
    return [file for file in sorted((path / "journals").glob("*.jsonl")) if file.name != "empty.jsonl"]


def events_of(file: Path) -> list[dict[str, Any]]:
    return read_story(file.read_bytes(), file.name.split(".")[0]).events


def types_of(file: Path) -> list[str]:
    return [event["event_type"] for event in events_of(file)]


def in_flight(ledger: Ledger) -> None:
    ledger.begin(received(), started())


def answered(ledger: Ledger) -> None:
    answered_request(ledger, "r-1")


def test_an_attempt_in_flight_is_abandoned_with_its_ceiling_and_its_request_failed(path: Path) -> None:
    journal = die(path, in_flight)
    Ledger.open(path).close()
    story = events_of(journal)
    assert types_of(journal) == [
        *("journal_opened", "request_received", "attempt_started"),
        *("attempt_abandoned", "request_failed", "journal_closed"),
    ]
    abandoned, request_end, closed = story[3:]
    assert abandoned["started_at"] == story[2]["occurred_at"]
    assert (abandoned["billing"], abandoned["reserved_usd"], abandoned["tier"]) == (
        "unknown",
        "0.01",
        "REASONING",
    )
    assert (request_end["reason"], request_end["error_type"]) == ("abandoned", "cancelled")
    assert closed["reason"] == "recovered"


def test_a_request_between_two_attempts_is_failed_without_a_further_outcome(path: Path) -> None:
    journal = die(path, lambda ledger: ledger.begin(received()))
    Ledger.open(path).close()
    assert types_of(journal)[1:] == ["request_received", "request_failed", "journal_closed"]


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_end_is_cut(path: Path, cut: int) -> None:
    journal = die(path, answered)
    os.truncate(journal, journal.stat().st_size - cut)
    Ledger.open(path).close()
    story = read_story(journal.read_bytes(), journal.stem)
    assert story.good_bytes == journal.stat().st_size
    assert [event["seq"] for event in story.events] == list(range(1, len(story.events) + 1))
    assert types_of(journal)[-1] == "journal_closed"


def test_a_line_that_lacks_only_its_newline_counts(path: Path) -> None:
    journal = die(path, answered)
    os.truncate(journal, journal.stat().st_size - 1)
    Ledger.open(path).close()
    assert types_of(journal)[-2:] == ["request_completed", "journal_closed"]


def test_a_damaged_journal_is_reported_left_as_it_is_and_refused_by_readers(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = die(path, answered)
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"REASONING", b"ORCHESTRA")
    damaged = b"".join(lines)
    journal.write_bytes(damaged)
    with Ledger.open(path) as ledger:
        assert "2 whole lines out of sequence or behind a broken one; nothing was changed" in caplog.text
        assert journal.read_bytes() == damaged
        with pytest.raises(DamagedLedger, match="seq 3 is missing or damaged"):
            ledger.connect()


def test_a_living_journal_is_left_alone(path: Path) -> None:
    with Ledger.open(path) as living:
        in_flight(living)
        before = journals(path)[0].read_bytes()
        Ledger.open(path).close()
        assert journals(path)[0].read_bytes() == before


def test_recovering_again_changes_nothing(path: Path) -> None:
    journal = die(path, in_flight)
    Ledger.open(path).close()
    once = journal.read_bytes()
    Ledger.open(path).close()
    assert journal.read_bytes() == once


@pytest.mark.parametrize("lines_written", [1, 2])
def test_a_recovery_that_died_is_continued(path: Path, lines_written: int) -> None:
    journal = die(path, in_flight)
    started_only = journal.read_bytes()
    Ledger.open(path).close()
    ended = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(started_only + b"".join(ended[3 : 3 + lines_written]))
    (path / "state.db").unlink()
    Ledger.open(path).close()
    assert types_of(journal)[3:] == ["attempt_abandoned", "request_failed", "journal_closed"]


def test_a_reservation_without_an_attempt_is_dropped(path: Path) -> None:
    hold = Hold("r-9-a1", "r-9", "s-1", "t", "REASONING", "m", D("0.5"))
    die(path, lambda ledger: ledger.open_request(received()).reserve(hold, []))
    with Ledger.open(path) as ledger, ledger._projection.state() as state:
        assert state.balance("request", "r-9") == Balance()


def test_a_journal_that_never_got_its_name_is_removed(path: Path) -> None:
    Ledger.open(path).close()
    unborn = path / "journals" / "0123.jsonl.tmp"
    unborn.write_bytes(b"{")
    Ledger.open(path).close()
    assert unborn.exists(), "its process may be about to name it"
    os.utime(unborn, (0, 0))
    Ledger.open(path).close()
    assert not unborn.exists()


def test_numbers_that_were_sealed_are_not_given_again_when_the_disk_lost_their_lines(path: Path) -> None:
    journal = die(path, in_flight)
    Ledger.open(path).close()
    # sealed while its writer lived: take the recovered end away again, seal what is left
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]))
    (path / "state.db").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery, "recover", lambda *_: [])
        patch.setattr("ledger.sealing.recover", lambda *_: [])
        with Ledger.open(path, auto_seal=False) as ledger:
            ledger.seal()
    assert coverage(read_manifest(path)[0])[journal.stem] == 3
    journal.write_bytes(lines[0])  # the power went, and with it lines 2 and 3
    (path / "state.db").unlink()

    with Ledger.open(path, auto_seal=False) as ledger:
        ledger.seal()
        batches, _ = read_manifest(path)
        story = sealed_events(path, batches, journal.stem)
        assert [event["seq"] for event in story] == [1, 2, 3, 4, 5, 6]
        assert [event["event_type"] for event in story][3:] == [
            *("attempt_abandoned", "request_failed", "journal_closed")
        ]


def test_a_journal_with_a_hole_is_reported_and_not_touched(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = die(path, in_flight)
    second = part_path(journal.parent, journal.stem, 2)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0])
    second.write_bytes(lines[2])
    before = second.read_bytes()
    Ledger.open(path).close()
    assert "event 2 is missing; nothing was changed" in caplog.text
    assert (journal.read_bytes(), second.read_bytes()) == (lines[0], before)
    with pytest.raises(DamagedLedger, match="event 2 is missing"), Ledger.open(path) as ledger:
        ledger.seal()


def test_what_ends_a_story_is_a_pure_function_of_it() -> None:
    assert [event.event_type for event in endings([])] == ["journal_closed"]  # type: ignore[attr-defined]
