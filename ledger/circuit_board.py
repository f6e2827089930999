"""The circuits of a ledger as one process sees them: shared with others through state.db.

A copy of all circuits is kept and read anew every half second, so that a request on a route without trouble
costs no more than a look at it. What changes a circuit is decided in one transaction over all processes, and
an opening or closing is journaled within it. A circuit is a help and no more: nothing that goes wrong here
may fail a request, or its books.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel

from ledger import circuits
from ledger.circuit_table import read_circuits, write_watch
from ledger.circuits import Circuit, Failure, RouteKey, Try, microseconds, moment
from ledger.errors import LedgerBusy
from ledger.events import CircuitClosed, CircuitOpened
from ledger.files import locked
from ledger.lines import part_path
from ledger.settings import CircuitSetting

if TYPE_CHECKING:
    from ledger.ledger import Ledger
    from ledger.state import State

_log = logging.getLogger("ledger")

READ_EVERY = timedelta(seconds=0.5)  # how late another process's opening may be noticed
_NEVER = timedelta(0)


class Place(NamedTuple):
    """A tier's route, as an event of its circuit names it."""

    tier: str
    provider: str
    model: str

    @property
    def key(self) -> RouteKey:
        return self.provider, self.model


class CircuitBoard:
    """All circuits of a ledger. Thread-safe: what is known is replaced as a whole."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger: Ledger = weakref.proxy(ledger)
        self._known: Mapping[RouteKey, Circuit] = {}
        self._read_at: datetime | None = None

    def known(self, key: RouteKey, now: datetime) -> Circuit | None:
        """A route's circuit as of half a second ago at most; None: nothing is known against it."""
        if self._read_at is None or not _NEVER <= now - self._read_at < READ_EVERY:
            self._read(now)
        return self._known.get(key)

    def admit(
        self, place: Place, setting: CircuitSetting, request_id: str, journal_id: str, timeout_s: float
    ) -> Try | Circuit:
        """An attempt that may be made now, perhaps as the probe; or the open circuit that it may not pass."""
        now = self._ledger.now()
        circuit = self.known(place.key, now)
        if circuit is None or not circuit.is_open:
            return Try(request_id)
        if not self._may_probe(circuit, microseconds(now), setting):
            return circuit
        taken = self._take(place, setting, request_id, journal_id, timeout_s)
        return circuit if taken is None else taken

    def _may_probe(self, circuit: Circuit, now_us: int, setting: CircuitSetting) -> bool:
        if not circuits.is_due(circuit, now_us, setting):
            return False
        return not circuits.is_probed(circuit, now_us) or not self._lives(circuit.prober_journal)

    def _lives(self, journal_id: str | None) -> bool:
        """Whether a process holds that journal: a killed one's probe is over."""
        path = part_path(self._ledger.path / "journals", journal_id or "", 1)
        try:
            with locked(path) as fd:
                return fd is None and path.exists()
        except OSError:
            return False

    def _take(
        self, place: Place, setting: CircuitSetting, request_id: str, journal_id: str, timeout_s: float
    ) -> Try | Circuit | None:
        """The probe's place, or another's claim to it; None where that could not be told at once."""
        found: list[Try | Circuit] = []

        def change(circuit: Circuit, now_us: int) -> Circuit:
            if not circuit.is_open:  # closed meanwhile
                found.append(Try(request_id))
            elif self._may_probe(circuit, now_us, setting):
                found.append(Try(request_id, circuit.opened_us))
                return circuits.probing(circuit, now_us, setting, request_id, journal_id, timeout_s)
            else:
                found.append(circuit)
            return circuit

        self._change(place, setting, change, patient=False)
        return found[0] if found else None

    def failed(
        self, place: Place, setting: CircuitSetting, tried: Try, began_at: datetime, failure: Failure
    ) -> None:
        """An attempt says that the route is down."""
        began_us = microseconds(began_at)
        self._change(
            place,
            setting,
            lambda circuit, now_us: circuits.failed(circuit, tried, began_us, now_us, failure, setting),
        )

    def answered(self, place: Place, setting: CircuitSetting, tried: Try, now: datetime) -> None:
        """An attempt says that the route works. Costs nothing where nobody has said otherwise."""
        circuit = self.known(place.key, now)
        if tried.probes_us is not None or (circuit is not None and circuit.failures and not circuit.is_open):
            self._change(place, setting, lambda circuit, now_us: circuits.answered(circuit, tried, now_us))

    def unclear(self, place: Place, setting: CircuitSetting, tried: Try) -> None:
        """An attempt failed, and says nothing of the route."""
        if tried.probes_us is not None:
            self._change(place, setting, lambda circuit, now_us: circuits.unclear(circuit, tried))

    def left(self, place: Place, setting: CircuitSetting, tried: Try) -> None:
        """An attempt was not made, or its caller left before its end."""
        if tried.probes_us is not None:
            self._change(place, setting, lambda circuit, now_us: circuits.left(circuit, tried, now_us))

    # state.db

    def _read(self, now: datetime) -> None:
        try:
            self._known = self._ledger.look_up(lambda state: read_circuits(state.db))
            self._read_at = now
        except LedgerBusy:  # this process's own doing: a moment later then
            _log.debug("circuits of %s are read later: state.db is in use", self._ledger.path)
        except Exception as error:
            self._read_at = now
            _log.warning("circuits of %s cannot be read: %s", self._ledger.path, error)

    def _change(
        self,
        place: Place,
        setting: CircuitSetting,
        change: Callable[[Circuit, int], Circuit],
        *,
        patient: bool = True,
    ) -> None:
        """Replace a route's circuit in one transaction over all processes, and journal its turn."""

        def decide(state: State) -> BaseModel | None:
            before = read_circuits(state.db).get(place.key, Circuit())
            after = change(before, microseconds(self._ledger.now()))
            if after == before:
                return None
            write_watch(state.db, place.key, after)
            return _turn(place, before, after, setting)

        try:
            self._known = self._ledger.decide(decide, lambda state: read_circuits(state.db), patient=patient)
        except LedgerBusy as error:
            _log.debug("the circuit of %s is left as it is: %s", place.model, error)
        except Exception as error:
            _log.warning("the circuit of %s cannot be kept: %s", place.model, error)


def _turn(place: Place, before: Circuit, after: Circuit, setting: CircuitSetting) -> BaseModel | None:
    """The event that a change is; None where it opens or closes nothing."""
    if after.opened_us is not None and before.opened_us is None:
        return CircuitOpened(
            **place._asdict(),
            started_at=moment(after.opened_us),
            reason=f"{after.failures} failures in a row",
            error_type=after.error_type,  # type: ignore[arg-type]
            wait_s=setting.probe_after_s,
        )
    if before.opened_us is not None and after.opened_us is None:
        return CircuitClosed(
            **place._asdict(), started_at=moment(before.opened_us), reason="a probe was answered"
        )
    return None
