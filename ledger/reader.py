"""How the ledger is read: one snapshot of its files, and the views over it, in DuckDB.

    journals/*.jsonl ─┐
    manifest.jsonl   ─┼─ views/snapshot.sql ─▶ events ─▶ attempts ─▶ requests ─▶ sessions, …
    events/*.parquet ─┘

The same SQL serves `connect` and `ledger.sql`, the file that a plain DuckDB prompt reads. A reader
creates nothing in the ledger, and refuses files that contradict each other. This module is
imported by writers too: duckdb and polars load when something is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ledger.errors import DamagedLedger, LedgerError, nearest
from ledger.files import read_private, refuse_symlinks
from ledger.relations import VIEWS, Holds, columns_for, fields_of_a_line, quoted, sql_file, statements
from ledger.schema import COLUMNS, NO_SEGMENT, SCHEMA_VERSION, TIER_ORDER, Column, arrow_schema
from ledger.session_index import batches_of_session, indexed_batch, sessions_beginning

if TYPE_CHECKING:
    import duckdb
    import polars as pl

_MANY_EVENTS = 1_000_000  # from there on it pays to look first at what is settled, and what is unfinished
_HANDLES_AT_LEAST = 8
_MEMORY_FOR_SUMS = "500MB"
_SNAPSHOT_TRIES = 20  # a journal may be sealed and removed between its listing and its reading, in each try


def connect(
    path: str | Path,
    session_id: str | None = None,
    *,
    tz: str = "UTC",
    allow_damage: bool = False,
    views: Sequence[str] = VIEWS,
) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the ledger's views as of now; nothing is written to the ledger.

    session_id: `events`, and so all views, hold this session alone; only the segments that hold it
    are opened. tz: where days begin, and how moments are shown. allow_damage: leave out what is
    missing or altered instead of refusing. views: those to make, with what they read; without
    `events` among them only the columns that they name are read of an event, which is faster.

    Raises LedgerError where there is no ledger or no such time zone, DamagedLedger where its files
    contradict each other; that names the file.
    """
    import duckdb

    root = existing_ledger(path)
    if "\\" in str(root):
        raise LedgerError(
            f"DuckDB cannot list {root}, for the backslash in its name; rename that folder,"
            " or read the ledger through a link without one"
        )
    _require_handles(root)
    connection = duckdb.connect(config=_config())
    try:
        _read_ahead_less(connection)
        connection.execute("set parquet_metadata_cache = true")  # views read segments more than once
        _set_time_zone(connection, tz)
        _set_variables(connection, root, session_id, allow_damage, columns_for(tuple(views)))
        _take_snapshot(connection, root)
        _check_segments(connection, root, allow_damage)
        if not allow_damage:
            _check_manifest_end(connection, root)
        _make_views(connection, root, views)
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def reading(
    path: str | Path,
    session_id: str | None = None,
    *,
    tz: str = "UTC",
    allow_damage: bool = False,
    views: Sequence[str] = VIEWS,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection as `connect` makes it, for a block in which damage is told as `connect` tells it."""
    with told(path), connect(path, session_id, tz=tz, allow_damage=allow_damage, views=views) as connection:
        yield connection


def ledger_sql(path: str | Path) -> str:
    """The text of ledger.sql: the snapshot and all views, for a DuckDB with nothing else installed."""
    place = quoted(os.path.abspath(path))
    return "\n".join(
        [
            "-- This ledger's events and all views over them, journals included, as of now.",
            "--",
            "--     duckdb -init ledger.sql        or, at its prompt:  .read ledger.sql",
            "--     select * from sessions;",
            "--",
            "-- Run it again for newer data. It writes nothing to the ledger. Made by bughive-costs.",
            "--",
            "-- It reads the place named below, wherever this file lies. In a copy, first say where that is:",
            "--     set variable ledger_at = '/where/the/copy/is';",
            "",
            "set TimeZone = 'UTC';",
            f"set variable ledger_path = coalesce(getvariable('ledger_at'), {place});",
            f"set variable ledger_fields = {quoted(fields_of_a_line(COLUMNS))};",
            f"set variable ledger_schema_version = {SCHEMA_VERSION};",
            "",
            sql_file("snapshot"),
            *statements(VIEWS),
        ]
    )


def scan(path: str | Path, *, allow_damage: bool = False) -> pl.LazyFrame:
    """All events as of now, one row each; columns and types as in `ledger.schema`, in its order.

    Segments are read when the frame is collected; journals are read at once. Raises as `connect`.
    """
    import polars as pl

    with connect(path, allow_damage=allow_damage, views=()) as connection:
        names = ", ".join(column.name for column in COLUMNS)
        journals = connection.sql(f"select {names} from ledger_journal_events").to_arrow_table()
        segments = _segments_of(connection)
    frame = pl.from_arrow(journals.cast(arrow_schema()))
    assert isinstance(frame, pl.DataFrame)
    sealed = pl.scan_parquet(
        segments,
        schema=frame.schema,
        glob=False,
        hive_partitioning=False,
        missing_columns="insert",
        extra_columns="ignore",
    )
    return pl.concat([sealed, frame.lazy()])


def sums_alone(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """A connection that is asked for sums: they need little memory, and the rest may go through its disk.

    With the footers of 2,000 segments, some 450 MB, a process stays below 1 GB.
    """
    connection.execute(f"set memory_limit = '{_MEMORY_FOR_SUMS}'")
    return connection


def lock(connection: duckdb.DuckDBPyConnection) -> None:
    """Shut a connection in: it reads the ledger's segments, no other file, and stays so."""
    segments = _segments_of(connection)
    as_patterns = [re.sub(r"([*?\[])", r"[\1]", path) for path in segments]  # so the view names them
    connection.execute("set python_enable_replacements = false")
    connection.execute(f"set allowed_paths = [{', '.join(map(quoted, segments + as_patterns))}]")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def one_select(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    """The one SELECT that `sql` is, to be run on a connection that `lock` has shut in.

    Raises LedgerError for anything else: no statement, several, one of another kind, or what is no
    SQL; DuckDB's own first words are in the message.
    """
    import duckdb

    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise LedgerError(f"this SQL cannot be run: {first_words(error)}") from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise LedgerError(f"only one SELECT can be run here, not {_described(statements)}")
    return statements[0]


def select_only(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, object] | None = None
) -> duckdb.DuckDBPyConnection:
    """Run one SELECT, with values for its $names, on a connection that `lock` has shut in.

    Raises LedgerError as `one_select`, and for one that DuckDB refuses; but what it needs too much memory
    for, or was interrupted in, stays DuckDB's own error.
    """
    import duckdb

    statement = one_select(connection, sql)
    try:
        return connection.execute(statement, dict(parameters or {}))
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except duckdb.Error as error:
        raise LedgerError(f"this SQL cannot be run: {first_words(error)}") from error


def existing_ledger(path: str | Path) -> Path:
    """The ledger's absolute path. Raises LedgerError where there is none; creates nothing."""
    root = Path(os.path.abspath(Path(path).expanduser()))
    try:
        if root.is_dir() and (root / "journals").is_dir():
            refuse_symlinks(root)
            return root
    except OSError as error:
        raise LedgerError(
            f"the ledger {root} cannot be read: {error.strerror}; see its permissions"
        ) from error
    if not root.exists():
        raise LedgerError(f"there is no ledger at {path}; name its folder with --ledger or BUGHIVE_LEDGER")
    if not root.is_dir():
        raise LedgerError(f"{path} is a file, not a ledger; name the ledger's folder")
    raise LedgerError(f"{path} is not a ledger: it has no folder journals; name the ledger's folder")


def session_ids(path: str | Path, beginning: str, most: int) -> list[str]:
    """Sessions whose name begins so, without reading a segment: those unsealed, and those indexed.

    Raises as `connect`.
    """
    with connect(path, views=()) as connection:
        found = connection.execute(
            "select distinct session_id from ledger_journal_events"
            " where starts_with(session_id, ?) order by session_id limit ?",
            [beginning, most],
        ).fetchall()

    indexed = sessions_beginning(existing_ledger(path), beginning, most)
    return sorted({name for (name,) in found} | set(indexed))[:most]


def tier_rank(tier: str | None) -> tuple[int, str]:
    """A key that sorts tiers in their order; unknown ones after them by name, None last."""
    known = TIER_ORDER.index(tier) if tier in TIER_ORDER else len(TIER_ORDER)
    return (known if tier is not None else len(TIER_ORDER) + 1, tier or "")


# the snapshot


def _require_handles(root: Path) -> None:
    """Raise LedgerError where hardly a file can be opened: DuckDB would end the whole process."""
    probes: list[int] = []
    try:
        probes.extend(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(_HANDLES_AT_LEAST))
    except OSError as error:
        raise LedgerError(
            f"{root} cannot be read: {error.strerror}; raise the limit of open files (ulimit -n)"
        ) from error
    finally:
        for probe in probes:
            os.close(probe)


def _config() -> dict[str, str | bool | int | float | list[str]]:
    spill = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"bughive-duckdb-{os.getpid()}")
    return {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "temp_directory": spill,  # made only if needed, and never in the working directory
    }


