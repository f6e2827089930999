"""A disk that is full, a sync that fails, a folder that may not be entered, no handles left: at any moment.

A request that cannot be recorded is refused before it is sent, in one line; an answer that was paid
for is kept; what was half done is done again; and when the trouble is over everything goes on by itself.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple, NoReturn

import duckdb  # noqa: F401  loaded before a process has no handles for it
import pyarrow.dataset
import pyarrow.parquet  # noqa: F401
import pytest
from events_by_hand import answered_request, completed, gave_up, received, started, succeeded
from sound import Promise, Promises, Row, snapshot, unsound

from ledger import CostTracker, Ledger, own_journals
from ledger.budgets import Hold, Limit
from ledger.errors import LedgerError
from ledger.reader import connect
from ledger.request_log import RequestLog
from router import AnthropicClient, LLMRouter, OpenRouterClient, UnrecordedAnswer
from router.drive import OnLedgerError
from router.testing import Call, FakeProvider, Reply, answer
from router.types import RouteResponse

NOBODY = 65534
HUNG_S = 60
ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "import sys; from reports.cli import main; sys.exit(main())"]

Trouble = Callable[[Path], AbstractContextManager[None]]


@pytest.fixture(scope="module", autouse=True)
def _everything_loaded() -> None:
    """A process without handles or rights cannot load what it uses for the first time."""
    with FakeProvider() as fake:
        fake.router.route("analyze_page", [{"role": "user", "content": "hello"}])
        fake.ledger.seal()
    list(unsound(fake.ledger.path))


# troubles: each lasts as long as its block


@contextlib.contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Not a byte is left on the ledger's disk, but for the rest of each file's last page."""
    ballast = path.parent / "ballast"
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (65_536, 1):
            with contextlib.suppress(OSError):
                while os.write(fd, bytes(size)):
                    pass
        yield
    finally:
        os.close(fd)
        ballast.unlink()


@contextlib.contextmanager
def file_size_limit(path: Path) -> Iterator[None]:
    """No file may grow beyond the longest journal and half a line."""
    longest = max(file.stat().st_size for file in (path / "journals").iterdir())
    with _lowered(resource.RLIMIT_FSIZE, longest + 300):
        yield


@contextlib.contextmanager
def no_handles(path: Path) -> Iterator[None]:
    """What is open stays open; nothing else can be opened."""
    free = os.dup(0)
    os.close(free)
    with _lowered(resource.RLIMIT_NOFILE, free):
        yield


@contextlib.contextmanager
def _lowered(limit: int, to: int) -> Iterator[None]:
    before, most = resource.getrlimit(limit)
    resource.setrlimit(limit, (to, most))
    try:
        yield
    finally:
        resource.setrlimit(limit, (before, most))


@contextlib.contextmanager
def failing_syncs(path: Path) -> Iterator[None]:
    """The disk takes what is written and cannot say that it is there."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        patch.setattr(os, "fsync", fail)
        yield


@contextlib.contextmanager
def no_permission(path: Path) -> Iterator[None]:
    """The ledger's folder may not be entered; files that are open stay open."""
    path.chmod(0o000)
    try:
        yield
    finally:
        path.chmod(0o700)


TROUBLES: dict[str, Trouble] = {
    "full disk": full_disk,
    "file size limit": file_size_limit,
    "no handles": no_handles,
    "failing syncs": failing_syncs,
    "no permission": no_permission,
}


# what is tried in trouble


class Noted(Promises):
    """In memory: the troubles of a ledger are not its own."""

    def __init__(self) -> None:
        self.all: list[Promise] = []

    def _write(self, promises: Sequence[Promise]) -> None:
        self.all += promises


class Books(NamedTuple):
    """An open ledger with a request in flight, and what it has promised. Requests begin with `name`."""

    ledger: Ledger
    promises: Noted
    log: RequestLog  # of the request in flight
    name: str

    @property
    def in_flight(self) -> str:
        return f"{self.name}, in flight"

    def record(self, name: str) -> None:
        """A request from its beginning to its end."""
        log = _begun(self.ledger, self.promises, name := f"{self.name}, {name}")
        self.promises.append(log, succeeded(log, name), completed(log, name))


def _begun(ledger: Ledger, promises: Promises, name: str) -> RequestLog:
    asked, first = received(name), started(name)
    promises.mean(asked, first)
    log = ledger.begin(asked, first)
    promises.kept(log.started_at, asked, first)
    return log


def record_another(books: Books) -> None:
    for number in range(40):  # a page of a full disk may have room for some
        books.record(f"tried-{number}")


