"""Kills writers, sealers, recoveries and readers of a ledger at random moments, and looks what is left.

    python tests/torture.py --minutes 10
    python tests/torture.py --seed 7 --round 3      begin where a failure was found

A round has a ledger of its own, and a few storms over it. In a storm some processes live at once;
each is killed (`kill -9`) at a moment drawn beforehand, and another takes its place; in the end all
are killed together. Then the ledger is opened, sealed and looked at: see tests/sound.py. All that is
drawn follows from the seed; which process runs when is the machine's affair.

Exit status: 0, nothing was wrong; 1, something was: it is printed, and the round's folder is kept.
Linux alone: processes, orphaned ones too, are found in /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple, NoReturn

import duckdb  # noqa: F401  loaded once, for all that are forked from this process
import pyarrow.parquet  # noqa: F401
from events_by_hand import completed, failed, gave_up, received, started, succeeded
from sound import (
    Promises,
    Row,
    above_limit,
    altered,
    events_in,
    inconsistent,
    lost,
    promises_in,
    some,
    unsound,
)

from ledger import layout, own_journals, recovery, sealing
from ledger.budgets import Hold, Limit
from ledger.errors import BudgetExceeded, LedgerError
from ledger.events import AttemptStarted, RequestReceived
from ledger.ledger import Ledger
from ledger.reader import connect
from ledger.request_log import RequestLog
from ledger.verify import verify
from reports.spend import spend_report

LIMITED = "limited"  # how sessions with a limit begin
LIMIT_USD = Decimal("0.03")  # three attempts in flight
CEILING_USD = Decimal("0.01")
STUCK_S = 120.0
STORMS = 3  # in a round
ANOTHER_SEALS = "another process has been sealing"
ANOTHER_SETTLES = "another process has been settling"

Kind = Literal["writer", "sealer", "sealing program", "opener", "rebuilder", "settler", "reader", "verifier"]


KINDS: dict[Kind, tuple[int, float]] = {  # how many of a hundred, and after how many seconds at the latest
    "writer": (56, 0.5),
    "sealer": (14, 0.25),
    "sealing program": (3, 1.0),
    "opener": (14, 0.06),
    "rebuilder": (4, 0.15),
    "settler": (3, 0.6),
    "reader": (5, 1.0),
    "verifier": (1, 2.0),
}


class Life(NamedTuple):
    """One process: what it does, and after how many seconds it is killed; None: it ends by itself."""

    number: int
    kind: Kind
    threads: int
    durability: Literal["power-loss", "process-crash"]
    clock_ahead: timedelta
    starts_sealers: bool
    writes_in_pieces: bool
    killed_after_s: float | None


class Setting(NamedTuple):
    """What a round is played with: the ledger's own sizes are too large for a storm."""

    rotate_at_events: int
    apply_at_events: int
    removed_after_s: float
    at_once: int
    storm_s: float

    @classmethod
    def draw(cls, random: Random) -> Setting:
        return cls(
            random.choice((6, 40, 300, 50_000)),
            random.choice((1, 20, 512)),
            random.choice((0.0, 0.3, 60.0)),
            random.randint(3, 10),
            random.uniform(1.0, 4.0),
        )

    def apply(self) -> None:
        own_journals.ROTATE_AT_EVENTS = self.rotate_at_events
        own_journals.APPLY_AT_EVENTS = self.apply_at_events
        sealing.JOURNAL_REMOVED_AFTER_S = self.removed_after_s


