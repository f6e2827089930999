"""Threads that wait for one another's work: each is served once, and none is forgotten."""

from __future__ import annotations

import threading

import pytest

from ledger.together import Together


def in_threads(count: int, work: object) -> list[BaseException]:
    """Run `work(number)` in that many threads at once; gives what they raised."""
    raised: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)  # type: ignore[operator]
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads), "a thread was forgotten"
    return raised


def test_one_leads_for_all_that_wait_with_it() -> None:
    leading = threading.Event()
    all_wait = threading.Event()
    led: list[int] = []

    def lead(mark: int) -> int:
        led.append(mark)
        if len(led) == 1:
            leading.set()
            all_wait.wait(30)
            return mark
        return 100

    together = Together(lead, reached=0)
    first = threading.Thread(target=together.reach, args=(1,))
    first.start()
    leading.wait(30)
    waiting = [threading.Thread(target=together.reach, args=(mark,)) for mark in range(2, 32)]
    for thread in waiting:
        thread.start()
    while len(together._waiting) < 30:
        pass
    all_wait.set()
    for thread in [first, *waiting]:
        thread.join(30)
        assert not thread.is_alive()
    assert len(led) == 2, "the second led for the other twenty-nine"
    assert together.reached == 100


def test_no_two_lead_at_once_and_every_mark_is_reached() -> None:
    busy = threading.Lock()

    def lead(mark: int) -> int:
        assert busy.acquire(blocking=False)
        busy.release()
        return mark

    together = Together(lead, reached=0)

    def work(number: int) -> None:
        for step in range(200):
            together.reach(step * 16 + number)
            assert together.reached >= step * 16 + number

    assert in_threads(16, work) == []


def test_an_error_reaches_every_thread_that_waits() -> None:
    everybody = threading.Barrier(8)

    def lead(mark: int) -> int:
        raise OSError("the disk is gone")

    together = Together(lead, reached=0)

    def work(number: int) -> None:
        everybody.wait(30)
        together.reach(number + 1)

    assert [str(error) for error in in_threads(8, work)] == ["the disk is gone"] * 8


@pytest.mark.parametrize("when", ["while it waits", "while it leads"])
def test_a_thread_that_is_interrupted_leaves_nobody_waiting(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leading, go_on = threading.Event(), threading.Event()

    def lead(mark: int) -> int:
        if mark == 1:
            leading.set()
            go_on.wait(30)
            if when == "while it leads":
                raise KeyboardInterrupt
        return mark

    together = Together(lead, reached=0)
    stopped: list[BaseException] = []

    def interrupted() -> None:
        try:
            together.reach(1)
        except KeyboardInterrupt as error:
            stopped.append(error)

    first = threading.Thread(target=interrupted)
    first.start()
    leading.wait(30)
    others = [threading.Thread(target=together.reach, args=(mark,)) for mark in (2, 3, 4)]
    for thread in others:
        thread.start()
    while len(together._waiting) < 3:
        pass
    if when == "while it waits":  # a Ctrl-C comes right before the one whose turn it is would be woken
        del together._waiting[next(iter(together._waiting))]
    go_on.set()
    for thread in [first, *others]:
        thread.join(30)
        assert not thread.is_alive()
    assert together.reached == 4


def test_nobody_leads_while_some_whose_mark_is_reached_still_sleep() -> None:
    led: list[int] = []

    def lead(mark: int) -> int:
        led.append(mark)
        return mark

    together = Together(lead, reached=1)
    sleeper = threading.Lock()
    sleeper.acquire()
    together._served[sleeper] = None
    coming_back = threading.Thread(target=together.reach, args=(2,))
    coming_back.start()
    while not together._waiting and coming_back.is_alive():
        pass
    assert not led, "the one that still sleeps may come back, and go with it"
    together.reach(1)  # whoever passes by wakes the next in line
    assert sleeper.acquire(blocking=False)
    assert not led
    together.reach(1)  # as the sleeper does, woken last
    coming_back.join(30)
    assert led == [2]


def test_those_that_are_gone_from_the_line_keep_nobody_from_going_on() -> None:
    together = Together(lambda mark: mark, reached=1)
    for _ in range(2):  # each left behind by a thread that two Ctrl-Cs have stopped
        gone = threading.Lock()
        gone.acquire()
        together._served[gone] = None

    assert in_threads(4, lambda number: together.reach(number + 2)) == []
    assert together.reached == 5
