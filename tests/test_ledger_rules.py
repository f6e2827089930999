"""Each rule of the ledger's folder that is marked in DESIGN.md: a history that needs it.

Every test plays its history twice: as the code is, and nothing is wrong afterwards; and with the rule
left out, and something is. So each test proves its own power. Beside these, in other modules:

    rule                                           also
    a journal is created whole, locked, durable    test_ledger_crash_points (create)
    numbers and moments under one lock             test_ledger_journal: threads append without loss …
    the mark is fixed before the sync              test_ledger_journal: what is stamped during a sync …
    the file's own inode and size are asked        test_ledger_journal: a descriptor closed by others …,
                                                   a journal changed by another …, a full disk refuses …
    a failed sync: same id, same numbers           test_ledger_journal: after a failed sync …
    rotation waits for open requests               test_ledger_ledger: a requests whole story …
    recovery reads under the flock                 test_ledger_many_writers
    the sealer syncs before it relies              test_ledger_sealing: what a step relies on …
    coverage is a prefix                           test_ledger_sealing: what is covered of a journal …
    a segment without its line is listed as it is  test_ledger_sealing: a segment without its line …
    journals go under their flock                  test_ledger_sealing: a journal that lives …, a journal is
                                                   removed only when state db …
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from forgetful import Died, Worst
from world import World

from ledger import files, own_journals, recovery, sealing
from ledger import journal as journal_module
from ledger.events import JournalOpened, event_of
from ledger.files import open_private, sync_data, sync_folder, try_lock, write_all
from ledger.journal import Journal
from ledger.ledger import Ledger
from ledger.lines import Line, journal_ids, parsed, part_path, read_parts, stamped_line
from ledger.manifest import Batch
from ledger.together import Together

History = Callable[[World], Iterator[str]]
LeaveOut = Callable[[pytest.MonkeyPatch], None]


def prove(folder: Path, history: History, leave_out: LeaveOut) -> None:
    """Nothing is wrong after the history, and something is where the rule is left out."""
    assert findings_of(folder / "kept", history, lambda patches: None) == []
    assert findings_of(folder / "left out", history, leave_out, at_most=1) != []


def findings_of(folder: Path, history: History, leave_out: LeaveOut, at_most: int | None = None) -> list[str]:
    with World(folder) as world, pytest.MonkeyPatch.context() as patches:
        leave_out(patches)
        try:
            found = list(islice(history(world), at_most))
            assert not world.disk.hooks, "a point of the history has another name now"
            return found
        except Exception as error:
            return [f"{type(error).__name__}: {error}"]


def looked_at(world: World) -> Iterator[str]:
    """What is wrong when all are gone, the ledger is opened again, and sealed."""
    world.disk.kill()
    world.start()
    yield from world.findings(thorough=False)
    world.disk.kill()
    writer = world.start()
    writer.seal()
    writer.close()
    yield from world.findings()


@contextmanager
def another(world: World) -> Iterator[None]:
    """What another process does, in the middle of what one does."""
    acting = world.disk.acting
    yield
    world.disk.acting = acting


# create


def test_a_journal_has_its_name_only_when_it_is_locked_and_has_its_first_line(tmp_path: Path) -> None:
    def history(world: World) -> Iterator[str]:
        """Another process opens the ledger, and so recovers, right after the file was created."""

        def recover() -> None:
            world.disk.hooks.clear()
            with another(world):
                world.start("another")

        for name in ("Journal.create: create journal.tmp", "OwnJournals._new_journal: create journal"):
            world.disk.hooks[f"{name} (after)"] = recover
        world.start().answer("r-1")
        yield from looked_at(world)

    prove(tmp_path, history, lambda patches: patches.setattr(Journal, "create", _created_in_place()))


def _created_in_place() -> Any:
    """`Journal.create` as it would be without its temporary name."""

    def create(
        cls: type[Journal], folder: Path, journal_id: str, opened: JournalOpened, clock: Any, durable: bool
    ) -> Journal:
        path = part_path(folder, journal_id, 1)
        fd = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
        assert try_lock(fd)
        write_all(fd, stamped_line(journal_id, 1, clock(), opened))
        sync_data(fd)
        sync_folder(folder)
        return cls(folder, journal_id, fd, opened, clock, durable)

    return classmethod(create)


# append


class Lock:
    """A lock that says when somebody comes to it, and can be left open."""

    holds = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.somebody_came = threading.Event()

    def __enter__(self) -> None:
        self.somebody_came.set()
        if self.holds:
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        if self.holds:
            self._lock.release()


def test_numbers_are_given_under_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = journal_module.numbered

    def history(world: World) -> Iterator[str]:
        """A second thread appends while the first is about to give a line its number."""
        writer = world.start()
        writer.answer("r-0")
        (journal,) = writer.ledger._journals.all()
        lock = Lock()
        journal._lock = lock  # type: ignore[assignment]
        second = threading.Thread(target=lambda: writer.begin("r-2"))

        def come_in_between(*arguments: Any) -> bytes:
            monkeypatch.setattr(journal_module, "numbered", real)
            lock.somebody_came.clear()
            second.start()
            if lock.holds:
                lock.somebody_came.wait()
            else:
                second.join()
            return real(*arguments)

        monkeypatch.setattr(journal_module, "numbered", come_in_between)
        writer.begin("r-1")
        second.join()
        yield from looked_at(world)

    prove(tmp_path, history, lambda patches: patches.setattr(Lock, "holds", False))


def test_one_thread_at_a_time_writes(tmp_path: Path) -> None:
    def history(world: World) -> Iterator[str]:
        """A second thread appends while the first is about to write."""
        writer = world.start()
        writer.answer("r-0")
        (journal,) = writer.ledger._journals.all()
        journal._file_lock = Lock()  # type: ignore[assignment]
        with ThreadPoolExecutor(1) as pool:
            world.disk.hooks["Journal._write: write journal (before)"] = lambda: writer.begin_beside(
                "r-2", pool
            )
            writer.begin("r-1")
        yield from looked_at(world)

    def each_by_itself(together: Together, mark: int) -> None:
        together._lead(mark)

    def leave_out(patches: pytest.MonkeyPatch) -> None:
        patches.setattr(Together, "reach", each_by_itself)
        patches.setattr(Lock, "holds", False)

    prove(tmp_path, history, leave_out)


def test_the_mark_is_fixed_before_write_and_sync(tmp_path: Path) -> None:
    def history(world: World) -> Iterator[str]:
        """A second thread appends while the first one's sync is under way; then the power goes."""
        writer = world.start()
        writer.answer("r-0")
        with ThreadPoolExecutor(1) as pool:
            world.disk.during_sync = lambda: writer.begin_beside("r-2", pool)
            writer.begin("r-1")
        world.disk.power_loss(Worst())
        yield from looked_at(world)

    real = Journal._confirm

    def marked_after(journal: Journal, mark: int) -> int:
        real(journal, mark)
        return journal.seq

    prove(tmp_path, history, lambda patches: patches.setattr(Journal, "_confirm", marked_after))


def test_the_files_size_says_what_of_the_queue_is_written(tmp_path: Path) -> None:
    def history(world: World) -> Iterator[str]:
        """A Ctrl-C comes right after a write, before anybody has noted it."""

        def interrupt() -> None:
            raise KeyboardInterrupt

        writer = world.start()
        writer.answer("r-0")
        world.disk.hooks["Journal._write: write journal (after)"] = interrupt
        with suppress(KeyboardInterrupt):
            writer.begin("r-1")
        writer.answer("r-2")
        yield from looked_at(world)

    def trusted(journal: Journal) -> os.stat_result:
        found = list(os.fstat(journal._fd))
        found[6] = journal._tail.size
        return os.stat_result(found)

    prove(tmp_path, history, lambda patches: patches.setattr(Journal, "_own_file", trusted))


# a failed sync


def _the_same_file(journal: Journal, queue: bytes) -> None:
    """After a failed sync, ask once more."""
    sync_data(journal._fd)


def _a_new_id(journal: Journal, queue: bytes) -> None:
    """After a failed sync, go on as another journal, with what was not confirmed."""
    journal_id = f"{journal.id[:-1]}{'0' if journal.id[-1] != '0' else '1'}"
    events = [parsed(line) for line in queue.splitlines()]
    new = Journal.create(
        journal._folder, journal_id, JournalOpened(host="h", pid=1, version="0"), journal._clock, durable=True
    )
    new._stamp_queued([event_of(event) for event in events])
    new._confirm(new.seq)
    journal.id, journal._head, journal._fd, journal._inode = new.id, new._head, new._fd, new._inode


