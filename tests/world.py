"""Writers of one ledger on a forgetful disk, and a list in memory of what they were told was kept.

with World(tmp_path, seed=1) as world:
    writer = world.start()
    writer.answer("r-1")                    # noted: meant, and then kept
    world.disk.power_loss(world.random)
    world.start()                           # recovers
    assert not list(world.findings())       # what the list and the ledger disagree about
"""

from __future__ import annotations

import atexit
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache, lru_cache
from pathlib import Path
from random import Random
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sound
from events_by_hand import completed, failed, received, started, succeeded
from forgetful import Died, ForgetfulDisk, Process
from pydantic import BaseModel
from sound import Promise, Row, content_of

from ledger import segments
from ledger.budgets import Hold, Limit
from ledger.errors import LedgerError
from ledger.events import event_of
from ledger.history import all_runs
from ledger.ledger import Ledger
from ledger.lines import journal_ids, merged_lines, parsed, read_parts
from ledger.manifest import read_manifest
from ledger.prices import PriceBook
from ledger.reader import connect
from ledger.request_log import RequestLog
from ledger.settings import Durability
from ledger.state import State
from ledger.verify import verify

_IN_MEMORY = Path("/dev/shm")
_ANSWERS = ("attempt_succeeded", "request_completed")
_prices = cache(PriceBook.load)
_one_duckdb = cache(segments.reading_lines)


class World:
    """A ledger's folder with its writers, their clock, and what became of all they wrote."""

    writer: Writer  # the one that a scenario goes on with

    def __init__(self, folder: Path, seed: int = 0, durability: Durability = "power-loss") -> None:
        self._place = tempfile.TemporaryDirectory(prefix="world-", dir=_place_for(folder))
        self.disk = ForgetfulDisk(Path(self._place.name) / "disk")
        self.path = self.disk.root / "data" / "ledger"
        self.random = Random(seed)
        self.durability = durability
        self.now = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
        self.promises: list[Promise] = []
        self.refused: set[str] = set()  # requests that the ledger would not record
        self.settled: set[str] = set()  # attempts
        self.perhaps_settled: set[str] = set()
        self._seen: list[Row] = []

    def __enter__(self) -> Self:
        self.disk.__enter__()
        # Its DuckDB is in memory, and costs more to start than a few lines to read: sealers share one.
        self.disk.patches.setattr(segments, "reading_lines", lambda: _one_duckdb().cursor())
        return self

    def __exit__(self, *_: object) -> None:
        self.disk.__exit__()
        self._place.cleanup()

    def tick(self) -> datetime:
        """The writers' clock: a millisecond later each time it is asked."""
        self.now += timedelta(milliseconds=1)
        return self.now

    def fail_a_sync(self) -> None:
        """The next sync fails, where any is promised."""
        self.disk.failing_syncs = int(self.durability == "power-loss")

    def die_at(self, point: str, what: Callable[[], object]) -> None:
        """The acting process does something, and dies of it at a point."""
        self.disk.watch(die_at=point)
        with pytest.raises(Died):
            what()
        self.disk.watch()

    def start(self, name: str = "writer") -> Writer:
        """A process opens the ledger, and so recovers what others have left."""
        return Writer(self, self.disk.start(name))

    def findings(self, thorough: bool = True) -> Iterator[str]:
        """What is wrong, now that all writers are gone and one has recovered after them."""
        self.disk.start("onlooker")
        rows, sealed_twice = rows_of(self.path)
        yield from sound.lost(rows, self.promises)
        yield from sound.altered(self._seen, rows, "what came after")
        yield from sound._not_meant([row for row in rows if not _is_settlement(row)], self.promises)
        yield from sound._untold(rows)
        yield from sound.some("refused request that did not end as cancelled", self._taken_up(rows))
        yield from sound.some("settled not once", self._wrongly_settled(rows))
        yield from self._not_derived()
        yield from sound.some("event sealed twice", sealed_twice)
        if thorough:
            yield from _read_otherwise(self.path, rows)
            yield from map(str, verify(self.path).findings)
        self._seen = rows

    def _taken_up(self, rows: list[Row]) -> list[str]:
        """Refused requests that the ledger tells as if they had been sent."""
        refused = [row for row in rows if row.get("request_id") in self.refused]
        completed = [row for row in refused if row["event_type"] in _ANSWERS]
        ends = [row for row in refused if row["event_type"] == "request_failed"]
        others = [row for row in ends if row["reason"] not in ("cancelled", "abandoned")]
        return [str(row["request_id"]) for row in completed + others]

    def _wrongly_settled(self, rows: list[Row]) -> list[str]:
        """Attempts that were settled and do not stand so, or stand so twice or unasked."""
        found = Counter(row["attempt_id"] for row in rows if _is_settlement(row))
        asked = self.settled | self.perhaps_settled
        return [
            name
            for name in asked | found.keys()
            if not (name in self.settled) <= found[name] <= (name in asked)
        ]

    def _not_derived(self) -> Iterator[str]:
        """How state.db differs from what all events, folded anew, make of it."""
        found, reserved = _dumped(self.path / "state.db")
        expected = _folded(self.path)
        for table, rows in expected.items():
            if found[table] != rows:
                yield f"state.db, {table}: {found[table]}, and the events say {rows}"
        if reserved:
            yield f"state.db holds ${reserved} for attempts of which nobody knows"


