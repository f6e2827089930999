"""A model that fails again and again is left alone: over real sockets, across real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tenacity.wait import wait_none

from ledger import CostTracker, Ledger
from ledger.verify import verify
from router import (
    BudgetExceeded,
    CircuitSetting,
    InvalidRequest,
    LLMRouter,
    OpenRouterClient,
    RouteExhausted,
)
from router.policy import FAILURES
from router.simulator import (
    Reply,
    Simulator,
    content_filtered,
    cut,
    invalid_request,
    overloaded,
    rate_limited,
    server_error,
    silent,
)

CHAT, QWEN = "deepseek/deepseek-chat", "qwen/qwen-2.5-32b-instruct"  # of REASONING and FAST
ASK = [{"role": "user", "content": "Analyze this page."}]
SETTING = CircuitSetting(failures=3, probe_after_s=30)
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
ROOT = Path(__file__).resolve().parent.parent
HUNG_S = 60


class Clock:
    """Stands still until it is moved; a microsecond later each time it is read."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        self.now += timedelta(microseconds=1)
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger", "process-crash", clock=clock, auto_seal=False) as opened:
        yield opened


@pytest.fixture
def make_router(sim: Simulator, ledger: Ledger) -> Iterator[Callable[..., LLMRouter]]:
    with OpenRouterClient("sk-or-test-key", base_url=sim.openrouter_url) as client:
        yield lambda **options: LLMRouter(
            openrouter_client=client,
            cost_tracker=CostTracker(ledger),
            **{"backoff": wait_none(), "max_retries": 0, "circuit": SETTING, **options},
        )


@pytest.fixture
def router(make_router: Callable[..., LLMRouter]) -> LLMRouter:
    return make_router()


def asked(sim: Simulator, model: str) -> int:
    return sum(served.model == model for served in sim.log)


def events(ledger: Ledger, *types: str) -> list[dict[str, Any]]:
    lines = [
        json.loads(line)
        for path in sorted(ledger.path.glob("journals/*.jsonl"))
        for line in path.read_text("utf-8").splitlines()
    ]
    return [line for line in lines if line["event_type"] in types]


def turns(ledger: Ledger) -> list[str]:
    return [event["event_type"] for event in events(ledger, "circuit_opened", "circuit_closed")]


def fail(router: LLMRouter, sim: Simulator, times: int = 3, reply: Reply | None = None) -> None:
    """Requests that fail, one after another."""
    for _ in range(times):
        sim.script(CHAT, reply or server_error())
        with pytest.raises(RouteExhausted):
            router.route("analyze_page", ASK)


def assert_sound(ledger: Ledger) -> None:
    assert [str(finding) for finding in verify(ledger.path).findings] == []


# an outage, with a fallback


def test_every_request_of_an_outage_is_served_and_few_wait_for_the_primary(
    sim: Simulator, router: LLMRouter, ledger: Ledger, clock: Clock
) -> None:
    sim.script(CHAT, *[server_error()] * 6)
    answers = []
    for _ in range(100):  # five seconds apart
        answers.append(router.route_with_fallback("analyze_page", ASK, session_id="s-1"))
        clock.move(5)

    tiers = [answer["model_tier"] for answer in answers]
    assert tiers[:3] == ["FAST"] * 3  # the failures that open it
    down = tiers.index("REASONING")
    assert down == 2 + 4 * 6  # after three probes in vain, thirty seconds apart, the fourth is answered
    assert set(tiers[down:]) == {"REASONING"}
    assert asked(sim, CHAT) == 6 + 100 - down
    assert turns(ledger) == ["circuit_opened", "circuit_closed"]
    assert_sound(ledger)


