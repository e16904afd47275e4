"""A leak is found however it grows, and what only is restless, or fills something bounded, is not taken for one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compose.chaos.trend import FEWEST, Point, Verdict, trend

MINUTE = 60.0
READINGS = 20
SEEDS = 200

Shape = Callable[[float], float]


def readings(shape: Shape, noise: float = 0.0, seed: int = 0, count: int = READINGS) -> list[Point]:
    """One a minute."""
    rng = random.Random(seed)
    return [(at * MINUTE, shape(at * MINUTE) + rng.gauss(0, noise)) for at in range(count)]


def verdicts(shape: Shape, noise: float, resolution: float = 1.0) -> Counter[Verdict]:
    return Counter(trend(readings(shape, noise, seed), resolution).verdict for seed in range(SEEDS))


def stairs(every: float, step: float = 1.0) -> Shape:
    return lambda at: 25 + step * (at // every)


def test_a_leak_under_noise_is_found_and_its_slope_lies_in_the_interval() -> None:
    """6 MiB an hour under noise of 0.3 MiB, in 20 minutes: found in all but a few of 200 soaks."""
    slope = 6 / 3600
    found = [trend(readings(lambda at: 80 + slope * at, 0.3, seed), 1.0) for seed in range(SEEDS)]
    assert sum(one.verdict is Verdict.GROWS for one in found) >= 0.85 * SEEDS
    assert sum(one.low <= slope <= one.high for one in found) >= 0.97 * SEEDS


@pytest.mark.parametrize("every", [MINUTE, 3 * MINUTE, 5 * MINUTE])
def test_one_file_that_is_left_behind_now_and_then_is_found(every: float) -> None:
    """Whole numbers that mostly stand still: one in five minutes is enough."""
    found = trend(readings(stairs(every)), 1.0)
    assert found.verdict is Verdict.GROWS
    assert found.slope == pytest.approx(1 / every, rel=0.25)


def test_what_stands_still_has_a_slope_of_exactly_nothing() -> None:
    found = trend(readings(lambda at: 25.0), 1.0)
    assert (found.slope, found.low, found.high, found.noise) == (0, 0, 0, 0)
    assert found.verdict is Verdict.STEADY


def test_noise_alone_is_hardly_ever_a_leak() -> None:
    """Not once in a hundred soaks, however fine the resolution: a soak judges a hundred gauges."""
    assert verdicts(lambda at: 80.0, 3.0, resolution=0.0)[Verdict.GROWS] <= SEEDS // 100


def test_one_reading_that_is_far_off_changes_nothing() -> None:
    for place in range(READINGS):
        points = readings(lambda at: 25.0)
        points[place] = (points[place][0], 900.0)
        assert trend(points, 1.0).verdict is Verdict.STEADY, place


def test_what_fills_and_is_full_settles() -> None:
    """A cache, a pool, an arena: it rises clearly, and less and less."""
    seen = verdicts(lambda at: 80 - 20 * 2.0 ** (-at / (4 * MINUTE)), 0.2)
    assert seen[Verdict.SETTLES] >= 0.95 * SEEDS


def test_a_rise_below_the_resolution_is_not_worth_a_word_and_what_shrinks_does_not_grow() -> None:
    assert trend(readings(lambda at: 80 + at / 3600), 1.0).verdict is Verdict.STEADY
    assert trend(readings(lambda at: 80 + at / 3600), 0.1).verdict is Verdict.GROWS
    assert trend(readings(lambda at: 80 - at), 1.0).verdict is Verdict.STEADY


def test_of_few_readings_nothing_is_said() -> None:
    points = readings(lambda at: at)
    assert trend(points[: FEWEST - 1], 1.0).verdict is Verdict.UNKNOWN
    assert trend(points[:FEWEST], 1.0).verdict is Verdict.GROWS
    assert trend(points[:1], 1.0).start == 0


@given(
    values=st.lists(st.integers(0, 50), min_size=FEWEST, max_size=30),
    offset=st.integers(-1000, 1000),
    factor=st.sampled_from((0.5, 2.0, 1024.0)),
)
def test_neither_the_unit_nor_where_it_begins_matters(values: list[int], offset: int, factor: float) -> None:
    points = [(at * MINUTE, float(value)) for at, value in enumerate(values)]
    moved = [(at + offset, value * factor + offset) for at, value in points]
    one, other = trend(points, 1.0), trend(moved, factor)
    assert one.low <= one.slope <= one.high
    assert other.slope == pytest.approx(one.slope * factor, abs=1e-9)
    assert (other.low, other.high) == pytest.approx((one.low * factor, one.high * factor), abs=1e-9)
    assert other.verdict is one.verdict
