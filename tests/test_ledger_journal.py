"""How lines reach a journal, and what of them is believed."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from events_by_hand import received, started
from hypothesis import given
from hypothesis import strategies as st

from ledger import journal as journal_module
from ledger.errors import DamagedLedger, LedgerError
from ledger.events import JournalOpened
from ledger.journal import Journal
from ledger.lines import merged_lines, part_paths, read_line, read_story, stamped_line

OPENED = JournalOpened(host="h", pid=1, version="0")


def utc_now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def make_journal(tmp_path: Path) -> Iterator[Callable[..., Journal]]:
    made: list[Journal] = []

    def make(durable: bool = True) -> Journal:
        made.append(Journal.create(tmp_path, f"j{len(made)}", OPENED, utc_now, durable))
        return made[-1]

    yield make
    for journal in made:
        journal.leave()


def story_of(journal: Journal, folder: Path) -> list[dict[str, Any]]:
    """All events of a journal's parts, each number once; fails where two parts disagree."""
    by_seq: dict[int, dict[str, Any]] = {}
    for part in part_paths(folder, journal.id):
        for event in read_story(part.read_bytes(), journal.id).events:
            assert by_seq.setdefault(event["seq"], event) == event
    return [by_seq[seq] for seq in sorted(by_seq)]


def types_of(journal: Journal, folder: Path) -> list[str]:
    return [event["event_type"] for event in story_of(journal, folder)]


def test_a_journal_begins_opened_and_ends_closed_without_a_gap(
    make_journal: Callable[..., Journal], tmp_path: Path
) -> None:
    journal = make_journal()
    journal.append([received(session_id=None)])
    journal.append([received("r-2")])
    story = story_of(journal, tmp_path)
    assert [event["seq"] for event in story] == [1, 2, 3]
    assert story[0]["event_type"] == "journal_opened"
    assert journal.open_requests == 2
    journal.close()
    assert types_of(journal, tmp_path)[-1] == "request_received", "with a request open it is only let go"


def test_one_commit_has_one_moment_and_is_written_with_one_check_a_line(
    make_journal: Callable[..., Journal], tmp_path: Path
) -> None:
    journal = make_journal()
    occurred_at = journal.append([received(), started()])
    lines = journal.path.read_bytes().splitlines()
    records = [read_line(line) for line in lines[1:]]
    moments = {datetime.fromisoformat(record["occurred_at"]) for record in records if record}
    assert moments == {occurred_at}
    assert read_line(lines[1].replace(b"s-1", b"s-2")) is None


class _Hindered(Decimal):
    """An amount that cannot be written down undisturbed."""

    def __format__(self, spec: str, context: object = None) -> str:
        return self.hindrance()

    def hindrance(self) -> str:
        raise ValueError("`: a Ctrl-C would be a KeyboardInterrupt: this is none")


class _InterruptedByCtrlC(_Hindered):
    def hindrance(self) -> str:
        signal.raise_signal(signal.SIGINT)  # its handler runs before this returns
        raise AssertionError("it was not interrupted")


def test_a_ctrl_c_while_an_event_is_written_down_is_one_to_the_caller(
    make_journal: Callable[..., Journal], tmp_path: Path
) -> None:
    journal = make_journal()
    for amount, raised in ((_InterruptedByCtrlC(1), KeyboardInterrupt), (_Hindered(1), ValueError)):
        hindered = started().model_copy(update={"reserved_usd": amount})
        with pytest.raises(raised):
            journal.append([received(), hindered])
    journal.append([received(), started()])
    assert types_of(journal, tmp_path) == ["journal_opened", "request_received", "attempt_started"]


def test_files_are_private(make_journal: Callable[..., Journal]) -> None:
    assert make_journal().path.stat().st_mode & 0o777 == 0o600


@given(cut=st.integers(0, 400), noise=st.binary(max_size=20))
def test_a_story_ends_where_its_file_is_torn(cut: int, noise: bytes) -> None:
    lines = [stamped_line("j", seq, utc_now(), OPENED) for seq in range(1, 4)]
    data = b"".join(lines)
    torn = data[: max(0, len(data) - cut)]
    story = read_story(torn + noise.replace(b"\n", b""), "j")
    whole = b"".join(lines[: len(story.events)])
    assert data.startswith(whole)
    assert len(story.events) >= torn.count(b"\n")
    assert story.damage is None


