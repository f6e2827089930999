"""The append-only file of one writing process: how a line is made, and how it becomes durable.

    {"journal_id":"…","seq":7,"schema_version":1,"occurred_at":"…Z", …the event…, "check":"<16 hex>"}

`check` is the first 16 hex digits of the MD5 of all bytes before it: any engine with an MD5 can
tell a whole line from a torn one, plain DuckDB included. It guards against accidents; tampering is
what the chain of segments is for.

A number once stamped never gets other content. Stamped lines wait in a queue until the file has
them; the file's own size says how much of the queue that is, so that a Ctrl-C between write and
bookkeeping, or a disk that was full for a while, neither loses nor repeats a line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from ledger.errors import DamagedLedger, LedgerError
from ledger.events import REQUEST_ENDS, SCHEMA_VERSION, JournalClosed, JournalOpened, rfc3339
from ledger.files import open_private, sync_data, sync_folder, try_lock, write_all

_log = logging.getLogger("ledger")

Clock = Callable[[], datetime]


def check_of(body: bytes) -> bytes:
    """The check of a line's bytes before `,"check"`."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()[:16].encode()


def sealed_line(body: bytes) -> bytes:
    """A line out of a JSON object without its closing brace."""
    return body + b',"check":"' + check_of(body) + b'"}\n'


def read_line(line: bytes) -> dict[str, Any] | None:
    """What a line says, without its check; None for a line that is torn or altered."""
    body, separator, end = line.rpartition(b',"check":"')
    if not separator or end != check_of(body) + b'"}':
        return None
    record: dict[str, Any] = json.loads(body + b"}")
    return record


class Story(NamedTuple):
    """What a journal's file says up to where it can be believed."""

    events: list[dict[str, Any]]  # seq without a gap
    good_bytes: int  # the length of the believable part, a last newline included
    ends_whole: bool  # False: the last line lacks only its newline
    damage: str | None  # whole lines stand behind a broken one: not a crash's doing


def read_story(data: bytes, journal_id: str) -> Story:
    """The leading lines of a journal file that are whole, its own, and in sequence."""
    events: list[dict[str, Any]] = []
    offset = 0
    while offset < len(data):
        end = data.find(b"\n", offset)
        line_end = len(data) if end < 0 else end
        event = read_line(data[offset:line_end])
        if event is None or event.get("journal_id") != journal_id:
            break
        if events and event["seq"] != events[-1]["seq"] + 1:
            break
        events.append(event)
        if end < 0:
            return Story(events, line_end, ends_whole=False, damage=None)
        offset = end + 1
    behind = [line for line in data[offset:].split(b"\n")[1:] if read_line(line)]
    stray = read_line(data[offset:].split(b"\n")[0])
    broken = len(behind) + (stray is not None)
    damage = f"{broken} whole lines out of sequence or behind a broken one" if broken else None
    return Story(events, offset, ends_whole=True, damage=damage)


def part_path(folder: Path, journal_id: str, part: int) -> Path:
    """The file of a journal's part: the first has no number."""
    return folder / (f"{journal_id}.jsonl" if part == 1 else f"{journal_id}.{part}.jsonl")


def part_paths(folder: Path, journal_id: str) -> list[Path]:
    """The files of a journal in the order they were written."""
    paths: list[Path] = []
    while (path := part_path(folder, journal_id, len(paths) + 1)).exists():
        paths.append(path)
    return paths


def journal_ids(folder: Path) -> list[str]:
    """The journals in a folder, oldest first; the empty one that is always there is none."""
    names = (path.name.removesuffix(".jsonl") for path in folder.glob("*.jsonl"))
    return sorted(name for name in names if "." not in name and name != "empty")


def merged_events(
    stories: Iterable[tuple[Path, Story]], sealed: Mapping[int, Mapping[str, Any]] | None = None
) -> dict[int, Mapping[str, Any]]:
    """The events of a journal's parts by number, each once; with what is `sealed` where a part lacks it.

    A part begins with lines of the one before it. Raises DamagedLedger where two copies differ.
    """
    events: dict[int, Mapping[str, Any]] = {}
    for path, story in stories:
        for event in story.events:
            if events.setdefault(event["seq"], event) != event:
                raise DamagedLedger(f"{path}: event {event['seq']} has other content than in the part before")
    for seq, known in (sealed or {}).items():
        events.setdefault(seq, known)
    return events


class Stamped(NamedTuple):
    """Events of one commit and the number of the last; `before` is the commit before it."""

    before: Stamped | None
    last_seq: int
    events: Sequence[BaseModel]


