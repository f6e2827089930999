"""`bughive-costs nightly`: figures that add up, files that are private and the same each time, a status."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import played
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nightly_month import LAST_DAY, month_of_crawls
from played import History

from ledger.events import BudgetSet
from reports import nightly_charts, nightly_figures
from reports.cli import main
from reports.nightly import _words, day_of
from reports.nightly_figures import Row, read_night
from reports.nightly_page import Integrity
from reports.options import UsageError, period
from reports.spend import spend_report

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "reports.cli"]
DAY = date(2026, 11, 23)
MONTH = """
    session=crawl-0 task=analyze_page at=2026-10-31T23:30:00
        REASONING      timeout   ceiling=0.04
    session=crawl-1 task=analyze_page at=2026-11-16T09:00:00
        REASONING      ok        in=2000 out=400
    session=crawl-2 task=analyze_page at=2026-11-22T09:00:00
        REASONING      ok        in=1000 out=200
    session=crawl-3 task=analyze_page at=2026-11-23T00:30:00
        REASONING      429       says=slow-down
        REASONING      timeout   ceiling=0.01
        FAST           ok        in=1000 out=200 ms=800
    session=crawl-3 task=plan_crawl_strategy at=2026-11-23T14:15:00
        ORCHESTRATOR   ok        in=100 cached=2000 out=50 list=0.00825 billed=0.008 ms=2000
    session=crawl-4 task=format_ticket at=2026-11-23T15:00:00
        FAST           ok        in=5 out=5 list=none ceiling=0.3
    session=crawl-4 task=format_ticket at=2026-11-23T15:30:00
        FAST           503       list=0.002 says=no-room
    task=extract_forms at=2026-11-23T23:45:00
        GENERAL        pending   ceiling=0.5
    session=crawl-5 task=extract_forms at=2026-11-24T00:00:01
        GENERAL        ok        in=500 out=90
"""
FAST_COST = Decimal("0.000108")  # 1000 × 0.06 + 200 × 0.24 per million
FAILURE_COST = Decimal("0.002")
REASONING_COST = Decimal("0.000490")  # 1000 × 0.27 + 200 × 1.10 per million
HOSTILE = (
    "<script>alert(1)</script>",
    "=cmd|'/C_calc'!A0",
    "\u202etxt.exe",
    "\"'><img/src=x/onerror=alert(1)>",
    "{{7*7}}</style>",
    "x" * 200,
    "🦊",
)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    history = History(tmp_path_factory.mktemp("nightly") / "ledger")
    history.play(MONTH)
    yield history.path
    history.close()


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path / "ledger")
    yield made
    made.close()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page without its pictures, where they say nothing of what is tested: they take a second."""
    monkeypatch.setattr(nightly_charts, "_svg", lambda chart: "<svg></svg>")


def run(history: Path, out: Path, *more: str) -> int:
    return main(["nightly", "--ledger", str(history), "--out", str(out), "--date", f"{DAY}", *more])


def text_of(out: Path, suffix: str = "html") -> str:
    return (out / f"bughive-costs-{DAY}.{suffix}").read_text("utf-8")


# figures


def test_a_day_is_what_it_cost_and_what_is_not_known_of_it(ledger: Path) -> None:
    day = read_night(ledger, DAY).one("day")

    assert day.cost_usd == FAST_COST + Decimal("0.008") + FAILURE_COST
    assert day.list_cost_usd == FAST_COST + Decimal("0.00825") + FAILURE_COST
    assert day.failed_cost_usd == FAILURE_COST
    assert (day.requests, day.succeeded_requests, day.failed_requests, day.open_requests) == (5, 3, 1, 1)
    assert (day.attempts, day.failed_attempts, day.fallbacks, day.retries) == (7, 3, 1, 1)
    assert (day.unpriced_attempts, day.unpriced_ceiling_usd) == (1, Decimal("0.3"))
    assert (day.in_doubt_attempts, day.in_doubt_ceiling_usd) == (1, Decimal("0.01"))
    assert (day.in_flight_attempts, day.in_flight_ceiling_usd) == (1, Decimal("0.5"))


