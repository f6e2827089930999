"""One SELECT over the ledger's views, on a database that is shut in, with limits in time and memory."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from ledger.errors import LedgerError
from ledger.reader import altered_segment, connect, first_words, lock, one_select, select_only
from reports.options import UsageError
from reports.render import FORMATS, Column, Document, Table, harmless

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_T = TypeVar("_T")

SQL_FORMATS = (*FORMATS, "parquet")
_FETCHED_AT_ONCE = 10_000
_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}

Parameters = dict[str, "str | int | Decimal"]


class Limits(NamedTuple):
    """How long a query may run, in seconds (0: as long as it takes), and the memory that DuckDB may use
    for it, and then its rows, each; beyond that DuckDB puts on disk what it can."""

    timeout_s: int = 120
    memory: str = "1GB"

    @property
    def memory_bytes(self) -> int:
        """The memory as a number. Raises UsageError for what is none."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?B)", self.memory, re.IGNORECASE)
        if not found or float(found[1]) == 0:
            raise UsageError(
                f"--memory {self.memory!r} is no amount of memory; expected such as 512MB or 2GB"
            )
        return int(float(found[1]) * _UNITS[found[2].upper()])


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


def sql_text(select: str | None, file: str | None) -> str:
    """The SQL meant: given as it is, or in a file; - is standard input.

    Raises UsageError for both or neither, and for a file that cannot be read.
    """
    if (select is None) == (file is None):
        raise UsageError("give one SELECT, or the file that holds it with --file, - for standard input")
    if file is None:
        return select or ""
    try:
        return sys.stdin.read() if file == "-" else Path(file).expanduser().read_text("utf-8")
    except OSError as error:
        raise UsageError(f"--file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--file {file} is not text in UTF-8; save it so") from error


def parameters(given: Sequence[str] | None) -> Parameters:
    """Values for $name in the SQL: name=text, or name:=12.5 for a number.

    Raises UsageError for what is neither, and for a name given twice.
    """
    named: Parameters = {}
    for text in given or ():
        found = re.fullmatch(r"([A-Za-z_]\w*)(:?)=(.*)", text, re.DOTALL)
        if not found:
            raise UsageError(f"-p {text!r} names no value; expected name=text, or name:=12.5 for a number")
        name, is_number, value = found.groups()
        if name in named:
            raise UsageError(f"-p {name} is given more than once; give it once")
        named[name] = _number(name, value) if is_number else value
    return named


def _number(name: str, text: str) -> int | Decimal:
    if not re.fullmatch(r"-?\d{1,30}(\.\d{1,12})?", text, re.ASCII):
        raise UsageError(
            f"-p {name}:={text} is no number; expected such as 12.5, or {name}={text} for a text"
        )
    return Decimal(text) if "." in text else int(text)


def sql_report(
    path: str | Path,
    sql: str,
    *,
    parameters: Parameters | None = None,
    limits: Limits = Limits(),  # noqa: B008  # it is frozen
    tz: str = "UTC",
    allow_damage: bool = False,
) -> Rows:
    """The rows of one SELECT.

    Raises LedgerError for any other SQL, for one that DuckDB refuses, and beyond a limit.
    """

    def read(connection: duckdb.DuckDBPyConnection) -> Rows:
        result = select_only(connection, sql, parameters)
        names = _distinct([column[0] for column in result.description or ()])
        rows = _within(limits, _chunks(result), lambda chunk: sum(map(_size, chunk)))
        return Rows(names, [dict(zip(names, row, strict=True)) for chunk in rows for row in chunk])

    return _limited(path, read, limits, tz, allow_damage)


