"""The ledger as a program uses it: requests are begun, their events appended, everything is kept.

    with Ledger.open("data/ledger") as ledger:
        log = ledger.begin(RequestReceived(...), AttemptStarted(...))   # durable before anything is sent
        log.append(AttemptSucceeded(...), RequestCompleted(...))        # durable before route() returns
        ledger.connect().sql("select * from sessions")

A request's whole story is in one journal. This module decides which, tells state.db, and lets go of
everything at a fork; how a line is written is the journal's affair.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import apsw
from pydantic import BaseModel

from ledger import price_books
from ledger.auto_sealing import AutoSealer
from ledger.budgeting import budgets_of, keep_to_file, lift_budget, set_budget
from ledger.budgets import NO_BUDGETS, Budget, Budgets, Hold, Limit, Warned
from ledger.circuit_board import CircuitBoard
from ledger.errors import DamagedLedger, LedgerBusy, LedgerError
from ledger.events import JournalOpened, RequestReceived, build_models
from ledger.history import all_runs
from ledger.journal import Clock, Journal
from ledger.layout import lay_out
from ledger.living import LivingJournals, tell_of_living
from ledger.prices import PriceBook
from ledger.recovery import has_living_writers
from ledger.request_log import RequestLog
from ledger.reservations import OthersMayLag
from ledger.settings import Durability, Settings
from ledger.state import State
from ledger.windows import quarter_of

if TYPE_CHECKING:
    import duckdb
    import polars as pl

    from ledger.events import AttemptSettled
    from ledger.sealing import Recovery, Sealed

_T = TypeVar("_T")

_log = logging.getLogger("ledger")

_POLL_S = 0.000_5
_OUTCOME_WAITS_S = 0.25  # to tell state.db, where budgets wait for the rest of its ceiling
ROTATE_AT_EVENTS = 50_000
TELL_AT_COMMITS = 16  # with outcomes of attempts whose ceilings are held: until then these count
COUNTED_AT_MOST = 16  # events, one by one, for a question; more are told
APPLY_AT_EVENTS = 512  # state.db lags behind by at most so many events of a writer without budgets


class Held(NamedTuple):
    """A ceiling that is held: in which quarter of an hour, and the warn limits it crosses."""

    quarter: int
    warned: Sequence[Warned]


def utc_now() -> datetime:
    """The wall clock, UTC-aware."""
    return datetime.now(UTC)


def in_utc(clock: Clock) -> Clock:
    """A clock's moments in UTC. Reading it raises LedgerError where it does not say in which zone it is."""

    def read() -> datetime:
        now = clock()
        if now.tzinfo is UTC:
            return now
        if now.tzinfo is None:
            raise LedgerError(f"the ledger's clock says {now}, without a time zone; use datetime.now(UTC)")
        return now.astimezone(UTC)

    return read


