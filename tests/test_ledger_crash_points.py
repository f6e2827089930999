"""Every named point at which a process can die, and pairs of them: what was acknowledged is there, once.

A scenario is played once to list its points: before, after, and for a write in the middle of, each
call that changes a file, and each transaction of state.db; and what a death at each would leave. Then
it is played anew for each that leaves something of its own: the process dies there, by a kill (what the
kernel had is there) or with a power loss (what was not synced may be gone; see forgetful.py), the ledger
is opened again and held against what was noted in memory (see world.py), work goes on, is sealed, and a
last power loss must change nothing any more.

In pairs a second process dies while it recovers and goes on after the first. BUGHIVE_TORTURE=1 tries
all pairs (about an hour), seals what is left each time and has the ledger's own reader and verify look at
it; otherwise they are a sample that is always the same.

A failure names its points. `play(tmp_path, SCENARIOS["append"], [Death(17, loses_power=True)], seed=0)`
repeats one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from forgetful import Died, Left, Worst
from world import World

from ledger import own_journals
from ledger.errors import LedgerError
from ledger.settings import Durability

TORTURE = bool(os.environ.get("BUGHIVE_TORTURE"))
PAIRS = 8  # of each scenario, where not all are tried


class Scenario(NamedTuple):
    """What was before, and what a process then does until it dies."""

    prepare: Callable[[World], None]
    act: Callable[[World], None]


class Death(NamedTuple):
    """Where a process dies: at so many points from its start, or at its end, if it comes so far."""

    point: int
    loses_power: bool


class Looks(NamedTuple):
    """What is done to look at what is left, beside counting events: it takes longer than all else."""

    seals: bool  # the rest is sealed
    reads: bool  # the ledger's own reader, and verify, have to agree

    @classmethod
    def of(cls, name: str, number: int, loses_power: bool = False) -> Looks:
        """At one history in a few, where not all are tried; sealed after every sealer that was killed."""
        killed_sealer = name.startswith("seal") and not loses_power
        return cls(TORTURE or killed_sealer or number % 5 == 0, TORTURE or (loses_power and number == 0))


CLOSELY = Looks(seals=True, reads=True)


class Played(NamedTuple):
    """The points at which processes died, and what was found wrong afterwards."""

    points: list[str]
    findings: list[str]


# scenarios


def nothing(world: World) -> None:
    """The ledger does not exist yet."""


def a_writer(world: World) -> None:
    """A writer that has answered a request."""
    world.writer = world.start()
    world.writer.answer("r-0")


def append(world: World) -> None:
    """Answers, a retry, an attempt left in flight, and the end of the program."""
    writer = world.writer
    writer.begin("r-1")
    writer.retry("r-1")
    writer.begin("r-2")
    writer.answer_retry("r-1")
    writer.answer("r-3")
    writer.close()


def share_a_sync(world: World) -> None:
    """Threads append while another's sync is under way, and share the next one."""
    writer = world.writer
    with ThreadPoolExecutor(2) as pool:
        beside: list[Future[None]] = []

        def append_meanwhile() -> None:
            beside.extend(writer.begin_beside(name, pool) for name in ("r-2", "r-3"))

        world.disk.during_sync = append_meanwhile
        try:
            writer.begin("r-1")
        finally:
            for each in beside:
                each.result()
    writer.answer("r-1")
    writer.answer("r-2")


def rotate(world: World) -> None:
    """A journal is full while requests are open in it, and ends with the last of them."""
    writer = world.writer
    for number in range(1, 4):
        writer.begin(f"r-{number}")
    for number in range(1, 4):
        writer.answer(f"r-{number}")
    writer.close()


def dead_writers(world: World) -> None:
    """One was killed in the middle of a line, one after a failed sync, each with an attempt in flight."""
    first, second = world.start("first"), world.start("second")
    for writer in (first, second):
        name = writer.process.name
        writer.answer(f"r-{name}-0")
        writer.begin(f"r-{name}-1")
    world.fail_a_sync()
    second.answer("r-second-2")
    world.die_at("Journal._write: write journal (half)", lambda: first.answer("r-first-1"))
    world.disk.kill()


def recover(world: World) -> None:
    """The ledger is opened after them."""
    world.start()


def two_days(world: World) -> None:
    """Two journals over midnight, by a clock that then steps back."""
    first, second = world.start("first"), world.start("second")
    for step, day in enumerate((22, 23, 22)):
        world.now = world.now.replace(day=day)
        for writer in (first, second):
            writer.answer(f"r-{writer.process.name}-{step}")
    first.close()
    second.begin("r-open")
    world.writer = second


