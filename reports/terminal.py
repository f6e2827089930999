"""Reports drawn on a terminal with rich, which keeps to NO_COLOR.

A table takes the width there is. Texts are folded where it is short, between words or else between the
parts of a name; numbers never are, as part of one is another. Columns that can go do, and are named; a
table that still is too wide is broken into several.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TextIO

from reports.render import Column, Document, Table, harmless, width_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

_GAP = 2
_FOLDED_TO = 12  # the narrowest a text becomes
_BAR_CELLS = range(3, 25)
_BETWEEN = (re.compile(r"(?<= )"), re.compile(r"(?<=[_/-])|(?<=[.:])(?!\d)"))  # words, parts of names
_EIGHTHS = " ▏▎▍▌▋▊▉"


class _Drawn(NamedTuple):
    """A column for people and what stands in it, from top to bottom."""

    column: Column
    cells: list[str]
    values: list[object]

    @property
    def least_width(self) -> int:
        """The narrowest it may become: numbers and moments whole, texts to a dozen characters."""
        titles = max(map(width_of, self.title_lines), default=1)
        return max(titles, self.full_width if self.is_whole else min(self.full_width, _FOLDED_TO))

    @property
    def is_whole(self) -> bool:
        """Whether its cells are never folded."""
        return self.column.whole or self.column.kind not in ("text", "raw")

    @property
    def title_lines(self) -> list[str]:
        """Its title: a word a line over numbers, which are narrow."""
        title = harmless(self.column.title)
        return [title] if self.column.kind == "text" else title.split(" ")

    @property
    def full_width(self) -> int:
        """That of its widest cell."""
        return max(map(width_of, self.cells), default=1)


class _Foldable(NamedTuple):
    """A text as a table takes it, folded to the width of its column."""

    text: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        for line in folded(self.text, options.max_width):
            yield Text(line.rstrip(), overflow="fold")


def folded(text: str, width: int, between: Sequence[re.Pattern[str]] = _BETWEEN) -> list[str]:
    """A text in lines of at most so many cells, but for spaces at their ends.

    Words stay whole where they fit, else the parts of their names do.

    >>> folded("validate_critical_bug of qwen-2.5-32b", 12)
    ['validate_', 'critical_bug ', 'of ', 'qwen-2.5-32b']
    """
    if width_of(text.rstrip()) <= width:
        return [text]
    lines = [""]
    for piece in between[0].split(text) if between else text:
        if width_of((lines[-1] + piece).rstrip()) <= width:
            lines[-1] += piece
        else:
            lines += folded(piece, width, between[1:]) if between else [piece]
    return [line for line in lines if line]


def draw(document: Document, out: TextIO) -> None:
    """Draw a report on the terminal `out`."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=out, highlight=False)
    if document.title:
        console.print(Text(harmless(document.title), style="bold"))
    if document.facts:
        facts = RichTable.grid(padding=(0, 2))
        for fact in document.facts:
            label, value, note = map(harmless, fact)
            facts.add_row(Text(label, style="dim"), Text(value, justify="right"), Text(note, style="dim"))
        console.print(facts)
    console.print()
    for table in document.tables:
        columns = _columns_of(table)
        fitting = _that_fit(columns, console.width)
        for number, part in enumerate(_broken(fitting, console.width)):
            _draw_table("" if number else table.title, part, table.total is not None, console)
        if left_out := [each.column.title for each in columns if each not in fitting]:
            console.print(Text(f"a wider terminal shows more: {', '.join(left_out)}\n", style="dim"))
    if document.note:
        console.print(Text(harmless(document.note), style="dim"))


def _columns_of(table: Table) -> list[_Drawn]:
    rows = [*table.rows, table.total] if table.total is not None else table.rows
    cells = table.shown_rows()
    return [
        _Drawn(column, [row[at] for row in cells], [row[column.name] for row in rows])
        for at, column in enumerate(table.shown_columns())
    ]


def _that_fit(columns: list[_Drawn], width: int) -> list[_Drawn]:
    """The columns without those that can go, if so there is room for the others; else all."""
    fitting = columns
    while _least(fitting) > width:
        first = max(range(len(fitting)), key=lambda at: (fitting[at].column.can_go, at))
        if not fitting[first].column.can_go:
            return columns
        fitting = fitting[:first] + fitting[first + 1 :]
    return fitting


