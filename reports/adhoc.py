"""One SELECT over the ledger's views, on a database that is shut in."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from decimal import Decimal
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from ledger.errors import LedgerError
from ledger.reader import connect, first_words, lock, select_only
from reports.render import Column, Document, Table, harmless

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb

_T = TypeVar("_T")


class Rows(NamedTuple):
    """The rows of a SELECT, as DuckDB gave them."""

    names: list[str]
    rows: list[dict[str, Any]]

    def data(self) -> list[dict[str, Any]]:
        """The rows as they are."""
        return self.rows

    def table(self) -> Table:
        """The rows under their own names."""
        return Table("", [Column(name, harmless(name), self._kind(name)) for name in self.names], self.rows)

    def _kind(self, name: str) -> Literal["number", "raw"]:
        values = [row[name] for row in self.rows if row[name] is not None]
        return (
            "number"
            if values and all(isinstance(value, (int, float, Decimal)) for value in values)
            else "raw"
        )

    def document(self) -> Document:
        """The rows, and nothing else."""
        return Document("", [], [self.table()])


def sql_report(path: str | Path, sql: str, *, tz: str = "UTC", allow_damage: bool = False) -> Rows:
    """The rows of one SELECT. Raises LedgerError for any other SQL, and for one that DuckDB refuses."""
    with connect(path, tz=tz, allow_damage=allow_damage) as connection:
        lock(connection)
        names, rows = _interruptible(connection, lambda: _rows(connection, sql))
    return Rows(names, rows)


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[list[str], list[dict[str, Any]]]:
    import duckdb

    try:
        result = select_only(connection, sql)
        names = _distinct([column[0] for column in result.description or ()])
        return names, [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    except duckdb.Error as error:
        raise LedgerError(f"this SQL cannot be run: {first_words(error)}") from error


def _interruptible(connection: duckdb.DuckDBPyConnection, work: Callable[[], _T]) -> _T:
    """Do work in a thread: a Ctrl-C cannot reach DuckDB while it holds this one."""
    done: Future[_T] = Future()

    def do() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    try:
        Thread(target=do, name="bughive-sql", daemon=True).start()
        while not done.done():  # in short waits: a signal right before a long one would go unnoticed
            wait([done], timeout=0.1)
    except KeyboardInterrupt:
        while not done.done():  # again and again: an interrupt before the query has begun is lost
            connection.interrupt()
            wait([done], timeout=0.05)
        raise
    return done.result()


def _distinct(names: list[str]) -> list[str]:
    """Names of a result's columns, those that come again with a number."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return distinct
