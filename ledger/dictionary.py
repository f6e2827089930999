"""The data dictionary: every view's grain and columns, from where each is defined.

described_views()    as data: name, grain, and per column its type, unit and meaning
data_dictionary()    as the page data/README.md:  python -m ledger.dictionary > data/README.md
"""

from __future__ import annotations

import re
import sys
from functools import cache
from typing import NamedTuple

from ledger.billing import BILLING_RULES
from ledger.relations import RELATIONS, VIEWS, sql_file, view_columns
from ledger.schema import COLUMNS, SQL_TYPES

_INTRODUCTION = """\
# The data

The default ledger is `data/ledger`; `bughive-costs demo` writes to `data/demo`. Both stay out of git.

    journals/<journal_id>.jsonl    one per writing process, append-only: one event a line, with a check
    events/date=…/*.parquet        what was sealed: immutable, one UTC day a file
    manifest.jsonl                 one line per segment; made again from their footers if it is lost
    state.db                       SQLite: balances, reservations, budgets, circuits, sessions; derived
    price_books/<hash>.json        the price books that were ever counted with, as events name them
    ledger.id                      the ledger's id and the key of its prompt hashes
    ledger.sql                     for a DuckDB prompt: `.read data/ledger/ledger.sql`
    seal.lock                      held by the one process that seals

Journals and segments are the truth, and only ever added to; all else is derived. Prompts, answers and
keys are not in them. Money is `DECIMAL` in US dollars and never a float; moments are UTC.
`bughive-costs sql "select …"` asks any of the views below, `bughive-costs schema VIEW` shows one of them.

This page is generated: `python -m ledger.dictionary > data/README.md`.
"""
_UNITS = {  # by how a name ends, its qualifiers aside
    "_usd_per_mtok": "USD per 1M tokens",
    "_usd_per_request": "USD per search",
    "_usd": "USD",
    "tokens_per_s": "tokens per s",
    "_tokens": "tokens",
    "_bytes": "bytes",
    "_ms": "ms",
    "_s": "s",
    "_ratio": "0..1",
}


class ViewColumn(NamedTuple):
    """A column: its SQL type, the unit of its numbers, and what it means; '' for no unit."""

    name: str
    type: str
    unit: str
    meaning: str


class View(NamedTuple):
    """A view: what it is, what a row is, what else there is to know, and its columns in order."""

    name: str
    about: str
    grain: str
    notes: list[str]
    columns: list[ViewColumn]


@cache
def described_views() -> dict[str, View]:
    """All views by name, in the order in which each reads only those before it."""
    return {name: _view(name, types) for name, types in _types().items()}


def data_dictionary() -> str:
    """The whole page, as Markdown."""
    return "\n".join([_INTRODUCTION, *map(_section, described_views().values()), _billing_rules()])


def unit_of(column: str) -> str:
    """The unit that a column's name tells; '' where it has none."""
    bare = re.sub(r"_p\d\d$", "", column)
    return next((unit for ending, unit in _UNITS.items() if bare.endswith(ending)), "")


def _view(name: str, types: dict[str, str]) -> View:
    first, grain, *rest = _header(name)
    meanings = dict(view_columns(name)) or {column.name: column.means for column in COLUMNS}
    return View(
        name,
        first.removeprefix(f"{name}: ").rstrip("."),
        re.sub(r"^Grain: (.*?)\.  .*$", r"\1", grain),
        [grain, *(line for line in rest if not re.match(r"[a-z_0-9]+: ", line))],
        [ViewColumn(column, kind, unit_of(column), meanings[column]) for column, kind in types.items()],
    )


def _types() -> dict[str, dict[str, str]]:
    """The columns of each view and their types, as DuckDB works them out without any data."""
    import duckdb

    fields = ", ".join(f"{column.name} {SQL_TYPES[column.kind]}" for column in COLUMNS)
    with duckdb.connect() as connection:
        connection.execute(f"create table events ({fields})")
        for name in RELATIONS[1:]:
            connection.execute(f"create view {name} as {sql_file(name)}")
        return {
            name: {
                column: str(kind) for column, kind, *_ in connection.execute(f"describe {name}").fetchall()
            }
            for name in VIEWS
        }


def _section(view: View) -> str:
    title = f"## {view.name}\n\n{view.about[:1].upper()}{view.about[1:]}.\n"
    head = ["| column | type | unit | meaning |", "| --- | --- | --- | --- |"]
    rows = [
        f"| `{column.name}` | {column.type} | {column.unit} | {_cell(column.meaning)} |"
        for column in view.columns
    ]
    return "\n".join([title, "\n".join(view.notes) + "\n", *head, *rows]) + "\n"


def _billing_rules() -> str:
    rows = [
        f"| `{name}` | {rule.billing or 'either'} | {_cell(rule.when)} |"
        for name, rule in BILLING_RULES.items()
    ]
    about = "Each attempt's `billing_rule`, and the verdict it gives.\n"
    return (
        "\n".join(["## Billing rules\n", about, "| rule | billing | when |", "| --- | --- | --- |", *rows])
        + "\n"
    )


def _header(view: str) -> list[str]:
    lines = sql_file(view).splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return [line.removeprefix("-- ") for line in lines[:end]]


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    sys.stdout.write(data_dictionary())
