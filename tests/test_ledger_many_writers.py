"""Many processes on one ledger: beside a reader and a sealer, forked at bad moments, stopped in mid-air."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from events_by_hand import completed, received, started, succeeded
from sound import Promises, events_in, inconsistent, lost, opened, promises_in, snapshot, unsound

from ledger import Ledger, own_journals
from ledger import recovery as recovery_module
from ledger import sealing as sealing_module
from ledger import state as state_module
from ledger.budgets import Hold, Limit
from ledger.errors import LedgerError
from ledger.state import State

TESTS = Path(__file__).parent
PROCESSES, THREADS = 16, 4
HUNG_S = 120  # a process that is still there by then is ended by its own alarm, and the test fails


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def promises(tmp_path: Path) -> Path:
    folder = tmp_path / "promises"
    folder.mkdir()
    return folder


class Process:
    """A forked process that does something; ended with the test."""

    left: set[int] = set()  # those of the present test that were not waited for

    def __init__(self, work: Callable[[], object]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            _work_and_exit(work)
        self.left.add(self.pid)

    def until_stopped(self) -> None:
        """Return when it has stopped itself."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"it ended instead, with {status}"

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self.until_stopped()

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def has_ended(self) -> bool:
        """Whether it is over; as what is for `ends_well` to say."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def ends_well(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self.left.remove(self.pid)
        assert os.waitstatus_to_exitcode(status) == 0


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """A test that fails leaves stopped processes behind: they end here."""
    yield
    while Process.left:
        pid = Process.left.pop()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _work_and_exit(work: Callable[[], object]) -> NoReturn:
    code = 1
    try:
        signal.alarm(HUNG_S)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def record(ledger: Ledger, promises: Promises, name: str) -> None:
    """One answered request, and what the ledger acknowledged of it."""
    asked, first = received(name, session_id=name[:2]), started(name, session_id=name[:2])
    promises.mean(asked, first)
    log = ledger.begin(asked, first)
    promises.kept(log.started_at, asked, first)
    outcome = succeeded(log, name, session_id=name[:2])
    promises.append(log, outcome, completed(log, name, session_id=name[:2]))


def write_until(
    done: Callable[[], bool], path: Path, promises: Path, process: int, at_least: int = 5
) -> None:
    """Record from four threads until told that it is enough, so many requests each at least."""
    kept = Promises(promises / f"{process}")

    def work(thread: int) -> None:
        number = 0
        while number < at_least or not done():
            record(ledger, kept, f"{process:02}-{thread}-{number}")
            number += 1

    with Ledger.open(path, auto_seal=False) as ledger, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))


def test_many_writers_a_reader_and_a_sealer_lose_nothing_and_every_report_adds_up(
    path: Path, promises: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_journals, "ROTATE_AT_EVENTS", 60)
    monkeypatch.setattr(own_journals, "APPLY_AT_EVENTS", 16)
    monkeypatch.setattr(sealing_module, "JOURNAL_REMOVED_AFTER_S", 0.1)
    written = tmp_path / "written"
    Ledger.open(path, auto_seal=False).close()
    writers = [
        Process(partial(write_until, lambda: True, path, promises, process, at_least=30))
        for process in range(PROCESSES)
    ]
    sealer = Process(partial(_seal_until, written.exists, path))
    findings = list(_report(path, promises))
    while not all(writer.has_ended() for writer in writers):
        findings += _report(path, promises)
    written.touch()
    for process in (*writers, sealer):
        process.ends_well()
    assert findings == []
    assert list(unsound(path, promises_in(promises))) == []
    assert len({row["journal_id"] for row in snapshot(path)}) > PROCESSES, "each has one, and some rotated"


def _seal_until(done: Callable[[], bool], path: Path) -> None:
    while not done():
        with Ledger.open(path, auto_seal=False) as ledger:
            ledger.seal()


def _report(path: Path, promises: Path) -> Iterator[str]:
    """What is wrong with a report that is made now."""
    acknowledged = promises_in(promises)
    with opened(path) as connection:
        yield from inconsistent(connection)
        yield from lost(events_in(connection), acknowledged)


# forks

FORKING = textwrap.dedent("""
    import os, sys, threading
    from pathlib import Path
    from ledger import Ledger
    from sound import Promises
    from test_ledger_many_writers import record

    where, how, path, promises = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    if where == "execed":
        with Ledger.open(path, auto_seal=False) as ledger:
            record(ledger, Promises(promises / f"{os.getpid()}"), f"execed-{os.getpid()}")
        raise SystemExit

    ledger = Ledger.open(path, auto_seal=False)
    kept = Promises(promises / "parent")
    enough = threading.Event()
    codes = []

    def append(thread):
        number = 0
        while number < 5 or not enough.is_set():
            record(ledger, kept, f"parent-{thread}-{number}")
            number += 1

    def go_on_in_child():
        name = f"child-{os.getpid()}"
        record(ledger, Promises(promises / name), name)
        if how == "_exit":
            os._exit(0)
        if how == "exec":
            os.execv(sys.executable, [sys.executable, sys.argv[0], "execed", *sys.argv[2:]])
        if how == "close":
            ledger.close()

    def fork_and_wait():
        for _ in range(2):
            record(ledger, kept, f"forker-{len(codes)}")
            child = os.fork()
            if child == 0:
                return go_on_in_child()
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    parent = os.getpid()
    others = [threading.Thread(target=append, args=(thread,)) for thread in range(2)]
    for other in others:
        other.start()
    if where == "in a thread":
        forker = threading.Thread(target=fork_and_wait)
        forker.start()
        forker.join()
    else:
        fork_and_wait()
    if os.getpid() == parent:
        enough.set()
        for other in others:
            other.join()
        ledger.close()
        assert codes == [0, 0], codes