def an_orphan_segment(world: World) -> None:
    """As `two_days`, and a sealer died before its first segment had its line."""
    two_days(world)
    world.die_at("list_batch: write manifest.jsonl (before)", world.start("sealer").seal)
    world.disk.kill()


def seal(world: World) -> None:
    """All is sealed; the open request is then answered."""
    world.start("sealer").seal()
    world.writer.answer("r-open")


def seal_again(world: World) -> None:
    """The next sealer goes on."""
    world.start("sealer").seal()


def sealed_a_minute_ago(world: World) -> None:
    """Three closed journals, one of them in two parts, sealed long enough ago to be removed."""
    for number in range(3):
        writer = world.start()
        writer.answer(f"r-{number}-0")
        if number == 1:
            world.fail_a_sync()
        writer.answer(f"r-{number}-1")
        writer.close()
    writer = world.start()
    writer.seal()
    writer.close()
    world.now += timedelta(seconds=61)


def remove(world: World) -> None:
    """The sealer removes what is covered, while requests go on."""
    writer = world.start()
    writer.answer("r-9")
    writer.seal()
    writer.close()


def catch_up(world: World) -> None:
    """Ceilings are held against a limit, settled, and held anew: state.db follows the journal."""
    writer, limit_usd = world.writer, Decimal("0.05")
    writer.begin_within("r-1", limit_usd)
    writer.begin_within("r-2", limit_usd)
    writer.answer("r-1")
    writer.begin_within("r-3", limit_usd)
    writer.answer("r-2")
    writer.close()


def one_in_doubt(world: World) -> None:
    """A process died with an attempt in flight, and the next one ended its request."""
    world.start("first").begin("r-1")
    world.disk.kill()
    world.writer = world.start()


def settle(world: World) -> None:
    """Somebody found out what it cost, and says so."""
    world.writer.settle("r-1-a1", Decimal("0.002"))


def create(world: World) -> None:
    """A ledger is made, and its first request recorded."""
    world.start().answer("r-1")


def continue_after_a_failed_sync(world: World) -> None:
    """The disk fails to sync twice; the journal goes on in a second and a third part."""
    writer = world.writer
    world.fail_a_sync()
    writer.begin("r-1")
    writer.answer("r-2")
    world.fail_a_sync()
    writer.answer("r-1")
    writer.begin("r-3")
    writer.close()


def fill_the_disk(world: World) -> None:
    """A disk is full for a while: what was not sent is refused, what has happened is written later."""
    writer = world.writer
    writer.begin("r-1")
    world.disk.is_full = True
    with suppress(LedgerError):
        writer.begin("r-2")
    with suppress(LedgerError):
        writer.answer("r-1")
    world.disk.is_full = False
    writer.answer("r-3")
    writer.close()


SCENARIOS = {
    "append": Scenario(a_writer, append),
    "share a sync": Scenario(a_writer, share_a_sync),
    "rotate": Scenario(a_writer, rotate),
    "recover": Scenario(dead_writers, recover),
    "seal": Scenario(two_days, seal),
    "seal after an orphan": Scenario(an_orphan_segment, seal_again),
    "remove": Scenario(sealed_a_minute_ago, remove),
    "catch up": Scenario(a_writer, catch_up),
    "settle": Scenario(one_in_doubt, settle),
    "create": Scenario(nothing, create),
    "continue": Scenario(a_writer, continue_after_a_failed_sync),
    "fill the disk": Scenario(a_writer, fill_the_disk),
}


# playing


def play(
    folder: Path,
    scenario: Scenario,
    deaths: Sequence[Death],
    *,
    seed: int,
    durability: Durability = "power-loss",
    looks: Looks = CLOSELY,
) -> Played:
    """Play a scenario up to a death, go on up to the next, …, and look what is there then."""
    with World(folder, seed, durability) as world:
        scenario.prepare(world)
        points = [
            die(world, phase, death) for phase, death in zip((scenario.act, go_on), deaths, strict=False)
        ]
        try:
            findings = list(findings_after(world, looks))
        except Exception as error:
            findings = [f"{type(error).__name__}: {error}"]
    return Played(points, findings)


def die(world: World, phase: Callable[[World], None], death: Death) -> str:
    """Gives the point's name."""
    world.disk.watch(death.point, world.random)
    with suppress(Died):
        phase(world)
    point = world.disk.died_at or "its end"
    world.disk.watch()
    world.disk.failing_syncs, world.disk.is_full, world.disk.during_sync = 0, False, None
    if death.loses_power:
        world.disk.power_loss(world.random)
    else:
        world.disk.kill()
    return f"{point}{', with a power loss' if death.loses_power else ''}"


