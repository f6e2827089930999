"""`bughive-costs` as it is typed: its exit statuses, its one-line errors and what it writes where."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import polars as pl
import pytest
from played import History

from ledger.errors import NoSuchSession
from ledger.ledger import Ledger
from ledger.reader import session_ids
from ledger.relations import VIEWS
from reports import adhoc, cli
from reports.cli import main

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-c", "import sys; from reports.cli import main; sys.exit(main())"]
HISTORY = """
    session=crawl_1 task=analyze_page tags={"app":"shop"}
        REASONING   503
        FAST        ok    in=1000 out=200
    session=crawl_2 task=extract_forms at=2026-11-23T12:00:00
        GENERAL     ok    in=500 out=90
"""


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    history = History(tmp_path_factory.mktemp("cli") / "ledger")
    history.play(HISTORY)
    yield str(history.path)
    history.close()


def run(*arguments: str, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, without this process's settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BUGHIVE_")}
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The status and the one line on stderr; nothing may be on stdout."""
    status = main(arguments)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return status, captured.err.removeprefix("bughive-costs: ").rstrip("\n")


# exit statuses


def test_a_report_ends_in_status_0(ledger: str) -> None:
    done = run("report", "--ledger", ledger, "--session", "crawl_1")

    assert (done.returncode, done.stderr) == (0, "")
    assert "Cost" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_session_that_is_not_there_ends_in_status_1_and_names_the_nearest(ledger: str) -> None:
    done = run("report", "--ledger", ledger, "--session", "crawl_11")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"bughive-costs: no session 'crawl_11' in {ledger}; did you mean crawl_1 or crawl_2?\n"
    )


def test_a_ledger_that_is_not_there_ends_in_status_2_and_is_not_made(tmp_path: Path) -> None:
    done = run("report", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "bughive-costs: there is no ledger at data/ledger; name its folder with --ledger or BUGHIVE_LEDGER\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_broken_bughive_toml_ends_in_status_2_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "bughive.toml").write_text('[ledger]\npaht = "x"\n')
    done = run("report", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"bughive-costs: {tmp_path}/bughive.toml, line 2: unknown key 'paht'")
    assert done.stderr.count("\n") == 1


def test_the_ledger_is_found_as_the_settings_say(ledger: str, tmp_path: Path) -> None:
    (tmp_path / "bughive.toml").write_text(f'[ledger]\npath = "{ledger}"\n')

    assert run("sessions", "--format", "csv", cwd=tmp_path).stdout.count("\n") == 3
    assert run("sessions", "--format", "csv", cwd=tmp_path, BUGHIVE_LEDGER=str(tmp_path)).returncode == 2


def test_a_reader_that_has_seen_enough_is_no_error(ledger: str) -> None:
    sql = "select repeat('x', 100) from range(200000)"
    command = [*COMMAND, "sql", "--ledger", ledger, "--format", "csv", sql]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""


def test_on_a_terminal_tables_are_drawn(ledger: str) -> None:
    leader, follower = pty.openpty()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "120"}
    environ.pop("NO_COLOR", None)
    command = [*COMMAND, "report", "--ledger", ledger, "--session", "crawl_1"]
    with subprocess.Popen(command, env=environ, stdout=follower, stderr=follower) as process:
        os.close(follower)
        shown = b""
        while chunk := _read(leader):
            shown += chunk
    os.close(leader)
    assert process.returncode == 0
    assert b"\x1b[1m" in shown
    assert b"$0.000108" in shown


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # the other end was closed
        return b""