def test_a_skipped_tier_leaves_a_fallback_and_no_attempt(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    fail(router, sim)
    answer = router.route_with_fallback("analyze_page", ASK, session_id="s-1")

    assert (answer["model_tier"], answer["attempts"], answer["fallback_used"]) == ("FAST", 1, True)
    (moved,) = events(ledger, "fallback_engaged")
    assert (moved["from_tier"], moved["to_tier"], moved["reason"]) == ("REASONING", "FAST", "circuit_open")
    assert (moved["provider"], moved["model"]) == ("openrouter", CHAT)
    with ledger.connect("s-1") as connection:
        row = connection.execute("select attempts, fallbacks, status from requests").fetchone()
    assert row == (1, 1, "completed")
    assert_sound(ledger)


def test_a_request_whose_own_failures_open_the_circuit_does_not_retry(
    sim: Simulator, make_router: Callable[..., LLMRouter], ledger: Ledger
) -> None:
    sim.script(CHAT, *[overloaded()] * 6)
    router = make_router(max_retries=5)

    assert router.route_with_fallback("analyze_page", ASK)["attempts"] == 4  # three, and the fallback
    sim.script(CHAT, *[overloaded()] * 6)
    assert turns(ledger) == ["circuit_opened"]


def test_a_failed_probe_is_one_attempt_and_falls_back(
    sim: Simulator, make_router: Callable[..., LLMRouter], clock: Clock
) -> None:
    router = make_router(max_retries=2)
    sim.script(CHAT, *[server_error()] * 4)
    router.route_with_fallback("analyze_page", ASK)
    clock.move(30)

    answer = router.route_with_fallback("analyze_page", ASK)

    assert (answer["model_tier"], answer["attempts"]) == ("FAST", 2)
    assert asked(sim, CHAT) == 4


# without one


def test_without_a_fallback_the_caller_is_told_at_once(
    sim: Simulator, router: LLMRouter, ledger: Ledger, clock: Clock
) -> None:
    fail(router, sim, reply=server_error(502))
    clock.move(10)
    with pytest.raises(RouteExhausted) as refused:
        router.route("analyze_page", ASK)

    told = str(refused.value)
    assert told.startswith(
        f"analyze_page got no answer: {CHAT} (REASONING) is left alone since 2026-11-22 12:00:00 UTC"
        " (the last failure: server_error, "
    )
    assert told.endswith("; the next request to try it may do so in 20 s")
    assert "\n" not in told
    assert (refused.value.reason, refused.value.attempts) == ("circuit_open", ())
    assert asked(sim, CHAT) == 3
    end = events(ledger, "request_failed")[-1]
    assert end["request_id"] == refused.value.request_id
    assert (end["reason"], end["error_type"], end["attempt_number"]) == ("circuit_open", "server_error", 0)
    assert_sound(ledger)


def test_where_all_tiers_are_left_alone_nothing_is_asked(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    sim.script(CHAT, *[server_error()] * 3)
    sim.script(QWEN, *[server_error()] * 3)
    for _ in range(3):
        with pytest.raises(RouteExhausted):
            router.route_with_fallback("analyze_page", ASK)
    before = len(sim.log)
    with pytest.raises(RouteExhausted, match=rf"{QWEN} \(FAST\) is left alone") as refused:
        router.route_with_fallback("analyze_page", ASK)

    assert len(sim.log) == before
    assert refused.value.attempts == ()
    assert_sound(ledger)


def test_what_a_retry_would_have_tried_is_said_to_be_left_alone(
    sim: Simulator, make_router: Callable[..., LLMRouter]
) -> None:
    sim.script(CHAT, *[server_error()] * 3)
    with pytest.raises(RouteExhausted) as given_up:
        make_router(max_retries=9).route("analyze_page", ASK)
    assert (given_up.value.reason, len(given_up.value.attempts)) == ("circuit_open", 3)


# what counts


@pytest.mark.parametrize("reply", [rate_limited(), invalid_request(), content_filtered()])
def test_a_limit_or_a_fault_of_the_caller_opens_nothing(
    sim: Simulator, router: LLMRouter, ledger: Ledger, reply: Reply
) -> None:
    fail(router, sim, times=4, reply=reply)
    assert router.route("analyze_page", ASK)["model"] == CHAT
    assert turns(ledger) == []


def test_a_probe_that_is_refused_as_the_callers_fault_shows_that_the_model_is_back(
    sim: Simulator, router: LLMRouter, ledger: Ledger, clock: Clock
) -> None:
    fail(router, sim)
    clock.move(30)
    fail(router, sim, times=1, reply=invalid_request())
    assert turns(ledger) == ["circuit_opened", "circuit_closed"]


def test_a_probe_that_is_rate_limited_shows_nothing(
    sim: Simulator, router: LLMRouter, ledger: Ledger, clock: Clock
) -> None:
    fail(router, sim)
    clock.move(30)
    fail(router, sim, times=1, reply=rate_limited())
    assert router.route_with_fallback("analyze_page", ASK)["model_tier"] == "FAST"
    clock.move(30)
    assert router.route_with_fallback("analyze_page", ASK)["model_tier"] == "REASONING"
    assert turns(ledger) == ["circuit_opened", "circuit_closed"]


def test_a_request_that_may_not_be_sent_gives_the_probe_to_the_next(
    sim: Simulator, router: LLMRouter, clock: Clock
) -> None:
    fail(router, sim)
    clock.move(30)
    with pytest.raises(BudgetExceeded):
        router.route("analyze_page", ASK, budget_usd="0.000001")
    assert router.route("analyze_page", ASK)["model"] == CHAT


def test_a_skipped_tier_is_on_the_books_before_a_denial(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    fail(router, sim)
    with pytest.raises(BudgetExceeded) as denied:
        router.route_with_fallback("analyze_page", ASK, budget_usd="0.000001")
    story = events(ledger, "request_received", "fallback_engaged", "request_denied")
    assert [event["event_type"] for event in story if event["request_id"] == denied.value.request_id] == [
        "request_received",
        "fallback_engaged",
        "request_denied",
    ]
    assert_sound(ledger)


def test_the_settings_page_says_of_each_failure_what_counts() -> None:
    page = (ROOT / "docs" / "settings.md").read_text("utf-8").split("## Circuits")[1]
    says = {"it is down": "down", "it serves": "up", "nothing": "unclear"}
    told = {
        kind: verdict
        for row in page.splitlines()
        for start, verdict in says.items()
        if row.startswith("| ") and row.split(" | ")[-1].startswith(start)
        for kind in row.split(" | ")[0].removeprefix("| ").split(", ")
    }
    assert told == {kind: rule.route for kind, rule in FAILURES.items() if kind != "cancelled"}


# streams


def test_a_stream_passes_a_model_that_is_left_alone_by(
    sim: Simulator, router: LLMRouter, ledger: Ledger, clock: Clock
) -> None:
    sim.script(CHAT, *[cut(after=300)] * 3)
    for _ in range(3):
        router.stream("analyze_page", ASK, fallback_tier="FAST").read()
    assert turns(ledger) == ["circuit_opened"]

    answer = router.stream("analyze_page", ASK, fallback_tier="FAST").read()
    assert (answer["model_tier"], answer["attempts"]) == ("FAST", 1)
    with pytest.raises(RouteExhausted, match="left alone"):
        router.stream("analyze_page", ASK).read()
    clock.move(30)
    assert router.stream("analyze_page", ASK).read()["model"] == CHAT
    assert turns(ledger) == ["circuit_opened", "circuit_closed"]
    assert_sound(ledger)


def test_a_caller_who_leaves_a_probing_stream_gives_the_probe_to_the_next(
    sim: Simulator, router: LLMRouter, ledger: Ledger, clock: Clock
) -> None:
    fail(router, sim)
    clock.move(30)
    with router.stream("analyze_page", ASK) as stream:
        next(stream)
        assert router.route_with_fallback("analyze_page", ASK)["model_tier"] == "FAST"
    assert router.route_with_fallback("analyze_page", ASK)["model_tier"] == "REASONING"


# switched off, set otherwise


def test_switched_off_every_request_tries_every_model(
    sim: Simulator, make_router: Callable[..., LLMRouter], ledger: Ledger
) -> None:
    off = make_router(circuit=False)
    fail(off, sim, times=6)
    assert (asked(sim, CHAT), turns(ledger)) == (6, [])

    fail(make_router(), sim)  # opened by another
    assert off.route("analyze_page", ASK)["model"] == CHAT


def test_the_settings_file_sets_it_or_switches_it_off(
    sim: Simulator, make_router: Callable[..., LLMRouter], ledger: Ledger, tmp_path: Path
) -> None:
    (tmp_path / "bughive.toml").write_text("[circuit]\nenabled = false\nfailures = 1\n")
    fail(make_router(circuit=None), sim, times=6)
    assert turns(ledger) == []

    (tmp_path / "bughive.toml").write_text("[circuit]\nfailures = 1\nprobe_after_s = 7.5\n")
    fail(make_router(circuit=None), sim, times=1)
    (opened,) = events(ledger, "circuit_opened")
    assert opened["wait_s"] == 7.5


def test_by_default_five_failures_in_a_row_open_it(
    sim: Simulator, make_router: Callable[..., LLMRouter], ledger: Ledger
) -> None:
    router = make_router(circuit=None)
    fail(router, sim, times=4)
    assert turns(ledger) == []
    fail(router, sim, times=1)
    assert turns(ledger) == ["circuit_opened"]


@pytest.mark.parametrize(
    "circuit", [True, 3, CircuitSetting(failures=0), CircuitSetting(probe_after_s=0), "off"]
)
def test_a_setting_that_cannot_be_meant_is_refused(circuit: Any) -> None:
    with pytest.raises(InvalidRequest, match="circuit"):
        LLMRouter(circuit=circuit)


# what stays


def test_a_restart_finds_the_circuit_open(
    sim: Simulator, make_router: Callable[..., LLMRouter], ledger: Ledger, clock: Clock
) -> None:
    fail(make_router(), sim)
    ledger.close()
    with (
        Ledger.open(ledger.path, "process-crash", clock=clock, auto_seal=False) as again,
        OpenRouterClient("sk-or-test-key", base_url=sim.openrouter_url) as client,
    ):
        router = LLMRouter(openrouter_client=client, cost_tracker=CostTracker(again), circuit=SETTING)
        with pytest.raises(RouteExhausted, match="left alone since 2026-11-22 12:00:00"):
            router.route("analyze_page", ASK)
        clock.move(30)
        assert router.route("analyze_page", ASK)["model"] == CHAT
        assert turns(again) == ["circuit_opened", "circuit_closed"]


@pytest.mark.parametrize("lost", [True, False])
def test_recover_restores_it_from_the_events(
    sim: Simulator, make_router: Callable[..., LLMRouter], ledger: Ledger, clock: Clock, lost: bool
) -> None:
    """With state.db what was known besides is lost, and the next request is the probe."""
    fail(make_router(), sim)
    ledger.seal()
    ledger.close()
    if lost:
        for file in ledger.path.glob("state.db*"):
            file.unlink()
    Ledger.recover(ledger.path, clock=clock)
    assert_sound(ledger)
    with (
        Ledger.open(ledger.path, "process-crash", clock=clock, auto_seal=False) as again,
        OpenRouterClient("sk-or-test-key", base_url=sim.openrouter_url) as client,
    ):
        circuit = again.circuits.known(("openrouter", CHAT), clock())
        assert circuit is not None
        assert circuit.is_open
        router = LLMRouter(openrouter_client=client, cost_tracker=CostTracker(again), circuit=SETTING)
        answer = router.route_with_fallback("analyze_page", ASK)
        assert answer["model_tier"] == ("REASONING" if lost else "FAST")
    assert_sound(ledger)


def test_verify_names_a_circuit_that_the_events_do_not_tell_of(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    fail(router, sim)
    assert_sound(ledger)
    with ledger._projection.state() as state:
        state.db.execute("update circuits set closed = 1")

    (finding,) = verify(ledger.path).findings
    assert finding.kind == "state-differs"
    assert f"the circuit of {CHAT}" in finding.what


def test_nothing_wrong_with_state_db_fails_a_request(
    sim: Simulator, router: LLMRouter, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    with ledger._projection.state() as state:
        state.db.execute("drop table circuit_watch")
    fail(router, sim, times=4)
    assert router.route("analyze_page", ASK)["model"] == CHAT
    assert "cannot be kept" in caplog.text


# many at once


def test_one_of_eight_threads_probes(sim: Simulator, router: LLMRouter, clock: Clock) -> None:
    fail(router, sim)
    sim.script(CHAT, silent())
    clock.move(30)
    tiers: list[str] = []
    together = threading.Barrier(8)

    def ask() -> None:
        together.wait()
        answer = router.route_with_fallback("analyze_page", ASK, timeout_s=0.5)
        tiers.append(answer["model_tier"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert tiers == ["FAST"] * 8
    assert asked(sim, CHAT) == 3 + 1


def test_eight_threads_that_fail_together_open_it_once(
    sim: Simulator, router: LLMRouter, ledger: Ledger
) -> None:
    sim.script(CHAT, *[server_error()] * 8)
    together = threading.Barrier(8)

    def ask() -> None:
        together.wait()
        with suppress(RouteExhausted):
            router.route("analyze_page", ASK)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert turns(ledger) == ["circuit_opened"]
    assert_sound(ledger)


# processes

ANOTHER = """
import sys
from datetime import datetime, timedelta
from tenacity.wait import wait_none
from ledger import CostTracker, Ledger
from router import CircuitSetting, LLMRouter, OpenRouterClient, RouteExhausted

path, url, now, times, timeout_s = sys.argv[1:]
now = datetime.fromisoformat(now)

def clock():
    global now
    now += timedelta(microseconds=1)
    return now

ledger = Ledger.open(path, "process-crash", clock=clock, auto_seal=False)
router = LLMRouter(
    openrouter_client=OpenRouterClient("sk-or-test-key", base_url=url),
    cost_tracker=CostTracker(ledger),
    max_retries=0,
    circuit=CircuitSetting(failures=3, probe_after_s=30),
)
for _ in range(int(times)):
    try:
        asked = {"messages": [{"role": "user", "content": "Go."}], "timeout_s": float(timeout_s)}
        print(router.route_with_fallback("analyze_page", **asked)["model_tier"], flush=True)
    except RouteExhausted as exhausted:
        print(exhausted, flush=True)
ledger.close()
"""


@pytest.fixture
def another(
    sim: Simulator, ledger: Ledger, clock: Clock, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Another process of this host, with its clock as ours is now."""
    program = tmp_path / "another.py"
    program.write_text(ANOTHER)
    started: list[subprocess.Popen[str]] = []

    def start(times: int, timeout_s: float = 20) -> subprocess.Popen[str]:
        given = [str(ledger.path), sim.openrouter_url, clock().isoformat(), str(times), str(timeout_s)]
        process = subprocess.Popen(
            [sys.executable, str(program), *given],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=HUNG_S)


def test_what_one_process_finds_another_heeds(
    sim: Simulator,
    router: LLMRouter,
    ledger: Ledger,
    clock: Clock,
    another: Callable[..., subprocess.Popen[str]],
) -> None:
    sim.script(CHAT, *[server_error()] * 3)
    router.route_with_fallback("analyze_page", ASK)  # one failure here
    assert another(times=4).communicate(timeout=HUNG_S)[0].split() == ["FAST"] * 4  # two there
    assert asked(sim, CHAT) == 3

    clock.move(1)  # half a second is how late it may be noticed
    assert router.route_with_fallback("analyze_page", ASK)["model_tier"] == "FAST"
    assert asked(sim, CHAT) == 3
    clock.move(30)
    assert another(times=1).communicate(timeout=HUNG_S)[0].split() == ["REASONING"]
    clock.move(1)
    assert router.route_with_fallback("analyze_page", ASK)["model_tier"] == "REASONING"
    assert turns(ledger) == ["circuit_opened", "circuit_closed"]
    assert_sound(ledger)


def test_a_killed_prober_does_not_keep_the_place(
    sim: Simulator,
    router: LLMRouter,
    ledger: Ledger,
    clock: Clock,
    another: Callable[..., subprocess.Popen[str]],
) -> None:
    fail(router, sim)
    clock.move(30)
    sim.script(CHAT, silent())
    prober = another(times=1, timeout_s=HUNG_S)
    sim.wait_served(4, HUNG_S)
    clock.move(31)  # the next probe would be due, but one is under way
    assert router.route_with_fallback("analyze_page", ASK)["model_tier"] == "FAST"
    with pytest.raises(RouteExhausted, match="one request is trying it just now"):
        router.route("analyze_page", ASK)

    prober.send_signal(signal.SIGKILL)
    prober.wait(HUNG_S)
    assert router.route_with_fallback("analyze_page", ASK)["model_tier"] == "REASONING"
    assert turns(ledger) == ["circuit_opened", "circuit_closed"]
    ledger.end_dead_journals()
    assert_sound(ledger)