class Ledger:
    """A folder of journals and segments. Thread-safe; a forked child goes on with a journal of its own.

    Raises LedgerError where the folder cannot be used; see `open`.
    """

    def __init__(
        self,
        path: Path,
        *,
        durability: Durability,
        clock: Clock,
        prices: PriceBook,
        auto_seal: bool,
        temporary: bool = False,
    ) -> None:
        path = self.path = path.expanduser().absolute()  # a chdir does not move the ledger
        self.prices = prices
        self.durability = durability
        self._clock = clock = in_utc(clock)
        self._temporary = temporary
        self._closed = False
        self._sealer = AutoSealer(path, enabled=auto_seal)
        self._journals: dict[Journal, int] = {}  # this process's, with the requests that lease them
        self._current: Journal | None = None
        self._some_wait = False  # lines of these journals, for the disk
        self._open_state: State | None = None
        self.is_limited = False  # by more than what single calls bring along, as of the last look
        self._untold_commits = 0
        self._living = LivingJournals(path)
        self._lock = threading.Lock()  # which journals there are
        self._state_lock = threading.Lock()  # state.db
        self.circuits = CircuitBoard(self)
        self._at_exit = functools.partial(_close_at_exit, weakref.ref(self))
        try:
            self._identity = lay_out(path, temporary=temporary)
            price_books.keep(path, prices)
            self._today = clock().date()
            with self._state() as state:
                self._derive_if_new(state)
            self.end_dead_journals()
            self._sealer.start_if_due(self._today)
        except OSError as error:
            self.close()
            raise LedgerError(f"the ledger {path} cannot be opened: {error}") from error
        except BaseException:
            self.close()
            raise
        atexit.register(self._at_exit)
        _register_fork_hooks(weakref.ref(self))

    @classmethod
    def open(
        cls,
        path: str | Path | None = None,
        durability: Durability | None = None,
        *,
        clock: Clock = utc_now,
        prices: PriceBook | None = None,
        auto_seal: bool = True,
    ) -> Ledger:
        """Open or create the ledger at `path`; without one, at the place that settings name.

        durability: "power-loss" (the default) returns from an append when the disk has it,
        "process-crash" when the kernel has it. Ends what dead processes left open. Raises LedgerError
        where the path is not a folder this process can use, SettingsError for a broken bughive.toml.
        """
        try:
            settings = Settings.load()
            prices = prices or PriceBook.load(settings.prices)
        except OSError as error:
            raise LedgerError(f"the ledger cannot be opened: {error}") from error
        chosen = durability or settings.durability
        if chosen not in ("power-loss", "process-crash"):
            raise LedgerError(f"durability must be power-loss or process-crash, not {chosen!r}")
        budgets = budgets_of(settings.budgets, settings.tiers)
        ledger = cls(
            Path(path) if path is not None else settings.ledger_path,
            durability=chosen,
            clock=clock,
            prices=prices,
            auto_seal=auto_seal,
        )
        if settings.file is not None:
            try:
                keep_to_file(ledger, settings.file, budgets)
            except BaseException:
                ledger.close()
                raise
        return ledger

    @classmethod
    def in_memory(cls, *, clock: Clock = utc_now, prices: PriceBook | None = None) -> Ledger:
        """A private ledger in a temporary folder that goes when it is closed; for tests."""
        return cls(
            Path(tempfile.mkdtemp(prefix="bughive-ledger-")),
            durability="process-crash",
            clock=clock,
            prices=prices or PriceBook.load(),
            auto_seal=False,
            temporary=True,
        )

    @classmethod
    def recover(cls, path: str | Path, *, clock: Clock = utc_now) -> Recovery:
        """Finish what crashed in a ledger and derive its state.db anew, even where that is no database.

        Living writers go on meanwhile. Raises LedgerError where the path is not a ledger.
        """
        from ledger.reader import existing_ledger
        from ledger.sealing import rebuild

        root = existing_ledger(path)
        lay_out(root)
        state = _usable_state(root)
        try:
            with state.told():
                return rebuild(root, state, in_utc(clock))
        finally:
            state.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __repr__(self) -> str:
        return f"<Ledger {self.path} {self.durability}{' closed' if self._closed else ''}>"

    @property
    def id(self) -> str:
        """This ledger's identity: 32 hex characters, in the name of each of its segments."""
        return self._identity.ledger_id

    def now(self) -> datetime:
        """The moment by this ledger's clock, UTC-aware."""
        return self._clock()

    def prompt_hash(self, body: bytes) -> str:
        """32 hex characters; equal for equal bodies in one ledger, and no help in guessing a prompt."""
        return hashlib.blake2b(body, key=self._identity.prompt_key, digest_size=16).hexdigest()

    def begin(self, received: RequestReceived, *events: BaseModel) -> RequestLog:
        """Record a request and what follows at once; durable on return.

        Raises LedgerError where that is not possible: then nothing may be sent.
        """
        log = self.open_request(received)
        log.append(*events)
        return log

    def open_request(self, received: RequestReceived) -> RequestLog:
        """A request's line to its journal; nothing is recorded before its first `append`."""
        return RequestLog(self, self._lease_journal(), received)

    def budgets(self) -> Budgets:
        """The budgets in force now, whoever set them. Raises LedgerError where that cannot be told."""
        with self._state() as state:
            found = state.budgets()
        if not found:
            self.is_limited = False
        return found

    def set_budget(self, budget: Budget) -> None:
        """Set a budget, or set it anew; it holds for every attempt that begins from now on, in any process.

        What was spent until now counts. Raises LedgerError where it could not be recorded.
        """
        set_budget(self, budget)

    def lift_budget(self, budget: Budget) -> None:
        """Lift the budget of that scope, id and mode. Raises LedgerError where there is none."""
        lift_budget(self, budget)

    def budgets_known(self) -> Budgets:
        """The budgets in force, as of this process's last look; looked at now where there were none."""
        state = self._open_state
        return (state.known_budgets if state is not None else NO_BUDGETS) or self.budgets()

    def reserve(
        self,
        journal: Journal,
        hold: Hold,
        limits: Sequence[Limit] = (),
        earlier_usd: Decimal | None = None,
    ) -> Held:
        """Hold a ceiling in a journal's name, as RequestLog.reserve. Raises BudgetExceeded, LedgerError.

        earlier_usd: the ceilings of all earlier attempts of its request; None: not known.
        """
        quarter = quarter_of(self._clock())
        asked = (journal.id, hold, limits, quarter)
        if not self._becomes_limited(limits) and self._is_held_at_once(*asked, earlier_usd):
            return Held(quarter, ())
        own = self._own_journals()
        told = {each.id for each in own}

        def warned(state: State) -> list[Warned]:
            return state.reserve(*asked, told)

        while True:
            try:
                return Held(quarter, self._transact(own, warned))
            except OthersMayLag as lag:
                self._read_living(lag.journal_ids)
                told |= lag.journal_ids

    def _becomes_limited(self, limits: Sequence[Limit]) -> bool:
        """Whether more than single requests are limited in this process from now on.

        Noted before state.db is told of its journals: what they get later is told of by whoever appends it.
        """
        if self.is_limited:
            return False
        self.is_limited = bool(self.budgets_known()) or any(limit.scope != "request" for limit in limits)
        return self.is_limited

    def _is_held_at_once(self, *asked: Any) -> bool:
        with self._state_lock:
            state = self._open_state
            try:
                return state is not None and state.reserve_at_once(*asked)
            except apsw.Error as error:
                raise state.error_of(error) from error  # type: ignore[union-attr]  # it has raised it

    def tell(self, journal: Journal, *, can_wait: bool) -> None:
        """State.db is to know what a journal has written, without waiting long for others.

        can_wait: until some more has come; what state.db knows instead counts no less.
        """
        self._untold_commits += 1
        if not (can_wait and self._untold_commits < TELL_AT_COMMITS):
            self._untold_commits = 0
            self._apply_quietly(journal, wait_s=_OUTCOME_WAITS_S)

    def read_state(self, ask: Callable[[State], _T]) -> _T:
        """What state.db says once it knows all that this process has written."""
        return self._transact(self._own_journals(), ask)

    def session_spent(self, session_id: str) -> Decimal | None:
        """What a session has cost, as state.db has it; None where that may not be all. Raises LedgerError."""
        own = self._own_journals()
        if not self._knows_others({journal.id for journal in own}):
            return None
        journal_id, untold = "", []
        if len(own) == 1:  # what it has not told yet is added here: nothing is written for a question
            journal_id, untold = own[0].id, own[0].take_unapplied()
        if len(own) > 1 or len(untold) > COUNTED_AT_MOST:
            self._catch_up()
            untold = []
        with self._state() as state:
            return state.session_spent(session_id, journal_id, untold)

    def _knows_others(self, own: set[str]) -> bool:
        """Whether state.db knows all that journals of others hold, after they were read where it did not."""
        with self._state() as state:
            lagging = self._living.lagging(state, own)
        return not lagging or self._read_living(lagging)

    def apply_living(self) -> None:
        """Tell state.db what living journals of all processes hold, though their owners have not yet."""
        self._catch_up()
        self._read_living(self._living.names())

    def _read_living(self, journal_ids: Iterable[str]) -> bool:
        try:
            with self._state() as state:
                return tell_of_living(self.path, state, journal_ids)
        except OSError as error:
            raise LedgerError(f"journals of {self.path} cannot be read: {error}") from error

    def record(self, *events: BaseModel) -> None:
        """Append events that belong to no request, as one commit; durable on return, and in state.db.

        Raises LedgerError where they could not be written: they are written as soon as that is possible.
        """
        journal = self._lease_journal()
        try:
            journal.append(events, must_keep=True)
        finally:
            self.request_ended(journal)
        self._apply_quietly(journal)

    def settle(
        self, attempt_id: str, billed_usd: Decimal | None, *, reason: str | None = None
    ) -> AttemptSettled:
        """Record what an attempt in doubt was billed, None: nothing; see ledger.settlement."""
        return self.settle_all([attempt_id], billed_usd, reason=reason)[0]

    def settle_all(
        self, attempt_ids: Sequence[str], billed_usd: Decimal | None, *, reason: str | None = None
    ) -> list[AttemptSettled]:
        """Record what each of these was billed; all of them, or none where one cannot be settled."""
        from ledger.settlement import settle

        return settle(self, attempt_ids, billed_usd, reason)

    def flush(self) -> None:
        """Write what waits for the disk in this process's journals. Raises LedgerError where that fails."""
        for journal in self._own_journals():
            journal.flush()

    def end_dead_journals(self) -> None:
        """Record how what dead processes left open has ended; state.db then knows all that is written.

        Raises LedgerError where that cannot be written, or a newer version has been at it.
        """
        from ledger.sealing import recover_dead

        self._catch_up()
        try:
            with self._state() as state:
                recover_dead(self.path, state, self._clock)
        except OSError as error:
            raise LedgerError(f"dead journals of {self.path} cannot be ended: {error}") from error

    def release(self, attempt_id: str) -> None:
        """Let go of a hold whose attempt never started."""
        with contextlib.suppress(LedgerError), self._state() as state, state.transaction():
            state.release(attempt_id)

    def seal(self, *, wait_s: float = 60.0) -> Sealed:
        """Move all whole lines of all journals into segments; see ledger.sealing."""
        from ledger.sealing import seal

        self._catch_up()
        with self._state() as state:
            return seal(self.path, self.id, state, self._clock, wait_s=wait_s)

    def connect(self, session_id: str | None = None) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection with all views, as of now; with a session only its segments are opened."""
        from ledger.reader import connect

        return connect(self.path, session_id=session_id)

    def scan(self) -> pl.LazyFrame:
        """All events, one row each, as a Polars LazyFrame; columns as in ledger.schema."""
        from ledger.reader import scan

        return scan(self.path)

    def close(self) -> None:
        """Close this process's journals and state.db. Requests still open are left to recovery."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        with self._lock:
            journals, self._journals, self._current = list(self._journals), {}, None
        try:
            for journal in journals:
                self._close_journal(journal, "closed")
        finally:
            with self._state_lock:
                if self._open_state is not None:
                    self._open_state.close()
                    self._open_state = None
            if self._temporary:
                shutil.rmtree(self.path, ignore_errors=True)

    # the journals of this process

    def _own_journals(self) -> list[Journal]:
        with self._lock:
            return list(self._journals)

    def _lease_journal(self) -> Journal:
        """The journal for a new request. It stays open until `request_ended`."""
        with self._lock:
            if self._closed:
                raise LedgerError(f"the ledger {self.path} is closed; open it again to record more")
            if self._current is not None and self._current.is_lost:
                self._journals.pop(self._current, None)
                self._current.leave()
                self._current = None
            if self._current is None:
                self._current = self._new_journal()
                self._journals[self._current] = 0
            self._journals[self._current] += 1
            return self._current

    def _new_journal(self) -> Journal:
        import uuid_utils

        opened = JournalOpened(host=socket.gethostname() or "unknown", pid=os.getpid(), version=_version())
        journal = Journal.create(
            self.path / "journals",
            uuid_utils.uuid7().hex,
            opened,
            self._clock,
            durable=self.durability == "power-loss",
        )
        journal.apply_at_seq = APPLY_AT_EVENTS
        return journal

    def journal_appended(self, journal: Journal, occurred_at: datetime) -> None:
        """What need not be done at each append: tell state.db, rotate, seal a day that is over."""
        if self._some_wait:  # for the disk, which has just taken something
            self._write_what_waits()
        if journal.seq >= journal.apply_at_seq:
            journal.apply_at_seq = (
                journal.seq + APPLY_AT_EVENTS
            )  # where it fails too: an append waits for nobody
            self._apply_quietly(journal, wait_s=0)
        today = occurred_at.date()
        if journal.seq >= ROTATE_AT_EVENTS or today != self._today:
            with self._lock:
                rotated = journal is self._current and journal.seq >= ROTATE_AT_EVENTS
                if rotated:
                    self._current = None
                new_day, self._today = today != self._today, today
                idle = rotated and self._journals.get(journal) == 0
            if idle:
                self._drop(journal)
            if rotated or new_day:
                self._sealer.start()

    def journal_waits(self) -> None:
        """Lines of a journal wait for the disk: they are written after the next append that succeeds."""
        self._some_wait = True

    def _write_what_waits(self) -> None:
        self._some_wait = False
        for journal in self._own_journals():
            try:
                journal.flush()
            except LedgerError:
                self._some_wait = not journal.is_lost
                continue
            with self._lock:
                drained = journal is not self._current and self._journals.get(journal) == 0
            if drained:
                self._drop(journal)

    def request_ended(self, journal: Journal) -> None:
        """Give a leased journal back; one that was rotated out is closed with its last request."""
        with self._lock:
            if journal not in self._journals:
                return  # closed meanwhile
            self._journals[journal] -= 1
            drained = journal is not self._current and self._journals[journal] == 0
        if drained:
            self._drop(journal)

    def _drop(self, journal: Journal) -> None:
        with self._lock:
            if journal.has_queue and not journal.is_lost:
                return  # what happened is kept until it can be written
            if self._journals.pop(journal, None) is None:
                return
        self._close_journal(journal, "rotated")

    def _close_journal(self, journal: Journal, reason: str) -> None:
        try:
            journal.close(reason)
        except LedgerError as error:
            _log.error("journal %s is left for recovery to close: %s", journal.id, error)
        self._apply_quietly(journal)

    # state.db

    @contextlib.contextmanager
    def _state(self, *, patient: bool = True) -> Iterator[State]:
        """state.db, opened when first used, for one thread at a time."""
        self._wait_for_state(None if patient else 0)
        with self._state_lock:
            state = self._open_state = self._open_state or State(self.path / "state.db")
            with state.told():
                yield state

    def _wait_for_state(self, wait_s: float | None) -> None:
        """Wait until no other thread is at state.db; `with` then takes its lock, which no Ctrl-C can keep."""
        give_up_at = time.monotonic() + (wait_s or 0)
        while wait_s is not None and self._state_lock.locked():
            if time.monotonic() >= give_up_at:
                raise LedgerBusy(f"another thread is at {self.path}/state.db; try again")
            time.sleep(_POLL_S)

    def _transact(
        self, journals: Sequence[Journal], do: Callable[[State], _T], *, wait_s: float | None = None
    ) -> _T:
        """Do something in a transaction of state.db that begins with what these journals have written.

        wait_s: for threads and processes that are at it; None: as long as it takes, up to a bound.
        """
        self._wait_for_state(wait_s)
        with self._state_lock:
            state = self._open_state = self._open_state or State(self.path / "state.db")
            try:
                state.begin(wait_s=wait_s)
                applied = [(journal, _apply(state, journal)) for journal in journals]
                result = do(state)
                state.commit()
            except apsw.Error as error:
                state.undo()
                raise state.error_of(error) from error
            except BaseException:
                state.undo()
                raise
        for journal, seq in applied:  # only now: a transaction that failed has applied nothing
            if seq:
                journal.applied(seq)
        return result

    def _catch_up(self) -> None:
        self._transact(self._own_journals(), _nothing)

    def look_up(self, what: Callable[[State], _T]) -> _T:
        """Something that state.db says. Raises LedgerBusy where another thread is at it, LedgerError."""
        with self._state(patient=False) as state:
            return what(state)

    def decide(
        self,
        decision: Callable[[State], BaseModel | None],
        then: Callable[[State], _T],
        *,
        patient: bool = True,
    ) -> _T:
        """Change state.db in one transaction over all processes, and journal the event that this gives.

        Returns what `then` finds. Raises LedgerBusy, LedgerError: nothing has changed; an event that could
        not be written is written as soon as that is possible.
        """
        journal = self._lease_journal()
        try:
            with self._state(patient=patient) as state:
                with state.transaction(patient=patient):
                    event = decision(state)
                    applied_seq = 0
                    if event is not None:
                        journal.append([event], must_keep=True)
                        applied_seq = _apply(state, journal)
                    found = then(state)
                if applied_seq:
                    journal.applied(applied_seq)
                return found
        finally:
            self.request_ended(journal)

    def _apply_quietly(self, journal: Journal, *, wait_s: float | None = None) -> None:
        """state.db is derived: nothing that fails in it may fail a request that is on the books."""
        try:
            self._transact([journal], _nothing, wait_s=wait_s)
        except Exception as error:
            unremarkable = isinstance(error, LedgerBusy) and wait_s is not None
            level = logging.DEBUG if unremarkable else logging.WARNING
            _log.log(level, "state.db lags behind journal %s: %s", journal.id, error)

    def _derive_if_new(self, state: State) -> None:
        if not state.is_derived:
            with state.transaction():
                state.rebuild(all_runs(self.path))

    # forks

    def _before_fork(self) -> None:
        """SQLite must not be open in both; and no lock may be held by a thread the child does not have."""
        build_models()
        self._lock.acquire()
        self._state_lock.acquire()
        if self._open_state is not None:
            self._open_state.close()
            self._open_state = None

    def _after_fork_in_parent(self) -> None:
        self._state_lock.release()
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        inherited, self._journals, self._current = list(self._journals), {}, None
        self._lock, self._state_lock = threading.Lock(), threading.Lock()
        self._sealer.process = None
        self._temporary = False  # the folder is the parent's to remove
        for journal in inherited:
            journal.leave_in_child()


