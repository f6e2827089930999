"""Which segments hold a session, as state.db's index says; read beside its writers, and never written to.

What cannot be read is answered with None: the segments say it all by themselves, only slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    import apsw

_T = TypeVar("_T")


class Held(NamedTuple):
    """The batches up to `indexed_batch` that hold a session; of later ones it is not known.

    `indexed_sha256` is that batch's: with another one in the manifest, this says nothing of it.
    """

    batches: list[int]
    indexed_batch: int
    indexed_sha256: str


def batches_of_session(root: Path, session_id: str) -> Held | None:
    """Which batches to open; None where state.db does not say: then all are."""

    def ask(connection: apsw.Connection) -> Held | None:
        indexed_batch, indexed_sha256 = _indexed_batch(connection), _meta(connection, "indexed_sha256")
        if indexed_batch is None or indexed_sha256 is None:
            return None
        found = connection.execute(
            "select batch from session_batches where session_id = ? order by batch", (session_id,)
        ).fetchall()
        return Held([int(str(batch)) for (batch,) in found], indexed_batch, indexed_sha256)

    return _asked(root, ask)


def indexed_batch(root: Path) -> int | None:
    """The last batch that is indexed."""
    return _asked(root, _indexed_batch)


def sessions_beginning(root: Path, beginning: str, most: int) -> list[str]:
    """Indexed sessions whose name begins so, by name."""

    def ask(connection: apsw.Connection) -> list[str]:
        after_all = beginning + chr(0x10FFFF)
        found = connection.execute(
            "select distinct session_id from session_batches where session_id between ? and ?"
            " order by session_id limit ?",
            (beginning, after_all, most),
        )
        return [str(name) for (name,) in found]

    return _asked(root, ask) or []


def _indexed_batch(connection: apsw.Connection) -> int | None:
    indexed = _meta(connection, "indexed_batch")
    return None if indexed is None else int(indexed)


def _meta(connection: apsw.Connection, key: str) -> str | None:
    found = connection.execute("select value from meta where key = ?", (key,)).get
    return None if found is None else str(found)


def _asked(root: Path, ask: Callable[[apsw.Connection], _T | None]) -> _T | None:
    """What state.db says; None where it cannot be read as it is."""
    database = root / "state.db"
    if not database.exists():
        return None
    try:
        import apsw

        with read_only(database) as connection, connection:
            answer = ask(connection)
    except (apsw.Error, OSError, ValueError):
        return None
    return answer


@contextlib.contextmanager
def read_only(database: Path) -> Iterator[apsw.Connection]:
    """state.db without making files beside it, which SQLite does for a WAL database that is at rest.

    At rest (no -wal file) it is read as immutable, and counts only if it still is the same after.
    """
    import apsw

    wal, shared = (database.with_name(database.name + suffix) for suffix in ("-wal", "-shm"))
    at_rest = not wal.exists()
    if not at_rest and not shared.exists():
        raise OSError(f"{wal} has no -shm file beside it")
    before = database.stat()
    connection = apsw.Connection(
        f"{database.as_uri()}?{'immutable=1' if at_rest else 'mode=ro'}",
        flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
    )
    try:
        yield connection
    finally:
        connection.close()
    after = database.stat()
    if at_rest and (wal.exists() or (after.st_ino, after.st_mtime_ns) != (before.st_ino, before.st_mtime_ns)):
        raise OSError(f"{database} was written to meanwhile")
