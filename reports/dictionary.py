"""The data dictionary on the command line: the views, or the columns of one with their units."""

from __future__ import annotations

from typing import Any, NamedTuple

from ledger.dictionary import View, ViewColumn, described_views
from reports.options import choice
from reports.render import Column, Document, Table

_COLUMNS = (
    Column("column", "Column", "text", whole=True),
    Column("type", "Type", "text", can_go=1),
    Column("unit", "Unit", "text"),
    Column("meaning", "Meaning", "text"),
)


class Dictionary(NamedTuple):
    """All views, or one."""

    views: list[View]
    view: View | None

    def data(self) -> Any:
        """For JSON: a list of views with their columns; of one view that alone."""
        views = [
            {
                "view": view.name,
                "about": view.about,
                "grain": view.grain,
                "columns": [_row(column) for column in view.columns],
            }
            for view in self.views
        ]
        return views[0] if self.view else views

    def table(self) -> Table:
        """For CSV: one row per column."""
        columns = [Column("view", "View", "text"), *_COLUMNS]
        rows = [{"view": view.name, **_row(column)} for view in self.views for column in view.columns]
        return Table("", columns, rows)

    def document(self) -> Document:
        """For people: what there is, or all about one."""
        if self.view:
            rows = [_row(column) for column in self.view.columns]
            title = f"{self.view.name}: {self.view.about}"
            return Document(title, [], [Table("", _COLUMNS, rows)], " ".join(self.view.notes))
        columns = (
            Column("view", "View", "text", whole=True),
            Column("about", "What it is", "text"),
            Column("grain", "One row per", "text"),
        )
        rows = [{"view": view.name, "about": view.about, "grain": view.grain} for view in self.views]
        note = "bughive-costs schema VIEW shows its columns, with types and units"
        return Document("Views of the ledger", [], [Table("", columns, rows)], note)


def dictionary_report(view: str | None = None) -> Dictionary:
    """The dictionary of one view, or of all. Raises UsageError for a view that is not there."""
    views = described_views()
    if view is None:
        return Dictionary(list(views.values()), None)
    found = views[choice(view, tuple(views), "schema")]
    return Dictionary([found], found)


def _row(column: ViewColumn) -> dict[str, Any]:
    name, kind, unit, meaning = column
    return {"column": name, "type": kind, "unit": unit, "meaning": meaning}
