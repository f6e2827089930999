"""Reports as text for a terminal or a pipe, as Markdown, CSV and JSON.

Values stay values until here: money is Decimal, moments are RFC 3339 text, None is not known.
Names come from outside, so nothing in them may act on a terminal, a spreadsheet or a page.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Literal, NamedTuple, Protocol, TextIO
from unicodedata import east_asian_width

from ledger.plain import plain, to_json

FORMATS = ("table", "json", "csv", "markdown")
UNKNOWN = "-"

Kind = Literal["text", "count", "usd", "moment", "minute", "raw", "number", "share", "bar", "ms", "rate"]
_RIGHT: tuple[Kind, ...] = ("count", "usd", "number", "share", "bar", "ms", "rate")
_FORMULA = tuple("=+-@＝＋－＠")  # how what a spreadsheet runs begins, wide forms included
_SHOWN_PLACES = Decimal("0.000001")


class Column(NamedTuple):
    """A column: its name in data, its title for people. `detail`: in CSV and JSON alone; `drawn`: for
    people alone; `if_any`: left out for people where all is zero; `whole`: never folded; `can_go`:
    left out on a terminal that is too narrow for all, those of a higher number first."""

    name: str
    title: str
    kind: Kind
    detail: bool = False
    drawn: bool = False
    if_any: bool = False
    whole: bool = False
    can_go: int = 0

    @property
    def is_right(self) -> bool:
        """Whether it is aligned to the right."""
        return self.kind in _RIGHT


class Table(NamedTuple):
    """Rows by column name, and a total that stands under them for people alone."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    total: Mapping[str, Any] | None = None

    def shown_columns(self) -> list[Column]:
        """The columns for people."""
        return [
            column
            for column in self.columns
            if not column.detail and (not column.if_any or any(row[column.name] for row in self.rows))
        ]

    def shown_rows(self) -> list[list[str]]:
        """The cells for people, the total last."""
        rows = [*self.rows, self.total] if self.total is not None else self.rows
        columns = self.shown_columns()
        return [[shown(row[column.name], column.kind) for column in columns] for row in rows]


class Fact(NamedTuple):
    """One line of a report's head: what, how much, and what more there is to say."""

    label: str
    value: str
    note: str = ""


class Document(NamedTuple):
    """A report for people."""

    title: str
    facts: Sequence[Fact]
    tables: Sequence[Table]
    note: str = ""


class Report(Protocol):
    """What every report can say of itself."""

    def document(self) -> Document:
        """For people."""
        ...

    def table(self) -> Table:
        """The one table of it, for CSV."""
        ...

    def data(self) -> Any:
        """All of it, for JSON."""
        ...


def write(report: Report, format: str, out: TextIO) -> None:
    """Write a report in one of FORMATS; tables are drawn on a terminal and plain in a pipe."""
    if format == "json":
        out.write(as_json(report.data()))
    elif format == "csv":
        out.write(as_csv(report.table()))
    elif format == "markdown":
        out.write(as_markdown(report.document()))
    elif out.isatty():
        from reports.terminal import draw

        draw(report.document(), out)
    else:
        out.write(as_text(report.document()))


def shown(value: Any, kind: Kind) -> str:
    """A value as people read it; what is not known is a dash."""
    if value is None or value == "":  # the latter where there is nothing to know, as in a line of totals
        return UNKNOWN if value is None else ""
    if kind == "usd":
        return _dollars(value)
    if kind == "count":
        return f"{value:,}"
    if kind in ("share", "bar"):
        return f"{value:.1%}"
    if kind == "rate":
        return f"{value:,.1f}"
    if kind == "ms":
        return f"{value:,.0f}"
    if kind in ("moment", "minute"):
        return str(value)[: 19 if kind == "moment" else 16].replace("T", " ")
    return harmless(plain(value) if not isinstance(value, str) else value)


def rfc3339(text: str | None) -> str | None:
    """A moment as DuckDB writes it with %z, whose offset may lack minutes: +00 is Z, +01 is +01:00."""
    if text is None or text.endswith("+00"):
        return text and text.removesuffix("+00") + "Z"
    return f"{text}:00" if re.search(r"T.*[+-]\d\d$", text) else text


