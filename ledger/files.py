"""Files that must survive: private, synced, never through a symlink, on a file system that keeps its word."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from ledger.errors import LedgerBusy, LedgerError

_log = logging.getLogger("ledger")
_REFUSED_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "fuse", "virtiofs", "vboxsf", "vmhgfs")
_LOST_AT_REBOOT = ("tmpfs", "ramfs")
_SAFELY = os.O_NOFOLLOW | os.O_CLOEXEC
_O_PATH: int = getattr(os, "O_PATH", os.O_RDONLY)  # on Linux: asks for no right to read
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
    """Open a file of the ledger: 0600 where it is made, whatever the umask; never through a symlink.

    Raises LedgerError for a symlink, else OSError as `os.open`.
    """
    try:
        if flags & os.O_CREAT:
            return _open_or_make(path, flags)
        return os.open(path, flags | _SAFELY)
    except OSError as error:
        if os.path.islink(path):
            raise LedgerError(f"{path} is a symlink; put the file itself in its place") from error
        raise


def _open_or_make(path: Path, flags: int) -> int:
    """As asked, knowing whether it was there: only a file that is made here gets its mode here."""
    while True:
        with contextlib.suppress(FileExistsError):
            fd = os.open(path, flags | os.O_EXCL | _SAFELY, 0o600)
            os.fchmod(fd, 0o600)
            return fd
        if flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        with contextlib.suppress(FileNotFoundError):  # removed in between: made again
            return os.open(path, flags & ~os.O_CREAT | _SAFELY)


def read_private(path: Path) -> bytes:
    """A file's bytes as of now. Raises LedgerError for a symlink, else OSError."""
    fd = open_private(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        return b"".join(iter(lambda: os.read(fd, max(size, 65_536)), b""))
    except IsADirectoryError as error:
        raise IsADirectoryError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it; raises OSError with a part written where the disk is full."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, data[written:])


def make_private_folder(folder: Path) -> None:
    """A folder of the ledger, and what is missing above it: 0700 where it is made, whatever the umask.

    What is there keeps its mode. To be sure of its name, sync the folder above it. Raises LedgerError
    for a file or a symlink in its place.
    """
    try:
        for missing in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
            _make_folder(missing)
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except NotADirectoryError:
        is_folder = False
    except OSError as error:
        if not os.path.islink(folder):
            raise LedgerError(f"the folder {folder} cannot be made: {error.strerror}") from error
    if folder.is_symlink():
        raise LedgerError(f"{folder} is a symlink; give the ledger a folder of its own")
    if not is_folder:
        raise LedgerError(f"{folder} is not a folder; name another place for the ledger")


def _make_folder(folder: Path) -> None:
    """One folder, whose parent is there. Another process may have made it meanwhile."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
        os.chmod(folder, 0o700)


def replace_file(path: Path, data: bytes) -> None:
    """Put a derived file in place, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    fd = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            write_all(fd, data)
            sync_data(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
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
    try:
        fd = open_private(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise LedgerError(f"{path} cannot be made: {error.strerror}; make room, or mend the disk") from error
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


def refuse_symlinks(path: Path) -> None:
    """Raise LedgerError where something in a ledger is a symlink: it may lead anywhere, tomorrow too.

    Segments are looked at when they are read.
    """
    for folder in (path, path / "journals", path / "events"):
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            link = next((entry.path for entry in entries if entry.is_symlink()), None)
            if link:
                raise LedgerError(f"{link} is a symlink; put what it names in its place")


def check_file_system(folder: Path) -> None:
    """Refuse a file system whose locks or syncs cannot be relied on; warn where nothing survives a reboot.

    The folder need not be there yet: then it is the file system it would be made on.
    """
    kind = _file_system_of(folder)
    if kind.startswith(_REFUSED_FILE_SYSTEMS):
        raise LedgerError(
            f"{folder} is on {kind}, whose locks and syncs a ledger cannot rely on; use a local disk"
        )
    if kind in _LOST_AT_REBOOT:
        warn_once(f"the ledger {folder} is on {kind}: it is lost when the machine stops")


def warn_of_readers(folder: Path) -> None:
    """Warn where others than the owner may look into a folder. It is left so: it may be meant."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        warn_once(f"others may look into the ledger {folder} (mode {mode:04o}); chmod 700 keeps it private")


@cache
def warn_once(message: str) -> None:
    """Log a warning the first time this process has it."""
    _log.warning("%s", message)


def _file_system_of(folder: Path) -> str:
    """The type of the mount that holds the folder, or will; empty where the system does not say."""
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        fd = os.open(there, _O_PATH | os.O_CLOEXEC)
        try:
            about = Path(f"/proc/self/fdinfo/{fd}").read_bytes()
        finally:
            os.close(fd)
        return mount_type(Path("/proc/self/mountinfo").read_bytes(), about)
    except OSError:  # no Linux, no /proc, or a path that nothing can be made at
        return ""


def mount_type(mountinfo: bytes, fdinfo: bytes) -> str:
    """What /proc/self/mountinfo calls the mount of an open file, going by its /proc/self/fdinfo; pure.

    The mount's number decides, not its path: mounts may hide each other, and paths are escaped there.
    """
    number = re.search(rb"^mnt_id:\s*(\d+)$", fdinfo, re.MULTILINE)
    if number is None:
        return ""
    mount = re.search(rb"^%b .*? - (\S+) " % number[1], mountinfo, re.MULTILINE)
    return os.fsdecode(mount[1]) if mount else ""