@pytest.mark.parametrize("otherwise", [_the_same_file, _a_new_id])
def test_after_a_failed_sync_the_journal_goes_on_under_its_own_id_in_a_new_file(
    tmp_path: Path, otherwise: Callable[[Journal, bytes], None]
) -> None:
    def history(world: World) -> Iterator[str]:
        writer = world.start()
        writer.answer("r-0")
        world.disk.watch(random=Worst())
        world.disk.failing_syncs = 1
        writer.begin("r-1")
        writer.answer("r-2")
        world.disk.kill() if otherwise is _a_new_id else world.disk.power_loss(Worst())
        yield from looked_at(world)

    prove(tmp_path, history, lambda patches: patches.setattr(Journal, "_continue_in_new_part", otherwise))


# rotate


def test_a_journal_is_closed_only_when_its_last_request_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_journals, "ROTATE_AT_EVENTS", 6)

    def history(world: World) -> Iterator[str]:
        writer = world.start()
        writer.begin("r-1")
        writer.answer("r-2")
        writer.answer("r-3")
        writer.answer("r-1")
        writer.close()
        yield from looked_at(world)

    real = Ledger.journal_appended

    def closing_at_once(ledger: Ledger, journal: Journal, *arguments: Any) -> None:
        real(ledger, journal, *arguments)
        if journal is not ledger._journals._current:
            ledger._journals._drop(journal)

    prove(tmp_path, history, lambda patches: patches.setattr(Ledger, "journal_appended", closing_at_once))


# recover


def a_dead_writer(world: World) -> None:
    """It leaves an attempt in flight."""
    writer = world.start()
    writer.answer("r-0")
    writer.begin("r-1")
    world.disk.kill()


def test_what_counts_for_recovery_is_read_under_the_flock(tmp_path: Path) -> None:
    real_lock, real_read = files.locked, read_parts
    read_before: list[Any] = []

    def history(world: World) -> Iterator[str]:
        """Another process recovers the journal, between the moment it was seen and the one it is locked."""
        a_dead_writer(world)
        read_before.clear()
        has_come: list[Path] = []

        def locked(path: Path) -> Any:
            if not has_come:
                has_come.append(path)
                found = real_read(path.parent, path.stem)
                with another(world):
                    world.start("another").close()
                read_before[:] = found
                world.disk.kill(*[each for each in world.disk.processes if each.name == "another"])
            return real_lock(path)

        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(recovery, "locked", locked)
            world.start()
        yield from looked_at(world)

    def read_earlier(*arguments: Any) -> Any:
        found, read_before[:] = read_before[:], []
        return found or real_read(*arguments)

    prove(tmp_path, history, lambda patches: patches.setattr(recovery, "read_parts", read_earlier))


def test_recovery_holds_the_flock_of_the_file_that_has_the_name(tmp_path: Path) -> None:
    def history(world: World) -> Iterator[str]:
        """A sealer removes the journal between its opening and its locking."""
        a_dead_writer(world)
        (journal_id,) = journal_ids(world.path / "journals")
        journal = part_path(world.path / "journals", journal_id, 1)
        real = files.try_lock

        def try_lock(fd: int) -> bool:
            if journal.exists() and os.path.samestat(os.fstat(fd), journal.stat()):
                journal.rename(world.path.parent / "elsewhere")
            return real(fd)

        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(files, "try_lock", try_lock)
            world.start()
        (world.path.parent / "elsewhere").rename(journal)
        yield from looked_at(world)

    prove(tmp_path, history, lambda patches: patches.setattr(files, "same_file", lambda fd, path: True))


def test_recovery_knows_what_was_sealed(tmp_path: Path) -> None:
    def history(world: World) -> Iterator[str]:
        """The disk loses lines of a journal that were sealed."""
        writer = world.start()
        writer.answer("r-0")
        writer.begin("r-1")
        world.start("sealer").seal()
        world.disk.kill()
        (journal_id,) = journal_ids(world.path / "journals")
        journal = part_path(world.path / "journals", journal_id, 1)
        os.truncate(journal, journal.read_bytes().index(b"\n") + 1)
        yield from looked_at(world)

    real = recovery.recover

    def forgetful(path: Path, state: Any, clock: Any, sealed: Mapping[str, int], load: Any) -> Any:
        return real(path, state, clock, {}, load)

    prove(tmp_path, history, lambda patches: patches.setattr(sealing, "recover", forgetful))


