"""Times in buckets, so that millions of them cost no memory and their percentiles no sorting. Pure."""

from __future__ import annotations

import math

import msgspec

FINE = 20
"""Microseconds a bucket, up to a second: what is told is at most this much too high."""
MOST = 1_000_000 // FINE


class Histogram:
    """Counts of times in microseconds. What takes longer than a second is kept as it is."""

    def __init__(self) -> None:
        self.count = 0
        self._buckets = [0] * MOST
        self._longer: list[int] = []

    def add(self, microseconds: int) -> None:
        self.count += 1
        bucket = microseconds // FINE
        if bucket < MOST:
            self._buckets[max(0, bucket)] += 1
        else:
            self._longer.append(microseconds)

    def told(self) -> Times:
        """Percentiles in milliseconds, and the curve to draw."""
        p50, p90, p95, p99, p999 = (self.percentile(share) for share in (0.5, 0.9, 0.95, 0.99, 0.999))
        return Times(self.count, p50, p90, p95, p99, p999, [self.percentile(share) for share in CURVE])

    def percentile(self, share: float) -> float:
        """Milliseconds within which that share of the times lies; 0 where there are none."""
        rank, seen = max(1, math.ceil(share * self.count)), 0
        if not self.count:
            return 0.0
        for bucket, count in enumerate(self._buckets):
            seen += count
            if seen >= rank:
                return (bucket + 1) * FINE / 1000
        return sorted(self._longer)[rank - seen - 1] / 1000


CURVE = (0.01, 0.05, *(n / 10 for n in range(1, 10)), 0.95, 0.99, 0.995, 0.999, 0.9999)
"""The shares at which a curve is told."""


class Times(msgspec.Struct, frozen=True):
    """Milliseconds. `curve`: at the shares of CURVE."""

    count: int
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    curve: list[float]
