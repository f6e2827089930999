"""What must hold of a ledger's folder whatever became of its writers; for tests that kill or stop them.

Promises        what a process said it would write, and what the ledger told it was written
inconsistent    what does not add up in one snapshot of a reader; any time
unsound         what is wrong with a ledger that no writer has open

Each finding is a line of text; none is what is hoped for.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from hashlib import md5
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from ledger.events import OUTCOMES, REQUEST_ENDS, STAMP_FIELDS
from ledger.history import all_runs
from ledger.ledger import Ledger
from ledger.reader import connect
from ledger.relations import statements
from ledger.request_log import RequestLog
from ledger.state import State

if TYPE_CHECKING:
    import duckdb

SHOWN = 5  # of findings of one kind

_WRITE = os.write  # whatever a test makes of it

Row = dict[str, Any]  # an event as a reader gives it, absent fields left out


class Promise(NamedTuple):
    """An event's content, and its `occurred_at` once the ledger has acknowledged it."""

    content: str
    occurred_at: str | None


class Promises:
    """A file of one process: what it is about to append, and what was acknowledged. Outlives a kill."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def mean(self, *events: BaseModel) -> None:
        """Note what is about to be appended."""
        self._write([Promise(content_of(event.model_dump()), None) for event in events])

    def kept(self, occurred_at: datetime, *events: BaseModel) -> None:
        """Note what was appended: the ledger has answered for it."""
        self._write([Promise(content_of(event.model_dump()), _text(occurred_at)) for event in events])

    def append(self, log: RequestLog, *events: BaseModel) -> None:
        """Append events to a request, and note both."""
        self.mean(*events)
        self.kept(log.append(*events), *events)

    def _write(self, promises: Sequence[Promise]) -> None:
        _WRITE(self._fd, b"".join(json.dumps(promise).encode() + b"\n" for promise in promises))


def promises_in(folder: Path) -> list[Promise]:
    """All promises of the files in a folder; a line torn by a kill is no promise."""
    lines = [line for file in sorted(folder.iterdir()) for line in file.read_bytes().split(b"\n")[:-1]]
    return [Promise(*json.loads(line)) for line in lines]


def content_of(fields: Mapping[str, Any]) -> str:
    """What an event says, its stamp left out: equal for an event and for what a reader makes of it."""
    said = [
        (name, _text(fields[name]))
        for name in sorted(fields)
        if fields[name] is not None and name not in STAMP_FIELDS
    ]
    return f"{fields['event_type']} {fields.get('request_id')} {md5(repr(said).encode()).hexdigest()}"


def _text(value: Any) -> str:
    if type(value) in (str, int, bool):  # most are
        return repr(value)
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return repr(sorted(value.items()) if isinstance(value, Mapping) else value)


def events_in(connection: duckdb.DuckDBPyConnection) -> list[Row]:
    """A snapshot's events in the order of their journals."""
    found = connection.execute("select * from events order by journal_id, seq")
    names = [column[0] for column in found.description or ()]
    return [
        {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for row in found.fetchall()
    ]


def opened(path: Path) -> duckdb.DuckDBPyConnection:
    """A snapshot with the views that must add up, the first kept as tables: as a reader of one session does.

    DuckDB then plans each of them once, and not again in all that are made of it.
    """
    connection = connect(path, views=())
    for statement in statements(("events", "attempts", "requests", "sessions", "daily_spend"), stored=True):
        connection.execute(statement)
    return connection


def inconsistent(connection: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """What a snapshot contradicts itself in: attempts, requests, sessions and days must add up alike."""
    figures = (
        *("cost_usd", "list_cost_usd", "input_tokens", "output_tokens"),
        *("unpriced_attempts", "in_doubt_attempts", "in_flight_attempts"),
    )
    sums = ", ".join(f"coalesce(sum({name}), 0)" for name in figures)
    of_attempts = (
        "select count(*), coalesce(sum(cost_usd), 0), coalesce(sum(list_cost_usd), 0),"
        " coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),"
        " count(*) filter (where is_unpriced), count(*) filter (where billing = 'unknown'),"
        " count(*) filter (where outcome = 'in_flight') from attempts"
    )
    expected = connection.execute(of_attempts).fetchone()
    for view in ("requests", "sessions", "daily_spend"):
        found = connection.execute(f"select coalesce(sum(attempts), 0), {sums} from {view}").fetchone()
        if found != expected:
            yield f"{view} add up to {found}, attempts to {expected} (attempts, {', '.join(figures)})"
    counts = "select count(*) from requests", "select coalesce(sum(requests), 0) from sessions"
    by_request, by_session = (connection.execute(sql).fetchall() for sql in counts)
    if by_request != by_session:
        yield f"{by_request} requests, but {by_session} in sessions"
    gaps = connection.execute(
        "select journal_id, count(*), count(distinct seq), min(seq), max(seq) from events group by journal_id"
        " having count(*) <> max(seq) or count(distinct seq) <> max(seq) or min(seq) <> 1"
    ).fetchall()
    yield from some("journal with a gap or a number twice", gaps)


def unsound(path: Path, promises: Sequence[Promise] = ()) -> Iterator[str]:
    """What is wrong with a ledger that no living process writes to. It is opened, and sealed."""
    before = snapshot(path)
    yield from lost(before, promises)
    Ledger.open(path, auto_seal=False).close()
    after, contradictions = _looked_at(path)
    yield from altered(before, after, "recovery")
    yield from lost(after, promises)
    yield from _not_meant(after, promises)
    yield from _untold(after)
    yield from contradictions
    with Ledger.open(path, auto_seal=False) as ledger:
        ledger.seal()
    sealed, contradictions = _looked_at(path)
    yield from altered(after, sealed, "sealing")
    if len(sealed) != len(after):
        yield f"{len(after)} events before sealing, {len(sealed)} after"
    yield from _not_sealed(path, sealed)
    yield from contradictions


def snapshot(path: Path) -> list[Row]:
    """All events as a reader sees them now."""
    with connect(path, views=("events",)) as connection:
        return events_in(connection)


def lost(rows: Sequence[Row], promises: Iterable[Promise]) -> Iterator[str]:
    """Acknowledged events that are not there exactly once, as they were and when they were."""
    found = Counter(Promise(content_of(row), _text(row["occurred_at"])) for row in rows)
    kept = {promise for promise in promises if promise.occurred_at is not None}
    yield from some(
        "acknowledged event not there once and as it was",
        [promise for promise in kept if found[promise] != 1],
    )


def _not_meant(rows: Sequence[Row], promises: Iterable[Promise]) -> Iterator[str]:
    """Events that no program asked for, or that stand there twice."""
    times = Counter(content_of(row) for row in rows if "request_id" in row)
    yield from some("event twice", [content for content, count in times.items() if count > 1])
    meant = {promise.content for promise in promises}
    if meant:
        strange = [row for row in rows if _is_a_writers(row) and content_of(row) not in meant]
        yield from some("event that nobody wrote", strange)


def _is_a_writers(row: Row) -> bool:
    """Whether a writer asked for this event: others tell of journals, of the dead, and of settlements."""
    own = ("journal_opened", "journal_closed", "attempt_abandoned", "attempt_cancelled", "attempt_settled")
    return row["event_type"] not in own and row.get("reason") not in ("abandoned", "cancelled")


def altered(before: Sequence[Row], after: Sequence[Row], by: str) -> Iterator[str]:
    """Events that have another content under their number than they had, or are gone."""
    now = {(row["journal_id"], row["seq"]): row for row in after}
    changed = [row for row in before if now.get((row["journal_id"], row["seq"])) != row]
    yield from some(f"event lost or changed by {by}", changed)


def _untold(rows: Sequence[Row]) -> Iterator[str]:
    """Journals, requests and attempts whose story is not whole."""
    journals: dict[str, list[Row]] = defaultdict(list)
    requests: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        journals[row["journal_id"]].append(row)
        if "request_id" in row and row["event_type"] != "attempt_settled":
            requests[row["request_id"]].append(row)
    for journal_id, story in journals.items():
        types = [row["event_type"] for row in story]
        if [row["seq"] for row in story] != list(range(1, len(story) + 1)):
            yield f"journal {journal_id} is not gapless from 1"
        if types[0] != "journal_opened" or "journal_closed" in types[:-1]:
            yield f"journal {journal_id} does not begin with its opening, or goes on after its end"
        if types[-1] != "journal_closed":
            yield f"journal {journal_id} was not closed, though no writer lives"
    settled = Counter(row["attempt_id"] for row in rows if row["event_type"] == "attempt_settled")
    yield from some("attempt settled twice", [name for name, times in settled.items() if times > 1])
    broken = [(request_id, why) for request_id, story in requests.items() if (why := _wrong_in(story))]
    yield from some("request", broken)


def _wrong_in(story: Sequence[Row]) -> str | None:
    """What is wrong with the events of one request, in their order."""
    types = [row["event_type"] for row in story]
    if len({row["journal_id"] for row in story}) != 1:
        return "is told in several journals"
    if types[0] != "request_received" or types.count("request_received") != 1:
        return f"does not begin once: {types}"
    ends = [index for index, name in enumerate(types) if name in REQUEST_ENDS]
    if ends != [len(story) - 1]:
        return f"does not end once, at its end: {types}"
    attempts: dict[str, list[Row]] = defaultdict(list)
    for row in story:
        if row["event_type"] == "attempt_started" or row["event_type"] in OUTCOMES:
            attempts[row["attempt_id"]].append(row)
    return next(filter(None, map(_wrong_in_attempt, attempts.values())), None)


def _wrong_in_attempt(told: Sequence[Row]) -> str | None:
    types = [row["event_type"] for row in told]
    if types[0] != "attempt_started" or len(told) != 2:
        return f"has an attempt told as {types}"
    outcome = told[-1]
    if types[-1] == "attempt_abandoned" and (
        outcome.get("reserved_usd") != told[0].get("reserved_usd")
        or outcome["billing"] != "unknown"
        or outcome["started_at"] != told[0]["occurred_at"]
    ):
        return "has an attempt that was not abandoned with its ceiling"
    return None


def _looked_at(path: Path) -> tuple[list[Row], list[str]]:
    """All events, and how the views contradict themselves or state.db; in one snapshot."""
    with opened(path) as connection:
        rows, contradictions = events_in(connection), list(inconsistent(connection))
        ((shown,),) = connection.execute("select coalesce(sum(cost_usd), 0) from attempts").fetchall()
    return rows, [*contradictions, *_not_derived(path, shown)]


def _not_derived(path: Path, cost_usd: Decimal) -> Iterator[str]:
    """How state.db differs from a fold of all events made anew, or from what the views say it cost."""
    state = State(path / "state.db")
    try:
        found = state.dump()
        spent = state.balance("all", "").spent_usd
        reserved = state.balance("all", "").reserved_usd
    finally:
        state.close()
    with tempfile.TemporaryDirectory(prefix="fold-") as folder:
        fresh = State(Path(folder) / "state.db")
        with fresh.transaction():
            fresh.rebuild(all_runs(path))
        expected = fresh.dump()
        fresh.close()
    for table, rows in expected.items():
        missing, besides = set(rows) - set(found[table]), set(found[table]) - set(rows)
        if missing or besides:
            yield f"state.db, {table}: lacks {list(missing)[:SHOWN]}, has besides {list(besides)[:SHOWN]}"
    if reserved:
        yield f"state.db holds ${reserved} for attempts, and no writer lives"
    if spent != cost_usd:
        yield f"state.db has ${spent} spent, the views ${cost_usd}"


def _not_sealed(path: Path, rows: Sequence[Row]) -> Iterator[str]:
    """What a reader of the Parquet files alone sees otherwise than the ledger's own reader."""
    import pyarrow.parquet as pq

    files = [file for file in path.glob("events/**/*.parquet") if file.name != "empty.parquet"]
    found = Counter[tuple[str, int]]()
    for file in files:
        table = pq.read_table(file, columns=["journal_id", "seq"], partitioning=None)
        found.update(zip(*(column.to_pylist() for column in table.columns), strict=True))
    expected = {(row["journal_id"], row["seq"]) for row in rows}
    yield from some("event not sealed", sorted(expected - found.keys()))
    yield from some("event sealed that no reader sees", sorted(found.keys() - expected))
    yield from some("event sealed twice", [key for key, times in found.items() if times > 1])


def above_limit(path: Path, beginning: str, limit_usd: Decimal) -> Iterator[str]:
    """What counts beyond the limit of each session whose name begins so, in one look at state.db."""
    state = State(path / "state.db")
    named = "select scope_id from balances where scope = 'session' union select session_id from holds"
    with contextlib.closing(state), state.transaction():
        names = [name for (name,) in state._db.execute(named) if str(name).startswith(beginning)]
        balances = {str(name): state.balance("session", str(name)) for name in names}
    above = [(name, balance) for name, balance in balances.items() if sum(balance) > limit_usd]
    yield from some(f"session above its limit ${limit_usd}", above)


def some(what: str, findings: Sequence[Any]) -> Iterator[str]:
    """A line for findings of one kind, the first few shown; none where there are none."""
    if findings:
        yield f"{len(findings)} × {what}: {', '.join(map(str, findings[:SHOWN]))}"
