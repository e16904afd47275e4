"""Whether something grows: a line through readings over time, how sure it is, and a verdict. Pure.

The line is Theil and Sen's: the median of the slopes between all pairs of readings; its interval is Sen's, from
Kendall's tau. No reading is trusted alone, nothing is assumed of the noise but that it has no trend of its own, and a
gauge that is a whole number and mostly stands still gets a slope of exactly 0.

A leak is steady. So what grows has to do three things at once; each of them alone is what noise does too:

- its slope is above 0 with `CONFIDENCE`,
- it rises by at least `resolution` from the first reading to the last,
- it does not level off: in the later half of the readings it rises at least half as fast as over all of them.

What fails only the last one `settles`: it filled something that is bounded.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from statistics import NormalDist, median
from typing import NamedTuple

CONFIDENCE = 0.99
FEWEST = 6
"""Readings below which nothing is said: five in a row rise by chance once in 120 times."""
ENDS = 3
"""Readings whose median is the start or the end."""

Point = tuple[float, float]
"""When, in seconds, and how much."""


class Verdict(StrEnum):
    STEADY = "no growth beyond noise"
    SETTLES = "settles"
    GROWS = "grows"
    UNKNOWN = "too few readings"


class Trend(NamedTuple):
    """A line through readings. `slope`, and the interval from `low` to `high` that holds it with CONFIDENCE, are per
    second; `noise` is the median distance of a reading from the line."""

    readings: int
    start: float
    end: float
    slope: float
    low: float
    high: float
    noise: float
    verdict: Verdict

    @property
    def error(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2


def trend(points: Sequence[Point], resolution: float) -> Trend:
    """`points` in order of time, at least one; `resolution`: the smallest rise that is worth a word."""
    values = [value for _, value in points]
    start, end = median(values[:ENDS]), median(values[-ENDS:])
    if len(points) < FEWEST:
        return Trend(len(points), start, end, 0.0, -math.inf, math.inf, 0.0, Verdict.UNKNOWN)
    slopes = _slopes(points)
    slope = median(slopes)
    low, high = _interval(slopes, values)
    offset = median(value - slope * at for at, value in points)
    noise = median(abs(value - slope * at - offset) for at, value in points)
    rise = slope * (points[-1][0] - points[0][0])
    if low <= 0 or rise < resolution:
        verdict = Verdict.STEADY
    elif _later(points) < slope / 2:
        verdict = Verdict.SETTLES
    else:
        verdict = Verdict.GROWS
    return Trend(len(points), start, end, slope, low, high, noise, verdict)


def _slopes(points: Sequence[Point]) -> list[float]:
    """Between every two readings, sorted."""
    return sorted((v - u) / (t - s) for (s, u), (t, v) in itertools.combinations(points, 2))


def _interval(slopes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Sen's: as many slopes are left out at both ends as Kendall's statistic leaves to chance (ties are counted)."""
    n = len(values)
    ties = sum(k * (k - 1) * (2 * k + 5) for k in Counter(values).values())
    deviation = math.sqrt((n * (n - 1) * (2 * n + 5) - ties) / 18)
    spread = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * deviation
    left_out = (len(slopes) - spread) / 2
    first, last = math.floor(left_out), math.ceil(len(slopes) - left_out) - 1
    return slopes[max(first, 0)], slopes[min(last, len(slopes) - 1)]


def _later(points: Sequence[Point]) -> float:
    """The slope in the later half."""
    return median(_slopes(points[len(points) // 2 :]))
