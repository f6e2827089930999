"""One of the waiting threads does the work for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_LOST_S = 0.5  # after which one that waits looks by itself: a Ctrl-C may have come where it was to be woken


class Together:
    """Threads that each need a common count to reach a mark; whoever leads moves it on for all.

    Each waits on a lock of its own, to be woken when its mark is reached or when it is its turn to lead.
    Who is woken wakes the next, as a crowd would only run for the interpreter, and who is woken last
    has the next one lead: by then the others may have come back, and go with it.
    That is for speed. What is right hangs on locks that are let go of whatever happens, and a line that a
    Ctrl-C has broken goes on by itself: whoever waits in vain wakes the next.
    """

    def __init__(self, lead: Callable[[int], int], reached: int) -> None:
        """`lead` is given a mark, and gives the mark that is reached then; only one runs at a time."""
        self._lead = lead
        self._reached = reached
        self._leading = threading.Lock()
        self._waiting: dict[threading.Lock, int] = {}  # and the mark each waits for, in the order they came
        self._served: dict[threading.Lock, None] = {}  # whose mark is reached, and who still sleep
        self._lock = threading.Lock()  # who waits, and who is served

    @property
    def reached(self) -> int:
        """The mark that is reached."""
        return self._reached

    def reach(self, mark: int) -> None:
        """Return when the mark is reached. Raises what leading raised; who waits then leads in turn."""
        try:
            while self._reached < mark:
                if self._is_busy():
                    self._wait(mark)
                else:
                    self._lead_to(mark)
        finally:
            if self._served or self._waiting:
                self._pass_on()

    def _is_busy(self) -> bool:
        """Whether one leads, or some whom it led still sleep: whoever comes meanwhile goes with the next."""
        return bool(self._served) or self._leading.locked()

    def _lead_to(self, mark: int) -> None:
        with self._leading:
            if self._reached < mark:
                self._reached = self._lead(mark)
                with self._lock:
                    for turn, waits_for in list(self._waiting.items()):
                        if waits_for <= self._reached:
                            del self._waiting[turn]
                            self._served[turn] = None

    def _wait(self, mark: int) -> None:
        """Wait to be woken, unless there is no need to any more."""
        turn = threading.Lock()
        turn.acquire()
        try:
            with self._lock:
                if self._reached >= mark or not self._is_busy():
                    return
                self._waiting[turn] = mark
            if not turn.acquire(timeout=_LOST_S):
                self._pass_on()
        finally:
            with self._lock:
                self._waiting.pop(turn, None)
                self._served.pop(turn, None)

    def _pass_on(self) -> None:
        """Wake the next whose mark is reached; after the last of them, the next to lead."""
        with self._lock:
            if not self._served and self._leading.locked():
                return  # whoever leads passes on
            line: dict[threading.Lock, Any] = self._served or self._waiting
            turn = next(iter(line), None)
            if turn is not None:
                del line[turn]
                turn.release()
