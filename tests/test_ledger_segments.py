"""A segment holds what the journals' lines said, to the last digit, for every reader of Parquet."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from ledger import segments
from ledger.errors import DamagedLedger
from ledger.events import AttemptFailed, AttemptSettled, event_of
from ledger.lines import sealed_line, stamped_line
from ledger.schema import arrow_schema
from ledger.segments import parquet_bytes, table_of_lines

JOURNAL = "0" * 32
NAMES = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=30)
TEXTS = st.text(st.characters(exclude_categories=["C"]), max_size=30)
ANYTHING = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.just('{"a":"\\ud800\\u0000"}')
MOMENTS = st.integers(0, 7 * 10**15).map(
    lambda us: datetime.fromtimestamp(0, UTC) + timedelta(microseconds=us)
)
USD = st.decimals(0, 999_999, places=12)
DELTAS = st.decimals(-999_999, 999_999, places=12)
SECONDS = st.floats(0, 1e12)
COUNTS = st.integers(0, 2**62)
IDENTITY = ("request_id", "attempt_id", "task", "requested_tier", "tier", "provider", "model")
NAMED = dict.fromkeys(IDENTITY, NAMES)
EVENTS: st.SearchStrategy[BaseModel] = st.one_of(
    st.builds(
        AttemptFailed,
        **NAMED,
        event_type=st.just("attempt_failed"),
        session_id=st.none() | NAMES,
        tags=st.none() | st.dictionaries(NAMES, TEXTS, max_size=5),
        attempt_number=st.integers(1, 10_000),
        started_at=MOMENTS,
        streamed=st.booleans(),
        latency_ms=st.none() | SECONDS,
        wait_s=st.none() | SECONDS,
        input_tokens=st.none() | COUNTS,
        usage_json=st.none() | ANYTHING,
        list_cost_usd=st.none() | USD,
        error_message=TEXTS,
        error_type=st.just("overloaded"),
        billing=st.just("unknown"),
        billing_rule=NAMES,
    ),
    st.builds(
        AttemptSettled,
        **NAMED,
        event_type=st.just("attempt_settled"),
        attempt_number=st.integers(1, 10_000),
        started_at=MOMENTS,
        list_cost_usd=DELTAS,
        billing=st.just("billed"),
        billing_rule=NAMES,
    ),
)


@pytest.fixture(autouse=True, scope="module")
def _one_duckdb() -> Iterator[None]:
    """To start one takes longer than to read a few lines: they share it, as crash points do (world.py)."""
    with pytest.MonkeyPatch.context() as patch, segments.reading_lines() as one:
        patch.setattr(segments, "reading_lines", one.cursor)
        yield


def lines_of(events: list[tuple[datetime, BaseModel]]) -> list[bytes]:
    return [
        stamped_line(JOURNAL, seq, at, event).rstrip(b"\n") for seq, (at, event) in enumerate(events, start=1)
    ]


def forged(**facts: Any) -> bytes:
    stamp = {
        "journal_id": JOURNAL,
        "seq": 7,
        "schema_version": 1,
        "occurred_at": "2026-11-22T10:00:00.000000Z",
    }
    record = {**stamp, "event_type": "journal_closed", **facts}
    return sealed_line(json.dumps(record, separators=(",", ":")).encode()[:-1]).rstrip(b"\n")


def bits(event: BaseModel) -> list[bytes]:
    """The doubles of an event as they are in memory: -0.0 is not 0.0."""
    return [struct.pack("d", value) for value in vars(event).values() if isinstance(value, float)]


@given(st.lists(st.tuples(MOMENTS, EVENTS), min_size=1, max_size=5))
def test_what_a_line_says_is_what_its_row_says(events: list[tuple[datetime, BaseModel]]) -> None:
    table = table_of_lines(lines_of(events))

    assert table.schema.equals(arrow_schema())
    assert table["seq"].to_pylist() == list(range(1, len(events) + 1))
    assert table["occurred_at"].to_pylist() == [at for at, _ in events]
    for row, (_, event) in zip(table.to_pylist(maps_as_pydicts="strict"), events, strict=True):
        held = event_of(row)
        assert held == event
        assert bits(held) == bits(event)
        assert list((row["tags"] or {}).items()) == list((getattr(event, "tags", None) or {}).items())


@given(st.lists(st.tuples(MOMENTS, EVENTS), min_size=1, max_size=5))
def test_every_reader_of_parquet_gets_the_same_rows(events: list[tuple[datetime, BaseModel]]) -> None:
    table = table_of_lines(lines_of(events))
    content = parquet_bytes(table, None)

    assert pq.read_table(pa.BufferReader(content)).equals(table)
    expected = pl.from_arrow(table)
    assert isinstance(expected, pl.DataFrame)
    assert pl.read_parquet(content).equals(expected)


def test_duckdb_gets_the_same_rows(tmp_path: Path) -> None:
    event = AttemptSettled(
        **dict.fromkeys(NAMED, "n"),  # type: ignore[arg-type]
        attempt_number=1,
        started_at=datetime(2026, 11, 22, tzinfo=UTC),
        list_cost_usd=Decimal("-0.000000000001"),
        billing="billed",
        billing_rule="n",
    )
    many = [(datetime(2026, 11, 22, microsecond=at, tzinfo=UTC), event) for at in range(20_000)]
    table = table_of_lines(lines_of(many))  # more than are handed over at once: they stay in order
    file = tmp_path / "segment.parquet"
    file.write_bytes(parquet_bytes(table, None))

    assert table["seq"].to_pylist() == list(range(1, 20_001))
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        read = connection.read_parquet(str(file)).to_arrow_table()
    assert read.cast(arrow_schema()).equals(table)


@pytest.mark.parametrize(
    "facts",
    [
        {"colour": "red"},
        {"pid": "many"},
        {"list_cost_usd": "1000000"},
        {"occurred_at": "noon"},
        {"host": None},
    ],
)
def test_what_no_column_can_hold_is_named_and_not_sealed(facts: dict[str, Any]) -> None:
    with pytest.raises(DamagedLedger, match=rf"^event 7 of journal {JOURNAL} says \d+ things, .* hold \d+"):
        table_of_lines([forged(), forged(**facts)])


def test_what_is_no_json_is_not_sealed() -> None:
    with pytest.raises(DamagedLedger, match="a line that was to be sealed is no event: Malformed JSON"):
        table_of_lines([forged(), sealed_line(b'{"journal_id":"')])


def test_no_lines_are_an_empty_table() -> None:
    assert table_of_lines([]).equals(arrow_schema().empty_table())
