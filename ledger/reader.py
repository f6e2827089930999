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
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ledger.errors import DamagedLedger, LedgerError, nearest
from ledger.files import refuse_symlinks
from ledger.schema import COLUMNS, NO_SEGMENT, SCHEMA_VERSION, SQL_TYPES, TIER_ORDER, Column, arrow_schema

if TYPE_CHECKING:
    import apsw
    import duckdb
    import polars as pl

_T = TypeVar("_T")

VIEWS = (  # each reads only those before it
    "events",
    "attempts",
    "requests",
    "sessions",
    "tier_breakdown",
    "model_performance",
    "daily_spend",
    "budget_status",
    "in_doubt",
    "fallbacks",
)
_TABLES = ("ledger_settled", "ledger_open")  # few rows, read anew by all that reads attempts
_LOWER = (
    "events",
    *_TABLES,
    "ledger_attempts",
    "ledger_bounded",
    "ledger_requests",
    "ledger_failed",
    "attempts",
    "requests",
)  # others read them
RELATIONS = (*_LOWER, *(view for view in VIEWS if view not in _LOWER))  # each reads only those before it
_MANY_EVENTS = 1_000_000  # from there on it pays to look which attempts are settled
_OF_MANY_EVENTS = "\n    union all by name  -- of many events\n"
_SEE_WHAT_IS_SETTLED = """\
set variable ledger_answers_are_settled = (
    select count(*) > (
        select count(distinct attempt_id)
        from events
        where event_type between 'attempt_abandoned' and 'attempt_failed'  -- all outcomes but answers
            and attempt_id in (select attempt_id from ledger_settled)
    )
    from ledger_settled
);
"""
_IDENTITY = ("journal_id", "seq", "schema_version")  # with which each line begins
_CHECK = Column("check", "text", "of the line")
_FOLDER = Path(__file__).with_name("views")
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
        _set_variables(connection, root, session_id, allow_damage, _columns_for(tuple(views)))
        _take_snapshot(connection, root)
        _check_segments(connection, root, allow_damage)
        if not allow_damage:
            _check_manifest_end(connection, root)
        _make_views(connection, root, views, stored=session_id is not None)
    except BaseException:
        connection.close()
        raise
    return connection


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
            f"set variable ledger_fields = {quoted(_fields(COLUMNS))};",
            f"set variable ledger_schema_version = {SCHEMA_VERSION};",
            "",
            _sql_file("snapshot"),
            *_view_statements(VIEWS, {}),
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

    def ask(state: apsw.Connection) -> list[str]:
        after_all = beginning + chr(0x10FFFF)
        indexed = state.execute(
            "select distinct session_id from session_batches where session_id between ? and ?"
            " order by session_id limit ?",
            (beginning, after_all, most),
        )
        return [str(name) for (name,) in indexed]

    return sorted({name for (name,) in found} | set(_asked_of_state(existing_ledger(path), ask) or []))[:most]


def tier_rank(tier: str | None) -> tuple[int, str]:
    """A key that sorts tiers in their order; unknown ones after them by name, None last."""
    known = TIER_ORDER.index(tier) if tier in TIER_ORDER else len(TIER_ORDER)
    return (known if tier is not None else len(TIER_ORDER) + 1, tier or "")


def view_sql(name: str) -> str:
    """The text of a view's file, its header included."""
    return _sql_file(name)


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
    connection.execute("set variable ledger_fields = ?", [_fields(columns)])
    connection.execute("set variable ledger_schema_version = ?", [SCHEMA_VERSION])
    if allow_damage:
        connection.execute("set variable ledger_allow_damage = true")
    if session_id is None:
        return
    connection.execute("set variable ledger_session = ?", [session_id])
    if held := _batches_of_session(root, session_id):
        connection.execute("set variable ledger_batches = ?::bigint[]", [held.batches])
        connection.execute("set variable ledger_indexed_batch = ?", [held.indexed_batch])
        connection.execute("set variable ledger_indexed_sha256 = ?", [held.indexed_sha256])


