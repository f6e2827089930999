"""Intervals of differences by the bootstrap, without any data but sums and quantiles. Pure, and seeded.

A ratio is resampled over blocks of requests: retries of one request stay together. A quantile of n drawn
values lies where an order statistic of n uniform draws does, which is a draw from a beta distribution
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, has both): so no value is looked at twice,
however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import mul
from random import Random
from typing import NamedTuple

RESAMPLES = 1_000
CONFIDENCE = 0.95
AT_LEAST = 10  # observations on either side: fewer tell nothing of a difference
POINTS = tuple(point / 1_000 for point in range(1_001))  # where quantiles are known

Values = list["float | int | None"]


class Interval(NamedTuple):
    """From low to high, in the figure's own unit."""

    low: float | int
    high: float | int

    @property
    def excludes_zero(self) -> bool:
        """Whether both ends lie on one side of zero."""
        return self.low > 0 or self.high < 0


class Ratio(NamedTuple):
    """A ratio as its parts per block; without `wholes` the sum of `parts`. Whole numbers stay whole."""

    parts: Sequence[int] | Sequence[float]
    wholes: Sequence[int] | Sequence[float] | None
    observations: int
    is_whole: bool = False

    def resampled(self, seed: str) -> Values:
        """Its value in each resample of the blocks; None where nothing is left to divide by."""
        return [self._of(weights) for weights in _weights(len(self.parts), seed)]

    def _of(self, weights: Sequence[int]) -> float | int | None:
        part: float | int = sum(map(mul, weights, self.parts))
        if self.wholes is None:
            return part
        whole: float | int = sum(map(mul, weights, self.wholes))
        if not whole:
            return None
        return part // whole if self.is_whole else part / whole


class Quantile(NamedTuple):
    """The quantile at `share` of values, which are known by their quantiles at `POINTS`."""

    share: float
    points: Sequence[float]
    observations: int

    def resampled(self, seed: str) -> Values:
        """Its value in each resample of the values."""
        random = Random(seed)
        return [self._drawn(random) for _ in range(RESAMPLES)]

    def _drawn(self, random: Random) -> float:
        count = self.observations
        rank, fraction = divmod((count - 1) * self.share, 1)
        before = int(rank) + 1
        lower = random.betavariate(before, count - before + 1)
        if not fraction:
            return self._at(lower)
        upper = lower + (1 - lower) * random.betavariate(1, count - before)
        return self._at(lower) * (1 - fraction) + self._at(upper) * fraction

    def _at(self, share: float) -> float:
        at, fraction = divmod(share * (len(self.points) - 1), 1)
        lower = self.points[int(at)]
        return lower + fraction * (self.points[min(int(at) + 1, len(self.points) - 1)] - lower)


def interval(now: Ratio | Quantile, before: Ratio | Quantile) -> Interval | None:
    """Where `now` less `before` lies, at `CONFIDENCE`; None where too little is known to say."""
    if min(now.observations, before.observations) < AT_LEAST:
        return None
    pairs = zip(now.resampled("now"), before.resampled("before"), strict=True)
    differences = sorted(a - b for a, b in pairs if a is not None and b is not None)
    if len(differences) < RESAMPLES * CONFIDENCE:
        return None
    tail = round(len(differences) * (1 - CONFIDENCE) / 2)
    return Interval(differences[tail], differences[-1 - tail])


@lru_cache(maxsize=4)
def _weights(blocks: int, seed: str) -> list[list[int]]:
    """How often each block is drawn, in each resample."""
    random = Random(seed)
    resamples = []
    for _ in range(RESAMPLES):
        weights = [0] * blocks
        for block in random.choices(range(blocks), k=blocks):
            weights[block] += 1
        resamples.append(weights)
    return resamples