""")


@pytest.mark.parametrize("how", ["return", "close", "_exit", "exec"])
@pytest.mark.parametrize("where", ["in a thread", "in the main thread"])
def test_a_child_forked_while_others_append_goes_on_and_ends_as_it_likes(
    where: str, how: str, on_disk: Path, promises: Path, tmp_path: Path
) -> None:
    path = on_disk / "ledger"
    program = tmp_path / "forking.py"
    program.write_text(FORKING)
    done = subprocess.run(
        [sys.executable, str(program), where, how, str(path), str(promises)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        capture_output=True,
        text=True,
        timeout=HUNG_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    kept = promises_in(promises)
    assert list(unsound(path, kept)) == []
    expected = 4 if how == "exec" else 2
    children = {row["request_id"] for row in snapshot(path) if row.get("request_id", "-")[0] in "ce"}
    assert len(children) == expected


# stopped processes


def test_a_writer_stopped_in_the_midst_of_appends_holds_nobody_up(
    path: Path, promises: Path, tmp_path: Path
) -> None:
    enough = tmp_path / "enough"
    writer = Process(lambda: write_until(enough.exists, path, promises, 1))
    while len(promises_in(promises)) < 50:
        os.sched_yield()
    for _ in range(5):
        writer.stop()
        _everything_goes_on(path, promises)
        writer.go_on()
    enough.touch()
    writer.ends_well()
    assert list(unsound(path, promises_in(promises))) == []


def _everything_goes_on(path: Path, promises: Path) -> None:
    """Another process opens, reserves, records, seals, reports and closes."""

    def work() -> None:
        with Ledger.open(path, auto_seal=False) as ledger:
            name = f"{os.getpid()}"
            _reserve(ledger, name)
            record(ledger, Promises(promises / name), name)
            ledger.seal(wait_s=0)
            assert list(_report(path, promises)) == []

    Process(work).ends_well()


def _reserve(ledger: Ledger, name: str) -> None:
    log = ledger.open_request(received(f"held-{name}"))
    names = (f"held-{name}-a1", f"held-{name}", "s-1", "analyze_page", "REASONING", "m")
    try:
        log.reserve(Hold(*names, Decimal("0.01")), [Limit("session", "s-1", Decimal("1"))])
    finally:
        log.abandon()


def _stopping(owner: Any, name: str) -> None:
    """Have this process stop itself just before something is done, once."""
    real = getattr(owner, name)

    def stop_first(*arguments: Any, **options: Any) -> Any:
        setattr(owner, name, real)
        os.kill(os.getpid(), signal.SIGSTOP)
        return real(*arguments, **options)

    setattr(owner, name, stop_first)


def test_a_process_stopped_while_it_holds_state_db_delays_others_up_to_a_bound(
    path: Path, promises: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "_BUSY_POLLS", 50)
    monkeypatch.setattr(own_journals, "APPLY_AT_EVENTS", 4)

    def hold_it() -> None:
        with Ledger.open(path, auto_seal=False) as ledger:
            record(ledger, Promises(promises / "holder"), "h-1")
            _stopping(state_module.State, "apply")
            record(ledger, Promises(promises / "holder"), "h-2")

    kept = Promises(promises / "other")
    ledger = Ledger.open(path, auto_seal=False)
    holder = Process(hold_it)
    holder.until_stopped()
    record(ledger, kept, "o-1")
    with pytest.raises(LedgerError, match="another process"):
        _reserve(ledger, "o-2")
    with pytest.raises(LedgerError, match="another process"):
        ledger.seal(wait_s=0)
    with contextlib.suppress(LedgerError), Ledger.open(path, auto_seal=False) as other:
        record(other, kept, "o-3")
    record(ledger, kept, "o-4")
    assert list(_report(path, promises)) == []
    holder.go_on()
    holder.ends_well()
    _reserve(ledger, "o-5")
    ledger.close()
    assert list(unsound(path, promises_in(promises))) == []


def test_appends_do_not_wait_for_state_db_again_and_again(
    path: Path, promises: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told to state.db later is a convenience; what a request waits for is its own journal."""
    waits: list[float] = []
    monkeypatch.setattr(state_module, "_BUSY_POLLS", 1_000)
    monkeypatch.setattr(own_journals, "APPLY_AT_EVENTS", 16)
    monkeypatch.setattr(time, "sleep", waits.append)
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        record(ledger, Promises(promises / "one"), "o-0")
        other = State(path / "state.db")
        with contextlib.closing(other), other.transaction():
            for number in range(1, 41):
                record(ledger, Promises(promises / "one"), f"o-{number}")
        assert len(waits) <= 160 / 16 * 2 * state_module._HASTY_POLLS, "few, and not at each append"
    assert list(unsound(path, promises_in(promises))) == []


