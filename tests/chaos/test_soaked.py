"""A soak has passed where it could have seen a leak, and saw none."""

from __future__ import annotations

import math

import pytest

from compose.chaos.soaked import Plan, Series, Soak, plan
from compose.chaos.trend import FEWEST

LIVED = {"sessions": 100, "given up": 1}


def soak(
    readings: int = FEWEST,
    *,
    grows: float = 0.0,
    measured: dict[str, int] = LIVED,
    fell: tuple[str, ...] = (),
    interrupted: bool = False,
) -> Soak:
    points = tuple((float(at), 10.0 + grows * at) for at in range(readings))
    series = (Series("node-1", "okome_node_subscribers", points, 0),)
    shape = Plan(waves=FEWEST, wave=20.0, sessions=12, warm=0, calm=FEWEST)
    return Soak("", "", "", "", shape, 60.0, 40.0, measured, measured, {}, fell, interrupted, series, ())


def test_nothing_grew_and_there_was_enough_to_see_it_by() -> None:
    assert soak().amiss == []
    assert soak().passed


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (soak(grows=5.0), "node-1 okome_node_subscribers grows"),
        (soak(fell=("node-1 in wave 2: SIGSEGV",)), "node-1 in wave 2: SIGSEGV ended by itself"),
        (soak(FEWEST - 1, grows=5.0), "there are too few readings of 1 gauges"),
        (soak(interrupted=True), "it was broken off early"),
        (soak(measured={}), "of 0 sessions that were measured 0 were given up"),
        (soak(measured={"sessions": 10, "given up": 9}), "of 10 sessions that were measured 9 were given up"),
    ],
    ids=["grows", "fell", "unknown", "interrupted", "nobody", "given-up"],
)
def test_what_is_amiss_is_said_and_does_not_pass(told: Soak, why: str) -> None:
    assert told.amiss == [why]
    assert not told.passed


def test_six_minutes_are_enough_to_say_something_of_everybody() -> None:
    """Also of those that are judged over the calm third alone."""
    for minutes in (6, 10, 30, math.e * 10):
        made = plan(minutes, 12)
        assert made.calm - made.warm >= FEWEST
    assert plan(5, 12).calm - plan(5, 12).warm < FEWEST
