"""The journals this process writes: which one takes new requests, and when each is closed.

    lease() ──▶ the journal of a request's whole story ──▶ give_back()

One is current. When it is full another takes its place, and it is closed with its last request. What the
disk has refused is written as soon as it takes something again; until then its journal stays.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from functools import cache
from importlib import metadata
from pathlib import Path

from ledger.errors import LedgerError
from ledger.events import JournalOpened
from ledger.journal import Clock, Journal
from ledger.projection import Projection

_log = logging.getLogger("ledger")

ROTATE_AT_EVENTS = 50_000
APPLY_AT_EVENTS = 512  # state.db lags behind by at most so many events of a writer without budgets


class OwnJournals:
    """This process's journals of a ledger. Thread-safe; a forked child lets go of them and begins its own."""

    def __init__(self, path: Path, clock: Clock, *, durable: bool, projection: Projection) -> None:
        self._path = path
        self._clock = clock
        self._durable = durable
        self._projection = projection  # told of a journal when it is closed
        self._leases: dict[Journal, int] = {}  # of each journal: the requests that are told in it
        self._current: Journal | None = None
        self._some_wait = False  # lines, for the disk
        self.is_closed = False  # for good
        self._lock = threading.Lock()  # which journals there are

    def all(self) -> list[Journal]:
        """Those that are open."""
        with self._lock:
            return list(self._leases)

    def lease(self) -> Journal:
        """The journal for a new request. It stays open until `give_back`."""
        with self._lock:
            if self.is_closed:
                raise LedgerError(f"the ledger {self._path} is closed; open it again to record more")
            if self._current is not None and self._current.is_lost:
                self._leases.pop(self._current, None)
                self._current.leave()
                self._current = None
            if self._current is None:
                self._current = self._new_journal()
                self._leases[self._current] = 0
            self._leases[self._current] += 1
            return self._current

    def _new_journal(self) -> Journal:
        import uuid_utils

        opened = JournalOpened(host=socket.gethostname() or "unknown", pid=os.getpid(), version=_version())
        journal_id = uuid_utils.uuid7().hex
        folder = self._path / "journals"
        journal = Journal.create(folder, journal_id, opened, self._clock, durable=self._durable)
        journal.apply_at_seq = APPLY_AT_EVENTS
        return journal

    def give_back(self, journal: Journal) -> None:
        """Its request has ended; a journal that is current no longer is closed with its last request."""
        with self._lock:
            if journal not in self._leases:
                return  # closed meanwhile
            self._leases[journal] -= 1
            drained = journal is not self._current and self._leases[journal] == 0
        if drained:
            self._drop(journal)

    def some_wait(self) -> None:
        """Lines wait for the disk: they are written after the next append that succeeds."""
        self._some_wait = True

    def appended(self, journal: Journal) -> bool:
        """What need not be done at each append: write what waits for the disk, tell state.db, rotate.

        True where another journal takes new requests from now on.
        """
        if self._some_wait:  # the disk has just taken something
            self._write_what_waits()
        if journal.seq >= journal.apply_at_seq:
            journal.apply_at_seq = journal.seq + APPLY_AT_EVENTS  # where it fails too
            self._projection.apply_quietly(journal, wait_s=0)  # an append waits for nobody
        return journal.seq >= ROTATE_AT_EVENTS and self._rotate(journal)

    def _rotate(self, journal: Journal) -> bool:
        """Let another journal take new requests; False where one does already."""
        with self._lock:
            if journal is not self._current:
                return False
            self._current = None
            idle = self._leases.get(journal) == 0
        if idle:
            self._drop(journal)
        return True

    def _write_what_waits(self) -> None:
        self._some_wait = False
        for journal in self.all():
            try:
                journal.flush()
            except LedgerError:
                self._some_wait = not journal.is_lost
                continue
            with self._lock:
                drained = journal is not self._current and self._leases.get(journal) == 0
            if drained:
                self._drop(journal)

    def _drop(self, journal: Journal) -> None:
        with self._lock:
            if journal.has_queue and not journal.is_lost:
                return  # what happened is kept until it can be written
            if self._leases.pop(journal, None) is None:
                return
        self._close_journal(journal, "rotated")

    def close(self) -> None:
        """Close all of them, for good. Requests that are still open are left to recovery."""
        self.is_closed = True
        with self._lock:
            journals, self._leases, self._current = list(self._leases), {}, None
        for journal in journals:
            self._close_journal(journal, "closed")

    def _close_journal(self, journal: Journal, reason: str) -> None:
        try:
            journal.close(reason)
        except LedgerError as error:
            _log.error("journal %s is left for recovery to close: %s", journal.id, error)
        self._projection.apply_quietly(journal)

    # forks: no lock may be held by a thread that the child does not have

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        self._lock.release()

    def after_fork_in_child(self) -> None:
        inherited, self._leases, self._current = list(self._leases), {}, None
        self._lock = threading.Lock()
        for journal in inherited:
            journal.leave_in_child()


@cache
def _version() -> str:
    try:
        return metadata.version("bughive-costs")
    except metadata.PackageNotFoundError:
        return "unknown"