def test_it_stands_beside_the_day_before_the_week_before_and_the_month(ledger: Path) -> None:
    night = read_night(ledger, DAY)

    assert night.one("day_before").cost_usd == REASONING_COST
    assert night.one("week_before").cost_usd == 2 * REASONING_COST
    assert night.one("month").cost_usd == 3 * REASONING_COST + FAST_COST + Decimal("0.01")
    assert read_night(ledger, date(2026, 11, 1)).one("month").cost_usd == 0


@pytest.mark.parametrize(
    ("day", "tz"),
    [
        (DAY, "UTC"),
        (DAY, "Europe/Berlin"),
        (date(2026, 11, 24), "Pacific/Kiritimati"),
        (date(2026, 10, 31), "UTC"),
    ],
)
def test_a_day_is_what_the_report_of_that_day_says(ledger: Path, day: date, tz: str) -> None:
    found = read_night(ledger, day, tz=tz).one("day")
    following = date.fromordinal(day.toordinal() + 1)
    within = period(f"{day}", f"{following}", None, tz, datetime.now(UTC))
    expected = spend_report(ledger, period=within, tz=tz).total

    shared = set(expected) & set(Row._fields)
    assert len(shared) > 15
    assert {name: getattr(found, name) for name in shared} == {name: expected[name] for name in shared}


def test_every_cut_of_the_day_adds_up_to_the_day(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nightly_figures, "TOP", 1)
    night = read_night(ledger, DAY)
    day = night.one("day")

    for cut in (["tier"], ["task"], ["session", "session_rest"]):
        for name in (
            "requests",
            "attempts",
            "failed_attempts",
            "input_tokens",
            "cost_usd",
            "failed_cost_usd",
        ):
            assert sum(getattr(row, name) or 0 for row in night.of(*cut)) == getattr(day, name), (cut, name)
    assert sum(row.cost_usd or 0 for row in night.of("hour") if row.day == DAY) == day.cost_usd
    assert sum(row.cost_usd or 0 for row in night.of("day_tier") if row.day == DAY) == day.cost_usd
    assert [row.session_id for row in night.of("session")] == ["crawl-3"]
    assert [row.requests for row in night.of("session_rest")] == [3]


def test_the_hours_of_a_day_of_25_hours_are_25(history: History) -> None:
    history.play("""
        at=2026-10-24T22:00:00
            FAST   ok  in=1000 out=200
        at=2026-10-25T22:59:00
            FAST   ok  in=1000 out=200
    """)
    hours = read_night(history.path, date(2026, 10, 25), tz="Europe/Berlin").of("hour")

    assert [(row.hour, row.cost_usd) for row in hours] == [(0, FAST_COST), (24, FAST_COST)]


def test_what_is_in_doubt_is_told_until_it_is_settled_and_not_before_it_began(ledger: Path) -> None:
    def in_doubt(day: date) -> list[Any]:
        rows = read_night(ledger, day).of("in_doubt")
        return [(row.day, row.model, row.in_doubt_ceiling_usd, row.in_flight_ceiling_usd) for row in rows]

    old = (date(2026, 10, 31), "deepseek/deepseek-chat")
    assert in_doubt(date(2026, 10, 30)) == []
    assert in_doubt(date(2026, 11, 22)) == [(*old, Decimal("0.04"), 0)]
    assert in_doubt(DAY) == [
        (*old, Decimal("0.05"), 0),
        (DAY, "qwen/qwen-2.5-72b-instruct", 0, Decimal("0.5")),
    ]


def test_failures_are_told_with_what_they_cost_and_the_latest_words(ledger: Path) -> None:
    rows = read_night(ledger, DAY).of("failure")

    assert [(row.model, row.error_type, row.attempts, row.error_message) for row in rows] == [
        ("deepseek/deepseek-chat", "rate_limited", 1, "slow-down"),
        ("deepseek/deepseek-chat", "timeout", 1, None),
        ("qwen/qwen-2.5-32b-instruct", "server_error", 1, "no-room"),
    ]


def test_the_models_of_a_day_have_times_and_a_cost_per_answer(ledger: Path) -> None:
    fast = next(row for row in read_night(ledger, DAY).of("model") if "32b" in (row.model or ""))

    assert (fast.latency_ms_p50, fast.output_tokens_per_s) == (900.0, 205 / 1.8)
    assert fast.cost_per_success_usd == (FAST_COST + FAILURE_COST) / 2


