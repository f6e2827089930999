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
import json
import os
import secrets
from pathlib import Path
from typing import NamedTuple

from ledger.errors import LedgerError
from ledger.files import check_file_system, make_private_folder, open_private, replace_file, sync_folder
from ledger.manifest import read_manifest

EMPTY_SEGMENT = Path(__file__).with_name("empty.parquet")


class Identity(NamedTuple):
    """ledger.id: who this ledger is, and the key of its prompt hashes."""

    ledger_id: str
    prompt_key: bytes


def lay_out(path: Path) -> Identity:
    """Make what a ledger's folder must have, and read who it is. All of it may exist already."""
    make_private_folder(path)
    check_file_system(path)
    nothing_sealed = path / "events" / "date=1970-01-01"
    for folder in (path / "journals", path / "events", nothing_sealed):
        make_private_folder(folder)
    try:
        identity = _identity_of(path)
        for file, content in (
            (path / "journals" / "empty.jsonl", b""),
            (nothing_sealed / "empty.parquet", EMPTY_SEGMENT.read_bytes()),
            (path / "ledger.sql", _ledger_sql(path)),
        ):
            if not file.exists() or file.read_bytes() != content:
                replace_file(file, content)
    except OSError as error:
        raise LedgerError(f"the ledger {path} cannot be used: {error.strerror}: {error.filename}") from error
    return identity


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
        with os.fdopen(fd, "w") as stream:
            json.dump({"ledger_id": ledger_id, "prompt_key": secrets.token_hex(32)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(proposal, file)
        proposal.unlink()
        sync_folder(path)
    try:
        content = json.loads(file.read_bytes())
        return Identity(content["ledger_id"], bytes.fromhex(content["prompt_key"]))
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{file} is damaged; put the ledger's own back, or remove it: {error!r}") from error
