"""Files that must survive: private, synced, never through a symlink, on a file system that keeps its word."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ledger.errors import LedgerBusy, LedgerError

_log = logging.getLogger("ledger")
_REFUSED_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "fuse")
_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache


def sync_data(fd: int) -> None:
    """Make a file's content durable. Raises OSError where that failed: then nothing is known of it."""
    if _FULL_SYNC is not None:
        fcntl.fcntl(fd, _FULL_SYNC)
    else:
        os.fdatasync(fd)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable: a new or renamed file is only then sure to be found again."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_private(path: Path, flags: int) -> int:
    """Open a file of the ledger: 0600 where it is made, never through a symlink."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it; raises OSError with a part written where the disk is full."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def make_private_folder(folder: Path) -> None:
    """A folder of the ledger, 0700 where it is made; refuses a file or a symlink in its place."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise LedgerError(f"{folder} is not a folder; name another place for the ledger") from error
    except OSError as error:
        raise LedgerError(f"the ledger's folder {folder} cannot be made: {error.strerror}") from error
    if folder.is_symlink():
        raise LedgerError(f"{folder} is a symlink; give the ledger a folder of its own")


def replace_file(path: Path, data: bytes) -> None:
    """Put a derived file in place, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    fd = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        write_all(fd, data)
        sync_data(fd)
    finally:
        os.close(fd)
    os.replace(temporary, path)
    sync_folder(path.parent)


def try_lock(fd: int) -> bool:
    """Take the flock of an open file; False where another holds it. Freed when the file is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def same_file(fd: int, path: Path) -> bool:
    """Whether the path still names the open file: a lock on a file that was replaced locks nothing."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    held = os.fstat(fd)
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """Hold a file's flock while the block runs; None instead of the descriptor where it cannot be had."""
    try:
        fd = open_private(path, os.O_RDWR)
    except FileNotFoundError:
        yield None
        return
    try:
        yield fd if try_lock(fd) and same_file(fd, path) else None
    finally:
        os.close(fd)


@contextlib.contextmanager
def only_one(path: Path, wait_s: float, doing: str) -> Iterator[None]:
    """Hold a lock file, which is never removed, while the block runs.

    Raises LedgerError where another process holds it for longer than `wait_s`.
    """
    fd = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        give_up_at = time.monotonic() + wait_s
        while not try_lock(fd):
            if time.monotonic() >= give_up_at:
                raise LedgerBusy(
                    f"another process has been {doing} {path.parent} for {wait_s:g} s; try again later"
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def check_file_system(folder: Path) -> None:
    """Refuse a file system whose locks or syncs cannot be relied on; warn where nothing survives a reboot."""
    kind = _file_system_of(folder)
    if kind.startswith(_REFUSED_FILE_SYSTEMS):
        raise LedgerError(
            f"{folder} is on {kind}, whose locks and syncs a ledger cannot rely on; use a local disk"
        )
    if kind == "tmpfs":
        _log.warning("the ledger %s is on tmpfs: it is lost when the machine stops", folder)


def _file_system_of(folder: Path) -> str:
    """The type of the mount that holds the folder; empty where the system does not say."""
    if not sys.platform.startswith("linux"):
        return ""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    resolved = str(folder.resolve())
    best, kind = "", ""
    for mount in mounts:
        left, _, right = mount.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind
