"""Whatever happens to a ledger, in whatever order: the real code, a forgetful disk, and a list in memory.

Hypothesis draws histories of two writers that come and go on one folder: requests, rotations, seals,
settlements, deaths at a point, power losses, a clock that jumps, a disk that fails to sync or is full
for a while. After each report, and at the end of each history, the ledger is held against what was
noted. BUGHIVE_TORTURE=1 draws many more.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest
import sound
from forgetful import Died
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from world import World, Writer

from ledger import own_journals
from ledger.errors import LedgerError
from ledger.reader import connect

TORTURE = bool(os.environ.get("BUGHIVE_TORTURE"))

WRITERS = st.sampled_from(["first", "second"])
DEATHS = st.tuples(st.integers(0, 90), st.booleans())  # at which point; whether with a power loss
JUMPS = st.sampled_from(
    [
        timedelta(seconds=61),
        timedelta(hours=15),
        timedelta(hours=-20),
        timedelta(seconds=-1),
        timedelta(days=1),
    ]
)


class LedgerMachine(RuleBasedStateMachine):
    """Each rule is what a process does, a disk, or a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="machine-")
        self.small = pytest.MonkeyPatch()
        self.small.setattr(own_journals, "ROTATE_AT_EVENTS", 10)
        self.small.setattr(own_journals, "APPLY_AT_EVENTS", 6)
        self.world = World(Path(self.folder.name))
        self.world.__enter__()
        self.writers: dict[str, Writer] = {}
        self.requests = 0
        self.death: tuple[int, bool] | None = None
        self.has_failed = False  # a sync, since which every one may be told of it

    # what processes do

    @rule(name=WRITERS)
    def answer(self, name: str) -> None:
        self.act(name, lambda writer: writer.answer(self.new_request()))

    @rule(name=WRITERS)
    def begin(self, name: str) -> None:
        self.act(name, lambda writer: writer.begin(self.new_request()))

    @rule(name=WRITERS)
    def begin_within_a_limit(self, name: str) -> None:
        self.act(name, lambda writer: writer.begin_within(self.new_request(), Decimal(1000)))

    @rule(name=WRITERS, choice=st.integers(0, 5), retries=st.booleans())
    def go_on(self, name: str, choice: int, retries: bool) -> None:
        """An open request is answered, or tried again and then answered."""
        writer = self.writers.get(name)
        if writer is None or not writer.logs:
            return
        request_id = list(writer.logs)[choice % len(writer.logs)]

        def answer(writer: Writer) -> None:
            if retries:
                writer.retry(request_id)
                writer.answer_retry(request_id)
            else:
                writer.answer(request_id)

        self.act(name, answer)

    @rule(name=WRITERS)
    def seal(self, name: str) -> None:
        self.act(name, lambda writer: writer.seal())

    @rule(name=WRITERS)
    def close(self, name: str) -> None:
        if name in self.writers:
            self.act(name, lambda writer: writer.close())
            self.writers.pop(name, None)

    @rule(name=WRITERS, choice=st.integers(0, 5))
    def settle(self, name: str, choice: int) -> None:
        """Somebody has found out what an attempt in doubt was billed."""
        if name not in self.writers:
            return
        in_doubt = self.attempts_in_doubt()
        if in_doubt:
            attempt_id = in_doubt[choice % len(in_doubt)]
            self.act(name, lambda writer: writer.settle(attempt_id, Decimal("0.002")))

    # what becomes of them

    @rule(death=DEATHS)
    def will_die(self, death: tuple[int, bool]) -> None:
        """Whoever acts next dies on the way, if it has as many points."""
        self.death = death

    @rule(name=WRITERS)
    def kill(self, name: str) -> None:
        if name in self.writers:
            self.world.disk.kill(self.writers.pop(name).process)

    @rule()
    def lose_power(self) -> None:
        self.writers.clear()
        self.world.disk.power_loss(self.world.random)
        self.has_failed = self.world.disk.failing_syncs > 0

    @rule(jump=JUMPS)
    def set_the_clock(self, jump: timedelta) -> None:
        self.world.now += jump

    @rule()
    def fail_a_sync(self) -> None:
        self.world.disk.failing_syncs = 1
        self.has_failed = True

    @rule(is_full=st.booleans())
    def fill_the_disk(self, is_full: bool) -> None:
        self.world.disk.is_full = is_full

    # what is seen

    @rule()
    @precondition(lambda self: bool(self.writers))
    def report(self) -> None:
        """A reader beside the writers sees all that was acknowledged, and figures that add up."""
        with sound.opened(self.world.path) as seen:
            assert not list(sound.inconsistent(seen))
            assert not list(sound.lost(sound.events_in(seen), self.world.promises))

    def teardown(self) -> None:
        try:
            self.world.disk.watch()
            self.world.disk.is_full, self.world.disk.failing_syncs = False, 0
            self.world.disk.power_loss(self.world.random)
            writer = self.world.start()
            assert not list(self.world.findings(thorough=False))
            writer.answer(self.new_request())
            writer.seal()
            writer.close()
            self.world.start().close()
            assert not list(self.world.findings())
        finally:
            self.world.__exit__()
            self.small.undo()
            self.folder.cleanup()

    # how

    def new_request(self) -> str:
        self.requests += 1
        return f"r-{self.requests}"

    def attempts_in_doubt(self) -> list[str]:
        with connect(self.world.path, views=("in_doubt",)) as connection:
            found = connection.execute(
                "select attempt_id from in_doubt where not is_in_flight order by 1"
            ).fetchall()
        return [str(attempt_id) for (attempt_id,) in found]

    def act(self, name: str, what: Callable[[Writer], object]) -> None:
        """A writer does something, and may die of it; where the disk refuses, it may be refused."""
        point, loses_power = self.death or (None, False)
        self.death = None
        self.world.disk.watch(point, Random(self.requests))
        try:
            if name not in self.writers:
                self.writers[name] = self.world.start(name)
            what(self.writers[name])
        except Died:
            if loses_power:
                self.lose_power()
            else:
                self.writers.pop(name, None)
                self.world.disk.kill(self.world.disk.acting)
        except LedgerError:
            assert self.world.disk.is_full or self.has_failed
        finally:
            self.world.disk.watch()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=2_000 if TORTURE else 25,
    stateful_step_count=50 if TORTURE else 20,
    deadline=None,
    derandomize=not TORTURE,
    suppress_health_check=list(HealthCheck),
)