class Writer:
    """A process with the ledger open; each of its calls is that process's."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self.process = process
        self.logs: dict[str, RequestLog] = {}  # open requests
        self.ledger = Ledger.open(
            world.path, world.durability, clock=world.tick, prices=_prices(), auto_seal=False
        )
        process.ledgers.append(self.ledger)

    def begin(self, request_id: str, **fields: Any) -> None:
        """A request with its first attempt, durable before anything would be sent."""
        asked, first = received(request_id), started(request_id, **fields)
        with self._noted(request_id, asked, first):
            log = self.ledger.begin(asked, first)
            self.logs[request_id] = log
            self._kept(log.started_at, asked, first)

    def begin_beside(self, request_id: str, pool: ThreadPoolExecutor) -> Future[None]:
        """As `begin`, in another thread; returns when that waits in line for the one that writes."""
        (journal,) = self.ledger._journals.all()
        in_line = len(journal._confirming._waiting)
        beside = pool.submit(self.begin, request_id)
        while len(journal._confirming._waiting) == in_line and not beside.done():
            threading.Event().wait(0.001)
        return beside

    def begin_within(self, request_id: str, limit_usd: Decimal) -> None:
        """As `begin`, with the ceiling held against a session's limit before."""
        asked, first = received(request_id), started(request_id)
        hold = Hold(
            *(first.attempt_id, request_id, first.session_id, first.task, first.tier, first.model),
            ceiling_usd=Decimal("0.01"),
        )
        with self._noted(request_id, asked, first):
            log = self.ledger.open_request(asked)
            log.reserve(hold, [Limit("session", "s-1", limit_usd)])
            self.logs[request_id] = log
            self._kept(log.append(first), asked, first)

    def answer(self, request_id: str) -> None:
        """The answer of a request, begun here if it was not."""
        if request_id not in self.logs:
            self.begin(request_id)
        log = self.logs.pop(request_id)
        self._append(log, request_id, succeeded(log, request_id), completed(log, request_id))

    def retry(self, request_id: str) -> None:
        """An attempt that failed, and the next one started: what happened is kept whatever the disk says."""
        log = self.logs[request_id]
        self._append(log, request_id, failed(log, request_id))
        again = started(request_id, 2)
        with self._noted(request_id, again):
            self._kept(log.append(again), again)

    def answer_retry(self, request_id: str) -> None:
        """The answer to the second attempt."""
        log = self.logs.pop(request_id)
        outcome = succeeded(log, request_id, 2)
        self._append(log, request_id, outcome, completed(log, request_id, attempt_number=2))

    def settle(self, attempt_id: str, billed_usd: Decimal) -> None:
        """A later word on an attempt in doubt."""
        self._acts()
        self._world.perhaps_settled.add(attempt_id)
        self.ledger.settle(attempt_id, billed_usd, reason="the invoice says so")
        self._world.settled.add(attempt_id)

    def close(self) -> None:
        """Close the ledger as a program does at its end."""
        self._acts()
        self.ledger.close()

    def seal(self) -> Any:
        """Seal, as the nightly run does."""
        self._acts()
        return self.ledger.seal()

    def _acts(self) -> None:
        self._world.disk.acting = self.process

    def _append(self, log: RequestLog, request_id: str, *events: BaseModel) -> None:
        self._acts()
        self._world.promises.extend(_meant(*events))
        self._kept(log.append(*events), *events)

    @contextmanager
    def _noted(self, request_id: str, *events: BaseModel) -> Iterator[None]:
        """Events that open something: meant before, and refused where the ledger says so."""
        self._acts()
        self._world.promises.extend(_meant(*events))
        try:
            yield
        except LedgerError:
            self.logs.pop(request_id, None)
            self._world.refused.add(request_id)
            raise

    def _kept(self, occurred_at: datetime, *events: BaseModel) -> None:
        at = sound._text(occurred_at)
        self._world.promises.extend(Promise(content_of(event.model_dump()), at) for event in events)


