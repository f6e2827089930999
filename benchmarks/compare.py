"""Interleaved runs and their medians: what was measured in one run, on one machine, against what."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant over all rounds."""

    median_s: float
    fastest_s: float
    slowest_s: float

    def __str__(self) -> str:
        return f"{self.median_s * 1e3:8.3f} ms  ({self.fastest_s * 1e3:.3f} to {self.slowest_s * 1e3:.3f})"


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run each contestant once per round, in turn, so that a machine's moods meet all alike.

    clock: `time.process_time` for what waits for nothing, on a machine that others are at.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warm_up + rounds):
        for name, run in contestants.items():
            begin = clock()
            run()
            if number >= warm_up:
                taken[name].append(clock() - begin)
    return {name: Timing(statistics.median(all_s), min(all_s), max(all_s)) for name, all_s in taken.items()}


def verdict(what: str, measured: float, goal: float, unit: str = "×") -> str:
    """A line that says how a figure stands to its goal."""
    return (
        f"{what}: {measured:.2f} {unit} (goal: at most {goal:.2f}) {'ok' if measured <= goal else 'MISSED'}"
    )


def output_of(command: Sequence[str]) -> str:
    """What a process prints, run as users run it: with the byte code of modules kept between runs."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
