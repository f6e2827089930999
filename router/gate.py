"""One request's way past the circuits of the models it may ask.

gate.shut(target)      before an attempt: why it is not made, where its model is left alone
gate.failed(failure)   after it: whether that model is left alone from now on
gate.answered()        after it
gate.leave()           the request ends in any other way: whoever probed, probes no longer

What a failure says of a model is policy.FAILURES' word; when a circuit opens and closes, ledger.circuits'.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from ledger.circuit_board import CircuitBoard, Place
from ledger.circuits import Circuit, Failure, Try, is_probed, microseconds, moment
from ledger.events import plain_text
from router.policy import FAILURES

if TYPE_CHECKING:
    from ledger.ledger import Ledger
    from ledger.request_log import RequestLog
    from ledger.settings import CircuitSetting
    from router.errors import ProviderError
    from router.prepare import Target

_SHOWN = 200  # characters of the last failure


class Gate:
    """Used by one request, in one thread. Without a setting, or with one that is off, always open."""

    def __init__(self, ledger: Ledger, request_id: str, setting: CircuitSetting | None) -> None:
        self._ledger = ledger
        self._board: CircuitBoard | None = ledger.circuits if setting and setting.enabled else None
        self._setting = setting
        self._request_id = request_id
        self._place: Place | None = None  # of the attempt in hand
        self._try: Try | None = None

    def shut(self, target: Target, log: RequestLog) -> Circuit | None:
        """The open circuit that keeps this target from being asked; None: ask it, as the probe perhaps."""
        if self._board is None or self._setting is None:
            return None
        route = target.route
        place = Place(route.tier, route.provider, route.model)
        admitted = self._board.admit(place, self._setting, self._request_id, log.journal_id, target.timeout_s)
        if isinstance(admitted, Circuit):
            return admitted
        self._place, self._try = place, admitted
        return None

    def failed(self, failure: ProviderError, began_at: datetime) -> bool:
        """Take note of a failure; whether the model is left alone now, so that it is not asked again."""
        if self._board is None or self._setting is None or self._place is None or self._try is None:
            return False
        place, tried, self._try = self._place, self._try, None
        match FAILURES[failure.error_type].route:
            case "down":
                words = plain_text(str(failure), _SHOWN)
                self._board.failed(place, self._setting, tried, began_at, Failure(failure.error_type, words))
            case "up":
                self._board.answered(place, self._setting, tried, self._ledger.now())
            case "unclear":
                self._board.unclear(place, self._setting, tried)
        circuit = self._board.known(place.key, self._ledger.now())
        return circuit is not None and circuit.is_open

    def answered(self, began_at: datetime) -> None:
        """Take note of an answer."""
        if self._board is None or self._setting is None or self._place is None or self._try is None:
            return
        tried, self._try = self._try, None
        self._board.answered(self._place, self._setting, tried, began_at)

    def leave(self) -> None:
        """The attempt in hand has no outcome: another request may probe in its stead."""
        if self._board is None or self._setting is None or self._place is None or self._try is None:
            return
        tried, self._try = self._try, None
        self._board.left(self._place, self._setting, tried)

    def why_shut(self, circuit: Circuit) -> str:
        """An open circuit in words: since when, why, and when it is tried again."""
        since = moment(circuit.opened_us or 0).strftime("%Y-%m-%d %H:%M:%S UTC")
        now_us = microseconds(self._ledger.now())
        last = (
            f" (the last failure: {circuit.error_type}, {circuit.last_error})" if circuit.error_type else ""
        )
        wait_s = max((circuit.due_us or now_us) - now_us, 0) / 1_000_000
        if is_probed(circuit, now_us):
            again = "one request is trying it just now"
        else:
            again = f"the next request to try it may do so in {wait_s:.0f} s"
        return f"left alone since {since}{last}; {again}"