class _Tail(NamedTuple):
    """The journal's end. Replaced as a whole, so that an interrupt leaves the old or the new one."""

    size: int  # bytes the file is known to have
    queue: bytes  # stamped lines that follow them, perhaps in part written already
    seq: int  # of the last stamped line
    open_requests: int
    unapplied: Stamped | None  # what state.db has not been told of yet


class Journal:
    """The journal this process writes. Thread-safe; not to be used after a fork (see `leave`)."""

    def __init__(
        self, folder: Path, journal_id: str, fd: int, opened: JournalOpened, clock: Clock, durable: bool
    ) -> None:
        self.id = journal_id
        self.applied_seq = 0  # of the last event that state.db was told of
        self._folder = folder
        self._clock = clock
        self._durable = durable
        self._left = False
        self._closing = False
        self._sync_failed = False  # of the present file: nothing more is believed of it
        self.is_lost = False  # another has written to it, or taken it over: nothing can follow
        self._part = 1
        self._fd = fd
        self._lock_fd = fd  # the first part's: its flock is this process's claim on the journal
        self._inode = os.fstat(fd).st_ino
        self._tail = _Tail(os.fstat(fd).st_size, b"", 1, 0, Stamped(None, 1, (opened,)))
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._synced_seq = 1
        self._unconfirmed: list[tuple[int, bytes]] = []  # stamped, not known to be synced
        self._head = _head_of(journal_id)

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
                os.rename(temporary, path)  # fails where a sealer took it for a leftover: then try again
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

    def append(
        self,
        events: Sequence[BaseModel],
        *,
        must_keep: bool = False,
        unless_confirmed: Callable[[datetime], Sequence[BaseModel]] | None = None,
    ) -> datetime:
        """Stamp events as one commit and write them; durable on return. Gives their `occurred_at`.

        Raises LedgerError where they could not be written or synced. They are stamped all the same
        if it had come that far, and are written as soon as that is possible, followed by the events
        of `unless_confirmed`. `must_keep` stamps them even while earlier ones wait for the disk:
        for what has happened already, an answer that was paid for.
        """
        lines = [_facts(event) for event in events]
        with self._lock:
            if self._closing and not isinstance(events[0], JournalClosed):
                raise LedgerError(f"{self.path} is closed; open the ledger again to record more")
            blocked = self._settle_end(must_keep)
            before = self._tail
            occurred_at = self._clock()
            try:
                self._stamp(events, lines, occurred_at)
                if blocked:
                    raise blocked
                self._write(self._tail.queue)
            except BaseException:
                if self._tail.seq > before.seq and unless_confirmed:
                    self._stamp_queued(unless_confirmed(occurred_at))
                raise
            mark = self._tail.seq
        if self._durable:
            try:
                self._sync(mark)
            except BaseException:
                if unless_confirmed:
                    with self._lock:
                        self._stamp_queued(unless_confirmed(occurred_at))
                raise
        return occurred_at

    def take_unapplied(self) -> list[tuple[int, BaseModel]]:
        """Written events that state.db has not been told of, with their numbers, in order."""
        tail = self._tail
        if tail.queue:
            return []
        durable_seq = self._synced_seq if self._durable else tail.seq
        taken: list[tuple[int, BaseModel]] = []
        commit = tail.unapplied
        while commit is not None and commit.last_seq > durable_seq:
            commit = commit.before
        while commit is not None:
            first_seq = commit.last_seq - len(commit.events) + 1
            taken.extend(
                (first_seq + index, event) for index, event in reversed(list(enumerate(commit.events)))
            )
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
                rest = Stamped(rest, commit.last_seq, commit.events)
            self._tail = self._tail._replace(unapplied=rest)
            self.applied_seq = seq

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
        self._lock, self._sync_lock = threading.Lock(), threading.Lock()
        self.leave()

    def leave(self) -> None:
        """Close the files without a word, as a forked child must: the flock is its parent's."""
        if not self._left:
            self._left = True
            for fd in {self._fd, self._lock_fd}:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def _stamp(self, events: Sequence[BaseModel], lines: Sequence[bytes], occurred_at: datetime) -> None:
        """Give events their numbers and put their lines into the queue. Under the lock."""
        tail = self._tail
        at = rfc3339(occurred_at).encode()
        stamped = [
            _stamp(self._head, tail.seq + number, at, line) for number, line in enumerate(lines, start=1)
        ]
        last_seq = tail.seq + len(lines)
        if self._durable:
            while self._unconfirmed and self._unconfirmed[-1][0] > tail.seq:
                self._unconfirmed.pop()  # of a commit that a Ctrl-C stopped before it had its numbers
            self._unconfirmed.extend(zip(range(tail.seq + 1, last_seq + 1), stamped, strict=True))
        self._tail = _Tail(
            tail.size,
            tail.queue + b"".join(stamped),
            last_seq,
            tail.open_requests + sum(map(_opening, events)),
            Stamped(tail.unapplied, last_seq, events),
        )

    def _stamp_queued(self, events: Sequence[BaseModel]) -> None:
        self._stamp(events, [_facts(event) for event in events], self._clock())

    def _settle_end(self, must_keep: bool) -> LedgerError | None:
        """Make sure that the file ends as we left it, with what an earlier failure left in the queue.

        Under the lock. With `must_keep` the reason why that cannot be is given, not raised.
        """
        tail = self._tail
        try:
            if self._left:
                raise LedgerError(f"{self.path} was let go of; open the ledger again to record more")
            found = self._own_file()
            written = found.st_size - tail.size
            if not 0 <= written <= len(tail.queue):
                self.is_lost = True
                raise LedgerError(f"{self.path} was changed by another: its size is {found.st_size} bytes")
            if tail.queue:
                self._write(tail.queue[written:])
        except (OSError, LedgerError) as error:
            reason = error if isinstance(error, LedgerError) else _cannot_write(self.path, error)
            if not must_keep:
                raise reason from error
            return reason
        return None

    def _write(self, missing: bytes) -> None:
        """Write what the file lacks of the queue, which then is empty. Under the lock."""
        if missing:
            try:
                write_all(self._fd, missing)
            except OSError as error:
                raise _cannot_write(self.path, error) from error
        size, queue, seq, open_requests, unapplied = self._tail
        self._tail = _Tail(size + len(queue), b"", seq, open_requests, unapplied)

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

    def _sync(self, mark: int) -> None:
        """Make all up to `mark` durable; one thread syncs for all that wait with it."""
        with self._sync_lock:
            if self._synced_seq >= mark:
                return
            with self._lock:
                target = self._tail.seq if not self._tail.queue else mark
            try:  # the mark is fixed before the sync: what is written meanwhile is not covered by it
                if not self._sync_failed:
                    self._sync_failed = True  # until it has succeeded: an interrupt is no success
                    sync_data(self._fd)
                    self._sync_failed = False
            except OSError as error:
                _log.error("%s could not be synced (%s); going on in a new file", self.path, error)
            if self._sync_failed:  # a kernel reports it once, and forgets the pages: never ask it again
                target = self._continue_in_new_part()
                self._sync_failed = False
            self._synced_seq = target
            with self._lock:
                self._unconfirmed = [item for item in self._unconfirmed if item[0] > target]

    def _continue_in_new_part(self) -> int:
        """After a failed sync nothing is known of the file's end: begin the next one with those lines.

        Gives the number of the last line that is durable there.
        """
        with self._lock:
            path = part_path(self._folder, self.id, self._part + 1)
            temporary = path.with_name(path.name + ".tmp")
            lines = b"".join(line for seq, line in self._unconfirmed if seq > self._synced_seq)
            try:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
                fd = open_private(temporary, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL)
                try:
                    write_all(fd, lines)
                    sync_data(fd)
                    os.rename(temporary, path)
                    sync_folder(self._folder)
                except BaseException:
                    os.close(fd)
                    raise
            except OSError as error:
                raise _cannot_write(path, error) from error
            if self._fd != self._lock_fd:
                os.close(self._fd)
            self._fd, self._inode, self._part = fd, os.fstat(fd).st_ino, self._part + 1
            self._tail = self._tail._replace(size=len(lines), queue=b"")
            return self._tail.seq