def _take_snapshot(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    import duckdb

    for tries_left in reversed(range(_SNAPSHOT_TRIES)):
        try:
            connection.execute(_sql_file("snapshot"))
            return
        except duckdb.IOException as error:
            if not tries_left:
                raise LedgerError(f"{root} cannot be read: {first_words(error)}") from error
        except duckdb.InvalidInputException as error:
            reason = f"{root}/{first_words(error)}"
            if reason.endswith(": update it"):  # as the snapshot words it; nothing is damaged
                raise LedgerError(reason) from error
            raise DamagedLedger(f"{reason}; restore it, or read around it with --allow-damage") from error


def _check_segments(connection: duckdb.DuckDBPyConnection, root: Path, allow_damage: bool) -> None:
    """Hold the manifest's segments against the files: each must be there, in its size."""
    listed = connection.execute("select file, size_bytes from ledger_manifest order by batch").fetchall()
    missing = {str(root / file) for file, size in listed if _size_of(root / file) != size}
    if not missing:
        return
    if not allow_damage:
        raise DamagedLedger(
            f"{min(missing)} is missing or not of the size in manifest.jsonl ({len(missing)} of"
            f" {len(listed)} segments are so); restore it, or read around it with --allow-damage"
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
    indexed_batch = _asked_of_state(root, _indexed_batch) or 0
    manifest = root / "manifest.jsonl"
    lines = manifest.read_bytes().count(b"\n") if manifest.exists() else 0
    if indexed_batch > lines:
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


def _make_views(
    connection: duckdb.DuckDBPyConnection, root: Path, views: Sequence[str], stored: bool
) -> None:
    import duckdb

    try:
        there = {"events": _events_there(connection), "ledger_attempts": _attempts_there(connection)}
        for statement in _view_statements(views, there, stored):
            connection.execute(statement)
    except duckdb.IOException as error:
        raise DamagedLedger(f"{root} cannot be read: {first_words(error)}") from error


def _events_there(connection: duckdb.DuckDBPyConnection) -> str:
    """The text of `events` without segments of a kind that there are none of: each part costs time."""
    ((older,),) = connection.execute("select getvariable('ledger_older_segments')").fetchall()
    segments = [path for path in _segments_of(connection) if not path.endswith(NO_SEGMENT)]
    are_older = {path in older for path in segments}
    union = "\n    union all by name\n"
    recorded, shown = _sql_file("events").split("\n)\n")
    journals, of_newest_schema, of_older = recorded.split(union)
    parts = [journals, *[of_newest_schema] * (False in are_older), *[of_older] * (True in are_older)]
    return f"{union.join(parts)}\n)\n{shown}"


def _attempts_there(connection: duckdb.DuckDBPyConnection) -> str:
    """The text of `ledger_attempts` without its part of many events, where there are few."""
    whole = _sql_file("ledger_attempts")
    ((events,),) = connection.execute("select coalesce(sum(rows), 0) from ledger_manifest").fetchall()
    if events >= _MANY_EVENTS:
        return whole
    joined, alone = whole.split(_OF_MANY_EVENTS)
    return joined + alone[alone.index("\n),\n") :]


def _view_statements(views: Sequence[str], texts: Mapping[str, str], stored: bool = False) -> list[str]:
    """What makes the views, some with other texts than their files have.

    `stored`: the first as tables, which is faster where there are few rows.

    DuckDB works out all that a view reads when it is made, down to the segments, and so again for each
    view above it. So what many read is an empty table for a while, once the tables of rows are there,
    and its view is made again at the end, the lowest last of all.
    """
    columns = _columns_for(tuple(views))
    wanted = _with_what_they_read(views)
    are_tables = _LOWER if stored else _TABLES
    made = {
        name: _view_statement(name, columns, texts, "table" if name in are_tables else "view")
        for name in wanted
    }
    low = [] if stored else [name for name in _read_by_many(wanted) if name not in _TABLES]
    has_part_for_answers = _OF_MANY_EVENTS in made.get("ledger_attempts", "") and not stored
    first = [name for name in wanted if name in ("events", *_TABLES)]
    return [
        *(made[name] for name in first),
        *[_SEE_WHAT_IS_SETTLED] * has_part_for_answers,
        *(_stand_in(name, texts) for name in low if name in first),
        *(_stand_in(name, texts) if name in low else made[name] for name in wanted if name not in first),
        *(made[name] for name in reversed(low)),
        *(f"drop table {_columns_of(name)};\n" for name in low),
    ]


def _with_what_they_read(views: Iterable[str]) -> list[str]:
    """Views and all that they read; each after what it reads."""
    wanted = set(views)
    for name in reversed(RELATIONS):
        if name in wanted:
            wanted.update(_read_by(name))
    return [name for name in RELATIONS if name in wanted]


def _read_by(name: str) -> set[str]:
    """What a view reads, by its header."""
    reads = re.search(r"  Reads: (.+)\.$", _sql_file(name), re.MULTILINE)
    return set(re.findall(r"\w+", reads[1])).intersection(RELATIONS) if reads else set()


def _read_by_many(names: Sequence[str]) -> list[str]:
    """Those that more than two of the others read."""
    readers = Counter(read for name in names for read in _read_by(name))
    return [name for name in names if readers[name] > 2]


def _stand_in(view: str, texts: Mapping[str, str]) -> str:
    """An empty table with a view's columns, under its name."""
    rows = "from ledger_journal_events" if view == "events" else _text(view, texts)
    return (
        f"create or replace temp table {_columns_of(view)} as\n{rows}\nwith no data;\n"
        f"create or replace temp view {view} as from {_columns_of(view)};\n"
    )


def _columns_of(view: str) -> str:
    return f"ledger_columns_of_{view}"


# which segments hold a session


class _Held(NamedTuple):
    """The batches up to `indexed_batch` that hold a session; of later ones it is not known.

    `indexed_sha256` is that batch's: with another one in the manifest, this says nothing of it.
    """

    batches: list[int]
    indexed_batch: int
    indexed_sha256: str


def _batches_of_session(root: Path, session_id: str) -> _Held | None:
    """Which batches to open; None where state.db does not say: then all are."""

    def ask(connection: apsw.Connection) -> _Held | None:
        indexed_batch, indexed_sha256 = _indexed_batch(connection), _meta(connection, "indexed_sha256")
        if indexed_batch is None or indexed_sha256 is None:
            return None
        found = connection.execute(
            "select batch from session_batches where session_id = ? order by batch", (session_id,)
        ).fetchall()
        return _Held([int(str(batch)) for (batch,) in found], indexed_batch, indexed_sha256)

    return _asked_of_state(root, ask)


def _indexed_batch(connection: apsw.Connection) -> int | None:
    indexed = _meta(connection, "indexed_batch")
    return None if indexed is None else int(indexed)


def _meta(connection: apsw.Connection, key: str) -> str | None:
    found = connection.execute("select value from meta where key = ?", (key,)).get
    return None if found is None else str(found)


def _asked_of_state(root: Path, ask: Callable[[apsw.Connection], _T | None]) -> _T | None:
    """What state.db says; None where it cannot be read as it is."""
    database = root / "state.db"
    if not database.exists():
        return None
    try:
        import apsw

        with _read_only(database) as connection, connection:
            answer = ask(connection)
    except (apsw.Error, OSError, ValueError):
        return None
    return answer


@contextlib.contextmanager
def _read_only(database: Path) -> Iterator[apsw.Connection]:
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


# the files of views/


@cache
def _sql_file(name: str) -> str:
    return (_FOLDER / f"{name}.sql").read_text("utf-8")


def _text(name: str, texts: Mapping[str, str]) -> str:
    return (texts.get(name) or _sql_file(name)).rstrip()


def _view_statement(
    name: str, columns: Sequence[Column], texts: Mapping[str, str], kind: str = "view"
) -> str:
    rows = _text(name, texts)
    if name == "events" and columns != COLUMNS:  # what was not read of journals must not look like NULL
        rows = f"select {', '.join(column.name for column in columns)} from (\n{rows}\n)"
    return f"create or replace temp {kind} {name} as\n{rows};\n"


def _fields(columns: Iterable[Column]) -> str:
    """A journal's line: the columns of an event that are wanted, and what a line is told apart by."""
    wanted = {*_IDENTITY, *(column.name for column in columns)}
    return json_struct([*(column for column in COLUMNS if column.name in wanted), _CHECK])


@cache
def _columns_for(views: tuple[str, ...]) -> tuple[Column, ...]:
    """Those of an event that views name, and by which events are told apart; for `events` itself all."""
    if not views or "events" in views:
        return COLUMNS
    named = {"journal_id", "seq", "session_id"}
    for view in _with_what_they_read(views):
        named.update(re.findall(r"\w+", re.sub(r"(?m)^--.*$", "", _sql_file(view))))
    return tuple(column for column in COLUMNS if column.name in named)


def json_struct(columns: Iterable[Column]) -> str:
    """Columns as the JSON struct that DuckDB's from_json takes."""
    return json.dumps({column.name: SQL_TYPES[column.kind] for column in columns})


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


@contextlib.contextmanager
def told(path: str | Path) -> Iterator[None]:
    """What DuckDB raises in the block, as where it cannot open a segment, becomes a LedgerError."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise LedgerError(f"{path} cannot be read: {first_words(error)}") from error


def first_words(error: Exception) -> str:
    """DuckDB's message as one line: without its kind and the quoted SQL, with what was perhaps meant.

    For a table that is not there DuckDB would name one of its own.
    """
    first, *more = str(error).strip().splitlines()
    first = re.sub(r"^[A-Z][A-Za-z ]* Error: ", "", first).strip()
    if unknown := re.fullmatch(r"Table with name (.+) does not exist!", first):
        return f"there is no view {unknown[1]}{nearest(unknown[1], VIEWS) or '; see bughive-costs schema'}"
    hints = [line.strip() for line in more if line.startswith(("Did you mean", "Candidate bindings"))]
    return " ".join([first, *hints])


def _described(statements: Sequence[duckdb.Statement]) -> str:
    if len(statements) == 1:
        return f"a statement of kind {statements[0].type.name}"
    return f"{len(statements)} statements" if statements else "nothing"


def view_columns(name: str) -> list[tuple[str, str]]:
    """The columns of a view and what they mean, as its header says; none for `events`."""
    header = re.match(r"(?:--.*\n)+", view_sql(name))
    found = re.findall(r"^-- (\w+): (.+)$", header[0] if header else "", re.MULTILINE)
    return [(column, meaning) for column, meaning in found if column not in (name, "Grain")]