def _broken(columns: list[_Drawn], width: int) -> list[list[_Drawn]]:
    """Parts that are narrow enough, as few and even as can be; each begins with what names a row."""
    parts = _parts(columns, width)
    narrower = (_parts(columns, limit) for limit in range(width))
    return next((even for even in narrower if len(even) == len(parts)), parts) if len(parts) > 1 else parts


def _parts(columns: list[_Drawn], width: int) -> list[list[_Drawn]]:
    names = 0
    while names < len(columns) and columns[names].column.kind == "text":
        names += 1
    parts = [columns[:names]]
    for column in columns[names:]:
        if len(parts[-1]) > names and _least([*parts[-1], column]) > width:
            parts.append(columns[:names])
        parts[-1] = [*parts[-1], column]
    return parts


def _least(columns: Sequence[_Drawn]) -> int:
    return sum(column.least_width for column in columns) + _GAP * len(columns)


def _draw_table(title: str, columns: list[_Drawn], has_total: bool, console: Console) -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        title=Text(harmless(title), style="bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    bar_cells = _room_for_bars(columns, console.width)
    for each, width in zip(columns, _widths(columns, console.width), strict=True):
        column = each.column
        side: Literal["right", "left"] = "right" if column.is_right and column.kind != "bar" else "left"
        drawn.add_column(
            Text("\n".join(each.title_lines)),
            justify=side,
            overflow="fold",
            width=width + (bar_cells + 1 if bar_cells and column.kind == "bar" else 0),
            no_wrap=column.is_right,
        )
    is_fancy = console.encoding.startswith("utf")
    rows = len(columns[0].cells)
    for number in range(rows):
        is_total = has_total and number == rows - 1
        if is_total:
            drawn.add_section()
        cells = [_cell(each, number, bar_cells, is_fancy) for each in columns]
        drawn.add_row(*cells, style="bold" if is_total else None)
    console.print(drawn, width=max(console.width, _least(columns)), crop=False)
    console.print()


def _widths(columns: Sequence[_Drawn], width: int) -> list[int]:
    """What each column takes: all it would, or where that is too much the widest less, to their least.

    rich, left to it, takes a column below its least, and then draws a table wider than the window.
    """
    least = [each.least_width for each in columns]
    widths = [max(each, min(of.full_width, width)) for each, of in zip(least, columns, strict=True)]
    too_much = sum(widths) + _GAP * (len(columns) - 1) - width
    for _ in range(too_much):
        at = max(range(len(columns)), key=lambda at: (widths[at] > least[at], widths[at]))
        widths[at] -= widths[at] > least[at]
    return widths


def _room_for_bars(columns: Sequence[_Drawn], width: int) -> int:
    """How many cells a bar may take beside its number once all else stands in full; 0: too few for both."""
    room = width - 1 - sum(max(each.least_width, each.full_width) + _GAP for each in columns)
    return min(room, _BAR_CELLS[-1]) if room >= _BAR_CELLS[0] else 0


def _cell(of: _Drawn, row: int, bar_cells: int, is_fancy: bool) -> Text | _Foldable:
    """A share is a number, and a bar where there is room for one."""
    from rich.text import Text

    value, shown = of.values[row], of.cells[row]
    if not of.is_whole:
        return _Foldable(shown)
    if of.column.kind != "bar" or not isinstance(value, float):
        return Text(shown)
    if not bar_cells:
        return Text(shown.rjust(of.least_width))
    return Text(shown.rjust(of.least_width)).append(f" {bar(value, bar_cells, is_fancy)}", style="cyan")


def bar(share: float, cells: int, is_fancy: bool = True) -> str:
    """A bar for a share of 0..1, to an eighth of a cell; of # where a terminal knows no more than ASCII.

    More than nothing is at least a sliver; what lies outside 0..1 is drawn as its nearest end.
    """
    filled = min(max(share, 0.0), 1.0) * cells
    if not is_fancy:
        return "#" * round(filled)
    whole, eighths = divmod(max(round(filled * 8), 1 if filled else 0), 8)
    return "█" * whole + (_EIGHTHS[eighths] if eighths else "")
