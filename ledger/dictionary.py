"""data/README.md: every column of the events and of every view, generated from where each is defined.

python -m ledger.dictionary > data/README.md
"""

from __future__ import annotations

import re
import sys

from ledger.billing import BILLING_RULES
from ledger.reader import VIEWS, view_columns, view_sql
from ledger.schema import COLUMNS, SQL_TYPES

_INTRODUCTION = """\
# The data

The default ledger is `data/ledger`; `bughive-costs demo` writes to `data/demo`. Both stay out of git.

    journals/<journal_id>.jsonl    one per writing process, append-only: one event a line, with a check
    events/date=…/*.parquet        what was sealed: immutable, one UTC day a file
    manifest.jsonl                 one line per segment; made again from their footers if it is lost
    state.db                       SQLite: balances, reservations, circuits, sessions by batch; derived
    ledger.id                      the ledger's id and the key of its prompt hashes
    ledger.sql                     for a DuckDB prompt: `.read data/ledger/ledger.sql`
    seal.lock                      held by the one process that seals

Journals and segments are the truth, and only ever added to; all else is derived. Prompts, answers and
keys are not in them. Money is `DECIMAL` in US dollars and never a float; moments are UTC.
`bughive-costs sql "select …"` asks any of the views below.

This page is generated: `python -m ledger.dictionary > data/README.md`.
"""


def data_dictionary() -> str:
    """The whole page, as Markdown."""
    return "\n".join([_INTRODUCTION, *(_section(name) for name in VIEWS), _billing_rules()])


def _section(view: str) -> str:
    first, *rest = _header(view)
    about = [line for line in rest if not re.match(r"[a-z_]+: ", line)]
    columns = [(column.name, SQL_TYPES[column.kind], column.means) for column in COLUMNS]
    rows = (
        [f"| `{name}` | {kind} | {_cell(means)} |" for name, kind, means in columns]
        if view == "events"
        else [f"| `{name}` | {_cell(means)} |" for name, means in view_columns(view)]
    )
    head = ["| column | type | meaning |", "| --- | --- | --- |"]
    if view != "events":
        head = ["| column | meaning |", "| --- | --- |"]
    title = f"## {view}\n\n{first.removeprefix(f'{view}: ').capitalize()}\n"
    return "\n".join([title, "\n".join(about) + "\n", *head, *rows]) + "\n"


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
    lines = view_sql(view).splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("--"))
    return [line.removeprefix("-- ") for line in lines[:end]]


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    sys.stdout.write(data_dictionary())
