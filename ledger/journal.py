"""The append-only file of one writing process: how its lines become durable, each once.

A number once stamped never gets other content. Stamped lines wait in a queue until they are confirmed,
by one thread for all; the file's own size says how much of the queue it has, so that a Ctrl-C between
write and bookkeeping, or a disk that was full for a while, neither loses nor repeats a line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from ledger.errors import LedgerError
from ledger.events import REQUEST_ENDS, JournalClosed, JournalOpened, rfc3339
from ledger.files import open_private, sync_data, sync_folder, try_lock, write_all
from ledger.fold import DATED
from ledger.lines import facts_of, line_head, numbered, part_path, stamped_line
from ledger.together import Together

_log = logging.getLogger("ledger")

_OPEN_REQUESTS = {"request_received": 1, **dict.fromkeys(REQUEST_ENDS, -1)}

Clock = Callable[[], datetime]


class Stamped(NamedTuple):
    """Events of one commit, its moment, and the number of the last; `before` is the commit before it."""

    before: Stamped | None
    last_seq: int
    events: Sequence[BaseModel]
    occurred_at: datetime


class MomentPassed(LedgerError):
    """The events were for a moment that is over; nothing of them is recorded."""


class _Tail(NamedTuple):
    """The journal's end. Replaced as a whole, so that an interrupt leaves the old or the new one."""

    size: int  # bytes of the file that are confirmed: synced, or written where no more is asked
    queue: bytes  # stamped lines that follow them; the file may have a part of it already
    seq: int  # of the last stamped line
    open_requests: int
    unapplied: Stamped | None  # what state.db has not been told of yet


