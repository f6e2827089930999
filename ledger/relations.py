"""The views, and the relations below them: what each reads, and the SQL that makes them over a snapshot.

    views/*.sql ─▶ statements, in the order in which they are to be run

Each file of views/ holds the rows of one relation; its header says what it reads and what its columns mean.
Nothing is read here but these files.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ledger.schema import COLUMNS, SQL_TYPES, Column

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

_FOLDER = Path(__file__).with_name("views")
_IDENTITY = ("journal_id", "seq", "schema_version")  # with which each line begins
_CHECK = Column("check", "text", "of the line")
_UNION = "\n    union all by name\n"
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
_SEE_WHAT_IS_UNFINISHED = """\
set variable ledger_unfinished = (select coalesce(list(journal_id), []) from ({unfinished}
));
set variable ledger_unfinished_segments = (
    select coalesce(list(getvariable('ledger_path') || '/' || file), [])
    from ledger_manifest
    where list_has_any(map_keys(covers), getvariable('ledger_unfinished')::varchar[])
);
"""
_EVENTS_OF_UNFINISHED = """\
with events as (  -- of journals that are not closed, in the segments that have such: all that this reads
    select *
    from ledger_journal_events
    where list_contains(getvariable('ledger_unfinished')::varchar[], journal_id)
    union all by name
    select *
    from read_parquet(
        ledger_patterns_or_one(getvariable('ledger_unfinished_segments')),
        union_by_name = true,
        hive_partitioning = false
    )
    where
        len(getvariable('ledger_unfinished_segments')) > 0
        and list_contains(getvariable('ledger_unfinished')::varchar[], journal_id)
),
"""


class Holds(NamedTuple):
    """What a snapshot holds, as far as the SQL over it may be shorter or faster for that."""

    new_segments: bool = True
    segments_of_older_schemas: bool = True
    many_events: bool = False  # so many that it pays to look first at what is settled, and what is unfinished
    every_request_is_asked: bool = False  # whether it has ended, as the ends of journals are not seen


def view_columns(name: str) -> list[tuple[str, str]]:
    """The columns of a view and what they mean, as its header says; none for `events`."""
    header = re.match(r"(?:--.*\n)+", sql_file(name))
    found = re.findall(r"^-- (\w+): (.+)$", header[0] if header else "", re.MULTILINE)
    return [(column, meaning) for column, meaning in found if column not in (name, "Grain")]


@cache
def sql_file(name: str) -> str:
    """The text of a file of views/, its header included."""
    return (_FOLDER / f"{name}.sql").read_text("utf-8")


def fields_of_a_line(columns: Iterable[Column]) -> str:
    """The columns that are wanted of a journal's line, and what it is told apart by, as `json_struct`."""
    wanted = {*_IDENTITY, *(column.name for column in columns)}
    return json_struct([*(column for column in COLUMNS if column.name in wanted), _CHECK])


@cache
def columns_for(views: tuple[str, ...]) -> tuple[Column, ...]:
    """Those of an event that views name, and by which events are told apart; for `events` itself all."""
    if not views or "events" in views:
        return COLUMNS
    named = {"journal_id", "seq", "session_id"}
    for view in _with_what_they_read(views):
        named.update(re.findall(r"\w+", re.sub(r"(?m)^--.*$", "", sql_file(view))))
    return tuple(column for column in COLUMNS if column.name in named)


def json_struct(columns: Iterable[Column]) -> str:
    """Columns as the JSON struct that DuckDB's from_json takes."""
    return json.dumps({column.name: SQL_TYPES[column.kind] for column in columns})


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


# the statements


def statements(views: Sequence[str], holds: Holds | None = None, *, stored: bool = False) -> list[str]:
    """What makes views over a snapshot, with all that they read.

    `holds`: what that snapshot holds; without it the statements are right over any. `stored`: the first as
    tables, which is faster where there are few rows.

    DuckDB works out all that a view reads when it is made, down to the segments, and so again for each
    view above it. So what many read is an empty table for a while, once the tables of rows are there,
    and its view is made again at the end, the lowest last of all.
    """
    texts = {} if holds is None else _texts(holds)
    columns = columns_for(tuple(views))
    wanted = _with_what_they_read(views)
    are_tables = _LOWER if stored else _TABLES
    made = {
        name: _statement(name, columns, texts, "table" if name in are_tables else "view") for name in wanted
    }
    low = [] if stored else [name for name in _read_by_many(wanted) if name not in _TABLES]
    first = [name for name in wanted if name in ("events", *_TABLES)]
    looks = {} if holds is None else _looks(holds, wanted)
    return [
        *(text for name in first for text in (made[name], *looks.get(name, ()))),
        *(_stand_in(name, texts) for name in low if name in first),
        *(_stand_in(name, texts) if name in low else made[name] for name in wanted if name not in first),
        *(made[name] for name in reversed(low)),
        *(f"drop table {_columns_of(name)};\n" for name in low),
    ]