def _read_ahead_less(connection: duckdb.DuckDBPyConnection) -> None:
    """From 2.0 on DuckDB reads ahead with eight threads, and holds some hundred segments open meanwhile."""
    import duckdb

    with contextlib.suppress(duckdb.CatalogException):  # older ones have no such setting, and no need of it
        connection.execute("set async_threads = 1")


def _set_time_zone(connection: duckdb.DuckDBPyConnection, tz: str) -> None:
    import duckdb

    try:
        connection.execute(f"set TimeZone = {quoted(tz)}")
    except duckdb.Error as error:
        known = [row[0] for row in connection.execute("select name from pg_timezone_names()").fetchall()]
        raise LedgerError(f"unknown time zone {tz!r}{nearest(tz, known)}") from error


def _set_variables(
    connection: duckdb.DuckDBPyConnection,
    root: Path,
    session_id: str | None,
    allow_damage: bool,
    columns: Sequence[Column],
) -> None:
    connection.execute("set variable ledger_path = ?", [str(root)])
    connection.execute("set variable ledger_fields = ?", [fields_of_a_line(columns)])
    connection.execute("set variable ledger_schema_version = ?", [SCHEMA_VERSION])
    if allow_damage:
        connection.execute("set variable ledger_allow_damage = true")
    if session_id is None:
        return
    connection.execute("set variable ledger_session = ?", [session_id])
    if held := batches_of_session(root, session_id):
        connection.execute("set variable ledger_batches = ?::bigint[]", [held.batches])
        connection.execute("set variable ledger_indexed_batch = ?", [held.indexed_batch])
        connection.execute("set variable ledger_indexed_sha256 = ?", [held.indexed_sha256])