def _head_of(journal_id: str) -> bytes:
    return f'{{"journal_id":"{journal_id}","seq":'.encode()


def stamped_line(journal_id: str, seq: int, occurred_at: datetime, event: BaseModel) -> bytes:
    """The whole line of an event, its newline included."""
    return _stamp(_head_of(journal_id), seq, rfc3339(occurred_at).encode(), _facts(event))


def _facts(event: BaseModel) -> bytes:
    """An event's own fields as they go into its line, without the opening brace."""
    return event.__pydantic_serializer__.to_json(event, exclude_none=True)[1:-1]


def _stamp(head: bytes, seq: int, occurred_at: bytes, facts: bytes) -> bytes:
    return sealed_line(
        b'%b%d,"schema_version":%d,"occurred_at":"%b",%b' % (head, seq, SCHEMA_VERSION, occurred_at, facts)
    )


def _opening(event: BaseModel) -> int:
    """+1 for an event that opens a request, -1 for one that ends it."""
    event_type: str = event.event_type  # type: ignore[attr-defined]
    return (event_type == "request_received") - (event_type in REQUEST_ENDS)


def _cannot_write(path: Path, error: OSError) -> LedgerError:
    why = error.strerror or error
    return LedgerError(f"the ledger cannot write {path}: {why}; make room, or mend the disk")