def _dollars(amount: Decimal) -> str:
    """To 6 places, half-even; an amount too small to show is not shown as nothing."""
    rounded = amount.quantize(_SHOWN_PLACES, ROUND_HALF_EVEN)
    sign = "-" if amount < 0 else ""
    if amount and not rounded:
        return f"{sign}<${_SHOWN_PLACES:f}"
    return f"{sign}${abs(rounded):,f}"


def harmless(text: str) -> str:
    """Text with what does not print (escapes, controls, direction marks) shown as its code."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def as_json(value: Any) -> str:
    """JSON; money is a string in full, moments are RFC 3339, what is not a number is null."""
    return to_json(value, indent=2) + "\n"


def as_csv(table: Table) -> str:
    """CSV of all columns and rows, no total; a cell that a spreadsheet would run starts with '."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [column for column in table.columns if not column.drawn]
    writer.writerow([_csv_cell(column.name) for column in columns])
    writer.writerows([_csv_cell(row[column.name]) for column in columns] for row in table.rows)
    return text.getvalue()


def _csv_cell(value: Any) -> str:
    if not isinstance(value, str):
        return plain(value)
    text = harmless(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def as_markdown(document: Document) -> str:
    """Markdown with a table each for the facts and the figures."""
    lines = [f"# {_markdown_text(document.title)}", ""] if document.title else []
    if document.facts:
        facts = [[fact.label, fact.value, fact.note] for fact in document.facts]
        lines += _markdown_table(["", "", ""], "lrl", facts)
    for table in document.tables:
        columns = table.shown_columns()
        if table.title:
            lines += [f"## {_markdown_text(table.title)}", ""]
        alignment = "".join("r" if column.is_right else "l" for column in columns)
        lines += _markdown_table([column.title for column in columns], alignment, table.shown_rows())
    note = [_markdown_text(document.note)] if document.note else []
    return "\n".join(lines + note).rstrip() + "\n"


def _markdown_table(titles: list[str], alignment: str, rows: Iterable[Sequence[str]]) -> list[str]:
    rules = ["---:" if side == "r" else "---" for side in alignment]
    body = [[_markdown_text(cell) for cell in row] for row in [titles, *rows]]
    return [f"| {' | '.join(cells)} |" for cells in [body[0], rules, *body[1:]]] + [""]


def _markdown_text(text: str) -> str:
    """Text that is nothing but text: no markup, no HTML, no link, not even one that is made of an address."""
    escaped = re.sub(r"([\\`*|<>\[\]~&]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", harmless(text))
    return re.sub(r"(?i)(\bwww)\.|(?<=\w):(?=//)", lambda found: f"{found[1] or ''}\\{found[0][-1]}", escaped)


def as_text(document: Document) -> str:
    """The report as plain text: aligned columns, no colour, nothing cut."""
    blocks = [harmless(document.title)] if document.title else []
    if document.facts:
        facts = [[harmless(part) for part in fact] for fact in document.facts]
        blocks.append(_aligned(facts, "lrl", "  "))
    for table in document.tables:
        columns = table.shown_columns()
        alignment = "".join("r" if column.is_right else "l" for column in columns)
        titles = [harmless(column.title) for column in columns]
        lines = _aligned([titles, *table.shown_rows()], alignment, "  ")
        blocks.append(f"{harmless(table.title)}\n{lines}" if table.title else lines)
    return "\n\n".join(blocks + ([harmless(document.note)] if document.note else [])) + "\n"


def _aligned(rows: Sequence[Sequence[str]], alignment: str, indent: str) -> str:
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for cell, width, side in zip(row, widths, alignment, strict=True):
            fill = " " * (width - width_of(cell))
            cells.append(fill + cell if side == "r" else cell + fill)
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def width_of(text: str) -> int:
    """How many cells of a terminal a text takes."""
    return len(text) if text.isascii() else sum(2 if east_asian_width(char) in "WF" else 1 for char in text)
