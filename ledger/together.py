"""One of the waiting threads does the work for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

_LOST_S = 0.5  # after which one that waits looks by itself: a Ctrl-C may have come where it was to be woken


class Together:
    """Threads that each need a common count to reach a mark; whoever leads moves it on for all.

    Each waits on a lock of its own, to be woken when its mark is reached or when it is its turn to lead.
    That is for speed: what is right hangs on one lock, which is let go of whatever happens.
    """

    def __init__(self, lead: Callable[[int], int], reached: int) -> None:
        """`lead` is given a mark, and gives the mark that is reached then; only one runs at a time."""
        self._lead = lead
        self._reached = reached
        self._leading = threading.Lock()
        self._waiting: dict[threading.Lock, int] = {}  # and the mark each waits for, in the order they came
        self._lock = threading.Lock()  # who waits

    @property
    def reached(self) -> int:
        """The mark that is reached."""
        return self._reached

    def reach(self, mark: int) -> None:
        """Return when the mark is reached. Raises what leading raised; who waits then leads in turn."""
        try:
            while self._reached < mark:
                if self._leading.locked():
                    self._wait(mark)
                else:
                    with self._leading:
                        if self._reached < mark:
                            self._reached = self._lead(mark)
        finally:
            if self._waiting:
                self._pass_on()

    def _wait(self, mark: int) -> None:
        """Wait to be woken, unless there is no need to any more."""
        turn = threading.Lock()
        turn.acquire()
        with self._lock:
            self._waiting[turn] = mark
        try:
            if self._reached < mark and self._leading.locked():
                turn.acquire(timeout=_LOST_S)
        finally:
            with self._lock:
                self._waiting.pop(turn, None)

    def _pass_on(self) -> None:
        """Wake one whose mark is reached, and one to lead where nobody does.

        Each that is woken wakes the next: a crowd would only run for the interpreter.
        """
        with self._lock:
            self._wake(lambda mark: mark <= self._reached)
            if not self._leading.locked():
                self._wake(lambda mark: mark > self._reached)

    def _wake(self, who: Callable[[int], bool]) -> None:
        """Wake the first in line with such a mark. Under the lock."""
        waiting = next((waiting for waiting, mark in self._waiting.items() if who(mark)), None)
        if waiting is not None:
            del self._waiting[waiting]
            waiting.release()