def go_on(world: World) -> None:
    """What the next process does: it recovers, answers, seals, and removes what is old."""
    writer = world.start()
    writer.answer("r-again")
    world.now += timedelta(seconds=61)
    writer.seal()
    writer.close()


def findings_after(world: World, looks: Looks) -> Iterator[str]:
    """What is wrong after recovery, after more work and sealing, and after another power loss."""
    writer = world.start()
    yield from world.findings(thorough=False)
    writer.answer("r-after")
    if looks.seals:
        writer.seal()
    writer.close()
    if world.durability == "power-loss":
        world.disk.power_loss(Worst())
    world.start().close()
    yield from world.findings(thorough=looks.reads)


class Points(NamedTuple):
    """All points that a scenario passes, and its end."""

    names: list[str]  # without the end
    left: list[Left]  # by a death there

    def worth_trying(self, *, loses_power: bool) -> list[int]:
        """The last of those in a row that leave the same: to it the most was acknowledged.

        In the middle of a write something is left that is not known before.
        """
        left = [each.by_a_power_loss if loses_power else each.by_a_kill for each in self.left]
        is_half = [name.endswith("(half)") for name in self.names] + [False]

        def is_told_by_the_next(number: int) -> bool:
            return left[number : number + 1] == left[number + 1 : number + 2] and not any(
                is_half[number : number + 2]
            )

        return [number for number in range(len(left)) if TORTURE or not is_told_by_the_next(number)]


@cache
def points_of(name: str, durability: Durability = "power-loss") -> Points:
    """Those of a scenario, which is the same each time."""
    with tempfile.TemporaryDirectory(prefix="points-") as folder:
        with World(Path(folder), durability=durability) as world:
            SCENARIOS[name].prepare(world)
            world.disk.watch(looks=True)
            SCENARIOS[name].act(world)
            return Points(world.disk.trace, [*world.disk.left, world.disk.left_now()])


@pytest.fixture(autouse=True)
def _small_journals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_journals, "ROTATE_AT_EVENTS", 8)
    monkeypatch.setattr(own_journals, "APPLY_AT_EVENTS", 12)


@pytest.mark.parametrize("loses_power", [False, True], ids=["killed", "power loss"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_wherever_a_process_dies_what_was_acknowledged_is_there_once(
    tmp_path: Path, name: str, loses_power: bool
) -> None:
    scenario = SCENARIOS[name]
    points = points_of(name)
    found = []
    for number in points.worth_trying(loses_power=loses_power):
        death, looks = Death(number, loses_power), Looks.of(name, number, loses_power)
        played = play(tmp_path / str(number), scenario, [death], seed=number, looks=looks)
        if number < len(points.names):
            assert played.points[0].startswith(points.names[number])  # the scenario is the same each time
        if played.findings:
            found.append(f"{name}, {death}, {played.points}, seed {number}: {played.findings}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in ("share a sync", "continue")])
def test_a_kill_loses_nothing_that_the_kernel_had_without_syncs_too(tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    points = points_of(name, "process-crash")
    assert not [point for point in points.names if "sync journal (" in point and "Journal._sync" in point]
    found = []
    for number in points.worth_trying(loses_power=False)[:: 1 if TORTURE else 3]:
        played = play(
            tmp_path / str(number),
            scenario,
            [Death(number, loses_power=False)],
            seed=number,
            durability="process-crash",
            looks=Looks.of(name, number),
        )
        if played.findings:
            found.append(f"{name}, point {number}, {played.points}: {played.findings}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", SCENARIOS)
def test_whoever_dies_while_recovering_from_a_death_loses_nothing_either(tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    count = len(points_of(name).names)
    found = []
    tried_all: set[int] = set()  # first points after which a second process came to its end
    for seed, (first, second) in enumerate(pairs(count, Random(name))):
        if first in tried_all:
            continue
        deaths = [Death(first, seed % 2 == 0), Death(second, seed % 4 < 2)]
        played = play(tmp_path / str(seed), scenario, deaths, seed=seed, looks=Looks.of(name, seed))
        if TORTURE and played.points[1].startswith("its end"):
            tried_all.add(first)
        if played.findings:
            found.append(f"{name}, {deaths}, {played.points}, seed {seed}: {played.findings}")
    assert not found, "\n".join(found)


def pairs(count: int, random: Random) -> Iterator[tuple[int, int]]:
    """Numbers of a first point, and of a second one among those of recovering and going on."""
    seconds = 120
    if TORTURE:
        yield from ((first, second) for first in range(count + 1) for second in range(seconds))
        return
    for _ in range(PAIRS):
        yield random.randrange(count + 1), random.randrange(seconds)