class Journal:
    """The journal this process writes. Thread-safe; not to be used after a fork (see `leave`)."""

    def __init__(
        self, folder: Path, journal_id: str, fd: int, opened: JournalOpened, clock: Clock, durable: bool
    ) -> None:
        self.id = journal_id
        self.apply_at_seq = 1  # when its owner is to tell state.db again
        self._folder = folder
        self._clock = clock
        self._durable = durable
        self._left = False
        self._closing = False
        self._tried = 0  # bytes of the queue that the file may have: a write of them was begun
        self._blocked = False  # the queue could not be confirmed when it was last tried
        self._sync_failed = False  # of the present file: nothing more is believed of it
        self.is_lost = False  # another has written to it, or taken it over: nothing can follow
        self._part = 1
        self._fd = fd
        self._lock_fd = fd  # the first part's: its flock is this process's claim on the journal
        self._inode = os.fstat(fd).st_ino
        self._tail = _Tail(os.fstat(fd).st_size, b"", 1, 0, Stamped(None, 1, (opened,), clock()))
        self._lock = threading.Lock()  # the tail
        self._file_lock = threading.Lock()  # the file: it is not let go of while it is written
        self._confirming = Together(self._confirm, reached=1)
        self._head = line_head(journal_id)

    @classmethod
    def create(
        cls, folder: Path, journal_id: str, opened: JournalOpened, clock: Clock, durable: bool
    ) -> Journal:
        """A new journal, locked and durable before it has its name: no reader ever sees half of it.

        Raises LedgerError where the folder cannot be written.
        """
        path = part_path(folder, journal_id, 1)
        temporary = path.with_name(path.name + ".tmp")
        try:
            fd = open_private(temporary, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
            try:
                if not try_lock(fd):
                    raise BlockingIOError(f"{temporary} is locked by another process")
                write_all(fd, stamped_line(journal_id, 1, clock(), opened))
                sync_data(fd)
                os.rename(temporary, path)  # fails where it was taken for a leftover: then nothing is sent
                sync_folder(folder)
            except BaseException:
                os.close(fd)
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
        except OSError as error:
            raise _cannot_write(path, error) from error
        return cls(folder, journal_id, fd, opened, clock, durable)

    @property
    def path(self) -> Path:
        """The file that is written now."""
        return part_path(self._folder, self.id, self._part)

    @property
    def seq(self) -> int:
        """The number of the last stamped event."""
        return self._tail.seq

    @property
    def open_requests(self) -> int:
        """Requests whose end has not been stamped."""
        return self._tail.open_requests

    @property
    def has_queue(self) -> bool:
        """Whether stamped lines wait for the disk."""
        return bool(self._tail.queue)

    def append(
        self,
        events: Sequence[BaseModel],
        *,
        must_keep: bool = False,
        unless_confirmed: Callable[[datetime], Sequence[BaseModel]] | None = None,
        only_at: Callable[[datetime], bool] | None = None,
    ) -> datetime:
        """Stamp events as one commit; written and durable on return. Gives their `occurred_at`.

        Raises LedgerError where they could not be written or synced. They are stamped all the same
        if it had come that far, and are written as soon as that is possible, followed by the events
        of `unless_confirmed`. `must_keep` stamps them even while earlier ones wait for the disk:
        for what has happened already, an answer that was paid for. `only_at` may refuse the moment, as one
        that a limit was not checked for: then MomentPassed is raised, and nothing is stamped.
        """
        facts = [facts_of(event) for event in events]
        if self._blocked and not must_keep:
            self.flush()
        with self._lock:
            self._refuse_if_left()
            if self._closing and not isinstance(events[0], JournalClosed):
                raise LedgerError(f"{self.path} is closed; open the ledger again to record more")
            occurred_at = self._clock()
            if only_at is not None and not only_at(occurred_at):
                raise MomentPassed(f"it is {occurred_at} by now; try again")
            before_seq = self._tail.seq
            try:
                self._stamp(events, facts, occurred_at)
            except BaseException:
                if self._tail.seq > before_seq and unless_confirmed:
                    self._stamp_queued(unless_confirmed(occurred_at))
                raise
            mark = self._tail.seq
        try:
            self._confirming.reach(mark)
        except BaseException:
            if unless_confirmed:
                with self._lock:
                    self._stamp_queued(unless_confirmed(occurred_at))
            raise
        return occurred_at

    def flush(self) -> None:
        """Write what waits for the disk; durable on return. Raises LedgerError where that fails."""
        self._confirming.reach(self._tail.seq)

    def take_unapplied(self) -> list[tuple[int, Mapping[str, Any]]]:
        """Confirmed events that state.db has not been told of, with their numbers, as `fold` takes them."""
        confirmed_seq = self._confirming.reached
        taken: list[tuple[int, Mapping[str, Any]]] = []
        commit = self._tail.unapplied
        while commit is not None and commit.last_seq > confirmed_seq:
            commit = commit.before
        while commit is not None:
            seq = commit.last_seq
            for event in reversed(commit.events):
                facts = vars(event)
                if facts["event_type"] in DATED:
                    facts = {**facts, "occurred_at": commit.occurred_at}
                taken.append((seq, facts))
                seq -= 1
            commit = commit.before
        return taken[::-1]

    def applied(self, seq: int) -> None:
        """Forget what state.db was told of, up to and with that number."""
        with self._lock:
            kept = []
            commit = self._tail.unapplied
            while commit is not None and commit.last_seq > seq:
                kept.append(commit)
                commit = commit.before
            rest: Stamped | None = None
            for commit in reversed(kept):
                rest = commit._replace(before=rest)
            self._tail = self._tail._replace(unapplied=rest)

    def close(self, reason: str = "closed") -> None:
        """Write the last event and let go. With a request open it is only let go: recovery ends it."""
        try:
            with self._lock:
                self._closing = self.open_requests == 0  # from here on nothing else can be stamped
            if self._closing:
                self.append([JournalClosed.model_validate({"reason": reason})])
        finally:
            self.leave()

    def leave_in_child(self) -> None:
        """Leave after a fork: the locks may be held by threads that the child does not have."""
        self._lock, self._file_lock = threading.Lock(), threading.Lock()
        self._confirming = Together(self._confirm, self._confirming.reached)
        self.leave()

    def leave(self) -> None:
        """Close the files without a word, as a forked child must: the flock is its parent's."""
        with self._file_lock:
            if not self._left:
                self._left = True
                for fd in {self._fd, self._lock_fd}:
                    with contextlib.suppress(OSError):
                        os.close(fd)

    def _refuse_if_left(self) -> None:
        if self._left:
            raise LedgerError(f"{self.path} was let go of; open the ledger again to record more")

    def _stamp(self, events: Sequence[BaseModel], facts: Sequence[bytes], occurred_at: datetime) -> None:
        """Give events their numbers and put their lines into the queue. Under the lock."""
        size, queue, seq, open_requests, unapplied = self._tail
        at = rfc3339(occurred_at).encode()
        for event, fact in zip(events, facts, strict=True):
            seq += 1
            queue += numbered(self._head, seq, at, fact)
            open_requests += _OPEN_REQUESTS.get(event.event_type, 0)  # type: ignore[attr-defined]
        self._tail = _Tail(size, queue, seq, open_requests, Stamped(unapplied, seq, events, occurred_at))

    def _stamp_queued(self, events: Sequence[BaseModel]) -> None:
        self._stamp(events, [facts_of(event) for event in events], self._clock())

    def _confirm(self, mark: int) -> int:
        """Write and sync the queue as it is now, for all who wait. Gives the number of its last line.

        One thread does this at a time, without the lock: others stamp meanwhile, and go with the next.
        """
        with self._file_lock:
            self._refuse_if_left()
            with self._lock:  # fixed here: what is stamped from now on is not covered
                size, queue, seq = self._tail[:3]
            try:
                if not self._sync_failed:
                    self._write(size, queue)
                    self._sync()
                if self._sync_failed:  # a kernel reports it once, and forgets the pages: never ask it again
                    self._continue_in_new_part(queue)
                    size = 0
            except BaseException:
                self._blocked = True
                raise
            with self._lock:
                tail = self._tail
                rest = tail.queue[len(queue) :]
                self._tail = _Tail(size + len(queue), rest, tail.seq, tail.open_requests, tail.unapplied)
            self._tried = 0
            self._blocked = self._sync_failed = False
            return seq

    def _write(self, size: int, queue: bytes) -> None:
        """Write what the file lacks of the queue, which begins at that size. Raises LedgerError."""
        try:
            written = self._own_file().st_size - size
            if not 0 <= written <= self._tried:
                self.is_lost = True
                raise LedgerError(f"{self.path} was changed by another: its size is {size + written} bytes")
            self._tried = len(queue)
            if written < len(queue):
                write_all(self._fd, queue[written:])
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def _sync(self) -> None:
        if self._durable:
            self._sync_failed = True  # until it has succeeded: an interrupt is no success
            try:
                sync_data(self._fd)
                self._sync_failed = False
            except OSError as error:
                _log.error("%s could not be synced (%s); going on in a new file", self.path, error)

    def _own_file(self) -> os.stat_result:
        """The journal's file as it is; opened again where another part of the program closed it."""
        try:
            found = os.fstat(self._fd)
            if found.st_ino == self._inode:
                return found
        except OSError:  # closed, and its number not taken over yet
            pass
        self._reopen()
        return os.fstat(self._fd)

    def _reopen(self) -> None:
        fd = open_private(self.path, os.O_WRONLY | os.O_APPEND)
        if os.fstat(fd).st_ino != self._inode or (self._part == 1 and not try_lock(fd)):
            os.close(fd)
            self.is_lost = True
            raise LedgerError(f"{self.path} was closed by another part of this program and is no longer ours")
        if self._lock_fd == self._fd:
            self._lock_fd = fd
        self._fd = fd

    def _continue_in_new_part(self, queue: bytes) -> None:
        """After a failed sync nothing is known of the file's end: begin the next one with those lines.

        They are durable there. Raises LedgerError.
        """
        path = part_path(self._folder, self.id, self._part + 1)
        temporary = path.with_name(path.name + ".tmp")
        try:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            fd = open_private(temporary, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
            try:
                write_all(fd, queue)
                sync_data(fd)
                os.rename(temporary, path)
                sync_folder(self._folder)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            raise _cannot_write(path, error) from error
        before, self._fd, self._inode = self._fd, fd, os.fstat(fd).st_ino
        self._part += 1
        if before != self._lock_fd:  # closed last: a Ctrl-C must not have it closed twice
            os.close(before)


def _cannot_write(path: Path, error: OSError) -> LedgerError:
    why = error.strerror or error
    return LedgerError(f"the ledger cannot write {path}: {why}; make room, or mend the disk")
