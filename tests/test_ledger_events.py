"""What an event may hold, and that every place that describes events describes the same."""

from __future__ import annotations

import typing
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from events_by_hand import received, started
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AwareDatetime, BaseModel, ValidationError

from ledger import events, layout, schema
from ledger.events import EVENT_CLASSES, STAMP_FIELDS, event_of, plain_text
from ledger.lines import read_line, stamped_line
from ledger.money import usd
from ledger.segments import table_of_lines

KIND_OF_TYPE = {
    str: "text",
    int: "count",
    float: "ratio",
    bool: "flag",
    Decimal: "usd",
    AwareDatetime: "moment",
    dict: "tags",
}


def _kind(annotation: Any) -> str:
    """The column kind of a field's type: None and constraints looked through."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _kind(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return "text"
    if origin is dict:
        return "tags"
    if origin is not None:
        return _kind(next(arg for arg in typing.get_args(annotation) if arg is not type(None)))
    return KIND_OF_TYPE[annotation]


@pytest.mark.parametrize("model", EVENT_CLASSES, ids=lambda model: model.__name__)
def test_every_field_of_every_event_has_a_column_of_its_kind(model: type[BaseModel]) -> None:
    columns = {column.name: column.kind for column in schema.COLUMNS}
    hints = typing.get_type_hints(model, include_extras=True)
    for name in model.model_fields:
        assert columns[name] == _kind(hints[name]), name


def test_every_column_belongs_to_some_event_or_to_the_stamp() -> None:
    fields = {name for model in EVENT_CLASSES for name in model.model_fields}
    assert {column.name for column in schema.COLUMNS} == fields | set(STAMP_FIELDS)


def test_the_event_types_are_those_of_the_design() -> None:
    assert {model.model_fields["event_type"].default for model in EVENT_CLASSES} == {
        *("journal_opened", "request_received", "attempt_started", "attempt_succeeded", "attempt_failed"),
        *("attempt_cancelled", "attempt_abandoned", "attempt_settled", "fallback_engaged"),
        *("circuit_opened", "circuit_closed", "request_completed", "request_failed", "request_denied"),
        *("budget_set", "budget_warned", "ceiling_broken", "journal_closed"),
    }


def test_the_empty_segment_that_ships_has_the_full_schema() -> None:
    shipped = pq.read_table(pa.BufferReader(layout.EMPTY_SEGMENT.read_bytes()))
    assert shipped.num_rows == 0
    assert shipped.schema.equals(schema.arrow_schema())


def test_an_event_is_never_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        received().task = "other"


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="extra"):
        received(prompt="hello")


@pytest.mark.parametrize(
    "fields",
    [
        {"session_id": ""},
        {"session_id": "x" * 257},
        {"session_id": "a\x00b"},
        {"session_id": "a\nb"},
        {"session_id": "\ud800"},
        {"max_tokens": -1},
        {"max_tokens": 2**63},
        {"prompt_hash": "xyz"},
        {"limit_usd": Decimal("NaN")},
        {"limit_usd": Decimal("1000000")},
        {"limit_usd": Decimal("0.0000000000001")},
        {"tags": {f"k{n}": "v" for n in range(33)}},
    ],
)
def test_what_parquet_could_not_hold_is_refused_before_it_is_written(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        received(**fields)


@given(
    session_id=st.none() | st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=256),
    tags=st.none()
    | st.dictionaries(
        st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20),
        st.text(st.characters(exclude_categories=["C"]), max_size=20),
        min_size=1,
        max_size=5,
    ),
    reserved=st.none() | st.decimals(0, 999_999, places=12),
)
def test_what_goes_into_a_line_comes_back_and_fits_the_schema(
    session_id: str | None, tags: dict[str, str] | None, reserved: Decimal | None
) -> None:
    event = started(session_id=session_id, tags=tags, reserved_usd=reserved)
    line = stamped_line("j", 1, datetime.now(UTC), event).rstrip(b"\n")
    record = read_line(line)
    assert record is not None
    assert event_of(record) == event
    row = table_of_lines([line]).to_pylist(maps_as_pydicts="strict")[0]
    assert event_of(row) == event


@pytest.mark.parametrize(
    ("amount", "held"),
    [
        ("0.1234567890125", "0.123456789012"),  # half-even: down to the even digit
        ("0.1234567890135", "0.123456789014"),
        ("4e-05", "0.00004"),
        ("999999.999999999999", "999999.999999999999"),
        ("999999.9999999999999", None),
        ("1e6", None),
        ("NaN", None),
        ("Infinity", None),
        ("twelve", None),
        (3, "3"),
    ],
)
def test_an_amount_is_held_to_twelve_places_or_not_known(amount: str | int, held: str | None) -> None:
    assert usd(amount) == (None if held is None else Decimal(held))


def test_text_from_outside_loses_what_an_event_cannot_hold() -> None:
    assert plain_text("a\x00b\nc\ud800" + "x" * 600, limit=10) == "a b c xxxx"[:10]
    assert events.plain_text("日本語") == "日本語"
