"""A consistent copy of a ledger, made while writers write.

    backup("data/ledger", "/backup/ledger-2026-11-24")

Read in the order in which readers read: journals, up to the sizes they have when the copy begins; then the
manifest; then exactly its segments. state.db is left out: it is derived when the copy is first opened.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ledger import price_books
from ledger.checks.findings import NOTHING_SEALED, Head
from ledger.checks.folder import ledger_id
from ledger.errors import DamagedLedger, LedgerError
from ledger.files import make_private_folder, open_private, sync_data, sync_folder, write_all
from ledger.layout import EMPTY_SEGMENT
from ledger.lines import journal_ids, part_paths, read_story, refuse_newer
from ledger.manifest import MANIFEST, Batch, read_manifest
from ledger.reader import existing_ledger, ledger_sql
from ledger.schema import NO_SEGMENT

_CHUNK_BYTES = 1 << 20


class Backup(NamedTuple):
    """What was copied."""

    path: Path
    head: Head
    segments: int
    journals: int
    size_bytes: int


def backup(path: str | Path, destination: str | Path) -> Backup:
    """Copy a ledger to a place that is not there yet, or an empty folder; the writers go on meanwhile.

    The copy is a ledger of its own: it opens, verifies, and reports what the ledger held at that moment.
    What was open then is ended as abandoned when the copy is first opened. It has the ledger's id too, so
    that its head is one of the ledger's; once written to, the two go separate ways under one id.

    Made beside the destination, synced, and renamed at the end: a copy that was cut short never stands
    there. Raises LedgerError where it cannot be written, DamagedLedger where the ledger is not whole.
    """
    root = existing_ledger(path)
    target = Path(os.path.abspath(Path(destination).expanduser()))
    _check(root, target)
    make_private_folder(target.parent)
    unfinished = target.with_name(f"{target.name}.tmp-{secrets.token_hex(8)}")
    make_private_folder(unfinished)
    try:
        copied = _copy(root, unfinished, target)
        os.rename(unfinished, target)
        sync_folder(target.parent)
    except OSError as error:
        raise LedgerError(f"{target} was not made: {error.strerror}: {error.filename}; make room") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return copied


def _check(root: Path, target: Path) -> None:
    if target == root or root in target.parents:
        raise LedgerError(f"{target} is in the ledger itself; name a place outside it")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise LedgerError(f"{target} is there already; name a place that is not")
    if target.is_dir() and any(target.iterdir()):
        raise LedgerError(f"{target} is not empty; name a place that is not there yet")


def _copy(root: Path, copy: Path, target: Path) -> Backup:
    for folder in (copy / "journals", copy / "events", (copy / NO_SEGMENT).parent):
        make_private_folder(folder)
    journals = _copy_journals(root / "journals", copy / "journals")
    batches, lines = _manifest(root)
    head = _head(root, batches)
    if lines:
        _write(copy / MANIFEST, lines)
    for batch in batches:
        _copy_segment(root, copy, batch)
    _copy_price_books(root, copy)
    for name, content in (
        ("ledger.id", (root / "ledger.id").read_bytes()),
        ("ledger.sql", ledger_sql(target).encode()),
        ("journals/empty.jsonl", b""),
        (NO_SEGMENT, EMPTY_SEGMENT.read_bytes()),
    ):
        _write(copy / name, content)
    return Backup(target, head, len(batches), journals, _sync_folders(copy))


def _copy_price_books(root: Path, copy: Path) -> None:
    books = sorted((root / price_books.FOLDER).glob("*.json"))
    if books:
        make_private_folder(copy / price_books.FOLDER)
    for book in books:
        _write(copy / price_books.FOLDER / book.name, book.read_bytes())


def _copy_journals(folder: Path, copy: Path) -> int:
    """Copy each journal's whole lines; how many journals.

    Sizes are taken at once, before anything is read: what one journal says of another's events, as a
    settlement does, came after them.
    """
    parts = {journal_id: part_paths(folder, journal_id) for journal_id in journal_ids(folder)}
    sizes = {path: size for paths in parts.values() for path in paths if (size := _size(path)) is not None}
    copied = 0
    for journal_id, paths in parts.items():
        try:
            contents = {path.name: _whole_lines(path, sizes[path], journal_id) for path in paths}
        except (FileNotFoundError, KeyError):
            continue  # removed meanwhile: the manifest, read after this, covers it
        for name, content in contents.items():
            if content:
                _write(copy / name, content)
        copied += 1
    return copied


def _size(path: Path) -> int | None:
    try:
        return path.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return None


def _whole_lines(path: Path, size: int, journal_id: str) -> bytes:
    with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
        data = file.read(size)
    story = read_story(data, journal_id)
    if story.damage:
        raise DamagedLedger(f"{path}: {story.damage}; bughive-costs verify says more")
    refuse_newer(path, story.schema_version)
    return data[: story.good_bytes]


def _manifest(root: Path) -> tuple[list[Batch], bytes]:
    """The batches, and the lines that say so."""
    batches, good_bytes = read_manifest(root)
    if not batches:
        return [], b""
    with os.fdopen(open_private(root / MANIFEST, os.O_RDONLY), "rb") as file:
        return batches, file.read(good_bytes)


def _copy_segment(root: Path, copy: Path, batch: Batch) -> None:
    """Byte for byte, and only if those bytes are the ones that were sealed."""
    make_private_folder((copy / batch.file).parent)
    digest = hashlib.sha256()
    try:
        source = open_private(root / batch.file, os.O_RDONLY)
    except FileNotFoundError as error:
        raise DamagedLedger(f"{root / batch.file} is missing; bughive-costs verify says more") from error
    with os.fdopen(source, "rb") as file:
        fd = open_private(copy / batch.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                write_all(fd, chunk)
            sync_data(fd)
        finally:
            os.close(fd)
    if digest.hexdigest() != batch.sha256:
        raise DamagedLedger(f"{root / batch.file} is altered; bughive-costs verify says more")


def _write(path: Path, content: bytes) -> None:
    fd = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        write_all(fd, content)
        sync_data(fd)
    finally:
        os.close(fd)


def _sync_folders(copy: Path) -> int:
    """Make the names durable too; gives the bytes of all files."""
    size_bytes = 0
    for folder, _, files in os.walk(copy, topdown=False):
        sync_folder(Path(folder))
        size_bytes += sum((Path(folder) / name).stat().st_size for name in files)
    return size_bytes


def _head(root: Path, batches: Sequence[Batch]) -> Head:
    known = ledger_id(root)
    if known is None:
        raise DamagedLedger(f"{root / 'ledger.id'} is missing or damaged; bughive-costs verify says more")
    return Head(known, batches[-1].batch, batches[-1].sha256) if batches else Head(known, 0, NOTHING_SEALED)
