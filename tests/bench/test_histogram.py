"""Percentiles out of buckets."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.histogram import CURVE, FINE, Histogram

SHARES = st.sampled_from((0.5, 0.9, 0.99, 0.999))


@settings(deadline=None)
@given(st.lists(st.integers(0, 3_000_000), min_size=1), SHARES)
def test_a_percentile_is_what_sorting_gives_to_a_bucket(times: list[int], share: float) -> None:
    """At most FINE too high, never too low; what takes longer than a second is exact."""
    histogram = Histogram()
    for time in times:
        histogram.add(time)
    exact = sorted(times)[max(0, math.ceil(share * len(times)) - 1)]
    assert 0 <= round(histogram.percentile(share) * 1000) - exact <= FINE  # whole microseconds


def test_nothing_measured_is_nothing() -> None:
    told = Histogram().told()
    assert (told.count, told.p50, told.p999) == (0, 0.0, 0.0)
    assert len(told.curve) == len(CURVE)
