"""How reports look, and that no name from outside acts on a terminal, a spreadsheet or a page."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.relations import VIEWS
from reports.dictionary import dictionary_report
from reports.render import (
    Column,
    Document,
    Fact,
    Kind,
    Table,
    as_csv,
    as_json,
    as_markdown,
    as_text,
    harmless,
    rfc3339,
    shown,
    width_of,
    write,
)
from reports.terminal import bar, draw, folded

COLUMNS = (
    Column("name", "Name", "text"),
    Column("requests", "Requests", "count"),
    Column("hidden", "Hidden", "count", detail=True),
    Column("cost_usd", "Cost", "usd"),
    Column("unpriced", "Unpriced", "count", if_any=True),
)
ROWS: list[dict[str, Any]] = [
    {"name": "FAST", "requests": 1234, "hidden": 7, "cost_usd": Decimal("0.000108000000"), "unpriced": 0},
    {"name": None, "requests": 1, "hidden": 8, "cost_usd": None, "unpriced": 0},
]
TOTAL = {"name": "Total", "requests": 1235, "hidden": 15, "cost_usd": Decimal("0.000108"), "unpriced": 0}
TABLE = Table("By name", COLUMNS, ROWS, TOTAL)
DOCUMENT = Document("Session s-1", [Fact("Cost", "$0.000108", "exact")], [TABLE], "a note")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Report:
    def document(self) -> Document:
        return DOCUMENT

    def table(self) -> Table:
        return TABLE

    def data(self) -> Any:
        return {"cost_usd": Decimal("0.000108000000")}


def test_a_cell_is_looked_at_as_often_whatever_the_number_of_rows() -> None:
    class Row(dict[str, Any]):
        looks = 0

        def __getitem__(self, name: str) -> Any:
            Row.looks += 1
            return super().__getitem__(name)

    def looks_per_row(rows: int) -> float:
        Row.looks = 0
        as_text(Document("", [], [Table("", COLUMNS, [Row(ROWS[0])] * rows)]))
        return Row.looks / rows

    assert looks_per_row(100) <= looks_per_row(1)


def test_plain_text_is_aligned_and_ends_in_the_total() -> None:
    assert as_text(DOCUMENT) == (
        "Session s-1\n"
        "\n"
        "  Cost  $0.000108  exact\n"
        "\n"
        "By name\n"
        "  Name   Requests       Cost\n"
        "  FAST      1,234  $0.000108\n"
        "  -             1          -\n"
        "  Total     1,235  $0.000108\n"
        "\n"
        "a note\n"
    )


def test_markdown_is_a_table_with_numbers_to_the_right() -> None:
    assert as_markdown(DOCUMENT) == (
        "# Session s-1\n"
        "\n"
        "|  |  |  |\n"
        "| --- | ---: | --- |\n"
        "| Cost | $0.000108 | exact |\n"
        "\n"
        "## By name\n"
        "\n"
        "| Name | Requests | Cost |\n"
        "| --- | ---: | ---: |\n"
        "| FAST | 1,234 | $0.000108 |\n"
        "| - | 1 | - |\n"
        "| Total | 1,235 | $0.000108 |\n"
        "\n"
        "a note\n"
    )


def test_csv_has_all_columns_in_full_and_no_total() -> None:
    assert as_csv(TABLE) == "name,requests,hidden,cost_usd,unpriced\nFAST,1234,7,0.000108000000,0\n,1,8,,0\n"


def test_a_pipe_gets_no_colour_and_a_terminal_every_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    write(Report(), "table", pipe)
    assert "\x1b" not in pipe.getvalue()

    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    write(Report(), "table", terminal)
    assert "\x1b[1m" in terminal.getvalue()
    for whole in ("$0.000108", "1,234", "1,235"):
        assert whole in terminal.getvalue()


def test_no_color_is_kept_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    write(Report(), "table", terminal)

    assert "\x1b[3" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (Decimal("0.0538"), "usd", "$0.053800"),
        (Decimal("1234567.8901234"), "usd", "$1,234,567.890123"),
        (Decimal("0.0000005"), "usd", "<$0.000001"),
        (Decimal("0.0000015"), "usd", "$0.000002"),
        (Decimal("0.0000025"), "usd", "$0.000002"),
        (Decimal("-0.5"), "usd", "-$0.500000"),
        (Decimal("-0.0000001"), "usd", "-<$0.000001"),
        (Decimal(0), "usd", "$0.000000"),
        (None, "usd", "-"),
        (1234567, "count", "1,234,567"),
        (0, "count", "0"),
        ("2026-11-22T10:00:00.123456Z", "moment", "2026-11-22 10:00:00"),
        (Decimal("1E-12"), "raw", "0.000000000001"),
    ],
)
def test_values_as_people_read_them(value: Any, kind: Kind, expected: str) -> None:
    assert shown(value, kind) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T10:00:00.000000+00", "2026-11-22T10:00:00.000000Z"),
        ("2026-11-22T10:00:00.000000+01", "2026-11-22T10:00:00.000000+01:00"),
        ("2026-11-22T10:00:00.000000-03:30", "2026-11-22T10:00:00.000000-03:30"),
        ("2026-11-22T10:00-05", "2026-11-22T10:00-05:00"),
        (None, None),
    ],
)
def test_moments_are_rfc_3339(text: str | None, expected: str | None) -> None:
    assert rfc3339(text) == expected


def test_json_keeps_money_exact_and_knows_no_nan() -> None:
    text = as_json({"a": Decimal("0.100000000000"), "b": [float("nan"), 1.5], "c": {"d": None}})

    assert json.loads(text) == {"a": "0.100000000000", "b": [None, 1.5], "c": {"d": None}}


def named(name: str) -> tuple[Document, Table]:
    table = Table("", COLUMNS, [{**ROWS[0], "name": name}])
    return Document(name, [], [table]), table


@given(st.text(min_size=1))
def test_no_name_sends_anything_but_text_to_a_terminal(name: str) -> None:
    document, _ = named(name)
    for text in (as_text(document), as_markdown(document)):
        assert all(char.isprintable() or char == "\n" for char in text)
    assert len(as_text(document).splitlines()) == 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb", r"a\nb"),
        ("\u202eevil", r"\u202eevil"),
        ("\x9b1m", r"\x9b1m"),
    ],
)
def test_what_does_not_print_is_shown_as_its_code(name: str, expected: str) -> None:
    assert harmless(name) == expected


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "\r=1"])
def test_no_name_is_a_formula_in_a_spreadsheet(name: str) -> None:
    _, table = named(name)
    (_, row) = csv.reader(io.StringIO(as_csv(table)))

    assert not row[0].lstrip().startswith(("=", "+", "-", "@"))


@given(st.text(st.characters(exclude_categories=["C", "Z"])).filter(lambda text: text[:1] not in "=+-@"))
def test_csv_reads_back_as_the_name_it_was(name: str) -> None:
    _, table = named(name)
    (_, row) = csv.reader(io.StringIO(as_csv(table)))

    assert row[0] == name


def test_a_pipe_in_a_name_ends_no_cell_of_markdown() -> None:
    document, _ = named("a|b<script>`x`[y](z)")

    assert as_markdown(document).splitlines()[-1].startswith(r"| a\|b\<script\>\`x\`\[y\](z) |")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("analyze_page", "analyze_page"),
        ("_x_", r"\_x\_"),
        ("a ~~b~~", r"a \~\~b\~\~"),
        ("http://evil/x", r"http\://evil/x"),
        ("WWW.evil.com", r"WWW\.evil.com"),
        ("&lt;b&gt;", r"\&lt;b\&gt;"),
    ],
)
def test_markdown_shows_a_name_and_makes_nothing_of_it(name: str, expected: str) -> None:
    document, _ = named(name)

    assert as_markdown(document).splitlines()[-1].startswith(f"| {expected} |")


def drawn(table: Table, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a terminal of that width shows, without colours; no line is wider."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", "25")  # else rich takes a dumb terminal for one of 80 columns
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    draw(Document("", [], [table]), terminal)
    lines = [line.rstrip() for line in terminal.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    return lines


SHARES = (Column("name", "Name", "text"), Column("share", "Share of all", "bar", drawn=True))
PARTS = [{"name": "FAST", "share": 0.5}, {"name": "CODING", "share": 0.001}, {"name": "none", "share": None}]


def test_a_share_is_a_number_and_a_bar_that_grows_with_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("", SHARES, PARTS, {"name": "Total", "share": ""})
    wide, narrow = (drawn(table, width, monkeypatch) for width in (60, 25))

    assert next(line for line in wide if "FAST" in line).split() == ["FAST", "50.0%", "█" * 12]
    assert next(line for line in wide if "CODING" in line).split() == ["CODING", "0.1%", "▏"]
    assert next(line for line in narrow if "FAST" in line).split() == ["FAST", "50.0%", "████▌"]
    assert [line.split() for line in (wide[-4], wide[-2])] == [["none", "-"], ["Total"]]


def test_where_a_number_and_a_bar_have_no_room_the_number_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(Table("", SHARES, PARTS), 17, monkeypatch)
    assert next(line for line in lines if "FAST" in line).split() == ["FAST", "50.0%"]


def test_bars_are_drawn_in_ascii_where_a_terminal_knows_no_more() -> None:
    assert bar(0.5, 8) == "████"
    assert bar(0.55, 8) == "████▍"
    assert bar(0.5, 8, is_fancy=False) == "####"
    assert (bar(2.0, 4), bar(-1.0, 4), bar(0.0, 4)) == ("████", "", "")


def test_what_is_true_is_so_in_the_words_of_json_and_sql() -> None:
    table = Table("", [Column("is_it", "Is it", "raw")], [{"is_it": True}, {"is_it": False}, {"is_it": None}])

    assert as_csv(table) == 'is_it\ntrue\nfalse\n""\n'
    assert as_text(Document("", [], [table])).split() == ["Is", "it", "true", "false", "-"]


def test_shares_are_for_people_and_stand_in_a_pipe_as_numbers() -> None:
    table = Table("", SHARES, PARTS)

    assert as_csv(table) == "name\nFAST\nCODING\nnone\n"
    assert [line.split()[1] for line in as_text(Document("", [], [table])).splitlines()[1:]] == [
        "50.0%",
        "0.1%",
        "-",
    ]


def test_a_table_too_wide_is_broken_into_even_parts_that_each_name_their_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = [Column(f"count_{number}", f"Count {number}", "count") for number in range(6)]
    row = {"name": "FAST", **{column.name: 123_456_789 for column in counts}}
    table = Table("By name", [COLUMNS[0], *counts], [row])
    whole, broken = (drawn(table, width, monkeypatch) for width in (100, 50))

    assert [line.count("123,456,789") for line in whole if line.startswith("FAST")] == [6]
    assert [line.count("123,456,789") for line in broken if line.startswith("FAST")] == [3, 3]
    assert broken.count("By name") == 1


def test_what_can_go_does_where_that_makes_room_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [Column(f"count_{number}", f"Count {number}", "count", can_go=number % 2) for number in range(4)]
    row = {"name": "FAST", **{column.name: 123_456_789 for column in counts}}
    table = Table("", [COLUMNS[0], *counts], [row])

    assert [line.count("123") for line in drawn(table, 40, monkeypatch) if "FAST" in line] == [2]
    assert [line.count("123") for line in drawn(table, 25, monkeypatch) if "FAST" in line] == [1, 1, 1, 1]


def test_a_name_is_folded_between_its_parts_where_it_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "validate_critical_bug",
        "qwen/qwen-2.5-32b-instruct",
        "0123456789abcdef0123",
        "to be read at 10:30:00",
        "漢字漢字漢字漢字",
    ]
    table = Table("", COLUMNS[:1], [{"name": name} for name in names])

    assert drawn(table, 14, monkeypatch)[3:-1] == [
        *("validate_", "critical_bug"),
        *("qwen/qwen-2.5-", "32b-instruct"),
        *("0123456789abcd", "ef0123"),
        *("to be read at", "10:30:00"),
        *("漢字漢字漢字漢", "字"),
    ]


@given(st.text(st.sampled_from("ab_-/.: 漢")), st.integers(2, 12))
def test_what_is_folded_is_whole_and_no_line_too_wide(text: str, width: int) -> None:
    lines = folded(text, width)
    assert "".join(lines) == text
    assert all(width_of(line.rstrip()) <= width for line in lines)


def test_a_number_within_a_name_is_folded_at_no_point() -> None:
    assert folded("qwen/qwen-2.5-32b", 12) == ["qwen/qwen-", "2.5-32b"]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_no_line_of_a_view_s_description_is_wider_than_the_window(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for view in VIEWS:
        (table,) = dictionary_report(view).document().tables
        assert max(map(len, drawn(table, width, monkeypatch))) <= width, view


def test_a_text_as_wide_as_the_window_is_folded_and_numbers_beside_it_are_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"a_rather_long_name_{number}" for number in range(7)]
    columns = [Column(name, name, "raw" if number % 2 else "number") for number, name in enumerate(names)]
    row = {name: "x" * 300 if number % 2 else 12345678901 for number, name in enumerate(names)}
    for width in range(40, 160, 7):
        lines = drawn(Table("", columns, [row]), width, monkeypatch)
        assert max(map(len, lines)) <= width
        assert "\n".join(lines).count("12345678901") == 4


def test_what_went_for_want_of_width_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [Column(f"count_{number}", f"Count {number}", "count", can_go=number % 2) for number in range(4)]
    table = Table("", [COLUMNS[0], *counts], [{"name": "FAST", **{each.name: 10**8 for each in counts}}])

    assert "a wider terminal shows more: Count 1, Count 3" in " ".join(drawn(table, 40, monkeypatch))
    assert "wider" not in " ".join(drawn(table, 80, monkeypatch))


def test_wide_characters_keep_columns_aligned() -> None:
    rows = [{**ROWS[0], "name": "漢字"}, {**ROWS[0], "name": "abcd"}]
    lines = as_text(Document("", [], [Table("", COLUMNS, rows)])).splitlines()

    assert lines[1].replace("漢字", "abcd") == lines[2]
