"""When a route is left alone, and who may try it. Pure: a circuit and what happened in, a circuit out.

    closed ── failures in a row ──▶ open ── probe_after_s ──▶ one request probes ── answered ──▶ closed
                                     ▲                              │
                                     └─────────── failed ───────────┘

A route is a (provider, model). Moments are whole microseconds since 1970 by the ledger's clock, which all
processes of a host share. Only attempts that began after the last opening or closing count: what an outage
leaves behind, such as timeouts that come in minutes later, neither closes a circuit nor opens it again.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from ledger.settings import CircuitSetting

COUNTED_FOR_US = 300_000_000  # failures further apart are not in a row
PROBE_GRACE_US = 5_000_000  # beyond its own time limit a probe has ended, whatever became of it

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

RouteKey = tuple[str, str]  # provider, model


class Circuit(NamedTuple):
    """One route's circuit: open where `opened_us` is set. None, and 0 failures: not so far."""

    opened_us: int | None = None
    failures: int = 0  # in a row, while closed; of an open one, those that opened it
    error_type: str | None = None  # of the last failure
    last_error: str | None = None  # its words
    failed_us: int | None = None
    closed_us: int | None = None
    due_us: int | None = None  # when a probe may begin; None: at once
    prober: str | None = None  # the request whose attempt is the probe under way
    prober_journal: str | None = None  # its journal, whose lock says whether it lives
    probe_until_us: int | None = None  # by then it has ended

    @property
    def is_open(self) -> bool:
        return self.opened_us is not None


class Try(NamedTuple):
    """One attempt at a route. `probes_us`: the opening it probes; None: the circuit was closed."""

    request_id: str
    probes_us: int | None = None


class Failure(NamedTuple):
    """What speaks against a route: the kind of failure, and its words."""

    error_type: str
    message: str


def is_probed(circuit: Circuit, now_us: int) -> bool:
    """Whether a probe is under way, if its process lives."""
    return circuit.prober is not None and now_us < (circuit.probe_until_us or 0)


def is_due(circuit: Circuit, now_us: int, setting: CircuitSetting) -> bool:
    """Whether a probe may begin, if none is under way. A clock that was set back delays none for long."""
    return circuit.due_us is None or not 0 < circuit.due_us - now_us <= interval_us(setting)


def probing(
    circuit: Circuit, now_us: int, setting: CircuitSetting, request_id: str, journal_id: str, timeout_s: float
) -> Circuit:
    """A request takes the probe's place; the next is due one interval after this one began."""
    return circuit._replace(
        due_us=now_us + interval_us(setting),
        prober=request_id,
        prober_journal=journal_id,
        probe_until_us=now_us + int(timeout_s * 1_000_000) + PROBE_GRACE_US,
    )


def failed(
    circuit: Circuit, tried: Try, began_us: int, now_us: int, failure: Failure, setting: CircuitSetting
) -> Circuit:
    """An attempt says that the route is down: one more in a row, or the probe's end."""
    told = circuit._replace(error_type=failure.error_type, last_error=failure.message, failed_us=now_us)
    if circuit.is_open:
        return _probe_over(told) if circuit.prober == tried.request_id else circuit
    if circuit.closed_us is not None and began_us <= circuit.closed_us:
        return circuit
    in_a_row = circuit.failed_us is not None and abs(now_us - circuit.failed_us) <= COUNTED_FOR_US
    told = told._replace(failures=circuit.failures + 1 if in_a_row else 1)
    if told.failures < setting.failures:
        return told
    return told._replace(opened_us=now_us, due_us=now_us + interval_us(setting))


def answered(circuit: Circuit, tried: Try, now_us: int) -> Circuit:
    """An attempt says that the route works: no failures in a row, or the end of what it probed."""
    if not circuit.is_open:
        return circuit._replace(failures=0, failed_us=None) if circuit.failures else circuit
    return Circuit(closed_us=now_us) if tried.probes_us == circuit.opened_us else circuit


def left(circuit: Circuit, tried: Try, now_us: int) -> Circuit:
    """An attempt ended, or was never made, and nothing is known: another may probe at once."""
    if circuit.prober != tried.request_id:
        return circuit
    return _probe_over(circuit)._replace(due_us=now_us)


def unclear(circuit: Circuit, tried: Try) -> Circuit:
    """An attempt failed in a way that says nothing of the route: the next probe comes when it is due."""
    return _probe_over(circuit) if circuit.prober == tried.request_id else circuit


def _probe_over(circuit: Circuit) -> Circuit:
    return circuit._replace(prober=None, prober_journal=None, probe_until_us=None)


def interval_us(setting: CircuitSetting) -> int:
    """Between the beginnings of two probes."""
    return int(setting.probe_after_s * 1_000_000)


def microseconds(moment: datetime) -> int:
    """A moment as circuits hold it, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(us: int) -> datetime:
    """And back."""
    return _EPOCH + timedelta(microseconds=us)