def test_figures_do_not_depend_on_the_order_in_which_events_are_read(tmp_path: Path) -> None:
    history = month_of_crawls(tmp_path / "ledger", requests_a_day=24)
    readings = [read_night(history.path, LAST_DAY)]
    history.ledger.seal()
    readings += [read_night(history.path, LAST_DAY) for _ in range(2)]
    history.close()

    assert readings == [readings[0]] * 3


def test_a_month_begins_with_the_midnight_of_its_first(history: History) -> None:
    history.play("""
        at=2026-10-31T23:59:59
            GENERAL  ok  in=500 out=90
        at=2026-11-01T00:00:00
            FAST     ok  in=1000 out=200
    """)

    night = read_night(history.path, date(2026, 11, 30))
    assert night.one("month").cost_usd == FAST_COST
    assert [row.day for row in night.of("day_tier")] == [date(2026, 11, 1)]


def test_what_has_no_price_is_never_nothing(history: History) -> None:
    history.play(f"session=s-1 at={DAY}T10:00:00\n    FAST  ok  in=5 out=5 list=none")

    night = read_night(history.path, DAY)
    assert night.one("day").cost_usd is None
    assert [row.cost_usd for row in night.of("session")] == [None]


# budgets


@pytest.mark.usefixtures("undrawn")
def test_a_broken_hard_budget_is_status_1_and_on_the_page(
    history: History, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history.play(MONTH)
    history.record(BudgetSet(scope="month", mode="hard", limit_usd=Decimal("0.009")))

    assert run(history.path, tmp_path / "out") == 1
    assert "; 1 hard budget broken; " in capsys.readouterr().out
    assert "Hard budget broken: month</strong> $0.011578 was spent of $0.009000" in text_of(tmp_path / "out")


def test_budgets_of_days_and_months_are_of_the_day_reported_on(history: History) -> None:
    history.play(MONTH)
    history.record(
        BudgetSet(scope="day", mode="warn", limit_usd=Decimal("0.005")),
        BudgetSet(scope="month", mode="hard", limit_usd=Decimal(1)),
        BudgetSet(scope="session", scope_id="crawl-1", mode="hard", limit_usd=Decimal("0.0001")),
    )

    def spent(day: date) -> dict[str | None, Decimal | None]:
        return {row.scope: row.spent_usd for row in read_night(history.path, day).of("budget")}

    a_session = {"session": 2 * REASONING_COST}
    assert spent(date(2026, 11, 16)) == {"day": 2 * REASONING_COST, "month": 2 * REASONING_COST} | a_session
    assert spent(date(2026, 10, 31)) == {"day": 0, "month": 0} | a_session
    assert [row.scope for row in read_night(history.path, DAY).broken_budgets()] == ["session"]


def test_a_budget_of_the_day_counts_the_day_of_its_own_zone(history: History) -> None:
    history.play("""
        at=2026-11-23T12:00:00
            FAST     ok  in=1000 out=200
        at=2026-11-23T23:30:00
            GENERAL  ok  in=500 out=90
    """)
    history.record(
        BudgetSet(scope="day", limit_usd=Decimal(1), mode="hard", tz="Europe/Berlin"),
        BudgetSet(scope="day", limit_usd=Decimal(1), mode="warn", tz="UTC"),
    )
    budgets = read_night(history.path, DAY).of("budget")

    assert {row.tz: row.spent_usd for row in budgets} == {
        "Europe/Berlin": FAST_COST,
        "UTC": FAST_COST + Decimal("0.000129"),  # 500 × 0.15 + 90 × 0.60 per million
    }


@pytest.mark.usefixtures("undrawn")
def test_a_call_that_cost_more_than_its_own_budget_is_a_broken_one(history: History, tmp_path: Path) -> None:
    history.play(f"at={DAY}T10:00:00 budget=0.0001\n    FAST  ok  in=1000 out=200")

    assert read_night(history.path, DAY).one("day").over_limit_requests == 1
    assert run(history.path, tmp_path / "out") == 1
    assert "1 request cost more than the budget_usd of the call" in text_of(tmp_path / "out")


@pytest.mark.usefixtures("undrawn")
def test_a_page_of_another_ledger_is_not_replaced(
    ledger: Path, history: History, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ledger, tmp_path / "out") == 0
    before = text_of(tmp_path / "out"), text_of(tmp_path / "out", "json")
    assert json.loads(before[1])["ledger_id"] == json.loads((ledger / "ledger.id").read_text())["ledger_id"]

    assert run(history.path, tmp_path / "out") == 2
    assert "is of another ledger" in capsys.readouterr().err
    assert (text_of(tmp_path / "out"), text_of(tmp_path / "out", "json")) == before
    assert run(ledger, tmp_path / "out") == 0


# damage


def damaged(history: History, content: bytes, day: date = DAY) -> None:
    """Seal it, and write a segment of a day anew."""
    history.ledger.seal()
    segment = next(history.path.glob(f"events/date={day}/*-????????.parquet"))
    segment.chmod(0o600)
    segment.write_bytes(content or segment.read_bytes()[:-1])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("content", [b"", b"PAR1 no more PAR1"])
def test_a_damaged_ledger_is_status_1_and_the_page_says_what_is_wrong(
    history: History, tmp_path: Path, content: bytes
) -> None:
    history.play(MONTH)
    damaged(history, content)

    assert run(history.path, tmp_path / "out") == 1
    page, data = text_of(tmp_path / "out"), json.loads(text_of(tmp_path / "out", "json"))
    assert "Damaged: events/date=2026-11-23/" in page
    assert "The ledger did not pass" in page
    assert (data["sound"], len(data["findings"]) > 0) == (False, True)
    assert data["sections"]["day_before"][0]["requests"] == 1  # what can be read is there


@pytest.mark.usefixtures("undrawn")
def test_where_nothing_can_be_read_the_page_is_written_without_figures(
    history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    history.play(MONTH)
    damaged(history, b"")
    monkeypatch.setattr(nightly_figures, "_COUNTED", "select no_such_column from attempts")

    assert run(history.path, tmp_path / "out") == 1
    assert "There are no figures" in text_of(tmp_path / "out")
    assert f"{DAY}: no figures; damaged: " in capsys.readouterr().out
    assert pq.read_table(tmp_path / "out" / f"bughive-costs-{DAY}.parquet").num_rows == 0


# files


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a night in which every name is hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    history = hostile_history(folder / "ledger")
    assert run(history.path, folder / "out") == 0
    history.close()
    return folder / "out"


def hostile_history(path: Path) -> History:
    history = History(path)
    with pytest.MonkeyPatch.context() as patched:
        for number, name in enumerate(HOSTILE):
            patched.setitem(played.ROUTES, name, ("openrouter", name))
            history.play(
                f"session={name} task={name} at={DAY}T1{number}:00:00\n"
                f"    {name}  503  says={name}\n    {name}  ok  in=10 out=10 list=0.0{number + 1}"
            )
    return history


def test_names_from_outside_are_text_in_the_page(written: Path) -> None:
    page = text_of(written)

    tags = set(re.findall(r"<([a-z]+)", page))
    assert tags.isdisjoint(
        {"script", "img", "iframe", "object", "embed", "form", "input", "link", "a", "base"}
    )
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{7*7}}&lt;/style&gt;" in page
    assert "\u202e" not in page
    assert "\\u202etxt.exe" in page
    assert (
        re.search(r"\son\w+=|javascript:|url\(|@import|\ssrc=|\shref=", re.sub(r">[^<]*<", "><", page))
        is None
    )


def test_the_page_allows_its_style_sheet_by_hash_and_nothing_else(written: Path) -> None:
    page = text_of(written)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)

    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy
    assert (
        policy[1] == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert " style=" not in page.replace("Content-Security", "")


def test_cells_that_a_spreadsheet_would_run_start_with_a_quote(written: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(text_of(written, "csv"))))

    sessions = [row["session_id"] for row in rows if row["section"] == "session"]
    assert "'=cmd|'/C_calc'!A0" in sessions
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]


