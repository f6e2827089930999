"""A ledger in use: many threads, many processes, forks, full disks, exits."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from events_by_hand import answered_request, completed, failed, gave_up, received, started, succeeded
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import CostTracker, Ledger, auto_sealing, files, history, own_journals, projection, request_log
from ledger import journal as journal_module
from ledger import ledger as ledger_module
from ledger.budgets import Balance, Hold, Limit
from ledger.errors import BudgetExceeded, LedgerError
from ledger.events import REQUEST_ENDS
from ledger.lines import read_story
from ledger.manifest import read_manifest
from ledger.state import State

ROOT = Path(__file__).parents[1]
D = Decimal


def stories(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Each journal's events, as its files have them."""
    return {
        file.name.split(".")[0]: read_story(file.read_bytes(), file.name.split(".")[0]).events
        for file in sorted((path / "journals").glob("*.jsonl"))
        if file.name != "empty.jsonl"
    }


def types_by_request(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for story in stories(path).values():
        for event in story:
            if "request_id" in event:
                found.setdefault(event["request_id"], []).append(event["event_type"])
    return found


def balance(ledger: Ledger, scope: str, scope_id: str) -> Balance:
    return ledger.read_state(lambda state: state.balance(scope, scope_id))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger.open(path, "process-crash") as opened:
        yield opened


def test_what_was_appended_is_there_and_the_journal_is_closed_at_the_end(path: Path) -> None:
    with Ledger.open(path) as ledger:
        answered_request(ledger, "r-1")
    (story,) = stories(path).values()
    assert [event["event_type"] for event in story] == [
        *("journal_opened", "request_received", "attempt_started"),
        *("attempt_succeeded", "request_completed", "journal_closed"),
    ]
    assert [event["seq"] for event in story] == [1, 2, 3, 4, 5, 6]
    assert story[3]["started_at"] == story[2]["occurred_at"], "money belongs to the attempt's start"


def test_a_ledger_that_nothing_was_written_to_has_no_journal(path: Path) -> None:
    Ledger.open(path).close()
    assert stories(path) == {}


def test_folders_and_files_are_private(ledger: Ledger) -> None:
    answered_request(ledger, "r-1")
    for found in [ledger.path, *ledger.path.rglob("*")]:
        assert found.stat().st_mode & 0o777 == (0o700 if found.is_dir() else 0o600), found


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: path.write_text("x"), "is not a folder"),
        (lambda path: path.symlink_to("/tmp"), "is a symlink"),
    ],
)
def test_a_path_that_cannot_be_a_ledger_is_refused_in_one_line(path: Path, make: Any, complaint: str) -> None:
    make(path)
    with pytest.raises(LedgerError, match=complaint) as refused:
        Ledger.open(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
def test_a_file_system_that_does_not_keep_its_word_is_refused(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_file_system_of", lambda folder: kind)
    with pytest.raises(LedgerError, match=f"is on {kind}"):
        Ledger.open(path)


def test_the_file_system_of_a_folder_is_found() -> None:
    assert files._file_system_of(Path("/proc")) == "proc"


def test_a_private_ledger_goes_when_it_is_closed() -> None:
    ledger = Ledger.in_memory()
    answered_request(ledger, "r-1")
    assert ledger.path.exists()
    ledger.close()
    assert not ledger.path.exists()


def test_after_closing_nothing_can_be_recorded(ledger: Ledger) -> None:
    log = ledger.begin(received(), started())
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="is closed"):
        ledger.begin(received("r-2"))
    with pytest.raises(LedgerError, match="was let go of"):
        log.append(succeeded(log), completed(log))


def test_a_prompt_hash_is_equal_within_a_ledger_and_differs_between_two(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "a") as first, Ledger.open(tmp_path / "b") as second:
        assert first.prompt_hash(b"hello") != second.prompt_hash(b"hello")
        hashed = first.prompt_hash(b"hello")
    with Ledger.open(tmp_path / "a") as again:
        assert again.prompt_hash(b"hello") == hashed
    assert len(hashed) == 32


def test_a_request_that_cannot_be_recorded_is_refused_and_later_stands_as_cancelled(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    answered_request(ledger, "before")
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_all", full)
        with pytest.raises(LedgerError, match="No space left"):
            ledger.begin(received("refused"), started("refused"))
    answered_request(ledger, "after")
    ledger.close()
    assert types_by_request(ledger.path)["refused"] == [
        *("request_received", "attempt_started", "attempt_cancelled", "request_failed")
    ]
    (story,) = stories(ledger.path).values()
    assert story[-1]["event_type"] == "journal_closed", "the refused request does not keep the journal open"


def test_an_outcome_that_cannot_be_written_now_is_written_later(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = ledger.begin(received(), started())
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "write_all", full)
        with pytest.raises(LedgerError):
            log.append(succeeded(log), completed(log))
    ledger.close()
    assert types_by_request(ledger.path)["r-1"] == [
        *("request_received", "attempt_started", "attempt_succeeded", "request_completed")
    ]


def test_a_requests_whole_story_is_in_one_journal_which_closes_after_its_last_request(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_journals, "ROTATE_AT_EVENTS", 8)
    with Ledger.open(path, "process-crash", auto_seal=False) as ledger:
        long = ledger.begin(received("long"), started("long"))
        answered_request(ledger, "r-1")
        answered_request(ledger, "r-2")  # the tenth event: new requests go elsewhere
        answered_request(ledger, "r-3")
        first, second = stories(path).values()
        assert first[-1]["event_type"] == "request_completed"
        assert {event.get("request_id") for event in second} == {None, "r-3"}
        long.append(succeeded(long, "long"), completed(long, "long"))
        closed = next(iter(stories(path).values()))
        assert closed[-1]["event_type"] == "journal_closed"
        assert closed[-1]["reason"] == "rotated"
    assert all(len(types) == 4 for types in types_by_request(path).values())


def test_the_first_event_of_a_new_day_has_the_day_before_sealed_beside_the_program(path: Path) -> None:
    now = [datetime(2026, 11, 22, 23, 59, tzinfo=UTC)]
    with Ledger.open(path, "process-crash", clock=lambda: now[0]) as ledger:
        answered_request(ledger, "r-1")
        assert ledger._sealer.process is None
        now[0] += timedelta(minutes=2)
        answered_request(ledger, "r-2")
        assert ledger._sealer.process is not None
        assert ledger._sealer.process.wait(timeout=60) == 0
        assert (path / "events" / "date=2026-11-22").exists()


def an_earlier_day(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for journal in (path / "journals").iterdir():
        os.utime(journal, (0, 0))


def very_many(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_sealing, "SEAL_AT_JOURNALS", 1)


def very_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_sealing, "SEAL_AT_BYTES", 1000)


@pytest.mark.parametrize("lie_about", [an_earlier_day, very_many, very_long])
def test_opening_a_ledger_has_what_lies_about_sealed_beside_the_program(
    path: Path, lie_about: Callable[[Path, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(path, "process-crash") as ledger:
        answered_request(ledger, "r-1")
    with Ledger.open(path) as ledger:
        assert ledger._sealer.process is None
    lie_about(path, monkeypatch)
    with Ledger.open(path) as ledger:
        assert ledger._sealer.process is not None
        assert ledger._sealer.process.wait(timeout=60) == 0
    assert len(read_manifest(path)[0]) == 1


def test_a_full_journal_is_sealed_beside_the_program(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_journals, "ROTATE_AT_EVENTS", 5)
    with Ledger.open(path, "process-crash") as ledger:
        answered_request(ledger, "r-1")
        assert ledger._sealer.process is not None
        assert ledger._sealer.process.wait(timeout=60) == 0
    assert len(read_manifest(path)[0]) == 1


@pytest.mark.parametrize("durability", ["process-crash", "power-loss"])
def test_threads_share_a_ledger_without_loss(path: Path, durability: Any) -> None:
    with Ledger.open(path, durability) as ledger:

        def work(thread: int) -> None:
            for number in range(20):
                answered_request(ledger, f"{thread}-{number}", session_id=f"s-{thread}")

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert balance(ledger, "all", "") == Balance(D("0.000490") * 160)
    assert Counter(map(len, types_by_request(path).values())) == {4: 160}


def run_python(source: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A process that has the test's helpers and the product at hand."""
    search_path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source), *arguments],
        env={**os.environ, "PYTHONPATH": search_path},
        stdout=subprocess.PIPE,
    )


def test_processes_share_a_folder_and_each_has_its_own_journal(path: Path) -> None:
    workers = [
        run_python(
            """
            import sys
            from events_by_hand import answered_request
            from ledger import Ledger
            with Ledger.open(sys.argv[1], "process-crash") as ledger:
                for number in range(50):
                    answered_request(ledger, f"{sys.argv[2]}-{number}")
            """,
            str(path),
            str(worker),
        )
        for worker in range(6)
    ]
    assert [worker.wait(timeout=60) for worker in workers] == [0] * 6
    assert Counter(map(len, types_by_request(path).values())) == {4: 300}
    assert len(stories(path)) == 6
    with Ledger.open(path) as ledger:
        assert balance(ledger, "all", "") == Balance(D("0.000490") * 300)


def test_a_process_that_ends_without_closing_leaves_a_closed_journal(path: Path) -> None:
    worker = run_python(
        """
        import sys
        from events_by_hand import answered_request
        from ledger import Ledger
        ledger = Ledger.open(sys.argv[1])
        answered_request(ledger, "r-1")
        """,
        str(path),
    )
    assert worker.wait(timeout=60) == 0
    (story,) = stories(path).values()
    assert (story[-1]["event_type"], story[-1]["reason"]) == ("journal_closed", "closed")


def test_a_killed_process_is_ended_by_the_next_and_its_attempt_stays_in_doubt(path: Path) -> None:
    worker = run_python(
        """
        import sys, time
        from events_by_hand import received, started
        from ledger import Ledger
        ledger = Ledger.open(sys.argv[1])
        ledger.begin(received(), started())
        print("sent", flush=True)
        time.sleep(600)
        """,
        str(path),
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"sent\n"
    with Ledger.open(path) as ledger:
        assert types_by_request(path)["r-1"] == ["request_received", "attempt_started"], "it lives"
        worker.send_signal(signal.SIGKILL)
        worker.wait(timeout=60)
    with Ledger.open(path) as ledger:
        assert types_by_request(path)["r-1"] == [
            *("request_received", "attempt_started", "attempt_abandoned", "request_failed")
        ]
        assert balance(ledger, "session", "s-1") == Balance(in_doubt_usd=D("0.01"))


def test_a_forked_child_goes_on_with_a_journal_of_its_own(ledger: Ledger) -> None:
    open_before = ledger.begin(received("parent"), started("parent"))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            answered_request(ledger, "child")
            ledger.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with Ledger.open(ledger.path) as other:  # finds the parent's journal still locked
        assert types_by_request(other.path)["parent"] == ["request_received", "attempt_started"]
    open_before.append(succeeded(open_before, "parent"), completed(open_before, "parent"))
    assert len(stories(ledger.path)) == 2
    assert types_by_request(ledger.path).keys() == {"parent", "child"}
    assert balance(ledger, "all", "").spent_usd == D("0.000980")


def test_a_child_cannot_go_on_with_its_parents_request_and_does_not_hang_on_it(ledger: Ledger) -> None:
    log = ledger.begin(received(), started())
    journal = ledger._journals._current
    assert journal is not None
    journal._lock.acquire()  # as a thread that writes at the moment of the fork
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        status = 1
        try:
            log.append(succeeded(log), completed(log))
        except LedgerError:
            status = 0
        finally:
            os._exit(status)
    journal._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    log.append(succeeded(log), completed(log))
    assert types_by_request(ledger.path)["r-1"][-1] == "request_completed"


def test_a_child_that_lives_on_does_not_keep_its_dead_parents_journal_locked(path: Path) -> None:
    """A copy of the descriptor in the child would hold the flock, and recovery would wait for ever."""
    parent = run_python(
        """
        import os, sys, time
        from events_by_hand import received, started
        from ledger import Ledger
        ledger = Ledger.open(sys.argv[1], "process-crash")
        ledger.begin(received(), started())
        child = os.fork()
        if child == 0:
            time.sleep(600)
        print(child, flush=True)
        time.sleep(600)
        """,
        str(path),
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait(timeout=60)
        Ledger.open(path).close()
        assert types_by_request(path)["r-1"][-1] == "request_failed"
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_balance_is_asked_for_only_where_one_is_kept(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no balance is kept for the scope 'day'"):
        balance(ledger, "day", "2026-11-22")


def test_a_fork_while_other_threads_append_leaves_no_lock_behind(ledger: Ledger) -> None:
    stop = threading.Event()

    def work(thread: int) -> None:
        number = 0
        while not stop.is_set():
            answered_request(ledger, f"{thread}-{number}")
            number += 1

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(10):
            child = os.fork()
            if child == 0:
                signal.alarm(30)  # a lock left behind ends the child, and the test
                answered_request(ledger, f"child-{number}")
                ledger.close()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    ledger.close()
    found = types_by_request(ledger.path)
    assert {f"child-{number}" for number in range(10)} <= found.keys()
    assert set(map(len, found.values())) == {4}


def test_a_hold_counts_until_its_outcome_and_one_limit_covers_all_attempts_of_a_request(
    ledger: Ledger,
) -> None:
    limits = [Limit("request", "r-1", D("0.02"))]

    def hold(number: int, ceiling: str) -> Hold:
        return Hold(f"r-1-a{number}", "r-1", "s-1", "analyze_page", "REASONING", "m", D(ceiling))

    log = ledger.open_request(received())
    log.reserve(hold(1, "0.01"), limits)
    assert balance(ledger, "request", "r-1") == Balance(reserved_usd=D("0.01"))
    log.append(started())
    log.append(failed(log, billing="billed", billing_rule="answered_with_error", billed_cost_usd=D("0.004")))
    assert balance(ledger, "request", "r-1") == Balance(spent_usd=D("0.004"))
    with pytest.raises(BudgetExceeded, match=r"spent \$0.004, reserved \$0, in doubt \$0, asked \$0.017"):
        log.reserve(hold(2, "0.017"), limits)
    log.reserve(hold(2, "0.016"), limits)
    log.append(started(number=2, reserved_usd=D("0.016")))
    log.append(failed(log, number=2, billing="unknown", billing_rule="no_answer", reserved_usd=D("0.016")))
    assert balance(ledger, "request", "r-1") == Balance(spent_usd=D("0.004"), in_doubt_usd=D("0.016"))
    log.append(gave_up(log))
    assert balance(ledger, "session", "s-1") == Balance(spent_usd=D("0.004"), in_doubt_usd=D("0.016"))


def test_a_hold_whose_attempt_never_started_is_let_go_of(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Hold("r-1-a1", "r-1", "s-1", "t", "REASONING", "m", D("0.01"))
    log = ledger.open_request(received())
    log.reserve(hold, [])
    monkeypatch.setattr(
        journal_module, "write_all", lambda fd, data: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error"))
    )
    with pytest.raises(LedgerError):
        log.append(started())
    monkeypatch.undo()
    assert balance(ledger, "request", "r-1") == Balance()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["billed", "unbilled", "unknown", "unpriced", "abandoned"]),
        st.sampled_from(["s-1", "s-2", None]),
        st.integers(0, 10**12).map(lambda pico: D(pico).scaleb(-12)),
    ),
    max_size=12,
)


@given(steps=STEPS, lag=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_state_db_is_the_fold_of_the_events_however_it_got_there(
    steps: list[tuple[str, str | None, Decimal]], lag: int
) -> None:
    with Ledger.in_memory() as ledger, pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_journals, "APPLY_AT_EVENTS", lag)
        for number, (kind, session_id, cost) in enumerate(steps):
            name = f"r-{number}"
            log = ledger.begin(received(name, session_id=session_id), started(name, session_id=session_id))
            fields: dict[str, Any] = {"session_id": session_id}
            if kind == "abandoned":
                continue
            if kind == "billed":
                log.append(succeeded(log, name, billed_cost_usd=cost, **fields), completed(log, name))
            elif kind == "unpriced":
                log.append(succeeded(log, name, list_cost_usd=None, **fields), completed(log, name))
            else:
                ceiling = cost if kind == "unknown" else None
                log.append(
                    failed(log, name, billing=kind, reserved_usd=ceiling, **fields), gave_up(log, name)
                )
        ledger.seal()
        along_the_way, anew = ledger.read_state(lambda state: (state.dump(), _rebuilt(state, ledger)))
        assert anew == along_the_way


def _rebuilt(state: Any, ledger: Ledger) -> dict[str, list[tuple[Any, ...]]]:
    state.rebuild(history.all_runs(ledger.path))
    return state.dump()


def test_a_lost_state_db_is_derived_again_from_segments_and_journals(path: Path) -> None:
    with Ledger.open(path) as ledger:
        answered_request(ledger, "r-1")
        ledger.seal()
        answered_request(ledger, "r-2")
    for file in path.glob("state.db*"):
        file.unlink()
    with Ledger.open(path) as ledger:
        assert balance(ledger, "session", "s-1") == Balance(D("0.000980"))


def test_a_state_db_that_is_no_database_is_named_with_what_to_do(path: Path) -> None:
    Ledger.open(path).close()
    (path / "state.db").write_text("not a database, not even a small one")
    with pytest.raises(LedgerError, match=r"state\.db is damaged: .*bughive-costs recover makes it anew"):
        Ledger.open(path)


def test_trouble_with_state_db_does_not_fail_a_request_that_is_on_the_books(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(own_journals, "APPLY_AT_EVENTS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(State, "apply", lambda *_: (_ for _ in ()).throw(LedgerError("stuck")))
        answered_request(ledger, "r-1")
    assert "state.db lags behind" in caplog.text
    answered_request(ledger, "r-2")
    assert balance(ledger, "all", "") == Balance(D("0.000980"))


def test_a_ledger_keeps_its_identity(tmp_path: Path) -> None:
    opened = [Ledger.open(tmp_path / "l") for _ in range(3)]
    assert len({ledger.id for ledger in opened}) == 1
    for ledger in opened:
        ledger.close()


def test_closing_while_threads_work_leaves_no_event_behind_the_last_one(path: Path) -> None:
    for _ in range(10):
        ledger = Ledger.open(path, "process-crash")
        begun = threading.Event()

        def work(thread: int, ledger: Ledger = ledger, begun: threading.Event = begun) -> None:
            with contextlib.suppress(LedgerError):
                for number in range(10_000):
                    answered_request(ledger, f"{ledger.now()}-{thread}-{number}")
                    begun.set()

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        begun.wait(timeout=30)
        ledger.close()
        for thread in threads:
            thread.join()
    Ledger.open(path).close()
    for story in stories(path).values():
        types = [event["event_type"] for event in story]
        assert types[-1] == "journal_closed"
        assert types.count("journal_closed") == 1
        assert types.count("request_received") == sum(kind in REQUEST_ENDS for kind in types)


def test_a_chdir_does_not_move_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with CostTracker("books") as tracker, CostTracker() as default:
        for each in (tracker, default):
            answered_request(each.ledger, "r-1")
        monkeypatch.chdir(elsewhere)
        for each in (tracker, default):
            answered_request(each.ledger, "r-2")
            assert each.get_session_cost("s-1") == D("0.000980")
    assert list(elsewhere.iterdir()) == []


def test_a_ctrl_c_in_a_transaction_leaves_no_lock_behind(ledger: Ledger) -> None:
    with ledger._projection.state() as state:
        state._db.execute("begin immediate")  # as if interrupted right after it
        with state.transaction():
            assert state.indexed() == (0, "")
        with pytest.raises(KeyboardInterrupt), state.transaction():
            raise KeyboardInterrupt
        assert not state._db.in_transaction
    with Ledger.open(ledger.path) as other:
        answered_request(other, "r-1")


def test_many_may_open_a_new_ledger_at_once(path: Path) -> None:
    problems: list[Exception] = []

    def open_it() -> None:
        try:
            Ledger.open(path, "process-crash").close()
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_journal_that_another_has_written_to_is_left_and_a_new_one_begun(ledger: Ledger) -> None:
    answered_request(ledger, "r-1")
    (journal,) = (file for file in (ledger.path / "journals").glob("*.jsonl") if file.name != "empty.jsonl")
    with journal.open("ab") as other:
        other.write(b"noise")
    with pytest.raises(LedgerError, match="changed by another"):
        answered_request(ledger, "r-2")
    answered_request(ledger, "r-3")
    assert len(stories(ledger.path)) == 2


def test_a_ctrl_c_while_state_db_is_asked_leaves_its_lock_free(ledger: Ledger) -> None:
    held_in = {ledger_module.__file__, projection.__file__}
    asked = 0

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_filename in held_in:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for microseconds in range(1, 1_500, 5):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)
                for _ in range(20):
                    ledger.session_spent("s-1")
                    ledger.budgets()
            signal.setitimer(signal.ITIMER_REAL, 0)
            asked += not ledger._projection._lock.locked()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert asked == 300


def test_a_ctrl_c_at_any_line_leaves_no_room_for_a_second_end_of_a_request(ledger: Ledger) -> None:
    lines_left = 0

    def interrupt(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines_left
        if frame.f_code.co_filename != request_log.__file__:
            return None
        if event == "line":
            lines_left -= 1
            if lines_left == 0:
                raise KeyboardInterrupt
        return interrupt

    interrupted = 0
    for number in range(1, 60):
        log = ledger.begin(received(f"r-{number}"))
        lines_left = number
        end = gave_up(log, f"r-{number}")
        try:
            sys.settrace(interrupt)
            log.append(end)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        interrupted += lines_left <= 0
        if not log.ended:
            log.append(end)
    assert interrupted > 10
    told = types_by_request(ledger.path).values()
    assert max(sum(name in REQUEST_ENDS for name in names) for names in told) == 1


def test_a_ledger_that_says_it_is_closed_takes_no_more(ledger: Ledger) -> None:
    class Interrupting:
        def __enter__(self) -> None:
            raise KeyboardInterrupt

        def __exit__(self, *_: object) -> None:
            """Nothing was entered."""

    lock, ledger._journals._lock = ledger._journals._lock, Interrupting()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        ledger.close()
    ledger._journals._lock = lock
    assert "closed" in repr(ledger)
    with pytest.raises(LedgerError, match="is closed"):
        ledger.begin(received())


def test_a_child_builds_no_model_for_which_another_thread_may_have_held_the_lock(path: Path) -> None:
    forking = """
        import os, sys
        from ledger import Ledger
        from ledger.events import EVENT_CLASSES

        with Ledger.open(sys.argv[1]):
            child = os.fork()
            if child == 0:
                os._exit(not all(model.__pydantic_complete__ for model in EVENT_CLASSES))
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(forking), path], check=False).returncode == 0
