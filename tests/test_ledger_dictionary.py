"""data/README.md is what the schema and the views say, no more and no less."""

from __future__ import annotations

from pathlib import Path

from ledger.dictionary import data_dictionary
from ledger.relations import VIEWS, view_columns
from ledger.schema import COLUMNS

README = Path(__file__).parent.parent / "data" / "README.md"


def test_the_page_on_disk_is_current() -> None:
    assert README.read_text("utf-8") == data_dictionary(), "run python -m ledger.dictionary > data/README.md"


def test_every_view_and_column_is_in_it() -> None:
    page = data_dictionary()
    for view in VIEWS:
        section = page.split(f"\n## {view}\n")[1].split("\n## ")[0]
        names = [name for name, _ in view_columns(view)] or [column.name for column in COLUMNS]
        assert [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")] == names