def test_json_csv_and_parquet_say_the_same_with_exact_money(written: Path) -> None:
    data = json.loads(text_of(written, "json"))
    table = pq.read_table(written / f"bughive-costs-{DAY}.parquet")
    rows = list(csv.DictReader(io.StringIO(text_of(written, "csv"))))

    assert {field.type for field in table.schema if field.name.endswith("_usd")} == {pa.decimal128(38, 12)}
    assert data["sections"]["day"][0]["cost_usd"] == "0.280000000000"
    for section, expected in data["sections"].items():
        found = [row for row in table.to_pylist() if row["section"] == section]
        shown = [row for row in rows if row["section"] == section]
        assert len(found) == len(shown) == len(expected), section
        for row, exact, cells in zip(expected, found, shown, strict=True):
            for name, value in row.items():
                if name.endswith("_usd"):
                    assert (
                        value
                        == (None if exact[name] is None else f"{exact[name]:f}")
                        == (cells[name] or None)
                    )
                else:
                    assert value == (str(exact[name]) if isinstance(exact[name], date) else exact[name])
    assert {row["session_id"] for row in data["sections"]["session"]} == set(HOSTILE)


def test_files_are_private_and_whole(written: Path) -> None:
    assert sorted(path.suffix for path in written.iterdir()) == [".csv", ".html", ".json", ".parquet"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written.iterdir()} == {0o600}
    assert stat.S_IMODE(written.stat().st_mode) == 0o700


