"""How the ledger's files are read: what counts, what is damage, and what a reader never does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import duckdb
import polars as pl
import pytest
from played import History

from ledger import reader
from ledger.errors import DamagedLedger, LedgerError
from ledger.events import AttemptFailed
from ledger.lines import sealed_line
from ledger.manifest import read_manifest
from ledger.reader import connect, ledger_sql, lock, reading, scan, select_only
from ledger.relations import VIEWS, sql_file
from ledger.schema import COLUMNS, SCHEMA_VERSION, arrow_schema
from reports.adhoc import sql_report

ONE_ANSWER = """
    session=s-1
        REASONING   ok    in=1000 out=200
"""
COST = Decimal("0.00049")  # 1000 × 0.27 + 200 × 1.10 USD per million tokens


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    history = History(tmp_path / "ledger")
    yield history
    history.close()


def journal_of(history: History) -> Path:
    (path,) = (path for path in (history.path / "journals").glob("*.jsonl") if path.stem != "empty")
    return path


def in_plain_duckdb(ledger: Path, sql: str) -> list[tuple[object, ...]]:
    """What ledger.sql and then a SELECT give at a prompt that knows nothing of this project."""
    with duckdb.connect() as connection:
        connection.execute((ledger / "ledger.sql").read_text("utf-8"))
        return connection.execute(sql).fetchall()


def numbered_line(journal_id: str, seq: int, **facts: object) -> bytes:
    """A whole line of a journal."""
    stamp = {"journal_id": journal_id, "seq": seq, "schema_version": 1, "occurred_at": "2026-11-22T10:00:00Z"}
    record = stamp | {"event_type": "journal_opened"} | facts
    return sealed_line(json.dumps(record, separators=(",", ":")).encode()[:-1])


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


# what counts


def test_the_same_figures_come_from_journals_from_segments_and_from_both(history: History) -> None:
    figures = "select session_id, requests, attempts, cost_usd from sessions order by session_id"
    history.play(ONE_ANSWER)
    in_journals = history.rows(figures)
    history.ledger.seal()
    in_segments = history.rows(figures)
    history.play(ONE_ANSWER.replace("s-1", "s-2"))
    in_both = history.rows(figures)

    assert in_journals == in_segments == [("s-1", 1, 1, COST)]
    assert in_both == [("s-1", 1, 1, COST), ("s-2", 1, 1, COST)]


@pytest.mark.parametrize("sealed", [False, True])
def test_plain_duckdb_reads_the_same_events_and_views(sealed: bool, history: History) -> None:
    history.play(ONE_ANSWER)
    if sealed:
        history.ledger.seal()

    everything = "select * from events order by journal_id, seq"
    assert in_plain_duckdb(history.path, everything) == history.rows(everything)
    assert in_plain_duckdb(history.path, "select cost_usd from sessions") == [(COST,)]
    assert in_plain_duckdb(history.path, "select event_type from events order by seq") == [
        ("journal_opened",),
        ("request_received",),
        ("attempt_started",),
        ("attempt_succeeded",),
        ("request_completed",),
    ]


def test_a_copys_ledger_sql_reads_the_copy_where_it_is_told_to(history: History, tmp_path: Path) -> None:
    history.play(ONE_ANSWER)
    copy = tmp_path / "copy"
    shutil.copytree(history.path, copy)
    history.play(ONE_ANSWER)
    told = f"set variable ledger_at = '{copy}';\n" + (copy / "ledger.sql").read_text("utf-8")
    with duckdb.connect() as connection:
        connection.execute(told)
        assert connection.execute("select requests from sessions").fetchall() == [(1,)]
    assert in_plain_duckdb(copy, "select requests from sessions") == [(2,)], "else the place it names"


def test_duckdbs_own_prompt_reads_ledger_sql(history: History) -> None:
    prompt = Path(sys.executable).with_name("duckdb")
    if not prompt.exists():
        pytest.skip("no DuckDB command line beside this Python (duckdb-cli is not installed)")
    history.play(ONE_ANSWER)
    told = subprocess.run(
        [prompt, "-csv", "-c", f".read '{history.path}/ledger.sql'", "-c", "select cost_usd from sessions"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.rstrip("0") for line in told.stdout.splitlines()] == ["cost_usd", str(COST)]


def test_ledger_sql_run_again_at_the_same_prompt_shows_newer_events(history: History) -> None:
    text = ledger_sql(history.path)
    with duckdb.connect() as connection:
        for expected in (1, 2, 3):
            history.play(ONE_ANSWER)
            if expected == 2:
                history.ledger.seal()
            connection.execute(text)
            assert connection.execute("select requests from sessions").fetchall() == [(expected,)]


@pytest.mark.parametrize("session_id", [None, "s-1"])
@pytest.mark.parametrize("sealed", [False, True])
def test_a_view_alone_says_the_same_and_what_was_not_read_for_it_is_no_column(
    history: History, sealed: bool, session_id: str | None
) -> None:
    history.play(ONE_ANSWER)
    if sealed:
        history.ledger.seal()
        history.play(ONE_ANSWER)
    whole = history.rows("select * from sessions", session_id=session_id)

    with connect(history.path, session_id, views=("attempts", "requests", "sessions")) as connection:
        assert connection.execute("select * from sessions").fetchall() == whole
        assert ("s-1",) in connection.execute("select session_id from events").fetchall()
        with pytest.raises(duckdb.BinderException, match="usage_json"):  # and not NULL for some events
            connection.execute("select usage_json from events")


def test_nothing_but_the_ledgers_own_is_left_at_a_prompt(history: History) -> None:
    history.play(ONE_ANSWER)

    tables = in_plain_duckdb(history.path, "select table_name from duckdb_tables() order by 1")
    views = in_plain_duckdb(history.path, "select view_name from duckdb_views() where not internal")

    assert [name for (name,) in tables] == [
        *("ledger_covered", "ledger_in_question", "ledger_lines"),
        *("ledger_manifest", "ledger_open", "ledger_settled"),
    ]
    below = {"ledger_journal_events", "ledger_attempts", "ledger_bounded", "ledger_requests"}
    assert {name for (name,) in views} == {*VIEWS, *below}


def test_plain_parquet_files_are_right_about_all_that_is_sealed(history: History) -> None:
    history.play(ONE_ANSWER)
    history.ledger.seal()

    files = (
        f"read_parquet('{history.path}/events/**/*.parquet', hive_partitioning = true, union_by_name = true)"
    )
    assert duckdb.sql(f"select sum(list_cost_usd), any_value(date)::varchar from {files}").fetchall() == [
        (COST, "2026-11-22")
    ]


def test_a_torn_last_line_is_not_there_yet(history: History) -> None:
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    whole = journal.read_bytes()
    for torn in (b"\n", b'{"journal_id":"', "ü".encode()[:1], b"\0" * 4096, whole.splitlines()[-1][:-30]):
        journal.write_bytes(whole + torn)
        assert history.column("sessions", "requests") == [1]


def test_a_last_line_that_lacks_only_its_newline_counts(history: History) -> None:
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    journal.write_bytes(journal.read_bytes()[:-1])

    assert history.column("requests", "status") == ["completed"]


def test_lines_repeated_in_a_second_file_of_a_journal_count_once(history: History) -> None:
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:4]) + lines[4][:20])  # the sync failed somewhere here
    journal.with_name(f"{journal.stem}.2.jsonl").write_bytes(b"".join(lines[2:]))

    assert history.rows("select count(*), sum(list_cost_usd) from events") == [(5, COST)]


def test_a_second_file_of_a_journal_that_repeats_all_of_the_first_adds_nothing(history: History) -> None:
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    shutil.copy(journal, journal.with_name(f"{journal.stem}.2.jsonl"))

    assert history.rows("select count(*), sum(list_cost_usd) from events") == [(5, COST)]


def test_a_line_that_stands_twice_in_one_file_counts_once(history: History) -> None:
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines, lines[3]]))

    assert history.rows("select count(*), sum(list_cost_usd) from events") == [(5, COST)]


def test_what_is_no_line_of_the_journal_that_its_file_is_named_after_does_not_count(history: History) -> None:
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    with journal.open("ab") as stream:
        stream.write(numbered_line("another", 6))
        stream.write(numbered_line(journal.stem, 6).replace(b'"seq":6', b'"seq":7'))  # its check is not right
        stream.write(sealed_line(f'{{"journal_id":"{journal.stem}","seq":"six"'.encode()))
        stream.write(sealed_line(b"no JSON at all"))

    assert history.rows("select count(*) from events") == [(5,)]


def test_outside_names_come_back_as_they_were(history: History) -> None:
    name = "Zürich \"quoted\" \\ 'single' 😀 [*?] =1+1 | e\u0301"
    history.play(ONE_ANSWER.replace("s-1", "PLACEHOLDER"))
    journal = journal_of(history)
    lines = []
    for line in journal.read_bytes().splitlines():
        record = json.loads(line)
        record.pop("check")
        if record.get("session_id"):
            record["session_id"] = name
        lines.append(sealed_line(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()[:-1]))
    journal.write_bytes(b"".join(lines))

    assert history.column("sessions", "session_id") == [name]
    assert history.rows("select cost_usd from sessions", session_id=name) == [(COST,)]
    history.ledger.seal()
    assert history.rows("select cost_usd from sessions", session_id=name) == [(COST,)]


@pytest.mark.parametrize(
    "name", ["plain", "with space", "it's", "[brackets]*?", "ü", "line=5", "file_index=x/journal_id=y"]
)
def test_a_ledger_may_have_any_name(name: str, tmp_path: Path) -> None:
    history = History(tmp_path / name)
    history.play(ONE_ANSWER)
    history.ledger.seal()
    history.play(ONE_ANSWER)

    assert history.column("sessions", "requests") == [2]
    assert in_plain_duckdb(history.path, "select requests from sessions") == [(2,)]
    with connect(history.path) as connection:
        lock(connection)
        assert select_only(connection, "select requests from sessions").fetchall() == [(2,)]
    assert scan(history.path).select("request_id").collect()["request_id"].n_unique() == 3  # and null
    history.close()


def test_a_backslash_in_the_path_is_refused_in_a_word_and_a_link_helps(tmp_path: Path) -> None:
    history = History(tmp_path / "a\\b")
    history.play(ONE_ANSWER)
    history.close()

    with pytest.raises(LedgerError, match=r"cannot list .*a\\b, for the backslash in its name; rename"):
        connect(history.path)

    (tmp_path / "link").symlink_to(history.path)
    with connect(tmp_path / "link") as connection:
        assert connection.execute("select cost_usd from sessions").fetchall() == [(COST,)]


@pytest.mark.parametrize("garbage", [b"x", b"\0", b"{", b'"', b"\xff", b"\r", b"\x01", b"[{,"])
def test_a_torn_end_may_be_of_any_length(garbage: bytes, history: History) -> None:
    history.play(ONE_ANSWER)
    with journal_of(history).open("ab") as journal:
        journal.write(garbage * (20_000_000 // len(garbage)))

    assert history.column("sessions", "cost_usd") == [COST]
    assert in_plain_duckdb(history.path, "select cost_usd from sessions") == [(COST,)]


def test_the_longest_event_there_can_be_is_read(history: History) -> None:
    widest = "\U0001f600"  # twelve bytes in a line
    longest_name, longest_text = widest * 256, widest * 500
    named = "request_id session_id task requested_tier attempt_id tier provider model response_model"
    named += " upstream_provider provider_request_id response_id service_tier price_book billing_rule"
    names = dict.fromkeys(named.split(), longest_name)
    event = AttemptFailed(
        **names,  # type: ignore[arg-type]
        tags={f"{number:02}{widest * 254}": longest_text for number in range(32)},
        attempt_number=1,
        started_at=history.now,
        usage_json=widest * 65_536,
        usage_suspect=longest_text,
        error_message=longest_text,
        error_type="overloaded",
        billing="unknown",
    )
    history.record(event)

    assert history.rows(
        "select session_id, usage_json, cardinality(tags) from events where attempt_id is not null"
    ) == [(longest_name, widest * 65_536, 32)]


def test_more_segments_than_there_are_file_handles_can_be_read(history: History) -> None:
    history.play(ONE_ANSWER)
    (batch,) = history.ledger.seal().batches
    history.close()
    manifest, content = history.path / "manifest.jsonl", (history.path / batch.file).read_bytes()
    for number in range(2, 601):
        name = f"events/date=2026-11-22/{batch.ledger_id}-{number:08d}.parquet"
        (history.path / name).write_bytes(content)
        batch = batch._replace(batch=number, file=name, previous_sha256=batch.sha256, sha256=f"{number:064x}")
        with manifest.open("ab") as stream:
            stream.write(batch.as_line())
    told = subprocess.run(
        [
            *("sh", "-c", 'ulimit -n 128 && exec "$@"', "sh", sys.executable, "-c"),
            "import sys; from ledger.reader import connect;"
            " rows = connect(sys.argv[1]).execute('select count(*), sum(seq) from events where seq <= 5');"
            " print(rows.fetchall())",
            str(history.path),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )

    assert told.stdout == f"{[(600 * 5, 600 * 15)]}\n", told.stderr


# a newer version's ledger


def a_line_of_a_newer_schema(history: History) -> str:
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    line = numbered_line(journal.stem, 6, schema_version=SCHEMA_VERSION + 1, event_type="dream_dreamt")
    with journal.open("ab") as stream:
        stream.write(line)
    return rf"journals/{journal.name} holds events of schema {SCHEMA_VERSION + 1}"


def a_batch_of_a_newer_schema(history: History) -> str:
    history.play(ONE_ANSWER)
    (batch,) = history.ledger.seal().batches
    newer = batch._replace(schema_version=SCHEMA_VERSION + 1)
    (history.path / "manifest.jsonl").write_bytes(newer.as_line())
    return rf"manifest.jsonl holds events of schema {SCHEMA_VERSION + 1}"


@pytest.mark.parametrize("newer", [a_line_of_a_newer_schema, a_batch_of_a_newer_schema])
def test_what_a_newer_version_wrote_is_refused_and_no_damage(
    newer: Callable[[History], str], history: History
) -> None:
    message = newer(history) + rf", written by a newer bughive-costs; this one knows up to {SCHEMA_VERSION}"

    for options in ({}, {"allow_damage": True}, {"session_id": "s-1"}):
        with pytest.raises(LedgerError, match=message + ": update it$") as refused:
            connect(history.path, **options)  # type: ignore[arg-type]
        assert not isinstance(refused.value, DamagedLedger)
    with pytest.raises(duckdb.Error, match=message):
        in_plain_duckdb(history.path, "select * from events")


# damage


def damage_in_the_middle(history: History) -> str:
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], lines[2].replace(b"REASONING", b"REASONINg"), *lines[3:]]))
    return rf"journals/{journal.name}: seq 3 is missing or damaged"


def a_line_missing(history: History) -> str:
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    return rf"journals/{journal.name}: seq 4 is missing"


def a_line_missing_and_another_twice(history: History) -> str:
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], lines[1], *lines[3:]]))
    return rf"journals/{journal.name}: seq 3 is missing"


def a_number_with_two_contents(history: History) -> str:
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    with journal.open("ab") as stream:
        stream.write(numbered_line(journal.stem, 5))
    return rf"journals/{journal.name}: seq 5 stands there twice"


def a_gap_after_what_is_sealed(history: History) -> str:
    history.play(ONE_ANSWER)
    history.ledger.seal()
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], *lines[6:]]))
    return rf"journals/{journal.name}: seq 6 is missing"


def a_gap_made_up_for_by_what_is_sealed(history: History) -> str:
    """As many lines as follow what is sealed, each once; but the first of them is not one of those."""
    history.play(ONE_ANSWER)
    history.ledger.seal()
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], *lines[6:]]))
    return rf"journals/{journal.name}: seq 6 is missing"


def a_segment_missing(history: History) -> str:
    history.play(ONE_ANSWER)
    history.ledger.seal()
    (segment,) = history.path.glob("events/date=2026*/*.parquet")
    segment.unlink()
    return f"{segment.name} is missing"


def a_segment_cut(history: History) -> str:
    history.play(ONE_ANSWER)
    history.ledger.seal()
    (segment,) = history.path.glob("events/date=2026*/*.parquet")
    os.truncate(segment, segment.stat().st_size - 1)
    return f"{segment.name} is missing or not of the size"


def a_manifest_line_missing(history: History) -> str:
    for _ in range(3):
        history.play(ONE_ANSWER)
        history.ledger.seal()
    manifest = history.path / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(lines[0] + lines[2])
    return r"manifest.jsonl: batch 3 \(.*\) does not follow"


DAMAGES: list[Callable[[History], str]] = [
    damage_in_the_middle,
    a_line_missing,
    a_line_missing_and_another_twice,
    a_number_with_two_contents,
    a_gap_after_what_is_sealed,
    a_gap_made_up_for_by_what_is_sealed,
    a_segment_missing,
    a_segment_cut,
    a_manifest_line_missing,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_by_name_and_read_around_only_when_told(
    damage: Callable[[History], str], history: History
) -> None:
    message = damage(history)

    with pytest.raises(DamagedLedger, match=message):
        connect(history.path)
    with connect(history.path, allow_damage=True) as connection:
        assert connection.execute("select count(*) from events").fetchone()
    assert isinstance(scan(history.path, allow_damage=True).collect(), pl.DataFrame)


@pytest.mark.parametrize("damage", DAMAGES)
def test_plain_duckdb_refuses_damage_too(damage: Callable[[History], str], history: History) -> None:
    damage(history)

    with pytest.raises(duckdb.Error):
        in_plain_duckdb(history.path, "select count(list_cost_usd) from events")


def test_what_fails_for_another_reason_is_not_called_damage(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.play(ONE_ANSWER)
    history.ledger.seal()
    for statement in ("select * from nowhere", "select 1::tinyint + 1000::tinyint"):
        monkeypatch.setattr(reader, "statements", lambda *_, sql=statement, **__: [sql])
        with pytest.raises(LedgerError) as refused, reading(history.path):
            pass
        assert not isinstance(refused.value, DamagedLedger)


def test_an_altered_segment_is_named_wherever_it_cannot_be_read_and_left_out_when_told(
    history: History,
) -> None:
    history.play(ONE_ANSWER)
    history.ledger.seal()
    history.play(ONE_ANSWER.replace("s-1", "s-2"))
    (batch,) = read_manifest(history.path)[0]
    segment = history.path / batch.file
    sealed = segment.read_bytes()
    named = f"{segment} is not what was sealed as batch 1"

    def refusals() -> Iterator[str]:
        for place in range(1, len(sealed), len(sealed) // 10):
            segment.write_bytes(sealed[:place] + bytes([sealed[place] ^ 0x41]) + sealed[place + 1 :])
            try:
                with reading(history.path, views=["events"]) as connection:
                    connection.execute("from events").fetchall()  # it may take it for another value, too
            except DamagedLedger as damage:
                yield str(damage)

    told = list(refusals())
    assert len(told) > 2
    assert all(each.startswith(named) for each in told), told
    with pytest.raises(DamagedLedger, match=named):
        sql_report(history.path, "select * from events where error(event_type) is null")
    with reading(history.path, views=["sessions"], allow_damage=True) as connection:
        assert connection.execute("select session_id from sessions").fetchall() == [("s-2",)]


@pytest.mark.parametrize("segments", [1, 3])
def test_a_manifest_that_lost_its_end_is_refused_and_sealing_lists_the_segments_again(
    segments: int, history: History
) -> None:
    for number in range(segments):
        history.play(ONE_ANSWER.replace("s-1", f"s-{number}"))
        history.ledger.seal()
    (history.path / "manifest.jsonl").unlink()

    with pytest.raises(DamagedLedger, match="bughive-costs seal lists them again"):
        connect(history.path)

    history.ledger.seal()
    assert history.rows("select count(*) from sessions") == [(segments,)]


def test_a_segment_whose_sealer_died_before_listing_it_is_no_damage(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    history.play(ONE_ANSWER)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ledger.sealing.list_batch", die)
        with pytest.raises(KeyboardInterrupt):
            history.ledger.seal()
    assert len(list(history.path.glob("events/*/*-????????.parquet"))) == 1
    assert history.rows("select cost_usd from sessions") == [(COST,)]
    assert in_plain_duckdb(history.path, "select cost_usd from sessions") == [(COST,)]


def test_damage_in_what_is_sealed_already_is_not_missed(history: History) -> None:
    """The segment has it: what is left of the journal is right and gapless after it."""
    history.play(ONE_ANSWER)
    history.ledger.seal()
    history.play(ONE_ANSWER)
    journal = journal_of(history)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"\n", *lines[2:]]))

    assert history.column("sessions", "cost_usd") == [2 * COST]


# what a reader does not do


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_reading_leaves_the_ledger_as_it_is(sealed: bool, closed: bool, history: History) -> None:
    history.play(ONE_ANSWER)
    if sealed:
        history.ledger.seal()
    if closed:
        history.close()
    before = files_below(history.path)

    for session in (None, "s-1", "s-unknown"):
        with connect(history.path, session) as connection:
            connection.execute("select * from sessions").fetchall()
    scan(history.path).collect()
    in_plain_duckdb(history.path, "select * from sessions")

    after = files_below(history.path)
    if not closed:  # the open ledger's own: which of its readers are at it
        before.pop("state.db-shm", None), after.pop("state.db-shm", None)
    assert after == before


def test_a_ledger_that_is_not_there_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger at"):
        connect(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="is a file, not a ledger"):
        connect(tmp_path / "file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LedgerError, match="is not a ledger"):
        connect(tmp_path / "folder")

    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_an_unknown_time_zone_names_the_nearest(history: History) -> None:
    with pytest.raises(LedgerError, match=r"unknown time zone 'Europe/Berln'; did you mean Europe/Berlin"):
        connect(history.path, tz="Europe/Berln")


def test_writers_do_not_load_duckdb_for_the_sake_of_ledger_sql() -> None:
    code = (
        "import sys; from ledger.reader import ledger_sql; ledger_sql('x');"
        " sys.exit(any(name in sys.modules for name in ('duckdb', 'polars', 'pyarrow', 'pydantic')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False).returncode
        == 0
    )


# one session


def test_a_session_is_read_alone(history: History) -> None:
    history.play(ONE_ANSWER + ONE_ANSWER.replace("s-1", "s-2"))

    assert history.rows("select session_id, requests, cost_usd from sessions", session_id="s-2") == [
        ("s-2", 1, COST)
    ]
    assert history.rows("select distinct session_id from events", session_id="s-2") == [("s-2",)]
    assert history.rows("select * from sessions", session_id="s-3") == []


def test_only_the_segments_that_hold_a_session_are_opened(history: History) -> None:
    for name in ("s-1", "s-2", "s-1", "s-3"):
        history.play(ONE_ANSWER.replace("s-1", name))
        history.ledger.seal()
    history.close()
    segments = sorted(history.path.glob("events/date=2026*/*.parquet"))
    assert len(segments) == 4

    def opened(session: str) -> list[str]:
        with connect(history.path, session) as connection:
            row = connection.execute("select getvariable('ledger_segments')").fetchone()
        return [str(path) for path in (row or [[]])[0] if "1970" not in path]

    assert opened("s-1") == [str(segments[0]), str(segments[2])]
    assert opened("s-2") == [str(segments[1])]
    assert opened("s-unknown") == []


@pytest.mark.parametrize("state", ["missing", "garbage", "behind", "open", "of another chain", "unhashed"])
def test_a_session_is_read_whole_whatever_state_db_knows(state: str, history: History) -> None:
    for name in ("s-1", "s-2", "s-1"):
        history.play(ONE_ANSWER.replace("s-1", name))
        history.ledger.seal()
    database = history.path / "state.db"
    if state != "open":
        history.close()
    if state == "missing":
        database.unlink()
    if state == "garbage":
        database.write_bytes(b"garbage" * 1000)
    if state == "behind":
        import apsw

        with contextlib.closing(apsw.Connection(str(database))) as db:
            first = read_manifest(history.path)[0][0]
            db.execute("update meta set value = '1' where key = 'indexed_batch'")
            db.execute("update meta set value = ? where key = 'indexed_sha256'", (first.sha256,))
            db.execute("delete from session_batches where batch > 1")
    if state in ("of another chain", "unhashed"):  # a backup of state.db came back, or an older one's
        import apsw

        with contextlib.closing(apsw.Connection(str(database))) as db:
            db.execute("delete from session_batches where session_id = 's-1' and batch = 3")
            if state == "unhashed":
                db.execute("delete from meta where key = 'indexed_sha256'")
            else:
                db.execute("update meta set value = 'another' where key = 'indexed_sha256'")

    assert history.rows("select requests, cost_usd from sessions", session_id="s-1") == [(2, 2 * COST)]


# while others write


def test_a_file_that_vanishes_between_its_listing_and_its_reading_is_looked_for_again(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal is removed once it is sealed and closed: by then the manifest covers it."""
    history.play(ONE_ANSWER)
    texts = iter(["from read_ndjson_objects('/nowhere/vanished.jsonl');", sql_file("snapshot")])
    of_view = reader.sql_file
    monkeypatch.setattr(reader, "sql_file", lambda name: next(texts) if name == "snapshot" else of_view(name))

    assert history.column("sessions", "requests") == [1]
    assert next(texts, None) is None