def record_the_outcome(books: Books) -> None:
    told = json.dumps({"more than a page": "x" * 5_000})
    outcome = succeeded(books.log, books.in_flight, usage_json=told)
    end = completed(books.log, books.in_flight)
    books.promises.mean(outcome, end)
    books.log.append(outcome, end)


def record_the_outcome_after_a_refusal(books: Books) -> None:
    with contextlib.suppress(LedgerError):
        record_another(books)
    record_the_outcome(books)


def begin_a_journal(books: Books) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_journals, "ROTATE_AT_EVENTS", 1)
        books.ledger.journal_appended(books.log._journal, books.ledger.now())
        books.record("in a new journal")


def seal(books: Books) -> None:
    books.ledger.seal(wait_s=0)


def reserve(books: Books) -> None:
    log = books.ledger.open_request(received("held"))
    names = ("held-a1", "held", "s-1", "analyze_page", "REASONING", "m")
    try:
        log.reserve(Hold(*names, Decimal("0.01")), [Limit("session", "s-1", Decimal("100"))])
    finally:
        log.abandon()


def open_again(books: Books) -> None:
    with Ledger.open(books.ledger.path, auto_seal=False):
        pass


def report(books: Books) -> None:
    with connect(books.ledger.path) as connection:
        connection.execute("select * from sessions").fetchall()


def close(books: Books) -> None:
    books.ledger.close()


