"""Which files stand in a ledger's folder, and whether each belongs there."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ledger.checks.findings import Finding
from ledger.errors import LedgerError
from ledger.layout import EMPTY_SEGMENT, OLDER_EMPTY_SEGMENTS
from ledger.price_books import kept
from ledger.reader import ledger_sql
from ledger.schema import NO_SEGMENT

_ID = "[0-9a-f]{32}"
_DATE = r"events/date=\d{4}-\d\d-\d\d"
_FOLDERS = re.compile(rf"journals|events|price_books|{_DATE}")
_BOOK = r"price_books/[0-9a-f]{16}\.json"
_LAID_OUT = ("ledger.id", "ledger.sql", "journals/empty.jsonl", NO_SEGMENT)
_JOURNAL = rf"journals/{_ID}(\.\d+)?\.jsonl"
_SEGMENT = rf"{_DATE}/[0-9a-f]+-\d{{8,}}\.parquet"
_FILES = re.compile(
    "|".join(
        [
            *map(re.escape, _LAID_OUT),
            r"manifest\.jsonl|(seal|settle)\.lock|state\.db(-wal|-shm)?",
            _BOOK,
            _JOURNAL,
            _SEGMENT,
        ]
    )
)
# what a process that is about to finish it, or died, leaves; recovery and sealing go on from there
_UNFINISHED = re.compile(
    rf"({'|'.join([*map(re.escape, _LAID_OUT), _BOOK])})\.[0-9a-f]+\.tmp"
    rf"|{_JOURNAL}\.tmp|{_DATE}/[0-9a-f]+-\d{{8,}}\.tmp"
)


class Entry(NamedTuple):
    """A file or folder of the ledger, as the walk met it."""

    name: str  # relative to the ledger
    mode: int
    size_bytes: int
    changed_ns: int


class Folder(NamedTuple):
    """What was met, and what is wrong with it."""

    entries: list[Entry]
    findings: list[Finding]
    warnings: list[Finding]
    unfinished: int  # files that were not yet, or never, put in place

    def segments(self) -> Iterator[str]:
        """The files that are named as segments are."""
        return self._named(_SEGMENT)

    def journals(self) -> Iterator[str]:
        """The files that are named as parts of journals are."""
        return self._named(_JOURNAL)

    def _named(self, pattern: str) -> Iterator[str]:
        return (
            entry.name
            for entry in self.entries
            if stat.S_ISREG(entry.mode) and re.fullmatch(pattern, entry.name)
        )


def entries_of(root: Path) -> list[Entry]:
    """Walk the ledger's folder; creates nothing and follows no symlink."""
    return sorted(_walk(root, ""))


def look_at_folder(root: Path) -> Folder:
    """What stands in the ledger's folder, and whether it belongs there."""
    entries = entries_of(root)
    findings = [finding for entry in entries if (finding := _out_of_place(entry))]
    names = {entry.name for entry in entries if stat.S_ISREG(entry.mode)}
    findings += [_missing(name) for name in _LAID_OUT if name not in names and name != "ledger.sql"]
    findings += list(_not_as_laid_out(root, names))
    findings += list(_altered_books(root, names))
    return Folder(
        entries,
        findings,
        [*_too_open(entries), *_other_sql(root, names)],
        sum(bool(_UNFINISHED.fullmatch(name)) for name in names),
    )


def _walk(folder: Path, prefix: str) -> Iterator[Entry]:
    try:
        found = folder.lstat()
        yield Entry(prefix, found.st_mode, found.st_size, found.st_mtime_ns)
        if stat.S_ISDIR(found.st_mode):
            for name in os.listdir(folder):
                yield from _walk(folder / name, f"{prefix}/{name}".lstrip("/"))
    except (FileNotFoundError, PermissionError):  # gone meanwhile; what is needed of the rest says so itself
        return


def _out_of_place(entry: Entry) -> Finding | None:
    name, kind = entry.name, stat.S_IFMT(entry.mode)
    if kind == stat.S_IFLNK:
        return Finding(
            "symlink",
            name,
            "it is a symlink: what it leads to is not the ledger's",
            "put the file itself there",
        )
    known = kind == stat.S_IFDIR and (name == "" or _FOLDERS.fullmatch(name))
    known = known or (kind == stat.S_IFREG and (_FILES.fullmatch(name) or _UNFINISHED.fullmatch(name)))
    if known:
        return None
    return Finding(
        "foreign-file", name, "a ledger has no such file", "see where it comes from, and move it away"
    )


def _missing(name: str) -> Finding:
    if name == "ledger.id":
        what = "it is missing: it names the ledger, and holds the key of its prompt hashes"
        return Finding("missing-file", name, what, "put it back from a backup of this ledger")
    return Finding(
        "missing-file", name, "it is missing: plain SQL readers need it", "bughive-costs recover makes it"
    )


def _not_as_laid_out(root: Path, names: set[str]) -> Iterator[Finding]:
    contents = {"journals/empty.jsonl": b"", NO_SEGMENT: EMPTY_SEGMENT.read_bytes()}
    for name, content in contents.items():
        found = _content(root / name) if name in names else None
        if found not in (content, None) and sha256(found or b"").hexdigest() not in OLDER_EMPTY_SEGMENTS:
            yield Finding(
                "altered-file",
                name,
                "it is not as it was laid out",
                "remove it; bughive-costs recover makes it",
            )


def _altered_books(root: Path, names: set[str]) -> Iterator[Finding]:
    """Price books that are not what their name, the hash in the events, says."""
    for name in sorted(names):
        if re.fullmatch(_BOOK, name):
            try:
                kept(root, Path(name).stem)
            except LedgerError as error:
                remedy = "put it back from a backup; whoever opens the ledger with that book writes it again"
                yield Finding("altered-file", name, f"it is not the price book it was: {error}", remedy)


def _too_open(entries: list[Entry]) -> list[Finding]:
    open_ones = [entry for entry in entries if entry.mode & 0o077 and not stat.S_ISLNK(entry.mode)]
    if not open_ones:
        return []
    first = open_ones[0]
    what = (
        f"it and {len(open_ones) - 1} more files or folders are open to other users of this machine"
        if len(open_ones) > 1
        else "it is open to other users of this machine"
    )
    return [Finding("permissions", first.name, what, "chmod -R go= on the ledger's folder")]


def _other_sql(root: Path, names: set[str]) -> list[Finding]:
    """Another version, or the folder's old place, in ledger.sql: what reads it may read something else."""
    if "ledger.sql" in names and _content(root / "ledger.sql") in (ledger_sql(root).encode(), None):
        return []
    what = "it is not what this version writes for a ledger at this place"
    return [Finding("other-sql", "ledger.sql", what, "bughive-costs recover writes it anew")]


def _content(path: Path) -> bytes | None:
    """A file's bytes; None where it cannot be read any more."""
    try:
        with open_file(path) as file:
            return file.read()
    except OSError:
        return None


def open_file(path: Path) -> BinaryIO:
    """Open a file to read, never through a symlink, and without waiting where it is none. Raises OSError."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def ledger_id(root: Path) -> str | None:
    """Who the ledger says it is; None where that cannot be read."""
    try:
        content = json.loads(_content(root / "ledger.id") or b"")
        bytes.fromhex(content["prompt_key"])
        return str(content["ledger_id"])
    except (ValueError, KeyError, TypeError):
        return None


def check_readable(root: Path) -> None:
    """Raise LedgerError where this user cannot even list the ledger's folders."""
    for folder in (root, root / "journals", root / "events"):
        try:
            os.listdir(folder)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise LedgerError(f"{folder} cannot be read: {error.strerror}; verify as its owner") from error