def test_a_reader_beside_a_writer_and_a_sealer_sees_each_request_whole_and_once(history: History) -> None:
    """Each request is begun and ended in one commit each; costs seen never shrink and never double."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            history.play(ONE_ANSWER)
            if history._requests % 7 == 0:
                history.ledger.seal()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    try:
        while len(seen) < 12:
            rows = history.rows("select requests, cost_usd, (select count(*) from in_doubt) from sessions")
            if rows:
                (requests, cost, open_attempts) = rows[0]
                assert cost is None or cost == (requests - open_attempts) * COST
                seen.append(requests)
    finally:
        stop.set()
        writer.join()
    assert seen == sorted(seen)


# Polars


@pytest.mark.parametrize("sealed", ["nothing", "some", "all"])
def test_scan_gives_all_events_with_the_types_of_segments(sealed: str, history: History) -> None:
    history.play(ONE_ANSWER)
    if sealed != "nothing":
        history.ledger.seal()
    if sealed == "some":
        history.play(ONE_ANSWER)

    frame = scan(history.path)

    assert isinstance(frame, pl.LazyFrame)
    expected = pl.from_arrow(arrow_schema().empty_table())
    assert isinstance(expected, pl.DataFrame)
    assert frame.collect_schema() == expected.schema
    assert frame.collect_schema().names() == [column.name for column in COLUMNS]
    answers = 2 if sealed == "some" else 1
    assert frame.select(pl.col("list_cost_usd").sum()).collect().item() == answers * COST


def test_scan_knows_the_tags(history: History) -> None:
    history.play("""
        session=s-1 tags={"app":"shop"}
            REASONING   ok    in=1000 out=200
    """)
    for _ in ("journal", "segment"):
        tags = (
            scan(history.path).filter(pl.col("event_type") == "request_received").collect()["tags"].to_list()
        )
        assert tags == [{"app": "shop"}]
        history.ledger.seal()


# ad-hoc SQL


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of two answers, and files beside it; nobody writes there any more."""
    place = tmp_path_factory.mktemp("locked")
    history = History(place / "ledger")
    history.play(ONE_ANSWER)
    history.ledger.seal()
    history.play(ONE_ANSWER)
    history.close()
    (place / "outside.csv").write_text("a,b\n1,2\n")
    (place / "outside.parquet").write_bytes((next(history.path.glob("events/date=1970*/*"))).read_bytes())
    return place