MOMENTS = (
    *(record_another, record_the_outcome, record_the_outcome_after_a_refusal, begin_a_journal),
    *(seal, reserve, open_again, report, close),
)
REFUSED = {  # what cannot succeed; all else succeeds, or is refused as well
    "full disk": {record_another, record_the_outcome, begin_a_journal, seal},
    "file size limit": {record_another, record_the_outcome, seal},
    "no handles": {begin_a_journal, seal, open_again, report},
    "failing syncs": {record_another, record_the_outcome, begin_a_journal, seal},
    "no permission": {begin_a_journal, seal, open_again, report},
}


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of two megabytes, gone after the tests."""
    point = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", str(point)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small tmpfs can be mounted by root alone")
    yield point
    subprocess.run(["umount", "--lazy", str(point)], check=True)


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty folder, where the test's trouble can be had."""
    trouble = request.getfixturevalue("trouble")
    if trouble == "full disk":
        folder = Path(tempfile.mkdtemp(dir=request.getfixturevalue("small_disk")))
    elif trouble == "no permission":
        folder = Path(tempfile.mkdtemp(prefix="no-permission-"))  # nobody cannot enter pytest's own
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
    else:
        folder = tmp_path
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def in_a_process(work: Callable[[], object], *, as_nobody: bool = False) -> None:
    """Do it in a process of its own, whose limits and user may be changed. Fails where it fails."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _work_and_exit(work, writing, as_nobody)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        pytest.fail(f"it ended with {code}\n{said}", pytrace=False)


def _work_and_exit(work: Callable[[], object], fd: int, as_nobody: bool) -> NoReturn:
    code = 1
    try:
        signal.alarm(HUNG_S)
        if as_nobody and os.geteuid() == 0:  # to root nothing is forbidden
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        work()
        code = 0
    except BaseException:
        os.write(fd, traceback.format_exc().encode())
    finally:
        os._exit(code)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_is_told_in_one_line_and_when_it_is_over_everything_goes_on(
    trouble: str, place: Path
) -> None:
    """In the midst of an append, a rotation, a seal, a reservation, an opening, a report, a closing."""
    in_a_process(lambda: _in_trouble(trouble, place), as_nobody=trouble == "no permission")


def _in_trouble(trouble: str, place: Path) -> None:
    os.chdir(place)
    path, promises = place / "ledger", Noted()
    with Ledger.open(path, auto_seal=False) as ledger:
        for moment in MOMENTS:
            books = _with_a_request_in_flight(ledger, promises, moment.__name__)
            with TROUBLES[trouble](path):
                refusal = _refusal_of(moment, books)
            assert refusal or moment not in REFUSED[trouble], f"{moment.__name__} cannot have succeeded"
            assert "\n" not in (refusal or ""), refusal
            if moment is not close:
                _goes_on(books, moment)
    assert list(unsound(path, promises.all)) == []
    assert not [file for file in path.rglob("*.tmp") if file.parent.parent.name == "events"], "half a segment"
    _nothing_was_sent_that_was_refused(snapshot(path))


def _refusal_of(moment: Callable[[Books], None], books: Books) -> str | None:
    """What the ledger has against it; None: it was done."""
    try:
        moment(books)
    except LedgerError as error:
        return str(error)
    return None


def _with_a_request_in_flight(ledger: Ledger, promises: Noted, name: str) -> Books:
    log = _begun(ledger, promises, f"{name}, in flight")
    books = Books(ledger, promises, log, name)
    books.record("before")
    return books


def _goes_on(books: Books, moment: Callable[[Books], None]) -> None:
    """All that was tried in trouble, now without it."""
    books.record("after")
    if moment not in (record_the_outcome, record_the_outcome_after_a_refusal):
        record_the_outcome(books)
    for again in (reserve, open_again, seal):
        again(books)
    path = books.ledger.path
    ends = [row for row in snapshot(path) if row.get("request_id") == books.in_flight]
    assert [row["event_type"] for row in ends][-2:] == ["attempt_succeeded", "request_completed"]


def _nothing_was_sent_that_was_refused(rows: list[Row]) -> None:
    """What was begun in trouble and refused stands as never sent: nothing of it is in doubt."""
    for row in rows:
        if row["event_type"] == "attempt_cancelled":
            assert (row["billing"], row["billing_rule"]) == ("unbilled", "never_sent")
        if row["event_type"] == "attempt_abandoned":
            assert row["request_id"] == "close, in flight", "the program went on, and ended what it began"


@pytest.mark.parametrize("trouble", ["full disk", "failing syncs"])
def test_an_outcome_that_found_no_room_outlives_the_end_of_its_journal(trouble: str, place: Path) -> None:
    """The last request of a journal that was rotated out: nobody writes to it any more."""
    in_a_process(lambda: _rotated_in_trouble(trouble, place))


def _rotated_in_trouble(trouble: str, place: Path) -> None:
    path = place / "ledger"
    with Ledger.open(path, auto_seal=False) as ledger:
        books = _with_a_request_in_flight(ledger, Noted(), "rotated")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(own_journals, "ROTATE_AT_EVENTS", 1)
            books.record("the last of this journal but one")
        books.record("in the next journal")
        with TROUBLES[trouble](path):
            with contextlib.suppress(LedgerError):
                record_another(books)
            with contextlib.suppress(LedgerError):
                record_the_outcome(books)
        books.record("after")
    story = [row["event_type"] for row in snapshot(path) if row.get("request_id") == books.in_flight]
    assert story[-2:] == ["attempt_succeeded", "request_completed"]
    assert list(unsound(path, books.promises.all)) == []


# the router in trouble


class Routing(NamedTuple):
    """A router on a ledger that can get into trouble, and the provider it asks."""

    router: LLMRouter
    ledger: Ledger
    provider: FakeProvider

    def ask(self) -> RouteResponse:
        return self.router.route("analyze_page", [{"role": "user", "content": "hello"}], session_id="s-1")


@contextlib.contextmanager
def routing(path: Path, on_ledger_error: OnLedgerError = "raise") -> Iterator[Routing]:
    with FakeProvider() as provider, Ledger.open(path, auto_seal=False) as ledger:
        anthropic = AnthropicClient("sk-ant-fake", transport=provider.transport)
        openrouter = OpenRouterClient("sk-or-fake", transport=provider.transport)
        router = LLMRouter(anthropic, openrouter, CostTracker(ledger), on_ledger_error=on_ledger_error)
        yield Routing(router, ledger, provider)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_nothing_is_sent_that_cannot_be_recorded(trouble: str, place: Path) -> None:
    in_a_process(lambda: _routed_in_trouble(trouble, place), as_nobody=trouble == "no permission")


def _routed_in_trouble(trouble: str, place: Path) -> None:
    os.chdir(place)
    path = place / "ledger"
    with pytest.MonkeyPatch.context() as patch, routing(path) as asked:
        asked.ask()
        if trouble in ("no handles", "no permission"):  # what is open stays open
            patch.setattr(own_journals, "ROTATE_AT_EVENTS", 1)
        answers = 1
        with TROUBLES[trouble](path), pytest.raises(LedgerError) as refused:
            for _ in range(20):
                with contextlib.suppress(UnrecordedAnswer):  # the last that found room to begin
                    asked.ask()
                answers += 1
        assert "\n" not in str(refused.value)
        assert len(asked.provider.calls) == answers
        asked.ask()
        assert len(asked.provider.calls) == answers + 1
    rows = snapshot(path)
    assert len([row for row in rows if row["event_type"] == "attempt_succeeded"]) == answers + 1
    _nothing_was_sent_that_was_refused(rows)
    assert list(unsound(path)) == []


@pytest.mark.parametrize("written_by", ["the next request", "closing"])
@pytest.mark.parametrize("on_ledger_error", ["raise", "warn"])
@pytest.mark.parametrize("trouble", ["full disk", "file size limit", "failing syncs"])
def test_an_answer_that_was_paid_for_is_kept_and_its_cost_follows(
    trouble: str, on_ledger_error: OnLedgerError, written_by: str, place: Path
) -> None:
    in_a_process(lambda: _answered_in_trouble(trouble, on_ledger_error, written_by, place))


def _answered_in_trouble(trouble: str, on_ledger_error: OnLedgerError, written_by: str, place: Path) -> None:
    path = place / "ledger"
    with routing(path, on_ledger_error) as asked:
        costs = [asked.ask()["cost"]]
        with contextlib.ExitStack() as lasting:
            asked.provider.script(_answer_into(TROUBLES[trouble], asked.ledger, lasting))
            response = _kept_answer(asked, on_ledger_error)
        assert response["content"] == "what was paid for"
        costs.append(response["cost"])
        if written_by == "the next request":
            costs.append(asked.ask()["cost"])
            assert _costs(path) == costs, "before the ledger is closed"
    assert _costs(path) == costs
    assert list(unsound(path)) == []


def _answer_into(trouble: Trouble, ledger: Ledger, lasting: contextlib.ExitStack) -> Callable[[Call], Reply]:
    """A reply on whose way the trouble begins, with no room left in the journal's last page."""

    def reply(call: Call) -> Reply:
        number = 0
        while _journal_of(ledger).stat().st_size % 4096 < 3400:
            number += 1
            tags = {"padding": "x" * (number * 97 % 500)}
            log = ledger.begin(received(f"padding-{number}", session_id="padding", tags=tags))
            log.append(gave_up(log, f"padding-{number}", session_id="padding", attempt_number=0, tags=tags))
        lasting.enter_context(trouble(ledger.path))
        return answer("what was paid for", input_tokens=1000, output_tokens=200)

    return reply


