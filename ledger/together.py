"""One of the waiting threads does the work for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Together:
    """Threads that each need a common count to reach a mark; whoever leads moves it on for all.

    Each waits on a lock of its own, so that a thread is woken once, when its mark is reached or when it is
    its turn to lead.
    """

    def __init__(self, lead: Callable[[int], int], reached: int) -> None:
        """`lead` is given a mark, and gives the mark that is reached then; only one runs at a time."""
        self._lead = lead
        self._reached = reached
        self._leader: int | None = None
        self._waiting: dict[threading.Lock, int] = {}  # and the mark each waits for, in the order they came
        self._lock = threading.Lock()

    @property
    def reached(self) -> int:
        """The mark that is reached."""
        return self._reached

    def reach(self, mark: int) -> None:
        """Return when the mark is reached. Raises what leading raised; who waits then leads in turn."""
        if self._reached >= mark:
            return
        turn: threading.Lock | None = None
        try:
            while not self._may_go(mark, turn := threading.Lock()):
                turn.acquire()
            if self._reached < mark:
                self._reached = self._lead(mark)
        finally:  # an interrupt too must not leave the others waiting
            self._pass_on(turn)

    def _may_go(self, mark: int, turn: threading.Lock) -> bool:
        """Whether there is no need to wait: the mark is reached, or this thread leads from here on."""
        with self._lock:
            if self._reached >= mark:
                return True
            if self._leader is None:
                self._leader = threading.get_ident()
                return True
            turn.acquire()
            self._waiting[turn] = mark
            return False

    def _pass_on(self, turn: threading.Lock | None) -> None:
        """Wake one whose mark is reached, and one to lead where nobody does.

        Each that is woken wakes the next: a crowd would only run for the interpreter.
        """
        with self._lock:
            if turn is not None:
                self._waiting.pop(turn, None)
            if self._leader == threading.get_ident():
                self._leader = None
            if self._waiting:
                self._wake(lambda mark: mark <= self._reached)
                if self._leader is None:
                    self._wake(lambda mark: mark > self._reached)

    def _wake(self, who: Callable[[int], bool]) -> None:
        """Wake the first in line with such a mark. Under the lock."""
        waiting = next((waiting for waiting, mark in self._waiting.items() if who(mark)), None)
        if waiting is not None:
            del self._waiting[waiting]
            waiting.release()
