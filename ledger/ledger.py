"""The ledger as a program uses it: requests are begun, their events appended, everything is kept.

    with Ledger.open("data/ledger") as ledger:
        log = ledger.begin(RequestReceived(...), AttemptStarted(...))   # durable before anything is sent
        log.append(AttemptSucceeded(...), RequestCompleted(...))        # durable before route() returns
        ledger.connect().sql("select * from sessions")

A request's whole story is in one journal (own_journals.py), and state.db is told of it (projection.py):
here is what becomes of a request with both, and what a program may ask of the whole.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from pydantic import BaseModel

from ledger import price_books
from ledger.auto_sealing import AutoSealer
from ledger.budgeting import budgets_of, keep_to_file, lift_budget, set_budget
from ledger.budgets import Budget, Budgets, Hold, Limit, Warned
from ledger.circuit_board import CircuitBoard
from ledger.errors import DamagedLedger, LedgerError
from ledger.events import RequestReceived, build_models
from ledger.history import all_runs
from ledger.journal import Clock, Journal
from ledger.layout import lay_out
from ledger.living import LivingJournals, tell_of_living
from ledger.own_journals import OwnJournals
from ledger.prices import PriceBook
from ledger.projection import Projection, apply
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

_OUTCOME_WAITS_S = 0.25  # to tell state.db, where budgets wait for the rest of its ceiling
TELL_AT_COMMITS = 16  # with outcomes of attempts whose ceilings are held: until then these count
COUNTED_AT_MOST = 16  # events, one by one, for a question; more are told


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
        self._sealer = AutoSealer(path, enabled=auto_seal)
        self._projection = Projection(path)
        self._journals = OwnJournals(
            path, clock, durable=durability == "power-loss", projection=self._projection
        )
        self.is_limited = False  # by more than what single calls bring along, as of the last look
        self._untold_commits = 0
        self._living = LivingJournals(path)
        self.circuits = CircuitBoard(self)
        self._at_exit = functools.partial(_close_at_exit, weakref.ref(self))
        try:
            self._identity = lay_out(path, temporary=temporary)
            price_books.keep(path, prices)
            self._today = clock().date()
            self._derive_if_new()
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
        return f"<Ledger {self.path} {self.durability}{' closed' if self._journals.is_closed else ''}>"

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
        return RequestLog(self, self._journals.lease(), received)

    def budgets(self) -> Budgets:
        """The budgets in force now, whoever set them. Raises LedgerError where that cannot be told."""
        with self._projection.state() as state:
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
        return self._projection.known_budgets or self.budgets()

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
        if not self._becomes_limited(limits) and self._projection.reserve_at_once(*asked, earlier_usd):
            return Held(quarter, ())
        own = self._journals.all()
        told = {each.id for each in own}

        def warned(state: State) -> list[Warned]:
            return state.reserve(*asked, told)

        while True:
            try:
                return Held(quarter, self._projection.transact(own, warned))
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

    def tell(self, journal: Journal, *, can_wait: bool) -> None:
        """State.db is to know what a journal has written, without waiting long for others.

        can_wait: until some more has come; what state.db knows instead counts no less.
        """
        self._untold_commits += 1
        if not (can_wait and self._untold_commits < TELL_AT_COMMITS):
            self._untold_commits = 0
            self._projection.apply_quietly(journal, wait_s=_OUTCOME_WAITS_S)

    def read_state(self, ask: Callable[[State], _T]) -> _T:
        """What state.db says once it knows all that this process has written."""
        return self._projection.transact(self._journals.all(), ask)

    def session_spent(self, session_id: str) -> Decimal | None:
        """What a session has cost, as state.db has it; None where that may not be all. Raises LedgerError."""
        own = self._journals.all()
        if not self._knows_others({journal.id for journal in own}):
            return None
        journal_id, untold = "", []
        if len(own) == 1:  # what it has not told yet is added here: nothing is written for a question
            journal_id, untold = own[0].id, own[0].take_unapplied()
        if len(own) > 1 or len(untold) > COUNTED_AT_MOST:
            self._projection.catch_up(self._journals.all())
            untold = []
        with self._projection.state() as state:
            return state.session_spent(session_id, journal_id, untold)

    def _knows_others(self, own: set[str]) -> bool:
        """Whether state.db knows all that journals of others hold, after they were read where it did not."""
        with self._projection.state() as state:
            lagging = self._living.lagging(state, own)
        return not lagging or self._read_living(lagging)

    def apply_living(self) -> None:
        """Tell state.db what living journals of all processes hold, though their owners have not yet."""
        self._projection.catch_up(self._journals.all())
        self._read_living(self._living.names())

    def _read_living(self, journal_ids: Iterable[str]) -> bool:
        try:
            with self._projection.state() as state:
                return tell_of_living(self.path, state, journal_ids)
        except OSError as error:
            raise LedgerError(f"journals of {self.path} cannot be read: {error}") from error

    def record(self, *events: BaseModel) -> None:
        """Append events that belong to no request, as one commit; durable on return, and in state.db.

        Raises LedgerError where they could not be written: they are written as soon as that is possible.
        """
        journal = self._journals.lease()
        try:
            journal.append(events, must_keep=True)
        finally:
            self._journals.give_back(journal)
        self._projection.apply_quietly(journal)

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
        for journal in self._journals.all():
            journal.flush()

    def end_dead_journals(self) -> None:
        """Record how what dead processes left open has ended; state.db then knows all that is written.

        Raises LedgerError where that cannot be written, or a newer version has been at it.
        """
        from ledger.sealing import recover_dead

        self._projection.catch_up(self._journals.all())
        try:
            with self._projection.state() as state:
                recover_dead(self.path, state, self._clock)
        except OSError as error:
            raise LedgerError(f"dead journals of {self.path} cannot be ended: {error}") from error

    def release(self, attempt_id: str) -> None:
        """Let go of a hold whose attempt never started."""
        with contextlib.suppress(LedgerError), self._projection.state() as state, state.transaction():
            state.release(attempt_id)

    def seal(self, *, wait_s: float = 60.0) -> Sealed:
        """Move all whole lines of all journals into segments; see ledger.sealing."""
        from ledger.sealing import seal

        self._projection.catch_up(self._journals.all())
        with self._projection.state() as state:
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
        if self._journals.is_closed:
            return
        atexit.unregister(self._at_exit)
        try:
            self._journals.close()
        finally:
            self._projection.close()
            if self._temporary:
                shutil.rmtree(self.path, ignore_errors=True)

    def journal_appended(self, journal: Journal, occurred_at: datetime) -> None:
        """What need not be done at each append: tell state.db, rotate, seal a day that is over."""
        rotated = self._journals.appended(journal)
        today = occurred_at.date()
        if rotated or today != self._today:
            self._today = today
            self._sealer.start()

    def journal_waits(self) -> None:
        """Lines of a journal wait for the disk: they are written after the next append that succeeds."""
        self._journals.some_wait()

    def request_ended(self, journal: Journal) -> None:
        """Give a leased journal back."""
        self._journals.give_back(journal)

    # state.db

    def look_up(self, what: Callable[[State], _T]) -> _T:
        """Something that state.db says. Raises LedgerBusy where another thread is at it, LedgerError."""
        with self._projection.state(patient=False) as state:
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
        journal = self._journals.lease()
        try:
            with self._projection.state(patient=patient) as state:
                with state.transaction(patient=patient):
                    event = decision(state)
                    applied_seq = 0
                    if event is not None:
                        journal.append([event], must_keep=True)
                        applied_seq = apply(state, journal)
                    found = then(state)
                if applied_seq:
                    journal.applied(applied_seq)
                return found
        finally:
            self._journals.give_back(journal)

    def _derive_if_new(self) -> None:
        with self._projection.state() as state:
            if not state.is_derived:
                with state.transaction():
                    state.rebuild(all_runs(self.path))

    # forks

    def _before_fork(self) -> None:
        """SQLite must not be open in both; and no lock may be held by a thread the child does not have."""
        build_models()
        self._journals.before_fork()
        self._projection.before_fork()

    def _after_fork_in_parent(self) -> None:
        self._projection.after_fork_in_parent()
        self._journals.after_fork_in_parent()

    def _after_fork_in_child(self) -> None:
        self._projection.after_fork_in_child()
        self._sealer.process = None
        self._temporary = False  # the folder is the parent's to remove
        self._journals.after_fork_in_child()


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
