"""The views as Polars frames: their types, their moment, and what is refused."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from played import History

import reports
from ledger.dictionary import described_views
from ledger.errors import DamagedLedger, LedgerError
from reports.frames import Frames

ROOT = Path(__file__).parents[1]
HISTORY = """
    session=crawl_1 task=analyze_page tags={"app":"shop"}
        REASONING   503
        FAST        ok    in=1000 out=200
    session=crawl_2 task=extract_forms at=2026-11-23T23:30:00
        GENERAL     ok    in=500 out=90
        GENERAL     timeout ceiling=0.01
"""
POLARS = {
    "VARCHAR": pl.String(),
    "BIGINT": pl.Int64(),
    "DOUBLE": pl.Float64(),
    "BOOLEAN": pl.Boolean(),
    "DATE": pl.Date(),
    "TIMESTAMP WITH TIME ZONE": pl.Datetime("us", "UTC"),
}


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    history = History(tmp_path_factory.mktemp("frames") / "ledger")
    history.play(HISTORY)
    yield history
    history.close()


@pytest.fixture(scope="module")
def ledger(history: History) -> Iterator[Frames]:
    with reports.open(history.path) as opened:
        yield opened


@pytest.mark.parametrize("view", described_views())
def test_every_view_is_a_frame_typed_as_the_dictionary_says(view: str, ledger: Frames) -> None:
    frame = getattr(ledger, view)()

    assert frame.columns == [column.name for column in described_views()[view].columns]
    for column in described_views()[view].columns:
        found = frame.schema[column.name]
        if column.type.startswith("DECIMAL"):
            assert isinstance(found, pl.Decimal)
            assert found.scale == 12
        elif column.type.startswith("MAP"):
            assert not frame[column.name].is_null().all()
        else:
            assert found == POLARS[column.type], column.name
    money = [name for name in frame.columns if re.search(r"_usd(_|$)", name)]
    assert all(isinstance(frame.schema[name], pl.Decimal) for name in money)


@pytest.mark.parametrize("view", [name for name in described_views() if "session_id" in
                                  [column.name for column in described_views()[name].columns]])  # fmt: skip
def test_a_session_of_a_view(view: str, ledger: Frames) -> None:
    everything, of_one = getattr(ledger, view)(), getattr(ledger, view)(session_id="crawl_1")

    assert of_one.equals(everything.filter(pl.col("session_id") == "crawl_1"))


def test_a_breakdown_has_tiers_in_their_order_and_exact_money(ledger: Frames) -> None:
    frame = ledger.tier_breakdown(session_id="crawl_1")

    assert frame["tier"].to_list() == ["REASONING", "FAST"]
    assert frame["cost_usd"].to_list() == [Decimal(0), Decimal("0.000108")]


def test_sql_takes_values_by_name(ledger: Frames) -> None:
    name = "crawl_1' or true --"
    select = "select count(*) as n from requests where session_id = $session or $cost > 1"

    assert ledger.sql(select, session="crawl_1", cost=Decimal("0.5"))["n"].to_list() == [1]
    assert ledger.sql(select, session=name, cost=0)["n"].to_list() == [0]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("drop view sessions", "only one SELECT can be run here, not a statement of kind DROP"),
        ("select * from read_text('/etc/passwd')", "this SQL cannot be run: Cannot access file"),
        ("select nothing from sessions", "this SQL cannot be run: Referenced column"),
        ("select $x", "this SQL cannot be run: "),
    ],
)
def test_nothing_but_the_ledger_can_be_read(sql: str, message: str, ledger: Frames) -> None:
    with pytest.raises(LedgerError, match=re.escape(message)):
        ledger.sql(sql)


def test_all_frames_are_of_the_moment_it_was_opened(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play(HISTORY)
    with reports.open(history.path) as before:
        history.play(HISTORY)
        history.ledger.seal()
        with reports.open(history.path) as after:
            assert (before.requests().height, after.requests().height) == (2, 4)
            assert before.sessions()["requests"].sum() == before.requests().height
    history.close()


def test_days_begin_where_they_are_asked_to(history: History) -> None:
    with reports.open(history.path, tz="Europe/Berlin") as berlin:
        assert [str(day) for day in berlin.daily_spend()["day"]] == ["2026-11-22", "2026-11-24"]
        assert berlin.sessions().schema["first_at"] == pl.Datetime("us", "Europe/Berlin")


def test_a_closed_ledger_says_so(history: History) -> None:
    ledger = reports.open(history.path)
    ledger.close()
    ledger.close()

    with pytest.raises(LedgerError, match="closed"):
        ledger.sessions()


def test_without_a_path_it_is_the_one_that_settings_name(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUGHIVE_LEDGER", str(history.path))
    with reports.open() as ledger:
        assert ledger.sessions().height == 2


def test_damage_is_refused_unless_told(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play(HISTORY)
    history.ledger.seal()
    history.close()
    next(history.path.glob("events/date=2026-11-23/*.parquet")).unlink()

    with pytest.raises(DamagedLedger, match="2026-11-23"):
        reports.open(history.path)
    with reports.open(history.path, allow_damage=True) as ledger:
        assert ledger.sessions()["session_id"].to_list() == ["crawl_1"]
    with pytest.raises(LedgerError, match="there is no ledger at"):
        reports.open(tmp_path / "nowhere")


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, reports; reports.open;"
        " print({'duckdb', 'polars', 'pyarrow', 'pydantic', 'rich', 'typer'} & set(sys.modules) or 'nothing')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "nothing\n"


def test_the_page_of_names_has_every_method() -> None:
    page = (ROOT / "docs/api.md").read_text("utf-8").partition("| method of `Frames` |")[2]
    public = {name for name, _ in inspect.getmembers(Frames, inspect.isfunction) if not name.startswith("_")}

    assert set(re.findall(r"^\| `\.(\w+)\(", page, re.MULTILINE)) == public - {"close"}
