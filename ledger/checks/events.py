"""All events that can be believed, in DuckDB: each request's story, the sums, the fold into state.db.

Segments are read where they lie; journals' lines are read once, into a table. Journals of which something
is lost or altered are left out: that has been told, and all that follows from it need not be.
"""

from __future__ import annotations

import contextlib
import re
import string
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from ledger.budgets import name_of
from ledger.checks.chain import Chain
from ledger.checks.findings import Counts, Finding, Note, Run
from ledger.checks.journals import JournalRead
from ledger.checks.projection import RECOVER, STATE, Projection, sql_types
from ledger.errors import DamagedLedger
from ledger.events import EVENT_CLASSES, event_of
from ledger.layout import EMPTY_SEGMENT
from ledger.lines import parsed
from ledger.money import dollars
from ledger.reader import _config
from ledger.relations import json_struct, quoted, sql_file
from ledger.schema import COLUMNS, SQL_TYPES
from ledger.windows import beginning_of

_LINES_AT_ONCE = 50_000
_SUMS = (  # of attempts; the other views sum them up
    *("cost_usd", "list_cost_usd", "input_tokens", "cache_read_tokens", "cache_write_tokens"),
    *("output_tokens", "reasoning_tokens"),
)
_REQUESTS_IN = {  # how each view counts them
    "requests": "count(*)",
    "sessions": "coalesce(sum(requests), 0)",
    "daily_spend": "coalesce(sum(requests), 0)",
}
_MEMORY: dict[str, str | bool] = {"memory_limit": "1GB", "preserve_insertion_order": False}  # then its disk
_WITH_WHAT_THEY_READ = (
    *("ledger_settled", "ledger_open", "ledger_attempts", "ledger_requests"),
    *("attempts", "requests", "sessions", "daily_spend"),
)
_KEPT_UP_TO = {  # so many events as tables, each planned once, which takes longer than few rows do
    "events": 10_000,
    "ledger_settled": 2**62,
    "ledger_open": 2**62,
    "ledger_attempts": 200_000,
    "ledger_requests": 200_000,
    "attempts": 200_000,
    "requests": 200_000,
}
_COMPARED = {  # state.db's own figures, as the fold has them: amounts in pico, nothing where there is nothing
    "positions": "select * from state_positions",
    "balances": (
        "select scope, scope_id, quarter, sum(spent_micro)::hugeint * 1000000 + sum(spent_rest) as pico,"
        " sum(unpriced_attempts)::bigint as unpriced from state_balances"
        " group by scope, scope_id, quarter having pico <> 0 or unpriced <> 0"
    ),
    "request_spent": (
        "select request_id, spent_micro::hugeint * 1000000 + spent_rest from state_request_spent"
    ),
    "holds": (
        "select attempt_id, journal_id, ceiling_pico, quarter, state from state_holds"
        " where state <> 'reserved'"
        " union all select attempt_id, journal_id, ceiling_pico, quarter, 'in_doubt' from state_doubts"
    ),
    "budgets": "select * from state_budgets",
    "settled": "select * from state_settled",
    "circuits": "select * from state_circuits",
    "sums": (
        "select scope, scope_id, first_quarter, end_quarter,"
        " spent_micro::hugeint * 1000000 + spent_rest as pico, doubt_micro::hugeint * 1000000 + doubt_rest"
        " as doubt from state_sums where pico <> 0 or doubt <> 0"
    ),
}
_LIKENESS = {
    "positions": "journal {0} is applied up to {1}, closed {2}",
    "balances": "{row:scope}, the 15 minutes from {2:at}: {3:usd} spent, {4} attempts unpriced",
    "request_spent": "request {0}: {1:usd} spent",
    "sums": "{row:scope}, from {2:at} to {3:at}: {4:usd} spent, {5:usd} in doubt",
    "holds": "attempt {0}: {2:usd} held, begun in the 15 minutes from {3:at}, {4}",
    "budgets": "{row:budget}: {3:limit} in {4}, by event {6} of {5}",
    "settled": "attempt {0} is settled",
    "circuits": "the circuit of {1}, opened at {2:us}, closed {3}",
    "session_batches": "session {0} is in batch {1}",
}


class _Words(string.Formatter):
    """Rows of state.db in words: `usd` of an amount in pico, `limit` of one that is none once it is lifted,
    `at` of a quarter hour, `us` of a moment; `scope` and `budget` of a whole row."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """A row's value, which may be anything, or the row; amounts in full."""
        if format_spec == "scope":
            return " ".join(str(part) for part in value[:2] if part)
        if format_spec == "budget":
            return name_of(*value[:3])
        if format_spec in ("usd", "limit"):
            nothing = "lifted" if format_spec == "limit" else "no amount"
            return nothing if value is None else f"${dollars(int(value)):f}"
        if value is not None and format_spec == "at":
            moment = beginning_of(value)
            return "ever" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"
        if value is not None and format_spec == "us":
            with contextlib.suppress(OverflowError, ValueError, OSError):  # no calendar reaches it
                return f"{datetime.fromtimestamp(value // 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"
        return str(value)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


class Place(NamedTuple):
    """Where an event stands."""

    file: str
    batch: int | None


class JournalEnd(NamedTuple):
    """How the story of a journal ends, over segments and its own file."""

    journal_id: str
    last_seq: int
    last_type: str
    reason: str | None
    open_attempts: int
    open_requests: int

    @property
    def is_closed(self) -> bool:
        """Whether its last event says so."""
        return self.last_type == "journal_closed"


class Events:
    """The events of one look at a ledger. To be closed."""

    def __init__(self, root: Path, chain: Chain, journals: Sequence[JournalRead], suspects: set[str]) -> None:
        """Read the journals. Raises duckdb.Error where a segment cannot be read."""
        import duckdb

        self._root, self._chain, self._journals = root, chain, journals
        # Threads hand few rows around for longer than it takes to go through them.
        alone = {"threads": 1} if self._kind_of("events") == "table" else {}
        self._db = duckdb.connect(config=_config() | _MEMORY | alone)
        self._db.execute("set TimeZone = 'UTC'")
        self._db.execute("create temp table suspects (journal_id varchar)")
        self._suspect(suspects)
        self._read_segments()

    def close(self) -> None:
        self._db.close()

    def _suspect(self, journal_ids: set[str]) -> None:
        rows = [(journal_id,) for journal_id in sorted(journal_ids)]
        if rows:
            self._db.executemany("insert into suspects values (?)", rows)

    def _read_segments(self) -> None:
        files = [str(EMPTY_SEGMENT), *(str(self._root / file) for file in self._chain.sound_files)]
        self._db.execute("set variable segments = ?", [files])
        patterns = (
            "list_transform(getvariable('segments'), lambda p: regexp_replace(p, '([*?\\[])', '[\\1]', 'g'))"
        )
        self._db.execute(
            "create temp view sealed_rows as select * from"
            f" read_parquet({patterns}, union_by_name = true, hive_partitioning = false, filename = true)"
        )

    def read_journals(self) -> list[Finding]:
        """Make `events` of segments and journals; what is no event is told, and its journal left out."""
        columns = ", ".join(f"{column.name} {SQL_TYPES[column.kind]}" for column in COLUMNS)
        self._db.execute(f"create temp table journal_events ({columns})")
        findings, lines = [], list[bytes]()
        for journal in self._journals:
            strange = [seq for seq, line in journal.lines.items() if not _is_event(line, seq)]
            if strange:
                runs = [Run(journal.journal_id, min(strange), max(strange))]
                what = f"{len(strange)} lines with right checks are no events, the first {min(strange)}"
                remedy = "put the file back from a backup"
                findings.append(Finding("altered-journal", journal.file, what, remedy, events=runs))
                self._suspect({journal.journal_id})
            else:
                lines += journal.lines.values()
        self._insert(lines)
        names = ", ".join(column.name for column in COLUMNS)
        self._db.execute(
            f"create temp {self._kind_of('events')} events as select {names} from sealed_rows"
            " anti join journal_events using (journal_id, seq) anti join suspects using (journal_id)"
            f" union all select {names} from journal_events anti join suspects using (journal_id)"
        )
        self._db.execute(
            "create temp table journals as select journal_id,"
            " bool_or(event_type = 'journal_closed') as is_closed, false as is_suspect"
            " from events group by journal_id"
            " union all select distinct journal_id, false, true from suspects"
        )
        return findings

    def _kind_of(self, view: str) -> str:
        """How a view is made here. Sealed events that are still in their journals count twice."""
        sealed = sum(link.batch.rows for link in self._chain.links)
        events = sealed + sum(len(journal.lines) for journal in self._journals)
        return "table" if events <= _KEPT_UP_TO.get(view, -1) else "view"

    def _insert(self, lines: Sequence[bytes]) -> None:
        import pyarrow as pa

        events = f"select from_json(line, {quoted(json_struct(COLUMNS))}) as event from lines"
        for first in range(0, len(lines), _LINES_AT_ONCE):
            texts = [line.decode("ascii") for line in lines[first : first + _LINES_AT_ONCE]]
            self._db.register("lines", pa.table({"line": pa.array(texts, pa.string())}))
            self._db.execute(f"insert into journal_events select unnest(event) from ({events})")
            self._db.unregister("lines")

    def contradictions(self) -> Iterator[Finding]:
        """Events that stand in a journal otherwise than they were sealed."""
        if not self._chain.sound_files:
            return
        names = [column.name for column in COLUMNS]
        rows = self._db.execute(
            "select journal_id, min(seq), max(seq), count(*) from"
            " (select here.journal_id, here.seq from journal_events here"
            " join sealed_rows sealed using (journal_id, seq)"
            f" where row({', '.join(f'here.{name}' for name in names)})"
            f" is distinct from row({', '.join(f'sealed.{name}' for name in names)}))"
            " group by journal_id order by journal_id"
        ).fetchall()
        for journal_id, first, last, times in rows:
            file = f"journals/{journal_id}.jsonl"
            what = f"{times} events differ from those that were sealed"
            remedy = "put the file back from a backup; the segment counts as long as its hash is right"
            yield Finding("altered-journal", file, what, remedy, events=[Run(journal_id, first, last)])

    def broken_stories(self) -> Iterator[Finding]:
        """Journals, requests and attempts whose story is not whole."""
        types = sorted(str(cls.model_fields["event_type"].default) for cls in EVENT_CLASSES)
        rows = self._db.execute(_sql("stories"), {"event_types": types}).fetchall()
        for problem, alike in groupby(rows, key=lambda row: row[0]):
            yield self._broken_story(problem, list(alike))

    def _broken_story(self, problem: str, rows: Sequence[tuple[Any, ...]]) -> Finding:
        """One finding for all that is wrong in the same way, at the place of the first."""
        _, journal_id, subject, _, first, _ = rows[0]
        file, batch = self._place_of(journal_id, first)
        times = sum(row[3] for row in rows)
        what = problem if subject == journal_id else f"{problem}: {subject}"
        more = f" ({times} so in {len(rows)} journals)" if times > 1 else ""
        remedy = "see what wrote it; put the file back from a backup if it was altered"
        runs = [Run(row[1], row[4], row[5]) for row in rows]
        return Finding("story", file, what + more, remedy, batch, runs)

    def _place_of(self, journal_id: str, seq: int) -> Place:
        for link in self._chain.links:
            if any(
                run.journal_id == journal_id and run.first_seq <= seq <= run.last_seq for run in link.runs
            ):
                return Place(link.batch.file, link.batch.batch)
        return Place(f"journals/{journal_id}.jsonl", None)

    def ends(self) -> list[JournalEnd]:
        """How each journal's story ends."""
        rows = self._db.execute(
            "select journal_id, max(seq), coalesce(arg_max(event_type, seq), ''),"
            " arg_max(coalesce(reason, ''), seq),"
            " count(*) filter (where event_type = 'attempt_started') - count(*) filter (where event_type in"
            " ('attempt_succeeded', 'attempt_failed', 'attempt_cancelled', 'attempt_abandoned')),"
            " count(*) filter (where event_type = 'request_received') - count(*) filter (where event_type in"
            " ('request_completed', 'request_failed', 'request_denied'))"
            " from events group by journal_id order by journal_id"
        ).fetchall()
        return [JournalEnd(*row) for row in rows]

    def wrong_sums(self) -> Iterator[Finding]:
        """Σ attempts = Σ requests = Σ sessions = Σ days, each by the ledger's own view."""
        sums = ", ".join(f"coalesce(sum({name}), 0)" for name in _SUMS)
        told = self._one(
            "select count(*) filter (where event_type = 'attempt_started'),"
            " count(*) filter (where event_type = 'request_received'),"
            " coalesce(sum(coalesce(billed_cost_usd, list_cost_usd)), 0) from events"
        )
        self._db.execute(
            "set variable ledger_allow_damage = true"
        )  # that a closed journal has no open end, too
        for view in _WITH_WHAT_THEY_READ:
            self._db.execute(f"create temp {self._kind_of(view)} {view} as {sql_file(view)}")
        of_attempts = self._one(f"select count(*), {sums}, count(*) filter (where is_unpriced) from attempts")
        yield from _unequal("attempts, and the events that tell of them", of_attempts[:2], told[::2])
        for view, requests in _REQUESTS_IN.items():
            found = self._one(
                f"select {requests}, coalesce(sum(attempts), 0), {sums}, coalesce(sum(unpriced_attempts), 0)"
                f" from {view}"
            )
            yield from _unequal(f"the sums of {view} and of attempts", found, (told[1], *of_attempts))

    def counts(self) -> Counts:
        """How much there is."""
        row = self._one(
            "select count(*), count(*) filter (where event_type = 'request_received'),"
            " count(*) filter (where event_type = 'attempt_started'),"
            " sum(coalesce(billed_cost_usd, list_cost_usd)) from events"
        )
        events, requests, attempts, cost_usd = row
        journals = sum(bool(journal.lines) for journal in self._journals)
        cost = Decimal(cost_usd) if cost_usd is not None else None
        return Counts(events, len(self._chain.links), journals, requests, attempts, cost)

    def broken_ceilings(self) -> list[Note]:
        """Attempts that cost more than the most they could."""
        (times,) = self._one("select count(*) from events where event_type = 'ceiling_broken'")
        what = "attempts that cost more than their ceiling: budgets may have been overshot by that much"
        return [Note("ceiling-broken", times, what)] if times else []

    def wrong_projection(self, projection: Projection) -> Iterator[Finding]:
        """How state.db differs from the fold of all events up to its own positions."""
        for table, columns in sql_types().items():
            self._fill(f"state_{table}", columns, projection.rows[table])
        self._db.execute(_sql("fold"))
        is_right = True
        for table, found in _COMPARED.items():
            if table == "sums" and not is_right:
                continue  # they are of what is wrong
            nothing_found = not any(projection.rows[name] for name in re.findall(r"state_(\w+)", found))
            for finding in self._difference(
                table, found, f"from expected_{table}", nothing_found=nothing_found
            ):
                is_right = False
                yield finding

    def wrong_index(self, projection: Projection) -> Iterator[Finding]:
        """How the index of sessions differs from what the segments hold."""
        numbers = [
            (str(self._root / link.batch.file), link.batch.batch)
            for link in self._chain.links
            if link.is_sound and link.batch.batch <= projection.indexed[0]
        ]
        if not (numbers or projection.rows["session_batches"]):
            return
        self._fill("batches", [("filename", "varchar"), ("batch", "bigint")], numbers)
        self._fill("state_index", sql_types()["session_batches"], projection.rows["session_batches"])
        self._db.execute(
            "create temp table expected_index as select distinct session_id, batch"
            " from sealed_rows join batches using (filename) where session_id is not null"
        )
        yield from self._difference(
            "session_batches",
            f"select * from state_index where batch > {projection.indexed[0]} or batch in"
            " (select batch from batches)",
            "from expected_index",
        )

    def _difference(
        self, table: str, found: str, expected: str, *, nothing_found: bool = False
    ) -> Iterator[Finding]:
        """`nothing_found`: that the first has no rows is known, and need not be asked."""
        besides = [] if nothing_found else self._all(f"({found}) except all ({expected}) order by all")
        left_out = "" if nothing_found else f" except all ({found})"
        lacking = self._all(f"({expected}){left_out} order by all")
        if not besides and not lacking:
            return
        said, should = (
            _Words().format(_LIKENESS[table], *rows[0], row=rows[0]) if rows else nothing
            for rows, nothing in ((besides, "nothing of what the events say"), (lacking, "nothing of it"))
        )
        what = f"{table} is not what the events make of it ({_rows(max(len(besides), len(lacking)))}):"
        yield Finding("state-differs", STATE, f"{what} it has {said}; the events say {should}", RECOVER)

    def _fill(self, name: str, columns: Sequence[tuple[str, str]], rows: Sequence[tuple[Any, ...]]) -> None:
        import pyarrow as pa

        types = ", ".join(f"{column} {kind}" for column, kind in columns)
        self._db.execute(f"create or replace temp table {name} ({types})")
        if rows:
            arrays = zip(*rows, strict=True)
            arrow = {"varchar": pa.string(), "bigint": pa.int64()}
            table = pa.table(
                {
                    column: pa.array(values, arrow[kind])
                    for (column, kind), values in zip(columns, arrays, strict=True)
                }
            )
            self._db.register("given", table)
            self._db.execute(f"insert into {name} from given")
            self._db.unregister("given")

    def _all(self, sql: str) -> list[tuple[Any, ...]]:
        return self._db.execute(sql).fetchall()

    def _one(self, sql: str) -> tuple[Any, ...]:
        row = self._db.execute(sql).fetchone()
        assert row is not None, "an aggregate has a row"
        return row


def _sql(name: str) -> str:
    return Path(__file__).with_name(f"{name}.sql").read_text("utf-8")


def _is_event(line: bytes, seq: int) -> bool:
    """Whether a line with a right check is an event of this version, with its own stamp."""
    with contextlib.suppress(DamagedLedger, ValueError, TypeError, KeyError):
        record = parsed(line)
        datetime.fromisoformat(record["occurred_at"])
        event_of(record)
        return line.isascii() and record["seq"] == seq and isinstance(record["schema_version"], int)
    return False


def _unequal(what: str, found: Sequence[Any], expected: Sequence[Any]) -> Iterator[Finding]:
    if tuple(found) != tuple(expected):
        shown, should = (", ".join(map(str, row)) for row in (found, expected))
        remedy = "see which events a view leaves out or counts twice, and report it"
        yield Finding("sums", "", f"{what} differ: {shown}, and {should}", remedy)