def _journal_of(ledger: Ledger) -> Path:
    (journal,) = ledger._journals.all()
    return journal.path


def _kept_answer(asked: Routing, on_ledger_error: OnLedgerError) -> RouteResponse:
    """The answer, whichever way it comes."""
    if on_ledger_error == "raise":
        with pytest.raises(UnrecordedAnswer) as unrecorded:
            asked.ask()
        return unrecorded.value.response
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("router").addHandler(handler)
    response = asked.ask()
    assert any("is not on the books yet" in warning for warning in warnings)
    return response


def _costs(path: Path) -> list[Decimal]:
    with connect(path, views=("events", "attempts", "requests")) as connection:
        rows = connection.execute(
            "select cost_usd from requests where session_id = 's-1' and status = 'completed'"
            " order by started_at"
        ).fetchall()
    return [cost for (cost,) in rows]


@pytest.mark.parametrize("trouble", ["full disk", "file size limit"])
def test_what_finds_no_room_until_the_end_stays_in_doubt_with_its_ceiling(trouble: str, place: Path) -> None:
    in_a_process(lambda: _closed_in_trouble(trouble, place))


def _closed_in_trouble(trouble: str, place: Path) -> None:
    path = place / "ledger"
    with contextlib.ExitStack() as lasting:
        with routing(path, "warn") as asked:
            asked.provider.script(_answer_into(TROUBLES[trouble], asked.ledger, lasting))
            asked.ask()
    assert list(unsound(path)) == []
    with connect(path) as connection:
        in_doubt = "select outcome, reserved_usd > 0 from in_doubt"
        assert connection.execute(in_doubt).fetchall() == [("abandoned", True)]


# the command line in trouble


@pytest.mark.parametrize("handles", [5, 8, 40])
def test_a_report_with_few_handles_is_whole_or_one_line_of_error(handles: int, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    for number in range(6):
        with Ledger.open(path, auto_seal=False) as ledger:
            answered_request(ledger, f"r-{number}")
            ledger.seal()
    done = _command(path, handles=handles)
    if handles == 40:
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["requests"] == 6
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("bughive-costs: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("trouble", ["full disk"])
def test_a_report_needs_no_room_on_the_ledgers_disk(trouble: str, place: Path) -> None:
    path = place / "ledger"
    with Ledger.open(path, auto_seal=False) as ledger:
        answered_request(ledger, "r-1")
        with TROUBLES[trouble](path):
            done = _command(path, TMPDIR=str(place))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["requests"] == 1


def _command(path: Path, handles: int | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    """`bughive-costs report`, as a process of its own, with at most so many handles."""
    few = ["sh", "-c", f'ulimit -n {handles} && exec "$@"', "sh"] if handles else []
    return subprocess.run(
        [*few, *COMMAND, "report", "--session", "s-1", "--format", "json", "--ledger", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        check=False,
    )
