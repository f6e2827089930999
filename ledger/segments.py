"""Segments: immutable Parquet files of events, whole and durable before they have their name.

The footer of each says what it covers and holds the hash of the one before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger.errors import DamagedLedger
from ledger.events import plain_text
from ledger.files import make_private_folder, open_private, read_private, sync_data, sync_folder, write_all
from ledger.lines import refuse_newer
from ledger.manifest import Batch, batch_of
from ledger.reader import first_words
from ledger.relations import json_struct, quoted
from ledger.schema import COLUMNS, arrow_schema

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_FOOTER_KEY = b"bughive"
_LINES_AT_ONCE = 8192  # DuckDB reads such pieces in parallel
_ENCODINGS = {  # where hardly a value comes twice; smaller by a fifth in all, and faster to read
    **dict.fromkeys(("seq", "occurred_at", "started_at"), "DELTA_BINARY_PACKED"),
    **dict.fromkeys(
        ("list_cost_usd", "billed_cost_usd", "upstream_cost_usd", "reserved_usd"), "DELTA_BINARY_PACKED"
    ),
    **dict.fromkeys(("latency_ms", "first_token_ms"), "BYTE_STREAM_SPLIT"),
    **dict.fromkeys(("request_id", "attempt_id"), "DELTA_BYTE_ARRAY"),
}
_WITH_DICTIONARY = [
    path
    for column in COLUMNS
    if column.name not in _ENCODINGS
    for path in (("tags.key_value.key", "tags.key_value.value") if column.kind == "tags" else (column.name,))
]

_ANSWERS, _BEGINNINGS, _ENDS = (
    ("attempt_succeeded",),
    ("request_received", "attempt_started"),
    ("request_completed",),
)

EventRow = Mapping[str, Any]


def batch_of_segment(ledger_path: Path, path: Path) -> Batch:
    """What a segment's footer says of it, with its own size and hash."""
    import pyarrow.parquet as pq

    data = read_private(path)
    with _told(path):
        footer = (pq.read_metadata(path).metadata or {}).get(_FOOTER_KEY)
    if footer is None:
        raise DamagedLedger(f"{path} is not a segment of this ledger: it has no footer of ours")
    told = json.loads(footer)
    refuse_newer(path, told["schema_version"])
    seen = {
        "file": str(path.relative_to(ledger_path)),
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return batch_of({**told, **seen})


def read_segment(path: Path, columns: Sequence[str]) -> pa.Table:
    """Columns of a segment; those that it is too old to have are left out.

    DamagedLedger where that is no Parquet, or has none of them.
    """
    import pyarrow.parquet as pq

    with _told(path), pq.ParquetFile(path) as segment:
        there = set(segment.schema_arrow.names).intersection(columns)
        if not there:
            raise DamagedLedger(f"{path} has no column {columns[0]}; see bughive-costs verify")
        return segment.read([name for name in columns if name in there])


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's; what Arrow cannot make out has no number
        why = " ".join(str(error).split())
        raise DamagedLedger(f"{path} cannot be read: {why}; see bughive-costs verify") from error


def write_segment(ledger_path: Path, date: str, table: pa.Table, footer: Mapping[str, Any]) -> Batch:
    """Write one batch as a file that is whole and durable before it has its name."""
    folder = ledger_path / "events" / f"date={date}"
    make_private_folder(folder)
    path = folder / f"{footer['ledger_id']}-{footer['batch']:08d}.parquet"
    data = parquet_bytes(table, footer)
    temporary = path.with_suffix(".tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    fd = open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        write_all(fd, data)
        sync_data(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    sync_folder(folder)
    sync_folder(folder.parent)
    return Batch(
        **footer,
        file=str(path.relative_to(ledger_path)),
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def reading_lines() -> duckdb.DuckDBPyConnection:
    """A DuckDB of one thread to read lines with: it works beside writers, who come first."""
    import duckdb

    return duckdb.connect(config={"threads": 1})


def table_of_lines(lines: Sequence[bytes]) -> pa.Table:
    """Journals' whole lines as an Arrow table of the ledger's schema, in their order.

    They are read as reports read them, so that sealing changes no figure. Raises DamagedLedger for
    a line that says more than its columns can hold: nothing is dropped in silence.
    """
    import duckdb
    import pyarrow as pa

    chunks = [
        pa.array(lines[first : first + _LINES_AT_ONCE], pa.string())
        for first in range(0, len(lines), _LINES_AT_ONCE)
    ]
    with reading_lines() as connection:
        connection.register("journal_lines", pa.table({"line": pa.chunked_array(chunks, pa.string())}))
        try:
            told = connection.sql(
                "select len(json_keys(line)) - 1 as facts,"
                f" from_json(line, {quoted(json_struct(COLUMNS))}) as event from journal_lines"
            ).to_arrow_table()
        except duckdb.Error as error:
            reason = plain_text(first_words(error), 120)
            raise DamagedLedger(f"a line that was to be sealed is no event: {reason}") from error
    table = pa.Table.from_struct_array(told["event"])  # unnest in SQL would plan each column by itself
    facts: list[int] = told["facts"].to_pylist()
    if sum(facts) != sum(len(column) - column.null_count for column in table.columns):
        raise DamagedLedger(_what_was_dropped(facts, table))
    return table.cast(arrow_schema())


def _what_was_dropped(facts: Sequence[int], table: pa.Table) -> str:
    kept = ([name for name, value in row.items() if value is not None] for row in table.to_pylist())
    for row, (told, names) in enumerate(zip(facts, kept, strict=True)):
        if told != len(names):
            journal_id, seq = table["journal_id"][row].as_py(), table["seq"][row].as_py()
            return (
                f"event {seq} of journal {journal_id} says {told} things, and the columns hold {len(names)}"
                " of them; nothing was sealed, see what wrote that line"
            )
    return "some events say more and others less than the columns hold; nothing was sealed"


def parquet_bytes(table: pa.Table, footer: Mapping[str, Any] | None) -> bytes:
    """A table as a Parquet file, with what it says of itself in the footer.

    Its rows are in three groups, each in the order of the table: answers, the one kind of event with many
    columns; what went otherwise than hoped, few and soon read; and what else is told of every request, the
    ends after the beginnings, so that who wants the ones can pass over the others.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if footer is not None:
        table = table.replace_schema_metadata({_FOOTER_KEY: json.dumps(footer).encode()})
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        use_dictionary=_WITH_DICTIONARY,
        column_encoding=_ENCODINGS,
        store_decimal_as_integer=True,  # else each is turned around byte by byte
    ) as writer:
        for rows in _groups(table):
            if rows.num_rows:
                writer.write_table(rows)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _groups(table: pa.Table) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if "event_type" not in table.column_names:
        return iter([table])
    answers, beginnings, ends = (
        pc.is_in(table["event_type"], pa.array(kinds)) for kinds in (_ANSWERS, _BEGINNINGS, _ENDS)
    )
    others = pc.invert(pc.or_(pc.or_(answers, beginnings), ends))
    told_of_all = pa.concat_tables([table.filter(beginnings), table.filter(ends)])
    return iter([table.filter(answers), table.filter(others), told_of_all])


def sealed_events(ledger_path: Path, batches: Iterable[Batch], journal_id: str) -> list[EventRow]:
    """A journal's sealed events in order, with Python's values; absent fields left out."""
    import pyarrow.parquet as pq

    rows: list[EventRow] = []
    of_journal = [("journal_id", "==", journal_id)]
    for batch in batches:
        if journal_id in batch.covers:
            path = ledger_path / batch.file
            with _told(path):
                table = pq.read_table(path, filters=of_journal, partitioning=None)
            rows.extend(table.to_pylist(maps_as_pydicts="strict"))
    rows.sort(key=lambda row: int(row["seq"]))
    return [{name: value for name, value in row.items() if value is not None} for row in rows]
