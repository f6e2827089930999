"""A disk that forgets: below the real code, whatever was not synced may be gone after a power loss.

    with ForgetfulDisk(tmp_path / "disk") as disk:
        disk.watch(die_at=17)              # the 17th point from here on is the last of this process
        try:
            ...                            # the real code, on real files
        except Died:
            pass
        disk.kill()                        # its locks are free, what the kernel had is there
        disk.power_loss(Random(1))         # what was not synced is there, in part, or not

Beside the real folder it keeps what a disk would have for certain: of each file the content at its
last sync, of each folder the entries at its last sync. It patches the functions of `os` that change
files, in this process only. Each of those calls is a point at which the process can die, named from
the ledger's function that makes it and the kind of file: "Journal._write: write journal (half)".
A dead process does nothing more, whatever its except and finally blocks would like.

state.db is written by SQLite in C, which keeps its own promises: of it, a power loss leaves any
state that was committed since `State.make_durable`, or no file at all.

A failed sync is told to whoever has the file open, each once, and then the kernel takes the pages for
clean: later syncs through those descriptors claim success and keep nothing. One through a descriptor
opened later saves all; that a page which is never written to again is lost for it too, is not modelled.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import CodeType
from typing import Any, NamedTuple, Self, TypeVar

import pytest

from ledger import files
from ledger.ledger import Ledger
from ledger.state import State

T = TypeVar("T")

_LEDGER = str(Path(files.__file__).parent)


class Died(BaseException):
    """The process is gone; not an Exception, so that no code takes it for trouble it could mend."""


@dataclass(eq=False)
class _File:
    """An inode, and its content for certain."""

    durable: bytes = b""


@dataclass
class _Opened:
    """An open descriptor: of what, and what it was told of a failed sync."""

    path: Path
    status: tuple[int, int]
    will_be_told: bool = False
    was_told: bool = False


_Entry = _File | None  # of a folder; None: a folder in it


@dataclass
class Process:
    """What dies together: descriptors with their locks, connections to state.db, and a ledger."""

    name: str
    dead: bool = False
    opened: dict[int, _Opened] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    ledgers: list[Ledger] = field(default_factory=list)


class Left(NamedTuple):
    """What a death leaves to whoever comes after: what is equal here cannot be told apart by them."""

    by_a_kill: object  # all files, as the kernel has them
    by_a_power_loss: object  # what may be left of them, before chance decides


class ForgetfulDisk:
    """All files below a folder, and what is known of them for certain."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.absolute()
        self._root = str(self.root)
        self.acting = Process("first")
        self.processes = [self.acting]
        self.trace: list[str] = []  # the points passed since `watch`
        self.left: list[Left] = []  # at each of them, if asked for
        self.is_full = False
        self.failing_syncs = 0
        self.during_sync: Callable[[], None] | None = None  # what happens while a sync is under way
        self.died_at: str | None = None  # the point, since `watch`
        self.hooks: dict[str, Callable[[], object]] = {}  # what happens once at a point, by its name
        self._die_at: int | str | None = None
        self._looks = False
        self._random = Random(0)
        self._files: dict[tuple[int, int], _File] = {}
        self._entries: dict[Path, dict[str, _Entry]] = {self.root: {}}
        self._owned: dict[str, Path | None] = {}  # by absolute path, as far as they were asked for
        self._state_path: Path | None = None
        self._state_commits: list[bytes | None] = [None]  # the first is durable

    # the life of processes

    def __enter__(self) -> Self:
        self.patches = pytest.MonkeyPatch()  # undone at its end; a world adds its own
        self._real = {name: getattr(os, name) for name in _INTERCEPTED}
        for name in _INTERCEPTED:
            self.patches.setattr(os, name, getattr(self, f"_{name}"))
        self._patch_state()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.patches.undo()

    def watch(
        self, die_at: int | str | None = None, random: Random | None = None, *, looks: bool = False
    ) -> None:
        """Count points from here on; a process dies at one of them, by number or name.

        `random` says where a write is cut in half; `looks`, whether `left` tells what a death leaves at each.
        """
        self.trace, self.left, self.died_at, self._die_at, self._looks = [], [], None, die_at, looks
        self._random = random or self._random

    def start(self, name: str) -> Process:
        """A new process, which acts from now on."""
        self.acting = Process(name)
        self.processes.append(self.acting)
        return self.acting

    def kill(self, *processes: Process) -> None:
        """End processes as kill -9 does, without an argument all: locks go, nothing is closed properly."""
        for process in processes or self.processes:
            process.dead = True
            for ledger in process.ledgers:
                ledger._journals.is_closed = True
                atexit.unregister(ledger._at_exit)
            with self._as_a_kill_leaves_it():
                for state in process.states:
                    with suppress(AttributeError):  # it died before it had a connection
                        state._db.close()
            for fd, opened in process.opened.items():
                with suppress(OSError):
                    if _status(os.fstat(fd)) == opened.status:
                        self._real["close"](fd)
        self.processes = [process for process in self.processes if not process.dead]
        if self.acting.dead:
            self.start("onlooker")

    def power_loss(self, random: Random) -> None:
        """All processes die, and the folder becomes what a disk may have been left with."""
        self.kill()
        contents = {self._file_at(path): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        left = self._left_of(self.root, random, contents)
        state = self._state_path and (self._state_path, random.choice([None, *self._state_commits]))
        for path in self.root.iterdir():
            shutil.rmtree(path)
        self._files, self._entries = {}, {self.root: {}}
        for path, content in left.items():
            self._restore(path, content)
        if state and state[1] is not None and state[0].parent.exists():
            state[0].write_bytes(state[1])
            self._state_commits = [state[1]]
        else:
            self._state_commits = [None]

    # what is left

    def left_now(self) -> Left:
        """What a death would leave at this moment."""
        paths = [
            path for path in self.root.rglob("*") if path.name != "state.db-shm"
        ]  # SQLite makes that anew
        files = {path: path.read_bytes() if path.is_file() else None for path in paths}
        folders = [path for path in (self.root, *paths) if path.is_dir()]
        durable = {path: dict(entries) for path, entries in self._entries.items()}
        present = {path: self._present(path) for path in folders}
        known = [file for entries in (*durable.values(), *present.values()) for file in entries.values()]
        synced = {file: file.durable for file in known if file}
        of_files = {path: content for path, content in files.items() if not path.name.startswith("state.db")}
        return Left(files, (of_files, durable, present, synced, list(self._state_commits)))

    def _left_of(
        self, folder: Path, random: Random, contents: Mapping[_File, bytes]
    ) -> dict[Path, bytes | None]:
        """Path by path, folders first, what the disk has of a folder; None stands for a folder."""
        left: dict[Path, bytes | None] = {}
        durable, present = self._entries.get(folder, {}), self._present(folder)
        for name in sorted({*durable, *present}):
            was, now = durable.get(name, _ABSENT), present.get(name, _ABSENT)
            chosen = now if was is now else random.choice([was, now])
            if chosen is None:
                left[folder / name] = None
                left.update(self._left_of(folder / name, random, contents))
            elif isinstance(chosen, _File):
                content = contents.get(chosen, chosen.durable)
                left[folder / name] = _left_of_file(chosen.durable, content, random)
        return left

    def _present(self, folder: Path) -> dict[str, _Entry]:
        """A folder's entries as the kernel has them; state.db has its own way."""
        if not folder.is_dir():
            return {}
        return {
            path.name: None if path.is_dir() else self._file_at(path)
            for path in folder.iterdir()
            if not path.name.startswith("state.db")
        }

    def _restore(self, path: Path, content: bytes | None) -> None:
        if content is None:
            self._real["mkdir"](path, 0o700)
            self._entries[path] = {}
            self._entries[path.parent][path.name] = None
            return
        path.write_bytes(content)
        path.chmod(0o600)
        file = self._file_at(path)
        file.durable = content
        self._entries[path.parent][path.name] = file

    def _file_at(self, path: Path) -> _File:
        return self._files.setdefault(_status(os.lstat(path)), _File())

    # points

    def _owns(self, path: Any) -> Path | None:
        """The absolute path, where it is below the root and not state.db's."""
        if isinstance(path, int):
            return None
        absolute = os.path.abspath(os.fspath(path))
        if absolute not in self._owned:
            below = absolute == self._root or absolute.startswith(f"{self._root}{os.sep}")
            of_state = os.path.basename(absolute).startswith("state.db")
            self._owned[absolute] = Path(absolute) if below and not of_state else None
        return self._owned[absolute]

    def _at(self, fd: int) -> Path | None:
        for process in self.processes:
            if fd in process.opened:
                return process.opened[fd].path
        return None

    def _step(
        self, action: str, path: Path, effect: Callable[[], T], half: Callable[[], object] | None = None
    ) -> T:
        name = f"{_caller()}: {action} {kind_of(path)}"
        self.point(f"{name} (before)")
        if half:
            self.point(f"{name} (half)", half)
        result = effect()
        self.point(f"{name} (after)")
        return result

    def point(self, name: str, last_act: Callable[[], object] | None = None) -> None:
        """A point at which the acting process may die; `last_act` is what it still does there."""
        if self.acting.dead:
            raise Died(name)
        self.trace.append(name)
        if self._looks:
            self.left.append(self.left_now())
        if hook := self.hooks.pop(name, None):
            hook()
        if self._die_at in (name, len(self.trace) - 1):
            if last_act:
                last_act()
            self.acting.dead, self.died_at = True, name
            raise Died(name)

    # the functions of os

    def _open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        place = self._owns(path)
        if place is None:
            return self._real["open"](path, flags, mode, **options)  # type: ignore[no-any-return]
        if self.acting.dead:
            raise Died("open")

        def opening() -> int:
            fd: int = self._real["open"](path, flags, mode, **options)
            self.acting.opened[fd] = _Opened(place, _status(os.fstat(fd)))
            return fd

        if not flags & os.O_CREAT or os.path.lexists(place):
            return opening()

        def creating() -> int:
            self._refuse_if_full()
            fd = opening()
            self._files[_status(os.fstat(fd))] = _File()  # its number may have been another's
            return fd

        return self._step("create", place, creating)

    def _close(self, fd: int) -> None:
        for process in self.processes:
            process.opened.pop(fd, None)
        self._real["close"](fd)

    def _fdopen(self, fd: int, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if self._at(fd) is None or "w" not in mode:
            return self._real["fdopen"](fd, mode, *arguments, **options)
        return io.TextIOWrapper(io.BufferedWriter(_Stream(self, fd)))

    def _write(self, fd: int, data: bytes) -> int:
        path = self._at(fd)
        if path is None:
            return self._real["write"](fd, data)  # type: ignore[no-any-return]

        def half() -> int:
            cut = data[: self._random.randint(0, len(data))]
            return self._real["write"](fd, cut)  # type: ignore[no-any-return]

        def writing() -> int:
            if self.is_full:
                half()
            self._refuse_if_full()
            return self._real["write"](fd, data)  # type: ignore[no-any-return]

        return self._step("write", path, writing, half)

    def _refuse_if_full(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _fsync(self, fd: int) -> None:
        path = self._at(fd)
        if path is None:
            return  # above the root, where nothing is forgotten
        if path.is_dir():
            self._step("sync", path, lambda: self._sync_entries(path))
        else:
            self._step("sync", path, lambda: self._sync_file(fd, path))

    _fdatasync = _fsync

    def _sync_entries(self, folder: Path) -> None:
        self._entries[folder] = self._present(folder)

    def _sync_file(self, fd: int, path: Path) -> None:
        """What is written while a sync is under way is not part of it."""
        file = self._files.setdefault(_status(os.fstat(fd)), _File())
        content = path.read_bytes()
        if self.during_sync:
            meanwhile, self.during_sync = self.during_sync, None
            meanwhile()
        opened = next(process.opened[fd] for process in self.processes if fd in process.opened)
        if self.failing_syncs:
            self.failing_syncs -= 1
            for process in self.processes:
                for other in process.opened.values():
                    other.will_be_told |= other.status == opened.status
            if self._random.random() < 0.5:
                file.durable = content
        if opened.will_be_told:
            opened.will_be_told, opened.was_told = False, True
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if not opened.was_told:
            file.durable = content

    def _truncate(self, path: Any, length: int) -> None:
        place = self._at(path) if isinstance(path, int) else self._owns(path)
        if place is None:
            self._real["truncate"](path, length)
        else:
            self._step("cut", place, lambda: self._real["truncate"](path, length))

    _ftruncate = _truncate

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        place = self._owns(target)
        if place is None:
            self._real["rename"](source, target, **options)
            return
        source = self._owns(source)

        def renaming() -> None:
            self._real["rename"](source, target, **options)
            for process in self.processes:
                for opened in process.opened.values():
                    if opened.path == source:
                        opened.path = place

        self._step("rename", place, renaming)

    _replace = _rename

    def _link(self, source: Any, target: Any, **options: Any) -> None:
        place = self._owns(target)
        if place is None:
            self._real["link"](source, target, **options)
        else:
            self._step("link", place, lambda: self._real["link"](source, target, **options))

    def _unlink(self, path: Any, **options: Any) -> None:
        place = self._owns(path)
        if place is None or not os.path.lexists(place):
            self._real["unlink"](path, **options)
        else:
            self._step("unlink", place, lambda: self._real["unlink"](path, **options))

    _remove = _unlink

    def _mkdir(self, path: Any, mode: int = 0o777, **options: Any) -> None:
        place = self._owns(path)
        if place is None or place.exists():
            self._real["mkdir"](path, mode, **options)
        else:
            self._step("make", place, lambda: self._real["mkdir"](path, mode, **options))

    # state.db

    def _patch_state(self) -> None:
        disk, patches = self, self.patches
        opening, transaction, make_durable = State.__init__, State.transaction, State.make_durable

        def opened(state: State, path: Path) -> None:
            if disk.acting.dead:
                raise Died("open state.db")
            if disk._owns(path.parent):
                disk._state_path = path
                disk.acting.states.append(state)
            opening(state, path)
            state._db.execute("pragma synchronous = off")  # what is durable is told here, not by SQLite

        @contextmanager
        def in_transaction(state: State, **how: Any) -> Iterator[None]:
            if state not in disk.acting.states:
                with transaction(state, **how):
                    yield
                return
            name = f"{_caller()}: State.transaction"
            disk.point(f"{name}: begin (before)")
            with transaction(state, **how):
                disk.point(f"{name}: begin (after)")
                yield
                disk.point(f"{name}: commit (before)")
            disk._state_commits.append(state._db.serialize("main"))
            disk.point(f"{name}: commit (after)")

        def made_durable(state: State) -> None:
            disk.point("State.make_durable (before)")
            make_durable(state)
            if (
                not state.path.with_name("state.db-wal").stat().st_size
            ):  # all of it is in the database, synced
                disk._state_commits = [state._db.serialize("main")]
            disk.point("State.make_durable (after)")

        patches.setattr(State, "__init__", opened)
        patches.setattr(State, "transaction", in_transaction)
        patches.setattr(State, "make_durable", made_durable)

    @contextmanager
    def _as_a_kill_leaves_it(self) -> Iterator[None]:
        """state.db and its log stay as they lie there when the last connection goes."""
        kept: dict[Path, bytes] = {}
        if self._state_path and all(process.dead for process in self.processes):
            log = self._state_path.with_name("state.db-wal")
            kept = {path: path.read_bytes() for path in (self._state_path, log) if path.exists()}
        yield
        for path, data in kept.items():
            path.write_bytes(data)


class Worst(Random):
    """Of all that a power loss may leave, the least."""

    def randint(self, a: int, b: int) -> int:
        return a

    def choice(self, seq: Any) -> Any:
        return seq[0]

    def random(self) -> float:
        return 1.0


class _Absent:
    """In the place of an entry: there is none."""


class _Stream(io.RawIOBase):
    """What `os.fdopen` gives: its writes are points too."""

    def __init__(self, disk: ForgetfulDisk, fd: int) -> None:
        self._disk, self._fd, self._opened = disk, fd, disk.acting.opened[fd]

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return os.write(self._fd, bytes(data))

    def close(self) -> None:
        if not self.closed and any(
            process.opened.get(self._fd) is self._opened for process in self._disk.processes
        ):
            os.close(self._fd)
        super().close()


def _left_of_file(durable: bytes, now: bytes, random: Random) -> bytes:
    """Any part of what was appended since the last sync, or zeros for it; of a change all or nothing."""
    if not now.startswith(durable):
        return random.choice([durable, now])
    tail = now[len(durable) :]
    kept = tail[: random.randint(0, len(tail))]
    zeros = len(tail) - len(kept) if random.random() < 0.2 else 0
    return durable + kept + bytes(zeros)


_ABSENT = _Absent()
_INTERCEPTED = (
    *("open", "close", "fdopen", "write", "fsync", "fdatasync", "truncate", "ftruncate"),
    *("rename", "replace", "link", "unlink", "remove", "mkdir"),
)


def kind_of(path: Path) -> str:
    """What a file of a ledger is, whatever it is called: "journal", "segment.tmp", "date folder"."""
    name = re.sub(r"\.[0-9a-f]{8,16}\.tmp$", ".tmp", path.name)
    temporary = ".tmp" if name.endswith(".tmp") else ""
    if path.parent.name.startswith("date=") and not name.startswith("empty"):
        return f"segment{temporary}"
    if path.parent.name == "journals" and not name.startswith("empty"):
        return f"{'journal' if '.' not in name.split('.jsonl')[0] else 'next part'}{temporary}"
    return "date folder" if name.startswith("date=") else name


def _caller() -> str:
    """The ledger's function that does it; what every function does it through is not worth a name."""
    frame = sys._getframe(1)
    while frame.f_back and not _has_a_name(frame.f_code):
        frame = frame.f_back
    return frame.f_code.co_qualname if frame.f_back else "test"


def _has_a_name(code: CodeType) -> bool:
    return code.co_filename.startswith(_LEDGER) and code.co_filename != files.__file__


def _status(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