@pytest.fixture(scope="module")
def locked(place: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """One for all: what is refused leaves no trace, and what is not fails its own test."""
    with connect(place / "ledger") as connection:
        lock(connection)
        yield connection


@pytest.mark.parametrize(
    "sql",
    [
        "select cost_usd from sessions",
        "from sessions select cost_usd",
        "with s as (select * from sessions) select cost_usd from s;",
        "select sum(cost_usd) from attempts -- a comment",
    ],
)
def test_one_select_is_run(sql: str, locked: duckdb.DuckDBPyConnection) -> None:
    assert select_only(locked, sql).fetchall() == [(2 * COST,)]


@pytest.mark.parametrize("sql", ["describe sessions", "summarize attempts", "show tables", "table sessions"])
def test_looking_around_is_a_select(sql: str, locked: duckdb.DuckDBPyConnection) -> None:
    assert select_only(locked, sql).fetchall()


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("", "nothing"),
        ("-- only a comment", "nothing"),
        ("select 1; select 2", "2 statements"),
        ("select 1; copy (select 1) to '{outside}/stolen.csv'", "2 statements"),
        ("copy (select 1) to '{outside}/stolen.csv'", "COPY"),
        ("attach '{outside}/other.db'", "ATTACH"),
        ("install httpfs", "LOAD"),
        ("load httpfs", "LOAD"),
        ("set enable_external_access = true", "SET"),
        ("set variable ledger_segments = []", "SET"),
        ("reset lock_configuration", "SET"),
        ("pragma database_list", "PRAGMA|SELECT|kind"),
        ("call pragma_version()", "CALL"),
        ("create table t (a int)", "CREATE"),
        ("insert into ledger_manifest select * from ledger_manifest", "INSERT"),
        ("update ledger_journal_events set seq = 0", "UPDATE"),
        ("delete from ledger_lines", "DELETE"),
        ("drop view sessions", "DROP"),
        ("explain select 1", "EXPLAIN"),
        ("export database '{outside}/x'", "EXPORT"),
        ("prepare p as select 1", "PREPARE"),
        ("select * from read_csv('{outside}/outside.csv')", "cannot be run"),
        ("select * from '{outside}/outside.csv'", "cannot be run"),
        ("select * from read_parquet('{outside}/outside.parquet')", "cannot be run"),
        ("select * from read_parquet('{ledger}/events/**/*.parquet')", "cannot be run"),
        ("select * from read_text('{ledger}/ledger.id')", "cannot be run"),
        ("select * from read_blob('{ledger}/state.db')", "cannot be run"),
        ("select * from read_json_objects('{ledger}/journals/*.jsonl')", "cannot be run"),
        ("select * from read_text('/etc/passwd')", "cannot be run"),
        ("select * from glob('{outside}/*')", "cannot be run"),
        ("select * from read_csv('http://127.0.0.1:9/x.csv')", "cannot be run"),
        ("select * from history", "cannot be run"),
        ("select nothing from sessions", "nothing"),
        ("selec 1", "cannot be run"),
    ],
)
def test_anything_else_is_refused(
    sql: str, message: str, locked: duckdb.DuckDBPyConnection, place: Path
) -> None:
    before = files_below(place)

    with pytest.raises(LedgerError, match=message):
        select_only(locked, sql.format(outside=place, ledger=place / "ledger")).fetchall()

    assert files_below(place) == before
    assert select_only(locked, "select cost_usd from sessions").fetchall() == [(2 * COST,)]


def test_a_connection_that_is_locked_stays_so(history: History) -> None:
    with connect(history.path) as connection:
        lock(connection)
        for statement in ("set enable_external_access = true", "set allowed_paths = ['/etc/passwd']"):
            with pytest.raises(duckdb.Error):
                connection.execute(statement)