def _place_for(folder: Path) -> Path:
    """Below a made-up disk lies memory, where there is any: what outlives a death is that disk's to say."""
    if os.access(_IN_MEMORY, os.W_OK | os.X_OK):
        return _IN_MEMORY
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_settlement(row: Row) -> bool:
    return bool(row["event_type"] == "attempt_settled")


def _meant(*events: BaseModel) -> list[Promise]:
    return [Promise(content_of(event.model_dump()), None) for event in events]


def rows_of(path: Path) -> tuple[list[Row], list[tuple[str, int]]]:
    """All events by journal and number, with Python's values; and what a plain read of segments has twice.

    Journals are read whole, sealed or not: AssertionError where they and segments contradict each other,
    or where a listed segment is missing.
    """
    told: dict[tuple[str, int], Row] = {}
    for journal_id in journal_ids(path / "journals"):
        for line in merged_lines(read_parts(path / "journals", journal_id)).values():
            _tell(told, _row_of_line(line))
    sealed = Counter[tuple[str, int]]()
    segments = {file for file in path.glob("events/**/*.parquet") if file.name != "empty.parquet"}
    assert segments >= {path / batch.file for batch in read_manifest(path)[0]}
    for file in sorted(segments):
        for row in _rows_of_segment(file.read_bytes()):
            sealed[_tell(told, row)] += 1
    return [told[key] for key in sorted(told)], [key for key, times in sealed.items() if times > 1]


def _tell(told: dict[tuple[str, int], Row], row: Row) -> tuple[str, int]:
    key = row["journal_id"], row["seq"]
    known = told.setdefault(key, row)
    assert known == row, f"one number, two contents: {known} and {row}"
    return key


@lru_cache(64)  # segments and lines are looked at again after each recovery; what they hold, they say again
def _rows_of_segment(content: bytes) -> list[Row]:
    with pq.ParquetFile(pa.BufferReader(content)) as segment:
        return [_row(row) for row in segment.read(use_threads=False).to_pylist(maps_as_pydicts="strict")]


@lru_cache(4096)
def _row_of_line(line: bytes) -> Row:
    return _row(parsed(line))


def _row(recorded: Mapping[str, Any]) -> Row:
    moment = recorded["occurred_at"]
    stamp = {
        "journal_id": recorded["journal_id"],
        "seq": recorded["seq"],
        "occurred_at": datetime.fromisoformat(moment) if isinstance(moment, str) else moment,
    }
    return {**event_of(dict(recorded)).model_dump(exclude_none=True), **stamp}


def _dumped(database: Path) -> tuple[dict[str, list[tuple[Any, ...]]], Decimal]:
    state = State(database)
    try:
        return state.dump(), state.balance("all", "").reserved_usd
    finally:
        state.close()


@cache
def _scratch() -> State:
    folder = tempfile.TemporaryDirectory(prefix="fold-")
    atexit.register(folder.cleanup)
    return State(Path(folder.name) / "state.db")


def _folded(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """What state.db should hold: all events folded anew."""
    with _scratch().transaction():
        _scratch().rebuild(all_runs(path))
    return _scratch().dump()


def _read_otherwise(path: Path, rows: list[Row]) -> Iterator[str]:
    """What the ledger's own reader says otherwise."""
    with connect(path, views=("events", "attempts", "requests", "sessions", "daily_spend")) as connection:
        yield from sound.inconsistent(connection)
        found = connection.execute("select count(*) from events").fetchall()
        cost = connection.execute("select coalesce(sum(cost_usd), 0) from attempts").fetchall()
    costs = (row.get("billed_cost_usd", row.get("list_cost_usd")) for row in rows)
    expected = sum(cost for cost in costs if cost is not None)
    if found != [(len(rows),)] or cost != [(expected,)]:
        yield f"the reader sees {found} events for {cost}; there are {len(rows)} for {expected}"


__all__ = ["Died", "World", "Writer", "rows_of"]
