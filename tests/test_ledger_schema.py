"""A ledger outlives the program that wrote it: older ones are read to the last figure, newer ones refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from events_by_hand import answered_request
from golden import figures, make

from ledger import lines
from ledger.errors import LedgerError
from ledger.events import EVENT_CLASSES
from ledger.ledger import Ledger
from ledger.lines import sealed_line
from ledger.reader import connect, scan
from ledger.relations import VIEWS
from ledger.schema import COLUMNS, SCHEMA_VERSION
from reports.cli import main

GOLDEN = Path(__file__).with_name("golden")
VERSIONS = sorted(int(folder.name[1:]) for folder in GOLDEN.glob("v*"))

# A version's columns, by name and kind. To change them is to write events that a program of this
# version cannot read whole: raise SCHEMA_VERSION, add the new hash here, and keep a golden ledger of
# the new version (tests/golden/make.py). Those of older versions stay as they are.
SCHEMAS = {1: "c46ad7407e9e4a2e", 2: "aa364b22891f6bab"}


@pytest.fixture(params=VERSIONS, ids=lambda version: f"v{version}")
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of a golden ledger, and what is expected of it."""
    kept = GOLDEN / f"v{request.param}"
    copy = tmp_path / "ledger"
    shutil.copytree(kept / "ledger", copy)
    return copy, json.loads((kept / "expected.json").read_text("utf-8"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def difference(expected: Any, found: Any, at: str = "") -> str | None:
    """Where something expected is not found so; what is found besides (a new column) does not matter."""
    if isinstance(expected, dict) and isinstance(found, dict):
        each = ((f"{at}.{name}", of, found.get(name)) for name, of in expected.items())
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        each = ((f"{at}[{number}]", *pair) for number, pair in enumerate(zip(expected, found, strict=True)))
    else:
        return None if expected == found else f"{at}: {expected!r} is expected, not {found!r}"
    differences = (difference(one, other, place) for place, one, other in each)
    return next(filter(None, differences), None)


# older ledgers


def test_there_is_a_golden_ledger_of_each_version() -> None:
    assert list(range(1, SCHEMA_VERSION + 1)) == VERSIONS, (
        "PYTHONPATH=.:tests python -m golden.make keeps one of this version"
    )


def test_the_columns_are_those_of_this_version() -> None:
    told = json.dumps([(column.name, column.kind) for column in COLUMNS])
    found = hashlib.sha256(told.encode()).hexdigest()[:16]
    assert SCHEMAS.get(SCHEMA_VERSION) == found, (
        f"the columns have changed (their hash is {found}), and schema {SCHEMA_VERSION} is in use: raise"
        " SCHEMA_VERSION in ledger/schema.py, add the hash to SCHEMAS,"
        " teach tests/golden/make.py the new columns, and run it; leave older golden ledgers as they are"
    )


def test_no_column_of_an_older_version_has_gone_or_changed_its_kind() -> None:
    for version in VERSIONS:
        events = json.loads((GOLDEN / f"v{version}" / "expected.json").read_text("utf-8"))["events"]
        assert {name for event in events for name in event} <= {column.name for column in COLUMNS}


def test_the_newest_golden_ledger_has_every_event_and_every_column() -> None:
    events = json.loads((GOLDEN / f"v{VERSIONS[-1]}" / "expected.json").read_text("utf-8"))["events"]

    assert {event["event_type"] for event in events} == {
        event_class.model_fields["event_type"].default for event_class in EVENT_CLASSES
    }
    assert {name for event in events for name in event} == {column.name for column in COLUMNS}


def test_the_first_golden_ledger_costs_what_was_reckoned_by_hand() -> None:
    expected = json.loads((GOLDEN / "v1" / "expected.json").read_text("utf-8"))
    billed = Decimal("0.000512345678")  # r-1, as the provider reported it
    listed = [
        "0.00049",  # r-2, at the second attempt
        "0.00005742",  # r-3, after its fallback
        "0.0525",  # r-6, above its ceiling
        "0.00087",  # r-10, over midnight
        *("0.0000108", "0.0000108"),  # r-11 and r-12, on both sides of the change to summer time
        "0.0000049",  # r-13, whose sync failed
    ]
    settled = Decimal("0.0003")  # r-3's first attempt, once its bill had come
    total = expected["reports"]["report"]

    assert Decimal(total["cost_usd"]) == billed + sum(map(Decimal, listed)) + settled
    assert (total["requests"], total["attempts"], total["fallbacks"]) == (14, 16, 1)
    assert total["in_doubt"] == {"attempts": 2, "ceiling_usd": "0.265000000000"}  # r-4 and r-9
    assert total["in_flight"] == {"attempts": 1, "ceiling_usd": "0.020000000000"}  # r-14
    assert total["unpriced_attempts"] == 1  # r-5


def test_a_golden_ledger_says_the_same_through_connect(
    golden: tuple[Path, dict[str, Any]],
) -> None:
    ledger, expected = golden
    before = bytes_of(ledger)

    found = figures.events_and_views_of(ledger)
    assert difference({name: of for name, of in expected.items() if name != "reports"}, found) is None
    assert bytes_of(ledger) == before, "a reader writes nothing"


def test_a_golden_ledger_says_the_same_at_a_plain_duckdb_prompt(
    golden: tuple[Path, dict[str, Any]],
) -> None:
    ledger, expected = golden
    found = figures.by_plain_duckdb(ledger, VIEWS)

    assert difference(expected["events"], found["events"]) is None
    assert difference(expected["views"], found) is None


def test_a_golden_ledger_says_the_same_in_polars(golden: tuple[Path, dict[str, Any]]) -> None:
    ledger, expected = golden
    assert difference(expected["events"], figures.by_scan(ledger)) is None


def test_a_golden_ledger_says_the_same_on_the_command_line(
    golden: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, expected = golden
    before = bytes_of(ledger)
    for command, report in expected["reports"].items():
        assert main([*command.split(), "--format", "json", "--ledger", str(ledger)]) == 0, command
        found = json.loads(capsys.readouterr().out)
        told = found["rows"] if " --by " in command else found
        assert difference(report, figures.plain(told)) is None, command
    assert bytes_of(ledger) == before, "a report writes nothing"


def test_a_golden_ledger_is_taken_up_again_and_everything_stays(
    golden: tuple[Path, dict[str, Any]],
) -> None:
    ledger, expected = golden
    before = bytes_of(ledger)
    with Ledger.open(ledger, auto_seal=False) as opened:
        assert opened.id == make.LEDGER_ID
        _still_has(ledger, expected)
        answered_request(opened, "r-new", session_id="s-new")
        opened.seal()
        _still_has(ledger, expected)
        with opened.connect() as connection:
            ends = connection.execute(
                "select request_id, status, reason from requests where request_id in ('r-14', 'r-new')"
                " order by all"
            ).fetchall()

    assert ends == [("r-14", "failed", "abandoned"), ("r-new", "completed", None)]
    after = bytes_of(ledger)
    for name, content in before.items():
        torn = name.endswith(".2.jsonl")  # its half line is no event, and is cut
        whole = content[: content.rindex(b"\n") + 1] if torn else content
        assert after[name].startswith(whole), name


def _still_has(ledger: Path, expected: dict[str, Any]) -> None:
    """Whether each event is there as it was, and the money is: what was in flight has ended since."""
    found = {
        (event["journal_id"], event["seq"]): event
        for event in figures.by_connection(ledger, "UTC", ["events"])["events"]
    }
    for event in expected["events"]:
        assert difference(event, found[event["journal_id"], event["seq"]]) is None
    with connect(ledger) as connection:
        cost = connection.execute("select sum(cost_usd) from attempts where session_id <> 's-new'").fetchone()
        other = connection.execute("select cost_usd from sessions where session_id is null").fetchone()
    assert cost
    assert other
    assert cost[0] + other[0] == Decimal(expected["reports"]["report"]["cost_usd"])


def test_a_golden_ledgers_state_is_derived_anew_from_all_versions_events(
    golden: tuple[Path, dict[str, Any]],
) -> None:
    ledger, _ = golden
    Ledger.open(ledger, auto_seal=False).close()
    told = {path.name for path in ledger.glob("state.db*")}
    derived = Ledger.recover(ledger)

    assert "state.db" in told
    assert (derived.ended, derived.listed_batches) == ([], 0), "opening has done all there was to do"


def test_a_golden_ledger_is_sound(
    golden: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, _ = golden
    Ledger.open(ledger, auto_seal=False).close()

    assert main(["verify", "--json", "--ledger", str(ledger)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sound"]
    assert found["head"]["ledger_id"] == make.LEDGER_ID


def test_a_golden_ledger_is_never_made_over(capsys: pytest.CaptureFixture[str]) -> None:
    before = bytes_of(GOLDEN)
    assert make.main() == 1
    assert "never changed" in capsys.readouterr().err
    assert {name: of for name, of in bytes_of(GOLDEN).items() if "__pycache__" not in name} == {
        name: of for name, of in before.items() if "__pycache__" not in name
    }


def test_what_the_maker_writes_today_says_the_same_as_what_is_kept(tmp_path: Path) -> None:
    make.make(tmp_path / "ledger")
    expected = json.loads((GOLDEN / f"v{SCHEMA_VERSION}" / "expected.json").read_text("utf-8"))
    assert difference(expected, figures.figures_of(tmp_path / "ledger")) is None


def test_golden_ledgers_are_small_and_hold_nothing_derived() -> None:
    for version in VERSIONS:
        kept = {path: path.stat().st_size for path in (GOLDEN / f"v{version}").rglob("*") if path.is_file()}
        assert sum(kept.values()) < 200_000
        assert not [path for path in kept if path.name in make.DERIVED]


# newer ledgers

_NEWER = SCHEMA_VERSION + 1


def _in_a_journal(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dead process of the next version has left its last event, with a field that nobody knows here."""
    (journal,) = set(path.glob("journals/*.jsonl")) - {path / "journals" / "empty.jsonl"}
    *_, last, _ = journal.read_bytes().split(b"\n")
    record = json.loads(last)
    later = {**record, "seq": record["seq"] + 1, "schema_version": _NEWER, "moon_phase": "full"}
    del later["check"]
    with journal.open("ab") as file:
        file.write(sealed_line(json.dumps(later, separators=(",", ":")).encode()[:-1]))
    return journal


def _in_a_segments_footer(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The next version has died between its segment and the manifest's line."""
    with monkeypatch.context() as later:
        later.setattr(lines, "SCHEMA_VERSION", _NEWER)
        with Ledger.open(path, auto_seal=False) as ledger:
            answered_request(ledger, "r-2")
            ledger.seal()
    listed = path / "manifest.jsonl"
    *kept, _ = listed.read_bytes().splitlines(keepends=True)
    listed.write_bytes(b"".join(kept))
    (segment,) = path.glob(f"events/date=*/*-{len(kept) + 1:08d}.parquet")
    return segment


def _in_the_manifest(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The next version has sealed, and its journals are gone."""
    with monkeypatch.context() as later:
        later.setattr(lines, "SCHEMA_VERSION", _NEWER)
        with Ledger.open(path, auto_seal=False) as ledger:
            answered_request(ledger, "r-2")
            ledger.seal()
    _remove_journals(path)
    return path / "manifest.jsonl"


def _remove_journals(path: Path) -> None:
    for journal in set(path.glob("journals/*.jsonl")) - {path / "journals" / "empty.jsonl"}:
        journal.unlink()


_PLACES = {
    "a journal": _in_a_journal,
    "the manifest": _in_the_manifest,
    "a segment's footer": _in_a_segments_footer,
}
_USES: dict[str, Callable[[Path], Any]] = {
    "connect": lambda path: connect(path).close(),
    "connect, one session": lambda path: connect(path, "s-1").close(),
    "scan": scan,
    "open": lambda path: Ledger.open(path, auto_seal=False).close(),
    "recover": Ledger.recover,
    "plain duckdb": lambda path: figures.by_plain_duckdb(path, ["sessions"]),
}
_COMMANDS = (["report"], ["sessions"], ["sql", "select 1 from events"], ["seal"], ["verify"], ["recover"])


@pytest.fixture(params=_PLACES)
def newer(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger that the next version has gone on with."""
    path = tmp_path / "ledger"
    with Ledger.open(path, auto_seal=False) as ledger:
        answered_request(ledger, "r-1")
        ledger.seal()
    _PLACES[request.param](path, monkeypatch)
    for name in make.DERIVED:
        if name != make.NO_SEGMENT:
            (path / name).unlink(missing_ok=True)
    return path


def _truth(path: Path) -> dict[str, bytes]:
    return {name: of for name, of in bytes_of(path).items() if name not in make.DERIVED}


@pytest.mark.parametrize("use", _USES)
def test_a_newer_ledger_is_refused_with_a_clear_word_and_left_as_it_is(newer: Path, use: str) -> None:
    before = _truth(newer)
    with pytest.raises(Exception, match=r"newer\s+bughive-costs") as refused:
        _USES[use](newer)

    assert "update it" in str(refused.value)
    assert f"schema {_NEWER}" in str(refused.value)
    if use != "plain duckdb":
        assert isinstance(refused.value, LedgerError)
        assert "\n" not in str(refused.value)
        assert "--allow-damage" not in str(refused.value), "nothing is damaged"
    assert _truth(newer) == before


@pytest.mark.parametrize("command", _COMMANDS, ids=lambda command: command[0])
def test_a_command_refuses_a_newer_ledger_with_exit_status_2(
    newer: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = _truth(newer)
    status = main([*command, "--ledger", str(newer)])
    told = capsys.readouterr()

    assert (status, told.out) == (2, "")
    assert told.err.count("\n") == 1
    assert "newer bughive-costs" in told.err
    assert "update it" in told.err
    assert _truth(newer) == before


def test_a_ledger_that_a_newer_version_is_writing_to_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with pytest.MonkeyPatch.context() as later:
        later.setattr(lines, "SCHEMA_VERSION", _NEWER)
        writer = Ledger.open(path, auto_seal=False)
        answered_request(writer, "r-1")
    before = _truth(path)
    with pytest.raises(LedgerError, match="newer bughive-costs"):
        Ledger.open(path)
    assert _truth(path) == before
    writer.close()


def test_a_newer_segment_whose_sealer_died_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger"
    Ledger.open(path).close()
    segment = _in_a_segments_footer(path, monkeypatch)
    _remove_journals(path)
    before = _truth(path)
    with Ledger.open(path, auto_seal=False) as ledger:
        with pytest.raises(LedgerError, match="newer bughive-costs") as refused:
            ledger.seal()
    assert segment.name in str(refused.value)
    with pytest.raises(LedgerError, match="newer bughive-costs"):
        Ledger.recover(path)
    assert _truth(path) == before


def test_a_program_that_goes_on_while_a_newer_one_writes_seals_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger.open(path, auto_seal=False) as ledger:
        answered_request(ledger, "r-1")
        ledger.seal()
        with pytest.MonkeyPatch.context() as later:
            later.setattr(lines, "SCHEMA_VERSION", _NEWER)
            with Ledger.open(path, auto_seal=False) as newer:
                answered_request(newer, "r-2")
        before = _truth(path)
        with pytest.raises(LedgerError, match="newer bughive-costs"):
            ledger.seal()
        assert _truth(path) == before
        answered_request(ledger, "r-3")  # an answer that was paid for is not lost by it