class Place(NamedTuple):
    """The folder of a round."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger"

    @property
    def promises(self) -> Path:
        return self.root / "promises"

    @property
    def complaints(self) -> Path:
        return self.root / "complaints"

    def make(self) -> None:
        self.promises.mkdir()
        self.complaints.mkdir()


def lives(random: Random) -> Iterator[Life]:
    """The processes of a round, in the order they are started."""
    kinds = {kind: share for kind, (share, _) in KINDS.items()}
    number = 0
    while True:
        number += 1
        (kind,) = random.choices(list(kinds), list(kinds.values()))
        ends_alone = random.random() < 0.08
        yield Life(
            number,
            kind,
            random.randint(1, 4),
            random.choice(("power-loss", "process-crash")),
            timedelta(hours=random.choice((0, 0, 0, -1, 7, 25))),
            random.random() < 0.1,
            random.random() < 0.3,
            None if ends_alone else random.uniform(0.0, KINDS[kind][1]),
        )


# what the processes do


def write(place: Place, life: Life) -> None:
    """Record requests from all threads, and note what the ledger acknowledged."""
    promises = Promises(place.promises / f"{life.number}")
    count = 10 if life.killed_after_s is None else 1_000_000

    def work(thread: int) -> None:
        random = Random(f"{life.number} {thread}")
        for number in range(count):
            _record(ledger, promises, f"{life.number}-{thread}-{number}", random)

    with Ledger.open(
        place.ledger, life.durability, clock=_clock(life), auto_seal=life.starts_sealers
    ) as ledger:
        with ThreadPoolExecutor(life.threads) as pool:
            list(pool.map(work, range(life.threads)))


def _clock(life: Life) -> Callable[[], datetime]:
    return lambda: datetime.now(UTC) + life.clock_ahead


def _record(ledger: Ledger, promises: Promises, name: str, random: Random) -> None:
    """One request: answered at once, after a retry, not at all, or refused."""
    contended = f"{LIMITED}-{time.time() * 4:.0f}"  # all writers of the moment are at its limit
    fields: dict[str, Any] = {"session_id": random.choice(("s-1", "s-2", contended, None))}
    if random.random() < 0.2:
        fields["tags"] = {"app": "shöp", "page": name}
    asked, first = received(name, **fields), started(name, reserved_usd=CEILING_USD, **fields)
    promises.mean(asked, first)
    try:
        log = _begun(ledger, asked, first)
    except BudgetExceeded:
        return
    promises.kept(log.started_at, asked, first)
    time.sleep(random.choice((0, 0, 0.002)))
    cost_usd = Decimal(random.randint(0, 10**10)).scaleb(-12)
    if random.random() < 0.7:
        outcome = succeeded(log, name, billed_cost_usd=cost_usd, **fields)
        promises.append(log, outcome, completed(log, name, **fields))
        return
    in_doubt: dict[str, Any] = {
        "billing": "unknown",
        "billing_rule": "no_answer",
        "reserved_usd": CEILING_USD,
    }
    promises.append(log, failed(log, name, **fields, **random.choice(({}, in_doubt))))
    if fields["session_id"] == contended:
        promises.append(log, gave_up(log, name, **fields))
        return
    promises.append(log, started(name, 2, reserved_usd=CEILING_USD, **fields))
    promises.append(log, succeeded(log, name, 2, **fields), completed(log, name, **fields))


def _begun(ledger: Ledger, asked: RequestReceived, first: AttemptStarted) -> RequestLog:
    """The request on the books, its ceiling held where its session has a limit."""
    log = ledger.open_request(asked)
    session_id = asked.session_id or ""
    if session_id.startswith(LIMITED):
        names = (first.attempt_id, asked.request_id, session_id, first.task, first.tier, first.model)
        try:
            log.reserve(Hold(*names, CEILING_USD), [Limit("session", session_id, LIMIT_USD)])
        except BudgetExceeded:
            log.abandon()
            raise
    log.append(first)
    return log


def seal(place: Place, life: Life) -> None:
    """Seal again and again, beside others that do."""
    for _ in range(_times(life)):
        with Ledger.open(place.ledger, clock=_clock(life), auto_seal=False) as ledger:
            try:
                ledger.seal(wait_s=0)
            except LedgerError as error:
                if ANOTHER_SEALS not in str(error):
                    raise


def run_sealer(place: Place, life: Life) -> None:
    """Become the program that writers start."""
    os.execv(sys.executable, [sys.executable, "-m", "ledger.sealing", str(place.ledger)])


def reopen(place: Place, life: Life) -> None:
    """Open and close: most of that is recovery of what others left."""
    for _ in range(_times(life)):
        Ledger.open(place.ledger, life.durability, clock=_clock(life), auto_seal=False).close()


def rebuild(place: Place, life: Life) -> None:
    """Derive state.db anew beside all others."""
    _until_laid_out(place)
    for _ in range(_times(life)):
        Ledger.recover(place.ledger, clock=_clock(life))


def settle(place: Place, life: Life) -> None:
    """Find out what attempts in doubt have cost, or that they have cost nothing; others do so too."""
    random = Random(life.number)
    _until_laid_out(place)
    for _ in range(_times(life)):
        with Ledger.open(place.ledger, clock=_clock(life), auto_seal=False) as ledger:
            with ledger.connect() as connection:
                in_doubt = connection.execute("select attempt_id from in_doubt").fetchall()
            for (attempt_id,) in random.sample(in_doubt, min(2, len(in_doubt))):
                billed_usd = random.choice((None, CEILING_USD / 2, CEILING_USD))
                try:
                    ledger.settle(attempt_id, billed_usd)
                except LedgerError as error:
                    if "is not in doubt" not in str(error) and ANOTHER_SETTLES not in str(error):
                        raise


def _until_laid_out(place: Place) -> None:
    while not (place.ledger / "ledger.sql").exists():  # the last file that is made of a new ledger
        time.sleep(0.01)


def read(place: Place, life: Life) -> None:
    """Report again and again: each snapshot adds up, and holds all that was acknowledged or read before."""
    seen: list[Row] = []
    _until_laid_out(place)
    for _ in range(_times(life)):
        promises = promises_in(place.promises)
        with connect(place.ledger) as connection:
            findings = list(inconsistent(connection))
            rows = events_in(connection)
        findings += [*lost(rows, promises), *altered(seen, rows, "a later reading")]
        findings += above_limit(place.ledger, LIMITED, LIMIT_USD)
        seen = rows
        spend_report(place.ledger)
        if findings:
            raise AssertionError("\n".join(findings))


def check(place: Place, life: Life) -> None:
    """Verify beside all others: what they are at is not damage."""
    _until_laid_out(place)
    for _ in range(_times(life)):
        if found := verify(place.ledger).findings:
            raise AssertionError("\n".join(map(str, found)))


def _times(life: Life) -> int:
    return 3 if life.killed_after_s is None else 1_000_000


WORK: dict[Kind, Callable[[Place, Life], None]] = {
    "writer": write,
    "sealer": seal,
    "sealing program": run_sealer,
    "opener": reopen,
    "rebuilder": rebuild,
    "settler": settle,
    "reader": read,
    "verifier": check,
}


# how they live and die


class Storm:
    """Processes that live at once, each until its moment has come."""

    def __init__(self, place: Place, kills: Counter[str]) -> None:
        self.findings: list[str] = []
        self._place = place
        self._kills = kills
        self._alive: dict[int, tuple[Life, float]] = {}  # by pid: and when it is to be killed
        self._orphans: dict[int, float] = {}  # sealers whose writer is gone: likewise

    def rage(self, coming: Iterator[Life], setting: Setting, random: Random) -> None:
        """Start, kill and start again for a while; in the end all are killed together."""
        end = time.monotonic() + setting.storm_s
        while time.monotonic() < end and not self.findings:
            while len(self._alive) < setting.at_once:
                self._start(next(coming))
            for orphan in children_of_this() - self._alive.keys() - self._orphans.keys():
                self._orphans[orphan] = time.monotonic() + random.uniform(0, 1)
            self._kill_who_is_due()
            self._bury()
            time.sleep(0.001)

    def end(self) -> None:
        """Kill whoever lives; returns when nobody does."""
        while living := children_of_this():
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            while self._bury():
                pass
            time.sleep(0.001)

    def _start(self, life: Life) -> None:
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            _live(self._place, life, parent)
        after_s = STUCK_S if life.killed_after_s is None else life.killed_after_s
        self._alive[pid] = (life, time.monotonic() + after_s)

    def _kill_who_is_due(self) -> None:
        now = time.monotonic()
        for pid, (life, due) in self._alive.items():
            if now >= due:
                if life.killed_after_s is None:
                    self.findings.append(f"{life} did not end within {STUCK_S:g} s{self._said_by(life)}")
                os.kill(pid, signal.SIGKILL)
        for pid, due in self._orphans.items():
            if now >= due:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _bury(self) -> bool:
        """Take the status of one that is dead; False where none is."""
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return False
        life, _ = self._alive.pop(pid, (None, 0.0))
        self._orphans.pop(pid, None)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGKILL:
            self._kills[life.kind if life else "sealing program"] += 1
        elif code and life and ANOTHER_SEALS not in (said := self._said_by(life)):
            self.findings.append(f"{life} ended with {code}{said}")
        return True

    def _said_by(self, life: Life) -> str:
        said = (self._place.complaints / f"{life.number}").read_text("utf-8", "replace")
        return f":\n{said}" if said else ""


def _live(place: Place, life: Life, parent: int) -> NoReturn:
    """The child's part of a fork: its work, and out."""
    code = 1
    try:
        _die_with_parent(parent)
        complaints = os.open(place.complaints / f"{life.number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(complaints, 2)
        os.set_inheritable(2, True)
        faulthandler.dump_traceback_later(STUCK_S - 10)
        if life.writes_in_pieces:
            os.write = _write_a_piece
        WORK[life.kind](place, life)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


_WRITE = os.write


def _write_a_piece(fd: int, data: Any) -> int:
    """A system may write less than it is given, and a process die before the rest of a line."""
    written = _WRITE(fd, memoryview(data)[: max(len(data) // 2, 200)])
    if written < len(data):
        time.sleep(0.0005)
    return written


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def _die_with_parent(parent: int) -> None:
    """Leave no process behind where this program itself is killed, perhaps a moment ago."""
    if _LIBC:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _adopt_orphans() -> None:
    """Have the sealers of killed writers become this process's children: they are killed too."""
    if _LIBC:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children_of_this() -> set[int]:
    """The processes that this one started or adopted, dead ones not waited for included."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return set(map(int, found.split()))


# a round


def play(place: Place, seed: str, kills: Counter[str], end: float) -> list[str]:
    """Some storms over a new ledger, the last when the time is over; gives what is wrong."""
    random = Random(seed)
    setting = Setting.draw(random)
    setting.apply()
    coming = lives(random)
    for _ in range(STORMS):
        storm = Storm(place, kills)
        try:
            storm.rage(coming, setting, Random(f"{seed} orphans"))
        finally:
            storm.end()
        findings = storm.findings or _looked_at(place)
        if findings:
            return [*findings, f"played with {setting}"]
        if time.monotonic() >= end:
            break
    return []


def _looked_at(place: Place) -> list[str]:
    """What is wrong after a storm, as seen by a process of its own: this one must not start threads."""
    report = place.root / "findings"
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        findings: list[str] = []
        try:
            _die_with_parent(parent)
            faulthandler.dump_traceback_later(STUCK_S, exit=True)
            recovery.YOUNG_S = layout.UNFINISHED_S = 0.0  # nobody is about to name a file
            findings += unsound(place.ledger, promises_in(place.promises))
            findings += some("finding of verify", verify(place.ledger).findings)
            findings += some("leftover", list(place.ledger.rglob("*.tmp")))
            findings += above_limit(place.ledger, LIMITED, LIMIT_USD)
        except BaseException:
            findings.append(traceback.format_exc())
        finally:
            report.write_text("\n".join(findings), "utf-8")
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [f"the look ended with {code}"] if code else report.read_text("utf-8").splitlines()


def main() -> int:
    """Play rounds until the time is over or something is wrong."""
    arguments = _arguments()
    _adopt_orphans()
    kills: Counter[str] = Counter()
    end, number = time.monotonic() + arguments.minutes * 60, arguments.round
    while time.monotonic() < end:
        place = Place(Path(tempfile.mkdtemp(prefix=f"torture-{number}-", dir=arguments.folder)))
        place.make()
        findings = play(place, f"{arguments.seed} {number}", kills, end)
        if findings:
            _say(
                f"seed {arguments.seed}, round {number}: something is wrong; {place.root} is kept",
                *findings,
                f"again: make torture SEED={arguments.seed} ROUND={number}",
            )
            return 1
        shutil.rmtree(place.root)
        _say(f"round {number}: {kills.total()} kills so far")
        number += 1
    told = ", ".join(f"{count} {kind}s" for kind, count in kills.most_common())
    _say(
        f"{kills.total()} kills ({told}) in {number - arguments.round} rounds with seed {arguments.seed}:"
        " nothing was lost, doubled or changed"
    )
    return 0


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kills processes that use a ledger, and looks what is left.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 1_000_000, help="what is drawn follows from it"
    )
    parser.add_argument("--round", type=int, default=1, help="the round to begin with (1)")
    parser.add_argument("--folder", type=Path, help="where the ledgers are made (the system's place)")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