def test_whole_lines_behind_a_broken_one_are_damage() -> None:
    lines = [stamped_line("j", seq, utc_now(), OPENED) for seq in range(1, 5)]
    broken = lines[0] + lines[1][:-9] + b"\n" + lines[2] + lines[3]
    story = read_story(broken, "j")
    assert len(story.events) == 1
    assert story.good_bytes == len(lines[0])
    assert story.damage == "2 whole lines out of sequence or behind a broken one"
    assert read_story(lines[0] + lines[2], "j").damage is not None, "a line was taken out"
    assert read_story(lines[0], "other").damage is not None, "a line of another journal"


def test_a_full_disk_refuses_the_request_and_its_number_is_not_given_again(
    make_journal: Callable[..., Journal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make_journal()
    real_write_all = journal_module.write_all

    def half_then_full(fd: int, data: bytes) -> None:
        os.write(fd, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal_module, "write_all", half_then_full)
    with pytest.raises(LedgerError, match="No space left on device"):
        journal.append([received("refused")], unless_confirmed=lambda at: [received("what ends it")])
    monkeypatch.setattr(journal_module, "write_all", real_write_all)

    journal.append([received("after")])
    assert [event.get("request_id") for event in story_of(journal, tmp_path)] == [
        *(None, "refused", "what ends it", "after")
    ]


def test_while_the_disk_is_full_only_what_has_happened_is_kept(
    make_journal: Callable[..., Journal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make_journal()

    def full(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_all", full)
        for request_id in ("first", "second", "third"):
            with pytest.raises(LedgerError):
                journal.append([received(request_id)])
        with pytest.raises(LedgerError):
            journal.append([received("outcome")], must_keep=True)
    journal.append([received("after")])
    assert [event.get("request_id") for event in story_of(journal, tmp_path)][1:] == [
        *("first", "outcome", "after")
    ]


def test_after_a_failed_sync_the_journal_goes_on_in_a_new_part_with_the_same_numbers(
    make_journal: Callable[..., Journal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make_journal()
    journal.append([received("synced")])
    real_sync, failures = journal_module.sync_data, [OSError(errno.EIO, "Input/output error")]

    def sync_fails_once(fd: int) -> None:
        if failures:
            raise failures.pop()
        real_sync(fd)

    monkeypatch.setattr(journal_module, "sync_data", sync_fails_once)
    journal.append([received("unsure")])
    journal.append([received("after")])

    first, second = part_paths(tmp_path, journal.id)
    unsure = first.read_bytes().splitlines()[-1]
    assert second.read_bytes().splitlines()[0] == unsure, "byte for byte"
    assert [event.get("request_id") for event in story_of(journal, tmp_path)] == [
        *(None, "synced", "unsure", "after")
    ]


def test_a_sync_that_fails_again_reaches_the_caller(
    make_journal: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make_journal()

    def never(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(journal_module, "sync_data", never)
    with pytest.raises(LedgerError, match="Input/output error"):
        journal.append([received()])


def test_a_keyboard_interrupt_between_write_and_bookkeeping_neither_loses_nor_repeats_a_line(
    make_journal: Callable[..., Journal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make_journal()
    real_write_all = journal_module.write_all

    def write_then_interrupt(fd: int, data: bytes) -> None:
        real_write_all(fd, data)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_all", write_then_interrupt)
        with pytest.raises(KeyboardInterrupt):
            journal.append([received("interrupted")])
    journal.append([received("after")])
    assert [event.get("request_id") for event in story_of(journal, tmp_path)][1:] == ["interrupted", "after"]


def test_a_descriptor_closed_by_others_is_opened_again(
    make_journal: Callable[..., Journal], tmp_path: Path
) -> None:
    journal = make_journal()
    os.close(journal._fd)
    elsewhere = os.open(tmp_path / "elsewhere", os.O_RDWR | os.O_CREAT)  # takes over the number
    try:
        journal.append([received()])
        assert (tmp_path / "elsewhere").read_bytes() == b""
        assert types_of(journal, tmp_path) == ["journal_opened", "request_received"]
    finally:
        os.close(elsewhere)


def test_a_journal_changed_by_another_is_not_written_any_further(
    make_journal: Callable[..., Journal],
) -> None:
    journal = make_journal()
    with journal.path.open("ab") as other:
        other.write(b"noise\n")
    with pytest.raises(LedgerError, match="changed by another"):
        journal.append([received()])


@pytest.mark.parametrize("durable", [True, False])
def test_threads_append_without_loss_and_in_sequence(
    make_journal: Callable[..., Journal], tmp_path: Path, durable: bool
) -> None:
    journal = make_journal(durable)

    def write(thread: int) -> None:
        for number in range(25):
            journal.append([received(f"{thread}-{number}"), started(f"{thread}-{number}")])

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    story = story_of(journal, tmp_path)
    assert [event["seq"] for event in story] == list(range(1, 402))
    assert len({event.get("request_id") for event in story}) == 201
    taken = journal.take_unapplied()
    assert [seq for seq, _ in taken] == list(range(1, 402))


def test_a_symlink_in_the_place_of_a_journal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl.tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerError):
        Journal.create(tmp_path, "j", OPENED, utc_now, durable=False)
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_stamped_during_a_sync_is_not_taken_for_synced(
    make_journal: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make_journal()
    real_sync, syncs = journal_module.sync_data, []
    late = threading.Thread(target=lambda: journal.append([received("late")]))

    def sync(fd: int) -> None:
        syncs.append(journal.seq)
        if len(syncs) == 1:
            late.start()
            while journal.seq < 3:  # until the other thread's line has its number
                threading.Event().wait(0.001)
        real_sync(fd)

    monkeypatch.setattr(journal_module, "sync_data", sync)
    journal.append([received("first")])
    late.join()
    assert syncs == [2, 3]


def test_parts_that_contradict_each_other_are_damage(tmp_path: Path) -> None:
    first = read_story(stamped_line("j", 1, utc_now(), OPENED), "j")
    other = read_story(stamped_line("j", 1, utc_now(), JournalOpened(host="x", pid=2, version="0")), "j")
    with pytest.raises(DamagedLedger, match="event 1 has other content than in the part before"):
        merged_lines([(tmp_path / "j.jsonl", first), (tmp_path / "j.2.jsonl", other)])
    assert merged_lines([(tmp_path / "j.jsonl", first), (tmp_path / "j.2.jsonl", first)]).keys() == {1}


def test_after_a_failed_sync_the_same_file_is_never_believed_again(
    make_journal: Callable[..., Journal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports a lost page once; a second sync of that file would say all is well."""
    journal = make_journal()
    first_fd = journal._fd
    real_sync, real_open = journal_module.sync_data, journal_module.open_private
    asked: list[int] = []

    def sync_fails_once(fd: int) -> None:
        asked.append(fd)
        if len(asked) == 1:
            raise OSError(errno.EIO, "Input/output error")
        real_sync(fd)

    def no_handles(path: Path, flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(journal_module, "sync_data", sync_fails_once)
    monkeypatch.setattr(journal_module, "open_private", no_handles)
    for _ in range(2):
        with pytest.raises(LedgerError, match="Too many open files"):
            journal.append([received("refused")])
    monkeypatch.setattr(journal_module, "open_private", real_open)
    journal.append([received("after")])

    assert asked.count(first_fd) == 1
    assert len(part_paths(tmp_path, journal.id)) == 2
    assert [event.get("request_id") for event in story_of(journal, tmp_path)][-1] == "after"


def test_a_ctrl_c_before_the_numbers_are_given_does_not_give_one_two_contents(
    make_journal: Callable[..., Journal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make_journal()

    def interrupted(*arguments: Any) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "numbered", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append([received("interrupted")])
    failures = [OSError(errno.EIO, "Input/output error")]
    real_sync = journal_module.sync_data

    def sync_fails_once(fd: int) -> None:
        if failures:
            raise failures.pop()
        real_sync(fd)

    monkeypatch.setattr(journal_module, "sync_data", sync_fails_once)
    journal.append([received("after")])
    assert [event.get("request_id") for event in story_of(journal, tmp_path)] == [None, "after"]


def test_state_db_is_told_only_of_what_is_durable(
    make_journal: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make_journal()
    seen: list[int] = []
    real_sync = journal_module.sync_data

    def sync(fd: int) -> None:
        seen.append(len(journal.take_unapplied()))
        real_sync(fd)

    monkeypatch.setattr(journal_module, "sync_data", sync)
    journal.append([received()])
    assert (seen, len(journal.take_unapplied())) == ([1], 2)
