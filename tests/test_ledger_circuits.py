"""The state machine of a circuit, alone: random histories against rules told in a few lines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ledger import circuits
from ledger.circuits import Circuit, Failure, Try, is_due, is_probed, microseconds, moment
from ledger.settings import CircuitSetting

SECOND = 1_000_000
SETTING = CircuitSetting(failures=3, probe_after_s=30)
DOWN = Failure("server_error", "HTTP 500")
TIMEOUT_S = 10.0


def opened_at(now_us: int) -> Circuit:
    """A circuit that three failures in a row have opened at that moment."""
    circuit = Circuit()
    for _ in range(3):
        circuit = circuits.failed(circuit, Try("r-0"), now_us, now_us, DOWN, SETTING)
    assert circuit.opened_us == now_us
    return circuit


def probed(circuit: Circuit, now_us: int, request_id: str = "prober") -> tuple[Circuit, Try]:
    tried = Try(request_id, circuit.opened_us)
    return circuits.probing(circuit, now_us, SETTING, request_id, "journal", TIMEOUT_S), tried


def test_a_success_in_between_begins_the_row_anew() -> None:
    circuit = Circuit()
    for _ in range(10):
        for _ in range(2):
            circuit = circuits.failed(circuit, Try("r"), 1, 1, DOWN, SETTING)
        circuit = circuits.answered(circuit, Try("r"), 1)
    assert not circuit.is_open


def test_failures_that_lie_far_apart_are_not_in_a_row() -> None:
    circuit = Circuit()
    for number in range(10):
        now_us = number * (circuits.COUNTED_FOR_US + 1)
        circuit = circuits.failed(circuit, Try("r"), now_us, now_us, DOWN, SETTING)
    assert not circuit.is_open


def test_what_began_before_the_opening_neither_closes_it_nor_puts_off_the_probe() -> None:
    circuit = opened_at(100 * SECOND)
    assert circuits.answered(circuit, Try("early"), 110 * SECOND) == circuit
    assert circuits.failed(circuit, Try("early"), 90 * SECOND, 110 * SECOND, DOWN, SETTING) == circuit


def test_what_began_before_the_closing_does_not_open_it_again() -> None:
    """A hundred requests wait in vain when the outage begins; their timeouts come in when it is over."""
    circuit, tried = probed(opened_at(100 * SECOND), 130 * SECOND)
    circuit = circuits.answered(circuit, tried, 131 * SECOND)
    for number in range(100):
        late = Try(f"late-{number}")
        circuit = circuits.failed(circuit, late, 99 * SECOND, 150 * SECOND, DOWN, SETTING)
    assert not circuit.is_open


def test_a_probe_that_outlives_its_opening_says_nothing_of_the_next() -> None:
    circuit, first = probed(opened_at(100 * SECOND), 130 * SECOND, "first")
    circuit, second = probed(circuit, 170 * SECOND, "second")  # the first was given up
    circuit = circuits.answered(circuit, second, 171 * SECOND)
    for _ in range(3):
        circuit = circuits.failed(circuit, Try("r"), 172 * SECOND, 172 * SECOND, DOWN, SETTING)
    assert circuit.opened_us == 172 * SECOND
    assert circuits.answered(circuit, first, 173 * SECOND) == circuit


def test_a_clock_that_is_set_back_puts_no_probe_off() -> None:
    circuit = opened_at(10_000 * SECOND)
    assert not is_due(circuit, 10_001 * SECOND, SETTING)
    assert is_due(circuit, 6_400 * SECOND, SETTING)


def test_a_caller_who_leaves_gives_the_probe_to_the_next_at_once() -> None:
    circuit, tried = probed(opened_at(0), 30 * SECOND)
    assert is_probed(circuit, 31 * SECOND)
    circuit = circuits.left(circuit, tried, 31 * SECOND)
    assert not is_probed(circuit, 31 * SECOND)
    assert is_due(circuit, 31 * SECOND, SETTING)


@given(st.timedeltas(timedelta(0), timedelta(days=80_000)))
def test_a_moment_survives_being_microseconds(since_1970: timedelta) -> None:
    at = datetime(1970, 1, 1, tzinfo=UTC) + since_1970
    assert moment(microseconds(at)) == at
    assert microseconds(at + timedelta(microseconds=1)) == microseconds(at) + 1


class CircuitOfManyRequests(RuleBasedStateMachine):
    """Requests that begin and end in any order; a list of them says what the circuit must be."""

    def __init__(self) -> None:
        super().__init__()
        self.circuit = Circuit()
        self.now_us = SECOND
        self.under_way: dict[str, tuple[Try, int]] = {}
        self.count = 0
        self.in_a_row = 0
        self.is_open = False
        self.turned_us = 0  # the last opening or closing
        self.opened_us = 0
        self.probe: str | None = None
        self.probe_until_us = 0
        self.next_probe_us = 0
        self.failed_us = 0

    @rule(seconds=st.integers(1, 20))
    def time_passes(self, seconds: int) -> None:
        self.now_us += seconds * SECOND

    @rule()
    def a_request_comes(self) -> None:
        self.count += 1
        name = f"r-{self.count}"
        self.now_us += 1
        if not self.circuit.is_open:
            assert not self.is_open
            self.under_way[name] = (Try(name), self.now_us)
            return
        may = is_due(self.circuit, self.now_us, SETTING) and not is_probed(self.circuit, self.now_us)
        given_up = self.probe is None or self.now_us >= self.probe_until_us
        assert may == (given_up and self.now_us >= self.next_probe_us)
        if may:
            self.circuit, tried = probed(self.circuit, self.now_us, name)
            self.under_way[name] = (tried, self.now_us)
            self.probe, self.next_probe_us = name, self.now_us + 30 * SECOND
            self.probe_until_us = self.now_us + int(TIMEOUT_S) * SECOND + circuits.PROBE_GRACE_US

    @rule(data=st.data(), how=st.sampled_from(["down", "down", "down", "up", "unclear", "left"]))
    def a_request_ends(self, data: st.DataObject, how: str) -> None:
        if not self.under_way:
            return
        name = data.draw(st.sampled_from(sorted(self.under_way)))
        tried, began_us = self.under_way.pop(name)
        self.now_us += 1
        match how:
            case "down":
                self.circuit = circuits.failed(self.circuit, tried, began_us, self.now_us, DOWN, SETTING)
            case "up":
                self.circuit = circuits.answered(self.circuit, tried, self.now_us)
            case "unclear":
                self.circuit = circuits.unclear(self.circuit, tried)
            case "left":
                self.circuit = circuits.left(self.circuit, tried, self.now_us)
        self._expect(name, tried, began_us, how)

    def _expect(self, name: str, tried: Try, began_us: int, how: str) -> None:
        if self.is_open:
            if how == "up" and tried.probes_us == self.opened_us:
                self.is_open, self.in_a_row, self.turned_us, self.probe = False, 0, self.now_us, None
            elif name == self.probe:
                self.probe = None
                if how == "left":
                    self.next_probe_us = self.now_us
        elif how == "up":
            self.in_a_row = 0
        elif how == "down" and began_us > self.turned_us:
            in_time = self.now_us - self.failed_us <= circuits.COUNTED_FOR_US
            self.in_a_row, self.failed_us = self.in_a_row * in_time + 1, self.now_us
            if self.in_a_row == 3:
                self.is_open, self.turned_us, self.opened_us = True, self.now_us, self.now_us
                self.next_probe_us, self.probe = self.now_us + 30 * SECOND, None

    @invariant()
    def it_is_open_as_the_rules_have_it(self) -> None:
        assert self.circuit.is_open == self.is_open
        if not self.is_open:
            assert self.circuit.failures == self.in_a_row
            assert self.circuit.prober is None


TestCircuitOfManyRequests = CircuitOfManyRequests.TestCase