def sql_parquet(
    path: str | Path,
    sql: str,
    *,
    parameters: Parameters | None = None,
    limits: Limits = Limits(),  # noqa: B008
    tz: str = "UTC",
    allow_damage: bool = False,
) -> bytes:
    """The same as a Parquet file: decimals exact, moments in `tz`. Raises as `sql_report`, and for a
    type that Parquet lacks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def read(connection: duckdb.DuckDBPyConnection) -> pa.Table:
        relation = connection.sql(one_select(connection, sql), params=parameters or {})
        reader = pa.RecordBatchReader.from_stream(relation)
        batches = list(_within(limits, iter(reader), lambda batch: batch.nbytes))
        table = pa.Table.from_batches(batches, reader.schema)
        return table.rename_columns(_distinct(table.column_names))

    written = io.BytesIO()
    try:
        pq.write_table(_limited(path, read, limits, tz, allow_damage), written, compression="zstd")
    except pa.ArrowException as error:
        raise LedgerError(
            f"this cannot be written as Parquet: {first_words(error)}; cast it to text"
        ) from error
    return written.getvalue()


def _limited(
    path: str | Path,
    read: Callable[[duckdb.DuckDBPyConnection], _T],
    limits: Limits,
    tz: str,
    allow_damage: bool,
) -> _T:
    """What `read` makes of a connection that is shut in, as long as that keeps to the limits."""
    import duckdb

    memory_bytes = limits.memory_bytes
    with connect(path, tz=tz, allow_damage=allow_damage) as connection:
        connection.execute(f"set memory_limit = '{memory_bytes // 1000}KB'")
        lock(connection)
        try:
            return _interruptible(connection, lambda: read(connection), limits.timeout_s)
        except duckdb.OutOfMemoryException as error:
            raise _too_much(limits) from error
        except duckdb.Error as error:
            raise altered_segment(path, error) or LedgerError(
                f"this SQL cannot be run: {first_words(error)}"
            ) from error
        except LedgerError as refusal:
            raise altered_segment(path, refusal.__cause__) or refusal from refusal.__cause__


def _within(limits: Limits, chunks: Iterator[_T], size: Callable[[_T], int]) -> Iterator[_T]:
    left = limits.memory_bytes
    for chunk in chunks:
        left -= size(chunk)
        if left < 0:
            raise _too_much(limits)
        yield chunk


def _too_much(limits: Limits) -> LedgerError:
    return LedgerError(
        f"this SQL needs more than {limits.memory} of memory; ask for less, or allow more with --memory"
    )


def _chunks(result: duckdb.DuckDBPyConnection) -> Iterator[list[Any]]:
    while chunk := result.fetchmany(_FETCHED_AT_ONCE):
        yield chunk


def _size(row: tuple[Any, ...]) -> int:
    return sys.getsizeof(row) + sum(map(sys.getsizeof, row))


def _interruptible(connection: duckdb.DuckDBPyConnection, work: Callable[[], _T], timeout_s: int = 0) -> _T:
    """Do work in a thread: a Ctrl-C cannot reach DuckDB while it holds this one.

    Raises LedgerError once it took longer than `timeout_s`, unless that is 0.
    """
    done: Future[_T] = Future()

    def do() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    ends_at = time.monotonic() + timeout_s if timeout_s else float("inf")
    try:
        Thread(target=do, name="bughive-sql", daemon=True).start()
        while not done.done() and time.monotonic() < ends_at:
            wait([done], timeout=0.1)  # in short waits: a signal right before a long one would go unnoticed
    except KeyboardInterrupt:
        _stop(connection, done)
        raise
    if not done.done():
        _stop(connection, done)
        raise LedgerError(
            f"this SQL was still running after {timeout_s} s; ask for less, or allow more with --timeout"
        )
    return done.result()


def _stop(connection: duckdb.DuckDBPyConnection, done: Future[_T]) -> None:
    """Interrupt again and again: an interrupt before the query has begun is lost."""
    while not done.done():
        connection.interrupt()
        wait([done], timeout=0.05)


def _distinct(names: list[str]) -> list[str]:
    """Names of a result's columns, those that come again with a number."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return distinct