def _texts(holds: Holds) -> dict[str, str]:
    """Relations whose text is shorter or faster than their file's, for what a snapshot holds."""
    texts = {"events": _events(holds), "ledger_attempts": _attempts(holds)}
    if holds.many_events and not holds.every_request_is_asked:
        header, rows = sql_file("ledger_open").split("with ", 1)
        texts["ledger_open"] = header + _EVENTS_OF_UNFINISHED + rows
    return texts


def _events(holds: Holds) -> str:
    """`events` without segments of a kind that there are none of: each part costs time."""
    recorded, shown = sql_file("events").split("\n)\n")
    journals, of_newest_schema, of_older = recorded.split(_UNION)
    parts = [
        journals,
        *[of_newest_schema] * holds.new_segments,
        *[of_older] * holds.segments_of_older_schemas,
    ]
    return f"{_UNION.join(parts)}\n)\n{shown}"


def _attempts(holds: Holds) -> str:
    """`ledger_attempts` without its part of many events, where there are few."""
    whole = sql_file("ledger_attempts")
    if holds.many_events:
        return whole
    joined, alone = whole.split(_OF_MANY_EVENTS)
    return joined + alone[alone.index("\n),\n") :]


def _looks(holds: Holds, wanted: Sequence[str]) -> dict[str, list[str]]:
    """What is looked up first of many events, each after the relation that it is seen in."""
    if not holds.many_events:
        return {}
    unfinished = sql_file("ledger_open").partition("with unfinished as (")[2].partition("\n),\n")[0]
    sees_unfinished = "ledger_open" in wanted and not holds.every_request_is_asked
    return {
        "events": [_SEE_WHAT_IS_UNFINISHED.format(unfinished=unfinished)] * sees_unfinished,
        "ledger_settled": [_SEE_WHAT_IS_SETTLED],
    }


def _with_what_they_read(views: Iterable[str]) -> list[str]:
    """Views and all that they read; each after what it reads."""
    wanted = set(views)
    for name in reversed(RELATIONS):
        if name in wanted:
            wanted.update(_read_by(name))
    return [name for name in RELATIONS if name in wanted]


@cache
def _read_by(name: str) -> frozenset[str]:
    """What a view reads, by its header."""
    reads = re.search(r"  Reads: (.+)\.$", sql_file(name), re.MULTILINE)
    return frozenset(re.findall(r"\w+", reads[1])).intersection(RELATIONS) if reads else frozenset()


def _read_by_many(names: Sequence[str]) -> list[str]:
    """Those that more than two of the others read."""
    readers = Counter(read for name in names for read in _read_by(name))
    return [name for name in names if readers[name] > 2]


def _stand_in(view: str, texts: Mapping[str, str]) -> str:
    """An empty table with a view's columns, under its name."""
    rows = "from ledger_journal_events" if view == "events" else _rows(view, texts)
    return (
        f"create or replace temp table {_columns_of(view)} as\n{rows}\nwith no data;\n"
        f"create or replace temp view {view} as from {_columns_of(view)};\n"
    )


def _columns_of(view: str) -> str:
    return f"ledger_columns_of_{view}"


def _statement(name: str, columns: Sequence[Column], texts: Mapping[str, str], kind: str) -> str:
    rows = _rows(name, texts)
    if name == "events" and columns != COLUMNS:  # what was not read of journals must not look like NULL
        rows = f"select {', '.join(column.name for column in columns)} from (\n{rows}\n)"
    return f"create or replace temp {kind} {name} as\n{rows};\n"


def _rows(name: str, texts: Mapping[str, str]) -> str:
    return (texts.get(name) or sql_file(name)).rstrip()