def test_a_process_stopped_while_it_seals_stops_other_sealers_and_nothing_else(
    path: Path, promises: Path
) -> None:
    def seal() -> None:
        with Ledger.open(path, auto_seal=False) as ledger:
            _stopping(sealing_module, "list_batch")
            ledger.seal()

    with Ledger.open(path, auto_seal=False) as ledger:
        kept = Promises(promises / "other")
        record(ledger, kept, "o-1")
        sealer = Process(seal)
        sealer.until_stopped()
        record(ledger, kept, "o-2")
        _reserve(ledger, "o-3")
        with pytest.raises(LedgerError, match="another process has been sealing"):
            ledger.seal(wait_s=0)
        Ledger.open(path, auto_seal=False).close()
        assert list(_report(path, promises)) == []
        sealer.go_on()
        sealer.ends_well()
        ledger.seal(wait_s=0)
    assert list(unsound(path, promises_in(promises))) == []


def test_a_process_stopped_while_it_recovers_holds_nobody_up(path: Path, promises: Path) -> None:
    def die_in_flight() -> None:
        ledger = Ledger.open(path, auto_seal=False)
        record(ledger, Promises(promises / "dead"), "d-1")
        ledger.begin(received("d-2"), started("d-2"))
        os._exit(0)

    def recover() -> None:
        _stopping(recovery_module, "_append")
        Ledger.open(path, auto_seal=False).close()

    Process(die_in_flight).ends_well()
    recoverer = Process(recover)
    recoverer.until_stopped()
    _everything_goes_on(path, promises)
    recoverer.go_on()
    recoverer.ends_well()
    assert [finding for finding in unsound(path) if "nobody wrote" not in finding] == []
    assert list(lost(snapshot(path), promises_in(promises))) == []