# wrong input, one line each


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "--by", "teir"], "--by knows no 'teir'; did you mean tier?"),
        (["report", "--format", "jsn"], "--format knows no 'jsn'; did you mean json?"),
        (
            ["report", "--tz", "Europe/Berln"],
            "--tz: there is no time zone 'Europe/Berln'; did you mean Europe/Berlin",
        ),
        (["report", "--tz", "Mars"], "--tz: there is no time zone 'Mars'; expected such as Europe/Berlin"),
        (["report", "--since", "2026-02-30"], "--since '2026-02-30' is no date or moment"),
        (
            ["report", "--since", "2026-03-01", "--until", "2026-02-01"],
            "nothing lies between --since 2026-03-01 and --until",
        ),
        (["report", "--last", "7"], "--last '7' is no span of time"),
        (["report", "--last", "7d", "--since", "2026-02-01"], "--last goes without --since"),
        (["sessions", "--limit", "-1"], "--limit '-1' is no number"),
        (["sql"], "give one SELECT, or the file that holds it with --file"),
        (["sql", "select 1", "--file", "x.sql"], "give one SELECT, or the file that holds it with --file"),
        (["sql", "--file", "/nowhere.sql"], "--file /nowhere.sql cannot be read: No such file or directory"),
        (["sql", "--file", "/bin/true"], "--file /bin/true is not text in UTF-8"),
        (["sql", "select 1", "-p", "x"], "-p 'x' names no value; expected name=text, or name:=12.5"),
        (["sql", "select 1", "-p", "x:=1e5"], "-p x:=1e5 is no number"),
        (["sql", "select $x", "-p", "x=1", "-p", "x=2"], "-p x is given more than once"),
        (
            ["sql", "select $x"],
            "this SQL cannot be run: Values were not provided for the following parameters: x;"
            " give each one, such as -p x=text",
        ),
        (["sql", "select 1", "-p", "x=1"], "this SQL cannot be run: "),
        (["sql", "select 1", "--timeout", "soon"], "--timeout 'soon' is no number"),
        (["sql", "select 1", "--memory", "lots"], "--memory 'lots' is no amount of memory"),
        (["sql", "select 1", "--memory", "0GB"], "--memory '0GB' is no amount of memory"),
        (["sql", "select interval 1 day as d", "--format", "parquet"], "this cannot be written as Parquet"),
        (["sql", "select 1", "--format", "parket"], "--format knows no 'parket'; did you mean parquet?"),
        (["report", "--by", "tier,modl"], "--by knows no 'modl'; did you mean model?"),
        (["performance", "--by", "cost"], "--by knows no 'cost'"),
        (["prices", "list", "--at", "foo"], "--at 'foo' is no date or moment"),
        (["sessions", "--limit", "x"], "--limit 'x' is no number"),
        (
            ["sql", "copy (select 1) to '/tmp/x'"],
            "only one SELECT can be run here, not a statement of kind COPY",
        ),
        (["sql", "select 1; select 2"], "only one SELECT can be run here, not 2 statements"),
        (["sql", "select * from read_text('/etc/passwd')"], "this SQL cannot be run: Cannot access file"),
        (["sql", "select nothing from sessions"], 'this SQL cannot be run: Referenced column "nothing"'),
        (["sql", "from sesions"], "this SQL cannot be run: there is no view sesions; did you mean sessions?"),
        (["sql", "from costs"], "this SQL cannot be run: there is no view costs; see bughive-costs schema"),
        (["sql", "select 'x'::int from sessions"], "this SQL cannot be run: Could not convert string"),
        (["sql", "select error(E'\\x1b[31mred')"], r"this SQL cannot be run: \x1b[31mred"),
        (["report", "--ledger", "/etc/passwd"], "/etc/passwd is a file, not a ledger"),
        (["sql", "--ledger", "/nowhere", "select 1"], "there is no ledger at /nowhere"),
        (["seal", "--ledger", "/nowhere"], "there is no ledger at /nowhere"),
        (["demo", "--seed", "x"], "--seed 'x' is no number"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    arguments: list[str], message: str, ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--ledger" not in arguments and arguments[0] != "demo":
        arguments = [*arguments, "--ledger", ledger]
    status, line = failed(capsys, *arguments)

    assert status == 2
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("repot", "Did you mean 'report'?"),
        ("report --foo", "; see bughive-costs report --help"),
        ("report x", "; see bughive-costs report --help"),
        ("--foo", "; see bughive-costs --help"),
        ("budget", "Missing command; see bughive-costs budget --help"),
        ("budget set", "Missing argument 'USD'; see bughive-costs budget set --help"),
        ("budget set 5", "Missing option '--scope'; see bughive-costs budget set --help"),
    ],
)
def test_a_command_line_that_cannot_be_parsed_is_one_line_that_says_what_to_see(
    words: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = failed(capsys, *words.split())
    assert status == 2
    assert line.endswith(advice)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bughive-costs {metadata.version('bughive-costs')}\n"


def test_an_unforeseen_error_is_one_line_unless_debugging(
    ledger: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("how\ncould this be")

    monkeypatch.setattr(cli, "_show", broken)
    monkeypatch.delenv("BUGHIVE_DEBUG", raising=False)
    status, line = failed(capsys, "report", "--ledger", ledger)
    assert status == 2
    assert line == "ZeroDivisionError: how could this be (BUGHIVE_DEBUG=1 shows where)"

    monkeypatch.setenv("BUGHIVE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["report", "--ledger", ledger])


@pytest.mark.parametrize("option", ["--session", "--format", "--tz"])
def test_an_option_given_twice_is_refused_rather_than_dropped(
    option: str, ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = failed(capsys, "report", "--ledger", ledger, option, "tier", f"{option}=model")
    assert (status, line) == (2, f"{option} is given more than once; give it once")


@pytest.mark.parametrize("words", ["report", "report --help", "--help", "--version"])
@pytest.mark.parametrize(("redirect", "status"), [(">/dev/full", 2), (">&-", 0)])
def test_output_that_cannot_be_written_is_one_line(
    redirect: str, status: int, words: str, ledger: str
) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(COMMAND)} {words} {redirect}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "BUGHIVE_LEDGER": ledger},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    told = "bughive-costs: the output cannot be written: No space left on device\n"
    assert done.stderr == (told if status else "")


def test_ctrl_c_reaches_a_query_that_runs() -> None:
    interrupted, running = threading.Event(), threading.Event()

    class Busy:
        """A connection whose query goes on until it is interrupted."""

        interrupt = staticmethod(interrupted.set)

    def query() -> None:
        running.set()
        assert interrupted.wait(timeout=30)

    def press_ctrl_c() -> None:
        assert running.wait(timeout=30)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    pressing = threading.Thread(target=press_ctrl_c)
    pressing.start()
    with pytest.raises(KeyboardInterrupt):
        adhoc._interruptible(cast(Any, Busy()), query)
    pressing.join()
    assert interrupted.is_set()


@pytest.mark.parametrize("made_of_it", [RuntimeError("Query interrupted"), NoSuchSession("none"), OSError()])
def test_a_ctrl_c_is_one_whatever_a_library_makes_of_it(
    made_of_it: Exception,
    ledger: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def pressed(*_: object) -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise made_of_it from error
        return 0

    monkeypatch.setattr(cli, "_show", pressed)
    assert failed(capsys, "report", "--ledger", ledger) == (130, "interrupted")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("module", ["reports.cli", "duckdb"])
def test_a_ctrl_c_while_a_module_is_imported_ends_in_a_line(module: str, ledger: str) -> None:
    code = f"""if True:
        import signal, sys
        class Pressed:
            def find_spec(self, name, *_):
                if name == {module!r}:
                    signal.raise_signal(signal.SIGINT)
        sys.meta_path.insert(0, Pressed())
        from reports.__main__ import main
        sys.exit(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", code, "report", "--ledger", ledger],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "bughive-costs: interrupted\n")


def test_a_mistyped_view_is_answered_with_the_nearest(
    ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = failed(capsys, "sql", "--ledger", ledger, "select * from attemps")
    assert status == 2
    assert "attempts" in line


def test_a_damaged_ledger_is_refused_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = History(tmp_path / "ledger")
    history.play(HISTORY)
    history.ledger.seal()
    history.close()
    segment = next(history.path.glob("events/date=2026-11-23/*.parquet"))
    segment.unlink()

    status, line = failed(capsys, "report", "--ledger", str(history.path))
    assert status == 2
    assert str(segment) in line
    assert line.endswith("; restore it, or read around it with --allow-damage")
    for other in ("budget list", "prices list"):
        assert failed(capsys, *other.split(), "--ledger", str(history.path))[1].endswith("; restore it")
    assert main(["report", "--ledger", str(history.path), "--allow-damage", "--format", "json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["requests"] == 1
    assert "what is damaged is left out, and figures may be too small" in told.err
    assert str(segment) in told.err
    assert told.err.endswith("; restore it\n")


# what is written


def test_report_as_json_has_money_as_strings(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--ledger", ledger, "--session", "crawl_1", "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)

    assert report["cost_usd"] == "0.000108000000"
    assert report["in_doubt"] == {"attempts": 0, "ceiling_usd": "0.000000000000"}
    assert [row["tier"] for row in report["by_tier"]] == ["REASONING", "FAST"]
    assert sum(Decimal(row["cost_usd"]) for row in report["by_tier"]) == Decimal(report["cost_usd"])


def test_report_by_a_key_as_csv(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--ledger", ledger, "--by", "day", "--format", "csv"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()

    assert header.startswith("day,requests,attempts,failed_attempts,input_tokens,")
    assert [row.split(",")[:3] for row in rows] == [["2026-11-22", "1", "2"], ["2026-11-23", "1", "1"]]


def test_report_in_a_period(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    period = ["--since", "2026-11-23", "--until", "2026-11-24"]
    assert main(["report", "--ledger", ledger, *period, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)

    assert report["requests"] == 1
    assert (report["since"], report["until"]) == ("2026-11-23T00:00:00+00:00", "2026-11-24T00:00:00+00:00")


def test_a_session_outside_the_period_has_cost_nothing_there(
    ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    period = ["--session", "crawl_1", "--since", "2026-11-23"]
    assert main(["report", "--ledger", ledger, *period, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)

    assert (report["requests"], report["cost_usd"]) == (0, "0.000000000000")


@pytest.mark.parametrize("format", ["table", "markdown"])
@pytest.mark.parametrize(
    ("words", "title"),
    [
        (["report"], "All sessions from"),
        (["report", "--session", "crawl_1"], "Session crawl_1 from"),
        (["sessions"], "Sessions begun from"),
        (["performance"], "Performance from"),
    ],
)
def test_a_table_says_of_which_period_it_is(
    words: list[str], title: str, format: str, ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    within = ["--since", "2026-11-22", "--until", "2026-11-23T01:30", "--tz", "Asia/Tokyo"]
    assert main([*words, *within, "--ledger", ledger, "--format", format]) == 0
    told = capsys.readouterr().out.splitlines()[0].removeprefix("# ")
    assert told == f"{title} 2026-11-22 00:00 until 2026-11-23 01:30 (Asia/Tokyo)"


@pytest.mark.parametrize("command", ["report", "sessions", "performance"])
def test_an_empty_ledger_is_told_in_a_line_and_not_in_heads_of_columns(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger.open(tmp_path / "ledger", "process-crash", auto_seal=False):
        pass
    for within in ([], ["--until", "2026-11-01"]):
        assert main([command, "--ledger", str(tmp_path / "ledger"), *within]) == 0
        told = capsys.readouterr().out
        when = "until 2026-11-01 00:00 (UTC)" if within else "yet"
        assert re.search(
            f"\n\n(nothing was asked|no session began|no model was asked) {re.escape(when)}\n$", told
        )
        assert "Model " not in told
        assert "Session " not in told


def test_the_table_of_a_report_ends_in_its_total(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--ledger", ledger, "--by", "session"]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert lines[0] == "All sessions"
    assert [line.split()[0] for line in lines[-3:]] == ["crawl_2", "crawl_1", "Total"]
    assert lines[-1].split()[-1] == "$0.000237"


def test_sessions_are_listed_latest_first(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sessions", "--ledger", ledger, "--format", "json", "--tz", "Europe/Berlin"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert [session["session_id"] for session in found] == ["crawl_2", "crawl_1"]
    assert found[0]["first_at"] == "2026-11-23T13:00:00.000000+01:00"
    assert found[1]["cost_usd"] == "0.000108000000"
    assert found[1]["fallbacks"] == 1

    assert main(["sessions", "--ledger", ledger, "--limit", "1"]) == 0
    *_, total, _, note = capsys.readouterr().out.splitlines()
    assert total.split() == ["Total", "of", "all", "2", "2", "0", "1,500", "290", "$0.000237"]
    assert note == "and 1 earlier; --limit 0 shows all"
    assert main(["sessions", "--ledger", ledger]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["Total", "2"]
    assert main(["sessions", "--ledger", ledger, "--until", "2026-11-23", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("crawl_1,")


def test_sql_in_each_format(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "select session_id, cost_usd, requests, null as nothing from sessions order by 1 limit 1"
    expected = {
        "json": '[\n  {\n    "session_id": "crawl_1",\n    "cost_usd": "0.000108000000",\n'
        '    "requests": 1,\n    "nothing": null\n  }\n]\n',
        "csv": "session_id,cost_usd,requests,nothing\ncrawl_1,0.000108000000,1,\n",
        "table": "  session_id        cost_usd  requests  nothing\n"
        "  crawl_1     0.000108000000         1  -\n",
        "markdown": "| session_id | cost_usd | requests | nothing |\n| --- | ---: | ---: | --- |\n"
        "| crawl_1 | 0.000108000000 | 1 | - |\n",
    }
    for format, text in expected.items():
        assert main(["sql", "--ledger", ledger, "--format", format, sql]) == 0
        assert capsys.readouterr().out == text


def test_sql_without_rows_and_with_repeated_names(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sql", "--ledger", ledger, "select 1 as a, 2 as a from sessions where false"]) == 0
    assert capsys.readouterr().out.split() == ["a", "a_2"]
    assert main(["sql", "--ledger", ledger, "--format", "json", "select 1 as a, 2 as a"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"a": 1, "a_2": 2}]


def test_sql_takes_texts_and_numbers_by_name(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "select typeof($text) as text, typeof($number) as number, $text || '' as value, $number + 1 as next"
    given = ["-p", "text=12", "--param", "number:=12.5"]
    assert main(["sql", "--ledger", ledger, "--format", "json", sql, *given]) == 0
    (row,) = json.loads(capsys.readouterr().out)

    assert row["text"] == "VARCHAR"
    assert row["number"].startswith("DECIMAL")
    assert (row["value"], Decimal(row["next"])) == ("12", Decimal("13.5"))


def test_no_value_is_ever_taken_for_sql(ledger: str, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "select count(*) as n from attempts where session_id = $session"
    assert main(["sql", "--ledger", ledger, "--format", "csv", sql, "-p", "session=' or true --"]) == 0
    assert capsys.readouterr().out == "n\n0\n"


def test_sql_from_a_file_and_from_standard_input(ledger: str, tmp_path: Path) -> None:
    (tmp_path / "ask.sql").write_text("-- how many\nselect count(*) as n from attempts;\n")
    read = run("sql", "--ledger", ledger, "--file", str(tmp_path / "ask.sql"), "--format", "csv")
    piped = subprocess.run(
        [*COMMAND, "sql", "--ledger", ledger, "--file", "-", "--format", "csv"],
        input="select 2 as n", env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert (read.stdout, piped.stdout) == ("n\n3\n", "n\n2\n")


def test_sql_as_parquet_keeps_types_and_is_not_for_a_terminal(
    ledger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "attempts.parquet"
    command = [
        *COMMAND,
        "sql",
        "--ledger",
        ledger,
        "--format",
        "parquet",
        "select *, 1 as x, 2 as x from attempts",
    ]
    with file.open("wb") as out:
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=out, check=True)
    frame = pl.read_parquet(file)
    assert frame.schema["cost_usd"] == pl.Decimal(38, 12)
    assert frame.schema["started_at"] == pl.Datetime("us", "UTC")
    assert frame.columns[-2:] == ["x", "x_2"]
    assert frame["cost_usd"].sum() == Decimal("0.000237")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdout", Terminal())
    assert main(["sql", "--ledger", ledger, "--format", "parquet", "select 1"]) == 2
    assert "is not for a terminal" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["select count(*) from range(1000000000000)", "--timeout", "1"],
            "this SQL was still running after 1 s",
        ),
        (
            ["select repeat('x', 1000) as x from range(100000)", "--memory", "20MB"],
            "this SQL needs more than 20MB",
        ),
        (
            ["select list(range) as x from range(50000000)", "--memory", "20MB", "--format", "parquet"],
            "this SQL needs more than 20MB of memory",
        ),
    ],
)
def test_sql_keeps_to_its_limits(
    arguments: list[str], message: str, ledger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, line = failed(capsys, "sql", "--ledger", ledger, *arguments)
    assert status == 2
    assert line.startswith(message)


def test_schema_shows_the_views_and_the_columns_of_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:13]] == list(VIEWS)

    assert main(["schema", "sessions"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cost_usd", "DECIMAL(38,12)", "USD"] in [words[:3] for words in shown]
    assert ["input_tokens", "BIGINT", "tokens"] in [words[:3] for words in shown]

    assert main(["schema", "attempts", "--format", "json"]) == 0
    attempts = json.loads(capsys.readouterr().out)
    assert (attempts["view"], attempts["grain"]) == ("attempts", "attempt_id")
    latency = next(column for column in attempts["columns"] if column["column"] == "latency_ms")
    assert (latency["type"], latency["unit"]) == ("DOUBLE", "ms")

    assert main(["schema", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {row["view"] for row in rows} == set(VIEWS)


def completed(words: str, **environ: str) -> list[str]:
    """What bash is told when tab is pressed after the words."""
    asked = {"_BUGHIVE_COSTS_COMPLETE": "complete_bash", "COMP_WORDS": f"bughive-costs {words}"}
    return run(COMP_CWORD=str(len(words.split(" "))), **asked, **environ).stdout.split()


def test_a_shell_completes_commands_keys_views_and_sessions(ledger: str, tmp_path: Path) -> None:
    assert completed("per") == ["performance"]
    assert completed("report --by tier,m") == ["tier,model"]
    assert completed("schema sess") == ["sessions"]
    assert completed(f"report --ledger {ledger} --session crawl_") == ["crawl_1", "crawl_2"]
    assert completed("report --session crawl_", BUGHIVE_LEDGER=ledger) == ["crawl_1", "crawl_2"]
    assert completed("report --session crawl_", BUGHIVE_LEDGER=str(tmp_path / "none")) == []


def test_sealed_sessions_are_completed_too(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play(HISTORY)
    history.ledger.seal()
    history.play("session=crawl_3\n    FAST ok in=1 out=1")
    assert session_ids(history.path, "crawl_", 50) == ["crawl_1", "crawl_2", "crawl_3"]
    assert session_ids(history.path, "crawl_", 2) == ["crawl_1", "crawl_2"]
    assert session_ids(history.path, "x", 50) == []
    history.close()


def test_the_shell_that_asks_is_shown_its_script() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join([*COMMAND, '--show-completion'])}; true"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "complete -o default -F _bughive_costs_completion bughive-costs" in done.stdout


def test_seal_says_what_it_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = History(tmp_path / "ledger")
    history.play(HISTORY)
    history.close()

    assert main(["seal", "--ledger", str(history.path)]) == 0
    assert capsys.readouterr().out == "sealed 13 events into 2 segments, removed 0 journals\n"
    assert main(["report", "--ledger", str(history.path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost_usd"] == "0.000237000000"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for command in ("report", "sessions", "performance", "sql", "schema", "seal", "demo"):
        assert f"\n  {command} " in shown


@pytest.mark.parametrize("group", [(), ("budget",), ("prices",)])
def test_every_summary_of_a_command_stands_in_full(
    group: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*group, "--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def commands(capsys: pytest.CaptureFixture[str], *group: str) -> list[list[str]]:
    """Every command, or those of a group, as they are typed."""
    assert main([*group, "--help"]) == 0
    _, _, listed = capsys.readouterr().out.partition("Commands:")
    names = re.findall(r"^  (\w+)  ", listed, re.MULTILINE)
    return [each for name in names for each in commands(capsys, *group, name) or [[*group, name]]]


def test_help_names_arguments_as_they_are_meant_and_no_type_of_python(
    capsys: pytest.CaptureFixture[str],
) -> None:
    every = commands(capsys)
    assert {"settle", "budget set", "prices import", "sql"} <= {" ".join(command) for command in every}
    for command in every:
        assert main([*command, "--help"]) == 0
        told = capsys.readouterr().out
        assert not re.findall(r"[<{]\w+.*|\[\[.*", told), command
        assert f"Examples:\n    bughive-costs {' '.join(command)}" in told

    main(["settle", "--help"])
    told = capsys.readouterr().out
    assert told.startswith("Usage: bughive-costs settle [OPTIONS] [AMOUNT] [ATTEMPT_ID]\n")
    assert "\n  [AMOUNT] [ATTEMPT_ID]  USD with billed; one attempt.\n" in told


@pytest.mark.parametrize("command", ["report", "sessions", "performance", "sql", "schema"])
def test_the_help_of_a_command_has_examples_that_work(
    command: str,
    ledger: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main([command, "--help"]) == 0
    examples = re.findall(r"^    bughive-costs (.*)$", capsys.readouterr().out, re.MULTILINE)

    assert len(examples) >= 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUGHIVE_LEDGER", ledger)
    (tmp_path / "report.sql").write_text("select * from attempts where session_id = $session limit $most")
    for example in examples:
        words = shlex.split(example.partition(" >")[0].replace("crawl_session_123", "crawl_1"))
        with (tmp_path / "out").open("w") as out:
            monkeypatch.setattr("sys.stdout", out)
            assert main(words) == 0, example
        assert (tmp_path / "out").stat().st_size


def test_a_report_loads_nothing_it_does_not_need(ledger: str) -> None:
    code = (
        "import sys; from reports.cli import main; status = main(sys.argv[1:]);"
        " heavy = {'pydantic', 'pyarrow', 'polars', 'rich', 'httpx', 'numpy', 'pytz'} & set(sys.modules);"
        " sys.exit(f'{heavy} loaded' if heavy else status)"
    )
    arguments = ["report", "--ledger", ledger, "--session", "crawl_1", "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