def _apply(state: State, journal: Journal) -> int:
    """Count what a journal has written and state.db has not; the number of the last such event, else 0."""
    events = journal.take_unapplied()
    if not events:
        return 0
    state.apply(journal.id, events)
    return events[-1][0]


def _nothing(_: State) -> None:
    """What is done where catching up is all there is to do."""


def _usable_state(root: Path) -> State:
    """A ledger's state.db, begun anew where it cannot be used and nobody does."""
    path = root / "state.db"
    try:
        state = State(path)
        if state.is_intact():
            return state
        state.close()
    except DamagedLedger:
        pass
    if has_living_writers(root):
        raise LedgerError(
            f"{path} is damaged and in use; stop the programs that use the ledger, and run it again"
        )
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return State(path)


def _register_fork_hooks(ref: Callable[[], Ledger | None]) -> None:
    """Hooks cannot be taken back, so they hold the ledger weakly."""

    def call(method: Callable[[Ledger], None]) -> Callable[[], None]:
        def hook() -> None:
            ledger = ref()
            if ledger is not None:
                method(ledger)

        return hook

    os.register_at_fork(
        before=call(Ledger._before_fork),
        after_in_parent=call(Ledger._after_fork_in_parent),
        after_in_child=call(Ledger._after_fork_in_child),
    )


def _close_at_exit(ref: Callable[[], Ledger | None]) -> None:
    ledger = ref()
    if ledger is not None:
        ledger.close()


@functools.cache
def _version() -> str:
    try:
        return metadata.version("bughive-costs")
    except metadata.PackageNotFoundError:
        return "unknown"
