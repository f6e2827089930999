"""Clocks that jump, stand still or are mad; days of 23, 24½ and 25 hours; sessions over midnight.

An event's place is its number in its journal, and its moment what the clock said. No clock loses,
doubles or reorders anything; and in every zone the days add up to the range.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import pytz
from events_by_hand import answered_request, completed, received, started, succeeded
from hypothesis import example, given, settings
from hypothesis import strategies as st
from played import History

from ledger.auto_sealing import AutoSealer
from ledger.errors import LedgerError
from ledger.events import BudgetSet
from ledger.ledger import Ledger
from ledger.lines import journal_ids
from ledger.manifest import read_manifest
from ledger.reader import connect
from ledger.recovery import YOUNG_S
from ledger.sealing import JOURNAL_REMOVED_AFTER_S
from ledger.state import QUARTER_S, State, quarter_of
from reports.options import period
from reports.sessions import sessions_report
from reports.spend import spend_report

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock:
    """A clock that shows what it is set to, and stands still in between."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@contextmanager
def opened(path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger.open(path, "process-crash", clock=clock, auto_seal=False) as ledger:
        yield ledger


def events(path: Path) -> list[tuple[str, int, str, datetime]]:
    """journal, number, type and moment of all events, in their order."""
    with connect(path, views=["events"]) as connection:
        return connection.execute(
            "select journal_id, seq, event_type, occurred_at from events order by journal_id, seq"
        ).fetchall()


# clocks

_jumps = st.lists(
    st.tuples(st.integers(-3 * 86_400, 3 * 86_400), st.booleans()),  # seconds; whether it is sealed then
    min_size=1,
    max_size=6,
)


@given(jumps=_jumps)
@example(jumps=[(-86_400, True), (86_400, True), (86_400, False), (-43_201, True)])
@example(jumps=[(43_200, False), (-1, False), (1, True), (-1, True)])
@example(jumps=[(0, False), (0, True), (0, True)])
@settings(max_examples=8, deadline=None)
def test_a_clock_may_jump_either_way_over_midnight_too_and_every_event_keeps_its_place(
    jumps: list[tuple[int, bool]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, clock = Path(folder) / "ledger", Clock()
        told = []
        with opened(path, clock) as ledger:
            answered_request(ledger, "r-0")
            told += [NOON] * 5  # with its journal's beginning
            for number, (seconds, sealed) in enumerate(jumps, start=1):
                clock.now += timedelta(seconds=seconds)
                answered_request(ledger, f"r-{number}")
                told += [clock.now] * 4
                if sealed:
                    ledger.seal()
            found = events(path)
            ledger.seal()
            assert events(path) == found
        with connect(path, views=["daily_spend"]) as connection:
            assert connection.execute("select sum(cost_usd) from daily_spend").fetchone() == (
                Decimal("0.00049") * (len(jumps) + 1),
            )

        assert [seq for _, seq, _, _ in found] == list(range(1, len(told) + 1))
        assert [moment for _, _, _, moment in found] == told
        _each_day_has_its_folder_and_coverage_is_a_prefix(path)


def _each_day_has_its_folder_and_coverage_is_a_prefix(path: Path) -> None:
    covered: dict[str, int] = defaultdict(int)
    for batch in read_manifest(path)[0]:
        table = pq.read_table(
            path / batch.file, columns=["journal_id", "seq", "occurred_at"], partitioning=None
        )
        for row in table.sort_by([("journal_id", "ascending"), ("seq", "ascending")]).to_pylist():
            covered[row["journal_id"]] += 1
            assert row["seq"] == covered[row["journal_id"]], "the next number of its journal"
            assert f"date={row['occurred_at'].date()}" == Path(batch.file).parent.name
        assert {name: covered[name] for name in batch.covers} == dict(batch.covers)


def test_each_change_of_the_day_either_way_asks_for_sealing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[date] = []
    clock = Clock()
    monkeypatch.setattr(AutoSealer, "start", lambda sealer: asked.append(clock.now.date()))
    with opened(path, clock) as ledger:
        for number, hours in enumerate([0, 11, 2, -3, -24, 0, 48]):
            clock.now += timedelta(hours=hours)
            answered_request(ledger, f"r-{number}")

    assert [day.day for day in asked] == [23, 22, 21, 23]


def test_a_journal_is_removed_a_minute_after_it_was_sealed_by_the_clock_and_never_before(path: Path) -> None:
    clock = Clock()
    with opened(path, clock) as ledger:
        answered_request(ledger, "r-1")
    before = events(path)

    def left_at(seconds: float) -> int:
        clock.now = NOON + timedelta(seconds=seconds)
        with opened(path, clock) as ledger:
            ledger.seal()
        assert events(path) == before
        return len(journal_ids(path / "journals"))

    assert left_at(0) == 1, "sealed just now"
    assert left_at(-86_400) == 1, "the clock was set back: that it was long ago is not known"
    assert left_at(JOURNAL_REMOVED_AFTER_S - 0.001) == 1
    assert left_at(JOURNAL_REMOVED_AFTER_S) == 0


def test_a_clock_far_ahead_removes_a_journal_early_and_loses_nothing(path: Path) -> None:
    clock = Clock()
    with opened(path, clock) as ledger:
        answered_request(ledger, "r-1")
    with opened(path, clock) as ledger:
        ledger.seal()
        before = events(path)
        clock.now += timedelta(days=3650)
        ledger.seal()
        assert not journal_ids(path / "journals")
        clock.now = NOON - timedelta(days=1)  # and is put right again
        answered_request(ledger, "r-2")
        ledger.seal()

    assert events(path)[: len(before)] == before
    _each_day_has_its_folder_and_coverage_is_a_prefix(path)


@pytest.mark.parametrize(("age_s", "goes"), [(YOUNG_S + 5, True), (1, False), (-86_400, False)])
def test_an_unborn_journal_goes_once_it_is_surely_old(age_s: float, goes: bool, path: Path) -> None:
    with opened(path, Clock()):
        pass
    unborn = path / "journals" / f"{7:032x}.jsonl.tmp"
    unborn.touch(mode=0o600)
    os.utime(unborn, times=(time.time() - age_s,) * 2)
    with opened(path, Clock()):
        pass
    assert unborn.exists() is not goes


def test_a_clock_that_stands_still_keeps_the_order_of_what_it_stamps(path: Path) -> None:
    clock = Clock()
    with opened(path, clock) as ledger:
        for number in range(3):
            answered_request(ledger, f"r-{number}")
        ledger.seal()
        answered_request(ledger, "r-3")

        assert {moment for *_, moment in events(path)} == {NOON}
        with connect(path, views=["sessions"]) as connection:
            rows = connection.execute("select requests, attempts, cost_usd, first_at = last_at from sessions")
            assert rows.fetchall() == [(4, 4, Decimal("0.00196"), True)]


def test_of_two_budgets_set_at_one_moment_the_later_counts(path: Path) -> None:
    with opened(path, Clock()) as ledger:
        for limit in (5, 3, 4):
            ledger.record(BudgetSet(scope="all", limit_usd=Decimal(limit)))
        for seals in (False, True):
            if seals:
                ledger.seal()
            with connect(path, views=["budget_status"]) as connection:
                limits = connection.execute("select limit_usd from budget_status").fetchall()
            assert limits == [(Decimal(4),)]


@pytest.mark.parametrize("hours", [5.75, -9.5, 14])
def test_a_clock_of_another_zone_says_the_same_moments(hours: float, path: Path) -> None:
    zone = timezone(timedelta(hours=hours))
    clock = Clock(NOON.astimezone(zone))
    with opened(path, clock) as ledger:
        answered_request(ledger, "r-1")
        ledger.seal()
        answered_request(ledger, "r-2")
        assert ledger.now() == NOON
    with opened(path, clock):
        assert {moment for *_, moment in events(path)} == {NOON}
    (batch, *_) = read_manifest(path)[0]
    assert batch.file.startswith("events/date=2026-11-22/")


def test_a_clock_without_a_zone_is_refused(path: Path) -> None:
    clock = Clock(NOON.replace(tzinfo=None))
    with pytest.raises(LedgerError, match="without a time zone") as refused:
        Ledger.open(path, clock=clock)
    assert "\n" not in str(refused.value)
    clock.now = NOON
    with opened(path, clock) as ledger:
        clock.now = NOON.replace(tzinfo=None)
        with pytest.raises(LedgerError, match="without a time zone"):
            ledger.begin(received("r-1"), started("r-1"))
        assert not events(path)


_MAD = [
    *(datetime(1, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    *(datetime(1970, 1, 1, tzinfo=UTC), datetime(2262, 4, 12, tzinfo=UTC)),
    datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
]


@pytest.mark.parametrize("moment", _MAD, ids=lambda moment: moment.isoformat())
def test_a_mad_clock_costs_nothing_but_its_moments(moment: datetime, path: Path) -> None:
    clock = Clock(moment)
    with opened(path, clock) as ledger:
        log = ledger.begin(received("r-dead"), started("r-dead"))
        log.append(succeeded(log, "r-dead"))  # and its end never comes
    with opened(path, clock) as ledger:  # recovers it
        answered_request(ledger, "r-1")
        ledger.seal()
        answered_request(ledger, "r-2")
        found = events(path) if moment.year < 9999 else _events_in_micros(path)
    with opened(path, Clock()) as ledger:  # and is put right again
        answered_request(ledger, "r-3")
        ledger.seal()
    Ledger.recover(path, clock=Clock())

    micros = (moment - _EPOCH) // timedelta(microseconds=1)
    assert {at for *_, at in found} == {moment if moment.year < 9999 else micros}
    _each_day_has_its_folder_and_coverage_is_a_prefix(path)
    for zone in ("UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"):
        for by in ("day", "hour"):
            spend = spend_report(path, by=by, tz=zone)
            assert spend.total["cost_usd"] == sum(row["cost_usd"] for row in spend.rows)
            assert spend.total["cost_usd"] == Decimal("0.00196")
            spend.data(), spend.document()
        assert len(sessions_report(path, tz=zone).rows) == 1


def _events_in_micros(path: Path) -> list[tuple[str, int, str, int]]:
    with connect(path, views=["events"]) as connection:
        return connection.execute(
            "select journal_id, seq, event_type, epoch_us(occurred_at) from events order by journal_id, seq"
        ).fetchall()


def test_state_is_the_same_whatever_the_clock_said(path: Path) -> None:
    clock = Clock()
    with opened(path, clock) as ledger:
        for number, moment in enumerate([*_MAD, NOON]):
            clock.now = moment
            answered_request(ledger, f"r-{number}")
        ledger.seal()
    kept, derived = _state_of(path), Ledger.recover(path, clock=clock)

    assert derived.ended == []
    assert _state_of(path) == kept
    scopes = {scope for scope, *_ in kept["balances"]}
    assert len(kept["balances"]) == len(scopes) * (len(_MAD) + 1), "a moment's spend is in its quarter"


def _state_of(path: Path) -> dict[str, Any]:
    state = State(path / "state.db")
    try:
        return dict(state.dump())
    finally:
        state.close()


# days

# one attempt per quarter of an hour of each of these, and of the days around it
DAYS = [
    date(2025, 3, 30),  # Berlin: 23 hours
    date(2025, 10, 26),  # Berlin: 25 hours; the Azores have midnight twice
    date(2025, 4, 6),  # Lord Howe: 24 hours and a half
    date(2025, 10, 5),  # Lord Howe: 23 hours and a half
    date(2018, 11, 4),  # São Paulo: midnight is left out
    date(2018, 2, 18),  # São Paulo: the day before has 25 hours
    date(2011, 12, 30),  # Apia, Fakaofo: left out
    date(2025, 11, 2),  # Havana: midnight twice
    date(2025, 3, 9),  # Havana: midnight is left out
]
ZONES = (
    *("Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Kiritimati", "Pacific/Apia"),
    *("America/Sao_Paulo", "America/Havana", "Atlantic/Azores", "America/St_Johns", "Pacific/Chatham"),
    *("Africa/Monrovia", "Asia/Beirut", "Africa/Cairo", "America/Nuuk", "UTC"),
)
_PICO = Decimal("0.000000000001")


class Year:
    """A ledger with one attempt per quarter of an hour of some days, and what each cost."""

    def __init__(self, path: Path) -> None:
        clock, self.path = Clock(), path
        self.costs: dict[datetime, Decimal] = {}
        with opened(path, clock) as ledger:
            for day in sorted(DAYS):
                begin = datetime(day.year, day.month, day.day, tzinfo=UTC) - timedelta(days=1)
                for quarter in range(3 * 96):
                    clock.now = begin + timedelta(minutes=15 * quarter)
                    cost = self.costs[clock.now] = _PICO * (len(self.costs) ** 2 + 1)
                    log = ledger.begin(received(f"r-{clock.now}"), started(f"r-{clock.now}"))
                    clock.now += timedelta(seconds=1000)  # it may end on another day: that does not count
                    answer = succeeded(log, f"r-{log.started_at}", list_cost_usd=cost)
                    log.append(answer, completed(log, f"r-{log.started_at}"))
            ledger.seal()
        self.connection = connect(path)

    def cost(self, since: datetime | None, until: datetime | None) -> Decimal:
        """What the attempts that began in [since, until) cost; None: no bound."""
        return sum(
            (
                cost
                for at, cost in self.costs.items()
                if (since is None or since <= at) and (until is None or at < until)
            ),
            Decimal(0),
        )

    def by_day(self, zone: str) -> dict[date, Decimal]:
        """daily_spend in a zone."""
        self.connection.execute(f"set TimeZone = '{zone}'")
        rows = self.connection.execute("select day, cost_usd from daily_spend").fetchall()
        return dict(rows)


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Year]:
    made = Year(tmp_path_factory.mktemp("year") / "ledger")
    yield made
    made.connection.close()


@cache
def _since(day: date, zone: str) -> datetime:
    """When a day begins, as --since has it."""
    found = period(day.isoformat(), None, None, zone, NOON).since
    assert found is not None
    return found


def test_days_add_up_to_the_range_in_every_zone(year: Year) -> None:
    total = year.cost(None, None)

    @given(zone=st.sampled_from(pytz.common_timezones))
    @settings(max_examples=20, deadline=None)
    def of_zone(zone: str) -> None:
        found = year.by_day(zone)
        assert sum(found.values()) == total
        assert found == {
            day: year.cost(_since(day, zone), _since(day + timedelta(days=1), zone)) for day in found
        }, "each day is what --since and --until take for it"

    for zone in ZONES:
        of_zone = example(zone=zone)(of_zone)
    of_zone()


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Atlantic/Azores", "Asia/Kathmandu", "UTC"])
def test_a_report_of_a_range_is_the_sum_of_its_days_and_hours(zone: str, year: Year) -> None:
    day = date(2025, 10, 26)
    first, last = day - timedelta(days=1), day + timedelta(days=1)
    whole = period(first.isoformat(), last.isoformat(), None, zone, NOON)
    expected = year.cost(whole.since, whole.until)
    by = {key: spend_report(year.path, period=whole, tz=zone, by=key) for key in ("day", "hour")}
    days = [
        spend_report(
            year.path, period=period(str(each), str(each + timedelta(days=1)), None, zone, NOON), tz=zone
        ).total
        for each in (first, day)
    ]

    assert {spend.total["cost_usd"] for spend in by.values()} == {expected}
    for rows in (by["day"].rows, by["hour"].rows, days):
        assert sum(row["cost_usd"] for row in rows) == expected
        assert sum(row["requests"] for row in rows) == sum(row["attempts"] for row in rows)
    assert [row["cost_usd"] for row in by["day"].rows] == [row["cost_usd"] for row in days]


@pytest.mark.parametrize(
    ("zone", "day", "quarters", "hours"),
    [
        ("Europe/Berlin", date(2025, 3, 30), 92, 23),
        ("Europe/Berlin", date(2025, 10, 26), 100, 25),
        ("Australia/Lord_Howe", date(2025, 4, 6), 98, 25),  # 01:30 to 02:00 twice
        ("Australia/Lord_Howe", date(2025, 10, 5), 94, 24),  # from 02:00 to 02:30 at once
        ("America/Sao_Paulo", date(2018, 11, 4), 92, 23),
        ("America/Havana", date(2025, 11, 2), 100, 25),
        ("Atlantic/Azores", date(2025, 10, 26), 100, 25),
        ("Pacific/Apia", date(2011, 12, 30), 0, 0),
        ("Asia/Kathmandu", date(2025, 3, 30), 96, 24),
        ("UTC", date(2025, 3, 30), 96, 24),
    ],
)
def test_a_day_has_the_hours_that_it_has_and_they_come_in_order(
    zone: str, day: date, quarters: int, hours: int, year: Year
) -> None:
    since, until = _since(day, zone), _since(day + timedelta(days=1), zone)
    assert (until - since) / timedelta(minutes=15) == quarters
    if not quarters:
        return
    bounds = period(str(day), str(day + timedelta(days=1)), None, zone, NOON)
    rows = spend_report(year.path, period=bounds, tz=zone, by="hour").rows
    assert (sum(row["attempts"] for row in rows), len(rows)) == (quarters, hours)
    moments = [row["first_at"] for row in rows]
    in_order = sorted(moments, key=datetime.fromisoformat)
    assert moments == in_order, "also where an hour comes twice"


def test_a_day_begins_with_its_first_moment_in_every_zone() -> None:
    @given(zone=st.sampled_from(pytz.common_timezones), data=st.data())
    @settings(max_examples=60, deadline=None)
    def of_zone(zone: str, data: st.DataObject) -> None:
        tz = pytz.timezone(zone)
        changes = [change for change in _changes(zone) if 2012 <= change.year <= 2036]
        change = data.draw(st.sampled_from(changes or [NOON]))
        for days in (-1, 0, 1, 2):
            day = change.date() + timedelta(days=days)
            at = _since(day, zone)
            before = at - timedelta(microseconds=1)
            assert at.astimezone(tz).date() >= day > before.astimezone(tz).date(), (zone, day)

    of_zone()


def test_quarters_of_an_hour_hold_every_zones_midnight_since_1980() -> None:
    """state.db keeps spend per quarter: a budget of a day can only be told where days begin with one."""
    odd: Mapping[str, list[datetime]] = defaultdict(list)
    for name in pytz.common_timezones:
        changes = _changes(name)
        for begin, end in zip([_EPOCH, *changes], [*changes, NOON], strict=True):
            offset = begin.astimezone(pytz.timezone(name)).utcoffset()
            if offset and offset % timedelta(seconds=QUARTER_S):
                odd[name].append(end)
    assert dict(odd) == {
        "Africa/Monrovia": [datetime(1972, 1, 7, 0, 44, 30, tzinfo=UTC)],  # was 44 minutes and a half behind
        "Pacific/Kiritimati": [datetime(1979, 10, 1, 10, 40, tzinfo=UTC)],  # was 10 hours 40 minutes behind
    }


def _changes(zone: str) -> list[datetime]:
    """The moments since 1970 when a zone changed its offset."""
    changes = getattr(pytz.timezone(zone), "_utc_transition_times", [])
    return [change for naive in changes if (change := naive.replace(tzinfo=UTC)) > _EPOCH]


@pytest.mark.parametrize("moment", [*_MAD, NOON], ids=lambda moment: moment.isoformat())
def test_a_quarter_begins_at_or_before_its_moments(moment: datetime) -> None:
    begin = _EPOCH + timedelta(seconds=quarter_of(moment) * QUARTER_S)
    assert begin <= moment
    assert moment - begin < timedelta(seconds=QUARTER_S)


def test_a_session_over_midnight_is_one_session_on_two_days(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play("""
        session=s-1 at=2025-10-25T21:59:59
            REASONING  503
            REASONING  ok    in=1000 out=100
        session=s-1 at=2025-10-25T22:30:00
            FAST       ok    in=1000 out=100
        session=s-1 at=2025-10-26T23:59:59
            FAST       ok    in=1000 out=100
    """)
    history.ledger.seal()
    history.close()
    for zone, days in (("UTC", 2), ("Europe/Berlin", 3), ("America/New_York", 2)):
        (session,) = history.rows("select requests, attempts, cost_usd from sessions", tz=zone)
        by_day = history.rows("select requests, attempts, cost_usd from daily_spend", tz=zone)
        assert tuple(map(sum, zip(*by_day, strict=True))) == session, zone
        assert len(by_day) == days
        (row,) = sessions_report(history.path, tz=zone).rows
        assert (row["requests"], row["attempts"], row["cost_usd"]) == session


def test_an_attempt_counts_on_its_own_day_and_its_request_on_the_day_that_began(tmp_path: Path) -> None:
    history = History(tmp_path / "ledger")
    history.play("""
        session=s-1 at=2025-03-29T22:59:59
            REASONING  503
            REASONING  ok    in=1000 out=100
    """)
    history.close()
    rows = "select day, requests, attempts, cost_usd > 0 from daily_spend order by day"
    assert history.rows(rows, tz="Europe/Berlin") == [
        (date(2025, 3, 29), 1, 1, False),
        (date(2025, 3, 30), 0, 1, True),
    ]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Pacific/Kiritimati"])
@pytest.mark.parametrize("second", [-1, 0, 1])
def test_the_last_day_is_24_hours_whatever_day_it_is(zone: str, second: int) -> None:
    midnight = datetime(2025, 10, 27, tzinfo=UTC) + timedelta(seconds=second)
    assert period(None, None, "24h", zone, midnight).since == midnight - timedelta(hours=24)
    assert period(None, None, "1d", zone, midnight) == period(None, None, "24h", zone, midnight)
    assert period(None, None, "1w", zone, midnight).since == midnight - timedelta(days=7)
    assert period(None, None, "1d", zone, midnight).until is None


def test_moments_to_the_microsecond_fall_on_the_right_side_of_midnight(path: Path) -> None:
    clock = Clock(datetime(2025, 3, 29, 22, 59, 59, 999_999, tzinfo=UTC))
    with opened(path, clock) as ledger:
        answered_request(ledger, "r-before")
        clock.now += timedelta(microseconds=1)
        answered_request(ledger, "r-after")
        for sealed in (False, True):
            if sealed:
                ledger.seal()
            rows = spend_report(path, by="day", tz="Europe/Berlin").rows
            assert [(row["day"], row["requests"]) for row in rows] == [("2025-03-29", 1), ("2025-03-30", 1)]
            since = period("2025-03-30", None, None, "Europe/Berlin", NOON)
            assert spend_report(path, period=since).total["requests"] == 1


def test_plain_duckdb_has_days_in_its_own_time_zone(year: Year) -> None:
    with duckdb.connect() as connection:
        connection.execute((year.path / "ledger.sql").read_text("utf-8"))
        connection.execute("set TimeZone = 'Europe/Berlin'")
        found = dict(connection.execute("select day, cost_usd from daily_spend").fetchall())
    assert found == year.by_day("Europe/Berlin")