def test_a_second_run_in_another_process_writes_the_same_bytes(written: Path, tmp_path: Path) -> None:
    ledger = written.parent / "ledger"
    done = subprocess.run(
        [*COMMAND, "nightly", "--ledger", str(ledger), "--date", f"{DAY}", "--out", str(tmp_path / "again")],
        cwd=ROOT,
        env={**os.environ, "TZ": "Pacific/Auckland", "PYTHONHASHSEED": "7", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.usefixtures("undrawn")
def test_a_file_that_cannot_be_written_leaves_the_earlier_one(
    ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(ledger, out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(fd: int, data: bytes) -> int:
        os.write(fd, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ledger.files.write_all", full)
    capsys.readouterr()
    assert run(ledger, out) == 2
    assert "cannot be written to: No space left on device" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


# the command line


@pytest.mark.usefixtures("undrawn")
def test_a_day_without_a_request_is_a_page_too(
    history: History, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(history.path, tmp_path / "out") == 0
    assert capsys.readouterr().out.startswith(f"{DAY}: nothing was asked; ")
    assert "Nothing was asked." in text_of(tmp_path / "out")


NOW = datetime(2026, 11, 23, 23, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("word", "tz", "day"),
    [
        ("yesterday", "UTC", date(2026, 11, 22)),
        ("yesterday", "Europe/Berlin", date(2026, 11, 23)),
        ("today", "UTC", date(2026, 11, 23)),
        ("2026-11-24", "Europe/Berlin", date(2026, 11, 24)),
    ],
)
def test_a_day_is_named_by_its_date_or_from_today_in_the_zone(word: str, tz: str, day: date) -> None:
    assert day_of(word, tz, NOW) == day


@pytest.mark.parametrize("word", ["2026-11-24", "9999-12-31", "0001-01-02", "2026-02-30", "tomorrow", ""])
def test_a_day_that_has_not_begun_or_is_none_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="--date"):
        day_of(word, "UTC", NOW)


@pytest.mark.parametrize("place", ["a file", "a file/below", "ledger", "ledger/nightly"])
def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_read(
    history: History, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a file").write_text("kept")

    assert run(history.path, tmp_path / place) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "--out" in captured.err
    assert (tmp_path / "a file").read_text() == "kept"


def test_what_draws_the_page_is_loaded_by_nightly_alone(ledger: Path) -> None:
    code = (
        "import sys; from reports.cli import main; import reports.nightly, reports.nightly_figures; main({});"
        " sys.exit(str({{'altair', 'vl_convert', 'jinja2', 'markupsafe', 'pyarrow'}} & set(sys.modules)))"
    )
    for arguments in (["--help"], ["nightly", "--help"], ["sessions", "--ledger", str(ledger)]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr.strip() == "set()", arguments


def test_every_column_of_the_files_is_described() -> None:
    page = (ROOT / "docs/nightly.md").read_text("utf-8")

    described = re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)))
    assert sorted(described) == sorted(["date", *Row._fields])


def test_the_line_of_a_night_that_could_not_seal_reads_as_one_sentence() -> None:
    could_not = Integrity([], ["It could not be sealed: the disk is full"], "")
    words = "; ".join(_words(None, date(2026, 11, 22), could_not, True, Path("day.html")))
    assert words == "2026-11-22: no figures; it could not be sealed: the disk is full; day.html"
