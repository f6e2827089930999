"""Limits hold: in every scope and zone, over processes and threads, from the moment they are set."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import budget_storm
import pytest
from events_by_hand import answered_request, completed, failed, received, started, succeeded
from hypothesis import given
from hypothesis import strategies as st

from ledger.budgets import Budget, Hold, Limit, budget_of
from ledger.errors import BudgetExceeded, LedgerError, SettingsError, UnboundedRequest, UnpricedModel
from ledger.ledger import Ledger
from ledger.request_log import RequestLog
from ledger.verify import verify
from ledger.windows import quarter_of, window_of, zone_named

D = Decimal
CEILING = D("0.01")


class Clock:
    def __init__(self, now: str) -> None:
        self.now = datetime.fromisoformat(now)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock("2026-11-22T11:00:00+00:00")


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger", "process-crash", clock=clock, auto_seal=False) as opened:
        yield opened


def hold(name: str, number: int = 1, ceiling: Any = CEILING, **fields: Any) -> Hold:
    event = started(name, number, **fields)
    return Hold(event.attempt_id, name, event.session_id, event.task, event.tier, event.model, ceiling)


def begin(ledger: Ledger, name: str, ceiling: Decimal = CEILING, **fields: Any) -> RequestLog:
    of_request = {field: fields[field] for field in ("session_id", "task") if field in fields}
    log = ledger.open_request(received(name, **of_request))
    try:
        log.reserve(hold(name, ceiling=ceiling, **fields))
        log.append(started(name, reserved_usd=ceiling, **fields))
    except BaseException:
        log.abandon()
        raise
    return log


def answer(log: RequestLog, name: str, cost: str, **fields: Any) -> None:
    outcome = succeeded(log, name, billed_cost_usd=D(cost), **fields)
    log.append(outcome, completed(log, name, **fields))


def events(ledger: Ledger, event_type: str) -> list[dict[str, Any]]:
    with ledger.connect() as connection:
        asked = connection.execute(
            f"select * from events where event_type = '{event_type}' order by occurred_at"
        )
        names = [column[0] for column in asked.description or ()]
        return [dict(zip(names, row, strict=True)) for row in asked.fetchall()]


# what a limit counts


@pytest.mark.parametrize(
    ("scope", "scope_id", "other"),
    [
        ("session", "s-1", {"session_id": "s-2"}),
        ("session", None, {"session_id": "s-2"}),
        ("task", "analyze_page", {"task": "classify_bug"}),
        ("tier", "REASONING", {"tier": "FAST"}),
        ("model", "deepseek/deepseek-chat", {"model": "m"}),
        ("request", None, {}),
        ("day", None, None),
        ("month", None, None),
        ("all", None, None),
    ],
)
def test_a_limit_holds_for_its_scope_and_for_nothing_else(
    ledger: Ledger, scope: Any, scope_id: str | None, other: dict[str, Any] | None
) -> None:
    ledger.set_budget(Budget(scope, scope_id, D("0.025")))
    first = begin(ledger, "r-1", D("0.02"))
    if scope != "request":
        with pytest.raises(BudgetExceeded) as refused:
            begin(ledger, "r-2")
        assert (refused.value.scope, refused.value.reserved_usd, refused.value.asked_usd) == (
            scope,
            D("0.02"),
            CEILING,
        )
    else:
        with pytest.raises(BudgetExceeded):
            first.reserve(hold("r-1", 2))
    if other is not None:
        begin(ledger, "r-3", **other)
    answer(first, "r-1", "0.001")
    begin(ledger, "r-4")


@pytest.mark.parametrize("scope", ["session", "all"])
def test_a_limit_that_a_call_brings_along_counts_what_is_summed_up_long_since(
    ledger: Ledger, scope: Any
) -> None:
    for number in range(40):  # of so many tasks that they are summed up at once
        name, task = f"r-{number}", f"task-{number}"
        answer(begin(ledger, name, task=task), name, "0.001", task=task)
    log = ledger.open_request(received("r-last"))

    with pytest.raises(BudgetExceeded) as refused:
        log.reserve(hold("r-last"), [Limit(scope, "s-1" if scope == "session" else "", D("0.045"))])

    assert refused.value.spent_usd == D("0.040")
    log.reserve(hold("r-last"), [Limit(scope, "s-1" if scope == "session" else "", D("0.05"))])


def test_a_budget_set_at_noon_knows_the_morning_even_what_others_have_not_told_state_db(
    ledger: Ledger, tmp_path: Path, clock: Clock
) -> None:
    clock.now = datetime(2026, 11, 22, 6, tzinfo=UTC)
    with Ledger.open(tmp_path / "ledger", "process-crash", clock=clock, auto_seal=False) as another:
        for number in range(3):
            answered_request(another, f"early-{number}", billed_cost_usd=D("0.3"))
        clock.now = datetime(2026, 11, 22, 12, tzinfo=UTC)
        ledger.set_budget(Budget("day", None, D(1), tz="Europe/Berlin"))

        begin(ledger, "r-1", D("0.1"))
        with pytest.raises(BudgetExceeded, match=r"budget of day 2026-11-22 exceeded: .* spent \$0\.9,"):
            begin(ledger, "r-2")


def test_a_day_begins_at_midnight_in_its_own_zone(ledger: Ledger, clock: Clock) -> None:
    clock.now = datetime(2026, 11, 22, 22, 59, tzinfo=UTC)  # 23:59 in Berlin
    ledger.set_budget(Budget("day", None, D("0.02"), tz="Europe/Berlin"))
    ledger.set_budget(Budget("day", None, D("0.02"), "warn"))
    answer(begin(ledger, "r-1", D("0.02")), "r-1", "0.02")
    with pytest.raises(BudgetExceeded, match="day 2026-11-22"):
        begin(ledger, "r-2")
    clock.now = datetime(2026, 11, 22, 23, 0, tzinfo=UTC)
    begin(ledger, "r-3")
    assert [event["scope_id"] for event in events(ledger, "budget_warned")] == ["2026-11-22"]


def test_what_is_held_before_midnight_and_starts_after_it_counts_for_the_new_day(
    ledger: Ledger, clock: Clock
) -> None:
    ledger.set_budget(Budget("day", None, D("0.015")))
    clock.now = datetime(2026, 11, 22, 23, 59, 59, tzinfo=UTC)
    log = ledger.open_request(received("r-1"))
    log.reserve(hold("r-1"))
    clock.now = datetime(2026, 11, 23, tzinfo=UTC)
    log.append(started("r-1"))

    with pytest.raises(BudgetExceeded, match="day 2026-11-23"):
        begin(ledger, "r-2")
    clock.now = datetime(2026, 11, 22, 23, 30, tzinfo=UTC)
    begin(ledger, "r-3")


def test_an_attempt_whose_new_day_has_no_room_is_refused_and_its_request_can_be_ended(
    ledger: Ledger, clock: Clock
) -> None:
    clock.now = datetime(2026, 11, 23, 0, 1, tzinfo=UTC)
    begin(ledger, "tomorrow")
    ledger.set_budget(Budget("day", None, D("0.015")))
    clock.now = datetime(2026, 11, 22, 23, 59, 59, tzinfo=UTC)
    log = ledger.open_request(received("r-1"))
    log.reserve(hold("r-1"))
    clock.now = datetime(2026, 11, 23, 0, 2, tzinfo=UTC)
    with pytest.raises(BudgetExceeded, match="day 2026-11-23"):
        log.append(started("r-1"))

    assert not log.ended
    log.abandon()
    assert ledger.read_state(lambda state: state.balance("all", "")).reserved_usd == CEILING


def test_in_doubt_counts_until_it_is_settled(ledger: Ledger) -> None:
    ledger.set_budget(Budget("session", "s-1", D("0.015")))
    log = begin(ledger, "r-1")
    log.append(failed(log, "r-1", billing="unknown", billing_rule="no_answer", reserved_usd=CEILING))
    with pytest.raises(BudgetExceeded) as refused:
        begin(ledger, "r-2")
    assert refused.value.in_doubt_usd == CEILING
    ledger.settle("r-1-a1", D("0.001"))
    begin(ledger, "r-3")


def test_a_settlement_above_its_ceiling_is_told_as_one_that_broke_it(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("r-1", "r-2"):
        log = begin(ledger, name)
        log.append(failed(log, name, billing="unknown", billing_rule="no_answer", reserved_usd=CEILING))
    ledger.settle("r-1-a1", CEILING)
    ledger.settle("r-2-a1", CEILING * 10)

    assert [event["attempt_id"] for event in events(ledger, "ceiling_broken")] == ["r-2-a1"]
    assert caplog.messages == ["attempt r-2-a1 was settled as $0.1, more than its ceiling of $0.01"]
    with ledger.connect() as connection:
        found = connection.execute("select is_ceiling_broken, cost_usd from attempts order by attempt_id")
        assert found.fetchall() == [(False, CEILING), (True, CEILING * 10)]
    assert verify(ledger.path).is_sound


def test_what_is_settled_while_its_request_is_open_still_counts_in_it(ledger: Ledger) -> None:
    own = [Limit("request", "r-1", D("1.00"))]
    log = ledger.open_request(received("r-1"))
    log.reserve(hold("r-1", ceiling=D("0.6")), own)
    log.append(started("r-1", reserved_usd=D("0.6")))
    log.append(failed(log, "r-1", billing="unknown", billing_rule="no_answer", reserved_usd=D("0.6")))
    ledger.settle("r-1-a1", D("0.5"))

    with pytest.raises(BudgetExceeded):
        log.reserve(hold("r-1", 2, ceiling=D("0.6")), own)
    log.reserve(hold("r-1", 2, ceiling=D("0.4")), own)
    report = verify(ledger.path)
    assert not [finding for finding in report.findings if "request_spent" in str(finding)]


def test_what_was_read_in_a_transaction_that_sqlite_undid_is_read_again(tmp_path: Path) -> None:
    """The disk is full at its commit. What another process changes then may get the same revision."""
    with (
        Ledger.open(tmp_path, "process-crash", auto_seal=False) as ledger,
        Ledger.open(tmp_path, "process-crash", auto_seal=False) as another,
    ):
        ledger.set_budget(Budget("all", None, D(100)))
        begin(ledger, "r-1")
        with ledger._projection.state() as state:
            state._db.set_commit_hook(lambda: True)  # SQLite rolls back by itself, as for a disk error
        with pytest.raises(LedgerError):
            ledger.set_budget(Budget("all", None, D(200)))
        with ledger._projection.state() as state:
            state._db.set_commit_hook(None)
        another.set_budget(Budget("session", "s-1", CEILING))

        with pytest.raises(BudgetExceeded):
            begin(ledger, "r-2")


def test_many_attempts_in_doubt_are_settled_all_or_none(ledger: Ledger) -> None:
    for name in ("r-1", "r-2", "r-3"):
        log = begin(ledger, name)
        if name != "r-3":
            verdict = {"billing": "unknown", "billing_rule": "no_answer", "reserved_usd": CEILING}
            log.append(failed(log, name, **verdict))
    with pytest.raises(LedgerError, match="r-3-a1 is still in flight"):
        ledger.settle_all(["r-1-a1", "r-2-a1", "r-3-a1"], D("0.001"))
    assert events(ledger, "attempt_settled") == []

    settled = ledger.settle_all(["r-2-a1", "r-1-a1", "r-2-a1"], D("0.001"))
    assert [event.attempt_id for event in settled] == ["r-2-a1", "r-1-a1"]
    assert ledger.read_state(lambda state: state.balance("all", "")) == (D("0.002"), CEILING, 0)


def test_a_limit_that_is_raised_lowered_or_lifted_holds_at_once_in_every_process(
    ledger: Ledger, tmp_path: Path, clock: Clock
) -> None:
    begin(ledger, "r-0")
    with Ledger.open(tmp_path / "ledger", "process-crash", clock=clock, auto_seal=False) as another:
        another.set_budget(Budget("all", None, D("0.015")))
        with pytest.raises(BudgetExceeded):
            _begin_as_the_router_does(ledger, "r-1")
        another.set_budget(Budget("all", None, D("0.025")))
        _begin_as_the_router_does(ledger, "r-2")
        another.lift_budget(Budget("all", None, D(0)))
    _begin_as_the_router_does(ledger, "r-3")
    with pytest.raises(LedgerError, match="there is no hard budget of all there is"):
        ledger.lift_budget(Budget("all", None, D(0)))
    limits = [event["limit_usd"] for event in events(ledger, "budget_set")]
    assert limits == [D("0.015"), D("0.025"), None]


def _begin_as_the_router_does(ledger: Ledger, name: str) -> None:
    if ledger.budgets_known():
        begin(ledger, name)
    else:
        ledger.begin(received(name), started(name))


def test_more_than_nine_million_dollars_in_a_quarter_of_an_hour_are_counted(ledger: Ledger) -> None:
    ledger.set_budget(Budget("all", None, D(999_999)))
    for number in range(20):
        answered_request(ledger, f"r-{number}", billed_cost_usd=D(900_000))
        log = ledger.begin(received(f"d-{number}"), started(f"d-{number}", reserved_usd=D(900_000)))
        log.append(
            failed(log, f"d-{number}", billing="unknown", billing_rule="no_answer", reserved_usd=D(900_000))
        )
    with pytest.raises(BudgetExceeded) as refused:
        begin(ledger, "r-x")
    assert (refused.value.spent_usd, refused.value.in_doubt_usd) == (18_000_000, 18_000_000)
    assert verify(ledger.path).findings == []


def test_what_has_no_price_or_bound_is_refused_under_a_hard_limit_alone(ledger: Ledger) -> None:
    ledger.set_budget(Budget("tier", "REASONING", D(1)))
    ledger.set_budget(Budget("all", None, D(1), "warn"))
    for refusal in (UnpricedModel("m has no price"), UnboundedRequest("web search has no bound")):
        log = ledger.open_request(received("r-1"))
        with pytest.raises(type(refusal), match=f"the budget of tier REASONING cannot hold: {refusal}"):
            log.reserve(hold("r-1", ceiling=refusal))
        log.reserve(hold("r-1", ceiling=refusal, tier="FAST"))
        log.abandon()


# warnings


def test_a_warning_is_given_once_for_each_crossing(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    ledger.set_budget(Budget("session", None, D("0.025"), "warn"))
    logs = {name: begin(ledger, name) for name in ("r-1", "r-2")}
    with caplog.at_level(logging.WARNING, logger="ledger"):
        logs |= {name: begin(ledger, name) for name in ("r-3", "r-4")}
    assert len(events(ledger, "budget_warned")) == 1
    assert (
        caplog.text.count("warn budget of session s-1: an attempt of at most $0.01 takes it above $0.025")
        == 1
    )
    for name, log in logs.items():
        answer(log, name, "0.001")
    answer(begin(ledger, "r-5"), "r-5", "0.02")
    begin(ledger, "r-6")
    assert [event["request_id"] for event in events(ledger, "budget_warned")] == ["r-3", "r-6"]
    assert verify(ledger.path).findings == []


def test_a_warning_that_was_given_does_not_speak_for_a_hard_limit_of_the_same_amount(ledger: Ledger) -> None:
    ledger.set_budget(Budget("session", None, D("0.03"), "warn"))
    for number in range(40):  # of so many tasks that they are summed up at once
        name, task = f"r-{number}", f"task-{number}"
        answer(begin(ledger, name, D("0.001"), task=task), name, "0.001", task=task)
    ledger.set_budget(Budget("session", None, D("0.03"), "hard"))
    with pytest.raises(BudgetExceeded, match="session s-1"):
        begin(ledger, "one too many")
    begin(ledger, "another's", session_id="s-2")
    assert [event["request_id"] for event in events(ledger, "budget_warned")] == ["r-30"]


def test_a_warning_whose_attempt_never_started_is_given_with_the_next(ledger: Ledger) -> None:
    ledger.set_budget(Budget("all", None, D("0.005"), "warn"))
    log = ledger.open_request(received("r-1"))
    log.reserve(hold("r-1"))
    log.abandon()
    begin(ledger, "r-2")
    assert [event["request_id"] for event in events(ledger, "budget_warned")] == ["r-2"]


# windows


@given(
    st.sampled_from(
        (
            "UTC",
            "Europe/Berlin",
            "America/New_York",
            "Asia/Kathmandu",
            "Australia/Lord_Howe",
            "Pacific/Apia",
            "Africa/Cairo",
            "America/Sao_Paulo",
            "Asia/Beirut",
            "America/Havana",
            "Pacific/Chatham",
        )
    ),
    st.integers(1_357_000_000, 2_114_380_800).map(lambda at: datetime.fromtimestamp(at, UTC)),
    st.sampled_from(("day", "month")),
)
def test_a_window_is_what_has_the_date_on_the_zones_clocks(tz: str, moment: datetime, kind: Any) -> None:
    zone = zone_named(tz)
    window = window_of(kind, tz, quarter_of(moment))

    def label(quarter: int) -> str:
        at = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=900 * quarter)).astimezone(zone)
        return at.strftime("%Y-%m-%d" if kind == "day" else "%Y-%m")

    assert window.first_quarter <= quarter_of(moment) < window.end_quarter
    assert label(window.first_quarter) == label(window.end_quarter - 1) == window.label
    assert label(window.first_quarter - 1) != window.label != label(window.end_quarter)


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 23), ("2026-10-25", 25), ("2026-11-22", 24)])
def test_a_day_has_as_many_hours_as_its_clocks_say(day: str, hours: int) -> None:
    noon = datetime.fromisoformat(f"{day}T12:00:00+00:00")
    window = window_of("day", "Europe/Berlin", quarter_of(noon))
    assert (window.end_quarter - window.first_quarter, window.label) == (hours * 4, day)


# who may set what


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (("sesion", None, "1"), "scope must be .* or all, not 'sesion'; did you mean session?"),
        (("session", None, "-1"), "a limit is an amount of USD from 0 to below 1,000,000, not '-1'"),
        (("session", None, "NaN"), "not 'NaN'"),
        (("session", None, "1e6"), "not '1e6'"),
        (("session", None, "0.0000000000001"), "at most 12 decimals"),
        (("session", None, 1.5), "not 1.5"),
        (("day", "monday", "1"), "takes no id"),
        (("all", None, "1", "soft"), "mode must be hard or warn, not 'soft'"),
        (
            ("day", None, "1", "hard", "Europe/Berlni"),
            "no time zone 'Europe/Berlni'; did you mean Europe/Berlin",
        ),
        (("session", None, "1", "hard", "Europe/Berlin"), "a time zone is for budgets of a day or a month"),
        (("session", "a\nb", "1"), "an id has 1 to 256 characters"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_told_in_a_line(given: Any, complaint: str) -> None:
    with pytest.raises(SettingsError, match=f"^here: .*{complaint}"):
        budget_of(*given, where="here")


def test_bughive_toml_sets_budgets_and_what_it_no_longer_says_is_lifted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bughive.toml"

    def opened(text: str) -> list[str]:
        file.write_text(text)
        with Ledger.open(tmp_path / "ledger", "process-crash", auto_seal=False) as ledger:
            return [f"{budget} ${budget.limit_usd:.2f} {budget.tz}" for budget in ledger.budgets().all]

    day = '[[budgets]]\nscope = "day"\nlimit_usd = 5\ntz = "Europe/Berlin"\n'
    session = '[[budgets]]\nscope = "session"\nlimit_usd = 0.5\nmode = "warn"\n'
    both = ["warn budget of each session $0.50 UTC", "hard budget of the day $5.00 Europe/Berlin"]
    assert opened(day + session) == both
    assert opened(day + session) == both
    with Ledger.open(tmp_path / "ledger", "process-crash", auto_seal=False) as ledger:
        ledger.set_budget(Budget("all", None, D(7)))
        with pytest.raises(
            LedgerError, match=r"hard budget of the day is set in .*bughive.toml; change it there"
        ):
            ledger.set_budget(Budget("day", None, D(6)))
        assert len(events(ledger, "budget_set")) == 3
    assert opened(day) == [both[1], "hard budget of all there is $7.00 UTC"]
    file.unlink()
    with Ledger.open(tmp_path / "ledger", "process-crash", auto_seal=False) as ledger:
        assert len(ledger.budgets().all) == 2  # another program may have no such file


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            'scope = "tier"\nid = "FASTT"\nlimit_usd = 1',
            "line 2: there is no tier 'FASTT'; did you mean FAST?",
        ),
        ('scope = "day"\nlimit_usd = 1\nzone = "UTC"', r"line 2: \[\[budgets\]\] has no key 'zone'"),
        ('scope = "day"', "line 2: a limit is an amount"),
        ('scope = "day"\nlimit_usd = nan', "line 2: a limit is an amount"),
        ("scope = 3\nlimit_usd = 1", "line 2: scope must be a text"),
        (
            'scope = "all"\nlimit_usd = 1\n[[budgets]]\nscope = "all"\nlimit_usd = 2',
            "line 5: .* is set twice",
        ),
    ],
)
def test_a_budget_in_bughive_toml_that_cannot_be_meant_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bughive.toml").write_text(f"\n[[budgets]]\n{text}\n")
    with pytest.raises(SettingsError, match=f"bughive.toml, {complaint}"):
        Ledger.open(tmp_path / "ledger")
    assert not (tmp_path / "ledger").exists()


def test_a_clock_behind_the_last_change_of_a_budget_is_told(ledger: Ledger, clock: Clock) -> None:
    ledger.set_budget(Budget("all", None, D(1)))
    clock.now -= timedelta(days=1)
    with pytest.raises(LedgerError, match=r"was last changed at 2026-11-22.*; set the clock"):
        ledger.set_budget(Budget("all", None, D(2)))


# the proof


@pytest.mark.skipif(sys.platform != "linux", reason="it forks processes that use threads")
def test_processes_and_threads_that_are_killed_never_overshoot_a_budget_and_use_it_up(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, budget_storm.__file__, "--runs", "1", "--processes", "6", "--seed", "5"],
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
