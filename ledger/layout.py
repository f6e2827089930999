"""A ledger's folder: what must be in it, and who it is.

journals/<journal_id>.jsonl    one per writing process; empty.jsonl so that a glob finds something
events/date=…/*.parquet        segments; empty.parquet likewise, with the full schema
manifest.jsonl                 one line per segment
state.db                       what is derived
ledger.sql                     for a plain DuckDB prompt
ledger.id                      this ledger's identity, and the key of its prompt hashes
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import time
from pathlib import Path
from typing import NamedTuple

from ledger.errors import LedgerError
from ledger.files import (
    check_file_system,
    make_private_folder,
    open_private,
    read_private,
    refuse_symlinks,
    replace_file,
    sync_folder,
    warn_of_readers,
)
from ledger.manifest import read_manifest
from ledger.schema import NO_SEGMENT

EMPTY_SEGMENT = Path(__file__).with_name("empty.parquet")
OLDER_EMPTY_SEGMENTS = (  # SHA-256, as older versions laid them out; replaced when the ledger is opened
    "ce9afe1dbbb29984364c0d4a48502e95eed39b82a7c29a0cb84510d530ac8e00",  # schema 1
)
UNFINISHED_S = 60.0
_FOLDERS = ("journals", "events", "events/date=1970-01-01")
_LAID_OUT = ("ledger.id", "ledger.sql", "journals/empty.jsonl", NO_SEGMENT)


class Identity(NamedTuple):
    """ledger.id: who this ledger is, and the key of its prompt hashes."""

    ledger_id: str
    prompt_key: bytes


def lay_out(path: Path, *, temporary: bool = False) -> Identity:
    """Make what a ledger's folder must have, and read who it is. All of it may exist already.

    `temporary`: that it goes soon is known, and nothing to warn of. Raises LedgerError, before anything
    is made, where the file system is unsuitable; for a symlink in it; where it cannot be written.
    """
    if not temporary:
        check_file_system(path)
    make_private_folder(path)
    for folder in _FOLDERS:
        make_private_folder(path / folder)
    if not temporary:
        warn_of_readers(path)
    try:
        refuse_symlinks(path)
        _remove_unfinished(path)
        _sync_place(path)
        identity = _identity_of(path)
        for name, content in (
            ("journals/empty.jsonl", b""),
            (NO_SEGMENT, EMPTY_SEGMENT.read_bytes()),
            ("ledger.sql", _ledger_sql(path)),
        ):
            file = path / name
            if not file.exists() or file.read_bytes() != content:
                replace_file(file, content)
    except OSError as error:
        raise LedgerError(f"the ledger {path} cannot be used: {_why(error, path)}") from error
    return identity


def _why(error: OSError, path: Path) -> str:
    """What to look at: the folder, where the file was to be a new one under a name of its own."""
    at = Path(error.filename or path)
    at = at.parent if at.suffix == ".tmp" else at
    is_kept_from_us = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    return f"{error.strerror}; see the permissions of {at}" if is_kept_from_us else f"{error.strerror}: {at}"


def _sync_place(path: Path) -> None:
    """Make sure that the ledger is found again: whoever made its folders may have died before his sync.

    Before ledger.id is there: who finds that finds a ledger whose place above it is durable.
    """
    sync_folder(path)
    if not (path / "ledger.id").exists():
        for folder in path.parents:
            with contextlib.suppress(PermissionError):  # not ours to read, so not ours to have made
                sync_folder(folder)


def _remove_unfinished(path: Path) -> None:
    """Remove what processes that died while they laid the ledger out have left."""
    for name in (*_LAID_OUT, "price_books/*.json"):
        for leftover in path.glob(f"{name}.*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - leftover.stat().st_mtime > UNFINISHED_S:  # else it may be about to be used
                    leftover.unlink()


def _ledger_sql(path: Path) -> bytes:
    from ledger.reader import ledger_sql

    text: str = ledger_sql(path)
    return text.encode()


def _identity_of(path: Path) -> Identity:
    """ledger.id, made once: the first process to link its file into place decides."""
    file = path / "ledger.id"
    if not file.exists():
        batches, _ = read_manifest(path)
        ledger_id = batches[0].ledger_id if batches else secrets.token_hex(16)
        proposal = path / f"ledger.id.{secrets.token_hex(4)}.tmp"
        fd = open_private(proposal, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(fd, "w") as stream:
                json.dump({"ledger_id": ledger_id, "prompt_key": secrets.token_hex(32)}, stream)
                stream.flush()
                os.fsync(stream.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(proposal, file)
        finally:
            proposal.unlink()
        sync_folder(path)
    try:
        content = json.loads(read_private(file))
        return Identity(content["ledger_id"], bytes.fromhex(content["prompt_key"]))
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{file} is damaged; put the ledger's own back, or remove it: {error!r}") from error