def _take_snapshot(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    import duckdb

    for tries_left in reversed(range(_SNAPSHOT_TRIES)):
        try:
            connection.execute(sql_file("snapshot"))
            return
        except duckdb.IOException as error:
            if not tries_left:
                raise LedgerError(f"{root} cannot be read: {first_words(error)}") from error
        except duckdb.InvalidInputException as error:
            reason = f"{root}/{first_words(error)}"
            if reason.endswith(": update it"):  # as the snapshot words it; nothing is damaged
                raise LedgerError(reason) from error
            raise DamagedLedger(f"{reason}; restore it") from error


def _check_segments(connection: duckdb.DuckDBPyConnection, root: Path, allow_damage: bool) -> None:
    """Hold the manifest's segments against the files: each must be there, in its size.

    To read around damage its content must be what was sealed, too, which takes reading all of it.
    """
    listed = connection.execute(
        "select file, size_bytes, sha256 from ledger_manifest order by batch"
    ).fetchall()
    missing = {
        str(root / file)
        for file, size, sha256 in listed
        if _size_of(root / file) != size or (allow_damage and not _is_as_sealed(root / file, sha256))
    }
    if not missing:
        return
    if not allow_damage:
        raise DamagedLedger(
            f"{min(missing)} is missing or not of the size in manifest.jsonl ({len(missing)} of"
            f" {len(listed)} segments are so); restore it"
        )
    sound = [segment for segment in _segments_of(connection) if segment not in missing]
    connection.execute("set variable ledger_segments = ?", [sound or [str(root / NO_SEGMENT)]])


def _check_manifest_end(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    """One segment beyond the manifest is a sealer's at work; one that state.db knows was listed once.

    A line is written before state.db is told of it, so the lines are counted after state.db was asked.
    """
    ((listed, seen),) = connection.execute(
        "select count(*), getvariable('ledger_segments_seen') from ledger_manifest"
    ).fetchall()
    if seen <= listed:
        return
    indexed = indexed_batch(root) or 0
    manifest = root / "manifest.jsonl"
    lines = manifest.read_bytes().count(b"\n") if manifest.exists() else 0
    if indexed > lines:
        raise DamagedLedger(
            f"{manifest} has lost its end: {seen} segments stand in events, and only {lines} are listed;"
            " bughive-costs seal lists them again"
        )


def _size_of(path: Path) -> int | None:
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _segments_of(connection: duckdb.DuckDBPyConnection) -> list[str]:
    ((segments,),) = connection.execute("select getvariable('ledger_segments')").fetchall()
    return list(segments)


def _make_views(connection: duckdb.DuckDBPyConnection, root: Path, views: Sequence[str]) -> None:
    import duckdb

    try:
        holds, is_of_one_session = _what_it_holds(connection)
        for statement in statements(views, holds, stored=is_of_one_session):
            connection.execute(statement)
    except duckdb.Error as error:  # which may be for want of memory, too
        if damage := altered_segment(root, error):
            raise damage from error
        if isinstance(error, duckdb.IOException):
            raise DamagedLedger(f"{root} cannot be read: {first_words(error)}") from error
        raise


def _what_it_holds(connection: duckdb.DuckDBPyConnection) -> tuple[Holds, bool]:
    """What a snapshot holds, and whether that is of one session alone."""
    ((older, events, every_request_is_asked, is_of_one_session),) = connection.execute(
        "select getvariable('ledger_older_segments'), coalesce(sum(rows), 0),"
        " getvariable('ledger_asks_every_request')::boolean, getvariable('ledger_session') is not null"
        " from ledger_manifest"
    ).fetchall()
    are_older = {path in older for path in _segments_of(connection) if not path.endswith(NO_SEGMENT)}
    holds = Holds(
        new_segments=False in are_older,
        segments_of_older_schemas=True in are_older,
        many_events=events >= _MANY_EVENTS and not is_of_one_session,
        every_request_is_asked=every_request_is_asked,
    )
    return holds, is_of_one_session


@contextlib.contextmanager
def told(path: str | Path) -> Iterator[None]:
    """What DuckDB raises in the block, as where it cannot open a segment, becomes a LedgerError.

    DamagedLedger where a segment is not what was sealed. An interrupt stays one.
    """
    import duckdb

    try:
        yield
    except duckdb.InterruptException:
        raise
    except duckdb.Error as error:
        raise altered_segment(path, error) or LedgerError(
            f"{path} cannot be read: {first_words(error)}"
        ) from error


def altered_segment(path: str | Path, error: BaseException | None) -> DamagedLedger | None:
    """The first segment that is not what was sealed, where DuckDB's error may come of that; else None.

    It takes reading all of them, so nothing is asked where no damage would raise such an error.
    """
    import duckdb

    from ledger.manifest import read_manifest

    of_what_is_read = (duckdb.IOException, duckdb.InvalidInputException, duckdb.InternalException)
    if not (isinstance(error, of_what_is_read) or type(error) is duckdb.Error):
        return None
    root = existing_ledger(path)
    for batch in read_manifest(root)[0]:
        if not _is_as_sealed(root / batch.file, batch.sha256):
            return DamagedLedger(
                f"{root / batch.file} is not what was sealed as batch {batch.batch}; restore it"
            )
    return None


def _is_as_sealed(segment: Path, sha256: str) -> bool:
    try:
        return hashlib.sha256(read_private(segment)).hexdigest() == sha256
    except (OSError, LedgerError):
        return False


def first_words(error: Exception) -> str:
    """DuckDB's message as one line: without its kind and the quoted SQL, with what was perhaps meant.

    For a table that is not there DuckDB would name one of its own.
    """
    first, *more = str(error).strip().splitlines()
    first = re.sub(r"^[A-Z][A-Za-z ]* Error: ", "", first).strip()
    if unknown := re.fullmatch(r"Table with name (.+) does not exist!", first):
        return f"there is no view {unknown[1]}{nearest(unknown[1], VIEWS) or '; see bughive-costs schema'}"
    if lacking := re.fullmatch(r"Values were not provided for the following parameters: (\w+)\b.*", first):
        return f"{first}; give each one, such as -p {lacking[1]}=text"
    hints = [line.strip() for line in more if line.startswith(("Did you mean", "Candidate bindings"))]
    return " ".join([first, *hints])


def _described(statements: Sequence[duckdb.Statement]) -> str:
    if len(statements) == 1:
        return f"a statement of kind {statements[0].type.name}"
    return f"{len(statements)} statements" if statements else "nothing"