# seal


def test_a_journal_is_synced_before_a_sealer_relies_on_it(tmp_path: Path) -> None:
    def history(world: World) -> Iterator[str]:
        """Lines that are not synced yet are sealed; the sealer dies before its line, and the power goes."""
        writer = world.start()
        writer.answer("r-0")

        def seal_meanwhile() -> None:
            world.die_at("list_batch: create manifest.jsonl (before)", world.start("sealer").seal)
            raise Died("the power is gone")

        world.disk.hooks["Journal._sync: sync journal (before)"] = seal_meanwhile
        with pytest.raises(Died):
            writer.begin("r-1")
        world.disk.power_loss(Worst())
        yield from looked_at(world)

    prove(tmp_path, history, lambda patches: patches.setattr(sealing, "sync_data", lambda fd: None))


def test_what_is_covered_of_a_journal_is_always_a_prefix(tmp_path: Path) -> None:
    def history(world: World) -> Iterator[str]:
        """The clock steps back over midnight."""
        writer = world.start()
        for day in (22, 23, 22):
            world.now = world.now.replace(day=day)
            writer.answer(f"r-{day}-{world.now.microsecond}")
        yield from looked_at(world)

    def all_of_the_date(pending: Mapping[str, Sequence[Line]]) -> tuple[str, dict[str, list[Line]]]:
        date = min(lines[0].date for lines in pending.values())
        runs = {name: [line for line in lines if line.date == date] for name, lines in pending.items()}
        return date, {name: run for name, run in runs.items() if run}

    prove(tmp_path, history, lambda patches: patches.setattr(sealing, "next_batch", all_of_the_date))


def _ignored(ledger_path: Path, batches: Sequence[Batch]) -> Batch | None:
    return None


_listed_truly = sealing._orphan_after


def _with_other_covers(ledger_path: Path, batches: Sequence[Batch]) -> Batch | None:
    orphan = _listed_truly(ledger_path, batches)
    folder = ledger_path / "journals"
    now = {name: read_parts(folder, name)[-1][1].last_seq for name in journal_ids(folder)}
    return orphan and orphan._replace(covers=now)


@pytest.mark.parametrize("otherwise", [_ignored, _with_other_covers])
def test_a_segment_without_its_line_is_listed_with_its_own_covers(tmp_path: Path, otherwise: Any) -> None:
    def history(world: World) -> Iterator[str]:
        """A sealer dies before its line; then there are more events, and earlier ones by the clock."""
        writer = world.start()
        writer.answer("r-1")
        sealer = world.start("sealer")
        world.die_at("list_batch: create manifest.jsonl (before)", sealer.seal)
        world.disk.kill(sealer.process)
        writer.answer("r-2")
        world.now -= timedelta(days=1)
        world.start("second").answer("r-3")
        world.start("next sealer").seal()
        yield from looked_at(world)

    prove(tmp_path, history, lambda patches: patches.setattr(sealing, "_orphan_after", otherwise))


def test_a_journal_is_removed_only_under_its_flock(tmp_path: Path) -> None:
    def history(world: World) -> Iterator[str]:
        """Somebody has locked the journal: he may be about to recover it."""
        writer = world.start()
        writer.answer("r-1")
        writer.seal()
        writer.close()
        (journal_id,) = journal_ids(world.path / "journals")
        world.now += timedelta(seconds=61)
        sealer = world.start("sealer")
        sealer.seal()
        world.now += timedelta(seconds=61)
        with files.locked(part_path(world.path / "journals", journal_id, 1)):
            if sealer.seal().removed_journals:
                yield "the journal was removed while another held it"
        yield from looked_at(world)

    @contextmanager
    def not_locked(path: Path) -> Iterator[int]:
        yield 0

    prove(tmp_path, history, lambda patches: patches.setattr(sealing, "locked", not_locked))
