"""Names from outside are text, in every format of every command: none acts on a terminal, a spreadsheet
or a page, none breaks a table, and JSON has each as it is."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from played import History

from ledger.events import AttemptFailed, AttemptStarted, RequestFailed, RequestReceived
from reports.cli import main

TRIED = [
    *("=1+1", "+1", "-1", "@SUM(A1)", " =1", "＝1", "＋1", "－1", "＠x", "\u3000=1", "\xa0@x", '"=1', "'=1"),
    *("\x80", "\x9b31mred", "\x9d0;title", "\u202eevil", "\u2066x", "\u200f", "\ufeff", "\u2028", "\u2029"),
    *("a|b", "|", r"a\|b", "\\", "`x`", "``", "*x*", "_x_", "~~x~~", "<b>", "<!--", "&lt;b&gt;", "a&b"),
    *(
        "[x](javascript:alert(1))",
        "![x](http://evil/x.png)",
        "http://evil/?q=1",
        "www.evil.com",
        "# x",
        "---",
    ),
    *(
        "[bold]rich[/bold]",
        "[/]",
        ":smile:",
        "漢字",
        "e\u0301",
        "👩‍💻",
        "a" * 256,
        "x y",
        " ",
        '"',
        ",",
        ";",
        "'",
    ),
    *("null", "Total", "-", "$session", "{0}", "%s", "--by", "tag:x", "'; drop table events; --"),
]
FORMULA = tuple("=+-@＝＋－＠")
COLOUR = re.compile(r"\x1b\[[\d;]*m")
COMMANDS = {
    "report": ["report"],
    "report by all keys": ["report", "--by", "session,task,tier,model,provider", "--by", "tag:=x"],
    "sessions": ["sessions", "--limit", "0"],
    "performance": ["performance"],
    "a comparison": ["performance", "--by", "task", "--since", "2026-11-22", "--compare", "previous"],
    "attempts": ["sql", "select * from attempts"],
    "names as columns": [
        "sql",
        "select 1 as \"=1|<b>\x9b`[x](y)\", 2 as \"\u202e\", map {'=1': '\x9b'} as m",
    ],
}


def any_name(drawn: random.Random) -> str:
    """Any text that an event may hold: of all of Unicode, but of what tends to act more often."""
    acting = "=+-@|<>&`*_~[]()\\\"',;:/ \t\x80\x9b\x9d\xa0\u2028\u202e\u2066\ufeff＝＠"
    text = "".join(
        drawn.choice(acting) if drawn.random() < 0.6 else chr(drawn.randrange(0x20, 0x3000))
        for _ in range(drawn.randint(1, 12))
    )
    return re.sub(r"[\x00-\x1f\x7f]", "x", text)


@pytest.fixture(scope="module")
def names() -> list[str]:
    drawn = random.Random(8)
    return list(dict.fromkeys([*TRIED, *(any_name(drawn) for _ in range(40))]))


@pytest.fixture(scope="module")
def ledger(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    history = History(tmp_path_factory.mktemp("hostile") / "ledger")
    history.record(*(event for number, name in enumerate(names) for event in failing(history, number, name)))
    yield str(history.path)
    history.close()


def failing(history: History, number: int, name: str) -> Iterator[Any]:
    """A request that fails, and whose every text is the name."""
    request: dict[str, Any] = {
        "request_id": f"r-{number}", "session_id": name, "task": name, "requested_tier": name,
        "tags": {"=x": name, name: "x"},
    }  # fmt: skip
    at: dict[str, Any] = {"tier": name, "provider": name, "model": name}
    attempt = {**request, **at, "attempt_id": f"a-{number}", "attempt_number": 1}
    yield RequestReceived(**request, max_tokens=5, message_count=1, prompt_bytes=9, prompt_hash="0" * 32)
    yield AttemptStarted(**attempt, max_tokens=5)
    yield AttemptFailed(
        **attempt, started_at=history.now, latency_ms=1.0, error_type="server_error", error_message=name,
        billing="unbilled", billing_rule="error_status", http_status=500,
    )  # fmt: skip
    yield RequestFailed(
        **request, tier=name, started_at=history.now, attempt_number=1, reason="exhausted",
        error_type="server_error",
    )  # fmt: skip


def said(capsys: pytest.CaptureFixture[str], ledger: str, command: str, format: str) -> str:
    assert main([*COMMANDS[command], "--ledger", ledger, "--format", format]) == 0
    return capsys.readouterr().out


def is_plain(text: str) -> bool:
    """Whether a terminal does nothing with it but show it."""
    return all(
        char == "\n" or (char.isprintable() and unicodedata.bidirectional(char) not in BIDI) for char in text
    )


BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_and_a_terminal_get_text_alone(
    command: str, ledger: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    piped = said(capsys, ledger, command, "table")
    assert is_plain(piped)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sys.stdout", terminal)
    assert main([*COMMANDS[command], "--ledger", ledger]) == 0
    assert is_plain(COLOUR.sub("", terminal.getvalue()))
    assert "rich" not in command or "[bold]rich[/bold]" in terminal.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_cell_of_csv_is_a_formula(command: str, ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, ledger, command, "csv")
    header, *rows = csv.reader(io.StringIO(text))

    assert is_plain(text)
    assert rows
    for row in rows:
        assert len(row) == len(header)
        for cell in (*header, *row):
            assert not cell.lstrip().startswith(FORMULA) or re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell)


@pytest.mark.parametrize("command", COMMANDS)
def test_markdown_has_as_many_cells_in_each_row_and_no_markup(
    command: str, ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, ledger, command, "markdown")
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", text)  # without what is escaped

    assert is_plain(text)
    assert not re.search(
        r"[<>`*\[\]~]|://|www\.|&\w+;", re.sub(r"(?m)^\|( ---:? \|)+$", "", bare), re.IGNORECASE
    )
    cells = [line.count("|") for line in bare.splitlines() if line.startswith("|")]
    tables = re.findall(r"(?:^\|.*\n)+", bare, re.MULTILINE)
    assert cells
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)


def test_json_has_every_name_as_it_is(
    names: list[str], ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = json.loads(said(capsys, ledger, "sessions", "json"))
    assert {session["session_id"] for session in sessions} == set(names)

    rows = json.loads(said(capsys, ledger, "report by all keys", "json"))["rows"]
    assert {(row["session"], row["task"], row["tier"], row["model"]) for row in rows} == {
        (n,) * 4 for n in names
    }
    attempts = json.loads(said(capsys, ledger, "attempts", "json"))
    assert {attempt["tags"]["=x"] for attempt in attempts} == set(names)
    assert {attempt["error_message"] for attempt in attempts} == set(names)


def test_a_session_is_found_by_its_name_whatever_that_is(
    names: list[str], ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in names[::40]:
        assert main(["report", f"--session={name}", "--ledger", ledger, "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["session_id"] == name
        select = "select count(*) as n from attempts where session_id = $name"
        assert main(["sql", select, "-p", f"name={name}", "--ledger", ledger, "--format", "csv"]) == 0
        assert capsys.readouterr().out == "n\n1\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "--session", "\x9b31m\u202e"],
        ["report", "--by", "\x1b[31m"],
        ["report", "--tz", "\u2066x"],
        ["sql", 'select "\x9b" from attempts'],
        ["sql", "select 1", "-p", "\x1b]0;x"],
        ["schema", "\u202eattempts"],
        ["\x1b[31m"],
    ],
)
def test_an_error_is_one_line_of_text(
    arguments: list[str], ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--ledger", ledger] if arguments[0] in ("report", "sql") else []
    assert main([*arguments, *where]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert is_plain(line)
