"""What state.db says, in one reading of it: a copy in memory of its tables."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from ledger.accounts import SPENT
from ledger.checks.findings import Finding
from ledger.errors import LedgerError
from ledger.session_index import read_only
from ledger.state import STATE_VERSION

STATE = "state.db"
RECOVER = "bughive-costs recover derives it anew from the events"
_TRIES = 5  # SQLite cannot be read where it is created, checkpointed or removed right then
_TABLES: Mapping[str, tuple[str, str]] = {  # how each is read, and as what
    "positions": ("select journal_id, seq, closed from positions", "varchar, bigint, bigint"),
    "balances": (
        f"select scope, scope_id, quarter, spent_micro, spent_rest, unpriced_attempts from ({SPENT})",
        "varchar, varchar, bigint, bigint, bigint, bigint",
    ),
    "request_spent": (
        "select request_id, spent_micro, spent_rest from request_spent",
        "varchar, bigint, bigint",
    ),
    "sums": (
        "select scope, scope_id, first_quarter, end_quarter, spent_micro, spent_rest, doubt_micro, doubt_rest"
        " from sums",
        "varchar, varchar, bigint, bigint, bigint, bigint, bigint, bigint",
    ),
    "unsummed": (
        "select quarter, session_id, task, tier, model, spent_pico from unsummed",
        "bigint, varchar, varchar, varchar, varchar, bigint",
    ),
    "holds": (
        "select attempt_id, journal_id, ceiling_pico, quarter, state from holds",
        "varchar, varchar, bigint, bigint, varchar",
    ),
    "doubts": (
        "select attempt_id, journal_id, ceiling_pico, quarter, session_id, task, tier, model from doubts",
        "varchar, varchar, bigint, bigint, varchar, varchar, varchar, varchar",
    ),
    "budgets": (
        "select scope, scope_id, mode, limit_pico, tz, journal_id, seq from budgets",
        "varchar, varchar, varchar, bigint, varchar, varchar, bigint",
    ),
    "settled": ("select attempt_id from settled", "varchar"),
    "circuits": (
        "select provider, model, opened_us, closed from circuits",
        "varchar, varchar, bigint, bigint",
    ),
    "session_batches": ("select session_id, batch from session_batches", "varchar, bigint"),
    "meta": ("select key, value from meta", "varchar, varchar"),
}


class Projection(NamedTuple):
    """The rows of state.db, by table."""

    rows: Mapping[str, list[tuple[Any, ...]]]

    @property
    def positions(self) -> dict[str, tuple[int, bool]]:
        """Per journal the number of the last applied event, and whether the journal is closed."""
        return {journal_id: (seq, bool(closed)) for journal_id, seq, closed in self.rows["positions"]}

    @property
    def is_derived(self) -> bool:
        """Whether it has ever been derived from the ledger's events."""
        return any(key == "derived" for key, _ in self.rows["meta"])

    @property
    def indexed(self) -> tuple[int, str]:
        """All batches up to this one, which has that hash, are in session_batches; 0: none."""
        meta = dict(self.rows["meta"])
        number = str(meta.get("indexed_batch", 0))
        return (int(number) if number.isdigit() else 0), str(meta.get("indexed_sha256", ""))

    def reserved(self) -> list[tuple[str, str]]:
        """Attempts whose ceiling is held before they start, each with its journal."""
        return [
            (attempt_id, journal_id)
            for attempt_id, journal_id, _, _, state in self.rows["holds"]
            if state == "reserved"
        ]


NOTHING = Projection({table: [] for table in _TABLES})


def sql_types() -> dict[str, list[tuple[str, str]]]:
    """The columns of each table, with DuckDB's types."""
    return {
        table: list(
            zip(select.split(" from ")[0].removeprefix("select ").split(", "), types.split(", "), strict=True)
        )
        for table, (select, types) in _TABLES.items()
    }


def read_projection(root: Path) -> tuple[Projection | None, list[Finding]]:
    """What state.db says; None where it is not there, not derived yet, or of no use.

    Raises LedgerError where a newer version of this program has made it.
    """
    database = root / STATE
    for tries_left in reversed(range(_TRIES)):
        if not database.exists():
            return None, []
        try:
            with _opened(database) as connection, connection:
                projection = _read(database, connection)
            return (projection if projection and projection.is_derived else None), []
        except (apsw.NotADBError, apsw.CorruptError, apsw.SQLError, _Corrupt) as error:
            return None, [_unreadable(error)]
        except (apsw.Error, OSError, ValueError) as error:
            if not tries_left:
                return None, [_unreadable(error)]
    return None, []


class _Corrupt(Exception):
    """SQLite itself finds something wrong."""


def _unreadable(error: Exception) -> Finding:
    why = " ".join(str(error).split())[:160]
    return Finding("state-unreadable", STATE, f"it cannot be read: {why}", RECOVER)


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[apsw.Connection]:
    """state.db without making files beside it: what lacks its -shm is nobody's, and read in a copy."""
    wal, shared = (database.with_name(STATE + suffix) for suffix in ("-wal", "-shm"))
    if not wal.exists() or shared.exists():
        with read_only(database) as connection:
            yield connection
        return
    with tempfile.TemporaryDirectory(prefix="bughive-state-") as folder:
        for file in (database, wal):
            shutil.copyfile(file, Path(folder) / file.name)
        connection = apsw.Connection(str(Path(folder) / STATE))
        try:
            yield connection
        finally:
            connection.close()


def _read(database: Path, connection: apsw.Connection) -> Projection | None:
    found = connection.pragma("user_version")
    version = found if isinstance(found, int) else 0
    if version > STATE_VERSION:
        raise LedgerError(
            f"{database} has version {version}, written by a newer bughive-costs; this one knows"
            f" {STATE_VERSION}: update it"
        )
    if version < STATE_VERSION:
        return None  # new, or of an older version: it is derived anew when the ledger is opened
    said = connection.execute("pragma integrity_check(1)").get
    if said != "ok":
        raise _Corrupt(str(said))
    return Projection(
        {table: connection.execute(select).fetchall() for table, (select, _) in _TABLES.items()}
    )
