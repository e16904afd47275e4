"""How late event loops were, from what roles count."""

from __future__ import annotations

from bench.lag import late

BEFORE = {"node-1": {0.001: 10.0, 0.01: 10.0, float("inf"): 10.0}}


def test_it_is_the_bound_under_which_99_of_100_looks_of_the_window_are() -> None:
    quick = {"node-1": {0.001: 109.0, 0.01: 110.0, float("inf"): 110.0}}
    assert late(BEFORE, quick) == {"node-1": 1.0}
    slow = {"node-1": {0.001: 108.0, 0.01: 110.0, float("inf"): 110.0}}
    assert late(BEFORE, slow) == {"node-1": 10.0}


def test_who_looked_at_nothing_says_nothing_and_who_is_new_counts_from_its_start() -> None:
    assert late(BEFORE, BEFORE) == {}
    assert late({}, BEFORE) == {"node-1": 1.0}
    assert late(BEFORE, {"node-1": {0.001: 2.0, 0.01: 3.0, float("inf"): 3.0}}) == {}, "it was started again"


def test_later_than_is_told_apart_is_said_so() -> None:
    late_ones = {"node-1": {0.001: 10.0, 0.01: 50.0, float("inf"): 110.0}}
    assert late(BEFORE, late_ones) == {"node-1": None}
